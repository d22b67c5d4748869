//! compressed-tensors, as LLM Compressor writes it. `weight_packed` `(out, words)` holds codes of
//! four or eight bits, as many as fit into each word, half the range added (`pack-quantized`);
//! `weight` `(out, in)` holds signed bytes (`int-quantized`) or E4M3 floats (`float-quantized`).
//! `weight_scale`, and perhaps `weight_zero_point`, are for the matrix, each row, or groups of
//! columns. `w = scale (code - zero)`.

use bytes::Bytes;
use puna_kernels::Dtype;
use serde_json::Value;

use super::bits::word;
use super::fp8::{Bytewise, e4m3};
use super::{Decode, Floats, Groups, Parts, group_shape};
use crate::checkpoint::error::{CheckpointError, Fault};

/// What `config_groups` says of weights.
#[derive(Debug)]
struct Scheme {
    bits: usize,
    is_float: bool,
    /// Columns that share a scale; `None` is a whole row, or the whole matrix.
    group_size: Option<i64>,
    /// Rows and columns that share a scale.
    block: Option<(usize, usize)>,
}

pub(super) fn decoder(parts: &mut Parts<'_>) -> Result<Box<dyn Decode>, CheckpointError> {
    let scheme = scheme(parts)?;
    // Scales of activations belong to kernels that round those too.
    parts.take("input_scale");
    parts.take("input_zero_point");
    parts.take("input_global_scale");
    if parts.has("weight_packed") { packed(parts, &scheme) } else { bytewise(parts, &scheme) }
}

/// The scheme of the matrix: a file with several has one of the same shape for each, which the
/// tensors themselves tell apart by their types.
fn scheme(parts: &Parts<'_>) -> Result<Scheme, CheckpointError> {
    let settings = parts.settings;
    let groups = settings.keys.get("config_groups").and_then(Value::as_object);
    let weights: Vec<&Value> = groups
        .into_iter()
        .flat_map(|groups| groups.values())
        .filter_map(|g| g.get("weights"))
        .collect();
    let refuse = |why: &str| settings.error("config_groups", Fault::Unsupported(why.to_owned()));
    let first = *weights.first().ok_or_else(|| refuse("names no weights"))?;
    if weights.iter().any(|other| *other != first) {
        return Err(refuse("quantises different layers in different ways, which is not read"));
    }
    let bits = first.get("num_bits").and_then(Value::as_u64).unwrap_or(8);
    if bits != 4 && bits != 8 {
        return Err(refuse("weights of other than 4 or 8 bits are not read"));
    }
    let is_float = first.get("type").and_then(Value::as_str) == Some("float");
    if is_float && bits != 8 {
        return Err(refuse("floats of 4 bits are not read"));
    }
    let strategy = first.get("strategy").and_then(Value::as_str).unwrap_or("channel");
    let group_size = match strategy {
        "group" => first.get("group_size").and_then(Value::as_i64),
        "tensor" | "channel" | "block" => None,
        _ => {
            return Err(refuse(
                "scales other than of tensor, channel, group or block are not read",
            ));
        }
    };
    let side = |i: usize| {
        let size = first.get("block_structure").and_then(|b| b.get(i)).and_then(Value::as_u64)?;
        usize::try_from(size).ok().filter(|size| *size > 0)
    };
    let block = match (strategy, side(0), side(1)) {
        ("block", Some(height), Some(width)) => {
            Some((height.min(parts.rows), width.min(parts.cols)))
        }
        ("block", ..) => return Err(refuse("its blocks have no size")),
        _ => None,
    };
    Ok(Scheme { bits: bits as usize, is_float, group_size, block })
}

/// Rows and columns that share a scale, as the shape of the scales says it.
fn rectangle(parts: &Parts<'_>, scheme: &Scheme) -> Result<(usize, usize), CheckpointError> {
    let (rows, cols) = (parts.rows, parts.cols);
    let name = parts.name("weight_scale");
    let of_matrix =
        parts.tensors.get(&name).is_some_and(|scale| scale.shape.iter().product::<usize>() == 1);
    match (scheme.block, scheme.group_size) {
        (Some(block), _) => Ok(block),
        (None, Some(size)) => Ok((1, group_shape(parts, size)?.0)),
        (None, None) if of_matrix => Ok((rows, cols)),
        (None, None) => Ok((1, cols)),
    }
}

fn scales(
    parts: &mut Parts<'_>,
    (height, width): (usize, usize),
) -> Result<Floats, CheckpointError> {
    let (down, across) = (parts.rows.div_ceil(height), parts.cols.div_ceil(width));
    let (grid, line) = ([down, across], [down]);
    let mut shapes: Vec<&[usize]> = vec![&grid];
    if across == 1 {
        shapes.push(&line);
    }
    if down * across == 1 {
        shapes.push(&[]);
    }
    parts.floats("weight_scale", &shapes)
}

fn bytewise(parts: &mut Parts<'_>, scheme: &Scheme) -> Result<Box<dyn Decode>, CheckpointError> {
    let (rows, cols) = (parts.rows, parts.cols);
    let dtype = if scheme.is_float { "float8_e4m3" } else { "int8" };
    let codes = parts.integers("weight", dtype, &[&[rows, cols]])?;
    let rectangle = rectangle(parts, scheme)?;
    let scales = scales(parts, rectangle)?;
    let zeros = if parts.has("weight_zero_point") && !scheme.is_float {
        let (down, across) = (rows.div_ceil(rectangle.0), cols.div_ceil(rectangle.1));
        let shapes: [&[usize]; 2] = [&[down, across], &[down * across]];
        Some(parts.integers("weight_zero_point", "int8", &shapes)?)
    } else {
        parts.take("weight_zero_point");
        None
    };
    let integers = || std::array::from_fn(|code| f32::from((code as u8).cast_signed()));
    let values = if scheme.is_float { e4m3() } else { integers() };
    let dtype = scales.dtype().or(parts.settings.dtype).unwrap_or(Dtype::Bf16);
    let is_integer = !scheme.is_float;
    Ok(Box::new(Bytewise { codes, values, is_integer, cols, scales, zeros, rectangle, dtype }))
}

