//! Guessing ahead: the events of plain decoding, in fewer steps. Greedy and sampled, with prompt
//! lookup, with a draft model that is always right, and with one that is mostly wrong.

mod complete;
mod golden;
mod random_model;

use std::sync::Arc;

use complete::complete;
use puna::generate::{
    DraftCounts, Engine, EngineOptions, Event, FinishReason, Proposer, Request, SamplingParams,
    Speculation, SpeculationError,
};
use puna::model::{LlamaForCausalLM, LoadOptions};
use puna_kernels::{Cpu, CpuOptions, Format, KvDtype};
use random_model::{Model, Noise, cpu, greedy, ids, model, with_vocabulary};

const OPTIONS: EngineOptions =
    EngineOptions { max_batch_rows: 64, kv_tokens: 1024, kv_dtype: KvDtype::F32 };

/// Rows that the weights of every kind of [`Format`] here take on the path of one row.
fn rows_like_one(model: &Model) -> usize {
    let backend = &*model.model.backend;
    model.matrices().map(|(_, weight)| backend.rows_like_one(weight)).min().unwrap()
}

/// Fast paths on two threads: no pinning.
fn fast() -> Arc<Cpu> {
    cpu(&CpuOptions { threads: 2, ..CpuOptions::default() })
}

fn speculation(target: &Model, proposer: Proposer<Cpu>) -> Speculation<Cpu> {
    Speculation { proposer, max_tokens: 8, max_rows: rows_like_one(target) }
}

/// Every kind of guessing for a model of [`model`]'s seed 5.
fn speculations(target: &Model, format: Format) -> Vec<(&'static str, Speculation<Cpu>)> {
    let draft = |seed| {
        let backend = &target.model.backend;
        Proposer::Draft(Arc::new(model(backend, format, seed)))
    };
    [
        ("lookup", Proposer::PromptLookup { max_ngram: 3 }),
        ("lookup of one id", Proposer::PromptLookup { max_ngram: 1 }),
        ("its own draft", draft(5)),
        ("another draft", draft(6)),
    ]
    .map(|(name, proposer)| (name, speculation(target, proposer)))
    .to_vec()
}

/// All events of one request on an engine of its own, and the steps that it took.
fn events(
    model: &Arc<Model>,
    speculation: Option<Speculation<Cpu>>,
    request: &Request,
) -> (Vec<Event>, usize, DraftCounts) {
    let mut engine = Engine::new(Arc::clone(model), &OPTIONS).unwrap();
    engine.speculate(speculation).unwrap();
    engine.submit(request.clone()).unwrap();
    let (mut events, mut n_steps) = (Vec::new(), 0);
    while !engine.is_idle() {
        events.extend(engine.step().unwrap());
        n_steps += 1;
    }
    (events, n_steps, engine.draft_counts())
}

/// A text that repeats itself.
fn repetitive() -> Vec<u32> {
    let part = Noise(3).ids(12);
    [&part[..], &part, &part[..5]].concat()
}

/// Holds every kind of guessing against plain decoding.
fn check(format: Format, request: &Request, what: &str) {
    let target = Arc::new(model(&fast(), format, 5));
    let (plain, n_steps, _) = events(&target, None, request);
    for (name, speculation) in speculations(&target, format) {
        let (found, steps, counts) = events(&target, Some(speculation), request);
        assert_eq!(found, plain, "{format} {what}, {name}");
        // Each right draft saves a step, but for one that is the end: nothing comes behind it.
        let n_useless = counts.accepted as usize - (n_steps - steps);
        assert!(n_useless <= 1, "{format} {what}, {name}: {n_steps} {steps} {counts:?}");
        assert!(counts.accepted <= counts.drafted);
    }
}

#[test]
fn greedy_is_plain_greedy() {
    for format in [Format::F32, Format::Bf16, Format::Q4_0, Format::Q4K, Format::Iq2S] {
        for prompt_ids in [repetitive(), Noise(4).ids(40), vec![7]] {
            let mut request = greedy(&prompt_ids, 40);
            check(format, &request, "greedy");
            request.sampling.logprobs = Some(3);
            check(format, &request, "greedy with log-probabilities");
        }
    }
}

/// The same seed draws the same ids, so that the distribution is the same too: each of 30 seeds is
/// one draw of whole sequences from either.
#[test]
fn sampled_is_what_the_seed_says() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let mut accepted = [0; 4];
    for seed in 0..30 {
        let mut request = greedy(&repetitive(), 24);
        request.sampling = SamplingParams {
            temperature: 0.4,
            seed: Some(seed),
            logprobs: Some(2),
            ..SamplingParams::default()
        };
        let (plain, ..) = events(&target, None, &request);
        let speculations = speculations(&target, Format::Q4_0);
        for ((name, speculation), accepted) in speculations.into_iter().zip(&mut accepted) {
            let (found, _, counts) = events(&target, Some(speculation), &request);
            assert_eq!(found, plain, "{name}, seed {seed}");
            *accepted += counts.accepted;
        }
    }
    println!("accepted of 720 tokens each: {accepted:?}");
    assert!(accepted[2] > 500, "a draft draws with the same number: {accepted:?}");
}

