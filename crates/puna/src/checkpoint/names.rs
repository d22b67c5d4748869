//! The table of tensor names: Hugging Face (ours) | Meta | GGUF, with each tensor's shape. A name of
//! any of the three enters, ours leaves; a configuration enters, the names that a model must and
//! may hold leave.

use crate::config::LlamaConfig;

/// What a tensor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the glossary's")]
pub enum Role {
    EmbedTokens,
    InputNorm,
    QProj,
    KProj,
    VProj,
    OProj,
    PostAttentionNorm,
    GateProj,
    UpProj,
    DownProj,
    Norm,
    LmHead,
    Score,
    QaOutputs,
}

/// A size that the configuration gives.
#[derive(Clone, Copy, Debug)]
enum Dim {
    Vocab,
    Hidden,
    Intermediate,
    /// `num_attention_heads * head_dim`.
    Queries,
    /// `num_key_value_heads * head_dim`.
    Keys,
    Labels,
    /// Start and end of an answer.
    Two,
}

/// One line of the table. `{}` stands for the number of a block.
#[derive(Debug)]
pub struct Row {
    /// What the tensor does.
    pub role: Role,
    /// A bias rather than a matrix or a norm's gain.
    pub is_bias: bool,
    hf: &'static str,
    meta: Option<&'static str>,
    gguf: Option<&'static str>,
    shape: &'static [Dim],
}

const fn row(
    role: Role,
    hf: &'static str,
    meta: Option<&'static str>,
    gguf: Option<&'static str>,
    shape: &'static [Dim],
) -> Row {
    Row { role, is_bias: shape.len() == 1 && is_bias(hf), hf, meta, gguf, shape }
}

/// Whether a name ends in `.bias`.
const fn is_bias(name: &str) -> bool {
    matches!(name.as_bytes(), [.., b'.', b'b', b'i', b'a', b's'])
}

#[rustfmt::skip]
const TABLE: [Row; 23] = {
    use Dim::{Hidden, Intermediate, Keys, Labels, Queries, Two, Vocab};
    use Role::*;
    [
        row(EmbedTokens, "embed_tokens.weight", Some("tok_embeddings.weight"), Some("token_embd.weight"), &[Vocab, Hidden]),
        row(InputNorm, "layers.{}.input_layernorm.weight", Some("layers.{}.attention_norm.weight"), Some("blk.{}.attn_norm.weight"), &[Hidden]),
        row(QProj, "layers.{}.self_attn.q_proj.weight", Some("layers.{}.attention.wq.weight"), Some("blk.{}.attn_q.weight"), &[Queries, Hidden]),
        row(KProj, "layers.{}.self_attn.k_proj.weight", Some("layers.{}.attention.wk.weight"), Some("blk.{}.attn_k.weight"), &[Keys, Hidden]),
        row(VProj, "layers.{}.self_attn.v_proj.weight", Some("layers.{}.attention.wv.weight"), Some("blk.{}.attn_v.weight"), &[Keys, Hidden]),
        row(OProj, "layers.{}.self_attn.o_proj.weight", Some("layers.{}.attention.wo.weight"), Some("blk.{}.attn_output.weight"), &[Hidden, Queries]),
        row(QProj, "layers.{}.self_attn.q_proj.bias", Some("layers.{}.attention.wq.bias"), Some("blk.{}.attn_q.bias"), &[Queries]),
        row(KProj, "layers.{}.self_attn.k_proj.bias", Some("layers.{}.attention.wk.bias"), Some("blk.{}.attn_k.bias"), &[Keys]),
        row(VProj, "layers.{}.self_attn.v_proj.bias", Some("layers.{}.attention.wv.bias"), Some("blk.{}.attn_v.bias"), &[Keys]),
        row(OProj, "layers.{}.self_attn.o_proj.bias", Some("layers.{}.attention.wo.bias"), Some("blk.{}.attn_output.bias"), &[Hidden]),
        row(PostAttentionNorm, "layers.{}.post_attention_layernorm.weight", Some("layers.{}.ffn_norm.weight"), Some("blk.{}.ffn_norm.weight"), &[Hidden]),
        row(GateProj, "layers.{}.mlp.gate_proj.weight", Some("layers.{}.feed_forward.w1.weight"), Some("blk.{}.ffn_gate.weight"), &[Intermediate, Hidden]),
        row(UpProj, "layers.{}.mlp.up_proj.weight", Some("layers.{}.feed_forward.w3.weight"), Some("blk.{}.ffn_up.weight"), &[Intermediate, Hidden]),
        row(DownProj, "layers.{}.mlp.down_proj.weight", Some("layers.{}.feed_forward.w2.weight"), Some("blk.{}.ffn_down.weight"), &[Hidden, Intermediate]),
        row(GateProj, "layers.{}.mlp.gate_proj.bias", None, Some("blk.{}.ffn_gate.bias"), &[Intermediate]),
        row(UpProj, "layers.{}.mlp.up_proj.bias", None, Some("blk.{}.ffn_up.bias"), &[Intermediate]),
        row(DownProj, "layers.{}.mlp.down_proj.bias", None, Some("blk.{}.ffn_down.bias"), &[Hidden]),
        row(Norm, "norm.weight", Some("norm.weight"), Some("output_norm.weight"), &[Hidden]),
        row(LmHead, "lm_head.weight", Some("output.weight"), Some("output.weight"), &[Vocab, Hidden]),
        row(Score, "score.weight", None, None, &[Labels, Hidden]),
        row(Score, "score.bias", None, None, &[Labels]),
        row(QaOutputs, "qa_outputs.weight", None, None, &[Two, Hidden]),
        row(QaOutputs, "qa_outputs.bias", None, None, &[Two]),
    ]
};

