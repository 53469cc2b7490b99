//! Cutting the thinking into steps, the unit that is scored and evicted (Think Clearly, arXiv 2507.08806).
//!
//! A new step begins where one of the 32 [`KEYWORDS`] begins. Ours, where the paper leaves it open: keywords are
//! case-sensitive, the straight and the curly apostrophe are the same, the longest keyword names the step, and a keyword
//! counts only between word boundaries, so that "So" does not cut "Solve". A word is made of Unicode letters, digits
//! and `_`; combining marks are not looked at.
//!
//! Text is bytes here, because a token may end inside a UTF-8 character and a model may write invalid UTF-8. A step's
//! id is its byte offset in the full logical text of the thinking, evicted tokens included; it never changes once the
//! step is known, and [`Segmenter`] relies on that to look at each byte only once.
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Where a step of the thinking may begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundaries {
    /// At each of the [`KEYWORDS`], the rule of the paper. They are English.
    #[default]
    Keywords,
    /// After each blank line.
    Paragraphs,
    /// After each sentence and after each blank line.
    Sentences,
    /// At each keyword and, where no keyword has occurred for long, at the ends of paragraphs or sentences.
    Auto,
}

impl Boundaries {
    /// Every rule, in the order in which they are documented.
    pub const ALL: [Self; 4] = [Self::Keywords, Self::Paragraphs, Self::Sentences, Self::Auto];

    /// The name that requests, traces and messages use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keywords => "keywords",
            Self::Paragraphs => "paragraphs",
            Self::Sentences => "sentences",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Boundaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Boundaries {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == text).ok_or_else(|| {
            Error::new(ErrorKind::Input, "unknown rule for step boundaries")
                .at("`steps`")
                .expected(Self::ALL.map(Self::name).join(", "))
                .found(format!("{text:?}"))
        })
    }
}

/// The phrases that begin a step, with straight apostrophes. Source: the seed note of METHOD, section 1.
pub const KEYWORDS: [&str; 32] = [
    "Wait",
    "Alternatively",
    "Another angle",
    "Another approach",
    "But wait",
    "Hold on",
    "Hmm",
    "Maybe",
    "Looking back",
    "Okay",
    "Let me",
    "First",
    "Then",
    "Alright",
    "Compute",
    "Correct",
    "Good",
    "Got it",
    "I don't see any errors",
    "I think",
    "Let me double-check",
    "Let's see",
    "Now",
    "Remember",
    "Seems solid",
    "Similarly",
    "So",
    "Starting",
    "That's correct",
    "That seems right",
    "Therefore",
    "Thus",
];

const CURLY: &[u8] = "’".as_bytes();

/// More bytes than any keyword, in either spelling, and the character after it. Whether a step begins at a byte is
/// settled for good once this many bytes follow it.
const REACH: usize = 32;

/// A run of the thinking text, from one keyword to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// First byte; also the step's id.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// The keyword that began it, as [`KEYWORDS`] spells it. Only the first step may lack one.
    pub keyword: Option<&'static str>,
}

/// What follows the last byte of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// More text may come: a keyword at the very end is undecided and does not yet begin a step.
    Open,
    /// Nothing, or `</think>`: the end is a word boundary.
    Closed,
}

/// Cuts a text into steps. They partition it exactly: the first starts at 0, each ends where the next starts, the last
/// ends with the text. There is always at least one; that of an empty text is empty.
///
/// ```
/// use secateur::steps::{Tail, segment};
/// let text = "Solve it. So x = 2. Let me double-check: yes";
/// let steps = segment(text, Tail::Open);
/// let parts: Vec<&str> = steps.iter().map(|s| &text[s.start..s.end]).collect();
/// assert_eq!(parts, ["Solve it. ", "So x = 2. ", "Let me double-check: yes"]);
/// ```
pub fn segment(text: impl AsRef<[u8]>, tail: Tail) -> Vec<Step> {
    let bytes = text.as_ref();
    let mut starts = Vec::new();
    scan(bytes, 0, bytes.len(), tail, &mut starts);
    partition(&starts, bytes.len())
}

/// The step of each token: the one that holds its last byte.
///
/// `token_ends[i]` is the byte offset just past token `i`. A token without text belongs where the byte before it does;
/// one that ends past the text (a character still unfinished, where the caller keeps only whole ones) to the last step.
/// `steps` must come from [`segment`] or [`Segmenter::steps`]; the result holds indices into it.
pub fn assign(token_ends: &[usize], steps: &[Step]) -> Vec<usize> {
    let of = |&end: &usize| steps.partition_point(|s| s.start < end).saturating_sub(1);
    token_ends.iter().map(of).collect()
}