/// Processors see the ids of the sequence and no draft.
#[test]
fn penalties_and_bans_are_as_without() {
    let sampled = SamplingParams { temperature: 0.7, seed: Some(9), ..SamplingParams::default() };
    for sampling in [
        SamplingParams { repetition_penalty: 1.3, ..SamplingParams::greedy() },
        SamplingParams { no_repeat_ngram_size: 3, ..SamplingParams::greedy() },
        SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.2, ..sampled.clone() },
        SamplingParams { min_p: 0.05, top_k: 40, top_p: 0.9, ..sampled.clone() },
        SamplingParams { typical_p: 0.8, repetition_penalty: 1.1, ..sampled },
    ] {
        let what = format!("{sampling:?}");
        check(Format::Q4_0, &Request { sampling, ..greedy(&repetitive(), 40) }, &what);
    }
}

/// An eos id inside a draft, as the first and the last id, and every length of an answer.
#[test]
fn ends_are_as_without() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let request = greedy(&repetitive(), 30);
    let plain = ids(&complete(
        &mut Engine::new(Arc::clone(&target), &OPTIONS).unwrap(),
        std::slice::from_ref(&request),
    )[0]);
    for eos in plain.into_iter().step_by(4) {
        let mut request = request.clone();
        request.stop.eos_token_ids = vec![eos];
        check(Format::Q4_0, &request, "eos");
        request.stop.ignore_eos = true;
        check(Format::Q4_0, &request, "eos ignored");
        request.stop.ignore_eos = false;
        request.sampling.min_new_tokens = 10;
        check(Format::Q4_0, &request, "eos held back");
    }
    for length in [1, 2, 3, 6, 9, 10, 11] {
        check(Format::Q4_0, &greedy(&repetitive(), length), "length");
    }
}

#[test]
fn the_context_ends_a_sequence() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    for (_, speculation) in speculations(&target, Format::Q4_0) {
        let options = EngineOptions { kv_tokens: 64, ..OPTIONS };
        let mut engine = Engine::new(Arc::clone(&target), &options).unwrap();
        engine.speculate(Some(speculation)).unwrap();
        let tokens = complete(&mut engine, &[greedy(&repetitive(), 1000)]);
        assert_eq!(repetitive().len() + tokens[0].len(), 64);
    }
}

/// A draft model that is the model is always right: after the first tokens every step brings nine,
/// or as many as an instruction set has rows like one.
#[test]
fn a_perfect_draft_saves_its_steps() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let proposer = Proposer::Draft(Arc::clone(&target));
    let how = speculation(&target, proposer);
    let most = (1 + how.max_tokens).min(how.max_rows);
    let (_, n_steps, counts) = events(&target, Some(how), &greedy(&Noise(4).ids(40), 95));
    assert_eq!(counts.accepted, counts.drafted);
    // One step for the prompt, which gives a token; one of 1 + 4 tokens, then 1 + 8.
    assert!(most >= 8, "{most}");
    assert_eq!(n_steps, 1 + 1 + (95 - 1 - 5usize).div_ceil(most));
}

/// A draft model of other weights is wrong nearly always, and soon hardly asked any more.
#[test]
fn a_useless_draft_is_given_up() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let other = Arc::new(model(&target.model.backend, Format::Q4_0, 77));
    let how = speculation(&target, Proposer::Draft(other));
    let (events, _, counts) = events(&target, Some(how), &greedy(&Noise(4).ids(40), 300));
    assert_eq!(events.len(), 300);
    assert!(counts.drafted > 0 && counts.drafted < 60, "{counts:?}");
}

#[test]
fn repetition_is_looked_up() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let prompt_ids = repetitive();
    let how = speculation(&target, Proposer::PromptLookup { max_ngram: 3 });
    // A greedy answer of random weights soon goes round in circles.
    let (plain, ..) = events(&target, None, &greedy(&prompt_ids, 200));
    let (_, n_steps, counts) = events(&target, Some(how), &greedy(&prompt_ids, 200));
    println!("{} tokens in {n_steps} steps, {counts:?}", plain.len());
    assert!(counts.accepted > 20 && n_steps < 180, "{n_steps} steps, {counts:?}");
}

