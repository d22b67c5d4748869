//! libFuzzer's entry for [`puna_fuzz::gguf`].
//! Bytes are a `.gguf` file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::gguf(bytes);
});
