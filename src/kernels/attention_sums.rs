//! The second pass over the attention of a chunk: the attention that each slot received from all queries of the
//! chunk.
//!
//! Contract: rows `i < chunk` of each of the `seqs` sequences that the state lists from word `row_seq_offset` on (row
//! `s · chunk + i` of `q` and `lse`) see the first `L_i = length − already_cached + i + 1` slots. With `w[i, h, j] =
//! exp(scale · q[i, h] · K[j] − lse[i, h])` for `j < L_i`, else 0, slot `j` of KV head `g` received `Σ_i mean_{h ∈ g}
//! w[i, h, j]`, summed in ascending `i`, then `h`.
//! `mean: false` adds this to the running sums of every slot below `length − already_cached + chunk`. They lie in
//! `sums` as keys lie in the cache: `kv_heads · cap` words for each sequence, from word `base / 2` on. The chunk's
//! own slots, those at or above `length − already_cached`, start from 0, not from what the buffer holds there, so a
//! chunk that was rolled back has no effect. `mean: true` stores this divided by `chunk`, in `sums` `[kv_heads,
//! slots]`,
//! for one sequence: with `already_cached = chunk`, this is the readout of the latest queries.
//! Source: H2O (arXiv 2306.14048) needs the sums, SnapKV (arXiv 2404.14469) and R-KV (arXiv 2505.24133) need the
//! readout.
//!
//! Bound: 1e-5 of 1 + the value: each weight's error is that of `attention_row`, 1e-5 of a weight, and a sum of n of
//! them in f32 adds √n roundings of 6e-8.
use super::cases::{Bound, Case, Check, StateBuilder, cache_words, device_floats, device_rope, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::POISON_WORD;
use super::twin::{Keys, dot, slice, slice_mut, widened};
use super::uniform::uniform;
use super::variant::Variant;
use super::{AttentionSpec, LayerSpec, attention, state};
use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{Int, Tensor};
use multiversion::multiversion;

/// Queries that a workgroup processes together.
const QUERIES: usize = 8;

/// Parameters of [`attention_sums`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSumsSpec {
    /// The layer that is read.
    pub layer: LayerSpec,
    /// Rows of each sequence.
    pub chunk: usize,
    /// Offset in the state, in words, of the list of the sequences.
    pub row_seq_offset: usize,
    /// Number of sequences; 1 with `mean`.
    pub seqs: usize,
    /// Slots at the end of each sequence that belong to the rows and are already counted in its length.
    pub already_cached: usize,
    /// The largest `length − already_cached + chunk` of the sequences; with `mean`, the slots of a row of the output.
    pub slots: usize,
    /// Whether the mean is stored instead of being added to running sums.
    pub mean: bool,
}

/// Adds the attention that each slot received from a chunk to `sums`, in place, or stores its mean there `[kv_heads,
/// slots]`: f32 in words.
pub fn attention_sums(
    q: &Tensor<2>,
    lse: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    sums: Tensor<1, Int>,
    spec: AttentionSumsSpec,
) -> Tensor<1, Int> {
    let [sums] = run(&spec, [read(q), read(lse), read(kv), read(state), read(rope), sums.into_dispatch()]);
    Tensor::from_dispatch(sums)
}

uniform! {
    struct Info {
        chunk: u32, kv_heads: u32, row_seq_offset: u32, layer_table_offset: u32,
        already_cached: u32, slots: u32, positions: u32, scale: f32,
    }
}

impl AttentionSumsSpec {
    fn variant(&self) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("ROTATE", self.layer.compact as u32),
            ("G", self.layer.group() as u32),
            ("QB", QUERIES as u32),
            ("MEAN", self.mean as u32),
        ];
        Variant::new::<Info>("attention_sums", include_str!("../../shaders/attention_sums.wgsl"), constants)
    }
}

