//! The generated text on a terminal. Tokens that a probe evicts are struck through in place.
//!
//! The text is written as ordinary output: it goes into the terminal's scrollback, the terminal wraps it, and it can
//! be copied as a whole. At the same time, [`Live`] records the position of each character, in rows counted up from
//! the cursor. After a probe, it moves the cursor up to the first row that changed and writes the text from there to
//! the end again, in other colours. The cursor is then where it was before. Text that has scrolled out of the window
//! cannot be reached and does not change.
//!
//! The terminal is never queried, so the recorded positions can become wrong: when the window changes its size, when
//! the process was stopped and other programs wrote to the terminal, and after a character whose width differs
//! between terminals. The positions are then discarded, and recording starts again at the next line of the text; the
//! text above that line does not change any more. A status line is shown below the text, and erased before anything
//! else is written.
//!
//! The functions take strings and return strings to write; [`super::screen`] writes them.
use std::collections::VecDeque;

use unicode_width::UnicodeWidthChar;

/// The style of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The answer, without any style.
    Plain,
    /// The thinking, which is dim.
    Thinking,
    /// Thinking that was evicted from the cache: struck through, and red for terminals that cannot strike text
    /// through.
    Cut,
    /// The status line below the text.
    Status,
}

impl Look {
    /// The escape sequence that switches to this style from any other.
    pub fn pen(self) -> &'static str {
        match self {
            Self::Plain => "\x1b[0m",
            Self::Thinking => "\x1b[0;2m",
            Self::Cut => "\x1b[0;2;9;31m",
            Self::Status => "\x1b[0;36m",
        }
    }
}

/// A character, the token that it belongs to, and its style.
#[derive(Debug, Clone, Copy)]
struct Glyph {
    c: char,
    token: usize,
    look: Look,
}

/// The text on a terminal with a known size.
#[derive(Debug)]
pub struct Live {
    cols: usize,
    lines: usize,
    /// Whether `glyphs`, `rows` and `col` describe what is on the terminal.
    known: bool,
    glyphs: VecDeque<Glyph>,
    /// The index in `glyphs` at which each row starts. The cursor is in the last row.
    rows: VecDeque<usize>,
    /// The column of the cursor. It is `cols` if the row is full, in which case the terminal wraps at the next
    /// character.
    col: usize,
    look: Look,
    status: String,
    /// `Some` while the status line is shown. The inner value is the character that must be written again before more
    /// text is written, if there is one.
    standing: Option<Option<Glyph>>,
}

impl Live {
    /// An empty text, with the cursor at the start of a line.
    pub fn new(cols: usize, lines: usize) -> Self {
        Self {
            cols,
            lines,
            known: true,
            glyphs: VecDeque::new(),
            rows: VecDeque::from([0]),
            col: 0,
            look: Look::Plain,
            status: String::new(),
            standing: None,
        }
    }

    /// Sets the current size of the window. A change discards the recorded positions.
    pub fn resize(&mut self, cols: usize, lines: usize) {
        if (cols, lines) != (self.cols, self.lines) {
            (self.cols, self.lines) = (cols, lines);
            self.forget();
        }
    }

    /// Discards the recorded positions, for example because another program may have written to the terminal.
    pub fn forget(&mut self) {
        self.known = false;
        self.glyphs.clear();
        self.rows = VecDeque::from([0]);
    }

    /// Returns what to write to append `text`, which belongs to `token`. Newline and tab are the only control
    /// characters that `text` may contain.
    pub fn push(&mut self, text: &str, look: Look, token: usize) -> String {
        let mut out = self.take_status();
        self.set_style(look, &mut out);
        for c in text.chars() {
            // A tab would not overwrite the text below it, and its width depends on the terminal.
            let (c, times) = if c == '\t' { (' ', 4) } else { (c, 1) };
            for _ in 0..times {
                out.push(c);
                self.place(Glyph { c, token, look });
            }
        }
        self.trim();
        self.put_status(&mut out);
        out
    }

