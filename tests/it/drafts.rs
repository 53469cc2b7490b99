//! Drafts change no bit: the same tokens, the same measurements of policies, the same evictions as without them.
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, Event, LoadOptions, Prompt, RunResult, Settings};
use secateur::policy::{Budget, Full, H2o, LastAttention, Positions, Random, SnapKv, ThinkClearly};
use secateur::sampling::Sampling;
use secateur::trace::{StopReason, Trace};
use secateur::{Dtype, ModelSource, PolicyRef, builtin};

use crate::common::*;

/// A model on a device, with room for `sequences`.
fn engine(model: &str, device: &ComputeDevice, sequences: usize, context: usize) -> Engine {
    let source = match model {
        "" => builtin::source(),
        name if name.starts_with("gguf") => ModelSource::open(directory(name).join("model.gguf")).expect("committed"),
        name => ModelSource::directory(directory(name)).expect("committed"),
    };
    let options = LoadOptions { kv: Dtype::F16, context: Some(context), sequences, weights: None };
    Engine::load(&source, model, device, &options, &mut |_, _| ()).expect("a good model")
}

/// What must not depend on drafts: all of a trace but the number of drafts, times, and bytes.
fn essence(trace: &Trace) -> String {
    let mut trace = trace.clone();
    trace.settings.draft = 0;
    trace.totals = secateur::trace::Totals {
        prefill_us: 0,
        decode_us: 0,
        probe_us: 0,
        peak_kv_bytes: 0,
        draft_steps: 0,
        ..trace.totals
    };
    let mut json: serde_json::Value = serde_json::from_str(&trace.to_json().expect("JSON")).expect("JSON");
    for probe in json["probes"].as_array_mut().expect("a list") {
        let probe = probe.as_object_mut().expect("an object");
        probe.retain(|name, _| name != "timings" && !name.contains("bytes"));
    }
    json.to_string()
}

fn ids(trace: &Trace) -> Vec<u32> {
    trace.tokens.iter().map(|token| token.id).collect()
}

fn drawn(temperature: f32) -> Sampling {
    Sampling { temperature, top_p: 0.95, ..Sampling::GREEDY }
}

fn run(engine: &mut Engine, prompt: &Prompt, settings: &Settings) -> RunResult {
    let result = pollster::block_on(engine.run(prompt, settings, &mut |_| ())).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    result
}

fn pruned(policy: PolicyRef, budget: Budget) -> Settings {
    Settings { policy, budget, window: 8, probe_every: 16, max_new_tokens: 150, ..Settings::default() }
}

/// The settings of single runs: every policy that drafts may be combined with, greedy and drawn, both ways of counting
/// positions, and each way in which a run can end.
fn single_runs() -> Vec<Settings> {
    let clearly = || pruned(ThinkClearly.into(), Budget::Ratio(0.5));
    vec![
        Settings { max_new_tokens: 200, policy: Full.into(), ..Settings::default() },
        Settings { sampling: drawn(0.8), seed: 5, max_new_tokens: 200, policy: Full.into(), ..Settings::default() },
        clearly(),
        Settings { sampling: drawn(0.6), seed: 9, positions: Positions::Compact, ..clearly() },
        Settings { sampling: drawn(1.0), seed: 3, budget: Budget::Tokens(24), ..clearly() },
        Settings { seed: 4, ..pruned(Random.into(), Budget::Tokens(20)) },
        pruned(LastAttention.into(), Budget::Ratio(0.7)),
        Settings { max_thinking_tokens: Some(30), max_answer_tokens: Some(11), ..clearly() },
        Settings { ignore_eos: true, max_new_tokens: 97, ..clearly() },
    ]
}

