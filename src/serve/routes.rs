//! What the server answers, address by address.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};
use utoipa::{OpenApi, ToSchema};

use super::answer::{self, Beginning, Form, Frame};
use super::body::{self, ChatBody, ChatMessage, Common, CompletionBody, Events};
use super::mailbox::{Client, Mailbox};
use super::page::Page;
use super::reading;
use super::refusal::Refusal;
use super::responses::{self, ResponsesBody};
use super::tools::{self, Calling};
use super::traces::Traces;
use super::worker::{Job, Loaded, Recipient, Ticket, Watch, Worker};
use super::{Names, Options, ThinkingField};
use crate::engine::{Encoded, PreparedModel, Prompt, Request, Resolved, Settings};
use crate::report::{self, events::RunEvents};
use crate::text::Message;
use crate::trace::Trace;

/// What every handler knows.
pub(super) struct App {
    pub options: Options,
    pub worker: Arc<Worker>,
    pub traces: Arc<Traces>,
    /// The time at which the server was started, in seconds since 1970.
    pub started: u64,
    /// The hashes of the keys. Hashes are compared, because that takes the same time wherever two keys differ.
    pub keys: Vec<blake3::Hash>,
    /// The names by which the server may be called.
    pub names: Names,
    /// KiB of bodies that may be read and parsed at one time.
    pub reading: Arc<Semaphore>,
    /// The page, whose engine this server is, if this build has it.
    pub page: Option<Page>,
    /// The requests that clients may end early.
    pub running: Running,
    /// Prompts that may be encoded at one time: one for each core. Others wait, and hold no thread meanwhile.
    pub encoding: Arc<Semaphore>,
    /// Requests that generate nothing and may be worked on or wait at one time. Further ones are refused: they have
    /// no queue.
    pub asides: Arc<Semaphore>,
}

/// The requests that run or wait, each with its id and who made it, so that a client can end its own early.
#[derive(Default)]
pub(super) struct Running(Mutex<Vec<Listed>>);

struct Listed {
    id: String,
    owner: Option<blake3::Hash>,
    mailbox: Weak<Mailbox>,
}

impl Running {
    fn listed(&self) -> MutexGuard<'_, Vec<Listed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a request. Those that have ended are forgotten.
    fn add(&self, frame: &Frame, mailbox: &Arc<Mailbox>) {
        let mut listed = self.listed();
        listed.retain(|request| request.mailbox.strong_count() > 0);
        listed.push(Listed { id: frame.id.clone(), owner: frame.owner, mailbox: Arc::downgrade(mailbox) });
    }

    /// The request of this id, if it has not ended and this owner made it.
    fn find(&self, id: &str, owner: Option<blake3::Hash>) -> Option<Arc<Mailbox>> {
        self.listed().iter().find(|request| request.id == id && request.owner == owner)?.mailbox.upgrade()
    }
}

/// KiB of bodies that may be read and parsed at one time.
pub(super) const READING_KIB: usize = 64 << 10;

/// Requests that generate nothing and may be worked on or wait at one time.
pub(super) const ASIDES: usize = 16;

/// The time that a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// All routes.
pub(super) fn router(app: Arc<App>) -> Router {
    let cors = (!app.options.origins.is_empty()).then(|| {
        let origins = match app.options.origins.iter().any(|origin| origin == "*") {
            true => AllowOrigin::any(),
            false => AllowOrigin::list(app.options.origins.iter().filter_map(|origin| origin.parse().ok())),
        };
        // A star would not stand for `Authorization`.
        let headers = AllowHeaders::mirror_request();
        let cors = CorsLayer::new().allow_origin(origins).allow_methods(Any).allow_headers(headers);
        cors.expose_headers([RETRY_AFTER]).max_age(Duration::from_secs(600))
    });
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/chat/completions/input_tokens", post(input_tokens))
        .route("/v1/completions", post(completions))
        .route("/v1/responses", post(response))
        .route("/v1/responses/input_tokens", post(response_tokens))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/props", get(props))
        .route("/slots", get(slots))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .route("/openapi.json", get(openapi))
        .route("/v1/secateur/resolve", post(resolve))
        .route("/v1/secateur/report", post(report_of))
        .route("/v1/secateur/runs/{id}", delete(end_run))
        .route("/v1/secateur/traces/{id}", get(trace).delete(forget_trace))
        .route("/v1/secateur/traces/{id}/report", get(trace_report))
        .fallback(page_file)
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
        })
        .layer(from_fn_with_state(app.clone(), admit))
        .layer(CatchPanicLayer::custom(|_| Refusal::bug().into_response()))
        .with_state(app);
    match cors {
        // Outside of all else, so that a browser can read refusals too.
        Some(cors) => routes.layer(cors),
        None => routes,
    }
}

