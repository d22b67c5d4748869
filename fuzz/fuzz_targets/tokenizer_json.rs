//! libFuzzer's entry for [`puna_fuzz::tokenizer_json`].
//! Bytes are a `tokenizer.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::tokenizer_json(bytes);
});
