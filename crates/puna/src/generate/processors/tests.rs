//! Each processor against Transformers' own, on logits that `tools/sampling_goldens.py` wrote, and
//! on cases that are decided by hand: ties, empty histories, everything dropped.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::generate::rng::Philox;

const DROPPED: f32 = f32::NEG_INFINITY;

/// Made by tools/sampling_goldens.py with Transformers' own processors.
const GOLDENS: &str = include_str!("../../../tests/data/sampling_goldens.json");

fn apply(processors: &mut [Processor], history: &History, scores: &[f32]) -> Vec<f32> {
    let mut scores = scores.to_vec();
    let mut scratch = Scratch::default();
    for processor in processors {
        processor.apply(history, &mut scores, &mut scratch);
    }
    scores
}

fn one(mut processor: Processor, scores: &[f32]) -> Vec<f32> {
    apply(std::slice::from_mut(&mut processor), &History::new(&[]), scores)
}

fn history(prompt_ids: &[u32], completion_ids: &[u32]) -> History {
    let mut history = History::new(prompt_ids);
    for &id in completion_ids {
        history.push(id);
    }
    history
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("ids")
}

fn score(value: &Value) -> f32 {
    value.as_f64().map_or(DROPPED, |s| s as f32)
}

fn params_of(settings: &Value) -> SamplingParams {
    let mut params = SamplingParams::default();
    for (name, value) in settings.as_object().expect("settings") {
        let (number, count) = (value.as_f64().expect("a number"), value.as_u64());
        match name.as_str() {
            "temperature" => params.temperature = number,
            "top_p" => params.top_p = number,
            "min_p" => params.min_p = number,
            "typical_p" => params.typical_p = number,
            "repetition_penalty" => params.repetition_penalty = number,
            "top_k" => params.top_k = count.expect("a count") as usize,
            "no_repeat_ngram_size" => {
                params.no_repeat_ngram_size = count.expect("a count") as usize;
            }
            "min_new_tokens" => params.min_new_tokens = count.expect("a count") as usize,
            other => panic!("unknown setting {other}"),
        }
    }
    params.validate().expect("settings that generate() takes");
    params
}

#[test]
fn equal_to_transformers() {
    let golden: Value = serde_json::from_str(GOLDENS).expect("JSON");
    let history = history(&ids(&golden["prompt_ids"]), &ids(&golden["completion_ids"]));
    let stop = StopConditions::new(100, ids(&golden["eos_token_ids"]));
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() >= 100);
    for case in cases {
        let row = golden["rows"][case["row"].as_str().expect("row")].as_array().expect("row");
        let row: Vec<f32> = row.iter().map(score).collect();
        let mut expected = row.clone();
        for (id, changed) in case["scores"].as_object().expect("scores") {
            expected[id.parse::<usize>().expect("id")] = score(changed);
        }
        let mut processors = Processor::list(&params_of(&case["settings"]), &stop);
        assert!(!processors.is_empty());
        let mut scores = apply(&mut processors, &history, &row);
        if case["settings"]["top_p"].is_number() {
            // Which of several equal logits top_p keeps is up to the machine's sort there; how
            // many it keeps is not.
            sort_ties(&row, &mut scores);
            sort_ties(&row, &mut expected);
        }
        for (id, (&ours, &theirs)) in scores.iter().zip(&expected).enumerate() {
            // 1e-6 of the value: one rounding of an f32. A dropped id must be dropped.
            let close = ours == theirs || (ours - theirs).abs() <= 1e-6 * theirs.abs().max(1.0);
            assert!(close, "{} {}: id {id}: {ours}, not {theirs}", case["settings"], case["row"]);
        }
    }
}

/// Sorts the scores of ids with the same logit among those ids.
fn sort_ties(row: &[f32], scores: &mut [f32]) {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[a].partial_cmp(&row[b]).expect("no NaN"));
    for tied in ids.chunk_by(|&a, &b| row[a] == row[b]) {
        let mut sorted: Vec<f32> = tied.iter().map(|&id| scores[id]).collect();
        sorted.sort_by(f32::total_cmp);
        tied.iter().zip(sorted).for_each(|(&id, s)| scores[id] = s);
    }
}

/// Logits of four kinds in turn: smooth, with ties, with dropped ids, sharp.
fn random_rows(n_rows: u64, vocab_size: u64) -> impl Iterator<Item = Vec<f32>> {
    (0..n_rows).map(move |row| {
        let random = Philox::new(row);
        let logit = |id| {
            let u = random.uniform(2 * id) as f32 * 12.0 - 6.0;
            match row % 4 {
                0 => u,
                1 => u.round(),
                2 if random.uniform(2 * id + 1) < 0.4 && id > 0 => DROPPED,
                2 => (u * 2.0).round() / 2.0,
                _ => u * 5.0,
            }
        };
        (0..vocab_size).map(logit).collect()
    })
}

