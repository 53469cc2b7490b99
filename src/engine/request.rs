//! What a front-end asks for: how a model is loaded, and one request to it. A request names only what its author
//! chose; [`PreparedModel::resolve`](super::PreparedModel::resolve) fills in the rest from the model, with
//! `Request::settings` of this file.
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::MOST_LOGPROBS;
use crate::answer_format::AnswerFormat;
use crate::dtype::Dtype;
use crate::model::config::GenerationDefaults;
use crate::policy::{Budget, Full, Layers, Normalise, PolicyRef, Positions, Scope};
use crate::probe::PromptThinking;
use crate::sampling::{MOST_CANDIDATES, Sampling};
use crate::settings::{self, AttentionDetail, MOST_DRAFTS, Settings};
use crate::steps::Boundaries;
use crate::text::Message;
use crate::weights::Suggestions;
use crate::weights::precision::Precision;
use crate::{Error, ErrorKind, Result};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Element type of the KV cache: `F32` or `F16`.
    pub kv: Dtype,
    /// Positions to load for; `None`: the model's own maximum, at most 32,768.
    pub context: Option<usize>,
    /// The most sequences that run side by side.
    pub sequences: usize,
    /// Quantizes the weights as they are loaded; `None`: they keep the element types of the file.
    pub weights: Option<Precision>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { kv: Dtype::F16, context: None, sequences: 1, weights: None }
    }
}

/// What to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A user's message, put through the model's chat template.
    Chat(String),
    /// A conversation, put through the model's chat template. Its last message is the user's.
    Messages {
        /// System prompt, questions and answers, in order. What the assistant thought is not part of its answers.
        messages: Vec<Message>,
        /// Whether to think; `None` leaves it to the template.
        think: Option<bool>,
        /// Descriptions of the tools that the model may call; often none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tools: Vec<Value>,
        /// Further variables of the template; often none.
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        variables: Map<String, Value>,
    },
    /// Text as it is.
    Raw(String),
    /// Ids as they are; needs no tokenizer.
    Ids(Vec<u32>),
    /// A prompt that was encoded before; see [`PreparedModel::encoded`](super::PreparedModel::encoded).
    Encoded(Encoded),
}

/// A prompt as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoded {
    /// Its ids.
    pub ids: Vec<u32>,
    /// Whether it leaves the model inside its thinking.
    pub thinking: PromptThinking,
}

