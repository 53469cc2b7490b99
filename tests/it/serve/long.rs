//! Long prompts and long conversations beside other requests: nobody waits for the whole of one.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use secateur::ModelSource;
use serde_json::{Value, json};

use super::client::{Stream, chat, events};
use super::{Server, options};

/// Tokens of the long prompt: it is read in 24 chunks.
const LONG: usize = 24 * 256;

/// A server of a random model with a long context.
fn server() -> Server {
    let read = |name: &str| {
        std::fs::read(format!("{}/tests/golden/qwen2-f16/{name}", env!("CARGO_MANIFEST_DIR"))).expect("committed")
    };
    let mut config: Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    config["max_position_embeddings"] = 16_384.into();
    let source = ModelSource::memory([
        ("config.json", config.to_string().into_bytes()),
        ("tokenizer.json", read("tokenizer.json")),
        ("tokenizer_config.json", read("tokenizer_config.json")),
        ("model.safetensors", read("model.safetensors")),
    ]);
    let mut options = options();
    (options.places, options.most_new_tokens) = (4, 8192);
    Server::with(source, options)
}

/// A completion of so many ids.
fn completion(ids: usize, fields: Value) -> Value {
    let ids: Vec<usize> = (0..ids).map(|i| 20 + i * i % 90).collect();
    let mut body = json!({"prompt": ids, "ignore_eos": true, "seed": 1, "secateur": {"policy": "full"}});
    fields.as_object().expect("fields").iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

fn streamed(server: &Server, mut body: Value) -> Stream {
    body["stream"] = true.into();
    server.open("POST", "/v1/completions", "", &body.to_string())
}

/// A request that is decoded meanwhile. Its tokens are counted.
struct Decoding<'a> {
    tokens: &'a AtomicUsize,
    thread: ScopedJoinHandle<'a, String>,
}

fn decoding<'a>(
    scope: &'a Scope<'a, '_>,
    server: &'a Server,
    tokens: &'a AtomicUsize,
    ends: &'a AtomicBool,
) -> Decoding<'a> {
    let mut stream = streamed(server, completion(5, json!({"max_tokens": 4000, "stream_options": {}})));
    server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
    let thread = scope.spawn(move || {
        let mut all = String::new();
        while let Some(chunk) = stream.chunk() {
            tokens.fetch_add(chunk.matches("\"text\"").count(), Ordering::SeqCst);
            all += &chunk;
            if ends.load(Ordering::SeqCst) {
                break;
            }
        }
        all
    });
    server.wait_for("it is decoded", |_| tokens.load(Ordering::SeqCst) > 0);
    Decoding { tokens, thread }
}

/// While a long prompt is read, a running request gets its tokens, a short prompt that comes later is answered first, and
/// the server says how it is.
#[test]
fn a_long_prompt_holds_nobody_up() {
    let server = server();
    let (tokens, ends, read) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let decoding = decoding(scope, &server, &tokens, &ends);
        let before = decoding.tokens.load(Ordering::SeqCst);
        let mut long = streamed(&server, completion(LONG, json!({"max_tokens": 2})));
        let long = scope.spawn(|| {
            let first = long.chunk();
            read.store(true, Ordering::SeqCst);
            first.unwrap_or_default() + &long.rest()
        });
        server.wait_for("it runs", |server| server.metric("num_requests_running") == 2.0);
        let short = server.post("/v1/completions", &completion(9, json!({"max_tokens": 1}))).json();
        let short_was_first = !read.load(Ordering::SeqCst);
        assert_eq!(short["usage"]["completion_tokens"], 1, "{short}");
        assert!(short_was_first, "the short prompt waited for the whole of the long one");
        let mut answered = 0;
        while !read.load(Ordering::SeqCst) {
            for path in ["/health", "/metrics", "/slots"] {
                assert_eq!(server.get(path).status, 200, "{path}");
                answered += 1;
            }
        }
        assert!(answered > 6, "{answered} answers while the prompt was read");
        let meanwhile = decoding.tokens.load(Ordering::SeqCst) - before;
        assert!(meanwhile > LONG / 256 / 2, "{meanwhile} tokens while the prompt was read");
        let (chunks, _) = events(&long.join().expect("no panic"));
        assert!(chunks.iter().any(|chunk| chunk["choices"][0]["finish_reason"] == "length"), "{chunks:?}");
        ends.store(true, Ordering::SeqCst);
        decoding.thread.join().expect("no panic");
    });
}

/// A client that leaves while its prompt is read frees its place, and nothing of its answer is computed.
#[test]
fn a_client_that_leaves_while_its_prompt_is_read_frees_its_place() {
    let server = server();
    let long = streamed(&server, completion(LONG, json!({"max_tokens": 200})));
    server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
    drop(long);
    server.wait_for("its place is free", |server| server.metric("num_requests_running") == 0.0);
    assert_eq!(server.metric("generation_tokens_total"), 0.0);
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("request_success_total{finished_reason=\"abort\"} 1"), "{metrics}");
}

/// A conversation of a megabyte is put through the template and the tokenizer, or refused, while others get their tokens.
#[test]
fn a_long_conversation_holds_nobody_up() {
    let server = server();
    let (tokens, ends) = (AtomicUsize::new(0), AtomicBool::new(false));
    let fields = json!({"max_tokens": 2});
    let turns = |count: usize, length: usize| {
        let mut body = chat("", fields.clone());
        let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        body["messages"] = (0..count).map(|i| json!({"role": role(i), "content": "ab ".repeat(length / 3)})).collect();
        body
    };
    std::thread::scope(|scope| {
        let decoding = decoding(scope, &server, &tokens, &ends);
        let asked: Vec<_> = [turns(1001, 1000), turns(3, 350_000), turns(1, 1_000_000), turns(301, 24)]
            .map(|body| {
                scope.spawn(|| {
                    let body = body;
                    server.post("/v1/chat/completions", &body)
                })
            })
            .into();
        let replies: Vec<_> = asked.into_iter().map(|reply| reply.join().expect("no panic")).collect();
        for reply in &replies[..3] {
            reply.refusal(400);
            assert_eq!(reply.json()["error"]["code"], "context_length_exceeded", "{reply:?}");
        }
        assert_eq!(replies[3].status, 200, "{:?}", replies[3]);
        let before = decoding.tokens.load(Ordering::SeqCst);
        server.wait_for("it goes on", |_| decoding.tokens.load(Ordering::SeqCst) > before + 20);
        ends.store(true, Ordering::SeqCst);
        let text = decoding.thread.join().expect("no panic");
        assert!(!text.contains("error"), "{text}");
    });
}

/// A request may ask for the whole context. Others run all the same.
#[test]
fn one_that_asks_for_the_whole_context_runs_beside_others() {
    let server = server();
    let greedy = streamed(&server, completion(5, json!({"max_tokens": 16_384})));
    assert_eq!(greedy.status(), 200);
    server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
    for _ in 0..3 {
        let reply = server.post("/v1/completions", &completion(9, json!({"max_tokens": 3})));
        assert_eq!(reply.json()["usage"]["completion_tokens"], 3, "{reply:?}");
    }
    drop(greedy);
}
