//! Caches against Transformers in f32: static ones, and what each operation leaves behind.
//!
//! Tolerance: 2e-5 absolute, as for the logits of whole models.

mod golden;

use std::path::Path;
use std::sync::Arc;

use golden::{assert_close, integers, numbers};
use puna::model::{
    AttentionMask, Cache, InputError, LlamaClass, LlamaForCausalLM, LogitsToKeep, Mask4d,
    PaddedInputs, PretrainedOptions, Tokens, Trace,
};
use puna_kernels::{Cpu, CpuOptions, KvDtype};
use serde_json::Value;

const TOLERANCE: f32 = 2e-5;

type Model = LlamaForCausalLM<Cpu>;

fn model() -> (Model, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/heads/caches");
    let cpu = Arc::new(Cpu::new(&CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap());
    let loaded = Model::from_pretrained(cpu, &folder, &PretrainedOptions::default()).unwrap();
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    (loaded.model, serde_json::from_str(&text).unwrap())
}

/// Columns of ids `(2, 5)`.
fn columns(ids: &Value, range: std::ops::Range<usize>) -> Vec<u32> {
    integers(ids).chunks(5).flat_map(|row| row[range.clone()].to_vec()).collect()
}

fn step(model: &Model, ids: &[u32], batch: usize, cache: &mut Cache<Cpu>) -> Vec<f32> {
    let inputs = PaddedInputs::new(Tokens::Ids(ids), batch, ids.len() / batch);
    try_step(model, &inputs, cache).unwrap()
}

fn try_step(
    model: &Model,
    inputs: &PaddedInputs<'_>,
    cache: &mut Cache<Cpu>,
) -> Result<Vec<f32>, InputError> {
    let output = model.forward(inputs, LogitsToKeep::All, Some(cache), &mut Trace::default())?;
    Ok(output.logits)
}

#[test]
fn a_static_cache_has_its_length_from_the_start() {
    let (model, expected) = model();
    let recorded = &expected["static"];
    let mut cache = Cache::fixed(8, KvDtype::F32);
    let first = step(&model, &columns(&expected["input_ids"], 0..3), 2, &mut cache);
    assert_close("first", &first, &recorded["first"], TOLERANCE);
    let tail = columns(&expected["input_ids"], 3..5);
    let mut trace = Trace { attentions: Some(vec![]), ..Trace::default() };
    let inputs = PaddedInputs::new(Tokens::Ids(&tail), 2, 2);
    let second =
        model.forward(&inputs, LogitsToKeep::All, Some(&mut cache), &mut trace).unwrap().logits;
    assert_close("second", &second, &recorded["second"], TOLERANCE);
    let attentions = trace.attentions.unwrap().concat();
    assert_close("attentions", &attentions, &recorded["attentions"], TOLERANCE);
    let (keys, values) = cache.layer(&model.model.backend, 1);
    assert_close("keys", &keys, &recorded["keys"], TOLERANCE);
    assert_close("values", &values, &recorded["values"], TOLERANCE);
    assert_eq!((cache.len(), cache.max_cache_len()), (5, Some(8)));
    let error = try_step(&model, &PaddedInputs::new(Tokens::Ids(&[1; 8]), 2, 4), &mut cache);
    assert_eq!(error.unwrap_err(), InputError::CacheFull { max_cache_len: 8, needed: 9 });
    cache.reset();
    assert!(cache.is_empty());
    let again = step(&model, &columns(&expected["input_ids"], 0..3), 2, &mut cache);
    assert_eq!(again, first);
}

#[test]
fn masks_with_a_static_cache() {
    let (model, expected) = model();
    let left = &expected["static_left_pad"];
    let mut cache = Cache::fixed(8, KvDtype::F32);
    let mask: Vec<bool> = integers(&left["attention_mask"]).iter().map(|&x| x != 0).collect();
    let head = columns(&left["input_ids"], 0..4);
    let head_mask: Vec<bool> = mask.chunks(5).flat_map(|row| row[..4].to_vec()).collect();
    let inputs = PaddedInputs {
        attention_mask: Some(AttentionMask::Keys(&head_mask)),
        ..PaddedInputs::new(Tokens::Ids(&head), 2, 4)
    };
    try_step(&model, &inputs, &mut cache).unwrap();
    let tail = columns(&left["input_ids"], 4..5);
    let inputs = PaddedInputs {
        attention_mask: Some(AttentionMask::Keys(&mask)),
        ..PaddedInputs::new(Tokens::Ids(&tail), 2, 1)
    };
    let logits = try_step(&model, &inputs, &mut cache).unwrap();
    assert_close("left", &logits, &left["logits"], TOLERANCE);

    let wide = &expected["static_4d"];
    let mut cache = Cache::fixed(8, KvDtype::F32);
    step(&model, &columns(&expected["input_ids"], 0..3), 2, &mut cache);
    let values = numbers(&wide["mask"]);
    let tail = columns(&expected["input_ids"], 3..5);
    let inputs = PaddedInputs {
        attention_mask: Some(AttentionMask::Additive(Mask4d {
            values: &values,
            shape: [1, 1, 2, 8],
        })),
        ..PaddedInputs::new(Tokens::Ids(&tail), 2, 2)
    };
    let logits = try_step(&model, &inputs, &mut cache).unwrap();
    assert_close("4-D", &logits, &wide["logits"], TOLERANCE);
}

#[test]
fn every_operation_leaves_what_it_should() {
    let (model, expected) = model();
    let backend = &*model.model.backend;
    for recorded in expected["operations"].as_array().unwrap() {
        let name = recorded["name"].as_str().unwrap();
        println!("{name}");
        let mut cache = Cache::dynamic(KvDtype::F32);
        step(&model, &integers(&expected["input_ids"]), 2, &mut cache);
        match name {
            "crop" => cache.crop(-2).unwrap(),
            "reorder_cache" => cache.select(backend, &[1, 1]).unwrap(),
            "batch_repeat_interleave" => cache.repeat_interleave(backend, 2).unwrap(),
            "batch_select_indices" => cache.select(backend, &[1]).unwrap(),
            other => panic!("{other}"),
        }
        assert_eq!(cache.len() as u64, recorded["length"].as_u64().unwrap());
        let (keys, values) = cache.layer(backend, 1);
        assert_close("keys", &keys, &recorded["keys"], TOLERANCE);
        assert_close("values", &values, &recorded["values"], TOLERANCE);
        let tokens = integers(&recorded["tokens"]);
        let logits = step(&model, &tokens, tokens.len() / 2, &mut cache);
        assert_close("logits", &logits, &recorded["logits"], TOLERANCE);
    }
}

/// Rows dropped and taken again, and copies of copies, over several blocks: each row goes on as if
/// it had been alone.
#[test]
fn rows_stay_apart_through_many_selections() {
    let (model, _) = model();
    let backend = &*model.model.backend;
    let ids =
        |row: u32, len: u32| -> Vec<u32> { (0..len).map(|i| 3 + (i * 7 + row) % 28).collect() };
    let mut cache = Cache::dynamic(KvDtype::F32);
    let prompt: Vec<u32> = (0..3).flat_map(|row| ids(row, 70)).collect();
    step(&model, &prompt, 3, &mut cache);
    let mut rows = vec![0, 1, 2];
    for (turn, selection) in
        [vec![2, 0], vec![1, 1], vec![0, 1, 1, 0], vec![3, 0, 2], vec![2, 2, 1]].iter().enumerate()
    {
        cache.select(backend, selection).unwrap();
        rows = selection.iter().map(|&i: &usize| rows[i]).collect();
        // Every row goes on with a token of its own: shared blocks would show.
        let next: Vec<u32> = (0..rows.len()).map(|i| 5 + turn as u32 + i as u32).collect();
        let logits = step(&model, &next, rows.len(), &mut cache);
        assert!(logits.iter().all(|x| x.is_finite()));
        cache.crop(-1).unwrap();
    }
    let found = step(&model, &[9, 9, 9], 3, &mut cache);
    for (i, row) in rows.iter().enumerate() {
        let mut alone = Cache::dynamic(KvDtype::F32);
        step(&model, &ids(*row, 70), 1, &mut alone);
        let expected = step(&model, &[9], 1, &mut alone);
        let found = &found[i * 31..][..31];
        golden::assert_close_slices("row", found, &expected, TOLERANCE);
    }
    let error = cache.select(backend, &[3]).unwrap_err();
    assert_eq!(error, InputError::CacheRow { index: 3, rows: 3 });
}

/// Token by token over several growths, in every type; the values of f32 are those of one forward.
#[test]
fn a_cache_grows_without_a_limit() {
    let (model, _) = model();
    let ids: Vec<u32> = (0..200).map(|i| 3 + (i * 11) % 28).collect();
    let whole = step(&model, &ids, 1, &mut Cache::dynamic(KvDtype::F32));
    // Half-precision keys move logits of order 1 by their rounding, eight bits by 0.4 %.
    for (dtype, tolerance) in
        [(KvDtype::F32, TOLERANCE), (KvDtype::F16, 2e-2), (KvDtype::Bf16, 0.2), (KvDtype::Q8, 0.2)]
    {
        let mut cache = Cache::dynamic(dtype);
        let mut last = Vec::new();
        for id in &ids {
            last = step(&model, &[*id], 1, &mut cache);
        }
        assert_eq!(cache.len(), 200);
        let expected = &whole[199 * 31..];
        golden::assert_close_slices(dtype.name(), &last, expected, tolerance);
    }
}

/// A larger pool holds the very values of the smaller one, eight-bit ones too: a row of bytes under
/// a scale is quantised to itself.
#[test]
fn growing_changes_no_value() {
    let (model, _) = model();
    let backend = &*model.model.backend;
    let ids: Vec<u32> = (0..120).map(|i| 3 + (i * 11) % 28).collect();
    for dtype in KvDtype::ALL {
        let mut cache = Cache::dynamic(dtype);
        step(&model, &ids[..60], 2, &mut cache);
        let before: Vec<_> = (0..2).map(|layer| cache.layer(backend, layer)).collect();
        step(&model, &ids, 2, &mut cache);
        for (layer, (keys, values)) in before.iter().enumerate() {
            let (k, v) = cache.layer(backend, layer);
            // 2 rows of 2 heads, 30 and then 90 keys of 4.
            for (wide, narrow) in [(&k, keys), (&v, values)] {
                for (wide, narrow) in wide.chunks(90 * 4).zip(narrow.chunks(30 * 4)) {
                    assert_eq!(&wide[..30 * 4], narrow, "{dtype:?}");
                }
            }
        }
    }
}

#[test]
fn keys_and_values_go_out_and_in_again() {
    let (model, expected) = model();
    let backend = &*model.model.backend;
    let ids = &expected["input_ids"];
    let mut cache = Cache::dynamic(KvDtype::F32);
    step(&model, &columns(ids, 0..3), 2, &mut cache);
    let layers: Vec<_> = (0..2).map(|layer| cache.layer(backend, layer)).collect();
    let pairs: Vec<(&[f32], &[f32])> = layers.iter().map(|(k, v)| (&**k, &**v)).collect();
    let empty = Cache::dynamic(KvDtype::F32);
    let mut copy = Cache::from_layers(&model.model, &pairs, (2, 3), empty).unwrap();
    let tail = columns(ids, 3..5);
    assert_eq!(step(&model, &tail, 2, &mut copy), step(&model, &tail, 2, &mut cache));
    let empty = || Cache::dynamic(KvDtype::F32);
    assert!(Cache::from_layers(&model.model, &pairs[..1], (2, 3), empty()).is_err());
    assert!(Cache::from_layers(&model.model, &pairs, (2, 4), empty()).is_err());
    let short = Cache::fixed(2, KvDtype::F32);
    assert!(Cache::from_layers(&model.model, &pairs, (2, 3), short).is_err());
}

#[test]
fn what_a_cache_cannot_do_is_said() {
    let (model, expected) = model();
    let mut cache = Cache::<Cpu>::dynamic(KvDtype::F32);
    step(&model, &integers(&expected["input_ids"]), 2, &mut cache);
    let error = cache.crop(3).unwrap_err().to_string();
    let known = "Calling `crop` with a positive value (`3`) is not supported. Please use a negative \
                 integer to remove that number of tokens from the cache instead.";
    assert_eq!(error, known);
    let three = PaddedInputs::new(Tokens::Ids(&[1; 3]), 3, 1);
    let error = try_step(&model, &three, &mut cache).unwrap_err();
    assert_eq!(error, InputError::CacheBatch { cached: 2, batch: 3 });
    let error = Cache::<Cpu>::quantized(4).unwrap_err().to_string();
    assert!(error.contains("ask for nbits=8"), "{error}");
    assert_eq!(Cache::<Cpu>::quantized(8).unwrap().dtype(), KvDtype::Q8);
    cache.crop(-9).unwrap();
    assert!(cache.is_empty());
    // An empty cache takes any number of rows.
    try_step(&model, &three, &mut cache).unwrap();
}
