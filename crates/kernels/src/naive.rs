//! The oracle: every operation in `f64`, written from its formula and from nothing else. Slow and
//! plain on purpose. Shapes are those of [`crate::Backend`]; a narrow type rounds where the trait
//! says so, and `f32` does not round at all.

use half::{bf16, f16};

use crate::{Activation, AdamW, Dtype, Mask, RopeLayout};

/// `v` rounded to what `dtype` holds; `f32` counts as exact.
pub(crate) fn round(dtype: Dtype, v: f64) -> f64 {
    match dtype {
        Dtype::F32 => v,
        Dtype::F16 => f16::from_f64(v).to_f64(),
        Dtype::Bf16 => bf16::from_f64(v).to_f64(),
    }
}

/// `round(round(x / sqrt(mean(x²) + eps)) * weight)`.
pub(crate) fn rms_norm(x: &[f64], weight: &[f64], eps: f64, dtype: Dtype) -> Vec<f64> {
    let mut y = Vec::new();
    for x in x.chunks(weight.len()) {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + eps).sqrt();
        y.extend(x.iter().zip(weight).map(|(x, w)| round(dtype, round(dtype, x * r) * w)));
    }
    y
}

/// Rotated heads; cos and sin `(rows, rotary_dim / 2)`.
pub(crate) struct Rope<'a> {
    pub(crate) n_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rotary_dim: usize,
    pub(crate) layout: RopeLayout,
    pub(crate) dtype: Dtype,
    pub(crate) cos: &'a [f64],
    pub(crate) sin: &'a [f64],
}

impl Rope<'_> {
    /// `(a, b) -> (a cos - b sin, b cos + a sin)`.
    pub(crate) fn rotate(&self, x: &[f64]) -> Vec<f64> {
        let half = self.rotary_dim / 2;
        let mut y = x.to_vec();
        let heads = y.chunks_mut(self.head_dim).zip(x.chunks(self.head_dim));
        for (index, (y, x)) in heads.enumerate() {
            let row = index / self.n_heads;
            for i in 0..half {
                let (at_a, at_b) = match self.layout {
                    RopeLayout::HalfSplit => (i, i + half),
                    RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                };
                let cos = round(self.dtype, self.cos[row * half + i]);
                let sin = round(self.dtype, self.sin[row * half + i]);
                let product = |a: f64, b: f64| round(self.dtype, a * b);
                let (a, b) = (x[at_a], x[at_b]);
                y[at_a] = round(self.dtype, product(a, cos) - product(b, sin));
                y[at_b] = round(self.dtype, product(b, cos) + product(a, sin));
            }
        }
        y
    }
}

/// One span of an attention.
pub(crate) struct Attention<'a> {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f64,
    pub(crate) dtype: Dtype,
    pub(crate) mask: Mask<'a>,
}

/// What an attention gives.
pub(crate) struct Attended {
    /// `(n_rows, n_heads * head_dim)`.
    pub(crate) y: Vec<f64>,
    /// `(n_rows, n_heads)`.
    pub(crate) log_sum_exp: Vec<f64>,
    /// `(n_heads, n_rows, n_keys)`.
    pub(crate) probs: Vec<f64>,
}

impl Attention<'_> {
    /// q `(n_rows, n_heads * head_dim)`; k and v `(n_kv_heads, n_keys, head_dim)`.
    pub(crate) fn attend(&self, q: &[f64], k: &[f64], v: &[f64]) -> Attended {
        let n_rows = q.len() / (self.n_heads * self.head_dim);
        let n_keys = k.len() / (self.n_kv_heads * self.head_dim);
        let mut out = Attended {
            y: vec![0.0; q.len()],
            log_sum_exp: vec![0.0; n_rows * self.n_heads],
            probs: vec![0.0; self.n_heads * n_rows * n_keys],
        };
        for head in 0..self.n_heads {
            let kv_head = head / (self.n_heads / self.n_kv_heads);
            for row in 0..n_rows {
                let at = (row * self.n_heads + head) * self.head_dim;
                let q = &q[at..][..self.head_dim];
                let key = |key: usize| (kv_head * n_keys + key) * self.head_dim;
                let scores: Vec<f64> = (0..n_keys)
                    .map(|i| {
                        self.score(q, &k[key(i)..][..self.head_dim], (row, n_rows), (i, n_keys))
                    })
                    .collect();
                let (probs, log_sum_exp) = softmax(&scores);
                out.log_sum_exp[row * self.n_heads + head] = log_sum_exp;
                for (i, p) in probs.iter().enumerate() {
                    let p = round(self.dtype, *p);
                    out.probs[(head * n_rows + row) * n_keys + i] = p;
                    for d in 0..self.head_dim {
                        out.y[at + d] += if p == 0.0 { 0.0 } else { p * v[key(i) + d] };
                    }
                }
            }
        }
        out.y.iter_mut().for_each(|y| *y = round(self.dtype, *y));
        out
    }

    fn score(
        &self,
        q: &[f64],
        k: &[f64],
        (row, n_rows): (usize, usize),
        (key, n_keys): (usize, usize),
    ) -> f64 {
        let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
        let score = round(self.dtype, round(self.dtype, dot) * self.scale);
        let past = key <= n_keys - n_rows + row;
        match self.mask {
            Mask::Causal if past => score,
            Mask::CausalKeys(keep) if past && keep[key] => score,
            Mask::Causal | Mask::CausalKeys(_) => f64::NEG_INFINITY,
            // The bias is so large beside a score that only its own precision makes a row of
            // equal minima uniform: `f32` is part of the definition here.
            Mask::Additive(bias) => {
                let bias = f64::from(bias[row * n_keys + key]);
                let sum = score + bias;
                let sum = if bias < -1e30 { f64::from(sum as f32) } else { sum };
                round(self.dtype, sum)
            }
        }
    }
}

