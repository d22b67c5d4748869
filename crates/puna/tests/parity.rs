//! Tiny random models against Transformers in f32: logits, hidden states, attentions, caches and
//! losses, under every kind of input that `expected.json` records.
//!
//! Tolerance: 2e-5 absolute. The sums have at most 37 terms of order 1, so both sides are within
//! a few units in the last place of the exact value; the recorded numbers have seven decimals.

mod golden;

use golden::{Golden, assert_close};
use puna::model::{AttentionMask, CausalLmOutput, LogitsToKeep, Loss, PaddedInputs, Tokens, Trace};
use puna_kernels::{Cpu, KvDtype};
use serde_json::Value;

type Model = puna::model::LlamaForCausalLM<Cpu>;
type Cache = puna::model::Cache<Cpu>;

const TOLERANCE: f32 = 2e-5;

/// The rectangular inputs of one recorded case.
struct Case {
    ids: Vec<u32>,
    batch: usize,
    len: usize,
    mask: Option<Vec<bool>>,
    positions: Option<Vec<u32>>,
}

impl Case {
    fn new(ids: &Value) -> Self {
        let shape = golden::shape(ids);
        let ids = golden::integers(ids);
        Self { ids, batch: shape[0], len: shape[1], mask: None, positions: None }
    }

    fn with(mut self, case: &Value) -> Self {
        if let Some(mask) = case.get("attention_mask") {
            self.mask = Some(golden::integers(mask).iter().map(|&x| x != 0).collect());
        }
        self.positions = case.get("position_ids").map(golden::integers);
        self
    }

    fn inputs(&self) -> PaddedInputs<'_> {
        PaddedInputs {
            tokens: Tokens::Ids(&self.ids),
            batch: self.batch,
            len: self.len,
            attention_mask: self.mask.as_deref().map(AttentionMask::Keys),
            position_ids: self.positions.as_deref(),
        }
    }

    fn logits(&self, model: &Model) -> Vec<f32> {
        forward(model, &self.inputs(), None).logits
    }
}

fn forward(model: &Model, inputs: &PaddedInputs<'_>, cache: Option<&mut Cache>) -> CausalLmOutput {
    model.forward(inputs, LogitsToKeep::All, cache, &mut Trace::default()).unwrap()
}

fn full_case(golden: &Golden) -> Case {
    Case::new(&golden.expected["full"]["input_ids"])
}

#[test]
fn logits_hidden_states_and_attentions() {
    golden::each_model(|golden, model| {
        let full = &golden.expected["full"];
        let case = full_case(golden);
        let mut trace = Trace { hidden_states: Some(vec![]), attentions: Some(vec![]) };
        let mut cache = Cache::dynamic(KvDtype::F32);
        let output =
            model.forward(&case.inputs(), LogitsToKeep::All, Some(&mut cache), &mut trace).unwrap();
        assert_close("logits", &output.logits, &full["logits"], TOLERANCE);
        let hidden = trace.hidden_states.unwrap().concat();
        assert_close("hidden_states", &hidden, &full["hidden_states"], TOLERANCE);
        let attentions = trace.attentions.unwrap().concat();
        assert_close("attentions", &attentions, &full["attentions"], TOLERANCE);
        let (keys, values) = cache.layer(&model.model.backend, 0);
        assert_close("keys", &keys, &full["cache_keys_layer0"], TOLERANCE);
        assert_close("values", &values, &full["cache_values_layer0"], TOLERANCE);
    });
}

#[test]
fn losses() {
    golden::each_model(|golden, model| {
        let full = &golden.expected["full"];
        let case = full_case(golden);
        let labels: Vec<i64> = golden::numbers(&full["labels"]).iter().map(|&x| x as i64).collect();
        let logits = case.logits(model);
        let loss = |reduction| {
            puna::model::causal_lm_loss(&model.model, &logits, &labels, case.len, reduction)
        };
        let mean = loss(Loss::Mean).unwrap();
        assert_close("loss", &[mean], &full["loss"], 1e-5);
        let over_ten = loss(Loss::SumOver(10.0)).unwrap();
        assert_close("loss over 10", &[over_ten], &golden.expected["loss_num_items_10"], 1e-5);
        let over_forty = loss(Loss::SumOver(40.0)).unwrap();
        assert_close("loss over 40", &[over_forty], &(over_ten / 4.0).into(), 1e-5);
        let nothing = vec![-100; labels.len()];
        let none =
            puna::model::causal_lm_loss(&model.model, &logits, &nothing, case.len, Loss::Mean);
        assert!(none.unwrap().is_nan());
    });
}

