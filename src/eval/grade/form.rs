//! What kind of answer a text is (a word, a number, a tuple, a set), and how two answers of these kinds compare.
use super::Verdict;
use super::Verdict::{CannotTell, Right, Wrong};
use super::expression::{Equality, Expression, compare, compare_equations};
use super::tex;

/// Answers nested deeper than this are not read.
const DEEPEST: usize = 8;
/// Longer answers are not read, only compared as text.
const LONGEST: usize = 2000;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    Words(String),
    Value(Value),
    /// A number with its base as an index: its digits, and the base.
    Based(String, u32),
    /// Items separated by commas, in any order.
    List(Vec<Form>),
    Set(Vec<Form>),
    /// An ordered tuple or an interval, with its brackets.
    Tuple(char, char, Vec<Form>),
    Union(Vec<Form>),
    Matrix(Vec<Vec<Form>>),
    /// A name with its value: `x = 5`.
    Named(String, Box<Form>),
    Equation(Box<[Expression; 2]>),
    Unknown,
}

/// A formula with what is written around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    expression: Expression,
    /// Digits after the decimal point, of a number that is written with one.
    decimals: Option<u32>,
    unit: Option<String>,
    percent: bool,
}

use Form::{Based, Equation, List, Matrix, Named, Set, Tuple, Union, Unknown, Words};

impl Form {
    /// Reads an answer that [`tex::clean`] has simplified.
    pub fn read(text: &str) -> Self {
        if text.len() > LONGEST { Unknown } else { Self::nested(text, 0) }
    }

    fn nested(text: &str, depth: usize) -> Self {
        let text = text.trim();
        if text.is_empty() || depth > DEEPEST {
            return Unknown;
        }
        if let Some(words) = tex::words(text) {
            return Words(words);
        }
        let all = |parts: Vec<&str>| parts.into_iter().map(|part| Self::nested(part, depth + 1)).collect::<Vec<_>>();
        if let Some((_, set)) = text.split_once("\\in ").or_else(|| text.split_once("\\in[")) {
            let set = if text.contains("\\in[") { format!("[{set}") } else { set.to_string() };
            return Self::nested(&set, depth + 1);
        }
        if let Some(rows) = matrix(text) {
            return Matrix(rows.into_iter().map(all).collect());
        }
        let text = text.replace('∪', "\\cup ");
        let text = text.trim();
        let parts = tex::split(text, &["\\cup"]);
        if parts.len() > 1 {
            return Union(all(parts));
        }
        if let Some(items) = text.strip_prefix("\\{").and_then(|rest| rest.strip_suffix("\\}")) {
            return Set(flat(all(tex::split(items, &[","]))));
        }
        if let Some((open, items, close)) = tex::bracketed(text) {
            let items = tex::split(items, &[","]);
            if items.len() > 1 {
                return Tuple(open, close, all(items));
            }
        }
        let parts = tex::split(text, &[",", ";"]);
        if parts.len() > 1 {
            return List(flat(all(parts.into_iter().filter(|part| !part.trim().is_empty()).collect())));
        }
        let parts = tex::split(text, &["="]);
        match parts[..] {
            [_] => {}
            [left, right] => {
                for (name, value) in [(left, right), (right, left)] {
                    if tex::is_name(name) {
                        return Named(name.split_whitespace().collect(), Self::nested(value, depth + 1).into());
                    }
                }
                return match (Expression::read(left), Expression::read(right)) {
                    // For 2 + 3 = 5, the value is the last side.
                    (Some(left), Some(right)) if !left.names().is_empty() || !right.names().is_empty() => {
                        Equation(Box::new([left, right]))
                    }
                    (Some(_), _) => Self::nested(parts[1], depth + 1),
                    _ => Unknown,
                };
            }
            [.., last] => return Self::nested(last, depth + 1),
            [] => return Unknown,
        }
        if text.contains("\\pm") || text.contains('±') || text.contains("\\mp") {
            let signs = |plus: &str, minus: &str| {
                let text = text.replace("\\pm", plus).replace('±', plus).replace("\\mp", minus);
                Self::nested(&text, depth + 1)
            };
            return List(vec![signs("+", "-"), signs("-", "+")]);
        }
        if let Some((digits, base)) = tex::in_base(text) {
            return Based(digits, base);
        }
        Value::read(text).map_or(Unknown, Self::Value)
    }

    /// The same answer with `unit`, which was written as a sign, for values that have no other unit.
    pub fn with_unit(self, unit: Option<&str>) -> Self {
        let Some(name) = unit else { return self };
        let all = |items: Vec<Self>| items.into_iter().map(|item| item.with_unit(unit)).collect();
        match self {
            Form::Value(value) => {
                let unit = value.unit.clone().or_else(|| (!value.percent).then(|| name.to_string()));
                Form::Value(Value { unit, ..value })
            }
            List(items) => List(all(items)),
            Set(items) => Set(all(items)),
            Tuple(open, close, items) => Tuple(open, close, all(items)),
            Named(of, value) => Named(of, value.with_unit(unit).into()),
            other => other,
        }
    }

