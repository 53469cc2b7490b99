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
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use web_time::Instant;

use crate::cache::{CacheShape, Change, KeepSets, KvCache};
use crate::device::ComputeDevice;
use crate::kernels::Words;
use crate::kernels::launch::{self, Readback};
use crate::model::config::ModelConfig;
use crate::model::decoder::{self, Decoder, Input, Logits, Output};
use crate::policy::{self, Budget, KeepPlan, Layers, Normalise, Positions, Role, Scope};
use crate::probe::{self, PromptThinking};
use crate::prune::{Held, Reading, Readouts, Rules};
use crate::report::trace::{self, AttentionDetail, Trace};
use crate::sampling::Sampling;
use crate::sequence::{Facts, Sequence};
use crate::text::{ChatTemplate, Message, RenderOptions, ThinkIds, ThinkingState, Tokenizer};
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
    /// Sequences that run side by side at most.
    pub sequences: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { kv: Words::F16, context: None, sequences: 1 }
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

/// A model without its weights: all that a request can be refused by before gigabytes are read.
pub struct Opened {
    name: String,
    config: ModelConfig,
    context: usize,
    shape: CacheShape,
    tokenizer: Result<Tokenizer>,
    template: Result<ChatTemplate>,
}

/// A model on a device, ready to run prompts.
pub struct Engine {
    opened: Opened,
    model: Decoder,
    cache: KvCache,
    stop: Arc<AtomicBool>,
}

impl Opened {
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
    pub fn check(&self, prompt: &Prompt, options: &RunOptions) -> Result<()> {
        self.sequence(0, prompt, options).map(|_| ())
    }

    fn sequence(&self, id: usize, prompt: &Prompt, options: &RunOptions) -> Result<Sequence> {
        let (ids, thinking) = self.encode(prompt)?;
        let facts = Facts {
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

impl Engine {
    /// Loads a model onto `device`: [`Opened::new`], then [`Opened::load`].
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
        Opened::new(source, name, options)?.load(source, device, progress)
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

    /// As [`Opened::encode`].
    ///
    /// # Errors
    /// What it refuses.
    pub fn encode(&self, prompt: &Prompt) -> Result<(Vec<u32>, PromptThinking)> {
        self.opened.encode(prompt)
    }

    /// As [`Opened::tokenizer`].
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
        options: &RunOptions,
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
        Batch {
            engine: self,
            requests: 0,
            waiting: VecDeque::new(),
            places: (0..places).map(|_| None).collect(),
            reads: VecDeque::new(),
        }
    }
}

/// Requests that run side by side: each with its own prompt, options, policy, budget, end and trace. A result does not depend
/// on the neighbours beyond the order in which a shader for more rows may add (each kernel states its bound); the same
/// batch gives the same results. One that fails or is cancelled leaves the others alone.
///
/// ```no_run
/// # async fn example(engine: &mut secateur::engine::Engine) -> secateur::Result<()> {
/// use secateur::engine::{Prompt, RunOptions};
/// let mut batch = engine.batch();
/// for question in ["What is 12 + 30?", "How many primes are below 50?"] {
///     batch.add(&Prompt::Chat(question.into()), &RunOptions::default())?;
/// }
/// while !batch.is_idle() {
///     // Requests may be added here at any time: they take the places of those that end.
///     for (request, result) in batch.step(&mut |_request, _event| ()).await {
///         println!("{request}: {}", result?.text);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Batch<'e> {
    engine: &'e mut Engine,
    /// Requests added so far.
    requests: usize,
    waiting: VecDeque<Sequence>,
    /// Who runs: an index here is the sequence's number in the cache.
    places: Vec<Option<Sequence>>,
    reads: VecDeque<Read>,
}

/// A copy of the device's state on its way.
struct Read {
    /// Place, request and sampled tokens of those who had any when it was taken.
    of: Vec<(usize, usize, usize)>,
    state: Readback,
}

impl Batch<'_> {
    /// Takes a request on; it runs as soon as a place is free. Returns its number, counted from 0.
    ///
    /// # Errors
    /// A prompt that is empty or beyond the context, a policy that cannot run with this model or budget.
    pub fn add(&mut self, prompt: &Prompt, options: &RunOptions) -> Result<usize> {
        self.waiting.push_back(self.engine.opened.sequence(self.requests, prompt, options)?);
        self.requests += 1;
        Ok(self.requests - 1)
    }

