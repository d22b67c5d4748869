//! The classes with a head against Transformers in f32: logits, losses, masks of four dimensions,
//! and the errors in its words.
//!
//! Tolerances: 2e-5 absolute for logits, 1e-5 for losses. The sums have at most 32 terms of order 1,
//! so both sides are within a few units in the last place of the exact value.

mod golden;

use std::path::Path;
use std::sync::Arc;

use golden::{assert_close, integers, numbers};
use puna::config::ProblemType;
use puna::model::{
    AttentionMask, Cache, IGNORE_INDEX, InputError, Labels, LlamaClass, LlamaForCausalLM,
    LlamaForQuestionAnswering, LlamaForSequenceClassification, LlamaForTokenClassification,
    LogitsToKeep, Loss, Mask4d, PaddedInputs, Pooling, PretrainedOptions, Tokens, Trace,
    cross_entropy,
};
use puna_kernels::{Backend, Cpu, CpuOptions, Dtype, KvDtype};
use serde_json::Value;

const TOLERANCE: f32 = 2e-5;
const LOSS_TOLERANCE: f32 = 1e-5;

type Sequence = LlamaForSequenceClassification<Cpu>;

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(&CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap())
}

/// A recorded head, and what the reference computed with it.
fn head<C: LlamaClass<Cpu>>(name: &str) -> (C, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/heads").join(name);
    load(&folder)
}

fn load<C: LlamaClass<Cpu>>(folder: &Path) -> (C, Value) {
    let loaded = C::from_pretrained(cpu(), folder, &PretrainedOptions::default()).unwrap();
    assert!(loaded.missing_keys.is_empty() && loaded.unexpected_keys.is_empty());
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    (loaded.model, serde_json::from_str(&text).unwrap())
}

/// Ids and mask of one recorded case.
struct Case {
    ids: Vec<u32>,
    mask: Option<Vec<bool>>,
    batch: usize,
    len: usize,
}

impl Case {
    fn new(case: &Value) -> Self {
        let shape = golden::shape(&case["input_ids"]);
        let mask = case.get("attention_mask").map(booleans);
        Self { ids: integers(&case["input_ids"]), mask, batch: shape[0], len: shape[1] }
    }

    fn inputs(&self) -> PaddedInputs<'_> {
        let attention_mask = self.mask.as_deref().map(AttentionMask::Keys);
        let plain = PaddedInputs::new(Tokens::Ids(&self.ids), self.batch, self.len);
        PaddedInputs { attention_mask, ..plain }
    }
}

fn booleans(value: &Value) -> Vec<bool> {
    integers(value).iter().map(|&x| x != 0).collect()
}

fn labels(value: &Value) -> Vec<i64> {
    numbers(value).iter().map(|&x| x as i64).collect()
}

fn assert_loss(found: f32, expected: &Value) {
    match expected.as_f64() {
        None => assert!(found.is_nan(), "{found}, expected NaN"),
        Some(loss) => {
            assert!(
                (f64::from(found) - loss).abs() <= f64::from(LOSS_TOLERANCE),
                "{found}: {loss}"
            );
        }
    }
}

fn logits(model: &Sequence, inputs: &PaddedInputs<'_>, pooling: Pooling) -> Vec<f32> {
    model.forward(inputs, pooling, None, &mut Trace::default()).unwrap().logits
}

#[test]
fn sequences_are_pooled_at_their_last_token() {
    for name in ["sequence_3", "sequence_1"] {
        let (model, expected) = head::<Sequence>(name);
        let labels = model.score.out_features;
        // Index of the token that each generation takes of each row.
        for (padding, old) in
            [("inside", [4, 1]), ("right", [4, 2]), ("left", [4, 4]), ("empty", [4, 4])]
        {
            let expected = &expected[padding];
            let case = Case::new(expected);
            let now = logits(&model, &case.inputs(), Pooling::RightmostToken);
            assert_close(padding, &now, &expected["logits"], TOLERANCE);
            let before = logits(&model, &case.inputs(), Pooling::BeforeFirstPad);
            let all = numbers(&expected["token_logits"]);
            for (row, at) in old.into_iter().enumerate() {
                // What stands at padding attends to nothing here and to everything there.
                if case.mask.as_ref().is_some_and(|mask| !mask[row * case.len + at]) {
                    continue;
                }
                let expected = &all[(row * case.len + at) * labels..][..labels];
                let found = &before[row * labels..][..labels];
                golden::assert_close_slices(padding, found, expected, TOLERANCE);
            }
        }
    }
}

