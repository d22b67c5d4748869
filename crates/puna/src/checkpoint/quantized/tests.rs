//! Each method against folders that a script packed value by value, and damaged parts by name.
//!
//! Tolerance: none where the codes are kept; one rounding of the method's type where they are
//! multiplied out, since two orders of the same product may fall on two sides of a tie.

use std::path::{Path, PathBuf};

use puna_kernels::Format;
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, safetensors};

const PACKED: [&str; 2] =
    ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"];

fn folder(method: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quantized").join(method)
}

/// The format that each method's matrices come in.
const METHODS: [(&str, Format); 17] = [
    ("gptq_4", Format::Q4_0),
    ("gptq_4_asymmetric", Format::Q8_0),
    ("gptq_3", Format::Q4_0),
    ("gptq_2_v2", Format::Q4_0),
    ("gptq_8", Format::Q8_0),
    ("gptq_act_order", Format::F16),
    ("awq", Format::Q8_0),
    ("bnb_nf4", Format::Bf16),
    ("bnb_nf4_double", Format::Bf16),
    ("bnb_fp4", Format::Bf16),
    ("bnb_int8", Format::F16),
    ("fp8", Format::F16),
    ("fbgemm_fp8", Format::F16),
    ("pack_4", Format::Q4_0),
    ("pack_4_asymmetric", Format::Q8_0),
    ("int_8", Format::Q8_0),
    ("float_8", Format::Bf16),
];

#[test]
fn every_method_gives_the_values_that_torch_gives() {
    for (method, format) in METHODS {
        println!("{method}");
        let folder = folder(method);
        let expected = safetensors::open(&folder.join("expected.safetensors")).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        for name in PACKED {
            let tensor = checkpoint.tensor(name).unwrap();
            assert_eq!(tensor.format, format, "{name}");
            let rounding = match format {
                Format::F16 => 2.0_f32.powi(-11),
                Format::Bf16 => 2.0_f32.powi(-8),
                _ => 0.0,
            };
            let expected = expected[name].to_weight(name).unwrap().to_f32();
            let found = tensor.to_f32();
            assert_eq!(found.len(), expected.len());
            for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
                assert!((x - y).abs() <= rounding * y.abs() * 2.0, "{name}[{i}]: {x}, not {y}");
            }
        }
        let said = checkpoint.quantization().unwrap();
        assert!(said.contains(&format!("2 as {format}")), "{said}");
    }
}

/// Copies a folder, with its `quantization_config` changed.
fn with_settings(method: &str, key: &str, value: Value) -> String {
    let target = tempfile::tempdir().unwrap();
    let source = folder(method);
    let text = std::fs::read_to_string(source.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["quantization_config"][key] = value;
    std::fs::write(target.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(source.join("model.safetensors"), target.path().join("model.safetensors"))
        .unwrap();
    Checkpoint::open(target.path()).unwrap_err().to_string()
}

#[test]
fn settings_that_the_tensors_do_not_bear_out_are_refused() {
    for (method, key, value, words) in [
        ("gptq_4", "quant_method", json!("hqq"), "weights quantised by 'hqq' are not read"),
        ("gptq_4", "bits", json!(5), "GPTQ has 2, 3, 4 and 8"),
        ("gptq_4", "bits", json!(8), "qweight"),
        ("gptq_4", "group_size", json!(0), "groups of 0 columns do not exist"),
        ("gptq_4", "group_size", json!(16), "qzeros"),
        ("awq", "bits", json!(8), "AWQ has 4"),
        ("awq", "version", json!("gemv"), "the layout 'gemv' is not read"),
        ("fp8", "weight_block_size", json!([0, 8]), "must be two sizes"),
        ("fp8", "weight_block_size", json!([8, 8]), "weight_scale_inv"),
        ("pack_4", "config_groups", json!({}), "names no weights"),
    ] {
        let error = with_settings(method, key, value);
        assert!(error.contains(words), "{error}");
    }
}

/// Bytes of the header, or of a value, changed under each method: an error or other values, no
/// panic.
#[test]
fn damaged_parts_are_refused_or_read() {
    for (method, _) in METHODS {
        let source = folder(method);
        let whole = std::fs::read(source.join("model.safetensors")).unwrap();
        let target = tempfile::tempdir().unwrap();
        std::fs::copy(source.join("config.json"), target.path().join("config.json")).unwrap();
        let text = String::from_utf8_lossy(&whole).into_owned();
        let header = text.find("}}").unwrap();
        for part in ["g_idx", "weight_shape", "quant_state", "qzeros", "absmax", "SCB", "scale"] {
            let Some(at) = text.find(part).filter(|at| *at < header) else { continue };
            let mut damaged = whole.clone();
            damaged[at] = b'x';
            std::fs::write(target.path().join("model.safetensors"), &damaged).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(target.path()) {
                PACKED.iter().for_each(|name| drop(checkpoint.tensor(name).unwrap().to_f32()));
            }
        }
        let mut damaged = whole.clone();
        let len = damaged.len();
        for byte in &mut damaged[len - 3000..] {
            *byte = 0xff;
        }
        std::fs::write(target.path().join("model.safetensors"), &damaged).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(target.path()) {
            PACKED.iter().for_each(|name| drop(checkpoint.tensor(name).unwrap().to_f32()));
        }
    }
}
