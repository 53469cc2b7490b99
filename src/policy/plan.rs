//! The answer of a policy: the slots to keep, checked against protection and budget.
use super::{CacheView, Role, Scope, Sets};
use crate::{Error, ErrorKind, Result, Slot};

/// Whether a plan meets the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The policy ignores the budget.
    Unbudgeted,
    /// The plan is within the budget.
    Met,
    /// So many tokens are protected that the budget cannot be met. Everything else is evicted.
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
    /// `[layer][KV head]`: equally many slots for each head of a layer.
    Heads(Vec<Vec<Vec<Slot>>>),
}

/// The slots that survive, checked. Code that reads them through [`slots`](Self::slots) works for every scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepPlan {
    kept: Kept,
    /// Slots that the plan was made for: one number, or one for each layer.
    before: Vec<usize>,
    outcome: Outcome,
    /// For a plan of one set: the evicted slots in the order of eviction.
    evicted: Vec<Slot>,
}

impl KeepPlan {
    /// Makes a plan for one set; there is no other way to make one. Slots must be ascending, unique and cached, and
    /// must contain all protected slots. The other slots are evicted, in ascending order unless the policy says
    /// otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for slots that break these rules, and for an `outcome` that does not describe them.
    /// Both are bugs of a policy, which this catches before they reach the cache.
    pub fn new(view: &CacheView<'_>, slots: Vec<Slot>, outcome: Outcome) -> Result<Self> {
        check_slots(view, &slots)?;
        check_outcome(view, &slots, outcome)?;
        let mut kept = slots.iter().peekable();
        let all = (0..view.tokens().len() as u32).map(Slot);
        let evicted = all.filter(|slot| kept.next_if_eq(&slot).is_none()).collect();
        Ok(Self { before: vec![view.tokens().len()], kept: Kept::Shared(slots), outcome, evicted })
    }

    /// The same plan with another order of eviction.
    pub(super) fn with_eviction_order(mut self, order: Vec<Slot>) -> Self {
        debug_assert_eq!(order.len(), self.evicted.len(), "the same slots in another order");
        self.evicted = order;
        self
    }

    /// Joins the plans of all sets of a scope, in the order of [`Sets::of`]. Where the KV heads of a layer keep
    /// unequally many tokens, the shorter sets get back their best evicted tokens, those that their policy evicted
    /// last.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for a wrong number of plans, for heads of a layer with unequal caches, and for plans
    /// that are joined already.
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
        Ok(Self { kept, before, outcome, evicted: Vec::new() })
    }

    /// Restores the slots that were evicted last, until `count` slots are kept.
    fn filled(mut self, count: usize) -> Self {
        let Kept::Shared(slots) = &mut self.kept else { return self };
        let missing = count.saturating_sub(slots.len()).min(self.evicted.len());
        slots.extend(self.evicted.drain(self.evicted.len() - missing..));
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

    /// Whether the plan meets the budget. Of several sets, this is the outcome that misses the budget by most.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Gathers a list with one row per slot as the device gathers the cache of that layer and head.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the list does not have one row per slot.
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
