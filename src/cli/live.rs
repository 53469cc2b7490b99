//! The generated text on a terminal: what a probe cuts is struck through where it stands.
//!
//! The text is written as it would be without this: into the terminal's scrollback, wrapped by the terminal, whole when it is
//! copied. Beside it [`Live`] keeps account of where each character lies, in rows counted up from the cursor. After a probe it
//! goes up to the first row that changed, writes from there to the end once more in other colours, and is where it was. What has
//! scrolled away cannot be reached and stays as it is.
//!
//! Nothing is asked of the terminal, so the account may become wrong: when the window changes its size, when the process was
//! stopped and other programs wrote, behind a character on whose width terminals disagree. Then the account is given up, and
//! begins anew at the next line of the text; what stands above it is left alone. A status line stands below the text and is
//! erased before anything is written.
//!
//! All of it is strings in and strings out; [`super::screen`] writes them.
use std::collections::VecDeque;

use unicode_width::UnicodeWidthChar;

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The answer.
    Plain,
    /// The thinking: dim.
    Thinking,
    /// Thinking that is no longer cached: struck through, and red for terminals that cannot strike.
    Cut,
    /// The status line.
    Status,
}

impl Look {
    /// From any look to this one.
    pub fn pen(self) -> &'static str {
        match self {
            Self::Plain => "\x1b[0m",
            Self::Thinking => "\x1b[0;2m",
            Self::Cut => "\x1b[0;2;9;31m",
            Self::Status => "\x1b[0;36m",
        }
    }
}

/// A character and the token it came with.
#[derive(Debug, Clone, Copy)]
struct Glyph {
    c: char,
    token: usize,
    look: Look,
}

/// The text on a terminal of a known size.
#[derive(Debug)]
pub struct Live {
    cols: usize,
    lines: usize,
    /// Whether `glyphs`, `rows` and `col` say what stands on the terminal.
    known: bool,
    glyphs: VecDeque<Glyph>,
    /// Where each row begins, as an index into `glyphs`; the last is the cursor's.
    rows: VecDeque<usize>,
    /// The cursor's column; `cols` where the row is full and the terminal waits for the next character to wrap.
    col: usize,
    look: Look,
    status: String,
    /// While the status line stands below the text: the character that must be written again before the text goes on.
    standing: Option<Option<Glyph>>,
}

impl Live {
    /// A text that begins at the start of a line.
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

    /// The window's size now; a change makes the account void.
    pub fn resize(&mut self, cols: usize, lines: usize) {
        if (cols, lines) != (self.cols, self.lines) {
            (self.cols, self.lines) = (cols, lines);
            self.forget();
        }
    }

    /// Somebody else may have written: the account is void.
    pub fn forget(&mut self) {
        self.known = false;
        self.glyphs.clear();
        self.rows = VecDeque::from([0]);
    }

    /// What to write so that `text` of that token stands at the end. `text` holds no control characters but newline and tab.
    pub fn push(&mut self, text: &str, look: Look, token: usize) -> String {
        let mut out = self.take_status();
        self.dip(look, &mut out);
        for c in text.chars() {
            // A tab would leave what lies under it, and end where the terminal likes.
            let (c, times) = if c == '\t' { (' ', 4) } else { (c, 1) };
            for _ in 0..times {
                out.push(c);
                self.lay(Glyph { c, token, look });
            }
        }
        self.trim();
        self.put_status(&mut out);
        out
    }

    /// What to write so that the tokens for which `cut` says so are struck through, as far as they are still on the screen.
    pub fn strike(&mut self, cut: impl Fn(usize) -> bool) -> String {
        let mut first = None;
        for (at, glyph) in self.glyphs.iter_mut().enumerate() {
            if glyph.look == Look::Thinking && cut(glyph.token) {
                glyph.look = Look::Cut;
                first.get_or_insert(at);
            }
        }
        let Some(first) = first.filter(|_| self.known) else { return String::new() };
        // The cursor's row is the last but one at the lowest, with the status line below: so far up is surely on the screen.
        let here = self.rows.len() - 1;
        let row = self.rows.partition_point(|&start| start <= first) - 1;
        let row = row.max(here.saturating_sub(self.lines.saturating_sub(2)));
        let mut out = self.take_status();
        // Terminals that know this mode show all of it at once, others ignore it.
        out += "\x1b[?2026h";
        if here > row {
            out += &format!("\x1b[{}A", here - row);
        }
        out.push('\r');
        for at in self.rows[row]..self.glyphs.len() {
            let glyph = self.glyphs[at];
            self.dip(glyph.look, &mut out);
            out.push(glyph.c);
        }
        out += "\x1b[?2026l";
        self.put_status(&mut out);
        out
    }

