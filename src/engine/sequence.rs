//! The host's part of one sequence: the request, what is known of the sequence so far, and its result. It holds no
//! tensors.
use std::collections::HashSet;

use web_time::Instant;

use crate::cache::{CacheShape, KvCache};
use crate::device::ComputeDevice;
use crate::engine::bound::{Bound, Slots};
use crate::engine::drafts::most_under_way;
use crate::engine::grammar::Grammar;
use crate::engine::logprobs::{Logprobs, TokenRow};
use crate::engine::pruning::Pruner;
use crate::engine::record::{Event, LAG, RunResult};
use crate::engine::runner::{Admission, Measurements, Next};
use crate::policy::{self, KeepPlan, Ledger, Positions, Role, Sets};
use crate::probe::{self, Generated, ProbeClock, PromptThinking};
use crate::settings::Settings;
use crate::steps::{BoundaryCounts, Tail};
use crate::text::Stops;
use crate::text::{Detokenizer, ThinkIds, Tokenizer};
use crate::trace::{self, StopReason, Totals, Trace};
use crate::weights::precision::Precision;
use crate::{Error, ErrorKind, Result};

/// What a sequence needs to know about the model.
pub(crate) struct ModelFacts<'a> {
    pub tokenizer: &'a Result<Tokenizer>,
    pub vocab_size: usize,
    pub eos: &'a [u32],
    /// Positions that the model was loaded for.
    pub context: usize,
    pub precision: Option<Precision>,
    pub layers: usize,
    pub kv_heads: usize,
    pub shape: &'a CacheShape,
    /// Values of a token's queries, all heads of a layer together.
    pub query_cols: usize,
}

/// The text of the error for a prompt that is longer than the context. Front-ends compare it, because programs
/// shorten a conversation after this error.
pub(crate) const TOO_LONG: &str = "the prompt is longer than the context";

/// The error for a prompt that is longer than the context.
pub(super) fn too_long(context: usize, found: String) -> Error {
    Error::new(ErrorKind::Input, TOO_LONG)
        .expected(format!("at most {context} tokens"))
        .found(found)
        .help("shorten it, or raise `context`, if the model allows more")
}

/// One request and its state.
pub(crate) struct Sequence {
    /// Number of the request.
    pub id: usize,
    /// The most memory that this request can need.
    pub bound: Bound,
    /// Turns in which another prompt was forwarded while this one waited for its next chunk.
    pub passed_over: usize,
    pub pruner: Pruner,
    precision: Option<Precision>,
    pub probe_ids: Vec<u32>,
    think: ThinkIds,
    eos: Vec<u32>,
    /// Rows of the output layer: ids that can be sampled.
    vocab: usize,
    tokenizer: Option<Tokenizer>,
    detokenizer: Option<Detokenizer>,
    text: String,
    stops: Stops,
    clock: ProbeClock,
    closing: Closing,
    /// What the format of the answer allows, if it has one.
    grammar: Option<Grammar>,
    /// Tokens outside the thinking.
    answered: usize,
    pub ledger: Ledger,
    pub prompt: Vec<u32>,
    /// Tokens of the prompt that were forwarded or copied.
    pub forwarded: usize,
    /// Tokens of the prompt that were copied from another sequence. They are counted in `forwarded` as well.
    pub shared: usize,
    /// The group of requests that share the beginnings of their prompts.
    pub group: u64,
    /// Positions that the model was loaded for.
    context: usize,
    /// Generated tokens that were read back.
    pub tokens: Vec<trace::Token>,
    /// Tokens sampled on the device, read back or not. With drafts it is the least number, because each step samples
    /// one token or more.
    pub issued: usize,
    drafted: Drafted,
    probes: Vec<trace::Probe>,
    /// The latest token, if a probe is due after it.
    probe_after: Option<u32>,
    /// Whether the sequence was cancelled. No further steps are issued, and the sequence ends once all sampled tokens
    /// are read.
    cancelled: bool,
    /// Why the sequence ended; `None` while it runs.
    pub ended: Option<StopReason>,
    error: Option<Error>,
    pub totals: Totals,
    repetition: Repetition,
    prompt_logprobs: Vec<Logprobs>,
    /// See [`RunResult::missed`].
    pub missed: f32,
    began: Instant,
    first_token: Option<Instant>,
}

