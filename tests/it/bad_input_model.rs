//! Bad input at the level of model and cache gives a clear error and never a panic. Matrices that have to be split
//! give the results of unsplit ones.
use secateur::Dtype;
use std::collections::BTreeMap;

use crate::common::*;
use safetensors::tensor::TensorView;
use secateur::device::ComputeDevice;
use secateur::expert::cache::{CacheShape, KvCache};
use secateur::expert::kernels::readback::as_u32;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::{Decoder, Input, Logits};
use secateur::expert::sampling::Sampler;
use secateur::expert::weights::{FileDtype, ModelSource, Weights};
use secateur::{Error, ErrorKind, Slot};
use serde_json::{Value, json};

/// Asserts that `result` is an error of `kind` whose text contains all of `parts`.
#[track_caller]
fn refused<T>(result: Result<T, Error>, kind: ErrorKind, parts: &[&str]) {
    let Err(error) = result else { panic!("this must be refused") };
    assert_eq!(error.kind(), kind, "{error}");
    let said = error.to_string();
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing from:\n{said}");
    }
}

/// The device with a smaller largest buffer in its info.
fn limited(device: &ComputeDevice, most: u64) -> ComputeDevice {
    let mut device = device.clone();
    device.info.max_binding_bytes = most;
    device
}

fn load(fx: &Fixture, device: &ComputeDevice, context: usize) -> Result<Decoder, Error> {
    Decoder::load(&fx.config, &fx.weights, context, None, device, &mut |_, _| ())
}

/// A tensor as it is stored: type, shape, bytes.
type Tensors = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(weights: &Weights) -> Tensors {
    let stored = |name: &str| {
        let view = weights.tensor(name).expect("just named");
        let FileDtype::Safetensors(dtype) = view.stored else { panic!("{name} is not of a safetensors file") };
        (name.to_string(), (dtype, view.shape.to_vec(), view.bytes.to_vec()))
    };
    weights.names().map(stored).collect()
}

fn weights(tensors: &Tensors) -> Weights {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("consistent"))
    });
    let file = safetensors::serialize(views, None).expect("serializable");
    Weights::open(&ModelSource::memory([("model.safetensors", file)])).expect("a good file")
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let _one = beside_others();
    for name in FIXTURES {
        let fx = Fixture::open(name);
        let model = fx.load(&devices()[0]);
        let mut cache = fx.cache(model.device(), Dtype::F32, 1, 64);
        let vocab = fx.config.vocab_size as u32;
        for bad in [vocab, vocab + 1, u32::MAX] {
            let ids = [1, 2, bad, 3];
            let result = model.plan(Input::Chunk { seq: 0, ids: &ids }, &mut cache);
            refused(result, ErrorKind::Input, &["outside the vocabulary", &format!("below {vocab}"), &bad.to_string()]);
            assert!(cache.is_empty(), "a refused chunk leaves nothing");
            assert_mirrored(&cache);
        }
        let ids = [0, vocab - 1];
        model.plan(Input::Chunk { seq: 0, ids: &ids }, &mut cache).expect("the last id is one");
    }
}

#[test]
fn a_prompt_over_the_context_is_refused() {
    let _one = beside_others();
    let fx = Fixture::open("qwen2-f32");
    for device in two() {
        let model = load(&fx, device, 16).expect("loads");
        assert_eq!(model.context(), 16);
        let ids = fx.ids("prompt.64.ids");
        let mut cache = fx.cache(device, Dtype::F32, 1, 64);
        let over = model.plan(Input::Chunk { seq: 0, ids: &ids[..17] }, &mut cache);
        refused(over, ErrorKind::Input, &["the context is full", "at most 16 positions", "17", "`context`"]);
        prefill(&model, &mut cache, 0, &ids[..16], 5);
        // Evicting frees slots, not positions.
        cache.keep(0, &vec![Slot(0), Slot(9)], 1).expect("fits");
        let next = model.plan(Input::Pending(&[0]), &mut cache);
        refused(next, ErrorKind::Input, &["the context is full", "17"]);
    }
    let model = load(&fx, &devices()[0], usize::MAX).expect("clamped to the model's own");
    assert_eq!(model.context(), fx.config.max_position_embeddings);
}

