//! Answers in a format: every text keeps to the format, the thinking before it is free, and the model's own choice
//! among the allowed tokens is taken.
use std::time::{Duration, Instant};

use secateur::device::ComputeDevice;
use secateur::engine::{Engine, LoadOptions, Prompt, RunResult, Settings};
use secateur::policy::Role;
use secateur::sampling::Sampling;
use secateur::trace::StopReason;
use secateur::{AnswerFormat, Dtype, ErrorKind, Message, ModelSource, Trace, builtin};
use serde_json::{Map, Value, json};

use crate::common::{beside_others, devices, two};

/// The built-in model, which thinks and answers.
fn reasoner(device: &ComputeDevice, sequences: usize) -> Engine {
    let options = LoadOptions { kv: Dtype::F32, context: Some(768), sequences, weights: None };
    Engine::load(&builtin::source(), "built-in", device, &options, &mut |_, _| ()).expect("a good model")
}

/// A model with random weights, whose text is full of broken characters.
fn random(directory: &str, device: &ComputeDevice) -> Engine {
    let source = match directory {
        "pieces" => pieces(),
        _ => ModelSource::open(format!("{}/tests/golden/{directory}", env!("CARGO_MANIFEST_DIR"))).expect("committed"),
    };
    let options = LoadOptions { kv: Dtype::F32, context: Some(1024), sequences: 1, weights: None };
    Engine::load(&source, directory, device, &options, &mut |_, _| ()).expect("a good model")
}

/// A model with random weights and a tokenizer like those of SentencePiece: `\u{2581}` for a blank, and a token for
/// each byte that no other token has.
fn pieces() -> ModelSource {
    let read = |name: &str| {
        std::fs::read(format!("{}/tests/golden/qwen2-f16/{name}", env!("CARGO_MANIFEST_DIR"))).expect("committed")
    };
    let mut config: Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    config["eos_token_id"] = 2.into();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let texts = "\u{2581} \u{2581}a \u{2581}{ { } [ ] : , \" \u{2581}\" \": 0 1 2 7 10 a b c cat dog name age kind tags null e \u{e4} \u{6c34}";
    let vocabulary =
        ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(texts.split(' ').map(String::from));
    let vocabulary: Map<String, Value> = vocabulary.zip(0..).map(|(text, id)| (text, Value::from(id))).collect();
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary, "merges": []},
    });
    let files = [
        ("config.json", config.to_string().into_bytes()),
        ("tokenizer.json", tokenizer.to_string().into_bytes()),
        ("model.safetensors", read("model.safetensors")),
    ];
    ModelSource::memory(files)
}

fn schema(schema: Value) -> AnswerFormat {
    AnswerFormat::JsonSchema { schema }
}

fn choice(choices: &[&str]) -> AnswerFormat {
    AnswerFormat::Choice { choices: choices.iter().map(|s| s.to_string()).collect() }
}

fn drawn(seed: u64, format: AnswerFormat) -> Settings {
    let sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let policy = secateur::policy::Full.into();
    Settings { max_new_tokens: 900, policy, sampling, seed, answer_format: Some(format), ..Settings::default() }
}

fn run(engine: &mut Engine, prompt: &Prompt, settings: &Settings) -> RunResult {
    let result = pollster::block_on(engine.run(prompt, settings, &mut |_| ())).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    result
}

fn of_role(result: &RunResult, role: Role) -> Vec<u32> {
    result.trace.tokens.iter().filter(|token| token.role == role).map(|token| token.id).collect()
}

/// A schema with the usual parts, all of them bounded, and a check of its values that is not the grammar's.
fn person() -> (Value, fn(&Value) -> bool) {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "kind": {"enum": ["cat", "dog", null, 7]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
            "weight": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": false,
        "$defs": {"tag": {"type": "string", "pattern": "^[a-c]{1,4}$"}},
    });
    let holds = |value: &Value| {
        let Some(object) = value.as_object() else { return false };
        let tag = |tag: &Value| {
            tag.as_str().is_some_and(|t| (1..=4).contains(&t.len()) && t.chars().all(|c| ('a'..='c').contains(&c)))
        };
        object.keys().all(|key| ["name", "age", "kind", "tags", "weight"].contains(&key.as_str()))
            && object.get("name").and_then(Value::as_str).is_some_and(|name| name.chars().count() <= 6)
            && object.get("age").and_then(Value::as_u64).is_some_and(|age| age <= 130)
            && object.get("kind").is_some_and(|kind| [json!("cat"), json!("dog"), Value::Null, json!(7)].contains(kind))
            && object
                .get("tags")
                .and_then(Value::as_array)
                .is_some_and(|t| (1..=3).contains(&t.len()) && t.iter().all(tag))
            && object.get("weight").is_none_or(|weight| weight.is_boolean() || weight.is_null())
    };
    (schema, holds)
}

