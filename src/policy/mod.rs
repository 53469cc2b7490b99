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
mod r_kv;
mod random;
mod random_step;
pub mod scope;
pub mod scores;
mod snapkv;
mod streaming_llm;
mod think_clearly;
mod think_token;

use std::fmt;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

pub use budget::{Budget, Group};
pub use full::Full;
pub use h2o::H2o;
pub use last_attention::LastAttention;
pub use ledger::{Ledger, Snapshot};
pub use r_kv::RKv;
pub use random::Random;
pub use random_step::RandomStep;
pub use scope::{Layers, Normalise, Positions, Scope, Sets};
pub use scores::Measured;
pub use snapkv::SnapKv;
pub use streaming_llm::StreamingLlm;
pub use think_clearly::ThinkClearly;
pub use think_token::ThinkToken;

use crate::steps::Step;
use crate::{Error, ErrorKind, Position, Result, Slot};

/// The policy when none is named.
pub const DEFAULT_POLICY: &str = "think-clearly";
/// The latest tokens that are never evicted. (ours)
pub const DEFAULT_WINDOW: usize = 64;
/// How many tokens of the step being written are never evicted, counted from its end. (ours)
pub const CURRENT_STEP_KEPT: usize = 256;

/// [`ViewParts::current_step`] of a sequence without text: nobody can tell which step is being written, and only the window
/// protects.
pub const NO_CURRENT_STEP: usize = usize::MAX;

/// Chooses which slots survive. Pure: no GPU, no clock, no hidden state.
pub trait EvictionPolicy: fmt::Debug + Send + Sync {
    /// Its name on the command line and in traces.
    fn name(&self) -> &'static str;

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
            .at("--budget")
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

/// What lies in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedToken {
    /// When it was written; ascending over the slots.
    pub position: Position,
    /// Its part of the sequence.
    pub role: Role,
    /// Its step, as an index into [`ViewParts::steps`], if and only if it is [`Role::Thinking`].
    pub step: Option<u32>,
}

impl CachedToken {
    /// A token of the thinking.
    pub fn thinking(position: Position, step: u32) -> Self {
        Self { position, role: Role::Thinking, step: Some(step) }
    }

    /// A token outside the thinking.
    pub fn other(position: Position, role: Role) -> Self {
        Self { position, role, step: None }
    }
}

/// A step as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepInfo {
    /// Byte offset in the full logical text of the thinking.
    pub id: usize,
    /// Tokens it has, evicted ones included.
    pub tokens: usize,
}

impl StepInfo {
    /// Counts the tokens of each step.
    ///
    /// # Panics
    /// When `token_steps` is not what [`crate::steps::assign`] gives for these steps.
    pub fn count(steps: &[Step], token_steps: &[usize]) -> Vec<Self> {
        let mut infos: Vec<Self> = steps.iter().map(|s| Self { id: s.start, tokens: 0 }).collect();
        for &step in token_steps {
            infos[step].tokens += 1;
        }
        infos
    }
}

/// The plain facts of one probe, from which [`CacheView::new`] makes a view.
#[derive(Debug, Clone, Copy)]
pub struct ViewParts<'a> {
    /// One per cached slot, in slot order. The probe's own rows are rolled back and absent.
    pub tokens: &'a [CachedToken],
    /// All steps so far, those without cached tokens included.
    pub steps: &'a [StepInfo],
    /// The step being written, an index into `steps`.
    pub current_step: usize,
    /// Thinking tokens generated so far, evicted ones included.
    pub thinking_tokens: usize,
    /// One per slot, already reduced over the heads and layers in scope; higher is more important.
    pub scores: Option<&'a [f32]>,
    /// One per slot, where keys are compared: the mean cosine similarity of its key to the others.
    pub similarity: Option<&'a [f32]>,
    /// How much may go.
    pub budget: Budget,
    /// How many of the latest tokens are protected.
    pub window: usize,
    /// For policies that draw lots.
    pub seed: u64,
    /// Which probe of this sequence it is, from 0.
    pub probe: u64,
    /// Which kept set of this probe it is, from 0; always 0 in scope `shared`.
    pub set: usize,
}

/// One kept set as a policy sees it, with what is derived from it once for all policies.
///
/// In scope `shared` there is one view per probe. A scope with several sets (per layer, per KV head) has one view for each,
/// of that set's slots and scores: policies do not see the difference.
#[derive(Debug, Clone)]
pub struct CacheView<'a> {
    parts: ViewParts<'a>,
    protected: Vec<bool>,
    cached_thinking: usize,
    step_slots: Vec<Vec<Slot>>,
    step_importance: Vec<Option<f64>>,
}

