//! Python's operator `%` for texts, as in `"%s, %d" % (name, count)`, which the template engine does not have.
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// The filter that stands for the operator. A template cannot write such a name by accident.
pub(super) const FILTER: &str = "python_percent";

/// The longest expression that is rewritten, in bytes, and how deeply operators may be nested in it. Those of published
/// templates are far below. What exceeds them stays as it is, and the template engine judges it: to find where operands
/// end takes time that grows with the square of the length.
const LONGEST: usize = 4096;
const DEEPEST: usize = 32;

/// Replaces `"…" % x` in the expressions of a template by `("…"|python_percent(x))`. The left side must be a text
/// literal, because it cannot be told from a template what else is a text; where it is not, `%` stays arithmetic,
/// which fails for texts.
pub(super) fn as_filters(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let close = match rest.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                let end = rest.find("#}").map_or(rest.len(), |at| at + 2);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            _ => {
                out.push('{');
                rest = &rest[1..];
                continue;
            }
        };
        let Some(end) = end_of_tag(rest, close) else { break };
        let inner = &rest[2..end];
        out.push_str(&rest[..2]);
        out.push_str(&in_expression(inner, 0));
        out.push_str(close);
        rest = &rest[end + 2..];
        if close == "%}" && inner.trim_matches(['-', '+', ' ', '\t', '\n', '\r']) == "raw" {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

/// The byte at which a tag ends that begins with two braces or `{%`.
fn end_of_tag(tag: &str, close: &str) -> Option<usize> {
    let (bytes, mut at, mut depth) = (tag.as_bytes(), 2, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => at = end_of_text(tag, at)?,
            _ if depth == 0 && tag[at..].starts_with(close) => return Some(at),
            b'{' | b'(' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b')' | b']' => (at, depth) = (at + 1, depth.saturating_sub(1)),
            _ => at += tag[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    None
}

/// The byte after the text literal that begins at `at`.
fn end_of_text(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut end = at + 1;
    while end < bytes.len() {
        match bytes[end] {
            b'\\' => end += 2,
            quote if quote == bytes[at] => return Some(end + 1),
            _ => end += 1,
        }
    }
    None
}

/// `depth`: the number of operators of which the expression is the right side.
fn in_expression(expression: &str, depth: usize) -> String {
    if expression.len() > LONGEST || depth > DEEPEST {
        return expression.to_string();
    }
    let mut out = String::with_capacity(expression.len());
    let mut at = 0;
    while at < expression.len() {
        let Some(literal) = expression[at..].find(['"', '\'']).map(|found| at + found) else { break };
        let Some(end) = end_of_text(expression, literal) else { break };
        // After `*` and its like, and after another literal, the text is only a part of the left side.
        let before = expression[..literal].trim_end();
        let is_whole = !before.ends_with(['*', '/', '%', '"', '\'', '.']);
        let operand = skip_blanks(expression, end);
        let is_operator = expression[operand..].starts_with('%');
        let to = if is_whole && is_operator { end_of_operand(expression, operand + 1) } else { None };
        let Some(to) = to else {
            out.push_str(&expression[at..end]);
            at = end;
            continue;
        };
        let argument = in_expression(expression[operand + 1..to].trim(), depth + 1);
        out.push_str(&expression[at..literal]);
        out.push_str(&format!("({}|{FILTER}({argument}))", &expression[literal..end]));
        at = to;
    }
    out.push_str(&expression[at..]);
    out
}

fn skip_blanks(text: &str, at: usize) -> usize {
    text.len() - text[at..].trim_start().len()
}

/// The byte after the operand that begins at `at`, as Jinja groups it: a sign, a name, a number, a literal or
/// brackets, and then attributes, items, calls and filters.
fn end_of_operand(text: &str, at: usize) -> Option<usize> {
    let mut at = skip_blanks(text, at);
    'power: loop {
        while text[at..].starts_with(['-', '+']) {
            at = skip_blanks(text, at + 1);
        }
        let mut end = match text[at..].chars().next()? {
            '"' | '\'' => end_of_text(text, at)?,
            '(' | '[' | '{' => end_of_brackets(text, at)?,
            _ => end_of_word(text, at)?,
        };
        loop {
            let next = skip_blanks(text, end);
            let rest = &text[next..];
            end = match rest.chars().next() {
                Some('(' | '[') => end_of_brackets(text, next)?,
                Some('.' | '|') => end_of_word(text, skip_blanks(text, next + 1))?,
                Some('*') if rest.starts_with("**") => {
                    at = skip_blanks(text, next + 2);
                    continue 'power;
                }
                _ => return Some(end),
            };
        }
    }
}

/// The byte after the name or the number that begins at `at`.
fn end_of_word(text: &str, at: usize) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let len = text[at..].find(|c| !is_word(c)).unwrap_or(text.len() - at);
    (len > 0).then_some(at + len)
}

/// The byte after the brackets that begin at `at`.
fn end_of_brackets(text: &str, at: usize) -> Option<usize> {
    let (bytes, mut end, mut depth) = (text.as_bytes(), at, 0usize);
    while end < bytes.len() {
        match bytes[end] {
            b'"' | b'\'' => {
                end = end_of_text(text, end)?;
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => (),
        }
        end += 1;
        if depth == 0 {
            return Some(end);
        }
    }
    None
}

/// The filter: formats `operand`, or the items of a tuple, or the values of a mapping, as Python does. The filter
/// `format` of the template engine does the work.
///
/// # Errors
/// Those of `format`, and items for which the format has no place.
pub(super) fn percent(state: &mut State<'_, '_>, format: &Value, operand: &Value) -> Result<Value, Error> {
    let values: Vec<Value> = if operand.is_tuple() { operand.try_iter()?.collect() } else { vec![operand.clone()] };
    if !matches!(operand.kind(), ValueKind::Map) && places(format.as_str().unwrap_or_default()) < values.len() {
        return Err(Error::new(ErrorKind::InvalidOperation, "not all arguments converted during string formatting"));
    }
    let all: Vec<Value> = std::iter::once(format.clone()).chain(values).collect();
    state.apply_filter("format", &all)
}

/// The places of a format for which values are needed.
fn places(format: &str) -> usize {
    format.replace("%%", "").matches('%').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_texts_before_a_percent_sign_become_filters() {
        for (template, expected) in [
            ("{{ '%s' % x }}", "{{ ('%s'|python_percent(x)) }}"),
            ("{{'%s-%s'%(a, b[0].c('x'))~1}}", "{{('%s-%s'|python_percent((a, b[0].c('x'))))~1}}"),
            ("{%- if \"%d\" % n|int == '3' -%}", "{%- if (\"%d\"|python_percent(n|int)) == '3' -%}"),
            ("{{ f('%s' % ('%d' % 2), 'a') }}", "{{ f(('%s'|python_percent((('%d'|python_percent(2))))), 'a') }}"),
            ("{{ '%d' % -x ** 2 }}", "{{ ('%d'|python_percent(-x ** 2)) }}"),
            (
                "{{ {'a': '}}'}['a'] }} {{ '%s' % {'a': {}} }}",
                "{{ {'a': '}}'}['a'] }} {{ ('%s'|python_percent({'a': {}})) }}",
            ),
        ] {
            assert_eq!(as_filters(template), expected);
        }
        for same in [
            "{{ 7 % 2 }}{{ x % y }}",
            "'%s' % x",
            "{# '%s' % x #}",
            "{% raw %}{{ '%s' % x }}{% endraw %}",
            "{{ 'it\\'s' }}% {{ x }}",
            "{{ 2 * 'a' % x }}",
            "{{ 'a' 'b' % x }}",
            "{{ '%s' % }}",
            "{{ 'open % x }}",
            "{%}",
            "{",
            "{{ 'é' ~ (",
        ] {
            assert_eq!(as_filters(same), same);
        }
    }

    /// Neither long expressions nor deep ones end the process or take long.
    #[test]
    fn hostile_templates_stay_as_they_are() {
        let deep = format!("{{{{ {}x{} }}}}", "'%s' % (".repeat(60_000), ")".repeat(60_000));
        assert_eq!(as_filters(&deep), deep);
        let unmatched = format!("{{{{ {} }}}}", "''%(".repeat(60_000));
        assert_eq!(as_filters(&unmatched), unmatched);
        let powers = format!("{{{{ '%s' % x{} }}}}", " ** x".repeat(200_000));
        assert_eq!(as_filters(&powers), powers);
        let within = format!("{{{{ {}x{} }}}}", "'%s' % (".repeat(100), ")".repeat(100));
        assert_eq!(as_filters(&within).matches(FILTER).count(), DEEPEST + 1);
        let power = format!("{{{{ '%s' % x{} }}}}", " ** x".repeat(500));
        assert_eq!(as_filters(&power).matches(FILTER).count(), 1);
    }
}
