//! Rotary position embedding (RoPE): its scalings, how a config describes them, and the table of cosines and sines.
//!
//! The formulas are those of transformers' `modeling_rope_utils.py`, computed in f64.
use super::architecture::Architecture;
use super::fields::Fields;
use crate::{Error, ErrorKind, Result};
use serde_json::Value;
use std::f64::consts::TAU;

/// How the rotary frequencies are changed for contexts longer than the training context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// The frequencies are not changed.
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The ratio of the new context to the training context.
        factor: f64,
    },
    /// Llama 3: low frequencies are divided by `factor`, high ones are kept, and those between are interpolated.
    Llama3 {
        /// The ratio of the new context to the training context.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided by `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The training context, in tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): low frequencies are divided by `factor`, high ones are kept, and those between are
    /// interpolated linearly over the dimensions. Cosines and sines are multiplied by `attention_factor`.
    Yarn {
        /// The ratio of the new context to the training context.
        factor: f64,
        /// Multiplies the rotated queries and keys, so attention scores are multiplied by its square.
        attention_factor: f64,
        /// Dimensions with more than this number of rotations over the training context are kept.
        beta_fast: f64,
        /// Dimensions with fewer than this number of rotations over the training context are divided by `factor`.
        beta_slow: f64,
        /// The training context, in tokens.
        original_max_position_embeddings: usize,
        /// Whether the interpolated range is extended to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024), as Phi-3 uses it: frequency `i` is divided by the `i`-th of the short or of the
    /// long factors. Cosines and sines are multiplied by `attention_factor`, with either.
    ///
    /// transformers takes the long factors once the sequence is longer than the original context, and computes its
    /// cache anew then. Here keys are cached for the whole run, so the choice is made once: the long factors if the
    /// model is loaded for a context longer than the original one.
    LongRope {
        /// The factors for contexts up to the original one.
        short_factor: Vec<f32>,
        /// The factors for longer contexts.
        long_factor: Vec<f32>,
        /// The training context, in tokens.
        original_max_position_embeddings: usize,
        /// Multiplies the rotated components of queries and keys.
        attention_factor: f64,
    },
    /// Frequency `i` is divided by the `i`-th of `head_dim / 2` factors. GGUF files store the scaling of Llama 3 this
    /// way.
    Factors(Vec<f32>),
}

impl std::fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Linear { factor } => write!(f, "linear, factor {factor}"),
            Self::Llama3 { factor, original_max_position_embeddings: original, .. } => {
                write!(f, "llama3, factor {factor} over {original}")
            }
            Self::Yarn { factor, attention_factor, original_max_position_embeddings: original, .. } => {
                write!(f, "yarn, factor {factor} over {original}, attention factor {attention_factor:.4}")
            }
            Self::LongRope { original_max_position_embeddings: original, attention_factor, .. } => {
                write!(f, "longrope over {original}, attention factor {attention_factor:.4}")
            }
            Self::Factors(factors) => {
                let most = factors.iter().fold(1.0f32, |most, factor| most.max(*factor));
                write!(f, "{} factors of the file, up to {most}", factors.len())
            }
        }
    }
}

/// The layers whose queries and keys are rotated.
#[derive(Debug, Clone, PartialEq)]
pub enum RotatedLayers {
    /// All layers: every architecture but SmolLM3.
    All,
    /// All but every `n`-th: with 4, the layers of index 3, 7, 11 and so on are not rotated.
    AllButEvery(usize),
    /// For each layer, whether it is rotated.
    Listed(Vec<bool>),
}

impl RotatedLayers {
    /// Whether the layer of index `layer` is rotated.
    pub fn contains(&self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::AllButEvery(n) => !(layer + 1).is_multiple_of(*n),
            Self::Listed(layers) => layers.get(layer).copied().unwrap_or(true),
        }
    }

    /// How many of the first `layers` layers are not rotated.
    pub fn unrotated(&self, layers: usize) -> usize {
        match self {
            Self::All => 0,
            Self::AllButEvery(n) => layers / n,
            Self::Listed(listed) => listed.iter().take(layers).filter(|rotated| !**rotated).count(),
        }
    }

    /// Those of SmolLM3: the layers with a 1 in `no_rope_layers`, or all but every `no_rope_layer_interval`-th.
    ///
    /// # Errors
    /// If one of the two fields is malformed.
    pub(super) fn parse(fields: &Fields<'_>, architecture: Architecture, layers: usize) -> Result<Self> {
        const LIST: &str = "no_rope_layers";
        if architecture != Architecture::SmolLM3 {
            return Ok(Self::All);
        }
        let Some(list) = fields.get(LIST) else {
            return Ok(Self::AllButEvery(fields.optional_size("no_rope_layer_interval")?.unwrap_or(4)));
        };
        let flag = |value: &Value| value.as_u64().filter(|flag| *flag <= 1).map(|flag| flag == 1);
        let flags: Option<Vec<bool>> = list.as_array().and_then(|list| list.iter().take(layers).map(flag).collect());
        flags.filter(|flags| flags.len() == layers).map(Self::Listed).ok_or_else(|| {
            fields.invalid(LIST, format!("a list of {layers} numbers, one for each layer: 1 with RoPE, 0 without"))
        })
    }
}

