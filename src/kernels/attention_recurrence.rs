//! When each cached slot last mattered to a query, and the longest time between two such queries.
//!
//! Contract: rows `i < chunk` of each of the `seqs` sequences that the state lists from word `row_seq_offset` on (row
//! `s · chunk + i` of `q` and `lse`) stand at position `p_i`, the sequence's position plus `i`, and see the first
//! `L_i = length + i + 1` slots. The attention of row `i` to slot `j` of KV head `g` is `w[i, j] = mean_{h ∈ g}
//! exp(scale · q[i, h] · K[j] − lse[i, h])` for `j < L_i`. Each slot has a record of two words: the position `last`
//! of the latest row that had `w ≥ 1e-4`, and the longest interval `longest` between two such rows. For ascending
//! `i`, a row with `w ≥ 1e-4` sets `longest` to `max(longest, p_i − last)`, then `last` to `p_i`. The chunk's own
//! slots begin with the position before their own and no interval, whatever the buffer holds there, so a chunk that
//! was rolled back leaves nothing. The records lie in `records` as keys lie in the cache: `kv_heads · cap` records of
//! each sequence, from record `base / 2` on. Positions are counted modulo 2³². Source: LazyEviction (arXiv
//! 2506.15969) and its published code, whose threshold is 1e-4 as well; there, every query head has records of its
//! own.
//!
//! Bound: exact, where no attention is within 1e-4 of the threshold, relative to it: a record changes by a jump.
use super::cases::{Bound, Case, Check, StateBuilder, cache_words, device_floats, device_rope, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::twin::{Keys, dot, slice, slice_mut, widened};
use super::uniform::uniform;
use super::variant::Variant;
use super::{AttentionSpec, LayerSpec, attention, state};
use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{Int, Tensor};

/// Words of a slot's record.
pub const RECORD: usize = 2;
/// A slot matters to a query from this attention on.
const IMPORTANT: f64 = 1e-4;
/// Queries that a workgroup processes together.
const QUERIES: usize = 8;

/// Parameters of [`attention_recurrence`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecurrenceSpec {
    /// The layer that is read.
    pub layer: LayerSpec,
    /// Rows of each sequence.
    pub chunk: usize,
    /// Offset in the state, in words, of the list of the sequences.
    pub row_seq_offset: usize,
    /// Number of sequences.
    pub seqs: usize,
    /// The largest `length + chunk` of the sequences.
    pub slots: usize,
}

/// Updates the records of the slots with a chunk's queries, in place: two u32 words each.
pub fn attention_recurrence(
    q: &Tensor<2>,
    lse: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    records: Tensor<1, Int>,
    spec: RecurrenceSpec,
) -> Tensor<1, Int> {
    let [records] = run(&spec, [read(q), read(lse), read(kv), read(state), read(rope), records.into_dispatch()]);
    Tensor::from_dispatch(records)
}

uniform! {
    struct Info {
        chunk: u32, kv_heads: u32, row_seq_offset: u32, layer_table_offset: u32,
        slots: u32, positions: u32, scale: f32, pad0: u32,
    }
}

impl RecurrenceSpec {
    fn variant(&self) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("ROTATE", self.layer.compact as u32),
            ("G", self.layer.group() as u32),
            ("QB", QUERIES as u32),
        ];
        Variant::new::<Info>("attention_recurrence", include_str!("../../shaders/attention_recurrence.wgsl"), constants)
    }
}

impl Kernel<6, 1> for RecurrenceSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(5, "the records of the slots")];

    fn launch(&self, [q, lse, kv, state, rope, records]: [CubeTensor; 6]) -> [CubeTensor; 1] {
        let info = Info {
            chunk: self.chunk as u32,
            kv_heads: self.layer.kv_heads as u32,
            row_seq_offset: self.row_seq_offset as u32,
            layer_table_offset: self.layer.layer_table_offset as u32,
            slots: self.slots as u32,
            positions: self.layer.positions as u32,
            scale: self.layer.scale(),
            pad0: 0,
        };
        let groups = [self.slots.div_ceil(64), self.layer.kv_heads, self.seqs];
        launch(&self.variant(), groups, &[&q, &lse, &kv, &state, &rope, &records], info);
        [records]
    }

    fn twin(&self, [q, lse, kv, state, rope, mut records]: [FlexTensor; 6]) -> [FlexTensor; 1] {
        let into = slice_mut(&mut records);
        twin(slice(&q), slice(&lse), slice(&kv), slice(&state), slice(&rope), into, self);
        [records]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let spec = |layer| RecurrenceSpec { layer, chunk: 1, row_seq_offset: 0, seqs: 1, slots: 1 };
    (1..=16).flat_map(LayerSpec::usual).map(|layer| spec(layer).variant()).collect()
}

