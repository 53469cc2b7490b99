//! Reads a formula in LaTeX or plain text, and compares two of them. This is no algebra system: it computes numbers
//! exactly where they are fractions, and otherwise in f64.
use std::collections::BTreeSet;
use std::fmt::Write;

/// Formulas nested deeper than this are not read, so that no input can exhaust the stack.
const DEEPEST: usize = 40;

/// A fraction in lowest terms with a positive denominator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    pub top: i128,
    pub bottom: i128,
}

impl Ratio {
    /// `None` for a denominator of 0 and for numbers that do not fit into 128 bits.
    pub fn new(top: i128, bottom: i128) -> Option<Self> {
        let (mut a, mut b) = (top.unsigned_abs(), bottom.unsigned_abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = i128::try_from(a).ok().filter(|_| bottom != 0)?;
        let sign = bottom.signum();
        Some(Self { top: (top / divisor).checked_mul(sign)?, bottom: (bottom / divisor).checked_mul(sign)? })
    }

    /// Digits with at most one decimal point.
    pub fn decimal(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{part}");
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Self::new(digits.parse().ok()?, 10i128.checked_pow(u32::try_from(part.len()).ok()?)?)
    }

    fn plus(self, other: Self) -> Option<Self> {
        let (left, right) = (self.top.checked_mul(other.bottom)?, other.top.checked_mul(self.bottom)?);
        Self::new(left.checked_add(right)?, self.bottom.checked_mul(other.bottom)?)
    }

    fn times(self, other: Self) -> Option<Self> {
        Self::new(self.top.checked_mul(other.top)?, self.bottom.checked_mul(other.bottom)?)
    }

    fn power(self, exponent: Self) -> Option<Self> {
        let n = u32::try_from(exponent.top.unsigned_abs()).ok().filter(|_| exponent.bottom == 1)?;
        let (top, bottom) = (self.top.checked_pow(n)?, self.bottom.checked_pow(n)?);
        if exponent.top < 0 { Self::new(bottom, top) } else { Self::new(top, bottom) }
    }

    pub fn value(self) -> f64 {
        self.top as f64 / self.bottom as f64
    }
}

/// A formula. A difference is a sum with a factor of -1, and a quotient is a product with a power of -1.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    Number(Ratio),
    /// A letter, a Greek letter, or a letter with an index.
    Name(String),
    Infinity,
    Sum(Vec<Expression>),
    Product(Vec<Expression>),
    Power(Box<Expression>, Box<Expression>),
    /// A function by its name in LaTeX, and its arguments.
    Function(String, Vec<Expression>),
}

use Expression::{Function, Infinity, Name, Number, Power, Product, Sum};

fn whole(n: i128) -> Expression {
    Number(Ratio { top: n, bottom: 1 })
}

fn minus(e: Expression) -> Expression {
    Product(vec![whole(-1), e])
}

fn over(top: Expression, bottom: Expression) -> Expression {
    Product(vec![top, Power(bottom.into(), whole(-1).into())])
}

impl Expression {
    /// Reads a whole text. `None` if any part of it is not understood.
    pub fn read(text: &str) -> Option<Self> {
        let mut reader = ExpressionReader { rest: text, depth: 0, bars: 0 };
        let read = reader.sum()?;
        reader.skip();
        reader.rest.is_empty().then_some(read)
    }

    /// The exact value, if it is a fraction that fits.
    pub fn exact(&self) -> Option<Ratio> {
        let all = |terms: &[Self]| terms.iter().map(Self::exact).collect::<Option<Vec<Ratio>>>();
        match self {
            Number(ratio) => Some(*ratio),
            Sum(terms) => all(terms)?.into_iter().try_fold(Ratio { top: 0, bottom: 1 }, Ratio::plus),
            Product(factors) => all(factors)?.into_iter().try_fold(Ratio { top: 1, bottom: 1 }, Ratio::times),
            Power(base, exponent) => base.exact()?.power(exponent.exact()?),
            Function(name, arguments) if name == "factorial" => {
                let n = arguments.first()?.exact().filter(|n| n.bottom == 1 && (0..=33).contains(&n.top))?;
                Some(Ratio { top: (1..=n.top).product(), bottom: 1 })
            }
            Name(_) | Infinity | Function(..) => None,
        }
    }

