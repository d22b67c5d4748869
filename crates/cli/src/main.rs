//! The command `puna`: the command line enters, a command of the library's is run, an exit status
//! leaves.

#![forbid(unsafe_code)]
#![allow(rustdoc::broken_intra_doc_links, reason = "doc comments here are help texts: [:FILE]")]

mod commands;
mod failure;
mod interrupt;
mod models;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    if let Err(error) = interrupt::listen() {
        failure::print_error(&format!("cannot listen for Ctrl-C: {error}"));
        return ExitCode::FAILURE;
    }
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::report_usage(&error),
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