/// Whose names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Hugging Face: `model.layers.0.…`, with or without the prefix.
    HuggingFace,
    /// `consolidated.*.pth`.
    Meta,
    /// llama.cpp.
    Gguf,
}

/// A line of the table for one block.
#[derive(Clone, Copy, Debug)]
pub struct TensorName {
    /// The line.
    pub row: &'static Row,
    /// Number of the block; `None` outside of the blocks.
    pub layer: Option<usize>,
}

impl TensorName {
    /// Reads a name of a file.
    pub fn parse(naming: Naming, name: &str) -> Option<Self> {
        let bare = match naming {
            // A question-answering model says `transformer` for `model`.
            Naming::HuggingFace => {
                let prefixed = name.strip_prefix("model.").or(name.strip_prefix("transformer."));
                prefixed.unwrap_or(name)
            }
            Naming::Meta | Naming::Gguf => name,
        };
        let found = TABLE.iter().find_map(|row| {
            let layer = matched(row.template(naming)?, bare)?;
            Some(Self { row, layer })
        })?;
        // A head never has the prefix.
        let is_prefixed_head = bare.len() != name.len() && !found.row.is_backbone();
        if is_prefixed_head { None } else { Some(found) }
    }

    /// The name in Hugging Face's layout of a model with a head.
    pub fn hf(&self) -> String {
        let prefix = if self.row.is_backbone() { "model." } else { "" };
        format!("{prefix}{}", self.fill(self.row.hf))
    }

    /// The name in a layout; `None` where that has no such tensor.
    pub fn in_naming(&self, naming: Naming) -> Option<String> {
        match naming {
            Naming::HuggingFace => Some(self.hf()),
            other => self.row.template(other).map(|template| self.fill(template)),
        }
    }

    /// The shape that the configuration asks for.
    pub fn shape(&self, config: &LlamaConfig) -> Vec<usize> {
        self.row.shape.iter().map(|dim| dim.size(config)).collect()
    }

    fn fill(&self, template: &str) -> String {
        match self.layer {
            Some(layer) => template.replacen("{}", &layer.to_string(), 1),
            None => template.to_owned(),
        }
    }
}

impl Row {
    fn template(&self, naming: Naming) -> Option<&'static str> {
        match naming {
            Naming::HuggingFace => Some(self.hf),
            Naming::Meta => self.meta,
            Naming::Gguf => self.gguf,
        }
    }

    /// Part of `LlamaModel`, rather than of a head on it.
    pub fn is_backbone(&self) -> bool {
        !matches!(self.role, Role::LmHead | Role::Score | Role::QaOutputs)
    }

    /// Whether rows are permuted between the two layouts of RoPE.
    pub fn is_rotated(&self) -> bool {
        matches!(self.role, Role::QProj | Role::KProj)
    }

    fn is_per_layer(&self) -> bool {
        self.hf.contains("{}")
    }
}

impl Dim {
    fn size(self, config: &LlamaConfig) -> usize {
        match self {
            Self::Vocab => config.vocab_size,
            Self::Hidden => config.hidden_size,
            Self::Intermediate => config.intermediate_size,
            Self::Queries => config.num_attention_heads * config.head_dim,
            Self::Keys => config.num_key_value_heads * config.head_dim,
            Self::Labels => config.num_labels(),
            Self::Two => 2,
        }
    }
}

