//! Models of every shape and of every element type, made from random numbers and compared with the f64 decoder in
//! `common/reference.rs`: widths that fill no vector, wide heads, gate and up of different types, and weights that
//! are quantized as they are loaded.
use crate::common::reference::Reference;
use crate::common::*;
use crate::gguf::File;
use safetensors::tensor::TensorView;
use secateur::Dtype;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::weights::precision::{Precision, Role};
use secateur::expert::weights::{ModelSource, PackedRows, Weights, blocks};
use secateur::policy::Positions;
use serde_json::json;
use std::collections::BTreeMap;

/// The bound of logits with an f32 cache, as for the golden files.
const LOGITS: f64 = 1e-4;
const PROMPT: [u32; 9] = [3, 17, 5, 30, 8, 8, 21, 2, 11];
const NEXT: [u32; 3] = [19, 4, 28];

/// Sizes of a random Qwen3 of two layers.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    tied: bool,
}

const USUAL: Sizes =
    Sizes { hidden: 256, intermediate: 512, heads: 4, kv_heads: 2, head_dim: 64, vocab: 96, tied: false };

impl Sizes {
    fn config(self) -> ModelConfig {
        let value = json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": 2,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-4, "rope_theta": 1e4,
            "tie_word_embeddings": self.tied, "attention_bias": false, "eos_token_id": 1,
        });
        ModelConfig::parse(&value, "config.json", None).expect("a good config")
    }

    /// The shapes of all tensors by their names in GGUF files, and by their names in safetensors files.
    fn tensors(self) -> Vec<(String, String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (h, inter) = (self.hidden, self.intermediate);
        let layer: [(&str, &str, Vec<usize>); 11] = [
            ("attn_norm", "input_layernorm", vec![h]),
            ("ffn_norm", "post_attention_layernorm", vec![h]),
            ("attn_q_norm", "self_attn.q_norm", vec![self.head_dim]),
            ("attn_k_norm", "self_attn.k_norm", vec![self.head_dim]),
            ("attn_q", "self_attn.q_proj", vec![q, h]),
            ("attn_k", "self_attn.k_proj", vec![kv, h]),
            ("attn_v", "self_attn.v_proj", vec![kv, h]),
            ("attn_output", "self_attn.o_proj", vec![h, q]),
            ("ffn_gate", "mlp.gate_proj", vec![inter, h]),
            ("ffn_up", "mlp.up_proj", vec![inter, h]),
            ("ffn_down", "mlp.down_proj", vec![h, inter]),
        ];
        let of_layer = |i: usize| {
            let named = move |(ggml, hf, shape)| {
                (format!("blk.{i}.{ggml}.weight"), format!("model.layers.{i}.{hf}.weight"), shape)
            };
            layer.clone().map(named)
        };
        let mut all: Vec<_> = (0..2).flat_map(of_layer).collect();
        let table = vec![self.vocab, h];
        all.push(("token_embd.weight".into(), "model.embed_tokens.weight".into(), table.clone()));
        all.push(("output_norm.weight".into(), "model.norm.weight".into(), vec![h]));
        if !self.tied {
            all.push(("output.weight".into(), "lm_head.weight".into(), table));
        }
        all
    }
}

/// Values of a tensor: the weights of norms lie around 1, those of matrices keep activations in bounds.
fn values(seed: usize, shape: &[usize]) -> Vec<f32> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    match *shape {
        [n] => (0..n).map(|_| 1.0 + 0.5 * next()).collect(),
        _ => (0..shape.iter().product()).map(|_| next() * 2.0 / (shape[1] as f32).sqrt()).collect(),
    }
}

/// A safetensors file of tensors in the given type. Values are rounded to it.
fn safetensors(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, dtype: safetensors::Dtype) -> Weights {
    let bytes = |values: &[f32]| -> Vec<u8> {
        match dtype {
            safetensors::Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            safetensors::Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let stored: Vec<_> = tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(dtype, shape.to_vec(), bytes).expect("consistent"))
    });
    let file = safetensors::serialize(views, None).expect("serializable");
    Weights::open(&ModelSource::memory([("model.safetensors", file)])).expect("a good file")
}

