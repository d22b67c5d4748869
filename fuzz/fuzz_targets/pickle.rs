//! libFuzzer's entry for [`puna_fuzz::pickle`].
//! Bytes are a `pytorch_model.bin`, or the pickle in one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::pickle(bytes);
});
