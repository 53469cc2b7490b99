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
    /// The values in row `row` of the cache, as they are stored.
    pub(super) fn stored(&self, row: usize) -> Vec<f64> {
        let row_words = self.layer.dtype.row_words(self.layer.d);
        let mut values = vec![0.0; self.layer.d];
        self.layer.dtype.read_row(&self.kv[row * row_words..(row + 1) * row_words], &mut values);
        values
    }

    /// The key in row `row` of the cache, whose token is in `slot`, rotated.
    pub(super) fn get(&self, row: usize, slot: usize) -> Vec<f64> {
        let d = self.layer.d;
        let key = self.stored(row);
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
}

/// The same values in f64.
pub(super) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// The dot product of vectors of one length. Eight sums at a time, because a single one would wait for each addition to
/// end before it begins the next.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0f64; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
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
