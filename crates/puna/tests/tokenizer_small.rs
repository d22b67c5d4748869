//! The tokenizers on small vocabularies of our own making, against what SentencePiece and the
//! `tokenizers` library gave for them (`tools/tokenizer_reference.py` makes both).
//!
//! These run anywhere. The last test wants the metadata of a large GGUF tokenizer in
//! `$PUNA_TEST_DATA` and says so where it is absent. All comparisons are exact.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use puna::tokenizer::{
    AddedToken, DecodeOptions, EncodeOptions, GgufTokenizer, Llama3Specials, LlamaTokenizer,
    LlamaTokenizerFast, SentencePiece, Specials, Tokenizer, TokenizerConfig, TokenizerError,
};
use serde_json::Value;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer")
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(dir().join(name)).unwrap()
}

fn expected() -> Value {
    serde_json::from_slice(&read("expected.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn cases<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().unwrap()
}

fn fast(name: &str) -> LlamaTokenizerFast {
    LlamaTokenizerFast::from_json(&read(name), &TokenizerConfig::default(), name).unwrap()
}

fn slow(name: &str, legacy: bool) -> LlamaTokenizer {
    let model = SentencePiece::from_bytes(&read(name), name).unwrap();
    let config = TokenizerConfig { legacy: Some(legacy), ..TokenizerConfig::default() };
    LlamaTokenizer::new(model, &config)
}

#[test]
fn sentencepiece_models() {
    let expected = expected();
    for variant in cases(&expected, "sentencepiece") {
        let name = variant["model"].as_str().unwrap();
        let model = SentencePiece::from_bytes(&read(name), name).unwrap();
        assert_eq!(model.to_bytes(), read(name), "{name} is written back byte for byte");
        for case in cases(variant, "encode") {
            let text = case["text"].as_str().unwrap();
            assert_eq!(model.encode(text), ids(&case["ids"]), "{name}: {text:?}");
        }
        for case in cases(variant, "decode") {
            let ids = ids(&case["ids"]);
            let text = model.decode(&ids).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap(), "{name}: {ids:?}");
        }
    }
}

#[test]
fn byte_level_files() {
    let expected = expected();
    for variant in cases(&expected, "byte_level") {
        let name = variant["tokenizer"].as_str().unwrap();
        let tokenizer = fast(name);
        for case in cases(variant, "encode") {
            let text = case["text"].as_str().unwrap();
            let actual = tokenizer.encode(text, EncodeOptions::default()).unwrap();
            assert_eq!(actual, ids(&case["ids"]), "{name}: {text:?}");
        }
        for case in cases(variant, "decode") {
            let ids = ids(&case["ids"]);
            let all = tokenizer.decode(&ids, DecodeOptions::default());
            assert_eq!(all, case["text"].as_str().unwrap(), "{name}: {ids:?}");
            let text = tokenizer.decode(&ids, DecodeOptions::TEXT);
            assert_eq!(text, case["skip"].as_str().unwrap(), "{name}: {ids:?}");
        }
    }
}

/// The same vocabulary as a `tokenizer.json` and as GGUF metadata.
#[test]
fn gguf_metadata_equals_the_file() {
    let json: Value = serde_json::from_slice(&read("digits.json")).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let n = vocab.len() + 1;
    let mut tokens = vec![String::new(); n];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    tokens[n - 1] = "<w>".to_owned();
    let mut token_types = vec![1; n];
    token_types[..2].fill(3);
    token_types[n - 1] = 4;
    let merges = json["model"]["merges"].as_array().unwrap();
    let merge =
        |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let gguf = GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        token_types,
        merges: merges.iter().map(merge).collect(),
        bos_token_id: Some(0),
        eos_token_id: Some(1),
        ..GgufTokenizer::default()
    };
    let from_gguf = Tokenizer::from_gguf(&gguf).unwrap();
    let from_file = fast("digits.json");
    for case in cases(&expected()["byte_level"][0], "encode") {
        let text = case["text"].as_str().unwrap();
        if text.contains("<w>") {
            continue; // The file's token takes white space along, which GGUF cannot say.
        }
        let actual = from_gguf.encode(text, EncodeOptions::PLAIN).unwrap();
        assert_eq!(actual, from_file.encode(text, EncodeOptions::PLAIN).unwrap(), "{text:?}");
        let decoded = from_gguf.decode(&actual, DecodeOptions::default()).unwrap();
        assert_eq!(decoded, text);
    }
    assert_eq!(from_gguf.special_ids(), [0, 1]);

    let unknown = GgufTokenizer { pre: Some("other".to_owned()), ..gguf.clone() };
    let error = Tokenizer::from_gguf(&unknown).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.pre \"other\""), "{error}");
    let short = GgufTokenizer { token_types: vec![1], ..gguf };
    let error = Tokenizer::from_gguf(&short).unwrap_err().to_string();
    assert!(error.contains("token_type has 1 entries"), "{error}");
}

