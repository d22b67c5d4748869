//! `config.json` and `generation_config.json`: both spellings, defaults, messages in Transformers'
//! words, fields that are passed over, and round trips that lose nothing.

use std::path::PathBuf;

use puna::config::{
    ConfigError, EarlyStopping, GenerationConfig, LlamaConfig, ProblemType, RopeKind, TokenIds,
};
use puna_kernels::{Activation, Dtype};
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

fn read(value: &Value) -> Result<LlamaConfig, ConfigError> {
    LlamaConfig::from_json(&value.to_string())
}

fn good(value: &Value) -> LlamaConfig {
    read(value).expect("a good config")
}

fn message(value: &Value) -> String {
    read(value).expect_err("a bad config").to_string()
}

fn warnings(value: &Value) -> Vec<String> {
    good(value).warnings().iter().map(ToString::to_string).collect()
}

#[test]
fn files_of_transformers_are_written_back_byte_for_byte() {
    for name in ["mha", "gqa", "gqa_llama3rope", "head_seqcls_3"] {
        let Some(path) = test_data(&format!("models/{name}/config.json")) else { return };
        let text = std::fs::read_to_string(path).expect("readable");
        let config = LlamaConfig::from_json(&text).expect(name);
        // The tiny models' llama3 context is shorter than the original one asks for.
        assert_eq!(config.warnings(), [], "{name}");
        assert_eq!(config.to_json(), text, "{name}");
        assert_eq!(config.dtype(), Some(Dtype::F32));
    }
}

#[test]
fn defaults_are_llama_7b() {
    let config = good(&json!({}));
    assert_eq!(config, LlamaConfig::default());
    assert_eq!((config.head_dim, config.num_key_value_heads), (128, 32));
    assert_eq!(config.eos_ids(), [2]);
    assert_eq!(config.activation(), Ok(Activation::Silu));
    assert_eq!(config.rope_parameters.kind(), &RopeKind::Default);
    assert_eq!(config.rope_parameters.theta(), 10_000.0);
}

/// The file of Llama 3.1 in its old spelling, and what Transformers 5.23 makes of such keys.
#[test]
fn old_spelling_becomes_the_new_one() {
    let old = json!({
        "architectures": ["LlamaForCausalLM"], "eos_token_id": [128001, 128008, 128009],
        "bos_token_id": 128000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "model_type": "llama",
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "torch_dtype": "bfloat16", "vocab_size": 128256,
        "_name_or_path": "somewhere"
    });
    let config = good(&old);
    assert_eq!(config.warnings(), []);
    assert_eq!(config.eos_token_id, Some(TokenIds::Many(vec![128_001, 128_008, 128_009])));
    assert_eq!(config.dtype(), Some(Dtype::Bf16));
    let written: Value = serde_json::from_str(&config.to_json()).expect("JSON");
    assert_eq!(
        written["rope_parameters"],
        json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3", "rope_theta": 500000.0})
    );
    assert_eq!(written["dtype"], "bfloat16");
    for gone in ["rope_scaling", "rope_theta", "torch_dtype", "_name_or_path"] {
        assert!(written.get(gone).is_none(), "{gone}");
    }
    assert_eq!(good(&written), config);
}

