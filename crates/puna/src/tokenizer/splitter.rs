//! Cutting text into words before byte-pair merging.
//!
//! The patterns that LLaMA-family tokenizers use are scanned by hand, in one pass. Any other
//! pattern of a file runs in an expression engine with a bound on its steps, and reports when it
//! reaches it.

use std::sync::LazyLock;

use fancy_regex::{Regex, RegexBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::pattern::{Invert, Pattern};
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

use super::error::TokenizerError;

/// Backtracks that one match may take; LLaMA's own patterns take a handful.
const BACKTRACK_LIMIT: usize = 20_000;
/// Length of a pattern, and of what it compiles to.
const MAX_PATTERN_BYTES: usize = 64 << 10;
const MAX_COMPILED_BYTES: usize = 8 << 20;

/// GPT-2's pattern, as tokenizers write it.
pub(super) const GPT2_PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's pattern.
pub(super) const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of one numeral.
const NUMERAL_PATTERN: &str = r"\p{N}";
/// The same as Llama 3's with single digits.
pub(super) const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One step of a [`Splitter`].
#[derive(Debug)]
pub(super) enum Step {
    /// A space goes before text that does not start with one.
    PrefixSpace,
    /// GPT-2's pattern.
    Gpt2,
    /// Llama 3's pattern, with at most so many digits in a word.
    Llama3 {
        /// Longest run of digits.
        digits: usize,
    },
    /// `\p{N}`: each numeral is a word.
    Numerals,
    /// An expression from a file.
    Pattern(Box<Expression>),
    /// A step of the `tokenizers` crate that takes no expression.
    Library(Box<PreTokenizerWrapper>),
}

/// An expression with a bound on its steps.
#[derive(Debug)]
pub(super) struct Expression {
    regex: Regex,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

/// The steps that cut the text, in order.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    pub(super) steps: Vec<Step>,
}

/// The step for a pattern that is matched and kept (`Isolated`, not inverted).
pub(super) fn isolated(pattern: &str, file: &str) -> Result<Step, TokenizerError> {
    step(pattern, SplitDelimiterBehavior::Isolated, false, file)
}

/// The step for any `Split`; `file` names its origin in errors.
pub(super) fn step(
    pattern: &str,
    behavior: SplitDelimiterBehavior,
    invert: bool,
    file: &str,
) -> Result<Step, TokenizerError> {
    // These three cover the whole text, so Removed and inverted are the same as Isolated.
    let covers = (behavior == SplitDelimiterBehavior::Isolated && !invert)
        || (behavior == SplitDelimiterBehavior::Removed && invert);
    match pattern {
        GPT2_PATTERN if covers => return Ok(Step::Gpt2),
        LLAMA3_PATTERN if covers => return Ok(Step::Llama3 { digits: 3 }),
        QWEN2_PATTERN if covers => return Ok(Step::Llama3 { digits: 1 }),
        NUMERAL_PATTERN if behavior == SplitDelimiterBehavior::Isolated && !invert => {
            return Ok(Step::Numerals);
        }
        _ => {}
    }
    if pattern.len() > MAX_PATTERN_BYTES {
        let what = format!("a pattern of {} bytes", pattern.len());
        return Err(TokenizerError::unsupported(file, what, "patterns are shorter than 64 KiB"));
    }
    let regex = RegexBuilder::new(pattern)
        .backtrack_limit(BACKTRACK_LIMIT)
        .delegate_size_limit(MAX_COMPILED_BYTES)
        .delegate_dfa_size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|error| {
            TokenizerError::malformed(file, format!("pattern {pattern:?}: {error}"))
        })?;
    Ok(Step::Pattern(Box::new(Expression { regex, behavior, invert })))
}

