//! `/v1/responses`: the same chats in the form of OpenAI's newer interface.
use std::time::Duration;

use secateur::builtin;
use serde_json::{Value, json};

use super::client::{Stream, chat};
use super::tools::{self, expected};
use super::{Server, options};

/// A request with a text as its input and further fields.
fn asked(input: &str, fields: Value) -> Value {
    let mut body = json!({"input": input, "temperature": 0, "seed": 7});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

impl Server {
    /// A response as one object.
    #[track_caller]
    fn responded(&self, body: &Value) -> Value {
        let reply = self.post("/v1/responses", body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// The same response as a stream.
    fn responding(&self, body: &Value) -> Stream {
        let mut body = body.clone();
        body["stream"] = true.into();
        self.open("POST", "/v1/responses", "", &body.to_string())
    }

    /// The number of prompt tokens of a body.
    #[track_caller]
    fn counted(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(&format!("{path}/input_tokens"), body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["input_tokens"].clone()
    }
}

/// The events of a stream and its comments. The events must be numbered without a gap, and their names must be their
/// types.
fn events(stream: &str) -> (Vec<Value>, Vec<&str>) {
    let (mut events, mut comments) = (Vec::new(), Vec::new());
    for block in stream.split_terminator("\n\n") {
        if let Some(comment) = block.strip_prefix(": ") {
            comments.push(comment);
            continue;
        }
        let (name, data) = block.split_once("\ndata: ").unwrap_or_else(|| panic!("no event: {block:?}"));
        let event: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
        assert_eq!(name.strip_prefix("event: "), event["type"].as_str(), "{block}");
        assert_eq!(event["sequence_number"], events.len(), "{block}");
        events.push(event);
    }
    (events, comments)
}

/// Joins the items of a stream as clients do, from the added items and the deltas. The events at the end of an item
/// must have the same content.
fn assembled(events: &[Value]) -> Vec<Value> {
    let mut items: Vec<Value> = Vec::new();
    for event in events {
        let kind = event["type"].as_str().expect("a type");
        let Some(index) = event["output_index"].as_u64().map(|index| index as usize) else { continue };
        if kind == "response.output_item.added" {
            assert_eq!((index, &event["item"]["status"]), (items.len(), &json!("in_progress")), "{event}");
            assert!(items.iter().all(|item| item["id"] != event["item"]["id"]), "{event}");
            items.push(event["item"].clone());
            continue;
        }
        assert_eq!(index, items.len() - 1, "only the latest item is open: {event}");
        let item = &mut items[index];
        if kind == "response.output_item.done" {
            let status = event["item"]["status"].clone();
            item["status"] = status;
            assert_eq!(*item, event["item"], "what was added and what is done");
            continue;
        }
        assert_eq!(event["item_id"], item["id"], "{event}");
        match kind {
            "response.content_part.added" => {
                assert_eq!((&item["content"], &event["content_index"]), (&json!([]), &json!(0)), "{event}");
                item["content"] = json!([event["part"]]);
            }
            "response.content_part.done" => assert_eq!(event["part"], item["content"][0]),
            "response.reasoning_text.delta" | "response.output_text.delta" => {
                let part = &mut item["content"][0];
                let text =
                    format!("{}{}", part["text"].as_str().expect("text"), event["delta"].as_str().expect("text"));
                part["text"] = text.into();
                if let Some(more) = event["logprobs"].as_array() {
                    part["logprobs"].as_array_mut().expect("a list").extend(more.clone());
                }
            }
            "response.reasoning_text.done" => assert_eq!(event["text"], item["content"][0]["text"]),
            "response.output_text.done" => {
                assert_eq!(event["text"], item["content"][0]["text"]);
                assert_eq!(event["logprobs"], item["content"][0]["logprobs"]);
            }
            "response.function_call_arguments.delta" => {
                let (before, more) =
                    (item["arguments"].as_str().expect("text"), event["delta"].as_str().expect("text"));
                item["arguments"] = format!("{before}{more}").into();
            }
            "response.function_call_arguments.done" => {
                assert_eq!((&event["arguments"], &event["name"]), (&item["arguments"], &item["name"]));
            }
            other => panic!("{other} is not known: {event}"),
        }
    }
    items
}

/// Items without their random ids.
fn without_ids(items: &Value) -> Value {
    let mut items = items.clone();
    for item in items.as_array_mut().expect("items") {
        for (field, prefix) in [("id", ""), ("call_id", "call_")] {
            if let Some(id) = item.as_object_mut().expect("an item").remove(field) {
                assert!(id.as_str().is_some_and(|id| id.starts_with(prefix) && id.len() > 8), "{id}");
            }
        }
    }
    items
}

/// The reasoning and the text of a response.
fn texts(response: &Value) -> (String, String) {
    let of = |kind: &str| {
        let items = response["output"].as_array().expect("items").iter().filter(|item| item["type"] == kind);
        items.map(|item| item["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{item}"))).collect::<String>()
    };
    (of("reasoning"), of("message"))
}

/// The names and the arguments of the calls of a response.
fn calls(response: &Value) -> Vec<(String, String)> {
    let items = response["output"].as_array().expect("items").iter().filter(|item| item["type"] == "function_call");
    let text = |value: &Value| value.as_str().expect("text").to_string();
    items.map(|item| (text(&item["name"]), text(&item["arguments"]))).collect()
}

#[test]
fn a_response_says_what_a_chat_says() {
    let server = Server::start(options());
    for (here, there) in [
        (json!({}), json!({})),
        (json!({"max_output_tokens": 60}), json!({"max_tokens": 60})),
        (json!({"temperature": 1.0, "seed": 5, "top_p": 0.9}), json!({"temperature": 1.0, "seed": 5, "top_p": 0.9})),
        (json!({"stop": "answer"}), json!({"stop": "answer"})),
        (json!({"reasoning": {"max_tokens": 10}}), json!({"thinking_token_budget": 10})),
        (
            json!({"secateur": {"budget": "tokens:24", "probe_every": 20, "window": 8}}),
            json!({"secateur": {"budget": "tokens:24", "probe_every": 20, "window": 8}}),
        ),
    ] {
        let response = server.responded(&asked(builtin::EXAMPLE, here.clone()));
        let mut there = there;
        there["seed"] = here.get("seed").cloned().unwrap_or_else(|| 7.into());
        let chat = server.chat(&chat(builtin::EXAMPLE, there));
        let (choice, message) = (&chat["choices"][0], &chat["choices"][0]["message"]);
        let of_chat =
            (message["reasoning_content"].as_str().expect("it thinks"), message["content"].as_str().expect("text"));
        let (thinking, text) = texts(&response);
        assert_eq!((thinking.as_str(), text.as_str()), of_chat, "{here}");
        let status = if choice["finish_reason"] == "length" { "incomplete" } else { "completed" };
        assert_eq!(response["status"], status, "{here}");
        let (usage, of_chat) = (&response["usage"], &chat["usage"]);
        for (name, other) in [
            ("input_tokens", "prompt_tokens"),
            ("output_tokens", "completion_tokens"),
            ("total_tokens", "total_tokens"),
        ] {
            assert_eq!(usage[name], of_chat[other], "{here}: {name}");
        }
        assert_eq!(usage["output_tokens_details"], of_chat["completion_tokens_details"]);
        assert!(usage["input_tokens_details"]["cached_tokens"].is_u64(), "{usage}");
        for name in ["seed", "peak_tokens", "evicted_tokens", "probes"] {
            assert_eq!(usage["secateur"][name], of_chat["secateur"][name], "{here}: {name}");
        }
    }
}

#[test]
fn a_response_repeats_what_was_asked() {
    let server = tools::server();
    let model = server.get("/v1/models").json()["data"][0]["id"].clone();
    let fields = json!({
        "model": model, "instructions": "Count.", "metadata": {"a": "b"}, "user": "me", "max_output_tokens": 1,
        "temperature": 0.7, "top_p": 0.9, "store": true, "reasoning": {"effort": "low", "summary": "auto"},
    });
    let response = server.responded(&asked("a is 3. What is a?", fields.clone()));
    for name in ["model", "instructions", "metadata", "user", "max_output_tokens", "temperature", "top_p"] {
        assert_eq!(response[name], fields[name], "{name}");
    }
    assert!(response["id"].as_str().is_some_and(|id| id.starts_with("resp_")), "{response}");
    assert!(response["created_at"].as_u64() > Some(1_700_000_000), "{response}");
    for (name, value) in [
        ("object", json!("response")),
        ("status", json!("incomplete")),
        ("store", json!(false)),
        ("background", json!(false)),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("error", Value::Null),
        ("reasoning", json!({"effort": "low", "summary": null})),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_logprobs", json!(0)),
        ("truncation", json!("disabled")),
    ] {
        assert_eq!(response.get(name), Some(&value), "{name}");
    }
}

#[test]
fn a_stream_put_together_is_the_response() {
    let server = Server::start(options());
    for fields in [
        json!({}),
        json!({"max_output_tokens": 7}),
        json!({"temperature": 1.0, "seed": 5, "max_output_tokens": 90}),
        json!({"secateur": {"budget": "ratio:0.3", "probe_every": 20, "window": 8}}),
        json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        json!({"reasoning": {"exclude": true}}),
    ] {
        let body = asked(builtin::EXAMPLE, fields);
        let whole = server.responded(&body);
        let stream = server.responding(&body);
        assert!(stream.status() == 200 && stream.head.contains("text/event-stream"), "{}", stream.head);
        let text = stream.rest();
        let (events, comments) = events(&text);
        assert_eq!(comments, [""; 0], "{text}");
        let (first, last) = (&events[0], events.last().expect("events"));
        assert_eq!((&first["type"], &events[1]["type"]), (&json!("response.created"), &json!("response.in_progress")));
        let begun = &first["response"];
        assert_eq!(
            (&begun["status"], &begun["output"], &begun["usage"]),
            (&json!("in_progress"), &json!([]), &Value::Null)
        );
        assert_eq!(last["type"], format!("response.{}", whole["status"].as_str().expect("text")), "{body}");
        assert_eq!(last["response"]["output"], Value::from(assembled(&events)), "{body}");
        assert_eq!(without_ids(&last["response"]["output"]), without_ids(&whole["output"]), "{body}");
        // Everything else is the same except times and the id, which is the same in all events.
        let mut ended = last["response"].clone();
        assert!(events.iter().filter_map(|event| event.get("response")).all(|other| other["id"] == ended["id"]));
        for name in ["id", "created_at", "completed_at", "output"] {
            ended[name] = whole[name].clone();
        }
        // The prompt of the second request was known, and the time of pruning varies.
        for (place, name) in [("input_tokens_details", "cached_tokens"), ("secateur", "prune_ms")] {
            ended["usage"][place][name] = whole["usage"][place][name].clone();
        }
        assert_eq!(ended, whole, "{body}");
    }
}

#[test]
fn a_limit_makes_a_response_incomplete() {
    let server = Server::start(options());
    let thinking = server.responded(&asked(builtin::EXAMPLE, json!({"max_output_tokens": 12})));
    assert_eq!(thinking["usage"]["output_tokens"], 12);
    let items = thinking["output"].as_array().expect("items");
    assert_eq!((items.len(), &items[0]["type"], &items[0]["status"]), (1, &json!("reasoning"), &json!("incomplete")));
    let whole = server.responded(&asked(builtin::EXAMPLE, json!({})));
    let most = whole["usage"]["output_tokens"].as_u64().expect("counted") - 2;
    let cut = server.responded(&asked(builtin::EXAMPLE, json!({"max_output_tokens": most})));
    let statuses: Vec<_> = cut["output"].as_array().expect("items").iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["completed", "incomplete"], "{cut}");
    for response in [thinking, cut] {
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(response["completed_at"], Value::Null);
    }
    assert_eq!((&whole["status"], &whole["incomplete_details"]), (&json!("completed"), &Value::Null));
    assert!(whole["completed_at"].as_u64() >= whole["created_at"].as_u64(), "{whole}");
}

#[test]
fn probabilities_are_those_of_a_chat() {
    let server = Server::start(options());
    let fields = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 3});
    let response = server.responded(&asked(builtin::EXAMPLE, fields));
    let chat = server.chat(&chat(builtin::EXAMPLE, json!({"logprobs": true, "top_logprobs": 3})));
    let message = response["output"].as_array().expect("items").last().expect("a message");
    assert_eq!(message["content"][0]["logprobs"], chat["choices"][0]["logprobs"]["content"]);
    assert!(message["content"][0]["logprobs"].as_array().is_some_and(|entries| !entries.is_empty()), "{response}");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let server = Server::start(options());
    let function = json!({"type": "function", "name": "f"});
    for (fields, name) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"conversation": {"id": "conv_1"}}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"context_management": [{"type": "compaction"}]}), "context_management"),
        (json!({"moderation": {"model": "m"}}), "moderation"),
        (json!({"tools": [{"type": "web_search"}], "tool_choice": "required"}), "tool_choice"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"metadata": {"a": [0]}}), "metadata"),
        (json!({"tools": [{"type": "function", "function": {"name": "f"}}]}), "tools[0].name"),
        (json!({"tools": [function, function]}), "two functions"),
        // The built-in model's template shows no tools.
        (json!({"tools": [function]}), "has no tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [function], "tool_choice": {"type": "function", "name": "g"}}), "tool_choice"),
        (json!({"tools": [function], "tool_choice": {"type": "web_search"}}), "tool_choice"),
        (json!({"tools": [function], "include": ["message.output_text.logprobs"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"include": ["message.output_text.logprobs"], "top_logprobs": 21}), "logprobs"),
        (json!({"n": 2}), "n"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format.schema"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": 3}}}), "text.format.schema"),
        (json!({"text": {"format": {"type": "yaml"}}}), "text.format"),
        (json!({"secateur": {"events": "run"}}), "secateur.events"),
        (json!({"secateur": {"events": "chunks"}}), "secateur.events"),
        (json!({"secateur": {"bugdet": "tokens:4"}}), "bugdet"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"metadata": 3}), "metadata: an object is expected"),
        (json!({"instructions": "Be brief."}), "shows no system message"),
        (json!({"input": []}), "input"),
        (json!({"input": 3}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}), "input[0]"),
        (json!({"input": [{"type": "item_reference", "id": "msg_1"}]}), "input[0]"),
    ] {
        let reply = server.post("/v1/responses", &asked("a is 3. What is a?", fields.clone()));
        let message = reply.refusal(400);
        assert!(message.contains(name), "{fields}: {message}");
    }
    server.post("/v1/responses", &json!({"model": "built-in"})).refusal(400);
    server.post("/v1/responses", &asked("a", json!({"model": "another"}))).refusal(404);
    server.get("/v1/responses").refusal(405);
    server.get("/v1/responses/resp_1").refusal(404);
    let long = server.post("/v1/responses", &asked(&"a is 3. ".repeat(9000), json!({})));
    long.refusal(400);
    let error = &long.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("input")));
    // Clients send these fields in any case.
    for fields in [
        json!({"store": false, "service_tier": "auto", "prompt_cache_key": "x", "unheard_of": 1, "truncation": "disabled"}),
        json!({"previous_response_id": null, "conversation": null, "background": false, "prompt": null, "tools": []}),
        json!({"include": ["reasoning.encrypted_content"], "text": {"format": {"type": "text"}, "verbosity": "low"}}),
        json!({"tool_choice": "auto", "parallel_tool_calls": false, "max_tool_calls": 3, "instructions": null}),
        json!({"stream_options": {"include_obfuscation": false}, "reasoning": {"effort": "high", "summary": "detailed"}}),
    ] {
        let mut fields = fields;
        fields["max_output_tokens"] = 2.into();
        server.responded(&asked("a is 3. What is a?", fields));
    }
}

