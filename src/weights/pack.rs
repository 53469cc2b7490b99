//! Matrices packed into `u32` words, the form in which every shader reads weights. With this form, no adapter needs
//! support for 16-bit types.
//!
//! **Layout.** Matrices are row-major. An f32 element takes one word; two f16 or bf16 elements share a word, the even
//! column in its low half. Each row starts at a new word: if a 16-bit matrix has an odd number of columns, the high
//! half of the last word of each row is zero padding, and [`PackedRows::words_per_row`] is ⌈cols / 2⌉.
//!
//! **Quantized matrices** (the types of GGUF, in [`blocks`](super::blocks)) keep their values exactly. A row is taken
//! apart into planes, each of which is a whole number of vectors of 4 words, so that the parts of a value load as
//! whole vectors, and rows can be moved, stacked and sliced like those of other types:
//!
//! | plane | content |
//! |---|---|
//! | low | the low 8, 4 or 2 bits of each quant. Four quants lie in the four bytes of a word; a word has 1, 2 or 4 such fours, the later ones further up in the bytes |
//! | high | the remaining 1 or 2 bits, in the same manner; nothing if there are none |
//! | shared | a byte for each 16 or 32 columns that share a scale within a block of 256; with a minimum, 16 bytes for each 256 columns (`Scales` in `dtype.rs`) |
//! | scales | an f16 for each block, two per word; with a minimum, a word for each block: the scale in its low half, the minimum in its high half |
//!
//! Scales of 6 bits become bytes, so that a Q4_K row takes 4.63 bits a value instead of 4.5.
use super::{blocks, quantize};
use crate::dtype::Dtype;
use crate::{Error, ErrorKind, Result};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::Range;

/// A matrix of shape `[rows, cols]` in packed words; the [module](self) describes the layout. The words are borrowed
/// from the bytes of the file where possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRows<'a> {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    words: Cow<'a, [u32]>,
}

