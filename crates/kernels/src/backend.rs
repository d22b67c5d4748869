//! The operations that a LLaMA needs, forward and backward in pairs. Matrices are row-major;
//! `(rows, cols)` names their shape. A buffer may be longer than the shape that an operation reads
//! from it, so that one workspace serves every batch size. Weights are stored `(out, in)`. `x`
//! goes to `y`; `dy` comes back as `dx`; every gradient is *added* to what its buffer holds. Wrong
//! shapes are bugs of the caller and panic at entry; nothing that a user sends reaches such a
//! check.

use std::fmt::Debug;
use std::ops::Range;

use bytes::Bytes;

use crate::{Dtype, Format, KvDtype};

/// The device cannot give the memory that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory: {what} needs {bytes} bytes")]
pub struct OutOfMemory {
    /// What the memory was for, as a user would say it.
    pub what: String,
    /// How much was asked for.
    pub bytes: u64,
}

/// A weight matrix as a file holds it.
#[derive(Clone, Debug)]
pub struct WeightData {
    /// How the bytes encode the values.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features; a multiple of the format's block length.
    pub cols: usize,
    /// `rows * format.row_bytes(cols)` bytes, mapped or owned.
    pub bytes: Bytes,
}

/// Shape of a paged key-value cache: `n_layers` × keys and values ×
/// `(n_blocks, n_kv_heads, block_len, head_dim)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub n_layers: usize,
    /// Blocks in the pool, shared by all sequences.
    pub n_blocks: usize,
    /// Tokens in one block.
    pub block_len: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// How keys and values are stored.
    pub dtype: KvDtype,
}

impl KvShape {
    /// Bytes of the whole pool, or `None` where that overflows. A device may round blocks and heads
    /// up to whole vectors.
    pub fn bytes(&self) -> Option<usize> {
        [self.n_blocks, self.block_len, self.n_kv_heads, 2, self.dtype.row_bytes(self.head_dim)?]
            .into_iter()
            .try_fold(self.n_layers, usize::checked_mul)
    }
}

/// The rows of one sequence in a ragged batch, and the keys that they may see.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Rows of the batch: the newest tokens of the sequence, in order.
    pub rows: Range<usize>,
    /// Keys in the cache once these rows are appended; row `i` of `n` sits at key
    /// `n_keys - n + i`.
    pub n_keys: usize,
    /// Block of each `block_len` consecutive keys.
    pub blocks: &'a [u32],
    /// Which of the keys each row sees.
    pub mask: Mask<'a>,
}

/// Which keys a row attends to.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Itself and every key before it.
    Causal,
    /// As `Causal`, and only where `keep[key]`; length `n_keys`.
    CausalKeys(&'a [bool]),
    /// Every key, after adding a bias to the scaled scores; `(n_rows, n_keys)`, the same for all
    /// heads. Nothing else is masked. A row of only `-inf` gives zeros.
    Additive(&'a [f32]),
}

/// What attention needs to know beside its buffers.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpec {
    /// Layer of the cache to read; not used by backward.
    pub layer: usize,
    /// Query heads; a multiple of the cache's `n_kv_heads`. Query head `h` reads key-value head
    /// `h / (n_heads / n_kv_heads)`.
    pub n_heads: usize,
    /// Factor on the scores, `head_dim^-0.5` in every LLaMA.
    pub scale: f32,
    /// Type that scores and probabilities are rounded to (softmax itself is always `f32`).
    pub dtype: Dtype,
}

/// Optional outputs of attention.
#[derive(Debug)]
pub struct AttentionOutputs<'a, Buf> {
    /// Probabilities, span after span, each `(n_heads, n_rows, n_keys)`.
    pub probs: Option<&'a mut Buf>,
    /// Log of the softmax denominator `(rows, n_heads)`: all that backward needs of the forward.
    pub log_sum_exp: Option<&'a mut Buf>,
}

impl<Buf> Default for AttentionOutputs<'_, Buf> {
    fn default() -> Self {
        Self { probs: None, log_sum_exp: None }
    }
}

/// A root-mean-square norm (Zhang and Sennrich, 2019).
#[derive(Debug)]
pub struct RmsNorm<'a, Buf> {
    /// Gain of each feature `(width)`.
    pub weight: &'a Buf,
    /// Features in a row.
    pub width: usize,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Type that both products are rounded to.
    pub dtype: Dtype,
}