/// The thinking of one sequence as it grows: text, token ends and the steps found so far.
///
/// Gives what [`segment`] and [`assign`] give on the whole text, but looks at old text only once, so that a probe costs
/// the new tokens and the number of steps.
#[derive(Debug, Clone, Default)]
pub struct Segmenter {
    text: Vec<u8>,
    ends: Vec<usize>,
    /// Steps that begin before `settled`.
    starts: Vec<Start>,
    settled: usize,
}

impl Segmenter {
    /// A segmenter that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one token's bytes; they need not be whole characters.
    pub fn push(&mut self, piece: impl AsRef<[u8]>) {
        self.text.extend_from_slice(piece.as_ref());
        self.ends.push(self.text.len());
        let safe = self.text.len().saturating_sub(REACH);
        if safe > self.settled {
            scan(&self.text, self.settled, safe, Tail::Open, &mut self.starts);
            self.settled = safe;
        }
    }

    /// The steps of everything pushed so far.
    pub fn steps(&self, tail: Tail) -> Vec<Step> {
        let mut starts = self.starts.clone();
        scan(&self.text, self.settled, self.text.len(), tail, &mut starts);
        partition(&starts, self.text.len())
    }

    /// The step of each token pushed so far, as indices into `steps`.
    pub fn assign(&self, steps: &[Step]) -> Vec<usize> {
        assign(&self.ends, steps)
    }

    /// The full logical text so far. It may end inside a character.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Number of tokens pushed so far.
    pub fn tokens(&self) -> usize {
        self.ends.len()
    }

    /// Whether the text ends inside a UTF-8 character that further bytes could complete.
    pub fn ends_inside_char(&self) -> bool {
        ends_inside_char(&self.text)
    }
}

