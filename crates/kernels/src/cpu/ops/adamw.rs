//! One AdamW step, in PyTorch's order of operations:
//! `p *= 1 - lr wd`, `m += (1-β₁)(g - m)`, `v = β₂ v + (1-β₂) g g`,
//! `p += -lr/(1-β₁ᵗ) m / (sqrt(v)/sqrt(1-β₂ᵗ) + eps)`.

use super::CHUNK;
use super::vector::{load, store};
use crate::AdamW;
use crate::cpu::Cpu;
use crate::cpu::isa::Isa;

/// The scalars of one step, computed in `f64` and rounded once, as PyTorch does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    decay: f32,
    lerp: f32,
    beta2: f32,
    grow: f32,
    root_correction: f32,
    eps: f32,
    minus_step_size: f32,
}

impl Factors {
    fn new(step: AdamW) -> Self {
        let AdamW { lr, beta1, beta2, eps, weight_decay, step } = step;
        let t = f64::from(step);
        Self {
            decay: (1.0 - lr * weight_decay) as f32,
            lerp: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            grow: (1.0 - beta2) as f32,
            root_correction: (1.0 - beta2.powf(t)).sqrt() as f32,
            eps: eps as f32,
            minus_step_size: -(lr / (1.0 - beta1.powf(t))) as f32,
        }
    }
}

/// Steps `params` by `grads`; `moments` are the first and the second, all of one length.
pub(crate) fn adamw(
    cpu: &Cpu,
    params: &mut [f32],
    grads: &[f32],
    (first, second): (&mut [f32], &mut [f32]),
    step: AdamW,
) {
    let factors = Factors::new(step);
    cpu.pool.for_each_chunks([params, first, second], CHUNK, |i, [p, m, v]| {
        let grads = &grads[i * CHUNK..][..p.len()];
        (cpu.kernels.adamw)(p, grads, m, v, &factors);
    });
}

/// One slice of the step: parameters, gradients, first and second moments.
#[inline(always)]
pub(crate) fn slice<I: Isa>(
    isa: I,
    params: &mut [f32],
    grads: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    f: &Factors,
) {
    let [decay, lerp, beta2, grow] = [f.decay, f.lerp, f.beta2, f.grow].map(|v| isa.splat(v));
    let [root, eps, step] = [f.root_correction, f.eps, f.minus_step_size].map(|v| isa.splat(v));
    for at in (0..params.len()).step_by(I::LANES) {
        let g = load(isa, &grads[at..]);
        let m = load(isa, &first[at..]);
        let m = isa.add(m, isa.mul(lerp, isa.sub(g, m)));
        let v = isa.mul(load(isa, &second[at..]), beta2);
        let v = isa.add(v, isa.mul(isa.mul(grow, g), g));
        let p = isa.mul(load(isa, &params[at..]), decay);
        let denominator = isa.add(isa.div(isa.sqrt(v), root), eps);
        let p = isa.add(p, isa.div(isa.mul(step, m), denominator));
        store(isa, m, &mut first[at..]);
        store(isa, v, &mut second[at..]);
        store(isa, p, &mut params[at..]);
    }
}
