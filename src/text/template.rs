//! Chat templates: the Jinja program that comes with a model and turns messages into a prompt.
//!
//! Templates are rendered as in transformers: blocks are trimmed, Python's string methods work, and so do `tojson`
//! (in Python's spelling), `"…" % x`, `raise_exception`, `strftime_now`, `{% break %}` and `{% continue %}`. The date
//! is UTC, while transformers takes local time. What is missing is an error and changes no prompt: the filters
//! `forceescape`, `random`, `striptags`, `urlize`, `wordwrap` and `xmlattr`, the test `callable`, the function
//! `lipsum`, the methods `encode`, `translate` and `maketrans` of texts, `%` after a text that is not written out, and
//! `%d` of a number with a fraction.
use super::ThinkTags;
use super::calls::{self, CallFormat};
use super::jinja::{RAISED, clock, describe, is_iterable, strftime, without_generation_tags};
use crate::weights::ModelSource;
use crate::{Error, ErrorKind, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use std::sync::OnceLock;

const CONFIG: &str = "tokenizer_config.json";
const FILE: &str = "chat_template.jinja";
/// Older models store the texts of their special tokens in this file.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const NAME: &str = "chat_template";
/// The most steps that a template may take. Real templates need hundreds of times fewer for a conversation.
const FUEL: u64 = 1_000_000;
/// The message with which it is checked whether a template shows messages of the system.
const SAID: &str = "Always answer with the word Zephyr.";
/// The most bytes that a template may write beyond the messages themselves.
const LONGEST_OUTPUT: usize = 16 << 20;

/// One message of a conversation. Fields other than the role and the content that a template may read (`tool_calls`,
/// `reasoning_content`) are in `extra`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the message, or `null` for an assistant message that only calls tools.
    #[serde(default)]
    pub content: Json,
    /// All other fields of the message.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message with a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Json::String(content.into()), extra: Map::new() }
    }

    /// A message with the role `user`.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }
}

/// The variables of a template other than the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// The variable `enable_thinking`, for models whose thinking can be switched. `None` leaves the variable
    /// undefined, so that the template decides.
    pub enable_thinking: Option<bool>,
    /// Descriptions of the tools that the model may call, as JSON.
    pub tools: Option<Json>,
    /// Further variables. They take precedence over all others.
    pub extra: Map<String, Json>,
    /// The time that `strftime_now` formats, in seconds since 1970 UTC. `None` means the current time.
    pub now: Option<i64>,
}

/// Whether the model is inside its thinking at the end of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThinkingState {
    /// `<think>` is open: the next token is part of the thinking.
    Open,
    /// The prompt contains `</think>`: the model was told not to think.
    Closed,
    /// The prompt has neither tag: the model opens its thinking itself, or does not think.
    None,
}

/// The prompt that a template wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The whole text of the prompt.
    pub text: String,
    /// The byte offset in `text` at which the generation prompt begins: the part that the template adds after all
    /// messages to start the answer. If the template adds it whether or not it is asked to, the offset is the end of
    /// the last message's content.
    pub generation_start: usize,
    /// The thinking state at the end of the generation prompt. Tags that users wrote do not count.
    pub thinking: ThinkingState,
}

/// The thinking state at the end of `text`, for raw prompts. Rendered messages have [`RenderedPrompt::thinking`],
/// which counts only the tags that the template wrote.
pub fn thinking_state(text: &str) -> ThinkingState {
    match (ThinkTags::last_open(text), ThinkTags::last_close(text)) {
        (None, None) => ThinkingState::None,
        (Some(open), Some(close)) if open > close => ThinkingState::Open,
        (Some(_), None) => ThinkingState::Open,
        (_, Some(_)) => ThinkingState::Closed,
    }
}

