//! The tensors of a model, whichever format its files have: names as in Hugging Face checkpoints, shapes outermost first.
use super::gguf::GgmlType;
use super::{Bytes, PackedRows, pack};
use crate::dtype::Dtype;
use crate::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

pub(super) const DOWNLOAD_AGAIN: &str = "the file is damaged or its download stopped early: download it again";

/// What a [fingerprint](Weights::fingerprint) begins with. One that begins otherwise comes from an older version, which computed
/// another hash: it says nothing about the weights.
pub const FINGERPRINT: &str = "blake3:";

/// Element type of a tensor as its file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// In a safetensors file.
    Safetensors(safetensors::Dtype),
    /// In a GGUF file.
    Ggml(GgmlType),
}

impl Stored {
    /// The element type, if it is one that secateur computes with.
    pub fn packed(self) -> Option<Dtype> {
        match self {
            Self::Safetensors(safetensors::Dtype::F32) => Some(Dtype::F32),
            Self::Safetensors(safetensors::Dtype::F16) => Some(Dtype::F16),
            Self::Safetensors(safetensors::Dtype::BF16) => Some(Dtype::BF16),
            Self::Safetensors(_) => None,
            Self::Ggml(kind) => kind.packed(),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Safetensors(dtype) => dtype.fmt(f),
            Self::Ggml(kind) => kind.fmt(f),
        }
    }
}

/// All tensors of a model, by name.
#[derive(Debug)]
pub struct Weights {
    pub(super) files: Vec<(String, Bytes)>,
    pub(super) tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: usize,
    pub(super) stored: Stored,
    pub(super) shape: Vec<usize>,
    /// Heads whose rows lie in pairs: see [`PackedRows::unpair_heads`].
    pub(super) heads: Option<usize>,
    pub(super) range: Range<usize>,
}

/// One tensor: row-major, little-endian, in the bytes of its file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// Where its file lies.
    pub file: &'a str,
    /// Element type as stored.
    pub stored: Stored,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// The elements as stored. What is read through [`to_rows`](Self::to_rows) and [`to_f32`](Self::to_f32) is in the order of
    /// Hugging Face checkpoints; these bytes are in the file's, which differs for the queries and keys of Llama in GGUF.
    pub bytes: &'a [u8],
    heads: Option<usize>,
}

impl Weights {
    /// The tensor `name`.
    ///
    /// # Errors
    /// When there is none; names the closest one.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.find(name).ok_or_else(|| self.missing(name))
    }

    /// The tensor `name`, or `None`.
    pub fn find(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let (file, bytes) = &self.files[entry.file];
        let Entry { stored, heads, range, shape, .. } = entry;
        Some(TensorView { name, file, stored: *stored, shape, bytes: &bytes[range.clone()], heads: *heads })
    }

    /// The tensor `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(Error::new(ErrorKind::Model, "a tensor has the wrong shape")
            .at(tensor.place())
            .expected(format!("{shape:?}"))
            .found(format!("{:?}", tensor.shape))
            .help("is config.json the one that came with these weights?"))
    }

    /// Identifies these weights: the BLAKE3 hash of every tensor's name, type, shape and bytes, as [`FINGERPRINT`] and 64
    /// hexadecimal digits. Reads all of the weights.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for tensor in self.tensors.keys().filter_map(|name| self.find(name)) {
            let TensorView { name, stored, shape, bytes, .. } = tensor;
            // The length, too: without it, a tensor's bytes could stand for the next one's header.
            hasher.update(format!("{name} {stored} {shape:?} {}\n", bytes.len()).as_bytes());
            hasher.update(bytes);
        }
        format!("{FINGERPRINT}{}", hasher.finalize().to_hex())
    }

    /// Where its files lie; for those in memory, their names.
    pub fn places(&self) -> impl ExactSizeIterator<Item = &str> {
        self.files.iter().map(|(place, _)| place.as_str())
    }

    /// The matrix `name` of `[rows, cols]` as packed words, in its own dtype.
    ///
    /// # Errors
    /// When it is missing, or has another shape or a type that is not supported.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<PackedRows<'_>> {
        self.expect(name, &[rows, cols])?.to_rows()
    }

    /// The vector `name` of `len` elements as f32.
    ///
    /// # Errors
    /// When it is missing, or has another shape or a type that is not supported.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.expect(name, &[len])?.to_f32()
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors together, as stored.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }

    fn missing(&self, name: &str) -> Error {
        let files: Vec<_> = self.files.iter().map(|(file, _)| file.as_str()).take(3).collect();
        let error = Error::new(ErrorKind::Model, format!("the weights have no tensor {name}")).at(files.join(", "));
        // Checkpoints of the bare decoder lack the prefix `model.`, wrapped ones carry one more.
        let same_tail = |known: &str| {
            let (long, short) = if known.len() > name.len() { (known, name) } else { (name, known) };
            long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.'))
        };
        if let Some(close) = self.names().find(|known| same_tail(known)) {
            return error.found(format!("did you mean {close}?"));
        }
        let error = error.found(match self.names().next() {
            Some(first) => format!("{} tensors, the first is {first}", self.names().len()),
            None => "no tensors at all".to_string(),
        });
        if name == "lm_head.weight" {
            return error
                .help("a model without lm_head.weight should say \"tie_word_embeddings\": true in config.json");
        }
        error.help("is config.json the one that came with these weights?")
    }
}

