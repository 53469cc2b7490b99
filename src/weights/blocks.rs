//! The quantized blocks of GGUF: repacking for the shaders, and reading values.
//!
//! The [module `pack`](super::pack) describes the layout of packed rows for all element types. The blocks are those
//! of ggml's `ggml-common.h`.
use super::DOWNLOAD_AGAIN;
use crate::dtype::{Dtype, Format, LEVELS, Scales};
use crate::{Error, ErrorKind, Result};
use half::f16;

/// Columns of the largest block.
const MOST: usize = 256;

/// A block that has been taken apart: its contents in the order of its columns.
pub(super) struct Block {
    /// The quants, each in its own byte, before the offset is subtracted.
    pub quants: [u8; MOST],
    /// The bytes of scales and minima that some of the columns share, in the order of [`Scales`].
    pub shared: [u8; 16],
    /// The bits of the f16 scale.
    pub d: u16,
    /// The bits of the f16 minimum, or of its scale.
    pub m: u16,
}

impl Block {
    pub const EMPTY: Self = Self { quants: [0; MOST], shared: [0; 16], d: 0, m: 0 };

    /// Takes apart the block `bytes` of a GGUF file.
    fn read(&mut self, dtype: Dtype, bytes: &[u8]) {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let nibble = |byte: u8, high: usize| byte >> (4 * high) & 15;
        let columns = &mut self.quants[..dtype.stored_block().0];
        let each = |columns: &mut [u8], quant: &dyn Fn(usize) -> u8| {
            columns.iter_mut().enumerate().for_each(|(i, q)| *q = quant(i));
        };
        // The fifth bit of column `i` in Q5_0 and Q5_1, and two bits of column `i` in blocks of 256.
        let bit = |at: usize, i: usize| bytes[at + i / 8] >> (i % 8) & 1;
        let pair = |at: usize, i: usize| bytes[at + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3;
        (self.d, self.m) = (half(0), 0);
        match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => {}
            Dtype::Q8_0 => columns.copy_from_slice(&bytes[2..]),
            Dtype::Q4_0 | Dtype::Iq4Nl => each(columns, &|i| nibble(bytes[2 + i % 16], i / 16)),
            Dtype::Q4_1 => {
                self.m = half(2);
                each(columns, &|i| nibble(bytes[4 + i % 16], i / 16));
            }
            Dtype::Q5_0 => each(columns, &|i| nibble(bytes[6 + i % 16], i / 16) | bit(2, i) << 4),
            Dtype::Q5_1 => {
                self.m = half(2);
                each(columns, &|i| nibble(bytes[8 + i % 16], i / 16) | bit(4, i) << 4);
            }
            Dtype::Q2K => {
                (self.d, self.m) = (half(80), half(82));
                self.shared.copy_from_slice(&bytes[..16]);
                each(columns, &|i| pair(16, i));
            }
            Dtype::Q3K => {
                self.d = half(108);
                let low = |j: usize| nibble(bytes[96 + j % 8], j / 8);
                let scale = |j: usize| low(j) | (bytes[104 + j % 4] >> (2 * (j / 4)) & 3) << 4;
                self.shared = std::array::from_fn(|j| scale(j).wrapping_sub(32));
                each(columns, &|i| pair(32, i) | (bytes[i % 32] >> (i / 32) & 1) << 2);
            }
            Dtype::Q4K | Dtype::Q5K => {
                self.m = half(2);
                let packed = &bytes[4..16];
                for j in 0..4 {
                    self.shared[j] = packed[j] & 63;
                    self.shared[8 + j] = packed[4 + j] & 63;
                    self.shared[4 + j] = packed[8 + j] & 15 | packed[j] >> 6 << 4;
                    self.shared[12 + j] = packed[8 + j] >> 4 | packed[4 + j] >> 6 << 4;
                }
                match dtype {
                    Dtype::Q4K => each(columns, &|i| nibble(bytes[16 + 32 * (i / 64) + i % 32], i / 32 % 2)),
                    _ => each(columns, &|i| {
                        nibble(bytes[48 + 32 * (i / 64) + i % 32], i / 32 % 2)
                            | (bytes[16 + i % 32] >> (i / 32) & 1) << 4
                    }),
                }
            }
            Dtype::Q6K => {
                self.d = half(208);
                self.shared.copy_from_slice(&bytes[192..208]);
                each(columns, &|i| nibble(bytes[64 * (i / 128) + i % 64], i / 64 % 2) | pair(128, i) << 4);
            }
            Dtype::Iq4Xs => {
                let high = half(2);
                for j in 0..8 {
                    let scale = nibble(bytes[4 + j / 2], j % 2) | ((high >> (2 * j) & 3) << 4) as u8;
                    self.shared[j] = scale.wrapping_sub(32);
                }
                each(columns, &|i| nibble(bytes[8 + 16 * (i / 32) + i % 16], i % 32 / 16));
            }
        }
    }

