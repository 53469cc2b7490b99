//! Long prompts and long conversations beside other requests: no request waits for the whole of one.
use std::sync::atomic::{AtomicBool, Ordering};

use secateur::ModelSource;
use serde_json::{Value, json};

use super::client::{Stream, chat, events};
use super::{Server, options};

/// Tokens of the long prompt, which is forwarded in 40 chunks.
const LONG: usize = 40 * 256;

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
    (options.places, options.most_new_tokens) = (4, 16_384);
    Server::with(source, options)
}

/// A completion of this number of ids.
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

/// A request that is decoded until its stream is dropped, because its limit is far away.
fn decoding(server: &Server) -> Stream {
    let stream = streamed(server, completion(5, json!({"max_tokens": 16_000})));
    server.wait_for("it is decoded", |server| server.metric("generation_tokens_total") > 0.0);
    stream
}

/// While a long prompt is forwarded, a running request gets its tokens, a short prompt that arrives later is answered
/// first, and the server reports its health.
#[test]
fn a_long_prompt_holds_nobody_up() {
    let server = server();
    let other = decoding(&server);
    let read = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            let mut long = streamed(&server, completion(LONG, json!({"max_tokens": 2})));
            let first = long.chunk();
            read.store(true, Ordering::SeqCst);
            first.unwrap_or_default() + &long.rest()
        });
        server.wait_for("it runs", |server| server.metric("num_requests_running") == 2.0);
        let before = server.metric("generation_tokens_total");
        let short = server.post("/v1/completions", &completion(9, json!({"max_tokens": 1}))).json();
        assert_eq!(short["usage"]["completion_tokens"], 1, "{short}");
        assert!(!read.load(Ordering::SeqCst), "the short prompt waited for the whole of the long one");
        let (mut answered, mut meanwhile) = (0, 0.0);
        while !read.load(Ordering::SeqCst) {
            for path in ["/health", "/slots"] {
                assert_eq!(server.get(path).status, 200, "{path}");
            }
            let tokens = server.metric("generation_tokens_total") - before;
            // The measurement does not count if the whole prompt was forwarded meanwhile.
            if !read.load(Ordering::SeqCst) {
                (answered, meanwhile) = (answered + 1, tokens);
            }
        }
        assert!(answered > 1, "{answered} answers while the prompt was read");
        assert!(meanwhile > 8.0, "{meanwhile} tokens while the prompt was read");
        let (chunks, _) = events(&long.join().expect("no panic"));
        assert!(chunks.iter().any(|chunk| chunk["choices"][0]["finish_reason"] == "length"), "{chunks:?}");
    });
    server.wait_for("the other one still runs", |server| server.metric("num_requests_running") == 1.0);
    drop(other);
}

/// If a client leaves while its prompt is forwarded, its place becomes free, and nothing of its answer is computed.
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

/// A conversation of a megabyte is rendered and tokenized, or refused, while other requests get their tokens.
#[test]
fn a_long_conversation_holds_nobody_up() {
    let server = server();
    let other = decoding(&server);
    let turns = |count: usize, length: usize| {
        let mut body = chat("", json!({"max_tokens": 2}));
        let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
        body["messages"] = (0..count).map(|i| json!({"role": role(i), "content": "ab ".repeat(length / 3)})).collect();
        body
    };
    let bodies = [turns(1001, 1000), turns(3, 350_000), turns(1, 1_000_000), turns(301, 24)];
    let replies: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            bodies.iter().map(|body| scope.spawn(|| server.post("/v1/chat/completions", body))).collect();
        asked.into_iter().map(|reply| reply.join().expect("no panic")).collect()
    });
    for reply in &replies[..3] {
        reply.refusal(400);
        assert_eq!(reply.json()["error"]["code"], "context_length_exceeded", "{reply:?}");
    }
    assert_eq!(replies[3].status, 200, "{:?}", replies[3]);
    server.wait_for("the other one still runs", |server| server.metric("num_requests_running") == 1.0);
    let before = server.metric("generation_tokens_total");
    server.wait_for("it goes on", |server| server.metric("generation_tokens_total") > before + 20.0);
    drop(other);
}

/// A request may ask for the whole context. Other requests still run.
#[test]
fn one_that_asks_for_the_whole_context_runs_beside_others() {
    let server = server();
    let greedy = decoding(&server);
    for _ in 0..3 {
        let reply = server.post("/v1/completions", &completion(9, json!({"max_tokens": 3})));
        assert_eq!(reply.json()["usage"]["completion_tokens"], 3, "{reply:?}");
    }
    server.wait_for("it still runs", |server| server.metric("num_requests_running") == 1.0);
    drop(greedy);
}
