//! Chat templates: the Jinja program that comes with a model and writes its prompt.
//!
//! Rendered as transformers does it: blocks trimmed, Python's string methods, `tojson` in Python's spelling,
//! `raise_exception`, `strftime_now`, `{% break %}` and `{% continue %}`. The date is UTC where transformers takes local time.
use super::jinja::{RAISED, clock, describe, strftime, tojson, without_generation_tags};
use crate::weights::ModelSource;
use crate::{Error, ErrorKind, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;
use serde_json::{Map, Value as Json};

const CONFIG: &str = "tokenizer_config.json";
const FILE: &str = "chat_template.jinja";
/// Older models keep their special tokens here.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const NAME: &str = "chat_template";
/// Steps that a template may take: thousands of times what real ones need, and less than a minute.
const FUEL: u64 = 50_000_000;

/// One message of a conversation. Other fields that a template may read (`tool_calls`, `reasoning_content`) go into
/// `extra`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said: a string, or `null` for an assistant that only calls tools.
    #[serde(default)]
    pub content: Json,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Json::String(content.into()), extra: Map::new() }
    }

    /// What the user said.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }
}

/// What a template is told besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// `enable_thinking`, for models that can switch it; absent lets the template decide.
    pub enable_thinking: Option<bool>,
    /// Descriptions of tools, as JSON.
    pub tools: Option<Json>,
    /// Further variables; they win over all others.
    pub extra: Map<String, Json>,
    /// What `strftime_now` takes for now, in seconds since 1970 UTC; absent asks the clock.
    pub now: Option<i64>,
}

/// Whether a prompt leaves the model inside its thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThinkingState {
    /// `<think>` is open: the next token is a thought.
    Open,
    /// `</think>` was written: the model was told not to think.
    Closed,
    /// Neither: the model opens its thinking itself, or does not think.
    None,
}

/// A prompt as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The whole text.
    pub text: String,
    /// Where the generation prompt begins in `text`: what the template adds for the answer, after all messages.
    pub generation_start: usize,
    /// What the generation prompt does with the thinking. What users wrote does not count.
    pub thinking: ThinkingState,
}

