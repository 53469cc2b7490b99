//! Finds the calls in the text of an answer while it arrives.
//!
//! Text that may become a call is held back. As soon as it is certain that it is a call (it names a tool that was
//! offered, and its arguments begin), the call is reported, and then its arguments piece by piece. Text that turns
//! out to be something else is part of the answer, including its tags: no text of the model is lost. The result does
//! not depend on the pieces in which the text arrives.
use std::mem::take;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::json::{Expects, Json};
use super::{CallFormat, Offered};

/// The possible names of the field that has the arguments.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
/// The tags of a call in tags.
const FUNCTION: &str = "<function=";
const OPEN: &str = "<parameter=";
const CLOSE: &str = "</parameter>";
const END: &str = "</function>";

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Text of the answer.
    Text(String),
    /// The beginning of a call. Its arguments follow.
    Call {
        /// The name of the function, one of those that were offered.
        name: String,
    },
    /// A piece of the arguments of the latest call. All of them together are a JSON object, unless the model wrote
    /// something else or was stopped.
    Arguments(String),
}

/// The place in the answer that the parser has reached.
#[derive(Debug)]
enum State {
    /// In text.
    Text,
    /// In text that may become a call: the held text begins with it.
    Head,
    /// As `Head`, in the object that has the name and the arguments.
    Object(Object),
    /// In the arguments of a call. With `inside`, they are a value of an object that ends after them.
    Arguments { json: Json, inside: bool },
    /// In arguments that are no JSON.
    Broken,
    /// After the arguments, in the rest of the object that has them.
    Rest(Json),
    /// Before the tag that ends a call.
    Closing,
    /// Between the parameters of a call in tags, or in a parameter whose end has not arrived. `any` says whether
    /// there was a parameter before. `searched` is the number of bytes of the held text in which the end of the
    /// parameter does not begin.
    Parameters { any: bool, searched: usize },
}

/// The object of a call, until its arguments begin.
#[derive(Debug)]
struct Object {
    json: Json,
    /// Number of bytes of the held text that have been processed.
    at: usize,
    /// The text of the object, with its control characters escaped.
    text: String,
    /// The place in `text` at which the latest key or value of the outermost object begins.
    from: usize,
    /// The latest key of the outermost object.
    key: String,
    name: Option<String>,
    /// The objects in the outermost object that may be the arguments, with their keys.
    arguments: Vec<(String, Range<usize>)>,
}

/// Finds calls in an answer while its text arrives.
#[derive(Debug)]
pub struct CallParser {
    format: CallFormat,
    offered: Arc<[Offered]>,
    state: State,
    /// Text that is held back until it is decided what it is.
    held: String,
    /// White space before the next part. It belongs to the answer only if text follows.
    blank: String,
    /// Whether there was only white space since the beginning or the latest call, so that a bare object may be a
    /// call.
    fresh: bool,
    /// Number of calls so far.
    calls: usize,
    /// The name of the function whose parameters are read.
    name: String,
    said: Vec<Said>,
}

impl CallFormat {
    fn opening(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &["<tool_call>"],
            Self::Xml => &["<tool_call>", FUNCTION],
            Self::Bare => &["<|python_tag|>"],
            Self::Marked => &["[TOOL_CALLS]"],
        }
    }

    fn closing(self) -> Option<&'static str> {
        matches!(self, Self::Tagged | Self::Xml).then_some("</tool_call>")
    }

    /// The characters that may stand between two calls besides white space.
    fn separators(self) -> &'static [char] {
        match self {
            Self::Tagged | Self::Xml => &[],
            Self::Bare => &[';'],
            Self::Marked => &[',', ']'],
        }
    }
}

impl CallParser {
    /// A parser for an answer of a model that was offered these tools.
    pub fn new(format: CallFormat, offered: Arc<[Offered]>) -> Self {
        Self {
            format,
            offered,
            state: State::Text,
            held: String::new(),
            blank: String::new(),
            fresh: true,
            calls: 0,
            name: String::new(),
            said: Vec::new(),
        }
    }

    /// The number of calls so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Adds a piece of the answer. Returns the parts that are certain now.
    pub fn push(&mut self, piece: &str) -> Vec<Said> {
        self.held.push_str(piece);
        while self.step(false) {}
        take(&mut self.said)
    }

    /// Returns the parts that were held back, at the end of the answer or when another part begins.
    pub fn finish(&mut self) -> Vec<Said> {
        while self.step(true) {}
        if matches!(self.state, State::Parameters { .. }) {
            // The tags that end the call are missing, but no parameter is open.
            self.argue("}");
            self.over();
        }
        let blank = take(&mut self.blank);
        if self.calls == 0 || !self.fresh {
            self.say(&blank);
        }
        self.state = State::Text;
        take(&mut self.said)
    }

    fn say(&mut self, text: &str) {
        match self.said.last_mut() {
            _ if text.is_empty() => (),
            Some(Said::Text(before)) => before.push_str(text),
            _ => self.said.push(Said::Text(text.into())),
        }
    }

