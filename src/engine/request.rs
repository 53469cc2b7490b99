//! What is asked of the engine: how a model is loaded, what is continued, how it is generated and pruned.
use crate::dtype::Dtype;
use crate::policy::{self, Budget, Layers, Normalise, Positions, Scope};
use crate::probe;
use crate::sampling::Sampling;
use crate::text::Message;
use crate::trace::AttentionDetail;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Element type of the KV cache: `F32` or `F16`.
    pub kv: Dtype,
    /// Positions to load for; `None`: the model's own maximum, at most 32,768.
    pub context: Option<usize>,
    /// Sequences that run side by side at most.
    pub sequences: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { kv: Dtype::F16, context: None, sequences: 1 }
    }
}

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A user's message, put through the model's chat template.
    Chat(String),
    /// A conversation, put through the model's chat template. Its last message is the user's.
    Messages {
        /// System prompt, questions and answers, in order. What the assistant thought is not part of its answers.
        messages: Vec<Message>,
        /// Whether to think; `None` leaves it to the template.
        think: Option<bool>,
    },
    /// Text as it is.
    Raw(String),
    /// Ids as they are; needs no tokenizer.
    Ids(Vec<u32>),
}

/// How to generate and prune.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Name of the eviction policy.
    pub policy: String,
    /// What to keep.
    pub budget: Budget,
    /// Latest tokens that are never evicted.
    pub window: usize,
    /// Thinking tokens from one probe to the next.
    pub probe_every: usize,
    /// What is appended at a probe.
    pub probe_text: String,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Of the lots that sampling draws, and policies.
    pub seed: u64,
    /// Who shares a kept set.
    pub scope: Scope,
    /// The layers that vote on a shared set.
    pub layers: Layers,
    /// Whether heads are brought to one scale before they vote.
    pub normalise: Normalise,
    /// Where kept keys stand after an eviction.
    pub positions: Positions,
    /// Go on past the model's end-of-sequence tokens, for measurements.
    pub ignore_eos: bool,
    /// How much of each probe's attention the trace records. What is generated does not depend on it.
    pub attention: AttentionDetail,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 2048,
            policy: policy::DEFAULT_POLICY.into(),
            budget: Budget::default(),
            window: policy::DEFAULT_WINDOW,
            probe_every: probe::DEFAULT_PROBE_EVERY,
            probe_text: probe::DEFAULT_PROBE_TEXT.into(),
            sampling: Sampling::GREEDY,
            seed: 0,
            scope: Scope::default(),
            layers: Layers::default(),
            normalise: Normalise::default(),
            positions: Positions::default(),
            ignore_eos: false,
            attention: AttentionDetail::Off,
        }
    }
}
