//! `puna run`: a prompt enters, from the command line or a pipe, and an answer streams out; on a
//! terminal without a prompt, a conversation.

use std::io::{self, BufRead, IsTerminal, Read};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use puna::generate::FinishReason;
use serde_json::json;

use super::ModelArgs;
use super::answer::{self, generate};
use super::chat;
use super::prompt::{PromptFormat, message};
use super::sampling::SamplingArgs;
use super::speculation::SpeculationArgs;
use crate::failure::{Interrupted, Usage, print_warning};
use crate::output::Output;
use crate::session::{CHUNK_ROWS, ComputeArgs, Session};

/// Longest prompt that is read from a pipe.
const MAX_INPUT: u64 = 64 << 20;
/// How long standard input may take to begin where there is a PROMPT as well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answer a prompt, or chat
#[derive(Debug, Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  puna run \"Why is the sky blue?\"
  puna run                                             chat; /help tells more
  puna run -m model.gguf --temperature 0.7 --top-p 0.9 \"A story about llamas\"
  git diff | puna run \"Write a commit message for this change:\"
  puna run --speculate lookup \"Correct the spelling:\" <letter.txt
  puna run -m big.gguf --speculate small.gguf \"Why is the sky blue?\"
  puna run --raw -n 20 \"Once upon a time\"              continue a text
  puna run --json \"2 + 2 =\" | jq .text

The answer goes to standard output and nothing else does. Ctrl-C ends it and keeps what came.

Standard input, where it is no terminal: without a PROMPT it is the prompt. With one, it is put
below it to its end if its first byte, or its end, comes within 5 seconds; else it is left alone,
with a warning."
)]
pub(crate) struct RunArgs {
    /// What to ask; standard input, where it is no terminal, is the prompt or is put below it
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// What the model should be or do
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the text: no chat template
    #[arg(long)]
    raw: bool,
    /// Print one JSON object at the end instead of the text
    #[arg(long)]
    json: bool,
    /// Report the log-probability of each token and of the N likeliest
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    /// Print times on standard error at the end
    #[arg(long, visible_alias = "stats")]
    verbose: bool,
    /// Most tokens of prompt and answer; default: what the model was trained on, at most 4096
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let prompt = prompt(args)?;
    let session = Session::load(&args.model.path()?, &args.compute)?;
    let tokenizer = Arc::new(session.tokenizer()?);
    let format = PromptFormat::new(&tokenizer, args.raw)?;
    if !format.is_chat() && !args.raw {
        print_warning("the model has no chat template: the text is continued as it is (--raw)");
    }
    session.warn_about_generation();
    let makers = session.generation.as_ref();
    let sampling = args.sampling.params(makers, args.logprobs)?;
    let stop = args.sampling.stop(makers, session.eos_ids(&tokenizer))?;
    let context = session.context(args.context)?;
    let lengths = args.sampling.lengths(makers, context);
    let mut engine = session.engine(context, CHUNK_ROWS, args.compute.kv_dtype, "--context")?;
    let offline = args.model.offline;
    let guesses = args.speculation.speculation(&session, &tokenizer, &args.compute, offline)?;
    engine.speculate(guesses)?;
    let mut asked = chat::Asked {
        engine,
        tokenizer,
        format,
        sampling,
        stop,
        lengths,
        verbose: args.verbose,
        load: session.load,
    };
    let Some(prompt) = prompt else {
        return chat::chat(&mut asked, args.system.as_deref());
    };
    once(args, &mut asked, &prompt, start)
}

/// Answers one prompt.
fn once(
    args: &RunArgs,
    asked: &mut chat::Asked,
    prompt: &str,
    start: Instant,
) -> anyhow::Result<()> {
    let system = args.system.as_deref().map(|text| message("system", text));
    let messages: Vec<_> = system.into_iter().chain([message("user", prompt)]).collect();
    let prompt_ids = asked.format.encode(&asked.tokenizer, &messages)?;
    let request = answer::request(prompt_ids.clone(), &asked.sampling, &asked.stop, asked.lengths)?;
    let mut output = Output::new();
    let before = start.elapsed();
    let mut show = |text: &str| {
        if args.json {
            return Ok(());
        }
        output.write_foreign(text)?;
        output.flush()
    };
    let answer = generate(&mut asked.engine, &asked.tokenizer, request, &mut show)?;
    let timings = answer.timings(before, asked.load, prompt_ids.len());
    if args.json {
        let mut result = json!({
            "prompt_ids": prompt_ids,
            "ids": answer.tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
            "text": answer.text,
            "finish_reason": answer.finish.wire_name(),
            "timings": timings,
        });
        if args.logprobs.is_some() {
            result["logprobs"] = answer.logprobs(&asked.tokenizer);
        }
        output.json(&result)?;
    } else if !answer.text.ends_with('\n') {
        output.write("\n")?;
    }
    output.flush()?;
    let cancelled = answer.finish == FinishReason::Cancelled;
    if args.verbose || cancelled {
        eprintln!("{}", answer.summary(&timings, prompt_ids.len()));
    }
    if cancelled { Err(Interrupted.into()) } else { Ok(()) }
}

/// The prompt; `None` asks for a conversation.
fn prompt(args: &RunArgs) -> anyhow::Result<Option<String>> {
    let stdin = io::stdin();
    let piped = match &args.prompt {
        _ if stdin.is_terminal() => None,
        None => Some(read_input(stdin.lock())?),
        Some(_) => read_if_it_begins()?,
    };
    let text = match (args.prompt.as_deref(), piped) {
        (None, None) if args.json => {
            return Err(Usage("--json needs a prompt: give one, or pipe it in".to_owned()).into());
        }
        (None, None) => return Ok(None),
        (Some(prompt), None) => prompt.to_owned(),
        (None, Some(piped)) => piped,
        (Some(prompt), Some(piped)) if piped.trim().is_empty() => prompt.to_owned(),
        (Some(prompt), Some(piped)) => format!("{prompt}\n\n{piped}"),
    };
    if text.trim().is_empty() {
        return Err(Usage(
            "the prompt is empty: write it after the command, as in puna run \"Why is the sky \
             blue?\", or pipe it in"
                .to_owned(),
        )
        .into());
    }
    Ok(Some(text))
}

/// Standard input to its end; `None` where it does not begin in time, as one that a parent process
/// left open and never writes to.
fn read_if_it_begins() -> anyhow::Result<Option<String>> {
    let (begun, begins) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        // A failure comes again where the text is read. The receiver goes away with the program.
        let _ = stdin.fill_buf();
        let _ = begun.send(());
        read_input(stdin)
    });
    if begins.recv_timeout(PATIENCE).is_err() {
        print_warning(&format!(
            "standard input gave nothing for {} seconds and is left alone; close it with \
             </dev/null, or leave out the PROMPT to wait for it",
            PATIENCE.as_secs()
        ));
        return Ok(None);
    }
    reader.join().map_err(|_| anyhow!("reading standard input broke off"))?.map(Some)
}

/// A text from a pipe, less the line end that most programs put at its end.
fn read_input(stdin: impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    stdin.take(MAX_INPUT + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(Usage(format!("standard input has more than {MAX_INPUT} bytes")).into());
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Usage(format!("standard input is not UTF-8 text: byte {at} begins no character"))
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}