impl<'a> TensorView<'a> {
    /// File and name, for messages.
    pub fn place(&self) -> String {
        format!("{}: {}", self.file, self.name)
    }

    /// The element type, if it is one that secateur computes with.
    ///
    /// # Errors
    /// When it is another.
    pub fn packed_dtype(&self) -> Result<Dtype> {
        self.stored.packed().ok_or_else(|| {
            let error = Error::new(ErrorKind::Model, "a tensor has an element type that is not supported")
                .at(self.place())
                .found(self.stored);
            match self.stored {
                Stored::Safetensors(_) => error
                    .expected("F32, F16 or BF16")
                    .help("quantized checkpoints are not read: use the original weights, or a GGUF file"),
                Stored::Ggml(_) => error
                    .expected("F32, F16, BF16, Q8_0 or Q4_0")
                    .help("take a file of another quantization, or make one: llama-quantize --pure … Q4_0"),
            }
        })
    }

    /// A tensor of two dimensions as packed words.
    ///
    /// # Errors
    /// When it has another number of dimensions or a type that is not supported.
    pub fn to_rows(&self) -> Result<PackedRows<'a>> {
        let dtype = self.packed_dtype()?;
        let &[rows, cols] = self.shape else {
            return Err(Error::new(ErrorKind::Model, "a tensor is not a matrix")
                .at(self.place())
                .expected("2 dimensions")
                .found(format!("{:?}", self.shape)));
        };
        let place = |error: Error| error.at(self.place());
        let packed = PackedRows::from_le_bytes(dtype, rows, cols, self.bytes).map_err(place)?;
        match self.heads {
            None => Ok(packed),
            Some(heads) => packed.unpair_heads(heads).map_err(place),
        }
    }

    /// All elements as f32, exactly.
    ///
    /// # Errors
    /// When the tensor has a type that is not supported.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let dtype = self.packed_dtype()?;
        let place = |error: Error| error.at(self.place());
        let values = match (dtype.is_quantized(), self.shape) {
            (false, _) => pack::to_f32(dtype, self.bytes),
            (true, [outer @ .., cols]) => {
                PackedRows::from_le_bytes(dtype, outer.iter().product(), *cols, self.bytes).map_err(place)?.to_f32()
            }
            (true, []) => Vec::new(),
        };
        let Some(heads) = self.heads else { return Ok(values) };
        let rows = self.shape[0];
        let width = values.len() / rows.max(1);
        let order = pack::unpaired(rows, heads).map_err(place)?;
        Ok(order.flat_map(|row| values[row * width..][..width].iter().copied()).collect())
    }
}
