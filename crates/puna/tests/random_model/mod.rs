//! LLaMAs of random weights in any format, made in memory, and requests for them. The same seed
//! makes the same model.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;

use bytes::Bytes;
use puna::config::LlamaConfig;
use puna::generate::{Request, Sampled, SamplingParams, StopConditions};
use puna::model::rope::Rope;
use puna::model::{Attention, Block, Linear, LlamaForCausalLM, LlamaModel, Mlp, Norm};
use puna_kernels::{Activation, Backend, Cpu, CpuOptions, Dtype, Format, RopeLayout, WeightData};

pub(crate) const VOCAB_SIZE: usize = 300;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;
const LAYERS: usize = 2;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;

pub(crate) type Model = LlamaForCausalLM<Cpu>;

/// A processor with two threads, or as `options` say.
pub(crate) fn cpu(options: &CpuOptions) -> Arc<Cpu> {
    Arc::new(Cpu::new(options).unwrap())
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Ids of a prompt.
    pub(crate) fn ids(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| 3 + (self.next() % (VOCAB_SIZE as u64 - 3)) as u32).collect()
    }

    /// Any bits under scales of 2^-7 to 2^-4; values of the plain formats likewise.
    fn weight(&mut self, cpu: &Cpu, format: Format, rows: usize, cols: usize) -> Weight {
        let mut bytes: Vec<u8> =
            (0..rows * format.row_bytes(cols).unwrap()).map(|_| self.next() as u8).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            // High bytes of f16 scales; of the exponent of the plain formats.
            let (at, exponent): (&[usize], u8) = match format {
                Format::F32 => (&[3], 0x3d),
                Format::Bf16 => (&[1], 0x3d),
                Format::Q4_1 | Format::Q4K => (&[1, 3], 0x20),
                Format::Q6K => (&[209], 0x20),
                _ => (&[1], 0x20),
            };
            at.iter().for_each(|&at| block[at] = block[at] & 0x80 | exponent);
        }
        let bytes = Bytes::from(bytes);
        cpu.weight(WeightData { format, rows, cols, bytes }).unwrap()
    }

    fn linear(&mut self, cpu: &Cpu, format: Format, out: usize, input: usize) -> Linear<Cpu> {
        let weight = self.weight(cpu, format, out, input);
        Linear { weight, bias: None, in_features: input, out_features: out }
    }
}

type Weight = <Cpu as Backend>::Weight;

fn norm(cpu: &Cpu) -> Norm<Cpu> {
    let mut weight = cpu.alloc(HIDDEN, "norm").unwrap();
    cpu.write(&mut weight, 0, &[1.0; HIDDEN]);
    Norm { weight, hidden_size: HIDDEN, rms_norm_eps: 1e-5 }
}

/// A model with all its matrices in `format`; `seed` decides the weights.
pub(crate) fn model(cpu: &Arc<Cpu>, format: Format, seed: u64) -> Model {
    with_vocabulary(cpu, format, seed, VOCAB_SIZE)
}

pub(crate) fn with_vocabulary(cpu: &Arc<Cpu>, format: Format, seed: u64, vocab: usize) -> Model {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 2048,
    });
    let config = LlamaConfig::from_json(&config.to_string()).unwrap();
    let (noise, backend) = (&mut Noise(seed), &**cpu);
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let embed_tokens = noise.weight(backend, format, vocab, HIDDEN);
    let blocks = (0..LAYERS)
        .map(|_| Block {
            input_norm: norm(backend),
            attention: Attention {
                q_proj: noise.linear(backend, format, q, HIDDEN),
                k_proj: noise.linear(backend, format, kv, HIDDEN),
                v_proj: noise.linear(backend, format, kv, HIDDEN),
                o_proj: noise.linear(backend, format, HIDDEN, q),
                n_heads: HEADS,
                n_kv_heads: KV_HEADS,
                head_dim: HEAD_DIM,
                rope_layout: RopeLayout::HalfSplit,
            },
            post_attention_norm: norm(backend),
            mlp: Mlp {
                gate_proj: noise.linear(backend, format, INTERMEDIATE, HIDDEN),
                up_proj: noise.linear(backend, format, INTERMEDIATE, HIDDEN),
                down_proj: noise.linear(backend, format, HIDDEN, INTERMEDIATE),
                activation: Activation::Silu,
            },
        })
        .collect();
    let lm_head = Some(noise.linear(backend, format, vocab, HIDDEN));
    let model = LlamaModel {
        embed_tokens,
        blocks,
        norm: norm(backend),
        rope: Rope::new(&config, None).unwrap(),
        dtype: Dtype::F32,
        config: Arc::new(config),
        backend: Arc::clone(cpu),
    };
    LlamaForCausalLM { model, lm_head }
}

/// A greedy request that only its length ends.
pub(crate) fn greedy(prompt_ids: &[u32], max_new_tokens: usize) -> Request {
    Request {
        prompt_ids: prompt_ids.to_vec(),
        sampling: SamplingParams::greedy(),
        stop: StopConditions::new(max_new_tokens, Vec::new()),
    }
}

pub(crate) fn ids(tokens: &[Sampled]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}
