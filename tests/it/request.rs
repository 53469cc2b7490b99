//! One request: the same JSON is resolved to the same prompt and settings by the library and by the command line.
//! (`tests/browser` checks the page with the same requests.)
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use secateur::ModelSource;
use secateur::engine::{LoadOptions, PreparedModel, Request, Settings};
use secateur::policy::{Budget, CacheView, EvictionPolicy, Full, KeepPlan, Layers, Measurement, PolicyRef, Scope};
use secateur::settings::MAX_NEW_TOKENS_THINKING;
use secateur::{Result, builtin};
use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const F16: &str = "tests/golden/qwen2-f16";

/// `model` is a directory below the repository; if it is empty, the built-in model.
fn prepared(model: &str) -> PreparedModel {
    let source = match model {
        "" => builtin::source(),
        model => ModelSource::open(Path::new(ROOT).join(model)).expect("the fixture"),
    };
    PreparedModel::new(&source, "a model", &LoadOptions::default()).expect("a model")
}

fn resolved(model: &str, request: &Value) -> Result<Value> {
    let resolved = prepared(model).resolve(&Request::from_json(&request.to_string())?)?;
    // The settings are compared as text, as the command line prints them, where an f32 has its shortest spelling.
    let text = serde_json::to_string(&resolved).expect("JSON");
    Ok(serde_json::from_str(&text).expect("JSON"))
}

/// `secateur run --dry-run` with these arguments and this on stdin.
fn dry_run(model: &str, args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    command.args(["run", "--dry-run", "--quiet"]).args(args).current_dir(ROOT);
    if !model.is_empty() {
        command.args(["--model", model]);
    }
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the binary starts");
    // A request that is refused early may leave its stdin unread.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    child.wait_with_output().expect("it ends")
}

#[track_caller]
fn printed(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {errors}"))
}

#[test]
fn the_same_json_comes_to_the_same_through_library_and_command_line() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("tests/fixtures/requests.json")).expect("the fixture");
    let cases: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    assert!(cases.len() >= 12, "{} requests", cases.len());
    for case in cases {
        let (model, request) = (case["model"].as_str().expect("a model"), &case["request"]);
        let expected = resolved(model, request).expect("a request that can run");
        let found = printed(&dry_run(model, &["--request", "-"], &request.to_string()));
        assert_eq!(found, expected, "{request}");
        // A request that is written and read again is the same.
        let read = Request::from_json(&request.to_string()).expect("a request");
        let again = serde_json::to_string(&read).expect("JSON");
        assert_eq!(Request::from_json(&again).expect("a request"), read);
    }
}

#[test]
fn options_are_fields_of_a_request() {
    let options = [
        "-5 + 3?",
        "--system",
        "Be brief.",
        "--max-new-tokens",
        "9",
        "--seed",
        "3",
        "--temperature",
        "0.5",
        "--top-k",
        "-1",
        "--top-p",
        "0.9",
        "--min-p",
        "0.1",
        "--repetition-penalty",
        "1.2",
        "--policy",
        "snapkv",
        "--budget",
        "tokens:12",
        "--window",
        "5",
        "--probe-every",
        "6",
        "--probe-text",
        "Enough.</think>",
        "--scope",
        "layer",
        "--normalise",
        "per-head",
        "--positions",
        "compact",
        "--steps",
        "sentences",
        "--ignore-eos",
        "--frequency-penalty",
        "0.5",
        "--presence-penalty",
        "-0.25",
        "--stop",
        "\n\n",
        "--stop",
        "-",
        "--max-thinking-tokens",
        "7",
        "--max-answer-tokens",
        "8",
        "--draft",
        "0",
    ];
    let request = json!({
        "prompt": "-5 + 3?", "system": "Be brief.", "max_new_tokens": 9, "seed": 3, "temperature": 0.5, "top_k": -1,
        "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "policy": "snapkv", "budget": "tokens:12", "window": 5,
        "probe_every": 6, "probe_text": "Enough.</think>", "scope": "layer", "normalise": "per-head",
        "positions": "compact", "steps": "sentences", "ignore_eos": true,
        "frequency_penalty": 0.5, "presence_penalty": -0.25, "stop": ["\n\n", "-"], "max_thinking_tokens": 7, "max_answer_tokens": 8,
        "draft": 0,
    });
    assert_eq!(printed(&dry_run(F16, &options, "")), resolved(F16, &request).expect("a request"));
    let options =
        ["--ids", "1, 2,3", "--seed", "0", "--greedy", "--layers", "0,2-3", "--answer-format", "choice:yes|no"];
    let ids = printed(&dry_run(F16, &options, ""));
    for format in [json!({"type": "choice", "choices": ["yes", "no"]}), json!("choice:yes|no")] {
        let request = json!({"ids": [1, 2, 3], "seed": 0, "greedy": true, "layers": "0,2-3", "answer_format": format});
        assert_eq!(ids, resolved(F16, &request).expect("a request"));
    }
}

