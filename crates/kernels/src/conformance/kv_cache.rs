//! The paged cache. In: keys and values of two sequences, appended in steps. Out: rows where the
//! block table says, rounded to the cache's type; a copy of a block; no cache that is too large.

use half::f16;

use super::*;
use crate::{KvDtype, KvShape, Mask, Span};

pub(super) fn append_read_copy<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(17);
    let mut results = Vec::new();
    let sizes = [(2, 5, 3), (1, 70, 20)];
    for (dtype, (n_kv_heads, head_dim, block_len)) in
        KvDtype::ALL.into_iter().flat_map(|dtype| sizes.map(|sizes| (dtype, sizes)))
    {
        let shape = KvShape { n_layers: 2, n_blocks: 7, block_len, n_kv_heads, head_dim, dtype };
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
                for (i, got) in got.chunks_exact(head_dim).enumerate() {
                    let (head, key) = (i / n_keys, i % n_keys);
                    check(dtype, got, &rows[key * row_len + head * head_dim..][..head_dim]);
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

/// A key or a value as it was read, against what was stored.
fn check(dtype: KvDtype, got: &[f32], row: &[f32]) {
    let narrow = match dtype {
        KvDtype::F32 => Dtype::F32,
        KvDtype::F16 => Dtype::F16,
        KvDtype::Bf16 => Dtype::Bf16,
        KvDtype::Q8 => return check_bytes(got, row),
    };
    for (got, row) in got.iter().zip(row) {
        assert_eq!(*got, narrow.round(*row), "{dtype:?}");
    }
}

/// Each 32 numbers are whole multiples of the smallest `f16` that lets the largest fit into 127.
fn check_bytes(got: &[f32], row: &[f32]) {
    for (got, row) in got.chunks(32).zip(row.chunks(32)) {
        let top = row.iter().fold(0.0, |top: f64, x| top.max(f64::from(x.abs())));
        let scale = (0..f16::INFINITY.to_bits())
            .map(|bits| f16::from_bits(bits).to_f64())
            .find(|scale| 127.0 * scale >= top)
            .expect("numbers below 8 million");
        for (got, row) in got.iter().zip(row) {
            let code = if scale > 0.0 { f64::from(*got) / scale } else { 0.0 };
            assert!(code.fract() == 0.0 && code.abs() <= 127.0, "{got} in steps of {scale}");
            // Half a step, and the rounding of the quotient itself.
            let half = 0.5 * scale * (1.0 + 1e-5);
            assert!((f64::from(*got) - f64::from(*row)).abs() <= half, "{row} became {got}");
        }
    }
}

/// What bytes cannot hold: a number that is not finite poisons its 32, one too large is cut off.
pub(super) fn extremes<B: Backend>(b: &B) -> Vec<f32> {
    let (head_dim, dtype) = (64, KvDtype::Q8);
    let shape = KvShape { n_layers: 1, n_blocks: 1, block_len: 4, n_kv_heads: 1, head_dim, dtype };
    let mut cache = b.kv_cache(shape).expect("a small cache");
    let mut rows = vec![1.0; 4 * head_dim];
    rows[3] = f32::NAN;
    rows[head_dim + 40] = f32::NEG_INFINITY;
    rows[2 * head_dim + 1] = -1e30;
    rows[3 * head_dim..].fill(1e-30);
    let span = Span { rows: 0..4, n_keys: 4, blocks: &[0], mask: Mask::Causal };
    b.append_kv(&mut cache, 0, &upload(b, &rows), &upload(b, &rows), &[span]);
    let (mut keys, mut values) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
    b.read_kv(&cache, 0, &[0], 4, &mut keys, &mut values);
    let near_one = |v: &f32| (v - 1.0).abs() < 0.004;
    for got in [&keys, &values] {
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|i| &got[i * head_dim..][..head_dim]);
        assert!(first[..32].iter().all(|v| v.is_nan()) && first[32..].iter().all(near_one));
        assert!(second[..32].iter().all(near_one) && second[32..].iter().all(|v| v.is_nan()));
        assert_eq!(third[1], -127.0 * f16::MAX.to_f32());
        assert!(fourth.iter().all(|v| *v == 0.0));
    }
    keys.into_iter().chain(values).filter(|v| !v.is_nan()).collect()
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
