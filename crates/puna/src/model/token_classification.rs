//! The classifier of tokens: hidden states `(batch, len, hidden_size)` enter,
//! `logits = h scoreᵀ + b` `(batch, len, num_labels)` leave. The dropout before the score acts in
//! training only.

use puna_kernels::Backend;

use super::loss::{IGNORE_INDEX, cross_entropy};
use super::{Cache, InputError, Linear, LlamaModel, Loss, PaddedInputs, Trace};

/// A LLaMA that classifies every token.
#[derive(Debug)]
pub struct LlamaForTokenClassification<B: Backend> {
    /// The decoder.
    pub model: LlamaModel<B>,
    /// `(num_labels, hidden_size)`, with a bias.
    pub score: Linear<B>,
}

impl<B: Backend> LlamaForTokenClassification<B> {
    /// Logits `(batch, len, num_labels)` after what `cache` holds; without one, nothing is kept.
    ///
    /// # Errors
    /// Inputs that do not fit each other, the model or the cache.
    pub fn forward(
        &self,
        inputs: &PaddedInputs<'_>,
        cache: Option<&mut Cache<B>>,
        trace: &mut Trace,
    ) -> Result<Vec<f32>, InputError> {
        let normed = self.model.forward_padded(inputs, cache, trace)?;
        Ok(self.model.project_all(&normed, inputs.batch * inputs.len, &self.score)?)
    }

    /// Loss of logits `(batch, len, num_labels)` in `f32`: mean cross entropy over the labels
    /// `(batch, len)` that are not -100.
    ///
    /// # Errors
    /// A label that names no class, or another number of labels than of tokens.
    pub fn loss(&self, logits: &[f32], labels: &[i64]) -> Result<f32, InputError> {
        let classes = (logits, self.score.out_features);
        cross_entropy(&*self.model.backend, classes, labels, IGNORE_INDEX, Loss::Mean)
    }
}
