//! `secateur eval` on the built-in model and the CPU: uninterrupted, killed, continued, in shards, merged and
//! compared, and its refusals of bad input. No test depends on the accuracy of a policy; one depends on that of the
//! full cache.
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::command::{Ran, fails, run, secateur};

/// Short thoughts, which are pruned once or twice.
const SHORT: [&str; 8] = ["--device", "cpu", "--max-new-tokens", "60", "--probe-every", "20", "--window", "8"];
const BUDGETS: &str = "tokens:16,share:0.5";

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let what = ["eval", "--data", "builtin", "--limit", "3", "--budgets", BUDGETS, "--seeds", "0,1", "--out", out];
    [&what[..], &SHORT, more].concat()
}

/// The trials of a folder by arm, question and seed, without what depends on their neighbours: the time they took,
/// and the bytes of buffers that grow together.
fn trials(folder: &Path) -> BTreeMap<String, Value> {
    let lines = std::fs::read_to_string(folder.join("trials.jsonl")).expect("trials");
    assert!(lines.ends_with('\n'), "whole lines");
    let mut trials = BTreeMap::new();
    for line in lines.lines() {
        let mut trial: Value = serde_json::from_str(line).expect("JSON");
        let key = format!("{} {} {} {}", trial["policy"], trial["budget"], trial["problem"], trial["seed"]);
        (trial["us"], trial["peak_kv_bytes"]) = (Value::Null, Value::Null);
        assert!(trials.insert(key, trial).is_none(), "nothing is answered twice: {lines}");
    }
    trials
}

/// Asserts that two evaluations have the same answers.
#[track_caller]
fn same(a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (key, trial) in a {
        assert_eq!(trial, &b[key], "{key}");
    }
}

struct Evaluated {
    dir: tempfile::TempDir,
    ran: Ran,
}

/// An evaluation without interruption.
fn evaluated() -> &'static Evaluated {
    static ONCE: OnceLock<Evaluated> = OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let ran = run(&args(text(&dir.path().join("whole")), &[]));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        Evaluated { dir, ran }
    })
}

impl Evaluated {
    fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join("whole")
    }
}

fn of<'a>(trials: &'a BTreeMap<String, Value>, policy: &str, budget: &str) -> Vec<&'a Value> {
    let fits = |trial: &&Value| trial["policy"] == policy && trial["budget"].as_str().unwrap_or_default() == budget;
    trials.values().filter(fits).collect()
}