impl<'a> PackedRows<'a> {
    /// Packs row-major little-endian elements, or the quantized blocks of GGUF. The bytes are copied only if they are
    /// not aligned, if rows need padding, or if the elements are quantized.
    ///
    /// # Errors
    /// If `bytes` does not hold exactly `rows × cols` elements, or the matrix is empty. For quantized types, also if
    /// rows are not a whole number of blocks, or a scale is not finite.
    pub fn from_le_bytes(dtype: Dtype, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self> {
        check_size(rows, cols)?;
        blocks::check_blocks(dtype, cols)?;
        let expected = rows.checked_mul(cols).and_then(|n| dtype.stored_bytes(n));
        if expected != Some(bytes.len()) {
            return Err(Error::new(ErrorKind::Model, "a matrix has the wrong number of bytes")
                .expected(format!("{rows} × {cols} {dtype}"))
                .found(format!("{} bytes", bytes.len())));
        }
        if dtype.is_quantized() {
            let words = Cow::Owned(blocks::repack(dtype, rows, cols, bytes)?);
            return Ok(Self { dtype, rows, cols, words });
        }
        let row_bytes = cols * 4 / dtype.per_word();
        let words = if row_bytes.is_multiple_of(4) {
            match bytemuck::try_cast_slice::<u8, u32>(bytes) {
                Ok(words) if cfg!(target_endian = "little") => Cow::Borrowed(words),
                _ => Cow::Owned(bytes.chunks_exact(4).map(word).collect()),
            }
        } else {
            Cow::Owned(bytes.chunks_exact(row_bytes).flat_map(|row| row.chunks(4).map(word)).collect())
        };
        Ok(Self { dtype, rows, cols, words })
    }

    /// [`from_le_bytes`](Self::from_le_bytes) of bytes that were read for this matrix alone, or that it may borrow.
    ///
    /// # Errors
    /// Those of [`from_le_bytes`](Self::from_le_bytes).
    pub(crate) fn from_le_cow(dtype: Dtype, rows: usize, cols: usize, bytes: Cow<'a, [u8]>) -> Result<Self> {
        match bytes {
            Cow::Borrowed(bytes) => Self::from_le_bytes(dtype, rows, cols, bytes),
            Cow::Owned(bytes) => Ok(PackedRows::from_le_bytes(dtype, rows, cols, &bytes)?.into_owned()),
        }
    }

    /// Converts row-major f32 values to `dtype`, rounding to nearest with ties to even. Quantization follows ggml's
    /// reference implementation.
    ///
    /// # Errors
    /// If there are not exactly `rows × cols` values, the matrix is empty, or a finite value overflows `dtype`. For
    /// quantized types, also if rows are not a whole number of blocks, or a value is not finite.
    pub fn from_f32(dtype: Dtype, rows: usize, cols: usize, values: &[f32]) -> Result<PackedRows<'static>> {
        check_size(rows, cols)?;
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::new(ErrorKind::Internal, "a matrix has the wrong number of elements")
                .expected(format!("{rows} × {cols}"))
                .found(values.len()));
        }
        pack_rows(dtype, rows, cols, |row, out| out.copy_from_slice(&values[row * cols..][..cols]))
    }

    /// A matrix of zeros.
    pub(crate) fn zeros(dtype: Dtype, rows: usize, cols: usize) -> PackedRows<'static> {
        PackedRows { dtype, rows, cols, words: Cow::Owned(vec![0; rows * dtype.row_words(cols)]) }
    }

    /// The element type in which the rows are packed.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of rows: outputs of a linear layer, or tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: inputs of a linear layer, or the width of an embedding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of words from the start of one row to the start of the next.
    pub fn words_per_row(&self) -> usize {
        self.dtype.row_words(self.cols)
    }

    /// All `rows × words_per_row` words.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Converts the matrix into its words. Borrowed words are copied.
    pub fn into_words(self) -> Vec<u32> {
        self.words.into_owned()
    }

    /// The same matrix with owned words.
    pub fn into_owned(self) -> PackedRows<'static> {
        PackedRows { dtype: self.dtype, rows: self.rows, cols: self.cols, words: Cow::Owned(self.words.into_owned()) }
    }

    /// The consecutive rows in `range`, borrowed.
    ///
    /// # Errors
    /// If `range` does not lie within `0..rows`.
    pub fn slice_rows(&self, range: Range<usize>) -> Result<PackedRows<'_>> {
        if range.start > range.end || range.end > self.rows {
            return Err(Error::new(ErrorKind::Internal, "rows out of range")
                .expected(format!("within 0..{}", self.rows))
                .found(format!("{range:?}")));
        }
        let per_row = self.words_per_row();
        let words = Cow::Borrowed(&self.words[range.start * per_row..range.end * per_row]);
        Ok(PackedRows { dtype: self.dtype, rows: range.len(), cols: self.cols, words })
    }

    /// Stacks matrices of the same width and element type, the first on top. Used to fuse the q, k and v projections.
    ///
    /// # Errors
    /// If widths or element types differ, or `parts` is empty.
    pub fn concat_rows(parts: &[PackedRows<'_>]) -> Result<PackedRows<'static>> {
        let Some(first) = parts.first() else {
            return Err(Error::new(ErrorKind::Internal, "there are no matrices to stack"));
        };
        if let Some(other) = parts.iter().find(|part| (part.dtype, part.cols) != (first.dtype, first.cols)) {
            return Err(Error::new(
                ErrorKind::Model,
                "matrices that are used together differ in width or element type",
            )
            .expected(format!("{} columns of {}", first.cols, first.dtype))
            .found(format!("{} columns of {}", other.cols, other.dtype)));
        }
        let mut words = Vec::with_capacity(parts.iter().map(|part| part.words.len()).sum());
        parts.iter().for_each(|part| words.extend_from_slice(&part.words));
        let rows = parts.iter().map(|part| part.rows).sum();
        Ok(PackedRows { dtype: first.dtype, rows, cols: first.cols, words: Cow::Owned(words) })
    }

    /// Interleaves the rows of `a` and `b`: `a[0], b[0], a[1], …`, for the fused product of gate and up.
    ///
    /// # Errors
    /// If the shapes or the element types differ.
    pub fn interleave_rows(a: &PackedRows<'_>, b: &PackedRows<'_>) -> Result<PackedRows<'static>> {
        if (a.rows, a.cols, a.dtype) != (b.rows, b.cols, b.dtype) {
            return Err(Error::new(ErrorKind::Internal, "matrices to interleave differ in shape or element type")
                .expected(format!("{} × {} {}", a.rows, a.cols, a.dtype))
                .found(format!("{} × {} {}", b.rows, b.cols, b.dtype)));
        }
        let dtype = a.dtype;
        let n = a.words_per_row();
        let rows = a.words.chunks_exact(n).zip(b.words.chunks_exact(n));
        let words = rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
        Ok(PackedRows { dtype, rows: 2 * a.rows, cols: a.cols, words: Cow::Owned(words) })
    }

    /// The same matrix with zeros below and to the right, so that it has `rows` rows and `cols` columns. Borrows the
    /// words if nothing is added.
    ///
    /// # Errors
    /// If the matrix is larger than that, or if columns are added to a quantized matrix.
    pub fn padded(self, rows: usize, cols: usize) -> Result<Self> {
        if (rows, cols) == (self.rows, self.cols) {
            return Ok(self);
        }
        if rows < self.rows || cols < self.cols || (cols > self.cols && self.dtype.is_quantized()) {
            return Err(Error::new(ErrorKind::Internal, "a matrix cannot be padded to this shape")
                .expected(format!("at least {} × {} {}", self.rows, self.cols, self.dtype))
                .found(format!("{rows} × {cols}")));
        }
        let (from, to) = (self.words_per_row(), self.dtype.row_words(cols));
        let mut words = vec![0; rows * to];
        for (padded, row) in words.chunks_exact_mut(to).zip(self.words.chunks_exact(from)) {
            padded[..from].copy_from_slice(row);
        }
        Ok(Self { dtype: self.dtype, rows, cols, words: Cow::Owned(words) })
    }

    /// Reorders the rows of each head from pairs to halves: row `2 j + i` of a head with `d` rows becomes row
    /// `i d / 2 + j`. GGUF stores the query and key projections of Llama in the order of Meta's rotation, which
    /// rotates neighbouring rows together.
    ///
    /// # Errors
    /// If the rows are not `heads` heads with the same, even number of rows.
    pub fn unpair_heads(&self, heads: usize) -> Result<PackedRows<'static>> {
        let n = self.words_per_row();
        let mut words = Vec::with_capacity(self.words.len());
        for row in unpaired(self.rows, heads)? {
            words.extend_from_slice(&self.words[row * n..][..n]);
        }
        Ok(PackedRows { dtype: self.dtype, rows: self.rows, cols: self.cols, words: Cow::Owned(words) })
    }

    /// The same values in another element type, rounded to nearest with ties to even. If the type is the same, the
    /// result borrows the words. Infinities and NaN are kept.
    ///
    /// # Errors
    /// If a finite value overflows `dtype`. The overflow is an error here because an infinite weight would only be
    /// noticed much later, as NaN logits.
    pub fn convert(&self, dtype: Dtype) -> Result<PackedRows<'_>> {
        if dtype == self.dtype {
            return self.slice_rows(0..self.rows);
        }
        pack_rows(dtype, self.rows, self.cols, |row, out| self.unpack_row(row, out))
    }

    /// All values as f32 in row-major order, without padding.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        values.chunks_exact_mut(self.cols).enumerate().for_each(|(row, out)| self.unpack_row(row, out));
        values
    }

    /// Writes row `row` as f32 into `out`, which has room for `cols` values.
    fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let words = &self.words[row * self.words_per_row()..][..self.words_per_row()];
        match self.dtype {
            Dtype::F32 => out.iter_mut().zip(words).for_each(|(out, &word)| *out = f32::from_bits(word)),
            Dtype::F16 => unpack_halves(words, out, |bits| f16::from_bits(bits).to_f32()),
            Dtype::BF16 => unpack_halves(words, out, |bits| bf16::from_bits(bits).to_f32()),
            _ => {
                let mut values = vec![0.0; self.cols];
                self.dtype.read_quantized(words, &mut values);
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value as f32);
            }
        }
    }
}

