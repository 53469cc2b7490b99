//! The host's side of one sequence: what was asked for, what is known of it so far, and what comes of it. No tensors here.
use web_time::Instant;

use crate::cache::KvCache;
use crate::device::ComputeDevice;
use crate::engine::{Event, LAG, RunOptions, RunResult};
use crate::policy::{self, CacheView, EvictionPolicy, KeepPlan, Ledger, Measurement, Role, ViewParts};
use crate::probe::{self, Generated, ProbeClock, PromptThinking};
use crate::report::trace::{self, AttentionDetail, AttentionMap, StopReason, Totals, Trace};
use crate::steps::Tail;
use crate::text::{Detokenizer, ThinkIds, Tokenizer};
use crate::{Error, ErrorKind, Result};

/// What a sequence must know of the model.
pub(crate) struct Facts<'a> {
    pub tokenizer: &'a Result<Tokenizer>,
    pub vocab_size: usize,
    pub eos: &'a [u32],
    /// Positions the model was loaded for.
    pub context: usize,
}

/// What a probe read: the attention of `</think>`, for each layer over the cached slots and then the probe's own.
pub(crate) struct Measured {
    /// The mean over a layer's heads.
    pub layers: Option<Vec<Vec<f32>>>,
    /// A row a query head, for the trace.
    pub heads: Option<Vec<Vec<f32>>>,
}

impl Measured {
    /// A score for each of `cached` slots: the mean over layers and heads.
    fn scores(&self, cached: usize) -> Option<Vec<f32>> {
        let layers = self.layers.as_ref()?;
        let mut scores = vec![0f64; cached];
        for row in layers {
            scores.iter_mut().zip(row).for_each(|(sum, weight)| *sum += *weight as f64);
        }
        Some(scores.iter().map(|sum| (sum / layers.len() as f64) as f32).collect())
    }
}

/// One request and its state. Nothing of it outlives the request.
pub(crate) struct Sequence {
    /// Number of the request.
    pub id: usize,
    pub options: RunOptions,
    pub policy: Box<dyn EvictionPolicy>,
    pub probe_ids: Vec<u32>,
    think: ThinkIds,
    eos: Vec<u32>,
    tokenizer: Option<Tokenizer>,
    detokenizer: Option<Detokenizer>,
    text: String,
    clock: ProbeClock,
    pub ledger: Ledger,
    pub prompt: Vec<u32>,
    /// Tokens of the prompt that were forwarded.
    pub forwarded: usize,
    /// Positions there are.
    context: usize,
    /// Tokens read.
    pub tokens: Vec<trace::Token>,
    /// Tokens sampled on the device.
    pub issued: usize,
    probes: Vec<trace::Probe>,
    probe_due: bool,
    /// No further step; it ends once what was sampled is read.
    pub cancelled: bool,
    /// Why it ended, once it has.
    pub ended: Option<StopReason>,
    error: Option<Error>,
    pub totals: Totals,
    began: Instant,
    first_token: Option<Instant>,
}

