//! Bugs that other implementations of cache eviction shipped, with one test each. If a larger test covers the same
//! bug, the test here is its smallest form. A decoder without a cache to prune (`common/reference.rs`) gives the
//! right results.
use crate::common::replay;
use secateur::Dtype;

use crate::common::memory::{held, peak_of};
use crate::common::replay::{Evict, narrowed, reference};
use crate::common::*;
use secateur::ModelSource;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, Event, LoadOptions, Prompt, RunResult, Settings};
use secateur::expert::kernels::readback::{as_f32, read_u32};
use secateur::expert::kernels::{self, NormSpec, Reduce};
use secateur::expert::model::config::RopeScaling;
use secateur::expert::model::decoder::{Input, Logits};
use secateur::expert::model::rope;
use secateur::policy::{
    Budget, CacheView, CachedToken, KeepPlan, Outcome, POLICIES, Positions, Role, Scope, StepInfo, ViewParts,
};
use secateur::{Position, Slot};

/// A cache of a prompt of 6 and two steps of 10, the second being written.
fn with_view<T>(budget: Budget, look: impl FnOnce(&CacheView<'_>) -> T) -> T {
    let mut tokens: Vec<CachedToken> = (0..6).map(|p| CachedToken::other(Position(p), Role::Prompt)).collect();
    tokens.extend((6..26).map(|p| CachedToken::thinking(Position(p), (p - 6) / 10)));
    let steps = [StepInfo { id: 0, tokens: 10 }, StepInfo { id: 40, tokens: 10 }];
    let scores: Vec<f32> = (0..26).map(|i| i as f32 / 26.0).collect();
    let view = CacheView::new(ViewParts {
        tokens: &tokens,
        steps: &steps,
        current_step: 1,
        thinking_tokens: 20,
        scores: Some(&scores),
        similarity: Some(&scores),
        value_range: Some(&scores),
        received: Some(&scores),
        budget,
        seed: 3,
        ..ViewParts::EMPTY
    });
    look(&view.expect("consistent facts"))
}

/// Bounds of logits and of importances as in `policies.rs`, with an f32 cache.
const LOGITS: f64 = 1e-4;
const MEASURED: f64 = 5e-5;

fn engine(sequences: usize) -> Engine {
    engine_on(&devices()[0], sequences)
}

fn engine_on(device: &ComputeDevice, sequences: usize) -> Engine {
    let source = ModelSource::directory(directory("qwen2-f16")).expect("committed");
    // Without a tokenizer every token counts as thinking, whatever the random model writes.
    let names = ["config.json", "generation_config.json", "model.safetensors"];
    let source = ModelSource::memory(names.map(|n| (n, source.read(n).expect("committed").to_vec())));
    let options = LoadOptions { kv: Dtype::F32, context: Some(512), sequences, weights: None };
    Engine::load(&source, "qwen2-f16", device, &options, &mut |_, _| ()).expect("a good model")
}

fn options(policy: &str) -> Settings {
    Settings {
        max_new_tokens: 50,
        policy: policy.parse().expect("a listed policy"),
        budget: Budget::Tokens(12),
        window: 8,
        probe_every: 20,
        ignore_eos: true,
        ..Settings::default()
    }
}

fn run(engine: &mut Engine, options: &Settings) -> RunResult {
    block_on(engine.run(&Prompt::Ids((0..30).collect()), options, &mut |_| ())).expect("it runs")
}

fn ids(result: &RunResult) -> Vec<u32> {
    result.trace.tokens.iter().map(|t| t.id).collect()
}

/// awslabs/keys_values #140, ports of R-KV: the first compaction evicts the prompt, accuracy 0.
#[test]
fn the_question_survives_the_first_cold_compaction() {
    with_view(Budget::Tokens(0), |view| {
        for entry in POLICIES.iter() {
            let plan = entry.plan(view).expect("a plan");
            assert!((0..6).all(|slot| plan.slots(0, 0).contains(&Slot(slot))), "{}", entry.name());
        }
    });
}

/// A prompt of 64 ids, three quarters of which are evicted, in the cache and in the reference.
fn thinned<'m>(
    fx: &Fixture,
    device: &ComputeDevice,
    model: &'m reference::Reference,
) -> (std::sync::Arc<secateur::expert::model::decoder::Decoder>, secateur::expert::cache::KvCache, reference::Reading<'m>)
{
    let decoder = fx.load(device);
    let mut cache = fx.cache(device, Dtype::F32, 1, 8);
    let prompt = fx.ids("prompt.64.ids");
    prefill(&decoder, &mut cache, 0, &prompt, NEXT[0]);
    let kept: Vec<Slot> = (0..64).step_by(4).map(Slot).collect();
    cache.keep(0, &kept, 1).expect("fits");
    let mut text = model.read(Positions::Original, Dtype::F32);
    prompt.iter().for_each(|id| drop(text.forward(*id)));
    text.evict(|_, _| (0..64).filter(|p| p % 4 != 0).collect());
    (decoder, cache, text)
}

/// The ids that are read after the eviction.
const NEXT: [u32; 6] = [9, 88, 231, 17, 140, 5];

/// VeloxQuant-MLX #137: after an eviction the slot is used as the position, so that new queries and keys are rotated
/// to positions that older tokens have.
#[test]
fn a_slot_is_not_a_position() {
    let _one = beside_others();
    let fx = Fixture::open("qwen2-f16");
    let model = reference(&fx);
    for device in two() {
        let (decoder, mut cache, mut text) = thinned(&fx, device, &model);
        let mut worst = 0f64;
        for (i, id) in NEXT.iter().enumerate() {
            let found = values(&decode(&decoder, &mut cache, *NEXT.get(i + 1).unwrap_or(&0)));
            worst = worst.max(error(&found, &narrowed(&text.forward(*id).logits)));
            assert_eq!((cache.sequence(0).position, cache.len(0, 0)), (Position(65 + i as u32), 17 + i));
        }
        println!("{}: {} steps after an eviction off by {worst:.1e}", device.info.name, NEXT.len());
        assert!(worst <= LOGITS);
    }
    // The test can see positions: the same tokens directly behind the kept ones give other results.
    let mut close = model.read(Positions::Compact, Dtype::F32);
    let mut text = model.read(Positions::Original, Dtype::F32);
    for reading in [&mut close, &mut text] {
        fx.ids("prompt.64.ids").iter().for_each(|id| drop(reading.forward(*id)));
        reading.evict(|_, _| (0..64).filter(|p| p % 4 != 0).collect());
    }
    let [close, text] = [&mut close, &mut text].map(|reading| narrowed(&reading.forward(NEXT[0]).logits));
    assert!(error(&close, &text) > 100.0 * LOGITS);
}

/// VeloxQuant-MLX #370: the causal mask of a chunk compares positions instead of slots, which differ after an
/// eviction.
#[test]
fn a_chunk_after_an_eviction_sees_what_stands_before_it() {
    let _one = beside_others();
    let fx = Fixture::open("qwen2-f16");
    let model = reference(&fx);
    for device in two() {
        let (decoder, mut cache, mut text) = thinned(&fx, device, &model);
        let out = forward(&decoder, &mut cache, Input::Chunk { seq: 0, ids: &NEXT }, None).expect("fits");
        let found = values(&decoder.logits(&out, Logits::All));
        for (row, (id, found)) in NEXT.iter().zip(found.chunks(fx.config.vocab_size)).enumerate() {
            let off = error(found, &narrowed(&text.forward(*id).logits));
            assert!(off <= LOGITS, "{}: row {row} is off by {off:.1e}", device.info.name);
        }
    }
}

/// kvpress' AdaKV and DMS, R-KV's first vLLM port: evicted tokens are masked, and their memory is not freed.
#[test]
fn what_is_evicted_takes_no_room() {
    let _one = alone();
    let fx = Fixture::open("qwen2-f16");
    for device in two() {
        let model = fx.load(device);
        let mut cache = fx.cache(device, Dtype::F16, 1, 8);
        for chunk in (0..1200u32).map(|i| i * 7 % 300).collect::<Vec<_>>().chunks(200) {
            prefill(&model, &mut cache, 0, chunk, 1);
        }
        device.burn.memory_cleanup();
        state_words(&cache);
        let (wanted, before, on_host) = (cache.bytes(), device.bytes(), held());
        let kept: Vec<Slot> = (0..1200).step_by(10).map(Slot).collect();
        cache.keep(0, &kept, 0).expect("fits");
        state_words(&cache);
        assert_eq!((cache.capacity(0, 0), cache.bytes()), (120, wanted / 10));
        // The allocator has to confirm what the cache reports.
        let after = device.bytes();
        let freed: Vec<i64> = match device.info.backend.as_str() {
            "cpu" => vec![(on_host - held()) as i64],
            _ => vec![before.in_use as i64 - after.in_use as i64, before.reserved as i64 - after.reserved as i64],
        };
        let least = (wanted - cache.bytes()) as i64 * 9 / 10;
        println!("{}: of {wanted} bytes of keys and values {freed:?} were given back", device.info.name);
        assert!(freed.iter().all(|bytes| *bytes >= least), "{}: {freed:?}, at least {least}", device.info.name);
    }
}

/// R-KV for transformers: the interval counter is not reset between prompts.
#[test]
fn the_interval_begins_anew_with_each_prompt() {
    let mut engine = engine(1);
    for _ in 0..2 {
        // 50 tokens leave the counter at 10 of 20.
        let dates: Vec<usize> = run(&mut engine, &options("random")).trace.probes.iter().map(|p| p.at_token).collect();
        assert_eq!(dates, [20, 40]);
    }
}

/// An implementation considers only element 0 of a batch.
#[test]
fn every_sequence_of_a_batch_is_pruned_by_its_own_scores() {
    let _one = beside_others();
    let model = reference(&Fixture::open("qwen2-f16"));
    for device in two() {
        let mut engine = engine_on(device, 2);
        for policy in ["last-attention", "h2o", "snapkv", "r-kv"] {
            let keep = Budget::Tokens(if policy == "snapkv" { 36 } else { 12 });
            let options = Settings { budget: keep, max_new_tokens: 60, ..options(policy) };
            let mut batch = engine.batch();
            batch.longest_bursts();
            // The first sequence is eight tokens ahead when the second begins, so that both are due in the same turn
            // once, with equally many cached tokens.
            for (prompt, probe_every) in [(0..30, 28), (100..138, 20)] {
                let options = Settings { probe_every, ..options.clone() };
                batch.add(&Prompt::Ids(prompt.collect()), &options).expect("taken on");
            }
            let (mut results, mut together) = (Vec::new(), 0);
            while !batch.is_idle() {
                let mut pruned = 0;
                let mut on = |_, event: Event<'_>| pruned += usize::from(matches!(event, Event::Probe(_)));
                results.extend(block_on(batch.step(&mut on)));
                together = together.max(pruned);
            }
            for (request, result) in results {
                let RunResult { trace, error, .. } = result.expect("it runs");
                assert!(error.is_none(), "{policy}: {error:?}");
                let place = format!("{policy}, request {request}, on {}", device.info.name);
                assert!(trace.totals.evicted_tokens > 0, "{place}");
                // The scores are those that the reference measures, which reads one text at a time.
                let found = replay::replay(&model, Dtype::F32, &trace, &[], Evict::AsRecorded);
                assert!(found.regret <= LOGITS && found.importance <= MEASURED, "{place}: {found:?}");
                assert!(found.steps > 0);
            }
            assert_eq!(together, 2, "{policy}: no two were due together, which is what this is about");
        }
    }
}

/// An implementation of `h2o` considers only the last query. The attention weights of each query add up to 1, so the
/// sums of all queries add up to their number.
#[test]
fn heavy_hitters_are_heavy_over_all_queries() {
    let fx = Fixture::open("qwen2-f16");
    let model = fx.load(&devices()[0]);
    let mut cache = fx.cache(&devices()[0], Dtype::F32, 1, 8);
    cache.track(secateur::expert::cache::Tracking { sums: true, ..Default::default() }, fx.config.q_size());
    prefill(&model, &mut cache, 0, &fx.ids("prompt.64.ids"), 1);
    let probe = Input::Probe { seq: 0, ids: &[1, 2, 3], layers: fx.config.num_layers };
    forward(&model, &mut cache, probe, Some(Reduce::Layer)).expect("fits");
    decode(&model, &mut cache, 0);
    let cap = cache.capacity(1, 0);
    let read = block_on(read_u32(&[&cache.sums(1, 0).expect("tracked")])).expect("readable");
    for head in as_f32(&read[0]).chunks(cap) {
        let total: f32 = head[..65].iter().sum();
        assert!((total - 65.0).abs() < 1e-3, "{total} of 65 queries; the probe's three do not count");
    }
}

/// An implementation gathers the indices of a top-k unsorted. Kept slots must ascend for every policy; a plan in
/// which they do not is refused.
#[test]
fn kept_slots_must_ascend() {
    with_view(Budget::Tokens(13), |view| {
        for entry in POLICIES.iter() {
            let plan = entry.plan(view).expect("a plan");
            assert!(plan.slots(0, 0).is_sorted_by(|a, b| a < b), "{}", entry.name());
            assert_eq!(plan.slots(0, 0).len(), if entry.evicts() { 19 } else { 26 }, "{}", entry.name());
        }
    });
    with_view(Budget::Tokens(20), |view| {
        let mut kept: Vec<Slot> = (0..26).map(Slot).collect();
        kept.swap(8, 12);
        assert!(KeepPlan::new(view, kept, Outcome::Met).is_err());
    });
}

/// An implementation reuses a prefix cache after slots of it were evicted in place.
#[test]
fn nothing_of_a_pruned_cache_reaches_the_next_prompt() {
    let mut used = engine(1);
    for policy in ["random", "h2o", "r-kv"] {
        let fresh = run(&mut engine(1), &options(policy));
        for _ in 0..2 {
            let again = run(&mut used, &options(policy));
            assert_eq!(ids(&again), ids(&fresh), "{policy}");
            assert_eq!(evicted(&again), evicted(&fresh), "{policy}: sums, queries or keys of the last prompt");
        }
    }
    assert_eq!(ids(&run(&mut used, &options("full"))), ids(&run(&mut engine(1), &options("full"))));
}

fn evicted(result: &RunResult) -> Vec<Vec<u32>> {
    result.trace.probes.iter().map(|p| p.evicted.clone()).collect()
}

/// An implementation decodes tokens between scoring and compaction, and then evicts other slots than those that were
/// scored.
#[test]
fn no_step_comes_between_scores_and_gather() {
    let _one = beside_others();
    let model = reference(&Fixture::open("qwen2-f16"));
    for device in two() {
        for policy in ["last-attention", "h2o", "r-kv"] {
            let trace = run(&mut engine_on(device, 1), &options(policy)).trace;
            let mut gone = 0;
            for probe in &trace.probes {
                assert_eq!(probe.cached_before, 30 + probe.at_token - gone, "{policy}: all that was written, no more");
                gone += probe.evicted.len();
            }
            assert!(gone > 0);
            // If anything were scored or evicted at another time than the record says, texts and scores would differ.
            let found = replay::replay(&model, Dtype::F32, &trace, &[], Evict::AsRecorded);
            assert!(
                found.regret <= LOGITS && found.importance <= MEASURED,
                "{policy} on {}: {found:?}",
                device.info.name
            );
            let late = replay::replay(&model, Dtype::F32, &trace, &[], Evict::Late);
            println!("{policy} on {}: {found:?}; a step later {:.1e}", device.info.name, late.regret);
            assert!(late.regret > LOGITS, "{policy}: a step later is not seen");
        }
    }
}

/// ClearThink: the probe materialises full attention and runs out of memory at a few thousand tokens.
#[test]
fn a_probe_reads_one_row() {
    let fx = Fixture::open("qwen2-f16");
    let device = &devices()[0];
    let model = fx.load(device);
    let probe: Vec<u32> = (0..31).collect();
    let peak = |cached: usize| {
        let mut cache = fx.cache(device, Dtype::F32, 1, 8);
        cache.reserve(&[0], cached + probe.len()).expect("fits");
        let ids: Vec<u32> = (0..cached as u32).map(|i| i * 7 % 300).collect();
        ids.chunks(64).for_each(|chunk| drop(prefill(&model, &mut cache, 0, chunk, 1)));
        peak_of(|| {
            let input = Input::Probe { seq: 0, ids: &probe, layers: fx.config.num_layers };
            let out = forward(&model, &mut cache, input, Some(Reduce::Layer)).expect("fits");
            let row = [1, cached + probe.len()];
            assert!(out.readout.len() == fx.config.num_layers && out.readout.iter().all(|r| r.dims() == row));
            out
        })
    };
    // Each further cached token costs one f32 a layer, for the row that is read out, and the scores of one head. Full
    // attention of one head costs 31 scores.
    let (short, long) = (peak(256), peak(512));
    println!("a probe takes {short} bytes at 256 cached tokens, {long} at 512");
    let row = (256 * fx.config.num_layers * 4) as isize;
    // The twin of attention reads the keys and the values of one layer as f64.
    let read = (256 * 2 * fx.config.num_kv_heads * fx.config.head_dim * 8) as isize;
    let more = long - short - read;
    assert!((row / 2..row * 2).contains(&more), "{more} bytes more beside the {read} that are read, a row is {row}");
}

/// A reference hides evicted keys from rows that still saw them. The decoder must match the right reference and
/// differ from this one.
#[test]
fn the_oracle_does_not_mask_too_early() {
    for name in FIXTURES {
        let fx = Fixture::open(name);
        let model = fx.load(&devices()[0]);
        let mut cache = fx.cache(&devices()[0], Dtype::F32, 1, 32);
        let evicted = |event: usize, _, _| fx.ids(&format!("oracle.{event}.evicted"));
        let found = schedule(&fx, &model, &mut cache, Scope::Shared, &evicted);
        let right = error(&found, &fx.floats("oracle.logits"));
        let wrong = error(&found, &fx.floats("wrong.masked_too_early.logits"));
        println!("{name}: off by {right:.1e} from the oracle, {wrong:.1e} from the one that masks too early");
        assert!(right <= LOGITS && wrong > 100.0 * LOGITS, "{name}: {right:.1e}, {wrong:.1e}");
    }
}

/// Squares of activations overflow f16 from 256 on.
#[test]
fn squares_do_not_overflow() {
    let _one = beside_others();
    for device in two() {
        let x = kernels::f32_tensor(vec![3e4f32; 64], [1, 64], &device.burn);
        let weight = kernels::f32_tensor(vec![1.0; 64], [64], &device.burn);
        let normed = values(&kernels::rms_norm(&x, &weight, NormSpec { n: 1, first_row: 0, cols: 64, eps: 1e-6 }));
        assert!(normed.iter().all(|v| (v - 1.0).abs() < 1e-5), "{}: {normed:?}", device.info.name);
    }
}

/// RoPE tables in f16 are exact only to position 2048, in bf16 to 256; f32 arithmetic is off by 1.8e-3 at 30,000.
#[test]
fn rotations_are_exact_at_position_thirty_thousand() {
    let (d, p) = (128, 30_000);
    let table = rope::table(d, d, 1e6, &RopeScaling::None, p + 1);
    for i in 0..d / 2 {
        let angle = p as f64 * 1e6f64.powf(-((2 * i) as f64) / d as f64);
        let (cos, sin) = (table[p * d + i] as f64, table[p * d + d / 2 + i] as f64);
        assert!((cos - angle.cos()).abs() < 1e-7 && (sin - angle.sin()).abs() < 1e-7, "frequency {i}");
    }
}

/// So many tokens are evicted that the model repeats what it lost. The totals must show this.
#[test]
fn loops_are_reported() {
    let mut engine = engine(1);
    // A random model that decodes greedily with nearly nothing kept soon repeats itself.
    let options =
        Settings { budget: Budget::Tokens(1), window: 1, max_new_tokens: 400, probe_every: 5, ..options("random") };
    let result = run(&mut engine, &Settings { positions: Positions::Compact, ..options });
    let all: Vec<u32> = ids(&result);
    let seen = |end: usize| (12..end).any(|e| all[e - 12..e] == all[end - 12..end]);
    let repeated = (13..=all.len()).filter(|&end| seen(end)).count();
    println!("{repeated} of {} tokens end 12 that were written before", all.len());
    assert_eq!(result.trace.totals.repeated_tokens, repeated);
    assert!(repeated > 0, "this run was to go in circles");
}