/// Probabilities and the log of their denominator; zeros and `-inf` where every score is `-inf`.
pub(crate) fn softmax(scores: &[f64]) -> (Vec<f64>, f64) {
    let m = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    if m == f64::NEG_INFINITY {
        return (vec![0.0; scores.len()], m);
    }
    let sum: f64 = scores.iter().map(|s| (s - m).exp()).sum();
    (scores.iter().map(|s| (s - m).exp() / sum).collect(), m + sum.ln())
}

/// `act(x)`.
pub(crate) fn activation(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * normal_cdf(x),
        Activation::Gelu10 => (x * normal_cdf(x)).min(10.0),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::LeakyRelu => {
            if x > 0.0 {
                x
            } else {
                0.01 * x
            }
        }
        Activation::Linear => x,
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh => x.tanh(),
        Activation::Mish => x * x.exp().ln_1p().tanh(),
        Activation::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
        #[allow(clippy::approx_constant, reason = "the definition has six digits, not 1/√2")]
        Activation::Laplace => normal_cdf((x - 0.707107) / 0.282095),
    }
}

/// `Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/15 + …)`, the series of the error function, whose terms are
/// all of one sign; beyond 12 deviations nothing is left.
fn normal_cdf(x: f64) -> f64 {
    if x.abs() > 12.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    0.5 + density * sum
}

/// `round(round(act(gate)) * up)`.
pub(crate) fn act_mul(kind: Activation, gate: &[f64], up: &[f64], dtype: Dtype) -> Vec<f64> {
    let one = |(g, u): (&f64, &f64)| round(dtype, round(dtype, activation(kind, *g)) * u);
    gate.iter().zip(up).map(one).collect()
}

/// `log Σ exp(x) - x[target]` of each row.
pub(crate) fn cross_entropy(
    logits: &[f64],
    vocab_size: usize,
    targets: &[Option<u32>],
) -> Vec<f64> {
    let rows = logits.chunks(vocab_size).zip(targets);
    rows.map(|(row, target)| target.map_or(0.0, |t| softmax(row).1 - row[t as usize])).collect()
}

/// New parameter, first and second moment of one AdamW step.
pub(crate) fn adamw(p: f64, g: f64, (m, v): (f64, f64), step: AdamW) -> (f64, f64, f64) {
    let m = step.beta1 * m + (1.0 - step.beta1) * g;
    let v = step.beta2 * v + (1.0 - step.beta2) * g * g;
    let m_hat = m / (1.0 - step.beta1.powi(step.step as i32));
    let v_hat = v / (1.0 - step.beta2.powi(step.step as i32));
    let p = p - step.lr * step.weight_decay * p;
    (p - step.lr * m_hat / (v_hat.sqrt() + step.eps), m, v)
}

/// `y = x · Wᵀ`; x `(rows, cols)`, w `(out, cols)`.
pub(crate) fn linear(x: &[f64], w: &[f64], cols: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(x, w))).collect()
}

/// `dy · (f(x + h) - f(x - h)) / 2h` for each value of `x`: the gradient of `dy · f` by central
/// differences, good to about `h²`.
pub(crate) fn gradient(x: &[f64], dy: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    sampled_gradient(x, dy, 1, f)
}

/// The same for every `step`th value; NaN for the others.
pub(crate) fn sampled_gradient(
    x: &[f64],
    dy: &[f64],
    step: usize,
    f: impl Fn(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    const H: f64 = 1e-5;
    let loss = |x: &[f64]| f(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    let mut x = x.to_vec();
    let mut grads = vec![f64::NAN; x.len()];
    for i in (0..x.len()).step_by(step) {
        let held = x[i];
        x[i] = held + H;
        let above = loss(&x);
        x[i] = held - H;
        let below = loss(&x);
        x[i] = held;
        grads[i] = (above - below) / (2.0 * H);
    }
    grads
}
