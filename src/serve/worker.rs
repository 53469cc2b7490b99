//! The engine's own thread. It owns the engine and one batch that lives as long as the device does. Handlers put jobs
//! into its inbox and read their mailboxes. The HTTP runtime never blocks on this thread.
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Options;
use super::mailbox::{Ending, Mailbox, Part, Piece, SentToken};
use super::metrics::{Gauges, Metrics};
use super::refusal::Refusal;
use crate::device::ComputeDevice;
use crate::engine::{Batch, Engine, Event, PreparedModel, Prompt, RunResult, Settings};
use crate::policy::Role;
use crate::report::events::{RunEvents, model_info};
use crate::trace::{self, StopReason};
use crate::{Error, ErrorKind, Result};

/// Loads the model, at the start and again after the device was lost.
pub type Open = Box<dyn FnMut() -> Result<Engine> + Send>;

/// The text of the error for a request that exceeded its time limit. Other code recognises the error by this text.
pub(super) const TOO_LATE: &str = "the request took longer than this server allows";

/// The text of the error for a request that the server ended when it was shut down. Other code recognises the error
/// by this text.
pub(super) const SHUT_DOWN: &str = "the server was shut down before the answer was complete";

/// The time after which an idle engine checks whether it should end.
const IDLE: Duration = Duration::from_millis(100);

/// The bytes that are kept for prompts of ended requests if no memory for the caches is given.
const KEPT_UNTOLD: u64 = 256 << 20;

/// One choice of a request, ready to run.
pub(super) struct Job {
    /// The ids of the prompt.
    pub prompt: Prompt,
    /// How the choice is generated and pruned.
    pub settings: Settings,
    /// The group of requests that share the beginnings of their prompts: the requests with the same key.
    pub group: u64,
    /// The client that receives the answer.
    pub client: Recipient,
}

/// The jobs that were accepted and have not ended.
#[derive(Default)]
struct UnderWay {
    all: usize,
    /// The number of jobs of each key that has any.
    of_keys: HashMap<blake3::Hash, usize>,
}

impl UnderWay {
    /// The number of jobs of one key, or of all jobs if no keys are used.
    fn of(&self, owner: Option<blake3::Hash>) -> usize {
        owner.map_or(self.all, |key| self.of_keys.get(&key).copied().unwrap_or(0))
    }
}

/// Counts a job as long as it exists.
pub(super) struct Ticket {
    counts: Arc<Mutex<UnderWay>>,
    owner: Option<blake3::Hash>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(key) = self.owner
            && let Some(count) = counts.of_keys.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                counts.of_keys.remove(&key);
            }
        }
    }
}

