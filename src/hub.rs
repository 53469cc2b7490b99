//! Models by name, from the Hugging Face hub or from its cache on disk.
//!
//! Why not the hf-hub crate: version 1.1 does not resume. It asks for no `Range`, and opening the `.incomplete` file truncates what an
//! earlier attempt has fetched; a cut connection at 4 of 5 GB begins anew. It computes no SHA-256 of what it fetched, it reads no
//! `HF_*` variables, and it needs tokio, reqwest and hf-xet.
//!
//! The cache is the one that `huggingface_hub` keeps, in its layout, so that both tools share what either has fetched:
//!
//! ```text
//! $HF_HOME/hub/models--ORG--NAME/
//!   blobs/ETAG                 a file's bytes; ETAG.incomplete while they arrive
//!   refs/main                  the commit that a branch meant when it was last asked for
//!   snapshots/COMMIT/FILE      a relative link to ../../blobs/ETAG
//! $HF_HOME/hub/.locks/models--ORG--NAME/ETAG.lock
//! ```
//!
//! A blob gets its name only once it has every byte that the hub announced and, for large files, the SHA-256 that is its name;
//! a snapshot links only to such blobs. What a cut connection or a killed process leaves is an `.incomplete` file, from whose
//! end the next attempt goes on.
//!
//! Environment, as `huggingface_hub` reads it: `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` (or the file
//! `$HF_HOME/token`), `HF_ENDPOINT`; proxies as usual.
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::{Error, ErrorKind, Result, file};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Everything but the weights that a model may have. Only the first must be there.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];
/// Connections that may break, one after the other, without a byte gained in between.
const ATTEMPTS: u32 = 5;

/// `ORG/NAME`, `ORG/NAME@REVISION` or, for a GGUF file, `ORG/NAME/FILE.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/NAME`
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The one file that is wanted, if it is not the whole model.
    pub file: Option<String>,
}

impl FromStr for HubName {
    type Err = Error;

    /// Reads a name, or the address of a model's page or of a file on it, as people copy them from a browser.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |help: &str| {
            let error = Error::new(ErrorKind::Input, "not the name of a model on the hub")
                .expected("ORG/NAME, ORG/NAME@REVISION, or ORG/NAME/FILE.gguf")
                .found(format!("{text:?}"));
            if help.is_empty() { error } else { error.help(help) }
        };
        let name = plain_name(text);
        let (path, revision) = name.split_once('@').unwrap_or((&name, "main"));
        if let Some((repo, tag)) = path.split_once(':').filter(|(repo, _)| repo.contains('/')) {
            return Err(wrong(&format!(
                "name the file itself instead of its quantization {tag:?}: {repo}/FILE.gguf, from the page of {repo}"
            )));
        }
        let parts: Vec<&str> = path.split('/').collect();
        let (repo, file) = match parts[..] {
            // A file, not a repository.
            [_, name] if name.ends_with(".gguf") => return Err(wrong("")),
            [_, _] => (path.to_string(), None),
            [org, name, file] if file.ends_with(".gguf") => (format!("{org}/{name}"), Some(file.to_string())),
            _ => return Err(wrong("")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let good = |part: &str| !part.is_empty() && part.chars().all(plain) && !part.starts_with('.');
        let good_revision = !revision.is_empty() && revision.split('/').all(good);
        match parts.iter().all(|part| good(part)) && good_revision {
            true => Ok(Self { repo, revision: revision.to_string(), file }),
            false => Err(wrong("")),
        }
    }
}

