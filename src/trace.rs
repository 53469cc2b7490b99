//! The trace of a run: one JSON object that says what was generated, what each probe measured, and what was evicted.
//!
//! # Schema, version 1
//! The fields are those of [`Trace`] and the types below, by name. Conventions:
//! - a **position** is an index into `prompt_ids` followed by `tokens`; it never changes;
//! - a **step** is named by its id, the byte offset at which it begins in the text of the thinking, that is, in the
//!   concatenated texts of the tokens whose role is `thinking`. Bytes that are no UTF-8 count as the model wrote
//!   them, not as `text` shows them. A probe may not know the latest steps of the final text yet;
//! - **importance** is the mean score of a step's cached tokens before the eviction; higher is more important. It is
//!   absent where the policy measures nothing, and where nothing of the step was cached;
//! - in scopes `layer` and `head` a probe has several **kept sets**, listed in `sets`. Its own fields then describe
//!   all of them together: a position is cached while any set holds it, and is evicted by the probe after which no
//!   set holds it; importance is the mean over the sets; slots are those of the longest set;
//! - durations are whole microseconds; sizes are bytes on the device as its allocator reports them.
//!
//! Fields may be added within a version: readers ignore fields that they do not know. A field that is removed or
//! changes its meaning makes a new version, which [`Trace::from_json`] refuses. `docs/trace.md` describes every field
//! for readers in other languages.
//!
//! ```json
//! { "version": 1, "secateur": "0.1.0", "model": "…", "device": "…", "policy": "think-clearly", …,
//!   "prompt_ids": [1, 2], "tokens": [{"id": 7, "text": "Okay", "role": "thinking", "step": 0}, …],
//!   "probes": [{"at_token": 200, "thinking_tokens": 200, "cached_before": 202, "cached_after": 152,
//!               "evicted": [9, 10, …],
//!               "steps": [{"id": 0, "tokens": 31, "cached": 31, "importance": 0.0021, "evicted": 0}, …], …}],
//!   "stop_reason": "eos", "totals": {…} }
//! ```
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use crate::device::DeviceBytes;
use crate::policy::{CacheView, KeepPlan, Outcome, Role, Sets};
use crate::sampling::MOST_CANDIDATES;
use crate::settings::Settings;
use crate::steps::BoundaryCounts;
use crate::text::Stops;
use crate::weights::precision::Precision;
use crate::{Error, ErrorKind, Result};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;

/// Pairs of a kept set and a step that a report can count: a hundred times as many as a thought of 10,000 tokens in
/// steps of 20 has with 36 layers of 8 KV heads.
const MOST_COUNTED: usize = 1 << 24;

/// One run of one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// [`VERSION`]. First in the file.
    pub version: u32,
    /// Version of secateur that wrote it.
    pub secateur: String,
    /// Directory or name of the model.
    pub model: String,
    /// Adapter and backend, or `cpu`.
    pub device: String,
    /// The precision to which the weights were quantized as they were loaded; absent if they had the types of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Precision>,
    /// The settings of the run. Their fields are fields of the trace itself.
    #[serde(flatten)]
    pub settings: Settings,
    /// The prompt, positions from 0.
    pub prompt_ids: Vec<u32>,
    /// The text of the prompt, special tokens included; absent without a tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_text: Option<String>,
    /// Bytes of the keys and values of one slot, all layers together; absent in older traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_bytes: Option<u64>,
    /// How many steps of the final text begin at a keyword, after a paragraph and after a sentence; absent without a
    /// tokenizer and in older traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_boundaries: Option<BoundaryCounts>,
    /// What was generated, positions from `prompt_ids.len()`.
    pub tokens: Vec<Token>,
    /// One per probe, or per plan where the policy needs no probe.
    pub probes: Vec<Probe>,
    /// Why the run ended.
    pub stop_reason: StopReason,
    /// Sums over the run.
    pub totals: Totals,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The id of the token.
    pub id: u32,
    /// What the token adds to the text. Of the tokens of one character, only the last has text.
    pub text: String,
    /// The part of the sequence to which it belongs.
    pub role: Role,
    /// Whether it is a special token or the stop token: no part of what the model says. Older traces lack it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub special: bool,
    /// Id of its step in the final text; thinking tokens only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// Whether the engine wrote it in place of the model, to end the thinking.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

