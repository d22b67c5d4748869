//! The two products of attention, a few queries at a time in registers.
//!
//! [`Scores`]: `s[r][c] = Σ_d q[r][d] k[c][d]`, vectors along `d`, one sum for each pair.
//! [`Weigh`]: `o[r][d] += Σ_c w[r][c] v[c][d]`, vectors along `d`, keys in order.
//! Neither result depends on how rows or keys are grouped into calls.

use crate::cpu::isa::{Isa, Piece};
use crate::cpu::ops::attention::tile::padded;
use crate::cpu::ops::vector::{Element, load_or};

/// Keys whose scores are summed together.
const KEYS: usize = 4;

/// How many of `left` rows to take at once: three fill the registers, and one alone is slow.
#[inline(always)]
const fn rows_at_once(left: usize) -> usize {
    match left {
        4 => 2,
        0..=3 => left,
        _ => 3,
    }
}

/// Fills s.
#[derive(Debug)]
pub(crate) struct Scores<'a, T> {
    /// `(rows, padded(head_dim))`.
    pub(crate) q: &'a [f32],
    /// Queries.
    pub(crate) rows: usize,
    /// `(n, head_dim)`.
    pub(crate) keys: &'a [T],
    /// Width of a key.
    pub(crate) head_dim: usize,
    /// `(rows, stride)`, of which the first `n` of a row are set.
    pub(crate) s: &'a mut [f32],
    /// From row to row of `s`.
    pub(crate) stride: usize,
}

impl<T: Element> Piece for Scores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { q, rows, keys, head_dim, s, stride } = self;
        let width = padded(head_dim);
        let mut row = 0;
        while row < rows {
            let (q, s) = (&q[row * width..], &mut s[row * stride..]);
            let taken = rows_at_once(rows - row);
            match taken {
                1 => scores_rows::<I, T, 1>(isa, q, (keys, head_dim), s, stride),
                2 => scores_rows::<I, T, 2>(isa, q, (keys, head_dim), s, stride),
                _ => scores_rows::<I, T, 3>(isa, q, (keys, head_dim), s, stride),
            }
            row += taken;
        }
    }
}

#[inline(always)]
fn scores_rows<I: Isa, T: Element, const R: usize>(
    isa: I,
    q: &[f32],
    (keys, head_dim): (&[T], usize),
    s: &mut [f32],
    stride: usize,
) {
    let width = padded(head_dim);
    let whole = head_dim - head_dim % I::LANES;
    let mut queries = [&q[..width]; R];
    for (r, query) in queries.iter_mut().enumerate() {
        *query = &q[r * width..][..width];
    }
    let n = keys.len() / head_dim;
    for first in (0..n).step_by(KEYS) {
        let taken = KEYS.min(n - first);
        // Keys that are not there repeat the last one; their sums are dropped.
        let mut four = [&keys[..head_dim]; KEYS];
        for (i, key) in four.iter_mut().enumerate() {
            *key = &keys[(first + i.min(taken - 1)) * head_dim..][..head_dim];
        }
        let mut sums = [[isa.splat(0.0); KEYS]; R];
        for d in (0..whole).step_by(I::LANES) {
            let keys = load_keys(isa, four, d);
            add_products(isa, queries, d, keys, &mut sums);
        }
        if whole < head_dim {
            let keys = load_keys(isa, four, whole);
            add_products(isa, queries, whole, keys, &mut sums);
        }
        for r in 0..R {
            let sums = isa.reduce_sum4(sums[r]);
            s[r * stride + first..][..taken].copy_from_slice(&sums[..taken]);
        }
    }
}

/// A vector of each key, from `d` on. Written out: a closure in `map` might stay a call, and lose
/// the instruction set with it.
#[inline(always)]
fn load_keys<I: Isa, T: Element>(isa: I, keys: [&[T]; KEYS], d: usize) -> [I::F32; KEYS] {
    [
        load_or(isa, &keys[0][d..], 0.0),
        load_or(isa, &keys[1][d..], 0.0),
        load_or(isa, &keys[2][d..], 0.0),
        load_or(isa, &keys[3][d..], 0.0),
    ]
}

