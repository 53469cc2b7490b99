//! Mixtures of experts in the decoder: the three ways in which checkpoints store experts, precisions, the sequences
//! of a step, and what a step reads. `golden.rs` compares the same models with transformers.
use std::collections::BTreeMap;

use crate::common::*;
use safetensors::tensor::{Dtype as Stored, TensorView};
use secateur::device::ComputeDevice;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::{Decoder, Input, Logits};
use secateur::expert::model::required;
use secateur::expert::weights::Weights;
use secateur::expert::weights::precision::Precision;
use secateur::{Dtype, ErrorKind};

const NAME: &str = "qwen3moe-bf16";

fn load(config: &ModelConfig, weights: &Weights, precision: Option<Precision>, device: &ComputeDevice) -> Decoder {
    Decoder::load(config, weights, 512, precision, device, &mut |_, _| ()).expect("loads")
}

/// The logits of a prompt of 64.
fn logits(fx: &Fixture, model: &Decoder) -> Vec<f32> {
    let mut cache = fx.cache(model.device(), Dtype::F32, 1, 64);
    let ids = fx.ids("prompt.64.ids");
    let out = forward(model, &mut cache, Input::Chunk { seq: 0, ids: &ids }, None).expect("fits");
    values(&model.logits(&out, Logits::All))
}

/// The fixture's weights with the experts of each layer in one tensor: `joined` has the names of the parts of an
/// expert that are stored together, and the name of the joint tensor.
fn stacked(fx: &Fixture, joined: &[(&[&str], &str)]) -> Weights {
    let mixture = fx.config.experts.as_ref().expect("experts");
    let mut tensors = BTreeMap::new();
    for name in fx.weights.names().filter(|name| !name.contains(".experts.")) {
        let tensor = fx.weights.tensor(name).expect("listed");
        tensors.insert(name.to_string(), (tensor.shape.to_vec(), tensor.bytes.to_vec()));
    }
    for layer in (0..fx.config.num_layers).filter(|layer| mixture.has_experts(*layer)) {
        for (parts, together) in joined {
            let (mut bytes, mut shape) = (Vec::new(), Vec::new());
            for expert in 0..mixture.experts {
                for part in *parts {
                    let name = format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight");
                    let tensor = fx.weights.tensor(&name).expect("in the fixture");
                    bytes.extend_from_slice(tensor.bytes);
                    shape = vec![mixture.experts, parts.len() * tensor.shape[0], tensor.shape[1]];
                }
            }
            tensors.insert(format!("model.layers.{layer}.mlp.experts.{together}"), (shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Stored::BF16, shape.clone(), bytes).expect("whole elements"))
    });
    let file = safetensors::serialize(views, None).expect("valid");
    Weights::from_files(vec![("stacked".into(), file.into())]).expect("valid")
}

#[test]
fn experts_may_be_stored_one_by_one_stacked_or_fused() {
    let _one = beside_others();
    let fx = Fixture::open(NAME);
    let plain = load(&fx.config, &fx.weights, None, &devices()[0]);
    let expected = logits(&fx, &plain);
    let fused: &[(&[&str], &str)] = &[(&["gate_proj", "up_proj"], "gate_up_proj"), (&["down_proj"], "down_proj")];
    let three: &[(&[&str], &str)] =
        &[(&["gate_proj"], "gate_proj.weight"), (&["up_proj"], "up_proj.weight"), (&["down_proj"], "down_proj.weight")];
    for joined in [fused, three] {
        let weights = stacked(&fx, joined);
        required::check(&fx.config, &weights, None).expect("complete");
        let bytes = |weights| required::device_bytes(weights, None).expect("known types");
        assert_eq!(bytes(&weights), bytes(&fx.weights), "the same matrices");
        let model = load(&fx.config, &weights, None, &devices()[0]);
        assert_eq!(bits(&logits(&fx, &model)), bits(&expected), "{:?}", joined[0].1);
        assert_eq!(model.weight_bytes(), plain.weight_bytes());
    }
    // A stack that lacks an expert, and one without a part.
    let short = stacked(&fx, &three[..2]);
    let error = required::check(&fx.config, &short, None).expect_err("down is missing").to_string();
    assert!(error.contains("model.layers.0.mlp.experts.down_proj.weight"), "{error}");
    let mut fewer = fx.config.clone();
    fewer.experts.as_mut().expect("experts").experts = 8;
    let error = required::check(&fewer, &stacked(&fx, fused), None).expect_err("nine are stored").to_string();
    assert!(error.contains("mlp.gate.weight") && error.contains("[8, 56]") && error.contains("[9, 56]"), "{error}");
}

