//! Runs one request and shows the text as it is generated. Also makes the JSON object of `run --json`.
use std::sync::atomic::{AtomicBool, Ordering};

use secateur::Result;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, Event, Prompt, RunResult};
use secateur::policy::Role;
use secateur::settings::Settings;
use serde_json::json;

use super::screen::Screen;
use super::signals;

/// Runs a prompt and shows its tokens and probes on `screen`. With `answer_only`, only the answer is shown.
///
/// # Errors
/// Those of [`Engine::run`]. An error after the first token is returned in the result instead.
pub fn generate(
    engine: &mut Engine,
    prompt: &Prompt,
    settings: &Settings,
    screen: &mut Screen,
    stop: &AtomicBool,
    answer_only: bool,
) -> Result<RunResult> {
    let (mut thoughts, mut probes, mut broken, mut begun) = (Vec::new(), 0, None, false);
    let slot_bytes = engine.slot_bytes();
    let mut show = |event: Event<'_>| match event {
        Event::Start { prompt_ids } => {
            screen.start(prompt_ids.len(), slot_bytes);
            // The engine clears the flag when a run starts. A signal that arrived just before must still stop the
            // run.
            if signals::received().is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        Event::Token { text, role, .. } | Event::Rest { text, role } => {
            // A rest is the end of an earlier token's text, so it does not count as a thinking token.
            if role == Role::Thinking && matches!(event, Event::Token { .. }) {
                thoughts.push(text.to_string());
            }
            let shown = match role {
                _ if !answer_only => text,
                // White space before the first word of the answer is left out.
                Role::Answer if !begun => text.trim_start(),
                Role::Answer => text,
                _ => "",
            };
            begun |= answer_only && !shown.is_empty();
            if let Err(e) = screen.token(shown, role) {
                // Stdout cannot be written, so the run is stopped.
                broken.get_or_insert(e);
                stop.store(true, Ordering::Relaxed);
            }
        }
        Event::Probe(probe) => {
            screen.probe(probes, probe, &thoughts);
            probes += 1;
        }
        Event::Repetition { .. } => screen.repetition(),
        _ => {}
    };
    let result = pollster::block_on(engine.run(prompt, settings, &mut show));
    let ended = screen.end_text();
    // The text so far is returned together with the error.
    result.map(|mut result| {
        let failed = broken.or(ended.err()).and_then(|e| super::stdout_failed(&e).err());
        result.error = result.error.or(failed);
        result
    })
}

/// The JSON object of `--json`. Durations are in whole microseconds and sizes in bytes. `bytes` describes the end of
/// the run.
pub fn object(result: &RunResult, notes: &[String], device: &ComputeDevice, load_us: u64) -> serde_json::Value {
    let trace = &result.trace;
    let t = &trace.totals;
    json!({
        "secateur": trace.secateur,
        "model": trace.model,
        "device": device.info,
        "settings": trace.settings,
        "notes": notes,
        "prompt_ids": trace.prompt_ids,
        "ids": trace.tokens.iter().map(|t| t.id).collect::<Vec<_>>(),
        "text": result.text,
        "answer": result.answer,
        "thinking_unfinished": result.thinking_unfinished,
        "format_unfinished": result.format_unfinished,
        "stop_reason": trace.stop_reason,
        "timings": {
            "load_us": load_us,
            "prefill_us": t.prefill_us,
            "decode_us": t.decode_us,
            "probe_us": t.probe_us,
            "tokens_per_second": t.tokens_per_second(),
        },
        "bytes": {
            "in_use": result.bytes.in_use,
            "reserved": result.bytes.reserved,
            "kv": result.kv_bytes,
            "peak_kv": t.peak_kv_bytes,
        },
        "totals": t,
        "probes": trace.probes.len(),
        "probability_missed": result.missed,
    })
}
