//! The language model. Hidden states `(rows, hidden_size)` of the decoder enter; logits
//! `h lm_headᵀ` `(rows, vocab_size)` of the asked rows leave, with the embedding's own matrix where
//! the two are tied.

use puna_kernels::Backend;

use super::input_error::expect_len;
use super::{Cache, InputError, Linear, LlamaModel, PaddedInputs, Trace, Workspace, read};

/// A LLaMA that predicts the next token.
#[derive(Debug)]
pub struct LlamaForCausalLM<B: Backend> {
    /// The decoder.
    pub model: LlamaModel<B>,
    /// `(vocab_size, hidden_size)`; `None` where it is tied to the embedding.
    pub lm_head: Option<Linear<B>>,
}

/// Which positions of each row logits are computed for.
#[derive(Clone, Copy, Debug, Default)]
pub enum LogitsToKeep<'a> {
    /// All of them.
    #[default]
    All,
    /// The last so many; more than there are, or 0, means all. A negative number leaves out the
    /// first so many.
    Last(i64),
    /// These, in this order; a negative one counts from the end.
    Positions(&'a [i64]),
    /// `(batch, positions)`: as many of each row.
    OfEachRow(&'a [i64]),
    /// `(batch, len)`: those that are true, all rows after one another.
    Where(&'a [bool]),
}

/// Result of [`LlamaForCausalLM::forward`].
#[derive(Debug, Default)]
pub struct CausalLmOutput {
    /// Values of `shape`.
    pub logits: Vec<f32>,
    /// `(batch, kept, vocab_size)`; `(kept, vocab_size)` for [`LogitsToKeep::Where`].
    pub shape: Vec<usize>,
}

impl<B: Backend> LlamaForCausalLM<B> {
    /// Logits of a rectangular batch after what `cache` holds; without one, nothing is kept.
    ///
    /// # Errors
    /// Inputs that do not fit each other, the model or the cache.
    pub fn forward(
        &self,
        inputs: &PaddedInputs<'_>,
        keep: LogitsToKeep<'_>,
        cache: Option<&mut Cache<B>>,
        trace: &mut Trace,
    ) -> Result<CausalLmOutput, InputError> {
        let (rows, mut shape) = kept_rows(keep, inputs.batch, inputs.len)?;
        let normed = self.model.forward_padded(inputs, cache, trace)?;
        let backend = &*self.model.backend;
        let (hidden, vocab) = (self.model.config.hidden_size, self.model.config.vocab_size);
        let mut kept = backend.alloc(rows.len() * hidden, "hidden states")?;
        backend.gather_rows(&normed, hidden, &rows, &mut kept);
        let mut logits = backend.alloc(rows.len() * vocab, "logits")?;
        self.head(&kept, rows.len(), &mut logits);
        shape.push(vocab);
        Ok(CausalLmOutput { logits: read(backend, &logits, rows.len() * vocab), shape })
    }

    /// The matrices that every token goes through, by the last part of their names in a checkpoint;
    /// `lm_head` is the embedding where the two are tied.
    pub fn matrices(&self) -> impl Iterator<Item = (&'static str, &B::Weight)> {
        let blocks = self.model.blocks.iter().flat_map(|block| {
            let (attention, mlp) = (&block.attention, &block.mlp);
            [
                ("q_proj", &attention.q_proj),
                ("k_proj", &attention.k_proj),
                ("v_proj", &attention.v_proj),
                ("o_proj", &attention.o_proj),
                ("gate_proj", &mlp.gate_proj),
                ("up_proj", &mlp.up_proj),
                ("down_proj", &mlp.down_proj),
            ]
        });
        let head = self.lm_head.as_ref().map_or(&self.model.embed_tokens, |head| &head.weight);
        blocks.map(|(name, linear)| (name, &linear.weight)).chain([("lm_head", head)])
    }

    /// `logits = lm_head(x)`: x `(rows, hidden_size)`, already normed, logits
    /// `(rows, vocab_size)`.
    pub fn head(&self, x: &B::Buf, rows: usize, logits: &mut B::Buf) {
        let (backend, dtype) = (&*self.model.backend, self.model.dtype);
        match &self.lm_head {
            Some(head) => head.forward(backend, x, rows, dtype, logits),
            None => backend.linear(x, rows, dtype, &mut [(&self.model.embed_tokens, logits)]),
        }
    }

    /// Logits of some rows of the residual stream that a forward left in `ws.x`;
    /// `(rows, vocab_size)`. Overwrites `ws.projected` and `ws.normed`.
    pub fn head_rows(&self, ws: &mut Workspace<B>, rows: &[u32], logits: &mut B::Buf) {
        let backend = &*self.model.backend;
        let hidden = self.model.config.hidden_size;
        backend.gather_rows(&ws.x, hidden, rows, &mut ws.projected);
        let norm = &self.model.norm;
        norm.forward(backend, &ws.projected, rows.len(), self.model.dtype, &mut ws.normed);
        self.head(&ws.normed, rows.len(), logits);
    }
}

/// The rows of a `(batch, len)` batch that are kept, and the shape that they have.
fn kept_rows(
    keep: LogitsToKeep<'_>,
    batch: usize,
    len: usize,
) -> Result<(Vec<u32>, Vec<usize>), InputError> {
    let of_rows = |columns: &[usize]| {
        let rows = (0..batch).flat_map(|row| columns.iter().map(move |at| (row * len + at) as u32));
        (rows.collect(), vec![batch, columns.len()])
    };
    match keep {
        LogitsToKeep::All => Ok(of_rows(&Vec::from_iter(0..len))),
        LogitsToKeep::Last(n) => {
            let n_abs = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
            let first = match n {
                0 => 0,
                1.. => len.saturating_sub(n_abs),
                _ => n_abs.min(len),
            };
            Ok(of_rows(&Vec::from_iter(first..len)))
        }
        LogitsToKeep::Positions(positions) => {
            let columns = positions.iter().map(|&index| column(index, len));
            Ok(of_rows(&columns.collect::<Result<Vec<_>, _>>()?))
        }
        LogitsToKeep::OfEachRow(positions) => {
            if !positions.len().is_multiple_of(batch.max(1)) {
                expect_len("logits_to_keep", positions.len(), batch)?;
            }
            let kept = positions.len() / batch.max(1);
            let row = |(i, &index): (usize, &i64)| match usize::try_from(index) {
                Ok(at) if at < len => Ok((i / kept * len + at) as u32),
                _ => Err(InputError::Position { index, len }),
            };
            let rows = positions.iter().enumerate().map(row).collect::<Result<_, _>>()?;
            Ok((rows, vec![batch, kept]))
        }
        LogitsToKeep::Where(kept) => {
            expect_len("logits_to_keep", kept.len(), batch * len)?;
            let marked = kept.iter().enumerate().filter(|(_, kept)| **kept);
            let rows: Vec<u32> = marked.map(|(i, _)| i as u32).collect();
            let n = rows.len();
            Ok((rows, vec![n]))
        }
    }
}

/// Column `index` of `len`, from the end where it is negative.
fn column(index: i64, len: usize) -> Result<usize, InputError> {
    let at = if index < 0 { index.saturating_add(len as i64) } else { index };
    match usize::try_from(at) {
        Ok(at) if at < len => Ok(at),
        _ => Err(InputError::Position { index, len }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_kept_as_python_indexes_them() {
        let kept = |keep| kept_rows(keep, 2, 4).unwrap();
        assert_eq!(kept(LogitsToKeep::All).1, [2, 4]);
        assert_eq!(kept(LogitsToKeep::Last(0)).1, [2, 4]);
        assert_eq!(kept(LogitsToKeep::Last(9)).1, [2, 4]);
        assert_eq!(kept(LogitsToKeep::Last(1)), (vec![3, 7], vec![2, 1]));
        assert_eq!(kept(LogitsToKeep::Last(-3)), (vec![3, 7], vec![2, 1]));
        assert_eq!(kept(LogitsToKeep::Last(i64::MIN)), (vec![], vec![2, 0]));
        assert_eq!(kept(LogitsToKeep::Positions(&[-1, 0])), (vec![3, 0, 7, 4], vec![2, 2]));
        assert_eq!(kept(LogitsToKeep::OfEachRow(&[1, 2])), (vec![1, 6], vec![2, 1]));
        let mask = [true, false, false, false, true, false, true, true];
        assert_eq!(kept(LogitsToKeep::Where(&mask)), (vec![0, 4, 6, 7], vec![4]));
        for keep in [
            LogitsToKeep::Positions(&[4]),
            LogitsToKeep::Positions(&[-5]),
            LogitsToKeep::OfEachRow(&[-1, 0]),
            LogitsToKeep::OfEachRow(&[0, 1, 2]),
            LogitsToKeep::Where(&mask[1..]),
        ] {
            assert!(kept_rows(keep, 2, 4).is_err(), "{keep:?}");
        }
    }
}
