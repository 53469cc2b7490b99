//! Reads a message at the prompt of a chat, with rustyline and a history that is kept between chats.
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Event, EventContext, EventHandler, KeyCode, KeyEvent, Modifiers, RepeatCount,
};

use super::{signals, state};

/// What the user did at the prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Entered a message.
    Text(String),
    /// Pressed Ctrl-C.
    Interrupted,
    /// Pressed Ctrl-D on an empty line, or the input has ended.
    Ended,
}

/// The number of messages in the history.
const HISTORY: usize = 1000;

/// Reads messages and remembers them.
pub struct Editor {
    editor: rustyline::Editor<(), FileHistory>,
    continued: Continued,
    /// The file of the history.
    file: Option<PathBuf>,
}

impl Editor {
    /// An editor with the history of earlier chats, if there is a [file](history_file) for it.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub fn new() -> io::Result<Self> {
        // With bracketed paste, a pasted text with several lines is one message.
        let config = Config::builder().bracketed_paste(true).tab_stop(4).build();
        let mut editor = rustyline::Editor::with_config(config).map_err(io_error)?;
        editor.set_max_history_size(HISTORY).map_err(io_error)?;
        let continued = Continued::default();
        let key = |code, modifiers| Event::from(KeyEvent(code, modifiers));
        editor.bind_sequence(
            key(KeyCode::Enter, Modifiers::NONE),
            EventHandler::Conditional(Box::new(Continuation(continued.clone()))),
        );
        for new_line in [key(KeyCode::Char('J'), Modifiers::CTRL), key(KeyCode::Enter, Modifiers::ALT)] {
            editor.bind_sequence(new_line, Cmd::Newline);
        }
        // Without completion, Tab would do nothing.
        editor.bind_sequence(key(KeyCode::Tab, Modifiers::NONE), Cmd::Insert(1, "    ".into()));
        let file = history_file();
        // The chat works without a history, so a missing or damaged file is ignored.
        file.as_ref().map(|file| editor.load_history(file));
        Ok(Self { editor, continued, file })
    }

    /// Shows `prompt` and reads a message.
    ///
    /// # Errors
    /// If the terminal cannot be read.
    pub fn read(&mut self, prompt: &str) -> io::Result<Input> {
        let _prompting = signals::prompting(terminal::restore_at_exit());
        let read = self.editor.readline(prompt);
        let continued = std::mem::take(&mut *self.continued.lock().unwrap_or_else(PoisonError::into_inner));
        match read {
            Ok(text) => Ok(Input::Text(without_continuations(&text, &continued))),
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::Ended),
            Err(e) => Err(io_error(e)),
        }
    }

    /// Adds a message to the history, so that Up and Ctrl-R find it.
    pub fn remember(&mut self, text: &str) {
        let added = self.editor.add_history_entry(text).unwrap_or(false);
        // The file is written after each message, because a signal may end the chat.
        if let Some(file) = self.file.as_ref().filter(|_| added) {
            let _ = self.editor.append_history(file);
        }
    }
}

fn io_error(e: ReadlineError) -> io::Error {
    match e {
        ReadlineError::Io(e) => e,
        e => io::Error::other(e),
    }
}

/// The lines of the message that were ended with a backslash and Enter, in order.
type Continued = Arc<Mutex<Vec<String>>>;

/// Makes Enter after a backslash start another line of the message.
struct Continuation(Continued);

impl ConditionalEventHandler for Continuation {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, at: &EventContext<'_>) -> Option<Cmd> {
        let line = at.line().rsplit('\n').next().unwrap_or_default();
        let goes_on = at.pos() == at.line().len() && line.ends_with('\\');
        goes_on.then(|| {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_string());
            // One editor command cannot delete the backslash and add a line, so the backslash is removed from the
            // result.
            Cmd::Newline
        })
    }
}

/// `text` without the backslashes that continued a line. Backslashes in pasted text are kept.
fn without_continuations(text: &str, continued: &[String]) -> String {
    let mut continued = continued.iter().peekable();
    let lines = text.split('\n').map(|line| match continued.next_if(|known| *known == line) {
        Some(_) => &line[..line.len() - 1],
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The file of the history: `$SECATEUR_HISTORY`, or `history` in the [folder for state](state::file). If
/// `SECATEUR_HISTORY` is empty, no history is kept.
fn history_file() -> Option<PathBuf> {
    match std::env::var_os("SECATEUR_HISTORY") {
        Some(file) => Some(PathBuf::from(file)).filter(|file| !file.as_os_str().is_empty()),
        None => state::file("history"),
    }
}

/// Restores the terminal if a signal ends the process at the prompt, where rustyline has switched off line editing
/// and echo.
#[cfg(unix)]
mod terminal {
    use std::io::{Write, stdin, stdout};

    use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};

    /// Returns a function that restores the current state of the terminal.
    pub fn restore_at_exit() -> impl FnOnce() + Send + 'static {
        let state = tcgetattr(stdin()).ok();
        move || {
            // With TERM=dumb, rustyline does not change the state, so there is nothing to restore.
            if let Some(state) = state.filter(|state| tcgetattr(stdin()).is_ok_and(|now| now != *state)) {
                let _ = tcsetattr(stdin(), SetArg::TCSANOW, &state);
                // Switch bracketed paste off, and start a new line for the shell.
                let _ = stdout().write_all(b"\x1b[?2004l\r\n").and_then(|()| stdout().flush());
            }
        }
    }
}

#[cfg(not(unix))]
mod terminal {
    /// Does nothing: on these systems, rustyline reads Ctrl-C as a key, and no other signal is handled.
    pub fn restore_at_exit() -> impl FnOnce() + Send + 'static {
        || ()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_that_continues_a_line_is_removed() {
        let joined = |text: &str, continued: &[&str]| {
            without_continuations(text, &continued.iter().map(|line| line.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(joined("a\\\nb", &["a\\"]), "a\nb");
        assert_eq!(joined("a\\\nb\\\nc", &["a\\", "b\\"]), "a\nb\nc");
        assert_eq!(joined("a\\\nb", &[]), "a\\\nb", "it was pasted");
        assert_eq!(joined("x\\\ny\\\nz", &["y\\"]), "x\\\ny\nz");
        assert_eq!(joined("a", &["a\\"]), "a", "it was deleted again");
    }
}