/// Refuses requests that may come from a page in somebody's browser, and those without a key.
async fn admit(State(app): State<Arc<App>>, request: HttpRequest, next: Next) -> Result<Response, Refusal> {
    let headers = request.headers();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(request.uri().authority().map(|a| a.as_str()));
    if !app.names.allow(host) {
        // A page can make its own name point to this machine. The browser then sends that name.
        let message =
            format!("this server is not called {}: whoever runs it can allow this name", host.unwrap_or("nothing"));
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    }
    if let Some(origin) = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok())
        && app.keys.is_empty()
        && !app.options.allows_origin(origin, host)
    {
        let message = format!("pages of {origin} may not use this server: whoever runs it can allow this origin");
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    }
    if request.method() == Method::POST {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
        if kind.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
            // A form of any page can be posted here without asking, but not with this type.
            let message = format!("content-type is {kind:?}: application/json is expected");
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    }
    let path = request.uri().path();
    let open = matches!(path, "/health" | "/v1/health") || reads(request.method()) && app.has_file(path);
    if !open && !app.keys.is_empty() && !owner(&app, headers).is_some_and(|key| app.keys.contains(&key)) {
        let message =
            "the API key is missing or wrong: it is expected as Authorization: Bearer KEY, or as x-api-key: KEY";
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, message).coded("invalid_api_key"));
    }
    Ok(next.run(request).await)
}

/// Whether a method only reads.
fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// A file of the page, or in a build without the page a text in its place.
async fn page_file(State(app): State<Arc<App>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    let nothing = || {
        // The commonest mistake: an address of the server without what is behind it.
        let short = ["/chat/completions", "/completions", "/models", "/responses"].contains(&path);
        let hint = if short { format!(": it is at /v1{path}") } else { String::new() };
        Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}{hint}")).into_response()
    };
    match &app.page {
        _ if !reads(&method) => nothing(),
        Some(page) => page.response(path, &headers).unwrap_or_else(nothing),
        None if path == "/" => WITHOUT_PAGE.into_response(),
        None => nothing(),
    }
}

/// What `/` says in a build without the page.
const WITHOUT_PAGE: &str = concat!(
    "secateur ",
    env!("CARGO_PKG_VERSION"),
    ": a server for reasoning models, with OpenAI's interface.\n\n",
    "The interface is below /v1, and /openapi.json describes it. A client needs this address with /v1 behind it.\n\n",
    "A program that `./x web` builds in secateur's repository shows a page for chats here.\n",
);

/// The hash of the key that a request has, where keys are used.
fn owner(app: &App, headers: &HeaderMap) -> Option<blake3::Hash> {
    if app.keys.is_empty() {
        return None;
    }
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
    let key = bearer.map(|(_, key)| key.trim());
    let other = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    Some(blake3::hash(key.or(other)?.as_bytes()))
}

