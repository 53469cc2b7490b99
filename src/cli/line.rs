//! Reading a message on a terminal: a line that can be edited, spans rows, takes pasted paragraphs whole, and recalls earlier
//! ones.
//!
//! ```text
//! bytes → Keys → Key → Line (text and cursor; no terminal) → layout (rows and columns) → what is written
//! ```
//!
//! Where the terminal cannot be switched to single keys (Windows, whose console edits lines by itself; `TERM=dumb`) a plain
//! line is read.
#![cfg_attr(not(unix), allow(dead_code, reason = "the editor is Unix's; its tests run everywhere"))]
use std::collections::VecDeque;
use std::io::{self, BufRead, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::signals;

/// What a person did at the prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Entered a message.
    Text(String),
    /// Pressed Ctrl-C.
    Interrupted,
    /// Pressed Ctrl-D on an empty line, or the input has ended.
    Ended,
}

/// Reads messages and remembers them.
#[derive(Default)]
pub struct Editor {
    history: Vec<String>,
}

impl Editor {
    /// Shows `prompt` and reads a message.
    pub fn read(&mut self, prompt: &str) -> io::Result<Input> {
        #[cfg(unix)]
        if std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            && let Ok(mut terminal) = unix::Terminal::open()
        {
            return self.edit(prompt, &mut terminal);
        }
        plain(prompt)
    }

    /// Remembers a message, for Up to recall.
    pub fn remember(&mut self, text: &str) {
        if self.history.last().is_none_or(|last| last != text) {
            self.history.push(text.to_string());
        }
    }

    #[cfg(unix)]
    fn edit(&self, prompt: &str, terminal: &mut unix::Terminal) -> io::Result<Input> {
        let (mut line, mut keys, mut shown) = (Line::new(&self.history), Keys::default(), Shown::default());
        let draw = |line: &Line<'_>, shown: &mut Shown| {
            let mut out = io::stdout().lock();
            out.write_all(shown.draw(prompt, line, unix::columns()).as_bytes()).and_then(|()| out.flush())
        };
        draw(&line, &mut shown)?;
        loop {
            let key = match keys.next() {
                Some(key) => key,
                None => {
                    match terminal.read(keys.is_waiting())? {
                        unix::Bytes::Some(bytes) => keys.feed(&bytes),
                        unix::Bytes::Nothing => keys.give_up(),
                        unix::Bytes::End => return Ok(Input::Ended),
                    }
                    continue;
                }
            };
            let done = match key {
                Key::Interrupt => Some(Input::Interrupted),
                Key::DeleteOrEnd if line.text.is_empty() => Some(Input::Ended),
                Key::Enter if !line.goes_on() => Some(Input::Text(line.text.iter().collect())),
                Key::Suspend => {
                    terminal.suspend()?;
                    shown = Shown::default();
                    None
                }
                Key::Clear => {
                    print(b"\x1b[H\x1b[2J")?;
                    shown = Shown::default();
                    None
                }
                key => {
                    line.press(key);
                    None
                }
            };
            if let Some(input) = done {
                // The cursor goes behind the text, so that what follows does not overwrite it.
                line.at = line.text.len();
                draw(&line, &mut shown)?;
                print(b"\r\n")?;
                return Ok(input);
            }
            // Several keys that came together are shown together.
            if keys.is_empty() {
                draw(&line, &mut shown)?;
            }
        }
    }
}

#[cfg(unix)]
fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// A line as the terminal itself edits it.
fn plain(prompt: &str) -> io::Result<Input> {
    let mut out = io::stdout().lock();
    out.write_all(prompt.as_bytes()).and_then(|()| out.flush())?;
    let mut text = Vec::new();
    let prompting = signals::prompting(|| ());
    let read = io::stdin().lock().read_until(b'\n', &mut text);
    drop(prompting);
    Ok(match read? {
        0 => Input::Ended,
        _ => Input::Text(String::from_utf8_lossy(&text).trim_end_matches(['\r', '\n']).to_string()),
    })
}

// --------------------------------------------------------------------------------------------------------------- keys