    /// Whether scale and minimum are finite.
    pub fn is_finite(&self) -> bool {
        [self.d, self.m].into_iter().all(|bits| f16::from_bits(bits).is_finite())
    }
}

/// Packs the blocks of a GGUF file.
///
/// # Errors
/// If a scale is not finite.
pub(super) fn repack(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Result<Vec<u32>> {
    let format = dtype.format().expect("a quantized type");
    let row_words = dtype.row_words(cols);
    let mut words = vec![0; rows * row_words];
    let mut block = Block::EMPTY;
    let stored = bytes.chunks_exact(cols / format.block * format.block_bytes);
    for (row, (stored, words)) in stored.zip(words.chunks_exact_mut(row_words)).enumerate() {
        for (i, bytes) in stored.chunks_exact(format.block_bytes).enumerate() {
            block.read(dtype, bytes);
            if !block.is_finite() {
                let found = [block.d, block.m].map(f16::from_bits).into_iter().find(|v| !v.is_finite());
                return Err(Error::new(ErrorKind::Model, "a quantized block has a scale that is not finite")
                    .at(format!("row {row}"))
                    .found(found.unwrap_or_default())
                    .help(DOWNLOAD_AGAIN));
            }
            put(&format, &block, i, cols, words);
        }
    }
    Ok(words)
}

/// Writes block `i` of a row of `cols` columns into the `words` of the row, which are zero where nothing was written.
pub(super) fn put(format: &Format, block: &Block, i: usize, cols: usize, words: &mut [u32]) {
    let parts = format.parts(cols);
    let (low, rest) = words.split_at_mut(parts.low);
    let (high, rest) = rest.split_at_mut(parts.high);
    let (shared, scales) = rest.split_at_mut(parts.shared);
    // Four quants at a time, one in each byte. A word has 8 / bits of such groups of four, later ones in higher bits.
    let every = |bits: usize| ((1u32 << bits) - 1) * 0x0101_0101;
    let mask = if format.low_bits == 8 { u32::MAX } else { every(format.low_bits) };
    let first = i * format.block / 4;
    for (t, &four) in block.quants[..format.block].as_chunks::<4>().0.iter().enumerate() {
        let (t, four) = (first + t, u32::from_le_bytes(four));
        let each = 8 / format.low_bits;
        low[t / each] |= (four & mask) << (format.low_bits * (t % each));
        if let Some(each) = 8usize.checked_div(format.high_bits) {
            let bits = four >> format.low_bits & every(format.high_bits);
            high[t / each] |= bits << (format.high_bits * (t % each));
        }
    }
    let bytes = format.shared_bytes();
    for (j, byte) in block.shared[..bytes].iter().enumerate() {
        let at = i * bytes + j;
        shared[at / 4] |= u32::from(*byte) << (8 * (at % 4));
    }
    match format.scales.has_minimum() {
        true => scales[i] = u32::from(block.d) | u32::from(block.m) << 16,
        false => scales[i / 2] |= u32::from(block.d) << (16 * (i % 2)),
    }
}

impl Dtype {
    /// The exact values of a quantized row, given its `words`.
    pub(crate) fn read_quantized(self, words: &[u32], out: &mut [f64]) {
        let format = self.format().expect("a quantized type");
        let Planes { low, high, shared, scales } = Planes::new(&format, words, out.len());
        let (low_bits, high_bits) = (format.low_bits, format.high_bits);
        let quant = |bits: u32| match self {
            Self::Q8_0 => i32::from(bits as u8 as i8),
            _ if self.has_levels() => i32::from(LEVELS[bits as usize]),
            _ => bits as i32 - format.offset,
        };
        // The quants of four columns are in the four bytes of a word.
        let word = |plane: &[u32], bits: usize, four: usize| plane[four * bits / 8] >> (four * bits % 8);
        for (share, values) in out.chunks_mut(format.share).enumerate() {
            let (scale, minimum) = format.scales_of(shared, scales, share);
            for (i, values) in values.chunks_mut(4).enumerate() {
                let four = share * format.share / 4 + i;
                let mut bits = word(low, low_bits, four) & (0x0101_0101 * ((1 << low_bits) - 1));
                if high_bits > 0 {
                    let above = word(high, high_bits, four) & (0x0101_0101 * ((1 << high_bits) - 1));
                    bits |= above << low_bits;
                }
                for (byte, value) in values.iter_mut().enumerate() {
                    *value = scale * f64::from(quant(bits >> (8 * byte) & 0xff)) - minimum;
                }
            }
        }
    }

    /// The exact value in column `column` of a quantized row of `cols` columns, found by itself.
    #[cfg(test)]
    pub(crate) fn quantized(self, words: &[u32], cols: usize, column: usize) -> f64 {
        let format = self.format().expect("a quantized type");
        let Planes { low, high, shared, scales } = Planes::new(&format, words, cols);
        let part = |plane: &[u32], bits: usize| {
            let (four, byte) = (column / 4, column % 4);
            let each = 8 / bits;
            plane[four / each] >> (8 * byte + bits * (four % each)) & ((1 << bits) - 1)
        };
        let mut quant = part(low, format.low_bits);
        if format.high_bits > 0 {
            quant |= part(high, format.high_bits) << format.low_bits;
        }
        let quant = match self {
            Self::Q8_0 => i32::from(quant as u8 as i8),
            _ if self.has_levels() => i32::from(LEVELS[quant as usize]),
            _ => quant as i32 - format.offset,
        };
        let (scale, minimum) = format.scales_of(shared, scales, column / format.share);
        scale * f64::from(quant) - minimum
    }
}

/// The parts of a quantized row.
struct Planes<'w> {
    low: &'w [u32],
    high: &'w [u32],
    shared: &'w [u32],
    scales: &'w [u32],
}