/// One request, as a person or a program writes it. Every field may be left out, and an unknown field is refused: in
/// JSON, `{"prompt": "What is 12 + 30?", "budget": "tokens:512"}` is a whole request.
///
/// A field that is left out is resolved from the model where the model knows better, and else has the default of
/// [`Settings`]. See [`PreparedModel::resolve`](super::PreparedModel::resolve).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
pub struct Request {
    /// The user's message. A request has one of `prompt`, `messages` and `ids`.
    pub prompt: Option<String>,
    /// A conversation, whose last message is the user's.
    #[cfg_attr(feature = "serve", schema(value_type = Option<Vec<Object>>))]
    pub messages: Option<Vec<Message>>,
    /// Token ids to continue. They need no tokenizer.
    pub ids: Option<Vec<u32>>,
    /// The system prompt, which precedes the conversation.
    pub system: Option<String>,
    /// Whether `prompt` is taken as it is, without the chat template.
    pub raw: Option<bool>,
    /// Whether the model thinks before it answers, where its chat template has such a switch.
    pub think: Option<bool>,
    /// Descriptions of the tools that the model may call, in OpenAI's form: `{"type": "function", "function":
    /// {"name": …}}`.
    #[cfg_attr(feature = "serve", schema(value_type = Option<Vec<Object>>))]
    pub tools: Option<Vec<Value>>,
    /// Further variables of the chat template, by their names. A variable that it does not read is refused.
    #[cfg_attr(feature = "serve", schema(value_type = Option<Object>))]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// The most tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// Whether generation goes on past the end-of-sequence tokens.
    pub ignore_eos: Option<bool>,
    /// Seed of sampling and of policies that evict at random. Without it a fresh one is drawn.
    pub seed: Option<u64>,
    /// Whether the most likely token is always taken.
    pub greedy: Option<bool>,
    /// Divides the logits; 0 means greedy.
    #[serde(deserialize_with = "finite")]
    pub temperature: Option<f32>,
    /// Draw from this many of the most likely tokens; 0 or -1 means from all.
    pub top_k: Option<i64>,
    /// Draw from the fewest tokens that reach this probability together.
    #[serde(deserialize_with = "finite")]
    pub top_p: Option<f32>,
    /// Draw from tokens that are at least this share as likely as the most likely one.
    #[serde(deserialize_with = "finite")]
    pub min_p: Option<f32>,
    /// Above 1, tokens that occurred before become less likely.
    #[serde(deserialize_with = "finite")]
    pub repetition_penalty: Option<f32>,
    /// Taken off the logit of a token for each time that it was generated, from -2 to 2.
    #[serde(deserialize_with = "finite")]
    pub frequency_penalty: Option<f32>,
    /// Taken off the logit of a token that was generated, once, from -2 to 2.
    #[serde(deserialize_with = "finite")]
    pub presence_penalty: Option<f32>,
    /// Which tokens are evicted.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>, example = "think-clearly"))]
    pub policy: Option<PolicyRef>,
    /// How much may be evicted.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>, example = "tokens:512"))]
    pub budget: Option<Budget>,
    /// Latest tokens that are never evicted.
    pub window: Option<usize>,
    /// Thinking tokens from one probe to the next.
    pub probe_every: Option<usize>,
    /// What is appended at a probe; it ends in `</think>`, or in the model's own closing tag.
    pub probe_text: Option<String>,
    /// Which layers and heads share a kept set.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>))]
    pub scope: Option<Scope>,
    /// The layers whose attention counts in a shared set.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>))]
    pub layers: Option<Layers>,
    /// Whether heads are brought to one scale before they are averaged.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>))]
    pub normalise: Option<Normalise>,
    /// The positions of kept keys after an eviction.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>))]
    pub positions: Option<Positions>,
    /// Where steps of the thinking begin.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>))]
    pub steps: Option<Boundaries>,
    /// How much of each probe's attention the trace records.
    #[cfg_attr(feature = "serve", schema(value_type = Option<String>, example = "layers"))]
    pub attention: Option<AttentionDetail>,
    /// Texts that end the answer, and are no part of it. They have no effect on the thinking. A single text may stand
    /// without a list.
    #[serde(deserialize_with = "stops")]
    pub stop: Option<Vec<String>>,
    /// Ids of tokens that end the answer, and are no part of it.
    pub stop_ids: Option<Vec<u32>>,
    /// Whether the text or the token that ended the answer is part of it after all.
    pub include_stop: Option<bool>,
    /// Thinking tokens after which the engine ends the thinking.
    pub max_thinking_tokens: Option<usize>,
    /// The most tokens outside the thinking.
    pub max_answer_tokens: Option<usize>,
    /// What the answer must look like, as an object or as a text. The thinking before it is free.
    #[serde(deserialize_with = "format")]
    #[cfg_attr(feature = "serve", schema(value_type = Option<Object>))]
    pub answer_format: Option<AnswerFormat>,
    /// Reports the probability of each generated token, and those of so many of the most likely ones, at most 20.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Tokens that each decode step drafts from the text so far, at most 7. The text does not depend on it.
    pub draft: Option<usize>,
}

/// Reads a number that f32 can hold. JSON has numbers that it cannot hold, and no infinity to write them back.
pub(crate) fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    match Option::<f32>::deserialize(deserializer)? {
        Some(number) if !number.is_finite() => Err(serde::de::Error::custom("the number is too large")),
        number => Ok(number),
    }
}

/// A text, or a list of texts.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "serve", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(texts: OneOrMany) -> Self {
        match texts {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// Reads the stop texts, or one without a list.
fn stops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let wrong = |_| serde::de::Error::custom("stop: a text or a list of texts is expected");
    Ok(Option::<OneOrMany>::deserialize(deserializer).map_err(wrong)?.map(Vec::from))
}

/// Reads a format, which is an object or a text, as on the command line.
fn format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AnswerFormat>, D::Error> {
    let wrong = |e: &dyn std::fmt::Display| serde::de::Error::custom(format!("answer_format: {e}"));
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(|e: Error| wrong(&e)),
        Some(value) if value.get("type").is_none() => {
            let types = "json_object, json_schema, regex or choice";
            Err(wrong(&format!("an object with the type {types}, or a text, is expected")))
        }
        Some(value) => serde_json::from_value(value).map(Some).map_err(|e| wrong(&e)),
    }
}

/// A request with nothing left open.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resolved {
    /// What is continued.
    pub prompt: Prompt,
    /// How it is generated and pruned.
    pub settings: Settings,
    /// What a person should know about how the request was resolved: sentences, in order.
    pub notes: Vec<String>,
}

