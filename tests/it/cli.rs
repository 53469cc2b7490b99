//! The binary as people run it: what it prints, its exit codes, and every bad input it must survive.
//!
//! Most run on the CPU reference, which every machine has. Those that need an adapter run where there is one, and fail where
//! `SECATEUR_REQUIRE` names one that is missing.
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::command::{F16, Ran, done, fails, json, run, secateur};
use secateur::trace::{StopReason, Trace};
use serde_json::Value;

/// `secateur run` on the CPU with the f16 fixture.
#[track_caller]
fn cpu(args: &[&str]) -> Ran {
    run(&[&["run", "--device", "cpu", "--model", F16][..], args].concat())
}

/// A copy of the fixture that a test may break.
fn broken(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(Path::new(F16).join(name), dir.path().join(name)).expect("copied");
    }
    change(dir.path());
    dir
}

fn edit(file: PathBuf, change: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(&file).expect("read");
    let changed = change(text.clone());
    assert_ne!(text, changed, "the edit does something");
    std::fs::write(file, changed).expect("written");
}

#[track_caller]
fn on(dir: &Path, args: &[&str]) -> Ran {
    let dir = dir.to_str().expect("UTF-8");
    run(&[&["run", "--device", "cpu", "--max-new-tokens", "4", "--model", dir][..], args].concat())
}

fn golden(name: &str) -> Vec<u32> {
    let file = std::fs::read(Path::new(F16).join("golden.safetensors")).expect("the fixture");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("readable");
    let bytes = tensors.tensor(name).expect(name).data();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4"))).collect()
}

