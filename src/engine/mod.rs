//! The path of a request. Any number of sequences run side by side:
//!
//! ```text
//! prompt → chat template → tokens → [ decoder graph → logits → sample → token ]* → text
//!                                       │ every p thinking tokens
//!                                       ▼
//!          probe (append, forward once, read </think>'s attention row, roll back)
//!            → scores → steps → plan (which slots stay) → gather on the GPU → resume
//! ```
//!
//! The modules, in the order of the path:
//!
//! - [`Request`]: what a front-end asks for;
//! - [`PreparedModel`]: a model without its weights, which turns a request into ids or refuses it;
//! - [`Batch`]: the scheduler. It has a place for each running sequence and a queue of waiting requests. One turn of
//!   its loop admits requests, forwards a chunk of a prompt, prunes the sequences that are due, decodes those that
//!   have room, and reads ids;
//! - [`Runner`]: the model and the cache together: prefill, decode, hold, probe, keep, resume;
//! - `CachedPrompts`: which sequences begin with which prompt, so that others can copy it;
//! - `Drafts`: guesses of the next tokens, and how far the device may have come with them;
//! - `Pruner`: decides what is measured and which slots stay;
//! - `Sequence`: the host's side of one request, up to its record in the [`trace`](crate::trace);
//! - [`Event`] and [`RunResult`]: what a run reports.
//!
//! [`Engine::run`] is a batch of one request.
//!
//! Everything is async: the host waits for the GPU only where it awaits a readback. Sampled tokens stay on the device
//! and feed the next step. The host reads their ids up to [`LAG`] steps at a time, one burst late, and catches up
//! only where it must know the text: before a probe. Results do not depend on how late it reads.
mod batch;
mod bound;
mod calibrated;
mod drafts;
mod grammar;
mod logprobs;
mod prepared;
mod prompts;
pub(crate) mod pruning;
mod record;
mod rehearsal;
mod repeated;
mod request;
pub(crate) mod runner;
mod sequence;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use crate::probe::PromptThinking;
pub use crate::settings::Settings;
pub use batch::{Batch, Status};
pub use bound::Bound;
pub use logprobs::{Logprobs, MOST_LOGPROBS};
pub use prepared::PreparedModel;
pub use record::{Event, GROWTH, LAG, OnEvent, RunResult};
pub use rehearsal::Rehearsal;
pub use request::{Encoded, LoadOptions, Prompt, Request, Resolved};
#[cfg(all(feature = "serve", not(target_family = "wasm")))]
pub(crate) use request::{OneOrMany, finite};
pub(crate) use runner::Runner;
#[cfg(all(feature = "serve", not(target_family = "wasm")))]
pub(crate) use sequence::TOO_LONG;

use crate::Result;
use crate::device::ComputeDevice;
use crate::model::decoder::Decoder;
use crate::text::Tokenizer;
use crate::trace::Trace;
use crate::weights::ModelSource;

/// A model on a device, ready to run prompts.
pub struct Engine {
    prepared: Arc<PreparedModel>,
    runner: Runner,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Loads a model onto `device` by [`PreparedModel::new`] and [`PreparedModel::load`].
    ///
    /// # Errors
    /// Those of the two methods.
    pub fn load(
        source: &ModelSource,
        name: impl Into<String>,
        device: &ComputeDevice,
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        PreparedModel::new(source, name, options)?.load(source, device, progress)
    }

    /// The model with its weights. Other runners may share it.
    pub fn model(&self) -> &Arc<Decoder> {
        self.runner.model()
    }

    /// The model without its weights. Other threads may resolve and encode requests with it while the engine
    /// computes.
    pub fn prepared(&self) -> Arc<PreparedModel> {
        self.prepared.clone()
    }

    /// The model's name, as given to [`load`](Self::load).
    pub fn name(&self) -> &str {
        &self.prepared.name
    }

    /// The number of sequences that can be cached at one time.
    pub fn places(&self) -> usize {
        self.runner.cache().shape().seqs
    }

    /// Bytes of the keys and values of one token, all layers together.
    pub fn slot_bytes(&self) -> u64 {
        self.runner.cache().shape().token_bytes()
    }

    /// Calls [`PreparedModel::context`].
    pub fn context(&self) -> usize {
        self.prepared.context()
    }

    /// The most slots that a sequence's cache can have on this device: each layer is one buffer, and shaders bind it
    /// whole.
    pub fn most_slots(&self) -> u64 {
        self.model().device().info.max_binding_bytes / self.runner.cache().shape().slot_bytes() as u64
    }

    /// A flag that ends the current run, or all requests of a batch, after the steps under way. It may be set from
    /// any thread. What was generated until then is returned. Starting a run or a batch clears it.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Calls [`PreparedModel::encode`].
    ///
    /// # Errors
    /// The errors of that method.
    pub fn encode(&self, prompt: &Prompt) -> Result<(Vec<u32>, PromptThinking)> {
        self.prepared.encode(prompt)
    }

    /// Calls [`PreparedModel::resolve`].
    ///
    /// # Errors
    /// The errors of that method.
    pub fn resolve(&self, request: &Request) -> Result<Resolved> {
        self.prepared.resolve(request)
    }

    /// Calls [`PreparedModel::check_on`] for this engine's device.
    ///
    /// # Errors
    /// The errors of that method.
    pub fn cache_note(&self, prompt: &Prompt, settings: &Settings) -> Result<Option<String>> {
        self.prepared.check_on(prompt, settings, self.model().device())
    }

    /// The tokenizer; see [`PreparedModel::tokenizer`].
    ///
    /// # Errors
    /// When the model has no tokenizer, or a malformed one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.prepared.tokenizer()
    }

    /// Generates from `prompt` and prunes as `settings` say. `on` is called with every token and probe as they become
    /// known.
    ///
    /// # Errors
    /// A prompt longer than the context, a policy that cannot run with this model or budget, a device that fails.
    pub async fn run(
        &mut self,
        prompt: &Prompt,
        settings: &Settings,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<RunResult> {
        let mut batch = self.batch();
        batch.add(prompt, settings)?;
        loop {
            if let Some((_, result)) = batch.step(&mut |_, event| on(event)).await.pop() {
                return result;
            }
        }
    }

    /// Forwards `ids` behind `prompt` as if the model had written them, and prunes as `settings` say. So the
    /// decisions of two devices about one text can be compared, although the devices might write different texts. The
    /// trace has the given tokens and what the probes measured and evicted. Nothing is generated, so the text is
    /// forwarded in chunks, which takes much less time than a run.
    ///
    /// It ends with a token that ends a run, or with the last of `ids`, and then as a cancelled one.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub async fn follow(&mut self, prompt: &Prompt, settings: &Settings, ids: &[u32]) -> Result<Trace> {
        let result = self.batch().follow(prompt, settings, ids).await?;
        result.error.map_or(Ok(result.trace), Err)
    }

    /// Keeps the beginning of the cache of requests that have ended, which holds their prompts, in up to `bytes` of
    /// memory. A later request that begins with the same tokens, such as the next message of a conversation, copies
    /// them, and its result has the same bits as without. What is kept yields to requests that need its place or its
    /// memory. Nothing is kept with 0, the default.
    pub fn keep_prompts(&mut self, bytes: u64) {
        self.runner.keep_prompts(bytes);
    }

    /// An empty batch, with as many places as the engine was loaded for ([`LoadOptions::sequences`]).
    pub fn batch(&mut self) -> Batch<'_> {
        self.stop.store(false, Ordering::Relaxed);
        Batch::new(&self.prepared, &mut self.runner, &self.stop)
    }
}
