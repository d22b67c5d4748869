//! Quantised weights as the kernels read them. In: the rows of a file. Out: groups of sixteen rows
//! side by side, so that one vector holds the same weights of sixteen rows, and a scale of each
//! row stands where the vector needs it.
//!
//! A group holds the blocks of its rows in order of depth. A packed block `[16 rows][LEN weights]`:
//! ```text
//! scale d           16 f16 (f32 for mxfp4)
//! minimum           16 f16, where the format has one; its sign is that of the sum
//! scales of parts   16 bytes for each byte of them in the format: one for a part, or twelve
//! for each 32 weights, planes of their codes; a dword belongs to one row:
//!   four bits       4 x 16 dwords; dwords 2t and 2t + 1 of codes in the low and the high halves
//!   two bits        2 x 16 dwords; dwords 4h + s of codes at bits 2s of every byte
//!   one bit         1 x 16 dwords; dword i of codes at bit i of every byte
//!   eight bits      8 x 16 dwords
//! ```
//! Dword `i` of the codes holds weights [`ORDER`]`[4 i..]`. That order costs a dot nothing, the
//! activations being written in it too, and puts neighbours into the halves of 32-bit words.

pub(crate) mod codes;

use super::CpuBuf;
use super::pool::Pool;
use crate::format::f16::F16;
use crate::{Format, OutOfMemory};
use codes::{Coded, CodedVisitor, Parts};

/// Rows of a group.
pub(crate) const GROUP_ROWS: usize = 16;

/// Which of each 32 weights the bytes of their codes hold, in order.
pub(crate) const ORDER: [usize; 32] = {
    let mut order = [0; 32];
    let within = [0, 4, 1, 5, 2, 6, 3, 7];
    let mut p = 0;
    while p < 32 {
        order[p] = p / 8 * 8 + within[p % 8];
        p += 1;
    }
    order
};

/// Where the parts of a packed block of `B` begin, in bytes.
pub(crate) struct Layout<B>(std::marker::PhantomData<B>);

impl<B: Coded> Layout<B> {
    /// Groups of 32 weights in a block.
    pub(crate) const GROUPS: usize = B::LEN / 32;
    /// Bytes of the scales of parts, for each row.
    pub(crate) const SCALE_BYTES: usize = match B::PARTS {
        Parts::None => 0,
        Parts::Scales { .. } | Parts::Nibbles { .. } => B::LEN / Self::PART_LEN,
        Parts::SixBits | Parts::SixBitsSigned => 12,
    };
    /// Weights that share a scale.
    pub(crate) const PART_LEN: usize = match B::PARTS {
        Parts::None => B::LEN,
        Parts::Scales { len } | Parts::Nibbles { len } => len,
        Parts::SixBits => 32,
        Parts::SixBitsSigned => 16,
    };
    /// The minimum.
    pub(crate) const MIN: usize = GROUP_ROWS * if B::WIDE { 4 } else { 2 };
    /// The scales of parts.
    pub(crate) const SCALES: usize = Self::MIN + if B::MINIMUM { 2 * GROUP_ROWS } else { 0 };
    /// The planes.
    pub(crate) const CODES: usize = Self::SCALES + GROUP_ROWS * Self::SCALE_BYTES;
    /// Bytes of the planes of 32 weights.
    pub(crate) const GROUP_BYTES: usize = 4 * GROUP_ROWS * B::BITS;
    /// Bytes of a packed block.
    pub(crate) const BYTES: usize = Self::CODES + Self::GROUPS * Self::GROUP_BYTES;
}

/// A packed `(rows, cols)` weight. Rows beyond the last, up to a whole group, are zeros.
#[derive(Debug)]
pub struct Packed {
    format: Format,
    rows: usize,
    cols: usize,
    /// `(groups of rows, blocks of a row, bytes of a packed block)`.
    data: CpuBuf,
    /// Bytes of one group of rows.
    group_bytes: usize,
}