/// The table of shape `[positions, d]` for rotate-half RoPE (Su et al. 2021, in the layout of Hugging Face). The
/// first half of row `p` holds `a cos(p · θ_i)` for the `rotary / 2` [`frequencies`] `θ_i`, then 1 for each pair of
/// components that is not rotated. The second half holds `a sin(p · θ_i)`, then 0 for those pairs. The factor `a` is
/// 1 for all scalings but YaRN and LongRoPE. `rotary` is `d` in all architectures but Phi-3, and 0 for a layer
/// without RoPE.
///
/// The table is computed in f64 and stored in f32. Computing it in f32 would give cosines that are off by 1.8e-3 at
/// position 30,000, and a table in bf16 would be exact only up to position 256.
pub fn table(d: usize, rotary: usize, theta: f64, scaling: &RopeScaling, positions: usize) -> Vec<f32> {
    let (frequencies, magnitude) = frequencies(rotary, theta, scaling, positions);
    let still = (d - rotary) / 2;
    let mut table = Vec::with_capacity(positions * d);
    for p in 0..positions {
        table.extend(frequencies.iter().map(|f| (magnitude * (p as f64 * f).cos()) as f32));
        table.extend(std::iter::repeat_n(1.0, still));
        table.extend(frequencies.iter().map(|f| (magnitude * (p as f64 * f).sin()) as f32));
        table.extend(std::iter::repeat_n(0.0, still));
    }
    table
}

/// The frequencies of the `d / 2` pairs of components that are rotated (the angles in radians by which one position
/// rotates each pair), and the factor by which cosines and sines are multiplied. `positions` is the context that the
/// model is loaded for, which matters for [`RopeScaling::LongRope`] only.
pub fn frequencies(d: usize, theta: f64, scaling: &RopeScaling, positions: usize) -> (Vec<f64>, f64) {
    if d == 0 {
        return (Vec::new(), 1.0); // a layer without RoPE
    }
    let plain: Vec<f64> = (0..d / 2).map(|i| theta.powf(-((2 * i) as f64) / d as f64)).collect();
    match scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.into_iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Factors(factors) => (divided(&plain, factors), 1.0),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_position_embeddings: original,
            attention_factor,
        } => (divided(&plain, if positions > *original { long_factor } else { short_factor }), *attention_factor),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let scaled = plain.into_iter().map(|f| {
                // Rotations over the training context. Frequencies with few rotations are divided, and those with
                // many are kept.
                let turns = *original_max_position_embeddings as f64 * f / TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - kept) * f / factor + kept * f
            });
            (scaled.collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
        } => {
            // The (fractional) dimension that makes this number of rotations over the training context.
            let dimension = |turns: f64| {
                d as f64 * (*original_max_position_embeddings as f64 / (turns * TAU)).ln() / (2.0 * theta.ln())
            };
            let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min((d - 1) as f64));
            if low == high {
                high += 0.001;
            }
            let scaled = plain.into_iter().enumerate().map(|(i, f)| {
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                divided * f / factor + (1.0 - divided) * f
            });
            (scaled.collect(), *attention_factor)
        }
    }
}

fn divided(frequencies: &[f64], factors: &[f32]) -> Vec<f64> {
    frequencies.iter().zip(factors).map(|(f, factor)| f / f64::from(*factor)).collect()
}

/// The settings of RoPE in a config.
pub(super) struct Parsed {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// Components of a head that are rotated.
    pub rotary_dim: usize,
    /// The position from which on queries are scaled by their position.
    pub queries_scaled_from: Option<usize>,
}