/// A file of the fixture's weights, of which `changed` are stored as f16.
fn mixed_file(fx: &Fixture, changed: &[String]) -> Vec<u8> {
    let is_changed = |name: &str| changed.iter().any(|other| other == name);
    let tensors: Vec<_> = fx
        .weights
        .names()
        .map(|name| {
            let tensor = fx.weights.tensor(name).expect("listed");
            let bytes = match is_changed(name) {
                false => tensor.bytes.to_vec(),
                true => {
                    let values = tensor.to_f32().expect("bf16");
                    values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
                }
            };
            let dtype = if is_changed(name) { Stored::F16 } else { Stored::BF16 };
            (name.to_string(), dtype, tensor.shape.to_vec(), bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("whole elements"))
    });
    safetensors::serialize(views, None).expect("valid")
}

fn mixed(fx: &Fixture, changed: &[String]) -> Weights {
    Weights::from_files(vec![("mixed".into(), mixed_file(fx, changed).into())]).expect("valid")
}

/// The matrices of a layer's experts lie in one buffer, of one element type. Others are refused with the name of the
/// tensor, before any weight is read. Quantized to one type, the same experts load.
#[test]
fn experts_of_different_types_are_refused_by_name_before_they_are_read() {
    let fx = Fixture::open(NAME);
    let device = &devices()[0];
    let name = |expert: usize, part: &str| format!("model.layers.0.mlp.experts.{expert}.{part}_proj.weight");
    for (parts, refused) in [
        (vec![name(1, "gate")], name(1, "gate")),
        (vec![name(3, "up")], name(3, "up")),
        (vec![name(2, "gate"), name(2, "up")], name(2, "gate")),
        (vec![name(8, "down")], name(8, "down")),
        (vec![name(0, "down")], name(1, "down")),
        // Gate and up of different types, and an expert in which they do not differ.
        ((0..8).map(|expert| name(expert, "up")).collect(), name(8, "up")),
    ] {
        let weights = mixed(&fx, &parts);
        let mut parts_loaded = 0;
        let loaded = Decoder::load(&fx.config, &weights, 512, None, device, &mut |_, _| parts_loaded += 1);
        let Err(error) = loaded else { panic!("{parts:?} loads") };
        assert_eq!((error.kind(), parts_loaded), (ErrorKind::Model, 0), "{error}");
        let error = error.to_string();
        for part in ["the experts of a layer differ in element type", &refused, "bf16", "f16", "`weights` q8"] {
            assert!(error.contains(part), "{part:?} is missing from:\n{error}");
        }
        assert_eq!(required::check(&fx.config, &weights, None).expect_err("refused").to_string(), error);
        load(&fx.config, &weights, Some(Precision::Q8), device);
    }
    // Types may differ between gate, up and down, if they are those of all experts.
    let all: Vec<String> = (0..9).map(|expert| name(expert, "up")).collect();
    load(&fx.config, &mixed(&fx, &all), None, device);

    // `inspect` says so as well, unless the weights are to be quantized.
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::copy(directory(NAME).join("config.json"), dir.path().join("config.json")).expect("copied");
    std::fs::write(dir.path().join("model.safetensors"), mixed_file(&fx, &[name(3, "up")])).expect("written");
    let inspect = |more: &[&str]| {
        let model = dir.path().to_str().expect("UTF-8");
        command::run(&[&["inspect", model][..], more].concat())
    };
    let ran = inspect(&[]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("problem: the experts of a layer differ in element type"), "{}", ran.out);
    assert_eq!(inspect(&["--weights", "q8"]).code, Some(0));
}

/// Experts are not split, so an expert that is larger than a buffer of the device is refused before anything is read.
#[test]
fn experts_that_no_buffer_can_hold_are_refused_before_they_are_read() {
    let fx = Fixture::open(NAME);
    let mixture = fx.config.experts.as_ref().expect("experts");
    let mut device = devices()[0].clone();
    // Rows have 56 and 40 values of two bytes, and gate and up are one matrix.
    let width = |n: usize| if n.is_multiple_of(8) { n } else { n.next_multiple_of(32) };
    let needed = (2 * width(mixture.intermediate_size) * width(fx.config.hidden_size) * 2) as u64;
    for (most, fits) in [(needed, true), (needed - 1, false)] {
        device.info.max_binding_bytes = most;
        let mut parts_loaded = 0;
        let loaded = Decoder::load(&fx.config, &fx.weights, 16, None, &device, &mut |_, _| parts_loaded += 1);
        if fits {
            loaded.expect("it just fits");
            continue;
        }
        let Err(error) = loaded else { panic!("an expert of {needed} bytes fits into {most}") };
        assert_eq!((error.kind(), parts_loaded), (ErrorKind::Device, 0), "{error}");
        let error = error.to_string();
        for part in ["mlp.experts.0.gate_proj.weight", &most.to_string(), &needed.to_string(), "`weights`"] {
            assert!(error.contains(part), "{part:?} is missing from:\n{error}");
        }
    }
}

