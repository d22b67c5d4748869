//! Rows chosen from a buffer or a table `(rows, width)`, some of them more than once:
//! `y[i] = x[ids[i]]`; backward `dx[ids[i]] += dy[i]` against differences.

use super::*;

/// Sums of at most four values below 1.
const CLOSE: Tolerance = Tolerance::new(5e-7, 0.0);

fn expected_sum(held: &[f32], dy: &[f32], width: usize, ids: &[u32]) -> Vec<f64> {
    naive::gradient(&vec![0.0; held.len()], &wide(dy), |x| {
        ids.iter().flat_map(|id| x[*id as usize * width..][..width].to_vec()).collect()
    })
    .iter()
    .zip(held)
    .map(|(grad, held)| grad + f64::from(*held))
    .collect()
}

pub(super) fn gather<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(10);
    let mut results = Vec::new();
    for (rows, width) in [(1, 1), (6, 67), (4, 130)] {
        let indices: Vec<u32> = (0..5).map(|i| (i * 7 % rows) as u32).chain([0, 0]).collect();
        let x = random.values(rows * width, 1.0);
        let len = indices.len() * width;
        let mut y = poisoned(b, len);
        b.gather_rows(&upload(b, &x), width, &indices, &mut y);
        let y = download(b, &y, len);
        for (y, index) in y.chunks(width).zip(&indices) {
            assert_eq!(y, &x[*index as usize * width..][..width]);
        }
        let (dy, held) = (random.values(len, 1.0), random.values(rows * width, 1.0));
        let mut dx = upload(b, &held);
        b.gather_rows_backward(&upload(b, &dy), width, &indices, &mut dx);
        let dx = download(b, &dx, rows * width);
        CLOSE.check("dx", &dx, &expected_sum(&held, &dy, width, &indices));
        results.extend(y.into_iter().chain(dx));
    }
    results
}

pub(super) fn embed<B: Backend>(b: &B) -> Vec<f32> {
    let mut random = Random(11);
    let (rows, width) = (9, 67);
    let ids = [8, 0, 3, 3, 8, 3, 1];
    let table = random.values(rows * width, 1.0);
    let weight = b.weight_from(upload(b, &table), rows, width);
    let mut y = poisoned(b, ids.len() * width);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        b.embed(&weight, &ids, dtype, &mut y);
        let y = download(b, &y, ids.len() * width);
        for (y, id) in y.chunks(width).zip(ids) {
            let row = table[id as usize * width..][..width].iter();
            assert_eq!(y, row.map(|&x| dtype.round(x)).collect::<Vec<_>>());
        }
    }
    let (dy, held) = (random.values(ids.len() * width, 1.0), random.values(rows * width, 1.0));
    let mut dtable = upload(b, &held);
    b.embed_backward(&ids, width, &upload(b, &dy), &mut dtable);
    let dtable = download(b, &dtable, rows * width);
    CLOSE.check("dtable", &dtable, &expected_sum(&held, &dy, width, &ids));
    download(b, &y, ids.len() * width).into_iter().chain(dtable).collect()
}
