//! The options that describe a request. Each option has the name of a field of [`Request`], and [`request`] converts
//! them by name. The library decides what a field means and what its default is.
use std::path::Path;
use std::str::FromStr;

use secateur::Dtype;
use secateur::engine::{LoadOptions, Request};
use secateur::expert::probe;
use secateur::expert::weights::precision::Precision;
use secateur::policy::{self, Budget, CURRENT_STEP_KEPT, Layers, Normalise, PolicyRef, Positions, Scope};
use secateur::settings::{MAX_NEW_TOKENS, MAX_NEW_TOKENS_THINKING};
use secateur::steps::Boundaries;
use secateur::{AnswerFormat, Error, ErrorKind, Result, builtin};
use serde::{Serialize, Serializer};

use super::{fields, text};

/// The device of a command that computes.
#[derive(Debug, clap::Args)]
pub struct DeviceArgs {
    /// The device: auto, cpu, vulkan, metal, dx12, gl, or a part of an adapter's name, or its index, as in the list
    /// of `secateur devices`.
    #[arg(long = "device", value_name = "DEVICE", default_value = "auto")]
    pub select: String,
}

/// The request options of `run` that `calibrate` does not have, or has with another default.
#[derive(Debug, clap::Args, Serialize)]
pub struct PromptArgs {
    /// The system prompt: instructions to the model that precede the conversation.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["ids", "raw"], value_parser = argument)]
    system: Option<String>,
    /// Answer without thinking. This works with models whose chat template can switch thinking off (Qwen3).
    #[arg(long, conflicts_with_all = ["ids", "raw"])]
    #[serde(rename = "think", skip_serializing_if = "is_off", serialize_with = "negated")]
    no_think: bool,
    /// The prompt as token ids, separated by commas or blanks. No tokenizer is needed.
    #[arg(long, value_name = "IDS", value_parser = ids)]
    ids: Option<Ids>,
    /// Use the prompt as it is, without the chat template.
    #[arg(long, conflicts_with = "ids")]
    #[serde(skip_serializing_if = "is_off")]
    raw: bool,
    /// Continue after the end-of-sequence token, for measurements.
    #[arg(long)]
    #[serde(skip_serializing_if = "is_off")]
    ignore_eos: bool,
    /// The text that a probe appends. It must end in </think>.
    #[arg(long, value_name = "TEXT", value_parser = argument)]
    probe_text: Option<String>,
    /// Which parts of the model share one set of kept tokens: shared (all layers and heads share one), layer (each
    /// layer has its own) or head (each KV head has its own) [default: shared].
    #[arg(long, value_name = "SCOPE", value_parser = parsed::<Scope>)]
    scope: Option<Scope>,
    /// The layers whose attention counts with scope `shared`: all, or numbers and ranges such as 0-3,7 [default: the
    /// choice of `secateur calibrate` for this model if there is one, otherwise all].
    #[arg(long, value_name = "LAYERS", value_parser = parsed::<Layers>)]
    layers: Option<Layers>,
    /// How the scores of each head are scaled before they are averaged: none or per-head [default: none].
    #[arg(long, value_name = "HOW", value_parser = parsed::<Normalise>)]
    normalise: Option<Normalise>,
    /// The positions of the kept keys after an eviction: original, or compact (renumbered without gaps) [default:
    /// original].
    #[arg(long, value_name = "WHERE", value_parser = parsed::<Positions>)]
    positions: Option<Positions>,
    #[arg(long, value_name = "RULE", value_parser = parsed::<Boundaries>, help = steps_help())]
    steps: Option<Boundaries>,
    /// End the answer before this text. May be given several times. The thinking is not affected.
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<Vec<String>>,
    /// End the thinking after N tokens: the engine writes </think> in place of the model.
    #[arg(long, value_name = "N")]
    max_thinking_tokens: Option<usize>,
    /// Generate at most N tokens outside the thinking.
    #[arg(long, value_name = "N")]
    max_answer_tokens: Option<usize>,
    /// What the answer must look like: json (an object), schema:JSON or schema:@FILE (a JSON Schema), regex:PATTERN or
    /// choice:A|B. The thinking is not affected.
    #[arg(long, value_name = "FORMAT", value_parser = answer_format)]
    answer_format: Option<AnswerFormat>,
    /// The seed of sampling and of the policies that evict at random [default: a random seed, which is shown].
    #[arg(long)]
    seed: Option<u64>,
}