/// The number of the group of requests that a key makes. Only they share the beginnings of their prompts, because the
/// time until the first token tells whether a prompt was known.
fn group(key: blake3::Hash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl App {
    /// The model with what the page knows of it, or the refusal of a server that is still loading.
    fn loaded(&self) -> Result<Loaded, Refusal> {
        self.worker.loaded().ok_or_else(|| Refusal::busy("the model is still loading", 2).coded("loading"))
    }

    /// The model, or the refusal of a server that is still loading.
    fn model(&self) -> Result<Arc<PreparedModel>, Refusal> {
        Ok(self.loaded()?.model)
    }

    /// Whether this path is a file of the page, or the text in its place.
    fn has_file(&self, path: &str) -> bool {
        self.page.as_ref().map_or(path == "/", |page| page.has(path))
    }

    /// Refuses a request for another model.
    fn check_name(&self, name: Option<&str>) -> Result<(), Refusal> {
        match name {
            Some(name) if !self.options.any_model && name != self.options.name => {
                let message = format!("there is no model {name:?} here, but {:?}", self.options.name);
                Err(Refusal::new(StatusCode::NOT_FOUND, message).at("model").coded("model_not_found"))
            }
            _ => Ok(()),
        }
    }

    /// What the responses to chats and completions have in common.
    fn frame(&self, form: Form, choices: usize, common: &Common, headers: &HeaderMap) -> Result<Frame, Refusal> {
        Ok(Frame {
            id: id(match form {
                Form::Chat => "chatcmpl-",
                Form::Completion => "cmpl-",
            }),
            form,
            created: Frame::now(),
            model: self.options.name.clone(),
            choices,
            each: 1,
            thinking_field: None,
            without_thinking: false,
            events: common.events(),
            include_usage: common.stream_options.is_some_and(|options| options.include_usage == Some(true)),
            ping: self.options.ping,
            owner: owner(self, headers),
            beginnings: Vec::new(),
            tokenizer: self.model()?.tokenizer().ok().cloned(),
            logprobs: false,
            calling: None,
        })
    }

    /// The JSON body of a request.
    async fn read<T: DeserializeOwned + Send + 'static>(&self, headers: &HeaderMap, body: Body) -> Result<T, Refusal> {
        let most = self.options.most_body_bytes;
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(most);
        let kib = (length.min(most) / 1024 + 1).min(READING_KIB);
        let _permit = self.reading.acquire_many(kib as u32).await;
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, most)).await {
            Err(_) => return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
            Ok(Ok(bytes)) => bytes,
            Ok(Err(e)) if is_too_large(&e) => {
                let message = format!("the body is too large: at most {most} bytes are expected");
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Ok(Err(e)) => return Err(Refusal::bad(format!("the body cannot be read: {e}"))),
        };
        if bytes.len() < 64 << 10 {
            reading::parse(&bytes)
        } else {
            // A large body takes its time, in which others wait for this thread.
            tokio::task::spawn_blocking(move || reading::parse(&bytes)).await.map_err(|_| Refusal::bug())?
        }
    }

    /// Does something that takes its time on a thread of its own: as many things at once as there are cores. What is
    /// `held` is held until the work is done, also when the client has gone.
    async fn work<T: Send + 'static, H: Send + 'static>(
        &self,
        held: H,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<(T, H), Refusal> {
        let permit = self.encoding.clone().acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done.map(|done| (done, held))
        });
        task.await.map_err(|_| Refusal::bug())?
    }

    /// Takes one of the places of requests that generate nothing, or refuses at once.
    fn aside(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.asides.clone().try_acquire_owned().map_err(|_| Refusal::busy("too many such requests at once", 1))
    }

    /// Resolves a request and encodes its prompt, on a thread that may take its time.
    async fn prepare<H: Send + 'static>(
        self: &Arc<Self>,
        requests: Vec<Request>,
        held: H,
    ) -> Result<(Vec<Ready>, H), Refusal> {
        let (app, model) = (self.clone(), self.model()?);
        let capacity = self.worker.gauges().capacity_bytes;
        let prepare = move |request: Request| {
            let own = app.options.defaults.positions.unwrap_or_default();
            if request.positions.is_some_and(|positions| positions != own) {
                // Requests that count positions in another way cannot run beside the others, and would wait for all
                // of them.
                let message = format!("positions: this server runs all requests with {own}");
                return Err(Refusal::bad(message).at("secateur.positions"));
            }
            let request = app.options.defaults.overridden_by(&request)?;
            refuse_unseen_calls(&model, request.messages.as_deref().unwrap_or_default())?;
            let Resolved { prompt: Prompt::Encoded(prompt), mut settings, notes } = model.resolve_encoded(&request)?
            else {
                return Err(Refusal::bug());
            };
            settings.max_new_tokens = settings.max_new_tokens.min(app.options.most_new_tokens);
            let bound = model.bound(prompt.ids.len(), &settings);
            // Until the engine has told its capacity, the batch refuses what cannot fit.
            if capacity > 0 && bound.bytes > capacity {
                let message = format!(
                    "the request can need {} bytes of cache, and there are {capacity}: lower max_tokens, or use a budget of \
                     tokens:N with max_answer_tokens",
                    bound.bytes
                );
                return Err(Refusal::bad(message).at("max_tokens"));
            }
            Ok(Ready { prompt, settings, notes })
        };
        self.work(held, move || requests.into_iter().map(prepare).collect()).await
    }
}

