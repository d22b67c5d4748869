//! Times tokenizers on a text, one thread: `tokenizer_speed MODEL TEXT`, where MODEL is a
//! SentencePiece `tokenizer.model` or a `tokenizer.json`.
//!
//! Jobs arrive on standard input, one a line: `CLASS FORM [FILE]`, with CLASS `slow`, `fast` or
//! `library` (the `tokenizers` crate on a `tokenizer.json`) and FORM `lines`, `string` (the first
//! 200 KB at once) or `word` (the same without white space). The answer is `SECONDS BYTES IDS`; FILE
//! gets the ids, little-endian. `tokenizer_speed.py` drives it beside SentencePiece.

use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use puna::tokenizer::{
    EncodeOptions, LlamaTokenizer, LlamaTokenizerFast, SentencePiece, Specials, TokenizerConfig,
};

const STRING_BYTES: usize = 200_000;
/// Special tokens in the text are text, as they are for SentencePiece.
const LITERAL: EncodeOptions =
    EncodeOptions { specials: Specials::None, split_special_tokens: Some(true) };

struct Bench {
    slow: Option<LlamaTokenizer>,
    fast: LlamaTokenizerFast,
    library: Option<tokenizers::Tokenizer>,
    text: String,
    word: String,
}

impl Bench {
    fn load(model: &str, text: &str) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(model)?;
        let config = TokenizerConfig::default();
        let json = Path::new(model).with_extension("json");
        let mut library = tokenizers::Tokenizer::from_file(&json).ok();
        if let Some(library) = &mut library {
            library.set_encode_special_tokens(true);
        }
        let slow = match Path::new(model) == json {
            true => None,
            false => {
                let model = SentencePiece::from_bytes(&bytes, model)?;
                Some(LlamaTokenizer::new(model, &config))
            }
        };
        let fast = match &library {
            Some(_) => LlamaTokenizerFast::from_json(&std::fs::read(&json)?, &config, model)?,
            None => LlamaTokenizerFast::from_sentencepiece(&bytes, &config, model)?,
        };
        let text = std::fs::read_to_string(text)?;
        let head = &text[..text.floor_char_boundary(2 * STRING_BYTES)];
        let mut word: String = head.chars().filter(|c| !c.is_whitespace()).collect();
        word.truncate(word.floor_char_boundary(STRING_BYTES));
        Ok(Self { slow, fast, library, text, word })
    }

    fn encode(&self, class: &str, text: &str, ids: &mut Vec<u32>) -> Result<(), Box<dyn Error>> {
        match (class, &self.slow, &self.library) {
            ("slow", Some(slow), _) => ids.extend(slow.encode(text, LITERAL)?),
            ("fast", ..) => ids.extend(self.fast.encode(text, LITERAL)?),
            ("library", _, Some(library)) => {
                let encoding = library.encode_fast(text, false).map_err(|e| e.to_string())?;
                ids.extend_from_slice(encoding.get_ids());
            }
            _ => return Err(format!("no tokenizer of class {class}").into()),
        }
        Ok(())
    }

    fn run(&self, class: &str, form: &str) -> Result<(f64, usize, Vec<u32>), Box<dyn Error>> {
        let end = self.text.floor_char_boundary(STRING_BYTES);
        let parts: Vec<&str> = match form {
            "lines" => self.text.split('\n').collect(),
            "string" => vec![&self.text[..end]],
            "word" => vec![&self.word],
            _ => return Err(format!("no form {form}").into()),
        };
        let mut ids = Vec::with_capacity(self.text.len());
        let started = Instant::now();
        for part in &parts {
            self.encode(class, black_box(part), &mut ids)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok((seconds, parts.iter().map(|part| part.len()).sum(), ids))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text] = arguments.as_slice() else {
        return Err("usage: tokenizer_speed MODEL TEXT".into());
    };
    let bench = Bench::load(model, text)?;
    for job in std::io::stdin().lock().lines() {
        let job = job?;
        let words: Vec<&str> = job.split_whitespace().collect();
        let [class, form, file @ ..] = words.as_slice() else {
            return Err(format!("no job {job:?}").into());
        };
        let (seconds, bytes, ids) = bench.run(class, form)?;
        if let [file] = file {
            let raw: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            std::fs::write(file, raw)?;
        }
        println!("{seconds:.6} {bytes} {}", ids.len());
        std::io::stdout().flush()?;
    }
    Ok(())
}
