//! Hostile model files by name: each gives a typed error that names the file and the field, and
//! memory stays bounded whatever the file claims.

mod build;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;

use build::{
    ARRAY, F32, Gguf, TENSORS, TEXT, U32, View, Zip, changed_safetensors, config, gguf_info,
    gguf_key, gguf_text, good_torch, pickle_dict, pickle_tensor, pickle_text, safetensors,
    safetensors_header, torch,
};
use puna::checkpoint::{Checkpoint, Fault};
use puna::config::ConfigError;
use serde_json::{Value, json};

/// Counts what a thread holds at once, so that a length that is believed before it is checked shows
/// even where the operating system hands out no pages for it.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let now = NOW.get() + bytes;
    NOW.set(now);
    PEAK.set(PEAK.get().max(now));
}

// SAFETY: every call goes to the system's allocator with its arguments unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from `System.alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MAX_PEAK: isize = 64 << 20;

/// Files of a folder, and what opening it must say.
struct Case {
    name: &'static str,
    files: Vec<(&'static str, Vec<u8>)>,
    /// The file that the error names.
    file: &'static str,
    /// Part of the field that it names.
    field: &'static str,
    is_expected: fn(&Fault) -> bool,
}

/// Opens the folder, which must fail as the case says, in bounded memory.
fn fault_of(case: &Case) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in &case.files {
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    let before = NOW.get();
    PEAK.set(before);
    let result = Checkpoint::open(folder.path());
    let peak = PEAK.get() - before;
    let name = case.name;
    let Err(error) = result else { panic!("{name}: opened") };
    let text = error.to_string();
    assert!((case.is_expected)(error.fault()), "{name}: {error:?}");
    assert!(text.contains(case.file), "{name} does not name {}: {text}", case.file);
    assert!(error.file().ends_with(case.file), "{name}: {text}");
    assert!(error.field().contains(case.field), "{name} does not name {}: {text}", case.field);
    assert!(text.contains(error.field()) || error.field().len() > 100, "{name}: {text}");
    assert!(text.len() < 4096, "{name}: a message of {} bytes", text.len());
    assert!(peak < MAX_PEAK, "{name}: {peak} bytes at once");
}

/// A case beside the good config.
fn with_config(
    name: &'static str,
    file: &'static str,
    bytes: Vec<u8>,
    field: &'static str,
    is_expected: fn(&Fault) -> bool,
) -> Case {
    let config = config().to_string().into_bytes();
    Case { name, files: vec![("config.json", config), (file, bytes)], file, field, is_expected }
}

fn run(cases: &[Case]) {
    let mut names: Vec<&str> = cases.iter().map(|case| case.name).collect();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "two cases of one name");
    cases.iter().for_each(fault_of);
}

const ST: &str = "model.safetensors";
const BIN: &str = "pytorch_model.bin";
const GGUF: &str = "model.gguf";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";

