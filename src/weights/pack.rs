//! Matrices as u32 words, the form in which every shader reads weights: no adapter needs a 16-bit feature for it.
//!
//! **Layout.** Row-major; f32 takes one word per element, f16 and bf16 two elements per word with the even column in the
//! low half. Each row starts at a word: where a 16-bit matrix has an odd number of columns, the high half of each row's last word
//! is zero padding, and [`PackedRows::words_per_row`] is ⌈cols / 2⌉.
//!
//! **Quantized** (GGUF's Q8_0 and Q4_0, kept as they are): a row is its quants, then its scales, so that quants are whole
//! 4-word vectors and a row can be moved, stacked and cut like any other. Value `c` is `scale[c / 32] · quant[c]`, exact in f32.
//!
//! | | quants, from word 0 of the row | scales, from word `cols / per_word` |
//! |---|---|---|
//! | Q8_0 | i8, four a word, column `4 i` in the low byte | f16, two a word, the even block's in the low half; |
//! | Q4_0 | u4 less 8, eight a word: columns `8 i + j` in the low, `8 i + 4 + j` in the high nibble of byte `j` | zero padding up to a 4-word vector |
use crate::dtype::{BLOCK, Dtype};
use crate::{Error, ErrorKind, Result};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::Range;

/// A matrix of `[rows, cols]` in words: see the [module](self) for the layout. Borrows the file's bytes where it can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRows<'a> {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    words: Cow<'a, [u32]>,
}