/// Whether a body was refused for its length.
fn is_too_large(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Refuses a conversation with calls of tools if the model's template does not show them: the model would answer to
/// something else than what its client sent.
fn refuse_unseen_calls(model: &PreparedModel, messages: &[Message]) -> Result<(), Refusal> {
    let calls = |message: &&Message| message.role == "tool" || message.extra.contains_key("tool_calls");
    match messages.iter().find(calls) {
        Some(_) => Ok(model.template()?.check_tools()?),
        None => Ok(()),
    }
}

/// A request that can be given to the engine.
struct Ready {
    prompt: Encoded,
    settings: Settings,
    /// What a person should know about how it was resolved.
    notes: Vec<String>,
}

/// A random id of a response, or of a part of one.
pub(super) fn id(prefix: &str) -> String {
    let number = getrandom::u64().unwrap_or_default() as u128 | (getrandom::u64().unwrap_or_default() as u128) << 64;
    format!("{prefix}{number:032x}")
}

async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    let body: ChatBody = app.read(&headers, body).await?;
    app.check_name(body.common.model.as_deref())?;
    // Before the template is rendered: a server that is full has no time for that.
    let tickets = app.worker.tickets(body.common.choices()?, owner(&app, &headers))?;
    let (frame, ready, tickets) = prepare_chat(&app, &headers, &body, tickets).await?;
    answer(&app, frame, ready, tickets, &body.common, arrived).await
}

/// A chat that can be given to the engine, and what its response needs.
async fn prepare_chat(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: &ChatBody,
    tickets: Vec<Ticket>,
) -> Result<(Frame, Vec<Ready>, Vec<Ticket>), Refusal> {
    let choices = tickets.len();
    let request = body.request()?;
    let tools = request.tools.clone().unwrap_or_default();
    let prepared = app.prepare(vec![request], tickets).await;
    let (ready, tickets) = prepared.map_err(|refusal| refusal.in_names_of(&body.names()))?;
    // A template that has no tools was refused with the prompt.
    let format = if tools.is_empty() { None } else { app.model()?.template()?.call_format() };
    let parallel = body.parallel_tool_calls != Some(false);
    let none = body.reasoning_format.as_deref() == Some("none");
    let frame = Frame {
        each: choices,
        thinking_field: app.options.thinking_field.name().filter(|_| !none),
        without_thinking: body.excludes_thinking(),
        logprobs: body.logprobs == Some(true),
        calling: format.map(|format| Calling::new(format, &tools, parallel)),
        ..app.frame(Form::Chat, choices, &body.common, headers)?
    };
    Ok((frame, ready, tickets))
}

/// A chat in the form of OpenAI's newer interface.
async fn response(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    let body: ResponsesBody = app.read(&headers, body).await?;
    app.check_name(body.common.model.as_deref())?;
    let tickets = app.worker.tickets(1, owner(&app, &headers))?;
    let ((body, echo), tickets) = app.work(tickets, move || body.chat()).await?;
    let prepared = prepare_chat(&app, &headers, &body, tickets).await.map_err(responses::in_own_words)?;
    let (frame, ready, tickets) = prepared;
    // The reasoning has a place of its own here, wherever it is in a chat.
    let frame = Frame { id: id("resp_"), thinking_field: Some("reasoning"), ..frame };
    let repeated = echo.fields(&ready.first().ok_or_else(Refusal::bug)?.settings);
    let client = submit(&app, &frame, &ready, tickets, &body.common, arrived)?;
    match body.common.stream {
        Some(true) => Ok(responses::stream(frame, repeated, client, app.traces.clone(), app.worker.clone())),
        _ => responses::whole(frame, repeated, client, app.traces.clone()).await,
    }
}

