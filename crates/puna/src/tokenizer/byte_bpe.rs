//! Byte-pair encoding whose first symbols are bytes: one word enters, ids leave.
//!
//! A word that is one token is found in a table, one that came by lately in a cache; the rest is
//! merged, O(m log m) for m bytes.

use super::bpe::{FirstPairs, Merge, MergeTable, NO_PAIR, NO_SYMBOL, Symbols, random_u64};
use super::words::{Key, MAX_KEY, SegmentCache, WordTable};

/// A vocabulary of bytes and merges, ready to encode.
#[derive(Clone, Debug)]
pub(super) struct ByteBpe {
    /// The token of each byte; `NO_SYMBOL` for one that leaves no trace.
    bytes: Box<[u32; 256]>,
    first: FirstPairs,
    table: MergeTable,
    words: WordTable,
    /// Tells this vocabulary's cache entries from others'.
    stamp: u64,
}

impl ByteBpe {
    /// With `ignore_merges` a word that is a token is that token; without, only where its merges
    /// lead there.
    pub(super) fn new(
        bytes: Box<[u32; 256]>,
        merges: &[Merge],
        words: &[(Vec<u8>, u32)],
        ignore_merges: bool,
    ) -> Self {
        let table = MergeTable::new(merges.iter().copied());
        let mut bpe = Self {
            first: FirstPairs::new(&table, bytes.as_slice()),
            bytes,
            table,
            words: WordTable::new(&[]),
            stamp: random_u64(),
        };
        let (mut symbols, mut ids) = (Symbols::default(), Vec::new());
        let mut found: Vec<(&[u8], u32)> = Vec::with_capacity(words.len());
        for (word, id) in words {
            ids.clear();
            if !ignore_merges {
                bpe.merge(word, &mut symbols, &mut ids);
            }
            if ignore_merges || ids == [*id] {
                found.push((word, *id));
            }
        }
        bpe.words = WordTable::new(&found);
        bpe
    }

    /// Readies a cache for `encode`.
    pub(super) fn claim(&self, cache: &mut SegmentCache) {
        cache.belong_to(self.stamp);
    }

    /// Appends the ids of the first `len` bytes of `text`, at least one; sixteen bytes behind the
    /// word's begin, if they are there, spare a copy.
    #[inline]
    pub(super) fn encode(
        &self,
        text: &[u8],
        len: usize,
        symbols: &mut Symbols,
        cache: &mut SegmentCache,
        ids: &mut Vec<u32>,
    ) {
        let word = &text[..len];
        let window = text.first_chunk().filter(|_| len <= MAX_KEY);
        let Some(key) = window.map_or_else(|| Key::of(word), |window| Some(Key::new(*window, len)))
        else {
            match self.words.get_long(word) {
                Some(id) => ids.push(id),
                None => self.merge(word, symbols, ids),
            }
            return;
        };
        if let Some(id) = self.words.get(key) {
            ids.push(id);
        } else if let Some(known) = cache.get(key) {
            ids.extend_from_slice(known);
        } else {
            let first = ids.len();
            self.merge(word, symbols, ids);
            cache.put(key, &ids[first..]);
        }
    }

    fn merge(&self, word: &[u8], symbols: &mut Symbols, ids: &mut Vec<u32>) {
        // Places are 32-bit.
        for part in word.chunks(u32::MAX as usize) {
            symbols.clear();
            symbols.offered = None;
            let mut last = None;
            for byte in part.iter().map(|&byte| usize::from(byte)) {
                let symbol = self.bytes[byte];
                if symbol != NO_SYMBOL {
                    symbols.push(symbol, last.map_or(NO_PAIR, |last| self.first.get(last, byte)));
                    last = Some(byte);
                }
            }
            symbols.merge(&self.table);
            ids.extend_from_slice(&symbols.ids);
        }
    }
}
