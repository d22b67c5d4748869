//! Attention masks as the documented classes take them: a 2-D mask of keys, or a 4-D mask of scores
//! that broadcasts over rows, heads and queries. A mask and the shape of the scores
//! `(batch, heads, queries, keys)` enter; for each row, what the kernels take leaves.

use std::borrow::Cow;

use puna_kernels::Mask;

use super::input_error::{InputError, expect_len};

/// Values of a 4-D mask, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Mask4d<'a, T> {
    /// As many as the shape says.
    pub values: &'a [T],
    /// `(batch, heads, queries, keys)`; each of the first three may be 1, for all.
    pub shape: [usize; 4],
}

/// Which keys count.
#[derive(Clone, Copy, Debug)]
pub enum AttentionMask<'a> {
    /// `(batch, past + len)`: true keeps a key; the causal rule holds as well. With a static cache
    /// it may be longer, up to the cache's length.
    Keys(&'a [bool]),
    /// Added to the scores, and nothing else is masked.
    Additive(Mask4d<'a, f32>),
    /// True attends, and nothing else is masked.
    Boolean(Mask4d<'a, bool>),
}

/// What the scores look like that a mask is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) queries: usize,
    /// Keys that there are.
    pub(super) keys: usize,
    /// Keys that a static cache has room for; else as many as there are.
    pub(super) room: usize,
}

/// A mask in the form that the kernels take.
#[derive(Debug)]
pub(super) enum RowMasks<'a> {
    /// Every row is causal.
    Causal,
    /// `(batch, stride)`, of which the first keys count.
    Keys { keep: &'a [bool], stride: usize, keys: usize },
    /// `(batch or 1, queries, keys)`.
    Additive { bias: Cow<'a, [f32]>, row_len: usize },
}

impl RowMasks<'_> {
    /// The mask of one row.
    pub(super) fn row(&self, row: usize) -> Mask<'_> {
        match self {
            Self::Causal => Mask::Causal,
            Self::Keys { keep, stride, keys } => Mask::CausalKeys(&keep[row * stride..][..*keys]),
            Self::Additive { bias, row_len } => {
                let start = if bias.len() == *row_len { 0 } else { row * row_len };
                Mask::Additive(&bias[start..][..*row_len])
            }
        }
    }
}

impl<'a> AttentionMask<'a> {
    /// Checks the mask against the scores.
    pub(super) fn resolve(self, scores: Scores) -> Result<RowMasks<'a>, InputError> {
        match self {
            Self::Keys(keep) => keys(keep, scores),
            Self::Additive(mask) => {
                let whole = [scores.batch, 1, scores.queries, scores.keys];
                expect_len("attention_mask", mask.values.len(), product(mask.shape))?;
                if mask.shape == whole {
                    let row_len = scores.queries * scores.keys;
                    return Ok(RowMasks::Additive { bias: Cow::Borrowed(mask.values), row_len });
                }
                additive(mask, scores, |bias| bias)
            }
            Self::Boolean(mask) => {
                expect_len("attention_mask", mask.values.len(), product(mask.shape))?;
                additive(mask, scores, |keep| if keep { 0.0 } else { f32::NEG_INFINITY })
            }
        }
    }
}

fn product(shape: [usize; 4]) -> usize {
    shape.into_iter().fold(1, usize::saturating_mul)
}

fn keys(keep: &[bool], scores: Scores) -> Result<RowMasks<'_>, InputError> {
    let Scores { batch, keys, room, .. } = scores;
    let stride = keep.len() / batch;
    let fits = keep.len().is_multiple_of(batch) && (keys..=room).contains(&stride);
    if !fits {
        let expected = batch.saturating_mul(keys);
        return Err(InputError::Length { field: "attention_mask", found: keep.len(), expected });
    }
    Ok(RowMasks::Keys { keep, stride, keys })
}

/// The bias `(rows, queries, keys)` of a mask that broadcasts; `rows` is 1 where all are alike.
fn additive<T: Copy + PartialEq>(
    mask: Mask4d<'_, T>,
    scores: Scores,
    bias_of: impl Fn(T) -> f32,
) -> Result<RowMasks<'static>, InputError> {
    let Scores { batch, heads, queries, keys, room } = scores;
    let [rows, mask_heads, mask_queries, mask_keys] = mask.shape;
    let fits = (rows == 1 || rows == batch)
        && (mask_heads == 1 || mask_heads == heads)
        && (mask_queries == 1 || mask_queries == queries)
        && (mask_keys == keys || mask_keys == room);
    if !fits {
        let expected = [batch, heads, queries, keys];
        return Err(InputError::MaskShape { found: mask.shape, expected });
    }
    let of_head = mask_queries * mask_keys;
    let mut bias = Vec::with_capacity(rows * queries * keys);
    for (row, of_row) in mask.values.chunks_exact(mask_heads * of_head).enumerate() {
        let (first, others) = of_row.split_at(of_head);
        if others.chunks_exact(of_head).any(|head| head != first) {
            return Err(InputError::MaskHeads { row });
        }
        for query in 0..queries {
            let at = if mask_queries == 1 { 0 } else { query };
            let (seen, beyond) = first[at * mask_keys..][..mask_keys].split_at(keys);
            if let Some(i) = beyond.iter().position(|value| bias_of(*value) > HIDDEN) {
                return Err(InputError::MaskBeyond { key: keys + i, n_keys: keys });
            }
            bias.extend(seen.iter().map(|value| bias_of(*value)));
        }
    }
    Ok(RowMasks::Additive { bias: Cow::Owned(bias), row_len: queries * keys })
}

