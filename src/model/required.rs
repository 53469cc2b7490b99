//! The tensors that a model needs, so that weights can be checked before any of them is read.
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::model::config::ModelConfig;
use crate::model::matrix::padded_width;
use crate::weights::Weights;
use crate::weights::precision::{Precision, Role};
use crate::{Error, ErrorKind, Result};

/// Checks that `weights` have every tensor that the decoder of `config` loads, with the right shape and an element
/// type that secateur computes with. Reads no values.
///
/// # Errors
/// The first tensor that is missing, or has another shape or an element type that is not supported.
pub fn check(config: &ModelConfig, weights: &Weights) -> Result<()> {
    let (h, inter) = (config.hidden_size, config.intermediate_size);
    let (q, kv, d) = (config.q_size(), config.kv_size(), config.head_dim);
    let expect = |name: &str, shape: &[usize]| weights.expect(name, shape)?.packed_dtype().map(drop);
    expect("model.embed_tokens.weight", &[config.vocab_size, h])?;
    if !config.tie_word_embeddings {
        expect("lm_head.weight", &[config.vocab_size, h])?;
    }
    expect("model.norm.weight", &[h])?;
    for i in 0..config.num_layers {
        let part = |name: &str, shape: &[usize]| expect(&format!("model.layers.{i}.{name}"), shape);
        part("input_layernorm.weight", &[h])?;
        part("post_attention_layernorm.weight", &[h])?;
        if config.fused_projections {
            part("self_attn.qkv_proj.weight", &[q + 2 * kv, h])?;
            part("mlp.gate_up_proj.weight", &[2 * inter, h])?;
        } else {
            for (what, rows) in [("q", q), ("k", kv), ("v", kv)] {
                part(&format!("self_attn.{what}_proj.weight"), &[rows, h])?;
            }
            part("mlp.gate_proj.weight", &[inter, h])?;
            part("mlp.up_proj.weight", &[inter, h])?;
        }
        for (what, rows) in [("q", q), ("k", kv), ("v", kv)] {
            if config.attention_bias {
                part(&format!("self_attn.{what}_proj.bias"), &[rows])?;
            }
        }
        part("self_attn.o_proj.weight", &[h, q])?;
        if config.output_bias {
            part("self_attn.o_proj.bias", &[h])?;
        }
        if config.qk_norm {
            part("self_attn.q_norm.weight", &[d])?;
            part("self_attn.k_norm.weight", &[d])?;
        }
        part("mlp.down_proj.weight", &[h, inter])?;
    }
    Ok(())
}

/// The bytes of all weights on the device, for weights of this precision: the types that
/// [`Decoder::load`](super::decoder::Decoder::load) gives the matrices, but for those of a fused q, k and v, which count as
/// one. Tensors that it does not load count as well, with their bytes in the file.
pub fn device_bytes(weights: &Weights, precision: Option<Precision>) -> Result<u64> {
    bytes_of(weights, precision, |_| true)
}

/// Refuses weights that exceed the memory of a device, before they are read.
///
/// # Errors
/// [`ErrorKind::Device`] if the tensors of the decoder alone have more bytes than the device.
pub(crate) fn check_memory(
    config: &ModelConfig,
    weights: &Weights,
    precision: Option<Precision>,
    device: &ComputeDevice,
) -> Result<()> {
    let Some(most) = device.info.memory_bytes else { return Ok(()) };
    let is_loaded =
        |name: &str| name.starts_with("model.") || name.starts_with("lm_head.") && !config.tie_word_embeddings;
    let bytes = bytes_of(weights, precision, is_loaded)?;
    if bytes <= most {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Device, "the weights do not fit into the memory of the device")
        .at(device.info.line())
        .expected(format!("at most {most} bytes"))
        .found(format!("{bytes} bytes of weights"))
        .help("use a smaller model, a quantized one or `weights` q4, or `device` cpu"))
}

fn bytes_of(weights: &Weights, precision: Option<Precision>, counts: impl Fn(&str) -> bool) -> Result<u64> {
    let mut bytes = 0u64;
    for name in weights.names().filter(|name| counts(name)) {
        let tensor = weights.tensor(name)?;
        let (&[rows, cols], Some(stored)) = (tensor.shape, tensor.stored.packed()) else {
            bytes = bytes.saturating_add(tensor.size());
            continue;
        };
        let role = match name {
            _ if name.contains("embed_tokens") || name.starts_with("lm_head") => Role::Vocabulary,
            _ if name.contains(".v_proj.") => Role::Values,
            _ => Role::Inner,
        };
        let padded = !stored.is_quantized() && !name.contains(".o_proj.");
        let cols = if padded { padded_width(cols, precision) } else { cols };
        let dtype = precision.map_or(stored, |precision| precision.dtype(stored, role, cols));
        bytes = bytes.saturating_add((rows as u64).saturating_mul(dtype.row_words(cols) as u64 * 4));
    }
    Ok(bytes)
}

/// Whether every matrix is quantized in the file, so that a precision changes none of them.
pub fn is_quantized(weights: &Weights) -> bool {
    let matrices = weights.names().filter_map(|name| weights.find(name)).filter(|tensor| tensor.shape.len() == 2);
    let mut types = matrices.map(|tensor| tensor.stored.packed()).peekable();
    types.peek().is_some() && types.all(|dtype| dtype.is_some_and(Dtype::is_quantized))
}
