//! Encoding of the fast class by our own merging: text enters, ids leave, as the `tokenizers` crate
//! would give them.
//!
//! It serves the two kinds of file that LLaMA has: characters with byte tokens for the rest, spaces
//! as U+2581 (LLaMA 1 and 2), and bytes behind a splitting pattern (Llama 3). A file of another
//! kind, and a text that holds an added token with flags, are left to the crate.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{AddedVocabulary as LibraryVocabulary, NormalizerWrapper};

use super::SPACE_MARK;
use super::added::{AddedToken, AddedVocabulary};
use super::bpe::{Merge, NO_SYMBOL, SeededState};
use super::byte_bpe::ByteBpe;
use super::char_bpe::{CharBpe, CharBpeParts, CharMerge, Scratch, Unknown, WINDOW};
use super::error::TokenizerError;
use super::fast_decode::{byte_of_char, char_of_byte};
use super::piece_decoder::byte_of;
use super::splitter::{self, Splitter, Step};
use super::tokenizer_json::Parts;

/// Ids from here on mark symbols that are no tokens.
const MAX_IDS: u32 = 1 << 30;

/// Where a part of the text gets a space before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefix {
    Never,
    Always,
    /// Unless it starts with one.
    Missing,
    /// Unless it starts with one or does not start the text.
    MissingFirst,
}

#[derive(Debug)]
enum Model {
    Characters { bpe: Box<CharBpe>, prefix: Prefix },
    Bytes { bpe: Box<ByteBpe>, splitter: Arc<Splitter> },
}

/// A vocabulary with its added tokens.
#[derive(Clone, Debug)]
pub(super) struct FastEncoder {
    model: Arc<Model>,
    /// Tokens that are cut from the text as they are.
    added: AddedVocabulary,
    /// Those that take more than a search: flags, or the normalised text.
    flagged: AddedVocabulary,
    normalized: AddedVocabulary,
}

impl FastEncoder {
    /// `None` for a file of another kind than these two. O(l²) for a token of l characters.
    pub(super) fn new(parts: &Parts, splitter: &Arc<Splitter>) -> Option<Self> {
        let vocabulary = Vocabulary::new(parts)?;
        let model = match characters_prefix(parts.normalizer.as_ref(), splitter) {
            Some((prefix, splits)) => {
                let bpe = Box::new(vocabulary.characters(parts, splits)?);
                Model::Characters { bpe, prefix }
            }
            None if parts.normalizer.is_none() => {
                splitter.plain_steps()?;
                Model::Bytes { bpe: Box::new(vocabulary.bytes(parts)?), splitter: splitter.clone() }
            }
            None => return None,
        };
        Some(Self {
            model: Arc::new(model),
            added: AddedVocabulary::default(),
            flagged: AddedVocabulary::default(),
            normalized: AddedVocabulary::default(),
        })
    }

    /// Takes the added tokens as the library now has them.
    pub(super) fn set_added(&mut self, library: &LibraryVocabulary) {
        let empty = AddedVocabulary::default;
        (self.added, self.flagged, self.normalized) = (empty(), empty(), empty());
        for (&id, token) in library.get_added_tokens_decoder() {
            let mut text = token.content.clone();
            let has_flags = token.single_word || token.lstrip || token.rstrip;
            let list = if token.normalized {
                let normal = library.simple_id_to_token(id).unwrap_or_default();
                text = self.inner(&normal);
                &mut self.normalized
            } else if has_flags {
                &mut self.flagged
            } else {
                &mut self.added
            };
            list.insert(id, AddedToken::new(text, library.is_special_token(&token.content)));
        }
    }

    /// The form in which the model sees text: one character for a space and its mark.
    fn inner(&self, text: &str) -> String {
        match &*self.model {
            Model::Characters { .. } => text.replace(SPACE_MARK, " "),
            Model::Bytes { .. } => text.to_owned(),
        }
    }

