//! libFuzzer's entry for [`puna_fuzz::config_json`].
//! Bytes are a `config.json` and a `generation_config.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    puna_fuzz::config_json(bytes);
});
