//! What a run reports: its events and its result, and the step sizes in which it advances.
use super::Logprobs;
use crate::Error;
use crate::device::DeviceBytes;
use crate::policy::Role;
use crate::text::Message;
use crate::trace::{self, Trace};

/// The most decode steps in a burst: between two reads of sampled ids. Up to two bursts are on their way at once. A
/// slow device has shorter ones, so that its text does not come in lumps.
pub const LAG: usize = 8;

/// The cache's capacities are rounded up to a multiple of this many slots.
pub const GROWTH: usize = 64;

/// What a run reports while it is under way.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The prompt was encoded; prefill begins.
    Start {
        /// The ids of the prompt.
        prompt_ids: &'a [u32],
    },
    /// A token was read.
    Token {
        /// The token's index among the generated tokens.
        index: usize,
        /// The token's id.
        id: u32,
        /// The text that this token releases: whole characters that cannot become part of a stop string. Often empty
        /// inside a character.
        text: &'a str,
        /// The token's role.
        role: Role,
        /// The probabilities at the token's place, if the request has [`logprobs`](crate::Settings::logprobs).
        logprobs: Option<&'a Logprobs>,
    },
    /// Text that was held back for a stop string that did not follow, or for the end of a character. The texts of all
    /// events together are [`RunResult::text`].
    Rest {
        /// The text that was held back.
        text: &'a str,
        /// The role of the token that the text belongs to.
        role: Role,
    },
    /// A probe was made and its plan carried out.
    Probe(&'a trace::Probe),
    /// The model seems to repeat itself: the latest 64 tokens all complete a run of 12 ids that occurred before.
    /// Reported once in a run.
    Repetition {
        /// Index of the latest of these tokens among the generated ones.
        index: usize,
    },
}

/// The result of a run.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// The generated text, special tokens left out; empty without a tokenizer.
    pub text: String,
    /// Bytes on the device at the end.
    pub bytes: DeviceBytes,
    /// The part of these bytes that the buffers of the KV cache take.
    pub kv_bytes: u64,
    /// The text that the model wrote outside its thinking, without special tokens and without white space around it;
    /// empty without a tokenizer.
    pub answer: String,
    /// Whether the run ended while the model was still thinking, so that its answer is missing.
    pub thinking_unfinished: bool,
    /// Whether the answer has a format and ended before it was complete in that format.
    pub format_unfinished: bool,
    /// The record of the run: settings, tokens, probes and totals.
    pub trace: Trace,
    /// The largest share of the requested probability that lay outside the candidates of a draw. It is 0 unless top-k
    /// is off or exceeds [`MOST_CANDIDATES`](crate::sampling::MOST_CANDIDATES).
    pub missed: f32,
    /// The probabilities of the tokens of the prompt from the second on, each given those before it, if the request
    /// has [`prompt_logprobs`](crate::Settings::prompt_logprobs); else empty.
    pub prompt_logprobs: Vec<Logprobs>,
    /// Tokens of the prompt that were copied from the cache of another request with the same beginning, and not
    /// computed again.
    pub shared_tokens: usize,
    /// The error that ended the run, if it failed after its first token.
    pub error: Option<Error>,
}

impl RunResult {
    /// The answer as the next message of a conversation, without the thinking, as chat templates expect it. `None` if
    /// no answer came; the conversation then continues without the question too.
    pub fn message(&self) -> Option<Message> {
        (!self.answer.is_empty()).then(|| Message::new("assistant", self.answer.as_str()))
    }
}

/// Event callback. It is called with the number of the request and the event.
pub type OnEvent<'a> = dyn FnMut(usize, Event<'_>) + 'a;