    /// Ends a request after the steps under way; what was generated comes as its result.
    pub fn cancel(&mut self, request: usize) {
        self.waiting.iter_mut().chain(self.places.iter_mut().flatten()).filter(|s| s.id == request).for_each(|s| {
            s.cancelled = true;
        });
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.places.iter().all(Option::is_none)
    }

    /// Runs until all is done. Returns every request's result, in the order they were added.
    pub async fn run(&mut self, on: &mut OnEvent<'_>) -> Vec<(usize, Result<RunResult>)> {
        let mut ended = Vec::new();
        while !self.is_idle() {
            ended.extend(self.step(on).await);
        }
        ended.sort_by_key(|(request, _)| *request);
        ended
    }

    /// One turn of the loop. Returns the requests that ended with it.
    pub async fn step(&mut self, on: &mut OnEvent<'_>) -> Vec<(usize, Result<RunResult>)> {
        let turn = async {
            self.admit(on);
            self.prefill()?;
            self.prune(on).await?;
            self.decode()?;
            self.read(on).await
        };
        // What is nobody's fault alone: the device.
        if let Err(e) = turn.await {
            self.reads.clear();
            self.places.iter_mut().flatten().for_each(|s| s.fail(e.clone()));
        }
        self.retire()
    }

    /// Gives free places to those who wait, and hears a stop. Sequences side by side share where kept keys stand: one that wants
    /// it otherwise waits until the others are done, and those behind it with it.
    fn admit(&mut self, on: &mut OnEvent<'_>) {
        let Self { engine: Engine { model, cache, .. }, places, waiting, .. } = self;
        for place in 0..places.len() {
            if places[place].is_some() {
                continue;
            }
            let running = places.iter().flatten().map(|s| s.options.positions).next();
            let joins = |s: &mut Sequence| running.is_none_or(|positions| positions == s.options.positions);
            let Some(mut sequence) = waiting.pop_front_if(joins) else { break };
            sequence.begin();
            on(sequence.id, Event::Start { prompt_ids: &sequence.prompt });
            let ready = cache.clear(place).and_then(|()| match running {
                None => cache.begin(sequence.options.positions),
                Some(_) => Ok(()),
            });
            cache.track(sequence.rules.tracking(), model.config().q_size());
            if let Err(e) = ready {
                sequence.fail(e);
            }
            let RunOptions { sampling, seed, .. } = &sequence.options;
            cache.set_sampler(place, sampling, *seed, &sequence.prompt);
            places[place] = Some(sequence);
        }
        if self.engine.stop.load(Ordering::Relaxed) {
            self.waiting.iter_mut().chain(self.places.iter_mut().flatten()).for_each(|s| s.cancelled = true);
        }
        self.places.iter_mut().flatten().for_each(Sequence::settle);
    }

