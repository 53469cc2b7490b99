//! Reads and checks `config.json` and `generation_config.json` of a Hugging Face model.
//!
//! The spelling of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of transformers 5
//! (`rope_parameters`, `dtype`) are both read. Features that secateur does not support are never ignored: they are
//! errors that name the feature.
pub use super::architecture::Architecture;
pub use super::experts::MixtureOfExperts;
use super::fields::Fields;
use super::rope;
pub use super::rope::{RopeScaling, RotatedLayers};
use crate::dtype::Dtype;
use crate::text::{ChatTemplate, Tokenizer, turn_end};
use crate::weights::{self, ADAPTER, ModelSource};
use crate::{Error, ErrorKind, Result};
use serde_json::Value;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// The shape of a decoder. Every size is positive, and every division that the sizes imply is exact.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family of the decoder.
    pub architecture: Architecture,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer, in layers that have no experts.
    pub intermediate_size: usize,
    /// The experts, if the model has any.
    pub experts: Option<MixtureOfExperts>,
    /// Number of decoder layers.
    pub num_layers: usize,
    /// Query heads per layer.
    pub num_heads: usize,
    /// Key/value heads per layer; a divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even, because RoPE rotates pairs.
    pub head_dim: usize,
    /// Number of components of a head that RoPE rotates, the first ones; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// The layers whose queries and keys RoPE rotates.
    pub rotated_layers: RotatedLayers,
    /// Longest context that the model supports, in tokens.
    pub max_position_embeddings: usize,
    /// Width of the sliding window of the attention, if it is shorter than the longest context. Up to this many
    /// tokens, attention with the window is the same as without; longer contexts are refused.
    pub sliding_window: Option<usize>,
    /// The position from which on queries are scaled by their position (Ministral 3). Longer contexts are refused.
    pub queries_scaled_from: Option<usize>,
    /// ε of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the q, k and v projections have biases.
    pub attention_bias: bool,
    /// Whether the o projection has a bias: true for Llama and Qwen3 with `attention_bias`, never for Qwen2.
    pub output_bias: bool,
    /// Whether q and k are RMS-normalised per head.
    pub qk_norm: bool,
    /// Whether one tensor has the rows of q, k and v, and another those of gate and up.
    pub fused_projections: bool,
    /// Whether the output head uses the weights of the embedding.
    pub tie_word_embeddings: bool,
    /// The token ids that end an answer: first those of generation_config.json, then those of config.json, without
    /// duplicates. All are in the vocabulary. May be empty.
    pub eos_token_ids: Vec<u32>,
    /// The sampling settings that the authors of the model recommend.
    pub generation: GenerationDefaults,
}

/// The sampling settings that the authors of a model recommend, from `generation_config.json` or from the
/// `general.sampling.*` metadata of a GGUF file. A setting that the file does not contain is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample (true) or to take the most likely token (false).
    pub do_sample: Option<bool>,
    /// Divides the logits; zero or positive.
    pub temperature: Option<f32>,
    /// Sampling is limited to the smallest set of tokens with at least this total probability; in (0, 1].
    pub top_p: Option<f32>,
    /// Sampling is limited to this number of most likely tokens; 0 means no limit.
    pub top_k: Option<u32>,
    /// Tokens whose probability is less than this share of the highest probability are dropped; in `[0, 1]`.
    pub min_p: Option<f32>,
    /// Divides the positive logits of tokens that occurred before, and multiplies negative ones; positive.
    pub repetition_penalty: Option<f32>,
}

impl ModelConfig {
    /// Reads the configuration of a model: from `config.json` and, if the model has one, `generation_config.json`, or
    /// from the metadata of a GGUF file.
    ///
    /// # Errors
    /// If config.json is missing, one of the files is malformed, or secateur does not support the model.
    pub fn load(source: &ModelSource) -> Result<Self> {
        if let Some(gguf) = source.gguf() {
            return super::gguf::config(gguf);
        }
        let Some(config) = source.find_json(CONFIG)? else {
            if let Some(adapter) = source.find_json(ADAPTER)? {
                return Err(weights::adapter(&adapter).at(source));
            }
            return Err(Error::new(ErrorKind::Model, format!("the model has no {CONFIG}"))
                .at(source)
                .found(source.listing())
                .help("pass a directory in Hugging Face layout, or a .gguf file"));
        };
        let generation = source.find_json(GENERATION)?;
        let generation = generation.as_ref().map(|json| (json, source.place_of(GENERATION)));
        Self::parse(&config, &source.place_of(CONFIG), generation.as_ref().map(|(json, place)| (*json, place.as_str())))
    }