    /// The value in f64, with a value for each name from `of`. NaN where the formula is not defined or f64 cannot
    /// hold the value.
    fn value(&self, of: &dyn Fn(&str) -> f64) -> Computed {
        match self {
            Number(ratio) => {
                let fits = ratio.bottom == 1 && ratio.top.unsigned_abs() <= 1 << f64::MANTISSA_DIGITS;
                let value = ratio.value();
                Computed { value, error: if fits { 0.0 } else { ROUNDED * value.abs() }, lost: false }
            }
            Name(name) => Computed::rounded(match name.as_str() {
                "\\pi" => std::f64::consts::PI,
                "e" => std::f64::consts::E,
                name => of(name),
            }),
            Infinity => Computed { value: f64::INFINITY, error: 0.0, lost: false },
            Sum(terms) => Computed::sum(terms.iter().map(|term| term.value(of)).collect()),
            Product(factors) => {
                let one = Computed { value: 1.0, error: 0.0, lost: false };
                factors.iter().map(|factor| factor.value(of)).fold(one, Computed::times)
            }
            Power(base, exponent) => base.value(of).power(exponent.value(of)),
            Function(name, arguments) => {
                let arguments: Vec<Computed> = arguments.iter().map(|argument| argument.value(of)).collect();
                Computed::of_function(name, &arguments)
            }
        }
    }

    /// The value of a formula without variables; NaN if it has any.
    pub fn value_of_constants(&self) -> f64 {
        self.value(&|_| f64::NAN).value
    }

    fn collect_names(&self, names: &mut BTreeSet<String>) {
        match self {
            Name(name) if !matches!(name.as_str(), "\\pi" | "e") => {
                names.insert(name.clone());
            }
            Sum(all) | Product(all) | Function(_, all) => all.iter().for_each(|e| e.collect_names(names)),
            Power(base, exponent) => [base, exponent].into_iter().for_each(|e| e.collect_names(names)),
            Name(_) | Number(_) | Infinity => {}
        }
    }

    /// The variables, without π and e.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        self.collect_names(&mut names);
        names
    }

    /// A text that two formulas share if they differ only in the order of terms and factors, in brackets around sums
    /// of sums, and in how their numbers are written.
    pub fn spelling(&self) -> String {
        let (sign, body) = self.signed();
        format!("{sign}{body}")
    }

    /// The numeric factor in front, and the rest.
    fn signed(&self) -> (String, String) {
        if let Some(Ratio { top, bottom }) = self.exact() {
            return (format!("{top}/{bottom}"), String::new());
        }
        let Product(_) = self else { return ("1/1".into(), self.body()) };
        let mut factors = Vec::new();
        self.flatten_product(&mut factors);
        let (mut front, mut rest) = (Ratio { top: 1, bottom: 1 }, Vec::new());
        for factor in factors {
            match factor.exact().and_then(|number| front.times(number)) {
                Some(product) => front = product,
                None => rest.push(factor.body()),
            }
        }
        rest.sort();
        (format!("{}/{}", front.top, front.bottom), rest.join("*"))
    }

    fn flatten_product<'a>(&'a self, into: &mut Vec<&'a Self>) {
        match self {
            Product(factors) => factors.iter().for_each(|factor| factor.flatten_product(into)),
            other => into.push(other),
        }
    }

    fn flatten_sum<'a>(&'a self, into: &mut Vec<&'a Self>) {
        match self {
            Sum(terms) => terms.iter().for_each(|term| term.flatten_sum(into)),
            other => into.push(other),
        }
    }

    fn body(&self) -> String {
        match self {
            Number(ratio) => format!("{}/{}", ratio.top, ratio.bottom),
            Name(name) => name.clone(),
            Infinity => "\\infty".into(),
            Sum(_) => {
                let mut terms = Vec::new();
                self.flatten_sum(&mut terms);
                let mut terms: Vec<String> = terms.into_iter().map(Self::spelling).collect();
                terms.sort();
                format!("({})", terms.join("+"))
            }
            Product(_) => self.spelling(),
            Power(base, exponent) => format!("({})^({})", base.spelling(), exponent.spelling()),
            Function(name, arguments) => {
                let mut text = format!("{name}(");
                for argument in arguments {
                    let _ = write!(text, "{};", argument.spelling());
                }
                text + ")"
            }
        }
    }
}

