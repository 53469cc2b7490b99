//! The host's record of one sequence: which tokens were written, which are still cached, and which steps they form.
use super::{Budget, CachedToken, KeepPlan, Role, Sets, StepInfo, ViewParts};
use crate::steps::{Boundaries, Segmenter, Tail};
use crate::{Position, Result};

/// Mirrors all kept sets of one sequence in the cache, from the prompt on, and holds the full text of its thinking.
///
/// The engine pushes every token, asks for a [`Snapshot`] at each probe, and passes the plan to the ledger after the
/// gather. A ledger holds no tensors and no token ids.
#[derive(Debug, Clone)]
pub struct Ledger {
    sets: Sets,
    /// The cached tokens of each set.
    rows: Vec<Vec<CachedRow>>,
    next: u32,
    thinking: Segmenter,
}

#[derive(Debug, Clone, Copy)]
struct CachedRow {
    position: Position,
    role: Role,
    /// Index among the thinking tokens; meaningless for other roles.
    nth_thinking: u32,
}

impl Ledger {
    /// A ledger of a prompt, with one kept set.
    pub fn new(prompt_tokens: usize) -> Self {
        Self::with_sets(prompt_tokens, Sets::SHARED)
    }

    /// A ledger of a prompt.
    pub fn with_sets(prompt_tokens: usize, sets: Sets) -> Self {
        let mut ledger = Self { sets, rows: vec![Vec::new(); sets.count()], next: 0, thinking: Segmenter::new() };
        (0..prompt_tokens).for_each(|_| ledger.push(Role::Prompt, ""));
        ledger
    }

    /// Cuts the thinking by `rule` instead of at keywords. For a ledger that has seen no thinking yet.
    #[must_use]
    pub fn with_boundaries(mut self, rule: Boundaries) -> Self {
        self.thinking = Segmenter::with_boundaries(rule);
        self
    }

    /// Appends the next token. `piece` are the bytes that it adds to the text, which matter for thinking tokens only.
    pub fn push(&mut self, role: Role, piece: impl AsRef<[u8]>) {
        let row = CachedRow { position: Position(self.next), role, nth_thinking: self.thinking.tokens() as u32 };
        self.rows.iter_mut().for_each(|rows| rows.push(row));
        self.next += 1;
        match role {
            Role::Thinking => self.thinking.push(piece),
            Role::ThinkClose => self.thinking.end_thought(),
            Role::Prompt | Role::ThinkOpen | Role::Answer => {}
        }
    }

    /// The kept sets of the sequence.
    pub fn sets(&self) -> &Sets {
        &self.sets
    }

    /// Slots in the cache; of several sets, those of the longest.
    pub fn cached(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The positions of the cached tokens of a set, in slot order.
    pub fn positions(&self, set: usize) -> impl ExactSizeIterator<Item = Position> + '_ {
        self.rows[set].iter().map(|r| r.position)
    }

    /// The thinking so far.
    pub fn thinking(&self) -> &Segmenter {
        &self.thinking
    }

    /// The facts that a probe needs, with the steps as they are now.
    pub fn snapshot(&self) -> Snapshot {
        let steps = self.thinking.steps(Tail::Open);
        let token_steps = self.thinking.assign(&steps);
        let token = |row: &CachedRow| match row.role {
            Role::Thinking => CachedToken::thinking(row.position, token_steps[row.nth_thinking as usize] as u32),
            role => CachedToken::other(row.position, role),
        };
        Snapshot {
            tokens: self.rows.iter().map(|rows| rows.iter().map(token).collect()).collect(),
            current_step: steps.len() - 1,
            steps: StepInfo::count(&steps, &token_steps),
            thinking_tokens: self.thinking.tokens(),
        }
    }

    /// Removes the evicted tokens from the ledger, as the gather removed them from the cache.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when the plan was made for another number of slots.
    pub fn gather(&mut self, plan: &KeepPlan) -> Result<()> {
        for (set, rows) in self.rows.iter_mut().enumerate() {
            let (layer, head) = self.sets.place(set);
            plan.gather(layer.unwrap_or(0), head.unwrap_or(0), rows)?;
        }
        Ok(())
    }
}

