//! Short byte strings and what they encode to: a table that is fixed once built, and a cache.
//!
//! Both hold strings of up to sixteen bytes inside their slots, so that a look-up reads one place
//! in memory, O(1), and allocates nothing. The cache forgets: each key has one slot, and the last
//! comer takes it.

use std::collections::HashMap;

use super::bpe::{SeededState, fold, random_u64};

/// Bytes of the longest string that a slot holds.
pub(super) const MAX_KEY: usize = 16;
/// Slots of a cache, 48 bytes each.
const CACHE_SLOTS: usize = 1 << 12;
/// Ids that a slot of a cache holds.
const MAX_IDS: usize = 6;

/// A string of 1 to 16 bytes; what lies behind its end is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    bytes: u128,
    len: u32,
}

impl Key {
    /// The first `len` bytes of `window`, with `len` from 1 to 16.
    #[inline]
    pub(super) fn new(window: [u8; MAX_KEY], len: usize) -> Self {
        let excess = (MAX_KEY - len) as u32 * 8;
        Self { bytes: u128::from_le_bytes(window) & (u128::MAX >> excess), len: len as u32 }
    }

    /// `None` for a string that is empty or longer than a slot.
    pub(super) fn of(text: &[u8]) -> Option<Self> {
        if text.is_empty() || text.len() > MAX_KEY {
            return None;
        }
        let mut window = [0; MAX_KEY];
        window[..text.len()].copy_from_slice(text);
        Some(Self::new(window, text.len()))
    }

    #[inline]
    fn hash(self, seed: u64) -> u64 {
        let (low, high) = (self.bytes as u64, (self.bytes >> 64) as u64);
        fold(low ^ seed, high ^ (u64::from(self.len) << 56) ^ 0x9e37_79b9_7f4a_7c15)
    }
}

/// A string of up to eight bytes.
#[derive(Clone, Copy, Debug)]
struct ShortSlot {
    low: u64,
    len: u32,
    id: u32,
}

/// A string of nine to sixteen bytes.
#[derive(Clone, Copy, Debug)]
struct Slot {
    low: u64,
    high: u64,
    len: u32,
    id: u32,
}

/// Strings that are one token. Half the slots of both arrays are empty, so that walks end.
#[derive(Clone, Debug)]
pub(super) struct WordTable {
    /// Most words of a text are here, and it is denser in memory.
    short: Vec<ShortSlot>,
    slots: Vec<Slot>,
    seed: u64,
    short_shift: u32,
    shift: u32,
    /// Strings of more than sixteen bytes.
    long: HashMap<Box<[u8]>, u32, SeededState>,
    longest: usize,
}

impl WordTable {
    /// The last of a repeated string stays.
    pub(super) fn new(words: &[(&[u8], u32)]) -> Self {
        let bits = |lengths: std::ops::RangeInclusive<usize>| {
            let count = words.iter().filter(|(word, _)| lengths.contains(&word.len())).count();
            (count.max(8) * 2).next_power_of_two().trailing_zeros()
        };
        let (short_bits, bits) = (bits(1..=8), bits(9..=MAX_KEY));
        let mut table = Self {
            short: vec![ShortSlot { low: 0, len: 0, id: 0 }; 1 << short_bits],
            slots: vec![Slot { low: 0, high: 0, len: 0, id: 0 }; 1 << bits],
            seed: random_u64(),
            short_shift: 64 - short_bits,
            shift: 64 - bits,
            long: HashMap::default(),
            longest: 0,
        };
        for &(word, id) in words {
            table.longest = table.longest.max(word.len());
            match Key::of(word) {
                Some(key) => table.insert(key, id),
                None if word.is_empty() => {}
                None => {
                    table.long.insert(word.into(), id);
                }
            }
        }
        table
    }

    fn insert(&mut self, key: Key, id: u32) {
        let hash = key.hash(self.seed);
        let (low, high, len) = (key.bytes as u64, (key.bytes >> 64) as u64, key.len);
        if len <= 8 {
            let at = place(&self.short, hash >> self.short_shift, key);
            self.short[at] = ShortSlot { low, len, id };
        } else {
            let at = place(&self.slots, hash >> self.shift, key);
            self.slots[at] = Slot { low, high, len, id };
        }
    }

    /// The token of a short string.
    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<u32> {
        let hash = key.hash(self.seed);
        if key.len <= 8 {
            let slot = self.short[place(&self.short, hash >> self.short_shift, key)];
            return (slot.len != 0).then_some(slot.id);
        }
        let slot = self.slots[place(&self.slots, hash >> self.shift, key)];
        (slot.len != 0).then_some(slot.id)
    }

    /// The token of a string of more than sixteen bytes.
    pub(super) fn get_long(&self, word: &[u8]) -> Option<u32> {
        if word.len() > self.longest {
            return None;
        }
        self.long.get(word).copied()
    }
}

