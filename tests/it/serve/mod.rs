//! The HTTP server, over loopback, with the built-in model on the CPU: what clients of OpenAI's interface see, and what
//! went wrong in other servers.
mod client;
mod page;
mod prompts;
mod responses;
mod robust;
mod tools;
mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use secateur::engine::{Engine, LoadOptions};
use secateur::serve::{self, Options, ThinkingField};
use secateur::{ComputeDevice, ModelSource, Request, Result, builtin};

/// A server in this process.
pub struct Server {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What most tests use: two places, no queue to speak of, no key.
pub fn options() -> Options {
    Options {
        name: "built-in".into(),
        example: Some(builtin::EXAMPLE.into()),
        defaults: Request::default(),
        places: 2,
        queue: 16,
        memory: None,
        kept_prompts: None,
        most_new_tokens: 4096,
        keys: Vec::new(),
        origins: Vec::new(),
        hosts: Vec::new(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        any_model: false,
        thinking_field: ThinkingField::ReasoningContent,
        most_body_bytes: 4 << 20,
        ping: Some(Duration::from_secs(10)),
        patience: Duration::from_secs(60),
        deadline: None,
        drain: Duration::from_secs(20),
        trace_bytes: 4 << 20,
    }
}

impl Server {
    /// Starts a server and waits until it answers.
    pub fn start(options: Options) -> Self {
        let places = options.places;
        let open = move || {
            let load = LoadOptions { sequences: places, ..LoadOptions::default() };
            Engine::load(&builtin::source(), builtin::NAME, &ComputeDevice::cpu(), &load, &mut |_, _| ())
        };
        Self::opening(options, Box::new(open))
    }

    /// Starts a server with the model of a directory in the repository.
    pub fn of(directory: &'static str, options: Options) -> Self {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        Self::with(ModelSource::open(path).expect("a committed fixture"), options)
    }

    /// Starts a server with this model.
    pub fn with(source: ModelSource, options: Options) -> Self {
        let load = LoadOptions { sequences: options.places, ..LoadOptions::default() };
        let open = move || Engine::load(&source, "a model", &ComputeDevice::cpu(), &load, &mut |_, _| ());
        Self::opening(options, Box::new(open))
    }

    /// Starts a server that loads its model in this way.
    pub fn opening(options: Options, open: serve::Open) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, keys) = (stop.clone(), options.keys.clone());
        let thread = std::thread::spawn(move || serve::run(listener, options, open, flag));
        let server = Self { address, stop, thread: Some(thread) };
        server.wait_for("the server answers", |server| {
            let key = keys.first().map(|key| format!("Bearer {key}"));
            server.get_with("/health", key.as_deref()).status == 200
        });
        server
    }

    /// A server that runs elsewhere.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, stop: Arc::default(), thread: None }
    }

    /// Waits until `condition` holds, for at most a minute.
    #[track_caller]
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Tells the server to stop and waits for its end.
    pub fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        self.thread.take().expect("it runs").join().expect("no panic")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