#[test]
fn every_arm_answers_every_question_and_controls_keep_as_many_tokens() {
    let made = evaluated();
    let trials = trials(&made.folder());
    // Decoding is greedy, so only the control is answered with both seeds.
    assert_eq!(trials.len(), 3 * (1 + 2 * (1 + 2)));
    for budget in BUDGETS.split(',') {
        let measured = of(&trials, "think-clearly", budget);
        let controls = of(&trials, "random", budget);
        assert_eq!((measured.len(), controls.len()), (3, 6));
        assert!(measured.iter().any(|trial| trial["evicted_tokens"].as_u64() > Some(0)), "the budget evicts");
        for control in controls {
            assert_eq!(control["replays"], "think-clearly");
            let repeated = measured.iter().find(|trial| trial["problem"] == control["problem"]).unwrap();
            let kept = |trial: &Value| serde_json::from_value::<Vec<usize>>(trial["kept"].clone()).unwrap();
            let (control, repeated) = (kept(control), kept(repeated));
            assert!(!repeated.is_empty());
            // A control keeps more only where more is protected: the step that is being written, of at most 20 tokens
            // here.
            for (here, there) in control.iter().zip(&repeated) {
                assert!(here >= there && *here <= there + 40, "{control:?} {repeated:?}");
            }
        }
    }
    for trial in trials.values() {
        let n = |field: &str| trial[field].as_u64().unwrap_or_else(|| panic!("{field}: {trial}"));
        assert_eq!(n("generated_tokens") as usize, trial["ids"].as_array().unwrap().len());
        assert!(n("generated_tokens") <= 60 && trial["text"].as_str().unwrap().starts_with("Okay"));
        assert_eq!(trial["truncated"], n("generated_tokens") == 60);
        assert!(["right", "wrong", "cannot_tell"].contains(&trial["verdict"].as_str().unwrap()));
        let mean = trial["mean_cached"].as_f64().unwrap();
        assert!(mean > n("prompt_tokens") as f64 && mean <= n("peak_cached") as f64, "{trial}");
        assert!(trial["id"].as_str().unwrap().starts_with("normal-"));
    }
    // The table, the CSV and the page have the same numbers.
    let out = &made.ran.out;
    assert_eq!(out.lines().count(), 1 + 5, "{out}");
    for part in ["against full [95 %]", "full ", "think-clearly ", "random (as think-clearly)", " of 3 ", " of 6 "] {
        assert!(out.contains(part), "{part:?} is missing from:\n{out}");
    }
    let csv = std::fs::read_to_string(made.folder().join("table.csv")).unwrap();
    assert!(csv.lines().count() == 6 && csv.contains("random,share:0.5,think-clearly,3,6,"), "{csv}");
    let page = std::fs::read_to_string(made.folder().join("eval.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("built-in on builtin") && !page.contains("<script"));
    assert!(made.ran.err.contains("3 questions: full, think-clearly at tokens:16, random at tokens:16"));
}

/// The built-in problems, all at once, through the template, the tokenizer, the batch and the grader: the ids are those
/// that transformers gives.
#[test]
fn full_answers_are_those_of_transformers_and_mostly_right() {
    let golden: Value = serde_json::from_str(include_str!("../../../models/tiny-reasoner/golden.json")).expect("JSON");
    let golden = golden["problems"].as_array().expect("problems");
    let dir = tempfile::tempdir().expect("a folder");
    let count = golden.len().to_string();
    let asked = ["eval", "--device", "cpu", "--data", "builtin", "--limit", &count, "--policies", "full"];
    let ran = run(&[&asked[..], &["--kv", "f32", "--batch", "20", "--out", text(dir.path())]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let trials = trials(dir.path());
    let full = of(&trials, "full", "");
    assert_eq!((full.len(), golden.len()), (20, 20));
    for trial in &full {
        let problem = &golden[trial["problem"].as_u64().expect("a number") as usize];
        assert_eq!(trial["ids"], problem["greedy_ids"], "{}", trial["id"]);
        assert_eq!(trial["key"], problem["answer"].to_string(), "{}", trial["id"]);
    }
    // 95.2 % of 83 problems were right.
    let right = full.iter().filter(|trial| trial["verdict"] == "right").count();
    assert!(right >= 18, "{right} of 20 answers are right");
}

#[test]
fn it_goes_on_after_it_was_killed() {
    let made = evaluated();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("killed");
    let file = out.join("trials.jsonl");
    let mut child = secateur(&args(text(&out), &[])).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let lines = || std::fs::read_to_string(&file).map_or(0, |text| text.matches('\n').count());
    while lines() < 4 {
        assert!(child.try_wait().unwrap().is_none(), "it ends before it is killed");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = std::fs::read_to_string(&file).unwrap();
    let there = before.matches('\n').count();
    let whole = &before[..before.rfind('\n').unwrap() + 1];
    // A process that is killed in the middle of a line leaves such a file.
    std::fs::write(&file, format!("{whole}{{\"problem\":2,\"id\":\"nor")).unwrap();

    let other = run(&args(text(&out), &["--batch", "4"]));
    fails(&other, 2, &["an evaluation with other settings", "expected: --batch 4", "found: --batch 8"]);
    let ran = run(&args(text(&out), &[]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains(&format!("{there} of 21 answers are there")), "{}", ran.err);
    assert!(std::fs::read_to_string(&file).unwrap().starts_with(whole), "what was there stays");
    same(&trials(&out), &trials(&made.folder()));
    // Another run has nothing left to do.
    let again = run(&args(text(&out), &["--quiet"]));
    assert_eq!((again.code, again.err.as_str()), (Some(0), ""));
    assert_eq!(again.out, ran.out);
    std::fs::write(&file, format!("{whole}a diary\n")).unwrap();
    fails(&run(&args(text(&out), &[])), 2, &["not an answer of this evaluation", "trials.jsonl, line"]);
    std::fs::remove_file(out.join("settings.json")).unwrap();
    fails(&run(&args(text(&out), &[])), 2, &["answers but no settings.json", "killed"]);
}

#[test]
fn shards_are_the_whole_and_evaluations_are_compared() {
    let made = evaluated();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let parts = ["1/2", "2/2"].map(|shard| {
        let out = at(&shard.replace('/', "-"));
        let ran = run(&args(text(&out), &["--shard", shard]));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(ran.err.contains(&format!("part {shard}")), "{}", ran.err);
        out
    });
    let (whole, [first, second]) = (at("merged"), parts);
    let merged = run(&["eval", "merge", text(&whole), text(&first), text(&second)]);
    assert_eq!(merged.code, Some(0), "{}", merged.err);
    same(&trials(&whole), &trials(&made.folder()));
    // All columns but the speed and the bytes of the cache, which depend on the neighbours: buffers grow together.
    let table = |text: &str| -> Vec<Vec<String>> {
        let cells = |line: &str| -> Vec<String> {
            let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
            cells.map(String::from).collect()
        };
        text.lines().map(cells).map(|cells| cells[..cells.len().saturating_sub(2)].to_vec()).collect()
    };
    assert_eq!(table(&merged.out), table(&made.ran.out));
    // The merged evaluation can be continued, and has nothing left to do.
    let again = run(&args(text(&whole), &["--quiet"]));
    assert_eq!((again.code, again.out.as_str()), (Some(0), merged.out.as_str()), "{}", again.err);

    let same = run(&["eval", "compare", text(&whole), text(&made.folder())]);
    assert_eq!(same.code, Some(0), "{}", same.err);
    assert!(same.out.contains("the settings are the same") && same.out.contains("+0.0 ["), "{}", same.out);
    // One question of the first part is in both, and one arm.
    let other = at("other");
    let what = ["eval", "--data", "builtin", "--limit", "2", "--policies", "streaming-llm", "--batch", "2", "--out"];
    let ran = run(&[&what[..], &[text(&other)], &SHORT, &["--budgets", "tokens:16"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let compared = run(&["eval", "compare", text(&first), text(&other)]);
    assert_eq!(compared.code, Some(0), "{}", compared.err);
    // The controls repeat different policies.
    let only = "only in B: random (as streaming-llm) at tokens:16, streaming-llm at tokens:16";
    for part in ["--batch", "--policies", "full", "only in A: random (as think-clearly) at ", only] {
        assert!(compared.out.contains(part), "{part:?} is missing from:\n{}", compared.out);
    }
    let row = compared.out.lines().find(|line| line.starts_with("full ")).expect("a row");
    assert_eq!(row.split_whitespace().nth(2), Some("1"), "one question: {row}");
    assert!(!compared.out.lines().any(|line| line.starts_with("random")), "{}", compared.out);

    let missing = run(&["eval", "merge", text(&at("half")), text(&first)]);
    assert!(missing.code == Some(0) && missing.err.contains("7 of 21 answers are missing"), "{}", missing.err);
    let merge = |out: &str, parts: &[&Path]| {
        run(&[&["eval", "merge", text(&at(out))][..], &parts.iter().map(|part| text(part)).collect::<Vec<_>>()]
            .concat())
    };
    fails(&merge("twice", &[&first, &first]), 2, &["two parts have answers to the same question"]);
    fails(&merge("mixed", &[&first, &other]), 2, &["parts of different evaluations", "--batch 8", "--batch 2"]);
    fails(&merge("merged", &[&first]), 2, &["an evaluation already", "merged"]);
    fails(&merge("none", &[dir.path()]), 2, &["not the folder of an evaluation"]);
    assert!(!at("twice").exists() && !at("mixed").exists() && !at("none").exists());
    fails(&run(&["eval", "compare", text(&first), "/no/such/folder"]), 2, &["not the folder", "/no/such/folder"]);
    let hard = at("hard");
    let what = ["eval", "--data", "builtin-hard", "--limit", "1", "--policies", "full", "--out", text(&hard)];
    assert_eq!(run(&[&what[..], &SHORT].concat()).code, Some(0));
    fails(&run(&["eval", "compare", text(&first), text(&hard)]), 2, &["no question in common", "builtin-hard"]);
}

#[test]
fn what_cannot_be_evaluated_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_string()
    };
    let out = dir.path().join("out");
    let with = |data: &str, more: &[&str]| {
        run(&[&["eval", "--device", "cpu", "--data", data, "--out", text(&out)][..], more].concat())
    };
    for (data, code, parts) in [
        ("/no/such/file.jsonl".to_string(), 1, &["the questions cannot be read", "builtin-hard"][..]),
        (write("empty", " \n\n"), 2, &["no questions", "empty"]),
        (write("none", "{\"question\": \"a\"}"), 2, &["not a question with an answer", "none, line 1", "question"]),
        (write("diary", "What is 1 + 1?"), 2, &["not a question with an answer", "diary, line 1"]),
    ] {
        fails(&with(&data, &[]), code, parts);
    }
    let one = write("one", "{\"question\": \"We count modulo 10. #1 a is 1. What is a?\", \"answer\": 1}\n");
    for (more, parts) in [
        (&["--policies", "think-cleary"][..], &["unknown policy", "--policies", "think-clearly"][..]),
        (&["--policies", "h2o,h2o"], &["given twice", "--policies", "h2o"]),
        (&["--budgets", "ratio:2"], &["--budgets", "out of range"]),
        (&["--budgets", "512"], &["--budgets", "tokens:N"]),
        (&["--policies", "h2o", "--budgets", "share:0.5"], &["--policies, --budgets", "h2o"]),
        (&["--seeds", "one"], &["--seeds"]),
        (&["--seeds", "1,1"], &["given twice", "--seeds"]),
        (&["--limit", "0"], &["--limit", "at least 1"]),
        (&["--batch", "0"], &["--batch"]),
        (&["--skip", "1"], &["no questions are left", "--skip", "less than 1"]),
        (&["--shard", "3/2"], &["--shard", "I from 1 to N"]),
        (&["--context", "10"], &["one, question 1", "no room for an answer"]),
        (&["--max-new-tokens", "0"], &["--max-new-tokens"]),
        (&["--temperature", "-1"], &["--temperature"]),
    ] {
        fails(&with(&one, more), 2, parts);
    }
    assert!(!out.exists(), "nothing is left behind");
    let to = |out: &str| run(&["eval", "--device", "cpu", "--data", &one, "--out", out]);
    fails(&to(&one), 2, &["--out", "expected: a folder"]);
    fails(&run(&["eval", "--data", "builtin"]), 2, &["--out"]);
    fails(&run(&["eval", "--out", "x"]), 2, &["--data"]);
}

/// `--plan` measures and records nothing. It leaves out the answers that a folder already has.
#[test]
fn a_plan_measures_and_records_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let asked = ["eval", "--device", "cpu", "--data", "builtin", "--limit", "2", "--budgets", "ratio:0.5"];
    let with = |more: &[&str]| run(&[&asked[..], &["--out", text(&out)], more].concat());
    let plan = run(&[&asked[..], &["--plan"]].concat());
    assert_eq!(plan.code, Some(0), "{}", plan.err);
    for part in [
        "2 questions, 3 ways to answer, 6 answers to make, 8 at the same time; on CPU",
        "think-clearly at ratio:0.5",
        "tokens of prompts",
        "for each 1000 tokens of an answer",
    ] {
        assert!(plan.out.contains(part), "{part:?} is missing from:\n{}", plan.out);
    }
    assert_eq!(with(&["--plan"]).code, Some(0));
    assert!(!out.exists(), "a plan leaves nothing behind");
    // One part of two is complete. The plan of the whole is another evaluation, and the plan of the part has nothing
    // left to do.
    assert_eq!(with(&["--shard", "1/2"]).code, Some(0));
    let part = with(&["--shard", "1/2", "--plan"]);
    assert!(
        part.code == Some(0) && part.out.contains("part 1/2") && part.out.contains(" 0 answers to make"),
        "{}",
        part.out
    );
    assert!(!part.out.contains("tokens of prompts"), "nothing has to be measured");
    fails(&with(&["--plan"]), 2, &["other settings", "--shard"]);
    // One answer is removed. The length of that answer is estimated from the others.
    let path = out.join("trials.jsonl");
    let trials = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, trials.lines().skip(1).map(|line| line.to_string() + "\n").collect::<String>()).unwrap();
    let rest = with(&["--shard", "1/2", "--plan"]);
    assert!(
        rest.out.contains(" 1 answer to make") && rest.out.contains("the 2 answers that are there"),
        "{}",
        rest.out
    );
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    fails(&run(&[&asked[..], &["--plan", "--out", text(&file)]].concat()), 2, &["--out", "expected: a folder"]);
}
