//! The whole path on every adapter: the engine's own decode, probe and prune, held against the same run on the twins.
mod common;

use secateur::engine::{Engine, LoadOptions, Prompt, RunOptions, RunResult};
use secateur::kernels::Words;
use secateur::report::trace::StopReason;
use secateur::sampling::Sampling;
use secateur::weights::ModelSource;

fn engine(device: &secateur::device::ComputeDevice, with_text: bool) -> Engine {
    engine_of(device, with_text, 1)
}

fn engine_of(device: &secateur::device::ComputeDevice, with_text: bool, sequences: usize) -> Engine {
    let dir = format!("{}/tests/golden/qwen2-f16", env!("CARGO_MANIFEST_DIR"));
    let directory = ModelSource::directory(&dir).expect("committed");
    let mut names = vec!["config.json", "generation_config.json", "model.safetensors"];
    if with_text {
        names.extend(["tokenizer.json", "tokenizer_config.json"]);
    }
    let files = names.into_iter().map(|n| (n, directory.read(n).expect("committed").to_vec()));
    let source = ModelSource::memory(files);
    let options = LoadOptions { kv: Words::F32, context: Some(2048), sequences };
    Engine::load(&source, "qwen2-f16", device, &options, &mut |_, _| ()).expect("a good model")
}

fn run(engine: &mut Engine, prompt: &Prompt, options: &RunOptions) -> RunResult {
    let result = pollster::block_on(engine.run(prompt, options, &mut |_| ())).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    result
}

fn ids(result: &RunResult) -> Vec<u32> {
    result.trace.tokens.iter().map(|t| t.id).collect()
}

/// Probes happen, something goes, and the first evictions are those of the twins; ids equal as long as evictions are.
#[test]
fn pruning_on_every_adapter_is_what_it_is_on_the_twins() {
    let prompt = Prompt::Chat("What is 12 + 30?".into());
    for policy in ["think-clearly", "random"] {
        let options = RunOptions {
            max_new_tokens: 340,
            policy: policy.into(),
            budget: "tokens:60".parse().expect("a budget"),
            window: 16,
            probe_every: 60,
            ignore_eos: true,
            ..RunOptions::default()
        };
        let mut expected: Option<RunResult> = None;
        let mut compared = 0;
        for device in common::devices() {
            let result = run(&mut engine(device, true), &prompt, &options);
            let trace = &result.trace;
            assert_eq!(trace.tokens.len(), 340, "{policy} on {}", device.info.line());
            assert!(trace.totals.evicted_tokens > 20, "{policy}: {} evicted", trace.totals.evicted_tokens);
            assert!(trace.probes.iter().all(|p| p.cached_before <= trace.totals.peak_cached), "{policy}: the peak");
            assert_eq!(trace.totals.final_cached, 339 + trace.prompt_ids.len() - trace.totals.evicted_tokens);
            let Some(want) = &expected else {
                assert_eq!(device.info.backend, "cpu", "the twins come first");
                expected = Some(result);
                continue;
            };
            // Free-running text may part where two logits or scores are as good as equal; until then all is equal.
            let same_ids = ids(want).iter().zip(ids(&result)).take_while(|(a, b)| **a == *b).count();
            let first = want.trace.probes.iter().position(|p| !p.evicted.is_empty()).expect("something goes");
            let same = want.trace.probes.iter().zip(&trace.probes).take_while(|(a, b)| a.evicted == b.evicted).count();
            println!("{policy} on {}: {same_ids} of 340 ids and {same} probes equal", device.info.line());
            assert!(same > first, "{policy} on {}: the first eviction differs", device.info.line());
            assert!(same_ids > want.trace.probes[first].at_token, "{policy} on {}", device.info.line());
            compared += 1;
        }
        assert!(compared > 0 || std::env::var("SECATEUR_REQUIRE").is_err(), "no adapter was compared");
    }
}

