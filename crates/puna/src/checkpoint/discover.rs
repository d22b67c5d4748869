//! Which file of a folder holds the weights: a folder, and what the caller wants of it, enter; a
//! file and its kind leave. The order is that of Transformers: `model.safetensors`, its index,
//! `pytorch_model.bin`, its index. A folder without any may hold one `.gguf`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::SourceKind;
use super::error::{CheckpointError, Fault, Shown};
use super::reader::read_text;
use crate::config::LlamaConfig;

/// Longest `adapter_config.json`; usual ones have 1 kB.
const MAX_ADAPTER_CONFIG: u64 = 1 << 20;

/// How [`Checkpoint::open_with`](super::Checkpoint::open_with) reads a path.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Folder inside of the path.
    pub subfolder: Option<String>,
    /// `fp16` takes `model.fp16.safetensors`.
    pub variant: Option<String>,
    /// True takes no `.bin` file, false no `.safetensors`.
    pub use_safetensors: Option<bool>,
    /// A GGUF file inside of the folder.
    pub gguf_file: Option<String>,
    /// In place of the folder's `config.json`.
    pub config: Option<LlamaConfig>,
}

/// `model.safetensors` to `model.fp16.safetensors`.
fn with_variant(name: &str, variant: Option<&str>) -> String {
    match (variant, name.rsplit_once('.')) {
        (Some(variant), Some((stem, extension))) => format!("{stem}.{variant}.{extension}"),
        _ => name.to_owned(),
    }
}

/// The weights of a folder.
pub(super) fn find_weights(
    folder: &Path,
    options: &OpenOptions,
) -> Result<(SourceKind, PathBuf), CheckpointError> {
    let named = |name| with_variant(name, options.variant.as_deref());
    for (name, kind) in [
        ("model.safetensors", SourceKind::Safetensors),
        ("model.safetensors.index.json", SourceKind::Safetensors),
        ("pytorch_model.bin", SourceKind::Torch),
        ("pytorch_model.bin.index.json", SourceKind::Torch),
    ] {
        let wanted = kind == SourceKind::Safetensors;
        if options.use_safetensors.is_some_and(|only| only != wanted) {
            continue;
        }
        let path = folder.join(named(name));
        if path.exists() {
            return Ok((kind, path));
        }
    }
    let ggufs = ggufs(folder)?;
    if let ([only], None, None) = (&*ggufs, options.use_safetensors, &options.variant) {
        return Ok((SourceKind::Gguf, only.clone()));
    }
    let names = match options.use_safetensors {
        Some(true) => named("model.safetensors"),
        _ => format!("{}, or {},", named("model.safetensors"), named("pytorch_model.bin")),
    };
    let mut what = format!("Error no file named {names} found in directory {}.", folder.display());
    if let Some(base) = base_model(folder)? {
        what = format!(
            "{} is an adapter of the model '{}' (adapter_config.json), and adapters are not loaded \
             yet: open '{}' for the model without it",
            folder.display(),
            Shown(&base),
            Shown(&base),
        );
    } else if ggufs.len() > 1 {
        what += " It holds several .gguf files; name one of them.";
    } else if folder.join("params.json").exists() {
        what += " It holds weights in Meta's layout; convert them first.";
    }
    Err(CheckpointError::new(folder, "", Fault::NotFound(what)))
}

fn ggufs(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let io = |error| CheckpointError::new(folder, "", Fault::Io(error));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The model that the folder's adapter is for, where the folder holds one.
fn base_model(folder: &Path) -> Result<Option<String>, CheckpointError> {
    let path = folder.join("adapter_config.json");
    let Some(text) = read_text(&path, MAX_ADAPTER_CONFIG)? else { return Ok(None) };
    let config: Value = serde_json::from_str(&text).map_err(|error| {
        let why = format!("is not JSON: {error}");
        CheckpointError::new(&path, "", Fault::Malformed(why))
    })?;
    let base = config.get("base_model_name_or_path").and_then(Value::as_str);
    Ok(Some(base.unwrap_or("that it was trained on").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(files: &[&str], options: &OpenOptions) -> Result<(SourceKind, String), String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), "{}").unwrap();
        }
        let place = folder.path().display().to_string();
        find_weights(folder.path(), options)
            .map(|(kind, path)| (kind, path.file_name().unwrap().to_str().unwrap().to_owned()))
            .map_err(|error| error.to_string().replace(&place, "X"))
    }

    #[test]
    fn files_are_looked_for_in_order() {
        let all = [
            "pytorch_model.bin.index.json",
            "pytorch_model.bin",
            "model.safetensors.index.json",
            "model.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.index.bf16.json",
            "only.gguf",
        ];
        let plain = OpenOptions::default();
        let name = |files: &[&str], options: &OpenOptions| find(files, options).unwrap().1;
        assert_eq!(name(&all, &plain), "model.safetensors");
        assert_eq!(name(&all[..3], &plain), "model.safetensors.index.json");
        assert_eq!(name(&all[..2], &plain), "pytorch_model.bin");
        assert_eq!(name(&all[6..], &plain), "only.gguf");
        let bin = OpenOptions { use_safetensors: Some(false), ..plain.clone() };
        assert_eq!(name(&all, &bin), "pytorch_model.bin");
        let fp16 = OpenOptions { variant: Some("fp16".to_owned()), ..plain.clone() };
        assert_eq!(name(&all, &fp16), "model.fp16.safetensors");
        let bf16 = OpenOptions { variant: Some("bf16".to_owned()), ..plain };
        assert_eq!(name(&all, &bf16), "model.safetensors.index.bf16.json");
    }

    #[test]
    fn an_empty_folder_is_refused_in_the_known_words() {
        let plain = OpenOptions::default();
        let known = "Error no file named model.safetensors, or pytorch_model.bin, found in \
                     directory X.";
        assert_eq!(find(&[], &plain).unwrap_err(), format!("X: {known}"));
        let safe = OpenOptions { use_safetensors: Some(true), ..plain.clone() };
        let known = "Error no file named model.safetensors found in directory X.";
        assert_eq!(find(&["pytorch_model.bin"], &safe).unwrap_err(), format!("X: {known}"));
        let fp16 = OpenOptions { variant: Some("fp16".to_owned()), ..plain.clone() };
        let known = "Error no file named model.fp16.safetensors, or pytorch_model.fp16.bin, found";
        assert!(find(&["model.safetensors"], &fp16).unwrap_err().contains(known));
    }

    #[test]
    fn an_adapter_names_its_base() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}"#;
        std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let error = find_weights(folder.path(), &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("an adapter of the model 'meta-llama/Llama-2-7b-hf'"), "{error}");
    }
}