fn twin(q: &[f32], lse: &[f32], kv: &[u32], st: &[u32], rope: &[f32], records: &mut [u32], spec: &RecurrenceSpec) {
    each_slot(q, lse, kv, st, rope, spec, |record, position, own, weights| {
        let own = own.map(|offset| position.wrapping_add(offset).wrapping_sub(1));
        let (mut last, mut longest) = match own {
            Some(before) => (before, 0),
            None => (records[record * RECORD], records[record * RECORD + 1]),
        };
        for (i, weight) in weights {
            if weight >= IMPORTANT {
                let now = position.wrapping_add(i as u32);
                longest = longest.max(now.wrapping_sub(last));
                last = now;
            }
        }
        records[record * RECORD..][..RECORD].copy_from_slice(&[last, longest]);
    });
}

/// Calls `visit` for each slot with the number of its record, the position of the chunk's first row, for one of the
/// chunk's own slots its row, and the attention of the rows that see it.
fn each_slot(
    q: &[f32],
    lse: &[f32],
    kv: &[u32],
    st: &[u32],
    rope: &[f32],
    spec: &RecurrenceSpec,
    mut visit: impl FnMut(usize, u32, Option<u32>, Vec<(usize, f64)>),
) {
    let (d, group) = (spec.layer.d, spec.layer.group());
    let keys = Keys { kv, rope, layer: spec.layer };
    let q = widened(q);
    for s in 0..spec.seqs {
        let seq = st[spec.row_seq_offset + s] as usize;
        let entry = &st[spec.layer.layer_table_offset + seq * state::ROW..];
        let (base, cap, length) = (entry[state::BASE] as usize, entry[state::CAP] as usize, entry[state::LEN] as usize);
        let position = st[seq * state::SEQ + state::POSITION];
        let slots = spec.slots.min(length + spec.chunk).min(cap);
        for (kv_head, slot) in (0..spec.layer.kv_heads).flat_map(|h| (0..slots).map(move |s| (h, s))) {
            let key = keys.get(base + kv_head * cap + slot, slot);
            let attention = |i: usize| {
                let weight = |head: usize| {
                    let query = (s * spec.chunk + i) * spec.layer.heads + head;
                    (dot(&q[query * d..][..d], &key) / (d as f64).sqrt() - f64::from(lse[query])).exp()
                };
                (i, (kv_head * group..(kv_head + 1) * group).map(weight).sum::<f64>() / group as f64)
            };
            let weights = (slot.saturating_sub(length)..spec.chunk).map(attention).collect();
            visit(base / 2 + kv_head * cap + slot, position, slot.checked_sub(length).map(|i| i as u32), weights);
        }
    }
}

/// A case: dtype, head dimension, heads, KV heads, rows of a sequence, sequences, lengths, capacities.
type Shape = (usize, usize, usize, usize, &'static [usize], [usize; 3], [usize; 3]);

const SHAPES: [Shape; 5] = [
    (16, 6, 2, 9, &[1], [1, 250, 1], [2, 270, 2]),
    (64, 7, 7, 1, &[2, 0, 1], [0, 5, 130], [1, 9, 140]),
    (128, 14, 2, 3, &[2], [4, 4, 97], [9, 9, 128]),
    (8, 2, 1, 32, &[1], [3, 70, 1], [3, 110, 2]),
    (256, 4, 1, 5, &[1], [1, 80, 1], [2, 90, 2]),
];
/// The positions of the three sequences: with what was evicted, they are larger than the lengths.
const POSITIONS: [u32; 3] = [0, 300, 1000];
/// Queries this large make some attention fall below the threshold.
const QUERY_SIZE: f32 = 12.0;

struct Setting {
    state: Vec<u32>,
    spec: RecurrenceSpec,
    kv: Vec<u32>,
    q: Vec<f32>,
    /// Records of all sequences.
    records: usize,
}

fn setting(dtype: Dtype, (d, heads, kv_heads, chunk, of, lens, caps): Shape, compact: bool) -> Setting {
    let builder = StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps).positions(&POSITIONS).map(of);
    let layer = LayerSpec {
        dtype,
        d,
        heads,
        kv_heads,
        layer_table_offset: builder.layer_table_offset(1),
        positions: 300,
        compact,
    };
    let slots = of.iter().map(|s| lens[*s] + chunk).max().expect("a sequence");
    let spec = RecurrenceSpec { layer, chunk, row_seq_offset: builder.row_seq_offset(), seqs: of.len(), slots };
    let q = noise(of.len() * chunk * heads * d, 14, QUERY_SIZE);
    Setting {
        spec,
        q,
        kv: cache_words(dtype, builder.rows(1) * d),
        records: builder.rows(1) / 2,
        state: builder.build(),
    }
}

/// Records as earlier queries left them: the last position is up to 40 before `POSITIONS`, and the intervals are
/// short.
fn earlier(n: usize) -> Vec<u32> {
    (0..n as u32).flat_map(|i| [300 + i * 7 % 260, i * 5 % 12]).collect()
}

