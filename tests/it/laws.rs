//! Laws of the cache and of decoding, on the CPU twin and on one GPU adapter. Values that must be equal are compared
//! bit for bit.
use std::sync::Arc;

use crate::common::*;
use proptest::prelude::*;
use secateur::Dtype;
use secateur::Slot;
use secateur::device::{ComputeDevice, Tuning};
use secateur::expert::cache::{CacheShape, KvCache};
use secateur::expert::kernels::cases::noise;
use secateur::expert::kernels::memory::{empty_f32, poison_outputs};
use secateur::expert::kernels::readback::as_u32;
use secateur::expert::kernels::{self, LinearSpec, MOST_TOGETHER, Mode, NormSpec, Reduce, state};
use secateur::expert::model::decoder::{Decoder, Input};
use secateur::expert::runner::Runner;
use secateur::expert::sampling::Sampler;
use secateur::expert::weights::PackedRows;

/// Few cases, because each forwards a model on slow adapters. No file of past failures is kept, because a failure
/// prints its input.
fn few(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Runs `law` on every device of [`two`] for every architecture, with both types of cache and with quantized weights.
/// Panics if nothing ran. `_held` is the test's guard of the adapters.
fn everywhere<Guard>(_held: Guard, law: impl Fn(&Fixture, &Arc<Decoder>, Dtype)) {
    const MODELS: [(&str, Dtype); 3] =
        [("qwen2-f16", Dtype::F32), ("qwen3-yarn-f16", Dtype::F16), ("gguf-llama-q4", Dtype::F16)];
    let mut ran = 0;
    for (name, words) in MODELS {
        let fx = Fixture::open(name);
        for device in two() {
            law(&fx, &fx.load(device), words);
            ran += 1;
        }
    }
    assert_eq!(ran, two().len() * MODELS.len());
}

fn slots(kept: impl IntoIterator<Item = usize>) -> Vec<Slot> {
    kept.into_iter().map(|s| Slot(s as u32)).collect()
}

fn all_rows(cache: &KvCache, seq: usize) -> Vec<Vec<u32>> {
    (0..cache.shape().layers).map(|layer| rows(cache, layer, seq)).collect()
}

/// A cache with the prompt of 64 ids in it and a pending token.
fn filled(fx: &Fixture, model: &Decoder, words: Dtype, growth: usize) -> KvCache {
    let mut cache = fx.cache(model.device(), words, 1, growth);
    prefill(model, &mut cache, 0, &fx.ids("prompt.64.ids"), 17);
    cache
}

/// The next logits. Lengths do not advance.
fn peek(model: &Decoder, cache: &mut KvCache) -> Vec<u32> {
    let seqs: Vec<usize> = (0..cache.shape().seqs).collect();
    bits(&values(&last_logits(model, cache, Input::Pending(&seqs))))
}

#[test]
fn keeping_everything_changes_nothing() {
    everywhere(beside_others(), |fx, model, words| {
        for room in [0, 1, 300] {
            let mut cache = filled(fx, model, words, 16);
            let (logits, before) = (peek(model, &mut cache), all_rows(&cache, 0));
            let all = slots(0..64);
            cache.keep(0, &all, room).expect("fits");
            assert_mirrored(&cache);
            assert_eq!(all_rows(&cache, 0), before, "room {room}");
            assert_eq!(peek(model, &mut cache), logits, "room {room}");
        }
    });
}

#[test]
fn a_probe_rolled_back_leaves_no_trace() {
    everywhere(beside_others(), |fx, model, words| {
        let probe = fx.ids("oracle.0.probe.ids");
        // In one run there is room for the probe; in the other the cache has to grow and move for it.
        for room in [true, false] {
            let mut cache = filled(fx, model, words, if room { 256 } else { 64 });
            let reference = peek(model, &mut filled(fx, model, words, 64));
            let (state_before, rows_before) = (state_words(&cache), all_rows(&cache, 0));
            let (checkpoint, mirror) = (cache.checkpoint(0), cache.sequence(0));
            let input = Input::Chunk { seq: 0, ids: &probe };
            let out = forward(model, &mut cache, input, Some(Reduce::KvHead)).expect("fits");
            assert_eq!(out.readout.len(), fx.config.num_layers);
            cache.advance(0, probe.len(), 0);
            assert_mirrored(&cache);
            assert_eq!(cache.len(0, 0), 64 + probe.len());
            cache.rollback(&checkpoint, 17);
            assert_mirrored(&cache);
            assert_eq!((cache.checkpoint(0), cache.sequence(0)), (checkpoint, mirror));
            assert_eq!(all_rows(&cache, 0), rows_before);
            if room {
                assert_eq!(state_words(&cache), state_before);
            } else {
                assert!(cache.capacity(0, 0) > 64, "this case is about growing");
                assert_eq!(state_words(&cache)[..state::SEQ], state_before[..state::SEQ]);
            }
            assert_eq!(peek(model, &mut cache), reference);
        }
    });
}

/// If only the first layers count, a probe is not forwarded through the others. The rows have the same bits, and the
/// cache is unchanged.
#[test]
fn a_probe_that_stops_early_reads_the_same_bits() {
    everywhere(beside_others(), |fx, model, words| {
        let probe = fx.ids("oracle.0.probe.ids");
        let mut cache = filled(fx, model, words, 256);
        let (logits, before) = (peek(model, &mut cache), all_rows(&cache, 0));
        let mut read = |layers: usize| {
            let checkpoint = cache.checkpoint(0);
            let input = Input::Probe { seq: 0, ids: &probe, layers };
            let out = forward(model, &mut cache, input, Some(Reduce::KvHead)).expect("fits");
            cache.rollback(&checkpoint, 17);
            out.readout_of(0).into_iter().map(|rows| bits(&values(rows))).collect::<Vec<_>>()
        };
        let all = read(fx.config.num_layers);
        assert_eq!(all.len(), fx.config.num_layers);
        for layers in 1..fx.config.num_layers {
            assert_eq!(read(layers), all[..layers], "{layers} layers");
        }
        assert_eq!((peek(model, &mut cache), all_rows(&cache, 0)), (logits, before));
    });
}

#[test]
fn gather_after_gather_is_the_gather_of_the_composition() {
    everywhere(beside_others(), |fx, model, words| {
        let mask = || prop::collection::vec(any::<bool>(), 64);
        let mut runner = proptest::test_runner::TestRunner::new(few(6));
        let law = |(first, second, per_head): (Vec<bool>, Vec<bool>, bool)| {
            // One set for all, or for each head and layer a set of equal size, mirrored for every other head.
            let chosen = |mask: &[bool], n: usize| -> Vec<usize> { (0..n).filter(|i| mask[*i]).collect() };
            let once = chosen(&first, 64);
            let twice = chosen(&second, once.len());
            let mirror = |set: &[usize], n: usize| -> Vec<usize> { set.iter().rev().map(|s| n - 1 - s).collect() };
            let sets = |set: &[usize], n: usize| [slots(set.to_vec()), slots(mirror(set, n))];
            let pick = |layer: usize, head: usize| if per_head { (layer + head) % 2 } else { 0 };
            let (a, b) = (sets(&once, 64), sets(&twice, once.len()));
            let composed: Vec<Vec<Slot>> = (0..2).map(|v| b[v].iter().map(|s| a[v][s.0 as usize]).collect()).collect();
            let mut stepwise = filled(fx, model, words, 16);
            stepwise.keep(0, &Kept { lists: &a, pick }, 0).expect("fits");
            stepwise.keep(0, &Kept { lists: &b, pick }, 1).expect("fits");
            let mut direct = filled(fx, model, words, 16);
            direct.keep(0, &Kept { lists: &composed, pick }, 1).expect("fits");
            assert_eq!(stepwise.len(0, 0), twice.len());
            assert_eq!(all_rows(&stepwise, 0), all_rows(&direct, 0));
            assert_eq!(peek(model, &mut stepwise), peek(model, &mut direct));
            // The rows are those of the full cache, word for word.
            let whole = all_rows(&filled(fx, model, words, 16), 0);
            let shape = *direct.shape();
            let row_words = shape.slot_bytes() / (2 * shape.kv_heads * 4);
            for (layer, kept) in all_rows(&direct, 0).iter().enumerate() {
                for (i, row) in kept.chunks(row_words).enumerate() {
                    let (plane, at) = (i / twice.len(), i % twice.len());
                    let from = composed[pick(layer, plane % shape.kv_heads)][at].0 as usize;
                    assert_eq!(row, &whole[layer][(plane * 64 + from) * row_words..][..row_words]);
                }
            }
            Ok(())
        };
        runner.run(&(mask(), mask(), any::<bool>()), law).expect("the law holds");
    });
}

/// Decodes with an eviction on the way. The results must be equal although the capacities differ.
#[test]
fn results_do_not_depend_on_capacity() {
    everywhere(alone(), |fx, model, words| {
        let run = |growth: usize, poison: bool| {
            poison_outputs(poison);
            let mut cache = filled(fx, model, words, growth);
            let ids = fx.ids("oracle.ids");
            let mut all = Vec::new();
            for (i, id) in ids[..24].iter().enumerate() {
                all.push(start(&decode(model, &mut cache, *id)));
                if i == 11 {
                    let kept = slots((0..cache.len(0, 0)).filter(|s| s % 3 != 1));
                    cache.keep(0, &kept, 0).expect("fits");
                }
            }
            poison_outputs(false);
            assert_mirrored(&cache);
            assert_eq!(cache.capacity(0, 0), cache.len(0, 0).next_multiple_of(growth), "capacity follows the growth");
            all.into_iter().map(|read| bits(&finish(read))).collect::<Vec<_>>()
        };
        let reference = run(1, false);
        for (growth, poison) in [(64, false), (256, false), (64, true)] {
            assert_eq!(run(growth, poison), reference, "growth {growth}, poison {poison}");
        }
    });
}

/// Forwards the pending tokens of all sequences, advances and gives each its next token.
fn decode_batch(model: &Decoder, cache: &mut KvCache, next: u32) -> Vec<Vec<f32>> {
    let seqs: Vec<usize> = (0..cache.shape().seqs).collect();
    let logits = last_logits(model, cache, Input::Pending(&seqs));
    seqs.iter().for_each(|&seq| cache.advance(seq, 1, next + seq as u32));
    let vocab = logits.dims()[1];
    values(&logits).chunks(vocab).map(<[f32]>::to_vec).collect()
}

#[test]
fn sequences_side_by_side_do_not_disturb_each_other() {
    everywhere(beside_others(), |fx, model, words| {
        // The second sequence is longer than a tile of attention until some of it is evicted.
        let long: Vec<u32> = fx.ids("prompt.200.ids").into_iter().chain(fx.ids("oracle.ids")).collect();
        let prompts = [fx.ids("prompt.7.ids"), long, fx.ids("oracle.prompt.ids")];
        let batch = |evict: bool| {
            let mut cache = fx.cache(model.device(), words, 3, 32);
            for (seq, prompt) in prompts.iter().enumerate() {
                prefill(model, &mut cache, seq, prompt, 40 + seq as u32);
            }
            assert_mirrored(&cache);
            let mut steps = Vec::new();
            for i in 0..8 {
                steps.push(decode_batch(model, &mut cache, 60 + i));
                if evict && i == 2 {
                    let others = [all_rows(&cache, 0), all_rows(&cache, 2)];
                    let kept = slots((0..cache.len(0, 1)).step_by(4));
                    cache.keep(1, &kept, 1).expect("fits");
                    assert_mirrored(&cache);
                    assert_eq!([all_rows(&cache, 0), all_rows(&cache, 2)], others);
                    assert_eq!(cache.len(0, 1), kept.len());
                }
            }
            assert_mirrored(&cache);
            steps
        };
        let (plain, evicted) = (batch(false), batch(true));
        let single = |seq: usize| {
            let mut cache = fx.cache(model.device(), words, 1, 32);
            prefill(model, &mut cache, 0, &prompts[seq], 40 + seq as u32);
            (0..8).map(|i| values(&decode(model, &mut cache, 60 + i + seq as u32))).collect::<Vec<_>>()
        };
        let mut worst = 0f64;
        for seq in 0..3 {
            for (i, alone) in single(seq).iter().enumerate() {
                worst = worst.max(error(&plain[i][seq], alone));
                let same = bits(&plain[i][seq]) == bits(&evicted[i][seq]);
                match seq {
                    1 => assert!(same == (i <= 2), "step {i}: the evicted one must change, and only then"),
                    _ => assert!(same, "step {i}: sequence {seq} saw the eviction of another"),
                }
            }
        }
        // Another batch size uses another shader, which sums in another order. An f16 cache rounds the sums.
        let bound = if words == Dtype::F32 { 2e-5 } else { 1e-3 };
        println!("{}, {words:?}: batched against alone: {worst:.1e}, bound {bound:.0e}", model.device().info.name);
        assert!(worst <= bound);
    });
}

/// After every operation, lengths and positions on the device equal the host's.
#[test]
fn the_device_and_the_host_agree_on_lengths() {
    everywhere(beside_others(), |fx, model, words| {
        let mut runner = proptest::test_runner::TestRunner::new(few(4));
        let law = |ops: Vec<(u8, usize, usize)>| {
            let mut cache = fx.cache(model.device(), words, 2, 8);
            let mut sampler = Sampler::new(fx.config.vocab_size, &mut cache, model.device());
            for seq in 0..2 {
                prefill(model, &mut cache, seq, &fx.ids("prompt.7.ids"), 5);
            }
            for (op, seq, n) in ops {
                let len = cache.len(0, seq);
                match op {
                    0 => drop(prefill(model, &mut cache, seq, &fx.ids("prompt.64.ids")[..n], 9)),
                    1 => {
                        let logits = last_logits(model, &mut cache, Input::Pending(&[0, 1]));
                        sampler.sample(&logits, &mut cache, &[0, 1], 1);
                    }
                    2 => {
                        let kept = slots((0..len).filter(|s| s % (n + 1) != 0));
                        cache.keep(seq, &kept, n).expect("fits");
                    }
                    3 => {
                        let checkpoint = cache.checkpoint(seq);
                        prefill(model, &mut cache, seq, &fx.ids("prompt.64.ids")[..n], 9);
                        cache.rollback(&checkpoint, 3);
                        assert_eq!(cache.len(0, seq), len);
                    }
                    4 => cache.reserve(&[seq], n * 5).expect("fits"),
                    _ => cache.clear(seq).expect("fits"),
                }
                assert_mirrored(&cache);
            }
            Ok(())
        };
        let ops = prop::collection::vec((0u8..6, 0usize..2, 1usize..20), 12);
        runner.run(&ops, law).expect("the law holds");
    });
}

#[test]
fn reserved_bytes_fall_when_slots_are_evicted() {
    let _one = alone();
    let Some(device) = gpu() else { return };
    let fx = Fixture::open("qwen2-f32");
    let model = fx.load(device);
    let mut cache = fx.cache(device, Dtype::F32, 1, 64);
    let ids: Vec<u32> = (0..2000).map(|i| i * 7 % 300).collect();
    for chunk in ids.chunks(250) {
        prefill(&model, &mut cache, 0, chunk, 1);
    }
    device.burn.memory_cleanup();
    state_words(&cache);
    let (before, wanted) = (device.bytes(), cache.bytes());
    let kept = slots((0..2000).step_by(20));
    cache.keep(0, &kept, 1).expect("fits");
    state_words(&cache);
    let after = device.bytes();
    let freed = wanted - cache.bytes();
    println!(
        "{}: 2000 slots to {}: {before:?} to {after:?}, the cache gave back {freed}",
        device.info.name,
        kept.len()
    );
    assert!(freed > wanted * 8 / 10);
    assert!(after.in_use < before.in_use && after.reserved < before.reserved, "{before:?} to {after:?}");
    assert!(before.reserved - after.reserved >= freed * 9 / 10, "the driver got back less than was freed");
}

#[test]
fn ids_read_late_are_the_ids_read_at_once() {
    everywhere(beside_others(), |fx, model, words| {
        let run = |late: bool| {
            let shape = CacheShape::new(&fx.config, words, 1, 64).expect("f32 or f16");
            let mut runner = Runner::new(model.clone(), shape);
            runner.prefill(0, &fx.ids("prompt.64.ids")).expect("fits");
            let (mut ids, mut reads) = (Vec::new(), Vec::new());
            for step in 0..40u32 {
                // The copy is made here, because later launches change the state in place.
                let read = runner.read();
                if late {
                    reads.push((step, read));
                } else {
                    let copy = block_on(read.finish()).expect("readable");
                    assert_eq!(copy[state::STEP], step + 1);
                    ids.extend(runner.cache().ids(&copy, 0, step, step + 1).expect("finite"));
                }
                runner.decode(&[0], 1).expect("fits");
            }
            for (step, read) in reads {
                let copy = block_on(read.finish()).expect("readable");
                assert_eq!(copy[state::STEP], step + 1, "the state as it was when the read began");
                ids.extend(runner.cache().ids(&copy, 0, step, step + 1).expect("finite"));
            }
            ids
        };
        let at_once = run(false);
        assert_eq!(at_once.len(), 40);
        assert_eq!(run(true), at_once);
    });
}

/// A product of up to eight rows computes each as if it were alone, to the bit: with and without a norm, with plain
/// and quantized weights, for every number of rows.
#[test]
fn a_product_computes_each_row_as_if_it_were_alone() {
    let _one = beside_others();
    let (rows, cols, most) = (37, 288, MOST_TOGETHER);
    let mut compared = 0;
    for device in two() {
        for dtype in [Dtype::BF16, Dtype::Q8_0] {
            let w = PackedRows::from_f32(dtype, rows, cols, &noise(rows * cols, 1, 0.1)).expect("whole blocks");
            let w = kernels::u32_tensor(w.into_words(), &device.burn);
            let x = kernels::f32_tensor(noise(most * cols, 2, 1.0), [most, cols], &device.burn);
            let gains = kernels::f32_tensor(noise(cols, 3, 2.0), [cols], &device.burn);
            let no_bias = kernels::f32_tensor(vec![0.0; 4], [4], &device.burn);
            let product = |first_row: usize, n: usize, normed: bool, tuning: Tuning| {
                let norm = normed.then_some(NormSpec { n, first_row, cols, eps: 1e-6 });
                let (mode, has_bias, shard_first_row, out_stride) = (Mode::Store, false, 0, rows);
                let spec =
                    LinearSpec { dtype, mode, has_bias, rows, cols, shard_first_row, out_stride, n, norm, tuning };
                let out = empty_f32(&device.burn, [n, rows]);
                bits(&values(&kernels::linear(&w, &x, &gains, &no_bias, out, spec)))
            };
            for tuning in [Tuning::CPU, Tuning::GPU] {
                let alone: Vec<Vec<u32>> = (0..most).map(|row| product(row, 1, true, tuning)).collect();
                for n in 1..=most {
                    let all = product(most - n, n, true, tuning);
                    let expected = &alone[most - n..];
                    assert!(all.chunks(rows).eq(expected), "{dtype} {n} rows {tuning:?} on {}", device.info.name);
                    // Without a norm, a product begins with the first row.
                    let (some, all) = (product(0, n, false, tuning), product(0, most, false, tuning));
                    assert!(all.starts_with(&some), "{dtype} {n} rows {tuning:?} on {}", device.info.name);
                    compared += n;
                }
            }
        }
    }
    assert_eq!(compared, two().len() * 2 * 2 * 36);
}

/// WebGPU refuses a launch that binds the same memory twice, since every binding is declared as writable. Other
/// backends accept it, so the launch itself has to refuse it.
#[test]
fn a_launch_refuses_the_same_memory_twice() {
    let _one = beside_others();
    let Some(device) = gpu() else { return };
    let (dtype, tuning, rows, cols) = (Dtype::BF16, device.tuning, 8, 8);
    let spec = LinearSpec {
        dtype,
        mode: Mode::Store,
        has_bias: false,
        rows,
        cols,
        shard_first_row: 0,
        out_stride: rows,
        n: 1,
        norm: None,
        tuning,
    };
    let w = PackedRows::from_f32(dtype, rows, cols, &noise(rows * cols, 1, 0.1)).expect("whole blocks");
    let w = kernels::u32_tensor(w.into_words(), &device.burn);
    let x = kernels::f32_tensor(noise(cols, 2, 1.0), [1, cols], &device.burn);
    let unread = || kernels::f32_tensor(vec![0.0; 4], [4], &device.burn);
    let (norm, bias) = (unread(), unread());
    let product = |bias: &burn::tensor::Tensor<1>| {
        let product = || kernels::linear(&w, &x, &norm, bias, empty_f32(&device.burn, [1, rows]), spec);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(product())))
    };
    assert!(product(&bias).is_ok(), "two bindings, two buffers");
    let refused = product(&norm).expect_err("two bindings, one buffer");
    let message = refused.downcast_ref::<String>().expect("a formatted message");
    assert_eq!(message, "matvec: bindings 2 and 3 have the same memory");
}