/// The request options that `run` and `calibrate` share.
#[derive(Debug, clap::Args, Serialize)]
pub struct PruningArgs {
    #[arg(long, value_name = "NAME", value_parser = parsed::<PolicyRef>, help = policy_help())]
    policy: Option<PolicyRef>,
    #[arg(long, value_name = "BUDGET", value_parser = parsed::<Budget>, help = budget_help(Budget::default()))]
    budget: Option<Budget>,
    #[command(flatten)]
    #[serde(flatten)]
    generation: GenerationArgs,
}

/// The request options that `run`, `calibrate` and `eval` share.
#[derive(Debug, clap::Args, Serialize)]
pub struct GenerationArgs {
    #[arg(long, value_name = "N", help = max_new_tokens_help())]
    max_new_tokens: Option<usize>,
    #[arg(long, value_name = "N", help = window_help())]
    window: Option<usize>,
    #[arg(long, value_name = "P", help = probe_every_help())]
    probe_every: Option<usize>,
    /// Draft N tokens in each decode step from what the text has said before, at most 7. The text is the same; it comes
    /// faster on a GPU where the model repeats itself [default: 0].
    #[arg(long, value_name = "N")]
    draft: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    sampling: SamplingArgs,
}

/// The heading in the help above [`SamplingArgs`]. Each of them names it, because a `next_help_heading` would also hold
/// for the options that follow.
const SAMPLING: &str = "Sampling (default: what the model's files recommend, otherwise greedy)";

/// How tokens are chosen.
#[derive(Debug, clap::Args, Serialize)]
struct SamplingArgs {
    /// Always choose the most likely token.
    #[arg(long, help_heading = SAMPLING, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    #[serde(skip_serializing_if = "is_off")]
    greedy: bool,
    /// Divide the logits by T before sampling; 0 means --greedy.
    #[arg(long, help_heading = SAMPLING, value_name = "T", value_parser = finite)]
    temperature: Option<f32>,
    /// Sample from the K most likely tokens only, at most 128; 0 or -1 sets no limit.
    #[arg(long, help_heading = SAMPLING, value_name = "K")]
    top_k: Option<i64>,
    /// Sample from the smallest set of likely tokens whose probabilities add up to at least P.
    #[arg(long, help_heading = SAMPLING, value_name = "P", value_parser = finite)]
    top_p: Option<f32>,
    /// Sample only from tokens whose probability is at least P times that of the most likely token.
    #[arg(long, help_heading = SAMPLING, value_name = "P", value_parser = finite)]
    min_p: Option<f32>,
    /// Make tokens that are already in the prompt or in the text less likely, if R is above 1.
    #[arg(long, help_heading = SAMPLING, value_name = "R", value_parser = finite)]
    repetition_penalty: Option<f32>,
    /// Take F off the logit of a token for each time that it is already in the text, not in the prompt (-2 to 2).
    #[arg(long, help_heading = SAMPLING, value_name = "F", value_parser = finite)]
    frequency_penalty: Option<f32>,
    /// Take F off the logit of a token that is already in the text, once (-2 to 2).
    #[arg(long, help_heading = SAMPLING, value_name = "F", value_parser = finite)]
    presence_penalty: Option<f32>,
}

/// How weights and cache are stored on the device.
#[derive(Debug, clap::Args)]
pub struct StorageArgs {
    /// Quantize the weights as they are loaded, to about 8, 6 or 4 bits: q8, q6 or q4. Weights that are quantized in
    /// the file stay as they are [default: the types of the file].
    #[arg(long, value_name = "PRECISION", value_parser = parsed::<Precision>)]
    pub weights: Option<Precision>,
    /// The element type of the KV cache: f16 or f32.
    #[arg(long, value_name = "TYPE", value_parser = kv, default_value_t = LoadOptions::default().kv)]
    pub kv: Dtype,
}

/// `what`, and the precision to which its weights are quantized, if they are.
pub fn in_precision(what: &str, precision: Option<Precision>) -> String {
    precision.map_or(what.to_string(), |precision| format!("{what} in {precision}"))
}

/// Converts a group of options to a request.
///
/// # Errors
/// [`ErrorKind::Internal`] for an option that is not a field of a request.
pub fn request(options: &impl Serialize) -> Result<Request> {
    let conversion_error = |e| Error::new(ErrorKind::Internal, "the options cannot be converted to a request").found(e);
    serde_json::from_value(serde_json::to_value(options).map_err(conversion_error)?).map_err(conversion_error)
}

