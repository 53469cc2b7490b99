//! The choice of experts of a mixture-of-experts layer (Shazeer et al. 2017, arXiv 1701.06538; weights as in
//! Qwen3-MoE).
//!
//! Contract: of each row of `logits` `[n, experts]`, `chosen` `[n, k]` gets the indices of the `k` largest logits,
//! the larger first, of equal ones the lower index first; `gains` `[n, k]` their softmax over all experts, or, with
//! `normalise`, over the chosen ones. `1 ≤ k ≤ experts ≤` [`MOST_EXPERTS`]. Softmax keeps the order of its arguments,
//! so that experts are compared by their logits, and the choice does not depend on rounding. NaN has a place in the
//! order too: every index is in range, whatever the logits are.
//!
//! Bound: `chosen` exact; `gains` 4e-6 relative to the row's largest: WGSL allows `exp(x)` an error of 3 + 2|x| units
//! in the last place, which is at most 3 units of the largest gain, and the sum has a few more.
use super::cases::{Bound, Case, Check, device_floats, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::twin::{floats, slice, words};
use super::uniform::uniform;
use super::variant::{Variant, grid};
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// The most experts of a layer: their logits are in workgroup memory.
pub const MOST_EXPERTS: usize = 512;

/// Parameters of [`router`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterSpec {
    /// Number of rows.
    pub n: usize,
    /// Number of experts.
    pub experts: usize,
    /// Experts that are chosen for each row.
    pub k: usize,
    /// Whether the gains of the chosen experts add up to 1.
    pub normalise: bool,
}

/// Chooses experts by `logits` `[n, experts]`: the choices, u32 `[n * k]`, and their gains, f32 `[n, k]`.
pub fn router(logits: &Tensor<2>, spec: RouterSpec) -> (Tensor<1, Int>, Tensor<2>) {
    let [chosen, gains] = run(&spec, [read(logits)]);
    (Tensor::from_dispatch(chosen), Tensor::from_dispatch(gains))
}

uniform! {
    struct Info { n: u32, experts: u32, k: u32, normalise: u32 }
}

fn variant() -> Variant {
    let constants = [("THREADS", 64), ("MOST", MOST_EXPERTS as u32)];
    Variant::new::<Info>("router", include_str!("../../shaders/router.wgsl"), constants)
}

impl Kernel<1, 2> for RouterSpec {
    fn launch(&self, [logits]: [CubeTensor; 1]) -> [CubeTensor; 2] {
        assert!((1..=self.experts).contains(&self.k) && self.experts <= MOST_EXPERTS, "the config is checked");
        let chosen = empty(&logits, vec![self.n * self.k], DType::U32);
        let gains = empty(&logits, vec![self.n, self.k], DType::F32);
        let [n, experts, k] = [self.n, self.experts, self.k].map(|v| v as u32);
        let info = Info { n, experts, k, normalise: self.normalise as u32 };
        launch(&variant(), grid(self.n), &[&logits, &chosen, &gains], info);
        [chosen, gains]
    }

    fn twin(&self, [logits]: [FlexTensor; 1]) -> [FlexTensor; 2] {
        let (chosen, gains) = twin(slice(&logits), self);
        [words(chosen), floats(gains, [self.n, self.k])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    vec![variant()]
}

fn twin(logits: &[f32], spec: &RouterSpec) -> (Vec<u32>, Vec<f32>) {
    let (mut chosen, mut gains) = (Vec::new(), Vec::new());
    for row in logits.chunks_exact(spec.experts) {
        let mut order: Vec<usize> = (0..spec.experts).collect();
        // Adding zero makes both zeros equal. The sort is stable: of equal logits, the lower index stays first.
        order.sort_by(|a, b| (row[*b] + 0.0).total_cmp(&(row[*a] + 0.0)));
        let power = |e: usize| (f64::from(row[e]) - f64::from(row[order[0]])).exp();
        let best = &order[..spec.k];
        let sum: f64 = if spec.normalise { best } else { &order[..] }.iter().map(|e| power(*e)).sum();
        chosen.extend(best.iter().map(|e| *e as u32));
        gains.extend(best.iter().map(|e| (power(*e) / sum) as f32));
    }
    (chosen, gains)
}

/// One expert to the most; fewer and more than a workgroup; ties, also of zeros of both signs; all experts chosen.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, experts, k, scale) in [
        (1, 1, 1, 1.0),
        (3, 8, 2, 2.0),
        (2, 64, 8, 3.0),
        (5, 128, 8, 4.0),
        (2, 65, 65, 2.0),
        (1, MOST_EXPERTS, 33, 20.0),
    ] {
        for (normalise, ties) in [(true, false), (false, false), (true, true)] {
            let spec = RouterSpec { n, experts, k, normalise };
            let name = format!("{k} of {experts} n {n} scale {scale} normalise {normalise} ties {ties}");
            cases.push(Case::new("router", name, move |device| {
                let mut logits = noise(n * experts, 21, scale);
                if ties {
                    // Five values, two of them zeros of different signs.
                    logits.iter_mut().for_each(|v| *v = (*v / scale * 2.0).round());
                }
                let logits = device_floats(logits, n, experts, device);
                let (chosen, gains) = router(&logits, spec);
                vec![
                    Check::u32("chosen", chosen, k, Bound::Exact),
                    Check::floats("gains", gains, Bound::Relative(4e-6)),
                ]
            }));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_logit_and_the_lower_index_come_first() {
        let spec = RouterSpec { n: 2, experts: 5, k: 3, normalise: true };
        let logits = [0.0, 1.0, -0.0, 1.0, -2.0, f32::NAN, 0.5, f32::INFINITY, f32::NEG_INFINITY, 0.5];
        let (chosen, gains) = twin(&logits, &spec);
        assert_eq!(chosen, [1, 3, 0, 0, 2, 1]);
        let [one, zero] = [1f64, (-1f64).exp()].map(|power| (power / (2.0 + (-1f64).exp())) as f32);
        assert_eq!(gains[..3], [one, one, zero]);
        assert!(gains[3].is_nan(), "a logit that is not a number stays visible");
        let (_, shares) = twin(&logits[..5], &RouterSpec { n: 1, normalise: false, ..spec });
        let all = 2.0 + 2.0 * (-1f64).exp() + (-3f64).exp();
        assert_eq!(shares[0], (1.0 / all) as f32);
    }
}
