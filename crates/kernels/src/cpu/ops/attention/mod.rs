//! `y = softmax(scale q·kᵀ + mask) · v` over paged keys and values, without ever holding a
//! (rows × keys) matrix. The work is cut into tiles: consecutive tokens of a span, for the query
//! heads that share a key-value head, so that each key is read once for all of them. Where there
//! are too few tiles for the threads, as in decode, the ranges of keys of a tile go to different
//! threads and are merged; [`tile`] says why the bits do not change.

mod backward;
mod pages;
mod product;
pub(crate) mod tile;

use std::cell::Cell;
use std::ops::Range;

pub(crate) use backward::{Incoming, backward, tile_backward};
use pages::Pages;
use product::{Product, Queries};
use tile::{Pass, RANGE, SCORE_ROW, Tile, clear, padded, scratch_len, state_len};

use super::activations::SplitRows;
use crate::cpu::kernels::Kernels;
use crate::cpu::kv_cache::units::Stored;
use crate::cpu::kv_cache::{CpuKvCache, Sides, Store};
use crate::cpu::rect::{Rect, Strips};
use crate::cpu::scratch::{lend, lend_floats};
use crate::cpu::{Cpu, CpuBuf};
use crate::{AttentionOutputs, AttentionSpec, Dtype, KvShape, Span};

/// Queries of a tile, if one token does not have more.
const TILE_ROWS: usize = 48;
/// Tiles for each thread below which the ranges of a tile are spread over threads.
const TILES_PER_THREAD: usize = 4;
/// Values of partial results, 32 MiB, above which they are not.
const MAX_PARTIALS: usize = 8 << 20;

thread_local! {
    static TILE: Cell<CpuBuf> = Cell::default();
    static NUMBERS: Cell<SplitRows> = Cell::default();
    static PARTIALS: Cell<CpuBuf> = Cell::default();
    static PLAN: Cell<Plan> = Cell::default();
}

/// How a batch is cut into tiles.
#[derive(Debug, Default)]
struct Plan {
    /// Spans by their first row.
    order: Vec<usize>,
    /// Span of each tile.
    spans: Vec<usize>,
    /// Rows of each tile, ascending.
    rows: Vec<Range<usize>>,
}

impl Plan {
    /// Cuts each span into tiles of `tile_tokens` tokens.
    fn cut(&mut self, spans: &[Span<'_>], tile_tokens: usize) {
        self.order.clear();
        self.order.extend(0..spans.len());
        self.order.sort_unstable_by_key(|i| spans[*i].rows.start);
        self.spans.clear();
        self.rows.clear();
        for &index in &self.order {
            let rows = &spans[index].rows;
            for start in rows.clone().step_by(tile_tokens) {
                self.spans.push(index);
                self.rows.push(start..rows.end.min(start + tile_tokens));
            }
        }
    }
}

/// What an attention reads, with a cache of `T`.
struct Job<'a, T: Stored> {
    q: &'a [f32],
    spans: &'a [Span<'a>],
    spec: AttentionSpec,
    shape: KvShape,
    keys: &'a [T::Keys],
    values: &'a [T::Values],
    kernels: &'static Kernels,
    table: Table<T>,
}

