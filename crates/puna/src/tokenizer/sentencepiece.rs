//! SentencePiece BPE: text enters, ids of pieces leave, and back.
//!
//! The text is normalised (dummy prefix, spaces), cut into symbols (characters and user-defined
//! pieces), and adjacent symbols merge by descending score, leftmost first. What is not in the
//! vocabulary becomes byte pieces, or the unknown piece. [`CharBpe`] does the encoding; here its
//! merges are made of pieces and scores, O(l²) for a piece of l bytes.

use std::collections::HashMap;

use super::bpe::{Merge, SeededState};
use super::char_bpe::{CharBpe, CharBpeParts, CharMerge, Scratch, Unknown};
use super::error::TokenizerError;
use super::piece_decoder::PieceDecoder;
use super::pool::ScratchPool;
use super::proto::{ModelProto, PieceType};
use super::words::MAX_KEY;

/// How SentencePiece writes a space.
pub const SPACE_MARK: char = '\u{2581}';
/// Bytes of all ways to split all pieces; LLaMA's 32,000 need about two million.
const MAX_SPLIT_BYTES: usize = 1 << 31;

type Index = HashMap<Box<str>, u32, SeededState>;

/// A SentencePiece BPE model, ready to encode.
#[derive(Clone, Debug)]
pub struct SentencePiece {
    proto: ModelProto,
    /// The file as it was read.
    original: Option<Vec<u8>>,
    /// Normal, user-defined and unused pieces.
    pieces: Index,
    /// Control, unknown and byte pieces.
    reserved: Index,
    bpe: CharBpe,
    split_words: bool,
    pool: ScratchPool,
}

impl SentencePiece {
    /// Reads a `tokenizer.model`; `file` names it in errors.
    ///
    /// # Errors
    /// Where the bytes are broken, or the model is not BPE.
    pub fn from_bytes(bytes: &[u8], file: &str) -> Result<Self, TokenizerError> {
        let mut model = Self::new(ModelProto::parse(bytes, file)?, file)?;
        model.original = Some(bytes.to_vec());
        Ok(model)
    }

    /// Builds the model from its parts, for instance from GGUF metadata.
    ///
    /// # Errors
    /// Where the parts contradict each other, or the model is not BPE.
    pub fn new(proto: ModelProto, file: &str) -> Result<Self, TokenizerError> {
        proto.check_bpe(file)?;
        let (mut pieces, mut reserved) = (Index::default(), Index::default());
        for (id, piece) in proto.pieces.iter().enumerate() {
            let bad = |what: &str| {
                TokenizerError::malformed(file, format!("pieces[{id}] ({:?}) {what}", piece.text))
            };
            if piece.text.is_empty() {
                return Err(bad("is empty"));
            }
            if piece.score.is_nan() {
                return Err(bad("has a score that is not a number"));
            }
            let index = if is_text(piece.kind) { &mut pieces } else { &mut reserved };
            if index.insert(piece.text.as_str().into(), id as u32).is_some() {
                return Err(bad("is defined twice"));
            }
        }
        let unknown = unknown(&proto, &reserved, file)?;
        let bpe = char_bpe(&proto, &pieces, unknown, file)?;
        let split_words = proto.escape_whitespaces
            && !proto.treat_whitespace_as_suffix
            && !proto.pieces.iter().any(|piece| piece.kind == PieceType::Unused)
            && marks_only_lead(&proto);
        let pool = ScratchPool::default();
        Ok(Self { original: None, proto, pieces, reserved, bpe, split_words, pool })
    }

