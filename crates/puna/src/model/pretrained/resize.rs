//! `resize_token_embeddings`: a vocabulary of another size enters; the embedding and the head that
//! is not tied to it get rows at their end, or lose them. New rows are drawn around the mean of the
//! old ones, `N(mean, 1e-9 cov)`, so that no new token is likelier than it should be; or afresh.

use std::sync::Arc;

use bytes::Bytes;
use puna_kernels::{Backend, Dtype, OutOfMemory, WeightData};

use super::{LlamaClass, Normal, encode};
use crate::model::LlamaModel;
use crate::model::load::stored_as;

/// How to resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Tokens of the new vocabulary; `None` keeps the number.
    pub new_num_tokens: Option<usize>,
    /// The number is rounded up to a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
    /// New rows near the mean of the old ones, rather than around zero.
    pub mean_resizing: bool,
    /// Of the new rows.
    pub seed: u64,
}

impl Default for Resize {
    fn default() -> Self {
        Self { new_num_tokens: None, pad_to_multiple_of: None, mean_resizing: true, seed: 0 }
    }
}

/// Of the covariance of the old rows, in that of the new ones.
const SPREAD: f64 = 1e-9;

/// Rows that are read at once.
const CHUNK: usize = 1024;

/// Resizes the embedding and the head. Returns the size of the new vocabulary.
pub(super) fn resize<B: Backend, C: LlamaClass<B>>(
    class: &mut C,
    resize: Resize,
) -> Result<usize, OutOfMemory> {
    let old = class.decoder().config.vocab_size;
    let asked = resize.new_num_tokens.unwrap_or(old);
    let multiple = resize.pad_to_multiple_of.unwrap_or(1).max(1);
    let too_large = || OutOfMemory { what: "embed_tokens".to_owned(), bytes: u64::MAX };
    let new = asked.checked_next_multiple_of(multiple).ok_or_else(too_large)?;
    if new == old {
        return Ok(old);
    }
    let model = class.decoder();
    let table = Table { model, weight: &model.embed_tokens, name: "embed_tokens", old };
    let embed_tokens = table.resized(new, resize)?;
    let lm_head = match class.head() {
        Some(("lm_head", head)) => {
            Some(Table { model, weight: &head.weight, name: "lm_head", old }.resized(new, resize)?)
        }
        _ => None,
    };
    if let (Some(head), Some(weight)) = (class.lm_head_mut(), lm_head) {
        (head.weight, head.out_features) = (weight, new);
    }
    let model = class.decoder_mut();
    model.embed_tokens = embed_tokens;
    Arc::make_mut(&mut model.config).vocab_size = new;
    Ok(new)
}

/// A matrix with a row for each token.
struct Table<'a, B: Backend> {
    model: &'a LlamaModel<B>,
    weight: &'a B::Weight,
    name: &'static str,
    /// Its rows.
    old: usize,
}

impl<B: Backend> Table<'_, B> {
    fn resized(&self, new: usize, resize: Resize) -> Result<B::Weight, OutOfMemory> {
        let (dtype, cols) = (self.model.dtype, self.model.config.hidden_size);
        let mut bytes = Vec::new();
        let size = new.saturating_mul(cols).saturating_mul(dtype.size());
        let refused = |_| OutOfMemory { what: self.name.to_owned(), bytes: size as u64 };
        bytes.try_reserve_exact(size).map_err(refused)?;
        self.each_chunk(self.old.min(new), |values| encode(dtype, values, &mut bytes))?;
        if new > self.old {
            let added = new - self.old;
            let rows = if resize.mean_resizing {
                self.around_mean(added, resize.seed)?
            } else {
                let mut normal = Normal::new(resize.seed, self.name, &self.model.config);
                (0..added * cols).map(|_| normal.next()).collect()
            };
            encode(dtype, &rows, &mut bytes);
        }
        let bytes = Bytes::from(bytes);
        self.model.backend.weight(WeightData { format: stored_as(dtype), rows: new, cols, bytes })
    }

    /// Hands over the first `rows` rows, some at a time.
    fn each_chunk(&self, rows: usize, mut take: impl FnMut(&[f32])) -> Result<(), OutOfMemory> {
        let (backend, cols) = (&*self.model.backend, self.model.config.hidden_size);
        let mut buf = backend.alloc(CHUNK.min(rows) * cols, self.name)?;
        for start in (0..rows).step_by(CHUNK) {
            let ids: Vec<u32> = (start..rows.min(start + CHUNK)).map(|row| row as u32).collect();
            let mut values = vec![0.0; ids.len() * cols];
            backend.embed(self.weight, &ids, Dtype::F32, &mut buf);
            backend.read(&buf, 0, &mut values);
            take(&values);
        }
        Ok(())
    }

    /// `added` rows of `N(mean, 1e-9 cov)`: with `z` normal, `mean + sqrt(1e-9 / n) Σ z_i (x_i -
    /// mean)` has just that distribution, and needs no root of a matrix.
    fn around_mean(&self, added: usize, seed: u64) -> Result<Vec<f32>, OutOfMemory> {
        let cols = self.model.config.hidden_size;
        let mut mean = vec![0.0_f64; cols];
        self.each_chunk(self.old, |values| {
            for row in values.chunks_exact(cols) {
                mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        })?;
        mean.iter_mut().for_each(|sum| *sum /= self.old as f64);
        let deviation = (SPREAD / self.old as f64).sqrt();
        let mut normal = Normal::of_deviation(seed, self.name, deviation);
        let mut rows: Vec<f64> = mean.repeat(added);
        self.each_chunk(self.old, |values| {
            for x in values.chunks_exact(cols) {
                for row in rows.chunks_exact_mut(cols) {
                    let z = f64::from(normal.next());
                    for ((sum, x), mean) in row.iter_mut().zip(x).zip(&mean) {
                        *sum += z * (f64::from(*x) - mean);
                    }
                }
            }
        })?;
        Ok(rows.into_iter().map(|x| x as f32).collect())
    }
}
