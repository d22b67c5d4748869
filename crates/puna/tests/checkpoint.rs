//! Opening real files: what Transformers, PyTorch and llama.cpp write, value for value. Golden sets
//! that are absent are said to be skipped; the fixtures of the repository are always there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use puna::checkpoint::{Checkpoint, Fault, SourceKind, TokenizerSource};
use puna_kernels::{Format, RopeLayout};
use serde_json::{Value, json};

fn test_data(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
    let root =
        std::env::var_os("PUNA_TEST_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = root.join(name);
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json_file(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

/// Every tensor of `expected.json` and no other, equal to the last bit.
fn assert_values(checkpoint: &Checkpoint, expected: &Value) {
    let expected = expected.as_object().expect("an object");
    let ignored = |name: &&String| !name.contains("inv_freq");
    let names: Vec<&str> = expected.keys().filter(ignored).map(String::as_str).collect();
    let mut found: Vec<&str> = checkpoint.names().collect();
    found.sort_unstable();
    assert_eq!(found, names);
    for name in names {
        let tensor = checkpoint.tensor(name).expect(name);
        assert_eq!(json!(tensor.shape), expected[name][0], "{name}");
        let values: Vec<f32> = expected[name][1]
            .as_array()
            .expect("a list")
            .iter()
            .map(|x| x.as_f64().expect("a number") as f32)
            .collect();
        assert_eq!(tensor.to_f32(), values, "{name}");
        assert_eq!(tensor.len(), values.len());
    }
}

/// A folder with the fixture's config and one of its weight files.
fn torch_folder(file: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = |from: &str, to: &str| {
        fs::copy(fixture("torch").join(from), folder.path().join(to)).expect("copied");
    };
    copy("config.json", "config.json");
    copy(file, "pytorch_model.bin");
    folder
}

/// Shared storages, offsets, transposed and stepped views, three types, a parameter, a tied head.
#[test]
fn both_forms_of_torch_save_give_the_values_of_pytorch() {
    let expected = json_file(fixture("torch/expected.json"));
    for file in ["zip.bin", "legacy.bin"] {
        let folder = torch_folder(file);
        let checkpoint = Checkpoint::open(folder.path()).expect(file);
        assert_eq!(checkpoint.kind(), SourceKind::Torch);
        assert_eq!(checkpoint.rope_layout(), RopeLayout::HalfSplit);
        assert_values(&checkpoint, &expected);
        let format = |name: &str| checkpoint.tensor(name).expect(name).format;
        assert_eq!(format("model.layers.0.self_attn.o_proj.weight"), Format::F16);
        assert_eq!(format("model.layers.0.mlp.down_proj.weight"), Format::Bf16);
        // The file itself may be named, too.
        let file = folder.path().join("pytorch_model.bin");
        assert_values(&Checkpoint::open(file).expect("opens"), &expected);
    }
}

#[test]
fn torch_shards_are_joined() {
    let folder = torch_folder("zip.bin");
    let path = |name: &str| folder.path().join(name);
    fs::rename(path("pytorch_model.bin"), path("part-1.bin")).expect("renamed");
    let expected = json_file(fixture("torch/expected.json"));
    let names = expected.as_object().expect("an object").keys();
    let map: BTreeMap<&String, &str> = names.map(|name| (name, "part-1.bin")).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(path("pytorch_model.bin.index.json"), index).expect("written");
    assert_values(&Checkpoint::open(folder.path()).expect("opens"), &expected);
}

#[test]
fn models_of_transformers_open() {
    for (name, tensors) in [("mha", 21), ("gqa", 21), ("gqa_llama3rope", 21), ("head_seqcls_3", 21)]
    {
        let Some(path) = test_data(&format!("models/{name}")) else { return };
        let checkpoint = Checkpoint::open(&path).expect(name);
        assert_eq!(checkpoint.kind(), SourceKind::Safetensors);
        assert_eq!(checkpoint.names().len(), tensors, "{name}");
        assert!(checkpoint.config().warnings().is_empty());
        assert_eq!(checkpoint.generation_config().is_some(), name != "head_seqcls_3");
        assert!(
            matches!(checkpoint.tokenizer(), TokenizerSource::Folder(folder) if *folder == path)
        );
        let norm = checkpoint.tensor("model.norm.weight").expect("is there");
        assert_eq!((norm.format, norm.shape.as_slice()), (Format::F32, &[32][..]));
        assert!(norm.to_f32().iter().all(|x| x.is_finite()));
    }
}

/// Made by `fixtures/make_fixtures.py --folders`: whole, in shards, without a head, in bfloat16.
#[test]
fn every_layout_of_transformers_opens() {
    let Some(folder) = test_data("folders") else { return };
    let open = |name: &str| Checkpoint::open(folder.join(name)).expect(name);
    let whole = open("whole");
    let shards = open("shards");
    assert!(whole.names().eq(shards.names()));
    for name in whole.names() {
        let (a, b) = (whole.tensor(name).expect(name), shards.tensor(name).expect(name));
        assert_eq!((a.shape, a.bytes), (b.shape, b.bytes), "{name}");
    }
    let bare = open("bare");
    assert!(bare.contains("model.embed_tokens.weight") && !bare.contains("lm_head.weight"));
    let bf16 = open("bf16");
    let torch = Checkpoint::open(folder.join("bf16/pytorch_model.bin")).expect("opens");
    for name in bf16.names() {
        let (a, b) = (bf16.tensor(name).expect(name), torch.tensor(name).expect(name));
        assert_eq!(a.format, Format::Bf16);
        assert_eq!(a.bytes, b.bytes, "{name}");
    }
}

/// SmolLM2 against what the `gguf` package reads (`fixtures/make_fixtures.py FILE.gguf`).
#[test]
fn a_gguf_file_reads_as_in_the_reference() {
    let name = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let Some(path) = test_data(name) else { return };
    let Some(dump) = test_data(&format!("{name}.json")) else { return };
    let dump = json_file(dump);
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let config = checkpoint.config();
    assert_eq!(checkpoint.rope_layout(), RopeLayout::Interleaved);
    assert_eq!(
        (config.hidden_size, config.intermediate_size, config.num_hidden_layers),
        (576, 1536, 30)
    );
    assert_eq!(
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim),
        (9, 3, 64)
    );
    assert_eq!((config.vocab_size, config.max_position_embeddings), (49152, 8192));
    assert_eq!((config.rms_norm_eps, config.rope_parameters.theta()), (1e-5, 100_000.0));
    assert!(config.tie_word_embeddings && !config.attention_bias);
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), Some(2)));
    let TokenizerSource::Gguf(tokenizer) = checkpoint.tokenizer() else { panic!("no tokenizer") };
    let metadata = &dump["metadata"];
    assert_eq!(json!(tokenizer.tokens), metadata["tokenizer.ggml.tokens"]);
    assert_eq!(json!(tokenizer.merges), metadata["tokenizer.ggml.merges"]);
    assert_eq!(json!(tokenizer.token_types), metadata["tokenizer.ggml.token_type"]);
    assert_eq!(json!(tokenizer.chat_template), metadata["tokenizer.chat_template"]);
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((tokenizer.add_bos_token, tokenizer.add_space_prefix), (Some(false), Some(false)));
    let keys: Vec<&str> = checkpoint.metadata().expect("GGUF").iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), metadata.as_object().expect("an object").len());
    assert_gguf_tensors(&checkpoint, &path, dump["tensors"].as_object().expect("an object"));
}

