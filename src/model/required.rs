//! The tensors that a model needs, so that weights can be checked before any of them is read.
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::model::config::{MixtureOfExperts, ModelConfig};
use crate::model::experts::too_large;
use crate::model::matrix::padded_width;
use crate::model::tensors::{ExpertNames, StoredExperts};
use crate::weights::Weights;
use crate::weights::precision::{Precision, Role};
use crate::{Error, ErrorKind, Result};

/// Checks that `weights` have every tensor that the decoder of `config` loads, with the right shape and an element
/// type that secateur computes with, if they are loaded with this precision. Reads no values.
///
/// # Errors
/// The first tensor that is missing, or has another shape or an element type that is not supported; the first expert
/// whose matrix has another element type on the device than that of the layer's first expert.
pub fn check(config: &ModelConfig, weights: &Weights, precision: Option<Precision>) -> Result<()> {
    let expect = |name: &str, shape: &[usize]| weights.expect(name, shape)?.packed_dtype().map(drop);
    outside_layers(config).into_iter().try_for_each(|(name, shape)| expect(name, &shape))?;
    for i in 0..config.num_layers {
        of_layer(config, i).into_iter().try_for_each(|(name, shape)| expect(&in_layer(i, name), &shape))?;
        if let Some(mixture) = config.experts.as_ref().filter(|mixture| mixture.has_experts(i)) {
            check_experts(config, mixture, weights, precision, i)?;
        }
    }
    Ok(())
}

/// The name of a tensor of a layer.
pub(super) fn in_layer(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

/// The tensors that belong to no layer: their names and shapes.
pub(super) fn outside_layers(config: &ModelConfig) -> Vec<(&'static str, Vec<usize>)> {
    let vocabulary = || vec![config.vocab_size, config.hidden_size];
    let mut tensors = vec![("model.embed_tokens.weight", vocabulary())];
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight", vocabulary()));
    }
    tensors.push(("model.norm.weight", vec![config.hidden_size]));
    tensors
}

/// The tensors of a layer, except those of experts: their names after the number of the layer, and their shapes.
pub(super) fn of_layer(config: &ModelConfig, layer: usize) -> Vec<(&'static str, Vec<usize>)> {
    let (h, inter) = (config.hidden_size, config.intermediate_size);
    let (q, kv, d) = (config.q_size(), config.kv_size(), config.head_dim);
    let mut tensors = vec![("input_layernorm.weight", vec![h]), ("post_attention_layernorm.weight", vec![h])];
    if config.fused_projections {
        tensors.push(("self_attn.qkv_proj.weight", vec![q + 2 * kv, h]));
    } else {
        tensors.push(("self_attn.q_proj.weight", vec![q, h]));
        tensors.push(("self_attn.k_proj.weight", vec![kv, h]));
        tensors.push(("self_attn.v_proj.weight", vec![kv, h]));
    }
    if config.attention_bias {
        tensors.push(("self_attn.q_proj.bias", vec![q]));
        tensors.push(("self_attn.k_proj.bias", vec![kv]));
        tensors.push(("self_attn.v_proj.bias", vec![kv]));
    }
    tensors.push(("self_attn.o_proj.weight", vec![h, q]));
    if config.output_bias {
        tensors.push(("self_attn.o_proj.bias", vec![h]));
    }
    if config.qk_norm {
        tensors.push(("self_attn.q_norm.weight", vec![d]));
        tensors.push(("self_attn.k_norm.weight", vec![d]));
    }
    if config.experts.as_ref().is_some_and(|mixture| mixture.has_experts(layer)) {
        return tensors;
    }
    if config.fused_projections {
        tensors.push(("mlp.gate_up_proj.weight", vec![2 * inter, h]));
    } else {
        tensors.push(("mlp.gate_proj.weight", vec![inter, h]));
        tensors.push(("mlp.up_proj.weight", vec![inter, h]));
    }
    tensors.push(("mlp.down_proj.weight", vec![h, inter]));
    tensors
}

