//! Reads GGUF files of versions 2 and 3. One file contains the metadata, the tokenizer and the tensors, which are
//! views. A large model may be split into several files.
//!
//! The format (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>) is little-endian: magic, version, counts,
//! key-value pairs, tensor descriptions, padding, data. The header may be hostile. Every count and length is compared
//! with the number of remaining bytes before anything is allocated, and allocations are bounded by the size of the
//! header.
use super::Bytes;
use super::DOWNLOAD_AGAIN;
use super::tensors::Weights;
use crate::{Error, ErrorKind, Result};
use header::{HeaderReader, TensorInfo, Value, ValueType};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

mod header;
mod names;
mod split;

pub use super::ggml_type::GgmlType;
pub(crate) use split::SplitName;
#[cfg(not(target_family = "wasm"))]
pub(crate) use split::is_projector;

/// The most values of a tensor that belongs to the configuration. The factors of RoPE have one value for each pair of
/// components of a head.
const MOST_VALUES: usize = 1 << 16;

/// An opened GGUF file, or all parts of a split one. Its header is checked against the size of the file; its tensors
/// stay where they are.
#[derive(Debug)]
pub struct Gguf {
    place: String,
    bytes: Bytes,
    metadata: HashMap<String, Value>,
    tensors: Vec<TensorInfo>,
    /// The paths and the bytes of the parts after the first.
    others: Vec<(String, Bytes)>,
}

impl Gguf {
    /// Reads and checks the header of `bytes`. Error messages call the file `place`.
    ///
    /// # Errors
    /// If `bytes` is not a GGUF file of version 2 or 3, or its header does not fit its size.
    pub fn new(place: impl Into<String>, bytes: impl Into<Bytes>) -> Result<Self> {
        let (place, bytes) = (place.into(), bytes.into());
        let mut gguf = Self { place, bytes, metadata: HashMap::new(), tensors: Vec::new(), others: Vec::new() };
        let bytes = gguf.bytes.clone();
        let mut reader = HeaderReader { bytes: &bytes, offset: 0, place: &gguf.place };
        let (pairs, tensors) = reader.start()?;
        for _ in 0..pairs {
            let key = reader.name("a key")?;
            let value = reader.value(&key)?;
            if gguf.metadata.insert(key.clone(), value).is_some() {
                return Err(reader.error_here("the GGUF file has the same key twice").found(key));
            }
        }
        let infos = reader.infos(tensors)?;
        let header = reader.offset;
        gguf.tensors = gguf.lay_out(infos, header)?;
        Ok(gguf)
    }

    /// The path of the file, for messages; of a split model, that of its first part.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The number of files that are open: 1, or the parts of a split model.
    pub fn parts(&self) -> usize {
        1 + self.others.len()
    }

    /// The paths and the bytes of all files.
    fn files(&self) -> Vec<(String, Bytes)> {
        std::iter::once((self.place.clone(), self.bytes.clone())).chain(self.others.iter().cloned()).collect()
    }

