//! The results of a row's experts, weighted and added to the residual stream.
//!
//! Contract: `x[i, :] += Σ_j gains[i, j] · y[i k + j, :]` for `x` `[n, cols]`, `gains` `[n, k]` and `y`
//! `[n k, cols]`; `cols` is a multiple of 8. The sum is in the order of the choices, so that it depends on nothing
//! but its row.
//!
//! Bound: 1e-6 relative to the row's largest value, times √(k + 1): f32 sums of k + 1 terms.
use super::cases::{Bound, Case, Check, device_floats, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::twin::{slice, slice_mut};
use super::uniform::uniform;
use super::variant::{Variant, grid};
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::Tensor;

/// Parameters of [`expert_sum`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertSumSpec {
    /// Rows of the residual stream.
    pub n: usize,
    /// Experts that were chosen for each row.
    pub k: usize,
    /// Values of a row.
    pub cols: usize,
}

/// Adds the weighted rows of `y` `[n * k, cols]` to `x` `[n, cols]`, which is written in place. `gains` `[n, k]`.
pub fn expert_sum(y: &Tensor<2>, gains: &Tensor<2>, x: Tensor<2>, spec: ExpertSumSpec) -> Tensor<2> {
    let [x] = run(&spec, [read(y), read(gains), x.into_dispatch()]);
    Tensor::from_dispatch(x)
}

uniform! {
    struct Info { n: u32, k: u32, cols: u32, pad0: u32 }
}

fn variant() -> Variant {
    Variant::new::<Info>("expert_sum", include_str!("../../shaders/expert_sum.wgsl"), [("THREADS", 64)])
}

impl Kernel<3, 1> for ExpertSumSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(2, "the residual stream")];

    fn launch(&self, [y, gains, x]: [CubeTensor; 3]) -> [CubeTensor; 1] {
        let info = Info { n: self.n as u32, k: self.k as u32, cols: self.cols as u32, pad0: 0 };
        launch(&variant(), grid((self.n * self.cols / 4).div_ceil(64)), &[&y, &gains, &x], info);
        [x]
    }

    fn twin(&self, [y, gains, mut x]: [FlexTensor; 3]) -> [FlexTensor; 1] {
        twin(slice(&y), slice(&gains), slice_mut(&mut x), self);
        [x]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    vec![variant()]
}

fn twin(y: &[f32], gains: &[f32], x: &mut [f32], spec: &ExpertSumSpec) {
    for (i, row) in x.chunks_exact_mut(spec.cols).take(spec.n).enumerate() {
        for (c, x) in row.iter_mut().enumerate() {
            let term = |j: usize| {
                let choice = i * spec.k + j;
                f64::from(gains[choice]) * f64::from(y[choice * spec.cols + c])
            };
            *x = (f64::from(*x) + (0..spec.k).map(term).sum::<f64>()) as f32;
        }
    }
}

/// One choice and many; rows that fill no workgroup, and rows that share one.
pub(super) fn cases() -> Vec<Case> {
    let case = |(n, k, cols): (usize, usize, usize)| {
        let spec = ExpertSumSpec { n, k, cols };
        Case::new("expert_sum", format!("{n}x{cols} of {k}"), move |device| {
            let y = device_floats(noise(n * k * cols, 31, 1.0), n * k, cols, device);
            let gains = device_floats(noise(n * k, 32, 1.0), n, k, device);
            // There is a spare row, which must not change.
            let x = device_floats(noise((n + 1) * cols, 33, 1.0), n + 1, cols, device);
            let bound = Bound::RelativeSum { factor: 1e-6, terms: k + 1 };
            vec![Check::floats("x", expert_sum(&y, &gains, x, spec), bound)]
        })
    };
    [(1, 1, 8), (3, 2, 40), (5, 8, 72), (17, 8, 256), (2, 33, 1000)].map(case).into()
}
