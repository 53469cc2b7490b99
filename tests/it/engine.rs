//! The whole path on every adapter: decode, probe and prune in the engine, compared with the same run on the CPU
//! twins.
use crate::common;
use crate::common::replay;
use crate::common::replay::Evict;
use secateur::Dtype;
use secateur::ModelSource;
use secateur::Trace;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, LoadOptions, Prompt, RunResult, Settings};
use secateur::sampling::Sampling;
use secateur::settings::AttentionDetail;
use secateur::trace::StopReason;

fn engine(device: &secateur::device::ComputeDevice, with_text: bool) -> Engine {
    engine_of(device, with_text, 1)
}

fn engine_of(device: &secateur::device::ComputeDevice, with_text: bool, sequences: usize) -> Engine {
    engine_with(device, with_text, sequences, &|_| ())
}

/// An engine with weights that `change` has edited.
fn engine_with(
    device: &secateur::device::ComputeDevice,
    with_text: bool,
    sequences: usize,
    change: &dyn Fn(&mut Vec<u8>),
) -> Engine {
    let dir = format!("{}/tests/golden/qwen2-f16", env!("CARGO_MANIFEST_DIR"));
    let directory = ModelSource::directory(&dir).expect("committed");
    let mut names = vec!["config.json", "generation_config.json", "model.safetensors"];
    if with_text {
        names.extend(["tokenizer.json", "tokenizer_config.json"]);
    }
    let file = |name: &'static str| {
        let mut bytes = directory.read(name).expect("committed").to_vec();
        if name == "model.safetensors" {
            change(&mut bytes);
        }
        (name, bytes)
    };
    let source = ModelSource::memory(names.into_iter().map(file));
    let options = LoadOptions { kv: Dtype::F32, context: Some(2048), sequences, weights: None };
    Engine::load(&source, "qwen2-f16", device, &options, &mut |_, _| ()).expect("a good model")
}

fn run(engine: &mut Engine, prompt: &Prompt, options: &Settings) -> RunResult {
    let result = pollster::block_on(engine.run(prompt, options, &mut |_| ())).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    result
}

fn ids(result: &RunResult) -> Vec<u32> {
    result.trace.tokens.iter().map(|t| t.id).collect()
}

/// A text that is followed is pruned as it was when it was written, with every kind of measurement, and again if it
/// is followed a second time.
#[test]
fn a_text_that_is_followed_is_pruned_as_it_was_when_written() {
    let _one = common::beside_others();
    let prompt = Prompt::Chat(secateur::builtin::EXAMPLE.into());
    let load = LoadOptions { kv: Dtype::F32, context: Some(512), ..LoadOptions::default() };
    let (source, cpu) = (secateur::builtin::source(), ComputeDevice::cpu());
    let mut engine = Engine::load(&source, "built-in", &cpu, &load, &mut |_, _| ()).expect("a good model");
    for policy in ["think-clearly", "last-attention", "h2o", "snapkv", "streaming-llm"] {
        let options = Settings {
            policy: policy.parse().expect("a listed policy"),
            budget: "ratio:0.5".parse().expect("a budget"),
            window: 8,
            probe_every: 20,
            max_new_tokens: 120,
            ..Settings::default()
        };
        let written = run(&mut engine, &prompt, &options);
        let ids = ids(&written);
        // The last token is left out, because nothing was measured after it.
        let ids = &ids[..ids.len() - 1];
        let found = |trace: &Trace| -> Vec<(usize, usize, Vec<u32>)> {
            trace.probes.iter().map(|probe| (probe.at_token, probe.cached_before, probe.evicted.clone())).collect()
        };
        let texts = |trace: &Trace| -> Vec<String> {
            trace.tokens.iter().take(ids.len()).map(|token| token.text.clone()).collect()
        };
        let expected = found(&written.trace);
        assert!(expected.iter().filter(|(.., evicted)| !evicted.is_empty()).count() > 2, "{policy}: {expected:?}");
        for _ in 0..2 {
            let read = pollster::block_on(engine.follow(&prompt, &options, ids)).expect("it is read");
            assert_eq!(found(&read), expected, "{policy}");
            assert_eq!(texts(&read), texts(&written.trace), "{policy}");
            assert_eq!(read.stop_reason, StopReason::Cancelled, "{policy}");
        }
    }
    let outside = pollster::block_on(engine.follow(&prompt, &Settings::default(), &[1, u32::MAX]));
    assert!(outside.is_err(), "an id outside the vocabulary was read");
}