/// More than the relative error of one operation.
const ROUNDED: f64 = 4.0 * f64::EPSILON;

/// A value that was computed in f64.
#[derive(Debug, Clone, Copy)]
struct Computed {
    value: f64,
    /// A bound of the difference from the real value, apart from small rounding.
    error: f64,
    /// Whether a part of the formula is too small to change the value, so that other formulas have the same value.
    lost: bool,
}

impl Computed {
    fn rounded(value: f64) -> Self {
        Self { value, error: ROUNDED * value.abs(), lost: false }
    }

    /// Checks a value that was computed from `parts`. It becomes NaN if it is too large for f64 or, with `or_small`,
    /// too small.
    fn fitting(self, parts: &[Self], or_small: bool) -> Self {
        if parts.iter().any(|part| part.value.is_infinite()) {
            return Self { error: 0.0, ..self };
        }
        let small = or_small && self.value.abs() < f64::MIN_POSITIVE && parts.iter().all(|part| part.value != 0.0);
        let value = if self.value.is_infinite() || small { f64::NAN } else { self.value };
        // A value within its error of 0 may be 0.
        let lost = self.lost || self.error > 0.0 && value.abs() <= self.error;
        Self { value, lost, ..self }
    }

    fn sum(terms: Vec<Self>) -> Self {
        let total = |of: fn(&Self) -> f64| terms.iter().map(of).sum::<f64>();
        let (value, largest) = (total(|term| term.value), total(|term| term.value.abs()));
        let whole = terms.iter().all(|term| term.error == 0.0 && term.value.fract() == 0.0) && largest <= EXACT;
        let error = if whole { 0.0 } else { total(|term| term.error) + ROUNDED * largest };
        let vanishes = |term: &Self| term.value != 0.0 && term.value.abs() <= error;
        let lost = terms.iter().any(|term| term.lost || vanishes(term));
        Self { value, error, lost }.fitting(&terms, false)
    }

    fn times(self, other: Self) -> Self {
        let value = self.value * other.value;
        let whole = [self, other].iter().all(|factor| factor.error == 0.0 && factor.value.fract() == 0.0);
        let error = self.error * other.value.abs() + other.error * (self.value.abs() + self.error);
        let error = if whole && value.abs() <= EXACT { 0.0 } else { error + ROUNDED * value.abs() };
        Self { value, error, lost: self.lost || other.lost }.fitting(&[self, other], true)
    }

    fn power(self, exponent: Self) -> Self {
        let (value, size) = (self.value.powf(exponent.value), self.value.abs());
        let whole = [self, exponent].iter().all(|part| part.error == 0.0 && part.value.fract() == 0.0);
        let error = if whole && exponent.value >= 0.0 && value.abs() <= EXACT {
            0.0
        } else if size == 0.0 {
            self.error.powf(exponent.value)
        } else {
            let relative = exponent.value.abs() * self.error / size + size.ln().abs() * exponent.error;
            value.abs() * (relative + ROUNDED)
        };
        let vanishes = exponent.value != 0.0 && size != 1.0 && value.abs() == 1.0;
        let lost = self.lost || exponent.lost || vanishes;
        Self { value, error, lost }.fitting(&[self, exponent], true)
    }

    fn of_function(name: &str, arguments: &[Self]) -> Self {
        let mut values: Vec<f64> = arguments.iter().map(|argument| argument.value).collect();
        let value = function(name, &values);
        let steps = if matches!(name, "factorial" | "binom") { 256.0 } else { 1.0 };
        let mut error = steps * ROUNDED * value.abs();
        if name == "abs" || steps > 1.0 && value <= EXACT && value.fract() == 0.0 {
            error = 0.0;
        }
        for (index, argument) in arguments.iter().enumerate() {
            for moved in [argument.value - argument.error, argument.value + argument.error] {
                values[index] = moved;
                // Outside the domain of the function this is NaN, which `max` ignores.
                error = error.max((function(name, &values) - value).abs());
            }
            values[index] = argument.value;
        }
        let lost = arguments.iter().any(|argument| argument.lost);
        Self { value, error, lost }.fitting(arguments, name == "exp" || name == "root")
    }
}