#[test]
fn options_override_a_request() {
    let request = r#"{"prompt": "a", "seed": 1, "temperature": 0.5, "top_p": 0.9, "budget": "tokens:7"}"#;
    let found =
        printed(&dry_run(F16, &["--request", "-", "--greedy", "--budget", "ratio:0.5", "--ids", "4,5"], request));
    let expected = json!({"ids": [4, 5], "seed": 1, "greedy": true, "budget": "ratio:0.5"});
    assert_eq!(found, resolved(F16, &expected).expect("a request"));
    // Ids exclude the fields that belong to a text prompt.
    let base = Request::from_json(r#"{"prompt": "a", "raw": true, "system": "b", "think": false, "seed": 1}"#);
    let ids = Request { ids: Some(vec![4, 5]), ..Request::default() };
    let over = base.and_then(|base| base.overridden_by(&ids)).expect("two good requests");
    assert_eq!(over, Request { seed: Some(1), ..ids });
}

#[test]
fn what_is_not_given_is_resolved_from_the_model() {
    let settings = |model: &str, request: Value| -> Settings {
        let request = Request::from_json(&request.to_string()).expect("a request");
        prepared(model).resolve(&request).expect("it can run").settings
    };
    let own = settings("", json!({"prompt": "x"}));
    assert_eq!((own.window, own.probe_every), (builtin::WINDOW, builtin::PROBE_EVERY));
    assert_eq!(own.max_new_tokens, MAX_NEW_TOKENS_THINKING, "it thinks");
    let authors = settings("tests/golden/qwen2-bf16", json!({"prompt": "x"})).sampling;
    assert_eq!((authors.temperature, authors.top_p, authors.top_k), (0.6, 0.95, 50));
    // A seed is drawn each time, and JSON and JavaScript can hold it exactly.
    let seeds: Vec<u64> = (0..8).map(|_| settings(F16, json!({"prompt": "x"})).seed).collect();
    assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]), "{seeds:?}");
    assert!(seeds.iter().all(|seed| *seed < 1 << 53), "{seeds:?}");
    let given = settings(F16, json!({"prompt": "x", "budget": "share:0.5", "scope": "shared", "layers": "1"}));
    assert_eq!((given.budget, given.scope, given.layers), (Budget::Share(0.5), Scope::Shared, Layers::Listed(vec![1])));
}

/// Drafts are left out, with a note, where they would change what is measured or need a token that is not known.
#[test]
fn drafts_are_left_out_where_they_cannot_be() {
    let draft = |fields: Value| {
        let mut request = json!({"prompt": "x", "seed": 1, "draft": 3});
        request.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let request = Request::from_json(&request.to_string()).expect("a request");
        let resolved = prepared("").resolve(&request).expect("it can run");
        (resolved.settings.draft, resolved.notes.iter().any(|note| note.contains("nothing is drafted")))
    };
    for fields in
        [json!({}), json!({"temperature": 0.7}), json!({"policy": "last-attention"}), json!({"policy": "full"})]
    {
        assert_eq!(draft(fields.clone()), (3, false), "{fields}");
    }
    let policies = ["h2o", "think-h2o", "snapkv", "r-kv", "lazy-eviction", "expected-attention", "vase"];
    let by_policy = policies.iter().map(|policy| json!({"policy": policy}));
    let others = [
        json!({"repetition_penalty": 1.1}),
        json!({"frequency_penalty": 0.1}),
        json!({"presence_penalty": 0.1}),
        json!({"logprobs": 0}),
        json!({"answer_format": "choice:a|b"}),
    ];
    for fields in by_policy.chain(others) {
        assert_eq!(draft(fields.clone()), (0, true), "{fields}");
    }
}