#[test]
fn every_pre_tokenizer_of_gguf_builds() {
    let alphabet: Vec<String> = (0..=255u8).map(|b| byte_char(b).to_string()).collect();
    for pre in [
        "default",
        "llama-bpe",
        "smaug-bpe",
        "smollm",
        "gpt-2",
        "qwen2",
        "falcon",
        "deepseek-coder",
        "tekken",
    ] {
        let gguf = GgufTokenizer {
            model: "gpt2".to_owned(),
            pre: Some(pre.to_owned()),
            tokens: alphabet.clone(),
            ..GgufTokenizer::default()
        };
        let tokenizer = Tokenizer::from_gguf(&gguf);
        let text = "It's 12345 dogs!!\n\n  x = {1: \"ü\"} 你好。 ";
        let tokenizer = match tokenizer {
            Ok(tokenizer) => tokenizer,
            // These kinds add BOS, and this vocabulary has none.
            Err(TokenizerError::Value(text)) if text.contains("bos_token") => {
                let gguf = GgufTokenizer { add_bos_token: Some(false), ..gguf };
                Tokenizer::from_gguf(&gguf).unwrap()
            }
            Err(error) => panic!("{pre}: {error}"),
        };
        let ids = tokenizer.encode(text, EncodeOptions::PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()).unwrap(), text, "{pre}");
    }
}

/// GPT-2's table of printable characters for bytes.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|&b| !printable(b)).count();
    char::from_u32(0x100 + index as u32).unwrap()
}

#[test]
fn a_gguf_of_sentencepiece_equals_the_model() {
    let model = SentencePiece::from_bytes(&read("llama_like.model"), "m").unwrap();
    let pieces = &model.proto().pieces;
    let gguf = GgufTokenizer {
        model: "llama".to_owned(),
        tokens: pieces.iter().map(|piece| piece.text.clone()).collect(),
        scores: pieces.iter().map(|piece| piece.score).collect(),
        token_types: pieces.iter().map(|piece| piece.kind as i32).collect(),
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        ..GgufTokenizer::default()
    };
    let from_gguf = Tokenizer::from_gguf(&gguf).unwrap();
    let from_file = Tokenizer::from(slow("llama_like.model", true));
    for case in cases(&expected()["sentencepiece"][0], "encode") {
        let text = case["text"].as_str().unwrap();
        let expected = from_file.encode(text, EncodeOptions::default()).unwrap();
        assert_eq!(from_gguf.encode(text, EncodeOptions::default()).unwrap(), expected);
        let decoded = from_gguf.decode(&expected, DecodeOptions::TEXT).unwrap();
        assert_eq!(decoded, from_file.decode(&expected, DecodeOptions::TEXT).unwrap());
    }
    // What such a tokenizer saves is a model that reads back to the same.
    let dir = tempfile::tempdir().unwrap();
    let Tokenizer::Slow(slow) = &from_gguf else { panic!("SentencePiece is the slow class") };
    slow.save_vocabulary(dir.path(), None).unwrap();
    let again = LlamaTokenizer::from_dir(dir.path()).unwrap();
    let text = "The puna 🦙 <s>";
    assert_eq!(
        again.encode(text, EncodeOptions::default()).unwrap(),
        from_gguf.encode(text, EncodeOptions::default()).unwrap()
    );
}

