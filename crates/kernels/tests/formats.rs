//! Dequantisation against the reference, bit for bit, on data that `tools/format_goldens.py`
//! wrote from the `gguf` package. `q8_k`, which that package lacks, comes from a formula in the
//! script. All of it was also compared with a compiled ggml (0.13.1) when it was written. NaN
//! counts as NaN, whatever its sign and payload: no reference defines them.

use std::path::PathBuf;

use proptest::prelude::*;
use puna_kernels::Format;

fn data(name: &str) -> Vec<u8> {
    let path = [env!("CARGO_MANIFEST_DIR"), "tests/data/formats", name].iter().collect::<PathBuf>();
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `(name, blocks, digest)` of each line.
fn digests() -> Vec<(String, usize, u64)> {
    let text = String::from_utf8(data("digests.txt")).unwrap();
    let line = |line: &str| {
        let [name, blocks, digest] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        (name.to_owned(), blocks.parse().unwrap(), u64::from_str_radix(digest, 16).unwrap())
    };
    text.lines().map(line).collect()
}

fn dequantize(format: Format, bytes: &[u8], poison: f32) -> Vec<f32> {
    let mut out = vec![poison; bytes.len() / format.block_bytes() * format.block_len()];
    format.dequantize(bytes, &mut out);
    out
}

/// Bits, with one NaN for all.
fn bits(value: f32) -> u32 {
    if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() }
}

/// FNV-1a, taking whole words in place of bytes; as in the script.
fn fnv(words: impl IntoIterator<Item = u64>) -> u64 {
    let step = |digest: u64, word: u64| (digest ^ word).wrapping_mul(0x0100_0000_01b3);
    words.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// splitmix64 from the digest of `name`; as in the script.
fn random_bytes(name: &str, len: usize) -> Vec<u8> {
    let mut state = fnv(name.bytes().map(u64::from));
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut bytes = std::iter::repeat_with(next).take(len / 8 + 1).flatten().collect::<Vec<_>>();
    bytes.truncate(len);
    bytes
}

#[test]
fn blocks_with_usual_and_random_scales_give_the_reference_values() {
    for format in Format::ALL {
        let fixture = data(&format!("{format}.bin"));
        let per_block = format.block_bytes() + 4 * format.block_len();
        assert!(!fixture.is_empty() && fixture.len().is_multiple_of(per_block), "{format}");
        let (blocks, values) = fixture.split_at(fixture.len() / per_block * format.block_bytes());
        let ours = dequantize(format, blocks, f32::NAN);
        for (i, (ours, value)) in ours.iter().zip(values.as_chunks::<4>().0).enumerate() {
            let value = f32::from_le_bytes(*value);
            assert_eq!(bits(*ours), bits(value), "{format}, weight {i}: {ours}, not {value}");
        }
    }
}

#[test]
fn a_thousand_random_blocks_of_each_format_give_the_reference_values() {
    let digests = digests();
    assert!(digests.iter().map(|row| row.0.as_str()).eq(Format::ALL.map(Format::name)));
    for ((name, n_blocks, digest), format) in digests.into_iter().zip(Format::ALL) {
        let bytes = random_bytes(&name, n_blocks * format.block_bytes());
        let ours = dequantize(format, &bytes, f32::NAN);
        assert_eq!(fnv(ours.into_iter().map(|value| u64::from(bits(value)))), digest, "{name}");
    }
}

#[test]
#[should_panic(expected = "q4_0: 64 values")]
fn a_wrong_length_panics_at_entry() {
    Format::Q4_0.dequantize(&[0; 18], &mut [0.0; 64]);
}

fn any_format() -> impl Strategy<Value = Format> {
    (0..Format::ALL.len()).prop_map(|i| Format::ALL[i])
}

proptest! {
    /// No bytes panic; every value is written; the address does not matter.
    #[test]
    fn any_bytes_give_the_same_values_anywhere(
        format in any_format(),
        n_blocks in 0_usize..4,
        bytes in prop::collection::vec(any::<u8>(), 4 * 292),
    ) {
        let blocks = &bytes[..n_blocks * format.block_bytes()];
        let first = dequantize(format, blocks, f32::NAN);
        let mut shifted = vec![0xff; 1];
        shifted.extend_from_slice(blocks);
        let second = dequantize(format, &shifted[1..], -7.25);
        let as_bits = |values: Vec<f32>| values.into_iter().map(bits).collect::<Vec<_>>();
        prop_assert_eq!(as_bits(first), as_bits(second));
    }

    /// Exact, or `None` where a row is no whole number of blocks or too long to address.
    #[test]
    fn row_bytes_never_wraps(
        format in any_format(),
        cols in prop_oneof![
            any::<usize>(),
            0_usize..2048,
            (0..=usize::MAX / 256).prop_map(|n| n * 256),
        ],
    ) {
        let blocks = cols.is_multiple_of(format.block_len()).then(|| cols / format.block_len());
        let exact = blocks.map(|n| n as u128 * format.block_bytes() as u128);
        let expected = exact.and_then(|bytes| usize::try_from(bytes).ok());
        prop_assert_eq!(format.row_bytes(cols), expected);
    }
}
