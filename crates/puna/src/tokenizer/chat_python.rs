//! What Python gives Jinja's templates beyond the engine: methods of strings and lists, filters,
//! `'…' % …`, and the text of values. A value and arguments enter, Python's answer leaves.
//!
//! Templates are not trusted: what makes text that is longer than its input pays for it in fuel
//! before it is made.

use std::fmt::{self, Write};

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value};

use super::chat_values::MAX_NESTING;
use crate::config::python_float;

fn refuse(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// Python's methods; those that are not here are the engine's.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if name == "format" {
            charge_numbers(state, text)?;
        }
        if let Some(result) = string_method(state, text, name, args) {
            return result;
        }
    } else if value.kind() == ValueKind::Seq && name == "index" {
        return list_index(value, args);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(
    state: &State,
    text: &str,
    name: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    Some(match name {
        "index" => position(text, args, false),
        "rindex" => position(text, args, true),
        "partition" => partition(text, args, false),
        "rpartition" => partition(text, args, true),
        "rsplit" => rsplit(text, args),
        "zfill" => zfill(state, text, args),
        "ljust" | "rjust" | "center" => justify(state, text, name, args),
        "removeprefix" => {
            from_args(args).map(|(part,): (&str,)| text.strip_prefix(part).unwrap_or(text).into())
        }
        "removesuffix" => {
            from_args(args).map(|(part,): (&str,)| text.strip_suffix(part).unwrap_or(text).into())
        }
        "swapcase" => {
            from_args(args).map(|()| text.chars().flat_map(swapped).collect::<String>().into())
        }
        "casefold" => from_args(args).map(|()| casefolded(text).into()),
        _ => return None,
    })
}

/// The range of `len` items that Python's `start` and `end` name.
fn bounds(len: usize, start: Option<i64>, end: Option<i64>) -> std::ops::Range<usize> {
    let place = |at: i64| {
        let from_end = at.checked_neg().and_then(|back| usize::try_from(back).ok());
        match usize::try_from(at) {
            Ok(at) => at.min(len),
            Err(_) => len.saturating_sub(from_end.unwrap_or(len)),
        }
    };
    let (start, end) = (start.map_or(0, place), end.map_or(len, place));
    start..end.max(start)
}

/// `str.index`, counted in characters.
fn position(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let length = places.len() - 1;
    let range = bounds(length, start, end);
    let inside = &text[places[range.start]..places[range.end]];
    let found = if from_right { inside.rfind(part) } else { inside.find(part) };
    // An empty text is found anywhere but behind the end.
    let is_beyond = start.and_then(|at| usize::try_from(at).ok()).is_some_and(|at| at > length);
    match found.filter(|_| !is_beyond) {
        Some(at) => Ok(Value::from(range.start + inside[..at].chars().count())),
        None => Err(refuse("substring not found")),
    }
}

fn list_index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (item, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let range = bounds(list.len().unwrap_or(0), start, end);
    for (at, found) in list.try_iter()?.enumerate().take(range.end).skip(range.start) {
        if found == *item {
            return Ok(Value::from(at));
        }
    }
    Err(refuse(format!("{} is not in list", Shown(item))))
}

fn partition(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(refuse("empty separator"));
    }
    let split = if from_right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match split {
        Some((before, after)) => [before, separator, after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let named_separator: Option<String> = named.get("sep")?;
    let separator = separator.or(named_separator.as_deref());
    let most = most.or(named.get("maxsplit")?);
    named.assert_all_used()?;
    // Fewer than none means all.
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(refuse("empty separator")),
        Some(separator) => text.rsplitn(most.saturating_add(1), separator).collect(),
        None => words_from_right(text, most),
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The last word first, and at the end what is left after `most` words.
fn words_from_right(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() && parts.len() < most {
        let (before, word) = match rest.char_indices().rfind(|(_, c)| c.is_whitespace()) {
            Some((at, space)) => (&rest[..at], &rest[at + space.len_utf8()..]),
            None => ("", rest),
        };
        parts.push(word);
        rest = before.trim_end();
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// Characters that are missing to `width`; paid for.
fn padding(state: &State, text: &str, width: i64) -> Result<usize, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    state.consume_fuel(missing as u64 / 16)?;
    Ok(missing)
}

fn zfill(state: &State, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (width,): (i64,) = from_args(args)?;
    let zeros = "0".repeat(padding(state, text, width)?);
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    Ok(Value::from(format!("{sign}{zeros}{digits}")))
}

fn justify(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = fill.unwrap_or(" ");
    if fill.chars().count() != 1 {
        return Err(refuse("The fill character must be exactly one character long"));
    }
    let missing = padding(state, text, width)?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // Where the two sides differ, the left one is longer in an odd width.
        _ => missing / 2 + usize::from(missing % 2 == 1 && width % 2 == 1),
    };
    Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
}

fn swapped(c: char) -> Box<dyn Iterator<Item = char>> {
    if c.is_uppercase() {
        Box::new(c.to_lowercase())
    } else if c.is_lowercase() {
        Box::new(c.to_uppercase())
    } else {
        Box::new(std::iter::once(c))
    }
}

/// Lower case of upper case, which brings ß to ss and ς to σ as case folding does. The dotless ı
/// folds to itself. Cherokee, which folds to capitals, stays small.
fn casefolded(text: &str) -> String {
    let fold = |c: char| {
        let upper: String = if c == 'ı' { c.into() } else { c.to_uppercase().collect() };
        upper.chars().flat_map(char::to_lowercase).collect::<String>()
    };
    text.chars().map(fold).collect()
}

/// Pays for the widths and precisions that a format string names.
fn charge_numbers(state: &State, format: &str) -> Result<(), Error> {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let widths = numbers.map(|number| number.parse().unwrap_or(u64::MAX));
    state.consume_fuel(widths.fold(0, u64::saturating_add) / 16)
}

/// `text % value`: a tuple is several arguments, a dict names them.
pub(super) fn percent(state: &State, text: &str, value: &Value) -> Result<String, Error> {
    charge_numbers(state, text)?;
    if text.contains('*') {
        return Err(refuse("a width from the arguments of % is not known here"));
    }
    let args: Vec<Value> =
        if value.is_tuple() { value.try_iter()?.collect() } else { vec![value.clone()] };
    if text.contains("%(") {
        return format(FormatStyle::Printf, text, &args);
    }
    let (text, args) = with_texts(text, args);
    format(FormatStyle::Printf, &text, &args)
}

/// Turns what `%s` and `%r` show into texts in Python's spelling, and `%r` into `%s`.
fn with_texts(text: &str, mut args: Vec<Value>) -> (String, Vec<Value>) {
    let (mut out, mut used) = (String::with_capacity(text.len()), 0);
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let spec = &rest[at + 1..];
        let digits = spec.find(|c: char| !" #+-.0123456789".contains(c)).unwrap_or(spec.len());
        let Some(kind) = spec[digits..].chars().next() else { break };
        out.push_str(&rest[..at + 1 + digits]);
        out.push(if kind == 'r' { 's' } else { kind });
        rest = &spec[digits + kind.len_utf8()..];
        if let Some(arg) = args.get_mut(used) {
            match kind {
                's' => *arg = string(arg),
                'r' => *arg = Value::from(Repr(arg).to_string()),
                _ => {}
            }
        }
        used += usize::from(kind != '%');
    }
    out.push_str(rest);
    (out, args)
}

/// Jinja's `truncate`.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands arguments over")]
pub(super) fn truncate(text: String, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    type Args = (Option<usize>, Option<bool>, Option<String>, Option<usize>);
    let (length, killwords, end, leeway): Args = from_args(&args)?;
    let length = length.or(named.get("length")?).unwrap_or(255);
    let is_hard = killwords.or(named.get("killwords")?).unwrap_or(false);
    let end = end.or(named.get("end")?).unwrap_or_else(|| "...".to_owned());
    let leeway = leeway.or(named.get("leeway")?).unwrap_or(5);
    named.assert_all_used()?;
    let kept = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| refuse(format!("truncate: length {length} is shorter than its end")))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let start: String = text.chars().take(kept).collect();
    let start = match start.rsplit_once(' ') {
        Some((whole, _)) if !is_hard => whole,
        _ => &start,
    };
    Ok(format!("{start}{end}"))
}

/// Jinja's `center`.
pub(super) fn center(state: &State, text: &str, width: Option<i64>) -> Result<Value, Error> {
    justify(state, text, "center", &[Value::from(width.unwrap_or(80))])
}

/// Jinja's `wordcount`: runs of letters, digits and underscores.
pub(super) fn wordcount(text: &str) -> usize {
    text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty()).count()
}

