//! Who goes next: requests that run side by side, and the turns of their loop.
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use web_time::Instant;

use super::pruning::{Measurements, PendingForward, PendingMeasurements, Pruner};
use super::request::Prompt;
use super::sequence::Sequence;
use super::{Engine, Event, LAG, OnEvent, PREFILL_CHUNK, PreparedModel, RunResult};
use crate::Result;
use crate::cache::{KeepSets, RegionUpdate};
use crate::kernels::readback::{self, Readback};
use crate::model::decoder::{Input, Logits, Output};
use crate::policy::KeepPlan;
use crate::settings::Settings;
use crate::trace;

/// Requests that run side by side: each with its own prompt, options, policy, budget, end and trace. A result does not depend
/// on the neighbours beyond the order in which a shader for more rows may add (each kernel states its bound); the same
/// batch gives the same results. One that fails or is cancelled leaves the others alone.
///
/// ```no_run
/// # async fn example(engine: &mut secateur::engine::Engine) -> secateur::Result<()> {
/// use secateur::engine::{Prompt, Settings};
/// let mut batch = engine.batch();
/// for question in ["What is 12 + 30?", "How many primes are below 50?"] {
///     batch.add(&Prompt::Chat(question.into()), &Settings::default())?;
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
    reads: VecDeque<PendingIds>,
}

/// A copy of the device's state on its way.
struct PendingIds {
    /// Place, request and sampled tokens of those who had any when it was taken.
    of: Vec<(usize, usize, usize)>,
    state: Readback,
}

impl<'e> Batch<'e> {
    /// An empty batch with `places` places.
    pub(super) fn new(engine: &'e mut Engine, places: usize) -> Self {
        Self {
            engine,
            requests: 0,
            waiting: VecDeque::new(),
            places: (0..places).map(|_| None).collect(),
            reads: VecDeque::new(),
        }
    }

    /// Takes a request on; it runs as soon as a place is free. Returns its number, counted from 0.
    ///
    /// # Errors
    /// A prompt that is empty or beyond the context, a policy that cannot run with this model or budget.
    pub fn add(&mut self, prompt: &Prompt, options: &Settings) -> Result<usize> {
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
            let running = places.iter().flatten().map(|s| s.settings().positions).next();
            let joins = |s: &mut Sequence| running.is_none_or(|positions| positions == s.settings().positions);
            let Some(mut sequence) = waiting.pop_front_if(joins) else { break };
            sequence.begin();
            on(sequence.id, Event::Start { prompt_ids: &sequence.prompt });
            let ready = cache.clear(place).and_then(|()| match running {
                None => cache.begin(sequence.settings().positions),
                Some(_) => Ok(()),
            });
            cache.track(sequence.pruner.tracking(), model.config().q_size());
            if let Err(e) = ready {
                sequence.fail(e);
            }
            let Settings { sampling, seed, .. } = sequence.settings();
            cache.set_sampler(place, sampling, *seed, &sequence.prompt);
            places[place] = Some(sequence);
        }
        if self.engine.stop.load(Ordering::Relaxed) {
            self.waiting.iter_mut().chain(self.places.iter_mut().flatten()).for_each(|s| s.cancelled = true);
        }
        self.places.iter_mut().flatten().for_each(Sequence::finish_if_done);
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
        while let Some(PendingIds { of, state }) = self.reads.pop_front() {
            let words = readback::as_u32(&state.await?[0]);
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
        let readings: Vec<Result<PendingMeasurements>> = due
            .iter()
            .enumerate()
            .map(|(row, &place)| self.measure(place, PendingForward { out: &held, row, of: due.len() }))
            .collect();
        let mut readouts: Vec<Result<Measurements>> = Vec::new();
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
        let pruner = due.iter().filter_map(|&place| places[place].as_ref()).map(|s| &s.pruner);
        let readout = pruner.filter_map(Pruner::readout_of_pending).min_by_key(|reduce| *reduce as u32);
        let out = model.forward(Input::Pending(due), cache, Logits::Last, readout)?;
        for &place in due {
            let sequence = places[place].as_mut().expect("it is due");
            cache.advance(place, 1, sequence.tokens.last().expect("a probe follows a token").id);
            sequence.note_peak(cache.longest(place), cache.bytes_of(place));
        }
        Ok(out)
    }

