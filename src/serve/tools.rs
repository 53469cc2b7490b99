//! The tools of a request, and how the calls that a model wrote are sent.
//!
//! The server calls no tool. It shows the tools to the model in the form of the model's chat template, finds the
//! calls in the answer, and passes them to the client, which sends the results with the next request.
use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use crate::text::{CallFormat, CallParser, Offered, Said};

/// The most tools of a request.
const MOST_TOOLS: usize = 1024;

/// The tools that a request offers.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Offer {
    /// The tools that are shown to the model.
    pub shown: Vec<Value>,
    /// The tools of which the model must call one. If empty, the model need not call any.
    pub required: Vec<Value>,
    /// Whether the request names one function that must be called.
    pub named: bool,
}

/// The tools that a request offers, checked. Empty if the request does not want calls.
pub(super) fn offered(tools: Option<&[Value]>, choice: Option<&Value>) -> Result<Offer, Refusal> {
    let tools = tools.unwrap_or_default();
    if tools.len() > MOST_TOOLS {
        let message = format!("there are {} tools: at most {MOST_TOOLS} are expected", tools.len());
        return Err(Refusal::bad(message).at("tools"));
    }
    let mut names = HashSet::new();
    for (index, tool) in tools.iter().enumerate() {
        let name = checked(tool, &format!("tools[{index}]"))?;
        if !names.insert(name) {
            return Err(Refusal::bad(format!("tools[{index}]: there are two functions {name:?}")).at("tools"));
        }
    }
    let bad = |what: String| Refusal::bad(format!("tool_choice {what}")).at("tool_choice");
    let all = || tools.to_vec();
    let offer = match choice {
        None | Some(Value::Null) => Offer { shown: all(), ..Offer::default() },
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Offer { shown: all(), ..Offer::default() },
            "none" => Offer::default(),
            "required" if tools.is_empty() => return Err(bad("is \"required\", but there are no tools".into())),
            "required" => Offer { shown: all(), required: all(), named: false },
            other => return Err(bad(format!("is {other:?}: auto, none, required or a function is expected"))),
        },
        Some(Value::Object(choice)) => match choice.get("type").and_then(Value::as_str) {
            Some("function") => {
                let tool = named(tools, choice).ok_or_else(|| bad("names no function of tools".into()))?;
                Offer { shown: all(), required: vec![tool.clone()], named: true }
            }
            Some("allowed_tools") => {
                // In a chat, the list is in an object of that name.
                let list = choice.get("allowed_tools").and_then(Value::as_object).unwrap_or(choice);
                let allowed = list.get("tools").and_then(Value::as_array).filter(|allowed| !allowed.is_empty());
                let allowed = allowed.ok_or_else(|| bad("has no list of tools".into()))?;
                let tool = |one: &Value| one.as_object().and_then(|one| named(tools, one)).cloned();
                let shown: Option<Vec<Value>> = allowed.iter().map(tool).collect();
                let shown = shown.ok_or_else(|| bad("allows a function that is none of tools".into()))?;
                match list.get("mode").and_then(Value::as_str) {
                    None | Some("auto") => Offer { shown, ..Offer::default() },
                    Some("required") => Offer { required: shown.clone(), shown, named: false },
                    Some(other) => return Err(bad(format!("has the mode {other:?}: auto or required is expected"))),
                }
            }
            Some(kind) => return Err(Refusal::unsupported("tool_choice", &format!("the type {kind:?}"))),
            None => return Err(bad("has no type".into())),
        },
        Some(other) => return Err(bad(format!("is {other}: auto, none, required or a function is expected"))),
    };
    Ok(offer)
}

/// The tool that a choice names: in an object of its own in a chat, beside the type in responses.
fn named<'t>(tools: &'t [Value], choice: &Map<String, Value>) -> Option<&'t Value> {
    let name = choice.get("function").and_then(|function| function.get("name")).or(choice.get("name"))?;
    tools.iter().find(|tool| tool["function"]["name"] == *name)
}

/// The name of a tool's function, after a check of the tool.
fn checked<'a>(tool: &'a Value, place: &str) -> Result<&'a str, Refusal> {
    check_kind(tool, place)?;
    let Some(Value::Object(function)) = tool.get("function") else {
        return Err(Refusal::bad(format!("{place}.function: an object with a name is expected")).at("tools"));
    };
    function_name(function, &format!("{place}.function"))
}

