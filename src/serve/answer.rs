//! Turns the pieces of a mailbox into a response: one JSON object, or a stream of chunks. Both are made from the same
//! texts in the same order, so the joined texts of a stream are the text of the object.
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::body::Events;
use super::mailbox::{Client, Ending, Mailbox, Part, Piece, SentToken};
use super::refusal::Refusal;
use super::tools::{Calling, Calls, Told};
use super::traces::Traces;
use super::worker::{self, Worker};
use crate::engine::Logprobs;
use crate::text::Tokenizer;
use crate::trace::StopReason;
use crate::{Error, Result};

/// The data that a response needs besides its pieces.
pub(super) struct Frame {
    /// The id of the response, which is also the id of its traces.
    pub id: String,
    /// Whether the response answers a chat or a completion.
    pub form: Form,
    /// Seconds since 1970 at which the response was made.
    pub created: u64,
    /// The model's name for clients.
    pub model: String,
    /// The number of choices.
    pub choices: usize,
    /// The number of choices for each prompt.
    pub each: usize,
    /// The name of the field that has the thinking. With `None`, the thinking is part of the content.
    pub thinking_field: Option<&'static str>,
    /// Whether the thinking is left out.
    pub without_thinking: bool,
    /// Which events are sent besides the text.
    pub events: Events,
    /// Whether the last chunk of a stream has the usage.
    pub include_usage: bool,
    /// The silence after which a comment is sent; `None`: never.
    pub ping: Option<Duration>,
    /// The hash of the client's key, by which the store of traces separates clients.
    pub owner: Option<blake3::Hash>,
    /// The prompts with which the choices begin, if the client asked for them; otherwise empty.
    pub beginnings: Vec<Beginning>,
    /// The tokenizer, for the texts of tokens in reports of probabilities.
    pub tokenizer: Option<Tokenizer>,
    /// Whether the probabilities of tokens are part of the response.
    pub logprobs: bool,
    /// How calls of tools are found; `None` if the answer cannot have calls.
    pub calling: Option<Calling>,
}

/// A prompt that is part of the response.
#[derive(Debug, Clone)]
pub(super) struct Beginning {
    /// The text of the prompt.
    pub text: String,
    /// The ids of the prompt.
    pub ids: Vec<u32>,
}

/// The form of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

impl Frame {
    /// The current time in seconds since 1970.
    pub fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// Whether thinking, tags and answer are one text.
    fn undivided(&self) -> bool {
        self.form == Form::Completion || self.thinking_field.is_none() && !self.without_thinking
    }

    /// Whether texts of a part are content in this response.
    pub fn is_content(&self, part: Part) -> bool {
        part == Part::Answer || self.undivided()
    }