/// The row indices that undo the pairing of GGUF, in the order of the result; see [`PackedRows::unpair_heads`].
///
/// # Errors
/// If the rows are not `heads` heads with the same, even number of rows.
pub(crate) fn unpaired(rows: usize, heads: usize) -> Result<impl Iterator<Item = usize>> {
    let d = rows.checked_div(heads).unwrap_or(0);
    if d == 0 || !d.is_multiple_of(2) || d * heads != rows {
        return Err(Error::new(ErrorKind::Model, "the rows of a matrix are not whole heads")
            .expected(format!("{heads} heads with an even number of rows each"))
            .found(format!("{rows} rows")));
    }
    Ok((0..rows).map(move |row| {
        let (head, at) = (row / d, row % d);
        head * d + at % (d / 2) * 2 + at / (d / 2)
    }))
}

/// Converts little-endian elements to f32; the conversion is exact. Bytes after the last whole element are ignored.
/// The result is empty for quantized types, which vectors never have.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let halves = |convert: fn(u16) -> f32| {
        bytes.as_chunks::<2>().0.iter().map(|&pair| convert(u16::from_le_bytes(pair))).collect()
    };
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
        Dtype::F16 => halves(|bits| f16::from_bits(bits).to_f32()),
        Dtype::BF16 => halves(|bits| bf16::from_bits(bits).to_f32()),
        _ => Vec::new(),
    }
}

