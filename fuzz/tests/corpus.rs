//! Every committed input, through the function that fuzzes it. Needs no libFuzzer and no C++. Whole
//! files must be accepted, hostile ones refused or used up within the time limit.

use std::path::Path;
use std::time::{Duration, Instant};

/// As `fuzz/run` allows an input; a debug build on a busy machine gets four times that.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs all inputs of a target. Those of `whole` must be accepted, or fuzzing starts from rubble.
fn replay(target: &str, run: fn(&[u8]) -> bool, whole: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs: Vec<_> = std::fs::read_dir(&folder)
        .expect("the corpus is in the repository")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    inputs.sort();
    for name in whole {
        assert!(folder.join(name).is_file(), "{target}/{name} is missing: tools/fuzz_seeds.py");
    }
    for input in inputs {
        let bytes = std::fs::read(&input).expect("the corpus can be read");
        eprintln!("{}", input.display());
        let start = Instant::now();
        let accepted = run(&bytes);
        let name = input.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        assert!(accepted || !whole.contains(&name), "{} must be accepted", input.display());
        assert!(start.elapsed() < LIMIT, "{} takes {:?}", input.display(), start.elapsed());
    }
}

#[test]
fn safetensors() {
    let whole = ["f32", "bf16"];
    replay("safetensors", puna_fuzz::safetensors, &whole);
}

#[test]
fn gguf() {
    let whole = ["spm_f32", "bpe_q4_0", "f16"];
    replay("gguf", puna_fuzz::gguf, &whole);
}

#[test]
fn pickle() {
    let whole = ["zipped", "legacy"];
    replay("pickle", puna_fuzz::pickle, &whole);
}

#[test]
fn sentencepiece() {
    let whole = ["bpe", "tiktoken"];
    replay("sentencepiece", puna_fuzz::sentencepiece, &whole);
}

#[test]
fn tokenizer_json() {
    let whole = ["metaspace", "byte_level"];
    replay("tokenizer_json", puna_fuzz::tokenizer_json, &whole);
}

#[test]
fn config_json() {
    let whole = ["old", "linear", "llama3", "yarn", "longrope", "dynamic", "head", "generation"];
    replay("config_json", puna_fuzz::config_json, &whole);
}

#[test]
fn chat_template() {
    let whole = ["turns", "checks", "generation", "macro"];
    replay("chat_template", puna_fuzz::chat_template, &whole);
}
