//! SentencePiece decoding, one piece at a time: ids enter, text leaves as soon as it is certain. The
//! bytes of a character that is split over byte pieces wait here, three at most; the leading space
//! that encoding put in is dropped.

use super::proto::PieceType;
use super::sentencepiece::{SPACE_MARK, SentencePiece};

/// Decodes pieces one at a time: U+2581 is a space, byte pieces are UTF-8, a byte that is no
/// UTF-8 is one U+FFFD, and one leading space goes where the model adds a dummy prefix.
#[derive(Clone, Debug, Default)]
pub struct PieceDecoder {
    /// Start of a character that is not complete yet; at most three bytes.
    bytes: Vec<u8>,
    /// A leading U+2581 has been dropped.
    dropped_prefix: bool,
    /// Some text has left.
    has_text: bool,
}

impl PieceDecoder {
    /// Appends what is certain once `id` is known; `id` must be below the model's length.
    pub fn push(&mut self, model: &SentencePiece, id: u32, out: &mut String) {
        let Some(piece) = model.proto().pieces.get(id as usize) else { return };
        match piece.kind {
            PieceType::Byte => {
                if let Some(byte) = byte_of(&piece.text) {
                    self.push_byte(byte, out);
                }
            }
            PieceType::Control => self.flush(out),
            PieceType::Unknown => self.push_text(&model.proto().unk_surface, out),
            _ => {
                self.flush(out);
                let mut text = piece.text.as_str();
                let is_first = !self.has_text && !self.dropped_prefix && model.strips_prefix();
                if let Some(rest) = text.strip_prefix(SPACE_MARK).filter(|_| is_first) {
                    text = rest;
                    self.dropped_prefix = !model.proto().remove_extra_whitespaces;
                }
                self.has_text |= !text.is_empty();
                out.extend(text.chars().map(|c| if c == SPACE_MARK { ' ' } else { c }));
            }
        }
    }

    /// Appends text that is no piece, as it is.
    pub fn push_text(&mut self, text: &str, out: &mut String) {
        self.flush(out);
        self.has_text |= !text.is_empty();
        out.push_str(text);
    }

    fn push_byte(&mut self, byte: u8, out: &mut String) {
        self.bytes.push(byte);
        self.has_text = true;
        loop {
            let error = match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    out.push_str(text);
                    self.bytes.clear();
                    return;
                }
                Err(error) => error,
            };
            if error.error_len().is_none() {
                return;
            }
            out.push('\u{fffd}');
            self.bytes.remove(0);
        }
    }

    fn flush(&mut self, out: &mut String) {
        for _ in self.bytes.drain(..) {
            out.push('\u{fffd}');
        }
    }

    /// Appends what was held back, and starts anew.
    pub fn finish(&mut self, out: &mut String) {
        self.flush(out);
        *self = Self::default();
    }
}

/// The byte that `<0xHH>` names.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
