//! The tokenizers against what SentencePiece and Transformers 4 gave for the same strings.
//!
//! The files are in `$PUNA_TEST_DATA`, or in `../shared/data` beside the repository; where they
//! are absent, the tests say so and pass. All comparisons are exact.

use std::path::{Path, PathBuf};

use puna::tokenizer::{
    AddedToken, ChatError, ChatOptions, ChatTemplate, DecodeOptions, EncodeOptions, LlamaTokenizer,
    LlamaTokenizerFast, SentencePiece, Specials, Tokenizer, TokenizerConfig, llama2_template,
};
use serde_json::Value;

fn data() -> Option<(Value, Vec<u8>)> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let root = std::env::var_os("PUNA_TEST_DATA").map_or(beside, PathBuf::from);
    let dir = root.join("tokenizer");
    let (Ok(goldens), Ok(model)) =
        (std::fs::read(dir.join("goldens.json")), std::fs::read(dir.join("tokenizer.model")))
    else {
        println!("skipped: no goldens.json and tokenizer.model in {}", dir.display());
        return None;
    };
    Some((serde_json::from_slice(&goldens).unwrap(), model))
}

fn config(legacy: bool, add_prefix_space: bool) -> TokenizerConfig {
    TokenizerConfig {
        legacy: Some(legacy),
        add_prefix_space: Some(add_prefix_space),
        ..TokenizerConfig::default()
    }
}

fn tokenizer(model: &[u8], variant: &str) -> Tokenizer {
    let legacy = variant.contains("legacy_true") || variant.contains("default");
    let config = config(legacy, !variant.contains("no_prefix_space"));
    if variant.starts_with("fast") {
        LlamaTokenizerFast::from_sentencepiece(model, &config, "tokenizer.model").unwrap().into()
    } else {
        let model = SentencePiece::from_bytes(model, "tokenizer.model").unwrap();
        let mut tokenizer = LlamaTokenizer::new(model, &config);
        tokenizer.space_after_leading_special = !variant.contains("4_35");
        tokenizer.into()
    }
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Decodes as a whole and as a stream, which must agree.
fn decode(tokenizer: &Tokenizer, ids: &[u32], options: DecodeOptions) -> String {
    let whole = tokenizer.decode(ids, options).unwrap();
    let mut stream = tokenizer.stream(options);
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(tokenizer, id).unwrap().unwrap_or_default();
    }
    text += &stream.finish(tokenizer).unwrap();
    assert_eq!(text, whole, "streamed {ids:?}");
    whole
}

#[test]
fn sentencepiece_strings() {
    let Some((goldens, model)) = data() else { return };
    let model = SentencePiece::from_bytes(&model, "tokenizer.model").unwrap();
    let strings = goldens["strings"].as_array().unwrap();
    for case in strings {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["sentencepiece"]["ids"]);
        assert_eq!(model.encode(text), expected, "{text:?}");
        let decoded = case["sentencepiece"]["decoded"].as_str().unwrap();
        assert_eq!(model.decode(&expected).unwrap(), decoded, "{text:?}");
    }
    println!("{} strings", strings.len());
}

fn check_strings(variant: &str) {
    let Some((goldens, model)) = data() else { return };
    let tokenizer = tokenizer(&model, variant);
    let mut failures = Vec::new();
    for case in goldens["strings"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected = &case[variant];
        let with_bos = ids(&expected["ids_with_bos"]);
        let without = ids(&expected["ids_without"]);
        let mut check = |field: &str, actual: String| {
            let wanted = match expected[field].as_str() {
                Some(text) => text.to_owned(),
                None => format!("{:?}", ids(&expected[field])),
            };
            if actual != wanted {
                failures.push(format!("{field} of {text:?}: {actual:?}, not {wanted:?}"));
            }
        };
        let encode = |options| format!("{:?}", tokenizer.encode(text, options).unwrap());
        check("ids_with_bos", encode(EncodeOptions::default()));
        check("ids_without", encode(EncodeOptions::PLAIN));
        check("decoded", decode(&tokenizer, &with_bos, DecodeOptions::default()));
        check("decoded_skip_special", decode(&tokenizer, &with_bos, DecodeOptions::TEXT));
        check("decoded_without_bos", decode(&tokenizer, &without, DecodeOptions::default()));
    }
    let n = failures.len();
    assert!(failures.is_empty(), "{variant}: {n} differ:\n{}", failures[..n.min(20)].join("\n"));
}

