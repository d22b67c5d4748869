//! Attention over a paged cache whose unused slots hold NaN: `y = softmax(scale q·kᵀ + mask) · v`.
//! In: q `(rows, n_heads, head_dim)` of several sequences, their masks and block tables. Out: y,
//! `log Σ exp` of the scores `(rows, n_heads)`, probabilities; and the bits of a row alone.

use super::*;
use crate::{AttentionOutputs, AttentionSpec, KvDtype, KvShape, Mask, Span};

/// `f32` sums over up to a thousand keys of probabilities (1 in all) times values below 1, after
/// scores good to about 1e-6.
const CLOSE: Tolerance = Tolerance::new(5e-6, 1e-6);

/// Against keys in bytes, queries (up to 4) are rounded to 15 bits of the largest of 32: each to
/// 1.2e-4, and the errors of several largely cancel.
const WHOLE: Tolerance = Tolerance::new(3e-4, 1e-5);

/// Sizes of one case.
#[derive(Clone, Copy)]
struct Sizes {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    block_len: usize,
}

const fn sizes(n_heads: usize, n_kv_heads: usize, head_dim: usize, block_len: usize) -> Sizes {
    Sizes { n_heads, n_kv_heads, head_dim, block_len }
}

/// Which keys the rows of a sequence see, owned.
enum OwnMask {
    Causal,
    Keys(Vec<bool>),
    Additive(Vec<f32>),
}

impl OwnMask {
    fn lend(&self) -> Mask<'_> {
        match self {
            Self::Causal => Mask::Causal,
            Self::Keys(keep) => Mask::CausalKeys(keep),
            Self::Additive(bias) => Mask::Additive(bias),
        }
    }
}

/// New rows, keys in all, mask.
type Sequence = (usize, usize, OwnMask);

fn causal(sequences: &[(usize, usize)]) -> Vec<Sequence> {
    sequences.iter().map(|(rows, keys)| (*rows, *keys, OwnMask::Causal)).collect()
}

/// A filled cache and the queries for it.
struct Scene<B: Backend> {
    sizes: Sizes,
    cache_dtype: KvDtype,
    cache: B::KvCache,
    tables: Vec<Vec<u32>>,
    sequences: Vec<Sequence>,
    q: Vec<f32>,
}

/// The layer in use; the one before it holds nothing.
const LAYER: usize = 1;

impl<B: Backend> Scene<B> {
    fn new(
        b: &B,
        random: &mut Random,
        sizes: Sizes,
        (cache_dtype, dtype): (KvDtype, Dtype),
        sequences: Vec<Sequence>,
    ) -> Self {
        let Sizes { n_heads, n_kv_heads, head_dim, block_len } = sizes;
        let needed: Vec<usize> = sequences.iter().map(|s| s.1.div_ceil(block_len)).collect();
        let n_blocks = needed.iter().sum::<usize>() + 2;
        let shape =
            KvShape { n_layers: 2, n_blocks, block_len, n_kv_heads, head_dim, dtype: cache_dtype };
        let mut cache = b.kv_cache(shape).expect("a small cache");
        let mut free: Vec<u32> = (0..n_blocks as u32).collect();
        let nan = upload(b, &vec![f32::NAN; block_len * n_kv_heads * head_dim]);
        for block in &free {
            let blocks = std::slice::from_ref(block);
            let span = Span { rows: 0..block_len, n_keys: block_len, blocks, mask: Mask::Causal };
            b.append_kv(&mut cache, LAYER, &nan, &nan, &[span]);
        }
        let mut tables = Vec::new();
        for (sequence, needed) in sequences.iter().zip(needed) {
            let n_keys = sequence.1;
            let mut take = || free.swap_remove(random.next() as usize % free.len());
            let table: Vec<u32> = (0..needed).map(|_| take()).collect();
            let mut fill =
                || upload(b, &random.rounded(n_keys * n_kv_heads * head_dim, 1.0, dtype));
            let (k, v) = (fill(), fill());
            let span = Span { rows: 0..n_keys, n_keys, blocks: &table, mask: Mask::Causal };
            b.append_kv(&mut cache, LAYER, &k, &v, &[span]);
            tables.push(table);
        }
        let rows: usize = sequences.iter().map(|s| s.0 + 1).sum();
        let q = random.rounded(rows * n_heads * head_dim, 4.0, dtype);
        Self { sizes, cache_dtype, cache, tables, sequences, q }
    }