/// What a key means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Text(String),
    Enter,
    NewLine,
    Left,
    Right,
    WordLeft,
    WordRight,
    Home,
    End,
    Up,
    Down,
    Backspace,
    Delete,
    DeleteOrEnd,
    KillWord,
    KillBefore,
    KillAfter,
    Clear,
    Interrupt,
    Suspend,
}

/// Keys from a terminal's bytes.
#[derive(Default)]
struct Keys {
    bytes: VecDeque<u8>,
    /// The text of a paste that has not ended.
    paste: Option<Vec<u8>>,
}

const PASTE_BEGINS: &[u8] = b"\x1b[200~";
const PASTE_ENDS: &[u8] = b"\x1b[201~";

impl Keys {
    fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether a key has begun that may or may not go on: an escape.
    fn is_waiting(&self) -> bool {
        self.bytes.front() == Some(&0x1b) && self.paste.is_none()
    }

    /// Nothing follows what has begun: it means nothing.
    fn give_up(&mut self) {
        self.bytes.clear();
    }

    /// The next key, or `None` until more bytes come.
    fn next(&mut self) -> Option<Key> {
        loop {
            if let Some(paste) = &mut self.paste {
                paste.extend(self.bytes.drain(..));
                let end = paste.windows(PASTE_ENDS.len()).position(|w| w == PASTE_ENDS)?;
                let rest = paste.split_off(end);
                self.bytes.extend(&rest[PASTE_ENDS.len()..]);
                let text = String::from_utf8_lossy(paste).replace("\r\n", "\n").replace('\r', "\n");
                self.paste = None;
                return Some(Key::Text(text));
            }
            let (first, len) = (*self.bytes.front()?, self.bytes.len());
            if first == 0x1b {
                let key = self.escape()?;
                if let Some(key) = key {
                    return Some(key);
                }
                continue;
            }
            if first >= 0x80 {
                let wanted = match first {
                    0xc0..=0xdf => 2,
                    0xe0..=0xef => 3,
                    0xf0..=0xf7 => 4,
                    _ => 1,
                };
                if len < wanted {
                    return None;
                }
                let bytes: Vec<u8> = self.bytes.drain(..wanted).collect();
                return Some(Key::Text(String::from_utf8_lossy(&bytes).into_owned()));
            }
            self.bytes.pop_front();
            return Some(match first {
                b'\r' => Key::Enter,
                b'\n' => Key::NewLine,
                0x01 => Key::Home,
                0x02 => Key::Left,
                0x03 => Key::Interrupt,
                0x04 => Key::DeleteOrEnd,
                0x05 => Key::End,
                0x06 => Key::Right,
                0x08 | 0x7f => Key::Backspace,
                0x0b => Key::KillAfter,
                0x0c => Key::Clear,
                0x0e => Key::Down,
                0x10 => Key::Up,
                0x15 => Key::KillBefore,
                0x17 => Key::KillWord,
                0x1a => Key::Suspend,
                b'\t' => Key::Text("    ".into()),
                0x00..=0x1f => continue,
                _ => Key::Text((first as char).to_string()),
            });
        }
    }

    /// A sequence that begins with an escape: `None` until it is complete, `Some(None)` for one that means nothing here.
    fn escape(&mut self) -> Option<Option<Key>> {
        let sequence: Vec<u8> = self.bytes.iter().copied().collect();
        let (len, key) = match sequence[1..] {
            [] => return None,
            [b'[' | b'O', ..] => {
                // Parameters, then the byte that ends it.
                let end = 2 + sequence[2..].iter().position(|b| (0x40..=0x7e).contains(b))?;
                let key = match &sequence[2..=end] {
                    b"D" => Some(Key::Left),
                    b"C" => Some(Key::Right),
                    b"A" => Some(Key::Up),
                    b"B" => Some(Key::Down),
                    b"H" | b"1~" | b"7~" => Some(Key::Home),
                    b"F" | b"4~" | b"8~" => Some(Key::End),
                    b"3~" => Some(Key::Delete),
                    b"1;5D" | b"1;3D" => Some(Key::WordLeft),
                    b"1;5C" | b"1;3C" => Some(Key::WordRight),
                    _ => None,
                };
                if sequence[..=end] == *PASTE_BEGINS {
                    self.paste = Some(Vec::new());
                }
                (end + 1, key)
            }
            [b'b', ..] => (2, Some(Key::WordLeft)),
            [b'f', ..] => (2, Some(Key::WordRight)),
            [b'\r' | b'\n', ..] => (2, Some(Key::NewLine)),
            [0x7f | 0x08, ..] => (2, Some(Key::KillWord)),
            [_, ..] => (2, None),
        };
        self.bytes.drain(..len);
        Some(key)
    }
}