/// One step in `EVERY` has its logits compared; pruning after `PRUNE` steps; ids are read when half the ring is full.
const STEPS: usize = 1000;
const PRUNE: usize = 50;
const EVERY: usize = 37;

/// The kept slots of a deterministic plan: the question, the latest tokens, and a third of those between.
fn plan(len: usize) -> Vec<Slot> {
    slots((0..len).filter(|s| *s < 40 || *s + 16 >= len || s % 3 == 0))
}

/// Decodes 1,000 steps on the GPU with pruning and late reads of ids. The CPU twin is forced to the same ids.
#[test]
fn a_thousand_steps_with_pruning() {
    let _one = alone();
    let Some(device) = gpu() else { return };
    let fx = Fixture::open("qwen2-f16");
    let began = std::time::Instant::now();
    let (ids, sampled) = free_run(&fx, device);
    println!("{}: {STEPS} steps in {:.1} s", device.info.name, began.elapsed().as_secs_f64());
    assert_eq!(ids.len(), STEPS);
    let twin = fx.load(&devices()[0]);
    let mut cache = fx.cache(&devices()[0], Dtype::F16, 1, 64);
    let mut logits = values(&prefill(&twin, &mut cache, 0, &fx.ids("oracle.prompt.ids"), ids[0]));
    let (mut equal, mut compared, mut worst, mut regret) = (0, 0, 0f64, 0f64);
    for step in 0..STEPS {
        let largest = logits.iter().fold(0f32, |m, v| m.max(v.abs()));
        let best = logits.iter().fold(f32::MIN, |m, v| m.max(*v));
        let chosen = logits[ids[step] as usize];
        equal += (chosen == best) as usize;
        regret = regret.max(((best - chosen) / largest) as f64);
        if let Some((_, found)) = sampled.iter().find(|(at, _)| *at == step) {
            worst = worst.max(error(found, &logits));
            compared += 1;
        }
        if step + 1 < STEPS {
            logits = values(&decode(&twin, &mut cache, ids[step + 1]));
            if (step + 1) % PRUNE == 0 {
                let kept = plan(cache.len(0, 0));
                cache.keep(0, &kept, 1).expect("fits");
            }
        }
    }
    let distinct = ids.iter().collect::<std::collections::BTreeSet<_>>().len();
    println!(
        "{equal} of {STEPS} ids are the twin's own choice, {distinct} distinct; the others cost {regret:.1e} of the largest \
         logit; {compared} steps' logits off by {worst:.1e}"
    );
    // Keys at a rounding boundary of f16 may differ by one unit, which may change a logit by more than a small
    // margin.
    assert!(worst <= 1e-3 && regret <= 2e-3, "worst {worst:.2e}, regret {regret:.2e}");
    assert!(equal >= STEPS * 98 / 100 && distinct >= 20);
    assert_eq!(compared, STEPS.div_ceil(EVERY));
}

