//! Rotary position embedding (RoPE): its scalings, how a config describes them, and the table of cosines and sines.
//!
//! The formulas are those of transformers' `modeling_rope_utils.py`, computed in f64.
use super::fields::Fields;
use crate::{Error, ErrorKind, Result};
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
            Self::Factors(factors) => {
                let most = factors.iter().fold(1.0f32, |most, factor| most.max(*factor));
                write!(f, "{} factors of the file, up to {most}", factors.len())
            }
        }
    }
}

/// The table of shape `[positions, d]` for rotate-half RoPE (Su et al. 2021, in the layout of Hugging Face). Row `p`
/// holds `a cos(p · θ_i)` for the `d / 2` [`frequencies`] `θ_i`, then the same sines. The factor `a` is 1 for all
/// scalings but YaRN.
///
/// The table is computed in f64 and stored in f32. Computing it in f32 would give cosines that are off by 1.8e-3 at
/// position 30,000, and a table in bf16 would be exact only up to position 256.
pub fn table(d: usize, theta: f64, scaling: &RopeScaling, positions: usize) -> Vec<f32> {
    let (frequencies, magnitude) = frequencies(d, theta, scaling);
    let mut table = Vec::with_capacity(positions * d);
    for p in 0..positions {
        table.extend(frequencies.iter().map(|f| (magnitude * (p as f64 * f).cos()) as f32));
        table.extend(frequencies.iter().map(|f| (magnitude * (p as f64 * f).sin()) as f32));
    }
    table
}

/// The `d / 2` frequencies (the angles in radians by which one position rotates each pair), and the factor by which
/// cosines and sines are multiplied.
pub fn frequencies(d: usize, theta: f64, scaling: &RopeScaling) -> (Vec<f64>, f64) {
    let plain: Vec<f64> = (0..d / 2).map(|i| theta.powf(-((2 * i) as f64) / d as f64)).collect();
    match scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.into_iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Factors(factors) => {
            (plain.into_iter().zip(factors).map(|(f, factor)| f / f64::from(*factor)).collect(), 1.0)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let scaled = plain.into_iter().map(|f| {
                // Rotations over the training context. Frequencies with few rotations are divided, those with many
                // kept.
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

/// The base and the scaling in a config: from `rope_parameters` (transformers 5), or from `rope_theta` and
/// `rope_scaling` (transformers 4).
///
/// # Errors
/// If a field is malformed, the scaling is not supported, or the two spellings contradict each other.
pub(super) fn parse(fields: &Fields<'_>) -> Result<(f64, RopeScaling)> {
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
        // The default of transformers for every architecture.
        None => fields.number("rope_theta")?.unwrap_or(10_000.0),
    };
    if theta <= 1.0 {
        return Err(Error::new(ErrorKind::Model, "rope_theta has a value that cannot be used")
            .at(fields.place)
            .expected("a number above 1")
            .found(theta));
    }
    for fields in [Some(fields), nested.as_ref()].into_iter().flatten() {
        if fields.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(fields.unsupported("partial_rotary_factor", "heads that are only partly rotated"));
        }
    }
    let scaling = match &nested {
        Some(nested) => parse_scaling(nested, fields)?,
        None => RopeScaling::None,
    };
    if name == NEW
        && let Some(old) = fields.get(OLD)
    {
        let place = format!("{}: {OLD}", fields.place);
        let old = parse_scaling(&Fields::new(old, &place)?, fields)?;
        if old != scaling {
            return Err(Error::new(ErrorKind::Model, "the configuration has two RoPE scalings that differ")
                .at(format!("{}: {NEW} and {OLD}", fields.place))
                .expected("one of the two fields, or the same scaling in both")
                .found(format!("{NEW}: {scaling}; {OLD}: {old}"))
                .help(format!("move the scaling that should apply into {NEW}, and remove {OLD}")));
        }
    }
    Ok((theta, scaling))
}

/// Reads a scaling. `fields` are those of the scaling, `outer` those of the whole config, where some scalings find
/// their defaults.
fn parse_scaling(fields: &Fields<'_>, outer: &Fields<'_>) -> Result<RopeScaling> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let kind = match fields.text("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.text("type")?,
    };
    let factor = || match fields.required_number("factor")? {
        factor if factor >= 1.0 => Ok(factor),
        _ => Err(fields.invalid("factor", "1 or more")),
    };
    // As in transformers: first next to the scaling, then inside it, then the model's maximum context.
    let original = || match (outer.optional_size(ORIGINAL)?, fields.optional_size(ORIGINAL)?) {
        (Some(size), _) | (None, Some(size)) => Ok(size),
        (None, None) => outer.size("max_position_embeddings"),
    };
    match kind {
        None if fields.map.keys().any(|key| key != "rope_theta") => Err(fields.invalid("rope_type", "a string")),
        None | Some("default") => Ok(RopeScaling::None),
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
            .expected("default, linear, llama3 or yarn")
            .found(other)
            .help("remove it from config.json to run the model within its original context")),
    }
}
