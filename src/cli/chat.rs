//! `secateur run` without a prompt on a terminal: a conversation.
//!
//! Every turn forwards the whole conversation anew, without what was thought in earlier turns: a pruned cache has lost
//! tokens of the prompt to come, and templates leave earlier thinking out.
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use secateur::Message;
use secateur::engine::{Engine, Request, Resolved, RunResult};
use secateur::trace::StopReason;
use secateur::{Error, ErrorKind, Result};

use super::fields;
use super::generate::generate;
use super::line::{Editor, Input};
use super::screen::{self, Screen};
use super::signals::{self, Signal};

const HELP: &str = "\
/help    this list
/reset   forget the conversation
/exit    end the chat (also /quit, Ctrl-D, or Ctrl-C at the prompt)
Ctrl-C while the model writes ends its answer. A message goes on in another line after \\ at its end, Ctrl-J or Alt-Enter;
Up and Down recall earlier ones, Ctrl-R searches them.";

/// Talks until the user has enough. Each turn is `request` with the conversation so far.
pub fn main(
    engine: &mut Engine,
    request: &Request,
    screen: &mut Screen,
    stop: &AtomicBool,
    quiet: bool,
) -> Result<ExitCode> {
    let failed = |e: std::io::Error| Error::new(ErrorKind::Io, "the terminal cannot be read").found(e);
    let mut editor = Editor::new().map_err(failed)?;
    let mut messages: Vec<Message> = Vec::new();
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
                messages.clear();
                super::say("the conversation starts anew");
            }
            // A path or a question that begins with one has blanks, or more slashes.
            command if is_command(command) => super::say(&format!("there is no {command}; /help lists what there is")),
            text => {
                messages.push(Message::user(text));
                signals::begin_turn();
                let asked = Request { messages: Some(messages.clone()), ..request.clone() };
                // Resolved anew: each turn draws a seed of its own, unless one is given.
                let ran = engine.resolve(&asked).and_then(|Resolved { prompt, settings, .. }| {
                    generate(engine, &prompt, &settings, screen, stop, false)
                });
                match ran {
                    Ok(result) => {
                        match result.answer.as_str() {
                            "" => {
                                messages.pop();
                                let why = if result.thinking_unfinished {
                                    "no answer came, because the model was still thinking"
                                } else {
                                    "no answer came"
                                };
                                super::say(&format!("{why}: this question is left out of the conversation"));
                            }
                            answer => messages.push(Message::new("assistant", answer)),
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

/// One line: tokens, speed, what is cached, what the device holds.
fn summary(result: &RunResult) -> String {
    let t = &result.trace.totals;
    let ended = match &result.trace.stop_reason {
        StopReason::Eos if !result.thinking_unfinished => String::new(),
        _ => format!("; {}", screen::ended(result)),
    };
    let seed = screen::seed(result).map_or(String::new(), |seed| format!("; seed {seed}"));
    format!(
        "[{} tokens, {:.1} tok/s; {}; KV {}; {}{seed}{ended}]",
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
    fn only_a_lone_word_is_a_command() {
        assert!(is_command("/help") && is_command("/nonsense"));
        assert!(!is_command("/etc/passwd") && !is_command("/help me") && !is_command("/") && !is_command("2/3"));
    }
}
