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
        budget.check()?;
        if budget.needs_scores() {
            return Err(halves(budget));
        }
        Ok(())
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let sums = view.scores()?;
        let target = view.budget().token_target(view.thinking_tokens()).ok_or_else(|| halves(view.budget()))?;
        let thinking = (0..).map(Slot).zip(view.tokens()).filter(|(_, t)| t.step.is_some());
        // The slot at which the most recent half of the budget begins.
        let recent_from = thinking.map(|(slot, _)| slot).nth(view.cached_thinking().saturating_sub(target / 2));
        let is_recent = |slot: &Slot| recent_from.is_some_and(|from| *slot >= from);
        let (recent, mut old): (Vec<Slot>, Vec<Slot>) = view.evictable().partition(is_recent);
        // The sort is stable: of equal tokens, the older is evicted first.
        old.sort_by(|a, b| sums[a.0 as usize].total_cmp(&sums[b.0 as usize]));
        let group = |slots| Group { importance: None, slots };
        evict(view, &[group(old), group(recent)])
    }
}

fn halves(budget: Budget) -> Error {
    Error::new(ErrorKind::Policy, "h2o needs a budget that counts tokens, to split it in halves")
        .at("`budget`")
        .expected("tokens:N or ratio:R")
        .found(budget)
}
