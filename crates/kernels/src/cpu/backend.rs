//! The processor's side of [`Backend`]: each method checks its shapes and calls the operation.
//! What passes here is what the operations rely on.

use super::ops;
use super::{Cpu, CpuBuf, CpuKvCache, CpuWeight, embed, linear};
use crate::{
    Activation, AdamW, AttentionForward, AttentionGrads, AttentionOutputs, AttentionSpec, Backend,
    Dtype, KvShape, Mask, OutOfMemory, RmsNorm, RopeTable, Span, WeightData,
};

impl Backend for Cpu {
    type Buf = CpuBuf;
    type Weight = CpuWeight;
    type KvCache = CpuKvCache;

    fn alloc(&self, len: usize, what: &str) -> Result<CpuBuf, OutOfMemory> {
        CpuBuf::zeros(len, what)
    }

    fn write(&self, dst: &mut CpuBuf, offset: usize, src: &[f32]) {
        dst[offset..][..src.len()].copy_from_slice(src);
    }

    fn read(&self, src: &CpuBuf, offset: usize, dst: &mut [f32]) {
        dst.copy_from_slice(&src[offset..][..dst.len()]);
    }

    fn weight(&self, data: WeightData) -> Result<CpuWeight, OutOfMemory> {
        CpuWeight::new(&self.pool, data)
    }

    fn reads_source(&self, weight: &CpuWeight) -> bool {
        matches!(weight, CpuWeight::Frozen(_))
    }

    fn weight_from(&self, values: CpuBuf, rows: usize, cols: usize) -> CpuWeight {
        assert!(size(rows, cols) <= values.len());
        CpuWeight::from_values(values, rows, cols)
    }

