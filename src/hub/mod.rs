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
mod cache;
mod download;
mod name;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ureq::Agent;

use crate::{Error, ErrorKind, Result};
use cache::Cached;
pub use name::HubName;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

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
