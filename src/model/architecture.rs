//! The families of decoders, and what their configurations leave out.
use super::fields::Fields;
use crate::{Error, ErrorKind, Result};
use serde_json::Value;

/// A family of decoders. Families differ in the defaults of their config and in the fields of
/// [`ModelConfig`](super::config::ModelConfig) that describe attention and its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Qwen2, Qwen2.5, R1-Distill-Qwen and QwQ: q, k and v have biases.
    Qwen2,
    /// Qwen3 and R1-0528-Qwen3: q and k are RMS-normalised per head, and the head width is independent of the hidden
    /// size.
    Qwen3,
    /// Qwen3-30B-A3B, Qwen3-235B-A22B and their like: Qwen3 with experts in all layers or some.
    Qwen3Moe,
    /// Llama, R1-Distill-Llama and SmolLM: no normalisation, and no biases unless the config sets `attention_bias`.
    Llama,
    /// Mistral, Magistral and Ministral 8B: like Llama without biases, and the attention may have a sliding window.
    Mistral,
    /// Ministral 3: like Mistral, but from some position on, attention scores are multiplied by a factor that grows
    /// with the position of the query.
    Ministral3,
    /// SmolLM3: like Llama, but some layers do not rotate their queries and keys.
    SmolLM3,
    /// Phi-3 and Phi-4-mini: one tensor has the rows of q, k and v, another those of gate and up, and RoPE may rotate
    /// only the first components of a head.
    Phi3,
}

/// The values that transformers assumes where a config has no such field.
pub(super) struct Defaults {
    pub rope_theta: f64,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    /// `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `None`: as many as query heads.
    pub num_kv_heads: Option<usize>,
    pub sliding_window: Option<usize>,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Self; 8] = [
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Llama,
        Self::Mistral,
        Self::Ministral3,
        Self::SmolLM3,
        Self::Phi3,
    ];

    /// The class name that transformers writes in `architectures`.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Ministral3 => "Ministral3ForCausalLM",
            Self::SmolLM3 => "SmolLM3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
        }
    }

    /// The name that transformers writes in `model_type`.
    const fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Ministral3 => "ministral3",
            Self::SmolLM3 => "smollm3",
            Self::Phi3 => "phi3",
        }
    }

    pub(super) const fn defaults(self) -> Defaults {
        let common = Defaults {
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            head_dim: None,
            num_kv_heads: None,
            sliding_window: None,
        };
        match self {
            Self::Qwen2 | Self::Llama => common,
            Self::Qwen3 => Defaults { head_dim: Some(128), ..common },
            Self::Qwen3Moe => Defaults { num_kv_heads: Some(4), ..common },
            Self::Mistral => Defaults { num_kv_heads: Some(8), sliding_window: Some(4096), ..common },
            Self::Ministral3 => Defaults { rms_norm_eps: 1e-5, head_dim: Some(128), num_kv_heads: Some(8), ..common },
            Self::SmolLM3 => Defaults { rope_theta: 2e6, tie_word_embeddings: true, num_kv_heads: Some(4), ..common },
            Self::Phi3 => Defaults { rms_norm_eps: 1e-5, ..common },
        }
    }

    /// The architecture that a config names.
    ///
    /// # Errors
    /// If the config names none, or one that is not supported.
    pub(super) fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        let named = match fields.get("architectures") {
            None => None,
            Some(Value::Array(list)) if !list.is_empty() => {
                Some(list[0].as_str().ok_or_else(|| fields.invalid("architectures", "a list of class names"))?)
            }
            Some(_) => return Err(fields.invalid("architectures", "a list of class names")),
        };
        let name = match named {
            Some(name) => name,
            None => fields.text("model_type")?.ok_or_else(|| {
                Error::new(ErrorKind::Model, "config.json does not name the architecture of the model")
                    .at(fields.place)
                    .expected("the field architectures or model_type")
                    .found("neither")
            })?,
        };
        let known = Self::ALL.into_iter().find(|known| [known.class_name(), known.model_type()].contains(&name));
        known.ok_or_else(|| {
            Error::new(ErrorKind::Model, format!("the architecture {name} is not supported"))
                .at(fields.place)
                .expected(Self::ALL.map(Self::class_name).join(", "))
        })
    }
}
