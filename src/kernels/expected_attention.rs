//! The logarithm of the attention that each cached slot can expect from the queries of coming tokens.
//!
//! Contract: the `n` rows of `q` are the latest queries of sequence `seq`, rotated, oldest first; row `i` stands
//! `n − i` positions before the next token. With `R_i` the mean of the rotations from its position to those of the
//! next `future` tokens, `q'_i = R_i q_i` and `μ = mean_i q'_i`,
//! `out[h, j] = scale · μ[h] · K[j] + scale² / 2 · mean_i ((q'_i − μ)[h] · K[j])²` for every slot `j < slots` of the
//! KV head of query head `h`. That is the logarithm of the mean of `exp(scale · q · K[j])` over normally distributed
//! `q` with the mean and the covariance of the `q'_i`, because the second term is `scale² / 2 · K[j]ᵀ Σ K[j]`.
//! Source: Expected Attention (arXiv 2510.00636) as kvpress has it. There the averaged rotation is applied to the
//! mean and the covariance of queries that are not rotated, which is the same, because rotating is linear.
//!
//! Bound: 2e-5 · (1 + |value|): dot products of D terms in f32, squared, and means of up to 512 rotations.
use super::cases::{Bound, Case, Check, StateBuilder, cache_words, device_floats, device_rope, device_words, noise};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::{POISON_WORD, empty};
use super::twin::{Keys, dot, floats, slice, widened};
use super::uniform::uniform;
use super::variant::Variant;
use super::{LayerSpec, state};
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Vectors that a workgroup multiplies at a time.
const VECTORS: usize = 8;

/// Parameters of [`expected_attention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpectedSpec {
    /// The layer that is read.
    pub layer: LayerSpec,
    /// The latest queries, at least one.
    pub n: usize,
    /// Cached slots of the sequence.
    pub slots: usize,
    /// Number of the sequence.
    pub seq: usize,
    /// Positions after the latest query over which rotations are averaged, at least one. Positions beyond the end of
    /// the RoPE table count as its last position.
    pub future: usize,
}

/// The logarithms of the expected attention: `[heads, slots]`.
pub fn expected_attention(
    q: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    spec: ExpectedSpec,
) -> Tensor<2> {
    let [out] = run(&spec, [read(q), read(kv), read(state), read(rope)]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info {
        n: u32, kv_heads: u32, slots: u32, seq: u32, layer_table_offset: u32, positions: u32, future: u32, scale: f32,
    }
}

impl ExpectedSpec {
    fn variant(&self, pass: u32) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("KV", self.layer.dtype.code()),
            ("D", self.layer.d as u32),
            ("ROTATE", self.layer.compact as u32),
            ("G", self.layer.group() as u32),
            ("QB", VECTORS as u32),
            ("PASS", pass),
        ];
        Variant::new::<Info>("expected_attention", include_str!("../../shaders/expected_attention.wgsl"), constants)
    }
}

impl Kernel<4, 1> for ExpectedSpec {
    fn launch(&self, [q, kv, state, rope]: [CubeTensor; 4]) -> [CubeTensor; 1] {
        let LayerSpec { d, heads, kv_heads, layer_table_offset, positions, .. } = self.layer;
        let ahead = empty(&kv, vec![(1 + self.n) * heads * d + self.n * d], DType::F32);
        let out = empty(&kv, vec![heads, self.slots], DType::F32);
        let info = Info {
            n: self.n as u32,
            kv_heads: kv_heads as u32,
            slots: self.slots as u32,
            seq: self.seq as u32,
            layer_table_offset: layer_table_offset as u32,
            positions: positions as u32,
            future: self.future as u32,
            scale: self.layer.scale(),
        };
        let groups = [
            [(self.n * d / 8).div_ceil(64), 1, 1],
            [(heads * d / 8).div_ceil(64), 1, 1],
            [self.slots.div_ceil(64), heads, 1],
        ];
        for (pass, groups) in (0..).zip(groups) {
            launch(&self.variant(pass), groups, &[&q, &kv, &state, &rope, &ahead, &out], info);
        }
        [out]
    }

