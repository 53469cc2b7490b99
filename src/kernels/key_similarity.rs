//! How similar each cached key is to the others of its KV head. The keys stay on the device.
//!
//! Contract: let `c(i, j)` be the cosine of the angle between the keys of slots `i` and `j` of sequence `seq`,
//! rotated; a key of length 0 has cosine 0 to all others. Let `latest(i)` be the last slot `j ≠ i` with `c(i, j) >
//! 0.5`, if there is one.
//! `out[g, j] = 1/n · Σ_{i ≠ j, latest(i) ≠ j} c(i, j)` over the `n = slots` cached slots, for each KV head `g`. So
//! every key leaves its latest look-alike out of the sum, and the last of a group of copies counts as the least
//! redundant. Source:
//! R-KV (arXiv 2505.24133) and its published code, whose threshold is 0.5. In that code a key without look-alikes
//! leaves out slot 0; here it leaves out none.
//!
//! Bound: 4e-6 absolute, a mean of cosines that are each off by ~√D · 6e-8. It holds where no cosine is within 1e-6
//! of the threshold: which of two look-alikes is the latest changes by a jump.
use super::cases::{Bound, Case, Check, StateBuilder, device_rope, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::twin::{Keys, dot, floats, slice};
use super::uniform::uniform;
use super::variant::Variant;
use super::{LayerSpec, state};
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Keys are look-alikes above this cosine.
const ALIKE: f64 = 0.5;

/// Parameters of [`key_similarity`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeySimilaritySpec {
    /// The layer that is read.
    pub layer: LayerSpec,
    /// Cached slots of the sequence.
    pub slots: usize,
    /// Number of the sequence.
    pub seq: usize,
}

/// The similarity of each cached key to the others: `[kv_heads, slots]`.
pub fn key_similarity(
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    spec: KeySimilaritySpec,
) -> Tensor<2> {
    let [out] = run(&spec, [read(kv), read(state), read(rope)]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info {
        kv_heads: u32, slots: u32, seq: u32, layer_table_offset: u32, positions: u32, pad0: u32, pad1: u32, pad2: u32,
    }
}

impl KeySimilaritySpec {
    fn variant(&self, pass: u32) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("ROTATE", self.layer.compact as u32),
            ("PASS", pass),
        ];
        Variant::new::<Info>("key_similarity", include_str!("../../shaders/key_similarity.wgsl"), constants)
    }
}