/// Many sequences, a cache in which they have to take turns, and one that is cancelled.
#[test]
fn crowds_get_what_each_gets_alone() {
    let deterministic =
        cpu(&CpuOptions { threads: 2, deterministic: true, ..CpuOptions::default() });
    let target = Arc::new(model(&deterministic, Format::Q4_0, 5));
    let requests: Vec<Request> =
        [5, 60, 17, 33, 90, 1].map(|n| greedy(&Noise(n as u64).ids(n), 40)).to_vec();
    let plain: Vec<Vec<Event>> =
        requests.iter().map(|request| events(&target, None, request).0).collect();
    for (name, speculation) in speculations(&target, Format::Q4_0) {
        for kv_tokens in [1024, 256, 160] {
            let options = EngineOptions { kv_tokens, ..OPTIONS };
            let mut engine = Engine::new(Arc::clone(&target), &options).unwrap();
            engine.speculate(Some(speculation.clone())).unwrap();
            let unwanted = engine.submit(greedy(&repetitive(), 100)).unwrap();
            for _ in 0..3 {
                engine.step().unwrap();
            }
            engine.cancel(unwanted);
            let found = complete(&mut engine, &requests);
            for (index, (found, plain)) in found.iter().zip(&plain).enumerate() {
                let plain: Vec<u32> =
                    plain.iter().map(|event| event.token.as_ref().unwrap().id).collect();
                assert_eq!(ids(found), plain, "{name}, {kv_tokens} places, sequence {index}");
            }
        }
    }
}

/// Off, on and off again in the middle of a sequence.
#[test]
fn it_can_be_switched_at_any_step() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let request = greedy(&repetitive(), 60);
    let (plain, ..) = events(&target, None, &request);
    let kinds = speculations(&target, Format::Q4_0);
    let mut engine = Engine::new(Arc::clone(&target), &OPTIONS).unwrap();
    engine.submit(request).unwrap();
    let mut found = Vec::new();
    for n_step in 0.. {
        let kind = kinds.get(n_step % 5).map(|(_, how)| how.clone());
        if n_step % 3 == 0 {
            engine.speculate(kind).unwrap();
        }
        if engine.is_idle() {
            break;
        }
        found.extend(engine.step().unwrap());
    }
    assert_eq!(found, plain);
}

/// The recorded models: dynamic RoPE kinds, biases, tied weights.
#[test]
fn the_golden_models_too() {
    for golden in golden::models() {
        let load = || -> Arc<LlamaForCausalLM<Cpu>> {
            Arc::new(golden::load(&golden.checkpoint, &LoadOptions::default()))
        };
        let target = load();
        let prompt: Vec<u32> = (0..25).map(|i| 3 + i * 7 % 10).collect();
        let request = greedy(&prompt, 40);
        let (plain, ..) = events(&target, None, &request);
        for proposer in [Proposer::PromptLookup { max_ngram: 4 }, Proposer::Draft(load())] {
            let how = speculation(&target, proposer);
            let (found, _, counts) = events(&target, Some(how), &request);
            assert_eq!(found, plain, "{}", golden.name);
            println!("{}: {counts:?}", golden.name);
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let mut engine = Engine::new(Arc::clone(&target), &OPTIONS).unwrap();
    let mut refused = |proposer, max_tokens| {
        let how = Speculation { proposer, max_tokens, max_rows: 8 };
        engine.speculate(Some(how)).unwrap_err()
    };
    let small = Arc::new(with_vocabulary(&target.model.backend, Format::Q4_0, 5, 200));
    let error = refused(Proposer::Draft(small), 4);
    assert_eq!(error, SpeculationError::Vocabulary { model: 300, draft: 200 });
    assert!(error.to_string().contains("300") && error.to_string().contains("200"));
    let lookup = |max_ngram| Proposer::PromptLookup { max_ngram };
    assert_eq!(refused(lookup(0), 4), SpeculationError::MaxNgram(0));
    assert_eq!(refused(lookup(65), 4), SpeculationError::MaxNgram(65));
    assert_eq!(refused(lookup(3), 0), SpeculationError::NoTokens);
    let tokens = complete(&mut engine, &[greedy(&[5], 3)]);
    assert_eq!(tokens[0].len(), 3);
}

/// A finish reason comes with the last token only.
#[test]
fn the_last_event_alone_says_the_end() {
    let target = Arc::new(model(&fast(), Format::Q4_0, 5));
    let how = speculation(&target, Proposer::Draft(Arc::clone(&target)));
    let (events, ..) = events(&target, Some(how), &greedy(&[5, 6], 23));
    let ends: Vec<_> = events.iter().map(|event| event.finish.clone()).collect();
    assert_eq!(ends[..22], vec![None; 22]);
    assert_eq!(ends[22], Some(FinishReason::Length));
}