    /// Forwards a chunk of the oldest prompt that is not through, and samples the first token after the last chunk. Every
    /// chunk is waited for like a token, so that a stop is heard within one.
    fn prefill(&mut self) -> Result<()> {
        let Self { engine: Engine { model, cache, .. }, places, .. } = self;
        let prompts = places.iter_mut().enumerate().filter_map(|(place, s)| Some((place, s.as_mut()?)));
        let Some((place, sequence)) = prompts.filter(|(_, s)| s.prefilling()).min_by_key(|(_, s)| s.id) else {
            return Ok(());
        };
        let rest = &sequence.prompt[sequence.forwarded..];
        let ids = &rest[..rest.len().min(PREFILL_CHUNK)];
        let last = ids.len() == rest.len();
        let logits = if last { Logits::Last } else { Logits::None };
        let forward = cache
            .reserve(&[place], rest.len())
            .and_then(|()| model.forward(Input::Chunk { seq: place, ids }, cache, logits, None));
        let out = match forward {
            Ok(out) => out,
            Err(e) => {
                sequence.fail(e);
                return Ok(());
            }
        };
        let n = ids.len();
        sequence.forwarded += n;
        match out.logits {
            Some(logits) => {
                cache.sample(&logits, &[place], n);
                sequence.issued = 1;
            }
            None => cache.advance(place, n, 0),
        }
        sequence.note_peak(cache.longest(place), cache.bytes_of(place));
        self.start_read();
        Ok(())
    }

    /// Decode steps for all who have room, in bursts of [`LAG`] between two reads, ever fewer rows as the room of one ends. One
    /// step a turn while a prompt is under way, so that a long one does not stop the others.
    fn decode(&mut self) -> Result<()> {
        let prefilling = self.places.iter().flatten().any(Sequence::prefilling);
        loop {
            let rows = self.places_where(|s| s.room() > 0);
            let rooms = rows.iter().map(|&place| self.places[place].as_ref().map_or(0, Sequence::room));
            let Some(steps) = rooms.min() else { return Ok(()) };
            let steps = if prefilling { 1 } else { steps.min(LAG) };
            let rows = self.reserve(rows, steps);
            if rows.is_empty() {
                continue;
            }
            let Self { engine: Engine { model, cache, .. }, places, .. } = &mut *self;
            for _ in 0..steps {
                let out = model.forward(Input::Pending(&rows), cache, Logits::Last, None)?;
                cache.sample(&out.logits.expect("asked for"), &rows, 1);
            }
            for &place in &rows {
                let sequence = places[place].as_mut().expect("it has room");
                sequence.issued += steps;
                sequence.note_bytes(cache.bytes_of(place));
            }
            self.start_read();
            if prefilling {
                return Ok(());
            }
        }
    }

    /// Waits for the oldest read and takes in its tokens; goes on while more than one is under way.
    async fn read(&mut self, on: &mut OnEvent<'_>) -> Result<()> {
        while let Some(Read { of, state }) = self.reads.pop_front() {
            let words = launch::as_words(&state.await?[0]);
            let cache = &self.engine.cache;
            for (place, request, upto) in of {
                // It may have ended, and another have its place.
                let Some(sequence) = self.places[place].as_mut().filter(|s| s.id == request) else { continue };
                sequence.missed = cache.missed(&words, place);
                for id in cache.raw_ids(&words, place, sequence.tokens.len() as u32, upto as u32) {
                    // Steps past the end were under way when it became known; nobody asks what they gave.
                    if sequence.ended.is_some() {
                        break;
                    }
                    if let Err(e) = cache.checked_id(id).and_then(|id| sequence.take_in(id, on)) {
                        sequence.fail(e);
                    }
                }
            }
            if self.reads.len() <= 1 {
                break;
            }
        }
        Ok(())
    }

