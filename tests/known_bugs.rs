//! Bugs that other implementations of cache eviction shipped, one test each. Where a larger test covers the same ground, this one
//! is its smallest form.
mod common;

use common::*;
use secateur::engine::{Engine, LoadOptions, Prompt, RunOptions, RunResult};
use secateur::kernels::launch::{as_floats, read_words};
use secateur::kernels::{self, NormSpec, Reduce, Words};
use secateur::model::config::RopeScaling;
use secateur::model::decoder::{Input, Logits};
use secateur::model::rope;
use secateur::policy::{
    Budget, CacheView, CachedToken, KeepPlan, Outcome, POLICIES, Positions, Role, StepInfo, ViewParts,
};
use secateur::weights::ModelSource;
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
        budget,
        window: 0,
        seed: 3,
        probe: 0,
        set: 0,
    });
    look(&view.expect("consistent facts"))
}

fn engine(sequences: usize) -> Engine {
    let source = ModelSource::directory(directory("qwen2-f16")).expect("committed");
    // No tokenizer: all of it counts as thinking, whatever the random model writes.
    let names = ["config.json", "generation_config.json", "model.safetensors"];
    let source = ModelSource::memory(names.map(|n| (n, source.read(n).expect("committed").to_vec())));
    let options = LoadOptions { kv: Words::F32, context: Some(512), sequences };
    Engine::load(&source, "qwen2-f16", &devices()[0], &options, &mut |_, _| ()).expect("a good model")
}

fn options(policy: &str) -> RunOptions {
    RunOptions {
        max_new_tokens: 50,
        policy: policy.into(),
        budget: Budget::Tokens(12),
        window: 8,
        probe_every: 20,
        ignore_eos: true,
        ..RunOptions::default()
    }
}

fn run(engine: &mut Engine, options: &RunOptions) -> RunResult {
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
            let plan = entry.make().plan(view).expect("a plan");
            assert!((0..6).all(|slot| plan.slots(0, 0).contains(&Slot(slot))), "{}", entry.name);
        }
    });
}

/// VeloxQuant-MLX #137 and #370: after an eviction the slot is taken for the position.
#[test]
fn a_slot_is_not_a_position() {
    let fx = Fixture::open("qwen2-f16");
    let model = fx.load(&devices()[0]);
    let (prompt, next) = (fx.ids("prompt.64.ids"), 9);
    // Layer 0's key of the next token, at its position, with nothing evicted and with most of it.
    let key = |evict: bool| {
        let mut cache = fx.cache(&devices()[0], Words::F32, 1, 8);
        prefill(&model, &mut cache, 0, &prompt, next);
        let kept: Vec<Slot> = (0..64).filter(|s| !evict || s % 4 == 0).map(Slot).collect();
        cache.keep(0, &|_, _| &kept, 1).expect("fits");
        decode(&model, &mut cache, 0);
        assert_eq!(cache.sequence(0).position, Position(65));
        let (rows, len) = (rows(&cache, 0, 0), cache.len(0, 0));
        rows[(len - 1) * fx.config.head_dim..len * fx.config.head_dim].to_vec()
    };
    assert_eq!(key(true), key(false));
}

/// kvpress' AdaKV and DMS, R-KV's first vLLM port: what is evicted is masked, and its memory stays taken.
#[test]
fn what_is_evicted_takes_no_room() {
    let fx = Fixture::open("qwen2-f16");
    let model = fx.load(&devices()[0]);
    let mut cache = fx.cache(&devices()[0], Words::F16, 1, 8);
    prefill(&model, &mut cache, 0, &fx.ids("prompt.200.ids"), 1);
    let before = cache.bytes();
    let kept: Vec<Slot> = (0..200).step_by(10).map(Slot).collect();
    cache.keep(0, &|_, _| &kept, 0).expect("fits");
    assert_eq!((cache.capacity(0, 0), cache.bytes()), (24, before * 24 / 200));
}

/// R-KV for transformers: the interval counter goes on from one prompt to the next.
#[test]
fn the_interval_begins_anew_with_each_prompt() {
    let mut engine = engine(1);
    for _ in 0..2 {
        // 50 tokens leave the counter at 10 of 20.
        let dates: Vec<usize> = run(&mut engine, &options("random")).trace.probes.iter().map(|p| p.at_token).collect();
        assert_eq!(dates, [20, 40]);
    }
}

/// Only element 0 of a batch is looked at.
#[test]
fn every_sequence_of_a_batch_is_pruned_by_its_own_scores() {
    let mut engine = engine(2);
    for policy in ["last-attention", "h2o", "r-kv"] {
        let prompts = [Prompt::Ids((0..30).collect()), Prompt::Ids((100..140).collect())];
        let alone: Vec<Vec<u32>> = prompts
            .iter()
            .map(|p| {
                block_on(engine.run(p, &options(policy), &mut |_| ())).expect("it runs").trace.probes[0].evicted.clone()
            })
            .collect();
        let mut batch = engine.batch();
        for prompt in &prompts {
            batch.add(prompt, &options(policy)).expect("taken on");
        }
        let results = block_on(batch.run(&mut |_, _| ()));
        for ((request, result), alone) in results.into_iter().zip(&alone) {
            let probes = result.expect("it runs").trace.probes;
            assert_eq!(&probes[0].evicted, alone, "{policy}, request {request}");
            assert!(!alone.is_empty());
        }
    }
}

