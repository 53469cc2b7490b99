//! Models in parts and folders, models that cannot be run, and hubs, proxies and caches with errors.
use super::{COMMIT, Hub, NAME, WEIGHTS, done, listing};
use crate::common::command::F16;
use crate::gguf;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::BTreeMap;

#[test]
fn all_parts_of_a_split_model_are_fetched_from_their_folder() {
    let hub = Hub::new();
    let parts = gguf::split::two_parts();
    let in_folder = |name: &str| format!("Q8_0/{name}");
    let names: Vec<String> = parts.iter().map(|(name, _)| in_folder(name)).collect();
    hub.set(|site| site.files = parts.iter().map(|(name, bytes)| (in_folder(name), bytes.clone())).collect());
    let inspect = |name: &str| done(&mut hub.command(&["inspect", &format!("{NAME}/{name}"), "--json"]));
    // The name is that of the second part.
    let v = inspect(&names[1]).json();
    assert_eq!(
        (v["architecture"].as_str(), v["problems"].as_array().map(Vec::len)),
        (Some("LlamaForCausalLM"), Some(0))
    );
    let folder = hub.folder().join("snapshots").join(COMMIT).join("Q8_0");
    assert_eq!(listing(&folder).len(), 2);
    #[cfg(unix)]
    for (name, bytes) in &parts {
        let link = std::fs::read_link(folder.join(name)).unwrap();
        assert_eq!(link, std::path::Path::new("../../../blobs").join(super::etag(bytes)));
    }
    hub.asked();
    inspect(&names[0]).json();
    assert!(hub.asked().is_empty(), "the cache is enough, whichever part is named");

    // The hub lacks a part, so nothing is fetched.
    let hub = Hub::new();
    hub.set(|site| site.files = BTreeMap::from([(names[0].clone(), parts[0].1.clone())]));
    let named = format!("{NAME}/{}", names[0]);
    let ran = done(&mut hub.command(&["run", "--device", "cpu", "--model", &named, "--ids", "1"]));
    ran.says(&["a part of a split GGUF file is not on the hub", "all 2 parts", &names[1]]);
    assert_eq!(hub.asked().len(), 1, "only the list of files was asked for");
}

#[test]
fn a_model_that_cannot_be_run_is_refused_before_its_weights_are_fetched() {
    let hub = Hub::new();
    hub.set(|site| {
        let config = String::from_utf8(site.files["config.json"].clone()).unwrap();
        let config = config.replace("Qwen2ForCausalLM", "GPTNeoXForCausalLM");
        site.files.insert("config.json".into(), config.into_bytes());
    });
    hub.inspect(&[]).says(&["the architecture GPTNeoXForCausalLM is not supported"]);
    assert!(!hub.asked().iter().any(|asked| asked.path.ends_with(WEIGHTS)));

    let hub = Hub::new();
    hub.set(|site| {
        site.files = BTreeMap::from([("large.gguf".into(), gguf::of_architecture("starcoder", 4 << 20))]);
    });
    let named = format!("{NAME}/large.gguf");
    done(&mut hub.command(&["inspect", &named])).says(&["the architecture starcoder is not supported"]);
    assert!(listing(&hub.folder().join("blobs")).is_empty(), "the beginning is not kept");
}

