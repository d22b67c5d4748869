//! What can be wrong with the inputs of a forward or a loss: they do not fit each other, the model
//! or the cache. Where Transformers or PyTorch refuse the same thing, the text is theirs.

use puna_kernels::OutOfMemory;

use crate::config::ProblemType;

/// Inputs that do not fit each other or the model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// Neither ids nor vectors, or both.
    #[error("You must specify exactly one of input_ids or inputs_embeds")]
    ExactlyOne,
    /// No rows, or rows of no tokens.
    #[error("{field} holds no tokens")]
    Empty {
        /// Name of the argument.
        field: &'static str,
    },
    /// A slice has the wrong number of values.
    #[error("{field} has {found} values; {expected} were expected")]
    Length {
        /// Name of the argument.
        field: &'static str,
        /// Values it has.
        found: usize,
        /// Values it should have.
        expected: usize,
    },
    /// A token id outside the vocabulary.
    #[error("input_ids holds {id}, but the vocabulary has {vocab_size} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// `logits_to_keep` names a position that is not there.
    #[error("index {index} is out of bounds for dimension 1 with size {len}")]
    Position {
        /// The position asked for.
        index: i64,
        /// Tokens in a row.
        len: usize,
    },
    /// A position that no sequence reaches.
    #[error("position_ids hold {position}, but positions end at {}", i32::MAX)]
    PositionId {
        /// The position.
        position: u32,
    },
    /// A 4-D mask of a shape that does not broadcast to that of the scores.
    #[error(
        "attention_mask has shape {found:?}, which does not broadcast to the scores' (batch, heads, queries, keys) = {expected:?}"
    )]
    MaskShape {
        /// Its shape.
        found: [usize; 4],
        /// Shape of the scores.
        expected: [usize; 4],
    },
    /// A 4-D mask that is not the same for every head.
    #[error(
        "attention_mask differs between the heads of row {row}; Puna takes one mask for all heads: give shape (batch, 1, queries, keys)"
    )]
    MaskHeads {
        /// Row of the batch.
        row: usize,
    },
    /// A 4-D mask that lets tokens see the empty end of a static cache.
    #[error(
        "attention_mask lets a token see key {key}, but the cache holds only {n_keys} keys so far; mask the rest"
    )]
    MaskBeyond {
        /// The first such key.
        key: usize,
        /// Keys that there are.
        n_keys: usize,
    },
    /// More tokens than a static cache has room for.
    #[error("the cache has room for {max_cache_len} tokens, but {needed} are needed")]
    CacheFull {
        /// Its room.
        max_cache_len: usize,
        /// Tokens that each row would have.
        needed: usize,
    },
    /// The cache holds another number of rows.
    #[error("the cache holds {cached} rows, but {batch} were given")]
    CacheBatch {
        /// Rows of the cache.
        cached: usize,
        /// Rows of the inputs.
        batch: usize,
    },
    /// The cache was filled by a model of another shape.
    #[error("the cache was filled by a model with other layers or heads")]
    CacheModel,
    /// A row that the cache does not have.
    #[error("index {index} is out of bounds for a cache of {rows} rows")]
    CacheRow {
        /// The row asked for.
        index: usize,
        /// Rows of the cache.
        rows: usize,
    },
    /// The old meaning of `crop`.
    #[error(
        "Calling `crop` with a positive value (`{tokens}`) is not supported. Please use a negative integer to remove that number of tokens from the cache instead."
    )]
    Crop {
        /// What was given.
        tokens: i64,
    },
    /// A width of quantised keys and values that the kernels do not have.
    #[error(
        "a quantised cache of {bits} bits does not exist here; Puna keeps keys and values in 8 bits (q8_0): ask for nbits=8"
    )]
    CacheBits {
        /// The width asked for.
        bits: u32,
    },
    /// Several rows, and no token that says where they end.
    #[error("Cannot handle batch sizes > 1 if no padding token is defined.")]
    NoPaddingToken,
    /// A label that names no class.
    #[error("Target {label} is out of bounds.")]
    Label {
        /// The label.
        label: i64,
    },
    /// Another number of labels than of predictions.
    #[error("Expected input batch_size ({predictions}) to match target batch_size ({labels}).")]
    LabelCount {
        /// Rows of logits.
        predictions: usize,
        /// Labels.
        labels: usize,
    },
    /// Labels of a type that the loss does not take.
    #[error("{}", label_type(*problem_type))]
    LabelType {
        /// What the head is trained for.
        problem_type: ProblemType,
    },
    /// A loss that does not exist.
    #[error("Invalid problem type: {0}")]
    ProblemType(String),
    /// No memory for the forward.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// PyTorch's own words.
fn label_type(problem_type: ProblemType) -> &'static str {
    match problem_type {
        ProblemType::SingleLabelClassification => "expected scalar type Long but found Float",
        ProblemType::MultiLabelClassification | ProblemType::Regression => {
            "result type Float can't be cast to the desired output type Long"
        }
    }
}

/// `found` values where `expected` belong.
pub(super) fn expect_len(
    field: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), InputError> {
    if found == expected { Ok(()) } else { Err(InputError::Length { field, found, expected }) }
}
