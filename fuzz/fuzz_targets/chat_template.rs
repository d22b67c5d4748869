//! libFuzzer's entry for [`puna_fuzz::chat_template`].
//! Bytes are a template in UTF-8; a conversation is rendered with it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::chat_template(bytes);
});