fn assert_gguf_tensors(
    checkpoint: &Checkpoint,
    path: &Path,
    tensors: &serde_json::Map<String, Value>,
) {
    use puna::checkpoint::names::{Naming, TensorName};
    let file = fs::read(path).expect("readable");
    assert_eq!(checkpoint.names().len(), tensors.len());
    for (name, expected) in tensors {
        let ours = TensorName::parse(Naming::Gguf, name).expect(name).hf();
        let tensor = checkpoint.tensor(&ours).expect(name);
        assert_eq!(json!(tensor.shape), expected["shape"], "{name}");
        assert_eq!(expected["type"], tensor.format.name(), "{name}");
        let offset = expected["offset"].as_u64().expect("a number") as usize;
        let len = expected["len"].as_u64().expect("a number") as usize;
        assert_eq!(tensor.bytes, file[offset..offset + len], "{name}");
        assert_eq!(json!(tensor.bytes[..16]), expected["head"], "{name}");
        assert_eq!(json!(tensor.bytes[len - 16..]), expected["tail"], "{name}");
    }
}

#[test]
fn a_tensor_that_is_not_there_is_named() {
    let folder = torch_folder("zip.bin");
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let error = checkpoint.tensor("score.weight").expect_err("is absent");
    assert!(matches!(error.fault(), Fault::MissingTensors(names) if names == &["score.weight"]));
    assert!(!checkpoint.contains("score.weight"));
}
