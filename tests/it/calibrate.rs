//! `secateur calibrate` on the built-in model and the CPU: uninterrupted, interrupted and resumed; and how `run` uses
//! its choice. No test depends on which layers turn out best.
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::common::command::{Ran, fails, run, secateur};
use secateur::eval::calibrate::{Choice, FILE};
use secateur::expert::weights::{FINGERPRINT, ModelSource, Weights};
use secateur::trace::Trace;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-reasoner");
/// Questions with answers that were worked out by hand.
const QUESTIONS: [(&str, u32); 3] = [
    ("We count modulo 10. #1 f is 5. #2 d starts at 7. #3 k is d minus f. #4 g is k plus d. What is g?", 9),
    ("We count modulo 10. #1 d is 0. #2 k starts at 9. #3 s is k minus 3. #4 c trails s by k. What is c?", 7),
    ("We count modulo 10. #1 f equals 3. #2 c starts at 7. #3 n equals f plus 8. #4 h exceeds f by n. What is h?", 4),
];
const OPTIONS: [&str; 12] = [
    "--device",
    "cpu",
    "--budget",
    "tokens:32",
    "--probe-every",
    "16",
    "--window",
    "8",
    "--max-new-tokens",
    "150",
    "--policy",
    "think-clearly",
];

fn questions(dir: &Path) -> PathBuf {
    let file = dir.join("dev.jsonl");
    let lines =
        QUESTIONS.map(|(question, answer)| serde_json::json!({"question": question, "answer": answer}).to_string());
    std::fs::write(&file, lines.join("\n")).expect("written");
    file
}

/// A copy of the model, calibrated without interruption.
struct Calibrated {
    dir: tempfile::TempDir,
    data: PathBuf,
    written: String,
    ran: Ran,
}

impl Calibrated {
    fn model(&self) -> &str {
        self.dir.path().to_str().expect("UTF-8")
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let data = self.data.to_str().expect("UTF-8");
        [&["calibrate", self.model(), "--data", data][..], &OPTIONS, more].concat()
    }

    fn choice(&self) -> Choice {
        Choice::from_json(&self.written, FILE).expect("a choice")
    }
}

fn copy_model(to: &Path) {
    for file in std::fs::read_dir(MODEL).expect("the built-in model").flatten().filter(|f| f.path().is_file()) {
        std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
}

fn calibrated() -> &'static Calibrated {
    static ONCE: OnceLock<Calibrated> = OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        copy_model(dir.path());
        let data = questions(dir.path());
        let ran = Ran { code: None, out: String::new(), err: String::new() };
        let mut made = Calibrated { dir, data, written: String::new(), ran };
        made.ran = run(&made.args(&[]));
        assert_eq!(made.ran.code, Some(0), "{}", made.ran.err);
        made.written = std::fs::read_to_string(made.dir.path().join(FILE)).expect("the choice, beside the model");
        made
    })
}

