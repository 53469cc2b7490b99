//! Drafts of the sequences that ask for them: their texts on the device, and what the host knows of their steps.
//!
//! A step with drafts forwards a sequence's pending token and some tokens that are likely to follow, and keeps those
//! that the sampler would have drawn. How many these are is known on the device only, which also looks the drafts up.
//! So nothing waits for the host: it launches further steps, and reads late how far the sequence has come. A limit in
//! the state keeps the device from sampling past a token after which the host has to decide something.
use burn::tensor::{Device, Int, Tensor};

use crate::cache::{KvCache, RING};
use crate::kernels::state::DRAFTED;
use crate::kernels::{self, DraftSpec, InPlace, MOST_TOGETHER, draft};

/// Ids that a text has room for when the answer is not limited otherwise. A longer text gets no more drafts.
const MOST_ROOM: usize = 1 << 18;

/// The text of one sequence on the device.
struct Text {
    words: InPlace<Tensor<1, Int>>,
    room: usize,
}

/// The sequences that have drafts.
pub(super) struct Drafts {
    /// By sequence; `None` for one without drafts.
    texts: Vec<Option<Text>>,
    /// For each sequence, the most tokens that its steps with drafts can have added, since it was admitted. The
    /// difference of two values bounds the tokens that were added between.
    most_added: Vec<u64>,
    /// For each sequence, the value of `most_added` at the copy of the state that was taken in last.
    taken_in: Vec<u64>,
}

impl Drafts {
    pub fn new(seqs: usize) -> Self {
        Self { texts: (0..seqs).map(|_| None).collect(), most_added: vec![0; seqs], taken_in: vec![0; seqs] }
    }

    /// Prepares `seq` for a prompt, after which up to `tokens` may be generated. Without drafts its text is dropped.
    pub fn set(&mut self, seq: usize, drafts: usize, prompt: &[u32], tokens: usize, device: &Device) {
        // What an earlier request has not read is of no interest any more.
        self.taken_in[seq] = self.most_added[seq];
        self.texts[seq] = (drafts > 0).then(|| {
            let room = prompt.len().saturating_add(tokens).min(MOST_ROOM);
            Text { words: InPlace::new(kernels::u32_tensor(draft::text_words(prompt, room), device)), room }
        });
    }

    /// Launches the lookup for the next step of `seq`, which forwards `chunk` tokens.
    pub fn look_up(&mut self, seq: usize, chunk: usize, cache: &mut KvCache) {
        let Some(Text { words, room }) = &mut self.texts[seq] else { return };
        let spec = DraftSpec {
            header: seq * kernels::state::SEQ,
            ring_offset: cache.ring_offset(seq),
            ring: RING,
            drafts_offset: cache.drafts_offset() + seq * DRAFTED,
            chunk,
            room: *room,
        };
        cache.write_sampled(|state| words.update(|text| kernels::draft(state, text, spec)));
    }

    /// Notes a step with `chunk` rows of each of `seqs`.
    pub fn note(&mut self, seqs: &[usize], chunk: usize) {
        seqs.iter().for_each(|seq| self.most_added[*seq] += chunk as u64);
    }

    /// Notes that the host has read a copy of the state. `most_added` is the value of
    /// [`most_added`](Self::most_added) when the copy was taken. Returns how many tokens the device may have added
    /// since, or `None` if a copy with the same value was read before.
    pub fn take_in_copy(&mut self, seq: usize, most_added: u64) -> Option<usize> {
        if most_added == self.taken_in[seq] {
            return None;
        }
        self.taken_in[seq] = most_added;
        Some((self.most_added[seq] - most_added) as usize)
    }

    /// The most tokens that the steps of `seq` can have added so far.
    pub fn most_added(&self, seq: usize) -> u64 {
        self.most_added[seq]
    }
}

/// Rows of each sequence in a step of `sequences` sequences with drafts. `drafts` is the smallest number that one of
/// them asks for. All rows together are so few that their products do not depend on their number.
pub(super) fn rows_of_each(sequences: usize, drafts: usize) -> usize {
    (MOST_TOGETHER / sequences.max(1)).clamp(1, 1 + drafts)
}

/// The most steps with `chunk` rows of a sequence that may be under way and not read: the ring holds the ids of all.
pub(super) fn most_under_way(chunk: usize) -> usize {
    RING / chunk
}
