//! Element types of weights and of the KV cache.

/// Element types that can be packed into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32: one element per word.
    F32,
    /// IEEE 754 binary16: two elements per word.
    F16,
    /// The upper half of an f32: two elements per word.
    BF16,
    /// Blocks of 32 signed bytes and an f16 scale. Weights only.
    Q8_0,
    /// Blocks of 32 nibbles less 8 and an f16 scale. Weights only.
    Q4_0,
}

/// Elements of a quantized block.
pub const BLOCK: usize = 32;

impl Dtype {
    /// Every element type.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0];

    /// Whether elements share scales: no cache and no vector is of such a type.
    pub const fn is_quantized(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// Elements in one word (of quants).
    pub const fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 4,
            Self::Q4_0 => 8,
        }
    }

    /// Words of a row of `cols` elements, scales and padding included.
    pub const fn row_words(self, cols: usize) -> usize {
        let words = cols.div_ceil(self.per_word());
        match self.is_quantized() {
            true => words + cols.div_ceil(2 * BLOCK).next_multiple_of(4),
            false => words,
        }
    }

    /// Elements that a file stores together, and the bytes they take there.
    pub const fn stored_block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
        }
    }

    /// Bytes that a file takes for `elements`; `None` where that is no whole number of blocks, or too much.
    pub fn stored_bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.stored_block();
        (elements.is_multiple_of(block)).then(|| (elements / block).checked_mul(bytes)).flatten()
    }

    /// `f32`, `f16`, `bf16`, `q8_0` or `q4_0`.
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
