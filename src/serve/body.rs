//! The bodies that clients send, in OpenAI's form, and how they become a [`Request`].
//!
//! A field that is not known is ignored, because clients send many. A field that is known, would change the answer
//! and is not supported is refused by name: an answer that silently lacks what was asked for is worse than none.
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use super::formats;
use super::refusal::Refusal;
use super::responses::{self, ResponsesBody};
use super::tools;
use crate::answer_format::AnswerFormat;
use crate::engine::{OneOrMany, Request, finite};
use crate::settings::{AttentionDetail, Settings};
use crate::text::Message;

/// The most stop strings, and the most stop tokens, that a request may have. OpenAI takes 4 strings; measurements
/// send more.
const MOST_STOPS: usize = 64;
/// The most messages of a conversation.
pub(super) const MOST_MESSAGES: usize = 4096;
/// The variable of chat templates that switches the thinking.
const THINKING: &str = "enable_thinking";
/// The most choices of a request.
pub(super) const MOST_CHOICES: usize = 64;

/// What chat and completions have in common.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct Common {
    /// The model's name, as in `/v1/models`.
    pub model: Option<String>,
    /// Whether the answer comes as server-sent events.
    pub stream: Option<bool>,
    /// How the stream is sent.
    pub stream_options: Option<StreamOptions>,
    /// The most tokens to generate, thinking included.
    pub max_tokens: Option<usize>,
    /// The number of answers.
    pub n: Option<usize>,
    /// Texts that end the answer. They are not part of it.
    pub stop: Option<OneOrMany>,
    /// Token ids that end the answer.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Whether the text that ended the answer is part of it.
    pub include_stop_str_in_output: Option<bool>,
    /// Whether generation goes on past the end-of-sequence tokens.
    pub ignore_eos: Option<bool>,
    /// Divides the logits; 0 means greedy decoding.
    #[serde(default, deserialize_with = "finite")]
    pub temperature: Option<f32>,
    /// Draw from the fewest tokens that reach this probability together.
    #[serde(default, deserialize_with = "finite")]
    pub top_p: Option<f32>,
    /// Draw from this many of the most likely tokens.
    pub top_k: Option<i64>,
    /// Draw from tokens that are at least this share as likely as the most likely one.
    #[serde(default, deserialize_with = "finite")]
    pub min_p: Option<f32>,
    /// Above 1, tokens that occurred before become less likely.
    #[serde(default, deserialize_with = "finite")]
    pub repetition_penalty: Option<f32>,
    /// Makes tokens less likely by how often they were generated.
    #[serde(default, deserialize_with = "finite")]
    pub frequency_penalty: Option<f32>,
    /// Makes tokens less likely that were generated.
    #[serde(default, deserialize_with = "finite")]
    pub presence_penalty: Option<f32>,
    /// The same seed gives the same answer.
    pub seed: Option<i64>,
    /// The most tokens of thinking.
    pub thinking_token_budget: Option<usize>,
    /// The most tokens of thinking, as llama-server calls it.
    pub thinking_budget_tokens: Option<usize>,
    /// How the cache is pruned.
    pub secateur: Option<Extension>,
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<Map<String, Value>>,
    /// What the answer must look like: `{"type": "text"}`, `{"type": "json_object"}` or `{"type": "json_schema",
    /// "json_schema": {"name", "schema"}}`. The thinking before it is free.
    #[schema(value_type = Option<Object>)]
    pub response_format: Option<Value>,
    /// vLLM's older way to give a JSON Schema, as an object or as a text with one.
    #[schema(value_type = Option<Object>)]
    guided_json: Option<Value>,
    /// vLLM's older way to give a regular expression.
    #[schema(value_type = Option<String>)]
    guided_regex: Option<Value>,
    /// vLLM's older way to give texts to choose from.
    #[schema(value_type = Option<Vec<String>>)]
    guided_choice: Option<Value>,
    guided_grammar: Option<Value>,
    grammar: Option<Value>,
    /// llama-server's way to give a JSON Schema.
    #[schema(value_type = Option<Object>)]
    json_schema: Option<Value>,
    /// vLLM's newer form: an object with one of `json`, `json_object`, `regex` and `choice`.
    #[schema(value_type = Option<Object>)]
    structured_outputs: Option<Value>,
    /// SGLang's way to give a regular expression.
    #[schema(value_type = Option<String>)]
    regex: Option<Value>,
    ebnf: Option<Value>,
    structural_tag: Option<Value>,
    policy: Option<Value>,
    budget: Option<Value>,
    probe_every: Option<Value>,
    /// Ollama's way: `"json"`, or a JSON Schema.
    #[schema(value_type = Option<Object>)]
    format: Option<Value>,
}

