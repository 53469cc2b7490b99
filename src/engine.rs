//! The straight path of one sequence:
//!
//! ```text
//! prompt → chat template → tokens → [ decoder graph → logits → sample → token ]* → text
//!                                       │ every p thinking tokens
//!                                       ▼
//!          probe (append, forward once, read </think>'s attention row, roll back)
//!            → scores → steps → plan (which slots stay) → gather on the GPU → resume
//! ```
//!
//! Async throughout: nothing waits for the GPU but the awaits on a readback. Sampled tokens stay on the device and feed the
//! next step; the host reads their ids [`LAG`] steps at a time, one batch behind, and catches up only where it must know the
//! text: before a probe. Results do not depend on how late it reads.
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
use web_time::Instant;

use crate::cache::{CacheShape, KvCache};
use crate::device::ComputeDevice;
use crate::kernels::launch::{self, Readback};
use crate::kernels::{Reduce, Words};
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Input, Logits};
use crate::policy::{self, Budget, CacheView, EvictionPolicy, KeepPlan, Ledger, Measurement, Role, ViewParts};
use crate::probe::{self, Generated, ProbeClock, PromptThinking};
use crate::report::trace::{self, AttentionDetail, AttentionMap, StopReason, Totals, Trace};
use crate::steps::Tail;
use crate::text::{ChatTemplate, Detokenizer, Message, RenderOptions, ThinkIds, ThinkingState, Tokenizer};
use crate::weights::{ModelSource, Weights};
use crate::{Error, ErrorKind, Result};

/// Decode steps between two reads of sampled ids; up to two batches are on their way at once.
pub const LAG: usize = 8;

/// Ids of the prompt that are forwarded at once.
pub const PREFILL_CHUNK: usize = 256;

/// Slots that the cache's capacity is rounded up to.
pub const GROWTH: usize = 64;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Element type of the KV cache: `F32` or `F16`.
    pub kv: Words,
    /// Positions to load for; `None`: the model's own maximum, at most 32,768.
    pub context: Option<usize>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { kv: Words::F16, context: None }
    }
}

/// What to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// For policies that draw lots.
    pub seed: u64,
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
            seed: 0,
            ignore_eos: false,
            attention: AttentionDetail::Off,
        }
    }
}

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
    /// What ended the run, if something failed after the first token.
    pub error: Option<Error>,
}

