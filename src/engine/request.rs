//! What is asked of the engine: how a model is loaded, what is continued, how it is generated and pruned.
use crate::dtype::Dtype;
use crate::text::Message;

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
