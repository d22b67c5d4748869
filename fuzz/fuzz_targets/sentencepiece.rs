//! libFuzzer's entry for [`puna_fuzz::sentencepiece`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::sentencepiece(bytes);
});
