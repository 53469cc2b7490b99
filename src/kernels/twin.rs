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
    /// Reads the values in row `row` of the cache, as they are stored.
    #[inline(always)]
    pub(super) fn read_stored(&self, row: usize, into: &mut [f64]) {
        let row_words = self.layer.dtype.row_words(self.layer.d);
        self.layer.dtype.read_row(&self.kv[row * row_words..(row + 1) * row_words], into);
    }

    /// Reads the key in row `row` of the cache, whose token is in `slot`, rotated.
    #[inline(always)]
    pub(super) fn read(&self, row: usize, slot: usize, into: &mut [f64]) {
        self.read_stored(row, into);
        if self.layer.compact {
            let d = self.layer.d;
            let (cos, sin) = self.rope[slot.min(self.rope.len() / d - 1) * d..][..d].split_at(d / 2);
            let (first, second) = into.split_at_mut(d / 2);
            for (c, a) in first.iter_mut().enumerate() {
                let b = &mut second[c];
                let (cos, sin) = (f64::from(cos[c]), f64::from(sin[c]));
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }

    /// Returns the values of [`read_stored`](Self::read_stored).
    pub(super) fn stored(&self, row: usize) -> Vec<f64> {
        let mut values = vec![0.0; self.layer.d];
        self.read_stored(row, &mut values);
        values
    }

    /// Returns the values of [`read`](Self::read).
    pub(super) fn get(&self, row: usize, slot: usize) -> Vec<f64> {
        let mut key = vec![0.0; self.layer.d];
        self.read(row, slot, &mut key);
        key
    }
}

/// Converts f32 values to f64.
#[inline(always)]
pub(super) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// The dot product of vectors of equal length. It keeps eight sums, because with a single one each addition would
/// wait for the one before.
#[inline(always)]
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b[..a.len()].as_chunks::<8>());
    let mut sums = [0f64; 8];
    for (i, a) in a.iter().enumerate() {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[i][lane];
        }
    }
    let mut rest = 0.0;
    for (i, a) in a_rest.iter().enumerate() {
        rest += a * b_rest[i];
    }
    let mut sum = 0.0;
    for part in sums {
        sum += part;
    }
    sum + rest
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
