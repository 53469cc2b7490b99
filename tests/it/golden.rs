//! Compares the decoder with transformers: logits, attention rows, greedy ids and the pruning oracle of every
//! fixture, on every device, with f32 and f16 caches. `tests/golden/README.md` describes the numbers.
use std::sync::Arc;

use crate::common::*;
use secateur::Dtype;
use secateur::Slot;
use secateur::device::ComputeDevice;
use secateur::expert::cache::{CacheShape, KvCache};
use secateur::expert::kernels::Reduce;
use secateur::expert::kernels::memory::poison_outputs;
use secateur::expert::model::decoder::{Decoder, Input, Logits};
use secateur::expert::runner::Runner;

const PROMPTS: [usize; 4] = [1, 7, 64, 200];

/// The largest errors that are allowed: of logits as a fraction of the largest |logit|, of attention weights as
/// absolute differences.
#[derive(Clone, Copy)]
struct Bounds {
    logits: f64,
    attention: f64,
}

/// Bounds with an f32 cache. For logits, the bound of the fixtures' README; for attention weights, which lie in 0..1,
/// ten times the difference from float64.
const F32: Bounds = Bounds { logits: 1e-4, attention: 2e-5 };
/// Bounds with an f16 cache, whose keys and values have 11 bits. They are twice the worst error measured, and far
/// below the error of any wrong oracle.
const F16: Bounds = Bounds { logits: 4e-3, attention: 4e-3 };

fn bounds(words: Dtype) -> Bounds {
    if words == Dtype::F32 { F32 } else { F16 }
}