/// A tiktoken vocabulary of all bytes and some words, against merging by the definition.
#[test]
fn tiktoken_vocabularies() {
    let words = ["he", "ll", "hell", "llo", "hello", " h", " hello", "12", "123", "\n\n", "你"];
    let bytes = (0..=255u8).map(|byte| vec![byte]);
    let tokens: Vec<Vec<u8>> = bytes.chain(words.iter().map(|w| w.as_bytes().to_vec())).collect();
    let encode = |token: &Vec<u8>| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(token)
    };
    let lines: Vec<String> = tokens
        .iter()
        .enumerate()
        .map(|(rank, token)| format!("{} {rank}\n", encode(token)))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), lines.concat()).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let rank = |token: &str| 256 + words.iter().position(|word| *word == token).unwrap() as u32;
    let n = tokens.len() as u32;
    let encode = |text: &str, options| tokenizer.encode(text, options).unwrap();
    assert_eq!(encode("hello", EncodeOptions::default()), [n, rank("hello")]);
    // The lowest rank goes first: "he", then "ll", "hell", "llo", "hello".
    assert_eq!(encode("hellhello", EncodeOptions::PLAIN), [rank("hell"), rank("hello")]);
    assert_eq!(encode("llo", EncodeOptions::PLAIN), [rank("llo")]);
    assert_eq!(encode("xllo", EncodeOptions::PLAIN), [0x78, rank("llo")]);
    assert_eq!(encode(" hello1234", EncodeOptions::PLAIN), [rank(" hello"), rank("123"), 0x34]);
    assert_eq!(encode("<|eot_id|>", EncodeOptions::PLAIN), [n + 9]);
    let literal = EncodeOptions { specials: Specials::None, split_special_tokens: Some(true) };
    assert_eq!(encode("<|eot_id|>", literal).len(), 10);
    assert_eq!(tokenizer.len(), tokens.len() + 256);
    assert_eq!(tokenizer.eot_token_id(), Some(n + 9));
    let once = EncodeOptions { specials: Specials::AddUnlessPresent, ..Default::default() };
    assert_eq!(encode("<|begin_of_text|>你", once), [n, rank("你")]);
    assert_eq!(encode("你", once), [n, rank("你")]);
    let long = format!("{}\n", "x".repeat(60_000));
    let ids = encode(&long, EncodeOptions::PLAIN);
    assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()).unwrap(), long);

    let broken = lines[1..].concat();
    let config = TokenizerConfig::default();
    let error =
        LlamaTokenizerFast::from_tiktoken(broken.as_bytes(), Llama3Specials::V3, &config, "t")
            .unwrap_err()
            .to_string();
    assert!(error.contains("line 1: the ranks do not count up"), "{error}");
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], options: DecodeOptions) -> String {
    let mut stream = tokenizer.stream(options);
    let mut text = String::new();
    for &id in ids {
        let piece = stream.push(tokenizer, id).unwrap().unwrap_or_default();
        text += &piece;
    }
    text + &stream.finish(tokenizer).unwrap()
}

fn with_added(mut tokenizer: Tokenizer) -> Tokenizer {
    let tokens = [
        AddedToken::new("<A>", false),
        AddedToken::new("<B>", true),
        AddedToken { single_word: true, ..AddedToken::new("a", false) },
    ];
    match &mut tokenizer {
        Tokenizer::Slow(slow) => slow.add_tokens(&tokens),
        Tokenizer::Fast(fast) => fast.add_tokens(&tokens).unwrap(),
    };
    tokenizer
}

