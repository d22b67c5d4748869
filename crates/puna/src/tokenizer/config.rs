//! What a folder says about its tokenizer beside the vocabulary: `tokenizer_config.json`,
//! `special_tokens_map.json`, `added_tokens.json`, `chat_template.jinja` enter, one
//! [`TokenizerConfig`] leaves.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::added::AddedToken;
use super::error::TokenizerError;

/// Larger than any such file; a bound on what is read into memory.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

/// The settings; `None` where the files are silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerConfig {
    /// Name of the class that wrote the folder.
    pub tokenizer_class: Option<String>,
    /// Chunks between added tokens get their own dummy prefix.
    pub legacy: Option<bool>,
    /// A space goes before the text.
    pub add_prefix_space: Option<bool>,
    /// Encoding starts with BOS.
    pub add_bos_token: Option<bool>,
    /// Encoding ends with EOS.
    pub add_eos_token: Option<bool>,
    /// Decoding removes the spaces before punctuation.
    pub clean_up_tokenization_spaces: Option<bool>,
    /// Added tokens in the text are plain text.
    pub split_special_tokens: Option<bool>,
    /// The default template of Llama 2 carries its safety prompt.
    pub use_default_system_prompt: Option<bool>,
    /// Longest input in tokens; the writer's "none" is 1e30.
    pub model_max_length: Option<f64>,
    /// Named tokens; `Some(None)` where the file says null.
    pub bos_token: Option<Option<AddedToken>>,
    /// See `bos_token`.
    pub eos_token: Option<Option<AddedToken>>,
    /// See `bos_token`.
    pub unk_token: Option<Option<AddedToken>>,
    /// See `bos_token`.
    pub pad_token: Option<Option<AddedToken>>,
    /// Further special tokens.
    pub additional_special_tokens: Vec<AddedToken>,
    /// Added tokens with the ids that the files give them, ascending.
    pub added_tokens: Vec<(u32, AddedToken)>,
    /// The chat template called `default`.
    pub chat_template: Option<String>,
    /// Chat templates by other names.
    pub named_chat_templates: Vec<(String, String)>,
}

/// Reads a file whole, if it is there and not absurdly large.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    // Asked by name first: opening a pipe would wait for its writer, and a device has no end.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => {
            let kind = std::io::ErrorKind::InvalidInput;
            return Err(TokenizerError::io(path, std::io::Error::new(kind, "not a regular file")));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TokenizerError::io(path, error)),
    }
    let file = File::open(path).map_err(|error| TokenizerError::io(path, error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| TokenizerError::io(path, error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let name = path.display().to_string();
        return Err(TokenizerError::malformed(
            &name,
            format!("longer than {MAX_FILE_BYTES} bytes"),
        ));
    }
    Ok(Some(bytes))
}

fn read_object(dir: &Path, name: &str) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let path = dir.join(name);
    let Some(bytes) = read_file(&path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(TokenizerError::malformed(&path.display().to_string(), "not a JSON object")),
        Err(error) => {
            Err(TokenizerError::malformed(&path.display().to_string(), error.to_string()))
        }
    }
}

