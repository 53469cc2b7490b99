//! `secateur serve`: an HTTP server with OpenAI's interface, whose requests have a known size.
//!
//! ```text
//! connection → admit (host, key, type) → body → Request → resolve, encode → job ──▶ inbox ──▶ engine's thread
//!                                                                                                │
//!            stream of chunks, or one object ◀── trimmed parts ◀── mailbox ◀─────────────────────┘
//! ```
//!
//! - `http`: the accept loop;
//! - `routes`: the handler of each address;
//! - `body`: the bodies that clients send, and the [`Request`] made from them; `reading`: errors in bodies;
//! - `tools`: the tools in requests, and the calls in answers;
//! - `worker`: the engine's own thread, with one long-lived [`Batch`](crate::Batch);
//! - `mailbox`: passes pieces from the thread to the task that answers a client;
//! - `answer`: makes a response of these pieces;
//! - `responses`: the same chats with OpenAI's newer interface;
//! - `traces`, `metrics`, `refusal`: kept traces, counters, and errors with their HTTP status;
//! - [`page`]: the browser's page, for `secateur web` and, with this server as its engine, for `/` here.
//!
//! The thread never waits for a client. Only handlers that wait for an answer wait for the thread. A client that goes
//! away drops its handler or its body, and with it the guard that lets the engine end the request within one step.
mod answer;
pub(crate) mod body;
mod formats;
mod http;
mod mailbox;
mod metrics;
pub mod page;
mod reading;
mod refusal;
mod responses;
mod routes;
mod tools;
mod traces;
mod worker;

use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::engine::Request;
use crate::{Error, ErrorKind, Result};

pub use worker::Open;

/// The least time that a server which ends gives its clients to read their last bytes.
const CLOSING: Duration = Duration::from_secs(3);

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The model's name in `/v1/models` and in responses.
    pub name: String,
    /// A prompt that the model can answer, which the page suggests.
    pub example: Option<String>,
    /// The fields that a request takes if it does not have its own.
    pub defaults: Request,
    /// The most requests that run side by side. The actual number is the number of [places](crate::Engine::places) of
    /// the engine.
    pub places: usize,
    /// Requests that may wait for a place.
    pub queue: usize,
    /// Bytes for the caches of all requests that run; `None`: what the device's largest buffers allow. A request gets
    /// a place only if the most that it can need fits beside the others.
    pub memory: Option<u64>,
    /// Bytes for the prompts of requests that have ended, which later requests with the same beginning copy; `None`:
    /// a quarter of the memory for caches, and at most 256 MiB if that is not given. They yield to requests that run.
    pub kept_prompts: Option<u64>,
    /// The most tokens that a request may generate, thinking included. Requests that ask for more get this number.
    pub most_new_tokens: usize,
    /// The most requests of one key that run and wait at one time; `None`: as many as there is room for.
    pub requests_per_key: Option<usize>,
    /// The keys of which a client needs one; none: no key is needed.
    pub keys: Vec<String>,
    /// The origins of web pages that may use the server; `*` for all.
    pub origins: Vec<String>,
    /// Names by which the server may be called, besides its address and `localhost`; `*` for all.
    pub hosts: Vec<String>,
    /// The address on which it listens.
    pub address: IpAddr,
    /// Whether a request may name any model and gets this one.
    pub any_model: bool,
    /// The field of a response that has the thinking.
    pub thinking_field: ThinkingField,
    /// The most bytes of a request's body.
    pub most_body_bytes: usize,
    /// After how much silence a comment is sent in a stream; `None`: never.
    pub ping: Option<Duration>,
    /// How long a client may leave text unread before its request is ended.
    pub patience: Duration,
    /// How long a request may take from its arrival to the end of its answer; `None`: as long as it needs.
    pub deadline: Option<Duration>,
    /// How long running requests may continue after the server was told to stop.
    pub drain: Duration,
    /// Called when the server was told to stop and cannot end at once. The arguments are the number of requests that
    /// run or wait, and the time that they have left. Without requests, the model is still loading, which is not
    /// interrupted.
    pub on_drain: fn(usize, Duration),
    /// The most bytes of traces that are kept.
    pub trace_bytes: usize,
}