/// A model on a device, ready to run prompts.
pub struct Engine {
    name: String,
    model: Decoder,
    cache: KvCache,
    tokenizer: Result<Tokenizer>,
    template: Result<ChatTemplate>,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// Loads a model directory onto `device`. A missing tokenizer or chat template is an error only once text needs it.
    /// `progress` is told (parts loaded, of how many).
    ///
    /// # Errors
    /// What [`ModelConfig::load`], [`Weights::open`] and [`Decoder::load`] refuse.
    pub fn load(
        source: &ModelSource,
        name: impl Into<String>,
        device: &ComputeDevice,
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let config = ModelConfig::load(source)?;
        let weights = Weights::open(source)?;
        let context = options.context.unwrap_or(config.max_position_embeddings.min(32_768));
        let model = Decoder::load(&config, &weights, context, device, progress)?;
        let cache = KvCache::new(CacheShape::new(&config, options.kv, 1, GROWTH)?, device);
        Ok(Self {
            name: name.into(),
            model,
            cache,
            tokenizer: Tokenizer::load(source),
            template: ChatTemplate::load(source),
            stop: Arc::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    /// Its name, as given to [`load`](Self::load).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that the keys and values of one token take, all layers together.
    pub fn slot_bytes(&self) -> u64 {
        self.cache.shape().slot_bytes() as u64 * self.cache.shape().layers as u64
    }

    /// Set it from anywhere to end the current run after the steps under way; what was generated is returned. Starting
    /// a run clears it.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
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
        let (ids, thinking) = match prompt {
            Prompt::Chat(text) => {
                let rendered = self.template()?.render(&[Message::user(text.as_str())], &RenderOptions::default())?;
                (self.tokenizer()?.encode(&rendered.text)?, of(rendered.thinking))
            }
            Prompt::Messages { messages, think } => {
                let options = RenderOptions { enable_thinking: *think, ..RenderOptions::default() };
                if think.is_some() {
                    self.template()?.check_thinking_switch()?;
                }
                let rendered = self.template()?.render(messages, &options)?;
                (self.tokenizer()?.encode(&rendered.text)?, of(rendered.thinking))
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

    /// Generates from `prompt`, pruning as `options` say. `on` is told of every token and probe as they become known.
    ///
    /// # Errors
    /// A prompt beyond the context, a policy that cannot run with this model or budget, a device that fails.
    pub async fn run(
        &mut self,
        prompt: &Prompt,
        options: &RunOptions,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<RunResult> {
        self.stop.store(false, Ordering::Relaxed);
        let (ids, thinking) = self.encode(prompt)?;
        let context = self.model.context();
        if ids.len() > context {
            return Err(Error::new(ErrorKind::Input, "the prompt is longer than the context")
                .expected(format!("at most {context} tokens"))
                .found(format!("{} tokens", ids.len()))
                .help("shorten it, or raise --context up to the model's max_position_embeddings"));
        }
        let mut run = Run::new(self, options, &ids, thinking)?;
        on(Event::Start { prompt_ids: &ids });
        let begun = Instant::now();
        run.prefill(&ids).await?;
        run.catch_up(on).await?;
        run.totals.prefill_us = begun.elapsed().as_micros() as u64;
        let begun = Instant::now();
        let ended = run.decode(on).await;
        run.totals.decode_us = (begun.elapsed().as_micros() as u64).saturating_sub(run.totals.probe_us);
        // What was generated before a failure is not lost with it.
        let (stop_reason, error) = match ended {
            Ok(reason) => (reason, None),
            Err(e) if run.tokens.is_empty() => return Err(e),
            Err(e) => (StopReason::Failed(e.what().into()), Some(e)),
        };
        Ok(RunResult { error, ..run.finish(ids, stop_reason)? })
    }
}

/// One run: the engine's parts and what belongs to this prompt alone. Nothing of it outlives the prompt.
struct Run<'a> {
    name: &'a str,
    model: &'a Decoder,
    cache: &'a mut KvCache,
    stop: &'a AtomicBool,
    options: &'a RunOptions,
    policy: Box<dyn EvictionPolicy>,
    probe_ids: Vec<u32>,
    think: ThinkIds,
    eos: Vec<u32>,
    tokenizer: Option<Tokenizer>,
    detokenizer: Option<Detokenizer>,
    text: String,
    clock: ProbeClock,
    ledger: Ledger,
    prompt_tokens: usize,
    /// Step of the device's counter at which this run's first token was sampled.
    first_step: u32,
    tokens: Vec<trace::Token>,
    /// Tokens sampled on the device.
    issued: usize,
    /// Reads on their way: the tokens sampled when each was taken.
    reads: VecDeque<(usize, Readback)>,
    probes: Vec<trace::Probe>,
    probe_due: bool,
    ended: Option<StopReason>,
    totals: Totals,
}

impl<'a> Run<'a> {
    fn new(engine: &'a mut Engine, options: &'a RunOptions, ids: &[u32], thinking: PromptThinking) -> Result<Self> {
        check_ids(ids, engine.model.config().vocab_size, "the prompt")?;
        let policy = policy::by_name(&options.policy)?;
        policy.accepts(options.budget)?;
        let tokenizer = engine.tokenizer.as_ref().ok().cloned();
        let think = tokenizer.as_ref().map_or(ThinkIds { open: None, close: None }, Tokenizer::think_ids);
        let probe_ids = match policy.needs() {
            Measurement::Nothing => Vec::new(),
            _ => {
                let tokenizer = engine.tokenizer.as_ref().map_err(|e| {
                    e.clone().help(format!("{} reads text: without a tokenizer use --policy random", policy.name()))
                })?;
                let probe_ids = tokenizer.encode(&options.probe_text)?;
                probe::check_probe_ids(&probe_ids, think.close)?;
                check_ids(&probe_ids, engine.model.config().vocab_size, "--probe-text")?;
                probe_ids
            }
        };
        engine.cache.clear(0)?;
        Ok(Self {
            name: &engine.name,
            model: &engine.model,
            first_step: engine.cache.sequence(0).step,
            cache: &mut engine.cache,
            stop: &engine.stop,
            options,
            policy,
            probe_ids,
            think,
            eos: engine.model.config().eos_token_ids.clone(),
            detokenizer: tokenizer.as_ref().map(|t| Detokenizer::new(t, false)),
            tokenizer,
            text: String::new(),
            clock: ProbeClock::new(options.probe_every, thinking)?,
            ledger: Ledger::new(ids.len()),
            prompt_tokens: ids.len(),
            tokens: Vec::new(),
            issued: 0,
            reads: VecDeque::new(),
            probes: Vec::new(),
            probe_due: false,
            ended: None,
            totals: Totals { prompt_tokens: ids.len(), ..Totals::default() },
        })
    }

    /// Forwards the prompt in chunks and samples the first token. Waits for each chunk before the next, so that a stop is
    /// heard within one.
    async fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        self.cache.reserve(0, ids.len())?;
        let chunks = ids.len().div_ceil(PREFILL_CHUNK);
        for (i, ids) in ids.chunks(PREFILL_CHUNK).enumerate() {
            let input = Input::Chunk { seq: 0, ids };
            if i + 1 < chunks {
                self.model.forward(input, self.cache, Logits::None, None)?;
                self.cache.advance(0, ids.len(), 0);
                self.cache.read_state().await?;
                if self.stop.load(Ordering::Relaxed) {
                    self.ended = Some(StopReason::Cancelled);
                    break;
                }
            } else if self.options.max_new_tokens > 0 {
                let out = self.model.forward(input, self.cache, Logits::Last, None)?;
                self.sample(&out.logits.expect("asked for"), ids.len());
            }
        }
        self.note_peak(0);
        Ok(())
    }

    /// Samples the next token from `logits` and starts reading it.
    fn sample(&mut self, logits: &Tensor<2>, advance: usize) {
        self.cache.sample(logits, 0, 1, advance);
        self.issued += 1;
        self.reads.push_back((self.issued, self.cache.read_state()));
    }

    /// Decode steps until the stop, with a probe whenever one is due.
    async fn decode(&mut self, on: &mut dyn FnMut(Event<'_>)) -> Result<StopReason> {
        // A token can be sampled as long as its predecessor can be forwarded.
        let room = self.model.context() - self.prompt_tokens + 1;
        let limit = self.options.max_new_tokens.min(room);
        loop {
            if let Some(reason) = self.ended.take() {
                return Ok(reason);
            }
            if self.stop.load(Ordering::Relaxed) {
                self.catch_up(on).await?;
                return Ok(self.ended.take().unwrap_or(StopReason::Cancelled));
            }
            let read = self.tokens.len();
            if read >= limit {
                let max = self.options.max_new_tokens;
                return Ok(if read >= max { StopReason::MaxNewTokens } else { StopReason::ContextFull });
            }
            if self.probe_due {
                self.probe_due = false;
                // Near the end of the context a probe has no positions left, and nothing to save.
                if self.prompt_tokens + read + self.probe_ids.len() <= self.model.context() {
                    self.prune(on).await?;
                    continue;
                }
            }
            // Never past a point where a probe may be due: there the text must be known.
            let to_probe =
                self.clock.steps_until_possible_probe().map_or(usize::MAX, |steps| read.saturating_add(steps));
            let goal = limit.min(to_probe).min(read + 2 * LAG);
            while self.issued < goal {
                for _ in 0..LAG.min(goal - self.issued) {
                    let pending = Input::Pending { seq0: 0, seqs: 1 };
                    let out = self.model.forward(pending, self.cache, Logits::Last, None)?;
                    self.cache.sample(&out.logits.expect("asked for"), 0, 1, 1);
                    self.issued += 1;
                }
                self.reads.push_back((self.issued, self.cache.read_state()));
            }
            self.note_peak(0);
            self.read_one(on).await?;
        }
    }

    /// Waits for the oldest read and takes in its tokens.
    async fn read_one(&mut self, on: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let Some((upto, read)) = self.reads.pop_front() else { return Ok(()) };
        let words = launch::as_words(&read.await?[0]);
        let step = |token: usize| self.first_step.wrapping_add(token as u32);
        let ids = self.cache.raw_ids(&words, 0, step(self.tokens.len()), step(upto));
        for id in ids {
            // Steps past the end were under way when it became known; nobody asks what they gave.
            if self.ended.is_some() {
                break;
            }
            self.take_in(self.cache.checked_id(id)?, on)?;
        }
        Ok(())
    }

    /// Waits for every read under way.
    async fn catch_up(&mut self, on: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        while !self.reads.is_empty() {
            self.read_one(on).await?;
        }
        Ok(())
    }

    /// A token became known: text, role, clock, stop.
    fn take_in(&mut self, id: u32, on: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let stop = self.eos.contains(&id) && !self.options.ignore_eos;
        let inside = self.clock.inside_thinking();
        let (think_open, think_close) = (Some(id) == self.think.open, Some(id) == self.think.close);
        let role = match inside {
            _ if stop => Role::Answer,
            _ if think_close => Role::ThinkClose,
            _ if think_open => Role::ThinkOpen,
            true => Role::Thinking,
            false => Role::Answer,
        };
        let piece = match &mut self.detokenizer {
            Some(detokenizer) => detokenizer.push(id)?.to_string(),
            None => String::new(),
        };
        let bytes = self.tokenizer.as_ref().and_then(|t| t.token_bytes(id));
        self.ledger.push(role, bytes.as_deref().unwrap_or(piece.as_bytes()));
        let special = self.tokenizer.as_ref().is_some_and(|t| t.is_special(id));
        let shown = if special { "" } else { piece.as_str() };
        self.text.push_str(shown);
        on(Event::Token { index: self.tokens.len(), id, text: shown, role });
        self.tokens.push(trace::Token { id, text: piece, role, step: None });
        if stop {
            self.ended = Some(StopReason::Eos);
            return Ok(());
        }
        let inside_char = self.detokenizer.as_ref().is_some_and(Detokenizer::ends_inside_char);
        self.probe_due = self.clock.push(Generated { think_open, think_close, inside_char }) && self.prunes();
        Ok(())
    }

    /// `full` keeps everything whatever it is shown: it needs no probe.
    fn prunes(&self) -> bool {
        self.policy.name() != "full"
    }

    /// Probe, score, plan, gather, resume (section 1 of the method). Every sampled token has been read.
    async fn prune(&mut self, on: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        debug_assert!(self.reads.is_empty() && self.issued == self.tokens.len(), "the engine is caught up");
        let begun = Instant::now();
        let pending = self.tokens.last().expect("a probe follows a token").id;
        let held = self.hold(pending)?;
        let measured = self.measure(pending).await?;
        let probed = Instant::now();
        // For the trace alone, and not part of what a probe costs.
        let heads = self.read_heads(pending).await?;
        let traced = Instant::now();

        let mut snapshot = self.ledger.snapshot();
        if self.tokenizer.is_none() {
            snapshot.current_step = policy::NO_CURRENT_STEP;
        }
        let view = CacheView::new(ViewParts {
            scores: measured.as_ref().map(|m| &m.scores[..]),
            window: self.options.window,
            seed: self.options.seed,
            probe: self.probes.len() as u64,
            ..snapshot.parts(self.options.budget)
        })?;
        let plan = self.policy.plan(&view)?;
        let mut record = trace::Probe::record(self.tokens.len(), &view, &plan)?;
        let planned = Instant::now();
        if let (Some(measured), true) = (&measured, self.options.attention != AttentionDetail::Off) {
            record.attention = Some(AttentionMap::of(&view, &measured.layers, heads.as_deref())?);
        }

        record.bytes_before = self.device_bytes();
        self.gather(&plan)?;
        record.bytes_after = self.device_bytes();
        let gathered = Instant::now();
        record.timings = trace::Timings {
            probe_us: (probed - begun).as_micros() as u64,
            plan_us: (planned - traced).as_micros() as u64,
            gather_us: (gathered - planned).as_micros() as u64,
        };
        self.totals.evicted_tokens += record.evicted.len();
        on(Event::Probe(&record));
        self.probes.push(record);

        self.sample(&held, 0);
        self.totals.probe_us += (begun.elapsed() - (traced - probed)).as_micros() as u64;
        Ok(())
    }

    /// Forwards the pending token by the ordinary decode path; its logits wait for the gather.
    fn hold(&mut self, pending: u32) -> Result<Tensor<2>> {
        let out = self.model.forward(Input::Pending { seq0: 0, seqs: 1 }, self.cache, Logits::Last, None)?;
        self.cache.advance(0, 1, pending);
        self.note_peak(0);
        Ok(out.logits.expect("asked for"))
    }

    /// The probe: appends its text, forwards it as one chunk, reads the last token's attention over the cached slots, rolls
    /// back. `None` where the policy measures nothing.
    ///
    /// A slot's score is the mean over layers and heads.
    async fn measure(&mut self, pending: u32) -> Result<Option<Measured>> {
        if self.policy.needs() == Measurement::Nothing {
            return Ok(None);
        }
        let before = self.cache.checkpoint(0);
        let input = Input::Chunk { seq: 0, ids: &self.probe_ids };
        let out = self.model.forward(input, self.cache, Logits::None, Some(Reduce::Layer))?;
        let read = launch::read_floats(&out.readout.iter().collect::<Vec<_>>());
        self.note_peak(self.probe_ids.len());
        self.cache.rollback(&before, pending);
        let layers: Vec<Vec<f32>> = read.await?.iter().map(|row| launch::as_floats(row)).collect();
        let mut scores = vec![0f64; self.ledger.cached()];
        for row in &layers {
            scores.iter_mut().zip(row).for_each(|(sum, weight)| *sum += *weight as f64);
        }
        let scores = scores.iter().map(|sum| (sum / layers.len() as f64) as f32).collect();
        Ok(Some(Measured { scores, layers }))
    }

    /// The probe once more, for the trace: a row for each query head of each layer. A forward of its own, so that what decides is
    /// measured in the same way with and without it.
    async fn read_heads(&mut self, pending: u32) -> Result<Option<Vec<Vec<f32>>>> {
        if self.options.attention != AttentionDetail::Heads || self.policy.needs() == Measurement::Nothing {
            return Ok(None);
        }
        let before = self.cache.checkpoint(0);
        let input = Input::Chunk { seq: 0, ids: &self.probe_ids };
        let out = self.model.forward(input, self.cache, Logits::None, Some(Reduce::None))?;
        let read = launch::read_floats(&out.readout.iter().collect::<Vec<_>>());
        self.cache.rollback(&before, pending);
        Ok(Some(read.await?.iter().map(|row| launch::as_floats(row)).collect()))
    }

    /// Carries the plan out on the device and in the ledger.
    fn gather(&mut self, plan: &KeepPlan) -> Result<()> {
        if plan.keeps_all() {
            return Ok(());
        }
        // Room for what comes before the next gather, so that the buffers are made once a cycle.
        let room = self.options.probe_every.min(1024) + self.probe_ids.len() + probe::MAX_POSTPONED + 1;
        self.cache.keep(0, &|layer, head| plan.slots(layer, head), room)?;
        self.ledger.gather(plan)
    }

    fn device_bytes(&self) -> trace::DeviceBytes {
        let bytes = self.model.device().bytes();
        trace::DeviceBytes { in_use: bytes.in_use, reserved: bytes.reserved }
    }

    /// Slots and KV bytes as they are, `more` slots written beyond the length included. The old and the new buffer of the one
    /// layer that a gather is moving do not count.
    fn note_peak(&mut self, more: usize) {
        self.totals.peak_cached = self.totals.peak_cached.max(self.cache.len(0, 0) + more);
        self.totals.peak_kv_bytes = self.totals.peak_kv_bytes.max(self.cache.bytes());
    }

    fn finish(mut self, prompt_ids: Vec<u32>, stop_reason: StopReason) -> Result<RunResult> {
        if let Some(detokenizer) = &mut self.detokenizer {
            self.text.push_str(detokenizer.finish());
        }
        // Steps as the final text has them.
        let thinking = self.ledger.thinking();
        let steps = thinking.steps(Tail::Closed);
        let step_of = thinking.assign(&steps);
        let thoughts = self.tokens.iter_mut().filter(|t| t.role == Role::Thinking);
        thoughts.zip(step_of).for_each(|(token, step)| token.step = Some(steps[step].start));
        self.totals.generated_tokens = self.tokens.len();
        self.totals.thinking_tokens = self.ledger.thinking().tokens();
        // Not the steps that were under way past the end.
        self.totals.final_cached = self.cache.len(0, 0).min(self.ledger.cached());
        let trace = Trace {
            version: trace::VERSION,
            secateur: env!("CARGO_PKG_VERSION").into(),
            model: self.name.into(),
            device: self.model.device().info.line(),
            settings: trace::Settings {
                policy: self.policy.name().into(),
                budget: self.options.budget.to_string(),
                window: self.options.window,
                probe_every: self.options.probe_every,
                probe_text: self.options.probe_text.clone(),
                seed: self.options.seed,
            },
            // Text for people: that a decoder fails on it is no reason to lose the trace.
            prompt_text: self.tokenizer.as_ref().and_then(|t| t.decode(&prompt_ids, false).ok()),
            slot_bytes: Some(self.cache.shape().slot_bytes() as u64 * self.cache.shape().layers as u64),
            prompt_ids,
            tokens: self.tokens,
            probes: self.probes,
            stop_reason,
            totals: self.totals,
        };
        let kv_bytes = self.cache.bytes();
        Ok(RunResult { text: self.text, bytes: self.model.device().bytes(), kv_bytes, trace, error: None })
    }
}

/// What a probe read.
struct Measured {
    /// One per cached slot.
    scores: Vec<f32>,
    /// The readout of each layer: a weight for each cached slot and each of the probe's own.
    layers: Vec<Vec<f32>>,
}

/// Every id must have a row in the embedding: found out before anything is computed.
fn check_ids(ids: &[u32], vocabulary: usize, place: &str) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => Err(Error::new(ErrorKind::Input, "a token id is outside the vocabulary")
            .at(place)
            .expected(format!("ids below {vocabulary}"))
            .found(id)),
    }
}
