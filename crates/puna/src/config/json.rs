//! JSON as Python's `json.dumps(…, indent=2, sort_keys=True)` writes it: two spaces, sorted keys,
//! ASCII only, floats in Python's shortest form (`1e-06`), a newline at the end.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `value` as a file's text.
pub(crate) fn to_text(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = PythonFormatter { pretty: PrettyFormatter::with_indent(b"  ") };
    let mut serializer = Serializer::with_formatter(&mut out, formatter);
    // Writing a `Value` to memory cannot fail; were it to, the text would end early and not parse.
    let _ = sorted(value).serialize(&mut serializer);
    out.push(b'\n');
    String::from_utf8(out).unwrap_or_default()
}

/// The same value with the keys of every object in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            Value::Object(
                entries.into_iter().map(|(k, v)| (k.clone(), sorted_field(k, v))).collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// Labels are keyed by number, and Python sorts those before it prints them: they come in order.
fn sorted_field(key: &str, value: &Value) -> Value {
    if key == "id2label" { value.clone() } else { sorted(value) }
}

/// Python's `repr` of a float: the shortest digits that read back, an exponent of at least two
/// digits below 1e-4 and from 1e16 on, `inf` and `nan`.
pub(crate) fn python_float(x: f64) -> String {
    let magnitude = x.abs();
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x == 0.0 || !x.is_finite() || (1e-4..1e16).contains(&magnitude) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(rest) => ('-', rest),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

struct PythonFormatter<'a> {
    pretty: PrettyFormatter<'a>,
}

impl Formatter for PythonFormatter<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            if (' '..='~').contains(&c) {
                writer.write_all(&[c as u8])?;
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_array(writer)
    }
    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array(writer)
    }
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_array_value(w, first)
    }
    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object(writer)
    }
    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(w, first)
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }
    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_what_python_writes() {
        let value = json!({"b": 1e-6, "a": [1.0, 1e22, "é😀\u{7f}"], "c": {}, "d": [], "id2label": {"9": 1, "10": 0}});
        let expected = concat!(
            "{\n  \"a\": [\n    1.0,\n    1e+22,\n    \"\\u00e9\\ud83d\\ude00\\u007f\"\n  ],\n",
            "  \"b\": 1e-06,\n  \"c\": {},\n  \"d\": [],\n",
            "  \"id2label\": {\n    \"9\": 1,\n    \"10\": 0\n  }\n}\n"
        );
        assert_eq!(to_text(&value), expected);
    }

    #[test]
    fn floats_print_as_in_python() {
        for (x, text) in [
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e-300, "-2.5e-300"),
            (0.0, "0.0"),
            (10000.0, "10000.0"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(python_float(x), text);
        }
    }
}