#[test]
fn a_cache_beyond_the_largest_buffer_is_refused() {
    let _one = beside_others();
    let fx = Fixture::open("qwen2-f32");
    for device in two() {
        let model = fx.load(device);
        let small = limited(device, 20_000);
        let shape = CacheShape::new(&fx.config, Dtype::F32, 1, 8).expect("f32");
        let mut cache = KvCache::new(shape, &small);
        let ids = fx.ids("prompt.200.ids");
        let over = model.plan(Input::Chunk { seq: 0, ids: &ids }, &mut cache);
        refused(
            over,
            ErrorKind::Device,
            &["KV cache", "largest buffer", "at most 20000 bytes", "200 slots", "`kv` f16"],
        );
        assert!(cache.is_empty());
        assert_mirrored(&cache);
        // A cache that fits still works. Decoding beyond the limit is refused as well, and the cache is unchanged.
        prefill(&model, &mut cache, 0, &ids[..70], 5);
        let mut steps = 0;
        let error = loop {
            match forward(&model, &mut cache, Input::Pending(&[0]), None) {
                Ok(_) => cache.advance(0, 1, 5),
                Err(error) => break error,
            }
            steps += 1;
            assert!(steps < 100, "the limit is never reached");
        };
        refused(Err::<(), _>(error), ErrorKind::Device, &["largest buffer"]);
        assert_mirrored(&cache);
        let kept: Vec<Slot> = (0..20).map(Slot).collect();
        cache.keep(0, &kept, 1).expect("pruned, it fits");
        decode(&model, &mut cache, 1);
    }
    refused(CacheShape::new(&fx.config, Dtype::BF16, 1, 8), ErrorKind::Input, &["bf16", "f32 or f16"]);
}

#[test]
fn limits_on_loading_are_refused() {
    let fx = Fixture::open("qwen2-f32");
    let cpu = &devices()[0];
    refused(load(&fx, &limited(cpu, 100_000), 4096), ErrorKind::Device, &["RoPE table", "4096 positions", "`context`"]);
    refused(load(&fx, &limited(cpu, 1000), 8), ErrorKind::Model, &["a matrix row", "largest buffer"]);
}

#[test]
fn weights_of_the_wrong_shape_are_refused_by_name() {
    let fx = Fixture::open("qwen2-f16");
    let good = tensors(&fx.weights);
    Decoder::load(&fx.config, &weights(&good), 64, None, &devices()[0], &mut |_, _| ()).expect("unchanged, it loads");
    let mut tried = 0;
    for name in good.keys() {
        // One row less; transposed, if that is another shape; one dimension more; missing.
        let (dtype, shape, bytes) = &good[name];
        let row = bytes.len() / shape[0];
        let mut broken = vec![
            ("a row less", [&[shape[0] - 1], &shape[1..]].concat(), bytes[row..].to_vec()),
            ("a dimension more", [&[1], &shape[..]].concat(), bytes.clone()),
        ];
        if shape.len() == 2 && shape[0] != shape[1] {
            broken.push(("transposed", vec![shape[1], shape[0]], bytes.clone()));
        }
        for (what, wrong_shape, bytes) in broken {
            let mut changed = good.clone();
            changed.insert(name.clone(), (*dtype, wrong_shape, bytes));
            let result = Decoder::load(&fx.config, &weights(&changed), 64, None, &devices()[0], &mut |_, _| ());
            assert!(result.is_err(), "{name}, {what}: loads");
            refused(result, ErrorKind::Model, &[name, &format!("{shape:?}")]);
            tried += 1;
        }
        let mut changed = good.clone();
        changed.remove(name);
        let result = Decoder::load(&fx.config, &weights(&changed), 64, None, &devices()[0], &mut |_, _| ());
        refused(result, ErrorKind::Model, &[name]);
        tried += 1;
        let mut changed = good.clone();
        let values: usize = shape.iter().product();
        changed.insert(name.clone(), (safetensors::Dtype::I8, shape.clone(), vec![0; values]));
        let result = Decoder::load(&fx.config, &weights(&changed), 64, None, &devices()[0], &mut |_, _| ());
        refused(result, ErrorKind::Model, &[name, "I8"]);
        tried += 1;
    }
    println!("{tried} wrong weights of {} tensors refused", good.len());
    assert!(good.len() > 40 && tried >= 4 * good.len());
}

#[test]
fn dimensions_no_kernel_takes_are_refused() {
    let fx = Fixture::open("qwen2-f32");
    let text = std::fs::read(directory("qwen2-f32").join("config.json")).expect("committed");
    let config: Value = serde_json::from_slice(&text).expect("JSON");
    for ((hidden, heads, kv_heads, intermediate), parts) in [
        // (hidden, heads, KV heads, intermediate); the head dimension is hidden / heads.
        ((96, 8, 2, 152), ["head_dim", "multiple of 8", "12"]),
        // The heads of OpenLLaMA 3B.
        ((3200, 32, 32, 8640), ["head_dim", "multiple of 8", "100"]),
        ((528, 2, 2, 152), ["head_dim", "at most 256", "264"]),
        ((8192, 64, 1, 152), ["query heads of a KV head", "16 KiB", "64"]),
    ] {
        let mut config = config.clone();
        let sizes = [hidden, heads, kv_heads, intermediate];
        let keys = ["hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"];
        for (key, value) in keys.into_iter().zip(sizes) {
            config[key] = json!(value);
        }
        let config = ModelConfig::parse(&config, "config.json", None).expect("a config; the kernels refuse it");
        let result = Decoder::load(&config, &fx.weights, 64, None, &devices()[0], &mut |_, _| ());
        refused(result, ErrorKind::Model, &parts);
    }
}