    fn object(&self, streamed: bool) -> &'static str {
        match (self.form, streamed) {
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Completion, _) => "text_completion",
        }
    }

    /// A response without its choices.
    fn head(&self, streamed: bool) -> Map<String, Value> {
        let mut head = Map::new();
        head.insert("id".into(), self.id.as_str().into());
        head.insert("object".into(), self.object(streamed).into());
        head.insert("created".into(), self.created.into());
        head.insert("model".into(), self.model.as_str().into());
        head.insert("system_fingerprint".into(), concat!("secateur-", env!("CARGO_PKG_VERSION")).into());
        head
    }

    /// The text of a piece, as `delta` or as the text of a completion.
    fn delta(&self, part: Part, text: &str) -> Value {
        match (self.form, part, self.thinking_field) {
            (Form::Chat, Part::Thinking, Some(field)) => json!({ field: text }),
            (Form::Chat, _, _) => json!({"content": text}),
            (Form::Completion, _, _) => text.into(),
        }
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let mut chunk = self.head(true);
        let entry = match self.form {
            Form::Chat => json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}),
            Form::Completion => json!({"index": choice, "text": delta, "logprobs": logprobs, "finish_reason": finish}),
        };
        chunk.insert("choices".into(), json!([entry]));
        chunk.into()
    }

    /// The bytes of a token; those of its spelling if it has no bytes of its own.
    fn bytes(&self, id: u32) -> Vec<u8> {
        let Some(tokenizer) = &self.tokenizer else { return Vec::new() };
        tokenizer.token_bytes(id).unwrap_or_else(|| tokenizer.spelling(id).unwrap_or_default().into_bytes())
    }

    /// A token with its probability, in the form of chat.
    fn with_logprob(&self, id: u32, logprob: f32) -> Value {
        let bytes = self.bytes(id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
    }

    /// The probabilities of tokens, as the response has them; null if the client did not ask for them. `before` is
    /// the number of characters of the text before the first of these tokens.
    pub fn logprobs(&self, tokens: &[SentToken], before: usize) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        if self.form == Form::Chat {
            let entry = |token: &SentToken| {
                let Logprobs { chosen, top } = &token.logprobs;
                let mut entry = self.with_logprob(token.id, *chosen);
                entry["top_logprobs"] = top.iter().map(|(id, logprob)| self.with_logprob(*id, *logprob)).collect();
                entry
            };
            return json!({"content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null});
        }
        self.columns(tokens.iter().map(|token| (token.id, Some(&token.logprobs))), before)
    }

    /// Tokens and their probabilities in the form of completions: a list for each property.
    fn columns<'a>(&self, tokens: impl Iterator<Item = (u32, Option<&'a Logprobs>)>, before: usize) -> Value {
        let (mut texts, mut chosen, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut offset = before;
        for (id, logprobs) in tokens {
            let bytes = self.bytes(id);
            offsets.push(offset);
            let text = String::from_utf8_lossy(&bytes);
            offset += text.chars().count();
            texts.push(text.into_owned());
            chosen.push(logprobs.map(|logprobs| finite(logprobs.chosen)));
            top.push(logprobs.map(|logprobs| {
                let entry = |(id, logprob): &(u32, f32)| {
                    (String::from_utf8_lossy(&self.bytes(*id)).into_owned(), json!(finite(*logprob)))
                };
                logprobs.top.iter().map(entry).collect::<Map<String, Value>>()
            }));
        }
        json!({"tokens": texts, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets})
    }
}

/// Trims the text of one choice. The white space around the thinking, and that between the thinking and the answer,
/// is not sent, because it belongs to neither.
#[derive(Debug, Default)]
struct Trimmed {
    /// The part to which the latest text belongs.
    part: Option<Part>,
    /// Whether any text of this part was sent.
    begun: bool,
    /// White space that is sent only if more of the same part follows.
    held: String,
    /// Whether the choice has had any thinking.
    thought: bool,
}

impl Trimmed {
    /// Adds a text and returns the text to send now.
    fn push(&mut self, part: Part, text: &str) -> String {
        if self.part != Some(part) {
            self.held.clear();
            self.begun = false;
            self.thought |= part == Part::Thinking;
            self.part = Some(part);
        }
        // An answer without thinking before it is the model's own text, so it is not trimmed.
        if part == Part::Answer && !self.thought {
            return text.into();
        }
        let text = if self.begun { text } else { text.trim_start() };
        if text.is_empty() {
            return String::new();
        }
        self.begun = true;
        let mut out = std::mem::take(&mut self.held) + text;
        if part == Part::Thinking {
            self.held = out.split_off(out.trim_end().len());
        }
        out
    }
}

/// The logarithm as a number that JSON can hold, because JSON has no infinity.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// OpenAI's name for the end of a choice; `None` for an end that is an error. `calls` says whether the choice called
/// tools.
pub(super) fn finish_reason(reason: &StopReason, calls: bool) -> Option<&'static str> {
    match worker::end(reason) {
        "stop" if calls => Some("tool_calls"),
        end => Some(end).filter(|end| ["stop", "length"].contains(end)),
    }
}

