//! What is fuzzed: each target reads bytes as secateur reads a file, an answer or an argument of a stranger. The
//! targets of cargo-fuzz (`fuzz_targets/`) and a test of the ordinary suite (`tests/it/fuzz.rs`) share this file.
//!
//! A target may answer anything but must not panic, must not take a second, and must not hold more than 64 MiB, or ten
//! times its input if that is more. An error of kind `Internal` is a bug as well.
//!
//! Where a reader takes several files, a zero byte separates them.
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use secateur::engine::{LoadOptions, PreparedModel, Prompt};
use secateur::expert::cache::CacheShape;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::{decoder, required};
use secateur::expert::text::{
    CallFormat, CallParser, ChatTemplate, Detokenizer, Message, Offered, RenderOptions, Said, Tokenizer,
    thinking_state, turn_end,
};
use secateur::expert::weights::precision::Precision;
use secateur::expert::weights::{ModelSource, Weights};
use secateur::expert::{answers, bodies};
use secateur::hub::HubName;
use secateur::policy::{Budget, Layers, Normalise, PolicyRef, Positions, Scope};
use secateur::steps::Boundaries;
use secateur::{AnswerFormat, ComputeDevice, Dtype, Error, ErrorKind, Request, Trace, eval, report};
use serde_json::{Map, Value};

/// Reads the bytes of an input.
pub type FuzzTarget = fn(&[u8]);

/// Bytes that a chat template may hold. One string of up to 100 MB may be repeated from a shorter one, which the
/// template engine permits and which steps and output do not bound; it is copied when it is written or compared.
pub const TEMPLATE_BYTES: usize = 512 << 20;

/// Bytes of tensors that are read of one input.
const READ_BYTES: usize = 16 << 10;

/// Every target with its name.
pub const TARGETS: [(&str, FuzzTarget); 11] = [
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("config", config),
    ("tokenizer", tokenizer),
    ("template", template),
    ("trace", trace),
    ("hub", hub),
    ("values", values),
    ("request", request),
    ("bodies", server_bodies),
    ("calls", calls),
];

/// The longest time for one input.
const LONGEST: Duration = Duration::from_secs(1);
/// Bytes that a reader may hold, however small its input is. The built-in parts (regular expressions, the device of the
/// CPU) take some.
const FREE_BYTES: usize = 64 << 20;
/// Bytes that a reader may hold for each byte of its input.
const BYTES_PER_BYTE: usize = 10;

/// Makes a call, and returns the most bytes that it held at one time and the time that it took.
pub type Measure = fn(&mut dyn FnMut()) -> (usize, Duration);

/// Gives `data` to `target` and checks time and memory.
///
/// # Panics
/// If the target panics, or needs too much time or memory.
pub fn check(target: FuzzTarget, data: &[u8], measure: Measure) {
    let mut fastest = Duration::MAX;
    // On a busy machine a call may take long for other reasons, so a slow one is repeated.
    for _ in 0..3 {
        let (peak, time) = measure(&mut || target(data));
        let free = if std::ptr::fn_addr_eq(target, template as FuzzTarget) { TEMPLATE_BYTES } else { FREE_BYTES };
        let most = free.max(BYTES_PER_BYTE * data.len());
        assert!(peak <= most, "{peak} bytes are held for an input of {} bytes", data.len());
        fastest = fastest.min(time);
        if fastest <= LONGEST {
            return;
        }
    }
    panic!("{fastest:?} are taken for an input of {} bytes", data.len());
}

/// The value, if there is one. An error that calls itself a bug is one.
fn ok<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Internal, "bad input is not a bug of secateur: {error}");
            // The message itself must not fail.
            let mut message = Length(0);
            write!(message, "{error}").expect("a message");
            assert_ne!(message.0, 0);
            None
        }
    }
}

/// The length of a message that nobody reads: for many inputs, most of the time would go into writing it.
struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// The files in `data`, at most `n`.
fn files(data: &[u8], n: usize) -> Vec<&[u8]> {
    data.splitn(n, |byte| *byte == 0).collect()
}

/// The files of a model. Empty ones are left out.
fn model(names: &[&str], data: &[u8]) -> ModelSource {
    let files = names.iter().zip(files(data, names.len())).filter(|(_, file)| !file.is_empty());
    ModelSource::memory(files.map(|(name, file)| (*name, file.to_vec())))
}