/// A plan that keeps all changes nothing: the ids of `full`, through every probe.
#[test]
fn probes_that_keep_all_change_no_id() {
    let prompt = Prompt::Chat("Count to ten.".into());
    let full = RunOptions { max_new_tokens: 60, policy: "full".into(), ignore_eos: true, ..RunOptions::default() };
    let probed = RunOptions {
        policy: "think-clearly".into(),
        budget: "ratio:1.0".parse().expect("a budget"),
        probe_every: 7,
        ..full.clone()
    };
    for device in common::devices() {
        let mut engine = engine(device, true);
        let (full, probed) = (run(&mut engine, &prompt, &full), run(&mut engine, &prompt, &probed));
        assert_eq!(probed.trace.probes.len(), 60 / 7);
        assert_eq!(ids(&full), ids(&probed), "{}", device.info.line());
        let extra = probed.trace.totals.peak_cached - full.trace.totals.peak_cached;
        assert!(extra > 0, "a probe's own slots count for the peak");
    }
}

/// Without a tokenizer there are no steps: `random` prunes all the same, down to the budget, and a probe is refused.
#[test]
fn ids_without_a_tokenizer() {
    let device = secateur::device::ComputeDevice::cpu();
    let mut engine = engine(&device, false);
    let options = RunOptions {
        max_new_tokens: 200,
        policy: "random".into(),
        budget: "tokens:32".parse().expect("a budget"),
        window: 16,
        probe_every: 50,
        ..RunOptions::default()
    };
    let result = run(&mut engine, &Prompt::Ids(vec![1, 2, 3]), &options);
    let after: Vec<usize> = result.trace.probes.iter().map(|p| p.cached_after).collect();
    assert_eq!(after, [35, 35, 35], "prompt and budget");
    let refused = pollster::block_on(engine.run(&Prompt::Ids(vec![1, 2, 3]), &RunOptions::default(), &mut |_| ()));
    assert!(refused.expect_err("no text to probe with").to_string().contains("tokenizer"));
}

/// A stop set during the prompt is heard before the prompt is through; the next run starts afresh.
#[test]
fn a_stop_is_heard_while_the_prompt_is_forwarded() {
    let device = secateur::device::ComputeDevice::cpu();
    let mut engine = engine(&device, true);
    let stop = engine.stop_flag();
    let long = Prompt::Ids((0..1500).map(|i| i % 300).collect());
    let options = RunOptions { max_new_tokens: 4, policy: "full".into(), ..RunOptions::default() };
    let mut on = |_: secateur::engine::Event<'_>| stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = pollster::block_on(engine.run(&long, &options, &mut on)).expect("a stop is no error");
    assert_eq!((stopped.trace.stop_reason, stopped.trace.tokens.len()), (StopReason::Cancelled, 0));
    let fresh = run(&mut engine, &Prompt::Ids(vec![5, 6, 7]), &options);
    assert_eq!(fresh.trace.tokens.len(), 4);
}

/// Ragged requests: prompts, lengths, policies, budgets and ends of all kinds; one draws with a temperature.
fn ragged() -> Vec<(Prompt, RunOptions)> {
    let base = RunOptions { max_new_tokens: 70, policy: "full".into(), ignore_eos: true, ..RunOptions::default() };
    let pruned = |policy: &str, budget: &str, probe_every| RunOptions {
        policy: policy.into(),
        budget: budget.parse().expect("a budget"),
        window: 8,
        probe_every,
        ..base.clone()
    };
    let drawn = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, repetition_penalty: 1.1, ..Sampling::GREEDY };
    vec![
        (Prompt::Chat("What is 12 + 30?".into()), pruned("think-clearly", "tokens:24", 30)),
        (Prompt::Ids((0..300).map(|i| i * 7 % 300).collect()), RunOptions { max_new_tokens: 33, ..base.clone() }),
        (Prompt::Chat("Count.".into()), RunOptions { sampling: drawn, seed: 5, ..base.clone() }),
        (Prompt::Chat("Why?".into()), pruned("random", "ratio:0.5", 20)),
        (Prompt::Ids(vec![5]), RunOptions { max_new_tokens: 1, ..base.clone() }),
        (Prompt::Chat("Now.".into()), RunOptions { ignore_eos: false, ..base.clone() }),
        (Prompt::Raw("Hmm".into()), pruned("streaming-llm", "tokens:16", 25)),
        (
            Prompt::Chat("Say it again.".into()),
            RunOptions { max_new_tokens: 90, ..pruned("think-token", "ratio:0.6", 40) },
        ),
    ]
}