#[test]
fn rope_keys_have_their_priorities() {
    let theta = |value: Value| good(&value).rope_parameters.theta();
    assert_eq!(theta(json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}})), 1e6);
    assert_eq!(theta(json!({"rope_theta": 5e5, "rope_parameters": {}})), 5e5);
    assert_eq!(theta(json!({"rope_theta": 500000, "rope_scaling": null})), 5e5);
    let both = json!({"rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "yarn", "factor": 9.0}});
    assert_eq!(good(&both).rope_parameters.kind(), &RopeKind::Linear { factor: 2.0 });
    let keys = Value::Object(good(&both).rope_parameters.keys().clone());
    assert_eq!(
        keys,
        json!({"type": "linear", "rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    );
    // `rope_type` wins over its old name.
    let two = json!({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}});
    assert_eq!(good(&two).rope_parameters.kind(), &RopeKind::Dynamic { factor: 2.0 });
    let original = |value: &Value| {
        good(value).rope_parameters.keys()["original_max_position_embeddings"].clone()
    };
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 7});
    assert_eq!(
        original(&json!({"rope_parameters": yarn, "original_max_position_embeddings": 9})),
        9
    );
    assert_eq!(original(&json!({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}})), 2048);
    let partial = json!({"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "linear", "factor": 2.0}});
    assert_eq!(good(&partial).rope_parameters.partial_rotary_factor(), Some(0.5));
}

#[test]
fn unknown_keys_are_kept() {
    let config = good(&json!({"zebra": {"b": 1, "a": [2.5, null]}, "top_k": 3}));
    assert_eq!(config.extra["zebra"], json!({"b": 1, "a": [2.5, null]}));
    let written: Value = serde_json::from_str(&config.to_json()).expect("JSON");
    assert_eq!(written["zebra"], json!({"b": 1, "a": [2.5, null]}));
    assert_eq!(good(&written), config);
}

#[test]
fn labels_follow_transformers() {
    let three = good(&json!({"num_labels": 3, "problem_type": "regression"}));
    assert_eq!(three.num_labels(), 3);
    assert_eq!(three.problem_type, Some(ProblemType::Regression));
    assert!(three.to_json().contains("\"LABEL_2\": 2"));
    let named = good(&json!({"id2label": {"10": "x", "9": "y", "0": "z"}}));
    let text = named.to_json();
    // Python sorts the ids as numbers.
    assert!(text.contains("\"0\": \"z\",\n    \"9\": \"y\",\n    \"10\": \"x\""), "{text}");
    assert!(text.contains("\"label2id\": null"));
    let two = good(&json!({"num_labels": 2}));
    assert!(!two.to_json().contains("label"));
}

/// Texts as Transformers 5.23 raises them.
#[test]
fn errors_have_the_texts_of_transformers() {
    for (value, text) in [
        (
            json!({"hidden_size": 33, "num_attention_heads": 4}),
            "The hidden size (33) is not a multiple of the number of attention heads (4).",
        ),
        (json!({"vocab_size": "a"}), "Field 'vocab_size' expected int, got str (value: 'a')"),
        (json!({"vocab_size": true}), "Field 'vocab_size' expected int, got bool (value: True)"),
        (
            json!({"vocab_size": null}),
            "Field 'vocab_size' expected int, got NoneType (value: None)",
        ),
        (
            json!({"max_position_embeddings": 2048.0}),
            "Field 'max_position_embeddings' expected int, got float (value: 2048.0)",
        ),
        (json!({"rms_norm_eps": 1}), "Field 'rms_norm_eps' expected float, got int (value: 1)"),
        (json!({"use_cache": 1}), "Field 'use_cache' expected bool, got int (value: 1)"),
        (json!({"hidden_act": 3}), "Field 'hidden_act' expected str, got int (value: 3)"),
        (
            json!({"head_dim": "a"}),
            "Field 'head_dim' with value 'a' doesn't match any type in (<class 'int'>, <class 'NoneType'>). Errors: \
             Field 'head_dim' expected int, got str (value: 'a'); Field 'head_dim' expected NoneType, got str (value: \
             'a')",
        ),
        (
            json!({"eos_token_id": [1, "a"]}),
            "Field 'eos_token_id' with value [1, 'a'] doesn't match any type in (<class 'int'>, list[int], <class \
             'NoneType'>). Errors: Field 'eos_token_id' expected int, got list (value: [1, 'a']); Invalid item at index \
             1 in list 'eos_token_id'; Field 'eos_token_id' expected NoneType, got list (value: [1, 'a'])",
        ),
        (
            json!({"attention_dropout": "a"}),
            "Field 'attention_dropout' with value 'a' doesn't match any type in (<class 'int'>, <class 'float'>, <class \
             'NoneType'>). Errors: Field 'attention_dropout' expected int, got str (value: 'a'); Field \
             'attention_dropout' expected float, got str (value: 'a'); Field 'attention_dropout' expected NoneType, got \
             str (value: 'a')",
        ),
        (
            json!({"initializer_range": 2.0}),
            "Value must be greater or equal to 0.0 and smaller or equal to 1.0, got 2.0.",
        ),
        (
            json!({"head_dim": 7}),
            "RoPE requires an even rotary dimension, but got `head_dim`=7 with `partial_rotary_factor`=1.0 for \
             `full_attention`.",
        ),
        (
            json!({"problem_type": "single_label_classification", "num_labels": 1}),
            "`problem_type=\"single_label_classification\"` requires `num_labels > 1`. For binary classification use \
             `num_labels=2`, or use `problem_type=\"regression\"` for a single-output regression head.",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "Missing required keys in `rope_parameters` for 'rope_type'='linear': {'factor'}",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8}}),
            "Missing required keys in `rope_parameters` for 'rope_type'='llama3': {'high_freq_factor', \
             'low_freq_factor'}",
        ),
        (
            json!({"output_attentions": true, "attn_implementation": "sdpa"}),
            "The `output_attentions` attribute is not supported when using the `attn_implementation` set to sdpa. \
             Please set it to 'eager' instead.",
        ),
    ] {
        assert_eq!(message(&value), text, "{value}");
    }
}

