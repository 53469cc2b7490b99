//! The readout: the attention weights of one query row over every slot.
//!
//! Contract: with `lse` from the [`attention`](super::attention()) of the same chunk, `w[h, j] = exp(scale · q[row,
//! h] · K[j] − lse[row, h])` for every slot `j < slots` of sequence `seq`, the chunk's own slots included. This is
//! one row of the model's own softmax; the matrix is never computed. `out` is reduced as [`Reduce`] says: `[heads,
//! slots]`, `[kv_heads, slots]` or `[1, slots]`. Source: Think Clearly (arXiv 2507.08806) scores tokens by the
//! attention of `</think>`.
//!
//! Bound: 1e-5 relative to the row's largest weight: an f32 exponent with an absolute error of ~2e-6 in both its
//! terms.
use super::cases::{Bound, Case, Check, StateBuilder, cache_words, device_floats, device_rope, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::twin::{Keys, dot, floats, slice, widened};
use super::uniform::uniform;
use super::variant::Variant;
use super::{AttentionSpec, LayerSpec, attention, state};
use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Which rows a readout has.
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

/// Parameters of [`attention_row`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRowSpec {
    /// The layer that is read.
    pub layer: LayerSpec,
    /// Row of the chunk whose weights are read.
    pub row: usize,
    /// Slots to score: the layer's length plus `row + 1`.
    pub slots: usize,
    /// Number of the sequence.
    pub seq: usize,
    /// Which heads are averaged.
    pub reduce: Reduce,
}

/// The attention weights of row `spec.row` over the slots: `[heads, slots]`, `[kv_heads, slots]` or `[1, slots]`.
pub fn attention_row(
    q: &Tensor<2>,
    lse: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    spec: AttentionRowSpec,
) -> Tensor<2> {
    let [out] = run(&spec, [read(q), read(lse), read(kv), read(state), read(rope)]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info {
        row: u32, kv_heads: u32, slots: u32, seq: u32, layer_table_offset: u32, scale: f32, positions: u32, pad0: u32,
    }
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

    fn variant(&self) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("ROTATE", self.layer.compact as u32),
            ("G", self.layer.group() as u32),
            ("REDUCE", self.reduce as u32),
        ];
        Variant::new::<Info>("attention_row", include_str!("../../shaders/attention_row.wgsl"), constants)
    }
}

impl Kernel<5, 1> for AttentionRowSpec {
    fn launch(&self, [q, lse, kv, state, rope]: [CubeTensor; 5]) -> [CubeTensor; 1] {
        let out = empty(&q, vec![self.out_rows(), self.slots], DType::F32);
        let info = Info {
            row: self.row as u32,
            kv_heads: self.layer.kv_heads as u32,
            slots: self.slots as u32,
            seq: self.seq as u32,
            layer_table_offset: self.layer.layer_table_offset as u32,
            scale: self.layer.scale(),
            positions: self.layer.positions as u32,
            pad0: 0,
        };
        let groups = [self.slots.div_ceil(64), 1, 1];
        launch(&self.variant(), groups, &[&q, &lse, &kv, &state, &out, &rope], info);
        [out]
    }

    fn twin(&self, [q, lse, kv, state, rope]: [FlexTensor; 5]) -> [FlexTensor; 1] {
        let out = twin(slice(&q), slice(&lse), slice(&kv), slice(&state), slice(&rope), self);
        [floats(out, [self.out_rows(), self.slots])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let reduces = [Reduce::None, Reduce::KvHead, Reduce::Layer];
    let spec = |layer, reduce| AttentionRowSpec { layer, row: 0, slots: 1, seq: 0, reduce };
    let layers = (1..=16).flat_map(LayerSpec::usual);
    layers.flat_map(|layer| reduces.map(|reduce| spec(layer, reduce).variant())).collect()
}

fn twin(q: &[f32], lse: &[f32], kv: &[u32], st: &[u32], rope: &[f32], spec: &AttentionRowSpec) -> Vec<f32> {
    let keys = Keys { kv, rope, layer: spec.layer };
    let (d, group) = (spec.layer.d, spec.layer.group());
    let entry = &st[spec.layer.layer_table_offset + spec.seq * state::ROW..];
    let (base, cap) = (entry[state::BASE] as usize, entry[state::CAP] as usize);
    let per_out = spec.layer.heads / spec.out_rows();
    let mut out = vec![0f64; spec.out_rows() * spec.slots];
    let queries = widened(&q[spec.row * spec.layer.heads * d..][..spec.layer.heads * d]);
    for (kv_head, slot) in (0..spec.layer.kv_heads).flat_map(|h| (0..spec.slots.min(cap)).map(move |s| (h, s))) {
        let key = keys.get(base + kv_head * cap + slot, slot);
        for head in kv_head * group..(kv_head + 1) * group {
            let (dot, lse) = (dot(&queries[head * d..][..d], &key), f64::from(lse[spec.row * spec.layer.heads + head]));
            out[head / per_out * spec.slots + slot] += (dot / (d as f64).sqrt() - lse).exp() / per_out as f64;
        }
    }
    out.iter().map(|v| *v as f32).collect()
}

/// Both cache types and every reduction, on one slot to more than a tile.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for reduce in [Reduce::None, Reduce::KvHead, Reduce::Layer] {
            for (d, heads, kv_heads, chunk, seq, rotate, lens, caps) in [
                (16, 6, 2, 9, 1, false, [1, 250, 1], [2, 270, 2]),
                (64, 7, 7, 1, 0, false, [0, 1, 1], [1, 2, 2]),
                (128, 14, 2, 3, 2, false, [4, 4, 97], [9, 9, 128]),
                (24, 6, 2, 9, 1, true, [1, 150, 1], [2, 270, 2]),
                (256, 16, 1, 2, 1, true, [1, 90, 1], [2, 100, 2]),
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
                        separate: false,
                        row_seq_offset,
                        most_seen,
                        already_cached,
                        tuning: Tuning::GPU,
                    };
                    let (row, slots) = (chunk - 1, most_seen);
                    let spec = AttentionRowSpec { layer, row, slots, seq, reduce };
                    let rope = device_rope(d, 1e4, positions, device);
                    let q = device_floats(noise(chunk * heads * d, 11, 4.0), chunk, heads * d, device);
                    let kv = device_words(cache_words(dtype, builder.rows(1) * d), device);
                    let state = device_words(builder.build(), device);
                    let (_, lse) = attention(&q, &kv, &state, &rope, of_chunk);
                    vec![Check::floats(
                        "weights",
                        attention_row(&q, &lse, &kv, &state, &rope, spec),
                        Bound::Relative(1e-5),
                    )]
                }));
            }
        }
    }
    cases
}
