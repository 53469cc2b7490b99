//! Element types of weights and of the KV cache.
use crate::{Error, ErrorKind, Result};

/// An element type of weights or of the KV cache. Elements are packed into `u32` words; the layout is described in
/// [`weights::pack`](crate::weights::pack).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32; one element per word.
    F32,
    /// IEEE 754 binary16; two elements per word.
    F16,
    /// The upper half of an f32; two elements per word.
    BF16,
    /// GGUF: 32 signed bytes with one scale.
    Q8_0,
    /// GGUF: 32 values of 4 bits with one scale, less 8.
    Q4_0,
    /// GGUF: 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// GGUF: 32 values of 5 bits with one scale, less 16.
    Q5_0,
    /// GGUF: 32 values of 5 bits with a scale and a minimum.
    Q5_1,
    /// GGUF: 256 values of 2 bits; 16 scales and minima of 4 bits.
    Q2K,
    /// GGUF: 256 values of 3 bits, less 4; 16 scales of 6 bits.
    Q3K,
    /// GGUF: 256 values of 4 bits; 8 scales and minima of 6 bits.
    Q4K,
    /// GGUF: 256 values of 5 bits; 8 scales and minima of 6 bits.
    Q5K,
    /// GGUF: 256 values of 6 bits, less 32; 16 scales of 8 bits.
    Q6K,
    /// GGUF: 32 numbers of 4 bits of levels that are not evenly spaced, with one scale.
    Iq4Nl,
    /// GGUF: 256 numbers of the same levels; 8 scales of 6 bits.
    Iq4Xs,
}

/// Columns that the shaders treat as one block: the quantized blocks of GGUF have this number of columns, or eight
/// times as many.
pub const BLOCK: usize = 32;

/// How a row of a quantized type is packed; see [`weights::pack`](crate::weights::pack).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    /// Columns of a block in a file: 32 or 256.
    pub block: usize,
    /// Bytes of a block in a file.
    pub block_bytes: usize,
    /// Low bits of a quant: 8, 4 or 2.
    pub low_bits: usize,
    /// High bits of a quant, in a plane of their own: 0, 1 or 2.
    pub high_bits: usize,
    /// What is subtracted from a quant.
    pub offset: i32,
    /// How the scales are stored.
    pub scales: Scales,
    /// Columns that share a scale: 32 or 16.
    pub share: usize,
}

/// How the scales of a quantized row are stored. `d` and `m` are f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Scales {
    /// A `d` for each block.
    One = 0,
    /// A `d` and an `m` for each block: the value is `d q + m`.
    OneWithMinimum = 1,
    /// A `d` for each 256 columns, and a signed byte `s` for the columns that share a scale: `d s q`.
    Nested = 2,
    /// A `d` and an `m` for each 256 columns, and an `s` and a `t` for the columns that share a scale: `d s q - m t`.
    /// If 32 columns share a scale, `s` and `t` are bytes, 8 of `s` before 8 of `t`; if 16, they are the low and the
    /// high half of one byte.
    NestedWithMinimum = 3,
}

impl Scales {
    /// Whether the smallest value of a block is given as a number of its own.
    pub const fn has_minimum(self) -> bool {
        matches!(self, Self::OneWithMinimum | Self::NestedWithMinimum)
    }
}

/// The 16 levels of IQ4_NL and IQ4_XS.
pub(crate) const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The words of each part of a packed row of a quantized type, in the order of the row. Every part is a whole number
/// of vectors of 4 words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockParts {
    pub low: usize,
    pub high: usize,
    pub shared: usize,
    pub scales: usize,
}

impl BlockParts {
    pub const fn total(self) -> usize {
        self.low + self.high + self.shared + self.scales
    }
}

impl Format {
    /// The parts of a row of `cols` columns.
    pub const fn parts(&self, cols: usize) -> BlockParts {
        BlockParts {
            low: (cols * self.low_bits).div_ceil(128) * 4,
            high: (cols * self.high_bits).div_ceil(128) * 4,
            shared: (cols / self.block * self.shared_bytes() * 8).div_ceil(128) * 4,
            scales: (cols / self.block * if self.scales.has_minimum() { 32 } else { 16 }).div_ceil(128) * 4,
        }
    }

