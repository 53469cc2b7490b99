//! `random`: the honest control.
use super::budget::{Group, evict};
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// Evicts tokens uniformly at random among those that may go, seeded.
///
/// *Idea*: what any scheme must beat at equal cache size; 2026 work ("Random Attention", arXiv 2609.03430) finds it close to
/// the strongest. The question, window and current step are protected as for every policy.
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

    fn needs(&self) -> Measurement {
        Measurement::Nothing
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let slots = shuffled(view.evictable().collect(), &mut view.rng());
        evict(view, &[Group { importance: None, slots }])
    }
}

/// A uniform order of `items`: each draws a lot, ties (one in 2⁶⁴) to the earlier.
pub(super) fn shuffled<T>(items: Vec<T>, lot: &mut impl FnMut() -> u64) -> Vec<T> {
    let mut drawn: Vec<(u64, T)> = items.into_iter().map(|item| (lot(), item)).collect();
    drawn.sort_by_key(|(lot, _)| *lot);
    drawn.into_iter().map(|(_, item)| item).collect()
}
