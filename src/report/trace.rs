//! The trace of a run: one JSON object that says what was generated, what each probe saw and what was cut.
//!
//! # Schema, version 1
//! The fields are those of [`Trace`] and the types below, by name. Conventions:
//! - a **position** is an index into `prompt_ids` followed by `tokens`; it never changes;
//! - a **step** is named by its id, the byte offset at which it begins in the text of the thinking, that is in the
//!   concatenated texts of the tokens whose role is `thinking` (bytes that were no UTF-8 count as the model wrote them, whatever
//!   stands for them in `text`); a probe may not yet know the latest step of the final text;
//! - **importance** is the mean score of a step's cached tokens before the eviction; higher is more important; absent where
//!   the policy measures nothing or nothing of the step was cached;
//! - durations are whole microseconds, sizes are bytes on the device as its allocator reports them.
//!
//! Fields may be added within a version: readers ignore what they do not know. A field that changes its meaning or goes makes
//! a new version, which [`Trace::from_json`] refuses.
//!
//! ```json
//! { "version": 1, "secateur": "0.1.0", "model": "…", "device": "…", "policy": "think-clearly", "budget": "ratio:0.75", …,
//!   "prompt_ids": [1, 2], "tokens": [{"id": 7, "text": "Okay", "role": "thinking", "step": 0}, …],
//!   "probes": [{"at_token": 200, "thinking_tokens": 200, "cached_before": 202, "cached_after": 152, "evicted": [9, 10, …],
//!               "steps": [{"id": 0, "tokens": 31, "cached": 31, "importance": 0.0021, "evicted": 0}, …], …}],
//!   "stop_reason": "eos", "totals": {…} }
//! ```
use serde::{Deserialize, Serialize};

use crate::policy::{CacheView, KeepPlan, Outcome, Role};
use crate::{Error, ErrorKind, Result};

/// The version this code writes and reads.
pub const VERSION: u32 = 1;

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
    /// How the run was asked to prune.
    #[serde(flatten)]
    pub settings: Settings,
    /// The prompt, positions from 0.
    pub prompt_ids: Vec<u32>,
    /// What was generated, positions from `prompt_ids.len()`.
    pub tokens: Vec<Token>,
    /// One per probe, or per plan where the policy needs no probe.
    pub probes: Vec<Probe>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Sums over the run.
    pub totals: Totals,
}

/// What decides which tokens go. Its fields stand directly in the trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Name of the policy.
    pub policy: String,
    /// As on the command line: `ratio:0.75`.
    pub budget: String,
    /// Latest tokens that are never evicted.
    pub window: usize,
    /// Thinking tokens from one probe to the next.
    pub probe_every: usize,
    /// What was appended at each probe.
    pub probe_text: String,
    /// Seed of policies that draw lots.
    pub seed: u64,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// What it adds to the text; may be empty where a character takes several tokens, which the last of them then shows.
    pub text: String,
    /// Its part of the sequence.
    pub role: Role,
    /// Id of its step in the final text, for thinking tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
}

/// One probe and what came of it.
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
    /// Present where protection made the budget unreachable.
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
    /// Mean score of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<f32>,
    /// Tokens that this probe evicted.
    pub evicted: usize,
}

/// A budget that protection made unreachable.
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
    /// Issuing the gather of the kept slots and freeing what they leave. The GPU's share of it shows in the decode step
    /// that waits for it.
    pub gather_us: u64,
}

/// Device memory as the allocator reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceBytes {
    /// Held by live tensors.
    pub in_use: u64,
    /// Taken from the device.
    pub reserved: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model wrote an end-of-sequence token.
    Eos,
    /// The limit on new tokens.
    MaxNewTokens,
    /// The model's context is full.
    ContextFull,
    /// The text contained this stop sequence.
    StopSequence(String),
    /// The user.
    Cancelled,
    /// Something failed; what had been generated until then is in the trace.
    Failed(String),
}

/// Sums over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Of them, tokens of the thinking.
    pub thinking_tokens: usize,
    /// Tokens evicted.
    pub evicted_tokens: usize,
    /// Most slots at any time.
    pub peak_cached: usize,
    /// Slots at the end.
    pub final_cached: usize,
    /// Most bytes of keys and values on the device at any time.
    pub peak_kv_bytes: u64,
    /// Forwarding the prompt, in microseconds.
    pub prefill_us: u64,
    /// Decoding, probes excluded, in microseconds.
    pub decode_us: u64,
    /// Probes, plans and gathers, in microseconds.
    pub probe_us: u64,
}

impl Trace {
    /// One line of JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when a number has no JSON form (an importance that is not finite).
    pub fn to_json(&self) -> Result<String> {
        // serde_json would write null, and the trace could not be read back.
        let mut importances = self.probes.iter().flat_map(|p| &p.steps).filter_map(|s| s.importance);
        if let Some(bad) = importances.find(|i| !i.is_finite()) {
            return Err(Error::new(ErrorKind::Internal, "an importance is not a finite number").at("trace").found(bad));
        }
        let failed = |e| Error::new(ErrorKind::Internal, "the trace has no JSON form").found(e);
        serde_json::to_string(self).map_err(failed)
    }

