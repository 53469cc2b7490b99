//! Simplifies the spelling of an answer in LaTeX or plain text, and takes it apart.

/// Ends a row of a matrix in a text that was cleaned, in place of two backslashes.
pub const ROW: &str = "\u{e000}";

/// The beginning of `text` up to the closing brace of a pair that was opened before `text`.
pub fn inside(text: &str) -> Option<&str> {
    let mut depth = 1;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth -= 1,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        if depth == 0 {
            return Some(&text[..at]);
        }
    }
    None
}

/// An answer without what does not change its meaning: math delimiters, sizes of brackets and fractions, blanks of
/// LaTeX, degrees, currency signs, thousands separators, and a full stop at the end.
pub fn clean(answer: &str) -> String {
    let mut text = answer.trim();
    // Between two numbers, the stars are an operator.
    while let Some(bold) = text.strip_prefix("**").and_then(|rest| rest.trim_end_matches('.').strip_suffix("**")) {
        text = bold.trim();
    }
    let mut text = text.to_string();
    for (from, to) in [
        // This is replaced first, so that no later step takes the second backslash for the beginning of a command.
        ("\\\\", ROW),
        ("−", "-"),
        ("–", "-"),
        ("\\$", ""),
        ("$", ""),
        ("€", ""),
        ("£", ""),
        ("\\(", ""),
        ("\\)", ""),
        ("\\[", ""),
        ("\\]", ""),
        ("\\displaystyle", ""),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
        ("\\%", "%"),
        ("{,}", ","),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\degree", ""),
        ("°", ""),
        ("\\lbrace", "\\{"),
        ("\\rbrace", "\\}"),
        ("\\infin ", "\\infty "),
        ("\\textbf{", "\\text{"),
        ("\\textit{", "\\text{"),
        ("\\textrm{", "\\text{"),
        ("\\texttt{", "\\text{"),
        ("\\mathrm{", "\\text{"),
        ("\\mathbf{", "\\text{"),
        ("\\mbox{", "\\text{"),
        ("\\operatorname{", "\\text{"),
        ("\\, ", "\\,"),
        ("\\qquad", " "),
        ("\\quad", " "),
        ("\\;", " "),
        ("\\:", " "),
        ("~", " "),
        ("\u{a0}", " "),
    ] {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    for command in ["\\left", "\\right", "\\big", "\\Big"] {
        text = without_command(&text, command);
    }
    // `\!` makes the space around a thousands separator smaller.
    while let Some(at) = text.find("\\!") {
        let end = at + 2 + (text[at + 2..].len() - text[at + 2..].trim_start().len());
        text.replace_range(at..end, "");
    }
    text = join_thousands(&text.replace("\\ ", " "));
    text = text.replace("\\,", " ");
    if let Some(rest) = text.trim().strip_prefix("\\boxed{")
        && inside(rest).is_some_and(|inner| inner.len() + 1 == rest.len())
    {
        text = rest[..rest.len() - 1].to_string();
    }
    // A number in bold.
    if let Some(rest) = text.trim().strip_prefix("\\text{").filter(|rest| rest.contains(|c: char| c.is_ascii_digit()))
        && inside(rest).is_some_and(|inner| inner.len() + 1 == rest.len())
    {
        text = rest[..rest.len() - 1].to_string();
    }
    let text = join_and_or(&text);
    text.trim().trim_end_matches(['.', ',', ';', ':']).trim().to_string()
}

/// The unit whose sign [`clean`] removes from an answer: degrees, or a currency.
pub fn sign_of_unit(answer: &str) -> Option<&'static str> {
    const SIGNS: [(&str, &str); 7] = [
        ("\\$", "dollar"),
        ("€", "euro"),
        ("£", "pound"),
        ("^{\\circ}", "degree"),
        ("^\\circ", "degree"),
        ("\\degree", "degree"),
        ("°", "degree"),
    ];
    SIGNS.iter().find(|(sign, _)| answer.contains(sign)).map(|(_, unit)| *unit)
}

/// `text` without a command that only changes a size.
fn without_command(text: &str, command: &str) -> String {
    let mut parts = text.split(command);
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        if part.starts_with(|c: char| c.is_ascii_alphabetic()) {
            out += command; // another command, such as \rightarrow
        }
        out += part;
    }
    out
}

