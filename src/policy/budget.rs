//! The budgets, which say how much to evict, and the one place that applies them.
use std::fmt;
use std::str::FromStr;

use super::{CacheView, KeepPlan, Outcome};
use crate::text_form::serde_as_text;
use crate::{Error, ErrorKind, Result, Slot};

/// How much a probe may evict. A budget is applied at every probe, to evictable tokens only.
///
/// Its text form is `score-sum:K`, `share:F`, `tokens:N` or `ratio:R`. [`FromStr`] and [`Display`](fmt::Display) are
/// inverse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Evict the lowest steps while the sum of their importances stays at most K. This follows the paper's
    /// description literally. An importance is a mean, so the effect shrinks with the length and the number of steps.
    ScoreSum(f64),
    /// The same with K = F × the sum over all evictable steps, 0 ≤ F ≤ 1. Compounds from probe to probe. *(ours)*
    Share(f64),
    /// Evict until at most N thinking tokens stay; exactly N where protection allows it.
    Tokens(usize),
    /// [`Budget::Tokens`] with N = ⌊R × all thinking tokens generated so far⌋, 0 ≤ R ≤ 1.
    Ratio(f64),
}

impl Default for Budget {
    /// The default budget, `ratio:0.75`. *(ours)*
    fn default() -> Self {
        Self::Ratio(0.75)
    }
}

impl Budget {
    /// How many thinking tokens may stay of the `thinking_tokens` generated so far; `None` for budgets that add up
    /// scores.
    pub fn token_target(&self, thinking_tokens: usize) -> Option<usize> {
        match *self {
            Self::Tokens(n) => Some(n),
            // 0.29 × 100 is one ulp short of 29. The small summand keeps such products from being rounded down.
            Self::Ratio(r) => Some((r * thinking_tokens as f64 + 1e-9).floor() as usize),
            Self::ScoreSum(_) | Self::Share(_) => None,
        }
    }

    /// Whether the budget adds up scores, so that the policy must measure some.
    pub fn needs_scores(&self) -> bool {
        matches!(self, Self::ScoreSum(_) | Self::Share(_))
    }

    /// Rejects NaN, negative sums, and fractions outside 0 to 1.
    ///
    /// # Errors
    /// [`ErrorKind::Input`], with the allowed values.
    pub fn check(&self) -> Result<()> {
        let (ok, expected) = match *self {
            Self::ScoreSum(k) => (k.is_finite() && k >= 0.0, "a finite sum ≥ 0"),
            Self::Share(f) => ((0.0..=1.0).contains(&f), "a fraction from 0 to 1"),
            Self::Ratio(r) => ((0.0..=1.0).contains(&r), "a fraction from 0 to 1"),
            Self::Tokens(_) => (true, ""),
        };
        if ok {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Input, "the budget is out of range").at("`budget`").expected(expected).found(self))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScoreSum(k) => write!(f, "score-sum:{k}"),
            Self::Share(share) => write!(f, "share:{share}"),
            Self::Tokens(n) => write!(f, "tokens:{n}"),
            Self::Ratio(r) => write!(f, "ratio:{r}"),
        }
    }
}

serde_as_text!(Budget);

impl FromStr for Budget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |expected: &str| {
            let e = Error::new(ErrorKind::Input, "this is not a budget").at("`budget`").expected(expected);
            e.found(format!("{text:?}"))
                .help("tokens:1024 keeps 1024 tokens of thinking, ratio:0.75 three quarters of it")
        };
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let number = || value.parse::<f64>().map_err(|_| wrong(&format!("{name}:NUMBER")));
        let budget = match name {
            "score-sum" => Self::ScoreSum(number()?),
            "share" => Self::Share(number()?),
            "ratio" => Self::Ratio(number()?),
            "tokens" => Self::Tokens(value.parse().map_err(|_| wrong("tokens:N with a whole number N"))?),
            _ => return Err(wrong("tokens:N, ratio:R, score-sum:K or share:F")),
        };
        budget.check().map(|()| budget)
    }
}

/// Tokens that a policy evicts together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The score that [`Budget::ScoreSum`] and [`Budget::Share`] add up; `None` for policies without scores.
    pub importance: Option<f64>,
    /// Evictable slots in the order of their eviction.
    pub slots: Vec<Slot>,
}