    /// Probe, score, plan, gather, resume (section 1 of the method), for all who are due: their text is known. The others'
    /// steps wait on the device only, behind the probes'.
    async fn prune(&mut self, on: &mut OnEvent<'_>) -> Result<()> {
        let due = self.places_where(Sequence::is_due);
        let due = self.reserve(due, 1);
        if due.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let held = self.hold(&due)?;
        let readings: Vec<Result<Reading>> = due
            .iter()
            .enumerate()
            .map(|(row, &place)| self.measure(place, Held { out: &held, row, of: due.len() }))
            .collect();
        let mut readouts: Vec<Result<Readouts>> = Vec::new();
        for reading in readings {
            readouts.push(match reading {
                Ok(reading) => reading.finish().await,
                Err(e) => Err(e),
            });
        }
        let probed = Instant::now();
        self.add_heads(&due, &mut readouts).await;
        let traced = Instant::now();

        let mut plans = Vec::new();
        for (&place, readouts) in due.iter().zip(readouts) {
            let sequence = self.places[place].as_mut().expect("it is due");
            match readouts.and_then(|readouts| sequence.plan(&readouts)) {
                Ok((plan, record)) => plans.push((place, plan, record)),
                Err(e) => sequence.fail(e),
            }
        }
        let planned = Instant::now();

        let bytes_before = self.device_bytes();
        self.gather(&plans)?;
        let bytes_after = self.device_bytes();
        let gathered = Instant::now();
        let timings = trace::Timings {
            probe_us: (probed - begun).as_micros() as u64,
            plan_us: (planned - traced).as_micros() as u64,
            gather_us: (gathered - planned).as_micros() as u64,
        };
        for (place, _, record) in plans {
            let sequence = self.places[place].as_mut().expect("it is due");
            sequence.pruned(trace::Probe { timings, bytes_before, bytes_after, ..record }, on);
        }

        self.engine.cache.sample(&held.logits.expect("asked for"), &due, 0);
        for &place in &due {
            let sequence = self.places[place].as_mut().expect("it is due");
            sequence.issued += 1;
            sequence.totals.probe_us += (begun.elapsed() - (traced - probed)).as_micros() as u64;
        }
        self.start_read();
        Ok(())
    }

    /// Forwards the pending tokens by the ordinary decode path; their logits wait for the gather. Reads their attention where a
    /// policy asks for it, as far apart as any of them.
    fn hold(&mut self, due: &[usize]) -> Result<Output> {
        let Self { engine: Engine { model, cache, .. }, places, .. } = self;
        let rules = due.iter().filter_map(|&place| places[place].as_ref()).map(|s| &s.rules);
        let readout = rules.filter_map(Rules::readout_of_pending).min_by_key(|reduce| *reduce as u32);
        let out = model.forward(Input::Pending(due), cache, Logits::Last, readout)?;
        for &place in due {
            let sequence = places[place].as_mut().expect("it is due");
            cache.advance(place, 1, sequence.tokens.last().expect("a probe follows a token").id);
            sequence.note_peak(cache.longest(place), cache.bytes_of(place));
        }
        Ok(out)
    }

    /// Starts measuring what the sequence's policy needs: the probe, where it needs one, is forwarded and rolled back.
    fn measure(&mut self, place: usize, held: Held<'_>) -> Result<Reading> {
        let Self { engine: Engine { model, cache, .. }, places, .. } = self;
        let sequence = places[place].as_mut().expect("it is due");
        let pending = sequence.tokens.last().expect("a probe follows a token").id;
        let reading = sequence.rules.measure(model, cache, place, pending, &sequence.probe_ids, held)?;
        sequence.note_peak(cache.longest(place) + sequence.probe_ids.len(), cache.bytes_of(place));
        Ok(reading)
    }

    /// For the trace alone, and not part of what a probe costs. Whose heads cannot be read has nothing else to go by either.
    async fn add_heads(&mut self, due: &[usize], readouts: &mut [Result<Readouts>]) {
        for (&place, readouts) in due.iter().zip(readouts) {
            let Ok(measured) = readouts else { continue };
            let heads = match self.measure_heads(place) {
                Ok(None) => continue,
                Ok(Some(heads)) => heads.finish().await,
                Err(e) => Err(e),
            };
            match heads {
                Ok(heads) => measured.add(heads),
                Err(e) => *readouts = Err(e),
            }
        }
    }

    fn measure_heads(&mut self, place: usize) -> Result<Option<Reading>> {
        let Self { engine: Engine { model, cache, .. }, places, .. } = self;
        let sequence = places[place].as_ref().expect("it is due");
        let pending = sequence.tokens.last().expect("a probe follows a token").id;
        sequence.rules.measure_heads(model, cache, place, pending, &sequence.probe_ids)
    }

