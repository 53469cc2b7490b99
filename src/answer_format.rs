//! The form that an answer must have. The engine lets the model choose only among tokens that keep to it.
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// What the text of an answer must look like. It begins with the answer: the thinking before it is free.
///
/// In JSON it is an object with a `type`: `{"type": "json_object"}`, `{"type": "json_schema", "schema": {…}}`, `{"type":
/// "regex", "pattern": "…"}` or `{"type": "choice", "choices": ["yes", "no"]}`. As text it is `json`, `schema:{…}`,
/// `regex:PATTERN` or `choice:yes|no`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum AnswerFormat {
    /// Some JSON object.
    JsonObject,
    /// JSON that this JSON Schema accepts.
    JsonSchema {
        /// The schema.
        schema: Value,
    },
    /// A text that this regular expression matches as a whole.
    Regex {
        /// The expression, in the syntax of Rust's crate `regex`, without anchors.
        pattern: String,
    },
    /// One of these texts.
    Choice {
        /// The texts.
        choices: Vec<String>,
    },
    /// A call of one of these tools, written as the model's chat template shows calls. Their arguments keep to their
    /// schemas.
    ToolCalls {
        /// Descriptions of the tools, as a request has them.
        tools: Vec<Value>,
        /// Whether more calls may follow.
        several: bool,
    },
}

impl AnswerFormat {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a schema that is none, and for a choice among nothing or among texts one of which is empty.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, expected: &str, found: &dyn fmt::Display| {
            Err(Error::new(ErrorKind::Input, what).at("`answer_format`").expected(expected).found(found))
        };
        match self {
            Self::JsonObject | Self::Regex { .. } => Ok(()),
            Self::JsonSchema { schema: Value::Object(_) | Value::Bool(_) } => Ok(()),
            Self::JsonSchema { schema } => wrong("this is no JSON Schema", "a JSON object", schema),
            Self::Choice { choices } if choices.is_empty() => {
                wrong("there is nothing to choose", "some texts", &"none")
            }
            Self::Choice { choices } if choices.iter().any(String::is_empty) => {
                wrong("an answer cannot be empty", "texts of at least one character", &"an empty text")
            }
            Self::Choice { .. } => Ok(()),
            Self::ToolCalls { tools, .. } if tools.is_empty() => {
                wrong("there is nothing to call", "some tools", &"none")
            }
            Self::ToolCalls { tools, .. } => match tools.iter().find(|tool| !tool["function"]["name"].is_string()) {
                Some(tool) => wrong("a tool has no name", "{\"function\": {\"name\": …}}", tool),
                None => Ok(()),
            },
        }
    }
}

impl FromStr for AnswerFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            let e = Error::new(ErrorKind::Input, "this form of an answer is not known").at("`answer_format`");
            e.expected("json, schema:{…}, regex:PATTERN or choice:A|B").found(format!("{text:?}"))
        };
        let format = match text.split_once(':') {
            None if text == "json" => Self::JsonObject,
            Some(("schema", schema)) => Self::JsonSchema {
                schema: serde_json::from_str(schema).map_err(|e| {
                    let error = Error::new(ErrorKind::Input, "the JSON Schema cannot be read").at("`answer_format`");
                    error.expected("JSON").found(e)
                })?,
            },
            Some(("regex", pattern)) => Self::Regex { pattern: pattern.into() },
            Some(("choice", choices)) => Self::Choice { choices: choices.split('|').map(String::from).collect() },
            _ => return Err(unknown()),
        };
        format.check()?;
        Ok(format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_forms_of_text_and_json_mean_the_same() {
        for (text, value) in [
            ("json", json!({"type": "json_object"})),
            ("schema:{\"type\": \"array\"}", json!({"type": "json_schema", "schema": {"type": "array"}})),
            ("regex:a:b+", json!({"type": "regex", "pattern": "a:b+"})),
            ("choice:yes|no", json!({"type": "choice", "choices": ["yes", "no"]})),
        ] {
            let format: AnswerFormat = text.parse().unwrap();
            assert_eq!(serde_json::to_value(&format).unwrap(), value);
            assert_eq!(serde_json::from_value::<AnswerFormat>(value).unwrap(), format);
        }
    }

    #[test]
    fn what_is_no_format_is_refused_with_its_place() {
        for text in ["", "yaml", "schema:", "schema:{", "schema:3", "choice:", "choice:a||b", "json:1"] {
            let error = text.parse::<AnswerFormat>().unwrap_err().to_string();
            assert!(error.contains("`answer_format`"), "{text}: {error}");
        }
        let unknown = serde_json::from_value::<AnswerFormat>(json!({"type": "regex", "pattern": "a", "flags": "i"}));
        assert!(unknown.is_err());
    }
}
