//! A run as the page sees it while it is under way: each [`Event`] of the engine as JSON, and what a model is.
//!
//! The page has two engines, the one in the browser and `secateur serve`. Both make their events here, so that the
//! page draws the same with either of them.
use serde_json::{Value, json};

use super::html;
use crate::device::{ComputeDevice, DeviceBytes};
use crate::engine::{Engine, Event, RunResult};
use crate::policy::{POLICIES, Role};
use crate::trace::Step;

/// The events of one run. They are, each with a `type`:
/// - `{type: "start", prompt_tokens, notes, bytes_in_use, bytes_reserved}`, with `notes` what a person should know
///   about how the request was resolved, as sentences
/// - `{type: "token", id, text, thinking, role}`, with `role` as in a trace; its tags belong to the thinking
/// - `{type: "probe", at_token, thinking_tokens, evicted, cached_before, cached_after, steps, map, budget_missed,
///   probe_us, bytes_in_use, bytes_reserved}`, with `evicted` as ranges `[start, end)` of bytes in the UTF-8 of all
///   the tokens' text so far. `steps` are `{start, end, tokens, cached, importance, evicted}`, with the same kind of
///   range, and with `importance` `null` where the policy measures none. `map` is the attention of `</think>` in the
///   form that the report draws, or `null`; `budget_missed` is `{asked, kept}` or `null`
/// - `{type: "note", text}`, with a sentence about the run for a person; the last one may come after
///   the last token
/// - `{type: "done", stop_reason, thinking_unfinished, tokens_per_second, tail, message, totals, bytes_in_use,
///   bytes_reserved}`, with `tail` what an unfinished character left, `message` how a conversation continues with
///   this answer ([`RunResult::message`]), and `totals` those of the trace, with
///   `probability_missed`
/// - `{type: "partial", json}` after it, with the trace of a run that failed after it had begun
#[derive(Debug, Default)]
pub(crate) struct RunEvents {
    notes: Vec<String>,
    prompt_tokens: usize,
    /// The byte at which each token's text ends in the text so far.
    ends: Vec<usize>,
    /// The indices of the thinking tokens. The steps consist of these.
    thoughts: Vec<usize>,
    /// Text that is sent with the next token, or at the end with the tail.
    rest: String,
}

impl RunEvents {
    /// The events of a run whose request was resolved with these notes.
    pub fn new(notes: Vec<String>) -> Self {
        Self { notes, ..Self::default() }
    }

    /// Converts an event of the engine, which runs on `device`. `None` for an event that is sent together with the
    /// next one.
    pub fn event(&mut self, event: &Event<'_>, device: &ComputeDevice) -> Option<Value> {
        match event {
            Event::Start { prompt_ids } => {
                self.prompt_tokens = prompt_ids.len();
                let notes = std::mem::take(&mut self.notes);
                let start = json!({"type": "start", "prompt_tokens": self.prompt_tokens, "notes": notes});
                Some(with_bytes(start, device.bytes()))
            }
            Event::Rest { text, .. } => {
                self.rest.push_str(text);
                None
            }
            Event::Token { id, text, role, .. } => {
                let text = std::mem::take(&mut self.rest) + text;
                if *role == Role::Thinking {
                    self.thoughts.push(self.ends.len());
                }
                self.ends.push(self.end() + text.len());
                let thinking = matches!(role, Role::Thinking | Role::ThinkOpen | Role::ThinkClose);
                Some(json!({"type": "token", "id": id, "text": text, "thinking": thinking, "role": role}))
            }
            Event::Repetition { .. } => {
                let text = "the text has begun to repeat itself; if tokens were evicted, a larger `budget` may help";
                Some(json!({"type": "note", "text": text}))
            }
            Event::Probe(probe) => {
                let tokens = probe.evicted.iter().map(|position| *position as usize - self.prompt_tokens);
                let probe = json!({
                    "type": "probe",
                    "at_token": probe.at_token,
                    "thinking_tokens": probe.thinking_tokens,
                    "evicted": byte_ranges(tokens, &self.ends),
                    "cached_before": probe.cached_before,
                    "cached_after": probe.cached_after,
                    "steps": steps(&probe.steps, &self.thoughts, &self.ends),
                    "map": html::map(probe),
                    "budget_missed": probe.infeasible,
                    "probe_us": probe.timings.probe_us + probe.timings.plan_us + probe.timings.gather_us,
                });
                Some(with_bytes(probe, device.bytes()))
            }
        }
    }

