//! RMS normalisation (Zhang & Sennrich 2019, arXiv 1910.07467).
//!
//! Contract: with `v = x[first_row + i, :]`, `out[i, c] = v[c] / √(mean(v²) + eps) · weight[c]`; `out` `[n, cols]`,
//! any `n` and `cols`. The preceding product does the residual addition ([`Mode::Add`](super::Mode::Add)).
//!
//! Bound: 2e-6 relative to the row's largest value: one f32 sum of squares, one square root, two products.
use super::cases::{Bound, Case, Check, device_floats, noise};
use super::cube::launch;
use super::f32_tensor;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::twin::{floats, slice};
use super::uniform::uniform;
use super::variant::{Variant, grid};
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Tensor};

/// Parameters of [`rms_norm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Rows of the output.
    pub n: usize,
    /// Row of `x` where the input begins.
    pub first_row: usize,
    /// Values of a row.
    pub cols: usize,
    /// The ε that is added to the mean square.
    pub eps: f32,
}

/// Normalises rows of `x` `[first_row + n or more, cols]` and weights them by `weight` `[cols]`: `[n, cols]`.
pub fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, spec: NormSpec) -> Tensor<2> {
    let [out] = run(&spec, [read(x), read(weight)]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info { n: u32, cols: u32, eps: f32, first_row: u32 }
}

impl NormSpec {
    fn variant(&self) -> Variant {
        Variant::new::<Info>("rms_norm", include_str!("../../shaders/rms_norm.wgsl"), [("THREADS", 64)])
    }
}

impl Kernel<2, 1> for NormSpec {
    fn launch(&self, [x, weight]: [CubeTensor; 2]) -> [CubeTensor; 1] {
        let out = empty(&x, vec![self.n, self.cols], DType::F32);
        let info = Info { n: self.n as u32, cols: self.cols as u32, eps: self.eps, first_row: self.first_row as u32 };
        launch(&self.variant(), grid(self.n), &[&x, &weight, &out], info);
        [out]
    }

    fn twin(&self, [x, weight]: [FlexTensor; 2]) -> [FlexTensor; 1] {
        [floats(twin(slice(&x), slice(&weight), self), [self.n, self.cols])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    vec![NormSpec { n: 1, first_row: 0, cols: 8, eps: 1e-6 }.variant()]
}

fn twin(x: &[f32], weight: &[f32], spec: &NormSpec) -> Vec<f32> {
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
            vec![Check::floats("out", rms_norm(&x, &weight, spec), Bound::Relative(2e-6))]
        })
    };
    shapes.map(case).into()
}