impl Sequence {
    /// A request, checked: whatever can be refused before anything is computed is refused here.
    pub fn new(
        id: usize,
        prompt: Vec<u32>,
        thinking: PromptThinking,
        options: &RunOptions,
        model: &Facts<'_>,
    ) -> Result<Self> {
        if prompt.len() > model.context {
            return Err(Error::new(ErrorKind::Input, "the prompt is longer than the context")
                .expected(format!("at most {} tokens", model.context))
                .found(format!("{} tokens", prompt.len()))
                .help("shorten it, or raise --context up to the model's max_position_embeddings"));
        }
        check_ids(&prompt, model.vocab_size, "the prompt")?;
        let policy = policy::by_name(&options.policy)?;
        policy.accepts(options.budget)?;
        let tokenizer = model.tokenizer.as_ref().ok().cloned();
        let think = tokenizer.as_ref().map_or(ThinkIds { open: None, close: None }, Tokenizer::think_ids);
        let probe_ids = match policy.needs() {
            Measurement::Nothing => Vec::new(),
            _ => {
                let tokenizer = model.tokenizer.as_ref().map_err(|e| {
                    e.clone().help(format!("{} reads text: without a tokenizer use --policy random", policy.name()))
                })?;
                let probe_ids = tokenizer.encode(&options.probe_text)?;
                probe::check_probe_ids(&probe_ids, think.close)?;
                check_ids(&probe_ids, model.vocab_size, "--probe-text")?;
                probe_ids
            }
        };
        Ok(Self {
            id,
            policy,
            probe_ids,
            think,
            eos: model.eos.to_vec(),
            detokenizer: tokenizer.as_ref().map(|t| Detokenizer::new(t, false)),
            tokenizer,
            text: String::new(),
            clock: ProbeClock::new(options.probe_every, thinking)?,
            ledger: Ledger::new(prompt.len()),
            forwarded: 0,
            context: model.context,
            tokens: Vec::new(),
            issued: 0,
            probes: Vec::new(),
            probe_due: false,
            cancelled: false,
            ended: None,
            error: None,
            totals: Totals { prompt_tokens: prompt.len(), ..Totals::default() },
            began: Instant::now(),
            first_token: None,
            options: options.clone(),
            prompt,
        })
    }

    /// Its time begins: it has a place.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Whether the prompt is still to be forwarded, or the rest of it.
    pub fn prefilling(&self) -> bool {
        self.ended.is_none() && !self.cancelled && self.issued == 0
    }

    /// Every sampled token has been read.
    fn caught_up(&self) -> bool {
        self.issued == self.tokens.len()
    }

    /// Most tokens it may come to: one can be sampled as long as its predecessor can be forwarded.
    fn limit(&self) -> usize {
        self.options.max_new_tokens.min(self.context - self.prompt.len() + 1)
    }

    /// Decode steps that may be issued now: never past a point where a probe may be due, for there the text must be known,
    /// and at most two batches ahead of what was read. None before the first token was read: it tells how long the prompt
    /// took.
    pub fn room(&self) -> usize {
        let read = self.tokens.len();
        if self.ended.is_some() || self.cancelled || self.probe_due || read == 0 {
            return 0;
        }
        let to_probe = self.clock.steps_until_possible_probe().map_or(usize::MAX, |steps| read.saturating_add(steps));
        self.limit().min(to_probe).min(read + 2 * LAG).saturating_sub(self.issued)
    }

    /// Whether it is to be probed and pruned now.
    pub fn is_due(&self) -> bool {
        self.probe_due && self.ended.is_none() && !self.cancelled && self.caught_up()
    }

    /// Ends it where it has come to its end.
    pub fn settle(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if self.cancelled && self.caught_up() {
            self.ended = Some(StopReason::Cancelled);
        } else if self.tokens.len() >= self.limit() {
            let most = self.options.max_new_tokens;
            let full = self.tokens.len() < most;
            self.ended = Some(if full { StopReason::ContextFull } else { StopReason::MaxNewTokens });
        }
    }

    /// Ends it with an error: others go on.
    pub fn fail(&mut self, error: Error) {
        if self.ended.is_none() {
            self.ended = Some(StopReason::Failed(error.what().into()));
            self.error = Some(error);
        }
    }

