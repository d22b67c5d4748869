//! The product of many rows, `C += A B`, from packed operands. `A` comes in strips of six rows,
//! `[k][6]`; `B` in panels of sixteen columns, `[k][16]`. Up to 24 vectors of `C` stay in registers
//! while `k` runs. Each element of a tile is one chain of multiply-adds in the order of `k`, added
//! to what `C` held.
//!
//! An element of `A` and `B` is a word: an `f32`, or where the machine multiplies those faster, two
//! `bf16` values that are neighbours in depth. [`Words`] tells them apart, and nothing else does.

// Plain loops over constant ranges unroll, and sums stay in registers. Iterator adaptors and
// closures are compiled without the features of the instruction set, and may stay calls.
#![allow(clippy::needless_range_loop, reason = "see above")]

use std::marker::PhantomData;

use super::dot_packed::{Factors, planes, unpack};
use crate::Format;
use crate::cpu::isa::{Cache, Isa, PairIsa, Piece};
use crate::cpu::packed::codes::{self, Coded, CodedVisitor};
use crate::cpu::packed::{Layout, ORDER};
use crate::cpu::rect::Rect;
use crate::format::{Block, BlockVisitor};

/// Rows of a strip of `A`.
pub(crate) const STRIP: usize = 6;
/// Columns of a panel of `B`.
pub(crate) const PANEL: usize = 16;

/// Panels that one tile takes where registers allow.
const MOST_PANELS: usize = 4;

/// What a product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Zero; what the tile held is not read.
    Zero,
    /// What the tile holds.
    Held,
}

/// What the words of a product are.
pub(crate) trait Words: Copy {
    /// Where they are vectors.
    type Isa: Isa;
    /// The instruction set.
    fn isa(self) -> Self::Isa;
    /// `sum + a b` of each lane.
    fn multiply_add(self, a: F32<Self>, b: F32<Self>, sum: F32<Self>) -> F32<Self>;
    /// Four vectors of weights, of depths `depths` within `panel`, of which neighbours in depth are
    /// 0 and 2, 1 and 3.
    fn put(self, weights: [F32<Self>; 4], depths: [usize; 4], panel: &mut [f32]);
    /// Values of depth in a word.
    const DEPTH: usize;
}

type F32<W> = <<W as Words>::Isa as Isa>::F32;

/// A word is an `f32`.
#[derive(Clone, Copy)]
struct Singles<I>(I);

/// A word is two `bf16` values.
#[derive(Clone, Copy)]
struct PairWords<I>(I);

impl<I: Isa> Words for Singles<I> {
    type Isa = I;
    const DEPTH: usize = 1;

    #[inline(always)]
    fn isa(self) -> I {
        self.0
    }
    #[inline(always)]
    fn multiply_add(self, a: I::F32, b: I::F32, sum: I::F32) -> I::F32 {
        self.0.fma(a, b, sum)
    }
    #[inline(always)]
    fn put(self, weights: [I::F32; 4], depths: [usize; 4], panel: &mut [f32]) {
        for j in 0..4 {
            self.0.store(weights[j], &mut panel[depths[j] * PANEL..]);
        }
    }
}

impl<I: PairIsa> Words for PairWords<I> {
    type Isa = I;
    const DEPTH: usize = 2;

    #[inline(always)]
    fn isa(self) -> I {
        self.0
    }
    #[inline(always)]
    fn multiply_add(self, a: I::F32, b: I::F32, sum: I::F32) -> I::F32 {
        self.0.dot_pairs(a, b, sum)
    }
    #[inline(always)]
    fn put(self, weights: [I::F32; 4], depths: [usize; 4], panel: &mut [f32]) {
        for j in 0..2 {
            let words = self.0.pair(weights[j], weights[j + 2]);
            self.0.store(words, &mut panel[depths[j] / 2 * PANEL..]);
        }
    }
}

/// `c[i][j] (+)= Σ_k a[i / 6][k][i % 6] panels[j / 16][k][j % 16]` for the rows and columns that
/// `c` has. The depth is that of the panels; the strips of `a` may be further apart.
#[inline(always)]
pub(crate) fn multiply<I: Isa>(
    isa: I,
    a: &[f32],
    panels: &[f32],
    start: Start,
    c: &mut Rect<'_, f32>,
) {
    multiply_words(Singles(isa), a, panels, start, c);
}

/// [`multiply`] of words that are pairs.
#[inline(always)]
pub(crate) fn multiply_pairs<I: PairIsa>(
    isa: I,
    a: &[f32],
    panels: &[f32],
    start: Start,
    c: &mut Rect<'_, f32>,
) {
    multiply_words(PairWords(isa), a, panels, start, c);
}

