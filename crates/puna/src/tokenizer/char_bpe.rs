//! Byte-pair encoding whose first symbols are characters: text enters, ids leave.
//!
//! The text is cut wherever two characters stand side by side that no merge has at its seam: no
//! merge crosses such a place, so the parts encode by themselves, exactly. A part that is one token
//! is found in a table, a part that came by lately in a cache; only the rest is merged. One pass,
//! O(n), and O(m log m) for each part of m symbols that neither of the two knows.

use std::collections::HashMap;

use super::bpe::{
    FirstPairs, Merge, MergeTable, NO_PAIR, NO_SYMBOL, SeededState, Symbols, random_u64,
};
use super::words::{Key, MAX_KEY, SegmentCache, WordTable};

/// Marks the symbol of a user-defined piece, which never merges.
const FROZEN: u32 = 1 << 31;
/// Marks the symbol of a character that occurs in no token; the low bits are the character.
const UNKNOWN: u32 = 1 << 30;
/// Bits of the set of pairs of characters that are not both ASCII: 32 KiB.
const PAIR_BITS: u32 = 18;
/// What goes behind a text, so that a window of sixteen bytes can be read at any place of it.
pub(super) const WINDOW: &str = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Bytes of text, and symbols, that buffers may hold on to from one text to the next.
const KEEP_BYTES: usize = 1 << 20;
const KEEP_SYMBOLS: usize = 1 << 16;

/// A merge, with the characters on both sides of its seam.
#[derive(Clone, Copy, Debug)]
pub(super) struct CharMerge {
    pub(super) merge: Merge,
    pub(super) seam: (char, char),
}

/// What text without a token becomes.
#[derive(Clone, Debug, Default)]
pub(super) struct Unknown {
    /// Characters with an id that nothing else produces.
    pub(super) reserved: HashMap<char, u32>,
    /// Ids of the bytes; where there are none, a run of unknown characters is `unk`.
    pub(super) byte_ids: Option<Box<[u32; 256]>>,
    pub(super) unk: u32,
    /// A space stands for U+2581.
    pub(super) space_is_mark: bool,
}

/// Everything that makes a [`CharBpe`].
#[derive(Debug, Default)]
pub(super) struct CharBpeParts {
    /// Ids below this are tokens; symbols from here on are characters that are no token.
    pub(super) n_tokens: u32,
    /// The symbol of each character that occurs in a token.
    pub(super) letters: Vec<(char, u32)>,
    pub(super) merges: Vec<CharMerge>,
    /// Found before anything else, and never merged.
    pub(super) user_defined: Vec<(Box<str>, u32)>,
    /// Tokens that give way to the two symbols that made them.
    pub(super) unused: Vec<u32>,
    pub(super) unknown: Unknown,
}

/// A vocabulary of characters and merges, ready to encode.
#[derive(Clone, Debug)]
pub(super) struct CharBpe {
    n_tokens: u32,
    /// Symbol of each character of the basic plane, and of the others.
    basic: Vec<u32>,
    astral: HashMap<char, u32, SeededState>,
    /// The characters that are symbols and no tokens, from `n_tokens` on.
    extra: Vec<char>,
    table: MergeTable,
    /// The pairs of ASCII.
    first: FirstPairs,
    seams: Seams,
    /// Tokens that their own text encodes to.
    words: WordTable,
    /// Those that are one ASCII character.
    ascii_words: Box<[u32; 128]>,
    /// By first character, the longest first.
    user_defined: HashMap<char, Vec<(Box<str>, u32)>>,
    unused: Vec<u32>,
    unknown: Unknown,
    /// Tells this vocabulary's cache entries from others'.
    stamp: u64,
}

/// Buffers that encoding reuses, and what it learnt.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Normalised text.
    pub(super) text: String,
    pub(super) symbols: Symbols,
    pub(super) cache: SegmentCache,
}

impl Scratch {
    /// Gives back what one very long text took.
    pub(super) fn shrink(&mut self) {
        if self.text.capacity() > KEEP_BYTES {
            self.text = String::new();
        }
        self.symbols.shrink(KEEP_SYMBOLS);
    }
}

