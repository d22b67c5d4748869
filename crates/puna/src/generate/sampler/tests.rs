//! The sampler whole: greedy choice, what seeds promise, frequencies against probabilities, logits
//! that are no numbers.

use super::*;

const DROPPED: f32 = f32::NEG_INFINITY;

fn stop() -> StopConditions {
    StopConditions::new(1_000_000, vec![0])
}

fn sampler(params: &SamplingParams) -> Sampler {
    Sampler::new(params, &stop(), &[]).expect("valid parameters")
}

fn seeded(seed: u64) -> SamplingParams {
    SamplingParams { seed: Some(seed), ..SamplingParams::default() }
}

#[test]
fn greedy_takes_the_first_maximum() {
    let mut sampler = sampler(&SamplingParams::greedy());
    let sampled = sampler.sample(&mut [1.0, 3.0, -2.0, 3.0]).expect("logits");
    assert_eq!(sampled, Sampled { id: 1, logprob: None, top: Vec::new() });
    assert_eq!(sampler.sample(&mut [DROPPED, -0.0, 0.0]).expect("logits").id, 1);
    assert_eq!(sampler.completion_ids(), [1, 1]);
}

#[test]
fn broken_logits_are_errors_and_change_nothing() {
    for params in [SamplingParams::greedy(), seeded(1)] {
        let mut sampler = sampler(&params);
        let error = sampler.sample(&mut [0.0, f32::NAN, f32::NAN]).expect_err("NaN");
        assert!(matches!(error, SampleError::BadLogit { id: 1, step: 0, .. }), "{error}");
        let error = sampler.sample(&mut [0.0, 0.0, f32::INFINITY]).expect_err("+inf");
        assert!(matches!(error, SampleError::BadLogit { id: 2, step: 0, .. }), "{error}");
        for none in [&mut [DROPPED; 4][..], &mut []] {
            assert_eq!(sampler.sample(none), Err(SampleError::NoLogits { step: 0 }));
        }
        assert!(sampler.completion_ids().is_empty());
        assert_eq!(sampler.sample(&mut [DROPPED, 0.0]).expect("one id").id, 1);
    }
}

#[test]
fn bans_that_leave_nothing_are_an_error() {
    let params = SamplingParams { no_repeat_ngram_size: 1, ..SamplingParams::greedy() };
    let mut sampler = sampler(&params);
    assert_eq!(sampler.sample(&mut [2.0, 1.0]).expect("first").id, 0);
    assert_eq!(sampler.sample(&mut [2.0, 1.0]).expect("second").id, 1);
    assert_eq!(sampler.sample(&mut [2.0, 1.0]), Err(SampleError::AllForbidden { step: 2 }));
}

#[test]
fn parameters_are_checked_together() {
    let bad = SamplingParams { top_p: 2.0, ..SamplingParams::default() };
    assert_eq!(Sampler::new(&bad, &stop(), &[]).expect_err("top_p").field, "top_p");
    let long = SamplingParams { min_new_tokens: 4, ..SamplingParams::default() };
    let error = Sampler::new(&long, &StopConditions::new(3, vec![0]), &[]).expect_err("length");
    assert_eq!(error.to_string(), "min_new_tokens is 4; it must be at most max_new_tokens, 3");
}

#[test]
fn draws_follow_the_softmax() {
    let logits: Vec<f32> = (0..20).map(|id| (id as f32 * 1.7).sin() * 1.5).collect();
    let weights: Vec<f64> = logits.iter().map(|&s| f64::from(s).exp()).collect();
    let total: f64 = weights.iter().sum();
    let n = 20_000;
    let mut sampler = sampler(&seeded(42));
    let mut counts = [0_u32; 20];
    for _ in 0..n {
        counts[sampler.sample(&mut logits.clone()).expect("logits").id as usize] += 1;
    }
    // 19 degrees of freedom: passes 43.8 once in a thousand; the seed is fixed.
    let chi2: f64 = (0..20)
        .map(|id| (weights[id] / total * f64::from(n), f64::from(counts[id])))
        .map(|(expected, count)| (count - expected).powi(2) / expected)
        .sum();
    assert!(chi2 < 43.8, "{chi2}");
    assert!(chi2 > 5.4, "{chi2}: too even to be random (999 in a thousand are above)");
}

/// The processed distribution is drawn from, not the model's.
#[test]
fn draws_follow_temperature_and_filters() {
    let params = SamplingParams { temperature: 0.5, top_k: 3, ..seeded(5) };
    let mut sampler = sampler(&params);
    let logits = [0.1_f32, 0.9, 0.2, 1.1, 0.5];
    let weights = [0.0, 1.8_f64.exp(), 0.0, 2.2_f64.exp(), 1.0_f64.exp()];
    let total: f64 = weights.iter().sum();
    let mut counts = [0_u32; 5];
    for _ in 0..20_000 {
        counts[sampler.sample(&mut logits.clone()).expect("logits").id as usize] += 1;
    }
    assert_eq!((counts[0], counts[2]), (0, 0));
    let chi2: f64 = [1, 3, 4]
        .into_iter()
        .map(|id| (weights[id] / total * 20_000.0, f64::from(counts[id])))
        .map(|(expected, count)| (count - expected).powi(2) / expected)
        .sum();
    // 2 degrees of freedom: passes 13.8 once in a thousand; the seed is fixed.
    assert!(chi2 < 13.8, "{chi2}: {counts:?}");
}

