//! Policies on models: what they measure against transformers, every scope and position mode against transformers' own cache
//! with other evictions for each set, and whole runs of every policy in every mode. What the numbers are:
//! `tests/golden/README.md`.
mod common;

use common::*;
use secateur::Slot;
use secateur::cache::{KvCache, Tracking};
use secateur::engine::{Engine, LoadOptions, Prompt, RunOptions, RunResult};
use secateur::kernels::launch::{as_floats, as_words, read_floats, read_words};
use secateur::kernels::{Reduce, Words};
use secateur::model::decoder::{Decoder, Input, Logits};
use secateur::model::rope;
use secateur::policy::{POLICIES, Positions, Scope, Sets};
use secateur::weights::{ModelSource, Weights};

const EVENTS: [u32; 3] = [70, 100, 130];

fn measures(fx: &Fixture) -> Weights {
    let file = std::fs::read(directory(fx.name).join("measure.safetensors")).expect("a committed fixture");
    Weights::from_files(vec![("measure".into(), file.into())]).expect("good goldens")
}

fn floats(weights: &Weights, name: &str) -> Vec<f32> {
    as_floats(weights.tensor(name).expect("in the file").bytes)
}

/// The twin, and the adapter for one fixture of each architecture: it is slow where it is software.
fn devices_for(name: &str) -> Vec<&'static secateur::device::ComputeDevice> {
    let one = ["qwen2-f16", "qwen3-f32", "llama3-bf16"].contains(&name);
    two().into_iter().take(if one { 2 } else { 1 }).collect()
}

const ALL: Tracking = Tracking { sums: true, queries: true };

fn cache(fx: &Fixture, model: &Decoder, words: Words, positions: Positions, growth: usize) -> KvCache {
    let mut cache = fx.cache(model.device(), words, 1, growth);
    cache.begin(positions).expect("it is empty");
    cache.track(ALL, fx.config.q_size());
    cache
}

/// The running sums of the cached slots, `[layers, kv_heads, slots]`.
fn sums(cache: &KvCache) -> Vec<f32> {
    let shape = *cache.shape();
    let layer = |layer: usize| {
        let words = cache.sums(layer, 0).expect("tracked");
        let all = as_floats(&block_on(read_words(&[&words])).expect("readable")[0]);
        let (cap, len) = (cache.capacity(layer, 0), cache.len(layer, 0));
        (0..shape.kv_heads).flat_map(|h| all[h * cap..h * cap + len].to_vec()).collect::<Vec<_>>()
    };
    (0..shape.layers).flat_map(layer).collect()
}

/// The latest queries' mean attention, `[layers, kv_heads, slots]`.
fn window(model: &Decoder, cache: &mut KvCache, queries: usize) -> Vec<f32> {
    let means = model.observe(cache, 0, queries).expect("tracked");
    let read = block_on(read_words(&means.iter().collect::<Vec<_>>())).expect("readable");
    read.iter().flat_map(|bytes| as_floats(bytes)).collect()
}

fn similarity(model: &Decoder, cache: &KvCache) -> Vec<f32> {
    let alike = model.compare_keys(cache, 0);
    let read = block_on(read_floats(&alike.iter().collect::<Vec<_>>())).expect("readable");
    read.iter().flat_map(|bytes| as_floats(bytes)).collect()
}

/// Of a whole measurement: relative to its largest value. Weights carry 1e-5 of themselves, keys and queries 1e-6.
const MEASURED: f64 = 5e-5;
/// Logits as in `golden.rs`.
const LOGITS: f64 = 1e-4;

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32], bound: f64) -> f64 {
    let off = error(found, expected);
    assert!(off <= bound, "{what}: off by {off:.2e}, the bound is {bound:.0e}");
    off
}

/// Sums, windows and similarities of a prompt and of a decode with evictions, probes and rollbacks, on every fixture.
#[test]
fn what_policies_measure_is_what_transformers_computes() {
    let _one = serial();
    for name in FIXTURES {
        let fx = Fixture::open(name);
        let golden = measures(&fx);
        for device in devices_for(name) {
            let model = fx.load(device);
            let place = format!("{name} on {}", device.info.name);
            let mut worst = 0f64;
            let mut check = |what: &str, found: Vec<f32>, golden_name: &str| {
                let off = close(&format!("{place}: {what}"), &found, &floats(&golden, golden_name), MEASURED);
                worst = worst.max(off);
            };
            // A prompt in two chunks, then forgotten; the second time nothing of the first is left.
            let mut cached = cache(&fx, &model, Words::F32, Positions::Original, 16);
            for ids in [fx.ids("oracle.prompt.ids"), fx.ids("prompt.64.ids")] {
                cached.clear(0).expect("it fits");
                for chunk in ids.chunks(37) {
                    prefill(&model, &mut cached, 0, chunk, 5);
                }
            }
            check("sums of a prompt", sums(&cached), "prompt.64.sums");
            for queries in [8, 32] {
                let name = format!("prompt.64.window.{queries}");
                check("window of a prompt", window(&model, &mut cached, queries), &name);
            }
            check("similarity", similarity(&model, &cached), "prompt.64.similarity");

            let mut cached = cache(&fx, &model, Words::F32, Positions::Original, 16);
            let evicted = |event: usize, _, _| fx.ids(&format!("oracle.{event}.evicted"));
            schedule(&fx, &model, &mut cached, Scope::Shared, &evicted);
            check("sums after evictions", sums(&cached), "oracle.sums");
            for queries in [8, 32] {
                let name = format!("oracle.window.{queries}");
                check("window after evictions", window(&model, &mut cached, queries), &name);
            }
            println!("{place}: measured within {worst:.1e} of the largest value, bound {MEASURED:.0e}");
        }
    }
}

