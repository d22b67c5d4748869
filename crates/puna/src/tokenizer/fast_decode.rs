//! Decoding of the fast class, one token at a time: the decoder of a `tokenizer.json` as a plan.
//!
//! A plan does to a stream what the file's chain does to the whole: byte-level vocabularies decode
//! UTF-8 with one U+FFFD per broken sequence; SentencePiece ones replace marks, spell byte tokens
//! (one U+FFFD per byte of a run that is no UTF-8), and strip leading spaces of the whole text.

use serde_json::Value;

use super::cleanup::CleanUp;
use super::error::TokenizerError;
use super::piece_decoder::byte_of;

const HINT: &str = "LLaMA's decoders are ByteLevel, Metaspace, and Replace-ByteFallback-Fuse-Strip";

/// How token texts become text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum DecoderPlan {
    /// No decoder: tokens with spaces between them.
    Spaced,
    /// Characters stand for bytes.
    ByteLevel,
    /// The mark is a space; the first token loses its marks where `drop_first`.
    Metaspace {
        /// The mark.
        mark: char,
        /// Whether encoding put one before the text.
        drop_first: bool,
    },
    /// Replacements in each token, then byte tokens, then stripping of the whole.
    Chain {
        /// Pairs of pattern and replacement.
        replace: Vec<(String, String)>,
        /// Whether `<0xHH>` is a byte.
        byte_fallback: bool,
        /// The character and how many of it go at the start.
        strip: Option<(char, usize)>,
    },
}

impl DecoderPlan {
    /// Reads the `decoder` of a `tokenizer.json`.
    pub(super) fn from_json(value: &Value, file: &str) -> Result<Self, TokenizerError> {
        let unsupported =
            |what: &str| Err(TokenizerError::unsupported(file, format!("decoder {what}"), HINT));
        let kind = value.get("type").and_then(Value::as_str);
        match kind {
            None if value.is_null() => Ok(Self::Spaced),
            None => Err(TokenizerError::malformed(file, "decoder has no type")),
            Some("ByteLevel") => Ok(Self::ByteLevel),
            Some("Metaspace") => Ok(metaspace(value)),
            Some("Sequence") => {
                let Some(steps) = value.get("decoders").and_then(Value::as_array) else {
                    return Err(TokenizerError::malformed(file, "decoder.decoders is no list"));
                };
                match steps.as_slice() {
                    [only] if only.get("type").and_then(Value::as_str) != Some("Sequence") => {
                        Self::from_json(only, file)
                    }
                    steps => chain(steps).map_or_else(|what| unsupported(&what), Ok),
                }
            }
            Some(_) => {
                chain(std::slice::from_ref(value)).map_or_else(|what| unsupported(&what), Ok)
            }
        }
    }

    /// The chain of converted SentencePiece models.
    pub(super) fn sentencepiece(strip: bool) -> Self {
        Self::Chain {
            replace: vec![("\u{2581}".to_owned(), " ".to_owned())],
            byte_fallback: true,
            strip: strip.then_some((' ', 1)),
        }
    }
}

fn metaspace(value: &Value) -> DecoderPlan {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let never = value.get("add_prefix_space").and_then(Value::as_bool) == Some(false);
    DecoderPlan::Metaspace {
        mark: text("replacement").and_then(|text| text.chars().next()).unwrap_or('\u{2581}'),
        drop_first: !never && text("prepend_scheme") != Some("never"),
    }
}

/// The steps in the one order that a stream can follow; else the name of the step out of order.
fn chain(steps: &[Value]) -> Result<DecoderPlan, String> {
    let (mut replace, mut byte_fallback, mut fused, mut strip) = (Vec::new(), false, false, None);
    for step in steps {
        let text = |name: &str| step.get(name).and_then(Value::as_str);
        let number = |name: &str| step.get(name).and_then(Value::as_u64).unwrap_or(0);
        let kind = text("type").unwrap_or("without type").to_owned();
        match kind.as_str() {
            "Replace" if !byte_fallback && !fused => {
                let pattern = step.pointer("/pattern/String").and_then(Value::as_str);
                let (Some(pattern), Some(content)) = (pattern, text("content")) else {
                    return Err("Replace with an expression".to_owned());
                };
                if pattern.is_empty() {
                    return Err("Replace of nothing".to_owned());
                }
                replace.push((pattern.to_owned(), content.to_owned()));
            }
            "ByteFallback" if !byte_fallback && !fused => byte_fallback = true,
            "Fuse" if strip.is_none() => fused = true,
            "Strip" if fused && strip.is_none() && number("stop") == 0 => {
                let content = text("content").and_then(|text| text.chars().next());
                strip = content.map(|content| (content, number("start") as usize));
            }
            _ => return Err(format!("step {kind} at its place")),
        }
    }
    Ok(DecoderPlan::Chain { replace, byte_fallback, strip })
}

/// The byte that a character of a byte-level vocabulary stands for.
pub(super) fn byte_of_char(character: char) -> Option<u8> {
    let point = character as u32;
    Some(match point {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => point as u8,
        // The other bytes follow each other from U+0100: 0..=0x20, 0x7f..=0xa0, 0xad.
        0x100..=0x120 => (point - 0x100) as u8,
        0x121..=0x142 => (point - 0x121 + 0x7f) as u8,
        0x143 => 0xad,
        _ => return None,
    })
}

/// The character that stands for a byte.
pub(super) fn char_of_byte(byte: u8) -> char {
    let point = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
        0..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte) - 0x7f,
        0xad => 0x143,
    };
    char::from_u32(point).unwrap_or('\u{fffd}')
}

/// The state between two tokens.
#[derive(Clone, Debug)]
pub(super) struct FastDecoder {
    plan: DecoderPlan,
    clean_up: Option<CleanUp>,
    /// Bytes that are no whole character yet, or a run of byte tokens.
    bytes: Vec<u8>,
    is_first: bool,
    strip_left: usize,
}

