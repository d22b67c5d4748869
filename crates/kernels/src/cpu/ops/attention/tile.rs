//! One tile of queries against the keys of one key-value head: what the kernel table holds.
//!
//! Keys are taken in ranges of [`RANGE`], counted from key 0. A range by itself gives
//! `m = max s`, `l = Σ exp(s - m)` and `o = Σ exp(s - m) v`; ranges are merged in order by
//! rescaling to the larger `m`. Which rows share a tile and which thread takes a range changes no
//! bit of the result: masked keys add exact zeros, and every sum runs over keys in order.

use std::ops::Range;

use super::pages::{Ahead, Pages};
use super::product::{Product, Queries, Scores, Weigh};
use crate::cpu::isa::Isa;
use crate::cpu::kv_cache::units::{PANEL, Stored};
use crate::cpu::ops::vector::{self, MAX_LANES, load, store};
use crate::{Dtype, KvShape, Mask};

/// Keys that are scored before any is weighed, and whose weighed values are one chain of sums.
pub(crate) const RANGE: usize = 128;

/// Scores in a row: those of a range, and a panel before and behind, since panels are scored whole.
pub(crate) const SCORE_ROW: usize = PANEL + RANGE + PANEL;

/// Rows of a tile up to which its products wait for memory.
const FEW_ROWS: usize = 16;

/// Queries of consecutive tokens, for the heads that share one key-value head. Row
/// `token * group + head` of the tile is one query.
#[derive(Debug)]
pub(crate) struct Tile<'a, T: Stored> {
    /// `n_tokens * group` rows.
    pub(crate) q: Queries<'a>,
    /// Query heads of one key-value head.
    pub(crate) group: usize,
    /// Tokens in the tile.
    pub(crate) n_tokens: usize,
    /// Token of the span that the tile begins with.
    pub(crate) first_token: usize,
    /// Tokens of the span.
    pub(crate) span_tokens: usize,
    /// Keys of the span.
    pub(crate) n_keys: usize,
    /// Which of them each token sees.
    pub(crate) mask: Mask<'a>,
    /// Keys and values of the head.
    pub(crate) pages: Pages<'a, T>,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Type of scores and probabilities.
    pub(crate) dtype: Dtype,
}

impl<T: Stored> Tile<'_, T> {
    /// Queries in the tile.
    pub(crate) fn rows(&self) -> usize {
        self.n_tokens * self.group
    }

    /// Keys that a token of the tile may see: the first so many.
    pub(crate) fn visible(&self, token: usize) -> usize {
        match self.mask {
            Mask::Additive(_) => self.n_keys,
            _ => self.n_keys - self.span_tokens + self.first_token + token + 1,
        }
    }

    /// Keys that any token of the tile may see.
    pub(crate) fn limit(&self) -> usize {
        self.visible(self.n_tokens - 1)
    }
}

/// `head_dim` rounded up to whole vectors of any instruction set, and to whole groups of 32.
pub(crate) const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(2 * MAX_LANES)
}

/// Values of the state of one query: `o` `(padded(head_dim))`, then `m`, then `l`, to the end of
/// the cache line.
pub(crate) const fn state_len(head_dim: usize) -> usize {
    padded(head_dim) + MAX_LANES
}

/// What a pass over the keys does with the scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Finds `m`, `l` and `o` at once.
    Online,
    /// Finds `m` and `l` only.
    Stats,
    /// Adds to `o` with probabilities `exp(s - m) / l`, rounded before they weigh: what a narrow
    /// type asks for.
    Weigh,
}

/// Room for [`attend`] with a tile of `rows`: scores and states of a range, and the keys and values
/// of a range where they are widened.
pub(crate) fn scratch_len<T: Product>(rows: usize, head_dim: usize) -> usize {
    let wide = if widens::<T>(rows) { 2 * RANGE * padded(head_dim) } else { 0 };
    rows * (SCORE_ROW + state_len(head_dim)) + wide
}

/// Whether a tile of so many rows has its keys and values widened, and not once for every few.
fn widens<T: Product>(rows: usize) -> bool {
    T::NARROW && rows > FEW_ROWS
}

/// Sets states `(rows, state_len)` to those of no keys at all.
pub(crate) fn clear(states: &mut [f32], head_dim: usize) {
    for state in states.chunks_exact_mut(state_len(head_dim)) {
        state.fill(0.0);
        state[padded(head_dim)] = f32::NEG_INFINITY;
    }
}