/// Draws of a model with random weights, with tokenizers of every kind: of bytes, of characters with bytes for the
/// rest, and that of a GGUF file.
#[test]
fn what_a_model_draws_keeps_to_a_schema() {
    let (schema_of_person, holds) = person();
    let mut texts = Vec::new();
    for directory in ["qwen2-f16", "pieces", "gguf-llama-q4/model.gguf"] {
        for device in devices().iter().filter(|device| directory == "qwen2-f16" || device.info.backend == "cpu") {
            let _running = beside_others();
            let mut engine = random(directory, device);
            for seed in 0..4 {
                let settings = drawn(seed, schema(schema_of_person.clone()));
                let result = run(&mut engine, &Prompt::Ids(vec![5, 6]), &settings);
                let value: Value =
                    serde_json::from_str(&result.text).unwrap_or_else(|e| panic!("{e}: {}", result.text));
                assert!(holds(&value), "{directory}: {value}");
                assert!(matches!(result.trace.stop_reason, StopReason::FormatComplete | StopReason::Eos), "{result:?}");
                texts.push(result.text);
            }
        }
    }
    texts.sort();
    texts.dedup();
    assert!(texts.len() > 8, "the draws differ: {texts:?}");
}

#[test]
fn any_json_object_is_one() {
    let mut engine = random("qwen2-f16", &ComputeDevice::cpu());
    let mut complete = 0;
    for seed in 0..12 {
        let settings = Settings { max_new_tokens: 200, ..drawn(seed, AnswerFormat::JsonObject) };
        let result = run(&mut engine, &Prompt::Ids(vec![5]), &settings);
        assert!(result.text.starts_with('{'), "{}", result.text);
        if result.trace.stop_reason == StopReason::MaxNewTokens {
            continue;
        }
        complete += 1;
        serde_json::from_str::<Map<String, Value>>(&result.text).unwrap_or_else(|e| panic!("{e}: {}", result.text));
    }
    assert!(complete > 0, "no draw came to an end");
}

/// With greedy decoding among some texts, the chosen token is the most likely one of those that continue one of the
/// texts, judged by the reported probabilities and by the texts alone. If the model's own answer is among the texts,
/// it is chosen.
#[test]
fn the_choice_is_the_models_own() {
    let mut judged = 0;
    for device in two() {
        let _running = beside_others();
        let mut engine = reasoner(device, 1);
        let tokenizer = engine.prepared().tokenizer().expect("it has one").clone();
        let plain = Settings { answer_format: None, sampling: Sampling::GREEDY, ..drawn(0, AnswerFormat::JsonObject) };
        for question in [builtin::EXAMPLE, "We count modulo 10. #1 x is 3. What is x?", "What?"] {
            let prompt = Prompt::Chat(question.into());
            let limited = Settings { max_thinking_tokens: Some(60), max_answer_tokens: Some(12), ..plain.clone() };
            let free = run(&mut engine, &prompt, &limited);
            let own = answer_of(&free);
            let (half, reversed) = (own[..own.len() / 2].to_string(), own.chars().rev().collect::<String>());
            for choices in
                [vec![own.clone(), half.clone() + "?", reversed.clone()], vec![half + "?", reversed, "so be it".into()]]
            {
                let format = AnswerFormat::Choice { choices: choices.clone() };
                let settings = Settings {
                    logprobs: Some(20),
                    max_answer_tokens: None,
                    answer_format: Some(format),
                    ..limited.clone()
                };
                let mut rows = Vec::new();
                let mut on = |event: secateur::Event<'_>| {
                    if let secateur::Event::Token { id, role: Role::Answer, logprobs: Some(logprobs), .. } = event {
                        rows.push((id, logprobs.clone()));
                    }
                };
                let result = pollster::block_on(engine.run(&prompt, &settings, &mut on)).expect("it runs");
                let answer = answer_of(&result);
                assert!(choices.contains(&answer), "{answer:?} is none of {choices:?}");
                assert!(!choices.contains(&own) || answer == own, "{answer:?} instead of {own:?}");
                let mut said = Vec::new();
                for (id, logprobs) in rows {
                    let bytes = |id: u32| tokenizer.token_bytes(id).unwrap_or_default();
                    let continues = |id: &u32| {
                        let (more, text) = (bytes(*id), [&said[..], &bytes(*id)].concat());
                        !more.is_empty() && choices.iter().any(|choice| choice.as_bytes().starts_with(&text))
                    };
                    if let Some(best) = logprobs.top.iter().map(|(id, _)| *id).find(continues) {
                        assert_eq!(id, best, "after {:?} of {:?}", String::from_utf8_lossy(&said), logprobs.top);
                        judged += 1;
                    }
                    said.extend(bytes(id));
                }
            }
        }
    }
    assert!(judged > 20, "{judged} tokens were judged");
}

