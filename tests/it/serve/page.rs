//! The requests of the page to the server: the events of a run, an early end, the settings of a request, reports, and
//! the page's own files.
use secateur::serve::page;
use secateur::trace::Trace;
use secateur::{Request, builtin};
use serde_json::{Value, json};

use super::client::{chat, events, texts};
use super::{Server, options};

/// The fields of secateur's own for a run that is pruned, with everything that the page shows.
fn watched() -> Value {
    json!({"secateur": {"events": "run", "attention": "layers", "budget": "ratio:0.5"}})
}

/// The events of a run in chunks of a stream.
fn run_events(chunks: &[Value]) -> Vec<Value> {
    chunks.iter().flat_map(|chunk| chunk["secateur"]["events"].as_array().cloned().unwrap_or_default()).collect()
}

fn kinds<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

#[test]
fn the_events_of_a_run_are_its_trace() {
    let server = Server::start(options());
    let stream = server.streamed(&chat(builtin::EXAMPLE, watched())).rest();
    let (chunks, _) = events(&stream);
    let all = run_events(&chunks);
    let order: Vec<&str> = all.iter().map(|event| event["type"].as_str().expect("a type")).collect();
    assert_eq!((order[0], &order[order.len() - 2..]), ("start", &["done", "trace"][..]));
    let trace = Trace::from_json(all.last().expect("a trace")["json"].as_str().expect("text")).expect("a trace");
    assert_eq!(all[0]["prompt_tokens"], trace.prompt_ids.len());

    let tokens = kinds(&all, "token");
    let ids: Vec<u64> = tokens.iter().map(|token| token["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids, trace.tokens.iter().map(|token| u64::from(token.id)).collect::<Vec<_>>());
    let roles: Vec<&Value> = tokens.iter().map(|token| &token["role"]).collect();
    assert_eq!(json!(roles), json!(trace.tokens.iter().map(|token| token.role).collect::<Vec<_>>()));

    // The texts in the ranges of a probe are those of the tokens that are evicted according to the trace.
    let text: String = tokens.iter().map(|token| token["text"].as_str().expect("text")).collect();
    let probes = kinds(&all, "probe");
    assert!(!probes.is_empty() && probes.len() == trace.probes.len(), "{} probes", probes.len());
    for (event, probe) in probes.iter().zip(&trace.probes) {
        let first = trace.prompt_ids.len();
        let cut: String = event["evicted"].as_array().expect("ranges").iter().fold(String::new(), |cut, range| {
            let [start, end] = [0, 1].map(|i| range[i].as_u64().expect("a byte") as usize);
            cut + &text[start..end]
        });
        let evicted = probe.evicted.iter().map(|position| trace.tokens[*position as usize - first].text.as_str());
        assert_eq!(cut, evicted.collect::<String>());
        assert_eq!(
            (&event["cached_before"], &event["cached_after"], event["steps"].as_array().map(Vec::len)),
            (&json!(probe.cached_before), &json!(probe.cached_after), Some(probe.steps.len()))
        );
        assert!(event["map"]["layers"]["cells"].is_string(), "{event}");
    }
    let done = kinds(&all, "done")[0];
    let (_, content, _) = texts(&chunks, 0);
    assert_eq!(done["message"]["content"], content.trim());
    assert_eq!(done["totals"], json!(trace.totals));
}

#[test]
fn clients_that_do_not_ask_for_events_see_none_and_others_see_the_same_text() {
    let server = Server::start(options());
    let plain = json!({"secateur": {"budget": "ratio:0.5"}});
    let of = |fields: Value| {
        let stream = server.streamed(&chat(builtin::EXAMPLE, fields)).rest();
        events(&stream).0
    };
    let (without, with) = (of(plain.clone()), of(watched()));
    assert!(without.iter().all(|chunk| chunk.get("secateur").is_none()), "{without:?}");
    assert_eq!(texts(&without, 0), texts(&with, 0));
    // A chunk with events has no choices. Clients of OpenAI's interface know this form from the chunk with the usage.
    let own: Vec<&Value> = with.iter().filter(|chunk| chunk.get("secateur").is_some()).collect();
    assert!(own.iter().all(|chunk| chunk["choices"] == json!([]) && chunk["id"] == with[0]["id"]), "{own:?}");
    // An answer as one object has no place for events.
    let whole = server.chat(&chat(builtin::EXAMPLE, watched()));
    assert!(whole.get("secateur").is_none(), "{whole}");
    // With several answers, each has its own events.
    let mut two = watched();
    two["n"] = 2.into();
    let chunks = of(two);
    for choice in 0..2 {
        let own: Vec<Value> = chunks.iter().filter(|chunk| chunk["secateur"]["choice"] == choice).cloned().collect();
        assert_eq!(kinds(&run_events(&own), "trace").len(), 1, "choice {choice}");
    }
}

/// Text that was held back for a stop text that did not follow is part of the events too, and no text is repeated.
#[test]
fn the_texts_of_the_events_are_the_text() {
    let server = Server::start(options());
    let text = |stop: &str| {
        let mut fields = watched();
        fields["stop"] = stop.into();
        let all = run_events(&events(&server.streamed(&chat(builtin::EXAMPLE, fields)).rest()).0);
        let text: String = kinds(&all, "token").iter().map(|token| token["text"].as_str().expect("text")).collect();
        text + kinds(&all, "done")[0]["tail"].as_str().expect("a tail")
    };
    let (whole, held) = (text("no such text"), text("The answer is never"));
    assert!(whole.contains("The answer is") && held == whole, "{held:?}");
    let stopped = text(" answer is");
    assert!(!stopped.contains(" answer is") && whole.starts_with(&stopped), "{stopped:?}");
}

#[test]
fn a_run_that_is_ended_early_says_how_it_ended() {
    let server = Server::start(options());
    let endless = json!({"prompt": builtin::EXAMPLE, "max_tokens": 4000, "ignore_eos": true, "stream": true,
        "secateur": {"events": "run", "policy": "full"}});
    let mut stream = server.open("POST", "/v1/completions", "", &endless.to_string());
    // The first chunk has the id, before any token was computed.
    let mut body = stream.chunk().expect("a chunk");
    let id = events(&body).0[0]["id"].as_str().expect("an id").to_string();
    let delete = |id: &str| server.request("DELETE", &format!("/v1/secateur/runs/{id}"), "", "");
    delete("another").refusal(404);
    while !body.contains(r#""type":"token""#) {
        body += &stream.chunk().expect("a token");
    }
    assert_eq!(delete(&id).status, 204);
    body += &stream.rest();
    let (chunks, _) = events(&body);
    let all = run_events(&chunks);
    let done = kinds(&all, "done")[0];
    assert_eq!(done["stop_reason"], "cancelled");
    let trace = Trace::from_json(all.last().expect("events")["json"].as_str().expect("text")).expect("a trace");
    assert!(trace.tokens.len() < 4000 && trace.tokens.len() == kinds(&all, "token").len());
    assert_eq!(chunks.last().expect("chunks")["error"]["code"], "cancelled", "the answer is not whole");
    server.wait_for("the request is forgotten", |_| delete(&id).status == 404);
}

#[test]
fn only_who_made_a_request_ends_it() {
    let mut keyed = options();
    keyed.keys = vec!["a".into(), "b".into()];
    let server = Server::start(keyed);
    let endless = json!({"prompt": builtin::EXAMPLE, "max_tokens": 4000, "ignore_eos": true, "stream": true,
        "secateur": {"events": "run", "policy": "full"}});
    let key = |key: &str| format!("authorization: Bearer {key}\r\n");
    let mut stream = server.open("POST", "/v1/completions", &key("a"), &endless.to_string());
    let id = events(&stream.chunk().expect("a chunk")).0[0]["id"].as_str().expect("an id").to_string();
    let path = format!("/v1/secateur/runs/{id}");
    server.request("DELETE", &path, &key("b"), "").refusal(404);
    assert_eq!(server.request("DELETE", &path, &key("a"), "").status, 204);
}

#[test]
fn a_request_is_resolved_as_it_will_run() {
    let mut own = options();
    own.defaults = Request { window: Some(20), ..Request::default() };
    own.most_new_tokens = 300;
    let server = Server::start(own);
    let fields = json!({"seed": 7, "secateur": {"budget": "tokens:100", "events": "run"}});
    let body = chat(builtin::EXAMPLE, fields);
    let resolved = server.post("/v1/secateur/resolve", &body).json();
    let settings = &resolved["settings"];
    assert_eq!(
        [&settings["seed"], &settings["budget"], &settings["window"], &settings["max_new_tokens"]],
        [&json!(7), &json!("tokens:100"), &json!(20), &json!(300)]
    );
    let stream = server.streamed(&body).rest();
    let all = run_events(&events(&stream).0);
    let trace = Trace::from_json(all.last().expect("events")["json"].as_str().expect("text")).expect("a trace");
    assert_eq!(&json!(trace.settings), settings);
    // The page shows in its empty fields the settings of a request that leaves everything open.
    let info = server.get("/props").json()["secateur"].clone();
    let open = server.post("/v1/secateur/resolve", &json!({"prompt": [0], "max_tokens": 300})).json();
    let without_seed = |settings: &Value| {
        let mut settings = settings.clone();
        settings["seed"] = Value::Null;
        settings
    };
    assert_eq!(without_seed(&info["settings"]), without_seed(&open["settings"]));
    assert_eq!((&info["model"], &info["suggested"]["prompt"]), (&json!("built-in"), &json!(builtin::EXAMPLE)));
    assert!(info["slot_bytes"].as_u64() > Some(0) && info["policies"].as_array().is_some_and(|all| all.len() > 1));
    server.post("/v1/secateur/resolve", &json!({"prompt": ["a", "b"]})).refusal(400);
    server.post("/v1/secateur/resolve", &json!({})).refusal(400);
    let budget = json!({"messages": [{"role": "user", "content": "x"}], "secateur": {"budget": "much"}});
    assert!(server.post("/v1/secateur/resolve", &budget).refusal(400).contains("much"));
}

#[test]
fn traces_that_the_client_has_become_a_report() {
    let server = Server::start(options());
    let stream = server.streamed(&chat(builtin::EXAMPLE, watched())).rest();
    let all = run_events(&events(&stream).0);
    let trace = all.last().expect("events")["json"].clone();
    let two = json!({"traces": [["<first>", trace], ["second", trace]]});
    let reply = server.post("/v1/secateur/report", &two);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.head.contains("sandbox allow-scripts") && reply.body.starts_with("<!doctype html>"));
    assert!(!reply.body.contains("<first>"), "a name is text");
    server.post("/v1/secateur/report", &json!({"traces": [["x", "no trace"]]})).refusal(400);
    server.post("/v1/secateur/report", &json!({"traces": []})).refusal(400);
}

#[test]
fn the_page_needs_no_key_and_the_interface_does() {
    let mut keyed = options();
    keyed.keys = vec!["secret".into()];
    let server = Server::start(keyed);
    let page = server.get("/");
    assert_eq!(page.status, 200, "{page:?}");
    server.get("/props").refusal(401);
    server.request("POST", "/", "", "{}").refusal(401);
    server.get("/nothing").refusal(401);
    match page::files() {
        Some(files) => {
            assert!(page.body.contains(r#"<meta name="secateur-engine" content="server">"#), "{page:?}");
            assert!(page.head.contains("frame-ancestors 'none'"), "{page:?}");
            assert_eq!(
                server.get("/remote.js").body.as_bytes(),
                files.iter().find(|f| f.0 == "remote.js").expect("it").1
            );
            server.get("/_headers").refusal(401);
        }
        None => {
            assert!(page.body.contains("/openapi.json") && page.body.contains("`./x web` builds"), "{page:?}");
            server.get("/remote.js").refusal(401);
        }
    }
}

#[test]
fn the_page_has_the_names_of_the_server() {
    let server = Server::start(options());
    assert_eq!(server.get("/").status, 200);
    let strange = |path: &str| {
        use std::io::{Read as _, Write as _};
        let mut stream = server.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").expect("it is sent");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        reply
    };
    assert!(strange("/").starts_with("HTTP/1.1 403"), "{}", strange("/"));
    server.request("DELETE", "/", "", "").refusal(404);
    server.get("/nothing").refusal(404);
    let document = server.get("/openapi.json").json();
    for path in ["/v1/secateur/resolve", "/v1/secateur/report", "/v1/secateur/runs/{id}"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    assert!(document["components"]["schemas"]["Events"]["enum"].to_string().contains("run"), "{document}");
}
