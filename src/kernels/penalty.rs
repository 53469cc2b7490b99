//! The penalties of OpenAI's interface: tokens that a sequence has generated become less likely, by a fixed amount
//! and by an amount for each time.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::state;
use super::twin::{floats, slice, slice_mut};
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

const THREADS: usize = 256;

/// Parameters of [`penalty`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PenaltySpec {
    /// Number of rows.
    pub n: usize,
    /// Logits of a row.
    pub count: usize,
    /// Offset in the state, in words, of the list of the rows' sequences.
    pub row_seq_offset: usize,
}

/// Counts the pending tokens in `counts`, in place, and penalises `logits` `[n, count]`. Returns the penalised logits
/// and the counts.
pub fn penalty(
    logits: &Tensor<2>,
    state: &Tensor<1, Int>,
    counts: Tensor<1, Int>,
    spec: PenaltySpec,
) -> (Tensor<2>, Tensor<1, Int>) {
    let [out, counts] = run(&spec, [read(logits), read(state), counts.into_dispatch()]);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(counts))
}

uniform! {
    struct Info { n: u32, count: u32, row_seq_offset: u32, pad0: u32 }
}

impl PenaltySpec {
    fn variant(&self) -> Variant {
        let constants = [("THREADS", THREADS as u32)];
        Variant::new::<Info>("penalty", include_str!("../../shaders/penalty.wgsl"), constants)
    }
}

impl Kernel<3, 2> for PenaltySpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(2, "the counts of generated tokens")];

    fn launch(&self, [logits, state, counts]: [CubeTensor; 3]) -> [CubeTensor; 2] {
        let out = empty(&logits, vec![self.n, self.count], DType::F32);
        let info =
            Info { n: self.n as u32, count: self.count as u32, row_seq_offset: self.row_seq_offset as u32, pad0: 0 };
        let groups = [self.count.div_ceil(THREADS), self.n, 1];
        launch(&self.variant(), groups, &[&logits, &state, &counts, &out], info);
        [out, counts]
    }

    fn twin(&self, [logits, state, mut counts]: [FlexTensor; 3]) -> [FlexTensor; 2] {
        let out = twin(slice(&logits), slice(&state), slice_mut(&mut counts), self);
        [floats(out, [self.n, self.count]), counts]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    vec![PenaltySpec { n: 1, count: 8, row_seq_offset: 0 }.variant()]
}

fn twin(logits: &[f32], st: &[u32], counts: &mut [u32], spec: &PenaltySpec) -> Vec<f32> {
    let mut out = Vec::with_capacity(logits.len());
    for (row, logits) in logits.chunks_exact(spec.count).take(spec.n).enumerate() {
        let seq = st[spec.row_seq_offset + row] as usize;
        let header = &st[seq * state::SEQ..][..state::SEQ];
        let counts = &mut counts[seq * spec.count..][..spec.count];
        if let Some(times) = counts.get_mut(header[state::TOKEN] as usize).filter(|_| header[state::STEP] > 0) {
            *times += 1;
        }
        let penalty = |word: usize| f64::from(f32::from_bits(header[word]));
        let (frequency, presence) = (penalty(state::FREQUENCY), penalty(state::PRESENCE));
        out.extend(logits.iter().zip(counts).map(|(value, times)| match times {
            0 => *value,
            times => (f64::from(*value) - (f64::from(*times) * frequency + presence)) as f32,
        }));
    }
    out
}

/// One token to more than a workgroup, odd sizes; rows in another order; no penalty, one of them, both, negative
/// ones; nothing sampled yet; a pending token that was counted before, or never, or that is outside; a sequence that
/// is not named.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for count in [1, 255, 256, 321, 9001] {
        cases.push(Case::new("penalty", format!("{count} tokens"), move |device| {
            let (all, order) = (7, [5, 0, 3, 1, 6, 4]);
            let last = count as u32 - 1;
            let state = StateBuilder::new(all, 1, 1)
                .tokens(&[0, last, 5, last / 2, u32::MAX, last / 3, last])
                .steps(&[3, 1, 9, 0, 4, 2, 700])
                .penalties(&[(0.5, 0.0), (0.0, 0.75), (1.0, 1.0), (2.0, 0.3), (0.1, 0.2), (-1.5, -0.4), (0.0, 0.0)])
                .map(&order);
            let counts = (0..all * count).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 28).saturating_sub(10));
            let spec = PenaltySpec { n: order.len(), count, row_seq_offset: state.row_seq_offset() };
            let logits = device_floats(noise(order.len() * count, 19, 9.0), order.len(), count, device);
            let counts = device_words(counts.collect(), device);
            let (out, counts) = penalty(&logits, &device_words(state.build(), device), counts, spec);
            vec![Check::floats("out", out, Bound::Relative(1e-6)), Check::u32("counts", counts, 1, Bound::Exact)]
        }));
    }
    cases
}
