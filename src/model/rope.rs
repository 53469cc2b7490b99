//! Rotary position embedding: the table of cosines and sines, and how scalings change it.
//!
//! Formulas as in transformers' `modeling_rope_utils.py`, in f64.
use crate::model::config::RopeScaling;
use std::f64::consts::TAU;

/// Table `[positions, d]` for rotate-half RoPE (Su et al. 2021; HF layout): row `p` holds `a cos(p · θ_i)` for the `d / 2`
/// [`frequencies`] `θ_i`, then the sines; `a` is 1 for all scalings but YaRN. Computed in f64, stored in f32: an f32 `cos` is
/// off by 1.8e-3 at position 30,000, a bf16 table is exact only to position 256.
pub fn table(d: usize, theta: f64, scaling: &RopeScaling, positions: usize) -> Vec<f32> {
    let (frequencies, magnitude) = frequencies(d, theta, scaling);
    let mut table = Vec::with_capacity(positions * d);
    for p in 0..positions {
        table.extend(frequencies.iter().map(|f| (magnitude * (p as f64 * f).cos()) as f32));
        table.extend(frequencies.iter().map(|f| (magnitude * (p as f64 * f).sin()) as f32));
    }
    table
}

/// The `d / 2` angles, in radians, by which a position turns each pair, and the factor of cosines and sines.
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
                // Turns over the training context: few are divided, many kept.
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
            // The dimension that turns so often over the training context.
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
