//! Models in parts and folders, models that cannot be run, and hubs, proxies and caches with errors.
use super::{COMMIT, Hub, NAME, WEIGHTS, done, listing};
use crate::gguf;
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
