//! Grading against the keys of real benchmarks and against real traces, all of them in `../shared/data`.
use serde_json::Value;

use crate::common::files::{real, report};
use secateur::eval::grade::{Verdict, grade, verdict};

fn lines(name: &str) -> Option<Vec<Value>> {
    let text = std::fs::read_to_string(real(name)?).expect("readable");
    Some(text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().expect(field)
}

#[track_caller]
fn is(expected: Verdict, found: Verdict, what: &str) {
    assert_eq!(found, expected, "{what}");
}

#[test]
fn the_keys_of_math_500_are_themselves_and_their_solutions_are_right() {
    let Some(lines) = lines("benchmarks/math500.jsonl") else { return };
    let keys: Vec<&str> = lines.iter().map(|line| text(line, "answer")).collect();
    let (mut told, mut others) = (0, 0);
    for (index, (line, key)) in lines.iter().zip(&keys).enumerate() {
        is(Verdict::Right, verdict(key, key), key);
        for spelling in [
            format!("${key}$"),
            format!("\\boxed{{{key}}}"),
            key.replace("\\frac", "\\dfrac"),
            key.replace("\\dfrac", "\\tfrac"),
            key.replace("\\left", "").replace("\\right", ""),
            key.replace("^\\circ", ""),
            key.replace(' ', ""),
            key.replace(',', ", "),
        ] {
            // Without its blanks, or with others, a separated number is a different number.
            let counts = key.contains("\\!") || key.bytes().filter(u8::is_ascii_digit).count() > 4;
            if !counts || !spelling.contains(", ") {
                is(Verdict::Right, verdict(&spelling, key), &format!("{spelling} for {key}"));
            }
        }
        is(Verdict::Right, grade(text(line, "solution"), key), text(line, "unique_id"));
        // The key of the previous problem is a wrong answer, unless it happens to be the same.
        let other = keys[(index + keys.len() - 1) % keys.len()];
        others += 1;
        told += usize::from(verdict(other, key) == Verdict::Wrong);
    }
    assert!(told * 100 >= others * 97, "{told} of {others} other keys are wrong");
    report!("real files: {} keys of MATH-500", keys.len());
}

#[test]
fn the_worked_answers_of_gsm8k_and_aime_are_right() {
    let Some(lines) = lines("benchmarks/gsm8k-test.jsonl") else { return };
    for line in &lines {
        let worked = text(line, "answer");
        let key = worked.rsplit("####").next().expect("a key").trim();
        is(Verdict::Right, grade(worked, key), worked);
        is(Verdict::Right, verdict(&format!("\\${}.00", key.replace(',', "")), key), key);
    }
    report!("real files: {} answers of GSM8K", lines.len());
    let Some(lines) = self::lines("benchmarks/aime24.jsonl") else { return };
    let wrong = lines
        .iter()
        .filter(|line| grade(text(line, "reference_solution"), text(line, "expected_answer")) == Verdict::Wrong);
    assert_eq!(wrong.count(), 0);
}

/// The traces' own grader compares strings. Judged by hand, it is wrong about three: two `\dfrac`, and `90` for
/// `90^\circ`.
#[test]
fn real_traces_are_graded_as_by_hand() {
    let Some(lines) = lines("traces-r1-math500/pilot_math500_qwen7b.jsonl") else { return };
    let verdicts: Vec<Verdict> = lines
        .iter()
        .map(|line| {
            // The opening tag is in the prompt, so a trace without the closing one is all thinking.
            let trace = text(line, "full_response");
            grade(&format!("<think>{trace}"), text(line, "ground_truth"))
        })
        .collect();
    let wrong: Vec<usize> = (0..verdicts.len()).filter(|i| verdicts[*i] == Verdict::Wrong).collect();
    assert_eq!((verdicts.len(), wrong), (20, vec![9, 11, 18]));
    assert!(!verdicts.contains(&Verdict::CannotTell));
    let own = lines.iter().map(|line| line["is_correct"].as_bool().expect("a flag"));
    let differ: Vec<usize> = own.enumerate().filter(|(i, own)| *own != verdicts[*i].is_right()).map(|d| d.0).collect();
    assert_eq!(differ, [0, 2, 7]);
    report!("real files: 20 traces of R1-Distill-Qwen-7B");
}