/// Takes the numbered ranges of keys into the tile's states `(rows, state_len)`.
#[inline(always)]
pub(crate) fn attend<I: Isa, T: Product>(
    isa: I,
    tile: &Tile<'_, T>,
    ranges: Range<usize>,
    pass: Pass,
    states: &mut [f32],
    scratch: &mut [f32],
) {
    let shape = tile.pages.shape;
    let (scratch, wide) =
        scratch.split_at_mut(tile.rows() * (SCORE_ROW + state_len(shape.head_dim)));
    for index in ranges {
        let keys = index * RANGE..tile.limit().min((index + 1) * RANGE);
        if keys.is_empty() {
            break;
        }
        if widens::<T>(tile.rows()) && shape.block_len.is_multiple_of(PANEL) {
            let wide = wide.as_chunks_mut().0;
            attend_range(isa, &widened(isa, tile, &keys, wide), keys, pass, states, scratch);
        } else {
            attend_range(isa, tile, keys, pass, states, scratch);
        }
    }
}

/// A tile whose pages are one block of `f32`: the keys of a range.
#[inline(always)]
fn widened<'a, I: Isa, T: Product>(
    isa: I,
    tile: &Tile<'a, T>,
    keys: &Range<usize>,
    wide: &'a mut [[f32; PANEL]],
) -> Tile<'a, f32> {
    let head_dim = tile.pages.shape.head_dim;
    let (wide_keys, wide_values) = wide.split_at_mut(RANGE / PANEL * head_dim);
    let wide_values = &mut wide_values[..RANGE * f32::VALUES.across(head_dim)];
    let mut at = keys.clone();
    while !at.is_empty() {
        let run = tile.pages.run(&at);
        let values = tile.pages.values(run);
        let across = f32::VALUES.across(head_dim);
        let first = at.start - keys.start;
        let from = (tile.pages.panels(run), &values.units[run.at * across..][..run.n * across]);
        let to = (&mut wide_keys[first / PANEL * head_dim..], &mut wide_values[first * across..]);
        T::widen(isa, from, to);
        at.start += run.n;
    }
    let shape = KvShape { n_blocks: 1, n_kv_heads: 1, block_len: RANGE, ..tile.pages.shape };
    let first_key = keys.start;
    let Tile { q, group, n_tokens, first_token, span_tokens, n_keys, mask, scale, dtype, .. } =
        *tile;
    Tile {
        q,
        group,
        n_tokens,
        first_token,
        span_tokens,
        n_keys,
        mask,
        pages: Pages {
            keys: wide_keys,
            values: wide_values,
            shape,
            blocks: &[0],
            head: 0,
            first_key,
        },
        scale,
        dtype,
    }
}

/// One range of keys.
#[inline(always)]
fn attend_range<I: Isa, T: Product>(
    isa: I,
    tile: &Tile<'_, T>,
    keys: Range<usize>,
    pass: Pass,
    states: &mut [f32],
    scratch: &mut [f32],
) {
    let head_dim = tile.pages.shape.head_dim;
    let (s, parts) = scratch.split_at_mut(tile.rows() * SCORE_ROW);
    let few = tile.rows() <= FEW_ROWS;
    let ahead = if few { tile.pages.first_values(&keys) } else { Ahead::default() };
    tile_scores(isa, tile, &keys, s, ahead);
    let rows = s.chunks_exact_mut(SCORE_ROW).zip(parts.chunks_exact_mut(state_len(head_dim)));
    for ((s, part), state) in rows.zip(states.chunks_exact(state_len(head_dim))) {
        let (o, stats) = part.split_at_mut(padded(head_dim));
        o.fill(0.0);
        let s = &mut s[PANEL..];
        if pass == Pass::Weigh {
            let (m, l) = (state[padded(head_dim)], state[padded(head_dim) + 1]);
            normalise(isa, &mut s[..keys.len()], m, l, tile.dtype);
        } else {
            (stats[0], stats[1]) = soften(isa, whole_vectors(s, keys.len()));
        }
    }
    if pass != Pass::Stats {
        let later = keys.end..tile.limit();
        let ahead = if few { tile.pages.first_keys(&later) } else { Ahead::default() };
        tile_weigh(isa, tile, &keys, s, (parts, state_len(head_dim)), ahead);
    }
    merge(isa, pass, head_dim, parts, states);
}