/// Checks the router and the tensors of the experts of a layer.
fn check_experts(
    config: &ModelConfig,
    mixture: &MixtureOfExperts,
    weights: &Weights,
    precision: Option<Precision>,
    layer: usize,
) -> Result<()> {
    let (h, inter, count) = (config.hidden_size, mixture.intermediate_size, mixture.experts);
    let expect = |name: &str, shape: &[usize]| weights.expect(name, shape)?.packed_dtype().map(drop);
    expect(&format!("model.layers.{layer}.mlp.gate.weight"), &[count, h])?;
    let names = ExpertNames::find(weights, layer);
    let [gate, up, down] = names.expert(0);
    match names.stored {
        StoredExperts::Fused => expect(&gate, &[count, 2 * inter, h])?,
        StoredExperts::Stacked => {
            expect(&gate, &[count, inter, h])?;
            expect(&up, &[count, inter, h])?;
        }
        StoredExperts::Each => {
            for [gate, up, down] in (0..count).map(|expert| names.expert(expert)) {
                expect(&gate, &[inter, h])?;
                expect(&up, &[inter, h])?;
                expect(&down, &[h, inter])?;
            }
            return (0..3).try_for_each(|part| check_types(&names, part, count, weights, precision));
        }
    }
    expect(&down, &[count, h, inter])
}

/// Checks that a matrix has one element type in all experts of a layer: gate, up or down (`part` 0, 1 or 2). The
/// matrices of all experts lie below each other in one buffer.
fn check_types(
    names: &ExpertNames,
    part: usize,
    count: usize,
    weights: &Weights,
    precision: Option<Precision>,
) -> Result<()> {
    let name = |expert: usize| names.expert(expert)[part].clone();
    let loaded = |expert: usize| {
        let tensor = weights.tensor(&name(expert))?;
        let cols = tensor.shape.last().copied().unwrap_or_default();
        Ok::<_, Error>(loaded(tensor.packed_dtype()?, Role::Inner, cols, true, precision).0)
    };
    let first = loaded(0)?;
    for expert in 1..count {
        let dtype = loaded(expert)?;
        if dtype != first {
            return Err(Error::new(ErrorKind::Model, "the experts of a layer differ in element type")
                .at(weights.tensor(&name(expert))?.place())
                .expected(format!("{first}, which {} has", name(0)))
                .found(dtype)
                .help("convert the experts to one type, or load them with `weights` q8"));
        }
    }
    Ok(())
}

/// The element type of a matrix on the device, and its columns there, which may be padded.
fn loaded(stored: Dtype, role: Role, cols: usize, padded: bool, precision: Option<Precision>) -> (Dtype, usize) {
    let cols = if padded && !stored.is_quantized() { padded_width(cols, precision) } else { cols };
    (precision.map_or(stored, |precision| precision.dtype(stored, role, cols)), cols)
}

/// The bytes of all weights on the device, for weights of this precision: the matrices have the types that
/// [`Decoder::load`](super::decoder::Decoder::load) gives them, except that a fused q, k and v counts as one matrix.
/// Tensors that it does not load count as well, with their bytes in the file.
pub fn device_bytes(weights: &Weights, precision: Option<Precision>) -> Result<u64> {
    bytes_of(weights, precision, |_| 1.0)
}

/// The bytes of weights that one decode step of one sequence reads: those of [`device_bytes`] without an embedding
/// that is not the head as well, and without the experts that are not chosen.
pub fn step_bytes(config: &ModelConfig, weights: &Weights, precision: Option<Precision>) -> Result<u64> {
    let experts = config.experts.as_ref().map_or(1.0, |mixture| mixture.share_read(1));
    bytes_of(weights, precision, |name| match name {
        "model.embed_tokens.weight" if !config.tie_word_embeddings => 0.0,
        _ if name.contains(".mlp.experts.") => experts,
        _ => 1.0,
    })
}

/// Refuses weights that exceed the memory of a device, before they are read. The CPU and software adapters take the
/// memory of the machine, as far as this process may.
///
/// # Errors
/// [`ErrorKind::Device`] if the tensors of the decoder alone have more bytes than the device.
pub(crate) fn check_memory(
    config: &ModelConfig,
    weights: &Weights,
    precision: Option<Precision>,
    device: &ComputeDevice,
) -> Result<()> {
    let of_host = || device.tuning.is_cpu().then(crate::host::room_for_weights).flatten();
    let Some(most) = device.info.memory_bytes.or_else(of_host) else { return Ok(()) };
    let is_loaded =
        |name: &str| name.starts_with("model.") || name.starts_with("lm_head.") && !config.tie_word_embeddings;
    let bytes = bytes_of(weights, precision, |name| if is_loaded(name) { 1.0 } else { 0.0 })?;
    if bytes <= most {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Device, "the weights do not fit into the memory of the device")
        .at(device.info.line())
        .expected(format!("at most {most} bytes"))
        .found(format!("{bytes} bytes of weights"))
        .help(match device.tuning.is_cpu() {
            true => {
                "use a smaller model, a quantized one or `weights` q4, or raise the limit of the process (`ulimit -v`)"
            }
            false => "use a smaller model, a quantized one or `weights` q4, or `device` cpu",
        }))
}

