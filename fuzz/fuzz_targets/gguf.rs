//! libFuzzer's entry for [`puna_fuzz::gguf`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::gguf(bytes);
});