impl<'a> PackedRows<'a> {
    /// Packs row-major little-endian elements, or GGUF's blocks. Copies only when the bytes are unaligned, rows need padding
    /// or elements are quantized.
    ///
    /// # Errors
    /// When `bytes` does not hold exactly `rows × cols` elements, or there are none; when rows are no whole number of blocks,
    /// or a scale is not finite.
    pub fn from_le_bytes(dtype: Dtype, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self> {
        check_size(rows, cols)?;
        check_blocks(dtype, cols)?;
        let expected = rows.checked_mul(cols).and_then(|n| dtype.stored_bytes(n));
        if expected != Some(bytes.len()) {
            return Err(Error::new(ErrorKind::Model, "a matrix has the wrong number of bytes")
                .expected(format!("{rows} × {cols} {dtype}"))
                .found(format!("{} bytes", bytes.len())));
        }
        if dtype.is_quantized() {
            return Self::from_blocks(dtype, rows, cols, bytes);
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

    fn from_blocks(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Result<Self> {
        let (block, block_bytes) = dtype.stored_block();
        let mut words = Vec::with_capacity(rows * dtype.row_words(cols));
        let mut scales = Vec::with_capacity(cols / block);
        for (row, blocks) in bytes.chunks_exact(cols / block * block_bytes).enumerate() {
            scales.clear();
            for block in blocks.chunks_exact(block_bytes) {
                let (scale, quants) = block.split_at(2);
                let bits = u16::from_le_bytes([scale[0], scale[1]]);
                if !f16::from_bits(bits).is_finite() {
                    return Err(Error::new(ErrorKind::Model, "a quantized block has a scale that is not finite")
                        .at(format!("row {row}"))
                        .found(f16::from_bits(bits))
                        .help("the file is damaged: download it again"));
                }
                scales.push(bits);
                let quants = quants.as_chunks::<4>().0.iter().map(|&four| u32::from_le_bytes(four));
                match dtype {
                    Dtype::Q4_0 => {
                        // GGUF keeps column j in the low and column 16 + j in the high nibble of byte j.
                        const LOW: u32 = 0x0f0f_0f0f;
                        let mut q = [0u32; 4];
                        quants.enumerate().for_each(|(i, word)| q[i] = word);
                        words.extend([(q[0], q[1]), (q[2], q[3])].map(|(a, b)| a & LOW | (b & LOW) << 4));
                        words.extend([(q[0], q[1]), (q[2], q[3])].map(|(a, b)| a >> 4 & LOW | b & !LOW));
                    }
                    _ => words.extend(quants),
                }
            }
            push_scales(&mut words, &scales);
        }
        Ok(Self { dtype, rows, cols, words: Cow::Owned(words) })
    }

    /// Rounds row-major f32 values to `dtype`, to nearest, ties to even; quantizes as GGUF's reference does.
    ///
    /// # Errors
    /// When there are not exactly `rows × cols` values or none, or a finite one overflows `dtype`; when rows are no whole
    /// number of blocks, or a value to quantize is not finite.
    pub fn from_f32(dtype: Dtype, rows: usize, cols: usize, values: &[f32]) -> Result<PackedRows<'static>> {
        check_size(rows, cols)?;
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::new(ErrorKind::Internal, "a matrix has the wrong number of elements")
                .expected(format!("{rows} × {cols}"))
                .found(values.len()));
        }
        pack_rows(dtype, rows, cols, |row, out| out.copy_from_slice(&values[row * cols..][..cols]))
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number of rows: the outputs of a linear layer, or the tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the inputs of a linear layer, or the width of an embedding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Dtype from the start of one row to the start of the next.
    pub fn words_per_row(&self) -> usize {
        self.dtype.row_words(self.cols)
    }

    /// All words, `rows × words_per_row`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// All words, moved out; copies if they are borrowed.
    pub fn into_words(self) -> Vec<u32> {
        self.words.into_owned()
    }

    /// Bytes of all words.
    pub fn byte_len(&self) -> usize {
        self.words.len() * 4
    }

    /// The same matrix, owning its words.
    pub fn into_owned(self) -> PackedRows<'static> {
        PackedRows { dtype: self.dtype, rows: self.rows, cols: self.cols, words: Cow::Owned(self.words.into_owned()) }
    }

    /// Some consecutive rows, borrowed.
    ///
    /// # Errors
    /// When `range` does not lie within `0..rows`.
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

    /// Ranges of rows, ascending, that cover the matrix and each take at most `max_bytes`: how a matrix larger than an
    /// adapter's largest binding is cut. As few parts as possible, their sizes differing by at most one row.
    ///
    /// # Errors
    /// When not even one row fits.
    pub fn split_rows(&self, max_bytes: u64) -> Result<Vec<Range<usize>>> {
        let row_bytes = self.words_per_row() as u64 * 4;
        if row_bytes > max_bytes {
            return Err(Error::new(ErrorKind::Device, "one row of a matrix is larger than the adapter can bind")
                .expected(format!("at most {max_bytes} bytes"))
                .found(format!("{} columns of {}: {row_bytes} bytes", self.cols, self.dtype)));
        }
        let parts = ((self.rows as u64).div_ceil(max_bytes / row_bytes) as usize).max(1);
        let (size, larger) = (self.rows / parts, self.rows % parts);
        let mut start = 0;
        Ok((0..parts)
            .map(|part| {
                let end = start + size + usize::from(part < larger);
                std::mem::replace(&mut start, end)..end
            })
            .collect())
    }

    /// Stacks matrices of the same width and dtype, first on top: fused q, k, v or gate, up.
    ///
    /// # Errors
    /// When widths or dtypes differ, or `parts` is empty.
    pub fn concat_rows(parts: &[PackedRows<'_>]) -> Result<PackedRows<'static>> {
        let Some(first) = parts.first() else {
            return Err(Error::new(ErrorKind::Internal, "no matrices to stack"));
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

    /// Rows of `a` and `b` in turn: `a[0], b[0], a[1], …`, for the fused gate/up product. The result has `a`'s dtype, or f32
    /// where they differ and one is quantized: no value changes.
    ///
    /// # Errors
    /// When the shapes differ, or converting `b` overflows.
    pub fn interleave_rows(a: &PackedRows<'_>, b: &PackedRows<'_>) -> Result<PackedRows<'static>> {
        if (a.rows, a.cols) != (b.rows, b.cols) {
            return Err(Error::new(ErrorKind::Internal, "matrices to interleave differ in shape")
                .expected(format!("{} × {}", a.rows, a.cols))
                .found(format!("{} × {}", b.rows, b.cols)));
        }
        let exact = a.dtype != b.dtype && (a.dtype.is_quantized() || b.dtype.is_quantized());
        let dtype = if exact { Dtype::F32 } else { a.dtype };
        let (a, b) = (a.convert(dtype)?, b.convert(dtype)?);
        let n = a.words_per_row();
        let rows = a.words.chunks_exact(n).zip(b.words.chunks_exact(n));
        let words = rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
        Ok(PackedRows { dtype, rows: 2 * a.rows, cols: a.cols, words: Cow::Owned(words) })
    }

    /// Each head's rows from pairs to halves: row `2 j + i` of a head of `d` becomes row `i d / 2 + j`. GGUF keeps the queries and
    /// keys of Llama in the order of Meta's own rotation, in which neighbours turn together.
    ///
    /// # Errors
    /// When the rows are not `heads` heads of an even number of rows each.
    pub fn unpair_heads(&self, heads: usize) -> Result<PackedRows<'static>> {
        let n = self.words_per_row();
        let mut words = Vec::with_capacity(self.words.len());
        for row in unpaired(self.rows, heads)? {
            words.extend_from_slice(&self.words[row * n..][..n]);
        }
        Ok(PackedRows { dtype: self.dtype, rows: self.rows, cols: self.cols, words: Cow::Owned(words) })
    }

    /// The same values in another dtype, rounded to nearest, ties to even; borrowed where nothing changes. Infinities
    /// and NaN stay what they are.
    ///
    /// # Errors
    /// When a finite value overflows `dtype`: an infinite weight would only show as NaN logits.
    pub fn convert(&self, dtype: Dtype) -> Result<PackedRows<'_>> {
        if dtype == self.dtype {
            return self.slice_rows(0..self.rows);
        }
        pack_rows(dtype, self.rows, self.cols, |row, out| self.unpack_row(row, out))
    }

    /// All values as f32, row-major, without padding.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        values.chunks_exact_mut(self.cols).enumerate().for_each(|(row, out)| self.unpack_row(row, out));
        values
    }

    /// Row `row` as f32 into `out`, which holds `cols` values.
    fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let words = &self.words[row * self.words_per_row()..][..self.words_per_row()];
        match self.dtype {
            Dtype::F32 => out.iter_mut().zip(words).for_each(|(out, &word)| *out = f32::from_bits(word)),
            Dtype::F16 => unpack_halves(words, out, |bits| f16::from_bits(bits).to_f32()),
            Dtype::BF16 => unpack_halves(words, out, |bits| bf16::from_bits(bits).to_f32()),
            Dtype::Q8_0 | Dtype::Q4_0 => {
                out.iter_mut().enumerate().for_each(|(c, out)| *out = self.dtype.quantized(words, self.cols, c) as f32);
            }
        }
    }
}

