//! `CpuOptions::deterministic`: a sequence has the same ids and the same bits of every logit
//! whatever happens around it. The whole vocabulary's log-probabilities of each new token stand for
//! the logits: they are sums of them with one number, so that a changed bit shows.

mod complete;
mod random_model;

use std::sync::Arc;

use complete::complete;
use puna::generate::{Engine, EngineOptions, Proposer, Request, Sampled, Speculation};
use puna_kernels::{Cpu, CpuOptions, Format, KvDtype};
use random_model::{Model, Noise, VOCAB_SIZE, cpu, greedy, model};

/// Of every path: `f32` dots, whole numbers, rows that are expanded.
const FORMATS: [Format; 8] = [
    Format::F32,
    Format::Bf16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q4K,
    Format::Q6K,
    Format::Iq2S,
];

const OPTIONS: EngineOptions =
    EngineOptions { max_batch_rows: 64, kv_tokens: 2048, kv_dtype: KvDtype::F32 };

fn deterministic(threads: usize) -> CpuOptions {
    CpuOptions { threads, deterministic: true, ..CpuOptions::default() }
}

/// A request whose tokens come with the log-probabilities of all others.
fn reported(prompt_ids: &[u32], max_new_tokens: usize) -> Request {
    let mut request = greedy(prompt_ids, max_new_tokens);
    request.sampling.logprobs = Some(VOCAB_SIZE);
    request
}

/// Ids and bits.
type Bits = Vec<Vec<(u32, u32)>>;

fn bits(tokens: &[Sampled]) -> Bits {
    let top = |token: &Sampled| token.top.iter().map(|(id, p)| (*id, p.to_bits())).collect();
    tokens.iter().map(top).collect()
}

/// Prompts of many lengths; the first, of more keys than attention takes at once, is looked at.
fn requests(n: usize) -> Vec<Request> {
    let mut noise = Noise(17);
    let lengths = [290, 1, 75, 33, 64, 7, 31, 2, 150, 12, 90, 5, 41, 3, 257, 20];
    lengths[..n].iter().map(|&length| reported(&noise.ids(length), 12)).collect()
}

fn alone(model: &Arc<Model>, request: &Request, options: &EngineOptions) -> Bits {
    let mut engine = Engine::new(Arc::clone(model), options).unwrap();
    bits(&complete(&mut engine, std::slice::from_ref(request))[0])
}

/// Holds every way to come to the same tokens against the sequence alone.
fn check(format: Format, kv_dtype: KvDtype) {
    let options = EngineOptions { kv_dtype, ..OPTIONS };
    let models = [1, 2].map(|n| Arc::new(model(&cpu(&deterministic(n)), format, 5)));
    let requests = requests(4);
    let expected = alone(&models[0], &requests[0], &options);
    assert_eq!(expected.len(), 12);
    assert!(alone(&models[1], &requests[0], &options) == expected, "{format} 2 threads");
    for max_batch_rows in [1, 5, 32, 256] {
        let options = EngineOptions { max_batch_rows, ..options.clone() };
        let found = alone(&models[1], &requests[0], &options);
        assert!(found == expected, "{format} in chunks of {max_batch_rows}");
    }
    for max_batch_rows in [7, 512] {
        let options = EngineOptions { max_batch_rows, ..options.clone() };
        let mut engine = Engine::new(Arc::clone(&models[1]), &options).unwrap();
        let together = complete(&mut engine, &requests);
        assert!(bits(&together[0]) == expected, "{format} in a batch, chunks of {max_batch_rows}");
        let again = complete(&mut engine, &requests[..1]);
        assert!(bits(&again[0]) == expected, "{format} after a prefix hit");
    }
    // Place for 448 tokens: sequences take turns and are computed again.
    let crowded = EngineOptions { kv_tokens: 448, ..options };
    let mut engine = Engine::new(Arc::clone(&models[1]), &crowded).unwrap();
    let [first, second, _, third] = &requests[..] else { panic!("four requests") };
    let turns = [first.clone(), second.clone(), third.clone(), reported(&[9; 100], 40)];
    assert!(bits(&complete(&mut engine, &turns)[0]) == expected, "{format} in a full cache");
}

#[test]
fn neither_neighbours_nor_chunks_nor_threads_change_a_bit() {
    for format in FORMATS {
        check(format, KvDtype::F32);
    }
}

#[test]
fn nor_do_they_with_narrow_keys() {
    for kv_dtype in [KvDtype::F16, KvDtype::Bf16, KvDtype::Q8] {
        check(Format::Q4_0, kv_dtype);
    }
}

/// The exact path is one path as well.
#[test]
fn exact_is_deterministic() {
    let options = CpuOptions { threads: 2, exact: true, ..CpuOptions::default() };
    let model = Arc::new(model(&cpu(&options), Format::Q4K, 5));
    let requests = requests(4);
    let expected = alone(&model, &requests[0], &OPTIONS);
    let mut engine = Engine::new(Arc::clone(&model), &OPTIONS).unwrap();
    assert!(bits(&complete(&mut engine, &requests)[0]) == expected);
}

/// What the other tests find is no matter of course.
#[test]
fn without_it_many_rows_take_another_path() {
    let options = CpuOptions { threads: 2, ..CpuOptions::default() };
    let model = Arc::new(model(&cpu(&options), Format::Q4_0, 5));
    let request = &requests(1)[0];
    let one_by_one = EngineOptions { max_batch_rows: 1, ..OPTIONS };
    assert!(alone(&model, request, &OPTIONS) != alone(&model, request, &one_by_one));
}

#[test]
fn sixteen_together_are_each_as_alone() {
    for format in [Format::F32, Format::Q4_0] {
        let model = Arc::new(model(&cpu(&deterministic(2)), format, 5));
        let requests = requests(16);
        let mut engine = Engine::new(Arc::clone(&model), &OPTIONS).unwrap();
        let together = complete(&mut engine, &requests);
        for (index, (request, together)) in requests.iter().zip(&together).enumerate() {
            let alone = alone(&model, request, &OPTIONS);
            assert!(bits(together) == alone, "{format} sequence {index}");
        }
    }
}

/// Guesses from the sequence itself, from the model as its own draft, and from another model.
fn speculations(cpu: &Arc<Cpu>, format: Format) -> Vec<Speculation<Cpu>> {
    let draft = |seed| Proposer::Draft(Arc::new(model(cpu, format, seed)));
    [Proposer::PromptLookup { max_ngram: 3 }, draft(5), draft(6)]
        .map(|proposer| Speculation { proposer, max_tokens: 20, max_rows: 40 })
        .to_vec()
}

#[test]
fn guessing_ahead_changes_no_bit() {
    for format in [Format::F32, Format::Q4K] {
        let cpu = cpu(&deterministic(2));
        let model = Arc::new(model(&cpu, format, 5));
        let mut requests = requests(4);
        // A text that repeats itself gives prompt lookup something to find.
        let repeated = [requests[0].prompt_ids.clone(), requests[0].prompt_ids.clone()].concat();
        requests.push(reported(&repeated, 60));
        let expected: Vec<Bits> =
            requests.iter().map(|request| alone(&model, request, &OPTIONS)).collect();
        for speculation in speculations(&cpu, format) {
            let mut engine = Engine::new(Arc::clone(&model), &OPTIONS).unwrap();
            engine.speculate(Some(speculation)).unwrap();
            for round in 0..2 {
                let found = complete(&mut engine, &requests);
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!(bits(found) == *expected, "{format} sequence {index} round {round}");
                }
            }
            assert!(engine.draft_counts().drafted > 0);
        }
    }
}
