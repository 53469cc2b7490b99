//! `secateur inspect`: describes a model, and tells whether it can be run, without loading it.
use std::process::ExitCode;

use secateur::Dtype;
use secateur::engine::GROWTH;
use secateur::expert::cache::CacheShape;
use secateur::expert::model::config::{ModelConfig, RopeScaling};
use secateur::expert::model::{decoder, required};
use secateur::expert::probe;
use secateur::expert::text::{ChatTemplate, Message, RenderOptions, ThinkTags, ThinkingState, Tokenizer};
use secateur::expert::weights::precision::Precision;
use secateur::expert::weights::{ModelSource, Weights};
use secateur::{ComputeDevice, Error, ErrorKind, Result, builtin};
use serde::Serialize;

use super::quality::{self, Compared, QualityArgs};
use super::{fields, model, options, screen, text};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory, a GGUF file, or the name of a model on the hub, which is fetched first [default: the small
    /// model in the binary].
    #[arg(value_name = "DIR|FILE|NAME")]
    model: Option<std::ffi::OsString>,
    /// The contexts to compute the memory for, separated by commas [default: 2048, 8192, 32768 and so on, up to the
    /// model's maximum].
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    context: Vec<usize>,
    /// Compute the memory, and with --quality the quality, for weights of this precision: q8, q6 or q4 [default: the
    /// types of the file].
    #[arg(long, value_name = "PRECISION", value_parser = options::parsed::<Precision>)]
    weights: Option<Precision>,
    #[command(flatten)]
    quality: QualityArgs,
    /// Describe a model on the hub from the beginnings of its files, without fetching its weights.
    #[arg(long)]
    no_fetch: bool,
    /// Print one JSON object to stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Inspection {
    secateur: &'static str,
    model: String,
    architecture: &'static str,
    sizes: Sizes,
    weights: Option<Stored>,
    generation: Generation,
    text: Text,
    probe: Feasible,
    memory: Vec<Memory>,
    /// The loss of quality through quantized weights, if it was measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quality: Vec<Compared>,
    /// Whether `run` can run the model, on a device with enough memory.
    runs: bool,
    /// The kinds of prompts that `run` takes: `chat` needs tokenizer and chat template, `raw` a tokenizer, `ids`
    /// neither. Empty if the model does not run.
    prompts: Vec<&'static str>,
    /// Whether `run` refuses prompts because of a part that is there and cannot be used.
    #[serde(skip)]
    refuses_text: bool,
    /// The parts of the model that are missing, malformed or not supported, one error each. Anything that needs such
    /// a part fails.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Sizes {
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    context: usize,
    /// The longest context of the model itself, where only a shorter one can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable_context: Option<usize>,
    tied_embeddings: bool,
    qk_norm: bool,
    attention_bias: bool,
    rope_theta: f64,
    rope_scaling: Option<String>,
    /// Values of a head that are rotated, if not all of them are.
    #[serde(skip_serializing_if = "Option::is_none")]
    rotary_dim: Option<usize>,
    /// Layers without RoPE.
    #[serde(skip_serializing_if = "is_zero")]
    unrotated_layers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
}

