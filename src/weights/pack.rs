//! Matrices as u32 words, the form in which every shader reads weights: no adapter needs a 16-bit feature for it.
//!
//! **Layout.** Row-major; f32 takes one word per element, f16 and bf16 two elements per word with the even column in the
//! low half. Each row starts at a word: where a 16-bit matrix has an odd number of columns, the high half of each row's last word
//! is zero padding, and [`PackedRows::words_per_row`] is ⌈cols / 2⌉.
use crate::{Error, ErrorKind, Result};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::Range;

/// Element types that can be packed into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedDtype {
    /// IEEE 754 binary32: one element per word.
    F32,
    /// IEEE 754 binary16: two elements per word.
    F16,
    /// The upper half of an f32: two elements per word.
    BF16,
}

impl PackedDtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Elements in one word.
    pub const fn per_word(self) -> usize {
        4 / self.size()
    }

    /// `f32`, `f16` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

impl std::fmt::Display for PackedDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A matrix of `[rows, cols]` in words: see the [module](self) for the layout. Borrows the file's bytes where it can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedRows<'a> {
    dtype: PackedDtype,
    rows: usize,
    cols: usize,
    words: Cow<'a, [u32]>,
}

impl<'a> PackedRows<'a> {
    /// Packs row-major little-endian elements. Copies only when the bytes are unaligned or rows need padding.
    ///
    /// # Errors
    /// When `bytes` does not hold exactly `rows × cols` elements, or there are none.
    pub fn from_le_bytes(dtype: PackedDtype, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self> {
        check_size(rows, cols)?;
        let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        if expected != Some(bytes.len()) {
            return Err(Error::new(ErrorKind::Model, "a matrix has the wrong number of bytes")
                .expected(format!("{rows} × {cols} {dtype}"))
                .found(format!("{} bytes", bytes.len())));
        }
        let row_bytes = cols * dtype.size();
        let words = if row_bytes % 4 == 0 {
            match bytemuck::try_cast_slice::<u8, u32>(bytes) {
                Ok(words) if cfg!(target_endian = "little") => Cow::Borrowed(words),
                _ => Cow::Owned(bytes.chunks_exact(4).map(word).collect()),
            }
        } else {
            Cow::Owned(bytes.chunks_exact(row_bytes).flat_map(|row| row.chunks(4).map(word)).collect())
        };
        Ok(Self { dtype, rows, cols, words })
    }

    /// Rounds row-major f32 values to `dtype`, to nearest, ties to even.
    ///
    /// # Errors
    /// When there are not exactly `rows × cols` values or none, or a finite one overflows `dtype`.
    pub fn from_f32(dtype: PackedDtype, rows: usize, cols: usize, values: &[f32]) -> Result<PackedRows<'static>> {
        check_size(rows, cols)?;
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::new(ErrorKind::Internal, "a matrix has the wrong number of elements")
                .expected(format!("{rows} × {cols}"))
                .found(values.len()));
        }
        pack_rows(dtype, rows, cols, |row, out| out.copy_from_slice(&values[row * cols..][..cols]))
    }

    /// Element type.
    pub fn dtype(&self) -> PackedDtype {
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

    /// Words from the start of one row to the start of the next.
    pub fn words_per_row(&self) -> usize {
        self.cols.div_ceil(self.dtype.per_word())
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

    /// The same values in another dtype, rounded to nearest, ties to even; borrowed where nothing changes. Infinities
    /// and NaN stay what they are.
    ///
    /// # Errors
    /// When a finite value overflows `dtype`: an infinite weight would only show as NaN logits.
    pub fn convert(&self, dtype: PackedDtype) -> Result<PackedRows<'_>> {
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
            PackedDtype::F32 => out.iter_mut().zip(words).for_each(|(out, &word)| *out = f32::from_bits(word)),
            PackedDtype::F16 => unpack_halves(words, out, |bits| f16::from_bits(bits).to_f32()),
            PackedDtype::BF16 => unpack_halves(words, out, |bits| bf16::from_bits(bits).to_f32()),
        }
    }
}

/// Little-endian elements as f32, exactly. Bytes beyond the last whole element are ignored.
pub fn to_f32(dtype: PackedDtype, bytes: &[u8]) -> Vec<f32> {
    let halves = |convert: fn(u16) -> f32| {
        bytes.as_chunks::<2>().0.iter().map(|&pair| convert(u16::from_le_bytes(pair))).collect()
    };
    match dtype {
        PackedDtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
        PackedDtype::F16 => halves(|bits| f16::from_bits(bits).to_f32()),
        PackedDtype::BF16 => halves(|bits| bf16::from_bits(bits).to_f32()),
    }
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
    dtype: PackedDtype,
    rows: usize,
    cols: usize,
    mut fill: impl FnMut(usize, &mut [f32]),
) -> Result<PackedRows<'static>> {
    let mut words = Vec::with_capacity(rows * cols.div_ceil(dtype.per_word()));
    let mut values = vec![0.0f32; cols];
    for row in 0..rows {
        fill(row, &mut values);
        let finite = match dtype {
            PackedDtype::F32 => {
                words.extend(values.iter().map(|value| value.to_bits()));
                true
            }
            PackedDtype::F16 => pack_halves(&values, &mut words, |value| {
                let half = f16::from_f32(value);
                (half.to_bits(), half.is_infinite())
            }),
            PackedDtype::BF16 => pack_halves(&values, &mut words, |value| {
                let half = bf16::from_f32(value);
                (half.to_bits(), half.is_infinite())
            }),
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