#[test]
fn vectors_are_pooled_at_their_end_with_a_warning() {
    let (model, expected) = head::<Sequence>("sequence_3");
    let case = Case::new(&expected["right"]);
    let hidden = model.model.config.hidden_size;
    let backend = &*model.model.backend;
    let mut embeds = backend.alloc(case.ids.len() * hidden, "test").unwrap();
    backend.embed(&model.model.embed_tokens, &case.ids, Dtype::F32, &mut embeds);
    let mut host = vec![0.0; case.ids.len() * hidden];
    backend.read(&embeds, 0, &mut host);
    let inputs = PaddedInputs::new(Tokens::Embeds(&host), case.batch, case.len);
    let output =
        model.forward(&inputs, Pooling::RightmostToken, None, &mut Trace::default()).unwrap();
    assert_close("embeds", &output.logits, &expected["embeds"]["logits"], TOLERANCE);
    assert!(output.warning.unwrap().contains("will not detect padding tokens in `inputs_embeds`"));
    let by_ids =
        model.forward(&case.inputs(), Pooling::RightmostToken, None, &mut Trace::default());
    assert_eq!(by_ids.unwrap().warning, None);
}

#[test]
fn every_sequence_loss_and_the_problem_it_infers() {
    for name in ["sequence_3", "sequence_1"] {
        let (mut model, expected) = head::<Sequence>(name);
        let case = Case::new(&expected["right"]);
        let logits = logits(&model, &case.inputs(), Pooling::RightmostToken);
        for recorded in expected["losses"].as_array().unwrap() {
            println!("{recorded}");
            let problem = |key: &str| recorded[key].as_str().and_then(ProblemType::from_name);
            Arc::make_mut(&mut model.model.config).problem_type = problem("given");
            let (floats, whole) = (numbers(&recorded["labels"]), labels(&recorded["labels"]));
            let is_integer = recorded["is_integer"].as_bool().unwrap();
            let labels =
                if is_integer { Labels::Integers(&whole) } else { Labels::Floats(&floats) };
            assert_loss(model.loss(&logits, labels).unwrap(), &recorded["loss"]);
            assert_eq!(model.model.config.problem_type, problem("problem_type"));
            assert!(model.model.config.problem_type.is_some());
        }
    }
}

#[test]
fn shared_sequence_goldens() {
    let Some(data) = golden::shared_data() else { return };
    let (mut model, expected) = load::<Sequence>(&data.join("models/head_seqcls_3"));
    let mut full = Vec::new();
    for name in ["full", "left", "right"] {
        let case = Case::new(&expected[name]);
        let found = logits(&model, &case.inputs(), Pooling::RightmostToken);
        assert_close(name, &found, &expected[name]["logits"], TOLERANCE);
        let old = logits(&model, &case.inputs(), Pooling::BeforeFirstPad);
        assert_eq!(found, old, "{name}");
        if name == "full" {
            full = found;
        }
    }
    let single = labels(&expected["loss_single_label"]["labels"]);
    let loss = model.loss(&full, Labels::Integers(&single)).unwrap();
    assert_loss(loss, &expected["loss_single_label"]["loss"]);
    Arc::make_mut(&mut model.model.config).problem_type = None;
    let multi = numbers(&expected["loss_multi_label"]["labels"]);
    let loss = model.loss(&full, Labels::Floats(&multi)).unwrap();
    assert_loss(loss, &expected["loss_multi_label"]["loss"]);
    let case = Case::new(&expected["full"]);
    Arc::make_mut(&mut model.model.config).pad_token_id = None;
    let error = model
        .forward(&case.inputs(), Pooling::RightmostToken, None, &mut Trace::default())
        .unwrap_err();
    let known = expected["no_pad_error"].as_str().unwrap();
    assert_eq!(format!("ValueError: {error}"), known);
    let one = PaddedInputs::new(Tokens::Ids(&case.ids[..case.len]), 1, case.len);
    let alone = logits(&model, &one, Pooling::RightmostToken);
    assert_close("alone", &alone, &expected["no_pad_batch1_logits"], TOLERANCE);
}

#[test]
fn tokens_are_classified() {
    let (model, expected) = head::<LlamaForTokenClassification<Cpu>>("token");
    let case = Case::new(&expected);
    let found = model.forward(&case.inputs(), None, &mut Trace::default()).unwrap();
    assert_close("logits", &found, &expected["logits"], TOLERANCE);
    let labels = labels(&expected["labels"]);
    assert_loss(model.loss(&found, &labels).unwrap(), &expected["loss"]);
    let error = model.loss(&found, &[4; 10]).unwrap_err();
    assert_eq!(error, InputError::Label { label: 4 });
    let hidden = model.model.last_hidden_state(&case.inputs(), None, &mut Trace::default());
    assert_close("hidden", &hidden.unwrap(), &expected["last_hidden_state"], TOLERANCE);
}