fn random(s: Sizes) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let tensor = |(i, (_, name, shape)): (usize, (String, String, Vec<usize>))| {
        let values = values(i, &shape);
        (name, (shape, values))
    };
    s.tensors().into_iter().enumerate().map(tensor).collect()
}

/// The logits of the prompt's last token and of each of the next tokens, computed in f64.
fn expected(config: &ModelConfig, weights: &Weights) -> Vec<f32> {
    let reference = Reference::new(config, weights, 64);
    let mut reading = reference.read(Positions::Original, Dtype::F32);
    let all = PROMPT.iter().chain(&NEXT).map(|id| reading.forward(*id).logits);
    all.skip(PROMPT.len() - 1).flatten().map(|v| v as f32).collect()
}

fn found(model: &Decoder) -> Vec<f32> {
    let shape = secateur::expert::cache::CacheShape::new(model.config(), Dtype::F32, 1, 16).expect("f32");
    let mut cache = secateur::expert::cache::KvCache::new(shape, model.device());
    let mut reads = vec![start(&prefill(model, &mut cache, 0, &PROMPT, NEXT[0]))];
    reads.extend((0..NEXT.len()).map(|i| start(&decode(model, &mut cache, *NEXT.get(i + 1).unwrap_or(&0)))));
    reads.into_iter().flat_map(finish).collect()
}

/// Loads the weights on every device, and on two with norms the other way, and compares the logits with those of the
/// reference. Returns the worst error.
#[track_caller]
fn agree(place: &str, config: &ModelConfig, weights: &Weights, precision: Option<Precision>, of: &[f32]) -> f64 {
    let _shared = beside_others();
    let mut worst = 0f64;
    for device in devices().iter().chain(&two_with_other_norms()) {
        let model = Decoder::load(config, weights, 64, precision, device, &mut |_, _| ()).expect("loads");
        let found = found(&model);
        let per_row = found.chunks(config.vocab_size).zip(of.chunks(config.vocab_size));
        let off = per_row.map(|(found, of)| error(found, of)).fold(0f64, f64::max);
        assert!(off <= LOGITS, "{place} on {}: logits off by {off:.1e}", device.info.name);
        worst = worst.max(off);
    }
    worst
}

#[test]
fn widths_and_heads_of_any_size() {
    let odd = Sizes { hidden: 44, intermediate: 51, heads: 3, kv_heads: 1, head_dim: 8, vocab: 77, tied: true };
    for (what, sizes) in [
        ("odd widths", odd),
        ("the widths of TinyStories 260K", Sizes { hidden: 64, intermediate: 172, heads: 8, kv_heads: 4, ..odd }),
        ("a width below a vector", Sizes { hidden: 6, intermediate: 7, tied: false, vocab: 33, ..odd }),
        ("heads of 256", Sizes { head_dim: 256, heads: 2, ..odd }),
        ("heads of 160", Sizes { hidden: 40, head_dim: 160, ..odd }),
    ] {
        let (config, tensors) = (sizes.config(), random(sizes));
        for dtype in [safetensors::Dtype::F32, safetensors::Dtype::F16, safetensors::Dtype::BF16] {
            let weights = safetensors(&tensors, dtype);
            let place = format!("{what}, {dtype:?}");
            let off = agree(&place, &config, &weights, None, &expected(&config, &weights));
            println!("{place}: logits off by {off:.1e}");
        }
    }
}

/// The number of a type in a GGUF file.
fn ggml(dtype: Dtype) -> u32 {
    let numbers = [0, 1, 30, 8, 2, 3, 6, 7, 10, 11, 12, 13, 14, 20, 23];
    Dtype::ALL.iter().zip(numbers).find(|(known, _)| **known == dtype).expect("listed").1
}