    /// The events at the end of the run.
    pub fn ending(&self, result: &RunResult) -> Vec<Value> {
        let totals = &result.trace.totals;
        let done = json!({
            "type": "done",
            "stop_reason": result.trace.stop_reason,
            "thinking_unfinished": result.thinking_unfinished,
            "tokens_per_second": number(totals.tokens_per_second()),
            "tail": result.text.get(self.end()..).unwrap_or(""),
            "message": result.message(),
            "totals": totals,
        });
        let mut events: Vec<Value> =
            totals.sampling_note().map(|text| json!({"type": "note", "text": text})).into_iter().collect();
        events.push(with_bytes(done, result.bytes));
        if result.error.is_some()
            && let Ok(trace) = result.trace.to_json()
        {
            events.push(json!({"type": "partial", "json": trace}));
        }
        events
    }

    /// Bytes of the text so far.
    fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }
}

/// The facts about a model that the page receives: `{model, adapter, backend, policies, context, slot_bytes,
/// most_slots, suggested}`. `context` is the number of positions that the model is loaded for; `slot_bytes` are the
/// bytes of one cached token, and `most_slots` are the cached tokens of which one buffer of the device can hold a
/// layer, or `null` on the CPU, which has no such limit. `suggested` is `{prompt}`, a prompt that the model can
/// answer, or `{}`.
pub(crate) fn model_info(engine: &Engine, name: &str, suggested: Option<&str>) -> Value {
    let device = &engine.model().device().info;
    json!({
        "model": name,
        "adapter": device.name,
        "backend": device.backend,
        "policies": POLICIES.iter().map(|p| p.name()).collect::<Vec<_>>(),
        "context": engine.context(),
        "slot_bytes": engine.slot_bytes(),
        "most_slots": (device.max_binding_bytes < u64::MAX).then(|| engine.most_slots()),
        "suggested": suggested.map_or_else(|| json!({}), |prompt| json!({"prompt": prompt})),
    })
}

/// A number as JSON, which has no NaN.
pub(crate) fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// The steps with the bytes of their text. They divide the tokens of the thinking, `thoughts`, among themselves, in
/// order.
fn steps(steps: &[Step], thoughts: &[usize], ends: &[usize]) -> Vec<Value> {
    let mut from = 0;
    let with_range = |step: &Step| {
        let tokens = thoughts.get(from..from + step.tokens)?;
        from += step.tokens;
        let (first, last) = (*tokens.first()?, *tokens.last()?);
        Some(json!({
            "start": if first == 0 { 0 } else { ends[first - 1] },
            "end": ends[last],
            "tokens": step.tokens,
            "cached": step.cached,
            "importance": step.importance,
            "evicted": step.evicted,
        }))
    };
    steps.iter().filter_map(with_range).collect()
}

/// Bytes `[start, end)` that the given tokens, ascending, contributed, neighbours joined and empty ones left out.
fn byte_ranges(tokens: impl Iterator<Item = usize>, ends: &[usize]) -> Vec<[usize; 2]> {
    let mut ranges: Vec<[usize; 2]> = Vec::new();
    for token in tokens {
        let start = if token == 0 { 0 } else { ends[token - 1] };
        let end = ends[token];
        match ranges.last_mut() {
            _ if start == end => {}
            Some(last) if last[1] == start => last[1] = end,
            _ => ranges.push([start, end]),
        }
    }
    ranges
}