/// The fixtures' schedule with the given evictions of each layer and KV head; probes are forwarded and rolled back at each event.
/// Returns the logits of each step.
fn schedule(
    fx: &Fixture,
    model: &Decoder,
    cache: &mut KvCache,
    scope: Scope,
    evicted: &dyn Fn(usize, usize, usize) -> Vec<u32>,
) -> Vec<f32> {
    let shape = *cache.shape();
    let sets = Sets { scope, layers: shape.layers, kv_heads: shape.kv_heads };
    let (question, ids) = (fx.ids("oracle.prompt.ids"), fx.ids("oracle.ids"));
    prefill(model, cache, 0, &question, ids[0]);
    let mut cached: Vec<Vec<u32>> = vec![(0..question.len() as u32).collect(); sets.count()];
    let mut reads = Vec::new();
    for i in 0..ids.len() {
        let next = ids.get(i + 1).copied().unwrap_or(0);
        reads.push(start(&decode(model, cache, next)));
        let position = (question.len() + i) as u32;
        cached.iter_mut().for_each(|set| set.push(position));
        let Some(event) = EVENTS.iter().position(|p| *p == position) else { continue };
        let before = cache.checkpoint(0);
        let probe = fx.ids(&format!("oracle.{event}.probe.ids"));
        model.forward(Input::Probe { seq: 0, ids: &probe }, cache, Logits::None, Some(Reduce::Layer)).expect("fits");
        cache.rollback(&before, next);
        let keep = |(set, positions): (usize, &Vec<u32>)| {
            let (layer, head) = sets.place(set);
            let gone = evicted(event, layer.unwrap_or(0), head.unwrap_or(0));
            let stays = |slot: &usize| !gone.contains(&positions[*slot]);
            (0..positions.len()).filter(stays).map(|slot| Slot(slot as u32)).collect()
        };
        let kept: Vec<Vec<Slot>> = cached.iter().enumerate().map(keep).collect();
        cache.keep(0, &|layer, head| &kept[sets.of(layer, head)], 1).expect("fits");
        for (set, kept) in cached.iter_mut().zip(&kept) {
            *set = kept.iter().map(|slot| set[slot.0 as usize]).collect();
        }
    }
    assert_mirrored(cache);
    reads.into_iter().flat_map(finish).collect()
}

/// The pruning oracle for every scope and position mode: what transformers computes when each layer or head of its own cache
/// loses other tokens, with keys that stay where they were or close ranks.
#[test]
fn every_scope_and_position_mode_decodes_as_transformers_does() {
    let _one = serial();
    for name in FIXTURES {
        let fx = Fixture::open(name);
        let golden = measures(&fx);
        for device in devices_for(name) {
            let model = fx.load(device);
            for (scope, positions) in [
                (Scope::Shared, Positions::Compact),
                (Scope::Layer, Positions::Original),
                (Scope::Layer, Positions::Compact),
                (Scope::Head, Positions::Original),
                (Scope::Head, Positions::Compact),
            ] {
                let (layers, kv_heads) = (fx.config.num_layers, fx.config.num_kv_heads);
                let evicted = |event: usize, layer: usize, head: usize| {
                    if scope == Scope::Shared {
                        return fx.ids(&format!("oracle.{event}.evicted"));
                    }
                    let table = as_words(golden.tensor(&format!("{scope}.{event}.evicted")).expect("in it").bytes);
                    let most = table.len() / (layers * kv_heads);
                    let row = &table[(layer * kv_heads + head) * most..][..most];
                    row.iter().copied().filter(|p| *p != u32::MAX).collect()
                };
                let place = format!("{name} on {}, scope {scope}, {positions}", device.info.name);
                let expected = floats(&golden, &format!("{scope}.{positions}.logits"));
                let mut cached = cache(&fx, &model, Words::F32, positions, 32);
                let found = schedule(&fx, &model, &mut cached, scope, &evicted);
                let off = close(&place, &found[found.len() - expected.len()..], &expected, LOGITS);
                // A check that accepts the other mode is blind.
                if scope == Scope::Shared {
                    let plain = fx.floats("oracle.logits");
                    assert!(error(&plain[plain.len() - expected.len()..], &expected) > 100.0 * LOGITS, "{place}");
                }
                println!("{place}: logits off by {off:.1e}, bound {LOGITS:.0e}");
            }
        }
    }
}

