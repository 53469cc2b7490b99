//! `think-token`: the paper's ablation without steps.
use super::budget::{Group, evict};
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::{Result, Slot};

/// Evicts single tokens, the lowest-scoring first, by the same probe as `think-clearly`.
///
/// *Idea*: shows what the method achieves without steps. *Paper*: the ablation of steps in arXiv 2507.08806.
/// *Direction*: the lowest scores are evicted first. *Deviation*: `score-sum` and `share` add up the scores of tokens
/// instead of the means of steps.
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
        // The sort is stable: of equal tokens, the older is evicted first.
        slots.sort_by(|a, b| scores[a.0 as usize].total_cmp(&scores[b.0 as usize]));
        let single =
            |slot| Group { importance: Some(f64::from(scores[slot as usize])), slots: vec![crate::Slot(slot)] };
        let groups: Vec<Group> = slots.iter().map(|s| single(s.0)).collect();
        evict(view, &groups)
    }
}
