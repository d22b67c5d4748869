//! Every committed input, through the function that fuzzes it. Needs no libFuzzer and no C++.

use std::path::Path;
use std::time::{Duration, Instant};

/// As `fuzz/run` allows an input; a debug build on a busy machine gets four times that.
const LIMIT: Duration = Duration::from_secs(20);

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs: Vec<_> = std::fs::read_dir(&folder)
        .expect("the corpus is in the repository")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    for input in inputs {
        let bytes = std::fs::read(&input).expect("the corpus can be read");
        eprintln!("{}", input.display());
        let start = Instant::now();
        run(&bytes);
        assert!(start.elapsed() < LIMIT, "{} takes {:?}", input.display(), start.elapsed());
    }
}

#[test]
fn safetensors() {
    replay("safetensors", puna_fuzz::safetensors);
}

#[test]
fn gguf() {
    replay("gguf", puna_fuzz::gguf);
}

#[test]
fn pickle() {
    replay("pickle", puna_fuzz::pickle);
}

#[test]
fn sentencepiece() {
    replay("sentencepiece", puna_fuzz::sentencepiece);
}

#[test]
fn tokenizer_json() {
    replay("tokenizer_json", puna_fuzz::tokenizer_json);
}

#[test]
fn config_json() {
    replay("config_json", puna_fuzz::config_json);
}

#[test]
fn chat_template() {
    replay("chat_template", puna_fuzz::chat_template);
}
