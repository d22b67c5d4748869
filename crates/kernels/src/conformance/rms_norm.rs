//! Root-mean-square norm: `y = x / sqrt(mean(x²) + eps) * weight`. In: x `(rows, width)`, weight
//! `(width)`. Out: y in each type; dx and dweight against differences.

use super::*;
use crate::RmsNorm;

/// A dozen roundings of `f32` in the mean and the products.
const CLOSE: Tolerance = Tolerance::new(1e-7, 2e-6);
const EPS: f32 = 1e-5;

pub(super) fn forward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(1);
    let mut results = Vec::new();
    for (rows, width) in [(1, 1), (3, 7), (5, 64), (70, 131), (2, 4099)] {
        for dtype in DTYPES {
            let x = random.rounded(rows * width, 3.0, dtype);
            let w = random.rounded(width, 2.0, dtype);
            let weight = upload(b, &w);
            let norm = RmsNorm { weight: &weight, width, eps: EPS, dtype };
            let mut y = poisoned(b, rows * width);
            b.rms_norm(&upload(b, &x), &norm, rows, &mut y);
            let y = download(b, &y, rows * width);
            let expected = naive::rms_norm(&wide(&x), &wide(&w), f64::from(EPS), dtype);
            Tolerance::steps_of(dtype, CLOSE).check("rms_norm", &y, &expected);
            assert!(y.iter().all(|v| dtype.round(*v) == *v));
            results.extend(y);
        }
    }
    results
}

pub(super) fn backward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(2);
    let mut results = Vec::new();
    for (rows, width) in [(1, 3), (4, 65), (70, 9)] {
        let (x, w) = (random.values(rows * width, 3.0), random.values(width, 2.0));
        let (dy, held) = (random.values(rows * width, 1.0), random.values(rows * width, 1.0));
        let weight = upload(b, &w);
        let norm = RmsNorm { weight: &weight, width, eps: EPS, dtype: Dtype::F32 };
        let (mut dx, mut dw) = (upload(b, &held), upload(b, &held[..width]));
        let mut dx_alone = upload(b, &held);
        let (x_buf, dy_buf) = (upload(b, &x), upload(b, &dy));
        b.rms_norm_backward(&x_buf, &norm, rows, &dy_buf, &mut dx, Some(&mut dw));
        b.rms_norm_backward(&x_buf, &norm, rows, &dy_buf, &mut dx_alone, None);

        let f = |x: &[f64], w: &[f64]| naive::rms_norm(x, w, f64::from(EPS), Dtype::F32);
        let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
        let by_x = naive::gradient(&x, &dy, |x| f(x, &w));
        let by_w = naive::gradient(&w, &dy, |w| f(&x, w));
        // Sums over rows of values near 1 in f32; the differences themselves are good to 1e-8.
        let tolerance = Tolerance::new(5e-6, 5e-6);
        let (dx, dw) = (download(b, &dx, rows * width), download(b, &dw, width));
        tolerance.check("dx", &dx, &sum(&held, &by_x));
        tolerance.check("dweight", &dw, &sum(&held[..width], &by_w));
        assert_eq!(dx, download(b, &dx_alone, rows * width));
        results.extend(dx.into_iter().chain(dw));
    }
    results
}
