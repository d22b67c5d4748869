//! A conversation on the terminal: lines enter, answers stream out. What was said is kept and
//! goes through the template whole each time; the engine computes only what is new.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use puna::generate::{Engine, SamplingParams, StopConditions};
use puna::tokenizer::Tokenizer;
use puna_kernels::Cpu;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::Value;

use super::answer::{self, Lengths, generate};
use super::prompt::{PromptFormat, message};
use crate::failure::print_error;
use crate::interrupt::{Graceful, begin_conversation};
use crate::models::data_dir;
use crate::output::{Output, stdout_colour};

const HELP: &str = "\
/help          this text
/clear         forget what was said
/system TEXT   what the model should be or do; forgets what was said (without TEXT: nothing special)
/quit          leave; so does Ctrl-D
A line that ends in \\ goes on in the next one; so does everything between two lines of \"\"\".
Ctrl-C ends an answer, and clears a line.";

/// A model with everything that an answer needs.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) engine: Engine<Cpu>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) format: PromptFormat,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopConditions,
    /// Bounds on a conversation.
    pub(crate) lengths: Lengths,
    pub(crate) verbose: bool,
    /// Time to load the model.
    pub(crate) load: Duration,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Help,
    Clear,
    System(&'a str),
    Quit,
    Unknown(&'a str),
    Say(&'a str),
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let text = text.trim_end();
        if text.trim().is_empty() {
            return Self::Nothing;
        }
        if !text.starts_with('/') || text.contains('\n') {
            return Self::Say(text);
        }
        let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match command {
            "/help" | "/?" => Self::Help,
            "/clear" => Self::Clear,
            "/system" => Self::System(rest.trim()),
            "/quit" | "/exit" | "/bye" => Self::Quit,
            _ => Self::Unknown(command),
        }
    }
}

/// Chats until the user leaves.
pub(crate) fn chat(asked: &mut Asked, system: Option<&str>) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new().context("cannot use the terminal; give a PROMPT")?;
    let history = history_file();
    if let Some(path) = &history {
        // No history yet is how everybody begins.
        let _ = editor.load_history(path);
    }
    eprintln!("/help tells what can be typed here; Ctrl-D leaves.");
    begin_conversation();
    let outcome = turns(asked, &mut editor, system);
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        print_error(&format!("cannot keep the history in {}: {error}", path.display()));
    }
    outcome
}

