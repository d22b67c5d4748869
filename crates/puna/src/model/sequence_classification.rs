//! The classifier of sequences: one row of hidden states is taken from each sequence, that of its
//! last token, and `logits = h scoreᵀ` `(batch, num_labels)` leave. Which token is the last is read
//! off the padding token of the configuration.

use std::sync::Arc;

use puna_kernels::Backend;

use super::loss::{classification_loss, infer_problem_type};
use super::{Cache, InputError, Labels, Linear, LlamaModel, PaddedInputs, Tokens, Trace};

/// A LLaMA that classifies sequences.
#[derive(Debug)]
pub struct LlamaForSequenceClassification<B: Backend> {
    /// The decoder.
    pub model: LlamaModel<B>,
    /// `(num_labels, hidden_size)`, no bias.
    pub score: Linear<B>,
}

/// How the last token of a row is found. Both find it where padding stands at one side only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The rightmost token that is not the padding token; the first of a row of nothing else
    /// (Transformers 5).
    #[default]
    RightmostToken,
    /// The token before the first padding token; the last of a row that has none, or begins with
    /// one (Transformers 4.35).
    BeforeFirstPad,
}

/// Result of [`LlamaForSequenceClassification::forward`].
#[derive(Debug, Default)]
pub struct SequenceClassifierOutput {
    /// `(batch, num_labels)`.
    pub logits: Vec<f32>,
    /// What the user should know about how the last tokens were found.
    pub warning: Option<&'static str>,
}

/// Transformers' own words.
const EMBEDS: &str = "LlamaForSequenceClassification will not detect padding tokens in \
                      `inputs_embeds`. Results may be unexpected if using padding tokens in \
                      conjunction with `inputs_embeds.`";

impl<B: Backend> LlamaForSequenceClassification<B> {
    /// Logits of each row after what `cache` holds; without one, nothing is kept.
    ///
    /// # Errors
    /// Inputs that do not fit each other, the model or the cache; several rows where the
    /// configuration names no padding token.
    pub fn forward(
        &self,
        inputs: &PaddedInputs<'_>,
        pooling: Pooling,
        cache: Option<&mut Cache<B>>,
        trace: &mut Trace,
    ) -> Result<SequenceClassifierOutput, InputError> {
        let pad = self.model.config.pad_token_id;
        if pad.is_none() && inputs.batch != 1 {
            return Err(InputError::NoPaddingToken);
        }
        let normed = self.model.forward_padded(inputs, cache, trace)?;
        let last = |row: usize| match (pad, inputs.tokens) {
            (Some(pad), Tokens::Ids(ids)) => {
                last_token(&ids[row * inputs.len..][..inputs.len], pad, pooling)
            }
            _ => inputs.len - 1,
        };
        let rows: Vec<u32> =
            (0..inputs.batch).map(|row| (row * inputs.len + last(row)) as u32).collect();
        let logits = self.model.project(&normed, &rows, &self.score)?;
        let is_blind = pad.is_some() && matches!(inputs.tokens, Tokens::Embeds(_));
        Ok(SequenceClassifierOutput { logits, warning: is_blind.then_some(EMBEDS) })
    }

    /// Loss of logits `(batch, num_labels)`. Where the configuration does not say what the head is
    /// trained for, the labels do, and it is written into the configuration.
    ///
    /// # Errors
    /// Labels of the wrong type, number or range.
    pub fn loss(&mut self, logits: &[f32], labels: Labels<'_>) -> Result<f32, InputError> {
        let problem_type = infer_problem_type(&self.model.config, labels);
        if self.model.config.problem_type != Some(problem_type) {
            Arc::make_mut(&mut self.model.config).problem_type = Some(problem_type);
        }
        let classes = (logits, self.score.out_features);
        let loss = classification_loss(&*self.model.backend, problem_type, classes, labels)?;
        Ok(self.model.dtype.round(loss))
    }
}

/// Index of the last token of a row.
fn last_token(ids: &[u32], pad: i64, pooling: Pooling) -> usize {
    let is_pad = |id: &u32| i64::from(*id) == pad;
    match pooling {
        Pooling::RightmostToken => ids.iter().rposition(|id| !is_pad(id)).unwrap_or(0),
        Pooling::BeforeFirstPad => match ids.iter().position(is_pad) {
            None | Some(0) => ids.len() - 1,
            Some(first) => first - 1,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_ways_differ_where_padding_lies_inside() {
        let both = |ids: &[u32]| {
            let find = |pooling| last_token(ids, 0, pooling);
            (find(Pooling::RightmostToken), find(Pooling::BeforeFirstPad))
        };
        assert_eq!(both(&[1, 2, 3]), (2, 2));
        assert_eq!(both(&[1, 2, 0]), (1, 1));
        assert_eq!(both(&[0, 0, 3]), (2, 2));
        assert_eq!(both(&[1, 0, 3]), (2, 0));
        assert_eq!(both(&[0, 2, 0]), (1, 2));
        assert_eq!(both(&[0, 0, 0]), (0, 2));
        assert_eq!(last_token(&[1, 2, 3], -1, Pooling::BeforeFirstPad), 2);
    }
}