impl<'w> Planes<'w> {
    fn new(format: &Format, words: &'w [u32], cols: usize) -> Self {
        let parts = format.parts(cols);
        let (low, rest) = words.split_at(parts.low);
        let (high, rest) = rest.split_at(parts.high);
        let (shared, scales) = rest.split_at(parts.shared);
        Self { low, high, shared, scales }
    }
}

impl Format {
    /// The scale and the minimum of the group of columns with the number `share`.
    fn scales_of(&self, shared: &[u32], scales: &[u32], share: usize) -> (f64, f64) {
        let half = |bits: u32| f16::from_bits(bits as u16).to_f64();
        let byte = |at: usize| (shared[at / 4] >> (8 * (at % 4))) as u8;
        let block = share * self.share / self.block;
        let (d, m) = match self.scales.has_minimum() {
            true => (half(scales[block]), half(scales[block] >> 16)),
            false => (half(scales[block / 2] >> (16 * (block % 2))), 0.0),
        };
        let (s, t) = match self.scales {
            Scales::One => (1, 0),
            Scales::OneWithMinimum => (1, -1),
            Scales::Nested => (i32::from(byte(share) as i8), 0),
            Scales::NestedWithMinimum if self.share == 16 => (i32::from(byte(share) & 15), i32::from(byte(share) >> 4)),
            Scales::NestedWithMinimum => {
                let at = 16 * block + share % 8;
                (i32::from(byte(at)), i32::from(byte(at + 8)))
            }
        };
        (d * f64::from(s), m * f64::from(t))
    }
}

/// Refuses quantized rows that are not whole blocks.
pub(super) fn check_blocks(dtype: Dtype, cols: usize) -> Result<()> {
    let (block, _) = dtype.stored_block();
    if cols.is_multiple_of(block) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Model, format!("a {dtype} matrix has rows that are not whole blocks"))
        .expected(format!("a multiple of {block} columns"))
        .found(format!("{cols} columns")))
}

