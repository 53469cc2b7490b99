//! The body of `/v1/responses`, and how it becomes that of a chat.
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::engine::Settings;
use crate::serve::body::{ChatBody, ChatMessage, Common, Content, Events, MOST_MESSAGES, Reasoning};
use crate::serve::reading::in_words;
use crate::serve::refusal::Refusal;
use crate::serve::tools;

/// The value in `include` with which the probabilities of the answer's tokens are part of the response.
const LOGPROBS: &str = "message.output_text.logprobs";

/// The body of `/v1/responses`.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::serve) struct ResponsesBody {
    /// A text, which is a message of the user, or a list of items: messages, the reasoning and the calls of earlier
    /// answers, and the results of calls.
    #[schema(value_type = Object)]
    input: Value,
    /// The system's message, before all others.
    instructions: Option<String>,
    #[serde(flatten)]
    pub common: Common,
    /// The most tokens to generate, reasoning included.
    max_output_tokens: Option<usize>,
    /// How the model thinks. The effort `none` switches the thinking off; everything else has no effect.
    reasoning: Option<Reasoning>,
    /// The form of the answer.
    text: Option<TextForm>,
    /// The functions that the model may call: `{"type": "function", "name", "description", "parameters"}`.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// `auto`, which is the default, `none`, `required`, a function that must be called, or some of the tools
    /// (`allowed_tools`).
    #[schema(value_type = Option<String>)]
    tool_choice: Option<Value>,
    /// Whether an answer may have more than one call. If not, only the first is returned.
    parallel_tool_calls: Option<bool>,
    /// With `message.output_text.logprobs` in it, the message has the probabilities of its tokens.
    include: Option<Vec<String>>,
    /// How many likely tokens are listed at each place.
    top_logprobs: Option<usize>,
    /// Notes of the client, which the response repeats.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// An identifier of the end user. The response repeats it.
    user: Option<String>,
    /// A newer name of `user`.
    safety_identifier: Option<String>,
    /// Has no effect, because prompts with a common beginning share it in any case. The response repeats it.
    prompt_cache_key: Option<String>,
    /// `disabled`. A conversation that does not fit is refused.
    truncation: Option<String>,
    /// Variables of the chat template, as in a chat.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the model thinks.
    enable_thinking: Option<bool>,
    background: Option<bool>,
    previous_response_id: Option<Value>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    context_management: Option<Value>,
    moderation: Option<Value>,
    /// The effort, with the name that it has in a chat.
    reasoning_effort: Option<String>,
    /// The most tokens to generate, with the name that the field has in a chat.
    max_completion_tokens: Option<usize>,
    logprobs: Option<Value>,
    functions: Option<Value>,
    function_call: Option<Value>,
    reasoning_format: Option<Value>,
    messages: Option<Value>,
}

/// The form of the answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(in crate::serve) struct TextForm {
    /// What the answer must look like: `{"type": "text"}`, `{"type": "json_object"}` or
    /// `{"type": "json_schema", "name", "schema"}`. The thinking before it is free.
    #[schema(value_type = Option<Object>)]
    format: Option<Value>,
}

/// An item of the input. Which of its fields count depends on its type.
#[derive(Debug, Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<Value>,
    summary: Option<Value>,
    encrypted_content: Option<String>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<Value>,
}

/// A part of the text of a reasoning.
#[derive(Debug, Deserialize)]
struct Thought {
    text: String,
}

/// The fields of a request that its response repeats.
#[derive(Debug, Default)]
pub(in crate::serve) struct Echo(Map<String, Value>);

