//! libFuzzer's entry for [`puna_fuzz::safetensors`].
//! Bytes are a `.safetensors` file beside a small configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::safetensors(bytes);
});
