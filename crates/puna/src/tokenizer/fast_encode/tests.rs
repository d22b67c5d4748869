//! Our own merging against the `tokenizers` crate, on random texts. All comparisons are exact.

use std::path::{Path, PathBuf};

use super::super::tokenizer_json;
use super::super::{LlamaTokenizerFast, TokenizerConfig};
use super::*;

/// Random numbers of a test: the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }

    fn pick<'t, T>(&mut self, list: &'t [T]) -> &'t T {
        &list[self.below(list.len())]
    }
}

const SNIPPETS: &[&str] = &[
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\u{2581}",
    "\u{2581}\u{2581}",
    "\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{85}",
    "\0",
    "\u{1}",
    "\u{1f}",
    "\u{7f}",
    "\u{ad}",
    "\u{feff}",
    "\u{200d}",
    "0",
    "7",
    "12",
    "1234",
    "\u{664}\u{663}",
    "\u{2168}",
    "\u{bd}",
    "'s",
    "'LL",
    "'\u{17f}",
    "'t",
    "don't",
    "the",
    "The",
    " the",
    "ing",
    "er",
    "a",
    "b",
    "z",
    "Z",
    "_",
    "-",
    "--",
    "...",
    ".,",
    "((",
    "})",
    "<",
    ">",
    "</",
    "<0x0A>",
    "<0x",
    "<s",
    "s>",
    "é",
    "e\u{301}",
    "ß",
    "ĳ",
    "я",
    "привет",
    "你",
    "好世界",
    "한국",
    "に",
    "हिन्दी",
    "ไทย",
    "🦙",
    "👩\u{200d}🚀",
    "𝔘",
    "\u{10ffff}",
    "\u{e000}",
    "<A>",
    "<B>",
    "<C>",
    "<D>",
    "single",
    "aaaa",
    "abab",
];

/// A text of snippets, tokens of the vocabulary and arbitrary characters.
fn text(random: &mut Random, tokens: &[String], length: usize) -> String {
    let mut text = String::new();
    for _ in 0..random.below(length) {
        match random.below(8) {
            0..3 => text += *random.pick(SNIPPETS),
            3..6 => text += random.pick::<String>(tokens),
            6 => {
                let bound = *random.pick(&[128, 0x250, 0x3000, 0x1_1000, 0x11_0000]);
                text.extend(char::from_u32(random.below(bound) as u32));
            }
            _ => {
                let again = random.pick(SNIPPETS);
                text += &again.repeat(1 + random.below(6));
            }
        }
    }
    text
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer")
}

fn own_files() -> Vec<(String, LlamaTokenizerFast)> {
    let mut all = Vec::new();
    for name in ["digits.json", "llama3_like.json", "prefix_space.json"] {
        let bytes = std::fs::read(data().join(name)).unwrap();
        let config = TokenizerConfig::default();
        all.push((name.to_owned(), LlamaTokenizerFast::from_json(&bytes, &config, name).unwrap()));
    }
    let bytes = std::fs::read(data().join("llama_like.model")).unwrap();
    all.extend(sentencepiece_variants(&bytes));
    all
}

/// Both legacy modes, with and without a prefix space, and the schemes that only files have.
fn sentencepiece_variants(bytes: &[u8]) -> Vec<(String, LlamaTokenizerFast)> {
    use tokenizers::pre_tokenizers::metaspace::Metaspace;
    let mut all = Vec::new();
    for (legacy, prefix) in [(true, true), (true, false), (false, true), (false, false)] {
        let config = TokenizerConfig {
            legacy: Some(legacy),
            add_prefix_space: Some(prefix),
            ..TokenizerConfig::default()
        };
        let tokenizer = LlamaTokenizerFast::from_sentencepiece(bytes, &config, "m").unwrap();
        all.push((format!("legacy {legacy} prefix {prefix}"), tokenizer));
    }
    for splits in [false, true] {
        let model = super::super::SentencePiece::from_bytes(bytes, "m").unwrap();
        let mut parts =
            super::super::convert::from_sentencepiece(&model, false, true, "m").unwrap();
        let step = Metaspace::new(SPACE_MARK, PrependScheme::Always, splits);
        parts.splitter.steps = vec![Step::Library(Box::new(step.into()))];
        let tokenizer = LlamaTokenizerFast::new(parts, "m").unwrap();
        all.push((format!("always, splits {splits}"), tokenizer));
    }
    all
}

