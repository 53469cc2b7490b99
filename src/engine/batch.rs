//! The scheduler: requests that run side by side, and the turns of the loop that serves them.
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use web_time::Instant;

use super::PreparedModel;
use super::bound::Bound;
use super::logprobs::{Of, PendingLogprobs, Row};
use super::record::{Event, LAG, OnEvent, RunResult};
use super::request::Prompt;
use super::runner::{Admission, Measurements, Next, PREFILL_CHUNK, PendingForward, PendingState, ProbeInput, Runner};
use super::sequence::{Sequence, check_ids};
use crate::cache::RegionUpdate;
use crate::kernels::Reduce;
use crate::policy::KeepPlan;
use crate::sampling::Sampler;
use crate::settings::Settings;
use crate::trace;
use crate::{Error, ErrorKind, Result, conformance};

/// Requests that run side by side, each with its own prompt, options, policy, budget, end and trace. A result does
/// not depend on the neighbours, beyond the order in which a shader for more rows may add (each kernel states its
/// bound). The same batch gives the same results. A request that fails or is cancelled leaves the others alone.
///
/// ```no_run
/// # async fn example(engine: &mut secateur::engine::Engine) -> secateur::Result<()> {
/// use secateur::Request;
/// let mut resolved = Vec::new();
/// for question in ["What is 12 + 30?", "How many primes are below 50?"] {
///     resolved.push(engine.resolve(&Request::prompting(question))?);
/// }
/// let mut batch = engine.batch();
/// for one in &resolved {
///     batch.add(&one.prompt, &one.settings)?;
/// }
/// while !batch.is_idle() {
///     // Requests may be added here at any time: they take the places of requests that have ended.
///     for (request, result) in batch.step(&mut |_request, _event| ()).await {
///         println!("{request}: {}", result?.text);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Batch<'e> {
    prepared: &'e PreparedModel,
    runner: &'e mut Runner,
    /// Set from outside to end all requests.
    stop: &'e AtomicBool,
    /// Requests added so far.
    requests: usize,
    waiting: VecDeque<Sequence>,
    places: Places,
    /// Bytes for the caches of all requests that run; `None`: no limit.
    memory: Option<u64>,
    /// Requests that were admitted before the one that has waited longest, which did not fit.
    overtaken: usize,
    /// Copies of the state that were begun and not waited for, the oldest first.
    reads: VecDeque<PendingIds>,
    pace: Pace,
}

/// How many decode steps make a burst on this device: as many as take a moment together, so that text comes evenly, and a
/// request that is cancelled ends soon. What is generated does not depend on it.
struct Pace {
    /// Steps of a burst.
    steps: usize,
    /// Whether they stay what they are.
    fixed: bool,
    /// When the latest tokens were read.
    latest: Option<Instant>,
}

impl Pace {
    /// How long a burst should take.
    const MOMENT: Duration = Duration::from_millis(100);

    fn new() -> Self {
        Self { steps: 1, fixed: false, latest: None }
    }

    /// Takes in that tokens of so many steps were read.
    fn read(&mut self, steps: usize) {
        let now = Instant::now();
        if let Some(before) = self.latest.replace(now).filter(|_| steps > 0 && !self.fixed) {
            // Two reads that had both been finished say little, so it only doubles.
            self.steps = Self::steps(now - before, steps).min(2 * self.steps);
        }
    }

    /// Steps of a burst where so many took this long.
    fn steps(time: Duration, steps: usize) -> usize {
        let each = time.as_secs_f64() / steps as f64;
        ((Self::MOMENT.as_secs_f64() / each.max(1e-6)) as usize).clamp(1, LAG)
    }
}

/// What a batch is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Requests that have a place.
    pub running: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// The most bytes that the caches of the running requests can need.
    pub reserved_bytes: u64,
    /// The bytes that their keys and values have now.
    pub used_bytes: u64,
    /// The bytes of prompts that are kept of requests that have ended.
    pub kept_bytes: u64,
}

/// Requests that may overtake one that does not fit.
const MOST_OVERTAKING: usize = 16;

/// Probabilities that were read, by place.
#[derive(Default)]
struct Rows {
    sampled: HashMap<usize, Vec<Row>>,
    prompts: HashMap<usize, Vec<Row>>,
}

impl Rows {
    fn new(groups: Vec<(Of, Vec<Row>)>) -> Self {
        let mut rows = Self::default();
        for (of, group) in groups {
            match of {
                Of::Step(places) => places
                    .into_iter()
                    .zip(group)
                    .for_each(|(place, row)| rows.sampled.entry(place).or_default().push(row)),
                Of::Prompt(place) => rows.prompts.entry(place).or_default().extend(group),
            }
        }
        rows
    }

    /// The rows of the tokens of a sequence, in order.
    fn of_place(&mut self, place: usize) -> impl Iterator<Item = Row> + use<> {
        self.sampled.remove(&place).unwrap_or_default().into_iter()
    }