// --------------------------------------------------------------------------------------------------------------- line

/// The text being written and the cursor in it.
struct Line<'a> {
    text: Vec<char>,
    at: usize,
    history: &'a [String],
    /// The entry of the history that is shown; its length: the draft.
    recalled: usize,
    draft: Vec<char>,
}

impl<'a> Line<'a> {
    fn new(history: &'a [String]) -> Self {
        Self { text: Vec::new(), at: 0, history, recalled: history.len(), draft: Vec::new() }
    }

    /// A backslash at the end is a wish for another line: it becomes one.
    fn goes_on(&mut self) -> bool {
        let goes_on = self.at == self.text.len() && self.text.last() == Some(&'\\');
        if goes_on {
            self.text.pop();
            self.text.push('\n');
            self.at = self.text.len();
        }
        goes_on
    }

    fn press(&mut self, key: Key) {
        match key {
            Key::Text(text) => self.insert(text.chars().filter(|c| *c == '\n' || !c.is_control())),
            Key::NewLine => self.insert(['\n']),
            Key::Left => self.at = self.at.saturating_sub(1),
            Key::Right => self.at = (self.at + 1).min(self.text.len()),
            Key::WordLeft => self.at = self.word_left(),
            Key::WordRight => {
                let word = |c: &char| c.is_alphanumeric();
                let skip = self.text[self.at..].iter().take_while(|c| !word(c)).count();
                self.at += skip;
                self.at += self.text[self.at..].iter().take_while(|c| word(c)).count();
            }
            Key::Home => self.at = 0,
            Key::End => self.at = self.text.len(),
            Key::Backspace if self.at > 0 => self.remove(self.at - 1, self.at),
            Key::Delete | Key::DeleteOrEnd if self.at < self.text.len() => self.remove(self.at, self.at + 1),
            Key::KillWord => self.remove(self.word_left(), self.at),
            Key::KillBefore => self.remove(0, self.at),
            Key::KillAfter => self.remove(self.at, self.text.len()),
            Key::Up if self.recalled > 0 => self.recall(self.recalled - 1),
            Key::Down if self.recalled < self.history.len() => self.recall(self.recalled + 1),
            _ => {}
        }
    }

    fn insert(&mut self, chars: impl IntoIterator<Item = char>) {
        let before = self.text.len();
        self.text.splice(self.at..self.at, chars);
        self.at += self.text.len() - before;
    }

    fn remove(&mut self, from: usize, to: usize) {
        self.text.drain(from..to);
        self.at = from;
    }

    fn word_left(&self) -> usize {
        let before = &self.text[..self.at];
        let blanks = before.iter().rev().take_while(|c| !c.is_alphanumeric()).count();
        self.at - blanks - before[..self.at - blanks].iter().rev().take_while(|c| c.is_alphanumeric()).count()
    }

    fn recall(&mut self, entry: usize) {
        if self.recalled == self.history.len() {
            self.draft = std::mem::take(&mut self.text);
        }
        self.recalled = entry;
        self.text =
            self.history.get(entry).map_or_else(|| std::mem::take(&mut self.draft), |text| text.chars().collect());
        self.at = self.text.len();
    }
}

// ------------------------------------------------------------------------------------------------------------- layout