/// The first `n` scores of a row and as many unseen ones as make vectors whole.
#[inline(always)]
fn whole_vectors(s: &mut [f32], n: usize) -> &mut [f32] {
    let end = n.next_multiple_of(2 * MAX_LANES);
    s[n..end].fill(f32::NEG_INFINITY);
    &mut s[..end]
}

/// Merges the states of later keys into those of earlier ones.
#[inline(always)]
pub(crate) fn merge<I: Isa>(
    isa: I,
    pass: Pass,
    head_dim: usize,
    later: &[f32],
    states: &mut [f32],
) {
    let len = state_len(head_dim);
    for (later, state) in later.chunks_exact(len).zip(states.chunks_exact_mut(len)) {
        let (state_o, stats) = state.split_at_mut(padded(head_dim));
        let (later_o, later_stats) = later.split_at(padded(head_dim));
        let (mut keep, mut take) = (1.0, 1.0);
        if pass != Pass::Weigh {
            if later_stats[0] == f32::NEG_INFINITY {
                continue;
            }
            let m = if stats[0] >= later_stats[0] { stats[0] } else { later_stats[0] };
            (keep, take) = (exp_one(isa, stats[0] - m), exp_one(isa, later_stats[0] - m));
            stats[0] = m;
            stats[1] = stats[1] * keep + later_stats[1] * take;
        }
        let (keep, take) = (isa.splat(keep), isa.splat(take));
        for at in (0..state_o.len()).step_by(I::LANES) {
            let kept = isa.mul(isa.load(&state_o[at..]), keep);
            isa.store(isa.fma(isa.load(&later_o[at..]), take, kept), &mut state_o[at..]);
        }
    }
}

/// Turns the `o` of finished states into output values, rounded, and `m` into the log of the
/// softmax denominator. A query that saw no key gets zeros.
#[inline(always)]
pub(crate) fn finish<I: Isa>(
    isa: I,
    pass: Pass,
    head_dim: usize,
    dtype: Dtype,
    states: &mut [f32],
) {
    for state in states.chunks_exact_mut(state_len(head_dim)) {
        let (o, stats) = state.split_at_mut(padded(head_dim));
        let divisor = if pass == Pass::Online && stats[1] > 0.0 { stats[1] } else { 1.0 };
        let divisor = isa.splat(divisor);
        for at in (0..o.len()).step_by(I::LANES) {
            let y = isa.round_to(dtype, isa.div(isa.load(&o[at..]), divisor));
            isa.store(y, &mut o[at..]);
        }
        stats[0] += stats[1].ln();
    }
}

/// The probabilities of a tile of one query, `(n_keys)`.
#[inline(always)]
pub(crate) fn probabilities<I: Isa, T: Product>(
    isa: I,
    tile: &Tile<'_, T>,
    probs: &mut [f32],
    scratch: &mut [f32],
) {
    let (seen, unseen) = probs.split_at_mut(tile.limit());
    unseen.fill(0.0);
    for start in (0..seen.len()).step_by(RANGE) {
        let keys = start..seen.len().min(start + RANGE);
        tile_scores(isa, tile, &keys, scratch, Ahead::default());
        seen[keys.clone()].copy_from_slice(&scratch[PANEL..][..keys.len()]);
    }
    let (_, l) = soften(isa, seen);
    let divisor = isa.splat(if l > 0.0 { l } else { 1.0 });
    for at in (0..seen.len()).step_by(I::LANES) {
        let tail = &mut seen[at..];
        store(isa, isa.round_to(tile.dtype, isa.div(load(isa, tail), divisor)), tail);
    }
}