/// Removes separators between groups of three digits: `1,024`, `1\,024`, `1 024`.
fn join_thousands(text: &str) -> String {
    const SEPARATORS: [&str; 3] = [",", "\\,", " "];
    let bytes = text.as_bytes();
    let digits = |at: usize| bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut out = String::new();
    let mut at = 0;
    while at < text.len() {
        let count = digits(at);
        if count == 0 {
            let next = text[at..].chars().next().map_or(1, char::len_utf8);
            out += &text[at..at + next];
            at += next;
            continue;
        }
        let before = out.chars().next_back();
        out += &text[at..at + count];
        at += count;
        // Digits after a decimal point or another letter are no groups.
        if count > 3 || before.is_some_and(|c| c == '.' || c == '_' || c.is_alphanumeric()) {
            continue;
        }
        while let Some(separator) = SEPARATORS.iter().find(|s| text[at..].starts_with(**s) && digits(at + s.len()) == 3)
        {
            // Of `3 100/7`, the second number belongs to a fraction.
            let after = at + separator.len() + 3;
            if *separator == " " && bytes.get(after) == Some(&b'/') {
                break;
            }
            out += &text[at + separator.len()..after];
            at = after;
        }
    }
    out
}

/// Replaces `and` and `or` between answers by commas.
fn join_and_or(text: &str) -> String {
    let mut text = text.to_string();
    for joint in [
        "\\text{and}",
        "\\text{or}",
        "\\text{ and }",
        "\\text{ or }",
        "\\text{ and}",
        "\\text{ or}",
        "\\text{or }",
        "\\text{and }",
    ] {
        text = text.replace(joint, ",");
    }
    let has_value = text.contains(|c: char| c.is_ascii_digit() || c == '\\' || c == '=');
    if has_value {
        text = text.replace(", and ", ", ").replace(", or ", ", ").replace(" and ", ", ").replace(" or ", ", ");
    }
    text
}

/// Splits outside of all brackets. Brackets of all kinds count alike, because intervals mix them.
pub fn split<'a>(text: &'a str, at: &[&str]) -> Vec<&'a str> {
    let (mut parts, mut begin, mut depth, mut index) = (Vec::new(), 0, 0i32, 0);
    while index < text.len() {
        let rest = &text[index..];
        let separator = at.iter().find(|separator| rest.starts_with(**separator)).filter(|_| depth == 0);
        if let Some(separator) = separator {
            parts.push(&text[begin..index]);
            index += separator.len();
            begin = index;
            continue;
        }
        let c = rest.chars().next().unwrap_or(' ');
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        index += c.len_utf8();
    }
    parts.push(&text[begin..]);
    parts
}

/// A text in brackets that open at its beginning and close at its end: the brackets and what is between.
pub fn bracketed(text: &str) -> Option<(char, &str, char)> {
    let (open, close) = (text.chars().next()?, text.chars().next_back()?);
    if !matches!(open, '(' | '[') || !matches!(close, ')' | ']') || text.len() < 2 {
        return None;
    }
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && at + 1 < text.len() {
            return None;
        }
    }
    Some((open, &text[1..text.len() - 1], close))
}

/// The words of a text that has nothing else, in lower case. A text of fewer than three letters may be a product of
/// variables, unless it is marked as text.
pub fn words(text: &str) -> Option<String> {
    let mut plain = text.to_string();
    let marked = plain.contains("\\text{");
    while let Some(at) = plain.find("\\text{") {
        let word = inside(&plain[at + 6..])?.to_string();
        plain.replace_range(at..at + 6 + word.len() + 1, &word);
    }
    let fits = |c: char| c.is_alphabetic() || c.is_whitespace() || matches!(c, '-' | '\'' | '’' | '.' | '(' | ')');
    if !plain.chars().all(fits) {
        return None;
    }
    // Elsewhere than between two letters, a hyphen is a sign.
    let letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
    let hyphens = |(at, _)| letter(plain[..at].chars().next_back()) && letter(plain[at + 1..].chars().next());
    if !plain.match_indices('-').all(hyphens) {
        return None;
    }
    let separates = |c: char| !c.is_alphabetic() && c != '-';
    let listed: Vec<&str> = plain.split(separates).filter(|word| !word.is_empty()).collect();
    const FORMULAS: [&str; 8] = ["sqrt", "infinity", "infty", "inf", "sin", "cos", "tan", "log"];
    let mut parts = listed.iter().flat_map(|word| word.split('-'));
    let formula = parts.clone().any(|word| FORMULAS.contains(&word));
    if formula || !marked && !parts.any(|word| word.chars().count() >= 3) || listed.is_empty() {
        return None;
    }
    Some(listed.join(" ").to_lowercase())
}