/// The field of a response that has the thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThinkingField {
    /// `reasoning_content`, as DeepSeek, SGLang and llama-server have it.
    #[default]
    ReasoningContent,
    /// `reasoning`, as newer versions of vLLM have it.
    Reasoning,
    /// There is no such field: the thinking is part of the content.
    None,
}

/// The names by which a server may be called.
///
/// The name of a foreign web page can be made to resolve to this machine. The requests of that page then reach this
/// server as if they came from a page of its own, but they carry the foreign name.
#[derive(Debug, Clone)]
pub struct Names {
    /// The address on which the server listens.
    pub address: IpAddr,
    /// Further names that are allowed; `*` for all.
    pub further: Vec<String>,
}

impl Names {
    /// Whether `host`, the value of a request's `Host` header, is one of these names.
    fn allow(&self, host: Option<&str>) -> bool {
        if self.further.iter().any(|allowed| allowed == "*") {
            return true;
        }
        let Some(host) = host else { return false };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
            _ => host,
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let is_own = match name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || address == self.address,
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        };
        is_own
            || self
                .further
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(name) || allowed.eq_ignore_ascii_case(host))
    }
}

impl Options {
    /// The names by which the server may be called.
    fn names(&self) -> Names {
        // A foreign page whose name resolves to this machine does not have a key, so with keys all names are allowed.
        let all = (!self.keys.is_empty()).then(|| "*".to_string());
        Names { address: self.address, further: self.hosts.iter().cloned().chain(all).collect() }
    }

    /// Whether a page of this origin may use a server without a key: an origin of the server itself, or one that the
    /// options name.
    fn allows_origin(&self, origin: &str, host: Option<&str>) -> bool {
        let own = origin.split_once("://").is_some_and(|(_, name)| Some(name) == host);
        own || self.origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    }

    /// Refuses settings with which every machine in the network could use the server, and origins that no browser
    /// sends.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if it has no key and listens on another address than the machine's own, or for an origin
    /// that is not of the form `https://name` or `https://name:port`.
    pub fn check(&self) -> Result<()> {
        let is_origin = |origin: &str| {
            let name = origin.split_once("://").map(|(_, name)| name);
            origin == "*" || name.is_some_and(|name| !name.is_empty() && !name.contains(['/', ' ', ',']))
        };
        if let Some(wrong) = self.origins.iter().find(|origin| !is_origin(origin)) {
            let e = Error::new(ErrorKind::Input, "this is no origin of web pages").at("`cors`");
            return Err(e.expected("https://NAME or https://NAME:PORT, without a path").found(wrong));
        }
        if self.keys.is_empty() && !self.address.is_loopback() {
            return Err(Error::new(ErrorKind::Input, "without a key, everybody in the network could use this server")
                .at("`host`")
                .expected("an address of this machine alone, such as 127.0.0.1")
                .found(self.address)
                .help("name the keys of clients (`api_key_file`)"));
        }
        if self.keys.is_empty() && self.requests_per_key.is_some() {
            let e = Error::new(ErrorKind::Input, "without keys, nobody knows whose requests these are");
            return Err(e.at("`requests_per_key`").help("name the keys of clients (`api_key_file`)"));
        }
        Ok(())
    }
}

