//! Reads one JSON object of a model's configuration, field by field, and names the field in errors.
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

/// The largest size that a config may contain. Sizes of real models are far smaller, and a product of two such sizes
/// still fits 64 bits.
const MAX_SIZE: u64 = 1 << 28;

/// The fields of one JSON object. A field with the value `null` counts as absent, as in transformers.
pub(super) struct Fields<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) place: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(json: &'a Value, place: &'a str) -> Result<Self> {
        let map = json.as_object().ok_or_else(|| {
            Error::new(ErrorKind::Model, "the configuration is malformed")
                .at(place)
                .expected("a JSON object")
                .found(kind_of(json))
        })?;
        Ok(Self { map, place })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn invalid(&self, name: &str, expected: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Model, format!("{name} has a value that cannot be used"))
            .at(format!("{}: {name}", self.place))
            .expected(expected)
            .found(self.get(name).map_or("nothing".to_string(), brief))
    }

    pub(super) fn unsupported(&self, name: &str, what: &str) -> Error {
        Error::new(ErrorKind::Model, format!("{what} are not supported"))
            .at(format!("{}: {name}", self.place))
            .found(self.get(name).map_or("nothing".to_string(), brief))
    }

    pub(super) fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.invalid(name, format!("a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    pub(super) fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?.ok_or_else(|| self.invalid(name, "a positive whole number"))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_f64().filter(|number| number.is_finite()).map(Some).ok_or_else(|| self.invalid(name, "a number"))
    }

    pub(super) fn required_number(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| self.invalid(name, "a number"))
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.invalid(name, "true or false"))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.invalid(name, "a string"))
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A JSON value as text for a message, shortened to 80 characters.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