/// `text` in the form of a name, if it is an address on the hub: without scheme, host and query, with the revision of a page
/// (`/tree/REVISION`) or of a file (`/blob/REVISION/FILE`) behind an `@`.
fn plain_name(text: &str) -> String {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let hosts = ["huggingface.co/", "www.huggingface.co/", "hf.co/"];
    let Some(path) = hosts.iter().find_map(|host| bare.strip_prefix(host)) else {
        // A name with one slash too many, as completion in a shell leaves it.
        let name = text.strip_suffix('/').unwrap_or(text);
        return if name.split('/').count() == 2 { name } else { text }.to_string();
    };
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let at = |revision: &str| if revision == "main" { String::new() } else { format!("@{revision}") };
    match path.split('/').collect::<Vec<_>>()[..] {
        [org, name, "tree", revision] => format!("{org}/{name}{}", at(revision)),
        [org, name, "blob" | "resolve", revision, file] => format!("{org}/{name}/{file}{}", at(revision)),
        _ => path.to_string(),
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != "main" { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

/// What a front-end is told while files arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// So many bytes of all the files that are missing are here, those of an earlier attempt included.
    Bytes {
        /// The file that is arriving.
        file: &'a str,
        /// Bytes here.
        done: u64,
        /// Bytes of all.
        of: u64,
    },
    /// This file is here; its checksum is computed.
    Checking {
        /// The file.
        file: &'a str,
    },
    /// Another process is fetching this file.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// The connection broke; the next attempt goes on from where it broke.
    Resuming {
        /// The file.
        file: &'a str,
        /// What broke.
        cause: &'a str,
    },
}

/// The hub and its cache, as the environment describes them.
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    agent: Agent,
    /// Waits this long before the second attempt, and longer before each further one.
    pause: Duration,
}

/// What the hub says of a file before it is fetched.
struct Remote {
    name: String,
    etag: String,
    bytes: u64,
    /// Whether `etag` is the SHA-256 of the file.
    hashed: bool,
}

impl Hub {
    /// As the environment says. Nothing is asked of the network yet.
    ///
    /// # Errors
    /// When there is no home directory to keep a cache in, and none is named.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = match var("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => match var("XDG_CACHE_HOME") {
                Some(cache) => PathBuf::from(cache).join("huggingface"),
                None => std::env::home_dir()
                    .ok_or_else(|| {
                        Error::new(ErrorKind::Io, "there is no home directory to keep models in")
                            .help("name a folder in HF_HOME")
                    })?
                    .join(".cache/huggingface"),
            },
        };
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let yes = |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = var("HF_TOKEN").or_else(|| fs::read_to_string(token_file).ok());
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("secateur/", env!("CARGO_PKG_VERSION")))
            // Large files lie elsewhere, under addresses that are signed themselves: the token is not for those hosts.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        Ok(Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token,
            offline: var("HF_HUB_OFFLINE").or_else(|| var("TRANSFORMERS_OFFLINE")).is_some_and(yes),
            agent: config.build().into(),
            pause: Duration::from_millis(500),
        })
    }

    /// The folder that holds `name`, or the file where it names one: from the cache if all of it is there, else fetched.
    /// The hub is asked only then, or when `update` demands to know whether a branch has moved on.
    ///
    /// # Errors
    /// A model that is neither cached nor to be had: offline, unreachable, unknown, not permitted, without weights that
    /// secateur reads; a disk that is full.
    pub fn fetch(&self, name: &HubName, update: bool, on: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let cached = self.cached(name);
        match &cached {
            Cached::Complete(path) if !update || self.offline => return Ok(path.clone()),
            // What is there may do: a tokenizer is not needed for everything. The loader says what it misses.
            Cached::Partial(path, missing) if self.offline && missing == "tokenizer.json" => return Ok(path.clone()),
            Cached::Partial(path, missing) if self.offline => {
                return Err(Error::new(ErrorKind::Model, format!("the cached copy of {name} is incomplete"))
                    .at(path.display())
                    .found(format!("no {missing}"))
                    .help("HF_HUB_OFFLINE forbids to fetch the rest: unset it once"));
            }
            Cached::Nothing(path) if self.offline => {
                return Err(Error::new(ErrorKind::Model, format!("{name} is not in the cache"))
                    .at(path.display())
                    .help("HF_HUB_OFFLINE forbids to fetch it: unset it once, or pass the directory of a model"));
            }
            _ => {}
        }
        match self.download(name, on) {
            // An update that cannot be had is no reason not to run.
            Err(Failure::Unreachable(error)) => match cached {
                Cached::Complete(path) => Ok(path),
                _ => Err(error),
            },
            Err(Failure::Final(error)) => Err(error),
            Ok(path) => Ok(path),
        }
    }

    fn folder(&self, name: &HubName) -> PathBuf {
        self.cache.join(format!("models--{}", name.repo.replace('/', "--")))
    }

    /// What the cache holds of `name`.
    fn cached(&self, name: &HubName) -> Cached {
        let folder = self.folder(name);
        let commit = match is_commit(&name.revision) {
            true => Some(name.revision.clone()),
            false => fs::read_to_string(folder.join("refs").join(&name.revision)).ok(),
        };
        let Some(snapshot) = commit.map(|commit| folder.join("snapshots").join(commit.trim())) else {
            return Cached::Nothing(folder);
        };
        // Follows links: one that dangles is no file.
        let has = |file: &str| snapshot.join(file).is_file();
        if let Some(file) = &name.file {
            return if has(file) { Cached::Complete(snapshot.join(file)) } else { Cached::Nothing(folder) };
        }
        if !snapshot.is_dir() {
            return Cached::Nothing(folder);
        }
        let weights = match (has(SINGLE), has(INDEX)) {
            (true, _) => Vec::new(),
            (false, true) => match fs::read(snapshot.join(INDEX)).map_err(|_| ()).and_then(|text| shards(&text)) {
                Ok(shards) => shards.into_iter().collect(),
                Err(()) => vec![INDEX.to_string()],
            },
            (false, false) => vec![SINGLE.to_string()],
        };
        let needed = ["config.json".to_string()].into_iter().chain(weights).chain(["tokenizer.json".to_string()]);
        match needed.into_iter().find(|file| !has(file)) {
            None => Cached::Complete(snapshot),
            Some(missing) => Cached::Partial(snapshot, missing),
        }
    }

    fn download(&self, name: &HubName, on: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf, Failure> {
        let (commit, files) = self.look_up(name)?;
        let folder = self.folder(name);
        let snapshot = folder.join("snapshots").join(&commit);
        let has = |file: &str| files.contains(file);

        let mut wanted: Vec<String> = match &name.file {
            Some(file) if has(file) => vec![file.clone()],
            Some(file) => {
                let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|f| f.ends_with(".gguf")).collect();
                return Err(Error::new(ErrorKind::Model, format!("{} has no {file}", name.repo))
                    .at(&self.endpoint)
                    .found(if ggufs.is_empty() { "no GGUF files".into() } else { ggufs.join(", ") })
                    .into());
            }
            None => FILES.into_iter().filter(|file| has(file)).map(String::from).collect(),
        };
        if name.file.is_none() {
            match (has(SINGLE), has(INDEX)) {
                (true, _) => wanted.push(SINGLE.into()),
                (false, true) => {
                    // The index first: it names the shards.
                    self.get_all(name, &commit, &[INDEX.into()], &mut |_| ())?;
                    let place = snapshot.join(INDEX);
                    let text = fs::read(&place).map_err(|e| io("a file of the cache cannot be read", &place, &e))?;
                    let shards = shards(&text).map_err(|()| {
                        Error::new(ErrorKind::Model, "the index of the weights is malformed").at(place.display())
                    })?;
                    wanted.extend(shards);
                }
                (false, false) => return Err(self.no_weights(name, &files).into()),
            }
        }
        self.get_all(name, &commit, &wanted, on)?;
        // Last of all: a ref promises a snapshot.
        if !is_commit(&name.revision) {
            let branch = folder.join("refs").join(&name.revision);
            make_parent(&branch)?;
            file::replace(&branch, &commit).map_err(|e| io("the cache cannot be written", &branch, &e))?;
        }
        Ok(match &name.file {
            Some(file) => snapshot.join(file),
            None => snapshot,
        })
    }

    fn no_weights(&self, name: &HubName, files: &BTreeSet<String>) -> Error {
        let error = Error::new(ErrorKind::Model, format!("{} has no weights in safetensors", name.repo))
            .at(format!("{}/{}", self.endpoint, name.repo))
            .expected(format!("{SINGLE}, or {INDEX} and its shards"));
        let of = |end: &str| files.iter().map(String::as_str).filter(|f| f.ends_with(end)).collect::<Vec<_>>();
        match (of(".gguf"), of(".bin")) {
            (ggufs, _) if !ggufs.is_empty() => error
                .found(ggufs.join(", "))
                .help(format!("name one of its GGUF files: `model` {}/{}", name.repo, ggufs[0])),
            (_, bins) if !bins.is_empty() => error
                .found(bins.join(", "))
                .help("pickled weights are not read: convert them to safetensors with transformers' save_pretrained"),
            _ => error.found(format!("{} other files", files.len())),
        }
    }

    /// The commit that the revision means now, and the names of its files.
    fn look_up(&self, name: &HubName) -> Result<(String, BTreeSet<String>), Failure> {
        let revision = name.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, name.repo);
        let mut response = self.ask(&url, None)?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(name, &url, &response));
        }
        let failed = |e: ureq::Error| self.broken(&url, e);
        let text = response.body_mut().with_config().limit(64 << 20).read_to_vec().map_err(failed)?;
        let json: Value = serde_json::from_slice(&text).unwrap_or_default();
        let commit = json["sha"].as_str().filter(|sha| is_commit(sha));
        let files = json["siblings"].as_array().map(|list| list.iter().filter_map(|f| f["rfilename"].as_str()));
        match (commit, files) {
            (Some(commit), Some(files)) => Ok((commit.to_string(), files.map(String::from).collect())),
            _ => Err(Error::new(ErrorKind::Model, "the hub answers with something that does not describe a model")
                .at(url)
                .found(String::from_utf8_lossy(&text).chars().take(80).collect::<String>())
                .help("is HF_ENDPOINT right?")
                .into()),
        }
    }

    /// Brings `files` into the snapshot of `commit`.
    fn get_all(
        &self,
        name: &HubName,
        commit: &str,
        files: &[String],
        on: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let folder = self.folder(name);
        let snapshot = folder.join("snapshots").join(commit);
        let mut remotes = Vec::new();
        for file in files.iter().filter(|file| !snapshot.join(file).is_file()) {
            remotes.push(self.describe(name, commit, file)?);
        }
        let of = remotes.iter().map(|r| r.bytes).sum();
        let mut before = 0;
        for remote in &remotes {
            let blob = folder.join("blobs").join(&remote.etag);
            let _lock = self.lock(&folder, remote, on)?;
            if !blob.is_file() {
                let (url, file) = (self.address(name, commit, &remote.name), remote.name.as_str());
                let mut barren = 0;
                loop {
                    let mut told = |here: Option<u64>| match here {
                        Some(here) => on(Progress::Bytes { file, done: before + here, of }),
                        None => on(Progress::Checking { file }),
                    };
                    let Err((gained, failure)) = self.get(name, &url, remote, &blob, &mut told) else { break };
                    // Goes on for as long as connections bring something.
                    barren = if gained { 1 } else { barren + 1 };
                    match failure {
                        Failure::Unreachable(error) if barren < ATTEMPTS => {
                            on(Progress::Resuming { file, cause: error.what() });
                            std::thread::sleep(self.pause * barren);
                        }
                        failure => return Err(failure),
                    }
                }
            }
            before += remote.bytes;
            link(&blob, &snapshot.join(&remote.name), &remote.etag)?;
        }
        Ok(())
    }

    fn address(&self, name: &HubName, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, name.repo)
    }

    /// Size and name of a file's blob. Large files are answered with a redirect that already says so; following it would lose
    /// the hub's own headers.
    fn describe(&self, name: &HubName, commit: &str, file: &str) -> Result<Remote, Failure> {
        if !is_plain(file) {
            return Err(Error::new(ErrorKind::Model, "a file name reaches outside the model")
                .at(&name.repo)
                .found(format!("{file:?}"))
                .into());
        }
        let mut url = self.address(name, commit, file);
        for _ in 0..5 {
            let mut request = self.agent.head(&url).config().max_redirects(0).build();
            // Compressed, a length would not be the file's.
            request = request.header("accept-encoding", "identity");
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| self.unreachable(&url, &e))?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            let linked = header("x-linked-etag");
            let etag = linked.or(header("etag")).map(|e| e.trim_start_matches("W/").trim_matches('"'));
            let bytes = header("x-linked-size").or(header("content-length")).and_then(|n| n.parse().ok());
            match (response.status().as_u16(), etag, bytes, header("location")) {
                // A renamed repository: the same question elsewhere on the hub.
                (300..=399, _, _, Some(target)) if target.starts_with('/') && !target.starts_with("//") => {
                    url = format!("{}{target}", self.endpoint);
                }
                (200..=399, Some(etag), Some(bytes), _) if is_plain(etag) => {
                    // What large files are named by. A mirror may name them otherwise: then only the length is checked.
                    let hashed = linked.is_some() && etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
                    return Ok(Remote { name: file.to_string(), etag: etag.to_string(), bytes, hashed });
                }
                (200..=399, ..) => {
                    return Err(Error::new(ErrorKind::Model, "the hub does not say what this file is")
                        .at(url)
                        .expected("an ETag and a length")
                        .help("is HF_ENDPOINT right?")
                        .into());
                }
                _ => return Err(self.refused(name, &url, &response)),
            }
        }
        Err(Error::new(ErrorKind::Model, "the hub redirects in a circle").at(url).into())
    }

    /// One connection: appends to the blob's `.incomplete` file and, when it has every byte and they are the right ones, gives
    /// it its name. `on` is told of the bytes that are here, then that they are checked. On failure, whether any byte came.
    fn get(
        &self,
        name: &HubName,
        url: &str,
        remote: &Remote,
        blob: &Path,
        on: &mut dyn FnMut(Option<u64>),
    ) -> Result<(), (bool, Failure)> {
        let place = blob.with_file_name(format!("{}.incomplete", remote.etag));
        let failed = |e: std::io::Error| (false, Failure::Final(io("the cache cannot be written", &place, &e)));
        make_parent(&place).map_err(|e| (false, e.into()))?;
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&place).map_err(failed)?;
        let mut here = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if here > remote.bytes {
            // Not a part of this file, whatever it is.
            file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
            here = 0;
        }
        let arrived = |here: u64, why: &str| format!("{why} after {here} of {} bytes", remote.bytes);
        let mut gained = false;
        if here < remote.bytes {
            let mut response = self.ask(url, Some(here)).map_err(|e| (false, e))?;
            let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
            match response.status() {
                StatusCode::PARTIAL_CONTENT if range.is_some_and(|r| r.starts_with(&format!("bytes {here}-"))) => {}
                StatusCode::OK => {
                    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
                    here = 0;
                }
                StatusCode::PARTIAL_CONTENT => {
                    let found = range.unwrap_or("no Content-Range").to_string();
                    let error = Error::new(ErrorKind::Model, "the hub sends another part than it was asked for");
                    return Err((false, error.at(url).expected(format!("bytes {here}-")).found(found).into()));
                }
                _ => return Err((false, self.refused(name, url, &response))),
            }
            let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
            let mut buffer = vec![0; 256 << 10];
            on(Some(here));
            loop {
                let n =
                    body.read(&mut buffer).map_err(|e| (gained, self.broken(url, arrived(here, &e.to_string()))))?;
                if n == 0 {
                    break;
                }
                gained = true;
                here += n as u64;
                if here > remote.bytes {
                    drop(fs::remove_file(&place));
                    let error = Error::new(ErrorKind::Model, "the hub sends more than the file has").at(url);
                    return Err((true, error.expected(format!("{} bytes", remote.bytes)).into()));
                }
                file.write_all(&buffer[..n]).map_err(failed)?;
                on(Some(here));
            }
        }
        if here < remote.bytes {
            return Err((gained, self.broken(url, arrived(here, "the connection ended"))));
        }
        if remote.hashed {
            on(None);
            if !file.rewind().and_then(|()| sha256(&mut file)).map_err(failed)?.eq_ignore_ascii_case(&remote.etag) {
                // Perhaps what was there before: holes of a download in several parts, a damaged disk.
                drop(fs::remove_file(&place));
                return Err((
                    false,
                    self.broken(url, "other bytes than the hub's checksum says; they were thrown away"),
                ));
            }
        }
        // On the disk before it may count as complete.
        file.sync_all().and_then(|()| fs::rename(&place, blob)).map_err(failed)
    }

    /// The lock that `huggingface_hub` takes too. Freed when dropped.
    fn lock(&self, folder: &Path, remote: &Remote, on: &mut dyn FnMut(Progress<'_>)) -> Result<File> {
        let locks = self.cache.join(".locks").join(folder.file_name().unwrap_or_default());
        let place = locks.join(format!("{}.lock", remote.etag));
        make_parent(&place)?;
        let failed = |e: std::io::Error| io("the cache cannot be locked", &place, &e);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&place).map_err(failed)?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            on(Progress::Waiting { file: &remote.name });
            file.lock().map_err(failed)?;
        }
        Ok(file)
    }

    /// GET, from byte `from` on if that is not the first.
    fn ask(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from.filter(|from| *from > 0) {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| self.unreachable(url, &e))
    }

    fn unreachable(&self, url: &str, cause: &ureq::Error) -> Failure {
        let error = Error::new(ErrorKind::Io, "the hub cannot be reached").at(url).found(cause);
        Failure::Unreachable(error.help("check the network and HF_ENDPOINT, or pass the directory of a model"))
    }

    fn broken(&self, url: &str, cause: impl std::fmt::Display) -> Failure {
        let error = Error::new(ErrorKind::Io, "the connection to the hub broke").at(url).found(cause);
        Failure::Unreachable(error.help("what has arrived is kept: run it again to go on"))
    }

    fn refused(&self, name: &HubName, url: &str, response: &Response<Body>) -> Failure {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let code = header("x-error-code");
        let status = response.status();
        let page = format!("{}/{}", self.endpoint, name.repo);
        let with_token = match self.token {
            None => "set HF_TOKEN to a token of your account (or run `hf auth login`)",
            Some(_) => "the token in HF_TOKEN does not permit it",
        };
        let error = |what: String| Error::new(ErrorKind::Model, what).at(url).found(format!("{status} {code}").trim());
        let error = match (status.as_u16(), code) {
            (_, "GatedRepo") => error(format!("{} is open only to those who accepted its conditions", name.repo))
                .help(format!("accept them at {page}; then {with_token}")),
            (_, "RevisionNotFound") => error(format!("{} has no revision {}", name.repo, name.revision)),
            (401 | 403, _) => {
                error(format!("the hub does not give {} to just anyone, or there is no such model", name.repo))
                    .help(format!("check the name; for a private or gated model {with_token}"))
            }
            (404, _) => error(format!("the hub has no model {}", name.repo))
                .help("check the name; a directory on this machine must exist"),
            (429, _) => {
                error("the hub asks to slow down".into()).help("wait a while; a token (HF_TOKEN) raises the limit")
            }
            (500..=599, _) => {
                return Failure::Unreachable(error("the hub has a problem of its own".into()).help("try again later"));
            }
            _ => error("the hub refuses".into()),
        };
        Failure::Final(error)
    }
}

