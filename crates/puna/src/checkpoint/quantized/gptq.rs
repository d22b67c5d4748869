//! GPTQ (Frantar and others, 2022) as AutoGPTQ writes it: `qweight` `(in · bits / 32, out)` holds
//! the codes of 32 inputs in `bits` words, `qzeros` `(groups, out · bits / 32)` the zero points, in
//! the first version of the layout one less than they are, `scales` `(groups, out)`; `g_idx` `(in)`
//! says the group of each input. `w = scale (code - zero)`.

use bytes::Bytes;
use puna_kernels::Dtype;

use super::bits::{code, word, words};
use super::{Decode, Floats, Groups, Parts, group_shape};
use crate::checkpoint::error::{CheckpointError, Fault};

#[derive(Debug)]
struct Gptq {
    bits: usize,
    rows: usize,
    codes: Bytes,
    zeros: Bytes,
    /// What a stored zero point lacks.
    zero_offset: u32,
    scales: Floats,
    groups: Groups,
    n_groups: usize,
}

pub(super) fn decoder(parts: &mut Parts<'_>) -> Result<Box<dyn Decode>, CheckpointError> {
    let (rows, cols) = (parts.rows, parts.cols);
    let settings = parts.settings;
    let bits = match settings.integer("bits") {
        Some(bits @ (2 | 3 | 4 | 8)) => bits as usize,
        other => {
            let why = format!("weights of {other:?} bits are not read; GPTQ has 2, 3, 4 and 8");
            return Err(settings.error("bits", Fault::Unsupported(why)));
        }
    };
    if !cols.is_multiple_of(32) {
        let why = format!("{cols} columns are not whole words of {bits} bits");
        return Err(parts.malformed("qweight", why));
    }
    let (len, n_groups) = group_shape(parts, settings.integer("group_size").unwrap_or(-1))?;
    let codes = parts.integers("qweight", "int32", &[&[words(cols, bits), rows]])?;
    let zeros = parts.integers("qzeros", "int32", &[&[n_groups, words(rows, bits)]])?;
    let scales = parts.floats("scales", &[&[n_groups, rows]])?;
    let groups = groups(parts, len, n_groups)?;
    drop_zero_bias(parts)?;
    let is_second = settings.text("checkpoint_format") == Some("gptq_v2");
    let zero_offset = u32::from(!is_second);
    Ok(Box::new(Gptq { bits, rows, codes, zeros, zero_offset, scales, groups, n_groups }))
}

/// The groups that `g_idx` says, or runs of `len`.
fn groups(parts: &mut Parts<'_>, len: usize, n_groups: usize) -> Result<Groups, CheckpointError> {
    if !parts.has("g_idx") {
        return Ok(Groups::Runs(len));
    }
    let cols = parts.cols;
    let listed = parts.integers("g_idx", "int32", &[&[cols]])?;
    if let Some(column) = (0..cols).find(|&column| word(&listed, column) as usize >= n_groups) {
        let found = word(&listed, column).cast_signed();
        let why = format!("column {column} is in group {found}, but there are {n_groups}");
        return Err(parts.malformed("g_idx", why));
    }
    let in_runs = (0..cols).all(|column| word(&listed, column) as usize == column / len);
    Ok(if in_runs { Groups::Runs(len) } else { Groups::Listed(listed) })
}

/// AutoGPTQ writes a bias of zeros where the model has none.
fn drop_zero_bias(parts: &mut Parts<'_>) -> Result<(), CheckpointError> {
    let (attention, mlp) = parts.settings.biases;
    let has_place = if parts.prefix.contains("self_attn") { attention } else { mlp };
    if has_place || !parts.has("bias") {
        return Ok(());
    }
    let bias = parts.need("bias")?;
    let name = parts.name("bias");
    if bias.to_weight(&name)?.to_f32().iter().any(|&x| x != 0.0) {
        // Not ours to drop: it is named as a tensor that has no place.
        parts.tensors.insert(name, bias);
    }
    Ok(())
}

impl Gptq {
    fn zero(&self, group: usize, row: usize) -> i32 {
        let first = group * words(self.rows, self.bits);
        let stored = code(&self.zeros, first, 1, self.bits, row);
        (stored + self.zero_offset).cast_signed()
    }
}

impl Decode for Gptq {
    fn row(&self, row: usize, codes: &mut [f32], scales: &mut [f32]) {
        let of_group = |group| (self.zero(group, row), self.scales.get(group * self.rows + row));
        let groups: Vec<(i32, f32)> = (0..self.n_groups).map(of_group).collect();
        for (column, (out, scale)) in codes.iter_mut().zip(scales).enumerate() {
            let (zero, factor) = groups[self.groups.of(column)];
            let stored = code(&self.codes, row, self.rows, self.bits, column).cast_signed();
            *out = (stored - zero) as f32;
            *scale = factor;
        }
    }

    fn whole_numbers(&self) -> Option<(i32, i32)> {
        if !self.groups.hold_blocks() || !self.scales.are_f16() {
            return None;
        }
        let all = (0..self.n_groups).flat_map(|group| (0..self.rows).map(move |row| (group, row)));
        let (mut least, mut largest) = (i32::MAX, i32::MIN);
        for (group, row) in all {
            let zero = self.zero(group, row);
            (least, largest) = (least.min(zero), largest.max(zero));
        }
        Some((-largest, (1 << self.bits) - 1 - least))
    }

    fn dtype(&self) -> Dtype {
        self.scales.dtype().unwrap_or(Dtype::F16)
    }
}
