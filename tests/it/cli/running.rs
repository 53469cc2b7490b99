//! `secateur run`: ids, text, traces, prompts and templates.
use super::{broken, cpu, golden, ids, listed, on, trace_of};
use crate::common::command::{F16, Ran, done, fails, json, run, secateur};
use secateur::trace::Trace;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

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
        "secateur model device settings notes prompt_ids ids text answer thinking_unfinished format_unfinished stop_reason \
         timings bytes totals probes probability_missed"
    );
    assert_eq!(v["stop_reason"], "max_new_tokens");
    assert_eq!((v["device"]["backend"].as_str(), v["probes"].as_u64()), (Some("cpu"), Some(0)));
    assert!(v["timings"]["decode_us"].as_u64().unwrap() > 0 && v["bytes"]["kv"].as_u64().unwrap() > 0);
    assert!(!v["text"].as_str().unwrap().is_empty());
    assert_eq!(v["totals"]["generated_tokens"], 64);
}

/// A JSON object that breaks off is not valid JSON, and the exit code shows it.
#[test]
fn an_answer_that_breaks_off_before_its_format_ends_is_a_failure() {
    let choice =
        ["run", "--device", "cpu", "--raw", "--quiet", "--greedy", "--answer-format", "choice:yes, I am certain"];
    let with = |more: &[&str]| run(&[&choice[..], more, &["<|assistant|><think></think>"]].concat());
    let whole = with(&["--json"]);
    assert_eq!((json(&whole)["format_unfinished"].as_bool(), whole.code), (Some(false), Some(0)), "{}", whole.err);
    for (more, why) in [(["--max-new-tokens", "3"], "--max-new-tokens reached"), (["--stop", "am"], "a text of --stop")]
    {
        let cut = with(&[&more[..], &["--json"]].concat());
        let object: Value = serde_json::from_str(&cut.out).expect("it is printed all the same");
        assert_eq!((object["format_unfinished"].as_bool(), cut.code), (Some(true), Some(1)), "{}", cut.err);
        for part in ["error: the answer is not complete in its format", "at: --answer-format", why] {
            assert!(cut.err.contains(part), "{part:?} is missing from: {}", cut.err);
        }
        assert!("yes, I am certain".starts_with(with(&more).out.trim()), "what came is shown");
    }
}

/// The names of all adapters of this machine, without the CPU.
pub fn adapters() -> Vec<String> {
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

/// An adapter is tested the first time, and again if the remembered test was of other shaders.
#[test]
fn an_adapter_is_tested_once() {
    let Some(adapter) = adapters().into_iter().find(|name| !name.contains("SwiftShader")) else {
        println!("SKIPPED: no adapter");
        return;
    };
    let state = tempfile::tempdir().expect("a folder");
    let file = state.path().join("secateur/tested-adapters");
    let run = || {
        let args = ["run", "--model", F16, "--device", &adapter, "--ids", "1,2,3", "--max-new-tokens", "1"];
        let ran = done(secateur(&args).env("XDG_STATE_HOME", state.path()).output().expect("it starts"));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        std::fs::read_to_string(&file).expect("it is remembered")
    };
    let first = run();
    assert!(first.lines().count() == 1 && first.contains(&adapter), "{first}");
    let changed = || std::fs::metadata(&file).and_then(|meta| meta.modified()).expect("a time");
    let before = changed();
    assert_eq!((run(), changed()), (first.clone(), before), "the second run has nothing to test");
    std::fs::write(&file, first.replacen(|c: char| c.is_ascii_hexdigit(), "x", 1)).expect("writable");
    assert_eq!(run(), first, "other shaders are forgotten");
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
        "-- summary --",
        "30 generated, 30 of them thinking",
        "tokens cached, 0 evicted",
        "tok/s",
        "--max-new-tokens reached",
    ] {
        assert!(ran.err.contains(part), "{part:?} is missing from:\n{}", ran.err);
    }
    assert!(!ran.err.contains('\x1b') && !ran.out.contains("\x1b[2m"), "no colours outside a terminal");
    let quiet = cpu(&["--max-new-tokens", "30", "--quiet", "Wait, why?"]);
    assert_eq!((quiet.code, quiet.out), (Some(0), ran.out));
    assert!(quiet.err.contains("no answer came"), "{}", quiet.err);
    assert!(quiet.err.lines().all(|line| line.starts_with("warning: ")), "{}", quiet.err);
}

