//! `secateur run` without a prompt on a terminal: a conversation.
//!
//! A turn's prompt is the whole conversation without the thinking of earlier turns, which chat templates leave out.
//! The engine keeps the cache of the prompt before, and the prefill begins where the two prompts differ. What a turn
//! generated is forwarded again: pruning may have evicted parts of it.
use std::process::ExitCode;

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
/help    show this list
/reset   forget the conversation
/exit    leave the chat (also /quit, Ctrl-D, or Ctrl-C at the prompt)
Press Ctrl-C while the model writes to stop its answer. To continue a message on another line, end the line with \\, or
press Ctrl-J or Alt-Enter. Up and Down recall earlier messages, and Ctrl-R searches them.
Unless secateur was started with --seed, each answer is drawn with a new random seed, which is shown after it.";

/// Bytes of the cache that stay between two messages: a message's prompt begins with the one before.
const KEPT: u64 = 1 << 30;

/// Runs the chat until the user leaves it. Each turn is `request` with the conversation so far. If the device fails,
/// the model is loaded `again`, and the conversation continues.
///
/// # Errors
/// A terminal that cannot be read, stdout that cannot be written, and a device that fails twice without an answer in
/// between.
pub fn main(
    mut engine: Engine,
    request: &Request,
    screen: &mut Screen,
    again: &mut dyn FnMut() -> Result<Engine>,
    quiet: bool,
) -> Result<ExitCode> {
    engine.keep_prompts(KEPT);
    let mut stop = engine.stop_flag();
    let mut failed_before = false;
    let terminal_error = |e: std::io::Error| Error::new(ErrorKind::Io, "the terminal cannot be read").found(e);
    let mut editor = Editor::new().map_err(terminal_error)?;
    let mut messages: Vec<Message> = Vec::new();
    screen.note("type /help for a list of commands; press Ctrl-D to leave the chat");
    loop {
        let text = match editor.read("> ").map_err(terminal_error)? {
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
                // What is kept of the conversation on the device goes too.
                engine.keep_prompts(0);
                engine.keep_prompts(KEPT);
                messages.clear();
                super::say("the conversation was forgotten");
            }
            // Paths, and questions that begin with a path, have blanks or more slashes, so they are not commands.
            command if is_command(command) => super::say(&format!("there is no {command}; /help lists the commands")),
            text => {
                messages.push(Message::user(text));
                signals::begin_turn();
                let asked = Request { messages: Some(messages.clone()), ..request.clone() };
                // This draws a new seed for each turn unless --seed is given.
                let ran = engine.resolve(&asked).and_then(|Resolved { prompt, settings, .. }| {
                    if let Some(note) = engine.cache_note(&prompt, &settings)? {
                        screen.note(&fields::as_options(&note));
                    }
                    generate(&mut engine, &prompt, &settings, screen, &stop, false)
                });
                let failure = match &ran {
                    Ok(result) => result.error.as_ref(),
                    Err(error) => Some(error),
                };
                // An error of the kind `Device` may also be a limit, which a new device has as well.
                let device = engine.model().device().clone();
                let is_gone = |error: &&Error| error.kind() == ErrorKind::Device && device.has_failed();
                if let Some(error) = failure.filter(|error| is_gone(error) && !failed_before) {
                    failed_before = true;
                    messages.pop();
                    super::say(&format!("error: {}", fields::error(error)));
                    super::say("the model is loaded again; the conversation before this question is kept");
                    // Otherwise the old weights would take the memory that the new ones need.
                    drop(engine);
                    engine = again()?;
                    engine.keep_prompts(KEPT);
                    stop = engine.stop_flag();
                    signals::stop_on_signal(&stop);
                    continue;
                }
                failed_before = false;
                match ran {
                    Ok(result) => {
                        match result.message() {
                            None => {
                                messages.pop();
                                let why = if result.thinking_unfinished {
                                    "no answer came, because the model was still thinking"
                                } else {
                                    "no answer came"
                                };
                                super::say(&format!("{why}: this question is left out of the conversation"));
                            }
                            Some(answer) => messages.push(answer),
                        }
                        if !quiet {
                            screen.note(&summary(&result));
                        }
                        if let Some(error) = result.error {
                            if error.kind() != ErrorKind::Device || device.has_failed() {
                                return Err(error);
                            }
                            super::say(&too_long(&error));
                        }
                        // Ctrl-C ends only the answer. Every other signal ends the chat.
                        if let Some(signal) = signals::received().filter(|signal| *signal != Signal::INTERRUPT) {
                            return Ok(signal.exit_code());
                        }
                    }
                    // The conversation is too long, or the template refuses it. The user can still change it.
                    Err(error)
                        if error.kind() == ErrorKind::Input
                            || error.kind() == ErrorKind::Device && !device.has_failed() =>
                    {
                        messages.pop();
                        super::say(&too_long(&error));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// An error after which a shorter conversation may go on.
fn too_long(error: &Error) -> String {
    format!("{}\n      or: forget the conversation with /reset", fields::error(error))
}

fn is_command(text: &str) -> bool {
    text.strip_prefix('/').is_some_and(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphabetic()))
}

/// One line about a turn: tokens, speed, cached tokens, memory, seed.
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
        t.tokens_per_second(),
        screen::cached(&result.trace),
        screen::bytes(result.kv_bytes),
        screen::device_bytes(result.bytes.in_use, result.bytes.reserved),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_single_word_after_a_slash() {
        assert!(is_command("/help") && is_command("/nonsense"));
        assert!(!is_command("/etc/passwd") && !is_command("/help me") && !is_command("/") && !is_command("2/3"));
    }
}