    /// One span for each sequence, one unused row before each, the last sequence first.
    fn spans(&self) -> Vec<Span<'_>> {
        let mut start = 0;
        let mut spans = Vec::new();
        for ((n_rows, n_keys, mask), blocks) in self.sequences.iter().zip(&self.tables) {
            let rows = start + 1..start + 1 + n_rows;
            start = rows.end;
            spans.push(Span { rows, n_keys: *n_keys, blocks, mask: mask.lend() });
        }
        spans.rotate_right(1);
        spans
    }

    fn spec(&self, dtype: Dtype) -> AttentionSpec {
        let scale = (self.sizes.head_dim as f32).powf(-0.5);
        AttentionSpec { layer: LAYER, n_heads: self.sizes.n_heads, scale, dtype }
    }

    /// Output, log-sum-exps, probabilities.
    fn run(&self, b: &B, dtype: Dtype) -> [Vec<f32>; 3] {
        let spans = self.spans();
        let rows = self.q.len() / (self.sizes.n_heads * self.sizes.head_dim);
        let probs_len = spans.iter().map(|s| self.sizes.n_heads * s.rows.len() * s.n_keys).sum();
        let (mut y, mut lse) = (poisoned(b, self.q.len()), poisoned(b, rows * self.sizes.n_heads));
        let mut probs = poisoned(b, probs_len);
        let outputs = AttentionOutputs { probs: Some(&mut probs), log_sum_exp: Some(&mut lse) };
        let q = upload(b, &self.q);
        b.attention(&q, &self.cache, &spans, self.spec(dtype), &mut y, outputs);
        let mut plain = poisoned(b, self.q.len());
        let outputs = AttentionOutputs::default();
        b.attention(&q, &self.cache, &spans, self.spec(dtype), &mut plain, outputs);
        let y = download(b, &y, self.q.len());
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&y), bits(&download(b, &plain, self.q.len())), "outputs change nothing");
        [y, download(b, &lse, rows * self.sizes.n_heads), download(b, &probs, probs_len)]
    }

    /// Runs, compares with the oracle, returns all that was computed.
    fn check(&self, b: &B, dtype: Dtype) -> Vec<f32> {
        let Sizes { n_heads, n_kv_heads, head_dim, .. } = self.sizes;
        let [y, lse, probs] = self.run(b, dtype);
        let row_len = n_heads * head_dim;
        let mut probs_at = 0;
        for span in self.spans() {
            let len = span.n_keys * n_kv_heads * head_dim;
            let (mut k, mut v) = (vec![0.0; len], vec![0.0; len]);
            b.read_kv(&self.cache, LAYER, span.blocks, span.n_keys, &mut k, &mut v);
            let scale = f64::from(self.spec(dtype).scale);
            let mask = span.mask;
            let oracle = naive::Attention { n_heads, n_kv_heads, head_dim, scale, dtype, mask };
            let rows = span.rows.start * row_len..span.rows.end * row_len;
            let expected = oracle.attend(&wide(&self.q[rows.clone()]), &wide(&k), &wide(&v));
            // One step of a score moves its probability by up to its size (16) times a step.
            let loose = match dtype {
                Dtype::F32 if self.cache_dtype == KvDtype::Q8 => WHOLE,
                Dtype::F32 => CLOSE,
                Dtype::F16 => Tolerance::new(4e-3, 2e-3),
                Dtype::Bf16 => Tolerance::new(3e-2, 2e-2),
            };
            loose.check("y", &y[rows], &expected.y);
            let heads = span.rows.start * n_heads..span.rows.end * n_heads;
            loose.check("log_sum_exp", &lse[heads], &expected.log_sum_exp);
            let these = &probs[probs_at..][..expected.probs.len()];
            loose.check("probs", these, &expected.probs);
            assert!(these.iter().all(|p| dtype.round(*p) == *p));
            probs_at += expected.probs.len();
            assert!(y[(span.rows.start - 1) * row_len..][..row_len].iter().all(|v| v.is_nan()));
        }
        let written = y.iter().chain(&lse).filter(|v| !v.is_nan()).chain(&probs);
        written.copied().collect()
    }
}

/// Odd sizes: heads of one, groups of one to nine, blocks of one.
pub(super) fn small<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(18);
    let mut results = Vec::new();
    let all = [
        sizes(1, 1, 1, 1),
        sizes(3, 3, 7, 2),
        sizes(4, 2, 8, 3),
        sizes(9, 3, 64, 16),
        sizes(8, 2, 33, 5),
        sizes(9, 1, 72, 4),
    ];
    for sizes in all {
        for cache in KvDtype::ALL {
            let sequences = causal(&[(1, 1), (5, 5), (1, 19), (30, 41)]);
            let scene = Scene::<B>::new(b, &mut random, sizes, (cache, Dtype::F32), sequences);
            results.extend(scene.check(b, Dtype::F32));
        }
    }
    results
}

