//! Records which sequence of the cache begins with which prompt. Another request can then copy the part of its prompt
//! that it shares with them, instead of computing it again.
//!
//! A prompt is never evicted, and its slots come first. So its slots do not change while the sequence is pruned, and
//! after the sequence has ended they can be kept until their place or their memory is needed.
//!
//! A copy has exactly the bits that the request's own forward would give. A row is computed in the same way in every
//! chunk of at least [`ALIKE_ROWS`] rows, but in shorter chunks the order of a sum can differ. So a part of a chunk
//! is shared only if the chunk has that many rows in the other prompt, and if the new request still computes at least
//! that many rows of it itself.
use super::runner::PREFILL_CHUNK;
use crate::kernels::ALIKE_ROWS;

/// The prompts that sequences begin with.
pub(super) struct CachedPrompts {
    /// One entry for each sequence of the cache: `None` if it begins with no prompt that may be shared.
    entries: Vec<Option<CachedPrompt>>,
    /// A counter of uses, from which the field `used` of a prompt is taken.
    clock: u64,
    /// The most bytes that prompts may keep after their requests have ended.
    pub most_bytes: u64,
}

struct CachedPrompt {
    ids: Vec<u32>,
    /// The ids whose keys and values are cached, from the first on.
    forwarded: usize,
    /// The group of the request. Only requests of the same group share the prompt.
    group: u64,
    /// Whether the request has ended.
    idle: bool,
    /// The value of the counter at the latest use.
    used: u64,
}

/// The beginning of a prompt that another sequence has cached as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    /// The sequence that has it.
    pub seq: usize,
    /// The number of tokens in this beginning.
    pub tokens: usize,
}

impl CachedPrompts {
    pub fn new(seqs: usize) -> Self {
        Self { entries: (0..seqs).map(|_| None).collect(), clock: 0, most_bytes: 0 }
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Records that `seq` runs a request with this prompt, of which nothing is cached yet.
    pub fn begin(&mut self, seq: usize, ids: &[u32], group: u64) {
        let used = self.now();
        self.entries[seq] = Some(CachedPrompt { ids: ids.to_vec(), forwarded: 0, group, idle: false, used });
    }

    /// Records that `tokens` more ids of the prompt of `seq` are cached.
    pub fn advance(&mut self, seq: usize, tokens: usize) {
        if let Some(entry) = &mut self.entries[seq] {
            entry.forwarded = (entry.forwarded + tokens).min(entry.ids.len());
        }
    }

    /// Records that the request of `seq` has ended and that its prompt stays. Returns the number of its cached
    /// tokens; `None` if it is too short to be of use.
    pub fn end(&mut self, seq: usize) -> Option<usize> {
        let used = self.now();
        let entry = self.entries[seq].as_mut().filter(|entry| entry.forwarded >= ALIKE_ROWS)?;
        (entry.idle, entry.used) = (true, used);
        Some(entry.forwarded)
    }

    /// Records that `seq` has no prompt any more.
    pub fn forget(&mut self, seq: usize) {
        self.entries[seq] = None;
    }

    /// The sequences whose requests have ended, the one that was used last at the end.
    pub fn idle(&self) -> Vec<usize> {
        let idle = |seq: &usize| self.entries[*seq].as_ref().filter(|entry| entry.idle);
        let mut all: Vec<usize> = (0..self.entries.len()).filter(|seq| idle(seq).is_some()).collect();
        all.sort_by_key(|seq| idle(seq).map(|entry| entry.used));
        all
    }

    /// Cached tokens of the prompt of `seq`.
    pub fn tokens(&self, seq: usize) -> usize {
        self.entries[seq].as_ref().map_or(0, |entry| entry.forwarded)
    }

    /// The longest beginning of `ids` that another sequence than `seq` has cached. Marks it as used.
    pub fn find(&mut self, ids: &[u32], group: u64, seq: Option<usize>) -> Option<Shared> {
        let found = self.longest(ids, group, seq)?;
        let used = self.now();
        self.entries[found.seq].as_mut().expect("it was found").used = used;
        Some(found)
    }

    /// Whether a sequence that has `now` tokens of `ids` cached gains by waiting for one of `seqs`, which are
    /// forwarding their prompts. It gains if it could copy at least as many tokens as the other one still has to
    /// forward up to the point where the two prompts differ.
    pub fn gains_by(&self, ids: &[u32], group: u64, now: usize, seqs: &[usize]) -> bool {
        let entries = seqs.iter().filter_map(|seq| self.entries[*seq].as_ref()).filter(|entry| entry.group == group);
        entries.into_iter().any(|entry| {
            let later = shared(&entry.ids, entry.ids.len(), ids);
            later > now && later - now >= later.saturating_sub(entry.forwarded)
        })
    }

    fn longest(&self, ids: &[u32], group: u64, except: Option<usize>) -> Option<Shared> {
        let others = self.entries.iter().enumerate().filter(|(seq, _)| Some(*seq) != except);
        let shared = others.filter_map(|(seq, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.group == group)?;
            let tokens = shared(&entry.ids, entry.forwarded, ids);
            (tokens > 0).then_some(Shared { seq, tokens })
        });
        shared.max_by_key(|shared| shared.tokens)
    }
}