    /// The rows of the prompt of a sequence, in order.
    fn of_prompt(&mut self, place: usize) -> impl Iterator<Item = Row> + use<> {
        self.prompts.remove(&place).unwrap_or_default().into_iter()
    }
}

/// The sequences that run. A sequence's index here is its number in the cache.
struct Places(Vec<Option<Sequence>>);

/// A sequence that runs, borrowed for a part of a turn.
struct Running<'s> {
    place: usize,
    sequence: &'s mut Sequence,
}

/// A sequence that is to be pruned now.
struct Due<'s> {
    place: usize,
    sequence: &'s mut Sequence,
    /// Its pending token: the one after which the probe comes.
    pending: u32,
}

/// A copy of the device's state that is being read.
struct PendingIds {
    /// The sequences that had sampled any token when the copy was taken.
    sampled: Vec<Sampled>,
    /// Decode steps since the copy before; 0 if there was something else between them.
    steps: usize,
    state: PendingState,
    logprobs: Option<PendingLogprobs>,
}

struct Sampled {
    place: usize,
    /// The request that had the place when the copy was taken.
    request: usize,
    /// Tokens it had sampled.
    issued: usize,
}

impl Places {
    fn sequences(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.0.iter_mut().flatten()
    }

    fn running(&mut self) -> impl Iterator<Item = Running<'_>> {
        let places = self.0.iter_mut().enumerate();
        places.filter_map(|(place, slot)| Some(Running { place, sequence: slot.as_mut()? }))
    }
}

impl<'s> Due<'s> {
    /// `None` for a sequence that is not due.
    fn new(Running { place, sequence }: Running<'s>) -> Option<Self> {
        Some(Self { place, pending: sequence.due()?, sequence })
    }
}

fn places_of(rows: &[Running<'_>]) -> Vec<usize> {
    rows.iter().map(|row| row.place).collect()
}

/// What the next token of a sequence may be. A format that cannot be kept to ends the sequence.
fn next(sequence: &mut Sequence) -> Next {
    let next = sequence.next();
    sequence.or_fail(next).unwrap_or_default()
}

/// Makes room for `extra` more slots of each of `rows`. Where a layer's buffer cannot grow that far, the longest
/// sequence fails and its memory is freed, until the others fit. Returns the sequences that have room.
fn with_room<'s>(runner: &mut Runner, mut rows: Vec<Running<'s>>, extra: usize) -> Vec<Running<'s>> {
    while let Err(e) = runner.reserve(&places_of(&rows), extra) {
        if runner.forget_idle() {
            continue;
        }
        let longest = (0..rows.len()).max_by_key(|&row| runner.cache().longest(rows[row].place));
        let Some(longest) = longest else { break };
        let Running { place, sequence } = rows.remove(longest);
        sequence.fail(e);
        // A cache that becomes smaller cannot exceed a limit.
        runner.clear(place).ok();
    }
    rows
}

impl<'e> Batch<'e> {
    pub(super) fn new(prepared: &'e PreparedModel, runner: &'e mut Runner, stop: &'e AtomicBool) -> Self {
        runner.abandon();
        let places = Places((0..runner.cache().shape().seqs).map(|_| None).collect());
        Self {
            prepared,
            runner,
            stop,
            requests: 0,
            waiting: VecDeque::new(),
            places,
            memory: None,
            overtaken: 0,
            reads: VecDeque::new(),
            pace: Pace::new(),
        }
    }

    /// Limits the memory of the caches. From now on a request gets a place only if the most memory that it can need
    /// ([`PreparedModel::bound`]) fits beside that of the requests that run, so that none of them fails for want of
    /// memory. Up to 16 later requests that fit may overtake one that does not.
    pub fn set_memory(&mut self, bytes: u64) {
        self.memory = Some(bytes);
    }

    /// Decodes [`LAG`] steps in each burst, however long they take: for tests of what depends on who is due when.
    #[doc(hidden)]
    pub fn longest_bursts(&mut self) {
        self.pace = Pace { steps: LAG, fixed: true, latest: None };
    }

    /// How many requests run and wait, and the memory of those that run.
    pub fn status(&self) -> Status {
        let running = || self.places.0.iter().flatten();
        Status {
            running: running().count(),
            waiting: self.waiting.len(),
            reserved_bytes: running().map(|s| s.bound.bytes).sum(),
            used_bytes: self.runner.cache().bytes() - self.kept_bytes(),
            kept_bytes: self.kept_bytes(),
        }
    }

    fn kept_bytes(&self) -> u64 {
        self.runner.idle().iter().map(|seq| self.runner.cache().bytes_of(*seq)).sum()
    }

    /// The slots and bytes of a prompt that is kept, with the second buffer that one layer has while it is moved.
    fn kept(&self, seq: usize) -> Bound {
        let (shape, slots) = (self.runner.cache().shape(), self.runner.cache().capacity(0, seq));
        let slot = shape.slot_bytes() + shape.tracked_bytes();
        Bound { slots, bytes: (slots * (shape.layers + 1) * slot) as u64 }
    }

