//! libFuzzer's entry for [`puna_fuzz::chat_template`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::chat_template(bytes);
});
