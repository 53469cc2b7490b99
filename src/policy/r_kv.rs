//! `r-kv`: attention against redundancy (Cai et al. 2025, arXiv 2505.24133).
use super::budget::{Group, evict};
use super::snapkv::pool;
use super::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::{Error, ErrorKind, Result, Slot};

/// The weight of attention, λ in the paper.
const LAMBDA: f64 = 0.1;
/// The number of latest queries whose attention counts, α in the paper.
const QUERIES: usize = 8;
/// Width of the max pool over the attention, in slots; the value of the published code.
const KERNEL: usize = 7;

/// Scores tokens by λ · attention − (1 − λ) · redundancy with λ = 0.1, so that tokens with little attention and with
/// keys like those of other tokens are evicted.
///
/// *Idea*: reasoning repeats itself, and attention alone would keep all copies of an important thought.
/// *Paper*: R-KV, arXiv 2505.24133. Attention is the mean over the latest 8 queries, max-pooled over 7 slots.
/// Redundancy is the softmax, over all slots, of a key's mean cosine similarity to the other keys; the latest of
/// several similar tokens is spared (see [`key_similarity`](mod@crate::kernels::key_similarity)).
/// *Direction*: the lowest scores are evicted first.
/// *Deviation*: attention is the model's own softmax over all slots, whereas the paper leaves out the window. It
/// evicts when a probe is due instead of every 128 tokens, and only from the thinking. In scope `shared`, the
/// default, attention and similarity are averaged over all layers and heads before the softmax; the paper's scope is
/// `head`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RKv;

impl EvictionPolicy for RKv {
    fn name(&self) -> &str {
        "r-kv"
    }

    fn summary(&self) -> &str {
        "attention of the latest 8 queries against similarity of keys"
    }

    fn needs(&self) -> Measurement {
        Measurement::WindowAndKeys { queries: QUERIES }
    }

    fn accepts(&self, budget: Budget) -> Result<()> {
        budget.check()?;
        if budget.needs_scores() {
            return Err(Error::new(
                ErrorKind::Policy,
                "the scores of r-kv are differences, which a budget cannot add up",
            )
            .at("`budget`")
            .expected("tokens:N or ratio:R")
            .found(budget));
        }
        Ok(())
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        self.accepts(view.budget())?;
        let attention = pool(view.scores()?, KERNEL, |votes| votes.fold(0.0, f64::max));
        let redundancy = softmax(view.similarity()?);
        let score = |slot: &Slot| LAMBDA * attention[slot.0 as usize] - (1.0 - LAMBDA) * redundancy[slot.0 as usize];
        let mut slots: Vec<Slot> = view.evictable().collect();
        // The sort is stable: of equal tokens, the older is evicted first.
        slots.sort_by(|a, b| score(a).total_cmp(&score(b)));
        evict(view, &[Group { importance: None, slots }])
    }
}

fn softmax(values: &[f32]) -> Vec<f64> {
    let top = values.iter().copied().fold(f32::MIN, f32::max);
    let powers: Vec<f64> = values.iter().map(|v| f64::from(v - top).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.iter().map(|p| p / total).collect()
}