    /// Forgets prompts that are kept, those that were used least recently first, until a request with this bound fits
    /// beside the others in `place`.
    fn make_room(&mut self, place: usize, bound: &Bound) {
        for seq in self.runner.idle() {
            let kept = self.runner.idle().into_iter().filter(|idle| *idle != place).map(|idle| self.kept(idle));
            let add = |sum: Bound, b: Bound| Bound { slots: sum.slots + b.slots, bytes: sum.bytes + b.bytes };
            if self.fits(bound, kept.fold(self.reserved(), add)) {
                return;
            }
            if seq != place {
                // A cache that becomes smaller cannot exceed a limit.
                self.runner.clear(seq).ok();
            }
        }
    }

    /// Whether a request fits beside others that need at most these slots and bytes.
    fn fits(&self, bound: &Bound, beside: Bound) -> bool {
        let most_slots = self.runner.cache().shape().most_slots(&self.runner.model().device().info);
        let slots = bound.slots.saturating_add(beside.slots);
        self.memory.is_none_or(|memory| bound.bytes.saturating_add(beside.bytes) <= memory && slots <= most_slots)
    }

    /// The most slots and bytes of the requests that run.
    fn reserved(&self) -> Bound {
        let add =
            |sum: Bound, s: &Sequence| Bound { slots: sum.slots + s.bound.slots, bytes: sum.bytes + s.bound.bytes };
        self.places.0.iter().flatten().fold(Bound::default(), add)
    }

    /// The error for a request that fits not even alone.
    fn too_large(&self, bound: &Bound) -> Error {
        let memory = self.memory.unwrap_or(u64::MAX);
        let most_slots = self.runner.cache().shape().most_slots(&self.runner.model().device().info);
        Error::new(ErrorKind::Input, "the request can need more memory than there is for all requests")
            .expected(format!("at most {memory} bytes and {most_slots} slots"))
            .found(format!("{} bytes for {} slots", bound.bytes, bound.slots))
            .help("lower `max_new_tokens`, or use `budget` tokens:N with `max_answer_tokens`, which bound the cache")
    }

    /// Takes the next request that may have a place out of the queue.
    fn next_waiting(&mut self) -> Option<Sequence> {
        let positions = self.places.sequences().map(|s| s.settings().positions).next();
        let reserved = self.reserved();
        for i in 0..self.waiting.len() {
            let waiting = &self.waiting[i];
            if waiting.cancelled() {
                continue;
            }
            if positions.is_some_and(|positions| positions != waiting.settings().positions) {
                return None;
            }
            // A request that never fits was added before the limit was set. It fails as soon as it is alone.
            if self.fits(&waiting.bound, reserved)
                || positions.is_none() && !self.fits(&waiting.bound, Bound::default())
            {
                self.overtaken = if i == 0 { 0 } else { self.overtaken + 1 };
                return self.waiting.remove(i);
            }
            if self.overtaken >= MOST_OVERTAKING {
                return None;
            }
        }
        None
    }

    /// Adds a request, which runs as soon as a place is free. Returns its number, counted from 0.
    ///
    /// # Errors
    /// A prompt that is empty, longer than the context or larger than the device's buffers, a policy that cannot run
    /// with this model or budget, and a request that can need more memory than [`set_memory`](Self::set_memory) allows.
    pub fn add(&mut self, prompt: &Prompt, settings: &Settings) -> Result<usize> {
        self.add_of(0, prompt, settings)
    }

    /// Like [`add`](Self::add), for a request of a group, such as those of one user. The beginning of a prompt is shared
    /// only inside a group, because the time until the first token tells whether it was. [`add`](Self::add) adds to group
    /// 0.
    ///
    /// # Errors
    /// Those of [`add`](Self::add).
    pub fn add_of(&mut self, group: u64, prompt: &Prompt, settings: &Settings) -> Result<usize> {
        let mut sequence = self.prepared.sequence(self.requests, prompt, settings)?;
        sequence.group = group;
        self.runner.check_prompt(sequence.prompt.len())?;
        if !self.fits(&sequence.bound, Bound::default()) {
            return Err(self.too_large(&sequence.bound));
        }
        self.waiting.push_back(sequence);
        self.requests += 1;
        Ok(self.requests - 1)
    }

    /// Ends a request after the steps that are already under way. Its result is what was generated until then.
    pub fn cancel(&mut self, request: usize) {
        self.waiting.iter_mut().chain(self.places.sequences()).filter(|s| s.id == request).for_each(Sequence::cancel);
    }

    /// Ends the thinking of a request as soon as possible: the engine writes `</think>` in place of the next token, and
    /// the model goes on with its answer. Before the first token this ends the thought to come. It has no effect on a
    /// request that writes its answer.
    pub fn end_thinking(&mut self, request: usize) {
        let all = self.waiting.iter_mut().chain(self.places.sequences());
        all.filter(|s| s.id == request).for_each(Sequence::end_thinking);
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.places.0.iter().all(Option::is_none)
    }

