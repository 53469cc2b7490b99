//! Reading a message at the prompt of a chat: rustyline, with a history that is kept between chats.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{
    Cmd, ConditionalEventHandler, Config, Event, EventContext, EventHandler, KeyCode, KeyEvent, Modifiers, RepeatCount,
};

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

/// Messages that the history keeps.
const HISTORY: usize = 1000;

/// Reads messages and remembers them.
pub struct Editor {
    editor: rustyline::Editor<(), FileHistory>,
    continued: Continued,
    /// Where the history is kept.
    file: Option<PathBuf>,
}

impl Editor {
    /// An editor with the history of earlier chats, where the system has a place for one.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub fn new() -> io::Result<Self> {
        // A pasted paragraph is one message, whatever line ends it has.
        let config = Config::builder().bracketed_paste(true).tab_stop(4).build();
        let mut editor = rustyline::Editor::with_config(config).map_err(failed)?;
        editor.set_max_history_size(HISTORY).map_err(failed)?;
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
        // A history that is missing or damaged is no reason not to chat.
        file.as_ref().map(|file| editor.load_history(file));
        Ok(Self { editor, continued, file })
    }

    /// Shows `prompt` and reads a message.
    ///
    /// # Errors
    /// When the terminal cannot be read.
    pub fn read(&mut self, prompt: &str) -> io::Result<Input> {
        let _prompting = signals::prompting(terminal::restore_at_exit());
        let read = self.editor.readline(prompt);
        let continued = std::mem::take(&mut *self.continued.lock().unwrap_or_else(PoisonError::into_inner));
        match read {
            Ok(text) => Ok(Input::Text(without_continuations(&text, &continued))),
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::Ended),
            Err(e) => Err(failed(e)),
        }
    }

    /// Adds a message to the history, for Up and Ctrl-R to recall.
    pub fn remember(&mut self, text: &str) {
        let added = self.editor.add_history_entry(text).unwrap_or(false);
        // Written at once: a chat may end by a signal.
        if let Some(file) = self.file.as_ref().filter(|_| added) {
            let _ = self.editor.append_history(file);
        }
    }
}

fn failed(e: ReadlineError) -> io::Error {
    match e {
        ReadlineError::Io(e) => e,
        e => io::Error::other(e),
    }
}

/// Lines of the message that were ended by a backslash and Enter, in order.
type Continued = Arc<Mutex<Vec<String>>>;

/// Enter behind a backslash begins another line.
struct Continuation(Continued);

impl ConditionalEventHandler for Continuation {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, at: &EventContext<'_>) -> Option<Cmd> {
        let line = at.line().rsplit('\n').next().unwrap_or_default();
        let goes_on = at.pos() == at.line().len() && line.ends_with('\\');
        goes_on.then(|| {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_string());
            // An editor's command cannot both delete the backslash and leave the cursor behind the new line: it goes later.
            Cmd::Newline
        })
    }
}

/// `text` without the backslashes that only continued a line. Those of a pasted text stay.
fn without_continuations(text: &str, continued: &[String]) -> String {
    let mut continued = continued.iter().peekable();
    let lines = text.split('\n').map(|line| match continued.next_if(|known| *known == line) {
        Some(_) => &line[..line.len() - 1],
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The file of the history: `$SECATEUR_HISTORY`, else `secateur/history` in the folder for the state of programs, if there is
/// such a folder. `SECATEUR_HISTORY=` (empty) keeps none.
fn history_file() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name);
    if let Some(file) = var("SECATEUR_HISTORY") {
        return Some(PathBuf::from(file)).filter(|file| !file.as_os_str().is_empty());
    }
    let state = if cfg!(windows) {
        PathBuf::from(var("LOCALAPPDATA")?)
    } else {
        match var("XDG_STATE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute()) {
            Some(state) => state,
            None => std::env::home_dir()?.join(if cfg!(target_os = "macos") {
                "Library/Application Support"
            } else {
                ".local/state"
            }),
        }
    };
    in_state_folder(&state)
}

fn in_state_folder(state: &Path) -> Option<PathBuf> {
    let folder = state.join("secateur");
    (state.is_dir() && (folder.is_dir() || std::fs::create_dir(&folder).is_ok())).then(|| folder.join("history"))
}

/// A signal may end the process at the prompt, while the terminal sends single keys and echoes none.
#[cfg(unix)]
mod terminal {
    use std::io::{Write, stdin, stdout};

    use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};

    /// What brings the terminal back into the state that it is in now.
    pub fn restore_at_exit() -> impl FnOnce() + Send + 'static {
        let state = tcgetattr(stdin()).ok();
        move || {
            // Nothing is to be done where the terminal edits lines by itself (TERM=dumb).
            if let Some(state) = state.filter(|state| tcgetattr(stdin()).is_ok_and(|now| now != *state)) {
                let _ = tcsetattr(stdin(), SetArg::TCSANOW, &state);
                // The end of bracketed paste, and a line of its own for the shell.
                let _ = stdout().write_all(b"\x1b[?2004l\r\n").and_then(|()| stdout().flush());
            }
        }
    }
}

#[cfg(not(unix))]
mod terminal {
    /// Ctrl-C is a key there, and no other signal is handled.
    pub fn restore_at_exit() -> impl FnOnce() + Send + 'static {
        || ()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_that_continues_a_line_is_no_part_of_it() {
        let joined = |text: &str, continued: &[&str]| {
            without_continuations(text, &continued.iter().map(|line| line.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(joined("a\\\nb", &["a\\"]), "a\nb");
        assert_eq!(joined("a\\\nb\\\nc", &["a\\", "b\\"]), "a\nb\nc");
        assert_eq!(joined("a\\\nb", &[]), "a\\\nb", "it was pasted");
        assert_eq!(joined("x\\\ny\\\nz", &["y\\"]), "x\\\ny\nz");
        assert_eq!(joined("a", &["a\\"]), "a", "it was deleted again");
    }

    #[test]
    fn a_history_is_kept_where_the_system_has_a_place_for_it() {
        let home = tempfile::tempdir().expect("a folder");
        assert_eq!(in_state_folder(&home.path().join("none")), None, "no folder is made for others");
        let file = in_state_folder(home.path()).expect("a place");
        assert!(file.parent().is_some_and(Path::is_dir) && file.ends_with("secateur/history"));
    }
}