/// Headers and indices of safetensors. After a first byte 0 follows a whole file; otherwise the JSON of a header, to
/// which the length and some data are added, so that a changed header is still one.
fn safetensors(data: &[u8]) {
    let Some((&mode, data)) = data.split_first() else { return };
    let file = match mode {
        0 => data.to_vec(),
        _ => {
            let data_bytes = usize::from(mode) * 16;
            [&(data.len() as u64).to_le_bytes()[..], data, &vec![0; data_bytes]].concat()
        }
    };
    for source in [
        ModelSource::memory([("model.safetensors", file.clone())]),
        ModelSource::memory([("model.safetensors.index.json", data.to_vec()), ("a.safetensors", file)]),
    ] {
        if let Some(weights) = ok(Weights::open(&source)) {
            tensors(&weights);
        }
    }
}

/// Everything that is read of tensors before they are uploaded.
fn tensors(weights: &Weights) {
    for precision in [None, Some(Precision::Q4)] {
        ok(required::device_bytes(weights, precision));
    }
    // Reading more bytes of a type is no other work than reading the first ones.
    let mut left = READ_BYTES;
    let names: Vec<&str> = weights.names().take(64).collect();
    for name in names {
        if let Some(tensor) = ok(weights.tensor(name)) {
            let _ = ok(tensor.packed_dtype());
            if tensor.bytes.len() <= left {
                left -= tensor.bytes.len();
                let _ = ok(tensor.to_f32());
            }
        }
    }
}

/// GGUF files. After a first byte 0 follows a whole file; otherwise the beginning of one, to which data are added.
fn gguf(data: &[u8]) {
    let Some(source) = gguf_source(data) else { return };
    if let Some(weights) = ok(Weights::open(&source)) {
        tensors(&weights);
        if let Some(config) = ok(ModelConfig::load(&source)) {
            let _ = ok(required::check(&config, &weights, None));
        }
    }
    sizes(&source);
}

fn gguf_source(data: &[u8]) -> Option<ModelSource> {
    let (&mode, data) = data.split_first()?;
    let mut file = data.to_vec();
    file.resize(file.len() + usize::from(mode) * 2048, 0);
    ok(ModelSource::gguf_file("x.gguf", file))
}

/// What is computed from a configuration before a model is loaded.
fn sizes(source: &ModelSource) {
    let Some(config) = ok(ModelConfig::load(source)) else { return };
    for context in [None, Some(1), Some(1 << 20), Some(usize::MAX)] {
        let Some(context) = ok(config.context(context)) else { continue };
        let _ = ok(decoder::check_device(&config, 1, context, &ComputeDevice::cpu()));
        for dtype in [Dtype::F16, Dtype::F32] {
            if let Some(shape) = ok(CacheShape::new(&config, dtype, 4, 64)) {
                let _ = (shape.bytes_for(context), shape.slot_bytes(), shape.token_bytes());
            }
        }
    }
    let _ = (config.parameters(), config.longest_context(), config.kv_size(), config.q_size(), config.group_size());
    let _ = config.rope_scaling.to_string();
}

/// config.json, generation_config.json and the choice of `calibrate`.
fn config(data: &[u8]) {
    let source = model(&["config.json", "generation_config.json", "secateur.json"], data);
    sizes(&source);
    if let Some(prepared) = ok(PreparedModel::new(&source, "fuzzed", &LoadOptions::default())) {
        let request = Request { ids: Some(vec![0]), seed: Some(0), ..Request::default() };
        let _ = ok(prepared.resolve(&request));
    }
}

/// tokenizer.json, tokenizer_config.json and special_tokens_map.json; or the metadata of a GGUF file, after its magic.
fn tokenizer(data: &[u8]) {
    let source = match data.get(1..5) {
        Some(b"GGUF") => gguf_source(data),
        _ => Some(model(&["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"], data)),
    };
    let Some(source) = source else { return };
    let template = ok(ChatTemplate::load(&source));
    let Some(tokenizer) = ok(Tokenizer::load(&source)) else { return };
    if let Some(template) = &template {
        let _ = turn_end(&tokenizer, template);
    }
    let _ = (tokenizer.think_tags(), tokenizer.think_ids(), tokenizer.beginning());
    let mut detokenizer = Detokenizer::new(&tokenizer, false);
    for text in ["", "Wait, 12 + 30 = 42.\n\n</think>", "Größe: 水 🙂\u{0}\u{fffd}"] {
        for ids in [ok(tokenizer.encode(text)), ok(tokenizer.encode_whole(text))].into_iter().flatten() {
            let _ = ok(tokenizer.decode(&ids, false));
            for id in ids {
                let _ = ok(detokenizer.push(id).map(str::len));
            }
        }
    }
    for id in [0, 1, 255, u32::MAX] {
        let _ = (tokenizer.token_bytes(id), tokenizer.spelling(id), tokenizer.is_special(id));
        let _ = ok(detokenizer.push(id).map(str::len));
    }
    detokenizer.finish();
}

