//! Models of common sizes with random weights, so that a device can be measured without a download. The speed does
//! not depend on the values of the weights.
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::kernels::cases::noise;
use crate::weights::{Bytes, ReadAt};
use crate::{Error, ErrorKind, ModelSource, Result};

/// The sizes of a model, as its `config.json` has them.
struct Preset {
    name: &'static str,
    /// `model_type` in `config.json`.
    kind: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    vocabulary: usize,
    tied: bool,
    theta: f64,
    context: usize,
}

const PRESETS: [Preset; 5] = [
    Preset {
        name: "smollm2-135m",
        kind: "llama",
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocabulary: 49_152,
        tied: true,
        theta: 100_000.0,
        context: 8192,
    },
    Preset {
        name: "qwen3-0.6b",
        kind: "qwen3",
        hidden: 1024,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 3072,
        vocabulary: 151_936,
        tied: true,
        theta: 1_000_000.0,
        context: 40_960,
    },
    Preset {
        name: "r1-1.5b",
        kind: "qwen2",
        hidden: 1536,
        layers: 28,
        heads: 12,
        kv_heads: 2,
        head_dim: 128,
        intermediate: 8960,
        vocabulary: 151_936,
        tied: false,
        theta: 10_000.0,
        context: 131_072,
    },
    Preset {
        name: "r1-7b",
        kind: "qwen2",
        hidden: 3584,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        intermediate: 18_944,
        vocabulary: 152_064,
        tied: false,
        theta: 10_000.0,
        context: 131_072,
    },
    Preset {
        name: "qwen3-8b",
        kind: "qwen3",
        hidden: 4096,
        layers: 36,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 12_288,
        vocabulary: 151_936,
        tied: false,
        theta: 1_000_000.0,
        context: 40_960,
    },
];

/// The names of the models of which [`preset`] has the sizes.
pub fn presets() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|preset| preset.name)
}

/// A model of the sizes of `name`, with random weights in bf16. A weight is computed when it is read, so no file is
/// needed. The same name gives the same weights.
///
/// # Errors
/// [`ErrorKind::Input`] for a name that is none of [`presets`].
pub fn preset(name: &str) -> Result<ModelSource> {
    let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) else {
        let e = Error::new(ErrorKind::Input, "there is no such preset").at("`preset`");
        return Err(e.expected(presets().collect::<Vec<_>>().join(", ")).found(name));
    };
    let weights = RandomWeights::new(&preset.tensors());
    let total = weights.total();
    let weights = Bytes::in_pieces("model.safetensors", total, Arc::new(weights))?;
    let config = Bytes::from(preset.config().to_string().into_bytes());
    Ok(ModelSource::memory([("config.json", config), ("model.safetensors", weights)]))
}

impl Preset {
    fn config(&self) -> Value {
        json!({
            "model_type": self.kind,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rope_theta": self.theta,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-6,
            "eos_token_id": 0,
        })
    }

    /// The names and shapes of the tensors, as checkpoints of this architecture have them.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![self.vocabulary, h])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[h]);
            for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{name}_proj.weight"), &[rows, h]);
                if self.kind == "qwen2" {
                    add(&format!("self_attn.{name}_proj.bias"), &[rows]);
                }
            }
            if self.kind == "qwen3" {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            add("self_attn.o_proj.weight", &[h, q]);
            add("post_attention_layernorm.weight", &[h]);
            add("mlp.gate_proj.weight", &[self.intermediate, h]);
            add("mlp.up_proj.weight", &[self.intermediate, h]);
            add("mlp.down_proj.weight", &[h, self.intermediate]);
        }
        tensors.push(("model.norm.weight".into(), vec![h]));
        if !self.tied {
            tensors.push(("lm_head.weight".into(), vec![self.vocabulary, h]));
        }
        tensors
    }
}

