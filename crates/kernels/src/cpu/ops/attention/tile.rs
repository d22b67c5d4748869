//! One tile of queries against the keys of one key-value head: what the kernel table holds.
//!
//! Keys are taken in ranges of [`RANGE`], counted from key 0. A range by itself gives
//! `m = max s`, `l = Σ exp(s - m)` and `o = Σ exp(s - m) v`; ranges are merged in order by
//! rescaling to the larger `m`. Which rows share a tile and which thread takes a range changes no
//! bit of the result: masked keys add exact zeros, and every sum runs over keys in order.

use std::ops::Range;

use super::product::{Scores, Weigh, Weights};
use crate::cpu::isa::Isa;
use crate::cpu::ops::vector::{self, Element, MAX_LANES, load, store};
use crate::{Dtype, Mask};

/// Keys that are scored before any is weighed.
pub(crate) const RANGE: usize = 256;

/// The keys or the values of one head, in blocks of a layer's pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages<'a, T> {
    /// `(n_blocks, n_kv_heads, block_len, head_dim)`.
    pub(crate) pool: &'a [T],
    /// Block of each `block_len` consecutive keys.
    pub(crate) blocks: &'a [u32],
    /// Keys in a block.
    pub(crate) block_len: usize,
    /// Heads in a block.
    pub(crate) n_kv_heads: usize,
    /// The head.
    pub(crate) head: usize,
    /// Width of one key.
    pub(crate) head_dim: usize,
}

impl<'a, T> Pages<'a, T> {
    /// The keys from `range.start` to the end of its block or of the range: how many, and their
    /// values `(n, head_dim)`.
    #[inline(always)]
    fn run(&self, range: &Range<usize>) -> (usize, &'a [T]) {
        let (block, at) = (range.start / self.block_len, range.start % self.block_len);
        let n = (self.block_len - at).min(range.len());
        let row = (self.blocks[block] as usize * self.n_kv_heads + self.head) * self.block_len + at;
        (n, &self.pool[row * self.head_dim..][..n * self.head_dim])
    }
}

/// Queries of consecutive tokens, for the heads that share one key-value head. Row
/// `token * group + head` of the tile is one query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile<'a, T> {
    /// `(n_tokens * group, padded(head_dim))`, zeros behind each query.
    pub(crate) q: &'a [f32],
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
    /// Keys of the head.
    pub(crate) keys: Pages<'a, T>,
    /// Values of the head.
    pub(crate) values: Pages<'a, T>,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Type of scores and probabilities.
    pub(crate) dtype: Dtype,
}

impl<T> Tile<'_, T> {
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

/// `head_dim` rounded up to whole vectors of any instruction set.
pub(crate) const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(MAX_LANES)
}

