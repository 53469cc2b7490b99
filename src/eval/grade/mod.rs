//! Grades the answer of a model against a key, as a person would: `\dfrac{1}{2}`, `0.5` and `x = 1/2` are the same
//! answer, and so are `90` and `90^\circ`. Numbers are compared by their values, words and formulas by what they say;
//! sets and lists may have any order, tuples, intervals and matrices have one.
//!
//! There is no algebra system here. Formulas with variables that have the same values but are written in another way,
//! such as `(x+1)^2` and `x^2+2x+1`, are neither right nor wrong for this module: whether the form matters depends on
//! the question. The same holds for whatever cannot be read, and for rounded numbers. [`Verdict::CannotTell`] is
//! counted apart.
//!
//! No maintained Rust library does this. The rules follow what Hugging Face's Math-Verify and the graders of MATH
//! accept; the tests grade the keys of four benchmarks and 20 real traces.
mod expression;
mod form;
mod tex;

use serde::{Deserialize, Serialize};

use crate::text::ThinkTags;
use form::Form;

/// Answers with more bytes than this are only compared as text.
const LONGEST: usize = 2000;

/// How an answer compares with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is the same.
    Right,
    /// It is another answer, or none.
    Wrong,
    /// It may or may not be the same: an algebraic comparison or a person would be needed.
    CannotTell,
}

impl Verdict {
    /// Whether the answer is right beyond doubt.
    pub fn is_right(self) -> bool {
        self == Self::Right
    }

    /// The verdict where the form of the answer is not that of the key.
    fn at_most_likely(self) -> Self {
        if self == Self::Right { Self::CannotTell } else { self }
    }
}

/// Grades a whole text, in which the answer is found as in [`answer`].
///
/// ```
/// use secateur::eval::grade::{Verdict, grade};
/// let text = "12 + 30 is 42. Wait, 41?</think>It is $\\boxed{\\dfrac{1}{2}}$.";
/// assert_eq!(grade(text, "0.5"), Verdict::Right);
/// assert_eq!(grade("</think>So the sum is 3.", "4"), Verdict::Wrong);
/// assert_eq!(grade("</think>\\boxed{1+x^2+x}", "x(x+1)+1"), Verdict::CannotTell);
/// ```
pub fn grade(text: &str, key: &str) -> Verdict {
    match answer(text, key) {
        Some(found) => verdict(found, key),
        None => Verdict::Wrong,
    }
}

/// The answer in `text`, as it was written, after the last `</think>`: the inside of the last `\boxed{…}`; or else,
/// what follows the last "answer is" in its sentence, or its first number if the key is one; or else, if the key is a
/// number, the last number. Text whose thinking never closes has no answer.
pub fn answer<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let said = match ThinkTags::last_close(text) {
        Some(end) => &text[end..],
        None if ThinkTags::last_open(text).is_some() => return None,
        None => text,
    };
    let numeric = matches!(Form::read(&tex::clean(key)), Form::Value(_) | Form::Based(..));
    let number = |text: &'a str| if numeric { numbers(text).last() } else { None };
    boxed(said).or_else(|| announced(said, numeric)).or_else(|| number(said))
}

/// The inside of the last `\boxed{…}` whose braces close.
fn boxed(text: &str) -> Option<&str> {
    const BOXED: &str = "\\boxed{";
    text.match_indices(BOXED).filter_map(|(at, _)| tex::inside(&text[at + BOXED.len()..])).last()
}

