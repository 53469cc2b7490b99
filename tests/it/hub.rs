//! Models by name: the binary with a hub on this machine that cuts connections, refuses requests, sends wrong answers
//! and redirects.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::common::command::{self, F16, Ran, secateur};
use serde_json::Value;

mod troubles;

const NAME: &str = "some-org/Small-Model.1";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";

/// The files of the hub, and its behaviour.
#[derive(Clone)]
struct Site {
    commit: &'static str,
    files: BTreeMap<String, Vec<u8>>,
    /// The number of bytes after which each connection that sends weights is cut: one number for each connection, the
    /// last one for all further ones.
    cuts: Vec<usize>,
    /// Announces fewer bytes than the file has, and sends that many.
    short: bool,
    /// Sends a wrong start in Content-Range.
    shifted: bool,
    /// Ignores Range and sends the whole file.
    whole: bool,
    /// Answers every request with this status and X-Error-Code.
    refuse: Option<(u16, &'static str)>,
    /// Answers 401 to a request without this token.
    token: Option<&'static str>,
    /// Answers the first request for each address with this status, and with Retry-After in seconds.
    busy: Option<(u16, u64)>,
    /// Sends no Content-Length.
    endless: bool,
    /// Sends this X-Error-Message with a refusal.
    message: &'static str,
    /// Redirects every request to the same path behind this address.
    elsewhere: Option<String>,
}

/// A request that the hub received.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    path: String,
    host: String,
    range: Option<usize>,
    token: Option<String>,
}

struct Hub {
    port: u16,
    site: Arc<Mutex<Site>>,
    log: Arc<Mutex<Vec<Asked>>>,
    home: tempfile::TempDir,
}

impl Hub {
    /// A hub with the f16 fixture, and an empty cache.
    fn new() -> Self {
        let mut files = BTreeMap::new();
        for name in ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"] {
            files.insert(name.to_string(), std::fs::read(Path::new(F16).join(name)).expect("the fixture"));
        }
        files.insert("README.md".into(), b"nobody needs this".to_vec());
        let site = Site {
            commit: COMMIT,
            files,
            cuts: Vec::new(),
            short: false,
            shifted: false,
            whole: false,
            refuse: None,
            token: None,
            busy: None,
            endless: false,
            message: "",
            elsewhere: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (site, log) = (Arc::new(Mutex::new(site)), Arc::new(Mutex::new(Vec::new())));
        let (s, l) = (site.clone(), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (s, l) = (s.clone(), l.clone());
                std::thread::spawn(move || serve(stream, &s, &l));
            }
        });
        Self { port, site, log, home: tempfile::tempdir().expect("a folder") }
    }

    fn set(&self, change: impl FnOnce(&mut Site)) {
        change(&mut self.site.lock().expect("the site"));
    }

    /// The requests since the last call.
    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.log.lock().expect("the log"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = secateur(args);
        for (name, _) in std::env::vars().filter(|(name, _)| {
            ["HF_", "HUGGINGFACE_", "TRANSFORMERS_"].iter().any(|p| name.starts_with(p))
                || name.to_lowercase().ends_with("_proxy")
        }) {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", format!("http://127.0.0.1:{}/", self.port));
        command
    }

    fn inspect(&self, env: &[(&str, &str)]) -> Ran {
        done(self.command(&["inspect", NAME, "--json"]).envs(env.iter().copied()))
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("hub/models--some-org--Small-Model.1")
    }

    fn bytes_of(&self, file: &str) -> Vec<u8> {
        self.site.lock().expect("the site").files[file].clone()
    }
}

#[track_caller]
fn done(command: &mut Command) -> Ran {
    command::done(command.output().expect("the binary starts"))
}

impl Ran {
    #[track_caller]
    fn json(&self) -> Value {
        command::json(self)
    }

    #[track_caller]
    fn says(&self, parts: &[&str]) {
        command::fails(self, 1, parts);
    }
}

/// The ETag of a file. As on the hub, a large file has its SHA-256. A simpler sum takes the place of the git hash of
/// a small file.
fn etag(bytes: &[u8]) -> String {
    if bytes.len() > 100_000 {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        return digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    }
    let sum = bytes.iter().fold(0u64, |sum, b| sum.wrapping_mul(1099511628211) ^ u64::from(*b));
    format!("{:040x}", u128::from(sum) << 32 | bytes.len() as u128)
}

