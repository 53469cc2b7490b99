//! A small model of zeros that needs the same shaders as a large one.
//!
//! Which shaders a model needs depends on the element types of its weights and on the shape of its heads, but not on
//! the width or the number of its layers (see the `variant` of each kernel). All of that is known once the headers of
//! its files are read. So a browser can compile the shaders while it fetches the weights.
use super::config::ModelConfig;
use super::required;
use crate::Result;
use crate::kernels::top_k;
use crate::weights::{FileDtype, Weights};

/// A small model that is used in place of another one.
pub(crate) struct StandIn {
    /// The configuration of the small model.
    pub config: ModelConfig,
    /// The weights of the small model, all of them zeros.
    pub weights: Weights,
}

impl StandIn {
    /// A stand-in for the model of this configuration, with the element types of `weights`; `None` for a model with
    /// experts, for which no stand-in exists yet. Layers whose weights have the same types need the same shaders, so
    /// the stand-in has one layer of each kind.
    ///
    /// # Errors
    /// A tensor that is missing, or has a type that secateur does not compute with.
    pub fn find(config: &ModelConfig, weights: &Weights) -> Result<Option<Self>> {
        if config.experts.is_some() {
            return Ok(None);
        }
        let kind_of = |layer: usize| -> Result<Vec<FileDtype>> {
            let tensors = required::of_layer(config, layer).into_iter();
            tensors.map(|(name, _)| Ok(weights.tensor(&required::in_layer(layer, name))?.stored)).collect()
        };
        let mut kinds = Vec::new();
        for layer in 0..config.num_layers {
            let kind = kind_of(layer)?;
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let small = ModelConfig {
            // The vocabulary is large enough that more than one list of the most likely tokens has to be merged.
            vocab_size: config.vocab_size.min(top_k::CHUNK + 256),
            hidden_size: narrow(config.hidden_size),
            intermediate_size: narrow(config.intermediate_size),
            num_layers: kinds.len(),
            ..config.clone()
        };
        let mut tensors = Vec::new();
        for (name, shape) in required::outside_layers(&small) {
            tensors.push((name.to_string(), weights.tensor(name)?.stored, shape));
        }
        for (layer, kind) in kinds.into_iter().enumerate() {
            for ((name, shape), stored) in required::of_layer(&small, layer).into_iter().zip(kind) {
                tensors.push((required::in_layer(layer, name), stored, shape));
            }
        }
        Ok(Some(Self { config: small, weights: Weights::zeros(tensors)? }))
    }
}

/// A small width with the same divisors as `width`, as far as the types of quantized weights depend on them
/// ([`Precision::dtype`](crate::weights::precision::Precision::dtype)).
fn narrow(width: usize) -> usize {
    let small = [(256, 256), (32, 288), (8, 264)];
    small.into_iter().find(|(whole, _)| width.is_multiple_of(*whole)).map_or(width, |(_, small)| small.min(width))
}