/// Whole numbers up to this one are exact in f64.
const EXACT: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;

fn function(name: &str, arguments: &[f64]) -> f64 {
    let at = |i: usize| arguments.get(i).copied().unwrap_or(f64::NAN);
    let factorial = |n: f64| match n.fract() == 0.0 && (0.0..=170.0).contains(&n) {
        true => (1..=n as u32).map(f64::from).product(),
        false => f64::NAN,
    };
    match name {
        "root" => at(0).powf(at(1).recip()),
        "log" => at(0).log(at(1)),
        "abs" => at(0).abs(),
        "factorial" => factorial(at(0)),
        "binom" => factorial(at(0)) / factorial(at(1)) / factorial(at(0) - at(1)),
        "ln" => at(0).ln(),
        "exp" => at(0).exp(),
        "sin" => at(0).sin(),
        "cos" => at(0).cos(),
        "tan" => at(0).tan(),
        "cot" => at(0).tan().recip(),
        "sec" => at(0).cos().recip(),
        "csc" => at(0).sin().recip(),
        "arcsin" => at(0).asin(),
        "arccos" => at(0).acos(),
        "arctan" => at(0).atan(),
        _ => f64::NAN,
    }
}

/// What is known about two formulas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Equality {
    /// They are the same formula, or numbers of the same value.
    Same,
    /// They have the same value wherever both were computed, but are written in other ways.
    Likely,
    Different,
    Unknown,
}

/// Values for variables, at which formulas are computed. They have no simple relation to each other.
const POINTS: [f64; 5] = [0.731_64, 1.318_73, 2.177_91, 0.297_13, 3.419_57];

/// Compares two formulas.
pub fn compare(a: &Expression, b: &Expression) -> Equality {
    if a.spelling() == b.spelling() {
        return Equality::Same;
    }
    if let (Some(a), Some(b)) = (a.exact(), b.exact()) {
        return if a == b { Equality::Same } else { Equality::Different };
    }
    match differs(|of| (a.value(of), b.value(of)), &a.names().union(&b.names()).cloned().collect()) {
        Some(true) => Equality::Different,
        Some(false) if a.names().is_empty() && b.names().is_empty() => Equality::Same,
        Some(false) => Equality::Likely,
        None => Equality::Unknown,
    }
}

/// Compares two equations, each of two sides. Equations with proportional differences of their sides have the same
/// solutions.
pub fn compare_equations(a: &[Expression; 2], b: &[Expression; 2]) -> Equality {
    let spellings = |e: &[Expression; 2]| BTreeSet::from([e[0].spelling(), e[1].spelling()]);
    if spellings(a) == spellings(b) {
        return Equality::Same;
    }
    let names = a.iter().chain(b).flat_map(Expression::names).collect();
    let difference = |e: &[Expression; 2]| Sum(vec![e[0].clone(), minus(e[1].clone())]);
    let quotient = over(difference(a), difference(b));
    let mut first = None;
    let differs = differs(
        |of| {
            let quotient = quotient.value(of);
            (*first.get_or_insert(quotient), quotient)
        },
        &names,
    );
    match differs {
        Some(true) => Equality::Different,
        Some(false) => Equality::Likely,
        None => Equality::Unknown,
    }
}

