//! SentencePiece BPE: text enters, ids of pieces leave, and back.
//!
//! The text is normalised (dummy prefix, spaces as U+2581), cut into symbols (characters and
//! user-defined pieces), and adjacent symbols merge by descending score, leftmost first. What is
//! not in the vocabulary becomes byte pieces, or the unknown piece. Where no piece holds U+2581
//! behind another character, no merge crosses a word's start, so words are encoded one by one.

use std::collections::HashMap;

use super::bpe::{MergeTable, NO_SYMBOL, SeededState, Symbols};
use super::error::TokenizerError;
use super::piece_decoder::PieceDecoder;
use super::proto::{ModelProto, PieceType};

/// How SentencePiece writes a space.
pub const SPACE_MARK: char = '\u{2581}';
/// Bytes of all ways to split all pieces; LLaMA's 32,000 need about two million.
const MAX_SPLIT_BYTES: usize = 1 << 31;
/// Marks the symbol of a user-defined piece, which never merges.
const FROZEN: u32 = 1 << 31;

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
    byte_ids: Option<Box<[u32; 256]>>,
    /// Symbol of each character of the basic plane, and of the others.
    symbols: Vec<u32>,
    astral: HashMap<char, u32, SeededState>,
    table: MergeTable,
    /// Pieces that their own text encodes to.
    whole_words: Index,
    /// User-defined pieces by first character, the longest first.
    user_defined: HashMap<char, Vec<(Box<str>, u32)>>,
    split_words: bool,
    has_unused: bool,
}

