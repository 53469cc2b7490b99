//! A model without its weights: what it is, how text becomes ids, and whether a request could run.
use super::bound::{Bound, Slots};
use super::calibrated::Calibrated;
use super::grammar::{Grammar, Grammars};
use super::request::{Encoded, LoadOptions, ModelAdvice, Prompt, Request, Resolved};
use super::sequence::{ModelFacts, Sequence};
use super::{Engine, GROWTH, Runner};
use crate::answer_format::AnswerFormat;
use crate::cache::CacheShape;
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::model::config::ModelConfig;
use crate::model::decoder::{self, Decoder};
use crate::policy::Scope;
use crate::probe::PromptThinking;
use crate::settings::Settings;
use crate::text::{ChatTemplate, Marked, Message, RenderOptions, ThinkIds, ThinkingState, Tokenizer};
use crate::weights::precision::Precision;
use crate::weights::{ModelSource, Suggestions, Weights};
use crate::{Error, ErrorKind, Result};
use std::sync::{Arc, OnceLock};

/// A model without its weights. Every request that cannot run is refused here, before gigabytes are read.
pub struct PreparedModel {
    pub(super) name: String,
    pub(super) config: ModelConfig,
    /// The path of the file with the configuration, for messages.
    place: String,
    context: usize,
    shape: CacheShape,
    precision: Option<Precision>,
    tokenizer: Result<Tokenizer>,
    template: Result<ChatTemplate>,
    suggestions: Option<Suggestions>,
    calibrated: Option<Calibrated>,
    /// Made when the first request with a format arrives.
    grammars: OnceLock<Result<Grammars>>,
}

impl PreparedModel {
    /// Reads everything but the weights. A missing tokenizer or chat template is an error only once text needs it.
    ///
    /// # Errors
    /// The errors of [`ModelConfig::load`], [`ModelConfig::context`] and [`CacheShape::new`].
    pub fn new(source: &ModelSource, name: impl Into<String>, options: &LoadOptions) -> Result<Self> {
        let mut config = ModelConfig::load(source)?;
        let context = config.context(options.context)?;
        let shape = CacheShape::new(&config, options.kv, options.sequences.max(1), GROWTH)?;
        let (tokenizer, template) = (Tokenizer::load(source), ChatTemplate::load(source));
        if let (Ok(tokenizer), Ok(template)) = (&tokenizer, &template) {
            config.add_turn_end(tokenizer, template);
        }
        let (suggestions, calibrated) = (source.suggestions(), Calibrated::beside(source));
        Ok(Self {
            name: name.into(),
            config,
            place: source.place_of("config.json"),
            context,
            shape,
            precision: options.weights,
            tokenizer,
            template,
            suggestions,
            calibrated,
            grammars: OnceLock::new(),
        })
    }