/// Whether two values differ at any of the points; `None` if they cannot be computed at two of them, or if they are
/// alike only because f64 has too few digits.
fn differs(
    mut values: impl FnMut(&dyn Fn(&str) -> f64) -> (Computed, Computed),
    names: &BTreeSet<String>,
) -> Option<bool> {
    let mut computed = 0;
    let mut certain = true;
    for shift in 0..POINTS.len() {
        let of = |name: &str| {
            let index = names.iter().position(|known| known == name).unwrap_or(0);
            // Variables beyond the number of points get shifted values.
            POINTS[(index + shift) % POINTS.len()] + (index / POINTS.len()) as f64 * 0.157
        };
        let (a, b) = values(&of);
        if a.value.is_nan() || b.value.is_nan() {
            continue;
        }
        computed += 1;
        // The difference of two infinities is no number.
        let error = 8.0 * (a.error + b.error);
        if a.value != b.value && (a.value - b.value).abs() > error {
            return Some(true);
        }
        let size = a.value.abs().max(b.value.abs());
        let exact = a.error == 0.0 && b.error == 0.0;
        certain &= !a.lost && !b.lost && (exact || size <= EXACT && error <= 1e-9 * size);
    }
    (computed >= 2 && certain).then_some(false)
}

struct ExpressionReader<'a> {
    rest: &'a str,
    depth: usize,
    /// Number of open bars of absolute values.
    bars: usize,
}