enum Cached {
    Complete(PathBuf),
    /// The snapshot, and the first file that is missing.
    Partial(PathBuf, String),
    /// Where it would be.
    Nothing(PathBuf),
}

/// Why nothing came: a connection that another attempt may mend, or anything else.
enum Failure {
    Unreachable(Error),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

fn io(what: &str, place: &Path, e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Io, what).at(place.display()).found(e)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the hub's word may name a file in the cache.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ' | '+' | '=');
    !name.is_empty() && name.len() <= 255 && name.chars().all(plain) && !name.starts_with('.')
}

/// The SHA-256 of what `file` has from here on, in hexadecimal digits.
fn sha256(file: &mut File) -> std::io::Result<String> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => context.update(&buffer[..n]),
        }
    }
}

/// The files that an index names.
fn shards(index: &[u8]) -> Result<BTreeSet<String>, ()> {
    let json: Value = serde_json::from_slice(index).map_err(|_| ())?;
    let map = json["weight_map"].as_object().filter(|map| !map.is_empty()).ok_or(())?;
    map.values().map(|file| file.as_str().map(String::from).ok_or(())).collect()
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| io("the cache cannot be written", parent, &e))
}

/// Puts the blob into the snapshot: a relative link or, where the system has none, the file itself.
fn link(blob: &Path, path: &Path, etag: &str) -> Result<()> {
    make_parent(path)?;
    let failed = |e: std::io::Error| io("the cache cannot be written", path, &e);
    let target = Path::new("../../blobs").join(etag);
    #[cfg(unix)]
    let linked = |at: &Path| std::os::unix::fs::symlink(&target, at);
    #[cfg(windows)]
    let linked = |at: &Path| std::os::windows::fs::symlink_file(&target, at);
    #[cfg(not(any(unix, windows)))]
    let linked = |_: &Path| Err(std::io::Error::from(std::io::ErrorKind::Unsupported));
    // A link that dangles is in the way.
    if path.symlink_metadata().is_ok() && !path.is_file() {
        fs::remove_file(path).map_err(failed)?;
    }
    match linked(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        // Windows without the privilege for links: as huggingface_hub does there, the file goes where it is used.
        Err(_) => fs::rename(blob, path).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models() {
        let name = |text: &str| text.parse::<HubName>().map(|n| (n.repo, n.revision, n.file)).ok();
        let of = |repo: &str, revision: &str, file: Option<&str>| {
            Some((repo.to_string(), revision.to_string(), file.map(String::from)))
        };
        assert_eq!(name("Qwen/Qwen3-0.6B"), of("Qwen/Qwen3-0.6B", "main", None));
        assert_eq!(name("a/b@refs/pr/1"), of("a/b", "refs/pr/1", None));
        assert_eq!(name("a/b-GGUF/b-Q8_0.gguf"), of("a/b-GGUF", "main", Some("b-Q8_0.gguf")));
        for pasted in [
            "https://huggingface.co/Qwen/Qwen3-0.6B",
            "huggingface.co/Qwen/Qwen3-0.6B/",
            "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main",
            "https://hf.co/Qwen/Qwen3-0.6B?library=transformers#usage",
            "Qwen/Qwen3-0.6B/",
        ] {
            assert_eq!(name(pasted), of("Qwen/Qwen3-0.6B", "main", None), "{pasted}");
        }
        assert_eq!(name("hf.co/a/b/tree/v1"), of("a/b", "v1", None));
        for kind in ["blob", "resolve"] {
            let pasted = format!("https://huggingface.co/a/b-GGUF/{kind}/main/b-Q8_0.gguf?download=true");
            assert_eq!(name(&pasted), of("a/b-GGUF", "main", Some("b-Q8_0.gguf")));
        }
        for quantized in ["a/b-GGUF:Q8_0", "hf.co/a/b-GGUF:Q8_0"] {
            let error = quantized.parse::<HubName>().expect_err("no file").to_string();
            assert!(error.contains("\"Q8_0\": a/b-GGUF/FILE.gguf"), "{error}");
        }
        for bad in [
            "https://example.org/a/b",
            "https://huggingface.co/a",
            "hf.co/spaces/a/b/c",
            "",
            "a",
            "a/",
            "/a",
            "../a",
            "a/..",
            "a/b/c",
            "a/b@",
            "a b/c",
            "a/b@../x",
            "./a/b",
            "~/x",
            "a/b.gguf",
            "C:\\x/y",
            "a/b?c",
        ] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
        assert_eq!("a/b@v1".parse::<HubName>().expect("a name").to_string(), "a/b@v1");
    }

    #[test]
    fn words_of_the_hub_name_no_file_elsewhere() {
        assert!(is_plain("model-00001-of-00002.safetensors") && is_plain("d41d8cd98f00b204e9800998ecf8427e"));
        for bad in ["", "..", ".hidden", "a/b", "a\\b", "a\0", "c:x", "ü"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }
}
