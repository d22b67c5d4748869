//! Gradients of attention over a batch's own keys. In: q, k, v, dy and what forward saved, for
//! spans of every mask. Out: dq, dk and dv, added to what is there, against differences.

use super::*;
use crate::{
    AttentionForward, AttentionGrads, AttentionOutputs, AttentionSpec, KvDtype, KvShape, Mask, Span,
};

/// `f32` sums of up to some forty products near 1, after probabilities good to 1e-6.
const CLOSE: Tolerance = Tolerance::new(3e-5, 1e-5);

#[derive(Clone, Copy)]
struct Heads {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

pub(super) fn gradients<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(25);
    let keep: Vec<bool> = (0..11).map(|key| key > 2).collect();
    let mut bias = random.values(4 * 4, 2.0);
    bias[4..8].fill(f32::NEG_INFINITY);
    let small: &[(usize, Mask<'_>)] =
        &[(3, Mask::Causal), (11, Mask::CausalKeys(&keep)), (4, Mask::Additive(&bias))];
    let long: &[(usize, Mask<'_>)] = &[(261, Mask::Causal)];
    let mut results = Vec::new();
    for (n_heads, n_kv_heads, head_dim, spans) in
        [(1, 1, 1, small), (6, 2, 9, small), (4, 4, 16, small), (1, 1, 2, long)]
    {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        results.extend(one(b, &mut random, heads, spans));
    }
    results
}

/// The batch, one unused row before each span.
fn spans<'a>(lens: &[(usize, Mask<'a>)], blocks: &'a [u32]) -> Vec<Span<'a>> {
    let mut start = 0;
    let mut spans = Vec::new();
    for (i, (n, mask)) in lens.iter().enumerate() {
        let rows = start + 1..start + 1 + n;
        start = rows.end;
        spans.push(Span { rows, n_keys: *n, blocks: &blocks[i..=i], mask: *mask });
    }
    spans.rotate_left(1);
    spans
}

fn one<B: Backend>(
    b: &B,
    random: &mut Random,
    heads: Heads,
    lens: &[(usize, Mask<'_>)],
) -> Vec<f32> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let block_len = lens.iter().map(|l| l.0).max().unwrap_or(1);
    let (n_blocks, dtype) = (lens.len(), Dtype::F32);
    let shape =
        KvShape { n_layers: 1, n_blocks, block_len, n_kv_heads, head_dim, dtype: KvDtype::F32 };
    let mut cache = b.kv_cache(shape).expect("a small cache");
    let blocks: Vec<u32> = (0..n_blocks as u32).rev().collect();
    let spans = spans(lens, &blocks);
    let rows: usize = lens.iter().map(|l| l.0 + 1).sum();
    let (q_len, kv_len) = (rows * n_heads * head_dim, rows * n_kv_heads * head_dim);
    let (q, dy) = (random.values(q_len, 2.0), random.values(q_len, 1.0));
    let (k, v) = (random.values(kv_len, 1.0), random.values(kv_len, 1.0));
    let held = [random.values(q_len, 1.0), random.values(kv_len, 1.0), random.values(kv_len, 1.0)];

    let spec = AttentionSpec { layer: 0, n_heads, scale: (head_dim as f32).powf(-0.5), dtype };
    let [q_buf, k_buf, v_buf, dy_buf] = [&q, &k, &v, &dy].map(|values| upload(b, values));
    let (mut y, mut lse) = (poisoned(b, q_len), poisoned(b, rows * n_heads));
    b.append_kv(&mut cache, 0, &k_buf, &v_buf, &spans);
    let outputs = AttentionOutputs { probs: None, log_sum_exp: Some(&mut lse) };
    b.attention(&q_buf, &cache, &spans, spec, &mut y, outputs);
    let forward = AttentionForward {
        q: &q_buf,
        k: &k_buf,
        v: &v_buf,
        y: &y,
        log_sum_exp: &lse,
        n_kv_heads,
        head_dim,
    };
    let [mut dq, mut dk, mut dv] = held.each_ref().map(|values| upload(b, values));
    let grads = AttentionGrads { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    b.attention_backward(&forward, &spans, spec, &dy_buf, grads);
    let got = [download(b, &dq, q_len), download(b, &dk, kv_len), download(b, &dv, kv_len)];

    let mut expected = held.each_ref().map(|values| wide(values));
    for span in &spans {
        let by = oracle(heads, spec, span, [&q, &k, &v, &dy]);
        for (i, (expected, by)) in expected.iter_mut().zip(by).enumerate() {
            let width = if i == 0 { n_heads * head_dim } else { n_kv_heads * head_dim };
            let part = &mut expected[span.rows.start * width..][..by.len()];
            part.iter_mut().zip(by).for_each(|(e, by)| *e += by);
        }
    }
    for ((what, got), expected) in ["dq", "dk", "dv"].iter().zip(&got).zip(&expected) {
        let sampled = || got.iter().zip(expected).filter(|(_, e)| !e.is_nan());
        let got: Vec<f32> = sampled().map(|(got, _)| *got).collect();
        let expected: Vec<f64> = sampled().map(|(_, e)| *e).collect();
        CLOSE.check(what, &got, &expected);
    }
    got.concat()
}

/// Gradients of one span by differences: of queries, keys and values, in the batch's layout.
fn oracle(
    heads: Heads,
    spec: AttentionSpec,
    span: &Span<'_>,
    [q, k, v, dy]: [&[f32]; 4],
) -> [Vec<f64>; 3] {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let (q_width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
    let part = |x: &[f32], width| wide(&x[span.rows.start * width..span.rows.end * width]);
    let (q, dy) = (part(q, q_width), part(dy, q_width));
    let (k, v) = (part(k, kv_width), part(v, kv_width));
    let (scale, mask) = (f64::from(spec.scale), span.mask);
    let oracle = naive::Attention { n_heads, n_kv_heads, head_dim, scale, dtype: Dtype::F32, mask };
    // The oracle wants `(n_kv_heads, n_keys, head_dim)`.
    let by_head = |x: &[f64]| -> Vec<f64> {
        let head = |h: usize| x.chunks(kv_width).flat_map(move |x| &x[h * head_dim..][..head_dim]);
        (0..n_kv_heads).flat_map(head).copied().collect()
    };
    let f = |q: &[f64], k: &[f64], v: &[f64]| oracle.attend(q, &by_head(k), &by_head(v)).y;
    // Differences over a long span take a minute: there, some of the values stand for all.
    let step = if span.n_keys > 100 { 31 } else { 1 };
    [
        naive::sampled_gradient(&q, &dy, step, |q| f(q, &k, &v)),
        naive::sampled_gradient(&k, &dy, step, |k| f(&q, k, &v)),
        naive::sampled_gradient(&v, &dy, step, |v| f(&q, &k, v)),
    ]
}
