//! `full`: the whole cache, with which every policy is compared.
use super::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement, Outcome};
use crate::{Result, Slot};

/// Evicts nothing, whatever the budget.
#[derive(Debug, Clone, Copy, Default)]
pub struct Full;

impl EvictionPolicy for Full {
    fn name(&self) -> &str {
        "full"
    }

    fn summary(&self) -> &str {
        "evicts nothing"
    }

    fn evicts(&self) -> bool {
        false
    }

    fn needs(&self) -> Measurement {
        Measurement::Nothing
    }

    fn accepts(&self, budget: Budget) -> Result<()> {
        budget.check()
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let all: Vec<Slot> = (0..).map(Slot).take(view.tokens().len()).collect();
        KeepPlan::new(view, all, Outcome::Unbudgeted)
    }
}