/// Evicts `groups`, first to last, until the view's budget is met, and keeps the rest.
///
/// Budgets that count tokens evict slot after slot and hit their target exactly: of the last group, only the first
/// slots are evicted. Budgets that add up scores evict whole groups and stop before the first that would exceed the
/// sum.
///
/// # Errors
/// [`ErrorKind::Policy`] when the budget adds up scores and a group has none; [`ErrorKind::Internal`] when the budget
/// adds up scores and groups are not in ascending order of importance, and for what [`KeepPlan::new`] rejects.
pub fn evict(view: &CacheView<'_>, groups: &[Group]) -> Result<KeepPlan> {
    let in_order = || groups.iter().flat_map(|g| g.slots.iter().copied());
    let (evicted, outcome): (Vec<Slot>, Outcome) = match view.budget().token_target(view.thinking_tokens()) {
        Some(target) => {
            let excess = view.cached_thinking().saturating_sub(target);
            let evicted: Vec<Slot> = in_order().take(excess).collect();
            let kept = view.cached_thinking() - evicted.len();
            let short = evicted.len() < excess;
            (evicted, if short { Outcome::Infeasible { asked: target, kept } } else { Outcome::Met })
        }
        None => {
            let count = groups_within_sum(view.budget(), groups)?;
            (groups[..count].iter().flat_map(|g| g.slots.iter().copied()).collect(), Outcome::Met)
        }
    };
    let mut keep = vec![true; view.tokens().len()];
    for &Slot(slot) in &evicted {
        let Some(flag) = keep.get_mut(slot as usize).filter(|f| **f) else {
            return Err(Error::new(ErrorKind::Internal, "a policy evicts a slot twice, or one that is not cached")
                .found(format!("slot {slot} of {}", view.tokens().len())));
        };
        *flag = false;
    }
    let kept: Vec<Slot> = (0..).zip(keep).filter_map(|(slot, keep)| keep.then_some(Slot(slot))).collect();
    Ok(KeepPlan::new(view, kept, outcome)?.with_eviction_order(evicted))
}

/// Evicts single tokens, those with the lowest scores first; of equal ones, the older. `score` gives the score of a
/// slot.
///
/// # Errors
/// As [`evict`].
pub(super) fn evict_lowest(view: &CacheView<'_>, score: impl Fn(Slot) -> f64) -> Result<KeepPlan> {
    let mut slots: Vec<Slot> = view.evictable().collect();
    // The sort is stable: of equal scores, the older slot is evicted first.
    slots.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
    let single = |slot: Slot| Group { importance: Some(score(slot)), slots: vec![slot] };
    evict(view, &slots.into_iter().map(single).collect::<Vec<_>>())
}

/// How many leading groups a budget that adds up scores evicts.
fn groups_within_sum(budget: Budget, groups: &[Group]) -> Result<usize> {
    let missing = || {
        Error::new(ErrorKind::Policy, "this policy has no scores for the budget to add up")
            .at("`budget`")
            .expected("tokens:N or ratio:R")
            .found(budget)
    };
    let importances: Vec<f64> = groups.iter().map(|g| g.importance.ok_or_else(missing)).collect::<Result<_>>()?;
    if !importances.is_sorted() {
        return Err(Error::new(ErrorKind::Internal, "groups are not in ascending order of importance"));
    }
    // The scores are summed in the same order as below, so that share:1 evicts all groups.
    let limit = match budget {
        Budget::ScoreSum(k) => k,
        Budget::Share(f) => f * importances.iter().sum::<f64>(),
        Budget::Tokens(_) | Budget::Ratio(_) => return Err(Error::new(ErrorKind::Internal, "not a sum of scores")),
    };
    let sums = importances.iter().scan(0.0, |sum, i| {
        *sum += i;
        Some(*sum)
    });
    Ok(sums.take_while(|&sum| sum <= limit).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Budget> {
        text.parse()
    }

    #[test]
    fn text_and_value_are_inverse() {
        for text in ["score-sum:0.02", "share:0.5", "tokens:512", "ratio:0.75", "tokens:0", "ratio:1", "share:0"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Budget::default().to_string(), "ratio:0.75");
    }

    #[test]
    fn a_wrong_budget_says_what_is_expected() {
        for text in
            ["", "tokens", "tokens:", "tokens:-1", "tokens:1.5", "ratio:x", "ratio:1.5", "ratio:-0.1", "ratio:NaN"]
        {
            assert!(parse(text).unwrap_err().to_string().contains("expected"), "{text}");
        }
        for text in ["score-sum:inf", "score-sum:-1", "share:2", "half:3", "512", "Tokens:5", " tokens:5"] {
            assert!(parse(text).unwrap_err().to_string().contains("expected"), "{text}");
        }
        assert!(parse("half:3").unwrap_err().to_string().contains("tokens:N, ratio:R, score-sum:K or share:F"));
    }

    #[test]
    fn ratio_rounds_down_but_not_below_a_whole_product() {
        assert_eq!(Budget::Ratio(0.75).token_target(201), Some(150));
        assert_eq!(Budget::Ratio(1.0).token_target(201), Some(201));
        assert_eq!(Budget::Ratio(0.0).token_target(201), Some(0));
        for percent in 0..=100 {
            assert_eq!(Budget::Ratio(percent as f64 / 100.0).token_target(1000), Some(percent * 10), "{percent} %");
            assert_eq!(Budget::Ratio(percent as f64 / 100.0).token_target(100), Some(percent), "{percent} %");
        }
    }
}