/// The narrow types: rounded where the reference rounds, in sums of another order. The tolerance is
/// three units in the last place of the largest logit, of order 4.
#[test]
fn narrow_types_round_as_the_reference_does() {
    fn each<C: LlamaClass<Cpu>>(name: &str, run: impl Fn(&mut C, &Value) -> (Vec<f32>, f32)) {
        for (dtype, unit) in [(Dtype::Bf16, 2.0_f32.powi(-8)), (Dtype::F16, 2.0_f32.powi(-11))] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/heads").join(name);
            let options = PretrainedOptions { dtype: Some(dtype), ..PretrainedOptions::default() };
            let mut model = C::from_pretrained(cpu(), &folder, &options).unwrap().model;
            let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
            let expected: Value = serde_json::from_str(&text).unwrap();
            let (logits, loss) = run(&mut model, &expected);
            let recorded = &expected["narrow"][dtype.name()];
            println!("{name} {}", dtype.name());
            assert!(logits.iter().all(|&x| dtype.round(x) == x));
            assert_close("logits", &logits, &recorded["logits"], 12.0 * unit);
            assert_close("loss", &[loss], &recorded["loss"], 12.0 * unit);
        }
    }
    each::<Sequence>("sequence_3", |model, expected| {
        let case = Case::new(&expected["right"]);
        let found = logits(model, &case.inputs(), Pooling::RightmostToken);
        let loss = model.loss(&found, Labels::Integers(&[2, 0])).unwrap();
        (found, loss)
    });
    each::<LlamaForTokenClassification<Cpu>>("token", |model, expected| {
        let case = Case::new(expected);
        let found = model.forward(&case.inputs(), None, &mut Trace::default()).unwrap();
        let loss = model.loss(&found, &labels(&expected["labels"])).unwrap();
        (found, loss)
    });
}

#[test]
fn answers_are_found() {
    let (model, expected) = head::<LlamaForQuestionAnswering<Cpu>>("question");
    let case = Case::new(&expected);
    let output = model.forward(&case.inputs(), None, &mut Trace::default()).unwrap();
    let mask = case.mask.as_ref().unwrap();
    for (found, key) in [(&output.start_logits, "start_logits"), (&output.end_logits, "end_logits")]
    {
        let expected = numbers(&expected[key]);
        // What stands at padding attends to nothing here and to everything there.
        for (i, _) in mask.iter().enumerate().filter(|(_, real)| **real) {
            assert!((found[i] - expected[i]).abs() <= TOLERANCE, "{key}[{i}]");
        }
    }
    // The losses run over padding, too: those of the recorded logits.
    let recorded = puna::model::QuestionAnsweringOutput {
        start_logits: numbers(&expected["start_logits"]),
        end_logits: numbers(&expected["end_logits"]),
    };
    for case_ in expected["losses"].as_array().unwrap() {
        let items = case_["num_items_in_batch"].as_f64();
        let reduction = items.map_or(Loss::Mean, Loss::SumOver);
        let spans = (labels(&case_["start"]), labels(&case_["end"]));
        let loss = model.loss(&recorded, (&spans.0, &spans.1), case.len, reduction).unwrap();
        assert_loss(loss, &case_["loss"]);
    }
}