    /// The bytes of a block in which columns share scales and minima.
    pub const fn shared_bytes(&self) -> usize {
        match self.scales {
            Scales::One | Scales::OneWithMinimum => 0,
            Scales::Nested => self.block / self.share,
            Scales::NestedWithMinimum => 16,
        }
    }
}

impl Dtype {
    /// Every element type. The place in this list is the number of the type in shaders.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// The element type that a KV cache may have by this name: `f16` or `f32`.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for every other name.
    pub fn for_cache(name: &str) -> Result<Self> {
        match name {
            "f16" => Ok(Self::F16),
            "f32" => Ok(Self::F32),
            _ => Err(Error::new(ErrorKind::Input, "the KV cache cannot have this element type")
                .at("`kv`")
                .expected("f16 or f32")
                .found(format!("{name:?}"))),
        }
    }

    /// Whether elements are quantized in blocks that share a scale. Caches and vectors never have such a type.
    pub const fn is_quantized(self) -> bool {
        self.format().is_some()
    }

    /// How rows of a quantized type are packed; `None` for the other types.
    pub(crate) const fn format(self) -> Option<Format> {
        use Scales::{Nested, NestedWithMinimum, One, OneWithMinimum};
        let (block, block_bytes, low_bits, high_bits, offset, scales, share) = match self {
            Self::F32 | Self::F16 | Self::BF16 => return None,
            Self::Q8_0 => (32, 34, 8, 0, 0, One, 32),
            Self::Q4_0 => (32, 18, 4, 0, 8, One, 32),
            Self::Q4_1 => (32, 20, 4, 0, 0, OneWithMinimum, 32),
            Self::Q5_0 => (32, 22, 4, 1, 16, One, 32),
            Self::Q5_1 => (32, 24, 4, 1, 0, OneWithMinimum, 32),
            Self::Q2K => (256, 84, 2, 0, 0, NestedWithMinimum, 16),
            Self::Q3K => (256, 110, 2, 1, 4, Nested, 16),
            Self::Q4K => (256, 144, 4, 0, 0, NestedWithMinimum, 32),
            Self::Q5K => (256, 176, 4, 1, 0, NestedWithMinimum, 32),
            Self::Q6K => (256, 210, 4, 2, 32, Nested, 16),
            Self::Iq4Nl => (32, 18, 4, 0, 0, One, 32),
            Self::Iq4Xs => (256, 136, 4, 0, 0, Nested, 32),
        };
        Some(Format { block, block_bytes, low_bits, high_bits, offset, scales, share })
    }

    /// Whether quants are numbers of the [`LEVELS`].
    pub(crate) const fn has_levels(self) -> bool {
        matches!(self, Self::Iq4Nl | Self::Iq4Xs)
    }

    /// Number of elements in one word. For quantized types this counts the words that hold the low bits of quants.
    pub const fn per_word(self) -> usize {
        match self.format() {
            Some(format) => 32 / format.low_bits,
            None if matches!(self, Self::F32) => 1,
            None => 2,
        }
    }

    /// Number of words in a row of `cols` elements, including scales and padding.
    pub const fn row_words(self, cols: usize) -> usize {
        match self.format() {
            Some(format) => format.parts(cols).total(),
            None => cols.div_ceil(self.per_word()),
        }
    }

    /// The number of elements in a block as files store it, and the number of bytes of such a block.
    pub const fn stored_block(self) -> (usize, usize) {
        match self.format() {
            Some(format) => (format.block, format.block_bytes),
            None => (1, 4 / self.per_word()),
        }
    }

    /// The number of bytes that `elements` take in a file. `None` if they are not a whole number of blocks, or if the
    /// size overflows.
    pub fn stored_bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.stored_block();
        (elements.is_multiple_of(block)).then(|| (elements / block).checked_mul(bytes)).flatten()
    }

    /// The name in lower case, as ggml writes it: `f32`, `bf16`, `q8_0`, `q4_k`, `iq4_xs`, …
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