/// A place for one string.
trait StringSlot {
    fn is_empty(&self) -> bool;
    fn holds(&self, key: Key) -> bool;
}

/// Where `key` is, else the empty slot where it would be; the walk begins at `at`. The slots are a
/// power of two, and some are empty.
#[inline]
fn place<S: StringSlot>(slots: &[S], at: u64, key: Key) -> usize {
    let mask = slots.len() - 1;
    let mut at = at as usize & mask;
    while !slots[at].holds(key) && !slots[at].is_empty() {
        at = (at + 1) & mask;
    }
    at
}

impl StringSlot for ShortSlot {
    #[inline]
    fn is_empty(&self) -> bool {
        self.len == 0
    }
    #[inline]
    fn holds(&self, key: Key) -> bool {
        self.low == key.bytes as u64 && self.len == key.len
    }
}

impl StringSlot for Slot {
    #[inline]
    fn is_empty(&self) -> bool {
        self.len == 0
    }
    #[inline]
    fn holds(&self, key: Key) -> bool {
        let (low, high) = (key.bytes as u64, (key.bytes >> 64) as u64);
        self.low == low && self.high == high && self.len == key.len
    }
}

#[derive(Clone, Copy, Debug)]
struct CacheSlot {
    low: u64,
    high: u64,
    len: u8,
    n_ids: u8,
    ids: [u32; MAX_IDS],
}

/// Strings that were encoded lately, in bounded memory.
#[derive(Debug, Default)]
pub(super) struct SegmentCache {
    slots: Vec<CacheSlot>,
    seed: u64,
    /// The tables that the ids come from.
    owner: u64,
}

impl SegmentCache {
    /// Forgets everything that other tables than `owner`'s gave.
    pub(super) fn belong_to(&mut self, owner: u64) {
        if self.owner != owner {
            self.slots.clear();
            self.owner = owner;
        }
    }

    fn slot_of(&self, key: Key) -> usize {
        (key.hash(self.seed) >> (64 - CACHE_SLOTS.trailing_zeros())) as usize
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&[u32]> {
        let slot = self.slots.get(self.slot_of(key))?;
        let (low, high) = (key.bytes as u64, (key.bytes >> 64) as u64);
        let is_same = slot.low == low && slot.high == high && u32::from(slot.len) == key.len;
        is_same.then(|| &slot.ids[..usize::from(slot.n_ids)])
    }

    /// Keeps `ids` where they fit.
    pub(super) fn put(&mut self, key: Key, ids: &[u32]) {
        if ids.len() > MAX_IDS {
            return;
        }
        if self.slots.is_empty() {
            let empty = CacheSlot { low: 0, high: 0, len: 0, n_ids: 0, ids: [0; MAX_IDS] };
            self.slots.resize(CACHE_SLOTS, empty);
            self.seed = random_u64();
        }
        let at = self.slot_of(key);
        let slot = &mut self.slots[at];
        (slot.low, slot.high) = (key.bytes as u64, (key.bytes >> 64) as u64);
        (slot.len, slot.n_ids) = (key.len as u8, ids.len() as u8);
        slot.ids[..ids.len()].copy_from_slice(ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_every_length_are_found_and_no_others() {
        let words: Vec<Vec<u8>> = (1..40usize).map(|n| vec![b'a'; n]).collect();
        let list: Vec<(&[u8], u32)> =
            words.iter().map(|word| (word.as_slice(), word.len() as u32)).collect();
        let table = WordTable::new(&list);
        let get = |word: &[u8]| match Key::of(word) {
            Some(key) => table.get(key),
            None => table.get_long(word),
        };
        for word in &words {
            assert_eq!(get(word), Some(word.len() as u32));
            let mut other = word.clone();
            other.push(0);
            assert_eq!(get(&other), None, "a zero is a byte like any other");
            other.pop();
            other[word.len() / 2] = b'b';
            assert_eq!(get(&other), None);
        }
        assert_eq!(get(&[b'a'; 40]), None);
    }

    #[test]
    fn the_cache_gives_back_what_it_keeps() {
        let mut cache = SegmentCache::default();
        cache.belong_to(1);
        let key = |n: u32| Key::of(&n.to_le_bytes()).unwrap();
        for n in 0..20_000 {
            assert_eq!(cache.get(key(n)), None);
            cache.put(key(n), &[n; 6][..(n % 8).min(6) as usize]);
            assert_eq!(cache.get(key(n)).unwrap().len(), (n % 8).min(6) as usize);
        }
        cache.put(key(20_000), &[1; 7]);
        assert_eq!(cache.get(key(20_000)), None);
        let kept = (0..20_000).filter(|&n| cache.get(key(n)).is_some()).count();
        assert!(kept > 2_000 && kept <= CACHE_SLOTS, "{kept}");
        cache.belong_to(2);
        assert!((0..20_000).all(|n| cache.get(key(n)).is_none()));
    }
}