/// Padding, biases, rows that see nothing.
pub(super) fn masks<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(19);
    let n = 21;
    // The first five keys are padding: rows 0 to 4 see nothing at all.
    let padded: Vec<bool> = (0..n).map(|key| key >= 5 && key != 11).collect();
    let mut bias = random.values(4 * n, 3.0);
    bias[..n].fill(f32::NEG_INFINITY);
    bias[n..2 * n].fill(f32::MIN);
    bias[2 * n..2 * n + 7].fill(f32::NEG_INFINITY);
    bias[3 * n + 2..4 * n].fill(f32::MIN);
    let sequences = vec![
        (n, n, OwnMask::Keys(padded)),
        (4, n, OwnMask::Additive(bias)),
        (2, 300, OwnMask::Keys((0..300).map(|key| key >= 280).collect())),
    ];
    let (heads, types) = (sizes(4, 2, 24, 4), (KvDtype::F32, Dtype::F32));
    let scene = Scene::<B>::new(b, &mut random, heads, types, sequences);
    let results = scene.check(b, Dtype::F32);
    let [y, lse, _] = scene.run(b, Dtype::F32);
    let row_len = heads.n_heads * heads.head_dim;
    let blind = [1, 5, n + 2];
    for row in blind {
        assert!(y[row * row_len..][..row_len].iter().all(|v| *v == 0.0), "row {row}");
        assert!(
            lse[row * heads.n_heads..][..heads.n_heads].iter().all(|v| *v == f32::NEG_INFINITY)
        );
    }
    results
}

/// Scores and probabilities in narrow types, alone and with split ranges.
pub(super) fn narrow_types<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(20);
    let mut results = Vec::new();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for sequences in [vec![(7, 9), (1, 20)], vec![(1, 700)]] {
            let (heads, sequences) = (sizes(6, 2, 16, 8), causal(&sequences));
            let scene = Scene::<B>::new(b, &mut random, heads, (dtype.into(), dtype), sequences);
            results.extend(scene.check(b, dtype));
        }
    }
    results
}

/// More keys than one range, few rows: ranges go to different threads.
pub(super) fn long_contexts<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(21);
    let mut results = Vec::new();
    for sequences in [vec![(1, 1030)], vec![(1, 600), (3, 257), (1, 256)], vec![(300, 520)]] {
        for cache in KvDtype::ALL {
            let (heads, types) = (sizes(2, 1, 20, 16), (cache, Dtype::F32));
            let scene = Scene::<B>::new(b, &mut random, heads, types, causal(&sequences));
            results.extend(scene.check(b, Dtype::F32));
        }
    }
    results
}

/// A row gives the same bits alone as among others, however the cache is cut into blocks.
pub(super) fn row_by_row<B: Backend>(b: &B) -> Vec<f32> {
    let mut results = Vec::new();
    let caches = KvDtype::ALL.map(|cache| (cache, Dtype::F32));
    for types in caches.into_iter().chain([(KvDtype::F32, Dtype::Bf16)]) {
        let dtype = types.1;
        let ys: Vec<[Vec<f32>; 3]> = [4, 16, 1000]
            .map(|block_len| {
                let heads = sizes(6, 2, 20, block_len);
                let sequences = causal(&[(290, 290)]);
                Scene::<B>::new(b, &mut Random(22), Sizes { ..heads }, types, sequences)
            })
            .map(|mut scene| {
                scene.q = Random(23).rounded(scene.q.len(), 3.0, dtype);
                refill(b, &mut scene, dtype);
                let whole = scene.run(b, dtype);
                alone(b, &scene, dtype, &whole[0]);
                whole
            })
            .into();
        let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(ys.iter().all(|y| bits(&y[0]) == bits(&ys[0][0])), "block length");
        results.extend(ys.into_iter().flatten().flatten().filter(|v| !v.is_nan()));
    }
    results
}

/// The same keys and values whatever random numbers the block table took.
fn refill<B: Backend>(b: &B, scene: &mut Scene<B>, dtype: Dtype) {
    let n_keys = scene.sequences[0].1;
    let mut random = Random(24);
    let len = n_keys * scene.sizes.n_kv_heads * scene.sizes.head_dim;
    let (k, v) = (random.rounded(len, 1.0, dtype), random.rounded(len, 1.0, dtype));
    let span = Span { rows: 0..n_keys, n_keys, blocks: &scene.tables[0], mask: Mask::Causal };
    b.append_kv(&mut scene.cache, LAYER, &upload(b, &k), &upload(b, &v), &[span]);
}

/// Rows one at a time, as decode computes them.
fn alone<B: Backend>(b: &B, scene: &Scene<B>, dtype: Dtype, whole: &[f32]) {
    let row_len = scene.sizes.n_heads * scene.sizes.head_dim;
    for token in [0, 1, 100, 255, 256, 289] {
        let at = (token + 1) * row_len..(token + 2) * row_len;
        let mut y = poisoned(b, row_len);
        let (blocks, mask) = (&scene.tables[0][..], Mask::Causal);
        let span = Span { rows: 0..1, n_keys: token + 1, blocks, mask };
        let (q, outputs) = (upload(b, &scene.q[at.clone()]), AttentionOutputs::default());
        b.attention(&q, &scene.cache, &[span], scene.spec(dtype), &mut y, outputs);
        let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&download(b, &y, row_len)), bits(&whole[at]), "token {token}");
    }
}