    fn argue(&mut self, text: &str) {
        match self.said.last_mut() {
            _ if text.is_empty() => (),
            Some(Said::Arguments(before)) => before.push_str(text),
            _ => self.said.push(Said::Arguments(text.into())),
        }
    }

    /// Reports a call. The white space before it and the text of its head are not part of the answer.
    fn call(&mut self, name: &str) {
        self.blank.clear();
        self.calls += 1;
        self.said.push(Said::Call { name: name.into() });
    }

    fn is_offered(&self, name: &str) -> bool {
        self.offered.iter().any(|tool| tool.name == name)
    }

    /// Makes one step through the held text. Returns false if more text is needed or none is left. With `last`, no
    /// text follows.
    fn step(&mut self, last: bool) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match &mut self.state {
            State::Text => self.text(last),
            State::Head => self.head(last),
            State::Object(_) => self.object(last),
            State::Arguments { .. } => self.arguments(),
            State::Broken => self.broken(last),
            State::Rest(_) => self.rest(),
            State::Closing => self.closing(last),
            State::Parameters { .. } => self.parameters(last),
        }
    }

    /// Removes the first bytes from the held text and returns them.
    fn cut(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }

    /// Handles held text that is not a call after all. Its first character is text, and the rest is examined again.
    fn not_a_call(&mut self) -> bool {
        self.state = State::Text;
        let first = self.held.chars().next().map_or(0, char::len_utf8);
        let text: String = self.held.drain(..first).collect();
        let blank = take(&mut self.blank);
        self.say(&(blank + &text));
        self.fresh = false;
        true
    }

    fn text(&mut self, last: bool) -> bool {
        if self.fresh {
            let separators = if self.calls > 0 { self.format.separators() } else { &[] };
            let blank = self.held.len()
                - self.held.trim_start_matches(|c: char| c.is_whitespace() || separators.contains(&c)).len();
            // The punctuation of a list of calls is not part of the text, whatever follows.
            self.blank.extend(self.held.drain(..blank).filter(|c| !separators.contains(c)));
            let bare = self.format == CallFormat::Bare || self.format == CallFormat::Marked && self.calls > 0;
            if bare && self.held.starts_with('{') {
                self.state = State::Head;
                return true;
            }
        }
        if self.held.is_empty() {
            return false;
        }
        let opening = self.format.opening();
        let found = opening.iter().filter_map(|tag| self.held.find(tag)).min();
        let end = match found {
            Some(at) => at,
            None if last => self.held.len(),
            None => undecided(&self.held, opening),
        };
        let text = self.cut(end);
        let words = text.trim_end().len();
        if words > 0 {
            let blank = take(&mut self.blank);
            self.say(&blank);
            self.say(&text[..words]);
            self.fresh = false;
        }
        self.blank.push_str(&text[words..]);
        if found.is_some() {
            self.state = State::Head;
        }
        found.is_some()
    }

    /// Examines whether the held text begins like a call.
    fn head(&mut self, last: bool) -> bool {
        let tag = self.format.opening().iter().find(|tag| self.held.starts_with(**tag)).map_or(0, |tag| tag.len());
        let body = self.held[tag..].trim_start();
        let at = |body: &str| self.held.len() - body.len();
        let body = match self.format {
            // Its second opening tag is part of the call.
            CallFormat::Xml if self.held.starts_with(FUNCTION) => return self.function(0, last),
            CallFormat::Xml => return self.function(at(body), last),
            CallFormat::Marked if tag > 0 && !body.is_empty() && !body.starts_with(['[', '{']) => {
                return self.named(at(body), last);
            }
            CallFormat::Marked if tag > 0 => body.strip_prefix('[').unwrap_or(body).trim_start(),
            _ => body,
        };
        match body.chars().next() {
            Some('{') => {
                let (json, text, from, key) = (Json::new(), String::new(), 0, String::new());
                let arguments = Vec::new();
                self.state = State::Object(Object { json, at: at(body), text, from, key, name: None, arguments });
                true
            }
            None if !last => false,
            _ => self.not_a_call(),
        }
    }

    /// Reads the object of a call, until its arguments begin or it ends.
    fn object(&mut self, last: bool) -> bool {
        let State::Object(object) = &mut self.state else { return false };
        while let Some(c) = self.held[object.at..].chars().next() {
            let known = |name: &String| self.offered.iter().any(|tool| tool.name == *name);
            let arguments = c == '{' && ARGUMENTS.contains(&object.key.as_str()) && object.expects_value();
            if let (true, Some(name)) = (arguments, &object.name) {
                // An object may have a second name, which has not been examined yet.
                if !known(name) {
                    return self.not_a_call();
                }
                let (name, json, at) = (name.clone(), object.json.clone(), object.at);
                self.held.drain(..at);
                self.call(&name);
                self.state = State::Arguments { json, inside: true };
                return true;
            }
            let named = object.name.is_some();
            if !object.take(c) || !named && object.name.as_ref().is_some_and(|name| !known(name)) {
                return self.not_a_call();
            }
            if object.json.depth() == 0 {
                let (end, text, objects) = (object.at, take(&mut object.text), take(&mut object.arguments));
                let Some((name, arguments)) = self.whole(&text, &objects) else {
                    return self.not_a_call();
                };
                self.held.drain(..end);
                self.call(&name);
                self.argue(&arguments);
                self.over();
                return true;
            }
        }
        last && self.not_a_call()
    }

    /// The name and the arguments of a complete call whose arguments did not directly follow the name. They may stand
    /// before the name, be a text that contains the object, or be missing. `objects` are the objects that may be the
    /// arguments, as they stand in `text`. `None` if this is no call.
    fn whole(&self, text: &str, objects: &[(String, Range<usize>)]) -> Option<(String, String)> {
        let mut fields = serde_json::from_str::<Map<String, Value>>(text).ok()?;
        let name = fields.get("name")?.as_str().filter(|name| self.is_offered(name))?.to_string();
        let arguments = match ARGUMENTS.iter().find_map(|key| Some((*key, fields.remove(*key)?))) {
            // Of two fields with the same key, the last one counts. It is kept as it was written, so that no digit is
            // lost.
            Some((key, Value::Object(_))) => {
                let (_, range) = objects.iter().rfind(|(known, _)| known == key)?;
                text[range.clone()].to_string()
            }
            Some((_, Value::String(text))) => {
                serde_json::from_str::<Map<String, Value>>(&text).ok()?;
                text
            }
            // A tag marks this as a call. Without a tag, an object with a name may be anything.
            None | Some((_, Value::Null)) if self.format != CallFormat::Bare => "{}".into(),
            _ => return None,
        };
        Some((name, arguments))
    }

    /// Handles the end of the arguments and of the object around them.
    fn over(&mut self) {
        self.fresh = true;
        self.state = if self.format.closing().is_some() { State::Closing } else { State::Text };
    }

    /// Reads `[TOOL_CALLS]name[ARGS]{…}`, whose name begins at byte `at`.
    fn named(&mut self, at: usize, last: bool) -> bool {
        let body = &self.held[at..];
        let Some(end) = body.find(['[', '{']) else {
            let name = body.trim_end();
            let may_be = self.offered.iter().any(|tool| tool.name.starts_with(name));
            return if may_be && !last { false } else { self.not_a_call() };
        };
        let name = body[..end].trim_end().to_string();
        if !self.is_offered(&name) {
            return self.not_a_call();
        }
        // The id of the call stands between the marks. The call gets a new id here.
        let mut rest = &body[end..];
        for mark in ["[CALL_ID]", "[ARGS]"] {
            if let Some(after) = rest.strip_prefix(mark) {
                rest = if mark == "[CALL_ID]" {
                    after.trim_start_matches(|c: char| c.is_ascii_alphanumeric())
                } else {
                    after
                };
            } else if mark.starts_with(rest) && !last {
                return false;
            }
        }
        let rest = rest.trim_start();
        match rest.chars().next() {
            Some('{') => {
                let begin = self.held.len() - rest.len();
                self.held.drain(..begin);
                self.call(&name);
                self.state = State::Arguments { json: Json::new(), inside: false };
                true
            }
            None if !last => false,
            _ => self.not_a_call(),
        }
    }

    /// Reads `<function=name>`, which begins at byte `at`.
    fn function(&mut self, at: usize, last: bool) -> bool {
        let body = &self.held[at..];
        let Some(rest) = body.strip_prefix(FUNCTION) else {
            return if FUNCTION.starts_with(body) && !last { false } else { self.not_a_call() };
        };
        let Some((name, _)) = rest.split_once('>') else {
            let may_be = self.offered.iter().any(|tool| tool.name.starts_with(rest.trim()));
            return if may_be && !last { false } else { self.not_a_call() };
        };
        let (end, name) = (at + FUNCTION.len() + name.len() + 1, name.trim().to_string());
        if !self.is_offered(&name) {
            return self.not_a_call();
        }
        self.held.drain(..end);
        self.call(&name);
        self.argue("{");
        self.name = name;
        self.state = State::Parameters { any: false, searched: 0 };
        true
    }

    /// Reads `<parameter=name>value</parameter>` repeatedly, and then `</function>`.
    fn parameters(&mut self, last: bool) -> bool {
        let State::Parameters { any, searched } = self.state else { return false };
        let blank = self.held.len() - self.held.trim_start().len();
        self.held.drain(..blank);
        let body = self.held.as_str();
        if OPEN.starts_with(body) || END.starts_with(body) && body != END {
            if last {
                // The model was stopped inside a tag. If the tag begins another parameter, the arguments stay open.
                if body.len() > 1 && OPEN.starts_with(body) {
                    self.state = State::Text;
                }
                self.held.clear();
            }
            return false;
        }
        if !body.starts_with(OPEN) {
            // This is the end, or other text, with which the call ends as well.
            let end = if body.starts_with(END) { END.len() } else { 0 };
            self.held.drain(..end);
            self.argue("}");
            self.over();
            return true;
        }
        let key_end = body[OPEN.len()..].find('>').map_or(body.len(), |length| OPEN.len() + length);
        let key = body[OPEN.len()..key_end].trim();
        let before = || format!("{}{}: ", if any { ", " } else { "" }, Value::from(key));
        let begin = body.len().min(key_end + 1);
        // Values may be long and arrive in small pieces, so no byte is searched twice.
        let from = searched.max(begin);
        let Some(end) = body[from..].find(CLOSE).map(|length| from + length) else {
            if last {
                // The model was stopped inside a value, so the text of the arguments also ends inside it.
                let value = Value::from(body[begin..].strip_prefix('\n').unwrap_or(&body[begin..])).to_string();
                let cut = before() + &value[..value.len() - 1];
                self.held.clear();
                self.argue(&cut);
                self.state = State::Text;
            } else {
                let searched = body.floor_char_boundary(body.len().saturating_sub(CLOSE.len() - 1)).max(begin);
                self.state = State::Parameters { any, searched };
            }
            return false;
        };
        let written = before() + &self.typed(key, &body[begin..end]);
        self.held.drain(..end + CLOSE.len());
        self.argue(&written);
        self.state = State::Parameters { any: true, searched: 0 };
        true
    }

    /// The value of a parameter as JSON. What reads as JSON is written as it stands, so that no digit of a number is
    /// lost, unless the tool's schema requires a text there. Everything else is a text.
    fn typed(&self, key: &str, value: &str) -> String {
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let read = match value.trim() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            text => text,
        };
        let tool = self.offered.iter().find(|tool| tool.name == self.name);
        let allowed = tool.and_then(|tool| allowed(tool.parameters.get("properties")?.get(key)?));
        let is_text = match (serde_json::from_str::<Value>(read), allowed) {
            (Err(_), _) => true,
            (Ok(_), None) => false,
            (Ok(found), Some(allowed)) => {
                let has = |kind: &str| allowed.contains(&kind);
                match found {
                    Value::Null => !has("null"),
                    Value::String(_) => has("string"),
                    Value::Bool(_) => has("string") && !has("boolean"),
                    Value::Number(_) if !read.contains(['.', 'e', 'E']) && has("integer") => false,
                    Value::Number(_) => has("string") && !has("number"),
                    Value::Array(_) => has("string") && !has("array"),
                    Value::Object(_) => has("string") && !has("object"),
                }
            }
        };
        if is_text { Value::from(value).to_string() } else { read.into() }
    }

    fn arguments(&mut self) -> bool {
        let State::Arguments { json, inside } = &mut self.state else { return false };
        let (mut clean, mut used, outside) = (String::new(), 0, usize::from(*inside));
        let mut next = None;
        for c in self.held.chars() {
            let in_text = json.in_text();
            if !json.push(c) {
                next = Some(State::Broken);
                break;
            }
            used += c.len_utf8();
            escaped(&mut clean, c, in_text);
            if json.depth() == outside {
                next = Some(State::Rest(json.clone()));
                break;
            }
        }
        let inside = *inside;
        self.held.drain(..used);
        self.argue(&clean);
        match next {
            Some(State::Rest(_)) if !inside => self.over(),
            Some(next) => self.state = next,
            None => (),
        }
        !self.held.is_empty()
    }

    /// Arguments that are no JSON are passed to the client unchanged, up to the tag that ends them.
    fn broken(&mut self, last: bool) -> bool {
        let closing = self.format.closing();
        let end = closing.and_then(|tag| self.held.find(tag));
        let upto = match end {
            Some(at) => at,
            None if last => self.held.len(),
            None => undecided(&self.held, closing.as_slice()),
        };
        let text = self.cut(upto);
        self.argue(&text);
        if end.is_some() {
            self.over();
        }
        end.is_some()
    }

    /// Skips the rest of a call's object, which has no meaning. Text after the object is examined again.
    fn rest(&mut self) -> bool {
        let State::Rest(json) = &mut self.state else { return false };
        let mut used = 0;
        let mut ended = false;
        for c in self.held.chars() {
            ended = !json.push(c);
            if ended {
                break;
            }
            used += c.len_utf8();
            if json.depth() == 0 {
                ended = true;
                break;
            }
        }
        self.held.drain(..used);
        if ended {
            self.over();
        }
        ended
    }

    fn closing(&mut self, last: bool) -> bool {
        let tag = self.format.closing().unwrap_or_default();
        // Some models write one closing bracket too many.
        let body = self.held.trim_start_matches(|c: char| c.is_whitespace() || c == '}');
        if body.starts_with(tag) {
            let end = self.held.len() - body.len() + tag.len();
            self.held.drain(..end);
        } else if tag.starts_with(body) {
            if last {
                // The model was stopped inside the tag.
                self.held.clear();
            }
            return false;
        }
        self.state = State::Text;
        true
    }
}