impl<'a> CacheView<'a> {
    /// Checks the facts and derives protection and step means.
    ///
    /// Protected: everything outside the thinking, the latest `window` tokens, and the latest [`CURRENT_STEP_KEPT`] tokens
    /// of the current step.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] for a score that is NaN or infinite; [`ErrorKind::Input`] for a budget out of range;
    /// [`ErrorKind::Internal`] for facts that contradict each other.
    pub fn new(parts: ViewParts<'a>) -> Result<Self> {
        parts.budget.check()?;
        check_tokens(&parts)?;
        for scores in [parts.scores, parts.similarity].into_iter().flatten() {
            check_scores(scores, parts.tokens.len())?;
        }

        let mut step_slots = vec![Vec::new(); parts.steps.len()];
        for (slot, token) in (0..).map(Slot).zip(parts.tokens) {
            if let Some(step) = token.step {
                step_slots[step as usize].push(slot);
            }
        }
        let cached_thinking = step_slots.iter().map(Vec::len).sum();
        if cached_thinking > parts.thinking_tokens {
            return Err(contradiction("more thinking tokens are cached than were generated")
                .expected(format!("at most {}", parts.thinking_tokens))
                .found(cached_thinking));
        }

        let mut protected: Vec<bool> = parts.tokens.iter().map(|t| t.role != Role::Thinking).collect();
        let window_from = parts.tokens.len().saturating_sub(parts.window);
        protected[window_from..].fill(true);
        for slot in step_slots.get(parts.current_step).into_iter().flatten().rev().take(CURRENT_STEP_KEPT) {
            protected[slot.0 as usize] = true;
        }

        let mean = |slots: &Vec<Slot>| {
            let scores = parts.scores.filter(|_| !slots.is_empty())?;
            Some(slots.iter().map(|s| f64::from(scores[s.0 as usize])).sum::<f64>() / slots.len() as f64)
        };
        let step_importance = step_slots.iter().map(mean).collect();
        Ok(Self { parts, protected, cached_thinking, step_slots, step_importance })
    }

    /// What lies in each slot.
    pub fn tokens(&self) -> &'a [CachedToken] {
        self.parts.tokens
    }

    /// All steps so far.
    pub fn steps(&self) -> &'a [StepInfo] {
        self.parts.steps
    }

    /// The step being written.
    pub fn current_step(&self) -> usize {
        self.parts.current_step
    }

    /// Thinking tokens generated so far, evicted ones included.
    pub fn thinking_tokens(&self) -> usize {
        self.parts.thinking_tokens
    }

    /// Thinking tokens in the cache, protected ones included.
    pub fn cached_thinking(&self) -> usize {
        self.cached_thinking
    }

    /// How much may go.
    pub fn budget(&self) -> Budget {
        self.parts.budget
    }

    /// The index of this probe.
    pub fn probe(&self) -> u64 {
        self.parts.probe
    }

    /// One finite score per slot.
    ///
    /// # Errors
    /// When nothing was measured.
    pub fn scores(&self) -> Result<&'a [f32]> {
        let missing = || Error::new(ErrorKind::Policy, "this policy needs scores and none were measured");
        self.parts.scores.ok_or_else(|| missing().help("run the probe before asking for a plan"))
    }

    /// How alike each slot's key is to the others, finite: higher is more redundant.
    ///
    /// # Errors
    /// When keys were not compared.
    pub fn similarity(&self) -> Result<&'a [f32]> {
        let missing = || Error::new(ErrorKind::Policy, "this policy needs keys compared and they were not");
        self.parts.similarity.ok_or_else(missing)
    }

    /// Whether each slot must be kept.
    pub fn protected(&self) -> &[bool] {
        &self.protected
    }

    /// The slots that may go, ascending.
    pub fn evictable(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..).map(Slot).zip(&self.protected).filter_map(|(slot, protected)| (!protected).then_some(slot))
    }

    /// The cached slots of a step, ascending, protected ones included.
    pub fn step_slots(&self, step: usize) -> &[Slot] {
        &self.step_slots[step]
    }

    /// The slots of each step that may go, for the steps that have any, in step order.
    pub fn evictable_steps(&self) -> impl Iterator<Item = (usize, Vec<Slot>)> + '_ {
        self.step_slots.iter().enumerate().filter_map(|(step, slots)| {
            let free: Vec<Slot> = slots.iter().copied().filter(|s| !self.protected[s.0 as usize]).collect();
            (!free.is_empty()).then_some((step, free))
        })
    }

    /// Mean score over the cached tokens of a step, protected ones included; short steps are not corrected for. `None`
    /// where nothing was measured or nothing is cached.
    pub fn step_importance(&self, step: usize) -> Option<f64> {
        self.step_importance[step]
    }

    /// Random numbers that depend on the seed, the probe's index and the set's only, the same on every platform.
    pub fn rng(&self) -> impl FnMut() -> u64 + use<> {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.parts.seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(self.parts.probe ^ ((self.parts.set as u64) << 40));
        move || rng.next_u64()
    }
}