/// The weights of the fixture, of which one tensor has another element type or is left out.
fn other_weights(hub: &Hub, changed: &str, dtype: Option<Dtype>) -> Vec<u8> {
    let bytes = hub.bytes_of(WEIGHTS);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let views = file.tensors().into_iter().filter_map(|(name, view)| {
        let (shape, data) = (view.shape().to_vec(), view.data());
        Some(match dtype {
            _ if name != changed => (name, TensorView::new(view.dtype(), shape, data).unwrap()),
            None => return None,
            Some(Dtype::U32) => (name, TensorView::new(Dtype::U32, vec![shape[0], shape[1] / 2], data).unwrap()),
            Some(dtype) => (name, TensorView::new(dtype, shape, &data[..data.len() / 2]).unwrap()),
        })
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn weights_that_their_headers_show_to_be_unusable_are_not_fetched() {
    let matrix = "model.layers.1.mlp.up_proj.weight";
    for (changed, dtype, said) in [
        ("lm_head.weight", None, "the weights have no tensor lm_head.weight"),
        (matrix, Some(Dtype::F8_E4M3), "F8_E4M3"),
        (matrix, Some(Dtype::U32), matrix),
    ] {
        let hub = Hub::new();
        let weights = other_weights(&hub, changed, dtype);
        hub.set(|site| drop(site.files.insert(WEIGHTS.into(), weights.clone())));
        hub.inspect(&[]).says(&[said]);
        let blobs = listing(&hub.folder().join("blobs"));
        assert!(!blobs.iter().any(|blob| blob.starts_with(&super::etag(&weights))), "{blobs:?}");
        // The same in shards, of which the second one is bad.
        let hub = Hub::new();
        let (whole, others) = (hub.bytes_of(WEIGHTS), other_weights(&hub, changed, None));
        hub.set(|site| {
            drop(site.files.remove(WEIGHTS));
            let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
            let map: BTreeMap<&str, &str> = tensors
                .names()
                .into_iter()
                .map(|name| (name, if name == changed { "b.safetensors" } else { "a.safetensors" }))
                .collect();
            let index = serde_json::to_vec(&serde_json::json!({ "weight_map": map })).unwrap();
            site.files.insert("model.safetensors.index.json".into(), index);
            site.files.insert("b.safetensors".into(), weights.clone());
            site.files.insert("a.safetensors".into(), others.clone());
        });
        hub.inspect(&[]).says(&[said]);
        let blobs = listing(&hub.folder().join("blobs"));
        assert!(!blobs.iter().any(|blob| blob.starts_with(&super::etag(&weights))), "{blobs:?}");
    }
}

#[test]
fn a_model_whose_tokenizer_cannot_be_read_is_refused_before_its_weights_are_fetched() {
    let hub = Hub::new();
    hub.set(|site| {
        site.files = BTreeMap::from([("large.gguf".into(), gguf::with_rule("kimi-k2", 4 << 20))]);
    });
    let named = format!("{NAME}/large.gguf");
    let parts = ["the splitting rule kimi-k2 is not known", "fetch its files by other means", "--ids"];
    done(&mut hub.command(&["inspect", &named])).says(&parts);
    assert!(listing(&hub.folder().join("blobs")).is_empty(), "the beginning is not kept");
    hub.set(|site| {
        site.files = BTreeMap::from([("large.gguf".into(), gguf::with_rule("smaug-bpe", 4 << 20))]);
    });
    done(&mut hub.command(&["inspect", &named, "--json"])).json();

    let hub = Hub::new();
    hub.set(|site| drop(site.files.insert("tokenizer.json".into(), b"{\"model\": 1}".to_vec())));
    // The second time it lies in the cache.
    for _ in 0..2 {
        hub.inspect(&[]).says(&["the tokenizer cannot be read", "fetch its files by other means"]);
        assert!(!hub.folder().join("snapshots").join(COMMIT).join(WEIGHTS).exists());
    }
    // Without a tokenizer, the model takes ids.
    hub.set(|site| drop(site.files.remove("tokenizer.json")));
    assert_eq!(hub.inspect(&[("HF_HOME", hub.home.path().join("other").to_str().unwrap())]).code, Some(0));
}

#[test]
fn adapters_and_models_without_a_configuration_are_named() {
    let hub = Hub::new();
    let adapter = br#"{"base_model_name_or_path": "Qwen/Qwen3-0.6B", "peft_type": "LORA"}"#;
    hub.set(|site| {
        let weights = site.files.remove(WEIGHTS).unwrap();
        site.files.insert("adapter_config.json".into(), adapter.to_vec());
        site.files.insert("adapter_model.safetensors".into(), weights);
    });
    let parts = ["this is an adapter (LoRA)", "merge it into Qwen/Qwen3-0.6B", "some-org/Small-Model.1"];
    hub.inspect(&[]).says(&parts);
    done(&mut hub.command(&["inspect", NAME, "--no-fetch"])).says(&parts);
    hub.set(|site| drop(site.files.remove("config.json")));
    hub.inspect(&[]).says(&parts);

    let hub = Hub::new();
    hub.set(|site| drop(site.files.remove("config.json")));
    hub.inspect(&[]).says(&["some-org/Small-Model.1 has no config.json"]);
    assert!(!hub.asked().iter().any(|asked| asked.path.ends_with(WEIGHTS)));
}

/// A mirror that sends everything to another host, in each form in which a redirect may be written.
#[test]
fn redirects_to_other_hosts_are_followed_without_the_token() {
    for (scheme, host) in [("http:", "localhost"), ("http:", "127.0.0.1"), ("", "localhost")] {
        let (mirror, hub) = (Hub::new(), Hub::new());
        mirror.set(|site| site.elsewhere = Some(format!("{scheme}//{host}:{}", hub.port)));
        mirror.inspect(&[("HF_TOKEN", "hf_secret")]).json();
        let snapshot = mirror.folder().join("snapshots").join(COMMIT);
        assert_eq!(std::fs::read(snapshot.join("config.json")).unwrap(), hub.bytes_of("config.json"));
        assert_eq!(std::fs::read(snapshot.join(WEIGHTS)).unwrap(), hub.bytes_of(WEIGHTS));
        assert!(mirror.asked().iter().all(|asked| asked.token.as_deref() == Some("hf_secret")));
        let asked = hub.asked();
        assert!(asked.len() > 6 && asked.iter().all(|asked| asked.token.is_none()), "{host}: {asked:?}");
    }
    let mirror = Hub::new();
    mirror.set(|site| site.elsewhere = Some(format!("http://127.0.0.1:{}", mirror.port)));
    mirror.inspect(&[]).says(&["the hub redirects too often", "HF_ENDPOINT"]);
    assert!(mirror.asked().len() < 10);
}

#[test]
fn both_variables_forbid_fetching_and_are_named() {
    let hub = Hub::new();
    let said = ["is not in the cache", "TRANSFORMERS_OFFLINE forbids"];
    hub.inspect(&[("TRANSFORMERS_OFFLINE", "1")]).says(&said);
    let eval = ["eval", F16, "--device", "cpu", "--data", "aime24", "--out"];
    let out = hub.home.path().join("out");
    let cache = hub.home.path().join("empty");
    let mut command = hub.command(&[&eval[..], &[out.to_str().unwrap()]].concat());
    let endpoint = format!("http://127.0.0.1:{}", hub.port);
    command.env("TRANSFORMERS_OFFLINE", "1").env("XDG_CACHE_HOME", cache).env("SECATEUR_BENCHMARKS", endpoint);
    done(&mut command).says(&said);
    assert!(hub.asked().is_empty());
}

#[test]
fn a_model_is_described_without_its_weights() {
    let hub = Hub::new();
    let inspect =
        |model: &str, more: &[&str]| done(&mut hub.command(&[&["inspect", model, "--json"], more].concat())).json();
    let peeked = inspect(NAME, &["--no-fetch"]);
    let snapshot = hub.folder().join("snapshots").join(COMMIT);
    assert!(!snapshot.join(WEIGHTS).exists() && !hub.folder().join("refs/main").exists());
    assert_eq!(peeked, inspect(NAME, &[]), "the same as of the whole model");
    assert_eq!((&peeked["runs"], peeked["weights"]["parameters"].as_u64()), (&true.into(), Some(367_584)));

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf-qwen2-q8/model.gguf");
    let mut large = std::fs::read(path).expect("the fixture");
    large.resize(8 << 20, 0);
    hub.set(|site| {
        site.files = gguf::split::two_parts().into_iter().collect();
        site.files.insert("large.gguf".into(), large.clone());
    });
    let file = format!("{NAME}/large.gguf");
    assert_eq!(inspect(&file, &["--no-fetch"])["weights"], inspect(path, &[])["weights"]);
    let parts = format!("{NAME}/{}", gguf::split::two_parts()[1].0);
    assert_eq!(inspect(&parts, &["--no-fetch"])["architecture"], "LlamaForCausalLM");
    assert!(!snapshot.join("large.gguf").exists());
}

#[test]
fn a_busy_hub_is_waited_for_as_long_as_it_says() {
    for status in [429, 503] {
        let hub = Hub::new();
        hub.set(|site| site.busy = Some((status, 0)));
        let ran = hub.inspect(&[]);
        ran.json();
        assert!(ran.err.contains("trying again in 0.0 s"), "{}", ran.err);
    }
    let hub = Hub::new();
    hub.set(|site| site.busy = Some((429, 3600)));
    hub.inspect(&[]).says(&["so many requests", "try again in 3600 seconds"]);
}

#[test]
fn a_mirror_need_not_tell_the_length_of_small_files() {
    let hub = Hub::new();
    hub.set(|site| site.endless = true);
    hub.inspect(&[]).json();
    let snapshot = hub.folder().join("snapshots").join(COMMIT);
    assert_eq!(std::fs::read(snapshot.join("config.json")).unwrap(), hub.bytes_of("config.json"));
}

#[test]
fn a_token_that_has_expired_is_named_with_its_place() {
    let hub = Hub::new();
    hub.set(|site| {
        site.refuse = Some((401, ""));
        site.message = "Invalid credentials in Authorization header";
    });
    let parts = ["does not accept the token in", "Invalid credentials", "public models need none"];
    let ran = hub.inspect(&[("HF_TOKEN", "hf_old")]);
    ran.says(&parts);
    ran.says(&["the token in HF_TOKEN"]);
    assert!(!ran.err.contains("hf_old"));
    let file = hub.home.path().join("token");
    std::fs::write(&file, "hf_old\n").unwrap();
    hub.inspect(&[]).says(&[&format!("the token in {}", file.display())]);
}

#[test]
fn what_another_tool_left_out_of_its_snapshot_is_fetched() {
    let hub = Hub::new();
    hub.inspect(&[]).json();
    let folder = hub.folder();
    // The repository has no such file, which is remembered as huggingface_hub does.
    assert!(folder.join(".no_exist").join(COMMIT).join("chat_template.jinja").is_file());
    let snapshot = folder.join("snapshots").join(COMMIT);
    let dropped = "generation_config.json";
    std::fs::remove_file(snapshot.join(dropped)).unwrap();
    hub.asked();
    // Without a network, the snapshot is used as it is.
    hub.inspect(&[("HF_HUB_OFFLINE", "1")]).json();
    hub.inspect(&[("HF_ENDPOINT", "http://127.0.0.1:9")]).json();
    assert!(hub.asked().is_empty() && !snapshot.join(dropped).exists());
    hub.inspect(&[]).json();
    assert!(snapshot.join(dropped).exists());
    assert!(!hub.asked().iter().any(|asked| asked.path.ends_with(WEIGHTS)), "only what is missing");
    hub.inspect(&[]).json();
    assert!(hub.asked().is_empty());
}

#[test]
fn proxies_and_certificates_that_cannot_be_used_are_named() {
    let hub = Hub::new();
    hub.inspect(&[("ALL_PROXY", "socks5://127.0.0.1:9")]).says(&[
        "ALL_PROXY is a SOCKS proxy",
        "HTTP_PROXY",
        "NO_PROXY",
    ]);
    assert!(hub.asked().is_empty(), "nothing goes past the proxy");
    hub.inspect(&[("SSL_CERT_FILE", "/no/such.pem")]).says(&["SSL_CERT_FILE", "/no/such.pem", "PEM"]);
    hub.inspect(&[("ALL_PROXY", "socks5://127.0.0.1:9"), ("NO_PROXY", "127.0.0.1")]).json();
    // A cached model needs no connection.
    hub.inspect(&[("ALL_PROXY", "socks5://127.0.0.1:9")]).json();
}

#[test]
fn the_advice_names_a_file_that_can_be_fetched() {
    let hub = Hub::new();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf-qwen2-q8/model.gguf");
    let bytes = std::fs::read(path).expect("the fixture");
    hub.set(|site| {
        let names = ["BF16/x-BF16.gguf", "x-IQ2_M.gguf", "mmproj-F16.gguf"];
        site.files = names.into_iter().map(|name| (name.to_string(), bytes.clone())).collect();
    });
    hub.inspect(&[]).says(&["--model some-org/Small-Model.1/BF16/x-BF16.gguf"]);
    done(&mut hub.command(&["inspect", &format!("{NAME}/BF16/x-BF16.gguf"), "--json"])).json();
    hub.set(|site| drop(site.files.insert("x-Q8_0.gguf".into(), bytes.clone())));
    hub.inspect(&[]).says(&["--model some-org/Small-Model.1/x-Q8_0.gguf"]);
}
