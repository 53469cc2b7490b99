//! The most memory that a request can need. Its admission reserves this much, so that no running request fails
//! because other requests have taken the memory.
use super::record::LAG;
use crate::cache::{CacheShape, OBSERVED, RING};
use crate::policy::{self, Budget};
use crate::probe;
use crate::settings::Settings;

/// The most slots and bytes that the cache of one request can need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bound {
    /// Slots of each layer, free ones included.
    pub slots: usize,
    /// Bytes of the keys and values of all layers, of what some policies track besides, and of the second buffer that
    /// one layer has while it is moved.
    pub bytes: u64,
}

/// The numbers that the slots of a request depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slots<'a> {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of a probe; 0 where the policy has none.
    pub probe: usize,
    /// Positions that the model is loaded for.
    pub context: usize,
    pub settings: &'a Settings,
}

impl Slots<'_> {
    /// The most tokens that can be generated and cached without eviction.
    fn generated(&self) -> usize {
        self.settings.max_new_tokens.min(self.context.saturating_sub(self.prompt))
    }

    /// The most thinking tokens right after a pruning.
    fn kept(&self) -> usize {
        let generated = self.generated();
        let asked = match self.settings.budget {
            Budget::Tokens(tokens) => tokens,
            Budget::Ratio(ratio) => (ratio * generated as f64).ceil() as usize,
            Budget::ScoreSum(_) | Budget::Share(_) => generated,
        };
        // The budget does not apply to these tokens: they always stay.
        let window = self.settings.window.max(self.settings.policy.needs().queries());
        asked.max(window.saturating_add(policy::CURRENT_STEP_KEPT))
    }

    /// The most thinking tokens between two prunings.
    fn until_next(&self) -> usize {
        self.settings.probe_every.saturating_add(probe::MAX_POSTPONED)
    }

    /// The most slots that can be in use if the whole text is thinking. For budgets that bound no number of tokens,
    /// this is as if nothing were evicted.
    pub fn of_thinking(&self) -> usize {
        let generated = self.generated();
        if !self.settings.policy.evicts() {
            return self.prompt + generated;
        }
        self.prompt + self.kept().saturating_add(self.until_next()).min(generated) + self.probe
    }

    /// The most tokens outside the thinking, which are never evicted.
    fn answer(&self) -> usize {
        // The tags of the first thought are not counted by the limit, and neither is the one that ends a later
        // thought.
        let most = self.settings.max_answer_tokens.map_or(usize::MAX, |most| most.saturating_add(3));
        most.min(self.generated())
    }

    /// The most slots that can be in use.
    fn used(&self) -> usize {
        let generated = self.generated();
        let most_thinking = self.settings.max_thinking_tokens.unwrap_or(usize::MAX);
        let thinking = match self.settings.policy.evicts() {
            // Near the end of the context, where a probe has no room, nothing is pruned.
            true => self.kept().saturating_add(self.until_next()).saturating_add(self.probe),
            // Later thoughts may exceed the limit.
            false if self.settings.max_thinking_tokens.is_some() && self.settings.max_answer_tokens.is_some() => {
                most_thinking.saturating_add(LAG.saturating_mul(self.answer()))
            }
            false => usize::MAX,
        };
        self.prompt + thinking.saturating_add(self.answer()).min(generated) + self.probe + 1
    }

    /// The most slots that a layer has room for, with `growth` of the cache's shape.
    pub fn capacity(&self, growth: usize) -> usize {
        let used = self.used();
        // Sequences that grow together get half a step of free slots.
        let grown = (used + self.under_way() + growth / 2).next_multiple_of(growth);
        if !self.settings.policy.evicts() {
            return grown;
        }
        let kept = self.prompt + self.kept().saturating_add(self.answer()).min(self.generated()) + 1;
        grown.max((kept + self.room_after_gather()).next_multiple_of(growth))
    }

    /// The most slots that are reserved for steps whose tokens have not been read.
    fn under_way(&self) -> usize {
        // Every draft may be accepted, and the ring bounds the tokens that are not read.
        if self.settings.draft > 0 { RING } else { LAG }
    }

    /// Free slots to have after a gather, so that the buffers are allocated once from one pruning to the next.
    pub fn room_after_gather(&self) -> usize {
        let drafts = if self.settings.draft > 0 { RING } else { 0 };
        self.settings.probe_every.min(1024) + self.probe + probe::MAX_POSTPONED + 1 + drafts
    }

    /// The bound in a cache of this shape. `query_cols`: values of a token's queries, all heads of a layer together.
    pub fn bound(&self, shape: &CacheShape, query_cols: usize) -> Bound {
        let slots = self.capacity(shape.growth);
        let slot = (shape.slot_bytes() + shape.tracked_bytes()) as u64;
        let queries = match self.settings.policy.needs().queries() {
            0 => 0,
            _ => (4 * shape.layers * shape.seqs * OBSERVED * query_cols) as u64,
        };
        let layers = shape.layers as u64 + 1;
        Bound { slots, bytes: (slots as u64).saturating_mul(layers).saturating_mul(slot).saturating_add(queries) }
    }
}
