//! The self-summary probe: what is appended, and when. No tensors here.
//!
//! Every `p` thinking tokens the engine appends [`DEFAULT_PROBE_TEXT`], reads the attention of its last token,
//! `</think>`, to every cached slot, and rolls the probe back (Think Clearly, arXiv 2507.08806).
use crate::{Error, ErrorKind, Result};

/// The text of the probe. The published code spells its apostrophe straight, as here.
pub const DEFAULT_PROBE_TEXT: &str = "Time is up. Given the time I've spent and the approaches I've tried, I should stop \
     thinking and now write summarization in one sentence.</think>";

/// Thinking tokens from one probe to the next.
pub const DEFAULT_PROBE_EVERY: usize = 200;

/// How many tokens a probe waits at most for the text to leave a UTF-8 character. (ours)
pub const MAX_POSTPONED: usize = 3;

/// Checks that an encoded probe ends in exactly one `</think>` id, whose attention row is what a probe reads.
///
/// # Errors
/// When the tokenizer has no such id (Qwen2.5 splits `</think>`), or the probe does not end in it or has it earlier.
pub fn check_probe_ids(ids: &[u32], think_close: Option<u32>) -> Result<()> {
    let Some(close) = think_close else {
        return Err(Error::new(
            ErrorKind::Policy,
            "this tokenizer has no single </think> token, which the probe reads",
        )
        .help("choose a policy without probe (--policy random, streaming-llm, full), or a reasoning model"));
    };
    let count = ids.iter().filter(|&&id| id == close).count();
    if count != 1 || ids.last() != Some(&close) {
        return Err(Error::new(ErrorKind::Input, "the probe text must end in its only </think>")
            .at("--probe-text")
            .expected(format!("one id {close}, the last of the probe"))
            .found(match ids.last() {
                Some(last) => format!("{count} of them in {} ids, the last {last}", ids.len()),
                None => "no ids".into(),
            }));
    }
    Ok(())
}

/// Refuses an interval of 0 tokens between probes.
///
/// # Errors
/// [`ErrorKind::Input`] when `every` is 0.
pub fn check_interval(every: usize) -> Result<()> {
    if every > 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "a probe cannot come every 0 tokens")
        .at("`probe_every`")
        .expected("at least 1")
        .help("to switch probing off, use `policy` full"))
}

/// Where a prompt leaves the thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptThinking {
    /// No `<think>` yet: the model may write one.
    NotOpened,
    /// The template wrote `<think>`: the first generated token is a thinking token.
    Open,
    /// The prompt closed it already (Qwen3's no-think): this sequence is never probed.
    Closed,
}

impl PromptThinking {
    /// Reads it off the ids of the turn to be generated (not of earlier turns, whose thinking is closed and over).
    pub fn of(ids: &[u32], think_open: Option<u32>, think_close: Option<u32>) -> Self {
        let last = ids.iter().rev().find(|&&id| Some(id) == think_open || Some(id) == think_close);
        match last {
            None => Self::NotOpened,
            Some(&id) if Some(id) == think_open => Self::Open,
            Some(_) => Self::Closed,
        }
    }
}

/// What the clock must know of a generated token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generated {
    /// It is `<think>`.
    pub think_open: bool,
    /// It is `</think>`.
    pub think_close: bool,
    /// The text, this token included, ends inside a UTF-8 character.
    pub inside_char: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    Inside,
    Over,
}

/// Says when to probe one sequence. Make a new one for each prompt: nothing carries over.
///
/// Due whenever the number of thinking tokens reaches a multiple of `every`; postponed by up to [`MAX_POSTPONED`]
/// tokens while the text ends inside a character, without moving the later dates. `<think>` and `</think>` are no
/// thinking tokens. The first `</think>` ends probing for good *(ours)*.
///
/// ```
/// use secateur::probe::{Generated, ProbeClock, PromptThinking};
/// let mut clock = ProbeClock::new(2, PromptThinking::Open)?;
/// let token = Generated::default();
/// assert_eq!([clock.push(token), clock.push(token), clock.push(token)], [false, true, false]);
/// # Ok::<(), secateur::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeClock {
    every: usize,
    phase: Phase,
    /// Thinking tokens since the last date.
    since: usize,
    thinking_tokens: usize,
}

impl ProbeClock {
    /// A clock for one prompt that is due every `every` thinking tokens.
    ///
    /// # Errors
    /// When `every` is 0.
    pub fn new(every: usize, prompt: PromptThinking) -> Result<Self> {
        check_interval(every)?;
        let phase = match prompt {
            PromptThinking::NotOpened => Phase::Before,
            PromptThinking::Open => Phase::Inside,
            PromptThinking::Closed => Phase::Over,
        };
        Ok(Self { every, phase, since: 0, thinking_tokens: 0 })
    }

    /// Takes the next generated token, in order; true when a probe is due now, after this token.
    pub fn push(&mut self, token: Generated) -> bool {
        match self.phase {
            Phase::Over => return false,
            _ if token.think_close => {
                self.phase = Phase::Over;
                return false;
            }
            Phase::Before => {
                if token.think_open {
                    self.phase = Phase::Inside;
                }
                return false;
            }
            // A second <think> says nothing new, and is protected like the first: no thinking token.
            Phase::Inside if token.think_open => return false,
            Phase::Inside => {}
        }
        self.thinking_tokens += 1;
        self.since += 1;
        let wait = token.inside_char && self.since < self.every.saturating_add(MAX_POSTPONED);
        if self.since < self.every || wait {
            return false;
        }
        self.since %= self.every;
        true
    }

