//! `think-token`: the paper's ablation without steps.
use super::budget::evict_lowest;
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

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
        evict_lowest(view, |slot| scores[slot.0 as usize].into())
    }
}