    /// Reads a parsed `config.json` and, if there is one, a parsed `generation_config.json`. Each comes with its
    /// path, which is used in messages.
    ///
    /// # Errors
    /// If one of them is malformed, or secateur does not support the model.
    pub fn parse(config: &Value, place: &str, generation: Option<(&Value, &str)>) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        let architecture = Architecture::from_fields(&fields)?;
        let absent = architecture.defaults();
        refuse_unsupported(&fields, architecture)?;

        let hidden_size = fields.size("hidden_size")?;
        let num_heads = fields.size("num_attention_heads")?;
        let num_kv_heads = match fields.optional_size("num_key_value_heads")? {
            Some(heads) => heads,
            // `null` means as many as query heads.
            None if fields.map.contains_key("num_key_value_heads") => num_heads,
            None => absent.num_kv_heads.unwrap_or(num_heads),
        };
        let head_dim = match fields.optional_size("head_dim")?.or(absent.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size % num_heads == 0 => hidden_size / num_heads,
            None => {
                return Err(fields.invalid("hidden_size", format!("a multiple of num_attention_heads, {num_heads}")));
            }
        };
        // Qwen2 has no independent head width: transformers ignores the field, so it must not contradict the sizes.
        if architecture == Architecture::Qwen2 && head_dim * num_heads != hidden_size {
            return Err(
                fields.invalid("head_dim", format!("hidden_size / num_attention_heads = {hidden_size} / {num_heads}"))
            );
        }
        if head_dim % 2 != 0 {
            return Err(Error::new(ErrorKind::Model, "heads of odd width cannot be rotated by RoPE")
                .at(fields.place)
                .expected("an even head_dim, by default hidden_size / num_attention_heads")
                .found(head_dim));
        }
        if num_heads % num_kv_heads != 0 {
            return Err(fields.invalid("num_key_value_heads", format!("a divisor of num_attention_heads, {num_heads}")));
        }
        let vocab_size = fields.size("vocab_size")?;
        let num_layers = fields.size("num_hidden_layers")?;
        let max_position_embeddings = fields.size("max_position_embeddings")?;
        let rope::Parsed { theta: rope_theta, scaling: rope_scaling, rotary_dim, queries_scaled_from } =
            rope::parse(&fields, architecture, head_dim)?;
        let rms_norm_eps = fields.number("rms_norm_eps")?.unwrap_or(absent.rms_norm_eps);
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(fields.invalid("rms_norm_eps", "between 0 and 1"));
        }

        let mut eos_token_ids = Vec::new();
        let mut defaults = GenerationDefaults::default();
        if let Some((json, place)) = generation {
            let fields = Fields::new(json, place)?;
            fields.add_eos_ids(&mut eos_token_ids, vocab_size)?;
            defaults = GenerationDefaults::parse(&fields)?;
        }
        fields.add_eos_ids(&mut eos_token_ids, vocab_size)?;

        // Qwen2 always has biases, Mistral, Ministral 3 and Phi-3 never; their configs have no field for them.
        let says_bias = match architecture {
            Architecture::Qwen2 | Architecture::Mistral | Architecture::Ministral3 | Architecture::Phi3 => false,
            _ => fields.flag("attention_bias")?.unwrap_or(false),
        };
        Ok(Self {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            experts: MixtureOfExperts::parse(&fields, architecture, num_layers)?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            rotary_dim,
            rotated_layers: RotatedLayers::parse(&fields, architecture, num_layers)?,
            max_position_embeddings,
            sliding_window: sliding_window(&fields, architecture)?.filter(|window| *window < max_position_embeddings),
            queries_scaled_from,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            attention_bias: says_bias || architecture == Architecture::Qwen2,
            output_bias: says_bias,
            qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Qwen3Moe),
            fused_projections: architecture == Architecture::Phi3,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(absent.tie_word_embeddings),
            eos_token_ids,
            generation: defaults,
        })
    }

    /// The longest context that can be used, in tokens: that of the model, or less if its attention has a sliding
    /// window or scales queries by their position.
    pub fn longest_context(&self) -> usize {
        [self.sliding_window, self.queries_scaled_from]
            .into_iter()
            .flatten()
            .fold(self.max_position_embeddings, usize::min)
    }

    /// The number of positions to make room for: the requested number, or else the [longest
    /// context](Self::longest_context), limited to 32,768.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if the requested number is 0, or larger than the longest context.
    pub fn context(&self, requested: Option<usize>) -> Result<usize> {
        let most = self.longest_context();
        match requested {
            None => Ok(most.min(32_768)),
            Some(positions) if (1..=most).contains(&positions) => Ok(positions),
            Some(positions) if (most + 1..=self.max_position_embeddings).contains(&positions) => {
                let (what, limit) = match self.sliding_window {
                    Some(window) if window == most => ("sliding attention windows are", "the model's sliding_window"),
                    _ => ("queries that are scaled by their position are", "from which on the model scales queries"),
                };
                Err(Error::new(ErrorKind::Input, format!("{what} not supported"))
                    .at("`context`")
                    .expected(format!("at most {most} positions, {limit}"))
                    .found(positions)
                    .help("choose a smaller `context`, or leave it unset: up to there, attention is the same"))
            }
            Some(positions) => Err(Error::new(ErrorKind::Input, "the model does not support this context length")
                .at("`context`")
                .expected(format!("at least 1, at most {most} positions (its max_position_embeddings)"))
                .found(positions)
                .help("choose a smaller `context`, or leave it unset")),
        }
    }

    /// Adds the special token with which the chat template ends a turn to the end tokens. The files of models that
    /// were tuned for chats often name only the end token of the base model.
    pub fn add_turn_end(&mut self, tokenizer: &Tokenizer, template: &ChatTemplate) {
        if let Some(id) = turn_end(tokenizer, template)
            && (id as usize) < self.vocab_size
            && !self.eos_token_ids.contains(&id)
        {
            self.eos_token_ids.push(id);
        }
    }

    /// Number of query heads that share one key/value head.
    pub fn group_size(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Width of all query heads together.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together; that of all value heads is the same.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Number of parameters, including norms and biases. A tied embedding counts once.
    pub fn parameters(&self) -> u64 {
        self.parameters_of(self.experts.as_ref().map_or(0, |experts| experts.experts))
    }

    /// Number of parameters that are used for a token: like [`parameters`](Self::parameters), but of the experts only
    /// those that are computed.
    pub fn active_parameters(&self) -> u64 {
        self.parameters_of(self.experts.as_ref().map_or(0, |experts| experts.experts_per_token))
    }

    /// The parameters, if a layer had `count` experts.
    fn parameters_of(&self, count: usize) -> u64 {
        let [h, q, kv, d] = [self.hidden_size, self.q_size(), self.kv_size(), self.head_dim].map(|n| n as u128);
        let biases = if self.attention_bias { q + 2 * kv } else { 0 } + if self.output_bias { h } else { 0 };
        let norms = 2 * h + if self.qk_norm { 2 * d } else { 0 };
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        let (dense, experts) = match &self.experts {
            None => (self.num_layers, 0),
            Some(mixture) => {
                (mixture.dense(self.num_layers), (mixture.experts + 3 * count * mixture.intermediate_size) as u128)
            }
        };
        let attention = self.num_layers as u128 * (h * (2 * q + 2 * kv) + biases + norms);
        let dense_rows = dense as u128 * 3 * self.intermediate_size as u128;
        let rows = dense_rows + (self.num_layers - dense) as u128 * experts + heads * self.vocab_size as u128;
        u64::try_from(attention + h * rows + h).unwrap_or(u64::MAX)
    }

    /// Size in bytes of one cached token: its keys and values in all layers, with the element type `kv` (f32 or f16).
    pub fn kv_bytes_per_token(&self, kv: Dtype) -> u64 {
        (2 * self.num_layers * self.num_kv_heads * kv.row_words(self.head_dim) * 4) as u64
    }
}