#[test]
fn functions_are_called_and_their_results_answered() {
    let server = tools::server();
    let flat = |tool: &Value| {
        let mut flat = tool["function"].clone();
        flat["type"] = "function".into();
        flat
    };
    let flat: Value = tools::tools().as_array().expect("tools").iter().map(flat).collect();
    let body = |fields: Value| {
        let mut body = asked("How warm is it in Paris?", fields);
        if body.get("tools").is_none() {
            body["tools"] = flat.clone();
        }
        body
    };
    let response = server.responded(&body(json!({})));
    let kinds: Vec<_> = response["output"].as_array().expect("items").iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"], "{response}");
    assert_eq!((calls(&response), texts(&response).1.as_str()), (expected(2), "Let me look."));
    assert_eq!((&response["status"], &response["tools"][0]["strict"]), (&json!("completed"), &Value::Null));
    for (name, value) in [("name", "get_weather"), ("type", "function")] {
        assert_eq!(response["tools"][0][name], value);
    }
    let text = server.responding(&body(json!({}))).rest();
    let (streamed, _) = events(&text);
    let last = &streamed.last().expect("events")["response"];
    assert_eq!(last["output"], Value::from(assembled(&streamed)), "{text}");
    assert_eq!(without_ids(&last["output"]), without_ids(&response["output"]));
    assert_eq!(calls(&server.responded(&body(json!({"parallel_tool_calls": false})))), expected(1));
    let none = server.responded(&body(json!({"tool_choice": "none"})));
    assert_eq!((calls(&none).len(), texts(&none).1.as_str()), (0, "Hello there."));
    // After a limit inside the arguments, the part before it is there, and the call is marked as incomplete.
    let cut = server.responded(&body(json!({"max_output_tokens": 15})));
    let call = cut["output"].as_array().expect("items").last().expect("a call");
    assert_eq!((&cut["status"], &call["status"]), (&json!("incomplete"), &json!("incomplete")), "{cut}");
    assert_eq!(call["arguments"], "{\"city\": \"Paris\", \"days\": ");

    // The items are sent back unchanged, with the results of the calls.
    let mut input = vec![json!({"role": "user", "content": "How warm is it in Paris?"})];
    input.extend(response["output"].as_array().expect("items").clone());
    for (index, call) in response["output"].as_array().expect("items")[2..].iter().enumerate() {
        let output = [json!("21 °C"), json!([{"type": "input_text", "text": "noon"}])][index].clone();
        input.push(json!({"type": "function_call_output", "call_id": call["call_id"], "output": output}));
    }
    let followed = body(json!({"input": input}));
    let answer = server.responded(&followed);
    let said = "It is 21 °C in Paris {now}, not <tool> or so.";
    assert_eq!((calls(&answer).len(), texts(&answer).1.as_str()), (0, said));
    let (streamed, _) = events(&server.responding(&followed).rest());
    assert_eq!(texts(&streamed.last().expect("events")["response"]).1, said);
    assert_eq!(Value::from(assembled(&streamed)), streamed.last().expect("events")["response"]["output"]);
    // The model is shown the same text as in a chat.
    let called = |id: &Value, (name, arguments): &(String, String)| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let ids: Vec<&Value> =
        response["output"].as_array().expect("items")[2..].iter().map(|call| &call["call_id"]).collect();
    let expected = expected(2);
    let of_chat = json!({"tools": tools::tools(), "messages": [
        {"role": "user", "content": "How warm is it in Paris?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "reasoning_content": texts(&response).0,
            "tool_calls": [called(ids[0], &expected[0]), called(ids[1], &expected[1])],
        },
        {"role": "tool", "tool_call_id": ids[0], "content": "21 °C"},
        {"role": "tool", "tool_call_id": ids[1], "content": "noon"},
    ]});
    let tokens = server.counted("/v1/responses", &followed);
    assert_eq!(tokens, server.counted("/v1/chat/completions", &of_chat));
    assert_eq!(tokens, answer["usage"]["input_tokens"]);
}

