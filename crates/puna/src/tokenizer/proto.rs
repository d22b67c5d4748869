//! The SentencePiece file: protobuf bytes enter, a checked [`ModelProto`] leaves.
//!
//! Only the fields that encoding and decoding need are read; the others are stepped over. Every
//! length is checked against what is left of the message before it is used.

use super::error::TokenizerError;

/// More pieces than any vocabulary has; bounds what a hostile file can make us allocate.
const MAX_PIECES: usize = 1 << 22;
const BPE: u64 = 2;

/// What a piece is for, in the file's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceType {
    /// Text that merges produce.
    Normal = 1,
    /// The piece that stands for text outside the vocabulary.
    Unknown = 2,
    /// A mark such as `<s>`; never produced from text, never shown.
    Control = 3,
    /// Always one token where it occurs in the text.
    UserDefined = 4,
    /// Merges pass through it, but it is split again at the end.
    Unused = 5,
    /// One byte, for characters outside the vocabulary.
    Byte = 6,
}

impl PieceType {
    /// The type that a file's number names.
    pub fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// One entry of the vocabulary; its index is its id.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The text, with U+2581 for a space.
    pub text: String,
    /// The higher, the earlier it merges.
    pub score: f32,
    /// What it is for.
    pub kind: PieceType,
}

/// What of a SentencePiece `ModelProto` matters here; `Default` holds the format's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelProto {
    /// The vocabulary.
    pub pieces: Vec<Piece>,
    /// 1 is Unigram, 2 is BPE.
    pub model_type: u64,
    /// Spell unknown characters as bytes.
    pub byte_fallback: bool,
    /// Id of the unknown piece.
    pub unk_id: i64,
    /// Id of the beginning of a sequence, or -1.
    pub bos_id: i64,
    /// Id of the end of a sequence, or -1.
    pub eos_id: i64,
    /// Id of padding, or -1.
    pub pad_id: i64,
    /// What the unknown piece decodes to.
    pub unk_surface: String,
    /// Put the space mark after words and not before them.
    pub treat_whitespace_as_suffix: bool,
    /// A compiled table of character rewrites; empty where the text stays as it is.
    pub precompiled_charsmap: Vec<u8>,
    /// Put a space before the text.
    pub add_dummy_prefix: bool,
    /// Drop spaces at both ends and fold runs of them.
    pub remove_extra_whitespaces: bool,
    /// Write spaces as U+2581.
    pub escape_whitespaces: bool,
}

impl Default for ModelProto {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            pad_id: -1,
            unk_surface: " \u{2047} ".to_owned(),
            treat_whitespace_as_suffix: false,
            precompiled_charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

/// A field's value as the wire carries it.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    Fixed64,
}

/// Walks the fields of one message; offsets count from the start of the file.
struct Fields<'a> {
    bytes: &'a [u8],
    offset: usize,
    file: &'a str,
}

impl<'a> Fields<'a> {
    fn error(&self, what: &str) -> TokenizerError {
        TokenizerError::malformed(self.file, format!("{what} at byte {}", self.offset))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], TokenizerError> {
        let Some((head, tail)) = self.bytes.split_at_checked(n) else {
            return Err(self.error(&format!(
                "a field of {n} bytes does not fit into the {} left",
                self.bytes.len()
            )));
        };
        self.bytes = tail;
        self.offset += n;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, TokenizerError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number longer than 64 bits"))
    }

    /// The next field's number, value and offset.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>, usize)>, TokenizerError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let length = self.varint()?;
                let length =
                    usize::try_from(length).map_err(|_| self.error("a length beyond memory"))?;
                let at = self.offset;
                return Ok(Some((tag >> 3, Wire::Bytes(self.take(length)?), at)));
            }
            5 => {
                let bytes = self.take(4)?;
                Wire::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            kind => return Err(self.error(&format!("wire type {kind}"))),
        };
        Ok(Some((tag >> 3, wire, self.offset)))
    }

    fn message(&self, bytes: &'a [u8], offset: usize) -> Fields<'a> {
        Fields { bytes, offset, file: self.file }
    }

    fn text(&self, bytes: &[u8], what: &str, offset: usize) -> Result<String, TokenizerError> {
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| {
            TokenizerError::malformed(self.file, format!("{what} at byte {offset} is not UTF-8"))
        })
    }
}