/// RoPE in a config: from `rope_parameters` (transformers 5), or from `rope_theta` and `rope_scaling` (transformers
/// 4).
///
/// # Errors
/// If a field is malformed, the scaling is not supported, or the two spellings contradict each other.
pub(super) fn parse(fields: &Fields<'_>, architecture: Architecture, head_dim: usize) -> Result<Parsed> {
    const NEW: &str = "rope_parameters";
    const OLD: &str = "rope_scaling";
    let name = if fields.get(NEW).is_some() { NEW } else { OLD };
    let place = format!("{}: {name}", fields.place);
    let nested = match fields.get(name) {
        Some(value) => Some(Fields::new(value, &place)?),
        None => None,
    };
    let nested_theta = match &nested {
        Some(nested) => nested.number("rope_theta")?,
        None => None,
    };
    let theta = match nested_theta {
        Some(theta) => theta,
        None => fields.number("rope_theta")?.unwrap_or(architecture.defaults().rope_theta),
    };
    if theta <= 1.0 {
        return Err(Error::new(ErrorKind::Model, "rope_theta has a value that cannot be used")
            .at(fields.place)
            .expected("a number above 1")
            .found(theta));
    }
    const SHARE: &str = "partial_rotary_factor";
    let mut rotary_dim = head_dim;
    // As in transformers, the field is read first inside the scaling, then next to it.
    for fields in [Some(fields), nested.as_ref()].into_iter().flatten() {
        let Some(share) = fields.number(SHARE)? else { continue };
        rotary_dim = (head_dim as f64 * share).max(0.0) as usize;
        if architecture != Architecture::Phi3 && share != 1.0 {
            return Err(fields.unsupported(SHARE, "partly rotated heads of this architecture"));
        }
        if !(2..=head_dim).contains(&rotary_dim) || !rotary_dim.is_multiple_of(2) {
            return Err(fields.invalid(SHARE, format!("a share of the {head_dim} components that is an even number")));
        }
    }
    let read = |nested: &Fields<'_>| parse_scaling(nested, fields, architecture, rotary_dim);
    let scaling = match &nested {
        Some(nested) => read(nested)?,
        None => RopeScaling::None,
    };
    if name == NEW
        && let Some(old) = fields.get(OLD)
    {
        let place = format!("{}: {OLD}", fields.place);
        let old = read(&Fields::new(old, &place)?)?;
        if old != scaling {
            return Err(Error::new(ErrorKind::Model, "the configuration has two RoPE scalings that differ")
                .at(format!("{}: {NEW} and {OLD}", fields.place))
                .expected("one of the two fields, or the same scaling in both")
                .found(format!("{NEW}: {scaling}; {OLD}: {old}"))
                .help(format!("move the scaling that should apply into {NEW}, and remove {OLD}")));
        }
    }
    // The factor is 1 + β ln(1 + ⌊position / original context⌋), so 1 within the original context.
    let queries_scaled_from = match (&nested, architecture) {
        (Some(nested), Architecture::Ministral3) => match nested.number("llama_4_scaling_beta")? {
            Some(beta) if beta != 0.0 => Some(nested.size(ORIGINAL)?),
            _ => None,
        },
        (None, Architecture::Ministral3) => return Err(fields.invalid(NEW, "the RoPE scaling of this architecture")),
        _ => None,
    };
    Ok(Parsed { theta, scaling, rotary_dim, queries_scaled_from })
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// Reads a scaling. `fields` are those of the scaling, `outer` those of the whole config, where some scalings find
/// their defaults.
fn parse_scaling(
    fields: &Fields<'_>,
    outer: &Fields<'_>,
    architecture: Architecture,
    rotary_dim: usize,
) -> Result<RopeScaling> {
    let kind = match fields.text("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.text("type")?,
    };
    let kind = match kind {
        // Configs of Phi-3 may have older names.
        Some("su" | "yarn") if architecture == Architecture::Phi3 => Some("longrope"),
        kind => kind,
    };
    let factor = || match fields.required_number("factor")? {
        factor if factor >= 1.0 => Ok(factor),
        _ => Err(fields.invalid("factor", "1 or more")),
    };
    // As in transformers, the field is read first next to the scaling, then inside it. The last resort is the model's
    // maximum context.
    let original = || match (outer.optional_size(ORIGINAL)?, fields.optional_size(ORIGINAL)?) {
        (Some(size), _) | (None, Some(size)) => Ok(size),
        (None, None) => outer.size("max_position_embeddings"),
    };
    match kind {
        None if fields.map.keys().any(|key| key != "rope_theta" && key != "partial_rotary_factor") => {
            Err(fields.invalid("rope_type", "a string"))
        }
        None | Some("default") => Ok(RopeScaling::None),
        Some("longrope") => {
            let original = match architecture {
                // Phi-3 has a field for it, whose default counts before the scaling's own field.
                Architecture::Phi3 => outer.optional_size(ORIGINAL)?.unwrap_or(4096),
                _ => original()?,
            };
            parse_longrope(fields, outer, original, rotary_dim / 2)
        }
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => {
            let low_freq_factor = fields.required_number("low_freq_factor")?;
            let high_freq_factor = fields.required_number("high_freq_factor")?;
            if !(low_freq_factor > 0.0 && high_freq_factor > low_freq_factor) {
                return Err(fields.invalid("high_freq_factor", format!("above low_freq_factor, {low_freq_factor}")));
            }
            let (factor, original_max_position_embeddings) = (factor()?, original()?);
            Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
        }
        Some("yarn") => {
            let original = original()?;
            let factor = match fields.get("factor") {
                None => outer.size("max_position_embeddings")? as f64 / original as f64,
                Some(_) => factor()?,
            };
            let positive = |name: &str| match fields.number(name)? {
                Some(value) if value <= 0.0 => Err(fields.invalid(name, "positive")),
                value => Ok(value),
            };
            let magnitude = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
            let attention_factor =
                match (positive("attention_factor")?, fields.number("mscale")?, fields.number("mscale_all_dim")?) {
                    (Some(given), ..) => given,
                    (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                        magnitude(mscale) / magnitude(all)
                    }
                    _ => magnitude(1.0),
                };
            if fields.get("attn_factor").is_some() {
                log::warn!(
                    "{}: attn_factor is ignored, as in transformers. Write attention_factor to change the attention scale, \
                     which is now {attention_factor}.",
                    fields.place
                );
            }
            let (beta_fast, beta_slow) =
                (positive("beta_fast")?.unwrap_or(32.0), positive("beta_slow")?.unwrap_or(1.0));
            if beta_fast < beta_slow {
                return Err(fields.invalid("beta_fast", format!("at least beta_slow, {beta_slow}")));
            }
            if !(attention_factor.is_finite() && attention_factor > 0.0) {
                return Err(fields.invalid("mscale_all_dim", "an attention factor above 0"));
            }
            let truncate = fields.flag("truncate")?.unwrap_or(true);
            let original_max_position_embeddings = original;
            Ok(RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                truncate,
            })
        }
        Some(other) => Err(Error::new(ErrorKind::Model, format!("the RoPE scaling {other} is not supported"))
            .at(fields.place)
            .expected("default, linear, llama3, yarn or longrope")
            .found(other)
            .help("remove it from config.json to run the model within its original context")),
    }
}