impl Packed {
    /// Packs the rows of `bytes` on all threads; `None` for a format that is not packed. Panics
    /// where `bytes` are not `rows` rows.
    pub(super) fn new(
        pool: &Pool,
        format: Format,
        (rows, cols): (usize, usize),
        bytes: &[u8],
    ) -> Option<Result<Self, OutOfMemory>> {
        codes::visit(format, Pack { pool, format, rows, cols, bytes })
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of sixteen rows.
    pub(super) fn group_bytes(&self) -> usize {
        self.group_bytes
    }

    /// Groups of rows, of `group_bytes` each.
    pub(super) fn groups(&self, groups: std::ops::Range<usize>) -> &[u8] {
        let all: &[u8] = bytemuck::cast_slice(&self.data);
        &all[groups.start * self.group_bytes..groups.end * self.group_bytes]
    }

    /// Values `cols` of `row`, bit-equal to the format's own; both ends of `cols` lie on blocks.
    pub(super) fn dequantize_row(&self, row: usize, cols: std::ops::Range<usize>, out: &mut [f32]) {
        let group = self.groups(row / GROUP_ROWS..row / GROUP_ROWS + 1);
        let done = codes::visit(self.format, Row { group, row: row % GROUP_ROWS, cols, out });
        debug_assert!(done.is_some(), "a packed format");
    }

    /// The packed blocks of a group over a range of depth, whose ends lie on blocks.
    pub(super) fn blocks(&self, group: usize, depth: &std::ops::Range<usize>) -> &[u8] {
        let bytes = self.groups(group..group + 1);
        let len = self.format.block_len();
        let block = self.group_bytes / (self.cols / len);
        &bytes[depth.start / len * block..depth.end / len * block]
    }
}

struct Pack<'a> {
    pool: &'a Pool,
    format: Format,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl CodedVisitor for Pack<'_> {
    type Output = Result<Packed, OutOfMemory>;

    fn visit<B: Coded>(self) -> Self::Output {
        let Self { pool, format, rows, cols, bytes } = self;
        let (n_groups, n_blocks) = (rows.div_ceil(GROUP_ROWS), cols / B::LEN);
        let group_bytes = n_blocks * Layout::<B>::BYTES;
        let mut data = CpuBuf::zeros(n_groups * group_bytes / 4, "a packed weight")?;
        let blocks = B::row(bytes);
        assert_eq!(blocks.len(), rows * n_blocks, "{format} {rows} x {cols}");
        if group_bytes > 0 {
            pool.for_each_chunk(&mut data, group_bytes / 4, |group, out| {
                let rows = &blocks[group * GROUP_ROWS * n_blocks..];
                let rows = &rows[..rows.len().min(GROUP_ROWS * n_blocks)];
                pack_group(rows, n_blocks, bytemuck::cast_slice_mut(out));
            });
        }
        Ok(Packed { format, rows, cols, data, group_bytes })
    }
}

/// At most sixteen rows of `n_blocks` blocks each.
fn pack_group<B: Coded>(rows: &[B], n_blocks: usize, out: &mut [u8]) {
    for (row, blocks) in rows.chunks_exact(n_blocks).enumerate() {
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(Layout::<B>::BYTES)) {
            pack_block(block, row, out);
        }
    }
}

/// One block of row `row` of its group.
fn pack_block<B: Coded>(block: &B, row: usize, out: &mut [u8]) {
    let factors = block.factors();
    let width = if B::WIDE { 4 } else { 2 };
    out[width * row..][..width].copy_from_slice(&factors.d[..width]);
    if B::MINIMUM {
        out[Layout::<B>::MIN + 2 * row..][..2].copy_from_slice(&factors.min);
    }
    for (i, byte) in factors.scales[..Layout::<B>::SCALE_BYTES].iter().enumerate() {
        out[Layout::<B>::SCALES + GROUP_ROWS * i + row] = *byte;
    }
    let mut codes = [0; 256];
    block.codes(&mut codes[..B::LEN]);
    let planes = out[Layout::<B>::CODES..].chunks_exact_mut(Layout::<B>::GROUP_BYTES);
    for (codes, planes) in codes.as_chunks::<32>().0.iter().zip(planes) {
        let mut put = |plane: usize, dword: u32| {
            planes[4 * (GROUP_ROWS * plane + row)..][..4].copy_from_slice(&dword.to_le_bytes());
        };
        let words = in_order(codes);
        match B::BITS {
            8 => words.iter().enumerate().for_each(|(i, word)| put(i, *word)),
            bits => {
                let low = if bits < 4 { 2 } else { 4 };
                write_plane(&words, 0, low, 0, &mut put);
                write_plane(&words, low, bits - low, low, &mut put);
            }
        }
    }
}