impl Expression {
    /// Matches and what lies between them, in order; the flag tells them apart.
    fn matches(&self, inside: &str) -> Result<Vec<(Offsets, bool)>, TokenizerError> {
        let (mut parts, mut end) = (Vec::new(), 0);
        for found in self.regex.find_iter(inside) {
            let found = found.map_err(|error| TokenizerError::Pattern {
                pattern: self.regex.as_str().to_owned(),
                reason: error.to_string(),
            })?;
            if end != found.start() {
                parts.push(((end, found.start()), false));
            }
            parts.push(((found.start(), found.end()), true));
            end = found.end();
        }
        if end != inside.len() || parts.is_empty() {
            parts.push(((end, inside.len()), false));
        }
        Ok(parts)
    }
}

impl Pattern for &Expression {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        Ok(self.matches(inside)?)
    }
}

impl Splitter {
    /// The steps before a last step that turns bytes into characters, where [`cut`] can follow them.
    pub(super) fn plain_steps(&self) -> Option<&[Step]> {
        let (last, steps) = self.steps.split_last()?;
        let is_plain = |(index, step): (usize, &Step)| match step {
            Step::PrefixSpace => index == 0,
            Step::Gpt2 | Step::Llama3 { .. } | Step::Numerals => true,
            Step::Pattern(expression) => {
                expression.behavior == SplitDelimiterBehavior::Isolated && !expression.invert
            }
            Step::Library(library) => {
                matches!(&**library, PreTokenizerWrapper::Digits(digits) if digits.individual_digits)
            }
        };
        let to_characters = matches!(last, Step::Library(library) if is_byte_level(library));
        (to_characters && steps.iter().enumerate().all(is_plain)).then_some(steps)
    }
}

fn is_byte_level(library: &PreTokenizerWrapper) -> bool {
    let PreTokenizerWrapper::ByteLevel(ByteLevel { add_prefix_space, use_regex, .. }) = library
    else {
        return false;
    };
    !add_prefix_space && !use_regex
}

/// Hands the words of `text[begin..end]` to `word`, in order, by their begin and end. The steps are
/// those of [`Splitter::plain_steps`]; a prefix space must be in the text already.
///
/// # Errors
/// Where an expression needs too many steps for this text.
pub(super) fn cut(
    steps: &[Step],
    text: &str,
    (begin, end): (usize, usize),
    word: &mut dyn FnMut(usize, usize),
) -> Result<(), TokenizerError> {
    let Some((step, rest)) = steps.split_first() else {
        if begin < end {
            word(begin, end);
        }
        return Ok(());
    };
    let mut by_length = |length: &dyn Fn(&str) -> usize| {
        let mut at = begin;
        while at < end {
            let stop = at + length(&text[at..end]);
            cut(rest, text, (at, stop), word)?;
            at = stop;
        }
        Ok(())
    };
    match step {
        Step::PrefixSpace => cut(rest, text, (begin, end), word),
        Step::Gpt2 => by_length(&gpt2_word),
        Step::Llama3 { digits } => by_length(&|text| llama3_word(text, *digits)),
        Step::Numerals => by_length(&numeral_or_other),
        Step::Library(_) => by_length(&|text| alone_or_run(text, char::is_numeric)),
        Step::Pattern(expression) => {
            for ((from, to), _) in expression.matches(&text[begin..end])? {
                cut(rest, text, (begin + from, begin + to), word)?;
            }
            Ok(())
        }
    }
}

/// Cuts with a function that gives the length of the word at the start of the text.
struct Scan<F>(F);

impl<F: Fn(&str) -> usize> Pattern for Scan<F> {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let (mut parts, mut at) = (Vec::new(), 0);
        while at < inside.len() {
            let length = (self.0)(&inside[at..]);
            parts.push(((at, at + length), true));
            at += length;
        }
        if parts.is_empty() {
            parts.push(((0, 0), false));
        }
        Ok(parts)
    }
}