/// Refuses experts that no buffer of the device can hold, before they are read: the matrices of a layer are split
/// between experts only.
///
/// # Errors
/// [`ErrorKind::Device`] if an expert's gate and up, or its down, exceed the largest buffer; a tensor that is missing
/// or has an element type that is not supported.
pub fn check_expert_size(
    config: &ModelConfig,
    weights: &Weights,
    precision: Option<Precision>,
    device: &ComputeDevice,
) -> Result<()> {
    let Some(mixture) = &config.experts else { return Ok(()) };
    let most = device.info.max_binding_bytes;
    let width = |n: usize| padded_width(n, precision) as u64;
    for layer in (0..config.num_layers).filter(|layer| mixture.has_experts(*layer)) {
        let names = ExpertNames::find(weights, layer).expert(0);
        let part = |part: usize| -> Result<(Dtype, u64)> {
            let (rows, cols) = match part {
                2 => (config.hidden_size, mixture.intermediate_size),
                _ => (mixture.intermediate_size, config.hidden_size),
            };
            let stored = weights.tensor(&names[part])?.packed_dtype()?;
            let (dtype, cols) = loaded(stored, Role::Inner, cols, true, precision);
            Ok((dtype, width(rows).saturating_mul(dtype.row_words(cols) as u64 * 4)))
        };
        let ([gate, up], down) = ([part(0)?, part(1)?], part(2)?.1);
        // Gate and up of one type are one matrix.
        let both = if gate.0 == up.0 { gate.1.saturating_add(up.1) } else { gate.1.max(up.1) };
        let largest = both.max(down);
        if largest > most {
            let name = if both >= down { &names[0] } else { &names[2] };
            return Err(too_large(largest, most)
                .at(weights.tensor(name)?.place())
                .expected(format!("at most {most} bytes, the largest buffer of {}", device.info.line())));
        }
    }
    Ok(())
}

/// The bytes of the tensors on the device, each multiplied by `share(name)`.
fn bytes_of(weights: &Weights, precision: Option<Precision>, share: impl Fn(&str) -> f64) -> Result<u64> {
    let mut bytes = 0u64;
    for name in weights.names() {
        let tensor = weights.tensor(name)?;
        let mut add = |size: u64| bytes = bytes.saturating_add((size as f64 * share(name)) as u64);
        let (&[ref outer @ .., rows, cols], Some(stored)) = (tensor.shape, tensor.stored.packed()) else {
            add(tensor.size());
            continue;
        };
        let rows = outer.iter().fold(rows as u64, |rows, count| rows.saturating_mul(*count as u64));
        let role = role_of(name);
        let (dtype, cols) = loaded(stored, role, cols, !name.contains(".o_proj."), precision);
        add(rows.saturating_mul(dtype.row_words(cols) as u64 * 4));
    }
    Ok(bytes)
}

/// The role of the matrix `name`.
fn role_of(name: &str) -> Role {
    match name {
        _ if name.contains("embed_tokens") || name.starts_with("lm_head") => Role::Vocabulary,
        _ if name.contains(".v_proj.") => Role::Values,
        _ if name.ends_with(".mlp.gate.weight") => Role::Router,
        _ => Role::Inner,
    }
}

/// Whether every matrix except the routers is quantized in the file, so that a precision changes none of them.
pub fn is_quantized(weights: &Weights) -> bool {
    let names = weights.names().filter(|name| role_of(name) != Role::Router);
    let matrices = names.filter_map(|name| weights.find(name)).filter(|tensor| tensor.shape.len() >= 2);
    let mut types = matrices.map(|tensor| tensor.stored.packed()).peekable();
    types.peek().is_some() && types.all(|dtype| dtype.is_some_and(Dtype::is_quantized))
}