/// What follows the last "answer is" or "answer:", up to the end of its sentence. Of a sentence with words, where a
/// number is asked for, its first number, unless another follows after "or".
fn announced(text: &str, numeric: bool) -> Option<&str> {
    let ends = ["nswer is", "nswer:", "nswer:**"].iter().filter_map(|phrase| Some(text.rfind(phrase)? + phrase.len()));
    let rest = text[ends.max()?..].trim_start_matches([':', '*', ' ', '\n']);
    let end = rest.find(". ").into_iter().chain(rest.find('\n')).min().unwrap_or(rest.len());
    let rest = rest[..end].trim().trim_end_matches(['.', '*']);
    if !numeric || Form::read(&tex::clean(rest)).is_readable() {
        return Some(rest).filter(|rest| !rest.is_empty());
    }
    let mut found = numbers(rest);
    let first = found.next()?;
    let between = |second: &str| &rest[offset(rest, first) + first.len()..offset(rest, second)];
    let hedged = found.any(|second| between(second).split_whitespace().any(|word| word == "or"));
    Some(if hedged { rest } else { first })
}

/// The byte offset of `part` in `text`.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

/// The numbers of a text, except those that it says not to be.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let part = |c: char| c.is_ascii_digit() || matches!(c, '.' | ',' | '/' | '-');
    let runs = text.split(move |c| !part(c)).map(|run| run.trim_matches([',', '.', '/']).trim_end_matches('-'));
    let denied = |run: &&str| {
        let before = text[..offset(text, run)].rsplit([',', '.', ';', '\n']).next().unwrap_or_default();
        let mut words = before.split_whitespace().rev().take(3).take_while(|word| !word.contains(char::is_numeric));
        words.any(|word| matches!(word, "not" | "cannot" | "never") || word.ends_with("n't") || word.ends_with("n’t"))
    };
    runs.filter(|run| run.contains(|c: char| c.is_ascii_digit())).filter(move |run| !denied(run))
}

/// Compares an answer with the key.
///
/// ```
/// use secateur::eval::grade::{Verdict, verdict};
/// assert_eq!(verdict("(3, \\dfrac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)"), Verdict::Right);
/// assert_eq!(verdict("(\\dfrac{\\pi}{2}, 3)", "\\left( 3, \\frac{\\pi}{2} \\right)"), Verdict::Wrong);
/// ```
pub fn verdict(found: &str, key: &str) -> Verdict {
    if found.trim().is_empty() {
        return Verdict::Wrong;
    }
    if found.len().max(key.len()) > LONGEST {
        return if found.trim() == key.trim() { Verdict::Right } else { Verdict::CannotTell };
    }
    let signs = (tex::sign_of_unit(found), tex::sign_of_unit(key));
    let (found, key) = (tex::clean(found), tex::clean(key));
    if matches!(signs, (Some(a), Some(b)) if a != b) {
        return form::verdict(&Form::read(&found), &Form::read(&key)).at_most_likely();
    }
    if without_blanks(&found) == without_blanks(&key) {
        return Verdict::Right;
    }
    if let Some(letter) = tex::choice(&key, false) {
        return match tex::choice(&found, true) {
            Some(chosen) if chosen == letter => Verdict::Right,
            Some(_) => Verdict::Wrong,
            // The answer may be the text beside this letter in the question.
            None => Verdict::CannotTell,
        };
    }
    form::verdict(&Form::read(&found).with_unit(signs.0), &Form::read(&key).with_unit(signs.1))
}

