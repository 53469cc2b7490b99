//! Reads JSON bodies, and describes an error in ordinary words: the field, what was expected, and what was found.
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::refusal::Refusal;

/// The most fields that are searched for the one with the error.
const MOST_FIELDS: usize = 64;
/// The most bytes of a body in which that field is searched for, because values take several times the memory of
/// their text.
const MOST_BYTES: usize = 256 << 10;

/// serde's names of the types that a body can have, and their names in ordinary words. The longer names come first.
const TYPES: [(&str, &str); 26] = [
    ("untagged enum OneOrMany", "a text or a list of texts"),
    ("untagged enum Content", "a text or a list of parts"),
    ("untagged enum PromptForm", "a text, a list of texts, a list of token ids, or several such lists"),
    ("struct ChatMessage", "an object"),
    ("struct ContentPart", "an object"),
    ("struct StreamOptions", "an object"),
    ("struct Reasoning", "an object"),
    ("struct Item", "an object"),
    ("struct ChatBody", "an object"),
    ("struct CompletionBody", "an object"),
    ("struct ResponsesBody", "an object"),
    ("struct TokenizeBody", "an object"),
    ("struct DetokenizeBody", "an object"),
    ("struct ReportBody", "an object"),
    ("a sequence", "a list"),
    ("a tuple of size 2", "a list of two texts"),
    ("a boolean", "true or false"),
    ("a borrowed string", "a text"),
    ("a string", "a text"),
    ("a map", "an object"),
    ("usize", "a whole number from 0 on"),
    ("u64", "a whole number from 0 on"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("i64", "a whole number"),
    ("f64", "a number"),
    ("f32", "a number"),
];

/// Reads a body.
///
/// # Errors
/// Status 400, with the field that has the error if there is one.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        if !error.is_data() {
            // An error in the syntax of JSON has a line and a column, but no field.
            return Refusal::bad(format!("the body cannot be read as JSON: {error}"));
        }
        let body = if bytes.len() > MOST_BYTES { None } else { serde_json::from_slice(bytes).ok() };
        explained::<T>(&error, body.as_ref())
    })
}

/// Reads a value that is a body.
///
/// # Errors
/// Those of [`parse`].
pub(super) fn parse_value<T: DeserializeOwned>(value: &Value) -> Result<T, Refusal> {
    T::deserialize(value).map_err(|error| explained::<T>(&error, Some(value)))
}

/// The refusal of a body that is not a `T`. It names the field with the error, if the field is found in the body.
fn explained<T: DeserializeOwned>(error: &serde_json::Error, body: Option<&Value>) -> Refusal {
    let fields = body.and_then(Value::as_object);
    fields.and_then(at_fault::<T>).unwrap_or_else(|| misread(None, error))
}

/// Describes in ordinary words why a value was not understood, without its place in the text.
pub(super) fn in_words(error: &serde_json::Error) -> String {
    let said = error.to_string();
    // An error in a value that was parsed before has no place in a text, and no such suffix.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let said = said.strip_suffix(&place).unwrap_or(&said);
    if let Some(name) = said.strip_prefix("data did not match any variant of ") {
        let expected = TYPES.iter().find(|(theirs, _)| *theirs == name).map_or("another value", |(_, ours)| ours);
        return format!("{expected} is expected");
    }
    let wrong = said.strip_prefix("invalid type: ").or(said.strip_prefix("invalid value: "));
    let Some((found, expected)) = wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) else { return said.into() };
    let expected = TYPES.iter().find(|(theirs, _)| *theirs == expected).map_or(expected, |(_, ours)| ours);
    let found = match found {
        "sequence" => "a list",
        "map" => "an object",
        found => found,
    };
    format!("{expected} is expected, not {found}")
}