/// What Transformers lets through and no model can use.
#[test]
fn errors_beyond_those_of_transformers() {
    for (value, field, part) in [
        (
            json!({"num_attention_heads": 6, "hidden_size": 48, "num_key_value_heads": 4}),
            "num_key_value_heads",
            "number of attention heads (6) is not a multiple",
        ),
        (json!({"hidden_size": 0}), "hidden_size", "between 1 and"),
        (json!({"num_attention_heads": 0}), "num_attention_heads", "between 1 and"),
        (json!({"num_hidden_layers": -3}), "num_hidden_layers", "got -3"),
        (json!({"vocab_size": 1_u64 << 40}), "vocab_size", "between 1 and"),
        (json!({"vocab_size": u64::MAX}), "vocab_size", "expected int"),
        (json!({"hidden_act": "zork"}), "hidden_act", "'zork' is not known"),
        (json!({"hidden_act": "prelu"}), "hidden_act", "slope"),
        (json!({"problem_type": "x"}), "problem_type", "must be one of"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps", "at least 0"),
        (json!({"model_type": "mistral"}), "model_type", "'mistral'"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": "a"}}),
            "rope_parameters.factor",
            "must be a float or int",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 0}}),
            "rope_parameters.factor",
            "above 0",
        ),
        (json!({"rope_theta": "a"}), "rope_parameters.rope_theta", "must be a float or int"),
        (json!({"rope_parameters": [1]}), "rope_parameters", "doesn't match any type"),
        (json!({"id2label": {"x": "a"}}), "id2label", "numbers as keys"),
        (json!({"id2label": {}}), "num_labels", "between 1 and"),
    ] {
        let error = read(&value).expect_err("a bad config");
        assert_eq!(error.field(), field, "{value}");
        assert!(error.to_string().contains(part), "{value}: {error}");
    }
    assert!(matches!(LlamaConfig::from_json("[]"), Err(ConfigError::NotAnObject { got: "list" })));
    assert!(matches!(
        LlamaConfig::from_json("{\"a\": }"),
        Err(ConfigError::Json { line: 1, column: 7, .. })
    ));
}

/// Texts as Transformers 5.23 logs them.
#[test]
fn warnings_have_the_texts_of_transformers() {
    let rope = |value: Value| warnings(&json!({"rope_scaling": value}));
    assert_eq!(
        rope(json!({"type": "linear", "factor": 0.5})),
        ["`rope_parameters`'s factor field must be a float or int >= 1, got 0.5"]
    );
    assert_eq!(
        rope(json!({"rope_type": "foo", "factor": 2})),
        ["Missing validation function in 'RotaryEmbeddingConfigMixin' for 'rope_type'='foo'"]
    );
    assert_eq!(
        rope(json!({"rope_type": "linear", "factor": 2.0, "zork": 1, "abc": 2})),
        ["Unrecognized keys in `rope_parameters` for 'rope_type'='linear': {'abc', 'zork'}"]
    );
    assert_eq!(
        rope(
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192})
        ),
        [
            "`rope_parameters`'s high_freq_factor field must be greater than low_freq_factor, got high_freq_factor=1.0 and \
          low_freq_factor=4.0",
            "`rope_parameters`'s original_max_position_embeddings field must be less than max_position_embeddings, got 8192 \
          and max_position_embeddings=2048"
        ]
    );
    let yarn =
        rope(json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}));
    assert_eq!(yarn.len(), 1);
    assert!(yarn[0].starts_with(
        "The explicitly set RoPE scaling factor (config.rope_parameters['factor'] = 4.0) does not match the ratio \
         implicitly set by other parameters (implicit factor = post-yarn context length / pre-yarn context length = \
         config.max_position_embeddings / config.rope_parameters['original_max_position_embeddings'] = 2.0). Using"
    ));
    let long = rope(json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}));
    assert_eq!(long[0], "`rope_parameters`'s short_factor field must have length 64, got 1");
    assert_eq!(long[1], "`rope_parameters`'s long_factor field must have length 64, got 1");
    assert!(long[2].starts_with(
        "This model config has set a `rope_parameters['original_max_position_embeddings']`"
    ));
    assert_eq!(
        warnings(&json!({"pad_token_id": -1})),
        [
            "Model config: pad_token_id must be `None` or an integer within the vocabulary (between 0 and 31999), got -1. \
          This may result in unexpected behavior."
        ]
    );
    assert_eq!(
        warnings(&json!({"id2label": {"0": "a", "1": "b"}, "num_labels": 3})),
        ["You passed `num_labels=3` which is incompatible to the `id2label` map of length `2`."]
    );
}

