//! The filters and functions of Python's jinja2 that the template engine lacks or has in another form, and the filter
//! `tojson` of transformers.
use minijinja::value::{Kwargs, Object, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most bytes that `tojson` writes, so that a template cannot fill the memory.
const LONGEST_JSON: usize = 64 << 20;
/// The most values inside each other that `tojson` writes. Python's limit is about 1000.
const DEEPEST_JSON: usize = 500;
/// The most blanks by which a level of JSON is indented.
const WIDEST_INDENT: usize = 1 << 10;

/// Adds all of them to `env`.
pub(super) fn add(env: &mut Environment<'_>) {
    env.add_filter("tojson", tojson);
    env.add_filter("wordcount", wordcount);
    env.add_filter("truncate", truncate);
    env.add_filter("filesizeformat", filesizeformat);
    env.add_filter(super::percent::FILTER, super::percent::percent);
    env.add_function("cycler", cycler);
    env.add_function("joiner", joiner);
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Arguments that may be given by position or by name, in the order of `names`.
fn named<const N: usize>(args: Rest<ValueOrKwargs>, names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let args = args.into_values();
    let (by_position, by_name): (&[Value], Kwargs) = from_args(&args)?;
    if by_position.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut values = [const { None }; N];
    for (index, name) in names.into_iter().enumerate() {
        let named: Option<Value> = if by_name.has(name) { Some(by_name.get(name)?) } else { None };
        let placed = by_position.get(index).cloned();
        if named.is_some() && placed.is_some() {
            return Err(invalid(format!("the argument {name} is given twice")));
        }
        values[index] = placed.or(named);
    }
    by_name.assert_all_used()?;
    Ok(values)
}

fn is_true(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.is_true())
}

fn count(value: &Value) -> Result<i64, Error> {
    if value.kind() == ValueKind::Bool {
        return Ok(i64::from(value.is_true()));
    }
    i64::try_from(value.clone())
}

/// `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`: JSON as Python's `json.dumps` writes
/// it, without HTML escapes.
fn tojson(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [ensure_ascii, indent, separators, sort_keys] =
        named(args, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(String::from),
        Some(blanks) => Some(" ".repeat(usize::try_from(count(&blanks)?).unwrap_or(0).min(WIDEST_INDENT))),
    };
    let (between, after_key) = match separators.filter(|pair| !pair.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            match pair.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                [Some(between), Some(after_key)] => (between.to_string(), after_key.to_string()),
                _ => return Err(invalid("separators are two texts")),
            }
        }
    };
    let (ensure_ascii, sort_keys) = (is_true(ensure_ascii), is_true(sort_keys));
    let mut json = Json { out: String::new(), ensure_ascii, indent, between, after_key, sort_keys };
    json.value(value, 0)?;
    Ok(Value::from(json.out))
}

/// A writer of JSON in the form of Python's `json.dumps`.
struct Json {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
    sort_keys: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let refused = |what: &str| Error::new(ErrorKind::BadSerialization, what.to_string());
        if depth > DEEPEST_JSON || self.out.len() > LONGEST_JSON {
            return Err(refused("the value is too large for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut is_empty = true;
                for item in value.try_iter()?.checked() {
                    self.begin(&mut is_empty, depth);
                    self.value(&item?, depth + 1)?;
                }
                self.end(is_empty, depth);
                self.out.push(']');
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten();
                let mut pairs: Vec<(Value, Value)> = pairs.collect();
                if self.sort_keys {
                    let kind = |key: &Value| key.kind() == ValueKind::String;
                    if pairs.iter().any(|(key, _)| kind(key) != kind(&pairs[0].0)) {
                        return Err(refused("keys of different types cannot be sorted"));
                    }
                    pairs.sort_by(|(a, _), (b, _)| match (a.as_str(), b.as_str()) {
                        (Some(a), Some(b)) => a.cmp(b),
                        _ => a.cmp(b),
                    });
                }
                self.out.push('{');
                let mut is_empty = true;
                for (key, value) in &pairs {
                    self.begin(&mut is_empty, depth);
                    match key.kind() {
                        ValueKind::String => self.text(key.as_str().unwrap_or_default()),
                        ValueKind::None => self.out.push_str("\"null\""),
                        ValueKind::Bool => self.out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
                        ValueKind::Number => self.out.push_str(&format!("\"{}\"", number(key)?)),
                        other => return Err(refused(&format!("a key of a JSON object cannot be of type {other}"))),
                    }
                    self.out.push_str(&self.after_key.clone());
                    self.value(value, depth + 1)?;
                }
                self.end(is_empty, depth);
                self.out.push('}');
            }
            other => return Err(refused(&format!("a value of type {other} is not JSON serializable"))),
        }
        Ok(())
    }