/// Eight at once, and eight through three places, give what each gives alone: to the bit on the twins, and on an adapter up to
/// where a sum in another order decides.
#[test]
fn a_sequence_does_not_notice_its_neighbours() {
    let requests = ragged();
    for device in common::two() {
        let mut alone = engine(device, true);
        let single: Vec<RunResult> =
            requests.iter().map(|(prompt, options)| run(&mut alone, prompt, options)).collect();
        for places in [8, 3] {
            let mut engine = engine_of(device, true, places);
            let mut batch = engine.batch();
            for (prompt, options) in &requests {
                batch.add(prompt, options).expect("a good request");
            }
            let results = pollster::block_on(batch.run(&mut |_, _| ()));
            assert_eq!(results.len(), requests.len());
            let (mut same, mut all) = (0, 0);
            for ((request, result), want) in results.into_iter().zip(&single) {
                let result = result.expect("it runs");
                let (found, want_ids) = (ids(&result), ids(want));
                let equal = found.iter().zip(&want_ids).take_while(|(a, b)| a == b).count();
                (same, all) = (same + equal, all + want_ids.len());
                if device.info.backend == "cpu" {
                    assert_eq!(found, want_ids, "request {request}, {places} places");
                    assert_eq!(result.trace.stop_reason, want.trace.stop_reason, "request {request}");
                    let evicted = |r: &RunResult| r.trace.probes.iter().map(|p| p.evicted.clone()).collect::<Vec<_>>();
                    assert_eq!(evicted(&result), evicted(want), "request {request}");
                }
                assert!(result.trace.totals.evicted_tokens > 0 || want.trace.totals.evicted_tokens == 0);
            }
            println!("{}, {places} places: {same} of {all} ids equal", device.info.line());
            assert!(same * 10 >= all * 9, "{}: {same} of {all}", device.info.line());
        }
    }
}

/// One that fails and one that is cancelled leave the others alone; the same batch gives the same ids.
#[test]
fn a_request_that_ends_badly_ends_alone() {
    let device = secateur::device::ComputeDevice::cpu();
    let mut engine = engine_of(&device, true, 2);
    let options = RunOptions { max_new_tokens: 40, policy: "full".into(), ignore_eos: true, ..RunOptions::default() };
    let want = ids(&run(&mut engine, &Prompt::Ids(vec![1, 2, 3]), &options));
    let mut batch = engine.batch();
    let good = batch.add(&Prompt::Ids(vec![1, 2, 3]), &options).expect("good");
    let cancelled = batch.add(&Prompt::Ids(vec![4, 5]), &options).expect("good");
    let waiting = batch.add(&Prompt::Ids(vec![1, 2, 3]), &options).expect("good");
    let wrong = Sampling { top_p: 7.0, ..Sampling::GREEDY };
    assert!(batch.add(&Prompt::Ids(vec![1]), &RunOptions { sampling: wrong, ..options.clone() }).is_err());
    pollster::block_on(batch.step(&mut |_, _| ()));
    batch.cancel(cancelled);
    let results = pollster::block_on(batch.run(&mut |_, _| ()));
    for (request, result) in results {
        let result = result.expect("it ran");
        if request == cancelled {
            assert_eq!(result.trace.stop_reason, StopReason::Cancelled);
        } else {
            assert!(request == good || request == waiting);
            assert_eq!(ids(&result), want);
        }
    }
}