impl Dtype {
    /// Value `column` of the quantized row `words` of `cols` values, exactly.
    pub(crate) fn quantized(self, words: &[u32], cols: usize, column: usize) -> f64 {
        let block = column / BLOCK;
        let scale = (words[cols / self.per_word() + block / 2] >> (16 * (block % 2))) as u16;
        let word = words[column / self.per_word()];
        let quant = match self {
            Self::Q4_0 => {
                let byte = word >> (8 * (column % 4));
                let nibble = if column % 8 < 4 { byte } else { byte >> 4 };
                (nibble & 15) as i32 - 8
            }
            _ => i32::from((word >> (8 * (column % 4))) as i8),
        };
        f16::from_bits(scale).to_f64() * f64::from(quant)
    }
}

/// The rows of a matrix of `heads` heads in the order that undoes GGUF's pairing; see [`PackedRows::unpair_heads`].
///
/// # Errors
/// When the rows are not `heads` heads of an even number of rows each.
pub(crate) fn unpaired(rows: usize, heads: usize) -> Result<impl Iterator<Item = usize>> {
    let d = rows.checked_div(heads).unwrap_or(0);
    if d == 0 || !d.is_multiple_of(2) || d * heads != rows {
        return Err(Error::new(ErrorKind::Model, "rows are not whole heads")
            .expected(format!("{heads} heads of an even number of rows"))
            .found(format!("{rows} rows")));
    }
    Ok((0..rows).map(move |row| {
        let (head, at) = (row / d, row % d);
        head * d + at % (d / 2) * 2 + at / (d / 2)
    }))
}

