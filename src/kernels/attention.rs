//! Causal attention of a chunk over the cached slots.
//!
//! Contract: row `i` is token `i % chunk` of the sequence that `state[row_seq_offset + i / chunk]` names. It sees the
//! first `L = length − already_cached + i % chunk + 1` slots of its sequence: the chunk's own keys were appended
//! before, and `already_cached` of them are counted in the length. For query head `h`, with `s_j = scale · q[i, h] ·
//! K[j]` over those slots:
//! `out[i, h, :] = Σ_j softmax(s)_j V[j]` and `lse[i, h] = ln Σ_j exp(s_j)`, which the readout and second passes
//! need. `q` `[n, heads D]` is rotated, `scale = 1/√D`. Grouped queries: head `h` reads KV head `h / (heads /
//! kv_heads)`. `chunk > 1` takes one sequence, unless the rows are `separate`.
//! Scores are never stored outside a workgroup.
//! The order of summation depends on `L` and, in a chunk whose rows are not separate, on the chunk's length. It never
//! depends on the capacity or on other sequences.
//!
//! Bound: values 4e-6 relative to the row's largest value, log-sum-exp 4e-6 · (1 + |lse|): f32 dot products of D
//! terms in the exponent, where scores of ordinary size (|s| < 30) carry an absolute error of ~2e-6.
use super::cases::{Bound, Case, Check, StateBuilder, cache_words, device_floats, device_rope, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::twin::{Keys, dot, floats, slice, widened};
use super::uniform::uniform;
use super::variant::Variant;
use super::{LayerSpec, state};
use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};
use multiversion::multiversion;

/// Slots of a tile.
const TILE: usize = 256;
/// Slots of a tile when a GPU decodes or probes: short tiles make many workgroups.
const SHORT_TILE: usize = 64;
/// Query heads of a workgroup that decodes on a GPU. More heads would leave most of the GPU idle; with fewer, keys
/// and values would be read more often.
const GPU_HEADS: usize = 2;
/// The most rows for which a chunk's slots are split on a GPU: the size of a probe. More rows fill the GPU without
/// splits.
pub(super) const SPLIT_ROWS: usize = 64;
/// The most splits of a chunk's slots. It bounds the size of the partial results.
const CHUNK_SPLITS: usize = 16;

/// Parameters of [`attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// The layer that is read.
    pub layer: LayerSpec,
    /// Rows of the chunk, all sequences together.
    pub n: usize,
    /// Rows of each sequence; with more than one, `n == chunk` unless they are `separate`.
    pub chunk: usize,
    /// Whether each row is computed as the only one of its sequence is: the same bits as in a decode step that
    /// forwards this token alone.
    pub separate: bool,
    /// Offset in the state, in words, of the list of the rows' sequences.
    pub row_seq_offset: usize,
    /// The largest `length − already_cached + chunk` of the sequences, or more where rows are computed alone. It
    /// bounds the number of splits.
    pub most_seen: usize,
    /// Slots at the end of each sequence that belong to the rows and are already counted in its length: 0, or `chunk`
    /// for a second pass over the latest tokens.
    pub already_cached: usize,
    /// Tiling for the device.
    pub tuning: Tuning,
}