/// An `h2o` that looks at the last query only: every query gives away one whole weight, so the sums add up to their number.
#[test]
fn heavy_hitters_are_heavy_over_all_queries() {
    let fx = Fixture::open("qwen2-f16");
    let model = fx.load(&devices()[0]);
    let mut cache = fx.cache(&devices()[0], Words::F32, 1, 8);
    cache.track(secateur::cache::Tracking { sums: true, queries: false }, fx.config.q_size());
    prefill(&model, &mut cache, 0, &fx.ids("prompt.64.ids"), 1);
    let probe = Input::Probe { seq: 0, ids: &[1, 2, 3] };
    model.forward(probe, &mut cache, Logits::None, Some(Reduce::Layer)).expect("fits");
    decode(&model, &mut cache, 0);
    let cap = cache.capacity(1, 0);
    let read = block_on(read_words(&[&cache.sums(1, 0).expect("tracked")])).expect("readable");
    for head in as_floats(&read[0]).chunks(cap) {
        let total: f32 = head[..65].iter().sum();
        assert!((total - 65.0).abs() < 1e-3, "{total} of 65 queries; the probe's three do not count");
    }
}

/// The indices of a top-k are gathered unsorted.
#[test]
fn kept_slots_must_ascend() {
    with_view(Budget::Tokens(20), |view| {
        let mut kept: Vec<Slot> = (0..26).map(Slot).collect();
        kept.swap(8, 12);
        assert!(KeepPlan::new(view, kept, Outcome::Met).is_err());
    });
}

/// A prefix cache is used again after its slots were evicted in place.
#[test]
fn nothing_of_a_pruned_cache_reaches_the_next_prompt() {
    let mut used = engine(1);
    run(&mut used, &options("random"));
    let after = run(&mut used, &options("full"));
    assert_eq!(ids(&after), ids(&run(&mut engine(1), &options("full"))));
}

/// Steps are scheduled between scoring and compaction, which then cuts other slots than were scored.
#[test]
fn no_step_comes_between_scores_and_gather() {
    for policy in ["last-attention", "h2o", "snapkv"] {
        let result = run(&mut engine(1), &options(policy));
        let mut gone = 0;
        for probe in &result.trace.probes {
            assert_eq!(probe.cached_before, 30 + probe.at_token - gone, "{policy}: all that was written, and no more");
            gone += probe.evicted.len();
        }
        assert!(gone > 0);
    }
}

/// ClearThink: the probe materialises full attention and runs out of memory at a few thousand tokens.
#[test]
fn a_probe_reads_one_row() {
    let fx = Fixture::open("qwen2-f16");
    let model = fx.load(&devices()[0]);
    let mut cache = fx.cache(&devices()[0], Words::F32, 1, 8);
    prefill(&model, &mut cache, 0, &fx.ids("prompt.200.ids"), 1);
    let probe = Input::Probe { seq: 0, ids: &[1, 2, 3] };
    let out = model.forward(probe, &mut cache, Logits::None, Some(Reduce::Layer)).expect("fits");
    assert!(out.readout.len() == fx.config.num_layers && out.readout.iter().all(|row| row.dims() == [1, 203]));
}

/// A reference that hides evicted keys from the rows that still saw them.
#[test]
fn the_oracle_does_not_mask_too_early() {
    for name in FIXTURES {
        let fx = Fixture::open(name);
        let wrong = error(&fx.floats("wrong.masked_too_early.logits"), &fx.floats("oracle.logits"));
        assert!(wrong > 1e-2, "{name}: the oracles cannot be told apart");
    }
}

/// Squares of activations overflow f16 from 256 on.
#[test]
fn squares_do_not_overflow() {
    for device in two() {
        let x = kernels::floats(vec![3e4f32; 64], [1, 64], &device.burn);
        let weight = kernels::floats(vec![1.0; 64], [64], &device.burn);
        let normed = values(&kernels::rms_norm(&x, &weight, NormSpec { n: 1, first: 0, cols: 64, eps: 1e-6 }));
        assert!(normed.iter().all(|v| (v - 1.0).abs() < 1e-5), "{}: {normed:?}", device.info.name);
    }
}

/// RoPE tables in f16 are exact only to position 2048, in bf16 to 256; f32 arithmetic is off by 1.8e-3 at 30,000.
#[test]
fn rotations_are_exact_at_position_thirty_thousand() {
    let (d, p) = (128, 30_000);
    let table = rope::table(d, 1e6, &RopeScaling::None, p + 1);
    for i in 0..d / 2 {
        let angle = p as f64 * 1e6f64.powf(-((2 * i) as f64) / d as f64);
        let (cos, sin) = (table[p * d + i] as f64, table[p * d + d / 2 + i] as f64);
        assert!((cos - angle.cos()).abs() < 1e-7 && (sin - angle.sin()).abs() < 1e-7, "frequency {i}");
    }
}

/// So much is evicted that the model writes again what it lost, in circles: it must show in the totals.
#[test]
fn loops_are_reported() {
    let mut engine = engine(1);
    // A random model decoded greedily, with next to nothing kept, soon runs in circles.
    let options =
        RunOptions { budget: Budget::Tokens(1), window: 1, max_new_tokens: 400, probe_every: 5, ..options("random") };
    let result = run(&mut engine, &RunOptions { positions: Positions::Compact, ..options });
    let all: Vec<u32> = ids(&result);
    let seen = |end: usize| (12..end).any(|e| all[e - 12..e] == all[end - 12..end]);
    let repeated = (13..=all.len()).filter(|&end| seen(end)).count();
    println!("{repeated} of {} tokens end 12 that were written before", all.len());
    assert_eq!(result.trace.totals.repeated_tokens, repeated);
    assert!(repeated > 0, "this run was to go in circles");
}
