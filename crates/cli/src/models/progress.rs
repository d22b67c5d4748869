//! Progress of long work on standard error: a bar with the time left on a terminal, elsewhere a
//! plain line each ten percent.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes of a download.
    Bytes,
    /// Tokens of a text.
    Tokens,
}

/// A count that goes up to a total.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    /// Tenths that have been announced; used without a bar.
    tenths: u64,
}

impl Progress {
    /// Starts at `done` of `total`; a total of 0 is one that is not known.
    pub(crate) fn new(what: &str, unit: Unit, done: u64, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| bar(what, unit, total));
        let tenths = (done * 10).checked_div(total).unwrap_or(0);
        let mut progress = Self { what: what.to_owned(), bar, total, done: 0, tenths };
        if let Some(bar) = &progress.bar {
            bar.reset_eta();
        } else if done == 0 {
            eprintln!("{what}: started");
        }
        progress.set(done);
        progress
    }

    /// Tells how far the work is.
    pub(crate) fn set(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let tenths = done.saturating_mul(10).checked_div(self.total).unwrap_or(0).min(10);
        if tenths > self.tenths {
            self.tenths = tenths;
            eprintln!("{}: {} %", self.what, tenths * 10);
        }
    }

    /// Tells that `more` is done.
    pub(crate) fn add(&mut self, more: u64) {
        self.set(self.done.saturating_add(more));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &str, unit: Unit, total: u64) -> ProgressBar {
    let template = match (unit, total) {
        (Unit::Bytes, 0) => "{msg} {bytes} ({bytes_per_sec})",
        (Unit::Bytes, _) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        (Unit::Tokens, _) => "{msg} {wide_bar} {pos}/{len} tokens {per_sec} {eta} left",
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