fn listed(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn ids(v: &Value) -> Vec<u32> {
    serde_json::from_value(v["ids"].clone()).expect("ids")
}

fn trace_of(file: &Path) -> Trace {
    Trace::from_json(&std::fs::read_to_string(file).expect("the trace was written")).expect("a trace")
}

// ------------------------------------------------------------------------------------------------------------ running

#[test]
fn golden_ids_on_the_cpu_and_the_shape_of_json() {
    let prompt = golden("prompt.64.ids");
    let args = ["--ids", &listed(&prompt), "--kv", "f32", "--policy", "full", "--ignore-eos", "--json"];
    let v = json(&cpu(&[&args[..], &["--max-new-tokens", "64"]].concat()));
    assert_eq!(ids(&v), golden("greedy.ids"));
    assert_eq!(serde_json::from_value::<Vec<u32>>(v["prompt_ids"].clone()).unwrap(), prompt);
    let keys: Vec<&String> = v.as_object().unwrap().keys().collect();
    assert_eq!(
        keys.into_iter().map(String::as_str).collect::<Vec<_>>().join(" "),
        "secateur model device settings prompt_ids ids text stop_reason timings bytes totals probes probability_missed"
    );
    assert_eq!(v["stop_reason"], "max_new_tokens");
    assert_eq!((v["device"]["backend"].as_str(), v["probes"].as_u64()), (Some("cpu"), Some(0)));
    assert!(v["timings"]["decode_us"].as_u64().unwrap() > 0 && v["bytes"]["kv"].as_u64().unwrap() > 0);
    assert!(!v["text"].as_str().unwrap().is_empty());
    assert_eq!(v["totals"]["generated_tokens"], 64);
}

/// Every adapter of this machine, not the CPU.
fn adapters() -> Vec<String> {
    let v: Value = serde_json::from_str(&run(&["devices", "--json"]).out).expect("JSON");
    let of = |d: &Value| (d["backend"] != "cpu").then(|| d["name"].as_str().unwrap().to_string());
    let mut names: Vec<String> = v["devices"].as_array().unwrap().iter().filter_map(of).collect();
    names.dedup();
    let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default().to_lowercase().replace("lavapipe", "llvmpipe");
    for name in required.split(',').filter(|n| !n.is_empty() && *n != "cpu") {
        assert!(
            names.iter().any(|n| n.to_lowercase().contains(name)),
            "required adapter `{name}` is missing: {names:?}"
        );
    }
    names
}

#[test]
fn greedy_ids_on_every_adapter_are_the_goldens() {
    let prompt = listed(&golden("prompt.64.ids"));
    let adapters = adapters();
    for name in &adapters {
        let args = ["run", "--model", F16, "--device", name, "--ids", &prompt, "--kv", "f32", "--policy", "full"];
        let v = json(&run(&[&args[..], &["--ignore-eos", "--max-new-tokens", "64", "--json", "--quiet"]].concat()));
        assert_eq!(ids(&v), golden("greedy.ids"), "{name}");
        assert!(v["bytes"]["in_use"].as_u64() > Some(0) && v["bytes"]["reserved"].as_u64() > Some(0), "{name}: {v}");
    }
    if adapters.is_empty() {
        println!("SKIPPED: no adapter on this machine");
    }
}

#[test]
fn text_goes_to_stdout_and_the_rest_to_stderr() {
    let ran = cpu(&["--max-new-tokens", "30", "Wait, why?"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let v = json(&cpu(&["--max-new-tokens", "30", "--json", "Wait, why?"]));
    assert_eq!(ran.out.trim_end_matches('\n'), v["text"].as_str().unwrap().trim_end_matches('\n'));
    for part in [
        "what it kept",
        "30 generated, 30 of them thinking",
        "tokens cached, 0 evicted",
        "tok/s",
        "--max-new-tokens reached",
    ] {
        assert!(ran.err.contains(part), "{part:?} is missing from:\n{}", ran.err);
    }
    assert!(!ran.err.contains('\x1b') && !ran.out.contains("\x1b[2m"), "no colours outside a terminal");
    let quiet = cpu(&["--max-new-tokens", "30", "--quiet", "Wait, why?"]);
    assert_eq!((quiet.code, quiet.err.as_str(), quiet.out), (Some(0), "", ran.out));
}

#[test]
fn the_example_needs_no_arguments_and_shows_what_was_kept() {
    let ran = run(&["run", "--device", "cpu", "--max-new-tokens", "20"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("what was kept of the thinking") && ran.err.contains("built-in on CPU twin"),
        "{}",
        ran.err
    );
}

#[test]
fn policies_prune_what_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    // 120 thinking tokens, probes after 40, 80 and 120; of 120 a budget of a half and a window of 8 keep 60.
    let with = |extra: &[&str]| {
        let base =
            ["--ids", "318,198", "--max-new-tokens", "121", "--ignore-eos", "--probe-every", "40", "--window", "8"];
        let file = ["--json", "--trace", file.to_str().unwrap()];
        let v = json(&cpu(&[&base[..], &file, extra].concat()));
        let trace = trace_of(Path::new(file[2]));
        assert_eq!(ids(&v), trace.tokens.iter().map(|t| t.id).collect::<Vec<_>>());
        assert_eq!(v["probes"].as_u64(), Some(trace.probes.len() as u64));
        (ids(&v), trace)
    };
    let (full, trace) = with(&["--policy", "full"]);
    assert!(trace.probes.is_empty() && trace.totals.evicted_tokens == 0);
    let thinking = trace.totals.thinking_tokens;
    assert!(thinking >= 80, "the fixture thinks on: {thinking}");

    // A budget that keeps all: the probe leaves no mark.
    let (kept, trace) = with(&["--policy", "think-clearly", "--budget", "ratio:1.0"]);
    assert_eq!(kept, full);
    assert!(trace.probes.len() >= 2 && trace.totals.evicted_tokens == 0);

    for policy in ["random", "think-token"] {
        let options = ["--policy", policy, "--budget", "ratio:0.5", "--seed", "7"];
        let (first, trace) = with(&options);
        assert!(trace.probes.len() >= 2, "{policy}");
        let mut gone = std::collections::HashSet::new();
        for probe in &trace.probes {
            assert_eq!(probe.cached_before - probe.evicted.len(), probe.cached_after, "{policy}");
            assert!(probe.evicted.iter().all(|&p| p >= 2 && gone.insert(p)), "{policy}: the question stays");
            // One long step may be protected as the step being written; the budget holds otherwise.
            let target = probe.thinking_tokens / 2;
            let kept = probe.thinking_tokens - gone.len();
            assert_eq!(kept, probe.infeasible.as_ref().map_or(target, |i| i.kept), "{policy}: {probe:?}");
        }
        assert_eq!(trace.totals.evicted_tokens, gone.len());
        let (again, second) = with(&options);
        assert_eq!(first, again, "{policy}: same seed, same ids");
        let cut = |t: &Trace| t.probes.iter().map(|p| p.evicted.clone()).collect::<Vec<_>>();
        assert_eq!(cut(&trace), cut(&second), "{policy}: same seed, same plan");
    }
}

#[test]
fn the_summary_the_trace_and_the_totals_agree() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let run = |args: &[&str]| {
        let base =
            ["run", "--device", "cpu", "--probe-every", "24", "--window", "16", "--trace", file.to_str().unwrap()];
        let ran = run(&[&base[..], args].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        (ran.err, trace_of(&file))
    };
    // Ended by the model, while steps past the end are under way; by a limit; without an eviction; by a full context.
    for args in [
        &["--budget", "ratio:0.6"][..],
        &["--budget", "ratio:0.6", "--max-new-tokens", "61"],
        &["--policy", "full"],
        &["--ignore-eos", "--max-new-tokens", "1"],
        &["--ignore-eos", "--budget", "ratio:0.6", "--context", "120"],
    ] {
        let (err, trace) = run(args);
        let t = trace.totals;
        assert_eq!(t.final_cached + t.evicted_tokens, t.forwarded(), "{args:?}: {t:?}");
        assert_eq!(t.forwarded(), trace.prompt_ids.len() + trace.tokens.len() - 1, "{args:?}");
        assert!(t.final_cached <= t.peak_cached && t.peak_cached <= t.forwarded() + 40, "{args:?}: {t:?}");
        assert_eq!(t.evicted_tokens, trace.probes.iter().map(|p| p.evicted.len()).sum::<usize>());
        let (kept, of, gone, probes) = (t.final_cached, t.forwarded(), t.evicted_tokens, trace.probes.len());
        let said = format!("{kept} of {of} tokens cached, {gone} evicted by {probes} probe");
        assert!(err.contains(&said) && err.contains(&format!("at most {} slots", t.peak_cached)), "{said}:\n{err}");
    }
    let (err, trace) = run(&["--budget", "ratio:0.6", "--scope", "layer"]);
    assert!(trace.totals.evicted_tokens > 0 && err.contains("tokens cached by the layer that has most"), "{err}");
    // A probe may take from each layer what another keeps.
    let said = format!("{} evicted from every layer by {} probes", trace.totals.evicted_tokens, trace.probes.len());
    assert!(err.contains(&said) && err.contains("thinking tokens from every layer; cached "), "{said}:\n{err}");
}

#[test]
fn two_runs_write_the_same_trace_but_for_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let trace = |name: &str| {
        let file = dir.path().join(name);
        let args =
            ["--max-new-tokens", "60", "--probe-every", "25", "--window", "4", "--trace", file.to_str().unwrap()];
        assert_eq!(cpu(&[&args[..], &["--quiet", "So?"]].concat()).code, Some(0));
        let trace = trace_of(&file);
        assert_eq!(Trace::from_json(&trace.to_json().unwrap()).unwrap(), trace);
        trace
    };
    let (a, b) = (trace("a"), trace("b"));
    assert!(!a.probes.is_empty());
    assert_eq!((&a.tokens, &a.prompt_ids, a.probes.len()), (&b.tokens, &b.prompt_ids, b.probes.len()));
    assert_eq!(a.tokens.len(), 60);
}

#[test]
fn a_prompt_may_come_from_stdin() {
    let with = |more: &[&str], bytes: &[u8]| {
        let mut child = secateur(&["run", "--device", "cpu", "--model", F16, "--max-new-tokens", "8", "--json"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        child.stdin.take().unwrap().write_all(bytes).expect("it reads its stdin");
        done(child.wait_with_output().unwrap())
    };
    let feed = |bytes: &[u8]| with(&["-"], bytes);
    let piped = json(&feed("Why is θ so?\n".as_bytes()));
    let given = json(&cpu(&["--max-new-tokens", "8", "--json", "Why is θ so?"]));
    assert_eq!((&piped["prompt_ids"], &piped["ids"]), (&given["prompt_ids"], &given["ids"]));
    // Whatever wrote the text: Windows' line ends, a byte order mark, UTF-16. `-` may be left out.
    let utf16 = "\u{feff}Why is θ so?\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for bytes in ["Why is θ so?\r\n".as_bytes(), "\u{feff}Why is θ so?".as_bytes(), &utf16] {
        assert_eq!(json(&feed(bytes))["prompt_ids"], given["prompt_ids"]);
        assert_eq!(json(&with(&[], bytes))["prompt_ids"], given["prompt_ids"]);
    }
    fails(&with(&[], b""), 2, &["no prompt", "- for stdin"]);
    let dashed = json(&cpu(&["--max-new-tokens", "8", "--json", "-5 + 3?"]));
    assert_eq!(dashed["prompt_ids"], json(&feed(b"-5 + 3?"))["prompt_ids"]);
    fails(&feed(b"caf\xe9 ?"), 2, &["not UTF-8", "byte 3"]);
    fails(&feed(b"\n"), 2, &["the prompt is empty"]);
    fails(&feed(&vec![b'a'; (64 << 20) + 1]), 2, &["exceeds 64.0 MiB", "stdin", "at most 64.0 MiB"]);
}

#[test]
fn a_system_prompt_and_no_thinking_reach_the_template() {
    // The fixture's template opens <think>; this one asks, as Qwen3's does.
    const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if enable_thinking is defined \
        and not enable_thinking %}<think></think>{% else %}<think>{% endif %}";
    let dir = broken(|dir| std::fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap());
    let run = |args: &[&str]| json(&on(dir.path(), &[args, &["--json"]].concat()));
    let raw = |text: &str| run(&["--raw", text])["prompt_ids"].clone();
    assert_eq!(run(&["Hi"])["prompt_ids"], raw("user:Hi;<think>"));
    assert_eq!(run(&["--system", "S", "Hi"])["prompt_ids"], raw("system:S;user:Hi;<think>"));
    let quick = run(&["--no-think", "--probe-every", "1", "Hi"]);
    assert_eq!(quick["prompt_ids"], raw("user:Hi;<think></think>"));
    assert_eq!((quick["probes"].as_u64(), quick["totals"]["thinking_tokens"].as_u64()), (Some(0), Some(0)));
}

#[test]
fn templates_that_are_missing_or_raise_are_explained() {
    let without = broken(|dir| std::fs::remove_file(dir.join("tokenizer_config.json")).unwrap());
    fails(&on(without.path(), &["x"]), 1, &["no chat template", "chat_template.jinja", "--raw"]);
    assert_eq!(on(without.path(), &["--raw", "x"]).code, Some(0));
    // Told before gigabytes are read: with the weights gone as well, the template is what is missed.
    let unread = |change: fn(&Path)| {
        broken(|dir| {
            std::fs::remove_file(dir.join("model.safetensors")).unwrap();
            change(dir);
        })
    };
    let no_template = unread(|dir| std::fs::remove_file(dir.join("tokenizer_config.json")).unwrap());
    fails(&on(no_template.path(), &["x"]), 1, &["no chat template"]);
    fails(&on(no_template.path(), &["--raw", "x"]), 1, &["safetensors"]);
    let no_tokenizer = unread(|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    fails(&on(no_tokenizer.path(), &["x"]), 1, &["no tokenizer.json"]);
    fails(&on(unread(|_| ()).path(), &["--no-think", "x"]), 2, &["has no switch for thinking"]);
    let template =
        |text: &'static str| broken(move |dir| std::fs::write(dir.join("chat_template.jinja"), text).unwrap());
    let raises = template("{{ raise_exception('no system prompts, please') }}");
    fails(&on(raises.path(), &["x"]), 2, &["the chat template refuses these messages", "no system prompts, please"]);
    let fails_inside = template("{{ messages[0].content.nothing() }}");
    fails(&on(fails_inside.path(), &["x"]), 1, &["the chat template fails", "chat_template.jinja", "--raw"]);
    let malformed = template("{% if %}");
    fails(&on(malformed.path(), &["x"]), 1, &["the chat template is malformed", "chat_template.jinja"]);
}

#[test]
fn the_context_ends_a_run_in_order() {
    // The probes that no longer fit are left out.
    let v = json(&cpu(&["--ids", "318,1,2", "--context", "60", "--probe-every", "10", "--ignore-eos", "--json"]));
    assert_eq!(v["stop_reason"], "context_full");
    assert_eq!(v["totals"]["generated_tokens"], 60 - 3 + 1);
    let none = json(&cpu(&["--ids", "1", "--max-new-tokens", "0", "--json"]));
    assert_eq!((ids(&none).len(), &none["stop_reason"]), (0, &"max_new_tokens".into()));
    let huge = usize::MAX.to_string();
    let all = ["--max-new-tokens", &huge, "--window", &huge, "--probe-every", &huge, "--context", &huge];
    let v = json(&cpu(&[&all[..], &["--budget", "tokens:0", "--ids", "7", "--json", "--context", "20"]].concat()));
    assert!(ids(&v).len() <= 20);
}

// ---------------------------------------------------------------------------------------------------------- bad input

#[test]
fn bad_arguments_are_refused_before_anything_is_loaded() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--policy", "best", "x"], &["unknown policy", "think-clearly", "\"best\""]),
        (&["--budget", "half", "x"], &["not a budget", "ratio:0.75"]),
        (&["--budget", "ratio:1.5", "x"], &["out of range"]),
        (&["--budget", "ratio:NaN", "x"], &["budget"]),
        (&["--budget", "share:0.1", "--policy", "random", "x"], &["no scores"]),
        (&["--probe-every", "0", "x"], &["--probe-every"]),
        (&["--context", "0", "x"], &["--context"]),
        (&["--kv", "bf16", "x"], &["--kv", "f16"]),
        (&["--max-new-tokens=-1", "x"], &["--max-new-tokens", "-1"]),
        (&["--max-new-tokens", "-1", "x"], &["--max-new-tokens", "-1"]),
        (&["--temperature", "-1", "x"], &["--temperature", "from 0 to 1000", "-1"]),
        (&["--top-p", "-0.5", "x"], &["--top-p", "above 0", "-0.5"]),
        (&["--ids", "1,x,3"], &["not a token id", "\"x\""]),
        (&["--ids", "1,-2"], &["not a token id"]),
        (&["--ids", "99999999999"], &["not a token id"]),
        (&["--ids", " , "], &["the prompt is empty"]),
        (&["--ids", "1", "text"], &["cannot be used with"]),
        (&["--ids", "1,320"], &["outside the vocabulary", "320"]),
        (&["--probe-text", "no end", "x"], &["</think>", "--probe-text"]),
        (&["--probe-text", "", "x"], &["</think>", "--probe-text", "found: no ids"]),
        (&["--model", "", "x"], &["no model is named"]),
        (&["--layers", "0-", "x"], &["not a list of layers", "\"0-\""]),
        (&["--temperature", "NaN", "x"], &["--temperature", "found: NaN"]),
        (&[""], &["the prompt is empty"]),
        (&["  \n"], &["the prompt is empty"]),
        (&[], &["no prompt, and stdin is not a terminal to chat on", "--ids"]),
        (&["--json"], &["no prompt, and a chat has no --json"]),
        (&["--trace", "t.json"], &["no prompt, and a chat has no --trace"]),
        (&["--system", "S", "--raw", "x"], &["cannot be used with"]),
        (&["--no-think", "--ids", "1"], &["cannot be used with"]),
        (&["--no-think", "x"], &["has no switch for thinking", "enable_thinking"]),
        (&["--nonsense"], &["--nonsense"]),
    ];
    for (args, parts) in cases {
        fails(&cpu(args), 2, parts);
    }
    fails(&run(&[]), 2, &["Usage"]);
}

