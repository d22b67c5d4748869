//! SmolLM2-135M-Instruct against Transformers in f32 (`tools/smollm2_goldens.py`): greedy tokens,
//! perplexity, tokens of a megabyte of mixed text. The model is `$PUNA_TEST_MODEL`, or what
//! `puna pull smollm2` left in Puna's cache; where it is absent the tests say that they skipped.

mod complete;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use complete::complete;
use puna::checkpoint::{Checkpoint, TokenizerSource};
use puna::generate::{
    Engine, EngineOptions, Proposer, Request, Sampled, SamplingParams, Speculation, StopConditions,
};
use puna::model::{
    Cache, LlamaForCausalLM, LoadOptions, LogitsToKeep, Loss, PaddedInputs, Tokens, Trace,
};
use puna::tokenizer::{ChatOptions, ChatTemplate, EncodeOptions, Tokenizer};
use puna_kernels::{Cpu, CpuOptions, KvDtype};
use serde_json::Value;
use sha2::{Digest, Sha256};

type Model = LlamaForCausalLM<Cpu>;

fn read(name: &str) -> String {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(name: &str) -> Value {
    serde_json::from_str(&read(name)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The model's file, where it is.
fn model_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = variable("PUNA_TEST_MODEL") {
        return Some(path.into());
    }
    let cache = variable("PUNA_HOME").map(PathBuf::from).or_else(|| {
        let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
        base.map(|base| base.join("puna"))
    })?;
    let golden = json("greedy.json");
    let sha256 = golden["about"]["gguf_sha256"].as_str().unwrap();
    Some(cache.join("blobs").join(sha256).join("SmolLM2-135M-Instruct.Q4_1.gguf"))
}

fn checkpoint() -> Option<Checkpoint> {
    let Some(path) = model_file().filter(|path| path.is_file()) else {
        println!("skipped: no SmolLM2 here; run `puna pull smollm2` or set PUNA_TEST_MODEL");
        return None;
    };
    Some(Checkpoint::open(path).unwrap())
}

fn tokenizer(checkpoint: &Checkpoint) -> (Tokenizer, ChatTemplate) {
    let TokenizerSource::Gguf(found) = checkpoint.tokenizer() else { panic!("no tokenizer") };
    let template = found.chat_template.as_deref().expect("the file carries a template");
    (Tokenizer::from_gguf(found).unwrap(), ChatTemplate::new(template).unwrap())
}

fn load(checkpoint: &Checkpoint, dequantize: bool) -> Model {
    let cpu = Arc::new(Cpu::new(&CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap());
    let options = LoadOptions { dequantize, ..LoadOptions::default() };
    Model::load(cpu, checkpoint, &options).unwrap().model
}

/// The weights in f32, loaded once for all tests.
fn exact_model(checkpoint: &Checkpoint) -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(checkpoint, true))
}

fn forward(model: &Model, ids: &[u32], keep: LogitsToKeep<'_>, cache: &mut Cache<Cpu>) -> Vec<f32> {
    let inputs = PaddedInputs {
        tokens: Tokens::Ids(ids),
        batch: 1,
        len: ids.len(),
        attention_mask: None,
        position_ids: None,
    };
    model.forward(&inputs, keep, Some(cache), &mut Trace::default()).unwrap().logits
}

fn greedy(model: &Model, prompt_ids: &[u32], new_tokens: usize, eos: u32) -> Vec<u32> {
    let mut cache = Cache::dynamic(KvDtype::F32);
    let mut completion: Vec<u32> = Vec::new();
    while completion.len() < new_tokens && completion.last() != Some(&eos) {
        let rows = completion.last().map_or(prompt_ids, std::slice::from_ref);
        let logits = forward(model, rows, LogitsToKeep::Last(1), &mut cache);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        completion.push(best as u32);
    }
    completion
}

/// Each step's winner leads by at least 0.01; two f32 computations of these logits, which are of
/// order 20 after 30 blocks, differ by some 1e-4.
#[test]
fn greedy_tokens_equal_those_of_transformers() {
    let Some(checkpoint) = checkpoint() else { return };
    let (tokenizer, template) = tokenizer(&checkpoint);
    let model = exact_model(&checkpoint);
    let (golden, prompts) = (json("greedy.json"), json("prompts.json"));
    let new_tokens = golden["new_tokens"].as_u64().unwrap() as usize;
    let eos = golden["eos_token_id"].as_u64().unwrap() as u32;
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 14);
    for case in cases {
        let name = case["prompt"].as_str().unwrap();
        let (kind, index) = name.split_once('/').unwrap();
        let prompt = &prompts[kind][index.parse::<usize>().unwrap()];
        let text = match prompt.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
                template.render(prompt, &options).unwrap().text
            }
        };
        let prompt_ids = tokenizer.encode(&text, EncodeOptions::PLAIN).unwrap();
        assert_eq!(prompt_ids, ids(&case["prompt_ids"]), "{name}: prompt");
        assert_eq!(greedy(model, &prompt_ids, new_tokens, eos), ids(&case["ids"]), "{name}");
    }
}

