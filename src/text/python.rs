//! Methods of Python's strings that chat templates may call and that minijinja's own compatibility layer lacks.
//!
//! The results are those of CPython, except that case and width follow Unicode as Rust's standard library knows it.
use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// The longest text that a method pads to, so that a template cannot fill the memory.
const WIDEST: usize = 1 << 20;

/// Calls `method` of `value`: one of the methods in this file, or else one of minijinja's.
pub(super) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => string(text, method, args)?,
        (ValueKind::Seq, _) if method == "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let at = value.try_iter()?.checked().position(|item| item.is_ok_and(|item| item == wanted));
            Some(at.map(Value::from).ok_or_else(|| not_found("the item is not in the list"))?)
        }
        (ValueKind::Seq | ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn not_found(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// The result of a method of the string `s`; `None` if this file does not implement the method.
fn string(s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let chars = |byte: usize| Value::from(s[..byte].chars().count());
    let three = |parts: [&str; 3]| Value::from(parts.map(Value::from).to_vec());
    Ok(Some(match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            Value::from(rsplit(s, separator, most)?.into_iter().map(Value::from).collect::<Vec<_>>())
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(not_found("the separator is empty"));
            }
            let from_left = method == "partition";
            match if from_left { s.split_once(separator) } else { s.rsplit_once(separator) } {
                Some((left, right)) => three([left, separator, right]),
                None => three(if from_left { [s, "", ""] } else { ["", "", s] }),
            }
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "index" { s.find(part) } else { s.rfind(part) };
            chars(at.ok_or_else(|| not_found("the text does not contain this part"))?)
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = s.chars().map(|c| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            });
            Value::from(swapped.collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(s.to_lowercase().replace('ß', "ss"))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!s.is_empty() && s.chars().all(|c| c.is_ascii_digit()))
        }
        "istitle" => {
            let () = from_args(args)?;
            let mut words = s.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).peekable();
            let is_title = |word: &str| {
                let mut chars = word.chars();
                chars.next().is_some_and(char::is_uppercase) && chars.all(|c| !c.is_uppercase())
            };
            Value::from(words.peek().is_some() && words.all(is_title))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = match s.strip_prefix(['+', '-']) {
                Some(digits) => s.split_at(s.len() - digits.len()),
                None => ("", s),
            };
            Value::from(format!("{sign}{}{digits}", padding(s, width, '0')?))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let padding = padding(s, width, fill.unwrap_or(' '))?;
            Value::from(match method {
                "ljust" => format!("{s}{padding}"),
                "rjust" => format!("{padding}{s}"),
                _ => {
                    // As in CPython, an odd padding has its larger half on the left if the width is odd.
                    let all = padding.chars().count();
                    let left = all / 2 + (all & width & 1);
                    let left: String = padding.chars().take(left).collect();
                    let right: String = padding.chars().skip(left.chars().count()).collect();
                    format!("{left}{s}{right}")
                }
            })
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            let size = size.unwrap_or(8).min(WIDEST);
            let (mut out, mut column) = (String::new(), 0);
            for c in s.chars() {
                match c {
                    '\t' if size > 0 => {
                        let blanks = size - column % size;
                        out.extend(std::iter::repeat_n(' ', blanks));
                        column += blanks;
                    }
                    '\t' => {}
                    _ => {
                        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                        out.push(c);
                    }
                }
            }
            Value::from(out)
        }
        _ => return Ok(None),
    }))
}

/// The padding with which `s` is `width` characters wide.
fn padding(s: &str, width: usize, fill: char) -> Result<String, Error> {
    if width > WIDEST {
        return Err(not_found("the width is too large"));
    }
    Ok(std::iter::repeat_n(fill, width.saturating_sub(s.chars().count())).collect())
}

/// Splits from the right, at most `most` times; by runs of white space if there is no separator.
fn rsplit<'a>(s: &'a str, separator: Option<&str>, most: Option<i64>) -> Result<Vec<&'a str>, Error> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(not_found("the separator is empty")),
        Some(separator) => s.rsplitn(most.saturating_add(1), separator).collect(),
        None => {
            let (mut parts, mut rest) = (Vec::new(), s.trim_end());
            while !rest.is_empty() && parts.len() < most {
                let at = rest
                    .rfind(char::is_whitespace)
                    .map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
                parts.push(&rest[at..]);
                rest = rest[..at].trim_end();
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            parts
        }
    };
    parts.reverse();
    Ok(parts)
}