/// What the terminal shows: widths of the rows down to the cursor's, whose is the cursor's column.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
struct Shown {
    rows: Vec<usize>,
}

impl Shown {
    /// What to write so that `line` stands where it stood, in `columns` columns, and the cursor where it belongs. Rows are
    /// broken here, not by the terminal, whose habits at the margin differ.
    fn draw(&mut self, prompt: &str, line: &Line<'_>, columns: usize) -> String {
        let columns = columns.max(2);
        let mut out = String::new();
        // Up to the prompt. A terminal that has become narrower has broken rows that fitted.
        if let Some((cursor, above)) = self.rows.split_last() {
            let up = above.iter().map(|width| width.div_ceil(columns).max(1)).sum::<usize>() + cursor / columns;
            if up > 0 {
                out += &format!("\x1b[{up}A");
            }
        }
        out += "\r\x1b[J";
        out += prompt;
        let mut rows = vec![prompt.width()];
        let mut cursor = None;
        for (i, c) in line.text.iter().chain([&'\n']).enumerate() {
            let width = c.width().unwrap_or(0);
            let column = rows[rows.len() - 1];
            if *c != '\n' && column + width > columns || *c == '\n' && column == columns {
                out += "\r\n";
                rows.push(0);
            }
            if i == line.at {
                cursor = Some(rows.clone());
            }
            match c {
                _ if i == line.text.len() => {}
                '\n' => {
                    out += "\r\n. ";
                    rows.push(2);
                }
                c => {
                    out.push(*c);
                    let last = rows.len() - 1;
                    rows[last] += width;
                }
            }
        }
        let cursor = cursor.unwrap_or_else(|| rows.clone());
        let up = rows.len() - cursor.len();
        if up > 0 {
            out += &format!("\x1b[{up}A");
        }
        out += "\r";
        let column = cursor[cursor.len() - 1];
        if column > 0 {
            out += &format!("\x1b[{column}C");
        }
        self.rows = cursor;
        out
    }
}

#[cfg(unix)]
mod unix {
    use std::io::{self, IsTerminal, Read};
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::{Signal, raise};
    use nix::sys::termios::{InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

    pub enum Bytes {
        Some(Vec<u8>),
        /// None came in time.
        Nothing,
        /// None will come.
        End,
    }

    /// Columns of the terminal.
    pub fn columns() -> usize {
        terminal_size::terminal_size().map_or(80, |(terminal_size::Width(columns), _)| columns.into())
    }

    /// Stdin, key by key. As it was when dropped.
    pub struct Terminal {
        before: Termios,
    }

    impl Terminal {
        pub fn open() -> io::Result<Self> {
            if !io::stdin().is_terminal() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            let terminal = Self { before: tcgetattr(io::stdin())? };
            terminal.keys()?;
            Ok(terminal)
        }

        /// Every key at once, none shown by the terminal, none a signal. Pastes are marked as such.
        fn keys(&self) -> io::Result<()> {
            let mut settings = self.before.clone();
            settings.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
            settings.input_flags &= !(InputFlags::ICRNL | InputFlags::INLCR | InputFlags::IXON);
            settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            settings.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
            tcsetattr(io::stdin(), SetArg::TCSADRAIN, &settings)?;
            super::print(b"\x1b[?2004h")
        }

        fn lines(&self) -> io::Result<()> {
            super::print(b"\x1b[?2004l")?;
            Ok(tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before)?)
        }

        /// What was typed; waits for it, but where a key has begun (`briefly`) not longer than its bytes take.
        pub fn read(&self, briefly: bool) -> io::Result<Bytes> {
            let stdin = io::stdin();
            if briefly {
                let mut waiting = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
                if poll(&mut waiting, PollTimeout::from(50u8))? == 0 {
                    return Ok(Bytes::Nothing);
                }
            }
            // Not through stdin's own buffer, which would hide from `poll` what it holds.
            let mut buffer = [0; 4096];
            let mut file = std::mem::ManuallyDrop::new(std::fs::File::from(stdin.as_fd().try_clone_to_owned()?));
            let read = file.read(&mut buffer);
            drop(std::mem::ManuallyDrop::into_inner(file));
            match read {
                Ok(0) => Ok(Bytes::End),
                Ok(n) => Ok(Bytes::Some(buffer[..n].to_vec())),
                // A window that changed its size.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Bytes::Some(Vec::new())),
                Err(e) => Err(e),
            }
        }

        /// Stops until the shell lets it go on.
        pub fn suspend(&mut self) -> io::Result<()> {
            self.lines()?;
            raise(Signal::SIGTSTP)?;
            self.keys()
        }
    }