#[test]
fn a_wrong_request_is_refused_and_says_why() {
    for (request, parts) in [
        (json!({}), &["no prompt"][..]),
        (json!({"prompt": " \n"}), &["the prompt is empty"]),
        (json!({"prompt": "x", "ids": [1]}), &["one prompt"]),
        (json!({"ids": [1], "system": "x"}), &["`system`"]),
        (json!({"prompt": "x", "raw": true, "think": false}), &["`think`"]),
        (json!({"prompt": "x", "budgets": 3}), &["budgets", "budget"]),
        (json!({"prompt": "x", "budget": "half"}), &["not a budget"]),
        (json!({"prompt": "x", "policy": "best"}), &["unknown policy", "think-clearly"]),
        (json!({"prompt": "x", "scope": "all"}), &["shared, layer or head"]),
        (json!({"prompt": "x", "top_k": -2}), &["`top_k`"]),
        (json!({"prompt": "x", "greedy": true, "top_p": 0.5}), &["`greedy`"]),
        (json!({"prompt": "x", "frequency_penalty": 3}), &["out of range", "`frequency_penalty`"]),
        (json!({"prompt": "x", "temperature": -1}), &["out of range", "`temperature`"]),
        (json!({"prompt": "x", "probe_every": 0}), &["`probe_every`"]),
        (json!({"prompt": "x", "layers": "9"}), &["no such layer"]),
        (json!({"prompt": "x", "stop": ["a", ""]}), &["`stop`", "empty"]),
        (json!({"prompt": "x", "stop": 5}), &["stop", "a text or a list of texts"]),
        (json!({"prompt": "x", "stop_ids": [4_000_000]}), &["`stop_ids`", "outside the vocabulary"]),
        (json!({"prompt": "x", "max_answer_tokens": 0}), &["`max_answer_tokens`"]),
        (json!({"prompt": "x", "draft": 8}), &["`draft`", "at most 7"]),
        (json!({"prompt": "x", "draft": 8, "policy": "h2o"}), &["`draft`", "at most 7"]),
        (
            json!({"prompt": "x", "answer_format": {"type": "regex", "pattern": "("}}),
            &["`answer_format`", "invalid regex"],
        ),
        (
            json!({"prompt": "x", "answer_format": {"choice": ["a"]}}),
            &["answer_format", "json_schema, regex or choice"],
        ),
        (json!({"prompt": "x", "answer_format": "yaml"}), &["answer_format", "regex:PATTERN"]),
        (json!({"prompt": "x", "answer_format": {"type": "choice", "choices": []}}), &["`answer_format`"]),
        (json!({"prompt": "x", "logprobs": 21}), &["`logprobs`", "at most 20"]),
        (json!({"prompt": "x", "prompt_logprobs": 21}), &["`prompt_logprobs`", "at most 20"]),
        (json!({"prompt": "x", "policy": "random", "budget": "share:0.5"}), &["no scores"]),
    ] {
        let error = resolved(F16, &request).expect_err("it is refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{request}: {error}");
    }
    // The error about a value is one sentence, not an error within an error.
    let nested = Request::from_json(r#"{"steps": "words"}"#).expect_err("no such rule").to_string();
    let found = "keywords, paragraphs, sentences or auto, found \"words\" at line 1";
    assert!(nested.contains(found) && !nested.contains("at: "), "{nested}");
    let refused = dry_run(F16, &["--request", "-"], r#"{"prompt": "x", "budgets": 3}"#);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && errors.contains("budgets"), "{errors}");
}

#[test]
fn notes_say_what_a_person_would_not_expect() {
    let notes = |model: &str, request: Value| -> String {
        let request = Request::from_json(&request.to_string()).expect("a request");
        prepared(model).resolve(&request).expect("it can run").notes.join("\n")
    };
    let many = notes(F16, json!({"prompt": "x", "temperature": 1, "top_k": 129}));
    assert!(many.contains("`top_k` is 129") && many.contains("128"), "{many}");
    assert!(!notes(F16, json!({"prompt": "x", "temperature": 1, "top_k": 128})).contains("top_k"));
    let silent = notes("tests/golden/gguf-qwen3-f16/model.gguf", json!({"prompt": "x"}));
    assert!(silent.contains("decodes greedily"), "{silent}");
    let drawn = notes("tests/golden/gguf-qwen3-f16/model.gguf", json!({"prompt": "x", "temperature": 0.6}));
    assert!(drawn.starts_with("seed ") && !drawn.contains("greedily"), "{drawn}");
    let request = json!({"prompt": "x", "temperature": 0.6, "seed": 1});
    assert_eq!(notes("tests/golden/gguf-qwen3-f16/model.gguf", request), "");
    assert_eq!(notes("", json!({"prompt": "x"})), "", "its authors chose greedy decoding");
}

/// `secateur run` on the CPU with the built-in model.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    command.args(["run", "--device", "cpu"]).args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

#[test]
fn the_answer_is_given_without_the_thinking() {
    let whole = printed(&run(&["--json"]));
    let (text, answer) = (whole["text"].as_str().expect("text"), whole["answer"].as_str().expect("an answer"));
    assert!(!answer.is_empty() && answer == answer.trim(), "{answer:?}");
    assert!(text.trim_end().ends_with(answer) && text.len() > answer.len(), "{answer:?} in {text:?}");
    assert_eq!(whole["thinking_unfinished"], false);
    let only = run(&["--answer-only", "--quiet"]);
    assert_eq!(String::from_utf8_lossy(&only.stdout), format!("{answer}\n"));
    // An empty stdout must not be mistaken for an answer.
    let cut = run(&["--answer-only", "--quiet", "--max-new-tokens", "5"]);
    let errors = String::from_utf8_lossy(&cut.stderr).into_owned();
    assert!(cut.stdout.is_empty() && cut.status.success(), "{errors}");
    assert!(errors.contains("warning: no answer came") && errors.contains("still thinking"), "{errors}");
}

#[test]
fn a_thought_that_was_cut_short_is_told() {
    let cut = run(&["--json", "--max-new-tokens", "5"]);
    let errors = String::from_utf8_lossy(&cut.stderr).into_owned();
    let cut = printed(&cut);
    assert_eq!((&cut["thinking_unfinished"], &cut["answer"]), (&json!(true), &json!("")));
    assert!(errors.contains("still thinking"), "{errors}");
}

#[test]
fn a_seed_is_drawn_and_printed_unless_it_is_given() {
    let drawn = |args: &[&str]| {
        let output = run(&[&["--temperature", "1", "--max-new-tokens", "12", "--json"], args].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = printed(&output);
        (json["settings"]["seed"].as_u64().expect("a seed"), json["ids"].clone(), errors)
    };
    let (first, second) = (drawn(&[]), drawn(&[]));
    assert_ne!(first.0, second.0);
    assert!(first.2.contains(&format!("seed  {}", first.0)), "{}", first.2);
    assert_eq!(drawn(&["--seed", &first.0.to_string()]).1, first.1, "the same seed gives the same ids");
}

/// The names of the strings between `from` and the next `to` in a file of the page.
fn listed(file: &str, from: &str, to: &str, name: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("web").join(file)).expect("a file of the page");
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("{file} has no {from:?}"));
    let (part, _) = rest.split_once(to).unwrap_or_else(|| panic!("{file} has no {to:?} after {from:?}"));
    let names: Vec<String> = part.split([',', '\n']).filter_map(name).collect();
    assert!(!names.is_empty(), "{file}: nothing between {from:?} and {to:?}");
    names
}

/// A field that is added to a request has to reach the page's engine in the browser and the one behind a server.
#[test]
fn the_pages_files_know_every_field_of_a_request() {
    let Ok(Value::Object(fields)) = serde_json::to_value(Request::default()) else { panic!("an object") };
    let fields: BTreeSet<String> = fields.into_iter().map(|(name, _)| name).collect();

    let property = |line: &str| Some(line.split_once("} [")?.1.split_once(']')?.0.to_string());
    let typed = listed("messages.js", "@typedef {object} Request\n", "@typedef", property);
    assert_eq!(typed.into_iter().collect::<BTreeSet<_>>(), fields, "the type of a request in messages.js");

    let quoted = |text: &str| Some(text.split_once('\'')?.1.split_once('\'')?.0.to_string());
    let key = |text: &str| Some(text.split_once(':')?.0.trim().to_string());
    let list = |name: &str| listed("remote.js", &format!("const {name} = ["), "];", quoted);
    let own: BTreeSet<String> = list("OWN").into_iter().collect();
    assert_eq!(own, Request::OWN_FIELDS.map(String::from).into(), "the list OWN in remote.js");
    let renamed = listed("remote.js", "const RENAMED = {", "};", key);
    let lists = ["SAME", "TEMPLATE", "PROMPTS", "REWORDED"].map(list).concat();
    let known: BTreeSet<String> = own.into_iter().chain(renamed).chain(lists).collect();
    // The page shows no probabilities.
    let left_out = ["logprobs", "prompt_logprobs"].map(String::from);
    assert_eq!(known.into_iter().chain(left_out).collect::<BTreeSet<_>>(), fields, "the lists of remote.js");
}

/// An own policy has parameters that no JSON holds.
#[test]
fn a_request_that_is_overridden_keeps_an_own_policy() {
    #[derive(Debug)]
    struct Own;
    impl EvictionPolicy for Own {
        fn name(&self) -> &str {
            "own"
        }
        fn needs(&self) -> Measurement {
            Measurement::Nothing
        }
        fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
            Full.plan(view)
        }
    }
    let own = PolicyRef::new(Own);
    let with = |policy: Option<PolicyRef>| Request { policy, window: Some(3), ..Request::default() };
    for (base, over) in [(with(Some(own.clone())), with(None)), (with(None), with(Some(own.clone())))] {
        let request = base.overridden_by(&over).expect("a request");
        assert_eq!(request.policy.as_ref(), Some(&own));
        request.check().expect("a policy that runs");
    }
    let listed = Request { policy: Some("h2o".parse().expect("listed")), ..Request::default() };
    assert_eq!(with(Some(own)).overridden_by(&listed).expect("a request").policy, listed.policy);
}
