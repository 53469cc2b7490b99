//! Weight matrices on the device, and their upload.
use burn::tensor::{Int, Tensor};

use super::experts::too_large;
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::kernels;
use crate::kernels::memory::{empty_u32, write_u32};
use crate::weights::precision::{Precision, Role};
use crate::weights::{PackedRows, TensorView, Weights};
use crate::{Error, ErrorKind, Result};
use std::ops::Range;

/// The number of values of a matrix that the host holds at a time during the upload. Several cores divide them among
/// themselves when they are quantized. A page has one core, and its memory is small and never shrinks.
const BLOCK_VALUES: usize = if cfg!(target_family = "wasm") { 1 << 20 } else { 8 << 20 };

/// A weight matrix `[rows, cols]` on the device, split by rows where the largest binding demands it and where the
/// packing changes (q, k and v of a quantized mixture).
pub(super) struct Matrix {
    pub shards: Vec<Shard>,
    pub rows: usize,
    pub cols: usize,
}

/// Some rows of a matrix, in a buffer of their own.
pub(super) struct Shard {
    /// The row of the matrix that is the first row of this shard.
    pub first_row: usize,
    pub rows: usize,
    pub dtype: Dtype,
    /// The packed rows of the shard, in the layout of its element type.
    pub words: Tensor<1, Int>,
}

impl Matrix {
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.shard_bytes().map(|(_, bytes)| bytes).sum()
    }

    /// The element type of each shard, and its bytes on the device.
    pub fn shard_bytes(&self) -> impl Iterator<Item = (Dtype, u64)> {
        self.shards.iter().map(|shard| (shard.dtype, (shard.rows * shard.dtype.row_words(self.cols) * 4) as u64))
    }
}

/// The matrices `[rows, cols]` of all experts of a layer on the device, split between experts where the largest
/// binding demands it.
pub(super) struct ExpertMatrices {
    pub shards: Vec<ExpertShard>,
    pub rows: usize,
    pub cols: usize,
    pub dtype: Dtype,
}

/// The matrices of some experts, in a buffer of their own.
pub(super) struct ExpertShard {
    pub first_expert: usize,
    pub experts: usize,
    /// The packed rows of the shard's experts, one expert after the other.
    pub words: Tensor<1, Int>,
}

impl ExpertMatrices {
    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.shard_bytes().map(|(_, bytes)| bytes).sum()
    }

    /// The element type of each shard, and its bytes on the device.
    pub fn shard_bytes(&self) -> impl Iterator<Item = (Dtype, u64)> {
        let row = self.dtype.row_words(self.cols) * 4;
        self.shards.iter().map(move |shard| (self.dtype, (shard.experts * self.rows * row) as u64))
    }
}

/// Rows of a tensor that are read only when they are uploaded.
pub(super) struct Unread<'a> {
    tensor: TensorView<'a>,
    /// The range of these rows in the tensor.
    pub rows: Range<usize>,
    /// Columns, padded ones included.
    pub cols: usize,
    /// The element type to which the rows are converted.
    pub dtype: Dtype,
}

impl<'a> Unread<'a> {
    /// A part of these rows.
    pub fn part(&self, rows: Range<usize>) -> Self {
        Self { tensor: self.tensor, rows: self.rows.start + rows.start..self.rows.start + rows.end, ..*self }
    }

    /// Reads the rows of a range.
    fn read(&self, range: Range<usize>) -> Result<PackedRows<'a>> {
        let rows = self.tensor.some_rows(self.rows.start + range.start..self.rows.start + range.end)?;
        let rows = rows.padded(range.len(), self.cols)?;
        if rows.dtype() == self.dtype {
            return Ok(rows);
        }
        Ok(rows.convert(self.dtype).map_err(|e| e.at(self.tensor.place()))?.into_owned())
    }

    /// Reads the rows of a range, which may reach past the end. Rows past the end are zero.
    fn read_padded(&self, range: Range<usize>) -> Result<PackedRows<'a>> {
        let there = range.end.min(self.rows.len());
        if range.start >= there {
            return Ok(PackedRows::zeros(self.dtype, range.len(), self.cols));
        }
        self.read(range.start..there)?.padded(range.len(), self.cols)
    }
}

