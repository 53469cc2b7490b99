//! The range and the length of each cached value vector. The values stay on the device.
use super::cases::{Bound, Case, Check, StateBuilder, cache_words, device_words};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::{POISON_WORD, empty};
use super::twin::{Keys, floats, slice};
use super::uniform::uniform;
use super::variant::Variant;
use super::{LayerSpec, state};
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Parameters of [`value_sizes`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueSizesSpec {
    /// The layer that is read.
    pub layer: LayerSpec,
    /// Cached slots of the sequence.
    pub slots: usize,
    /// Number of the sequence.
    pub seq: usize,
}

/// The range and the length of each cached value: `[2 kv_heads, slots]`, the ranges of all KV heads first.
pub fn value_sizes(kv: &Tensor<1, Int>, state: &Tensor<1, Int>, spec: ValueSizesSpec) -> Tensor<2> {
    let [out] = run(&spec, [read(kv), read(state)]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info { kv_heads: u32, slots: u32, seq: u32, layer_table_offset: u32 }
}

impl ValueSizesSpec {
    fn variant(&self) -> Variant {
        let constants = [("THREADS", 64), ("KV", self.layer.dtype.code()), ("D", self.layer.d as u32)];
        Variant::new::<Info>("value_sizes", include_str!("../../shaders/value_sizes.wgsl"), constants)
    }
}

impl Kernel<2, 1> for ValueSizesSpec {
    fn launch(&self, [kv, state]: [CubeTensor; 2]) -> [CubeTensor; 1] {
        let kv_heads = self.layer.kv_heads;
        let out = empty(&kv, vec![2 * kv_heads, self.slots], DType::F32);
        let [kv_heads, slots, seq, layer_table_offset] =
            [kv_heads, self.slots, self.seq, self.layer.layer_table_offset].map(|v| v as u32);
        let info = Info { kv_heads, slots, seq, layer_table_offset };
        launch(&self.variant(), [self.slots.div_ceil(64), self.layer.kv_heads, 1], &[&kv, &state, &out], info);
        [out]
    }

    fn twin(&self, [kv, state]: [FlexTensor; 2]) -> [FlexTensor; 1] {
        [floats(twin(slice(&kv), slice(&state), self), [2 * self.layer.kv_heads, self.slots])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    LayerSpec::usual(1).map(|layer| ValueSizesSpec { layer, slots: 1, seq: 0 }.variant()).collect()
}

fn twin(kv: &[u32], st: &[u32], spec: &ValueSizesSpec) -> Vec<f32> {
    let rows = Keys { kv, rope: &[], layer: spec.layer };
    let (kv_heads, slots) = (spec.layer.kv_heads, spec.slots);
    let entry = &st[spec.layer.layer_table_offset + spec.seq * state::ROW..];
    let (base, cap) = (entry[state::BASE] as usize, entry[state::CAP] as usize);
    let mut out = vec![f32::from_bits(POISON_WORD); 2 * kv_heads * slots];
    for (head, slot) in (0..kv_heads).flat_map(|h| (0..slots.min(cap)).map(move |s| (h, s))) {
        let value = rows.stored(base + (kv_heads + head) * cap + slot);
        let (low, high) = value.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        out[head * slots + slot] = (high - low) as f32;
        out[(kv_heads + head) * slots + slot] = value.iter().map(|v| v * v).sum::<f64>().sqrt() as f32;
    }
    out
}

/// Both cache types; one slot to several workgroups; the smallest and the largest head; a value of zeros.
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
            let name = format!("{dtype:?} d {d} KV heads {kv_heads} lens {lens:?}");
            cases.push(Case::new("value_sizes", name, move |device| {
                let builder = StateBuilder::new(3, 2, kv_heads).lens(1, &lens, &caps);
                let (layer_table_offset, positions) = (builder.layer_table_offset(1), 1);
                let layer =
                    LayerSpec { dtype, d, heads: kv_heads, kv_heads, layer_table_offset, positions, compact: false };
                let spec = ValueSizesSpec { layer, slots: lens[seq], seq };
                let mut words = cache_words(dtype, builder.rows(1) * d);
                let first: usize = caps[..seq].iter().map(|cap| 2 * kv_heads * cap).sum();
                let zeros = (first + kv_heads * caps[seq]) * dtype.row_words(d);
                words[zeros..zeros + dtype.row_words(d)].fill(0);
                let (kv, state) = (device_words(words, device), device_words(builder.build(), device));
                vec![Check::floats("ranges and lengths", value_sizes(&kv, &state, spec), Bound::Mixed(2e-6))]
            }));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel measures the values, not the keys that lie before them; computed by hand.
    #[test]
    fn a_range_goes_from_the_smallest_component_to_the_largest() {
        let rows: [[f32; 8]; 4] = [
            [9.0; 8], // keys
            [9.0; 8],
            [3.0, 0.0, 0.0, -4.0, 0.0, 0.0, 0.0, 0.0],
            [2.0; 8],
        ];
        let kv: Vec<u32> = rows.iter().flatten().map(|v| v.to_bits()).collect();
        let layer = LayerSpec {
            dtype: Dtype::F32,
            d: 8,
            heads: 1,
            kv_heads: 1,
            layer_table_offset: 0,
            positions: 1,
            compact: false,
        };
        let spec = ValueSizesSpec { layer, slots: 2, seq: 0 };
        assert_eq!(twin(&kv, &[2, 0, 2, 0], &spec), [7.0, 0.0, 5.0, 32f32.sqrt()]);
    }
}
