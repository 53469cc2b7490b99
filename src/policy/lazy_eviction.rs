//! `lazy-eviction`: tokens whose attention comes back (Zhang et al. 2025, arXiv 2506.15969).
use super::budget::evict_lowest;
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// Evicts the tokens that are least likely to matter again. The estimate compares the time since a token last
/// mattered with the longest earlier interval in which it did not matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct LazyEviction;

impl EvictionPolicy for LazyEviction {
    fn name(&self) -> &str {
        "lazy-eviction"
    }

    fn summary(&self) -> &str {
        "evicts tokens that did not matter for longer than ever before"
    }

    fn needs(&self) -> Measurement {
        Measurement::Recurrence
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let scores = view.scores()?;
        evict_lowest(view, |slot| scores[slot.0 as usize].into())
    }
}

/// The score of a token that last mattered `since` tokens ago, and whose longest interval between two times is
/// `longest`.
pub(crate) fn importance(since: u32, longest: u32) -> f32 {
    let twice_logistic = |x: f64| 2.0 / (1.0 + (-x).exp());
    let (since, longest) = (f64::from(since), f64::from(longest));
    let came_back = if longest > 0.0 { twice_logistic(1.0 - longest) } else { 0.0 };
    (twice_logistic(-1.0 - since / (longest + 1e-5)) + came_back) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the published formula that were computed independently.
    #[test]
    fn the_score_is_that_of_the_published_code() {
        for (since, longest, expected) in [
            (0, 0, 0.537_882_84), // 2 / (1 + e)
            (0, 1, 1.537_882_8),  // … + 2 / (1 + e⁰)
            (10, 10, 0.238_652_75),
            (100, 0, 0.0),
        ] {
            let found = importance(since, longest);
            assert!((found - expected).abs() < 1e-6, "{since} {longest}: {found}");
        }
        // A longer time since a token last mattered lowers its score. A longer earlier interval raises it.
        assert!(importance(20, 30) > importance(25, 30) && importance(20, 40) > importance(20, 30));
    }
}
