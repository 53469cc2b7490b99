//! Chooses the element type of each matrix when a model is quantized as it is loaded.
use crate::dtype::Dtype;
use crate::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How finely the weights of a model are stored on the device. Matrices of f32, f16 and bf16 are quantized as they
/// are loaded; matrices that are quantized in the file stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 8 bits a weight: Q8_0.
    Q8,
    /// 6 bits a weight: Q6_K, where rows are whole blocks of 256. Embedding and head are Q8_0.
    Q6,
    /// 4 bits a weight: Q4_K, where rows are whole blocks of 256. Embedding, head and the values of attention, whose
    /// errors harm most, are Q6_K.
    Q4,
}

/// The use of a matrix, as far as its precision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The embedding or the head, which are often the same matrix.
    Vocabulary,
    /// The projection to the values of attention.
    Values,
    /// The projection to the logits by which experts are chosen. It keeps its element type: it is small, and an error
    /// can change which experts are computed.
    Router,
    /// Every other matrix.
    Inner,
}

impl Precision {
    /// Every precision, the finest first.
    pub const ALL: [Self; 3] = [Self::Q8, Self::Q6, Self::Q4];

    /// The name: `q8`, `q6` or `q4`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q6 => "q6",
            Self::Q4 => "q4",
        }
    }

    /// The element type of a matrix that is stored as `stored` with rows of `cols` columns. Rows that are not whole
    /// blocks of 256 get the next finer type with blocks of 32, as in llama.cpp's files. Rows that are not whole
    /// blocks of 32 keep their type, which happens to the output projection of attention alone, since the others are
    /// padded.
    pub fn dtype(self, stored: Dtype, role: Role, cols: usize) -> Dtype {
        let (large, small) = match (self, role) {
            (_, Role::Router) => (stored, stored),
            (Self::Q8, _) | (Self::Q6, Role::Vocabulary) => (Dtype::Q8_0, Dtype::Q8_0),
            (Self::Q6, _) | (Self::Q4, Role::Vocabulary | Role::Values) => (Dtype::Q6K, Dtype::Q8_0),
            (Self::Q4, Role::Inner) => (Dtype::Q4K, Dtype::Q5_0),
        };
        match () {
            () if stored.is_quantized() => stored,
            () if cols.is_multiple_of(256) => large,
            () if cols.is_multiple_of(32) => small,
            () => stored,
        }
    }
}

/// A text that identifies weights on the device: the [fingerprint](super::Weights::fingerprint) of the file, and the
/// precision to which they were quantized, if any.
pub fn identity(fingerprint: &str, precision: Option<Precision>) -> String {
    precision.map_or(fingerprint.to_string(), |precision| format!("{fingerprint} in {precision}"))
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == name).ok_or_else(|| {
            Error::new(ErrorKind::Input, "weights cannot be loaded with this precision")
                .at("`weights`")
                .expected("q8, q6 or q4")
                .found(format!("{name:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_role_and_width() {
        use Dtype::{BF16, F16, Q4_0, Q4K, Q5_0, Q6K, Q8_0};
        for (precision, role, cols, expected) in [
            (Precision::Q8, Role::Inner, 1536, Q8_0),
            (Precision::Q6, Role::Inner, 1536, Q6K),
            (Precision::Q6, Role::Inner, 576, Q8_0),
            (Precision::Q6, Role::Vocabulary, 1536, Q8_0),
            (Precision::Q4, Role::Inner, 1536, Q4K),
            (Precision::Q4, Role::Inner, 576, Q5_0),
            (Precision::Q4, Role::Values, 1536, Q6K),
            (Precision::Q4, Role::Vocabulary, 576, Q8_0),
            (Precision::Q4, Role::Inner, 72, BF16),
            (Precision::Q4, Role::Router, 2048, BF16),
        ] {
            assert_eq!(precision.dtype(BF16, role, cols), expected, "{precision} {role:?} {cols}");
        }
        assert_eq!(Precision::Q8.dtype(Q4_0, Role::Inner, 1536), Q4_0);
        assert_eq!(Precision::Q4.dtype(F16, Role::Inner, 1537), F16);
        assert!("q5".parse::<Precision>().is_err_and(|e| e.to_string().contains("q8, q6 or q4")));
    }
}