/// The compiled chat template of a model.
pub struct ChatTemplate {
    env: Environment<'static>,
    place: String,
    /// The texts of the special tokens, by the names that templates use: `bos_token`, `eos_token` and so on.
    tokens: Map<String, Json>,
    /// The form of calls, which is determined when it is first needed.
    calls: OnceLock<Option<CallFormat>>,
    shows_system: OnceLock<bool>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("place", &self.place).field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Reads the template of a model from `chat_template.jinja`, or else from `tokenizer_config.json`, or from the
    /// metadata of a GGUF file. If the config has several named templates, the one named `default` is used.
    ///
    /// # Errors
    /// If the model has no template, or the template is malformed.
    pub fn load(source: &ModelSource) -> Result<Self> {
        if let Some(gguf) = source.gguf() {
            let (template, tokens) = super::gguf::template(gguf)?;
            return Self::new(&template, gguf.place(), tokens);
        }
        let config = source.find_json(CONFIG)?;
        let place = source.place_of(CONFIG);
        let config = match &config {
            None => None,
            Some(Json::Object(map)) => Some(map),
            Some(_) => return Err(Error::new(ErrorKind::Model, format!("{CONFIG} is not a JSON object")).at(place)),
        };
        let mut tokens = Map::new();
        if let Some(Json::Object(map)) = source.find_json(SPECIAL_TOKENS)? {
            add_tokens(&mut tokens, &map);
        }
        if let Some(config) = config {
            add_tokens(&mut tokens, config);
        }
        if let Some(bytes) = source.find(FILE)? {
            let place = source.place_of(FILE);
            let text = std::str::from_utf8(&bytes)
                .map_err(|e| Error::new(ErrorKind::Model, format!("{FILE} is not UTF-8")).at(&place).found(e))?;
            return Self::new(text, &place, tokens);
        }
        match config.and_then(|config| config.get(NAME)).filter(|value| !value.is_null()) {
            Some(value) => Self::new(&pick_template(value, &place)?, &place, tokens),
            None => Err(Error::new(ErrorKind::Model, "the model has no chat template")
                .at(source)
                .expected(format!("{FILE}, or {NAME} in {CONFIG}"))
                .help("use `raw` to send the prompt without a template")),
        }
    }

    /// Whether the model has a chat template, be it one that can be read or not.
    pub fn exists(source: &ModelSource) -> bool {
        if let Some(gguf) = source.gguf() {
            return super::gguf::has_template(gguf);
        }
        let is_named = || match source.find_json(CONFIG) {
            Ok(config) => config.is_some_and(|config| !config.is_object() || !config[NAME].is_null()),
            Err(_) => true,
        };
        !matches!(source.find(FILE), Ok(None)) || is_named()
    }