/// Refuses empty matrices: one with many rows and no columns would pass every check of its bytes.
fn check_size(rows: usize, cols: usize) -> Result<()> {
    if rows > 0 && cols > 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Model, "a matrix is empty")
        .expected("at least one row and one column")
        .found(format!("[{rows}, {cols}]")))
}

/// A word from up to four little-endian bytes. Missing bytes are zero.
fn word(bytes: &[u8]) -> u32 {
    let mut four = [0; 4];
    four[..bytes.len()].copy_from_slice(bytes);
    u32::from_le_bytes(four)
}

fn unpack_halves(words: &[u32], out: &mut [f32], convert: impl Fn(u16) -> f32) {
    for (pair, &word) in out.chunks_mut(2).zip(words) {
        for (half, out) in pair.iter_mut().enumerate() {
            *out = convert((word >> (16 * half)) as u16);
        }
    }
}

/// Packs a matrix row by row. `fill` writes the f32 values of the row with the given index. Rows are quantized on all
/// cores, because the search for the best scales takes long.
fn pack_rows(
    dtype: Dtype,
    rows: usize,
    cols: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<PackedRows<'static>> {
    blocks::check_blocks(dtype, cols)?;
    if dtype.is_quantized() && !dtype.can_quantize() {
        return Err(Error::new(ErrorKind::Internal, format!("values cannot be quantized to {dtype}")));
    }
    let cores = match cfg!(target_family = "wasm") {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, usize::from),
    };
    // Starting a thread pays off from about a million values on.
    let threads = if dtype.is_quantized() { cores.min(rows * cols / (1 << 20)).max(1) } else { 1 };
    if threads == 1 {
        let words = Cow::Owned(pack_range(dtype, 0..rows, cols, &fill)?);
        return Ok(PackedRows { dtype, rows, cols, words });
    }
    let each = rows.div_ceil(threads);
    let fill = &fill;
    let parts = std::thread::scope(|scope| {
        let start = |thread: usize| {
            let range = (thread * each).min(rows)..((thread + 1) * each).min(rows);
            scope.spawn(move || pack_range(dtype, range, cols, fill))
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<u32>>>| {
            thread.join().map_err(|_| Error::new(ErrorKind::Internal, "a thread that quantizes rows has panicked"))?
        };
        running.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    Ok(PackedRows { dtype, rows, cols, words: Cow::Owned(parts.concat()) })
}

/// The packed words of some rows.
fn pack_range(dtype: Dtype, rows: Range<usize>, cols: usize, fill: &impl Fn(usize, &mut [f32])) -> Result<Vec<u32>> {
    let mut words = Vec::with_capacity(rows.len() * dtype.row_words(cols));
    let mut values = vec![0.0f32; cols];
    for row in rows {
        fill(row, &mut values);
        let finite = match dtype {
            Dtype::F32 => {
                words.extend(values.iter().map(|value| value.to_bits()));
                true
            }
            Dtype::F16 => pack_halves(&values, &mut words, |value| {
                let half = f16::from_f32(value);
                (half.to_bits(), half.is_infinite())
            }),
            Dtype::BF16 => pack_halves(&values, &mut words, |value| {
                let half = bf16::from_f32(value);
                (half.to_bits(), half.is_infinite())
            }),
            _ => quantize::quantize(dtype, &values, &mut words),
        };
        if !finite {
            if dtype.is_quantized()
                && let Some(value) = values.iter().find(|value| !value.is_finite())
            {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("a weight that is no finite number cannot be {dtype}"),
                )
                .at(format!("row {row}"))
                .found(value)
                .help("the file is damaged, or the training that made it has failed: use another copy of the model"));
            }
            let largest = values.iter().filter(|value| value.is_finite()).fold(0.0f32, |max, v| max.max(v.abs()));
            return Err(Error::new(ErrorKind::Model, format!("a weight overflows {dtype}"))
                .at(format!("row {row}"))
                .found(format!("a value of magnitude {largest:e}"))
                .help("keep these weights in the element type of the file"));
        }
    }
    Ok(words)
}

