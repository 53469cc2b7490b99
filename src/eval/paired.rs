//! Compares two ways of answering the same questions. Only the questions on which they differ count.

/// How often only one of two ways was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paired {
    /// Number of questions.
    pub of: usize,
    /// Questions that this way answers right and the other wrong.
    pub gained: usize,
    /// Questions that this way answers wrong and the other right.
    pub lost: usize,
}

impl Paired {
    /// How many more questions this way answers right.
    pub fn difference(self) -> i64 {
        self.gained as i64 - self.lost as i64
    }

    /// A 95 % confidence interval for the difference of the two shares of right answers, within -1 and 1. It is
    /// Wald's interval after half a question was added to each cell of the 2 x 2 table (Agresti and Min 2005), whose
    /// coverage is right for few questions as well.
    pub fn interval(self) -> (f64, f64) {
        let (gained, lost) = (self.gained as f64, self.lost as f64);
        interval(self.of, gained - lost, gained + lost)
    }

    /// The p-value of McNemar's exact two-sided test: the probability of a split of the differing questions at least
    /// as unequal as this one, if both ways are equally good. It is 1 if no question differs.
    pub fn p_value(self) -> f64 {
        let (n, fewer) = (self.gained + self.lost, self.gained.min(self.lost));
        // A sum of binomial coefficients over 2^n, in logarithms: n may be thousands.
        let (mut log, mut tail) = (-(n as f64) * std::f64::consts::LN_2, 0.0);
        for k in 0..=fewer {
            tail += log.exp();
            log += ((n - k) as f64 / (k + 1) as f64).ln();
        }
        (2.0 * tail).min(1.0)
    }
}

/// The quantile of the normal distribution for intervals of 95 %.
pub const Z: f64 = 1.959_963_984_540_054;

/// The interval of [`Paired::interval`] for the mean of differences from -1 to 1, one for each of `of` questions, of
/// which the sum and the sum of squares are given. If a question was answered several times, with several seeds, its
/// difference is the mean over these answers.
pub fn interval(of: usize, sum: f64, squares: f64) -> (f64, f64) {
    let of = of as f64 + 2.0;
    let difference = sum / of;
    let error = Z * ((squares + 1.0) / of - difference * difference).max(0.0).sqrt() / of.sqrt();
    ((difference - error).max(-1.0), (difference + error).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(gained: usize, lost: usize) -> f64 {
        Paired { of: 5000, gained, lost }.p_value()
    }

    #[test]
    fn p_is_the_tail_of_a_fair_coin() {
        // By hand: 2 (1 + 8) / 2^8; 2 / 2^6; 2 (1 + 10 + 45) / 2^10.
        for (gained, lost, expected) in
            [(7, 1, 18.0 / 256.0), (0, 6, 2.0 / 64.0), (8, 2, 112.0 / 1024.0), (0, 0, 1.0), (3, 3, 1.0), (4, 3, 1.0)]
        {
            assert!((p(gained, lost) - expected).abs() < 1e-12, "{gained} {lost}: {}", p(gained, lost));
            assert_eq!(p(gained, lost), p(lost, gained));
        }
        // Thousands neither overflow nor vanish: 2 Phi(-5) is 5.7e-7.
        let far = p(2125, 1875);
        assert!(far > 5e-5 && far < 1e-4, "{far}: a normal deviate of 3.95 with continuity correction has 8e-5");
        assert_eq!(p(4000, 0), 0.0);
    }

    /// For every true difference, about 95 of 100 intervals contain it: the coverage is summed over all tables,
    /// weighted by their probability.
    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let factorials: Vec<f64> = std::iter::once(0.0)
            .chain((1..=60).scan(0.0, |log, n| {
                *log += f64::ln(f64::from(n));
                Some(*log)
            }))
            .collect();
        for of in [6usize, 20, 50] {
            for (gain, loss) in [(0.1, 0.1), (0.3, 0.1), (0.4, 0.4), (0.6, 0.05), (0.05, 0.05)] {
                let mut held = 0.0;
                for gained in 0..=of {
                    for lost in 0..=of - gained {
                        let same = of - gained - lost;
                        let ways = factorials[of] - factorials[gained] - factorials[lost] - factorials[same];
                        let powers = gained as f64 * f64::ln(gain)
                            + lost as f64 * f64::ln(loss)
                            + same as f64 * f64::ln(1.0 - gain - loss);
                        let (low, high) = Paired { of, gained, lost }.interval();
                        if (low..=high).contains(&(gain - loss)) {
                            held += (ways + powers).exp();
                        }
                    }
                }
                assert!((0.93..=1.0).contains(&held), "{of} questions, {gain} and {loss}: {held}");
            }
        }
    }

    #[test]
    fn more_questions_narrow_it() {
        let width = |of| {
            let (low, high) = Paired { of, gained: of / 5, lost: of / 10 }.interval();
            high - low
        };
        assert!(width(10) > width(100) && width(100) > width(1000));
        assert_eq!(Paired { of: 10, gained: 2, lost: 5 }.difference(), -3);
    }
}
