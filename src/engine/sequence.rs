//! The host's side of one sequence: what was asked for, what is known of it so far, and what comes of it. No tensors here.
use web_time::Instant;

use super::pruning::{Measurements, Pruner};
use crate::cache::KvCache;
use crate::device::ComputeDevice;
use crate::engine::{Event, LAG, RunResult};
use crate::policy::{self, KeepPlan, Ledger, Positions, Role, Sets};
use crate::probe::{self, Generated, ProbeClock, PromptThinking};
use crate::settings::Settings;
use crate::steps::Tail;
use crate::text::{Detokenizer, ThinkIds, Tokenizer};
use crate::trace::{self, StopReason, Totals, Trace};
use crate::{Error, ErrorKind, Result};

/// What a sequence must know of the model.
pub(crate) struct ModelFacts<'a> {
    pub tokenizer: &'a Result<Tokenizer>,
    pub vocab_size: usize,
    pub eos: &'a [u32],
    /// Positions the model was loaded for.
    pub context: usize,
    pub layers: usize,
    pub kv_heads: usize,
}

/// One request and its state. Nothing of it outlives the request.
pub(crate) struct Sequence {
    /// Number of the request.
    pub id: usize,
    pub pruner: Pruner,
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
    /// See [`RunResult`].
    pub missed: f32,
    began: Instant,
    first_token: Option<Instant>,
}

impl Sequence {
    /// A request, checked: whatever can be refused before anything is computed is refused here.
    pub fn new(
        id: usize,
        prompt: Vec<u32>,
        thinking: PromptThinking,
        settings: &Settings,
        model: &ModelFacts<'_>,
    ) -> Result<Self> {
        if prompt.len() > model.context {
            return Err(Error::new(ErrorKind::Input, "the prompt is longer than the context")
                .expected(format!("at most {} tokens", model.context))
                .found(format!("{} tokens", prompt.len()))
                .help("shorten it, or raise `context` up to the model's max_position_embeddings"));
        }
        check_ids(&prompt, model.vocab_size, "the prompt")?;
        settings.sampling.check()?;
        let sets = Sets { scope: settings.scope, layers: model.layers, kv_heads: model.kv_heads };
        let pruner = Pruner::new(settings.clone(), sets)?;
        let tokenizer = model.tokenizer.as_ref().ok().cloned();
        let think = tokenizer.as_ref().map_or(ThinkIds { open: None, close: None }, Tokenizer::think_ids);
        let probe_ids = match settings.policy.needs().probes() {
            false => Vec::new(),
            true => {
                let tokenizer = model.tokenizer.as_ref().map_err(|e| {
                    e.clone().help(format!("{} reads text: without a tokenizer use `policy` random", settings.policy))
                })?;
                let probe_ids = tokenizer.encode(&settings.probe_text)?;
                probe::check_probe_ids(&probe_ids, think.close)?;
                check_ids(&probe_ids, model.vocab_size, "`probe_text`")?;
                probe_ids
            }
        };
        Ok(Self {
            id,
            pruner,
            probe_ids,
            think,
            eos: model.eos.to_vec(),
            detokenizer: tokenizer.as_ref().map(|t| Detokenizer::new(t, false)),
            tokenizer,
            text: String::new(),
            clock: ProbeClock::new(settings.probe_every, thinking)?,
            ledger: Ledger::with_sets(prompt.len(), sets),
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
            missed: 0.0,
            began: Instant::now(),
            first_token: None,
            prompt,
        })
    }

    /// How it is generated and pruned.
    pub fn settings(&self) -> &Settings {
        &self.pruner.settings
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
        self.settings().max_new_tokens.min((self.tokens.len() + self.context + 1).saturating_sub(self.reached()))
    }

    /// Positions in use, the pending token's included. Where keys close ranks, evicted ones are free again.
    fn reached(&self) -> usize {
        match self.settings().positions {
            Positions::Original => self.prompt.len() + self.tokens.len(),
            Positions::Compact => self.ledger.cached(),
        }
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
    pub fn finish_if_done(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if self.cancelled && self.caught_up() {
            self.ended = Some(StopReason::Cancelled);
        } else if self.tokens.len() >= self.limit() {
            let most = self.settings().max_new_tokens;
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
        let stop = self.eos.contains(&id) && !self.settings().ignore_eos;
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
        // What was cached when it was sampled: all before it.
        self.totals.peak_cached = self.totals.peak_cached.max(self.ledger.cached());
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
        self.probe_due = due && self.reached() + self.probe_ids.len() <= self.context;
        Ok(())
    }

    /// A policy that keeps everything needs no probe.
    fn prunes(&self) -> bool {
        self.settings().policy.evicts()
    }

    /// What stays of the cache, and the record of it.
    pub fn plan(&self, readouts: &Measurements) -> Result<(KeepPlan, trace::Probe)> {
        let mut snapshot = self.ledger.snapshot();
        if self.tokenizer.is_none() {
            snapshot.current_step = policy::NO_CURRENT_STEP;
        }
        self.pruner.plan(&snapshot, readouts, self.tokens.len(), self.probes.len() as u64)
    }

    /// Slots to keep free behind a gather, so that the buffers are made once a cycle.
    pub fn room_after_gather(&self) -> usize {
        self.settings().probe_every.min(1024) + self.probe_ids.len() + probe::MAX_POSTPONED + 1
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
        self.note_bytes(bytes);
    }

    /// KV bytes as they are. Of decode steps the slots count once their tokens are read: steps under way past the end are no part
    /// of the run, and how many there are depends on the neighbours.
    pub fn note_bytes(&mut self, bytes: u64) {
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
        self.totals.repeated_tokens = repeated(&self.tokens);
        self.totals.generated_tokens = self.tokens.len();
        self.totals.thinking_tokens = self.ledger.thinking().tokens();
        // Neither the last token, which nobody forwarded, nor the steps that were under way past it.
        let before_the_last = self.ledger.cached() - usize::from(!self.tokens.is_empty());
        self.totals.final_cached = cache.longest(place).min(before_the_last);
        let trace = Trace {
            version: trace::VERSION,
            secateur: env!("CARGO_PKG_VERSION").into(),
            model: model.into(),
            device: device.info.line(),
            settings: self.pruner.settings,
            // Text for people: that a decoder fails on it is no reason to lose the trace.
            prompt_text: self.tokenizer.as_ref().and_then(|t| t.decode(&self.prompt, false).ok()),
            slot_bytes: Some(cache.shape().slot_bytes() as u64 * cache.shape().layers as u64),
            prompt_ids: self.prompt,
            tokens: self.tokens,
            probes: self.probes,
            stop_reason: self.ended.expect("it is finished because it ended"),
            totals: self.totals,
        };
        Ok(RunResult {
            text: self.text,
            bytes: device.bytes(),
            kv_bytes: cache.bytes_of(place),
            missed: self.missed,
            trace,
            error: self.error,
        })
    }
}

/// Tokens that end a run of twelve ids which occurred before.
fn repeated(tokens: &[trace::Token]) -> usize {
    let ids: Vec<u32> = tokens.iter().map(|t| t.id).collect();
    let mut seen = std::collections::HashSet::new();
    ids.windows(12).filter(|run| !seen.insert(*run)).count()
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
