//! `expected-attention`: what coming queries will attend to (Devoto et al. 2025, arXiv 2510.00636).
use super::budget::evict_lowest;
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// The number of latest queries that stand for the coming ones.
const QUERIES: usize = 32;
/// Number of the first tokens of a sequence that take no part in the softmax, because heads attend to them whatever
/// they say; 4 in kvpress.
const SINKS: usize = 4;

/// Evicts the tokens that the queries of the next 512 tokens can be expected to attend to least, times the length of
/// their values.
///
/// *Idea*: the queries of a model are nearly normally distributed, so the attention of the coming ones can be
/// computed in expectation instead of being observed. *Paper*: Expected Attention, arXiv 2510.00636, with the value
/// norms and the covariance of kvpress, whose ε is 0. Each query head's expectation is a softmax over the slots but
/// for the first 4; a KV head has the mean of its query heads, times the Euclidean length of the value (see
/// [`expected_attention`](mod@crate::kernels::expected_attention)).
/// *Direction*: the lowest scores are evicted first.
/// *Deviation*: mean and covariance come from the latest 32 queries, not from all of a prompt. It evicts when a probe
/// is due, and only from the thinking. In scope `shared`, the default, the scores of all layers and heads are
/// averaged; the paper's scope is `head`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExpectedAttention;

impl EvictionPolicy for ExpectedAttention {
    fn name(&self) -> &str {
        "expected-attention"
    }

    fn summary(&self) -> &str {
        "evicts what the coming queries are expected to attend to least"
    }

    fn needs(&self) -> Measurement {
        Measurement::Expected { queries: QUERIES }
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let scores = view.scores()?;
        evict_lowest(view, |slot| scores[slot.0 as usize].into())
    }
}

/// The scores of a KV head's slots. `logarithms` has the logarithms of the expected attention, a row for each of its
/// query heads. `lengths` has the lengths of the values. The first slots, which are never evicted, have the score 0.
pub(crate) fn scores(logarithms: &[&[f32]], lengths: &[f32]) -> Vec<f32> {
    let mut sums = vec![0f64; lengths.len()];
    for row in logarithms {
        let seen = &row[SINKS.min(row.len())..];
        let highest = seen.iter().copied().fold(f32::MIN, f32::max);
        let powers = || seen.iter().map(|v| f64::from(v - highest).exp());
        let total: f64 = powers().sum();
        sums.iter_mut().skip(SINKS).zip(powers()).for_each(|(sum, power)| *sum += power / total);
    }
    let mean = 1.0 / logarithms.len() as f64;
    sums.iter().zip(lengths).map(|(sum, length)| (sum * mean * f64::from(*length)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_softmaxes_times_lengths() {
        // The four sinks have the largest logarithms, and must not count.
        let log = |values: [f32; 3]| [[900.0; 4].as_slice(), &values.map(|v| v.ln() + 70.0)].concat();
        let (a, b) = (log([1.0, 2.0, 1.0]), log([3.0, 1.0, 4.0]));
        let found = scores(&[&a, &b], &[1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.5]);
        assert_eq!(found[..4], [0.0; 4]);
        assert!(scores(&[&[1.0; 2]], &[1.0; 2]).iter().all(|score| *score == 0.0), "a cache of sinks");
        let expected = [(0.25 + 0.375) / 2.0, (0.5 + 0.125) / 2.0 * 2.0, (0.25 + 0.5) / 2.0 * 0.5];
        for (found, expected) in found[4..].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
