//! The logit of one token in each row of logits: what is reported of a token that was sampled, or that a text has.
//!
//! Contract: row `i` of `n` has the logits `logits[i, :]`, `[n, count]`. `out[i] = logits[i, token]` `[n, 1]`, where
//! `token` is the pending token of the sequence that `ids[row_seq_offset + i]` names, if `sampled` (`ids` is then the
//! state), else `ids[i]`. A token outside the row gives −1e30.
//!
//! Bound: exact: nothing is computed.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::state;
use super::top_k::LOWEST;
use super::twin::{floats, slice};
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

const THREADS: usize = 64;

/// Parameters of [`token_logit`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogitSpec {
    /// Number of rows.
    pub n: usize,
    /// Logits of a row.
    pub count: usize,
    /// Offset in the state, in words, of the list of the rows' sequences, whose pending tokens are meant. `None`: the
    /// tokens are listed.
    pub sampled: Option<usize>,
}

/// The logit of a token in each row of `logits` `[n, count]`: `[n, 1]`. `ids`: the state, or `[n]` ids.
pub fn token_logit(logits: &Tensor<2>, ids: &Tensor<1, Int>, spec: TokenLogitSpec) -> Tensor<2> {
    let [out] = run(&spec, [read(logits), read(ids)]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info { n: u32, count: u32, row_seq_offset: u32, pad0: u32 }
}

impl TokenLogitSpec {
    fn variant(&self) -> Variant {
        let constants = [("THREADS", THREADS as u32), ("SAMPLED", self.sampled.is_some() as u32)];
        Variant::new::<Info>("token_logit", include_str!("../../shaders/token_logit.wgsl"), constants)
    }
}

impl Kernel<2, 1> for TokenLogitSpec {
    fn launch(&self, [logits, ids]: [CubeTensor; 2]) -> [CubeTensor; 1] {
        let out = empty(&logits, vec![self.n, 1], DType::F32);
        let info = Info {
            n: self.n as u32,
            count: self.count as u32,
            row_seq_offset: self.sampled.unwrap_or(0) as u32,
            pad0: 0,
        };
        launch(&self.variant(), [self.n.div_ceil(THREADS), 1, 1], &[&logits, &ids, &out], info);
        [out]
    }

    fn twin(&self, [logits, ids]: [FlexTensor; 2]) -> [FlexTensor; 1] {
        [floats(twin(slice(&logits), slice(&ids), self), [self.n, 1])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    [None, Some(0)].map(|sampled| TokenLogitSpec { n: 1, count: 8, sampled }.variant()).into()
}

fn twin(logits: &[f32], ids: &[u32], spec: &TokenLogitSpec) -> Vec<f32> {
    let token = |row: usize| match spec.sampled {
        Some(offset) => ids[ids[offset + row] as usize * state::SEQ + state::TOKEN],
        None => ids[row],
    };
    let rows = logits.chunks_exact(spec.count).take(spec.n).enumerate();
    rows.map(|(row, logits)| logits.get(token(row) as usize).copied().unwrap_or(LOWEST)).collect()
}

/// One row to more than a workgroup, odd sizes; tokens at both ends and outside; sequences in another order.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, count) in [(1, 1), (5, 321), (65, 97), (130, 8193)] {
        for sampled in [false, true] {
            cases.push(Case::new("token_logit", format!("{n}x{count} sampled {sampled}"), move |device| {
                let last = count as u32 - 1;
                let odd = ((last / 2) | 1).min(last);
                let token = |i: usize| [0, last, last + 1, u32::MAX, odd, last / 3][i * 5 % 6];
                let tokens: Vec<u32> = (0..n).map(token).collect();
                let order: Vec<usize> = (0..n).map(|i| (i * 7 + 2) % n).collect();
                let state = StateBuilder::new(n, 1, 1).tokens(&tokens).map(&order);
                let (ids, sampled) = match sampled {
                    true => (state.build(), Some(state.row_seq_offset())),
                    false => (tokens, None),
                };
                let spec = TokenLogitSpec { n, count, sampled };
                let logits = device_floats(noise(n * count, 17, 9.0), n, count, device);
                vec![Check::floats("out", token_logit(&logits, &device_words(ids, device), spec), Bound::Exact)]
            }));
        }
    }
    cases
}
