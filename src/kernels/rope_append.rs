//! Per-head normalisation (Qwen3) and RoPE of queries and keys, and the append of keys and values to the cache.
//!
//! Contract: row `i` of `qkv` `[n, (heads + 2 kv_heads) D]` (queries, keys, values side by side) is token `i % chunk`
//! of the sequence that `state[row_seq_offset + i / chunk]` names. Its logical position is the sequence's position
//! plus `i % chunk`; its slot is the layer's length plus `i % chunk`. The two numbers differ from the first eviction
//! on. With `norm`, each head of queries and keys is first RMS-normalised over its `D` values and weighted by `norm`
//! `[2, D]` (queries', then keys'). Then queries and keys are rotated in the rotate-half form of HF Llama and Qwen
//! weights. `rope` `[positions, D]` holds cosines, then sines, computed in f64 and stored in f32, because `cos` in a
//! shader is off by 1.8e-3 at position 30,000. The kernel writes `q` `[n, heads D]` and, in place, row `slot` of the
//! key and value planes of `kv` (layout: [`cache`](crate::expert::cache)). A slot beyond the capacity is not written.
//! With `compact`, the position is the slot, and keys are stored unrotated. They are rotated when they are read, so a
//! gather can change their position without rounding them again.
//!
//! Bound: queries 3e-7 relative to the row's largest value (two products and a sum, with or without fma), or 2e-6 if
//! they are normalised (a sum of squares and a square root more). f32 keys have the same bound. f16 keys may differ
//! by one unit in the last place, where the f32 values straddle a rounding boundary. Values are exact.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_rope, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::twin::{floats, slice, slice_mut};
use super::uniform::uniform;
use super::variant::Variant;
use super::{LayerSpec, f16_bits, f32_tensor, state};
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Parameters of [`rope_append`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeAppendSpec {
    /// The layer that is appended to.
    pub layer: LayerSpec,
    /// Rows of the chunk, all sequences together.
    pub n: usize,
    /// Rows of each sequence.
    pub chunk: usize,
    /// Offset in the state, in words, of the list of the rows' sequences.
    pub row_seq_offset: usize,
    /// The ε that queries and keys are normalised with. Without it, the tensor of norms is bound but not read.
    pub norm: Option<f32>,
}

/// Normalises (by `norm` `[2 D]`, if the spec says so) and rotates queries and keys, and appends keys and values to
/// `kv` in place. Returns the queries `[n, heads D]` and `kv`.
pub fn rope_append(
    qkv: Tensor<2>,
    rope: &Tensor<1>,
    state: &Tensor<1, Int>,
    kv: Tensor<1, Int>,
    norm: &Tensor<1>,
    spec: RopeAppendSpec,
) -> (Tensor<2>, Tensor<1, Int>) {
    let [q, kv] = run(&spec, [qkv.into_dispatch(), read(rope), read(state), kv.into_dispatch(), read(norm)]);
    (Tensor::from_dispatch(q), Tensor::from_dispatch(kv))
}

uniform! {
    struct Info {
        n: u32, heads: u32, kv_heads: u32, chunk: u32,
        row_seq_offset: u32, layer_table_offset: u32, positions: u32, eps: f32,
    }
}

impl RopeAppendSpec {
    fn variant(&self) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("NORM", self.norm.is_some() as u32),
            ("COMPACT", self.layer.compact as u32),
        ];
        Variant::new::<Info>("rope_append", include_str!("../../shaders/rope_append.wgsl"), constants)
    }
}

impl Kernel<5, 2> for RopeAppendSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(3, "the KV cache")];

    fn launch(&self, [qkv, rope, state, kv, norm]: [CubeTensor; 5]) -> [CubeTensor; 2] {
        let LayerSpec { d, heads, kv_heads, layer_table_offset, positions, .. } = self.layer;
        let q = empty(&qkv, vec![self.n, heads * d], DType::F32);
        let info = Info {
            n: self.n as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            chunk: self.chunk as u32,
            row_seq_offset: self.row_seq_offset as u32,
            layer_table_offset: layer_table_offset as u32,
            positions: positions as u32,
            eps: self.norm.unwrap_or(0.0),
        };
        let groups = [(heads + 2 * kv_heads).div_ceil(64 / (d / 4)), self.n, 1];
        launch(&self.variant(), groups, &[&qkv, &rope, &state, &kv, &q, &norm], info);
        [q, kv]
    }

    fn twin(&self, [qkv, rope, state, mut kv, norm]: [FlexTensor; 5]) -> [FlexTensor; 2] {
        let q = twin(slice(&qkv), slice(&rope), slice(&state), slice_mut(&mut kv), slice(&norm), self);
        [floats(q, [self.n, self.layer.heads * self.layer.d]), kv]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let spec = |layer, norm| RopeAppendSpec { layer, n: 1, chunk: 1, row_seq_offset: 0, norm };
    LayerSpec::usual(1).flat_map(|layer| [None, Some(1e-6)].map(|norm| spec(layer, norm).variant())).collect()
}