/// `(id, probability)` in ascending order, of equal scores the higher id first.
fn ascending_softmax(scores: &[f32]) -> Vec<(usize, f64)> {
    let max = f64::from(maximum(scores));
    let weights: Vec<f64> = scores.iter().map(|&s| (f64::from(s) - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sorted: Vec<usize> = (0..scores.len()).rev().collect();
    sorted.sort_by(|&a, &b| scores[a].partial_cmp(&scores[b]).expect("no NaN"));
    sorted.into_iter().map(|id| (id, weights[id] / total)).collect()
}

fn kept(scores: &[f32]) -> Vec<usize> {
    (0..scores.len()).filter(|&id| scores[id] != DROPPED).collect()
}

#[test]
fn top_k_equals_a_full_sort() {
    for scores in random_rows(40, 700) {
        for k in [1, 2, 31, 32, 33, 64, 200, 699, 700, 5000] {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.partial_cmp(a).expect("no NaN"));
            let threshold = sorted[k.min(700) - 1];
            let expected: Vec<f32> =
                scores.iter().map(|&s| if s >= threshold { s } else { DROPPED }).collect();
            assert_eq!(one(Processor::TopK(k), &scores), expected, "k {k}");
        }
    }
}

#[test]
fn top_p_equals_a_full_sort() {
    for scores in random_rows(60, 900) {
        for p in [0.0, 0.013, 0.31, 0.5, 0.77, 0.93, 0.9991] {
            let mut mass = 0.0;
            let sorted = ascending_softmax(&scores);
            let (last, rest) = sorted.split_last().expect("not empty");
            let mut expected = vec![last.0];
            for &(id, probability) in rest {
                mass += probability;
                // 1e-9 is far above the rounding of an f64 sum and below the f32 test's: a
                // row whose sum comes that close to 1 - p would prove nothing.
                assert!((mass - (1.0 - p)).abs() > 1e-9 || p == 0.0, "choose another p");
                if mass > 1.0 - p && p > 0.0 {
                    expected.push(id);
                }
            }
            expected.sort_unstable();
            assert_eq!(kept(&one(Processor::TopP(p), &scores)), expected, "p {p}");
        }
    }
}

#[test]
fn min_p_equals_its_formula() {
    for scores in random_rows(40, 300) {
        for p in [0.000_123, 0.011, 0.23, 0.77, 1.0] {
            let softmax = ascending_softmax(&scores);
            let most = softmax[softmax.len() - 1].1;
            let mut expected: Vec<usize> =
                softmax.iter().filter(|(_, q)| *q >= p * most).map(|(id, _)| *id).collect();
            expected.sort_unstable();
            assert_eq!(kept(&one(Processor::MinP(p), &scores)), expected, "p {p}");
        }
    }
}

#[test]
fn typical_p_equals_a_full_sort() {
    for scores in random_rows(60, 300) {
        let mut softmax = ascending_softmax(&scores);
        softmax.retain(|&(id, _)| scores[id] != DROPPED);
        let plogp = |q: f64| if q > 0.0 { -q * q.ln() } else { 0.0 };
        let entropy: f64 = softmax.iter().map(|&(_, q)| plogp(q)).sum();
        // Rounded, so that ids of one score tie whatever the last bit of a logarithm is.
        let distance = |q: f64| ((-q.ln() - entropy).abs() * 1e6).round();
        softmax.sort_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
        for p in [0.05, 0.21, 0.5, 0.83, 0.97] {
            let mut mass = 0.0;
            let mut threshold = f64::INFINITY;
            for &(_, q) in &softmax {
                mass += q;
                if mass >= p {
                    threshold = distance(q);
                    break;
                }
            }
            let near = softmax.iter().filter(|(_, q)| distance(*q) <= threshold);
            let mut expected: Vec<usize> = near.map(|(id, _)| *id).collect();
            expected.sort_unstable();
            assert_eq!(kept(&one(Processor::TypicalP(p), &scores)), expected, "p {p}");
        }
    }
}

#[test]
fn presence_and_frequency_count_the_completion_only() {
    let params = SamplingParams {
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let mut processors = Processor::list(&params, &StopConditions::new(9, Vec::new()));
    let mut history = history(&[0, 0, 1], &[2, 3, 2]);
    let row = [1.0, -1.0, 2.0, DROPPED, 0.0];
    let expected = [1.0, -1.0, 1.0, DROPPED, 0.0];
    assert_eq!(apply(&mut processors, &history, &row), expected);
    history.push(2);
    history.push(1);
    history.push(77);
    let expected = [1.0, -1.75, 0.75, DROPPED, 0.0];
    assert_eq!(apply(&mut processors, &history, &row), expected, "counts catch up");
}

#[test]
fn counts_and_repetition_equal_a_recount() {
    let params = SamplingParams {
        repetition_penalty: 1.37,
        presence_penalty: -0.3,
        frequency_penalty: 0.7,
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let mut processors = Processor::list(&params, &StopConditions::new(9, Vec::new()));
    let mut history = History::new(&[3, 4, 4, 60]);
    for (step, row) in random_rows(50, 40).enumerate() {
        let mut counts = BTreeMap::<u32, u32>::new();
        counts.extend(history.ids().iter().map(|&id| (id, 0)));
        history.completion_ids().iter().for_each(|id| *counts.get_mut(id).expect("seen") += 1);
        let mut expected: Vec<f32> = row.clone();
        for (&id, &count) in counts.iter().filter(|(id, _)| **id < 40) {
            let s = &mut expected[id as usize];
            *s = if *s < 0.0 { *s * 1.37 } else { *s / 1.37 };
            if count > 0 {
                *s -= -0.3 + 0.7 * count as f32;
            }
        }
        assert_eq!(apply(&mut processors, &history, &row), expected, "step {step}");
        history.push((Philox::new(99).uniform(step as u64) * 50.0) as u32);
    }
}

#[test]
fn eos_is_held_back_unless_it_is_ordinary() {
    let params = SamplingParams { min_new_tokens: 2, ..SamplingParams::greedy() };
    let mut stop = StopConditions::new(9, vec![1, 50]);
    let row = [0.0, 5.0, 1.0];
    let mut processors = Processor::list(&params, &stop);
    assert_eq!(apply(&mut processors, &history(&[9], &[0]), &row), [0.0, DROPPED, 1.0]);
    assert_eq!(apply(&mut processors, &history(&[9], &[0, 0]), &row), row);
    stop.ignore_eos = true;
    assert!(Processor::list(&params, &stop).is_empty());
}

#[test]
fn neutral_parameters_make_no_processor() {
    let stop = StopConditions::new(9, vec![1]);
    assert!(Processor::list(&SamplingParams::default(), &stop).is_empty());
    let greedy = SamplingParams { top_k: 5, top_p: 0.5, min_p: 0.1, ..SamplingParams::greedy() };
    assert!(Processor::list(&greedy, &stop).is_empty());
}

/// Extreme but valid settings leave at least one finite score and no NaN or `+inf`.
#[test]
fn nothing_overflows() {
    let rows = [
        vec![f32::MAX, f32::MIN, 0.0, DROPPED],
        vec![f32::MIN, f32::MIN, DROPPED, DROPPED],
        vec![-1.0, -2.0, -3.0, -4.0],
        vec![f32::MIN_POSITIVE, -0.0, 0.0, 1e-45],
    ];
    let tiny = f64::from(f32::MIN_POSITIVE);
    let all = [
        SamplingParams { temperature: 1e-42, top_k: 2, ..SamplingParams::default() },
        SamplingParams { temperature: 3e38, top_p: 0.5, ..SamplingParams::default() },
        SamplingParams { repetition_penalty: tiny, ..SamplingParams::default() },
        SamplingParams { repetition_penalty: 3e38, typical_p: tiny, ..SamplingParams::default() },
        SamplingParams { presence_penalty: 2.0, min_p: 1.0, ..SamplingParams::default() },
        SamplingParams { frequency_penalty: -2.0, top_p: 0.0, ..SamplingParams::default() },
    ];
    for (params, row) in all.iter().flat_map(|params| rows.iter().map(move |row| (params, row))) {
        params.validate().expect("valid");
        let mut processors = Processor::list(params, &StopConditions::new(9, Vec::new()));
        let scores = apply(&mut processors, &history(&[0, 1, 3], &[0, 1, 2, 2]), row);
        assert!(maximum(&scores).is_finite(), "{params:?} on {row:?}: {scores:?}");
        assert!(!scores.iter().any(|s| s.is_nan() || *s == f32::INFINITY), "{scores:?}");
        assert!(kept(&scores).iter().all(|&id| row[id] != DROPPED), "a dropped id came back");
    }
}

#[test]
fn dropped_rows_stay_dropped() {
    for processor in [
        Processor::Temperature(0.5),
        Processor::TopK(1),
        Processor::TopK(0),
        Processor::TopP(0.5),
        Processor::MinP(0.5),
        Processor::TypicalP(0.5),
    ] {
        assert_eq!(one(processor.clone(), &[DROPPED; 3]), [DROPPED; 3]);
        assert_eq!(one(processor, &[]), [] as [f32; 0]);
    }
}
