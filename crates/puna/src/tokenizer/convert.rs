//! Other files' vocabularies as the parts of a fast tokenizer: SentencePiece models, the
//! byte-level BPE of GGUF metadata, and Llama 3's `tokenizer.model`.
//!
//! A merge list is derived from pieces and scores: every way to cut a piece into two pieces, in
//! the order that makes merging by rank equal merging by score.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::GgufTokenizer;
use super::added::AddedToken;
use super::error::TokenizerError;
use super::fast_decode::{DecoderPlan, char_of_byte};
use super::proto::PieceType;
use super::sentencepiece::SentencePiece;
use super::splitter::{self, GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN, Splitter, Step};
use super::tokenizer_json::{Parts, Template, TemplatePart, add_byte_level, split_merge};

/// Sum of squared token lengths; LLaMA's vocabularies stay below thirty million.
const MAX_SPLIT_BYTES: usize = 1 << 31;
/// Lines of a tiktoken file; Llama 3 has 128,000.
const MAX_RANKS: usize = 1 << 22;

type Merges = Vec<(String, String)>;

/// Cuts of one token into two, by the ids of the halves.
fn cuts<'t>(
    token: &'t str,
    vocab: &HashMap<String, u32>,
    cuts: &mut Vec<(u32, u32, &'t str, &'t str)>,
) {
    cuts.clear();
    for (at, _) in token.char_indices().skip(1) {
        let (left, right) = token.split_at(at);
        if let (Some(&l), Some(&r)) = (vocab.get(left), vocab.get(right)) {
            cuts.push((l, r, left, right));
        }
    }
    cuts.sort_by_key(|&(left, right, ..)| (left, right));
}

fn check_lengths<'t>(
    tokens: impl Iterator<Item = &'t str>,
    file: &str,
) -> Result<(), TokenizerError> {
    let squares = tokens.map(|token| token.len().saturating_mul(token.len()));
    if squares.fold(0usize, usize::saturating_add) > MAX_SPLIT_BYTES {
        return Err(TokenizerError::malformed(file, "the tokens are too long to be real"));
    }
    Ok(())
}