/// How a stream is sent.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Whether the last chunk has the usage.
    pub include_usage: Option<bool>,
}

/// What secateur adds to a body. Unlike elsewhere in a body, fields that are not known are refused here.
#[derive(Debug, Clone, Default)]
pub(super) struct Extension {
    /// A request with some of the fields [`Request::OWN_FIELDS`], and no others.
    request: Request,
    /// What is sent while the answer is streamed, besides its text.
    pub events: Option<Events>,
    /// Whether the trace of the run is kept for `/v1/secateur/traces/{id}`.
    pub trace: Option<bool>,
}

/// The fields of an [`Extension`] that are not those of a [`Request`].
#[derive(Debug, Deserialize, ToSchema)]
struct Shown {
    /// What is sent while the answer is streamed, besides its text.
    events: Option<Events>,
    /// Whether the trace of the run is kept for `/v1/secateur/traces/{id}`.
    trace: Option<bool>,
}

/// The names of the fields of [`Shown`].
const SHOWN: [&str; 2] = ["events", "trace"];

impl<'de> Deserialize<'de> for Extension {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Map::<String, Value>::deserialize(deserializer)?;
        let known = || Request::OWN_FIELDS.into_iter().chain(SHOWN);
        if let Some(name) = fields.keys().find(|name| !known().any(|known| known == *name)) {
            let known: Vec<String> = known().map(|name| format!("`{name}`")).collect();
            return Err(D::Error::custom(format!("unknown field `{name}`, expected one of {}", known.join(", "))));
        }
        let (shown, own) = fields.into_iter().partition(|(name, _)| SHOWN.contains(&name.as_str()));
        let Shown { events, trace } = serde_json::from_value(Value::Object(shown)).map_err(D::Error::custom)?;
        let request = serde_json::from_value(Value::Object(own)).map_err(D::Error::custom)?;
        Ok(Self { request, events, trace })
    }
}

impl utoipa::PartialSchema for Extension {
    fn schema() -> RefOr<Schema> {
        let (own, mut shown) = (Request::schema(), Shown::schema());
        if let (RefOr::T(Schema::Object(own)), RefOr::T(Schema::Object(shown))) = (own, &mut shown) {
            let own = own.properties.into_iter().filter(|(name, _)| Request::OWN_FIELDS.contains(&name.as_str()));
            shown.properties.extend(own);
        }
        shown
    }
}

impl ToSchema for Extension {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Shown::schemas(schemas);
    }
}

/// What is sent while an answer is streamed, besides its text, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Events {
    /// Nothing.
    None,
    /// Probes, as comments of the stream, which every client ignores.
    Comments,
    /// Probes, as chunks without choices.
    Chunks,
    /// Everything that the page shows, as chunks without choices.
    Run,
}

/// The body of `/v1/chat/completions`.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct ChatBody {
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    #[serde(flatten)]
    pub common: Common,
    /// The most tokens to generate, thinking included; OpenAI's newer name.
    pub max_completion_tokens: Option<usize>,
    /// Variables of the chat template. `enable_thinking` switches the thinking. One that the template does not read
    /// is refused.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the model thinks.
    pub enable_thinking: Option<bool>,
    /// `none` switches the thinking off. Everything else has no effect: `thinking_token_budget` bounds the thinking.
    pub reasoning_effort: Option<String>,
    /// OpenRouter's form of the settings of thinking.
    pub reasoning: Option<Reasoning>,
    /// `none`: the thinking is part of the answer's content.
    pub reasoning_format: Option<String>,
    /// Whether the probabilities of tokens are returned.
    pub logprobs: Option<bool>,
    /// How many likely tokens are listed at each place.
    pub top_logprobs: Option<usize>,
    /// The functions that the model may call: `{"type": "function", "function": {"name", "description",
    /// "parameters"}}`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// `auto`, which is the default, `none`, `required`, a function that must be called, or some of the tools
    /// (`allowed_tools`).
    #[schema(value_type = Option<String>)]
    pub tool_choice: Option<Value>,
    /// Whether an answer may have more than one call. If not, only the first is returned.
    pub parallel_tool_calls: Option<bool>,
    functions: Option<Vec<Value>>,
    function_call: Option<Value>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    web_search_options: Option<Value>,
}