/// On the CPU all runs with all models and 1, 3 and 7 drafts; on software GPUs, which take a hundred times as long,
/// some.
#[test]
fn drafts_change_no_bit() {
    let _guard = beside_others();
    let (mut compared, mut saved) = (0, 0);
    for (m, model) in ["", "qwen2-f16", "gguf-llama-q4", "qwen3moe-bf16"].into_iter().enumerate() {
        for device in devices() {
            let on_cpu = device.info.backend == "cpu";
            let mut engine = engine(model, device, 1, 512);
            let prompt = match model {
                "" => Prompt::Chat(builtin::EXAMPLE.into()),
                _ => Prompt::Ids((0..40).map(|i| (i * 7 + i * i) % 90 + 3).collect()),
            };
            // Without a tokenizer there is no probe.
            let probes = engine.tokenizer().is_ok();
            let runs = single_runs().into_iter().filter(|s| probes || !s.policy.needs().probes());
            let runs: Vec<Settings> = match on_cpu {
                true => runs.collect(),
                // The full cache, and one run that prunes and draws.
                false => runs.filter(|s| s.sampling.temperature > 0.0).map(shortened).take(2).collect(),
            };
            for settings in runs {
                let plain = run(&mut engine, &prompt, &settings).trace;
                assert_eq!(plain.totals.draft_steps, 0);
                for draft in if on_cpu { vec![1, 3, 7] } else { vec![[3, 7, 2, 4][m]] } {
                    let what = format!("{model:?} on {}, {draft} drafts, {settings:?}", device.info.name);
                    let found = run(&mut engine, &prompt, &Settings { draft, ..settings.clone() }).trace;
                    assert_eq!(found.settings.draft, draft, "{what}");
                    assert_eq!(essence(&found), essence(&plain), "{what}");
                    let (steps, tokens) = (found.totals.draft_steps, found.totals.generated_tokens);
                    assert!(steps > 0, "{what}: no step had drafts");
                    saved += tokens.saturating_sub(steps);
                    compared += 1;
                }
            }
        }
    }
    println!("{saved} steps saved in {compared} runs");
    assert!(compared >= 3 * 4 * 6 + 4 * 2 * (devices().len() - 1) - 8, "{compared} runs");
    assert!(saved > 1000, "{saved} steps saved in {compared} runs");
}

fn shortened(settings: Settings) -> Settings {
    Settings { max_new_tokens: settings.max_new_tokens.min(60), ..settings }
}

/// Side by side with others, which have drafts or none, come later, end earlier, or are cancelled.
#[test]
fn neighbours_do_not_change_what_is_drafted() {
    let _guard = beside_others();
    for device in two() {
        let mut engine = engine("", device, 3, 512);
        let questions = [
            "a=1 b=2 c=a+b c?",
            builtin::EXAMPLE,
            "a=3 b=a+1 b?",
            builtin::EXAMPLE,
            "a=5 a?",
            "a=2 b=4 c=a+b c?",
            "a=7 b=a-2 b?",
        ];
        let clearly = shortened(pruned(ThinkClearly.into(), Budget::Ratio(0.5)));
        let settings = [
            Settings { draft: 3, ..clearly.clone() },
            Settings { draft: 1, sampling: drawn(0.9), seed: 8, ..clearly.clone() },
            clearly.clone(),
            Settings { draft: 7, policy: Full.into(), ignore_eos: true, max_new_tokens: 90, ..clearly.clone() },
            Settings { draft: 2, max_new_tokens: 1, ..clearly.clone() },
            // These have no drafts, because the cache records something of each of their tokens.
            Settings { policy: H2o.into(), ..clearly.clone() },
            Settings { policy: SnapKv.into(), ..clearly },
        ];
        let requests: Vec<(Prompt, Settings)> =
            questions.iter().zip(settings).map(|(q, s)| (Prompt::Chat((*q).into()), s)).collect();
        let alone: Vec<String> = requests
            .iter()
            .map(|(prompt, settings)| {
                essence(&run(&mut engine, prompt, &Settings { draft: 0, ..settings.clone() }).trace)
            })
            .collect();
        let mut batch = engine.batch();
        for (prompt, settings) in &requests {
            batch.add(prompt, settings).expect("it can run");
        }
        let ended = pollster::block_on(batch.run(&mut |_, _| ()));
        assert_eq!(ended.len(), requests.len());
        for (request, result) in ended {
            let result = result.expect("it runs");
            assert!(result.error.is_none(), "{:?}", result.error);
            assert_eq!(essence(&result.trace), alone[request], "request {request} on {}", device.info.name);
        }
        // A request that comes while another one has steps under way, and one that is cancelled then.
        let mut batch = engine.batch();
        let add = |batch: &mut secateur::engine::Batch<'_>, i: usize| {
            batch.add(&requests[i].0, &requests[i].1).expect("it can run")
        };
        let (long, mut later, mut ended) = (add(&mut batch, 3), Vec::new(), Vec::new());
        let mut turns = 0;
        while !batch.is_idle() {
            turns += 1;
            if turns % 4 == 0 && later.len() < 3 {
                later.push(add(&mut batch, later.len()));
            }
            if later.len() == 3 && !ended.is_empty() {
                batch.cancel(long);
            }
            ended.extend(pollster::block_on(batch.step(&mut |_, _| ())));
        }
        assert_eq!(ended.len(), 4);
        for (request, result) in ended {
            let trace = result.expect("it runs").trace;
            match later.iter().position(|later| *later == request) {
                Some(i) => assert_eq!(essence(&trace), alone[i], "request {i} on {}", device.info.name),
                None => {
                    let whole = ids(&run(&mut engine, &requests[3].0, &requests[3].1).trace);
                    assert!(whole.starts_with(&ids(&trace)), "cancelled: {:?}", trace.stop_reason);
                }
            }
        }
    }
}