/// One probe and the eviction after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Generated tokens before it.
    pub at_token: usize,
    /// Thinking tokens before it, evicted ones included.
    pub thinking_tokens: usize,
    /// Slots before the eviction.
    pub cached_before: usize,
    /// Slots after it.
    pub cached_after: usize,
    /// Positions evicted by this probe, ascending.
    pub evicted: Vec<u32>,
    /// Every step known at this probe, in order.
    pub steps: Vec<Step>,
    /// The attention of `</think>`, if the run recorded it ([`AttentionDetail`](crate::settings::AttentionDetail)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionMap>,
    /// The kept sets, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<Set>,
    /// Present if so many tokens were protected that the budget could not be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infeasible: Option<Infeasible>,
    /// Where the time went.
    pub timings: Timings,
    /// Device memory before the gather.
    pub bytes_before: DeviceBytes,
    /// Device memory after it.
    pub bytes_after: DeviceBytes,
}

/// A step at one probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Byte offset in the thinking text.
    pub id: usize,
    /// Tokens it has so far, evicted ones included.
    pub tokens: usize,
    /// Tokens in the cache before the eviction.
    pub cached: usize,
    /// Mean score of these cached tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<f32>,
    /// Tokens that this probe evicted.
    pub evicted: usize,
}

/// The attention of the probe's `</think>` to the steps: its softmax weights, averaged over each step's cached
/// tokens.
///
/// The weights of one row sum to 1 over all cached tokens and the probe's own, so a step's share of a row's attention
/// is its mean times its `cached`. Values have three significant digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionMap {
    /// The columns: ids of the steps that had cached tokens before the eviction, ascending.
    pub steps: Vec<usize>,
    /// `[layers][steps]`: the mean over the layer's query heads; `None` where the layer no longer holds any of the
    /// step.
    pub layers: Vec<Vec<Option<f32>>>,
    /// `[layers][query heads][steps]`, with [`AttentionDetail::Heads`](crate::settings::AttentionDetail::Heads).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Vec<Vec<Vec<Option<f32>>>>>,
}

/// One of several kept sets at one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// The layer of the set.
    pub layer: usize,
    /// The KV head of the set, in scope `head`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_head: Option<usize>,
    /// Slots before the eviction.
    pub cached_before: usize,
    /// Positions evicted from it by this probe, ascending.
    pub evicted: Vec<u32>,
}

/// A budget that could not be reached because too many tokens were protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Infeasible {
    /// Thinking tokens that the budget allows.
    pub asked: usize,
    /// Thinking tokens that stayed.
    pub kept: usize,
}

/// Where a probe's time went, in microseconds of wall clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Forwarding the probe, reading its scores back, rolling it back.
    pub probe_us: u64,
    /// Steps, view and plan.
    pub plan_us: u64,
    /// Issuing the gather of the kept slots and freeing the old buffers. The time that the GPU takes for it is part
    /// of the decode step that waits for it.
    pub gather_us: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model wrote an end-of-sequence token.
    Eos,
    /// A text that the request names ended the answer.
    StopString,
    /// A token that the request names ended the answer.
    StopToken,
    /// The answer is complete in the [format](crate::AnswerFormat) that the request names.
    FormatComplete,
    /// The limit on new tokens was reached.
    MaxNewTokens,
    /// The limit on tokens outside the thinking was reached.
    MaxAnswerTokens,
    /// The model's context is full.
    ContextFull,
    /// The user cancelled the run.
    Cancelled,
    /// The run failed. What had been generated until then is in the trace.
    Failed(String),
}