/// Probes happen, tokens are evicted, and the first evictions are those of the CPU twins. Ids are equal as long as
/// the evictions are equal.
#[test]
fn pruning_on_every_adapter_is_what_it_is_on_the_twins() {
    let _one = common::beside_others();
    let prompt = Prompt::Chat("What is 12 + 30?".into());
    for policy in ["think-clearly", "random"] {
        let options = Settings {
            max_new_tokens: 340,
            policy: policy.parse().expect("a listed policy"),
            budget: "tokens:60".parse().expect("a budget"),
            window: 16,
            probe_every: 60,
            ignore_eos: true,
            ..Settings::default()
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
            // Two runs may diverge where two logits or scores are nearly equal. Until then they are equal.
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

/// With a plan that keeps all tokens, the ids are those of `full`, through every probe.
#[test]
fn probes_that_keep_all_change_no_id() {
    let _one = common::beside_others();
    let prompt = Prompt::Chat("Count to ten.".into());
    let full =
        Settings { max_new_tokens: 60, policy: secateur::policy::Full.into(), ignore_eos: true, ..Settings::default() };
    let probed = Settings {
        policy: secateur::policy::ThinkClearly.into(),
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

/// Without a tokenizer there are no steps. `random` still prunes down to the budget, and a policy with a probe is
/// refused.
#[test]
fn ids_without_a_tokenizer() {
    let device = secateur::device::ComputeDevice::cpu();
    let mut engine = engine(&device, false);
    let options = Settings {
        max_new_tokens: 200,
        policy: secateur::policy::Random.into(),
        budget: "tokens:32".parse().expect("a budget"),
        window: 16,
        probe_every: 50,
        ..Settings::default()
    };
    let result = run(&mut engine, &Prompt::Ids(vec![1, 2, 3]), &options);
    let after: Vec<usize> = result.trace.probes.iter().map(|p| p.cached_after).collect();
    assert_eq!(after, [35, 35, 35], "prompt and budget");
    let refused = pollster::block_on(engine.run(&Prompt::Ids(vec![1, 2, 3]), &Settings::default(), &mut |_| ()));
    assert!(refused.expect_err("no text to probe with").to_string().contains("tokenizer"));
}

/// A stop that is set during the prompt takes effect before the end of the prompt. The next run starts normally.
#[test]
fn a_stop_is_heard_while_the_prompt_is_forwarded() {
    let device = secateur::device::ComputeDevice::cpu();
    let mut engine = engine(&device, true);
    let stop = engine.stop_flag();
    let long = Prompt::Ids((0..1500).map(|i| i % 300).collect());
    let options = Settings { max_new_tokens: 4, policy: secateur::policy::Full.into(), ..Settings::default() };
    let mut on = |_: secateur::engine::Event<'_>| stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = pollster::block_on(engine.run(&long, &options, &mut on)).expect("a stop is no error");
    assert_eq!((stopped.trace.stop_reason, stopped.trace.tokens.len()), (StopReason::Cancelled, 0));
    let fresh = run(&mut engine, &Prompt::Ids(vec![5, 6, 7]), &options);
    assert_eq!(fresh.trace.tokens.len(), 4);
}

/// Requests that differ in prompt, length, policy, budget and end. One of them samples with a temperature.
fn ragged() -> Vec<(Prompt, Settings)> {
    let base =
        Settings { max_new_tokens: 70, policy: secateur::policy::Full.into(), ignore_eos: true, ..Settings::default() };
    let pruned = |policy: &str, budget: &str, probe_every| Settings {
        policy: policy.parse().expect("a listed policy"),
        budget: budget.parse().expect("a budget"),
        window: 8,
        probe_every,
        ..base.clone()
    };
    let drawn = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, repetition_penalty: 1.1, ..Sampling::GREEDY };
    vec![
        (Prompt::Chat("What is 12 + 30?".into()), pruned("think-clearly", "tokens:24", 30)),
        (Prompt::Ids((0..300).map(|i| i * 7 % 300).collect()), Settings { max_new_tokens: 33, ..base.clone() }),
        (Prompt::Chat("Count.".into()), Settings { sampling: drawn, seed: 5, ..base.clone() }),
        (Prompt::Chat("Why?".into()), pruned("random", "ratio:0.5", 20)),
        (Prompt::Ids(vec![5]), Settings { max_new_tokens: 1, ..base.clone() }),
        (Prompt::Chat("Now.".into()), Settings { ignore_eos: false, ..base.clone() }),
        (Prompt::Raw("Hmm".into()), pruned("streaming-llm", "tokens:16", 25)),
        (
            Prompt::Chat("Say it again.".into()),
            Settings { max_new_tokens: 90, ..pruned("think-token", "ratio:0.6", 40) },
        ),
    ]
}

/// The results of these requests side by side, in their order.
fn side_by_side(engine: &mut Engine, requests: &[(Prompt, Settings)]) -> Vec<RunResult> {
    let mut batch = engine.batch();
    for (prompt, options) in requests {
        batch.add(prompt, options).expect("a good request");
    }
    let mut results = pollster::block_on(batch.run(&mut |_, _| ()));
    results.sort_by_key(|(request, _)| *request);
    assert!(results.iter().map(|(request, _)| *request).eq(0..requests.len()));
    results.into_iter().map(|(_, result)| result.expect("it runs")).collect()
}

fn evicted(result: &RunResult) -> Vec<Vec<u32>> {
    result.trace.probes.iter().map(|p| p.evicted.clone()).collect()
}

/// Bounds of errors of logits and of importances with an f32 cache, as in `policies.rs`.
const LOGITS: f64 = 1e-4;
const MEASURED: f64 = 5e-5;

/// Eight requests at once, and eight through three places, give the results that each gives alone. On the CPU twins
/// they are equal to the bit. On an adapter, a step with more rows may sum in another order, which changes a result
/// only where two logits or scores are nearly equal. There, each result must be right by itself: a decoder without a
/// cache, given the same evictions, must choose the same tokens and measure the same importances. Ids must be equal
/// up to such a place.
#[test]
fn a_sequence_does_not_notice_its_neighbours() {
    let _one = common::beside_others();
    let fx = common::Fixture::open("qwen2-f16");
    let (requests, reference) = (ragged(), replay::reference(&fx));
    for device in common::two() {
        let mut alone = engine(device, true);
        let single: Vec<RunResult> =
            requests.iter().map(|(prompt, options)| run(&mut alone, prompt, options)).collect();
        let probe_ids = alone.tokenizer().expect("it has one").encode(&Settings::default().probe_text).expect("text");
        for places in [8, 3] {
            let results = side_by_side(&mut engine_of(device, true, places), &requests);
            let (mut same, mut all, mut worst) = (0, 0, (0f64, 0f64));
            for (request, (result, want)) in results.iter().zip(&single).enumerate() {
                let place = format!("request {request}, {places} places, {}", device.info.name);
                let (found, want_ids) = (ids(result), ids(want));
                let equal = found.iter().zip(&want_ids).take_while(|(a, b)| a == b).count();
                (same, all) = (same + equal, all + want_ids.len());
                assert!(result.trace.totals.evicted_tokens > 0 || want.trace.totals.evicted_tokens == 0);
                if device.info.backend == "cpu" {
                    assert_eq!(found, want_ids, "{place}");
                    assert_eq!(result.trace.stop_reason, want.trace.stop_reason, "{place}");
                    assert_eq!(evicted(result), evicted(want), "{place}");
                }
                // A sampled token is not the best one, so the reference cannot judge it: the ids have to be equal.
                if !requests[request].1.sampling.is_greedy() {
                    assert!(equal * 10 >= want_ids.len() * 9, "{place}: {equal} of {} drawn alike", want_ids.len());
                    continue;
                }
                let replayed = replay::replay(&reference, Dtype::F32, &result.trace, &probe_ids, Evict::AsRecorded);
                worst = (worst.0.max(replayed.regret), worst.1.max(replayed.importance));
                assert!(replayed.regret <= LOGITS && replayed.importance <= MEASURED, "{place}: {replayed:?}");
                // Where they diverge, two logits are nearly equal, or the plans differ. The scores of the plans were
                // compared with the reference above.
                let planned = |r: &RunResult| {
                    r.trace.probes.iter().filter(|p| p.at_token <= equal).map(|p| p.evicted.clone()).collect::<Vec<_>>()
                };
                if equal < want_ids.len() && planned(result) == planned(want) {
                    let margin = replayed.margins[equal];
                    assert!(
                        margin <= 2.0 * LOGITS,
                        "{place}: they part at token {equal}, where the best leads by {margin:.1e}"
                    );
                }
            }
            println!(
                "{}, {places} places: {same} of {all} ids equal; tokens cost at most {:.1e}, importances off by {:.1e}",
                device.info.line(),
                worst.0,
                worst.1
            );
        }
    }
}

/// Different requests through three places, twice in one engine and once in another, give the same bits, on an
/// adapter as well.
#[test]
fn the_same_batch_gives_the_same_ids() {
    let _one = common::beside_others();
    let requests = ragged();
    for device in common::two() {
        let mut used = engine_of(device, true, 3);
        let first = side_by_side(&mut used, &requests);
        for again in [side_by_side(&mut used, &requests), side_by_side(&mut engine_of(device, true, 3), &requests)] {
            for (request, (a, b)) in first.iter().zip(&again).enumerate() {
                let place = format!("request {request} on {}", device.info.line());
                assert_eq!(ids(a), ids(b), "{place}");
                assert_eq!(evicted(a), evicted(b), "{place}");
                let importances = |r: &RunResult| -> Vec<Option<u32>> {
                    r.trace.probes.iter().flat_map(|p| &p.steps).map(|s| s.importance.map(f32::to_bits)).collect()
                };
                assert_eq!(importances(a), importances(b), "{place}");
            }
        }
    }
}

/// A request that fails and one that is cancelled do not disturb the others.
#[test]
fn a_request_that_ends_badly_ends_alone() {
    let device = secateur::device::ComputeDevice::cpu();
    let mut engine = engine_of(&device, true, 2);
    let options =
        Settings { max_new_tokens: 40, policy: secateur::policy::Full.into(), ignore_eos: true, ..Settings::default() };
    let want = ids(&run(&mut engine, &Prompt::Ids(vec![1, 2, 3]), &options));
    let mut batch = engine.batch();
    let good = batch.add(&Prompt::Ids(vec![1, 2, 3]), &options).expect("good");
    let cancelled = batch.add(&Prompt::Ids(vec![4, 5]), &options).expect("good");
    let waiting = batch.add(&Prompt::Ids(vec![1, 2, 3]), &options).expect("good");
    let wrong = Sampling { top_p: 7.0, ..Sampling::GREEDY };
    assert!(batch.add(&Prompt::Ids(vec![1]), &Settings { sampling: wrong, ..options.clone() }).is_err());
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

/// If a probe fails, in the policy's attention or in the trace's, its sequence ends with the result so far. The others
/// run as if it were not there. Here the embedding of a token that only its probe has is not a number.
#[test]
fn a_probe_that_fails_ends_only_its_own_sequence() {
    let device = secateur::device::ComputeDevice::cpu();
    let options = Settings {
        max_new_tokens: 340,
        budget: "tokens:60".parse().expect("a budget"),
        window: 16,
        probe_every: 100,
        ignore_eos: true,
        attention: AttentionDetail::Heads,
        ..Settings::default()
    };
    let prompt = Prompt::Chat("What is 12 + 30?".into());
    let mut healthy = engine(&device, true);
    let alone = run(&mut healthy, &prompt, &options);
    assert!(alone.trace.probes.len() == 3 && alone.trace.totals.evicted_tokens > 0, "{:?}", alone.trace.totals);
    let encode = |text: &str| healthy.tokenizer().expect("it has one").encode(text).expect("text");
    let used: Vec<u32> = [encode(&options.probe_text), alone.trace.prompt_ids.clone(), ids(&alone)].concat();
    let spare = ["~", "^", "`", "|", "@"].into_iter().find(|text| encode(text).iter().all(|id| !used.contains(id)));
    let spare = spare.expect("a token that nobody uses");
    let [id] = encode(spare)[..] else { panic!("one token") };

    let poison = |bytes: &mut Vec<u8>| {
        let tensors = safetensors::SafeTensors::deserialize(bytes).expect("the fixture");
        let table = tensors.tensor("model.embed_tokens.weight").expect("it has one");
        let (row, begin) = (table.data().len() / table.shape()[0], table.data().as_ptr() as usize);
        let at = begin - bytes.as_ptr() as usize + id as usize * row;
        bytes[at..at + row].chunks_exact_mut(2).for_each(|half| half.copy_from_slice(&0x7e00u16.to_le_bytes()));
    };
    let mut engine = engine_with(&device, true, 3, &poison);
    let bad = Settings { probe_text: format!("{spare}</think>"), ..options.clone() };
    let mut batch = engine.batch();
    for options in [&options, &bad, &options] {
        batch.add(&prompt, options).expect("a good request");
    }
    let results = pollster::block_on(batch.run(&mut |_, _| ()));
    for (request, result) in results {
        let result = result.expect("it has tokens to show");
        if request == 1 {
            let error = result.error.as_ref().expect("it failed");
            assert!(error.to_string().contains("attention scores are not finite"), "{error}");
            assert!(matches!(&result.trace.stop_reason, StopReason::Failed(what) if what == error.what()));
            assert!(result.trace.tokens.len() >= 100 && result.trace.probes.is_empty());
            assert_eq!(ids(&result), ids(&alone)[..result.trace.tokens.len()], "what it had");
            let json = result.trace.to_json().expect("its trace is whole");
            assert_eq!(secateur::trace::Trace::from_json(&json).expect("a trace"), result.trace);
        } else {
            assert!(result.error.is_none(), "request {request}: {:?}", result.error);
            assert_eq!(ids(&result), ids(&alone), "request {request}");
            assert_eq!(evicted(&result), evicted(&alone));
            assert_eq!(result.trace.probes[0].attention, alone.trace.probes[0].attention);
        }
    }
}

/// A probe goes only as deep as the layers that count. A record of its attention has all layers, and changes nothing
/// else.
#[test]
fn what_is_recorded_of_a_probe_does_not_change_what_is_kept() {
    let prompt = Prompt::Chat("What is 12 + 30?".into());
    for device in common::two() {
        let _running = common::beside_others();
        let mut engine = engine(device, true);
        let settings = |attention| Settings {
            max_new_tokens: 340,
            budget: "tokens:60".parse().expect("a budget"),
            window: 16,
            probe_every: 100,
            ignore_eos: true,
            layers: "1-2".parse().expect("layers"),
            attention,
            ..Settings::default()
        };
        let plain = run(&mut engine, &prompt, &settings(AttentionDetail::Off));
        let recorded = run(&mut engine, &prompt, &settings(AttentionDetail::Layers));
        assert_eq!((ids(&plain), evicted(&plain)), (ids(&recorded), evicted(&recorded)));
        let (probes, all) = (&recorded.trace.probes, engine.model().config().num_layers);
        assert!(probes.len() == 3 && recorded.trace.totals.evicted_tokens > 0, "{:?}", recorded.trace.totals);
        let maps = probes.iter().map(|probe| probe.attention.as_ref().map_or(0, |map| map.layers.len()));
        assert!(maps.into_iter().all(|found| found == all) && plain.trace.probes[0].attention.is_none());
    }
}

/// If a device's buffers are too small for the cache, a note says so before the run. A prompt that does not fit by
/// itself is refused.
#[test]
fn a_cache_that_becomes_too_large_is_told_before_the_run() {
    use secateur::policy::{Budget, Full, StreamingLlm};
    use secateur::{ErrorKind, builtin};
    let mut device = secateur::ComputeDevice::cpu();
    let load = LoadOptions { kv: Dtype::F32, ..LoadOptions::default() };
    let load =
        |device: &_| Engine::load(&builtin::source(), "built-in", device, &load, &mut |_, _| ()).expect("it loads");
    let ids = |n: usize| Prompt::Ids(vec![5; n]);
    let full = Settings { policy: Full.into(), max_new_tokens: 1000, ..Settings::default() };
    assert_eq!(load(&device).cache_note(&ids(70), &full).expect("it fits"), None, "the CPU has no limit");

    let model = load(&device);
    let layer_slot = model.slot_bytes() / model.model().config().num_layers as u64;
    // The buffers grow by 64 slots, so of a limit of 699 slots they can have 640.
    device.info.max_binding_bytes = 700 * layer_slot - 1;
    let mut engine = load(&device);
    let note = engine.cache_note(&ids(70), &full).expect("the prompt fits").expect("the rest does not");
    for part in ["640 slots", "after about 570 tokens", &device.info.max_binding_bytes.to_string(), "`budget` tokens:N"]
    {
        assert!(note.contains(part), "{part:?} is missing from: {note}");
    }
    // The run ends where the note says.
    let result = pollster::block_on(engine.run(&ids(70), &Settings { ignore_eos: true, ..full.clone() }, &mut |_| ()));
    let result = result.expect("the text until then");
    let generated = result.trace.totals.generated_tokens;
    assert!((570..=571).contains(&generated), "{generated} tokens");
    assert_eq!(result.error.map(|e| e.kind()), Some(ErrorKind::Device));

    let short = Settings { max_new_tokens: 570, ..full.clone() };
    assert_eq!(engine.cache_note(&ids(70), &short).expect("it fits"), None);
    let pruned = |tokens| Settings {
        policy: StreamingLlm.into(),
        budget: Budget::Tokens(tokens),
        window: 16,
        probe_every: 64,
        ..full.clone()
    };
    assert_eq!(engine.cache_note(&ids(70), &pruned(400)).expect("it fits"), None, "a bound that fits");
    let kept = engine.cache_note(&ids(70), &pruned(600)).expect("the prompt fits").expect("a bound that does not");
    assert!(kept.contains("if more is kept"), "{kept}");

    let added = engine.batch().add(&ids(641), &full).expect_err("it does not fit");
    assert_eq!(added.kind(), ErrorKind::Device);

    // All of this is known before the weights are loaded.
    let options = LoadOptions { kv: Dtype::F32, ..LoadOptions::default() };
    let prepared =
        secateur::engine::PreparedModel::new(&builtin::source(), "built-in", &options).expect("a good model");
    for refused in [
        engine.cache_note(&ids(641), &full).expect_err("it does not fit"),
        prepared.check_on(&ids(641), &full, &device).expect_err("it does not fit"),
        prepared.check_prompt(641, &device).expect_err("it does not fit"),
    ] {
        assert_eq!(refused.kind(), ErrorKind::Device);
        let refused = refused.to_string();
        assert!(refused.contains("at most 640 tokens") && refused.contains("641 tokens"), "{refused}");
    }
    prepared.check_prompt(640, &device).expect("it fits");
    assert_eq!(prepared.check_on(&ids(70), &full, &device).expect("the prompt fits"), Some(note));
}

/// The tokens of a trace are the text, also where a run ends inside a character of several bytes.
#[test]
fn the_tokens_of_a_trace_are_the_text() {
    use secateur::policy::Full;
    let mut engine = engine(&common::devices()[0], true);
    let prompt = Prompt::Ids(vec![318, 1, 2]);
    let mut inside = 0;
    for seed in 0..48 {
        let settings = Settings {
            policy: Full.into(),
            sampling: Sampling { temperature: 1.5, ..Sampling::default() },
            seed,
            max_new_tokens: 1 + seed as usize % 13,
            ignore_eos: true,
            ..Settings::default()
        };
        let mut told = String::new();
        let result = pollster::block_on(engine.run(&prompt, &settings, &mut |event| match event {
            secateur::engine::Event::Token { text, .. } | secateur::engine::Event::Rest { text, .. } => {
                told.push_str(text);
            }
            _ => (),
        }));
        let result = result.expect("it runs");
        let shown = result.trace.tokens.iter().filter(|token| !token.special);
        assert_eq!(shown.map(|token| token.text.as_str()).collect::<String>(), result.text, "seed {seed}");
        assert_eq!(told, result.text, "seed {seed}");
        inside += usize::from(result.text.ends_with('\u{fffd}'));
    }
    assert!(inside >= 3, "only {inside} runs end inside a character");
}