#[test]
fn legacy_true() {
    check_strings("legacy_true");
}

#[test]
fn legacy_false() {
    check_strings("legacy_false");
}

#[test]
fn legacy_false_no_prefix_space() {
    check_strings("legacy_false_no_prefix_space");
}

#[test]
fn fast_legacy_true() {
    check_strings("fast_legacy_true");
}

#[test]
fn fast_legacy_false() {
    check_strings("fast_legacy_false");
}

#[test]
fn fast_legacy_false_no_prefix_space() {
    check_strings("fast_legacy_false_no_prefix_space");
}

#[test]
fn documented_methods() {
    let Some((goldens, model)) = data() else { return };
    for variant in [
        "slow_4_35_2_legacy_true",
        "slow_4_35_2_legacy_false",
        "slow_4_57_3_legacy_true",
        "slow_4_57_3_legacy_false",
        "fast_4_57_3_legacy_true",
        "fast_4_57_3_legacy_false",
        "fast_4_35_2_default",
    ] {
        let tokenizer = tokenizer(&model, variant);
        let (mut run, mut left_out, mut failures) = (0, Vec::new(), Vec::new());
        for case in goldens["methods"][variant]["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            match outcome(&tokenizer, name, case) {
                Some(actual) => {
                    run += 1;
                    let expected = expected(&tokenizer, name, case);
                    if actual != expected {
                        let args = &case["args"];
                        failures.push(format!("{name} {args}:\n  {actual}\n  {expected}"));
                    }
                }
                None => left_out.push(name),
            }
        }
        left_out.dedup();
        println!("{variant}: {run} cases run; not part of this interface: {left_out:?}");
        let n = failures.len();
        assert!(failures.is_empty(), "{variant}: {n}\n{}", failures[..n.min(12)].join("\n"));
        assert!(run > 100);
    }
}

/// What the library gave, in the form of `outcome`.
fn expected(tokenizer: &Tokenizer, name: &str, case: &Value) -> Value {
    if let Some(error) = case["error"].as_str() {
        return Value::from(error.split_once(": ").map_or(error, |(_, text)| text));
    }
    let mut out = case["out"].clone();
    match name {
        "call_pair" => out["input_ids"].take(),
        // The fast class reports normalised text here; ids and decoded text are compared.
        "added_token" if matches!(tokenizer, Tokenizer::Fast(_)) => {
            out.as_object_mut().unwrap().remove("tokens");
            out
        }
        "decode" => {
            out.as_object_mut().unwrap().remove("str_from_tokens");
            out
        }
        _ => out,
    }
}

fn with_flags(tokenizer: &Tokenizer, flags: &Value) -> Tokenizer {
    let flag = |name: &str| flags[name].as_bool().unwrap();
    let mut tokenizer = tokenizer.clone();
    match &mut tokenizer {
        Tokenizer::Slow(slow) => {
            slow.add_bos_token = flag("add_bos_token");
            slow.add_eos_token = flag("add_eos_token");
        }
        Tokenizer::Fast(fast) => {
            fast.set_add_bos_token(flag("add_bos_token")).unwrap();
            fast.set_add_eos_token(flag("add_eos_token")).unwrap();
        }
    }
    tokenizer
}