/// Keys that moved 80 times against keys computed where they stand now: layer 0's, which depend on their own tokens alone.
#[test]
fn keys_that_closed_ranks_eighty_times_are_rounded_once() {
    let _one = serial();
    let fx = Fixture::open("qwen2-f16");
    for device in two() {
        let model = fx.load(device);
        for (words, bound) in [(Words::F32, 2e-6), (Words::F16, 6e-4)] {
            let mut compact = cache(&fx, &model, words, Positions::Compact, 32);
            let mut tokens: Vec<u32> = fx.ids("oracle.prompt.ids");
            let next = |step: usize| (step * 37 % 300) as u32;
            prefill(&model, &mut compact, 0, &tokens, next(0));
            for gather in 0..80 {
                for step in [2 * gather, 2 * gather + 1] {
                    tokens.push(next(step));
                    decode(&model, &mut compact, next(step + 1));
                }
                // Two go: another pair each time, so that most tokens move every time and some stay for long.
                let n = tokens.len();
                let gone = [gather * 5 % (n - 8), (gather * 11 + 3) % (n - 8)];
                let kept: Vec<usize> = (0..n).filter(|slot| !gone.contains(slot)).collect();
                let slots: Vec<Slot> = kept.iter().map(|slot| Slot(*slot as u32)).collect();
                compact.keep(0, &|_, _| &slots, 2).expect("fits");
                tokens = kept.iter().map(|slot| tokens[*slot]).collect();
            }
            let n = tokens.len();
            assert_eq!(compact.len(0, 0), n);
            let mut fresh = fx.cache(device, Words::F32, 1, 32);
            prefill(&model, &mut fresh, 0, &tokens, 0);
            let (d, heads) = (fx.config.head_dim, fx.config.num_kv_heads);
            let table = rope::table(d, fx.config.rope_theta, &fx.config.rope_scaling, n);
            let value = |rows: &[u32], words: Words, row: usize, c: usize| match words {
                Words::F32 => f32::from_bits(rows[row * d + c]) as f64,
                _ => half::f16::from_bits((rows[(row * d + c) / 2] >> (c % 2 * 16)) as u16).to_f64(),
            };
            let (moved, there) = (rows(&compact, 0, 0), rows(&fresh, 0, 0));
            let (mut worst, mut largest, mut turned) = (0f64, 0f64, 0f64);
            for row in 0..heads * n {
                let angles = &table[row % n * d..][..d];
                for c in 0..d / 2 {
                    let (a, b) = (value(&moved, words, row, c), value(&moved, words, row, c + d / 2));
                    let (cos, sin) = (angles[c] as f64, angles[c + d / 2] as f64);
                    for (c, rotated) in [(c, a * cos - b * sin), (c + d / 2, b * cos + a * sin)] {
                        let want = value(&there, Words::F32, row, c);
                        worst = worst.max((rotated - want).abs());
                        largest = largest.max(want.abs());
                        turned = turned.max((value(&moved, words, row, c) - want).abs());
                    }
                }
            }
            println!(
                "{}, {words:?}: {n} keys off by {:.1e} of the largest, bound {bound:.0e}",
                device.info.name,
                worst / largest
            );
            assert!(worst <= bound * largest && turned > 0.1 * largest);
        }
    }
}

fn engine(device: &secateur::device::ComputeDevice) -> Engine {
    let source = ModelSource::directory(directory("qwen2-f16")).expect("committed");
    let options = LoadOptions { kv: Words::F32, context: Some(1024), sequences: 1 };
    Engine::load(&source, "qwen2-f16", device, &options, &mut |_, _| ()).expect("a good model")
}

fn run(engine: &mut Engine, options: &RunOptions) -> RunResult {
    let result = block_on(engine.run(&Prompt::Chat("2 + 3?".into()), options, &mut |_| ())).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    result
}

fn ids(result: &RunResult) -> Vec<u32> {
    result.trace.tokens.iter().map(|t| t.id).collect()
}