/// Blocks with arbitrary bits as a GGUF file stores them, of values of up to about `size`. Every quant and every
/// shared scale of the type occurs. For conformance cases.
pub fn arbitrary(dtype: Dtype, rows: usize, cols: usize, seed: u32, size: f32) -> Vec<u8> {
    let format = dtype.format().expect("a quantized type");
    let mut state = u64::from(seed) * 2 + 1;
    // Knuth's MMIX generator; the upper bits are good.
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut bytes = Vec::with_capacity(rows * cols / format.block * format.block_bytes);
    for _ in 0..rows * cols / format.block {
        let block = bytes.len();
        bytes.extend((0..format.block_bytes).map(|_| next() as u8));
        // Some scales are negative, one in 16 is zero, and one in 16 is an f16 subnormal.
        let most = match (dtype, format.scales) {
            (Dtype::Q8_0 | Dtype::Iq4Nl, _) => 127.0,
            (Dtype::Iq4Xs, _) => 127.0 * 32.0,
            (Dtype::Q6K, _) => 32.0 * 128.0,
            (_, Scales::One | Scales::OneWithMinimum) => f32::from(1u8 << (format.low_bits + format.high_bits)),
            (Dtype::Q2K, _) => 4.0 * 16.0,
            _ => f32::from(1u16 << (format.low_bits + format.high_bits)) * 64.0,
        };
        let mut scale = || {
            let scale = size / most * (0.5 + (next() % 1024) as f32 / 1024.0);
            let scale = match next() % 16 {
                0 => 0.0,
                1 => 3e-6,
                _ => scale,
            };
            f16::from_f32(if next() % 2 == 0 { scale } else { -scale }).to_le_bytes()
        };
        let places: &[usize] = match dtype {
            Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
            Dtype::Q2K => &[80, 82],
            Dtype::Q3K => &[108],
            Dtype::Q6K => &[208],
            _ => &[0],
        };
        places.iter().for_each(|at| bytes[block + at..block + at + 2].copy_from_slice(&scale()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::BLOCK;
    use crate::dtype::Dtype::{F16, F32, Q4_0, Q8_0};
    use crate::weights::PackedRows;

    fn quantized() -> impl Iterator<Item = Dtype> {
        Dtype::ALL.into_iter().filter(|dtype| dtype.is_quantized())
    }

    /// Blocks of arbitrary bits, compared bit for bit with the values of the gguf package:
    /// `tests/fixtures/blocks.json`, written by `tests/fixtures/make_blocks.py`.
    #[test]
    fn blocks_mean_what_the_gguf_package_says() -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Vectors {
            bytes: String,
            values: Vec<f32>,
        }
        let text = include_str!("../../tests/fixtures/blocks.json");
        let all: std::collections::BTreeMap<String, Vectors> = serde_json::from_str(text).expect("a fixture");
        let mut seen = 0;
        for dtype in quantized() {
            let Vectors { bytes, values } = &all[dtype.name()];
            let digits = bytes.as_bytes().as_chunks::<2>().0;
            let byte = |two: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(two).expect("ASCII"), 16).expect("hex");
            let bytes: Vec<u8> = digits.iter().map(byte).collect();
            let (rows, cols) = (2, values.len() / 2);
            let packed = PackedRows::from_le_bytes(dtype, rows, cols, &bytes)?;
            let found = packed.to_f32();
            for (i, (found, expected)) in found.iter().zip(values).enumerate() {
                assert_eq!(found.to_bits(), expected.to_bits(), "{dtype}: value {i}: {found} {expected}");
            }
            seen += found.len();
        }
        assert!(seen > 10_000, "{seen} values");
        assert_eq!(all.len(), quantized().count());
        Ok(())
    }

    /// Rows move as a whole, with their scales; and every type takes a whole number of vectors.
    #[test]
    fn packed_rows_are_moved_with_their_scales() -> Result<()> {
        for dtype in quantized() {
            let (rows, cols) = (5, 3 * dtype.stored_block().0);
            let bytes = arbitrary(dtype, rows, cols, 7, 2.0);
            let packed = PackedRows::from_le_bytes(dtype, rows, cols, &bytes)?;
            let values = packed.to_f32();
            assert!(values.iter().any(|v| *v != 0.0) && values.iter().all(|v| v.abs() < 10.0), "{dtype}");
            assert_eq!(packed.words_per_row() % 4, 0);
            assert_eq!(packed.words().len(), rows * packed.words_per_row());
            assert_eq!(packed.convert(F32)?.to_f32(), values);
            let parts = [packed.slice_rows(2..5)?, packed.slice_rows(0..2)?];
            let moved = PackedRows::concat_rows(&parts)?;
            assert_eq!(moved.to_f32(), [&values[2 * cols..], &values[..2 * cols]].concat());
            assert_eq!(PackedRows::interleave_rows(&packed, &packed)?.dtype(), dtype);
            let other = PackedRows::from_f32(F16, rows, cols, &vec![1.5; rows * cols])?;
            assert!(PackedRows::interleave_rows(&packed, &other).is_err(), "types differ");
            assert_eq!(packed.clone().padded(7, cols)?.to_f32(), [&values[..], &vec![0.0; 2 * cols]].concat());
            assert!(packed.padded(5, cols + 32).is_err(), "a quantized row cannot grow");
        }
        Ok(())
    }

    #[test]
    fn damaged_blocks_are_refused() {
        for dtype in quantized() {
            let cols = 2 * dtype.stored_block().0;
            let good = arbitrary(dtype, 5, cols, 3, 1.0);
            let mut refused = 0;
            // Wherever the scales of a block are, an infinity in one of them is found.
            for at in (0..dtype.stored_block().1 - 1).step_by(2) {
                let mut bytes = good.clone();
                bytes[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
                let error = PackedRows::from_le_bytes(dtype, 5, cols, &bytes).err().map(|e| e.to_string());
                refused +=
                    error.is_some_and(|e| e.contains("scale that is not finite") && e.contains("row 0")) as usize;
            }
            let scales = dtype.format().map_or(0, |format| 1 + usize::from(format.scales.has_minimum()));
            assert_eq!(refused, scales, "{dtype}");
            let error = PackedRows::from_le_bytes(dtype, 5, 40, &good).err().map(|e| e.to_string());
            assert!(error.is_some_and(|e| e.contains("not whole blocks") && e.contains("40 columns")));
        }
    }

    #[test]
    fn quantizing_rounds_to_half_a_step() -> Result<()> {
        let values: Vec<f32> = (0..4 * BLOCK).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        for (dtype, steps) in [(Q8_0, 127.0), (Q4_0, 8.0)] {
            let found = PackedRows::from_f32(dtype, 2, 2 * BLOCK, &values)?.to_f32();
            for (found, block) in found.chunks(BLOCK).zip(values.chunks(BLOCK)) {
                let most = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                // Q4_0 has no quant +8, so the value opposite to the largest is a whole step off.
                let bound = if dtype == Q4_0 { 1.001 } else { 0.51 } * most / steps;
                assert!(found.iter().zip(block).all(|(a, b)| (a - b).abs() <= bound), "{dtype}: {found:?} {block:?}");
            }
        }
        Ok(())
    }

    /// The relative errors of ggml's own quantizer for values of a normal distribution, which is what its types can
    /// do.
    #[test]
    fn quantizing_is_as_exact_as_that_of_ggml() -> Result<()> {
        let uniform = |i: usize| ((i as u64 * 2_654_435_761 + 12_345) % 1_000_003) as f64 / 1_000_003.0;
        // The sum of 12 uniform values has a variance of 1.
        let normal = |i: usize| ((0..12).map(|j| uniform(12 * i + j)).sum::<f64>() - 6.0) as f32 * 0.02;
        let values: Vec<f32> = (0..64 * 256).map(normal).collect();
        let size: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        for (dtype, most) in [
            (Q8_0, 0.0058),
            (Dtype::Q6K, 0.0185),
            (Dtype::Q5_1, 0.041),
            (Dtype::Q5_0, 0.046),
            (Dtype::Q5K, 0.039),
            (Dtype::Q4K, 0.077),
            (Dtype::Q4_1, 0.084),
            (Q4_0, 0.092),
        ] {
            let found = PackedRows::from_f32(dtype, 64, 256, &values)?.to_f32();
            let off: f64 = found.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let error = (off / size).sqrt();
            assert!(error < most && error > most / 3.0, "{dtype}: {error:.4}, at most {most}");
            let zeros = vec![0.0; 256];
            assert_eq!(PackedRows::from_f32(dtype, 1, 256, &zeros)?.to_f32(), zeros);
            assert!(PackedRows::from_f32(dtype, 1, 256, &[f32::NAN; 256]).is_err());
            assert!(PackedRows::from_f32(dtype, 1, 8, &[1.0; 8]).is_err());
        }
        assert!(PackedRows::from_f32(Dtype::Q2K, 1, 256, &[1.0; 256]).is_err(), "nothing is quantized to this type");
        Ok(())
    }
}
