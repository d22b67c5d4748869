//! Backward of attention over a batch's own keys. With `p = exp(s - log_sum_exp)` rebuilt and
//! `ds = p (dy vᵀ - rowsum(dy y))`: `dv += pᵀ dy`, `dq += scale ds k`, `dk += scale dsᵀ q`.
//!
//! One part for each span and key-value head: it alone adds to its keys, in one order.

use std::cell::Cell;
use std::ops::Range;

use super::pages::{Ahead, Pages, Values};
use super::product::{Queries, Scores, Weigh};
use super::tile::{RANGE, SCORE_ROW, Tile, padded, tile_scores, tile_weigh};
use super::{TILE_ROWS, gather};
use crate::cpu::isa::Isa;
use crate::cpu::kv_cache::units::{PANEL, Stored};
use crate::cpu::ops::activations::SplitRows;
use crate::cpu::ops::vector::{dot, load, store};
use crate::cpu::rect::{Rect, Strips};
use crate::cpu::scratch::lend_floats;
use crate::cpu::{Cpu, CpuBuf};
use crate::{AttentionForward, AttentionGrads, AttentionSpec, Dtype, KvDtype, KvShape, Span};

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
    /// The values in panels, as keys are held.
    pub(crate) values: &'a [[f32; PANEL]],
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

/// Keys and values of one head.
struct Gathered<'a> {
    /// Keys and values in panels of sixteen, as a cache of one block holds its keys.
    panels: [&'a [[f32; PANEL]]; 2],
    /// Keys row by row, as a cache holds its values.
    key_rows: &'a [[f32; PANEL]],
}