/// Refuses a tool that is not a function.
fn check_kind(tool: &Value, place: &str) -> Result<(), Refusal> {
    match tool.get("type") {
        Some(Value::String(kind)) if kind == "function" => Ok(()),
        Some(Value::String(kind)) => Err(Refusal::unsupported("tools", &format!("a tool of type {kind:?} ({place})"))),
        _ => {
            let message = format!("{place}: an object with \"type\": \"function\" is expected");
            Err(Refusal::bad(message).at("tools"))
        }
    }
}

/// The name of a function, after a check of its fields.
fn function_name<'a>(function: &'a Map<String, Value>, place: &str) -> Result<&'a str, Refusal> {
    let bad = |what: &str| Err(Refusal::bad(format!("{place}{what}")).at("tools"));
    match function.get("parameters") {
        None | Some(Value::Null | Value::Object(_)) => (),
        Some(_) => return bad(".parameters: a JSON Schema, which is an object, is expected"),
    }
    if function.get("description").is_some_and(|text| !text.is_string() && !text.is_null()) {
        return bad(".description: a text is expected");
    }
    let legal = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.:/".contains(c));
    match function.get("name").and_then(Value::as_str).filter(legal) {
        Some(name) => Ok(name),
        None => bad(".name: a name of letters, digits and _ - . : / is expected"),
    }
}

/// A tool of the Responses interface in the form of chat, which has the fields of the function in an object of their
/// own.
pub(super) fn nested(tool: &Value, index: usize) -> Result<Value, Refusal> {
    let place = format!("tools[{index}]");
    check_kind(tool, &place)?;
    let flat = tool.as_object().ok_or_else(Refusal::bug)?;
    function_name(flat, &place)?;
    let mut function = Map::new();
    for field in ["name", "description", "parameters", "strict"] {
        if let Some(value) = flat.get(field).filter(|value| !value.is_null()) {
            function.insert(field.into(), value.clone());
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

/// The calls of an earlier answer, as chat templates read them: their arguments are an object, where OpenAI has a
/// text with one. A text that is none becomes the only argument of an object, because some templates go through the
/// arguments.
pub(super) fn earlier(calls: &[Value], place: &str) -> Result<Value, Refusal> {
    let one = |(index, call): (usize, &Value)| {
        let place = format!("{place}.tool_calls[{index}]");
        let bad = |what: &str| Refusal::bad(format!("{place}{what}")).at(place.clone());
        let function = call.get("function").and_then(Value::as_object);
        let function = function.ok_or_else(|| bad(".function: an object with name and arguments is expected"))?;
        let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| bad(".function.name: a text is expected"))?;
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Some(Map::new()),
            Some(Value::Object(arguments)) => Some(arguments.clone()),
            Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
            // The arguments that a model wrote need not be JSON. The client sends them back with the error that its
            // tool returned.
            Some(Value::String(text)) => Some(serde_json::from_str(text).unwrap_or_else(|_| {
                let mut as_it_is = Map::new();
                as_it_is.insert("arguments".into(), text.clone().into());
                as_it_is
            })),
            Some(_) => None,
        };
        let arguments = arguments.ok_or_else(|| bad(".function.arguments: a text with a JSON object is expected"))?;
        let mut shown = Map::new();
        if let Some(id) = call.get("id").filter(|id| id.is_string()) {
            shown.insert("id".into(), id.clone());
        }
        shown.insert("type".into(), "function".into());
        shown.insert("function".into(), json!({"name": name, "arguments": arguments}));
        Ok(Value::Object(shown))
    };
    calls.iter().enumerate().map(one).collect()
}

/// How the calls in the answers to a request are found and sent.
#[derive(Debug, Clone)]
pub(super) struct Calling {
    format: CallFormat,
    offered: Arc<[Offered]>,
    /// Whether an answer may have more than one call.
    parallel: bool,
}

impl Calling {
    /// For a model that writes calls in this form, and these tools.
    pub fn new(format: CallFormat, tools: &[Value], parallel: bool) -> Self {
        let tool = |tool: &Value| {
            let function = &tool["function"];
            let name = function["name"].as_str().unwrap_or_default().to_string();
            Offered { name, parameters: function["parameters"].clone() }
        };
        Self { format, offered: tools.iter().map(tool).collect(), parallel }
    }
}

/// A call in an answer.
#[derive(Debug)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

/// A part of an answer, after text and calls have been separated.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    /// Text that belongs to the content.
    Text(String),
    /// The beginning of the call of this number.
    Call { index: usize, id: String, name: String },
    /// A piece of the arguments of the call of this number.
    Arguments { index: usize, text: String },
}

