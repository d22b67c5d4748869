//! libFuzzer's entry for [`puna_fuzz::pickle`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::pickle(bytes);
});