/// Sums over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Of them, tokens of the thinking.
    pub thinking_tokens: usize,
    /// Tokens evicted.
    pub evicted_tokens: usize,
    /// Tokens that complete a run of twelve tokens which the model had written before. Many of them mean that the
    /// model repeats itself, as it may when it has to write evicted thoughts again.
    #[serde(default)]
    pub repeated_tokens: usize,
    /// Most slots at any time.
    pub peak_cached: usize,
    /// Slots when the last token was sampled; of several kept sets, those of the longest. The last token has none,
    /// because it was never forwarded.
    pub final_cached: usize,
    /// Most bytes of keys and values on the device at any time.
    pub peak_kv_bytes: u64,
    /// Time to forward the prompt, in microseconds.
    pub prefill_us: u64,
    /// Time to decode, without probes, in microseconds.
    pub decode_us: u64,
    /// Time for probes, plans and gathers, in microseconds.
    pub probe_us: u64,
    /// The largest share of the probability, from 0 to 1, that the settings allow and that lay outside the candidates
    /// of a draw: [`RunResult::missed`](crate::RunResult::missed). Absent where it is 0, and in older traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability_missed: Option<f32>,
    /// Decode steps with drafts. A step adds at least one token, or none if a probe is due before. Absent without
    /// drafts.
    #[serde(default, skip_serializing_if = "crate::settings::is_zero")]
    pub draft_steps: usize,
}

impl Totals {
    /// A sentence where tokens with more than a thousandth of the probability could not be drawn, because they were not
    /// among the candidates of the sampler.
    pub fn sampling_note(&self) -> Option<String> {
        let percent = 100.0 * self.probability_missed.filter(|missed| *missed > 0.001)?;
        Some(format!(
            "up to {percent:.1} % of the probability that the settings allow lay outside the {MOST_CANDIDATES} candidates \
             of the sampler"
        ))
    }

    /// The number of slots at the end if nothing had been evicted: one for each token but the last, which was only
    /// sampled.
    pub fn forwarded(&self) -> usize {
        match self.generated_tokens.checked_sub(1) {
            Some(before_the_last) => self.prompt_tokens + before_the_last,
            // The run ended within the prompt.
            None => self.final_cached,
        }
    }

    /// Decoded tokens per second, without the time of probes; 0 if nothing was decoded.
    pub fn tokens_per_second(&self) -> f64 {
        // The first token is sampled from the logits of the prefill.
        let decoded = self.generated_tokens.saturating_sub(1);
        if self.decode_us == 0 { 0.0 } else { decoded as f64 / (self.decode_us as f64 / 1e6) }
    }
}

impl Trace {
    /// The text of the answer: what the model wrote outside its thinking, without special tokens and without the text
    /// that ended it.
    pub fn answer(&self) -> String {
        let ended = self.stop_reason == StopReason::Eos;
        // The stop token is the last one; traces from before `special` was recorded do not say that it is special.
        let tokens = &self.tokens[..self.tokens.len().saturating_sub(usize::from(ended))];
        let mut stops = Stops::new(&self.settings.stop, self.settings.include_stop);
        let mut answer = String::new();
        for token in tokens {
            match token.role {
                Role::Answer if !token.special => answer += &stops.push(&token.text),
                Role::Answer => (),
                _ => answer += &stops.rest(),
            }
        }
        answer + &stops.rest()
    }

    /// A sentence where the thinking has few keywords and was cut at other places; see [`BoundaryCounts::fallback`].
    pub fn step_note(&self) -> Option<String> {
        self.step_boundaries?.fallback(self.settings.steps)
    }

    /// One line of JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when an importance or a weight is not finite, which JSON cannot hold.
    pub fn to_json(&self) -> Result<String> {
        // serde_json would write null instead, and the trace could not be read back.
        if let Some(bad) = self.probes.iter().find_map(Probe::infinite) {
            return Err(Error::new(ErrorKind::Internal, "an importance is not a finite number").at("trace").found(bad));
        }
        let failed = |e| Error::new(ErrorKind::Internal, "the trace has no JSON form").found(e);
        serde_json::to_string(self).map_err(failed)
    }