    fn twin(&self, [q, kv, state, rope]: [FlexTensor; 4]) -> [FlexTensor; 1] {
        let out = twin(slice(&q), slice(&kv), slice(&state), slice(&rope), self);
        [floats(out, [self.layer.heads, self.slots])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let passes = |layer| [0, 1, 2].map(|pass| ExpectedSpec { layer, n: 1, slots: 1, seq: 0, future: 1 }.variant(pass));
    (1..=16).flat_map(LayerSpec::usual).flat_map(passes).collect()
}

fn twin(q: &[f32], kv: &[u32], st: &[u32], rope: &[f32], spec: &ExpectedSpec) -> Vec<f32> {
    let LayerSpec { d, heads, positions, .. } = spec.layer;
    let keys = Keys { kv, rope, layer: spec.layer };
    let entry = &st[spec.layer.layer_table_offset + spec.seq * state::ROW..];
    let (base, cap) = (entry[state::BASE] as usize, entry[state::CAP] as usize);
    let q = widened(q);
    let factor = |i: usize| -> Vec<f64> {
        let at = |j: usize| &rope[(spec.n - i + j).min(positions - 1) * d..][..d];
        let mean = |c: usize| {
            (0..spec.future).map(|j| f64::from(at(j)[c])).sum::<f64>()
                / spec.future as f64
                / f64::from(rope[c % (d / 2)])
        };
        (0..d).map(mean).collect()
    };
    let factors: Vec<Vec<f64>> = (0..spec.n).map(factor).collect();
    let turned = |i: usize, head: usize| -> Vec<f64> {
        let (q, f) = (&q[(i * heads + head) * d..][..d], &factors[i]);
        let value = |c: usize| match c.checked_sub(d / 2) {
            None => q[c] * f[c] - q[c + d / 2] * f[c + d / 2],
            Some(low) => q[c] * f[low] + q[low] * f[c],
        };
        (0..d).map(value).collect()
    };
    let mut out = vec![f32::from_bits(POISON_WORD); heads * spec.slots];
    for head in 0..heads {
        let vectors: Vec<Vec<f64>> = (0..spec.n).map(|i| turned(i, head)).collect();
        let mean: Vec<f64> = (0..d).map(|c| vectors.iter().map(|v| v[c]).sum::<f64>() / spec.n as f64).collect();
        for slot in 0..spec.slots.min(cap) {
            let key = keys.get(base + head / spec.layer.group() * cap + slot, slot);
            let centre = dot(&mean, &key) / (d as f64).sqrt();
            let square = |v: &Vec<f64>| (dot(v, &key) / (d as f64).sqrt() - centre).powi(2);
            let spread = vectors.iter().map(square).sum::<f64>() / spec.n as f64;
            out[head * spec.slots + slot] = (centre + spread / 2.0) as f32;
        }
    }
    out
}

/// Both cache types, rotated and unrotated keys; one query to more than a tile of queries; a future that ends before
/// the table and one that continues beyond it.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for (d, heads, kv_heads, n, future, seq, lens, caps) in [
            (16, 6, 2, 32, 100, 1, [1, 150, 1], [2, 170, 2]),
            (64, 7, 7, 7, 1, 2, [1, 5, 130], [1, 9, 140]),
            (128, 14, 2, 1, 40, 0, [67, 4, 1], [67, 9, 2]),
            (8, 2, 1, 9, 512, 1, [3, 70, 1], [3, 70, 2]),
            (256, 4, 1, 5, 12, 0, [33, 1, 1], [36, 2, 2]),
        ] {
            for rotate in [false, true] {
                let name = format!(
                    "{dtype:?} d {d} heads {heads}/{kv_heads} {n} queries future {future} lens {lens:?} rotate {rotate}"
                );
                cases.push(Case::new("expected_attention", name, move |device| {
                    let builder = StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps);
                    let (layer_table_offset, positions) = (builder.layer_table_offset(1), 300);
                    let layer = LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions, compact: rotate };
                    let spec = ExpectedSpec { layer, n, slots: lens[seq], seq, future };
                    let q = device_floats(noise(n * heads * d, 14, 2.0), n, heads * d, device);
                    let kv = device_words(cache_words(dtype, builder.rows(1) * d), device);
                    let (state, rope) = (device_words(builder.build(), device), device_rope(d, 1e4, positions, device));
                    let found = expected_attention(&q, &kv, &state, &rope, spec);
                    vec![Check::floats("logarithms", found, Bound::Mixed(2e-5))]
                }));
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queries along the first column, whose angle grows by a quarter turn with each position.
    #[test]
    fn the_mean_and_the_spread_of_turned_queries() {
        let layer = LayerSpec {
            dtype: Dtype::F32,
            d: 8,
            heads: 1,
            kv_heads: 1,
            layer_table_offset: 0,
            positions: 4,
            compact: false,
        };
        // All angles are multiples of a quarter turn: row p has cosines cos(p π/2).
        let table = |p: usize| {
            let (cos, sin) = [(1.0f32, 0.0f32), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)][p % 4];
            [[cos; 4], [sin; 4]].concat()
        };
        let rope: Vec<f32> = (0..4).flat_map(table).collect();
        let mut kv = vec![0u32; 2 * 8];
        kv[0] = 1f32.to_bits();
        let st = [1, 0, 1, 0];
        let root = 8f32.sqrt();
        let spec = |n, future| ExpectedSpec { layer, n, slots: 1, seq: 0, future };
        let along = |x: f32| {
            let mut q = vec![0f32; 8];
            q[0] = x * root;
            q
        };
        // With one query, one position ahead, a quarter turn makes it orthogonal to the key. Two positions ahead on
        // average: (0 − 1) / 2.
        assert!(twin(&along(3.0), &kv, &st, &rope, &spec(1, 1))[0].abs() < 1e-6);
        assert!((twin(&along(3.0), &kv, &st, &rope, &spec(1, 2))[0] + 1.5).abs() < 1e-6);
        // With two queries, the older one is two positions before the next token, a half turn. It gives −3 and the
        // other gives 0: mean −1.5, spread 2.25 / 2.
        let two = [along(3.0), along(1.0)].concat();
        assert!((twin(&two, &kv, &st, &rope, &spec(2, 1))[0] - (-1.5 + 1.125)).abs() < 1e-5);
    }
}