/// Mean negative log-probability over windows that do not overlap, the first id of each given;
/// `step` ids go through the model at a time.
fn mean_nll(model: &Model, kv_dtype: KvDtype, ids: &[u32], context: usize, step: usize) -> f64 {
    let (mut total, mut tokens) = (0.0, 0);
    for window in ids.chunks(context) {
        let mut cache = Cache::dynamic(kv_dtype);
        let mut logits = Vec::new();
        for ids in window.chunks(step) {
            logits.extend(forward(model, ids, LogitsToKeep::All, &mut cache));
        }
        let labels: Vec<i64> = window.iter().map(|&id| id.into()).collect();
        let loss = Loss::SumOver(1.0);
        let sum = puna::model::causal_lm_loss(&model.model, &logits, &labels, window.len(), loss);
        total += f64::from(sum.unwrap());
        tokens += window.len() - 1;
    }
    total / tokens as f64
}

#[test]
fn perplexity_is_that_of_transformers() {
    let Some(checkpoint) = checkpoint() else { return };
    let golden = json("perplexity.json");
    let mut text_ids =
        tokenizer(&checkpoint).0.encode(&read("perplexity.txt"), EncodeOptions::PLAIN).unwrap();
    assert_eq!(text_ids.len() as u64, golden["text_tokens"].as_u64().unwrap());
    text_ids.truncate(1024);
    assert_eq!(text_ids, ids(&golden["ids"]));
    // Exact weights: rounding only. Quantised kernels: many rows at once, and a few, whose
    // activations are rounded too, as in decode. Keys and values in bytes.
    let quantised = load(&checkpoint, false);
    let (model, f32, q8) = (exact_model(&checkpoint), KvDtype::F32, KvDtype::Q8);
    for (model, kv_dtype, step, tolerance) in [
        (model, f32, 1024, 0.0002),
        (&quantised, f32, 1024, 0.005),
        (&quantised, f32, 16, 0.005),
        (model, q8, 1024, 0.005),
        (&quantised, q8, 16, 0.005),
    ] {
        for case in golden["cases"].as_array().unwrap() {
            let context = case["context"].as_u64().unwrap() as usize;
            let ppl = mean_nll(model, kv_dtype, &text_ids, context, step).exp();
            let expected = case["ppl"].as_f64().unwrap();
            let off = ppl / expected - 1.0;
            let how = format!("context {context}, {step} at a time, {} cache", kv_dtype.name());
            println!("{how}: {ppl:.5}, Transformers {expected:.5}");
            assert!(off.abs() < tolerance, "{how}: {ppl} is {off} off {expected}");
        }
    }
}

const ENGINE: EngineOptions =
    EngineOptions { max_batch_rows: 256, kv_tokens: 4096, kv_dtype: KvDtype::F32 };

/// Requests with the 100 likeliest tokens of each step, whose log-probabilities show a changed bit
/// of any logit in their common sum.
fn reported(prompt_ids: &[u32]) -> Request {
    Request {
        prompt_ids: prompt_ids.to_vec(),
        sampling: SamplingParams { logprobs: Some(100), ..SamplingParams::greedy() },
        stop: StopConditions::new(20, Vec::new()),
    }
}

fn lookup(max_rows: usize) -> Speculation<Cpu> {
    let proposer = Proposer::PromptLookup { max_ngram: 4 };
    Speculation { proposer, max_tokens: 15, max_rows }
}