    /// Reads a trace of [`VERSION`] and [checks](Self::check) it.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for text that is no trace, for a trace of another version, and for a trace that
    /// contradicts itself.
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |e: serde_json::Error| Error::new(ErrorKind::Input, "this is not a secateur trace").found(e);
        let Version { version } = serde_json::from_str(text).map_err(wrong)?;
        if version != VERSION {
            return Err(Error::new(ErrorKind::Input, "this trace has another schema version")
                .expected(VERSION)
                .found(version)
                .help("read it with the version of secateur that its field \"secateur\" names"));
        }
        let trace: Self = serde_json::from_str(text).map_err(wrong)?;
        trace.check()?;
        Ok(trace)
    }

    /// Checks that the parts of the trace fit together, as far as readers rely on it.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for probes or steps out of order, for a token that is evicted twice, before it was
    /// written or from outside the thinking, for an attention map whose rows are not as long as its steps, and for
    /// numbers that are too large or out of range.
    pub fn check(&self) -> Result<()> {
        self.settings.sampling.check()?;
        let mut gone = vec![false; self.tokens.len()];
        let mut before = 0;
        for (index, probe) in self.probes.iter().enumerate() {
            let wrong = |what: &str| {
                let e = Error::new(ErrorKind::Input, "this trace contradicts itself");
                Err(e.found(format!("probes[{index}]: {what}")))
            };
            if probe.at_token < before || probe.at_token > self.tokens.len() {
                return wrong("at_token decreases, or exceeds the number of tokens");
            }
            before = probe.at_token;
            if probe.steps.iter().any(|step| step.tokens > self.tokens.len()) {
                return wrong("a step of more tokens than were generated");
            }
            if probe.infinite().is_some() {
                return wrong("an importance or a weight that is too large");
            }
            if probe.cached_before.checked_sub(probe.cached_after).is_none() {
                return wrong("more slots after the eviction than before it");
            }
            for &position in &probe.evicted {
                let token = (position as usize).checked_sub(self.prompt_ids.len()).filter(|t| *t < probe.at_token);
                let Some(token) = token else { return wrong("an evicted position that holds no generated token") };
                if self.tokens[token].role != Role::Thinking || std::mem::replace(&mut gone[token], true) {
                    return wrong("a token evicted twice, or from outside the thinking");
                }
            }
            for position in probe.sets.iter().flat_map(|set| &set.evicted) {
                let token = (*position as usize).checked_sub(self.prompt_ids.len());
                if token.is_none_or(|t| t >= probe.at_token || self.tokens[t].role != Role::Thinking) {
                    return wrong("a position evicted from a set that holds no thinking token");
                }
            }
            if !probe.steps.is_sorted_by(|a, b| a.id < b.id) {
                return wrong("steps are not in order");
            }
            if let Some(map) = &probe.attention {
                let rows = map.layers.iter().chain(map.heads.iter().flatten().flatten());
                let known = |id: &usize| probe.steps.binary_search_by_key(id, |s| s.id).is_ok();
                let heads = map.heads.as_ref().map_or(map.layers.len(), Vec::len);
                if rows.clone().any(|row| row.len() != map.steps.len()) || heads != map.layers.len() {
                    return wrong("an attention map whose rows do not fit its steps and layers");
                }
                if !map.steps.is_sorted_by(|a, b| a < b) || !map.steps.iter().all(known) {
                    return wrong("an attention map of unknown steps");
                }
            }
        }
        let steps = self.tokens.iter().filter_map(|t| t.step);
        // A report counts what each set has of each step.
        let sets = self.probes.iter().flat_map(|probe| &probe.sets);
        let sets: BTreeSet<_> = sets.map(|set| (set.layer, set.kv_head)).collect();
        let distinct = steps.clone().collect::<BTreeSet<_>>().len();
        if sets.len().saturating_mul(distinct) > MOST_COUNTED {
            let e = Error::new(ErrorKind::Input, "this trace has too many sets and steps");
            return Err(e
                .expected(format!("at most {MOST_COUNTED} pairs of a set and a step"))
                .found(format!("{} sets and {distinct} steps", sets.len())));
        }
        if !steps.is_sorted() {
            let e = Error::new(ErrorKind::Input, "this trace contradicts itself");
            return Err(e.found("tokens: their steps are not in order"));
        }
        Ok(())
    }
}

impl Probe {
    /// An importance or a weight that is not finite.
    fn infinite(&self) -> Option<f32> {
        let importances = self.steps.iter().filter_map(|step| step.importance);
        let weights = self.attention.iter().flat_map(AttentionMap::values);
        importances.chain(weights).find(|value| !value.is_finite())
    }
}

/// A row of a readout, and the view of the kept set whose slots it covers. Weights beyond these slots belong to the
/// probe itself and are ignored.
pub type AttentionRow<'a> = (&'a CacheView<'a>, &'a [f32]);