/// The ids at the beginning of `ids` whose keys and values can be copied from a prompt `other`, of which `cached` ids
/// are cached. At least the last id is left, because the first token is sampled from its logits.
fn shared(other: &[u32], cached: usize, ids: &[u32]) -> usize {
    // Whole blocks are compared first, because prompts are long and many are compared.
    const BLOCK: usize = 256;
    let blocks = other[..cached].chunks_exact(BLOCK).zip(ids.chunks_exact(BLOCK)).take_while(|(a, b)| a == b).count();
    let begun = blocks * BLOCK;
    let equal = begun + other[begun..cached].iter().zip(&ids[begun..]).take_while(|(a, b)| a == b).count();
    let most = equal.min(ids.len().saturating_sub(1));
    let whole = most / PREFILL_CHUNK * PREFILL_CHUNK;
    // The number of rows of the chunk in which the prompts differ, for each prompt.
    let rows = |ids: &[u32]| (ids.len() - whole).min(PREFILL_CHUNK);
    let left = rows(ids).saturating_sub(ALIKE_ROWS);
    let part = if rows(other) < ALIKE_ROWS { 0 } else { (most - whole).min(left) };
    // A part of the first chunk alone must be long enough to be worth a copy.
    if whole + part < ALIKE_ROWS { 0 } else { whole + part }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize, parts_at: usize) -> Vec<u32> {
        (0..count).map(|i| if i < parts_at { i as u32 } else { 100_000 + i as u32 }).collect()
    }

    #[test]
    fn only_rows_that_are_computed_alike_are_shared() {
        let other = ids(700, 700);
        for (count, parts_at, cached, expected) in [
            // There is nothing in common, or too little.
            (700, 0, 700, 0),
            (300, 64, 700, 0),
            (300, 65, 700, 65),
            // Whole chunks are shared, and a part that leaves 65 rows of the last chunk.
            (700, 256, 700, 256),
            (700, 300, 700, 300),
            (700, 511, 700, 447),
            (512, 512, 700, 512 - 65),
            (513, 513, 700, 512),
            (560, 560, 700, 512),
            (600, 600, 700, 600 - 65),
            (700, 700, 700, 700 - 65),
            (900, 700, 700, 700),
            // Only cached tokens are shared.
            (900, 700, 256, 256),
            (900, 700, 400, 400),
            (900, 700, 0, 0),
            // The last id is never shared.
            (257, 257, 700, 256),
            (256, 256, 700, 256 - 65),
            (1, 1, 700, 0),
        ] {
            assert_eq!(shared(&other, cached, &ids(count, parts_at)), expected, "{count} ids, equal to {parts_at}");
        }
        // The last chunk of the other prompt has few rows, so its sums may have another order.
        assert_eq!(shared(&ids(300, 300), 300, &ids(500, 300)), 256);
        assert_eq!(shared(&ids(321, 321), 321, &ids(500, 321)), 321);
        assert_eq!(shared(&[], 0, &[]), 0);
    }

    #[test]
    fn the_longest_of_the_same_group_is_found() {
        let mut prompts = CachedPrompts::new(4);
        prompts.begin(0, &ids(600, 300), 7);
        prompts.begin(1, &ids(600, 400), 7);
        prompts.begin(2, &ids(600, 600), 8);
        let wanted = ids(600, 500);
        assert_eq!(prompts.find(&wanted, 7, None), None, "nothing is cached yet");
        let gains = |now, seqs: &[usize]| prompts.gains_by(&wanted, 7, now, seqs);
        assert!(gains(0, &[0, 1, 2, 3]) && gains(0, &[0]) && !gains(0, &[2]) && !gains(0, &[]));
        // Copying 300 tokens now is better than waiting for a sequence that must forward 400 tokens before 400 can be
        // copied.
        assert!(!gains(300, &[0, 1]));
        prompts.advance(1, 256);
        assert!(!prompts.gains_by(&wanted, 7, 300, &[1]) && prompts.gains_by(&wanted, 7, 256, &[1]));
        [0, 1, 2].into_iter().for_each(|seq| prompts.advance(seq, 600));
        assert_eq!(prompts.find(&wanted, 7, None), Some(Shared { seq: 1, tokens: 400 }));
        assert_eq!(prompts.find(&wanted, 7, Some(1)), Some(Shared { seq: 0, tokens: 300 }));
        assert_eq!(prompts.find(&wanted, 9, None), None);
        assert_eq!(prompts.idle(), [0; 0]);
        assert_eq!((prompts.end(1), prompts.end(0), prompts.end(3)), (Some(600), Some(600), None));
        assert_eq!(prompts.idle(), [1, 0]);
        prompts.find(&wanted, 7, None);
        assert_eq!(prompts.idle(), [0, 1], "a prompt that was copied was used");
        prompts.forget(1);
        assert_eq!((prompts.idle(), prompts.tokens(1)), (vec![0], 0));
    }
}