impl Request {
    /// The fields that only secateur has: most say how the cache is pruned, and what is recorded of it. In OpenAI's
    /// interface they are below `secateur`.
    pub const OWN_FIELDS: [&str; 14] = [
        "greedy",
        "policy",
        "budget",
        "window",
        "probe_every",
        "probe_text",
        "scope",
        "layers",
        "normalise",
        "positions",
        "steps",
        "attention",
        "max_answer_tokens",
        "draft",
    ];

    /// A request with a user's message and nothing else.
    pub fn prompting(text: impl Into<String>) -> Self {
        Self { prompt: Some(text.into()), ..Self::default() }
    }

    /// Reads a request from JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for text that is no JSON object, an unknown field, and a value that a field cannot have.
    pub fn from_json(text: &str) -> Result<Self> {
        // serde would take a list as the fields in their order.
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(not_understood)?;
        drop(fields);
        // The text is read again, because its errors have lines and columns.
        serde_json::from_str(text).map_err(not_understood)
    }

    /// This request, with its fields replaced by those that `options` gives. A prompt in `options`, in whichever
    /// form, replaces the prompt; `ids` there also removes `raw`, `system` and `think`, which ids exclude; `greedy`
    /// there replaces the settings of a draw, and vice versa.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where a request has no JSON form, which is a bug.
    pub fn overridden_by(&self, options: &Self) -> Result<Self> {
        const PROMPTS: &[&str] = &["prompt", "messages", "ids"];
        const TEMPLATE: &[&str] = &["raw", "system", "think", "tools", "chat_template_kwargs"];
        const DRAW: &[&str] = &["temperature", "top_k", "top_p", "min_p"];
        let (mut base, over) = (self.given()?, options.given()?);
        for (these, those) in [(PROMPTS, PROMPTS), (&["ids"], TEMPLATE), (&["greedy"], DRAW), (DRAW, &["greedy"])] {
            if these.iter().any(|name| over.contains_key(*name)) {
                those.iter().for_each(|name| drop(base.remove(*name)));
            }
        }
        base.extend(over);
        let mut request: Self = serde_json::from_value(Value::Object(base)).map_err(not_understood)?;
        // The JSON form of a policy is its name, which is not enough to run a policy that is not listed.
        request.policy = options.policy.clone().or_else(|| self.policy.clone());
        Ok(request)
    }

    /// The fields that are given, as JSON.
    fn given(&self) -> Result<Map<String, Value>> {
        let failed = |e| Error::new(ErrorKind::Internal, "the request has no JSON form").found(e);
        match serde_json::to_value(self).map_err(failed)? {
            Value::Object(fields) => Ok(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()),
            _ => Err(Error::new(ErrorKind::Internal, "the request is no JSON object")),
        }
    }

    /// The prompt to continue; `None` for a request that only has settings.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for an empty prompt, for two prompts, and for fields that exclude each other.
    pub fn prompt(&self) -> Result<Option<Prompt>> {
        let refused = |what: &str, place: &str| Err(Error::new(ErrorKind::Input, what).at(place));
        let given = [self.prompt.is_some(), self.messages.is_some(), self.ids.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            return refused("a request has one prompt", "`prompt`, `messages`, `ids`");
        }
        let raw = self.raw == Some(true);
        if raw && self.prompt.is_none() && given.contains(&true) {
            return refused("only a prompt of text can be taken as it is", "`raw`");
        }
        if raw || self.ids.is_some() {
            for (place, given) in [
                ("`system`", self.system.is_some()),
                ("`think`", self.think.is_some()),
                ("`tools`", self.tools.is_some()),
                ("`chat_template_kwargs`", self.chat_template_kwargs.is_some()),
            ] {
                if given {
                    return refused("without the chat template this setting has no effect", place);
                }
            }
        }
        if let Some(ids) = &self.ids {
            return match ids.is_empty() {
                true => Err(empty().at("`ids`").expected("at least one token id")),
                false => Ok(Some(Prompt::Ids(ids.clone()))),
            };
        }
        let spoken = match (&self.prompt, &self.messages) {
            (Some(text), _) if text.trim().is_empty() => return Err(empty().expected("some text")),
            (Some(text), _) if raw => return Ok(Some(Prompt::Raw(text.clone()))),
            (Some(text), _) => vec![Message::user(text.as_str())],
            (None, Some(messages)) if messages.is_empty() => return Err(empty().at("`messages`")),
            (None, Some(messages)) => messages.clone(),
            (None, None) => return Ok(None),
        };
        Ok(Some(Prompt::Messages {
            messages: self.beginning().into_iter().chain(spoken).collect(),
            think: self.think,
            tools: self.tools.clone().unwrap_or_default(),
            variables: self.chat_template_kwargs.clone().unwrap_or_default(),
        }))
    }

