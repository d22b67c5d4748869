//! Backward of attention over a batch's own keys. With `p = exp(s - log_sum_exp)` rebuilt and
//! `ds = p (dy vᵀ - rowsum(dy y))`: `dv += pᵀ dy`, `dq += scale ds k`, `dk += scale dsᵀ q`.
//!
//! One part for each span and key-value head: it alone adds to its keys, in one order.

use std::cell::Cell;
use std::ops::Range;

use super::product::{Scores, Weigh, Weights};
use super::tile::{Pages, RANGE, Tile, padded, tile_scores};
use super::{TILE_ROWS, gather};
use crate::cpu::isa::Isa;
use crate::cpu::ops::vector::{dot, load, store};
use crate::cpu::rect::{Rect, Strips};
use crate::cpu::scratch::lend_floats;
use crate::cpu::{Cpu, CpuBuf};
use crate::{AttentionForward, AttentionGrads, AttentionSpec, Span};

thread_local! {
    static ROOM: Cell<CpuBuf> = Cell::default();
}

/// What comes back to a tile, row by row as its queries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    /// Gradient of the output `(rows, padded(head_dim))`.
    pub(crate) dy: &'a [f32],
    /// The output, likewise.
    pub(crate) y: &'a [f32],
    /// Log of the softmax denominator `(rows)`.
    pub(crate) log_sum_exp: &'a [f32],
}

/// What an attention backward reads.
struct Job<'a> {
    forward: &'a AttentionForward<'a, CpuBuf>,
    spec: AttentionSpec,
    dy: &'a [f32],
}