/// Which two values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// `(i, i + rotary_dim / 2)`: Hugging Face.
    HalfSplit,
    /// `(2i, 2i + 1)`: Meta and GGUF files.
    Interleaved,
}

/// Cosines and sines of the rows of a batch, each `(rows, rotary_dim / 2)`.
#[derive(Debug)]
pub struct RopeTable<'a, Buf> {
    /// `cos(position * inv_freq)`, times the attention scaling of some RoPE kinds.
    pub cos: &'a Buf,
    /// `sin(position * inv_freq)`, likewise.
    pub sin: &'a Buf,
    /// How many values of each head rotate; the rest pass through.
    pub rotary_dim: usize,
    /// Pairing.
    pub layout: RopeLayout,
    /// Type that cos, sin and the result are rounded to.
    pub dtype: Dtype,
}

/// The gate's non-linearity, by the names of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x * sigmoid(x)`; `silu`, `swish`.
    #[default]
    Silu,
    /// `x * Φ(x)` with the exact error function; `gelu`, `gelu_python`.
    Gelu,
    /// `gelu` clipped to at most 10; `gelu_10`.
    Gelu10,
    /// The tanh approximation; `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`, `gelu_accurate`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`; `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`; `relu`.
    Relu,
    /// `max(x, 0)²`; `relu2`.
    Relu2,
    /// `clamp(x, 0, 6)`; `relu6`.
    Relu6,
    /// `x` for positive `x`, else `0.01 x`; `leaky_relu`.
    LeakyRelu,
    /// `x`; `linear`.
    Linear,
    /// `1 / (1 + exp(-x))`; `sigmoid`.
    Sigmoid,
    /// `tanh(x)`; `tanh`.
    Tanh,
    /// `x * tanh(ln(1 + exp(x)))`; `mish`.
    Mish,
    /// `x * clamp(x + 3, 0, 6) / 6`; `hardswish`.
    HardSwish,
    /// `0.5 (1 + erf((x - μ) / (σ √2)))`, μ = 0.707107, σ = 0.282095; `laplace`.
    Laplace,
}

/// One AdamW step (Loshchilov and Hutter, 2019; the order of operations is PyTorch's, which keeps
/// these numbers as `f64`: `1 - beta2` of an `f32` would be off by 1e-5).
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// 1 for the first step.
    pub step: u32,
}

