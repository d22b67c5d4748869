//! Golden models: the recorded outputs of the reference library, found in the repository's own
//! `tests/data` and, where it is there, in the shared data folder.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use puna::checkpoint::Checkpoint;
use puna::model::{LlamaForCausalLM, LoadOptions};
use puna_kernels::{Cpu, CpuOptions};
use serde_json::Value;

/// One model and what the reference computed with it.
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) expected: Value,
    pub(crate) checkpoint: Checkpoint,
}

/// The folder of shared golden data, if there is one.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let folder = match std::env::var_os("PUNA_TEST_DATA") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
    };
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped the shared golden data: {} is not there", folder.display());
    None
}

/// Every causal language model recorded.
pub(crate) fn models() -> Vec<Golden> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let shared = shared_data().map(|data| data.join("models"));
    let mut found = Vec::new();
    for folder in [Some(own), shared].into_iter().flatten() {
        let mut entries: Vec<_> = folder.read_dir().unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        found.extend(entries.iter().filter_map(|path| open(path)));
    }
    assert!(!found.is_empty());
    found
}

fn open(folder: &Path) -> Option<Golden> {
    let text = std::fs::read_to_string(folder.join("expected.json")).ok()?;
    let checkpoint = Checkpoint::open(folder).unwrap();
    let name = folder.file_name()?.to_string_lossy().into_owned();
    let golden = Golden { name, expected: serde_json::from_str(&text).unwrap(), checkpoint };
    golden.expected["full"].get("loss").is_some().then_some(golden)
}

/// Calls `check` with each recorded model, loaded in `f32`.
pub(crate) fn each_model(check: impl Fn(&Golden, &LlamaForCausalLM<Cpu>)) {
    for golden in models() {
        println!("model {}", golden.name);
        check(&golden, &load(&golden.checkpoint, &LoadOptions::default()));
    }
}

/// Loads a model on two threads.
pub(crate) fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> LlamaForCausalLM<Cpu> {
    let cpu = Cpu::new(&CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap();
    LlamaForCausalLM::load(Arc::new(cpu), checkpoint, options).unwrap().model
}

/// Lengths of a nested list.
pub(crate) fn shape(value: &Value) -> Vec<usize> {
    let mut shape = Vec::new();
    let mut value = value;
    while let Some(list) = value.as_array() {
        shape.push(list.len());
        match list.first() {
            Some(first) => value = first,
            None => break,
        }
    }
    shape
}

/// A nested list of numbers, flat. A number alone is a list of one.
pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap() as f32],
    }
}

/// A nested list of whole numbers, flat.
pub(crate) fn integers(value: &Value) -> Vec<u32> {
    numbers(value).iter().map(|&x| x as u32).collect()
}

/// Asserts that all values agree within `tolerance`.
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &Value, tolerance: f32) {
    assert_close_slices(what, found, &numbers(expected), tolerance);
}

/// Asserts that all values agree within `tolerance`.
pub(crate) fn assert_close_slices(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: number of values");
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= tolerance, "{what}[{i}]: {x}, expected {y}");
    }
}