/// OpenRouter's form of the settings of thinking.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(super) struct Reasoning {
    pub effort: Option<String>,
    max_tokens: Option<usize>,
    enabled: Option<bool>,
    /// Whether the thinking is left out of the response.
    pub exclude: Option<bool>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(super) struct ChatMessage {
    pub role: String,
    #[serde(default)]
    pub content: Content,
    /// The thinking of an earlier answer. The chat template decides whether the model sees it.
    pub reasoning_content: Option<String>,
    /// The same, as newer versions of vLLM call it.
    pub reasoning: Option<String>,
    /// The calls of tools that an earlier answer has. Their arguments are a text with a JSON object.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tool_calls: Option<Vec<Value>>,
    /// The call whose result a message of the role `tool` has.
    pub tool_call_id: Option<String>,
    pub name: Option<String>,
}

/// The content of a message.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Content {
    /// Nothing.
    #[default]
    None,
    /// Text.
    Text(String),
    /// Parts, all of which have to be text.
    Parts(Vec<ContentPart>),
}

/// A part of the content of a message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(super) struct ContentPart {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    /// What an earlier answer said in place of its text.
    refusal: Option<String>,
}

impl Content {
    /// The text of the content of the message at this place.
    pub fn text(&self, place: &str) -> Result<String, Refusal> {
        match self {
            Self::None => Ok(String::new()),
            Self::Text(text) => Ok(text.clone()),
            Self::Parts(parts) => {
                let mut texts = Vec::new();
                for part in parts {
                    match (part.kind.as_str(), &part.text) {
                        ("text" | "input_text" | "output_text", Some(text)) => texts.push(text.as_str()),
                        ("refusal", _) => texts.push(part.refusal.as_deref().unwrap_or_default()),
                        (kind, _) => return Err(Refusal::unsupported(place, &format!("a part of type {kind:?}"))),
                    }
                }
                Ok(texts.join("\n"))
            }
        }
    }
}

/// The body of `/v1/completions`.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CompletionBody {
    /// What is continued: a text, several texts, token ids, or several lists of them.
    #[schema(value_type = Object)]
    pub prompt: PromptForm,
    #[serde(flatten)]
    pub common: Common,
    /// Whether the prompt is part of the text.
    pub echo: Option<bool>,
    /// How many likely tokens are listed at each place.
    pub logprobs: Option<usize>,
    suffix: Option<String>,
    best_of: Option<usize>,
    tools: Option<Value>,
    chat_template_kwargs: Option<Value>,
    enable_thinking: Option<Value>,
    reasoning: Option<Value>,
}

/// The prompts of a completion.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum PromptForm {
    /// One text.
    Text(String),
    /// The ids of one prompt.
    Ids(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// The ids of several prompts.
    ManyIds(Vec<Vec<u32>>),
}

impl Common {
    /// The number of answers.
    pub fn choices(&self) -> Result<usize, Refusal> {
        match self.n.unwrap_or(1) {
            n @ 1..=MOST_CHOICES => Ok(n),
            n => Err(Refusal::bad(format!("n is {n}: a number from 1 to {MOST_CHOICES} is expected")).at("n")),
        }
    }

    /// What is sent besides the text, and how.
    pub fn events(&self) -> Events {
        self.secateur.as_ref().and_then(|extension| extension.events).unwrap_or(Events::None)
    }

    /// Whether the trace is kept.
    pub fn trace(&self) -> bool {
        self.secateur.as_ref().and_then(|extension| extension.trace) == Some(true)
    }

