//! Codes packed into 32-bit words: bytes and a place enter, a code leaves.

/// Word `index` of little-endian `bytes`.
pub(super) fn word(bytes: &[u8], index: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[4 * index..][..4]);
    u32::from_le_bytes(word)
}

/// Code `index` of a stream of codes of `bits` bits without gaps: 32 codes are `bits` words, of which
/// the next lies `stride` words on. `first` is the stream's first word.
pub(super) fn code(bytes: &[u8], first: usize, stride: usize, bits: usize, index: usize) -> u32 {
    let at = index % 32 * bits;
    let low = first + (index / 32 * bits + at / 32) * stride;
    let mut pair = u64::from(word(bytes, low));
    if at % 32 + bits > 32 {
        pair |= u64::from(word(bytes, low + stride)) << 32;
    }
    ((pair >> (at % 32)) & ((1 << bits) - 1)) as u32
}

/// Words of a stream of `count` codes.
pub(super) fn words(count: usize, bits: usize) -> usize {
    (count * bits).div_ceil(32)
}
