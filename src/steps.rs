//! Cuts the thinking into steps, the unit that is scored and evicted (Think Clearly, arXiv 2507.08806).
//!
//! # Where a step begins
//! A [`Boundaries`] names the rule:
//! - **keywords**: where one of the 32 [`KEYWORDS`] begins. The paper leaves some details open; here, keywords are
//!   case-sensitive, the straight and the curly apostrophe are the same, the longest keyword names the step, and a
//!   keyword counts only between word boundaries, so that "So" does not cut "Solve". A word is made of Unicode
//!   letters, digits and `_`; combining marks are ignored. *(ours)*
//! - **paragraphs**: at the first character after a blank line. *(ours)*
//! - **sentences**: there, and at the first character after a sentence. One of `。！？।؟` and their like ends a sentence
//!   wherever it stands. One of `.!?…` ends a sentence where white space follows it and the next character is no
//!   lowercase letter: "3.14" and "e.g. x" stay whole. A full stop after a single letter ("z. B. Wert") or after a
//!   number that begins its line ("1. Let x") ends none. Abbreviations of several letters ("Dr. Smith") are cut: an
//!   extra step costs little. Closing quotes and brackets belong to the sentence that they close. *(ours)*
//! - **auto**: at each keyword and, in a stretch without keywords, at the ends of paragraphs, and of sentences where
//!   a step has grown past [`LONG_STEP`] bytes. Such a stretch starts [`LONG_STEP`] bytes into a text without any
//!   keyword, and [`SILENCE`] bytes after the latest keyword. A text without such a stretch is cut as by
//!   `keywords`; English reasoning rarely has one. The keywords are English, so that a thought in another language
//!   would otherwise be one single step. *(ours)*
//!
//! # Steps keep their ids
//! Text is bytes here, because a token may end inside a UTF-8 character and a model may write invalid UTF-8. The id
//! of a step is its byte offset in the full logical text of the thinking, evicted tokens included. Every rule decides
//! about a byte from the text before it and at most [`REACH`] bytes after it. Later text can therefore add steps only
//! at the end: a step that a probe has seen keeps its id, and [`Segmenter`] looks at each byte only once.
use serde::{Deserialize, Serialize};

use crate::text_form::named_variants;

/// The rule for where a step begins. The [module documentation](self) defines each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Boundaries {
    /// At the keywords of the paper, which are English.
    Keywords,
    /// After blank lines.
    Paragraphs,
    /// After sentences and blank lines.
    Sentences,
    /// At keywords; in long stretches without keywords, after paragraphs or sentences.
    #[default]
    Auto,
}

named_variants!(Boundaries, "a rule for steps", "steps", {
    Keywords = "keywords", Paragraphs = "paragraphs", Sentences = "sentences", Auto = "auto",
});

/// The phrases that begin a step, with straight apostrophes, as Think Clearly (arXiv 2507.08806) lists them.
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

/// Whether a step begins at a byte is final once this many bytes follow it. Longer than any keyword, in either
/// spelling, and the character after it.
pub const REACH: usize = 32;

/// [`Boundaries::Auto`] ends a step of more bytes than this at the end of a sentence, provided that no keyword is
/// near. Also the length up to which a text without any keyword is left whole. About 130 English words or 170 Chinese
/// characters.
pub const LONG_STEP: usize = 512;

/// Bytes after a keyword in which [`Boundaries::Auto`] relies on further keywords. In 20 real traces of
/// R1-Distill-Qwen-7B, the longest of the 3039 steps takes 1056 bytes: twice that length is not English reasoning of
/// the kind that the keywords expect.
pub const SILENCE: usize = 2048;

/// The kind of boundary at which a step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The beginning of a thought that does not begin with a keyword.
    Text,
    /// A keyword, as [`KEYWORDS`] spells it.
    Keyword(&'static str),
    /// The end of a paragraph.
    Paragraph,
    /// The end of a sentence.
    Sentence,
}