/// The width of [`Uploader::width`].
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

    /// The same matrix in the element type of its role, if a precision was chosen.
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
    /// The errors of the two methods.
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

    /// Uploads a matrix.
    pub fn matrix(&self, m: &PackedRows<'_>) -> Result<Matrix> {
        self.in_blocks(m.dtype(), [m.rows(), m.cols()], |range| m.slice_rows(range))
    }

    /// Reads a matrix, converts it to the element type of its role, and uploads it. The host holds a block of its
    /// rows at a time. With `padded`, columns are padded to their [`width`](Self::width), except those of a matrix
    /// that is quantized in the file.
    ///
    /// # Errors
    /// A tensor that is missing or has the wrong shape or type; a value that cannot be quantized.
    pub fn load(&self, name: &str, role: Role, [rows, cols]: [usize; 2], padded: bool) -> Result<Matrix> {
        let matrix = self.unread(name, role, [rows, cols], padded)?;
        self.in_blocks(matrix.dtype, [rows, matrix.cols], |range| matrix.read(range))
    }

    /// The matrix of [`load`](Self::load), not read yet.
    ///
    /// # Errors
    /// A tensor that is missing or has the wrong shape or type.
    pub fn unread(&self, name: &str, role: Role, [rows, cols]: [usize; 2], padded: bool) -> Result<Unread<'a>> {
        let tensor = self.weights.expect(name, &[rows, cols])?;
        let stored = tensor.packed_dtype()?;
        let cols = if padded && !stored.is_quantized() { self.width(cols) } else { cols };
        let dtype = self.precision.map_or(stored, |precision| precision.dtype(stored, role, cols));
        Ok(Unread { tensor, rows: 0..rows, cols, dtype })
    }

    /// Reads two matrices of one type and uploads their rows in turn: the first of `a`, the first of `b`, and so on.
    /// Rows of zeros follow, so that there are `width` of each.
    ///
    /// # Errors
    /// A value that cannot be quantized.
    pub fn interleaved(&self, [a, b]: &[Unread<'_>; 2], width: usize) -> Result<Matrix> {
        self.in_blocks(a.dtype, [2 * width, a.cols], |range| {
            let pairs = range.start / 2..range.end / 2;
            PackedRows::interleave_rows(&a.read_padded(pairs.clone())?, &b.read_padded(pairs)?)
        })
    }

    /// Reads a matrix and uploads it with rows of zeros below, so that it has `width` rows.
    ///
    /// # Errors
    /// A value that cannot be quantized.
    pub fn with_zeros(&self, matrix: &Unread<'_>, width: usize) -> Result<Matrix> {
        self.in_blocks(matrix.dtype, [width, matrix.cols], |range| matrix.read_padded(range))
    }

    /// Uploads a matrix in shards that fit the largest binding, of an even number of rows each (SwiGLU pairs rows).
    /// `read` gives the rows of a range; it is called for each row once, in order.
    fn in_blocks<'m>(
        &self,
        dtype: Dtype,
        [rows, cols]: [usize; 2],
        mut read: impl FnMut(Range<usize>) -> Result<PackedRows<'m>>,
    ) -> Result<Matrix> {
        let most = self.device.info.max_binding_bytes;
        let row_words = dtype.row_words(cols);
        let per_shard = usize::try_from(most / (row_words as u64 * 4)).unwrap_or(rows).min(rows);
        let per_shard = if per_shard < rows { (per_shard & !1).max(1) } else { per_shard };
        // The number of rows is even, as in the shards.
        let block = (BLOCK_VALUES / cols).max(2) & !1;
        let mut shards = Vec::new();
        for first_row in (0..rows).step_by(per_shard) {
            let last_row = (first_row + per_shard).min(rows);
            let words = self.shard(first_row..last_row, row_words, block, |rows| Ok(read(rows)?.into_words()))?;
            shards.push(Shard { first_row, rows: last_row - first_row, dtype, words });
        }
        Ok(Matrix { shards, rows, cols })
    }

    /// Uploads the matrices of `count` experts, which `matrix` reads one after the other. The host holds a block of
    /// them at a time.
    ///
    /// # Errors
    /// Those of `matrix`; an expert that is larger than the largest binding.
    pub fn experts(
        &self,
        count: usize,
        mut matrix: impl FnMut(usize) -> Result<PackedRows<'static>>,
    ) -> Result<ExpertMatrices> {
        let most = self.device.info.max_binding_bytes;
        let mut next = matrix(0)?;
        let (rows, cols, dtype, size) = (next.rows(), next.cols(), next.dtype(), next.words().len());
        let per_shard = usize::try_from(most / (size as u64 * 4)).unwrap_or(usize::MAX).min(count);
        if per_shard == 0 {
            return Err(too_large(size as u64 * 4, most).at(self.device.info.line()));
        }
        let mut read = |experts: Range<usize>| {
            let mut words = Vec::with_capacity(experts.len() * size);
            for expert in experts {
                if expert > 0 {
                    next = matrix(expert)?;
                }
                if (next.rows(), next.cols(), next.dtype()) != (rows, cols, dtype) {
                    return Err(Error::new(ErrorKind::Model, "the experts of a layer differ in element type")
                        .expected(format!("{dtype}, as the first"))
                        .found(format!("{} in expert {expert}", next.dtype())));
                }
                words.extend_from_slice(next.words());
            }
            Ok(words)
        };
        let block = (BLOCK_VALUES / (rows * cols)).max(1);
        let mut shards = Vec::new();
        for first_expert in (0..count).step_by(per_shard) {
            let last = (first_expert + per_shard).min(count);
            let words = self.shard(first_expert..last, size, block, &mut read)?;
            shards.push(ExpertShard { first_expert, experts: last - first_expert, words });
        }
        Ok(ExpertMatrices { shards, rows, cols, dtype })
    }

    /// Uploads the items of a range, of `size` words each, to a buffer of their own, `block` of them at a time.
    /// `read` gives the words of a part of the range; it is called for each item once, in order.
    fn shard(
        &self,
        items: Range<usize>,
        size: usize,
        block: usize,
        mut read: impl FnMut(Range<usize>) -> Result<Vec<u32>>,
    ) -> Result<Tensor<1, Int>> {
        // The memory of a page never shrinks, so that blocks must not accumulate in it before they are uploaded.
        #[cfg(target_family = "wasm")]
        let flush = || kernels::memory::flush(&self.device.burn);
        #[cfg(not(target_family = "wasm"))]
        let flush = || ();
        if items.len() <= block {
            let words = self.words(read(items)?);
            flush();
            return Ok(words);
        }
        let mut words = self.empty(items.len() * size);
        for start in items.clone().step_by(block) {
            let part = read(start..(start + block).min(items.end))?;
            words = write_u32(words, (start - items.start) * size, part);
            flush();
        }
        Ok(words)
    }

    /// Uploads packed words, for as long as the model is loaded.
    fn words(&self, words: Vec<u32>) -> Tensor<1, Int> {
        let burn = &self.device.burn;
        burn.memory_persistent_allocations(words, |words| kernels::u32_tensor(words, burn))
    }

    /// A buffer for packed words, for as long as the model is loaded.
    fn empty(&self, words: usize) -> Tensor<1, Int> {
        let burn = &self.device.burn;
        burn.memory_persistent_allocations((), |()| empty_u32(burn, words))
    }

    /// Uploads matrices of one width as one matrix, below each other. They share one buffer if their element types
    /// agree.
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