    /// Encodes `text` with the model's own dummy prefix.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.pool.with(|scratch| {
            self.encode_into(text, self.proto.add_dummy_prefix, scratch, &mut ids);
        });
        ids
    }

    /// Appends the ids of `text`; `prefix` says whether a space goes before it.
    pub fn encode_into(&self, text: &str, prefix: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        self.normalize(text, prefix, &mut scratch.text);
        self.bpe.encode(scratch, ids);
    }

    /// Buffers for `encode_into`, which keep what was learnt from earlier texts.
    pub(super) fn pool(&self) -> &ScratchPool {
        &self.pool
    }

    /// Spaces stay spaces: where the model writes them as U+2581, so do its pieces in `bpe`, and
    /// a U+2581 of the text becomes a space, which it cannot be told from.
    fn normalize(&self, text: &str, prefix: bool, out: &mut String) {
        out.clear();
        let folded = self.proto.remove_extra_whitespaces;
        let text = if folded { text.trim_start_matches(' ') } else { text };
        if text.is_empty() {
            return;
        }
        // One for a space on either side, the rest for the window behind the end.
        out.reserve(text.len() + 2 + MAX_KEY);
        if prefix && !self.proto.treat_whitespace_as_suffix {
            out.push(' ');
        }
        let begin = out.len();
        if folded {
            for (index, part) in text.split(' ').filter(|part| !part.is_empty()).enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                out.push_str(part);
            }
        } else {
            out.push_str(text);
        }
        if self.proto.escape_whitespaces && out[begin..].contains(SPACE_MARK) {
            *out = out.replace(SPACE_MARK, " ");
        }
        if folded {
            out.truncate(out.trim_end_matches(' ').len());
        }
        if prefix && self.proto.treat_whitespace_as_suffix {
            out.push(' ');
        }
    }

    /// Text of `ids`; ids out of range are an error.
    ///
    /// # Errors
    /// Names the first id that the model does not have.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut text = String::new();
        let mut decoder = PieceDecoder::default();
        for &id in ids {
            if id as usize >= self.len() {
                return Err(TokenizerError::UnknownId { id, len: self.len() });
            }
            decoder.push(self, id, &mut text);
        }
        decoder.finish(&mut text);
        Ok(text)
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.proto.pieces.len()
    }

    /// Whether there are no pieces; a model that was read has some.
    pub fn is_empty(&self) -> bool {
        self.proto.pieces.is_empty()
    }

    /// Text of a piece.
    pub fn id_to_piece(&self, id: u32) -> Option<&str> {
        self.proto.pieces.get(id as usize).map(|piece| piece.text.as_str())
    }

    /// Id of a piece, reserved ones first.
    pub fn piece_to_id(&self, text: &str) -> Option<u32> {
        self.reserved.get(text).or_else(|| self.pieces.get(text)).copied()
    }

    /// Id of the unknown piece.
    pub fn unk_id(&self) -> u32 {
        self.proto.unk_id as u32
    }

    /// What the file says.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// Whether decoding drops one space at the start.
    pub(super) fn strips_prefix(&self) -> bool {
        self.proto.add_dummy_prefix || self.proto.remove_extra_whitespaces
    }

    /// Whether no merge crosses the start of a word.
    pub(super) fn splits_words(&self) -> bool {
        self.split_words
    }

    /// Turns the dummy prefix of encode and decode on or off.
    pub(super) fn set_dummy_prefix(&mut self, add: bool) {
        if self.original.is_none() {
            self.original = Some(self.proto.to_bytes());
        }
        self.proto.add_dummy_prefix = add;
    }

    /// The bytes of the file as it was read, or newly written.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.original.clone().unwrap_or_else(|| self.proto.to_bytes())
    }
}

fn is_text(kind: PieceType) -> bool {
    matches!(kind, PieceType::Normal | PieceType::UserDefined | PieceType::Unused)
}

fn only_char(text: &str) -> Option<char> {
    let mut characters = text.chars();
    let first = characters.next()?;
    characters.next().is_none().then_some(first)
}

fn byte_ids(
    proto: &ModelProto,
    reserved: &Index,
    file: &str,
) -> Result<Option<Box<[u32; 256]>>, TokenizerError> {
    if !proto.byte_fallback {
        return Ok(None);
    }
    let mut ids = Box::new([0; 256]);
    for (byte, slot) in ids.iter_mut().enumerate() {
        let name = format!("<0x{byte:02X}>");
        let id = reserved.get(name.as_str()).copied();
        let is_byte = |id: &u32| proto.pieces[*id as usize].kind == PieceType::Byte;
        *slot = id.filter(is_byte).ok_or_else(|| {
            let what = format!("byte_fallback is set, but there is no byte piece {name}");
            TokenizerError::malformed(file, what)
        })?;
    }
    Ok(Some(ids))
}