/// Pairs of characters that a merge may join. It may hold more than it was given (those only cost a
/// cut), never fewer.
#[derive(Clone, Debug)]
struct Seams {
    /// By the first character, a bit for the second.
    ascii: Box<[u128; 128]>,
    /// By a hash of both.
    others: Vec<u64>,
}

impl Seams {
    fn new() -> Self {
        Self { ascii: Box::new([0; 128]), others: vec![0; 1 << (PAIR_BITS - 6)] }
    }

    #[inline]
    fn bit(first: char, second: char) -> usize {
        let pair = (u64::from(first as u32) << 32) | u64::from(second as u32);
        (pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PAIR_BITS)) as usize
    }

    fn insert(&mut self, first: char, second: char) {
        if first.is_ascii() && second.is_ascii() {
            self.ascii[first as usize] |= 1 << second as u32;
        } else {
            let bit = Self::bit(first, second);
            self.others[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// For two bytes below 128.
    #[inline]
    fn has_ascii(&self, first: u8, second: u8) -> bool {
        self.ascii[usize::from(first & 127)] >> (second & 127) & 1 == 1
    }

    #[inline]
    fn has(&self, first: char, second: char) -> bool {
        if first.is_ascii() && second.is_ascii() {
            return self.has_ascii(first as u8, second as u8);
        }
        let bit = Self::bit(first, second);
        self.others[bit / 64] >> (bit % 64) & 1 == 1
    }
}

impl CharBpe {
    /// Takes the merges and letters; `words` are tokens that whole parts of a text may be.
    pub(super) fn new<'t>(
        parts: CharBpeParts,
        words: impl Iterator<Item = (&'t str, u32)>,
    ) -> Self {
        let mut seams = Seams::new();
        for merge in &parts.merges {
            seams.insert(merge.seam.0, merge.seam.1);
        }
        let mut user_defined: HashMap<char, Vec<(Box<str>, u32)>> = HashMap::new();
        for (text, id) in parts.user_defined {
            for (first, second) in text.chars().zip(text.chars().skip(1)) {
                seams.insert(first, second);
            }
            if let Some(first) = text.chars().next() {
                user_defined.entry(first).or_default().push((text, id));
            }
        }
        for list in user_defined.values_mut() {
            list.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        }
        let table = MergeTable::new(parts.merges.iter().map(|merge| merge.merge));
        let mut bpe = Self {
            n_tokens: parts.n_tokens,
            basic: vec![NO_SYMBOL; 1 << 16],
            astral: HashMap::default(),
            extra: Vec::new(),
            first: FirstPairs::new(&table, &[]),
            table,
            seams,
            words: WordTable::new(&[]),
            ascii_words: Box::new([NO_SYMBOL; 128]),
            user_defined,
            unused: parts.unused,
            unknown: parts.unknown,
            stamp: random_u64(),
        };
        bpe.unused.sort_unstable();
        bpe.set_letters(&parts.letters);
        let ascii: Vec<u32> = (0..128u8).map(|byte| bpe.symbol_of(char::from(byte))).collect();
        bpe.first = FirstPairs::new(&bpe.table, &ascii);
        bpe.find_words(words);
        bpe
    }

    fn set_letters(&mut self, letters: &[(char, u32)]) {
        for &(character, symbol) in letters {
            match self.basic.get_mut(character as usize) {
                Some(slot) => *slot = symbol,
                None => {
                    self.astral.insert(character, symbol);
                }
            }
            if let Some(index) = symbol.checked_sub(self.n_tokens) {
                let len = self.extra.len().max(index as usize + 1);
                self.extra.resize(len, char::REPLACEMENT_CHARACTER);
                self.extra[index as usize] = character;
            }
        }
    }

    fn find_words<'t>(&mut self, words: impl Iterator<Item = (&'t str, u32)>) {
        // The whole text decides what an unused token falls into, so no part of it stands alone.
        if !self.unused.is_empty() {
            return;
        }
        let (mut symbols, mut ids) = (Symbols::default(), Vec::new());
        let mut found: Vec<(&[u8], u32)> = Vec::new();
        for (word, id) in words {
            ids.clear();
            self.encode_part(word, &mut symbols, &mut false, &mut ids);
            if ids != [id] {
                continue;
            }
            found.push((word.as_bytes(), id));
            if let &[byte @ ..128] = word.as_bytes() {
                self.ascii_words[usize::from(byte)] = id;
            }
        }
        self.words = WordTable::new(&found);
    }

    #[inline]
    fn symbol_of(&self, character: char) -> u32 {
        let symbol = match self.basic.get(character as usize) {
            Some(&symbol) => symbol,
            None => self.astral.get(&character).copied().unwrap_or(NO_SYMBOL),
        };
        if symbol == NO_SYMBOL { UNKNOWN | character as u32 } else { symbol }
    }

    /// Appends the ids of `scratch.text`, which is used up.
    pub(super) fn encode(&self, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Scratch { text, symbols, cache } = scratch;
        let end = text.len();
        text.push_str(WINDOW);
        cache.belong_to(self.stamp);
        // Where unknown characters fuse, what a part becomes depends on the one before it.
        let caches = self.unknown.byte_ids.is_some();
        let (mut begin, mut after_unknown) = (0, false);
        while begin < end {
            let stop = self.part_end(text, begin, end);
            let part = &text[begin..stop];
            let window = text.as_bytes().get(begin..).and_then(|rest| rest.first_chunk());
            begin = stop;
            if let &[byte @ ..128] = part.as_bytes() {
                let id = self.ascii_words[usize::from(byte)];
                if id != NO_SYMBOL {
                    ids.push(id);
                    after_unknown = false;
                    continue;
                }
            }
            let Some(window) = window.filter(|_| part.len() <= MAX_KEY) else {
                match self.words.get_long(part.as_bytes()) {
                    Some(id) => {
                        ids.push(id);
                        after_unknown = false;
                    }
                    None => self.encode_part(part, symbols, &mut after_unknown, ids),
                }
                continue;
            };
            let key = Key::new(*window, part.len());
            if let Some(id) = self.words.get(key) {
                ids.push(id);
                after_unknown = false;
            } else if let Some(known) = cache.get(key).filter(|_| caches) {
                ids.extend_from_slice(known);
            } else {
                let first = ids.len();
                self.encode_part(part, symbols, &mut after_unknown, ids);
                if caches {
                    cache.put(key, &ids[first..]);
                }
            }
        }
        text.clear();
    }

    /// The end of the part of `text[..end]` that starts at `begin`.
    #[inline]
    fn part_end(&self, text: &str, begin: usize, end: usize) -> usize {
        if !self.unused.is_empty() {
            return end;
        }
        let bytes = text.as_bytes();
        let mut at = begin;
        loop {
            let next = at + 1;
            let (first, second) = (bytes[at], bytes[next]);
            if (first | second) & 128 != 0 {
                match self.seam_behind(text, at, end) {
                    (next, true) => at = next,
                    (next, false) => return next,
                }
            } else if next >= end || !self.seams.has_ascii(first, second) {
                return next;
            } else {
                at = next;
            }
        }
    }

    /// The end of the character at `at`, and whether a merge may join it to the next one.
    fn seam_behind(&self, text: &str, at: usize, end: usize) -> (usize, bool) {
        let mut characters = text[at..end].chars();
        let (first, second) = (characters.next(), characters.next());
        let next = at + first.map_or(1, char::len_utf8);
        let joins = matches!((first, second), (Some(a), Some(b)) if self.seams.has(a, b));
        (next, joins)
    }

    fn fill(&self, text: &str, symbols: &mut Symbols) {
        symbols.clear();
        let mut last = char::MAX;
        for character in text.chars() {
            let symbol = self.symbol_of(character);
            let pair = match symbols.ids.last() {
                Some(_) if character.is_ascii() && last.is_ascii() => {
                    self.first.get(last as usize, character as usize)
                }
                Some(&before) => self.table.get(before, symbol),
                None => NO_PAIR,
            };
            symbols.push(symbol, pair);
            last = character;
        }
    }

    fn fill_with_user_defined(&self, text: &str, symbols: &mut Symbols) {
        symbols.clear();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let candidates = self.user_defined.get(&character).map_or(&[][..], Vec::as_slice);
            let found = candidates.iter().find(|(piece, _)| rest.starts_with(&**piece));
            let (symbol, length) = match found {
                Some((piece, id)) => (id | FROZEN, piece.len()),
                None => (self.symbol_of(character), character.len_utf8()),
            };
            let pair = symbols.ids.last().map_or(NO_PAIR, |&before| self.table.get(before, symbol));
            symbols.push(symbol, pair);
            rest = &rest[length..];
        }
    }

    /// Encodes a part by merging. O(m log m) for m characters.
    pub(super) fn encode_part(
        &self,
        part: &str,
        symbols: &mut Symbols,
        after_unknown: &mut bool,
        ids: &mut Vec<u32>,
    ) {
        // Places are 32-bit; four gigabytes without a cut are cut between characters.
        if part.len() > u32::MAX as usize {
            let middle = part.floor_char_boundary(u32::MAX as usize);
            self.encode_part(&part[..middle], symbols, after_unknown, ids);
            self.encode_part(&part[middle..], symbols, after_unknown, ids);
            return;
        }
        symbols.offered = (!self.unused.is_empty()).then(HashMap::new);
        if self.user_defined.is_empty() {
            self.fill(part, symbols);
        } else {
            self.fill_with_user_defined(part, symbols);
        }
        symbols.merge(&self.table);
        let offered = symbols.offered.as_ref();
        for &symbol in &symbols.ids {
            match offered {
                Some(offered) => self.emit_unused(symbol, offered, after_unknown, ids),
                None => self.emit(symbol, after_unknown, ids),
            }
        }
    }

    /// An unused token gives way to the two symbols that made it.
    fn emit_unused(
        &self,
        symbol: u32,
        offered: &HashMap<u32, (u32, u32)>,
        after_unknown: &mut bool,
        ids: &mut Vec<u32>,
    ) {
        let mut stack = vec![symbol];
        while let Some(symbol) = stack.pop() {
            let is_unused = self.unused.binary_search(&symbol).is_ok();
            match offered.get(&symbol).filter(|_| is_unused) {
                Some(&(left, right)) => stack.extend([right, left]),
                None => self.emit(symbol, after_unknown, ids),
            }
        }
    }

    #[inline]
    fn emit(&self, symbol: u32, after_unknown: &mut bool, ids: &mut Vec<u32>) {
        let known = if symbol < self.n_tokens {
            Some(symbol)
        } else {
            (symbol & FROZEN != 0).then_some(symbol & !FROZEN)
        };
        if let Some(id) = known {
            ids.push(id);
            *after_unknown = false;
            return;
        }
        let character = match symbol & UNKNOWN {
            0 => self.extra.get((symbol - self.n_tokens) as usize).copied(),
            _ => char::from_u32(symbol & !UNKNOWN),
        };
        let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
        *after_unknown = self.emit_unknown(character, *after_unknown, ids);
    }

    /// Returns whether the character ended as the unknown token.
    fn emit_unknown(&self, character: char, after_unknown: bool, ids: &mut Vec<u32>) -> bool {
        let is_mark = character == ' ' && self.unknown.space_is_mark;
        let character = if is_mark { super::SPACE_MARK } else { character };
        if let Some(&id) = self.unknown.reserved.get(&character) {
            ids.push(id);
            return false;
        }
        if let Some(byte_ids) = &self.unknown.byte_ids {
            let mut buffer = [0; 4];
            let bytes = character.encode_utf8(&mut buffer).bytes();
            ids.extend(bytes.map(|byte| byte_ids[usize::from(byte)]));
            return false;
        }
        if !after_unknown {
            ids.push(self.unknown.unk);
        }
        true
    }
}