/// The handlers' access to the engine's thread.
pub(super) struct Worker {
    inbox: SyncSender<Job>,
    shared: Arc<Shared>,
    under_way: Arc<Mutex<UnderWay>>,
    /// The number of jobs that may wait for a place.
    queue: usize,
    /// The most jobs of one key that may run or wait.
    most_of_key: Option<usize>,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

/// A loaded model.
#[derive(Clone)]
pub(super) struct Loaded {
    /// The model, which resolves and encodes requests.
    pub model: Arc<PreparedModel>,
    /// The facts about the model that the page shows.
    pub info: Arc<Value>,
}

/// The state that handlers and the engine's thread share.
pub(super) struct Shared {
    model: RwLock<Option<Loaded>>,
    /// The number of requests that run side by side. Before the model is loaded, this is the most that there may be.
    places: AtomicUsize,
    /// The number of turns of the loop, by which other threads can see whether it makes progress.
    pub turns: AtomicU64,
    gauges: Mutex<Gauges>,
    /// Whether the thread takes no more jobs, and ends when its current jobs are done.
    pub draining: AtomicBool,
    /// Whether all running jobs must end now.
    pub stopping: AtomicBool,
    /// The flag that ends all requests of the current batch.
    stop: Mutex<Option<Arc<AtomicBool>>>,
    pub metrics: Metrics,
    /// How long a client may leave its text unread.
    patience: Duration,
    /// How long a request may take; `None`: as long as it needs.
    deadline: Option<Duration>,
    /// Bytes for the caches of all requests; `None`: what the device's largest buffers allow.
    memory: Option<u64>,
    /// The part of these bytes for the prompts of requests that have ended.
    kept_prompts: Option<u64>,
    /// The model's name for clients.
    name: String,
    /// A prompt that the model can answer, if one is known.
    example: Option<String>,
}

impl Shared {
    /// Sets the model that answers; `None` while it is loaded.
    fn set_model(&self, model: Option<Loaded>) {
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = model;
    }
}

impl Worker {
    /// Starts the thread, which loads the model first.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system starts no thread.
    pub fn start(open: Open, options: &Options, stop: Arc<AtomicBool>) -> Result<Self> {
        let shared = Arc::new(Shared {
            model: RwLock::new(None),
            places: AtomicUsize::new(options.places),
            turns: AtomicU64::new(0),
            gauges: Mutex::default(),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop: Mutex::new(None),
            metrics: Metrics::default(),
            patience: options.patience,
            deadline: options.deadline,
            memory: options.memory,
            kept_prompts: options.kept_prompts,
            name: options.name.clone(),
            example: options.example.clone(),
        });
        let (inbox, jobs) = sync_channel(options.places + options.queue);
        let of_thread = shared.clone();
        let body = move || {
            // The server ends together with its engine, even after a panic, so that a supervisor can start it again.
            let _stops = Stops(stop);
            serve(open, &jobs, &of_thread)
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(body);
        let thread = thread.map_err(|e| Error::new(ErrorKind::Io, "no thread can be started").found(e))?;
        let (queue, most_of_key) = (options.queue, options.requests_per_key);
        Ok(Self { inbox, shared, under_way: Arc::default(), queue, most_of_key, thread: Mutex::new(Some(thread)) })
    }

    /// The model with the facts that the page shows, once it is loaded.
    pub fn loaded(&self) -> Option<Loaded> {
        self.shared.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The model, once it is loaded.
    pub fn model(&self) -> Option<Arc<PreparedModel>> {
        Some(self.loaded()?.model)
    }

    /// Takes `count` places in the queue for the client with this key. Refuses at once if there is no room, before
    /// any part of a prompt is computed.
    pub fn tickets(&self, count: usize, owner: Option<blake3::Hash>) -> Result<Vec<Ticket>, Refusal> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(Refusal::busy("the server is shutting down", 5));
        }
        let all = self.places() + self.queue;
        let most_of_key = self.most_of_key.unwrap_or(all);
        let most = all.min(most_of_key);
        if count > most {
            let of_key = if most_of_key < all { " of a key" } else { "" };
            return Err(Refusal::bad(format!(
                "{count} answers are asked for: at most {most}{of_key} run and wait here"
            )));
        }
        let mut counts = self.counts();
        let refusal = if self.most_of_key.is_some() && counts.of(owner) + count > most_of_key {
            self.shared.metrics.limited.fetch_add(1, Ordering::Relaxed);
            let has = counts.of(owner);
            let message = format!(
                "this key has {has} answers that run or wait, and at most {most_of_key} may: try again when one has ended"
            );
            Refusal::too_many(message, 5).coded("rate_limit_exceeded")
        } else if counts.all + count > all {
            self.shared.metrics.refused.fetch_add(1, Ordering::Relaxed);
            Refusal::busy("the queue is full", 1).coded("queue_full")
        } else {
            counts.all += count;
            if let Some(key) = owner {
                *counts.of_keys.entry(key).or_default() += count;
            }
            return Ok((0..count).map(|_| Ticket { counts: self.under_way.clone(), owner }).collect());
        };
        Err(refusal)
    }