/// Packs one row with two elements per word. Returns false if a finite value became infinite.
fn pack_halves(values: &[f32], words: &mut Vec<u32>, convert: impl Fn(f32) -> (u16, bool)) -> bool {
    let mut finite = true;
    words.extend(values.chunks(2).map(|pair| {
        pair.iter().enumerate().fold(0, |word, (half, &value)| {
            let (bits, infinite) = convert(value);
            finite &= !infinite || value.is_infinite();
            word | u32::from(bits) << (16 * half)
        })
    }));
    finite
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype::{BF16, F16, F32};

    fn le_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        match dtype {
            F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }

    /// Distinct small integers that every element type represents exactly.
    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32 - 20.0).collect()
    }

    #[test]
    fn the_even_column_is_in_the_low_half_and_rows_start_at_words() -> Result<()> {
        let bytes = le_bytes(F16, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let (one, two) = (f16::from_f32(1.0).to_bits(), f16::from_f32(2.0).to_bits());
        let odd = PackedRows::from_le_bytes(F16, 2, 3, &bytes)?;
        assert_eq!(odd.words_per_row(), 2);
        assert_eq!(odd.words()[0], u32::from(one) | u32::from(two) << 16);
        assert_eq!(odd.words()[1], u32::from(f16::from_f32(3.0).to_bits()), "the padding is zero");
        assert_eq!(odd.words()[2] & 0xFFFF, u32::from(f16::from_f32(4.0).to_bits()));
        assert_eq!(odd.words().len(), 4);
        Ok(())
    }

    #[test]
    fn every_dtype_and_width_unpacks_to_what_was_packed_even_unaligned() -> Result<()> {
        for dtype in [F32, F16, BF16] {
            for (rows, cols) in [(1, 1), (1, 2), (3, 1), (2, 5), (5, 4), (7, 7)] {
                let values = ramp(rows * cols);
                let bytes = le_bytes(dtype, &values);
                let aligned = PackedRows::from_le_bytes(dtype, rows, cols, &bytes)?;
                assert_eq!(aligned.to_f32(), values, "{dtype} [{rows}, {cols}]");
                assert_eq!(to_f32(dtype, &bytes), values);
                assert_eq!(PackedRows::from_f32(dtype, rows, cols, &values)?, aligned);
                for offset in 1..4 {
                    let shifted = [vec![0xAA; offset], bytes.clone()].concat();
                    assert_eq!(PackedRows::from_le_bytes(dtype, rows, cols, &shifted[offset..])?, aligned);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn aligned_even_rows_are_not_copied() -> Result<()> {
        let words = [1u32, 2, 3, 4];
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        for (dtype, cols) in [(F32, 2), (BF16, 4)] {
            let packed = PackedRows::from_le_bytes(dtype, 2, cols, bytes)?;
            assert_eq!(packed.words().as_ptr(), words.as_ptr(), "{dtype}");
        }
        Ok(())
    }

    #[test]
    fn conversions_round_to_nearest_even() -> Result<()> {
        let converted = |dtype, value: f32| Ok::<_, Error>(PackedRows::from_f32(dtype, 1, 1, &[value])?.words()[0]);
        // 1 + 2⁻¹¹ is half way between f16's 1 and 1 + 2⁻¹⁰; 1 + 3·2⁻¹¹ between that and 1 + 2⁻⁹.
        assert_eq!(converted(F16, 1.0 + 1.0 / 2048.0)?, 0x3C00);
        assert_eq!(converted(F16, 1.0 + 3.0 / 2048.0)?, 0x3C02);
        assert_eq!(converted(F16, 1.0 + 1.001 / 2048.0)?, 0x3C01);
        // The same for bf16, whose step at 1 is 2⁻⁷.
        assert_eq!(converted(BF16, 1.0 + 1.0 / 256.0)?, 0x3F80);
        assert_eq!(converted(BF16, 1.0 + 3.0 / 256.0)?, 0x3F82);
        // Subnormal f16: the smallest is 2⁻²⁴, half of it ties to zero.
        assert_eq!(converted(F16, 2f32.powi(-24))?, 1);
        assert_eq!(converted(F16, 2f32.powi(-25))?, 0);
        assert_eq!(converted(F16, 3.0 * 2f32.powi(-25))?, 2);
        Ok(())
    }

    #[test]
    fn widening_is_exact_for_every_bit_pattern() -> Result<()> {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [F16, BF16] {
            let packed = PackedRows::from_le_bytes(dtype, 256, 256, &all)?;
            let wide = packed.convert(F32)?;
            let back = wide.convert(dtype)?;
            for (word, (&before, &after)) in packed.words().iter().zip(back.words()).enumerate() {
                for half in 0..2 {
                    let (before, after) = ((before >> (16 * half)) as u16, (after >> (16 * half)) as u16);
                    let is_nan = match dtype {
                        F16 => f16::from_bits(before).is_nan() && f16::from_bits(after).is_nan(),
                        _ => bf16::from_bits(before).is_nan() && bf16::from_bits(after).is_nan(),
                    };
                    assert!(before == after || is_nan, "{dtype} word {word}: {before:04x} became {after:04x}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn overflow_is_an_error_and_infinity_is_not() -> Result<()> {
        let big = PackedRows::from_f32(BF16, 2, 1, &[1.0, 1e5])?.into_owned();
        let error = big.convert(F16).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("a weight overflows f16") && error.contains("row 1"), "{error}");
        assert!(PackedRows::from_f32(BF16, 1, 1, &[f32::MAX]).is_err());
        let infinite = PackedRows::from_f32(F16, 1, 3, &[f32::INFINITY, f32::NEG_INFINITY, f32::NAN])?.to_f32();
        assert!(infinite[0] == f32::INFINITY && infinite[1] == f32::NEG_INFINITY && infinite[2].is_nan());
        assert_eq!(PackedRows::from_f32(F16, 1, 1, &[65504.0])?.to_f32(), [65504.0]);
        // A quantized type has no such numbers.
        for (value, said) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
            let mut row = [0.25; 32];
            row[7] = value;
            let error = PackedRows::from_f32(F32, 1, 32, &row)?.convert(Dtype::Q5_0).err().map(|e| e.to_string());
            let error = error.unwrap_or_default();
            for part in ["no finite number", "q5_0", "row 0", said] {
                assert!(error.contains(part), "{part:?} is missing from:\n{error}");
            }
        }
        let error = PackedRows::from_f32(F32, 1, 32, &[1e30; 32])?.convert(Dtype::Q8_0).err().map(|e| e.to_string());
        assert!(error.is_some_and(|error| error.contains("a weight overflows q8_0")));
        Ok(())
    }

    #[test]
    fn stacked_rows_keep_their_order_and_refuse_strangers() -> Result<()> {
        let values = ramp(5 * 3);
        let whole = PackedRows::from_f32(F16, 5, 3, &values)?;
        let parts = [whole.slice_rows(0..2)?, whole.slice_rows(2..2)?, whole.slice_rows(2..5)?];
        assert_eq!(PackedRows::concat_rows(&parts)?, whole);
        let swapped = PackedRows::concat_rows(&[whole.slice_rows(2..5)?, whole.slice_rows(0..2)?])?;
        assert_eq!(swapped.to_f32(), [&values[6..], &values[..6]].concat());

        let other = PackedRows::from_f32(BF16, 1, 3, &values[..3])?;
        let narrow = PackedRows::from_f32(F16, 1, 2, &values[..2])?;
        for stranger in [other, narrow] {
            let error = PackedRows::concat_rows(&[whole.clone(), stranger]).err().map(|e| e.to_string());
            assert!(error.is_some_and(|e| e.contains("differ in width or element type")));
        }
        assert!(PackedRows::concat_rows(&[]).is_err());
        assert!(whole.slice_rows(3..6).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "it must be refused")]
        let reversed = whole.slice_rows(3..2);
        assert!(reversed.is_err());
        Ok(())
    }

    #[test]
    fn heads_are_unpaired() -> Result<()> {
        // Two heads of six rows: 0 1 2 3 4 5 in halves are 0 3 1 4 2 5 in pairs.
        let paired = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0];
        let rows = PackedRows::from_f32(F32, 12, 1, &paired)?;
        assert_eq!(rows.unpair_heads(2)?.to_f32(), (0..12).map(|i| i as f32).collect::<Vec<_>>());
        for heads in [0, 5, 12, 24] {
            assert!(rows.unpair_heads(heads).is_err(), "{heads}");
        }
        Ok(())
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let bytes = [0u8; 16];
        for (rows, cols) in [(2, 3), (usize::MAX, 2), (usize::MAX, usize::MAX), (0, 4), (1 << 62, 0)] {
            assert!(PackedRows::from_le_bytes(F32, rows, cols, &bytes).is_err(), "[{rows}, {cols}]");
            assert!(PackedRows::from_le_bytes(F32, rows, cols, &[]).is_err(), "[{rows}, {cols}]");
        }
    }
}