fn all_classes() -> Vec<Tokenizer> {
    let mut all: Vec<Tokenizer> = Vec::new();
    for name in ["llama_like.model", "folds_spaces.model", "suffix.model"] {
        for legacy in [true, false] {
            all.push(slow(name, legacy).into());
            let config = TokenizerConfig { legacy: Some(legacy), ..TokenizerConfig::default() };
            let fast = LlamaTokenizerFast::from_sentencepiece(&read(name), &config, name);
            all.push(fast.unwrap().into());
        }
    }
    all.extend(["digits.json", "llama3_like.json", "prefix_space.json"].map(|n| fast(n).into()));
    all.into_iter().map(with_added).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random ids, with many byte tokens and special ones among them.
    #[test]
    fn streams_equal_wholes(picks in prop::collection::vec((0..4u8, any::<u32>()), 0..40)) {
        thread_local!(static ALL: Vec<Tokenizer> = all_classes());
        ALL.with(|all| {
            for tokenizer in all {
                let len = tokenizer.len() as u32;
                let ids: Vec<u32> = picks.iter().map(|&(kind, value)| match kind {
                    0 => value % 3,
                    1 => (3 + value % 256).min(len - 1),
                    2 => len - 1 - value % 3,
                    _ => value % len,
                }).collect();
                for skip_special_tokens in [false, true] {
                    for clean in [false, true] {
                        for spaces_between_special_tokens in [false, true] {
                            let options = DecodeOptions {
                                skip_special_tokens,
                                spaces_between_special_tokens,
                                clean_up_tokenization_spaces: Some(clean),
                            };
                            let whole = tokenizer.decode(&ids, options).unwrap();
                            assert_eq!(streamed(tokenizer, &ids, options), whole, "{ids:?}");
                        }
                    }
                }
            }
        });
    }

    /// The fast class, whose decoder is our own, against the library's chain.
    #[test]
    fn decoding_equals_the_library(picks in prop::collection::vec(any::<u32>(), 0..30)) {
        thread_local! {
            static PAIR: (LlamaTokenizerFast, tokenizers::Tokenizer) = (
                fast("digits.json"),
                tokenizers::Tokenizer::from_bytes(read("digits.json")).unwrap(),
            );
        }
        PAIR.with(|(own, library)| {
            let ids: Vec<u32> = picks.iter().map(|pick| pick % own.len() as u32).collect();
            for skip in [false, true] {
                let options = DecodeOptions { skip_special_tokens: skip, ..Default::default() };
                assert_eq!(own.decode(&ids, options), library.decode(&ids, skip).unwrap());
            }
        });
    }

    /// What is encoded comes back, where the vocabulary knows every byte.
    #[test]
    fn text_comes_back(text in "(\\PC|[ \n\ta-c<>sé你\u{2581}]){0,40}") {
        thread_local! {
            static ALL: (SentencePiece, Tokenizer) = (
                SentencePiece::from_bytes(&read("llama_like.model"), "m").unwrap(),
                fast("digits.json").into(),
            );
        }
        ALL.with(|(model, byte_level)| {
            // The model itself cannot tell U+2581 from a space.
            let spaced = text.replace('\u{2581}', " ");
            assert_eq!(model.decode(&model.encode(&text)).unwrap(), spaced);
            if !text.contains("<w>") {
                let ids = byte_level.encode(&text, EncodeOptions::PLAIN).unwrap();
                assert_eq!(byte_level.decode(&ids, DecodeOptions::default()).unwrap(), text);
            }
        });
    }

    /// Broken files are errors, never a panic.
    #[test]
    fn broken_files_are_errors(seed in any::<u64>(), cut in 0..12000usize) {
        let mut model = read("llama_like.model");
        let mut json = read("llama3_like.json");
        for (index, bytes) in [&mut model, &mut json].into_iter().enumerate() {
            let at = (seed >> (index * 16)) as usize % bytes.len();
            bytes[at] = (seed >> 48) as u8;
            let at = (seed >> 24) as usize % bytes.len();
            bytes[at] ^= 1 << (seed % 8);
            bytes.truncate(bytes.len().saturating_sub(cut % 3 * cut));
        }
        let config = TokenizerConfig::default();
        if let Ok(model) = SentencePiece::from_bytes(&model, "m") {
            model.encode("It's a test 🦙.");
        }
        let _ = LlamaTokenizerFast::from_sentencepiece(&model, &config, "m");
        if let Ok(tokenizer) = LlamaTokenizerFast::from_json(&json, &config, "j") {
            let _ = tokenizer.encode("It's a test 🦙.", EncodeOptions::default());
        }
    }
}