/// `sums[r][i] += q[r][d..] k[i]`, lane by lane.
#[inline(always)]
fn add_products<I: Isa, const R: usize>(
    isa: I,
    queries: [&[f32]; R],
    d: usize,
    keys: [I::F32; KEYS],
    sums: &mut [[I::F32; KEYS]; R],
) {
    for (query, sums) in queries.iter().zip(sums) {
        let query = isa.load(&query[d..]);
        for (key, sum) in keys.iter().zip(sums) {
            *sum = isa.fma(query, *key, *sum);
        }
    }
}

/// Weights of rows and keys: that of row `r` and key `c` is `w[r * row_step + c * key_step]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<'a> {
    /// All of them.
    pub(crate) w: &'a [f32],
    /// From row to row.
    pub(crate) row_step: usize,
    /// From key to key.
    pub(crate) key_step: usize,
}

impl Weights<'_> {
    /// Without the first `rows` rows.
    #[inline(always)]
    fn skip(self, rows: usize) -> Self {
        Self { w: &self.w[rows * self.row_step..], ..self }
    }
}

/// Adds to out.
#[derive(Debug)]
pub(crate) struct Weigh<'a, T> {
    /// Of each row and key.
    pub(crate) weights: Weights<'a>,
    /// `(n, head_dim)`.
    pub(crate) values: &'a [T],
    /// Width of a value.
    pub(crate) head_dim: usize,
    /// Rows of `out`.
    pub(crate) rows: usize,
    /// `(rows, stride)`, of which the first `padded(head_dim)` of a row are touched.
    pub(crate) out: &'a mut [f32],
    /// From row to row of `out`.
    pub(crate) stride: usize,
}

impl<T: Element> Piece for Weigh<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { weights, values, head_dim, rows, out, stride } = self;
        let values = (values, head_dim);
        let mut row = 0;
        while row < rows {
            let (weights, out) = (weights.skip(row), &mut out[row * stride..]);
            let taken = rows_at_once(rows - row);
            match taken {
                1 => weigh_rows::<I, T, 1>(isa, weights, values, out, stride),
                2 => weigh_rows::<I, T, 2>(isa, weights, values, out, stride),
                _ => weigh_rows::<I, T, 3>(isa, weights, values, out, stride),
            }
            row += taken;
        }
    }
}

#[inline(always)]
fn weigh_rows<I: Isa, T: Element, const R: usize>(
    isa: I,
    weights: Weights<'_>,
    (values, head_dim): (&[T], usize),
    out: &mut [f32],
    stride: usize,
) {
    let mut d = 0;
    while d + 4 * I::LANES <= head_dim {
        weigh_columns::<I, T, R, 4>(isa, weights, (values, head_dim), d, out, stride);
        d += 4 * I::LANES;
    }
    while d < head_dim {
        weigh_columns::<I, T, R, 1>(isa, weights, (values, head_dim), d, out, stride);
        d += I::LANES;
    }
}

/// Columns `d..` of `R` rows, `V` vectors of them.
#[inline(always)]
fn weigh_columns<I: Isa, T: Element, const R: usize, const V: usize>(
    isa: I,
    weights: Weights<'_>,
    (values, head_dim): (&[T], usize),
    d: usize,
    out: &mut [f32],
    stride: usize,
) {
    let mut sums = [[isa.splat(0.0); V]; R];
    for r in 0..R {
        for v in 0..V {
            sums[r][v] = isa.load(&out[r * stride + d + v * I::LANES..]);
        }
    }
    let Weights { w, row_step, key_step } = weights;
    let columns = V * I::LANES;
    for (c, value) in values.chunks_exact(head_dim).enumerate() {
        let value = &value[d..head_dim.min(d + columns)];
        for v in 0..V {
            let x = load_or(isa, &value[v * I::LANES..], 0.0);
            for r in 0..R {
                let weight = isa.splat(w[r * row_step + c * key_step]);
                sums[r][v] = isa.fma(weight, x, sums[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            isa.store(sums[r][v], &mut out[r * stride + d + v * I::LANES..]);
        }
    }
}