impl AttentionMap {
    /// Averages readouts over steps. `layers[l]` are the rows of a layer, whose mean becomes its row of the map;
    /// `heads[l]` are the rows of its query heads.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for a row that is shorter than its view.
    pub fn from_rows(layers: &[Vec<AttentionRow<'_>>], heads: Option<&[Vec<AttentionRow<'_>>]>) -> Result<Self> {
        let rows = || layers.iter().chain(heads.into_iter().flatten()).flatten();
        if let Some((view, row)) = rows().find(|(view, row)| row.len() < view.tokens().len()) {
            return Err(Error::new(ErrorKind::Internal, "a readout is shorter than the cache")
                .expected(format!("at least {} weights", view.tokens().len()))
                .found(row.len()));
        }
        // A column for each step of which any set holds tokens.
        let steps = rows().next().map_or(&[][..], |(view, _)| view.steps());
        let held = |step: &usize| rows().any(|(view, _)| !view.step_slots(*step).is_empty());
        let columns: Vec<usize> = (0..steps.len()).filter(held).collect();
        let mean_of = |&(view, row): &AttentionRow<'_>, step: usize| {
            let slots = view.step_slots(step);
            let sum: f64 = slots.iter().map(|s| f64::from(row[s.0 as usize])).sum();
            (!slots.is_empty()).then(|| sum / slots.len() as f64)
        };
        let average = |rows: &[AttentionRow<'_>]| {
            let mean = |&step: &usize| {
                let means: Vec<f64> = rows.iter().filter_map(|row| mean_of(row, step)).collect();
                (!means.is_empty()).then(|| three_digits(means.iter().sum::<f64>() / means.len() as f64))
            };
            columns.iter().map(mean).collect::<Vec<Option<f32>>>()
        };
        let each = |rows: &Vec<AttentionRow<'_>>| rows.iter().map(|row| average(&[*row])).collect();
        Ok(Self {
            steps: columns.iter().map(|&s| steps[s].id).collect(),
            layers: layers.iter().map(|rows| average(rows)).collect(),
            heads: heads.map(|heads| heads.iter().map(each).collect()),
        })
    }

    fn values(&self) -> impl Iterator<Item = f32> + '_ {
        self.layers.iter().chain(self.heads.iter().flatten().flatten()).flatten().copied().flatten()
    }
}

/// Three digits are enough for a picture, and a trace may hold a million weights.
fn three_digits(value: f64) -> f32 {
    format!("{value:.2e}").parse().unwrap_or(value as f32)
}