/// A chat template and the text of a message.
fn template(data: &[u8]) {
    let parts = files(data, 2);
    let (Ok(template), Ok(message)) =
        (std::str::from_utf8(parts[0]), std::str::from_utf8(parts.get(1).unwrap_or(&&b"hi"[..])))
    else {
        return;
    };
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.into_iter().map(|(name, text)| (name.to_string(), text.into())).collect();
    let Some(template) = ok(ChatTemplate::new(template, "fuzzed", tokens)) else { return };
    let messages = [Message::new("system", "S"), Message::user(message), Message::new("assistant", "A")];
    let options = RenderOptions { now: Some(0), ..RenderOptions::default() };
    let _ = ok(template.render(&messages[..2], &options));
    let _ = ok(template.render(&messages, &options));
    let _ = (template.has_thinking_switch(), template.call_format());
    let _ = thinking_state(message);
}

/// A trace, which is read and shown.
fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(trace) = ok(Trace::from_json(text)) else { return };
    let _ = (trace.totals.forwarded(), trace.totals.tokens_per_second(), trace.answer(), trace.step_note());
    // What was read can be written, and is read as the same.
    let written = ok(trace.to_json()).expect("a trace has a JSON form");
    let again = ok(Trace::from_json(&written)).expect("what is written can be read");
    assert_eq!(again.tokens, trace.tokens, "a trace is another after it was written and read");
    let _ = ok(report::html::page(&[("fuzzed".into(), trace.clone())]));
    let _ = ok(report::html::page(&[("a".into(), trace), ("b".into(), again)]));
}

/// An answer of a hub: a line with its status, lines of headers, an empty line, and the body.
fn hub(data: &[u8]) {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let (head, body) = (String::from_utf8_lossy(&data[..end]), data.get(end + 2..).unwrap_or_default());
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.trim().parse().ok()).unwrap_or(200);
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_string(), value.trim().to_string()))
        .collect();
    for said in answers::read_all(status, &headers, body) {
        let _ = ok(said);
    }
}

/// Values of the command line: one on each line, read as every kind of value.
fn values(data: &[u8]) {
    fn value<T: std::str::FromStr<Err = Error> + std::fmt::Display>(text: &str) -> Option<T> {
        let value = ok(text.parse::<T>())?;
        let written = value.to_string();
        let again = ok(written.parse::<T>()).expect("a value reads what it writes");
        assert_eq!(again.to_string(), written, "a value is another after it was written and read: {text:?}");
        Some(value)
    }
    for text in String::from_utf8_lossy(data).lines() {
        value::<Budget>(text);
        value::<PolicyRef>(text);
        value::<Scope>(text);
        value::<Normalise>(text);
        value::<Positions>(text);
        value::<Boundaries>(text);
        value::<Precision>(text);
        value::<HubName>(text);
        value::<eval::measure::Shard>(text);
        assert_ne!(eval::grade::verdict(text, text), eval::grade::Verdict::CannotTell, "an answer is itself: {text:?}");
        let _ = (eval::grade::grade(text, "\\frac{1}{2}"), eval::grade::grade("\\boxed{(1, 2]}", text));
        let _ = ok(Dtype::for_cache(text));
        let _ = ok(text.parse::<AnswerFormat>());
        if let Some(layers) = value::<Layers>(text) {
            let _ = ok(layers.check(36, Scope::Shared));
        }
    }
    let text = String::from_utf8_lossy(data);
    let _ = ok(eval::problems::read(&text, "fuzzed"));
    let _ = ok(eval::measure::Plan::from_json(&text, "fuzzed"));
    for (_, rule) in Boundaries::NAMES {
        let _ = secateur::steps::segment_by(*rule, &*text, secateur::steps::Tail::Closed);
    }
}

/// A request in JSON, and another one that overrides it.
fn request(data: &[u8]) {
    let requests: Vec<Request> = files(data, 2)
        .into_iter()
        .filter_map(|text| std::str::from_utf8(text).ok())
        .filter_map(|text| ok(Request::from_json(text)))
        .collect();
    requests.iter().for_each(asked);
    if let [base, over] = &requests[..]
        && let Some(both) = ok(base.overridden_by(over))
    {
        let _ = ok(both.check());
    }
}