/// [`tile::attend`] as the kernel table holds it.
type Attend<T> = fn(&Tile<'_, T>, Range<usize>, Pass, &mut [f32], &mut [f32]);

/// The kernels of one cache type.
#[derive(Clone, Copy)]
struct Table<T: Stored> {
    attend: Attend<T>,
    probabilities: fn(&Tile<'_, T>, &mut [f32], &mut [f32]),
}

/// Fills y `(rows, n_heads * head_dim)` and the outputs asked for.
pub(crate) fn forward(
    cpu: &Cpu,
    (q, cache): (&[f32], &CpuKvCache),
    spans: &[Span<'_>],
    spec: AttentionSpec,
    y: &mut [f32],
    outputs: AttentionOutputs<'_, CpuBuf>,
) {
    let k = cpu.kernels;
    let base = (q, spans, spec, cache.shape());
    match cache.store() {
        Store::F32(sides) => {
            let table = Table { attend: k.attend_f32, probabilities: k.probabilities_f32 };
            Job::new(cpu, base, sides, table).run(cpu, y, outputs);
        }
        Store::F16(sides) => {
            let table = Table { attend: k.attend_f16, probabilities: k.probabilities_f16 };
            Job::new(cpu, base, sides, table).run(cpu, y, outputs);
        }
        Store::Bf16(sides) => {
            let table = Table { attend: k.attend_bf16, probabilities: k.probabilities_bf16 };
            Job::new(cpu, base, sides, table).run(cpu, y, outputs);
        }
        Store::Q8(sides) => {
            let table = Table { attend: k.attend_q8, probabilities: k.probabilities_q8 };
            Job::new(cpu, base, sides, table).run(cpu, y, outputs);
        }
    }
}

impl<'a, T: Product> Job<'a, T> {
    fn new(
        cpu: &Cpu,
        (q, spans, spec, shape): (&'a [f32], &'a [Span<'a>], AttentionSpec, KvShape),
        sides: &'a Sides<T>,
        table: Table<T>,
    ) -> Self {
        let (keys, values) = sides.layer(shape, spec.layer);
        Self { q, spans, spec, shape, keys, values, kernels: cpu.kernels, table }
    }

    fn group(&self) -> usize {
        self.spec.n_heads / self.shape.n_kv_heads
    }

    fn run(&self, cpu: &Cpu, y: &mut [f32], outputs: AttentionOutputs<'_, CpuBuf>) {
        let (group, head_dim) = (self.group(), self.shape.head_dim);
        let log_sum_exp = outputs.log_sum_exp.map_or(&mut [][..], |buf| &mut buf[..]);
        let lse_len = if log_sum_exp.is_empty() { 0 } else { self.spec.n_heads };
        let matrices = [
            Strips { data: y, row_len: self.spec.n_heads * head_dim, strip_len: group * head_dim },
            Strips { data: log_sum_exp, row_len: lse_len, strip_len: group },
        ];
        lend(&PLAN, |plan| {
            plan.cut(self.spans, (TILE_ROWS / group).max(1));
            match self.ranges_to_split(cpu, plan) {
                Some(n_ranges) => self.run_split(cpu, plan, n_ranges, matrices),
                None => self.run_whole(cpu, plan, matrices),
            }
        });
        if let Some(probs) = outputs.probs {
            self.fill_probs(cpu, probs);
        }
    }

    /// One part for each tile and key-value head.
    fn run_whole(&self, cpu: &Cpu, plan: &Plan, matrices: [Strips<'_, f32>; 2]) {
        cpu.pool.for_each_rect(matrices, &plan.rows, |index, head, rects| {
            self.with_tile(plan, index, head, |tile, states, scratch| {
                clear(states, self.shape.head_dim);
                let all = 0..tile.limit().div_ceil(RANGE);
                for pass in self.passes() {
                    (self.table.attend)(tile, all.clone(), *pass, states, scratch);
                }
                self.write(tile, states, rects);
            });
        });
    }

    /// A narrow type rounds finished probabilities, so their sum must be known first.
    fn passes(&self) -> &'static [Pass] {
        match self.spec.dtype {
            Dtype::F32 => &[Pass::Online],
            Dtype::F16 | Dtype::Bf16 => &[Pass::Stats, Pass::Weigh],
        }
    }

    /// How many ranges the longest tile has, where it pays to spread them over threads.
    fn ranges_to_split(&self, cpu: &Cpu, plan: &Plan) -> Option<usize> {
        let n_tiles = plan.rows.len() * self.shape.n_kv_heads;
        let n_keys = plan.spans.iter().map(|i| self.spans[*i].n_keys).max()?;
        let n_ranges = n_keys.div_ceil(RANGE);
        let partials = n_tiles * n_ranges * self.partial_len(plan) * self.passes().len();
        let wanted = cpu.threads() > 1 && n_tiles < TILES_PER_THREAD * cpu.threads();
        (wanted && n_ranges > 1 && partials <= MAX_PARTIALS).then_some(n_ranges)
    }

    /// Values of the states of the largest tile.
    fn partial_len(&self, plan: &Plan) -> usize {
        let tokens = plan.rows.iter().map(Range::len).max().unwrap_or(0);
        tokens * self.group() * state_len(self.shape.head_dim)
    }

    /// One part for each tile, key-value head and range; then the ranges are merged.
    fn run_split(&self, cpu: &Cpu, plan: &Plan, n_ranges: usize, matrices: [Strips<'_, f32>; 2]) {
        let n_kv_heads = self.shape.n_kv_heads;
        let ranges_len = n_ranges * self.partial_len(plan);
        let len = plan.rows.len() * n_kv_heads * ranges_len;
        let passes = self.passes();
        lend_floats(&PARTIALS, passes.len() * len, |partials| {
            for (done, pass) in passes.iter().enumerate() {
                let (earlier, rest) = partials.split_at_mut(done * len);
                self.run_ranges(cpu, plan, n_ranges, (*pass, earlier), &mut rest[..len]);
            }
            let partials = &*partials;
            cpu.pool.for_each_rect(matrices, &plan.rows, |index, head, rects| {
                self.with_tile(plan, index, head, |tile, states, _| {
                    clear(states, self.shape.head_dim);
                    for (pass, partials) in passes.iter().zip(partials.chunks_exact(len)) {
                        let at = (index * n_kv_heads + head) * ranges_len;
                        self.merge(*pass, &partials[at..][..ranges_len], n_ranges, states);
                    }
                    self.write(tile, states, rects);
                });
            });
        });
    }

    /// Fills partials `(tiles, n_kv_heads, n_ranges, partial_len)`. `Weigh` reads those of
    /// `Stats`.
    fn run_ranges(
        &self,
        cpu: &Cpu,
        plan: &Plan,
        n_ranges: usize,
        (pass, stats): (Pass, &[f32]),
        partials: &mut [f32],
    ) {
        let len = self.partial_len(plan);
        cpu.pool.for_each_chunk(partials, len, |i, partial| {
            let (unit, range) = (i / n_ranges, i % n_ranges);
            let (index, head) = (unit / self.shape.n_kv_heads, unit % self.shape.n_kv_heads);
            self.with_tile(plan, index, head, |tile, states, scratch| {
                clear(states, self.shape.head_dim);
                if pass == Pass::Weigh {
                    let stats = &stats[unit * n_ranges * len..][..n_ranges * len];
                    self.merge(Pass::Stats, stats, n_ranges, states);
                }
                (self.table.attend)(tile, range..range + 1, pass, states, scratch);
                partial[..states.len()].copy_from_slice(states);
            });
        });
    }

    /// Merges the ranges of one tile in order.
    fn merge(&self, pass: Pass, partials: &[f32], n_ranges: usize, states: &mut [f32]) {
        for partial in partials.chunks_exact(partials.len() / n_ranges) {
            let partial = &partial[..states.len()];
            (self.kernels.attention_merge)(pass, self.shape.head_dim, partial, states);
        }
    }

    /// Calls `body` with a tile and room for its states and for [`tile::attend`].
    fn with_tile(
        &self,
        plan: &Plan,
        index: usize,
        head: usize,
        body: impl FnOnce(&Tile<'_, T>, &mut [f32], &mut [f32]),
    ) {
        let span = &self.spans[plan.spans[index]];
        let (rows, head_dim) = (plan.rows[index].clone(), self.shape.head_dim);
        let n = rows.len() * self.group();
        let (q_len, states_len) = (n * padded(head_dim), n * state_len(head_dim));
        let scratch_len = scratch_len::<T>(n, head_dim);
        lend_floats(&TILE, scratch_len + q_len + states_len, |room| {
            // First, so that its rows begin at cache lines.
            let (scratch, room) = room.split_at_mut(scratch_len);
            let (q, states) = room.split_at_mut(q_len);
            let columns = head * self.group() * head_dim..(head + 1) * self.group() * head_dim;
            gather(self.q, self.spec.n_heads * head_dim, rows.clone(), columns, head_dim, q);
            self.with_queries(q, |q| body(&self.tile(q, span, rows, head), states, scratch));
        });
    }

    /// Calls `body` with gathered queries as the cache's keys meet them.
    fn with_queries(&self, q: &[f32], body: impl FnOnce(Queries<'_>)) {
        lend(&NUMBERS, |numbers| {
            if T::NUMBERS {
                (self.kernels.quantize_rows)(q, padded(self.shape.head_dim), numbers);
            }
            body(Queries { values: q, numbers });
        });
    }

    /// Consecutive rows of a span for the query heads of one key-value head.
    fn tile<'b>(
        &'b self,
        q: Queries<'b>,
        span: &'b Span<'b>,
        rows: Range<usize>,
        head: usize,
    ) -> Tile<'b, T> {
        let (keys, values, shape) = (self.keys, self.values, self.shape);
        Tile {
            q,
            group: self.group(),
            n_tokens: rows.len(),
            first_token: rows.start - span.rows.start,
            span_tokens: span.rows.len(),
            n_keys: span.n_keys,
            mask: span.mask,
            pages: Pages { keys, values, shape, blocks: span.blocks, head, first_key: 0 },
            scale: self.spec.scale,
            dtype: self.spec.dtype,
        }
    }

    /// Writes finished states to the tile's part of y and of the log-sum-exps.
    fn write(
        &self,
        tile: &Tile<'_, T>,
        states: &mut [f32],
        [mut y, mut log_sum_exp]: [Rect<'_, f32>; 2],
    ) {
        let head_dim = self.shape.head_dim;
        let pass = self.passes()[self.passes().len() - 1];
        (self.kernels.attention_finish)(pass, head_dim, tile.dtype, states);
        let tokens = states.chunks_exact(tile.group * state_len(head_dim));
        for (token, states) in tokens.enumerate() {
            let heads = || states.chunks_exact(state_len(head_dim));
            for (state, y) in heads().zip(y.row(token).chunks_exact_mut(head_dim)) {
                y.copy_from_slice(&state[..head_dim]);
            }
            for (state, log_sum_exp) in heads().zip(log_sum_exp.row(token)) {
                *log_sum_exp = state[padded(head_dim)];
            }
        }
    }

    /// Fills probs, span after span, each `(n_heads, n_rows, n_keys)`.
    fn fill_probs(&self, cpu: &Cpu, mut probs: &mut [f32]) {
        let (head_dim, n_heads) = (self.shape.head_dim, self.spec.n_heads);
        for span in self.spans {
            let (n_rows, n_keys) = (span.rows.len(), span.n_keys);
            let (these, rest) = probs.split_at_mut(n_heads * n_rows * n_keys);
            probs = rest;
            if these.is_empty() {
                continue;
            }
            cpu.pool.for_each_chunk(these, n_keys, |i, probs| {
                let (head, row) = (i / n_rows, span.rows.start + i % n_rows);
                lend_floats(&TILE, padded(head_dim) + SCORE_ROW, |room| {
                    let (q, scratch) = room.split_at_mut(padded(head_dim));
                    let columns = head * head_dim..(head + 1) * head_dim;
                    gather(self.q, n_heads * head_dim, row..row + 1, columns, head_dim, q);
                    self.with_queries(q, |q| {
                        let tile = self.tile(q, span, row..row + 1, head / self.group());
                        let tile = Tile { group: 1, ..tile };
                        (self.table.probabilities)(&tile, probs, scratch);
                    });
                });
            });
        }
    }
}

/// Copies the heads in `columns` of `rows` of x `(_, row_len)` to `to`, each padded with zeros.
fn gather(
    x: &[f32],
    row_len: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    head_dim: usize,
    to: &mut [f32],
) {
    let mut to = to.chunks_exact_mut(padded(head_dim));
    for row in rows {
        let heads = x[row * row_len..][columns.clone()].chunks_exact(head_dim);
        for (head, to) in heads.zip(&mut to) {
            to[..head_dim].copy_from_slice(head);
            to[head_dim..].fill(0.0);
        }
    }
}
