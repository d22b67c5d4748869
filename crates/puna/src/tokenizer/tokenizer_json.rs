//! `tokenizer.json` enters, the checked parts of a fast tokenizer leave.
//!
//! Only what LLaMA-family files use is accepted; anything else is named in an error, so that no
//! text is ever cut differently from what the file says.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokenizers::NormalizerWrapper;
use tokenizers::SplitDelimiterBehavior;
use tokenizers::normalizers::{Replace, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::added::AddedToken;
use super::error::TokenizerError;
use super::fast_decode::DecoderPlan;
use super::splitter::{self, Splitter, Step};

/// Sequences inside sequences; the files have one level.
const MAX_DEPTH: usize = 8;

/// Everything that makes a fast tokenizer.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) splitter: Splitter,
    pub(super) decoder: Option<DecoderPlan>,
    pub(super) template: Template,
    /// With the id that the file gives each, ascending.
    pub(super) added: Vec<(u32, AddedToken)>,
}

/// What goes around one sequence, and around two.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template {
    pub(super) single: Vec<TemplatePart>,
    pub(super) pair: Vec<TemplatePart>,
}

/// A part of a template, with the type id of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TemplatePart {
    /// The first or the second sequence.
    Sequence { second: bool, type_id: u32 },
    /// Fixed tokens.
    Special { ids: Vec<u32>, type_id: u32 },
}

impl Default for Template {
    fn default() -> Self {
        let first = TemplatePart::Sequence { second: false, type_id: 0 };
        let second = TemplatePart::Sequence { second: true, type_id: 1 };
        Self { single: vec![first.clone()], pair: vec![first, second] }
    }
}

#[derive(Deserialize)]
struct JsonFile {
    #[serde(default)]
    added_tokens: Vec<Value>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: JsonModel,
}

#[derive(Deserialize)]
struct JsonModel {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    /// A list of pairs for models other than BPE, so it is read only once the kind is known.
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
}

/// `["a", "b"]`, or `"a b"` in older files.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a merge: two strings, or one with a space between them")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
        split_merge(text)
            .map(|(left, right)| Merge(left.to_owned(), right.to_owned()))
            .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
        let (left, right) = (list.next_element()?, list.next_element()?);
        match (left, right, list.next_element::<Value>()?) {
            (Some(left), Some(right), None) => Ok(Merge(left, right)),
            _ => Err(A::Error::invalid_length(2, &self)),
        }
    }
}

/// Both sides of `"a b"`; neither holds a space.
pub(super) fn split_merge(text: &str) -> Option<(&str, &str)> {
    text.split_once(' ').filter(|(_, right)| !right.contains(' '))
}

/// Reads the bytes of a `tokenizer.json`; `file` names it in errors.
pub(super) fn parse(bytes: &[u8], file: &str) -> Result<Parts, TokenizerError> {
    let json: JsonFile = serde_json::from_slice(bytes)
        .map_err(|error| TokenizerError::malformed(file, error.to_string()))?;
    let model = json.model;
    check_model(&model, file)?;
    let vocab = serde_json::from_value(model.vocab)
        .map_err(|error| TokenizerError::malformed(file, format!("model.vocab: {error}")))?;
    let mut splitter = Splitter::default();
    add_steps(&json.pre_tokenizer, &mut splitter.steps, file, 0)?;
    Ok(Parts {
        vocab,
        merges: model.merges.into_iter().map(|Merge(left, right)| (left, right)).collect(),
        unk_token: model.unk_token,
        fuse_unk: model.fuse_unk,
        byte_fallback: model.byte_fallback,
        ignore_merges: model.ignore_merges,
        normalizer: normalizer(&json.normalizer, file, 0)?,
        splitter,
        decoder: Some(DecoderPlan::from_json(&json.decoder, file)?),
        template: template(&json.post_processor, file)?.unwrap_or_default(),
        added: added_tokens(&json.added_tokens, file)?,
    })
}

fn check_model(model: &JsonModel, file: &str) -> Result<(), TokenizerError> {
    let unsupported = |what: String| {
        let hint = "LLaMA's tokenizer.json holds a BPE model";
        Err(TokenizerError::unsupported(file, what, hint))
    };
    match model.kind.as_deref() {
        Some("BPE") => {}
        None if !model.merges.is_empty() => {}
        kind => return unsupported(format!("model.type {kind:?}")),
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return unsupported("model.dropout (random merges)".to_owned());
    }
    for (name, affix) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
            return unsupported(format!("model.{name} {affix:?}"));
        }
    }
    Ok(())
}

