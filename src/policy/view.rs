//! One kept set as a policy sees it: tokens, steps, scores, and what is protected.
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Budget, Role};
use crate::steps::Step;
use crate::{Error, ErrorKind, Position, Result, Slot};

/// How many tokens of the current step are never evicted, counted from its end. *(ours)*
pub const CURRENT_STEP_KEPT: usize = 256;

/// [`ViewParts::current_step`] of a sequence without text. Its current step is unknown, so that only the window
/// protects its latest tokens.
pub const NO_CURRENT_STEP: usize = usize::MAX;

/// The token in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedToken {
    /// Its index in the logical sequence; ascending over the slots.
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

/// A step of the reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepInfo {
    /// Byte offset in the full logical text of the thinking.
    pub id: usize,
    /// Number of its tokens, evicted ones included.
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

/// The facts of one probe from which [`CacheView::new`] makes a view.
#[derive(Debug, Clone, Copy)]
pub struct ViewParts<'a> {
    /// One token per cached slot, in slot order. The probe's own rows have been rolled back.
    pub tokens: &'a [CachedToken],
    /// All steps so far, those without cached tokens included.
    pub steps: &'a [StepInfo],
    /// The step that is being written, as an index into `steps`.
    pub current_step: usize,
    /// Thinking tokens generated so far, evicted ones included.
    pub thinking_tokens: usize,
    /// One score per slot, reduced over the heads and layers in scope; higher is more important.
    pub scores: Option<&'a [f32]>,
    /// One value per slot where keys are compared: the mean cosine similarity of the slot's key to the others.
    pub similarity: Option<&'a [f32]>,
    /// One number per slot where values are measured: the range of the slot's value.
    pub value_range: Option<&'a [f32]>,
    /// One sum per slot where it is measured beside the scores: the attention that the slot received from all queries
    /// so far.
    pub received: Option<&'a [f32]>,
    /// How much may be evicted.
    pub budget: Budget,
    /// How many of the latest tokens are protected.
    pub window: usize,
    /// Seed of the policies that evict at random.
    pub seed: u64,
    /// Index of the probe in its sequence, from 0.
    pub probe: u64,
    /// Index of the kept set, from 0; always 0 in scope `shared`.
    pub set: usize,
}

impl ViewParts<'_> {
    /// The parts of an empty cache without measurements. Complete them as `ViewParts { tokens, ..ViewParts::EMPTY }`.
    pub const EMPTY: Self = Self {
        tokens: &[],
        steps: &[],
        current_step: NO_CURRENT_STEP,
        thinking_tokens: 0,
        scores: None,
        similarity: None,
        value_range: None,
        received: None,
        budget: Budget::Tokens(0),
        window: 0,
        seed: 0,
        probe: 0,
        set: 0,
    };
}

/// One kept set as a policy sees it, with what is derived from it for all policies.
///
/// In scope `shared` there is one view per probe. A scope with several sets (per layer, per KV head) has one view for
/// each, with the slots and scores of that set. Policies do not see the difference.
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
    /// Protected are all tokens outside the thinking, the latest `window` tokens, and the latest
    /// [`CURRENT_STEP_KEPT`] tokens of the current step.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] for a score that is NaN or infinite; [`ErrorKind::Input`] for a budget out of range;
    /// [`ErrorKind::Internal`] for facts that contradict each other.
    pub fn new(parts: ViewParts<'a>) -> Result<Self> {
        parts.budget.check()?;
        check_tokens(&parts)?;
        for scores in [parts.scores, parts.similarity, parts.value_range, parts.received].into_iter().flatten() {
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

    /// The same view under another budget.
    #[must_use]
    pub fn with_budget(&self, budget: Budget) -> Self {
        Self { parts: ViewParts { budget, ..self.parts }, ..self.clone() }
    }

    /// The token in each slot.
    pub fn tokens(&self) -> &'a [CachedToken] {
        self.parts.tokens
    }

    /// All steps so far.
    pub fn steps(&self) -> &'a [StepInfo] {
        self.parts.steps
    }

    /// The step that is being written.
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

    /// How much may be evicted.
    pub fn budget(&self) -> Budget {
        self.parts.budget
    }

    /// The index of this probe in its sequence.
    pub fn probe(&self) -> u64 {
        self.parts.probe
    }

    /// One finite score per slot.
    ///
    /// # Errors
    /// [`ErrorKind::Policy`] when nothing was measured.
    pub fn scores(&self) -> Result<&'a [f32]> {
        let missing = || Error::new(ErrorKind::Policy, "this policy needs scores, but none were measured");
        self.parts.scores.ok_or_else(|| missing().help("run the probe before asking for a plan"))
    }

    /// The mean cosine similarity of each slot's key to the others, finite; higher is more redundant.
    ///
    /// # Errors
    /// [`ErrorKind::Policy`] when keys were not compared.
    pub fn similarity(&self) -> Result<&'a [f32]> {
        let missing =
            || Error::new(ErrorKind::Policy, "this policy needs the similarity of keys, which was not measured");
        self.parts.similarity.ok_or_else(missing)
    }

    /// The range of each slot's value, its largest component minus its smallest, finite.
    ///
    /// # Errors
    /// [`ErrorKind::Policy`] when values were not measured.
    pub fn value_range(&self) -> Result<&'a [f32]> {
        let missing = || Error::new(ErrorKind::Policy, "this policy needs the range of values, which was not measured");
        self.parts.value_range.ok_or_else(missing)
    }

    /// The attention that each slot received from all queries so far, finite.
    ///
    /// # Errors
    /// [`ErrorKind::Policy`] when it was not measured beside the scores.
    pub fn received(&self) -> Result<&'a [f32]> {
        let missing =
            || Error::new(ErrorKind::Policy, "this policy needs the sums of attention, which were not measured");
        self.parts.received.ok_or_else(missing)
    }

    /// Whether each slot must be kept.
    pub fn protected(&self) -> &[bool] {
        &self.protected
    }

    /// The slots that may be evicted, ascending.
    pub fn evictable(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..).map(Slot).zip(&self.protected).filter_map(|(slot, protected)| (!protected).then_some(slot))
    }

    /// The cached slots of a step, ascending, protected ones included.
    pub fn step_slots(&self, step: usize) -> &[Slot] {
        &self.step_slots[step]
    }

    /// The steps that have slots which may be evicted, in order, each with these slots.
    pub fn evictable_steps(&self) -> impl Iterator<Item = (usize, Vec<Slot>)> + '_ {
        self.step_slots.iter().enumerate().filter_map(|(step, slots)| {
            let free: Vec<Slot> = slots.iter().copied().filter(|s| !self.protected[s.0 as usize]).collect();
            (!free.is_empty()).then_some((step, free))
        })
    }

    /// The mean score of the cached tokens of a step, protected ones included. Short steps are not corrected for.
    /// `None` where nothing was measured or nothing is cached.
    pub fn step_importance(&self, step: usize) -> Option<f64> {
        self.step_importance[step]
    }

    /// Random numbers that depend only on the seed and on the indices of the probe and the set; the same on every
    /// platform.
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
        .help("an overflow in the model's arithmetic or a driver fault; compare with `device` cpu"))
}
