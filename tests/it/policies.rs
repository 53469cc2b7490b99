//! Policies on models. Their measurements are compared with transformers; every scope and position mode is compared
//! with transformers' own cache, with other evictions for each set; and whole runs of every policy in every mode are
//! replayed by a decoder without a cache to prune. `tests/golden/README.md` explains the numbers.
use secateur::Dtype;
use std::collections::HashSet;

use crate::common::reference::{Given, Reference};
use crate::common::replay::{Evict, Replay, narrowed, reference, replay};
use crate::common::*;
use secateur::Slot;
use secateur::engine::{Engine, LoadOptions, Prompt, RunResult, Settings};
use secateur::expert::cache::{CacheShape, KvCache, Tracking};
use secateur::expert::kernels::Reduce;
use secateur::expert::kernels::readback::{as_f32, as_u32, read_f32, read_u32};
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::model::rope;
use secateur::expert::runner::{Admission, MeasureRequest, ProbeInput, Runner};
use secateur::expert::weights::{ModelSource, Weights};
use secateur::policy::{Budget, Measurement, POLICIES, Positions, Role, Scope, Sets};
use secateur::trace::{Probe, Set, Trace};

fn measures(fx: &Fixture) -> Weights {
    let file = std::fs::read(directory(fx.name).join("measure.safetensors")).expect("a committed fixture");
    Weights::from_files(vec![("measure".into(), file.into())]).expect("good goldens")
}

fn floats(weights: &Weights, name: &str) -> Vec<f32> {
    as_f32(weights.tensor(name).expect("in the file").bytes)
}

/// The CPU twin, and for one fixture of each architecture the adapter, which is slow if it is software.
fn devices_for(name: &str) -> Vec<&'static secateur::device::ComputeDevice> {
    let one =
        ["qwen2-f16", "qwen3-f32", "llama3-bf16", "smollm3-bf16", "phi3-long-f16", "qwen3moe-bf16"].contains(&name);
    two().into_iter().take(if one { 2 } else { 1 }).collect()
}

const ALL: Tracking = Tracking { sums: true, queries: true, recurrence: true };

fn cache(fx: &Fixture, model: &Decoder, words: Dtype, positions: Positions, growth: usize) -> KvCache {
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
        let all = as_f32(&block_on(read_u32(&[&words])).expect("readable")[0]);
        let (cap, len) = (cache.capacity(layer, 0), cache.len(layer, 0));
        (0..shape.kv_heads).flat_map(|h| all[h * cap..h * cap + len].to_vec()).collect::<Vec<_>>()
    };
    (0..shape.layers).flat_map(layer).collect()
}

/// The mean attention of the latest queries, `[layers, kv_heads, slots]`.
fn window(model: &Decoder, cache: &mut KvCache, queries: usize) -> Vec<f32> {
    let means = model.observe(cache, 0, queries).expect("tracked");
    let read = block_on(read_u32(&means.iter().collect::<Vec<_>>())).expect("readable");
    read.iter().flat_map(|bytes| as_f32(bytes)).collect()
}

fn similarity(model: &Decoder, cache: &KvCache) -> Vec<f32> {
    let alike = model.compare_keys(cache, 0);
    let read = block_on(read_f32(&alike.iter().collect::<Vec<_>>())).expect("readable");
    read.iter().flat_map(|bytes| as_f32(bytes)).collect()
}

/// Bound of a measurement, relative to its largest value. Attention weights are exact to 1e-5, keys and queries to
/// 1e-6.
const MEASURED: f64 = 5e-5;
/// Bound of logits, as in `golden.rs`.
const LOGITS: f64 = 1e-4;
/// The reference computes in f64, transformers in f32: the difference that `tests/golden/README.md` gives for
/// float64.
const REFERENCE: f64 = 2e-5;
/// Tokens of a whole run, and tokens between two prunings.
const TOKENS: usize = 60;
const EVERY: usize = 16;
/// Bound with an f16 cache, where keys and values at a rounding boundary differ by one unit of 11 bits.
const HALVES: f64 = 2e-3;

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32], bound: f64) -> f64 {
    let off = error(found, expected);
    assert!(off <= bound, "{what}: off by {off:.2e}, the bound is {bound:.0e}");
    off
}