/// Values of the state of one query: `o` `(padded(head_dim))`, then `m`, then `l`.
pub(crate) const fn state_len(head_dim: usize) -> usize {
    padded(head_dim) + 2
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

/// Room for [`attend`]: `tile rows` times this many values.
pub(crate) const fn scratch_len(head_dim: usize) -> usize {
    RANGE + state_len(head_dim)
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
pub(crate) fn attend<I: Isa, T: Element>(
    isa: I,
    tile: &Tile<'_, T>,
    ranges: Range<usize>,
    pass: Pass,
    states: &mut [f32],
    scratch: &mut [f32],
) {
    let head_dim = tile.keys.head_dim;
    let (s, parts) = scratch.split_at_mut(tile.rows() * RANGE);
    let parts = &mut parts[..tile.rows() * state_len(head_dim)];
    for index in ranges {
        let keys = index * RANGE..tile.limit().min((index + 1) * RANGE);
        if keys.is_empty() {
            break;
        }
        tile_scores(isa, tile, &keys, s);
        let rows = s.chunks_exact_mut(RANGE).zip(parts.chunks_exact_mut(state_len(head_dim)));
        for ((s, part), state) in rows.zip(states.chunks_exact(state_len(head_dim))) {
            let (o, stats) = part.split_at_mut(padded(head_dim));
            o.fill(0.0);
            let s = &mut s[..keys.len()];
            if pass == Pass::Weigh {
                let (m, l) = (state[padded(head_dim)], state[padded(head_dim) + 1]);
                normalise(isa, s, m, l, tile.dtype);
            } else {
                (stats[0], stats[1]) = soften(isa, s);
            }
        }
        if pass != Pass::Stats {
            tile_weigh(isa, tile, &keys, s, parts);
        }
        merge(isa, pass, head_dim, parts, states);
    }
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
pub(crate) fn probabilities<I: Isa, T: Element>(
    isa: I,
    tile: &Tile<'_, T>,
    probs: &mut [f32],
    scratch: &mut [f32],
) {
    let (seen, unseen) = probs.split_at_mut(tile.limit());
    unseen.fill(0.0);
    for start in (0..seen.len()).step_by(RANGE) {
        let keys = start..seen.len().min(start + RANGE);
        tile_scores(isa, tile, &keys, scratch);
        seen[keys.clone()].copy_from_slice(&scratch[..keys.len()]);
    }
    let (_, l) = soften(isa, seen);
    let divisor = isa.splat(if l > 0.0 { l } else { 1.0 });
    for at in (0..seen.len()).step_by(I::LANES) {
        let tail = &mut seen[at..];
        store(isa, isa.round_to(tile.dtype, isa.div(load(isa, tail), divisor)), tail);
    }
}

/// `s[row][key - keys.start]` of the tile's rows, `(rows, RANGE)`: scaled, masked and rounded in
/// the order of an eager framework; `-inf` for keys that a row does not see.
#[inline(always)]
pub(crate) fn tile_scores<I: Isa, T: Element>(
    isa: I,
    tile: &Tile<'_, T>,
    keys: &Range<usize>,
    s: &mut [f32],
) {
    let head_dim = tile.keys.head_dim;
    let mut at = keys.clone();
    while !at.is_empty() {
        let (n, page) = tile.keys.run(&at);
        isa.call(Scores {
            q: tile.q,
            rows: tile.rows(),
            keys: page,
            head_dim,
            s: &mut s[at.start - keys.start..],
            stride: RANGE,
        });
        at.start += n;
    }
    for (row, s) in s.chunks_exact_mut(RANGE).take(tile.rows()).enumerate() {
        let token = row / tile.group;
        let s = &mut s[..keys.len()];
        let bias = match tile.mask {
            Mask::Additive(bias) => {
                Some(&bias[(tile.first_token + token) * tile.n_keys + keys.start..][..s.len()])
            }
            _ => None,
        };
        scale_and_bias(isa, s, tile.scale, tile.dtype, bias);
        if let Mask::CausalKeys(keep) = tile.mask {
            for (s, keep) in s.iter_mut().zip(&keep[keys.clone()]) {
                *s = if *keep { *s } else { f32::NEG_INFINITY };
            }
        }
        let seen = tile.visible(token).saturating_sub(keys.start).min(s.len());
        s[seen..].fill(f32::NEG_INFINITY);
    }
}

/// Adds to the `o` of states `(rows, state_len)` the values of the keys, weighed by w
/// `(rows, RANGE)`.
#[inline(always)]
fn tile_weigh<I: Isa, T: Element>(
    isa: I,
    tile: &Tile<'_, T>,
    keys: &Range<usize>,
    w: &[f32],
    states: &mut [f32],
) {
    let head_dim = tile.values.head_dim;
    let mut at = keys.clone();
    while !at.is_empty() {
        let (n, page) = tile.values.run(&at);
        isa.call(Weigh {
            weights: Weights { w: &w[at.start - keys.start..], row_step: RANGE, key_step: 1 },
            values: page,
            head_dim,
            rows: tile.rows(),
            out: states,
            stride: state_len(head_dim),
        });
        at.start += n;
    }
}

#[inline(always)]
fn scale_and_bias<I: Isa>(isa: I, s: &mut [f32], scale: f32, dtype: Dtype, bias: Option<&[f32]>) {
    let scale = isa.splat(scale);
    for at in (0..s.len()).step_by(I::LANES) {
        let tail = &mut s[at..];
        let product = isa.round_to(dtype, load(isa, tail));
        let mut v = isa.round_to(dtype, isa.mul(product, scale));
        if let Some(bias) = bias {
            v = isa.round_to(dtype, isa.add(v, load(isa, &bias[at..])));
        }
        store(isa, v, tail);
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
