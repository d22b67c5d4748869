//! How the command ends: one line on standard error that says what went wrong and what to do,
//! and an exit status: 0 done, 1 failed, 2 asked wrongly, 130 stopped by Ctrl-C.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;

use crate::commands::Cli;
use crate::output::{self, StdoutClosed};

/// The command was asked for something that cannot be; the text says what to ask instead.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Ctrl-C stopped the work; what was done is already printed.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped by Ctrl-C")
    }
}

impl std::error::Error for Interrupted {}

/// The command has printed all there is to say; only the exit status is left.
#[derive(Debug)]
pub(crate) struct AlreadyReported;

impl fmt::Display for AlreadyReported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for AlreadyReported {}

/// Exit status after Ctrl-C: 128 and the number of the signal.
pub(crate) const INTERRUPTED: u8 = 130;

/// Prints `error` and gives its exit status. A reader that has gone away is no error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<StdoutClosed>()) {
        return ExitCode::SUCCESS;
    }
    if error.is::<AlreadyReported>() {
        return ExitCode::FAILURE;
    }
    if error.chain().any(|cause| cause.is::<Interrupted>()) {
        return ExitCode::from(INTERRUPTED);
    }
    print_error(&format!("{error:#}"));
    ExitCode::from(if error.chain().any(|cause| cause.is::<Usage>()) { 2 } else { 1 })
}

/// Prints what clap has to say: help and version as they are, an error as one line.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
    };
    if matches!(
        error.kind(),
        DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        return match output::written(error.print().and_then(|()| io::stdout().flush())) {
            Ok(()) => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
            Err(error) => report(&error),
        };
    }
    let asked = std::env::args().nth(1).unwrap_or_default();
    let command = match Cli::command().find_subcommand(&asked) {
        Some(command) => format!("puna {}", command.get_name()),
        None => "puna".to_owned(),
    };
    print_error(&usage_line(&error.render().to_string(), command));
    ExitCode::from(2)
}

/// The message and the tips of a rendered usage error, as one line that ends with where to look:
/// the command that its usage names, where it shows one, else `command`.
fn usage_line(rendered: &str, mut command: String) -> String {
    let mut parts: Vec<String> = Vec::new();
    for line in rendered.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(usage) = line.strip_prefix("Usage: ") {
            command = usage
                .split_whitespace()
                .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
                .collect::<Vec<_>>()
                .join(" ");
        } else if !line.starts_with("For more information") {
            parts.push(line.trim_start_matches("error: ").to_owned());
        }
    }
    format!("{}; see '{command} --help'", parts.join("; ").replace(":;", ":"))
}

/// `error: text` on standard error, in one line and without control characters: the text may
/// quote names that a stranger chose.
pub(crate) fn print_error(text: &str) {
    let line = one_line(text);
    if output::stderr_colour() {
        eprintln!("\x1b[1;31merror:\x1b[0m {line}");
    } else {
        eprintln!("error: {line}");
    }
}

/// `warning: text` on standard error, likewise.
pub(crate) fn print_warning(text: &str) {
    let line = one_line(text);
    if output::stderr_colour() {
        eprintln!("\x1b[1;33mwarning:\x1b[0m {line}");
    } else {
        eprintln!("warning: {line}");
    }
}

/// `text` with line ends turned into "; " and other control characters escaped.
fn one_line(text: &str) -> String {
    let joined = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
        .replace(":; ", ": ");
    output::printable(&joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line() {
        assert_eq!(one_line("a\n  b\x1b[2J\n\nc"), "a; b\\u{1b}[2J; c");
    }

    #[test]
    fn usage_errors_keep_the_tip() {
        let rendered = "error: unexpected argument '--sed' found\n\n  tip: a similar argument \
                        exists: '--seed'\n\nUsage: puna run --seed <N> [PROMPT]\n\nFor more \
                        information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered, "puna".to_owned()),
            "unexpected argument '--sed' found; tip: a similar argument exists: '--seed'; see \
             'puna run --help'"
        );
        let rendered = "error: invalid value 'hot' for '--temperature <T>': invalid float \
                        literal\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered, "puna run".to_owned()),
            "invalid value 'hot' for '--temperature <T>': invalid float literal; see 'puna run \
             --help'"
        );
    }
}