impl ModelProto {
    /// Reads the bytes of a `tokenizer.model`; `file` names them in errors.
    ///
    /// # Errors
    /// Says at which byte the message breaks off or contradicts itself.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, TokenizerError> {
        let mut proto = Self::default();
        let mut fields = Fields { bytes, offset: 0, file };
        while let Some((number, wire, at)) = fields.next()? {
            match (number, wire) {
                (1, Wire::Bytes(message)) => {
                    if proto.pieces.len() == MAX_PIECES {
                        return Err(fields.error(&format!("more than {MAX_PIECES} pieces")));
                    }
                    let index = proto.pieces.len();
                    proto.pieces.push(piece(fields.message(message, at), index)?);
                }
                (2, Wire::Bytes(message)) => proto.trainer_spec(fields.message(message, at))?,
                (3, Wire::Bytes(message)) => proto.normalizer_spec(fields.message(message, at))?,
                _ => {}
            }
        }
        if proto.pieces.is_empty() {
            return Err(fields.error("no pieces before the end"));
        }
        Ok(proto)
    }

    fn trainer_spec(&mut self, mut fields: Fields<'_>) -> Result<(), TokenizerError> {
        while let Some((number, wire, at)) = fields.next()? {
            match (number, wire) {
                (3, Wire::Number(value)) => self.model_type = value,
                (24, Wire::Number(value)) => self.treat_whitespace_as_suffix = value != 0,
                (35, Wire::Number(value)) => self.byte_fallback = value != 0,
                // Negative ids are sign-extended to 64 bits on the wire.
                (40, Wire::Number(value)) => self.unk_id = value as i64,
                (41, Wire::Number(value)) => self.bos_id = value as i64,
                (42, Wire::Number(value)) => self.eos_id = value as i64,
                (43, Wire::Number(value)) => self.pad_id = value as i64,
                (44, Wire::Bytes(bytes)) => {
                    self.unk_surface = fields.text(bytes, "trainer_spec.unk_surface", at)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer_spec(&mut self, mut fields: Fields<'_>) -> Result<(), TokenizerError> {
        while let Some((number, wire, _)) = fields.next()? {
            match (number, wire) {
                (2, Wire::Bytes(bytes)) => self.precompiled_charsmap = bytes.to_vec(),
                (3, Wire::Number(value)) => self.add_dummy_prefix = value != 0,
                (4, Wire::Number(value)) => self.remove_extra_whitespaces = value != 0,
                (5, Wire::Number(value)) => self.escape_whitespaces = value != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

impl ModelProto {
    /// Refuses models that are not BPE, and ids that are not pieces.
    pub(super) fn check_bpe(&self, file: &str) -> Result<(), TokenizerError> {
        let hint = "LLaMA's tokenizer.model is a BPE model without a table of rewrites";
        if self.model_type != BPE {
            let name = match self.model_type {
                1 => "Unigram".to_owned(),
                3 => "Word".to_owned(),
                4 => "Char".to_owned(),
                other => other.to_string(),
            };
            return Err(TokenizerError::unsupported(
                file,
                format!("trainer_spec.model_type {name}"),
                hint,
            ));
        }
        if !self.precompiled_charsmap.is_empty() {
            let what = "normalizer_spec.precompiled_charsmap (Unicode normalisation)";
            return Err(TokenizerError::unsupported(file, what, hint));
        }
        let unk = usize::try_from(self.unk_id).ok().and_then(|id| self.pieces.get(id));
        if unk.is_none_or(|piece| piece.kind != PieceType::Unknown) {
            return Err(TokenizerError::malformed(
                file,
                format!("trainer_spec.unk_id {} is not a piece of type unknown", self.unk_id),
            ));
        }
        for (name, id) in
            [("bos_id", self.bos_id), ("eos_id", self.eos_id), ("pad_id", self.pad_id)]
        {
            if id >= self.pieces.len() as i64 {
                let what = format!("trainer_spec.{name} {id} is not below {}", self.pieces.len());
                return Err(TokenizerError::malformed(file, what));
            }
        }
        Ok(())
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, (field << 3) | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

impl ModelProto {
    /// Writes the message; a model that came from a file keeps that file's bytes instead.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in &self.pieces {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, piece.text.as_bytes());
            put_varint(&mut message, (2 << 3) | 5);
            message.extend_from_slice(&piece.score.to_le_bytes());
            put_number(&mut message, 3, piece.kind as u64);
            put_bytes(&mut out, 1, &message);
        }
        let mut trainer = Vec::new();
        put_number(&mut trainer, 3, self.model_type);
        put_number(&mut trainer, 24, u64::from(self.treat_whitespace_as_suffix));
        put_number(&mut trainer, 35, u64::from(self.byte_fallback));
        let ids = [(40, self.unk_id), (41, self.bos_id), (42, self.eos_id), (43, self.pad_id)];
        for (field, id) in ids {
            put_number(&mut trainer, field, id as u64);
        }
        put_bytes(&mut trainer, 44, self.unk_surface.as_bytes());
        put_bytes(&mut out, 2, &trainer);
        let mut normalizer = Vec::new();
        put_bytes(&mut normalizer, 2, &self.precompiled_charsmap);
        put_number(&mut normalizer, 3, u64::from(self.add_dummy_prefix));
        put_number(&mut normalizer, 4, u64::from(self.remove_extra_whitespaces));
        put_number(&mut normalizer, 5, u64::from(self.escape_whitespaces));
        put_bytes(&mut out, 3, &normalizer);
        out
    }
}

fn piece(mut fields: Fields<'_>, index: usize) -> Result<Piece, TokenizerError> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceType::Normal };
    while let Some((number, wire, at)) = fields.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                piece.text = fields.text(bytes, &format!("pieces[{index}].piece"), at)?;
            }
            (2, Wire::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Wire::Number(value)) => {
                piece.kind = PieceType::from_number(value).ok_or_else(|| {
                    fields.error(&format!("pieces[{index}].type has the unknown value {value}"))
                })?;
            }
            _ => {}
        }
    }
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_bytes_are_named_by_offset() {
        let cases: [(&[u8], &str); 6] = [
            (b"", "no pieces"),
            (b"\x0a\xff\xff\xff\xff\x0f", "does not fit"),
            (b"\x0a", "does not fit"),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "longer than 64 bits"),
            (b"\x0a\x03\x0a\x01\xff", "pieces[0].piece at byte 4 is not UTF-8"),
            (b"\x0a\x05\x0a\x01a\x18\x09", "pieces[0].type has the unknown value 9"),
        ];
        for (bytes, expected) in cases {
            let error = ModelProto::parse(bytes, "x.model").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("x.model"), "{error}");
        }
    }

    #[test]
    fn unknown_fields_are_stepped_over() {
        // Field 15 as varint, 64-bit, bytes and 32-bit, then one piece "a".
        let bytes = b"\x78\x05\x79\0\0\0\0\0\0\0\0\x7a\x02hi\x7d\0\0\0\0\x0a\x03\x0a\x01a";
        let proto = ModelProto::parse(bytes, "x").unwrap();
        assert_eq!(proto.pieces.len(), 1);
        assert_eq!(proto.pieces[0].text, "a");
        assert!(proto.add_dummy_prefix && proto.remove_extra_whitespaces);
    }

    #[test]
    fn what_is_written_reads_back() {
        let proto = ModelProto {
            pieces: vec![
                Piece { text: "<unk>".into(), score: 0.0, kind: PieceType::Unknown },
                Piece { text: "\u{2581}é".into(), score: -1.5, kind: PieceType::Normal },
            ],
            model_type: 2,
            byte_fallback: true,
            unk_surface: "?".into(),
            treat_whitespace_as_suffix: true,
            remove_extra_whitespaces: false,
            ..ModelProto::default()
        };
        assert_eq!(ModelProto::parse(&proto.to_bytes(), "x").unwrap(), proto);
    }
}