    /// Compiles `template`. Error messages call it `place`; `tokens` maps names such as `bos_token` to the texts of
    /// the special tokens.
    ///
    /// # Errors
    /// If the template is malformed.
    pub fn new(template: &str, place: &str, tokens: Map<String, Json>) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| Error::new(ErrorKind::Internal, error).at(place))?);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(super::python::call_method);
        env.set_fuel(Some(FUEL));
        super::filters::add(&mut env);
        env.add_test("iterable", is_iterable);
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        });
        env.add_template_owned(NAME, super::percent::as_filters(&without_generation_tags(template))).map_err(
            |error| Error::new(ErrorKind::Model, "the chat template is malformed").at(place).found(describe(&error)),
        )?;
        Ok(Self { env, place: place.to_string(), tokens, calls: OnceLock::new(), shows_system: OnceLock::new() })
    }

    /// Renders the prompt for `messages`, including the generation prompt that starts the answer.
    ///
    /// # Errors
    /// If the template raises an exception for these messages, or cannot be rendered.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<RenderedPrompt> {
        let text = self.render_text(messages, options, true)?;
        // The generation prompt is what this rendering lacks. If the template fails without it, or writes something
        // that is not a prefix, there is no such part, and the thinking state is that of the whole text.
        let without = self.render_text(messages, options, false).ok();
        let generation_start = match without {
            // The template always starts the answer, so the start of the answer is the text after the last message.
            Some(without) if text == without => text.len() - self.after_last(messages, options, &text),
            Some(without) if text.starts_with(&without) => without.len(),
            _ => 0,
        };
        let thinking = thinking_state(&text[generation_start..]);
        Ok(RenderedPrompt { text, generation_start, thinking })
    }

    /// The number of bytes at the end of the rendered `text` that do not depend on the content of the last message,
    /// because the template writes them after it.
    fn after_last(&self, messages: &[Message], options: &RenderOptions, text: &str) -> usize {
        const CONTENT: &str = "the content of the last message";
        let mut messages = messages.to_vec();
        if let Some(last) = messages.last_mut() {
            last.content = Json::String(CONTENT.into());
        }
        let other = self.render_text(&messages, options, true).unwrap_or_default();
        let after = other.rsplit_once(CONTENT).map_or("", |(_, after)| after);
        if text.ends_with(after) { after.len() } else { 0 }
    }

    /// Whether `enable_thinking` has an effect: whether true and false give different prompts.
    pub fn has_thinking_switch(&self) -> bool {
        let text = |think| {
            let options = RenderOptions { enable_thinking: Some(think), now: Some(0), ..RenderOptions::default() };
            self.render_text(&[Message::user("?")], &options, true).ok()
        };
        text(true) != text(false)
    }

    /// Refuses a template that would silently ignore `enable_thinking`; see
    /// [`has_thinking_switch`](Self::has_thinking_switch).
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if the template does not read `enable_thinking`.
    pub fn check_thinking_switch(&self) -> Result<()> {
        if self.has_thinking_switch() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Input, "this model's chat template has no switch for thinking")
            .at(&self.place)
            .expected("a chat template that reads enable_thinking, as Qwen3's does")
            .help("leave out `think`, so that the model decides by itself"))
    }

    /// Whether the model sees a message of the system at the beginning of a conversation.
    pub fn shows_system(&self) -> bool {
        *self.shows_system.get_or_init(|| {
            let options = RenderOptions { now: Some(0), ..RenderOptions::default() };
            let messages = [Message::new("system", SAID), Message::user("?")];
            self.render_text(&messages, &options, true).is_ok_and(|text| text.contains(SAID))
        })
    }

    /// Refuses a conversation of which the template would silently leave out a message of the system. An empty one
    /// says nothing, so it may be left out.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] with the number of the first such message.
    pub fn check_system(&self, messages: &[Message], options: &RenderOptions) -> Result<()> {
        let is_empty = |content: &Json| content.as_str().map_or(content.is_null(), |text| text.trim().is_empty());
        let says = |message: &Message| message.role == "system" && !is_empty(&message.content);
        let said: Vec<usize> = (0..messages.len()).filter(|index| says(&messages[*index])).collect();
        let unseen = match said[..] {
            [] => None,
            [0] => Some(0).filter(|_| !self.shows_system()),
            _ => {
                let mut marked = messages.to_vec();
                let mark = |index: usize| format!("{SAID} {index}.");
                said.iter().for_each(|index| marked[*index].content = mark(*index).into());
                // If the template refuses a message, its own error gives the reason.
                let shown = self.render_text(&marked, options, true).ok();
                shown.and_then(|text| said.iter().copied().find(|index| !text.contains(&mark(*index))))
            }
        };
        let Some(index) = unseen else { return Ok(()) };
        let (what, help) = match self.shows_system() {
            false => {
                ("this model's chat template shows no system message to the model", "say it in the user's message")
            }
            true => (
                "this model's chat template would leave out a system message",
                "say it in the one at the beginning, or in a user's message",
            ),
        };
        let e = Error::new(ErrorKind::Input, what).at("`system`").help(help);
        Err(if index == 0 { e } else { e.found(format!("messages[{index}] is one")) })
    }

    /// The form in which the model calls tools, as the template shows it. `None` if the template shows no tools to
    /// the model, or calls in no known form.
    pub fn call_format(&self) -> Option<CallFormat> {
        *self.calls.get_or_init(|| {
            let render = |called| {
                let (messages, tools) = calls::probe(called);
                let options = RenderOptions { tools: Some(tools), now: Some(0), ..RenderOptions::default() };
                self.render_text(&messages, &options, !called).ok()
            };
            let described = render(false).is_some_and(|text| calls::shows_tool(&text));
            render(true).filter(|_| described).and_then(|text| CallFormat::shown_in(&text))
        })
    }

    /// Refuses a template that would silently ignore tools, or whose model's calls could not be read; see
    /// [`call_format`](Self::call_format).
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if the template has no tools, or shows calls in no known form.
    pub fn check_tools(&self) -> Result<()> {
        match self.call_format() {
            Some(_) => Ok(()),
            None => {
                let what = "this model's chat template has no tools, or shows calls in an unknown form";
                let expected =
                    "a chat template that reads `tools` and shows calls in a known form, as Qwen3's and Llama 3's do";
                Err(Error::new(ErrorKind::Input, what)
                    .at(&self.place)
                    .expected(expected)
                    .help("leave out the tools, their calls and their results"))
            }
        }
    }

    /// Refuses variables that the template does not read, and variables that a caller must not set.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] with the name of the first such variable.
    pub fn check_variables(&self, variables: &Map<String, Json>) -> Result<()> {
        const OWN: [&str; 5] =
            ["messages", "add_generation_prompt", "enable_thinking", "raise_exception", "strftime_now"];
        // Llama 3 has three variables that show tools. The tools in the other two are not checked, and calls of them
        // are not found.
        const TOOLS: [&str; 3] = ["tools", "custom_tools", "builtin_tools"];
        const OTHER: &str = "this variable of the chat template is set from other parts of the request";
        let refused = |what: &str, name: &str| {
            Err(Error::new(ErrorKind::Input, what).at("`chat_template_kwargs`").found(format!("`{name}`")))
        };
        if variables.is_empty() {
            return Ok(());
        }
        let read = self.env.get_template(NAME).map(|template| template.undeclared_variables(false)).unwrap_or_default();
        for name in variables.keys() {
            if TOOLS.contains(&name.as_str()) {
                return refused(OTHER, name).map_err(|error| error.help("offer the functions in `tools`"));
            }
            if OWN.contains(&name.as_str()) || name.ends_with("_token") {
                return refused(OTHER, name);
            }
            if !read.contains(name.as_str()) {
                return refused("this model's chat template does not read such a variable", name);
            }
        }
        Ok(())
    }

    /// Renders `messages` to text, with or without the generation prompt that starts the answer.
    ///
    /// # Errors
    /// If the template raises an exception for these messages, or cannot be rendered.
    pub fn render_text(&self, messages: &[Message], options: &RenderOptions, generation: bool) -> Result<String> {
        let mut variables = self.tokens.clone();
        variables.insert(
            "messages".into(),
            serde_json::to_value(messages).map_err(|error| {
                Error::new(ErrorKind::Internal, "the messages cannot be written as JSON").found(error)
            })?,
        );
        variables.insert("tools".into(), options.tools.clone().unwrap_or(Json::Null));
        variables.insert("documents".into(), Json::Null);
        variables.insert("add_generation_prompt".into(), Json::Bool(generation));
        if let Some(enable) = options.enable_thinking {
            variables.insert("enable_thinking".into(), Json::Bool(enable));
        }
        variables.extend(options.extra.clone());

        let now = options.now;
        let strftime_now = Value::from_function(move |format: &str| strftime(format, now.unwrap_or_else(clock)));
        let context = context! { strftime_now, ..Value::from(Serde(&variables)) };
        // A message may occur twice, and its characters may be written as escapes.
        let spoken: usize = messages.iter().map(|message| message.content.to_string().len()).sum();
        let mut text = Bounded { text: Vec::new(), most: LONGEST_OUTPUT.saturating_add(spoken.saturating_mul(6)) };
        let template = self.env.get_template(NAME);
        let rendered = template.and_then(|template| template.render_captured_to(context, &mut text).map(drop));
        rendered.map_err(|error| {
            let found = describe(&error);
            match found.split_once(RAISED) {
                Some((_, message)) => Error::new(ErrorKind::Input, "the chat template refuses these messages")
                    .at(&self.place)
                    .found(message),
                None => Error::new(ErrorKind::Model, "the chat template fails")
                    .at(&self.place)
                    .found(found)
                    .help("use `raw` to send the prompt without the template"),
            }
        })?;
        String::from_utf8(text.text)
            .map_err(|error| Error::new(ErrorKind::Internal, "a template wrote no text").at(&self.place).found(error))
    }
}