fn added_tokens(list: &[Value], file: &str) -> Result<Vec<(u32, AddedToken)>, TokenizerError> {
    let mut added = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let id = value.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let (Some(id), Some(token)) = (id, AddedToken::from_json(value, false)) else {
            let what = format!("added_tokens[{index}] needs an id and a content");
            return Err(TokenizerError::malformed(file, what));
        };
        added.push((id, token));
    }
    added.sort_by_key(|(id, _)| *id);
    Ok(added)
}

fn kind_of<'v>(value: &'v Value, field: &str, file: &str) -> Result<&'v str, TokenizerError> {
    let kind = value.get("type").and_then(Value::as_str);
    kind.ok_or_else(|| TokenizerError::malformed(file, format!("{field} has no type")))
}

fn list_of<'v>(value: &'v Value, name: &str, file: &str) -> Result<&'v [Value], TokenizerError> {
    let list = value.get(name).and_then(Value::as_array);
    list.map(Vec::as_slice)
        .ok_or_else(|| TokenizerError::malformed(file, format!("{name} is no list")))
}

fn check_depth(depth: usize, file: &str) -> Result<(), TokenizerError> {
    if depth > MAX_DEPTH {
        return Err(TokenizerError::malformed(file, "sequences nest too deeply"));
    }
    Ok(())
}

fn normalizer(
    value: &Value,
    file: &str,
    depth: usize,
) -> Result<Option<NormalizerWrapper>, TokenizerError> {
    check_depth(depth, file)?;
    if value.is_null() {
        return Ok(None);
    }
    let hint = "LLaMA's normalizers are Prepend, Replace of a string, and Unicode forms";
    let unsupported = |what: String| TokenizerError::unsupported(file, what, hint);
    match kind_of(value, "normalizer", file)? {
        "Sequence" => {
            let mut steps = Vec::new();
            for step in list_of(value, "normalizers", file)? {
                steps.extend(normalizer(step, file, depth + 1)?);
            }
            Ok(Some(Sequence::new(steps).into()))
        }
        "Replace" => {
            let pattern = value.pointer("/pattern/String").and_then(Value::as_str);
            let content = value.get("content").and_then(Value::as_str);
            match (pattern.filter(|pattern| !pattern.is_empty()), content) {
                (Some(pattern), Some(content)) => Replace::new(pattern, content)
                    .map(|replace| Some(replace.into()))
                    .map_err(|error| TokenizerError::malformed(file, error.to_string())),
                _ => Err(unsupported("normalizer Replace of an expression".to_owned())),
            }
        }
        "Prepend" | "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "StripAccents" | "Strip" => {
            serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| TokenizerError::malformed(file, format!("normalizer: {error}")))
        }
        kind => Err(unsupported(format!("normalizer {kind}"))),
    }
}

fn add_steps(
    value: &Value,
    steps: &mut Vec<Step>,
    file: &str,
    depth: usize,
) -> Result<(), TokenizerError> {
    check_depth(depth, file)?;
    if value.is_null() {
        return Ok(());
    }
    match kind_of(value, "pre_tokenizer", file)? {
        "Sequence" => {
            for step in list_of(value, "pretokenizers", file)? {
                add_steps(step, steps, file, depth + 1)?;
            }
        }
        "Split" => steps.push(split(value, file)?),
        "ByteLevel" => {
            let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(true);
            add_byte_level(steps, flag("add_prefix_space"), flag("use_regex"));
        }
        "Metaspace" | "Digits" | "Whitespace" | "WhitespaceSplit" | "Punctuation" => {
            let step: PreTokenizerWrapper = serde_json::from_value(value.clone())
                .map_err(|e| TokenizerError::malformed(file, format!("pre_tokenizer: {e}")))?;
            steps.push(Step::Library(Box::new(step)));
        }
        kind => {
            let hint = "LLaMA's pre-tokenizers are Split, ByteLevel, Metaspace and Digits";
            return Err(TokenizerError::unsupported(file, format!("pre_tokenizer {kind}"), hint));
        }
    }
    Ok(())
}