    /// Runs until all requests have ended. Returns their results, in the order they were added.
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
            self.prefill();
            self.prune(on).await?;
            self.force()?;
            self.decode()?;
            self.read(on).await
        };
        // Errors that belong to one sequence were handled where they arose. What is left are device errors: they fail
        // every running request.
        let turned = turn.await;
        let failed = turned.is_err();
        if let Err(e) = turned {
            let e = self.runner.model().device().explained(e);
            self.reads.clear();
            self.runner.forget_logprobs();
            self.places.sequences().for_each(|s| s.fail(e.clone()));
        }
        let ended = self.retire(on);
        if failed {
            // What the device has cached may be anything.
            self.runner.forget_idle();
        }
        ended
    }

    /// Gives free places to waiting requests, and checks the stop flag. Sequences that run side by side count
    /// positions in the same way. A request with another way waits until the running ones have ended, and so do the
    /// requests behind it.
    fn admit(&mut self, on: &mut OnEvent<'_>) {
        if self.stop.load(Ordering::Relaxed) {
            self.waiting.iter_mut().chain(self.places.sequences()).for_each(Sequence::cancel);
        }
        loop {
            let free: Vec<usize> = (0..self.places.0.len()).filter(|place| self.places.0[*place].is_none()).collect();
            if free.is_empty() {
                break;
            }
            let first = free.len() == self.places.0.len();
            let Some(mut sequence) = self.next_waiting() else { break };
            let place = self.runner.place_for(&free, &sequence.prompt, Some(sequence.group)).unwrap_or(free[0]);
            self.make_room(place, &sequence.bound);
            sequence.begin();
            if !self.fits(&sequence.bound, Bound::default()) {
                let error = self.too_large(&sequence.bound);
                sequence.fail(error);
            }
            on(sequence.id, Event::Start { prompt_ids: &sequence.prompt });
            let admitted = self.runner.admit(place, first, &sequence.admission());
            if let Some(shared) = sequence.or_fail(admitted) {
                (sequence.forwarded, sequence.shared) = (shared, shared);
            }
            self.places.0[place] = Some(sequence);
        }
        // The event that a request starts may have set the flag.
        if self.stop.load(Ordering::Relaxed) {
            self.waiting.iter_mut().chain(self.places.sequences()).for_each(Sequence::cancel);
        }
        self.places.sequences().for_each(Sequence::finish_if_done);
    }

    /// Forwards a chunk of an unfinished prompt, and samples the first token after the last chunk. Every chunk is awaited
    /// like a token, so that a stop takes effect within one chunk.
    ///
    /// The prompt with the fewest chunks left comes first, so that a short one does not wait for a long one. Each turn in
    /// which a prompt is passed over counts as four chunks less, so that short ones cannot keep a long one waiting.
    fn prefill(&mut self) {
        let mut prefilling: Vec<Running<'_>> = self.places.running().filter(|r| r.sequence.prefilling()).collect();
        // Who can copy from a prompt that is still being forwarded waits for it: for one that has begun or came earlier,
        // so that not everybody waits.
        let ahead: Vec<(usize, usize, bool)> =
            prefilling.iter().map(|r| (r.place, r.sequence.id, r.sequence.has_begun())).collect();
        prefilling.retain(|Running { place, sequence }| {
            let others = ahead.iter().filter(|(_, id, begun)| *begun || *id < sequence.id);
            let others: Vec<usize> = others.map(|(other, ..)| *other).filter(|other| other != place).collect();
            sequence.has_begun() || !self.runner.gains_by(&others, *place, sequence.forwarded, &sequence.admission())
        });
        let urgency = |r: &Running<'_>| {
            let chunks = (r.sequence.prompt.len() - r.sequence.forwarded).div_ceil(PREFILL_CHUNK);
            (chunks.saturating_sub(4 * r.sequence.passed_over), r.sequence.id)
        };
        let Some(urgent) = (0..prefilling.len()).min_by_key(|i| urgency(&prefilling[*i])) else { return };
        let Running { place, sequence } = prefilling.swap_remove(urgent);
        sequence.passed_over = 0;
        prefilling.into_iter().for_each(|other| other.sequence.passed_over += 1);
        if !sequence.has_begun() {
            let copied = self.runner.catch_up(place, sequence.forwarded, &sequence.admission());
            (sequence.forwarded, sequence.shared) = (copied, copied);
        }
        let forced = sequence.forced_first();
        let rest = sequence.prompt[sequence.forwarded..].to_vec();
        let left = rest.len();
        let mut first = || forced.map_or_else(|| next(sequence), Next::Only);
        let forwarded = match self.runner.prefill_then(place, &rest, &mut first) {
            Err(_) if self.runner.forget_idle() => self.runner.prefill_then(place, &rest, &mut first),
            forwarded => forwarded,
        };
        let Some(forwarded) = sequence.or_fail(forwarded) else { return };
        sequence.forwarded += forwarded;
        sequence.issued = usize::from(forwarded == left);
        if forced.is_some() && forwarded == left {
            sequence.wrote_forced();
        }
        sequence.note_peak(self.runner.cache().longest(place), self.runner.cache().bytes_of(place));
        self.start_read(0);
    }

    /// Writes the tokens that end the thinking of sequences whose model may think no longer.
    fn force(&mut self) -> Result<()> {
        loop {
            let rows = self.places.running().filter(|r| r.sequence.is_forced()).collect();
            let rows = with_room(self.runner, rows, 1);
            let tokens: Vec<(usize, u32)> =
                rows.iter().filter_map(|row| Some((row.place, row.sequence.forced()?))).collect();
            if tokens.is_empty() {
                return Ok(());
            }
            self.runner.force(&tokens)?;
            for Running { place, sequence } in rows {
                sequence.issued += 1;
                sequence.wrote_forced();
                sequence.note_bytes(self.runner.cache().bytes_of(place));
            }
            self.start_read(0);
        }
    }

    /// Decode steps for all sequences that have room, in bursts between two reads. A sequence drops out
    /// when it has no room left. While a prompt is being forwarded, a turn has one decode step, so that a long prompt
    /// does not stall the others. The same holds while a sequence must read each of its tokens before the next: it would
    /// get one token for each burst of the others.
    fn decode(&mut self) -> Result<()> {
        let stepwise = self.places.sequences().any(|s| s.prefilling() || s.is_stepwise());
        loop {
            let burst = self.pace.steps;
            let rows: Vec<Running<'_>> = self.places.running().filter(|r| r.sequence.room(burst) > 0).collect();
            let Some(room) = rows.iter().map(|r| r.sequence.room(burst)).min() else { return Ok(()) };
            let steps = if stepwise { 1 } else { room.min(burst) };
            let mut rows = with_room(self.runner, rows, steps);
            if rows.is_empty() {
                continue;
            }
            if stepwise {
                let places = places_of(&rows);
                self.runner.decode_then(&places, || rows.iter_mut().map(|row| next(row.sequence)).collect())?;
            } else {
                self.runner.decode(&places_of(&rows), steps)?;
            }
            for Running { place, sequence } in rows {
                sequence.issued += steps;
                sequence.note_bytes(self.runner.cache().bytes_of(place));
            }
            self.start_read(steps);
            if stepwise {
                return Ok(());
            }
        }
    }

    /// Waits for the oldest read and adds its tokens. Repeats this while more than one read is under way, or until all have
    /// come where a sequence needs its latest token for the next one.
    async fn read(&mut self, on: &mut OnEvent<'_>) -> Result<()> {
        let most = usize::from(!self.places.sequences().any(|s| s.is_stepwise()));
        while let Some(PendingIds { sampled, steps, state, logprobs }) = self.reads.pop_front() {
            let state = state.finish().await?;
            self.pace.read(steps);
            let mut logprobs = Rows::new(match logprobs {
                Some(logprobs) => logprobs.finish().await?,
                None => Vec::new(),
            });
            let cache = self.runner.cache();
            for Sampled { place, request, issued } in sampled {
                // The request may have ended meanwhile, and another may have its place.
                let sequence = self.places.0[place].as_mut().filter(|s| s.id == request);
                let Some(sequence) = sequence else { continue };
                sequence.missed = Sampler::missed(&state, place);
                let noted = logprobs.of_prompt(place).try_for_each(|row| sequence.note_prompt(&row));
                sequence.or_fail(noted);
                let mut rows = logprobs.of_place(place);
                for id in cache.raw_ids(&state, place, sequence.tokens.len() as u32, issued as u32) {
                    // Tokens sampled after the last one were already under way: they are discarded.
                    if sequence.ended.is_some() {
                        break;
                    }
                    let row = rows.next();
                    let taken = cache.checked_id(id).and_then(|id| sequence.take_in(id, row.as_ref(), on));
                    sequence.or_fail(taken);
                }
            }
            if self.reads.len() <= most {
                break;
            }
        }
        Ok(())
    }

    /// Prunes all sequences that are due: hold, measure, plan, keep, resume. Their text is known by now. The steps of
    /// the other sequences wait only on the device, behind the probes.
    async fn prune(&mut self, on: &mut OnEvent<'_>) -> Result<()> {
        let due = self.places.running().filter(|r| r.sequence.due().is_some()).collect();
        let mut due: Vec<Due<'_>> = with_room(self.runner, due, 1).into_iter().filter_map(Due::new).collect();
        if due.is_empty() {
            return Ok(());
        }
        let stop = self.stop;
        if !conformance::test_others(self.runner.model().device(), || stop.load(Ordering::Relaxed)).await? {
            return Ok(()); // the next turn ends the requests
        }
        let begun = Instant::now();
        let held = hold(self.runner, &mut due)?;
        let mut measured = measure(self.runner, &held, &mut due).await;
        let probed = Instant::now();
        measure_heads(self.runner, &held, &mut due, &mut measured).await;
        let traced = Instant::now();

        let mut plans = Vec::new();
        for (row, (due, measured)) in due.iter_mut().zip(measured).enumerate() {
            let plan = measured.map(|measured| guarded(|| due.sequence.plan(&measured)));
            if let Some((plan, record)) = plan.and_then(|plan| due.sequence.or_fail(plan)) {
                plans.push(Planned { row, plan, record });
            }
        }
        let planned = Instant::now();

        let bytes_before = self.runner.model().device().bytes();
        keep(self.runner, &mut due, &plans);
        let bytes_after = self.runner.model().device().bytes();
        let gathered = Instant::now();
        let timings = trace::Timings {
            probe_us: (probed - begun).as_micros() as u64,
            plan_us: (planned - traced).as_micros() as u64,
            gather_us: (gathered - planned).as_micros() as u64,
        };
        for Planned { row, record, .. } in plans {
            due[row].sequence.pruned(trace::Probe { timings, bytes_before, bytes_after, ..record }, on);
        }

        let chosen = |due: &mut Due<'_>| due.sequence.forced().map_or_else(|| next(due.sequence), Next::Only);
        let nexts: Vec<Next> = due.iter_mut().map(chosen).collect();
        self.runner.resume_then(&held, &nexts);
        for (Due { sequence, .. }, next) in due.into_iter().zip(nexts) {
            sequence.issued += 1;
            if let Next::Only(_) = next {
                sequence.wrote_forced();
            }
            // Reading the heads serves the trace alone and is no part of what a probe costs.
            sequence.totals.probe_us += (begun.elapsed() - (traced - probed)).as_micros() as u64;
        }
        self.start_read(0);
        Ok(())
    }

    /// Follows a text that is known, in place of one that the model writes: forwards `ids` behind the prompt in chunks, and
    /// prunes where it would if the model had written them. See [`Engine::follow`](super::Engine::follow).
    pub(super) async fn follow(mut self, prompt: &Prompt, settings: &Settings, ids: &[u32]) -> Result<RunResult> {
        const PLACE: usize = 0;
        let on: &mut OnEvent<'_> = &mut |_, _| ();
        let mut sequence = self.prepared.sequence(self.requests, prompt, settings)?;
        self.runner.check_prompt(sequence.prompt.len())?;
        check_ids(ids, self.prepared.config.vocab_size, "the text")?;
        // A prompt that is copied from another request has the same bits, but what follows should depend on nothing else.
        self.runner.admit(PLACE, true, &Admission { group: None, ..sequence.admission() })?;
        sequence.begin();
        let mut unread = sequence.prompt.clone();
        self.places.0[PLACE] = Some(sequence);
        for &id in ids {
            let Some(sequence) = &mut self.places.0[PLACE] else { break };
            let taken = sequence.take_in(id, None, on);
            sequence.or_fail(taken);
            sequence.issued = sequence.tokens.len();
            if sequence.ended.is_some() {
                break;
            }
            if sequence.due().is_none() {
                unread.push(id);
                continue;
            }
            let read = self.runner.follow(PLACE, &std::mem::take(&mut unread), id);
            if sequence.or_fail(read).is_some() {
                self.prune(on).await?;
                // The token that was sampled is none of the text.
                self.reads.clear();
            }
        }
        self.places.sequences().for_each(|sequence| {
            sequence.issued = sequence.tokens.len();
            sequence.cancel();
        });
        match self.retire(on).pop() {
            Some((_, result)) => result,
            None => Err(Error::new(ErrorKind::Internal, "a text that was followed has not ended")),
        }
    }

    /// Removes the sequences that have ended, and frees their memory.
    fn retire(&mut self, on: &mut OnEvent<'_>) -> Vec<(usize, Result<RunResult>)> {
        let mut ended = Vec::new();
        let device = self.runner.model().device().clone();
        // A request that is cancelled in the queue needs no place to end.
        let (cancelled, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(Sequence::cancelled);
        self.waiting = waiting;
        for mut sequence in Vec::from(cancelled) {
            sequence.finish_if_done();
            ended.push((sequence.id, sequence.finish(&self.prepared.name, &device, self.runner.cache(), None)));
        }
        for (place, slot) in self.places.0.iter_mut().enumerate() {
            slot.iter_mut().for_each(Sequence::finish_if_done);
            if let Some(mut sequence) = slot.take_if(|s| s.ended.is_some()) {
                sequence.release(on);
                let request = sequence.id;
                let result = sequence.finish(&self.prepared.name, &device, self.runner.cache(), Some(place));
                // What was generated is not lost with a device that cannot even be cleared.
                let cleared = match result.as_ref().map(|result| &result.error) {
                    Ok(None) => self.runner.release(place),
                    // What a failed request has in the cache may be anything.
                    _ => self.runner.clear(place),
                };
                let cleared = cleared.map_err(|e| device.explained(e)).err();
                let result = result.map(|mut result| {
                    result.error = result.error.or(cleared);
                    result
                });
                ended.push((request, result));
            }
        }
        ended
    }

    /// Starts reading the ids of all sequences that have sampled any.
    fn start_read(&mut self, steps: usize) {
        let sampled = |r: Running<'_>| Sampled { place: r.place, request: r.sequence.id, issued: r.sequence.issued };
        let sampled = self.places.running().map(sampled).collect();
        let (state, logprobs) = (self.runner.read(), self.runner.read_logprobs());
        self.reads.push_back(PendingIds { sampled, steps, state, logprobs });
    }
}