    fn counts(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a job to the engine's thread.
    pub fn submit(&self, job: Job) -> Result<(), Refusal> {
        self.inbox.try_send(job).map_err(|e| match e {
            TrySendError::Full(_) => Refusal::busy("the queue is full", 1).coded("queue_full"),
            TrySendError::Disconnected(_) => Refusal::busy("the engine has ended", 5),
        })
    }

    /// The state that handlers and the engine's thread share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The current values of the gauges.
    pub fn gauges(&self) -> Gauges {
        let gauges = *self.shared.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = self.counts().all;
        Gauges { waiting: under_way.saturating_sub(gauges.running), ..gauges }
    }

    /// Requests that run side by side; before the model is loaded, the most that there may be.
    pub fn places(&self) -> usize {
        self.shared.places.load(Ordering::Acquire)
    }

    /// Whether the thread is still running.
    pub fn lives(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The number of jobs that run or wait.
    pub fn under_way(&self) -> usize {
        self.counts().all
    }

    /// Whether no job is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way() == 0
    }

    /// Takes no more jobs. The thread ends when its current jobs are done.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Ends all jobs after the steps that are under way.
    pub fn stop(&self) {
        self.drain();
        self.shared.stopping.store(true, Ordering::Release);
        if let Some(stop) = &*self.shared.stop.lock().unwrap_or_else(PoisonError::into_inner) {
            stop.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until the thread has ended.
    ///
    /// # Errors
    /// The error with which the thread ended, if it failed.
    pub fn join(&self) -> Result<()> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(Error::new(ErrorKind::Internal, "the engine's thread panicked")),
            None => Ok(()),
        }
    }
}

/// Sets a flag when it is dropped.
struct Stops(Arc<AtomicBool>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The parts of a run that a client receives besides its text.
#[derive(Debug)]
pub(super) enum Watch {
    /// Nothing besides the text.
    Nothing,
    /// The probes of the run.
    Probes,
    /// All events that the page shows.
    Run(RunEvents),
}

/// The client that waits for a choice. It is told how the choice ended in every case.
pub(super) struct Recipient {
    /// The mailbox that receives the pieces.
    pub mailbox: Arc<Mailbox>,
    /// The number of the choice.
    pub choice: usize,
    /// The parts of the run that the client receives besides its text.
    pub watch: Watch,
    /// Whether the client wants the trace.
    pub trace: bool,
    /// The seed of the choice's draws.
    pub seed: u64,
    /// The time at which the request arrived.
    pub arrived: Instant,
    /// The time of the latest token.
    latest: Option<Instant>,
    /// Whether the choice was ended because it took too long.
    late: bool,
    /// Whether the client was told how the choice ended.
    finished: bool,
    _ticket: Ticket,
}

impl Recipient {
    /// The client of a choice without any pieces yet.
    pub fn new(mailbox: Arc<Mailbox>, choice: usize, seed: u64, arrived: Instant, ticket: Ticket) -> Self {
        let (watch, trace, latest, late, finished) = (Watch::Nothing, false, None, false, false);
        Self { mailbox, choice, watch, trace, seed, arrived, latest, late, finished, _ticket: ticket }
    }
}

impl Drop for Recipient {
    /// A recipient that is dropped without [`finish`] was lost together with the engine.
    fn drop(&mut self) {
        if !self.finished {
            let error = Error::new(ErrorKind::Internal, "the engine has ended before the request");
            self.mailbox.put(self.choice, Piece::End(Err(error)));
        }
    }
}

/// The body of the thread: opens an engine and serves with it, again and again while devices are lost.
fn serve(mut open: Open, jobs: &Receiver<Job>, shared: &Shared) -> Result<()> {
    let mut keeps = true;
    loop {
        let mut engine = open()?;
        shared.places.store(engine.places(), Ordering::Release);
        let info = Arc::new(model_info(&engine, &shared.name, shared.example.as_deref()));
        shared.set_model(Some(Loaded { model: engine.prepared(), info }));
        *shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine.stop_flag());
        let lost = run(&mut engine, keeps, jobs, shared);
        *shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let Some(error) = lost else { return Ok(()) };
        shared.metrics.reopened.fetch_add(1, Ordering::Relaxed);
        // The kept prompts use memory that is not needed, so after a lack of memory none are kept any more.
        keeps &= !error.what().contains("out of memory");
        log::warn!("the device failed, so it is opened again: {error}");
    }
}

/// Serves jobs until there are no more, or until the device fails; then returns the error of the device. Prompts are
/// kept only if `keeps` is set.
fn run(engine: &mut Engine, keeps: bool, jobs: &Receiver<Job>, shared: &Shared) -> Option<Error> {
    let device = engine.model().device().clone();
    let most = engine.prepared().cache_limit(&device);
    let memory = shared.memory.unwrap_or(most).min(most);
    let kept = match shared.memory {
        Some(_) => memory / 4,
        // The size of the largest buffers does not say how much memory there is.
        None => (memory / 4).min(KEPT_UNTOLD),
    };
    engine.keep_prompts(if keeps { shared.kept_prompts.unwrap_or(kept) } else { 0 });
    let mut batch = engine.batch();
    batch.set_memory(memory);
    *shared.gauges.lock().unwrap_or_else(PoisonError::into_inner) =
        Gauges { capacity_bytes: memory, ..Gauges::default() };
    let mut running: HashMap<usize, Recipient> = HashMap::new();
    loop {
        shared.turns.fetch_add(1, Ordering::Relaxed);
        if batch.is_idle() {
            match jobs.recv_timeout(IDLE) {
                Ok(job) => add(&mut batch, &mut running, job, shared),
                Err(RecvTimeoutError::Timeout) if shared.draining.load(Ordering::Acquire) => return None,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        while let Ok(job) = jobs.try_recv() {
            add(&mut batch, &mut running, job, shared);
        }
        let stopping = shared.stopping.load(Ordering::Acquire);
        for (request, job) in &mut running {
            job.late |= shared.deadline.is_some_and(|deadline| job.arrived.elapsed() > deadline);
            let left = job.mailbox.is_cancelled() || job.mailbox.is_abandoned(shared.patience);
            if stopping || job.late || left {
                batch.cancel(*request);
            }
        }
        let mut on = |request, event: Event<'_>| {
            if let Some(job) = running.get_mut(&request) {
                deliver(job, &event, &device, shared);
            }
        };
        let ended = pollster::block_on(batch.step(&mut on));
        let error_of = |(_, result): &(usize, Result<RunResult>)| match result {
            Ok(result) => result.error.clone(),
            Err(error) => Some(error.clone()),
        };
        let lost = ended.iter().filter_map(error_of).find(|error| error.kind() == ErrorKind::Device);
        let lost = lost.filter(|_| device.has_failed());
        if lost.is_some() {
            // This is set before the clients receive the error, so that a client that repeats its request at once
            // learns that the model is loading.
            shared.set_model(None);
        }
        for (request, result) in ended {
            if let Some(job) = running.remove(&request) {
                finish(job, result, shared);
            }
        }
        let status = batch.status();
        *shared.gauges.lock().unwrap_or_else(PoisonError::into_inner) = Gauges {
            running: status.running,
            waiting: status.waiting,
            reserved_bytes: status.reserved_bytes,
            used_bytes: status.used_bytes,
            kept_bytes: status.kept_bytes,
            capacity_bytes: memory,
        };
        if let Some(error) = lost {
            for job in running.into_values() {
                finish(job, Err(error.clone()), shared);
            }
            return Some(error);
        }
    }
}

/// Adds a job to the batch. A job that cannot run gets its error at once.
fn add(batch: &mut Batch<'_>, running: &mut HashMap<usize, Recipient>, job: Job, shared: &Shared) {
    let Job { prompt, settings, group, client: mut job } = job;
    // A job whose client has left while it was in the inbox is dropped.
    if job.mailbox.is_abandoned(shared.patience) {
        shared.metrics.count_end("abort");
        job.finished = true;
        return;
    }
    match batch.add_of(group, &prompt, &settings) {
        Ok(request) => drop(running.insert(request, job)),
        Err(error) => finish(job, Err(error), shared),
    }
}

/// Puts an event of a running job into its mailbox.
fn deliver(job: &mut Recipient, event: &Event<'_>, device: &ComputeDevice, shared: &Shared) {
    if let Watch::Run(events) = &mut job.watch
        && let Some(event) = events.event(event, device)
    {
        job.mailbox.put(job.choice, Piece::Events(vec![event]));
    }
    let metrics = &shared.metrics;
    match event {
        Event::Start { prompt_ids } => {
            metrics.queue.observe(job.arrived.elapsed(), 1);
            metrics.prompt_tokens.fetch_add(prompt_ids.len() as u64, Ordering::Relaxed);
        }
        Event::Rest { text, role } => put_text(job, text, *role, None),
        Event::Token { id, text, role, logprobs, .. } => {
            let now = Instant::now();
            match job.latest.replace(now) {
                None => metrics.time_to_first_token.observe(job.arrived.elapsed(), 1),
                Some(before) => metrics.inter_token.observe(now - before, 1),
            }
            metrics.generation_tokens.fetch_add(1, Ordering::Relaxed);
            let token = logprobs.map(|logprobs| SentToken { id: *id, logprobs: logprobs.clone() });
            put_text(job, text, *role, token);
        }
        Event::Probe(probe) => {
            metrics.probes.fetch_add(1, Ordering::Relaxed);
            metrics.evicted_slots.fetch_add(probe.evicted.len() as u64, Ordering::Relaxed);
            let timings = probe.timings;
            let spent = timings.probe_us + timings.plan_us + timings.gather_us;
            metrics.prune_us.fetch_add(spent, Ordering::Relaxed);
            if matches!(job.watch, Watch::Probes) {
                job.mailbox.put(job.choice, Piece::Probe(shown(probe)));
            }
        }
        _ => (),
    }
}

/// Puts released text into a mailbox, with the token that it came with if the client asked for its probability.
fn put_text(job: &Recipient, text: &str, role: Role, token: Option<SentToken>) {
    let part = match role {
        Role::Thinking => Part::Thinking,
        Role::Answer => Part::Answer,
        _ => Part::Tag,
    };
    if !text.is_empty() || token.is_some() {
        let tokens = token.into_iter().collect();
        job.mailbox.put(job.choice, Piece::Text { part, text: text.into(), tokens });
    }
}

/// A probe in the form that clients receive.
fn shown(probe: &trace::Probe) -> Value {
    json!({
        "at_token": probe.at_token,
        "thinking_tokens": probe.thinking_tokens,
        "cached_before": probe.cached_before,
        "cached_after": probe.cached_after,
        "evicted": probe.evicted.len(),
    })
}

/// One of [`REASONS`](super::metrics::REASONS) for the end of a run.
pub(super) fn end(reason: &StopReason) -> &'static str {
    match reason {
        StopReason::Eos | StopReason::StopString | StopReason::StopToken | StopReason::FormatComplete => "stop",
        StopReason::MaxNewTokens | StopReason::MaxAnswerTokens | StopReason::ContextFull => "length",
        StopReason::Cancelled => "abort",
        StopReason::Failed(_) => "error",
    }
}

/// Tells the client of a job how the job ended.
fn finish(mut job: Recipient, result: Result<RunResult>, shared: &Shared) {
    let metrics = &shared.metrics;
    let ending = match result {
        Err(error) => {
            metrics.count_end("error");
            Err(error)
        }
        Ok(result) => {
            if let Watch::Run(events) = &job.watch {
                job.mailbox.put(job.choice, Piece::Events(events.ending(&result)));
                // As in the page's own engine, a run that did not fail ends with its trace.
                if result.error.is_none() {
                    job.mailbox.put(job.choice, Piece::Trace(Box::new(result.trace.clone())));
                }
            }
            let RunResult { trace, error, prompt_logprobs, shared_tokens, .. } = result;
            metrics.shared_tokens.fetch_add(shared_tokens as u64, Ordering::Relaxed);
            metrics.count_end(end(&trace.stop_reason));
            let late = job.late && trace.stop_reason == StopReason::Cancelled;
            let cut_off = trace.stop_reason == StopReason::Cancelled
                && shared.stopping.load(Ordering::Acquire)
                && !job.mailbox.is_cancelled();
            let cut_off = cut_off.then(|| Error::new(ErrorKind::Input, SHUT_DOWN));
            let late = late.then(|| {
                let most = shared.deadline.unwrap_or_default().as_secs_f64();
                Error::new(ErrorKind::Input, TOO_LATE)
                    .expected(format!("at most {most} s, the time in the queue included"))
            });
            Ok(Box::new(Ending {
                reason: trace.stop_reason.clone(),
                totals: trace.totals,
                probes: trace.probes.len(),
                shared_tokens,
                seed: job.seed,
                trace: job.trace.then_some(trace),
                error: late.or(cut_off).or(error),
                prompt_logprobs,
            }))
        }
    };
    metrics.request.observe(job.arrived.elapsed(), 1);
    job.mailbox.put(job.choice, Piece::End(ending));
    job.finished = true;
}