    /// Begins an item of a list or an object.
    fn begin(&mut self, is_empty: &mut bool, depth: usize) {
        if !std::mem::take(is_empty) {
            self.out.push_str(&self.between.clone());
        }
        self.line(depth + 1);
    }

    /// Ends a list or an object.
    fn end(&mut self, is_empty: bool, depth: usize) {
        if !is_empty {
            self.line(depth);
        }
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.ensure_ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python writes it in JSON.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let value = f64::try_from(value.clone())?;
    Ok(match value {
        _ if value.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        // Rust changes to exponents where Python does, but writes them without a sign and without zeros.
        _ => match format!("{value:?}").split_once('e') {
            None => format!("{value:?}"),
            Some((digits, exponent)) => match exponent.strip_prefix('-') {
                Some(exponent) => format!("{digits}e-{exponent:0>2}"),
                None => format!("{digits}e+{exponent:0>2}"),
            },
        },
    })
}

/// The number of words: of runs of letters, digits and underscores. In contrast to Python, a vowel sign of an Indic
/// script belongs to its word.
fn wordcount(value: &Value) -> usize {
    let text = value.to_string();
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// `truncate(length=255, killwords=false, end="...", leeway=5)`: the beginning of a text.
fn truncate(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [length, killwords, end, leeway] = named(args, ["length", "killwords", "end", "leeway"])?;
    let number = |value: Option<Value>, default: usize| match value.filter(|value| !value.is_none()) {
        None => Ok(default),
        Some(value) => usize::try_from(count(&value)?).map_err(|_| invalid("a length is negative")),
    };
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let end = end.unwrap_or_else(|| Value::from("..."));
    if value.is_undefined() {
        return Ok(value.clone());
    }
    let (Some(text), Some(end)) = (value.as_str(), end.as_str()) else {
        return Err(invalid(format!("expected a text to truncate, got {}", value.kind())));
    };
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(invalid(format!("expected length >= {}, got {length}", end.chars().count())));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let kept: String = text.chars().take(kept).collect();
    let kept = if is_true(killwords) { &*kept } else { kept.rsplit_once(' ').map_or(&*kept, |(words, _)| words) };
    Ok(Value::from(format!("{kept}{end}")))
}

/// `filesizeformat(binary=false)`: a number of bytes for people, such as `4.1 MB`.
fn filesizeformat(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let [binary] = named(args, ["binary"])?;
    let parsed = value.as_str().map(|text| text.trim().parse());
    let bytes: f64 = match parsed {
        Some(number) => number.map_err(|_| invalid("the text is no number"))?,
        None => f64::try_from(value.clone())?,
    };
    let (base, prefixes, infix) = if is_true(binary) { (1024f64, "KMGTPEZY", "i") } else { (1000f64, "kMGTPEZY", "") };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc() as i64));
    }
    let (mut unit, last) = (base, prefixes.chars().count() - 1);
    for (index, prefix) in prefixes.chars().enumerate() {
        unit *= base;
        if bytes < unit || index == last {
            return Ok(format!("{:.1} {prefix}{infix}B", base * bytes / unit));
        }
    }
    unreachable!("the last prefix is for every number")
}

/// `cycler("odd", "even")`: an object whose method `next` gives one item after the other, over and over.
fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    if items.is_empty() {
        return Err(invalid("at least one item has to be provided"));
    }
    Ok(Value::from_object(Cycler { items: items.0, at: AtomicUsize::new(0) }))
}

#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Cycler {
    fn current(&self) -> Value {
        self.items[self.at.load(Ordering::Relaxed) % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        let () = from_args(args)?;
        let current = self.current();
        match method {
            "next" => self.at.fetch_add(1, Ordering::Relaxed),
            "reset" => self.at.swap(0, Ordering::Relaxed),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        Ok(if method == "next" { current } else { Value::from(()) })
    }
}

/// `joiner(sep=", ")`: a function that gives nothing when it is first called, and then the separator.
fn joiner(args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [separator] = named(args, ["sep"])?;
    Ok(minijinja_contrib::globals::joiner(separator))
}
