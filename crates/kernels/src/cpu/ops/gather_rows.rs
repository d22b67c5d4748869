//! Chosen rows: `y[i] = x[indices[i]]`; backward `dx[indices[i]] += dy[i]`, where an index may
//! come more than once.

use super::rows_per_part;
use crate::Dtype;
use crate::cpu::Cpu;
use crate::cpu::rect::Strips;

/// Columns of `dx` that one part adds to, over all rows.
const STRIP: usize = 64;

/// Fills y `(indices, width)` from rows of x.
pub(crate) fn forward(cpu: &Cpu, x: &[f32], width: usize, indices: &[u32], y: &mut [f32]) {
    let chunk = rows_per_part(width);
    cpu.pool.for_each_chunk(y, chunk * width, |i, y| {
        for (y, index) in y.chunks_exact_mut(width).zip(&indices[i * chunk..]) {
            y.copy_from_slice(&x[*index as usize * width..][..width]);
        }
    });
}

/// Adds rows of dy `(indices, width)` to rows of dx. Strips of columns are the parts, so that two
/// parts never meet in a row that is named twice.
pub(crate) fn backward(cpu: &Cpu, dy: &[f32], width: usize, indices: &[u32], dx: &mut [f32]) {
    let all = 0..dx.len() / width;
    let matrix = Strips { data: dx, row_len: width, strip_len: STRIP };
    cpu.pool.for_each_rect([matrix], std::slice::from_ref(&all), |_, strip, [mut dx]| {
        for (dy, index) in dy.chunks_exact(width).zip(indices) {
            let dx = dx.row(*index as usize);
            let dy = &dy[strip * STRIP..][..dx.len()];
            (cpu.kernels.add_scaled)(dx, dy, 1.0, Dtype::F32);
        }
    });
}
