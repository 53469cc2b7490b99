//! Reads text from stdin.
use std::io::{IsTerminal, Read};

use secateur::{Error, ErrorKind, Result};

use super::{screen, text};

/// The largest text. A longer prompt would not fit into the context of any model; stdin is then probably the wrong
/// file, or a stream without an end.
const MAX_BYTES: u64 = 64 << 20;

/// Whether stdin is a pipe, a socket or a file: something that was given to be read. It is none of them on a terminal
/// and under most service managers, which give `/dev/null`.
pub fn is_pipe_or_file() -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = std::fs::metadata("/dev/stdin").map(|stdin| stdin.file_type());
        kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket() || kind.is_file())
    }
    #[cfg(not(unix))]
    !std::io::stdin().is_terminal()
}

/// Reads a prompt from stdin. The final line end is removed, because `echo` and editors add one to every text.
///
/// # Errors
/// Those of [`read`].
pub fn read_prompt() -> Result<String> {
    Ok(text::without_line_end(read("the prompt")?))
}

/// Reads stdin to its end. `what` names the content in messages, such as "the prompt".
///
/// # Errors
/// If stdin cannot be read, holds more than 64 MiB, or is not text.
pub fn read(what: &str) -> Result<String> {
    if std::io::stdin().is_terminal() {
        super::say(&format!("reading {what} from the terminal; press Ctrl-D to end it"));
    }
    let mut bytes = Vec::new();
    let read_error = |e| Error::new(ErrorKind::Io, "stdin cannot be read").found(e);
    std::io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_BYTES {
        let most = screen::bytes(MAX_BYTES);
        return Err(Error::new(ErrorKind::Input, format!("{what} on stdin exceeds {most}"))
            .at("stdin")
            .expected(format!("at most {most}"))
            .help(format!("shorten {what}, and check that this is the right file")));
    }
    text::decode(bytes).map_err(|(at, found)| {
        Error::new(ErrorKind::Input, format!("{what} is not UTF-8"))
            .at(format!("stdin, byte {at}"))
            .expected(text::ENCODINGS)
            .found(found)
    })
}
