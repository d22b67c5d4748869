//! Models in several files: an index (`{"weight_map": {tensor: file}}`) enters, the tensors of all
//! its files leave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::TensorMap;
use super::error::{CheckpointError, Fault};
use super::reader::read_text;

/// Longest index; that of a model of 405 billion weights has 120 kB.
const MAX_INDEX: u64 = 16 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads the index and, with `open`, each file that it names.
pub(super) fn open(
    index: &Path,
    open: fn(&Path) -> Result<TensorMap, CheckpointError>,
) -> Result<TensorMap, CheckpointError> {
    let error = |field: &str, fault| CheckpointError::new(index, field, fault);
    let Some(text) = read_text(index, MAX_INDEX)? else {
        return Err(error("", Fault::NotFound("there is no such index".to_owned())));
    };
    let parsed: Index = serde_json::from_str(&text).map_err(|e| {
        error("weight_map", Fault::Malformed(format!("the index is not what it should be: {e}")))
    })?;
    let folder = index.parent().unwrap_or(Path::new(""));
    let mut tensors = TensorMap::new();
    for shard in parsed.weight_map.values().collect::<BTreeSet<_>>() {
        if !is_file_name(shard) {
            let why = format!("'{shard:.80}' is not the name of a file beside the index");
            return Err(error("weight_map", Fault::Malformed(why)));
        }
        let path = folder.join(shard);
        if !path.exists() {
            return Err(error("weight_map", Fault::MissingShard(shard.clone())));
        }
        for (name, tensor) in open(&path)? {
            if tensors.contains_key(&name) {
                return Err(CheckpointError::new(&path, name, Fault::Duplicate));
            }
            tensors.insert(name, tensor);
        }
    }
    let absent: Vec<String> =
        parsed.weight_map.into_keys().filter(|name| !tensors.contains_key(name)).collect();
    if !absent.is_empty() {
        return Err(error("weight_map", Fault::MissingTensors(absent)));
    }
    Ok(tensors)
}

/// Whether `name` stays inside the folder.
fn is_file_name(name: &str) -> bool {
    let plain = !name.is_empty() && name != "." && name != "..";
    plain && !name.contains(['/', '\\', '\0', ':'])
}