    /// Whether this is a value, or several numbers, and nothing is left to guess.
    pub fn is_readable(&self) -> bool {
        let number = |item: &Self| match item {
            Form::Value(value) => value.expression.names().is_empty(),
            other => other.is_readable(),
        };
        match self {
            Form::Value(_) | Based(..) | Named(..) => true,
            List(items) | Set(items) | Tuple(_, _, items) => items.iter().all(number),
            _ => false,
        }
    }

    /// The only item of a set or list, or the value of a name.
    fn single(&self) -> &Self {
        match self {
            List(items) | Set(items) if items.len() == 1 => items[0].single(),
            Named(_, value) => value.single(),
            other => other,
        }
    }
}

/// Flattens lists within a list, which belong to it.
fn flat(items: Vec<Form>) -> Vec<Form> {
    items.into_iter().flat_map(|item| if let List(inner) = item { inner } else { vec![item] }).collect()
}

/// The cells of a matrix, if the text is one.
fn matrix(text: &str) -> Option<Vec<Vec<&str>>> {
    let body = text.strip_prefix("\\begin{")?;
    let (kind, body) = body.split_once('}').filter(|(kind, _)| ["pmatrix", "bmatrix", "matrix"].contains(kind))?;
    let body = body.trim_end().strip_suffix(&format!("\\end{{{kind}}}"))?;
    let rows = body.split(tex::ROW).filter(|row| !row.trim().is_empty());
    Some(rows.map(|row| row.split('&').collect()).collect())
}

impl Value {
    fn read(text: &str) -> Option<Self> {
        let (text, unit) = tex::unit(text);
        let (text, percent) = match text.trim().strip_suffix('%') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let (unit, percent) = if unit.as_deref() == Some("percent") { (None, true) } else { (unit, percent) };
        let text = text.trim();
        let decimals = text.trim_start_matches(['-', '+']).split_once('.').and_then(|(whole, part)| {
            let digits = whole.bytes().chain(part.bytes()).all(|b| b.is_ascii_digit());
            u32::try_from(part.len()).ok().filter(|_| digits)
        });
        Some(Self { expression: Expression::read(text)?, decimals, unit, percent })
    }

    fn percents(&self) -> Expression {
        let hundredth = Expression::read("1/100").into_iter();
        Expression::Product(hundredth.chain([self.expression.clone()]).collect())
    }

    /// Whether this number, written with at least two decimals, is `exact` after rounding.
    fn rounds(&self, exact: &Self) -> bool {
        let (Some(decimals), None) = (self.decimals.filter(|decimals| *decimals >= 2), exact.decimals) else {
            return false;
        };
        let (a, b) = (self.expression.value_of_constants(), exact.expression.value_of_constants());
        (a - b).abs() <= 0.500_001 * 10f64.powf(-f64::from(decimals))
    }

    /// Whether this number has so many decimals that f64 cannot tell it from `exact`, and `exact` is no fraction.
    fn may_be_rounded(&self, exact: &Self) -> bool {
        self.decimals.is_some_and(|decimals| decimals >= 10) && exact.expression.exact().is_none()
    }

    fn verdict(&self, key: &Self) -> Verdict {
        let mut equality = compare(&self.expression, &key.expression);
        // 50 may stand for 50 %, but half a percent may be meant as a half.
        let size = key.expression.value_of_constants().abs();
        if self.percent != key.percent && equality == Equality::Same && size > 0.0 && size <= 1.0 {
            return CannotTell;
        }
        if self.percent != key.percent && equality != Equality::Same {
            equality = match self.percent {
                true => compare(&self.percents(), &key.expression),
                false => compare(&self.expression, &key.percents()),
            };
        }
        // Degrees Celsius are degrees as well.
        let alike = |a: &str, b: &str| a == b || a == "degree" && b.starts_with(a) || b == "degree" && a.starts_with(b);
        let other_units = matches!((&self.unit, &key.unit), (Some(a), Some(b)) if !alike(a, b));
        match equality {
            Equality::Same if other_units || self.may_be_rounded(key) || key.may_be_rounded(self) => CannotTell,
            Equality::Same => Right,
            Equality::Different if other_units || self.rounds(key) || key.rounds(self) => CannotTell,
            // `5 m` may be five metres or a product.
            Equality::Different if self.begins_with(key) => CannotTell,
            Equality::Different => Wrong,
            Equality::Likely | Equality::Unknown => CannotTell,
        }
    }

    /// Whether this is a product of the number `key` and names.
    fn begins_with(&self, key: &Self) -> bool {
        let Expression::Product(factors) = &self.expression else { return false };
        let number = factors.first().and_then(Expression::exact);
        number.is_some() && number == key.expression.exact() && factors[1..].iter().all(|f| !f.names().is_empty())
    }
}