/// The codes as eight dwords in [`ORDER`].
#[inline(always)]
fn in_order(codes: &[u8; 32]) -> [u32; 8] {
    std::array::from_fn(|i| {
        u32::from_le_bytes(std::array::from_fn(|byte| codes[ORDER[4 * i + byte]]))
    })
}

/// Bits `shift..shift + bits` of every code, as dwords `first..` of the planes. (A plane of `bits`
/// bits has as many dwords for each row.)
#[inline(always)]
fn write_plane(
    words: &[u32; 8],
    shift: usize,
    bits: usize,
    first: usize,
    put: &mut impl FnMut(usize, u32),
) {
    let mask = 0x0101_0101 * ((1u32 << bits) - 1);
    for plane in 0..bits {
        let per_dword = 8 / bits;
        let mut dword = 0;
        for s in 0..per_dword {
            dword |= (words[per_dword * plane + s] >> shift & mask) << (bits * s);
        }
        put(first + plane, dword);
    }
}

struct Row<'a> {
    group: &'a [u8],
    row: usize,
    cols: std::ops::Range<usize>,
    out: &'a mut [f32],
}

impl CodedVisitor for Row<'_> {
    type Output = ();

    fn visit<B: Coded>(self) {
        let blocks = self.group.chunks_exact(Layout::<B>::BYTES);
        let blocks = blocks.skip(self.cols.start / B::LEN);
        for (block, out) in blocks.zip(self.out.chunks_exact_mut(B::LEN)) {
            dequantize_block::<B>(block, self.row, out);
        }
    }
}

/// One row of a packed block.
fn dequantize_block<B: Coded>(block: &[u8], row: usize, out: &mut [f32]) {
    let half = |at: usize| F16([block[at], block[at + 1]]).to_f32();
    let d = match B::WIDE {
        true => f32::from_le_bytes(std::array::from_fn(|i| block[4 * row + i])),
        false => half(2 * row),
    };
    let min = if B::MINIMUM { half(Layout::<B>::MIN + 2 * row) } else { 0.0 };
    let planes = block[Layout::<B>::CODES..].chunks_exact(Layout::<B>::GROUP_BYTES);
    for (g, (planes, out)) in planes.zip(out.as_chunks_mut::<32>().0).enumerate() {
        let words = read_words::<B>(planes, row);
        for p in 0..32 {
            let k = ORDER[p];
            let part = (32 * g + k) / Layout::<B>::PART_LEN;
            let (scale, offset) = codes::part_factors::<B>(block, part, row, d, min);
            let code = (words[p / 4] >> (8 * (p % 4)) & 255) as u8;
            let number = match B::TABLE {
                Some(table) => i32::from(table[usize::from(code)]),
                None => i32::from(code) - B::ZERO,
            };
            out[k] =
                if B::MINIMUM { scale * number as f32 + offset } else { scale * number as f32 };
        }
    }
}

/// The codes of 32 weights of one row, as [`in_order`] gives them; of a format with a table, the
/// places in it.
fn read_words<B: Coded>(planes: &[u8], row: usize) -> [u32; 8] {
    let dword = |plane: usize| {
        let at = 4 * (GROUP_ROWS * plane + row);
        u32::from_le_bytes(std::array::from_fn(|i| planes[at + i]))
    };
    if B::BITS == 8 {
        return std::array::from_fn(dword);
    }
    let low = if B::BITS < 4 { 2 } else { 4 };
    let part = |first: usize, bits: usize, i: usize| {
        let per_dword = 8 / bits;
        let moved = dword(first + i / per_dword) >> (bits * (i % per_dword));
        moved & (0x0101_0101 * ((1 << bits) - 1))
    };
    std::array::from_fn(|i| {
        let high = B::BITS - low;
        part(0, low, i) | if high > 0 { part(low, high, i) << low } else { 0 }
    })
}
