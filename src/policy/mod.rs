//! Which cached tokens survive a probe: the trait, what a policy sees, and what it answers.
//!
//! ```text
//! CachedToken per slot ┐
//! scores per slot      ├─ CacheView ── EvictionPolicy::plan ── KeepPlan ── gather
//! steps, budget, seed  ┘  (protection,                        (checked)
//!                          step means)
//! ```
//!
//! A policy is pure: no GPU, no clock, no state from one probe to the next. What all policies share is not theirs to get
//! wrong: [`CacheView`] works out what is protected, [`budget::evict`] applies the budget, [`KeepPlan::new`] checks.
//!
//! **Direction.** A higher score means more important. The lowest go first.
//!
//! **Ties** go to the older: of equal scores the lower slot, of equal steps the earlier one, is evicted first.
//!
//! # To add a policy
//! 1. A file here, named after it, whose doc says idea, paper, deviation, direction.
//! 2. `needs`: what the engine must measure. 3. `plan`: [`Group`]s in the order they may go, handed to [`budget::evict`].
//! 4. `accepts`, where it cannot work with every budget. 5. A line in [`POLICIES`].
//! 6. A test in `tests.rs` on a view small enough to check by eye. The laws in `tests/laws_host.rs` and the oracle in
//!    `tests/policies.rs` run on it by themselves.
pub mod budget;
mod full;
mod h2o;
mod last_attention;
pub mod ledger;
mod plan;
mod r_kv;
mod random;
mod random_step;
pub mod registry;
pub mod scope;
pub mod scores;
mod snapkv;
mod streaming_llm;
mod think_clearly;
mod think_token;
mod view;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use budget::{Budget, Group};
pub use full::Full;
pub use h2o::H2o;
pub use last_attention::LastAttention;
pub use ledger::{Ledger, Snapshot};
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
pub use think_token::ThinkToken;
pub use view::{CURRENT_STEP_KEPT, CacheView, CachedToken, NO_CURRENT_STEP, StepInfo, ViewParts};

use crate::{Error, ErrorKind, Result};

/// The latest tokens that are never evicted. (ours)
pub const DEFAULT_WINDOW: usize = 64;

/// Chooses which slots survive. Pure: no GPU, no clock, no hidden state.
pub trait EvictionPolicy: fmt::Debug + Send + Sync {
    /// Its name: in requests, on the command line and in traces.
    fn name(&self) -> &str;

    /// One line for lists of policies, without a full stop.
    fn summary(&self) -> &str {
        ""
    }

    /// Whether it ever evicts anything. A sequence whose policy never does is neither probed nor pruned.
    fn evicts(&self) -> bool {
        true
    }

    /// Whether its plans depend on the seed.
    fn draws_lots(&self) -> bool {
        false
    }

    /// What the engine must measure before it asks for a plan.
    fn needs(&self) -> Measurement;

    /// Whether it can work with a budget, so that a front-end can refuse before anything is loaded.
    ///
    /// # Errors
    /// When the budget adds up scores and the policy measures none.
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

    /// The slots to keep. Same view, same plan, on every platform.
    ///
    /// # Errors
    /// When the view lacks what [`needs`](Self::needs) asks for, or the budget does not fit the policy. A budget that
    /// protection makes unreachable is no error: see [`Outcome::Infeasible`].
    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan>;
}

/// What a policy wants measured on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Measurement {
    /// Nothing: no probe is forwarded, plans are made at the same dates.
    Nothing,
    /// The attention of the probe's last token, `</think>`, to every cached slot.
    ProbeRow,
    /// The attention of the latest generated token; no probe is forwarded.
    LastRow,
    /// The attention that each slot has had from all queries so far, those of the prompt included, those of probes not; a sum per
    /// KV head, the query heads of its group averaged.
    Sums,
    /// The mean attention of the latest queries over the slots that are cached now, each query seeing what stands before it.
    Window {
        /// How many; they are protected as the window is.
        queries: usize,
    },
    /// [`Window`](Self::Window), and how alike each key is to the others: [`CacheView::similarity`].
    WindowAndKeys {
        /// As above.
        queries: usize,
    },
}

impl Measurement {
    /// Whether a probe must be forwarded.
    pub fn probes(self) -> bool {
        self == Self::ProbeRow
    }

    /// How many of the latest queries it looks through.
    pub fn queries(self) -> usize {
        match self {
            Self::Window { queries } | Self::WindowAndKeys { queries } => queries,
            _ => 0,
        }
    }

    /// Whether it gives a view scores.
    pub fn scores(self) -> bool {
        self != Self::Nothing
    }
}

/// What part of the sequence a token belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The prompt: template, question, and a `<think>` that the template wrote.
    Prompt,
    /// A `<think>` that the model wrote.
    ThinkOpen,
    /// The reasoning, the only part that is ever evicted.
    Thinking,
    /// `</think>`.
    ThinkClose,
    /// What the model wrote outside the thinking.
    Answer,
}

#[cfg(test)]
mod tests;
