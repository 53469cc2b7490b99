//! Devices that are lost in the middle of a run.
use super::adapters;
use super::trace_of;
use crate::common::command::{Ran, done, secateur};
use secateur::trace::StopReason;
use std::path::Path;

/// Runs the binary with a variable of the environment that makes its device fail.
fn failing(variable: (&str, &str), args: &[&str]) -> Ran {
    done(secateur(args).env(variable.0, variable.1).output().expect("it starts"))
}

/// Asserts exit code 1 and one error about the device.
#[track_caller]
fn assert_failed(ran: &Ran, what: &str, adapter: &str) {
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert_eq!(ran.err.matches("error:").count(), 1, "one error: {}", ran.err);
    for part in [format!("error: {what}"), adapter.to_string(), "help:".into()] {
        assert!(ran.err.contains(&part), "{part:?} is missing from:\n{}", ran.err);
    }
}

#[test]
fn a_run_whose_device_is_lost_keeps_its_text_and_its_trace() {
    for adapter in adapters() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("trace.json");
        let trace = file.to_str().expect("UTF-8");
        let args =
            ["run", "--device", &adapter, "--max-new-tokens", "200", "--ignore-eos", "--trace", trace, "What is c?"];
        // The device is lost after this number of decode steps.
        for steps in ["40", "60"] {
            let ran = failing(("SECATEUR_LOSE_DEVICE", steps), &args);
            assert_failed(&ran, "the device was lost", &adapter);
            let trace = trace_of(&file);
            assert_eq!(trace.stop_reason, StopReason::Failed("the device was lost".into()));
            let text: String = trace.tokens.iter().filter(|t| !t.special).map(|t| t.text.as_str()).collect();
            assert!(!text.is_empty() && ran.out.trim_end() == text.trim_end(), "{:?} is not {text:?}", ran.out);
            assert!(ran.err.contains("failed: the device was lost"), "the summary: {}", ran.err);
        }
        let args = ["run", "--device", &adapter, "--max-new-tokens", "200", "--ignore-eos", "--json", "What is c?"];
        let ran = failing(("SECATEUR_LOSE_DEVICE", "40"), &args);
        assert_failed(&ran, "the device was lost", &adapter);
        let object: serde_json::Value = serde_json::from_str(&ran.out).expect("one JSON object");
        assert_eq!(object["stop_reason"]["failed"], "the device was lost");
        // Before the first token there is nothing to keep.
        let ran = failing(("SECATEUR_LOSE_DEVICE", "1"), &args);
        assert_failed(&ran, "the device was lost", &adapter);
    }
}

#[test]
fn a_bench_whose_device_is_lost_prints_what_it_measured() {
    let Some(adapter) = adapters().into_iter().next() else {
        println!("SKIPPED: no adapter");
        return;
    };
    let args = ["bench", "--device", &adapter, "--decode", "16", "--repeat", "1", "--prompt", "8,16"];
    let none = failing(("SECATEUR_LOSE_DEVICE", "4"), &args);
    assert_failed(&none, "the device was lost", &adapter);
    assert_eq!(none.out, "");
    let one = failing(("SECATEUR_LOSE_DEVICE", "40"), &args);
    assert_failed(&one, "the device was lost", &adapter);
    let rows = |ran: &Ran, prompt: &str| ran.out.lines().filter(|line| line.starts_with(prompt)).count();
    assert_eq!((rows(&one, "8 "), rows(&one, "16 ")), (1, 0), "{}", one.out);
}

/// The trials that were made before are kept, and the same command continues with them.
#[test]
fn a_calibration_whose_device_is_lost_continues() {
    let Some(adapter) = adapters().into_iter().next() else {
        println!("SKIPPED: no adapter");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("questions.jsonl");
    let questions = ["1", "2"].map(|n| format!("{{\"question\": \"What is {n} + 30?\", \"answer\": \"{n}\"}}\n"));
    std::fs::write(&data, questions.concat()).expect("written");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-reasoner");
    let (data, out) = (data.to_str().expect("UTF-8"), dir.path().join("choice.json"));
    let args = ["calibrate", model, "--data", data, "--out", out.to_str().expect("UTF-8"), "--device", &adapter];
    let args = [&args[..], &["--max-new-tokens", "24", "--budget", "tokens:8", "--probe-every", "8", "--window", "2"]]
        .concat();
    let ran = failing(("SECATEUR_LOSE_DEVICE", "100"), &args);
    assert_failed(&ran, "the device was lost", &adapter);
    let progress = Path::new(&format!("{}.progress.jsonl", out.display())).to_path_buf();
    let trials = std::fs::read_to_string(&progress).expect("the trials").lines().count() - 1;
    assert!(trials > 0 && ran.err.contains("the same command continues there"), "{}", ran.err);
    let ran = done(secateur(&args).output().expect("it starts"));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(out.is_file() && !progress.exists());
}