/// The experts of a mixture of experts.
#[derive(Serialize)]
struct Experts {
    /// Experts of a layer.
    count: usize,
    /// Experts that are computed for a token.
    per_token: usize,
    /// Width of the feed-forward layer of an expert.
    intermediate: usize,
    /// Layers without experts.
    dense_layers: usize,
    /// Parameters that are used for a token.
    active_parameters: u64,
    /// Bytes of weights that a decode step of one sequence reads; `None` without weights.
    step_bytes: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

#[derive(Serialize)]
struct Stored {
    parameters: u64,
    bytes: u64,
    types: Vec<StoredType>,
}

#[derive(Serialize)]
struct StoredType {
    #[serde(rename = "type")]
    name: String,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Generation {
    stop_ids: Vec<u32>,
    /// The text of the stop tokens; empty without a tokenizer.
    stop_tokens: Vec<String>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

#[derive(Serialize)]
struct Text {
    tokens: Option<usize>,
    template: bool,
    think_open: Option<u32>,
    think_close: Option<u32>,
    /// The texts of the tags whose ids are `think_open` and `think_close`.
    #[serde(skip)]
    tags: ThinkTags,
    thinking: Thinking,
    /// Whether the chat template can switch thinking off, so that `--no-think` works.
    thinking_switch: bool,
    /// Whether the chat template shows messages of the system to the model.
    system: bool,
    /// Whether it shows tools, and their calls in a form that is read.
    tools: bool,
}

/// How the thinking begins.
#[derive(Serialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Thinking {
    /// The prompt ends with `<think>` (R1-Distill, QwQ).
    TemplateOpens,
    /// The model writes `<think>` itself, if it thinks (Qwen3).
    ModelOpens,
    /// The prompt ends with `</think>`.
    Closed,
    /// Neither the tokenizer nor the template has a tag for thinking.
    None,
}

impl Thinking {
    fn description(self, tags: ThinkTags) -> String {
        match self {
            Self::TemplateOpens => format!("the template opens {}", tags.open),
            Self::ModelOpens => format!("the model writes {} itself", tags.open),
            Self::Closed => "the template ends it at once".into(),
            Self::None => "neither the tokenizer nor the template has tags for it".into(),
        }
    }
}

#[derive(Serialize)]
struct Feasible {
    feasible: bool,
    why_not: Option<String>,
}

#[derive(Serialize)]
struct Memory {
    context: usize,
    kv: String,
    kv_bytes: u64,
    /// The cache of one layer: a device must be able to bind this many bytes at once.
    layer_bytes: u64,
    /// The weights, the cache and the RoPE table; `None` without weights.
    total_bytes: Option<u64>,
}

/// The largest binding that every device of WebGPU has to offer, in bytes.
const COMMON_BINDING: u64 = 128 << 20;

pub fn main(args: &Args) -> Result<ExitCode> {
    args.context.iter().try_for_each(|context| options::check_context(Some(*context)))?;
    let (source, name) = match &args.model {
        Some(model) if args.no_fetch => model::peek(model)?,
        Some(model) => model::open(model, false, false)?,
        None => (builtin::source(), builtin::NAME.to_string()),
    };
    let (mut inspection, unfit) = inspect(&source, name.clone(), &args.context, args.weights)?;
    if unfit.is_none() {
        inspection.quality = quality::measure(&args.quality, args.weights, &source, &name)?;
    }
    match args.json {
        true => super::print_json(&inspection)?,
        // End tokens and messages quote the files of the model.
        false => super::print(&text::visible(&report(&inspection)))?,
    }
    // A model that comes without a tokenizer or a chat template still runs, with --ids or --raw. One that has such a
    // part, which cannot be used, is refused for every prompt that needs the part.
    unfit.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// The inspection, and why `run` would refuse the model or a prompt that is text, if it would.
fn inspect(
    source: &ModelSource,
    model: String,
    contexts: &[usize],
    precision: Option<Precision>,
) -> Result<(Inspection, Option<Error>)> {
    let mut config = ModelConfig::load(source)?;
    contexts.iter().try_for_each(|context| config.context(Some(*context)).map(|_| ()))?;
    let mut problems = Vec::new();
    let mut keep = |error: Error| problems.push(error.to_string());
    let opened = Weights::open(source).and_then(|weights| Ok((stored(&weights)?, weights)));
    let checked = match &opened {
        Ok((_, weights)) => required::check(&config, weights, precision),
        Err(e) => Err(e.clone()),
    };
    let errors: Vec<Error> = [check_dimensions(&config, source), checked].into_iter().filter_map(Result::err).collect();
    errors.iter().for_each(|error| keep(error.clone()));
    let unfit = errors.into_iter().next();
    let weight_bytes = match &opened {
        Ok((_, weights)) => Some(required::device_bytes(weights, precision)?),
        Err(_) => None,
    };
    let experts = match &config.experts {
        None => None,
        Some(mixture) => {
            let step = |(_, weights): &(Stored, Weights)| required::step_bytes(&config, weights, precision);
            Some(Experts {
                count: mixture.experts,
                per_token: mixture.experts_per_token,
                intermediate: mixture.intermediate_size,
                dense_layers: mixture.dense(config.num_layers),
                active_parameters: config.active_parameters(),
                step_bytes: opened.as_ref().ok().map(step).transpose()?,
            })
        }
    };
    let weights = opened.ok().map(|(stored, _)| stored);
    // Errors of parts that are there. Without such a part, only what needs it fails.
    let mut unusable = Vec::new();
    let tokenizer = Tokenizer::load(source).inspect_err(|e| {
        unusable.extend(Tokenizer::exists(source).then(|| e.clone()));
    });
    let tokenizer = tokenizer.map_err(&mut keep).ok();
    let template = ChatTemplate::load(source).inspect_err(|e| {
        unusable.extend(ChatTemplate::exists(source).then(|| e.clone()));
    });
    let template = template.map_err(&mut keep).ok();

    if let (Some(tokenizer), Some(template)) = (&tokenizer, &template) {
        config.add_turn_end(tokenizer, template);
    }
    let think = tokenizer.as_ref().map(Tokenizer::think_ids);
    let rendered = template.as_ref().map(|t| t.render(&[Message::user("Hi")], &RenderOptions::default()));
    let rendered = rendered.and_then(|rendered| {
        // A template may refuse this message and take others, such as one after a message of the system.
        rendered
            .inspect_err(|e| unusable.extend((e.kind() == ErrorKind::Model).then(|| e.clone())))
            .map_err(&mut keep)
            .ok()
    });
    let renders = rendered.is_some() || template.is_some() && unusable.is_empty();
    let mut probe_ids = Vec::new();
    let why_not = match &tokenizer {
        None => Some("no tokenizer".to_string()),
        Some(tokenizer) => {
            probe_ids = tokenizer.encode(&probe::default_text(tokenizer.think_tags().close))?;
            probe::check_probe_ids(&probe_ids, tokenizer.think_ids().close).err().map(|e| e.what().to_string())
        }
    };
    let fits = match &tokenizer {
        None => true,
        Some(tokenizer) => {
            let prompt = rendered.as_ref().map_or("", |rendered| rendered.text.as_str());
            let probed = if why_not.is_none() { probe_ids.as_slice() } else { &[] };
            let written = [&tokenizer.encode(prompt).unwrap_or_default(), probed].concat();
            // Tokens that only some texts have are no reason to refuse all: `run` refuses the texts that have them.
            let refused = written.into_iter().find(|id| *id as usize >= config.vocab_size);
            if let Err(error) = check_vocabulary(&config, tokenizer, refused, source) {
                unusable.extend(refused.map(|_| error.clone()));
                keep(error);
            }
            refused.is_none()
        }
    };
    let reads = tokenizer.is_some() && fits;
    let prompts = [("chat", reads && renders), ("raw", reads), ("ids", true)];
    let prompts = prompts.into_iter().filter(|(_, taken)| *taken && unfit.is_none()).map(|(kind, _)| kind).collect();
    let thinking = match (rendered.as_ref().map(|r| r.thinking), think) {
        (Some(ThinkingState::Open), _) => Thinking::TemplateOpens,
        (Some(ThinkingState::Closed), _) => Thinking::Closed,
        (_, Some(ids)) if ids.close.is_some() => Thinking::ModelOpens,
        _ => Thinking::None,
    };
    let spell = |id: &u32| tokenizer.as_ref().and_then(|t| t.spelling(*id));
    let defaults = &config.generation;
    let contexts = if contexts.is_empty() { usual_contexts(config.longest_context()) } else { contexts.to_vec() };
    let mut memory = Vec::new();
    for context in contexts {
        for kv in [Dtype::F16, Dtype::F32] {
            let shape = CacheShape::new(&config, kv, 1, GROWTH)?;
            let too_much = || {
                Error::new(ErrorKind::Model, "the sizes of this model come to more bytes than can be counted")
                    .at(source.place_of("config.json"))
                    .found(format!("{} layers, {} KV heads of {} values", shape.layers, shape.kv_heads, shape.head_dim))
            };
            let kv_bytes = shape.bytes_for(context).ok_or_else(too_much)?;
            let tables = if config.rotated_layers.unrotated(config.num_layers) == 0 { 1 } else { 2 };
            let rope = tables * context as u64 * config.head_dim as u64 * 4;
            let total = |weights: u64| {
                weights.checked_add(kv_bytes).and_then(|bytes| bytes.checked_add(rope)).ok_or_else(too_much)
            };
            let total_bytes = weight_bytes.map(total).transpose()?;
            let layer_bytes = kv_bytes / config.num_layers.max(1) as u64;
            memory.push(Memory { context, kv: kv.to_string(), kv_bytes, layer_bytes, total_bytes });
        }
    }
    let inspection = Inspection {
        secateur: env!("CARGO_PKG_VERSION"),
        model,
        architecture: config.architecture.class_name(),
        sizes: Sizes {
            layers: config.num_layers,
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            vocabulary: config.vocab_size,
            context: config.longest_context(),
            unusable_context: Some(config.max_position_embeddings).filter(|most| *most > config.longest_context()),
            tied_embeddings: config.tie_word_embeddings,
            qk_norm: config.qk_norm,
            attention_bias: config.attention_bias,
            rope_theta: config.rope_theta,
            rope_scaling: (config.rope_scaling != RopeScaling::None).then(|| config.rope_scaling.to_string()),
            rotary_dim: Some(config.rotary_dim).filter(|rotated| *rotated < config.head_dim),
            unrotated_layers: config.rotated_layers.unrotated(config.num_layers),
            experts,
        },
        weights,
        generation: Generation {
            stop_tokens: config.eos_token_ids.iter().filter_map(spell).collect(),
            stop_ids: config.eos_token_ids.clone(),
            do_sample: defaults.do_sample,
            temperature: defaults.temperature,
            top_p: defaults.top_p,
            top_k: defaults.top_k,
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty,
        },
        text: Text {
            tokens: tokenizer.as_ref().map(Tokenizer::vocab_size),
            template: template.is_some(),
            think_open: think.and_then(|ids| ids.open),
            think_close: think.and_then(|ids| ids.close),
            tags: tokenizer.as_ref().map_or(ThinkTags::COMMON, Tokenizer::think_tags),
            thinking,
            thinking_switch: template.as_ref().is_some_and(ChatTemplate::has_thinking_switch),
            system: template.as_ref().is_some_and(ChatTemplate::shows_system),
            tools: template.as_ref().is_some_and(|template| template.call_format().is_some()),
        },
        probe: Feasible { feasible: why_not.is_none(), why_not },
        memory,
        quality: Vec::new(),
        runs: unfit.is_none(),
        prompts,
        refuses_text: !unusable.is_empty(),
        problems,
    };
    Ok((inspection, unfit.or(unusable.into_iter().next())))
}

/// Refuses a tokenizer with tokens that the model does not have, such as that of another model: tokens of ordinary
/// text, or `written`, one that every prompt or probe has. Other added tokens, such as one for padding, may lie
/// outside, because only a prompt that spells them has them.
fn check_vocabulary(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    written: Option<u32>,
    source: &ModelSource,
) -> Result<()> {
    let written = written.map(|id| (id, tokenizer.spelling(id).unwrap_or_default()));
    let Some((id, token)) = tokenizer.beyond(config.vocab_size).or(written) else { return Ok(()) };
    Err(Error::new(ErrorKind::Model, "the tokenizer has tokens that the model does not have")
        .at(source.place_of("tokenizer.json"))
        .expected(format!("ids below {}", config.vocab_size))
        .found(format!("the token {token:?} with the id {id}"))
        .help("is this the tokenizer of the model? pass token `ids` instead of text"))
}

/// Refuses dimensions that the kernels cannot run on any device. The CPU has no limits of its own, and one position
/// needs the least memory, so only these dimensions can fail here.
fn check_dimensions(config: &ModelConfig, source: &ModelSource) -> Result<()> {
    decoder::check_device(config, 1, 1, &ComputeDevice::cpu()).map_err(|e| e.at(source.place_of("config.json")))
}

/// Counts parameters and bytes by element type. The types are in the order of the first tensor's name.
fn stored(weights: &Weights) -> Result<Stored> {
    let mut types: Vec<StoredType> = Vec::new();
    for name in weights.names() {
        let tensor = weights.tensor(name)?;
        let (name, parameters) = (tensor.stored.to_string(), tensor.shape.iter().map(|n| *n as u64).product::<u64>());
        let at = types.iter().position(|t| t.name == name).unwrap_or_else(|| {
            types.push(StoredType { name, tensors: 0, parameters: 0, bytes: 0 });
            types.len() - 1
        });
        types[at].tensors += 1;
        types[at].parameters += parameters;
        types[at].bytes += tensor.size();
    }
    let sum = |number: fn(&StoredType) -> u64| types.iter().map(number).sum();
    Ok(Stored { parameters: sum(|t| t.parameters), bytes: sum(|t| t.bytes), types })
}

/// 2048, 8192, 32768 and so on, and the model's maximum.
fn usual_contexts(maximum: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(2048usize), |n| n.checked_mul(4)).take_while(|n| *n < maximum);
    powers.chain([maximum]).collect()
}

fn report(i: &Inspection) -> String {
    let s = &i.sizes;
    let mut rows: Vec<(&str, String)> = vec![
        ("model", i.model.clone()),
        ("architecture", i.architecture.into()),
        ("layers", format!("{} of width {}, feed-forward {}", s.layers, s.hidden, s.intermediate)),
        ("attention", {
            let extras = [(s.attention_bias, ", biases"), (s.qk_norm, ", q and k normalised")];
            let extras: String = extras.iter().filter(|(has, _)| *has).map(|(_, what)| *what).collect();
            let heads = |count, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
            format!("{} of {} values, {}{extras}", heads(s.heads, "head"), s.head_dim, heads(s.kv_heads, "KV head"))
        }),
        ("vocabulary", format!("{}{}", s.vocabulary, if s.tied_embeddings { ", embedding and head tied" } else { "" })),
        ("positions", {
            let scaling = s.rope_scaling.as_ref().map_or(String::new(), |scaling| format!(", {scaling}"));
            let unusable = s.unusable_context.map_or(String::new(), |most| format!(" of {most}"));
            let part = s.rotary_dim.map_or(String::new(), |part| format!(", {part} values of a head rotated"));
            let layers = match s.unrotated_layers {
                0 => String::new(),
                layers => format!(", none in {layers} of {} layers", s.layers),
            };
            format!("{}{unusable} with RoPE base {}{scaling}{part}{layers}", s.context, s.rope_theta)
        }),
    ];
    if let Some(e) = &s.experts {
        let dense = if e.dense_layers > 0 { format!(" in all but {} layers", e.dense_layers) } else { String::new() };
        let read = e.step_bytes.map_or(String::new(), |bytes| format!("; a step reads {}", screen::bytes(bytes)));
        let active = count(e.active_parameters);
        let width = e.intermediate;
        rows.push((
            "experts",
            format!(
                "{} of {}{dense}, feed-forward {width}; {active} parameters for a token{read}",
                e.per_token, e.count
            ),
        ));
    }
    if let Some(w) = &i.weights {
        let types = w.types.iter().map(|t| format!("{} {} in {} tensors", screen::bytes(t.bytes), t.name, t.tensors));
        let types = types.collect::<Vec<_>>().join(", ");
        rows.push(("weights", format!("{} parameters; {types}", count(w.parameters))));
    }
    let g = &i.generation;
    rows.push((
        "stops at",
        match (g.stop_tokens.is_empty(), g.stop_ids.is_empty()) {
            (false, _) => g.stop_tokens.join(" "),
            (true, false) => format!("ids {:?}", g.stop_ids),
            (true, true) => "no token: neither config.json nor generation_config.json names one".into(),
        },
    ));
    let number = |name: &str, value: Option<f32>| value.map(|v| format!("{name} {v}"));
    let sampling = [
        g.do_sample.map(|yes| if yes { "sample".to_string() } else { "greedy".to_string() }),
        number("temperature", g.temperature),
        g.top_k.map(|k| format!("top-k {k}")),
        number("top-p", g.top_p),
        number("min-p", g.min_p),
        number("repetition penalty", g.repetition_penalty),
    ];
    let sampling: Vec<String> = sampling.into_iter().flatten().collect();
    let none = || "no recommendation".to_string();
    rows.push(("sampling", if sampling.is_empty() { none() } else { sampling.join(", ") }));
    if let Some(tokens) = i.text.tokens {
        rows.push(("tokenizer", format!("{tokens} tokens")));
    }
    rows.push(("thinking", {
        let switch =
            if i.text.thinking_switch { "; --no-think switches it off" } else { "; it cannot be switched off" };
        i.text.thinking.description(i.text.tags) + if i.text.template { switch } else { "" }
    }));
    if i.text.template {
        let shows = |shown, what| format!("{} {what}", if shown { "shows" } else { "shows no" });
        let (system, tools) =
            (shows(i.text.system, "system messages"), shows(i.text.tools, "calls of tools in a known form"));
        rows.push(("template", format!("{system}, {tools}")));
    }
    rows.push((
        "probe",
        match &i.probe.why_not {
            None => format!("possible: {} is one token", i.text.tags.close),
            Some(why) => format!("not possible: {why}"),
        },
    ));
    let runs = match (i.runs, i.refuses_text) {
        (false, _) => "no, see below",
        (true, false) => "yes, on a device with enough memory",
        (true, true) if i.prompts.contains(&"raw") => "only with --ids or --raw, see below",
        (true, true) => "only with --ids, see below",
    };
    rows.push(("runs", runs.into()));
    let mut text = screen::table(&rows.into_iter().map(|(name, value)| vec![name.into(), value]).collect::<Vec<_>>());

    text += "\nMemory on the device, unpruned, one sequence:\n";
    let mut table = vec![["context", "KV f16", "total", "KV f32", "total"].map(String::from).to_vec()];
    for pair in i.memory.chunks(2) {
        let mut row = vec![pair[0].context.to_string()];
        for m in pair {
            row.push(screen::bytes(m.kv_bytes));
            row.push(m.total_bytes.map_or("-".into(), screen::bytes));
        }
        table.push(row);
    }
    text += &screen::table(&table);
    if let Some(large) = i.memory.iter().find(|m| m.layer_bytes > COMMON_BINDING) {
        text += &format!(
            "From {} tokens with KV {}, the cache of a layer takes {}. Some devices bind only {} at once (see `secateur devices \
             --json`); on them, pruning has to keep it smaller.\n",
            large.context,
            large.kv,
            screen::bytes(large.layer_bytes),
            screen::bytes(COMMON_BINDING)
        );
    }
    text += &quality::table(&i.quality);
    for problem in &i.problems {
        text += &format!("\nproblem: {}\n", fields::as_options(problem));
    }
    text
}

/// A large number in millions or billions; a smaller one with all its digits.
fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_end_with_the_models_maximum() {
        assert_eq!(usual_contexts(4096), [2048, 4096]);
        assert_eq!(usual_contexts(131_072), [2048, 8192, 32_768, 131_072]);
        assert_eq!(usual_contexts(512), [512]);
    }

    #[test]
    fn large_counts_have_units() {
        assert_eq!([count(999), count(1_500_000), count(7_620_000_000)], ["999", "1.5 M", "7.62 B"]);
    }
}