impl PreTokenizer for Splitter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        use SplitDelimiterBehavior::Isolated;
        for step in &self.steps {
            match step {
                Step::PrefixSpace => text.normalize(|part| {
                    if !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    Ok(())
                })?,
                Step::Gpt2 => text.split(|_, part| part.split(Scan(gpt2_word), Isolated))?,
                Step::Llama3 { digits } => {
                    let word = |text: &str| llama3_word(text, *digits);
                    text.split(|_, part| part.split(Scan(word), Isolated))?;
                }
                Step::Numerals => {
                    text.split(|_, part| part.split(Scan(numeral_or_other), Isolated))?;
                }
                Step::Pattern(expression) => {
                    let Expression { behavior, invert, .. } = **expression;
                    text.split(|_, part| match invert {
                        true => part.split(Invert(&**expression), behavior),
                        false => part.split(&**expression, behavior),
                    })?;
                }
                Step::Library(library) => library.pre_tokenize(text)?,
            }
        }
        Ok(())
    }
}

/// What the patterns distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Other,
    Letter,
    Number,
    Space,
}

/// Two bits for each code point, from the same tables as the expression engine's.
static CLASSES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut table = vec![0u8; 0x11_0000 / 4];
    for (property, value) in [(r"\p{L}", 1u8), (r"\p{N}", 2), (r"\s", 3)] {
        let Ok(parsed) = regex_syntax::parse(property) else { continue };
        let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(class)) =
            parsed.into_kind()
        else {
            continue;
        };
        for range in class.iter() {
            for point in range.start() as usize..=range.end() as usize {
                table[point / 4] |= value << (point % 4 * 2);
            }
        }
    }
    table
});

fn class_of(character: char) -> Class {
    if let Some(&class) = ASCII.get(character as usize) {
        return class;
    }
    let point = character as usize;
    match CLASSES[point / 4] >> (point % 4 * 2) & 3 {
        1 => Class::Letter,
        2 => Class::Number,
        3 => Class::Space,
        _ => Class::Other,
    }
}

/// The classes of ASCII.
const ASCII: [Class; 128] = {
    let mut table = [Class::Other; 128];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\t'..=b'\r' | b' ' => Class::Space,
            _ => Class::Other,
        };
        byte += 1;
    }
    table
};

/// Length of the run of `class` at the start of `text`, of at most `limit` characters.
fn run(text: &str, class: Class, limit: usize) -> usize {
    let bytes = text.as_bytes();
    let mut length = 0;
    for _ in 0..limit {
        let Some(&byte) = bytes.get(length) else { break };
        if byte < 128 {
            if ASCII[usize::from(byte)] != class {
                break;
            }
            length += 1;
            continue;
        }
        match text[length..].chars().next() {
            Some(character) if class_of(character) == class => length += character.len_utf8(),
            _ => break,
        }
    }
    length
}

/// One character that `is_alone`, or the run of those that are not.
fn alone_or_run(text: &str, is_alone: impl Fn(char) -> bool) -> usize {
    match text.char_indices().find(|&(_, character)| is_alone(character)) {
        Some((0, character)) => character.len_utf8(),
        Some((at, _)) => at,
        None => text.len(),
    }
}

fn numeral_or_other(text: &str) -> usize {
    alone_or_run(text, |character| class_of(character) == Class::Number)
}

/// `'s 't 're 've 'm 'll 'd` at the start of `text`.
fn contraction(text: &str, ignore_case: bool) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let mut characters = body.chars();
    // U+017F folds to s, as it does in the expression engine.
    let mut next = || {
        let character = characters.next()?;
        Some(match character {
            '\u{17f}' if ignore_case => 's',
            _ if ignore_case => character.to_ascii_lowercase(),
            _ => character,
        })
    };
    let first = next()?;
    match first {
        's' => Some(1 + body.chars().next()?.len_utf8()),
        't' | 'm' | 'd' => Some(2),
        'r' | 'v' => (next()? == 'e').then_some(3),
        'l' => (next()? == 'l').then_some(3),
        _ => None,
    }
}

/// `\s+(?!\S)|\s+`: a run of spaces leaves its last one to the word behind it.
fn spaces(text: &str) -> usize {
    let length = run(text, Class::Space, usize::MAX);
    if length == text.len() {
        return length;
    }
    let last = text[..length].chars().next_back().map_or(0, char::len_utf8);
    if length > last { length - last } else { length }
}