/// The calls of one choice while its text arrives.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// How calls are found; `None` if nothing is a call.
    calling: Option<Calling>,
    parser: Option<CallParser>,
    calls: Vec<Call>,
    /// Whether the arguments that arrive now belong to a call that is left out.
    left_out: bool,
}

impl Calls {
    /// The calls of a choice without any text yet.
    pub fn new(calling: Option<&Calling>) -> Self {
        let parser = calling.map(|calling| CallParser::new(calling.format, calling.offered.clone()));
        Self { calling: calling.cloned(), parser, ..Self::default() }
    }

    /// Adds a text of the answer. Returns the parts that are certain now.
    pub fn push(&mut self, text: String) -> Vec<Told> {
        match &mut self.parser {
            Some(parser) => {
                let said = parser.push(&text);
                self.told(said)
            }
            None => vec![Told::Text(text)],
        }
    }

    /// Returns the parts that were held back, at the end of the answer or when another part begins.
    pub fn finish(&mut self) -> Vec<Told> {
        let said = self.parser.as_mut().map(CallParser::finish).unwrap_or_default();
        self.told(said)
    }

    fn told(&mut self, said: Vec<Said>) -> Vec<Told> {
        said.into_iter().filter_map(|said| self.one(said)).collect()
    }

    fn one(&mut self, said: Said) -> Option<Told> {
        let index = self.calls.len();
        match said {
            Said::Text(text) => Some(Told::Text(text)),
            Said::Call { name } => {
                let calling = self.calling.as_ref()?;
                self.left_out = !calling.parallel && index > 0;
                if self.left_out {
                    return None;
                }
                let id = id(calling.format);
                self.calls.push(Call { id: id.clone(), name: name.clone(), arguments: String::new() });
                Some(Told::Call { index, id, name })
            }
            Said::Arguments(text) if !self.left_out => {
                self.calls.last_mut()?.arguments.push_str(&text);
                Some(Told::Arguments { index: index - 1, text })
            }
            Said::Arguments(_) => None,
        }
    }

    /// Whether the answer has no calls so far.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// All calls so far, in the form of a message.
    pub fn json(&self) -> Value {
        let call = |Call { id, name, arguments }: &Call| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        self.calls.iter().map(call).collect()
    }
}