/// Whether `name` is an instance of `template`, and of which block.
fn matched(template: &str, name: &str) -> Option<Option<usize>> {
    let Some((before, after)) = template.split_once("{}") else {
        return (template == name).then_some(None);
    };
    let digits = name.strip_prefix(before)?.strip_suffix(after)?;
    let layer: usize = digits.parse().ok()?;
    (layer.to_string() == digits).then_some(Some(layer))
}

/// Whether a file may hold this name without a model having a use for it.
pub fn is_ignorable(naming: Naming, name: &str) -> bool {
    match naming {
        // Written by Transformers up to 4.30, one for each block.
        Naming::HuggingFace => name.ends_with("rotary_emb.inv_freq"),
        Naming::Meta => name == "rope.freqs",
        // The first three are read where they are needed, by name.
        Naming::Gguf => {
            const SIDE: [&str; 3] =
                ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
            SIDE.contains(&name) || name.ends_with(".attn_rot_embd.weight")
        }
    }
}

/// The names that a model of this configuration must hold. `biases` is whether every bias must be
/// there; GGUF files leave out those that are zero.
pub fn required(config: &LlamaConfig, biases: bool) -> Vec<TensorName> {
    let needed = |row: &&'static Row| is_required(row, config) && (biases || !row.is_bias);
    let rows: Vec<&'static Row> = TABLE.iter().filter(needed).collect();
    let outside = rows.iter().filter(|row| !row.is_per_layer());
    let mut names: Vec<TensorName> = outside.map(|row| TensorName { row, layer: None }).collect();
    for layer in 0..config.num_hidden_layers {
        let inside = rows.iter().filter(|row| row.is_per_layer());
        names.extend(inside.map(|row| TensorName { row, layer: Some(layer) }));
    }
    names
}

fn is_required(row: &Row, config: &LlamaConfig) -> bool {
    let class = |part: &str| config.architectures.iter().any(|name| name.contains(part));
    match (row.role, row.is_bias) {
        (Role::LmHead, _) => class("ForCausalLM") && !config.tie_word_embeddings,
        (Role::Score, false) => class("SequenceClassification") || class("TokenClassification"),
        (Role::Score, true) => class("TokenClassification"),
        (Role::QaOutputs, _) => class("QuestionAnswering"),
        _ => is_allowed(row, config),
    }
}

/// Whether a model of this configuration has a place for the tensor.
pub fn is_expected(name: &TensorName, config: &LlamaConfig) -> bool {
    let inside = name.layer.is_none_or(|layer| layer < config.num_hidden_layers);
    inside && is_allowed(name.row, config)
}

fn is_allowed(row: &Row, config: &LlamaConfig) -> bool {
    match row.role {
        _ if !row.is_bias => true,
        Role::QProj | Role::KProj | Role::VProj | Role::OProj => config.attention_bias,
        Role::GateProj | Role::UpProj | Role::DownProj => config.mlp_bias,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_reads_back_in_every_naming() {
        for row in &TABLE {
            let layer = row.is_per_layer().then_some(17);
            let name = TensorName { row, layer };
            for naming in [Naming::HuggingFace, Naming::Meta, Naming::Gguf] {
                let Some(text) = name.in_naming(naming) else { continue };
                let read = TensorName::parse(naming, &text).expect("reads back");
                assert_eq!((read.hf(), read.layer), (name.hf(), layer), "{text}");
            }
        }
    }

    #[test]
    fn prefixes_of_old_and_bare_models_are_accepted() {
        let ours = "model.layers.3.mlp.up_proj.weight";
        for name in [ours, "layers.3.mlp.up_proj.weight", "transformer.layers.3.mlp.up_proj.weight"]
        {
            let read = TensorName::parse(Naming::HuggingFace, name).expect("is in the table");
            assert_eq!(read.hf(), ours);
        }
        for name in
            ["model.lm_head.weight", "layers.03.mlp.up_proj.weight", "layers.+3.mlp.up_proj.weight"]
        {
            assert!(TensorName::parse(Naming::HuggingFace, name).is_none(), "{name}");
        }
    }

    #[test]
    fn required_names_follow_the_configuration() {
        let mut config = LlamaConfig { num_hidden_layers: 2, ..LlamaConfig::default() };
        assert_eq!(required(&config, true).len(), 2 + 2 * 9);
        config.architectures = vec!["LlamaForCausalLM".to_owned()];
        config.attention_bias = true;
        config.mlp_bias = true;
        assert_eq!(required(&config, true).len(), 3 + 2 * 16);
        assert_eq!(required(&config, false).len(), 3 + 2 * 9);
        config.tie_word_embeddings = true;
        assert_eq!(required(&config, true).len(), 2 + 2 * 16);
    }
}
