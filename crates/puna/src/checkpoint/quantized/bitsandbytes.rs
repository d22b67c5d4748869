//! bitsandbytes (Dettmers and others, 2022, 2023). Eight bits: `weight` `(out, in)` of signed bytes
//! and `SCB` `(out)`, the largest magnitude of each row: `w = code · SCB / 127`. Four bits: `weight`
//! of `out · in / 2` bytes, the first of two codes in the high half, read through the 16 values of
//! `quant_map` (nf4 or fp4) and scaled by `absmax` of each run of 64; that may be quantised itself,
//! through `nested_quant_map` and `nested_absmax` of each run of 256, about an offset.

use bytes::Bytes;
use puna_kernels::Dtype;
use serde_json::Value;

use super::fp8::Bytewise;
use super::{Decode, Floats, Parts};
use crate::checkpoint::error::CheckpointError;

pub(super) fn decoder(parts: &mut Parts<'_>) -> Result<Box<dyn Decode>, CheckpointError> {
    if parts.has("SCB") { eight_bits(parts) } else { four_bits(parts) }
}

fn eight_bits(parts: &mut Parts<'_>) -> Result<Box<dyn Decode>, CheckpointError> {
    let (rows, cols) = (parts.rows, parts.cols);
    let codes = parts.integers("weight", "int8", &[&[rows, cols]])?;
    let largest = parts.floats("SCB", &[&[rows], &[rows, 1]])?;
    // 0 is row after row; the others are tilings of one kind of processor.
    if let Some(layout) = parts.take("weight_format")
        && layout.ordered().iter().any(|&byte| byte != 0)
    {
        return Err(parts.malformed("weight_format", "is not 0, row after row"));
    }
    let scales: Vec<u8> =
        (0..rows).flat_map(|row| (largest.get(row) / 127.0).to_le_bytes()).collect();
    let scales = Floats { format: puna_kernels::Format::F32, bytes: scales.into() };
    let values = std::array::from_fn(|code| f32::from((code as u8).cast_signed()));
    let dtype = parts.settings.dtype.unwrap_or(Dtype::F16);
    Ok(Box::new(Bytewise {
        codes,
        values,
        is_integer: true,
        cols,
        scales,
        zeros: None,
        rectangle: (1, cols),
        dtype,
    }))
}

/// Codes of four bits.
#[derive(Debug)]
struct FourBits {
    codes: Bytes,
    cols: usize,
    /// Value of each code.
    values: [f32; 16],
    absmax: Absmax,
    /// Values that share an `absmax`, whichever row they are of.
    run: usize,
    dtype: Dtype,
}

/// The largest magnitude of each run.
#[derive(Debug)]
enum Absmax {
    Plain(Floats),
    Nested { codes: Bytes, values: Vec<f32>, absmax: Floats, run: usize, offset: f32 },
}

impl Absmax {
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::Plain(values) => values.get(index),
            Self::Nested { codes, values, absmax, run, offset } => {
                values[usize::from(codes[index])] * absmax.get(index / run) + offset
            }
        }
    }
}

fn four_bits(parts: &mut Parts<'_>) -> Result<Box<dyn Decode>, CheckpointError> {
    let (rows, cols) = (parts.rows, parts.cols);
    let state = State::take(parts)?;
    let len = rows * cols;
    let bytes = len.div_ceil(2);
    let codes = parts.integers("weight", "uint8", &[&[bytes, 1], &[1, bytes], &[bytes]])?;
    let map = parts.floats("weight.quant_map", &[&[16]])?;
    let values = std::array::from_fn(|code| map.get(code));
    let runs = len.div_ceil(state.run);
    let absmax = if parts.has("weight.nested_absmax") {
        let nested = runs.div_ceil(state.nested_run);
        let map = parts.floats("weight.nested_quant_map", &[&[256]])?;
        Absmax::Nested {
            codes: parts.integers("weight.absmax", "uint8", &[&[runs]])?,
            values: (0..256).map(|code| map.get(code)).collect(),
            absmax: parts.floats("weight.nested_absmax", &[&[nested]])?,
            run: state.nested_run,
            offset: state.nested_offset,
        }
    } else {
        Absmax::Plain(parts.floats("weight.absmax", &[&[runs]])?)
    };
    Ok(Box::new(FourBits { codes, cols, values, absmax, run: state.run, dtype: state.dtype }))
}

/// What `quant_state` says in JSON.
#[derive(Debug)]
struct State {
    run: usize,
    nested_run: usize,
    nested_offset: f32,
    dtype: Dtype,
}

impl State {
    fn take(parts: &mut Parts<'_>) -> Result<Self, CheckpointError> {
        let nf4 = "weight.quant_state.bitsandbytes__nf4";
        let part = if parts.has(nf4) { nf4 } else { "weight.quant_state.bitsandbytes__fp4" };
        let stored = parts.need(part)?;
        let parsed: Value = serde_json::from_slice(&stored.ordered())
            .map_err(|error| parts.malformed(part, format!("is not JSON: {error}")))?;
        let said = [parts.rows, parts.cols];
        let shape = parsed.get("shape").and_then(Value::as_array);
        let shape: Option<Vec<u64>> =
            shape.map(|shape| shape.iter().filter_map(Value::as_u64).collect());
        if shape.is_some_and(|shape| shape != said.map(|n| n as u64)) {
            return Err(parts.malformed(part, format!("its shape is not {said:?}")));
        }
        let size = |key: &str, default: u64| {
            let size = parsed.get(key).and_then(Value::as_u64).unwrap_or(default);
            usize::try_from(size).ok().filter(|size| *size > 0)
        };
        let (Some(run), Some(nested_run)) = (size("blocksize", 64), size("nested_blocksize", 256))
        else {
            return Err(parts.malformed(part, "its blocks have no size"));
        };
        let offset = parsed.get("nested_offset").and_then(Value::as_f64).unwrap_or(0.0);
        let dtype = parsed.get("dtype").and_then(Value::as_str).and_then(Dtype::from_name);
        let dtype = dtype.or(parts.settings.dtype).unwrap_or(Dtype::F16);
        Ok(Self { run, nested_run, nested_offset: offset as f32, dtype })
    }
}

impl Decode for FourBits {
    fn row(&self, row: usize, codes: &mut [f32], scales: &mut [f32]) {
        let first = row * self.cols;
        let mut held = (first / self.run, self.absmax.get(first / self.run));
        for (column, (code, scale)) in codes.iter_mut().zip(scales).enumerate() {
            let at = first + column;
            if at / self.run != held.0 {
                held = (at / self.run, self.absmax.get(at / self.run));
            }
            let byte = self.codes[at / 2];
            let half = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            *code = self.values[usize::from(half)];
            *scale = held.1;
        }
    }

    fn whole_numbers(&self) -> Option<(i32, i32)> {
        None
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}