fn contradiction(what: &str) -> Error {
    Error::new(ErrorKind::Internal, what).at("view of the cache")
}

fn check_tokens(parts: &ViewParts<'_>) -> Result<()> {
    let ViewParts { tokens, steps, current_step, .. } = *parts;
    if u32::try_from(tokens.len()).is_err() {
        return Err(contradiction("more slots than a slot index can count").found(tokens.len()));
    }
    if !tokens.is_sorted_by(|a, b| a.position < b.position) {
        return Err(contradiction("positions are not strictly ascending over the slots"));
    }
    if let Some(slot) = tokens.iter().position(|t| t.step.is_some() != (t.role == Role::Thinking)) {
        return Err(contradiction("a token has a step exactly if it is thinking")
            .found(format!("slot {slot}: {:?}", tokens[slot])));
    }
    let mut in_steps = tokens.iter().filter_map(|t| t.step);
    if !in_steps.clone().is_sorted() {
        return Err(contradiction("steps go back over the slots"));
    }
    let unknown = current_step >= steps.len() && current_step != NO_CURRENT_STEP;
    if !steps.is_empty() && unknown || in_steps.any(|s| s as usize >= steps.len()) {
        return Err(contradiction("a step that does not exist").expected(format!("an index below {}", steps.len())));
    }
    let latest = tokens.iter().filter_map(|t| t.step).next_back();
    if let Some(latest) = latest.filter(|&s| s as usize > current_step) {
        return Err(contradiction("a token lies in a step after the current one").expected(current_step).found(latest));
    }
    Ok(())
}

fn check_scores(scores: &[f32], slots: usize) -> Result<()> {
    if scores.len() != slots {
        return Err(contradiction("one score per slot is needed").expected(slots).found(scores.len()));
    }
    let Some(slot) = scores.iter().position(|s| !s.is_finite()) else { return Ok(()) };
    let bad = scores.iter().filter(|s| !s.is_finite()).count();
    Err(Error::new(ErrorKind::Device, "attention scores are not finite numbers")
        .at(format!("slot {slot} of {slots}"))
        .expected("a finite score for every slot")
        .found(format!("{} ({bad} such slots)", scores[slot]))
        .help("an overflow in the model's arithmetic or a driver fault; compare with --device cpu"))
}

/// How a plan stands to the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The policy takes no notice of the budget.
    Unbudgeted,
    /// Within the budget.
    Met,
    /// So much is protected that the budget cannot be met; what could be evicted is.
    Infeasible {
        /// Thinking tokens that the budget allows.
        asked: usize,
        /// Thinking tokens that stay.
        kept: usize,
    },
}

/// Kept slots, for each set of a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// One set for all layers and heads.
    Shared(Vec<Slot>),
    /// A set for each layer.
    Layers(Vec<Vec<Slot>>),
    /// `[layer][KV head]`: as many for each head of a layer.
    Heads(Vec<Vec<Vec<Slot>>>),
}

/// The slots that survive, checked. What reads one through [`slots`](Self::slots) works for every scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepPlan {
    kept: Kept,
    /// Slots that the plan was made for: one number, or one for each layer.
    before: Vec<usize>,
    outcome: Outcome,
    /// Of a plan for one set: what goes, the first to go first.
    gone: Vec<Slot>,
}

impl KeepPlan {
    /// The only way to a plan for one set. Slots must be ascending, unique, cached, and contain all that is protected. What
    /// goes is taken to go in ascending order.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for slots that are not so, and for an `outcome` that does not describe them: a policy's bug,
    /// caught before it reaches the cache.
    pub fn new(view: &CacheView<'_>, slots: Vec<Slot>, outcome: Outcome) -> Result<Self> {
        check_slots(view, &slots)?;
        check_outcome(view, &slots, outcome)?;
        let mut kept = slots.iter().peekable();
        let all = (0..view.tokens().len() as u32).map(Slot);
        let gone = all.filter(|slot| kept.next_if_eq(&slot).is_none()).collect();
        Ok(Self { before: vec![view.tokens().len()], kept: Kept::Shared(slots), outcome, gone })
    }

