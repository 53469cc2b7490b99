//! RMS normalisation (Zhang & Sennrich 2019).
//!
//! Contract: with `v = x[first + i, :]`: `out[i, c] = v[c] / √(mean(v²) + eps) · weight[c]`; `out` `[n, cols]`, any `n` and `cols`.
//! The residual addition that precedes it happens in the product before ([`Mode::Add`](super::Mode::Add)).
//!
//! Bound: 2e-6 relative to the row's largest value: one f32 sum of squares, one square root, two products.
use super::cases::{Bound, Case, Check, device_floats, noise};
use super::variant::Variant;
use super::{f32_tensor, rms_norm as run};

/// Parameters of [`rms_norm`](fn@super::rms_norm).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Rows of the output.
    pub n: usize,
    /// Row of `x` that the first of them is.
    pub first_row: usize,
    /// Values in a row.
    pub cols: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl NormSpec {
    pub(super) fn variant(&self) -> Variant {
        let constants = vec![("THREADS", 64)];
        Variant { kernel: "rms_norm", text: include_str!("../../shaders/rms_norm.wgsl"), constants }
    }

    pub(super) fn info(&self) -> [u32; 4] {
        [self.n as u32, self.cols as u32, self.eps.to_bits(), self.first_row as u32]
    }
}

pub(super) fn twin(x: &[f32], weight: &[f32], spec: &NormSpec) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(spec.cols).skip(spec.first_row).take(spec.n) {
        let sum: f64 = row.iter().map(|v| (*v as f64).powi(2)).sum();
        let scale = 1.0 / (sum / spec.cols as f64 + spec.eps as f64).sqrt();
        out.extend(row.iter().zip(weight).map(|(v, w)| (*v as f64 * scale * *w as f64) as f32));
    }
    out
}

/// One value to more than a workgroup; rows of thousands (an f16 sum of squares would overflow); a row of zeros.
pub(super) fn cases() -> Vec<Case> {
    let shapes =
        [(0, 1, 1, 1.0), (0, 3, 63, 1.0), (3, 2, 64, 3000.0), (1, 5, 200, 1e-3), (0, 1, 5120, 1.0), (0, 2, 8, 0.0)];
    let case = |(first_row, n, cols, scale): (usize, usize, usize, f32)| {
        let spec = NormSpec { n, first_row, cols, eps: 1e-6 };
        Case::new("rms_norm", format!("{n}x{cols} from row {first_row} scale {scale}"), move |device| {
            let x = device_floats(noise((first_row + n) * cols, 7, scale), first_row + n, cols, device);
            let weight = f32_tensor(noise(cols, 8, 2.0), [cols], device);
            vec![Check::floats("out", run(&x, &weight, spec), Bound::Relative(2e-6))]
        })
    };
    shapes.map(case).into()
}
