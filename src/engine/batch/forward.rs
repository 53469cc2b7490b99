//! Prefill, decode and forced tokens of the sequences that run, and the reads of what was sampled.
use std::collections::HashMap;

use super::super::drafts::rows_of_each;
use super::super::logprobs::{Origin, PendingLogprobs, TokenRow};
use super::super::record::OnEvent;
use super::super::runner::{Next, PREFILL_CHUNK, PendingState};
use super::Batch;
use super::places::{Running, next, places_of, steps_with_room, with_room};
use crate::Result;
use crate::cache::KvCache;
use crate::sampling::Sampler;

/// A copy of the device's state that is being read.
pub(super) struct PendingIds {
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
    /// Tokens it had sampled, if it has no drafts.
    issued: usize,
    /// Steps with drafts that had been launched for it.
    draft_steps: usize,
    /// The most tokens that its steps with drafts could have added.
    most_added: u64,
}

/// Probabilities that were read, by place.
#[derive(Default)]
struct Rows {
    sampled: HashMap<usize, Vec<TokenRow>>,
    prompts: HashMap<usize, Vec<TokenRow>>,
}

impl Rows {
    fn new(groups: Vec<(Origin, Vec<TokenRow>)>) -> Self {
        let mut rows = Self::default();
        for (of, group) in groups {
            match of {
                Origin::Step(places) => places
                    .into_iter()
                    .zip(group)
                    .for_each(|(place, row)| rows.sampled.entry(place).or_default().push(row)),
                Origin::Prompt(place) => rows.prompts.entry(place).or_default().extend(group),
            }
        }
        rows
    }

    /// The rows of the tokens of a sequence, in order.
    fn of_place(&mut self, place: usize) -> impl Iterator<Item = TokenRow> + use<> {
        self.sampled.remove(&place).unwrap_or_default().into_iter()
    }

    /// The rows of the prompt of a sequence, in order.
    fn of_prompt(&mut self, place: usize) -> impl Iterator<Item = TokenRow> + use<> {
        self.prompts.remove(&place).unwrap_or_default().into_iter()
    }
}