/// Both cache types, rotated keys and unrotated ones; a chunk, a decode step of three ragged sequences; groups of
/// query heads that end within a tile of queries and at its end.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for shape in SHAPES {
            for compact in [false, true] {
                let (d, heads, kv_heads, chunk, of, lens, _) = shape;
                let name = format!(
                    "{dtype:?} d {d} heads {heads}/{kv_heads} chunk {chunk} of {of:?} lens {lens:?} rotate {compact}"
                );
                cases.push(Case::new("attention_recurrence", name, move |device| {
                    let Setting { state, spec, kv, q, records } = setting(dtype, shape, compact);
                    let LayerSpec { d, heads, positions, .. } = spec.layer;
                    let n = spec.seqs * spec.chunk;
                    let attend = AttentionSpec {
                        layer: spec.layer,
                        n,
                        chunk: spec.chunk,
                        separate: false,
                        row_seq_offset: spec.row_seq_offset,
                        most_seen: spec.slots,
                        already_cached: 0,
                        tuning: Tuning::GPU,
                    };
                    let (q, kv) = (device_floats(q, n, heads * d, device), device_words(kv, device));
                    let (state, rope) = (device_words(state, device), device_rope(d, 1e4, positions, device));
                    let (_, lse) = attention(&q, &kv, &state, &rope, attend);
                    // The records of other sequences and those beyond the lengths must not change.
                    let before = device_words(earlier(records), device);
                    let after = attention_recurrence(&q, &lse, &kv, &state, &rope, before, spec);
                    vec![Check::u32("records", after, RECORD, Bound::Exact)]
                }));
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ComputeDevice;
    use crate::kernels::readback::{as_f32, read_f32};

    /// A key that is attended to, then not, then again. The records begin as a rolled-back chunk left them.
    #[test]
    fn an_interval_is_the_time_between_two_looks() {
        let d = 8;
        let layer = LayerSpec {
            dtype: Dtype::F32,
            d,
            heads: 1,
            kv_heads: 1,
            layer_table_offset: 16,
            positions: 1,
            compact: false,
        };
        let spec = RecurrenceSpec { layer, chunk: 4, row_seq_offset: 20, seqs: 1, slots: 5 };
        // One slot is cached already, four are new. Their keys are unit vectors of one axis each.
        let mut kv = vec![0u32; 2 * 5 * d];
        (0..5).for_each(|slot| kv[slot * d + slot] = 1f32.to_bits());
        let mut st = vec![0u32; 21];
        st[state::POSITION] = 100;
        st[16..19].copy_from_slice(&[1, 0, 5]);
        // Rows 0 and 3 attend to slot 0 only, rows 1 and 2 to slot 1 only: other keys get e^-40.
        let looked = [0, 1, 1, 0];
        let mut q = vec![0f32; 4 * d];
        looked.iter().enumerate().for_each(|(i, axis)| q[i * d + axis] = 40.0 * (d as f32).sqrt());
        let mut records = vec![90, 2, 7, 7, 7, 7, 7, 7, 7, 7];
        twin(&q, &[40.0; 4], &kv, &st, &[], &mut records, &spec);
        let expected = [
            [103, 10], // 100 − 90, then 103 − 100
            [102, 2],  // its own row, 100, does not attend to it: 101 − 99, then 1
            [100, 0],  // no query attends to it
            [101, 0],
            [102, 0],
        ];
        assert_eq!(records, expected.concat());
    }

    /// The bound holds if no attention of the cases is at the threshold. The cases have attention on either side of
    /// it.
    #[test]
    fn no_case_sits_on_the_threshold() {
        let cpu = ComputeDevice::cpu();
        for dtype in [Dtype::F32, Dtype::F16] {
            for (shape, compact) in SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
                let Setting { state, spec, kv, q, .. } = setting(dtype, shape, compact);
                let LayerSpec { d, heads, positions, .. } = spec.layer;
                let n = spec.seqs * spec.chunk;
                let attend = AttentionSpec {
                    layer: spec.layer,
                    n,
                    chunk: spec.chunk,
                    separate: false,
                    row_seq_offset: spec.row_seq_offset,
                    most_seen: spec.slots,
                    already_cached: 0,
                    tuning: Tuning::GPU,
                };
                let rope = device_rope(d, 1e4, positions, &cpu.burn);
                let (_, lse) = attention(
                    &device_floats(q.clone(), n, heads * d, &cpu.burn),
                    &device_words(kv.clone(), &cpu.burn),
                    &device_words(state.clone(), &cpu.burn),
                    &rope,
                    attend,
                );
                let rope: Vec<f32> = rope.into_data().try_to_vec().expect("floats");
                let lse = as_f32(&pollster::block_on(read_f32(&[&lse])).expect("readable")[0]);
                let (mut below, mut above) = (0, 0);
                each_slot(&q, &lse, &kv, &state, &rope, &spec, |_, _, _, weights| {
                    for (_, weight) in weights {
                        assert!((weight / IMPORTANT - 1.0).abs() > 1e-4, "{shape:?} {compact}: {weight}");
                        if weight < IMPORTANT { below += 1 } else { above += 1 }
                    }
                });
                assert!(below > 3 && above > 3, "{shape:?}: {below} below, {above} above");
            }
        }
    }
}