/// The body of a request to the server.
fn server_bodies(data: &[u8]) {
    for requests in bodies::read_all(data) {
        match requests {
            Ok(requests) => requests.iter().for_each(asked),
            Err(refusal) => assert_ne!(refusal["error"]["type"], "server_error", "bad input is not a bug: {refusal}"),
        }
    }
}

/// Everything that is checked of a request before a model is asked.
fn asked(request: &Request) {
    let _ = ok(request.check());
    if let Some(Some(prompt)) = ok(request.prompt()) {
        assert!(!matches!(prompt, Prompt::Ids(ids) if ids.is_empty()));
    }
}

/// What a model writes where it may call tools: the lengths of the pieces in which it comes, the JSON Schema of the
/// parameters of a tool, and the answer.
fn calls(data: &[u8]) {
    let [lengths, schema, answer] = files(data, 3)[..] else { return };
    let answer = String::from_utf8_lossy(answer);
    let tool = |name: &str, parameters| Offered { name: name.into(), parameters };
    let schema = serde_json::from_slice(schema).unwrap_or_default();
    let offered: Arc<[Offered]> = [tool("run", schema), tool("f", Value::Null)].into();
    for format in [CallFormat::Tagged, CallFormat::Xml, CallFormat::Bare, CallFormat::Marked] {
        let mut parser = CallParser::new(format, offered.clone());
        let whole = told(&mut parser, [&*answer]);
        let pieces = told(&mut CallParser::new(format, offered.clone()), cut(&answer, lengths));
        assert_eq!(pieces, whole, "{format:?}: the pieces make a difference: {answer:?}");
        called(format, &offered, &whole, &answer);
        // Something may come in between, after which the answer goes on.
        told(&mut parser, [&*answer]);
    }
}

/// What an answer says: its calls, each with its arguments, and the text before and after each.
#[derive(Debug, Default, PartialEq)]
struct Told {
    calls: Vec<(String, String)>,
    texts: Vec<String>,
}

/// What the parser says of an answer that comes in these pieces.
fn told<'t>(parser: &mut CallParser, pieces: impl IntoIterator<Item = &'t str>) -> Told {
    let mut told = Told { texts: vec![String::new()], ..Told::default() };
    let mut take = |said: Vec<Said>| {
        for said in said {
            match said {
                Said::Text(text) => *told.texts.last_mut().expect("one") += &text,
                Said::Call { name } => {
                    told.calls.push((name, String::new()));
                    told.texts.push(String::new());
                }
                Said::Arguments(text) => {
                    assert_eq!(told.texts.last().map(String::as_str), Some(""), "arguments come after text");
                    told.calls.last_mut().expect("arguments belong to a call").1 += &text;
                }
            }
        }
    };
    for piece in pieces {
        take(parser.push(piece));
    }
    take(parser.finish());
    told
}

/// `text` in pieces of at least so many bytes each, again and again from the first length on; of one character where
/// there is no length.
fn cut<'t>(text: &'t str, lengths: &[u8]) -> Vec<&'t str> {
    let mut lengths = lengths.iter().map(|length| usize::from(*length)).cycle();
    let (mut pieces, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let length = lengths.next().unwrap_or(1).clamp(1, rest.len());
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(length));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Checks what was told of an answer.
fn called(format: CallFormat, offered: &[Offered], told: &Told, answer: &str) {
    if told.calls.is_empty() {
        assert_eq!(told.texts.concat(), *answer, "{format:?}: the text is another");
    }
    // Nothing is invented, and the order stays.
    let mut written = answer.chars();
    assert!(told.texts.concat().chars().all(|c| written.any(|w| w == c)), "{format:?}: {told:?} of {answer:?}");
    for (index, (name, arguments)) in told.calls.iter().enumerate() {
        assert!(offered.iter().any(|tool| tool.name == *name), "{format:?}: nobody offered {name:?}");
        let Err(error) = serde_json::from_str::<Map<String, Value>>(arguments) else { continue };
        if format == CallFormat::Xml {
            // They are put together here: no object only where the model was stopped, which nothing follows.
            let last = index + 1 == told.calls.len() && told.texts[index + 1].is_empty();
            assert!(error.is_eof() && last, "{arguments:?} of {answer:?}");
        } else {
            // They are what the model wrote, but for control characters, which JSON has as escapes.
            assert!(escaped(answer).contains(&escaped(arguments)), "{format:?}: {arguments:?} of {answer:?}");
        }
    }
}

/// The text with its control characters as JSON writes them.
fn escaped(text: &str) -> String {
    let escape = |c| match c {
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        c if c < ' ' => format!("\\u{:04x}", u32::from(c)),
        c => String::from(c),
    };
    text.chars().map(escape).collect()
}
