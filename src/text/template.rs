//! Chat templates: the Jinja program that comes with a model and writes its prompt.
//!
//! Rendered as transformers does it: blocks trimmed, Python's string methods, `tojson` in Python's spelling,
//! `raise_exception`, `strftime_now`, `{% break %}` and `{% continue %}`. The date is UTC where transformers takes local time.
use crate::weights::ModelSource;
use crate::{Error, ErrorKind, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
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

/// Marks an error that the template raised itself.
const RAISED: &str = "raise_exception: ";

/// An error with its line, and the errors that caused it.
fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
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

/// `{% generation %}` marks the assistant's words for training and writes nothing: it becomes a block that is always
/// taken, with its whitespace control as it was.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(len) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..len];
        match inner.trim_matches(['-', '+', ' ', '\t', '\n', '\r']) {
            word @ ("generation" | "endgeneration") => {
                let replacement = if word == "generation" { "if true" } else { "endif" };
                out.push_str("{%");
                out.push_str(&inner.replace(word, replacement));
                out.push_str("%}");
            }
            _ => out.push_str(&tag[..len + 2]),
        }
        rest = &tag[len + 2..];
    }
    out.push_str(rest);
    out
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it: `, ` and `: `, no HTML escapes, keys in their order.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // transformers accepts these; their defaults are what is written here.
    let _: (Option<bool>, Option<bool>) = (kwargs.get("ensure_ascii")?, kwargs.get("sort_keys")?);
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    let failed = |error: String| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(out).map(Value::from).map_err(|error| failed(error.to_string()))
}

struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Seconds since 1970 UTC.
fn clock() -> i64 {
    #[cfg(not(target_family = "wasm"))]
    {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() as i64)
    }
    #[cfg(target_family = "wasm")]
    {
        (js_sys::Date::now() / 1000.0) as i64
    }
}

/// The conversions of `strftime` that date a prompt; an unknown one is an error, since a wrong date is worse.
fn strftime(format: &str, now: i64) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, seconds) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[days.rem_euclid(7) as usize]);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year.rem_euclid(100)),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_string(),
            Some('b') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_string(),
            Some('%') => "%".to_string(),
            other => {
                let other = other.map_or("%".to_string(), |c| format!("%{c}"));
                let message = format!("strftime_now does not know {other}");
                return Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

/// Year, month (1–12) and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil_date(days: i64) -> (i64, usize, i64) {
    // Counted from 0000-03-01 in eras of 400 years, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, options: &RenderOptions) -> Result<String> {
        ChatTemplate::new(template, "test", Map::new())?.render_text(&[Message::user("hi")], options, true)
    }

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        // Each computed with Python's datetime.
        for (now, expected) in [
            (0, "1970-01-01 Thursday 00:00:00"),
            (951_782_400, "2000-02-29 Tuesday 00:00:00"),
            (1_709_251_199, "2024-02-29 Thursday 23:59:59"),
            (4_107_542_400, "2100-03-01 Monday 00:00:00"),
            (-1, "1969-12-31 Wednesday 23:59:59"),
        ] {
            assert_eq!(strftime("%F %A %T", now).ok().as_deref(), Some(expected));
        }
        assert_eq!(strftime("%d %b %Y, %I %p", 1_709_251_199).ok().as_deref(), Some("29 Feb 2024, 11 PM"));
        assert!(strftime("%Q", 0).is_err_and(|e| e.to_string().contains("does not know %Q")));
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
        assert_eq!(without_generation_tags("{% unclosed"), "{% unclosed");
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
