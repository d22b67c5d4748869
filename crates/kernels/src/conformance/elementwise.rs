//! Sums and factors over whole buffers, and the bias: `y += scale * x` and `y[r] += bias` in each
//! type, `y *= scale`; `dbias += Σ_r dy[r]` against differences.

use super::*;

const LENGTHS: [usize; 4] = [1, 31, 4096, 9001];
/// One product and one sum of values below 4.
const CLOSE: Tolerance = Tolerance::new(5e-7, 0.0);

pub(super) fn add_scaled<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(7);
    let mut results = Vec::new();
    for len in LENGTHS {
        for dtype in DTYPES {
            let (x, y0) = (random.rounded(len, 2.0, dtype), random.rounded(len, 2.0, dtype));
            let mut y = upload(b, &y0);
            b.add_scaled(&mut y, &upload(b, &x), 0.7, len, dtype);
            let y = download(b, &y, len);
            let exact = |(x, y): (&f32, &f32)| {
                naive::round(dtype, f64::from(*y) + f64::from(0.7f32) * f64::from(*x))
            };
            let expected: Vec<f64> = x.iter().zip(&y0).map(exact).collect();
            Tolerance::steps_of(dtype, CLOSE).check("add_scaled", &y, &expected);
            assert!(y.iter().all(|v| dtype.round(*v) == *v));
            results.extend(y);
        }
    }
    results
}

pub(super) fn scale<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(8);
    let mut results = Vec::new();
    for len in LENGTHS {
        let x = random.values(len, 2.0);
        let mut y = upload(b, &x);
        b.scale(&mut y, 0.3, len);
        let y = download(b, &y, len);
        let expected: Vec<f64> = x.iter().map(|x| f64::from(x * 0.3)).collect();
        Tolerance::new(0.0, 0.0).check("scale", &y, &expected);
        let mut cleared = poisoned(b, len);
        b.scale(&mut cleared, 0.0, len);
        assert_eq!(download(b, &cleared, len), vec![0.0; len], "0 clears a NaN");
        results.extend(y);
    }
    results
}

pub(super) fn bias<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(9);
    let mut results = Vec::new();
    for (rows, width) in [(1, 1), (3, 70), (100, 129)] {
        for dtype in DTYPES {
            let y0 = random.rounded(rows * width, 2.0, dtype);
            let bias = random.rounded(width, 2.0, dtype);
            let mut y = upload(b, &y0);
            b.add_bias(&mut y, &upload(b, &bias), width, rows, dtype);
            let y = download(b, &y, rows * width);
            let exact = |(i, y): (usize, &f32)| {
                naive::round(dtype, f64::from(*y) + f64::from(bias[i % width]))
            };
            let expected: Vec<f64> = y0.iter().enumerate().map(exact).collect();
            Tolerance::steps_of(dtype, CLOSE).check("bias", &y, &expected);
            results.extend(y);
        }
        let (dy, held) = (random.values(rows * width, 1.0), random.values(width, 1.0));
        let mut dbias = upload(b, &held);
        b.add_bias_backward(&upload(b, &dy), width, rows, &mut dbias);
        let dbias = download(b, &dbias, width);
        let zeros = vec![0.0; width];
        let expected = naive::gradient(&zeros, &wide(&dy), |bias| {
            (0..rows * width).map(|i| bias[i % width]).collect()
        });
        // A sum of up to 100 values below 1.
        Tolerance::new(1e-5, 0.0).check("dbias", &dbias, &sum(&held, &expected));
        results.extend(dbias);
    }
    results
}
