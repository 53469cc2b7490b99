//! `random-step`: the control for steps.
use super::budget::{Group, evict};
use super::random::shuffled;
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// Evicts whole steps uniformly at random, by a seed.
///
/// *Idea*: compared with `think-clearly` it shows what the scores add, and compared with `random` what whole steps
/// add. Of the last step only some tokens are evicted, also at random, so that the target is hit exactly.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomStep;

impl EvictionPolicy for RandomStep {
    fn name(&self) -> &str {
        "random-step"
    }

    fn summary(&self) -> &str {
        "evicts reasoning steps at random, seeded (control)"
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
        let mut lot = view.rng();
        let steps: Vec<_> = view.evictable_steps().map(|(_, slots)| slots).collect();
        let steps = shuffled(steps, &mut lot);
        let group = |slots| Group { importance: None, slots: shuffled(slots, &mut lot) };
        let groups: Vec<Group> = steps.into_iter().map(group).collect();
        evict(view, &groups)
    }
}
