//! The product of many rows, `C += A B`, from packed operands. `A` comes in strips of six rows,
//! `[k][6]`; `B` in panels of sixteen columns, `[k][16]`. Twelve vectors of `C` stay in registers
//! while `k` runs. Each element of a tile is one chain of multiply-adds in the order of `k`, added
//! to what `C` held.

// Plain loops over constant ranges unroll, and sums stay in registers. Iterator adaptors and
// closures are compiled without the features of the instruction set, and may stay calls.
#![allow(clippy::needless_range_loop, reason = "see above")]

use std::marker::PhantomData;

use super::dot_packed::{Factors, planes, unpack};
use crate::Format;
use crate::cpu::isa::{Isa, Piece};
use crate::cpu::packed::codes::{self, Coded, CodedVisitor};
use crate::cpu::packed::{Layout, ORDER};
use crate::format::{Block, BlockVisitor};

/// Rows of a strip of `A`.
pub(crate) const STRIP: usize = 6;
/// Columns of a panel of `B`.
pub(crate) const PANEL: usize = 16;

/// What a product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Zero; what the tile held is not read.
    Zero,
    /// What the tile holds.
    Held,
}

/// `c[i][j] (+)= Σ_k a[k][i] panels[j / 16][k][j % 16]` for the rows and columns that `c` has: at
/// most six rows of equal length.
#[inline(always)]
pub(crate) fn multiply<I: Isa>(
    isa: I,
    a: &[f32],
    panels: &[f32],
    start: Start,
    c: &mut [&mut [f32]],
) {
    match c.len() {
        1 => strip::<I, 1>(isa, a, panels, start, c),
        2 => strip::<I, 2>(isa, a, panels, start, c),
        3 => strip::<I, 3>(isa, a, panels, start, c),
        4 => strip::<I, 4>(isa, a, panels, start, c),
        5 => strip::<I, 5>(isa, a, panels, start, c),
        _ => strip::<I, 6>(isa, a, panels, start, c),
    }
}

#[inline(always)]
fn strip<I: Isa, const R: usize>(
    isa: I,
    a: &[f32],
    panels: &[f32],
    start: Start,
    c: &mut [&mut [f32]],
) {
    assert_eq!(c.len(), R);
    let a = a.as_chunks::<STRIP>().0;
    let cols = c[0].len();
    for (p, panel) in panels.chunks_exact(a.len() * PANEL).enumerate() {
        let (from, to) = (p * PANEL, cols.min((p + 1) * PANEL));
        let panel = panel.as_chunks::<PANEL>().0;
        if to - from == PANEL {
            let mut tile: [&mut [f32]; R] = each_row(c, from, to);
            multiply_tile(isa, a, panel, start, &mut tile);
            continue;
        }
        let mut whole = [[0.0; PANEL]; R];
        for (whole, c) in whole.iter_mut().zip(c.iter()) {
            if start == Start::Held {
                whole[..to - from].copy_from_slice(&c[from..to]);
            }
        }
        multiply_tile(isa, a, panel, start, &mut whole.each_mut().map(|row| &mut row[..]));
        for (whole, c) in whole.iter().zip(c.iter_mut()) {
            c[from..to].copy_from_slice(&whole[..to - from]);
        }
    }
}

/// Columns `from..to` of each row.
#[inline(always)]
fn each_row<'a, const R: usize>(
    c: &'a mut [&mut [f32]],
    from: usize,
    to: usize,
) -> [&'a mut [f32]; R] {
    let mut rows = c.iter_mut();
    std::array::from_fn(|_| rows.next().map_or(&mut [][..], |row| &mut row[from..to]))
}