/// The error with which a choice ended, if it failed.
pub(super) fn failure(ending: &Result<Box<Ending>, Error>) -> Option<Refusal> {
    match ending {
        Err(error) => Some(error.clone().into()),
        Ok(ending) => match (&ending.error, finish_reason(&ending.reason, false)) {
            (Some(error), _) => Some(error.clone().into()),
            (None, Some(_)) => None,
            (None, None) => {
                let message = "the request was ended before its answer was complete";
                Some(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message).coded("cancelled"))
            }
        },
    }
}

/// The usage of a request, summed over its choices. Each group of `each` choices shares one prompt.
pub(super) fn usage(endings: &[Box<Ending>], each: usize) -> Value {
    let sum = |of: fn(&Ending) -> u64| endings.iter().map(|ending| of(ending)).sum::<u64>();
    let prompt: u64 = endings.iter().step_by(each).map(|ending| ending.totals.prompt_tokens as u64).sum();
    let generated = sum(|e| e.totals.generated_tokens as u64);
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": endings.iter().step_by(each).map(|e| e.shared_tokens).sum::<usize>()},
        "completion_tokens_details": {"reasoning_tokens": sum(|e| e.totals.thinking_tokens as u64)},
        "secateur": {
            "cached_tokens": sum(|e| e.totals.final_cached as u64),
            "peak_tokens": sum(|e| e.totals.peak_cached as u64),
            "evicted_tokens": sum(|e| e.totals.evicted_tokens as u64),
            "peak_kv_bytes": sum(|e| e.totals.peak_kv_bytes),
            "probes": sum(|e| e.probes as u64),
            "prune_ms": sum(|e| e.totals.probe_us) / 1000,
            "seed": endings.first().map(|e| e.seed),
        },
    })
}

/// The choices of a response while their pieces arrive.
pub(super) struct Collected {
    trimmed: Vec<Trimmed>,
    thinking: Vec<String>,
    content: Vec<String>,
    pub calls: Vec<Calls>,
    /// The tokens of the content, if the client asked for their probabilities.
    tokens: Vec<Vec<SentToken>>,
    endings: Vec<Option<Box<Ending>>>,
}

impl Collected {
    pub fn new(frame: &Frame) -> Self {
        let choices = frame.choices;
        Self {
            trimmed: (0..choices).map(|_| Trimmed::default()).collect(),
            thinking: vec![String::new(); choices],
            content: vec![String::new(); choices],
            calls: (0..choices).map(|_| Calls::new(frame.calling.as_ref())).collect(),
            tokens: vec![Vec::new(); choices],
            endings: (0..choices).map(|_| None).collect(),
        }
    }

    /// The text to send for a new text, with the part in which it is shown; `None` if nothing is sent.
    fn text(&mut self, frame: &Frame, choice: usize, part: Part, text: &str) -> Option<(Part, String)> {
        if frame.undivided() {
            return (!text.is_empty()).then(|| (Part::Answer, text.to_string()));
        }
        if part == Part::Tag {
            return None;
        }
        let text = self.trimmed[choice].push(part, text);
        let hidden = text.is_empty() || part == Part::Thinking && frame.without_thinking;
        (!hidden).then_some((part, text))
    }

    /// Processes a new text. Returns the thinking to send, or the text and calls of the answer that were separated.
    pub fn told(&mut self, frame: &Frame, choice: usize, part: Part, text: &str) -> (Option<String>, Vec<Told>) {
        // A thought is no part of a call, so no call is searched for in it.
        let mut told = if part == Part::Answer { Vec::new() } else { self.calls[choice].finish() };
        match self.text(frame, choice, part, text) {
            Some((Part::Thinking, text)) => return (Some(text), told),
            Some((_, text)) if part == Part::Answer => told.extend(self.calls[choice].push(text)),
            Some((_, text)) => told.push(Told::Text(text)),
            None => (),
        }
        (None, told)
    }