/// Sums, windows and similarities of a prompt and of a decode with evictions, probes and rollbacks, on every fixture.
#[test]
fn what_policies_measure_is_what_transformers_computes() {
    let _one = beside_others();
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
            // A prompt in two chunks, which is then cleared. The second time, nothing of the first is left.
            let mut cached = cache(&fx, &model, Dtype::F32, Positions::Original, 16);
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

            let mut cached = cache(&fx, &model, Dtype::F32, Positions::Original, 16);
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

/// What a policy receives beside its scores, compared with the reference: the ranges of values, which must not be the
/// lengths that are read with them, nor belong to the keys; and the sums of attention, without that of the probe.
#[test]
fn a_policy_gets_ranges_of_values_and_sums_of_attention() {
    let _one = beside_others();
    let fx = Fixture::open("qwen3-f32");
    let model = Reference::new(&fx.config, &fx.weights, 512);
    let prompt = fx.ids("oracle.prompt.ids");
    for device in two() {
        let mut text = model.read(Positions::Original, Dtype::F32);
        let shape = CacheShape::new(&fx.config, Dtype::F32, 1, 16).expect("a good model");
        let mut runner = Runner::new(fx.load(device), shape);
        let tracking = Tracking { queries: true, sums: true, ..Tracking::default() };
        let settings = Settings::default();
        let admission = Admission { settings: &settings, tracking, prompt: &prompt, group: None };
        runner.admit(0, true, &admission).expect("it fits");
        let mut rest = &prompt[..];
        while !rest.is_empty() {
            rest = &rest[runner.prefill(0, rest).expect("it fits")..];
        }
        let state = block_on(runner.read().finish()).expect("readable");
        let sampled = runner.cache().ids(&state, 0, 0, 1).expect("finite logits")[0];
        let held = runner.hold(&[(0, sampled)], None).expect("it fits");
        prompt.iter().chain([&sampled]).for_each(|id| drop(text.forward(*id)));
        let probe = ProbeInput { ids: &[], layers: 1 };
        let measurement = Measurement::WindowAndValues { queries: 8 };
        let request = MeasureRequest { measurement, granularity: Reduce::Layer, probe };
        let measured = block_on(runner.measure(&held, 0, &request).expect("tracked").finish()).expect("readable");
        let found: Vec<f32> = measured.value_range.expect("measured").layers.into_iter().flatten().flatten().collect();
        let expected: Vec<f32> = text.value_ranges().into_iter().flatten().flat_map(|row| narrowed(&row)).collect();
        assert_eq!(found.len(), fx.config.num_layers * fx.config.num_kv_heads * (prompt.len() + 1));
        close(&device.info.name, &found, &expected, MEASURED);

        let probe = ProbeInput { ids: &prompt[..5], layers: fx.config.num_layers };
        let request = MeasureRequest { measurement: Measurement::ProbeRowAndSums, granularity: Reduce::Layer, probe };
        let measured = block_on(runner.measure(&held, 0, &request).expect("tracked").finish()).expect("readable");
        let rows = measured.received.expect("measured").layers.into_iter().flatten();
        let found: Vec<f32> = rows.flat_map(|row| row[..=prompt.len()].to_vec()).collect();
        let expected: Vec<f32> = text.sums().into_iter().flatten().flat_map(|row| narrowed(&row)).collect();
        close(&device.info.name, &found, &expected, MEASURED);
        let rows = measured.attention.expect("measured").layers.into_iter().flatten();
        let found: Vec<f32> = rows.flat_map(|row| row[..=prompt.len()].to_vec()).collect();
        let row = |heads: Vec<Vec<f64>>| -> Vec<f32> {
            let mean = |slot: usize| heads.iter().map(|head| head[slot]).sum::<f64>() / heads.len() as f64;
            (0..=prompt.len()).map(|slot| mean(slot) as f32).collect()
        };
        let expected: Vec<f32> = text.aside(&prompt[..5]).attention.into_iter().flat_map(row).collect();
        close(&device.info.name, &found, &expected, MEASURED);
    }
}

/// The slots that the fixtures' schedule evicts from a layer and KV head.
fn planned(fx: &Fixture, measures: &Weights, scope: Scope, event: usize, layer: usize, head: usize) -> Vec<u32> {
    if scope == Scope::Shared {
        return fx.ids(&format!("oracle.{event}.evicted"));
    }
    let table = as_u32(measures.tensor(&format!("{scope}.{event}.evicted")).expect("in it").bytes);
    let most = table.len() / (fx.config.num_layers * fx.config.num_kv_heads);
    let row = &table[(layer * fx.config.num_kv_heads + head) * most..][..most];
    row.iter().copied().filter(|p| *p != u32::MAX).collect()
}

/// The pruning oracle for every scope and position mode: the results of transformers if each layer or head of its own
/// cache loses other tokens, and keys keep their positions or move up.
#[test]
fn every_scope_and_position_mode_decodes_as_transformers_does() {
    let _one = beside_others();
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
                let evicted = |event: usize, layer, head| planned(&fx, &golden, scope, event, layer, head);
                let place = format!("{name} on {}, scope {scope}, {positions}", device.info.name);
                let expected = floats(&golden, &format!("{scope}.{positions}.logits"));
                let mut cached = cache(&fx, &model, Dtype::F32, positions, 32);
                let found = schedule(&fx, &model, &mut cached, scope, &evicted);
                let off = close(&place, &found[found.len() - expected.len()..], &expected, LOGITS);
                // The check must refuse the other mode.
                if scope == Scope::Shared {
                    let plain = fx.floats("oracle.logits");
                    assert!(error(&plain[plain.len() - expected.len()..], &expected) > 100.0 * LOGITS, "{place}");
                }
                println!("{place}: logits off by {off:.1e}, bound {LOGITS:.0e}");
            }
        }
    }
}