/// A writer that refuses text once it is too long, so that a template cannot fill the memory.
struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.most.saturating_sub(self.text.len()) {
            return Err(std::io::Error::other(format!("the text exceeds {} bytes", self.most)));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Picks the template from the value of `chat_template`: a string, or a list of `{name, template}` objects.
fn pick_template(value: &Json, place: &str) -> Result<String> {
    let malformed = |found: String| {
        Error::new(ErrorKind::Model, "the chat template is malformed")
            .at(format!("{place}: {NAME}"))
            .expected("a string, or a list of named templates, one of them named default")
            .found(found)
    };
    let field = |entry: &Json, name: &str| entry.get(name).and_then(Json::as_str).map(str::to_string);
    match value {
        Json::String(template) => Ok(template.clone()),
        Json::Array(list) => {
            let default = list.iter().find(|entry| field(entry, "name").as_deref() == Some("default"));
            default.and_then(|entry| field(entry, "template")).ok_or_else(|| {
                let names: Vec<_> = list.iter().filter_map(|entry| field(entry, "name")).collect();
                malformed(format!("templates named: {}", names.join(", ")))
            })
        }
        other => Err(malformed(other.to_string().chars().take(80).collect())),
    }
}

/// Adds the special tokens in `config` to `tokens`. A token is a string, or an object with the string in `content`.
fn add_tokens(tokens: &mut Map<String, Json>, config: &Map<String, Json>) {
    for (name, value) in config.iter().filter(|(name, _)| name.ends_with("_token")) {
        if let Some(text) = value.as_str().or_else(|| value.get("content").and_then(Json::as_str)) {
            tokens.insert(name.clone(), Json::String(text.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, options: &RenderOptions) -> Result<String> {
        ChatTemplate::new(template, "test", Map::new())?.render_text(&[Message::user("hi")], options, true)
    }

    #[test]
    fn strftime_now_takes_the_given_time() {
        let options = RenderOptions { now: Some(1_709_251_199), ..Default::default() };
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &options).ok().as_deref(), Some("29 Feb 2024"));
    }

    #[test]
    fn generation_tags_write_nothing_and_keep_their_whitespace_control() {
        let template = "a {%- generation -%} b {%- endgeneration %} c{% if true %}d{% endif %}";
        assert_eq!(render(template, &RenderOptions::default()).ok().as_deref(), Some("ab cd"));
    }

    #[test]
    fn tojson_writes_what_python_writes() {
        let tools =
            serde_json::json!([{"name": "f", "z": [1, 2.5, null, true], "a": {"é": "<&'\">"}, "e": [], "o": {}}]);
        let options = RenderOptions { tools: Some(tools), ..Default::default() };
        let compact = r#"{"name": "f", "z": [1, 2.5, null, true], "a": {"é": "<&'\">"}, "e": [], "o": {}}"#;
        assert_eq!(render("{{ tools[0] | tojson }}", &options).ok().as_deref(), Some(compact));
        let indented = "{\n  \"é\": \"<&'\\\">\"\n}";
        assert_eq!(render("{{ tools[0].a | tojson(indent=2) }}", &options).ok().as_deref(), Some(indented));
    }

    #[test]
    fn a_switch_for_thinking_is_seen_by_what_it_does() {
        let has_switch =
            |template: &str| ChatTemplate::new(template, "test", Map::new()).map(|t| t.has_thinking_switch()).ok();
        assert_eq!(
            has_switch("{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"),
            Some(true)
        );
        assert_eq!(has_switch("{{ messages[0].content }}<think>"), Some(false));
        assert_eq!(
            has_switch("{% set enable_thinking = true %}{% if enable_thinking %}<think>{% endif %}"),
            Some(false)
        );
        assert_eq!(has_switch("{{ raise_exception('no') }}"), Some(false));
    }

    #[test]
    fn variables_that_a_template_does_not_read_are_refused() -> Result<()> {
        let text = "{% if effort is defined %}{{ effort }}{% endif %}{% set own = 1 %}{{ own }}{{ bos_token }}{{ messages }}\
                    {% if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}{{ tools }}{{ builtin_tools }}";
        let tokens = Map::from_iter([("bos_token".to_string(), Json::from("<s>"))]);
        let template = ChatTemplate::new(text, "test", tokens)?;
        let check = |name: &str| template.check_variables(&Map::from_iter([(name.to_string(), Json::from(1))]));
        check("effort")?;
        for (name, why) in [
            ("efort", "does not read"),
            ("own", "does not read"),
            ("bos_token", "other parts"),
            ("messages", "other parts"),
            ("tools", "in `tools`"),
            ("custom_tools", "in `tools`"),
            ("builtin_tools", "in `tools`"),
        ] {
            let error = check(name).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(why) && error.contains(&format!("`{name}`")), "{name}: {error}");
        }
        Ok(())
    }

    #[test]
    fn a_template_that_writes_too_much_stops() {
        let much = "{% for a in range(9000) %}{{ 'x' * 9999 }}{% endfor %}";
        let error = render(much, &RenderOptions::default()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("the chat template fails") && error.contains("the text exceeds"), "{error}");
    }

    #[test]
    fn an_endless_template_stops() {
        let endless = "{% for a in range(9000) %}{% for b in range(9000) %}{% for c in range(9000) %}{% endfor %}{% endfor %}{% endfor %}";
        let error = render(endless, &RenderOptions::default()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("the chat template fails") && error.contains("fuel"), "{error}");
    }
}