impl Object {
    /// Whether a value of the outermost object may come next.
    fn expects_value(&self) -> bool {
        self.json.depth() == 1 && matches!(self.json.expects(), Expects::Value { .. })
    }

    /// Processes the next character of the held text. Returns false if it cannot be part of an object.
    fn take(&mut self, c: char) -> bool {
        let (before, in_text, value) = (self.json.expects(), self.json.in_text(), self.expects_value());
        if !self.json.push(c) {
            return false;
        }
        let after = self.json.expects();
        if value || self.json.depth() == 1 && matches!(before, Expects::Key { .. }) {
            self.from = self.text.len();
        }
        escaped(&mut self.text, c, in_text);
        self.at += c.len_utf8();
        if c == '}' && self.json.depth() == 1 && !in_text && ARGUMENTS.contains(&self.key.as_str()) {
            self.arguments.push((self.key.clone(), self.from..self.text.len()));
        }
        if self.json.depth() == 1 && in_text && !self.json.in_text() {
            let text = serde_json::from_str::<String>(&self.text[self.from..]).ok();
            match after {
                Expects::Colon => self.key = text.unwrap_or_default(),
                _ if self.key == "name" => self.name = text.or(self.name.take()),
                _ => (),
            }
        }
        true
    }
}

/// The place near the end of `text` at which one of `tags` may begin, if more text follows; the end of `text` if none
/// may.
fn undecided(text: &str, tags: &[&str]) -> usize {
    // An incomplete tag at the end is shorter than the longest tag.
    let longest = tags.iter().map(|tag| tag.len()).max().unwrap_or(0);
    let from = text.floor_char_boundary(text.len().saturating_sub(longest));
    let ends = |at: &usize| tags.iter().any(|tag| tag.starts_with(&text[*at..]));
    text[from..].char_indices().map(|(at, _)| from + at).find(ends).unwrap_or(text.len())
}