/// Codes in words.
#[derive(Debug)]
struct PackedCodes {
    bits: usize,
    codes: Bytes,
    /// Words of a row.
    stride: usize,
    scales: Floats,
    /// `(out / codes of a word, groups)`.
    zeros: Option<Bytes>,
    groups: Groups,
    n_groups: usize,
    /// One scale for all rows.
    is_shared: bool,
    dtype: Dtype,
    rows: usize,
}

fn packed(parts: &mut Parts<'_>, scheme: &Scheme) -> Result<Box<dyn Decode>, CheckpointError> {
    let (rows, cols, bits) = (parts.rows, parts.cols, scheme.bits);
    let in_word = 32 / bits;
    let stride = cols.div_ceil(in_word);
    let codes = parts.integers("weight_packed", "int32", &[&[rows, stride]])?;
    if let Some(shape) = parts.take("weight_shape") {
        let bytes = shape.ordered();
        let size = if shape.encoding.name() == "int64" { 8 } else { 4 };
        let said: Vec<usize> = bytes.chunks_exact(size).map(|n| word(n, 0) as usize).collect();
        if said != [rows, cols] {
            return Err(parts.malformed("weight_shape", format!("is not {:?}", [rows, cols])));
        }
    }
    let rectangle = rectangle(parts, scheme)?;
    let is_shared = rectangle.0 == rows && rows > 1;
    if !is_shared && rectangle.0 != 1 {
        return Err(parts.malformed("weight_scale", "packed weights have no scales of blocks"));
    }
    let scales = scales(parts, rectangle)?;
    let n_groups = cols.div_ceil(rectangle.1);
    let zeros = if parts.has("weight_zero_point") {
        let lines = if is_shared { 1 } else { rows };
        Some(parts.integers(
            "weight_zero_point",
            "int32",
            &[&[lines.div_ceil(in_word), n_groups]],
        )?)
    } else {
        None
    };
    let groups = groups(parts, rectangle.1, n_groups)?;
    let dtype = scales.dtype().or(parts.settings.dtype).unwrap_or(Dtype::Bf16);
    Ok(Box::new(PackedCodes {
        bits,
        codes,
        stride,
        scales,
        zeros,
        groups,
        n_groups,
        is_shared,
        dtype,
        rows,
    }))
}

/// The groups that `weight_g_idx` says, or runs of `len`; -1 in it says nothing.
fn groups(parts: &mut Parts<'_>, len: usize, n_groups: usize) -> Result<Groups, CheckpointError> {
    if !parts.has("weight_g_idx") {
        return Ok(Groups::Runs(len));
    }
    let cols = parts.cols;
    let listed = parts.integers("weight_g_idx", "int32", &[&[cols]])?;
    let group = |column: usize| word(&listed, column).cast_signed();
    if (0..cols).all(|column| group(column) == -1) {
        return Ok(Groups::Runs(len));
    }
    let is_known = |group: i32| usize::try_from(group).is_ok_and(|group| group < n_groups);
    if let Some(column) = (0..cols).find(|&column| !is_known(group(column))) {
        let why =
            format!("column {column} is in group {}, but there are {n_groups}", group(column));
        return Err(parts.malformed("weight_g_idx", why));
    }
    let in_runs = (0..cols).all(|column| group(column) as usize == column / len);
    Ok(if in_runs { Groups::Runs(len) } else { Groups::Listed(listed) })
}

impl PackedCodes {
    /// Half the range, which is added to codes and zero points alike.
    fn half(&self) -> i32 {
        1 << (self.bits - 1)
    }

    fn unpack(&self, word: u32, index: usize) -> i32 {
        let mask = (1_u32 << self.bits) - 1;
        ((word >> (self.bits * index)) & mask).cast_signed() - self.half()
    }

    fn zero(&self, group: usize, row: usize) -> i32 {
        let Some(zeros) = &self.zeros else { return 0 };
        let (row, in_word) = (if self.is_shared { 0 } else { row }, 32 / self.bits);
        self.unpack(word(zeros, row / in_word * self.n_groups + group), row % in_word)
    }
}

impl Decode for PackedCodes {
    fn row(&self, row: usize, codes: &mut [f32], scales: &mut [f32]) {
        let in_word = 32 / self.bits;
        let line = if self.is_shared { 0 } else { row };
        let of_group =
            |group| (self.zero(group, row), self.scales.get(line * self.n_groups + group));
        let groups: Vec<(i32, f32)> = (0..self.n_groups).map(of_group).collect();
        for (column, (code, scale)) in codes.iter_mut().zip(scales).enumerate() {
            let (zero, factor) = groups[self.groups.of(column)];
            let word = word(&self.codes, row * self.stride + column / in_word);
            *code = (self.unpack(word, column % in_word) - zero) as f32;
            *scale = factor;
        }
    }

    fn whole_numbers(&self) -> Option<(i32, i32)> {
        let in_blocks = self.n_groups == 1 || self.groups.hold_blocks();
        if !in_blocks || !self.scales.are_f16() {
            return None;
        }
        let (mut least, mut largest) = (0, 0);
        if self.zeros.is_some() {
            for row in 0..self.rows {
                for group in 0..self.n_groups {
                    let zero = self.zero(group, row);
                    (least, largest) = (zero.min(least), zero.max(largest));
                }
            }
        }
        Some((-self.half() - largest, self.half() - 1 - least))
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}