    /// The same plan, with what goes in the order in which the policy gives it up.
    fn giving_up(mut self, order: Vec<Slot>) -> Self {
        debug_assert_eq!(order.len(), self.gone.len(), "the same slots in another order");
        self.gone = order;
        self
    }

    /// The plans of all sets of a scope, in the order of [`Sets::of`], as one. Where the KV heads of a layer keep unequally
    /// many, the shorter sets are filled with their best evicted tokens: those that their policy gave up last.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for another number of plans, heads of a layer with unequal caches, or plans already joined.
    pub fn join(sets: &Sets, plans: Vec<Self>) -> Result<Self> {
        let wrong = |what: &str| broken(what).at(format!("scope {}", sets.scope));
        if plans.len() != sets.count() || plans.iter().any(|p| !matches!(p.kept, Kept::Shared(_))) {
            return Err(wrong("each set needs a plan of its own").expected(sets.count()).found(plans.len()));
        }
        let worst = |outcome: Outcome, plan: &Self| match (outcome, plan.outcome) {
            (Outcome::Infeasible { kept: a, .. }, Outcome::Infeasible { kept: b, .. }) if b > a => plan.outcome,
            (Outcome::Infeasible { .. }, _) => outcome,
            (_, Outcome::Infeasible { .. }) => plan.outcome,
            _ => outcome,
        };
        let outcome = plans.iter().fold(plans[0].outcome, worst);
        let slots = |plan: Self| match plan.kept {
            Kept::Shared(slots) => slots,
            Kept::Layers(_) | Kept::Heads(_) => Vec::new(),
        };
        let (kept, before) = match sets.scope {
            Scope::Shared => return plans.into_iter().next().ok_or_else(|| wrong("no plan")),
            Scope::Layer => {
                let before = plans.iter().map(|p| p.before[0]).collect();
                (Kept::Layers(plans.into_iter().map(slots).collect()), before)
            }
            Scope::Head => {
                let (mut layers, mut before) = (Vec::new(), Vec::new());
                let mut plans = plans.into_iter();
                for _ in 0..sets.layers {
                    let heads: Vec<Self> = plans.by_ref().take(sets.kv_heads).collect();
                    if heads.iter().any(|p| p.before[0] != heads[0].before[0]) {
                        return Err(wrong("the heads of a layer cache unequally many tokens"));
                    }
                    before.push(heads[0].before[0]);
                    let most = heads.iter().map(|p| p.cached_after(0)).max().unwrap_or(0);
                    layers.push(heads.into_iter().map(|plan| slots(plan.filled(most))).collect());
                }
                (Kept::Heads(layers), before)
            }
        };
        Ok(Self { kept, before, outcome, gone: Vec::new() })
    }

    /// Takes back what was given up last, until `count` slots are kept.
    fn filled(mut self, count: usize) -> Self {
        let Kept::Shared(slots) = &mut self.kept else { return self };
        let missing = count.saturating_sub(slots.len()).min(self.gone.len());
        slots.extend(self.gone.drain(self.gone.len() - missing..));
        slots.sort_unstable();
        self
    }

    /// The kept slots of a layer and KV head, ascending.
    pub fn slots(&self, layer: usize, kv_head: usize) -> &[Slot] {
        match &self.kept {
            Kept::Shared(slots) => slots,
            Kept::Layers(layers) => &layers[layer],
            Kept::Heads(layers) => &layers[layer][kv_head],
        }
    }

    /// The one set of scope `shared`; `None` in scopes with several.
    pub fn shared(&self) -> Option<&[Slot]> {
        match &self.kept {
            Kept::Shared(slots) => Some(slots),
            Kept::Layers(_) | Kept::Heads(_) => None,
        }
    }

    /// Slots of a layer after the gather.
    pub fn cached_after(&self, layer: usize) -> usize {
        self.slots(layer, 0).len()
    }

    /// Slots of a layer that the plan was made for.
    pub fn cached_before(&self, layer: usize) -> usize {
        self.before[if self.before.len() == 1 { 0 } else { layer }]
    }

    /// Whether nothing is evicted anywhere: no gather is needed.
    pub fn keeps_all(&self) -> bool {
        (0..self.before.len()).all(|layer| self.cached_after(layer) == self.before[layer])
    }

    /// How it stands to the budget; of several sets, the one that misses it by most.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Does to a host-side list of one row per slot what the gather does to the cache of that layer and head.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the list has not one row per slot.
    pub fn gather<T: Copy>(&self, layer: usize, kv_head: usize, rows: &mut Vec<T>) -> Result<()> {
        if rows.len() != self.cached_before(layer) {
            return Err(Error::new(ErrorKind::Internal, "this plan was made for another number of slots")
                .expected(self.cached_before(layer))
                .found(rows.len()));
        }
        *rows = self.slots(layer, kv_head).iter().map(|s| rows[s.0 as usize]).collect();
        Ok(())
    }
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Internal, what).at("plan of kept slots")
}