async fn completions(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    let body: CompletionBody = app.read(&headers, body).await?;
    app.check_name(body.common.model.as_deref())?;
    let requests = body.requests()?;
    let choices = requests.len() * body.common.choices()?;
    let tickets = app.worker.tickets(choices, owner(&app, &headers))?;
    let prepared = app.prepare(requests, tickets).await;
    let (ready, tickets) = prepared.map_err(|refusal| refusal.in_names_of(&body.names()))?;
    let beginnings = match body.echo {
        Some(true) => {
            let (model, each) = (app.model()?, choices / ready.len());
            let beginning = |ready: &Ready| -> Result<Beginning, Refusal> {
                let ids = ready.prompt.ids.clone();
                Ok(Beginning { text: model.tokenizer()?.decode(&ids, false)?, ids })
            };
            let all: Vec<Beginning> = ready.iter().map(beginning).collect::<Result<_, _>>()?;
            all.iter().flat_map(|beginning| std::iter::repeat_n(beginning.clone(), each)).collect()
        }
        _ => Vec::new(),
    };
    let frame = Frame {
        each: choices / ready.len(),
        beginnings,
        logprobs: body.logprobs.is_some(),
        ..app.frame(Form::Completion, choices, &body.common, &headers)?
    };
    answer(&app, frame, ready, tickets, &body.common, arrived).await
}

/// Gives the choices of a request to the engine and answers with what comes back.
async fn answer(
    app: &Arc<App>,
    frame: Frame,
    ready: Vec<Ready>,
    tickets: Vec<Ticket>,
    common: &Common,
    arrived: Instant,
) -> Result<Response, Refusal> {
    let client = submit(app, &frame, &ready, tickets, common, arrived)?;
    match common.stream {
        Some(true) => Ok(answer::stream(frame, client, app.traces.clone(), app.worker.clone())),
        _ => answer::whole(frame, client, app.traces.clone()).await,
    }
}

/// Gives the choices of a request to the engine. From here on, it ends the request as soon as the client is dropped.
fn submit(
    app: &App,
    frame: &Frame,
    ready: &[Ready],
    tickets: Vec<Ticket>,
    common: &Common,
    arrived: Instant,
) -> Result<Client, Refusal> {
    let client = Client(Mailbox::new());
    app.running.add(frame, &client.0);
    let streamed = common.stream == Some(true);
    let each = frame.each;
    for (choice, ticket) in tickets.into_iter().enumerate() {
        let Ready { prompt, settings, notes } = &ready[choice / each];
        let mut settings = settings.clone();
        settings.seed = settings.seed.wrapping_add((choice % each) as u64);
        let mut recipient = Recipient::new(client.0.clone(), choice, settings.seed, arrived, ticket);
        recipient.trace = common.trace();
        recipient.watch = match frame.events {
            Events::Comments | Events::Chunks if streamed => Watch::Probes,
            Events::Run if streamed => Watch::Run(RunEvents::new(notes.clone())),
            _ => Watch::Nothing,
        };
        let group = frame.owner.map_or(0, group);
        app.worker.submit(Job { prompt: Prompt::Encoded(prompt.clone()), settings, group, client: recipient })?;
    }
    Ok(client)
}

/// The tokens of a prompt, counted as a chat would count them.
async fn input_tokens(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>, Refusal> {
    let _aside = app.aside()?;
    let body: ChatBody = app.read(&headers, body).await?;
    count_tokens(&app, &body).await
}

/// The same for a response.
async fn response_tokens(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>, Refusal> {
    let _aside = app.aside()?;
    let body: ResponsesBody = app.read(&headers, body).await?;
    app.check_name(body.common.model.as_deref())?;
    let ((body, _), ()) = app.work((), move || body.chat()).await?;
    count_tokens(&app, &body).await.map_err(responses::in_own_words)
}

async fn count_tokens(app: &Arc<App>, body: &ChatBody) -> Result<Json<Value>, Refusal> {
    let prepared = app.prepare(vec![body.request()?], ()).await;
    let (ready, ()) = prepared.map_err(|refusal| refusal.in_names_of(&body.names()))?;
    let tokens: usize = ready.iter().map(|ready| ready.prompt.ids.len()).sum();
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens})))
}