    /// Loads the weights onto `device`. `progress` is called with the number of loaded parts and the number of all
    /// parts.
    ///
    /// # Errors
    /// The errors of [`check_device`](Self::check_device), [`Weights::open`] and [`Decoder::load`].
    pub fn load(
        mut self,
        source: &ModelSource,
        device: &ComputeDevice,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Engine> {
        self.check_device(device)?;
        let weights = Weights::open(source)?;
        self.calibrated.iter_mut().for_each(Calibrated::release_memory);
        let model = Arc::new(Decoder::load(&self.config, &weights, self.context, self.precision, device, progress)?);
        let runner = Runner::new(model, self.shape);
        Ok(Engine { prepared: Arc::new(self), runner, stop: Arc::default() })
    }

    /// Checks that this model, context and number of sequences can run on `device`. Reads no weights.
    ///
    /// # Errors
    /// The errors of [`decoder::check_device`] and [`Runner::check`].
    pub fn check_device(&self, device: &ComputeDevice) -> Result<()> {
        Runner::check(self.config.vocab_size, &self.shape, device)?;
        decoder::check_device(&self.config, self.shape.seqs, self.context, device).map_err(|error| match error.kind() {
            ErrorKind::Model => error.at(&self.place),
            _ => error,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The element type of the KV cache.
    pub(super) fn kv(&self) -> Dtype {
        self.shape.dtype
    }

    /// The precision to which the weights are quantized as they are loaded, if they are.
    pub(super) fn precision(&self) -> Option<Precision> {
        self.precision
    }

    /// Positions that the model is loaded for: the prompt and what is generated share them.
    pub fn context(&self) -> usize {
        self.context
    }

    /// A prompt that a batch can take without encoding it again. Encoding a long prompt takes seconds, in which an
    /// engine would compute nothing; this may be called on any thread.
    ///
    /// # Errors
    /// The errors of [`encode`](Self::encode).
    pub fn encoded(&self, prompt: &Prompt) -> Result<Encoded> {
        let (ids, thinking) = self.encode(prompt)?;
        Ok(Encoded { ids, thinking })
    }

    /// The ids of a prompt, and whether it leaves the model inside its thinking. Messages become ordinary tokens even
    /// where they spell control tokens such as `<|im_end|>` (see [`Tokenizer::encode_rendered`]); a
    /// [raw](Prompt::Raw) prompt may contain control tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for an empty prompt; [`ErrorKind::Model`] where a tokenizer or chat template is needed
    /// and missing, or the template raises an error.
    pub fn encode(&self, prompt: &Prompt) -> Result<(Vec<u32>, PromptThinking)> {
        let prompt_thinking = |state| match state {
            ThinkingState::Open => PromptThinking::Open,
            ThinkingState::Closed => PromptThinking::Closed,
            ThinkingState::None => PromptThinking::NotOpened,
        };
        let rendered = |messages: &[Message], options: &RenderOptions| {
            // The tokenizer comes first: if both are missing, advice to go without a template would not help.
            let tokenizer = self.tokenizer()?;
            let Marked { messages, options, marks } = Marked::new(tokenizer.controls(), messages, options);
            let rendered = self.template()?.render(&messages, &options)?;
            self.refuse_far_too_long(&rendered.text)?;
            Ok((tokenizer.encode_rendered(&rendered.text, &marks)?, prompt_thinking(rendered.thinking)))
        };
        let (ids, thinking) = match prompt {
            Prompt::Chat(text) => rendered(&[Message::user(text.as_str())], &RenderOptions::default())?,
            Prompt::Messages { messages, think, tools, variables } => {
                let template = self.template()?;
                if think.is_some() {
                    template.check_thinking_switch()?;
                }
                if !tools.is_empty() {
                    template.check_tools()?;
                }
                template.check_variables(variables)?;
                let options = RenderOptions {
                    enable_thinking: *think,
                    tools: (!tools.is_empty()).then(|| tools.clone().into()),
                    extra: variables.clone(),
                    now: None,
                };
                template.check_system(messages, &options)?;
                rendered(messages, &options)?
            }
            Prompt::Raw(text) => {
                let tokenizer = self.tokenizer()?;
                self.refuse_far_too_long(text)?;
                (tokenizer.encode_whole(text)?, prompt_thinking(crate::text::thinking_state(text)))
            }
            Prompt::Encoded(Encoded { ids, thinking }) => (ids.clone(), *thinking),
            Prompt::Ids(ids) => {
                let thinking = match &self.tokenizer {
                    // The thinking cannot be distinguished from the answer, so all tokens count as thinking.
                    Err(_) => PromptThinking::Open,
                    Ok(tokenizer) => {
                        let ThinkIds { open, close } = tokenizer.think_ids();
                        PromptThinking::from_ids(ids, open, close)
                    }
                };
                (ids.clone(), thinking)
            }
        };
        if ids.is_empty() {
            return Err(Error::new(ErrorKind::Input, "the prompt is empty").expected("at least one token"));
        }
        Ok((ids, thinking))
    }

    /// Refuses a text that is far longer than the context after encoding only its beginning, because encoding takes
    /// seconds and gigabytes for a text of some megabytes.
    pub(crate) fn refuse_far_too_long(&self, text: &str) -> Result<()> {
        let tokenizer = self.tokenizer()?;
        // Few texts have 16 or more bytes per token on average. If this text has, twice as many bytes are tried.
        let mut bytes = self.context.saturating_mul(16).max(1 << 16);
        while bytes < text.len() {
            let beginning = &text[..text.floor_char_boundary(bytes)];
            let tokens = tokenizer.encode(beginning)?.len();
            // The text may be cut inside a word, so the beginning may have a few more tokens than its share.
            if tokens / 2 > self.context {
                return Err(super::sequence::too_long(
                    self.context,
                    format!("{} bytes, of which the first {} are {tokens} tokens", text.len(), beginning.len()),
                ));
            }
            bytes = bytes.saturating_mul(2);
        }
        Ok(())
    }

    /// The model's tokenizer, for encoding prompts and decoding ids.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the model has none, or a malformed one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().map_err(Error::clone)
    }

    /// The model's chat template, which turns messages into a prompt.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the model has none, or a malformed one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().map_err(Error::clone)
    }

    /// Fills in what a request leaves open. This is the only place where that is decided, so every front-end decides
    /// alike.
    ///
    /// A field has the first of these values that exists:
    /// 1. the value in the request;
    /// 2. for sampling, what the model's authors recommend: `generation_config.json`, or `general.sampling.*` of a
    ///    GGUF file;
    /// 3. for the layers, the choice of `secateur calibrate` beside the model, if it was made for this policy and
    ///    these weights;
    /// 4. for the window and the interval of probes, what is known to suit the model (the built-in one);
    /// 5. the default of [`Settings`].
    ///
    /// Three defaults depend on more. Where the tokenizer has no `</think>` for a probe to read, the policy is
    /// `full`. A seed is drawn. A model that thinks may generate [more
    /// tokens](crate::settings::MAX_NEW_TOKENS_THINKING).
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a request without a prompt, and the errors of [`check`](Self::check).
    pub fn resolve(&self, request: &Request) -> Result<Resolved> {
        let prompt = request.prompt()?.ok_or_else(no_prompt)?;
        let (settings, notes) = self.settings(request)?;
        self.check(&prompt, &settings)?;
        Ok(Resolved { prompt, settings, notes })
    }

    /// Resolves a request like [`resolve`](Self::resolve), and encodes its prompt: the result needs no further work
    /// before it is added to a batch.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn resolve_encoded(&self, request: &Request) -> Result<Resolved> {
        let prompt = request.prompt()?.ok_or_else(no_prompt)?;
        let (settings, notes) = self.settings(request)?;
        let prompt = Prompt::Encoded(self.encoded(&prompt)?);
        self.check(&prompt, &settings)?;
        Ok(Resolved { prompt, settings, notes })
    }

    /// The settings of a request, and notes about them for people. The request needs no prompt for this.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn settings(&self, request: &Request) -> Result<(Settings, Vec<String>)> {
        let closes = |tokenizer: &Tokenizer| tokenizer.think_ids().close.is_some();
        let thinks = self.tokenizer.as_ref().is_ok_and(closes);
        let tags = self.tokenizer.as_ref().ok().filter(|_| thinks).map(Tokenizer::think_tags);
        let (mut settings, mut notes) = request.settings(&ModelAdvice {
            think_close: tags.map(|tags| tags.close),
            generation: Some(&self.config.generation),
            suggestions: self.suggestions,
            thinks,
            unprunable: match &self.tokenizer {
                _ if thinks => None,
                Ok(_) => Some("this tokenizer has no single </think>"),
                Err(_) => Some("there is no tokenizer, so there are no steps"),
            },
        })?;
        let votes = settings.scope == Scope::Shared && settings.policy.needs().scores();
        if let Some(calibrated) = self.calibrated.as_ref().filter(|_| votes && request.layers.is_none()) {
            notes.push(calibrated.apply(&mut settings, self.config.num_layers, self.precision)?);
        }
        settings.layers.check(self.config.num_layers, settings.scope)?;
        settings.policy.accepts(settings.budget)?;
        Ok((settings, notes))
    }

