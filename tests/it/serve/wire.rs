//! The bytes on the wire: requests and responses in OpenAI's form.
use secateur::builtin;
use serde_json::{Value, json};

use super::client::{chat, events, texts};
use super::{Server, options};

#[test]
fn a_chat_is_answered_with_thinking_and_content_apart() {
    let server = Server::start(options());
    let body = server.chat(&chat(builtin::EXAMPLE, json!({"model": "built-in"})));
    assert_eq!(body["object"], "chat.completion");
    let choice = &body["choices"][0];
    let (thinking, content) = (&choice["message"]["reasoning_content"], &choice["message"]["content"]);
    let (thinking, content) = (thinking.as_str().expect("it thinks"), content.as_str().expect("it answers"));
    assert!(!thinking.is_empty() && !content.is_empty() && choice["finish_reason"] == "stop", "{body}");
    for tag in ["<think>", "</think>"] {
        assert!(!thinking.contains(tag) && !content.contains(tag), "{body}");
    }
    assert_eq!((thinking.trim(), content.trim_start()), (thinking, content), "no blank space at the border");
    let usage = &body["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap_or_else(|| panic!("{name}: {usage}"));
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    let reasoning = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("counted");
    assert!(reasoning > 0 && reasoning < count("completion_tokens"), "{usage}");
    assert!(usage["secateur"]["seed"].is_u64() && usage["secateur"]["peak_kv_bytes"].as_u64() > Some(0), "{usage}");
}

#[test]
fn a_stream_put_together_is_the_object() {
    let server = Server::start(options());
    for fields in [
        json!({}),
        json!({"max_tokens": 7}),
        json!({"temperature": 1.0, "seed": 5, "n": 3, "max_tokens": 40}),
        json!({"secateur": {"budget": "ratio:0.3", "probe_every": 20, "window": 8}}),
    ] {
        let body = chat(builtin::EXAMPLE, fields);
        let whole = server.chat(&body);
        let stream = server.streamed(&body);
        assert!(stream.status() == 200 && stream.head.contains("text/event-stream"), "{}", stream.head);
        let text = stream.rest();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(text.lines().all(|line| line.is_empty() || line.starts_with("data: ")), "only data: {text}");
        let (chunks, _) = events(&text);
        for (index, choice) in whole["choices"].as_array().expect("choices").iter().enumerate() {
            let (thinking, content, finish) = texts(&chunks, index);
            let message = &choice["message"];
            assert_eq!(message["reasoning_content"].as_str().unwrap_or(""), thinking, "{body}");
            assert_eq!(message["content"], content, "{body}");
            assert_eq!(choice["finish_reason"].as_str(), finish.as_deref(), "{body}");
        }
        let of_one = |name: &str| chunks.iter().all(|chunk| chunk[name] == chunks[0][name]);
        assert!(["id", "created", "model", "object", "system_fingerprint"].into_iter().all(of_one), "{text}");
        assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "usage comes only when it is asked for");
    }
}

