//! `puna tokenize` and `puna detokenize`, with the model's own tokenizer: text enters and ids leave,
//! or the other way round. Lines of a file give one JSON object each, `{"ids": …, "tokens": …}`, and
//! are read one at a time, so that a file may be larger than memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use puna::tokenizer::{DecodeOptions, EncodeOptions, Specials, Tokenizer};
use serde_json::{Value, json};

use super::ModelArgs;
use crate::failure::Usage;
use crate::output::Output;
use crate::session::open_tokenizer;

/// Turn text into ids
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  puna tokenize \"Hello, llama\"
  puna tokenize -m model.gguf --json \"Hello, llama\"
  puna tokenize --no-special < page.txt
  puna tokenize --lines sentences.txt               one JSON object a line

The model may be a folder with nothing but a tokenizer.")]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Add no special tokens (BOS, EOS) around the text
    #[arg(long)]
    no_special: bool,
    /// Print {"ids":…,"tokens":…}
    #[arg(long)]
    json: bool,
    /// The text; else standard input, all of it
    #[arg(value_name = "TEXT", conflicts_with = "lines", allow_hyphen_values = true)]
    text: Option<String>,
    /// Each line of a file (- for standard input) by itself: one JSON object a line. Line ends,
    /// \n or \r\n, belong to no line
    #[arg(long, value_name = "FILE")]
    lines: Option<PathBuf>,
}

/// Turn ids into text
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  puna detokenize 19556 28 260 5371
  puna detokenize --skip-special 1 19556 2
  puna tokenize \"there and back\" | puna detokenize -")]
pub(crate) struct DetokenizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Leave special tokens out
    #[arg(long)]
    skip_special: bool,
    /// The ids; - reads them from standard input, apart by spaces, commas or brackets
    #[arg(value_name = "IDS", required = true)]
    ids: Vec<String>,
}

pub(super) fn tokenize(args: &TokenizeArgs) -> anyhow::Result<()> {
    let tokenizer = open_tokenizer(&args.model.path()?)?;
    let specials = if args.no_special { Specials::None } else { Specials::Add };
    let options = EncodeOptions { specials, split_special_tokens: None };
    let mut output = Output::new();
    if let Some(path) = &args.lines {
        each_line(path, |line| output.json(&encoded(&tokenizer, line, options)?))?;
        return output.flush();
    }
    let text = match &args.text {
        Some(text) => text.clone(),
        None => io::read_to_string(io::stdin().lock()).context("cannot read standard input")?,
    };
    if args.json {
        output.json(&encoded(&tokenizer, &text, options)?)?;
    } else {
        let ids = tokenizer.encode(&text, options)?;
        output.line(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))?;
    }
    output.flush()
}

fn encoded(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> anyhow::Result<Value> {
    let ids = tokenizer.encode(text, options)?;
    let tokens: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_token(id)).collect();
    Ok(json!({"ids": ids, "tokens": tokens}))
}

/// Calls `visit` with every line of a file, without its line end.
fn each_line(path: &Path, mut visit: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Box::new(BufReader::new(file))
    };
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let n = reader
            .read_until(b'\n', &mut bytes)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            break;
        }
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|error| {
            anyhow!(
                "{} is not UTF-8 text: line {number}, byte {} begins no character",
                path.display(),
                error.valid_up_to()
            )
        })?;
        visit(line)?;
    }
    Ok(())
}

pub(super) fn detokenize(args: &DetokenizeArgs) -> anyhow::Result<()> {
    let ids = ids(&args.ids, io::stdin().lock())?;
    let tokenizer = open_tokenizer(&args.model.path()?)?;
    if let Some(id) = ids.iter().find(|&&id| tokenizer.id_to_token(id).is_none()) {
        return Err(Usage(format!(
            "the vocabulary has no token {id}; its {} tokens begin with 0",
            tokenizer.len()
        ))
        .into());
    }
    let options =
        DecodeOptions { skip_special_tokens: args.skip_special, ..DecodeOptions::default() };
    let text = tokenizer.decode(&ids, options)?;
    let mut output = Output::new();
    output.write_foreign(&text)?;
    output.write("\n")?;
    output.flush()
}

fn ids(words: &[String], stdin: impl Read) -> anyhow::Result<Vec<u32>> {
    let text = if words == ["-"] {
        io::read_to_string(stdin).context("cannot read standard input")?
    } else {
        words.join(" ")
    };
    text.split(|c: char| c.is_whitespace() || ",[]".contains(c))
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse()
                .map_err(|_| Usage(format!("'{word}' is not an id: ids are numbers")).into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_every_usual_spelling() {
        let from = |words: &[&str], stdin: &str| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            ids(&words, stdin.as_bytes())
        };
        assert_eq!(from(&["1", "2"], "").unwrap(), [1, 2]);
        assert_eq!(from(&["[1, 2]"], "").unwrap(), [1, 2]);
        assert_eq!(from(&["-"], "1 2\n3\n").unwrap(), [1, 2, 3]);
        assert!(from(&["1", "x"], "").is_err());
        assert!(from(&["-1"], "").is_err());
        assert!(from(&["4294967296"], "").is_err());
    }
}