    /// The stop strings. An empty one is refused: it would end every answer at once.
    fn stops(&self) -> Result<Option<Vec<String>>, Refusal> {
        let Some(stops) = self.stop.clone().map(Vec::from) else { return Ok(None) };
        if stops.iter().any(String::is_empty) {
            return Err(Refusal::bad("stop has an empty text: some text is expected").at("stop"));
        }
        if stops.len() > MOST_STOPS {
            let found = stops.len();
            return Err(Refusal::bad(format!("stop has {found} texts: at most {MOST_STOPS} are expected")).at("stop"));
        }
        Ok((!stops.is_empty()).then_some(stops))
    }

    /// What the answer must look like, if the request says so, and the field that says it.
    pub fn answer_format(&self) -> Result<Option<(&'static str, AnswerFormat)>, Refusal> {
        let outputs = self.structured_outputs.as_ref();
        formats::only(&[
            ("response_format", self.response_format.as_ref()),
            ("json_schema", self.json_schema.as_ref()),
            ("grammar", self.grammar.as_ref()),
            ("guided_json", self.guided_json.as_ref()),
            ("guided_regex", self.guided_regex.as_ref()),
            ("guided_choice", self.guided_choice.as_ref()),
            ("guided_grammar", self.guided_grammar.as_ref()),
            ("structured_outputs", outputs),
            ("regex", self.regex.as_ref()),
            ("ebnf", self.ebnf.as_ref()),
            ("structural_tag", self.structural_tag.as_ref()),
            ("format", self.format.as_ref()),
        ])
    }

    /// The names that fields of a request have in a body; for messages.
    fn names(&self) -> Vec<(&'static str, &'static str)> {
        let thinking = match (self.thinking_token_budget, self.thinking_budget_tokens) {
            (Some(_), _) => "thinking_token_budget",
            (None, Some(_)) => "thinking_budget_tokens",
            (None, None) => "reasoning.max_tokens",
        };
        vec![("max_thinking_tokens", thinking)]
    }

    /// The request, as far as both forms have it in common.
    fn request(&self) -> Result<Request, Refusal> {
        Refusal::unless_supported(&[(
            "logit_bias",
            "a bias on tokens",
            self.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty()),
        )])?;
        // No other server has fields of these names, so they are meant for secateur and would have no effect here.
        for (field, value) in [("policy", &self.policy), ("budget", &self.budget), ("probe_every", &self.probe_every)] {
            if value.is_some() {
                let message = format!("{field} belongs into secateur: {{\"secateur\": {{\"{field}\": …}}}}");
                return Err(Refusal::bad(message).at(field));
            }
        }
        if self.stop_token_ids.as_ref().is_some_and(|ids| ids.len() > MOST_STOPS) {
            let message = format!("stop_token_ids has too many ids: at most {MOST_STOPS} are expected");
            return Err(Refusal::bad(message).at("stop_token_ids"));
        }
        // OpenAI's seeds may be negative. Traces keep seeds below 2^53 exactly.
        let seed = self.seed.map(|seed| if seed < 0 { seed.cast_unsigned() >> 11 } else { seed.cast_unsigned() });
        let Extension { request, events, trace: _ } = self.secateur.clone().unwrap_or_default();
        if events == Some(Events::Run) && request.attention == Some(AttentionDetail::Heads) {
            // The trace goes through the stream then, and could have hundreds of megabytes.
            let message = "secateur.attention is heads and secateur.events is run: with run, layers is expected";
            return Err(Refusal::bad(message).at("secateur.attention"));
        }
        Ok(Request {
            stop: self.stops()?,
            stop_ids: self.stop_token_ids.clone(),
            include_stop: self.include_stop_str_in_output,
            answer_format: self.answer_format()?.map(|(_, format)| format),
            max_new_tokens: self.max_tokens,
            max_thinking_tokens: self.thinking_token_budget.or(self.thinking_budget_tokens),
            ignore_eos: self.ignore_eos,
            seed,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            ..request
        })
    }
}

