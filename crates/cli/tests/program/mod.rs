//! Runs the program as a user would, in a home of its own. Arguments and standard input enter; exit
//! status and both outputs leave.

#![allow(dead_code, reason = "each test file uses its part of this")]

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program with an empty home, no hub and no colours asked for.
pub(crate) fn puna(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_puna"));
    for variable in ["PUNA_OFFLINE", "HF_TOKEN", "NO_COLOR", "XDG_CACHE_HOME", "PUNA_ISA"] {
        command.env_remove(variable);
    }
    for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(variable);
    }
    // Nothing listens on port 9 of this machine: a hub that cannot be reached.
    command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("PUNA_HOME", home).env("HOME", home);
    command.stdin(Stdio::null());
    command
}

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Asserts success and gives standard output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Asserts that the run failed with `code`, printed nothing, and said why in one line; gives
    /// the line.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let errors: Vec<&str> =
            self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:?}");
        assert_eq!(self.stderr.lines().last(), Some(errors[0]), "{self:?}");
        assert!(errors[0].len() > "error: ".len() + 10, "{self:?}");
        errors[0].to_owned()
    }
}

/// Runs with arguments.
pub(crate) fn run<S: AsRef<OsStr>>(home: &Path, args: &[S]) -> Ran {
    puna(home).args(args).output().expect("the program starts").into()
}

/// Runs with arguments and a text on standard input.
pub(crate) fn run_with_input<S: AsRef<OsStr>>(home: &Path, args: &[S], input: &[u8]) -> Ran {
    let mut child = puna(home)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that ends before it has read everything closes the pipe: no fault of the test.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    child.wait_with_output().expect("the program ends").into()
}