/// Runs a part of one request. If it panics, as a policy from outside the crate may, only this request fails.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| said.to_string()));
        let e = Error::new(ErrorKind::Internal, "the request has failed by a panic");
        Err(e.found(said.unwrap_or_else(|| "no message".into())))
    })
}

/// The plan for the sequence in row `row` of a pruning, and its record.
struct Planned {
    row: usize,
    plan: KeepPlan,
    record: trace::Probe,
}

/// Forwards the pending tokens as a decode step would. Their logits wait until the caches are pruned. If a policy
/// decides by the attention of the pending tokens, reads it as finely as the most demanding policy needs.
fn hold(runner: &mut Runner, due: &mut [Due<'_>]) -> Result<PendingForward> {
    let readouts = due.iter().filter_map(|due| due.sequence.pruner.readout_of_pending());
    let readout = readouts.min_by_key(|reduce: &Reduce| *reduce as u32);
    let pending: Vec<(usize, u32)> = due.iter().map(|due| (due.place, due.pending)).collect();
    let held = runner.hold(&pending, readout)?;
    for Due { place, sequence, .. } in due {
        sequence.note_peak(runner.cache().longest(*place), runner.cache().bytes_of(*place));
    }
    Ok(held)
}

/// Measures what the policies need, in the order of `due`: `None` for a sequence that failed. All measurements are
/// launched before the first is awaited.
async fn measure(runner: &mut Runner, held: &PendingForward, due: &mut [Due<'_>]) -> Vec<Option<Measurements>> {
    let mut pending = Vec::new();
    for (row, Due { place, sequence, .. }) in due.iter_mut().enumerate() {
        let request = sequence.pruner.request(&sequence.probe_ids);
        let started = match runner.measure(held, row, &request) {
            Err(_) if runner.forget_idle() => runner.measure(held, row, &request),
            started => started,
        };
        let started = sequence.or_fail(started);
        if started.is_some() {
            let slots = runner.cache().longest(*place) + sequence.probe_ids.len();
            sequence.note_peak(slots, runner.cache().bytes_of(*place));
        }
        pending.push(started);
    }
    let mut measured = Vec::new();
    for (due, pending) in due.iter_mut().zip(pending) {
        measured.push(match pending {
            Some(pending) => due.sequence.or_fail(pending.finish().await),
            None => None,
        });
    }
    measured
}

/// Reads the attention of every query head, for traces that show it. This is a separate forward, so that the policy's
/// measurement is the same whether or not the trace shows heads. A sequence whose heads cannot be read fails.
async fn measure_heads(
    runner: &mut Runner,
    held: &PendingForward,
    due: &mut [Due<'_>],
    measured: &mut [Option<Measurements>],
) {
    for (row, (Due { sequence, .. }, slot)) in due.iter_mut().zip(measured).enumerate() {
        let Some(measured) = slot else { continue };
        if !sequence.pruner.shows_heads() {
            continue;
        }
        let layers = sequence.pruner.sets.layers;
        let probe = ProbeInput { ids: &sequence.probe_ids, layers };
        let heads = match runner.probe(held, row, probe, Some(Reduce::None)) {
            Ok(rows) => rows.finish().await,
            Err(e) => Err(e),
        };
        match sequence.or_fail(heads) {
            Some(heads) => measured.heads = Some(heads),
            None => *slot = None,
        }
    }
}

/// Carries out the plans, on the device and in the ledgers.
fn keep(runner: &mut Runner, due: &mut [Due<'_>], plans: &[Planned]) {
    let evicting: Vec<&Planned> = plans.iter().filter(|planned| !planned.plan.keeps_all()).collect();
    let mut updates = Vec::new();
    for planned in &evicting {
        let Due { place, sequence, .. } = &due[planned.row];
        updates.push(RegionUpdate::new(*place, &planned.plan, sequence.room_after_gather()));
    }
    for (planned, kept) in evicting.into_iter().zip(runner.keep(&updates)) {
        let sequence = &mut due[planned.row].sequence;
        let gathered = kept.and_then(|()| sequence.ledger.gather(&planned.plan));
        sequence.or_fail(gathered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CacheShape, KvCache};
    use crate::device::ComputeDevice;
    use crate::dtype::Dtype;
    use crate::engine::{Engine, LoadOptions};
    use crate::model::decoder::{self, Decoder, Input};
    use crate::settings::AttentionDetail;
    use crate::trace::StopReason;
    use crate::weights::Weights;

    /// Attention allocates partial results for every sequence at the length of the longest. Too many are refused
    /// before the weights are read, and by a plan as well.
    #[test]
    fn more_than_attention_can_put_aside_is_refused() {
        let source = crate::builtin::source();
        let mut device = ComputeDevice::cpu();
        device.tuning = crate::device::Tuning::GPU;
        let open = |sequences, context| {
            let load = LoadOptions { kv: Dtype::F32, context: Some(context), sequences, weights: None };
            PreparedModel::new(&source, "built-in", &load).expect("it is in the binary")
        };
        let config = open(1, 64).config.clone();
        let split = (config.num_heads * (config.head_dim + 2) * 4) as u64;
        device.info.max_binding_bytes = 40 * 4 * split;
        for (sequences, context, fits) in
            [(40, 256, true), (41, 256, false), (40, 257, false), (32, 320, true), (1, 512, true), (5000, 64, true)]
        {
            let checked = decoder::check_device(&config, sequences, context, &device);
            assert_eq!(checked.is_ok(), fits, "{sequences} sequences, {context} slots");
        }
        let mut told = 0;
        let refused = open(41, 256).load(&source, &device, &mut |_, _| told += 1).err().expect("too many").to_string();
        let parts =
            [format!("{} bytes for 41 sequences with up to 256 slots", 41 * 4 * split), "run fewer `sequences`".into()];
        assert!(parts.iter().all(|part| refused.contains(part)) && told == 0, "{refused}");

        device.info.max_binding_bytes = u64::MAX;
        let weights = Weights::open(&source).expect("it is in the binary");
        let mut model =
            Decoder::load(&config, &weights, 256, None, &device, &mut |_, _| ()).expect("it is in the binary");
        let shape = CacheShape::new(&config, Dtype::F32, 2, 64).expect("f32");
        let mut cache = KvCache::new(shape, &device);
        let ids = [5; 70];
        for seq in [0, 1] {
            let plan = model.plan(Input::Chunk { seq, ids: &ids }, &mut cache).expect("it fits");
            model.forward(&plan, &mut cache, None);
            cache.advance(seq, ids.len(), 5);
        }
        model.limit_bindings(4 * split - 1);
        let two = model.plan(Input::Pending(&[0, 1]), &mut cache).expect_err("too many");
        assert!(two.to_string().contains("2 sequences with up to 71 slots"), "{two}");
        model.plan(Input::Pending(&[1]), &mut cache).expect("one fits");
    }

    /// A sequence whose query heads cannot be read for the trace fails alone. (`tests/it/engine.rs` tests the same
    /// for what the policy decides by.)
    #[test]
    fn heads_that_cannot_be_read_are_their_own_sequences_affair() {
        let load = LoadOptions { kv: Dtype::F32, context: Some(256), sequences: 3, weights: None };
        let device = ComputeDevice::cpu();
        let source = crate::builtin::source();
        let mut engine =
            Engine::load(&source, "built-in", &device, &load, &mut |_, _| ()).expect("it is in the binary");
        let options = Settings { probe_every: 100, attention: AttentionDetail::Heads, ..Settings::default() };
        let mut batch = engine.batch();
        for _ in 0..3 {
            batch.add(&Prompt::Chat(crate::builtin::EXAMPLE.into()), &options).expect("a good request");
        }
        let ready = |s: &Option<Sequence>| s.as_ref().is_some_and(|s| !s.tokens.is_empty());
        while !batch.places.0.iter().all(ready) {
            pollster::block_on(batch.step(&mut |_, _| ()));
        }
        let mut due: Vec<Due<'_>> = batch
            .places
            .running()
            .map(|Running { place, sequence }| Due { place, pending: sequence.tokens[0].id, sequence })
            .collect();
        due[1].sequence.probe_ids = vec![u32::MAX];
        let held = hold(batch.runner, &mut due).expect("it fits");
        let mut measured: Vec<Option<Measurements>> = (0..3).map(|_| Some(Measurements::default())).collect();
        pollster::block_on(measure_heads(batch.runner, &held, &mut due, &mut measured));
        let [Some(first), None, Some(last)] = &measured[..] else { panic!("the second fails, and it alone") };
        assert!(first.heads.is_some() && last.heads.is_some());
        let ended: Vec<_> = due.iter().map(|due| due.sequence.ended.clone()).collect();
        let [None, Some(StopReason::Failed(what)), None] = &ended[..] else { panic!("{ended:?}") };
        assert!(what.contains("outside the vocabulary"), "{what}");
    }
}