fn serve(mut stream: TcpStream, site: &Mutex<Site>, log: &Mutex<Vec<Asked>>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let mut words = request.split(' ').map(String::from);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string())))
        .collect();
    let get = |name: &str| headers.get(name).cloned();
    let range = get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let token = get("authorization").and_then(|a| a.strip_prefix("Bearer ").map(String::from));
    let host = get("host").unwrap_or_default();
    log.lock().expect("the log").push(Asked {
        method: method.clone(),
        path: path.clone(),
        host: host.clone(),
        range,
        token: token.clone(),
    });

    let asked = |a: &&Asked| a.path == path && a.method == method;
    let is_first = log.lock().expect("the log").iter().filter(asked).count() == 1;
    let (site, cut) = {
        let mut site = site.lock().expect("the site");
        let sends_weights = method == "GET" && path.starts_with("/cdn/");
        let cut = match (sends_weights, site.cuts.len()) {
            (false, _) | (_, 0) => None,
            (true, 1) => Some(site.cuts[0]),
            (true, _) => Some(site.cuts.remove(0)),
        };
        (site.clone(), cut)
    };
    let mut answer = |status: &str, headers: &[(&str, String)], body: &[u8], announced: usize| {
        let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
        if !site.endless {
            head += &format!("content-length: {announced}\r\n");
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
    };
    let on_cdn = path.starts_with("/cdn/");
    if let Some((status, code)) = site.refuse {
        let headers = [("X-Error-Code", code.into()), ("X-Error-Message", site.message.into())];
        return answer(&format!("{status} Refused"), &headers, b"no", 2);
    }
    if let Some(address) = &site.elsewhere {
        // As a web server does that knows nothing of files: the ETag and the length are those of this answer.
        return answer(
            "308 Permanent Redirect",
            &[("location", address.clone() + &path), ("ETag", "\"abc\"".into())],
            b"",
            0,
        );
    }
    if let Some((status, seconds)) = site.busy.filter(|_| is_first) {
        return answer(&format!("{status} Busy"), &[("Retry-After", seconds.to_string())], b"", 0);
    }
    if !on_cdn && site.token.is_some() && site.token != token.as_deref() {
        return answer("401 Unauthorized", &[("X-Error-Code", "GatedRepo".into())], b"", 0);
    }
    if path == format!("/api/models/{NAME}/revision/main") {
        let siblings: Vec<Value> = site.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": site.commit, "siblings": siblings }).to_string();
        return answer("200 OK", &[], body.as_bytes(), body.len());
    }
    let resolved = format!("/{NAME}/resolve/{}/", site.commit);
    let name = path.strip_prefix(&resolved).or_else(|| path.strip_prefix("/cdn/")).unwrap_or_default().to_string();
    let Some(bytes) = site.files.get(&name).cloned() else {
        return answer("404 Not Found", &[("X-Error-Code", "RepoNotFound".into())], b"", 0);
    };
    let tag = format!("\"{}\"", etag(&bytes));
    if !on_cdn && name == WEIGHTS {
        // Large files are on another host, which does not send the hub's headers.
        let target = format!("http://localhost:{}/cdn/{name}", host.rsplit(':').next().unwrap_or_default());
        let headers = [("location", target), ("X-Linked-Etag", tag), ("X-Linked-Size", bytes.len().to_string())];
        return answer("302 Found", &headers, b"", 0);
    }
    if method == "HEAD" {
        return answer("200 OK", &[("ETag", format!("W/{tag}"))], b"", bytes.len());
    }
    // Only the answers about weights are wrong.
    let site = Site {
        short: site.short && on_cdn,
        shifted: site.shifted && on_cdn,
        whole: site.whole && on_cdn,
        ..site.clone()
    };
    let from = range.filter(|_| !site.whole).unwrap_or(0);
    let bytes = if site.short { &bytes[..bytes.len() - 10] } else { &bytes[..] };
    let part = &bytes[from.min(bytes.len())..];
    let sent = &part[..cut.unwrap_or(part.len()).min(part.len())];
    let begin = from + usize::from(site.shifted);
    let headers = [("Content-Range", format!("bytes {begin}-{}/{}", bytes.len() - 1, bytes.len()))];
    match range.is_some() && !site.whole {
        true => answer("206 Partial Content", &headers, sent, part.len()),
        false => answer("200 OK", &[], sent, part.len()),
    }
}

