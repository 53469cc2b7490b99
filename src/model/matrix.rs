//! Weight matrices on the device, and their upload.
use burn::tensor::{Int, Tensor};

use crate::Result;
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::kernels;
use crate::weights::precision::{Precision, Role};
use crate::weights::{PackedRows, Weights};

/// A weight matrix `[rows, cols]` on the device, split by rows where the largest binding demands it and where the
/// packing changes (q, k and v of a quantized mixture).
pub(super) struct Matrix {
    pub shards: Vec<Shard>,
    pub rows: usize,
    pub cols: usize,
}

/// Some rows of a matrix, in a buffer of their own.
pub(super) struct Shard {
    /// The row of the matrix that is its first.
    pub first_row: usize,
    pub rows: usize,
    pub dtype: Dtype,
    /// The packed rows.
    pub words: Tensor<1, Int>,
}

impl Matrix {
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| (shard.rows * shard.dtype.row_words(self.cols) * 4) as u64).sum()
    }
}

/// See [`Uploader::width`].
pub(super) fn padded_width(n: usize, precision: Option<Precision>) -> usize {
    let whole = if precision.is_some() { 32 } else { 8 };
    if n.is_multiple_of(whole) { n } else { n.next_multiple_of(32) }
}

/// Uploads weights to a device.
pub(super) struct Uploader<'a> {
    pub device: &'a ComputeDevice,
    pub weights: &'a Weights,
    /// `None`: every matrix keeps the element type of its file.
    pub precision: Option<Precision>,
}

impl<'a> Uploader<'a> {
    /// The number of values with which a vector of `n` values is stored on the device: kernels read 8 columns of a
    /// matrix at a time, and blocks of 32 if it is quantized. The additional values are zero.
    pub fn width(&self, n: usize) -> usize {
        padded_width(n, self.precision)
    }

    /// A matrix in its own element type, its columns padded to their [`width`](Self::width). It is not uploaded yet.
    ///
    /// # Errors
    /// A tensor that is missing or has the wrong shape or type.
    pub fn stored(&self, name: &str, rows: usize, cols: usize) -> Result<PackedRows<'a>> {
        let stored = self.weights.matrix(name, rows, cols)?;
        let width = if stored.dtype().is_quantized() { cols } else { self.width(cols) };
        stored.padded(rows, width)
    }

    /// A matrix that multiplies the results of attention, which are not padded, in the element type that its role gets.
    ///
    /// # Errors
    /// Those of [`rows`](Self::rows).
    pub fn unpadded(&self, name: &str, role: Role, rows: usize, cols: usize) -> Result<PackedRows<'a>> {
        self.precise(name, self.weights.matrix(name, rows, cols)?, role)
    }

    /// The same matrix in the element type that its role gets, where a precision was chosen.
    ///
    /// # Errors
    /// A value that cannot be quantized; the error says that it is of the tensor `name`.
    pub fn precise<'m>(&self, name: &str, rows: PackedRows<'m>, role: Role) -> Result<PackedRows<'m>> {
        let dtype = self.precision.map_or(rows.dtype(), |p| p.dtype(rows.dtype(), role, rows.cols()));
        if dtype == rows.dtype() {
            return Ok(rows);
        }
        let quantized = rows.convert(dtype).map_err(|e| match self.weights.tensor(name) {
            Ok(tensor) => e.at(tensor.place()),
            Err(_) => e,
        })?;
        Ok(quantized.into_owned())
    }

    /// A matrix as it is used: [`stored`](Self::stored), then [`precise`](Self::precise).
    ///
    /// # Errors
    /// Those of both.
    pub fn rows(&self, name: &str, role: Role, rows: usize, cols: usize) -> Result<PackedRows<'a>> {
        self.precise(name, self.stored(name, rows, cols)?, role)
    }

    /// The weights of an RMS norm over a padded vector. The kernel divides the sum of squares by the padded width, so
    /// the weights make up for it (and [`padded_eps`](Self::padded_eps)).
    pub fn norm(&self, values: Vec<f32>) -> Tensor<1> {
        let (n, width) = (values.len() as f64, self.width(values.len()) as f64);
        let factor = (n / width).sqrt();
        let mut values: Vec<f32> = values.into_iter().map(|v| (f64::from(v) * factor) as f32).collect();
        values.resize(width as usize, 0.0);
        self.vector(values)
    }

    /// The ε of an RMS norm over a vector of `n` values that is padded.
    pub fn padded_eps(&self, eps: f64, n: usize) -> f32 {
        (eps * n as f64 / self.width(n) as f64) as f32
    }

    pub fn vector(&self, values: Vec<f32>) -> Tensor<1> {
        let n = values.len();
        kernels::f32_tensor(values, [n], &self.device.burn)
    }

    /// Uploads a matrix in shards that fit the largest binding, of an even number of rows each (SwiGLU pairs rows).
    pub fn matrix(&self, m: &PackedRows<'_>) -> Result<Matrix> {
        let most = self.device.info.max_binding_bytes;
        let row_bytes = (m.words_per_row() * 4) as u64;
        let per_shard = ((most / row_bytes) as usize).min(m.rows());
        let per_shard = if per_shard < m.rows() { per_shard & !1 } else { per_shard };
        let mut shards = Vec::new();
        let mut first_row = 0;
        while first_row < m.rows() {
            let rows = per_shard.min(m.rows() - first_row);
            let part = &m.words()[first_row * m.words_per_row()..(first_row + rows) * m.words_per_row()];
            let words = self.device.burn.memory_persistent_allocations(part, |part: &[u32]| {
                kernels::u32_tensor(part.to_vec(), &self.device.burn)
            });
            shards.push(Shard { first_row, rows, dtype: m.dtype(), words });
            first_row += rows;
        }
        Ok(Matrix { shards, rows: m.rows(), cols: m.cols() })
    }

    /// Uploads matrices of one width as one, below each other: in one buffer if their element types agree.
    pub fn stacked(&self, parts: &[PackedRows<'_>]) -> Result<Matrix> {
        if parts.iter().all(|part| part.dtype() == parts[0].dtype()) {
            return self.matrix(&PackedRows::concat_rows(parts)?);
        }
        let mut all = Matrix { shards: Vec::new(), rows: 0, cols: parts[0].cols() };
        for part in parts {
            let matrix = self.matrix(part)?;
            let moved = matrix.shards.into_iter().map(|shard| Shard { first_row: all.rows + shard.first_row, ..shard });
            all.shards.extend(moved);
            all.rows += matrix.rows;
        }
        Ok(all)
    }
}