    impl Drop for Terminal {
        fn drop(&mut self) {
            let _ = self.lines();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        keys.feed(bytes);
        std::iter::from_fn(|| keys.next()).collect()
    }

    fn text(t: &str) -> Key {
        Key::Text(t.into())
    }

    /// The text, with a bar where the cursor is.
    fn typed(history: &[String], bytes: &[u8]) -> String {
        let mut line = Line::new(history);
        keys(bytes).into_iter().for_each(|key| line.press(key));
        let (before, after) = line.text.split_at(line.at);
        before.iter().chain(&['|']).chain(after).collect()
    }

    #[test]
    fn bytes_become_keys_however_they_arrive() {
        let bytes = "aé🦙\x1b[D\x1b[1;5C\x1bOH\x1b[3~\x7f\x1b\x7f\r\x03".as_bytes();
        let expected = [
            text("a"),
            text("é"),
            text("🦙"),
            Key::Left,
            Key::WordRight,
            Key::Home,
            Key::Delete,
            Key::Backspace,
            Key::KillWord,
            Key::Enter,
            Key::Interrupt,
        ];
        assert_eq!(keys(bytes), expected);
        // Byte by byte they are the same.
        let mut slowly = Keys::default();
        let mut found = Vec::new();
        for byte in bytes {
            slowly.feed(&[*byte]);
            found.extend(std::iter::from_fn(|| slowly.next()));
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn an_escape_alone_and_unknown_keys_mean_nothing() {
        let mut lone = Keys::default();
        lone.feed(b"\x1b");
        assert!(lone.next().is_none() && lone.is_waiting());
        lone.give_up();
        lone.feed(b"[A");
        assert_eq!([lone.next(), lone.next()], [Some(text("[")), Some(text("A"))]);
        assert_eq!(keys(b"\x1b[99;1~\x1b[Zx\x00\x1dy\xffz"), [text("x"), text("y"), text("\u{fffd}"), text("z")]);
    }

    #[test]
    fn a_paste_is_one_text_with_its_lines() {
        let pasted = b"\x1b[200~fn a() {\r\n}\rb\x03\x1b[201~\r";
        assert_eq!(keys(pasted), [text("fn a() {\n}\nb\x03"), Key::Enter]);
        assert_eq!(typed(&[], pasted), "fn a() {\n}\nb|", "and no control character");
    }

    #[test]
    fn lines_are_edited() {
        assert_eq!(typed(&[], b"held\x1b[D\x1b[D\x7f\x1b[Cl"), "hll|d");
        assert_eq!(typed(&[], b"one two\x01X\x05Y"), "Xone twoY|");
        assert_eq!(typed(&[], b"one two, three\x17\x17"), "one |");
        assert_eq!(typed(&[], b"one two\x1bb\x0b"), "one |");
        assert_eq!(typed(&[], b"one two\x02\x15"), "|o");
        assert_eq!(typed(&[], b"\x7f\x1b[3~\x1b[D\x1b[C\x17"), "|");
        assert_eq!(typed(&[], "añb\x02\x02\x1b[3~".as_bytes()), "a|b");
    }

    #[test]
    fn history_is_recalled_and_the_draft_kept() {
        let history = ["first".to_string(), "second".to_string()];
        assert_eq!(typed(&history, b"dra\x1b[A"), "second|");
        assert_eq!(typed(&history, b"dra\x1b[A\x1b[A\x1b[A!"), "first!|");
        assert_eq!(typed(&history, b"dra\x1b[A\x1b[A\x1b[B\x1b[B\x1b[Bft"), "draft|");
        let mut editor = Editor::default();
        ["a", "a", "b"].iter().for_each(|text| editor.remember(text));
        assert_eq!(editor.history, ["a", "b"]);
    }

    #[test]
    fn a_backslash_at_the_end_goes_on() {
        let mut line = Line::new(&[]);
        keys(b"a\\").into_iter().for_each(|key| line.press(key));
        assert!(line.goes_on() && line.text == ['a', '\n'] && !line.goes_on());
        keys(b"\\x").into_iter().for_each(|key| line.press(key));
        assert!(!line.goes_on());
    }

    /// A terminal of so many columns, as much of it as the drawing uses; rows as text, and the cursor.
    fn screen(columns: usize, bytes: &[&str]) -> (Vec<String>, (usize, usize)) {
        let (mut cells, mut row, mut column) = (vec![vec![]; 40], 0usize, 0usize);
        for bytes in bytes {
            let mut chars = bytes.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\r' => column = 0,
                    '\n' => row += 1,
                    '\x1b' => {
                        let rest: String = chars.by_ref().take(1).collect();
                        assert_eq!(rest, "[");
                        let mut number = String::new();
                        let end = loop {
                            match chars.next().expect("a whole sequence") {
                                c if c.is_ascii_digit() => number.push(c),
                                c => break c,
                            }
                        };
                        let n = number.parse().unwrap_or(1);
                        match end {
                            'A' => row -= n,
                            'C' => column += n,
                            'J' => {
                                cells[row].truncate(column);
                                cells[row + 1..].iter_mut().for_each(Vec::clear);
                            }
                            other => panic!("{other}"),
                        }
                    }
                    c => {
                        let width = c.width().unwrap_or(0);
                        assert!(column + width <= columns, "nothing is written past the margin");
                        cells[row].resize(column, ' ');
                        cells[row].push(c);
                        // The right half of a wide character.
                        (1..width).for_each(|_| cells[row].push('\0'));
                        column += width;
                    }
                }
            }
        }
        let text = |row: &Vec<char>| row.iter().filter(|c| **c != '\0').collect::<String>();
        let rows: Vec<String> = cells.iter().map(text).collect();
        let last = rows.iter().rposition(|row| !row.is_empty()).map_or(0, |last| last + 1);
        (rows[..last].to_vec(), (row, column))
    }

