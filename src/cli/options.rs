//! The options that describe a request. Each has the name of its field in a [`Request`], and the request is made from
//! them by those names: what an option does, and what holds without it, is the library's to say.
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use secateur::Dtype;
use secateur::engine::Request;
use secateur::expert::probe;
use secateur::policy::{self, Budget, Layers, Normalise, PolicyRef, Positions, Scope};
use secateur::settings::{MAX_NEW_TOKENS, MAX_NEW_TOKENS_THINKING};
use secateur::steps::Boundaries;
use secateur::{Error, ErrorKind, Result, builtin};
use serde::{Serialize, Serializer};

use super::text;

/// What `run` takes beyond what `calibrate` takes too.
#[derive(Debug, clap::Args, Serialize)]
pub struct PromptArgs {
    /// A system prompt: what the model is told before the conversation.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["ids", "raw"], allow_hyphen_values = true, value_parser = argument)]
    system: Option<String>,
    /// Answer without thinking, for models whose chat template can switch thinking off (Qwen3).
    #[arg(long, conflicts_with_all = ["ids", "raw"])]
    #[serde(rename = "think", skip_serializing_if = "is_off", serialize_with = "negated")]
    no_think: bool,
    /// The prompt as token ids, separated by commas or blanks; needs no tokenizer.
    #[arg(long, value_name = "IDS", value_parser = ids)]
    ids: Option<Ids>,
    /// Take the prompt as it is, without the chat template.
    #[arg(long, conflicts_with = "ids")]
    #[serde(skip_serializing_if = "is_off")]
    raw: bool,
    /// Go on past the end-of-sequence token, for measurements.
    #[arg(long)]
    #[serde(skip_serializing_if = "is_off")]
    ignore_eos: bool,
    /// The text that a probe appends; it ends in </think>.
    #[arg(long, value_name = "TEXT")]
    probe_text: Option<String>,
    /// Which layers and heads share a kept set: shared (all of them), layer or head [default: shared].
    #[arg(long, value_name = "SCOPE", value_parser = parsed::<Scope>)]
    scope: Option<Scope>,
    /// The layers whose attention counts in a shared set: all, or numbers and ranges such as 0-3,7 [default: the
    /// choice of `calibrate` for this model, else all].
    #[arg(long, value_name = "LAYERS", value_parser = parsed::<Layers>)]
    layers: Option<Layers>,
    /// Whether each head's scores are brought to one scale before they are averaged: none or per-head [default:
    /// none].
    #[arg(long, value_name = "HOW", value_parser = parsed::<Normalise>)]
    normalise: Option<Normalise>,
    /// The positions of kept keys after an eviction: original, or compact (consecutive) [default: original].
    #[arg(long, value_name = "WHERE", value_parser = parsed::<Positions>)]
    positions: Option<Positions>,
    #[arg(long, value_name = "RULE", value_parser = parsed::<Boundaries>, help = steps_help())]
    steps: Option<Boundaries>,
}

/// What `run` and `calibrate` take.
#[derive(Debug, clap::Args, Serialize)]
pub struct PruningArgs {
    #[arg(long, value_name = "N", help = max_new_tokens_help())]
    max_new_tokens: Option<usize>,
    #[arg(long, value_name = "NAME", value_parser = parsed::<PolicyRef>, help = policy_help())]
    policy: Option<PolicyRef>,
    #[arg(long, value_name = "BUDGET", value_parser = parsed::<Budget>, help = budget_help())]
    budget: Option<Budget>,
    #[arg(long, value_name = "N", help = window_help())]
    window: Option<usize>,
    #[arg(long, value_name = "P", help = probe_every_help())]
    probe_every: Option<usize>,
    /// The seed of sampling and of the policies that evict at random [default: drawn anew, and shown].
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    sampling: SamplingArgs,
}

