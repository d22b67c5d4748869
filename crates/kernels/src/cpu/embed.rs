//! Rows of a table `(vocab_size, width)` of any format. In: ids. Out: y `(ids, width)`.
//! `y[r] = table[ids[r]]`; backward `dtable[ids[r]] += dy[r]`, in the order of the ids.

use super::product::round;
use super::tiles::Tiles;
use super::weight::CpuWeight;
use super::{Cpu, CpuBuf};
use crate::Dtype;

/// Columns of a part of the backward; each part walks the ids in order, so that repeated ids add
/// in one order.
const WIDTH: usize = 64;

/// See [`crate::Backend::embed`].
pub(super) fn forward(cpu: &Cpu, table: &CpuWeight, ids: &[u32], dtype: Dtype, y: &mut CpuBuf) {
    let width = table.cols();
    let y = &mut y[..ids.len() * width];
    if y.is_empty() {
        return;
    }
    cpu.pool.for_each_chunk(y, width, |i, y| {
        table.dequantize(cpu.kernels, ids[i] as usize, 0..width, y);
        round(dtype, &mut [y]);
    });
}

/// See [`crate::Backend::embed_backward`].
pub(super) fn backward(cpu: &Cpu, ids: &[u32], width: usize, dy: &CpuBuf, dtable: &mut CpuBuf) {
    let dy = &dy[..ids.len() * width];
    let Some(rows) = ids.iter().max().map(|&id| id as usize + 1) else { return };
    let dtable = Tiles::new(dtable, rows, width);
    cpu.pool.run(width.div_ceil(WIDTH), |part| {
        let cols = part * WIDTH..width.min((part + 1) * WIDTH);
        for (r, &id) in ids.iter().enumerate() {
            let id = id as usize;
            // SAFETY: parts differ in columns; a part has one row at a time.
            let [row] = unsafe { dtable.rows(id, id + 1, &cols) };
            for (sum, dy) in row.iter_mut().zip(&dy[r * width..][cols.clone()]) {
                *sum += dy;
            }
        }
    });
}