impl Probe {
    /// Records a plan and the views for which it was made, one for each kept set. The engine fills in timings and
    /// bytes, which are 0 here.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the plan was made for other views.
    pub fn record(at_token: usize, sets: &Sets, views: &[CacheView<'_>], plan: &KeepPlan) -> Result<Self> {
        let Some(view) = views.first().filter(|_| views.len() == sets.count()) else {
            return Err(Error::new(ErrorKind::Internal, "the plan to record has other sets than its views")
                .expected(sets.count())
                .found(views.len()));
        };
        let steps = view.steps().len();
        // For each set, what it loses. For each position, how many sets still hold it, and its step.
        let (mut lost, mut held) = (Vec::new(), std::collections::BTreeMap::<u32, (usize, Option<u32>)>::new());
        let (mut importance, mut holders) = (vec![0f64; steps], vec![0usize; steps]);
        let (mut cached_before, mut cached_after) = (0, 0);
        for (set, view) in views.iter().enumerate() {
            let (layer, kv_head) = sets.place(set);
            let (before, tokens) = (plan.cached_before(layer.unwrap_or(0)), view.tokens());
            if before != tokens.len() {
                return Err(Error::new(ErrorKind::Internal, "the plan to record was made for another cache")
                    .expected(tokens.len())
                    .found(before));
            }
            let kept = plan.slots(layer.unwrap_or(0), kv_head.unwrap_or(0));
            (cached_before, cached_after) = (cached_before.max(before), cached_after.max(kept.len()));
            let mut kept = kept.iter().map(|s| s.0 as usize).peekable();
            let mut evicted = Vec::new();
            for (slot, token) in tokens.iter().enumerate() {
                let entry = held.entry(token.position.0).or_insert((0, token.step));
                if kept.next_if_eq(&slot).is_some() {
                    entry.0 += 1;
                } else {
                    evicted.push(token.position.0);
                }
            }
            for (step, mean) in (0..steps).filter_map(|step| Some((step, view.step_importance(step)?))) {
                importance[step] += mean;
                holders[step] += 1;
            }
            lost.push(Set { layer: layer.unwrap_or(0), kv_head, cached_before: before, evicted });
        }
        let (mut cached_of_step, mut evicted_of_step) = (vec![0; steps], vec![0; steps]);
        for (keepers, step) in held.values() {
            if let Some(step) = step {
                cached_of_step[*step as usize] += 1;
                evicted_of_step[*step as usize] += usize::from(*keepers == 0);
            }
        }
        let evicted: Vec<u32> = held.iter().filter(|(_, (keepers, _))| *keepers == 0).map(|(p, _)| *p).collect();
        let step = |(index, info): (usize, &crate::policy::StepInfo)| Step {
            id: info.id,
            tokens: info.tokens,
            cached: cached_of_step[index],
            importance: (holders[index] > 0).then(|| (importance[index] / holders[index] as f64) as f32),
            evicted: evicted_of_step[index],
        };
        Ok(Self {
            at_token,
            thinking_tokens: view.thinking_tokens(),
            cached_before,
            cached_after,
            steps: view.steps().iter().enumerate().map(step).collect(),
            attention: None,
            sets: if views.len() > 1 { lost } else { Vec::new() },
            evicted,
            infeasible: match plan.outcome() {
                Outcome::Infeasible { asked, kept } => Some(Infeasible { asked, kept }),
                Outcome::Met | Outcome::Unbudgeted => None,
            },
            timings: Timings::default(),
            bytes_before: DeviceBytes::default(),
            bytes_after: DeviceBytes::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Trace {
        let token =
            |id, text: &str, role, step| Token { id, text: text.into(), role, special: false, step, forced: false };
        Trace {
            version: VERSION,
            secateur: "0.1.0".into(),
            model: "tiny".into(),
            device: "cpu".into(),
            weights: Some(Precision::Q4),
            settings: Settings {
                sampling: crate::sampling::Sampling { temperature: 0.6, ..Default::default() },
                seed: u64::MAX,
                ..Settings::default()
            },
            prompt_ids: vec![1, 2],
            prompt_text: Some("<|user|>?".into()),
            slot_bytes: Some(64),
            step_boundaries: Some(BoundaryCounts { keywords: 1, ..BoundaryCounts::default() }),
            tokens: vec![
                token(7, "Okay, \"θ’\n", Role::Thinking, Some(0)),
                token(8, "</think>", Role::ThinkClose, None),
                Token { special: true, ..token(9, "<|end|>", Role::Answer, None) },
            ],
            probes: vec![Probe {
                at_token: 1,
                thinking_tokens: 1,
                cached_before: 3,
                cached_after: 2,
                evicted: vec![2],
                steps: vec![
                    Step { id: 0, tokens: 1, cached: 1, importance: Some(0.1), evicted: 1 },
                    Step { id: 9, tokens: 1, cached: 0, importance: None, evicted: 0 },
                ],
                attention: Some(AttentionMap {
                    steps: vec![0],
                    layers: vec![vec![Some(0.1)], vec![None]],
                    heads: Some(vec![vec![vec![Some(0.2)], vec![Some(0.0)]], vec![vec![Some(1e-9)], vec![None]]]),
                }),
                sets: vec![Set { layer: 1, kv_head: Some(0), cached_before: 3, evicted: vec![2] }],
                infeasible: Some(Infeasible { asked: 0, kept: 1 }),
                timings: Timings { probe_us: 5, plan_us: 6, gather_us: 7 },
                bytes_before: DeviceBytes { in_use: 10, reserved: 20 },
                bytes_after: DeviceBytes { in_use: 5, reserved: 8 },
            }],
            stop_reason: StopReason::Failed("###".into()),
            totals: Totals { generated_tokens: 3, ..Totals::default() },
        }
    }

    #[test]
    fn a_trace_survives_json() {
        let trace = example();
        assert_eq!(Trace::from_json(&trace.to_json().unwrap()).unwrap(), trace);
    }

    #[test]
    fn version_1_keeps_its_names() {
        let json: serde_json::Value = serde_json::from_str(&example().to_json().unwrap()).unwrap();
        let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            keys(&json),
            "version secateur model device weights policy budget window probe_every probe_text sampling seed scope layers normalise \
             positions steps max_new_tokens ignore_eos attention prompt_ids prompt_text slot_bytes step_boundaries tokens probes stop_reason totals"
        );
        assert_eq!(keys(&json["tokens"][0]), "id text role step");
        assert_eq!(keys(&json["tokens"][1]), "id text role");
        assert_eq!(keys(&json["tokens"][2]), "id text role special");
        assert_eq!(keys(&json["step_boundaries"]), "keywords paragraphs sentences");
        assert_eq!(
            keys(&json["probes"][0]),
            "at_token thinking_tokens cached_before cached_after evicted steps attention sets infeasible timings \
             bytes_before bytes_after"
        );
        assert_eq!(keys(&json["probes"][0]["attention"]), "steps layers heads");
        assert_eq!(keys(&json["probes"][0]["steps"][0]), "id tokens cached importance evicted");
        assert_eq!(keys(&json["probes"][0]["sets"][0]), "layer kv_head cached_before evicted");
        assert_eq!(keys(&json["probes"][0]["timings"]), "probe_us plan_us gather_us");
        assert_eq!(keys(&json["probes"][0]["bytes_after"]), "in_use reserved");
        assert_eq!(json["tokens"][1]["role"], "think_close");
        assert_eq!(json["stop_reason"]["failed"], "###");
        assert_eq!(serde_json::to_value(StopReason::MaxNewTokens).unwrap(), "max_new_tokens");
    }

    #[test]
    fn a_share_of_the_probability_that_was_missed_is_recorded_and_said() {
        let mut trace = example();
        let without = trace.to_json().unwrap();
        assert!(!without.contains("probability_missed"), "{without}");
        assert_eq!(Trace::from_json(&without).unwrap().totals.probability_missed, None, "as in an older trace");
        trace.totals.probability_missed = Some(0.678);
        let json = trace.to_json().unwrap();
        assert!(json.contains(r#""probability_missed":0.678"#), "{json}");
        assert_eq!(Trace::from_json(&json).unwrap(), trace);
        let note = |probability_missed| Totals { probability_missed, ..Totals::default() }.sampling_note();
        let said =
            "up to 67.8 % of the probability that the settings allow lay outside the 128 candidates of the sampler";
        assert_eq!(note(Some(0.678)).as_deref(), Some(said));
        assert_eq!([note(None), note(Some(0.001))], [None, None]);
    }

    #[test]
    fn other_versions_and_other_files_are_refused_and_new_fields_ignored() {
        let json = example().to_json().unwrap();
        let newer = json.replacen("\"version\":1", "\"version\":2", 1);
        assert!(Trace::from_json(&newer).unwrap_err().to_string().contains("another schema version"));
        for bad in ["", "{}", "[1]", "{\"version\":1}", "{\"version\":\"1\"}", &json[..json.len() - 1]] {
            let e = Trace::from_json(bad).unwrap_err();
            assert!(e.to_string().contains("this is not a secateur trace"), "{bad}: {e}");
        }
        let more = json.replacen("\"version\":1", "\"version\":1,\"later\":{\"x\":[1]}", 1);
        assert_eq!(Trace::from_json(&more).unwrap(), example());
    }

    #[test]
    fn every_field_of_a_trace_is_a_row_of_its_documentation() {
        let documented = include_str!("../docs/trace.md");
        let trace = serde_json::to_value(example()).unwrap();
        for field in trace.as_object().unwrap().keys() {
            assert!(documented.contains(&format!("| `{field}` |")), "docs/trace.md has no row for `{field}`");
        }
        let all = Totals { probability_missed: Some(0.5), ..Totals::default() };
        for field in serde_json::to_value(all).unwrap().as_object().unwrap().keys() {
            assert!(
                documented.contains(&format!("| `{field}` |")),
                "docs/trace.md has no row for `{field}` of `totals`"
            );
        }
    }

    #[test]
    fn traces_that_contradict_themselves_are_refused() {
        let refused = |change: fn(&mut Trace), part: &str| {
            let mut trace = example();
            change(&mut trace);
            let e = trace.check().unwrap_err().to_string();
            assert!(e.contains("contradicts itself") && e.contains(part), "{e}");
            assert_eq!(Trace::from_json(&trace.to_json().unwrap()).unwrap_err().to_string(), e);
        };
        refused(|t| t.probes[0].evicted = vec![1], "holds no generated token");
        refused(|t| t.probes[0].evicted = vec![3], "holds no generated token");
        refused(|t| t.probes[0].evicted = vec![2, 2], "evicted twice");
        refused(|t| t.probes.push(t.probes[0].clone()), "evicted twice");
        refused(|t| t.tokens[0].role = Role::Answer, "from outside the thinking");
        refused(|t| t.probes[0].at_token = 4, "exceeds the number of tokens");
        refused(|t| t.probes[0].cached_after = 4, "more slots after");
        refused(|t| t.probes[0].sets[0].evicted = vec![3], "from a set");
        refused(|t| t.probes[0].steps.reverse(), "not in order");
        refused(|t| (t.tokens[0].step, t.tokens[1].step) = (Some(9), Some(3)), "tokens: their steps");
        refused(|t| t.probes[0].attention.as_mut().unwrap().layers[0].push(Some(0.0)), "do not fit");
        refused(|t| t.probes[0].attention.as_mut().unwrap().heads.as_mut().unwrap()[1][1].clear(), "do not fit");
        refused(|t| t.probes[0].attention.as_mut().unwrap().heads = Some(vec![]), "do not fit");
        refused(|t| t.probes[0].attention.as_mut().unwrap().steps[0] = 5, "unknown steps");
    }

    #[test]
    fn an_attention_map_averages_each_row_over_each_steps_cached_tokens() {
        use crate::Position;
        use crate::policy::{Budget, CachedToken, StepInfo, ViewParts};
        let tokens = [
            CachedToken::other(Position(0), Role::Prompt),
            CachedToken::thinking(Position(1), 0),
            CachedToken::thinking(Position(4), 2),
            CachedToken::thinking(Position(5), 2),
        ];
        let steps = [StepInfo { id: 0, tokens: 2 }, StepInfo { id: 7, tokens: 1 }, StepInfo { id: 9, tokens: 2 }];
        let parts = ViewParts {
            tokens: &tokens,
            steps: &steps,
            current_step: 2,
            thinking_tokens: 5,
            budget: Budget::default(),
            ..ViewParts::EMPTY
        };
        let view = CacheView::new(parts).unwrap();
        // The last weight of a row is the probe's own.
        let rows = [[0.5, 0.125, 0.0, 0.25, 0.125], [0.1, 0.2, 0.3, 0.4, 0.0], [0.0; 5]];
        let row = |r: usize| (&view, &rows[r][..]);
        let heads = [vec![row(1), row(0)], vec![row(2), row(2)]];
        let map = AttentionMap::from_rows(&[vec![row(0)], vec![row(1)]], Some(&heads)).unwrap();
        assert_eq!(map.steps, [0, 9]);
        assert_eq!(map.layers, [[Some(0.125), Some(0.125)], [Some(0.2), Some(0.35)]]);
        let [some, none] = [[[Some(0.2), Some(0.35)], [Some(0.125); 2]], [[Some(0.0); 2]; 2]];
        assert_eq!(map.heads.unwrap(), [some, none]);
        assert!(AttentionMap::from_rows(&[vec![(&view, &rows[0][..3])]], None).is_err());

        // Two kept sets: one has lost the first step, and a layer's row is the mean of its rows that have something.
        let other = CacheView::new(ViewParts { tokens: &tokens[2..], ..parts }).unwrap();
        let map = AttentionMap::from_rows(&[vec![row(0), (&other, &[0.5, 0.25])], vec![(&other, &[0.5, 0.25])]], None)
            .unwrap();
        assert_eq!(map.steps, [0, 9]);
        assert_eq!(map.layers, [[Some(0.125), Some(0.25)], [None, Some(0.375)]]);
        assert_eq!([three_digits(0.0), three_digits(1.0 / 3.0), three_digits(1.2345e-12)], [0.0, 0.333, 1.23e-12]);
    }

    #[test]
    fn an_importance_that_json_cannot_hold_is_an_error() {
        let mut trace = example();
        trace.probes[0].steps[0].importance = Some(f32::NAN);
        assert!(trace.to_json().is_err());
    }
}
