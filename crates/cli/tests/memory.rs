//! How much memory an answer takes: the default model enters, the program's high-water mark leaves.
//! `peak <= bytes of the file + bytes of the KV cache + 100 MB`: the weights are held once, and no
//! loader's copy beside them.
#![cfg(target_os = "linux")]

mod program;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

const CONTEXT: u64 = 64;
/// The program itself, the tokenizer, the workspace, the threads' stacks.
const REST: u64 = 100_000_000;

/// What `puna inspect` says of `$PUNA_TEST_MODEL`, or of the default model where it is in the cache.
fn inspected() -> Option<Value> {
    let variable = std::env::var_os("PUNA_TEST_MODEL").filter(|value| !value.is_empty());
    let model = variable.unwrap_or_else(|| "smollm2".into());
    let mut command = Command::new(env!("CARGO_BIN_EXE_puna"));
    command.args(["inspect", "--offline", "--json"]).arg(model);
    let output = command.output().expect("the program starts");
    if !output.status.success() {
        println!("skipped: no SmolLM2 here; run `puna pull smollm2` or set PUNA_TEST_MODEL");
        return None;
    }
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Keys and values of all layers in f32.
fn kv_bytes(config: &Value) -> u64 {
    let size = |key: &str| config[key].as_u64().unwrap_or_else(|| panic!("{key}: {config}"));
    2 * 4 * size("num_hidden_layers") * size("num_key_value_heads") * size("head_dim") * CONTEXT
}

/// The high-water mark of resident memory so far; `None` once the process has ended.
fn high_water(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[test]
fn an_answer_takes_the_file_the_cache_and_little_more() {
    let Some(report) = inspected() else { return };
    let path = report["path"].as_str().expect("a path");
    let context = CONTEXT.to_string();
    let home = tempfile::tempdir().expect("a folder");
    let mut child = program::puna(home.path())
        .args(["run", "-m", path, "--context", &context, "-n", "12", "Why is the sky blue?"])
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut peak = 0;
    while child.try_wait().expect("a status").is_none() {
        peak = high_water(child.id()).unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().expect("a status").success());
    let file = fs::metadata(Path::new(path)).expect("the model's file").len();
    let most = file + kv_bytes(&report["config"]) + REST;
    assert!(peak > REST / 10, "nothing was seen: {peak}");
    assert!(peak <= most, "{peak} bytes at the peak; at most {most} were expected");
}