    /// What to write so that this line stands below the text; an empty one takes it away.
    pub fn status(&mut self, line: String) -> String {
        let mut out = self.take_status();
        self.status = line;
        self.put_status(&mut out);
        out
    }

    /// What to write so that the text stands complete and the cursor on a line of its own.
    pub fn end(&mut self) -> String {
        self.status.clear();
        let mut out = self.take_status();
        self.dip(Look::Plain, &mut out);
        if !self.known || self.col > 0 {
            out.push('\n');
        }
        *self = Self::new(self.cols, self.lines);
        out
    }

    fn dip(&mut self, look: Look, out: &mut String) {
        if look != self.look {
            self.look = look;
            *out += look.pen();
        }
    }

    /// Follows one character on its way into the terminal.
    fn lay(&mut self, glyph: Glyph) {
        if glyph.c == '\n' {
            if !self.known {
                // The start of a line, wherever it is: the account begins here.
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

    /// Lets go of what has surely scrolled away.
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
        // A full row ends in a state that moving the cursor destroys; its last character, written again, restores it.
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
        self.dip(Look::Status, out);
        *out += &line;
        *out += &format!("\x1b[A\x1b[{}G", self.col - back + 1);
        self.standing = Some(tail);
    }

    fn take_status(&mut self) -> String {
        let mut out = String::new();
        if let Some(tail) = self.standing.take() {
            // Not in the status line's colours: some terminals erase with them.
            self.dip(Look::Plain, &mut out);
            out += "\x1b[J";
            if let Some(glyph) = tail {
                self.dip(glyph.look, &mut out);
                out.push(glyph.c);
            }
        }
        out
    }
}

/// The columns a character takes, where terminals agree about it.
fn sure_width(c: char) -> Option<usize> {
    match c as u32 {
        // Scripts that shape, reorder or stack; conjoining Jamo.
        0x0590..=0x10ff | 0x1100..=0x11ff | 0x1700..=0x18af | 0x1900..=0x1cff | 0xa800..=0xabff | 0xd7b0..=0xd7ff => {
            None
        }
        // Zero width and directional characters, keycaps, variation selectors.
        0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0x20e3 | 0xfe00..=0xfe0f | 0xfeff => None,
        // Private use, emoji and what else is newer than many a terminal.
        0xe000..=0xf8ff | 0x1_0000..=0x1_ffff | 0xe_0000.. => None,
        _ => c.width().filter(|width| *width > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal as a person sees it.
    struct Terminal(avt::Terminal);

    impl Terminal {
        fn new(cols: usize, lines: usize) -> Self {
            Self(avt::Terminal::with_scrollback(cols, lines, None).unwrap())
        }

        fn write(&mut self, text: &str) {
            // What the tty's driver makes of a newline.
            self.0.feed(text.replace('\n', "\r\n").as_str());
        }

        fn lines(&self) -> Vec<String> {
            self.0.primary_screen().all_lines().map(|l| l.text().trim_end().to_string()).collect()
        }

        /// The text with rows that the terminal itself wrapped joined, without blanks: a wide character may leave one at an edge.
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

        /// The struck text on the screen and in the scrollback.
        fn struck(&self) -> String {
            let cells = |line: &avt::Line| {
                let struck = line.cells().iter().filter(|c| c.pen().is_strikethrough() && c.width() > 0);
                struck.map(avt::Cell::char).collect::<String>()
            };
            self.0.primary_screen().all_lines().map(cells).collect()
        }
    }

    /// Tokens of a text: words with the blank before them.
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

    /// Streams the text with a status line after every token, and strikes every third token halfway and at the end.
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
            // All of it that was on the screen: the end of what should be struck.
            let (all, seen) = (bare(&struck), bare(&terminal.struck()));
            assert!(
                !seen.is_empty() && seen.len() < all.len() && all.ends_with(&seen[seen.len() / 2..]),
                "{lines}: {seen}"
            );
        }
    }

    #[test]
    fn a_resize_in_the_middle_loses_and_doubles_nothing() {
        // Without wide characters: avt loses some of them when it wraps anew, whoever wrote them.
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
            // The account begins again behind the next newline: later text is struck as ever.
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