/// The entries of a folder, without following links.
fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_fresh_model_is_fetched_once_into_the_layout_of_huggingface_hub() {
    let hub = Hub::new();
    let inspected = hub.inspect(&[]);
    let v = inspected.json();
    assert_eq!((v["model"].as_str(), v["problems"].as_array().map(Vec::len)), (Some(NAME), Some(0)));
    assert!(inspected.err.contains("fetching some-org/Small-Model.1"), "{}", inspected.err);

    let folder = hub.folder();
    let files = ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(listing(&folder.join("snapshots")), [COMMIT]);
    let snapshot = folder.join("snapshots").join(COMMIT);
    assert_eq!(listing(&snapshot), files, "what nobody needs is left where it is");
    let mut tags: Vec<String> = files.iter().map(|name| etag(&hub.bytes_of(name))).collect();
    tags.sort();
    assert_eq!(listing(&folder.join("blobs")), tags, "whole blobs and nothing else");
    for name in files {
        assert_eq!(std::fs::read(snapshot.join(name)).unwrap(), hub.bytes_of(name), "{name}");
        #[cfg(unix)]
        assert_eq!(
            std::fs::read_link(snapshot.join(name)).unwrap(),
            Path::new("../../blobs").join(etag(&hub.bytes_of(name)))
        );
    }
    assert_eq!(listing(&hub.home.path().join("hub/.locks/models--some-org--Small-Model.1")).len(), files.len());

    // From here on no request is made, whether there is a network or not.
    assert!(!hub.asked().is_empty());
    hub.inspect(&[]).json();
    hub.inspect(&[("HF_HUB_OFFLINE", "1")]).json();
    let ids = |model: &str| {
        let args = ["run", "--device", "cpu", "--model", model, "--ids", "1,2,3", "--max-new-tokens", "4", "--json"];
        done(&mut hub.command(&args)).json()["ids"].clone()
    };
    assert_eq!(ids(NAME), ids(F16));
    assert!(hub.asked().is_empty(), "the cache is enough");
}

#[test]
fn a_cut_connection_goes_on_where_it_broke() {
    let hub = Hub::new();
    let size = hub.bytes_of(WEIGHTS).len();
    // The first connection reads the header only. Then three connections are cut, and the fourth is complete.
    hub.set(|site| site.cuts = vec![usize::MAX, size / 3, 1, 1000, usize::MAX]);
    let ran = hub.inspect(&[]);
    ran.json();
    assert_eq!(ran.err.matches("going on from there").count(), 3, "{}", ran.err);
    let ranges: Vec<Option<usize>> =
        hub.asked().iter().filter(|a| a.path.starts_with("/cdn/")).map(|a| a.range).collect();
    assert_eq!(ranges, [None, None, Some(size / 3), Some(size / 3 + 1), Some(size / 3 + 1001)]);
    let blob = hub.folder().join("blobs").join(etag(&hub.bytes_of(WEIGHTS)));
    assert_eq!(std::fs::read(&blob).unwrap(), hub.bytes_of(WEIGHTS));
}

#[test]
fn what_a_failed_download_leaves_never_looks_complete_and_is_used_by_the_next() {
    let hub = Hub::new();
    let (size, tag) = (hub.bytes_of(WEIGHTS).len(), etag(&hub.bytes_of(WEIGHTS)));
    hub.set(|site| site.cuts = vec![usize::MAX, size - 5, 0]);
    hub.inspect(&[]).says(&[
        "the connection to the hub broke",
        "run the same command again",
        &format!("{} of {size}", size - 5),
    ]);
    let folder = hub.folder();
    let incomplete = folder.join("blobs").join(format!("{tag}.incomplete"));
    assert_eq!(std::fs::metadata(&incomplete).unwrap().len() as usize, size - 5);
    assert!(!folder.join("blobs").join(&tag).exists());
    assert!(!folder.join("snapshots").join(COMMIT).join(WEIGHTS).exists() && !folder.join("refs/main").exists());
    hub.inspect(&[("HF_HUB_OFFLINE", "1")]).says(&["is not in the cache", "HF_HUB_OFFLINE"]);

    hub.asked();
    hub.set(|site| site.cuts.clear());
    hub.inspect(&[]).json();
    let ranges: Vec<Option<usize>> =
        hub.asked().iter().filter(|a| a.path.starts_with("/cdn/")).map(|a| a.range).collect();
    assert_eq!(ranges, [None, Some(size - 5)], "the header, and what was missing");
    assert_eq!(std::fs::read(folder.join("blobs").join(&tag)).unwrap(), hub.bytes_of(WEIGHTS));
    assert!(!incomplete.exists());
}