#[test]
fn it_ends_with_a_table_and_a_choice_beside_the_model() {
    let made = calibrated();
    let choice = made.choice();
    assert_eq!(made.ran.out, format!("{}\n", choice.layers), "stdout is the choice");
    let left: Vec<PathBuf> = std::fs::read_dir(made.dir.path()).unwrap().map(|f| f.unwrap().path()).collect();
    assert!(!left.iter().any(|f| f.to_string_lossy().contains("progress")), "{left:?}");
    let of = QUESTIONS.len();
    assert_eq!((choice.settings.questions, choice.settings.run.budget), (of, secateur::policy::Budget::Tokens(32)));
    // The rows include at least all layers, each of the five, and the best of these with each of the others.
    assert!(choice.rows.len() >= 1 + 5 + 4, "{:?}", choice.rows);
    let names: HashSet<&str> = choice.rows.iter().map(|r| r.layers.as_str()).collect();
    assert_eq!(names.len(), choice.rows.len());
    assert!(["all", "0", "1", "2", "3", "4"].iter().all(|name| names.contains(name)) && !names.contains("full cache"));
    let all = choice.row("all").expect("a row").clone();
    for row in choice.rows.iter().chain([&choice.full]) {
        assert!(row.correct <= of && row.truncated <= of, "{row:?}");
        assert_eq!(row.correct + row.lost, all.correct + row.gained, "{row:?}");
        // Settings are compared at equal memory: the budget, the window, a prompt, a probe and the tokens between
        // two.
        let limit = if row.layers == "full cache" { 38.0 + 150.0 } else { 38.0 + 32.0 + 2.0 * 16.0 + 31.0 };
        assert!(row.peak_cached > 38.0 && row.peak_cached <= limit, "{row:?}");
    }
    assert!(choice.full.correct == of && choice.full.peak_cached > 1.2 * all.peak_cached, "{:?}", choice.full);
    assert!(choice.rows.iter().any(|row| row.correct < of), "the budget hurts: sets differ");
    assert_eq!(choice.pruned, of);
    // The rows are sorted, and the first one is the choice.
    assert!(choice.rows.is_sorted_by_key(|row| (of - row.correct, row.truncated)));
    assert_eq!((choice.rows[0].layers.as_str(), choice.distinguishable), (choice.layers.as_str(), false));
    for part in [
        "points against all layers",
        "  all layers",
        "most slots",
        "Chosen: ",
        "`run` uses this choice with think-clearly",
    ] {
        assert!(made.ran.err.contains(part), "{part:?} is missing from:\n{}", made.ran.err);
    }
    // The row is found whatever the width of the column is.
    let full =
        made.ran.err.lines().map(str::trim_start).any(|l| l.starts_with("full cache ") && l.contains(" 3 of 3 "));
    assert!(full, "{}", made.ran.err);
    assert_eq!(made.ran.err.contains("NOT DISTINGUISHABLE"), choice.layers != "all", "{}", made.ran.err);
}

/// Starts a calibration and interrupts it when one set of layers has been measured.
#[cfg(unix)]
fn interrupted(args: &[&str]) -> String {
    let mut child = secateur(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("UTF-8"));
    let mut heard = String::new();
    for line in lines.by_ref() {
        heard += &(line.clone() + "\n");
        if line.ends_with(" right") {
            break;
        }
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(kill.success());
    lines.for_each(|line| heard += &(line + "\n"));
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{heard}");
    assert!(heard.contains("run the same command again to continue from") && !heard.contains("panicked"), "{heard}");
    heard
}

#[cfg(unix)]
#[test]
fn an_interrupted_calibration_goes_on_and_ends_in_the_same_choice() {
    let made = calibrated();
    let elsewhere = tempfile::tempdir().unwrap();
    let out = elsewhere.path().join("choice.json");
    let file = elsewhere.path().join("choice.json.progress.jsonl");
    let args = made.args(&["--out", out.to_str().unwrap()]);
    let answers = || {
        let text = std::fs::read_to_string(&file).expect("progress");
        assert!(text.ends_with('\n'), "whole lines: {text}");
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        let keys: HashSet<String> = lines[1..].iter().map(|t| format!("{} {}", t["layers"], t["problem"])).collect();
        assert_eq!(keys.len(), lines.len() - 1, "nothing is answered twice: {text}");
        (text, keys.len())
    };
    interrupted(&args);
    let (first, count) = answers();
    assert!(count >= QUESTIONS.len() && !out.exists(), "{first}");

    // A power cut in the middle of a line leaves such a file.
    std::fs::write(&file, first.clone() + "{\"layers\":\"3\",\"prob").unwrap();
    let heard = interrupted(&args);
    assert!(heard.contains(&format!("{count} answers are there")), "{heard}");
    let (second, more) = answers();
    assert!(second.starts_with(&first) && more > count, "it goes on where it was: {second}");

    // The progress of a calibration with other settings is neither used nor changed.
    for other in [&["--budget", "tokens:31"][..], &["--problems", "2"], &["--kv", "f32"]] {
        // `OPTIONS` already has a budget.
        let args: Vec<&str> = match other[0] {
            "--budget" => args.iter().map(|a| if *a == "tokens:32" { "tokens:31" } else { a }).collect(),
            _ => [&args[..], other].concat(),
        };
        fails(
            &run(&args),
            2,
            &["the progress of another calibration", "choice.json.progress.jsonl", "remove the file"],
        );
        assert_eq!(answers().0, second);
    }
    // The first line has the conditions. The answers follow.
    let (head, rest) = second.split_once('\n').expect("several lines");
    let damaged = format!("{head}\n{}", rest.replacen("\"layers\"", "\"lawyers\"", 1));
    for (text, parts) in [
        (damaged.as_str(), &["not the progress of a calibration", "line 2", "missing field `layers`"][..]),
        ("a diary", &["not the progress of a calibration"]),
        ("a diary\n", &["the progress of another calibration", "a diary"]),
    ] {
        std::fs::write(&file, text).unwrap();
        fails(&run(&args), 2, parts);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "what is something else stays");
    }

    std::fs::write(&file, &second).unwrap();
    let ran = run(&args);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), made.written, "byte for byte");
    assert_eq!(ran.out, made.ran.out);
    assert!(!file.exists(), "the progress is gone");
}