fn unknown(proto: &ModelProto, reserved: &Index, file: &str) -> Result<Unknown, TokenizerError> {
    let characters = reserved.iter().filter_map(|(text, &id)| Some((only_char(text)?, id)));
    Ok(Unknown {
        reserved: characters.collect(),
        byte_ids: byte_ids(proto, reserved, file)?,
        unk: proto.unk_id as u32,
        space_is_mark: proto.escape_whitespaces,
    })
}

fn marks_only_lead(proto: &ModelProto) -> bool {
    proto.pieces.iter().filter(|piece| is_text(piece.kind)).all(|piece| {
        let body = piece.text.trim_start_matches(SPACE_MARK);
        !body.contains(SPACE_MARK)
    })
}

/// The merges of a model: every way to cut a piece into two pieces or characters. Texts in them are
/// as `normalize` leaves them.
fn char_bpe(
    proto: &ModelProto,
    pieces: &Index,
    unknown: Unknown,
    file: &str,
) -> Result<CharBpe, TokenizerError> {
    let escaped = proto.escape_whitespaces;
    let inner = |c: char| if escaped && c == SPACE_MARK { ' ' } else { c };
    // Escaped text holds no space, so a piece with one never occurs.
    let occurs = |id: &usize| !(escaped && proto.pieces[*id].text.contains(' '));
    let of_kind = |kinds: &'static [PieceType]| {
        let ids = 0..proto.pieces.len();
        ids.filter(|&id| kinds.contains(&proto.pieces[id].kind)).filter(occurs)
    };
    let merged: Vec<usize> = of_kind(&[PieceType::Normal, PieceType::Unused]).collect();
    let squares = merged.iter().map(|&id| proto.pieces[id].text.len().saturating_pow(2));
    if squares.fold(0usize, usize::saturating_add) > MAX_SPLIT_BYTES {
        return Err(TokenizerError::malformed(file, "the pieces are too long to be real"));
    }
    let letters = letters(proto, &merged);
    let symbol_of = |text: &str| match only_char(text) {
        Some(character) => letters.get(&character).copied(),
        None => pieces
            .get(text)
            .copied()
            .filter(|&id| proto.pieces[id as usize].kind != PieceType::UserDefined),
    };
    let ranks = ranks(proto, &merged);
    let mut merges = Vec::with_capacity(2 * merged.len());
    for &id in &merged {
        let text = &proto.pieces[id].text;
        let ends = text.chars().map(inner).zip(text.chars().skip(1).map(inner));
        for ((at, _), seam) in text.char_indices().skip(1).zip(ends) {
            let (left, right) = text.split_at(at);
            if let (Some(left), Some(right)) = (symbol_of(left), symbol_of(right)) {
                let merge = Merge { left, right, rank: ranks[id], merged: id as u32 };
                merges.push(CharMerge { merge, seam });
            }
        }
    }
    let text_of = |id: usize| proto.pieces[id].text.chars().map(inner).collect::<String>();
    let words: Vec<(String, u32)> =
        of_kind(&[PieceType::Normal]).map(|id| (text_of(id), id as u32)).collect();
    let parts = CharBpeParts {
        n_tokens: proto.pieces.len() as u32,
        letters: letters.iter().map(|(&c, &symbol)| (inner(c), symbol)).collect(),
        merges,
        user_defined: of_kind(&[PieceType::UserDefined])
            .map(|id| (text_of(id).into(), id as u32))
            .collect(),
        unused: of_kind(&[PieceType::Unused]).map(|id| id as u32).collect(),
        unknown,
    };
    Ok(CharBpe::new(parts, words.iter().map(|(text, id)| (text.as_str(), *id))))
}