    /// Whether this request could run, as far as that can be decided without weights.
    ///
    /// # Errors
    /// As [`Batch::add`](super::Batch::add).
    pub fn check(&self, prompt: &Prompt, settings: &Settings) -> Result<()> {
        self.sequence(0, prompt, settings).map(|_| ())
    }

    /// Whether this request could run on `device`, as far as that can be decided without weights. Returns a note for
    /// the user, if the KV cache can become too large for the device: after how many tokens. `None` if it cannot.
    ///
    /// # Errors
    /// Those of [`check_device`](Self::check_device), [`check`](Self::check) and
    /// [`check_prompt`](Self::check_prompt).
    pub fn check_on(&self, prompt: &Prompt, settings: &Settings, device: &ComputeDevice) -> Result<Option<String>> {
        self.check_device(device)?;
        let sequence = self.sequence(0, prompt, settings)?;
        let (prompt, needed) = (sequence.prompt.len(), sequence.most_slots());
        self.check_prompt(prompt, device)?;
        let most = self.shape.most_slots(&device.info);
        if needed <= most {
            return Ok(None);
        }
        let (after, bytes) = (most - prompt, device.info.max_binding_bytes);
        let ends = match settings.policy.evicts() {
            false => format!("nothing is pruned, so the run ends after about {after} tokens"),
            true => {
                format!("the run ends early if more is kept; without any eviction, that is after about {after} tokens")
            }
        };
        Ok(Some(format!(
            "the cache can hold {most} slots on this device, whose largest buffer has {bytes} bytes: {ends} (`kv` f16 and \
             `budget` tokens:N need less)"
        )))
    }