#[test]
fn lies_about_lengths_and_ranges_are_found_out() {
    let hub = Hub::new();
    let tag = etag(&hub.bytes_of(WEIGHTS));
    let part = |hub: &Hub, bytes: &[u8]| {
        std::fs::create_dir_all(hub.folder().join("blobs")).unwrap();
        std::fs::write(hub.folder().join("blobs").join(format!("{tag}.incomplete")), bytes).unwrap();
    };
    // The answer has the length that it announces, which is not the length of the file.
    hub.set(|site| site.short = true);
    hub.inspect(&[]).says(&["the connection to the hub broke"]);
    assert!(!hub.folder().join("blobs").join(&tag).exists());
    hub.set(|site| site.short = false);
    // The answer has another range than the request asks for.
    part(&hub, &hub.bytes_of(WEIGHTS)[..100]);
    hub.set(|site| site.shifted = true);
    hub.inspect(&[]).says(&["was not asked for", "bytes 100-", "bytes 101-"]);
    hub.set(|site| site.shifted = false);
    // If the server does not support ranges, the download starts again. A partial file that is longer than the whole
    // is discarded.
    hub.set(|site| site.whole = true);
    hub.inspect(&[]).json();
    let blob = hub.folder().join("blobs").join(&tag);
    assert_eq!(std::fs::read(&blob).unwrap(), hub.bytes_of(WEIGHTS));
    std::fs::remove_file(&blob).unwrap();
    part(&hub, &vec![7; hub.bytes_of(WEIGHTS).len() + 1]);
    hub.inspect(&[]).json();
    assert_eq!(std::fs::read(&blob).unwrap(), hub.bytes_of(WEIGHTS));
    // A partial file of the full length with a hole, as a killed download in parallel parts leaves it.
    std::fs::remove_file(&blob).unwrap();
    let mut holed = hub.bytes_of(WEIGHTS);
    holed[1000..5000].fill(0);
    part(&hub, &holed);
    let ran = hub.inspect(&[]);
    ran.json();
    assert!(ran.err.contains("going on from there"), "{}", ran.err);
    assert_eq!(std::fs::read(&blob).unwrap(), hub.bytes_of(WEIGHTS));
}

#[test]
fn offline_and_not_cached_says_so() {
    let hub = Hub::new();
    for value in ["1", "true", "YES"] {
        let ran = hub.inspect(&[("HF_HUB_OFFLINE", value)]);
        ran.says(&["some-org/Small-Model.1 is not in the cache", "HF_HUB_OFFLINE", "models--some-org--Small-Model.1"]);
    }
    assert!(hub.asked().is_empty(), "offline asks nobody");
    // Another program began this snapshot.
    let snapshot = hub.folder().join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(hub.folder().join("refs")).unwrap();
    std::fs::write(hub.folder().join("refs/main"), COMMIT).unwrap();
    std::fs::write(snapshot.join("config.json"), hub.bytes_of("config.json")).unwrap();
    hub.inspect(&[("HF_HUB_OFFLINE", "1")]).says(&["is incomplete", "no model.safetensors"]);
    // With a network, the missing files are fetched, and the other files stay.
    hub.inspect(&[]).json();
    assert!(!hub.asked().iter().any(|a| a.path.ends_with("/config.json")));
}

#[test]
fn refusals_are_explained() {
    let hub = Hub::new();
    let cases: [(u16, &str, &[&str]); 6] = [
        (404, "RepoNotFound", &["the hub has no model some-org/Small-Model.1", "404", "/api/models/"]),
        (404, "RevisionNotFound", &["has no revision main"]),
        (401, "RepoNotFound", &["not permit access to some-org/Small-Model.1, or there is no such model", "HF_TOKEN"]),
        (403, "GatedRepo", &["accepted its conditions", "/some-org/Small-Model.1; then set HF_TOKEN"]),
        (429, "", &["so many requests"]),
        (503, "", &["an internal error", "503"]),
    ];
    for (status, code, parts) in cases {
        hub.set(|site| site.refuse = Some((status, code)));
        hub.inspect(&[]).says(parts);
    }
    hub.inspect(&[("HF_ENDPOINT", "http://127.0.0.1:9")]).says(&["the hub cannot be reached", "127.0.0.1:9"]);
    let odd = done(&mut hub.command(&["inspect", "no/such/dir"]));
    odd.says(&["not a directory", "no/such/dir"]);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let hub = Hub::new();
    hub.set(|site| site.token = Some("hf_secret"));
    hub.inspect(&[]).says(&["accepted its conditions"]);
    let wrong = hub.inspect(&[("HF_TOKEN", "hf_wrong")]);
    wrong.says(&["that in HF_TOKEN has none"]);
    assert!(!wrong.err.contains("hf_wrong"), "a token is never shown");
    hub.asked();
    // The file that `hf auth login` writes.
    std::fs::write(hub.home.path().join("token"), "hf_secret\n").unwrap();
    hub.inspect(&[]).json();
    for asked in hub.asked() {
        let own = asked.host.starts_with("127.0.0.1");
        assert_eq!(asked.token.as_deref(), own.then_some("hf_secret"), "{} {}", asked.method, asked.path);
    }
}