/// Every policy in every scope and with both ways to count positions: it keeps to its budget, and where it may keep all, its
/// probes change nothing. The twin runs all of it, an adapter one policy of each measurement.
#[test]
fn every_policy_runs_in_every_scope_and_position_mode() {
    let _one = serial();
    for device in two() {
        let mut engine = engine(device);
        let twin = device.info.backend == "cpu";
        let (tokens, every, budget, at_most) = (64, 24, 12, 12);
        for positions in [Positions::Original, Positions::Compact] {
            let base = RunOptions {
                max_new_tokens: tokens,
                window: 8,
                probe_every: every,
                ignore_eos: true,
                positions,
                ..RunOptions::default()
            };
            let full = ids(&run(&mut engine, &RunOptions { policy: "full".into(), ..base.clone() }));
            for entry in POLICIES.iter().filter(|p| p.name != "full") {
                let on_adapter = ["think-clearly", "last-attention", "h2o", "r-kv"].contains(&entry.name);
                for scope in [Scope::Shared, Scope::Layer, Scope::Head] {
                    if !(twin || on_adapter && scope != Scope::Layer) {
                        continue;
                    }
                    let place = format!("{} of scope {scope}, {positions}, on {}", entry.name, device.info.name);
                    let options = RunOptions { policy: entry.name.into(), scope, ..base.clone() };
                    let keeping = run(
                        &mut engine,
                        &RunOptions { budget: "ratio:1".parse().expect("a budget"), ..options.clone() },
                    );
                    assert_eq!(ids(&keeping), full, "{place}: probes changed what was generated");
                    assert_eq!(keeping.trace.totals.evicted_tokens, 0, "{place}");
                    let budget = format!("tokens:{budget}").parse().expect("a budget");
                    let result = run(&mut engine, &RunOptions { budget, ..options });
                    let trace = &result.trace;
                    assert_eq!((trace.probes.len(), trace.tokens.len()), (tokens / every, tokens), "{place}");
                    for probe in &trace.probes {
                        // Never the prompt; exactly the budget, or what is protected.
                        let prompt = trace.prompt_ids.len() as u32;
                        assert!(probe.evicted.iter().all(|p| *p >= prompt), "{place}: the prompt is evicted");
                        let kept = probe.infeasible.as_ref().map_or(at_most, |i| i.kept);
                        assert_eq!(probe.cached_after - trace.prompt_ids.len(), kept, "{place}");
                        let sets = Sets { scope, layers: 4, kv_heads: 3 };
                        assert_eq!(probe.sets.len(), if scope == Scope::Shared { 0 } else { sets.count() }, "{place}");
                        let longest = probe.sets.iter().map(|s| s.cached_before - s.evicted.len()).max();
                        assert!(longest.is_none_or(|most| most == probe.cached_after), "{place}");
                        for layer in probe.sets.chunk_by(|a, b| a.layer == b.layer) {
                            let after = |s: &secateur::report::trace::Set| s.cached_before - s.evicted.len();
                            assert!(layer.iter().all(|s| after(s) == after(&layer[0])), "{place}: unequal heads");
                        }
                    }
                    assert_eq!(trace.settings.scope, scope.to_string());
                    assert_eq!(trace.settings.positions, positions.to_string());
                }
            }
        }
    }
}

/// With compact positions a run is bound by what is cached, not by how much it has written.
#[test]
fn a_compact_run_goes_on_past_the_context() {
    let _one = serial();
    // No tokenizer: all of it counts as thinking, whatever the random model writes.
    let committed = ModelSource::directory(directory("qwen2-f16")).expect("committed");
    let names = ["config.json", "generation_config.json", "model.safetensors"];
    let source = ModelSource::memory(names.map(|n| (n, committed.read(n).expect("committed").to_vec())));
    let load = LoadOptions { kv: Words::F16, context: Some(160), sequences: 1 };
    let mut engine = Engine::load(&source, "qwen2-f16", &devices()[0], &load, &mut |_, _| ()).expect("a good model");
    let options = RunOptions {
        max_new_tokens: 300,
        policy: "streaming-llm".into(),
        budget: "tokens:40".parse().expect("a budget"),
        window: 16,
        probe_every: 40,
        ignore_eos: true,
        positions: Positions::Compact,
        ..RunOptions::default()
    };
    let mut run = |options: &RunOptions| {
        let prompt = Prompt::Ids((0..20).collect());
        block_on(engine.run(&prompt, options, &mut |_| ())).expect("it runs")
    };
    let compact = run(&options);
    assert_eq!(compact.trace.tokens.len(), 300);
    assert!(compact.trace.totals.peak_cached <= 160);
    let original = run(&RunOptions { positions: Positions::Original, ..options });
    let (n, prompt) = (original.trace.tokens.len(), original.trace.prompt_ids.len());
    assert_eq!(
        (n + prompt, original.trace.stop_reason.clone()),
        (161, secateur::report::trace::StopReason::ContextFull)
    );
    // Up to the first eviction they are the same run.
    assert_eq!(ids(&original)[..40], ids(&compact)[..40]);
}
