//! The form of an answer in a request: OpenAI's `response_format`, and the fields of vLLM and llama-server for the
//! same purpose.
use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::answer_format::AnswerFormat;

/// The format that a request asks for, with the field that names it. `fields` are all the fields that can name one.
/// `None` if any text will do. A field that is null counts as absent.
///
/// # Errors
/// Two formats, a kind that is not supported, and a value of the wrong type.
pub(super) fn only<'f>(fields: &[(&'f str, Option<&Value>)]) -> Result<Option<(&'f str, AnswerFormat)>, Refusal> {
    let mut found: Option<(&str, AnswerFormat)> = None;
    for (field, value) in fields {
        let Some(value) = value.filter(|value| !value.is_null()) else { continue };
        let Some(format) = one(field, value)? else { continue };
        if let Some((other, _)) = found {
            return Err(Refusal::bad(format!("{other} and {field} are given: one format is expected")).at(*field));
        }
        format.check().map_err(|e| Refusal::from(e).about("answer_format", field))?;
        found = Some((field, format));
    }
    Ok(found)
}

fn one(field: &str, value: &Value) -> Result<Option<AnswerFormat>, Refusal> {
    match field {
        "response_format" => response_format(value),
        "structured_outputs" => structured_outputs(value),
        "json_schema" | "guided_json" => schema(field, value).map(Some),
        "guided_regex" | "regex" => regex(field, value).map(Some),
        "guided_choice" => choice(field, value).map(Some),
        // The form of Ollama's API.
        "format" if value == "json" => Ok(Some(AnswerFormat::JsonObject)),
        "format" if value == "" => Ok(None),
        "format" => schema(field, value).map(Some),
        _ => Err(Refusal::unsupported(field, "a grammar in this language")),
    }
}

fn object<'v>(field: &str, value: &'v Value) -> Result<&'v Map<String, Value>, Refusal> {
    value.as_object().ok_or_else(|| Refusal::bad(format!("{field} is {value}: an object is expected")).at(field))
}

/// OpenAI's form. llama-server takes a schema in `json_object` as well.
fn response_format(value: &Value) -> Result<Option<AnswerFormat>, Refusal> {
    const FIELD: &str = "response_format";
    let format = object(FIELD, value)?;
    let expected = "text, json_object or json_schema is expected";
    let Some(kind) = format.get("type").and_then(Value::as_str) else {
        return Err(Refusal::bad(format!("{FIELD}.type is missing: {expected}")).at(FIELD));
    };
    match kind {
        "text" => Ok(None),
        "json_object" => match format.get("schema").filter(|schema| !schema.is_null()) {
            Some(given) => schema("response_format.schema", given).map(Some),
            None => Ok(Some(AnswerFormat::JsonObject)),
        },
        "json_schema" => {
            // The Responses API has the schema beside the type.
            let holder = match format.get("json_schema").filter(|holder| !holder.is_null()) {
                Some(holder) => object("response_format.json_schema", holder)?,
                None if format.contains_key("schema") => format,
                None => {
                    let message = "response_format.json_schema is missing: an object with a schema is expected";
                    return Err(Refusal::bad(message).at(FIELD));
                }
            };
            match holder.get("schema").filter(|schema| !schema.is_null()) {
                Some(given) => schema("response_format.json_schema.schema", given).map(Some),
                None => Ok(Some(AnswerFormat::JsonObject)),
            }
        }
        "structural_tag" | "grammar" | "python" | "regex" => {
            Err(Refusal::unsupported(FIELD, &format!("the type {kind:?}")))
        }
        kind => Err(Refusal::bad(format!("{FIELD}.type is {kind:?}: {expected}")).at(FIELD)),
    }
}

