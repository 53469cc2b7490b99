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
    /// Blocks of 32 signed bytes with one f16 scale. Only for weights.
    Q8_0,
    /// Blocks of 32 four-bit values with an offset of 8 and one f16 scale. Only for weights.
    Q4_0,
}

/// Number of elements in a quantized block.
pub const BLOCK: usize = 32;

impl Dtype {
    /// Every element type.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0];

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
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// Number of elements in one word. For quantized types this counts the words that hold quantized values, not
    /// those that hold scales.
    pub const fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 4,
            Self::Q4_0 => 8,
        }
    }

    /// Number of words in a row of `cols` elements, including scales and padding.
    pub const fn row_words(self, cols: usize) -> usize {
        let words = cols.div_ceil(self.per_word());
        match self.is_quantized() {
            true => words + cols.div_ceil(2 * BLOCK).next_multiple_of(4),
            false => words,
        }
    }

    /// The number of elements in a block as files store it, and the number of bytes of such a block.
    pub const fn stored_block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
        }
    }

    /// The number of bytes that `elements` take in a file. `None` if they are not a whole number of blocks, or if the
    /// size overflows.
    pub fn stored_bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.stored_block();
        (elements.is_multiple_of(block)).then(|| (elements / block).checked_mul(bytes)).flatten()
    }

    /// The name in lower case: `f32`, `f16`, `bf16`, `q8_0` or `q4_0`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