    #[test]
    fn long_lines_wide_characters_and_new_lines_stand_where_they_should() {
        let mut line = Line::new(&[]);
        let mut shown = Shown::default();
        let mut drawn = Vec::new();
        let mut press = |line: &mut Line<'_>, bytes: &[u8]| {
            keys(bytes).into_iter().for_each(|key| line.press(key));
            drawn.push(shown.draw("> ", line, 8));
            screen(8, &drawn.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let rows = |rows: &[&str]| rows.iter().map(|r| r.to_string()).collect::<Vec<_>>();
        assert_eq!(press(&mut line, b""), (rows(&["> "]), (0, 2)));
        assert_eq!(press(&mut line, b"abcdef"), (rows(&["> abcdef"]), (1, 0)));
        assert_eq!(press(&mut line, b"gh"), (rows(&["> abcdef", "gh"]), (1, 2)));
        assert_eq!(press(&mut line, b"\x1b[D\x1b[D\x1b[D"), (rows(&["> abcdef", "gh"]), (0, 7)));
        assert_eq!(press(&mut line, b"\x01X"), (rows(&["> Xabcde", "fgh"]), (0, 3)));
        // A wide character does not fit into the last column; a new line has a mark of its own.
        assert_eq!(press(&mut line, "\x15\x0babcde漢\nz".as_bytes()), (rows(&["> abcde", "漢", ". z"]), (2, 3)));
        assert_eq!(press(&mut line, b"\x01"), (rows(&["> abcde", "漢", ". z"]), (0, 2)));
        assert_eq!(press(&mut line, b"\x0b"), (rows(&["> "]), (0, 2)));
    }
}
