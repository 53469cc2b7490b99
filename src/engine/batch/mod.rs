//! The scheduler: requests that run side by side, and the turns of the loop that serves them.
//!
//! ```text
//! step ── admit ──── prefill ── prune ── force ── decode ── read ── retire
//!         admission  forward    prune    forward  forward   forward
//! ```
mod admission;
mod forward;
mod pace;
mod places;
mod prune;

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;

use self::forward::PendingIds;
use self::pace::Pace;
use self::places::Places;
use super::PreparedModel;
use super::bound::Bound;
use super::record::{LAG, OnEvent, RunResult};
use super::request::Prompt;
use super::runner::{Admission, Runner};
use super::sequence::{Sequence, check_ids};
use crate::settings::Settings;
use crate::{Error, ErrorKind, Result};

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

    /// Adds a request, which runs as soon as a place is free. Returns its number, counted from 0.
    ///
    /// # Errors
    /// A prompt that is empty, longer than the context or larger than the device's buffers, a policy that cannot run
    /// with this model or budget, and a request that can need more memory than [`set_memory`](Self::set_memory) allows.
    pub fn add(&mut self, prompt: &Prompt, settings: &Settings) -> Result<usize> {
        self.add_of(0, prompt, settings)
    }

    /// Like [`add`](Self::add), for a request of a group, such as those of one user. The beginning of a prompt is
    /// shared only inside a group, because the time until the first token tells whether it was. [`add`](Self::add)
    /// adds to the group with the number 0.
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
            self.read_until_known(on).await?;
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
            self.runner.forget_ahead();
            self.places.sequences().for_each(|s| s.fail(e.clone()));
        }
        let ended = self.retire(on);
        if failed {
            // What the device has cached may be anything.
            self.runner.forget_idle();
        }
        ended
    }

    /// Follows a text that is known, in place of one that the model writes: forwards `ids` behind the prompt in
    /// chunks, and prunes where it would if the model had written them. See
    /// [`Engine::follow`](super::Engine::follow).
    pub(super) async fn follow(mut self, prompt: &Prompt, settings: &Settings, ids: &[u32]) -> Result<RunResult> {
        const PLACE: usize = 0;
        let on: &mut OnEvent<'_> = &mut |_, _| ();
        let mut sequence = self.prepared.sequence(self.requests, prompt, settings)?;
        self.runner.check_prompt(sequence.prompt.len())?;
        check_ids(ids, self.prepared.config.vocab_size, "the text")?;
        // A prompt that is copied from another request has the same bits, but what follows should depend on nothing
        // else.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CacheShape, KvCache};
    use crate::device::ComputeDevice;
    use crate::dtype::Dtype;
    use crate::engine::LoadOptions;
    use crate::model::decoder::{self, Decoder, Input};
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
}