/// Reads the bytes of a body in every way in which the server reads one. Returns the requests that it describes, or the
/// body of the response that refuses it. For fuzzing.
pub fn read_all(body: &[u8]) -> Vec<Result<Vec<Request>, Value>> {
    let not_understood = |e: serde_json::Error| Refusal::bad(e.to_string());
    let of_chat = |body: ChatBody| body.common.choices().and(body.request()).map(|request| vec![request]);
    let chat = serde_json::from_slice::<ChatBody>(body).map_err(not_understood).and_then(of_chat);
    let completion = serde_json::from_slice::<CompletionBody>(body).map_err(not_understood);
    let completion = completion.and_then(|body| body.requests());
    let response = serde_json::from_slice::<ResponsesBody>(body).map_err(not_understood);
    let response = response.and_then(ResponsesBody::chat).and_then(|(body, echo)| {
        echo.fields(&Settings::default());
        of_chat(body)
    });
    let response = response.map_err(responses::in_own_words);
    [chat, completion, response].map(|read| read.map_err(|refusal| refusal.body())).into()
}

impl ChatBody {
    /// The request that this body describes.
    pub fn request(&self) -> Result<Request, Refusal> {
        let asked = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        let chosen =
            |value: &Option<Value>| asked(value) && *value != Some("none".into()) && *value != Some("auto".into());
        Refusal::unless_supported(&[
            ("functions", "calling functions", self.functions.as_ref().is_some_and(|functions| !functions.is_empty())),
            ("function_call", "calling functions", chosen(&self.function_call)),
            ("audio", "audio", asked(&self.audio)),
            (
                "modalities",
                "any output but text",
                self.modalities.as_ref().is_some_and(|m| m.iter().any(|m| m != "text")),
            ),
            ("web_search_options", "a search of the web", asked(&self.web_search_options)),
        ])?;
        let mut request = self.common.request()?;
        request.messages = Some(conversation(&self.messages)?);
        let tools::Offer { shown, required, named } = tools::offered(self.tools.as_deref(), self.tool_choice.as_ref())?;
        if request.answer_format.is_some() && !shown.is_empty() {
            // The model could not call any of them.
            return Err(Refusal::unsupported(self.format_field(), "a format of the answer beside tools"));
        }
        if !required.is_empty() {
            let several = !named && self.parallel_tool_calls != Some(false);
            request.answer_format = Some(AnswerFormat::ToolCalls { tools: required, several });
        }
        request.tools = (!shown.is_empty()).then_some(shown);
        request.chat_template_kwargs = variables(self.chat_template_kwargs.as_ref())?;
        request.max_new_tokens = self.max_completion_tokens.or(request.max_new_tokens);
        request.think = self.switch().map(|(_, think)| think);
        let reasoned = self.reasoning.as_ref().and_then(|reasoning| reasoning.max_tokens);
        request.max_thinking_tokens = request.max_thinking_tokens.or(reasoned);
        request.logprobs = match (self.logprobs, self.top_logprobs) {
            (Some(true), top) => Some(top.unwrap_or(0)),
            (_, Some(top)) if top > 0 => {
                return Err(Refusal::bad("top_logprobs is given without logprobs: true").at("top_logprobs"));
            }
            _ => None,
        };
        Ok(request)
    }

    /// The field that says what the answer must look like; for messages.
    pub fn format_field(&self) -> &'static str {
        let field = self.common.answer_format().ok().flatten().map(|(field, _)| field);
        field.unwrap_or("tool_choice")
    }

    /// Whether the model is to think, if the request says so, and the field that says it.
    fn switch(&self) -> Option<(&'static str, bool)> {
        let reasoning = self.reasoning.as_ref();
        let off = |effort: &Option<String>| effort.as_ref().map(|effort| effort == "none");
        let of_effort = match off(&self.reasoning_effort) {
            Some(off) => off.then_some(("reasoning_effort", false)),
            None => off(&reasoning.and_then(|r| r.effort.clone()))
                .and_then(|off| off.then_some(("reasoning.effort", false))),
        };
        let of_template = thinking(self.chat_template_kwargs.as_ref());
        of_template
            .map(|think| ("chat_template_kwargs.enable_thinking", think))
            .or(self.enable_thinking.map(|think| ("enable_thinking", think)))
            .or(of_effort)
            .or(reasoning.and_then(|r| r.enabled).map(|think| ("reasoning.enabled", think)))
    }

    /// The names that fields of a request have in this body; for messages.
    pub fn names(&self) -> Vec<(&'static str, &'static str)> {
        let limit = if self.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" };
        let think = self.switch().map_or("enable_thinking", |(field, _)| field);
        let mut names = self.common.names();
        names.extend([("max_new_tokens", limit), ("think", think), ("logprobs", "top_logprobs")]);
        names.push(("answer_format", self.format_field()));
        names
    }

    /// Whether the thinking is left out of the response.
    pub fn excludes_thinking(&self) -> bool {
        self.reasoning.as_ref().and_then(|reasoning| reasoning.exclude) == Some(true)
    }
}