/// Little-endian elements as f32, exactly. Bytes beyond the last whole element are ignored. Not for quantized elements, of
/// which there are no vectors: none come back.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let halves = |convert: fn(u16) -> f32| {
        bytes.as_chunks::<2>().0.iter().map(|&pair| convert(u16::from_le_bytes(pair))).collect()
    };
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
        Dtype::F16 => halves(|bits| f16::from_bits(bits).to_f32()),
        Dtype::BF16 => halves(|bits| bf16::from_bits(bits).to_f32()),
        Dtype::Q8_0 | Dtype::Q4_0 => Vec::new(),
    }
}

/// Quantized rows are whole blocks.
fn check_blocks(dtype: Dtype, cols: usize) -> Result<()> {
    if !dtype.is_quantized() || cols.is_multiple_of(BLOCK) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Model, format!("a {dtype} matrix has rows that are not whole blocks"))
        .expected(format!("a multiple of {BLOCK} columns"))
        .found(format!("{cols} columns")))
}

/// Two scales a word, then zeros up to a whole 4-word vector.
fn push_scales(words: &mut Vec<u32>, scales: &[u16]) {
    let before = words.len();
    words.extend(scales.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16));
    words.resize(before + (words.len() - before).next_multiple_of(4), 0);
}

/// Quantizes a row as ggml's reference does; false when a value is not finite.
fn quantize(dtype: Dtype, values: &[f32], words: &mut Vec<u32>) -> bool {
    let mut scales = Vec::with_capacity(values.len() / BLOCK);
    for block in values.chunks_exact(BLOCK) {
        // The value of the largest magnitude, with its sign.
        let most = block.iter().fold(0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
        let scale = if dtype == Dtype::Q4_0 { most / -8.0 } else { most.abs() / 127.0 };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        scales.push(f16::from_f32(scale).to_bits());
        match dtype {
            Dtype::Q4_0 => {
                let nibble = |v: f32| ((v * inverse + 8.5) as u32).min(15);
                words.extend(block.chunks_exact(8).map(|eight| {
                    (0..4).fold(0, |word, j| word | (nibble(eight[j]) | nibble(eight[4 + j]) << 4) << (8 * j))
                }));
            }
            _ => words.extend(block.chunks_exact(4).map(|four| {
                (0..4).fold(0, |word, j| word | u32::from((four[j] * inverse).round() as i8 as u8) << (8 * j))
            })),
        }
    }
    push_scales(words, &scales);
    values.iter().all(|v| v.is_finite()) && scales.iter().all(|s| f16::from_bits(*s).is_finite())
}

/// A matrix has elements: one with endless rows of none would pass every check of its bytes.
fn check_size(rows: usize, cols: usize) -> Result<()> {
    if rows > 0 && cols > 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Model, "a matrix is empty")
        .expected("rows and columns")
        .found(format!("[{rows}, {cols}]")))
}

/// A word from up to four little-endian bytes; missing ones are zero.
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