fn with_bytes(mut event: Value, bytes: DeviceBytes) -> Value {
    event["bytes_in_use"] = bytes.in_use.into();
    event["bytes_reserved"] = bytes.reserved.into();
    event
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::{LoadOptions, Request};
    use crate::settings::AttentionDetail;
    use crate::trace::Trace;
    use crate::{Error, ErrorKind};

    #[test]
    fn a_run_that_missed_probability_says_so_before_it_is_done() {
        let page = include_str!("../../docs/trace.md");
        let json = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let mut result = RunResult {
            text: String::new(),
            bytes: DeviceBytes::default(),
            kv_bytes: 0,
            answer: String::new(),
            thinking_unfinished: false,
            format_unfinished: false,
            trace: Trace::from_json(json).expect("a trace"),
            missed: 0.0,
            prompt_logprobs: Vec::new(),
            shared_tokens: 0,
            error: None,
        };
        let [done] = &RunEvents::default().ending(&result)[..] else { panic!("one event") };
        assert_eq!((&done["type"], done["totals"].get("probability_missed")), (&json!("done"), None));
        result.trace.totals.probability_missed = Some(0.25);
        let [note, done] = &RunEvents::default().ending(&result)[..] else { panic!("two events") };
        assert_eq!((&note["type"], &done["type"]), (&json!("note"), &json!("done")));
        let said = note["text"].as_str().expect("a sentence");
        assert!(said.starts_with("up to 25.0 % of the probability"), "{said}");
        assert_eq!(done["totals"]["probability_missed"], json!(0.25));
    }

    /// The properties of a typedef of the page's messages.
    fn typed(name: &str) -> BTreeSet<String> {
        let messages = include_str!("../../web/messages.js");
        let typedef = messages.split_once(&format!("@typedef {{object}} {name}\n")).expect(name).1;
        let lines = typedef.lines().take_while(|line| !line.contains("@typedef") && !line.contains("*/"));
        let property = |line: &str| {
            let after_type = line.split_once("@property {")?.1.rsplit_once("} ")?.1;
            let name = after_type.split(' ').next()?;
            Some(name.trim_matches(['[', ']']).to_string())
        };
        lines.filter_map(property).collect()
    }

    /// The page reads the names that its types have, and the events have no other ones.
    #[test]
    fn the_types_of_the_page_are_those_of_the_events() {
        let load = LoadOptions { context: Some(512), ..LoadOptions::default() };
        let (source, device) = (crate::builtin::source(), ComputeDevice::cpu());
        let mut engine =
            Engine::load(&source, "built-in", &device, &load, &mut |_, _| ()).expect("it is in the binary");
        let request = Request {
            budget: Some("tokens:8".parse().expect("a budget")),
            attention: Some(AttentionDetail::Layers),
            seed: Some(1),
            ..Request::prompting(crate::builtin::EXAMPLE)
        };
        let resolved = engine.resolve(&request).expect("a good request");
        let (mut run, mut events) = (RunEvents::new(resolved.notes), Vec::new());
        let mut result = pollster::block_on(engine.run(&resolved.prompt, &resolved.settings, &mut |event| {
            events.extend(run.event(&event, &device));
        }))
        .expect("an answer");
        events.extend(run.event(&Event::Repetition { index: 0 }, &device));
        result.trace.totals.probability_missed = Some(0.25);
        result.error = Some(Error::new(ErrorKind::Device, "lost"));
        events.extend(run.ending(&result));

        let mut seen = BTreeSet::new();
        let mut check = |name: &'static str, value: &Value| {
            let keys: BTreeSet<String> = value.as_object().expect(name).keys().cloned().collect();
            assert_eq!(keys, typed(name), "{name}");
            seen.insert(name);
        };
        for event in &events {
            match event["type"].as_str().expect("a type") {
                "start" => check("StartEvent", event),
                "token" => check("TokenEvent", event),
                "note" => check("NoteEvent", event),
                "partial" => check("PartialEvent", event),
                "done" => {
                    check("DoneEvent", event);
                    check("Totals", &event["totals"]);
                }
                "probe" => {
                    check("ProbeEvent", event);
                    check("ProbedStep", &event["steps"][0]);
                    check("AttentionMap", &event["map"]);
                }
                other => panic!("the page knows no {other}"),
            }
        }
        let mut info = model_info(&engine, "built-in", Some(""));
        // A server adds them.
        info["settings"] = Value::Null;
        check("ModelInfo", &info);
        assert_eq!(seen.len(), 10, "{seen:?}");
    }
}