impl TokenizerConfig {
    /// Reads what is there of a folder's settings; an empty folder gives the default.
    ///
    /// # Errors
    /// Where a file is there and cannot be understood.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let map = read_object(dir, "tokenizer_config.json")?.unwrap_or_default();
        let is_modern = map.contains_key("added_tokens_decoder");
        let name = dir.join("tokenizer_config.json").display().to_string();
        let mut config = Self::from_json(&map, &name)?;
        // Files from before 4.34 keep their tokens in two more files.
        if !is_modern {
            if let Some(map) = read_object(dir, "special_tokens_map.json")? {
                config.read_special_tokens(&map);
            }
            if let Some(map) = read_object(dir, "added_tokens.json")? {
                let name = dir.join("added_tokens.json").display().to_string();
                config.read_added_tokens(&map, &name)?;
            }
        }
        let path = dir.join("chat_template.jinja");
        if let Some(bytes) = read_file(&path)? {
            let name = path.display().to_string();
            let text = String::from_utf8(bytes)
                .map_err(|_| TokenizerError::malformed(&name, "not UTF-8"))?;
            config.chat_template = Some(text);
        }
        Ok(config)
    }

    /// Reads the object of a `tokenizer_config.json`; `file` names it in errors.
    ///
    /// # Errors
    /// Where `added_tokens_decoder` or `chat_template` has a shape that means nothing.
    pub fn from_json(map: &Map<String, Value>, file: &str) -> Result<Self, TokenizerError> {
        let flag = |name: &str| map.get(name).and_then(Value::as_bool);
        let mut config = Self {
            tokenizer_class: map.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned),
            legacy: flag("legacy"),
            add_prefix_space: flag("add_prefix_space"),
            add_bos_token: flag("add_bos_token"),
            add_eos_token: flag("add_eos_token"),
            clean_up_tokenization_spaces: flag("clean_up_tokenization_spaces"),
            split_special_tokens: flag("split_special_tokens"),
            use_default_system_prompt: flag("use_default_system_prompt"),
            model_max_length: map.get("model_max_length").and_then(Value::as_f64),
            ..Self::default()
        };
        config.read_special_tokens(map);
        if let Some(tokens) = map.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in tokens {
                let field = || format!("added_tokens_decoder[{id:?}]");
                let id: u32 = id.parse().map_err(|_| {
                    TokenizerError::malformed(file, format!("{} is not an id", field()))
                })?;
                let token = AddedToken::from_json(token, false).ok_or_else(|| {
                    TokenizerError::malformed(file, format!("{} has no content", field()))
                })?;
                config.added_tokens.push((id, token));
            }
            config.added_tokens.sort_by_key(|(id, _)| *id);
        }
        config.read_chat_template(map, file)?;
        Ok(config)
    }

    fn read_special_tokens(&mut self, map: &Map<String, Value>) {
        let named = |name: &str| map.get(name).map(|value| AddedToken::from_json(value, true));
        for (slot, name) in [
            (&mut self.bos_token, "bos_token"),
            (&mut self.eos_token, "eos_token"),
            (&mut self.unk_token, "unk_token"),
            (&mut self.pad_token, "pad_token"),
        ] {
            if let Some(mut token) = named(name) {
                if let Some(token) = &mut token {
                    token.special = true;
                }
                *slot = Some(token);
            }
        }
        if let Some(tokens) = map.get("additional_special_tokens").and_then(Value::as_array) {
            let tokens = tokens.iter().filter_map(|value| AddedToken::from_json(value, true));
            self.additional_special_tokens = tokens.collect();
        }
    }

    fn read_added_tokens(
        &mut self,
        map: &Map<String, Value>,
        file: &str,
    ) -> Result<(), TokenizerError> {
        for (content, id) in map {
            let id = id
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| TokenizerError::malformed(file, format!("{content:?} has no id")))?;
            let named = [&self.bos_token, &self.eos_token, &self.unk_token, &self.pad_token];
            let known =
                named.into_iter().flatten().flatten().chain(&self.additional_special_tokens);
            let token = known.into_iter().find(|token| &token.content == content).cloned();
            let token = token.unwrap_or_else(|| AddedToken::new(content.as_str(), false));
            self.added_tokens.push((id, token));
        }
        self.added_tokens.sort_by_key(|(id, _)| *id);
        Ok(())
    }

    fn read_chat_template(
        &mut self,
        map: &Map<String, Value>,
        file: &str,
    ) -> Result<(), TokenizerError> {
        match map.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => self.chat_template = Some(text.clone()),
            Some(Value::Array(list)) => {
                for (index, entry) in list.iter().enumerate() {
                    let field = |name: &str| entry.get(name).and_then(Value::as_str);
                    let (Some(name), Some(text)) = (field("name"), field("template")) else {
                        let what = format!("chat_template[{index}] needs a name and a template");
                        return Err(TokenizerError::malformed(file, what));
                    };
                    if name == "default" {
                        self.chat_template = Some(text.to_owned());
                    } else {
                        self.named_chat_templates.push((name.to_owned(), text.to_owned()));
                    }
                }
            }
            Some(_) => {
                let what = "chat_template is neither a string nor a list";
                return Err(TokenizerError::malformed(file, what));
            }
        }
        Ok(())
    }

    /// Content of a named token, with the class's default where the files are silent.
    pub(super) fn name_of(
        token: &Option<Option<AddedToken>>,
        default: Option<&str>,
    ) -> Option<AddedToken> {
        match token {
            Some(token) => token.clone(),
            None => default.map(|content| AddedToken::new(content, true)),
        }
    }
}