/// A run of the thinking text that is scored and evicted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// First byte; also the id of the step.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
    /// Why the step begins where it does.
    pub begin: Begin,
}

impl Step {
    /// The keyword that begins the step, if one does.
    pub fn keyword(&self) -> Option<&'static str> {
        match self.begin {
            Begin::Keyword(keyword) => Some(keyword),
            Begin::Text | Begin::Paragraph | Begin::Sentence => None,
        }
    }
}

/// How many steps of a text begin at which kind of boundary. The beginning of the text is no boundary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundaryCounts {
    /// Steps that begin at a keyword.
    pub keywords: usize,
    /// Steps that begin after a paragraph.
    pub paragraphs: usize,
    /// Steps that begin after a sentence.
    pub sentences: usize,
}

impl BoundaryCounts {
    /// Counts the boundaries of `steps`.
    pub fn new(steps: &[Step]) -> Self {
        let mut counts = Self::default();
        for step in steps {
            match step.begin {
                Begin::Text => {}
                Begin::Keyword(_) => counts.keywords += 1,
                Begin::Paragraph => counts.paragraphs += 1,
                Begin::Sentence => counts.sentences += 1,
            }
        }
        counts
    }

    /// A sentence for people where [`Boundaries::Auto`] found few keywords and cut at other places; `None` otherwise.
    ///
    /// ```
    /// use secateur::steps::{Boundaries, BoundaryCounts};
    /// let counts = BoundaryCounts { sentences: 12, ..Default::default() };
    /// let note = counts.fallback(Boundaries::Auto).unwrap();
    /// assert_eq!(note, "no keyword occurred: the steps are sentences");
    /// assert_eq!(counts.fallback(Boundaries::Sentences), None);
    /// ```
    pub fn fallback(&self, rule: Boundaries) -> Option<String> {
        let units = match (self.paragraphs, self.sentences) {
            _ if rule != Boundaries::Auto => return None,
            (0, 0) => return None,
            (_, 0) => "paragraphs",
            (0, _) => "sentences",
            (_, _) => "paragraphs and sentences",
        };
        Some(match self.keywords {
            0 => format!("no keyword occurred: the steps are {units}"),
            _ => format!("long stretches have no keyword: their steps are {units}"),
        })
    }
}

/// What follows the last byte of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// More text may come: a keyword at the very end is undecided and does not yet begin a step.
    Open,
    /// No text follows, or `</think>` does: the end is a word boundary.
    Closed,
}

/// Cuts a text into steps at keywords. See [`segment_by`].
///
/// ```
/// use secateur::steps::{Tail, segment};
/// let text = "Solve it. So x = 2. Let me double-check: yes";
/// let steps = segment(text, Tail::Open);
/// let parts: Vec<&str> = steps.iter().map(|s| &text[s.start..s.end]).collect();
/// assert_eq!(parts, ["Solve it. ", "So x = 2. ", "Let me double-check: yes"]);
/// ```
pub fn segment(text: impl AsRef<[u8]>, tail: Tail) -> Vec<Step> {
    segment_by(Boundaries::Keywords, text, tail)
}

/// Cuts a text into steps. They partition it exactly: the first starts at 0, each ends where the next starts, the
/// last ends with the text. There is always at least one; that of an empty text is empty.
///
/// ```
/// use secateur::steps::{Boundaries, Tail, segment_by};
/// let text = "设 x = 3.5。那么 x 大于 3！为什么？";
/// let steps = segment_by(Boundaries::Sentences, text, Tail::Closed);
/// let parts: Vec<&str> = steps.iter().map(|s| &text[s.start..s.end]).collect();
/// assert_eq!(parts, ["设 x = 3.5。", "那么 x 大于 3！", "为什么？"]);
/// ```
pub fn segment_by(rule: Boundaries, text: impl AsRef<[u8]>, tail: Tail) -> Vec<Step> {
    let bytes = text.as_ref();
    let mut scan = Scan::new(rule);
    scan.advance(bytes, bytes.len(), tail);
    scan.partition(bytes.len())
}