#[inline(always)]
fn multiply_tile<I: Isa, const R: usize>(
    isa: I,
    a: &[[f32; STRIP]],
    panel: &[[f32; PANEL]],
    start: Start,
    c: &mut [&mut [f32]; R],
) {
    const { assert!(PANEL.is_multiple_of(I::LANES) && PANEL <= 2 * I::LANES && R <= STRIP) };
    let panel = &panel[..a.len()];
    // Of one or two vectors to a row.
    let mut sums = [[isa.splat(0.0); 2]; R];
    for k in 0..a.len() {
        let mut b = [isa.splat(0.0); 2];
        for v in 0..PANEL / I::LANES {
            b[v] = isa.load(&panel[k][v * I::LANES..]);
        }
        for r in 0..R {
            let a = isa.splat(a[k][r]);
            for v in 0..PANEL / I::LANES {
                sums[r][v] = isa.fma(a, b[v], sums[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..PANEL / I::LANES {
            let c = &mut c[r][v * I::LANES..];
            // Added last: the next tile can begin before this one's memory has come.
            if start == Start::Held {
                sums[r][v] = isa.add(isa.load(c), sums[r][v]);
            }
            isa.store(sums[r][v], c);
        }
    }
}

/// Sixteen rows, `stride` apart, over the depth of `panel` `[depth][16]`.
#[inline(always)]
pub(crate) fn pack<I: Isa>(isa: I, rows: &[f32], stride: usize, panel: &mut [f32]) {
    const { assert!(PANEL == 16) };
    let depth = panel.len() / PANEL;
    let whole = depth / 8 * 8;
    for k in (0..whole).step_by(8) {
        for half in 0..2 {
            let from = &rows[8 * half * stride + k..];
            isa.transpose(from, stride, &mut panel[k * PANEL + 8 * half..], PANEL);
        }
    }
    let panel = panel.as_chunks_mut::<PANEL>().0;
    for k in whole..depth {
        for i in 0..PANEL {
            panel[k][i] = rows[i * stride + k];
        }
    }
}

/// The weights of whole blocks.
#[inline(always)]
pub(crate) fn dequantize<I: Isa>(isa: I, format: Format, bytes: &[u8], out: &mut [f32]) {
    format.visit(Dequantize { isa, bytes, out });
}

struct Dequantize<'a, I> {
    isa: I,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl<I: Isa> BlockVisitor for Dequantize<'_, I> {
    type Output = ();

    #[inline(always)]
    fn visit<B: Block>(self) {
        self.isa.call(Blocks { blocks: B::row(self.bytes), out: self.out });
    }
}

/// Blocks of one format; compiled for each instruction set, which widens the portable code.
struct Blocks<'a, B> {
    blocks: &'a [B],
    out: &'a mut [f32],
}

impl<B: Block> Piece for Blocks<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        B::dequantize_row(self.blocks, self.out);
    }
}

/// The weights of packed blocks of sixteen rows, as a panel `[depth][16]`.
#[inline(always)]
pub(crate) fn from_packed<I: Isa>(isa: I, format: Format, blocks: &[u8], panel: &mut [f32]) {
    let done = codes::visit(format, FromPacked { isa, blocks, panel });
    debug_assert!(done.is_some(), "a packed format");
}

struct FromPacked<'a, I> {
    isa: I,
    blocks: &'a [u8],
    panel: &'a mut [f32],
}

impl<I: Isa> CodedVisitor for FromPacked<'_, I> {
    type Output = ();

    #[inline(always)]
    fn visit<B: Coded>(self) {
        let Self { isa, blocks, panel } = self;
        isa.call(Panel::<B> { blocks, panel, format: PhantomData });
    }
}

/// [`from_packed`] of one format.
struct Panel<'a, B> {
    blocks: &'a [u8],
    panel: &'a mut [f32],
    format: PhantomData<B>,
}

impl<B: Coded> Piece for Panel<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let blocks = self.blocks.chunks_exact(Layout::<B>::BYTES);
        for (block, panel) in blocks.zip(self.panel.chunks_exact_mut(B::LEN * PANEL)) {
            for lane in (0..PANEL).step_by(I::LANES) {
                expand_block::<I, B>(isa, block, lane, panel);
            }
        }
    }
}

/// One block of the rows from `lane` on, to their columns of the panel.
#[inline(always)]
fn expand_block<I: Isa, B: Coded>(isa: I, block: &[u8], lane: usize, panel: &mut [f32]) {
    let factors = Factors::load::<B>(isa, block, lane);
    for g in 0..Layout::<B>::GROUPS {
        let codes = unpack::<I, B>(isa, planes::<B>(block, g), lane);
        for half in 0..2 {
            let first = 32 * g + 16 * half;
            let factors = factors.part::<B>(isa, first / Layout::<B>::PART_LEN);
            for i in 0..4 {
                let panel = &mut panel[first * PANEL + lane..];
                store_dword::<I, B>(isa, codes[4 * half + i], factors, i, panel);
            }
        }
    }
}

/// The four weights of dword `i` of sixteen weights to their rows of the panel.
#[inline(always)]
fn store_dword<I: Isa, B: Coded>(
    isa: I,
    codes: I::Ints,
    (scale, offset): (I::F32, I::F32),
    i: usize,
    panel: &mut [f32],
) {
    let zero = isa.splat(B::ZERO as f32);
    let bytes =
        [isa.byte::<0>(codes), isa.byte::<1>(codes), isa.byte::<2>(codes), isa.byte::<3>(codes)];
    for j in 0..4 {
        let mut w = isa.mul(scale, isa.sub(bytes[j], zero));
        if B::MINIMUM {
            w = isa.add(w, offset);
        }
        isa.store(w, &mut panel[ORDER[4 * i + j] * PANEL..]);
    }
}
