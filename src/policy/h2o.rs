//! `h2o`: heavy hitters (Zhang et al. 2023, arXiv 2306.14048).
use super::budget::{Group, evict};
use super::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::{Error, ErrorKind, Result, Slot};

/// Keeps the tokens that received most attention from **all** queries so far, and the most recent tokens. Each of the
/// two gets half of the budget.
///
/// *Idea*: at every position a few tokens receive most of the attention, and they are mostly the same tokens.
/// *Paper*: H2O: Heavy-Hitter Oracle, arXiv 2306.14048.
/// *Direction*: tokens that are not recent are evicted first, the lowest sums first; then recent ones, the oldest
/// first.
/// *Deviation*: it evicts when a probe is due instead of at every token, and only from the thinking. The budget
/// counts thinking tokens; the prompt stays, as with every policy here. With an odd budget the recent half is the
/// smaller one. In scope `shared`, the default, the sums of all layers and KV heads are averaged; the paper's scope
/// is `head`.
#[derive(Debug, Clone, Copy, Default)]
pub struct H2o;

impl EvictionPolicy for H2o {
    fn name(&self) -> &str {
        "h2o"
    }

    fn summary(&self) -> &str {
        "keeps the tokens that drew most attention so far, and the recent ones"
    }

    fn needs(&self) -> Measurement {
        Measurement::Sums
    }

    fn accepts(&self, budget: Budget) -> Result<()> {
        accepts_halves(self.name(), budget)
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let sums = view.scores()?;
        plan_halves(self.name(), view, |slot| sums[slot.0 as usize].into())
    }
}

/// Refuses a budget that cannot be divided into halves. `policy` is the name of the policy.
pub(super) fn accepts_halves(policy: &str, budget: Budget) -> Result<()> {
    budget.check()?;
    if budget.needs_scores() { Err(no_halves(policy, budget)) } else { Ok(()) }
}

/// The plan in which one half of the budget is for the latest thinking tokens and the other half for the highest scores
/// among the tokens before them. `policy` is the name of the policy.
pub(super) fn plan_halves(policy: &str, view: &CacheView<'_>, score: impl Fn(Slot) -> f64) -> Result<KeepPlan> {
    let target = view.budget().token_target(view.thinking_tokens()).ok_or_else(|| no_halves(policy, view.budget()))?;
    let thinking = (0..).map(Slot).zip(view.tokens()).filter(|(_, t)| t.step.is_some());
    // The latest half of the budget begins at this slot.
    let recent_from = thinking.map(|(slot, _)| slot).nth(view.cached_thinking().saturating_sub(target / 2));
    let is_recent = |slot: &Slot| recent_from.is_some_and(|from| *slot >= from);
    let (recent, mut old): (Vec<Slot>, Vec<Slot>) = view.evictable().partition(is_recent);
    // The sort is stable: of equal tokens, the older is evicted first.
    old.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
    let group = |slots| Group { importance: None, slots };
    evict(view, &[group(old), group(recent)])
}

fn no_halves(policy: &str, budget: Budget) -> Error {
    Error::new(ErrorKind::Policy, format!("{policy} needs a budget that counts tokens, to split it in halves"))
        .at("`budget`")
        .expected("tokens:N or ratio:R")
        .found(budget)
}
