//! Cross-entropy `log Σ exp(x) - x[target]` of logits `(rows, vocab_size)`, backward against
//! differences; the norm of gradients `Σ x²`; AdamW, four steps of it.

use super::*;
use crate::AdamW;

pub(super) fn cross_entropy<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(14);
    let mut results = Vec::new();
    for (rows, vocab_size, size) in [(1, 1, 1.0), (4, 33, 5.0), (3, 9001, 30.0), (2, 50, 1e4)] {
        let mut logits = random.values(rows * vocab_size, size);
        if vocab_size > 8 {
            logits[3] = f32::NEG_INFINITY;
        }
        let targets: Vec<Option<u32>> =
            (0..rows).map(|r| (r != 1).then_some((r * 31 % vocab_size) as u32)).collect();
        let logits_buf = upload(b, &logits);
        let mut nll = vec![f32::NAN; rows];
        b.cross_entropy(&logits_buf, vocab_size, &targets, &mut nll);
        let expected = naive::cross_entropy(&wide(&logits), vocab_size, &targets);
        // The denominator is good to a few f32 roundings, the result is one of its own size.
        Tolerance::new(2e-6, 5e-7).check("nll", &nll, &expected);

        let (weights, held) = (random.values(rows, 1.0), random.values(rows * vocab_size, 1.0));
        let mut dlogits = upload(b, &held);
        b.cross_entropy_backward(&logits_buf, vocab_size, &targets, &weights, &mut dlogits);
        let dlogits = download(b, &dlogits, rows * vocab_size);
        let expected: Vec<f64> = if vocab_size < 100 && size < 100.0 {
            naive::gradient(&wide(&logits), &wide(&weights), |x| {
                naive::cross_entropy(x, vocab_size, &targets)
            })
        } else {
            softmax_minus_onehot(&logits, vocab_size, &targets, &weights)
        };
        // exp(x - log_sum_exp) with the latter rounded at 30: 2e-6 of a probability. (At 1e4
        // probabilities are 0 or 1.)
        Tolerance::new(3e-6, 0.0).check("dlogits", &dlogits, &sum(&held, &expected));
        results.extend(nll.into_iter().chain(dlogits));
    }
    results
}

/// The closed form, where differences would take too long; the small cases prove it by them.
fn softmax_minus_onehot(
    logits: &[f32],
    vocab_size: usize,
    targets: &[Option<u32>],
    weights: &[f32],
) -> Vec<f64> {
    let mut grads = vec![0.0; logits.len()];
    for (r, target) in targets.iter().enumerate() {
        let Some(target) = target else { continue };
        let at = r * vocab_size;
        let (p, _) = naive::softmax(&wide(&logits[at..][..vocab_size]));
        for (i, p) in p.iter().enumerate() {
            let hit = if i == *target as usize { 1.0 } else { 0.0 };
            grads[at + i] = f64::from(weights[r]) * (p - hit);
        }
    }
    grads
}

pub(super) fn sum_squares<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(15);
    let mut results = Vec::new();
    for len in [0, 1, 100, 65_536, 200_001] {
        let x = random.values(len, 3.0);
        let got = b.sum_squares(&upload(b, &x), len);
        let expected: f64 = wide(&x).iter().map(|v| v * v).sum();
        // Both are f64 sums, in another order.
        assert!((got - expected).abs() <= 1e-11 * expected, "{got} {expected}");
        let bits = got.to_bits();
        results.extend([f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]);
    }
    results
}

pub(super) fn adamw<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(16);
    let len = 5003;
    let p0 = random.values(len, 1.0);
    let (mut p, mut m, mut v) =
        (upload(b, &p0), upload(b, &vec![0.0; len]), upload(b, &vec![0.0; len]));
    let mut expected: Vec<(f64, f64, f64)> = wide(&p0).iter().map(|p| (*p, 0.0, 0.0)).collect();
    let (lr, eps, weight_decay) = (1e-2, 1e-8, 0.1);
    for step in 1..=4 {
        let step = AdamW { lr, beta1: 0.9, beta2: 0.999, eps, weight_decay, step };
        let grads = random.values(len, 0.5);
        b.adamw(&mut p, &upload(b, &grads), (&mut m, &mut v), len, step);
        for (state, g) in expected.iter_mut().zip(&grads) {
            *state = naive::adamw(state.0, f64::from(*g), (state.1, state.2), step);
        }
    }
    let [p, m, v] = [p, m, v].map(|buf| download(b, &buf, len));
    let column = |f: fn(&(f64, f64, f64)) -> f64| expected.iter().map(f).collect::<Vec<_>>();
    // Four steps, each a few roundings of values below 1 (parameters) and 0.5 (gradients).
    Tolerance::new(1e-6, 0.0).check("parameters", &p, &column(|s| s.0));
    Tolerance::new(1e-7, 0.0).check("first moment", &m, &column(|s| s.1));
    Tolerance::new(0.0, 2e-6).check("second moment", &v, &column(|s| s.2));
    [p, m, v].concat()
}
