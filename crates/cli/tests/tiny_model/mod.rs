//! A LLaMA of 2 layers with random weights and a SentencePiece vocabulary of bytes, letters and a
//! few words, written by the tests themselves.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 48;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;

/// `<unk>`, `<s>`, `</s>`, 256 bytes, `▁`, 26 letters and some words.
pub(crate) fn vocab_size() -> usize {
    pieces().len()
}

/// Writes the model to a folder. With `flat`, the output projection is zero: every token is
/// equally likely.
pub(crate) fn write(dir: &Path, flat: bool) {
    fs::create_dir_all(dir).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size(),
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": false,
        "dtype": "float32",
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer = json!({
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": false,
        "chat_template": "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: \
                          {{ message['content'] }}\n{% endfor %}assistant:",
    });
    fs::write(dir.join("tokenizer_config.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.join("tokenizer.model"), sentencepiece()).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(flat)).unwrap();
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let kv = KV_HEADS * HEAD_DIM;
    let vocab = vocab_size();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![vocab, HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes
}

fn safetensors(flat: bool) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    for (name, shape) in shapes() {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            let value = match () {
                () if shape.len() == 1 => 1.0,
                () if flat && name == "lm_head.weight" => 0.0,
                () => random(),
            };
            data.extend(value.to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name, entry);
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    file.extend(data);
    file
}

/// Text, score, and the number of the piece's type in SentencePiece's own format.
fn pieces() -> Vec<(String, f32, u64)> {
    const NORMAL: u64 = 1;
    const UNKNOWN: u64 = 2;
    const CONTROL: u64 = 3;
    const BYTE: u64 = 6;
    let mut pieces = vec![
        ("<unk>".to_owned(), 0.0, UNKNOWN),
        ("<s>".to_owned(), 0.0, CONTROL),
        ("</s>".to_owned(), 0.0, CONTROL),
    ];
    pieces.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0, BYTE)));
    let merged = ["ll", "la", "lla", "ma", "llama", "▁a", "▁llama"];
    let letters = "▁abcdefghijklmnopqrstuvwxyz".chars().map(String::from);
    let texts = merged.into_iter().map(str::to_owned).chain(letters);
    pieces.extend(texts.zip(0u16..).map(|(text, rank)| (text, -f32::from(rank), NORMAL)));
    pieces
}

fn sentencepiece() -> Vec<u8> {
    let mut model = Vec::new();
    for (text, score, kind) in pieces() {
        let mut piece = Vec::new();
        field_bytes(&mut piece, 1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        field_number(&mut piece, 3, kind);
        field_bytes(&mut model, 1, &piece);
    }
    let mut trainer = Vec::new();
    // Byte-pair merges, with bytes for what has no piece.
    field_number(&mut trainer, 3, 2);
    field_number(&mut trainer, 35, 1);
    field_bytes(&mut model, 2, &trainer);
    let mut normalizer = Vec::new();
    field_bytes(&mut normalizer, 1, b"identity");
    field_number(&mut normalizer, 3, 1);
    field_number(&mut normalizer, 4, 0);
    field_number(&mut normalizer, 5, 1);
    field_bytes(&mut model, 3, &normalizer);
    model
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn field_number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn field_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}