impl Kernel<3, 1> for KeySimilaritySpec {
    fn launch(&self, [kv, state, rope]: [CubeTensor; 3]) -> [CubeTensor; 1] {
        let kv_heads = self.layer.kv_heads;
        let latest = empty(&kv, vec![kv_heads * self.slots], DType::U32);
        let out = empty(&kv, vec![kv_heads, self.slots], DType::F32);
        let info = Info {
            kv_heads: kv_heads as u32,
            slots: self.slots as u32,
            seq: self.seq as u32,
            layer_table_offset: self.layer.layer_table_offset as u32,
            positions: self.layer.positions as u32,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        let groups = [self.slots.div_ceil(64), kv_heads, 1];
        for pass in [0, 1] {
            launch(&self.variant(pass), groups, &[&kv, &state, &rope, &latest, &out], info);
        }
        [out]
    }

    fn twin(&self, [kv, state, rope]: [FlexTensor; 3]) -> [FlexTensor; 1] {
        let out = twin(slice(&kv), slice(&state), slice(&rope), self);
        [floats(out, [self.layer.kv_heads, self.slots])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let passes = |layer| [0, 1].map(|pass| KeySimilaritySpec { layer, slots: 1, seq: 0 }.variant(pass));
    LayerSpec::usual(1).flat_map(passes).collect()
}

fn twin(kv: &[u32], st: &[u32], rope: &[f32], spec: &KeySimilaritySpec) -> Vec<f32> {
    let keys = Keys { kv, rope, layer: spec.layer };
    let entry = &st[spec.layer.layer_table_offset + spec.seq * state::ROW..];
    let (base, cap) = (entry[state::BASE] as usize, entry[state::CAP] as usize);
    let n = spec.slots.min(cap);
    let mut out = vec![f32::from_bits(super::memory::POISON_WORD); spec.layer.kv_heads * spec.slots];
    for head in 0..spec.layer.kv_heads {
        let unit = |slot: usize| {
            let key = keys.get(base + head * cap + slot, slot);
            let shrink = 1.0 / (key.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-8);
            key.into_iter().map(|v| v * shrink).collect::<Vec<f64>>()
        };
        let units: Vec<Vec<f64>> = (0..n).map(unit).collect();
        let cosines: Vec<Vec<f64>> = units.iter().map(|a| units.iter().map(|b| dot(a, b)).collect()).collect();
        let cosine = |i: usize, j: usize| cosines[i][j];
        let latest: Vec<Option<usize>> =
            (0..n).map(|i| (0..n).rev().find(|j| *j != i && cosine(i, *j) > ALIKE)).collect();
        for j in 0..n {
            let sum: f64 = (0..n).filter(|i| *i != j && latest[*i] != Some(j)).map(|i| cosine(i, j)).sum();
            out[head * spec.slots + j] = (sum / n as f64) as f32;
        }
    }
    out
}

/// Noisy copies of a few keys: each head has groups of look-alikes.
fn alike(dtype: Dtype, rows: usize, d: usize) -> Vec<u32> {
    let (patterns, own) = (noise(5 * d, 16, 1.0), noise(rows * d, 27, 0.35));
    let value = |i: usize| own[i] + if (i / d).is_multiple_of(3) { 0.0 } else { patterns[(i / d * 7 % 5) * d + i % d] };
    dtype.pack(&(0..rows * d).map(value).collect::<Vec<f32>>())
}

/// Both cache types, rotated keys and unrotated ones; one slot to several tiles; a key of zeros.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for (d, kv_heads, seq, lens, caps) in [
            (64, 2, 1, [1, 150, 1], [2, 170, 2]),
            (128, 1, 0, [67, 1, 1], [67, 2, 2]),
            (8, 3, 2, [4, 4, 33], [9, 9, 40]),
            (24, 1, 0, [1, 1, 1], [1, 1, 1]),
            (256, 1, 0, [35, 1, 1], [36, 2, 2]),
        ] {
            for rotate in [false, true] {
                let name = format!("{dtype:?} d {d} KV heads {kv_heads} lens {lens:?} rotate {rotate}");
                cases.push(Case::new("key_similarity", name, move |device| {
                    let builder = StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps);
                    let (layer_table_offset, positions) = (builder.layer_table_offset(1), 200);
                    let layer = LayerSpec {
                        dtype,
                        d,
                        heads: kv_heads,
                        kv_heads,
                        layer_table_offset,
                        positions,
                        compact: rotate,
                    };
                    let spec = KeySimilaritySpec { layer, slots: lens[seq], seq };
                    let mut keys = alike(dtype, builder.rows(1), d);
                    keys[..dtype.row_words(d)].fill(0);
                    let rope = device_rope(d, 1e4, positions, device);
                    let (kv, state) = (device_words(keys, device), device_words(builder.build(), device));
                    vec![Check::floats("similarity", key_similarity(&kv, &state, &rope, spec), Bound::Absolute(4e-6))]
                }));
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three similar keys and an orthogonal one, computed by hand.
    #[test]
    fn of_copies_the_latest_is_spared() {
        let rows: [[f32; 8]; 4] = [
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ];
        let kv: Vec<u32> = rows.iter().flatten().map(|v| v.to_bits()).chain([0; 32]).collect();
        let st = [4, 0, 4, 0];
        let layer = LayerSpec {
            dtype: Dtype::F32,
            d: 8,
            heads: 1,
            kv_heads: 1,
            layer_table_offset: 0,
            positions: 1,
            compact: false,
        };
        let spec = KeySimilaritySpec { layer, slots: 4, seq: 0 };
        let found = twin(&kv, &st, &[0.0; 8], &spec);
        // 0 and 2 leave out 3, and 3 leaves out 2: slot 0 counts twice, 2 once (from 0), 3 not at all.
        for (found, want) in found.iter().zip([0.5, 0.0, 0.25, 0.0]) {
            assert!((found - want).abs() < 1e-6, "{found} {want}");
        }
    }

    /// The bound holds if no pair of keys is at the threshold. The cases have no such pair.
    #[test]
    fn no_case_sits_on_the_threshold() {
        for dtype in [Dtype::F32, Dtype::F16] {
            for (d, kv_heads, rows) in [(64, 2, 2 * 2 * 174), (128, 1, 2 * 71), (8, 3, 6 * 58), (256, 1, 2 * 36)] {
                let packed = alike(dtype, rows, d);
                let row_words = dtype.row_words(d);
                let keys: Vec<Vec<f64>> = packed
                    .chunks(row_words)
                    .map(|row| {
                        let key: Vec<f64> = (0..d).map(|c| dtype.get(row, c)).collect();
                        let length = key.iter().map(|v| v * v).sum::<f64>().sqrt();
                        key.iter().map(|v| v / length).collect()
                    })
                    .collect();
                let mut alike = 0;
                // These are all pairs of the buffer, more than any head has.
                for (i, a) in keys.iter().enumerate() {
                    for b in &keys[..i] {
                        let cosine: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                        assert!((cosine - ALIKE).abs() > 1e-6, "d {d}, {kv_heads} heads: {cosine}");
                        alike += (cosine > ALIKE) as usize;
                    }
                }
                assert!(alike > 100, "d {d}: {alike} pairs alike");
            }
        }
    }
}
