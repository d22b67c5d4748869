//! The gated product `y = act(gate) * up`, for every activation. In: gates of every size, then the
//! corners of the curves. Out: y in each type; dgate and dup against differences.

use super::*;

/// What [`Activation`]'s curves promise: 1e-6 of PyTorch, which is itself `f32`.
const CLOSE: Tolerance = Tolerance::new(1e-6, 1e-6);

pub(super) fn forward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(5);
    let mut results = Vec::new();
    for kind in ACTIVATIONS {
        for dtype in DTYPES {
            for (len, size) in [(1, 1.0), (77, 1e-3), (4099, 7.0), (300, 25.0)] {
                let gate = random.rounded(len, size, dtype);
                let up = random.rounded(len, 1.0, dtype);
                let mut y = poisoned(b, len);
                b.act_mul(kind, &upload(b, &gate), &upload(b, &up), len, dtype, &mut y);
                let y = download(b, &y, len);
                let expected = naive::act_mul(kind, &wide(&gate), &wide(&up), dtype);
                let what = format!("{kind:?} {dtype:?}");
                Tolerance::steps_of(dtype, CLOSE).check(&what, &y, &expected);
                results.extend(y);
            }
        }
    }
    results
}

pub(super) fn backward<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(6);
    let mut results = Vec::new();
    for kind in ACTIVATIONS {
        for (len, size) in [(1, 1.0), (203, 12.0)] {
            // Away from the corners of the curves, where differences mean nothing.
            let corners = [-3.0, 0.0, 3.0, 6.0, 10.0];
            let mut gate = random.values(len, size);
            for g in &mut gate {
                let near = corners.iter().any(|c: &f32| (*g - c).abs() < 1e-3);
                *g += if near { 0.01 } else { 0.0 };
            }
            let (up, dy) = (random.values(len, 1.0), random.values(len, 1.0));
            let held = random.values(len, 1.0);
            let (mut dgate, mut dup) = (upload(b, &held), upload(b, &held));
            let [gate_buf, up_buf, dy_buf] = [&gate, &up, &dy].map(|v| upload(b, v));
            b.act_mul_backward(kind, &gate_buf, &up_buf, len, &dy_buf, (&mut dgate, &mut dup));
            let (dgate, dup) = (download(b, &dgate, len), download(b, &dup, len));

            let (gate, up, dy) = (wide(&gate), wide(&up), wide(&dy));
            let f = |g: &[f64], u: &[f64]| naive::act_mul(kind, g, u, Dtype::F32);
            let by_gate = naive::gradient(&gate, &dy, |g| f(g, &up));
            let by_up = naive::gradient(&up, &dy, |u| f(&gate, u));
            // Slopes reach 24 (relu2), each a handful of f32 roundings.
            let tolerance = Tolerance::new(4e-6, 2e-6);
            tolerance.check(&format!("dgate {kind:?}"), &dgate, &sum(&held, &by_gate));
            tolerance.check(&format!("dup {kind:?}"), &dup, &sum(&held, &by_up));
            results.extend(dgate.into_iter().chain(dup));
        }
    }
    results
}

/// Large inputs saturate, and the slopes at the corners are PyTorch's.
pub(super) fn extremes<B: Backend>(b: &B) -> Vec<f32> {
    let mut results = Vec::new();
    let gate = [-1e4, -300.0, -88.0, -20.0, 20.0, 88.0, 300.0, 1e4];
    let ones = [1.0; 8];
    for kind in ACTIVATIONS {
        let mut y = poisoned(b, 8);
        b.act_mul(kind, &upload(b, &gate), &upload(b, &ones), 8, Dtype::F32, &mut y);
        let y = download(b, &y, 8);
        CLOSE.check(
            &format!("{kind:?}"),
            &y,
            &naive::act_mul(kind, &wide(&gate), &[1.0; 8], Dtype::F32),
        );
        results.extend(y);
    }
    let corners = [
        (Activation::Relu, 0.0, 0.0),
        (Activation::Relu6, 0.0, 0.0),
        (Activation::Relu6, 6.0, 0.0),
        (Activation::LeakyRelu, 0.0, 0.01),
        (Activation::HardSwish, -3.0, 0.0),
        (Activation::HardSwish, 3.0, 1.0),
    ];
    for (kind, x, slope) in corners {
        let (mut dgate, mut dup) = (upload(b, &[0.0]), upload(b, &[0.0]));
        let [x, one] = [x, 1.0].map(|v| upload(b, &[v]));
        b.act_mul_backward(kind, &x, &one, 1, &one, (&mut dgate, &mut dup));
        assert_eq!(download(b, &dgate, 1), [slope], "{kind:?}");
    }
    results
}