fn turns(
    asked: &mut Asked,
    editor: &mut DefaultEditor,
    system: Option<&str>,
) -> anyhow::Result<()> {
    let mut opening: Vec<Value> = system.iter().map(|text| message("system", text)).collect();
    let mut messages = opening.clone();
    while let Some(text) = read_turn(editor)? {
        match Line::parse(&text) {
            Line::Nothing => {}
            Line::Help => eprintln!("{HELP}"),
            Line::Quit => break,
            Line::Unknown(command) => eprintln!("no command {command}; /help lists them"),
            Line::Clear => messages.clone_from(&opening),
            Line::System(text) => {
                opening.clear();
                if !text.is_empty() {
                    opening.push(message("system", text));
                }
                messages.clone_from(&opening);
            }
            Line::Say(text) => {
                messages.push(message("user", text));
                match answer_turn(asked, &messages) {
                    Ok(Some(answer)) => messages.push(message("assistant", &answer)),
                    Ok(None) => {
                        messages.pop();
                        eprintln!("stopped before the answer began; what you said is taken back");
                    }
                    Err(error) if error.is::<crate::output::StdoutClosed>() => return Err(error),
                    Err(error) => {
                        messages.pop();
                        print_error(&format!("{error:#}; /clear forgets what was said"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Streams the answer to a conversation and gives its text; `None` where Ctrl-C came before its
/// first token.
fn answer_turn(asked: &mut Asked, messages: &[Value]) -> anyhow::Result<Option<String>> {
    // From the first line of work on, so that no Ctrl-C is forgotten.
    let _interrupts = Graceful::new();
    let prompt_ids = asked.format.encode(&asked.tokenizer, messages)?;
    let n_prompt = prompt_ids.len();
    let request = answer::request(prompt_ids, &asked.sampling, &asked.stop, asked.lengths)?;
    let mut output = Output::new();
    let mut show = |text: &str| {
        output.write_foreign(text)?;
        output.flush()
    };
    let answer = generate(&mut asked.engine, &asked.tokenizer, request, &mut show)?;
    if !answer.tokens.is_empty() {
        output.write("\n")?;
    }
    output.flush()?;
    if asked.verbose {
        let timings = answer.timings(Duration::ZERO, asked.load, n_prompt);
        eprintln!("{}", answer.summary(&timings, n_prompt));
    }
    Ok((!answer.tokens.is_empty()).then_some(answer.text))
}

/// What the user says next, which may be several lines; `None` at the end of the input.
fn read_turn(editor: &mut DefaultEditor) -> anyhow::Result<Option<String>> {
    let (mut text, mut quoted) = (String::new(), false);
    let mut first = true;
    loop {
        let line = match editor.readline(sign(first)) {
            Ok(line) => line,
            Err(ReadlineError::Eof) if first => return Ok(None),
            Err(ReadlineError::Eof) => break,
            Err(ReadlineError::Interrupted) => return Ok(Some(String::new())),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                print_error("what was typed is not UTF-8 text and is passed over; type it again");
                return Ok(Some(String::new()));
            }
            Err(error) => return Err(error).context("cannot read from the terminal"),
        };
        first = false;
        if !join(&line, &mut text, &mut quoted) {
            break;
        }
    }
    if !text.trim().is_empty() {
        editor.add_history_entry(text.as_str()).context("cannot keep the history")?;
    }
    Ok(Some(text))
}

/// Adds a line to what is being said; whether there is more to come.
fn join(line: &str, text: &mut String, quoted: &mut bool) -> bool {
    const QUOTES: &str = "\"\"\"";
    if *quoted {
        let (inside, ended) = match line.split_once(QUOTES) {
            Some((inside, _)) => (inside, true),
            None => (line, false),
        };
        text.push_str(inside);
        if !ended {
            text.push('\n');
        }
        *quoted = !ended;
        return !ended;
    }
    if let Some(rest) = line.strip_prefix(QUOTES).filter(|_| text.is_empty()) {
        *quoted = true;
        return if rest.is_empty() { true } else { join(rest, text, quoted) };
    }
    match line.strip_suffix('\\') {
        Some(line) => {
            text.push_str(line);
            text.push('\n');
            true
        }
        None => {
            text.push_str(line);
            false
        }
    }
}

fn sign(first: bool) -> &'static str {
    match (first, stdout_colour()) {
        (true, true) => "\x1b[1;36m>\x1b[0m ",
        (true, false) => "> ",
        (false, _) => ". ",
    }
}

/// Where lines are remembered; nowhere where there is no place for it.
fn history_file() -> Option<PathBuf> {
    let dir = data_dir()?;
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(lines: &[&str]) -> (String, bool) {
        let (mut text, mut quoted) = (String::new(), false);
        let mut more = true;
        for line in lines {
            assert!(more, "more lines than were asked for");
            more = join(line, &mut text, &mut quoted);
        }
        (text, more)
    }

    #[test]
    fn lines_are_joined() {
        assert_eq!(joined(&["a"]), ("a".to_owned(), false));
        assert_eq!(joined(&["a\\", "b"]), ("a\nb".to_owned(), false));
        assert_eq!(joined(&["a\\"]), ("a\n".to_owned(), true));
        assert_eq!(joined(&["\"\"\"", "a\\", "", "b\"\"\""]), ("a\\\n\nb".to_owned(), false));
        assert_eq!(joined(&["\"\"\"a", "b", "\"\"\""]), ("a\nb\n".to_owned(), false));
        assert_eq!(joined(&["\"\"\"a\"\"\""]), ("a".to_owned(), false));
    }

    #[test]
    fn commands_are_told_from_talk() {
        assert_eq!(Line::parse("  "), Line::Nothing);
        assert_eq!(Line::parse("/help"), Line::Help);
        assert_eq!(Line::parse("/system be brief "), Line::System("be brief"));
        assert_eq!(Line::parse("/system"), Line::System(""));
        assert_eq!(Line::parse("/what is it"), Line::Unknown("/what"));
        assert_eq!(Line::parse("/usr/bin\nis a folder"), Line::Say("/usr/bin\nis a folder"));
        assert_eq!(Line::parse("hello"), Line::Say("hello"));
    }
}