/// Packs rows that `fill` writes as f32, one after the other.
fn pack_rows(
    dtype: Dtype,
    rows: usize,
    cols: usize,
    mut fill: impl FnMut(usize, &mut [f32]),
) -> Result<PackedRows<'static>> {
    check_blocks(dtype, cols)?;
    let mut words = Vec::with_capacity(rows * dtype.row_words(cols));
    let mut values = vec![0.0f32; cols];
    for row in 0..rows {
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
            Dtype::Q8_0 | Dtype::Q4_0 => quantize(dtype, &values, &mut words),
        };
        if !finite {
            let largest = values.iter().filter(|value| value.is_finite()).fold(0.0f32, |max, v| max.max(v.abs()));
            return Err(Error::new(ErrorKind::Model, format!("a weight overflows {dtype}"))
                .at(format!("row {row}"))
                .found(format!("a value of magnitude {largest:e}"))
                .help("keep these weights in their own element type"));
        }
    }
    Ok(PackedRows { dtype, rows, cols, words: Cow::Owned(words) })
}

/// Packs one row two by two; false when a finite value became infinite.
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
    use crate::dtype::Dtype::{BF16, F16, F32, Q4_0, Q8_0};

    fn le_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
        match dtype {
            F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }

    /// Distinct small integers, exact in every dtype.
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
        let to = |dtype, value: f32| Ok::<_, Error>(PackedRows::from_f32(dtype, 1, 1, &[value])?.words()[0]);
        // 1 + 2⁻¹¹ is half way between f16's 1 and 1 + 2⁻¹⁰; 1 + 3·2⁻¹¹ between that and 1 + 2⁻⁹.
        assert_eq!(to(F16, 1.0 + 1.0 / 2048.0)?, 0x3C00);
        assert_eq!(to(F16, 1.0 + 3.0 / 2048.0)?, 0x3C02);
        assert_eq!(to(F16, 1.0 + 1.001 / 2048.0)?, 0x3C01);
        // The same for bf16, whose step at 1 is 2⁻⁷.
        assert_eq!(to(BF16, 1.0 + 1.0 / 256.0)?, 0x3F80);
        assert_eq!(to(BF16, 1.0 + 3.0 / 256.0)?, 0x3F82);
        // Subnormal f16: the smallest is 2⁻²⁴, half of it ties to zero.
        assert_eq!(to(F16, 2f32.powi(-24))?, 1);
        assert_eq!(to(F16, 2f32.powi(-25))?, 0);
        assert_eq!(to(F16, 3.0 * 2f32.powi(-25))?, 2);
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
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = whole.slice_rows(3..2);
        assert!(reversed.is_err());
        Ok(())
    }

    #[test]
    fn parts_cover_all_rows_fit_and_are_as_few_and_even_as_possible() -> Result<()> {
        for (rows, cols, max) in [(10, 3, 8), (10, 3, 24), (10, 3, 25), (10, 3, 80), (7, 1, 4), (1, 1, 4), (100, 2, 56)]
        {
            let matrix = PackedRows::from_f32(F16, rows, cols, &ramp(rows * cols))?;
            let parts = matrix.split_rows(max)?;
            let mut next = 0;
            for part in &parts {
                assert_eq!(part.start, next);
                assert!(matrix.slice_rows(part.clone())?.byte_len() as u64 <= max && !part.is_empty());
                next = part.end;
            }
            assert_eq!(next, rows);
            let row = matrix.words_per_row() * 4;
            assert_eq!(parts.len(), rows.div_ceil(max as usize / row), "{rows} rows of {row} bytes in {max}");
            let sizes = parts.iter().map(ExactSizeIterator::len);
            assert!(sizes.clone().max().unwrap_or(0) - sizes.min().unwrap_or(0) <= 1);
        }
        let error = PackedRows::from_f32(F32, 2, 3, &ramp(6))?.split_rows(11).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("one row of a matrix") && e.contains("12 bytes")));
        Ok(())
    }

    /// One block of each kind by hand: where each quant and scale goes, and what it means.
    #[test]
    fn quantized_blocks_are_repacked_and_mean_the_same() -> Result<()> {
        let scales = [0.5f32, -2.0, 3.0].map(f16::from_f32);
        let cols = 3 * BLOCK;
        for dtype in [Q8_0, Q4_0] {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for row in 0..5 {
                for scale in scales {
                    bytes.extend(scale.to_le_bytes());
                    let quant = |c: usize| ((c * 37 + row * 11) % 256) as u8;
                    match dtype {
                        Q8_0 => {
                            bytes.extend((0..BLOCK).map(quant));
                            expected.extend((0..BLOCK).map(|c| scale.to_f32() * f32::from(quant(c) as i8)));
                        }
                        _ => {
                            let nibble = |c: usize| quant(c) % 16;
                            bytes.extend((0..16).map(|j| nibble(j) | nibble(16 + j) << 4));
                            expected.extend((0..BLOCK).map(|c| scale.to_f32() * (f32::from(nibble(c)) - 8.0)));
                        }
                    }
                }
            }
            let packed = PackedRows::from_le_bytes(dtype, 5, cols, &bytes)?;
            assert_eq!(packed.words_per_row(), cols / dtype.per_word() + 4, "two words of scales fill four");
            assert_eq!(packed.words().len(), 5 * packed.words_per_row());
            assert_eq!(packed.to_f32(), expected, "{dtype}");
            assert_eq!(packed.convert(F32)?.to_f32(), expected);
            // Rows move whole.
            let parts = [packed.slice_rows(2..5)?, packed.slice_rows(0..2)?];
            let moved = PackedRows::concat_rows(&parts)?;
            assert_eq!(moved.to_f32(), [&expected[2 * cols..], &expected[..2 * cols]].concat());
            let other = PackedRows::from_f32(F16, 5, cols, &vec![1.5; 5 * cols])?;
            let mixed = PackedRows::interleave_rows(&packed, &other)?;
            assert_eq!((mixed.dtype(), &mixed.to_f32()[..cols], mixed.to_f32()[cols]), (F32, &expected[..cols], 1.5));
            assert_eq!(PackedRows::interleave_rows(&packed, &packed)?.dtype(), dtype);

            bytes[0..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
            let error = PackedRows::from_le_bytes(dtype, 5, cols, &bytes).err().map(|e| e.to_string());
            assert!(error.is_some_and(|e| e.contains("scale that is not finite") && e.contains("row 0")));
            let error = PackedRows::from_le_bytes(dtype, 5, 40, &bytes).err().map(|e| e.to_string());
            assert!(error.is_some_and(|e| e.contains("not whole blocks") && e.contains("40 columns")));
        }
        Ok(())
    }

    #[test]
    fn quantizing_rounds_to_half_a_step() -> Result<()> {
        let values: Vec<f32> = (0..4 * BLOCK).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        for (dtype, steps) in [(Q8_0, 127.0), (Q4_0, 8.0)] {
            let found = PackedRows::from_f32(dtype, 2, 2 * BLOCK, &values)?.to_f32();
            for (found, block) in found.chunks(BLOCK).zip(values.chunks(BLOCK)) {
                let most = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                // Q4_0 has no +8: the other end is a whole step off.
                let bound = if dtype == Q4_0 { 1.001 } else { 0.51 } * most / steps;
                assert!(found.iter().zip(block).all(|(a, b)| (a - b).abs() <= bound), "{dtype}: {found:?} {block:?}");
            }
            assert_eq!(PackedRows::from_f32(dtype, 1, BLOCK, &[0.0; BLOCK])?.to_f32(), [0.0; BLOCK]);
            assert!(PackedRows::from_f32(dtype, 1, BLOCK, &[f32::NAN; BLOCK]).is_err());
            assert!(PackedRows::from_f32(dtype, 1, 8, &[1.0; 8]).is_err());
        }
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
