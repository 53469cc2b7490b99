//! Fetches models by name from the Hugging Face hub, and finds them in its cache on disk.
//!
//! The crate hf-hub is not used, because its version 1.1 does not resume downloads: it sends no `Range`, and it
//! truncates the `.incomplete` file of an earlier attempt, so a connection that breaks at 4 of 5 GB starts again. It
//! also does not check the SHA-256 of a file, does not read the `HF_*` variables, and needs tokio, reqwest and
//! hf-xet.
//!
//! The cache has the place and the layout of the one of `huggingface_hub`, so both tools find what the other has
//! fetched:
//!
//! ```text
//! $HF_HOME/hub/models--ORG--NAME/
//!   blobs/ETAG                 the bytes of a file; ETAG.incomplete while it is fetched
//!   refs/main                  the commit of a branch when the hub was last asked
//!   snapshots/COMMIT/FILE      a relative link to ../../blobs/ETAG
//! $HF_HOME/hub/.locks/models--ORG--NAME/ETAG.lock
//! ```
//!
//! A blob gets its final name only after all bytes that the hub announced have arrived and, for large files, the
//! SHA-256 matches the name. Snapshots link only to such blobs. A broken connection or a killed process leaves an
//! `.incomplete` file, and the next attempt continues at its end.
//!
//! The environment variables are those of `huggingface_hub`: `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` (or
//! `TRANSFORMERS_OFFLINE`), `HF_TOKEN` (or the file `$HF_HOME/token`) and `HF_ENDPOINT`. Proxies are taken from
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, root certificates from `SSL_CERT_FILE`.
pub(crate) mod answers;
mod benchmarks;
mod cache;
mod check;
mod connection;
mod disk;
mod download;
mod name;
mod peek;
mod refused;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;

use crate::{Error, ErrorKind, Result};
pub use benchmarks::{BENCHMARKS, Benchmark};
use cache::Cached;
pub use name::HubName;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Files that a model does not require but is worse without. The cache may lack them although the hub has them, if a
/// tool that does not read them has filled it.
const OPTIONAL: [&str; 3] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];

/// The progress of a download, for a front-end to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Bytes have arrived.
    Bytes {
        /// The file that is being fetched.
        file: &'a str,
        /// The number of bytes that have arrived, of all missing files together. Bytes of earlier attempts are
        /// included.
        done: u64,
        /// The size of all missing files together, in bytes.
        total: u64,
    },
    /// All bytes of a file have arrived, and its checksum is being computed.
    Checking {
        /// The name of the file.
        file: &'a str,
    },
    /// Another process is fetching the same file, so this one waits.
    Waiting {
        /// The name of the file.
        file: &'a str,
    },
    /// The hub is busy, and asks to come back later.
    Pausing {
        /// What the hub says.
        cause: &'a str,
        /// The wait before the next attempt.
        wait: Duration,
    },
    /// The connection broke, and a new one continues where it broke.
    Resuming {
        /// The name of the file.
        file: &'a str,
        /// What went wrong.
        cause: &'a str,
    },
}

/// A hub and a cache. The environment variables choose both.
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<Token>,
    /// The variable that forbids fetching, if one does.
    offline: Option<&'static str>,
    /// The HTTP client, or the error that prevented it. A cached model needs no client.
    agent: Result<Agent>,
    /// The wait before the second attempt. It is longer before each further attempt.
    pause: Duration,
}

/// The token of an account.
struct Token {
    value: String,
    /// Where it was found, for messages: the name of a variable or of a file.
    place: String,
}

/// What the hub says about a file before it is fetched.
struct Remote {
    name: String,
    etag: String,
    bytes: u64,
    /// Whether `etag` is the SHA-256 of the file.
    hashed: bool,
}