/// A context that is too short for the answer, and one that is too short for the drafts of the last step.
#[test]
fn a_context_that_ends_ends_drafts_too() {
    let _guard = beside_others();
    for device in two() {
        for context in [60, 61, 62, 64, 67] {
            let mut engine = engine("qwen2-f16", device, 1, context);
            let prompt = Prompt::Ids((0..40).map(|i| i * 3 % 90 + 3).collect());
            let settings = Settings { policy: Full.into(), ignore_eos: true, ..Settings::default() };
            let plain = run(&mut engine, &prompt, &settings).trace;
            assert_eq!(plain.stop_reason, StopReason::ContextFull);
            for draft in [1, 4, 7] {
                let found = run(&mut engine, &prompt, &Settings { draft, ..settings.clone() }).trace;
                assert_eq!(essence(&found), essence(&plain), "context {context}, {draft} drafts");
            }
        }
    }
}

/// Events come in the same order with the same text, and a thought that a caller ends in the middle ends.
#[test]
fn a_stream_with_drafts_has_the_same_events() {
    let _guard = beside_others();
    let mut engine = engine("", &ComputeDevice::cpu(), 1, 512);
    let prompt = Prompt::Chat(builtin::EXAMPLE.into());
    let mut streamed = |draft: usize| {
        let mut events = Vec::new();
        let mut on = |event: Event<'_>| match event {
            Event::Token { index, id, text, role, .. } => events.push(format!("{index} {id} {text:?} {role:?}")),
            Event::Probe(probe) => events.push(format!("probe after {}: {:?}", probe.at_token, probe.evicted)),
            _ => (),
        };
        let settings = Settings { draft, ..pruned(ThinkClearly.into(), Budget::Ratio(0.5)) };
        let result = pollster::block_on(engine.run(&prompt, &settings, &mut on)).expect("it runs");
        (events, result.text)
    };
    let plain = streamed(0);
    assert!(plain.0.iter().any(|event| event.starts_with("probe")), "{plain:?}");
    assert_eq!(streamed(3), plain);

    let settings = Settings { draft: 5, ..pruned(ThinkClearly.into(), Budget::Ratio(0.5)) };
    let mut batch = engine.batch();
    let request = batch.add(&prompt, &settings).expect("it can run");
    let mut ended = Vec::new();
    let mut tokens = 0;
    while !batch.is_idle() {
        let mut on = |_, event: Event<'_>| tokens += usize::from(matches!(event, Event::Token { .. }));
        ended.extend(pollster::block_on(batch.step(&mut on)));
        if tokens > 20 {
            batch.end_thinking(request);
        }
    }
    let trace = ended.pop().expect("it ended").1.expect("it runs").trace;
    assert!(trace.tokens.iter().any(|token| token.forced), "the engine has to write the closing tag");
}
