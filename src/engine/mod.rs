//! The straight path, of any number of sequences side by side:
//!
//! ```text
//! prompt → chat template → tokens → [ decoder graph → logits → sample → token ]* → text
//!                                       │ every p thinking tokens
//!                                       ▼
//!          probe (append, forward once, read </think>'s attention row, roll back)
//!            → scores → steps → plan (which slots stay) → gather on the GPU → resume
//! ```
//!
//! A [`Batch`] has a place for each sequence that runs and a queue of those that wait for one. One turn of its loop admits,
//! forwards a chunk of a prompt, prunes whoever is due, decodes whoever has room, reads ids. [`Engine::run`] is a batch of one.
//!
//! Async throughout: nothing waits for the GPU but the awaits on a readback. Sampled tokens stay on the device and feed the
//! next step; the host reads their ids [`LAG`] steps at a time, one batch behind, and catches up only where it must know the
//! text: before a probe. Results do not depend on how late it reads.
mod batch;
mod prepared;
pub(crate) mod pruning;
mod request;
mod sequence;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use crate::settings::Settings;
pub use batch::Batch;
pub use prepared::PreparedModel;
pub use request::{LoadOptions, Prompt};

use crate::cache::KvCache;
use crate::device::ComputeDevice;
use crate::model::decoder::Decoder;
use crate::policy::Role;
use crate::probe::PromptThinking;
use crate::text::Tokenizer;
use crate::trace::{self, Trace};
use crate::weights::ModelSource;
use crate::{Error, Result};

/// Decode steps between two reads of sampled ids; up to two batches are on their way at once.
pub const LAG: usize = 8;

/// Ids of the prompt that are forwarded at once.
pub const PREFILL_CHUNK: usize = 256;

/// Slots that the cache's capacity is rounded up to.
pub const GROWTH: usize = 64;

/// What a front-end is told while a run goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// The prompt was encoded; prefill begins.
    Start {
        /// Its ids.
        prompt_ids: &'a [u32],
    },
    /// A token was read.
    Token {
        /// Its index among the generated tokens.
        index: usize,
        /// Its id.
        id: u32,
        /// The text that is complete with it; often empty inside a character.
        text: &'a str,
        /// Its part of the sequence.
        role: Role,
    },
    /// A probe was made and its plan carried out.
    Probe(&'a trace::Probe),
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// The generated text, special tokens left out; empty without a tokenizer.
    pub text: String,
    /// Bytes on the device at the end.
    pub bytes: crate::device::DeviceBytes,
    /// Of them, bytes of the KV cache's buffers.
    pub kv_bytes: u64,
    /// Everything else, and the whole story.
    pub trace: Trace,
    /// The largest share of the probability a draw asked for that lay outside its [candidates](crate::sampling::MOST_CANDIDATES):
    /// 0 unless top-k is off or longer than they are.
    pub missed: f32,
    /// What ended the run, if something failed after the first token.
    pub error: Option<Error>,
}

/// What a batch tells a front-end: the number of the request, and what became known of it.
pub type OnEvent<'a> = dyn FnMut(usize, Event<'_>) + 'a;

/// A model on a device, ready to run prompts.
pub struct Engine {
    opened: PreparedModel,
    model: Decoder,
    cache: KvCache,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Loads a model onto `device`: [`PreparedModel::new`], then [`PreparedModel::load`].
    ///
    /// # Errors
    /// What they refuse.
    pub fn load(
        source: &ModelSource,
        name: impl Into<String>,
        device: &ComputeDevice,
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        PreparedModel::new(source, name, options)?.load(source, device, progress)
    }

    /// The model.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    /// Its name, as given to [`load`](Self::load).
    pub fn name(&self) -> &str {
        &self.opened.name
    }

    /// Bytes that the keys and values of one token take, all layers together.
    pub fn slot_bytes(&self) -> u64 {
        self.cache.shape().slot_bytes() as u64 * self.cache.shape().layers as u64
    }

    /// Set it from anywhere to end the current run, or all of a batch, after the steps under way; what was generated is
    /// returned. Starting a run or a batch clears it.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// As [`PreparedModel::encode`].
    ///
    /// # Errors
    /// What it refuses.
    pub fn encode(&self, prompt: &Prompt) -> Result<(Vec<u32>, PromptThinking)> {
        self.opened.encode(prompt)
    }

    /// As [`PreparedModel::tokenizer`].
    ///
    /// # Errors
    /// When the model has none, or a malformed one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.opened.tokenizer()
    }

    /// Generates from `prompt`, pruning as `options` say. `on` is told of every token and probe as they become known.
    ///
    /// # Errors
    /// A prompt beyond the context, a policy that cannot run with this model or budget, a device that fails.
    pub async fn run(
        &mut self,
        prompt: &Prompt,
        options: &Settings,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<RunResult> {
        let mut batch = self.batch();
        batch.add(prompt, options)?;
        let mut ended = batch.run(&mut |_, event| on(event)).await;
        ended.pop().expect("one request, one result").1
    }

    /// An empty batch, with as many places as the engine was loaded for ([`LoadOptions::sequences`]).
    pub fn batch(&mut self) -> Batch<'_> {
        self.stop.store(false, Ordering::Relaxed);
        let places = self.cache.shape().seqs;
        Batch::new(self, places)
    }
}