#[test]
fn an_update_fetches_what_changed_and_only_that() {
    let hub = Hub::new();
    hub.inspect(&[]).json();
    const NEXT: &str = "fedcba9876543210fedcba9876543210fedcba98";
    hub.set(|site| {
        site.commit = NEXT;
        let template = site.files.get_mut("generation_config.json").unwrap();
        template.push(b'\n');
    });
    hub.asked();
    hub.inspect(&[]).json();
    assert!(hub.asked().is_empty());
    let update =
        ["run", "--device", "cpu", "--model", NAME, "--update", "--ids", "1", "--max-new-tokens", "1", "--json"];
    done(&mut hub.command(&update)).json();
    let got: Vec<String> = hub.asked().iter().filter(|a| a.method == "GET").map(|a| a.path.clone()).collect();
    assert_eq!(got.len(), 2, "{got:?}");
    assert!(got[0].contains("/api/") && got[1].ends_with("generation_config.json"), "{got:?}");
    assert_eq!(std::fs::read_to_string(hub.folder().join("refs/main")).unwrap(), NEXT);
    assert_eq!(listing(&hub.folder().join("snapshots")), [COMMIT, NEXT]);
    // If the hub cannot be reached, a cached model still runs.
    let ran = done(hub.command(&update).env("HF_ENDPOINT", "http://127.0.0.1:9"));
    ran.json();
}

#[test]
fn shards_are_fetched_through_their_index_and_other_weights_refused() {
    let hub = Hub::new();
    hub.set(|site| {
        let weights = site.files.remove(WEIGHTS).unwrap();
        site.files.insert("all.safetensors".into(), weights.clone());
        site.files.insert("extra.safetensors".into(), weights);
        let tensors = safetensors::SafeTensors::deserialize(&site.files["all.safetensors"]).unwrap();
        let map: BTreeMap<&str, &str> = tensors.names().into_iter().map(|name| (name, "all.safetensors")).collect();
        let index = serde_json::to_vec(&serde_json::json!({ "weight_map": map })).unwrap();
        site.files.insert("model.safetensors.index.json".into(), index);
    });
    hub.inspect(&[]).json();
    let snapshot = listing(&hub.folder().join("snapshots").join(COMMIT));
    assert!(
        snapshot.contains(&"all.safetensors".into()) && !snapshot.contains(&"extra.safetensors".into()),
        "{snapshot:?}"
    );

    let hub = Hub::new();
    let gguf = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf-qwen2-q8/model.gguf");
    hub.set(|site| {
        site.files = BTreeMap::from([("small-q8_0.gguf".into(), std::fs::read(gguf).expect("the fixture"))]);
    });
    hub.inspect(&[]).says(&["no weights in safetensors", "--model some-org/Small-Model.1/small-q8_0.gguf"]);
    let other = done(&mut hub.command(&["inspect", &format!("{NAME}/large.gguf")]));
    other.says(&["has no large.gguf", "small-q8_0.gguf"]);
    let named = |model: &str| done(&mut hub.command(&["inspect", model, "--json"])).json()["weights"].clone();
    assert_eq!(named(&format!("{NAME}/small-q8_0.gguf")), named(gguf));
}

