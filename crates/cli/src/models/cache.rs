//! The cache folder: `$PUNA_HOME`, else `$XDG_CACHE_HOME/puna`, else `~/.cache/puna`. A file
//! appears under its name only when it is whole and checked; what is under way lies in `parts/`.
//! One lock for each thing that can be fetched keeps two programs from fetching it together.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};

/// The folder that models are kept in.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Held while something is fetched; let go when dropped, also when the program dies.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Cache {
    /// Finds the folder; makes nothing.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let root = env_path("PUNA_HOME")
            .or_else(|| xdg("XDG_CACHE_HOME", ".cache"))
            .ok_or_else(|| anyhow!("no place for the cache: set PUNA_HOME to a folder"))?;
        Ok(Self { root })
    }

    /// A file that its own SHA-256 names.
    pub(crate) fn blob(&self, sha256: &str, file_name: &str) -> PathBuf {
        self.root.join("blobs").join(sha256).join(file_name)
    }

    /// The folder of one commit of a repository.
    pub(crate) fn snapshot(&self, repo: &str, commit: &str) -> PathBuf {
        self.repository(repo).join(commit)
    }

    /// The file that remembers which commit a branch or tag meant.
    pub(crate) fn reference(&self, repo: &str, revision: &str) -> PathBuf {
        // `%` cannot stand in a revision, so that no two of them share a file.
        self.repository(repo).join("refs").join(revision.replace('/', "%2F"))
    }

    /// `--` for `/`, as the hub's own clients write it: no name on the hub holds `--`.
    fn repository(&self, repo: &str) -> PathBuf {
        self.root.join("hub").join(repo.replace('/', "--"))
    }

    /// Where the bytes of an unfinished download lie; `identity` says which bytes they are.
    pub(crate) fn part(&self, identity: &str) -> PathBuf {
        self.root.join("parts").join(format!("{}.part", hex(&Sha256::digest(identity))))
    }

    /// A fresh folder inside the cache, so that a rename out of it stays on one disk.
    pub(crate) fn scratch(&self) -> anyhow::Result<tempfile::TempDir> {
        make_dir(&self.root)?;
        tempfile::Builder::new()
            .prefix("scratch-")
            .tempdir_in(&self.root)
            .with_context(|| cannot_write(&self.root))
    }

    /// Takes the lock of `what`; says so once where another program holds it.
    pub(crate) fn lock(&self, what: &str) -> anyhow::Result<Lock> {
        let dir = self.root.join("locks");
        make_dir(&dir)?;
        let path = dir.join(format!("{}.lock", hex(&Sha256::digest(what))));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| cannot_write(&path))?;
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => {
                eprintln!("another puna is fetching {what}; waiting for it");
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Lock(file))
    }
}

/// Where history lives: `$PUNA_HOME`, else `$XDG_DATA_HOME/puna`, else `~/.local/share/puna`.
pub(crate) fn data_dir() -> Option<PathBuf> {
    env_path("PUNA_HOME").or_else(|| xdg("XDG_DATA_HOME", ".local/share"))
}

/// A path from the environment; empty means unset.
fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `$variable/puna`, else `~/fallback/puna`. The XDG specification tells to ignore relative paths.
fn xdg(variable: &str, fallback: &str) -> Option<PathBuf> {
    env_path(variable)
        .filter(|path| path.is_absolute())
        .or_else(|| env_path("HOME").map(|home| home.join(fallback)))
        .map(|base| base.join("puna"))
}

/// Makes a folder and those above it.
pub(crate) fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| cannot_write(dir))
}

/// Puts a whole file under its name: the name has the old content or the new, never a part.
pub(crate) fn publish(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    fs::rename(from, to).with_context(|| cannot_write(to))
}

/// Writes a small file whole.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    make_dir(parent)?;
    let mut file = tempfile::NamedTempFile::new_in(parent).with_context(|| cannot_write(parent))?;
    file.write_all(bytes).with_context(|| cannot_write(path))?;
    file.persist(path).map_err(|error| error.error).with_context(|| cannot_write(path))?;
    Ok(())
}

fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}; set PUNA_HOME to a folder that has room and can be written",
        path.display()
    )
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `text` is `digits` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Copies all bytes and hashes them on the way.
pub(crate) fn copy_hashed(
    from: &mut impl Read,
    to: &mut impl Write,
    hasher: &mut Sha256,
) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(total);
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        total += n as u64;
    }
}
