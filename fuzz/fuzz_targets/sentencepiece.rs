//! libFuzzer's entry for [`puna_fuzz::sentencepiece`].
//! Bytes are a `tokenizer.model` of either kind.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::sentencepiece(bytes);
});
