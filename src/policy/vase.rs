//! `vase`: large values, and a draw by attention (Chang et al. 2026, arXiv 2606.03928).
use super::budget::{Group, evict};
use super::snapkv::pool;
use super::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::{Error, ErrorKind, Result, Slot};

/// The number of latest queries whose attention counts.
const QUERIES: usize = 32;
/// Slots over which attention is averaged; 5 in the published code.
const KERNEL: usize = 5;
/// The part of the budget for large values is one in this many tokens: 256 of 1,024 tokens in the published scripts.
const LARGE: usize = 4;

/// Keeps the tokens whose values have the largest range, a quarter of the budget, and draws the others without
/// replacement, with the attention of the latest 32 queries as their weights.
///
/// *Idea*: evicting the few values of abnormally large magnitude makes models repeat themselves, and a draw keeps a
/// more diverse cache than the highest scores do. *Paper*: VaSE, arXiv 2606.03928, the variant with attention
/// (`range_sink_sample_attn` of the published code). A value's range is its largest component minus its smallest.
/// *Direction*: tokens that were not drawn are evicted first, and those with large values last. *Deviation*: the
/// published scripts use the latest 64 queries; this policy uses the latest 32, which the cache keeps. Attention is
/// the model's own softmax over all slots, and its pool reaches into the window, where the paper leaves the latest
/// tokens out of both. Window and current step are part of the budget, so that at a small one only large values may
/// be left to keep. The sinks, which the paper keeps by a rule of their own, are in the prompt, which stays. It
/// evicts when a probe is due, and only from the thinking; the budget counts thinking tokens. In scope `shared`, the
/// default, attention and ranges are averaged over all layers and heads; the paper's scope is `head`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vase;

impl EvictionPolicy for Vase {
    fn name(&self) -> &str {
        "vase"
    }

    fn summary(&self) -> &str {
        "keeps large values, and draws the others by the attention to them"
    }

    fn draws_lots(&self) -> bool {
        true
    }

    fn needs(&self) -> Measurement {
        Measurement::WindowAndValues { queries: QUERIES }
    }

    fn accepts(&self, budget: Budget) -> Result<()> {
        budget.check()?;
        if budget.needs_scores() {
            return Err(shares(budget));
        }
        Ok(())
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let attention = pool(view.scores()?, KERNEL, |votes| votes.sum::<f64>() / KERNEL as f64);
        let range = view.value_range()?;
        let target = view.budget().token_target(view.thinking_tokens()).ok_or_else(|| shares(view.budget()))?;
        let mut free: Vec<Slot> = view.evictable().collect();
        let staying = free.len().saturating_sub(view.cached_thinking().saturating_sub(target));
        // The sorts are stable: of equal tokens, the older is evicted first.
        free.sort_by(|a, b| range[a.0 as usize].total_cmp(&range[b.0 as usize]));
        let large = free.split_off(free.len() - staying.min(target / LARGE));
        free.sort();
        let drawn = drawn_last(free, |slot| attention[slot.0 as usize], &mut view.rng());
        let group = |slots| Group { importance: None, slots };
        evict(view, &[group(drawn), group(large)])
    }
}

/// `items` in the reverse order of a draw without replacement, in which the chance of the next item is its share of
/// the weights that are left. Each item gets an exponentially distributed time whose rate is its weight, and the
/// items with the earliest times are drawn first (Efraimidis and Spirakis 2006). Items without weight are drawn last.
fn drawn_last<T>(items: Vec<T>, weight: impl Fn(&T) -> f64, lot: &mut impl FnMut() -> u64) -> Vec<T> {
    let mut waiting: Vec<(f64, T)> = items
        .into_iter()
        .map(|item| {
            // From 2⁻⁵⁴ to 1: its logarithm is finite and not positive.
            let uniform = ((lot() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            (-uniform.ln() / weight(&item).max(f64::MIN_POSITIVE), item)
        })
        .collect();
    waiting.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    waiting.into_iter().map(|(_, item)| item).collect()
}

fn shares(budget: Budget) -> Error {
    Error::new(ErrorKind::Policy, "vase needs a budget that counts tokens, a quarter of which is for large values")
        .at("`budget`")
        .expected("tokens:N or ratio:R")
        .found(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_follows_the_weights() {
        let mut state = 1u64;
        let mut lot = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 29)
        };
        let weights = [0.0, 1.0, 2.0, 5.0];
        let (mut first, mut second_after_3) = ([0; 4], [0; 4]);
        for _ in 0..20_000 {
            let order = drawn_last(vec![0, 1, 2, 3], |item| weights[*item], &mut lot);
            assert_eq!(order[0], 0, "without weight it is drawn last");
            first[order[3]] += 1;
            if order[3] == 3 {
                second_after_3[order[2]] += 1;
            }
        }
        // Five standard deviations of a share of 20,000 draws are below 0.018.
        let share = |count: i32, of: i32| f64::from(count) / f64::from(of);
        for (item, expected) in [(1, 0.125), (2, 0.25), (3, 0.625)] {
            assert!((share(first[item], 20_000) - expected).abs() < 0.018, "{first:?}");
        }
        assert!((share(second_after_3[2], first[3]) - 2.0 / 3.0).abs() < 0.022, "{second_after_3:?}");
    }
}
