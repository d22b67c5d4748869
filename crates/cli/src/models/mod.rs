//! From a model's name on the command line to a path that a checkpoint can be opened from: a
//! folder, a file, `hf:ORG/REPO[@REV][:FILE]` or an alias; fetched into the cache where need be.

mod alias;
mod cache;
mod download;
mod hub;
mod name;
mod package;
mod progress;

use std::path::PathBuf;

use anyhow::{Context, bail};

pub(crate) use alias::DEFAULT_ALIAS;
pub(crate) use cache::data_dir;
pub(crate) use name::ModelName;
pub(crate) use progress::{Progress, Unit};

use cache::Cache;

/// How to look for a model.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lookup {
    /// Take only what is here already.
    pub(crate) offline: bool,
    /// Ask the source even where the cache has an answer.
    pub(crate) refresh: bool,
    /// Download again even what the cache has.
    pub(crate) force: bool,
}

/// Path of the model, downloaded first where it is not here.
pub(crate) fn resolve(name: &ModelName, lookup: Lookup) -> anyhow::Result<PathBuf> {
    match name {
        ModelName::Path(path) => {
            if !path.exists() {
                bail!(
                    "no model '{}': there is no such file or folder, and no such alias (there is: \
                     {}); a model on the hub is written hf:ORG/REPO",
                    path.display(),
                    alias::names()
                );
            }
            Ok(path.clone())
        }
        ModelName::Hub(hub) => {
            hub::resolve(&Cache::open()?, hub, lookup).with_context(|| format!("cannot get {hub}"))
        }
        ModelName::Alias(alias) => alias::resolve(&Cache::open()?, alias, lookup)
            .with_context(|| format!("cannot get '{}'", alias.name)),
    }
}
