//! `think-token`: the paper's ablation without steps.
use super::budget::{Group, evict};
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::{Result, Slot};

/// Evicts single tokens, the lowest-scoring first, by the same probe as `think-clearly`.
///
/// *Idea*: what remains of the method when steps are taken away. *Paper*: the step ablation of arXiv 2507.08806.
/// *Deviation*: `score-sum` and `share` add up tokens' scores instead of steps' means.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThinkToken;

impl EvictionPolicy for ThinkToken {
    fn name(&self) -> &str {
        "think-token"
    }

    fn summary(&self) -> &str {
        "the same probe, token by token, without steps (ablation)"
    }

    fn needs(&self) -> Measurement {
        Measurement::ProbeRow
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let scores = view.scores()?;
        let mut slots: Vec<Slot> = view.evictable().collect();
        // Stable: of equal tokens the older goes first.
        slots.sort_by(|a, b| scores[a.0 as usize].total_cmp(&scores[b.0 as usize]));
        let single =
            |slot| Group { importance: Some(f64::from(scores[slot as usize])), slots: vec![crate::Slot(slot)] };
        let groups: Vec<Group> = slots.iter().map(|s| single(s.0)).collect();
        evict(view, &groups)
    }
}