    /// A token became known: text, role, clock, stop.
    pub fn take_in(&mut self, id: u32, on: &mut dyn FnMut(usize, Event<'_>)) -> Result<()> {
        self.first_token.get_or_insert_with(Instant::now);
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
        on(self.id, Event::Token { index: self.tokens.len(), id, text: shown, role });
        self.tokens.push(trace::Token { id, text: piece, role, step: None });
        if stop {
            self.ended = Some(StopReason::Eos);
            return Ok(());
        }
        let inside_char = self.detokenizer.as_ref().is_some_and(Detokenizer::ends_inside_char);
        let due = self.clock.push(Generated { think_open, think_close, inside_char }) && self.prunes();
        // Near the end of the context a probe has no positions left, and nothing to save.
        self.probe_due = due && self.prompt.len() + self.tokens.len() + self.probe_ids.len() <= self.context;
        Ok(())
    }

    /// `full` keeps everything whatever it is shown: it needs no probe.
    fn prunes(&self) -> bool {
        self.policy.name() != "full"
    }

    /// What stays of the cache, given what was measured, and the record of it.
    pub fn plan(&self, measured: &Measured) -> Result<(KeepPlan, trace::Probe)> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let scores = measured.scores(self.ledger.cached());
        let mut snapshot = self.ledger.snapshot();
        if self.tokenizer.is_none() {
            snapshot.current_step = policy::NO_CURRENT_STEP;
        }
        let view = CacheView::new(ViewParts {
            scores: scores.as_deref(),
            window: self.options.window,
            seed: self.options.seed,
            probe: self.probes.len() as u64,
            ..snapshot.parts(self.options.budget)
        })?;
        let plan = self.policy.plan(&view)?;
        let mut record = trace::Probe::record(self.tokens.len(), &view, &plan)?;
        if let (Some(layers), true) = (&measured.layers, self.options.attention != AttentionDetail::Off) {
            record.attention = Some(AttentionMap::of(&view, layers, measured.heads.as_deref())?);
        }
        Ok((plan, record))
    }

    /// Slots to keep free behind a gather, so that the buffers are made once a cycle.
    pub fn room_after_gather(&self) -> usize {
        self.options.probe_every.min(1024) + self.probe_ids.len() + probe::MAX_POSTPONED + 1
    }

    /// A plan was carried out, a probe is over.
    pub fn pruned(&mut self, record: trace::Probe, on: &mut dyn FnMut(usize, Event<'_>)) {
        self.probe_due = false;
        self.totals.evicted_tokens += record.evicted.len();
        on(self.id, Event::Probe(&record));
        self.probes.push(record);
    }

    /// Slots and KV bytes as they are. The old and the new buffer of the one layer that a gather is moving do not count.
    pub fn note_peak(&mut self, slots: usize, bytes: u64) {
        self.totals.peak_cached = self.totals.peak_cached.max(slots);
        self.totals.peak_kv_bytes = self.totals.peak_kv_bytes.max(bytes);
    }

    /// What it came to, while its place in the cache is still its own. What was generated before a failure is not lost with
    /// it.
    pub fn finish(mut self, model: &str, device: &ComputeDevice, cache: &KvCache, place: usize) -> Result<RunResult> {
        match self.error {
            Some(error) if self.tokens.is_empty() => return Err(error),
            _ => {}
        }
        let first_token = self.first_token.unwrap_or_else(Instant::now);
        self.totals.prefill_us = (first_token - self.began).as_micros() as u64;
        self.totals.decode_us = (first_token.elapsed().as_micros() as u64).saturating_sub(self.totals.probe_us);
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
        self.totals.final_cached = cache.len(0, place).min(self.ledger.cached());
        let trace = Trace {
            version: trace::VERSION,
            secateur: env!("CARGO_PKG_VERSION").into(),
            model: model.into(),
            device: device.info.line(),
            settings: trace::Settings {
                policy: self.policy.name().into(),
                budget: self.options.budget.to_string(),
                window: self.options.window,
                probe_every: self.options.probe_every,
                probe_text: self.options.probe_text.clone(),
                seed: self.options.seed,
            },
            // Text for people: that a decoder fails on it is no reason to lose the trace.
            prompt_text: self.tokenizer.as_ref().and_then(|t| t.decode(&self.prompt, false).ok()),
            slot_bytes: Some(cache.shape().slot_bytes() as u64 * cache.shape().layers as u64),
            prompt_ids: self.prompt,
            tokens: self.tokens,
            probes: self.probes,
            stop_reason: self.ended.expect("it is finished because it ended"),
            totals: self.totals,
        };
        let (bytes, kv_bytes) = (device.bytes(), cache.bytes_of(place));
        Ok(RunResult { text: self.text, bytes, kv_bytes, trace, error: self.error })
    }
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