impl ResponsesBody {
    /// The chat that this body describes, and the fields that its response repeats.
    pub fn chat(self) -> Result<(ChatBody, Echo), Refusal> {
        self.refuse_unsupported()?;
        self.check_notes()?;
        let mut echo = self.echo();
        let mut chat = ChatBody::default();
        // Agents list tools that run on OpenAI's own servers beside their functions, and work without those that are
        // missing. A choice that names such a tool is refused below.
        let function = |tool: &Value| tool.get("type").is_none_or(|kind| !kind.is_string() || kind == "function");
        let tools: Vec<Value> = self.tools.unwrap_or_default().into_iter().filter(function).collect();
        let nested = tools.iter().enumerate().map(|(index, tool)| tools::nested(tool, index));
        let nested = nested.collect::<Result<Vec<_>, _>>()?;
        let shows = !nested.is_empty() && self.tool_choice.as_ref().is_none_or(|choice| choice != "none");
        if self.include.as_ref().is_some_and(|include| include.iter().any(|name| name == LOGPROBS)) {
            if shows {
                // It is not known which tokens belong to the message and which to a call.
                let what = "the probabilities of an answer that may have calls";
                return Err(Refusal::unsupported("include", what));
            }
            chat.logprobs = Some(true);
            chat.top_logprobs = self.top_logprobs;
        } else if self.top_logprobs.is_some_and(|top| top > 0) {
            let message = format!("top_logprobs is given, and include does not have {LOGPROBS:?}");
            return Err(Refusal::bad(message).at("top_logprobs"));
        }
        echo.0.insert("tools".into(), tools.iter().map(shown_tool).collect());
        chat.tools = Some(nested);
        chat.tool_choice = self.tool_choice;
        chat.parallel_tool_calls = self.parallel_tool_calls;
        chat.max_completion_tokens = self.max_output_tokens.or(self.max_completion_tokens);
        chat.reasoning = self.reasoning;
        chat.reasoning_effort = self.reasoning_effort;
        chat.enable_thinking = self.enable_thinking;
        chat.chat_template_kwargs = self.chat_template_kwargs;
        chat.messages = messages(self.instructions, self.input)?;
        chat.common = self.common;
        if let Some(format) = self.text.and_then(|text| text.format) {
            // A chat may leave the schema out, and then means any object.
            let has = |field: &str| format.get(field).is_some_and(|value| !value.is_null());
            if format.get("type").is_some_and(|kind| kind == "json_schema") && !has("schema") && !has("json_schema") {
                let message = "text.format.schema is missing: a JSON Schema is expected";
                return Err(Refusal::bad(message).at("text.format"));
            }
            chat.common.response_format = Some(format);
        }
        Ok((chat, echo))
    }

    /// Refuses fields that would change the response and are not supported.
    fn refuse_unsupported(&self) -> Result<(), Refusal> {
        let asked = |value: &Option<Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::Array(entries)) => !entries.is_empty(),
            Some(_) => true,
        };
        let own = matches!(self.common.events(), Events::Chunks | Events::Run);
        let cut = self.truncation.as_ref().is_some_and(|way| way != "disabled");
        let given = |value: &Option<Value>| asked(value) && *value != Some(Value::Bool(false));
        Refusal::unless_supported(&[
            ("messages", "a chat (its messages are the input here)", given(&self.messages)),
            ("response_format", "a form of the answer outside of text.format", self.common.response_format.is_some()),
            ("logprobs", "the switch of a chat (include has it here)", given(&self.logprobs)),
            ("functions", "calling functions in the older form", given(&self.functions)),
            ("function_call", "calling functions in the older form", given(&self.function_call)),
            ("reasoning_format", "a place of the reasoning", given(&self.reasoning_format)),
            ("previous_response_id", "an earlier response (nothing is stored)", asked(&self.previous_response_id)),
            ("conversation", "a conversation kept by the server", asked(&self.conversation)),
            ("background", "a response that is fetched later", self.background == Some(true)),
            ("prompt", "a prompt kept by the server", asked(&self.prompt)),
            ("truncation", "anything but \"disabled\"", cut),
            ("context_management", "shortening the conversation", asked(&self.context_management)),
            ("moderation", "a moderation", asked(&self.moderation)),
            ("n", "more than one answer", self.common.n.is_some_and(|n| n != 1)),
            ("secateur.events", "anything but \"none\" and \"comments\" in a response", own),
        ])
    }

    /// Refuses notes of the client that exceed OpenAI's limits, because the response repeats them and holds them
    /// until its end.
    fn check_notes(&self) -> Result<(), Refusal> {
        const PAIRS: usize = 16;
        const KEY: usize = 64;
        const TEXT: usize = 512;
        let bad = |field: &str, expected: String| Err(Refusal::bad(format!("{field}: {expected}")).at(field));
        if let Some(notes) = &self.metadata {
            let short = |(key, value): (&String, &Value)| {
                key.chars().count() <= KEY && value.as_str().is_some_and(|text| text.chars().count() <= TEXT)
            };
            if notes.len() > PAIRS || !notes.iter().all(short) {
                let expected = format!("at most {PAIRS} texts of {TEXT} characters, with keys of {KEY}, are expected");
                return bad("metadata", expected);
            }
        }
        for (field, text) in [
            ("user", &self.user),
            ("safety_identifier", &self.safety_identifier),
            ("prompt_cache_key", &self.prompt_cache_key),
        ] {
            if text.as_ref().is_some_and(|text| text.chars().count() > TEXT) {
                return bad(field, format!("at most {TEXT} characters are expected"));
            }
        }
        Ok(())
    }

    /// The fields that the response repeats, except the tools.
    fn echo(&self) -> Echo {
        let effort = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_ref());
        let effort = effort.or(self.reasoning_effort.as_ref());
        let format = self.text.as_ref().and_then(|text| text.format.clone());
        let fields = json!({
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens.or(self.max_completion_tokens),
            "max_tool_calls": null,
            "metadata": self.metadata.clone().unwrap_or_default(),
            "parallel_tool_calls": self.parallel_tool_calls != Some(false),
            "previous_response_id": null,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": effort, "summary": null},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": false,
            "text": {"format": format.unwrap_or_else(|| json!({"type": "text"}))},
            "tool_choice": self.tool_choice.as_ref().map_or_else(|| "auto".into(), shown_choice),
            "top_logprobs": self.top_logprobs.unwrap_or(0),
            "truncation": "disabled",
            "user": self.user,
        });
        match fields {
            Value::Object(fields) => Echo(fields),
            _ => Echo::default(),
        }
    }
}