/// A text without its blanks, except those between two numbers: `2 1/2` is not `21/2`.
fn without_blanks(text: &str) -> String {
    let of_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut out = String::new();
    for word in text.split_whitespace() {
        if out.ends_with(of_number) && word.starts_with(of_number) {
            out.push(' ');
        }
        out += word;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Verdict::{CannotTell, Right, Wrong};

    #[test]
    fn the_last_box_after_the_thinking_counts() {
        for (text, found) in [
            ("[THINK]\\boxed{1}[/THINK]so \\boxed{2}", Some("2")),
            ("[THINK]\\boxed{1}", None),
            ("<think>\\boxed{1}</think>so \\boxed{2}, no: \\boxed{\\frac{3}{4}}", Some("\\frac{3}{4}")),
            ("\\boxed{5", Some("5")),
            ("<think>it is 7, surely", None),
            ("</think>The answers are 3 and 1,024.", Some("1,024")),
            ("</think>Between 2-3, so -3.", Some("-3")),
            ("</think>none", None),
            ("12", Some("12")),
            ("</think>**Answer:** 7 apples in 2 boxes", Some("7")),
            ("</think>The answer is 5, because 2+3 is.", Some("5")),
            ("</think>The answer is $\\frac{1}{2}$. It took 3 steps.", Some("$\\frac{1}{2}$")),
            ("</think>\\boxed{\\{1, 2\\}}", Some("\\{1, 2\\}")),
        ] {
            assert_eq!(answer(text, "7"), found, "{text}");
        }
        assert_eq!(answer("</think>It is Evelyn, who ran 3 miles.", "\\text{Evelyn}"), None);
        assert_eq!(answer("</think>So the answer is Evelyn.", "\\text{Evelyn}"), Some("Evelyn"));
    }

    #[test]
    fn hedged_answers_are_not_right() {
        let cases = [
            ("The answer is 5 or 6.", Wrong),
            ("The answer is 5, 6 or 7.", Wrong),
            ("The answer is either 5 or 6.", Wrong),
            ("The answer is maybe 5 (but 6 or 7 fit).", CannotTell),
            ("The answer is 5x.", CannotTell),
            ("The answer is 6 apples or 5 pears.", Wrong),
            ("The answer is not 5 but 7.", Wrong),
            ("The answer is not equal to 5.", Wrong),
            ("It isn't 5.", Wrong),
            ("The answer is not 7 but 5.", Right),
            ("The answer is 5, not 7.", Right),
            ("The answer is not hard to find: 5 of 7.", Right),
            ("It is 5, not 7.", Right),
        ];
        for (text, expected) in cases {
            assert_eq!(grade(text, "5"), expected, "{text}");
        }
        assert_eq!(grade("The answer is 6 or 5.", "5, 6"), Right);
        all_are(CannotTell, &[("(C) or (D)", "\\text{(C)}"), ("(C), D", "\\text{(C)}"), ("\\text{(C) and (D)}", "C")]);
        all_are(Right, &[("(C) A triangle", "\\text{(C)}"), ("(C) f(A)", "C"), ("C: 5 or 6", "C")]);
    }

    #[track_caller]
    fn all_are(expected: Verdict, cases: &[(&str, &str)]) {
        let others: Vec<_> = cases
            .iter()
            .map(|(found, key)| (verdict(found, key), found, key))
            .filter(|(verdict, ..)| *verdict != expected)
            .collect();
        assert!(others.is_empty(), "not {expected:?}: {others:?}");
    }

    #[test]
    fn spellings_of_one_answer_are_the_same() {
        let cases = [
            ("42", " $42$. "),
            (".50", "0.5"),
            ("\\dfrac{1}{2}", "1/2"),
            ("-0.5", "\\frac{-1}{2}"),
            ("-\\frac12", "\\frac{-1}{2}"),
            ("\\frac{1}{-2}", "-\\frac{1}{2}"),
            ("1,024", "1024"),
            ("1{,}024", "1024"),
            ("1\\,024", "1024"),
            ("11111111100", "11,\\! 111,\\! 111,\\! 100"),
            ("\\$32{,}348", "\\$32,\\!348"),
            ("(1,2)", "\\left( 1, 2 \\right)"),
            ("90", "90^\\circ"),
            ("90\\text{ degrees}", "90^{\\circ}"),
            ("90 degrees", "90^\\circ"),
            ("5\\text{ cm}", "5"),
            ("5 cm", "5\\text{ cm}"),
            ("12 apples", "12"),
            ("864", "864 \\mbox{ inches}^2"),
            ("864\\text{ inches}^{2}", "864 \\mbox{ inches}^2"),
            ("\\frac{270}{7}", "\\frac{270}7\\text{ degrees}"),
            ("blue", "\\text{blue}"),
            ("\\textbf{Blue}", "\\text{blue}"),
            ("+7", "7"),
            ("50", "50\\%"),
            ("50\\%", "0.5"),
            ("x = 5", "5"),
            ("5", "x=5"),
            ("f(-2) = 14/3", "\\frac{14}{3}"),
            ("2 \\cdot 3 = 6", "6"),
            ("27.0", "27"),
            ("073", "73"),
            ("1 \\frac{4}{5}", "1\\frac{4}{5}"),
            ("9/5", "1\\frac{4}{5}"),
            ("137.5", "137 \\frac{1}{2}"),
            ("137 1/2", "137 \\frac{1}{2}"),
            ("0.\\overline{3}", "1/3"),
            ("0.1\\overline{6}", "\\frac16"),
            ("11\\sqrt{2}", "11\\sqrt2"),
            ("\\sqrt{242}", "11\\sqrt2"),
            ("\\frac{1}{\\sqrt{3}}", "\\frac{\\sqrt{3}}{3}"),
            ("3sqrt(13)", "3\\sqrt{13}"),
            ("3√13", "3\\sqrt{13}"),
            ("2\\pi + 18", "18+2\\pi"),
            ("18 + 2π", "18+2\\pi"),
            ("-5i + 6", "6 - 5i"),
            ("1 - \\sqrt{19}, 1 + \\sqrt{19}", "1 \\pm \\sqrt{19}"),
            ("1 ± \\sqrt{19}", "1 \\pm \\sqrt{19}"),
            ("x = -2 \\text{ or } x = 1", "1,-2"),
            ("-2 and 1", "1,-2"),
            ("\\{-2, 1\\}", "1,-2"),
            ("\\{-2, 1+\\sqrt{5}, 1-\\sqrt{5}\\}", "\\{1\\pm\\sqrt{5},-2\\}"),
            ("3,5,7", "3, 5, 7"),
            ("(3, 4]", "\\left(3,4\\right]"),
            ("(-\\infty, 0]", "(-\\infty,0]"),
            ("(3,\\infty) \\cup (-\\infty,2)", "(-\\infty, 2) \\cup (3, \\infty)"),
            ("[-2,7]", "x \\in [-2,7]"),
            ("x \\in [-2, 7]", "[-2,7]"),
            ("(0,9)∪(9,36)", "(0,9) \\cup (9,36)"),
            (
                "\\begin{pmatrix} -\\frac{1}{3} \\\\ \\frac23 \\\\ 5/3 \\end{pmatrix}",
                "\\begin{pmatrix} -1/3 \\\\ 2/3 \\\\ 5/3 \\end{pmatrix}",
            ),
            ("\\begin{bmatrix} 1 & 0 \\\\ 0 & 1 \\end{bmatrix}", "\\begin{pmatrix} 1 & 0 \\\\ 0 & 1 \\end{pmatrix}"),
            ("2516", "2516_8"),
            ("4210_5", "4210_{5}"),
            ("(C)", "\\text{(C)}"),
            ("C", "\\text{(C)}"),
            ("\\text{C}", "\\text{(C)}"),
            ("(C) 12", "\\text{(C)}"),
            ("3x + x^3 - 6", "x^3+3x-6"),
            ("x^{3}+3\\cdot x-6", "x^3+3x-6"),
            ("(b+2)(a+5)", "(a+5)(b+2)"),
            ("\\frac{9a+11}{20}", "\\frac{11+9a}{20}"),
            ("y=3+2x", "y = 2x + 3"),
            ("2x+3", "y = 2x + 3"),
            ("0 = 4 + 5x - 7y + 11z", "5x - 7y + 11z + 4 = 0"),
            ("\\cot(x)", "\\cot x"),
            ("\\boxed{5}", "5"),
            ("\\(5\\)", "5"),
            ("**5**", "5"),
            ("five", "5"),
            ("5!", "120"),
            ("6.72 \\times 10^{-5}", ".0000672"),
            ("1,000,000", "10^6"),
        ];
        all_are(Right, &cases);
    }

    #[test]
    fn other_answers_are_wrong() {
        let cases = [
            ("42", "43"),
            ("1,2", "12"),
            ("12", "1,2"),
            ("(1,2)", "(2,1)"),
            ("(3,4)", "(3,4]"),
            ("x", "y"),
            ("", "0"),
            ("50", "0.5"),
            ("east", "\\text{west}"),
            ("D", "\\text{(C)}"),
            ("(D) 12", "\\text{(C)}"),
            ("0.34", "1/3"),
            ("0.153", "0.15"),
            ("\\frac{721}{9}", "\\frac{3}{56}"),
            ("\\{1,2\\}", "\\{1,3\\}"),
            ("\\{1,2,3\\}", "\\{1,2\\}"),
            ("2\\sqrt{3}", "3\\sqrt{2}"),
            ("x^3+3x+6", "x^3+3x-6"),
            ("y = 2x - 3", "y = 2x + 3"),
            ("x+y=1", "x+y=2"),
            ("2517_8", "2516_8"),
            ("2\\pi", "\\pi"),
            ("6+5i", "6 - 5i"),
            ("12345678901234567890", "12345678901234567891"),
            ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 3 \\end{pmatrix}"),
            ("\\text{No solution}", "5"),
        ];
        all_are(Wrong, &cases);
    }

    #[test]
    fn where_a_person_is_needed_it_says_so() {
        let cases = [
            ("x^2+2x+1", "(x+1)^2"),
            ("\\frac{9a}{20}+\\frac{11}{20}", "\\frac{11+9a}{20}"),
            ("0.333", "\\frac{1}{3}"),
            ("62.83", "20\\pi"),
            ("5 km", "5\\text{ m}"),
            ("5000 m\\text{ long}", "5\\text{ km}"),
            ("r=5", "x=5"),
            ("1,2", "(1,2)"),
            ("(1,2)", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
            ("x > 3", "(3,\\infty)"),
            ("3:4", "\\frac{3}{4}"),
            ("12", "\\text{(C)}"),
            ("due east", "\\text{east}"),
            ("10x - 14y + 22z + 8 = 0", "5x - 7y + 11z + 4 = 0"),
            ("\\sum_{k=1}^n k", "\\frac{n(n+1)}{2}"),
        ];
        all_are(CannotTell, &cases);
    }

    #[test]
    fn numbers_beyond_f64_are_not_taken_for_others() {
        let unsure = [
            ("3^{2010}", "2^{2010}"),
            ("2^{1004}-1", "2^{1004}"),
            ("2^{1004}", "2^{1004}-1"),
            ("100!+1", "100!"),
            ("1-\\frac{1}{3^{100}}", "1"),
            ("(1/3)^{2010}", "(1/2)^{2010}"),
            ("e^{-1000}", "0"),
            ("e^{10^{-20}}", "1"),
            ("\\infty", "10^{400}"),
            ("\\frac{10^{310}}{3^{900}}", "7"),
            ("\\sqrt{2}+10^{-30}", "\\sqrt{2}"),
            ("\\sqrt{10^{18}+1}-10^9", "0"),
            ("3.1415926536", "\\pi"),
            ("\\pi", "3.14159265358979323846"),
            ("1.4142135623730951", "\\sqrt{2}"),
            ("0.3333333333333333", "\\frac13"),
        ];
        all_are(CannotTell, &unsure);
        all_are(
            Right,
            &[("3^{2010}", "3^{2010}"), ("100!", "100!"), ("\\sqrt{1.44}", "1.2"), ("20!", "2432902008176640000")],
        );
        all_are(Wrong, &[("\\infty", "-\\infty"), ("\\infty", "5"), ("100!", "5"), ("\\pi+10^{-12}", "\\pi")]);
    }

    #[test]
    fn numbers_in_other_bases_have_other_values() {
        all_are(Right, &[("2516_8", "2516_8"), ("02516_{8}", "2516_8"), ("2516", "2516_8"), ("12_{10}", "12")]);
        all_are(Wrong, &[("2516_9", "2516_8"), ("10_2", "11"), ("2517", "2516_8"), ("1AF_{16}", "1AE_{16}")]);
        all_are(CannotTell, &[("10_2", "10"), ("1010_2", "10"), ("12_8", "1010_2"), ("19_8", "17_8")]);
    }

    #[test]
    fn blanks_and_stars_between_numbers_count() {
        let right =
            [("**5**.", "5"), ("** 1/2 **", "0.5"), ("1 234", "1234"), ("\\frac 1 2", "\\frac12"), ("2  1/2", "2 1/2")];
        all_are(Right, &right);
        all_are(Wrong, &[("2 1/2", "21/2"), ("21/2", "2 1/2")]);
        all_are(CannotTell, &[("1 2 3", "123"), ("2**3", "23"), ("**2**3", "23"), ("3. 5", "3.5")]);
    }

    #[test]
    fn a_minus_is_no_hyphen() {
        all_are(Right, &[("-abc", "-abc"), ("Two-digit", "\\text{two-digit}"), ("\\text{x-axis}", "x-axis")]);
        all_are(Wrong, &[("-abc", "abc"), ("abc", "-abc"), ("east", "\\text{north-west}")]);
        all_are(CannotTell, &[("a-bcd", "a(bcd)"), ("a-bcd", "-bcd+a"), ("north west", "\\text{north-west}")]);
    }

    #[test]
    fn other_units_are_not_taken_for_the_same() {
        let right = [
            ("5 dollars", "\\$5"),
            ("€5", "5"),
            ("\\$5.00", "5\\text{ dollars}"),
            ("$5$", "5 cents"),
            ("50", "50\\%"),
            ("0.5\\%", "0.005"),
            ("0.5\\%", "0.5\\%"),
            ("0", "0\\%"),
            ("20^\\circ", "20\\text{ degrees Celsius}"),
        ];
        all_are(Right, &right);
        let unsure = [
            ("0.5%", "0.5"),
            ("1", "1\\%"),
            ("5 cents", "\\$5"),
            ("500 cents", "\\$5"),
            ("€5", "\\$5"),
            ("90\\text{ radians}", "90^\\circ"),
            ("90^\\circ", "90\\text{ radians}"),
            ("90 degrees", "90 radians"),
        ];
        all_are(CannotTell, &unsure);
    }

    #[test]
    fn what_is_too_deep_or_too_long_is_left_alone() {
        for deep in ["(".repeat(900), "\\frac".repeat(300), "\\sqrt{".repeat(250), "^-".repeat(900), "|".repeat(900)] {
            assert_eq!(verdict(&format!("1{deep}"), "5"), CannotTell, "{deep}");
        }
        let nines = "9".repeat(1500);
        assert_eq!(verdict(&nines, "5"), CannotTell);
        assert_eq!(verdict(&nines, &nines), Right);
        assert_eq!(verdict(&"x ".repeat(5000), "5"), CannotTell);
    }

    proptest! {
        #[test]
        fn nothing_panics(found in "\\PC{0,60}", key in "[-0-9a-z(){}\\\\^_/,.= ]{1,30}") {
            let _ = (verdict(&found, &key), verdict(&key, &found), grade(&found, &key));
        }

        #[test]
        fn what_looks_like_latex_does_not_panic(
            parts in prop::collection::vec(prop::sample::select(vec![
                "\\frac", "{", "}", "1", "23", "x", "\\sqrt", "[", "]", "(", ")", ",", "\\text{", "=", "-", "\\pm",
                "^", "_", " ", "\\cup", "\\{", "\\}", ".", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "%", "é",
                "\\in", "|", "!", "\\!", "\\left", "and", " and ", "/", "²", "\\overline", "\\boxed{", "\\,",
            ]), 0..25)
        ) {
            let text = parts.concat();
            let expected = if text.trim().is_empty() { Wrong } else { Right };
            prop_assert_eq!(verdict(&text, &text), expected, "{}", text);
        }
    }
}
