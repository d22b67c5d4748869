//! RoPE against Transformers: frequencies of every kind, the changes of the dynamic ones over
//! successive forwards, cosines and sines.

use std::path::PathBuf;

use puna::config::LlamaConfig;
use puna::model::rope::{Rope, RopeError};
use serde_json::{Value, json};

fn test_data(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
    let root =
        std::env::var_os("PUNA_TEST_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = root.join(name);
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn assert_close(what: &str, got: &[f32], expected: &[f64], relative: bool) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        let scale = if relative { expected.abs() } else { 1.0 };
        assert!(error <= 1e-6 * scale, "{what}[{i}]: {got} is not {expected}");
    }
}

fn config(case: &Value) -> LlamaConfig {
    LlamaConfig::from_json(&case.to_string()).expect("a good config")
}

/// 1e-6 is some eight units in the last place of `f32`: PyTorch's own `pow`, `cos` and `sin` are
/// within one of the true value, and differ by that between machines.
#[test]
fn every_kind_equals_transformers() {
    let Some(path) = test_data("models/rope_goldens.json") else { return };
    let text = std::fs::read_to_string(path).expect("readable");
    let goldens: Value = serde_json::from_str(&text).expect("JSON");
    let cases = goldens["cases"].as_array().expect("a list");
    assert!(cases.len() >= 16);
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        let rope = Rope::new(&config(&case["config"]), None).expect(name);
        let mut length = 0;
        assert_close(name, &rope.inv_freq(0), &floats(&case["inv_freq_init"]), true);
        let scaling = case["attention_scaling"].as_f64().expect("a number");
        assert_close(name, &[rope.attention_scaling()], &[scaling], true);
        for (i, step) in case["steps"].as_array().expect("a list").iter().enumerate() {
            length = check_step(&format!("{name}, step {i}"), &rope, length, step);
        }
    }
}

/// Returns the length whose frequencies the step took, where the one before took `before`.
fn check_step(what: &str, rope: &Rope, before: usize, step: &Value) -> usize {
    let positions: Vec<u32> = floats(&step["position_ids"]).into_iter().map(|p| p as u32).collect();
    let length = rope.observe(before, &positions);
    assert_close(what, &rope.inv_freq(length), &floats(&step["inv_freq_after"]), true);
    let pairs = rope.rotary_dim() / 2;
    let mut cos = vec![f32::NAN; positions.len() * pairs];
    let mut sin = cos.clone();
    let lengths = vec![length as u32; positions.len()];
    rope.cos_sin(&positions, &lengths, &mut cos, &mut sin);
    for (table, got) in [("cos", &cos), ("sin", &sin)] {
        for (row, position) in positions.iter().enumerate() {
            // The golden repeats each row for the second half of the head.
            let expected = floats(&step[table][row]);
            let got = &got[row * pairs..][..pairs];
            assert_close(&format!("{what}, {table} {position}"), got, &expected[..pairs], false);
            assert_close(&format!("{what}, {table} {position}"), got, &expected[pairs..], false);
        }
    }
    length
}