#[test]
fn hostile_files_by_name() {
    let config = TokenizerConfig::default();
    let json = |model: &str, rest: &str| {
        let text = format!(r#"{{"version":"1.0",{rest}"model":{{"type":"BPE",{model}}}}}"#);
        LlamaTokenizerFast::from_json(text.as_bytes(), &config, "evil.json")
            .unwrap_err()
            .to_string()
    };
    let ab = r#""vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]"#;
    let deep = format!("{}{}", r#"{"type":"Sequence","normalizers":["#.repeat(20), "]}".repeat(20));
    for (error, part) in [
        (json(r#""vocab":{},"merges":[]"#, ""), "vocabulary is empty"),
        (json(r#""vocab":{"a":0,"b":1},"merges":["a b"]"#, ""), "makes no token"),
        (json(r#""vocab":{"a":0,"ab":1,"bb":2},"merges":["a b"]"#, ""), "out of vocabulary"),
        (json(r#""vocab":{"a":0},"merges":["a b c"]"#, ""), "two strings"),
        (json(r#""vocab":{"a":-1},"merges":[]"#, ""), "model.vocab"),
        (json(&format!(r#"{ab},"dropout":0.5"#), ""), "dropout"),
        (json(&format!(r#"{ab},"continuing_subword_prefix":"é""#), ""), "subword_prefix"),
        (
            json(ab, r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"},"#),
            "Precompiled",
        ),
        (json(ab, &format!(r#""normalizer":{deep},"#)), "too deeply"),
        (
            json(
                ab,
                r#""pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a"},"behavior":"Isolated","invert":false},"#,
            ),
            "(a",
        ),
        (
            json(
                ab,
                r#""post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x","type_id":0}}],"pair":[],"special_tokens":{}},"#,
            ),
            "no ids of \"x\"",
        ),
        (json(ab, r#""added_tokens":[{"id":99,"content":"<x>"}],"#), "the id 99"),
    ] {
        assert!(error.contains("evil.json") && error.contains(part), "{part}: {error}");
    }
    let error =
        LlamaTokenizerFast::from_json(br#"{"model":{"type":"Unigram"}}"#, &config, "u.json")
            .unwrap_err();
    assert!(matches!(error, TokenizerError::Unsupported { .. }), "{error}");
}

#[test]
fn folders() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::from_dir(dir.path()), Err(TokenizerError::Missing { .. })));
    std::fs::write(dir.path().join("tokenizer.model"), read("llama_like.model")).unwrap();
    assert!(matches!(Tokenizer::from_dir(dir.path()).unwrap(), Tokenizer::Slow(_)));
    let config = r#"{"tokenizer_class": "LlamaTokenizer", "legacy": false, "add_eos_token": true,
        "pad_token": "<pad>", "chat_template": "{{ messages[0].content }}",
        "added_tokens_decoder": {"900": {"content": "<pad>", "special": true},
                                 "901": {"content": "<x>", "lstrip": true}}}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let ids = tokenizer.encode("a  <x>", EncodeOptions::default()).unwrap();
    assert_eq!((ids[0], &ids[ids.len() - 2..]), (1, &[901, 2][..]));
    assert_eq!(tokenizer.pad_token_id(), Some(900));
    assert_eq!(tokenizer.len(), 902);
    assert_eq!(tokenizer.chat_template(), Some("{{ messages[0].content }}"));
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ 1 }}").unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), read("digits.json")).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"bos_token": "<|bos|>"}"#)
        .unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert!(matches!(tokenizer, Tokenizer::Fast(_)));
    assert_eq!(tokenizer.bos_token_id(), Some(0));
    assert_eq!(tokenizer.chat_template(), Some("{{ 1 }}"));
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}

/// A million characters in one string, with and without words, in time that grows with n log n.
#[test]
fn long_strings_are_not_quadratic() {
    let model = SentencePiece::from_bytes(&read("llama_like.model"), "m").unwrap();
    for text in ["a".repeat(300_000), " ".repeat(300_000), "ab é".repeat(75_000)] {
        assert_eq!(model.decode(&model.encode(&text)).unwrap(), text);
    }
    let tokenizer = fast("digits.json");
    for text in ["a".repeat(300_000), " ".repeat(300_000), "12 \n".repeat(75_000)] {
        let ids = tokenizer.encode(&text, EncodeOptions::PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()), text);
    }
}

/// A megabyte of mixed text with a real model's tokenizer, and short lines.
#[test]
fn large_gguf_tokenizer() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let root = std::env::var_os("PUNA_TEST_DATA").map_or(beside, PathBuf::from);
    let path = root.join("tokenizer/gguf_reference.json");
    let Ok(bytes) = std::fs::read(&path) else {
        println!("skipped: no {} (tools/tokenizer_reference.py --gguf makes it)", path.display());
        return;
    };
    let reference: Value = serde_json::from_slice(&bytes).unwrap();
    let meta = &reference["metadata"];
    let list = |name: &str| serde_json::from_value(meta[name].clone()).unwrap();
    let id = |name: &str| meta[name].as_u64().map(|id| id as u32);
    let gguf = GgufTokenizer {
        model: meta["model"].as_str().unwrap().to_owned(),
        pre: meta["pre"].as_str().map(str::to_owned),
        tokens: list("tokens"),
        token_types: serde_json::from_value(meta["token_type"].clone()).unwrap(),
        merges: list("merges"),
        bos_token_id: id("bos_token_id"),
        eos_token_id: id("eos_token_id"),
        add_bos_token: meta["add_bos_token"].as_bool(),
        ..GgufTokenizer::default()
    };
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let text = reference["text"].as_str().unwrap();
    let actual = tokenizer.encode(text, EncodeOptions::PLAIN).unwrap();
    let expected = ids(&reference["ids"]);
    let differs = actual.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert_eq!(actual.len(), expected.len());
    let decoded = tokenizer.decode(&actual, DecodeOptions::default()).unwrap();
    assert_eq!(decoded, reference["decoded"].as_str().unwrap());
    println!("{} bytes, {} tokens equal", text.len(), actual.len());
    let lines: Value = serde_json::from_slice(&read("smollm2_lines.json")).unwrap();
    for line in lines.as_array().unwrap() {
        let text = line["text"].as_str().unwrap();
        let actual = tokenizer.encode(text, EncodeOptions::PLAIN).unwrap();
        assert_eq!(actual, ids(&line["ids"]), "{text:?}");
    }
}
