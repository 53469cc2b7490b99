//! Models whose files are incomplete, come from other tools, or contradict each other: `inspect` reports the errors
//! that `run` would report.
use super::{broken, edit, ids, on};
use crate::common::command::{F16, Ran, fails, json, run};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::path::Path;

/// Rewrites the weights in `dir` with other names; a tensor without a name is dropped.
fn rename(dir: &Path, new_name: impl Fn(&str) -> Option<String>) {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let views = file.tensors().into_iter().filter_map(|(name, view)| {
        Some((new_name(&name)?, TensorView::new(view.dtype(), view.shape().to_vec(), view.data()).unwrap()))
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn inspect(dir: &Path) -> Ran {
    run(&["inspect", dir.to_str().unwrap()])
}

fn set(dir: &Path, file: &str, key: &str, value: Value) {
    let path = dir.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_missing_tensor_is_refused_by_both_before_anything_is_uploaded() {
    for (missing, help) in [
        ("lm_head.weight", "tie_word_embeddings"),
        ("model.layers.3.mlp.down_proj.weight", "config.json"),
        ("model.layers.2.self_attn.q_proj.bias", "config.json"),
        ("model.norm.weight", "config.json"),
    ] {
        let dir = broken(|dir| rename(dir, |name| (name != missing).then(|| name.to_string())));
        let said = format!("the weights have no tensor {missing}");
        let inspected = inspect(dir.path());
        assert_eq!(inspected.code, Some(1));
        assert!(inspected.out.contains(&format!("problem: {said}")), "{}", inspected.out);
        assert!(inspected.out.contains("no, see below"), "{}", inspected.out);
        fails(&on(dir.path(), &["--ids", "1"]), 1, &[&said, help]);
    }
}

/// What `inspect` says of a model whose weights are good, and `run` of a prompt.
#[test]
fn a_text_that_run_refuses_is_refused_by_inspect() {
    let unreadable = |dir: &Path| std::fs::write(dir.join("tokenizer.json"), "{\"model\": 1}").unwrap();
    let malformed = |dir: &Path| set(dir, "tokenizer_config.json", "chat_template", json!("{% if %}"));
    let failing = |dir: &Path| set(dir, "tokenizer_config.json", "chat_template", json!("{{ messages[0].a.b.c }}"));
    // The tokenizer of a larger model.
    let with_tokenizer = |dir: &Path, change: &dyn Fn(&mut Value)| {
        let path = dir.join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        std::fs::write(path, json.to_string()).unwrap();
    };
    let larger = |dir: &Path| with_tokenizer(dir, &|json| json["model"]["vocab"]["zzzz"] = json!(100_000));
    // The same, where only added tokens have such ids: one that every prompt has, and one that hardly any has.
    let add = |json: &mut Value, id: u32, content: &str| {
        let tokens = json["added_tokens"].as_array_mut().unwrap();
        tokens.retain(|token| token["content"] != content);
        tokens.push(json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}));
    };
    let turns = |dir: &Path| {
        with_tokenizer(dir, &|json| {
            json["model"]["vocab"].as_object_mut().unwrap().remove("<turn>");
            add(json, 400, "<turn>");
        });
        set(dir, "tokenizer_config.json", "chat_template", json!("<turn>{{ messages[0]['content'] }}"));
    };
    let padded = |dir: &Path| with_tokenizer(dir, &|json| add(json, 400, "<pad>"));
    let no_template = |dir: &Path| set(dir, "tokenizer_config.json", "chat_template", Value::Null);
    let missing = |dir: &Path| std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(Change<'_>, i32, &str, &str, Value); 7] = [
        (&unreadable, 1, "only with --ids, see below", "the tokenizer cannot be read", json!(["ids"])),
        (&larger, 1, "only with --ids, see below", "tokens that the model does not have", json!(["ids"])),
        (&turns, 1, "only with --ids, see below", "tokens that the model does not have", json!(["ids"])),
        (&malformed, 1, "only with --ids or --raw", "the chat template is malformed", json!(["raw", "ids"])),
        (&failing, 1, "only with --ids or --raw", "the chat template fails", json!(["raw", "ids"])),
        (&no_template, 0, "yes, on a device", "the model has no chat template", json!(["raw", "ids"])),
        (&missing, 0, "yes, on a device", "the model has no tokenizer.json", json!(["ids"])),
    ];
    for (change, code, runs, problem, prompts) in cases {
        let dir = broken(change);
        let inspected = inspect(dir.path());
        assert_eq!(inspected.code, Some(code), "{problem}: {}{}", inspected.out, inspected.err);
        assert!(inspected.out.contains(runs), "{}", inspected.out);
        assert!(inspected.out.contains(&format!("problem: {problem}")) || inspected.out.contains(problem));
        assert_eq!(inspected.err.contains(problem), code == 1, "{}", inspected.err);
        let v: Value = serde_json::from_str(&run(&["inspect", dir.path().to_str().unwrap(), "--json"]).out).unwrap();
        assert_eq!((&v["runs"], &v["prompts"]), (&json!(true), &prompts), "{problem}");
        assert_eq!(on(dir.path(), &["--ids", "1", "--policy", "full"]).code, Some(0));
        let takes = |kind: &str| prompts.as_array().unwrap().contains(&json!(kind));
        assert_eq!(on(dir.path(), &["hi"]).code == Some(0), takes("chat"), "{problem}");
    }
    for model in [broken(padded), broken(|_| ())] {
        let v = json(&run(&["inspect", model.path().to_str().unwrap(), "--json"]));
        assert_eq!(v["prompts"], json!(["chat", "raw", "ids"]));
        assert_eq!(on(model.path(), &["hi"]).code, Some(0));
    }
}

#[test]
fn inspect_prints_no_control_characters_of_a_file() {
    let dir = broken(|dir| {
        edit(dir.join("tokenizer.json"), |text| text.replace("<|im_end|>", "<|im\\u001b[2Jend|>"));
        edit(dir.join("tokenizer_config.json"), |text| text.replace("<|im_end|>", "<|im\\u001b[2Jend|>"));
        set(dir, "tokenizer_config.json", "chat_template", json!("{{ raise_exception('a\u{1b}[31mb') }}"));
    });
    let ran = inspect(dir.path());
    for part in ["stops at", "<|im␛[2Jend|>", "problem: the chat template refuses", "a␛[31mb"] {
        assert!(ran.out.contains(part), "{part:?} is missing from:\n{}", ran.out);
    }
    assert!(!ran.out.contains('\u{1b}'), "{}", ran.out);
}

#[test]
fn a_bare_decoder_is_the_same_model() {
    let dir = broken(|dir| rename(dir, |name| Some(name.strip_prefix("model.").unwrap_or(name).to_string())));
    let inspected = inspect(dir.path());
    assert!(inspected.code == Some(0) && inspected.out.contains("yes, on a device"), "{}", inspected.out);
    let args = ["--ids", "1,2,3", "--json"];
    assert_eq!(ids(&json(&on(dir.path(), &args))), ids(&json(&on(Path::new(F16), &args))));
}

#[test]
fn an_index_may_name_a_tensor_that_nothing_needs() {
    let dir = broken(|dir| {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut map: serde_json::Map<String, Value> =
            file.names().into_iter().map(|name| (name.to_string(), json!("all.safetensors"))).collect();
        map.insert("model.layers.9.mtp.weight".into(), json!("all.safetensors"));
        std::fs::rename(dir.join("model.safetensors"), dir.join("all.safetensors")).unwrap();
        std::fs::write(dir.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    });
    let ran = on(dir.path(), &["--ids", "1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("warning") && ran.err.contains("model.layers.9.mtp.weight"), "{}", ran.err);
}

#[test]
fn mlx_folders_are_named_for_what_they_are() {
    let dir = broken(|dir| set(dir, "config.json", "quantization", json!({"group_size": 64, "bits": 4})));
    fails(&inspect(dir.path()), 1, &["MLX-quantized weights are not supported", "original weights"]);
}

#[test]
fn a_turn_ends_with_the_token_that_the_template_writes() {
    let dir = broken(|dir| {
        set(dir, "config.json", "eos_token_id", json!(315));
        set(dir, "generation_config.json", "eos_token_id", json!(315));
    });
    let v = json(&run(&["inspect", dir.path().to_str().unwrap(), "--json"]));
    assert_eq!(v["generation"]["stop_ids"], json!([315, 317]));
    assert_eq!(v["generation"]["stop_tokens"], json!(["<|endoftext|>", "<|im_end|>"]));
    // A template without such a token adds nothing.
    edit(dir.path().join("tokenizer_config.json"), |text| text.replace("<|im_end|>", "|"));
    let v = json(&run(&["inspect", dir.path().to_str().unwrap(), "--json"]));
    assert_eq!(v["generation"]["stop_ids"], json!([315]));
}

#[test]
fn raw_text_begins_as_the_tokenizer_says() {
    let begin = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [315], "tokens": ["<|endoftext|>"]},
            "<|im_end|>": {"id": "<|im_end|>", "ids": [317], "tokens": ["<|im_end|>"]}}});
    let dir = broken(|dir| set(dir, "tokenizer.json", "post_processor", begin));
    let prompt = |text: &str| json(&on(dir.path(), &["--raw", text, "--json"]))["prompt_ids"].clone();
    let bare = json(&on(Path::new(F16), &["--raw", "Hello", "--json"]))["prompt_ids"].clone();
    let mut expected = vec![json!(315)];
    expected.extend(bare.as_array().unwrap().iter().cloned());
    assert_eq!(prompt("Hello"), json!(expected), "nothing follows the text");
    assert_eq!(prompt("<|endoftext|>Hello"), json!(expected), "the beginning is not written twice");
}

#[test]
fn a_prompt_of_megabytes_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let request = dir.path().join("request.json");
    std::fs::write(&request, json!({"prompt": "All work and no play. ".repeat(1 << 20)}).to_string()).unwrap();
    let began = std::time::Instant::now();
    let ran = run(&["run", "--device", "cpu", "--model", F16, "--request", request.to_str().unwrap()]);
    fails(&ran, 2, &["longer than the context", "at most 4096 tokens", "of which the first 65536 are"]);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}
