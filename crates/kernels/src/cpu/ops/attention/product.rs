//! The two products of attention, a few queries at a time in registers.
//!
//! [`Scores`]: `s[r][c] = Σ_d q[r][d] k[c][d]`, vectors along keys, one chain of sums for each pair.
//! [`Weigh`]: `o[r][d] += Σ_c w[r][c] v[c][d]`, vectors along `d`, keys in order.
//! Neither result depends on how rows or keys are grouped into calls.

// Plain loops over constant ranges unroll, and sums stay in registers. Iterator adaptors and
// closures are compiled without the features of the instruction set, and may stay calls.
#![allow(clippy::needless_range_loop, reason = "see above")]

use half::f16;

use super::pages::{Ahead, Values};
use super::tile::padded;
use crate::Dtype;
use crate::cpu::isa::{Fours, Isa, Piece};
use crate::cpu::kv_cache::units::{CODE_ZERO, GROUP, PANEL, Q8, Q8Keys, Q8Values, Stored};
use crate::cpu::ops::activations::SplitRows;
use crate::cpu::ops::vector::Element;

/// Vectors of keys whose scores are summed together.
const KEY_VECTORS: usize = 2;

/// Dimensions of a dot whose products are summed apart: one long chain would double the error. Also
/// how often a dot looks at what comes next.
const CHUNK: usize = 8;

/// How many of `left` rows to take at once: six and two vectors fill the registers of AVX2.
#[inline(always)]
const fn rows_at_once(left: usize) -> usize {
    match left {
        5 => 3,
        7 | 8 => 4,
        0..=6 => left,
        _ => 6,
    }
}

/// Queries, as the products read them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queries<'a> {
    /// `(rows, padded(head_dim))`, zeros behind each query.
    pub(crate) values: &'a [f32],
    /// The same as whole numbers, for keys that are.
    pub(crate) numbers: &'a SplitRows,
}

/// How a type of cache is multiplied.
pub(crate) trait Product: Stored {
    /// Whether the dot reads the queries as whole numbers.
    const NUMBERS: bool;
    /// Columns that [`Product::weigh`] can take at once.
    const COLUMNS: usize;

    /// Whether the memory is worth widening to `f32` for many queries; the results are the same.
    const NARROW: bool;

    /// Keys in panels and values row by row as `f32`, of a type that is [`Product::NARROW`].
    fn widen<I: Isa>(
        _isa: I,
        _from: (&[Self::Keys], &[Self::Values]),
        _to: (&mut [[f32; PANEL]], &mut [[f32; PANEL]]),
    ) {
    }