#[test]
fn a_prompt_over_the_context_is_refused() {
    let long = listed(&vec![7; 65]);
    fails(&cpu(&["--context", "64", "--ids", &long]), 2, &["longer than the context", "64 tokens", "65 tokens"]);
    let beyond = listed(&vec![7; 4097]);
    fails(&cpu(&["--context", "100000", "--ids", &beyond]), 2, &["at most 4096"]);
}

#[test]
fn what_the_model_cannot_do_is_refused_before_its_weights_are_read() {
    // There are none: whoever reads them complains of that.
    let dir = broken(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    let long = listed(&vec![7; 65]);
    let cases: &[(&[&str], &[&str])] = &[
        (&["--layers", "0-99", "x"], &["the model has no such layer", "--layers", "layers 0 to 3", "found: 4"]),
        (&["--layers", "0", "--scope", "layer", "x"], &["--layers", "all, with --scope layer"]),
        (&["--context", "4097", "x"], &["does not support this context length", "--context", "at most 4096", "4097"]),
        (&["--context", "64", "--ids", &long], &["longer than the context", "64 tokens", "65 tokens"]),
        (&["--ids", "1,320"], &["outside the vocabulary", "320"]),
        (&["--probe-text", "no end", "x"], &["</think>", "--probe-text"]),
        (&["--top-p", "2", "x"], &["--top-p"]),
    ];
    for (args, parts) in cases {
        fails(&on(dir.path(), args), 2, parts);
    }
    fails(&on(dir.path(), &["x"]), 1, &["safetensors"]);
    // What suits no model is refused before there is one.
    let none = run(&["run", "--model", "/no/such/dir", "--layers", "0", "--scope", "head", "x"]);
    fails(&none, 2, &["all, with --scope head"]);
}

#[test]
fn bad_models_are_refused_by_name() {
    fails(&run(&["run", "--device", "cpu", "--model", "/no/such/dir", "x"]), 1, &["not a directory", "/no/such/dir"]);
    fails(&on(Path::new("no/such@../name"), &["x"]), 1, &["not a directory", "on the hub is named ORG/NAME"]);
    fails(&on(&Path::new(F16).join("config.json"), &["x"]), 1, &["not a directory"]);
    let empty = tempfile::tempdir().unwrap();
    fails(&on(empty.path(), &["x"]), 1, &["config.json"]);

    let weights = |change: fn(Vec<u8>) -> Vec<u8>| {
        broken(|dir| {
            let file = dir.join("model.safetensors");
            std::fs::write(&file, change(std::fs::read(&file).unwrap())).unwrap();
        })
    };
    let hostile = [
        weights(|b| b[..b.len() - 100].to_vec()),
        weights(|b| b[..5].to_vec()),
        weights(|_| Vec::new()),
        weights(|b| [&u64::MAX.to_le_bytes()[..], &b[8..]].concat()),
        weights(|b| [&(1u64 << 40).to_le_bytes()[..], &b[8..]].concat()),
        weights(|b| [&b[..8], &vec![b'['; b.len() - 8][..]].concat()),
    ];
    for dir in &hostile {
        fails(&on(dir.path(), &["x"]), 1, &["model.safetensors"]);
    }

    let config = |from: &'static str, to: &'static str| {
        broken(|dir| edit(dir.join("config.json"), |text| text.replace(from, to)))
    };
    let cases = [
        (config("Qwen2ForCausalLM", "Gpt9ForCausalLM"), "Gpt9"),
        (config("\"hidden_size\": 96", "\"hidden_size\": 104"), "hidden_size"),
        (config("\"hidden_size\": 96,", ""), "hidden_size"),
        (config("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5"), "layers.4"),
        (config("\"vocab_size\": 320", "\"vocab_size\": 321"), "embed_tokens"),
        (config("{", "{{"), "not valid JSON"),
    ];
    for (dir, part) in &cases {
        fails(&on(dir.path(), &["x"]), 1, &[part]);
    }
}

#[test]
fn ids_need_no_tokenizer_and_text_does() {
    let dir = broken(|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    fails(&on(dir.path(), &["x"]), 1, &["no tokenizer.json", "--ids"]);
    let v = json(&on(dir.path(), &["--ids", "1,2,3", "--json"]));
    assert_eq!(ids(&v).len(), 4);
    assert_eq!(ids(&v), ids(&json(&on(Path::new(F16), &["--ids", "1,2,3", "--json"]))));
    // Asked for by name, a policy that reads text is refused.
    let asked = on(dir.path(), &["--ids", "1", "--policy", "think-clearly"]);
    fails(&asked, 1, &["think-clearly reads text"]);
    assert_eq!(on(dir.path(), &["--ids", "1", "--policy", "random", "--probe-every", "2"]).code, Some(0));
}

#[test]
fn a_tokenizer_that_splits_think_close_is_refused_for_think_clearly() {
    let dir = broken(|dir| edit(dir.join("tokenizer.json"), |text| text.replace("</think>", "</thonk>")));
    let asked = on(dir.path(), &["--policy", "think-clearly", "x"]);
    fails(&asked, 2, &["no single </think>", "--policy random"]);
    // By default it runs as any model does, and says so.
    let ran = on(dir.path(), &["x"]);
    assert!(ran.code == Some(0) && ran.err.contains("no single </think>: nothing is pruned"), "{}", ran.err);
    assert_eq!(on(dir.path(), &["--policy", "full", "x"]).code, Some(0));
}

#[test]
fn files_that_cannot_be_written_are_found_out_before_the_run() {
    let ran = cpu(&["--max-new-tokens", "4", "--trace", "/no/such/dir/trace.json", "x"]);
    fails(&ran, 1, &["cannot be written", "/no/such/dir/trace.json", "make its folder first"]);
    // Before the weights are read.
    let dir = broken(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    let trace = dir.path().to_str().unwrap();
    fails(&on(dir.path(), &["--trace", trace, "x"]), 1, &["cannot be written", "a directory"]);
    fails(&on(dir.path(), &["--trace", "/no/such/..", "x"]), 1, &["cannot be written", "no name of a file"]);
}

#[test]
fn an_earlier_trace_stays_until_there_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let trace = file.to_str().unwrap();
    std::fs::write(&file, "earlier").unwrap();
    let weightless = broken(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    for (refused, code) in [
        (cpu(&["--trace", trace, "--policy", "best", "x"]), 2),
        (cpu(&["--trace", trace, ""]), 2),
        (cpu(&["--trace", trace, "--context", "3", "--ids", "1,2,3,4"]), 2),
        (cpu(&["--trace", trace, "--layers", "0-99", "x"]), 2),
        (run(&["run", "--trace", trace, "--device", "cpu", "--model", "/no/such/dir", "x"]), 1),
        (on(weightless.path(), &["--trace", trace, "x"]), 1),
        (run(&["run", "--trace", trace, "--device", "voodoo2", "--model", F16, "x"]), 1),
    ] {
        assert_eq!(refused.code, Some(code), "{}", refused.err);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "earlier", "{}", refused.err);
    }
    assert_eq!(cpu(&["--trace", trace, "--max-new-tokens", "2", "x"]).code, Some(0));
    assert_eq!(trace_of(&file).tokens.len(), 2);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn an_unknown_device_is_refused_with_what_there_is() {
    let ran = run(&["run", "--model", F16, "--device", "voodoo2", "x"]);
    assert!(ran.code == Some(1) && ran.out.is_empty(), "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("voodoo2") || ran.err.contains("no GPU adapter"), "{}", ran.err);
    // Nothing is a part of every name, and names none.
    let ran = run(&["run", "--model", F16, "--device", "", "x"]);
    assert!(ran.code == Some(1) && ran.out.is_empty(), "{}{}", ran.out, ran.err);
}

#[cfg(target_os = "linux")]
#[test]
fn without_an_adapter_it_names_the_package_and_the_cpu() {
    let bare = |args: &[&str]| {
        let mut command = secateur(args);
        for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES"] {
            command.env(name, "/nonexistent.json");
        }
        // EGL without glvnd has no such variable: no display, no driver directory.
        command.env("LIBGL_DRIVERS_PATH", "/nonexistent").env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        done(command.output().unwrap())
    };
    fails(&bare(&["run", "x", "--device", "auto"]), 1, &["no GPU adapter", "mesa-vulkan-drivers", "--device cpu"]);
    let devices = bare(&["devices"]);
    assert_eq!(devices.code, Some(0));
    assert!(devices.out.contains("CPU twin") && devices.err.contains("mesa-vulkan-drivers"), "{}", devices.err);
    assert_eq!(bare(&["run", "x", "--device", "cpu", "--max-new-tokens", "2"]).code, Some(0));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = secateur(&["run", "--device", "cpu", "--model", F16, "--ignore-eos", "--quiet", "x"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = done(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}

#[cfg(unix)]
#[test]
fn the_first_signal_ends_with_the_summary_and_the_trace() {
    // Ctrl-C, `kill` or `timeout`, a terminal that was closed.
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        ends_in_order(signal, code);
    }
}

#[cfg(unix)]
fn ends_in_order(signal: &str, code: i32) {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let args = ["run", "--device", "cpu", "--model", F16, "--ignore-eos", "--max-new-tokens", "4000"];
    let mut child = secateur(&[&args[..], &["--trace", file.to_str().unwrap(), "x"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first text: the run is under way.
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{err}");
    assert!(err.contains("what it kept") && err.contains("interrupted") && !err.contains("panicked"), "{err}");
    let trace = trace_of(&file);
    assert_eq!(trace.stop_reason, StopReason::Cancelled);
    assert!(!trace.tokens.is_empty() && trace.tokens.len() < 4000);
}

// ----------------------------------------------------------------------------------------------- devices, conformance

#[test]
fn recording_every_head_changes_nothing_else() {
    const QUESTION: &str =
        "We count modulo 10. #1 f equals 4. #2 d is f plus 5. #3 k equals 8. #4 g is d minus k. What is g?";
    let dir = tempfile::tempdir().unwrap();
    let trace = |name: &str, more: &[&str]| {
        let file = dir.path().join(name);
        let args = ["run", "--device", "cpu", "--probe-every", "24", "--window", "16", "--budget", "ratio:0.6"];
        let ran = run(&[&args[..], &["--trace", file.to_str().unwrap()], more, &[QUESTION]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        trace_of(&file)
    };
    let (plain, heads) = (trace("plain", &[]), trace("heads", &["--trace-heads"]));
    assert_eq!(plain.tokens, heads.tokens);
    assert!(plain.probes.len() >= 2 && plain.totals.evicted_tokens > 0);
    for (plain, heads) in plain.probes.iter().zip(&heads.probes) {
        assert_eq!((&plain.evicted, &plain.steps), (&heads.evicted, &heads.steps));
        let (layers, map) = (plain.attention.as_ref().expect("a map"), heads.attention.as_ref().expect("a map"));
        assert_eq!((&layers.steps, &layers.layers, &layers.heads), (&map.steps, &map.layers, &None));
        let heads = map.heads.as_ref().expect("heads");
        assert!(heads.len() == map.layers.len() && heads[0].len() > 1, "heads of every layer");
        for (row, of_layer) in map.layers.iter().zip(heads) {
            for (column, mean) in row.iter().map(|mean| mean.expect("cached")).enumerate() {
                let n = of_layer.len() as f32;
                let of_heads = of_layer.iter().map(|head| head[column].expect("cached")).sum::<f32>() / n;
                assert!(
                    (mean - of_heads).abs() <= 0.01 * mean.max(of_heads) + f32::MIN_POSITIVE,
                    "{mean} is not the mean {of_heads} of its heads"
                );
            }
        }
        // The importance of a step is the mean over the layers.
        for (column, step) in plain.steps.iter().filter(|s| s.cached > 0).enumerate() {
            let mean =
                layers.layers.iter().map(|row| row[column].expect("cached")).sum::<f32>() / layers.layers.len() as f32;
            assert!((mean - step.importance.unwrap()).abs() <= 0.01 * mean, "{mean}, {step:?}");
        }
    }
    // Where every head keeps its own tokens, rows have gaps.
    let apart = trace("apart", &["--trace-heads", "--scope", "head"]);
    let maps: Vec<_> = apart.probes.iter().map(|p| p.attention.as_ref().expect("a map")).collect();
    assert!(maps.iter().all(|map| map.layers.iter().all(|row| row.len() == map.steps.len())));
    let gaps = |map: &&secateur::trace::AttentionMap| {
        map.heads.iter().flatten().flatten().flatten().filter(|value| value.is_none()).count()
    };
    assert!(gaps(&maps[0]) == 0 && maps.iter().map(gaps).sum::<usize>() > 0, "no head lost a step that another has");
    assert!(apart.probes.iter().all(|p| p.sets.len() == 2 * maps[0].layers.len()), "two KV heads a layer");
    fails(&cpu(&["--trace-heads", "x"]), 2, &["--trace"]);
}

/// What the binary writes to a terminal of 60 columns and 20 lines.
#[cfg(target_os = "linux")]
fn on_a_terminal(args: &str, environment: &[(&str, &str)]) -> String {
    // `script` of util-linux runs a command on a terminal of its own.
    let line = format!("stty cols 60 rows 20 && exec {} run --device cpu {args}", env!("CARGO_BIN_EXE_secateur"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    // Kept open and silent: the end of its input would end the terminal.
    command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("util-linux's script");
    let stdin = child.stdin.take();
    let output = child.wait_with_output().expect("it ends");
    drop(stdin);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_shows_what_was_cut_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let question =
        "'We count modulo 10. #1 f equals 4. #2 d is f plus 5. #3 k equals 8. #4 g is d minus k. What is g?'";
    let options = format!("--probe-every 24 --window 16 --budget ratio:0.6 --trace {} {question}", file.display());
    let written = on_a_terminal(&options, &[]);
    let trace = trace_of(&file);
    let mut terminal = avt::Terminal::with_scrollback(60, 20, None).unwrap();
    terminal.feed(written.as_str());
    let screen = terminal.primary_screen();
    let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let text = bare(&screen.text().concat());
    let expected = bare(&trace.tokens.iter().map(|t| t.text.as_str()).collect::<String>().replace("<|end|>", ""));
    assert_eq!(text.matches(&expected).count(), 1, "the text, once and whole:\n{}", screen.text().join("\n"));
    // Everything fits on the screen: all that was cut is struck.
    let evicted = |i: &usize| trace.probes.iter().any(|p| p.evicted.contains(&((trace.prompt_ids.len() + i) as u32)));
    let cut: String = (0..trace.tokens.len()).filter(evicted).map(|i| trace.tokens[i].text.as_str()).collect();
    let cells = screen.all_lines().flat_map(|line| line.cells());
    let struck: String = cells.filter(|c| c.pen().is_strikethrough()).map(avt::Cell::char).collect();
    assert!(!cut.is_empty() && bare(&struck) == bare(&cut), "struck {struck:?}, cut {cut:?}");
    // The last two are the last of the text and the end, which has none.
    let last = trace.totals.prompt_tokens + trace.totals.generated_tokens - 2;
    assert!(written.contains(&format!("of {last} tokens · KV ")), "no status line");
    assert!(!screen.text().concat().contains("· KV "), "the status line is left standing");

    // Where it may not be steered, nothing but text comes, and notes between its lines.
    for (more, environment) in [("--plain", &[][..]), ("", &[("NO_COLOR", "1")]), ("", &[("TERM", "dumb")])] {
        let written = on_a_terminal(&format!("{more} --max-new-tokens 30 {options}"), environment);
        let moves = written.match_indices("\x1b[").filter(|(at, _)| {
            !written[at + 2..].trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
        });
        // indicatif's bar while loading may clear its own line.
        let loaded = written.find("loaded in").expect("a note");
        let moves: Vec<_> = moves.filter(|(at, _)| *at > loaded).collect();
        assert!(moves.is_empty(), "{more} {environment:?}: {moves:?}");
        assert!(written.contains("[probe 1] evicted"), "{more} {environment:?}: {written}");
    }
}

#[test]
fn report_makes_a_page_of_one_trace_or_two_and_refuses_others() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/trace.json");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let page = path("report.html");
    for traces in [&[fixture][..], &[fixture, fixture]] {
        let ran = run(&[&["report"], traces, &["-o", &page]].concat());
        assert!(ran.code == Some(0) && ran.out.is_empty() && ran.err.contains("report.html"), "{}", ran.err);
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(html.starts_with("<!doctype html>") && html.matches("\"name\":\"trace.json\"").count() == traces.len());
    }
    let good = std::fs::read_to_string(fixture).unwrap();
    std::fs::write(path("newer"), good.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
    std::fs::write(path("other"), "[]").unwrap();
    std::fs::write(path("binary"), [0xff, 0xfe]).unwrap();
    fails(&run(&["report", &path("newer"), "-o", &page]), 2, &["another schema version", "newer", "found: 2"]);
    fails(&run(&["report", &path("other"), "-o", &page]), 2, &["not a secateur trace", "other"]);
    fails(&run(&["report", &path("binary"), "-o", &page]), 1, &["cannot be read", "binary"]);
    fails(&run(&["report", &path("missing"), "-o", &page]), 1, &["cannot be read", "missing"]);
    fails(&run(&["report", fixture, "-o", "/no/such/dir/r.html"]), 1, &["cannot be written", "/no/such/dir/r.html"]);
    std::fs::write(path("trace"), &good).unwrap();
    let over = run(&["report", fixture, &path("trace"), "-o", &path("trace")]);
    fails(&over, 2, &["over its trace", "--output", &path("trace")]);
    assert_eq!(std::fs::read_to_string(path("trace")).unwrap(), good);
    let page_before = std::fs::read_to_string(&page).unwrap();
    fails(&run(&["report", &path("other"), "-o", &page]), 2, &["not a secateur trace"]);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), page_before, "an earlier page stays");
    fails(&run(&["report"]), 2, &["FILE.json"]);
    fails(&run(&["report", fixture, fixture, fixture]), 2, &["unexpected"]);
}

#[test]
fn devices_lists_the_cpu_last() {
    let ran = run(&["devices", "--json"]);
    let v = json(&ran);
    let devices = v["devices"].as_array().unwrap();
    assert_eq!(devices.last().unwrap()["backend"], "cpu");
    assert!(devices.iter().all(|d| d.get("unfit").is_some() && d["max_binding_bytes"].is_u64()));
    let table = run(&["devices"]);
    assert!(table.out.lines().count() == devices.len() + 1 && table.out.contains("CPU twin"), "{}", table.out);
}

#[test]
fn conformance_counts_what_ran_and_fails_on_what_is_missing() {
    let v = json(&run(&["conformance", "--device", "cpu", "--require", "cpu", "--json"]));
    let report = &v["reports"][0];
    let cases = secateur::kernels::cases::all().len() as u64;
    assert_eq!((report["passed"].as_u64(), report["failed"].as_u64()), (Some(cases), Some(0)));
    let ran = run(&["conformance", "--device", "cpu", "--require", "cpu,voodoo2"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("MISSING voodoo2") && ran.out.contains("attention_row"), "{}", ran.out);
    assert_eq!(run(&["conformance", "--device", "voodoo2"]).code, Some(1));
}

#[test]
fn bench_measures_and_adds_up() {
    let args = ["bench", "--device", "cpu", "--model", F16, "--prompt", "16,300", "--decode", "9", "--repeat", "2"];
    let v = json(&run(&[&args[..], &["--json"]].concat()));
    let runs = v["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|r| r["prompt"].as_u64().unwrap()).collect::<Vec<_>>(), [16, 300]);
    let copy = v["copy"]["bytes_per_second"]["median"].as_f64().unwrap();
    assert!(v["copy"]["buffer_bytes"].as_u64().unwrap() >= 64 << 20 && copy > 0.0);
    for r in runs {
        for spread in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
            let [min, median, max] = ["min", "median", "max"].map(|key| r[spread][key].as_f64().unwrap());
            assert!(0.0 < min && min <= median && median <= max && max.is_finite(), "{spread}: {min} {median} {max}");
        }
        // 4 layers, keys and values, 3 KV heads of 32 values, 2 bytes each; the mean step sees prompt + 5 slots.
        let slot = 4 * 2 * 3 * 32 * 2;
        assert_eq!(r["kv_bytes_per_token"].as_u64().unwrap(), (r["prompt"].as_u64().unwrap() + 5) * slot);
        let bytes = r["weight_bytes_per_token"].as_f64().unwrap() + r["kv_bytes_per_token"].as_f64().unwrap();
        let rate = bytes * r["decode_tokens_per_second"]["median"].as_f64().unwrap();
        assert!((r["decode_bytes_per_second"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9);
        assert!((r["decode_bandwidth_fraction"].as_f64().unwrap() / (rate / copy) - 1.0).abs() < 1e-9);
        // Untied: the embedding is not read as a whole.
        assert!(r["weight_bytes_per_token"].as_u64() < v["weight_bytes"].as_u64());
    }
    // Sequences side by side share the weights that a step reads, not the cache.
    let side = ["bench", "--device", "cpu", "--model", F16, "--prompt", "4", "--decode", "3", "--sequences", "1,3"];
    let v = json(&run(&[&side[..], &["--repeat", "1", "--json"]].concat()));
    let of = |i: usize, key: &str| v["runs"][i][key].as_u64().unwrap();
    assert_eq!((of(0, "sequences"), of(1, "sequences")), (1, 3));
    assert_eq!(of(1, "weight_bytes_per_token"), of(0, "weight_bytes_per_token") / 3);
    assert_eq!(of(1, "kv_bytes_per_token"), of(0, "kv_bytes_per_token"));
    let table = run(&args);
    assert!(
        table.code == Some(0) && table.out.contains("copy bandwidth") && table.out.contains("decode tok/s"),
        "{}",
        table.out
    );
    fails(&run(&["bench", "--decode", "0"]), 2, &["nothing to measure"]);
    // Without its weights: told before they are read.
    let unread = broken(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    let huge = usize::MAX.to_string();
    for (more, parts) in [
        (["--prompt", &huge], ["the lengths exceed the context", &huge]),
        (["--decode", &huge], ["the lengths exceed the context", &huge]),
        (["--sequences", &huge], ["--sequences", "at most 16384"]),
    ] {
        let args = ["bench", "--device", "cpu", "--model", unread.path().to_str().unwrap()];
        fails(&run(&[&args[..], &more].concat()), 2, &parts);
    }
    let long = ["bench", "--device", "cpu", "--model", F16, "--prompt", "5000", "--decode", "1"];
    fails(&run(&long), 2, &["the lengths exceed the context", "5000 + 1"]);
    // Neither tokenizer nor template is needed.
    let bare = broken(|dir| {
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            std::fs::remove_file(dir.join(name)).unwrap();
        }
    });
    let bare = bare.path().to_str().unwrap();
    assert_eq!(run(&["bench", "--device", "cpu", "--model", bare, "--prompt", "4", "--decode", "2"]).code, Some(0));
}

#[test]
fn inspect_says_what_a_model_is() {
    let v = json(&run(&["inspect", F16, "--json", "--context", "100,4096"]));
    assert_eq!(v["architecture"], "Qwen2ForCausalLM");
    assert_eq!((v["sizes"]["layers"].as_u64(), v["sizes"]["hidden"].as_u64()), (Some(4), Some(96)));
    let file = std::fs::read(Path::new(F16).join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let parameters: usize = tensors.tensors().iter().map(|(_, t)| t.shape().iter().product::<usize>()).sum();
    let bytes: usize = tensors.tensors().iter().map(|(_, t)| t.data().len()).sum();
    assert_eq!(v["weights"]["parameters"].as_u64(), Some(parameters as u64));
    assert_eq!(
        (v["weights"]["bytes"].as_u64(), v["weights"]["types"][0]["type"].as_str()),
        (Some(bytes as u64), Some("F16"))
    );
    assert_eq!((&v["probe"]["feasible"], &v["text"]["thinking"]), (&true.into(), &"template_opens".into()));
    assert_eq!(v["text"]["thinking_switch"], false);
    // 100 positions are rounded up to 128 slots; 4 layers, keys and values, 3 heads, 32 values.
    let kv: Vec<u64> = v["memory"].as_array().unwrap().iter().map(|m| m["kv_bytes"].as_u64().unwrap()).collect();
    assert_eq!(kv, [128 * 768 * 2, 128 * 768 * 4, 4096 * 768 * 2, 4096 * 768 * 4]);

    let table = run(&["inspect", F16]);
    for part in ["Qwen2ForCausalLM", "the template opens <think>", "possible: </think> is one token", "KV f16"] {
        assert!(table.out.contains(part), "{part:?} is missing from:\n{}", table.out);
    }
    // Without a tokenizer a model still runs.
    let wordless = broken(|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    let ran = run(&["inspect", wordless.path().to_str().unwrap()]);
    assert!(ran.code == Some(0) && ran.out.contains("problem: the model has no tokenizer.json"), "{}", ran.out);
    // A shard that the index names and nobody has.
    let sharded = broken(|dir| {
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        let index = "{\"weight_map\": {\"model.norm.weight\": \"model-00001-of-00002.safetensors\"}}";
        std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    });
    let ran = run(&["inspect", sharded.path().to_str().unwrap()]);
    assert!(ran.code == Some(1) && ran.out.contains("Qwen2ForCausalLM"), "{}", ran.out);
    assert!(ran.err.contains("model-00001-of-00002.safetensors"), "{}", ran.err);
    let bare = broken(|dir| {
        std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    });
    let ran = run(&["inspect", bare.path().to_str().unwrap(), "--json"]);
    assert!(ran.code == Some(1) && ran.err.contains("safetensors"), "without weights it is none: {}", ran.err);
    let v: Value = serde_json::from_str(&ran.out).expect("all that can be said is said");
    assert_eq!(
        (v["problems"].as_array().unwrap().len(), &v["weights"], &v["probe"]["feasible"]),
        (2, &Value::Null, &false.into())
    );
    assert_eq!(json(&run(&["inspect", "--json"]))["model"], "built-in");
    let huge = usize::MAX.to_string();
    for (context, parts) in [
        ("0", &["--context", "at least 1", "found: 0", "help:"][..]),
        (&huge, &["at most 4096", &huge, "help:"]),
        ("64,4097", &["4097"]),
    ] {
        fails(&run(&["inspect", F16, "--context", context]), 2, parts);
    }
    // Sizes that no tensor has: what is wrong with the weights is said, and nothing is added up beyond what a number holds.
    let wide = broken(|dir| {
        edit(dir.join("config.json"), |text| {
            let text = text.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 268435456");
            let text = text.replace("\"hidden_size\": 96", "\"hidden_size\": 268435456");
            let text = text.replace("\"num_attention_heads\": 3", "\"num_attention_heads\": 134217728");
            text.replace("\"num_key_value_heads\": 3", "\"num_key_value_heads\": 134217728")
        })
    });
    fails(&run(&["inspect", wide.path().to_str().unwrap()]), 1, &["more bytes than can be counted", "config.json"]);
    fails(&run(&["inspect", "/no/such/dir"]), 1, &["not a directory"]);
}

#[test]
fn help_shows_examples_and_the_exit_codes() {
    for command in [
        None,
        Some("run"),
        Some("report"),
        Some("bench"),
        Some("inspect"),
        Some("calibrate"),
        Some("devices"),
        Some("conformance"),
    ] {
        let ran = run(&command.into_iter().chain(["--help"]).collect::<Vec<_>>());
        assert!(ran.code == Some(0) && ran.out.contains("Exit codes") && ran.out.contains("130"), "{}", ran.out);
        let example = format!("Examples:\n  {}", command.map_or("secateur run".into(), |c| format!("secateur {c}")));
        assert!(ran.out.contains(&example), "{}", ran.out);
    }
    assert!(run(&["--version"]).out.contains(env!("CARGO_PKG_VERSION")));
}
