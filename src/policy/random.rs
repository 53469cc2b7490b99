//! `random`: the control.
use super::budget::{Group, evict};
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// Evicts evictable tokens uniformly at random, by a seed.
///
/// *Idea*: every other policy must do better than this with a cache of the same size. A paper of 2026 ("Random
/// Attention", arXiv 2609.03430) finds it close to the strongest. Prompt, window and current step are protected, as
/// with every policy here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Random;

impl EvictionPolicy for Random {
    fn name(&self) -> &str {
        "random"
    }

    fn summary(&self) -> &str {
        "evicts thinking tokens at random, seeded (control)"
    }

    fn draws_lots(&self) -> bool {
        true
    }

    fn is_control(&self) -> bool {
        true
    }

    fn needs(&self) -> Measurement {
        Measurement::Nothing
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let slots = shuffled(view.evictable().collect(), &mut view.rng());
        evict(view, &[Group { importance: None, slots }])
    }
}

/// `items` in a uniformly random order: sorted by a random number each. Of equal numbers (one pair in 2⁶⁴), the
/// earlier item is first.
pub(super) fn shuffled<T>(items: Vec<T>, lot: &mut impl FnMut() -> u64) -> Vec<T> {
    let mut drawn: Vec<(u64, T)> = items.into_iter().map(|item| (lot(), item)).collect();
    drawn.sort_by_key(|(lot, _)| *lot);
    drawn.into_iter().map(|(_, item)| item).collect()
}