impl Hub {
    /// Reads the environment variables. Nothing is sent to the network yet.
    ///
    /// # Errors
    /// If there is no home directory for the cache, and no variable names another directory.
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
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let in_file = || Some((fs::read_to_string(&token_file).ok()?, token_file.display().to_string()));
        let token = var("HF_TOKEN").map(|token| (token, "HF_TOKEN".to_string())).or_else(in_file);
        let token = token.map(|(value, place)| Token { value: value.trim().to_string(), place });
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        Ok(Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            agent: connection::agent(&endpoint),
            endpoint,
            token: token.filter(|token| !token.value.is_empty()),
            offline: connection::forbidden(var),
            pause: Duration::from_millis(500),
        })
    }

    /// A hub that cannot be reached and whose cache is empty: it only reads answers.
    fn without_network(token: Option<Token>) -> Self {
        Self {
            cache: PathBuf::new(),
            endpoint: "https://huggingface.co".into(),
            token,
            offline: Some(connection::OFFLINE[0]),
            agent: Err(Error::new(ErrorKind::Internal, "this hub cannot be asked")),
            pause: Duration::ZERO,
        }
    }

    /// `name` with the GGUF file of its quantization, if it names one: a file of the cache, or of the hub where the
    /// cache has none or `update` is set.
    ///
    /// # Errors
    /// If the hub cannot be asked, or has no such file.
    fn with_file(&self, name: &HubName, update: bool, report: &mut dyn FnMut(Progress<'_>)) -> Result<HubName> {
        let Some(kind) = &name.kind else { return Ok(name.clone()) };
        let with = |file: &str| HubName { file: Some(file.to_string()), kind: None, ..name.clone() };
        let cached = self.cached_files(name);
        let known = check::of_kind(cached.iter().map(String::as_str), kind).map(with);
        let known = known.filter(|name| matches!(self.cached(name), Cached::Complete(_)));
        // A file on the hub may fit the name better than the one that happens to be cached.
        let fits_best = known.as_ref().and_then(|known| known.file.as_deref()).is_some_and(|file| {
            let model = name.repo.rsplit('/').next().unwrap_or_default().to_lowercase();
            file.to_lowercase() == format!("{}-{}.gguf", model.trim_end_matches("-gguf"), kind.to_lowercase())
        });
        match (known.clone(), self.offline) {
            (Some(known), offline) if offline.is_some() || fits_best && !update => return Ok(known),
            (None, Some(variable)) => return Err(not_cached(name, &self.folder(name), variable)),
            _ => {}
        }
        let files = match (self.patiently(report, || self.look_up(name)), known) {
            (Ok((_, files)), _) => files,
            (Err(Failure::Unreachable(_) | Failure::Busy(..)), Some(known)) => return Ok(known),
            (Err(failure), _) => return Err(failure.into_error()),
        };
        let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|file| file.ends_with(".gguf")).collect();
        check::of_kind(ggufs.iter().copied(), kind).map(with).ok_or_else(|| {
            Error::new(ErrorKind::Model, format!("{} has no GGUF file of the kind {kind}", name.repo))
                .at(format!("{}/{}", self.endpoint, name.repo))
                .found(if ggufs.is_empty() { "no GGUF files".into() } else { ggufs.join(", ") })
        })
    }

    /// The path of the folder of the model `name`, or of its file if the name has one. A complete copy in the cache
    /// is used without asking the hub, unless `update` is set; then new files of the branch are fetched first.
    ///
    /// # Errors
    /// If the model is not in the cache and cannot be fetched: there is no connection, the hub does not have the
    /// model or does not permit access, the model has no weights that secateur can read, or the disk is full.
    pub fn fetch(&self, name: &HubName, update: bool, report: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let name = &self.with_file(name, update, report)?;
        let cached = self.cached(name);
        match (&cached, self.offline) {
            (Cached::Complete(path), offline) if !update || offline.is_some() => return Ok(path.clone()),
            (Cached::Sufficient(path), Some(_)) => return Ok(path.clone()),
            // Not every use needs a tokenizer. The loader reports it as missing if this one does.
            (Cached::Partial(path, missing), Some(_)) if missing == "tokenizer.json" => return Ok(path.clone()),
            (Cached::Partial(path, missing), Some(variable)) => {
                return Err(Error::new(ErrorKind::Model, format!("the cached copy of {name} is incomplete"))
                    .at(path.display())
                    .found(format!("no {missing}"))
                    .help(format!("{variable} forbids fetching the rest: unset it once")));
            }
            (Cached::Nothing(path), Some(variable)) => return Err(not_cached(name, path, variable)),
            _ => {}
        }
        match (self.download(name, report), cached) {
            (Ok(path), _) => Ok(path),
            // If an update or a further file cannot be fetched, the cached copy is used.
            (Err(Failure::Unreachable(_) | Failure::Busy(..)), Cached::Complete(path)) => Ok(path),
            (Err(_), Cached::Sufficient(path)) if !update => Ok(path),
            (Err(Failure::Unreachable(_) | Failure::Busy(..)), Cached::Sufficient(path)) => Ok(path),
            (Err(failure), _) => Err(failure.into_error()),
        }
    }
}

/// The error for a model that the cache does not have, where `variable` forbids fetching it.
fn not_cached(name: &HubName, place: &Path, variable: &str) -> Error {
    Error::new(ErrorKind::Model, format!("{name} is not in the cache"))
        .at(place.display())
        .help(format!("{variable} forbids fetching it: unset it once, or pass the directory of a model"))
}

/// Why a file or an answer could not be fetched.
enum Failure {
    /// The connection failed, so another attempt may work.
    Unreachable(Error),
    /// The hub is busy: another attempt may work after this time, if the hub says how long.
    Busy(Error, Option<Duration>),
    /// Another attempt would fail in the same way.
    Final(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Unreachable(error) | Self::Busy(error, _) | Self::Final(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}