#[test]
fn a_conversation_is_that_of_a_chat() {
    let server = tools::server();
    let parts = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
    let body = json!({"instructions": "Be brief.", "input": [
        {"role": "developer", "content": "And kind."},
        {"type": "message", "role": "user", "content": parts("input_text", "Hi")},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": parts("reasoning_text", "A greeting.")},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": parts("output_text", "Hello.")},
        {"role": "user", "content": "Bye"},
    ]});
    let chat = json!({"messages": [
        {"role": "system", "content": "Be brief.\n\nAnd kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
        {"role": "user", "content": "Bye"},
    ]});
    assert_eq!(server.counted("/v1/responses", &body), server.counted("/v1/chat/completions", &chat));
}

/// Tools of OpenAI's own servers, which agents list beside their functions, are left out.
#[test]
fn tools_that_are_not_functions_are_left_out() {
    let server = tools::server();
    let function = json!({"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}});
    let hosted =
        json!([{"type": "web_search", "external_web_access": false}, function, {"type": "custom", "name": "f"}]);
    let plain = server.responded(&asked("How warm is it in Paris?", json!({"tools": [function]})));
    let with_hosted = server.responded(&asked("How warm is it in Paris?", json!({"tools": hosted})));
    assert_eq!(calls(&plain), calls(&with_hosted));
    assert_eq!(plain["tools"], with_hosted["tools"]);
}

/// A stop text inside the arguments of a call leaves no call that an agent would carry out.
#[test]
fn a_call_that_was_cut_by_a_stop_text_is_incomplete() {
    let server = tools::server();
    let function =
        json!({"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}});
    let response = server.responded(&asked("How warm is it in Paris?", json!({"tools": [function], "stop": "days"})));
    let last = response["output"].as_array().and_then(|items| items.last()).expect("items");
    assert_eq!((&last["type"], &last["status"]), (&json!("function_call"), &json!("incomplete")), "{response}");
}

/// A call can be required, in all the forms of the choice in this interface. Arguments keep to their schemas.
#[test]
fn a_call_can_be_required() {
    let server = tools::server();
    let days = json!({"type": "integer", "minimum": 1, "maximum": 3});
    let schema =
        json!({"type": "object", "properties": {"days": days}, "required": ["days"], "additionalProperties": false});
    let function = |name: &str| json!({"type": "function", "name": name, "parameters": schema});
    let named = json!({"type": "function", "name": "second"});
    let some = json!({"type": "allowed_tools", "mode": "required", "tools": [named]});
    for choice in [json!("required"), named, some] {
        let fields = json!({
            "tools": [function("first"), function("second")], "tool_choice": choice, "parallel_tool_calls": false,
            "temperature": 1, "max_output_tokens": 400,
        });
        let body = asked("How warm is it in Paris?", fields);
        let response = server.responded(&body);
        let (called, said) = (calls(&response), texts(&response).1);
        let [(name, arguments)] = called.as_slice() else { panic!("{choice}: {response}") };
        assert!(said.is_empty() && response["status"] == "completed", "{choice}: {response}");
        assert!(choice == "required" || name == "second", "{choice}: {response}");
        let value: Value = serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{e}: {arguments}"));
        assert!((1..=3).contains(&value["days"].as_u64().expect("a number")), "{value}");
        assert_eq!(response["tool_choice"], choice);
        let (streamed, _) = events(&server.responding(&body).rest());
        assert_eq!(calls(&streamed.last().expect("events")["response"]), called);
    }
}

/// The answer keeps to its format, and the thinking is the same as without one.
#[test]
fn an_answer_keeps_to_its_format() {
    let server = Server::start(options());
    let plain = server.responded(&asked(builtin::EXAMPLE, json!({})));
    let schema = json!({
        "type": "object",
        "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 9}, "sure": {"type": "boolean"}},
        "required": ["value", "sure"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "name": "value", "schema": schema, "strict": true});
    let formatted = asked(builtin::EXAMPLE, json!({"text": {"format": format}}));
    let response = server.responded(&formatted);
    let (thinking, text) = texts(&response);
    assert_eq!((&thinking, &response["text"]["format"]), (&texts(&plain).0, &format));
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["value"].as_u64() <= Some(9) && value["sure"].is_boolean(), "{value}");
    let (streamed, _) = events(&server.responding(&formatted).rest());
    assert_eq!(texts(&streamed.last().expect("events")["response"]).1, text);
    let object = json!({"type": "json_schema", "json_schema": {"name": "value", "schema": schema}});
    let of_chat = server.chat(&chat(builtin::EXAMPLE, json!({"response_format": object, "seed": 7})));
    assert_eq!(of_chat["choices"][0]["message"]["content"], text);
}

/// A model whose template can switch the thinking off: without thinking there is no reasoning, and the message has
/// all the text.
#[test]
fn the_thinking_can_be_switched_off() {
    let server = Server::with(tools::switching(), options());
    for switch in [json!({"reasoning": {"effort": "none"}}), json!({"enable_thinking": false}), json!({})] {
        let response = server.responded(&asked("Hi", switch.clone()));
        assert_eq!(texts(&response), (String::new(), "Hello there.".into()), "{switch}");
        assert_eq!(response["output"].as_array().map(Vec::len), Some(1), "{response}");
    }
}

#[test]
fn probes_traces_and_ends_go_by_the_id_of_the_response() {
    let server = Server::start(options());
    let pruned = json!({"budget": "tokens:24", "probe_every": 20, "window": 8, "events": "comments", "trace": true});
    let text = server.responding(&asked(builtin::EXAMPLE, json!({"secateur": pruned}))).rest();
    let (events, comments) = events(&text);
    assert!(comments.iter().any(|comment| comment.starts_with("secateur {\"choice\":0,\"probe\":")), "{text}");
    let last = &events.last().expect("events")["response"];
    let id = last["id"].as_str().expect("an id");
    let trace = server.get(&format!("/v1/secateur/traces/{id}")).json();
    assert_eq!(trace["totals"]["generated_tokens"], last["usage"]["output_tokens"]);

    let long = json!({"ignore_eos": true, "max_output_tokens": 1500, "secateur": {"policy": "full"}});
    let mut stream = server.responding(&asked(builtin::EXAMPLE, long));
    let first = stream.chunk().expect("events");
    let id = self::events(&first).0[0]["response"]["id"].as_str().expect("an id").to_string();
    server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
    assert_eq!(server.request("DELETE", &format!("/v1/secateur/runs/{id}"), "", "").status, 204);
    let rest = stream.rest();
    assert!(rest.contains("event: error") && rest.contains("\"cancelled\""), "{rest}");
}

/// If a client leaves, its response ends, streamed or not.
#[test]
fn a_client_that_leaves_frees_its_place() {
    use std::io::Write;
    let mut options = options();
    options.places = 1;
    let server = Server::start(options);
    for streamed in [true, false] {
        let fields =
            json!({"stream": streamed, "ignore_eos": true, "max_output_tokens": 1500, "secateur": {"policy": "full"}});
        let body = asked(builtin::EXAMPLE, fields).to_string();
        let (mut connection, host, length) = (server.connect(), server.address, body.len());
        write!(connection, "POST /v1/responses HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
            .expect("it is sent");
        server.wait_for("it runs", |server| server.metric("num_requests_running") == 1.0);
        drop(connection);
        server.wait_for("its place is free", |server| server.metric("num_requests_running") == 0.0);
    }
}

/// A response that takes too long ends with the error from which clients raise one, and with the part that was
/// generated.
#[test]
fn a_failure_is_told_in_the_stream() {
    let mut hasty = options();
    (hasty.places, hasty.deadline) = (1, Some(Duration::from_millis(700)));
    let server = Server::start(hasty);
    let long = asked(
        builtin::EXAMPLE,
        json!({"ignore_eos": true, "max_output_tokens": 1500, "secateur": {"policy": "full"}, "metadata": {"a": "b"}}),
    );
    let text = server.responding(&long).rest();
    let (events, _) = events(&text);
    let [.., error, failed] = events.as_slice() else { panic!("{text}") };
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("longer than this server allows"), "{error}");
    assert_eq!((&error["type"], &error["code"], &error["param"]), (&json!("error"), &json!("timeout"), &Value::Null));
    assert_eq!((&error["error"]["message"], &error["error"]["code"]), (&error["message"], &error["code"]));
    let response = &failed["response"];
    assert_eq!((&failed["type"], &response["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(response["error"], json!({"code": "server_error", "message": message}));
    assert_eq!((&response["usage"], &response["metadata"]), (&Value::Null, &json!({"a": "b"})));
    let items = response["output"].as_array().expect("items");
    let last = items.last().expect("what was said in time");
    assert_eq!((&items[0]["type"], &last["status"]), (&json!("reasoning"), &json!("incomplete")), "{response}");
    let refused = server.post("/v1/responses", &long);
    assert!(refused.refusal(504).contains("longer than this server allows"), "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "timeout");
}

#[test]
fn silence_is_filled_with_comments() {
    let mut slow = options();
    (slow.places, slow.ping) = (1, Some(Duration::from_millis(50)));
    let server = Server::start(slow);
    let long = json!({"ignore_eos": true, "max_output_tokens": 400, "secateur": {"policy": "full"}});
    let running = server.responding(&asked(builtin::EXAMPLE, long));
    // This one waits for its place.
    let text = server.responding(&asked("a is 3. What is a?", json!({"max_output_tokens": 3}))).rest();
    let (events, comments) = events(&text);
    assert!(comments.contains(&"working"), "{text}");
    assert_eq!(events.last().expect("events")["type"], "response.incomplete");
    drop(running);
}

#[test]
fn the_interface_describes_responses() {
    let document = Server::start(options()).get("/openapi.json").json();
    for path in ["/v1/responses", "/v1/responses/input_tokens"] {
        let body = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(*body, "#/components/schemas/ResponsesBody", "{path}");
    }
    let fields = document["components"]["schemas"]["ResponsesBody"].to_string();
    // The parts that are common with a chat are described once.
    for name in ["\"input\"", "\"instructions\"", "\"max_output_tokens\"", "\"tools\"", "\"text\"", "schemas/Common"] {
        assert!(fields.contains(name), "{name}: {fields}");
    }
}
