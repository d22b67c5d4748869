//! The program as its users meet it: help, errors, answers, pipes, full disks. Every test runs the
//! built program in a home of its own, on models that the tests write.

mod program;
mod tiny_model;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use program::{Ran, puna, run, run_with_input};
use serde_json::Value;

const COMMANDS: [&str; 7] =
    ["run", "tokenize", "detokenize", "inspect", "perplexity", "pull", "bench"];

/// A home with a model `tiny`, and `flat`, for which every token is equally likely.
fn home() -> &'static Path {
    static HOME: OnceLock<tempfile::TempDir> = OnceLock::new();
    let home = HOME.get_or_init(|| {
        let home = tempfile::tempdir().unwrap();
        tiny_model::write(&home.path().join("tiny"), false);
        tiny_model::write(&home.path().join("flat"), true);
        home
    });
    home.path()
}

fn model(name: &str) -> String {
    home().join(name).display().to_string()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn file(name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = home().join(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in COMMANDS {
        let help = run(home(), &[command, "--help"]).ok();
        let examples = help.split("Examples:\n").nth(1).expect(command);
        assert!(examples.contains(&format!("puna {command}")), "{help}");
        assert!(!help.contains('\x1b'), "{help}");
    }
    let help = run(home(), &["--help"]).ok();
    assert!(help.contains("Examples:"), "{help}");
    assert!(COMMANDS.iter().all(|command| help.contains(command)), "{help}");
    assert!(run(home(), &["--version"]).ok().starts_with("puna "));
}

#[test]
fn wrong_flags_get_one_line() {
    let line = run(home(), &["run", "--sed", "1", "hi"]).failed(2);
    assert!(line.contains("--seed") && line.contains("puna run --help"), "{line}");
    for args in [
        &["nonsense"][..],
        &["run", "--temperature", "hot", "hi"],
        &["run", "--threads", "0", "hi"],
        &["run", "--kv-dtype", "q9", "hi"],
        &["run", "--logprobs", "2", "hi"],
        &["run", "--raw", "--system", "x", "hi"],
        &["tokenize", "text", "--lines", "file"],
        &["detokenize"],
        &["bench", "-p", "x"],
        &["perplexity"],
    ] {
        run(home(), args).failed(2);
    }
}

#[test]
fn missing_files_are_named() {
    let line = run(home(), &["run", "-m", "no/such/model", "hi"]).failed(1);
    assert!(line.contains("no/such/model") && line.contains("hf:ORG/REPO"), "{line}");
    let tiny = model("tiny");
    let line = run(home(), &["perplexity", "-m", &tiny, "no-such-text"]).failed(1);
    assert!(line.contains("no-such-text"), "{line}");
    let line = run(home(), &["tokenize", "-m", &tiny, "--lines", "no-such-text"]).failed(1);
    assert!(line.contains("no-such-text"), "{line}");
}

#[test]
fn a_model_that_is_no_llama_is_named() {
    let dir = home().join("gpt2");
    tiny_model::write(&dir, false);
    let config = r#"{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}"#;
    fs::write(dir.join("config.json"), config).unwrap();
    let line = run(home(), &["run", "-m", &model("gpt2"), "hi"]).failed(1);
    assert!(line.to_lowercase().contains("gpt2") && line.contains("config.json"), "{line}");
}

#[test]
fn an_empty_prompt_is_refused() {
    let tiny = model("tiny");
    for args in [&["run", "-m", &tiny, ""][..], &["run", "-m", &tiny, "  \n"], &["run"]] {
        let line = run(home(), args).failed(2);
        assert!(line.contains("prompt is empty"), "{line}");
    }
    let line = run_with_input(home(), &["run", "-m", &tiny], b"\n").failed(2);
    assert!(line.contains("prompt is empty"), "{line}");
}

#[test]
fn bad_values_are_refused_before_they_do_anything() {
    let tiny = model("tiny");
    for (flags, expected) in [
        (&["--temperature", "-1"][..], "temperature"),
        (&["--top-p", "2"], "top_p"),
        (&["--temperature", "0", "--top-k", "5"], "--top-k"),
        (&["-n", "0"], "max_new_tokens"),
        (&["--context", "0"], "--context"),
        (&["--stop", ""], "stop"),
    ] {
        let args = [&["run", "-m", &tiny, "hi"], flags].concat();
        let ran = run(home(), &args);
        let line = ran.failed(2);
        assert!(line.contains(expected), "{line}");
    }
    let long = "llama ".repeat(300);
    let line = run(home(), &["run", "-m", &tiny, &long]).failed(1);
    assert!(line.contains("--context"), "{line}");
}

#[test]
fn json_has_its_fields() {
    let tiny = model("tiny");
    let args = ["run", "-m", &tiny, "--json", "-n", "6", "--ignore-eos", "--logprobs", "2", "hi"];
    let result = json(&run(home(), &args).ok());
    let keys: Vec<&String> = result.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["prompt_ids", "ids", "text", "finish_reason", "timings", "logprobs"]);
    assert_eq!(result["ids"].as_array().unwrap().len(), 6);
    assert_eq!(result["prompt_ids"][0], 1, "the template writes BOS");
    assert_eq!(result["finish_reason"], "length");
    assert!(result["text"].is_string());
    for key in ["load_ms", "prefill_ms", "ttft_ms", "decode_ms", "prefill_tps", "decode_tps"] {
        assert!(result["timings"][key].as_f64().unwrap() > 0.0, "{key} {result}");
    }
    for (token, id) in result["logprobs"].as_array().unwrap().iter().zip(0..) {
        assert_eq!(token["id"], result["ids"][id]);
        assert!(token["logprob"].as_f64().unwrap() < 0.0);
        // Greedy: the likeliest token is the one that was taken.
        assert_eq!(token["top"].as_array().unwrap().len(), 2);
        assert_eq!(token["top"][0]["id"], token["id"]);
    }
}

#[test]
fn the_streamed_text_is_the_text() {
    let tiny = model("tiny");
    for flags in [&[][..], &["--raw"], &["--temperature", "0.8", "--seed", "3"]] {
        let args = [&["run", "-m", &tiny, "-n", "40", "a llama"], flags].concat();
        let streamed = run(home(), &args).ok();
        let whole = json(&run(home(), &[&args[..], &["--json"]].concat()).ok());
        let text = whole["text"].as_str().unwrap();
        assert_eq!(
            streamed.strip_suffix('\n').unwrap_or(&streamed).trim_end_matches('\n'),
            text.trim_end_matches('\n'),
            "{flags:?}"
        );
        assert!(!text.is_empty());
    }
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    let tiny = model("tiny");
    let ids = |seed: &str| {
        let args = ["run", "-m", &tiny, "--json", "-n", "30", "--temperature", "1", "--seed", seed];
        json(&run(home(), &[&args[..], &["hi"]].concat()).ok())["ids"].clone()
    };
    assert_eq!(ids("1"), ids("1"));
    assert_ne!(ids("1"), ids("2"));
}

#[test]
fn raw_text_is_continued_without_a_template() {
    let tiny = model("tiny");
    let prompt_ids = |flags: &[&str]| {
        let args = [&["run", "-m", &tiny, "--json", "-n", "1", "a llama"], flags].concat();
        json(&run(home(), &args).ok())["prompt_ids"].clone()
    };
    let encoded = json(&run(home(), &["tokenize", "-m", &tiny, "--json", "a llama"]).ok());
    assert_eq!(prompt_ids(&["--raw"]), encoded["ids"]);
    let templated = "<s>user: a llama\nassistant:";
    let expected = ["tokenize", "-m", &tiny, "--json", "--no-special", templated];
    assert_eq!(prompt_ids(&[]), json(&run(home(), &expected).ok())["ids"]);
    let templated = "<s>system: be brief\nuser: a llama\nassistant:";
    let expected = ["tokenize", "-m", &tiny, "--json", "--no-special", templated];
    assert_eq!(prompt_ids(&["--system", "be brief"]), json(&run(home(), &expected).ok())["ids"]);
}

#[test]
fn a_pipe_is_the_prompt_or_goes_below_it() {
    let tiny = model("tiny");
    let args = ["run", "-m", &tiny, "--raw", "--json", "-n", "1"];
    let ids = |prompt: &[&str], input: &[u8]| {
        json(&run_with_input(home(), &[&args[..], prompt].concat(), input).ok())["prompt_ids"]
            .clone()
    };
    assert_eq!(ids(&[], b"a llama\n"), ids(&["a llama"], b""));
    assert_eq!(ids(&["a"], b"llama"), ids(&["a\n\nllama"], b""));
    let line = run_with_input(home(), &args, b"ab\xff").failed(2);
    assert!(line.contains("UTF-8") && line.contains("byte 2"), "{line}");
}

#[test]
fn a_stop_string_ends_the_text() {
    let tiny = model("tiny");
    let args = ["run", "-m", &tiny, "--json", "-n", "60", "--ignore-eos", "hi"];
    let whole = json(&run(home(), &args).ok());
    let text = whole["text"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(2).collect();
    let at = text.find(&stop).unwrap();
    let stopped = json(&run(home(), &[&args[..], &["--stop", &stop]].concat()).ok());
    assert_eq!(stopped["text"], text[..at]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(stopped["ids"].as_array().unwrap().len() < 60);
}

#[test]
fn computing_flags_change_how_and_not_what() {
    let (tiny, flat) = (model("tiny"), model("flat"));
    let ids = |flags: &[&str]| {
        let args = [&["run", "-m", &tiny, "--json", "-n", "12", "hi"], flags].concat();
        json(&run(home(), &args).ok())["ids"].clone()
    };
    let plain = ids(&[]);
    for flags in [
        &["--threads", "1"][..],
        &["--threads", "3"],
        &["--exact"],
        &["--dequantize"],
        &["--deterministic"],
        &["--deterministic", "--threads", "1"],
        &["--speculate", "off"],
        &["--speculate", "lookup", "--draft-tokens", "3"],
        &["--speculate", &tiny],
        &["--speculate", &flat, "--deterministic"],
        &["--kv-dtype", "f32", "--dtype", "f32"],
        &["--context", "100"],
    ] {
        assert_eq!(ids(flags), plain, "{flags:?}");
    }
    // Rounded keys and activations may choose other tokens, and must still give an answer.
    for flags in [
        &["--kv-dtype", "f16"][..],
        &["--kv-dtype", "bf16"],
        &["--kv-dtype", "q8_0"],
        &["--dtype", "bf16"],
    ] {
        assert!(!ids(flags).as_array().unwrap().is_empty(), "{flags:?}");
    }
}

/// The model as its own draft: a stop string and the end of the answer fall inside of what a step
/// brings, and the answer is the one without guesses. Seeds and log-probabilities too.
#[test]
fn guesses_change_no_answer() {
    let tiny = model("tiny");
    let whole = |flags: &[&str]| {
        let args = [&["run", "-m", &tiny, "--json", "--logprobs", "2", "hi"], flags].concat();
        let mut result = json(&run(home(), &args).ok());
        let timings = result.as_object_mut().unwrap().remove("timings").unwrap();
        (result, timings["drafted"].as_u64().unwrap(), timings["accepted"].as_u64().unwrap())
    };
    let text = whole(&["-n", "60", "--ignore-eos"]).0["text"].as_str().unwrap().to_owned();
    let stops: Vec<String> =
        [3, 11, 20].iter().map(|at| text.chars().skip(*at).take(2).collect()).collect();
    let mut cases = vec![
        vec!["-n", "40", "--ignore-eos"],
        vec!["-n", "7"],
        vec!["-n", "30", "--temperature", "0.8", "--seed", "5"],
    ];
    cases.extend(stops.iter().map(|stop| vec!["-n", "60", "--ignore-eos", "--stop", stop]));
    for flags in cases {
        let (plain, drafted, _) = whole(&flags);
        assert_eq!(drafted, 0);
        let (guessed, drafted, accepted) = whole(&[&flags[..], &["--speculate", &tiny]].concat());
        assert_eq!(guessed, plain, "{flags:?}");
        assert!(drafted >= accepted && accepted > 0, "{flags:?}: {accepted} of {drafted}");
    }
    let args = ["run", "-m", &tiny, "-n", "20", "--verbose", "--speculate", &tiny, "hi"];
    let ran = run(home(), &args);
    assert!(ran.stderr.contains("guessed"), "{ran:?}");
}

#[test]
fn guesses_that_cannot_be_made_are_refused() {
    let tiny = model("tiny");
    let line = run(home(), &["run", "-m", &tiny, "--draft-tokens", "3", "hi"]).failed(2);
    assert!(line.contains("--speculate"), "{line}");
    run(home(), &["run", "-m", &tiny, "--speculate", "lookup", "--draft-tokens", "0", "x"])
        .failed(2);
    let line = run(home(), &["run", "-m", &tiny, "--speculate", "no/such", "hi"]).failed(1);
    assert!(line.contains("no/such"), "{line}");
}

#[test]
fn a_deterministic_score_is_the_same_on_any_number_of_threads() {
    let (tiny, path) = (model("tiny"), file("a-score.txt", "a llama, a llama and another one. "));
    let score = |threads: &str| {
        let path = path.to_str().unwrap();
        let flags = ["--deterministic", "--threads", threads, "--json", path];
        run(home(), &[&["perplexity", "-m", &tiny][..], &flags].concat()).ok()
    };
    assert_eq!(score("1"), score("2"));
}

#[test]
fn a_closed_pipe_is_silent() {
    let tiny = model("tiny");
    for args in [
        &["run", "-m", &tiny, "--context", "20000", "-n", "9999", "--ignore-eos", "hi"][..],
        &["inspect", &tiny, "--tensors"],
    ] {
        let mut child =
            puna(home()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(child.wait().unwrap().success(), "{stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panic"), "{stderr}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_reported() {
    let tiny = model("tiny");
    for args in [
        &["run", "-m", &tiny, "-n", "4", "hi"][..],
        &["run", "-m", &tiny, "-n", "4", "--json", "hi"],
        &["tokenize", "-m", &tiny, "hi"],
        &["inspect", &tiny],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ran: Ran = puna(home()).args(args).stdout(full).output().unwrap().into();
        let line = ran.failed(1);
        assert!(line.contains("disk is full"), "{line}");
    }
}

#[test]
fn ctrl_c_keeps_what_came() {
    let tiny = model("tiny");
    let args = ["run", "-m", &tiny, "--context", "200000", "-n", "199000", "--ignore-eos", "hi"];
    let mut child =
        puna(home()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    // Read on, or the program would wait for the pipe and not for the signal.
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let ran: Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("ended by Ctrl-C"), "{ran:?}");
    assert!(!ran.stderr.contains("error:"), "{ran:?}");
}

#[test]
fn text_goes_to_ids_and_back() {
    let tiny = model("tiny");
    let text = "a llama 🦙, à bientôt";
    let ids = run(home(), &["tokenize", "-m", &tiny, text]).ok();
    assert!(ids.starts_with("1 "), "{ids}");
    let plain = run(home(), &["tokenize", "-m", &tiny, "--no-special", text]).ok();
    assert_eq!(ids, format!("1 {plain}"));
    let words: Vec<&str> = ids.split_whitespace().collect();
    let args = [&["detokenize", "-m", &tiny, "--skip-special"], &words[..]].concat();
    assert_eq!(run(home(), &args).ok(), format!("{text}\n"));
    let piped = run_with_input(home(), &["detokenize", "-m", &tiny, "-"], plain.as_bytes());
    assert_eq!(piped.ok(), format!("{text}\n"));
    let from_stdin = run_with_input(home(), &["tokenize", "-m", &tiny], text.as_bytes()).ok();
    assert_eq!(from_stdin, ids);
    let line = run(home(), &["detokenize", "-m", &tiny, "99999"]).failed(2);
    assert!(line.contains("99999"), "{line}");
    let line = run(home(), &["detokenize", "-m", &tiny, "one"]).failed(2);
    assert!(line.contains("'one'"), "{line}");
}

#[test]
fn lines_give_one_object_each() {
    let tiny = model("tiny");
    let path = file("lines.txt", "a llama\n\nma\r\nlast");
    let args = ["tokenize", "-m", &tiny, "--lines", path.to_str().unwrap()];
    let lines: Vec<Value> = run(home(), &args).ok().lines().map(json).collect();
    assert_eq!(lines.len(), 4);
    for (line, text) in lines.iter().zip(["a llama", "", "ma", "last"]) {
        let alone = run(home(), &["tokenize", "-m", &tiny, "--json", text]).ok();
        assert_eq!(*line, json(&alone), "{text:?}");
        assert_eq!(line["ids"].as_array().unwrap().len(), line["tokens"].as_array().unwrap().len());
    }
    assert_eq!(lines[0]["tokens"][0], "<s>");
    let path = file("broken.txt", b"good\nb\xffd\n");
    let args = ["tokenize", "-m", &tiny, "--lines", path.to_str().unwrap()];
    let ran = run(home(), &args);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 2, byte 1"), "{ran:?}");
}

#[test]
fn a_tokenizer_alone_is_enough() {
    let dir = home().join("tokenizer-only");
    fs::create_dir_all(&dir).unwrap();
    for name in ["tokenizer.model", "tokenizer_config.json"] {
        fs::copy(home().join("tiny").join(name), dir.join(name)).unwrap();
    }
    let expected = run(home(), &["tokenize", "-m", &model("tiny"), "a llama"]).ok();
    assert_eq!(
        run(home(), &["tokenize", "-m", &model("tokenizer-only"), "a llama"]).ok(),
        expected
    );
    let path = model("tokenizer-only/tokenizer.model");
    assert_eq!(run(home(), &["tokenize", "-m", &path, "a llama"]).ok(), expected);
}

#[test]
fn inspect_tells_what_is_there() {
    let tiny = model("tiny");
    let report = json(&run(home(), &["inspect", &tiny, "--tensors", "--json"]).ok());
    assert_eq!(report["kind"], "safetensors");
    assert_eq!(report["config"]["hidden_size"], 32);
    assert_eq!(report["tokenizer"]["tokens"], tiny_model::vocab_size());
    assert!(report["chat_template"].as_str().unwrap().contains("assistant"));
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 21);
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(report["bytes"], bytes);
    assert_eq!(report["parameters"], bytes / 4);
    let text = run(home(), &["inspect", &tiny, "--tensors"]).ok();
    for part in ["safetensors", "2 layers", "LlamaTokenizer", "model.layers.1.mlp.up_proj.weight"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn inspect_tells_where_a_file_is_broken() {
    let dir = home().join("truncated");
    tiny_model::write(&dir, false);
    let weights = dir.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let line = run(home(), &["inspect", &model("truncated")]).failed(1);
    assert!(line.contains("model.safetensors"), "{line}");
    let ran = run(home(), &["inspect", "--json", &model("truncated")]);
    assert_eq!(ran.code, Some(1));
    let report = json(&ran.stdout);
    assert!(report["path"].as_str().unwrap().ends_with("model.safetensors"), "{report}");
    assert!(report["error"]["message"].is_string(), "{report}");
}

#[test]
fn a_flat_model_is_as_surprised_as_its_vocabulary_is_large() {
    let text = file("text.txt", "a llama on the puna ".repeat(20));
    let flat = model("flat");
    let args = ["perplexity", "-m", &flat, "--json", "--context", "16", text.to_str().unwrap()];
    let result = json(&run(home(), &args).ok());
    let vocab = tiny_model::vocab_size() as f64;
    // exp and ln of one f32 sum each: a few units in the last place of f32.
    assert!((result["ppl"].as_f64().unwrap() / vocab - 1.0).abs() < 1e-5, "{result}");
    let ids = json(
        &run_with_input(
            home(),
            &["tokenize", "-m", &flat, "--json", "--no-special"],
            &fs::read(&text).unwrap(),
        )
        .ok(),
    );
    // With BOS before each window, every token of the text is predicted once.
    assert_eq!(result["tokens"], ids["ids"].as_array().unwrap().len());
    let fewer = json(&run(home(), &[&args[..], &["--max-tokens", "7"]].concat()).ok());
    assert_eq!(fewer["tokens"], 7);
    let plain = run(home(), &["perplexity", "-m", &flat, text.to_str().unwrap()]).ok();
    assert!(plain.starts_with("perplexity "), "{plain}");
}

#[test]
fn perplexity_is_that_of_the_log_probabilities() {
    let tiny = model("tiny");
    // After `<s> ▁a ▁llama` comes `▁` in this text: what the model gives it is what one more
    // token adds to the sum of negative log-probabilities.
    let vocab = tiny_model::vocab_size().to_string();
    let args = ["run", "-m", &tiny, "--raw", "--json", "-n", "1", "--logprobs", &vocab, "a llama"];
    let next = json(&run(home(), &args).ok());
    assert_eq!(next["prompt_ids"].as_array().unwrap().len(), 3);
    let path = file("said.txt", "a llama m");
    let path = path.to_str().unwrap();
    let ids =
        json(&run(home(), &["tokenize", "-m", &tiny, "--json", "a llama m"]).ok())["ids"].clone();
    assert_eq!(ids.as_array().unwrap()[..3], *next["prompt_ids"].as_array().unwrap());
    let top = next["logprobs"][0]["top"].as_array().unwrap();
    let logprob = top.iter().find(|token| token["id"] == ids[3]).unwrap()["logprob"].as_f64();
    let nll = |n: &str| {
        let args = ["perplexity", "-m", &tiny, "--json", "--max-tokens", n, path];
        let result = json(&run(home(), &args).ok());
        assert_eq!(result["tokens"].to_string(), n);
        result["mean_nll"].as_f64().unwrap() * result["tokens"].as_f64().unwrap()
    };
    let last = nll("3") - nll("2");
    // Two sums of log-probabilities in f32.
    assert!((last + logprob.unwrap()).abs() < 1e-4, "{last} {logprob:?}");
}

#[test]
fn bench_reports_its_keys() {
    let tiny = model("tiny");
    let args = ["bench", "-m", &tiny, "-p", "16", "-g", "8", "-r", "2", "--batch", "1,4"];
    let report = json(&run(home(), &[&args[..], &["--json"]].concat()).ok());
    for key in [
        "prefill_tps",
        "decode_tps",
        "ttft_ms",
        "load_ms",
        "peak_rss_bytes",
        "bandwidth_gbs",
        "peak_bf16_tflops",
        "threads",
    ] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert!(report["isa"].is_string() && report["peak_unit"].is_string());
    for n in ["1", "4"] {
        assert!(report["batch_decode_tps"][n].as_f64().unwrap() > 0.0, "{report}");
    }
    let text = run(home(), &args).ok();
    assert!(text.contains("tokens/s") && text.contains("decode × 4"), "{text}");
    run(home(), &["bench", "-m", &tiny, "-r", "0"]).failed(2);
}

#[test]
fn bench_explains_what_runs() {
    let tiny = model("tiny");
    let args = ["bench", "-m", &tiny, "-p", "16", "-g", "8", "-r", "1", "--explain"];
    let report = json(&run(home(), &[&args[..], &["--json"]].concat()).ok());
    let kinds = report["explain"].as_array().unwrap();
    let names: Vec<_> = kinds.iter().map(|kind| kind["tensor"].as_str().unwrap()).collect();
    for name in ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for product in kinds.iter().flat_map(|kind| kind["products"].as_array().unwrap()) {
        assert!(product["ms"].as_f64().unwrap() > 0.0 && product["path"].is_string(), "{product}");
    }
    let text = run(home(), &args).ok();
    assert!(text.contains("of the bandwidth") && text.contains("16 rows"), "{text}");
}

#[test]
fn bench_measures_guesses() {
    let tiny = model("tiny");
    let args = ["bench", "-m", &tiny, "-p", "8", "-g", "4", "-r", "1", "--speculate"];
    let report = json(&run(home(), &[&args[..], &["lookup", "--json"]].concat()).ok());
    let found = &report["speculation"];
    assert_eq!(found["how"], "lookup");
    for key in ["plain_tps", "tps", "speedup", "prompt_tokens", "tokens"] {
        assert!(found[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert!(found["drafted"].as_u64().unwrap() >= found["accepted"].as_u64().unwrap());
    let text = run(home(), &[&args[..], &[&tiny, "--deterministic"]].concat()).ok();
    assert!(text.contains("guesses right"), "{text}");
}

/// Runs a conversation on a terminal that `script` makes; `None` where there is no such program.
fn on_a_terminal(args: &str, typed: &str) -> Option<String> {
    // In place of the shell: some shells wait beside the command and die of its Ctrl-C.
    let command = format!("exec {} {args}", env!("CARGO_BIN_EXE_puna"));
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("PUNA_HOME", home())
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    let mut stdout = BufReader::new(child.stdout.take()?);
    let mut seen = String::new();
    stdout.read_line(&mut seen).ok()?;
    std::io::Write::write_all(&mut stdin, typed.as_bytes()).ok()?;
    stdout.read_to_string(&mut seen).ok()?;
    child.wait().ok()?;
    Some(seen)
}

#[test]
fn a_terminal_without_a_prompt_chats() {
    let args = format!("run -m {} -n 8 --verbose --speculate lookup", model("tiny"));
    let typed = "/help\nhello\\\nllama\n/system be brief\n/nonsense\nhello\n/quit\n";
    let Some(seen) = on_a_terminal(&args, typed) else {
        println!("skipped: there is no program `script` to make a terminal");
        return;
    };
    assert!(seen.contains("/clear"), "{seen}");
    assert!(seen.contains("no command /nonsense"), "{seen}");
    assert_eq!(seen.matches("ended by").count(), 2, "{seen}");
    let history = fs::read_to_string(home().join("history")).unwrap();
    assert!(history.contains("/system be brief"), "{history}");
}
