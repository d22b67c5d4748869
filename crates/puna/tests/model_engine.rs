//! The engine on the golden models: the reference's sequences, the same tokens alone and together,
//! with a cache that is too small, with a beginning that is kept, and after a cancellation.

mod golden;

use std::sync::Arc;

use golden::Golden;
use puna::generate::{
    Engine, EngineOptions, FinishReason, Request, RequestError, SamplingParams, SequenceId,
    StopConditions,
};
use puna::model::{LlamaForCausalLM, LoadOptions};
use puna_kernels::{Cpu, KvDtype};
use serde_json::Value;

const OPTIONS: EngineOptions =
    EngineOptions { max_batch_rows: 16, kv_tokens: 256, kv_dtype: KvDtype::F32 };

fn engine(golden: &Golden, options: &EngineOptions) -> Engine<Cpu> {
    let model: LlamaForCausalLM<Cpu> = golden::load(&golden.checkpoint, &LoadOptions::default());
    Engine::new(Arc::new(model), options).unwrap()
}

fn greedy(prompt_ids: &[u32], max_new_tokens: usize) -> Request {
    Request {
        prompt_ids: prompt_ids.to_vec(),
        sampling: SamplingParams::greedy(),
        stop: StopConditions::new(max_new_tokens, vec![2]),
    }
}

/// Runs until nothing is left; the completions in the order of `ids`, and how they ended.
fn finish(engine: &mut Engine<Cpu>, ids: &[SequenceId]) -> Vec<(Vec<u32>, FinishReason)> {
    let mut done: Vec<_> = ids.iter().map(|_| (Vec::new(), FinishReason::Cancelled)).collect();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let Some(at) = ids.iter().position(|id| *id == event.sequence) else { continue };
            done[at].0.push(event.token.unwrap().id);
            if let Some(finish) = event.finish {
                done[at].1 = finish;
            }
        }
    }
    done
}

fn complete(engine: &mut Engine<Cpu>, requests: &[Request]) -> Vec<Vec<u32>> {
    let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    finish(engine, &ids).into_iter().map(|(completion, _)| completion).collect()
}

/// The requests of one recorded call of `generate()`, a row each, without padding.
fn requests(case: &Value) -> Vec<Request> {
    let kwargs = &case["kwargs"];
    let size = |key: &str| kwargs.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    let eos = kwargs.get("eos_token_id").map_or(vec![2], golden::integers);
    let mut sampling = SamplingParams::greedy();
    sampling.min_new_tokens = size("min_new_tokens");
    sampling.no_repeat_ngram_size = size("no_repeat_ngram_size");
    if let Some(penalty) = kwargs.get("repetition_penalty").and_then(Value::as_f64) {
        sampling.repetition_penalty = penalty;
    }
    let rows = case["input_ids"].as_array().unwrap();
    let request = |(row, ids): (usize, &Value)| {
        let keep = case["attention_mask"].get(row).map(golden::integers);
        let ids = golden::integers(ids);
        let kept = ids.iter().enumerate().filter(|(i, _)| keep.as_ref().is_none_or(|k| k[*i] == 1));
        Request {
            prompt_ids: kept.map(|(_, &id)| id).collect(),
            sampling: sampling.clone(),
            stop: StopConditions::new(size("max_new_tokens"), eos.clone()),
        }
    };
    rows.iter().enumerate().map(request).collect()
}

#[test]
fn sequences_equal_the_references() {
    let known = [
        "max_new_tokens",
        "min_new_tokens",
        "do_sample",
        "eos_token_id",
        "repetition_penalty",
        "no_repeat_ngram_size",
    ];
    let mut n_cases = 0;
    for golden in golden::models() {
        let mut engine = engine(&golden, &OPTIONS);
        for (name, case) in golden.expected["generate"].as_object().unwrap() {
            let kwargs = case["kwargs"].as_object().unwrap();
            if !kwargs.keys().all(|key| known.contains(&key.as_str())) {
                continue;
            }
            let requests = requests(case);
            let n_prompt = case["input_ids"][0].as_array().unwrap().len();
            let completions = complete(&mut engine, &requests);
            for (row, mut completion) in completions.into_iter().enumerate() {
                let expected = golden::integers(&case["sequences"][row]);
                // The reference fills a row that ended early with padding.
                completion.resize(expected.len() - n_prompt, 0);
                assert_eq!(completion, expected[n_prompt..], "{} {name} row {row}", golden.name);
            }
            n_cases += 1;
        }
    }
    println!("{n_cases} cases");
    assert!(n_cases >= 12);
}

fn prompts() -> Vec<Request> {
    let prompt = |n: u32, len: u32| (0..len).map(|i| 3 + (i * 7 + n * 11) % 50).collect::<Vec<_>>();
    [(0, 1), (1, 40), (2, 7), (3, 33), (4, 2), (5, 19)]
        .map(|(n, len)| greedy(&prompt(n, len), 24))
        .to_vec()
}

