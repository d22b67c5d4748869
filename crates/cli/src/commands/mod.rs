//! The commands: what each takes from the command line. One file each; `run` prints its result on
//! standard output and everything else on standard error.

mod answer;
mod bench;
mod bench_speculation;
mod chat;
mod explain;
mod inspect;
mod perplexity;
mod prompt;
mod pull;
mod run;
mod sampling;
mod speculation;
mod tokenize;

use clap::{Args, Parser, Subcommand};

use crate::models::{self, DEFAULT_ALIAS, Lookup, ModelName};

/// LLaMA, whole: run, measure and look into LLaMA models, from one program.
#[derive(Debug, Parser)]
#[command(
    name = "puna",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  puna run \"Why is the sky blue?\"     answer with the default model
  puna run                             chat
  puna inspect model.gguf              what a file holds
  puna bench                           how fast this machine is

Models: a folder, a .gguf or .safetensors file, hf:ORG/REPO[@REV][:FILE], or an alias (smollm2).
They are kept in $PUNA_HOME, else $XDG_CACHE_HOME/puna, else ~/.cache/puna."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Tokenize(tokenize::TokenizeArgs),
    Detokenize(tokenize::DetokenizeArgs),
    Inspect(inspect::InspectArgs),
    Perplexity(perplexity::PerplexityArgs),
    Pull(pull::PullArgs),
    Bench(bench::BenchArgs),
}

/// Which model.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Folder, file, hf:ORG/REPO[@REV][:FILE] or alias
    #[arg(short, long, value_name = "MODEL", default_value = DEFAULT_ALIAS)]
    model: ModelName,
    #[command(flatten)]
    pub(crate) offline: OfflineArgs,
}

/// Whether the network may be asked.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OfflineArgs {
    /// Take only what is here already; also $PUNA_OFFLINE=1
    #[arg(long)]
    offline: bool,
}

impl OfflineArgs {
    /// The switch, or its environment variable.
    pub(crate) fn offline(self) -> bool {
        let variable = std::env::var_os("PUNA_OFFLINE");
        self.offline || variable.is_some_and(|value| !value.is_empty() && value != "0")
    }
}

impl ModelArgs {
    /// Path of the model, fetched where it is not here.
    pub(crate) fn path(&self) -> anyhow::Result<std::path::PathBuf> {
        let lookup = Lookup { offline: self.offline.offline(), ..Lookup::default() };
        models::resolve(&self.model, lookup)
    }
}

impl Cli {
    /// Does what was asked.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(args) => run::run(&args),
            Command::Tokenize(args) => tokenize::tokenize(&args),
            Command::Detokenize(args) => tokenize::detokenize(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Perplexity(args) => perplexity::run(&args),
            Command::Pull(args) => pull::run(&args),
            Command::Bench(args) => bench::run(&args),
        }
    }
}
