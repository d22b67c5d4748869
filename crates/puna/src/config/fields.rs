//! Takes known keys out of a JSON object, checks their types with Transformers' own messages, and
//! leaves the unknown keys to be kept.

use serde_json::{Map, Value};

use super::TokenIds;
use super::error::{ConfigError, repr, type_name};

/// The keys of a file that nobody has asked for yet.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Reads the text of a file.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { map }),
            Ok(other) => Err(ConfigError::NotAnObject { got: type_name(&other) }),
            Err(error) => Err(ConfigError::json(&error)),
        }
    }

    /// The keys that are left.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.map
    }

    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.shift_remove(field)
    }

    pub(crate) fn put(&mut self, field: &str, value: Value) {
        self.map.insert(field.to_owned(), value);
    }

    pub(crate) fn peek(&self, field: &str) -> Option<&Value> {
        self.map.get(field)
    }

    /// A whole number between 1 and `max`.
    pub(crate) fn size(
        &mut self,
        field: &str,
        default: usize,
        max: usize,
    ) -> Result<usize, ConfigError> {
        match self.take(field) {
            None => Ok(default),
            Some(value) => check_size(field, integer(field, &value)?, max),
        }
    }

    /// The same, or null.
    pub(crate) fn optional_size(
        &mut self,
        field: &str,
        max: usize,
    ) -> Result<Option<usize>, ConfigError> {
        match self.optional_integer(field, None)? {
            None => Ok(None),
            Some(value) => check_size(field, value, max).map(Some),
        }
    }

    pub(crate) fn optional_integer(
        &mut self,
        field: &str,
        default: Option<i64>,
    ) -> Result<Option<i64>, ConfigError> {
        match self.take(field) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => match value.as_i64() {
                Some(x) => Ok(Some(x)),
                None => Err(no_match(field, &value, &["int", "NoneType"])),
            },
        }
    }

    pub(crate) fn float(&mut self, field: &str, default: f64) -> Result<f64, ConfigError> {
        match self.take(field) {
            None => Ok(default),
            Some(Value::Number(n)) if n.is_f64() => Ok(n.as_f64().unwrap_or(default)),
            Some(value) => Err(mismatch(field, "float", &value)),
        }
    }

    /// A float or a whole number; null is `default`.
    pub(crate) fn number(&mut self, field: &str, default: f64) -> Result<f64, ConfigError> {
        match self.take(field) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Number(n)) => Ok(n.as_f64().unwrap_or(default)),
            Some(value) => Err(no_match(field, &value, &["int", "float", "NoneType"])),
        }
    }

    pub(crate) fn boolean(&mut self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.take(field) {
            None => Ok(default),
            Some(Value::Bool(x)) => Ok(x),
            Some(value) => Err(mismatch(field, "bool", &value)),
        }
    }

    /// A boolean; null is `default`.
    pub(crate) fn optional_boolean(
        &mut self,
        field: &str,
        default: bool,
    ) -> Result<bool, ConfigError> {
        if self.peek(field).is_some_and(Value::is_null) {
            self.take(field);
        }
        self.boolean(field, default)
    }

    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ConfigError> {
        match self.take(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(value) => Err(mismatch(field, "str", &value)),
        }
    }

    /// A list of strings.
    pub(crate) fn texts(&mut self, field: &str) -> Result<Vec<String>, ConfigError> {
        let items = match self.take(field) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(value) => return Err(mismatch(field, "list[str]", &value)),
        };
        let text = |value| match value {
            Value::String(s) => Ok(s),
            other => Err(mismatch(field, "str", &other)),
        };
        items.into_iter().map(text).collect()
    }

    /// An id, a list of ids, or null.
    pub(crate) fn token_ids(
        &mut self,
        field: &str,
        default: Option<TokenIds>,
    ) -> Result<Option<TokenIds>, ConfigError> {
        const TYPES: [&str; 3] = ["int", "list[int]", "NoneType"];
        let value = match self.take(field) {
            None => return Ok(default),
            Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        if let Some(id) = value.as_i64() {
            return Ok(Some(TokenIds::One(id)));
        }
        let ids = value.as_array().and_then(|items| items.iter().map(Value::as_i64).collect());
        match ids {
            Some(ids) => Ok(Some(TokenIds::Many(ids))),
            None => Err(no_match(field, &value, &TYPES)),
        }
    }
}

/// `value` as a length, or an error that names the range.
pub(crate) fn check_size(field: &str, value: i64, max: usize) -> Result<usize, ConfigError> {
    match usize::try_from(value) {
        Ok(size) if (1..=max).contains(&size) => Ok(size),
        _ => Err(ConfigError::value(
            field,
            format!("Field '{field}' must be between 1 and {max}, got {value}"),
        )),
    }
}

fn integer(field: &str, value: &Value) -> Result<i64, ConfigError> {
    value.as_i64().ok_or_else(|| mismatch(field, "int", value))
}

pub(crate) fn mismatch(field: &str, expected: &str, value: &Value) -> ConfigError {
    let message = expectation(field, expected, value);
    ConfigError::WrongType { field: field.to_owned(), message }
}

fn expectation(field: &str, expected: &str, value: &Value) -> String {
    let got = type_name(value);
    format!("Field '{field}' expected {expected}, got {got} (value: {})", repr(value))
}

/// The message for a field that may be of several types.
pub(crate) fn no_match(field: &str, value: &Value, types: &[&str]) -> ConfigError {
    let is_list = |t: &str| t.starts_with("list");
    let class = |t: &&str| if is_list(t) { (*t).to_owned() } else { format!("<class '{t}'>") };
    let reason = |t: &&str| match value.as_array() {
        Some(items) if is_list(t) => {
            let bad = items.iter().position(|item| item.as_i64().is_none()).unwrap_or(0);
            format!("Invalid item at index {bad} in list '{field}'")
        }
        None if is_list(t) => format!("Field '{field}' expected a list, got {}", type_name(value)),
        _ => expectation(field, t, value),
    };
    let classes: Vec<String> = types.iter().map(class).collect();
    let reasons: Vec<String> = types.iter().map(reason).collect();
    let message = format!(
        "Field '{field}' with value {} doesn't match any type in ({}). Errors: {}",
        repr(value),
        classes.join(", "),
        reasons.join("; ")
    );
    ConfigError::WrongType { field: field.to_owned(), message }
}
