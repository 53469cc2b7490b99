//! The element types of ggml.
use crate::dtype::Dtype;
use std::fmt;

/// An element type of ggml, identified by its number in GGUF files. All types that ggml has had are known by name, so
/// that messages can name them; [`packed`](Self::packed) gives those that secateur can compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlType(u32);

/// The number, the name, the elements in a block, and the bytes of a block of each type.
const TYPES: [(u32, &str, usize, usize); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl GgmlType {
    pub(super) fn new(number: u32) -> Option<Self> {
        TYPES.iter().any(|t| t.0 == number).then_some(Self(number))
    }

    pub(super) fn row(self) -> &'static (u32, &'static str, usize, usize) {
        TYPES.iter().find(|t| t.0 == self.0).expect("only known numbers are constructed")
    }

    /// The same type as a [`Dtype`], if secateur can compute with it.
    pub fn packed(self) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(self.row().1))
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}
