//! What can be wrong with a configuration: a fault that stops the reader, or a warning that is
//! handed back as a value. Where Transformers checks the same thing, the text is its own.

use serde_json::Value;

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The text is not JSON.
    #[error("not valid JSON at line {line}, column {column}: {why}")]
    Json {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
        /// What the JSON reader found.
        why: String,
    },
    /// The text is JSON, but not an object.
    #[error("the file must hold a JSON object, got {got}")]
    NotAnObject {
        /// Type that was found, as Python names it.
        got: &'static str,
    },
    /// A field holds a value of another type.
    #[error("{message}")]
    WrongType {
        /// Key of the file.
        field: String,
        /// The whole message.
        message: String,
    },
    /// A field holds a value that no LLaMA can have.
    #[error("{message}")]
    WrongValue {
        /// Key of the file.
        field: String,
        /// The whole message.
        message: String,
    },
    /// A RoPE kind needs keys that are not there.
    #[error(
        "Missing required keys in `rope_parameters` for 'rope_type'='{rope_type}': {{{}}}",
        quote(keys)
    )]
    MissingRopeKeys {
        /// The kind.
        rope_type: String,
        /// The keys that are missing.
        keys: Vec<&'static str>,
    },
    /// The file describes another architecture.
    #[error(
        "model_type is '{model_type}', and Puna runs only 'llama'; convert the model to the LLaMA layout or use another program"
    )]
    NotALlama {
        /// What the file says.
        model_type: String,
    },
}

impl ConfigError {
    /// The key that is at fault; empty where the file as a whole is.
    pub fn field(&self) -> &str {
        match self {
            Self::Json { .. } | Self::NotAnObject { .. } => "",
            Self::WrongType { field, .. } | Self::WrongValue { field, .. } => field,
            Self::MissingRopeKeys { .. } => "rope_parameters",
            Self::NotALlama { .. } => "model_type",
        }
    }

    pub(crate) fn value(field: &str, message: impl Into<String>) -> Self {
        Self::WrongValue { field: field.to_owned(), message: message.into() }
    }

    pub(crate) fn json(error: &serde_json::Error) -> Self {
        Self::Json { line: error.line(), column: error.column(), why: error.to_string() }
    }
}

/// Something odd in a configuration that does not stop a model from running.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigWarning {
    /// Key of the file.
    pub field: String,
    /// The whole message.
    pub message: String,
}

impl ConfigWarning {
    pub(crate) fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into() }
    }
}

/// `'a', 'b'`, as Python prints the inside of a set.
pub(crate) fn quote<S: AsRef<str>>(keys: &[S]) -> String {
    let quoted: Vec<String> = keys.iter().map(|key| format!("'{}'", key.as_ref())).collect();
    quoted.join(", ")
}

/// The Python type that a JSON value becomes.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

/// Longest value that a message repeats.
const MAX_SHOWN: usize = 200;

/// The value as Python's `repr` prints it, cut where it is long.
pub(crate) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, &mut out);
    if let Some((cut, _)) = out.char_indices().nth(MAX_SHOWN) {
        out.truncate(cut);
        out.push('…');
    }
    out
}

fn write_repr(value: &Value, out: &mut String) {
    if out.len() > MAX_SHOWN * 4 {
        return;
    }
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(n) => match n.as_f64() {
            Some(x) if n.is_f64() => out.push_str(&super::json::python_float(x)),
            _ => out.push_str(&n.to_string()),
        },
        Value::String(s) => {
            out.push('\'');
            out.extend(s.chars().take(MAX_SHOWN));
            out.push('\'');
        }
        Value::Array(items) => write_items(items.iter().map(|v| (None, v)), ('[', ']'), out),
        Value::Object(map) => {
            write_items(map.iter().map(|(k, v)| (Some(k), v)), ('{', '}'), out);
        }
    }
}

fn write_items<'a>(
    items: impl Iterator<Item = (Option<&'a String>, &'a Value)>,
    brackets: (char, char),
    out: &mut String,
) {
    out.push(brackets.0);
    for (i, (key, value)) in items.enumerate() {
        if out.len() > MAX_SHOWN * 4 {
            break;
        }
        if i > 0 {
            out.push_str(", ");
        }
        if let Some(key) = key {
            out.push_str(&format!("'{key}': "));
        }
        write_repr(value, out);
    }
    out.push(brackets.1);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_print_as_in_python() {
        assert_eq!(
            repr(&json!([1, "a", null, true, 2.0, {"k": 1e-6}])),
            "[1, 'a', None, True, 2.0, {'k': 1e-06}]"
        );
    }

    #[test]
    fn long_values_are_cut() {
        let long = Value::Array(vec![json!(1); 1_000_000]);
        assert!(repr(&long).chars().count() <= MAX_SHOWN + 1);
    }
}