/// The sampler has 128 candidates, the fixture 320 tokens, and a high temperature makes them about equally likely.
#[test]
fn probability_outside_the_candidates_is_said_and_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let args = ["--max-new-tokens", "8", "--seed", "1", "--json", "--trace", file.to_str().unwrap(), "Why?"];
    let ran = cpu(&[&args[..], &["--temperature", "50", "--top-k", "0"]].concat());
    let missed = trace_of(&file).totals.probability_missed.expect("it is recorded");
    assert!(missed > 0.3 && missed < 1.0, "{missed}");
    let v = json(&ran);
    for reported in [&v["probability_missed"], &v["totals"]["probability_missed"]] {
        assert!((reported.as_f64().unwrap() - f64::from(missed)).abs() < 1e-6, "{reported}");
    }
    assert!(ran.err.contains("lay outside the 128 candidates of the sampler"), "{}", ran.err);
    let greedy = json(&cpu(&[&args[..], &["--greedy"]].concat()));
    assert_eq!(greedy["totals"].get("probability_missed"), None);
    assert!(!std::fs::read_to_string(&file).unwrap().contains("probability_missed"), "absent where it is 0");
}

#[test]
fn quiet_warns_of_a_machine_without_a_gpu() {
    let args = ["run", "--device", "auto", "--max-new-tokens", "1", "--ids", "1"];
    let warns = |ran: &Ran| {
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.err.contains("warning: no GPU was found")
    };
    assert_eq!(warns(&run(&[&args[..], &["--quiet"]].concat())), warns(&run(&args)));
}

#[test]
fn quiet_warns_of_a_thought_that_was_cut_short() {
    let args = ["run", "--device", "cpu", "--max-new-tokens", "5"];
    let text = json(&run(&[&args[..], &["--json"]].concat()))["text"].as_str().expect("text").to_string();
    let quiet = run(&[&args[..], &["--quiet"]].concat());
    assert_eq!((quiet.code, quiet.out.trim_end()), (Some(0), text.trim_end()), "{}", quiet.err);
    assert!(!text.trim().is_empty());
    let warning = quiet.err.strip_prefix("warning: no answer came: ").unwrap_or_else(|| panic!("{}", quiet.err));
    assert!(
        warning.contains("still thinking") && warning.contains("raise --max-new-tokens, or leave it out"),
        "{warning}"
    );
    // With --answer-only the warning is the same, and it is printed once.
    for err in [&quiet.err, &run(&[&args[..], &["--quiet", "--answer-only"]].concat()).err] {
        assert_eq!((err.lines().count(), err), (1, &quiet.err));
    }
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
    // 120 thinking tokens with probes after 40, 80 and 120. With a budget of a half and a window of 8, 60 of 120
    // tokens stay.
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

    // With a budget that keeps all tokens, the probe changes nothing.
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
            // If the step that is being written is long, its protection may exceed the budget. Otherwise the budget
            // holds.
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
    // The runs end by the model's own end token while further steps are under way, by a limit, without an eviction,
    // and by a full context.
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
    assert!(trace.totals.evicted_tokens > 0 && err.contains("tokens cached by the layer that has the most"), "{err}");
    // A probe may evict a token from one layer while another layer keeps it.
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
    // The text may have Windows' line ends, a byte order mark, or UTF-16. `-` may be left out.
    let utf16 = "\u{feff}Why is θ so?\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for bytes in ["Why is θ so?\r\n".as_bytes(), "Why is θ so?\r".as_bytes(), "\u{feff}Why is θ so?".as_bytes(), &utf16]
    {
        assert_eq!(json(&feed(bytes))["prompt_ids"], given["prompt_ids"]);
        assert_eq!(json(&with(&[], bytes))["prompt_ids"], given["prompt_ids"]);
    }
    fails(&with(&[], b""), 2, &["no prompt", "- for stdin"]);
    let dashed = json(&cpu(&["--max-new-tokens", "8", "--json", "-5 + 3?"]));
    assert_eq!(dashed["prompt_ids"], json(&feed(b"-5 + 3?"))["prompt_ids"]);
    // The value of an option may begin with a dash as well, and is not taken for the prompt.
    let both = json(&cpu(&["--dry-run", "--probe-text", "- Sum up.</think>", "Enough.</think>"]));
    assert_eq!(both["settings"]["probe_text"], "- Sum up.</think>");
    assert!(both["prompt"].to_string().contains("Enough."), "{both}");
    // What `$(cat FILE)` makes of a file with Windows' line ends.
    let windows = json(&cpu(&["--dry-run", "--probe-text", "Sum\r\nup.</think>\r", "Why?\r"]));
    assert_eq!(windows["settings"]["probe_text"], "Sum\nup.</think>");
    fails(&feed(b"caf\xe9 ?"), 2, &["not UTF-8", "byte 3"]);
    fails(&feed(b"\n"), 2, &["the prompt is empty"]);
    fails(&feed(&vec![b'a'; (64 << 20) + 1]), 2, &["exceeds 64.0 MiB", "stdin", "at most 64.0 MiB"]);
}

#[test]
fn a_system_prompt_and_no_thinking_reach_the_template() {
    // The fixture's template opens <think>. This one has a switch, as Qwen3's does.
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
    // The refusal comes before gigabytes are read: without weights, too, the message is about the template.
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
    // Probes that no longer fit are left out.
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
    // If every head keeps its own tokens, rows have gaps.
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