/// Compares an answer with the key.
pub fn verdict(found: &Form, key: &Form) -> Verdict {
    if let (Named(a, found), Named(b, key)) = (found, key) {
        return match verdict(found, key) {
            Right if a != b => CannotTell,
            verdict => verdict,
        };
    }
    let (found, key) = (found.single(), key.single());
    match (found, key) {
        (Words(found), Words(key)) if found == key => Right,
        (Words(found), Words(key)) => {
            // A hyphen between words may be a minus between variables.
            let (found, key) = (&found.replace('-', " "), &key.replace('-', " "));
            let has = |text: &str, part: &str| text.split(' ').any(|word| word == part) || text.contains(part);
            if has(found, key) || has(key, found) { CannotTell } else { Wrong }
        }
        (Words(word), Form::Value(value)) | (Form::Value(value), Words(word))
            if word.contains('-') && !value.expression.names().is_empty() =>
        {
            CannotTell
        }
        (Words(word), Form::Value(_)) => match tex::number_word(word) {
            Some(number) => verdict(&Form::read(&number.to_string()), key),
            None => Wrong,
        },
        (Form::Value(found), Form::Value(key)) => found.verdict(key),
        (Based(found, base), Based(key, base_of_key)) => {
            match (in_base_ten(found, *base), in_base_ten(key, *base_of_key)) {
                _ if (found, base) == (key, base_of_key) => Right,
                (Some(a), Some(b)) if a != b => Wrong,
                (Some(_), Some(_)) if base == base_of_key => Right,
                // The question may ask for one of the bases.
                _ => CannotTell,
            }
        }
        // People leave out the base.
        (Form::Value(_), Based(key, _)) => match verdict(found, &Form::read(key)) {
            Right => Right,
            _ => Wrong,
        },
        (Based(digits, base), Form::Value(_)) => {
            let of_value = in_base_ten(digits, *base).map(|value| verdict(&Form::read(&value.to_string()), key));
            match (of_value, verdict(&Form::read(digits), key)) {
                (Some(Right), _) if *base == 10 => Right,
                // The key may have left out its base.
                (Some(Wrong), Wrong) => Wrong,
                _ => CannotTell,
            }
        }
        (List(found) | Set(found), List(key) | Set(key)) | (Union(found), Union(key)) => in_any_order(found, key),
        (Tuple(open, close, found), Tuple(open_key, close_key, key)) => {
            if (open, close) == (open_key, close_key) {
                in_order(found, key)
            } else {
                Wrong
            }
        }
        // The brackets of a tuple may have been left out, and a vector written as a point.
        (List(found) | Set(found), Tuple(_, _, key)) | (Tuple(_, _, found), List(key) | Set(key)) => {
            in_order(found, key).at_most_likely()
        }
        (Matrix(found), Matrix(key)) => {
            let sizes = |rows: &[Vec<Form>]| rows.iter().map(Vec::len).collect::<Vec<usize>>();
            let all = |rows: &[Vec<Form>]| rows.concat();
            match sizes(found) == sizes(key) {
                true => in_order(&all(found), &all(key)),
                false => in_order(&all(found), &all(key)).at_most_likely(),
            }
        }
        (Matrix(found), Tuple(_, _, key) | List(key)) => in_order(&found.concat(), key).at_most_likely(),
        (Tuple(_, _, found) | List(found), Matrix(key)) => in_order(found, &key.concat()).at_most_likely(),
        (Equation(found), Equation(key)) => match compare_equations(found, key) {
            Equality::Same => Right,
            Equality::Different => Wrong,
            Equality::Likely | Equality::Unknown => CannotTell,
        },
        (Unknown, _) | (_, Unknown) | (Equation(_), _) | (_, Equation(_)) => CannotTell,
        _ => Wrong,
    }
}

/// The value of a number in another base. `None` if it has other digits, or does not fit.
fn in_base_ten(digits: &str, base: u32) -> Option<i128> {
    (2..=36).contains(&base).then(|| i128::from_str_radix(digits, base).ok()).flatten()
}

fn in_order(found: &[Form], key: &[Form]) -> Verdict {
    if found.len() != key.len() {
        return Wrong;
    }
    let verdicts = found.iter().zip(key).map(|(found, key)| verdict(found, key));
    verdicts.fold(Right, |all, one| match (all, one) {
        (Wrong, _) | (_, Wrong) => Wrong,
        (CannotTell, _) | (_, CannotTell) => CannotTell,
        _ => Right,
    })
}

/// Whether each item of one has its own item in the other. Items are few.
fn in_any_order(found: &[Form], key: &[Form]) -> Verdict {
    if found.len() != key.len() {
        return Wrong;
    }
    let mut left: Vec<&Form> = key.iter().collect();
    let mut unsure = false;
    for item in found {
        let verdicts: Vec<Verdict> = left.iter().map(|key| verdict(item, key)).collect();
        if let Some(at) = verdicts.iter().position(|verdict| *verdict == Right) {
            left.remove(at);
        } else if verdicts.contains(&CannotTell) {
            unsure = true;
        } else {
            return Wrong;
        }
    }
    if unsure { CannotTell } else { Right }
}