impl Sequence {
    /// Makes the sequence of a request. Every request that cannot run is refused here, before anything is computed.
    pub fn new(
        id: usize,
        prompt: Vec<u32>,
        thinking: PromptThinking,
        grammar: Option<Grammar>,
        settings: &Settings,
        model: &ModelFacts<'_>,
    ) -> Result<Self> {
        if prompt.len() > model.context {
            return Err(too_long(model.context, format!("{} tokens", prompt.len())));
        }
        check_ids(&prompt, model.vocab_size, "the prompt")?;
        settings.sampling.check()?;
        settings.check_draft()?;
        let sets = Sets { scope: settings.scope, layers: model.layers, kv_heads: model.kv_heads };
        let pruner = Pruner::new(settings.clone(), sets)?;
        let tokenizer = model.tokenizer.as_ref().ok().cloned();
        check_ids(&settings.stop_ids, model.vocab_size, "`stop_ids`")?;
        if let (false, Err(e)) = (settings.stop.is_empty(), model.tokenizer) {
            return Err(e.clone().at("`stop`"));
        }
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
        if grammar.is_some() && think.close.is_none() && settings.max_thinking_tokens.is_some() {
            let what = "this model's thinking has no single closing tag, so all of its text is the answer";
            let e = Error::new(ErrorKind::Input, what).at("`answer_format`");
            return Err(e.help("leave out `max_thinking_tokens`"));
        }
        let slots = Slots { prompt: prompt.len(), probe: probe_ids.len(), context: model.context, settings };
        Ok(Self {
            id,
            bound: slots.bound(model.shape, model.query_cols),
            passed_over: 0,
            pruner,
            precision: model.precision,
            probe_ids,
            think,
            eos: model.eos.to_vec(),
            vocab: model.vocab_size,
            detokenizer: tokenizer.as_ref().map(|t| Detokenizer::new(t, false)),
            text: String::new(),
            stops: Stops::new(&settings.stop, settings.include_stop),
            clock: ProbeClock::new(settings.probe_every, thinking)?,
            closing: Closing::new(tokenizer.as_ref(), &think, settings.max_thinking_tokens, thinking)?,
            grammar,
            answered: 0,
            ledger: Ledger::with_sets(prompt.len(), sets).with_boundaries(settings.steps),
            forwarded: 0,
            shared: 0,
            group: 0,
            context: model.context,
            tokens: Vec::new(),
            issued: 0,
            drafted: Drafted::default(),
            probes: Vec::new(),
            probe_after: None,
            cancelled: false,
            ended: None,
            error: None,
            repetition: Repetition::default(),
            prompt_logprobs: Vec::new(),
            totals: Totals { prompt_tokens: prompt.len(), ..Totals::default() },
            missed: 0.0,
            began: Instant::now(),
            first_token: None,
            prompt,
            tokenizer,
        })
    }

    /// The settings by which the sequence is generated and pruned.
    pub fn settings(&self) -> &Settings {
        &self.pruner.settings
    }

    /// Starts the clock, when the request gets a place in the batch.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Whether any of the prompt is still to be forwarded.
    pub fn prefilling(&self) -> bool {
        self.ended.is_none() && !self.cancelled && self.issued == 0
    }

    /// Whether any token of the prompt was forwarded, rather than copied.
    pub fn has_begun(&self) -> bool {
        self.forwarded > self.shared
    }