/// How tokens are chosen.
#[derive(Debug, clap::Args, Serialize)]
#[command(next_help_heading = "Sampling (default: as the model's files recommend; greedy where they do not)")]
struct SamplingArgs {
    /// Always the most likely token.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    #[serde(skip_serializing_if = "is_off")]
    greedy: bool,
    /// Divides the logits; 0 is --greedy.
    #[arg(long, value_name = "T", value_parser = finite)]
    temperature: Option<f32>,
    /// Only the K most likely tokens, at most 128; 0 or -1: all.
    #[arg(long, value_name = "K")]
    top_k: Option<i64>,
    /// Only the fewest tokens that reach this probability together.
    #[arg(long, value_name = "P", value_parser = finite)]
    top_p: Option<f32>,
    /// Only tokens at least this share as likely as the most likely one.
    #[arg(long, value_name = "P", value_parser = finite)]
    min_p: Option<f32>,
    /// Above 1, tokens of the prompt and of the text so far become less likely.
    #[arg(long, value_name = "R", value_parser = finite)]
    repetition_penalty: Option<f32>,
}

/// The request that a group of options describes.
///
/// # Errors
/// [`ErrorKind::Internal`] for an option that is no field of a request.
pub fn request(options: &impl Serialize) -> Result<Request> {
    let failed = |e| Error::new(ErrorKind::Internal, "the options make no request").found(e);
    serde_json::from_value(serde_json::to_value(options).map_err(failed)?).map_err(failed)
}

/// The request in a file, or on stdin for `-`.
///
/// # Errors
/// When it cannot be read, or is no request.
pub fn read_request(path: &Path) -> Result<Request> {
    if path.as_os_str() == "-" {
        return Request::from_json(&super::stdin::read_prompt()?).map_err(|e| e.at("stdin"));
    }
    let failed = |e| Error::new(ErrorKind::Io, "the request cannot be read").at(path.display()).found(e);
    let bytes = std::fs::read(path).map_err(failed)?;
    let text = text::decode(bytes).map_err(|(at, found)| {
        Error::new(ErrorKind::Input, "the request is not UTF-8")
            .at(format!("{}, byte {at}", path.display()))
            .found(found)
    })?;
    Request::from_json(&text).map_err(|e| e.at(path.display()))
}

/// Element types that a KV cache may have: the parser of `--kv`.
pub fn kv(text: &str) -> Result<Dtype, String> {
    Dtype::for_cache(text).map_err(|e| e.to_string())
}

/// Refuses a context without positions.
///
/// # Errors
/// For 0.
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

/// Token ids. A type of its own: clap takes a list for an option that is given several times.
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

fn parsed<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: Error| e.to_string())
}

/// JSON has no number for these, and no setting has a use for them.
fn finite(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())?;
    if number.is_finite() { Ok(number) } else { Err("a finite number is expected: this is out of range".into()) }
}

fn argument(given: &str) -> Result<String, std::convert::Infallible> {
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
        "Generate at most so many tokens [default: {MAX_NEW_TOKENS_THINKING} with a model that thinks, else {MAX_NEW_TOKENS}]"
    )
}

fn budget_help() -> String {
    let default = Budget::default();
    format!(
        "How much to keep: tokens:N or ratio:R (of the thinking); how much to evict: score-sum:K or share:F (of its importance) \
         [default: {default}]"
    )
}

fn policy_help() -> String {
    let policies = policy::POLICIES.iter().map(|p| format!("{}: {}", p.name(), p.summary()));
    let list = policies.collect::<Vec<_>>().join("; ");
    format!("Which thoughts are evicted [default: {}]. {list}", PolicyRef::default())
}

fn steps_help() -> String {
    format!(
        "Where steps of the thinking begin: {} [default: {}]",
        listed(&Boundaries::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>()),
        Boundaries::default()
    )
}

fn listed(values: &[impl Display]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn window_help() -> String {
    let (general, own) = (policy::DEFAULT_WINDOW, builtin::WINDOW);
    format!("Latest tokens that are never evicted [default: {general}; {own} with the built-in model]")
}

fn probe_every_help() -> String {
    let (general, own) = (probe::DEFAULT_PROBE_EVERY, builtin::PROBE_EVERY);
    format!("Thinking tokens from one probe to the next [default: {general}; {own} with the built-in model]")
}
