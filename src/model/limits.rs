//! Checks of what the kernels and a device can run, made before any weight is read.
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::kernels::{AttentionSpec, LayerSpec};
use crate::model::config::ModelConfig;
use crate::{Error, ErrorKind, Result};

/// Positions that a model loaded for `context` positions has: never more than its longest context.
pub(super) fn usable_context(config: &ModelConfig, context: usize) -> usize {
    context.min(config.longest_context()).max(1)
}

/// Checks that a model of this configuration can run on `device`, with `sequences` sequences side by side of up to
/// `context` positions. Reads no weights, so a request can be refused before gigabytes are read.
///
/// # Errors
/// [`ErrorKind::Model`] for dimensions that no kernel takes, [`ErrorKind::Device`] when the RoPE table, the results
/// of the experts of all sequences, or the partial results of their attention would exceed the largest buffer.
pub fn check_device(config: &ModelConfig, sequences: usize, context: usize, device: &ComputeDevice) -> Result<()> {
    let context = usable_context(config, context);
    check_dimensions(config, device)?;
    check_rope(config, context, device)?;
    check_choices(config, sequences, device)?;
    let ModelConfig { head_dim: d, num_heads: heads, num_kv_heads: kv_heads, .. } = *config;
    let layer =
        LayerSpec { dtype: Dtype::F16, d, heads, kv_heads, layer_table_offset: 0, positions: context, compact: false };
    let (n, most_seen, tuning) = (sequences, context, device.tuning);
    check_partials(
        AttentionSpec { layer, n, chunk: 1, separate: true, row_seq_offset: 0, most_seen, already_cached: 0, tuning },
        device,
    )
}

/// Checks that the RoPE table of `context` positions fits into the largest buffer.
pub(super) fn check_rope(config: &ModelConfig, context: usize, device: &ComputeDevice) -> Result<()> {
    let (bytes, most) = ((context * config.head_dim * 4) as u64, device.info.max_binding_bytes);
    if bytes <= most {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Device, "the RoPE table of this context exceeds the adapter's largest buffer")
        .at(device.info.line())
        .expected(format!("at most {most} bytes"))
        .found(format!("{bytes} bytes for {context} positions"))
        .help("lower `context`"))
}

/// Checks that the partial results of an attention fit into the largest buffer.
pub(super) fn check_partials(spec: AttentionSpec, device: &ComputeDevice) -> Result<()> {
    let (bytes, most) = (spec.partial_bytes(), device.info.max_binding_bytes);
    if bytes <= most {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Device, "attention over this many slots at once exceeds the adapter's largest buffer")
        .at(device.info.line())
        .expected(format!("at most {most} bytes"))
        .found(format!("{bytes} bytes for {} sequences with up to {} slots", spec.n / spec.chunk, spec.most_seen))
        .help("run fewer `sequences`, or lower `context`"))
}

/// Checks that the results of the experts of `n` rows fit into the largest buffer.
fn check_choices(config: &ModelConfig, n: usize, device: &ComputeDevice) -> Result<()> {
    let Some(mixture) = &config.experts else { return Ok(()) };
    let widest = config.hidden_size.max(mixture.intermediate_size).next_multiple_of(32);
    let (bytes, most) = ((n * mixture.experts_per_token * widest * 4) as u64, device.info.max_binding_bytes);
    if bytes <= most {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Device, "the results of the experts exceed the adapter's largest buffer")
        .at(device.info.line())
        .expected(format!("at most {most} bytes"))
        .found(format!("{bytes} bytes for {n} rows at once, of {} experts each", mixture.experts_per_token))
        .help("run fewer `sequences`, or use another device"))
}

/// Checks that the kernels can run these dimensions. Nearly all published models of the supported architectures have
/// such dimensions; OpenLLaMA 3B, with heads of 100, is an exception.
pub(super) fn check_dimensions(c: &ModelConfig, device: &ComputeDevice) -> Result<()> {
    let no = |what: &str, expected: &str, found: usize| {
        Err(Error::new(ErrorKind::Model, format!("the kernels cannot run this {what}"))
            .at("config.json")
            .expected(expected)
            .found(found))
    };
    if !c.head_dim.is_multiple_of(8) || c.head_dim > 256 {
        return no("head_dim", "a multiple of 8, at most 256", c.head_dim);
    }
    // attention_row keeps a group's queries in workgroup memory: 16 KiB is what WebGPU guarantees.
    if c.group_size() * c.head_dim * 4 > 16_384 {
        return no("number of query heads of a KV head", "at most 16 KiB of queries a group", c.group_size());
    }
    // A shard of gate_up holds at least two rows.
    let widest = c.hidden_size.max(c.intermediate_size).max(c.q_size()) * 8;
    if widest as u64 > device.info.max_binding_bytes {
        return no("size of a matrix row", "two rows within the adapter's largest buffer", widest);
    }
    Ok(())
}