/// Merges of a SentencePiece model: descending score, then longer halves first.
pub(super) fn sentencepiece_merges(model: &SentencePiece, vocab: &HashMap<String, u32>) -> Merges {
    let mut scored: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    let mut found = Vec::new();
    for piece in &model.proto().pieces {
        cuts(&piece.text, vocab, &mut found);
        scored.extend(found.iter().map(|&(_, _, left, right)| {
            (piece.score, left.chars().count(), right.chars().count(), left, right)
        }));
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    scored.into_iter().map(|(_, _, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// The parts of the fast tokenizer that Transformers makes of a SentencePiece model.
pub(super) fn from_sentencepiece(
    model: &SentencePiece,
    legacy: bool,
    add_prefix_space: bool,
    file: &str,
) -> Result<Parts, TokenizerError> {
    let proto = model.proto();
    check_lengths(proto.pieces.iter().map(|piece| piece.text.as_str()), file)?;
    let ids = proto.pieces.iter().enumerate();
    let vocab = ids.map(|(id, piece)| (piece.text.clone(), id as u32)).collect();
    let mut parts = Parts {
        merges: sentencepiece_merges(model, &vocab),
        vocab,
        unk_token: model.id_to_piece(model.unk_id()).map(str::to_owned),
        fuse_unk: true,
        byte_fallback: proto.byte_fallback,
        decoder: Some(DecoderPlan::sentencepiece(add_prefix_space)),
        ..Parts::default()
    };
    if legacy {
        let replace = Replace::new(" ", "\u{2581}")
            .map_err(|error| TokenizerError::malformed(file, error.to_string()))?;
        let mut steps = vec![replace.into()];
        if add_prefix_space {
            steps.insert(0, Prepend::new("\u{2581}".to_owned()).into());
        }
        parts.normalizer = Some(Sequence::new(steps).into());
    } else {
        let scheme = if add_prefix_space { PrependScheme::First } else { PrependScheme::Never };
        let step = Metaspace::new('\u{2581}', scheme, false);
        parts.splitter.steps.push(Step::Library(Box::new(step.into())));
    }
    for (id, piece) in proto.pieces.iter().enumerate() {
        let token = match piece.kind {
            PieceType::Unknown | PieceType::Control => AddedToken::new(&*piece.text, true),
            PieceType::UserDefined => {
                AddedToken { normalized: false, ..AddedToken::new(&*piece.text, false) }
            }
            _ => continue,
        };
        parts.added.push((id as u32, token));
    }
    Ok(parts)
}

/// A kind of pre-tokenizer that GGUF metadata names.
struct Kind {
    /// Patterns, one after the other; each match is a word of its own.
    patterns: &'static [&'static str],
    /// A word that is in the vocabulary is taken as it is.
    ignore_merges: bool,
    add_bos: bool,
}

const GPT2: Kind = Kind { patterns: &[GPT2_PATTERN], ignore_merges: false, add_bos: false };
const DEFAULT: Kind = Kind {
    patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"],
    ..GPT2
};
const LLAMA3: Kind = Kind { patterns: &[LLAMA3_PATTERN], ignore_merges: true, add_bos: true };
const DIGITS: Kind = Kind { patterns: &[r"\p{N}", GPT2_PATTERN], ..GPT2 };
const QWEN2: Kind = Kind { patterns: &[QWEN2_PATTERN], ..GPT2 };
const FALCON: Kind =
    Kind { patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]"], ..GPT2 };
const DEEPSEEK_CODER: Kind = Kind {
    patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
    ..GPT2
};
const TEKKEN: Kind = Kind {
    patterns: &[
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    ignore_merges: true,
    add_bos: true,
};

/// The kinds that files of LLaMA's architecture name in `tokenizer.ggml.pre`.
fn kind(pre: Option<&str>) -> Result<&'static Kind, TokenizerError> {
    Ok(match pre.unwrap_or("default") {
        "default" => &DEFAULT,
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2" => {
            &LLAMA3
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => {
            &Kind { ignore_merges: false, add_bos: false, ..LLAMA3 }
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            &DIGITS
        }
        "gpt-2" | "gpt2" | "mpt" | "olmo" | "jais" | "phi-2" | "exaone4" | "trillion" => &GPT2,
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "megrez" | "hunyuan" => &QWEN2,
        "falcon" => &FALCON,
        "deepseek-coder" => &DEEPSEEK_CODER,
        "tekken" => &TEKKEN,
        other => {
            let what = format!("tokenizer.ggml.pre {other:?}");
            let hint = "use the model's folder with tokenizer.json, or a GGUF with a known kind";
            return Err(TokenizerError::unsupported("GGUF metadata", what, hint));
        }
    })
}

/// The parts of a byte-level BPE tokenizer in GGUF metadata, and whether it adds BOS by default.
pub(super) fn from_gguf(gguf: &GgufTokenizer) -> Result<(Parts, bool), TokenizerError> {
    const FILE: &str = "GGUF metadata tokenizer.ggml";
    gguf.check(FILE)?;
    let kind = kind(gguf.pre.as_deref())?;
    let tokens = gguf.tokens.iter().enumerate();
    let vocab = tokens.map(|(id, token)| (token.clone(), id as u32)).collect();
    let mut merges = Vec::with_capacity(gguf.merges.len());
    for (index, merge) in gguf.merges.iter().enumerate() {
        let (left, right) = split_merge(merge).ok_or_else(|| {
            let what = format!("merges[{index}] {merge:?} is not two tokens");
            TokenizerError::malformed(FILE, what)
        })?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let mut splitter = Splitter::default();
    if gguf.add_space_prefix == Some(true) {
        splitter.steps.push(Step::PrefixSpace);
    }
    for pattern in kind.patterns {
        splitter.steps.push(splitter::isolated(pattern, FILE)?);
    }
    add_byte_level(&mut splitter.steps, false, false);
    let parts = Parts {
        vocab,
        merges,
        ignore_merges: kind.ignore_merges,
        splitter,
        decoder: Some(DecoderPlan::ByteLevel),
        added: gguf.added_tokens(),
        ..Parts::default()
    };
    Ok((parts, kind.add_bos))
}

/// The last 256 ids of a Llama 3 vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Llama3Specials {
    /// Llama 3.
    V3,
    /// Llama 3.1 and later.
    V3_1,
}

const N_SPECIALS: usize = 256;

impl Llama3Specials {
    fn names(self) -> Vec<String> {
        const START: &str = "<|start_header_id|>";
        const END: &str = "<|end_header_id|>";
        let named: &[&str] = match self {
            // An empty name is the next reserved one.
            Self::V3 => &["", "", "", "", START, END, "", "<|eot_id|>"],
            Self::V3_1 => &[
                "",
                "",
                "<|finetune_right_pad_id|>",
                "",
                START,
                END,
                "<|eom_id|>",
                "<|eot_id|>",
                "<|python_tag|>",
            ],
        };
        let mut names = vec!["<|begin_of_text|>".to_owned(), "<|end_of_text|>".to_owned()];
        let mut n_reserved = 0;
        for name in named.iter().copied().chain(std::iter::repeat("")) {
            if names.len() == N_SPECIALS {
                break;
            }
            if name.is_empty() {
                names.push(format!("<|reserved_special_token_{n_reserved}|>"));
                n_reserved += 1;
            } else {
                names.push(name.to_owned());
            }
        }
        names
    }
}

/// Whether bytes look like a tiktoken vocabulary: base64, a space, a number.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    line.len() < 1024 && std::str::from_utf8(line).is_ok_and(|line| rank_line(line).is_some())
}

fn rank_line(line: &str) -> Option<(Vec<u8>, u32)> {
    let (token, rank) = line.trim_end_matches('\r').split_once(' ')?;
    let token = STANDARD.decode(token).ok().filter(|token| !token.is_empty())?;
    Some((token, rank.parse().ok()?))
}

/// The parts of a fast tokenizer from Llama 3's `tokenizer.model`; `file` names it in errors.
pub(super) fn from_tiktoken(
    bytes: &[u8],
    specials: Llama3Specials,
    file: &str,
) -> Result<Parts, TokenizerError> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| TokenizerError::malformed(file, "not UTF-8"))?;
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let malformed =
            |what: &str| TokenizerError::malformed(file, format!("line {}: {what}", index + 1));
        let (token, rank) =
            rank_line(line).ok_or_else(|| malformed("not a base64 token and its rank"))?;
        if rank as usize != tokens.len() || tokens.len() == MAX_RANKS {
            return Err(malformed("the ranks do not count up from 0"));
        }
        tokens.push(token.into_iter().map(char_of_byte).collect::<String>());
    }
    check_lengths(tokens.iter().map(String::as_str), file)?;
    let ids = tokens.iter().enumerate();
    let vocab: HashMap<String, u32> = ids.map(|(id, token)| (token.clone(), id as u32)).collect();
    if vocab.len() != tokens.len() {
        return Err(TokenizerError::malformed(file, "a token has two ranks"));
    }
    let (mut merges, mut found) = (Vec::new(), Vec::new());
    for token in &tokens {
        cuts(token, &vocab, &mut found);
        let pairs = found.iter().map(|&(_, _, left, right)| (left.to_owned(), right.to_owned()));
        merges.extend(pairs);
    }
    let bos = tokens.len() as u32;
    let names = specials.names().into_iter().enumerate();
    let added = names.map(|(at, name)| (bos + at as u32, AddedToken::new(name, true))).collect();
    let mut splitter = Splitter::default();
    splitter.steps.push(splitter::isolated(LLAMA3_PATTERN, file)?);
    add_byte_level(&mut splitter.steps, false, false);
    let special = |type_id| TemplatePart::Special { ids: vec![bos], type_id };
    let sequence = |second| TemplatePart::Sequence { second, type_id: u32::from(second) };
    Ok(Parts {
        vocab,
        merges,
        ignore_merges: true,
        splitter,
        decoder: Some(DecoderPlan::ByteLevel),
        template: Template {
            single: vec![special(0), sequence(false)],
            pair: vec![special(0), sequence(false), special(1), sequence(true)],
        },
        added,
        ..Parts::default()
    })
}