impl Kernel<6, 1> for AttentionSumsSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(5, "the running sums")];

    fn launch(&self, [q, lse, kv, state, rope, sums]: [CubeTensor; 6]) -> [CubeTensor; 1] {
        let info = Info {
            chunk: self.chunk as u32,
            kv_heads: self.layer.kv_heads as u32,
            row_seq_offset: self.row_seq_offset as u32,
            layer_table_offset: self.layer.layer_table_offset as u32,
            already_cached: self.already_cached as u32,
            slots: self.slots as u32,
            positions: self.layer.positions as u32,
            scale: self.layer.scale(),
        };
        let groups = [self.slots.div_ceil(64), self.layer.kv_heads, self.seqs];
        launch(&self.variant(), groups, &[&q, &lse, &kv, &state, &rope, &sums], info);
        [sums]
    }

    fn twin(&self, [q, lse, kv, state, rope, mut sums]: [FlexTensor; 6]) -> [FlexTensor; 1] {
        let into = slice_mut(&mut sums);
        twin(slice(&q), slice(&lse), slice(&kv), slice(&state), slice(&rope), into, self);
        [sums]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let (row_seq_offset, already_cached) = (0, 0);
    let spec =
        |layer, mean| AttentionSumsSpec { layer, chunk: 1, row_seq_offset, seqs: 1, already_cached, slots: 1, mean };
    let layers = (1..=16).flat_map(LayerSpec::usual);
    layers.flat_map(|layer| [false, true].map(|mean| spec(layer, mean).variant())).collect()
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn twin(q: &[f32], lse: &[f32], kv: &[u32], st: &[u32], rope: &[f32], sums: &mut [u32], spec: &AttentionSumsSpec) {
    let (d, group) = (spec.layer.d, spec.layer.group());
    let keys = Keys { kv, rope, layer: spec.layer };
    let q = widened(q);
    let mut key = vec![0.0; d];
    for s in 0..spec.seqs {
        let entry = &st[spec.layer.layer_table_offset + st[spec.row_seq_offset + s] as usize * state::ROW..];
        let (base, cap) = (entry[state::BASE] as usize, entry[state::CAP] as usize);
        let length = entry[state::LEN] as usize - spec.already_cached;
        let written = spec.slots.min(length + spec.chunk).min(cap);
        for place in 0..spec.layer.kv_heads * written {
            let (kv_head, slot) = (place / written, place % written);
            keys.read(base + kv_head * cap + slot, slot, &mut key);
            let mut sum = 0f64;
            for i in slot.saturating_sub(length)..spec.chunk {
                for head in kv_head * group..(kv_head + 1) * group {
                    let query = (s * spec.chunk + i) * spec.layer.heads + head;
                    let dot = dot(&q[query * d..][..d], &key);
                    sum += (dot / (d as f64).sqrt() - lse[query] as f64).exp();
                }
            }
            sum /= group as f64;
            if spec.mean {
                sums[kv_head * spec.slots + slot] = ((sum / spec.chunk as f64) as f32).to_bits();
            } else {
                let at = base / 2 + kv_head * cap + slot;
                let before = if slot >= length { 0.0 } else { f32::from_bits(sums[at]) as f64 };
                sums[at] = ((before + sum) as f32).to_bits();
            }
        }
    }
}

/// Both cache types, rotated keys and unrotated ones; a prompt's chunk, a decode step of three ragged sequences, the
/// readout of the latest queries; one slot to more than a tile of slots and of queries.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for (d, heads, kv_heads, chunk, of, already_cached, lens, caps) in [
            (16, 6, 2, 9, vec![1], 0, [1, 250, 1], [2, 270, 2]),
            (64, 7, 7, 1, vec![2, 0, 1], 0, [0, 5, 130], [1, 9, 140]),
            (128, 14, 2, 3, vec![2], 3, [4, 4, 97], [9, 9, 128]),
            (8, 2, 1, 32, vec![1], 32, [3, 70, 1], [3, 70, 2]),
            (24, 4, 4, 1, vec![0], 1, [1, 1, 1], [1, 2, 3]),
            (256, 4, 1, 5, vec![1], 0, [1, 80, 1], [2, 90, 2]),
        ] {
            for rotate in [false, true] {
                let (mean, of) = (already_cached > 0, of.clone());
                let name = format!(
                    "{dtype:?} d {d} heads {heads}/{kv_heads} chunk {chunk} of {of:?} already cached {already_cached} lens {lens:?} rotate {rotate}"
                );
                cases.push(Case::new("attention_sums", name, move |device| {
                    let builder = StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps).map(&of);
                    let (row_seq_offset, layer_table_offset, seqs) =
                        (builder.row_seq_offset(), builder.layer_table_offset(1), of.len());
                    let slots = of.iter().map(|s| lens[*s] - already_cached + chunk).max().expect("a sequence");
                    let (n, positions) = (seqs * chunk, 300);
                    let layer = LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions, compact: rotate };
                    let attend = AttentionSpec {
                        layer,
                        n,
                        chunk,
                        separate: false,
                        row_seq_offset,
                        most_seen: slots,
                        already_cached,
                        tuning: Tuning::GPU,
                    };
                    let spec = AttentionSumsSpec { layer, chunk, row_seq_offset, seqs, already_cached, slots, mean };
                    let q = device_floats(noise(n * heads * d, 14, 4.0), n, heads * d, device);
                    let kv = device_words(cache_words(dtype, builder.rows(1) * d), device);
                    let state = device_words(builder.build(), device);
                    let rope = device_rope(d, 1e4, positions, device);
                    let (_, lse) = attention(&q, &kv, &state, &rope, attend);
                    // The running sums of other sequences and those beyond the lengths must not change.
                    let len = if mean { kv_heads * slots } else { builder.rows(1) / 2 };
                    let mut before: Vec<u32> = noise(len, 15, 3.0).iter().map(|v| v.abs().to_bits()).collect();
                    if mean {
                        before.fill(POISON_WORD);
                    }
                    let sums = attention_sums(&q, &lse, &kv, &state, &rope, device_words(before, device), spec);
                    vec![Check::u32("sums", sums, 1, Bound::FloatWords(1e-5))]
                }));
            }
        }
    }
    cases
}
