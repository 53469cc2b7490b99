//! A model without its weights: what it is, how text becomes ids, and whether a request could run.
use super::request::{LoadOptions, Prompt};
use super::sequence::{ModelFacts, Sequence};
use super::{Engine, GROWTH};
use crate::cache::{CacheShape, KvCache};
use crate::device::ComputeDevice;
use crate::model::config::ModelConfig;
use crate::model::decoder::{self, Decoder};
use crate::probe::PromptThinking;
use crate::settings::Settings;
use crate::text::{ChatTemplate, Message, RenderOptions, ThinkIds, ThinkingState, Tokenizer};
use crate::weights::{ModelSource, Weights};
use crate::{Error, ErrorKind, Result};
use std::sync::Arc;

/// A model without its weights: all that a request can be refused by before gigabytes are read.
pub struct PreparedModel {
    pub(super) name: String,
    pub(super) config: ModelConfig,
    context: usize,
    shape: CacheShape,
    tokenizer: Result<Tokenizer>,
    template: Result<ChatTemplate>,
}

impl PreparedModel {
    /// Reads everything but the weights. A missing tokenizer or chat template is an error only once text needs it.
    ///
    /// # Errors
    /// What [`ModelConfig::load`], [`ModelConfig::context`] and [`CacheShape::new`] refuse.
    pub fn new(source: &ModelSource, name: impl Into<String>, options: &LoadOptions) -> Result<Self> {
        let config = ModelConfig::load(source)?;
        let context = config.context(options.context)?;
        let shape = CacheShape::new(&config, options.kv, options.sequences.max(1), GROWTH)?;
        let (tokenizer, template) = (Tokenizer::load(source), ChatTemplate::load(source));
        Ok(Self { name: name.into(), config, context, shape, tokenizer, template })
    }

    /// Loads the weights onto `device`. `progress` is told (parts loaded, of how many).
    ///
    /// # Errors
    /// What [`decoder::check_attention`], [`Weights::open`] and [`Decoder::load`] refuse.
    pub fn load(
        self,
        source: &ModelSource,
        device: &ComputeDevice,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Engine> {
        self.shape.check(&device.info)?;
        decoder::check_attention(&self.config, self.shape.seqs, self.context, device)?;
        let weights = Weights::open(source)?;
        let model = Decoder::load(&self.config, &weights, self.context, device, progress)?;
        let cache = KvCache::new(self.shape, device);
        Ok(Engine { opened: self, model, cache, stop: Arc::default() })
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Positions there will be room for.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The ids of a prompt, and where it leaves the thinking.
    ///
    /// # Errors
    /// No tokenizer or template where one is needed; a template that raises; an empty prompt.
    pub fn encode(&self, prompt: &Prompt) -> Result<(Vec<u32>, PromptThinking)> {
        let of = |state| match state {
            ThinkingState::Open => PromptThinking::Open,
            ThinkingState::Closed => PromptThinking::Closed,
            ThinkingState::None => PromptThinking::NotOpened,
        };
        let rendered = |messages: &[Message], options: &RenderOptions| {
            // First: without it, the advice to do without a template would lead nowhere.
            let tokenizer = self.tokenizer()?;
            let rendered = self.template()?.render(messages, options)?;
            Ok((tokenizer.encode(&rendered.text)?, of(rendered.thinking)))
        };
        let (ids, thinking) = match prompt {
            Prompt::Chat(text) => rendered(&[Message::user(text.as_str())], &RenderOptions::default())?,
            Prompt::Messages { messages, think } => {
                if think.is_some() {
                    self.template()?.check_thinking_switch()?;
                }
                rendered(messages, &RenderOptions { enable_thinking: *think, ..RenderOptions::default() })?
            }
            Prompt::Raw(text) => (self.tokenizer()?.encode(text)?, of(crate::text::thinking_state(text))),
            Prompt::Ids(ids) => {
                let thinking = match &self.tokenizer {
                    // Nobody can tell thinking from answer: all of it counts as thinking.
                    Err(_) => PromptThinking::Open,
                    Ok(tokenizer) => {
                        let ThinkIds { open, close } = tokenizer.think_ids();
                        PromptThinking::of(ids, open, close)
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

    /// The tokenizer.
    ///
    /// # Errors
    /// When the model has none, or a malformed one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().map_err(Error::clone)
    }

    /// The chat template.
    ///
    /// # Errors
    /// When the model has none, or a malformed one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().map_err(Error::clone)
    }

    /// Whether this request could run, as far as can be told without weights.
    ///
    /// # Errors
    /// As [`Batch::add`].
    pub fn check(&self, prompt: &Prompt, options: &Settings) -> Result<()> {
        self.sequence(0, prompt, options).map(|_| ())
    }

    pub(super) fn sequence(&self, id: usize, prompt: &Prompt, options: &Settings) -> Result<Sequence> {
        let (ids, thinking) = self.encode(prompt)?;
        let facts = ModelFacts {
            tokenizer: &self.tokenizer,
            vocab_size: self.config.vocab_size,
            eos: &self.config.eos_token_ids,
            context: self.context,
            layers: self.config.num_layers,
            kv_heads: self.config.num_kv_heads,
        };
        Sequence::new(id, ids, thinking, options, &facts)
    }
}