fn free_run(fx: &Fixture, device: &ComputeDevice) -> (Vec<u32>, Vec<(usize, Vec<f32>)>) {
    let model = fx.load(device);
    let mut cache = fx.cache(device, Dtype::F16, 1, 64);
    let mut sampler = Sampler::new(fx.config.vocab_size, &mut cache, device);
    let (mut ids, mut reads, mut sampled, mut most, mut falls) = (Vec::new(), Vec::new(), Vec::new(), 0, 0);
    let (mut first, mut last) = (0, 0);
    let mut logits = prefill(&model, &mut cache, 0, &fx.ids("oracle.prompt.ids"), 0);
    for step in 0..STEPS {
        if step % EVERY == 0 {
            sampled.push((step, start(&logits)));
        }
        sampler.sample(&logits, &mut cache, &[0], (step > 0) as usize);
        if (step + 1) % 32 == 0 || step + 1 == STEPS {
            let from = step / 32 * 32;
            reads.push((from as u32, step as u32 + 1, cache.read_state()));
        }
        if step > 0 && step % PRUNE == 0 {
            let kept = plan(cache.len(0, 0));
            state_words(&cache);
            let (before, held) = (device.bytes(), cache.bytes());
            cache.keep(0, &kept, 1).expect("fits");
            state_words(&cache);
            let after = device.bytes();
            if cache.bytes() < held {
                falls += (after.reserved < before.reserved) as usize;
                if falls <= 3 {
                    println!("step {step}: cache {held} to {} bytes, device {before:?} to {after:?}", cache.bytes());
                }
            }
            if first == 0 {
                first = after.reserved;
            }
            last = after.reserved;
            assert_mirrored(&cache);
        }
        most = most.max(cache.len(0, 0));
        logits = last_logits(&model, &mut cache, Input::Pending(&[0]));
    }
    for (from, to, read) in reads {
        let words = as_u32(&block_on(read).expect("readable")[0]);
        ids.extend(cache.ids(&words, 0, from, to).expect("finite"));
    }
    println!(
        "at most {most} slots; reserved bytes fell at {falls} gathers; {first} after the first, {last} after the last"
    );
    assert!(most <= 250, "{most} slots: the cache is not bounded");
    assert!(falls >= 3, "reserved bytes fell at {falls} gathers only");
    assert!(last <= first * 5 / 4, "reserved bytes creep: {first} after the first gather, {last} after the last");
    (ids, sampled.into_iter().map(|(step, read)| (step, finish(read))).collect())
}
