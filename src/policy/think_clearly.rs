//! `think-clearly`: the paper's method (arXiv 2507.08806).
use super::budget::{Group, evict};
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// Evicts whole reasoning steps, the least important first.
///
/// *Idea*: asked to stop and summarise, a model attends from `</think>` to what it still needs; steps it passes over are
/// redundant. *Paper*: Think Clearly, arXiv 2507.08806. *Direction*: a step's importance is the mean of its cached tokens'
/// scores, the lowest go first.
///
/// *Ours*, where the paper's text was not available: with `tokens` and `ratio`, of the last step only its lowest-scoring
/// tokens go, so that the target is hit exactly; a step that reaches into protected tokens keeps those, but they count in
/// its mean; means of short steps are noisy and are not corrected for.
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
            // Stable: of equal tokens the older goes first.
            slots.sort_by(|a, b| scores[a.0 as usize].total_cmp(&scores[b.0 as usize]));
            groups.push(Group { importance: view.step_importance(step), slots });
        }
        // Stable: of equal steps the earlier goes first. The view has a mean for every step with cached tokens.
        groups.sort_by(|a, b| a.importance.unwrap_or(0.0).total_cmp(&b.importance.unwrap_or(0.0)));
        evict(view, &groups)
    }
}