/// What a request comes to, without running it: the same bodies as for a chat or a completion. The prompt is told in
/// ids.
async fn resolve(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Resolved>, Refusal> {
    let _aside = app.aside()?;
    let body: Value = app.read(&headers, body).await?;
    let parse = move || {
        if body.get("messages").is_some() {
            let body: ChatBody = reading::parse_value(&body)?;
            let request = body.request()?;
            let names = body.names();
            Ok((body.common.model, vec![request], names))
        } else {
            let body: CompletionBody = reading::parse_value(&body)?;
            let requests = body.requests()?;
            let names = body.names();
            Ok((body.common.model, requests, names))
        }
    };
    let ((name, requests, names), ()) = app.work((), parse).await?;
    app.check_name(name.as_deref())?;
    if requests.len() > 1 {
        return Err(Refusal::bad("there are several prompts: one is expected").at("prompt"));
    }
    let prepared = app.prepare(requests, ()).await;
    let (mut ready, ()) = prepared.map_err(|refusal| refusal.in_names_of(&names))?;
    let Ready { prompt, settings, notes } = ready.pop().ok_or_else(Refusal::bug)?;
    Ok(Json(Resolved { prompt: Prompt::Encoded(prompt), settings, notes }))
}

/// Ends a request early. What it has to say about its end still comes in its stream.
async fn end_run(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let missing = || Refusal::new(StatusCode::NOT_FOUND, "there is no such request, or it has ended");
    app.running.find(&id, owner(&app, &headers)).ok_or_else(missing)?.cancel();
    Ok(StatusCode::NO_CONTENT)
}

fn described(app: &App) -> Value {
    let model = app.worker.model();
    json!({
        "id": app.options.name,
        "object": "model",
        "created": app.started,
        "owned_by": "secateur",
        "max_model_len": model.as_ref().map(|model| model.context()),
        "meta": model.as_ref().map(|model| json!({
            "n_vocab": model.config().vocab_size,
            "n_ctx": model.context(),
            "n_layer": model.config().num_layers,
        })),
    })
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [described(&app)]}))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    match id == app.options.name {
        true => Ok(Json(described(&app))),
        false => {
            Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no model {id:?} here")).coded("model_not_found"))
        }
    }
}

/// The body of `/tokenize`, as vLLM and llama-server have it.
#[derive(Debug, Deserialize, ToSchema)]
struct TokenizeBody {
    /// The text.
    prompt: Option<String>,
    /// The text, as llama-server calls it.
    content: Option<String>,
    /// A conversation, put through the chat template.
    messages: Option<Vec<ChatMessage>>,
    /// The functions that the model may call in the conversation.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// Variables of the chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the tokens with which every text begins come first.
    #[serde(alias = "add_special")]
    add_special_tokens: Option<bool>,
    /// Whether the text of each token is returned too.
    with_pieces: Option<bool>,
}