/// The symbol of each character: a piece, or, where none is the character alone, a number from
/// the pieces' count on.
fn letters(proto: &ModelProto, merged: &[usize]) -> HashMap<char, u32> {
    let mut letters = HashMap::new();
    for &id in merged {
        if let Some(character) = only_char(&proto.pieces[id].text) {
            letters.insert(character, id as u32);
        }
    }
    let mut next = proto.pieces.len() as u32;
    for character in merged.iter().flat_map(|&id| proto.pieces[id].text.chars()) {
        letters.entry(character).or_insert_with(|| {
            next += 1;
            next - 1
        });
    }
    letters
}

/// Rank of each piece by descending score; equal scores share a rank.
fn ranks(proto: &ModelProto, merged: &[usize]) -> Vec<u32> {
    let score = |id: usize| proto.pieces[id].score + 0.0;
    let mut order = merged.to_vec();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    let mut ranks = vec![0; proto.pieces.len()];
    let mut rank = 0;
    for (at, &id) in order.iter().enumerate() {
        if at > 0 && score(id) != score(order[at - 1]) {
            rank += 1;
        }
        ranks[id] = rank;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::bpe::Symbols;
    use super::*;

    /// The small model as it is, and changed: tokens that are user-defined, that are unused, that
    /// tie, and no byte pieces.
    fn models() -> Vec<SentencePiece> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
        let bytes = std::fs::read(path.join("llama_like.model")).unwrap();
        let proto = ModelProto::parse(&bytes, "m").unwrap();
        let change = |every: usize, edit: &dyn Fn(&mut super::super::Piece)| {
            let mut proto = proto.clone();
            let normal = proto.pieces.iter_mut().filter(|piece| piece.kind == PieceType::Normal);
            normal.filter(|piece| piece.text.len() > 1).step_by(every).for_each(edit);
            proto
        };
        let mut no_bytes = change(3, &|piece| piece.score = piece.score.rem_euclid(20.0));
        no_bytes.byte_fallback = false;
        let protos = [
            proto.clone(),
            change(9, &|piece| piece.kind = PieceType::UserDefined),
            change(5, &|piece| piece.kind = PieceType::Unused),
            change(2, &|piece| piece.score = piece.score.rem_euclid(20.0)),
            no_bytes,
        ];
        protos.into_iter().map(|proto| SentencePiece::new(proto, "m").unwrap()).collect()
    }

    fn without_cuts(model: &SentencePiece, text: &str) -> Vec<u32> {
        let (mut normal, mut ids) = (String::new(), Vec::new());
        model.normalize(text, model.proto.add_dummy_prefix, &mut normal);
        model.bpe.encode_part(&normal, &mut Symbols::default(), &mut false, &mut ids);
        ids
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        /// Cuts, the table of words and the cache against merging the whole text at once. The
        /// buffers go from model to model, and remember nothing of the one before.
        #[test]
        fn cuts_change_nothing(
            parts in prop::collection::vec("[ -~]{1,3}|[a-e]{1,8}|[ \u{2581}]{1,4}|\\PC|(the|ing|er|to){1,3}", 0..30)
        ) {
            thread_local! {
                static MODELS: (Vec<SentencePiece>, std::cell::RefCell<Scratch>) =
                    (models(), Scratch::default().into());
            }
            let text = parts.concat();
            MODELS.with(|(models, scratch)| {
                for (index, model) in models.iter().enumerate() {
                    let expected = without_cuts(model, &text);
                    for round in 0..2 {
                        let mut ids = Vec::new();
                        model.encode_into(&text, true, &mut scratch.borrow_mut(), &mut ids);
                        assert_eq!(ids, expected, "model {index}, round {round}: {text:?}");
                        assert_eq!(model.encode(&text), expected);
                    }
                }
            });
        }
    }

    #[test]
    fn threads_share_a_model() {
        let model = &models()[0];
        let texts: Vec<String> =
            (0..200).map(|n| format!("Text number {n} for the puna.")).collect();
        let expected: Vec<Vec<u32>> = texts.iter().map(|text| model.encode(text)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let actual: Vec<Vec<u32>> =
                        texts.iter().map(|text| model.encode(text)).collect();
                    assert_eq!(actual, expected);
                });
            }
        });
    }
}
