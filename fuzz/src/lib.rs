//! One function per parser of bytes that a stranger can send. Bytes enter; whether they were accepted leaves.
//!
//! A parser may refuse, and it must do so with a message; it must not panic, run away or take memory
//! that the bytes do not account for. What it accepts is used: tensors are read, text is encoded and
//! decoded, a template is rendered. `fuzz_targets/` hands these to libFuzzer, `tests/corpus.rs` feeds
//! them every committed input.

mod scratch;

use puna::checkpoint::{Checkpoint, TokenizerSource};
use puna::config::{GenerationConfig, LlamaConfig};
use puna::model::rope::Rope;
use puna::tokenizer::{
    ChatOptions, ChatTemplate, DecodeOptions, EncodeOptions, Llama3Specials, LlamaTokenizer,
    LlamaTokenizerFast, ModelProto, SentencePiece, Tokenizer, TokenizerConfig,
};
use scratch::Scratch;

/// Text with what tokenizers stumble over: spaces, digits, marks, bytes outside a small vocabulary.
const TEXT: &str = " Hi  there,\n\tllama 2024! <s>e\u{301}\u{fffd}🦙 </s>  ";
/// Tensors above this size are accepted and not widened: the bytes do not account for them.
const MAX_VALUES: usize = 1 << 20;

/// `model.safetensors` beside a configuration of one small block.
pub fn safetensors(bytes: &[u8]) -> bool {
    let folder = Scratch::new("safetensors");
    folder.write("config.json", scratch::CONFIG.as_bytes());
    read(Checkpoint::open(folder.write("model.safetensors", bytes)))
}

/// A GGUF file: metadata, tensors, and the tokenizer that the metadata holds.
pub fn gguf(bytes: &[u8]) -> bool {
    let folder = Scratch::new("gguf");
    let checkpoint = Checkpoint::open(folder.write("model.gguf", bytes));
    if let Ok(checkpoint) = &checkpoint
        && let TokenizerSource::Gguf(found) = checkpoint.tokenizer()
    {
        use_tokenizer(Tokenizer::from_gguf(found));
        if let Some(source) = &found.chat_template {
            render(source, "Hello");
        }
    }
    read(checkpoint)
}

/// `pytorch_model.bin`: the bytes as the whole file, and as the pickle of a zip file with one storage.
pub fn pickle(bytes: &[u8]) -> bool {
    let folder = Scratch::new("pickle");
    folder.write("config.json", scratch::CONFIG.as_bytes());
    let is_file = read(Checkpoint::open(folder.write("pytorch_model.bin", bytes)));
    if bytes.first() != Some(&0x80) {
        return is_file;
    }
    let zip = scratch::stored_zip(&[("a/data.pkl", bytes), ("a/data/0", &[0; 256])]);
    read(Checkpoint::open(folder.write("pytorch_model.bin", &zip))) || is_file
}

/// `tokenizer.model`, of SentencePiece and of Llama 3.
pub fn sentencepiece(bytes: &[u8]) -> bool {
    let config = TokenizerConfig::default();
    if let Ok(proto) = ModelProto::parse(bytes, "fuzz") {
        let written = proto.to_bytes();
        let again = ModelProto::parse(&written, "fuzz").map(|proto| proto.to_bytes());
        assert_eq!(again.ok(), Some(written), "what is written must read back the same");
    }
    let specials = Llama3Specials::V3;
    let is_tiktoken =
        use_tokenizer(LlamaTokenizerFast::from_tiktoken(bytes, specials, &config, "fuzz"));
    let Some(model) = shown(SentencePiece::from_bytes(bytes, "fuzz")) else { return is_tiktoken };
    shown(model.decode(&model.encode(TEXT)));
    use_tokenizer(Ok::<_, std::fmt::Error>(LlamaTokenizer::new(model, &config)));
    use_tokenizer(LlamaTokenizerFast::from_sentencepiece(bytes, &config, "fuzz"))
}

/// `tokenizer.json`, and the same bytes as `tokenizer_config.json`.
pub fn tokenizer_json(bytes: &[u8]) -> bool {
    let config = TokenizerConfig::default();
    let is_tokenizer = use_tokenizer(LlamaTokenizerFast::from_json(bytes, &config, "fuzz"));
    if let Ok(map) = serde_json::from_slice(bytes) {
        shown(TokenizerConfig::from_json(&map, "fuzz"));
    }
    is_tokenizer
}

/// `config.json` and `generation_config.json`: what is written must read back the same.
pub fn config_json(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut is_valid = false;
    if let Some(config) = shown(LlamaConfig::from_json(text)) {
        let written = config.to_json();
        let again = LlamaConfig::from_json(&written).map(|config| config.to_json());
        assert_eq!(again.as_ref().ok(), Some(&written), "{again:?}");
        config.warnings();
        if shown(config.validate()).is_some() {
            is_valid = shown(Rope::new(&config, None)).is_some();
        }
    }
    if let Some((config, _)) = shown(GenerationConfig::from_json_with_warnings(text)) {
        config.unheard();
    }
    if let Some(config) = shown(GenerationConfig::from_json(text)) {
        let written = config.to_json();
        let again = GenerationConfig::from_json(&written).map(|config| config.to_json());
        assert_eq!(again.as_ref().ok(), Some(&written), "{again:?}");
        config.warnings();
        is_valid |= shown(config.validate()).is_some();
    }
    is_valid
}

/// A chat template; what follows the first NUL is what the user says.
pub fn chat_template(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let (source, said) = text.split_once('\0').unwrap_or((text, "Hello"));
    render(source, said)
}

fn render(source: &str, said: &str) -> bool {
    let Some(template) = shown(ChatTemplate::new(source)) else { return false };
    let messages = serde_json::json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": said},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": said},
    ]);
    let options = ChatOptions {
        add_generation_prompt: true,
        now: Some(std::time::UNIX_EPOCH),
        ..ChatOptions::default()
    };
    let Some(chat) = shown(template.render(&messages, &options)) else { return false };
    for range in chat.generation {
        assert!(chat.text.get(range).is_some(), "a generation block outside the text");
    }
    true
}

/// Reads every tensor that is not larger than a file could back.
fn read<E: std::fmt::Display>(checkpoint: Result<Checkpoint, E>) -> bool {
    let Some(checkpoint) = shown(checkpoint) else { return false };
    for name in checkpoint.names() {
        if let Some(tensor) = shown(checkpoint.tensor(name))
            && tensor.len() <= MAX_VALUES
        {
            assert_eq!(tensor.to_f32().len(), tensor.len(), "{name}");
        }
    }
    true
}

/// Encodes and decodes; what was encoded must be ids that the tokenizer knows.
fn use_tokenizer<T: Into<Tokenizer>, E: std::fmt::Display>(tokenizer: Result<T, E>) -> bool {
    let Some(tokenizer) = shown(tokenizer) else { return false };
    let tokenizer = tokenizer.into();
    if let Some(ids) = shown(tokenizer.encode(TEXT, EncodeOptions::default())) {
        shown(tokenizer.decode(&ids, DecodeOptions::TEXT));
    }
    shown(tokenizer.decode(&[0, 1, 2, 255, u32::MAX], DecodeOptions::default()));
    true
}

/// The value, or nothing where there is an error; an error says something.
fn shown<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    result.map_err(|error| assert!(!error.to_string().is_empty())).ok()
}