fn check_slots(view: &CacheView<'_>, slots: &[Slot]) -> Result<()> {
    if let Some(w) = slots.windows(2).find(|w| w[0] >= w[1]) {
        let what = if w[0] == w[1] { "a slot is kept twice" } else { "kept slots are not ascending" };
        return Err(broken(what).found(format!("{}, then {}", w[0].0, w[1].0)));
    }
    let cached = view.tokens().len();
    if let Some(last) = slots.last().filter(|s| s.0 as usize >= cached) {
        return Err(broken("a kept slot is not cached").expected(format!("below {cached}")).found(last.0));
    }
    let mut keep = vec![false; cached];
    for slot in slots {
        keep[slot.0 as usize] = true;
    }
    let lost = view.protected().iter().zip(&keep).position(|(&protected, &keep)| protected && !keep);
    match lost {
        None => Ok(()),
        Some(slot) => Err(broken("a protected slot is evicted")
            .expected("the prompt, <think>, the window and the current step kept")
            .found(format!("slot {slot}: {:?}", view.tokens()[slot]))),
    }
}

fn check_outcome(view: &CacheView<'_>, slots: &[Slot], outcome: Outcome) -> Result<()> {
    let thinking = slots.iter().filter(|s| view.tokens()[s.0 as usize].role == Role::Thinking).count();
    let target = view.budget().token_target(view.thinking_tokens());
    let ok = match outcome {
        Outcome::Unbudgeted => true,
        Outcome::Met => target.is_none_or(|target| thinking <= target),
        Outcome::Infeasible { asked, kept } => target == Some(asked) && kept == thinking && thinking > asked,
    };
    if ok {
        return Ok(());
    }
    Err(broken("the plan does not do what it says about the budget")
        .expected(format!("{outcome:?} under {}", view.budget()))
        .found(format!("{thinking} thinking tokens kept")))
}

/// A policy in the list of all.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for `--help`.
    pub summary: &'static str,
    make: fn() -> Box<dyn EvictionPolicy>,
}

impl Entry {
    /// The policy itself.
    pub fn make(&self) -> Box<dyn EvictionPolicy> {
        (self.make)()
    }
}

/// Every policy.
pub const POLICIES: &[Entry] = &[
    Entry {
        name: "think-clearly",
        summary: "evicts the reasoning steps to which </think> of a self-summary probe attends least",
        make: || Box::new(ThinkClearly),
    },
    Entry {
        name: "think-token",
        summary: "the same probe, token by token, without steps (ablation)",
        make: || Box::new(ThinkToken),
    },
    Entry { name: "full", summary: "evicts nothing", make: || Box::new(Full) },
    Entry { name: "random", summary: "evicts thinking tokens at random, seeded (control)", make: || Box::new(Random) },
    Entry {
        name: "random-step",
        summary: "evicts reasoning steps at random, seeded (control)",
        make: || Box::new(RandomStep),
    },
    Entry {
        name: "last-attention",
        summary: "as think-clearly, scored by the latest token instead of a probe (ablation)",
        make: || Box::new(LastAttention),
    },
    Entry {
        name: "h2o",
        summary: "keeps the tokens that drew most attention so far, and the recent ones",
        make: || Box::new(H2o),
    },
    Entry {
        name: "snapkv",
        summary: "evicts the tokens that the latest 32 queries attend to least, pooled",
        make: || Box::new(SnapKv),
    },
    Entry {
        name: "r-kv",
        summary: "attention of the latest 8 queries against similarity of keys",
        make: || Box::new(RKv),
    },
    Entry {
        name: "streaming-llm",
        summary: "evicts the oldest thinking tokens, keeps 4 sinks and the recent ones",
        make: || Box::new(StreamingLlm),
    },
];

/// The policy of that name.
///
/// # Errors
/// For an unknown name, with the known ones.
pub fn by_name(name: &str) -> Result<Box<dyn EvictionPolicy>> {
    let known = || POLICIES.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
    let entry = POLICIES.iter().find(|e| e.name == name).ok_or_else(|| {
        let e = Error::new(ErrorKind::Input, "unknown policy").at("--policy");
        e.expected(format!("one of {}", known())).found(format!("{name:?}"))
    })?;
    Ok(entry.make())
}

#[cfg(test)]
mod tests;
