//! A conversation with the binary on a pseudo-terminal, which `script` of util-linux makes.
#![cfg(target_os = "linux")]
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::common::command::F16;

/// A terminal with the binary on it.
struct Terminal {
    child: Child,
    keys: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    /// Everything shown so far.
    shown: String,
    /// How much of the text the test has examined.
    seen: usize,
}

impl Terminal {
    fn new(args: &str) -> Self {
        Self::with_history(args, "")
    }

    /// `history` is the file of the history, or empty for none.
    fn with_history(args: &str, history: &str) -> Self {
        Self::running(&format!("exec {} run --device cpu {args}", env!("CARGO_BIN_EXE_secateur")), history)
    }

    /// A terminal that runs a command of the shell.
    fn running(command: &str, history: &str) -> Self {
        let mut child = Command::new("script")
            .args(["-q", "-e", "-c", command, "/dev/null"])
            .env("TERM", "xterm-256color")
            // No history of earlier chats, and none for later ones.
            .env("SECATEUR_HISTORY", history)
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("script of util-linux, which every Debian has");
        let mut out = child.stdout.take().expect("piped");
        let (send, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { keys: child.stdin.take(), child, output, shown: String::new(), seen: 0 }
    }

    fn press(&mut self, keys: &str) {
        let stdin = self.keys.as_mut().expect("open");
        stdin.write_all(keys.as_bytes()).and_then(|()| stdin.flush()).expect("the terminal takes keys");
    }

    /// Waits until `text` appears after the text that was examined before. Returns the text up to it.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                let from = self.seen;
                self.seen += at + text.len();
                return self.shown[from..self.seen].to_string();
            }
            let left = Duration::from_secs(120).checked_sub(begun.elapsed());
            match left.and_then(|left| self.output.recv_timeout(left).ok()) {
                Some(bytes) => self.shown += &String::from_utf8_lossy(&bytes),
                None => panic!("{text:?} never came; shown:\n{}", self.shown),
            }
        }
    }

    #[track_caller]
    fn ends_with(mut self, code: i32) -> String {
        let status = self.child.wait().expect("it ends");
        drop(self.keys.take());
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_secs(5)) {
            self.shown += &String::from_utf8_lossy(&bytes);
        }
        assert_eq!(status.code(), Some(code), "{}", self.shown);
        assert!(!self.shown.contains("panicked"), "{}", self.shown);
        self.shown
    }
}

#[test]
fn a_conversation_has_turns_commands_and_an_end() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-reasoner");
    let mut chat = Terminal::new(&format!("--model {model} --max-new-tokens 300 --policy full"));
    chat.until("type /help for a list of commands");
    chat.until("> ");
    chat.press("/help\r");
    chat.until("/reset");
    chat.until("> ");
    chat.press("/nonsense\r");
    chat.until("there is no /nonsense");
    chat.until("> ");
    chat.press("\r");
    chat.until("> ");
    // A line that continues in the next one and is edited: the cursor goes back over a wrong letter.
    chat.press("We count modulo 10. #1 a equals 3.\\\r");
    chat.until("3.\\\r\n");
    chat.press("What is aa\x7f?\r");
    let turn = chat.until("tok/s");
    assert!(turn.contains("\x1b[2m"), "the thinking is dimmed: {turn:?}");
    let summary = chat.until("> ");
    assert!(summary.contains("tokens cached; KV "), "{summary:?}");
    chat.press("And again?\r");
    chat.until("tok/s");
    chat.until("> ");
    chat.press("/reset\r");
    chat.until("the conversation was forgotten");
    chat.until("> ");
    // Up recalls what was typed.
    chat.press("\x1b[A\x1b[A\r");
    chat.until("tok/s");
    chat.until("> ");
    chat.press("\x04");
    let shown = chat.ends_with(0);
    assert_eq!(shown.matches("tok/s").count(), 3);
}

#[test]
fn ctrl_c_ends_an_answer_and_then_the_chat() {
    // With random weights the model never stops by itself.
    let mut chat = Terminal::new(&format!("--model {F16} --ignore-eos --max-new-tokens 4000 --policy full"));
    chat.until("> ");
    chat.press("x\r");
    chat.until("\x1b[2m");
    std::thread::sleep(Duration::from_millis(300));
    chat.press("\x03");
    let end = chat.until("interrupted");
    assert!(end.contains("no answer came"), "it was still thinking: {end:?}");
    chat.until("> ");
    // The Ctrl-C of the last turn does not interrupt the next one.
    chat.press("y\r");
    chat.until("\x1b[2m");
    std::thread::sleep(Duration::from_millis(300));
    chat.press("\x03");
    chat.until("interrupted");
    chat.until("> ");
    chat.press("\x03");
    chat.ends_with(0);
}