#[test]
fn masks_of_four_dimensions() {
    let (model, expected) = head::<LlamaForCausalLM<Cpu>>("masks");
    let case = Case::new(&expected);
    let (bias, tree) = (numbers(&expected["bias"]), booleans(&expected["tree"]));
    let blind = booleans(&expected["blind"]["mask"]);
    let positions = integers(&expected["position_ids"]);
    let run = |mask, positions| {
        let inputs = PaddedInputs {
            attention_mask: Some(mask),
            position_ids: positions,
            ..PaddedInputs::new(Tokens::Ids(&case.ids), case.batch, case.len)
        };
        model.forward(&inputs, LogitsToKeep::All, None, &mut Trace::default()).unwrap().logits
    };
    let biased = AttentionMask::Additive(Mask4d { values: &bias, shape: [2, 1, 5, 5] });
    assert_close("biased", &run(biased, None), &expected["biased"], TOLERANCE);
    // The lowest f32 in place of minus infinity, as Transformers itself makes masks.
    let low: Vec<f32> = tree.iter().map(|&keep| if keep { 0.0 } else { f32::MIN }).collect();
    let additive = AttentionMask::Additive(Mask4d { values: &low, shape: [1, 1, 5, 5] });
    let additive = run(additive, Some(&positions));
    assert_close("additive", &additive, &expected["additive"], TOLERANCE);
    let boolean = AttentionMask::Boolean(Mask4d { values: &tree, shape: [1, 1, 5, 5] });
    let boolean = run(boolean, Some(&positions));
    assert_close("boolean", &boolean, &expected["boolean"], TOLERANCE);
    // A token that sees nothing stays finite; the others do not notice.
    let blind = AttentionMask::Boolean(Mask4d { values: &blind, shape: [2, 1, 5, 5] });
    let found = run(blind, None);
    assert!(found.iter().all(|x| x.is_finite()));
    let (all, vocab) = (numbers(&expected["blind"]["logits"]), model.model.config.vocab_size);
    for row in (0..10).filter(|row| *row != 7) {
        let range = row * vocab..(row + 1) * vocab;
        // Later tokens of the blind row attend to what it wrote in the first layer's output.
        if row > 7 && all[range.clone()].iter().any(|x| x.is_nan()) {
            continue;
        }
        let expected = &all[range.clone()];
        golden::assert_close_slices("blind", &found[range], expected, TOLERANCE);
    }
}

#[test]
fn a_mask_of_scores_reaches_into_the_cache() {
    let (model, expected) = head::<LlamaForCausalLM<Cpu>>("masks");
    let case = Case::new(&expected);
    let columns = |range: std::ops::Range<usize>| -> Vec<u32> {
        case.ids.chunks(5).flat_map(|row| row[range.clone()].to_vec()).collect()
    };
    let mut cache = Cache::dynamic(KvDtype::F32);
    let (head, tail) = (columns(0..3), columns(3..5));
    let first = PaddedInputs::new(Tokens::Ids(&head), 2, 3);
    model.forward(&first, LogitsToKeep::All, Some(&mut cache), &mut Trace::default()).unwrap();
    let bias = numbers(&expected["bias"]);
    let last_two: Vec<f32> = bias.chunks(25).flat_map(|row| row[15..].to_vec()).collect();
    let mask = AttentionMask::Additive(Mask4d { values: &last_two, shape: [2, 1, 2, 5] });
    let second =
        PaddedInputs { attention_mask: Some(mask), ..PaddedInputs::new(Tokens::Ids(&tail), 2, 2) };
    let output = model.forward(&second, LogitsToKeep::All, Some(&mut cache), &mut Trace::default());
    assert_close("cached", &output.unwrap().logits, &expected["cached"], TOLERANCE);
}

#[test]
fn rows_of_logits_and_shifted_labels() {
    let (model, expected) = head::<LlamaForCausalLM<Cpu>>("masks");
    let case = Case::new(&expected);
    let keep = |keep| model.forward(&case.inputs(), keep, None, &mut Trace::default()).unwrap();
    let kept = [true, false, false, true, false, false, true, true, true, false];
    for (name, which, shape) in [
        ("keep_ids", LogitsToKeep::OfEachRow(&[0, 4, 3, 1]), vec![2, 2, 31]),
        ("keep_mask", LogitsToKeep::Where(&kept), vec![5, 31]),
        ("keep_negative", LogitsToKeep::Positions(&[-1, 0]), vec![2, 2, 31]),
        ("keep_but_first", LogitsToKeep::Last(-2), vec![2, 3, 31]),
    ] {
        let output = keep(which);
        assert_eq!(output.shape, shape, "{name}");
        assert_eq!(golden::shape(&expected[name]), shape, "{name}");
        assert_close(name, &output.logits, &expected[name], TOLERANCE);
    }
    let shifted = labels(&expected["shift_labels"]["labels"]);
    let classes = (&*keep(LogitsToKeep::All).logits, 31);
    let loss =
        cross_entropy(&*model.model.backend, classes, &shifted, IGNORE_INDEX, Loss::Mean).unwrap();
    assert_loss(loss, &expected["shift_labels"]["loss"]);
}

#[test]
fn there_is_exactly_one_kind_of_input() {
    let known = "You must specify exactly one of input_ids or inputs_embeds";
    for given in [(None, None), (Some(&[1_u32][..]), Some(&[0.0_f32][..]))] {
        assert_eq!(Tokens::exactly_one(given.0, given.1).unwrap_err().to_string(), known);
    }
    assert!(Tokens::exactly_one(Some(&[1]), None).is_ok());
    assert!(Tokens::exactly_one(None, Some(&[1.0])).is_ok());
}