/// Each request on an engine of its own.
fn alone(golden: &Golden, kv_dtype: KvDtype) -> Vec<Vec<u32>> {
    let options = EngineOptions { kv_dtype, ..OPTIONS };
    prompts()
        .iter()
        .map(|r| complete(&mut engine(golden, &options), std::slice::from_ref(r)).remove(0))
        .collect()
}

#[test]
fn together_as_alone() {
    for golden in golden::models() {
        for kv_dtype in KvDtype::ALL {
            let options = EngineOptions { kv_tokens: 1024, kv_dtype, ..OPTIONS };
            let together = complete(&mut engine(&golden, &options), &prompts());
            assert_eq!(together, alone(&golden, kv_dtype), "{} {kv_dtype:?}", golden.name);
        }
    }
}

/// 64 tokens fit, six sequences want up to 64 each: they take turns and are computed again.
#[test]
fn a_full_cache_makes_sequences_wait() {
    for golden in golden::models() {
        let mut small = engine(&golden, &EngineOptions { kv_tokens: 64, ..OPTIONS });
        let expected = alone(&golden, OPTIONS.kv_dtype);
        // The longest ends where the cache does: at 64 tokens, prompt included.
        let room = |request: &Request| 64 - request.prompt_ids.len();
        for (request, (found, expected)) in
            prompts().iter().zip(complete(&mut small, &prompts()).iter().zip(&expected))
        {
            let n = expected.len().min(room(request));
            assert_eq!(found[..], expected[..n], "{}", golden.name);
        }
    }
}

#[test]
fn a_kept_beginning_changes_nothing() {
    for golden in golden::models() {
        for kv_dtype in KvDtype::ALL {
            keep_a_beginning(&golden, &EngineOptions { kv_dtype, ..OPTIONS });
        }
    }
}

fn keep_a_beginning(golden: &Golden, options: &EngineOptions) {
    let mut engine = engine(golden, options);
    let first = greedy(&prompts()[1].prompt_ids, 10);
    let answer = complete(&mut engine, std::slice::from_ref(&first)).remove(0);
    let mut turn = first.prompt_ids;
    turn.extend(&answer);
    turn.extend([5, 6, 7]);
    let second = greedy(&turn, 10);
    let warm = complete(&mut engine, std::slice::from_ref(&second));
    let n_rows = |engine: &mut Engine<Cpu>, request: &Request| {
        engine.submit(request.clone()).unwrap();
        let mut steps = 0;
        while engine.step().unwrap().is_empty() {
            steps += 1;
        }
        steps
    };
    let mut cold = crate::engine(golden, options);
    assert_eq!(warm, complete(&mut cold, std::slice::from_ref(&second)));
    // Up to 53 tokens in chunks of 16 take four steps; with the first turn kept, one. Nothing is
    // kept where the rotation of keys depends on the whole prompt.
    let mut fresh = crate::engine(golden, options);
    let cold_steps = n_rows(&mut fresh, &second);
    assert!(cold_steps >= 2, "{}: {cold_steps}", golden.name);
    let dynamic = engine.model().model.rope.is_dynamic();
    let expected = if dynamic { cold_steps } else { 0 };
    assert_eq!(n_rows(&mut engine, &second), expected, "{}", golden.name);
}

#[test]
fn a_cancelled_sequence_is_forgotten() {
    let golden = &golden::models()[0];
    let mut engine = engine(golden, &OPTIONS);
    let requests = prompts();
    let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    engine.step().unwrap();
    engine.cancel(ids[0]);
    engine.cancel(ids[5]);
    let done = finish(&mut engine, &ids);
    let expected = alone(golden, OPTIONS.kv_dtype);
    assert_eq!(done[0].1, FinishReason::Cancelled);
    assert_eq!(done[5], (vec![], FinishReason::Cancelled));
    for at in 1..5 {
        assert_eq!(done[at].0, expected[at]);
    }
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let golden = &golden::models()[0];
    let mut engine = engine(golden, &OPTIONS);
    let refused = |engine: &mut Engine<Cpu>, request| engine.submit(request).unwrap_err();
    assert_eq!(refused(&mut engine, greedy(&[], 3)), RequestError::EmptyPrompt);
    let long = RequestError::TooLong { prompt: 256, context: 256 };
    assert_eq!(refused(&mut engine, greedy(&[1; 256], 3)), long);
    let error = refused(&mut engine, greedy(&[1, 9999], 3));
    assert!(matches!(error, RequestError::TokenId { id: 9999, .. }));
    assert!(matches!(refused(&mut engine, greedy(&[1], 0)), RequestError::Param(_)));
    assert!(engine.is_idle());
}

#[test]
fn the_context_ends_a_sequence() {
    let golden = &golden::models()[0];
    let mut engine = engine(golden, &EngineOptions { kv_tokens: 32, ..OPTIONS });
    let mut request = greedy(&[1, 5, 9, 33], 1000);
    request.stop.ignore_eos = true;
    let id = engine.submit(request).unwrap();
    let done = finish(&mut engine, &[id]);
    assert_eq!((done[0].0.len(), &done[0].1), (28, &FinishReason::Length));
}
