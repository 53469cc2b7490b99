//! A control at equal memory: a policy that keeps as many tokens at each probe as another run did.
use crate::Result;
use crate::policy::Role;
use crate::policy::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement, PolicyRef};
use crate::trace::{Probe, Trace};

/// The number of thinking tokens that each probe of a run left in its cache, which has one kept set.
pub fn kept_counts(trace: &Trace) -> Vec<usize> {
    let kept = |probe: &Probe| {
        // Everything outside the thinking stays.
        let others = trace.tokens.iter().take(probe.at_token).filter(|token| token.role != Role::Thinking).count();
        probe.cached_after.saturating_sub(trace.prompt_ids.len() + others)
    };
    trace.probes.iter().map(kept).collect()
}

/// Another policy at the kept counts of a run: its n-th probe keeps as many thinking tokens as the n-th probe of that
/// run did. A control may think longer than the run; its further probes have the budget of the request if that counts
/// tokens, and otherwise the last count. Where more tokens are protected than were kept, the control keeps more.
#[derive(Debug)]
pub struct Replay {
    policy: PolicyRef,
    kept: Vec<usize>,
}

impl Replay {
    /// `policy` at the counts of [`kept_counts`].
    pub fn new(policy: PolicyRef, kept: Vec<usize>) -> Self {
        Self { policy, kept }
    }

    fn budget(&self, asked: Budget, probe: u64) -> Budget {
        let count = usize::try_from(probe).ok().and_then(|probe| self.kept.get(probe));
        match (count, self.kept.last()) {
            (Some(count), _) => Budget::Tokens(*count),
            (None, Some(last)) if asked.needs_scores() => Budget::Tokens(*last),
            // The run had no probe, so it evicted nothing, and neither does the control.
            (None, None) if asked.needs_scores() => Budget::Ratio(1.0),
            (None, _) => asked,
        }
    }
}

impl EvictionPolicy for Replay {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn draws_lots(&self) -> bool {
        self.policy.draws_lots()
    }

    fn needs(&self) -> Measurement {
        self.policy.needs()
    }

    fn accepts(&self, budget: Budget) -> Result<()> {
        budget.check()?;
        self.policy.accepts(self.budget(budget, u64::MAX))
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        self.policy.plan(&view.with_budget(self.budget(view.budget(), view.probe())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Position;
    use crate::policy::{CachedToken, Random, StepInfo, ViewParts};

    #[test]
    fn each_probe_keeps_what_the_run_kept() {
        let tokens: Vec<CachedToken> = (0..40).map(|i| CachedToken::thinking(Position(i), 0)).collect();
        let steps = [StepInfo { id: 0, tokens: 40 }, StepInfo { id: 90, tokens: 0 }];
        let view = |probe, budget| {
            CacheView::new(ViewParts {
                tokens: &tokens,
                steps: &steps,
                current_step: 1,
                thinking_tokens: 40,
                budget,
                window: 4,
                seed: 3,
                probe,
                ..ViewParts::EMPTY
            })
            .unwrap()
        };
        let replay = Replay::new(Random.into(), vec![30, 12, 1]);
        let kept = |probe, budget| replay.plan(&view(probe, budget)).unwrap().slots(0, 0).len();
        let (ratio, sum) = (Budget::Ratio(0.5), Budget::ScoreSum(0.1));
        assert_eq!([0, 1, 2, 3].map(|probe| kept(probe, ratio)), [30, 12, 4, 20], "the window of 4 stays");
        assert_eq!([0, 3].map(|probe| kept(probe, sum)), [30, 4]);
        assert!(replay.accepts(sum).is_ok() && Random.accepts(sum).is_err());
        let nothing = Replay::new(Random.into(), Vec::new());
        assert_eq!(nothing.plan(&view(0, sum)).unwrap().slots(0, 0).len(), 40);
    }
}
