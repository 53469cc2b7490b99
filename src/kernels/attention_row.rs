//! The readout: one query row's attention weights over every slot.
//!
//! Contract: with `lse` from the [`attention`](mod@super::attention) of the same chunk, `w[h, j] = exp(scale · q[row, h] · K[j] −
//! lse[row, h])` for every slot `j < slots` of sequence `seq` (the chunk's own slots included): the model's own softmax, one
//! row of it, without the matrix. Reduced to `out`: per query head `[heads, slots]`, the mean over each KV head's group
//! `[kv_heads, slots]`, or the mean over all heads `[1, slots]` ([`Reduce`]). Source: METHOD s_t(l, h) of arXiv 2507.08806.
//!
//! Bound: 1e-5 relative to the row's largest weight (an f32 exponent with an absolute error of ~2e-6 on both its terms).
use super::cases::{Bound, Case, Check, StateBuilder, cache_words, device_floats, device_rope, device_words, noise};
use super::variant::Variant;
use super::{AttentionSpec, LayerSpec, attention, attention_row as run, state};
use crate::device::Tuning;
use crate::dtype::Dtype;

/// What is kept apart in a readout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reduce {
    /// A row for each query head.
    None = 0,
    /// A row for each KV head: the mean of its query heads.
    KvHead = 1,
    /// One row: the mean of all heads.
    Layer = 2,
}

/// Parameters of [`attention_row`](fn@super::attention_row).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRowSpec {
    /// The layer.
    pub layer: LayerSpec,
    /// Row of the chunk whose weights are read.
    pub row: usize,
    /// Slots to score: the layer's length plus `row + 1`.
    pub slots: usize,
    /// The sequence.
    pub seq: usize,
    /// What is averaged.
    pub reduce: Reduce,
}

impl AttentionRowSpec {
    /// Rows of the output.
    pub fn out_rows(&self) -> usize {
        match self.reduce {
            Reduce::None => self.layer.heads,
            Reduce::KvHead => self.layer.kv_heads,
            Reduce::Layer => 1,
        }
    }

    pub(super) fn variant(&self) -> Variant {
        let constants = vec![
            ("THREADS", 64),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("ROTATE", self.layer.compact as u32),
            ("G", self.layer.group() as u32),
            ("REDUCE", self.reduce as u32),
        ];
        Variant { kernel: "attention_row", text: include_str!("../../shaders/attention_row.wgsl"), constants }
    }

    pub(super) fn groups(&self) -> [usize; 3] {
        [self.slots.div_ceil(64), 1, 1]
    }

    pub(super) fn info(&self) -> [u32; 8] {
        let [row, kv_heads, slots, seq, table] =
            [self.row, self.layer.kv_heads, self.slots, self.seq, self.layer.layer_table_offset].map(|v| v as u32);
        [row, kv_heads, slots, seq, table, self.layer.scale().to_bits(), self.layer.positions as u32, 0]
    }
}

pub(super) fn twin(q: &[f32], lse: &[f32], kv: &[u32], st: &[u32], table: &[f32], spec: &AttentionRowSpec) -> Vec<f32> {
    let keys = super::twin::Keys { kv, table, layer: spec.layer };
    let (d, group) = (spec.layer.d, spec.layer.group());
    let entry = &st[spec.layer.layer_table_offset + spec.seq * state::ROW..];
    let (base, cap) = (entry[state::BASE] as usize, entry[state::CAP] as usize);
    let per_out = spec.layer.heads / spec.out_rows();
    let mut out = vec![0f64; spec.out_rows() * spec.slots];
    for head in 0..spec.layer.heads {
        let query = &q[(spec.row * spec.layer.heads + head) * d..][..d];
        let lse = lse[spec.row * spec.layer.heads + head] as f64;
        for slot in 0..spec.slots.min(cap) {
            let dot = keys.dot(query, base + head / group * cap + slot, slot);
            out[head / per_out * spec.slots + slot] += (dot / (d as f64).sqrt() - lse).exp() / per_out as f64;
        }
    }
    out.iter().map(|v| *v as f32).collect()
}

/// Both packings and every reduction, on one slot to more than a tile.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for reduce in [Reduce::None, Reduce::KvHead, Reduce::Layer] {
            for (d, heads, kv_heads, chunk, seq, rotate, lens, caps) in [
                (16, 6, 2, 9, 1, false, [1, 250, 1], [2, 270, 2]),
                (64, 7, 7, 1, 0, false, [0, 1, 1], [1, 2, 2]),
                (128, 14, 2, 3, 2, false, [4, 4, 97], [9, 9, 128]),
                (24, 6, 2, 9, 1, true, [1, 150, 1], [2, 270, 2]),
            ] {
                let name = format!(
                    "{dtype:?} {reduce:?} d {d} heads {heads}/{kv_heads} chunk {chunk} lens {lens:?} rotate {rotate}"
                );
                cases.push(Case::new("attention_row", name, move |device| {
                    let builder = StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps).map(&[seq]);
                    let (row_seq_offset, layer_table_offset, most_seen) =
                        (builder.row_seq_offset(), builder.layer_table_offset(1), lens[seq] + chunk);
                    let (n, positions, already_cached) = (chunk, 300, 0);
                    let layer = LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions, compact: rotate };
                    let of_chunk = AttentionSpec {
                        layer,
                        n,
                        chunk,
                        row_seq_offset,
                        most_seen,
                        already_cached,
                        tuning: Tuning::GPU,
                    };
                    let (row, slots) = (chunk - 1, most_seen);
                    let spec = AttentionRowSpec { layer, row, slots, seq, reduce };
                    let rope = device_rope(d, positions, device);
                    let q = device_floats(noise(chunk * heads * d, 11, 4.0), chunk, heads * d, device);
                    let kv = device_words(cache_words(dtype, builder.rows(1) * d), device);
                    let state = device_words(builder.build(), device);
                    let (_, lse) = attention(&q, &kv, &state, &rope, of_chunk);
                    vec![Check::floats("weights", run(&q, &lse, &kv, &state, &rope, spec), Bound::Relative(1e-5))]
                }));
            }
        }
    }
    cases
}