/// Compares on `count` texts, half of them with added tokens of every flag.
fn compare(name: &str, mut tokenizer: LlamaTokenizerFast, count: usize, seed: u64) {
    let mut random = Random(seed);
    let mut tokens: Vec<String> =
        (0..tokenizer.len() as u32).filter_map(|id| tokenizer.id_to_token(id)).collect();
    let is_bytes = matches!(&*tokenizer.encoder.as_ref().unwrap().model, Model::Bytes { .. });
    if is_bytes {
        for token in &mut tokens {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
            if let Some(bytes) = bytes {
                *token = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
    }
    let mut scratch = Scratch::default();
    let (mut own, mut left) = (0, 0);
    for index in 0..count {
        if index == count / 2 {
            let flagged =
                |text: &str| AddedToken { normalized: false, ..AddedToken::new(text, false) };
            let added = [
                flagged("<A>"),
                AddedToken::new("<B>", true),
                AddedToken { lstrip: true, rstrip: true, ..flagged("<C>") },
                AddedToken::new("<D>", false),
                AddedToken { single_word: true, ..flagged("single") },
            ];
            tokenizer.add_tokens(&added).unwrap();
        }
        let length = if index % 50 == 0 { 200 } else { 16 };
        let text = text(&mut random, &tokens, length);
        for literal in [false, true] {
            let mut ids = vec![7];
            let encoder = tokenizer.encoder.as_ref().unwrap();
            if !encoder.encode(&text, literal, &mut scratch, &mut ids).unwrap() {
                assert_eq!(ids, [7]);
                left += 1;
                continue;
            }
            own += 1;
            let expected = tokenizer.encode_by_library(&text, literal).unwrap();
            assert_eq!(&ids[1..], expected, "{name}, literal {literal}: {text:?}");
        }
    }
    println!("{name}: {own} texts equal, {left} left to the library");
    assert!(own > count && left > 0 && left < count / 2);
}

#[test]
fn random_texts_equal_the_library() {
    for (name, tokenizer) in own_files() {
        compare(&name, tokenizer, 150, 1);
    }
}

/// Thousands of texts for each file, and with the real LLaMA vocabulary of `$PUNA_TEST_DATA`; and
/// with every `tokenizer.json` in its folder `tokenizer/json`, where there are some.
#[test]
#[ignore = "minutes long without optimisation"]
fn many_random_texts_equal_the_library() {
    let mut all = own_files();
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let root = std::env::var_os("PUNA_TEST_DATA").map_or(beside, PathBuf::from).join("tokenizer");
    match std::fs::read(root.join("tokenizer.model")) {
        Ok(bytes) => all.extend(sentencepiece_variants(&bytes)),
        Err(_) => println!("skipped: no tokenizer.model in {}", root.display()),
    }
    for entry in std::fs::read_dir(root.join("json")).into_iter().flatten().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap();
        let name = entry.path().display().to_string();
        let config = TokenizerConfig::default();
        all.push((name.clone(), LlamaTokenizerFast::from_json(&bytes, &config, &name).unwrap()));
    }
    for (index, (name, tokenizer)) in all.into_iter().enumerate() {
        compare(&name, tokenizer, 20_000, 2 + index as u64);
    }
}

#[test]
fn files_of_other_kinds_are_left_to_the_library() {
    let json = |normalizer: &str, pre: &str, model: &str| {
        let text = format!(
            r#"{{"normalizer":{normalizer},"pre_tokenizer":{pre},"model":{{"type":"BPE",{model}}}}}"#
        );
        let parts = tokenizer_json::parse(text.as_bytes(), "t").unwrap();
        let splitter = Arc::new(Splitter { steps: Vec::new() });
        FastEncoder::new(&parts, &splitter).is_some()
    };
    let bytes: Vec<String> = (0..256).map(|b| format!(r#""<0x{b:02X}>":{b}"#)).collect();
    let vocab = format!(r#""vocab":{{{},"a":256,"b":257,"ab":258}}"#, bytes.join(","));
    let replace = r#"{"type":"Replace","pattern":{"String":" "},"content":"▁"}"#;
    let model = |rest: &str| format!(r#"{vocab},"merges":["a b"]{rest}"#);
    let fallback = r#","byte_fallback":true"#;
    assert!(json(replace, "null", &model(fallback)));
    assert!(!json(replace, "null", &model("")), "no byte tokens");
    assert!(!json("null", "null", &model(fallback)), "spaces stay");
    assert!(!json(r#"{"type":"NFC"}"#, "null", &model(fallback)), "another normaliser");
    let ignores = format!(r#"{fallback},"ignore_merges":true"#);
    assert!(!json(replace, "null", &model(&ignores)), "whole texts that are tokens");
    let two = vocab.replace(r#""b":257"#, r#""b":256"#);
    let two = format!(r#"{two},"merges":["a b"]{fallback}"#);
    assert!(!json(replace, "null", &two), "two texts with one id");
    let bytes_merge = vocab.replace(r#""ab":258"#, r#""<0x41>a":258"#);
    let bytes_merge = format!(r#"{bytes_merge},"merges":["<0x41> a"]{fallback}"#);
    assert!(!json(replace, "null", &bytes_merge), "byte tokens that merge");
}