/// The refusal of the first field that cannot be read by itself. The parser does not report the field, because most
/// fields are read in two steps.
fn at_fault<T: DeserializeOwned>(fields: &Map<String, Value>) -> Option<Refusal> {
    fields.iter().take(MOST_FIELDS).find_map(|(name, value)| {
        // Some bodies require these fields, so they are present in each trial.
        let read = |value: Value| {
            let mut alone = json!({"messages": [], "prompt": "", "input": "", "tokens": [], "traces": []});
            alone[name] = value;
            serde_json::from_value::<T>(alone).err()
        };
        let error = read(value.clone())?;
        // The error may be in a part of the field.
        let part = match value {
            Value::Object(parts) => parts.iter().take(MOST_FIELDS).find_map(|(part, value)| {
                let error = read(json!({(part.as_str()): value}))?;
                // An unknown field is not the place of the error.
                let known = !error.to_string().starts_with("unknown field");
                Some((if known { format!("{name}.{part}") } else { name.clone() }, error))
            }),
            Value::Array(parts) => parts
                .iter()
                .take(MOST_FIELDS)
                .enumerate()
                .find_map(|(index, value)| Some((format!("{name}[{index}]"), read(json!([value]))?))),
            _ => None,
        };
        let (place, error) = part.unwrap_or((name.clone(), error));
        Some(misread(Some(&place), &error))
    })
}

fn misread(field: Option<&str>, error: &serde_json::Error) -> Refusal {
    let words = in_words(error);
    match field {
        Some(field) => Refusal::bad(format!("{field}: {words}")).at(field),
        None => Refusal::bad(format!("the body is not understood: {words}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::{ChatBody, CompletionBody};
    use super::*;

    #[test]
    fn a_field_that_is_not_understood_is_named() {
        let user = json!([{"role": "user", "content": "x"}]);
        for (fields, param, words) in [
            (json!({"max_tokens": "x"}), "max_tokens", "a whole number from 0 on is expected, not string \"x\""),
            (json!({"max_tokens": "roadmap at line 3"}), "max_tokens", "not string \"roadmap at line 3\""),
            (json!({"max_tokens": -1}), "max_tokens", "a whole number from 0 on is expected, not integer `-1`"),
            (json!({"temperature": "hot"}), "temperature", "a number is expected"),
            (json!({"temperature": 1e39}), "temperature", "too large"),
            (json!({"stream": 1}), "stream", "true or false is expected"),
            (json!({"stop": 5}), "stop", "a text or a list of texts is expected"),
            (json!({"messages": 5}), "messages", "a list is expected, not integer `5`"),
            (json!({"messages": [{"role": 5}]}), "messages[0]", "a text is expected"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]}),
                "messages[1]",
                "a text or a list of parts is expected",
            ),
            (
                json!({"secateur": {"budget": "tokens:5", "window": []}}),
                "secateur.window",
                "a whole number from 0 on is expected, not a list",
            ),
            (json!({"secateur": {"windows": 1}}), "secateur", "unknown field `windows`, expected one of"),
            (json!({"enable_thinking": "yes"}), "enable_thinking", "true or false is expected"),
        ] {
            let mut body = json!({"messages": user});
            fields.as_object().expect("fields").iter().for_each(|(name, value)| body[name] = value.clone());
            let refusal = parse::<ChatBody>(body.to_string().as_bytes()).expect_err("it is wrong").body();
            assert_eq!(refusal["error"]["param"], param, "{refusal}");
            let message = refusal["error"]["message"].as_str().unwrap_or_default();
            assert!(message.starts_with(&format!("{param}: ")) && message.contains(words), "{fields}: {message}");
        }
        let refused = |text: &str| parse::<ChatBody>(text.as_bytes()).expect_err("it is wrong").body().to_string();
        assert!(refused("{").contains("as JSON: ") && refused("").contains("as JSON: "));
        assert!(refused("[]").contains("an object is expected"));
        assert!(refused("{}").contains("missing field `messages`"));
        let prompt = parse::<CompletionBody>(br#"{"prompt": {"a": 1}}"#).expect_err("an object").body().to_string();
        assert!(prompt.contains("a list of token ids"), "{prompt}");
    }
}