/// Serves until `stop` is set. Then new requests are refused. Running ones may continue for a while
/// ([`Options::drain`]), and are then ended. Returns how many were ended. `open` loads the model, at the start and
/// again after its device was lost.
///
/// # Errors
/// The errors of [`Options::check`], those of `open`, and [`ErrorKind::Io`] where the system gives no threads or
/// sockets.
pub fn run(listener: TcpListener, options: Options, open: Open, stop: Arc<AtomicBool>) -> Result<usize> {
    options.check()?;
    let worker = Arc::new(worker::Worker::start(open, &options, stop.clone())?);
    let runtime = runtime(&listener)?;
    let (drain, on_drain) = (options.drain, options.on_drain);
    let app = Arc::new(routes::App {
        keys: options.keys.iter().map(|key| blake3::hash(key.as_bytes())).collect(),
        traces: Arc::new(traces::Traces::new(options.trace_bytes)),
        started: answer::Frame::now(),
        names: options.names(),
        page: page::files().map(page::Page::with_server),
        running: routes::Running::default(),
        reading: Arc::new(tokio::sync::Semaphore::new(routes::READING_KIB)),
        encoding: Arc::new(tokio::sync::Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from))),
        asides: Arc::new(tokio::sync::Semaphore::new(routes::ASIDES)),
        worker: worker.clone(),
        options,
    });
    let cut_off = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(io_failed)?;
        let (close, closed) = tokio::sync::oneshot::channel();
        let accepting = tokio::spawn(http::accept(listener, routes::router(app), closed, drain.max(CLOSING)));
        wait_until(|| stop.load(Ordering::Acquire)).await;
        let told = std::time::Instant::now();
        worker.drain();
        let left = worker.under_way();
        if worker.lives() && (left > 0 || worker.model().is_none()) {
            on_drain(left, drain);
        }
        tokio::time::timeout(drain, wait_until(|| worker.is_idle())).await.ok();
        let cut_off = worker.under_way();
        worker.stop();
        close.send(()).ok();
        // Text that slow readers have not taken yet may still be sent, within the same time.
        let left = drain.saturating_sub(told.elapsed()).max(CLOSING);
        tokio::time::timeout(left, accepting).await.ok();
        Ok(cut_off)
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    worker.join().map(|()| cut_off)
}

/// The runtime of a server, for a listener whose connections it accepts.
fn runtime(listener: &TcpListener) -> Result<tokio::runtime::Runtime> {
    listener.set_nonblocking(true).map_err(io_failed)?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(io_failed)
}

fn io_failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "the server cannot be started").found(error)
}

/// Waits until `condition` holds.
async fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn options(address: &str, hosts: &[&str], keys: &[&str]) -> Options {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_string()).collect();
        Options {
            name: "m".into(),
            example: None,
            defaults: Request::default(),
            places: 1,
            queue: 1,
            memory: None,
            kept_prompts: None,
            most_new_tokens: 1,
            requests_per_key: None,
            keys: owned(keys),
            origins: Vec::new(),
            hosts: owned(hosts),
            address: address.parse().expect("an address"),
            any_model: false,
            thinking_field: ThinkingField::default(),
            most_body_bytes: 1,
            ping: None,
            patience: Duration::ZERO,
            deadline: None,
            drain: Duration::ZERO,
            on_drain: |_, _| (),
            trace_bytes: 0,
        }
    }

    #[test]
    fn names_that_a_stranger_may_have_given_to_this_machine_are_refused() {
        let local = options("127.0.0.1", &["box.lan"], &[]);
        for host in ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "[::1]", "box.lan:80"]
        {
            assert!(local.names().allow(Some(host)), "{host}");
        }
        for host in
            ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "192.168.1.5", "localhost.evil.example", ""]
        {
            assert!(!local.names().allow(Some(host)), "{host}");
        }
        assert!(!local.names().allow(None));
        assert!(options("192.168.1.5", &[], &[]).names().allow(Some("192.168.1.5:80")));
        assert!(options("0.0.0.0", &[], &["key"]).names().allow(Some("anything")), "the key protects it");
        assert!(options("127.0.0.1", &["*"], &[]).names().allow(Some("anything")));
    }

    #[test]
    fn a_server_for_the_network_needs_a_key() {
        assert!(options("127.0.0.1", &[], &[]).check().is_ok() && options("::1", &[], &[]).check().is_ok());
        assert!(options("0.0.0.0", &[], &["key"]).check().is_ok());
        let open = options("0.0.0.0", &["*"], &[]).check().expect_err("anybody could use it");
        assert!(open.to_string().contains("api_key"), "{open}");
        let limited = Options { requests_per_key: Some(1), ..options("127.0.0.1", &[], &[]) };
        assert!(limited.check().is_err_and(|e| e.to_string().contains("requests_per_key")));
    }
}