fn twin(qkv: &[f32], rope: &[f32], st: &[u32], kv: &mut [u32], norm: &[f32], spec: &RopeAppendSpec) -> Vec<f32> {
    let (d, half) = (spec.layer.d, spec.layer.d / 2);
    let all_heads = spec.layer.heads + 2 * spec.layer.kv_heads;
    let row_words = spec.layer.dtype.row_words(d);
    let mut q = Vec::with_capacity(spec.n * spec.layer.heads * d);
    for i in 0..spec.n {
        let (seq, offset) = (st[spec.row_seq_offset + i / spec.chunk] as usize, i % spec.chunk);
        let entry = &st[spec.layer.layer_table_offset + seq * state::ROW..];
        let (slot, cap) = (entry[state::LEN] as usize + offset, entry[state::CAP] as usize);
        let logical = st[seq * state::SEQ + state::POSITION] as usize + offset;
        let position = if spec.layer.compact { slot } else { logical }.min(spec.layer.positions - 1);
        let angles = &rope[position * d..(position + 1) * d];
        for head in 0..all_heads {
            let row = &qkv[(i * all_heads + head) * d..][..d];
            let mut row: Vec<f64> = row.iter().map(|v| *v as f64).collect();
            if let Some(eps) = spec.norm
                && head < spec.layer.heads + spec.layer.kv_heads
            {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / d as f64;
                let scale = 1.0 / (mean + eps as f64).sqrt();
                let weights = &norm[if head < spec.layer.heads { 0 } else { d }..][..d];
                row.iter_mut().zip(weights).for_each(|(v, w)| *v *= scale * *w as f64);
            }
            let mut rotated: Vec<f32> = row.iter().map(|v| *v as f32).collect();
            if head < spec.layer.heads + if spec.layer.compact { 0 } else { spec.layer.kv_heads } {
                for c in 0..half {
                    let (a, b) = (row[c], row[c + half]);
                    let (cos, sin) = (angles[c] as f64, angles[c + half] as f64);
                    rotated[c] = (a * cos - b * sin) as f32;
                    rotated[c + half] = (b * cos + a * sin) as f32;
                }
            }
            if head < spec.layer.heads {
                q.extend(rotated);
            } else if slot < cap {
                let at = (entry[state::BASE] as usize + (head - spec.layer.heads) * cap + slot) * row_words;
                let words = spec.layer.dtype.pack(&rotated);
                kv[at..at + row_words].copy_from_slice(&words);
            }
        }
    }
    debug_assert_eq!(f16_bits(65520.0), 0x7bff, "the packer saturates");
    q
}

/// Both cache types, with and without norms; one token of three ragged sequences; a chunk of one sequence; a slot
/// beyond the capacity; far positions; head dimensions that fill no workgroup.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for (d, heads, kv_heads, n, chunk, seqs, lens, caps, norm, compact) in [
            // A prompt of the built-in model, as in `attention`.
            (32, 4, 2, 9, 9, vec![1], [3, 2, 0], [8, 16, 1], None, false),
            (16, 6, 2, 3, 1, vec![2, 0, 1], [5, 0, 9], [7, 4, 10], None, false),
            (64, 2, 1, 7, 7, vec![1], [3, 2, 0], [8, 16, 1], None, false),
            (128, 7, 1, 2, 1, vec![1, 2], [0, 4, 4], [1, 9, 4], None, false),
            (8, 1, 1, 1, 1, vec![2], [1, 1, 1], [3, 3, 3], None, false),
            (128, 5, 1, 3, 1, vec![0, 1, 2], [5, 0, 9], [7, 4, 10], Some(1e-6), false),
            (80, 4, 2, 7, 7, vec![1], [3, 2, 0], [8, 16, 1], Some(1e-3), false),
            (24, 9, 3, 2, 2, vec![0], [0, 4, 4], [1, 9, 4], Some(1e-6), false),
            (64, 2, 1, 7, 7, vec![1], [3, 2, 0], [8, 16, 1], None, true),
            (16, 6, 2, 3, 1, vec![0, 1, 2], [5, 0, 9], [7, 4, 10], Some(1e-6), true),
            (256, 3, 1, 2, 2, vec![0], [3, 4, 4], [9, 9, 4], Some(1e-6), false),
        ] {
            let name = format!(
                "{dtype:?} d {d} heads {heads}/{kv_heads} n {n} chunk {chunk} of {seqs:?} norm {} compact {compact}",
                norm.is_some()
            );
            cases.push(Case::new("rope_append", name, move |device| {
                let positions = 40;
                let builder =
                    StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps).positions(&[30, 11, 39]).map(&seqs);
                let (row_seq_offset, layer_table_offset) = (builder.row_seq_offset(), builder.layer_table_offset(1));
                let layer = LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions, compact };
                let spec = RopeAppendSpec { layer, n, chunk, row_seq_offset, norm };
                let weights: Vec<f32> = noise(2 * d, 10, 0.5).iter().map(|w| 1.0 + w).collect();
                let weights = f32_tensor(weights, [2 * d], device);
                let qkv =
                    device_floats(noise(n * (heads + 2 * kv_heads) * d, 9, 3.0), n, (heads + 2 * kv_heads) * d, device);
                let rows = builder.rows(1);
                let row_words = dtype.row_words(d);
                let kv = device_words((0..rows * row_words).map(|i| 0x7000_0000 + i as u32).collect(), device);
                let rope = device_rope(d, 1e6, positions, device);
                let (q, kv) = rope_append(qkv, &rope, &device_words(builder.build(), device), kv, &weights, spec);
                let bound = match dtype {
                    Dtype::F16 => Bound::HalfUlps(1),
                    _ => Bound::FloatWords(if norm.is_some() { 4e-6 } else { 1e-6 }),
                };
                let q_bound = Bound::Relative(if norm.is_some() { 2e-6 } else { 3e-7 });
                vec![Check::floats("q", q, q_bound), Check::u32("kv", kv, row_words, bound)]
            }));
        }
    }
    cases
}
