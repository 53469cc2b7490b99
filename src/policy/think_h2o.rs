//! `think-h2o`: what the summary needs, and what the reasoning has used. *(ours)*
use super::h2o::{accepts_halves, plan_halves};
use super::scores::scale_to_one;
use super::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// Evicts single tokens by the sum of two shares: the share of the probe's attention, as in `think-token`, and the
/// share of the attention that all queries so far have paid, as in `h2o`.
///
/// *Idea*: the probe asks what a summary at this moment needs, and misses what later steps take up again. The sums know
/// what the steps so far have taken up, and miss what is new. A token that either of them finds important stays.
/// *Paper*: none; chosen among eight variants on problems that were set aside for it
/// (docs/results/2026-11-30-better-policy.md).
/// *Direction*: each measurement is divided by its sum over the evictable tokens, and the two shares of a token are
/// added. As in `h2o`, half of the budget is for the latest thinking tokens. Of the others the lowest are evicted
/// first, then of the latest ones the oldest.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThinkH2o;

impl EvictionPolicy for ThinkH2o {
    fn name(&self) -> &str {
        "think-h2o"
    }

    fn summary(&self) -> &str {
        "evicts the tokens that neither the probe attends to nor the reasoning has used"
    }

    fn needs(&self) -> Measurement {
        Measurement::ProbeRowAndSums
    }

    fn accepts(&self, budget: Budget) -> Result<()> {
        accepts_halves(self.name(), budget)
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let (needed, used) = (shares(view, view.scores()?), shares(view, view.received()?));
        plan_halves(self.name(), view, |slot| needed[slot.0 as usize] + used[slot.0 as usize])
    }
}

/// The values divided by their sum over the evictable slots. Values that sum to 0 stay as they are.
fn shares(view: &CacheView<'_>, values: &[f32]) -> Vec<f64> {
    let scale = scale_to_one(view.evictable().map(|slot| values[slot.0 as usize]));
    values.iter().map(|value| f64::from(*value) * scale).collect()
}
