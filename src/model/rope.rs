//! Rotary position embedding: the table of cosines and sines.

/// Table `[positions, d]` for rotate-half RoPE (Su et al. 2021; HF layout): row `p` holds `cos(p · θ_i)` for the `d / 2`
/// frequencies `θ_i = theta^(−2i/d)`, then the sines. Computed in f64, stored in f32: an f32 `cos` is off by 1.8e-3 at
/// position 30,000, a bf16 table is exact only to position 256.
pub fn table(d: usize, theta: f64, positions: usize) -> Vec<f32> {
    let frequencies: Vec<f64> = (0..d / 2).map(|i| theta.powf(-((2 * i) as f64) / d as f64)).collect();
    let mut table = Vec::with_capacity(positions * d);
    for p in 0..positions {
        table.extend(frequencies.iter().map(|f| (p as f64 * f).cos() as f32));
        table.extend(frequencies.iter().map(|f| (p as f64 * f).sin() as f32));
    }
    table
}
