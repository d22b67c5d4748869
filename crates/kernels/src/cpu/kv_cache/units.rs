//! How the keys and the values of one head lie in a block, type by type. The memory is a list of
//! units, each some keys by some dimensions:
//! ```text
//! keys    panels of sixteen keys     (block_len / 16, head_dim, 16)
//! values  row by row                 (block_len, head_dim)
//! ```
//! so that a dot of a query with sixteen keys, and a weighed sum of values, both read whole vectors
//! and add lane by lane. The last panel and the last unit of a row are filled up with zeros.

use bytemuck::{Pod, Zeroable};
use half::f16;

use crate::KvShape;
use crate::cpu::ops::vector::Element;
use crate::cpu::packed::ORDER;

/// Keys side by side in a panel.
pub(crate) const PANEL: usize = 16;
/// Dimensions that share a scale in [`Q8`].
pub(crate) const GROUP: usize = 32;

/// What one unit holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    /// Keys, or values.
    pub(crate) rows: usize,
    /// Dimensions of each.
    pub(crate) dims: usize,
}

impl Unit {
    /// Units side by side across a head.
    pub(crate) const fn across(self, head_dim: usize) -> usize {
        head_dim.div_ceil(self.dims)
    }

    /// Units of one head in one block.
    pub(crate) fn of_head(self, shape: KvShape) -> Option<usize> {
        shape.block_len.div_ceil(self.rows).checked_mul(self.across(shape.head_dim))
    }
}

/// A type of cache.
pub(crate) trait Stored: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// Memory of a unit of keys.
    type Keys: Pod + std::fmt::Debug + Send + Sync;
    /// Memory of a unit of values.
    type Values: Pod + std::fmt::Debug + Send + Sync;
    /// Extent of a unit of keys: [`PANEL`] rows.
    const KEYS: Unit;
    /// Extent of a unit of values.
    const VALUES: Unit;

    /// Stores key `lane` of a panel; `units` are those across it.
    fn put_key(units: &mut [Self::Keys], lane: usize, key: &[f32]);
    /// Stores value `index` of the units across one row of units.
    fn put_value(units: &mut [Self::Values], index: usize, value: &[f32]);
    /// Reads what [`Stored::put_key`] stored.
    fn get_key(units: &[Self::Keys], lane: usize, key: &mut [f32]);
    /// Reads what [`Stored::put_value`] stored.
    fn get_value(units: &[Self::Values], index: usize, value: &mut [f32]);
}

impl<T: Element> Stored for T {
    type Keys = [T; PANEL];
    type Values = [T; PANEL];
    const KEYS: Unit = Unit { rows: PANEL, dims: 1 };
    const VALUES: Unit = Unit { rows: 1, dims: PANEL };

    fn put_key(units: &mut [Self::Keys], lane: usize, key: &[f32]) {
        for (units, key) in units.chunks_mut(PANEL).zip(key.chunks(PANEL)) {
            let mut narrow = [T::zeroed(); PANEL];
            T::narrow(key, &mut narrow[..key.len()]);
            for (unit, value) in units.iter_mut().zip(narrow) {
                unit[lane] = value;
            }
        }
    }

    fn put_value(units: &mut [Self::Values], _: usize, value: &[f32]) {
        T::narrow(value, &mut units.as_flattened_mut()[..value.len()]);
    }

    fn get_key(units: &[Self::Keys], lane: usize, key: &mut [f32]) {
        for (unit, value) in units.iter().zip(key) {
            *value = unit[lane].widen();
        }
    }

    fn get_value(units: &[Self::Values], _: usize, value: &mut [f32]) {
        for (stored, value) in units.as_flattened().iter().zip(value) {
            *value = stored.widen();
        }
    }
}

/// Signed bytes, each 32 dimensions of a key or a value under one scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Q8;

/// Thirty-two dimensions of sixteen keys.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q8Keys {
    /// Of each key.
    pub(crate) scales: [f16; PANEL],
    /// Codes, less 128, of four dimensions in [`ORDER`] for each key: what a dot of bytes reads.
    pub(crate) codes: [[[u8; 4]; PANEL]; GROUP / 4],
}

/// Thirty-two dimensions of sixteen values.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Q8Values {
    /// Of each value.
    pub(crate) scales: [f16; PANEL],
    /// Signed codes of each value.
    pub(crate) codes: [[i8; GROUP]; PANEL],
}

/// What is added to a code of a key, so that it is unsigned.
pub(crate) const CODE_ZERO: i32 = 128;

impl Stored for Q8 {
    type Keys = Q8Keys;
    type Values = Q8Values;
    const KEYS: Unit = Unit { rows: PANEL, dims: GROUP };
    const VALUES: Unit = Unit { rows: PANEL, dims: GROUP };

    fn put_key(units: &mut [Q8Keys], lane: usize, key: &[f32]) {
        for (unit, key) in units.iter_mut().zip(key.chunks(GROUP)) {
            let (scale, codes) = quantize(key);
            unit.scales[lane] = scale;
            for (i, four) in unit.codes.iter_mut().enumerate() {
                for (j, code) in four[lane].iter_mut().enumerate() {
                    *code = codes[ORDER[4 * i + j]] as u8 ^ CODE_ZERO as u8;
                }
            }
        }
    }

    fn put_value(units: &mut [Q8Values], index: usize, value: &[f32]) {
        for (unit, value) in units.iter_mut().zip(value.chunks(GROUP)) {
            (unit.scales[index], unit.codes[index]) = quantize(value);
        }
    }

    fn get_key(units: &[Q8Keys], lane: usize, key: &mut [f32]) {
        for (unit, key) in units.iter().zip(key.chunks_mut(GROUP)) {
            let scale = unit.scales[lane].to_f32();
            for (p, d) in ORDER.into_iter().enumerate() {
                let code = i32::from(unit.codes[p / 4][lane][p % 4]) - CODE_ZERO;
                if let Some(value) = key.get_mut(d) {
                    *value = scale * code as f32;
                }
            }
        }
    }

    fn get_value(units: &[Q8Values], index: usize, value: &mut [f32]) {
        for (unit, value) in units.iter().zip(value.chunks_mut(GROUP)) {
            let scale = unit.scales[index].to_f32();
            for (value, code) in value.iter_mut().zip(unit.codes[index]) {
                *value = scale * f32::from(code);
            }
        }
    }
}

/// At most 32 numbers as `scale * code`, the codes in `-127..=127`. The scale is the smallest `f16`
/// that lets the largest number fit, so that no code is cut off; beyond 127 times the largest `f16`
/// they are. Any number that is not finite makes the scale NaN.
fn quantize(x: &[f32]) -> (f16, [i8; GROUP]) {
    // Adding and taking away 1.5 * 2^23 leaves the nearest integer, ties to even.
    const MAGIC: f32 = 12_582_912.0;
    let mut padded = [0.0; GROUP];
    padded[..x.len()].copy_from_slice(x);
    let (mut top, mut poison) = (0.0f32, 0.0f32);
    for x in padded {
        top = if x.abs() > top { x.abs() } else { top };
        poison += x * 0.0;
    }
    if poison.is_nan() {
        return (f16::NAN, [0; GROUP]);
    }
    let mut scale = f16::from_f32(top / 127.0);
    if scale.to_f32() * 127.0 < top {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    if !scale.is_finite() {
        scale = f16::MAX;
    }
    let inverse = if top > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    let codes = padded.map(|x| ((x * inverse + MAGIC) - MAGIC).clamp(-127.0, 127.0) as i8);
    (scale, codes)
}