#[inline(always)]
fn multiply_words<W: Words>(
    words: W,
    a: &[f32],
    panels: &[f32],
    start: Start,
    c: &mut Rect<'_, f32>,
) {
    let (rows, cols) = c.shape();
    if rows == 0 || cols == 0 {
        return;
    }
    let strip_len = panels.len() / cols.next_multiple_of(PANEL) * STRIP;
    let slot = a.len() / rows.div_ceil(STRIP);
    for (i, a) in a.chunks_exact(slot).enumerate() {
        let (a, first) = (a[..strip_len].as_chunks().0, i * STRIP);
        match rows - first {
            1 => strip::<W, 1>(words, a, panels, start, (c, first)),
            2 => strip::<W, 2>(words, a, panels, start, (c, first)),
            3 => strip::<W, 3>(words, a, panels, start, (c, first)),
            4 => strip::<W, 4>(words, a, panels, start, (c, first)),
            5 => strip::<W, 5>(words, a, panels, start, (c, first)),
            _ => strip::<W, 6>(words, a, panels, start, (c, first)),
        }
    }
}

/// `R` rows of `c`, from `first` on.
#[inline(always)]
fn strip<W: Words, const R: usize>(
    words: W,
    a: &[[f32; STRIP]],
    panels: &[f32],
    start: Start,
    (c, first): (&mut Rect<'_, f32>, usize),
) {
    let cols = c.shape().1;
    let panel_len = a.len() * PANEL;
    let mut from = 0;
    while from < cols {
        let panels = &panels[from * a.len()..];
        if W::Isa::MANY_REGISTERS && from + MOST_PANELS * PANEL <= cols {
            let panels =
                std::array::from_fn(|p| panels[p * panel_len..][..panel_len].as_chunks().0);
            let sums = multiply_tile::<W, R, MOST_PANELS>(words, a, panels);
            put_tile(words.isa(), sums, start, c, (first, from));
            from += MOST_PANELS * PANEL;
            continue;
        }
        let sums = multiply_tile::<W, R, 1>(words, a, [panels[..panel_len].as_chunks().0]);
        if from + PANEL <= cols {
            put_tile(words.isa(), sums, start, c, (first, from));
        } else {
            put_narrow(words.isa(), sums, start, c, (first, from));
        }
        from += PANEL;
    }
}

/// Sums of `R` rows and `P` panels: one or two vectors to a row of a panel.
type Sums<V, const R: usize, const P: usize> = [[[V; 2]; P]; R];

/// `R` rows times `P` panels.
#[inline(always)]
fn multiply_tile<W: Words, const R: usize, const P: usize>(
    words: W,
    a: &[[f32; STRIP]],
    panels: [&[[f32; PANEL]]; P],
) -> Sums<F32<W>, R, P> {
    const { assert!(PANEL.is_multiple_of(W::Isa::LANES) && PANEL <= 2 * W::Isa::LANES) };
    const { assert!(R <= STRIP && P <= MOST_PANELS) };
    let isa = words.isa();
    let lanes = W::Isa::LANES;
    let mut panels = panels;
    for p in 0..P {
        panels[p] = &panels[p][..a.len()];
    }
    let mut sums = [[[isa.splat(0.0); 2]; P]; R];
    for k in 0..a.len() {
        let mut b = [[isa.splat(0.0); 2]; P];
        for p in 0..P {
            for v in 0..PANEL / lanes {
                b[p][v] = isa.load(&panels[p][k][v * lanes..]);
            }
        }
        for r in 0..R {
            let a = isa.splat(a[k][r]);
            for p in 0..P {
                for v in 0..PANEL / lanes {
                    sums[r][p][v] = words.multiply_add(a, b[p][v], sums[r][p][v]);
                }
            }
        }
    }
    sums
}

/// Sums to rows and columns of `c` from `first` and `from` on.
#[inline(always)]
fn put_tile<I: Isa, const R: usize, const P: usize>(
    isa: I,
    sums: Sums<I::F32, R, P>,
    start: Start,
    c: &mut Rect<'_, f32>,
    (first, from): (usize, usize),
) {
    for r in 0..R {
        let row = &mut c.row(first + r)[from..][..P * PANEL];
        for p in 0..P {
            for v in 0..PANEL / I::LANES {
                let c = &mut row[p * PANEL + v * I::LANES..];
                // Added last: the next tile can begin before this one's memory has come.
                let sum = match start {
                    Start::Zero => sums[r][p][v],
                    Start::Held => isa.add(isa.load(c), sums[r][p][v]),
                };
                isa.store(sum, c);
            }
        }
    }
}

/// Likewise to the last columns, of which there are fewer than [`PANEL`].
#[inline(always)]
fn put_narrow<I: Isa, const R: usize>(
    isa: I,
    sums: Sums<I::F32, R, 1>,
    start: Start,
    c: &mut Rect<'_, f32>,
    (first, from): (usize, usize),
) {
    for r in 0..R {
        let mut wide = [0.0; PANEL];
        for v in 0..PANEL / I::LANES {
            isa.store(sums[r][0][v], &mut wide[v * I::LANES..]);
        }
        for (c, sum) in c.row(first + r)[from..].iter_mut().zip(wide) {
            *c = match start {
                Start::Zero => sum,
                Start::Held => *c + sum,
            };
        }
    }
}

/// Values as words of neighbours; a last one alone beside a zero. Panics where `words` are not
/// half as many.
#[inline(always)]
pub(crate) fn pair_up<I: PairIsa>(isa: I, x: &[f32], words: &mut [f32]) {
    assert_eq!(x.len().div_ceil(2), words.len());
    let whole = words.len() - words.len() % I::LANES;
    for at in (0..whole).step_by(I::LANES) {
        // The last vector may lack one value.
        if 2 * (at + I::LANES) <= x.len() {
            isa.store(isa.pair_up(&x[2 * at..]), &mut words[at..]);
        }
    }
    let done = if 2 * whole <= x.len() { whole } else { whole - I::LANES };
    for (pair, word) in x[2 * done..].chunks(2).zip(&mut words[done..]) {
        let high = pair.get(1).copied().unwrap_or(0.0);
        let mut one = [0.0; PANEL];
        isa.store(isa.pair(isa.splat(pair[0]), isa.splat(high)), &mut one);
        *word = one[0];
    }
}

/// The words of a run of a `bf16` row: its own bytes; a last value alone beside a zero. Asks for the
/// run behind it, which is packed next: pages of a mapped file are small, and each of sixteen rows
/// begins another, which the processor does not foresee.
#[inline(always)]
pub(crate) fn copy_pairs<I: PairIsa>(isa: I, run: &[u8], words: &mut [f32]) {
    isa.prefetch(Cache::Second, run, run.len()..2 * run.len());
    let (here, rest) = bytemuck::cast_slice_mut(words).split_at_mut(run.len());
    here.copy_from_slice(run);
    rest.fill(0u8);
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
    expand(Singles(isa), format, blocks, panel);
}

/// Likewise, as a panel `[depth / 2][16]` of pairs.
#[inline(always)]
pub(crate) fn pairs_from_packed<I: PairIsa>(
    isa: I,
    format: Format,
    blocks: &[u8],
    panel: &mut [f32],
) {
    expand(PairWords(isa), format, blocks, panel);
}

#[inline(always)]
fn expand<W: Words>(words: W, format: Format, blocks: &[u8], panel: &mut [f32]) {
    let done = codes::visit(format, Expand { words, blocks, panel });
    debug_assert!(done.is_some(), "a packed format");
}

struct Expand<'a, W> {
    words: W,
    blocks: &'a [u8],
    panel: &'a mut [f32],
}