/// Cuts text where Meta's own code does before it encodes: every 400,000 characters, and in runs
/// of more than 25,000 characters that are all white space, or all not.
pub(super) fn meta_chunks(text: &str) -> Vec<&str> {
    const MAX_CHUNK: usize = 400_000;
    const MAX_RUN: usize = 25_000;
    // As many bytes are at most as many characters.
    if text.len() <= MAX_RUN {
        return vec![text];
    }
    let mut chunks = Vec::new();
    let (mut begin, mut in_chunk, mut in_run, mut was_space) = (0, 0, 0, None);
    for (at, character) in text.char_indices() {
        let is_space = character.is_whitespace();
        in_chunk += 1;
        in_run += 1;
        let ends_chunk = in_chunk > MAX_CHUNK;
        if ends_chunk {
            in_chunk = 1;
        }
        if was_space != Some(is_space) || ends_chunk {
            was_space = Some(is_space);
            in_run = 1;
        }
        if ends_chunk || in_run > MAX_RUN {
            chunks.push(&text[begin..at]);
            begin = at;
            in_run = 1;
        }
    }
    chunks.push(&text[begin..]);
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_special_tokens_of_llama_3_stand_where_meta_put_them() {
        let old = Llama3Specials::V3.names();
        assert_eq!(old.len(), 256);
        assert_eq!(old[2], "<|reserved_special_token_0|>");
        assert_eq!(old[5], "<|reserved_special_token_3|>");
        assert_eq!(old[6], "<|start_header_id|>");
        assert_eq!(old[8], "<|reserved_special_token_4|>");
        assert_eq!(old[9], "<|eot_id|>");
        assert_eq!(old[255], "<|reserved_special_token_250|>");
        let new = Llama3Specials::V3_1.names();
        assert_eq!(new.len(), 256);
        assert_eq!(new[4], "<|finetune_right_pad_id|>");
        assert_eq!(new[5], "<|reserved_special_token_2|>");
        assert_eq!(new[8], "<|eom_id|>");
        assert_eq!(new[9], "<|eot_id|>");
        assert_eq!(new[10], "<|python_tag|>");
        assert_eq!(new[11], "<|reserved_special_token_3|>");
        assert_eq!(new[255], "<|reserved_special_token_247|>");
    }

    #[test]
    fn long_runs_are_cut_as_meta_cuts_them() {
        let sizes = |text: &str| -> Vec<usize> {
            meta_chunks(text).iter().map(|chunk| chunk.chars().count()).collect()
        };
        assert_eq!(sizes(""), [0]);
        assert_eq!(sizes(&"é".repeat(25_000)), [25_000]);
        assert_eq!(sizes(&"é".repeat(60_000)), [25_000, 25_000, 10_000]);
        let text = format!("{}{}", "a".repeat(20_000), " ".repeat(30_000));
        assert_eq!(sizes(&text), [45_000, 5_000]);
        assert_eq!(sizes(&"ab ".repeat(200_000)), [400_000, 200_000]);
    }
}