#[test]
fn what_makes_every_turn_fail_is_said_before_the_first() {
    let mut chat = Terminal::new(&format!("--model {F16} --no-think"));
    chat.until("has no switch for thinking");
    chat.ends_with(2);
    // After a prompt that is too long for the context, a shorter one is answered.
    let mut chat = Terminal::new(&format!("--model {F16} --context 40 --ignore-eos --policy full --max-new-tokens 2"));
    chat.until("> ");
    chat.press(&format!("{}\r", "long ".repeat(60)));
    chat.until("longer than the context");
    chat.until("conversation with /reset");
    chat.until("> ");
    chat.press("/exit\r");
    chat.ends_with(0);
}

/// After a loss of its device a chat continues: the model is loaded again, and the conversation is kept.
#[test]
fn a_chat_survives_the_loss_of_its_device() {
    let Some(adapter) = crate::cli::adapters().into_iter().next() else {
        println!("SKIPPED: no adapter");
        return;
    };
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-reasoner");
    let state = env!("CARGO_TARGET_TMPDIR");
    let command = format!(
        "SECATEUR_LOSE_DEVICE=60 XDG_STATE_HOME={state} exec {} run --device '{adapter}' --model {model} --policy full \
         --max-new-tokens 40 --ignore-eos",
        env!("CARGO_BIN_EXE_secateur")
    );
    let mut chat = Terminal::running(&command, "");
    chat.until("> ");
    chat.press("What is c?\r");
    chat.until("[40 tokens");
    chat.until("> ");
    chat.press("And d?\r");
    chat.until("error: the device was lost");
    chat.until("is kept");
    chat.until("> ");
    chat.press("And d?\r");
    chat.until("[40 tokens");
    chat.until("> ");
    chat.press("/exit\r");
    chat.ends_with(0);
}

#[test]
fn earlier_chats_are_recalled_where_their_history_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("history");
    let chat = || Terminal::with_history(&format!("--model {F16}"), file.to_str().expect("UTF-8"));
    let mut first = chat();
    first.until("> ");
    first.press("/nonsense\r");
    first.until("there is no /nonsense");
    first.until("> ");
    first.press("\x04");
    first.ends_with(0);
    let mut second = chat();
    second.until("> ");
    second.press("\x1b[A\r");
    second.until("there is no /nonsense");
    second.until("> ");
    second.press("/exit\r");
    second.ends_with(0);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&file).expect("it is kept").permissions().mode();
    assert_eq!(mode & 0o077, 0, "what was asked is private");
}

#[test]
fn sigterm_at_the_prompt_leaves_the_terminal_in_order() {
    // After the chat has ended, `stty` shows whether the terminal echoes and edits lines.
    let folder = tempfile::tempdir().expect("a folder");
    let pid = folder.path().join("pid");
    let script = format!(
        "sh -c 'echo $$ > {}; exec {} run --device cpu --model {F16}'; echo code $?; stty -a",
        pid.display(),
        env!("CARGO_BIN_EXE_secateur"),
    );
    let mut chat = Terminal::running(&script, "");
    chat.until("> ");
    chat.press("half a mess");
    chat.until("half a mess");
    let pid = std::fs::read_to_string(pid).expect("it runs");
    let kill = Command::new("kill").args(["-TERM", pid.trim()]).status().expect("kill");
    assert!(kill.success());
    chat.until("code 143");
    let shown = chat.ends_with(0);
    let modes: Vec<&str> = shown.split_whitespace().map(|word| word.trim_end_matches(';')).collect();
    assert!(modes.contains(&"echo") && modes.contains(&"icanon"), "{shown}");
}

#[test]
fn sigterm_in_an_answer_ends_the_chat_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let pid = folder.path().join("pid");
    let script = format!(
        "sh -c 'echo $$ > {}; exec {} run --device cpu --model {F16} --ignore-eos --max-new-tokens 4000 --policy full'; echo code $?",
        pid.display(),
        env!("CARGO_BIN_EXE_secateur"),
    );
    let mut chat = Terminal::running(&script, "");
    chat.until("> ");
    chat.press("x\r");
    chat.until("\x1b[2m");
    std::thread::sleep(Duration::from_millis(300));
    let pid = std::fs::read_to_string(pid).expect("it runs");
    let kill = Command::new("kill").args(["-TERM", pid.trim()]).status().expect("kill");
    assert!(kill.success());
    chat.until("interrupted");
    chat.until("code 143");
    chat.ends_with(0);
}
