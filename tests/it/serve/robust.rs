//! Tests of errors that other servers had, and of requests by strangers.
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use secateur::builtin;
use serde_json::json;

use super::client::{chat, events, texts};
use super::{Server, options};

/// A request that runs until its limit, which takes some seconds.
fn long(fields: serde_json::Value) -> serde_json::Value {
    let mut body =
        chat(builtin::EXAMPLE, json!({"ignore_eos": true, "max_tokens": 1500, "secateur": {"policy": "full"}}));
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let mut options = options();
    (options.places, options.queue) = (1, 2);
    let server = Server::start(options);
    // The client leaves during decoding, streamed and not, and with several answers.
    for fields in [json!({"stream": true}), json!({}), json!({"n": 3, "stream": true})] {
        let mut stream = server.connect();
        let body = long(fields.clone()).to_string();
        let (host, length) = (server.address, body.len());
        write!(stream, "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
            .expect("it is sent");
        server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
        drop(stream);
        let left = Instant::now();
        server.wait_for("its place is free", |server| {
            server.metric("num_requests_running") == 0.0 && server.metric("num_requests_waiting") == 0.0
        });
        assert!(left.elapsed() < Duration::from_secs(10), "{fields}");
    }
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("request_success_total{finished_reason=\"abort\"} 5"), "all were ended early: {metrics}");
    assert_eq!(server.chat(&chat("a is 3. What is a?", json!({"max_tokens": 3})))["usage"]["completion_tokens"], 3);
}

