//! The HTTP server, over loopback, with the built-in model on the CPU, as clients of OpenAI's interface see it.
//!
//! The table has errors of other servers and the tests for them here. Tests without a file are in `robust`.
//!
//! | in other servers | here |
//! |---|---|
//! | a stop text in the thought ended the run | `wire::stops_end_the_answer_and_never_the_thinking` |
//! | a stop text over several tokens leaked | the same, and `serving::a_stop_text_ends_the_answer_and_nothing_else` |
//! | an empty stop text matched at once | `wire::an_empty_stop_text_is_refused` |
//! | characters of several tokens came in halves | `wire::characters_of_several_tokens_come_whole` |
//! | the limit in the thought: a crash, or nothing | `wire::the_limit_inside_the_thinking_ends_with_length` |
//! | without thinking, the answer was taken for a thought | `tools::without_thinking_everything_is_content` |
//! | a user's `</think>` split the answer | `wire::what_a_user_writes_closes_no_thought` |
//! | a user's control tokens were control tokens | the same, and `tools::control_tokens_in_tools_and_results_stay_text` |
//! | calls in a thought were carried out | `tools::calls_come_apart_from_text_and_thought` |
//! | who left kept their place: in decoding | `a_client_that_leaves_frees_its_place` |
//! | … while the prompt was read, and in the queue | `long::a_client_that_leaves_while_its_prompt_is_read_frees_its_place`, `a_client_that_leaves_the_queue_costs_nothing` |
//! | a reader that was gone blocked the engine | `a_reader_that_stops_reading_is_ended_and_holds_nobody_up` |
//! | an error in a stream was not told | `a_lost_device_is_opened_again`, `responses::a_failure_is_told_in_the_stream` |
//! | health waited for a long prompt | `long::a_long_prompt_holds_nobody_up` |
//! | many idle connections took all threads | `health_and_metrics_answer_while_hundreds_of_connections_are_open` |
//! | a conversation of a megabyte stopped all streams | `long::a_long_conversation_holds_nobody_up` |
//! | a long prompt stopped decoding | `long::a_long_prompt_holds_nobody_up` |
//! | a short prompt waited for all of a long one | the same |
//! | a full queue was noticed after the work | `a_full_queue_refuses_at_once` |
//! | slow readers took memory | `a_reader_that_stops_reading_is_ended_and_holds_nobody_up` |
//! | memory grew with the number of requests | `docs/results/2026-11-29-server.md`: 10,000 requests |
//! | proxies closed silent streams | `silence_is_filled_with_comments`; in `serve::answer`, none from an engine that stands still |
//! | clients choked on comments | `comments_can_be_switched_off` |
//! | an idle connection was closed too early | `an_idle_connection_can_be_used_again_after_seconds` |
//! | large bodies got a refusal without a reason | `bodies_are_bounded_and_broken_ones_are_explained` |
//! | SIGTERM cut streams off | `a_server_that_is_told_to_stop_lets_answers_end`, `what_is_not_done_in_time_ends_with_an_error` |
//! | a prompt of the context's length, and longer ones | `wire::a_prompt_may_fill_the_context` |
//! | one request for the whole context stopped all others | `long::one_that_asks_for_the_whole_context_runs_beside_others` |
//! | what was accepted was never admitted | `wire::a_request_that_can_never_fit_is_refused_with_the_numbers`, `serving::nothing_exceeds_the_bound_by_which_it_was_admitted` |
//! | of three answers, two went on for a client that had left | `a_client_that_leaves_frees_its_place` |
//! | a format bound the thought as well | `formats::the_thinking_is_free`, `wire::an_answer_keeps_to_the_format_that_is_asked_for` |
//! | metrics that Prometheus cannot read | `tests/clients/test_clients.py` |
mod client;
mod long;
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
    thread: Option<JoinHandle<Result<usize>>>,
}

/// The options of most tests: two places, a short queue, no key.
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
        requests_per_key: None,
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
        on_drain: |_, _| (),
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

    /// Starts a server that loads its model with `open`.
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

    /// A server that runs in another process.
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

    /// Tells the server to stop and waits for its end. Returns the number of requests that it cut off.
    pub fn stop(mut self) -> Result<usize> {
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