/// Jinja's `urlencode`: a text is a path, pairs are a query.
pub(super) fn urlencode(value: &Value) -> Result<String, Error> {
    let quoted = |part: &Value, is_query: bool| quote(&Shown(part).to_string(), is_query);
    if !matches!(value.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) {
        return Ok(quoted(value, false));
    }
    let mut pairs = Vec::new();
    for item in value.try_iter()? {
        let (key, value) = if value.kind() == ValueKind::Map {
            (item.clone(), value.get_item(&item)?)
        } else {
            (item.get_item_by_index(0)?, item.get_item_by_index(1)?)
        };
        pairs.push(format!("{}={}", quoted(&key, true), quoted(&value, true)));
    }
    Ok(pairs.join("&"))
}

fn quote(text: &str, is_query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if !is_query => out.push('/'),
            b' ' if is_query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The filter `string`: Python's `str`.
pub(super) fn string(value: &Value) -> Value {
    if value.as_str().is_some() { value.clone() } else { Value::from(Shown(value).to_string()) }
}

/// Writes a value as Python's `str` does.
pub(super) fn print(
    out: &mut Output<'_>,
    _: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    write!(out, "{}", Shown(value)).map_err(Error::from)
}

/// A value as Python's `str` shows it.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            ValueKind::Number | ValueKind::Map | ValueKind::Seq => repr(self.0, 0, out),
            _ => write!(out, "{}", self.0),
        }
    }
}