#[test]
fn run_uses_the_choice_beside_the_model() {
    let made = calibrated();
    let dir = tempfile::tempdir().unwrap();
    copy_model(dir.path());
    let beside = dir.path().join(FILE);
    let trace = dir.path().join("trace.json");
    let [model, trace_file] = [dir.path(), &trace].map(|p| p.to_str().expect("UTF-8"));
    // Replaces the choice by layers 1 and 3, so that its use can be seen.
    let choice = |change: &dyn Fn(&mut Choice)| {
        let mut choice = made.choice();
        choice.layers = "1,3".into();
        choice.rows.push(secateur::eval::calibrate::Candidate { layers: "1,3".into(), ..choice.rows[0].clone() });
        change(&mut choice);
        serde_json::to_string(&choice).unwrap()
    };
    let with = |text: &str, more: &[&str]| {
        std::fs::write(&beside, text).unwrap();
        std::fs::remove_file(&trace).ok();
        let args = ["run", "--model", model, "--device", "cpu", "--max-new-tokens", "40", "--probe-every", "16"];
        run(&[&args[..], &["--window", "8", "--trace", trace_file], more, &[QUESTIONS[0].0]].concat())
    };
    let used = |text: &str, more: &[&str]| {
        let ran = with(text, more);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let trace = Trace::from_json(&std::fs::read_to_string(&trace).unwrap()).unwrap();
        assert!(!trace.probes.is_empty());
        (trace.settings.layers.to_string(), ran.err)
    };
    let good = choice(&|_| ());
    let (layers, err) = used(&good, &[]);
    assert_eq!(layers, "1,3");
    for part in
        ["layers 1,3 vote, as calibrated", FILE, " of 3 right", "which may be chance", "with tokens:32, not ratio:0.75"]
    {
        assert!(err.contains(part), "{part:?} is missing from:\n{err}");
    }
    let (_, err) = used(&good, &["--budget", "tokens:32"]);
    assert!(err.contains("as calibrated") && !err.contains("not ratio"), "{err}");
    for (chosen, asked) in [("all", "all"), ("0-2", "0-2")] {
        let (layers, err) = used(&good, &["--layers", asked]);
        assert!(layers == chosen && !err.contains("calibrated"), "{layers}: {err}");
    }
    // These runs are not the ones that the choice was made for.
    let (layers, err) = used(&good, &["--weights", "q8"]);
    assert!(layers == "all" && err.contains("was made for other weights: all layers vote"), "{layers}: {err}");
    let (layers, err) = used(&good, &["--policy", "think-token"]);
    assert!(
        layers == "all" && err.contains("was made for think-clearly, not for think-token: all layers vote"),
        "{err}"
    );
    let (layers, err) = used(&choice(&|c| c.settings.weights = format!("{FINGERPRINT}{}", "0".repeat(64))), &[]);
    assert!(layers == "all" && err.contains("was made for other weights: all layers vote"), "{err}");
    let (layers, err) = used(&choice(&|c| c.settings.weights = "0".repeat(16)), &[]);
    assert!(layers == "all" && err.contains("was made by an older version"), "{err}");
    let (layers, err) = used(&good, &["--policy", "random"]);
    assert!(layers == "all" && !err.contains(FILE), "{err}");
    let (layers, err) = used(&good, &["--scope", "layer"]);
    assert!(layers == "all" && !err.contains("as calibrated"), "{err}");
    // These choices are broken.
    for (text, parts) in [
        ("{", &["not a choice of layers", "EOF"][..]),
        ("{\"version\":1}", &["not a choice of layers", "version 1", "expected: version 3"]),
        (&good[..good.len() - 30], &["not a choice of layers"]),
        (&good.replacen("1,3", "1;3", 1), &["not a choice of layers", "1;3"]),
        (&choice(&|c| c.layers = "1,9".into()), &["the model has no such layer", "layers 0 to 4", "found: 9"]),
    ] {
        fails(&with(text, &[]), 2, &[parts, &[FILE][..]].concat());
    }
    assert_eq!(used("{", &["--layers", "all"]).0, "all", "as the error says");
}