    /// Adds separated text to the content of a choice that is returned as a whole.
    fn keep(&mut self, choice: usize, told: Vec<Told>) {
        for told in told {
            if let Told::Text(text) = told {
                self.content[choice].push_str(&text);
            }
        }
    }
}

/// The message of a chat, without its thinking.
fn message(content: &str, calls: &Calls) -> Value {
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !calls.is_empty() {
        message["tool_calls"] = calls.json();
        if content.is_empty() {
            message["content"] = Value::Null;
        }
    }
    message
}

/// Waits for all choices and answers with one object.
pub(super) async fn whole(frame: Frame, client: Client, traces: Arc<Traces>) -> Result<Response, Refusal> {
    let mut collected = Collected::new(&frame);
    let beginnings = collected.content.iter_mut().zip(&frame.beginnings);
    beginnings.for_each(|(content, beginning)| content.push_str(&beginning.text));
    while collected.endings.iter().any(Option::is_none) {
        for (choice, piece) in client.0.take().await {
            match piece {
                Piece::Text { part, text, tokens } => {
                    if frame.is_content(part) {
                        collected.tokens[choice].extend(tokens);
                    }
                    let (thinking, told) = collected.told(&frame, choice, part, &text);
                    collected.thinking[choice].push_str(&thinking.unwrap_or_default());
                    collected.keep(choice, told);
                }
                Piece::Probe(_) | Piece::Events(_) | Piece::Trace(_) => (),
                Piece::End(ending) => {
                    if let Some(refusal) = failure(&ending) {
                        return Err(refusal);
                    }
                    if let Ok(mut ending) = ending {
                        let rest = collected.calls[choice].finish();
                        collected.keep(choice, rest);
                        traces.keep(&frame, choice, ending.trace.take());
                        collected.endings[choice] = Some(ending);
                    }
                }
            }
        }
    }
    let endings: Vec<Box<Ending>> = std::mem::take(&mut collected.endings).into_iter().flatten().collect();
    let choices: Vec<Value> = endings
        .iter()
        .zip(collected.thinking.iter().zip(&collected.content))
        .enumerate()
        .map(|(index, (ending, (thinking, content)))| {
            let calls = &collected.calls[index];
            let finish = finish_reason(&ending.reason, !calls.is_empty());
            let tokens = &collected.tokens[index];
            let logprobs = match frame.beginnings.get(index) {
                Some(Beginning { ids, .. }) if frame.logprobs => {
                    // The first token has no token before it, so it has no probability.
                    let of_prompt = std::iter::once(None).chain(ending.prompt_logprobs.iter().map(Some));
                    let written = tokens.iter().map(|token| (token.id, Some(&token.logprobs)));
                    frame.columns(ids.iter().copied().zip(of_prompt).chain(written), 0)
                }
                _ => frame.logprobs(tokens, 0),
            };
            match frame.form {
                Form::Completion => {
                    json!({"index": index, "text": content, "logprobs": logprobs, "finish_reason": finish})
                }
                Form::Chat => {
                    let mut message = message(content, calls);
                    if let Some(field) = frame.thinking_field.filter(|_| !thinking.is_empty()) {
                        message[field] = thinking.as_str().into();
                    }
                    json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
                }
            }
        })
        .collect();
    let mut body = frame.head(false);
    body.insert("choices".into(), choices.into());
    body.insert("usage".into(), usage(&endings, frame.each));
    Ok(axum::Json(Value::Object(body)).into_response())
}

