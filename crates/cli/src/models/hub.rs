//! Models on the Hugging Face hub: a repository at a revision enters, the folder of that commit
//! in the cache leaves, with the files that a LLaMA needs. `$HF_ENDPOINT` names another hub and
//! `$HF_TOKEN` opens private repositories, as in the hub's own clients.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

use super::Lookup;
use super::cache::{Cache, is_hex, write_file};
use super::download::{Client, Wanted};
use super::name::{HubName, is_safe_path};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Written last into a commit's folder: the model's path inside it (empty for the folder itself).
const COMPLETE: &str = "puna-complete";
/// Bytes that a listing may have; the hub's largest have a few thousand files.
const MAX_LISTING: u64 = 64 << 20;
/// Small files that a LLaMA's folder may hold, beside its weights.
const SMALL_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
];

/// The hub's answer about a revision.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

/// One file of a repository.
#[derive(Clone, Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

/// What the hub knows of a large file.
#[derive(Clone, Debug, Deserialize)]
struct Lfs {
    sha256: String,
}

/// The hub at `$HF_ENDPOINT`.
#[derive(Debug)]
pub(crate) struct Hub {
    client: Client,
    endpoint: String,
}

impl Hub {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = env("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { client: Client::new(&endpoint, env("HF_TOKEN"))?, endpoint })
    }

    fn listing(&self, name: &HubName) -> anyhow::Result<Listing> {
        let url = format!(
            "{}/api/models/{}/revision/{}?blobs=true",
            self.endpoint,
            name.repo,
            encode(&name.revision)
        );
        let text = self.client.text(&url, MAX_LISTING)?;
        let listing: Listing = serde_json::from_str(&text)
            .with_context(|| format!("{url} did not answer as a hub does"))?;
        if !is_hex(&listing.sha, 40) {
            bail!("{url} names no commit");
        }
        Ok(listing)
    }

    /// Address of a file at a commit.
    fn url(&self, repo: &str, commit: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{}/{}", self.endpoint, encode(commit), file)
    }

    /// Fetches one file whose SHA-256 is known.
    pub(crate) fn fetch_exact(
        &self,
        cache: &Cache,
        name: &HubName,
        sha256: &str,
        to: &Path,
    ) -> anyhow::Result<()> {
        let file = name.file.as_deref().unwrap_or_default();
        let url = self.url(&name.repo, &name.revision, file);
        let wanted = Wanted { url: &url, name: file, size: None, sha256: Some(sha256) };
        self.client.fetch(cache, &wanted, to)
    }
}

/// The model's folder or file in the cache, fetched where it is not there.
pub(crate) fn resolve(cache: &Cache, name: &HubName, lookup: Lookup) -> anyhow::Result<PathBuf> {
    let asks_hub = lookup.refresh || lookup.force;
    if (!asks_hub || lookup.offline)
        && let Some(path) = cached(cache, name)
    {
        return Ok(path);
    }
    if lookup.offline {
        bail!("it is not in the cache, and --offline (or PUNA_OFFLINE) forbids to fetch it");
    }
    let _lock = cache.lock(&format!("hf:{}", name.repo))?;
    if !asks_hub && let Some(path) = cached(cache, name) {
        return Ok(path);
    }
    let hub = Hub::new()?;
    let listing = hub.listing(name).map_err(offer_path)?;
    let (files, open) = match &name.file {
        Some(file) => (vec![find(&listing, file)?.clone()], file.clone()),
        None => select(&listing)?,
    };
    let folder = cache.snapshot(&name.repo, &listing.sha);
    for file in &files {
        fetch(&hub, cache, &name.repo, &listing.sha, file, lookup.force)?;
    }
    if name.file.is_none() {
        write_file(&folder.join(COMPLETE), open.as_bytes())?;
    }
    write_file(&cache.reference(&name.repo, &name.revision), listing.sha.as_bytes())?;
    Ok(if open.is_empty() { folder } else { folder.join(open) })
}