    /// Appends the ids of `text`; with `literal`, special tokens in it are plain text. False where
    /// the text must go to the crate; `ids` is then as it was.
    ///
    /// # Errors
    /// Where the file's pattern needs too many steps for this text.
    pub(super) fn encode(
        &self,
        text: &str,
        literal: bool,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<bool, TokenizerError> {
        if self.flagged.occurs_in(text) {
            return Ok(false);
        }
        let before = ids.len();
        let (mut begin, mut from) = (0, 0);
        loop {
            let found = self.added.find(text, from);
            let (stop, next) = found.unwrap_or((text.len(), text.len()));
            let token = found.and_then(|_| self.added.id_of(&text[stop..next]));
            let is_text = |id: u32| literal && self.added.get(id).is_some_and(|t| t.special);
            from = next;
            if token.is_some_and(is_text) {
                continue;
            }
            if begin < stop && !self.encode_part(text, (begin, stop), scratch, ids)? {
                ids.truncate(before);
                return Ok(false);
            }
            ids.extend(token);
            begin = next;
            if found.is_none() {
                return Ok(true);
            }
        }
    }

    /// Encodes `text[begin..end]`, which is not empty and holds no added token.
    fn encode_part(
        &self,
        text: &str,
        (begin, end): (usize, usize),
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<bool, TokenizerError> {
        let part = &text[begin..end];
        scratch.text.clear();
        scratch.text.reserve(part.len() + 1 + WINDOW.len());
        let starts_with_space = part.starts_with([' ', SPACE_MARK]);
        let prefixed = match &*self.model {
            Model::Characters { prefix, .. } => match prefix {
                Prefix::Never => false,
                Prefix::Always => true,
                Prefix::Missing => !starts_with_space,
                Prefix::MissingFirst => !starts_with_space && begin == 0,
            },
            Model::Bytes { splitter, .. } => {
                matches!(splitter.steps.first(), Some(Step::PrefixSpace)) && !part.starts_with(' ')
            }
        };
        if prefixed {
            scratch.text.push(' ');
        }
        scratch.text.push_str(part);
        match &*self.model {
            Model::Characters { bpe, .. } => {
                if part.contains(SPACE_MARK) {
                    scratch.text = scratch.text.replace(SPACE_MARK, " ");
                }
                if self.normalized.occurs_in(&scratch.text) {
                    return Ok(false);
                }
                bpe.encode(scratch, ids);
            }
            Model::Bytes { bpe, splitter } => {
                if self.normalized.occurs_in(part) {
                    return Ok(false);
                }
                encode_bytes(bpe, splitter, scratch, ids)?;
            }
        }
        Ok(true)
    }
}

fn encode_bytes(
    bpe: &ByteBpe,
    splitter: &Splitter,
    scratch: &mut Scratch,
    ids: &mut Vec<u32>,
) -> Result<(), TokenizerError> {
    let Scratch { text, symbols, cache } = scratch;
    let end = text.len();
    text.push_str(WINDOW);
    bpe.claim(cache);
    let bytes = text.as_bytes();
    let mut word = |from: usize, to: usize| {
        bpe.encode(&bytes[from..], to - from, symbols, cache, ids);
    };
    splitter::cut(splitter.plain_steps().unwrap_or_default(), text, (0, end), &mut word)
}

/// The rule for spaces, and whether each U+2581 begins a word, where the file writes spaces as
/// U+2581 and does nothing else to the text.
fn characters_prefix(
    normalizer: Option<&NormalizerWrapper>,
    splitter: &Splitter,
) -> Option<(Prefix, bool)> {
    match (normalizer, splitter.steps.as_slice()) {
        (Some(normalizer), []) => {
            let value = serde_json::to_value(normalizer).ok()?;
            let steps = match value.get("normalizers").and_then(Value::as_array) {
                Some(steps) => steps.as_slice(),
                None => std::slice::from_ref(&value),
            };
            let kind = |step: &Value| step.get("type").and_then(Value::as_str).map(str::to_owned);
            let is = |step: &Value, pointer: &str, text: &str| {
                step.pointer(pointer).and_then(Value::as_str) == Some(text)
            };
            let replaces = |step: &Value| {
                kind(step).as_deref() == Some("Replace")
                    && is(step, "/pattern/String", " ")
                    && is(step, "/content", "\u{2581}")
            };
            let prepends = |step: &Value| {
                kind(step).as_deref() == Some("Prepend") && is(step, "/prepend", "\u{2581}")
            };
            match steps {
                [replace] if replaces(replace) => Some((Prefix::Never, false)),
                [a, b] if (prepends(a) && replaces(b)) || (replaces(a) && prepends(b)) => {
                    Some((Prefix::Always, false))
                }
                _ => None,
            }
        }
        (None, [Step::Library(library)]) => match &**library {
            PreTokenizerWrapper::Metaspace(step) if step.get_replacement() == SPACE_MARK => {
                let prefix = match step.get_prepend_scheme() {
                    PrependScheme::First => Prefix::MissingFirst,
                    PrependScheme::Never => Prefix::Never,
                    PrependScheme::Always => Prefix::Missing,
                };
                Some((prefix, step.get_split()))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A merge of a file by ids, with the texts of both sides.
struct TextMerge<'p> {
    merge: Merge,
    left: &'p str,
    right: &'p str,
}

/// The tokens and merges of a file, by id.
struct Vocabulary<'p> {
    vocab: &'p HashMap<String, u32>,
    n_tokens: u32,
    merges: Vec<TextMerge<'p>>,
}

impl<'p> Vocabulary<'p> {
    /// `None` where an id stands for two texts, or a merge has an empty side.
    fn new(parts: &'p Parts) -> Option<Self> {
        let vocab = &parts.vocab;
        let mut seen: Vec<u32> = vocab.values().copied().collect();
        seen.sort_unstable();
        let n_tokens = seen.last()?.checked_add(1).filter(|&n| n < MAX_IDS)?;
        if seen.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        // Of a pair that is there twice, the crate keeps the last.
        let mut merges: HashMap<(u32, u32), TextMerge<'p>, SeededState> = HashMap::default();
        let mut whole = String::new();
        for (rank, (left, right)) in parts.merges.iter().enumerate() {
            if left.is_empty() || right.is_empty() {
                return None;
            }
            whole.clear();
            whole.extend([left.as_str(), right.as_str()]);
            let merge = Merge {
                left: *vocab.get(left)?,
                right: *vocab.get(right)?,
                rank: u32::try_from(rank).ok()?,
                merged: *vocab.get(&whole)?,
            };
            merges.insert((merge.left, merge.right), TextMerge { merge, left, right });
        }
        Some(Self { vocab, n_tokens, merges: merges.into_values().collect() })
    }

    fn byte_tokens(&self) -> Option<Box<[u32; 256]>> {
        let mut ids = Box::new([0; 256]);
        for (byte, slot) in ids.iter_mut().enumerate() {
            *slot = *self.vocab.get(&format!("<0x{byte:02X}>"))?;
        }
        Some(ids)
    }

    /// Characters; `splits` cuts before each U+2581.
    fn characters(&self, parts: &Parts, splits: bool) -> Option<CharBpe> {
        let byte_ids = self.byte_tokens().filter(|_| parts.byte_fallback)?;
        if parts.ignore_merges {
            return None;
        }
        // Spaces of the text are U+2581, so tokens with a space never occur, and there U+2581 may be
        // written as a space.
        let inner = |c: char| if c == SPACE_MARK { ' ' } else { c };
        let mut merges = Vec::with_capacity(self.merges.len());
        let mut whole = String::new();
        for TextMerge { merge, left, right } in &self.merges {
            // A byte token is a symbol, and must not merge for parts of a text to stand alone.
            whole.clear();
            whole.extend([*left, *right]);
            if [*left, *right, &whole].into_iter().any(|text| byte_of(text).is_some()) {
                return None;
            }
            let seam = (left.chars().next_back()?, right.chars().next()?);
            if whole.contains(' ') || (splits && seam.1 == SPACE_MARK) {
                continue;
            }
            merges.push(CharMerge { merge: *merge, seam: (inner(seam.0), inner(seam.1)) });
        }
        let tokens = self.vocab.iter().filter(|(text, _)| !text.contains(' '));
        let words: Vec<(String, u32)> =
            tokens.map(|(text, &id)| (text.chars().map(inner).collect(), id)).collect();
        let letter = |(text, id): &(String, u32)| {
            let mut characters = text.chars();
            characters.next().filter(|_| characters.next().is_none()).map(|c| (c, *id))
        };
        let parts = CharBpeParts {
            n_tokens: self.n_tokens,
            letters: words.iter().filter_map(letter).collect(),
            merges,
            unknown: Unknown {
                byte_ids: Some(byte_ids),
                space_is_mark: true,
                ..Unknown::default()
            },
            ..CharBpeParts::default()
        };
        Some(CharBpe::new(parts, words.iter().map(|(text, id)| (text.as_str(), *id))))
    }

    /// Bytes, each written as the character that stands for it.
    fn bytes(&self, parts: &Parts) -> Option<ByteBpe> {
        let mut bytes = Box::new([NO_SYMBOL; 256]);
        for (byte, slot) in (0..=255).zip(bytes.iter_mut()) {
            let token = self.vocab.get(char_of_byte(byte).encode_utf8(&mut [0; 4]));
            *slot = token.copied().unwrap_or(NO_SYMBOL);
        }
        // Without an unknown token and byte tokens, a byte that is no token leaves no trace.
        let drops = parts.unk_token.is_none() && !parts.byte_fallback;
        if !drops && bytes.contains(&NO_SYMBOL) {
            return None;
        }
        let bytes_of = |(text, &id): (&String, &u32)| {
            text.chars().map(byte_of_char).collect::<Option<Vec<u8>>>().map(|bytes| (bytes, id))
        };
        let words: Vec<(Vec<u8>, u32)> = self.vocab.iter().filter_map(bytes_of).collect();
        let merges: Vec<Merge> = self.merges.iter().map(|merge| merge.merge).collect();
        Some(ByteBpe::new(bytes, &merges, &words, parts.ignore_merges))
    }
}

#[cfg(test)]
mod tests;
