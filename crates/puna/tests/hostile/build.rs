//! Bytes of small model files, good ones and ones that lie. All describe the same LLaMA:
//! `hidden_size` 4, one head, one block, four tokens.

use serde_json::{Value, json};

/// The config of all files here.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4, "hidden_size": 4,
        "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8,
        "tie_word_embeddings": true
    })
}

/// Its tensors: ours, GGUF's, and how many values.
pub(crate) const TENSORS: [(&str, &str, &[u64]); 11] = [
    ("model.embed_tokens.weight", "token_embd.weight", &[4, 4]),
    ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", &[4]),
    ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", &[4, 4]),
    ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", &[4, 4]),
    ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", &[4, 4]),
    ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", &[4, 4]),
    ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", &[4]),
    ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight", &[4, 4]),
    ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", &[4, 4]),
    ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", &[4, 4]),
    ("model.norm.weight", "output_norm.weight", &[4]),
];

/// Entries of a safetensors header for all tensors, and the bytes of their data.
pub(crate) fn safetensors_header() -> (serde_json::Map<String, Value>, usize) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, _, shape) in TENSORS {
        let start = end;
        end += 4 * shape.iter().product::<u64>() as usize;
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.to_owned(), entry);
    }
    (header, end)
}

/// A safetensors file with this header and so many bytes of data.
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

/// A good file after `change` has had its way with the header.
pub(crate) fn changed_safetensors(change: impl Fn(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let (mut header, data) = safetensors_header();
    change(&mut header);
    safetensors(&Value::Object(header).to_string(), data)
}

/// A GGUF file in the making.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) infos: Vec<Vec<u8>>,
    pub(crate) key_count: Option<u64>,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) data: usize,
}

pub(crate) fn gguf_text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// A key with a value of type `kind`.
pub(crate) fn gguf_key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&gguf_text(name.as_bytes())[..], &kind.to_le_bytes(), value].concat()
}

/// A line of the list of tensors; `shape` in the file's order, shortest stride first.
pub(crate) fn gguf_info(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = gguf_text(name.as_bytes());
    out.extend((shape.len() as u32).to_le_bytes());
    shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

pub(crate) const U32: u32 = 4;
pub(crate) const F32: u32 = 6;
pub(crate) const TEXT: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

impl Gguf {
    /// A good file.
    pub(crate) fn good() -> Self {
        let size = |name: &str, n: u32| gguf_key(&format!("llama.{name}"), U32, &n.to_le_bytes());
        let keys = vec![
            gguf_key("general.architecture", TEXT, &gguf_text(b"llama")),
            size("context_length", 8),
            size("embedding_length", 4),
            size("block_count", 1),
            size("feed_forward_length", 4),
            size("attention.head_count", 1),
            size("vocab_size", 4),
            gguf_key("llama.attention.layer_norm_rms_epsilon", F32, &1e-5_f32.to_le_bytes()),
        ];
        let mut infos = Vec::new();
        let mut offset = 0;
        for (_, name, shape) in TENSORS {
            infos.push(gguf_info(name, shape, 0, offset));
            offset += (4 * shape.iter().product::<u64>()).next_multiple_of(32);
        }
        let data = offset as usize;
        Self { magic: *b"GGUF", version: 3, keys, infos, key_count: None, tensor_count: None, data }
    }

    pub(crate) fn with_key(mut self, key: Vec<u8>) -> Self {
        self.keys.push(key);
        self
    }

    pub(crate) fn with_info(mut self, info: Vec<u8>) -> Self {
        self.infos.push(info);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.infos.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.infos.concat());
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }
}

/// A zip file of stored entries.
pub(crate) struct Zip {
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    pub(crate) method: u16,
    pub(crate) count: Option<u16>,
    /// Where the directory says that the second entry starts; else where it does.
    pub(crate) second_at: Option<u32>,
}

impl Zip {
    pub(crate) fn new(entries: Vec<(&str, Vec<u8>)>) -> Self {
        let entries = entries.into_iter().map(|(name, data)| (name.to_owned(), data)).collect();
        Self { entries, method: 0, count: None, second_at: None }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut directory = Vec::new();
        for (i, (name, data)) in self.entries.iter().enumerate() {
            let here = out.len() as u32;
            let at = self.second_at.filter(|_| i == 1).unwrap_or(here);
            let sizes = [0, data.len() as u32, data.len() as u32];
            let sizes: Vec<u8> = sizes.iter().flat_map(|n: &u32| n.to_le_bytes()).collect();
            let name_len = (name.len() as u16).to_le_bytes();
            let method = self.method.to_le_bytes();
            let dates = [0; 4];
            out.extend(
                [b"PK\x03\x04\x14\0\0\0", &method[..], &dates, &sizes, &name_len, &[0; 2]].concat(),
            );
            out.extend(name.as_bytes());
            out.extend(data);
            directory.extend(
                [
                    b"PK\x01\x02\x14\0\x14\0\0\0",
                    &method[..],
                    &dates,
                    &sizes,
                    &name_len,
                    &[0; 12],
                    &at.to_le_bytes(),
                ]
                .concat(),
            );
            directory.extend(name.as_bytes());
        }
        let start = (out.len() as u32).to_le_bytes();
        let count = self.count.unwrap_or(self.entries.len() as u16).to_le_bytes();
        let len = (directory.len() as u32).to_le_bytes();
        out.extend(directory);
        out.extend([b"PK\x05\x06\0\0\0\0", &count[..], &count, &len, &start, &[0; 2]].concat());
        out
    }
}

pub(crate) fn pickle_text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn pickle_int(n: u64) -> Vec<u8> {
    match i32::try_from(n) {
        Ok(n) => [b"J", &n.to_le_bytes()[..]].concat(),
        Err(_) => [b"\x8a\x08", &n.to_le_bytes()[..]].concat(),
    }
}

fn pickle_tuple(items: &[u64]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|n| pickle_int(*n)).collect();
    [b"(", &items[..], b"t"].concat()
}

/// A view of a storage of `float32`.
pub(crate) struct View<'a> {
    pub(crate) key: &'a str,
    pub(crate) count: u64,
    pub(crate) offset: u64,
    pub(crate) shape: &'a [u64],
    pub(crate) strides: &'a [u64],
}

/// The opcodes that rebuild a tensor.
pub(crate) fn pickle_tensor(view: &View<'_>) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        pickle_text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        pickle_text(view.key),
        pickle_text("cpu"),
        pickle_int(view.count),
        b"tQ".to_vec(),
        pickle_int(view.offset),
        pickle_tuple(view.shape),
        pickle_tuple(view.strides),
        b"\x89}tR".to_vec(),
    ]
    .concat()
}

/// A dict of one entry, whose value are these opcodes.
pub(crate) fn pickle_dict(name: &str, value: &[u8]) -> Vec<u8> {
    [b"\x80\x02}(", &pickle_text(name)[..], value, b"u."].concat()
}

/// A `pytorch_model.bin` with this pickle and one storage of `storage` bytes.
pub(crate) fn torch(pickle: Vec<u8>, storage: usize) -> Vec<u8> {
    Zip::new(vec![("archive/data.pkl", pickle), ("archive/data/0", vec![0; storage])]).bytes()
}

/// A good `pytorch_model.bin`.
pub(crate) fn good_torch() -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (name, _, shape) in TENSORS {
        let strides: &[u64] = if shape.len() == 2 { &[4, 1] } else { &[1] };
        pickle.extend(pickle_text(name));
        pickle.extend(pickle_tensor(&View { key: "0", count: 16, offset: 0, shape, strides }));
    }
    pickle.extend(b"u.");
    torch(pickle, 64)
}
