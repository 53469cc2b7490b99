//! Runs one request and shows what comes of it; what `run --json` prints.
use std::sync::atomic::{AtomicBool, Ordering};

use secateur::Result;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, Event, Prompt, RunResult};
use secateur::policy::Role;
use secateur::settings::Settings;
use serde_json::json;

use super::screen::{self, Screen};
use super::signals;

/// Runs the prompt and shows what comes. `answer_only`: of the text only the answer is shown.
///
/// # Errors
/// What [`Engine::run`] refuses. What fails after the first token is in the result.
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
    let mut on = |event: Event<'_>| match event {
        Event::Start { prompt_ids } => {
            screen.start(prompt_ids.len(), slot_bytes);
            // A run clears the flag. A signal that came just before it must still count.
            if signals::received().is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        Event::Token { text, role, .. } => {
            if role == Role::Thinking {
                thoughts.push(text.to_string());
            }
            let shown = match role {
                _ if !answer_only => text,
                // Blank space before its first word is no part of an answer.
                Role::Answer if !begun => text.trim_start(),
                Role::Answer => text,
                _ => "",
            };
            begun |= answer_only && !shown.is_empty();
            if let Err(e) = screen.token(shown, role) {
                // The reader of stdout is gone, so further tokens serve nothing.
                broken.get_or_insert(e);
                stop.store(true, Ordering::Relaxed);
            }
        }
        Event::Probe(probe) => {
            screen.probe(probes, probe, &thoughts);
            probes += 1;
        }
        Event::Repetition { .. } => {
            let stop = if screen.stops_by_ctrl_c() { "Ctrl-C stops it; " } else { "" };
            screen.note(&format!(
                "the text has begun to repeat itself: {stop}a larger --budget, or --repetition-penalty 1.1, may help"
            ));
        }
        _ => {}
    };
    let result = pollster::block_on(engine.run(prompt, settings, &mut on));
    let ended = screen.end_text();
    // What was generated until then is not lost with it.
    result.map(|mut result| {
        let failed = broken.or(ended.err()).and_then(|e| super::stdout_failed(&e).err());
        result.error = result.error.or(failed);
        result
    })
}

/// What `--json` prints. Durations are whole microseconds, sizes are bytes, and `bytes` are those at the end of the
/// run.
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
        "stop_reason": trace.stop_reason,
        "timings": {
            "load_us": load_us,
            "prefill_us": t.prefill_us,
            "decode_us": t.decode_us,
            "probe_us": t.probe_us,
            "tokens_per_second": screen::tokens_per_second(t),
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