impl FastDecoder {
    pub(super) fn new(plan: &DecoderPlan, clean_up: bool) -> Self {
        let strip_left = match plan {
            DecoderPlan::Chain { strip: Some((_, count)), .. } => *count,
            _ => 0,
        };
        Self {
            plan: plan.clone(),
            clean_up: clean_up.then(CleanUp::default),
            bytes: Vec::new(),
            is_first: true,
            strip_left,
        }
    }

    /// Appends what `token` makes certain.
    pub(super) fn push(&mut self, token: &str, out: &mut String) {
        let mut text = String::new();
        let is_first = std::mem::replace(&mut self.is_first, false);
        match &self.plan {
            DecoderPlan::Spaced => {
                if !is_first {
                    text.push(' ');
                }
                text.push_str(token);
            }
            DecoderPlan::ByteLevel => {
                let begin = self.bytes.len();
                let all = token.chars().try_for_each(|character| {
                    self.bytes.push(byte_of_char(character)?);
                    Some(())
                });
                if all.is_none() {
                    self.bytes.truncate(begin);
                    self.bytes.extend_from_slice(token.as_bytes());
                }
                take_utf8(&mut self.bytes, &mut text);
            }
            DecoderPlan::Metaspace { mark, drop_first } => {
                let drops = is_first && *drop_first;
                let kept = token.chars().filter(|c| !(drops && c == mark));
                text.extend(kept.map(|c| if c == *mark { ' ' } else { c }));
            }
            DecoderPlan::Chain { .. } => self.push_chain(token, &mut text),
        }
        self.write(&text, out);
    }

    fn push_chain(&mut self, token: &str, text: &mut String) {
        let DecoderPlan::Chain { replace, byte_fallback, .. } = &self.plan else { return };
        let mut token = token.to_owned();
        for (pattern, content) in replace {
            if token.contains(pattern.as_str()) {
                token = token.replace(pattern.as_str(), content);
            }
        }
        match byte_of(&token).filter(|_| *byte_fallback) {
            Some(byte) => self.bytes.push(byte),
            None => {
                end_run(&mut self.bytes, text);
                text.push_str(&token);
            }
        }
    }

    fn write(&mut self, text: &str, out: &mut String) {
        let mut text = text;
        if let DecoderPlan::Chain { strip: Some((content, _)), .. } = self.plan {
            while self.strip_left > 0 && !text.is_empty() {
                match text.strip_prefix(content) {
                    Some(rest) => {
                        text = rest;
                        self.strip_left -= 1;
                    }
                    None => self.strip_left = 0,
                }
            }
        }
        match &mut self.clean_up {
            Some(clean_up) => clean_up.push(text, out),
            None => out.push_str(text),
        }
    }

    /// Appends what was held back, and starts anew.
    pub(super) fn finish(&mut self, out: &mut String) {
        let mut text = String::new();
        match self.plan {
            // What is left is the start of one character.
            DecoderPlan::ByteLevel if !self.bytes.is_empty() => text.push('\u{fffd}'),
            DecoderPlan::Chain { .. } => end_run(&mut self.bytes, &mut text),
            _ => {}
        }
        self.write(&text, out);
        if let Some(clean_up) = &mut self.clean_up {
            clean_up.finish(out);
        }
        *self = Self::new(&self.plan, self.clean_up.is_some());
    }
}

/// Moves whole characters from `bytes`; a sequence that can never become one is U+FFFD.
fn take_utf8(bytes: &mut Vec<u8>, text: &mut String) {
    let mut done = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let invalid = chunk.invalid();
        let is_last = done + invalid.len() == bytes.len();
        let may_continue =
            is_last && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if invalid.is_empty() || may_continue {
            break;
        }
        text.push('\u{fffd}');
        done += invalid.len();
    }
    bytes.drain(..done);
}

fn end_run(bytes: &mut Vec<u8>, text: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(run) => text.push_str(run),
        Err(_) => text.extend(bytes.iter().map(|_| '\u{fffd}')),
    }
    bytes.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_character() {
        for byte in 0..=255 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(char_of_byte(b'\n'), 'Ċ');
        assert_eq!(byte_of_char('\u{144}'), None);
    }

    #[test]
    fn utf8_that_arrives_in_parts_equals_the_lossy_whole() {
        let samples: [&[u8]; 6] = [
            "aé你\u{1f600}".as_bytes(),
            b"\xf0\x9f\x98",
            b"\xe8\xb0\x9b\xe8",
            b"\xff\x80a\xc3\xc3\xa9",
            b"\xed\xa0\x80\xf4\x90\x80\x80",
            b"\xe2\x82a\xf0\x9f\xe4\xbd\xa0",
        ];
        for bytes in samples {
            let (mut held, mut text) = (Vec::new(), String::new());
            for &byte in bytes {
                held.push(byte);
                take_utf8(&mut held, &mut text);
                assert!(held.len() < 4);
            }
            if !held.is_empty() {
                text.push('\u{fffd}');
            }
            assert_eq!(text, String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn other_orders_and_kinds_are_refused() {
        for text in [
            r#"{"type":"CTC"}"#,
            r#"{"type":"Sequence","decoders":[{"type":"Strip","content":" ","start":1,"stop":0},{"type":"Fuse"}]}"#,
            r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"Regex":"a"},"content":"b"},{"type":"Fuse"}]}"#,
        ] {
            let value = serde_json::from_str(text).unwrap();
            let error = DecoderPlan::from_json(&value, "t.json").unwrap_err().to_string();
            assert!(error.contains("t.json") && error.contains("not supported"), "{error}");
        }
    }
}
