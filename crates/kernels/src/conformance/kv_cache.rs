//! The paged cache. In: keys and values of two sequences, appended in steps. Out: rows where the
//! block table says, rounded to the cache's type; a copy of a block; no cache that is too large.

use super::*;
use crate::{KvDtype, KvShape, Mask, Span};

pub(super) fn append_read_copy<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(17);
    let mut results = Vec::new();
    for dtype in DTYPES {
        let cache_dtype = KvDtype::from(dtype);
        let (n_kv_heads, head_dim, block_len) = (2, 5, 3);
        let shape = KvShape {
            n_layers: 2,
            n_blocks: 7,
            block_len,
            n_kv_heads,
            head_dim,
            dtype: cache_dtype,
        };
        let mut cache = b.kv_cache(shape).expect("a small cache");
        let row_len = n_kv_heads * head_dim;
        // Two sequences, eight and four keys, appended in two steps each; the second layer is
        // left alone.
        let tables: [&[u32]; 2] = [&[5, 0, 3], &[2, 6]];
        let steps: [[(usize, usize); 2]; 2] = [[(5, 5), (1, 1)], [(3, 8), (3, 4)]];
        let mut expected: [[Vec<f32>; 2]; 2] = Default::default();
        for step in steps {
            let mut spans = Vec::new();
            let rows = 1 + step[0].0 + step[1].0;
            let (k, v) = (random.values(rows * row_len, 70.0), random.values(rows * row_len, 1e-6));
            let mut start = 1;
            for (sequence, (n_rows, n_keys)) in step.into_iter().enumerate() {
                let rows = start..start + n_rows;
                for (all, new) in expected[sequence].iter_mut().zip([&k, &v]) {
                    all.extend(&new[rows.start * row_len..rows.end * row_len]);
                }
                spans.push(Span { rows, n_keys, blocks: tables[sequence], mask: Mask::Causal });
                start += n_rows;
            }
            b.append_kv(&mut cache, 0, &upload(b, &k), &upload(b, &v), &spans);
        }
        b.copy_kv_block(&mut cache, 6, 1);
        for (table, n_keys, sequence) in [(tables[0], 8, 0), (tables[1], 4, 1), (&[2, 1], 4, 1)] {
            let (mut keys, mut values) = (vec![0.0; n_keys * row_len], vec![0.0; n_keys * row_len]);
            b.read_kv(&cache, 0, table, n_keys, &mut keys, &mut values);
            for (got, rows) in [&keys, &values].into_iter().zip(&expected[sequence]) {
                for (i, got) in got.iter().enumerate() {
                    let (head, key, d) =
                        (i / (n_keys * head_dim), i / head_dim % n_keys, i % head_dim);
                    let row = rows[key * row_len + head * head_dim + d];
                    assert_eq!(*got, dtype.round(row), "{dtype:?}");
                }
            }
            results.extend(keys.into_iter().chain(values));
        }
        let mut untouched = (vec![1.0; 8 * row_len], vec![1.0; 8 * row_len]);
        b.read_kv(&cache, 1, tables[0], 8, &mut untouched.0, &mut untouched.1);
        assert!(untouched.0.iter().chain(&untouched.1).all(|v| *v == 0.0));
    }
    results
}

pub(super) fn too_large<B: Backend>(b: &B) {
    let shape = KvShape {
        n_layers: 1 << 20,
        n_blocks: 1 << 20,
        block_len: 16,
        n_kv_heads: 8,
        head_dim: 128,
        dtype: KvDtype::F16,
    };
    let refused = b.kv_cache(shape).expect_err("an exabyte");
    assert_eq!(refused.bytes, 1 << 56);
    let overflows = KvShape { n_blocks: usize::MAX / 2, ..shape };
    assert_eq!(b.kv_cache(overflows).expect_err("no such number").bytes, u64::MAX);
    assert!(b.alloc(usize::MAX / 8, "test").is_err());
}