/// Answers with a stream of server-sent events. Its events have no names and no ids, because OpenAI clients fail on
/// them.
pub(super) fn stream(frame: Frame, client: Client, traces: Arc<Traces>, worker: Arc<Worker>) -> Response {
    let collected = Collected::new(&frame);
    let ping = frame.ping;
    let mut state = Stream { frame, traces, collected, out: Outgoing::default() };
    if state.frame.form == Form::Chat {
        for choice in 0..state.frame.choices {
            let first = state.frame.chunk(choice, json!({"role": "assistant", "content": ""}), Value::Null, None);
            state.send(&first);
        }
    }
    for (choice, beginning) in std::mem::take(&mut state.frame.beginnings).into_iter().enumerate() {
        let first = state.frame.chunk(choice, beginning.text.into(), Value::Null, None);
        state.send(&first);
    }
    if state.frame.events == Events::Run {
        // This is sent at once, so that the client knows the id with which it can end the run.
        (0..state.frame.choices).for_each(|choice| state.send_own(json!({"choice": choice, "events": []})));
    }
    let first = std::mem::take(&mut state.out);
    respond(first, client, worker, ping, move |choice, piece| {
        state.piece(choice, piece);
        std::mem::take(&mut state.out)
    })
}

/// The part of a stream that is ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Bytes that are ready to be sent.
    ready: VecDeque<Bytes>,
    /// Whether the stream ends after the ready bytes.
    over: bool,
}

impl Outgoing {
    /// Adds an event without a name.
    pub fn data(&mut self, data: &Value) {
        self.ready.push_back(format!("data: {data}\n\n").into());
    }

    /// Adds an event with a name.
    pub fn named(&mut self, name: &str, data: &Value) {
        self.ready.push_back(format!("event: {name}\ndata: {data}\n\n").into());
    }

    /// Adds data that only secateur's own clients read, as a comment.
    pub fn comment(&mut self, own: &Value) {
        self.ready.push_back(format!(": secateur {own}\n\n").into());
    }

    /// Ends the stream after the ready bytes.
    pub fn end(&mut self) {
        self.over = true;
    }
}

/// Answers with a stream that begins with `first`. `write` converts the further pieces of the client's mailbox. After
/// `ping` of silence a comment is sent, so that proxies keep the connection.
pub(super) fn respond(
    first: Outgoing,
    client: Client,
    worker: Arc<Worker>,
    ping: Option<Duration>,
    write: impl FnMut(usize, Piece) -> Outgoing + Send + 'static,
) -> Response {
    let spoke = Instant::now();
    let turns = worker.shared().turns.load(std::sync::atomic::Ordering::Relaxed);
    let state = Sending { write, out: first, client, worker, ping, turns, spoke };
    let frames = futures_util::stream::unfold(state, |mut state| async move {
        let bytes = state.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), state))
    });
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-cache"),
        (axum::http::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

/// A stream on its way to its client.
struct Sending<W> {
    write: W,
    out: Outgoing,
    client: Client,
    worker: Arc<Worker>,
    ping: Option<Duration>,
    /// The engine's turns at the time of the last comment.
    turns: u64,
    /// The time at which the last bytes were sent.
    spoke: Instant,
}

impl<W: FnMut(usize, Piece) -> Outgoing> Sending<W> {
    /// The next bytes to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.out.ready.pop_front() {
                self.spoke = Instant::now();
                return Some(bytes);
            }
            if self.out.over {
                return None;
            }
            let mailbox: Arc<Mailbox> = self.client.0.clone();
            let pieces = match self.ping {
                None => mailbox.take().await,
                Some(ping) => match tokio::time::timeout_at(self.spoke + ping, mailbox.take()).await {
                    Ok(pieces) => pieces,
                    Err(_) => {
                        self.comment();
                        continue;
                    }
                },
            };
            for (choice, piece) in pieces {
                if !self.out.over {
                    let Outgoing { ready, over } = (self.write)(choice, piece);
                    self.out.ready.extend(ready);
                    self.out.over = over;
                }
            }
        }
    }

    /// Sends a comment, unless the engine has made no turn since the last one. Then the client's own timeout should
    /// end the request.
    fn comment(&mut self) {
        self.spoke = Instant::now();
        let turns = self.worker.shared().turns.load(std::sync::atomic::Ordering::Relaxed);
        if turns != self.turns {
            self.turns = turns;
            self.out.ready.push_back(Bytes::from_static(b": working\n\n"));
        }
    }
}