#[test]
fn every_activation_name_is_known() {
    for name in [
        "gelu",
        "gelu_10",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_pytorch_tanh",
        "gelu_accurate",
        "hardswish",
        "laplace",
        "leaky_relu",
        "linear",
        "mish",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "swish",
        "tanh",
    ] {
        let config = good(&json!({"hidden_act": name}));
        assert!(config.activation().is_ok());
        assert!(config.to_json().contains(&format!("\"hidden_act\": \"{name}\"")));
    }
}

#[test]
fn generation_config_has_transformers_defaults() {
    let config = GenerationConfig::from_json("{}").expect("empty");
    assert_eq!(config, GenerationConfig::default());
    assert_eq!((config.max_length, config.top_k, config.num_assistant_tokens), (20, 50, 20));
    // Transformers 5 writes null for what is not set.
    let nulls = json!({"temperature": null, "top_k": null, "do_sample": null, "early_stopping": null, "min_p": null});
    assert_eq!(GenerationConfig::from_json(&nulls.to_string()), Ok(config));
}

#[test]
fn generation_config_reads_and_writes() {
    let text = json!({
        "_from_model_config": true, "bos_token_id": 128000, "eos_token_id": [128001, 128009], "do_sample": true,
        "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "early_stopping": "never", "zebra": 1,
        "transformers_version": "4.42.3"
    });
    let config = GenerationConfig::from_json(&text.to_string()).expect("good");
    assert_eq!(config.eos_token_id, Some(TokenIds::Many(vec![128_001, 128_009])));
    assert_eq!((config.temperature, config.top_p, config.max_length), (0.6, 0.9, 4096));
    assert_eq!(config.early_stopping, EarlyStopping::Never);
    assert_eq!(config.warnings(), []);
    let written: Value = serde_json::from_str(&config.to_json()).expect("JSON");
    assert_eq!(written, text);
}

#[test]
fn a_generation_field_that_cannot_be_used_is_passed_over() {
    let text = r#"{"top_k": -1, "do_sample": true, "temperature": 0.7, "top_p": 2, "num_beams": 3,
                   "stop_strings": 4, "suppress_tokens": [], "sequence_bias": [[[1], 2.0]]}"#;
    let (config, warnings) = GenerationConfig::from_json_with_warnings(text).unwrap();
    let fields: Vec<&str> = warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(fields, ["top_k", "top_p", "stop_strings"]);
    let default = GenerationConfig::default();
    assert_eq!((config.top_k, config.top_p, config.temperature), (default.top_k, 1.0, 0.7));
    assert_eq!(config.unheard(), ["num_beams", "sequence_bias"]);
    assert!(config.stop_strings().is_empty());
    assert!(GenerationConfig::from_json_with_warnings("[]").is_err());
    let config = GenerationConfig::from_json(r#"{"stop_strings": ["a", "b"]}"#).unwrap();
    assert_eq!(config.stop_strings(), ["a", "b"]);
    assert!(default.unheard().is_empty());
}

#[test]
fn generation_config_faults_and_warnings() {
    for (text, field) in [
        (r#"{"temperature": -1}"#, "temperature"),
        (r#"{"top_p": 1.5}"#, "top_p"),
        (r#"{"top_k": -1}"#, "top_k"),
        (r#"{"max_new_tokens": 1.5}"#, "max_new_tokens"),
        (r#"{"num_beams": 0}"#, "num_beams"),
        (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
        (r#"{"early_stopping": 3}"#, "early_stopping"),
    ] {
        let error = GenerationConfig::from_json(text).expect_err(text);
        assert_eq!(error.field(), field);
        assert!(error.to_string().contains(field), "{error}");
    }
    let config = GenerationConfig::from_json(r#"{"temperature": 0.6}"#).expect("good");
    let text = config.warnings()[0].to_string();
    assert!(
        text.starts_with(
            "`do_sample` is not set to `True`. However, `temperature` is set to `0.6`"
        ),
        "{text}"
    );
}