/// Whether a text ends inside a UTF-8 character that further bytes could complete. Invalid bytes elsewhere do not count.
pub fn ends_inside_char(bytes: &[u8]) -> bool {
    (1..=3.min(bytes.len())).any(|n| {
        let end = &bytes[bytes.len() - n..];
        end[0] >= 0xC0 && matches!(std::str::from_utf8(end), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
    })
}

type Start = (usize, Option<&'static str>);

/// Appends the steps that begin in `from..to`. Looks at the text beyond `to` as well.
fn scan(bytes: &[u8], from: usize, to: usize, tail: Tail, starts: &mut Vec<Start>) {
    for at in from..to {
        match keyword_at(bytes, at, tail) {
            None if at == 0 => starts.push((0, None)),
            None => {}
            keyword => starts.push((at, keyword)),
        }
    }
}

fn partition(starts: &[Start], len: usize) -> Vec<Step> {
    let ends = starts.iter().skip(1).map(|s| s.0).chain([len]);
    let steps: Vec<Step> =
        starts.iter().zip(ends).map(|(&(start, keyword), end)| Step { start, end, keyword }).collect();
    if steps.is_empty() { vec![Step { start: 0, end: 0, keyword: None }] } else { steps }
}

/// The longest keyword that begins at `at` and certainly ends at a word boundary.
fn keyword_at(bytes: &[u8], at: usize, tail: Tail) -> Option<&'static str> {
    // Every keyword begins with an ASCII capital: most bytes end here.
    if !bytes[at].is_ascii_uppercase() || char_before(bytes, at).is_some_and(is_word) {
        return None;
    }
    let matches = KEYWORDS.iter().filter_map(|k| Some((matched(&bytes[at..], k)?, *k)));
    matches.filter(|&(len, _)| boundary_after(bytes, at + len, tail)).max().map(|(_, keyword)| keyword)
}

/// How many bytes of `text` the keyword takes, if `text` begins with it in either spelling of its apostrophe.
fn matched(text: &[u8], keyword: &str) -> Option<usize> {
    let mut rest = text;
    for k in keyword.bytes() {
        rest = match k {
            b'\'' => rest.strip_prefix(b"'").or_else(|| rest.strip_prefix(CURLY)),
            k => rest.strip_prefix(&[k]),
        }?;
    }
    Some(text.len() - rest.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The character that ends just before `at`; `None` at the start and after invalid bytes.
fn char_before(bytes: &[u8], at: usize) -> Option<char> {
    let nth_back = |n: &usize| std::str::from_utf8(&bytes[at - n..at]).ok();
    (1..=4.min(at)).find_map(|n| nth_back(&n)).and_then(|s| s.chars().next_back())
}

/// Whether a word that ends at `at` certainly ends there.
fn boundary_after(bytes: &[u8], at: usize, tail: Tail) -> bool {
    let next = &bytes[at..bytes.len().min(at + 4)];
    let valid = match std::str::from_utf8(next) {
        Ok(s) => s,
        // What could still become a letter is undecided, as the end of the text is.
        Err(e) if e.valid_up_to() == 0 && e.error_len().is_none() => return tail == Tail::Closed,
        Err(e) => std::str::from_utf8(&next[..e.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(c) => !is_word(c),
        None => !next.is_empty() || tail == Tail::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<&str> {
        segment(text, Tail::Open).iter().map(|s| &text[s.start..s.end]).collect()
    }

    #[test]
    fn keywords_are_distinct_start_with_a_capital_and_fit_in_reach() {
        let mut sorted = KEYWORDS.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 32);
        for k in KEYWORDS {
            assert!(k.as_bytes()[0].is_ascii_uppercase(), "{k}");
            assert!(k.replace('\'', "’").len() + 4 <= REACH, "{k}");
            // No keyword begins inside another, so overlapping matches need no rule.
            let inner = segment(&k[1..], Tail::Closed);
            assert_eq!(inner.len(), 1, "{k}");
        }
    }

    #[test]
    fn every_keyword_begins_a_step_with_either_apostrophe() {
        for k in KEYWORDS {
            for spelling in [k.to_string(), k.replace('\'', "’")] {
                for (before, after) in [("x. ", ", y"), ("\n\n", "\n"), ("θ(", ")"), ("“", "”"), ("²", ".")] {
                    // A superscript two is a digit to Unicode: no boundary there.
                    let text = format!("{before}{spelling}{after}");
                    let steps = segment(&text, Tail::Open);
                    if before == "²" {
                        assert_eq!(steps.len(), 1, "{text}");
                        continue;
                    }
                    assert_eq!(steps.len(), 2, "{text}");
                    assert_eq!((steps[1].start, steps[1].keyword), (before.len(), Some(k)), "{text}");
                }
            }
        }
    }

    #[test]
    fn words_that_merely_contain_a_keyword_are_not_cut() {
        for text in
            ["Solve Sofia So_ So1 Soé Sø", "xSo _So 1So éSo", "Nowhere Firstly Goodness Hmmm", "so wait SO", "Let mean"]
        {
            assert_eq!(parts(text), [text]);
        }
        assert_eq!(parts("Solve. So, solve"), ["Solve. ", "So, solve"]);
    }

    #[test]
    fn the_longest_keyword_names_the_step() {
        let of = |text: &str| segment(text, Tail::Open)[0].keyword;
        assert_eq!(of("Let me double-check it"), Some("Let me double-check"));
        assert_eq!(of("Let me double-checks"), Some("Let me"));
        assert_eq!(of("Let me see"), Some("Let me"));
        assert_eq!(of("Let's see."), Some("Let's see"));
    }

    #[test]
    fn a_keyword_at_the_very_end_is_undecided() {
        assert_eq!(parts("x = 1. So"), ["x = 1. So"]);
        assert_eq!(parts("x = 1. So "), ["x = 1. ", "So "]);
        assert_eq!(segment("x = 1. So", Tail::Closed).len(), 2);
        // The two bytes of é arrive one by one.
        let mut s = Segmenter::new();
        s.push("x. So");
        s.push([0xC3]);
        assert!(s.ends_inside_char());
        assert_eq!(s.steps(Tail::Open).len(), 1);
        s.push([0xA9]);
        assert!(!s.ends_inside_char());
        assert_eq!(s.steps(Tail::Open).len(), 1);
        // Of a longer keyword only the shorter is certain.
        assert_eq!(segment("a. Let me double-check", Tail::Open)[1].keyword, Some("Let me"));
    }

    #[test]
    fn invalid_bytes_are_boundaries_and_keep_their_place() {
        let text = b"\xFF\xFESo\xFFx. \x80Now\xC3(";
        let starts: Vec<usize> = segment(text, Tail::Open).iter().map(|s| s.start).collect();
        assert_eq!(starts, [0, 2, 9]);
        assert!(!ends_inside_char(b"\x80\x80"));
        assert!(!ends_inside_char("é".as_bytes()));
        assert!(ends_inside_char(b"ok \xF0\x9F\x98"));
        assert!(ends_inside_char(b"\xFF \xE2\x80"));
    }

    #[test]
    fn a_token_belongs_to_the_step_of_its_last_byte() {
        let text = "ab. So c";
        let steps = segment(text, Tail::Open);
        // "ab", ".", " So" (its last byte is in the second step), "", " c", and one past the text.
        assert_eq!(assign(&[2, 3, 6, 6, 8, 9], &steps), [0, 0, 1, 1, 1, 1]);
        // The space alone stays in the first step.
        assert_eq!(assign(&[0, 3, 4, 5], &steps), [0, 0, 0, 1]);
    }

    #[test]
    fn an_empty_text_is_one_empty_step() {
        assert_eq!(segment("", Tail::Open), [Step { start: 0, end: 0, keyword: None }]);
        assert_eq!(Segmenter::new().steps(Tail::Closed).len(), 1);
        assert_eq!(assign(&[0, 0], &segment("", Tail::Open)), [0, 0]);
    }
}