const FUNCTIONS: [&str; 12] =
    ["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "log", "exp"];

/// Words of plain text that stand for commands.
const PLAIN: [(&str, &str); 5] =
    [("sqrt", "\\sqrt"), ("pi", "\\pi"), ("infinity", "\\infty"), ("infty", "\\infty"), ("inf", "\\infty")];

impl<'a> ExpressionReader<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == '~');
    }

    fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest.chars().next()
    }

    fn take(&mut self, what: &str) -> bool {
        self.skip();
        let Some(rest) = self.rest.strip_prefix(what) else { return false };
        // A command ends where its letters end.
        if what.starts_with('\\') && what.len() > 2 && rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return false;
        }
        self.rest = rest;
        true
    }

    /// The next command without its backslash, which is not taken.
    fn command(&mut self) -> Option<&'a str> {
        self.skip();
        let name = self.rest.strip_prefix('\\')?;
        Some(&name[..name.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(name.len())])
    }

    /// The next run of letters, which is not taken.
    fn word(&mut self) -> &'a str {
        self.skip();
        &self.rest[..self.rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(self.rest.len())]
    }

    fn sum(&mut self) -> Option<Expression> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let mut terms = Vec::new();
        loop {
            let negative = match self.peek() {
                Some('-') => self.take("-"),
                Some('+') => !self.take("+"),
                // What follows the last term is not part of the sum.
                _ if !terms.is_empty() => break,
                _ => false,
            };
            let term = self.product()?;
            terms.push(if negative { minus(term) } else { term });
        }
        self.depth -= 1;
        if terms.len() == 1 { terms.pop() } else { Some(Sum(terms)) }
    }

    fn product(&mut self) -> Option<Expression> {
        let mut factors = vec![self.factor()?];
        loop {
            if ["*", "\\cdot", "\\times", "·", "×"].iter().any(|sign| self.take(sign)) {
                factors.push(self.signed_factor()?);
            } else if ["/", "\\div", "÷"].iter().any(|sign| self.take(sign)) {
                let bottom = self.signed_factor()?;
                factors = vec![over(Product(factors), bottom)];
            } else if self.begins_factor() {
                factors.push(self.factor()?);
            } else {
                break;
            }
        }
        if factors.len() == 1 { factors.pop() } else { Some(Product(factors)) }
    }

    fn signed_factor(&mut self) -> Option<Expression> {
        if self.take("-") { self.factor().map(minus) } else { self.factor() }
    }

    /// Whether a factor follows without a sign. A number does not: `2 3` is no product.
    fn begins_factor(&mut self) -> bool {
        const NO_FACTORS: [&str; 6] = ["cdot", "times", "div", "right", "end", "in"];
        match self.peek() {
            Some('(' | '{' | '√' | 'π' | '∞') => true,
            Some('|') => self.bars == 0,
            Some('\\') => self.command().is_some_and(|name| !name.is_empty() && !NO_FACTORS.contains(&name)),
            Some(c) => c.is_ascii_alphabetic(),
            None => false,
        }
    }

    fn factor(&mut self) -> Option<Expression> {
        let mut base = self.base()?;
        loop {
            if self.take("^") {
                let exponent = self.argument(true)?;
                base = Power(base.into(), exponent.into());
            } else if self.take("²") {
                base = Power(base.into(), whole(2).into());
            } else if self.take("³") {
                base = Power(base.into(), whole(3).into());
            } else if self.take("!") {
                base = Function("factorial".into(), vec![base]);
            } else {
                return Some(base);
            }
        }
    }

    fn base(&mut self) -> Option<Expression> {
        self.skip();
        let c = self.peek()?;
        match c {
            '0'..='9' | '.' => self.number(),
            '(' => self.bracketed("(", ")"),
            '[' => self.bracketed("[", "]"),
            '{' => self.bracketed("{", "}"),
            '|' => {
                self.bars += 1;
                let inside = self.bracketed("|", "|");
                self.bars -= 1;
                Some(Function("abs".into(), vec![inside?]))
            }
            'π' => self.take("π").then(|| Name("\\pi".into())),
            '∞' => self.take("∞").then_some(Infinity),
            '√' => {
                self.take("√");
                self.root(2)
            }
            '\\' => self.of_command(),
            _ if c.is_ascii_alphabetic() => {
                let word = self.word();
                if let Some((plain, command)) = PLAIN.iter().find(|(plain, _)| *plain == word) {
                    self.take(plain);
                    return match *command {
                        "\\sqrt" => self.root(2),
                        "\\pi" => Some(Name("\\pi".into())),
                        _ => Some(Infinity),
                    };
                }
                if FUNCTIONS.contains(&word) {
                    self.take(word);
                    return self.function(word);
                }
                self.rest = &self.rest[1..];
                self.indexed(c.to_string())
            }
            _ => None,
        }
    }

    fn bracketed(&mut self, open: &str, close: &str) -> Option<Expression> {
        self.take(open);
        let inside = self.sum()?;
        self.take(close).then_some(inside)
    }

    fn digits(&mut self) -> &'a str {
        let rest = self.rest;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        self.rest = &rest[end..];
        &rest[..end]
    }

    fn number(&mut self) -> Option<Expression> {
        let before = self.rest;
        self.digits();
        let is_whole = !self.rest.starts_with('.');
        if !is_whole {
            self.rest = &self.rest[1..];
            self.digits();
        }
        let text = &before[..before.len() - self.rest.len()];
        let ratio = Ratio::decimal(text)?;
        if !is_whole && self.take("\\overline") {
            return self.repeating(text, ratio);
        }
        if is_whole && let Some(part) = self.mixed() {
            return Some(Number(ratio.plus(part)?));
        }
        Some(Number(ratio))
    }

    /// The digits that repeat after a decimal: 0.1\overline{6} is 1/10 + 6/90.
    fn repeating(&mut self, text: &str, before: Ratio) -> Option<Expression> {
        let braced = self.take("{");
        let digits = self.digits();
        if digits.is_empty() || braced != self.take("}") {
            return None;
        }
        let decimals = u32::try_from(text.len() - text.find('.')? - 1).ok()?;
        let nines = 10i128.checked_pow(u32::try_from(digits.len()).ok()?)? - 1;
        let part = Ratio::new(digits.parse().ok()?, nines.checked_mul(10i128.checked_pow(decimals)?)?)?;
        Some(Number(before.plus(part)?))
    }

    /// The fraction of a mixed number, after its whole part: `\frac{1}{2}`, or ` 1/2`. The fraction is less than 1,
    /// and its parts are whole numbers.
    fn mixed(&mut self) -> Option<Ratio> {
        let before = self.rest;
        let blank = before.starts_with(char::is_whitespace);
        let mut read = || {
            let (top, bottom) = if self.take("\\frac") {
                (self.whole_argument()?, self.whole_argument()?)
            } else {
                let top = self.digits().parse().ok().filter(|_| blank)?;
                self.rest = self.rest.strip_prefix('/')?;
                (top, self.digits().parse().ok()?)
            };
            (top < bottom).then(|| Ratio::new(top, bottom)).flatten()
        };
        let part = read();
        if part.is_none() {
            self.rest = before;
        }
        part
    }

    fn whole_argument(&mut self) -> Option<i128> {
        let braced = self.take("{");
        self.skip();
        let digits = if braced { self.digits() } else { self.rest.get(..1)? };
        if !braced {
            self.rest = &self.rest[1..];
        } else if !self.take("}") {
            return None;
        }
        digits.parse().ok()
    }

    /// What a command is applied to: a group in braces, a digit, a letter, or another command. `^` also takes a sign.
    fn argument(&mut self, of_power: bool) -> Option<Expression> {
        match self.peek()? {
            '{' => self.bracketed("{", "}"),
            '(' if of_power => self.bracketed("(", ")"),
            '-' if of_power => {
                self.take("-");
                self.argument(true).map(minus)
            }
            digit @ '0'..='9' => {
                self.rest = &self.rest[1..];
                // All digits are taken for an exponent, as plain text means it: x^10 is not x^1 times 0.
                let mut text = digit.to_string();
                if of_power {
                    text += self.digits();
                }
                Ratio::decimal(&text).map(Number)
            }
            letter if letter.is_ascii_alphabetic() => {
                self.rest = &self.rest[1..];
                Some(Name(letter.into()))
            }
            '\\' => self.nested(Self::of_command),
            _ => None,
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Option<Expression>) -> Option<Expression> {
        self.depth += 1;
        let read = if self.depth > DEEPEST { None } else { read(self) };
        self.depth -= 1;
        read
    }

    fn root(&mut self, degree: i128) -> Option<Expression> {
        let inside = match self.peek()? {
            '(' => self.bracketed("(", ")"),
            '0'..='9' if !self.rest.starts_with('{') => {
                let text = self.digits();
                Ratio::decimal(text).map(Number)
            }
            _ => self.argument(false),
        };
        Some(Function("root".into(), vec![inside?, whole(degree)]))
    }

    fn of_command(&mut self) -> Option<Expression> {
        let name = self.command()?;
        if name.is_empty() {
            return None;
        }
        self.rest = &self.rest[1 + name.len()..];
        match name {
            "frac" => Some(over(self.argument(false)?, self.argument(false)?)),
            "binom" => Some(Function("binom".into(), vec![self.argument(false)?, self.argument(false)?])),
            "sqrt" if self.take("[") => {
                let degree = self.sum()?;
                let inside = if self.take("]") { self.argument(false)? } else { return None };
                Some(Function("root".into(), vec![inside, degree]))
            }
            // In LaTeX, \sqrt12 is √1 times 2.
            "sqrt" if self.peek()? != '(' => Some(Function("root".into(), vec![self.argument(false)?, whole(2)])),
            "sqrt" => self.root(2),
            "infty" => Some(Infinity),
            name if FUNCTIONS.contains(&name) => self.function(name),
            "lfloor" | "lceil" | "sum" | "int" | "prod" | "lim" | "overline" | "pm" | "mp" | "begin" | "text"
            | "mathrm" => None,
            // Greek letters, and other commands that are names.
            name => self.indexed(format!("\\{name}")),
        }
    }

    /// A letter with its index, if it has one.
    fn indexed(&mut self, name: String) -> Option<Expression> {
        if !self.rest.starts_with('_') {
            return Some(Name(name));
        }
        self.take("_");
        Some(Name(format!("{name}_{}", self.argument(false)?.spelling())))
    }

    fn function(&mut self, name: &str) -> Option<Expression> {
        let base = if name == "log" && self.take("_") { Some(self.argument(false)?) } else { None };
        let power = if self.take("^") { Some(self.argument(true)?) } else { None };
        let argument = match self.peek()? {
            '(' => self.bracketed("(", ")")?,
            _ => {
                let mut factors = vec![self.nested(Self::factor)?];
                while self.peek().is_some_and(|c| c.is_ascii_alphabetic()) && !FUNCTIONS.contains(&self.word()) {
                    factors.push(self.nested(Self::factor)?);
                }
                if factors.len() == 1 { factors.pop()? } else { Product(factors) }
            }
        };
        let mut arguments = vec![argument];
        if name == "log" {
            arguments.push(base.unwrap_or(whole(10)));
        }
        let applied = Function(name.into(), arguments);
        Some(match power {
            Some(power) => Power(applied.into(), power.into()),
            None => applied,
        })
    }
}