    /// The fewest further tokens after which a probe may be due, whatever they are; at least 1. The engine may enqueue
    /// that many decode steps before it must have read them all. `None`: never again.
    pub fn steps_until_possible_probe(&self) -> Option<usize> {
        match self.phase {
            Phase::Over => None,
            // <think> itself, then the first interval.
            Phase::Before => Some(self.every.saturating_add(1)),
            Phase::Inside => Some(self.every.saturating_sub(self.since).max(1)),
        }
    }

    /// Whether the next token, unless it is `</think>` or `<think>`, is a thinking token.
    pub fn inside_thinking(&self) -> bool {
        self.phase == Phase::Inside
    }

    /// Thinking tokens so far.
    pub fn thinking_tokens(&self) -> usize {
        self.thinking_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Generated = Generated { think_open: false, think_close: false, inside_char: false };
    const OPEN: Generated = Generated { think_open: true, ..TOKEN };
    const CLOSE: Generated = Generated { think_close: true, ..TOKEN };
    const INSIDE_CHAR: Generated = Generated { inside_char: true, ..TOKEN };

    fn clock(every: usize, prompt: PromptThinking) -> ProbeClock {
        ProbeClock::new(every, prompt).unwrap()
    }

    fn due(clock: &mut ProbeClock, tokens: &[Generated]) -> Vec<usize> {
        tokens.iter().enumerate().filter_map(|(i, &t)| clock.push(t).then_some(i + 1)).collect()
    }

    #[test]
    fn the_probe_text_is_the_papers() {
        assert!(
            DEFAULT_PROBE_TEXT.starts_with("Time is up. Given the time I've spent and the approaches I've tried, ")
        );
        assert!(
            DEFAULT_PROBE_TEXT.ends_with("I should stop thinking and now write summarization in one sentence.</think>")
        );
        assert!(!DEFAULT_PROBE_TEXT.contains("  "));
        assert_eq!(DEFAULT_PROBE_TEXT.matches("</think>").count(), 1);
    }

    #[test]
    fn due_every_p_thinking_tokens_and_not_before() {
        assert_eq!(due(&mut clock(3, PromptThinking::Open), &[TOKEN; 10]), [3, 6, 9]);
        assert_eq!(due(&mut clock(1, PromptThinking::Open), &[TOKEN; 3]), [1, 2, 3]);
        assert!(ProbeClock::new(0, PromptThinking::Open).is_err());
    }

    #[test]
    fn only_inside_thinking() {
        assert_eq!(due(&mut clock(2, PromptThinking::NotOpened), &[TOKEN; 10]), [0; 0]);
        // Tokens before <think>, and <think> itself, do not count.
        let opened = [TOKEN, TOKEN, OPEN, TOKEN, TOKEN, OPEN, TOKEN, CLOSE, TOKEN, OPEN, TOKEN, TOKEN];
        assert_eq!(due(&mut clock(2, PromptThinking::NotOpened), &opened), [5]);
        let no_think = [TOKEN, OPEN, TOKEN, TOKEN, TOKEN];
        assert_eq!(due(&mut clock(1, PromptThinking::Closed), &no_think), [0; 0]);
        // `</think>` on the very date: no probe.
        assert_eq!(due(&mut clock(2, PromptThinking::Open), &[TOKEN, CLOSE, TOKEN]), [0; 0]);
    }

    #[test]
    fn postponed_inside_a_character_by_at_most_three_tokens() {
        let mut c = clock(4, PromptThinking::Open);
        let tokens = [TOKEN, TOKEN, TOKEN, INSIDE_CHAR, INSIDE_CHAR, TOKEN, TOKEN, TOKEN, TOKEN];
        // The date after the postponed one does not move.
        assert_eq!(due(&mut c, &tokens), [6, 8]);
        assert_eq!(due(&mut clock(4, PromptThinking::Open), &[INSIDE_CHAR; 16]), [7, 11, 15]);
        assert_eq!(due(&mut clock(1, PromptThinking::Open), &[INSIDE_CHAR; 8]), [4, 8]);
    }

    #[test]
    fn a_probe_never_comes_earlier_than_said_and_comes_as_early_on_plain_text() {
        for prompt in [PromptThinking::NotOpened, PromptThinking::Open, PromptThinking::Closed] {
            let mut c = clock(5, prompt);
            let script = [TOKEN, OPEN, TOKEN, INSIDE_CHAR, TOKEN, TOKEN, INSIDE_CHAR, INSIDE_CHAR, TOKEN, CLOSE, TOKEN];
            for token in script {
                // The earliest possible continuation: <think> when it is still missing, then plain text.
                let mut ahead = c.clone();
                let opening = (c.phase == Phase::Before).then_some(OPEN);
                let first = opening.into_iter().chain([TOKEN; 20]).position(|t| ahead.push(t)).map(|i| i + 1);
                assert_eq!(c.steps_until_possible_probe(), first);
                c.push(token);
            }
        }
    }

    #[test]
    fn the_prompt_says_whether_thinking_is_open() {
        let of = |ids: &[u32]| PromptThinking::of(ids, Some(8), Some(9));
        assert_eq!(of(&[1, 2]), PromptThinking::NotOpened);
        assert_eq!(of(&[1, 8, 2]), PromptThinking::Open);
        assert_eq!(of(&[1, 8, 2, 9, 2]), PromptThinking::Closed);
        assert_eq!(PromptThinking::of(&[8, 9], None, None), PromptThinking::NotOpened);
    }

    #[test]
    fn a_probe_must_end_in_its_only_think_close() {
        assert!(check_probe_ids(&[1, 2, 9], Some(9)).is_ok());
        assert!(check_probe_ids(&[1, 2, 9], None).unwrap_err().to_string().contains("no single </think>"));
        for bad in [&[1, 2][..], &[9, 2], &[9, 2, 9], &[]] {
            assert!(check_probe_ids(bad, Some(9)).is_err(), "{bad:?}");
        }
    }
}