/// A safetensors file of bf16 tensors whose values are computed when they are read.
struct RandomWeights {
    /// The length of the header, and the header.
    beginning: Vec<u8>,
    /// Bytes of the tensors.
    data: u64,
    /// Values that are repeated over the whole file. Their number is prime, so that no two rows are the same.
    values: Vec<u8>,
}

impl std::fmt::Debug for RandomWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} random bytes", self.data)
    }
}

impl RandomWeights {
    /// The number of random values, after which they are repeated.
    const PERIOD: usize = 1_000_003;

    fn new(tensors: &[(String, Vec<usize>)]) -> Self {
        let (mut header, mut data) = (Map::new(), 0u64);
        for (name, shape) in tensors {
            let end = data + 2 * shape.iter().map(|size| *size as u64).product::<u64>();
            header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [data, end]}));
            data = end;
        }
        let mut header = Value::Object(header).to_string();
        // The tensors begin at a multiple of 8.
        let padding = header.len().next_multiple_of(8) - header.len();
        let _ = write!(header, "{:padding$}", "");
        let beginning = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        // The upper half of an f32 is a bf16.
        let upper = |value: f32| ((value.to_bits() >> 16) as u16).to_le_bytes();
        let values = noise(Self::PERIOD, 1, 0.03).into_iter().flat_map(upper).collect();
        Self { beginning, data, values }
    }

    fn total(&self) -> u64 {
        self.beginning.len() as u64 + self.data
    }
}

impl ReadAt for RandomWeights {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let header = self.beginning.len() as u64;
        let from_header = header.saturating_sub(offset).min(into.len() as u64) as usize;
        if from_header > 0 {
            let at = offset as usize;
            into[..from_header].copy_from_slice(&self.beginning[at..at + from_header]);
        }
        let mut rest = &mut into[from_header..];
        let mut at = (offset.saturating_sub(header) % self.values.len() as u64) as usize;
        while !rest.is_empty() {
            let count = rest.len().min(self.values.len() - at);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&self.values[at..at + count]);
            (rest, at) = (later, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::ModelConfig;
    use crate::model::required;
    use crate::weights::Weights;

    #[test]
    fn presets_have_the_tensors_that_their_configuration_needs() {
        // As the model cards give them, in millions; the embedding counts once where it is the head as well.
        for (name, millions) in
            [("smollm2-135m", 135), ("qwen3-0.6b", 596), ("r1-1.5b", 1777), ("r1-7b", 7616), ("qwen3-8b", 8191)]
        {
            let source = preset(name).expect("a preset");
            let (config, weights) =
                (ModelConfig::load(&source).expect("it loads"), Weights::open(&source).expect(name));
            required::check(&config, &weights, None).expect("all that is needed");
            assert_eq!((weights.total_bytes() + 1_000_000) / 2_000_000, millions, "{name}");
        }
        let refused = preset("r1-15b").expect_err("there is none").to_string();
        assert!(presets().all(|name| refused.contains(name)), "{refused}");
    }

    #[test]
    fn pieces_are_parts_of_one_file_of_small_numbers() {
        let weights = RandomWeights::new(&[("a".into(), vec![3, 700_000]), ("b".into(), vec![5])]);
        let read = |offset: u64, count: usize| {
            let mut bytes = vec![0; count];
            weights.read_at(offset, &mut bytes).expect("it is there");
            bytes
        };
        let whole = read(0, weights.total() as usize);
        for (offset, count) in [(0, 8), (3, 200), (100, 2_500_000), (2_000_000, 1), (weights.total() - 10, 10)] {
            assert_eq!(read(offset, count), whole[offset as usize..][..count], "{count} bytes from {offset}");
        }
        let source = ModelSource::memory([("model.safetensors", whole)]);
        let values = Weights::open(&source).expect("a file").tensor("a").expect("it has it").to_f32().expect("bf16");
        assert!(values.iter().all(|value| value.abs() <= 0.03) && values[..9] != values[700_000..700_009]);
    }
}