/// Runs one case; `None` for what the tokenizers do not offer.
fn outcome(tokenizer: &Tokenizer, name: &str, case: &Value) -> Option<Value> {
    let args = case["args"].as_array().unwrap();
    let flagged = || with_flags(tokenizer, &args[0]);
    let is_ids =
        |value: &&Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_u64));
    let second = args.get(2).filter(is_ids).map(ids);
    Some(match name {
        "build_inputs_with_special_tokens" => match flagged() {
            Tokenizer::Slow(slow) => {
                slow.build_inputs_with_special_tokens(&ids(&args[1]), second.as_deref()).unwrap()
            }
            Tokenizer::Fast(fast) => {
                fast.build_inputs_with_special_tokens(&ids(&args[1]), second.as_deref())
            }
        }
        .into(),
        "get_special_tokens_mask" | "get_special_tokens_mask_already" => {
            let (a, b) = (ids(&args[1]), second.as_deref());
            let already = name.ends_with("already");
            let mask = match flagged() {
                Tokenizer::Slow(slow) => slow.get_special_tokens_mask(&a, b, already),
                Tokenizer::Fast(fast) => fast.get_special_tokens_mask(&a, b, already),
            };
            mask.map_or_else(|error| error.to_string().into(), Value::from)
        }
        "create_token_type_ids_from_sequences" => match flagged() {
            Tokenizer::Slow(slow) => {
                slow.create_token_type_ids_from_sequences(&ids(&args[1]), second.as_deref())
            }
            Tokenizer::Fast(fast) => {
                fast.create_token_type_ids_from_sequences(&ids(&args[1]), second.as_deref())
            }
        }
        .into(),
        "num_special_tokens_to_add" => {
            let pair = args[1].as_bool().unwrap();
            match flagged() {
                Tokenizer::Slow(slow) => slow.num_special_tokens_to_add(pair),
                Tokenizer::Fast(fast) => fast.num_special_tokens_to_add(pair),
            }
            .into()
        }
        "encode"
        | "call_pair"
        | "encode_split_special"
        | "encode_is_split_into_words"
        | "convert_tokens_to_ids" => return encoded(tokenizer, name, case),
        "decode_cleanup" => cleaned_up(tokenizer, args),
        "decode" => decoded(tokenizer, &ids(&args[0])),
        "added_token" => added_token(tokenizer, args),
        "save_vocabulary" => saved(tokenizer),
        "post_processor_missing" => missing_token(tokenizer, &args[0]),
        "chat_template" => chat(tokenizer, args),
        _ => return None,
    })
}

/// The cases that end in ids.
fn encoded(tokenizer: &Tokenizer, name: &str, case: &Value) -> Option<Value> {
    let args = case["args"].as_array().unwrap();
    let flagged = || with_flags(tokenizer, &args[0]);
    let plain =
        |text: &Value| tokenizer.encode(text.as_str().unwrap(), EncodeOptions::PLAIN).unwrap();
    Some(match name {
        "encode" => {
            flagged().encode(args[1].as_str().unwrap(), EncodeOptions::default()).unwrap().into()
        }
        "call_pair" => {
            let (a, b) = (plain(&args[1]), plain(&args[2]));
            match flagged() {
                Tokenizer::Slow(slow) => {
                    slow.build_inputs_with_special_tokens(&a, Some(&b)).unwrap()
                }
                Tokenizer::Fast(fast) => fast.build_inputs_with_special_tokens(&a, Some(&b)),
            }
            .into()
        }
        "encode_split_special" if case["error"].is_null() => {
            let options =
                EncodeOptions { specials: Specials::None, split_special_tokens: Some(true) };
            tokenizer.encode(args[0].as_str().unwrap(), options).unwrap().into()
        }
        "encode_is_split_into_words" => {
            let words = args[0].as_array().unwrap();
            words.iter().flat_map(plain).collect::<Vec<u32>>().into()
        }
        "convert_tokens_to_ids" => {
            let token = args[0].as_str().unwrap();
            tokenizer.token_to_id(token).or(tokenizer.unk_token_id()).unwrap().into()
        }
        _ => return None,
    })
}

fn cleaned_up(tokenizer: &Tokenizer, args: &[Value]) -> Value {
    let ids = tokenizer.encode(args[1].as_str().unwrap(), EncodeOptions::PLAIN).unwrap();
    let options = DecodeOptions {
        clean_up_tokenization_spaces: args[0].as_bool(),
        ..DecodeOptions::default()
    };
    decode(tokenizer, &ids, options).into()
}

fn decoded(tokenizer: &Tokenizer, ids: &[u32]) -> Value {
    let tokens: Vec<String> = ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
    let spaces = DecodeOptions { spaces_between_special_tokens: true, ..DecodeOptions::default() };
    serde_json::json!({
        "plain": decode(tokenizer, ids, DecodeOptions::default()),
        "skip": decode(tokenizer, ids, DecodeOptions::TEXT),
        "spaces": decode(tokenizer, ids, spaces),
        "tokens": tokens,
    })
}