/// The state of a stream of chunks.
struct Stream {
    frame: Frame,
    traces: Arc<Traces>,
    collected: Collected,
    out: Outgoing,
}

impl Stream {
    fn send(&mut self, data: &Value) {
        self.out.data(data);
    }

    /// Sends a chunk without choices that has data of secateur's own.
    fn send_own(&mut self, value: Value) {
        let mut chunk = self.frame.head(true);
        chunk.insert("choices".into(), json!([]));
        chunk.insert("secateur".into(), value);
        self.send(&chunk.into());
    }

    fn piece(&mut self, choice: usize, piece: Piece) {
        match piece {
            Piece::Text { part, text, tokens } => {
                let tokens = if self.frame.is_content(part) { tokens } else { Vec::new() };
                let (thinking, mut told) = self.collected.told(&self.frame, choice, part, &text);
                if let Some(text) = thinking {
                    let chunk = self.frame.chunk(choice, self.frame.delta(Part::Thinking, &text), Value::Null, None);
                    self.send(&chunk);
                }
                if told.is_empty() && !tokens.is_empty() {
                    told.push(Told::Text(String::new()));
                }
                self.tell(choice, told, &tokens);
            }
            Piece::Probe(probe) => match self.frame.events {
                Events::None | Events::Run => (),
                Events::Comments => self.out.comment(&json!({"choice": choice, "probe": probe})),
                Events::Chunks => self.send_own(json!({"choice": choice, "probe": probe})),
            },
            Piece::Events(events) => self.send_own(json!({"choice": choice, "events": events})),
            Piece::Trace(trace) => {
                if let Ok(trace) = trace.to_json() {
                    self.send_own(json!({"choice": choice, "events": [{"type": "trace", "json": trace}]}));
                }
            }
            Piece::End(ending) => self.end(choice, ending),
        }
    }

    /// Sends separated text and calls. The probabilities of the tokens go with the first chunk.
    fn tell(&mut self, choice: usize, told: Vec<Told>, tokens: &[SentToken]) {
        let mut tokens = Some(tokens);
        for told in told {
            let before = self.collected.content[choice].chars().count();
            let delta = match told {
                Told::Text(text) => {
                    self.collected.content[choice].push_str(&text);
                    self.frame.delta(Part::Answer, &text)
                }
                Told::Call { index, id, name } => {
                    let function = json!({"name": name, "arguments": ""});
                    json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
                }
                Told::Arguments { index, text } => {
                    json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
                }
            };
            let logprobs = tokens.take().filter(|tokens| !tokens.is_empty());
            let logprobs = logprobs.map_or(Value::Null, |tokens| self.frame.logprobs(tokens, before));
            let chunk = self.frame.chunk(choice, delta, logprobs, None);
            self.send(&chunk);
        }
    }