/// A value as Python's `repr` shows it.
struct Repr<'a>(&'a Value);

impl fmt::Display for Repr<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        repr(self.0, 0, out)
    }
}

/// Python's `repr`.
fn repr(value: &Value, depth: usize, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    if depth > MAX_NESTING {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&python_float(number)),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::String => repr_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::Seq => repr_items(value, depth, out),
        ValueKind::Map => repr_map(value, depth, out),
        _ => write!(out, "{value}"),
    }
}

fn repr_items(list: &Value, depth: usize, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let is_tuple = list.is_tuple();
    out.write_str(if is_tuple { "(" } else { "[" })?;
    for (index, item) in list.try_iter().map_err(|_| fmt::Error)?.enumerate() {
        out.write_str(if index > 0 { ", " } else { "" })?;
        repr(&item, depth + 1, out)?;
    }
    match (is_tuple, list.len()) {
        (true, Some(1)) => out.write_str(",)"),
        (true, _) => out.write_str(")"),
        (false, _) => out.write_str("]"),
    }
}

fn repr_map(map: &Value, depth: usize, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Objects of the engine's own that cannot be counted name themselves.
    if map.len().is_none() {
        return write!(out, "{map}");
    }
    out.write_str("{")?;
    for (index, key) in map.try_iter().map_err(|_| fmt::Error)?.enumerate() {
        out.write_str(if index > 0 { ", " } else { "" })?;
        repr(&key, depth + 1, out)?;
        out.write_str(": ")?;
        repr(&map.get_item(&key).map_err(|_| fmt::Error)?, depth + 1, out)?;
    }
    out.write_str("}")
}

/// A text in quotes: single ones, unless only those are in it.
fn repr_text(text: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            _ if c == quote => write!(out, "\\{c}")?,
            '\0'..=' ' | '\u{7f}'..='\u{a0}' | '\u{ad}' if c != ' ' => {
                write!(out, "\\x{:02x}", u32::from(c))?;
            }
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{feff}' => {
                write!(out, "\\u{:04x}", u32::from(c))?;
            }
            _ => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value as Json, json};

    use super::super::chat::{ChatError, ChatOptions, ChatTemplate};

    /// Made by tools/chat_goldens.py with Jinja2.
    const GOLDENS: &str = include_str!("../../tests/data/chat_goldens.json");

    fn render(source: &str, variables: &Map<String, Json>) -> Result<String, ChatError> {
        let messages = json!([{"role": "user", "content": " Hi "}]);
        let options = ChatOptions { variables: variables.clone(), ..ChatOptions::default() };
        Ok(ChatTemplate::new(source)?.render(&messages, &options)?.text)
    }

    #[test]
    fn equal_to_jinja() {
        let goldens: Json = serde_json::from_str(GOLDENS).unwrap();
        let variables = goldens["variables"].as_object().unwrap();
        let cases = goldens["cases"].as_array().unwrap();
        assert!(cases.len() > 100);
        for case in cases {
            let source = case["template"].as_str().unwrap();
            let got = render(source, variables);
            match case["text"].as_str() {
                Some(text) => assert_eq!(got.unwrap(), text, "{source}"),
                None => assert!(got.is_err(), "{source}: {got:?}"),
            }
        }
    }

    #[test]
    fn long_texts_are_paid_for() {
        for source in [
            "{{ 'a'.zfill(999999999999) }}",
            "{{ 'a'.ljust(999999999999) }}",
            "{{ 'a' | center(999999999999) }}",
            "{{ '%999999999999d' % 1 }}",
            "{{ '%.999999999999f' % 1 }}",
        ] {
            let error = render(source, &Map::new()).unwrap_err();
            assert!(matches!(error, ChatError::OutOfFuel), "{source}: {error}");
        }
    }
}