/// The steps of a `ByteLevel` pre-tokenizer, its own pattern apart.
pub(super) fn add_byte_level(steps: &mut Vec<Step>, prefix_space: bool, use_regex: bool) {
    if prefix_space {
        steps.push(Step::PrefixSpace);
    }
    if use_regex {
        steps.push(Step::Gpt2);
    }
    steps.push(Step::Library(Box::new(ByteLevel::new(false, true, false).into())));
}

fn split(value: &Value, file: &str) -> Result<Step, TokenizerError> {
    let malformed = |what: &str| TokenizerError::malformed(file, format!("Split: {what}"));
    let pattern = match value.get("pattern").and_then(Value::as_object) {
        Some(pattern) => match (pattern.get("Regex"), pattern.get("String")) {
            (Some(Value::String(regex)), None) => regex.clone(),
            (None, Some(Value::String(text))) => fancy_regex::escape(text).into_owned(),
            _ => return Err(malformed("pattern is neither Regex nor String")),
        },
        None => return Err(malformed("no pattern")),
    };
    let behavior = value.get("behavior").cloned().unwrap_or_default();
    let behavior: SplitDelimiterBehavior =
        serde_json::from_value(behavior).map_err(|error| malformed(&error.to_string()))?;
    let invert = value.get("invert").and_then(Value::as_bool).unwrap_or(false);
    splitter::step(&pattern, behavior, invert, file)
}

/// The template of the post-processor; `None` where there is none.
fn template(value: &Value, file: &str) -> Result<Option<Template>, TokenizerError> {
    if value.is_null() {
        return Ok(None);
    }
    match kind_of(value, "post_processor", file)? {
        "TemplateProcessing" => Ok(Some(Template {
            single: template_parts(value, "single", file)?,
            pair: template_parts(value, "pair", file)?,
        })),
        // It only moves offsets.
        "ByteLevel" => Ok(None),
        "Sequence" => {
            let mut found = None;
            for step in list_of(value, "processors", file)? {
                let kind = kind_of(step, "post_processor", file)?;
                if kind == "Sequence" || (found.is_some() && kind == "TemplateProcessing") {
                    return Err(unsupported_processor("a second template", file));
                }
                found = template(step, file)?.or(found);
            }
            Ok(found)
        }
        kind => Err(unsupported_processor(kind, file)),
    }
}

fn unsupported_processor(kind: &str, file: &str) -> TokenizerError {
    let hint = "LLaMA's post-processors are one TemplateProcessing, and ByteLevel";
    TokenizerError::unsupported(file, format!("post_processor {kind}"), hint)
}

fn template_parts(
    value: &Value,
    name: &str,
    file: &str,
) -> Result<Vec<TemplatePart>, TokenizerError> {
    let mut parts = Vec::new();
    for (index, part) in list_of(value, name, file)?.iter().enumerate() {
        let malformed =
            |what: &str| TokenizerError::malformed(file, format!("{name}[{index}]: {what}"));
        let (body, is_sequence) = match (part.get("Sequence"), part.get("SpecialToken")) {
            (Some(body), None) => (body, true),
            (None, Some(body)) => (body, false),
            _ => return Err(malformed("neither Sequence nor SpecialToken")),
        };
        let type_id = body.get("type_id").and_then(Value::as_u64).unwrap_or(0);
        let type_id = u32::try_from(type_id).map_err(|_| malformed("type_id is too large"))?;
        let id = body.get("id").and_then(Value::as_str).unwrap_or_default();
        parts.push(match (is_sequence, id) {
            (true, "A") => TemplatePart::Sequence { second: false, type_id },
            (true, "B") => TemplatePart::Sequence { second: true, type_id },
            (true, _) => return Err(malformed("the sequence is neither A nor B")),
            (false, token) => {
                let ids = value.get("special_tokens").and_then(|tokens| tokens.get(token));
                let ids = ids.and_then(|entry| entry.get("ids")).cloned().unwrap_or_default();
                let ids = serde_json::from_value(ids)
                    .map_err(|_| malformed(&format!("special_tokens has no ids of {token:?}")))?;
                TemplatePart::Special { ids, type_id }
            }
        });
    }
    Ok(parts)
}