/// Every quantized type in every place, in mixtures that change from matrix to matrix: also within q, k and v, and
/// within gate and up.
#[test]
fn files_mix_all_types() {
    let quantized: Vec<Dtype> = Dtype::ALL.into_iter().filter(|d| d.is_quantized()).chain([Dtype::F16]).collect();
    let mut mixed_gates = 0;
    for turn in 0..quantized.len() {
        let config = USUAL.config();
        let mut file = File::default().with("general.architecture", crate::gguf::textv("qwen3"));
        let mut types = BTreeMap::new();
        let mut matrices = 0;
        for (i, (name, _, shape)) in USUAL.tensors().into_iter().enumerate() {
            let dims: Vec<u64> = shape.iter().rev().map(|n| *n as u64).collect();
            if shape.len() == 1 {
                file = file.f32s(&name, &dims, values(i, &shape).into_iter());
                continue;
            }
            matrices += 1;
            // Steps of 5 through 13 types: neighbours differ, and after 13 turns each type has been in every place.
            let dtype = quantized[(turn + 5 * matrices) % quantized.len()];
            let size = 2.0 / (shape[1] as f32).sqrt();
            let bytes = match dtype {
                Dtype::F16 => {
                    values(i, &shape).into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()
                }
                _ => blocks::arbitrary(dtype, shape[0], shape[1], (turn * 100 + i) as u32, size),
            };
            types.insert(name.clone(), dtype);
            file = file.tensor(&name, &dims, ggml(dtype), bytes);
        }
        mixed_gates += usize::from(types["blk.0.ffn_gate.weight"] != types["blk.0.ffn_up.weight"]);
        let weights = Weights::open(&file.source().expect("a good file")).expect("good tensors");
        let place = format!("mixture {turn}, values in {}", types["blk.0.attn_v.weight"]);
        let off = agree(&place, &config, &weights, None, &expected(&config, &weights));
        println!("{place}: logits off by {off:.1e}");
    }
    assert_eq!(mixed_gates, quantized.len());
}

/// Weights that are quantized as they are loaded, compared with the values of the same quantization.
#[test]
fn weights_are_quantized_as_they_are_loaded() {
    // The results of attention are 72 wide here. That is no number of whole blocks, and they are not padded.
    let narrow = Sizes { hidden: 44, intermediate: 96, heads: 3, kv_heads: 1, head_dim: 24, vocab: 50, tied: true };
    for (what, sizes) in [("whole blocks", USUAL), ("widths that are no whole blocks", narrow)] {
        let (config, tensors) = (sizes.config(), random(sizes));
        let weights = safetensors(&tensors, safetensors::Dtype::F32);
        let exact = expected(&config, &weights);
        let mut errors = Vec::new();
        for precision in Precision::ALL {
            let quantized = tensors.iter().map(|(name, (shape, values))| {
                let &[rows, cols] = &shape[..] else { return (name.clone(), (shape.clone(), values.clone())) };
                let role = match name {
                    n if n.contains("embed") || n.contains("lm_head") => Role::Vocabulary,
                    n if n.contains("v_proj") => Role::Values,
                    _ => Role::Inner,
                };
                let width = if name.contains("o_proj") { cols } else { cols.next_multiple_of(32) };
                let padded = PackedRows::from_f32(Dtype::F32, rows, cols, values).expect("f32");
                let padded = padded.padded(rows, width).expect("wider");
                let dtype = precision.dtype(Dtype::F32, role, width);
                assert_eq!(dtype.is_quantized(), width.is_multiple_of(32), "{name}");
                let rounded = padded.convert(dtype).expect("finite").to_f32();
                let values = rounded.chunks(width).flat_map(|row| row[..cols].to_vec()).collect();
                (name.clone(), (shape.clone(), values))
            });
            let same = safetensors(&quantized.collect(), safetensors::Dtype::F32);
            let of = expected(&config, &same);
            let place = format!("{what}, {precision}");
            let off = agree(&place, &config, &weights, Some(precision), &of);
            errors.push(error(&of, &exact));
            println!("{place}: logits off by {off:.1e}, and by {:.1e} from those of f32", errors[errors.len() - 1]);
        }
        assert!(errors[0] > 1e-4 && errors[0] < 0.05 && errors[2] < 0.5, "{errors:?}");
        assert!(errors.is_sorted(), "{errors:?}");
    }
}
