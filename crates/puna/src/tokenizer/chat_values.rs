//! What Transformers gives templates beyond Jinja: `tojson` in Python's spelling, and
//! `strftime_now`.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::config::python_float;

/// Bytes that one `tojson` may write.
const MAX_JSON_BYTES: usize = 16 << 20;
const MAX_INDENT: usize = 64;

/// Writes until a limit, then fails.
pub(super) struct Limited {
    pub(super) bytes: Vec<u8>,
    pub(super) limit: usize,
    pub(super) is_full: bool,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.is_full = true;
            return Err(io::Error::other("the output is too large"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Levels of one value.
pub(super) const MAX_NESTING: usize = 130;

/// Lets a value through that has at most so many parts, each counted as often as it is held.
pub(super) fn weigh(state: &State, value: Value, limit: usize) -> Result<Value, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(value);
    }
    let mut left = limit;
    count_parts(&value, 0, &mut left)?;
    state.consume_fuel((limit - left) as u64 / 64)?;
    Ok(value)
}

fn count_parts(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
    let parts = 1 + value.as_str().map_or(0, |text| text.len() / 64);
    *left = left
        .checked_sub(parts)
        .filter(|_| depth <= MAX_NESTING)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "a value has too many parts"))?;
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    for item in value.try_iter()? {
        if kind == ValueKind::Map {
            count_parts(&value.get_item(&item)?, depth + 1, left)?;
        }
        count_parts(&item, depth + 1, left)?;
    }
    Ok(())
}

/// `json.dumps(value, ensure_ascii=False, …)` as a filter.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands named arguments over")]
pub(super) fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let refuse = |text: String| Error::new(ErrorKind::InvalidOperation, text);
    if value.is_undefined() {
        return Err(refuse("an undefined value has no JSON form".to_owned()));
    }
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let style = PythonStyle {
        item: if indent.is_some() { "," } else { ", " }.to_owned(),
        key: ": ".to_owned(),
        indent: indent.map(|width| width.min(MAX_INDENT)),
        is_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        depth: 0,
        has_items: false,
    };
    let style = match separators.as_deref() {
        None => style,
        Some([item, key]) => PythonStyle { item: item.clone(), key: key.clone(), ..style },
        Some(_) => return Err(refuse("tojson's separators are two strings".to_owned())),
    };
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let text = if sort {
        // One plain pass bounds the size before the tree is built.
        let plain = dump(value, style.clone())?;
        let mut tree: serde_json::Value = serde_json::to_value(value)
            .map_err(|error| refuse(format!("no JSON form: {error}")))?;
        tree.sort_all_objects();
        drop(plain);
        dump(&tree, style)?
    } else {
        dump(value, style)?
    };
    state.consume_fuel(text.len() as u64 / 4)?;
    Ok(Value::from(text))
}

fn dump(value: &impl Serialize, style: PythonStyle) -> Result<String, Error> {
    let mut out = Limited { bytes: Vec::new(), limit: MAX_JSON_BYTES, is_full: false };
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, style);
    value.serialize(&mut serializer).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("tojson cannot write this: {error}"))
    })?;
    String::from_utf8(out.bytes)
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson wrote no UTF-8"))
}

/// The spelling of Python's `json` module.
#[derive(Clone)]
struct PythonStyle {
    item: String,
    key: String,
    indent: Option<usize>,
    is_ascii: bool,
    depth: usize,
    has_items: bool,
}

impl PythonStyle {
    fn open(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_items = false;
        out.write_all(bracket)
    }

    fn close(&mut self, out: &mut (impl Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_items {
            self.new_line(out)?;
        }
        self.has_items = true;
        out.write_all(bracket)
    }

    fn next(&mut self, out: &mut (impl Write + ?Sized), first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.new_line(out)
    }

    fn new_line(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let Some(width) = self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        out.write_all(" ".repeat(width * self.depth).as_bytes())
    }
}

impl Formatter for PythonStyle {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_items = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        // No JSON, but what Python's `json` writes.
        let text = match python_float(value) {
            text if value.is_nan() => text.replace("nan", "NaN"),
            text => text.replace("inf", "Infinity"),
        };
        out.write_all(text.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.is_ascii || fragment.is_ascii() {
            return out.write_all(fragment.as_bytes());
        }
        for unit in fragment.encode_utf16() {
            match u8::try_from(unit).ok().filter(u8::is_ascii) {
                Some(byte) => out.write_all(&[byte])?,
                None => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime` of a time in UTC; directives that templates do not use are an error.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day, of_year) = civil(days);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (weekday, month_name) = (DAYS[((days + 4) % 7) as usize], MONTHS[month as usize - 1]);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next();
        let is_bare = directive == Some('-');
        if is_bare {
            directive = characters.next();
        }
        let number = |value: u64, width: usize| {
            if is_bare { value.to_string() } else { format!("{value:0width$}") }
        };
        out += &match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:>2}"),
            Some('j') => number(of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let text = format!("strftime_now does not know the directive {other:?}");
                return Err(Error::new(ErrorKind::InvalidOperation, text));
            }
        };
    }
    Ok(out)
}

/// Year, month, day and day of the year of a day since 1970, by the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 400 years are 146,097 days; the rest is at most 400 steps.
    let (mut year, mut left) = (1970 + 400 * (days / 146_097), days % 146_097);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let of_year = left + 1;
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1, of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, format: &str) -> String {
        strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(at(0, "%A %d %B %Y %H:%M:%S"), "Thursday 01 January 1970 00:00:00");
        assert_eq!(at(951_782_400, "%d %b %Y, day %j"), "29 Feb 2000, day 060");
        assert_eq!(at(1_735_689_599, "%Y-%m-%d %I:%M %p %a"), "2024-12-31 11:59 PM Tue");
        assert_eq!(at(4_107_542_400, "%-d %-m %F 100%%"), "1 3 2100-03-01 100%");
        assert!(strftime("%Q", UNIX_EPOCH).is_err());
    }
}