/// Reads LongRoPE over the context `original`: `pairs` factors for short contexts and as many for long ones.
fn parse_longrope(fields: &Fields<'_>, outer: &Fields<'_>, original: usize, pairs: usize) -> Result<RopeScaling> {
    let factors = |name: &str| {
        let list = fields.get(name).and_then(Value::as_array);
        let factors: Option<Vec<f32>> =
            list.and_then(|list| list.iter().map(|factor| factor.as_f64().map(|factor| factor as f32)).collect());
        let valid = |factors: &Vec<f32>| factors.len() == pairs && factors.iter().all(|f| f.is_finite() && *f > 0.0);
        factors.filter(valid).ok_or_else(|| fields.invalid(name, format!("a list of {pairs} positive numbers")))
    };
    let factor = match fields.number("factor")? {
        Some(factor) => factor,
        None => outer.size("max_position_embeddings")? as f64 / original as f64,
    };
    let attention_factor = match fields.number("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    if !(attention_factor.is_finite() && attention_factor > 0.0) {
        return Err(fields.invalid("attention_factor", "a number above 0"));
    }
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer without RoPE in a model with YaRN, as the long contexts of SmolLM3 need it.
    #[test]
    fn nothing_is_rotated_by_any_scaling() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            attention_factor: 1.1,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position_embeddings: 64,
            truncate: true,
        };
        for scaling in [RopeScaling::None, yarn] {
            assert_eq!(table(8, 0, 1e4, &scaling, 2), [1., 1., 1., 1., 0., 0., 0., 0.].repeat(2), "{scaling}");
        }
    }
}
