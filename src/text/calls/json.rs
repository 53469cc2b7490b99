//! Follows a JSON text while it arrives, one character at a time: the current place, and whether the text can still
//! become valid.

/// The deepest nesting that is followed. Real arguments are not nested deeper, and JSON parsers stop at about this
/// depth.
const DEEPEST: usize = 100;

/// The kind of text that may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expects {
    /// A value. With `or_end`, the end of an array without values is allowed as well.
    Value { or_end: bool },
    /// A key. With `or_end`, the end of an object without keys is allowed as well.
    Key { or_end: bool },
    /// The colon after a key.
    Colon,
    /// A comma, or the end of the array or object that contains the value that has ended.
    More,
    /// The rest of a string. `escape` is the number of characters that an escape still lacks: 5 after the backslash,
    /// then hexadecimal digits.
    Text { key: bool, escape: u8 },
    /// The rest of a number.
    Number(Digits),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
}

/// The part of a number that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digits {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

impl Digits {
    /// The state after `c`; `None` if `c` is no part of the number.
    fn after(self, c: char) -> Option<Self> {
        Some(match (self, c) {
            (Self::Minus, '0') => Self::Zero,
            (Self::Minus, '1'..='9') | (Self::Whole, '0'..='9') => Self::Whole,
            (Self::Zero | Self::Whole, '.') => Self::Point,
            (Self::Point | Self::Fraction, '0'..='9') => Self::Fraction,
            (Self::Zero | Self::Whole | Self::Fraction, 'e' | 'E') => Self::Exponent,
            (Self::Exponent, '+' | '-') => Self::Sign,
            (Self::Exponent | Self::Sign | Self::Power, '0'..='9') => Self::Power,
            _ => return None,
        })
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::Power)
    }
}

/// The state of a JSON text of which a part has arrived.
#[derive(Debug, Clone)]
pub(super) struct Json {
    expects: Expects,
    /// For each open bracket, the outermost first, whether it is that of an object.
    open: Vec<bool>,
}

impl Json {
    /// The state before the first character of a value.
    pub fn new() -> Self {
        Self { expects: Expects::Value { or_end: false }, open: Vec::new() }
    }

    /// The kind of text that may come next.
    pub fn expects(&self) -> Expects {
        self.expects
    }

    /// The number of open brackets.
    pub fn depth(&self) -> usize {
        self.open.len()
    }

    /// Whether the text is inside a string.
    pub fn in_text(&self) -> bool {
        matches!(self.expects, Expects::Text { .. })
    }

    /// Processes a character. Returns false if no JSON continues in this way; the state is then of no further use.
    /// Control characters inside a string are accepted, because models write line breaks there.
    pub fn push(&mut self, c: char) -> bool {
        if let Expects::Number(digits) = self.expects {
            if let Some(next) = digits.after(c) {
                self.expects = Expects::Number(next);
                return true;
            }
            if !digits.is_whole() {
                return false;
            }
            self.expects = Expects::More;
        }
        let blank = matches!(c, ' ' | '\t' | '\n' | '\r');
        self.expects = match (self.expects, c) {
            (Expects::Text { key, escape: 0 }, '\\') => Expects::Text { key, escape: 5 },
            (Expects::Text { key: true, escape: 0 }, '"') => Expects::Colon,
            (Expects::Text { key: false, escape: 0 }, '"') => Expects::More,
            (state @ Expects::Text { escape: 0, .. }, _) => state,
            (Expects::Text { key, escape: 5 }, 'u') => Expects::Text { key, escape: 4 },
            (Expects::Text { key, escape: 5 }, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                Expects::Text { key, escape: 0 }
            }
            (Expects::Text { escape: 5, .. }, _) => return false,
            (Expects::Text { key, escape }, c) if c.is_ascii_hexdigit() => Expects::Text { key, escape: escape - 1 },
            (Expects::Word(rest), c) => match rest.strip_prefix(c) {
                Some("") => Expects::More,
                Some(rest) => Expects::Word(rest),
                None => return false,
            },
            (state, _) if blank && !matches!(state, Expects::Text { .. }) => state,
            (Expects::Value { .. }, '{' | '[') => {
                if self.open.len() == DEEPEST {
                    return false;
                }
                self.open.push(c == '{');
                if c == '{' { Expects::Key { or_end: true } } else { Expects::Value { or_end: true } }
            }
            (Expects::Value { .. }, '"') => Expects::Text { key: false, escape: 0 },
            (Expects::Value { .. }, 't') => Expects::Word("rue"),
            (Expects::Value { .. }, 'f') => Expects::Word("alse"),
            (Expects::Value { .. }, 'n') => Expects::Word("ull"),
            (Expects::Value { .. }, '-') => Expects::Number(Digits::Minus),
            (Expects::Value { .. }, '0') => Expects::Number(Digits::Zero),
            (Expects::Value { .. }, '1'..='9') => Expects::Number(Digits::Whole),
            (Expects::Key { .. }, '"') => Expects::Text { key: true, escape: 0 },
            (Expects::Colon, ':') => Expects::Value { or_end: false },
            (Expects::Key { or_end: true } | Expects::More, '}') if self.open.last() == Some(&true) => self.close(),
            (Expects::Value { or_end: true } | Expects::More, ']') if self.open.last() == Some(&false) => self.close(),
            (Expects::More, ',') => match self.open.last() {
                Some(true) => Expects::Key { or_end: false },
                Some(false) => Expects::Value { or_end: false },
                None => return false,
            },
            _ => return false,
        };
        true
    }

    fn close(&mut self) -> Expects {
        self.open.pop();
        Expects::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether every character is accepted and nothing is missing.
    fn whole(text: &str) -> bool {
        let mut json = Json::new();
        let accepted = text.chars().all(|c| json.push(c));
        // A blank ends a number.
        accepted && json.push(' ') && json.depth() == 0 && json.expects() == Expects::More
    }

    #[test]
    fn what_serde_reads_is_accepted_and_nothing_else() {
        for text in [
            "{}",
            "[]",
            r#"{"a":[1,-0.5e+3,{"b":null}],"c":"\u00e9\n\"x","d":true,"e":false}"#,
            " [ ] ",
            "0",
            "-1",
            "01",
            "1.",
            ".5",
            "1e",
            "1e5",
            "-",
            "[1,]",
            "{,}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{a:1}"#,
            "[1 2]",
            "tru",
            "trues",
            "nul",
            r#""\x""#,
            r#""\u12g4""#,
            r#""open"#,
            "{}}",
            "[}",
            "{]",
            "1,2",
            "",
            "'a'",
            "NaN",
        ] {
            let read = serde_json::from_str::<serde_json::Value>(text).is_ok();
            assert_eq!(whole(text), read, "{text}");
        }
        assert!(whole("\"a\nb\""), "a line break in a string is let through");
        assert!(!whole(&"[".repeat(DEEPEST + 1)) && whole(&format!("{}{}", "[".repeat(99), "]".repeat(99))));
    }
}