    /// The metadata value of `key` as text, or `None` if the file does not have the key.
    ///
    /// # Errors
    /// If the value is not a text, or not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => self.utf8(key, range.clone()).map(Some),
            Some(_) => Err(self.mistyped(key, "a text")),
        }
    }

    /// The metadata value of `key` as a non-negative whole number, or `None` if the file does not have the key.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Uint(value)) => Ok(Some(*value)),
            Some(Value::Int(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(_) => Err(self.mistyped(key, "a whole number that is not negative")),
        }
    }

    /// The metadata value of `key` as a finite number, or `None` if the file does not have the key.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::Uint(value)) => Ok(Some(*value as f64)),
            Some(Value::Int(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.mistyped(key, "a number")),
        }
    }

    /// The metadata value of `key` as a boolean, or `None` if the file does not have the key.
    ///
    /// # Errors
    /// If the value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.mistyped(key, "true or false")),
        }
    }

    /// The metadata value of `key` as a list of texts, or `None` if the file does not have the key.
    ///
    /// # Errors
    /// If the value is something else, or a text is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::List { kind: ValueType::Text, len, range }) => {
                let mut reader = self.reader(range);
                let texts = (0..*len).map(|_| {
                    let text = reader.text_range()?;
                    self.utf8(key, text)
                });
                texts.collect::<Result<_>>().map(Some)
            }
            Some(_) => Err(self.mistyped(key, "a list of texts")),
        }
    }

    /// The metadata value of `key` as a list of whole numbers, or `None` if the file does not have the key.
    ///
    /// # Errors
    /// If the value is something else, or a number does not fit 63 bits.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let Value::List { kind, len, range } = value else { return Err(self.mistyped(key, "a list of whole numbers")) };
        let mut reader = self.reader(range);
        let ints = (0..*len).map(|_| match reader.scalar(*kind)? {
            Value::Uint(value) => i64::try_from(value).map_err(|_| self.mistyped(key, "numbers of at most 63 bits")),
            Value::Int(value) => Ok(value),
            _ => Err(self.mistyped(key, "a list of whole numbers")),
        });
        ints.collect::<Result<_>>().map(Some)
    }

    /// The metadata value of `key` as a list of numbers, or `None` if the file does not have the key.
    ///
    /// # Errors
    /// If the value is something else, or a number is not finite.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let Value::List { kind, len, range } = value else { return Err(self.mistyped(key, "a list of numbers")) };
        let mut reader = self.reader(range);
        let floats = (0..*len).map(|_| match reader.scalar(*kind)? {
            Value::Float(value) if value.is_finite() => Ok(value),
            _ => Err(self.mistyped(key, "a list of finite numbers")),
        });
        floats.collect::<Result<_>>().map(Some)
    }

    /// Whether the metadata value of `key` is a list.
    pub fn is_list(&self, key: &str) -> bool {
        matches!(self.metadata.get(key), Some(Value::List { .. }))
    }

    /// The names of all tensors, as the file has them.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|info| info.name.as_str())
    }

    /// The shape of the tensor `name`, outermost dimension first, or `None` if the file has no such tensor.
    pub fn shape_of(&self, name: &str) -> Option<Vec<usize>> {
        let info = self.tensors.iter().find(|info| info.name == name)?;
        Some(info.dims.iter().rev().copied().collect())
    }

    /// The values of the small tensor `name` as f32, or `None` if the file has no such tensor.
    ///
    /// # Errors
    /// If the element type is not supported, or there are more than 65,536 values.
    pub fn values_of(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let info = self.tensors.iter().find(|info| info.name == name);
        // If the file is incomplete, only the tensors that have arrived have values.
        let is_here = |info: &&TensorInfo| {
            info.file > 0 || self.bytes.reader().is_some() || info.range.end <= self.bytes.len() as u64
        };
        let Some(info) = info.filter(is_here) else { return Ok(None) };
        let values = info.dims.iter().product::<usize>();
        if values > MOST_VALUES {
            return Err(Error::new(ErrorKind::Model, "a tensor that is a part of the configuration is too large")
                .at(format!("{}: {name}", self.place))
                .expected(format!("at most {MOST_VALUES} values"))
                .found(values));
        }
        let weights = Weights {
            files: self.files(),
            tensors: BTreeMap::from([(name.to_string(), info.entry(None))]),
            ..Weights::default()
        };
        weights.tensor(name)?.to_f32().map(Some)
    }

    /// An error about the metadata value of `key`.
    pub(crate) fn error_at(&self, key: &str, what: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Model, what).at(format!("{}: {key}", self.place))
    }

    fn mistyped(&self, key: &str, expected: &str) -> Error {
        let found = match self.metadata.get(key) {
            None => "nothing".to_string(),
            Some(Value::Uint(value)) => value.to_string(),
            Some(Value::Int(value)) => value.to_string(),
            Some(Value::Float(value)) => value.to_string(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Text(_)) => "a text".to_string(),
            Some(Value::List { kind, len, .. }) => format!("a list of {len} {kind:?}"),
        };
        self.error_at(key, "a metadata value has the wrong type").expected(expected).found(found)
    }

    fn utf8(&self, key: &str, range: Range<usize>) -> Result<&str> {
        std::str::from_utf8(&self.bytes[range]).map_err(|e| self.error_at(key, "a metadata text is not UTF-8").found(e))
    }

    fn reader(&self, range: &Range<usize>) -> HeaderReader<'_> {
        HeaderReader { bytes: &self.bytes[..range.end], offset: range.start, place: &self.place }
    }

    /// Computes the byte ranges of the tensors from their offsets, and sorts the tensors by position. Tensors must
    /// not overlap. Gaps are allowed, because the format aligns tensors.
    fn lay_out(&self, infos: Vec<(TensorInfo, u64)>, header: usize) -> Result<Vec<TensorInfo>> {
        let alignment = self.uint("general.alignment")?.unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(self
                .error_at("general.alignment", "the alignment of the tensors is not valid")
                .expected("a power of two up to 1048576")
                .found(alignment));
        }
        let total = self.bytes.total();
        let mut placed = Vec::with_capacity(infos.len());
        let start = (header as u64).next_multiple_of(alignment);
        for (info, offset) in infos {
            let tensor_error =
                |what: &str| Error::new(ErrorKind::Model, what).at(format!("{}: {}", self.place, info.name));
            if offset % alignment != 0 {
                return Err(tensor_error("a tensor is not aligned")
                    .expected(format!("a multiple of {alignment}"))
                    .found(offset));
            }
            let &(_, _, block, bytes) = info.kind.row();
            let inner = info.dims.first().copied().unwrap_or(1);
            let elements = info.dims.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
            let size = elements.filter(|_| inner.is_multiple_of(block)).and_then(|n| (n / block).checked_mul(bytes));
            let Some(size) = size else {
                return Err(tensor_error("a tensor has an invalid shape")
                    .expected(format!("rows of whole blocks of {block} {}", info.kind))
                    .found(format!("{:?}", info.dims)));
            };
            let end = start.checked_add(offset).and_then(|from| from.checked_add(size as u64));
            match end {
                Some(end) if end <= total => {
                    placed.push(TensorInfo { range: end - size as u64..end, ..info });
                }
                _ => {
                    return Err(tensor_error("a tensor reaches past the end of the file")
                        .expected(format!("{size} bytes from offset {offset} of the data"))
                        .found(format!("a file of {total} bytes with a header of {header} bytes"))
                        .help(DOWNLOAD_AGAIN));
                }
            }
        }
        placed.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
        for pair in placed.windows(2) {
            if pair[1].range.start < pair[0].range.end {
                return Err(Error::new(ErrorKind::Model, "the tensors of the GGUF file overlap")
                    .at(format!("{}: {}", self.place, pair[1].name))
                    .expected(format!("bytes from {}, where {} ends", pair[0].range.end, pair[0].name))
                    .found(format!("bytes from {}", pair[1].range.start)));
            }
        }
        Ok(placed)
    }
}