/// Adds to dq, dk and dv.
pub(crate) fn backward(
    cpu: &Cpu,
    forward: &AttentionForward<'_, CpuBuf>,
    spans: &[Span<'_>],
    spec: AttentionSpec,
    dy: &[f32],
    AttentionGrads { dq, dk, dv }: AttentionGrads<'_, CpuBuf>,
) {
    let (n_kv_heads, head_dim) = (forward.n_kv_heads, forward.head_dim);
    let group = spec.n_heads / n_kv_heads;
    let mut order: Vec<&Span<'_>> = spans.iter().filter(|span| !span.rows.is_empty()).collect();
    order.sort_by_key(|span| span.rows.start);
    let rows: Vec<Range<usize>> = order.iter().map(|span| span.rows.clone()).collect();
    let kv_len = n_kv_heads * head_dim;
    let matrices = [
        Strips { data: dq, row_len: group * kv_len, strip_len: group * head_dim },
        Strips { data: dk, row_len: kv_len, strip_len: head_dim },
        Strips { data: dv, row_len: kv_len, strip_len: head_dim },
    ];
    let job = Job { forward, spec, dy };
    cpu.pool.for_each_rect(matrices, &rows, |index, head, rects| {
        job.run(cpu, order[index], head, rects);
    });
}

impl Job<'_> {
    /// One span and key-value head.
    fn run(&self, cpu: &Cpu, span: &Span<'_>, head: usize, grads: [Rect<'_, f32>; 3]) {
        let head_dim = self.forward.head_dim;
        let (n, width) = (span.rows.len(), padded(head_dim));
        let group = self.spec.n_heads / self.forward.n_kv_heads;
        let tile_tokens = (TILE_ROWS / group).max(1);
        let (kv, tile) = (n * width, tile_tokens * group);
        let len = 4 * kv + tile * (4 * width + 1 + 2 * RANGE);
        lend_floats(&ROOM, len, |room| {
            let (keys, room) = room.split_at_mut(kv);
            let (values, room) = room.split_at_mut(kv);
            let (kv_grads, room) = room.split_at_mut(2 * kv);
            self.gather_keys(span, head, keys, values);
            kv_grads.fill(0.0);
            let (dk, dv) = kv_grads.split_at_mut(kv);
            let [mut dq, mut dk_rect, mut dv_rect] = grads;
            for first in (0..n).step_by(tile_tokens) {
                let tokens = first..n.min(first + tile_tokens);
                let kv = (&keys[..n * head_dim], &values[..n * head_dim]);
                let unit = (span, head, tokens);
                self.run_tile(cpu, unit, kv, (&mut dq, dk, dv), room);
            }
            add_rows(dk, width, &mut dk_rect);
            add_rows(dv, width, &mut dv_rect);
        });
    }

    /// The keys and values of one head `(n, head_dim)`.
    fn gather_keys(&self, span: &Span<'_>, head: usize, keys: &mut [f32], values: &mut [f32]) {
        let head_dim = self.forward.head_dim;
        let row_len = self.forward.n_kv_heads * head_dim;
        for (i, row) in span.rows.clone().enumerate() {
            let at = row * row_len + head * head_dim;
            keys[i * head_dim..][..head_dim].copy_from_slice(&self.forward.k[at..][..head_dim]);
            values[i * head_dim..][..head_dim].copy_from_slice(&self.forward.v[at..][..head_dim]);
        }
    }

    fn run_tile(
        &self,
        cpu: &Cpu,
        (span, head, tokens): (&Span<'_>, usize, Range<usize>),
        (keys, values): (&[f32], &[f32]),
        (dq_rect, dk, dv): (&mut Rect<'_, f32>, &mut [f32], &mut [f32]),
        room: &mut [f32],
    ) {
        let (head_dim, n_heads) = (self.forward.head_dim, self.spec.n_heads);
        let (n, group) = (span.rows.len(), n_heads / self.forward.n_kv_heads);
        let len = tokens.len() * group * padded(head_dim);
        let (q, room) = room.split_at_mut(len);
        let (y, room) = room.split_at_mut(len);
        let (dy, room) = room.split_at_mut(len);
        let (dq, room) = room.split_at_mut(len);
        let (log_sum_exp, scratch) = room.split_at_mut(tokens.len() * group);
        let rows = span.rows.start + tokens.start..span.rows.start + tokens.end;
        let columns = head * group * head_dim..(head + 1) * group * head_dim;
        for (from, to) in [(&**self.forward.q, &mut *q), (self.forward.y, y), (self.dy, dy)] {
            gather(from, n_heads * head_dim, rows.clone(), columns.clone(), head_dim, to);
        }
        for (row, to) in rows.zip(log_sum_exp.chunks_exact_mut(group)) {
            to.copy_from_slice(&self.forward.log_sum_exp[row * n_heads + head * group..][..group]);
        }
        let keys =
            Pages { pool: keys, blocks: &[0], block_len: n, n_kv_heads: 1, head: 0, head_dim };
        let tile = Tile {
            q,
            group,
            n_tokens: tokens.len(),
            first_token: tokens.start,
            span_tokens: n,
            n_keys: n,
            mask: span.mask,
            keys,
            values: Pages { pool: values, ..keys },
            scale: self.spec.scale,
            dtype: self.spec.dtype,
        };
        let incoming = Incoming { dy, y, log_sum_exp };
        (cpu.kernels.attention_backward)(&tile, incoming, dq, (dk, dv), scratch);
        for (i, dq) in dq.chunks_exact(padded(head_dim)).enumerate() {
            let to = &mut dq_rect.row(tokens.start + i / group)[i % group * head_dim..];
            to.iter_mut().zip(&dq[..head_dim]).for_each(|(to, v)| *to += v);
        }
    }
}

/// Adds rows of `width` to those of a rectangle, which are narrower.
fn add_rows(from: &[f32], width: usize, to: &mut Rect<'_, f32>) {
    for (i, from) in from.chunks_exact(width).enumerate() {
        to.row(i).iter_mut().zip(from).for_each(|(to, v)| *to += v);
    }
}

/// One tile: fills dq `(rows, padded(head_dim))`, adds to dk and dv `(n_keys, padded(head_dim))`.
#[inline(always)]
pub(crate) fn tile_backward<I: Isa>(
    isa: I,
    tile: &Tile<'_, f32>,
    incoming: Incoming<'_>,
    dq: &mut [f32],
    (dk, dv): (&mut [f32], &mut [f32]),
    scratch: &mut [f32],
) {
    let (rows, head_dim) = (tile.rows(), tile.keys.head_dim);
    let width = padded(head_dim);
    let (p, room) = scratch.split_at_mut(rows * RANGE);
    let ds = &mut room[..rows * RANGE];
    dq.fill(0.0);
    for start in (0..tile.limit()).step_by(RANGE) {
        let keys = start..tile.limit().min(start + RANGE);
        let n = keys.len();
        let part = keys.start * head_dim..keys.end * head_dim;
        tile_scores(isa, tile, &keys, p);
        let values = &tile.values.pool[part.clone()];
        isa.call(Scores { q: incoming.dy, rows, keys: values, head_dim, s: ds, stride: RANGE });
        for row in 0..rows {
            let own = row * RANGE..row * RANGE + n;
            let at = row * width..(row + 1) * width;
            let delta = dot(isa, &incoming.dy[at.clone()], &incoming.y[at]);
            let stats = (incoming.log_sum_exp[row], delta);
            softmax_backward(isa, &mut p[own.clone()], stats, tile.scale, &mut ds[own]);
        }
        let (keys, out) = (&tile.keys.pool[part], keys.start * width..keys.end * width);
        let ds_rows = Weights { w: ds, row_step: RANGE, key_step: 1 };
        isa.call(Weigh { weights: ds_rows, values: keys, head_dim, rows, out: dq, stride: width });
        // Of the transposed: rows are keys, and the values that they weigh are queries.
        for (w, queries, out) in
            [(&*ds, tile.q, &mut dk[out.clone()]), (&*p, incoming.dy, &mut dv[out])]
        {
            isa.call(Weigh {
                weights: Weights { w, row_step: 1, key_step: RANGE },
                values: &queries[..rows * width],
                head_dim: width,
                rows: n,
                out,
                stride: width,
            });
        }
    }
}

/// `p = exp(s - log_sum_exp)` over s, `ds = scale p (dp - delta)` over dp.
#[inline(always)]
fn softmax_backward<I: Isa>(
    isa: I,
    s: &mut [f32],
    (log_sum_exp, delta): (f32, f32),
    scale: f32,
    ds: &mut [f32],
) {
    if log_sum_exp == f32::NEG_INFINITY {
        s.fill(0.0);
        return ds.fill(0.0);
    }
    let (shift, delta, scale) = (isa.splat(log_sum_exp), isa.splat(delta), isa.splat(scale));
    for at in (0..s.len()).step_by(I::LANES) {
        let p = isa.exp(isa.sub(load(isa, &s[at..]), shift));
        let dp = load(isa, &ds[at..]);
        store(isa, p, &mut s[at..]);
        store(isa, isa.mul(scale, isa.mul(p, isa.sub(dp, delta))), &mut ds[at..]);
    }
}
