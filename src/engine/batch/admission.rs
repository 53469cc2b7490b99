//! Which request gets a place, and when: the queue, the memory of the caches, and the prompts that are kept.
use std::sync::atomic::Ordering;

use super::super::bound::Bound;
use super::super::record::{Event, OnEvent};
use super::super::sequence::Sequence;
use super::Batch;
use crate::{Error, ErrorKind};

/// Requests that may overtake one that does not fit.
const MOST_OVERTAKING: usize = 16;

impl Batch<'_> {
    /// Limits the memory of the caches. From now on a request gets a place only if the most memory that it can need
    /// ([`PreparedModel::bound`](crate::engine::PreparedModel::bound)) fits beside that of the requests that run, so
    /// that none of them fails for want of memory. Up to 16 later requests that fit may overtake one that does not.
    pub fn set_memory(&mut self, bytes: u64) {
        self.memory = Some(bytes);
    }

    pub(super) fn kept_bytes(&self) -> u64 {
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
    pub(super) fn fits(&self, bound: &Bound, beside: Bound) -> bool {
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
    pub(super) fn too_large(&self, bound: &Bound) -> Error {
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

    /// Gives free places to waiting requests, and checks the stop flag. Sequences that run side by side count
    /// positions in the same way. A request with another way waits until the running ones have ended, and so do the
    /// requests behind it.
    pub(super) fn admit(&mut self, on: &mut OnEvent<'_>) {
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
}
