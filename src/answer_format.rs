//! The form that an answer must have. The engine lets the model choose only tokens that keep to this form.
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

/// What the text of an answer must look like. It begins with the answer: the thinking before it is free.
///
/// In JSON it is an object with a `type`: `{"type": "json_object"}`, `{"type": "json_schema", "schema": {…}}`,
/// `{"type": "regex", "pattern": "…"}` or `{"type": "choice", "choices": ["yes", "no"]}`. As text it is `json`,
/// `schema:{…}`, `regex:PATTERN` or `choice:yes|no`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum AnswerFormat {
    /// Some JSON object.
    JsonObject,
    /// JSON that this JSON Schema accepts.
    JsonSchema {
        /// The JSON Schema: an object, `true` or `false`.
        schema: Value,
    },
    /// A text that this regular expression matches as a whole.
    Regex {
        /// The expression, in the syntax of Rust's crate `regex`, without word boundaries. It holds for the whole
        /// text.
        pattern: String,
    },
    /// One of these texts.
    Choice {
        /// The texts among which the answer is chosen.
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

/// The most bytes of a format, as JSON or as text.
const MOST_BYTES: usize = 64 << 10;
/// The most texts of a choice.
const MOST_CHOICES: usize = 1000;
/// The most tools of which one must be called.
const MOST_TOOLS: usize = 128;
/// The most objects, lists and values of a schema, all together.
const MOST_NODES: usize = 4000;
/// The most properties of an object, and the most members of an `anyOf`, `oneOf` or `allOf`.
const MOST_MEMBERS: usize = 200;
/// The most `patternProperties` of an object. Each pair of them is compared, so the work grows with the square.
const MOST_PATTERNS: usize = 8;
/// The most different references of a schema. The grammar library follows a chain of references by recursion.
const MOST_REFERENCES: usize = 100;
/// The largest `multipleOf`, in units of its last decimal digit. Its automaton has this number of states.
const MOST_MULTIPLE: f64 = 1000.0;

impl AnswerFormat {
    /// Checks what can be checked without a model. Formats come from strangers, and some short ones would take
    /// minutes and gigabytes, so their parts are limited.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a value that is no schema, for a schema, a pattern or a list of texts or tools that
    /// is too large, for a choice without texts or with an empty one, and for tools that are missing or have no name.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, expected: &str, found: &dyn fmt::Display| {
            Err(Error::new(ErrorKind::Input, what).at("`answer_format`").expected(expected).found(found))
        };
        match self {
            Self::JsonObject => Ok(()),
            Self::Regex { pattern } if pattern.len() > MOST_BYTES => {
                wrong("the pattern is too long", &format!("at most {MOST_BYTES} bytes"), &pattern.len())
            }
            Self::Regex { pattern } if pattern.is_empty() => {
                wrong("an answer cannot be empty", "a regular expression", &"an empty one")
            }
            Self::Regex { .. } => Ok(()),
            Self::JsonSchema { schema: schema @ Value::Object(_) } => check_schema(schema),
            Self::JsonSchema { schema: Value::Bool(_) } => Ok(()),
            Self::JsonSchema { schema } => wrong("this is no JSON Schema", "a JSON object", schema),
            Self::Choice { choices } if choices.is_empty() => {
                wrong("there is nothing to choose", "some texts", &"none")
            }
            Self::Choice { choices } if choices.iter().any(String::is_empty) => {
                wrong("an answer cannot be empty", "texts of at least one character", &"an empty text")
            }
            Self::Choice { choices } if choices.len() > MOST_CHOICES => {
                wrong("there are too many texts to choose from", &format!("at most {MOST_CHOICES}"), &choices.len())
            }
            Self::Choice { choices } => match choices.iter().map(String::len).sum() {
                0..=MOST_BYTES => Ok(()),
                bytes => wrong("the texts to choose from are too long", &format!("at most {MOST_BYTES} bytes"), &bytes),
            },
            Self::ToolCalls { tools, .. } if tools.is_empty() => {
                wrong("there is nothing to call", "some tools", &"none")
            }
            Self::ToolCalls { tools, .. } => match tools.iter().find(|tool| !tool["function"]["name"].is_string()) {
                Some(tool) => wrong("a tool has no name", "{\"function\": {\"name\": …}}", tool),
                None if tools.len() > MOST_TOOLS => wrong(
                    "there are too many tools to call one of them",
                    &format!("at most {MOST_TOOLS}"),
                    &tools.len(),
                ),
                None => tools.iter().try_for_each(|tool| check_schema(&tool["function"]["parameters"])),
            },
        }
    }
}

/// Refuses a schema that is larger than the limits above.
fn check_schema(schema: &Value) -> Result<()> {
    let refused = |what: &str, expected: String, found: &dyn fmt::Display| {
        let e = Error::new(ErrorKind::Input, what).at("`answer_format`").expected(expected).found(found);
        Err(e.help("use a simpler schema"))
    };
    let bytes = schema.to_string().len();
    if bytes > MOST_BYTES {
        return refused("the JSON Schema is too long", format!("at most {MOST_BYTES} bytes"), &bytes);
    }
    let (mut nodes, mut references, mut left) = (0, HashSet::new(), vec![schema]);
    while let Some(node) = left.pop() {
        nodes += 1;
        match node {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => {
                for (name, value) in fields {
                    let members = value.as_object().map(Map::len).or(value.as_array().map(Vec::len)).unwrap_or(0);
                    let most = match name.as_str() {
                        "patternProperties" => MOST_PATTERNS,
                        "properties" | "anyOf" | "oneOf" | "allOf" | "prefixItems" => MOST_MEMBERS,
                        _ => usize::MAX,
                    };
                    if members > most {
                        return refused(
                            &format!("the JSON Schema has too many {name}"),
                            format!("at most {most}"),
                            &members,
                        );
                    }
                    match (name.as_str(), value) {
                        ("multipleOf", Value::Number(number)) => {
                            let digits = number.to_string();
                            let digits = digits.split_once('.').map_or(0, |(_, digits)| digits.len());
                            let units = number.as_f64().unwrap_or(0.0).abs() * 10f64.powi(digits.min(99) as i32);
                            if !(1.0..=MOST_MULTIPLE).contains(&units) {
                                let expected = format!("from 1 to {MOST_MULTIPLE}, in units of the last decimal digit");
                                return refused("this multipleOf is not supported", expected, number);
                            }
                        }
                        ("$ref", Value::String(to)) => drop(references.insert(to.as_str())),
                        // This key sets options of the grammar library, such as how leniently it reads the schema.
                        ("x-guidance", _) => {
                            return refused(
                                "the JSON Schema has a key that is not supported",
                                "none of this name".into(),
                                name,
                            );
                        }
                        _ => (),
                    }
                    left.push(value);
                }
            }
            _ => (),
        }
    }
    if nodes > MOST_NODES {
        return refused("the JSON Schema has too many parts", format!("at most {MOST_NODES}"), &nodes);
    }
    if references.len() > MOST_REFERENCES {
        let found = references.len();
        return refused("the JSON Schema has too many references", format!("at most {MOST_REFERENCES}"), &found);
    }
    Ok(())
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
        for text in ["", "yaml", "schema:", "schema:{", "schema:3", "regex:", "choice:", "choice:a||b", "json:1"] {
            let error = text.parse::<AnswerFormat>().unwrap_err().to_string();
            assert!(error.contains("`answer_format`"), "{text}: {error}");
        }
        let unknown = serde_json::from_value::<AnswerFormat>(json!({"type": "regex", "pattern": "a", "flags": "i"}));
        assert!(unknown.is_err());
    }
}
