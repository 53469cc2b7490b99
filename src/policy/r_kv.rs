//! `r-kv`: attention against redundancy (Cai et al. 2025, arXiv 2505.24133).
use super::budget::{Group, evict};
use super::snapkv::pool;
use super::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::{Error, ErrorKind, Result, Slot};

/// Weight of attention; the paper's λ.
const LAMBDA: f64 = 0.1;
/// Latest queries that vote; the paper's α.
const QUERIES: usize = 8;
/// Slots of the max pool over the votes; the published code's.
const KERNEL: usize = 7;

/// Evicts tokens by λ · attention − (1 − λ) · redundancy, λ = 0.1: what is seldom looked at and much like other keys.
///
/// *Idea*: reasoning repeats itself, and attention alone keeps all copies of what it likes. *Paper*: R-KV, arXiv 2505.24133.
/// Attention is the mean of the latest 8 queries', max-pooled over 7 slots; redundancy the softmax over all slots of a key's
/// mean cosine similarity to the others, in which a token's latest look-alike is spared (see
/// [`key_similarity`](mod@crate::kernels::key_similarity)). *Direction*: the lowest go first. *Deviation*: attention is the
/// model's own softmax over all slots, the paper's leaves the window out of it; it evicts at the probes' dates instead of every
/// 128 tokens, only from the thinking; in scope `shared`, the default, attention and similarity are averaged over all layers and
/// heads before the softmax (`--scope head` is the paper's).
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
            return Err(Error::new(ErrorKind::Policy, "r-kv scores by differences, which do not add up to a budget")
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
        // Stable: of equal tokens the older goes first.
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