/// Buffers that one call of encode reuses over its chunks.
#[derive(Debug, Default)]
pub struct Scratch {
    normalized: String,
    symbols: Symbols,
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
        let byte_ids = byte_ids(&proto, &reserved, file)?;
        let mut model = Self {
            original: None,
            symbols: vec![NO_SYMBOL; 1 << 16],
            astral: HashMap::default(),
            table: MergeTable::new(&[]),
            whole_words: Index::default(),
            user_defined: user_defined(&proto),
            split_words: proto.escape_whitespaces && !proto.treat_whitespace_as_suffix,
            has_unused: proto.pieces.iter().any(|piece| piece.kind == PieceType::Unused),
            proto,
            pieces,
            reserved,
            byte_ids,
        };
        model.split_words &= !model.has_unused && model.marks_only_lead();
        model.build_table(file)?;
        model.find_whole_words();
        Ok(model)
    }

    fn marks_only_lead(&self) -> bool {
        self.proto.pieces.iter().filter(|piece| is_text(piece.kind)).all(|piece| {
            let body = piece.text.trim_start_matches(SPACE_MARK);
            !body.contains(SPACE_MARK)
        })
    }

    fn set_symbol(&mut self, character: char, symbol: u32) {
        match self.symbols.get_mut(character as usize) {
            Some(slot) => *slot = symbol,
            None => {
                self.astral.insert(character, symbol);
            }
        }
    }

    fn symbol_of(&self, character: char) -> u32 {
        match self.symbols.get(character as usize) {
            Some(&symbol) => symbol,
            None => self.astral.get(&character).copied().unwrap_or(NO_SYMBOL),
        }
    }

    /// A symbol is a piece that merges can make, or a character that occurs in one.
    fn build_table(&mut self, file: &str) -> Result<(), TokenizerError> {
        let proto = std::mem::take(&mut self.proto);
        let merged: Vec<usize> = (0..proto.pieces.len())
            .filter(|&id| matches!(proto.pieces[id].kind, PieceType::Normal | PieceType::Unused))
            .collect();
        let mut next_symbol = proto.pieces.len() as u32;
        let mut split_bytes = 0usize;
        for &id in &merged {
            let text = &proto.pieces[id].text;
            split_bytes = split_bytes.saturating_add(text.len().saturating_mul(text.len()));
            if let Some(character) = only_char(text) {
                self.set_symbol(character, id as u32);
            }
        }
        if split_bytes > MAX_SPLIT_BYTES {
            return Err(TokenizerError::malformed(file, "the pieces are too long to be real"));
        }
        for &id in &merged {
            for character in proto.pieces[id].text.chars() {
                if self.symbol_of(character) == NO_SYMBOL {
                    self.set_symbol(character, next_symbol);
                    next_symbol += 1;
                }
            }
        }
        let ranks = ranks(&proto, &merged);
        let mut entries = Vec::with_capacity(2 * merged.len());
        for &id in &merged {
            let text = &proto.pieces[id].text;
            for (at, _) in text.char_indices().skip(1) {
                let Some(left) = self.symbol_for(&proto, &text[..at]) else { continue };
                let Some(right) = self.symbol_for(&proto, &text[at..]) else { continue };
                entries.push((left, right, ranks[id], id as u32));
            }
        }
        self.table = MergeTable::new(&entries);
        self.proto = proto;
        Ok(())
    }

    fn symbol_for(&self, proto: &ModelProto, text: &str) -> Option<u32> {
        if let Some(character) = only_char(text) {
            return Some(self.symbol_of(character));
        }
        let id = *self.pieces.get(text)?;
        let kind = proto.pieces[id as usize].kind;
        (kind != PieceType::UserDefined).then_some(id)
    }

    fn find_whole_words(&mut self) {
        if !self.split_words {
            return;
        }
        let mut symbols = Symbols::default();
        let mut ids = Vec::new();
        let mut words = Index::default();
        for (id, piece) in self.proto.pieces.iter().enumerate() {
            if piece.kind != PieceType::Normal {
                continue;
            }
            ids.clear();
            self.encode_symbols(&piece.text, &mut symbols, &mut ids);
            if ids == [id as u32] {
                words.insert(piece.text.as_str().into(), id as u32);
            }
        }
        self.whole_words = words;
    }

    /// Encodes `text` with the model's own dummy prefix.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_into(text, self.proto.add_dummy_prefix, &mut Scratch::default(), &mut ids);
        ids
    }

    /// Appends the ids of `text`; `prefix` says whether a space goes before it.
    pub fn encode_into(&self, text: &str, prefix: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        self.normalize(text, prefix, &mut scratch.normalized);
        let normalized = scratch.normalized.as_str();
        if !self.split_words {
            self.encode_symbols(normalized, &mut scratch.symbols, ids);
            return;
        }
        let mut rest = normalized;
        while !rest.is_empty() {
            let body = rest.len() - rest.trim_start_matches(SPACE_MARK).len();
            let end = rest[body..].find(SPACE_MARK).map_or(rest.len(), |at| body + at);
            let (word, tail) = rest.split_at(end);
            match self.whole_words.get(word) {
                Some(&id) => ids.push(id),
                None => self.encode_symbols(word, &mut scratch.symbols, ids),
            }
            rest = tail;
        }
    }

    fn normalize(&self, text: &str, prefix: bool, out: &mut String) {
        out.clear();
        let space = if self.proto.escape_whitespaces { SPACE_MARK } else { ' ' };
        let folded = self.proto.remove_extra_whitespaces;
        let text = if folded { text.trim_start_matches(' ') } else { text };
        if text.is_empty() {
            return;
        }
        out.reserve(text.len() + text.len() / 4 + 3);
        if prefix && !self.proto.treat_whitespace_as_suffix {
            out.push(space);
        }
        for (index, part) in text.split(' ').enumerate() {
            if index > 0 && !(folded && part.is_empty()) {
                out.push(space);
            }
            out.push_str(part);
        }
        if folded {
            out.truncate(out.trim_end_matches(space).len());
        }
        if prefix && self.proto.treat_whitespace_as_suffix {
            out.push(space);
        }
    }

    fn fill_symbols(&self, text: &str, symbols: &mut Symbols) {
        symbols.clear();
        let mut at = 0;
        while let Some(character) = text[at..].chars().next() {
            match self.user_defined_at(&text[at..], character) {
                Some((length, id)) => {
                    symbols.push(id | FROZEN, at as u32);
                    at += length;
                }
                None => {
                    symbols.push(self.symbol_of(character), at as u32);
                    at += character.len_utf8();
                }
            }
        }
    }

    fn user_defined_at(&self, text: &str, first: char) -> Option<(usize, u32)> {
        if self.user_defined.is_empty() {
            return None;
        }
        let candidates = self.user_defined.get(&first)?;
        let (piece, id) = candidates.iter().find(|(piece, _)| text.starts_with(&**piece))?;
        Some((piece.len(), *id))
    }

    /// Encodes normalised text without looking for words.
    fn encode_symbols(&self, text: &str, symbols: &mut Symbols, ids: &mut Vec<u32>) {
        symbols.offered = self.has_unused.then(HashMap::new);
        // Offsets are 32-bit; four gigabytes without a word's end are cut between characters.
        if text.len() > u32::MAX as usize {
            let middle = text.floor_char_boundary(u32::MAX as usize);
            self.encode_symbols(&text[..middle], symbols, ids);
            self.encode_symbols(&text[middle..], symbols, ids);
            return;
        }
        self.fill_symbols(text, symbols);
        symbols.merge(&self.table);
        let mut last_unknown = false;
        for index in 0..symbols.ids.len() {
            let start = symbols.starts[index] as usize;
            let end = symbols.starts.get(index + 1).map_or(text.len(), |&next| next as usize);
            let symbol = symbols.ids[index];
            if (symbol as usize) < self.proto.pieces.len() {
                last_unknown = false;
                self.emit(symbol, symbols.offered.as_ref(), ids);
                continue;
            }
            if symbol != NO_SYMBOL && symbol & FROZEN != 0 {
                last_unknown = false;
                ids.push(symbol & !FROZEN);
                continue;
            }
            last_unknown = self.emit_unknown(&text[start..end], last_unknown, ids);
        }
    }

    /// An unused piece gives way to the two symbols that made it.
    fn emit(&self, symbol: u32, offered: Option<&HashMap<u32, (u32, u32)>>, ids: &mut Vec<u32>) {
        let mut stack = vec![symbol];
        while let Some(symbol) = stack.pop() {
            let is_unused = self
                .proto
                .pieces
                .get(symbol as usize)
                .is_some_and(|piece| piece.kind == PieceType::Unused);
            match offered.and_then(|offered| offered.get(&symbol)).filter(|_| is_unused) {
                Some(&(left, right)) => stack.extend([right, left]),
                None => ids.push(symbol),
            }
        }
    }

    /// Returns whether the text ended as the unknown piece.
    fn emit_unknown(&self, text: &str, after_unknown: bool, ids: &mut Vec<u32>) -> bool {
        if let Some(&id) = self.reserved.get(text) {
            ids.push(id);
            return false;
        }
        if let Some(byte_ids) = &self.byte_ids {
            ids.extend(text.bytes().map(|byte| byte_ids[usize::from(byte)]));
            return false;
        }
        if !after_unknown {
            ids.push(self.unk_id());
        }
        true
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

fn user_defined(proto: &ModelProto) -> HashMap<char, Vec<(Box<str>, u32)>> {
    let mut by_first: HashMap<char, Vec<(Box<str>, u32)>> = HashMap::new();
    for (id, piece) in proto.pieces.iter().enumerate() {
        if let (PieceType::UserDefined, Some(first)) = (piece.kind, piece.text.chars().next()) {
            by_first.entry(first).or_default().push((piece.text.as_str().into(), id as u32));
        }
    }
    for pieces in by_first.values_mut() {
        pieces.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    }
    by_first
}