/// The messages of a conversation, as the chat template gets them.
pub(super) fn conversation(messages: &[ChatMessage]) -> Result<Vec<Message>, Refusal> {
    match messages.len() {
        0 => Err(Refusal::bad("messages is empty: at least one message is expected").at("messages")),
        1..=MOST_MESSAGES => messages.iter().enumerate().map(|(index, message)| message.message(index)).collect(),
        found => {
            let message = format!("there are {found} messages: at most {MOST_MESSAGES} are expected");
            Err(Refusal::bad(message).at("messages"))
        }
    }
}

/// What the variables of the template say about thinking.
pub(super) fn thinking(given: Option<&Map<String, Value>>) -> Option<bool> {
    given?.get(THINKING)?.as_bool()
}

/// The variables of the template other than the switch for thinking, which is the request's own.
pub(super) fn variables(given: Option<&Map<String, Value>>) -> Result<Option<Map<String, Value>>, Refusal> {
    let Some(given) = given else { return Ok(None) };
    let mut others = given.clone();
    match others.shift_remove(THINKING) {
        None | Some(Value::Null | Value::Bool(_)) => Ok((!others.is_empty()).then_some(others)),
        Some(other) => {
            let message = format!("chat_template_kwargs.{THINKING} is {other}: true or false is expected");
            Err(Refusal::bad(message).at("chat_template_kwargs"))
        }
    }
}

impl ChatMessage {
    /// The message as the chat template gets it.
    fn message(&self, index: usize) -> Result<Message, Refusal> {
        let place = format!("messages[{index}]");
        let role = match self.role.as_str() {
            // OpenAI's newer name of the system's role.
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            "function" => {
                return Err(Refusal::unsupported(&place, "the result of a function (its newer role is \"tool\")"));
            }
            other => {
                let expected = "system, developer, user, assistant or tool is expected";
                return Err(Refusal::bad(format!("{place}.role is {other:?}: {expected}")).at(place));
            }
        };
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        if !calls.is_empty() && role != "assistant" {
            let message = format!("{place}.tool_calls: only a message of the role assistant has calls");
            return Err(Refusal::bad(message).at(place));
        }
        let mut message = Message::new(role, self.content.text(&place)?);
        if !calls.is_empty() {
            message.extra.insert("tool_calls".into(), tools::earlier(calls, &place)?);
        }
        if let Some(id) = self.tool_call_id.as_deref().filter(|_| role == "tool") {
            message.extra.insert("tool_call_id".into(), id.into());
        }
        if let Some(thinking) = self.reasoning_content.as_ref().or(self.reasoning.as_ref()) {
            message.extra.insert("reasoning_content".into(), thinking.as_str().into());
        }
        if let Some(name) = &self.name {
            message.extra.insert("name".into(), name.as_str().into());
        }
        Ok(message)
    }
}

impl CompletionBody {
    /// The names that fields of a request have in this body; for messages.
    pub fn names(&self) -> Vec<(&'static str, &'static str)> {
        let format = self.common.answer_format().ok().flatten().map_or("response_format", |(field, _)| field);
        let mut names = self.common.names();
        names.extend([("max_new_tokens", "max_tokens"), ("answer_format", format), ("messages", "prompt")]);
        names
    }

