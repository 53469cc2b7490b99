//! Requests and files that cannot work are refused, with an exit code and a message that says what to do.
use super::{broken, cpu, edit, ids, listed, on, trace_of};
use crate::common::command::{F16, done, fails, json, run, secateur};
use std::path::Path;
use std::process::Stdio;

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
        (&["--probe-text", "", "x"], &["</think>", "--probe-text", "found: no tokens"]),
        (&["--model", "", "x"], &["the name of the model is empty"]),
        (&["--layers", "0-", "x"], &["not a list of layers", "\"0-\""]),
        (&["--temperature", "NaN", "x"], &["--temperature", "NaN", "a finite number is expected"]),
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
    // There are no weights, so reading them would give another error.
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
    // Options that suit no model are refused before a model is opened.
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
    // A policy that needs text is refused if it is asked for by name.
    let asked = on(dir.path(), &["--ids", "1", "--policy", "think-clearly"]);
    fails(&asked, 1, &["think-clearly reads text"]);
    assert_eq!(on(dir.path(), &["--ids", "1", "--policy", "random", "--probe-every", "2"]).code, Some(0));
}

#[test]
fn a_tokenizer_that_splits_think_close_is_refused_for_think_clearly() {
    let dir = broken(|dir| edit(dir.join("tokenizer.json"), |text| text.replace("</think>", "</thonk>")));
    let asked = on(dir.path(), &["--policy", "think-clearly", "x"]);
    fails(&asked, 2, &["no single </think>", "--policy without a probe"]);
    // By default the model runs without pruning, and a note says so.
    let ran = on(dir.path(), &["x"]);
    assert!(ran.code == Some(0) && ran.err.contains("no single </think>: nothing is pruned"), "{}", ran.err);
    assert_eq!(on(dir.path(), &["--policy", "full", "x"]).code, Some(0));
}

#[test]
fn files_that_cannot_be_written_are_found_out_before_the_run() {
    let ran = cpu(&["--max-new-tokens", "4", "--trace", "/no/such/dir/trace.json", "x"]);
    fails(&ran, 1, &["cannot be written", "/no/such/dir/trace.json", "create its folder first"]);
    // The refusal comes before the weights are read.
    let dir = broken(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    let trace = dir.path().to_str().unwrap();
    fails(&on(dir.path(), &["--trace", trace, "x"]), 1, &["cannot be written", "a directory"]);
    fails(&on(dir.path(), &["--trace", "/no/such/..", "x"]), 1, &["cannot be written", "no file name"]);
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
    // The empty text is a part of every name, but selects no device.
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
        // EGL without glvnd has no such variable; it gets no display and no driver directory.
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