/// Experts are quantized as other matrices are. The router keeps its type, so that the same experts are chosen
/// wherever the activations are the same.
#[test]
fn experts_are_quantized_as_they_are_loaded() {
    let _one = beside_others();
    let fx = Fixture::open(NAME);
    let plain = load(&fx.config, &fx.weights, None, &devices()[0]);
    let expected = logits(&fx, &plain);
    for device in two() {
        let model = load(&fx.config, &fx.weights, Some(Precision::Q8), device);
        let (found, vocab) = (logits(&fx, &model), fx.config.vocab_size);
        // Q8_0 rounds to about 1 in 250. A row for which another expert is chosen may be further off.
        let mut off: Vec<f64> = found.chunks(vocab).zip(expected.chunks(vocab)).map(|(a, b)| error(a, b)).collect();
        off.sort_by(f64::total_cmp);
        println!("{}: q8 is off by {:.1e} in the median, {:.1e} at most", device.info.name, off[32], off[63]);
        assert!(off[32] < 0.15 && off[63].is_finite(), "{off:?}");
        assert!(model.weight_bytes() < plain.weight_bytes(), "{} bytes", model.weight_bytes());
        for precision in [Precision::Q6, Precision::Q4] {
            let model = load(&fx.config, &fx.weights, Some(precision), device);
            assert!(logits(&fx, &model).iter().all(|v| v.is_finite()), "{precision}");
        }
    }
}

/// Sequences that are decoded together get the logits that each of them gets alone, bit for bit.
#[test]
fn experts_do_not_notice_a_steps_other_sequences() {
    let _one = beside_others();
    for name in [NAME, "gguf-qwen3moe-q8"] {
        let fx = Fixture::open(name);
        for device in two() {
            let model = fx.load(device);
            let vocab = fx.config.vocab_size;
            let prompts: Vec<Vec<u32>> = (0..8).map(|seq| fx.ids("prompt.64.ids")[seq * 5..][..9].to_vec()).collect();
            let mut together = fx.cache(device, Dtype::F32, 8, 16);
            for (seq, ids) in prompts.iter().enumerate() {
                prefill(&model, &mut together, seq, ids, seq as u32 * 7);
            }
            let all: Vec<usize> = (0..8).collect();
            let found = values(&last_logits(&model, &mut together, Input::Pending(&all)));
            for (seq, ids) in prompts.iter().enumerate() {
                let mut alone = fx.cache(device, Dtype::F32, 1, 16);
                prefill(&model, &mut alone, 0, ids, seq as u32 * 7);
                let expected = values(&last_logits(&model, &mut alone, Input::Pending(&[0])));
                let row = &found[seq * vocab..][..vocab];
                assert_eq!(bits(row), bits(&expected), "{name}, sequence {seq} on {}", device.info.name);
            }
        }
    }
}

/// The bytes that a step reads, counted by hand from the shapes of the fixture.
#[test]
fn a_step_reads_the_chosen_experts() {
    let fx = Fixture::open(NAME);
    let model = load(&fx.config, &fx.weights, None, &devices()[0]);
    let (h, experts, layers) = (56, 9, 2);
    let expert = 3 * 24 * h * 2;
    let attention = 3 * (64 + 32 + 32 + 64) * h * 2;
    let rest = 320 * h * 2 + attention + 3 * 88 * h * 2 + layers * experts * h * 2;
    assert_eq!(model.weight_bytes(), (rest + layers * experts * expert) as u64);
    for (sequences, read) in [(1, 3), (2, 6), (3, 9), (8, 9)] {
        assert_eq!(model.step_bytes(sequences), (rest + layers * read * expert) as u64, "{sequences} sequences");
    }
    let norms = (7 * h + 6 * 16) * 2;
    let bytes = required::step_bytes(&fx.config, &fx.weights, None).expect("known types");
    // The head is the embedding, so it is read as a whole. Each tensor is rounded down separately.
    let exact = (rest + layers * 3 * expert + norms) as u64;
    assert!((exact - 60..=exact).contains(&bytes), "{bytes} of {exact}");
}