fn random_row(row: u64, vocab_size: u64) -> Vec<f32> {
    let random = Philox::new(1000 + row);
    let logit = |id| match random.uniform(2 * id + 1) {
        u if u < 0.2 => DROPPED,
        _ => random.uniform(2 * id) as f32 * 8.0 - 4.0,
    };
    (0..vocab_size).map(logit).collect()
}

/// The remembered sums only save time: the id is that of one running sum from the first id on.
#[test]
fn draw_equals_the_plain_running_sum() {
    let mut sampler = sampler(&seeded(9));
    for step in 0..200 {
        let row = random_row(step, 1 + step * 13);
        if row.iter().all(|s| *s == DROPPED) {
            continue;
        }
        let max = row.iter().copied().fold(DROPPED, f32::max);
        let weights: Vec<f64> = row.iter().map(|&s| exp(f64::from(s) - f64::from(max))).collect();
        let target = Philox::new(9).uniform(step) * weights.iter().fold(0.0, |sum, w| sum + w);
        let mut sum = 0.0;
        let expected = weights.iter().position(|w| {
            sum += w;
            sum > target
        });
        assert_eq!(Some(sampler.draw(&row, max, step)), expected, "step {step}");
    }
}

/// A sequence's ids depend on its seed, its step and its logits only; recorded on x86-64.
#[test]
fn seeds_are_reproducible_to_the_bit() {
    let params = SamplingParams {
        temperature: 0.9,
        top_p: 0.95,
        min_p: 0.001,
        typical_p: 0.99,
        repetition_penalty: 1.1,
        ..seeded(1234)
    };
    let draw = || {
        let mut sampler = sampler(&params);
        assert_eq!(sampler.seed(), 1234);
        (0..16).map(|row| sampler.sample(&mut random_row(row, 500)).expect("ids").id).collect()
    };
    let ids: Vec<u32> = draw();
    assert_eq!(ids, draw());
    let recorded = [430, 35, 475, 37, 468, 113, 389, 203, 79, 24, 358, 93, 386, 472, 103, 58];
    assert_eq!(ids, recorded);
}

#[test]
fn fresh_seeds_differ() {
    let seeds: Vec<u64> = (0..4).map(|_| sampler(&SamplingParams::default()).seed()).collect();
    assert!(seeds.windows(2).any(|pair| pair[0] != pair[1]), "{seeds:?}");
}

#[test]
fn logprobs_are_the_models_own() {
    for n in [0, 1, 5, 31, 40, 700, 5000] {
        let params = SamplingParams {
            logprobs: Some(n),
            temperature: 0.3,
            top_k: 2,
            repetition_penalty: 1.5,
            ..seeded(3)
        };
        let mut sampler = sampler(&params);
        for row in 0..4 {
            let mut raw = random_row(row, 700);
            // Ties, also across the border of what is reported.
            raw.iter_mut().for_each(|s| *s = (*s * 4.0).round() / 4.0);
            let max = raw.iter().copied().fold(DROPPED, f32::max);
            let total: f64 = raw.iter().map(|s| f64::from(s - max).exp()).sum();
            let logprob = |id: usize| f64::from(raw[id] - max) - total.ln();
            let mut sorted: Vec<usize> = (0..700).collect();
            sorted.sort_by(|&a, &b| raw[b].partial_cmp(&raw[a]).expect("no NaN"));

            let sampled = sampler.sample(&mut raw.clone()).expect("logits");
            // 1e-6: a rounding to f32 of a value below 16.
            let close = |ours: f32, id| {
                let theirs = logprob(id);
                f64::from(ours) == theirs || (f64::from(ours) - theirs).abs() < 1e-6
            };
            assert!(close(sampled.logprob.expect("asked for"), sampled.id as usize));
            assert_eq!(sampled.top.len(), n.min(700));
            for (&(id, ours), &theirs) in sampled.top.iter().zip(&sorted) {
                assert_eq!(id as usize, theirs);
                assert!(close(ours, theirs), "{ours} for {theirs}");
            }
        }
    }
}

/// The largest vocabularies: memory is taken in the first step and not again.
#[test]
fn later_steps_allocate_nothing() {
    let params = SamplingParams { top_k: 50, top_p: 0.9, logprobs: Some(0), ..seeded(8) };
    let mut sampler = sampler(&params);
    let row = random_row(1, 20_000);
    sampler.sample(&mut row.clone()).expect("logits");
    let before = (sampler.raw.as_ptr(), sampler.sums.as_ptr(), sampler.scratch.pointers());
    for _ in 0..5 {
        sampler.sample(&mut row.clone()).expect("logits");
    }
    let after = (sampler.raw.as_ptr(), sampler.sums.as_ptr(), sampler.scratch.pointers());
    assert_eq!(before, after);
}