    /// The requests that this body describes, one for each prompt.
    pub fn requests(&self) -> Result<Vec<Request>, Refusal> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Refusal::unsupported("suffix", "filling a gap"));
        }
        // A prompt without a chat template has none of these.
        let empty = |value: &Value| match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        let asked = |value: &Option<Value>| value.as_ref().is_some_and(|value| !empty(value));
        Refusal::unless_supported(&[
            ("tools", "calling functions in a completion", asked(&self.tools)),
            ("chat_template_kwargs", "a chat template in a completion", asked(&self.chat_template_kwargs)),
            ("enable_thinking", "a switch for thinking in a completion", asked(&self.enable_thinking)),
            ("reasoning", "OpenRouter's settings of thinking in a completion", asked(&self.reasoning)),
        ])?;
        let echoes = self.echo == Some(true);
        if echoes && self.logprobs.is_some() && self.common.stream == Some(true) {
            return Err(Refusal::unsupported("echo", "a stream with the probabilities of the prompt's tokens"));
        }
        if echoes && self.logprobs.is_some() && self.common.max_tokens == Some(0) {
            return Err(Refusal::bad("max_tokens is 0: at least 1 is expected").at("max_tokens"));
        }
        if self.best_of.is_some_and(|best| best > self.common.n.unwrap_or(1)) {
            return Err(Refusal::unsupported("best_of", "choosing among more answers than are returned"));
        }
        let mut common = self.common.request()?;
        // OpenAI's own default for completions.
        common.max_new_tokens = common.max_new_tokens.or(Some(16));
        common.logprobs = self.logprobs;
        common.prompt_logprobs = self.logprobs.filter(|_| echoes);
        let text = |text: &String| Request { prompt: Some(text.clone()), raw: Some(true), ..common.clone() };
        let ids = |ids: &Vec<u32>| Request { ids: Some(ids.clone()), ..common.clone() };
        // Counted before any is made: a list of empty texts takes three bytes for each.
        let prompts = match &self.prompt {
            PromptForm::Text(_) | PromptForm::Ids(_) => 1,
            PromptForm::Texts(several) => several.len(),
            PromptForm::ManyIds(several) => several.len(),
        };
        match prompts * self.common.choices()? {
            0 => return Err(Refusal::bad("prompt is empty: at least one is expected").at("prompt")),
            1..=MOST_CHOICES => {}
            found => {
                let message = format!("{found} answers are asked for: at most {MOST_CHOICES} are expected");
                return Err(Refusal::bad(message));
            }
        }
        Ok(match &self.prompt {
            PromptForm::Text(one) => vec![text(one)],
            PromptForm::Texts(several) => several.iter().map(text).collect(),
            PromptForm::Ids(one) => vec![ids(one)],
            PromptForm::ManyIds(several) => several.iter().map(ids).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_field_that_only_secateur_has_reaches_the_request() {
        let own = json!({
            "greedy": true, "policy": "h2o", "budget": "tokens:7", "window": 3, "probe_every": 9, "probe_text": "Sum up.</think>",
            "scope": "head", "layers": "0-1", "normalise": "per-head", "positions": "compact", "steps": "sentences",
            "attention": "layers", "max_answer_tokens": 5, "draft": 2,
        });
        assert_eq!(own.as_object().map(Map::len), Some(Request::OWN_FIELDS.len()));
        let mut fields = own.clone();
        fields["events"] = "chunks".into();
        let body: ChatBody =
            serde_json::from_value(json!({"messages": [], "window": 4, "secateur": fields})).expect("a body");
        let Ok(request) = body.common.request() else { panic!("a request") };
        let request = serde_json::to_value(request).expect("JSON");
        let schema = serde_json::to_value(<Extension as utoipa::PartialSchema>::schema()).expect("JSON");
        for name in Request::OWN_FIELDS {
            assert_eq!(request[name], own[name], "{name}");
            assert!(schema["properties"][name].is_object(), "{name} in {schema}");
        }
        assert!(schema["properties"]["events"].is_object() && schema["properties"]["prompt"].is_null(), "{schema}");
    }

    #[test]
    fn other_fields_are_no_fields_below_secateur() {
        for name in ["prompt", "seed", "tools", "temperature", "request"] {
            let body = json!({"messages": [], "secateur": {(name): null}});
            let error = serde_json::from_value::<ChatBody>(body).expect_err("refused").to_string();
            assert!(error.contains(&format!("unknown field `{name}`, expected one of `greedy`")), "{error}");
        }
    }
}
