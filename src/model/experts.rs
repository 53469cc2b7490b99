//! The mixture of experts that some layers have in place of one feed-forward layer.
use super::architecture::Architecture;
use super::fields::Fields;
use crate::kernels::router::MOST_EXPERTS;
use crate::{Error, ErrorKind, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// The experts of a model. A router computes a logit for each expert of a layer; those with the largest logits are
/// computed, and their results are added up, weighted by the softmax of the logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixtureOfExperts {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that are computed for each token, at most `experts`.
    pub experts_per_token: usize,
    /// Width of the feed-forward layer of an expert.
    pub intermediate_size: usize,
    /// Whether the weights of the chosen experts add up to 1. If not, those of all experts do.
    pub normalised: bool,
    /// Only every `sparse_step`-th layer has experts: those whose number, counted from 1, is a multiple of it.
    pub sparse_step: usize,
    /// Further layers that have one feed-forward layer instead of experts.
    pub dense_layers: BTreeSet<usize>,
}

impl MixtureOfExperts {
    /// Reads the fields of Qwen3-MoE, with the defaults of transformers; `None` if no layer has experts.
    ///
    /// # Errors
    /// A value that cannot be used, and features that are not supported: experts that are computed for every token,
    /// groups of experts, and other functions of the logits than softmax.
    pub(super) fn parse(fields: &Fields<'_>, architecture: Architecture, layers: usize) -> Result<Option<Self>> {
        if architecture != Architecture::Qwen3Moe {
            return refuse(fields);
        }
        refuse_other_kinds(fields)?;
        let experts = match count(fields)? {
            Some(0) => return Ok(None),
            Some(experts) => experts,
            None => 128,
        };
        if experts > MOST_EXPERTS {
            return Err(fields.invalid("num_experts", format!("at most {MOST_EXPERTS}")));
        }
        let experts_per_token = fields.optional_size("num_experts_per_tok")?.unwrap_or(8);
        if experts_per_token > experts {
            return Err(fields.invalid("num_experts_per_tok", format!("at most num_experts, {experts}")));
        }
        let mixture = Self {
            experts,
            experts_per_token,
            intermediate_size: fields.optional_size("moe_intermediate_size")?.unwrap_or(768),
            normalised: fields.flag("norm_topk_prob")?.unwrap_or(false),
            sparse_step: fields.optional_size("decoder_sparse_step")?.unwrap_or(1),
            dense_layers: dense_layers(fields, layers)?,
        };
        Ok(Some(mixture).filter(|mixture| mixture.dense(layers) < layers))
    }

    /// Whether a layer has experts.
    pub fn has_experts(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.sparse_step) && !self.dense_layers.contains(&layer)
    }

    /// How many of the first `layers` layers have no experts.
    pub fn dense(&self, layers: usize) -> usize {
        let listed = self.dense_layers.iter().filter(|layer| (**layer + 1).is_multiple_of(self.sparse_step)).count();
        layers - layers / self.sparse_step + listed
    }

    /// The share of a layer's experts that a step of `rows` tokens reads at most.
    pub(super) fn share_read(&self, rows: usize) -> f64 {
        (rows.saturating_mul(self.experts_per_token)).min(self.experts) as f64 / self.experts as f64
    }
}

/// The number of experts. transformers 5 writes it as num_local_experts.
fn count(fields: &Fields<'_>) -> Result<Option<usize>> {
    let mut found = None;
    for name in ["num_experts", "num_local_experts"] {
        let value = match fields.get(name) {
            Some(value) if value.as_u64() == Some(0) => Some(0),
            _ => fields.optional_size(name)?,
        };
        match (found, value) {
            (Some(first), Some(second)) if first != second => {
                return Err(fields.invalid(name, format!("{first}, as num_experts says")));
            }
            _ => found = found.or(value),
        }
    }
    Ok(found)
}

/// The layers of `mlp_only_layers`.
fn dense_layers(fields: &Fields<'_>, layers: usize) -> Result<BTreeSet<usize>> {
    const LISTED: &str = "mlp_only_layers";
    let mut dense = BTreeSet::new();
    if let Some(value) = fields.get(LISTED) {
        let invalid = || fields.invalid(LISTED, format!("a list of layers from 0 to {}", layers - 1));
        for layer in value.as_array().ok_or_else(invalid)? {
            let layer = layer.as_u64().and_then(|layer| usize::try_from(layer).ok()).filter(|layer| *layer < layers);
            dense.insert(layer.ok_or_else(invalid)?);
        }
    }
    Ok(dense)
}

/// Refuses experts in configs of other architectures.
fn refuse(fields: &Fields<'_>) -> Result<Option<MixtureOfExperts>> {
    for name in ["num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"] {
        if fields.get(name).is_some_and(|value| value.as_u64() != Some(0)) {
            return Err(fields.unsupported(name, "mixture-of-experts models of this architecture"));
        }
    }
    Ok(None)
}

/// Refuses features that Qwen3-MoE does not have but other mixtures of experts do.
fn refuse_other_kinds(fields: &Fields<'_>) -> Result<()> {
    let given = |name: &str, neutral: &[f64]| {
        fields.get(name).is_some_and(|value| value.as_f64().is_none_or(|value| !neutral.contains(&value)))
    };
    for name in ["n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size"] {
        if given(name, &[0.0]) {
            return Err(fields.unsupported(name, "experts that every token shares"));
        }
    }
    for name in ["n_group", "topk_group"] {
        if given(name, &[0.0, 1.0]) {
            return Err(fields.unsupported(name, "groups of experts"));
        }
    }
    if given("routed_scaling_factor", &[1.0]) {
        return Err(fields.unsupported("routed_scaling_factor", "scaled results of experts"));
    }
    match fields.get("scoring_func") {
        None => Ok(()),
        Some(Value::String(name)) if name == "softmax" => Ok(()),
        Some(_) => Err(fields.invalid("scoring_func", "softmax")),
    }
}

/// An error about an expert that no buffer of the device can hold.
pub(super) fn too_large(bytes: u64, most: u64) -> Error {
    Error::new(ErrorKind::Device, "an expert of the model exceeds the adapter's largest buffer")
        .expected(format!("at most {most} bytes"))
        .found(format!("{bytes} bytes of gate and up, or of down"))
        .help("choose smaller `weights`")
}