/// Keys that moved 80 times, compared with keys computed for their present positions. The keys are those of layer 0,
/// which depend on their own tokens only.
#[test]
fn keys_that_closed_ranks_eighty_times_are_rounded_once() {
    let _one = beside_others();
    let fx = Fixture::open("qwen2-f16");
    for device in two() {
        let model = fx.load(device);
        for (words, bound) in [(Dtype::F32, 2e-6), (Dtype::F16, 6e-4)] {
            let mut compact = cache(&fx, &model, words, Positions::Compact, 32);
            let mut tokens: Vec<u32> = fx.ids("oracle.prompt.ids");
            let next = |step: usize| (step * 37 % 300) as u32;
            prefill(&model, &mut compact, 0, &tokens, next(0));
            for gather in 0..80 {
                for step in [2 * gather, 2 * gather + 1] {
                    tokens.push(next(step));
                    decode(&model, &mut compact, next(step + 1));
                }
                // In each round another pair of tokens is evicted, so that most tokens move every time and some stay
                // long.
                let n = tokens.len();
                let gone = [gather * 5 % (n - 8), (gather * 11 + 3) % (n - 8)];
                let kept: Vec<usize> = (0..n).filter(|slot| !gone.contains(slot)).collect();
                let slots: Vec<Slot> = kept.iter().map(|slot| Slot(*slot as u32)).collect();
                compact.keep(0, &slots, 2).expect("fits");
                tokens = kept.iter().map(|slot| tokens[*slot]).collect();
            }
            let n = tokens.len();
            assert_eq!(compact.len(0, 0), n);
            let mut fresh = fx.cache(device, Dtype::F32, 1, 32);
            prefill(&model, &mut fresh, 0, &tokens, 0);
            let (d, heads) = (fx.config.head_dim, fx.config.num_kv_heads);
            let table = rope::table(d, d, fx.config.rope_theta, &fx.config.rope_scaling, n);
            let value = |rows: &[u32], words: Dtype, row: usize, c: usize| match words {
                Dtype::F32 => f32::from_bits(rows[row * d + c]) as f64,
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
                        let want = value(&there, Dtype::F32, row, c);
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

/// The architectures of whole runs: with biases, with norms of heads, with scaled frequencies.
const MODELS: [&str; 3] = ["qwen2-f16", "qwen3-f32", "llama3-bf16"];
const MODES: [(Scope, Positions); 6] = [
    (Scope::Shared, Positions::Original),
    (Scope::Layer, Positions::Original),
    (Scope::Head, Positions::Original),
    (Scope::Shared, Positions::Compact),
    (Scope::Layer, Positions::Compact),
    (Scope::Head, Positions::Compact),
];

/// The reference's own prompts, attention, sums, windows and pruning oracle agree with transformers in every mode.
#[test]
fn the_reference_is_what_transformers_computes() {
    for name in MODELS.into_iter().chain(["qwen3moe-bf16"]) {
        let (fx, began) = (Fixture::open(name), std::time::Instant::now());
        let (golden, model) = (measures(&fx), reference(&fx));
        let mut worst = 0f64;
        let mut check = |what: &str, found: Vec<f32>, expected: &[f32]| {
            worst = worst.max(close(&format!("{name}: {what}"), &found, expected, REFERENCE));
        };
        let mut text = model.read(Positions::Original, Dtype::F32);
        let given: Vec<Given> = fx.ids("prompt.64.ids").iter().map(|id| text.forward(*id)).collect();
        check("logits", given.iter().flat_map(|g| narrowed(&g.logits)).collect(), &fx.floats("prompt.64.logits"));
        let last = given.last().expect("64 of them").attention.concat().concat();
        check("attention", narrowed(&last), &fx.floats("prompt.64.attention"));
        check("sums", narrowed(&text.sums().concat().concat()), &floats(&golden, "prompt.64.sums"));
        for queries in [8, 32] {
            let expected = floats(&golden, &format!("prompt.64.window.{queries}"));
            check("window", narrowed(&text.window(queries).concat().concat()), &expected);
        }
        for (scope, positions) in MODES {
            let mut text = model.read(positions, Dtype::F32);
            let mut logits = Vec::new();
            for id in fx.ids("oracle.prompt.ids") {
                text.forward(id);
            }
            for (position, id) in (40..).zip(fx.ids("oracle.ids")) {
                logits.extend(narrowed(&text.forward(id).logits));
                let Some(event) = EVENTS.iter().position(|p| *p == position) else { continue };
                if (scope, positions) == MODES[0] {
                    let probe = text.aside(&fx.ids(&format!("oracle.{event}.probe.ids"))).attention.concat().concat();
                    check("probe", narrowed(&probe), &fx.floats(&format!("oracle.{event}.probe.attention")));
                }
                text.evict(|layer, head| planned(&fx, &golden, scope, event, layer, head));
            }
            let expected = match (scope, positions) == MODES[0] {
                true => fx.floats("oracle.logits"),
                false => floats(&golden, &format!("{scope}.{positions}.logits")),
            };
            let place = format!("scope {scope}, {positions}");
            check(&place, logits[logits.len() - expected.len()..].to_vec(), &expected);
            if (scope, positions) == MODES[0] {
                check(
                    "sums after evictions",
                    narrowed(&text.sums().concat().concat()),
                    &floats(&golden, "oracle.sums"),
                );
                let expected = floats(&golden, "oracle.window.32");
                check("window after evictions", narrowed(&text.window(32).concat().concat()), &expected);
            }
        }
        println!("{name}: within {worst:.1e}, bound {REFERENCE:.0e}; {:.1} s", began.elapsed().as_secs_f64());
    }
}

/// A fixture whose text has steps. Every third token for a byte above 127, which no prompt here contains, is replaced
/// by a keyword. With random weights, the fixtures' own six keywords appear at most once in fifty tokens.
fn talkative(fx: &Fixture) -> ModelSource {
    let committed =
        std::fs::read_dir(directory(fx.name)).expect("committed").map(|entry| entry.expect("readable").path());
    let files = committed.map(|path| {
        let mut bytes = std::fs::read(&path).expect("committed");
        if path.ends_with("tokenizer.json") {
            let mut tokenizer: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
            let vocabulary = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
            let high = vocabulary.iter().filter(|(_, id)| (128..256).contains(&id.as_u64().expect("an id")));
            let spelled: Vec<String> = high.map(|(token, _)| token.clone()).step_by(3).collect();
            let keywords = ["Wait", "Hmm", "Maybe", "Okay", "First", "Then", "So", "Now"];
            let ends = [",", ".", ":", "!", "?", ";"];
            let tokens = keywords.iter().flat_map(|keyword| ends.map(|end| format!("Ġ{keyword}{end}")));
            for (old, new) in spelled.iter().zip(tokens) {
                let id = vocabulary.remove(old).expect("it is one of them");
                vocabulary.insert(new, id);
            }
            bytes = serde_json::to_vec(&tokenizer).expect("JSON");
        }
        (path.file_name().expect("a file").to_string_lossy().into_owned(), bytes)
    });
    ModelSource::memory(files)
}

fn engine(fx: &Fixture, device: &secateur::device::ComputeDevice, kv: Dtype) -> Engine {
    let options = LoadOptions { kv, context: Some(512), sequences: 11, weights: None };
    Engine::load(&talkative(fx), fx.name, device, &options, &mut |_, _| ()).expect("a good model")
}

/// Checks the properties that hold for every policy: the prompt stays; the budget is met exactly unless more is
/// protected; all heads of a layer keep equally many.
#[track_caller]
fn check_prunings(trace: &Trace, sets: &Sets, budget: usize, place: &str) {
    let prompt = trace.prompt_ids.len();
    for probe in &trace.probes {
        assert!(probe.evicted.iter().all(|p| *p as usize >= prompt), "{place}: the prompt is evicted");
        let others = trace.tokens[..probe.at_token].iter().filter(|t| t.role != Role::Thinking).count();
        let [before, after] = [probe.cached_before, probe.cached_after].map(|slots| slots - prompt - others);
        assert_eq!(after, probe.infeasible.as_ref().map_or(budget.min(before), |i| i.kept), "{place}");
        assert_eq!(probe.sets.len(), if sets.scope == Scope::Shared { 0 } else { sets.count() }, "{place}");
        let after = |s: &Set| s.cached_before - s.evicted.len();
        let longest = probe.sets.iter().map(after).max();
        assert!(longest.is_none_or(|most| most == probe.cached_after), "{place}");
        for layer in probe.sets.chunk_by(|a, b| a.layer == b.layer) {
            assert!(layer.iter().all(|s| after(s) == after(&layer[0])), "{place}: unequal heads");
        }
    }
}

/// One policy in one mode, with the fixture and KV type it runs with.
#[derive(Clone, Copy)]
struct Cell {
    policy: usize,
    mode: usize,
    model: &'static str,
    kv: Dtype,
}

impl Cell {
    /// Architectures and KV types go round in a Latin square: policy `i` runs in mode `j` with combination `(i + j)
    /// mod 6` of three architectures and two KV types. So each policy meets each combination once, and so does each
    /// mode.
    fn all() -> Vec<Self> {
        let kinds: Vec<(&str, Dtype)> = [Dtype::F32, Dtype::F16].map(|kv| MODELS.map(|model| (model, kv))).concat();
        let cell = |policy, mode: usize| {
            let (model, kv) = kinds[(policy + mode) % kinds.len()];
            Self { policy, mode, model, kv }
        };
        let cells: Vec<Self> = (0..POLICIES.len()).flat_map(|i| (0..MODES.len()).map(move |j| cell(i, j))).collect();
        let met = |of: fn(&Self) -> usize| {
            cells.iter().map(|c| format!("{} {} {}", of(c), c.model, c.kv)).collect::<HashSet<_>>()
        };
        assert_eq!(cells.len(), POLICIES.len() * MODES.len());
        assert_eq!((met(|c| c.policy).len(), met(|c| c.mode).len()), (POLICIES.len() * 6, MODES.len() * 6));
        cells
    }

    fn scope(&self) -> Scope {
        MODES[self.mode].0
    }

    fn positions(&self) -> Positions {
        MODES[self.mode].1
    }

    fn measures(&self) -> Measurement {
        POLICIES[self.policy].needs()
    }

    /// The number of thinking tokens to keep: enough that a policy can choose beyond its own window.
    fn budget(&self) -> usize {
        12.max(self.measures().queries() + 6)
    }

    /// Bounds of the costs of tokens and of importances.
    fn bounds(&self) -> (f64, f64) {
        if self.kv == Dtype::F32 { (LOGITS, MEASURED) } else { (HALVES, HALVES) }
    }

    fn options(&self) -> Settings {
        Settings {
            policy: POLICIES[self.policy].name().parse().expect("a listed policy"),
            budget: Budget::Tokens(self.budget()),
            max_new_tokens: TOKENS,
            window: 8,
            probe_every: EVERY,
            probe_text: "Time is up.</think>".into(),
            ignore_eos: true,
            scope: self.scope(),
            positions: self.positions(),
            ..Settings::default()
        }
    }

    /// Checks the results of a run with [`options`](Self::options).
    fn check(&self, trace: &Trace, config: &ModelConfig, place: &str) {
        let sets = Sets { scope: self.scope(), layers: config.num_layers, kv_heads: config.num_kv_heads };
        check_prunings(trace, &sets, self.budget(), place);
        let settings = &trace.settings;
        assert_eq!((settings.scope, settings.positions), (self.scope(), self.positions()));
        assert_eq!(trace.tokens.len(), TOKENS, "{place}");
        // One pruning for each full interval of thinking; the last token is never forwarded.
        let thinking = trace.tokens[..TOKENS - 1].iter().take_while(|t| t.role != Role::ThinkClose);
        let dates = thinking.filter(|t| t.role == Role::Thinking).count() / EVERY;
        let prunes = POLICIES[self.policy].evicts();
        assert_eq!((trace.probes.len(), lost(trace) > 0), (dates * prunes as usize, prunes), "{place}");
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (policy, scope, positions) = (POLICIES[self.policy].name(), self.scope(), self.positions());
        write!(f, "{policy}, scope {scope}, {positions}, {} with a cache of {}", self.model, self.kv)
    }
}

/// Evictions from any kept set.
fn lost(trace: &Trace) -> usize {
    let of = |p: &Probe| p.sets.iter().map(|s| s.evicted.len()).sum::<usize>().max(p.evicted.len());
    trace.probes.iter().map(of).sum()
}

/// Counts of the comparisons on a device.
struct Tally {
    runs: usize,
    alone: usize,
    prunings: usize,
    evictions: usize,
    /// With caches of f32 and of f16.
    found: [Replay; 2],
    /// The number of runs that were replayed wrongly, and the number of wrong replays that were refused.
    wrong: [(Evict, usize, usize); 5],
}

impl Tally {
    /// Replays a run of `cell`.
    fn replay(&mut self, cell: &Cell, reference: &Reference, trace: &Trace, probe_ids: &[u32], place: &str) {
        let found = replay(reference, cell.kv, trace, probe_ids, Evict::AsRecorded);
        let Replay { regret, importance, ids, steps, .. } = found;
        let (logits, measured) = cell.bounds();
        assert!(regret <= logits, "{place}: a token costs {regret:.1e}, bound {logits:.0e}");
        assert!(importance <= measured, "{place}: importances off by {importance:.1e}, bound {measured:.0e}");
        let scored = cell.measures() != Measurement::Nothing;
        assert_eq!((ids, steps > 0), (trace.tokens.len(), scored), "{place}: {steps} steps");
        self.found[(cell.kv == Dtype::F16) as usize].add(&found);
    }

    /// Replays a run in every wrong way that differs from the right one. The check must refuse each replay.
    fn replay_wrongly(&mut self, cell: &Cell, reference: &Reference, trace: &Trace) {
        let alike = trace.probes.iter().all(|p| p.sets.windows(2).all(|pair| pair[0].evicted == pair[1].evicted));
        for (wrong, tried, refused) in &mut self.wrong {
            if lost(trace) > 0 && (*wrong != Evict::OtherSets || !alike) {
                let found = replay(reference, cell.kv, trace, &[], *wrong);
                (*tried, *refused) = (*tried + 1, *refused + usize::from(found.regret > cell.bounds().0));
            }
        }
    }
}

/// Whole runs of every policy in every scope and position mode, on the CPU twin and on an adapter. The run meets its
/// budget; if the budget allows all tokens, its probes change nothing; and every token is the one that a decoder
/// without a cache chooses if the same tokens are hidden from it at the same time.
///
/// The runs of one fixture, KV type and position mode are made side by side. On an adapter, each policy also runs
/// alone.
#[test]
fn every_policy_runs_in_every_scope_and_position_mode() {
    let _one = beside_others();
    let models = MODELS.map(Fixture::open).map(|fx| (reference(&fx), fx));
    let cells = Cell::all();
    for device in two() {
        let (began, twin) = (std::time::Instant::now(), device.info.backend == "cpu");
        let mut tally = Tally {
            runs: 0,
            alone: 0,
            prunings: 0,
            evictions: 0,
            found: Default::default(),
            wrong: [Evict::Never, Evict::TooEarly, Evict::OtherPositions, Evict::OtherSets, Evict::Late]
                .map(|e| (e, 0, 0)),
        };
        for ((reference, fx), kv) in models.iter().flat_map(|model| [Dtype::F32, Dtype::F16].map(|kv| (model, kv))) {
            let mut engine = engine(fx, device, kv);
            for positions in [Positions::Original, Positions::Compact] {
                let its = |c: &&Cell| (c.model, c.kv, c.positions()) == (fx.name, kv, positions);
                let its: Vec<&Cell> = cells.iter().filter(its).collect();
                let keep = Settings { max_new_tokens: 2 * EVERY + 6, budget: Budget::Ratio(1.0), ..its[0].options() };
                let probe_ids = engine.tokenizer().expect("it has one").encode(&keep.probe_text).expect("text");
                let mut requests = vec![Settings { policy: secateur::policy::Full.into(), ..keep.clone() }];
                for cell in &its {
                    let Settings { policy, scope, .. } = cell.options();
                    requests.extend([Settings { policy, scope, ..keep.clone() }, cell.options()]);
                }
                let traces = side_by_side(&mut engine, &requests);
                for (cell, pair) in its.into_iter().zip(traces[1..].chunks(2)) {
                    let place = format!("{cell}, on {}", device.info.name);
                    let (keeping, pruned) = (&pair[0], &pair[1]);
                    assert_eq!(lost(keeping), 0, "{place}");
                    // On an adapter, a step with fewer rows may sum in another order.
                    if twin {
                        assert_eq!(ids_of(keeping), ids_of(&traces[0]), "{place}: probes changed what was generated");
                        tally.replay_wrongly(cell, reference, pruned);
                    }
                    let mut alone = Vec::new();
                    if !twin && cell.mode == cell.policy % MODES.len() {
                        alone = side_by_side(&mut engine, &[cell.options()]);
                        tally.alone += 1;
                    }
                    for pruned in alone.iter().chain([pruned]) {
                        cell.check(pruned, &fx.config, &place);
                        tally.replay(cell, reference, pruned, &probe_ids, &place);
                    }
                    tally.replay(cell, reference, keeping, &probe_ids, &place);
                    tally.runs += 1;
                    tally.prunings += pruned.probes.len();
                    tally.evictions += lost(pruned);
                }
            }
        }
        let Tally { runs, alone, prunings, evictions, found: [singles, halves], wrong } = tally;
        assert_eq!((runs, alone), (cells.len(), if twin { 0 } else { POLICIES.len() }));
        println!(
            "{}: {runs} runs side by side, {alone} alone, {prunings} prunings, {evictions} evictions, {:.1} s",
            device.info.name,
            began.elapsed().as_secs_f64()
        );
        println!("  replayed, caches of f32: {singles:?}\n  replayed, caches of f16: {halves:?}");
        for (wrong, tried, refused) in wrong.into_iter().filter(|_| twin) {
            println!("  replayed {wrong:?}: {refused} of {tried} refused");
            // A difference of one token need not change any choice.
            let least = if wrong == Evict::Late { tried * 4 / 5 } else { tried };
            assert!(tried >= 32 && refused >= least, "{wrong:?}: {refused} of {tried} refused: the replay is blind");
        }
    }
}

/// The traces of these requests, made side by side.
fn side_by_side(engine: &mut Engine, requests: &[Settings]) -> Vec<Trace> {
    let mut batch = engine.batch();
    for options in requests {
        batch.add(&Prompt::Chat("8 + 9?".into()), options).expect("a good request");
    }
    let mut results = block_on(batch.run(&mut |_, _| ()));
    results.sort_by_key(|(request, _)| *request);
    let trace = |(_, result): (usize, secateur::Result<RunResult>)| {
        let result = result.expect("it runs");
        assert!(result.error.is_none(), "{:?}", result.error);
        result.trace
    };
    results.into_iter().map(trace).collect()
}

fn ids_of(trace: &Trace) -> Vec<u32> {
    trace.tokens.iter().map(|t| t.id).collect()
}

/// With compact positions, the limit of a run is the number of cached tokens, not of written ones.
#[test]
fn a_compact_run_goes_on_past_the_context() {
    let _one = beside_others();
    // Without a tokenizer every token counts as thinking, whatever the random model writes.
    let committed = ModelSource::directory(directory("qwen2-f16")).expect("committed");
    let names = ["config.json", "generation_config.json", "model.safetensors"];
    let source = ModelSource::memory(names.map(|n| (n, committed.read(n).expect("committed").to_vec())));
    let load = LoadOptions { kv: Dtype::F16, context: Some(160), sequences: 1, weights: None };
    let mut engine = Engine::load(&source, "qwen2-f16", &devices()[0], &load, &mut |_, _| ()).expect("a good model");
    let options = Settings {
        max_new_tokens: 300,
        policy: secateur::policy::StreamingLlm.into(),
        budget: "tokens:40".parse().expect("a budget"),
        window: 16,
        probe_every: 40,
        ignore_eos: true,
        positions: Positions::Compact,
        ..Settings::default()
    };
    let mut run = |options: &Settings| {
        let prompt = Prompt::Ids((0..20).collect());
        block_on(engine.run(&prompt, options, &mut |_| ())).expect("it runs")
    };
    let compact = run(&options);
    assert_eq!(compact.trace.tokens.len(), 300);
    assert!(compact.trace.totals.peak_cached <= 160);
    let original = run(&Settings { positions: Positions::Original, ..options });
    let (n, prompt) = (original.trace.tokens.len(), original.trace.prompt_ids.len());
    assert_eq!((n + prompt, original.trace.stop_reason.clone()), (161, secateur::trace::StopReason::ContextFull));
    // Up to the first eviction, both runs are the same.
    assert_eq!(ids_of(&original.trace)[..40], ids_of(&compact.trace)[..40]);
}