    /// How the runner runs this sequence.
    pub fn admission(&self) -> Admission<'_> {
        Admission {
            settings: self.settings(),
            tracking: self.pruner.tracking(),
            prompt: &self.prompt,
            group: Some(self.group),
        }
    }

    /// Issues no further steps. The sequence ends once all sampled tokens are read.
    pub fn cancel(&mut self) {
        self.cancelled = true;
    }

    /// Whether the sequence was cancelled.
    pub fn cancelled(&self) -> bool {
        self.cancelled
    }

    /// Whether every sampled token has been read.
    fn caught_up(&self) -> bool {
        self.issued == self.tokens.len()
    }

    /// The most tokens that the sequence may generate. A token can be sampled as long as its predecessor can be
    /// forwarded.
    fn limit(&self) -> usize {
        self.settings().max_new_tokens.min((self.tokens.len() + self.context + 1).saturating_sub(self.reached()))
    }

    /// What the slots of this request depend on.
    pub fn slots(&self) -> Slots<'_> {
        let (prompt, probe) = (self.prompt.len(), self.probe_ids.len());
        Slots { prompt, probe, context: self.context, settings: self.settings() }
    }

    /// The most slots that the sequence can need, if its whole text is thinking. For budgets that bound no number of
    /// tokens, this is as if nothing were evicted.
    pub fn most_slots(&self) -> usize {
        self.slots().of_thinking()
    }

    /// Positions in use, the pending token's included. With compact positions those of evicted tokens are free again.
    fn reached(&self) -> usize {
        match self.settings().positions {
            Positions::Original => self.prompt.len() + self.tokens.len(),
            Positions::Compact => self.ledger.cached(),
        }
    }

    /// Decode steps that may be issued now. They never go past a token after which a probe may be due, because the
    /// text must be known there, and they run at most two bursts of `burst` tokens ahead of what was read. Before the
    /// first token is read there are none, because that read ends the measured time of the prefill.
    pub fn room(&self, burst: usize) -> usize {
        self.stop_at().min(self.tokens.len() + 2 * burst).saturating_sub(self.issued)
    }

    /// The number of tokens at which decoding has to stop, because the text must be known there; 0 where no step may be
    /// issued.
    fn stop_at(&self) -> usize {
        let read = self.tokens.len();
        if self.ended.is_some() || self.cancelled || self.probe_after.is_some() || read == 0 {
            return 0;
        }
        if self.is_stepwise() && !self.caught_up() {
            return 0;
        }
        let to_probe = read.saturating_add(self.clock.steps_until_possible_probe());
        let to_close = match self.closing.steps_until(&self.clock, read) {
            Some(0) => return 0,
            steps => steps.map_or(usize::MAX, |steps| read.saturating_add(steps)),
        };
        // An open thought must be closed before the answer continues.
        let answer = self.settings().max_answer_tokens.map(|most| most.saturating_sub(self.answered));
        let inside = usize::from(self.clock.inside_thinking());
        let to_end = answer.map_or(usize::MAX, |left| read.saturating_add(left).saturating_add(inside));
        self.limit().min(to_probe).min(to_close).min(to_end)
    }

    /// The most drafts of a step; 0 without drafts.
    pub fn drafts(&self) -> usize {
        self.settings().draft
    }

    /// The number of tokens at which steps with drafts have to stop; 0 where none may be launched.
    pub fn draft_limit(&self) -> usize {
        if self.drafts() == 0 { 0 } else { self.stop_at() }
    }

    /// Steps with drafts that may be launched now, with `chunk` rows: as many as are likely to be needed, and at most
    /// two bursts of `burst` steps ahead of what was read. A step beyond what is needed adds no token.
    pub fn draft_room(&self, burst: usize, chunk: usize) -> usize {
        let read = self.tokens.len();
        let left = self.draft_limit().saturating_sub(read);
        let needed = (left as f64 / self.drafted.tokens_a_step(read).min(chunk as f64)).ceil() as usize;
        needed.min(2 * burst).min(most_under_way(chunk)).saturating_sub(self.drafted.under_way())
    }

    /// Steps with drafts that were launched so far.
    pub fn draft_steps(&self) -> usize {
        self.drafted.launched
    }

    /// Notes steps with drafts that were launched.
    pub fn launched_drafted(&mut self, steps: usize) {
        self.drafted.launched += steps;
        self.issued += steps;
    }

    /// Notes that the tokens of the first `steps` steps with drafts have been taken in.
    pub fn read_drafted(&mut self, steps: usize) {
        if self.drafts() > 0 {
            self.drafted.read = steps;
            self.issued = self.tokens.len() + self.drafted.under_way();
        }
    }

    /// The token that the engine must write next in place of the model, to end the thinking. `None` where the model
    /// writes the next token.
    pub fn forced(&self) -> Option<u32> {
        let free = self.ended.is_none() && !self.cancelled && self.issued < self.limit();
        let ready = self.closing.begun() || self.caught_up() && self.issued > 0;
        if free && ready { self.closing.next(&self.clock) } else { None }
    }

    /// The token that the engine must write first, after the prompt; like [`forced`](Self::forced).
    pub fn forced_first(&self) -> Option<u32> {
        self.closing.next(&self.clock)
    }

    /// Whether a forced token may be written now, without a probe before it.
    pub fn is_forced(&self) -> bool {
        self.probe_after.is_none() && self.forced().is_some()
    }

    /// Whether each token must be read before the next one can be chosen. The format of an answer allows tokens
    /// depending on all tokens before, and a thought can end with any token.
    pub fn is_stepwise(&self) -> bool {
        self.grammar.is_some() && self.ended.is_none() && !self.cancelled && self.issued > 0
    }

    /// What the next token may be, if the model writes it. If the answer has a format, all earlier tokens must have
    /// been read.
    pub fn next(&mut self) -> Result<Next> {
        let Some(grammar) = &mut self.grammar else { return Ok(Next::Any) };
        if self.clock.inside_thinking() && self.think.close.is_some() {
            // An answer must follow, so the text cannot end inside a thought.
            let mut all = vec![u32::MAX; self.vocab.div_ceil(32)];
            self.eos.iter().for_each(|id| all[*id as usize / 32] &= !(1 << (id % 32)));
            return Ok(Next::Among(all));
        }
        let mut allowed = grammar.allowed()?;
        // A model that has not thought yet may begin with a thought.
        let thought = self.closing.closed || self.tokens.iter().any(|token| token.role == Role::ThinkClose);
        if let Some(open) = self.think.open.filter(|_| !grammar.begun() && !thought) {
            allowed[open as usize / 32] |= 1 << (open % 32);
        }
        Ok(Next::Among(allowed))
    }

    /// Records that the token of [`forced`](Self::forced) is being written.
    pub fn wrote_forced(&mut self) {
        self.closing.issued += 1;
    }

    /// Ends the thinking as soon as possible: the current thought, or the first one if no token has been generated.
    pub fn end_thinking(&mut self) {
        self.closing.asked |= self.tokens.is_empty() || self.clock.inside_thinking();
    }

    /// The pending token, if the sequence is to be probed and pruned now.
    pub fn due(&self) -> Option<u32> {
        self.probe_after.filter(|_| self.ended.is_none() && !self.cancelled && self.caught_up())
    }

    /// Ends the sequence if a limit is reached, or if it was cancelled and all sampled tokens are read.
    pub fn finish_if_done(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if self.cancelled && self.caught_up() {
            self.ended = Some(StopReason::Cancelled);
        } else if self
            .settings()
            .max_answer_tokens
            .is_some_and(|most| self.answered >= most && !self.clock.inside_thinking())
        {
            self.ended = Some(StopReason::MaxAnswerTokens);
        } else if self.tokens.len() >= self.limit() {
            let most = self.settings().max_new_tokens;
            let full = self.tokens.len() < most;
            self.ended = Some(if full { StopReason::ContextFull } else { StopReason::MaxNewTokens });
        }
    }

    /// Returns the value of `result`. If it is an error, the sequence ends with it.
    pub fn or_fail<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.fail(e)).ok()
    }

    /// Ends this sequence with an error. The other sequences continue.
    pub fn fail(&mut self, error: Error) {
        if self.ended.is_none() {
            self.ended = Some(StopReason::Failed(error.what().into()));
            self.error = Some(error);
        }
    }

    /// Adds a token that was read, with its text and its role. Advances the probe clock, and ends the sequence at a
    /// stop token.
    ///
    /// `row` has the probabilities at this token, if the request reports them.
    pub fn take_in(&mut self, id: u32, row: Option<&TokenRow>, on: &mut dyn FnMut(usize, Event<'_>)) -> Result<()> {
        let most = self.settings().logprobs;
        let logprobs = most.zip(row).map(|(most, row)| row.logprobs(most)).transpose()?;
        self.first_token.get_or_insert_with(Instant::now);
        let stop = self.eos.contains(&id) && !self.settings().ignore_eos;
        let inside = self.clock.inside_thinking();
        let forced = self.closing.issued > 0;
        let (think_open, think_close) = (Some(id) == self.think.open, forced || Some(id) == self.think.close);
        let role = match inside {
            _ if stop => Role::Answer,
            _ if think_close => Role::ThinkClose,
            _ if think_open => Role::ThinkOpen,
            true => Role::Thinking,
            false => Role::Answer,
        };
        // Without a closing tag, a thought never ends. Then every token may belong to the answer.
        let answers = role == Role::Answer || self.think.close.is_none() && !forced;
        let complete = match &mut self.grammar {
            Some(grammar) if answers && !stop => grammar.push(id)?,
            _ => false,
        };
        let piece = match &mut self.detokenizer {
            Some(detokenizer) => detokenizer.push(id)?.to_string(),
            None => String::new(),
        };
        let bytes = self.tokenizer.as_ref().and_then(|t| t.token_bytes(id));
        // When this token was sampled, all tokens before it were cached.
        self.totals.peak_cached = self.totals.peak_cached.max(self.ledger.cached());
        self.ledger.push(role, bytes.as_deref().unwrap_or(piece.as_bytes()));
        let special = self.tokenizer.as_ref().is_some_and(|t| t.is_special(id));
        let stops_here = answers && !stop && self.settings().stop_ids.contains(&id);
        let left_out = special || stops_here && !self.settings().include_stop;
        let shown = if left_out { "" } else { piece.as_str() };
        let released = match answers {
            true => self.stops.push(shown),
            false => {
                let rest = self.stops.rest();
                if !rest.is_empty() {
                    self.text.push_str(&rest);
                    on(self.id, Event::Rest { text: &rest, role: Role::Answer });
                }
                shown.to_string()
            }
        };
        self.text.push_str(&released);
        // The tags of the first thought count as thinking. Those of later thoughts do not.
        let later = matches!(role, Role::ThinkOpen | Role::ThinkClose) && self.closing.closed;
        self.answered += usize::from(role == Role::Answer || later);
        let (index, logprobs) = (self.tokens.len(), logprobs.as_ref());
        on(self.id, Event::Token { index, id, text: &released, role, logprobs });
        let special = left_out || stop;
        self.tokens.push(trace::Token { id, text: piece, role, special, step: None, forced });
        if self.repetition.push(&self.tokens) {
            on(self.id, Event::Repetition { index: self.tokens.len() - 1 });
        }
        if stop {
            self.ended = Some(StopReason::Eos);
        } else if self.stops.matched() {
            self.ended = Some(StopReason::StopString);
        } else if stops_here {
            self.ended = Some(StopReason::StopToken);
        } else if complete {
            self.ended = Some(StopReason::FormatComplete);
        }
        if self.ended.is_some() {
            return Ok(());
        }
        let inside_char = self.detokenizer.as_ref().is_some_and(Detokenizer::ends_inside_char);
        let due = self.clock.push(Generated { think_open, think_close, inside_char }) && self.prunes();
        self.closing.push(think_open, &self.clock, self.tokens.len());
        // Near the end of the context no positions are left for a probe, and pruning would save nothing.
        let due = due && self.reached() + self.probe_ids.len() <= self.context;
        self.probe_after = due.then_some(id);
        Ok(())
    }

    /// Adds the probabilities of the next token of the prompt.
    pub fn note_prompt(&mut self, row: &TokenRow) -> Result<()> {
        let most = self.settings().prompt_logprobs.unwrap_or(0);
        self.prompt_logprobs.push(row.logprobs(most)?);
        Ok(())
    }

    /// Whether the policy evicts at all. One that keeps everything needs no probe.
    fn prunes(&self) -> bool {
        self.settings().policy.evicts()
    }

    /// Plans a pruning: which slots stay. Also returns the record of it.
    pub fn plan(&self, measured: &Measurements) -> Result<(KeepPlan, trace::Probe)> {
        let mut snapshot = self.ledger.snapshot();
        if self.tokenizer.is_none() {
            snapshot.current_step = policy::NO_CURRENT_STEP;
        }
        self.pruner.plan(&snapshot, measured, self.tokens.len(), self.probes.len() as u64)
    }

    /// Free slots to have after a gather, so that the buffers are allocated once from one pruning to the next.
    pub fn room_after_gather(&self) -> usize {
        self.slots().room_after_gather()
    }

    /// Records a plan that was carried out.
    pub fn pruned(&mut self, record: trace::Probe, on: &mut dyn FnMut(usize, Event<'_>)) {
        self.probe_after = None;
        self.totals.evicted_tokens += record.evicted.len();
        on(self.id, Event::Probe(&record));
        self.probes.push(record);
    }

    /// Updates the peaks of slots and KV bytes. While a gather moves a layer, that layer briefly has two buffers,
    /// which are not counted.
    pub fn note_peak(&mut self, slots: usize, bytes: u64) {
        self.totals.peak_cached = self.totals.peak_cached.max(slots);
        self.note_bytes(bytes);
    }

    /// Updates the peak of KV bytes. The slots of decode steps are counted once their tokens are read: steps after
    /// the end are no part of the result, and their number depends on the other sequences.
    pub fn note_bytes(&mut self, bytes: u64) {
        self.totals.peak_kv_bytes = self.totals.peak_kv_bytes.max(bytes);
    }

    /// Releases text that was held back for a stop string or for the rest of a character. Text after a stop string is
    /// no part of the result. The rest of a character belongs to the last token, in the trace as well, and it is left
    /// out where that token is.
    pub fn release(&mut self, on: &mut dyn FnMut(usize, Event<'_>)) {
        let held = self.stops.rest();
        let mut unfinished = match &mut self.detokenizer {
            Some(detokenizer) if !self.stops.matched() => detokenizer.finish(),
            _ => "",
        };
        let mut role = Role::Answer;
        if let Some(last) = self.tokens.last_mut() {
            role = last.role;
            last.text.push_str(unfinished);
            if last.special {
                unfinished = "";
            }
        }
        for (text, role) in [(held.as_str(), Role::Answer), (unfinished, role)] {
            if !text.is_empty() {
                self.text.push_str(text);
                on(self.id, Event::Rest { text, role });
            }
        }
    }

    /// The result, taken while the sequence still has its place in the cache: `None` if it never had one. What was
    /// generated before a failure is part of it.
    ///
    /// # Errors
    /// The error of a sequence that failed before its first token. [`ErrorKind::Internal`] if the sequence has not
    /// ended.
    pub fn finish(
        mut self,
        model: &str,
        device: &ComputeDevice,
        cache: &KvCache,
        place: Option<usize>,
    ) -> Result<RunResult> {
        match self.error {
            Some(error) if self.tokens.is_empty() => return Err(error),
            _ => {}
        }
        let Some(stop_reason) = self.ended else {
            return Err(Error::new(ErrorKind::Internal, "a sequence was finished before it had ended"));
        };
        let format_unfinished = self.grammar.as_mut().is_some_and(|grammar| match stop_reason {
            StopReason::Eos | StopReason::FormatComplete => false,
            // The token or string that ended the answer is not part of the text, although the grammar has read it.
            StopReason::StopString | StopReason::StopToken if !self.pruner.settings.include_stop => true,
            _ => !grammar.may_end(),
        });
        let first_token = self.first_token.unwrap_or_else(Instant::now);
        self.totals.prefill_us = (first_token - self.began).as_micros() as u64;
        self.totals.decode_us = (first_token.elapsed().as_micros() as u64).saturating_sub(self.totals.probe_us);
        // The steps are those of the final text.
        let thinking = self.ledger.thinking();
        let steps = thinking.steps(Tail::Closed);
        let step_of = thinking.assign(&steps);
        let thoughts = self.tokens.iter_mut().filter(|t| t.role == Role::Thinking);
        thoughts.zip(step_of).for_each(|(token, step)| token.step = Some(steps[step].start));
        self.totals.repeated_tokens = self.repetition.tokens;
        self.totals.probability_missed = Some(self.missed).filter(|missed| *missed > 0.0);
        self.totals.generated_tokens = self.tokens.len();
        self.totals.thinking_tokens = self.ledger.thinking().tokens();
        self.totals.draft_steps = self.drafted.read;
        // The last token is not counted, because it was not forwarded, and neither are steps after it.
        let before_the_last = self.ledger.cached() - usize::from(!self.tokens.is_empty());
        self.totals.final_cached = place.map_or(0, |place| cache.longest(place)).min(before_the_last);
        let trace = Trace {
            version: trace::VERSION,
            secateur: env!("CARGO_PKG_VERSION").into(),
            model: model.into(),
            device: device.info.line(),
            weights: self.precision,
            settings: self.pruner.settings,
            // The text is only for readers of the trace, so a prompt that cannot be decoded is no error.
            prompt_text: self.tokenizer.as_ref().and_then(|t| t.decode(&self.prompt, false).ok()),
            slot_bytes: Some(cache.shape().token_bytes()),
            prompt_ids: self.prompt,
            step_boundaries: self.tokenizer.is_some().then(|| BoundaryCounts::new(&steps)),
            tokens: self.tokens,
            probes: self.probes,
            stop_reason,
            totals: self.totals,
        };
        Ok(RunResult {
            text: self.text,
            answer: trace.answer().trim().to_string(),
            // Without a closing tag the end of the thinking is not known, so nothing counts as unfinished.
            thinking_unfinished: self.think.close.is_some() && self.clock.inside_thinking(),
            format_unfinished,
            bytes: device.bytes(),
            kv_bytes: place.map_or(0, |place| cache.bytes_of(place)),
            missed: self.missed,
            prompt_logprobs: self.prompt_logprobs,
            shared_tokens: self.shared,
            trace,
            error: self.error,
        })
    }
}

/// The steps with drafts of a sequence.
#[derive(Debug, Default)]
struct Drafted {
    /// Steps that were launched.
    launched: usize,
    /// Steps whose tokens were read.
    read: usize,
}

impl Drafted {
    /// Steps whose tokens have not been read.
    fn under_way(&self) -> usize {
        self.launched - self.read
    }

    /// The mean number of tokens of a step, at least 1, if `tokens` were read so far.
    fn tokens_a_step(&self, tokens: usize) -> f64 {
        if self.read == 0 { 1.0 } else { (tokens as f64 / self.read as f64).max(1.0) }
    }
}

/// Ends the thinking in place of the model: after a number of tokens, or when a caller asks for it.
#[derive(Debug)]
struct Closing {
    /// The ids of `</think>`, or of the model's own closing tag. There are several if the tokenizer splits the tag.
    tag: Vec<u32>,
    /// The most thinking tokens of the request.
    most: Option<usize>,
    /// The number of thinking tokens, of all thoughts together, at which the current thought is ended.
    end: Option<usize>,
    /// Whether a caller has asked for the thinking to end.
    asked: bool,
    /// Whether a thought has already ended, in the prompt or later.
    closed: bool,
    /// Tokens of the tag that were written and not read back yet.
    issued: usize,
    /// Tokens of the tag that were read back.
    read: usize,
}

impl Closing {
    /// If a thought begins after this number of tokens, it does not count as the first one.
    const FIRST: usize = 2 * LAG;

    fn new(
        tokenizer: Option<&Tokenizer>,
        think: &ThinkIds,
        most: Option<usize>,
        prompt: PromptThinking,
    ) -> Result<Self> {
        let tag = match (think.close, tokenizer) {
            (Some(id), _) => vec![id],
            (None, Some(tokenizer)) => tokenizer.encode(tokenizer.think_tags().close)?,
            (None, None) if most.is_some() => {
                let e = Error::new(ErrorKind::Input, "without a tokenizer, thinking cannot be ended");
                return Err(e.at("`max_thinking_tokens`"));
            }
            (None, None) => Vec::new(),
        };
        let closed = prompt == PromptThinking::Closed;
        Ok(Self { tag, most, end: most, asked: false, closed, issued: 0, read: 0 })
    }

    /// Whether the tag is being written.
    fn begun(&self) -> bool {
        self.issued + self.read > 0
    }

    /// Whether the thinking must end now.
    fn due(&self, clock: &ProbeClock) -> bool {
        let over = self.end.is_some_and(|end| clock.thinking_tokens() >= end);
        !self.tag.is_empty() && clock.inside_thinking() && (self.asked || over)
    }

    /// The next token of the tag, if one must be written.
    fn next(&self, clock: &ProbeClock) -> Option<u32> {
        match self.begun() {
            true => self.tag.get(self.issued + self.read).copied(),
            false if self.due(clock) => self.tag.first().copied(),
            false => None,
        }
    }

    /// The most steps that may be taken before the thinking may have to end, after `read` tokens; `None` if it never
    /// has to.
    fn steps_until(&self, clock: &ProbeClock, read: usize) -> Option<usize> {
        if self.begun() && self.next(clock).is_some() || self.due(clock) {
            return Some(0);
        }
        let most = self.most?;
        if clock.inside_thinking() {
            return self.end.map(|end| end.saturating_sub(clock.thinking_tokens()));
        }
        // The opening tag takes a step of its own.
        Some((self.end_of_new(most, clock, read) - clock.thinking_tokens()).saturating_add(1))
    }

    /// The number of thinking tokens at which a thought ends that begins after `read` tokens. Only the first thought
    /// ends exactly there: for a later one, each token of the answer would have to be read before the next step.
    fn end_of_new(&self, most: usize, clock: &ProbeClock, read: usize) -> usize {
        let exact = !self.closed && read < Self::FIRST;
        most.max(clock.thinking_tokens() + if exact { 0 } else { LAG })
    }

    /// Takes in a token that was read: the last of `read`.
    fn push(&mut self, opened: bool, clock: &ProbeClock, read: usize) {
        if self.issued > 0 {
            (self.issued, self.read) = (self.issued - 1, self.read + 1);
        }
        if opened {
            self.end = self.most.map(|most| self.end_of_new(most, clock, read - 1));
        }
        if self.begun() && self.read == self.tag.len() {
            (self.issued, self.read) = (0, 0);
        }
        if !clock.inside_thinking() && clock.thinking_tokens() > 0 || self.read > 0 {
            self.closed = true;
        }
        if !clock.inside_thinking() && self.closed {
            self.asked = false;
        }
    }
}

/// Ids in a row that count as repeated when they occurred before.
const REPEATED_IDS: usize = 12;

/// Repeated tokens in a row that are reported as a loop. A quotation of an earlier sentence is shorter.
const LOOP: usize = 64;

/// Looks for repetition: tokens that complete a run of [`REPEATED_IDS`] ids which occurred before.
#[derive(Debug, Default)]
struct Repetition {
    seen: HashSet<[u32; REPEATED_IDS]>,
    /// Tokens that completed such a run.
    tokens: usize,
    /// How many of the latest tokens, without a gap, completed such a run.
    in_a_row: usize,
    reported: bool,
}

impl Repetition {
    /// Takes in the last of `tokens`. Returns true once: when the latest [`LOOP`] tokens are all repetition.
    fn push(&mut self, tokens: &[trace::Token]) -> bool {
        let Some(latest) = tokens.last_chunk::<REPEATED_IDS>() else { return false };
        if self.seen.insert(std::array::from_fn(|i| latest[i].id)) {
            self.in_a_row = 0;
            return false;
        }
        self.tokens += 1;
        self.in_a_row += 1;
        let report = self.in_a_row >= LOOP && !self.reported;
        self.reported |= report;
        report
    }
}

/// Checks that every id has a row in the embedding.
pub(super) fn check_ids(ids: &[u32], vocabulary: usize, place: &str) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        None => Ok(()),
        Some(id) => Err(Error::new(ErrorKind::Input, "a token id is outside the vocabulary")
            .at(place)
            .expected(format!("ids below {vocabulary}"))
            .found(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_reported_once_and_its_tokens_are_counted() {
        let token = |id| trace::Token {
            id,
            text: String::new(),
            role: Role::Answer,
            special: false,
            step: None,
            forced: false,
        };
        let push = |repetition: &mut Repetition, tokens: &mut Vec<trace::Token>, id: u32| {
            tokens.push(token(id));
            repetition.push(tokens)
        };
        let (mut repetition, mut tokens) = (Repetition::default(), Vec::new());
        // Forty ids, and then the first twenty of them again: a quotation.
        for id in (0..40).chain(0..20) {
            assert!(!push(&mut repetition, &mut tokens, id));
        }
        assert_eq!(repetition.tokens, 9, "of twenty repeated ids, nine complete a run of twelve");
        // A loop of five ids, entered after something new.
        let looped = |i: &usize| push(&mut repetition, &mut tokens, 100 + *i as u32 % 5);
        let reports: Vec<usize> = (0..200).filter(looped).collect();
        // Before the loop has run for twelve ids and a period nothing in it repeats.
        assert_eq!(reports, [12 + 5 + LOOP - 2]);
        assert_eq!(repetition.tokens, 9 + 200 - 16);
    }
    /// The model closes its thinking, writes something else and thinks again: the second thought has the role of a
    /// thought, the probe interval continues through it, and its pruning evicts nothing outside the thoughts.
    #[test]
    fn a_second_thought_is_thinking_that_is_probed_and_pruned() {
        let load = crate::engine::LoadOptions::default();
        let prepared = crate::engine::PreparedModel::new(&crate::builtin::source(), "built-in", &load).unwrap();
        let ThinkIds { open: Some(open), close: Some(close) } = prepared.tokenizer().unwrap().think_ids() else {
            panic!("the built-in model has both tags")
        };
        let word = prepared.tokenizer().unwrap().encode("a").unwrap()[0];
        let settings = Settings {
            policy: policy::StreamingLlm.into(),
            budget: policy::Budget::Tokens(2),
            window: 1,
            probe_every: 4,
            ..Settings::default()
        };
        let mut sequence = prepared.sequence(0, &crate::engine::Prompt::Ids(vec![word]), &settings).unwrap();
        let (mut roles, mut prunings) = (Vec::new(), Vec::new());
        let thought = |words| std::iter::once(open).chain(std::iter::repeat_n(word, words)).chain([close]);
        for id in thought(5).chain([word; 6]).chain(thought(4)).chain([word; 6]) {
            sequence.take_in(id, None, &mut |_, _| ()).unwrap();
            sequence.issued = sequence.tokens.len();
            roles.push(sequence.tokens.last().unwrap().role);
            if sequence.due() == Some(id) {
                let (plan, record) = sequence.plan(&Measurements::default()).unwrap();
                sequence.ledger.gather(&plan).unwrap();
                prunings.push((sequence.tokens.len(), record.evicted.clone()));
                sequence.pruned(record, &mut |_, _| ());
            }
        }
        let expected: Vec<Role> = [
            &[Role::ThinkOpen][..],
            &[Role::Thinking; 5],
            &[Role::ThinkClose],
            &[Role::Answer; 6],
            &[Role::ThinkOpen],
            &[Role::Thinking; 4],
            &[Role::ThinkClose],
            &[Role::Answer; 6],
        ]
        .concat();
        assert_eq!(roles, expected);
        // The fourth and the eighth thinking token. Positions count from the prompt's one token.
        let [(first, _), (second, evicted)] = &prunings[..] else { panic!("{prunings:?}") };
        assert_eq!((*first, *second), (5, 17));
        assert!(!evicted.is_empty(), "the second pruning keeps everything");
        for position in evicted {
            assert_eq!(roles[*position as usize - 1], Role::Thinking, "position {position}");
        }
    }
}