impl<W: Words> CodedVisitor for Expand<'_, W> {
    type Output = ();

    #[inline(always)]
    fn visit<B: Coded>(self) {
        let Self { words, blocks, panel } = self;
        words.isa().call(ExpandOf::<W, B> { words, blocks, panel, format: PhantomData });
    }
}

/// [`expand`] of one format. It keeps its own token, which knows more than the one it is run with.
struct ExpandOf<'a, W, B> {
    words: W,
    blocks: &'a [u8],
    panel: &'a mut [f32],
    format: PhantomData<B>,
}

impl<W: Words, B: Coded> Piece for ExpandOf<'_, W, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let blocks = self.blocks.chunks_exact(Layout::<B>::BYTES);
        for (block, panel) in blocks.zip(self.panel.chunks_exact_mut(B::LEN / W::DEPTH * PANEL)) {
            for lane in (0..PANEL).step_by(W::Isa::LANES) {
                expand_block::<W, B>(self.words, block, lane, panel);
            }
        }
    }
}

/// One block of the rows from `lane` on, to their columns of the panel.
#[inline(always)]
fn expand_block<W: Words, B: Coded>(words: W, block: &[u8], lane: usize, panel: &mut [f32]) {
    let isa = words.isa();
    let factors = Factors::load::<B>(isa, block, lane);
    for g in 0..Layout::<B>::GROUPS {
        let codes = unpack::<W::Isa, B>(isa, planes::<B>(block, g), lane);
        for half in 0..2 {
            let first = 32 * g + 16 * half;
            let factors = factors.part::<B>(isa, first / Layout::<B>::PART_LEN);
            let panel = &mut panel[first / W::DEPTH * PANEL + lane..];
            for i in 0..4 {
                let weights = weights::<W::Isa, B>(isa, codes[4 * half + i], factors);
                let depths = [0, 1, 2, 3].map(|j| ORDER[4 * i + j]);
                words.put(weights, depths, panel);
            }
        }
    }
}

/// The weights of four codes.
#[inline(always)]
fn weights<I: Isa, B: Coded>(
    isa: I,
    codes: I::Ints,
    (scale, offset): (I::F32, I::F32),
) -> [I::F32; 4] {
    let zero = isa.splat(B::ZERO as f32);
    let mut weights =
        [isa.byte::<0>(codes), isa.byte::<1>(codes), isa.byte::<2>(codes), isa.byte::<3>(codes)];
    for weight in &mut weights {
        *weight = isa.mul(scale, isa.sub(*weight, zero));
        if B::MINIMUM {
            *weight = isa.add(*weight, offset);
        }
    }
    weights
}
