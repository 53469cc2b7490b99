//! `last-attention`: the paper's ablation without the probe.
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement, ThinkClearly};
use crate::Result;

/// Evicts whole reasoning steps as `think-clearly` does, scored by the attention of the latest generated token.
///
/// *Idea*: shows what the method achieves without the self-summary. *Paper*: the ablation of the probe in arXiv
/// 2507.08806.
/// *Direction*: the lowest steps are evicted first. *Ours*: the scores come from the pending token, which the
/// ordinary decode path forwards before the plan is made. It also attends to itself, but its slot is protected.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastAttention;

impl EvictionPolicy for LastAttention {
    fn name(&self) -> &str {
        "last-attention"
    }

    fn summary(&self) -> &str {
        "as think-clearly, scored by the latest token instead of a probe (ablation)"
    }

    fn needs(&self) -> Measurement {
        Measurement::LastRow
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        ThinkClearly.plan(view)
    }
}