async fn tokenize(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>, Refusal> {
    let _aside = app.aside()?;
    let TokenizeBody { prompt, content, messages, tools, chat_template_kwargs, add_special_tokens, with_pieces } =
        app.read(&headers, body).await?;
    let prompt = prompt.or(content);
    let model = app.model()?;
    let context = model.context();
    let work = move || {
        let tokenizer = model.tokenizer()?;
        if let Some(text) = &prompt {
            model.refuse_far_too_long(text)?;
        }
        let ids = match (prompt, messages) {
            (Some(text), None) if add_special_tokens == Some(true) => tokenizer.encode_whole(&text)?,
            (Some(text), None) => tokenizer.encode(&text)?,
            (None, Some(messages)) => {
                let messages = body::conversation(&messages)?;
                refuse_unseen_calls(&model, &messages)?;
                let tools = tools::offered(tools.as_deref(), None)?.shown;
                let think = body::thinking(chat_template_kwargs.as_ref());
                let variables = body::variables(chat_template_kwargs.as_ref())?.unwrap_or_default();
                model.encode(&Prompt::Messages { messages, think, tools, variables })?.0
            }
            _ => return Err(Refusal::bad("either prompt (or content) or messages is expected")),
        };
        let piece = |id: u32| match tokenizer.token_bytes(id).map(String::from_utf8) {
            Some(Ok(text)) => json!({"id": id, "piece": text}),
            Some(Err(bytes)) => json!({"id": id, "piece": bytes.into_bytes()}),
            None => json!({"id": id, "piece": tokenizer.spelling(id)}),
        };
        let tokens = match with_pieces {
            Some(true) => ids.iter().map(|id| piece(*id)).collect(),
            _ => json!(ids),
        };
        Ok(json!({"tokens": tokens, "count": ids.len(), "max_model_len": context}))
    };
    let (answer, ()) = app.work((), work).await?;
    Ok(Json(answer))
}

/// The body of `/detokenize`.
#[derive(Debug, Deserialize, ToSchema)]
struct DetokenizeBody {
    /// Token ids.
    tokens: Vec<u32>,
}

async fn detokenize(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<Value>, Refusal> {
    let DetokenizeBody { tokens } = app.read(&headers, body).await?;
    let model = app.model()?;
    let most = model.config().vocab_size;
    if let Some(id) = tokens.iter().find(|id| **id as usize >= most) {
        return Err(Refusal::bad(format!("token {id} does not exist: ids are below {most}")).at("tokens"));
    }
    let (text, ()) = app.work((), move || Ok(model.tokenizer()?.decode(&tokens, false)?)).await?;
    Ok(Json(json!({"prompt": text, "content": text})))
}

async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Json<Value>, Refusal> {
    let model = app.model()?;
    let tokenizer = model.tokenizer()?;
    let spelling = |ids: &[u32]| ids.first().and_then(|id| tokenizer.spelling(*id));
    Ok(Json(json!({
        "tokenizer_class": "secateur",
        "bos_token": spelling(tokenizer.beginning()),
        "eos_token": spelling(&model.config().eos_token_ids),
        "model_max_length": model.context(),
        "vocab_size": tokenizer.vocab_size(),
    })))
}

async fn props(State(app): State<Arc<App>>) -> Result<Json<Value>, Refusal> {
    let Loaded { model, info } = app.loaded()?;
    let (mut settings, _) = model.settings(&app.options.defaults)?;
    settings.max_new_tokens = settings.max_new_tokens.min(app.options.most_new_tokens);
    let mut info = info.as_ref().clone();
    info["settings"] = serde_json::to_value(settings).map_err(|_| Refusal::bug())?;
    Ok(Json(json!({
        "model_alias": app.options.name,
        "total_slots": app.worker.places(),
        "default_generation_settings": {"n_ctx": model.context()},
        "build_info": concat!("secateur ", env!("CARGO_PKG_VERSION")),
        "secateur": info,
    })))
}

async fn slots(State(app): State<Arc<App>>) -> Json<Value> {
    let now = app.worker.gauges();
    Json(json!({
        "running": now.running,
        "waiting": now.waiting,
        "total": app.worker.places(),
        "reserved_bytes": now.reserved_bytes,
        "used_bytes": now.used_bytes,
        "capacity_bytes": now.capacity_bytes,
    }))
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], app.worker.shared().metrics.text(app.worker.gauges()))
}

async fn health(State(app): State<Arc<App>>) -> Result<Json<Value>, Refusal> {
    if app.worker.shared().draining.load(std::sync::atomic::Ordering::Acquire) {
        return Err(Refusal::busy("the server is shutting down", 5));
    }
    app.model().map(|_| Json(json!({"status": "ok"})))
}

async fn trace(State(app): State<Arc<App>>, headers: HeaderMap, Path(id): Path<String>) -> Result<Response, Refusal> {
    let json = app.traces.get(&id, owner(&app, &headers)).ok_or_else(no_trace)?;
    Ok(([(CONTENT_TYPE, "application/json")], json).into_response())
}

async fn forget_trace(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    match app.traces.remove(&id, owner(&app, &headers)) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(no_trace()),
    }
}

async fn trace_report(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let json = app.traces.get(&id, owner(&app, &headers)).ok_or_else(no_trace)?;
    report_page(&app, vec![(id, json)]).await
}