#[test]
fn a_client_that_leaves_the_queue_costs_nothing() {
    let mut options = options();
    (options.places, options.queue) = (1, 2);
    let server = Server::start(options);
    let running = server.streamed(&long(json!({})));
    server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
    let waiting = server.streamed(&long(json!({})));
    server.wait_for("one waits", |server| server.metric("num_requests_waiting") == 1.0);
    let before = server.metric("prompt_tokens_total");
    drop(waiting);
    server.wait_for("none waits", |server| server.metric("num_requests_waiting") == 0.0);
    assert_eq!(server.metric("prompt_tokens_total"), before, "its prompt was not forwarded");
    drop(running);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let mut options = options();
    (options.places, options.queue) = (1, 1);
    let server = Server::start(options);
    let streams: Vec<_> = (0..2).map(|_| server.streamed(&long(json!({})))).collect();
    let begun = Instant::now();
    let reply = server.post("/v1/chat/completions", &long(json!({})));
    assert!(reply.refusal(503).contains("queue") && reply.head.contains("retry-after"), "{reply:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(server.metric("requests_refused_total"), 1.0);
    drop(streams);
    server.wait_for("they are gone", |server| {
        server.metric("num_requests_running") == 0.0 && server.metric("num_requests_waiting") == 0.0
    });
    server.chat(&chat("a is 3. What is a?", json!({"max_tokens": 3})));
}

/// One key cannot take all places. The limit counts only its own requests, and only those that have not ended.
#[test]
fn a_key_has_a_limit_of_its_own() {
    let mut options = options();
    (options.keys, options.requests_per_key) = (vec!["one".into(), "two".into()], Some(2));
    let server = Server::start(options);
    let ask = |key: &str, body: &serde_json::Value| {
        server.open("POST", "/v1/chat/completions", &format!("authorization: Bearer {key}\r\n"), &body.to_string())
    };
    let short = chat("a is 3. What is a?", json!({"max_tokens": 3}));
    let running: Vec<_> = (0..2).map(|_| ask("one", &long(json!({"stream": true})))).collect();
    let refused = ask("one", &short);
    assert_eq!(refused.status(), 429, "{}", refused.head);
    assert!(refused.head.contains("retry-after: 5"), "{}", refused.head);
    // With another key, more answers are asked for than may ever run.
    let two = ask("two", &long(json!({"stream": true, "max_tokens": 5})));
    assert_eq!(two.status(), 200);
    assert_eq!(ask("two", &chat("a", json!({"n": 3}))).status(), 400);
    drop((running, two));
    server.wait_for("one has room again", |_| ask("one", &short).status() == 200);
}

#[test]
fn a_reader_that_stops_reading_is_ended_and_holds_nobody_up() {
    let mut options = options();
    options.patience = Duration::from_millis(300);
    let server = Server::start(options);
    let slow = server.streamed(&long(json!({})));
    let other = server.chat(&chat(builtin::EXAMPLE, json!({})));
    assert_eq!(other["choices"][0]["finish_reason"], "stop");
    // The socket's own buffers take the first hundred kilobytes, which is more than this answer has. The test checks
    // that the server's side ends in either way, although nothing is read.
    server.wait_for("it has ended", |server| server.metric("num_requests_running") == 0.0);
    drop(slow);
}

#[test]
fn health_and_metrics_answer_while_hundreds_of_connections_are_open() {
    let server = Server::start(options());
    let idle: Vec<_> = (0..300).map(|_| server.connect()).collect();
    let streams: Vec<_> = (0..4).map(|_| server.streamed(&long(json!({})))).collect();
    for path in ["/health", "/metrics", "/slots", "/v1/models"] {
        let begun = Instant::now();
        assert_eq!(server.get(path).status, 200, "{path}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{path}: {:?}", begun.elapsed());
    }
    drop((idle, streams));
}

#[test]
fn silence_is_filled_with_comments() {
    let mut slow = options();
    (slow.places, slow.queue, slow.ping) = (1, 4, Some(Duration::from_millis(50)));
    let server = Server::start(slow);
    let running = server.streamed(&long(json!({"max_tokens": 400})));
    // This one waits for its place.
    let text = server.streamed(&chat("a is 3. What is a?", json!({"max_tokens": 3}))).rest();
    let (chunks, comments) = events(&text);
    assert!(comments.contains(&"working"), "{text}");
    assert_eq!(texts(&chunks, 0).2.as_deref(), Some("length"));
    drop(running);
}

/// Some clients fail on comments.
#[test]
fn comments_can_be_switched_off() {
    let mut silent = options();
    (silent.places, silent.queue, silent.ping) = (1, 4, None);
    let server = Server::start(silent);
    let running = server.streamed(&long(json!({"max_tokens": 400})));
    let text = server.streamed(&chat("a is 3. What is a?", json!({"max_tokens": 3}))).rest();
    assert_eq!(events(&text).1, [""; 0]);
    drop(running);
}

/// A request that takes too long ends with an error, in a stream and as a whole, while it runs and while it waits.
#[test]
fn a_request_has_a_deadline() {
    let mut hasty = options();
    (hasty.places, hasty.deadline) = (1, Some(Duration::from_millis(700)));
    let server = Server::start(hasty);
    let short = server.chat(&chat("a is 3. What is a?", json!({"max_tokens": 2})));
    assert_eq!(short["choices"][0]["finish_reason"], "length", "what is done in time is answered");
    let running = server.streamed(&long(json!({})));
    let waiting = server.post("/v1/chat/completions", &long(json!({})));
    let message = waiting.refusal(504);
    assert!(message.contains("longer than this server allows") && message.contains("0.7 s"), "{message}");
    assert_eq!(waiting.json()["error"]["code"], "timeout");
    assert!(waiting.head.contains("x-should-retry: false"), "{}", waiting.head);
    let text = running.rest();
    let (chunks, _) = events(&text);
    assert!(!texts(&chunks, 0).0.is_empty(), "what was said in time: {text}");
    assert_eq!(chunks.last().expect("chunks")["error"]["code"], "timeout", "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    server.wait_for("nothing runs", |server| server.metric("num_requests_running") == 0.0);
}

/// Proxies keep idle connections for a while, and a request that meets a closing one fails.
#[test]
fn an_idle_connection_can_be_used_again_after_seconds() {
    let server = Server::start(options());
    let mut connection = server.connect();
    for pause in [Duration::ZERO, Duration::from_secs(6)] {
        std::thread::sleep(pause);
        write!(connection, "GET /health HTTP/1.1\r\nhost: {}\r\n\r\n", server.address).expect("it is still open");
        let mut reply = String::new();
        while !reply.ends_with("{\"status\":\"ok\"}") {
            let mut bytes = [0; 512];
            let count = connection.read(&mut bytes).expect("an answer");
            assert!(count > 0, "the connection was closed: {reply}");
            reply += std::str::from_utf8(&bytes[..count]).expect("text");
        }
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
}

#[test]
fn strangers_are_refused() {
    let mut guarded = options();
    guarded.keys = vec!["right".into()];
    guarded.origins = vec!["https://app.example".into()];
    let server = Server::start(guarded);
    let body = chat("a is 3. What is a?", json!({"max_tokens": 2})).to_string();
    for (headers, status) in [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: Basic right\r\n", 401),
        ("x-api-key: wrong\r\n", 401),
        ("authorization: Bearer right\r\n", 200),
        ("authorization: bearer right\r\n", 200),
        ("x-api-key: right\r\n", 200),
    ] {
        let reply = server.request("POST", "/v1/chat/completions", headers, &body);
        assert_eq!(reply.status, status, "{headers}: {reply:?}");
    }
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(server.get("/health").status, 200, "probes have no key");
    let origin = |origin: &str| {
        server.request(
            "OPTIONS",
            "/v1/chat/completions",
            &format!("origin: {origin}\r\naccess-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n"),
            "",
        )
    };
    assert!(
        origin("https://app.example").head.to_lowercase().contains("access-control-allow-origin: https://app.example")
    );
    assert!(!origin("https://evil.example").head.to_lowercase().contains("access-control-allow-origin"));
}

#[test]
fn extreme_numbers_and_long_lists_hurt_nobody() {
    let server = Server::start(options());
    let most = u64::MAX;
    for fields in [
        json!({"secateur": {"max_answer_tokens": most}}),
        json!({"thinking_token_budget": most}),
        json!({"max_tokens": most, "secateur": {"window": most, "budget": "tokens:64"}}),
        json!({"top_k": i64::MAX, "seed": i64::MIN}),
        json!({"secateur": {"probe_every": most}}),
    ] {
        let mut fields = fields;
        if fields.get("max_tokens").is_none() {
            fields["max_tokens"] = 5.into();
        }
        let reply = server.post("/v1/chat/completions", &chat(builtin::EXAMPLE, fields.clone()));
        assert!([200, 400].contains(&reply.status), "{fields}: {reply:?}");
    }
    let layers = vec!["0-9999"; 10_000].join(",");
    let reply = server.post("/v1/chat/completions", &chat(builtin::EXAMPLE, json!({"secateur": {"layers": layers}})));
    assert!(reply.refusal(400).contains("layers"));
    let ids: Vec<u32> = (0..100).collect();
    server.post("/v1/chat/completions", &chat(builtin::EXAMPLE, json!({"stop_token_ids": ids}))).refusal(400);
    let many = server.post("/v1/chat/completions", &chat(builtin::EXAMPLE, json!({"n": 60})));
    assert!(many.refusal(400).contains("18"), "more than can ever run and wait");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_page_in_a_browser_cannot_use_a_server_without_a_key() {
    let server = Server::start(options());
    let body = chat("a is 3. What is a?", json!({"max_tokens": 2})).to_string();
    // The request uses another name for this machine.
    let mut stream = server.connect();
    write!(stream, "GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").expect("it is sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
    // The request comes from a foreign page, with the right host name.
    let evil = server.request("GET", "/slots", "origin: https://evil.example\r\n", "");
    evil.refusal(403);
    let own = format!("origin: http://{}\r\n", server.address);
    assert_eq!(server.request("GET", "/slots", &own, "").status, 200);
    // The request comes from a form, which browsers send without asking the server.
    let mut stream = server.connect();
    let (host, length) = (server.address, body.len());
    write!(stream, "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("it is sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    assert!(reply.starts_with("HTTP/1.1 415"), "{reply}");
}

#[test]
fn bodies_are_bounded_and_broken_ones_are_explained() {
    let server = Server::start(options());
    let fill = |bytes: usize| chat(&"a is 3. ".repeat(bytes / 8), json!({"max_tokens": 2}));
    server.post("/v1/chat/completions", &fill(5 << 20)).refusal(413);
    let long = server.post("/v1/chat/completions", &fill(3 << 20));
    let message = long.refusal(400);
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded", "{message}");
    for body in ["", "{", "[]", "null", "\"a\"", "{\"messages\": 5}", "{\"messages\": [{\"content\": \"a\"}]}"] {
        let reply = server.request("POST", "/v1/chat/completions", "content-type: application/json\r\n", body);
        reply.refusal(400);
    }
    let nested = format!("{{\"messages\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    server.request("POST", "/v1/chat/completions", "", &nested).refusal(400);
}

#[test]
fn a_server_that_is_told_to_stop_lets_answers_end() {
    let mut patient = options();
    patient.drain = Duration::from_secs(30);
    let server = Server::start(patient);
    let stream = server.streamed(&chat(builtin::EXAMPLE, json!({})));
    server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
    let ended = std::thread::spawn(move || server.stop());
    let text = stream.rest();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(ended.join().expect("no panic").expect("it ends well"), 0, "requests were cut off");
}

#[test]
fn what_is_not_done_in_time_ends_with_an_error() {
    let mut hasty = options();
    hasty.drain = Duration::from_millis(100);
    let server = Server::start(hasty);
    let stream = server.streamed(&long(json!({})));
    server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
    let begun = Instant::now();
    let ended = std::thread::spawn(move || server.stop());
    let text = stream.rest();
    let (chunks, _) = events(&text);
    assert!(chunks.last().is_some_and(|last| last["error"]["message"].is_string()), "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    assert_eq!(ended.join().expect("no panic").expect("it ends well"), 1, "requests were cut off");
    assert_eq!(chunks.last().map(|last| &last["error"]["code"]), Some(&json!("shutting_down")), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// The running request ends with an error in its stream, and the next one is answered by a device that was opened
/// again.
#[test]
fn a_lost_device_is_opened_again() {
    use crate::common::{command, gpu};
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let Some(adapter) = gpu().map(|device| device.info.name.clone()) else {
        println!("SKIPPED: no adapter");
        return;
    };
    let args = ["serve", "--port", "0", "--device", &adapter, "--sequences", "1", "--quiet"];
    let mut server = command::secateur(&args);
    server.env("SECATEUR_LOSE_DEVICE", "40").stderr(Stdio::piped());
    let mut server = server.spawn().expect("it starts");
    let mut said = BufReader::new(server.stderr.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("listening on http://").expect("the address").parse().expect("an address");
    let client = Server::at(address);
    let body = chat(builtin::EXAMPLE, json!({"max_tokens": 100, "ignore_eos": true}));
    let text = client.streamed(&body).rest();
    let (chunks, _) = events(&text);
    let error = chunks.last().expect("chunks")["error"]["message"].to_string();
    assert!(error.contains("the device was lost") && !text.contains("[DONE]"), "{text}");
    assert!(!texts(&chunks, 0).0.is_empty(), "what was said before the loss: {text}");
    client.wait_for("it answers again", |client| client.get("/health").status == 200);
    let whole = client.chat(&chat(builtin::EXAMPLE, json!({"max_tokens": 50, "ignore_eos": true})));
    assert_eq!(whole["usage"]["completion_tokens"], 50);
    assert_eq!(client.metric("device_reopened_total"), 1.0);
    server.kill().expect("it runs");
    server.wait().expect("it ends");
}