#[test]
fn a_gguf_file_has_its_choice_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf-qwen2-q8/model.gguf"), &file).unwrap();
    let mut choice = calibrated().choice();
    choice.layers = "0".into();
    choice.settings.weights = Weights::open(&ModelSource::open(&file).unwrap()).unwrap().fingerprint().unwrap();
    let beside = dir.path().join(format!("model.gguf.{FILE}"));
    std::fs::write(&beside, serde_json::to_string(&choice).unwrap()).unwrap();
    let model = file.to_str().unwrap();
    let args = [
        "run",
        "--model",
        model,
        "--device",
        "cpu",
        "--raw",
        "--max-new-tokens",
        "2",
        "--policy",
        "think-clearly",
        "So",
    ];
    let ran = run(&args);
    assert!(ran.code == Some(0) && ran.err.contains("layers 0 vote, as calibrated"), "{}", ran.err);
}

#[test]
fn weights_are_hashed_again_only_when_a_file_of_theirs_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    copy_model(dir.path());
    let mut choice = calibrated().choice();
    choice.layers = "1".into();
    std::fs::write(dir.path().join(FILE), serde_json::to_string(&choice).unwrap()).unwrap();
    let (kept, weights) = (dir.path().join(format!("{FILE}.hashed")), dir.path().join("model.safetensors"));
    let calibrated = || {
        let model = dir.path().to_str().unwrap();
        let ran = run(&["run", "--model", model, "--device", "cpu", "--max-new-tokens", "1", QUESTIONS[0].0]);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(ran.err.contains("as calibrated") != ran.err.contains("made for other weights"), "{}", ran.err);
        ran.err.contains("as calibrated")
    };
    assert!(calibrated());
    let first = std::fs::read_to_string(&kept).unwrap();
    assert!(first.contains(&choice.settings.weights) && first.contains("model.safetensors"), "{first}");
    // A wrong hash shows that the stored one is used.
    let lie = first.replace(&choice.settings.weights, &format!("blake3:{}", "0".repeat(64)));
    std::fs::write(&kept, &lie).unwrap();
    assert!(!calibrated() && std::fs::read_to_string(&kept).unwrap() == lie);
    let later = std::fs::metadata(&weights).unwrap().modified().unwrap() + std::time::Duration::from_millis(1);
    std::fs::File::options().write(true).open(&weights).unwrap().set_modified(later).unwrap();
    assert!(calibrated(), "another time: hashed again");
    let second = std::fs::read_to_string(&kept).unwrap();
    assert!(second.contains(&choice.settings.weights) && second != first, "{second}");
    // The other weights have the same size, so only the time of the file shows the change.
    let mut other = std::fs::read(&weights).unwrap();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, other).unwrap();
    assert!(!calibrated());
    std::fs::write(&kept, "nonsense").unwrap();
    assert!(!calibrated() && std::fs::read_to_string(&kept).unwrap().contains("model.safetensors"));
}

