//! Helpers of the twins: slices of CPU tensors, and cached keys as kernels see them.
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Element, Shape, TensorData};

use super::LayerSpec;

/// The cached keys of a layer.
pub(super) struct Keys<'a> {
    pub(super) kv: &'a [u32],
    /// The RoPE table.
    pub(super) rope: &'a [f32],
    pub(super) layer: LayerSpec,
}

impl Keys<'_> {
    /// The key in row `row` of the cache, whose token is in `slot`, rotated.
    pub(super) fn get(&self, row: usize, slot: usize) -> Vec<f64> {
        let d = self.layer.d;
        let stored = self.stored(row);
        let key: Vec<f64> = (0..d).map(|c| self.layer.dtype.get(stored, c)).collect();
        if !self.layer.compact {
            return key;
        }
        let angles = &self.rope[slot.min(self.rope.len() / d - 1) * d..][..d];
        let turned = |c: usize| {
            let (cos, sin) = (angles[c % (d / 2)] as f64, angles[d / 2 + c % (d / 2)] as f64);
            if c < d / 2 { key[c] * cos - key[c + d / 2] * sin } else { key[c] * cos + key[c - d / 2] * sin }
        };
        (0..d).map(turned).collect()
    }

    /// The dot product of that key with `query`.
    pub(super) fn dot(&self, query: &[f32], row: usize, slot: usize) -> f64 {
        if self.layer.compact {
            return query.iter().zip(self.get(row, slot)).map(|(q, k)| *q as f64 * k).sum();
        }
        let key = self.stored(row);
        (0..self.layer.d).map(|c| query[c] as f64 * self.layer.dtype.get(key, c)).sum()
    }

    fn stored(&self, row: usize) -> &[u32] {
        let row_words = self.layer.dtype.row_words(self.layer.d);
        &self.kv[row * row_words..(row + 1) * row_words]
    }
}

/// The elements of an input: f32 or u32.
pub(super) fn slice<E: Element + bytemuck::Pod>(t: &FlexTensor) -> &[E] {
    t.as_slice().unwrap_or_else(|| panic!("want contiguous {:?}, found {:?}", E::dtype(), t.dtype()))
}

/// The elements of an input that is written in place.
pub(super) fn slice_mut<E: Element + bytemuck::Pod>(t: &mut FlexTensor) -> &mut [E] {
    t.try_storage_mut().expect("an in-place kernel needs the only handle")
}

/// An f32 output `[rows, cols]`.
pub(super) fn floats(values: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A u32 output.
pub(super) fn words(values: Vec<u32>) -> FlexTensor {
    let shape = Shape::from([values.len()]);
    let t = FlexTensor::from_data(TensorData::new(values, shape));
    debug_assert_eq!(t.dtype(), DType::U32);
    t
}