/// Characters of several tokens arrive as a whole, in every piece of a stream. A character that the limit cuts is the
/// same in both forms.
#[test]
fn characters_of_several_tokens_come_whole() {
    let server = Server::start(options());
    let text = "\u{1F600} \u{6c34}\u{e4} \u{1F3F3}\u{FE0F}.";
    let mut complete = 0;
    for most in 1..=40 {
        let mut body = json!({"prompt": "<|assistant|><think></think>", "max_tokens": most, "temperature": 0});
        body["structured_outputs"] = json!({"choice": [text]});
        let reply = server.post("/v1/completions", &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        let whole = reply.json()["choices"][0]["text"].as_str().expect("text").to_string();
        body["stream"] = true.into();
        let stream = server.open("POST", "/v1/completions", "", &body.to_string()).rest();
        let (chunks, _) = events(&stream);
        let pieces: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
        assert_eq!(pieces, whole, "{most} tokens");
        let certain = whole.trim_end_matches('\u{fffd}');
        assert!(text.starts_with(certain) && !certain.contains('\u{fffd}'), "{most} tokens: {whole:?}");
        complete += usize::from(whole == text);
    }
    assert!(complete > 5 && complete < 35, "the text has some {} tokens", 40 - complete);
}

/// A text of no characters would end every answer at once.
#[test]
fn an_empty_stop_text_is_refused() {
    let server = Server::start(options());
    for stop in [json!(""), json!([""]), json!(["x", ""])] {
        let reply = server.post("/v1/chat/completions", &chat("a is 3. What is a?", json!({"stop": stop})));
        assert!(reply.refusal(400).contains("stop has an empty text"), "{reply:?}");
    }
}

/// A prompt that leaves room for one token gets one; one that leaves none is refused with both numbers.
#[test]
fn a_prompt_may_fill_the_context() {
    let server = Server::start(options());
    let context = server.get("/v1/models").json()["data"][0]["max_model_len"].as_u64().expect("a number");
    let complete = |ids: u64| {
        let prompt = vec![20; ids.try_into().expect("few")];
        server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 5, "ignore_eos": true}))
    };
    // The last token of a text is not forwarded.
    let fits = complete(context).json();
    assert_eq!(
        (&fits["choices"][0]["finish_reason"], &fits["usage"]["completion_tokens"]),
        (&json!("length"), &json!(1))
    );
    let refused = complete(context + 1);
    assert_eq!(refused.json()["error"]["param"], "prompt");
    let message = refused.refusal(400);
    let numbers = [context, context + 1].map(|number| message.contains(&number.to_string()));
    assert_eq!(numbers, [true, true], "{message}");
}

#[test]
fn usage_comes_last_and_only_when_it_is_asked_for() {
    let server = Server::start(options());
    let fields = json!({"stream_options": {"include_usage": true}, "max_tokens": 5});
    let text = server.streamed(&chat("a is 3. What is a?", fields)).rest();
    let (chunks, _) = events(&text);
    let (last, before) = chunks.split_last().expect("chunks");
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(5)), "{text}");
    assert!(before.iter().all(|chunk| chunk.get("usage").is_none_or(Value::is_null)), "{text}");
}