/// A name with a quantization: the file is searched for on the hub first, and in the cache afterwards.
#[test]
fn a_quantization_names_a_file() {
    let hub = Hub::new();
    let gguf = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/gguf-qwen2-q8/model.gguf"));
    let gguf = gguf.expect("the fixture");
    hub.set(|site| {
        let names = ["Small-Model.1-Q8_0.gguf", "mmproj-Q8_0.gguf", "Small-Model.1-Q4_K_M.gguf", "x-Q5_0.gguf"];
        site.files = names.map(|name| (name.to_string(), gguf.clone())).into();
    });
    let inspect = |kind: &str, offline: &str| {
        let model = format!("{NAME}:{kind}");
        done(hub.command(&["inspect", &model, "--json"]).env("HF_HUB_OFFLINE", offline))
    };
    inspect("q8_0", "1").says(&["some-org/Small-Model.1:q8_0 is not in the cache", "HF_HUB_OFFLINE"]);
    inspect("Q6_K", "0").says(&[
        "no GGUF file of the kind Q6_K",
        "Small-Model.1-Q4_K_M.gguf, Small-Model.1-Q8_0.gguf, mmproj-Q8_0.gguf, x-Q5_0.gguf",
    ]);
    inspect("q8_0", "0").json();
    assert_eq!(
        hub.asked()
            .iter()
            .filter(|asked| asked.path.ends_with("/Small-Model.1-Q8_0.gguf") && asked.method == "GET")
            .count(),
        1
    );
    inspect("q8_0", "0").json();
    inspect("Q8_0", "1").json();
    assert!(hub.asked().is_empty(), "what is cached is not asked for");
    inspect("Q4_K_M", "1").says(&["is not in the cache"]);
    // The hub is asked whether it has a file whose name fits better.
    inspect("Q5_0", "0").json();
    hub.asked();
    inspect("Q5_0", "0").json();
    assert!(!hub.asked().is_empty());
    inspect("Q5_0", "1").json();
    let peeked = done(&mut hub.command(&["inspect", &format!("{NAME}:Q4_K_M"), "--no-fetch", "--json"])).json();
    assert_eq!(peeked["weights"], inspect("Q8_0", "1").json()["weights"]);
}

#[test]
fn a_choice_of_layers_lies_in_the_snapshot_and_run_finds_it() {
    let hub = Hub::new();
    let data = hub.home.path().join("dev.jsonl");
    std::fs::write(&data, "{\"question\": \"Why?\", \"answer\": \"42\"}\n").unwrap();
    let options = ["--device", "cpu", "--budget", "tokens:8", "--probe-every", "8", "--window", "4"];
    let data = ["--data", data.to_str().unwrap(), "--max-new-tokens", "20", "--greedy"];
    let made = done(&mut hub.command(&[&["calibrate", NAME], &options[..], &data].concat()));
    assert_eq!(made.code, Some(0), "{}", made.err);
    let choice = hub.folder().join("snapshots").join(COMMIT).join("secateur.json");
    let place = choice.display().to_string();
    assert!(
        made.err.contains(&format!("{place}: `run` uses this choice with think-clearly on this model")),
        "{}",
        made.err
    );
    let layers = made.out.trim().to_string();
    let run = || {
        done(&mut hub.command(&[&["run", "--model", NAME], &options[..], &["--max-new-tokens", "9", "Why?"]].concat()))
    };
    let ran = run();
    let votes = if layers == "all" { "all layers vote".to_string() } else { format!("layers {layers} vote") };
    assert!(ran.code == Some(0) && ran.err.contains(&format!("{votes}, as calibrated ({place}")), "{}", ran.err);
    // It is used offline as well, and by the model's commit. Other weights are another snapshot without a choice.
    hub.asked();
    let offline = ["run", "--model", &format!("{NAME}@{COMMIT}"), "--device", "cpu", "--max-new-tokens", "1", "Why?"];
    let ran = done(hub.command(&offline).env("HF_HUB_OFFLINE", "1"));
    assert!(ran.code == Some(0) && ran.err.contains("as calibrated"), "{}", ran.err);
    assert!(hub.asked().is_empty());
    const NEXT: &str = "fedcba9876543210fedcba9876543210fedcba98";
    hub.set(|site| {
        site.commit = NEXT;
        *site.files.get_mut(WEIGHTS).unwrap().last_mut().unwrap() ^= 1;
    });
    let update = ["run", "--model", NAME, "--update", "--device", "cpu", "--max-new-tokens", "1", "Why?"];
    let ran = done(&mut hub.command(&update));
    assert!(ran.code == Some(0) && !ran.err.contains("calibrated"), "{}", ran.err);
    assert!(choice.exists(), "the old one keeps its own");
}