    /// Carries the plans out, on the device and in the ledgers.
    fn gather(&mut self, plans: &[(usize, KeepPlan, trace::Probe)]) -> Result<()> {
        let Self { engine: Engine { cache, .. }, places, .. } = self;
        let cut: Vec<(usize, &KeepPlan)> =
            plans.iter().filter(|(_, plan, _)| !plan.keeps_all()).map(|(place, plan, _)| (*place, plan)).collect();
        if cut.is_empty() {
            return Ok(());
        }
        let sets: Vec<Box<KeepSets<'_>>> = cut.iter().map(|(_, plan)| slots_of(plan)).collect();
        let mut changes = Vec::new();
        for ((place, _), keep) in cut.iter().zip(&sets) {
            let room = places[*place].as_ref().map_or(0, Sequence::room_after_gather);
            changes.push(Change { seq: *place, keep: &**keep, room });
        }
        let together = cache.keep_each(&changes);
        for ((place, plan), change) in cut.iter().zip(&changes) {
            let sequence = places[*place].as_mut().expect("it is due");
            // Where there is no room for all of them, for each that there is room for.
            let done = match &together {
                Ok(()) => Ok(()),
                Err(_) => cache.keep_each(&[*change]),
            };
            if let Err(e) = done.and_then(|()| sequence.ledger.gather(plan)) {
                sequence.fail(e);
            }
        }
        Ok(())
    }

    /// Takes out those who ended, and gives their memory back.
    fn retire(&mut self) -> Vec<(usize, Result<RunResult>)> {
        let Self { engine: Engine { opened: Opened { name, .. }, model, cache, .. }, places, .. } = self;
        let mut ended = Vec::new();
        for (place, slot) in places.iter_mut().enumerate() {
            slot.iter_mut().for_each(Sequence::settle);
            if let Some(sequence) = slot.take_if(|s| s.ended.is_some()) {
                let request = sequence.id;
                let result = sequence.finish(name, model.device(), cache, place);
                let result = result.and_then(|result| cache.clear(place).map(|()| result));
                ended.push((request, result));
            }
        }
        ended
    }

    /// Makes room for `extra` slots of each of these places. Where a layer's buffer cannot grow so far, the longest sequence
    /// fails and frees what it has, until the others fit. Returns those.
    fn reserve(&mut self, mut rows: Vec<usize>, extra: usize) -> Vec<usize> {
        let Self { engine: Engine { cache, .. }, places, .. } = self;
        while !rows.is_empty() {
            let Err(e) = cache.reserve(&rows, extra) else { break };
            let longest = (0..rows.len()).max_by_key(|&row| cache.longest(rows[row])).expect("not empty");
            let place = rows.remove(longest);
            places[place].as_mut().expect("it runs").fail(e);
            // Shrinking exceeds nothing.
            cache.clear(place).ok();
        }
        rows
    }

    fn places_where(&self, is: impl Fn(&Sequence) -> bool) -> Vec<usize> {
        (0..self.places.len()).filter(|&place| self.places[place].as_ref().is_some_and(&is)).collect()
    }

    /// Starts reading the ids of all who have sampled any.
    fn start_read(&mut self) {
        let sampled = |(place, s): (usize, &Option<Sequence>)| Some((place, s.as_ref()?.id, s.as_ref()?.issued));
        let of = self.places.iter().enumerate().filter_map(sampled).collect();
        self.reads.push_back(Read { of, state: self.engine.cache.read_state() });
    }

    fn device_bytes(&self) -> trace::DeviceBytes {
        let bytes = self.engine.model.device().bytes();
        trace::DeviceBytes { in_use: bytes.in_use, reserved: bytes.reserved }
    }
}