#[test]
fn the_limit_inside_the_thinking_ends_with_length() {
    let server = Server::start(options());
    let body = server.chat(&chat(builtin::EXAMPLE, json!({"max_completion_tokens": 12, "max_tokens": 500})));
    let choice = &body["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("length"), &json!("")), "{body}");
    assert_eq!(body["usage"]["completion_tokens"], 12, "the newer name counts");
    assert!(choice["message"]["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
}

#[test]
fn stops_end_the_answer_and_never_the_thinking() {
    let server = Server::start(options());
    let whole = server.chat(&chat(builtin::EXAMPLE, json!({})));
    let message = &whole["choices"][0]["message"];
    let (thinking, content) =
        (message["reasoning_content"].as_str().expect("text"), message["content"].as_str().expect("text"));
    // The texts have several tokens and occur in the middle of the answer. One of them occurs in the thinking as
    // well.
    let middle = content.find("answer").expect("the built-in model says so");
    for stop in ["answer is", "swer i", "is"] {
        let body = chat(builtin::EXAMPLE, json!({"stop": stop}));
        let stopped = server.chat(&body);
        let choice = &stopped["choices"][0];
        let expected = &content[..content.find(stop).expect("it occurs")];
        assert_eq!(choice["message"]["content"], expected, "{stop}");
        assert_eq!(
            (&choice["message"]["reasoning_content"], &choice["finish_reason"]),
            (&json!(thinking), &json!("stop"))
        );
        let chunks = server.streamed(&body).rest();
        assert_eq!(texts(&events(&chunks).0, 0).1, expected, "streamed: {stop}");
    }
    let included = json!({"stop": ["answer", "never"], "include_stop_str_in_output": true});
    let included = server.chat(&chat(builtin::EXAMPLE, included));
    assert_eq!(included["choices"][0]["message"]["content"], content[..middle + "answer".len()]);
}

#[test]
fn probabilities_come_with_the_tokens_of_the_answer() {
    let server = Server::start(options());
    let asked = json!({"logprobs": true, "top_logprobs": 3});
    let body = server.chat(&chat(builtin::EXAMPLE, asked.clone()));
    let entries = body["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    let mut text = Vec::new();
    for entry in &entries {
        let (top, logprob) =
            (entry["top_logprobs"].as_array().expect("a list"), entry["logprob"].as_f64().expect("a number"));
        assert_eq!(top.len(), 3);
        // Decoding is greedy, so the token is the most likely one, with exactly the same number.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        let sum: f64 = top.iter().map(|token| token["logprob"].as_f64().expect("a number").exp()).sum();
        assert!(logprob <= 0.0 && sum <= 1.0 + 1e-5, "{entry}");
        text.extend(entry["bytes"].as_array().expect("bytes").iter().map(|byte| byte.as_u64().expect("a byte") as u8));
    }
    let text = String::from_utf8(text).expect("whole characters");
    let content = body["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(text.contains(content), "{text:?} has {content:?}");
    let stream = server.streamed(&chat(builtin::EXAMPLE, asked)).rest();
    let chunks = events(&stream).0;
    let of = |chunk: &Value| chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default();
    assert_eq!(chunks.iter().flat_map(of).collect::<Vec<_>>(), entries, "streamed");
}

#[test]
fn the_probabilities_of_a_prompt_are_those_that_a_measurement_needs() {
    let server = Server::start(options());
    let ids = server.post("/tokenize", &json!({"content": builtin::EXAMPLE})).json()["tokens"].clone();
    let body = json!({"prompt": [ids], "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0});
    let reply = server.post("/v1/completions", &body).json();
    let logprobs = &reply["choices"][0]["logprobs"];
    let count = ids.as_array().expect("ids").len() + 1;
    for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[column].as_array().map(Vec::len), Some(count), "{column}: {reply}");
    }
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    for index in 1..count {
        let (chosen, top) =
            (&logprobs["token_logprobs"][index], logprobs["top_logprobs"][index].as_object().expect("a map"));
        let best = top.values().next().expect("one").as_f64().expect("a number");
        assert!(chosen.as_f64().expect("a number") <= best, "{index}: {reply}");
    }
    // The last one is generated greedily.
    let last = logprobs["top_logprobs"][count - 1].as_object().expect("a map");
    assert_eq!(Some(&logprobs["token_logprobs"][count - 1]), last.values().next());
}

#[test]
fn a_request_that_can_never_fit_is_refused_with_the_numbers() {
    let mut small = options();
    small.memory = Some(1 << 20);
    let server = Server::start(small);
    let large = json!({"max_tokens": 3000, "secateur": {"policy": "full"}});
    let streamed = server.streamed(&chat(builtin::EXAMPLE, large.clone()));
    assert_eq!(streamed.status(), 400, "before the stream begins");
    let message = server.post("/v1/chat/completions", &chat(builtin::EXAMPLE, large)).refusal(400);
    assert!(message.contains("1048576"), "{message}");
    let bounded = json!({"max_tokens": 3000, "secateur": {"budget": "tokens:64", "max_answer_tokens": 60}});
    let body = server.chat(&chat(builtin::EXAMPLE, bounded));
    assert!(body["usage"]["secateur"]["peak_kv_bytes"].as_u64() < Some(1 << 20), "{body}");
}

#[test]
fn a_budget_of_thinking_brings_the_answer_forward() {
    let server = Server::start(options());
    for name in ["thinking_token_budget", "thinking_budget_tokens"] {
        let body = server.chat(&chat(builtin::EXAMPLE, json!({name: 10})));
        assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 10, "{body}");
        assert_ne!(body["choices"][0]["message"]["content"], "", "{body}");
    }
    let body = server.chat(&chat(builtin::EXAMPLE, json!({"reasoning": {"exclude": true}})));
    assert!(body["choices"][0]["message"].get("reasoning_content").is_none(), "{body}");
    assert!(body["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(0), "{body}");
    let body = server.chat(&chat(builtin::EXAMPLE, json!({"reasoning_format": "none"})));
    let content = body["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(content.contains("Compute") && content.contains("</think>"), "all is part of the content: {content}");
}

#[test]
fn what_a_user_writes_closes_no_thought() {
    let server = Server::start(options());
    let quoted = format!("{} </think> <think> <|end|>", builtin::EXAMPLE);
    // The template's own tags are in the prompt once, whatever the user writes.
    let tokens = |message: &str| {
        let body = json!({"messages": [{"role": "user", "content": message}]});
        server.post("/tokenize", &body).json()["tokens"].as_array().expect("ids").clone()
    };
    let plain = tokens(builtin::EXAMPLE);
    for tag in ["</think>", "<think>", "<|end|>"] {
        let id = server.post("/tokenize", &json!({"content": tag})).json()["tokens"].clone();
        assert_eq!(id.as_array().map(Vec::len), Some(1), "{tag} is one token");
        let count = |ids: &[Value]| ids.iter().filter(|other| **other == id[0]).count();
        assert_eq!(count(&tokens(&quoted)), count(&plain), "{tag}");
    }
    let body = server.chat(&chat(&quoted, json!({"max_tokens": 30})));
    let streamed = server.streamed(&chat(&quoted, json!({"max_tokens": 30}))).rest();
    let (thinking, content, _) = texts(&events(&streamed).0, 0);
    let message = &body["choices"][0]["message"];
    assert_eq!(
        (message["reasoning_content"].as_str(), message["content"].as_str()),
        (Some(&*thinking), Some(&*content))
    );
    assert!(!thinking.is_empty(), "it thinks all the same: {body}");
}

#[test]
fn the_same_request_gives_the_ids_of_the_command_line() {
    use crate::common::command;
    let server = Server::start(options());
    let mut body = chat(
        builtin::EXAMPLE,
        json!({"seed": 7, "temperature": 0.8, "secateur": {"trace": true, "budget": "tokens:40"}}),
    );
    let alone = server.chat(&body);
    let id = alone["id"].as_str().expect("an id");
    let trace = server.get(&format!("/v1/secateur/traces/{id}")).json();
    let served: Vec<&Value> = trace["tokens"].as_array().expect("tokens").iter().map(|token| &token["id"]).collect();
    let args = [
        "run",
        "--json",
        "--device",
        "cpu",
        "--seed",
        "7",
        "--temperature",
        "0.8",
        "--budget",
        "tokens:40",
        builtin::EXAMPLE,
    ];
    let run = command::json(&command::run(&args));
    let run: Vec<&Value> = run["ids"].as_array().expect("ids").iter().collect();
    assert_eq!(served, run);
    // The same request among others.
    body["n"] = 2.into();
    let others = std::thread::scope(|scope| {
        let other =
            scope.spawn(|| server.chat(&chat(builtin::EXAMPLE, json!({"seed": 3, "temperature": 1.0, "n": 2}))));
        let among = server.chat(&body);
        other.join().expect("no panic");
        among
    });
    assert_eq!(others["choices"][0]["message"], alone["choices"][0]["message"]);
}

/// Seven requests with different policies and budgets run beside each other and beside a long one. Each has the ids
/// that it has alone on the command line.
#[test]
fn eight_side_by_side_have_the_ids_of_the_command_line() {
    use crate::common::command;
    let mut options = options();
    options.places = 8;
    let server = Server::start(options);
    let cases: Vec<(usize, &str, &str)> =
        ["think-clearly", "random", "h2o", "streaming-llm", "snapkv", "r-kv", "think-token"]
            .into_iter()
            .zip(["tokens:40", "ratio:0.5"].into_iter().cycle())
            .enumerate()
            .map(|(seed, (policy, budget))| (seed, policy, budget))
            .collect();
    let ask = |(seed, policy, budget): &(usize, &str, &str)| {
        let body = json!({"trace": true, "policy": policy, "budget": budget});
        let body = chat(
            builtin::EXAMPLE,
            json!({"seed": seed, "temperature": 0.7, "ignore_eos": true, "max_tokens": 300, "secateur": body}),
        );
        let reply = server.chat(&body);
        let trace = server.get(&format!("/v1/secateur/traces/{}", reply["id"].as_str().expect("an id"))).json();
        trace["tokens"].as_array().expect("tokens").iter().map(|token| token["id"].clone()).collect::<Vec<Value>>()
    };
    // This request runs all the time, so none of the others is ever alone.
    let holding = json!({"prompt": builtin::EXAMPLE, "ignore_eos": true, "max_tokens": 1900, "stream": true});
    let holding = server.open("POST", "/v1/completions", "", &holding.to_string());
    let served: Vec<Vec<Value>> = std::thread::scope(|scope| {
        let threads: Vec<_> = cases.iter().map(|case| scope.spawn(|| ask(case))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    drop(holding);
    for ((seed, policy, budget), served) in cases.iter().zip(&served) {
        let seed = seed.to_string();
        let args = ["run", "--json", "--device", "cpu", "--seed", &seed, "--temperature", "0.7", "--policy", policy];
        let more = ["--budget", budget, "--ignore-eos", "--max-new-tokens", "300", builtin::EXAMPLE];
        let run = command::json(&command::run(&[&args[..], &more].concat()));
        assert_eq!(&run["ids"], &json!(served), "{policy} {budget}");
    }
}

#[test]
fn a_trace_and_its_report_are_kept_for_who_asked() {
    let mut options = options();
    options.keys = vec!["first".into(), "second".into()];
    let server = Server::start(options);
    let body = chat(builtin::EXAMPLE, json!({"secateur": {"trace": true}, "max_tokens": 60})).to_string();
    let reply = server.request("POST", "/v1/chat/completions", "authorization: Bearer first\r\n", &body);
    let id = reply.json()["id"].as_str().expect("an id").to_string();
    let path = format!("/v1/secateur/traces/{id}");
    let get = |path: &str, key: &str| server.get_with(path, Some(&format!("Bearer {key}")));
    let trace = get(&path, "first");
    assert_eq!((trace.status, &trace.json()["totals"]["generated_tokens"]), (200, &json!(60)));
    let report = get(&format!("{path}/report"), "first");
    assert!(
        report.status == 200 && report.body.contains("<html") && report.head.contains("sandbox"),
        "{}",
        report.head
    );
    assert_eq!(get(&path, "second").status, 404, "another client's trace");
    assert_eq!(server.request("DELETE", &path, "x-api-key: first\r\n", "").status, 204);
    assert_eq!(get(&path, "first").status, 404);
}

#[test]
fn probes_are_sent_to_clients_that_ask() {
    let server = Server::start(options());
    let pruned =
        |events: &str| json!({"secateur": {"budget": "tokens:24", "probe_every": 20, "window": 8, "events": events}});
    let text = server.streamed(&chat(builtin::EXAMPLE, pruned("comments"))).rest();
    let (chunks, comments) = events(&text);
    let probes: Vec<Value> = comments
        .iter()
        .map(|line| serde_json::from_str(line.strip_prefix("secateur ").expect("ours")).expect("JSON"))
        .collect();
    assert!(probes.iter().any(|probe| probe["probe"]["evicted"].as_u64() > Some(0)), "{comments:?}");
    assert!(chunks.iter().all(|chunk| chunk["choices"] != json!([])), "ordinary clients see nothing of them");
    let text = server.streamed(&chat(builtin::EXAMPLE, pruned("chunks"))).rest();
    let (chunks, comments) = events(&text);
    assert_eq!(comments, [""; 0]);
    assert_eq!(chunks.iter().filter(|chunk| chunk.get("secateur").is_some()).count(), probes.len());
}

/// The thinking is the same as without a format, the answer keeps to the format, and a stream has the same texts. All
/// the fields in which clients name a format lead to the same answer.
#[test]
fn an_answer_keeps_to_the_format_that_is_asked_for() {
    let server = Server::start(options());
    let plain = server.chat(&chat(builtin::EXAMPLE, json!({})));
    let schema = json!({
        "type": "object",
        "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 9}, "sure": {"type": "boolean"}},
        "required": ["value", "sure"],
        "additionalProperties": false,
    });
    let named = json!({"type": "json_schema", "json_schema": {"name": "value", "strict": true, "schema": schema}});
    let mut answers = Vec::new();
    for fields in [
        json!({"response_format": named}),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
        json!({"json_schema": schema}),
        json!({"guided_json": schema}),
        json!({"structured_outputs": {"json": schema}}),
    ] {
        let body = chat(builtin::EXAMPLE, fields);
        let whole = server.chat(&body);
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["reasoning_content"], plain["choices"][0]["message"]["reasoning_content"]);
        assert_eq!(choice["finish_reason"], "stop");
        let content = choice["message"]["content"].as_str().expect("a text").to_string();
        let value: Value = serde_json::from_str(&content).unwrap_or_else(|e| panic!("{e}: {content}"));
        assert!(value["value"].as_u64() <= Some(9) && value["sure"].is_boolean(), "{value}");
        let (chunks, _) = events(&server.streamed(&body).rest());
        let (_, streamed, finish) = texts(&chunks, 0);
        assert_eq!((&streamed, finish.as_deref()), (&content, Some("stop")));
        answers.push(content);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let several =
        json!({"guided_choice": ["yes", "no"], "n": 3, "temperature": 2, "seed": 1, "thinking_token_budget": 5});
    for choice in server.chat(&chat(builtin::EXAMPLE, several))["choices"].as_array().expect("choices") {
        assert!([json!("yes"), json!("no")].contains(&choice["message"]["content"]), "{choice}");
    }
    let completion = json!({"prompt": "<|assistant|><think></think>", "guided_regex": "[0-9]{5}", "temperature": 0});
    let reply = server.post("/v1/completions", &completion).json();
    let text = reply["choices"][0]["text"].as_str().expect("a text");
    assert!(text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()), "{reply}");
    // An answer that is cut off is no valid JSON, and the reason says so.
    let cut = json!({"response_format": named, "thinking_token_budget": 5, "secateur": {"max_answer_tokens": 3}});
    assert_eq!(server.chat(&chat(builtin::EXAMPLE, cut))["choices"][0]["finish_reason"], "length");
}

#[test]
fn what_would_change_the_answer_and_is_not_done_is_refused_by_name() {
    let server = Server::start(options());
    for (fields, name) in [
        (json!({"response_format": {"type": "yaml"}}), "response_format"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "none"}}}}),
            "at: response_format",
        ),
        (json!({"guided_json": {"type": "none"}}), "at: guided_json"),
        (json!({"guided_json": {"multipleOf": 123_456_789}}), "at: guided_json"),
        (json!({"guided_choice": vec!["a"; 1001]}), "at: guided_choice"),
        (json!({"ebnf": "root ::= x"}), "ebnf"),
        (json!({"response_format": {"type": "json_object"}, "ignore_eos": true}), "ignore_eos"),
        (json!({"grammar": "root ::= x"}), "grammar"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"logprobs": true, "top_logprobs": 21}), "at: top_logprobs"),
        (json!({"secateur": {"max_answer_tokens": 0}}), "at: secateur.max_answer_tokens"),
        (json!({"secateur": {"greedy": true}, "top_k": 5}), "greedy decoding excludes the settings of a random draw"),
        (json!({"secateur": {"greedy": true}, "top_k": 5}), "at: secateur.greedy"),
        (json!({"stop": 5}), "stop"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        // The built-in model's template shows no tools.
        (json!({"tools": [{"type": "function", "function": {"name": "f"}}]}), "has no tools"),
        (json!({"messages": [{"role": "tool", "tool_call_id": "x", "content": "a"}]}), "has no tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "always"}), "tool_choice"),
        (json!({"audio": {}}), "audio"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", ""]}), "stop"),
        (json!({"stop": vec!["a"; 65]}), "stop"),
        (json!({"n": 0}), "n"),
        (json!({"n": 65}), "n"),
        (json!({"chat_template_kwargs": {"thinking": true}}), "chat_template_kwargs"),
        (json!({"secateur": {"positions": "compact"}}), "positions"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 7}), "top_p"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "a"}]}), "messages[0]"),
        (
            json!({"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "a"}]}),
            "shows no system message",
        ),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0]"),
        (json!({"secateur": {"policy": "none"}}), "at: secateur.policy"),
        (json!({"budget": "tokens:40"}), "belongs into secateur"),
        (json!({"secateur": {"bugdet": "tokens:4"}}), "bugdet"),
        (json!({"secateur": {"budget": "tokens:x"}}), "budget"),
    ] {
        let reply = server.post("/v1/chat/completions", &chat("a is 3. What is a?", fields.clone()));
        let message = reply.refusal(400);
        assert!(message.contains(name), "{fields}: {message}");
    }
    for fields in [
        json!({"user": "me", "metadata": {"a": 1}, "store": true, "service_tier": "auto", "parallel_tool_calls": true}),
        json!({"unheard_of": 1, "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "logit_bias": {}}),
        json!({"stop": null, "max_tokens": 3, "seed": null, "n": null, "stream": false, "stream_options": null}),
        json!({"seed": -1, "top_p": 0, "reasoning_effort": "medium"}),
        json!({"messages": [{"role": "user", "content": "a is 3."}, {"role": "assistant", "content": "x", "reasoning": null, "reasoning_content": "y"}, {"role": "user", "content": "What is a?"}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a is 3. What is a?"}]}]}),
    ] {
        let mut fields = fields;
        fields["max_tokens"] = 2.into();
        server.chat(&chat("a is 3. What is a?", fields));
    }
}

#[test]
fn completions_take_text_and_ids() {
    let server = Server::start(options());
    let tokens = server.post("/tokenize", &json!({"content": "a is 3."})).json()["tokens"].clone();
    let text = server.post("/detokenize", &json!({"tokens": tokens})).json();
    assert_eq!(text["content"], "a is 3.");
    let complete = |prompt: Value| {
        let reply = server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 6, "temperature": 0}));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    };
    let of_text = complete("a is 3.".into());
    assert_eq!(of_text["object"], "text_completion");
    assert_eq!(of_text["choices"][0]["text"], complete(tokens.clone())["choices"][0]["text"]);
    let echoed = json!({"prompt": "a is 3.", "max_tokens": 6, "temperature": 0, "echo": true});
    let echoed = server.post("/v1/completions", &echoed).json();
    let (begun, continued) = (echoed["choices"][0]["text"].clone(), of_text["choices"][0]["text"].clone());
    assert_eq!(begun.as_str().map(str::to_string), continued.as_str().map(|text| format!("a is 3.{text}")));
    let several = complete(json!([tokens, tokens]));
    let once = of_text["usage"]["prompt_tokens"].as_u64().expect("counted");
    assert_eq!(several["usage"]["prompt_tokens"], 2 * once, "each prompt counts");
    assert_eq!(several["choices"][0]["text"], several["choices"][1]["text"]);
    assert_eq!(several["choices"][1]["index"], 1);
    server.post("/v1/completions", &json!({"prompt": []})).refusal(400);
    server.post("/v1/completions", &json!({"prompt": [99_999_999]})).refusal(400);
}

#[test]
fn addresses_say_what_they_are_for() {
    let server = Server::start(options());
    let models = server.get("/v1/models").json();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["object"]), (&json!("built-in"), &json!("model")));
    assert!(models["data"][0]["max_model_len"].as_u64() > Some(0), "{models}");
    assert_eq!(server.get("/v1/models/built-in").json(), models["data"][0]);
    server.get("/v1/models/another").refusal(404);
    server.get("/v2").refusal(404);
    server.get("/v1/chat/completions").refusal(405);
    let unknown = server.post("/v1/chat/completions", &chat("a", json!({"model": "another"})));
    assert!(unknown.refusal(404).contains("built-in"), "it says which model there is");
    for path in ["/props", "/slots", "/tokenizer_info"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let document = server.get("/openapi.json").json();
    for path in ["/v1/chat/completions", "/v1/models", "/health", "/v1/secateur/traces/{id}"] {
        assert!(document["paths"].get(path).is_some(), "{path}");
    }
    assert!(document["components"]["schemas"]["ChatBody"].is_object(), "{document}");
    let counted = server.post("/v1/chat/completions/input_tokens", &chat(builtin::EXAMPLE, json!({}))).json();
    let used = server.chat(&chat(builtin::EXAMPLE, json!({"max_tokens": 1})));
    assert_eq!(counted["input_tokens"], used["usage"]["prompt_tokens"]);
}