/// The body of `/v1/secateur/report`.
#[derive(Debug, Deserialize, ToSchema)]
struct ReportBody {
    /// One trace or two, each with its name and its text.
    traces: Vec<(String, String)>,
}

/// The report of traces that the client has, one or two side by side.
async fn report_of(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let _aside = app.aside()?;
    let ReportBody { traces } = app.read(&headers, body).await?;
    report_page(&app, traces).await
}

/// A response with the report of traces, each with its name and its text.
async fn report_page(app: &App, traces: Vec<(String, String)>) -> Result<Response, Refusal> {
    let work = move || {
        let traces = traces.into_iter().map(|(name, json)| Ok((name, Trace::from_json(&json)?)));
        Ok(report::html::page(&traces.collect::<crate::Result<Vec<_>>>()?)?)
    };
    let (page, ()) = app.work((), work).await?;
    // The report is a page of its own: nothing in it reaches this server or any other.
    let policy = "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";
    let headers =
        [(CONTENT_TYPE, "text/html; charset=utf-8"), (HeaderName::from_static("content-security-policy"), policy)];
    Ok((headers, page).into_response())
}

fn no_trace() -> Refusal {
    let message = "there is no such trace: it was not asked for (secateur.trace), or newer ones have taken its place";
    Refusal::new(StatusCode::NOT_FOUND, message)
}

/// The description of the interface. The schemas are those that the server reads.
#[derive(OpenApi)]
#[openapi(components(schemas(ChatBody, CompletionBody, ResponsesBody, TokenizeBody, DetokenizeBody, ReportBody)))]
struct Schemas;

async fn openapi() -> Json<Value> {
    let mut document = serde_json::to_value(Schemas::openapi()).unwrap_or_default();
    let body = |schema: &str| json!({"required": true, "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}}});
    let answers = |what: &str| json!({"200": {"description": what}, "400": {"description": "A request that cannot be carried out; the error says why."}});
    let posts = [
        ("/v1/chat/completions", "ChatBody", "An answer, or a stream of chunks."),
        ("/v1/completions", "CompletionBody", "A continuation, or a stream of chunks."),
        ("/v1/responses", "ResponsesBody", "An answer as items, or a stream of named events."),
        (
            "/v1/secateur/resolve",
            "ChatBody",
            "The settings that a request comes to, without running it; completions too.",
        ),
        ("/v1/secateur/report", "ReportBody", "A page that shows one trace or two."),
        ("/v1/chat/completions/input_tokens", "ChatBody", "The number of tokens of the prompt."),
        ("/v1/responses/input_tokens", "ResponsesBody", "The number of tokens of the prompt."),
        ("/tokenize", "TokenizeBody", "Token ids."),
        ("/detokenize", "DetokenizeBody", "Text."),
    ];
    let gets = [
        ("/v1/models", "The model."),
        ("/health", "Whether the server can answer."),
        ("/metrics", "Counters in the format of Prometheus."),
        ("/tokenizer_info", "Facts about the tokenizer."),
        ("/props", "Facts about the server."),
        ("/slots", "What runs at this moment."),
        ("/v1/secateur/traces/{id}", "The trace of a request."),
        ("/v1/secateur/traces/{id}/report", "The trace as a page."),
    ];
    document["info"] = json!({"title": "secateur", "version": env!("CARGO_PKG_VERSION")});
    for (path, schema, what) in posts {
        document["paths"][path] =
            json!({"post": {"summary": what, "requestBody": body(schema), "responses": answers(what)}});
    }
    for (path, what) in gets {
        document["paths"][path] = json!({"get": {"summary": what, "responses": {"200": {"description": what}}}});
        if path.contains("{id}") {
            document["paths"][path]["get"]["parameters"] =
                json!([{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}]);
        }
    }
    document["paths"]["/v1/secateur/runs/{id}"]["delete"] = json!({
        "summary": "Ends a request early, by the id of its response.",
        "parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}],
        "responses": {"204": {"description": "It ends."}, "404": {"description": "There is no such request."}},
    });
    Json(document)
}

impl ThinkingField {
    /// The name of the field, if the thinking has one.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::ReasoningContent => Some("reasoning_content"),
            Self::Reasoning => Some("reasoning"),
            Self::None => None,
        }
    }
}