/// The slots of a plan, as the cache asks for them.
fn slots_of(plan: &KeepPlan) -> Box<KeepSets<'_>> {
    Box::new(|layer, head| plan.slots(layer, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What attention puts aside is for the longest sequence times all: refused before the weights are read, and by a forward too.
    #[test]
    fn more_than_attention_can_put_aside_is_refused() {
        let source = crate::builtin::source();
        let mut device = ComputeDevice { lanes: 32, ..ComputeDevice::cpu() };
        let open = |sequences, context| {
            let load = LoadOptions { kv: Words::F32, context: Some(context), sequences };
            Opened::new(&source, "built-in", &load).expect("it is in the binary")
        };
        let config = open(1, 64).config.clone();
        let split = (config.num_heads * (config.head_dim + 2) * 4) as u64;
        device.info.max_binding_bytes = 40 * 4 * split;
        for (sequences, context, fits) in
            [(40, 256, true), (41, 256, false), (40, 257, false), (32, 320, true), (1, 512, true), (5000, 64, true)]
        {
            let checked = decoder::check_attention(&config, sequences, context, &device);
            assert_eq!(checked.is_ok(), fits, "{sequences} sequences, {context} slots");
        }
        let mut told = 0;
        let refused = open(41, 256).load(&source, &device, &mut |_, _| told += 1).err().expect("too many").to_string();
        let parts =
            [format!("{} bytes for 41 sequences with up to 256 slots", 41 * 4 * split), "fewer sequences".into()];
        assert!(parts.iter().all(|part| refused.contains(part)) && told == 0, "{refused}");

        device.info.max_binding_bytes = u64::MAX;
        let Engine { mut model, mut cache, .. } =
            open(2, 256).load(&source, &device, &mut |_, _| ()).expect("it is in the binary");
        cache.begin(Positions::Original).expect("it is empty");
        let ids = [5; 70];
        for seq in [0, 1] {
            model.forward(Input::Chunk { seq, ids: &ids }, &mut cache, Logits::None, None).expect("it fits");
            cache.advance(seq, ids.len(), 5);
        }
        model.limit_bindings(4 * split - 1);
        let two = model.forward(Input::Pending(&[0, 1]), &mut cache, Logits::Last, None).err().expect("too many");
        assert!(two.to_string().contains("2 sequences with up to 71 slots"), "{two}");
        model.forward(Input::Pending(&[1]), &mut cache, Logits::Last, None).expect("one fits");
    }

    /// The query heads are read for the trace: that one sequence's cannot be is nothing to the others. (That a sequence without
    /// readouts ends alone is in `tests/engine.rs`.)
    #[test]
    fn heads_that_cannot_be_read_are_their_own_sequences_affair() {
        let load = LoadOptions { kv: Words::F32, context: Some(256), sequences: 3 };
        let device = ComputeDevice::cpu();
        let source = crate::builtin::source();
        let mut engine =
            Engine::load(&source, "built-in", &device, &load, &mut |_, _| ()).expect("it is in the binary");
        let options = RunOptions { probe_every: 100, attention: AttentionDetail::Heads, ..RunOptions::default() };
        let mut batch = engine.batch();
        for _ in 0..3 {
            batch.add(&Prompt::Chat(crate::builtin::EXAMPLE.into()), &options).expect("a good request");
        }
        let due = [0, 1, 2];
        while due.iter().any(|&place| batch.places[place].as_ref().is_none_or(|s| s.tokens.is_empty())) {
            pollster::block_on(batch.step(&mut |_, _| ()));
        }
        batch.places[due[1]].as_mut().expect("it is due").probe_ids = vec![u32::MAX];
        let mut readouts: Vec<Result<Readouts>> = (0..3).map(|_| Ok(Readouts::default())).collect();
        pollster::block_on(batch.add_heads(&due, &mut readouts));
        let [Ok(first), Err(error), Ok(last)] = &readouts[..] else { panic!("the second fails, and it alone") };
        assert!(first.has_heads() && last.has_heads());
        assert!(error.to_string().contains("outside the vocabulary"), "{error}");
    }
}
