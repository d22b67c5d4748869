//! What goes wrong around the program: keys pressed twice, bytes that are no text, broken or
//! hostile files, silent pipes, full disks. Commands enter; one clear line, the right exit status
//! and no wait without an end leave.

mod program;
mod tiny_model;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use program::{Ran, puna, run};
use serde_json::{Value, json};

/// Longer than any of these takes on a slow machine; a program that hangs is killed then.
const PATIENCE: Duration = Duration::from_secs(60);

fn home() -> &'static Path {
    static HOME: OnceLock<tempfile::TempDir> = OnceLock::new();
    HOME.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// A tiny model of its own for a test, with fields of `config.json` changed.
fn model(name: &str, fields: &Value) -> PathBuf {
    let dir = home().join(name);
    tiny_model::write(&dir, false);
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in fields.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn as_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Waits for the end, and kills what does not come to one.
fn ended(mut child: Child) -> Ran {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the program hangs: {:?}", Ran::from(child.wait_with_output().unwrap()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap().into()
}

fn spawn(args: &[&str], stdin: Stdio) -> Child {
    let mut command = puna(home());
    command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn interrupt(child: &Child) {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

/// A conversation on a terminal that `script` makes; `None` where there is no such program.
struct Chat {
    child: Child,
    stdin: ChildStdin,
    /// What the terminal shows, as it comes.
    shown: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Chat {
    fn start(args: &str) -> Option<Self> {
        // In place of the shell: some shells wait beside the command and die of its Ctrl-C.
        let command = format!("exec {} {args}", env!("CARGO_BIN_EXE_puna"));
        let spawned = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env("PUNA_HOME", home())
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = spawned else {
            println!("skipped: there is no program `script` to make a terminal");
            return None;
        };
        let stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (send, shown) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut bytes) {
                if send.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut chat = Self { child, stdin, shown, seen: String::new() };
        chat.wait_for("Ctrl-D leaves");
        Some(chat)
    }

    fn type_in(&mut self, bytes: &[u8]) {
        self.stdin.write_all(bytes).unwrap();
        self.stdin.flush().unwrap();
    }

    /// Reads until `text` was shown.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        while !self.seen.contains(text) {
            let left = PATIENCE.checked_sub(start.elapsed()).expect(&self.seen);
            let bytes = self.shown.recv_timeout(left);
            let bytes = bytes.unwrap_or_else(|_| panic!("no '{text}' in {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// The exit status and all that was shown.
    fn end(mut self) -> (Option<i32>, String) {
        while let Ok(bytes) = self.shown.recv_timeout(PATIENCE) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (self.child.wait().unwrap().code(), self.seen)
    }
}

#[test]
fn many_ctrl_c_stop_the_answer_and_not_the_chat() {
    let dir = model("long-chat", &json!({"max_position_embeddings": 100_000}));
    // A prompt that takes seconds before its first token.
    let system = "a llama ma la ".repeat(4000);
    let args = format!("run -m {} --context 100000 --system '{system}'", text(&dir));
    let Some(mut chat) = Chat::start(&args) else { return };
    chat.type_in(b"hello\n");
    thread::sleep(Duration::from_millis(1500));
    for _ in 0..3 {
        chat.type_in(b"\x03");
        thread::sleep(Duration::from_millis(50));
    }
    chat.wait_for("stopped before the answer began");
    chat.type_in(b"/nonsense\n");
    chat.wait_for("no command /nonsense");
    chat.type_in(b"/quit\n");
    let (code, seen) = chat.end();
    assert_eq!(code, Some(0), "{seen}");
    let history = fs::read_to_string(home().join("history")).unwrap();
    assert!(history.contains("hello"), "{history}");
}

#[test]
fn a_byte_that_is_no_text_does_not_end_the_chat() {
    let dir = model("bytes-chat", &json!({}));
    let Some(mut chat) = Chat::start(&format!("run -m {} -n 4 --verbose", text(&dir))) else {
        return;
    };
    chat.type_in(b"caf\xe9\n");
    chat.wait_for("not UTF-8");
    chat.type_in(b"hello\n");
    chat.wait_for("ended by");
    chat.type_in(b"/quit\n");
    let (code, seen) = chat.end();
    assert_eq!(code, Some(0), "{seen}");
}

/// The parts of an error line, as a reader hears them.
fn clauses(line: &str) -> Vec<&str> {
    let line = line.strip_prefix("error: ").unwrap_or(line);
    line.split(": ").flat_map(|part| part.split("; ")).map(str::trim).collect()
}

#[test]
fn no_error_says_a_thing_twice() {
    let mut broken: Vec<(PathBuf, &str)> = vec![
        (model("prelu", &json!({"hidden_act": "prelu"})), "hidden_act"),
        (model("no-width", &json!({"hidden_size": 0})), "hidden_size"),
        (model("wrong-type", &json!({"rms_norm_eps": "x"})), "rms_norm_eps"),
        (model("gpt2", &json!({"model_type": "gpt2"})), "model_type"),
        (model("more-layers", &json!({"num_hidden_layers": 3})), "lacks 9 tensors"),
    ];
    let dir = model("no-json", &json!({}));
    fs::write(dir.join("config.json"), "{").unwrap();
    broken.push((dir, "not valid JSON"));
    for (name, dir) in [
        ("config.json", "folder-1"),
        ("tokenizer_config.json", "folder-2"),
        ("model.safetensors", "folder-3"),
    ] {
        let dir = model(dir, &json!({}));
        fs::remove_file(dir.join(name)).unwrap();
        fs::create_dir(dir.join(name)).unwrap();
        broken.push((dir, name));
    }
    broken.push((home().join("absent"), "absent"));
    for (path, named) in broken {
        let line = run(home(), &["run", "-m", text(&path), "hi"]).failed(1);
        assert_eq!(line.matches(named).count(), 1, "{named}: {line}");
        let mut said = clauses(&line);
        said.sort_unstable();
        assert!(said.windows(2).all(|two| two[0] != two[1]), "{line}");
    }
}

#[test]
fn usage_errors_name_the_command_and_stay_short() {
    for (args, command) in [
        (&["run", "--temperature", "hot", "hi"][..], "puna run --help"),
        (&["run", "--threads", "65535", "hi"], "puna run --help"),
        (&["bench", "--threads", "1025"], "puna bench --help"),
        (&["bench", "-p", "x"], "puna bench --help"),
        (&["nonsense"], "'puna --help'"),
    ] {
        let line = run(home(), args).failed(2);
        assert!(line.contains(command), "{line}");
    }
    let dir = model("usage", &json!({}));
    let line = run(home(), &["run", "-m", text(&dir), "--temperature", "1e308", "hi"]).failed(2);
    assert!(line.contains("1e+308") && line.len() < 120, "{line}");
    let line = run(home(), &["bench", "-m", text(&dir), "-p", "99999999999999"]).failed(1);
    assert!(line.contains("-p, -g or --batch") && !line.contains("--context"), "{line}");
}

#[test]
#[cfg(target_os = "linux")]
fn help_on_a_full_disk_is_an_error() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ran: Ran = puna(home()).args(args).stdout(full).output().unwrap().into();
        let line = ran.failed(1);
        assert!(line.contains("disk is full"), "{line}");
    }
}

fn warnings(ran: &Ran) -> Vec<&str> {
    ran.stderr.lines().filter(|line| line.starts_with("warning: ")).collect()
}

#[test]
fn what_a_model_says_and_puna_does_not_do_is_warned_about_once() {
    let dir = model("warned", &json!({"pad_token_id": -1}));
    let generation = json!({
        "num_beams": 4,
        "suppress_tokens": [5],
        "bad_words_ids": null,
        "forced_eos_token_id": 2,
        "guidance_scale": 1.0,
        "top_k": -1,
        "temperature": 0.5,
    });
    fs::write(dir.join("generation_config.json"), generation.to_string()).unwrap();
    let ran = run(home(), &["run", "-m", text(&dir), "-n", "2", "hi"]);
    let found = warnings(&ran);
    assert_eq!(found.len(), 4, "{ran:?}");
    for (warning, parts) in found.iter().zip([
        &["pad_token_id"][..],
        &["'top_k'", "-1", "passed over"],
        &["`temperature`", "do_sample"],
        &["num_beams, forced_eos_token_id, suppress_tokens", "does not act on"],
    ]) {
        assert!(parts.iter().all(|part| warning.contains(part)), "{parts:?}: {warning}");
    }
    assert_eq!(ran.code, Some(0));
    let file = home().join("warned.txt");
    fs::write(&file, "a llama on the puna").unwrap();
    for args in [
        &["perplexity", "-m", text(&dir), text(&file)][..],
        &["bench", "-m", text(&dir), "-p", "4", "-g", "2", "-r", "1"],
    ] {
        let ran = run(home(), args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(warnings(&ran)[0].contains("pad_token_id"), "{ran:?}");
    }
    let report = as_json(&run(home(), &["inspect", "--json", text(&dir)]).ok());
    assert_eq!(report["warnings"].as_array().unwrap().len(), 4, "{report}");
}

#[test]
fn the_makers_lengths_and_stop_strings_are_heard() {
    let dir = model("lengths", &json!({}));
    let says = |generation: Value, flags: &[&str]| {
        fs::write(dir.join("generation_config.json"), generation.to_string()).unwrap();
        let args = ["run", "-m", text(&dir), "--raw", "--json", "--ignore-eos", "a llama"];
        run(home(), &[&args[..], flags].concat())
    };
    let length = |key: &str, result: &Value| result[key].as_array().unwrap().len();
    let result = as_json(&says(json!({"max_length": 40}), &[]).ok());
    assert_eq!(length("ids", &result) + length("prompt_ids", &result), 40);
    let result = as_json(&says(json!({"max_length": 40}), &["-n", "60"]).ok());
    assert_eq!(length("ids", &result), 60);
    let answer = result["text"].as_str().unwrap();
    let line = says(json!({"max_length": 2}), &[]).failed(1);
    assert!(line.contains("max_length") && line.contains("-n"), "{line}");

    let stop: String = answer.chars().skip(6).take(2).collect();
    let until = &answer[..answer.find(&stop).unwrap()];
    for stops in [json!(stop), json!(["no such text", stop])] {
        let result = as_json(&says(json!({"stop_strings": stops}), &["-n", "60"]).ok());
        assert_eq!((&result["text"], &result["finish_reason"]), (&json!(until), &json!("stop")));
    }
    let flags = ["-n", "60", "--stop", "no such text"];
    let result = as_json(&says(json!({"stop_strings": stop}), &flags).ok());
    assert_eq!(result["text"], answer);
}

#[test]
#[cfg(unix)]
fn pipes_and_devices_in_place_of_files_are_refused_at_once() {
    let pipe = |path: &Path| {
        let _ = fs::remove_file(path);
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for name in ["config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.model"] {
        let dir = model(&format!("pipe-{name}"), &json!({}));
        pipe(&dir.join(name));
        let ran = ended(spawn(&["run", "-m", text(&dir), "hi"], Stdio::null()));
        let line = ran.failed(1);
        assert!(line.contains(name) && line.contains("not a regular file"), "{line}");
    }
    let path = home().join("pipe.gguf");
    pipe(&path);
    ended(spawn(&["inspect", text(&path)], Stdio::null())).failed(1);

    let dir = model("device", &json!({}));
    std::os::unix::fs::symlink("/dev/zero", dir.join("chat_template.jinja")).unwrap();
    let start = Instant::now();
    let line = ended(spawn(&["tokenize", "-m", text(&dir), "hi"], Stdio::null())).failed(1);
    assert!(line.contains("chat_template.jinja") && line.contains("not a regular file"), "{line}");
    // Reading up to the bound on a file's size takes longer, and a quarter of a gigabyte.
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_silent_standard_input_is_left_alone() {
    let dir = model("silent", &json!({}));
    let args = ["run", "-m", text(&dir), "--raw", "--json", "-n", "1", "a llama"];
    let mut child = spawn(&args, Stdio::piped());
    let stdin = child.stdin.take();
    let ran = ended(child);
    drop(stdin);
    assert!(warnings(&ran)[0].contains("standard input"), "{ran:?}");
    let alone = as_json(&ran.ok());
    let expected = as_json(&run(home(), &args).ok());
    assert_eq!(alone["prompt_ids"], expected["prompt_ids"]);

    // One that begins in time is waited for to its end.
    let mut child = spawn(&args, Stdio::piped());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"ma").unwrap();
    thread::sleep(Duration::from_secs(6));
    stdin.write_all(b" la").unwrap();
    drop(stdin);
    let both = as_json(&ended(child).ok());
    let joined = [&args[..7], &["a llama\n\nma la"]].concat();
    assert_eq!(both["prompt_ids"], as_json(&run(home(), &joined).ok())["prompt_ids"]);
}

#[test]
fn a_score_that_ctrl_c_cut_short_says_so() {
    let dir = model("partial", &json!({}));
    let file = home().join("partial.txt");
    fs::write(&file, "a llama on the puna ".repeat(40_000)).unwrap();
    let args = ["perplexity", "-m", text(&dir), "--json", "--context", "64", text(&file)];
    let mut child = spawn(&args, Stdio::null());
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains('%') {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "no progress");
    }
    interrupt(&child);
    thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    let ran = ended(child);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let result = as_json(&ran.stdout);
    assert_eq!(result["complete"], false);
    assert!(result["tokens"].as_u64().unwrap() > 0);
    let args = ["perplexity", "-m", text(&dir), "--json", "--max-tokens", "99", text(&file)];
    assert_eq!(as_json(&run(home(), &args).ok())["complete"], true);
}

#[test]
fn raw_text_with_its_bos_gets_no_second_one() {
    let dir = model("bos", &json!({}));
    let args = ["run", "-m", text(&dir), "--raw", "--json", "-n", "1", "<s>a llama"];
    let ids = as_json(&run(home(), &args).ok())["prompt_ids"].clone();
    let args = ["tokenize", "-m", text(&dir), "--json", "--no-special", "<s>a llama"];
    assert_eq!(ids, as_json(&run(home(), &args).ok())["ids"]);
    assert_eq!(ids[0], 1);
    assert_ne!(ids[1], 1);
}