/// What `text` leaves open. Judges a raw prompt; for messages, [`RenderedPrompt::thinking`] knows better which tags are the
/// template's.
pub fn thinking_state(text: &str) -> ThinkingState {
    match (text.rfind("<think>"), text.rfind("</think>")) {
        (None, None) => ThinkingState::None,
        (Some(open), Some(close)) if open > close => ThinkingState::Open,
        (Some(_), None) => ThinkingState::Open,
        (_, Some(_)) => ThinkingState::Closed,
    }
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    env: Environment<'static>,
    place: String,
    /// `bos_token`, `eos_token` and the like, by name.
    tokens: Map<String, Json>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("place", &self.place).field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Reads the template from `chat_template.jinja` or, without that file, from `tokenizer_config.json`; of several
    /// named ones the one called `default`. Of a GGUF file it is in the metadata.
    ///
    /// # Errors
    /// When there is none, or it is malformed.
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
                .help("pass the prompt with --raw to use it as it is")),
        }
    }

    /// Compiles `template`. `place` names it in messages; `tokens` maps `bos_token` and the like to their text.
    ///
    /// # Errors
    /// When the template is malformed.
    pub fn new(template: &str, place: &str, tokens: Map<String, Json>) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|error| Error::new(ErrorKind::Internal, error).at(place))?);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_fuel(Some(FUEL));
        env.add_filter("tojson", tojson);
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        });
        env.add_template_owned(NAME, without_generation_tags(template)).map_err(|error| {
            Error::new(ErrorKind::Model, "the chat template is malformed").at(place).found(describe(&error))
        })?;
        Ok(Self { env, place: place.to_string(), tokens })
    }

    /// Writes the prompt for `messages`, ready for the answer.
    ///
    /// # Errors
    /// When the template refuses the messages or fails.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<RenderedPrompt> {
        let text = self.render_text(messages, options, true)?;
        // Without the generation prompt; a template that then refuses or writes something else has no such part, and
        // its whole text is judged.
        let without = self.render_text(messages, options, false).ok();
        let generation_start = match without {
            Some(without) if text.starts_with(&without) => without.len(),
            _ => 0,
        };
        let thinking = thinking_state(&text[generation_start..]);
        Ok(RenderedPrompt { text, generation_start, thinking })
    }

    /// Whether the template reads `enable_thinking`: whether saying yes and saying no make different prompts.
    pub fn has_thinking_switch(&self) -> bool {
        let text = |think| {
            let options = RenderOptions { enable_thinking: Some(think), now: Some(0), ..RenderOptions::default() };
            self.render_text(&[Message::user("?")], &options, true).ok()
        };
        text(true) != text(false)
    }

    /// Refuses templates without a [switch](Self::has_thinking_switch), which would ignore the wish in silence.
    ///
    /// # Errors
    /// When the template does not read `enable_thinking`.
    pub fn check_thinking_switch(&self) -> Result<()> {
        if self.has_thinking_switch() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Input, "this model's chat template has no switch for thinking")
            .at(&self.place)
            .expected("a template that reads enable_thinking, such as Qwen3's")
            .help("leave --no-think out: this model decides by itself"))
    }

    /// The template's text for `messages`, with or without the beginning of an answer.
    ///
    /// # Errors
    /// When the template refuses the messages or fails.
    pub fn render_text(&self, messages: &[Message], options: &RenderOptions, generation: bool) -> Result<String> {
        let mut variables = self.tokens.clone();
        variables.insert(
            "messages".into(),
            serde_json::to_value(messages)
                .map_err(|error| Error::new(ErrorKind::Internal, "messages cannot be written as JSON").found(error))?,
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
        let template = self.env.get_template(NAME);
        template.and_then(|template| template.render(context)).map_err(|error| {
            let found = describe(&error);
            match found.split_once(RAISED) {
                Some((_, message)) => Error::new(ErrorKind::Input, "the chat template refuses these messages")
                    .at(&self.place)
                    .found(message),
                None => Error::new(ErrorKind::Model, "the chat template fails")
                    .at(&self.place)
                    .found(found)
                    .help("pass the prompt with --raw to do without the template"),
            }
        })
    }
}

/// `chat_template`: a string, or a list of `{name, template}`.
fn pick_template(value: &Json, place: &str) -> Result<String> {
    let wrong = |found: String| {
        Error::new(ErrorKind::Model, "the chat template is malformed")
            .at(format!("{place}: {NAME}"))
            .expected("a string, or a list of names and templates with one named default")
            .found(found)
    };
    let field = |entry: &Json, name: &str| entry.get(name).and_then(Json::as_str).map(str::to_string);
    match value {
        Json::String(template) => Ok(template.clone()),
        Json::Array(list) => {
            let default = list.iter().find(|entry| field(entry, "name").as_deref() == Some("default"));
            default.and_then(|entry| field(entry, "template")).ok_or_else(|| {
                let names: Vec<_> = list.iter().filter_map(|entry| field(entry, "name")).collect();
                wrong(format!("templates named: {}", names.join(", ")))
            })
        }
        other => Err(wrong(other.to_string().chars().take(80).collect())),
    }
}

/// Special tokens: strings, or objects with their `content`.
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
        let of = |template: &str| ChatTemplate::new(template, "test", Map::new()).map(|t| t.has_thinking_switch()).ok();
        assert_eq!(of("{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"), Some(true));
        assert_eq!(of("{{ messages[0].content }}<think>"), Some(false));
        assert_eq!(of("{% set enable_thinking = true %}{% if enable_thinking %}<think>{% endif %}"), Some(false));
        assert_eq!(of("{{ raise_exception('no') }}"), Some(false));
    }

    #[test]
    fn an_endless_template_stops() {
        let endless = "{% for a in range(9000) %}{% for b in range(9000) %}{% for c in range(9000) %}{% endfor %}{% endfor %}{% endfor %}";
        let error = render(endless, &RenderOptions::default()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("the chat template fails") && error.contains("fuel"), "{error}");
    }
}