    /// Returns what to write to strike through the tokens for which `cut` is true, as far as they are still in the
    /// window.
    pub fn strike(&mut self, cut: impl Fn(usize) -> bool) -> String {
        let mut first = None;
        for (at, glyph) in self.glyphs.iter_mut().enumerate() {
            if glyph.look == Look::Thinking && cut(glyph.token) {
                glyph.look = Look::Cut;
                first.get_or_insert(at);
            }
        }
        let Some(first) = first.filter(|_| self.known) else { return String::new() };
        // The cursor is at most in the last row but one, because the status line is below it. Rows up to this
        // distance above the cursor are therefore certainly in the window.
        let here = self.rows.len() - 1;
        let row = self.rows.partition_point(|&start| start <= first) - 1;
        let row = row.max(here.saturating_sub(self.lines.saturating_sub(2)));
        let mut out = self.take_status();
        // Synchronized output: terminals that support this mode show the changes all at once, others ignore it.
        out += "\x1b[?2026h";
        if here > row {
            out += &format!("\x1b[{}A", here - row);
        }
        out.push('\r');
        for at in self.rows[row]..self.glyphs.len() {
            let glyph = self.glyphs[at];
            self.set_style(glyph.look, &mut out);
            out.push(glyph.c);
        }
        out += "\x1b[?2026l";
        self.put_status(&mut out);
        out
    }

    /// Returns what to write to show `line` below the text. An empty line removes the status line.
    pub fn status(&mut self, line: String) -> String {
        let mut out = self.take_status();
        self.status = line;
        self.put_status(&mut out);
        out
    }

    /// Returns what to write to end the text: without a status line, and with the cursor at the start of a new line.
    pub fn end(&mut self) -> String {
        self.status.clear();
        let mut out = self.take_status();
        self.set_style(Look::Plain, &mut out);
        if !self.known || self.col > 0 {
            out.push('\n');
        }
        *self = Self::new(self.cols, self.lines);
        out
    }

    fn set_style(&mut self, look: Look, out: &mut String) {
        if look != self.look {
            self.look = look;
            *out += look.pen();
        }
    }

    /// Records the position of a character that is being written.
    fn place(&mut self, glyph: Glyph) {
        if glyph.c == '\n' {
            if !self.known {
                // The position is known again, because this is the start of a line. Recording starts here.
                self.known = true;
                self.glyphs.clear();
                self.rows = VecDeque::from([0]);
            } else {
                self.glyphs.push_back(glyph);
                self.rows.push_back(self.glyphs.len());
            }
            self.col = 0;
            return;
        }
        let Some(width) = sure_width(glyph.c).filter(|w| *w <= self.cols) else { return self.forget() };
        if !self.known {
            return;
        }
        if self.col + width > self.cols {
            self.rows.push_back(self.glyphs.len());
            self.col = 0;
        }
        self.glyphs.push_back(glyph);
        self.col += width;
    }

    /// Forgets text that has certainly scrolled out of the window.
    fn trim(&mut self) {
        if self.rows.len() <= 2 * self.lines.max(64) {
            return;
        }
        let gone = self.rows.len() - self.lines.max(64);
        let from = self.rows[gone];
        self.glyphs.drain(..from);
        self.rows.drain(..gone);
        self.rows.iter_mut().for_each(|start| *start -= from);
    }

    fn put_status(&mut self, out: &mut String) {
        if self.status.is_empty() || !self.known || self.cols < 16 || self.lines < 4 {
            return;
        }
        // After a full row, the terminal waits to wrap. Moving the cursor ends this state; writing the last character
        // of the row again restores it.
        let tail = self.glyphs.back().copied().filter(|_| self.col == self.cols);
        let back = tail.and_then(|glyph| glyph.c.width()).unwrap_or(0);
        let mut left = self.cols - 1;
        let fits = |c: &char| {
            let width = c.width().unwrap_or(0);
            let fits = width <= left;
            left = left.saturating_sub(width);
            fits
        };
        let line: String = self.status.chars().take_while(fits).collect();
        out.push('\n');
        self.set_style(Look::Status, out);
        *out += &line;
        *out += &format!("\x1b[A\x1b[{}G", self.col - back + 1);
        self.standing = Some(tail);
    }

    fn take_status(&mut self) -> String {
        let mut out = String::new();
        if let Some(tail) = self.standing.take() {
            // The style is reset first, because some terminals erase with the current colours.
            self.set_style(Look::Plain, &mut out);
            out += "\x1b[J";
            if let Some(glyph) = tail {
                self.set_style(glyph.look, &mut out);
                out.push(glyph.c);
            }
        }
        out
    }
}

