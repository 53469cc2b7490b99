//! `last-attention`: the paper's ablation without the probe.
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement, ThinkClearly};
use crate::Result;

/// Evicts whole reasoning steps as `think-clearly` does, scored by the attention of the latest generated token.
///
/// *Idea*: what remains of the method when the self-summary is taken away. *Paper*: the probe ablation of arXiv 2507.08806.
/// *Direction*: the lowest steps go first. *Ours*: the token is the pending one, forwarded by the ordinary decode path before
/// the plan; it attends to itself too, which concerns a protected slot only.
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
