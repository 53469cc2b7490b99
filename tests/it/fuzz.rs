//! The targets of `fuzz/`, without a fuzzer: every seed, every input that once failed, and a short run of changed
//! ones. The changes are drawn from a fixed seed, so that a failure can be repeated. With
//! `SECATEUR_FUZZ_CORPUS=fuzz/corpus` the seeds are also written there, for cargo-fuzz.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::files::report;
use crate::common::memory;

#[path = "../../fuzz/corpus.rs"]
mod corpus;
#[path = "../../fuzz/mutate.rs"]
mod mutate;
#[path = "../../fuzz/targets.rs"]
mod targets;

use mutate::Mutator;

/// The number of changed inputs for each target.
const CHANGED: [(&str, usize); 11] = [
    ("safetensors", 4000),
    ("gguf", 400),
    ("config", 1000),
    ("tokenizer", 300),
    ("template", 800),
    ("trace", 300),
    ("hub", 4000),
    ("values", 2000),
    ("request", 4000),
    ("bodies", 2000),
    ("calls", 2000),
];

fn measure(call: &mut dyn FnMut()) -> (usize, Duration) {
    let began = Instant::now();
    let peak = memory::peak_of(call).max(0) as usize;
    (peak, began.elapsed())
}

/// Tries the seeds of the target `name` and changed ones.
#[track_caller]
fn try_inputs(name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (_, target) = targets::TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let (_, changed) = CHANGED.into_iter().find(|(known, _)| *known == name).expect("a number");
    let seeds = corpus::seeds(root, name);
    if let Some(corpus) = std::env::var_os("SECATEUR_FUZZ_CORPUS") {
        let folder = root.join(corpus).join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed).expect("written");
        }
    }
    let mut mutator = Mutator::new(2026);
    let inputs = seeds.iter().cloned().chain((0..changed).map(|_| mutator.changed(&seeds)));
    for (number, input) in inputs.enumerate() {
        let tried = std::panic::catch_unwind(|| targets::check(target, &input, measure));
        if let Err(panic) = tried {
            let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{number}"));
            std::fs::write(&place, &input).expect("written");
            report!("{name}: input {number} fails and is now {}; copy it to fuzz/regressions/{name}/", place.display());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn headers_of_safetensors() {
    try_inputs("safetensors");
}

#[test]
fn headers_of_gguf_files() {
    try_inputs("gguf");
}

#[test]
fn configurations() {
    try_inputs("config");
}

#[test]
fn tokenizers() {
    try_inputs("tokenizer");
}

#[test]
fn chat_templates() {
    try_inputs("template");
}

#[test]
fn traces() {
    try_inputs("trace");
}

#[test]
fn answers_of_a_hub() {
    try_inputs("hub");
}

#[test]
fn values_of_the_command_line() {
    try_inputs("values");
}

#[test]
fn requests() {
    try_inputs("request");
}

#[test]
fn bodies_of_requests_to_the_server() {
    try_inputs("bodies");
}

#[test]
fn calls_of_tools() {
    try_inputs("calls");
}

/// The seeds must be valid inputs. If all seeds of a target were refused, the target would only test the refusal.
#[test]
fn the_seeds_are_understood() {
    use secateur::expert::model::config::ModelConfig;
    use secateur::expert::model::required;
    use secateur::expert::text::Tokenizer;
    use secateur::expert::weights::{ModelSource, Weights};
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of = |name: &str| corpus::seeds(root, name).into_iter();
    let text = |seed: Vec<u8>| String::from_utf8(seed).expect("text");
    let mut configured = 0;
    for mut seed in of("gguf").take(12) {
        let zeros = usize::from(seed.remove(0)) * 2048;
        seed.resize(seed.len() + zeros, 0);
        let source = ModelSource::gguf_file("seed", seed).expect("a header");
        let weights = Weights::open(&source).expect("tensors");
        let config = ModelConfig::load(&source);
        configured += usize::from(config.is_ok_and(|config| required::check(&config, &weights, None).is_ok()));
    }
    // Two of the twelve have factors of RoPE among their tensors, which are zeros here.
    assert_eq!(configured, 10);
    for seed in of("tokenizer").take(10) {
        let source = match seed.get(1..5) {
            Some(b"GGUF") => ModelSource::gguf_file("seed", seed[1..].to_vec()).expect("a header"),
            _ => ModelSource::memory([("tokenizer.json", seed.split(|byte| *byte == 0).next().unwrap().to_vec())]),
        };
        Tokenizer::load(&source).expect("a tokenizer");
    }
    let parsed = of("request").filter(|seed| !seed.contains(&0)).take(12);
    assert!(parsed.map(text).all(|seed| secateur::Request::from_json(&seed).is_ok()));
    for seed in of("config").take(8) {
        let files = ["config.json", "generation_config.json", "secateur.json"].into_iter();
        let files = files.zip(seed.split(|byte| *byte == 0)).filter(|(_, file)| !file.is_empty());
        let source = ModelSource::memory(files.map(|(name, file)| (name, file.to_vec())));
        ModelConfig::load(&source).expect("a configuration");
        let choice = source.read("secateur.json").expect("a choice").to_vec();
        secateur::eval::Choice::from_json(&text(choice), "seed").expect("a choice");
    }
    assert!(of("trace").take(3).map(text).all(|seed| secateur::Trace::from_json(&seed).is_ok()));
    let described = |seed: Vec<u8>| secateur::expert::bodies::read_all(&seed).iter().any(Result::is_ok);
    let described: Vec<bool> = of("bodies").map(described).collect();
    assert_eq!(described, [true, true, true, true, true, true, true, false], "the last asks for a bias");
}

/// cargo-fuzz and `fuzz/instrument` build a program for each target, from the versions that the crate is tested with.
/// No other test builds them.
#[test]
fn each_target_has_a_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let manifest = read("fuzz/Cargo.toml");
    for (name, _) in targets::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name}");
        assert!(read(&format!("fuzz/fuzz_targets/{name}.rs")).contains(&format!("check(\"{name}\", data)")), "{name}");
    }
    // The version and the dependencies of each package.
    let packages = |file: &str| -> BTreeMap<(String, String), Vec<String>> {
        let lock = read(file);
        let value = |line: Option<&str>| line.and_then(|line| line.split('"').nth(1)).unwrap_or_default().to_string();
        let package = |text: &str| {
            let mut lines = text.lines().skip(1);
            let id = (value(lines.next()), value(lines.next()));
            (id, lines.filter(|line| line.starts_with(" \"")).map(|line| value(Some(line))).collect())
        };
        lock.split("[[package]]").skip(1).map(package).collect()
    };
    let (own, fuzzed) = (packages("Cargo.lock"), packages("fuzz/Cargo.lock"));
    for (name, version) in fuzzed.keys() {
        let mut versions = own.keys().filter(|(known, _)| known == name).map(|(_, version)| version).peekable();
        assert!(
            versions.peek().is_none() || versions.any(|known| known == version),
            "fuzz/Cargo.lock: {name} {version}"
        );
    }
    let needs = |packages: &BTreeMap<(String, String), Vec<String>>| -> BTreeSet<String> {
        let (_, needs) = packages.iter().find(|((name, _), _)| name == "secateur").expect("the crate");
        needs.iter().cloned().collect()
    };
    let only_tests: Vec<String> = needs(&own).difference(&needs(&fuzzed)).cloned().collect();
    assert_eq!(only_tests, ["avt", "proptest"], "fuzz/Cargo.lock is out of date: run cargo metadata in fuzz/");
}

/// A prompt takes three bytes of a body, and a request hundreds: too many prompts are refused before a request is
/// made of each.
#[test]
fn many_prompts_in_one_body_take_no_more_memory_than_their_texts() {
    let body = format!("{{\"prompt\":[\"\"{}]}}", ",\"\"".repeat(20_000));
    let peak = memory::peak_of(|| {
        let read = secateur::expert::bodies::read_all(body.as_bytes());
        assert!(read.iter().all(Result::is_err));
    });
    assert!(peak < 64 * body.len() as isize, "{peak} bytes for a body of {}", body.len());
}

/// The checks notice a target that panics, takes too long or holds too much memory.
#[test]
fn the_checks_notice_what_they_look_for() {
    let fails =
        |target: targets::FuzzTarget| std::panic::catch_unwind(|| targets::check(target, b"x", measure)).is_err();
    assert!(!fails(|_| ()));
    assert!(fails(|_| panic!("expected by this test")));
    assert!(fails(|_| drop(vec![0u8; 65 << 20])));
    assert!(fails(|_| std::thread::sleep(std::time::Duration::from_millis(1100))));
}