    /// Starts measuring what the sequence's policy needs: the probe, where it needs one, is forwarded and rolled back.
    fn measure(&mut self, place: usize, held: PendingForward<'_>) -> Result<PendingMeasurements> {
        let Self { engine: Engine { model, cache, .. }, places, .. } = self;
        let sequence = places[place].as_mut().expect("it is due");
        let pending = sequence.tokens.last().expect("a probe follows a token").id;
        let reading = sequence.pruner.measure(model, cache, place, pending, &sequence.probe_ids, held)?;
        sequence.note_peak(cache.longest(place) + sequence.probe_ids.len(), cache.bytes_of(place));
        Ok(reading)
    }

    /// For the trace alone, and not part of what a probe costs. Whose heads cannot be read has nothing else to go by either.
    async fn add_heads(&mut self, due: &[usize], readouts: &mut [Result<Measurements>]) {
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

    fn measure_heads(&mut self, place: usize) -> Result<Option<PendingMeasurements>> {
        let Self { engine: Engine { model, cache, .. }, places, .. } = self;
        let sequence = places[place].as_ref().expect("it is due");
        let pending = sequence.tokens.last().expect("a probe follows a token").id;
        sequence.pruner.measure_heads(model, cache, place, pending, &sequence.probe_ids)
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
            changes.push(RegionUpdate { seq: *place, keep: &**keep, room });
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
        let Self { engine: Engine { opened: PreparedModel { name, .. }, model, cache, .. }, places, .. } = self;
        let mut ended = Vec::new();
        for (place, slot) in places.iter_mut().enumerate() {
            slot.iter_mut().for_each(Sequence::finish_if_done);
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
        self.reads.push_back(PendingIds { of, state: self.engine.cache.read_state() });
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
    use crate::device::ComputeDevice;
    use crate::dtype::Dtype;
    use crate::engine::LoadOptions;
    use crate::model::decoder;
    use crate::policy::Positions;
    use crate::trace::AttentionDetail;

    /// What attention puts aside is for the longest sequence times all: refused before the weights are read, and by a forward too.
    #[test]
    fn more_than_attention_can_put_aside_is_refused() {
        let source = crate::builtin::source();
        let mut device = ComputeDevice { tuning: crate::device::Tuning::GPU, ..ComputeDevice::cpu() };
        let open = |sequences, context| {
            let load = LoadOptions { kv: Dtype::F32, context: Some(context), sequences };
            PreparedModel::new(&source, "built-in", &load).expect("it is in the binary")
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
        let load = LoadOptions { kv: Dtype::F32, context: Some(256), sequences: 3 };
        let device = ComputeDevice::cpu();
        let source = crate::builtin::source();
        let mut engine =
            Engine::load(&source, "built-in", &device, &load, &mut |_, _| ()).expect("it is in the binary");
        let options = Settings { probe_every: 100, attention: AttentionDetail::Heads, ..Settings::default() };
        let mut batch = engine.batch();
        for _ in 0..3 {
            batch.add(&Prompt::Chat(crate::builtin::EXAMPLE.into()), &options).expect("a good request");
        }
        let due = [0, 1, 2];
        while due.iter().any(|&place| batch.places[place].as_ref().is_none_or(|s| s.tokens.is_empty())) {
            pollster::block_on(batch.step(&mut |_, _| ()));
        }
        batch.places[due[1]].as_mut().expect("it is due").probe_ids = vec![u32::MAX];
        let mut readouts: Vec<Result<Measurements>> = (0..3).map(|_| Ok(Measurements::default())).collect();
        pollster::block_on(batch.add_heads(&due, &mut readouts));
        let [Ok(first), Err(error), Ok(last)] = &readouts[..] else { panic!("the second fails, and it alone") };
        assert!(first.has_heads() && last.has_heads());
        assert!(error.to_string().contains("outside the vocabulary"), "{error}");
    }
}
