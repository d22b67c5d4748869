//! Rotary position embedding: both layouts, whole and partial. In: x `(rows, n_heads, head_dim)`,
//! cosines and sines `(rows, rotary_dim / 2)`. Out: x in each type, its pairs turned to
//! `(a cos - b sin, b cos + a sin)`; dx against differences.

use super::*;
use crate::{RopeLayout, RopeTable};

/// Two products and a sum of `f32` values up to 2.
const CLOSE: Tolerance = Tolerance::new(5e-7, 1e-6);

const SHAPES: [(usize, usize, usize, usize); 5] =
    [(1, 1, 2, 2), (3, 2, 10, 6), (5, 3, 64, 64), (70, 2, 26, 26), (2, 1, 300, 290)];

struct Inputs {
    x: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

fn inputs(
    random: &mut Random,
    (rows, n_heads, head_dim, rotary_dim): Shape,
    dtype: Dtype,
) -> Inputs {
    let angles = random.values(rows * rotary_dim / 2, 20.0);
    Inputs {
        x: random.rounded(rows * n_heads * head_dim, 2.0, dtype),
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
    }
}

type Shape = (usize, usize, usize, usize);

pub(super) fn forward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(3);
    let mut results = Vec::new();
    for shape @ (rows, n_heads, head_dim, rotary_dim) in SHAPES {
        for (layout, dtype) in layouts_and_types() {
            let Inputs { x, cos, sin } = inputs(&mut random, shape, dtype);
            let (cos_buf, sin_buf) = (upload(b, &cos), upload(b, &sin));
            let table = RopeTable { cos: &cos_buf, sin: &sin_buf, rotary_dim, layout, dtype };
            let mut y = upload(b, &x);
            b.rope(&mut y, rows, n_heads, head_dim, &table);
            let y = download(b, &y, x.len());
            let (cos, sin) = (&wide(&cos)[..], &wide(&sin)[..]);
            let oracle = naive::Rope { n_heads, head_dim, rotary_dim, layout, dtype, cos, sin };
            // Products and sums of two narrow values are exact in f32 but for f16's smallest, so
            // only the `f32` case needs room.
            Tolerance::steps_of(dtype, CLOSE).check("rope", &y, &oracle.rotate(&wide(&x)));
            results.extend(y);
        }
    }
    results
}

pub(super) fn backward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(4);
    let mut results = Vec::new();
    for shape @ (rows, n_heads, head_dim, rotary_dim) in &SHAPES[..3] {
        for layout in [RopeLayout::HalfSplit, RopeLayout::Interleaved] {
            let Inputs { x, cos, sin } = inputs(&mut random, *shape, Dtype::F32);
            let dy = random.values(x.len(), 1.0);
            let (cos_buf, sin_buf) = (upload(b, &cos), upload(b, &sin));
            let (rotary_dim, dtype) = (*rotary_dim, Dtype::F32);
            let table = RopeTable { cos: &cos_buf, sin: &sin_buf, rotary_dim, layout, dtype };
            let mut dx = upload(b, &dy);
            b.rope_backward(&mut dx, *rows, *n_heads, *head_dim, &table);
            let dx = download(b, &dx, x.len());
            let (n_heads, head_dim) = (*n_heads, *head_dim);
            let (cos, sin) = (&wide(&cos)[..], &wide(&sin)[..]);
            let oracle = naive::Rope { n_heads, head_dim, rotary_dim, layout, dtype, cos, sin };
            let expected = naive::gradient(&wide(&x), &wide(&dy), |x| oracle.rotate(x));
            CLOSE.check("rope backward", &dx, &expected);
            results.extend(dx);
        }
    }
    results
}

fn layouts_and_types() -> impl Iterator<Item = (RopeLayout, Dtype)> {
    let layouts = [RopeLayout::HalfSplit, RopeLayout::Interleaved];
    layouts.into_iter().flat_map(|layout| DTYPES.map(|dtype| (layout, dtype)))
}
