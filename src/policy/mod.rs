//! Which cached tokens survive a probe: the trait of a policy, its input and its output.
//!
//! ```text
//! CachedToken per slot ┐
//! scores per slot      ├─ CacheView ── EvictionPolicy::plan ── KeepPlan ── gather
//! steps, budget, seed  ┘  (protection,                        (checked)
//!                          step means)
//! ```
//!
//! A policy is pure: it uses no GPU and no clock, and keeps no state from one probe to the next. The steps that all
//! policies have in common are done once, outside of them: [`CacheView`] determines which slots are protected,
//! [`budget::evict`] applies the budget, and [`KeepPlan::new`] checks the result.
//!
//! **Direction.** A higher score means more important. The lowest scores are evicted first.
//!
//! **Ties.** Of equal scores, the lower slot is evicted first; of equal steps, the earlier one.
//!
//! CONTRIBUTING.md says, step by step, how a policy is added.
pub mod budget;
pub(crate) mod expected_attention;
mod full;
mod h2o;
mod last_attention;
pub(crate) mod lazy_eviction;
pub(crate) mod ledger;
mod plan;
mod r_kv;
mod random;
mod random_step;
mod registry;
mod scope;
pub(crate) mod scores;
mod snapkv;
mod streaming_llm;
mod think_clearly;
mod think_h2o;
mod think_token;
mod vase;
mod view;

use std::any::Any;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use budget::{Budget, Group};
pub use expected_attention::ExpectedAttention;
pub use full::Full;
pub use h2o::H2o;
pub use last_attention::LastAttention;
pub use lazy_eviction::LazyEviction;
pub(crate) use ledger::{Ledger, Snapshot};
pub use plan::{KeepPlan, Kept, Outcome};
pub use r_kv::RKv;
pub use random::Random;
pub use random_step::RandomStep;
pub use registry::{POLICIES, PolicyRef, by_name};
pub use scope::{Layers, Normalise, Positions, Scope, Sets};
pub use scores::Measured;
pub use snapkv::SnapKv;
pub use streaming_llm::StreamingLlm;
pub use think_clearly::ThinkClearly;
pub use think_h2o::ThinkH2o;
pub use think_token::ThinkToken;
pub use vase::Vase;
pub use view::{CURRENT_STEP_KEPT, CacheView, CachedToken, NO_CURRENT_STEP, StepInfo, ViewParts};

use crate::{Error, ErrorKind, Result};

/// The default number of the latest tokens that are never evicted. *(ours)*
pub const DEFAULT_WINDOW: usize = 64;

/// Chooses which slots survive.
pub trait EvictionPolicy: Any + fmt::Debug + Send + Sync {
    /// The policy's name in requests, on the command line and in traces.
    fn name(&self) -> &str;

    /// One line for lists of policies, without a full stop.
    fn summary(&self) -> &str {
        ""
    }

    /// Whether the policy ever evicts anything. If not, its sequences are neither probed nor pruned.
    fn evicts(&self) -> bool {
        true
    }

    /// Whether its plans depend on the seed.
    fn draws_lots(&self) -> bool {
        false
    }

    /// Whether the policy is a control: it knows nothing of the text, so any other policy has to be better in a cache
    /// of the same size.
    fn is_control(&self) -> bool {
        false
    }

    /// What the engine must measure before it asks for a plan.
    fn needs(&self) -> Measurement;

    /// Checks that the policy can work with a budget, so that a request can be refused before anything is loaded.
    ///
    /// # Errors
    /// [`ErrorKind::Policy`] when the budget adds up scores and the policy measures none; [`ErrorKind::Input`] for a
    /// budget out of range.
    fn accepts(&self, budget: Budget) -> Result<()> {
        budget.check()?;
        if budget.needs_scores() && !self.needs().scores() {
            return Err(Error::new(
                ErrorKind::Policy,
                format!("{} has no scores for the budget to add up", self.name()),
            )
            .at("`budget`")
            .expected("tokens:N or ratio:R")
            .found(budget));
        }
        Ok(())
    }

    /// The slots to keep. The same view gives the same plan on every platform.
    ///
    /// # Errors
    /// When the view lacks what [`needs`](Self::needs) asks for, or the budget does not fit the policy. A budget that
    /// cannot be reached because too many slots are protected is no error: see [`Outcome::Infeasible`].
    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan>;
}

/// The measurement on the device that a policy needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Measurement {
    /// Nothing. No probe is forwarded; plans are made at the same points as with one.
    Nothing,
    /// The attention of the probe's last token, `</think>`, to every cached slot.
    ProbeRow,
    /// The attention of the latest generated token to every cached slot, averaged over heads and layers as the scope
    /// says. No probe is forwarded.
    LastRow,
    /// The sum of the attention that each slot received from all queries so far, including those of the prompt and
    /// excluding those of probes. One sum per KV head, over the mean of its query heads.
    Sums,
    /// [`ProbeRow`](Self::ProbeRow) and, in addition, the numbers of [`Sums`](Self::Sums) as [`CacheView::received`].
    ProbeRowAndSums,
    /// The mean attention of the latest queries to the slots that are cached now. Each query sees the slots before
    /// it.
    Window {
        /// The number of queries. Their tokens are protected like those of the window.
        queries: usize,
    },
    /// [`Window`](Self::Window) and, in addition, [`CacheView::similarity`] of the keys.
    WindowAndKeys {
        /// As in [`Window`](Self::Window).
        queries: usize,
    },
    /// [`Window`](Self::Window) and, in addition, [`CacheView::value_range`].
    WindowAndValues {
        /// As in [`Window`](Self::Window).
        queries: usize,
    },
    /// The score of [`LazyEviction`], from when each slot last mattered to a query and the longest time in which it
    /// did not. One record per KV head, of the mean attention of its query heads.
    Recurrence,
    /// The attention that the slots can expect from coming queries, times the length of their values, as in
    /// [`ExpectedAttention`]: one row per KV head.
    Expected {
        /// The number of latest queries that stand for the coming ones. Their tokens are protected like those of the
        /// window.
        queries: usize,
    },
}

impl Measurement {
    /// Whether a probe must be forwarded.
    pub fn probes(self) -> bool {
        matches!(self, Self::ProbeRow | Self::ProbeRowAndSums)
    }

    /// Whether the attention that each slot receives is added up from the first query on.
    pub(crate) fn adds_up(self) -> bool {
        matches!(self, Self::Sums | Self::ProbeRowAndSums)
    }

    /// The number of latest queries whose attention counts; 0 if none does.
    pub fn queries(self) -> usize {
        match self {
            Self::Window { queries }
            | Self::WindowAndKeys { queries }
            | Self::WindowAndValues { queries }
            | Self::Expected { queries } => queries,
            _ => 0,
        }
    }

    /// Whether something is recorded of every token that is forwarded.
    pub(crate) fn follows_every_token(self) -> bool {
        self.adds_up() || self.queries() > 0 || self == Self::Recurrence
    }

    /// Whether the measurement provides a view's scores.
    pub fn scores(self) -> bool {
        self != Self::Nothing
    }
}

/// The part of the sequence to which a token belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The prompt: template, question, and a `<think>` that the template wrote.
    Prompt,
    /// A `<think>` that the model wrote.
    ThinkOpen,
    /// The reasoning between `<think>` and `</think>`, the only part that is ever evicted.
    Thinking,
    /// The token `</think>`.
    ThinkClose,
    /// The text that the model wrote outside the thinking.
    Answer,
}

#[cfg(test)]
mod tests;