/// The largest bias that hides a key: half of the lowest `f16`, which is what masks are made of at
/// the least.
const HIDDEN: f32 = -32_752.0;

/// Bias that separates the sequences packed into each row `(batch, len, len)`, where the positions
/// start anew; `None` where no row has two.
pub(super) fn packed(positions: &[u32], len: usize) -> Option<RowMasks<'static>> {
    let restarts = |row: &[u32]| row.windows(2).any(|pair| pair[1] != pair[0].wrapping_add(1));
    if !positions.chunks(len).any(restarts) {
        return None;
    }
    let mut bias = Vec::with_capacity(positions.len() * len);
    for row in positions.chunks(len) {
        let mut start = 0;
        for query in 0..len {
            if query > 0 && row[query] != row[query - 1].wrapping_add(1) {
                start = query;
            }
            bias.extend(
                (0..len).map(
                    |key| {
                        if (start..=query).contains(&key) { 0.0 } else { f32::NEG_INFINITY }
                    },
                ),
            );
        }
    }
    Some(RowMasks::Additive { bias: Cow::Owned(bias), row_len: len * len })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: Scores = Scores { batch: 2, heads: 3, queries: 2, keys: 4, room: 6 };

    fn bias(mask: &RowMasks<'_>, row: usize) -> Vec<f32> {
        match mask.row(row) {
            Mask::Additive(bias) => bias.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn masks_broadcast_over_rows_heads_and_queries() {
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let one = AttentionMask::Additive(Mask4d { values: &values, shape: [1, 1, 2, 4] });
        let one = one.resolve(SCORES).unwrap();
        assert_eq!((bias(&one, 0), bias(&one, 1)), (values.clone(), values.clone()));
        let queries = AttentionMask::Additive(Mask4d { values: &values, shape: [2, 1, 1, 4] });
        let queries = queries.resolve(SCORES).unwrap();
        assert_eq!(bias(&queries, 1), [&values[4..], &values[4..]].concat());
        let heads = values.repeat(3);
        let alike = AttentionMask::Additive(Mask4d { values: &heads, shape: [1, 3, 2, 4] });
        assert_eq!(bias(&alike.resolve(SCORES).unwrap(), 1), values);
        let whole = values.repeat(2);
        let whole = AttentionMask::Additive(Mask4d { values: &whole, shape: [2, 1, 2, 4] });
        assert_eq!(bias(&whole.resolve(SCORES).unwrap(), 1), values);
    }

    #[test]
    fn the_empty_end_of_a_static_cache_stays_hidden() {
        let mut keep = [true, true, false, true, false, false].repeat(2);
        let mask = AttentionMask::Boolean(Mask4d { values: &keep, shape: [1, 1, 2, 6] });
        let hidden = f32::NEG_INFINITY;
        let row = [0.0, 0.0, hidden, 0.0];
        assert_eq!(bias(&mask.resolve(SCORES).unwrap(), 0), [row, row].concat());
        keep[11] = true;
        let mask = AttentionMask::Boolean(Mask4d { values: &keep, shape: [1, 1, 2, 6] });
        let error = mask.resolve(SCORES).unwrap_err();
        assert_eq!(error, InputError::MaskBeyond { key: 5, n_keys: 4 });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let values = [0.0; 48];
        let refuse = |shape: [usize; 4]| {
            let n = product(shape).min(values.len());
            let mask = AttentionMask::Additive(Mask4d { values: &values[..n], shape });
            mask.resolve(SCORES).unwrap_err()
        };
        let expected = [2, 3, 2, 4];
        for found in [[3, 1, 2, 4], [1, 2, 2, 4], [1, 1, 3, 4], [1, 1, 2, 5]] {
            assert_eq!(refuse(found), InputError::MaskShape { found, expected });
        }
        assert!(matches!(refuse([2, 3, 2, 400]), InputError::Length { .. }));
        let mut values = values;
        values[4] = -1.0;
        let mask = AttentionMask::Additive(Mask4d { values: &values[..24], shape: [1, 3, 2, 4] });
        assert_eq!(mask.resolve(SCORES).unwrap_err(), InputError::MaskHeads { row: 0 });
        assert!(AttentionMask::Keys(&[true; 7]).resolve(SCORES).is_err());
        assert!(AttentionMask::Keys(&[true; 12]).resolve(SCORES).is_ok());
        assert!(AttentionMask::Keys(&[true; 14]).resolve(SCORES).is_err());
    }
}
