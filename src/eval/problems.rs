//! Reads questions with answers, one JSON object per line.
use std::collections::HashMap;

use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its name in its file, or the number of its line.
    pub id: String,
    /// The text of the question.
    pub question: String,
    /// The right answer, as the file writes it.
    pub answer: String,
}

/// Reads lines such as `{"question": "What is 12 + 30?", "answer": "42"}`. The question may also be called `problem`
/// or `prompt`, and the answer `expected_answer`; the answer may be a number. Of a worked answer that ends in
/// `#### 42`, as in GSM8K, the part after the last `####` is the answer. A field `id` or `unique_id` names the
/// problem. Other fields and empty lines are ignored. `place` names the file in errors.
///
/// # Errors
/// [`ErrorKind::Input`] for a line of another form, for a question that occurs twice, and for a file without
/// questions.
pub fn read(text: &str, place: &str) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let mut asked: HashMap<String, usize> = HashMap::new();
    // Some editors begin a file with a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |found: String| {
            Error::new(ErrorKind::Input, "this line is not a question with an answer")
                .at(format!("{place}, line {}", index + 1))
                .expected("{\"question\": \"...\", \"answer\": \"...\"}")
                .found(found)
        };
        let value: Value = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
        let question = ["question", "problem", "prompt"].iter().find_map(|name| value[*name].as_str());
        let text = |field: &Value| match field {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let answer = ["answer", "expected_answer"].iter().find_map(|name| text(&value[*name]));
        let answer = answer.map(|answer| match answer.rsplit_once("####") {
            Some((_, last)) => last.trim().to_string(),
            None => answer,
        });
        let id = ["unique_id", "id"].iter().find_map(|name| text(&value[*name]));
        let blank = |text: &str| text.trim().is_empty();
        match (question, answer) {
            (Some(question), Some(answer)) if blank(question) || blank(&answer) => {
                return Err(wrong(format!("an empty {}", if blank(question) { "question" } else { "answer" })));
            }
            (Some(question), Some(answer)) => {
                if let Some(first) = asked.insert(question.trim().to_string(), index + 1) {
                    return Err(Error::new(ErrorKind::Input, "a question occurs twice and would count twice")
                        .at(format!("{place}, lines {first} and {}", index + 1))
                        .found(format!("{question:?}"))
                        .help("leave one of them out"));
                }
                let id = id.unwrap_or_else(|| (index + 1).to_string());
                problems.push(Problem { id, question: question.into(), answer });
            }
            _ => {
                let fields = |o: &serde_json::Map<String, Value>| o.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(wrong(
                    value.as_object().map_or(value.to_string(), |o| format!("the fields {}", fields(o))),
                ));
            }
        }
    }
    if problems.is_empty() {
        return Err(Error::new(ErrorKind::Input, "the file has no questions")
            .at(place)
            .expected("one JSON object per line"));
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_problems() {
        let text = "{\"problem\": \"1+1?\", \"answer\": 2}\n\n{\"question\": \"a\", \"answer\": \"b\", \"level\": 5}\n";
        let problems = read(text, "x").unwrap();
        assert_eq!(problems[0], Problem { id: "1".into(), question: "1+1?".into(), answer: "2".into() });
        assert_eq!((problems.len(), problems[1].answer.as_str(), problems[1].id.as_str()), (2, "b", "3"));
    }

    #[test]
    fn the_fields_of_known_benchmarks_are_read() {
        let of = |line: &str| {
            let problem = read(line, "x").unwrap().remove(0);
            (problem.id, problem.answer)
        };
        let pair = |id: &str, answer: &str| (id.to_string(), answer.to_string());
        assert_eq!(of(r##"{"question": "a", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}"##), pair("1", "7"));
        assert_eq!(of(r#"{"id": "aime24-0", "problem": "a", "expected_answer": "73"}"#), pair("aime24-0", "73"));
        assert_eq!(of(r#"{"id": 0, "problem": "a", "question": "a", "answer": 27.0}"#), pair("0", "27.0"));
        assert_eq!(of(r#"{"problem": "a", "answer": "5", "unique_id": "test/1.json"}"#), pair("test/1.json", "5"));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for bad in ["{", "[]", "{\"question\": \"a\"}", "{\"answer\": 1}", "{\"question\": 1, \"answer\": 1}"] {
            let text = format!("{{\"question\": \"a\", \"answer\": 1}}\n{bad}");
            assert!(read(&text, "dev.jsonl").unwrap_err().to_string().contains("dev.jsonl, line 2"), "{bad}");
        }
        assert!(read("\n \n", "dev.jsonl").unwrap_err().to_string().contains("no questions"));
        let twice = "{\"question\": \"a\", \"answer\": 1}\n\n{\"question\": \" a\", \"answer\": 2}";
        assert!(read(twice, "dev.jsonl").unwrap_err().to_string().contains("dev.jsonl, lines 1 and 3"));
        let empty = "{\"question\": \" \", \"answer\": 1}";
        assert!(read(empty, "dev.jsonl").unwrap_err().to_string().contains("an empty question"));
    }
}