/// `s[row][PANEL + key - keys.start]` of the tile's rows, `(rows, SCORE_ROW)`: scaled, masked and
/// rounded in the order of an eager framework; `-inf` for keys that a row does not see. What lies
/// before and behind the keys is left in any state.
#[inline(always)]
pub(crate) fn tile_scores<I: Isa, T: Product>(
    isa: I,
    tile: &Tile<'_, T>,
    keys: &Range<usize>,
    s: &mut [f32],
    ahead: Ahead<'_>,
) {
    let mut at = keys.clone();
    while !at.is_empty() {
        let run = tile.pages.run(&at);
        let later = at.start + run.n..at.end;
        let wait = tile.rows() <= FEW_ROWS && !later.is_empty();
        isa.call(Scores::<T> {
            q: tile.q,
            rows: tile.rows(),
            panels: tile.pages.panels(run),
            head_dim: tile.pages.shape.head_dim,
            scale: (tile.scale, tile.dtype),
            s: &mut s[PANEL + at.start - keys.start - run.at % PANEL..],
            stride: SCORE_ROW,
            ahead: if wait { tile.pages.first_keys(&later) } else { ahead },
        });
        at.start += run.n;
    }
    for (row, s) in s.chunks_exact_mut(SCORE_ROW).take(tile.rows()).enumerate() {
        let token = row / tile.group;
        let s = &mut s[PANEL..][..keys.len()];
        match tile.mask {
            Mask::Causal => {}
            Mask::CausalKeys(keep) => {
                for (s, keep) in s.iter_mut().zip(&keep[keys.clone()]) {
                    *s = if *keep { *s } else { f32::NEG_INFINITY };
                }
            }
            Mask::Additive(bias) => {
                let bias = &bias[(tile.first_token + token) * tile.n_keys + keys.start..];
                add_bias(isa, s, tile.dtype, bias);
            }
        }
        let seen = tile.visible(token).saturating_sub(keys.start).min(s.len());
        s[seen..].fill(f32::NEG_INFINITY);
    }
}

/// Adds to out `(rows, stride)` the values of the keys, weighed by w `(rows, SCORE_ROW)`.
#[inline(always)]
pub(crate) fn tile_weigh<I: Isa, T: Product>(
    isa: I,
    tile: &Tile<'_, T>,
    keys: &Range<usize>,
    w: &[f32],
    (out, stride): (&mut [f32], usize),
    ahead: Ahead<'_>,
) {
    let mut at = keys.clone();
    while !at.is_empty() {
        let run = tile.pages.run(&at);
        let later = at.start + run.n..at.end;
        let wait = tile.rows() <= FEW_ROWS && !later.is_empty();
        isa.call(Weigh::<T> {
            w: &w[PANEL + at.start - keys.start..],
            w_stride: SCORE_ROW,
            values: tile.pages.values(run),
            rows: tile.rows(),
            out: &mut *out,
            stride,
            ahead: if wait { tile.pages.first_values(&later) } else { ahead },
        });
        at.start += run.n;
    }
}

#[inline(always)]
fn add_bias<I: Isa>(isa: I, s: &mut [f32], dtype: Dtype, bias: &[f32]) {
    for at in (0..s.len()).step_by(I::LANES) {
        let tail = &mut s[at..];
        let sum = isa.add(load(isa, tail), load(isa, &bias[at..]));
        store(isa, isa.round_to(dtype, sum), tail);
    }
}

/// `s = exp(s - m)`; returns `m = max s` and the sum. All zeros where every score is `-inf`.
#[inline(always)]
fn soften<I: Isa>(isa: I, s: &mut [f32]) -> (f32, f32) {
    let m = vector::max(isa, s);
    if m == f32::NEG_INFINITY {
        // The largest passes over NaN; a row of nothing else must not look like one of no keys.
        if s.iter().any(|s| s.is_nan()) {
            return (f32::NAN, f32::NAN);
        }
        s.fill(0.0);
        return (m, 0.0);
    }
    (m, vector::exp_sum(isa, s, m))
}

/// `s = round(exp(s - m) / l)`.
#[inline(always)]
fn normalise<I: Isa>(isa: I, s: &mut [f32], m: f32, l: f32, dtype: Dtype) {
    if m == f32::NEG_INFINITY {
        return s.fill(0.0);
    }
    let (m, l) = (isa.splat(m), isa.splat(l));
    for at in (0..s.len()).step_by(I::LANES) {
        let tail = &mut s[at..];
        let p = isa.div(isa.exp(isa.sub(load(isa, tail), m)), l);
        store(isa, isa.round_to(dtype, p), tail);
    }
}

/// `e^x` of one value, by the same code as every other.
#[inline(always)]
fn exp_one<I: Isa>(isa: I, x: f32) -> f32 {
    let mut lanes = [0.0; MAX_LANES];
    isa.store(isa.exp(isa.splat(x)), &mut lanes);
    lanes[0]
}