/// The letter of a multiple choice: `C`, `(C)`, `\text{(C)}`. `lenient`: an explanation may follow, as in `(C) 12`.
pub fn choice(text: &str, lenient: bool) -> Option<char> {
    let plain = text.replace("\\text{", "").replace('}', "");
    let plain = plain.trim();
    let opened = plain.strip_prefix('(');
    let mut rest = opened.unwrap_or(plain).chars();
    let letter = rest.next().filter(|c| ('A'..='J').contains(c))?;
    let rest = rest.as_str();
    let closed = rest.strip_prefix(')');
    let after = closed.unwrap_or(rest);
    let whole = after.trim().is_empty() && (opened.is_some() == closed.is_some() || closed.is_some());
    let begun = closed.is_some() || after.starts_with([':', '.']);
    // Another letter in brackets or at the end of a list: `(C) or (D)`.
    let words: Vec<&str> = after.split_whitespace().collect();
    let another = |(index, word): (usize, &&str)| {
        let bare = word.trim_matches(['(', ')', ',', '.']);
        let joined = index == 0 && after.starts_with(',') || index > 0 && joins(words[index - 1]);
        let is_letter = bare.len() == 1 && bare.starts_with(|c| ('A'..='J').contains(&c));
        is_letter && (word.starts_with('(') || joined)
    };
    let several = words.iter().enumerate().any(another);
    (whole || lenient && begun && !several).then_some(letter)
}

/// Whether a letter after this word is another choice.
fn joins(word: &str) -> bool {
    matches!(word, "or" | "and" | "/" | "&") || word.ends_with(',')
}

/// Whether a text is a name to which a value can be given: `x`, `\theta`, `x_1`, `f(x)`, `AB`.
pub fn is_name(text: &str) -> bool {
    let text = text.trim();
    let head = text.split(['_', '(', '\'']).next().unwrap_or_default();
    let letters = head.strip_prefix('\\').unwrap_or(head).trim();
    let short = letters.len() <= if head.starts_with('\\') { 10 } else { 3 };
    let word = !letters.is_empty() && letters.bytes().all(|b| b.is_ascii_alphabetic());
    let rest = &text[head.len()..];
    let tail = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '{' | '}' | '(' | ')' | '\'' | ',' | ' ' | '-');
    short && word && head != "\\frac" && head != "\\sqrt" && head != "\\pi" && rest.chars().all(tail)
}

/// The digits of a number with its base as an index, and the base: `2516_8`, `4210_{5}`.
pub fn in_base(text: &str) -> Option<(String, u32)> {
    let (digits, base) = text.split_once('_')?;
    let base = base.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches("\\text{");
    let digits = digits.trim();
    let fits = digits.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    let base = base.parse().ok().filter(|_| base.bytes().all(|b| b.is_ascii_digit()))?;
    (fits && digits.starts_with(|c: char| c.is_ascii_digit())).then(|| (digits.to_string(), base))
}

/// A text without the unit at its end, and the unit in a form that does not depend on the plural.
pub fn unit(text: &str) -> (&str, Option<String>) {
    let text = text.trim();
    let normal = |unit: &str| {
        let letters: String = unit.chars().filter(|c| c.is_alphanumeric() || *c == '/').collect();
        let letters = letters.to_lowercase();
        let singular = letters.strip_suffix('s').filter(|rest| rest.len() > 1).unwrap_or(&letters);
        if singular == "inche" { "inch".to_string() } else { singular.to_string() }
    };
    if let Some(at) = text.rfind("\\text{").filter(|at| *at > 0) {
        let after = &text[at + 6..];
        let Some(word) = inside(after) else { return (text, None) };
        let power = after[word.len() + 1..].trim();
        let is_power = matches!(power, "" | "^2" | "^3" | "^{2}" | "^{3}" | "²" | "³");
        // `\text{degrees Celsius}` may stand in two groups; the first goes in the next turn.
        if is_power {
            let (rest, inner) = unit(&text[..at]);
            return (rest, Some(inner.unwrap_or_default() + &normal(&format!("{word}{power}"))));
        }
        return (text, None);
    }
    // Plain words after a number.
    let Some(begin) = text.find(char::is_whitespace) else { return (text, None) };
    for (at, _) in text[begin..].match_indices(char::is_whitespace).map(|(at, c)| (at + begin, c)) {
        let (number, words) = (text[..at].trim_end(), text[at..].trim());
        let is_word = |word: &str| {
            let letters = word.chars().take_while(char::is_ascii_alphabetic).count();
            let rest = &word[letters..];
            let rest = ["", "^2", "^3", "^{2}", "^{3}", "²", "³", "."].contains(&rest) || rest.starts_with('/');
            letters >= 2 && rest && !["pi", "sqrt", "infinity", "inf", "sin", "cos", "tan", "log"].contains(&word)
        };
        let ends = number.ends_with(|c: char| c.is_ascii_digit() || matches!(c, '}' | ')' | '%' | '.'));
        if ends && number.contains(|c: char| c.is_ascii_digit()) && words.split_whitespace().all(is_word) {
            return (number, Some(normal(words)));
        }
    }
    (text, None)
}

/// The value of a number that is written as a word.
pub fn number_word(word: &str) -> Option<usize> {
    const WORDS: [&str; 21] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ];
    WORDS.iter().position(|known| *known == word)
}