impl Echo {
    /// The repeated fields, completed with those of `settings`.
    pub fn fields(self, settings: &Settings) -> Map<String, Value> {
        let Self(mut fields) = self;
        let sampling = &settings.sampling;
        for (name, value) in [
            ("temperature", sampling.temperature),
            ("top_p", sampling.top_p),
            ("frequency_penalty", sampling.frequency_penalty),
            ("presence_penalty", sampling.presence_penalty),
        ] {
            // The shortest decimal number with these 32 bits is the number that the client wrote.
            fields.insert(name.into(), value.to_string().parse::<f64>().ok().into());
        }
        fields
    }
}

/// A tool as responses repeat it: with the fields that clients expect, and no others.
fn shown_tool(tool: &Value) -> Value {
    let fields = ["type", "name", "description", "parameters", "strict"];
    fields.into_iter().map(|field| (field.to_string(), tool[field].clone())).collect::<Map<_, _>>().into()
}

/// A choice of tools as responses repeat it.
fn shown_choice(choice: &Value) -> Value {
    let Some(choice) = choice.as_object() else { return choice.clone() };
    let mut shown = Map::new();
    for field in ["type", "name", "mode"] {
        if let Some(text) = choice.get(field).filter(|text| text.is_string()) {
            shown.insert(field.into(), text.clone());
        }
    }
    if let Some(tools) = choice.get("tools").and_then(Value::as_array) {
        let named = |tool: &Value| json!({"type": tool["type"], "name": tool["name"]});
        shown.insert("tools".into(), tools.iter().map(named).collect());
    }
    shown.into()
}

/// The conversation that an input describes.
fn messages(instructions: Option<String>, input: Value) -> Result<Vec<ChatMessage>, Refusal> {
    let mut conversation = Conversation::default();
    if let Some(text) = instructions {
        conversation.add("system", text);
    }
    match input {
        Value::String(text) => conversation.add("user", text),
        Value::Array(items) => {
            if items.len() > MOST_MESSAGES {
                let found = items.len();
                let message = format!("input has {found} items: at most {MOST_MESSAGES} are expected");
                return Err(Refusal::bad(message).at("input"));
            }
            for (index, item) in items.into_iter().enumerate() {
                conversation.item(item, &format!("input[{index}]"))?;
            }
        }
        _ => return Err(Refusal::bad("input: a text or a list of items is expected").at("input")),
    }
    conversation.close();
    let mut messages = conversation.messages;
    // Many chat templates take one message of the system, and only at the beginning.
    let system = |message: &ChatMessage| ["system", "developer"].contains(&message.role.as_str());
    let leading = messages.iter().take_while(|message| system(message)).count();
    if leading > 1 {
        let text = |message: &ChatMessage| message.content.text("instructions");
        let texts = messages.drain(..leading).map(|message| text(&message)).collect::<Result<Vec<_>, _>>()?;
        let content = Content::Text(texts.join("\n\n"));
        messages.insert(0, ChatMessage { role: "system".into(), content, ..ChatMessage::default() });
    }
    Ok(messages)
}