/// The step of each token: the one that holds its last byte.
///
/// `token_ends[i]` is the byte offset just past token `i`. A token without text belongs where the byte before it
/// does; one that ends past the text (a character still unfinished, where the caller keeps only whole ones) to the
/// last step. `steps` must come from [`segment_by`] or [`Segmenter::steps`]; the result holds indices into it.
pub fn assign(token_ends: &[usize], steps: &[Step]) -> Vec<usize> {
    let step_of = |&end: &usize| steps.partition_point(|s| s.start < end).saturating_sub(1);
    token_ends.iter().map(step_of).collect()
}

/// The thinking of one sequence as it grows: text, token ends and the steps found so far.
///
/// Gives what [`segment_by`] and [`assign`] give on the whole text, but looks at old text only once, so that a probe
/// costs the new tokens and the number of steps.
#[derive(Debug, Clone)]
pub struct Segmenter {
    text: Vec<u8>,
    ends: Vec<usize>,
    /// The part of the text whose boundaries are final.
    scan: Scan,
}

impl Default for Segmenter {
    fn default() -> Self {
        Self::new()
    }
}

impl Segmenter {
    /// A segmenter for an empty text that cuts at keywords.
    pub fn new() -> Self {
        Self::with_boundaries(Boundaries::Keywords)
    }

    /// A segmenter for an empty text that cuts by `rule`.
    pub fn with_boundaries(rule: Boundaries) -> Self {
        Self { text: Vec::new(), ends: Vec::new(), scan: Scan::new(rule) }
    }

    /// Ends a thought at its `</think>`. What is pushed afterwards is a new thought: it begins a step, its first word
    /// has no word before it, and its keywords alone decide what `auto` does in it. Offsets go on counting.
    pub fn end_thought(&mut self) {
        self.scan.advance(&self.text, self.text.len(), Tail::Closed);
        self.scan.begin_thought();
    }

    /// Appends one token's bytes; they need not be whole characters.
    pub fn push(&mut self, piece: impl AsRef<[u8]>) {
        self.text.extend_from_slice(piece.as_ref());
        self.ends.push(self.text.len());
        self.scan.advance(&self.text, self.text.len().saturating_sub(REACH), Tail::Open);
    }