/// vLLM's form. Its options for the search are ignored here, because they change no answer.
fn structured_outputs(value: &Value) -> Result<Option<AnswerFormat>, Refusal> {
    const FIELD: &str = "structured_outputs";
    let mut found = Vec::new();
    for (name, value) in object(FIELD, value)?.iter().filter(|(_, value)| !value.is_null()) {
        let place = format!("{FIELD}.{name}");
        match name.as_str() {
            "json" => found.push(schema(&place, value)?),
            "json_object" if *value == Value::Bool(true) => found.push(AnswerFormat::JsonObject),
            "json_object" if *value == Value::Bool(false) => (),
            "regex" => found.push(regex(&place, value)?),
            "choice" => found.push(choice(&place, value)?),
            "grammar" | "structural_tag" => return Err(Refusal::unsupported(&place, "a grammar in this language")),
            // White space is limited in any case, and every property is checked.
            "disable_fallback" | "disable_any_whitespace" => (),
            _ => return Err(Refusal::unsupported(&place, "this setting")),
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(Refusal::bad(format!("{FIELD} has several formats: one is expected")).at(FIELD)),
    }
}

fn schema(field: &str, value: &Value) -> Result<AnswerFormat, Refusal> {
    let bad = |found: &dyn std::fmt::Display| {
        Refusal::bad(format!("{field} is {found}: a JSON Schema is expected")).at(field)
    };
    let schema = match value {
        // vLLM also accepts a schema as JSON text.
        Value::String(text) => serde_json::from_str(text).map_err(|e| bad(&format!("no JSON ({e})")))?,
        Value::Object(_) | Value::Bool(_) => value.clone(),
        other => return Err(bad(other)),
    };
    Ok(AnswerFormat::JsonSchema { schema })
}

fn regex(field: &str, value: &Value) -> Result<AnswerFormat, Refusal> {
    let pattern = value.as_str().map(String::from);
    let pattern = pattern.ok_or_else(|| Refusal::bad(format!("{field} is {value}: a text is expected")).at(field))?;
    Ok(AnswerFormat::Regex { pattern })
}

fn choice(field: &str, value: &Value) -> Result<AnswerFormat, Refusal> {
    let text = |value: &Value| value.as_str().map(String::from);
    let choices = value.as_array().and_then(|values| values.iter().map(text).collect());
    let bad = || Refusal::bad(format!("{field} is {value}: a list of texts is expected")).at(field);
    Ok(AnswerFormat::Choice { choices: choices.ok_or_else(bad)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(field: &str, value: Value) -> Result<Option<AnswerFormat>, String> {
        let found = only(&[(field, Some(&value))]).map_err(|refusal| refusal.body().to_string());
        found.map(|found| found.map(|(_, format)| format))
    }

    #[test]
    fn the_forms_of_all_servers_are_read() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let of_schema = Ok(Some(AnswerFormat::JsonSchema { schema: schema.clone() }));
        let of_object = Ok(Some(AnswerFormat::JsonObject));
        let named = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        assert_eq!(found("response_format", named), of_schema);
        assert_eq!(found("response_format", json!({"type": "json_schema", "name": "x", "schema": schema})), of_schema);
        assert_eq!(found("response_format", json!({"type": "json_object", "schema": schema})), of_schema);
        assert_eq!(found("json_schema", schema.clone()), of_schema);
        assert_eq!(found("guided_json", schema.to_string().into()), of_schema);
        assert_eq!(found("structured_outputs", json!({"json": schema, "regex": null})), of_schema);
        assert_eq!(found("response_format", json!({"type": "json_object"})), of_object);
        assert_eq!(found("response_format", json!({"type": "json_schema", "json_schema": {"name": "x"}})), of_object);
        assert_eq!(
            found("structured_outputs", json!({"json_object": true, "disable_any_whitespace": true})),
            of_object
        );
        for nothing in [json!({"type": "text"}), Value::Null] {
            assert_eq!(found("response_format", nothing), Ok(None));
        }
        let regex = Ok(Some(AnswerFormat::Regex { pattern: "a+".into() }));
        assert_eq!(found("guided_regex", json!("a+")), regex);
        assert_eq!(found("structured_outputs", json!({"regex": "a+"})), regex);
        assert_eq!(found("regex", json!("a+")), regex);
        assert_eq!((found("format", json!("json")), found("format", schema)), (of_object, of_schema));
        let choice = Ok(Some(AnswerFormat::Choice { choices: vec!["a".into(), "b".into()] }));
        assert_eq!(found("guided_choice", json!(["a", "b"])), choice);
        assert_eq!(found("structured_outputs", json!({"choice": ["a", "b"]})), choice);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (field, value, part) in [
            ("response_format", json!({"type": "yaml"}), "yaml"),
            ("response_format", json!({"type": "structural_tag"}), "structural_tag"),
            ("response_format", json!({}), "type is missing"),
            ("response_format", json!("json_object"), "an object is expected"),
            ("response_format", json!({"type": "json_schema"}), "json_schema is missing"),
            (
                "response_format",
                json!({"type": "json_schema", "json_schema": {"schema": 3}}),
                "JSON Schema is expected",
            ),
            ("grammar", json!("root ::= x"), "grammar"),
            ("guided_grammar", json!("root ::= x"), "guided_grammar"),
            ("guided_json", json!("{"), "no JSON"),
            ("guided_regex", json!(3), "a text is expected"),
            ("guided_choice", json!("a"), "a list of texts"),
            ("guided_choice", json!([]), "at: guided_choice"),
            ("ebnf", json!("root ::= x"), "ebnf"),
            ("structural_tag", json!({}), "structural_tag"),
            ("format", json!(3), "format"),
            ("structured_outputs", json!({"grammar": "x"}), "structured_outputs.grammar"),
            ("structured_outputs", json!({"regex": "a", "choice": ["a"]}), "several formats"),
            ("structured_outputs", json!({"backend": "x"}), "structured_outputs.backend"),
        ] {
            let refused = found(field, value.clone()).expect_err("it would be ignored");
            assert!(refused.contains(part), "{field} {value}: {refused}");
        }
        let (regex, object) = (json!("a+"), json!({"type": "json_object"}));
        let two = only(&[("response_format", Some(&object)), ("guided_regex", Some(&regex))]).expect_err("two formats");
        assert!(two.body().to_string().contains("response_format and guided_regex"));
    }
}