/// The facts of one probe that a [`Ledger`] holds.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// For each kept set, the tokens of its slots.
    pub tokens: Vec<Vec<CachedToken>>,
    /// All steps so far.
    pub steps: Vec<StepInfo>,
    /// The step that is being written.
    pub current_step: usize,
    /// Thinking tokens generated so far.
    pub thinking_tokens: usize,
}

impl Snapshot {
    /// The parts of a set's view without measurements, with window, seed and probe 0. Fill in the others with
    /// `ViewParts { scores, ..parts }`.
    pub fn parts(&self, set: usize, budget: Budget) -> ViewParts<'_> {
        ViewParts {
            tokens: &self.tokens[set],
            steps: &self.steps,
            current_step: self.current_step,
            thinking_tokens: self.thinking_tokens,
            budget,
            set,
            ..ViewParts::EMPTY
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{CacheView, EvictionPolicy, ThinkClearly};
    use crate::steps::segment;

    #[test]
    fn it_follows_text_steps_and_gathers() {
        let mut ledger = Ledger::new(2);
        ledger.push(Role::ThinkOpen, "<think>");
        for piece in ["\n", "Okay", ",", " it", " is", " 5", ".", " Wait", ",", " no", ".", " So", " 6"] {
            ledger.push(Role::Thinking, piece);
        }
        let text = "\nOkay, it is 5. Wait, no. So 6";
        assert_eq!(ledger.thinking().text(), text.as_bytes());
        let snapshot = ledger.snapshot();
        // " Wait" ends in the step that "Wait" begins.
        let sizes: Vec<usize> = snapshot.steps.iter().map(|s| s.tokens).collect();
        assert_eq!(sizes, [1, 6, 4, 2]);
        let ids: Vec<usize> = snapshot.steps.iter().map(|s| s.id).collect();
        assert_eq!(ids, segment(text, Tail::Open).iter().map(|s| s.start).collect::<Vec<_>>());

        // The step "Okay, …" matters least.
        let scores: Vec<f32> = snapshot.tokens[0].iter().map(|t| if t.step == Some(1) { 0.1 } else { 0.9 }).collect();
        let parts = ViewParts { scores: Some(&scores), ..snapshot.parts(0, Budget::Tokens(7)) };
        let plan = ThinkClearly.plan(&CacheView::new(parts).unwrap()).unwrap();
        ledger.gather(&plan).unwrap();
        assert_eq!(ledger.positions(0).map(|p| p.0).collect::<Vec<_>>(), [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]);
        assert!(ledger.gather(&plan).is_err());

        // Later tokens keep counting, and later steps see the full text.
        assert_eq!(ledger.next, 16);
        ledger.push(Role::Thinking, ". Hmm,");
        assert_eq!(ledger.next, 17);
        let snapshot = ledger.snapshot();
        assert_eq!((ledger.cached(), snapshot.thinking_tokens, snapshot.steps.len()), (11, 14, 5));
        assert_eq!(snapshot.tokens[0][3], CachedToken::thinking(Position(3), 0));
        assert_eq!(snapshot.tokens[0][4], CachedToken::thinking(Position(10), 2));
        assert_eq!(snapshot.tokens[0][10], CachedToken::thinking(Position(16), 4));
    }

    #[test]
    fn a_second_thought_has_steps_of_its_own() {
        let mut ledger = Ledger::new(1);
        for (role, piece) in [
            (Role::ThinkOpen, "<think>"),
            (Role::Thinking, "one"),
            (Role::ThinkClose, "</think>"),
            (Role::Answer, "1"),
            (Role::ThinkOpen, "<think>"),
            (Role::Thinking, "Now"),
            (Role::Thinking, " two"),
        ] {
            ledger.push(role, piece);
        }
        let snapshot = ledger.snapshot();
        assert_eq!(snapshot.steps, [StepInfo { id: 0, tokens: 1 }, StepInfo { id: 3, tokens: 2 }]);
        let thinking: Vec<Option<u32>> = snapshot.tokens[0].iter().map(|t| t.step).collect();
        assert_eq!(thinking, [None, None, Some(0), None, None, None, Some(1), Some(1)]);
    }

    #[test]
    fn a_prompt_alone_has_a_view() {
        let snapshot = Ledger::new(3).snapshot();
        let view =
            CacheView::new(ViewParts { scores: Some(&[0.0; 3]), ..snapshot.parts(0, Budget::default()) }).unwrap();
        assert!(ThinkClearly.plan(&view).unwrap().keeps_all());
    }
}