    /// Checks that the cache on `device` can hold a prompt of this many tokens, if no other sequence is cached.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a layer's buffer would exceed what the device can bind.
    pub fn check_prompt(&self, tokens: usize, device: &ComputeDevice) -> Result<()> {
        self.shape.check_prompt(tokens, &device.info)
    }

    /// The most memory that a request with a prompt of this many tokens can need while it runs.
    /// [`Batch::set_memory`](super::Batch::set_memory) limits the sum of these bounds.
    ///
    /// Only a budget of `tokens:N` together with [`max_answer_tokens`](Settings::max_answer_tokens) bounds the cache
    /// below the tokens that may be generated: other budgets keep more of a longer thought, and an answer is never
    /// pruned.
    pub fn bound(&self, prompt: usize, settings: &Settings) -> Bound {
        self.bound_in(&self.shape, prompt, settings)
    }

    /// The most bytes of cache that `requests` requests of this kind need side by side.
    pub fn bytes_together(&self, requests: usize, prompt: usize, settings: &Settings) -> u64 {
        // With one sequence, the bound has the parts of one place; it is then multiplied.
        let shape = CacheShape { seqs: 1, ..self.shape };
        self.bound_in(&shape, prompt, settings).bytes.saturating_mul(requests as u64)
    }

    fn bound_in(&self, shape: &CacheShape, prompt: usize, settings: &Settings) -> Bound {
        let probe = match (settings.policy.needs().probes(), &self.tokenizer) {
            // A probe that cannot be encoded is refused elsewhere. Its number of bytes bounds its number of tokens.
            (true, Ok(tokenizer)) => {
                tokenizer.encode(&settings.probe_text).map_or(settings.probe_text.len(), |ids| ids.len())
            }
            _ => 0,
        };
        Slots { prompt, probe, context: self.context, settings }.bound(shape, self.config.q_size())
    }

    /// The most bytes that the caches of all sequences can take on `device`: each layer is one buffer, and shaders
    /// bind it whole. A GPU can have less memory than that.
    pub fn cache_limit(&self, device: &ComputeDevice) -> u64 {
        (device.info.max_binding_bytes / self.shape.slot_bytes() as u64).saturating_mul(self.shape.token_bytes())
    }

    /// The number of requests with a prompt of this many tokens and these settings that run side by side on `device`
    /// if their caches may take `memory` bytes: at least 1 and at most `most`. It also counts what the device's
    /// largest buffers allow.
    pub fn side_by_side(
        &self,
        prompt: usize,
        settings: &Settings,
        memory: u64,
        most: usize,
        device: &ComputeDevice,
    ) -> usize {
        let most_slots = self.shape.most_slots(&device.info);
        let fits = |seqs: &usize| {
            let shape = CacheShape { seqs: *seqs, ..self.shape };
            let bound = self.bound_in(&shape, prompt, settings);
            let together =
                bound.bytes.saturating_mul(*seqs as u64) <= memory && bound.slots.saturating_mul(*seqs) <= most_slots;
            together
                && Runner::check(self.config.vocab_size, &shape, device).is_ok()
                && decoder::check_device(&self.config, *seqs, self.context, device).is_ok()
        };
        (1..=most).rev().find(fits).unwrap_or(1)
    }

    pub(super) fn sequence(&self, id: usize, prompt: &Prompt, settings: &Settings) -> Result<Sequence> {
        let (ids, thinking) = self.encode(prompt)?;
        let grammar = settings.answer_format.as_ref().map(|format| self.grammar(format)).transpose()?;
        let facts = ModelFacts {
            tokenizer: &self.tokenizer,
            vocab_size: self.config.vocab_size,
            eos: &self.config.eos_token_ids,
            context: self.context,
            precision: self.precision,
            layers: self.config.num_layers,
            kv_heads: self.config.num_kv_heads,
            shape: &self.shape,
            query_cols: self.config.q_size(),
        };
        Sequence::new(id, ids, thinking, grammar, settings, &facts)
    }

    /// The beginning of an answer in this format.
    fn grammar(&self, format: &AnswerFormat) -> Result<Grammar> {
        let grammars = self.grammars.get_or_init(|| {
            let tokenizer = self.tokenizer().map_err(|e| e.at("`answer_format`"))?;
            let calls = self.template.as_ref().ok().and_then(ChatTemplate::call_format);
            Grammars::new(tokenizer, self.config.vocab_size, &self.config.eos_token_ids, calls)
        });
        grammars.as_ref().map_err(Error::clone)?.begin(format)
    }
}

fn no_prompt() -> Error {
    Error::new(ErrorKind::Input, "this request has no prompt").expected("one of `prompt`, `messages` and `ids`")
}