impl Batch<'_> {
    /// Forwards a chunk of an unfinished prompt, and samples the first token after the last chunk. Every chunk is
    /// awaited like a token, so that a stop takes effect within one chunk.
    ///
    /// The prompt with the fewest chunks left comes first, so that a short one does not wait for a long one. Each
    /// turn in which a prompt is passed over counts as four chunks less, so that short ones cannot keep a long one
    /// waiting.
    pub(super) fn prefill(&mut self) {
        let mut prefilling: Vec<Running<'_>> = self.places.running().filter(|r| r.sequence.prefilling()).collect();
        // Who can copy from a prompt that is still being forwarded waits for it: for one that has begun or came
        // earlier, so that not everybody waits.
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
    pub(super) fn force(&mut self) -> Result<()> {
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

    /// Decode steps for all sequences that have room, in bursts between two reads. A sequence drops out when it has
    /// no room left. While a prompt is being forwarded, a turn has one decode step, so that a long prompt does not
    /// stall the others. The same holds while a sequence must read each of its tokens before the next: it would get
    /// one token for each burst of the others.
    pub(super) fn decode(&mut self) -> Result<()> {
        let stepwise = self.places.sequences().any(|s| s.prefilling() || s.is_stepwise());
        loop {
            let burst = self.pace.steps;
            let plain = |r: &Running<'_>| r.sequence.drafts() == 0 && r.sequence.room(burst) > 0;
            let rows: Vec<Running<'_>> = self.places.running().filter(plain).collect();
            let Some(room) = rows.iter().map(|r| r.sequence.room(burst)).min() else {
                return self.decode_drafted(stepwise);
            };
            let steps = if stepwise { 1 } else { room.min(burst) };
            let (steps, mut rows) = match steps_with_room(self.runner, &rows, steps) {
                // What was sampled is read before any sequence has to end, so that no text is lost.
                0 if rows.iter().any(|row| row.sequence.tokens.len() < row.sequence.issued) => return Ok(()),
                0 => (1, with_room(self.runner, rows, 1)),
                steps => (steps, rows),
            };
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
                return self.decode_drafted(stepwise);
            }
        }
    }

    /// Decode steps with drafts, in bursts, for the sequences that have them. `single`: one step in a turn.
    fn decode_drafted(&mut self, single: bool) -> Result<()> {
        loop {
            let burst = self.pace.steps;
            let drafting: Vec<usize> =
                self.places.running().filter(|r| r.sequence.draft_limit() > 0).map(|r| r.sequence.drafts()).collect();
            let mut chunk = rows_of_each(drafting.len(), drafting.into_iter().min().unwrap_or(0));
            let steps_of = |r: &Running<'_>| r.sequence.draft_room(burst, chunk);
            let rows: Vec<Running<'_>> = self.places.running().filter(|r| steps_of(r) > 0).collect();
            let Some(room) = rows.iter().map(steps_of).min() else { return Ok(()) };
            let mut steps = if single { 1 } else { room.min(burst) };
            let places = places_of(&rows);
            // More room can be made only when all lengths are known.
            if self.runner.is_ahead() && !self.runner.has_room(&places, steps * chunk) {
                return Ok(());
            }
            steps = steps_with_room(self.runner, &rows, steps * chunk) / chunk;
            let rows = match steps {
                0 if rows.iter().any(|row| row.sequence.tokens.len() < row.sequence.issued) => return Ok(()),
                0 => {
                    (steps, chunk) = (1, 1);
                    with_room(self.runner, rows, 1)
                }
                _ => rows,
            };
            if rows.is_empty() {
                continue;
            }
            let limits: Vec<usize> = rows.iter().map(|row| row.sequence.draft_limit()).collect();
            self.runner.decode_drafted(&places_of(&rows), &limits, chunk, steps)?;
            for Running { place, sequence } in rows {
                sequence.launched_drafted(steps);
                sequence.note_bytes(self.runner.cache().bytes_of(place));
            }
            self.start_read(steps);
            if single {
                return Ok(());
            }
        }
    }

    /// Reads all that was launched if the lengths of a sequence are not known and something else than further steps of
    /// that sequence may come next.
    pub(super) async fn read_until_known(&mut self, on: &mut OnEvent<'_>) -> Result<()> {
        let admits = !self.waiting.is_empty() && self.places.0.iter().any(Option::is_none);
        while self.runner.is_ahead() && !self.reads.is_empty() && (admits || self.has_neighbours()) {
            self.read(on).await?;
        }
        Ok(())
    }

    /// Whether several sequences have a place.
    fn has_neighbours(&self) -> bool {
        self.places.0.iter().flatten().nth(1).is_some()
    }

    /// Waits for the oldest read and adds its tokens. Repeats this while more than one read is under way, or until
    /// all have come where a sequence needs its latest token for the next one.
    pub(super) async fn read(&mut self, on: &mut OnEvent<'_>) -> Result<()> {
        // What a sequence does next may need room, or the memory of a neighbour that ends.
        let alone = !(self.runner.is_ahead() && self.has_neighbours());
        let most = usize::from(alone && !self.places.sequences().any(|s| s.is_stepwise()));
        while let Some(PendingIds { sampled, steps, state, logprobs }) = self.reads.pop_front() {
            let state = state.finish().await?;
            self.pace.read(steps);
            let mut logprobs = Rows::new(match logprobs {
                Some(logprobs) => logprobs.finish().await?,
                None => Vec::new(),
            });
            for Sampled { place, request, issued, draft_steps, most_added } in sampled {
                // The request may have ended meanwhile, and another may have its place.
                let sequence = self.places.0[place].as_mut().filter(|s| s.id == request);
                let Some(sequence) = sequence else { continue };
                let issued = match sequence.drafts() {
                    0 => issued,
                    _ => {
                        self.runner.take_in_copy(place, &state, most_added);
                        KvCache::steps_in(&state, place)
                    }
                };
                let cache = self.runner.cache();
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
                sequence.read_drafted(draft_steps);
            }
            if self.reads.len() <= most {
                break;
            }
        }
        Ok(())
    }

    /// Starts reading the ids of all sequences that have sampled any.
    pub(super) fn start_read(&mut self, steps: usize) {
        let runner = &*self.runner;
        let sampled = |r: Running<'_>| Sampled {
            place: r.place,
            request: r.sequence.id,
            issued: r.sequence.issued,
            draft_steps: r.sequence.draft_steps(),
            most_added: runner.most_added(r.place),
        };
        let sampled = self.places.running().map(sampled).collect();
        let (state, logprobs) = (self.runner.read(), self.runner.read_logprobs());
        self.reads.push_back(PendingIds { sampled, steps, state, logprobs });
    }
}
