//! A class as named tensors, in the order of the Hugging Face layout: each gives its rows as values
//! or in the bytes of a type, whatever format the model holds it in. Rows of queries and keys that a
//! GGUF file keeps interleaved come half-split.

use std::ops::Range;

use half::{bf16, f16};
use puna_kernels::{Backend, Dtype, OutOfMemory, RopeLayout};

use super::LlamaClass;
use crate::model::{Attention, Linear, LlamaModel};

/// A tensor of a class.
#[derive(Debug)]
pub struct StateTensor<'a, B: Backend> {
    /// Its name in the class's files.
    pub name: String,
    /// `(rows, cols)`, or `(len)` for a vector.
    pub shape: Vec<usize>,
    backend: &'a B,
    values: Values<'a, B>,
    /// Where rows are interleaved: rotated rows and all rows of a head.
    heads: Option<(usize, usize)>,
}

#[derive(Debug)]
enum Values<'a, B: Backend> {
    Matrix(&'a B::Weight),
    Vector(&'a B::Buf),
}

impl<B: Backend> StateTensor<'_, B> {
    /// How many values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values.
    ///
    /// # Errors
    /// No memory for them.
    pub fn to_f32(&self) -> Result<Vec<f32>, OutOfMemory> {
        let rows = self.shape.first().copied().unwrap_or(0);
        self.rows(0..rows)
    }

    /// The values of some rows; of a vector, of some places.
    ///
    /// # Errors
    /// No memory for them.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>, OutOfMemory> {
        let width = self.shape.get(1).copied().unwrap_or(1);
        let mut out = vec![0.0; rows.len() * width];
        match self.values {
            Values::Matrix(weight) => {
                let ids: Vec<u32> = rows.map(|row| self.stored_row(row) as u32).collect();
                let mut buf = self.backend.alloc(out.len(), &self.name)?;
                self.backend.embed(weight, &ids, Dtype::F32, &mut buf);
                self.backend.read(&buf, 0, &mut out);
            }
            Values::Vector(buf) => {
                for (value, row) in out.iter_mut().zip(rows) {
                    self.backend.read(buf, self.stored_row(row), std::slice::from_mut(value));
                }
            }
        }
        Ok(out)
    }

    /// Where the model holds row `row` of the half-split layout.
    fn stored_row(&self, row: usize) -> usize {
        let Some((rotated, head_dim)) = self.heads else { return row };
        let (head, at) = (row / head_dim, row % head_dim);
        let pairs = rotated / 2;
        let stored = match at {
            at if at >= rotated => at,
            at if at < pairs => 2 * at,
            at => 2 * (at - pairs) + 1,
        };
        head * head_dim + stored
    }
}

/// The tensors of a class. A head that is the embedding is left out.
pub(super) fn tensors<B: Backend, C: LlamaClass<B>>(class: &C) -> Vec<StateTensor<'_, B>> {
    let model = class.decoder();
    let mut list = List { backend: &*model.backend, tensors: Vec::new() };
    let prefix = C::PREFIX;
    let (vocab, hidden) = (model.config.vocab_size, model.config.hidden_size);
    list.matrix(format!("{prefix}embed_tokens.weight"), (vocab, hidden), &model.embed_tokens);
    for (i, block) in model.blocks.iter().enumerate() {
        let prefix = format!("{prefix}layers.{i}");
        list.vector(format!("{prefix}.input_layernorm.weight"), hidden, &block.input_norm.weight);
        list.attention(&format!("{prefix}.self_attn"), model, &block.attention);
        let norm = &block.post_attention_norm.weight;
        list.vector(format!("{prefix}.post_attention_layernorm.weight"), hidden, norm);
        for (name, linear) in [
            ("gate_proj", &block.mlp.gate_proj),
            ("up_proj", &block.mlp.up_proj),
            ("down_proj", &block.mlp.down_proj),
        ] {
            list.linear(&format!("{prefix}.mlp.{name}"), linear, None);
        }
    }
    list.vector(format!("{prefix}norm.weight"), hidden, &model.norm.weight);
    if let Some((name, head)) = class.head() {
        list.linear(name, head, None);
    }
    list.tensors
}

/// Tensors so far.
struct List<'a, B: Backend> {
    backend: &'a B,
    tensors: Vec<StateTensor<'a, B>>,
}

impl<'a, B: Backend> List<'a, B> {
    fn matrix(&mut self, name: String, (rows, cols): (usize, usize), weight: &'a B::Weight) {
        let (shape, values) = (vec![rows, cols], Values::Matrix(weight));
        self.tensors.push(StateTensor { name, shape, backend: self.backend, values, heads: None });
    }

    fn vector(&mut self, name: String, len: usize, values: &'a B::Buf) {
        let (shape, values) = (vec![len], Values::Vector(values));
        self.tensors.push(StateTensor { name, shape, backend: self.backend, values, heads: None });
    }

    fn linear(&mut self, name: &str, linear: &'a Linear<B>, heads: Option<(usize, usize)>) {
        let first = self.tensors.len();
        let shape = (linear.out_features, linear.in_features);
        self.matrix(format!("{name}.weight"), shape, &linear.weight);
        if let Some(bias) = &linear.bias {
            self.vector(format!("{name}.bias"), linear.out_features, bias);
        }
        self.tensors[first..].iter_mut().for_each(|tensor| tensor.heads = heads);
    }

    fn attention(&mut self, name: &str, model: &LlamaModel<B>, attention: &'a Attention<B>) {
        let rotated = (model.rope.rotary_dim(), attention.head_dim);
        let heads = (attention.rope_layout == RopeLayout::Interleaved).then_some(rotated);
        self.linear(&format!("{name}.q_proj"), &attention.q_proj, heads);
        self.linear(&format!("{name}.k_proj"), &attention.k_proj, heads);
        self.linear(&format!("{name}.v_proj"), &attention.v_proj, None);
        self.linear(&format!("{name}.o_proj"), &attention.o_proj, None);
    }
}

/// Appends values in the bytes of a type, rounded to it.
pub fn encode(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) {
    match dtype {
        Dtype::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        Dtype::F16 => out.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
        Dtype::Bf16 => out.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
    }
}
