//! Element types as shaders and twins see them: codes, and reading and packing of u32 words.
use crate::dtype::{Dtype, Format, Scales};

impl Dtype {
    /// The number of the type in shaders (`common.wgsl`): its place in [`Dtype::ALL`].
    pub(crate) const fn code(self) -> u32 {
        self as u32
    }

    /// The constants that describe the packing of a type, as `weights.wgsl` needs them.
    pub(super) fn constants(self) -> String {
        // The values do not matter for types that are not quantized.
        let format = self.format().unwrap_or(Format {
            block: 1,
            block_bytes: 0,
            low_bits: 8,
            high_bits: 0,
            offset: 0,
            scales: Scales::One,
            share: 32,
        });
        let values = [
            ("LOW_BITS", format.low_bits as u32),
            ("HIGH_BITS", format.high_bits as u32),
            ("OFFSET", format.offset as u32),
            ("SCALES", format.scales as u32),
            ("SHARE", format.share as u32),
            ("LEVELS", self.has_levels() as u32),
        ];
        values.iter().map(|(name, value)| format!("const {name} = {value}u;\n")).collect()
    }

    /// Value `column` of the weight row `words` of `cols` values, exact in f64.
    #[cfg(test)]
    pub(crate) fn weight(self, words: &[u32], cols: usize, column: usize) -> f64 {
        if self.is_quantized() { self.quantized(words, cols, column) } else { self.get(words, column) }
    }

    /// Value `column` of the row that starts at `words[0]`, exact in f64. Not for quantized rows: see
    /// [`weight`](Self::weight).
    #[cfg(test)]
    pub(crate) fn get(self, words: &[u32], column: usize) -> f64 {
        let half = |word: u32| if column.is_multiple_of(2) { word as u16 } else { (word >> 16) as u16 };
        match self {
            Dtype::F32 => f32::from_bits(words[column]) as f64,
            Dtype::F16 => half::f16::from_bits(half(words[column / 2])).to_f64(),
            _ => half::bf16::from_bits(half(words[column / 2])).to_f64(),
        }
    }

    /// All values of the row `words`, exact in f64; of a quantized row as well.
    #[inline(always)]
    pub(crate) fn read_row(self, words: &[u32], out: &mut [f64]) {
        match self {
            Dtype::F32 => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = f32::from_bits(words[i]).into();
                }
            }
            Dtype::F16 => read_halves(words, out, widened_f16),
            Dtype::BF16 => read_halves(words, out, |bits| f32::from_bits(bits << 16)),
            _ => self.read_quantized(words, out),
        }
    }

    /// Packs `values`, rounding to nearest even; f16 saturates at ±65504 as it does where the cache is written. Not
    /// for quantized rows.
    pub(crate) fn pack(self, values: &[f32]) -> Vec<u32> {
        let half = |v: f32| match self {
            Dtype::F16 => f16_bits(v),
            _ => half::bf16::from_f32(v).to_bits(),
        } as u32;
        match self {
            Dtype::F32 => values.iter().map(|v| v.to_bits()).collect(),
            _ => values.chunks(2).map(|p| half(p[0]) | half(*p.get(1).unwrap_or(&0.0)) << 16).collect(),
        }
    }
}

/// Reads two values from each word, the lower half first. `value` converts the bits of a half.
#[inline(always)]
fn read_halves(words: &[u32], out: &mut [f64], value: impl Fn(u32) -> f32) {
    let (pairs, rest) = out.as_chunks_mut::<2>();
    let words = &words[..pairs.len() + rest.len()];
    for (i, [first, second]) in pairs.iter_mut().enumerate() {
        let word = words[i];
        *first = value(word & 0xffff).into();
        *second = value(word >> 16).into();
    }
    if let ([last], Some(word)) = (rest, words.get(pairs.len())) {
        *last = value(word & 0xffff).into();
    }
}

/// The value of f16 bits. Unlike the processor's own conversion, which not every processor has, the compiler can
/// compute this for several values at once.
#[inline(always)]
fn widened_f16(bits: u32) -> f32 {
    let magnitude = (bits & 0x7fff) << 13;
    // The exponents of f32 begin 112 lower. The product makes subnormal values normal, exactly.
    let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = f32::from_bits(magnitude | 0x7f80_0000);
    let value = if bits & 0x7c00 == 0x7c00 { special } else { finite };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

/// The f16 bits of `value`, rounded to nearest even; finite overflow and infinities saturate. `f16_bits` in
/// `common.wgsl` does the same.
pub fn f16_bits(value: f32) -> u16 {
    let bits = half::f16::from_f32(value).to_bits();
    if value.is_nan() {
        0x7e00 | (bits & 0x8000)
    } else if bits & 0x7c00 == 0x7c00 {
        0x7bff | (bits & 0x8000)
    } else {
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::LEVELS;
    use crate::kernels::variant::COMMON;

    #[test]
    fn shaders_know_the_types_by_the_same_numbers() {
        for (place, dtype) in Dtype::ALL.into_iter().enumerate() {
            assert_eq!(dtype.code() as usize, place);
        }
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0] {
            let line = format!("const {} = {}u;", dtype.name().to_uppercase(), dtype.code());
            assert!(COMMON.lines().any(|l| l == line), "`{line}` is not in common.wgsl");
        }
    }

    #[test]
    fn rows_are_read_as_their_values_are() {
        // Every bit pattern, in an odd number of columns.
        let words: Vec<u32> = (0..=0xffffu32).map(|bits| bits << 16 | bits ^ 0x5a5a).collect();
        for dtype in Dtype::ALL {
            let cols = match dtype {
                Dtype::F32 => words.len(),
                Dtype::F16 | Dtype::BF16 => 131_071,
                _ => 9 * 256,
            };
            let words = &words[..dtype.row_words(cols)];
            let mut row = vec![0.0; cols];
            dtype.read_row(words, &mut row);
            let wrong = (0..cols).find(|column| {
                let (found, expected) = (row[*column], dtype.weight(words, cols, *column));
                found.to_bits() != expected.to_bits() && !(found.is_nan() && expected.is_nan())
            });
            assert_eq!(wrong, None, "{dtype}");
        }
    }

    #[test]
    fn shaders_have_the_same_levels() {
        let text = include_str!("../../shaders/weights.wgsl");
        for four in LEVELS.as_chunks::<4>().0 {
            let word = format!("0x{:08x}u", u32::from_le_bytes(four.map(|level| level as u8)));
            assert!(text.contains(&word), "{word} is not in weights.wgsl");
        }
    }
}