/// Attention of a chunk over the cache. Returns the values `[n, heads D]` and the log-sum-exp `[n, heads]`.
pub fn attention(
    q: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    spec: AttentionSpec,
) -> (Tensor<2>, Tensor<2>) {
    let [out, lse] = run(&spec, [read(q), read(kv), read(state), read(rope)]);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

uniform! {
    struct Info {
        n: u32, heads: u32, kv_heads: u32, chunk: u32,
        row_seq_offset: u32, layer_table_offset: u32, heads_per_group: u32, splits: u32,
        tiles_per_split: u32, scale: f32, already_cached: u32, positions: u32,
    }
}

uniform! {
    struct CombineInfo {
        n: u32, heads: u32, chunk: u32, row_seq_offset: u32,
        layer_table_offset: u32, splits: u32, slots_per_split: u32, already_cached: u32,
    }
}

impl AttentionSpec {
    /// Whether each row is computed without the others.
    fn alone(&self) -> bool {
        self.separate || self.chunk == 1
    }

    fn tile(&self) -> usize {
        if self.tuning.is_cpu() || self.chunk > SPLIT_ROWS { TILE } else { SHORT_TILE }
    }

    /// Invocations of a workgroup: each sums two columns of the values.
    fn threads(&self) -> usize {
        if self.layer.d > 128 { 128 } else { 64 }
    }

    /// The most queries of a workgroup, whose memory must hold them.
    fn most_queries(&self) -> usize {
        if self.layer.d > 128 { 4 } else { 8 }
    }

    /// Query heads of one workgroup: the largest divisor of the group that fits. It must not depend on the other
    /// sequences.
    fn heads_per_group(&self) -> usize {
        let most = if !self.alone() || self.tuning.is_cpu() { self.most_queries() } else { GPU_HEADS };
        (1..=most).rev().find(|h| self.layer.group().is_multiple_of(*h)).expect("1 divides")
    }

    /// Rows of one workgroup: one when decoding, and as many rows of a chunk as fit.
    fn rows_per_group(&self) -> usize {
        if self.alone() { 1 } else { (self.most_queries() / self.heads_per_group()).min(self.chunk) }
    }

    /// Parts that the slots are split into, each with workgroups of its own.
    fn splits(&self) -> usize {
        self.most_seen.div_ceil(self.tile() * self.tiles_per_split())
    }

    /// Bytes of the partial results of the splits, which a second pass combines; 0 if there is one split.
    pub(crate) fn partial_bytes(&self) -> u64 {
        match self.splits() {
            1 => 0,
            splits => [self.layer.heads, splits, self.layer.d + 2, 4].iter().fold(self.n as u64, |b, &x| b * x as u64),
        }
    }

    /// Tiles of a split: one when decoding, so that the other sequences do not change how a sequence is split. A
    /// chunk has no other sequences beside it; if its rows fill the device, a single split has all its tiles.
    fn tiles_per_split(&self) -> usize {
        let tiles = self.most_seen.div_ceil(self.tile());
        match self.alone() {
            true => 1,
            false if self.tuning.is_cpu() || self.chunk > SPLIT_ROWS => tiles,
            false => tiles.div_ceil(CHUNK_SPLITS),
        }
    }

    fn variant(&self) -> Variant {
        let constants = [
            ("THREADS", self.threads() as u32),
            ("TILE", self.tile() as u32),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("ROTATE", self.layer.compact as u32),
            ("QB", (self.heads_per_group() * self.rows_per_group()) as u32),
            ("DIRECT", (self.splits() == 1) as u32),
        ];
        Variant::new::<Info>("attention", include_str!("../../shaders/attention.wgsl"), constants)
    }

    fn combine_variant(&self) -> Variant {
        let constants = [("THREADS", self.threads() as u32), ("D", self.layer.d as u32)];
        let text = include_str!("../../shaders/attention_combine.wgsl");
        Variant::new::<CombineInfo>("attention_combine", text, constants)
    }
}

impl Kernel<4, 2> for AttentionSpec {
    fn launch(&self, [q, kv, state, rope]: [CubeTensor; 4]) -> [CubeTensor; 2] {
        let LayerSpec { d, heads, kv_heads, layer_table_offset, positions, .. } = self.layer;
        let splits = self.splits();
        let info = Info {
            n: self.n as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            chunk: self.chunk as u32,
            row_seq_offset: self.row_seq_offset as u32,
            layer_table_offset: layer_table_offset as u32,
            heads_per_group: self.heads_per_group() as u32,
            splits: splits as u32,
            tiles_per_split: self.tiles_per_split() as u32,
            scale: self.layer.scale(),
            already_cached: self.already_cached as u32,
            positions: positions as u32,
        };
        let groups = [splits, heads / self.heads_per_group(), self.n.div_ceil(self.rows_per_group())];
        let out = empty(&q, vec![self.n, heads * d], DType::F32);
        let lse = empty(&q, vec![self.n, heads], DType::F32);
        if splits == 1 {
            launch(&self.variant(), groups, &[&q, &kv, &state, &out, &lse, &rope], info);
            return [out, lse];
        }
        let partials = empty(&q, vec![self.n * heads * splits, d + 2], DType::F32);
        launch(&self.variant(), groups, &[&q, &kv, &state, &partials, &lse, &rope], info);
        let info = CombineInfo {
            n: self.n as u32,
            heads: heads as u32,
            chunk: self.chunk as u32,
            row_seq_offset: self.row_seq_offset as u32,
            layer_table_offset: layer_table_offset as u32,
            splits: splits as u32,
            slots_per_split: (self.tile() * self.tiles_per_split()) as u32,
            already_cached: self.already_cached as u32,
        };
        launch(&self.combine_variant(), [heads, self.n, 1], &[&partials, &state, &out, &lse], info);
        [out, lse]
    }

    fn twin(&self, [q, kv, state, rope]: [FlexTensor; 4]) -> [FlexTensor; 2] {
        let (out, lse) = twin(slice(&q), slice(&kv), slice(&state), slice(&rope), self);
        [floats(out, [self.n, self.layer.heads * self.layer.d]), floats(lse, [self.n, self.layer.heads])]
    }
}

/// Groups of one to sixteen query heads; one split and several; decoding, a probe and a prompt's chunk.
pub(super) fn variants() -> Vec<Variant> {
    let mut list = Vec::new();
    for (layer, tuning) in (1..=16).flat_map(LayerSpec::usual).flat_map(|l| [(l, Tuning::CPU), (l, Tuning::GPU)]) {
        for (n, most_seen) in [(1, 1), (1, 1000), (64, 64), (64, 1000), (200, 200)] {
            let (row_seq_offset, already_cached) = (0, 0);
            let spec = AttentionSpec {
                layer,
                n,
                chunk: n,
                separate: false,
                row_seq_offset,
                most_seen,
                already_cached,
                tuning,
            };
            list.extend([spec.variant(), spec.combine_variant()]);
        }
    }
    list
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn twin(q: &[f32], kv: &[u32], st: &[u32], rope: &[f32], spec: &AttentionSpec) -> (Vec<f32>, Vec<f32>) {
    let stored = Keys { kv, rope, layer: spec.layer };
    let d = spec.layer.d;
    let scale = 1.0 / (d as f64).sqrt();
    let (mut out, mut lse) = (Vec::with_capacity(q.len()), Vec::with_capacity(spec.n * spec.layer.heads));
    let q = widened(q);
    // The keys and the values of the KV heads, `[head][slot][component]`, read once for all queries of a sequence's
    // chunk.
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (mut powers, mut sum) = (Vec::new(), vec![0f64; d]);
    let mut most = 0;
    for i in 0..spec.n {
        let (seq, offset) = (st[spec.row_seq_offset + i / spec.chunk] as usize, i % spec.chunk);
        let entry = &st[spec.layer.layer_table_offset + seq * state::ROW..];
        let cap = entry[state::CAP] as usize;
        let seen_from = |offset: usize| (entry[state::LEN] as usize - spec.already_cached + offset + 1).min(cap);
        let seen = seen_from(offset);
        if offset == 0 {
            most = seen_from(spec.chunk - 1);
            let base = |head: usize| entry[state::BASE] as usize + head * cap;
            for rows in [&mut keys, &mut values] {
                rows.clear();
                rows.reserve_exact(spec.layer.kv_heads * most * d);
                rows.resize(spec.layer.kv_heads * most * d, 0.0);
            }
            powers.clear();
            powers.reserve_exact(most);
            for head in 0..spec.layer.kv_heads {
                for slot in 0..most {
                    let at = (head * most + slot) * d;
                    stored.read(base(head) + slot, slot, &mut keys[at..at + d]);
                    stored.read_stored(base(spec.layer.kv_heads + head) + slot, &mut values[at..at + d]);
                }
            }
        }
        for head in 0..spec.layer.heads {
            let first = head / spec.layer.group() * most * d;
            let (keys, values) = (&keys[first..][..seen * d], &values[first..][..seen * d]);
            let query = &q[(i * spec.layer.heads + head) * d..][..d];
            powers.clear();
            let mut top = f64::MIN;
            for slot in 0..seen {
                let score = dot(query, &keys[slot * d..][..d]) * scale;
                top = top.max(score);
                powers.push(score);
            }
            let mut total = 0.0;
            for power in &mut powers {
                *power = (*power - top).exp();
                total += *power;
            }
            sum.fill(0.0);
            for (slot, power) in powers.iter().enumerate() {
                let (weight, value) = (power / total, &values[slot * d..][..d]);
                for (c, sum) in sum.iter_mut().enumerate() {
                    *sum += weight * value[c];
                }
            }
            out.extend(sum.iter().map(|v| *v as f32));
            lse.push((top + total.ln()) as f32);
        }
    }
    (out, lse)
}

/// Both cache types; one slot to several splits; ragged sequences; chunks that end inside a tile; groups of 1 to 12;
/// keys stored unrotated; a second pass; rows of two sequences that are computed separately.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        let together = [
            // A prompt of the built-in model: a short test that takes the first case compiles what that model needs.
            (32, 4, 2, 9, 9, vec![1], 0, false, [1, 250, 1], [2, 270, 2]),
            (16, 6, 2, 3, 1, vec![1, 2, 0], 0, false, [0, 7, 300], [4, 8, 301]),
            (64, 4, 4, 1, 1, vec![1], 0, false, [9, 255, 9], [16, 256, 16]),
            (64, 8, 2, 1, 1, vec![1], 0, false, [9, 256, 9], [16, 320, 16]),
            (128, 7, 1, 2, 1, vec![1, 2], 0, false, [3, 600, 511], [4, 601, 700]),
            (128, 6, 1, 31, 31, vec![1], 0, false, [3, 2120, 5], [4, 2160, 6]),
            (128, 1, 1, 65, 65, vec![1], 0, false, [3, 8100, 5], [4, 8200, 6]),
            (64, 4, 2, 1, 1, vec![1], 0, false, [3, 4500, 5], [4, 4600, 6]),
            (32, 12, 1, 1, 1, vec![0], 0, false, [777, 0, 0], [1024, 1, 1]),
            (16, 6, 2, 9, 9, vec![1], 0, false, [1, 250, 1], [2, 270, 2]),
            (64, 7, 7, 31, 31, vec![0], 0, false, [0, 1, 1], [31, 2, 2]),
            (128, 4, 2, 5, 5, vec![2], 0, false, [1, 1, 510], [2, 2, 640]),
            (8, 2, 1, 70, 70, vec![1], 0, false, [1, 513, 1], [2, 600, 2]),
            // Keys rotated as they are read; a second pass over the latest tokens.
            (16, 6, 2, 3, 1, vec![0, 2, 1], 0, true, [0, 7, 300], [4, 8, 301]),
            (128, 4, 2, 5, 5, vec![2], 0, true, [1, 1, 510], [2, 2, 640]),
            (24, 4, 2, 8, 8, vec![1], 8, true, [1, 300, 1], [2, 320, 2]),
            (64, 7, 7, 32, 32, vec![0], 32, false, [32, 1, 1], [33, 2, 2]),
            (64, 8, 2, 1, 1, vec![1], 1, false, [9, 258, 9], [16, 320, 16]),
            // Wide heads.
            (256, 8, 1, 2, 1, vec![1, 2], 0, false, [3, 600, 511], [4, 601, 700]),
            (192, 6, 2, 9, 9, vec![1], 0, true, [1, 250, 1], [2, 270, 2]),
            (256, 5, 5, 70, 70, vec![0], 0, false, [290, 1, 1], [400, 2, 2]),
        ];
        // Steps with drafts: three and four rows of each sequence.
        let separate = [
            (64, 6, 2, 6, 3, vec![2, 0], 0, false, [63, 7, 254], [80, 8, 300]),
            (128, 7, 1, 4, 4, vec![1], 0, true, [3, 600, 511], [4, 640, 700]),
        ];
        let shapes = together.map(|shape| (false, shape)).into_iter().chain(separate.map(|shape| (true, shape)));
        for (separate, (d, heads, kv_heads, n, chunk, seqs, already_cached, rotate, lens, caps)) in shapes {
            for tuning in [Tuning::CPU, Tuning::GPU] {
                let (seqs, name) = (
                    seqs.clone(),
                    format!(
                        "{dtype:?} d {d} heads {heads}/{kv_heads} n {n} chunk {chunk} lens {lens:?} of {seqs:?} already cached {already_cached} rotate {rotate} {:?}",
                        tuning.kind
                    ),
                );
                let case = Case::new("attention", name, move |device| {
                    let builder = StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps).map(&seqs);
                    let most_seen = seqs.iter().map(|seq| lens[*seq] - already_cached + chunk).max().expect("n > 0");
                    let (row_seq_offset, layer_table_offset, positions) =
                        (builder.row_seq_offset(), builder.layer_table_offset(1), 800);
                    let layer = LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions, compact: rotate };
                    let spec =
                        AttentionSpec { layer, n, chunk, separate, row_seq_offset, most_seen, already_cached, tuning };
                    let rope = device_rope(d, 1e4, positions, device);
                    let q = device_floats(noise(n * heads * d, 10, 4.0), n, heads * d, device);
                    let kv = device_words(cache_words(dtype, builder.rows(1) * d), device);
                    let (out, lse) = attention(&q, &kv, &device_words(builder.build(), device), &rope, spec);
                    vec![
                        Check::floats("out", out, Bound::Relative(4e-6)),
                        Check::floats("lse", lse, Bound::Mixed(4e-6)),
                    ]
                });
                cases.push(case.tiled_for(tuning.kind));
            }
        }
    }
    cases
}