/// A random id of a call.
fn id(format: CallFormat) -> String {
    const SIGNS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let (prefix, length) = format.id_length().map_or(("call_", 24), |length| ("", length));
    let sign = |_| char::from(SIGNS[(getrandom::u64().unwrap_or_default() % 62) as usize]);
    format!("{prefix}{}", (0..length).map(sign).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}})
    }

    #[test]
    fn a_choice_says_what_is_shown_and_what_must_be_called() {
        let (f, g) = (tool("f"), tool("g"));
        let tools = [f.clone(), g.clone()];
        let found = |choice: Option<Value>| {
            offered(Some(&tools), choice.as_ref()).map_err(|refusal| refusal.body().to_string())
        };
        let offer = |shown: &[&Value], required: &[&Value], named| {
            let all = |list: &[&Value]| list.iter().map(|tool| (*tool).clone()).collect::<Vec<Value>>();
            Ok(Offer { shown: all(shown), required: all(required), named })
        };
        for free in [None, Some(Value::Null), Some("auto".into())] {
            assert_eq!(found(free), offer(&[&f, &g], &[], false));
        }
        assert_eq!(found(Some("none".into())), offer(&[], &[], false));
        assert_eq!(found(Some("required".into())), offer(&[&f, &g], &[&f, &g], false));
        for named in [json!({"type": "function", "function": {"name": "g"}}), json!({"type": "function", "name": "g"})]
        {
            assert_eq!(found(Some(named.clone())), offer(&[&f, &g], &[&g], true));
            let allowed =
                |mode: &str| json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named]}});
            assert_eq!(found(Some(allowed("auto"))), offer(&[&g], &[], false));
            assert_eq!(found(Some(allowed("required"))), offer(&[&g], &[&g], false));
            let flat = json!({"type": "allowed_tools", "mode": "required", "tools": [named]});
            assert_eq!(found(Some(flat)), offer(&[&g], &[&g], false));
        }
        let unknown = json!({"type": "function", "function": {"name": "h"}});
        for wrong in [
            "always".into(),
            json!(3),
            json!({}),
            json!({"type": "custom", "custom": {"name": "f"}}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": []}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": [unknown]}),
            json!({"type": "allowed_tools", "mode": "some", "tools": [{"type": "function", "name": "f"}]}),
            unknown,
        ] {
            let refused = found(Some(wrong.clone())).expect_err("it would be ignored");
            assert!(refused.contains("tool_choice"), "{wrong}: {refused}");
        }
        assert!(offered(None, Some(&"required".into())).is_err(), "there is nothing to call");
    }

    #[test]
    fn malformed_tools_are_refused_with_their_place() {
        for (tool, place) in [
            (json!({}), "tools[0]"),
            (json!({"type": "web_search"}), "web_search"),
            (json!({"type": "function"}), "tools[0].function"),
            (json!({"type": "function", "function": {"name": ""}}), "function.name"),
            (json!({"type": "function", "function": {"name": "a\"b"}}), "function.name"),
            (json!({"type": "function", "function": {"name": "f", "parameters": []}}), "function.parameters"),
            (json!({"type": "function", "function": {"name": "f", "description": 1}}), "function.description"),
        ] {
            let refused = offered(Some(&[tool]), None).expect_err(place);
            assert!(refused.body().to_string().contains(place), "{place}: {refused:?}");
        }
        assert!(offered(Some(&[tool("f"), tool("f")]), None).is_err());
    }

    #[test]
    fn flat_tools_become_those_of_chat() {
        let schema = json!({"type": "object", "properties": {}});
        let flat =
            json!({"type": "function", "name": "f", "parameters": schema, "strict": null, "defer_loading": false});
        assert_eq!(nested(&flat, 0), Ok(tool("f")));
        for (tool, place) in [
            (json!("f"), "tools[3]"),
            (json!({"type": "web_search"}), "web_search"),
            (tool("f"), "tools[3].name"),
            (json!({"type": "function", "name": "f", "parameters": 1}), "tools[3].parameters"),
            (json!({"type": "function", "name": "f", "description": 1}), "tools[3].description"),
        ] {
            let refused = nested(&tool, 3).expect_err(place);
            assert!(refused.body().to_string().contains(place), "{place}: {refused:?}");
        }
    }

    #[test]
    fn the_arguments_of_earlier_calls_become_objects() {
        let call = |arguments: Value| json!({"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}});
        for (given, expected) in [
            (json!("{\"a\": 1}"), json!({"a": 1})),
            (json!({"a": 1}), json!({"a": 1})),
            (json!(""), json!({})),
            (Value::Null, json!({})),
            // Arguments that were cut off, or that are no object, are shown to the model unchanged.
            (json!("{\"a\": 1"), json!({"arguments": "{\"a\": 1"})),
            (json!("[1]"), json!({"arguments": "[1]"})),
            (json!("text"), json!({"arguments": "text"})),
        ] {
            assert_eq!(earlier(&[call(given)], "messages[1]"), Ok(json!([call(expected)])));
        }
        for wrong in [json!(3), json!([1]), json!(true)] {
            let refused = earlier(&[call(json!({})), call(wrong)], "messages[1]").expect_err("no object");
            assert!(refused.body().to_string().contains("messages[1].tool_calls[1].function.arguments"), "{refused:?}");
        }
    }

    #[test]
    fn without_parallel_calls_only_the_first_is_sent() {
        let answer = "A <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call><tool_call>{\"name\": \"g\", \"arguments\": \
                      {\"a\": 1}}</tool_call> B";
        for (parallel, count) in [(true, 2), (false, 1)] {
            let mut calls = Calls::new(Some(&Calling::new(CallFormat::Tagged, &[tool("f"), tool("g")], parallel)));
            let mut told = calls.push(answer.into());
            told.extend(calls.finish());
            let text = |told: &Told| if let Told::Text(text) = told { text.clone() } else { String::new() };
            assert_eq!(told.iter().map(text).collect::<String>(), "A B");
            assert_eq!(calls.json().as_array().map(Vec::len), Some(count));
        }
    }

    #[test]
    fn ids_are_as_templates_want_them() {
        assert!(id(CallFormat::Tagged).starts_with("call_") && id(CallFormat::Tagged) != id(CallFormat::Tagged));
        assert!(id(CallFormat::Marked).len() == 9 && id(CallFormat::Marked).chars().all(|c| c.is_ascii_alphanumeric()));
    }
}