/// What the cache has under a name, without asking anybody.
fn cached(cache: &Cache, name: &HubName) -> Option<PathBuf> {
    let commit = if is_hex(&name.revision, 40) {
        name.revision.clone()
    } else {
        fs::read_to_string(cache.reference(&name.repo, &name.revision)).ok()?
    };
    if !is_hex(&commit, 40) {
        return None;
    }
    let folder = cache.snapshot(&name.repo, &commit);
    if let Some(file) = &name.file {
        return Some(folder.join(file)).filter(|path| path.is_file());
    }
    let open = fs::read_to_string(folder.join(COMPLETE)).ok()?;
    if open.is_empty() {
        return Some(folder);
    }
    is_safe_path(&open).then(|| folder.join(open)).filter(|path| path.is_file())
}

fn fetch(
    hub: &Hub,
    cache: &Cache,
    repo: &str,
    commit: &str,
    file: &Sibling,
    force: bool,
) -> anyhow::Result<()> {
    let to = cache.snapshot(repo, commit).join(&file.rfilename);
    if !force && to.is_file() {
        return Ok(());
    }
    let sha256 = file.lfs.as_ref().map(|lfs| lfs.sha256.as_str());
    if sha256.is_some_and(|sha256| !is_hex(sha256, 64)) {
        bail!("the hub's listing gives no proper SHA-256 for {}", file.rfilename);
    }
    let url = hub.url(repo, commit, &file.rfilename);
    let wanted = Wanted { url: &url, name: &file.rfilename, size: file.size, sha256 };
    hub.client.fetch(cache, &wanted, &to)
}

fn find<'a>(listing: &'a Listing, file: &str) -> anyhow::Result<&'a Sibling> {
    listing.siblings.iter().find(|sibling| sibling.rfilename == file).ok_or_else(|| {
        anyhow!("the repository has no file '{file}'; it has {}", names(&listing.siblings))
    })
}

/// The files of a model that is the whole repository, small ones first, and the path to open.
fn select(listing: &Listing) -> anyhow::Result<(Vec<Sibling>, String)> {
    // What lies in folders belongs to other programs; names that climb are never taken.
    let top: Vec<&Sibling> = listing
        .siblings
        .iter()
        .filter(|file| !file.rfilename.contains('/') && is_safe_path(&file.rfilename))
        .collect();
    let ending = |ending: &str| -> Vec<Sibling> {
        top.iter().filter(|file| file.rfilename.ends_with(ending)).copied().cloned().collect()
    };
    let mut weights = ending(".safetensors");
    if weights.is_empty() {
        weights = ending(".bin");
        weights.retain(|file| file.rfilename.starts_with("pytorch_model"));
    }
    if !weights.is_empty() {
        let small = top.iter().filter(|file| SMALL_FILES.contains(&file.rfilename.as_str()));
        return Ok((small.copied().cloned().chain(weights).collect(), String::new()));
    }
    let ggufs = ending(".gguf");
    match ggufs.as_slice() {
        [one] => Ok((vec![one.clone()], one.rfilename.clone())),
        [] => bail!("the repository holds no weights (.safetensors, pytorch_model*.bin or .gguf)"),
        many => bail!(
            "the repository holds {} GGUF files; choose one with hf:ORG/REPO:FILE, from {}",
            many.len(),
            names(many)
        ),
    }
}

/// The first few names, for a message.
fn names(files: &[Sibling]) -> String {
    const SHOWN: usize = 12;
    let mut text =
        files.iter().take(SHOWN).map(|file| file.rfilename.as_str()).collect::<Vec<_>>().join(", ");
    if files.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

/// What to do where the hub cannot be asked.
fn offer_path(error: anyhow::Error) -> anyhow::Error {
    if error.is::<super::download::Unreachable>() {
        error.context("the hub does not answer; check the network, or give the path of a model")
    } else {
        error
    }
}

/// A checked revision as one part of an address.
fn encode(revision: &str) -> String {
    revision.replace('/', "%2F").replace('+', "%2B")
}
