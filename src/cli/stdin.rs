//! A prompt on stdin.
use std::io::{IsTerminal, Read};

use secateur::{Error, ErrorKind, Result};

use super::{screen, text};

/// A longer prompt fits into no model's context. What is on stdin was meant for something else, or never ends.
const MAX_BYTES: u64 = 64 << 20;

/// Reads stdin to its end. The final line end is dropped: it is `echo`'s, not part of the question.
///
/// # Errors
/// When stdin cannot be read, holds more than 64 MiB, or is no text.
pub fn read_prompt() -> Result<String> {
    if std::io::stdin().is_terminal() {
        super::say("reading the prompt from the terminal; Ctrl-D ends it");
    }
    let mut bytes = Vec::new();
    let failed = |e| Error::new(ErrorKind::Io, "stdin cannot be read").found(e);
    std::io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        let most = screen::bytes(MAX_BYTES);
        return Err(Error::new(ErrorKind::Input, format!("the prompt on stdin exceeds {most}"))
            .at("stdin")
            .expected(format!("at most {most}"))
            .help("a shorter prompt, or is this the right file?"));
    }
    let mut prompt = text::decode(bytes).map_err(|(at, found)| {
        Error::new(ErrorKind::Input, "the prompt is not UTF-8")
            .at(format!("stdin, byte {at}"))
            .expected("text in UTF-8, or in UTF-16 with a byte order mark")
            .found(found)
    })?;
    if prompt.ends_with('\n') {
        prompt.pop();
    }
    Ok(prompt)
}