    /// Dots of `R` queries from a row on with two vectors of keys: lanes from `lanes[i]` on of
    /// `panels[i]`, which are of equal length.
    fn dot<I: Isa, const R: usize>(
        isa: I,
        panels: [&[Self::Keys]; KEY_VECTORS],
        lanes: [usize; KEY_VECTORS],
        q: (Queries<'_>, usize),
        ahead: [Ahead<'_>; KEY_VECTORS],
    ) -> [[I::F32; KEY_VECTORS]; R];

    /// Adds columns `d..` of the values, weighed by `R` rows of `w`, a stride apart, of which the
    /// first is that of the first value. Sixteen weights can be read from that of any value.
    fn weigh<I: Isa, const R: usize, const V: usize>(
        isa: I,
        values: Values<'_, Self>,
        w: (&[f32], usize),
        d: usize,
        ahead: Ahead<'_>,
        sums: &mut [[I::F32; V]; R],
    );
}

impl<T: Element> Product for T {
    const NUMBERS: bool = false;
    const COLUMNS: usize = 64;
    const NARROW: bool = size_of::<T>() < size_of::<f32>();

    #[inline(always)]
    fn widen<I: Isa>(
        isa: I,
        (keys, values): (&[[T; PANEL]], &[[T; PANEL]]),
        (wide_keys, wide_values): (&mut [[f32; PANEL]], &mut [[f32; PANEL]]),
    ) {
        for (from, to) in [(keys, wide_keys), (values, wide_values)] {
            for (from, to) in from.iter().zip(to) {
                for lane in (0..PANEL).step_by(I::LANES) {
                    isa.store(T::load(isa, &from[lane..]), &mut to[lane..]);
                }
            }
        }
    }

    #[inline(always)]
    fn dot<I: Isa, const R: usize>(
        isa: I,
        panels: [&[[T; PANEL]]; KEY_VECTORS],
        lanes: [usize; KEY_VECTORS],
        (q, row): (Queries<'_>, usize),
        ahead: [Ahead<'_>; KEY_VECTORS],
    ) -> [[I::F32; KEY_VECTORS]; R] {
        let n = panels[0].len();
        let width = padded(n);
        let panels = [panels[0], &panels[1][..n]];
        let mut queries = [&q.values[..n]; R];
        for r in 0..R {
            queries[r] = &q.values[(row + r) * width..][..n];
        }
        let mut totals = [[isa.splat(0.0); KEY_VECTORS]; R];
        for first in (0..n).step_by(CHUNK) {
            let end = if n - first < CHUNK { n } else { first + CHUNK };
            for v in 0..KEY_VECTORS {
                let unit = size_of::<[T; PANEL]>();
                ahead[v].fetch(isa, first * unit, end * unit);
            }
            let mut sums = [[isa.splat(0.0); KEY_VECTORS]; R];
            for d in first..end {
                let mut keys = [isa.splat(0.0); KEY_VECTORS];
                for v in 0..KEY_VECTORS {
                    keys[v] = T::load(isa, &panels[v][d][lanes[v]..]);
                }
                for r in 0..R {
                    let q = isa.splat(queries[r][d]);
                    for v in 0..KEY_VECTORS {
                        sums[r][v] = isa.fma(q, keys[v], sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..KEY_VECTORS {
                    totals[r][v] = isa.add(totals[r][v], sums[r][v]);
                }
            }
        }
        totals
    }

    #[inline(always)]
    fn weigh<I: Isa, const R: usize, const V: usize>(
        isa: I,
        values: Values<'_, T>,
        (w, stride): (&[f32], usize),
        d: usize,
        ahead: Ahead<'_>,
        sums: &mut [[I::F32; V]; R],
    ) {
        let Values { units, head_dim, at, n } = values;
        let across = T::VALUES.across(head_dim);
        let rows = &units[at * across..][..n * across];
        let mut weights = [&w[..n]; R];
        for r in 0..R {
            weights[r] = &w[r * stride..][..n];
        }
        let row_bytes = across * size_of::<[T; PANEL]>();
        for c in 0..n {
            ahead.fetch(isa, c * row_bytes, (c + 1) * row_bytes);
            let row = rows[c * across..][..across].as_flattened();
            let row = &row[d..][..V * I::LANES];
            let mut x = [isa.splat(0.0); V];
            for v in 0..V {
                x[v] = T::load(isa, &row[v * I::LANES..]);
            }
            for r in 0..R {
                let w = isa.splat(weights[r][c]);
                for v in 0..V {
                    sums[r][v] = isa.fma(w, x[v], sums[r][v]);
                }
            }
        }
    }
}

impl Product for Q8 {
    const NUMBERS: bool = true;
    const COLUMNS: usize = GROUP;
    // Its dots are of bytes.
    const NARROW: bool = false;

    #[inline(always)]
    fn dot<I: Isa, const R: usize>(
        isa: I,
        panels: [&[Q8Keys]; KEY_VECTORS],
        lanes: [usize; KEY_VECTORS],
        (q, row): (Queries<'_>, usize),
        ahead: [Ahead<'_>; KEY_VECTORS],
    ) -> [[I::F32; KEY_VECTORS]; R] {
        let n = panels[0].len();
        let panels = [panels[0], &panels[1][..n]];
        let mut sums = [[isa.splat(0.0); KEY_VECTORS]; R];
        for g in 0..n {
            for v in 0..KEY_VECTORS {
                let (unit, lane) = (&panels[v][g], lanes[v]);
                ahead[v].fetch(isa, g * size_of::<Q8Keys>(), (g + 1) * size_of::<Q8Keys>());
                let scales = f16::load(isa, &unit.scales[lane..]);
                let mut codes = [isa.splat_int(0); GROUP / 4];
                for i in 0..GROUP / 4 {
                    codes[i] = isa.load_ints(unit.codes[i][lane..].as_flattened());
                }
                for r in 0..R {
                    let q = &q.numbers.row(row + r)[g];
                    let total = q.totals[0] + q.totals[1];
                    let fours = Fours { high: &q.high, low: &q.low };
                    let number = isa.dot_bytes(&codes, fours, (I::BYTE_ZERO - CODE_ZERO) * total);
                    let scale = isa.mul(scales, isa.splat(q.scale));
                    sums[r][v] = isa.fma(number, scale, sums[r][v]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn weigh<I: Isa, const R: usize, const V: usize>(
        isa: I,
        values: Values<'_, Q8>,
        (w, stride): (&[f32], usize),
        d: usize,
        ahead: Ahead<'_>,
        sums: &mut [[I::F32; V]; R],
    ) {
        let Values { units, head_dim, at, n } = values;
        let across = Q8::VALUES.across(head_dim);
        let mut c = 0;
        while c < n {
            let (row, first) = ((at + c) / PANEL, (at + c) % PANEL);
            let unit: &Q8Values = &units[row * across + d / GROUP];
            let taken = if n - c < PANEL - first { n - c } else { PANEL - first };
            let weights = scaled_weights::<I, R>(isa, unit, first, (&w[c..], stride));
            let codes = &unit.codes[first..][..taken];
            let row_bytes = across * size_of::<Q8Values>() / PANEL;
            for i in 0..taken {
                ahead.fetch(isa, (c + i) * row_bytes, (c + i + 1) * row_bytes);
                let code = bytemuck::bytes_of(&codes[i]);
                let code = &code[d % GROUP..][..V * I::LANES];
                let mut x = [isa.splat(0.0); V];
                for v in 0..V {
                    x[v] = isa.load_signed_bytes(&code[v * I::LANES..]);
                }
                for r in 0..R {
                    let w = isa.splat(weights[r][i]);
                    for v in 0..V {
                        sums[r][v] = isa.fma(w, x[v], sums[r][v]);
                    }
                }
            }
            c += taken;
        }
    }
}

/// Weights times the scales of the values from `first` on.
#[inline(always)]
fn scaled_weights<I: Isa, const R: usize>(
    isa: I,
    unit: &Q8Values,
    first: usize,
    (w, stride): (&[f32], usize),
) -> [[f32; PANEL]; R] {
    let mut scales = [0.0; 2 * PANEL];
    for lane in (0..PANEL).step_by(I::LANES) {
        isa.store(f16::load(isa, &unit.scales[lane..]), &mut scales[lane..]);
    }
    let mut weights = [[0.0; PANEL]; R];
    for r in 0..R {
        for lane in (0..PANEL).step_by(I::LANES) {
            let scales = isa.load(&scales[first + lane..]);
            let w = isa.load(&w[r * stride + lane..]);
            isa.store(isa.mul(w, scales), &mut weights[r][lane..]);
        }
    }
    weights
}

/// Fills s.
#[derive(Debug)]
pub(crate) struct Scores<'a, T: Stored> {
    /// Queries of at least `rows` rows.
    pub(crate) q: Queries<'a>,
    /// Rows of `s`.
    pub(crate) rows: usize,
    /// Whole panels of keys.
    pub(crate) panels: &'a [T::Keys],
    /// Width of a key.
    pub(crate) head_dim: usize,
    /// Factor on each dot, and the type that both the dot and the product are rounded to.
    pub(crate) scale: (f32, Dtype),
    /// `(rows, stride)`, sixteen scores for each panel.
    pub(crate) s: &'a mut [f32],
    /// From row to row of `s`.
    pub(crate) stride: usize,
    /// What comes next.
    pub(crate) ahead: Ahead<'a>,
}

impl<T: Product> Piece for Scores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let n_panels = self.panels.len() / T::KEYS.across(self.head_dim);
        let at_once = KEY_VECTORS * I::LANES / PANEL;
        for first in (0..n_panels).step_by(at_once) {
            let mut row = 0;
            while row < self.rows {
                let taken = rows_at_once(self.rows - row);
                match taken {
                    1 => self.rows::<I, 1>(isa, row, first, n_panels),
                    2 => self.rows::<I, 2>(isa, row, first, n_panels),
                    3 => self.rows::<I, 3>(isa, row, first, n_panels),
                    4 => self.rows::<I, 4>(isa, row, first, n_panels),
                    _ => self.rows::<I, 6>(isa, row, first, n_panels),
                }
                row += taken;
            }
        }
    }
}

impl<T: Product> Scores<'_, T> {
    /// `R` rows from `row` on and the panels that fill two vectors from `first` on.
    #[inline(always)]
    fn rows<I: Isa, const R: usize>(&mut self, isa: I, row: usize, first: usize, n_panels: usize) {
        const { assert!(PANEL.is_multiple_of(I::LANES)) };
        let across = T::KEYS.across(self.head_dim);
        let (mut panels, mut lanes) = ([self.panels; KEY_VECTORS], [0; KEY_VECTORS]);
        let mut ahead = [Ahead::default(); KEY_VECTORS];
        for v in 0..KEY_VECTORS {
            // A panel that is not there repeats the last one; its sums are dropped.
            let panel = first + v * I::LANES / PANEL;
            let panel = if panel < n_panels { panel } else { first };
            panels[v] = &self.panels[panel * across..][..across];
            lanes[v] = v * I::LANES % PANEL;
            if row == 0 && lanes[v] == 0 {
                ahead[v] = self.ahead.skip(panel * across * size_of::<T::Keys>());
            }
        }
        let sums = T::dot::<I, R>(isa, panels, lanes, (self.q, row), ahead);
        let (scale, dtype) = (isa.splat(self.scale.0), self.scale.1);
        let end = (n_panels - first) * PANEL;
        for r in 0..R {
            let s = &mut self.s[(row + r) * self.stride + first * PANEL..];
            for v in 0..KEY_VECTORS {
                if v * I::LANES < end {
                    let product = isa.mul(isa.round_to(dtype, sums[r][v]), scale);
                    isa.store(isa.round_to(dtype, product), &mut s[v * I::LANES..]);
                }
            }
        }
    }
}

/// Adds to out.
#[derive(Debug)]
pub(crate) struct Weigh<'a, T: Stored> {
    /// Of each row and value `(rows, w_stride)`; behind the last of a row fifteen more can be read.
    pub(crate) w: &'a [f32],
    /// From row to row of `w`.
    pub(crate) w_stride: usize,
    /// Values of consecutive keys.
    pub(crate) values: Values<'a, T>,
    /// Rows of `out`.
    pub(crate) rows: usize,
    /// `(rows, stride)`, of which the first `padded(head_dim)` of a row are touched.
    pub(crate) out: &'a mut [f32],
    /// From row to row of `out`.
    pub(crate) stride: usize,
    /// What comes next.
    pub(crate) ahead: Ahead<'a>,
}

impl<T: Product> Piece for Weigh<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let mut row = 0;
        while row < self.rows {
            let taken = rows_at_once(self.rows - row);
            match taken {
                1 => self.rows::<I, 1>(isa, row),
                2 => self.rows::<I, 2>(isa, row),
                3 => self.rows::<I, 3>(isa, row),
                4 => self.rows::<I, 4>(isa, row),
                _ => self.rows::<I, 6>(isa, row),
            }
            row += taken;
        }
    }
}

impl<T: Product> Weigh<'_, T> {
    #[inline(always)]
    fn rows<I: Isa, const R: usize>(&mut self, isa: I, row: usize) {
        let columns = T::VALUES.across(self.values.head_dim) * T::VALUES.dims;
        let mut d = 0;
        while d < columns {
            let left = columns - d;
            // Four vectors of sixteen lanes leave room in their registers; of eight they would not.
            if T::COLUMNS >= 4 * I::LANES && left >= 4 * I::LANES && I::LANES == PANEL {
                self.columns::<I, R, 4>(isa, row, d);
                d += 4 * I::LANES;
            } else if I::LANES < PANEL || left >= 2 * I::LANES {
                self.columns::<I, R, 2>(isa, row, d);
                d += 2 * I::LANES;
            } else {
                self.columns::<I, R, 1>(isa, row, d);
                d += I::LANES;
            }
        }
    }

    /// Columns `d..` of `R` rows, `V` vectors of them.
    #[inline(always)]
    fn columns<I: Isa, const R: usize, const V: usize>(&mut self, isa: I, row: usize, d: usize) {
        let mut sums = [[isa.splat(0.0); V]; R];
        for r in 0..R {
            for v in 0..V {
                let out = &self.out[(row + r) * self.stride + d..];
                sums[r][v] = isa.load(&out[v * I::LANES..]);
            }
        }
        let weights = (&self.w[row * self.w_stride..], self.w_stride);
        let ahead = if row == 0 && d == 0 { self.ahead } else { Ahead::default() };
        T::weigh::<I, R, V>(isa, self.values, weights, d, ahead, &mut sums);
        for r in 0..R {
            for v in 0..V {
                let out = &mut self.out[(row + r) * self.stride + d..];
                isa.store(sums[r][v], &mut out[v * I::LANES..]);
            }
        }
    }
}