fn small(rope: Value) -> LlamaConfig {
    let mut config =
        json!({"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64});
    config["rope_parameters"] = rope;
    config.to_string().parse_config()
}

trait ParseConfig {
    fn parse_config(&self) -> LlamaConfig;
}

impl ParseConfig for String {
    fn parse_config(&self) -> LlamaConfig {
        LlamaConfig::from_json(self).expect("a good config")
    }
}

#[test]
fn explicit_factors_divide_each_frequency() {
    let plain = Rope::new(&small(json!({})), None).expect("builds");
    let factors = [1.0, 2.0, 4.0, 8.0];
    let divided = Rope::new(&small(json!({})), Some(&factors)).expect("builds");
    for ((got, plain), factor) in
        divided.inv_freq(0).iter().zip(plain.inv_freq(0).iter()).zip(factors)
    {
        assert_eq!(*got, plain / factor);
    }
    let linear = small(json!({"rope_type": "linear", "factor": 2.0}));
    let both = Rope::new(&linear, Some(&factors)).expect("builds");
    assert_eq!(both.inv_freq(0)[1], plain.inv_freq(0)[1] / 2.0 / 2.0);
}

/// GGUF files of Llama 3.1 carry the stretch as factors; both ways must give one result.
#[test]
fn factors_of_llama3_equal_the_kind() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 500000.0});
    let by_kind = Rope::new(&small(llama3), None).expect("builds");
    let plain = Rope::new(&small(json!({"rope_theta": 500000.0})), None).expect("builds");
    let factors: Vec<f32> =
        plain.inv_freq(0).iter().zip(by_kind.inv_freq(0).iter()).map(|(f, g)| f / g).collect();
    let by_factors =
        Rope::new(&small(json!({"rope_theta": 500000.0})), Some(&factors)).expect("builds");
    for (a, b) in by_factors.inv_freq(0).iter().zip(by_kind.inv_freq(0).iter()) {
        // Two roundings more than the kind's own.
        assert!((a - b).abs() <= 2.0 * f32::EPSILON * b, "{a} is not {b}");
    }
}

#[test]
fn dynamic_grows_and_falls_back() {
    let rope =
        Rope::new(&small(json!({"rope_type": "dynamic", "factor": 2.0})), None).expect("builds");
    assert!(rope.is_dynamic());
    assert_eq!(rope.observe(0, &[]), 0);
    assert_eq!(rope.observe(0, &[63]), 64);
    assert_eq!(rope.inv_freq(64), rope.inv_freq(0));
    assert_eq!(rope.observe(64, &[64]), 65);
    assert!(rope.inv_freq(65)[1] < rope.inv_freq(0)[1]);
    // Neither longer than the longest nor inside the trained context: nothing changes.
    assert_eq!(rope.observe(65, &[63]), 65);
    assert_eq!(rope.observe(65, &[62]), 63);
}

#[test]
fn impossible_parameters_are_typed_errors() {
    let unknown = Rope::new(&small(json!({"rope_type": "su"})), None);
    assert_eq!(unknown.unwrap_err(), RopeError::UnknownKind("su".to_owned()));
    let short = Rope::new(&small(json!({})), Some(&[1.0; 3]));
    assert!(matches!(short, Err(RopeError::FactorCount { expected: 4, got: 3, .. })));
    let long = json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 1.0, 1.0, 1.0]});
    let long = Rope::new(&small(long), None);
    assert!(matches!(long, Err(RopeError::FactorCount { what: "short_factor", got: 1, .. })));
    let level = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1e-300,
        "high_freq_factor": 1e-300, "original_max_position_embeddings": 32});
    // Wavelengths are compared with infinity, so that every pair is a fast one.
    assert!(Rope::new(&small(level), None).is_ok());
    let tiny = json!({"hidden_size": 8, "num_attention_heads": 4, "rope_parameters":
        {"rope_type": "dynamic", "factor": 2.0}});
    let tiny = Rope::new(&tiny.to_string().parse_config(), None);
    assert!(matches!(tiny, Err(RopeError::RotaryDim { rotary_dim: 2, .. })));
    let longrope = |long: f64, original: u32| {
        json!({"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": original,
            "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [long, 1.0, 1.0, 1.0]})
    };
    let vanishing = Rope::new(&small(longrope(1e-50, 32)), None);
    assert_eq!(vanishing.unwrap_err(), RopeError::NotFinite { pair: 0 });
    let endless = Rope::new(&small(longrope(1.0, 1)), None);
    assert!(matches!(endless, Err(RopeError::Scaling(_))));
    let dynamic = small(json!({"rope_type": "dynamic", "factor": 2.0}));
    let both = Rope::new(&dynamic, Some(&[1.0; 4]));
    assert_eq!(both.unwrap_err(), RopeError::Factors("dynamic"));
    let zero = Rope::new(&small(json!({})), Some(&[0.0; 4]));
    assert!(matches!(zero, Err(RopeError::NotFinite { pair: 0 })));
}