/// Length of the first word of a text that is not empty.
fn gpt2_word(text: &str) -> usize {
    if let Some(length) = contraction(text, false) {
        return length;
    }
    let lead = usize::from(text.starts_with(' '));
    match text[lead..].chars().next().map(class_of) {
        Some(class) if class != Class::Space => lead + run(&text[lead..], class, usize::MAX),
        _ => spaces(text),
    }
}

fn llama3_word(text: &str, digits: usize) -> usize {
    if let Some(length) = contraction(text, true) {
        return length;
    }
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return 0 };
    let class = class_of(first);
    if class == Class::Letter {
        return run(text, Class::Letter, usize::MAX);
    }
    if class == Class::Number {
        return run(text, Class::Number, digits);
    }
    let second = characters.next().map(class_of);
    let width = first.len_utf8();
    if second == Some(Class::Letter) && first != '\r' && first != '\n' {
        return width + run(&text[width..], Class::Letter, usize::MAX);
    }
    let lead = usize::from(first == ' ');
    if class == Class::Other || (lead == 1 && second == Some(Class::Other)) {
        let word = lead + run(&text[lead..], Class::Other, usize::MAX);
        let rest = &text[word..];
        return word + rest.len() - rest.trim_start_matches(['\r', '\n']).len();
    }
    let length = run(text, Class::Space, usize::MAX);
    match text[..length].rfind(['\r', '\n']) {
        Some(newline) => newline + 1,
        None => spaces(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The four patterns, and numerals with what lies between them.
    static EXPRESSIONS: LazyLock<[Regex; 4]> = LazyLock::new(|| {
        [GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN, r"\p{N}|\P{N}+"]
            .map(|pattern| Regex::new(pattern).unwrap())
    });

    fn by_expression(index: usize, text: &str) -> Vec<String> {
        let found = EXPRESSIONS[index].find_iter(text);
        found.map(|found| found.unwrap().as_str().to_owned()).collect()
    }

    fn by_scan(text: &str, word: impl Fn(&str) -> usize) -> Vec<String> {
        let parts = Scan(word).find_matches(text).unwrap();
        parts.into_iter().filter(|(_, hit)| *hit).map(|((a, b), _)| text[a..b].to_owned()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn scanning_equals_the_expression(
            text in "([a-cA-Ztsrvemldſ'’éß你\u{301}ⅷ½٣0-9 \t\r\n\u{a0}\u{3000}.,!\u{1f600}]|'[a-zA-Z]|[ \n]{2}|\\PC){0,24}"
        ) {
            let llama3 = |text: &str| llama3_word(text, 3);
            let qwen2 = |text: &str| llama3_word(text, 1);
            let scans: [&dyn Fn(&str) -> usize; 4] =
                [&gpt2_word, &llama3, &qwen2, &numeral_or_other];
            for (index, scan) in scans.into_iter().enumerate() {
                prop_assert_eq!(by_scan(&text, scan), by_expression(index, &text));
            }
        }
    }

    #[test]
    fn a_pattern_that_backtracks_for_ever_is_an_error() {
        let Step::Pattern(expression) = isolated(r"(?:a|a)*(?=b)c|(?:a+)+(?!a)$x", "t").unwrap()
        else {
            panic!("an unknown pattern is an expression")
        };
        let error = (&*expression).find_matches(&"a".repeat(60)).unwrap_err();
        assert!(error.to_string().contains("gave up"), "{error}");
    }

    #[test]
    fn the_classes_of_ascii_are_those_of_the_table() {
        for byte in 0..128u8 {
            let of_table = CLASSES[usize::from(byte) / 4] >> (byte % 4 * 2) & 3;
            assert_eq!(ASCII[usize::from(byte)] as u8, of_table, "{byte}");
        }
    }

    #[test]
    fn a_million_spaces_are_one_pass() {
        let text = format!("{}x", " ".repeat(1_000_000));
        assert_eq!(gpt2_word(&text), 999_999);
        assert_eq!(llama3_word(&text, 3), 999_999);
    }
}
