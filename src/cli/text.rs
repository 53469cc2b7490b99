//! Text from a user: files, stdin and arguments, as the editors and shells of all systems write them.
use std::path::Path;

use secateur::{Error, ErrorKind, Result};

/// The text of a file, decoded as [`decode`] does. `what` names the content in errors, such as "a trace".
///
/// # Errors
/// [`ErrorKind::Io`] if the file cannot be read, [`ErrorKind::Input`] if it is not text.
pub fn read(path: &Path, what: &str) -> Result<String> {
    let bytes = std::fs::read(path)
        .map_err(|e| Error::new(ErrorKind::Io, format!("{what} cannot be read")).at(path.display()).found(e))?;
    decode(bytes).map_err(|(byte, found)| {
        Error::new(ErrorKind::Input, format!("{what} cannot be read"))
            .at(format!("{}, byte {byte}", path.display()))
            .expected(ENCODINGS)
            .found(found)
    })
}

/// The encodings that [`decode`] accepts, for errors.
pub const ENCODINGS: &str = "text in UTF-8, or in UTF-16 with a byte order mark";

/// The text in `bytes`: UTF-8 with or without a byte order mark, or UTF-16 with one, which is what a redirection in
/// Windows PowerShell writes. Line ends become LF.
///
/// # Errors
/// The index of the first byte that cannot be decoded, and what is wrong there.
pub fn decode(bytes: Vec<u8>) -> Result<String, (usize, &'static str)> {
    let text = match bytes[..] {
        // The byte order mark of little-endian UTF-32 starts with that of UTF-16.
        [0xff, 0xfe, 0, 0, ..] => return Err((0, "UTF-32")),
        [0xff, 0xfe, ref rest @ ..] => utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, ref rest @ ..] => utf16(rest, u16::from_be_bytes)?,
        _ => String::from_utf8(bytes).map_err(|e| (e.utf8_error().valid_up_to(), "bytes that are not UTF-8"))?,
    };
    Ok(unix_lines(text))
}

/// `text` without a byte order mark, and with LF in place of each CRLF.
pub fn unix_lines(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text }
}

/// A text that was read, without its last line end. That may be a lone CR, as in [`argument`]: the same text is the
/// same prompt, whichever way it comes.
pub fn without_line_end(mut text: String) -> String {
    if text.ends_with(['\n', '\r']) {
        text.pop();
    }
    text
}

/// Text that was given as an argument. A final CR is removed as well, because `$(cat FILE)` removes only the LF of
/// the last line end of a file.
pub fn argument(text: &str) -> String {
    unix_lines(text.strip_suffix('\r').unwrap_or(text).to_string())
}

/// `text` with all control characters but newline and tab replaced by visible symbols. A model may write any
/// character, and its text must not control the terminal.
pub fn visible(text: &str) -> String {
    let picture = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(picture).collect()
}

fn utf16(bytes: &[u8], word: fn([u8; 2]) -> u16) -> Result<String, (usize, &'static str)> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(pairs.len());
    let mut at = 2;
    for c in char::decode_utf16(pairs.iter().map(|pair| word(*pair))) {
        let c = c.map_err(|_| (at, "an unpaired surrogate in UTF-16"))?;
        text.push(c);
        at += 2 * c.len_utf16();
    }
    if rest.is_empty() { Ok(text) } else { Err((at, "an odd number of bytes in UTF-16")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_lf_and_byte_order_marks_are_removed() {
        let decoded = |bytes: &[u8]| decode(bytes.to_vec());
        assert_eq!(decoded(b"a\r\nb\r\n").as_deref(), Ok("a\nb\n"));
        assert_eq!(decoded(b"a\rb").as_deref(), Ok("a\rb"), "a CR without LF is kept");
        assert_eq!(decoded(b"\xef\xbb\xbfWhy?").as_deref(), Ok("Why?"));
        assert_eq!(decoded(b"").as_deref(), Ok(""));
        assert_eq!(decoded(b"\xff\xfeW\0h\0\r\0\n\0").as_deref(), Ok("Wh\n"));
        assert_eq!(decoded(b"\xfe\xff\0W\xd8\x3d\xde\x00").as_deref(), Ok("W\u{1f600}"));
        assert_eq!(argument("Why?\r"), "Why?");
        assert_eq!(argument("\u{feff}a\r\nb\n"), "a\nb\n");
    }

    #[test]
    fn a_text_is_the_same_from_stdin_and_as_an_argument() {
        // What a shell makes of `$(cat FILE)`.
        let as_argument = |file: &str| argument(file.trim_end_matches('\n'));
        for file in ["Why?", "Why?\n", "Why?\r\n", "Why?\r", "Why?\r\r\n", "a\r\nb\r\n", "\u{feff}a\rb\r", "\r", ""] {
            let from_stdin = without_line_end(decode(file.into()).expect("UTF-8"));
            assert_eq!(from_stdin, as_argument(file), "{file:?}");
        }
    }

    #[test]
    fn files_are_decoded_and_errors_name_the_file_and_the_byte() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("the file is written");
            path
        };
        let powershell = write("utf16.json", b"\xff\xfe{\0}\0\r\0\n\0");
        assert_eq!(read(&powershell, "a trace").expect("text"), "{}\n");
        let latin = read(&write("latin", b"caf\xe9"), "a trace").expect_err("not UTF-8").to_string();
        assert!(latin.contains("a trace cannot be read") && latin.contains("latin, byte 3"), "{latin}");
        assert_eq!(read(&dir.path().join("none"), "a trace").expect_err("no file").kind(), ErrorKind::Io);
    }

    #[test]
    fn other_encodings_are_refused_at_their_first_byte() {
        let refused = |bytes: &[u8]| decode(bytes.to_vec()).expect_err("this is not text").0;
        assert_eq!(refused(b"caf\xe9"), 3);
        assert_eq!(refused(b"\xff\xfe\0\0a\0\0\0"), 0);
        assert_eq!(refused(b"\xff\xfea\0b"), 4);
        assert_eq!(refused(b"\xff\xfea\0\x00\xd8"), 4);
    }
}