impl Job<'_> {
    /// One span and key-value head.
    fn run(&self, cpu: &Cpu, span: &Span<'_>, head: usize, grads: [Rect<'_, f32>; 3]) {
        let head_dim = self.forward.head_dim;
        let (n, width) = (span.rows.len(), padded(head_dim));
        let group = self.spec.n_heads / self.forward.n_kv_heads;
        let tile_tokens = (TILE_ROWS / group).max(1);
        let panels_len = n.next_multiple_of(PANEL) * head_dim;
        let rows_len = n * head_dim.next_multiple_of(PANEL);
        let kv_len = 2 * panels_len + rows_len;
        let len = kv_len + 2 * n * width + tile_len(tile_tokens * group, width);
        lend_floats(&ROOM, len, |room| {
            let (kv, room) = room.split_at_mut(kv_len);
            let (kv_grads, room) = room.split_at_mut(2 * n * width);
            let kv = self.gather_keys(span, head, kv.as_chunks_mut().0);
            kv_grads.fill(0.0);
            let (dk, dv) = kv_grads.split_at_mut(n * width);
            let [mut dq, mut dk_rect, mut dv_rect] = grads;
            for first in (0..n).step_by(tile_tokens) {
                let tokens = first..n.min(first + tile_tokens);
                let unit = (span, head, tokens);
                self.run_tile(cpu, unit, &kv, (&mut dq, dk, dv), room);
            }
            add_rows(dk, width, &mut dk_rect);
            add_rows(dv, width, &mut dv_rect);
        });
    }

    /// The keys and values of one head.
    fn gather_keys<'a>(
        &self,
        span: &Span<'_>,
        head: usize,
        room: &'a mut [[f32; PANEL]],
    ) -> Gathered<'a> {
        let head_dim = self.forward.head_dim;
        let (row_len, n) = (self.forward.n_kv_heads * head_dim, span.rows.len());
        let (keys, room) = room.split_at_mut(n.div_ceil(PANEL) * head_dim);
        let (values, key_rows) = room.split_at_mut(n.div_ceil(PANEL) * head_dim);
        let across = f32::VALUES.across(head_dim);
        for (i, row) in span.rows.clone().enumerate() {
            let at = row * row_len + head * head_dim;
            let (key, value) = (&self.forward.k[at..], &self.forward.v[at..]);
            let (panel, lane) = (i / PANEL * head_dim, i % PANEL);
            f32::put_key(&mut keys[panel..][..head_dim], lane, &key[..head_dim]);
            f32::put_key(&mut values[panel..][..head_dim], lane, &value[..head_dim]);
            let row = &mut key_rows[i * across..][..across];
            row[across - 1] = [0.0; PANEL];
            f32::put_value(row, 0, &key[..head_dim]);
        }
        Gathered { panels: [keys, values], key_rows }
    }

    fn run_tile(
        &self,
        cpu: &Cpu,
        (span, head, tokens): (&Span<'_>, usize, Range<usize>),
        kv: &Gathered<'_>,
        (dq_rect, dk, dv): (&mut Rect<'_, f32>, &mut [f32], &mut [f32]),
        room: &mut [f32],
    ) {
        let (head_dim, n_heads) = (self.forward.head_dim, self.spec.n_heads);
        let group = n_heads / self.forward.n_kv_heads;
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
        let n = span.rows.len();
        let (n_layers, n_blocks, block_len, dtype) = (1, 1, n, KvDtype::F32);
        let shape = KvShape { n_layers, n_blocks, block_len, n_kv_heads: 1, head_dim, dtype };
        let [keys, values] = kv.panels;
        let tile = Tile {
            q: Queries { values: q, numbers: &SplitRows::default() },
            group,
            n_tokens: tokens.len(),
            first_token: tokens.start,
            span_tokens: n,
            n_keys: n,
            mask: span.mask,
            pages: Pages::<f32> {
                keys,
                values: kv.key_rows,
                shape,
                blocks: &[0],
                head: 0,
                first_key: 0,
            },
            scale: self.spec.scale,
            dtype: self.spec.dtype,
        };
        let incoming = Incoming { dy, y, log_sum_exp, values };
        (cpu.kernels.attention_backward)(&tile, incoming, dq, (dk, dv), scratch);
        for (i, dq) in dq.chunks_exact(padded(head_dim)).enumerate() {
            let to = &mut dq_rect.row(tokens.start + i / group)[i % group * head_dim..];
            to.iter_mut().zip(&dq[..head_dim]).for_each(|(to, v)| *to += v);
        }
    }
}

/// Room for a tile of so many queries: q, y, dy, dq, the log-sum-exps; scores and their gradients,
/// row by row and turned.
const fn tile_len(rows: usize, width: usize) -> usize {
    let turned = (RANGE + PANEL) * turned_row(rows);
    rows * (4 * width + 1) + 2 * (rows.next_multiple_of(8) * SCORE_ROW + turned)
}

/// Values in a row of turned scores: those of `rows` queries, and what may be read behind them.
const fn turned_row(rows: usize) -> usize {
    rows.next_multiple_of(8) + PANEL
}

/// Adds rows of `width` to those of a rectangle, which are narrower.
fn add_rows(from: &[f32], width: usize, to: &mut Rect<'_, f32>) {
    for (i, from) in from.chunks_exact(width).enumerate() {
        to.row(i).iter_mut().zip(from).for_each(|(to, v)| *to += v);
    }
}

/// One tile: fills dq `(rows, padded(head_dim))`, adds to dk and dv `(n_keys, padded(head_dim))`.
/// The values of the tile's pages are its keys, row by row.
#[inline(always)]
pub(crate) fn tile_backward<I: Isa>(
    isa: I,
    tile: &Tile<'_, f32>,
    incoming: Incoming<'_>,
    dq: &mut [f32],
    (dk, dv): (&mut [f32], &mut [f32]),
    scratch: &mut [f32],
) {
    let (rows, head_dim) = (tile.rows(), tile.pages.shape.head_dim);
    let width = padded(head_dim);
    let (p, room) = scratch.split_at_mut(rows.next_multiple_of(8) * SCORE_ROW);
    let (ds, turned) = room.split_at_mut(rows.next_multiple_of(8) * SCORE_ROW);
    dq.fill(0.0);
    for start in (0..tile.limit()).step_by(RANGE) {
        let keys = start..tile.limit().min(start + RANGE);
        tile_scores(isa, tile, &keys, p, Ahead::default());
        let panels = keys.start / PANEL * head_dim..keys.end.div_ceil(PANEL) * head_dim;
        isa.call(Scores::<f32> {
            q: Queries { values: incoming.dy, ..tile.q },
            rows,
            panels: &incoming.values[panels],
            head_dim,
            scale: (1.0, Dtype::F32),
            s: &mut ds[PANEL..],
            stride: SCORE_ROW,
            ahead: Ahead::default(),
        });
        for row in 0..rows {
            let own = row * SCORE_ROW + PANEL..row * SCORE_ROW + PANEL + keys.len();
            let at = row * width..(row + 1) * width;
            let delta = dot(isa, &incoming.dy[at.clone()], &incoming.y[at]);
            let stats = (incoming.log_sum_exp[row], delta);
            softmax_backward(isa, &mut p[own.clone()], stats, tile.scale, &mut ds[own]);
        }
        tile_weigh(isa, tile, &keys, ds, (dq, width), Ahead::default());
        let out = keys.start * width..keys.end * width;
        for (w, queries, out) in
            [(&*ds, tile.q.values, &mut dk[out.clone()]), (&*p, incoming.dy, &mut dv[out])]
        {
            add_turned(isa, (w, rows), queries, out, turned);
        }
    }
}

/// Adds `wᵀ queries` to out: w `(rows, SCORE_ROW)`, queries `(rows, width)`, out `(n, width)`.
#[inline(always)]
fn add_turned<I: Isa>(
    isa: I,
    (w, rows): (&[f32], usize),
    queries: &[f32],
    out: &mut [f32],
    turned: &mut [f32],
) {
    let (width, w_stride) = (queries.len() / rows, turned_row(rows));
    let n = out.len() / width;
    for row in (0..rows).step_by(8) {
        for key in (0..n).step_by(8) {
            let from = &w[row * SCORE_ROW + PANEL + key..];
            isa.transpose(from, SCORE_ROW, &mut turned[key * w_stride + row..], w_stride);
        }
    }
    let units = queries.as_chunks().0;
    isa.call(Weigh::<f32> {
        w: turned,
        w_stride,
        values: Values { units, head_dim: width, at: 0, n: rows },
        rows: n,
        out,
        stride: width,
        ahead: Ahead::default(),
    });
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