    /// The system prompt as the first message of a conversation, if there is one.
    pub fn beginning(&self) -> Option<Message> {
        self.system.as_ref().map(|text| Message::new("system", text.as_str()))
    }

    /// Refuses a request that no model could run, before a model is looked for.
    ///
    /// # Errors
    /// As [`PreparedModel::resolve`](super::PreparedModel::resolve), as far as it does not depend on the model.
    pub fn check(&self) -> Result<()> {
        self.prompt()?;
        let (settings, _) = self.settings(&ModelAdvice::default())?;
        settings.policy.accepts(settings.budget)?;
        // The number of layers is not known yet, but the form of a list can be checked.
        settings.layers.check(usize::MAX, settings.scope)
    }

    /// The settings: those of the request, else the model's advice, else the defaults. If the request does not give
    /// layers, they are left to the caller.
    pub(super) fn settings(&self, model: &ModelAdvice<'_>) -> Result<(Settings, Vec<String>)> {
        let default = Settings::default();
        let mut notes = Vec::new();
        let sampling = self.sampling(model, &mut notes)?;
        let policy = match (&self.policy, model.unprunable) {
            (Some(policy), _) => policy.clone(),
            (None, None) => default.policy,
            (None, Some(why)) => {
                notes.push(format!("{why}: nothing is pruned (`policy` full)"));
                Full.into()
            }
        };
        let seed = match self.seed {
            Some(seed) => seed,
            None => {
                let seed = drawn_seed()?;
                if !sampling.is_greedy() || policy.draws_lots() {
                    notes.push(format!("seed {seed}, drawn for this request; the same `seed` gives the same text"));
                }
                seed
            }
        };
        let probe_every = self.probe_every.or(model.suggestions.map(|s| s.probe_every)).unwrap_or(default.probe_every);
        crate::probe::check_interval(probe_every)?;
        let thinks = model.thinks && self.think != Some(false);
        let most = if thinks { settings::MAX_NEW_TOKENS_THINKING } else { settings::MAX_NEW_TOKENS };
        let mut settings = Settings {
            policy,
            budget: self.budget.unwrap_or(default.budget),
            window: self.window.or(model.suggestions.map(|s| s.window)).unwrap_or(default.window),
            probe_every,
            probe_text: self.probe_text.clone().unwrap_or_else(|| match model.think_close {
                Some(close) => crate::probe::default_text(close),
                None => default.probe_text,
            }),
            sampling,
            seed,
            scope: self.scope.unwrap_or(default.scope),
            layers: self.layers.clone().unwrap_or(default.layers),
            normalise: self.normalise.unwrap_or(default.normalise),
            positions: self.positions.unwrap_or(default.positions),
            steps: self.steps.unwrap_or(default.steps),
            max_new_tokens: self.max_new_tokens.unwrap_or(most),
            ignore_eos: self.ignore_eos.unwrap_or(default.ignore_eos),
            attention: self.attention.unwrap_or(default.attention),
            stop: self.stop.clone().unwrap_or(default.stop),
            stop_ids: self.stop_ids.clone().unwrap_or(default.stop_ids),
            include_stop: self.include_stop.unwrap_or(default.include_stop),
            max_thinking_tokens: self.max_thinking_tokens,
            max_answer_tokens: self.max_answer_tokens,
            answer_format: self.answer_format.clone(),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            draft: self.draft.unwrap_or(default.draft),
        };
        if let Some(why) = settings.undraftable().filter(|_| (1..=MOST_DRAFTS).contains(&settings.draft)) {
            notes.push(format!("{why}: nothing is drafted"));
            settings.draft = 0;
        }
        settings.check_draft()?;
        for (place, most) in [("`logprobs`", self.logprobs), ("`prompt_logprobs`", self.prompt_logprobs)] {
            if most.is_some_and(|most| most > MOST_LOGPROBS) {
                let e = Error::new(ErrorKind::Input, "so many probabilities cannot be reported").at(place);
                return Err(e.expected(format!("at most {MOST_LOGPROBS}")).found(most.unwrap_or(0)));
            }
        }
        if settings.max_answer_tokens == Some(0) {
            let e = Error::new(ErrorKind::Input, "an answer cannot have 0 tokens").at("`max_answer_tokens`");
            return Err(e.expected("at least 1"));
        }
        if let Some(format) = &settings.answer_format {
            format.check()?;
            if settings.ignore_eos {
                let e = Error::new(ErrorKind::Input, "an answer in a format ends with it").at("`ignore_eos`");
                return Err(e.help("leave out `ignore_eos` or `answer_format`"));
            }
        }
        if settings.stop.iter().any(String::is_empty) {
            let e = Error::new(ErrorKind::Input, "an empty text would end every answer").at("`stop`");
            return Err(e.expected("texts of at least one character"));
        }
        Ok((settings, notes))
    }