fn added_token(tokenizer: &Tokenizer, args: &[Value]) -> Value {
    let mut tokenizer = tokenizer.clone();
    let special = args[2].as_bool().unwrap();
    let mut flags = args[1].clone();
    flags["content"] = args[0].clone();
    let token = AddedToken::from_json(&flags, special).unwrap();
    let added = match &mut tokenizer {
        Tokenizer::Slow(slow) => slow.add_tokens(&[token]),
        Tokenizer::Fast(fast) => fast.add_tokens(&[token]).unwrap(),
    };
    let text = args[3].as_str().unwrap();
    let ids = tokenizer.encode(text, EncodeOptions::PLAIN).unwrap();
    let mut out = serde_json::json!({
        "added": added,
        "ids": ids,
        "decoded": decode(&tokenizer, &ids, DecodeOptions::default()),
        "decoded_skip": decode(&tokenizer, &ids, DecodeOptions::TEXT),
    });
    if let Tokenizer::Slow(slow) = &tokenizer {
        out["tokens"] = slow.convert_ids_to_tokens(&ids, false).unwrap().into();
    }
    out
}

fn saved(tokenizer: &Tokenizer) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let original = data().unwrap().1;
    let mut names = Vec::new();
    let mut identical = true;
    for prefix in [None, Some("pre")] {
        let path = match tokenizer {
            Tokenizer::Slow(slow) => slow.save_vocabulary(dir.path(), prefix),
            Tokenizer::Fast(fast) => fast.save_vocabulary(dir.path(), prefix),
        }
        .unwrap();
        identical &= std::fs::read(&path).unwrap() == original;
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    serde_json::json!({"files": names, "identical": identical})
}

fn missing_token(tokenizer: &Tokenizer, change: &Value) -> Value {
    let Tokenizer::Fast(mut fast) = tokenizer.clone() else { panic!("a case of the fast class") };
    let mut special = fast.special_tokens().clone();
    if change.get("bos_token").is_some() {
        special.bos = None;
    }
    if change.get("eos_token").is_some() {
        special.eos = None;
    }
    fast.set_special_tokens(special).unwrap();
    let result = match change["add_eos_token"].as_bool() {
        Some(add) => fast.set_add_eos_token(add),
        None => fast.update_post_processor(),
    };
    result.map_or_else(|error| error.to_string().into(), |()| Value::Null)
}

fn chat(tokenizer: &Tokenizer, args: &[Value]) -> Value {
    let template = ChatTemplate::new(&llama2_template(args[0].as_bool().unwrap())).unwrap();
    let options = ChatOptions {
        special_tokens: tokenizer.special_tokens().clone(),
        ..ChatOptions::default()
    };
    match template.render(&args[1], &options) {
        Ok(chat) => {
            let ids = tokenizer.encode(&chat.text, EncodeOptions::PLAIN).unwrap();
            serde_json::json!({"text": chat.text, "ids": ids})
        }
        Err(error @ ChatError::Raised(_)) => error.to_string().into(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn special_ids_and_sizes() {
    let Some((_, model)) = data() else { return };
    for variant in ["legacy_true", "fast_legacy_true"] {
        let tokenizer = tokenizer(&model, variant);
        assert_eq!(tokenizer.vocab_size(), 32000);
        assert_eq!(tokenizer.len(), 32000);
        assert_eq!(tokenizer.special_ids(), [0, 1, 2]);
        assert_eq!(tokenizer.bos_token_id(), Some(1));
        assert_eq!(tokenizer.eos_token_id(), Some(2));
        assert_eq!(tokenizer.unk_token_id(), Some(0));
        assert_eq!(tokenizer.pad_token_id(), None);
        let once = EncodeOptions { specials: Specials::AddUnlessPresent, ..Default::default() };
        assert_eq!(tokenizer.encode("<s>Hello", once).unwrap()[..2], [1, 15043]);
        assert_eq!(tokenizer.encode("Hello", once).unwrap(), [1, 15043]);
        assert_eq!(tokenizer.encode("<s>Hello", EncodeOptions::default()).unwrap()[..2], [1, 1]);
    }
}
