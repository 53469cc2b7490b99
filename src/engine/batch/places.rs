//! The places of a batch, and the sequences that run in them.
use super::super::runner::{Next, Runner};
use super::super::sequence::Sequence;

/// The sequences that run. A sequence's index here is its number in the cache.
pub(super) struct Places(pub(super) Vec<Option<Sequence>>);

/// A sequence that runs, borrowed for a part of a turn.
pub(super) struct Running<'s> {
    pub(super) place: usize,
    pub(super) sequence: &'s mut Sequence,
}

impl Places {
    pub(super) fn sequences(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.0.iter_mut().flatten()
    }

    pub(super) fn running(&mut self) -> impl Iterator<Item = Running<'_>> {
        let places = self.0.iter_mut().enumerate();
        places.filter_map(|(place, slot)| Some(Running { place, sequence: slot.as_mut()? }))
    }
}

pub(super) fn places_of(rows: &[Running<'_>]) -> Vec<usize> {
    rows.iter().map(|row| row.place).collect()
}

/// What the next token of a sequence may be. A format that cannot be kept to ends the sequence.
pub(super) fn next(sequence: &mut Sequence) -> Next {
    let next = sequence.next();
    sequence.or_fail(next).unwrap_or_default()
}

/// Makes room for as many of the next `steps` tokens of each of `rows` as there is: half of them, or a quarter, and
/// so on. Prompts that are kept yield first. Returns 0 where there is no room for one token of each.
pub(super) fn steps_with_room(runner: &mut Runner, rows: &[Running<'_>], mut steps: usize) -> usize {
    while steps > 0 && runner.reserve(&places_of(rows), steps).is_err() {
        if !runner.forget_idle() {
            steps /= 2;
        }
    }
    steps
}

/// Makes room for `extra` more slots of each of `rows`. Where a layer's buffer cannot grow that far, the longest
/// sequence fails and its memory is freed, until the others fit. Returns the sequences that have room.
pub(super) fn with_room<'s>(runner: &mut Runner, mut rows: Vec<Running<'s>>, extra: usize) -> Vec<Running<'s>> {
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