/// `Sampled` compares log-probabilities as numbers: equal ones have equal bits, but for zeros.
#[test]
fn deterministic_means_the_same_bits() {
    let Some(checkpoint) = checkpoint() else { return };
    let text =
        tokenizer(&checkpoint).0.encode(&read("perplexity.txt"), EncodeOptions::PLAIN).unwrap();
    let models = [1, 2].map(|threads| {
        let options = CpuOptions { threads, deterministic: true, ..CpuOptions::default() };
        let cpu = Arc::new(Cpu::new(&options).unwrap());
        Arc::new(Model::load(cpu, &checkpoint, &LoadOptions::default()).unwrap().model)
    });
    let repeated = [&text[..40], &text[..40], &text[..9]].concat();
    let requests =
        [&text[..90], &repeated, &text[300..317], &text[500..501], &text[40..300]].map(reported);
    let engine = |threads: usize, max_batch_rows| {
        let options = EngineOptions { max_batch_rows, ..ENGINE };
        Engine::new(Arc::clone(&models[threads - 1]), &options).unwrap()
    };
    let expected: Vec<Vec<Sampled>> = requests
        .iter()
        .map(|r| complete(&mut engine(1, 256), std::slice::from_ref(r)).remove(0))
        .collect();
    let mut together = engine(2, 256);
    assert!(complete(&mut together, &requests) == expected, "together, on two threads");
    assert!(complete(&mut together, &requests) == expected, "after prefix hits");
    assert!(complete(&mut engine(2, 23), &requests) == expected, "in small chunks");
    let mut guessing = engine(2, 64);
    guessing.speculate(Some(lookup(64))).unwrap();
    assert!(complete(&mut guessing, &requests) == expected, "guessing ahead");
    println!("{:?}", guessing.draft_counts());
    assert!(guessing.draft_counts().accepted > 0);
}

/// On the fast paths too, in as many rows as share the path of one.
#[test]
fn guessing_ahead_is_plain_greedy() {
    let Some(checkpoint) = checkpoint() else { return };
    let model = Arc::new(load(&checkpoint, false));
    let backend = &*model.model.backend;
    let max_rows = model.matrices().map(|(_, weight)| backend.rows_like_one(weight)).min().unwrap();
    println!("{max_rows} rows");
    let text =
        tokenizer(&checkpoint).0.encode(&read("perplexity.txt"), EncodeOptions::PLAIN).unwrap();
    for prompt_ids in [&text[..200], &[&text[..60], &text[..60], &text[..5]].concat()] {
        let mut request = reported(prompt_ids);
        request.stop.max_new_tokens = 100;
        let requests = std::slice::from_ref(&request);
        let plain = complete(&mut Engine::new(Arc::clone(&model), &ENGINE).unwrap(), requests);
        let draft = Proposer::Draft(Arc::clone(&model));
        for how in [lookup(max_rows), Speculation { proposer: draft, ..lookup(max_rows) }] {
            let mut engine = Engine::new(Arc::clone(&model), &ENGINE).unwrap();
            engine.speculate(Some(how)).unwrap();
            assert!(complete(&mut engine, requests) == plain);
            println!("{:?}", engine.draft_counts());
            assert!(engine.draft_counts().accepted > 0);
        }
    }
}

/// splitmix64 (Steele, Lea and Flood, 2014), as `tools/mixed_text.py` has it.
struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// The text that `mixed_text.json` describes.
fn mixed_text(spec: &Value) -> String {
    let mut rng = SplitMix64(spec["seed"].as_u64().unwrap());
    let fragments: Vec<&str> =
        spec["fragments"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let point = |value: &Value| u32::from_str_radix(value.as_str().unwrap(), 16).unwrap();
    let ranges: Vec<(u32, usize)> = spec["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| (point(&range[0]), (point(&range[1]) - point(&range[0]) + 1) as usize))
        .collect();
    let mut text = String::new();
    while text.len() < spec["bytes"].as_u64().unwrap() as usize {
        let kind = rng.below(16);
        if kind < 12 {
            text.push_str(fragments[rng.below(fragments.len())]);
            continue;
        }
        let (low, count) = ranges[rng.below(ranges.len())];
        let character = |rng: &mut SplitMix64| {
            char::from_u32(low + rng.below(count) as u32).expect("the ranges hold characters")
        };
        if kind < 15 {
            let length = 1 + rng.below(8);
            text.extend((0..length).map(|_| character(&mut rng)));
        } else {
            let length = 1 + rng.below(200);
            text.extend(std::iter::repeat_n(character(&mut rng), length));
        }
    }
    text
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_megabyte_of_mixed_text_has_the_same_tokens() {
    let golden = json("tokenization.json");
    let text = mixed_text(&json("mixed_text.json"));
    assert_eq!(sha256(text.as_bytes()), golden["text_sha256"].as_str().unwrap());
    let Some(checkpoint) = checkpoint() else { return };
    let found = tokenizer(&checkpoint).0.encode(&text, EncodeOptions::PLAIN).unwrap();
    let first = ids(&golden["first_ids"]);
    assert_eq!(found[..first.len()], first);
    assert_eq!(found.len() as u64, golden["n_ids"].as_u64().unwrap());
    let bytes: Vec<u8> = found.iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_eq!(sha256(&bytes), golden["ids_sha256"].as_str().unwrap());
}
