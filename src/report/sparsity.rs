//! Measures of how unevenly attention is spread.
//!
//! Both measures are read from one Lorenz curve. It sorts tokens by the attention that they receive, least first, and
//! says which share of the attention the first n of them hold. A step of `n` cached tokens counts as `n` tokens with
//! the mean of the step. Differences inside a step are not seen, so both measures are lower bounds of those of the
//! tokens.

/// The Lorenz curve of attention over the tokens of steps.
#[derive(Debug, Clone)]
pub struct Lorenz {
    /// (tokens, attention) of each step, the least attention per token first.
    steps: Vec<(f64, f64)>,
    tokens: f64,
    attention: f64,
}

impl Lorenz {
    /// Takes (mean attention, tokens) of each step. Returns `None` without tokens, without attention, and where their
    /// sum is not finite. Negative and undefined means count as 0.
    pub fn new(steps: impl IntoIterator<Item = (f32, usize)>) -> Option<Self> {
        let clean = |(mean, tokens): (f32, usize)| (f64::from(mean.max(0.0)), tokens as f64);
        let mut steps: Vec<(f64, f64)> = steps.into_iter().map(clean).collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        steps.iter_mut().for_each(|s| *s = (s.1, s.0 * s.1));
        let (tokens, attention) = steps.iter().fold((0.0, 0.0), |sum, s| (sum.0 + s.0, sum.1 + s.1));
        (tokens > 0.0 && attention > 0.0 && attention.is_finite()).then_some(Self { steps, tokens, attention })
    }

    /// The Gini coefficient: 0 where every token receives the same attention, almost 1 where one token receives all.
    /// It is twice the area between the curve and the diagonal.
    pub fn gini(&self) -> f64 {
        let mut below = 0.0;
        let twice_under: f64 = self
            .steps
            .iter()
            .map(|&(tokens, attention)| {
                let from = below;
                below += attention;
                tokens * (from + below)
            })
            .sum();
        1.0 - twice_under / (self.tokens * self.attention)
    }

    /// The share of the attention that is held by the `share` (0 to 1) of tokens with the most attention.
    pub fn top(&self, share: f64) -> f64 {
        let mut left = self.tokens * share.clamp(0.0, 1.0);
        let mut held = 0.0;
        for &(tokens, attention) in self.steps.iter().rev().filter(|s| s.0 > 0.0) {
            let taken = left.min(tokens);
            held += attention * taken / tokens;
            left -= taken;
        }
        held / self.attention
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lorenz(steps: &[(f32, usize)]) -> Lorenz {
        Lorenz::new(steps.iter().copied()).unwrap()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn even_attention_is_0_and_one_token_with_all_of_it_nearly_1() {
        let even = lorenz(&[(0.25, 3), (0.25, 1), (0.25, 40)]);
        close(even.gini(), 0.0);
        close(even.top(0.1), 0.1);
        let all = lorenz(&[(1.0, 1), (0.0, 99)]);
        close(all.gini(), 0.99);
        close(all.top(0.1), 1.0);
        close(all.top(0.005), 0.5);
    }

    #[test]
    fn it_is_the_mean_difference_of_the_tokens() {
        // The definition: the mean absolute difference of all pairs over twice the mean.
        let steps = [(0.5f32, 2), (0.125, 5), (0.0, 3), (0.25, 1)];
        let tokens: Vec<f64> = steps.iter().flat_map(|&(v, n)| vec![f64::from(v); n]).collect();
        let n = tokens.len() as f64;
        let differences: f64 = tokens.iter().flat_map(|a| tokens.iter().map(move |b| (a - b).abs())).sum();
        let mean = tokens.iter().sum::<f64>() / n;
        close(lorenz(&steps).gini(), differences / (2.0 * n * n * mean));
        // The top 2 of 11, and half of the third.
        close(lorenz(&steps).top(2.5 / 11.0), (1.0 + 0.125) / (1.0 + 0.625 + 0.25));
    }

    #[test]
    fn nothing_has_no_measure() {
        assert!(Lorenz::new([]).is_none() && Lorenz::new([(0.0, 5)]).is_none() && Lorenz::new([(0.5, 0)]).is_none());
        assert!(Lorenz::new([(f32::NAN, 5)]).is_none() && Lorenz::new([(f32::INFINITY, 5)]).is_none());
        close(lorenz(&[(f32::NAN, 1), (-1.0, 1), (0.5, 2)]).gini(), 0.5);
    }
}