    fn end(&mut self, choice: usize, ending: Result<Box<Ending>, Error>) {
        if let Some(refusal) = failure(&ending) {
            self.send(&refusal.body());
            self.out.end();
            return;
        }
        let Ok(mut ending) = ending else { return };
        let rest = self.collected.calls[choice].finish();
        self.tell(choice, rest, &[]);
        self.traces.keep(&self.frame, choice, ending.trace.take());
        let calls = !self.collected.calls[choice].is_empty();
        let nothing = match self.frame.form {
            Form::Chat => json!({}),
            Form::Completion => "".into(),
        };
        let last = self.frame.chunk(choice, nothing, Value::Null, finish_reason(&ending.reason, calls));
        self.send(&last);
        self.collected.endings[choice] = Some(ending);
        if self.collected.endings.iter().all(Option::is_some) {
            let endings: Vec<Box<Ending>> = self.collected.endings.iter_mut().filter_map(Option::take).collect();
            if self.frame.include_usage {
                let mut chunk = self.frame.head(true);
                chunk.insert("choices".into(), json!([]));
                chunk.insert("usage".into(), usage(&endings, self.frame.each));
                self.send(&chunk.into());
            }
            self.out.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            self.out.end();
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::text::CallFormat;

    pub fn frame(form: Form) -> Frame {
        Frame {
            id: "x".into(),
            form,
            created: 0,
            model: "m".into(),
            choices: 1,
            each: 1,
            thinking_field: None,
            without_thinking: false,
            events: Events::None,
            include_usage: false,
            ping: None,
            owner: None,
            beginnings: Vec::new(),
            tokenizer: None,
            logprobs: false,
            calling: None,
        }
    }

    #[test]
    fn white_space_around_the_thinking_belongs_to_no_part() {
        let mut trimmed = Trimmed::default();
        let sent: Vec<String> = [
            (Part::Thinking, "\n"),
            (Part::Thinking, " So 2\n"),
            (Part::Thinking, "\nand 3.\n\n"),
            (Part::Answer, "\n\n"),
            (Part::Answer, "Five. "),
            (Part::Answer, " Yes.\n"),
        ]
        .into_iter()
        .map(|(part, text)| trimmed.push(part, text))
        .collect();
        assert_eq!(sent, ["", "So 2", "\n\nand 3.", "", "Five. ", " Yes.\n"]);
    }

    /// Clients recognise by a content of null that an answer consists of calls only.
    #[test]
    fn the_content_is_null_without_a_text_before_a_call() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let calling = Calling::new(CallFormat::Tagged, &[tool], true);
        let call = "\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n";
        for (answer, content, count) in [
            (call.to_string(), Value::Null, 1),
            (format!("Yes.{call}"), "Yes.".into(), 1),
            ("Yes.".into(), "Yes.".into(), 0),
            (String::new(), "".into(), 0),
        ] {
            let mut calls = Calls::new(Some(&calling));
            let mut told = calls.push(answer.clone());
            told.extend(calls.finish());
            let texts =
                told.iter().filter_map(|told| if let Told::Text(text) = told { Some(text.as_str()) } else { None });
            let message = message(&texts.collect::<String>(), &calls);
            assert_eq!((&message["content"], &message["role"]), (&content, &json!("assistant")), "{answer}");
            assert_eq!(message["tool_calls"].as_array().map_or(0, Vec::len), count, "{answer}");
        }
    }

    /// Comments show that the engine works. While the engine makes no turns, none are sent, so that a client's own
    /// timeout can end the request.
    #[test]
    fn silence_is_filled_only_while_the_engine_moves() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let open = Box::new(move || {
            held.recv().ok();
            Err(Error::new(crate::ErrorKind::Internal, "no model here"))
        });
        let options = super::super::tests::options("127.0.0.1", &[], &[]);
        let worker = Arc::new(Worker::start(open, &options, Arc::default()).expect("a thread"));
        let frame = Frame { ping: Some(Duration::from_millis(20)), ..frame(Form::Completion) };
        let response = stream(frame, Client(Mailbox::new()), Arc::new(Traces::new(0)), worker.clone());
        let mut body = response.into_body().into_data_stream();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut next = async || {
                use futures_util::StreamExt;
                tokio::time::timeout(Duration::from_millis(300), body.next()).await
            };
            assert!(next().await.is_err(), "it stands still, and a comment came");
            worker.shared().turns.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let comment = next().await.expect("in time").expect("a comment").expect("bytes");
            assert_eq!(&comment[..], b": working\n\n");
            assert!(next().await.is_err(), "it stands still again");
        });
        release.send(()).ok();
        assert!(worker.join().is_err());
    }

    #[test]
    fn an_answer_without_thinking_is_untouched() {
        let mut trimmed = Trimmed::default();
        assert_eq!(trimmed.push(Part::Answer, "\n  x "), "\n  x ");
        assert_eq!(trimmed.push(Part::Answer, " \n"), " \n");
    }
}
