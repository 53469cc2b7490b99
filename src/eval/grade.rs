//! Grades the answer of a model: the last `\boxed{…}` or number after the thinking, compared exactly after
//! normalisation. There is no algebra: `1/2` and `\frac{1}{2}` are the same, `x+1` and `1+x` are not.
use crate::text::ThinkTags;

/// The answer in `text`, as it was written: the inside of the last `\boxed{…}` after the last `</think>`, or else the
/// last number there. Text whose thinking never closes has no answer.
///
/// ```
/// use secateur::eval::grade::{answer, same};
/// let text = "12 + 30 is 42. Wait, 41?</think>It is $\\boxed{\\dfrac{1}{2}}$.";
/// assert!(same(answer(text).unwrap(), "1/2"));
/// ```
pub fn answer(text: &str) -> Option<&str> {
    let said = match ThinkTags::last_close(text) {
        Some(end) => &text[end..],
        None if ThinkTags::last_open(text).is_some() => return None,
        None => text,
    };
    boxed(said).or_else(|| last_number(said))
}

/// The inside of the last `\boxed{…}` whose braces close.
fn boxed(text: &str) -> Option<&str> {
    const BOXED: &str = "\\boxed{";
    text.match_indices(BOXED).filter_map(|(at, _)| inside(&text[at + BOXED.len()..])).last()
}

/// The beginning of `text` up to the closing brace of a pair that was opened before `text`.
fn inside(text: &str) -> Option<&str> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[..at]);
        }
    }
    None
}

fn last_number(text: &str) -> Option<&str> {
    let part = |c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '/' | '-');
    let mut runs = text.split(|c| !part(c)).map(|run| run.trim_matches([',', '.', '/']).trim_end_matches('-'));
    runs.rfind(|run| run.contains(|c: char| c.is_ascii_digit()))
}

/// Whether two answers are the same after normalisation.
pub fn same(found: &str, expected: &str) -> bool {
    let (a, b) = (normal(found), normal(expected));
    a == b || matches!((number(&a), number(&b)), (Some(a), Some(b)) if a == b)
}

/// An answer without the parts that do not change its meaning: dollar signs, spaces, sizes of brackets and fractions,
/// a unit in `\text{…}`, a full stop at the end.
fn normal(answer: &str) -> String {
    let mut text = answer.trim().trim_end_matches('.').trim_matches('$').trim().trim_end_matches('.').to_string();
    for (from, to) in [
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\!", ""),
        ("\\,", ""),
        ("\\ ", ""),
        ("\\%", ""),
        ("%", ""),
        ("^\\circ", ""),
        ("^{\\circ}", ""),
        ("−", "-"),
    ] {
        text = text.replace(from, to);
    }
    while let Some(at) = text.find("\\text{") {
        let Some(word) = inside(&text[at + 6..]).map(str::to_string) else { break };
        // A unit after a number is removed; words without a number are the answer.
        let kept = if at == 0 { word.trim().to_string() } else { String::new() };
        text.replace_range(at..at + 6 + word.len() + 1, &kept);
    }
    let mut text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    while let Some((top, bottom, at, len)) = fraction(&text) {
        text.replace_range(at..at + len, &format!("{top}/{bottom}"));
    }
    let commas = text.matches(',').count();
    let grouped = |t: &str| {
        t.trim_start_matches('-')
            .split(',')
            .skip(1)
            .all(|part| part.len() >= 3 && part[..3].bytes().all(|b| b.is_ascii_digit()))
    };
    if commas > 0 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'.' | b'-')) && grouped(&text) {
        text = text.replace(',', "");
    }
    text.trim_start_matches('+').to_string()
}

/// The first `\frac{a}{b}` of `text`: a, b, its offset and its length in bytes.
fn fraction(text: &str) -> Option<(String, String, usize, usize)> {
    let at = text.find("\\frac{")?;
    let top = inside(&text[at + 6..])?;
    let rest = text[at + 6 + top.len() + 1..].strip_prefix('{')?;
    let bottom = inside(rest)?;
    Some((top.to_string(), bottom.to_string(), at, 6 + top.len() + 1 + 1 + bottom.len() + 1))
}

/// The value of a decimal number or of a fraction of two.
fn number(text: &str) -> Option<f64> {
    let decimal = |t: &str| t.parse::<f64>().ok().filter(|v| v.is_finite());
    match text.split_once('/') {
        Some((top, bottom)) => Some(decimal(top)? / decimal(bottom).filter(|b| *b != 0.0)?),
        None => decimal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_after_the_thinking_counts() {
        assert_eq!(answer("[THINK]\\boxed{1}[/THINK]so \\boxed{2}"), Some("2"));
        assert_eq!(answer("[THINK]\\boxed{1}"), None, "the thinking never closes");
        assert_eq!(answer("<think>\\boxed{1}</think>so \\boxed{2}, no: \\boxed{\\frac{3}{4}}"), Some("\\frac{3}{4}"));
        assert_eq!(answer("\\boxed{5"), Some("5"), "a box that never closes is only a number");
        assert_eq!(answer("<think>it is 7, surely"), None, "cut off while thinking");
        assert_eq!(answer("</think>The answers are 3 and 1,024."), Some("1,024"));
        assert_eq!(answer("</think>Between 2-3, so -3."), Some("-3"));
        assert_eq!(answer("</think>none"), None);
        assert_eq!(answer("12"), Some("12"), "no thinking at all");
    }

    #[test]
    fn spellings_of_one_answer_are_the_same() {
        for (a, b) in [
            ("42", " $42$. "),
            ("0.5", ".50"),
            ("1/2", "\\dfrac{1}{2}"),
            ("\\frac{-1}{2}", "-0.5"),
            ("1,024", "1024"),
            ("(1,2)", "\\left( 1, 2 \\right)"),
            ("90", "90^\\circ"),
            ("5", "5\\text{ cm}"),
            ("\\text{blue}", "blue"),
            ("+7", "7"),
            ("50", "50\\%"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in
            [("42", "43"), ("1,2", "12"), ("(1,2)", "(2,1)"), ("x", "y"), ("", "0"), ("1/0", "1/0.0"), ("1e2x", "100")]
        {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