/// A conversation while its items are read. Reasoning, text and calls of one answer are separate items here and one
/// message in a chat.
#[derive(Default)]
struct Conversation {
    messages: Vec<ChatMessage>,
    /// The reasoning of the answer to which the latest items belong.
    thinking: Option<String>,
    text: Option<String>,
    calls: Vec<Value>,
}

impl Conversation {
    /// Adds a message that the model did not write.
    fn add(&mut self, role: &str, text: String) {
        self.close();
        self.messages.push(ChatMessage { role: role.into(), content: Content::Text(text), ..ChatMessage::default() });
    }

    /// Ends the current answer. Later items belong to another message.
    fn close(&mut self) {
        let (thinking, text, calls) = (self.thinking.take(), self.text.take(), std::mem::take(&mut self.calls));
        // Reasoning without an answer, such as one that was cut off, is left out.
        if text.is_none() && calls.is_empty() {
            return;
        }
        self.messages.push(ChatMessage {
            role: "assistant".into(),
            content: Content::Text(text.unwrap_or_default()),
            reasoning_content: thinking.filter(|text| !text.is_empty()),
            tool_calls: (!calls.is_empty()).then_some(calls),
            ..ChatMessage::default()
        });
    }

    fn item(&mut self, item: Value, place: &str) -> Result<(), Refusal> {
        let item: Item =
            serde_json::from_value(item).map_err(|e| Refusal::bad(format!("{place}: {}", in_words(&e))).at(place))?;
        let expected = |value: Option<String>, field: &str| {
            let message = || Refusal::bad(format!("{place}.{field}: a text is expected")).at(place);
            value.filter(|text| !text.is_empty()).ok_or_else(message)
        };
        match (item.kind.as_deref(), item.role.as_deref()) {
            (Some("message"), None) => {
                let message = format!("{place}.role is missing: system, developer, user or assistant is expected");
                return Err(Refusal::bad(message).at(place));
            }
            (None | Some("message"), Some("assistant")) => {
                // After a text, another message begins. After a call, the same answer continues.
                if self.text.is_some() && self.calls.is_empty() {
                    self.close();
                }
                let text = text(item.content.or(Some("".into())), &format!("{place}.content"))?;
                self.text.get_or_insert_default().push_str(&text);
            }
            (None | Some("message"), Some(role @ ("system" | "developer" | "user"))) => {
                let text = text(item.content, &format!("{place}.content"))?;
                self.add(role, text);
            }
            (None | Some("message"), Some(role)) => {
                let message = format!("{place}.role is {role:?}: system, developer, user or assistant is expected");
                return Err(Refusal::bad(message).at(place));
            }
            (Some("reasoning"), _) => {
                // Between two calls, the same answer continues.
                if self.text.is_some() && self.calls.is_empty() {
                    self.close();
                }
                let thought = thought(&item, place)?;
                let thinking = self.thinking.get_or_insert_default();
                if !thinking.is_empty() && !thought.is_empty() {
                    thinking.push('\n');
                }
                thinking.push_str(&thought);
            }
            (Some("function_call"), _) => {
                let (id, name) = (expected(item.call_id, "call_id")?, expected(item.name, "name")?);
                // An empty text stands for no arguments, as in a chat.
                let arguments = item.arguments.unwrap_or_default();
                let function = json!({"name": name, "arguments": arguments});
                self.calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            (Some("function_call_output"), _) => {
                let id = expected(item.call_id, "call_id")?;
                let text = text(item.output, &format!("{place}.output"))?;
                self.add("tool", text);
                if let Some(message) = self.messages.last_mut() {
                    message.tool_call_id = Some(id);
                }
            }
            (Some("item_reference"), _) => {
                return Err(Refusal::unsupported(
                    place,
                    "a reference to an earlier item (nothing is stored: with store false, clients send whole items)",
                ));
            }
            (Some(kind), _) => return Err(Refusal::unsupported(place, &format!("an item of type {kind:?}"))),
            (None, None) => return Err(Refusal::bad(format!("{place}: a type or a role is expected")).at(place)),
        }
        Ok(())
    }
}

/// The text of a content: a text, or parts that are all text.
fn text(content: Option<Value>, place: &str) -> Result<String, Refusal> {
    let expected = || Refusal::bad(format!("{place}: a text or a list of parts is expected")).at(place);
    let content: Content = serde_json::from_value(content.ok_or_else(expected)?).map_err(|_| expected())?;
    match content {
        Content::Text(text) => Ok(text),
        parts => parts.text(place),
    }
}

/// The text of an earlier answer's reasoning: its content, or its summary if a client keeps only that.
fn thought(item: &Item, place: &str) -> Result<String, Refusal> {
    let texts = |field: &str, value: &Option<Value>| match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(parts) => <Vec<Thought>>::deserialize(parts)
            .map(|parts| parts.into_iter().map(|part| part.text).collect())
            .map_err(|e| Refusal::bad(format!("{place}.{field}: {}", in_words(&e))).at(place)),
    };
    let (content, summary) = (texts("content", &item.content)?, texts("summary", &item.summary)?);
    if content.is_empty() && summary.is_empty() && item.encrypted_content.is_some() {
        return Err(Refusal::unsupported(&format!("{place}.encrypted_content"), "a reasoning of another server"));
    }
    let texts: Vec<String> = if content.is_empty() { summary } else { content };
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(fields: Value) -> ResponsesBody {
        serde_json::from_value(fields).expect("a body")
    }