    /// The sampling settings: those of the request in place of those that the model's authors recommend. A request
    /// for top-k, top-p or min-p implies a draw: if the authors recommend greedy decoding, the temperature is then 1.
    fn sampling(&self, model: &ModelAdvice<'_>, notes: &mut Vec<String>) -> Result<Sampling> {
        let authors = model.generation.map_or(Sampling::GREEDY, Sampling::from_defaults);
        // No probability is enough for nothing: what is left of it is the most likely token.
        let nothing = self.top_p == Some(0.0);
        let greedy = self.greedy == Some(true) || nothing;
        let top_p = self.top_p.filter(|_| !nothing);
        let draws = self.top_k.is_some() || top_p.is_some() || self.min_p.is_some();
        if self.greedy == Some(true) && (draws || self.temperature.is_some_and(|t| t > 0.0)) {
            return Err(Error::new(ErrorKind::Input, "greedy decoding excludes the settings of a random draw")
                .at("`greedy`")
                .help("leave out `temperature`, `top_k`, `top_p` and `min_p`, or `greedy`"));
        }
        let mut sampling = match greedy {
            true => Sampling { repetition_penalty: authors.repetition_penalty, ..Sampling::GREEDY },
            false => authors,
        };
        if !greedy && (draws || self.greedy == Some(false)) && authors.is_greedy() {
            sampling.temperature = 1.0;
        }
        sampling.temperature = self.temperature.filter(|_| !nothing).unwrap_or(sampling.temperature);
        sampling.top_k = match self.top_k {
            None => sampling.top_k,
            // Other engines write -1 for no limit.
            Some(-1) => 0,
            Some(k) => u32::try_from(k).map_err(|_| {
                let e = Error::new(ErrorKind::Input, "a sampling setting is out of range").at("`top_k`");
                e.expected("a number of tokens; 0 or -1 for all").found(k)
            })?,
        };
        sampling.top_p = top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        sampling.frequency_penalty = self.frequency_penalty.unwrap_or(sampling.frequency_penalty);
        sampling.presence_penalty = self.presence_penalty.unwrap_or(sampling.presence_penalty);
        sampling.check()?;
        if sampling.top_k as usize > MOST_CANDIDATES && !sampling.is_greedy() {
            notes.push(format!(
                "`top_k` is {}: only the {MOST_CANDIDATES} most likely tokens are considered, which is the maximum",
                sampling.top_k
            ));
        }
        let silent = |g: &GenerationDefaults| g.do_sample.is_none() && g.temperature.is_none();
        let unasked = !greedy && self.temperature.is_none() && model.generation.is_some_and(silent);
        if model.thinks && sampling.is_greedy() && unasked {
            notes.push(
                "this model's files do not say how to sample, so it decodes greedily; the authors of reasoning models \
                 advise against that: `temperature` 0.6 is common"
                    .into(),
            );
        }
        Ok(sampling)
    }
}

/// What a model contributes to the fields that a request leaves open. The default stands for an unknown model.
#[derive(Clone, Copy, Default)]
pub(super) struct ModelAdvice<'a> {
    /// What its authors recommend.
    pub generation: Option<&'a GenerationDefaults>,
    /// Settings that are known to suit it.
    pub suggestions: Option<Suggestions>,
    /// Whether its tokenizer has a `</think>`, by which thinking is recognised.
    pub thinks: bool,
    /// The tag that ends its thinking, if it has one.
    pub think_close: Option<&'static str>,
    /// Why the default policy cannot prune this model, if it cannot. A policy that the request names reports this
    /// itself.
    pub unprunable: Option<&'static str>,
}

fn empty() -> Error {
    Error::new(ErrorKind::Input, "the prompt is empty")
}

fn not_understood(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Input, "this request is not understood").found(error)
}

/// A random seed below 2^53, which JSON and JavaScript keep exactly.
fn drawn_seed() -> Result<u64> {
    let failed =
        |e| Error::new(ErrorKind::Io, "the system's random number generator failed").found(e).help("give a `seed`");
    Ok(getrandom::u64().map_err(failed)? >> 11)
}
