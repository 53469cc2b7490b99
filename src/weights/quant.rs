//! The quantized blocks Q8_0 and Q4_0 of GGUF: repacking for the shaders, quantizing from f32, and reading values.
//!
//! The [module `pack`](super::pack) describes the layout of packed rows for all element types.
use super::DOWNLOAD_AGAIN;
use crate::dtype::{BLOCK, Dtype};
use crate::{Error, ErrorKind, Result};
use half::f16;

/// Packs the blocks of a GGUF file: per row first the quants, then the scales.
///
/// # Errors
/// If a scale is not finite.
pub(super) fn repack(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Result<Vec<u32>> {
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
                    .help(DOWNLOAD_AGAIN));
            }
            scales.push(bits);
            let quants = quants.as_chunks::<4>().0.iter().map(|&four| u32::from_le_bytes(four));
            match dtype {
                Dtype::Q4_0 => {
                    // GGUF stores column j in the low and column 16 + j in the high nibble of byte j.
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
    Ok(words)
}

impl Dtype {
    /// The exact value in column `column` of a quantized row, given its `words` and its number of columns `cols`.
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

/// Refuses quantized rows that are not whole blocks.
pub(super) fn check_blocks(dtype: Dtype, cols: usize) -> Result<()> {
    if !dtype.is_quantized() || cols.is_multiple_of(BLOCK) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Model, format!("a {dtype} matrix has rows that are not whole blocks"))
        .expected(format!("a multiple of {BLOCK} columns"))
        .found(format!("{cols} columns")))
}

/// Appends scales, two per word, and zeros up to a whole vector of 4 words.
fn push_scales(words: &mut Vec<u32>, scales: &[u16]) {
    let before = words.len();
    words.extend(scales.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16));
    words.resize(before + (words.len() - before).next_multiple_of(4), 0);
}

/// Quantizes a row as ggml's reference implementation does. Returns false if a value is not finite.
pub(super) fn quantize(dtype: Dtype, values: &[f32], words: &mut Vec<u32>) -> bool {
    let mut scales = Vec::with_capacity(values.len() / BLOCK);
    for block in values.chunks_exact(BLOCK) {
        // The value with the largest magnitude, including its sign.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype::{F16, F32, Q4_0, Q8_0};
    use crate::weights::PackedRows;

    /// Rows built by hand check where each quant and each scale goes, and what value they represent.
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
            // Slicing and stacking move whole rows, with their scales.
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
                // Q4_0 has no quant +8, so the value opposite to the largest is a whole step off.
                let bound = if dtype == Q4_0 { 1.001 } else { 0.51 } * most / steps;
                assert!(found.iter().zip(block).all(|(a, b)| (a - b).abs() <= bound), "{dtype}: {found:?} {block:?}");
            }
            assert_eq!(PackedRows::from_f32(dtype, 1, BLOCK, &[0.0; BLOCK])?.to_f32(), [0.0; BLOCK]);
            assert!(PackedRows::from_f32(dtype, 1, BLOCK, &[f32::NAN; BLOCK]).is_err());
            assert!(PackedRows::from_f32(dtype, 1, 8, &[1.0; 8]).is_err());
        }
        Ok(())
    }
}