#[test]
fn logits_to_keep() {
    golden::each_model(|golden, model| {
        let case = full_case(golden);
        let keep = |which| {
            model.forward(&case.inputs(), which, None, &mut Trace::default()).unwrap().logits
        };
        let expected = &golden.expected;
        let last = keep(LogitsToKeep::Last(1));
        assert_close("last", &last, &expected["logits_to_keep_1"], TOLERANCE);
        let picked = keep(LogitsToKeep::Positions(&[0, 3]));
        assert_close("positions", &picked, &expected["logits_to_keep_idx_0_3"], TOLERANCE);
        assert_eq!(keep(LogitsToKeep::Last(99)), keep(LogitsToKeep::All));
    });
}

#[test]
fn padding() {
    golden::each_model(|golden, model| {
        let left = &golden.expected["left_pad_mask_only"];
        let positioned = &golden.expected["left_pad_with_position_ids"];
        let right = &golden.expected["right_pad"];
        let cases = [
            (Case::new(&left["input_ids"]).with(left), left),
            (
                Case {
                    positions: Some(golden::integers(&positioned["position_ids"])),
                    ..Case::new(&left["input_ids"]).with(left)
                },
                positioned,
            ),
            (Case::new(&right["input_ids"]).with(right), right),
        ];
        for (case, expected) in cases {
            let logits = case.logits(model);
            let expected = golden::numbers(&expected["logits"]);
            let vocab = logits.len() / case.ids.len();
            assert!(logits.iter().all(|x| x.is_finite()));
            // Rows of padding are nobody's business: the reference attends to everything there.
            for (row, _) in case.mask.as_ref().unwrap().iter().enumerate().filter(|(_, m)| **m) {
                let range = row * vocab..(row + 1) * vocab;
                golden::assert_close_slices(
                    "row",
                    &logits[range.clone()],
                    &expected[range],
                    TOLERANCE,
                );
            }
        }
    });
}

#[test]
fn packed_rows_do_not_see_each_other() {
    golden::each_model(|golden, model| {
        let packed = &golden.expected["packed_position_ids"];
        let mut case = full_case(golden);
        case.batch = 1;
        case.ids.truncate(case.len);
        let logits = case.with(packed).logits(model);
        assert_close("packed", &logits, &packed["logits"], TOLERANCE);
    });
}

#[test]
fn a_cache_continues_where_it_stopped() {
    golden::each_model(|golden, model| {
        let case = full_case(golden);
        let (head, tail) = (case.len - 3, 3);
        let columns = |range: std::ops::Range<usize>| -> Vec<u32> {
            case.ids.chunks(case.len).flat_map(|row| row[range.clone()].to_vec()).collect()
        };
        let step = |ids: Vec<u32>, len, cache: &mut Cache| {
            let step = Case { ids, len, mask: None, positions: None, batch: case.batch };
            forward(model, &step.inputs(), Some(cache)).logits
        };
        let mut cache = Cache::dynamic(KvDtype::F32);
        step(columns(0..head), head, &mut cache);
        let logits = step(columns(head..case.len), tail, &mut cache);
        let expected = &golden.expected["cached_2step_logits_last3"];
        assert_close("second step", &logits, expected, TOLERANCE);
        assert_eq!(cache.len(), case.len);
    });
}

#[test]
fn vectors_in_place_of_ids() {
    golden::each_model(|golden, model| {
        let case = full_case(golden);
        let mut trace = Trace { hidden_states: Some(vec![]), attentions: None };
        let by_ids =
            { model.forward(&case.inputs(), LogitsToKeep::All, None, &mut trace).unwrap() };
        let embeds = trace.hidden_states.unwrap().swap_remove(0);
        let inputs = PaddedInputs { tokens: Tokens::Embeds(&embeds), ..case.inputs() };
        let by_vectors = forward(model, &inputs, None);
        assert_eq!(by_ids.logits, by_vectors.logits);
    });
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    golden::each_model(|golden, model| {
        let case = full_case(golden);
        let refuse = |inputs: &PaddedInputs<'_>, words: &str| {
            let error = model
                .forward(inputs, LogitsToKeep::All, None, &mut Trace::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{error}");
        };
        let inputs = case.inputs();
        refuse(&PaddedInputs { len: case.len - 1, ..inputs }, "input_ids has 14 values");
        refuse(&PaddedInputs { position_ids: Some(&[0]), ..inputs }, "position_ids has 1 values");
        let short = Some(AttentionMask::Keys(&[true]));
        refuse(&PaddedInputs { attention_mask: short, ..inputs }, "attention_mask has 1 values");
        let ids = vec![99_999; case.ids.len()];
        refuse(&PaddedInputs { tokens: Tokens::Ids(&ids), ..inputs }, "input_ids holds 99999");
        let embeds = Tokens::Embeds(&[0.0; 4]);
        refuse(&PaddedInputs { tokens: embeds, ..inputs }, "inputs_embeds has 4 values");
        let none = PaddedInputs { tokens: Tokens::Ids(&[]), len: 0, ..inputs };
        refuse(&none, "input_ids holds no tokens");
    });
}