/// Counts comparisons and keeps the worst error of each kind, so that the test can print how much it compared.
#[derive(Default)]
struct Tally(Vec<(&'static str, usize, f64, f64)>);

impl Tally {
    #[track_caller]
    fn add(&mut self, what: &'static str, error: f64, bound: f64, place: impl std::fmt::Display) {
        if !self.0.iter().any(|t| t.0 == what) {
            self.0.push((what, 0, 0.0, bound));
        }
        let entry = self.0.iter_mut().find(|t| t.0 == what).expect("just added");
        (entry.1, entry.2) = (entry.1 + 1, entry.2.max(error));
        if std::env::var_os("SECATEUR_MEASURE").is_none() {
            assert!(error <= bound, "{what}, {place}: off by {error:.2e}, the bound is {bound:.0e}");
        }
    }

    fn count(&self, what: &str) -> usize {
        self.0.iter().find(|t| t.0 == what).map_or(0, |t| t.1)
    }

    fn print(&self, title: &str) {
        for (what, count, worst, bound) in &self.0 {
            println!("{title}: {what}: {count} compared, worst {worst:.2e}, bound {bound:.0e}");
        }
    }
}

fn means(rows: &[f32], per_mean: usize, slots: usize) -> Vec<f32> {
    let mean = |group: &[f32], s| (0..per_mean).map(|h| group[h * slots + s] as f64).sum::<f64>() / per_mean as f64;
    rows.chunks(per_mean * slots).flat_map(|group| (0..slots).map(move |s| mean(group, s) as f32)).collect()
}

/// Checks logits and readouts of prompts that are forwarded at once, in chunks, and token by token.
fn prompts(fx: &Fixture, model: &Decoder, words: Dtype, tally: &mut Tally) {
    let device = model.device();
    let (heads, kv_heads, vocab) = (fx.config.num_heads, fx.config.num_kv_heads, fx.config.vocab_size);
    let bound = bounds(words);
    for n in PROMPTS {
        let ids = fx.ids(&format!("prompt.{n}.ids"));
        let golden = fx.floats(&format!("prompt.{n}.logits"));
        let weights = fx.floats(&format!("prompt.{n}.attention"));
        assert_eq!((ids.len(), weights.len()), (n, fx.config.num_layers * heads * n));
        let mut cache = fx.cache(device, words, 1, 64);
        // A forward pass does not advance the length of the cache, so the same chunk can be forwarded again.
        let forward = |cache: &mut KvCache, reduce| {
            let out = forward(model, cache, Input::Chunk { seq: 0, ids: &ids }, Some(reduce)).expect("fits");
            assert_eq!(out.readout.len(), fx.config.num_layers);
            let readouts: Vec<Vec<f32>> = out.readout.iter().map(values).collect();
            (values(&model.logits(&out, Logits::All)), readouts)
        };
        let (logits, each) = forward(&mut cache, Reduce::None);
        assert_eq!(logits.len(), n * vocab);
        tally.add(
            "logits",
            error(&logits[logits.len() - golden.len()..], &golden),
            bound.logits,
            format!("prompt of {n}"),
        );
        let (_, grouped) = forward(&mut cache, Reduce::KvHead);
        let (_, single) = forward(&mut cache, Reduce::Layer);
        for (layer, found) in each.iter().enumerate() {
            let place = |head: usize| format!("prompt of {n}, layer {layer}, head {head}");
            for (head, row) in found.chunks(n).enumerate() {
                let expected = &weights[(layer * heads + head) * n..][..n];
                tally.add("attention rows", difference(row, expected), bound.attention, place(head));
            }
            let mean = means(found, heads / kv_heads, n);
            tally.add("KV head means", difference(&grouped[layer], &mean), 2e-6, place(0));
            let mean = means(found, heads, n);
            tally.add("layer means", difference(&single[layer], &mean), 2e-6, place(0));
        }
        let last = &golden[golden.len() - vocab..];
        for chunk in [48, 9, 1] {
            let mut cache = fx.cache(device, words, 1, 64);
            let mut logits = None;
            for part in ids.chunks(chunk) {
                logits = Some(prefill(model, &mut cache, 0, part, 0));
            }
            assert_eq!(cache.len(0, 0), n);
            let logits = values(&logits.expect("a prompt"));
            tally.add("chunked prefill", error(&logits, last), bound.logits, format!("prompt of {n} by {chunk}"));
        }
    }
}

/// Decodes 64 tokens greedily. Each token is forwarded before the host has read it; ids are read 16 steps later.
fn greedy(fx: &Fixture, model: &Arc<Decoder>) -> Vec<u32> {
    let shape = CacheShape::new(&fx.config, Dtype::F32, 1, 64).expect("f32");
    let mut runner = Runner::new(model.clone(), shape);
    runner.prefill(0, &fx.ids("prompt.64.ids")).expect("fits");
    let (mut reads, mut ids) = (Vec::new(), Vec::new());
    for step in 1..64u32 {
        runner.decode(&[0], 1).expect("fits");
        if (step + 1).is_multiple_of(16) {
            reads.push((step + 1 - 16, runner.read()));
        }
    }
    for (from, read) in reads {
        let state = block_on(read.finish()).expect("readable");
        ids.extend(runner.cache().ids(&state, 0, from, from + 16).expect("finite"));
    }
    ids
}

/// How the evictions of the oracle are carried out: as planned, or wrongly on purpose.
#[derive(Clone, Copy, PartialEq)]
enum Evict {
    AsPlanned,
    Never,
    /// Every evicted slot is the one after the planned slot.
    OffByOne,
}

struct Decoded {
    /// `[120, vocabulary]`.
    logits: Vec<f32>,
    /// For each event, `[layers, heads, slots]`.
    probes: Vec<Vec<f32>>,
    prompt: Vec<f32>,
}

/// The teacher-forced decoding that the fixtures' README describes, with probes, rollbacks and evictions.
fn oracle(fx: &Fixture, model: &Decoder, words: Dtype, evict: Evict) -> Decoded {
    let device = model.device();
    let mut cache = fx.cache(device, words, 1, 32);
    let (question, ids) = (fx.ids("oracle.prompt.ids"), fx.ids("oracle.ids"));
    let prompt = values(&prefill(model, &mut cache, 0, &question, ids[0]));
    let mut positions: Vec<u32> = (0..question.len() as u32).collect();
    let (mut reads, mut probes) = (Vec::new(), Vec::new());
    for i in 0..ids.len() {
        let next = ids.get(i + 1).copied().unwrap_or(0);
        reads.push(start(&decode(model, &mut cache, next)));
        let position = (question.len() + i) as u32;
        positions.push(position);
        let Some(event) = [70, 100, 130].iter().position(|p| *p == position) else { continue };
        let before = cache.checkpoint(0);
        let probe = fx.ids(&format!("oracle.{event}.probe.ids"));
        let input = Input::Chunk { seq: 0, ids: &probe };
        let out = forward(model, &mut cache, input, Some(Reduce::None)).expect("fits");
        cache.advance(0, probe.len(), 0);
        let seen: Vec<u32> = positions.iter().copied().chain(position + 1..=position + probe.len() as u32).collect();
        if evict == Evict::AsPlanned {
            assert_eq!(seen, fx.ids(&format!("oracle.{event}.probe.positions")));
        }
        probes.push(out.readout.iter().flat_map(values).collect());
        cache.rollback(&before, next);
        assert_eq!(cache.checkpoint(0), before);
        let evicted = fx.ids(&format!("oracle.{event}.evicted"));
        let gone = |at: usize, p: u32| match evict {
            Evict::AsPlanned => evicted.contains(&p),
            Evict::Never => false,
            Evict::OffByOne => at > 0 && evicted.contains(&positions[at - 1]),
        };
        let kept: Vec<usize> = (0..positions.len()).filter(|at| !gone(*at, positions[*at])).collect();
        let slots: Vec<Slot> = kept.iter().map(|at| Slot(*at as u32)).collect();
        cache.keep(0, &slots, 1).expect("fits");
        positions = kept.iter().map(|at| positions[*at]).collect();
        assert_eq!(cache.len(0, 0), positions.len());
        assert_eq!(cache.sequence(0).position.0, position + 1, "positions go on counting");
    }
    assert_mirrored(&cache);
    Decoded { logits: reads.into_iter().flat_map(finish).collect(), probes, prompt }
}

fn check_oracle(fx: &Fixture, found: &Decoded, bound: Bounds, tally: &mut Tally) {
    let (vocab, heads) = (fx.config.vocab_size, fx.config.num_heads);
    tally.add("oracle logits", error(&found.prompt, &fx.floats("oracle.prompt.logits")), bound.logits, "the question");
    let golden = fx.floats("oracle.logits");
    assert_eq!(found.logits.len(), golden.len());
    for (i, (found, golden)) in found.logits.chunks(vocab).zip(golden.chunks(vocab)).enumerate() {
        tally.add("oracle logits", error(found, golden), bound.logits, format!("step {i}"));
    }
    for (event, found) in found.probes.iter().enumerate() {
        let golden = fx.floats(&format!("oracle.{event}.probe.attention"));
        assert_eq!(found.len(), golden.len(), "event {event}");
        let slots = golden.len() / (fx.config.num_layers * heads);
        for (row, (found, golden)) in found.chunks(slots).zip(golden.chunks(slots)).enumerate() {
            let place = format!("event {event}, layer {}, head {}", row / heads, row % heads);
            tally.add("oracle probe rows", difference(found, golden), bound.attention, place);
        }
    }
}

fn on_device(fx: &Fixture, device: &ComputeDevice) {
    let model = fx.load(device);
    // The error of an f16 cache does not depend on the type of the weights. Qwen2 and one model with norms on its
    // heads represent all fixtures.
    let half = fx.name.starts_with("qwen2") || fx.name == "qwen3-yarn-f16";
    for &words in if half { &[Dtype::F32, Dtype::F16][..] } else { &[Dtype::F32] } {
        let mut tally = Tally::default();
        prompts(fx, &model, words, &mut tally);
        check_oracle(fx, &oracle(fx, &model, words, Evict::AsPlanned), bounds(words), &mut tally);
        tally.print(&format!("{} on {}, {words:?} cache", fx.name, device.info.name));
        let rows = fx.config.num_layers * fx.config.num_heads;
        assert_eq!(tally.count("logits"), PROMPTS.len());
        assert_eq!(tally.count("attention rows"), PROMPTS.len() * rows);
        assert_eq!(tally.count("KV head means"), PROMPTS.len() * fx.config.num_layers);
        assert_eq!(tally.count("layer means"), PROMPTS.len() * fx.config.num_layers);
        assert_eq!(tally.count("chunked prefill"), PROMPTS.len() * 3);
        assert_eq!(tally.count("oracle logits"), 121);
        assert_eq!(tally.count("oracle probe rows"), 3 * rows);
    }
    assert_eq!(greedy(fx, &model), fx.ids("greedy.ids"), "{} on {}", fx.name, device.info.name);
}

fn on_every_device(name: &'static str) {
    let _one = beside_others();
    let fx = Fixture::open(name);
    for device in devices() {
        let began = std::time::Instant::now();
        on_device(&fx, device);
        println!("{name} on {}: {:.1} s", device.info.name, began.elapsed().as_secs_f64());
    }
}

#[test]
fn qwen2_f32() {
    on_every_device("qwen2-f32");
}

#[test]
fn qwen2_f16() {
    on_every_device("qwen2-f16");
}

#[test]
fn qwen2_bf16() {
    on_every_device("qwen2-bf16");
}

#[test]
fn qwen3_f32() {
    on_every_device("qwen3-f32");
}

#[test]
fn qwen3_yarn_f16() {
    on_every_device("qwen3-yarn-f16");
}

#[test]
fn llama3_bf16_in_shards() {
    on_every_device("llama3-bf16");
}

#[test]
fn smollm3_layers_without_rope() {
    on_every_device("smollm3-bf16");
}

#[test]
fn mistral_f16() {
    on_every_device("mistral-f16");
}

#[test]
fn phi3_fused_partly_rotated_long() {
    on_every_device("phi3-long-f16");
}

#[test]
fn qwen3moe_with_a_dense_layer() {
    on_every_device("qwen3moe-bf16");
}

#[test]
fn gguf_qwen3moe_mixed_experts() {
    on_every_device("gguf-qwen3moe-q8");
}

#[test]
fn gguf_phi3_short() {
    on_every_device("gguf-phi3-q8");
}

#[test]
fn gguf_smollm3() {
    on_every_device("gguf-smollm3-q8");
}

#[test]
fn gguf_ministral3_yarn_without_magnitude() {
    on_every_device("gguf-ministral3-q8");
}

#[test]
fn gguf_qwen2_q8() {
    on_every_device("gguf-qwen2-q8");
}

#[test]
fn gguf_llama_q4_mixed() {
    on_every_device("gguf-llama-q4");
}

#[test]
fn gguf_qwen3_yarn_halves() {
    on_every_device("gguf-qwen3-f16");
}

/// The decode steps of every architecture with norms the other way: on a software adapter, as on GPUs.
#[test]
fn the_oracle_holds_with_other_norms() {
    let _one = beside_others();
    for device in &two_with_other_norms() {
        for name in ["qwen2-f32", "qwen3-yarn-f16", "mistral-f16", "phi3-long-f16", "qwen3moe-bf16", "gguf-llama-q4"] {
            let fx = Fixture::open(name);
            let model = fx.load(device);
            let mut tally = Tally::default();
            check_oracle(&fx, &oracle(&fx, &model, Dtype::F32, Evict::AsPlanned), F32, &mut tally);
            assert_eq!(tally.count("oracle logits"), 121);
            tally.print(&format!("{name} with other norms on {}", device.info.name));
            assert_eq!(greedy(&fx, &model), fx.ids("greedy.ids"), "{name} on {}", device.info.name);
        }
    }
}

/// Kernels must read only values that kernels have written: the results do not change if every new buffer is full of
/// NaN.
#[test]
fn the_oracle_holds_in_poisoned_memory() {
    let _one = beside_others();
    let Some(device) = gpu() else { return };
    let fx = Fixture::open("qwen2-f32");
    let model = fx.load(device);
    poison_outputs(true);
    let found = oracle(&fx, &model, Dtype::F32, Evict::AsPlanned);
    poison_outputs(false);
    let mut tally = Tally::default();
    check_oracle(&fx, &found, F32, &mut tally);
    assert_eq!(tally.count("oracle logits"), 121);
    tally.print("poisoned");
}

/// The checks must reject each of these wrong results. Otherwise they would prove nothing.
#[test]
fn the_checks_reject_what_is_wrong() {
    let _one = beside_others();
    for name in FIXTURES.into_iter().chain(GGUF_FIXTURES) {
        let fx = Fixture::open(name);
        let model = fx.load(&devices()[0]);
        let golden = fx.floats("oracle.logits");
        let vocab = fx.config.vocab_size;
        let least = |what: &str, error: f64, bound: f64| {
            println!("{name}: {what}: off by {error:.2e}");
            assert!(error > bound, "{name}: {what} passes: {error:.2e} of {bound:.0e}");
        };
        least("masked too early", error(&fx.floats("wrong.masked_too_early.logits"), &golden), F16.logits);
        for (what, evict) in [("never evicting", Evict::Never), ("evicting one slot too far", Evict::OffByOne)] {
            least(what, error(&oracle(&fx, &model, Dtype::F32, evict).logits, &golden), F16.logits);
        }
        let right = oracle(&fx, &model, Dtype::F32, Evict::AsPlanned);
        for (what, wrong) in [
            ("uniform logits", vec![1.0; golden.len()]),
            ("zero logits", vec![0.0; golden.len()]),
            ("not a number", vec![f32::NAN; golden.len()]),
            ("one number missing", golden[1..].to_vec()),
            ("one row late", [&golden[..vocab], &golden[..golden.len() - vocab]].concat()),
            ("two ids swapped", right.logits.chunks(vocab).flat_map(|r| [&[r[1], r[0]], &r[2..]].concat()).collect()),
            ("an echo of the input", {
                let ids = fx.ids("oracle.ids");
                let row = |id: u32| (0..vocab as u32).map(move |v| if v == id { 20.0 } else { 0.0 });
                ids.into_iter().flat_map(row).collect()
            }),
        ] {
            least(what, error(&wrong, &golden), F16.logits);
        }
        for n in [7, 64, 200] {
            let golden = fx.floats(&format!("prompt.{n}.attention"));
            let heads = fx.config.num_heads;
            for (row, golden) in golden.chunks(n).enumerate() {
                let what = format!("prompt of {n}, layer {}, head {}", row / heads, row % heads);
                let error = difference(&vec![1.0 / n as f32; n], golden);
                assert!(error > F16.attention, "{name}: {what}: a uniform row passes");
            }
            for layer in golden.chunks(n * heads) {
                for head in 1..heads {
                    let error = difference(&layer[(head - 1) * n..head * n], &layer[head * n..(head + 1) * n]);
                    assert!(error > F16.attention, "{name}: prompt of {n}: swapped heads pass");
                }
            }
        }
        let wrong = oracle(&fx, &model, Dtype::F32, Evict::OffByOne);
        let slots = right.probes[1].len() == wrong.probes[1].len();
        assert!(
            slots && difference(&wrong.probes[1], &right.probes[1]) > F16.attention,
            "{name}: the probe sees no eviction"
        );
    }
}