/// Reads a request from a JSON file, or from stdin for `-`.
///
/// # Errors
/// If the file cannot be read or does not hold a request.
pub fn read_request(path: &Path) -> Result<Request> {
    if path.as_os_str() == "-" {
        return Request::from_json(&super::stdin::read_prompt()?).map_err(|e| e.at("stdin"));
    }
    Request::from_json(&text::read(path, "the request")?).map_err(|e| e.at(path.display()))
}

/// Parses the value of `--answer-format`. A schema may be in a file.
fn answer_format(given: &str) -> Result<AnswerFormat, String> {
    match given.strip_prefix("schema:@") {
        Some(path) => {
            let schema = text::read(Path::new(path), "the JSON Schema").map_err(|e| fields::error(&e))?;
            parsed(&format!("schema:{schema}"))
        }
        None if given.starts_with("schema:") => {
            parsed(given).map_err(|e| format!("{e}\n      help: schema:@FILE reads it from a file"))
        }
        None => parsed(given),
    }
}

/// Parses the value of `--kv`.
fn kv(text: &str) -> Result<Dtype, String> {
    Dtype::for_cache(text).map_err(|e| fields::error(&e))
}

/// Refuses a `--context` of 0.
pub fn check_context(context: Option<usize>) -> Result<()> {
    if context != Some(0) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "a context of 0 positions")
        .at("--context")
        .expected("at least 1")
        .found(0)
        .help("leave --context out for the model's own maximum"))
}

/// Token ids. This is not a plain `Vec`, because clap takes a `Vec` for an option that may be given several times.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
struct Ids(Vec<u32>);

fn ids(text: &str) -> Result<Ids, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let id = |word: &str| {
        word.parse().map_err(|_| {
            format!("{word:?} is not a token id: whole numbers separated by commas are expected, such as \"1,2,3\"")
        })
    };
    words.map(id).collect::<Result<_, _>>().map(Ids)
}

pub fn parsed<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: Error| fields::error(&e))
}

/// Parses a finite number. Options become JSON, which cannot express infinity and NaN.
fn finite(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())?;
    if number.is_finite() { Ok(number) } else { Err("it is not finite: a finite number is expected".into()) }
}

/// A text, with the line ends of Unix.
pub fn argument(given: &str) -> Result<String, std::convert::Infallible> {
    Ok(text::argument(given))
}

fn is_off(flag: &bool) -> bool {
    !flag
}

fn negated<S: Serializer>(flag: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(!flag)
}

fn max_new_tokens_help() -> String {
    format!(
        "Generate at most N tokens [default: {MAX_NEW_TOKENS_THINKING} with a model that thinks, otherwise {MAX_NEW_TOKENS}]"
    )
}

/// The help of `--budget`, whose default this is.
pub fn budget_help(default: Budget) -> String {
    format!(
        "How much of the thinking to keep, as tokens:N or ratio:R (a share of its tokens); or how much to evict, as \
         score-sum:K or share:F (a share of its importance) [default: {default}]"
    )
}

fn policy_help() -> String {
    let policies = policy::POLICIES.iter().map(|p| format!("{}: {}", p.name(), p.summary()));
    let list = policies.collect::<Vec<_>>().join("; ");
    format!("Which thoughts are evicted [default: {}]. {list}", PolicyRef::default())
}

fn steps_help() -> String {
    let rules = Boundaries::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    format!("The rule that tells where a step of the thinking begins: {rules} [default: {}]", Boundaries::default())
}

fn window_help() -> String {
    let (general, own) = (policy::DEFAULT_WINDOW, builtin::WINDOW);
    format!(
        "Never evict the latest N tokens. Whatever N is, the latest {CURRENT_STEP_KEPT} tokens of the step that is being \
         written stay too [default: {general}; {own} with the built-in model]"
    )
}

fn probe_every_help() -> String {
    let (general, own) = (probe::DEFAULT_PROBE_EVERY, builtin::PROBE_EVERY);
    format!("Probe after every P thinking tokens [default: {general}; {own} with the built-in model]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_values_name_options() {
        let budget = parsed::<Budget>("ratio:1.5").expect_err("more than everything");
        assert!(budget.contains("at: --budget") && !budget.contains('`'), "{budget}");
        let layers = parsed::<Layers>("first").expect_err("not a number");
        assert!(layers.contains("at: --layers") && !layers.contains('`'), "{layers}");
    }
}