impl GenerationDefaults {
    fn parse(fields: &Fields<'_>) -> Result<Self> {
        let number = |name: &str, expected: &str, good: fn(f64) -> bool| match fields.number(name)? {
            Some(value) if !good(value) => Err(fields.invalid(name, expected)),
            value => Ok(value.map(|value| value as f32)),
        };
        Ok(Self {
            do_sample: fields.flag("do_sample")?,
            temperature: number("temperature", "zero or positive", |t| t >= 0.0)?,
            top_p: number("top_p", "in (0, 1]", |p| p > 0.0 && p <= 1.0)?,
            top_k: match fields.get("top_k") {
                None => None,
                // Some servers write -1 for "no limit".
                Some(value) if value.as_i64() == Some(-1) => Some(0),
                Some(value) => match value.as_u64().and_then(|k| u32::try_from(k).ok()) {
                    Some(k) => Some(k),
                    None => return Err(fields.invalid("top_k", "a whole number, or -1")),
                },
            },
            min_p: number("min_p", "in [0, 1]", |p| (0.0..=1.0).contains(&p))?,
            repetition_penalty: number("repetition_penalty", "positive", |r| r > 0.0)?,
        })
    }
}

impl Fields<'_> {
    /// Adds `eos_token_id`, which is one id or a list, to `ids`. An id outside the vocabulary can never be sampled,
    /// so it is dropped with a warning. Small models with a copied config have such ids.
    fn add_eos_ids(&self, ids: &mut Vec<u32>, vocab_size: usize) -> Result<()> {
        const NAME: &str = "eos_token_id";
        let Some(value) = self.get(NAME) else { return Ok(()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for id in list {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| self.invalid(NAME, "a token id or a list of them"))?;
            if id as usize >= vocab_size {
                log::warn!(
                    "{}: {NAME} {id} is ignored, because the vocabulary has only {vocab_size} tokens",
                    self.place
                );
            } else if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(())
    }
}

/// The width of the window that the attention of all layers has. In Mistral and Phi-3, the field alone decides; that
/// of Qwen2 and others is in [`refuse_unsupported`].
fn sliding_window(fields: &Fields<'_>, architecture: Architecture) -> Result<Option<usize>> {
    const NAME: &str = "sliding_window";
    match architecture {
        Architecture::Mistral | Architecture::Phi3 if fields.map.contains_key(NAME) => fields.optional_size(NAME),
        _ => Ok(architecture.defaults().sliding_window),
    }
}

fn refuse_unsupported(fields: &Fields<'_>, architecture: Architecture) -> Result<()> {
    for name in ["vision_config", "audio_config", "text_config"] {
        if fields.get(name).is_some() {
            return Err(fields.unsupported(name, "models with image or audio input"));
        }
    }
    if fields.get("quantization").is_some_and(Value::is_object) {
        return Err(fields.unsupported("quantization", "MLX-quantized weights").help("use the original weights"));
    }
    if let Some(quantization) = fields.get("quantization_config") {
        let what = match quantization.get("quant_method").and_then(Value::as_str) {
            Some(method @ ("gptq" | "awq" | "fp8" | "mxfp4" | "hqq")) => {
                format!("{}-quantized weights", method.to_uppercase())
            }
            Some(method) => format!("weights quantized by {method}"),
            None => "quantized checkpoints".to_string(),
        };
        return Err(fields
            .unsupported("quantization_config", &what)
            .help("use the original weights, or a GGUF file of the model"));
    }
    // Many configs contain a sliding window that is not used. It is used only if `use_sliding_window` is true, the
    // window has a width (absent means the default of transformers, null means none), and the model has more layers
    // than `max_window_layers` (28 by default; Qwen3-MoE does not read it).
    let slides = fields.flag("use_sliding_window")?.unwrap_or(false)
        && fields.map.get("sliding_window") != Some(&Value::Null)
        && (architecture == Architecture::Qwen3Moe
            || fields.optional_size("max_window_layers")?.unwrap_or(28) < fields.size("num_hidden_layers")?);
    if slides {
        return Err(fields.unsupported("use_sliding_window", "sliding attention windows"));
    }
    if let Some(value) = fields.get("layer_types") {
        let list = value.as_array().ok_or_else(|| fields.invalid("layer_types", "a list"))?;
        if list.iter().any(|kind| kind != "full_attention") {
            return Err(fields.unsupported("layer_types", "layers other than full_attention"));
        }
    }
    if fields.flag("mlp_bias")?.unwrap_or(false) {
        return Err(fields.unsupported("mlp_bias", "feed-forward layers with biases"));
    }
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(_) => return Err(fields.invalid("hidden_act", "silu")),
    }
    Ok(())
}