#[test]
fn weights_are_told_from_others() {
    let of =
        |bytes: &[u8]| Weights::from_files(vec![("w".into(), bytes.to_vec().into())]).unwrap().fingerprint().unwrap();
    let good = std::fs::read(Path::new(MODEL).join("model.safetensors")).unwrap();
    assert_eq!(of(&good), of(&good));
    // The last byte of the file, and one in the middle of the largest tensor.
    let weights = Weights::from_files(vec![("w".into(), good.clone().into())]).unwrap();
    let largest = weights.names().map(|name| weights.tensor(name).unwrap()).max_by_key(|t| t.bytes.len()).unwrap();
    let begin = good.windows(largest.bytes.len()).position(|bytes| bytes == largest.bytes).unwrap();
    let middle = begin + largest.bytes.len() / 2;
    assert!(largest.bytes.len() > 100_000, "ends are far");
    for at in [good.len() - 1, middle, middle + 1] {
        let mut other = good.clone();
        other[at] ^= 1;
        assert_ne!(of(&good), of(&other), "byte {at} of {}", good.len());
    }
}

#[test]
fn what_cannot_be_calibrated_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = questions(dir.path());
    let write = |name: &str, text: &[u8]| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_string()
    };
    let out = dir.path().join("out.json");
    let with = |data: &str, more: &[&str]| {
        run(&[&["calibrate", "--device", "cpu", "--data", data, "--out", out.to_str().unwrap()][..], more].concat())
    };
    let line = "{\"question\": \"What?\", \"answer\": 1}\n";
    for (data, code, parts) in [
        ("/no/such/file.jsonl".to_string(), 1, &["the questions cannot be read", "/no/such/file.jsonl"][..]),
        (dir.path().to_str().unwrap().into(), 1, &["the questions cannot be read"]),
        (write("latin", b"caf\xe9"), 2, &["the questions cannot be read", "latin, byte 3", "UTF-8"]),
        (write("empty", b" \n\n"), 2, &["no questions", "empty"]),
        (write("text", b"What is 1 + 1?"), 2, &["not a question with an answer", "text, line 1", "expected:"]),
        (
            write("half", format!("{line}{{\"question\": \"b\"}}").as_bytes()),
            2,
            &["half, line 2", "found: the fields question\n"],
        ),
        (write("null", b"{\"question\": \"a\", \"answer\": null}"), 2, &["null, line 1"]),
        (write("blank", b"{\"question\": \"a\", \"answer\": \"\"}"), 2, &["blank, line 1", "an empty answer"]),
        (write("twice", format!("{line}\n{line}").as_bytes()), 2, &["occurs twice", "lines 1 and 3", "What?"]),
    ] {
        fails(&with(&data, &[]), code, parts);
    }
    let data = data.to_str().unwrap();
    for (more, parts) in [
        (&["--policy", "random"][..], &["no scores", "random"][..]),
        (&["--policy", "full"], &["no scores"]),
        (&["--policy", "think-cleary"], &["unknown policy", "think-clearly"]),
        (&["--problems", "0"], &["--problems", "at least 1"]),
        (&["--problems", "4"], &["--problems", "at most 3"]),
        (&["--sequences", "0"], &["--sequences"]),
        (&["--max-new-tokens", "0"], &["--max-new-tokens"]),
        (&["--probe-every", "0"], &["--probe-every"]),
        (&["--context", "0"], &["--context"]),
        (&["--context", "20"], &["dev.jsonl, question 1", "no room for an answer"]),
        (&["--temperature", "-1"], &["--temperature", "from 0 to 1000"]),
    ] {
        fails(&with(data, more), 2, parts);
    }
    let built_in = ["calibrate", "--device", "cpu", "--data", data];
    fails(&run(&built_in), 2, &["no output file for the calibration", "--out"]);
    let to = |out: &str| run(&[&built_in[..], &["--out", out]].concat());
    fails(&to("/no/such/dir/choice.json"), 1, &["progress", "cannot be kept", "/no/such/dir"]);
    fails(&to(dir.path().to_str().unwrap()), 2, &["written to a directory"]);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| !name.to_string_lossy().starts_with("out.json")),
        "nothing is left behind: {left:?}"
    );
}