/// The kinds of values that a schema allows, by its `type` or those of its alternatives: some schemas write an
/// optional text as `["string", "null"]`, others with `anyOf`. `None` if the schema names no kinds.
fn allowed(schema: &Value) -> Option<Vec<&str>> {
    match schema.get("type") {
        Some(Value::String(kind)) => Some(vec![kind.as_str()]),
        Some(Value::Array(kinds)) => Some(kinds.iter().filter_map(Value::as_str).collect()),
        _ => {
            let alternatives = ["anyOf", "oneOf"].into_iter().find_map(|name| schema.get(name)?.as_array())?;
            let kinds: Option<Vec<Vec<&str>>> = alternatives.iter().map(allowed).collect();
            Some(kinds?.concat())
        }
    }
}

/// Adds a character of a JSON text. Inside a string, a control character becomes an escape.
fn escaped(text: &mut String, c: char, in_text: bool) {
    match c {
        '\n' if in_text => text.push_str("\\n"),
        '\r' if in_text => text.push_str("\\r"),
        '\t' if in_text => text.push_str("\\t"),
        c if in_text && c < ' ' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => text.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const FORMATS: [CallFormat; 4] = [CallFormat::Tagged, CallFormat::Xml, CallFormat::Bare, CallFormat::Marked];

    fn offered() -> Arc<[Offered]> {
        let typed = json!({"type": "object", "properties": {
            "code": {"type": "string"},
            "n": {"type": "integer"},
            "id": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null},
            "zip": {"type": ["string", "null"]},
            "either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
            "open": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Other"}]},
        }});
        let plain =
            ["get_current_temperature", "get_temperature_date", "get_stock_fundamentals", "trending_songs", "f"];
        let plain = plain.map(|name| Offered { name: name.into(), parameters: Value::Null });
        plain.into_iter().chain([Offered { name: "run".into(), parameters: typed }]).collect()
    }

    /// Reads an answer in these pieces. Returns its text, and its calls with their arguments.
    fn read<'t>(format: CallFormat, pieces: impl IntoIterator<Item = &'t str>) -> (String, Vec<(String, String)>) {
        let mut parser = CallParser::new(format, offered());
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        let mut take = |said: Vec<Said>| {
            for said in said {
                match said {
                    Said::Text(said) => text += &said,
                    Said::Call { name } => calls.push((name, String::new())),
                    Said::Arguments(said) => calls.last_mut().expect("a call").1 += &said,
                }
            }
        };
        for piece in pieces {
            take(parser.push(piece));
        }
        take(parser.finish());
        assert_eq!(parser.calls(), calls.len());
        (text, calls)
    }

    /// Reads an answer whole, in single characters, and in two pieces cut everywhere: always with the same result.
    fn in_every_way(format: CallFormat, answer: &str) -> (String, Vec<(String, String)>) {
        let whole = read(format, [answer]);
        let chars: Vec<String> = answer.chars().map(String::from).collect();
        assert_eq!(read(format, chars.iter().map(String::as_str)), whole, "{answer:?} by characters");
        for (at, _) in answer.char_indices() {
            assert_eq!(read(format, [&answer[..at], &answer[at..]]), whole, "{answer:?} cut at {at}");
        }
        whole
    }

    /// Answers in the forms that the authors of the models publish, and their calls.
    #[test]
    fn published_answers_are_read() {
        use CallFormat::{Bare, Marked, Tagged, Xml};
        let temperature = ("get_current_temperature", json!({"location": "San Francisco, CA, USA"}));
        let date = ("get_temperature_date", json!({"location": "San Francisco, CA, USA", "date": "2024-10-01"}));
        let paris = ("get_current_temperature", json!({"location": "Paris", "format": "celsius"}));
        for (format, answer, text, calls) in [
            (
                Tagged,
                "<tool_call>\n{\"name\": \"get_current_temperature\", \"arguments\": {\"location\": \"San Francisco, CA, USA\"}}\n\
                 </tool_call>\n<tool_call>\n{\"name\": \"get_temperature_date\", \"arguments\": {\"location\": \"San Francisco, \
                 CA, USA\", \"date\": \"2024-10-01\"}}\n</tool_call>",
                "",
                vec![temperature, date],
            ),
            (
                Tagged,
                "<tool_call>\n{\"arguments\": {\"symbol\": \"TSLA\"}, \"name\": \"get_stock_fundamentals\"}\n</tool_call>\n",
                "",
                vec![("get_stock_fundamentals", json!({"symbol": "TSLA"}))],
            ),
            (
                Xml,
                "I will run it.\n\n<tool_call>\n<function=run>\n<parameter=code>\nprint(\"1 < 2\")\n\nprint(3)\n</parameter>\n\
                 <parameter=n>\n12\n</parameter>\n<parameter=other>\n{\"a\": [true]}\n</parameter>\n</function>\n</tool_call>",
                "I will run it.",
                vec![("run", json!({"code": "print(\"1 < 2\")\n\nprint(3)", "n": 12, "other": {"a": [true]}}))],
            ),
            (
                Bare,
                "{\"type\": \"function\", \"name\": \"trending_songs\", \"parameters\": {\"n\": \"10\", \"genre\": \"all\"}}",
                "",
                vec![("trending_songs", json!({"n": "10", "genre": "all"}))],
            ),
            (
                Bare,
                "<|python_tag|>{\"name\": \"trending_songs\", \"parameters\": {\"n\": 5}}; {\"name\": \"f\", \"parameters\": {}}",
                "",
                vec![("trending_songs", json!({"n": 5})), ("f", json!({}))],
            ),
            (
                Marked,
                "[TOOL_CALLS] [{\"name\": \"get_current_temperature\", \"arguments\": {\"location\": \"Paris\", \"format\": \
                 \"celsius\"}, \"id\": \"VvvODy9mT\"}, {\"name\": \"f\", \"arguments\": {}}]",
                "",
                vec![paris.clone(), ("f", json!({}))],
            ),
            (
                Marked,
                "One moment. [TOOL_CALLS]get_current_temperature[ARGS]{\"location\": \"Paris\", \"format\": \"celsius\"}[TOOL_CALLS]\
                 f[CALL_ID]abc123XYZ[ARGS]{}",
                "One moment.",
                vec![paris, ("f", json!({}))],
            ),
        ] {
            let (found, called) = in_every_way(format, answer);
            let called: Vec<(&str, Value)> =
                called.iter().map(|(name, text)| (name.as_str(), serde_json::from_str(text).expect(text))).collect();
            assert_eq!((found.as_str(), called), (text, calls), "{answer}");
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        use CallFormat::{Bare, Marked, Tagged, Xml};
        for (format, answer) in [
            (Tagged, "A set {1, 2} and a <tool, or <tool_call without an end. \n"),
            (Tagged, "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
            (Tagged, "<tool_call>\n{\"name\": \"f\", arguments: {}}\n</tool_call>"),
            (Tagged, "<tool_call>\n{\"name\": \"f\", \"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
            (Tagged, "<tool_call>get weather</tool_call>"),
            (Tagged, "<tool_call>\n{\"name\": \"f\", \"argum"),
            (Tagged, "<tool_call>\n{\"name\": \"f\", \"arguments\": [1]}\n</tool_call>"),
            (Tagged, "  \n"),
            (Xml, "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
            (Xml, "if a <function=b: pass"),
            (Bare, "{\"name\": \"f\"}"),
            (Bare, "{\"name\": \"unknown\", \"parameters\": {}}"),
            (Bare, "{\"name\": \"f\", \"name\": \"unknown\", \"parameters\": {}}"),
            (Bare, "{\"a\": 1, \"b\": [2, {\"name\": \"f\", \"parameters\": {}}]} is JSON"),
            (Bare, "Use {\"name\": \"f\", \"parameters\": {}} for that."),
            (Bare, "<|python_tag|>brave_search.call(query=\"x\")"),
            (Marked, "[TOOL_CALLS]unknown[ARGS]{}"),
            (Marked, "[TOOL_CALLS] [1, 2]"),
            (Marked, "[TOOL"),
        ] {
            assert_eq!(in_every_way(format, answer), (answer.to_string(), vec![]), "{format:?}");
        }
    }

    #[test]
    fn calls_with_small_faults_are_read() {
        use CallFormat::{Bare, Marked, Tagged, Xml};
        for (format, answer, text, arguments) in [
            (
                Tagged,
                "a <tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"b\nc\"}}</tool_call> d",
                "a d",
                "{\"a\":\"b\\nc\"}",
            ),
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":{}}", "", "{}"),
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":{}</tool_call>", "", "{}"),
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":{}}}</tool_call>", "", "{}"),
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":{}}} b", "} b", "{}"),
            (Tagged, "<tool_call>{\"name\":\"f\"}</tool_call>", "", "{}"),
            // Arguments before the name also stay as they were written.
            (
                Tagged,
                "<tool_call>{\"arguments\": {\"a\": 12345678901234567890123, \"b\": \"c\nd\"}, \"name\": \"f\"}",
                "",
                "{\"a\": 12345678901234567890123, \"b\": \"c\\nd\"}",
            ),
            (
                Bare,
                "{\"parameters\": 1, \"x\": {\"y\": {}}, \"parameters\": {\"a\": {\"b\": 1.50}}, \"name\": \"f\"}",
                "",
                "{\"a\": {\"b\": 1.50}}",
            ),
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1}\"}</tool_call>", "", "{\"a\": 1}"),
            (
                Tagged,
                "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"</tool_call>\"}}</tool_call>",
                "",
                "{\"a\":\"</tool_call>\"}",
            ),
            (Tagged, "<tool_call> <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>", "<tool_call>", "{}"),
            (Xml, "<function=run>\n<parameter=n>many</parameter></function>", "", "{\"n\": \"many\"}"),
            (Marked, "[TOOL_CALLS]f{\"a\": 1} done", " done", "{\"a\": 1}"),
            (Marked, "[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}", "", "{}"),
            // The punctuation of the list is not part of the text.
            (Marked, "[TOOL_CALLS][{\"name\":\"f\",\"arguments\":{}}] Done.", " Done.", "{}"),
            // Without the tags that end it, a call is complete if no parameter had begun.
            (Xml, "<function=run>", "", "{}"),
            (Xml, "<tool_call><function=run><parameter=n>1</parameter>\n", "", "{\"n\": 1}"),
            (Xml, "<tool_call><function=run><parameter=n>1</parameter>\n</func", "", "{\"n\": 1}"),
            (Xml, "<tool_call><function=run><parameter=n>1</parameter>\n<para", "", "{\"n\": 1"),
            // Arguments that are no JSON are passed to the client, and so are arguments that were cut off.
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": b}}\n</tool_call> c", " c", "{\"a\": b}}\n"),
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": \"b", "", "{\"a\": \"b"),
            (Xml, "<tool_call><function=run><parameter=code>\nprint(", "", "{\"code\": \"print("),
        ] {
            let (found, calls) = in_every_way(format, answer);
            let [(_, found_arguments)] = &calls[..] else { panic!("{answer}: {calls:?}") };
            assert_eq!((found.as_str(), found_arguments.as_str()), (text, arguments), "{answer}");
        }
    }

    #[test]
    fn values_are_what_the_schema_says() {
        let huge = "12345678901234567890123";
        for (key, value, expected) in [
            ("code", "null", "\"null\""),
            ("code", "12", "\"12\""),
            // A text that may be null.
            ("id", "007", "\"007\""),
            ("id", "12345", "\"12345\""),
            ("id", "true", "\"true\""),
            ("id", "\"a\"", "\"\\\"a\\\"\""),
            ("id", "null", "null"),
            ("id", "None", "null"),
            ("zip", "12345", "\"12345\""),
            ("zip", "{\"a\":1}", "\"{\\\"a\\\":1}\""),
            ("zip", "null", "null"),
            ("either", "12", "12"),
            ("either", "1.5", "\"1.5\""),
            ("either", "null", "\"null\""),
            ("either", "twelve", "\"twelve\""),
            // All digits of a number are kept.
            ("n", huge, huge),
            ("n", "1.50", "1.50"),
            ("n", "None", "\"None\""),
            // The schema says nothing about the value, so it is read as JSON.
            ("other", huge, huge),
            ("other", "[12345678901234567890123, 1]", "[12345678901234567890123, 1]"),
            ("other", "True", "true"),
            ("other", "None", "null"),
            ("open", "{\"a\": 1}", "{\"a\": 1}"),
        ] {
            let answer = format!("<function=run><parameter={key}>\n{value}\n</parameter></function>");
            let (text, calls) = in_every_way(CallFormat::Xml, &answer);
            let arguments = format!("{{\"{key}\": {expected}}}");
            assert_eq!((text.as_str(), calls), ("", vec![("run".to_string(), arguments)]), "{answer}");
        }
    }

    #[test]
    fn a_long_value_is_searched_once() {
        let mut parser = CallParser::new(CallFormat::Xml, offered());
        parser.push("<function=run><parameter=code>");
        for _ in 0..1000 {
            assert_eq!(parser.push("é"), []);
        }
        let State::Parameters { searched, .. } = parser.state else { panic!("{:?}", parser.state) };
        assert!(searched > 1900, "{searched}");
        let told = parser.push("</parameter></function>");
        assert_eq!(told, [Said::Arguments(format!("\"code\": \"{}\"}}", "é".repeat(1000)))]);
    }

    #[test]
    fn nothing_waits_that_cannot_become_a_call() {
        let mut parser = CallParser::new(CallFormat::Tagged, offered());
        assert_eq!(parser.push("a < b"), [Said::Text("a < b".into())]);
        assert_eq!(parser.push(" <tool"), []);
        assert_eq!(parser.push("box>"), [Said::Text(" <toolbox>".into())]);
        assert_eq!(parser.push("<tool_call>{\"name\": \"g"), []);
        assert_eq!(parser.push("\""), [Said::Text("<tool_call>{\"name\": \"g\"".into())]);
        assert_eq!(parser.push("<tool_call>{\"name\": \"f\", \"arguments\": "), []);
        assert_eq!(parser.push("{\"a"), [Said::Call { name: "f".into() }, Said::Arguments("{\"a".into())]);
        assert_eq!(parser.push("\": 1"), [Said::Arguments("\": 1".into())]);
        let mut parser = CallParser::new(CallFormat::Bare, offered());
        assert_eq!(parser.push("{\"x\": 1"), []);
        assert_eq!(parser.push(" y"), [Said::Text("{\"x\": 1 y".into())]);
        assert_eq!(parser.push("{\"name\""), [Said::Text("{\"name\"".into())]);
    }

    /// Pieces from which answers are put together that look much like calls.
    fn fragment() -> impl Strategy<Value = String> {
        let fixed = [
            "<tool_call>",
            "</tool_call>",
            "<function=run>",
            "</function>",
            "<parameter=code>",
            "</parameter>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[CALL_ID]",
            "<|python_tag|>",
            "{\"name\": \"f\", \"arguments\": ",
            "{\"name\": \"f\", \"parameters\": ",
            "{\"name\": \"none\", \"arguments\": ",
            "{\"arguments\": {}, \"name\": \"f\"",
            "f",
            "run",
            "{",
            "}",
            "[",
            "]",
            ",",
            ";",
            "\"",
            "\\",
            "<",
            "\n",
            " ",
            "é",
            "{}",
            "}}",
        ];
        prop_oneof![
            8 => proptest::sample::select(fixed.to_vec()).prop_map(String::from),
            1 => (0..9).prop_map(|n| format!(" word{n} ")),
            1 => (0..9).prop_map(|n| format!("{{\"a\": \"word{n}\"}}")),
        ]
    }

    proptest! {
        /// For every text and every division into pieces, the parser does not panic, the result does not depend on
        /// the pieces, and no text is lost.
        #[test]
        fn any_text_in_any_pieces(fragments in proptest::collection::vec(fragment(), 0..24), cuts in proptest::collection::vec(0usize..400, 0..12)) {
            let answer = fragments.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| answer.floor_char_boundary(at.min(answer.len()))).collect();
            cuts.sort_unstable();
            for format in FORMATS {
                let whole = read(format, [answer.as_str()]);
                let ends = cuts.iter().copied().chain([answer.len()]);
                let mut from = 0;
                let pieces: Vec<&str> = ends.map(|to| &answer[std::mem::replace(&mut from, to)..to]).collect();
                prop_assert_eq!(&read(format, pieces), &whole);
                let (text, calls) = whole;
                if calls.is_empty() {
                    prop_assert_eq!(&text, &answer);
                }
                let said = calls.iter().fold(text, |all, (_, arguments)| all + arguments);
                for n in 0..9 {
                    let word = format!("word{n}");
                    prop_assert_eq!(said.matches(&word).count(), answer.matches(&word).count(), "{:?} {}", format, answer);
                }
            }
        }

        /// The same properties for texts of any characters.
        #[test]
        fn any_characters(answer in "\\PC{0,40}") {
            for format in FORMATS {
                let (text, calls) = in_every_way(format, &answer);
                prop_assert!(!calls.is_empty() || text == answer);
            }
        }
    }
}