    /// The steps of everything pushed so far.
    pub fn steps(&self, tail: Tail) -> Vec<Step> {
        let mut scan = self.scan.clone();
        scan.advance(&self.text, self.text.len(), tail);
        scan.partition(self.text.len())
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

/// Whether a text ends inside a UTF-8 character that further bytes could complete. Invalid bytes elsewhere do not
/// count.
pub fn ends_inside_char(bytes: &[u8]) -> bool {
    (1..=3.min(bytes.len())).any(|n| {
        let end = &bytes[bytes.len() - n..];
        end[0] >= 0xC0 && matches!(std::str::from_utf8(end), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
    })
}

/// The boundaries in the first `done` bytes of a text.
#[derive(Debug, Clone)]
struct Scan {
    rule: Boundaries,
    /// Where the current thought begins. No rule looks at the text before it.
    thought: usize,
    done: usize,
    /// Where steps begin, ascending, and why.
    starts: Vec<(usize, Begin)>,
    latest_keyword: Option<usize>,
}

impl Scan {
    fn new(rule: Boundaries) -> Self {
        Self { rule, thought: 0, done: 0, starts: Vec::new(), latest_keyword: None }
    }

    fn begin_thought(&mut self) {
        (self.thought, self.latest_keyword) = (self.done, None);
    }

    /// Finds the steps that begin before `to`. `bytes` is the text scanned so far and whatever follows it.
    fn advance(&mut self, bytes: &[u8], to: usize, tail: Tail) {
        for at in self.done..to {
            if let Some(begin) = self.boundary(&bytes[self.thought..], at - self.thought, tail) {
                if let Begin::Keyword(_) = begin {
                    self.latest_keyword = Some(at - self.thought);
                }
                self.starts.push((at, begin));
            }
        }
        self.done = self.done.max(to);
    }

    /// Whether a step begins at byte `at` of the current thought, whose text `bytes` is.
    fn boundary(&self, bytes: &[u8], at: usize, tail: Tail) -> Option<Begin> {
        let found = match self.rule {
            Boundaries::Keywords => keyword_at(bytes, at, tail).map(Begin::Keyword),
            Boundaries::Paragraphs => prose_boundary(bytes, at).filter(|begin| *begin == Begin::Paragraph),
            Boundaries::Sentences => prose_boundary(bytes, at),
            Boundaries::Auto => {
                keyword_at(bytes, at, tail).map(Begin::Keyword).or_else(|| self.fallback_boundary(bytes, at))
            }
        };
        found.or((at == 0).then_some(Begin::Text))
    }

    /// The kind of boundary at which [`Boundaries::Auto`] begins a step without a keyword; `None` if no step begins.
    fn fallback_boundary(&self, bytes: &[u8], at: usize) -> Option<Begin> {
        let without_keyword = match self.latest_keyword {
            Some(keyword) => at - keyword > SILENCE,
            None => at > LONG_STEP,
        };
        if !without_keyword {
            return None;
        }
        let length = self.thought + at - self.starts.last().map_or(0, |start| start.0);
        prose_boundary(bytes, at).filter(|begin| *begin == Begin::Paragraph || length > LONG_STEP)
    }

    /// The steps of a text of `len` bytes.
    fn partition(&self, len: usize) -> Vec<Step> {
        let ends = self.starts.iter().skip(1).map(|start| start.0).chain([len]);
        let steps: Vec<Step> =
            self.starts.iter().zip(ends).map(|(&(start, begin), end)| Step { start, end, begin }).collect();
        if steps.is_empty() { vec![Step { start: 0, end: 0, begin: Begin::Text }] } else { steps }
    }
}

/// The longest keyword that begins at `at` and certainly ends at a word boundary.
fn keyword_at(bytes: &[u8], at: usize, tail: Tail) -> Option<&'static str> {
    // Every keyword begins with an ASCII capital, which few bytes are.
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

/// Whether a paragraph or a sentence ends before the character at `at`, with nothing but white space between. Decided
/// by that character and the text before it; an unfinished character begins nothing yet.
fn prose_boundary(bytes: &[u8], at: usize) -> Option<Begin> {
    let next = char_at(bytes, at)?;
    // A mark or a bracket that follows another directly still belongs to the sentence. This is checked first, so that
    // a long run of them is scanned once, not once for each.
    let spaced = char_before(bytes, at)?.is_whitespace();
    if next.is_whitespace() || (!spaced && (is_stop(next) || is_closing(next))) {
        return None;
    }
    let (mut end, mut lines) = (at, 0);
    while let Some(c) = char_before(bytes, end).filter(|c| c.is_whitespace()) {
        lines += usize::from(c == '\n');
        end -= c.len_utf8();
    }
    if end == 0 {
        return None;
    }
    if lines >= 2 {
        return Some(Begin::Paragraph);
    }
    while let Some(c) = char_before(bytes, end).filter(|c| is_closing(*c)) {
        end -= c.len_utf8();
    }
    let ends = match char_before(bytes, end)? {
        c if is_unspaced_stop(c) => true,
        '.' => spaced && !next.is_lowercase() && !is_abbreviated(bytes, end - 1),
        c if is_stop(c) => spaced && !next.is_lowercase(),
        _ => false,
    };
    ends.then_some(Begin::Sentence)
}

/// Whether the full stop at `dot` follows a single letter, or a number that begins its line.
fn is_abbreviated(bytes: &[u8], dot: usize) -> bool {
    match char_before(bytes, dot) {
        Some(c) if c.is_alphabetic() => !char_before(bytes, dot - c.len_utf8()).is_some_and(is_word),
        Some(c) if c.is_ascii_digit() => {
            let digits = bytes[..dot].iter().rev().take_while(|b| b.is_ascii_digit()).count();
            let indent = bytes[..dot - digits].iter().rev().take_while(|b| **b == b' ').count();
            matches!(bytes[..dot - digits - indent].last(), None | Some(b'\n'))
        }
        _ => false,
    }
}

/// Marks that end a sentence without white space after them: in Chinese and Japanese, Hindi and its neighbours,
/// Arabic and Urdu, Armenian, Amharic, Burmese, Khmer.
fn is_unspaced_stop(c: char) -> bool {
    matches!(c, '。' | '｡' | '！' | '？' | '।' | '॥' | '؟' | '۔' | '։' | '።' | '။' | '។')
}

fn is_stop(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…') || is_unspaced_stop(c)
}

/// Quotes, brackets and Markdown emphasis that may close a sentence after its last mark.
fn is_closing(c: char) -> bool {
    matches!(c, '"' | '\'' | '”' | '’' | '»' | ')' | ']' | '}' | '*' | '」' | '』' | '）' | '】' | '》' | '〉')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The character that begins at `at`; `None` where it is unfinished or invalid.
fn char_at(bytes: &[u8], at: usize) -> Option<char> {
    let next = &bytes[at..bytes.len().min(at + 4)];
    let valid = match std::str::from_utf8(next) {
        Ok(s) => s,
        Err(e) => std::str::from_utf8(&next[..e.valid_up_to()]).unwrap_or_default(),
    };
    valid.chars().next()
}

/// The character that ends just before `at`; `None` at the start and after invalid bytes.
fn char_before(bytes: &[u8], at: usize) -> Option<char> {
    let last_bytes = |n: usize| std::str::from_utf8(&bytes[at - n..at]).ok();
    (1..=4.min(at)).find_map(last_bytes).and_then(|s| s.chars().next_back())
}

/// Whether a word that ends at `at` certainly ends there.
fn boundary_after(bytes: &[u8], at: usize, tail: Tail) -> bool {
    let next = &bytes[at..bytes.len().min(at + 4)];
    match char_at(bytes, at) {
        Some(c) => !is_word(c),
        None if next.is_empty() => tail == Tail::Closed,
        // An incomplete character may still become a letter, so it is undecided, like the end of the text. An invalid
        // byte is a boundary.
        None => {
            let unfinished = matches!(std::str::from_utf8(next), Err(e) if e.error_len().is_none());
            !unfinished || tail == Tail::Closed
        }
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
                    assert_eq!((steps[1].start, steps[1].keyword()), (before.len(), Some(k)), "{text}");
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
        let of = |text: &str| segment(text, Tail::Open)[0].keyword();
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
        // The two bytes of é arrive separately.
        let mut s = Segmenter::new();
        s.push("x. So");
        s.push([0xC3]);
        assert!(s.ends_inside_char());
        assert_eq!(s.steps(Tail::Open).len(), 1);
        s.push([0xA9]);
        assert!(!s.ends_inside_char());
        assert_eq!(s.steps(Tail::Open).len(), 1);
        // Of a longer keyword, only the shorter one at its beginning is certain.
        assert_eq!(segment("a. Let me double-check", Tail::Open)[1].keyword(), Some("Let me"));
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
        assert_eq!(segment("", Tail::Open), [Step { start: 0, end: 0, begin: Begin::Text }]);
        assert_eq!(Segmenter::new().steps(Tail::Closed).len(), 1);
        assert_eq!(assign(&[0, 0], &segment("", Tail::Open)), [0, 0]);
    }

    fn cut(rule: Boundaries, text: &str) -> Vec<&str> {
        segment_by(rule, text, Tail::Closed).iter().map(|s| &text[s.start..s.end]).collect()
    }

    /// Cuts `parts`, joined, at the ends of sentences, and expects the parts.
    fn sentences(parts: &[&str]) {
        assert_eq!(cut(Boundaries::Sentences, &parts.concat()), parts);
    }

    #[test]
    fn the_names_of_the_rules_are_the_same_everywhere() {
        for &(_, rule) in Boundaries::NAMES {
            assert_eq!(rule.to_string().parse::<Boundaries>().unwrap(), rule);
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.name());
        }
        let error = "lines".parse::<Boundaries>().unwrap_err().to_string();
        assert!(error.contains("`steps`") && error.contains("keywords, paragraphs, sentences or auto"), "{error}");
    }

    #[test]
    fn paragraphs_begin_after_blank_lines() {
        let parts = ["\n\nOne.\nStill one.\n\n", "Two\r\n\r\n", "Three\n \t\n\n  ", "四。五。\n\n"];
        assert_eq!(cut(Boundaries::Paragraphs, &parts.concat()), parts);
        // White space at the end belongs to the paragraph before it, because more white space may follow.
        assert_eq!(segment_by(Boundaries::Paragraphs, "a\n\n", Tail::Open).len(), 1);
    }

    #[test]
    fn sentences_end_in_many_scripts() {
        sentences(&[
            "我们需要计算 3.5 + 2。",
            "结果是 5.5！",
            "对吗？",
            "（对。）",
            "“是的。”",
            "然后继续……好。\n",
            "完",
        ]);
        sentences(&["まず式を整理する。", "「これは正しい。」", "では次に、x = 2 とする。", "なぜ？\n\n", "なぜなら"]);
        sentences(&[
            "Wir suchen 2x. ",
            "Also z. B. Werte über 3.14 usw. oder mehr! ",
            "Stimmt das? ",
            "„Ja.“ Gut.\n",
            "Ende",
        ]);
        sentences(&["¿Cuánto es? ", "Es 3,5. ", "¡Bien! ", "«Así es.» ", "Seguimos… pero no. ", "Fin."]);
        sentences(&["هل هذا صحيح؟ ", "نعم، إنه صحيح. ", "إذن نكمل۔ ", "النهاية"]);
        sentences(&["पहले हम x निकालते हैं। ", "फिर y = 2। ", "क्या यह सही है? ", "हाँ"]);
        sentences(&["It is 2. ", "(Really.) ", "**Done.** ", "\"Yes!\" ", "Hmm... ", "OK"]);
    }

    #[test]
    fn decimals_abbreviations_and_list_numbers_do_not_end_sentences() {
        for whole in [
            "pi is 3.14 or so",
            "take e.g. x and i.e. y",
            "J. Smith and z. B. Werte und d. h. Zahlen",
            "1. Let x be\n 2. Let y be\n10. Let z be",
            "f(x).g(y) and example.com/?q=A",
            "wait... what? no! yes… but",
        ] {
            assert_eq!(cut(Boundaries::Sentences, whole), [whole]);
        }
        // A number at the end of a sentence does end it, and so does an abbreviation of several letters before a
        // capital.
        sentences(&["x is 3. ", "Then y is 4. ", "Ask Dr. ", "Who"]);
    }

    #[test]
    fn auto_cuts_at_keywords_as_long_as_there_are_any() {
        let text = "Okay, one. Two.\n\nThree! Wait, four.\n\nSo five.".repeat(100);
        assert_eq!(
            segment_by(Boundaries::Auto, &text, Tail::Closed),
            segment_by(Boundaries::Keywords, &text, Tail::Closed)
        );
        let silence = format!("Okay. {}", "It goes on. ".repeat((SILENCE - 6) / 12));
        assert_eq!(cut(Boundaries::Auto, &silence).len(), 1);
    }

    #[test]
    fn auto_falls_back_in_a_text_without_keywords_and_returns_to_them() {
        // 42 bytes a sentence. One step up to the first end of a sentence past LONG_STEP; no paragraph ends, so that
        // the next is as long.
        let chinese = "我们先考虑这个问题的条件。".repeat(40);
        let steps = segment_by(Boundaries::Auto, &chinese, Tail::Closed);
        let sizes: Vec<usize> = steps.iter().map(|s| s.end - s.start).collect();
        assert_eq!(sizes, [546, 546, 468]);
        assert_eq!(BoundaryCounts::new(&steps), BoundaryCounts { sentences: 2, ..Default::default() });

        // Paragraphs are steps, however short they are.
        let paragraphs = "我们先考虑。\n\n".repeat(60);
        let steps = segment_by(Boundaries::Auto, &paragraphs, Tail::Closed);
        assert_eq!((steps[0].end, steps[1].end - steps[1].start), (520, 20));
        assert_eq!(BoundaryCounts::new(&steps).sentences, 0);

        // A keyword always begins a step, and keeps the other rules away for SILENCE bytes.
        let mixed = format!("{chinese}Wait, {chinese}{chinese}");
        let steps = segment_by(Boundaries::Auto, &mixed, Tail::Closed);
        let wait = steps.iter().position(|s| s.keyword() == Some("Wait")).unwrap();
        assert_eq!(steps[wait].start, chinese.len());
        assert!((SILENCE..SILENCE + 60).contains(&(steps[wait].end - steps[wait].start)), "{steps:?}");
    }

    #[test]
    fn a_second_thought_begins_a_step_of_its_own() {
        for &(_, rule) in Boundaries::NAMES {
            let mut s = Segmenter::with_boundaries(rule);
            s.push("It is 2. So");
            assert_eq!(s.steps(Tail::Open).len(), if rule == Boundaries::Sentences { 2 } else { 1 });
            s.end_thought();
            s.end_thought();
            // The end of a thought ends a word. A thought without text is no step.
            let first =
                if matches!(rule, Boundaries::Keywords | Boundaries::Auto | Boundaries::Sentences) { 2 } else { 1 };
            assert_eq!(s.steps(Tail::Open).len(), first, "{rule}");
            s.push("Now");
            s.push(" 3.");
            let steps = s.steps(Tail::Open);
            assert_eq!(steps.len(), first + 1, "{rule}");
            assert_eq!((steps[first].start, steps[first].end), (11, 17));
            let named = matches!(rule, Boundaries::Keywords | Boundaries::Auto);
            assert_eq!(steps[first].keyword(), named.then_some("Now"));
            assert_eq!(s.assign(&steps)[1..], [first, first]);
        }
        // In a new thought, `auto` expects keywords again.
        let mut s = Segmenter::with_boundaries(Boundaries::Auto);
        let chinese = "我们先考虑这个问题的条件。".repeat(40);
        s.push("Okay.");
        s.end_thought();
        s.push(&chinese);
        assert_eq!(s.steps(Tail::Closed).len(), 4);
    }

    #[test]
    fn a_fallback_is_told_only_where_auto_chose_it() {
        let note = |text: &str| {
            let steps = segment_by(Boundaries::Auto, text, Tail::Closed);
            BoundaryCounts::new(&steps).fallback(Boundaries::Auto)
        };
        assert_eq!(note("Okay. So what."), None);
        assert_eq!(note(&"好。".repeat(200)).unwrap(), "no keyword occurred: the steps are sentences");
        assert_eq!(note(&"好。\n\n".repeat(200)).unwrap(), "no keyword occurred: the steps are paragraphs");
        let both = format!("Wait. {}", "好。\n\n".repeat(400));
        assert_eq!(note(&both).unwrap(), "long stretches have no keyword: their steps are paragraphs");
        assert_eq!(note("好。"), None, "one short step is no fallback");
    }

    #[test]
    fn runs_of_marks_and_spaces_take_linear_time() {
        // If each byte of such a run were scanned backwards, this would take 10^10 steps.
        for run in [")", " ", "\n", ".", "。", "1", "*", "… ", ". ) "] {
            let mut segmenter = Segmenter::with_boundaries(Boundaries::Sentences);
            segmenter.push(run.repeat(100_000));
            segmenter.steps(Tail::Open);
        }
    }
}