    /// Roles and contents, with the thinking and the names of calls for messages that have them.
    fn shown(input: Value) -> Vec<String> {
        let show = |message: &ChatMessage| {
            let mut shown = format!("{}: {}", message.role, message.content.text("").expect("text"));
            if let Some(thinking) = &message.reasoning_content {
                shown += &format!(" [{thinking}]");
            }
            for call in message.tool_calls.iter().flatten() {
                shown += &format!(" {}({})", call["function"]["name"], call["function"]["arguments"]);
            }
            shown + message.tool_call_id.as_deref().unwrap_or("")
        };
        let (chat, _) = body(json!({"instructions": "Be brief.", "input": input})).chat().expect("a chat");
        chat.messages.iter().map(show).collect()
    }

    #[test]
    fn items_of_one_answer_become_one_message() {
        assert_eq!(shown("Hi".into()), ["system: Be brief.", "user: Hi"]);
        let parts = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
        let reasoning = |text: &str| json!({"type": "reasoning", "id": "rs", "summary": [], "content": parts("reasoning_text", text)});
        let said = |text: &str| json!({"type": "message", "role": "assistant", "content": parts("output_text", text)});
        let call = |name: &str| json!({"type": "function_call", "call_id": "c", "name": name, "arguments": "{}"});
        let result = |text: &str| json!({"type": "function_call_output", "call_id": "c", "output": text});
        let found = shown(json!([
            {"role": "developer", "content": "Now."},
            {"role": "user", "content": parts("input_text", "Hi")},
            reasoning("hm"), said("Let me"), call("f"), call("g"), said(" look."), result("1"), result("2"),
            said("One."), said("Two."),
            {"type": "message", "role": "user", "content": "And?"},
            // The item that remains of a reasoning if a client does not keep the text.
            {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": null},
            {"type": "reasoning", "id": "rs", "summary": parts("summary_text", "in short")},
            call("f"),
        ]));
        let expected = [
            "system: Be brief.\n\nNow.",
            "user: Hi",
            "assistant: Let me look. [hm] \"f\"(\"{}\") \"g\"(\"{}\")",
            "tool: 1c",
            "tool: 2c",
            "assistant: One.",
            "assistant: Two.",
            "user: And?",
            "assistant:  [in short] \"f\"(\"{}\")",
        ];
        assert_eq!(found, expected);
    }

    /// What agents send by default, and items that remain of a conversation.
    #[test]
    fn what_agents_send_becomes_a_chat() {
        let tools = json!([{"type": "function", "name": "f"}, {"type": "web_search"}, {"type": "custom", "name": "g"}]);
        let of = |fields: Value| body(fields).chat().map_err(|refusal| refusal.body().to_string());
        let (chat, echo) = of(json!({"input": "x", "tools": tools})).expect("a chat");
        assert_eq!(chat.tools.map(|tools| tools.len()), Some(1));
        assert_eq!(echo.0["tools"].as_array().map(Vec::len), Some(1));
        // Reasoning without an answer, and reasoning between two calls.
        let reasoning = |text: &str| json!({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]});
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
        let result = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "1"});
        let found = shown(json!([
            {"role": "user", "content": "a"}, {"type": "reasoning", "summary": [], "encrypted_content": null},
            {"role": "user", "content": "b"}, reasoning("cut"), {"role": "user", "content": "c"},
            reasoning("one"), call("1"), reasoning("two"), call("2"), result("1"), result("2"),
            {"role": "assistant", "content": null}, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        ]));
        let expected = [
            "system: Be brief.",
            "user: a",
            "user: b",
            "user: c",
            "assistant:  [one\ntwo] \"f\"(\"{}\") \"f\"(\"{}\")",
            "tool: 11",
            "tool: 12",
            "assistant: ",
            "assistant: No.",
        ];
        assert_eq!(found, expected);
        for (fields, part) in [
            (json!({"metadata": {"a": [0]}}), "metadata"),
            (json!({"metadata": {"a": "x".repeat(513)}}), "metadata"),
            (json!({"user": "x".repeat(513)}), "user"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"functions": [{"name": "f"}]}), "functions"),
            (json!({"input": vec![json!({"role": "user", "content": ""}); 4097]}), "4097 items"),
            (json!({"input": [{"type": "message", "content": "x"}]}), "role is missing"),
        ] {
            let mut all = json!({"input": "x"});
            fields.as_object().expect("fields").iter().for_each(|(name, value)| all[name] = value.clone());
            let refused = of(all).expect_err(part);
            assert!(refused.contains(part), "{part}: {refused}");
        }
        let (chat, echo) =
            of(json!({"input": "x", "max_completion_tokens": 3, "reasoning_effort": "none"})).expect("a chat");
        assert_eq!((chat.max_completion_tokens, chat.reasoning_effort.as_deref()), (Some(3), Some("none")));
        assert_eq!((&echo.0["max_output_tokens"], &echo.0["reasoning"]["effort"]), (&json!(3), &json!("none")));
        let choice = json!({"type": "function", "name": "f", "note": [0]});
        assert_eq!(shown_choice(&choice), json!({"type": "function", "name": "f"}));
    }

    #[test]
    fn wrong_items_are_refused_with_their_place() {
        for (item, place) in [
            (json!({}), "input[1]"),
            (json!("text"), "input[1]"),
            (json!({"role": "tool", "content": "x"}), "input[1].role"),
            (json!({"role": "user"}), "input[1].content"),
            (json!({"role": "user", "content": 3}), "input[1].content"),
            (json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}), "input_image"),
            (json!({"type": "function_call", "name": "f", "arguments": "{}"}), "input[1].call_id"),
            (json!({"type": "function_call", "call_id": "c", "arguments": "{}"}), "input[1].name"),
            (json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}), "input[1]"),
            (json!({"type": "function_call_output", "call_id": "c"}), "input[1].output"),
            (json!({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}), "input_file"),
            (json!({"type": "reasoning", "content": "x"}), "input[1].content"),
            (json!({"type": "reasoning", "encrypted_content": "x"}), "encrypted_content"),
            (json!({"type": "item_reference", "id": "x"}), "nothing is stored"),
            (json!({"type": "web_search_call", "id": "x"}), "web_search_call"),
        ] {
            let input = json!([{"role": "user", "content": "x"}, item]);
            let refused = body(json!({"input": input})).chat().expect_err(place).body().to_string();
            assert!(refused.contains(place) && refused.contains("input[1]"), "{item}: {refused}");
        }
    }

    #[test]
    fn numbers_come_back_as_they_were_written() {
        let mut settings = Settings::default();
        (settings.sampling.temperature, settings.sampling.top_p) = (0.6, 1.0);
        let fields = Echo::default().fields(&settings);
        assert_eq!((&fields["temperature"], &fields["top_p"]), (&json!(0.6), &json!(1.0)));
    }
}