/// The number of columns of a character, or `None` if terminals disagree about it.
fn sure_width(c: char) -> Option<usize> {
    match c as u32 {
        // Scripts whose characters change shape, are reordered or are stacked; conjoining Jamo.
        0x0590..=0x10ff | 0x1100..=0x11ff | 0x1700..=0x18af | 0x1900..=0x1cff | 0xa800..=0xabff | 0xd7b0..=0xd7ff => {
            None
        }
        // Zero-width and directional characters, keycaps and variation selectors.
        0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0x20e3 | 0xfe00..=0xfe0f | 0xfeff => None,
        // Private use, emoji, and other characters that many terminals do not know yet.
        0xe000..=0xf8ff | 0x1_0000..=0x1_ffff | 0xe_0000.. => None,
        _ => c.width().filter(|width| *width > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal emulator, to see what a person would see.
    struct Terminal(avt::Terminal);

    impl Terminal {
        fn new(cols: usize, lines: usize) -> Self {
            Self(avt::Terminal::with_scrollback(cols, lines, None).unwrap())
        }

        fn write(&mut self, text: &str) {
            // The terminal driver turns a newline into these two characters.
            self.0.feed(text.replace('\n', "\r\n").as_str());
        }

        fn lines(&self) -> Vec<String> {
            self.0.primary_screen().all_lines().map(|l| l.text().trim_end().to_string()).collect()
        }

        /// The text, with rows that the terminal wrapped joined again, and without blanks, because a wide character
        /// may leave a blank at the edge of a row.
        fn text(&self) -> String {
            let mut text = String::new();
            for line in self.0.primary_screen().all_lines() {
                match line.is_wrapped() {
                    true => text += &line.text(),
                    false => text += &(line.text().trim_end().to_string() + "\n"),
                }
            }
            spaceless(text.trim_end())
        }

        /// The text that is struck through, in the window and in the scrollback.
        fn struck(&self) -> String {
            let cells = |line: &avt::Line| {
                let struck = line.cells().iter().filter(|c| c.pen().is_strikethrough() && c.width() > 0);
                struck.map(avt::Cell::char).collect::<String>()
            };
            self.0.primary_screen().all_lines().map(cells).collect()
        }
    }

    /// Splits a text into tokens: words with the blank before them.
    fn tokens(text: &str) -> Vec<String> {
        let mut tokens = vec![String::new()];
        for c in text.chars() {
            if c.is_whitespace() || c == '水' {
                tokens.push(String::new());
            }
            tokens.last_mut().unwrap().push(c);
        }
        tokens
    }

    const TEXT: &str = "Okay, so we need the sum of 12 and 30.\nFirst add the tens: 10 + 30 = 40.\n\nWait, 2 more: 42. 水水水水水水 Größe \
                        ∑ θ² ≤ 7\tand a long lastwordthatwrapsovertheedgeofeverynarrowterminalforsure. So 42. Check: é done.";

    /// Streams the text with a status line after every token, and strikes every third token through, halfway and at
    /// the end.
    fn stream(terminal: &mut Terminal, live: &mut Live, text: &str) -> String {
        let tokens = tokens(text);
        let half = tokens.len() / 2;
        let cut = |limit: usize| move |t: usize| t % 3 == 1 && t < limit;
        let mut struck = String::new();
        for (i, token) in tokens.iter().enumerate() {
            terminal.write(&live.push(token, Look::Thinking, i));
            terminal.write(&live.status(format!(
                "cached {i} of {} tokens · a status line that is longer than narrow windows",
                tokens.len()
            )));
            if i == half || i + 1 == tokens.len() {
                terminal.write(&live.strike(cut(i)));
            }
            if cut(tokens.len() - 1)(i) {
                struck += token;
            }
        }
        struck
    }

    fn bare(text: &str) -> String {
        text.chars().filter(|c| !c.is_whitespace()).collect()
    }

    fn spaceless(text: &str) -> String {
        text.chars().filter(|c| *c != ' ' && *c != '\t').collect()
    }

    #[test]
    fn text_is_whole_and_what_was_cut_is_struck_at_every_width() {
        for cols in 16..90 {
            let (mut terminal, mut live) = (Terminal::new(cols, 40), Live::new(cols, 40));
            terminal.write("$ secateur run\n");
            let struck = stream(&mut terminal, &mut live, TEXT);
            assert!(terminal.lines().iter().any(|l| l.starts_with("cached ")), "{cols}: no status line");
            terminal.write(&live.end());
            terminal.write("$ \n");
            assert_eq!(terminal.text(), spaceless(&format!("$ secateur run\n{TEXT}\n$")), "{cols} columns");
            assert_eq!(bare(&terminal.struck()), bare(&struck), "{cols} columns");
        }
    }

    #[test]
    fn what_has_scrolled_away_is_left_alone_and_nothing_is_doubled() {
        for lines in 4..12 {
            let (mut terminal, mut live) = (Terminal::new(24, lines), Live::new(24, lines));
            let long = TEXT.repeat(3);
            let struck = stream(&mut terminal, &mut live, &long);
            terminal.write(&live.end());
            assert_eq!(terminal.text(), spaceless(&long), "{lines} lines");
            // The struck text must be the end of what should be struck: the part that was in the window.
            let (all, seen) = (bare(&struck), bare(&terminal.struck()));
            assert!(
                !seen.is_empty() && seen.len() < all.len() && all.ends_with(&seen[seen.len() / 2..]),
                "{lines}: {seen}"
            );
        }
    }

    #[test]
    fn a_resize_in_the_middle_loses_and_doubles_nothing() {
        // This text has no wide characters, because avt loses some of them when it wraps rows again.
        let text = TEXT.repeat(2).replace('水', "ab");
        for (from, to) in [(60, 33), (33, 60), (40, 39), (24, 25)] {
            let (mut terminal, mut live) = (Terminal::new(from, 12), Live::new(from, 12));
            let tokens = tokens(&text);
            let resized_at = tokens.len() / 3;
            for (i, token) in tokens.iter().enumerate() {
                if i == resized_at {
                    terminal.0.resize(to, 9);
                    live.resize(to, 9);
                }
                terminal.write(&live.push(token, Look::Thinking, i));
                terminal.write(&live.status("cached 1 of 2".into()));
                if i % 20 == 19 || i + 1 == tokens.len() {
                    terminal.write(&live.strike(|t| t + 3 < i));
                }
            }
            terminal.write(&live.end());
            assert_eq!(terminal.text(), spaceless(&text), "{from} to {to}");
            // Recording starts again after the next newline, so later text is struck through as usual.
            assert!(terminal.struck().contains("lastword"), "{from} to {to}: {}", terminal.struck());
        }
    }

    #[test]
    fn behind_a_character_of_unsure_width_only_the_next_line_is_repainted() {
        for unsure in ["👩‍👩‍👧", "e\u{301}", "\u{200b}", "✔\u{fe0f}", "नमस्ते", "שלום", "\u{e000}"]
        {
            let (mut terminal, mut live) = (Terminal::new(40, 12), Live::new(40, 12));
            for (i, token) in ["one ", unsure, "two\n", "three ", "four"].iter().enumerate() {
                terminal.write(&live.push(token, Look::Thinking, i));
            }
            assert_eq!(live.strike(|t| t == 0), "", "there is nothing left to repaint");
            terminal.write(&live.strike(|t| t == 3));
            assert_eq!(terminal.struck(), "three ", "{unsure:?}");
        }
    }

    #[test]
    fn the_answer_is_never_struck_and_pens_do_not_leak() {
        let (mut terminal, mut live) = (Terminal::new(40, 12), Live::new(40, 12));
        terminal.write(&live.push("think ", Look::Thinking, 0));
        terminal.write(&live.push("answer", Look::Plain, 1));
        terminal.write(&live.strike(|_| true));
        terminal.write(&live.end());
        terminal.write("after");
        assert_eq!((terminal.struck().as_str(), terminal.text().as_str()), ("think ", "thinkanswer\nafter"));
        let pens: Vec<bool> = terminal
            .0
            .primary_screen()
            .all_lines()
            .nth(1)
            .unwrap()
            .cells()
            .iter()
            .map(|c| c.pen().is_faint())
            .collect();
        assert!(pens.iter().all(|faint| !faint));
        assert_eq!(live.end(), "", "an ended text ends in nothing");
    }

    #[test]
    fn memory_does_not_grow_with_the_text() {
        let mut live = Live::new(20, 10);
        for i in 0..20_000 {
            live.push("some words\n", Look::Thinking, i);
        }
        assert!(live.rows.len() <= 129 && live.glyphs.len() <= 129 * 11, "{} rows", live.rows.len());
    }
}
