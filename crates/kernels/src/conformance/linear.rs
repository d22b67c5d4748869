//! Linear layers of trainable `f32` weights `(out, in)`; the formats have cases of their own.
//! `y = x · Wᵀ` in each type; `dx += dy · W` and `dw += dyᵀ · x` against differences.

use super::*;

/// `f32` sums of up to 200 products below 1.
const CLOSE: Tolerance = Tolerance::new(1e-5, 1e-6);

pub(super) fn forward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(12);
    let mut results = Vec::new();
    for (rows, cols) in [(1, 1), (1, 200), (3, 33), (17, 100), (70, 65)] {
        let x = random.values(rows * cols, 1.0);
        let x_buf = upload(b, &x);
        for dtype in DTYPES {
            let weights: Vec<(usize, Vec<f32>)> =
                [1, 35, 64].map(|out| (out, random.values(out * cols, 1.0))).into();
            let bring = |(out, w): &(usize, Vec<f32>)| b.weight_from(upload(b, w), *out, cols);
            let brought: Vec<B::Weight> = weights.iter().map(bring).collect();
            let mut ys: Vec<B::Buf> =
                weights.iter().map(|(out, _)| poisoned(b, rows * out)).collect();
            let mut outputs: Vec<_> = brought.iter().zip(&mut ys).collect();
            b.linear(&x_buf, rows, dtype, &mut outputs);
            for ((out, w), y) in weights.iter().zip(&ys) {
                let y = download(b, y, rows * out);
                let exact = naive::linear(&wide(&x), &wide(w), cols);
                let expected: Vec<f64> = exact.iter().map(|v| naive::round(dtype, *v)).collect();
                Tolerance::steps_of(dtype, CLOSE).check("linear", &y, &expected);
                results.extend(y);
            }
        }
    }
    results
}

pub(super) fn backward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(13);
    let mut results = Vec::new();
    for (rows, cols, out) in [(1, 1, 1), (3, 33, 17), (19, 20, 35)] {
        let (x, w) = (random.values(rows * cols, 1.0), random.values(out * cols, 1.0));
        let dy = random.values(rows * out, 1.0);
        let (held_x, held_w) = (random.values(rows * cols, 1.0), random.values(out * cols, 1.0));
        let (mut dx, mut dw) = (upload(b, &held_x), upload(b, &held_w));
        let mut weight = b.weight_from(upload(b, &w), out, cols);
        assert!(b.weight_values(&mut weight).is_some());
        b.linear_backward_input(&upload(b, &dy), rows, &weight, &mut dx);
        b.linear_backward_weight(&upload(b, &x), cols, &upload(b, &dy), out, rows, &mut dw);
        let (dx, dw) = (download(b, &dx, rows * cols), download(b, &dw, out * cols));
        let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
        let by_x = naive::gradient(&x, &dy, |x| naive::linear(x, &w, cols));
        let by_w = naive::gradient(&w, &dy, |w| naive::linear(&x, w, cols));
        CLOSE.check("dx", &dx, &sum(&held_x, &by_x));
        CLOSE.check("dw", &dw, &sum(&held_w, &by_w));
        results.extend(dx.into_iter().chain(dw));
    }
    results
}
