//! `think-clearly`: the paper's method (arXiv 2507.08806).
use super::budget::{Group, evict};
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// Evicts whole reasoning steps, the least important first.
///
/// *Idea*: when a model is asked to stop and summarise, its `</think>` attends to what the model still needs. Steps
/// with little of this attention are redundant. *Paper*: Think Clearly, arXiv 2507.08806. *Direction*: the importance
/// of a step is the mean score of its cached tokens; the lowest are evicted first.
///
/// *Ours*, where the paper's text was not available: with the budgets `tokens` and `ratio`, only the lowest tokens of
/// the last step are evicted, so that the target is hit exactly. A step that reaches into protected tokens keeps
/// those, and they count in its mean. The means of short steps are noisy and are not corrected for.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThinkClearly;

impl EvictionPolicy for ThinkClearly {
    fn name(&self) -> &str {
        "think-clearly"
    }

    fn summary(&self) -> &str {
        "evicts the reasoning steps to which </think> of a self-summary probe attends least"
    }

    fn needs(&self) -> Measurement {
        Measurement::ProbeRow
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let scores = view.scores()?;
        let mut groups = Vec::new();
        for (step, mut slots) in view.evictable_steps() {
            // The sort is stable: of equal tokens, the older is evicted first.
            slots.sort_by(|a, b| scores[a.0 as usize].total_cmp(&scores[b.0 as usize]));
            groups.push(Group { importance: view.step_importance(step), slots });
        }
        // Stable as well: of equal steps, the earlier. The view has a mean for every step with cached tokens.
        groups.sort_by(|a, b| a.importance.unwrap_or(0.0).total_cmp(&b.importance.unwrap_or(0.0)));
        evict(view, &groups)
    }
}