    /// Reads a trace of [`VERSION`].
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for text that is no trace, and for a trace of another version.
    pub fn from_json(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |e: serde_json::Error| Error::new(ErrorKind::Input, "not a secateur trace").found(e);
        let Version { version } = serde_json::from_str(text).map_err(wrong)?;
        if version != VERSION {
            return Err(Error::new(ErrorKind::Input, "this trace has another schema version")
                .expected(VERSION)
                .found(version)
                .help("read it with the secateur that wrote it: its version is in the field \"secateur\""));
        }
        serde_json::from_str(text).map_err(wrong)
    }
}

impl Probe {
    /// Records a plan of scope `shared`; timings and bytes are left at 0 for the engine to fill in.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the plan was not made for this view.
    pub fn record(at_token: usize, view: &CacheView<'_>, plan: &KeepPlan) -> Result<Self> {
        let cached_before = view.tokens().len();
        if plan.cached_before() != cached_before {
            return Err(Error::new(ErrorKind::Internal, "the plan to record was made for another cache")
                .expected(cached_before)
                .found(plan.cached_before()));
        }
        let mut kept = plan.slots(0, 0).iter().map(|s| s.0 as usize).peekable();
        let mut evicted = Vec::new();
        let mut evicted_of_step = vec![0; view.steps().len()];
        for (slot, token) in view.tokens().iter().enumerate() {
            if kept.next_if_eq(&slot).is_none() {
                evicted.push(token.position.0);
                if let Some(step) = token.step {
                    evicted_of_step[step as usize] += 1;
                }
            }
        }
        let step = |(index, info): (usize, &crate::policy::StepInfo)| Step {
            id: info.id,
            tokens: info.tokens,
            cached: view.step_slots(index).len(),
            importance: view.step_importance(index).map(|i| i as f32),
            evicted: evicted_of_step[index],
        };
        Ok(Self {
            at_token,
            thinking_tokens: view.thinking_tokens(),
            cached_before,
            cached_after: cached_before - evicted.len(),
            steps: view.steps().iter().enumerate().map(step).collect(),
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
        let token = |id, text: &str, role, step| Token { id, text: text.into(), role, step };
        Trace {
            version: VERSION,
            secateur: "0.1.0".into(),
            model: "tiny".into(),
            device: "cpu".into(),
            settings: Settings {
                policy: "think-clearly".into(),
                budget: "ratio:0.75".into(),
                window: 64,
                probe_every: 200,
                probe_text: crate::probe::DEFAULT_PROBE_TEXT.into(),
                seed: u64::MAX,
            },
            prompt_ids: vec![1, 2],
            tokens: vec![
                token(7, "Okay, \"θ’\n", Role::Thinking, Some(0)),
                token(8, "</think>", Role::ThinkClose, None),
                token(9, "42", Role::Answer, None),
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
                infeasible: Some(Infeasible { asked: 0, kept: 1 }),
                timings: Timings { probe_us: 5, plan_us: 6, gather_us: 7 },
                bytes_before: DeviceBytes { in_use: 10, reserved: 20 },
                bytes_after: DeviceBytes { in_use: 5, reserved: 8 },
            }],
            stop_reason: StopReason::StopSequence("###".into()),
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
            "version secateur model device policy budget window probe_every probe_text seed prompt_ids tokens probes \
             stop_reason totals"
        );
        assert_eq!(keys(&json["tokens"][0]), "id text role step");
        assert_eq!(keys(&json["tokens"][1]), "id text role");
        assert_eq!(
            keys(&json["probes"][0]),
            "at_token thinking_tokens cached_before cached_after evicted steps infeasible timings bytes_before bytes_after"
        );
        assert_eq!(keys(&json["probes"][0]["steps"][0]), "id tokens cached importance evicted");
        assert_eq!(keys(&json["probes"][0]["timings"]), "probe_us plan_us gather_us");
        assert_eq!(keys(&json["probes"][0]["bytes_after"]), "in_use reserved");
        assert_eq!(json["tokens"][1]["role"], "think_close");
        assert_eq!(json["stop_reason"]["stop_sequence"], "###");
        assert_eq!(serde_json::to_value(StopReason::MaxNewTokens).unwrap(), "max_new_tokens");
    }

    #[test]
    fn other_versions_and_other_files_are_refused_and_new_fields_ignored() {
        let json = example().to_json().unwrap();
        let newer = json.replacen("\"version\":1", "\"version\":2", 1);
        assert!(Trace::from_json(&newer).unwrap_err().to_string().contains("another schema version"));
        for bad in ["", "{}", "[1]", "{\"version\":1}", "{\"version\":\"1\"}", &json[..json.len() - 1]] {
            let e = Trace::from_json(bad).unwrap_err();
            assert!(e.to_string().contains("not a secateur trace"), "{bad}: {e}");
        }
        let more = json.replacen("\"version\":1", "\"version\":1,\"later\":{\"x\":[1]}", 1);
        assert_eq!(Trace::from_json(&more).unwrap(), example());
    }

    #[test]
    fn an_importance_that_json_cannot_hold_is_an_error() {
        let mut trace = example();
        trace.probes[0].steps[0].importance = Some(f32::NAN);
        assert!(trace.to_json().is_err());
    }
}
