//! Weights of eight-bit floats (E4M3) `(out, in)`, as `fp8` of Transformers writes them with a scale
//! for each rectangle (`weight_scale_inv`), and `fbgemm_fp8` with one for each row
//! (`weight_scale`). `w = scale · code`.

use bytes::Bytes;
use puna_kernels::Dtype;
use serde_json::Value;

use super::{Decode, Floats, Parts};
use crate::checkpoint::error::{CheckpointError, Fault};

/// Codes of one byte, and scales of rectangles.
#[derive(Debug)]
pub(super) struct Bytewise {
    pub(super) codes: Bytes,
    /// Value of each of the 256 codes.
    pub(super) values: [f32; 256],
    /// Whether those are whole numbers from -128 to 127.
    pub(super) is_integer: bool,
    pub(super) cols: usize,
    pub(super) scales: Floats,
    /// Zero point of each scale.
    pub(super) zeros: Option<Bytes>,
    /// Rows and columns that share a scale.
    pub(super) rectangle: (usize, usize),
    pub(super) dtype: Dtype,
}

pub(super) fn decoder(parts: &mut Parts<'_>) -> Result<Box<dyn Decode>, CheckpointError> {
    let (rows, cols) = (parts.rows, parts.cols);
    let settings = parts.settings;
    let dtype = settings.dtype.unwrap_or(Dtype::Bf16);
    let codes = parts.integers("weight", "float8_e4m3", &[&[rows, cols]])?;
    // Scales of activations belong to kernels that round those too.
    parts.take("input_scale");
    parts.take("input_scale_ub");
    parts.take("activation_scale");
    let is_inverse = parts.has("weight_scale_inv");
    let (height, width) = if is_inverse { rectangle(parts)? } else { (1, cols) };
    let (down, across) = (rows.div_ceil(height), cols.div_ceil(width));
    let part = if is_inverse { "weight_scale_inv" } else { "weight_scale" };
    let mut shapes: Vec<&[usize]> = Vec::new();
    let (grid, line) = ([down, across], [down]);
    shapes.push(&grid);
    if across == 1 {
        shapes.push(&line);
    }
    if down * across == 1 {
        shapes.push(&[]);
    }
    let scales = parts.floats(part, &shapes)?;
    let values = e4m3();
    let rectangle = (height, width);
    Ok(Box::new(Bytewise {
        codes,
        values,
        is_integer: false,
        cols,
        scales,
        zeros: None,
        rectangle,
        dtype,
    }))
}

/// Rows and columns that share a scale; the whole matrix where the settings name none.
fn rectangle(parts: &Parts<'_>) -> Result<(usize, usize), CheckpointError> {
    let sizes = match parts.settings.keys.get("weight_block_size") {
        None | Some(Value::Null) => return Ok((parts.rows, parts.cols)),
        Some(sizes) => sizes,
    };
    let size = |i: usize| sizes.get(i).and_then(Value::as_u64).filter(|size| *size > 0);
    match (size(0), size(1)) {
        (Some(height), Some(width)) => {
            let within = |size: u64, most: usize| usize::try_from(size).unwrap_or(most).min(most);
            Ok((within(height, parts.rows), within(width, parts.cols)))
        }
        _ => {
            let why = "must be two sizes, such as [128, 128]".to_owned();
            Err(parts.settings.error("weight_block_size", Fault::Malformed(why)))
        }
    }
}

/// Values of E4M3 without infinities: four bits of exponent with a bias of 7, three of mantissa; all
/// bits set is no number.
pub(super) fn e4m3() -> [f32; 256] {
    std::array::from_fn(|code| {
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = ((code >> 3 & 15) as i32, (code & 7) as f32);
        match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => sign * mantissa * 2.0_f32.powi(-9),
            _ => sign * (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
        }
    })
}

impl Bytewise {
    /// Index of the scale of a row's columns from `column` on.
    fn scale_index(&self, row: usize, column: usize) -> usize {
        let (height, width) = self.rectangle;
        row / height * self.cols.div_ceil(width) + column / width
    }

    fn zero(&self, scale: usize) -> f32 {
        self.zeros.as_ref().map_or(0.0, |zeros| f32::from(zeros[scale].cast_signed()))
    }
}

impl Decode for Bytewise {
    fn row(&self, row: usize, codes: &mut [f32], scales: &mut [f32]) {
        let (_, width) = self.rectangle;
        let stored = &self.codes[row * self.cols..][..self.cols];
        for (i, ((codes, scales), stored)) in codes
            .chunks_mut(width)
            .zip(scales.chunks_mut(width))
            .zip(stored.chunks(width))
            .enumerate()
        {
            let index = self.scale_index(row, i * width);
            let (scale, zero) = (self.scales.get(index), self.zero(index));
            scales.fill(scale);
            for (code, byte) in codes.iter_mut().zip(stored) {
                *code = self.values[usize::from(*byte)] - zero;
            }
        }
    }

    fn whole_numbers(&self) -> Option<(i32, i32)> {
        let (_, width) = self.rectangle;
        let in_blocks = width == self.cols || width.is_multiple_of(super::BLOCK);
        if !self.is_integer || !in_blocks || !self.scales.are_f16() {
            return None;
        }
        let zeros = (0..self.scales.len()).map(|scale| self.zero(scale) as i32);
        let (least, largest) =
            zeros.fold((0, 0), |(least, largest), zero| (zero.min(least), zero.max(largest)));
        Some((-128 - largest, 127 - least))
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}