fn safetensors_cases() -> Vec<Case> {
    let case = |name, bytes, field, fault| with_config(name, ST, bytes, field, fault);
    let entry = |key: &'static str, value: Value| {
        changed_safetensors(move |header| header[Q][key] = value.clone())
    };
    let (header, data) = safetensors_header();
    let good = Value::Object(header).to_string();
    let twice = good.replacen("model.norm.weight", Q, 1);
    let lying_length = [&[0xff; 8][..], good.as_bytes()].concat();
    let nested = format!("{{\"{Q}\": {}", "[".repeat(1_000_000));
    let many_dims = json!(vec![1; 100_000]);
    vec![
        case("safetensors: empty", Vec::new(), "header length", |f| {
            matches!(f, Fault::Truncated { needed: 8, left: 0 })
        }),
        case(
            "safetensors: cut in the header",
            safetensors(&good, data)[..200].to_vec(),
            "header",
            |f| matches!(f, Fault::Truncated { left: 192, .. }),
        ),
        case(
            "safetensors: cut in the data",
            safetensors(&good, data - 1),
            "model.norm.weight",
            |f| matches!(f, Fault::Truncated { needed: 16, left: 15 }),
        ),
        case("safetensors: header of 2^64 bytes", lying_length, "header length", |f| {
            matches!(f, Fault::TooLarge { limit: 100_000_000, .. })
        }),
        case("safetensors: header is no JSON", safetensors("{\"zebra\"", 0), "zebra", |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("safetensors: header is a list", safetensors("[]", 0), "header", |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("safetensors: header nested a million deep", safetensors(&nested, 0), Q, |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case(
            "safetensors: shape that overflows",
            entry("shape", json!([1_u64 << 33, 1_u64 << 33])),
            Q,
            |f| matches!(f, Fault::ShapeOverflow { .. }),
        ),
        case(
            "safetensors: shape of 2^40 values",
            entry("shape", json!([1_u64 << 20, 1_u64 << 20])),
            Q,
            |f| matches!(f, Fault::WrongLength { got: 64, .. }),
        ),
        case("safetensors: negative size", entry("shape", json!([-4, -4])), Q, |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("safetensors: 100,000 dimensions", entry("shape", many_dims), Q, |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("safetensors: unknown dtype", entry("dtype", json!("Q4_0")), Q, |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("safetensors: overlap", entry("data_offsets", json!([64, 128])), Q, |f| {
            matches!(f, Fault::Overlap { .. })
        }),
        case("safetensors: hole", entry("data_offsets", json!([81, 145])), Q, |f| {
            matches!(f, Fault::Hole { bytes: 1 })
        }),
        case("safetensors: range backwards", entry("data_offsets", json!([144, 80])), Q, |f| {
            matches!(f, Fault::WrongLength { .. })
        }),
        case(
            "safetensors: range of 2^64 bytes",
            entry("data_offsets", json!([0, u64::MAX])),
            Q,
            |f| matches!(f, Fault::Truncated { needed: u64::MAX, .. }),
        ),
        case(
            "safetensors: bytes behind the last tensor",
            safetensors(&good, data + 3),
            "end of file",
            |f| matches!(f, Fault::Hole { bytes: 3 }),
        ),
        case("safetensors: a name twice", safetensors(&twice, data), Q, |f| {
            matches!(f, Fault::Duplicate)
        }),
        case("safetensors: integers for weights", entry("dtype", json!("I32")), "", |_| false),
    ]
}

#[test]
fn safetensors_files() {
    let mut cases = safetensors_cases();
    // Opens, because nothing asked for the tensor's values; asking is the error.
    let integers = cases.pop().expect("the last case");
    run(&cases);
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in &integers.files {
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    let checkpoint = Checkpoint::open(folder.path()).expect("opens");
    let error = checkpoint.tensor(Q).expect_err("integers");
    assert!(matches!(error.fault(), Fault::NotAWeight("int32")), "{error}");
    assert!(error.to_string().contains(Q) && error.to_string().contains(ST));
}

#[test]
fn sets_of_tensors() {
    let missing = changed_safetensors(|header| {
        let entry = header.shift_remove(Q).expect("is there");
        header.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), entry);
    });
    let unexpected = changed_safetensors(|header| {
        let entry = header.shift_remove(Q).expect("is there");
        header.insert("model.layers.1.self_attn.q_proj.weight".to_owned(), entry);
    });
    let bias = changed_safetensors(|header| {
        let entry = header.shift_remove(Q).expect("is there");
        header.insert("model.layers.0.self_attn.q_proj.bias".to_owned(), entry);
    });
    let shape = changed_safetensors(|header| header[Q]["shape"] = json!([2, 8]));
    let both = changed_safetensors(|header| {
        let entry = header.shift_remove(Q).expect("is there");
        header.insert("layers.0.self_attn.k_proj.weight".to_owned(), entry);
    });
    let named = |f: &Fault| matches!(f, Fault::MissingTensors(names) if names == &[Q]);
    run(&[
        with_config("tensors: one is missing", ST, missing, "tensors", named),
        with_config(
            "tensors: one block too many",
            ST,
            unexpected,
            "tensors",
            |f| matches!(f, Fault::UnexpectedTensors(names) if names[0].contains("layers.1.")),
        ),
        with_config(
            "tensors: a bias without attention_bias",
            ST,
            bias,
            "tensors",
            |f| matches!(f, Fault::UnexpectedTensors(names) if names[0].ends_with(".bias")),
        ),
        with_config("tensors: shape of another model", ST, shape, Q, |f| {
            matches!(f, Fault::WrongShape { .. })
        }),
        with_config("tensors: one under two names", ST, both, "k_proj", |f| {
            matches!(f, Fault::Duplicate)
        }),
    ]);
}

#[test]
fn indexes() {
    let index = |map: Value| json!({"weight_map": map}).to_string().into_bytes();
    let case = |name, bytes, fault| {
        with_config(name, "model.safetensors.index.json", bytes, "weight_map", fault)
    };
    let malformed = |f: &Fault| matches!(f, Fault::Malformed(_));
    let mut absent = case(
        "index: a name that no shard has",
        index(json!({"zebra": "part.safetensors"})),
        |f| matches!(f, Fault::MissingTensors(names) if names == &["zebra"]),
    );
    let (header, data) = safetensors_header();
    let good = safetensors(&Value::Object(header).to_string(), data);
    absent.files.push(("part.safetensors", good));
    run(&[
        case("index: no JSON", b"{".to_vec(), malformed),
        case("index: no map", index(json!([1, 2])), malformed),
        case("index: path upwards", index(json!({Q: "../secret.safetensors"})), malformed),
        case("index: absolute path", index(json!({Q: "/etc/passwd"})), malformed),
        case(
            "index: a shard is missing",
            index(json!({Q: "part-2.safetensors"})),
            |f| matches!(f, Fault::MissingShard(name) if name == "part-2.safetensors"),
        ),
        absent,
    ]);
}

#[test]
fn configs() {
    let (header, data) = safetensors_header();
    let weights = safetensors(&Value::Object(header).to_string(), data);
    let case = |name, config: Vec<u8>, field, is_expected| {
        let files = vec![("config.json", config), (ST, weights.clone())];
        Case { name, files, file: "config.json", field, is_expected }
    };
    let changed = |key: &str, value: Value| {
        let mut config = config();
        config[key] = value;
        config.to_string().into_bytes()
    };
    let config_fault = |f: &Fault| matches!(f, Fault::Config(_));
    let mut generation =
        case("generation_config: not JSON", config().to_string().into_bytes(), "", config_fault);
    generation.files.push(("generation_config.json", b"{\"top_k\": ".to_vec()));
    generation.file = "generation_config.json";
    run(&[
        case("config: no JSON", b"{\"vocab_size\": ".to_vec(), "", |f| {
            matches!(f, Fault::Config(ConfigError::Json { .. }))
        }),
        case("config: not UTF-8", vec![b'{', 0xff, b'}'], "text", |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("config: nested 500,000 deep", "[".repeat(500_000).into_bytes(), "", config_fault),
        case("config: two megabytes", vec![b' '; 2 << 20], "size", |f| {
            matches!(f, Fault::TooLarge { .. })
        }),
        case(
            "config: another model_type",
            changed("model_type", json!("gpt2")),
            "model_type",
            |f| matches!(f, Fault::Config(ConfigError::NotALlama { model_type }) if model_type == "gpt2"),
        ),
        case(
            "config: another class",
            changed("architectures", json!(["MixtralForCausalLM"])),
            "architectures",
            |f| matches!(f, Fault::NotALlama(name) if name == "MixtralForCausalLM"),
        ),
        case(
            "config: 2^62 layers",
            changed("num_hidden_layers", json!(1_u64 << 62)),
            "num_hidden_layers",
            config_fault,
        ),
        case(
            "config: no heads",
            changed("num_attention_heads", json!(0)),
            "num_attention_heads",
            config_fault,
        ),
        case(
            "config: 2^60 labels",
            changed("num_labels", json!(1_u64 << 60)),
            "num_labels",
            config_fault,
        ),
        case(
            "config: quantised weights",
            changed("quantization_config", json!({"quant_method": "hqq"})),
            "quantization_config",
            |f| matches!(f, Fault::Unsupported(_)),
        ),
        generation,
    ]);
}

fn gguf_cases() -> Vec<Case> {
    let case = |name, file: Gguf, field, is_expected| Case {
        name,
        files: vec![(GGUF, file.bytes())],
        file: GGUF,
        field,
        is_expected,
    };
    let good = Gguf::good;
    let malformed = |f: &Fault| matches!(f, Fault::Malformed(_));
    let too_large = |f: &Fault| matches!(f, Fault::TooLarge { .. });
    let truncated = |f: &Fault| matches!(f, Fault::Truncated { .. });
    let unsupported = |f: &Fault| matches!(f, Fault::Unsupported(_));
    let array = |kind: u32, count: u64, rest: &[u8]| {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), rest].concat()
    };
    let deep: Vec<u8> = array(ARRAY, 1, &[]).repeat(100_000);
    let long_text = [&(1_u64 << 60).to_le_bytes()[..], b"abc"].concat();
    let mut cut = case("gguf: cut in the metadata", good(), "metadata key", truncated);
    cut.files[0].1.truncate(110);
    vec![
        cut,
        case("gguf: other magic", Gguf { magic: *b"GGML", ..good() }, "magic", malformed),
        case("gguf: version 1", Gguf { version: 1, ..good() }, "version", unsupported),
        case(
            "gguf: big-endian",
            Gguf { version: 3_u32.swap_bytes(), ..good() },
            "version",
            unsupported,
        ),
        case(
            "gguf: 2^60 keys",
            Gguf { key_count: Some(1 << 60), ..good() },
            "metadata count",
            too_large,
        ),
        case(
            "gguf: 2^60 tensors",
            Gguf { tensor_count: Some(1 << 60), ..good() },
            "tensor count",
            too_large,
        ),
        case(
            "gguf: key of 2^60 bytes",
            good().with_key((1_u64 << 60).to_le_bytes().to_vec()),
            "metadata key",
            too_large,
        ),
        case(
            "gguf: string of 2^60 bytes",
            good().with_key(gguf_key("zebra", TEXT, &long_text)),
            "zebra",
            truncated,
        ),
        case(
            "gguf: array of 2^60 values",
            good().with_key(gguf_key("zebra", ARRAY, &array(U32, 1 << 60, &[]))),
            "zebra",
            truncated,
        ),
        case(
            "gguf: array of 2^61 strings",
            good().with_key(gguf_key("zebra", ARRAY, &array(TEXT, 1 << 61, &[]))),
            "zebra",
            truncated,
        ),
        case(
            "gguf: arrays in arrays without end",
            good().with_key(gguf_key("zebra", ARRAY, &deep)),
            "zebra",
            too_large,
        ),
        case(
            "gguf: value of unknown type",
            good().with_key(gguf_key("zebra", 77, &[])),
            "zebra",
            malformed,
        ),
        case(
            "gguf: bool that is 7",
            good().with_key(gguf_key("zebra", 7, &[7])),
            "zebra",
            malformed,
        ),
        case(
            "gguf: string that is no UTF-8",
            good().with_key(gguf_key("zebra", TEXT, &gguf_text(&[0xff]))),
            "zebra",
            malformed,
        ),
        case(
            "gguf: a key twice",
            good().with_key(gguf_key("llama.vocab_size", U32, &[4, 0, 0, 0])),
            "llama.vocab_size",
            |f| matches!(f, Fault::Duplicate),
        ),
        case(
            "gguf: alignment of 3",
            good().with_key(gguf_key("general.alignment", U32, &[3, 0, 0, 0])),
            "general.alignment",
            malformed,
        ),
        case(
            "gguf: alignment of 0",
            good().with_key(gguf_key("general.alignment", U32, &[0; 4])),
            "general.alignment",
            malformed,
        ),
        case(
            "gguf: 99 dimensions",
            good().with_info(gguf_info("zebra", &[1; 99], 0, 0)),
            "zebra",
            too_large,
        ),
        case(
            "gguf: shape that overflows",
            good().with_info(gguf_info("zebra", &[1 << 40, 1 << 40], 0, 0)),
            "zebra",
            |f| matches!(f, Fault::ShapeOverflow { .. }),
        ),
        case(
            "gguf: product that wraps to 0",
            good().with_info(gguf_info("zebra", &[1 << 32, 1 << 32], 0, 0)),
            "zebra",
            |f| matches!(f, Fault::ShapeOverflow { .. }),
        ),
        case(
            "gguf: half a block",
            good().with_info(gguf_info("zebra", &[48], 2, 0)),
            "zebra",
            malformed,
        ),
        case("gguf: overlap", good().with_info(gguf_info("zebra", &[4], 0, 32)), "", |f| {
            matches!(f, Fault::Overlap { .. })
        }),
        case("gguf: misaligned", good().with_info(gguf_info("zebra", &[4], 0, 33)), "zebra", |f| {
            matches!(f, Fault::Misaligned { alignment: 32 })
        }),
        case(
            "gguf: tensor behind the end",
            good().with_info(gguf_info("zebra", &[4], 0, 1 << 50)),
            "zebra",
            truncated,
        ),
        case(
            "gguf: tensor at 2^64",
            good().with_info(gguf_info("zebra", &[4], 0, u64::MAX - 31)),
            "zebra",
            truncated,
        ),
        case(
            "gguf: tensor of unknown type",
            good().with_info(gguf_info("zebra", &[4], 9999, 0)),
            "zebra",
            unsupported,
        ),
        case(
            "gguf: tensor name of 1,000 bytes",
            good().with_info(gguf_info(&"z".repeat(1000), &[4], 0, 0)),
            "tensor name",
            too_large,
        ),
        case(
            "gguf: unexpected tensor",
            Gguf { data: 1024, ..good() }.with_info(gguf_info("zebra", &[4], 0, 768)),
            "tensors",
            |f| matches!(f, Fault::UnexpectedTensors(names) if names == &["zebra"]),
        ),
    ]
}

fn gguf_model_cases() -> Vec<Case> {
    let case = |name, file: Gguf, field, is_expected| Case {
        name,
        files: vec![(GGUF, file.bytes())],
        file: GGUF,
        field,
        is_expected,
    };
    let malformed = |f: &Fault| matches!(f, Fault::Malformed(_));
    let replaced = |index: usize, key: Vec<u8>| {
        let mut file = Gguf::good();
        file.keys[index] = key;
        file
    };
    let size = |name: &str, n: u32| gguf_key(&format!("llama.{name}"), U32, &n.to_le_bytes());
    let tokens = |count: u64| {
        let token: Vec<u8> = (0..count).flat_map(|_| gguf_text(b"a")).collect();
        let list = [&TEXT.to_le_bytes()[..], &count.to_le_bytes(), &token].concat();
        Gguf::good()
            .with_key(gguf_key("tokenizer.ggml.model", TEXT, &gguf_text(b"llama")))
            .with_key(gguf_key("tokenizer.ggml.tokens", ARRAY, &list))
    };
    let two_scores = [&F32.to_le_bytes()[..], &2_u64.to_le_bytes(), &[0; 8]].concat();
    let wrong_list = [&U32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 4]].concat();
    let one_split = gguf_key("split.count", U32, &5_u32.to_le_bytes());
    vec![
        case(
            "gguf: another architecture",
            replaced(0, gguf_key("general.architecture", TEXT, &gguf_text(b"qwen2"))),
            "general.architecture",
            |f| matches!(f, Fault::NotALlama(name) if name == "qwen2"),
        ),
        case(
            "gguf: experts",
            Gguf::good().with_key(size("expert_count", 8)),
            "llama.expert_count",
            |f| matches!(f, Fault::NotALlama(_)),
        ),
        case(
            "gguf: no architecture",
            replaced(0, gguf_key("zebra", U32, &[0; 4])),
            "general.architecture",
            malformed,
        ),
        case(
            "gguf: a size that is a string",
            replaced(2, gguf_key("llama.embedding_length", TEXT, &gguf_text(b"4"))),
            "llama.embedding_length",
            malformed,
        ),
        case(
            "gguf: no blocks",
            replaced(3, size("block_count", 0)),
            "llama.block_count",
            malformed,
        ),
        case(
            "gguf: 2^32 blocks",
            replaced(3, size("block_count", u32::MAX)),
            "llama.block_count",
            |f| matches!(f, Fault::Config(_)),
        ),
        case(
            "gguf: heads that do not divide",
            replaced(5, size("attention.head_count", 3)),
            "llama.embedding_length",
            |f| matches!(f, Fault::Config(_)),
        ),
        case(
            "gguf: a block too few",
            replaced(3, size("block_count", 2)),
            "tensors",
            |f| matches!(f, Fault::MissingTensors(names) if names.len() == 9),
        ),
        case(
            "gguf: scores for other tokens",
            tokens(4).with_key(gguf_key("tokenizer.ggml.scores", ARRAY, &two_scores)),
            "tokenizer.ggml.scores",
            malformed,
        ),
        case(
            "gguf: tokenizer without tokens",
            Gguf::good().with_key(gguf_key("tokenizer.ggml.model", TEXT, &gguf_text(b"gpt2"))),
            "tokenizer.ggml.tokens",
            malformed,
        ),
        case(
            "gguf: merges that are numbers",
            tokens(4).with_key(gguf_key("tokenizer.ggml.merges", ARRAY, &wrong_list)),
            "tokenizer.ggml.merges",
            malformed,
        ),
        case("gguf: part of a split model", Gguf::good().with_key(one_split), "split.count", |f| {
            matches!(f, Fault::Unsupported(_))
        }),
    ]
}

#[test]
fn gguf_files() {
    run(&gguf_cases());
    run(&gguf_model_cases());
}

fn pickle_cases() -> Vec<Case> {
    let case = |name, pickle: Vec<u8>, field, fault| {
        with_config(name, BIN, torch(pickle, 64), field, fault)
    };
    let view = |count, offset, shape, strides| {
        pickle_dict(Q, &pickle_tensor(&View { key: "0", count, offset, shape, strides }))
    };
    let malformed = |f: &Fault| matches!(f, Fault::Malformed(_));
    let too_large = |f: &Fault| matches!(f, Fault::TooLarge { .. });
    let system = [b"\x80\x02cposix\nsystem\n(", &pickle_text("true")[..], b"tR."].concat();
    let eval = [b"\x80\x04", &pickle_text("builtins")[..], &pickle_text("eval"), b"\x93."].concat();
    let unpickler = b"\x80\x02ctorch.storage\n_load_from_bytes\n.".to_vec();
    let long_text = [b"\x80\x02X", &u32::MAX.to_le_bytes()[..], b"abc"].concat();
    let list_of_pairs = {
        // A list of 50,000 pairs, copied into a dict again and again.
        let mut out = b"\x80\x02](".to_vec();
        (0..50_000).for_each(|_| out.extend(b"NN\x86"));
        out.extend(b"eq\x01");
        (0..50_000).for_each(|_| out.extend(b"ccollections\nOrderedDict\nh\x01\x85R"));
        out
    };
    vec![
        case(
            "pickle: runs os.system",
            system,
            "pickle",
            |f| matches!(f, Fault::ForbiddenGlobal(name) if name == "posix.system"),
        ),
        case(
            "pickle: runs eval",
            eval,
            "pickle",
            |f| matches!(f, Fault::ForbiddenGlobal(name) if name == "builtins.eval"),
        ),
        case(
            "pickle: runs a second unpickler",
            unpickler,
            "pickle",
            |f| matches!(f, Fault::ForbiddenGlobal(name) if name == "torch.storage._load_from_bytes"),
        ),
        case("pickle: INST opcode", b"\x80\x02(iposix\nsystem\n.".to_vec(), "pickle", |f| {
            matches!(f, Fault::Unsupported(_))
        }),
        case("pickle: empty", Vec::new(), "pickle", |f| matches!(f, Fault::Truncated { .. })),
        case("pickle: string of 4 GB", long_text, "pickle", |f| {
            matches!(f, Fault::Truncated { .. })
        }),
        case("pickle: empty stack", b"\x80\x020.".to_vec(), "pickle", malformed),
        case("pickle: takes from below a mark", b"\x80\x02N(0.".to_vec(), "pickle", malformed),
        case("pickle: mark that is not open", b"\x80\x02t.".to_vec(), "pickle", malformed),
        case(
            "pickle: value that was never stored",
            b"\x80\x02h\x07.".to_vec(),
            "pickle",
            malformed,
        ),
        case(
            "pickle: dict in itself",
            [b"\x80\x02}q\x01(", &pickle_text(Q)[..], b"h\x01u."].concat(),
            Q,
            |f| matches!(f, Fault::Unsupported(_)),
        ),
        case("pickle: five million values", vec![b'N'; 5_000_000], "pickle", too_large),
        case(
            "pickle: two million copies",
            [&b"\x80\x02N"[..], &vec![b'2'; 2_000_000]].concat(),
            "pickle",
            too_large,
        ),
        case("pickle: two million marks", vec![b'('; 2_000_000], "pickle", too_large),
        case("pickle: dict copied 50,000 times", list_of_pairs, "pickle", too_large),
        case("pickle: nine megabytes", vec![b'N'; 9 << 20], "data.pkl", too_large),
        case(
            "pickle: view of 2^40 values by stride 0",
            view(16, 0, &[1 << 20, 1 << 20], &[0, 0]),
            Q,
            |f| matches!(f, Fault::WrongLength { got: 64, .. }),
        ),
        case("pickle: view that overflows", view(16, 0, &[1 << 40, 1 << 40], &[0, 0]), Q, |f| {
            matches!(f, Fault::ShapeOverflow { .. })
        }),
        case("pickle: view behind its storage", view(16, 1, &[4, 4], &[4, 1]), Q, |f| {
            matches!(f, Fault::Truncated { needed: 68, left: 64 })
        }),
        case("pickle: stride of 2^62", view(16, 0, &[4, 4], &[1 << 62, 1]), Q, |f| {
            matches!(f, Fault::ShapeOverflow { .. })
        }),
        case(
            "pickle: storage of another length",
            view(17, 0, &[4, 4], &[4, 1]),
            "archive/data/0",
            |f| matches!(f, Fault::WrongLength { expected: 68, got: 64 }),
        ),
        case(
            "pickle: strides for other dimensions",
            view(16, 0, &[4, 4], &[1]),
            "pickle",
            malformed,
        ),
        case("pickle: no dict", b"\x80\x02N.".to_vec(), "pickle", |f| {
            matches!(f, Fault::Unsupported(_))
        }),
    ]
}

#[test]
fn pickles() {
    run(&pickle_cases());
}

#[test]
fn containers_of_pickles() {
    let case = |name, bytes, field, fault| with_config(name, BIN, bytes, field, fault);
    let two = || Zip::new(vec![("a/data.pkl", b"\x80\x02}.".to_vec()), ("a/data/0", vec![0; 64])]);
    let view = View { key: "zebra", count: 16, offset: 0, shape: &[4, 4], strides: &[4, 1] };
    let other_storage = torch(pickle_dict(Q, &pickle_tensor(&view)), 64);
    let mut cut = two().bytes();
    cut.truncate(cut.len() - 30);
    let lying_name = {
        let mut bytes = two().bytes();
        // The first letter of the entry's own name, behind the 30 bytes of its header.
        bytes[30] = b'z';
        bytes
    };
    run(&[
        case("torch: empty", Vec::new(), "first bytes", |f| matches!(f, Fault::Unsupported(_))),
        case("torch: text", b"hello".to_vec(), "first bytes", |f| {
            matches!(f, Fault::Unsupported(_))
        }),
        case("zip: cut short", cut, "zip directory", |f| matches!(f, Fault::Malformed(_))),
        case(
            "zip: 65,534 entries",
            Zip { count: Some(65_534), ..two() }.bytes(),
            "zip directory",
            |f| matches!(f, Fault::TooLarge { value: 65_534, .. }),
        ),
        case("zip: compressed", Zip { method: 8, ..two() }.bytes(), "a/data.pkl", |f| {
            matches!(f, Fault::Unsupported(_))
        }),
        case(
            "zip: two entries at one place",
            Zip { second_at: Some(0), ..two() }.bytes(),
            "a/data/0",
            |f| matches!(f, Fault::Malformed(_)),
        ),
        case(
            "zip: entry behind the end",
            Zip { second_at: Some(1 << 30), ..two() }.bytes(),
            "a/data/0",
            |f| matches!(f, Fault::Truncated { .. }),
        ),
        case("zip: entry of another name", lying_name, "a/data.pkl", |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("zip: no pickle", Zip::new(vec![("a/b", Vec::new())]).bytes(), "data.pkl", |f| {
            matches!(f, Fault::Unsupported(_))
        }),
        case("zip: storage that is not there", other_storage, "archive/data/zebra", |f| {
            matches!(f, Fault::Malformed(_))
        }),
        case("torch, old form: another pickle", b"\x80\x02}.".to_vec(), "magic number", |f| {
            matches!(f, Fault::Unsupported(_))
        }),
        case(
            "torch, old form: cut short",
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec(),
            "pickle",
            |f| matches!(f, Fault::Truncated { .. }),
        ),
    ]);
}

#[test]
fn folders() {
    let case = |name, files| Case {
        name,
        files,
        file: "",
        field: "",
        is_expected: |f| matches!(f, Fault::NotFound(_)),
    };
    let bytes = || Gguf::good().bytes();
    run(&[
        case("folder: empty", Vec::new()),
        case("folder: an adapter", vec![("adapter_config.json", b"{}".to_vec())]),
        case("folder: Meta's layout", vec![("params.json", b"{}".to_vec())]),
        case("folder: two GGUF files", vec![("a.gguf", bytes()), ("b.gguf", bytes())]),
        case("folder: no config", vec![(ST, changed_safetensors(|_| {}))]),
    ]);
}

/// The files that the cases spoil are good ones: without the fault they open.
#[test]
fn the_unspoilt_files_open() {
    let config = config().to_string().into_bytes();
    for (file, bytes) in
        [(ST, changed_safetensors(|_| {})), (BIN, good_torch()), (GGUF, Gguf::good().bytes())]
    {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("config.json"), &config).expect("written");
        fs::write(folder.path().join(file), bytes).expect("written");
        let checkpoint = Checkpoint::open(folder.path()).expect(file);
        assert_eq!(checkpoint.names().len(), TENSORS.len(), "{file}");
        for name in checkpoint.names() {
            let values = checkpoint.tensor(name).expect(name).to_f32();
            assert!(values.iter().all(|x| *x == 0.0), "{file}: {name}");
        }
    }
}