    fn weight_values<'a>(&self, weight: &'a mut CpuWeight) -> Option<&'a mut CpuBuf> {
        weight.values_mut()
    }

    fn kv_cache(&self, shape: KvShape) -> Result<CpuKvCache, OutOfMemory> {
        assert!(shape.block_len > 0 && shape.n_kv_heads > 0 && shape.head_dim > 0);
        CpuKvCache::new(shape)
    }

    fn append_kv(
        &self,
        cache: &mut CpuKvCache,
        layer: usize,
        k: &CpuBuf,
        v: &CpuBuf,
        spans: &[Span<'_>],
    ) {
        let shape = cache.shape();
        let len = size(end_of(spans), shape.n_kv_heads * shape.head_dim);
        cache.append(layer, &k[..len], &v[..len], spans);
    }

    fn read_kv(
        &self,
        cache: &CpuKvCache,
        layer: usize,
        blocks: &[u32],
        n_keys: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let shape = cache.shape();
        let len = size(n_keys, shape.n_kv_heads * shape.head_dim);
        cache.read(layer, blocks, n_keys, &mut keys[..len], &mut values[..len]);
    }

    fn copy_kv_block(&self, cache: &mut CpuKvCache, from: u32, to: u32) {
        cache.copy_block(from, to);
    }

    fn embed(&self, table: &CpuWeight, ids: &[u32], dtype: Dtype, y: &mut CpuBuf) {
        assert!(ids.iter().all(|id| (*id as usize) < table.rows()), "id beyond the table");
        assert!(size(ids.len(), table.cols()) <= y.len());
        embed::forward(self, table, ids, dtype, y);
    }

    fn embed_backward(&self, ids: &[u32], width: usize, dy: &CpuBuf, dtable: &mut CpuBuf) {
        let rows = dtable.len() / width;
        assert!(ids.iter().all(|id| (*id as usize) < rows), "id beyond the table");
        assert!(size(ids.len(), width) <= dy.len());
        embed::backward(self, ids, width, dy, dtable);
    }

    fn gather_rows(&self, x: &CpuBuf, width: usize, indices: &[u32], y: &mut CpuBuf) {
        assert!(width > 0);
        ops::gather_rows::forward(self, x, width, indices, &mut y[..size(indices.len(), width)]);
    }

    fn gather_rows_backward(&self, dy: &CpuBuf, width: usize, indices: &[u32], dx: &mut CpuBuf) {
        assert!(width > 0);
        ops::gather_rows::backward(self, &dy[..size(indices.len(), width)], width, indices, dx);
    }

    fn linear(
        &self,
        x: &CpuBuf,
        rows: usize,
        dtype: Dtype,
        outputs: &mut [(&CpuWeight, &mut CpuBuf)],
    ) {
        for (weight, y) in &*outputs {
            assert!(size(rows, weight.cols()) <= x.len() && size(rows, weight.rows()) <= y.len());
        }
        linear::forward(self, x, rows, dtype, outputs);
    }

    fn linear_backward_input(&self, dy: &CpuBuf, rows: usize, weight: &CpuWeight, dx: &mut CpuBuf) {
        assert!(size(rows, weight.rows()) <= dy.len() && size(rows, weight.cols()) <= dx.len());
        linear::backward_input(self, dy, rows, weight, dx);
    }

    fn linear_backward_weight(
        &self,
        x: &CpuBuf,
        cols_in: usize,
        dy: &CpuBuf,
        cols_out: usize,
        rows: usize,
        dw: &mut CpuBuf,
    ) {
        assert!(size(rows, cols_in) <= x.len() && size(rows, cols_out) <= dy.len());
        assert!(size(cols_out, cols_in) <= dw.len());
        linear::backward_weight(self, x, cols_in, dy, cols_out, rows, dw);
    }

    fn add_bias(&self, y: &mut CpuBuf, bias: &CpuBuf, width: usize, rows: usize, dtype: Dtype) {
        assert!(width > 0);
        ops::bias::forward(self, &mut y[..size(rows, width)], &bias[..width], dtype);
    }

    fn add_bias_backward(&self, dy: &CpuBuf, width: usize, rows: usize, dbias: &mut CpuBuf) {
        assert!(width > 0);
        ops::bias::backward(self, &dy[..size(rows, width)], &mut dbias[..width]);
    }

    fn rms_norm(&self, x: &CpuBuf, norm: &RmsNorm<'_, CpuBuf>, rows: usize, y: &mut CpuBuf) {
        let len = size(rows, norm.width);
        assert!(norm.width > 0 && norm.width <= norm.weight.len());
        ops::rms_norm::forward(self, &x[..len], norm, &mut y[..len]);
    }

    fn rms_norm_backward(
        &self,
        x: &CpuBuf,
        norm: &RmsNorm<'_, CpuBuf>,
        rows: usize,
        dy: &CpuBuf,
        dx: &mut CpuBuf,
        dweight: Option<&mut CpuBuf>,
    ) {
        let len = size(rows, norm.width);
        assert!(norm.width > 0 && norm.width <= norm.weight.len());
        let dweight = dweight.map(|dweight| &mut dweight[..norm.width]);
        ops::rms_norm::backward(self, &x[..len], norm, &dy[..len], &mut dx[..len], dweight);
    }

    fn rope(
        &self,
        x: &mut CpuBuf,
        rows: usize,
        n_heads: usize,
        head_dim: usize,
        table: &RopeTable<'_, CpuBuf>,
    ) {
        check_rope(rows, head_dim, table);
        let row_len = n_heads * head_dim;
        let x = &mut x[..size(rows, row_len)];
        ops::rope::rotate(self, x, row_len, head_dim, table, 1.0);
    }

    fn rope_backward(
        &self,
        dx: &mut CpuBuf,
        rows: usize,
        n_heads: usize,
        head_dim: usize,
        table: &RopeTable<'_, CpuBuf>,
    ) {
        check_rope(rows, head_dim, table);
        let row_len = n_heads * head_dim;
        let dx = &mut dx[..size(rows, row_len)];
        ops::rope::rotate(self, dx, row_len, head_dim, table, -1.0);
    }

    fn attention(
        &self,
        q: &CpuBuf,
        cache: &CpuKvCache,
        spans: &[Span<'_>],
        spec: AttentionSpec,
        y: &mut CpuBuf,
        outputs: AttentionOutputs<'_, CpuBuf>,
    ) {
        let shape = cache.shape();
        assert!(spec.n_heads > 0 && spec.n_heads.is_multiple_of(shape.n_kv_heads));
        let (rows, row_len) = (end_of(spans), spec.n_heads * shape.head_dim);
        let mut probs = 0;
        for span in spans {
            cache.check(span);
            check_mask(span);
            probs += spec.n_heads * span.rows.len() * span.n_keys;
        }
        assert!(outputs.probs.as_ref().is_none_or(|buf| probs <= buf.len()));
        let log_sum_exps = size(rows, spec.n_heads);
        assert!(outputs.log_sum_exp.as_ref().is_none_or(|buf| log_sum_exps <= buf.len()));
        let len = size(rows, row_len);
        ops::attention::forward(self, (&q[..len], cache), spans, spec, &mut y[..len], outputs);
    }

    fn attention_backward(
        &self,
        forward: &AttentionForward<'_, CpuBuf>,
        spans: &[Span<'_>],
        spec: AttentionSpec,
        dy: &CpuBuf,
        grads: AttentionGrads<'_, CpuBuf>,
    ) {
        let (n_kv_heads, head_dim) = (forward.n_kv_heads, forward.head_dim);
        assert!(n_kv_heads > 0 && head_dim > 0);
        assert!(spec.n_heads > 0 && spec.n_heads.is_multiple_of(n_kv_heads));
        for span in spans {
            assert_eq!(span.n_keys, span.rows.len(), "the span had keys before the batch");
            check_mask(span);
        }
        let rows = end_of(spans);
        let (q_len, kv_len) =
            (size(rows, spec.n_heads * head_dim), size(rows, n_kv_heads * head_dim));
        assert!([forward.q, forward.y, dy, grads.dq].iter().all(|buf| q_len <= buf.len()));
        assert!([forward.k, forward.v, grads.dk, grads.dv].iter().all(|buf| kv_len <= buf.len()));
        assert!(size(rows, spec.n_heads) <= forward.log_sum_exp.len());
        ops::attention::backward(self, forward, spans, spec, dy, grads);
    }

    fn act_mul(
        &self,
        activation: Activation,
        gate: &CpuBuf,
        up: &CpuBuf,
        len: usize,
        dtype: Dtype,
        y: &mut CpuBuf,
    ) {
        let (gate, up, y) = (&gate[..len], &up[..len], &mut y[..len]);
        ops::act_mul::forward(self, activation, gate, up, dtype, y);
    }

    fn act_mul_backward(
        &self,
        activation: Activation,
        gate: &CpuBuf,
        up: &CpuBuf,
        len: usize,
        dy: &CpuBuf,
        (dgate, dup): (&mut CpuBuf, &mut CpuBuf),
    ) {
        let grads = (&mut dgate[..len], &mut dup[..len]);
        ops::act_mul::backward(self, activation, &gate[..len], &up[..len], &dy[..len], grads);
    }

    fn add_scaled(&self, y: &mut CpuBuf, x: &CpuBuf, scale: f32, len: usize, dtype: Dtype) {
        ops::elementwise::add_scaled(self, &mut y[..len], &x[..len], scale, dtype);
    }

    fn scale(&self, y: &mut CpuBuf, scale: f32, len: usize) {
        ops::elementwise::scale(self, &mut y[..len], scale);
    }

    fn cross_entropy(
        &self,
        logits: &CpuBuf,
        vocab_size: usize,
        targets: &[Option<u32>],
        nll: &mut [f32],
    ) {
        check_targets(targets, vocab_size);
        let logits = &logits[..size(targets.len(), vocab_size)];
        ops::cross_entropy::forward(self, logits, targets, &mut nll[..targets.len()]);
    }

    fn cross_entropy_backward(
        &self,
        logits: &CpuBuf,
        vocab_size: usize,
        targets: &[Option<u32>],
        weights: &[f32],
        dlogits: &mut CpuBuf,
    ) {
        check_targets(targets, vocab_size);
        assert_eq!(weights.len(), targets.len());
        let len = size(targets.len(), vocab_size);
        let dlogits = &mut dlogits[..len];
        ops::cross_entropy::backward(self, &logits[..len], targets, weights, dlogits);
    }

    fn sum_squares(&self, x: &CpuBuf, len: usize) -> f64 {
        ops::sum_squares::sum_squares(self, &x[..len])
    }

    fn adamw(
        &self,
        params: &mut CpuBuf,
        grads: &CpuBuf,
        (first, second): (&mut CpuBuf, &mut CpuBuf),
        len: usize,
        step: AdamW,
    ) {
        assert!(step.step > 0, "the first step is 1");
        let moments = (&mut first[..len], &mut second[..len]);
        ops::adamw::adamw(self, &mut params[..len], &grads[..len], moments, step);
    }
}

/// `rows * cols`, which a shape that fits in memory never overflows.
fn size(rows: usize, cols: usize) -> usize {
    rows.checked_mul(cols).expect("the shape overflows")
}

/// Rows that a batch of these spans needs.
fn end_of(spans: &[Span<'_>]) -> usize {
    spans.iter().map(|span| span.rows.end).max().unwrap_or(0)
}

fn check_mask(span: &Span<'_>) {
    match span.mask {
        Mask::Causal => {}
        Mask::CausalKeys(keep) => assert_eq!(keep.len(), span.n_keys),
        Mask::Additive(bias) => assert_eq!(bias.len(), size(span.rows.len(), span.n_keys)),
    }
}

fn check_rope(rows: usize, head_dim: usize, table: &RopeTable<'_, CpuBuf>) {
    assert!(table.rotary_dim.is_multiple_of(2) && table.rotary_dim <= head_dim && head_dim > 0);
    let angles = size(rows, table.rotary_dim / 2);
    assert!(angles <= table.cos.len() && angles <= table.sin.len());
}

fn check_targets(targets: &[Option<u32>], vocab_size: usize) {
    let known = |target: &u32| (*target as usize) < vocab_size;
    assert!(targets.iter().flatten().all(known), "target beyond the vocabulary");
}
