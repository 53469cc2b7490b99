//! `snapkv`: the tokens to which the latest queries attend (Li et al. 2024, arXiv 2404.14469).
use super::budget::evict_lowest;
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// The number of latest queries whose attention counts; 32 in the paper's code.
const QUERIES: usize = 32;
/// Slots over which attention is averaged, so that the neighbours of an important token stay with it; 5 in the
/// paper's code.
const KERNEL: usize = 5;

/// Evicts the tokens to which the latest 32 queries attend least on average, pooled over neighbouring slots.
///
/// *Idea*: the continuation of a text attends to the same tokens as its end. *Paper*: SnapKV, arXiv 2404.14469.
/// *Direction*: the lowest pooled scores are evicted first.
/// *Deviation*: the paper compresses a prompt once; this prunes the thinking whenever a probe is due. The pool runs
/// over cached slots, which eviction has moved together. In scope `shared`, the default, all layers and heads are
/// averaged; the paper's scope is `head`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SnapKv;

impl EvictionPolicy for SnapKv {
    fn name(&self) -> &str {
        "snapkv"
    }

    fn summary(&self) -> &str {
        "evicts the tokens that the latest 32 queries attend to least, pooled"
    }

    fn needs(&self) -> Measurement {
        Measurement::Window { queries: QUERIES }
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let pooled = pool(view.scores()?, KERNEL, |votes| votes.sum::<f64>() / KERNEL as f64);
        evict_lowest(view, |slot| pooled[slot.0 as usize])
    }
}

/// Applies `reduce` to the `kernel` slots around each slot; fewer at the ends.
pub(super) fn pool(scores: &[f32], kernel: usize, reduce: impl Fn(&mut dyn Iterator<Item = f64>) -> f64) -> Vec<f64> {
    let around = |slot: usize| {
        let (first, end) = (slot.saturating_sub(kernel / 2), (slot + kernel / 2 + 1).min(scores.len()));
        reduce(&mut scores[first..end].iter().map(|s| f64::from(*s)))
    };
    (0..scores.len()).map(around).collect()
}
