//! AWQ (Lin and others, 2023) in the layout of its matrix product (`gemm`): `qweight`
//! `(in, out / 8)` and `qzeros` `(groups, out / 8)` hold eight outputs in a word, in the order 0, 2,
//! 4, 6, 1, 3, 5, 7 from its low end; `scales` `(groups, out)`. `w = scale (code - zero)`.

use bytes::Bytes;
use puna_kernels::Dtype;

use super::bits::word;
use super::{Decode, Floats, Groups, Parts, group_shape};
use crate::checkpoint::error::{CheckpointError, Fault};

/// Where in its word each of eight outputs is.
const PLACE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

#[derive(Debug)]
struct Awq {
    rows: usize,
    codes: Bytes,
    zeros: Bytes,
    scales: Floats,
    groups: Groups,
    n_groups: usize,
}

pub(super) fn decoder(parts: &mut Parts<'_>) -> Result<Box<dyn Decode>, CheckpointError> {
    let (rows, cols) = (parts.rows, parts.cols);
    let settings = parts.settings;
    let bits = settings.integer("bits").or(settings.integer("w_bit")).unwrap_or(4);
    if bits != 4 {
        let why = format!("weights of {bits} bits are not read; AWQ has 4");
        return Err(settings.error("bits", Fault::Unsupported(why)));
    }
    if let Some(version) = settings.text("version").or(settings.text("format"))
        && !version.eq_ignore_ascii_case("gemm")
    {
        let why = format!("the layout '{version:.40}' is not read; AWQ's 'gemm' is");
        return Err(settings.error("version", Fault::Unsupported(why)));
    }
    if !rows.is_multiple_of(8) {
        return Err(parts.malformed("qweight", format!("{rows} rows are not whole words")));
    }
    let size = settings.integer("group_size").or(settings.integer("q_group_size"));
    let (len, n_groups) = group_shape(parts, size.unwrap_or(128))?;
    let codes = parts.integers("qweight", "int32", &[&[cols, rows / 8]])?;
    let zeros = parts.integers("qzeros", "int32", &[&[n_groups, rows / 8]])?;
    let scales = parts.floats("scales", &[&[n_groups, rows]])?;
    Ok(Box::new(Awq { rows, codes, zeros, scales, groups: Groups::Runs(len), n_groups }))
}

impl Awq {
    /// Code of an output in a row of words.
    fn code(&self, bytes: &[u8], line: usize, row: usize) -> i32 {
        let word = word(bytes, line * (self.rows / 8) + row / 8);
        ((word >> (4 * PLACE[row % 8])) & 15).cast_signed()
    }
}

impl Decode for Awq {
    fn row(&self, row: usize, codes: &mut [f32], scales: &mut [f32]) {
        let of_group =
            |group| (self.code(&self.zeros, group, row), self.scales.get(group * self.rows + row));
        let groups: Vec<(i32, f32)> = (0..self.n_groups).map(of_group).collect();
        for (column, (out, scale)) in codes.iter_mut().zip(scales).enumerate() {
            let (zero, factor) = groups[self.groups.of(column)];
            *out = (self.code(&self.codes, column, row) - zero) as f32;
            *scale = factor;
        }
    }

    fn whole_numbers(&self) -> Option<(i32, i32)> {
        if !self.groups.hold_blocks() || !self.scales.are_f16() {
            return None;
        }
        let zeros = (0..self.n_groups)
            .flat_map(|group| (0..self.rows).map(move |row| (group, row)))
            .map(|(group, row)| self.code(&self.zeros, group, row));
        let (least, largest) =
            zeros.fold((15, 0), |(least, largest), zero| (zero.min(least), zero.max(largest)));
        Some((-largest, 15 - least))
    }

    fn dtype(&self) -> Dtype {
        self.scales.dtype().unwrap_or(Dtype::F16)
    }
}
