//! The end of a step: choose each sequence's next token and advance its state, on the device.
//!
//! Contract: for row `i` of `seqs`, which belongs to the sequence that `state[map + i]` names: `token = argmax(logits[i, :])`, the lowest id among equals, or
//! [`BROKEN`](super::state::BROKEN) where any logit is not finite (checked by bits: comparisons may be folded away); write
//! it as the pending token and into the ring of sampled ids at `step % ring`; then `step += 1`, `position += advance` and
//! every layer's `length += advance`. Sequences that are not named are left alone.
//!
//! Bound: exact.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_words, noise};
use super::launch::Variant;
use super::{sample as run, state};

/// Parameters of [`sample`](fn@super::sample).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSpec {
    /// Values in a row of logits.
    pub vocab: usize,
    /// Sequences sampled.
    pub seqs: usize,
    /// Word of the state from which on they are listed.
    pub map: usize,
    /// Layers of the state.
    pub layers: usize,
    /// Sequences of the state.
    pub all_seqs: usize,
    /// Entries of the ring.
    pub ring: usize,
    /// What lengths and positions grow by: 1 for a decode step, 0 where the host wrote them already.
    pub advance: usize,
}

impl SampleSpec {
    pub(super) fn variant(&self) -> Variant {
        let constants = vec![("THREADS", 256)];
        Variant { kernel: "sample", text: include_str!("../../shaders/sample.wgsl"), constants }
    }

    pub(super) fn info(&self) -> [u32; 8] {
        [self.vocab, self.seqs, self.layers, self.all_seqs, self.ring, self.advance, self.map, 0].map(|v| v as u32)
    }
}

pub(super) fn twin(logits: &[f32], st: &mut [u32], spec: &SampleSpec) {
    let tables = spec.all_seqs * state::SEQ;
    let rings = tables + spec.layers * spec.all_seqs * state::ROW;
    for (i, row) in logits.chunks_exact(spec.vocab).take(spec.seqs).enumerate() {
        let seq = st[spec.map + i] as usize;
        let header = seq * state::SEQ;
        let mut best = 0;
        for (id, v) in row.iter().enumerate() {
            if *v > row[best] {
                best = id;
            }
        }
        let token = if row.iter().all(|v| v.is_finite()) { best as u32 } else { state::BROKEN };
        for layer in 0..spec.layers {
            st[tables + (layer * spec.all_seqs + seq) * state::ROW + state::LEN] += spec.advance as u32;
        }
        let step = st[header + state::STEP];
        st[rings + seq * spec.ring + step as usize % spec.ring] = token;
        st[header + state::STEP] = step + 1;
        st[header + state::TOKEN] = token;
        st[header + state::POSITION] += spec.advance as u32;
    }
}

/// Small and large vocabularies, ties, all equal, very negative logits, NaN and infinities, a sequence that is not named.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (vocab, fault) in
        [(1, "none"), (320, "none"), (1000, "tie"), (257, "equal"), (512, "nan"), (300, "inf"), (5000, "low")]
    {
        for advance in [0, 1] {
            let name = format!("vocab {vocab} fault {fault} advance {advance}");
            cases.push(Case::new("sample", name, move |device| {
                let (all_seqs, seqs, layers, ring) = (4, 3, 2, 5);
                let mut logits = noise(seqs * vocab, 12, 9.0);
                match fault {
                    "tie" => [17, 900, 400, 1999].iter().for_each(|&i| logits[i] = 10.0),
                    "equal" => logits.fill(-3.5),
                    "nan" => logits[vocab + 300] = f32::NAN,
                    "inf" => logits[2] = f32::INFINITY,
                    "low" => logits.iter_mut().for_each(|v| *v = *v * 1e3 - 1e6),
                    _ => (),
                }
                let mut builder =
                    StateBuilder::new(all_seqs, layers, 1).ring(ring).positions(&[3, 4, 5, 6]).steps(&[4, 5, 0, 9]);
                builder = builder.lens(0, &[1, 2, 3, 4], &[9; 4]).lens(1, &[4, 5, 6, 7], &[9; 4]).map(&[3, 0, 2]);
                let map = builder.map_at();
                let spec = SampleSpec { vocab, seqs, map, layers, all_seqs, ring, advance };
                let logits = device_floats(logits, seqs, vocab, device);
                let state = run(&logits, device_words(builder.build(), device), spec);
                vec![Check::words("state", state, 1, Bound::Exact)]
            }));
        }
    }
    cases
}