/// A device that can compute a LLaMA.
pub trait Backend: Debug + Send + Sync + 'static {
    /// An array of `f32` on the device.
    type Buf: Debug + Send + Sync;
    /// A weight matrix on the device, in its format.
    type Weight: Debug + Send + Sync;
    /// A paged key-value cache on the device.
    type KvCache: Debug + Send + Sync;

    // --- memory ---

    /// A buffer of `len` zeros. `what` names it in the error.
    fn alloc(&self, len: usize, what: &str) -> Result<Self::Buf, OutOfMemory>;
    /// Copies `src` to `dst[offset..]`.
    fn write(&self, dst: &mut Self::Buf, offset: usize, src: &[f32]);
    /// Copies `src[offset..]` to `dst`.
    fn read(&self, src: &Self::Buf, offset: usize, dst: &mut [f32]);
    /// Brings a weight to the device; may repack it.
    fn weight(&self, data: WeightData) -> Result<Self::Weight, OutOfMemory>;
    /// Whether a weight still reads the bytes that it was made of; else nothing is lost when they
    /// go.
    fn reads_source(&self, weight: &Self::Weight) -> bool;
    /// A trainable `(rows, cols)` matrix that lives in a buffer.
    fn weight_from(&self, values: Self::Buf, rows: usize, cols: usize) -> Self::Weight;
    /// The values of a weight made by [`Backend::weight_from`]; `None` for a frozen one.
    fn weight_values<'a>(&self, weight: &'a mut Self::Weight) -> Option<&'a mut Self::Buf>;
    /// A zeroed cache.
    fn kv_cache(&self, shape: KvShape) -> Result<Self::KvCache, OutOfMemory>;
    /// Stores the new rows `k` and `v` `(rows, n_kv_heads * head_dim)` of `layer`, rounded to the
    /// cache's type, where `spans` say.
    fn append_kv(
        &self,
        cache: &mut Self::KvCache,
        layer: usize,
        k: &Self::Buf,
        v: &Self::Buf,
        spans: &[Span<'_>],
    );
    /// Reads the first `n_keys` keys and values of `blocks`, each `(n_kv_heads, n_keys, head_dim)`.
    fn read_kv(
        &self,
        cache: &Self::KvCache,
        layer: usize,
        blocks: &[u32],
        n_keys: usize,
        keys: &mut [f32],
        values: &mut [f32],
    );
    /// Copies block `from` to block `to` in every layer.
    fn copy_kv_block(&self, cache: &mut Self::KvCache, from: u32, to: u32);

    // --- rows ---

    /// `y[r] = table[ids[r]]`, rounded to `dtype`; table `(vocab_size, hidden_size)`, y
    /// `(ids, hidden_size)`.
    fn embed(&self, table: &Self::Weight, ids: &[u32], dtype: Dtype, y: &mut Self::Buf);
    /// `dtable[ids[r]] += dy[r]`.
    fn embed_backward(&self, ids: &[u32], width: usize, dy: &Self::Buf, dtable: &mut Self::Buf);
    /// `y[i] = x[indices[i]]`, rows of `width`.
    fn gather_rows(&self, x: &Self::Buf, width: usize, indices: &[u32], y: &mut Self::Buf);
    /// `dx[indices[i]] += dy[i]`.
    fn gather_rows_backward(
        &self,
        dy: &Self::Buf,
        width: usize,
        indices: &[u32],
        dx: &mut Self::Buf,
    );

    // --- linear ---

    /// `y = x · Wᵀ` for each weight that reads the same `x` `(rows, in)`; `y` is `(rows, out)`.
    /// `dtype` is what `y` is rounded to.
    fn linear(
        &self,
        x: &Self::Buf,
        rows: usize,
        dtype: Dtype,
        outputs: &mut [(&Self::Weight, &mut Self::Buf)],
    );
    /// `dx += dy · W`.
    fn linear_backward_input(
        &self,
        dy: &Self::Buf,
        rows: usize,
        weight: &Self::Weight,
        dx: &mut Self::Buf,
    );
    /// `dw += dyᵀ · x`; x `(rows, cols_in)`, dy `(rows, cols_out)`, dw `(cols_out, cols_in)`.
    fn linear_backward_weight(
        &self,
        x: &Self::Buf,
        cols_in: usize,
        dy: &Self::Buf,
        cols_out: usize,
        rows: usize,
        dw: &mut Self::Buf,
    );
    /// `y[r] += bias`, rounded to `dtype`.
    fn add_bias(
        &self,
        y: &mut Self::Buf,
        bias: &Self::Buf,
        width: usize,
        rows: usize,
        dtype: Dtype,
    );
    /// `dbias += Σ_r dy[r]`.
    fn add_bias_backward(&self, dy: &Self::Buf, width: usize, rows: usize, dbias: &mut Self::Buf);

    // --- normalisation, position, attention, gate ---

    /// `y = round(x / sqrt(mean(x²) + eps)) * weight` for each row; both products are rounded to
    /// the norm's type, the mean is taken in `f32`.
    fn rms_norm(
        &self,
        x: &Self::Buf,
        norm: &RmsNorm<'_, Self::Buf>,
        rows: usize,
        y: &mut Self::Buf,
    );
    /// With `r = 1/sqrt(mean(x²) + eps)` and `g = dy * weight`:
    /// `dx += r g - x r³ mean(g x)`, `dweight += Σ_rows dy x r`.
    fn rms_norm_backward(
        &self,
        x: &Self::Buf,
        norm: &RmsNorm<'_, Self::Buf>,
        rows: usize,
        dy: &Self::Buf,
        dx: &mut Self::Buf,
        dweight: Option<&mut Self::Buf>,
    );
    /// Rotates `x` `(rows, n_heads * head_dim)` in place by the angles of `table`:
    /// `(a, b) -> (a cos - b sin, b cos + a sin)`.
    fn rope(
        &self,
        x: &mut Self::Buf,
        rows: usize,
        n_heads: usize,
        head_dim: usize,
        table: &RopeTable<'_, Self::Buf>,
    );
    /// The same with the angles negated, in place on the gradient.
    fn rope_backward(
        &self,
        dx: &mut Self::Buf,
        rows: usize,
        n_heads: usize,
        head_dim: usize,
        table: &RopeTable<'_, Self::Buf>,
    );
    /// `y = softmax(scale q·kᵀ + mask) · v` over the cached keys and values of the layer;
    /// q and y `(rows, n_heads * head_dim)`.
    fn attention(
        &self,
        q: &Self::Buf,
        cache: &Self::KvCache,
        spans: &[Span<'_>],
        spec: AttentionSpec,
        y: &mut Self::Buf,
        outputs: AttentionOutputs<'_, Self::Buf>,
    );
    /// Backward of attention for spans that began with an empty cache, so that the batch's own
    /// `k` and `v` `(rows, n_kv_heads * head_dim)` are all their keys. With `p` rebuilt from
    /// `log_sum_exp`: `dv += pᵀ dy`, `ds = p (dy vᵀ - rowsum(dy y))`, `dq += scale ds k`,
    /// `dk += scale dsᵀ q`.
    fn attention_backward(
        &self,
        forward: &AttentionForward<'_, Self::Buf>,
        spans: &[Span<'_>],
        spec: AttentionSpec,
        dy: &Self::Buf,
        grads: AttentionGrads<'_, Self::Buf>,
    );
    /// `y = act(gate) * up`, `len` values; both steps rounded to `dtype`.
    fn act_mul(
        &self,
        activation: Activation,
        gate: &Self::Buf,
        up: &Self::Buf,
        len: usize,
        dtype: Dtype,
        y: &mut Self::Buf,
    );
    /// `dgate += dy up act'(gate)`, `dup += dy act(gate)`.
    fn act_mul_backward(
        &self,
        activation: Activation,
        gate: &Self::Buf,
        up: &Self::Buf,
        len: usize,
        dy: &Self::Buf,
        grads: (&mut Self::Buf, &mut Self::Buf),
    );

    // --- elementwise; their own backward ---

    /// `y += scale * x`, rounded to `dtype`: residuals, adapters, gradient sums.
    fn add_scaled(&self, y: &mut Self::Buf, x: &Self::Buf, scale: f32, len: usize, dtype: Dtype);
    /// `y *= scale`; 0 clears, whatever `y` held.
    fn scale(&self, y: &mut Self::Buf, scale: f32, len: usize);

    // --- loss and optimiser ---

    /// `nll[r] = log Σ exp(logits[r]) - logits[r][target]`, 0 where the target is `None`;
    /// logits `(targets, vocab_size)`.
    fn cross_entropy(
        &self,
        logits: &Self::Buf,
        vocab_size: usize,
        targets: &[Option<u32>],
        nll: &mut [f32],
    );
    /// `dlogits[r] += weights[r] (softmax(logits[r]) - onehot(target))`; nothing for `None`.
    fn cross_entropy_backward(
        &self,
        logits: &Self::Buf,
        vocab_size: usize,
        targets: &[Option<u32>],
        weights: &[f32],
        dlogits: &mut Self::Buf,
    );
    /// `Σ x²` in `f64`, for gradient clipping.
    fn sum_squares(&self, x: &Self::Buf, len: usize) -> f64;
    /// One optimiser step on `len` parameters; `moments` are the first and the second.
    fn adamw(
        &self,
        params: &mut Self::Buf,
        grads: &Self::Buf,
        moments: (&mut Self::Buf, &mut Self::Buf),
        len: usize,
        step: AdamW,
    );
}

/// What the forward of attention read and wrote, for its backward.
#[derive(Debug)]
pub struct AttentionForward<'a, Buf> {
    /// Rotated queries `(rows, n_heads * head_dim)`.
    pub q: &'a Buf,
    /// Rotated keys `(rows, n_kv_heads * head_dim)`.
    pub k: &'a Buf,
    /// Values `(rows, n_kv_heads * head_dim)`.
    pub v: &'a Buf,
    /// Output `(rows, n_heads * head_dim)`.
    pub y: &'a Buf,
    /// `(rows, n_heads)`.
    pub log_sum_exp: &'a Buf,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Where the backward of attention adds its gradients; shapes of `q`, `k`, `v`.
#[derive(Debug)]
pub struct AttentionGrads<'a, Buf> {
    /// Gradient of the queries.
    pub dq: &'a mut Buf,
    /// Gradient of the keys.
    pub dk: &'a mut Buf,
    /// Gradient of the values.
    pub dv: &'a mut Buf,
}
