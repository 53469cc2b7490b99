//! Calls of tools in what a model writes: the forms that chat templates teach, and the parser that finds them.
//!
//! | form | models | a call |
//! |---|---|---|
//! | [`Tagged`](CallFormat::Tagged) | Qwen2.5, QwQ, Qwen3, Hermes | `<tool_call>{"name": "f", "arguments": {…}}</tool_call>` |
//! | [`Xml`](CallFormat::Xml) | Qwen3-Coder | `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>` |
//! | [`Bare`](CallFormat::Bare) | Llama 3.1 to 3.3 | `{"name": "f", "parameters": {…}}`, perhaps after `<\|python_tag\|>` |
//! | [`Marked`](CallFormat::Marked) | Mistral, Ministral 3 | `[TOOL_CALLS][{"name": "f", "arguments": {…}}]` or `[TOOL_CALLS]f[ARGS]{…}` |
//!
//! The form does not follow from a model's name. A template that can show an earlier call shows it in the form in
//! which the model writes calls.
mod json;
mod parser;

use serde_json::{Map, Value as Json, json};

use super::Message;

pub use parser::{CallParser, Said};

/// The form in which a model calls tools; see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFormat {
    /// An object between two tags.
    Tagged,
    /// Tags for the function and for each of its parameters.
    Xml,
    /// An object that is the whole answer.
    Bare,
    /// A mark, and then a list of objects, or a name and an object.
    Marked,
}

/// Tokens that begin or divide calls. Some tokenizers mark them as special. Like the tags around the thinking, they
/// are still part of the text that a model writes: without them no call could be found.
pub(super) const MARKS: [&str; 4] = ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_tag|>"];

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Offered {
    /// The name of the function.
    pub name: String,
    /// The JSON Schema of its parameters; null if it has none.
    pub parameters: Json,
}

/// The texts by which the call of a [`probe`] is recognised. No template contains them.
const NAME: &str = "probe_of_a_call";
const KEY: &str = "some_key";
const VALUE: &str = "some value";

impl CallFormat {
    /// The form of the call of a [`probe`] in a rendered conversation; `None` if the conversation shows no call, or
    /// none of a known form.
    pub(super) fn shown_in(text: &str) -> Option<Self> {
        // The description of the tool contains the name as well, and stands before the call.
        let (before, after) = (&text[..text.rfind(NAME)?], &text[text.rfind(NAME)? + NAME.len()..]);
        if !after.contains(KEY) || !after.contains(VALUE) {
            return None;
        }
        if before.ends_with("<function=") {
            return Some(Self::Xml);
        }
        if before.ends_with("[TOOL_CALLS]") {
            return Some(Self::Marked);
        }
        // All other forms write an object that begins with the name.
        let object = before.trim_end_matches(['"', ' ']).strip_suffix("\"name\":")?.trim_end().strip_suffix('{')?;
        let object = object.trim_end();
        if object.ends_with("<tool_call>") {
            return Some(Self::Tagged);
        }
        if object.trim_end_matches(['[', ' ']).ends_with("[TOOL_CALLS]") {
            return Some(Self::Marked);
        }
        after.contains("\"parameters\":").then_some(Self::Bare)
    }

    /// The number of characters that ids of calls must have: templates of Mistral check it. `None` if any number is
    /// allowed.
    pub fn id_length(self) -> Option<usize> {
        (self == Self::Marked).then_some(9)
    }
}

/// A short conversation with the description of a tool and, with `called`, a call of it.
pub(super) fn probe(called: bool) -> (Vec<Message>, Json) {
    let parameters = json!({"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]});
    let tool = json!({"type": "function", "function": {"name": NAME, "description": "?", "parameters": parameters}});
    let mut messages = vec![Message::user("?")];
    if called {
        let call =
            json!({"id": "abcdefghi", "type": "function", "function": {"name": NAME, "arguments": {KEY: VALUE}}});
        let extra = Map::from_iter([("tool_calls".to_string(), json!([call]))]);
        messages.push(Message { extra, ..Message::new("assistant", "") });
    }
    (messages, json!([tool]))
}

/// Whether a rendered [`probe`] without a call shows the tool.
pub(super) fn shows_tool(text: &str) -> bool {
    text.contains(NAME) && text.contains(KEY)
}
