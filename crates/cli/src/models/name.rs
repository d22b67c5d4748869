//! Model names. What a name may hold is decided here, before any part of it becomes a path or an
//! address: letters, digits, `-`, `_`, `.` and, inside a file or revision, `/` between parts that
//! are neither empty nor `.` nor `..`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::alias::{self, Alias};

/// A model as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelName {
    /// A folder or a file.
    Path(PathBuf),
    /// On the hub.
    Hub(HubName),
    /// One of the names that Puna knows.
    Alias(&'static Alias),
}

/// `hf:ORG/REPO[@REV][:FILE]`; every part has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubName {
    /// `ORG/REPO`, or one word for the hub's oldest repositories.
    pub(crate) repo: String,
    /// Branch, tag or commit.
    pub(crate) revision: String,
    /// One file instead of the whole model.
    pub(crate) file: Option<String>,
}

/// The branch that a name without `@REV` means.
const DEFAULT_REVISION: &str = "main";
/// Bytes in the longest part of a name: what file systems allow, less room for an ending.
const MAX_PART: usize = 200;

impl FromStr for ModelName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(
                "the model's name is empty; give a folder, a file, hf:ORG/REPO or an alias"
                    .to_owned(),
            );
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return HubName::parse(rest).map(Self::Hub);
        }
        Ok(alias::find(text).map_or_else(|| Self::Path(PathBuf::from(text)), Self::Alias))
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Hub(hub) => hub.fmt(f),
            Self::Alias(alias) => f.write_str(alias.name),
        }
    }
}

impl HubName {
    fn parse(text: &str) -> Result<Self, String> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, DEFAULT_REVISION));
        let name = Self {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        };
        name.check()?;
        Ok(name)
    }

    /// The same model at another revision, or one file of it.
    pub(crate) fn with(&self, revision: Option<&str>, file: Option<&str>) -> Result<Self, String> {
        let name = Self {
            repo: self.repo.clone(),
            revision: revision.unwrap_or(&self.revision).to_owned(),
            file: file.map(str::to_owned).or_else(|| self.file.clone()),
        };
        name.check()?;
        Ok(name)
    }

    fn check(&self) -> Result<(), String> {
        let parts = self.repo.split('/').count();
        if parts > 2 || !is_safe_path(&self.repo) || self.repo.contains("--") {
            return Err(format!("'{}' is not a repository; write hf:ORG/REPO", self.repo));
        }
        if !is_safe_path(&self.revision) {
            return Err(format!(
                "'{}' is not a revision; give a branch, a tag or a commit",
                self.revision
            ));
        }
        match &self.file {
            Some(file) if !is_safe_path(file) => {
                Err(format!("'{file}' is not the name of a file in a repository"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if self.revision != DEFAULT_REVISION {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

/// Whether `path` is relative, stays below where it starts, and holds only characters that mean
/// nothing to a file system or an address.
pub(crate) fn is_safe_path(path: &str) -> bool {
    path.split('/').all(|part| {
        !part.is_empty()
            && part.len() <= MAX_PART
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+=".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: &str, file: Option<&str>) -> ModelName {
        ModelName::Hub(HubName {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!("hf:a/b".parse(), Ok(hub("a/b", "main", None)));
        assert_eq!("hf:a/b@refs/pr/1".parse(), Ok(hub("a/b", "refs/pr/1", None)));
        assert_eq!("hf:a/b:x.gguf".parse(), Ok(hub("a/b", "main", Some("x.gguf"))));
        assert_eq!("hf:a/b@v1.0:q/x.gguf".parse(), Ok(hub("a/b", "v1.0", Some("q/x.gguf"))));
        assert_eq!("hf:gpt".parse(), Ok(hub("gpt", "main", None)));
        assert!(matches!("smollm2".parse(), Ok(ModelName::Alias(_))));
        assert_eq!("./smollm2".parse(), Ok(ModelName::Path("./smollm2".into())));
        assert_eq!("a/b".parse(), Ok(ModelName::Path("a/b".into())));
    }

    #[test]
    fn names_that_climb_are_refused() {
        for name in [
            "",
            "hf:",
            "hf:..",
            "hf:../x",
            "hf:a/..",
            "hf:a/b/c",
            "hf:/a",
            "hf:a/",
            "hf:a/b@",
            "hf:a/b@..",
            "hf:a/b@x/../y",
            "hf:a/b:",
            "hf:a/b:/etc/passwd",
            "hf:a/b:../../x",
            "hf:a/b:x/./y",
            "hf:a/b:.ssh",
            "hf:a/b:x\\..\\y",
            "hf:a/b:x\0",
            "hf:a/b:x\ny",
            "hf:a/b%2e%2e",
            "hf:a b/c",
            "hf:a--b/c",
        ] {
            assert!(name.parse::<ModelName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_name_prints_as_it_is_written() {
        for name in ["hf:a/b", "hf:a/b@v1", "hf:a/b:x.gguf", "hf:a/b@v1:x.gguf"] {
            match name.parse() {
                Ok(ModelName::Hub(hub)) => assert_eq!(hub.to_string(), name),
                other => panic!("{other:?}"),
            }
        }
    }
}