/// The exact text after the thinking, including white space.
fn answer_of(result: &RunResult) -> String {
    result.text.rsplit("</think>").next().unwrap_or_default().to_string()
}

/// A format that allows everything changes nothing. A format for the answer does not change the thought before it,
/// even with prunings.
#[test]
fn the_thinking_is_free() {
    for device in two() {
        let _running = beside_others();
        let mut engine = reasoner(device, 1);
        let prompt = Prompt::Chat(builtin::EXAMPLE.into());
        for (seed, temperature) in [(0, 0.0), (7, 0.5)] {
            let sampling = Sampling { temperature, ..Sampling::GREEDY };
            let (window, probe_every) = (builtin::WINDOW, builtin::PROBE_EVERY);
            let budget = secateur::policy::Budget::Ratio(0.5);
            let plain =
                Settings { max_new_tokens: 600, sampling, seed, budget, probe_every, window, ..Settings::default() };
            let free = run(&mut engine, &prompt, &plain);
            assert!(free.trace.totals.evicted_tokens > 0 && !free.thinking_unfinished, "{}", free.text);
            let ids = |result: &RunResult| result.trace.tokens.iter().map(|t| t.id).collect::<Vec<_>>();
            let any = AnswerFormat::Regex { pattern: r"(.|\n)*".into() };
            let anything = run(&mut engine, &prompt, &Settings { answer_format: Some(any), ..plain.clone() });
            assert_eq!(ids(&anything), ids(&free), "{}", device.info.name);
            assert_eq!(anything.trace.probes.len(), free.trace.probes.len());
            let integer =
                schema(json!({"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["x"], "additionalProperties": false}));
            let formatted = run(&mut engine, &prompt, &Settings { answer_format: Some(integer), ..plain });
            assert_eq!(of_role(&formatted, Role::Thinking), of_role(&free, Role::Thinking));
            let value: Value = serde_json::from_str(&formatted.answer).expect("JSON");
            assert!(value["x"].as_u64() <= Some(99), "{value}");
            // The trace keeps the format, and says how the run ended.
            let read = Trace::from_json(&formatted.trace.to_json().expect("JSON")).expect("a trace");
            assert_eq!(read.settings.answer_format, formatted.trace.settings.answer_format);
            assert_eq!(read.stop_reason, StopReason::FormatComplete);
            assert_eq!(read.answer().trim(), formatted.answer);
        }
    }
}

/// A thought that the engine ends, a thought that the prompt has ended, and a model that has not begun to think.
#[test]
fn the_answer_begins_where_the_thought_ends() {
    let mut engine = reasoner(&ComputeDevice::cpu(), 1);
    let format = choice(&["yes", "no"]);
    let ended = Settings { max_thinking_tokens: Some(9), ..drawn(3, format.clone()) };
    let result = run(&mut engine, &Prompt::Chat(builtin::EXAMPLE.into()), &ended);
    assert_eq!(of_role(&result, Role::Thinking).len(), 9);
    assert!(["yes", "no"].contains(&result.answer.as_str()), "{}", result.text);
    for text in ["<|user|>What?<|assistant|><think> Okay.</think>", "<|user|>What?<|assistant|>"] {
        for seed in 0..4 {
            let result = run(&mut engine, &Prompt::Raw(text.into()), &drawn(seed, format.clone()));
            assert!(result.thinking_unfinished || ["yes", "no"].contains(&result.answer.as_str()), "{}", result.text);
            assert!(text.ends_with("<|assistant|>") || of_role(&result, Role::ThinkOpen).is_empty(), "{}", result.text);
        }
    }
    // A limit cuts the answer off, and the reason says so.
    let long = Settings { max_answer_tokens: Some(3), ..drawn(3, choice(&["0123456789"])) };
    let result = run(&mut engine, &Prompt::Raw("<|assistant|><think></think>".into()), &long);
    assert_eq!((result.answer.as_str(), &result.trace.stop_reason), ("012", &StopReason::MaxAnswerTokens));
}

/// Requests with and without formats run side by side, with probes. Each gives the result that it gives alone.
#[test]
fn neighbours_do_not_matter() {
    for device in two() {
        let _running = beside_others();
        let mut engine = reasoner(device, 5);
        let integer = schema(json!({"type": "integer", "minimum": 100, "maximum": 999}));
        let formats = [
            None,
            Some(choice(&["yes", "no"])),
            Some(integer),
            None,
            Some(AnswerFormat::Regex { pattern: "[a-f]{12}".into() }),
        ];
        let requests: Vec<Settings> = (0..)
            .zip(formats)
            .map(|(seed, answer_format)| Settings {
                answer_format,
                policy: if seed == 3 { secateur::policy::Full.into() } else { secateur::PolicyRef::default() },
                budget: secateur::policy::Budget::Tokens(30),
                probe_every: 12 + seed as usize,
                window: 4,
                max_answer_tokens: Some(40),
                max_thinking_tokens: (seed == 2).then_some(30),
                ..drawn(seed, AnswerFormat::JsonObject)
            })
            .collect();
        let prompt = Prompt::Messages {
            messages: vec![Message::user(builtin::EXAMPLE)],
            think: None,
            tools: Vec::new(),
            variables: Map::new(),
        };
        let ids = |result: &RunResult| result.trace.tokens.iter().map(|t| t.id).collect::<Vec<_>>();
        let alone: Vec<_> = requests.iter().map(|settings| ids(&run(&mut engine, &prompt, settings))).collect();
        let mut batch = engine.batch();
        for settings in &requests {
            batch.add(&prompt, settings).expect("it can run");
        }
        for (request, result) in pollster::block_on(batch.run(&mut |_, _| ())) {
            let result = result.expect("it runs");
            assert_eq!(ids(&result), alone[request], "request {request} on {}", device.info.name);
        }
    }
}

#[test]
fn a_format_that_cannot_be_kept_is_refused_before_anything_runs() {
    let engine = reasoner(&ComputeDevice::cpu(), 1);
    let mut deep = json!({"type": "object"});
    for _ in 0..60 {
        deep = json!({"type": "object", "properties": {"a": deep}, "required": ["a"]});
    }
    let wide = |count: usize, of: Value| -> Map<String, Value> {
        (0..count).map(|i| (format!("property_{i}"), of.clone())).collect()
    };
    let chain = |count: usize| {
        let link = |i: usize| {
            (
                format!("a{i}"),
                if i == count { json!({"type": "null"}) } else { json!({"$ref": format!("#/$defs/a{}", i + 1)}) },
            )
        };
        json!({"$ref": "#/$defs/a0", "$defs": (0..=count).map(link).collect::<Map<String, Value>>()})
    };
    let patterns: Map<String, Value> = (0..8).map(|i| (format!("^{i}[a-z]+$"), json!({"type": "string"}))).collect();
    let texts = |count: usize| (0..count).map(|i| format!("text number {i}")).collect::<Vec<_>>();
    let nulls = |count: usize| vec![json!({"type": "null"}); count];
    // Formats are accepted or refused quickly, because they come from strangers.
    for (format, refused) in [
        (schema(json!({"type": "nothing"})), true),
        (schema(json!(false)), true),
        (schema(json!({"type": "string", "minLength": 5, "maxLength": 2})), true),
        (schema(json!({"$ref": "#/$defs/none"})), true),
        (schema(json!({"$ref": "https://example.com/schema"})), true),
        (schema(json!({"type": "string", "pattern": "("})), true),
        (schema(json!({"type": "array", "uniqueItems": true})), true),
        // These formats are short, but would take minutes, gigabytes or the whole stack.
        (schema(chain(1000)), true),
        (schema(json!({"type": "integer", "multipleOf": 123_456_789})), true),
        (schema(json!({"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 10})), false),
        (schema(json!({"type": "number", "multipleOf": 1e-7})), true),
        (schema(json!({"type": "integer", "multipleOf": 997, "minimum": 0, "maximum": 1_000_000_000})), false),
        (schema(json!({"type": "object", "patternProperties": wide(150, json!({}))})), true),
        (schema(json!({"type": "object", "properties": wide(2000, json!({"type": "string"}))})), true),
        (schema(json!({"anyOf": nulls(4000)})), true),
        (schema(json!({"allOf": [{"anyOf": nulls(190)}, {"properties": wide(190, json!({}))}]})), false),
        (schema(json!({"type": "array", "x-guidance": {"lenient": true}})), true),
        (AnswerFormat::Choice { choices: texts(12_000) }, true),
        (AnswerFormat::Regex { pattern: "(".into() }, true),
        (AnswerFormat::Regex { pattern: "(?=a)b".into() }, true),
        (AnswerFormat::Regex { pattern: "((((a{0,100}){0,100}){0,100}){0,100}){0,100}".into() }, false),
        (choice(&[]), true),
        (choice(&["a", ""]), true),
        (schema(json!(true)), false),
        (schema(deep), false),
        (schema(chain(90)), false),
        (schema(json!({"type": "object", "properties": wide(200, json!({"type": "string"}))})), false),
        (schema(json!({"type": "object", "patternProperties": patterns})), false),
        (schema(json!({"enum": texts(1900)})), false),
        (AnswerFormat::Choice { choices: texts(1000) }, false),
        (AnswerFormat::Regex { pattern: "(a|b|ab)*c".into() }, false),
        (choice(&["\"quoted\"", "back\\slash", "\u{1F600}", "line\nbreak"]), false),
    ] {
        let began = Instant::now();
        let settings = drawn(0, format.clone());
        let found = engine.prepared().check(&Prompt::Raw("a".into()), &settings);
        let short: String = format!("{format:?}").chars().take(100).collect();
        println!("{:?} for {short}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?} for {short}", began.elapsed());
        match found {
            Ok(()) => assert!(!refused, "it was taken: {short}"),
            Err(error) => {
                assert!(refused, "{error}: {short}");
                assert_eq!(error.kind(), ErrorKind::Input, "{error}");
                assert!(error.to_string().contains("`answer_format`"), "{error}");
            }
        }
    }
    let endless = Settings { ignore_eos: true, ..drawn(0, AnswerFormat::JsonObject) };
    let request = json!({"prompt": "x", "ignore_eos": true, "answer_format": {"type": "json_object"}}).to_string();
    let request = secateur::Request::from_json(&request).expect("a request");
    assert!(
        endless.ignore_eos && engine.prepared().resolve(&request).unwrap_err().to_string().contains("`ignore_eos`")
    );
}

/// Accepted formats can also be followed: draws from the largest formats that are allowed.
#[test]
fn the_largest_formats_run() {
    let mut engine = reasoner(&ComputeDevice::cpu(), 1);
    let prompt = Prompt::Raw("<|assistant|><think></think>".into());
    let choices: Vec<String> = (0..1000).map(|i| format!("the same beginning {i}")).collect();
    let result = run(&mut engine, &prompt, &drawn(1, AnswerFormat::Choice { choices: choices.clone() }));
    assert!(choices.contains(&result.text), "{}", result.text);
    let names: Vec<String> = (0..200).map(|i| format!("property_{i}")).collect();
    let of = |name: &String| (name.clone(), json!({"type": "boolean"}));
    let wide = json!({"type": "object", "properties": names.iter().map(of).collect::<Map<_, _>>(), "additionalProperties": false});
    let result = run(&mut engine, &prompt, &Settings { max_new_tokens: 700, ..drawn(2, schema(wide)) });
    if result.trace.stop_reason != StopReason::MaxNewTokens {
        let object: Map<String, Value> =
            serde_json::from_str(&result.text).unwrap_or_else(|e| panic!("{e}: {}", result.text));
        assert!(object.iter().all(|(name, value)| names.contains(name) && value.is_boolean()), "{}", result.text);
    }
    let several = schema(json!({"type": "integer", "multipleOf": 997, "minimum": 0, "maximum": 1_000_000_000}));
    let result = run(&mut engine, &prompt, &drawn(3, several));
    assert_eq!(result.text.parse::<u64>().expect("a number") % 997, 0, "{}", result.text);
}

/// A model whose end-of-sequence token spells text, one that ends in its thought, and one whose tags are no tokens.
#[test]
fn an_end_is_an_end_and_a_text_is_a_text() {
    let read = |name: &str| {
        std::fs::read(format!("{}/tests/golden/qwen2-f16/{name}", env!("CARGO_MANIFEST_DIR"))).expect("committed")
    };
    let altered = |config: &dyn Fn(&mut Value), tokenizer: &dyn Fn(&mut Value)| {
        let change = |name: &str, how: &dyn Fn(&mut Value)| {
            let mut json: Value = serde_json::from_slice(&read(name)).expect("JSON");
            how(&mut json);
            json.to_string().into_bytes()
        };
        let source = ModelSource::memory([
            ("config.json", change("config.json", config)),
            ("tokenizer.json", change("tokenizer.json", tokenizer)),
            ("model.safetensors", read("model.safetensors")),
        ]);
        let options = LoadOptions { kv: Dtype::F32, context: Some(1024), sequences: 1, weights: None };
        Engine::load(&source, "altered", &ComputeDevice::cpu(), &options, &mut |_, _| ()).expect("a good model")
    };
    let tokenizer: Value = serde_json::from_slice(&read("tokenizer.json")).expect("JSON");
    let a = tokenizer["model"]["vocab"]["a"].clone();
    let mut engine = altered(&|config| config["eos_token_id"] = a.clone(), &|_| ());
    let twelve = AnswerFormat::Regex { pattern: "[abc]{12}".into() };
    let result = run(&mut engine, &Prompt::Ids(vec![5]), &drawn(1, twelve.clone()));
    assert_eq!(result.text.len(), 12, "{:?}", result.text);
    // The text cannot end inside a thought, because an answer must follow.
    let mut engine = altered(&|_| (), &|_| ());
    for seed in 0..8 {
        let result = run(&mut engine, &Prompt::Raw("<think> a".into()), &drawn(seed, choice(&["yes", "no"])));
        assert_ne!(result.trace.stop_reason, StopReason::Eos, "{:?}", result.text);
        assert!(result.thinking_unfinished || ["yes", "no"].contains(&result.answer.as_str()), "{:?}", result.text);
    }
    // Tags that are no tokens are text like any other: the answer begins at once.
    let untagged = |tokenizer: &mut Value| {
        let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
        added.retain(|token| !token["content"].as_str().is_some_and(|text| text.contains("think")));
    };
    let mut engine = altered(&|_| (), &untagged);
    let settings = drawn(1, choice(&["yes", "no"]));
    let result = run(&mut engine, &Prompt::Raw("<think> a".into()), &settings);
    assert!(["yes", "no"].contains(&result.text.as_str()), "{:?}", result.text);
    let limited = Settings { max_thinking_tokens: Some(4), ..settings };
    let refused =
        engine.prepared().check(&Prompt::Raw("<think> a".into()), &limited).expect_err("it would be broken off");
    assert!(refused.to_string().contains("`max_thinking_tokens`"), "{refused}");
}

/// Beside a request without a format, a request with a format gets a token in every turn.
#[test]
fn a_request_with_a_format_is_not_slower_than_its_neighbours() {
    let mut engine = reasoner(&ComputeDevice::cpu(), 2);
    let long =
        Settings { max_new_tokens: 300, ignore_eos: true, answer_format: None, ..drawn(1, AnswerFormat::JsonObject) };
    let formatted = Settings { max_new_tokens: 200, ..drawn(2, AnswerFormat::Regex { pattern: "[a-z]{100}".into() }) };
    let mut batch = engine.batch();
    batch.add(&Prompt::Chat(builtin::EXAMPLE.into()), &long).expect("it can run");
    batch.add(&Prompt::Raw("<|assistant|><think></think>".into()), &formatted).expect("it can run");
    let (mut turns, mut tokens, mut ended) = (0, 0, false);
    while !ended {
        turns += 1;
        let mut on = |request: usize, event: secateur::Event<'_>| {
            tokens += usize::from(request == 1 && matches!(event, secateur::Event::Token { .. }));
        };
        ended = pollster::block_on(batch.step(&mut on)).iter().any(|(request, _)| *request == 1);
    }
    assert!(tokens > 15 && turns < tokens + 12, "{turns} turns for {tokens} tokens");
}

/// The characters of every language and the escapes of JSON, with one byte or several in a token.
#[test]
fn choices_of_any_text_come_out_as_they_are() {
    let mut engine = reasoner(&ComputeDevice::cpu(), 1);
    for text in ["\"quoted\" and back\\slash", "\u{1F600} \u{6c34}\u{e4}", "line\nbreak\ttab", "</think>", "<|end|>"] {
        let prompt = Prompt::Raw("<|assistant|><think></think>".into());
        let result = run(&mut engine, &prompt, &drawn(1, choice(&[text])));
        assert_eq!(result.text, text, "{result:?}");
    }
}
