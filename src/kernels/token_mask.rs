//! The tokens that an answer's format allows: all others cannot be sampled.
//!
//! Contract: `out[i, t] = logits[i, t]` where bit `t % 32` of `allowed[i, t / 32]` is set, else `LOWEST` (−1e30),
//! which no sampler chooses beside a token that is allowed. A logit that is not finite stays as it is, so that the
//! sampler still reports it. `logits` and `out` `[n, count]`; `allowed` u32 `[n, ⌈count / 32⌉]`.
//!
//! Bound: exact.
use super::cases::{Bound, Case, Check, device_floats, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::top_k::LOWEST;
use super::twin::{floats, slice};
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

const THREADS: usize = 256;

/// Parameters of [`token_mask`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenMaskSpec {
    /// Number of rows.
    pub n: usize,
    /// Logits of a row.
    pub count: usize,
}

/// The logits `[n, count]` of tokens whose bit is set in `allowed` `[n, ⌈count / 32⌉]`; the others become −1e30.
pub fn token_mask(logits: &Tensor<2>, allowed: &Tensor<1, Int>, spec: TokenMaskSpec) -> Tensor<2> {
    let [out] = run(&spec, [read(logits), read(allowed)]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info { n: u32, count: u32, words: u32, pad0: u32 }
}

impl TokenMaskSpec {
    /// Words of a row of `allowed`.
    pub fn words(&self) -> usize {
        self.count.div_ceil(32)
    }

    fn variant(&self) -> Variant {
        let constants = [("THREADS", THREADS as u32)];
        Variant::new::<Info>("token_mask", include_str!("../../shaders/token_mask.wgsl"), constants)
    }
}

impl Kernel<2, 1> for TokenMaskSpec {
    fn launch(&self, [logits, allowed]: [CubeTensor; 2]) -> [CubeTensor; 1] {
        let out = empty(&logits, vec![self.n, self.count], DType::F32);
        let info = Info { n: self.n as u32, count: self.count as u32, words: self.words() as u32, pad0: 0 };
        let groups = [self.count.div_ceil(THREADS), self.n, 1];
        launch(&self.variant(), groups, &[&logits, &allowed, &out], info);
        [out]
    }

    fn twin(&self, [logits, allowed]: [FlexTensor; 2]) -> [FlexTensor; 1] {
        [floats(twin(slice(&logits), slice(&allowed), self), [self.n, self.count])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    vec![TokenMaskSpec { n: 1, count: 8 }.variant()]
}

fn twin(logits: &[f32], allowed: &[u32], spec: &TokenMaskSpec) -> Vec<f32> {
    let rows = logits.chunks_exact(spec.count).zip(allowed.chunks_exact(spec.words())).take(spec.n);
    let masked = |(logits, allowed): (&[f32], &[u32])| {
        let one = |(token, value): (usize, &f32)| {
            let set = allowed[token / 32] >> (token % 32) & 1 == 1;
            if set || !value.is_finite() { *value } else { LOWEST }
        };
        logits.iter().enumerate().map(one).collect::<Vec<f32>>()
    };
    rows.flat_map(masked).collect()
}

/// One token to more than a workgroup, odd sizes; rows in which everything, nothing, one token or every third is
/// allowed; values that are not finite, allowed and not.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for count in [1, 31, 32, 255, 321, 9001] {
        cases.push(Case::new("token_mask", format!("{count} tokens"), move |device| {
            let spec = TokenMaskSpec { n: 5, count };
            let mut logits = noise(spec.n * count, 23, 9.0);
            for (row, broken) in [(1, f32::NAN), (3, f32::INFINITY), (4, f32::NEG_INFINITY)] {
                logits[row * count + count / 2] = broken;
            }
            let set = |row: usize, token: usize| match row {
                0 => true,
                1 => false,
                2 => token == count - 1,
                _ => token % 3 == row % 3,
            };
            let word =
                |row, word: usize| (0..32).fold(0u32, |bits, bit| bits | u32::from(set(row, word * 32 + bit)) << bit);
            let words = (0..spec.n).flat_map(|row| (0..spec.words()).map(move |i| word(row, i)));
            let allowed = device_words(words.collect(), device);
            let logits = device_floats(logits, spec.n, count, device);
            vec![Check::floats("out", token_mask(&logits, &allowed, spec), Bound::Exact)]
        }));
    }
    cases
}