#[test]
fn split_matrices_give_what_whole_ones_give() {
    let _one = beside_others();
    for name in FIXTURES.into_iter().chain(GGUF_FIXTURES) {
        let fx = Fixture::open(name);
        for device in two() {
            let run = |model: &Decoder| {
                let mut cache = fx.cache(device, Dtype::F32, 1, 64);
                let ids = fx.ids("prompt.64.ids");
                let out = forward(model, &mut cache, Input::Chunk { seq: 0, ids: &ids }, None).expect("fits");
                let logits = model.logits(&out, Logits::All);
                cache.advance(0, ids.len(), 7);
                let step = decode(model, &mut cache, 0);
                (bits(&values(&logits)), bits(&values(&step)))
            };
            let whole = run(&load(&fx, device, 66).expect("loads"));
            // Sizes of shards that divide the rows, and sizes that leave a smaller last shard; an odd number of rows
            // is rounded down.
            for most in [12_288, 8_500] {
                let split = load(&fx, &limited(device, most), 66).expect("split, it fits");
                assert!(split.weight_bytes() > 10 * most, "nothing was split");
                assert!(run(&split) == whole, "{name} on {} in buffers of {most} bytes", device.info.name);
            }
        }
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let _one = beside_others();
    for name in FIXTURES {
        let fx = Fixture::open(name);
        for (tensor, value) in [
            ("model.norm.weight", f32::NAN),
            (
                match () {
                    () if fx.config.fused_projections => "model.layers.1.self_attn.qkv_proj.weight",
                    () if fx.config.attention_bias => "model.layers.1.self_attn.v_proj.bias",
                    () => "model.layers.1.self_attn.v_proj.weight",
                },
                f32::INFINITY,
            ),
            (
                match fx.config.experts {
                    Some(_) => "model.layers.0.mlp.gate.weight",
                    None => "model.layers.0.mlp.down_proj.weight",
                },
                f32::NAN,
            ),
        ] {
            let mut changed = tensors(&fx.weights);
            let (dtype, _, bytes) = changed.get_mut(tensor).expect("in every fixture");
            match dtype {
                safetensors::Dtype::F32 => bytes[..4].copy_from_slice(&value.to_le_bytes()),
                safetensors::Dtype::F16 => bytes[..2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                _ => bytes[..2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            }
            let broken = weights(&changed);
            for device in two() {
                let model = Decoder::load(&fx.config, &broken, 128, None, device, &mut |_, _| ()).expect("loads");
                // By its contract, an f16 cache stores an infinity as its largest value; NaN stays NaN.
                let packings = if value.is_nan() { &[Dtype::F32, Dtype::F16][..] } else { &[Dtype::F32] };
                for &words in packings {
                    let mut cache = fx.cache(device, words, 1, 64);
                    let logits = prefill(&model, &mut cache, 0, &fx.ids("prompt.7.ids"), 0);
                    let mut sampler = Sampler::new(fx.config.vocab_size, &mut cache, device);
                    sampler.sample(&logits, &mut cache, &[0], 0);
                    // The id of a broken step is forwarded before the host reads it. That must not do any harm.
                    let logits = last_logits(&model, &mut cache, Input::Pending(&[0]));
                    sampler.sample(&logits, &mut cache, &[0], 1);
                    let state = as_u32(&block_on(cache.read_state()).expect("readable")[0]);
                    let ids = cache.ids(&state, 0, 0, 2);
                    refused(ids, ErrorKind::Device, &["the logits are not finite", "conformance"]);
                    assert_mirrored(&cache);
                }
            }
        }
    }
}

#[test]
fn weights_that_exceed_the_memory_of_a_device_are_refused_before_they_are_read() {
    let fx = Fixture::open("qwen2-f32");
    let bytes = secateur::expert::model::required::device_bytes(&fx.weights, None).expect("countable");
    let mut device = ComputeDevice::cpu();
    let mut load = |memory: u64| {
        device.info.memory_bytes = Some(memory);
        let mut told = 0;
        (Decoder::load(&fx.config, &fx.weights, 64, None, &device, &mut |_, _| told += 1), told)
    };
    let (refusal, told) = load(bytes / 2);
    let parts = ["the weights do not fit into the memory", &format!("at most {} bytes", bytes / 2), "`weights` q4"];
    refused(refusal, ErrorKind::Device, &parts);
    assert_eq!(told, 0, "nothing is read");
    assert!(load(bytes).0.is_ok());
}
