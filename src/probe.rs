//! The self-summary probe: which tokens it appends, and when. This module holds no tensors.
//!
//! After every `p` thinking tokens the engine appends [`DEFAULT_PROBE_TEXT`], reads the attention from its last
//! token, `</think>`, to every cached slot, and rolls the probe back (Think Clearly, arXiv 2507.08806).
use crate::text::ThinkTags;
use crate::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The text of the probe. The apostrophe is straight, as in the code that the authors published.
pub const DEFAULT_PROBE_TEXT: &str = "Time is up. Given the time I've spent and the approaches I've tried, I should stop \
     thinking and now write summarization in one sentence.</think>";

/// The text of the probe for a model that ends its thinking with `close`.
pub fn default_text(close: &str) -> String {
    DEFAULT_PROBE_TEXT.replace(ThinkTags::COMMON.close, close)
}

/// Thinking tokens from one probe to the next.
pub const DEFAULT_PROBE_EVERY: usize = 200;

/// The most tokens by which a probe is postponed while the text ends inside a UTF-8 character. *(ours)*
pub const MAX_POSTPONED: usize = 3;

/// Checks that an encoded probe ends in exactly one `</think>` id, whose attention row is what a probe reads.
///
/// # Errors
/// [`ErrorKind::Policy`] when the tokenizer has no such id (Qwen2.5 splits `</think>`); [`ErrorKind::Input`] when the
/// probe does not end in it, or has it earlier as well.
pub fn check_probe_ids(ids: &[u32], think_close: Option<u32>) -> Result<()> {
    let Some(close) = think_close else {
        return Err(Error::new(
            ErrorKind::Policy,
            "this tokenizer has no single </think> token, which the probe reads",
        )
        .help("use a `policy` without a probe (random, streaming-llm, full), or a reasoning model"));
    };
    let count = ids.iter().filter(|&&id| id == close).count();
    if count != 1 || ids.last() != Some(&close) {
        return Err(Error::new(ErrorKind::Input, "the probe text must end in its only </think>")
            .at("`probe_text`")
            .expected(format!("token {close} (</think>) once, as the last token"))
            .found(match ids.last() {
                Some(last) => format!("{count} times in {} tokens, of which the last is {last}", ids.len()),
                None => "no tokens".into(),
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

/// Whether a prompt leaves the model inside its thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptThinking {
    /// No `<think>` yet: the model may write one.
    NotOpened,
    /// The template wrote `<think>`: the first generated token is a thinking token.
    Open,
    /// The prompt has closed it already (Qwen3's no-think). The model may still write `<think>` again.
    Closed,
}

impl PromptThinking {
    /// Derives the state from the ids of the turn to be generated. Ids of earlier turns must not be included, because
    /// their thinking is over.
    pub fn from_ids(ids: &[u32], think_open: Option<u32>, think_close: Option<u32>) -> Self {
        let last = ids.iter().rev().find(|&&id| Some(id) == think_open || Some(id) == think_close);
        match last {
            None => Self::NotOpened,
            Some(&id) if Some(id) == think_open => Self::Open,
            Some(_) => Self::Closed,
        }
    }
}

/// The facts about a generated token that the clock needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generated {
    /// The token is `<think>`.
    pub think_open: bool,
    /// The token is `</think>`.
    pub think_close: bool,
    /// The text, this token included, ends inside a UTF-8 character.
    pub inside_char: bool,
}

/// Determines when one sequence is probed. Each prompt needs a new clock.
///
/// A probe is due whenever the number of thinking tokens reaches a multiple of `every`. It is postponed by up to
/// [`MAX_POSTPONED`] tokens while the text ends inside a character; the later points at
/// which a probe is due do not move. `<think>` and `</think>` are no thinking tokens. A `<think>` after a `</think>`
/// reopens the thinking, and the interval continues where it stopped *(ours)*.
///
/// ```
/// use secateur::expert::probe::{Generated, ProbeClock, PromptThinking};
/// let mut clock = ProbeClock::new(2, PromptThinking::Open)?;
/// let token = Generated::default();
/// assert_eq!([clock.push(token), clock.push(token), clock.push(token)], [false, true, false]);
/// # Ok::<(), secateur::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeClock {
    every: usize,
    inside: bool,
    /// Thinking tokens since the last point at which a probe was due.
    since: usize,
    thinking_tokens: usize,
}

impl ProbeClock {
    /// A clock for one prompt that is due after every `every` thinking tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when `every` is 0.
    pub fn new(every: usize, prompt: PromptThinking) -> Result<Self> {
        check_interval(every)?;
        Ok(Self { every, inside: prompt == PromptThinking::Open, since: 0, thinking_tokens: 0 })
    }

    /// Takes the next generated token, in order. Returns true when a probe is due right after this token.
    pub fn push(&mut self, token: Generated) -> bool {
        if token.think_open || token.think_close {
            self.inside = token.think_open;
            return false;
        }
        if !self.inside {
            return false;
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

    /// The fewest further tokens after which a probe may be due, whatever they are; at least 1. The engine may
    /// enqueue that many decode steps before it must have read them all.
    pub fn steps_until_possible_probe(&self) -> usize {
        let thinking = self.every.saturating_sub(self.since).max(1);
        // Outside the thinking, a `<think>` must come before further thinking tokens.
        if self.inside { thinking } else { thinking.saturating_add(1) }
    }

    /// Whether the next token, unless it is `</think>` or `<think>`, is a thinking token.
    pub fn inside_thinking(&self) -> bool {
        self.inside
    }

    /// Thinking tokens so far, of all thoughts together.
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
        assert_eq!(default_text("</think>"), DEFAULT_PROBE_TEXT);
        assert!(default_text("[/THINK]").ends_with("in one sentence.[/THINK]"));
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
        assert_eq!(due(&mut clock(2, PromptThinking::NotOpened), &opened), [5, 11]);
        assert_eq!(due(&mut clock(1, PromptThinking::Closed), &[TOKEN; 3]), [0; 0]);
        // No probe is due if `</think>` comes at the very point at which one would be.
        assert_eq!(due(&mut clock(2, PromptThinking::Open), &[TOKEN, CLOSE, TOKEN]), [0; 0]);
    }

    #[test]
    fn a_second_thought_continues_the_interval_of_the_first() {
        let script = [TOKEN, TOKEN, CLOSE, TOKEN, TOKEN, TOKEN, OPEN, TOKEN, TOKEN, TOKEN, CLOSE, OPEN, TOKEN];
        let mut c = clock(3, PromptThinking::Open);
        // The third thinking token is the first of the second thought. The sixth is the only one of the third
        // thought.
        assert_eq!(due(&mut c, &script), [8, 13]);
        assert_eq!(c.thinking_tokens(), 6);
        assert!(c.inside_thinking());
        // A model may think again although the prompt had closed the thinking.
        assert_eq!(due(&mut clock(1, PromptThinking::Closed), &[TOKEN, OPEN, TOKEN, CLOSE, TOKEN]), [3]);
        // A probe that was postponed when the thought ended is due at the first token of the next.
        let script = [TOKEN, INSIDE_CHAR, CLOSE, OPEN, TOKEN];
        assert_eq!(due(&mut clock(2, PromptThinking::Open), &script), [5]);
    }

    #[test]
    fn postponed_inside_a_character_by_at_most_three_tokens() {
        let mut c = clock(4, PromptThinking::Open);
        let tokens = [TOKEN, TOKEN, TOKEN, INSIDE_CHAR, INSIDE_CHAR, TOKEN, TOKEN, TOKEN, TOKEN];
        // The point after the postponed one does not move.
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
                let opening = (!c.inside_thinking()).then_some(OPEN);
                let first = opening.into_iter().chain([TOKEN; 20]).position(|t| ahead.push(t)).map(|i| i + 1);
                assert_eq!(Some(c.steps_until_possible_probe()), first);
                c.push(token);
            }
        }
    }

    #[test]
    fn the_prompt_says_whether_thinking_is_open() {
        let read = |ids: &[u32]| PromptThinking::from_ids(ids, Some(8), Some(9));
        assert_eq!(read(&[1, 2]), PromptThinking::NotOpened);
        assert_eq!(read(&[1, 8, 2]), PromptThinking::Open);
        assert_eq!(read(&[1, 8, 2, 9, 2]), PromptThinking::Closed);
        assert_eq!(PromptThinking::from_ids(&[8, 9], None, None), PromptThinking::NotOpened);
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
