//! `secateur run` without a prompt on a terminal: a conversation.
//!
//! Every turn forwards the whole conversation anew, without what was thought in earlier turns: a pruned cache has lost
//! tokens of the prompt to come, and templates leave earlier thinking out.
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use secateur::engine::{Engine, Prompt, RunResult, Settings};
use secateur::policy::Role;
use secateur::text::Message;
use secateur::trace::StopReason;
use secateur::{Error, ErrorKind, Result};

use super::fields;
use super::line::{Editor, Input};
use super::run;
use super::screen::{self, Screen};
use super::signals::{self, Signal};

const HELP: &str = "\
/help    this list
/reset   forget the conversation
/exit    end the chat (also /quit, Ctrl-D, or Ctrl-C at the prompt)
Ctrl-C while the model writes ends its answer. A message goes on in another line after \\ at its end, Ctrl-J or Alt-Enter;
Up and Down recall earlier ones.";

/// What an answer came to, for the history.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// The answer, thinking left out; perhaps cut short.
    Answered(String),
    /// The model was still thinking when it ended: there is nothing to remember.
    Unanswered,
}

/// Talks until the user has enough. `system`: a system prompt; `think`: as [`Prompt::Messages`] has it.
pub fn main(
    engine: &mut Engine,
    options: &Settings,
    system: Option<&str>,
    think: Option<bool>,
    screen: &mut Screen,
    stop: &AtomicBool,
    quiet: bool,
) -> Result<ExitCode> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::Io, "the terminal cannot be read").found(e);
    let mut editor = Editor::default();
    let beginning: Vec<Message> = system.map(|text| Message::new("system", text)).into_iter().collect();
    let mut messages = beginning.clone();
    screen.note("/help lists what you can type; Ctrl-D ends the chat");
    loop {
        let text = match editor.read("> ").map_err(failed)? {
            Input::Text(text) => text,
            Input::Ended | Input::Interrupted => return Ok(ExitCode::SUCCESS),
        };
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        editor.remember(text);
        match text {
            "/help" | "/?" => super::say(HELP),
            "/exit" | "/quit" => return Ok(ExitCode::SUCCESS),
            "/reset" => {
                messages.clone_from(&beginning);
                super::say("the conversation starts anew");
            }
            // A path or a question that begins with one has blanks, or more slashes.
            command if is_command(command) => super::say(&format!("there is no {command}; /help lists what there is")),
            text => {
                messages.push(Message::user(text));
                signals::begin_turn();
                let prompt = Prompt::Messages { messages: messages.clone(), think };
                let mut answer = Answer::default();
                let ran =
                    run::generate(engine, &prompt, options, screen, stop, &mut |text, role| answer.add(text, role));
                match ran {
                    Ok(result) => {
                        match answer.turn() {
                            Turn::Answered(answer) => messages.push(Message::new("assistant", answer)),
                            Turn::Unanswered => {
                                messages.pop();
                                super::say("no answer came: this question is left out of the conversation");
                            }
                        }
                        if !quiet {
                            screen.note(&summary(&result));
                        }
                        if let Some(error) = result.error {
                            return Err(error);
                        }
                        // Ctrl-C ends the answer; every other signal ends the chat.
                        if let Some(signal) = signals::received().filter(|signal| *signal != Signal::INTERRUPT) {
                            return Ok(signal.exit_code());
                        }
                    }
                    // The conversation has become too long, or the template does not like it: it may be mended.
                    Err(error) if error.kind() == ErrorKind::Input => {
                        messages.pop();
                        let error = fields::as_options(&error.to_string());
                        super::say(&format!("{error}\n      or: /reset forgets the conversation"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn is_command(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic()))
}

/// Collects what is not thinking.
#[derive(Default)]
struct Answer {
    text: String,
    answered: bool,
}

impl Answer {
    fn add(&mut self, text: &str, role: Role) {
        if role == Role::Answer {
            self.text.push_str(text);
            self.answered |= !text.trim().is_empty();
        }
    }

    fn turn(self) -> Turn {
        if self.answered { Turn::Answered(self.text.trim().to_string()) } else { Turn::Unanswered }
    }
}

/// One line: tokens, speed, what is cached, what the device holds.
fn summary(result: &RunResult) -> String {
    let t = &result.trace.totals;
    let ended = match &result.trace.stop_reason {
        StopReason::Eos => String::new(),
        reason => format!("; {}", screen::stop_reason(reason)),
    };
    format!(
        "[{} tokens, {:.1} tok/s; {}; KV {}; {}{ended}]",
        t.generated_tokens,
        screen::tokens_per_second(t),
        screen::cached(&result.trace),
        screen::bytes(result.kv_bytes),
        screen::device_bytes(result.bytes.in_use, result.bytes.reserved),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_no_part_of_the_history() {
        let turn = |pieces: &[(&str, Role)]| {
            let mut answer = Answer::default();
            pieces.iter().for_each(|(text, role)| answer.add(text, *role));
            answer.turn()
        };
        let (open, close) = (("<think>", Role::ThinkOpen), ("</think>", Role::ThinkClose));
        let thought = ("hm", Role::Thinking);
        let answered = |text: &str| Turn::Answered(text.into());
        assert_eq!(turn(&[open, thought, close, ("\n\n", Role::Answer), ("4", Role::Answer)]), answered("4"));
        assert_eq!(turn(&[("4 ", Role::Answer), ("!", Role::Answer)]), answered("4 !"));
        assert_eq!(turn(&[open, thought]), Turn::Unanswered);
        assert_eq!(turn(&[open, thought, close, ("\n\n", Role::Answer)]), Turn::Unanswered);
        assert_eq!(turn(&[]), Turn::Unanswered);
    }

    #[test]
    fn only_a_lone_word_is_a_command() {
        assert!(is_command("/help") && is_command("/nonsense"));
        assert!(!is_command("/etc/passwd") && !is_command("/help me") && !is_command("/") && !is_command("2/3"));
    }
}
