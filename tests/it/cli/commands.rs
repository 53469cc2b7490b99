//! The other commands: report, devices, conformance, bench, inspect, and the help texts.
use super::{adapters, broken, edit};
use crate::common::command::{F16, fails, json, run};
use serde_json::Value;
use std::path::Path;

#[test]
fn report_makes_a_page_of_one_trace_or_two_and_refuses_others() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/trace.json");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let page = path("report.html");
    for traces in [&[fixture][..], &[fixture, fixture]] {
        let ran = run(&[&["report"], traces, &["-o", &page]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{}", ran.err);
        assert!(ran.err.contains("report.html"), "the page is not named:\n{}", ran.err);
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(html.starts_with("<!doctype html>") && html.matches("\"name\":\"trace.json\"").count() == traces.len());
    }
    let good = std::fs::read_to_string(fixture).unwrap();
    std::fs::write(path("newer"), good.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
    std::fs::write(path("other"), "[]").unwrap();
    std::fs::write(path("binary"), [0xff, 0x00, 0xfd]).unwrap();
    fails(&run(&["report", &path("newer"), "-o", &page]), 2, &["another schema version", "newer", "found: 2"]);
    fails(&run(&["report", &path("other"), "-o", &page]), 2, &["not a secateur trace", "other"]);
    fails(&run(&["report", &path("binary"), "-o", &page]), 2, &["cannot be read", "binary", "not UTF-8"]);
    fails(&run(&["report", &path("missing"), "-o", &page]), 1, &["cannot be read", "missing"]);
    fails(&run(&["report", fixture, "-o", "/no/such/dir/r.html"]), 1, &["cannot be written", "/no/such/dir/r.html"]);
    std::fs::write(path("trace"), &good).unwrap();
    let over = run(&["report", fixture, &path("trace"), "-o", &path("trace")]);
    fails(&over, 2, &["would overwrite a trace", "--output", &path("trace")]);
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
    let cases = secateur::expert::kernels::cases::all().len() as u64;
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
            assert!(0.0 < min, "{spread}: {min} is no rate");
            assert!(min <= median && median <= max, "{spread} is not in order: {min} {median} {max}");
            assert!(max.is_finite(), "{spread}: {max} is no rate");
        }
        // 4 layers, keys and values, 3 KV heads of 32 values, 2 bytes each; a step sees prompt + 5 slots on average.
        let slot = 4 * 2 * 3 * 32 * 2;
        assert_eq!(r["kv_bytes_per_token"].as_u64().unwrap(), (r["prompt"].as_u64().unwrap() + 5) * slot);
        let bytes = r["weight_bytes_per_token"].as_f64().unwrap() + r["kv_bytes_per_token"].as_f64().unwrap();
        let rate = bytes * r["decode_tokens_per_second"]["median"].as_f64().unwrap();
        assert!((r["decode_bytes_per_second"].as_f64().unwrap() / rate - 1.0).abs() < 1e-9);
        assert!((r["decode_bandwidth_fraction"].as_f64().unwrap() / (rate / copy) - 1.0).abs() < 1e-9);
        // The weights are not tied, so the embedding is not read as a whole.
        assert!(r["weight_bytes_per_token"].as_u64() < v["weight_bytes"].as_u64());
    }
    // Sequences side by side share the weights that a step reads, not the cache.
    let side = ["bench", "--device", "cpu", "--model", F16, "--prompt", "4", "--decode", "3", "--sequences", "1,3"];
    let v = json(&run(&[&side[..], &["--repeat", "1", "--json"]].concat()));
    let of = |i: usize, key: &str| v["runs"][i][key].as_u64().unwrap();
    assert_eq!((of(0, "sequences"), of(1, "sequences")), (1, 3));
    assert_eq!(of(1, "weight_bytes_per_token"), of(0, "weight_bytes_per_token") / 3);
    assert_eq!(of(1, "kv_bytes_per_token"), of(0, "kv_bytes_per_token"));
    let folder = tempfile::tempdir().unwrap();
    let [csv, html] = ["speed.csv", "speed.html"].map(|name| folder.path().join(name));
    let table = run(&[&args[..], &["--csv", csv.to_str().unwrap(), "--html", html.to_str().unwrap()]].concat());
    assert_eq!(table.code, Some(0), "{}", table.err);
    let (csv, html) = (std::fs::read_to_string(csv).unwrap(), std::fs::read_to_string(html).unwrap());
    assert_eq!((csv.lines().count(), html.matches("<tr>").count(), html.matches("<g>").count()), (3, 3, 4));
    assert!(csv.lines().nth(1).unwrap().starts_with("16,9,1,"), "{csv}");
    // The refusal comes before anything is measured.
    let unwritable = ["bench", "--device", "cpu", "--csv", "/no/such/folder/speed.csv"];
    fails(&run(&unwritable), 1, &["/no/such/folder/speed.csv"]);
    for part in ["copy bandwidth", "decode tok/s", "launches/step", "the first prompt of 16 tokens took"] {
        assert!(table.out.contains(part), "{part:?} is missing from:\n{}", table.out);
    }
    fails(&run(&["bench", "--decode", "0"]), 2, &["nothing to measure"]);
    let sizes =
        ["bench", "--device", "cpu", "--preset", "smollm2-135m", "--weights", "q4", "--prompt", "2", "--decode", "1"];
    let preset = json(&run(&[&sizes[..], &["--repeat", "1", "--json"]].concat()));
    assert_eq!(preset["model"], "smollm2-135m with random weights");
    assert!(preset["weight_bytes"].as_u64().is_some_and(|bytes| bytes > 70_000_000 && bytes < 110_000_000), "{preset}");
    fails(&run(&["bench", "--preset", "gpt-4"]), 2, &["no such preset", "at: --preset", "r1-1.5b"]);
    // The weights are missing, so the test shows that the refusal comes before they are read.
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

/// On every adapter, the kernels of a decode step and of a chunk are listed with their launches, which the layers of
/// the model determine, and with times that are greater than zero.
#[test]
fn bench_times_each_kernel() {
    let refused = run(&["bench", "--device", "cpu", "--model", F16, "--kernels"]);
    fails(&refused, 2, &["the CPU reference launches no kernels", "at: --kernels", "CPU twin"]);
    let adapters = adapters();
    let folder = tempfile::tempdir().unwrap();
    // One adapter: each launch is a submission of its own, which takes long on software adapters.
    for adapter in adapters.iter().take(1) {
        let [csv, html] = ["speed.csv", "speed.html"].map(|name| folder.path().join(name));
        let bench = ["bench", "--quiet", "--device", adapter, "--model", F16, "--prompt", "300", "--decode", "2"];
        let bench = [&bench[..], &["--repeat", "2", "--kernels"]].concat();
        let v = json(&run(&[&bench[..], &["--json"]].concat()));
        let measured = &v["runs"][0];
        assert!(measured["submits_per_step"].as_f64().is_some_and(|submits| submits > 0.0), "{adapter}: {measured}");
        let parts = [("decode", 1, 301, "matvec"), ("prefill", 256, 0, "matmul")];
        for (part, tokens, cached, product) in parts {
            let timed = &measured["kernels"][part];
            assert_eq!((timed["tokens"].as_u64(), timed["cached"].as_u64()), (Some(tokens), Some(cached)), "{timed}");
            assert!(["device", "host"].contains(&timed["clock"].as_str().unwrap()), "{timed}");
            let kernels = timed["kernels"].as_array().unwrap();
            let launches = |name: &str| {
                let of = |kernel: &&Value| kernel["kernel"].as_str().unwrap().starts_with(name);
                kernels.iter().filter(of).map(|kernel| kernel["launches"].as_f64().unwrap()).sum::<f64>()
            };
            // Of 4 layers: two norms, one rotation and four products each. Only the step has the last norm, the head
            // and a sampled token: it is not the last chunk of the prompt that is timed.
            let step = if part == "decode" { 1.0 } else { 0.0 };
            let found = ["embed", "rms_norm", "rope_append", product, "sample"].map(launches);
            assert_eq!(found, [1.0, 8.0 + step, 4.0, 16.0 + step, step], "{adapter}: {kernels:?}");
            let sum = |key: &str| kernels.iter().map(|kernel| kernel[key].as_f64().unwrap()).sum::<f64>();
            assert!((sum("share") - 1.0).abs() < 1e-6, "{timed}");
            let [min, median, max] = ["min", "median", "max"].map(|key| timed["microseconds"][key].as_f64().unwrap());
            assert!(0.0 < min && min <= median && median <= max && max.is_finite(), "{timed}");
            for kernel in kernels {
                assert!(kernel["microseconds"]["max"].as_f64().unwrap() > 0.0, "{adapter}: {kernel}");
            }
        }
        let table = run(&[&bench[..], &["--csv", csv.to_str().unwrap(), "--html", html.to_str().unwrap()]].concat());
        assert_eq!(table.code, Some(0), "{}", table.err);
        let lines =
            ["kernels of a decode step of 1 sequence, 301 tokens", "kernels of a chunk of a prompt, 256 tokens"];
        for part in lines.into_iter().chain(["each launch is timed by itself"]) {
            assert!(table.out.contains(part), "{adapter}: {part:?} is missing from:\n{}", table.out);
        }
        let (csv, html) = (std::fs::read_to_string(csv).unwrap(), std::fs::read_to_string(html).unwrap());
        assert!(csv.lines().next().unwrap().contains(",decode_us:rope_append,decode_launches:rope_append,"), "{csv}");
        assert!(html.contains("<h2>kernels of a decode step") && html.contains("<td>rope_append</td><td>4</td>"));
    }
    if adapters.is_empty() {
        println!("SKIPPED: no adapter on this machine");
    }
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
    // 100 positions are rounded up to 128 slots, with 4 layers, keys and values, 3 heads and 32 values.
    let kv: Vec<u64> = v["memory"].as_array().unwrap().iter().map(|m| m["kv_bytes"].as_u64().unwrap()).collect();
    assert_eq!(kv, [128 * 768 * 2, 128 * 768 * 4, 4096 * 768 * 2, 4096 * 768 * 4]);

    let table = run(&["inspect", F16]);
    for part in ["Qwen2ForCausalLM", "the template opens <think>", "possible: </think> is one token", "KV f16"] {
        assert!(table.out.contains(part), "{part:?} is missing from:\n{}", table.out);
    }
    // A model without a tokenizer still runs.
    let wordless = broken(|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    let ran = run(&["inspect", wordless.path().to_str().unwrap()]);
    assert!(ran.code == Some(0) && ran.out.contains("problem: the model has no tokenizer.json"), "{}", ran.out);
    // A shard that the index names is missing.
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
    // `inspect` refuses the models that `run` refuses.
    let unfit = |from: &str, to: &str| broken(|dir| edit(dir.join("config.json"), |text| text.replace(from, to)));
    let heads = unfit("\"hidden_size\": 96", "\"hidden_size\": 1536");
    let ran = run(&["inspect", heads.path().to_str().unwrap()]);
    assert!(ran.code == Some(1) && ran.out.contains("problem: the kernels cannot run this head_dim"), "{}", ran.out);
    for part in ["at most 256", "config.json", "found: 512"] {
        assert!(ran.out.contains(part), "{part:?} is missing from:\n{}", ran.out);
    }
    let narrow = unfit("\"hidden_size\": 96", "\"hidden_size\": 84");
    let ran = run(&["inspect", narrow.path().to_str().unwrap()]);
    assert!(ran.code == Some(1) && ran.out.contains("head_dim") && ran.out.contains("a multiple of 8"), "{}", ran.out);
    let model = narrow.path().to_str().unwrap();
    let refused = run(&["run", "--model", model, "--device", "cpu", "--ids", "1"]);
    fails(&refused, 1, &["cannot run this head_dim", model, "a multiple of 8, at most 256", "found: 28"]);
    // With sizes that no tensor has, the message is about the weights, and no sum overflows.
    let wide = broken(|dir| {
        edit(dir.join("config.json"), |text| {
            let text = text.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 268435456");
            let text = text.replace("\"hidden_size\": 96", "\"hidden_size\": 268435456");
            let text = text.replace("\"num_attention_heads\": 3", "\"num_attention_heads\": 134217728");
            text.replace("\"num_key_value_heads\": 3", "\"num_key_value_heads\": 134217728")
        });
    });
    fails(&run(&["inspect", wide.path().to_str().unwrap()]), 1, &["more bytes than can be counted", "config.json"]);
    fails(&run(&["inspect", "/no/such/dir"]), 1, &["not a directory"]);
}

#[test]
fn inspect_says_what_rope_rotates_and_which_contexts_can_be_used() {
    let golden = |name: &str| format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let ministral = golden("gguf-ministral3-q8/model.gguf");
    for (model, part) in [
        (golden("smollm3-bf16"), "4096 with RoPE base 5000000, none in 1 of 3 layers\n"),
        (golden("phi3-long-f16"), "longrope over 6, attention factor 1.8659, 24 values of a head rotated\n"),
        (golden("mistral-f16"), "4096 with RoPE base 1000000000\n"),
        (golden("qwen3moe-bf16"), "experts       3 of 9 in all but 1 layers, feed-forward 24; "),
        (ministral.clone(), "256 of 1024 with RoPE base 1000000, yarn, factor 4 over 256, attention factor 1.0000\n"),
    ] {
        let ran = run(&["inspect", &model]);
        assert!(ran.code == Some(0) && ran.out.contains(part), "{part:?} is missing from:\n{}", ran.out);
    }
    let error = ["queries that are scaled by their position", "--context", "at most 256", "found: 300"];
    fails(&run(&["inspect", &ministral, "--context", "300"]), 2, &error);
    fails(&run(&["run", "--device", "cpu", "--model", &ministral, "--context", "300", "Hi"]), 2, &error);
}

#[test]
fn help_and_documents_say_what_stays_beside_the_window() {
    const KEPT: usize = secateur::policy::CURRENT_STEP_KEPT;
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let stays = format!("the latest {KEPT} tokens of the step that is being written stay too");
    for command in ["run", "calibrate", "eval"] {
        let help = run(&[command, "--help"]).out;
        assert!(words(&help).contains(&stays), "{command}: {help}");
    }
    assert!(words(include_str!("../../../docs/cli.md")).contains(&stays), "docs/cli.md");
    let method = format!("the step that is being written, up to {KEPT} of its tokens");
    assert!(words(include_str!("../../../docs/method.md")).contains(&method), "docs/method.md");
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
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(ran.out.contains("Exit codes"), "{}", ran.out);
        assert!(ran.out.contains("130"), "the exit code of an interruption is missing:\n{}", ran.out);
        let example = format!("Examples:\n  {}", command.map_or("secateur run".into(), |c| format!("secateur {c}")));
        assert!(ran.out.contains(&example), "{}", ran.out);
    }
    assert!(run(&["--version"]).out.contains(env!("CARGO_PKG_VERSION")));
}

/// The quality of quantized weights on a text, and the refusal of texts and models that cannot be measured.
#[test]
fn inspect_measures_what_quantized_weights_cost() {
    let dir = tempfile::tempdir().unwrap();
    let text = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let good = text("good.txt", "Wait, the answer is 42. Then we add 1, and the answer is 43.");
    let cpu = ["--device", "cpu", "--json"];
    let v = json(&run(&[&["inspect", F16, "--quality", &good], &cpu[..]].concat()));
    let rows = v["quality"].as_array().expect("rows");
    assert_eq!(rows.iter().map(|row| row["weights"].as_str().unwrap()).collect::<Vec<_>>(), ["q8", "q6", "q4"]);
    let of = |row: &Value, key: &str| row[key].as_f64().unwrap();
    for row in rows {
        assert!(of(row, "mean_divergence") > 0.0 && of(row, "predictions") > 20.0, "{row}");
        assert!(of(row, "weight_bytes") < of(row, "reference_bytes"), "{row}");
        assert_eq!(row["reference"], F16);
        for whose in ["weight", "reference"] {
            let types = row[format!("{whose}_types")].as_array().expect("types");
            let bytes: f64 = types.iter().map(|t| of(t, "bytes")).sum();
            assert_eq!(bytes, of(row, &format!("{whose}_bytes")), "{row}");
        }
        assert_eq!(row["reference_types"][0]["type"], "f16");
    }
    assert_eq!(rows[0]["weight_types"][0]["type"], "q8_0");
    assert!(of(&rows[0], "mean_divergence") < of(&rows[2], "mean_divergence"));
    assert_eq!(of(&rows[0], "reference_perplexity"), of(&rows[2], "reference_perplexity"));
    // A model differs from itself only by rounding.
    let v = json(&run(&[&["inspect", F16, "--quality", &good, "--against", F16], &cpu[..]].concat()));
    assert!(v["quality"].as_array().unwrap().len() == 1 && of(&v["quality"][0], "largest_divergence") < 1e-9);
    // The memory follows the precision, and each precision takes less than the one before.
    let total = |more: &[&str]| {
        json(&run(&[&["inspect", F16, "--json"], more].concat()))["memory"][0]["total_bytes"].as_u64().unwrap()
    };
    let totals = [total(&[]), total(&["--weights", "q8"]), total(&["--weights", "q4"])];
    assert!(totals.is_sorted_by(|a, b| a > b), "{totals:?}");

    let golden = |name: &str| format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let (quantized, other) = (golden("gguf-qwen2-q8/model.gguf"), golden("qwen2-bf16"));
    let short = text("short.txt", "W");
    for (args, parts) in [
        (vec![F16, "--quality", &short], vec!["too short", "short.txt", "at least 2 tokens"]),
        (vec![&quantized, "--quality", &good], vec!["quantized already", "--against"]),
        (vec![F16, "--quality", &good, "--against", &other], vec!["different vocabularies", "320", "333"]),
        (vec![F16, "--against", &other], vec!["--quality"]),
        (vec![F16, "--quality", &good, "--no-fetch"], vec!["--no-fetch"]),
        (vec![F16, "--weights", "q5"], vec!["q8, q6 or q4"]),
    ] {
        fails(&run(&[&["inspect"], &args[..]].concat()), 2, &parts);
    }
    fails(&run(&["inspect", F16, "--quality", "/no/such/text"]), 1, &["the text cannot be read", "/no/such/text"]);
}
