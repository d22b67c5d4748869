//! The reader of answers out of a text: `h qa_outputsᵀ + b` `(batch, len, 2)` says of each token how
//! well an answer starts and ends there. Two sets of logits `(batch, len)` leave.

use puna_kernels::Backend;

use super::loss::cross_entropy;
use super::{Cache, InputError, Linear, LlamaModel, Loss, PaddedInputs, Trace};

/// A LLaMA that finds the answer to a question inside the input. Its decoder is called
/// `transformer` in a checkpoint.
#[derive(Debug)]
pub struct LlamaForQuestionAnswering<B: Backend> {
    /// The decoder.
    pub model: LlamaModel<B>,
    /// `(2, hidden_size)`, with a bias.
    pub qa_outputs: Linear<B>,
}

/// Result of [`LlamaForQuestionAnswering::forward`].
#[derive(Debug, Default)]
pub struct QuestionAnsweringOutput {
    /// How well an answer starts at each token `(batch, len)`.
    pub start_logits: Vec<f32>,
    /// How well it ends there `(batch, len)`.
    pub end_logits: Vec<f32>,
}

impl<B: Backend> LlamaForQuestionAnswering<B> {
    /// Logits of every token after what `cache` holds; without one, nothing is kept.
    ///
    /// # Errors
    /// Inputs that do not fit each other, the model or the cache.
    pub fn forward(
        &self,
        inputs: &PaddedInputs<'_>,
        cache: Option<&mut Cache<B>>,
        trace: &mut Trace,
    ) -> Result<QuestionAnsweringOutput, InputError> {
        let normed = self.model.forward_padded(inputs, cache, trace)?;
        let rows = inputs.batch * inputs.len;
        let logits = self.model.project_all(&normed, rows, &self.qa_outputs)?;
        let (pairs, _) = logits.as_chunks::<2>();
        let (start_logits, end_logits) = pairs.iter().map(|[start, end]| (start, end)).unzip();
        Ok(QuestionAnsweringOutput { start_logits, end_logits })
    }

    /// Mean of the two cross entropies over the tokens of each row. A position is brought between 0
    /// and the row's length; at the length itself it does not count.
    ///
    /// # Errors
    /// Another number of positions than of rows.
    pub fn loss(
        &self,
        output: &QuestionAnsweringOutput,
        (start_positions, end_positions): (&[i64], &[i64]),
        len: usize,
        reduction: Loss,
    ) -> Result<f32, InputError> {
        let beyond = len as i64;
        let loss = |logits: &[f32], positions: &[i64]| {
            let inside: Vec<i64> = positions.iter().map(|&at| at.clamp(0, beyond)).collect();
            cross_entropy(&*self.model.backend, (logits, len), &inside, beyond, reduction)
        };
        let start = loss(&output.start_logits, start_positions)?;
        let end = loss(&output.end_logits, end_positions)?;
        Ok(self.model.dtype.round((start + end) / 2.0))
    }
}
