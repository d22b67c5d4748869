//! Added tokens: strings that are one id wherever they occur in the text.
//!
//! Found leftmost, then longest, before any other splitting. The flags say how much of the text
//! around them goes with them.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::bpe::SeededState;

/// A token on top of the model's vocabulary, with Transformers' flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// The text that becomes this token.
    pub content: String,
    /// Match whole words only.
    pub single_word: bool,
    /// Take the white space before it along.
    pub lstrip: bool,
    /// Take the white space behind it along.
    pub rstrip: bool,
    /// Look for it in the normalised text (fast class only).
    pub normalized: bool,
    /// Skipped when decoding without special tokens.
    pub special: bool,
}

impl AddedToken {
    /// A token without flags; special ones are matched in the raw text.
    pub fn new(content: impl Into<String>, special: bool) -> Self {
        Self {
            content: content.into(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: !special,
            special,
        }
    }

    /// Reads a string or the dictionary that configuration files hold; `special` is the default.
    pub fn from_json(value: &Value, special: bool) -> Option<Self> {
        if let Some(text) = value.as_str() {
            return Some(Self::new(text, special));
        }
        let content = value.get("content")?.as_str()?;
        let flag =
            |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", special);
        Some(Self {
            content: content.to_owned(),
            single_word: flag("single_word", false),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
            normalized: flag("normalized", !special),
            special,
        })
    }

    /// The dictionary of `tokenizer.json` and `tokenizer_config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "content": self.content,
            "lstrip": self.lstrip,
            "normalized": self.normalized,
            "rstrip": self.rstrip,
            "single_word": self.single_word,
            "special": self.special,
        })
    }
}

/// The tokens that name a role, in Transformers' order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of a sequence.
    pub bos: Option<String>,
    /// End of a sequence.
    pub eos: Option<String>,
    /// Text outside the vocabulary.
    pub unk: Option<String>,
    /// Padding.
    pub pad: Option<String>,
    /// Further ones.
    pub additional: Vec<String>,
}

impl SpecialTokens {
    /// All of them, without repetition.
    pub fn all(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        let named = [&self.bos, &self.eos, &self.unk, &self.pad];
        let named = named.into_iter().flatten().map(String::as_str);
        for token in named.chain(self.additional.iter().map(String::as_str)) {
            if !all.contains(&token) {
                all.push(token);
            }
        }
        all
    }
}

/// Added tokens by id and by text, and a trie to find them.
#[derive(Clone, Debug)]
pub(super) struct AddedVocabulary {
    by_id: BTreeMap<u32, AddedToken>,
    ids: HashMap<String, u32>,
    /// `(node, byte) -> node`; node 0 is the root.
    edges: HashMap<(u32, u8), u32, SeededState>,
    is_end: Vec<bool>,
    /// Whether a token starts with each byte.
    starts: [bool; 256],
}

impl Default for AddedVocabulary {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
            ids: HashMap::new(),
            edges: HashMap::default(),
            is_end: vec![false],
            starts: [false; 256],
        }
    }
}

impl AddedVocabulary {
    pub(super) fn insert(&mut self, id: u32, token: AddedToken) {
        if let Some(&first) = token.content.as_bytes().first() {
            self.starts[usize::from(first)] = true;
        }
        let mut node = 0;
        for byte in token.content.bytes() {
            let fresh = self.is_end.len() as u32;
            node = *self.edges.entry((node, byte)).or_insert(fresh);
            if node == fresh {
                self.is_end.push(false);
            }
        }
        self.is_end[node as usize] = node != 0;
        self.ids.insert(token.content.clone(), id);
        self.by_id.insert(id, token);
    }

    pub(super) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    pub(super) fn id_of(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.by_id.iter().map(|(&id, token)| (id, token))
    }

    /// Length of the longest added token at the start of `text`.
    fn longest_at(&self, text: &[u8]) -> Option<usize> {
        let (mut node, mut longest) = (0, None);
        for (at, &byte) in text.iter().enumerate() {
            match self.edges.get(&(node, byte)) {
                Some(&next) => node = next,
                None => break,
            }
            if self.is_end[node as usize] {
                longest = Some(at + 1);
            }
        }
        longest
    }

    /// Begin and end of the first token at or behind `from`, the longest there. O(1) a byte, but
    /// where tokens begin.
    pub(super) fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let bytes = text.as_bytes();
        let is_start = |at: &usize| self.starts[usize::from(bytes[*at])];
        let mut candidates = (from..bytes.len()).filter(is_start);
        candidates.find_map(|at| Some((at, at + self.longest_at(&bytes[at..])?)))
    }

    /// Whether an added token is part of `text`.
    pub(super) fn occurs_in(&self, text: &str) -> bool {
        !self.ids.is_empty() && self.find(text, 0).is_some()
    }

    /// Cuts `text` at added tokens; no part is empty.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let (mut parts, mut begin) = (Vec::new(), 0);
        while let Some((from, to)) = self.find(text, begin) {
            if begin < from {
                parts.push(&text[begin..from]);
            }
            parts.push(&text[from..to]);
            begin = to;
        }
        if begin < text.len() {
            parts.push(&text[begin..]);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_then_longest_wins() {
        let mut added = AddedVocabulary::default();
        for (id, text) in ["<s>", "<s>>", "ab", "bcd", "é"].into_iter().enumerate() {
            added.insert(id as u32, AddedToken::new(text, true));
        }
        assert_eq!(added.split("x<s>>y<s>"), ["x", "<s>>", "y", "<s>"]);
        assert_eq!(added.split("abcd"), ["ab", "cd"]);
        assert_eq!(added.split("éè"), ["é", "è"]);
        assert!(added.split("").is_empty());
    }
}
