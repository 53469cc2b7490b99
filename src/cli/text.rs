//! Text that people hand over, from whatever editor, shell or system it comes.

/// The text in `bytes`: UTF-8 with or without a byte order mark, or UTF-16 with one (as Windows' PowerShell redirects it).
/// Line ends become LF.
///
/// # Errors
/// Where the text begins to be neither: the byte, and what is wrong there.
pub fn decode(bytes: Vec<u8>) -> Result<String, (usize, &'static str)> {
    let text = match bytes[..] {
        // UTF-32, little endian, begins as UTF-16 does.
        [0xff, 0xfe, 0, 0, ..] => return Err((0, "UTF-32")),
        [0xff, 0xfe, ref rest @ ..] => utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, ref rest @ ..] => utf16(rest, u16::from_be_bytes)?,
        _ => String::from_utf8(bytes).map_err(|e| (e.utf8_error().valid_up_to(), "bytes that are no UTF-8"))?,
    };
    Ok(unix_lines(text))
}

/// `text` without a byte order mark, and with LF for each line end.
pub fn unix_lines(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text }
}

/// A text that was given as an argument. What `$(cat FILE)` leaves of a file with CRLF is a final CR.
pub fn argument(text: &str) -> String {
    unix_lines(text.strip_suffix('\r').unwrap_or(text).to_string())
}

fn utf16(bytes: &[u8], word: fn([u8; 2]) -> u16) -> Result<String, (usize, &'static str)> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(pairs.len());
    let mut at = 2;
    for c in char::decode_utf16(pairs.iter().map(|pair| word(*pair))) {
        let c = c.map_err(|_| (at, "half a surrogate pair in UTF-16"))?;
        text.push(c);
        at += 2 * c.len_utf16();
    }
    if rest.is_empty() { Ok(text) } else { Err((at, "half a character of UTF-16")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_and_byte_order_marks_are_no_part_of_a_text() {
        let decoded = |bytes: &[u8]| decode(bytes.to_vec());
        assert_eq!(decoded(b"a\r\nb\r\n").as_deref(), Ok("a\nb\n"));
        assert_eq!(decoded(b"a\rb").as_deref(), Ok("a\rb"), "a lone CR may be meant");
        assert_eq!(decoded(b"\xef\xbb\xbfWhy?").as_deref(), Ok("Why?"));
        assert_eq!(decoded(b"").as_deref(), Ok(""));
        assert_eq!(decoded(b"\xff\xfeW\0h\0\r\0\n\0").as_deref(), Ok("Wh\n"));
        assert_eq!(decoded(b"\xfe\xff\0W\xd8\x3d\xde\x00").as_deref(), Ok("W\u{1f600}"));
        assert_eq!(argument("Why?\r"), "Why?");
        assert_eq!(argument("\u{feff}a\r\nb\n"), "a\nb\n");
    }

    #[test]
    fn other_encodings_are_refused_at_their_first_byte() {
        let refused = |bytes: &[u8]| decode(bytes.to_vec()).expect_err("no text").0;
        assert_eq!(refused(b"caf\xe9"), 3);
        assert_eq!(refused(b"\xff\xfe\0\0a\0\0\0"), 0);
        assert_eq!(refused(b"\xff\xfea\0b"), 4);
        assert_eq!(refused(b"\xff\xfea\0\x00\xd8"), 4);
    }
}
