//! Standard output and standard error: where they go, whether they take colours, and writing that
//! tells a reader that has gone away from a disk that is full.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use anyhow::Context;

/// The reader of standard output has gone away (`puna … | head`).
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Buffered standard output. Everything that a command prints there goes through one of these,
/// so that a failed write is always reported.
#[derive(Debug)]
pub(crate) struct Output {
    inner: BufWriter<Stdout>,
    /// Standard output is a terminal.
    pub(crate) terminal: bool,
}

impl Output {
    /// Standard output.
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { inner: BufWriter::new(stdout), terminal }
    }

    /// Writes text of ours.
    pub(crate) fn write(&mut self, text: &str) -> anyhow::Result<()> {
        written(self.inner.write_all(text.as_bytes()))
    }

    /// Writes text that a model or a file chose: on a terminal without its control characters,
    /// which could move the cursor or change the terminal's state.
    pub(crate) fn write_foreign(&mut self, text: &str) -> anyhow::Result<()> {
        if self.terminal {
            let safe: String =
                text.chars().filter(|&c| !c.is_control() || c == '\n' || c == '\t').collect();
            self.write(&safe)
        } else {
            self.write(text)
        }
    }

    /// Writes text of ours and ends the line.
    pub(crate) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        self.write(text)?;
        self.write("\n")
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(value).context("cannot write the result as JSON")?;
        self.line(&text)
    }

    /// Hands everything to the system.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        written(self.inner.flush())
    }
}

/// Tells a closed pipe from other failures.
pub(crate) fn written(result: io::Result<()>) -> anyhow::Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => StdoutClosed.into(),
        io::ErrorKind::StorageFull => anyhow::Error::new(error)
            .context("cannot write to standard output: the disk is full; free some space"),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    })
}

/// Whether standard error takes colours: a terminal, `NO_COLOR` unset or empty, not `TERM=dumb`.
pub(crate) fn stderr_colour() -> bool {
    colours_wanted() && io::stderr().is_terminal()
}

/// Whether standard output takes colours.
pub(crate) fn stdout_colour() -> bool {
    colours_wanted() && io::stdout().is_terminal()
}

fn colours_wanted() -> bool {
    let unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    unset("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `text` with control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// `bytes` as a person reads it.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(1_000), "1.0 kB");
        assert_eq!(human_bytes(98_362_432), "98 MB");
        assert_eq!(human_bytes(999_600_000), "1.0 GB");
        assert_eq!(human_bytes(u64::MAX), "18446744 TB");
    }
}
