//! Prompts with a common beginning.
use serde_json::{Value, json};

use super::{Server, options};

/// A completion of ids that are the same for the same length, up to the last `own` ones.
fn body(count: usize, own: usize) -> Value {
    let ids: Vec<usize> = (0..count).map(|i| 20 + (i * i + if i + own >= count { own } else { 0 }) % 20).collect();
    json!({"prompt": ids, "max_tokens": 4, "seed": 1, "ignore_eos": true})
}

fn cached(reply: &Value) -> u64 {
    reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or_else(|| panic!("{reply}"))
}

#[test]
fn later_requests_copy_what_they_share_and_usage_says_so() {
    let complete = |server: &Server, body: &Value| {
        let reply = server.post("/v1/completions", body);
        assert_eq!(reply.status, 200);
        reply.json()
    };
    let (keeping, fresh) = (Server::start(options()), Server::start(serve_options(Some(0))));
    for (count, own, expected) in [(150, 0, 0), (300, 7, 150), (300, 9, 256), (300, 9, 256), (310, 20, 256)] {
        let (found, alone) = (complete(&keeping, &body(count, own)), complete(&fresh, &body(count, own)));
        assert_eq!(found["choices"][0]["text"], alone["choices"][0]["text"], "{count} ids");
        assert_eq!((cached(&found), cached(&alone)), (expected, 0), "{count} ids, {own} of them its own");
    }
    assert!(keeping.metric("prefix_cache_hits_total") > 0.0 && keeping.metric("kv_cache_kept_bytes") > 0.0);
    assert_eq!((fresh.metric("prefix_cache_hits_total"), fresh.metric("kv_cache_kept_bytes")), (0.0, 0.0));
}

fn serve_options(kept_prompts: Option<u64>) -> secateur::serve::Options {
    secateur::serve::Options { kept_prompts, ..options() }
}

/// The time until the first token shows whether a prompt was known. So the prompts of one key must not speed up those
/// of another.
#[test]
fn keys_do_not_share() {
    let mut options = options();
    options.keys = vec!["one".into(), "two".into()];
    let server = Server::start(options);
    let ask = |key: &str| {
        let headers = format!("content-type: application/json\r\nauthorization: Bearer {key}\r\n");
        cached(&server.request("POST", "/v1/completions", &headers, &body(400, 0).to_string()).json())
    };
    assert_eq!([ask("one"), ask("two"), ask("one"), ask("two")], [0, 0, 335, 335]);
}
