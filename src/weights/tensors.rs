//! The tensors of a model, independent of the file format. Names are those of Hugging Face checkpoints, and the
//! outermost dimension of a shape comes first.
use super::ggml_type::GgmlType;
use super::pieces::unreadable;
use super::{Bytes, PackedRows, ReadAt, pack};
use crate::dtype::Dtype;
use crate::{Error, ErrorKind, Result};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

/// The prefix of every [fingerprint](Weights::fingerprint). A fingerprint without it comes from an older version,
/// which computed another hash, so it says nothing about the weights.
pub const FINGERPRINT: &str = "blake3:";

/// The bytes that are hashed at a time.
const PIECE: usize = 16 << 20;

/// The element type of a tensor as its file names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileDtype {
    /// In a safetensors file.
    Safetensors(safetensors::Dtype),
    /// In a GGUF file.
    Ggml(GgmlType),
}

impl FileDtype {
    /// The same type as a [`Dtype`], if secateur can compute with it.
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

impl fmt::Display for FileDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Safetensors(dtype) => dtype.fmt(f),
            Self::Ggml(kind) => kind.fmt(f),
        }
    }
}

/// The tensors of a model, by name.
#[derive(Debug, Default)]
pub struct Weights {
    pub(super) files: Vec<(String, Bytes)>,
    pub(super) tensors: BTreeMap<String, Entry>,
    /// The tensors that the index of the weights names and that no shard has. The model must not need them.
    pub(super) lost: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: usize,
    pub(super) stored: FileDtype,
    pub(super) shape: Vec<usize>,
    /// For a tensor whose rows are stored in pairs, the number of heads; see [`PackedRows::unpair_heads`].
    pub(super) heads: Option<usize>,
    /// Where the bytes lie in the file.
    pub(super) range: Range<u64>,
    /// The name in the file, if it differs from the one that Hugging Face checkpoints use.
    pub(super) own_name: Option<String>,
}

/// One tensor: row-major, little-endian elements, borrowed from the bytes of the file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// The name of the tensor.
    pub name: &'a str,
    /// The path of the file that holds the tensor.
    pub file: &'a str,
    /// The element type in the file.
    pub stored: FileDtype,
    /// The size of each dimension, outermost first.
    pub shape: &'a [usize],
    /// The bytes of the elements, in the order of the file. For the query and key projections of Llama in GGUF files,
    /// this order differs from that of Hugging Face checkpoints, which [`to_rows`](Self::to_rows) and
    /// [`to_f32`](Self::to_f32) return. Empty if the file is read in pieces.
    pub bytes: &'a [u8],
    heads: Option<usize>,
    own_name: Option<&'a str>,
    /// The reader of the bytes if they are not in memory.
    reader: Option<&'a dyn ReadAt>,
    range: &'a Range<u64>,
}

impl Weights {
    /// Weights that are all zeros: tensors with these names, element types and shapes. They share their bytes.
    ///
    /// # Errors
    /// An element type that is not supported, and a shape that has no whole number of blocks.
    pub(crate) fn zeros(tensors: impl IntoIterator<Item = (String, FileDtype, Vec<usize>)>) -> Result<Self> {
        let mut zeros = Self::default();
        for (name, stored, shape) in tensors {
            let size = stored.packed().and_then(|dtype| dtype.stored_bytes(shape.iter().product()));
            let Some(size) = size else {
                let e = Error::new(ErrorKind::Model, "a tensor has an element type or a shape that is not supported");
                return Err(e.at(name).found(format!("{stored} {shape:?}")));
            };
            let entry = Entry { file: 0, stored, shape, heads: None, range: 0..size as u64, own_name: None };
            zeros.tensors.insert(name, entry);
        }
        let most = zeros.tensors.values().map(|entry| entry.range.end).max().unwrap_or(0);
        zeros.files.push(("zeros".into(), vec![0; most as usize].into()));
        Ok(zeros)
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// If the weights have no such tensor. The error names a similar one if there is one.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.find(name).ok_or_else(|| self.missing(name))
    }

    /// The tensor `name`, or `None` if the weights have no such tensor.
    pub fn find(&self, name: &str) -> Option<TensorView<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let (file, bytes) = &self.files[entry.file];
        let Entry { stored, heads, range, shape, .. } = entry;
        let own_name = entry.own_name.as_deref();
        let here = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let here = here.and_then(|(start, end)| bytes.get(start..end));
        // If the file is still being fetched, the bytes may be missing.
        let reader = if here.is_none() { bytes.reader() } else { None };
        let bytes = here.unwrap_or_default();
        Some(TensorView { name, file, stored: *stored, shape, bytes, heads: *heads, own_name, reader, range })
    }

    /// The tensor `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        // In a quantized checkpoint, packed integers also have another shape. The error about their type says more.
        if shape.len() > 1 {
            tensor.packed_dtype()?;
        }
        Err(Error::new(ErrorKind::Model, "a tensor has the wrong shape")
            .at(tensor.place())
            .expected(format!("{shape:?}"))
            .found(format!("{:?}", tensor.shape))
            .help("is config.json the one that came with these weights?"))
    }

    /// A hash that identifies these weights: [`FINGERPRINT`] and the 64 hexadecimal digits of a BLAKE3 hash. It
    /// covers the name, type, shape and all bytes of every tensor, so it takes as long as reading all of them from
    /// memory or disk.
    ///
    /// # Errors
    /// If a file that is read in pieces cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for tensor in self.tensors.keys().filter_map(|name| self.find(name)) {
            let TensorView { name, stored, shape, .. } = tensor;
            let size = tensor.size();
            // The length is hashed too. Otherwise a tensor's bytes could be mistaken for the header of the next
            // tensor.
            hasher.update(format!("{name} {stored} {shape:?} {size}\n").as_bytes());
            for start in (0..size).step_by(PIECE) {
                hasher.update(&tensor.piece(start, PIECE.min((size - start) as usize))?);
            }
        }
        Ok(format!("{FINGERPRINT}{}", hasher.finalize().to_hex()))
    }

    /// Gives back the memory of mapped files. Reading a tensor later reads its file again.
    pub(crate) fn release_memory(&self) {
        self.files.iter().for_each(|(_, bytes)| bytes.release_memory());
    }

    /// The paths of the files; for files in memory, their names.
    pub fn places(&self) -> impl ExactSizeIterator<Item = &str> {
        self.files.iter().map(|(place, _)| place.as_str())
    }

    /// The matrix `name` of shape `[rows, cols]` as packed rows, in its own element type.
    ///
    /// # Errors
    /// If the matrix is missing, has another shape, or has an element type that is not supported.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<PackedRows<'_>> {
        self.expect(name, &[rows, cols])?.to_rows()
    }

    /// Matrix `index` of the tensor `name` of shape `[count, rows, cols]` as packed rows, in its own element type.
    ///
    /// # Errors
    /// If the tensor is missing, has another shape, or has an element type that is not supported.
    pub fn matrix_of(&self, name: &str, [count, rows, cols]: [usize; 3], index: usize) -> Result<PackedRows<'_>> {
        let tensor = self.expect(name, &[count, rows, cols])?;
        let size = tensor.size() / count as u64;
        let bytes = tensor.piece(index as u64 * size, usize::try_from(size).unwrap_or(usize::MAX))?;
        PackedRows::from_le_cow(tensor.packed_dtype()?, rows, cols, bytes).map_err(|e| e.at(tensor.place()))
    }

    /// The vector `name` of `len` elements, converted to f32.
    ///
    /// # Errors
    /// If the vector is missing, has another shape, or has an element type that is not supported.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.expect(name, &[len])?.to_f32()
    }

    /// Whether the weights have a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The size of all tensors together, in bytes as stored in the files.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.end - entry.range.start).sum()
    }

    fn missing(&self, name: &str) -> Error {
        let files: Vec<_> = self.files.iter().map(|(file, _)| file.as_str()).take(3).collect();
        let error = Error::new(ErrorKind::Model, format!("the weights have no tensor {name}")).at(files.join(", "));
        if self.lost.contains(name) {
            return error
                .found("the index names it, but the shards do not have it")
                .help("the index does not belong to these shards: download both again");
        }
        if let Some(packed) = name.strip_suffix(".weight").map(|stem| format!("{stem}.qweight"))
            && self.contains(&packed)
        {
            return error
                .found(format!("{packed}: the weights are quantized by GPTQ or AWQ, which is not supported"))
                .help("use the original weights, or a GGUF file");
        }
        // Checkpoints of the bare decoder lack the prefix `model.`; checkpoints of a wrapped model have a further
        // prefix.
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
            return error.help(
                "if the model uses its embedding as the output head, set \"tie_word_embeddings\": true in config.json",
            );
        }
        error.help("is config.json the one that came with these weights?")
    }
}

impl<'a> TensorView<'a> {
    /// The file and the name that the tensor has there, for messages.
    pub fn place(&self) -> String {
        format!("{}: {}", self.file, self.own_name.unwrap_or(self.name))
    }

    /// The size in bytes, as stored in the file.
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// `len` bytes from byte `start` of the tensor on; fewer if the file does not have them.
    fn piece(&self, start: u64, len: usize) -> Result<Cow<'a, [u8]>> {
        let Some(reader) = self.reader else {
            let (start, end) = (start as usize, (start as usize).saturating_add(len).min(self.bytes.len()));
            return Ok(Cow::Borrowed(self.bytes.get(start..end).unwrap_or_default()));
        };
        let mut bytes = vec![0; len];
        let read = reader.read_at(self.range.start + start, &mut bytes);
        read.map_err(|e| unreadable(&self.place(), e))?;
        Ok(Cow::Owned(bytes))
    }

    /// All bytes of the elements.
    fn all(&self) -> Result<Cow<'a, [u8]>> {
        let too_large = |_| {
            Error::new(ErrorKind::Model, "a tensor is too large to be read as a whole")
                .at(self.place())
                .found(format!("{} bytes", self.size()))
        };
        self.piece(0, usize::try_from(self.size()).map_err(too_large)?)
    }

    /// The element type as a [`Dtype`].
    ///
    /// # Errors
    /// If secateur cannot compute with the type.
    pub fn packed_dtype(&self) -> Result<Dtype> {
        self.stored.packed().ok_or_else(|| {
            let error = Error::new(ErrorKind::Model, "a tensor has an element type that is not supported")
                .at(self.place())
                .found(self.stored);
            match self.stored {
                FileDtype::Safetensors(safetensors::Dtype::U32) => error
                    .expected("F32, F16 or BF16")
                    .help("packed integers are weights that were quantized, for example by MLX: use the original weights, or a GGUF file"),
                FileDtype::Safetensors(_) => error
                    .expected("F32, F16 or BF16")
                    .help("quantized safetensors are not supported: use the original weights, or a GGUF file"),
                FileDtype::Ggml(_) => error
                    .expected("F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL or IQ4_XS")
                    .help("use a file with another quantization, such as Q4_K_M"),
            }
        })
    }

    /// A matrix as packed rows.
    ///
    /// # Errors
    /// If the tensor does not have two dimensions, or has an element type that is not supported.
    pub fn to_rows(&self) -> Result<PackedRows<'a>> {
        let dtype = self.packed_dtype()?;
        let &[rows, cols] = self.shape else {
            return Err(Error::new(ErrorKind::Model, "a tensor is not a matrix")
                .at(self.place())
                .expected("2 dimensions")
                .found(format!("{:?}", self.shape)));
        };
        let at_tensor = |error: Error| error.at(self.place());
        let packed = PackedRows::from_le_cow(dtype, rows, cols, self.all()?).map_err(at_tensor)?;
        match self.heads {
            None => Ok(packed),
            Some(heads) => packed.unpair_heads(heads).map_err(at_tensor),
        }
    }

    /// The rows of a matrix in `range` as packed rows. Of a file that is read in pieces, only these rows are read,
    /// unless the file has the rows of heads in another order.
    ///
    /// # Errors
    /// Those of [`to_rows`](Self::to_rows), and a range that is empty or does not lie within the matrix.
    pub fn some_rows(&self, range: Range<usize>) -> Result<PackedRows<'a>> {
        let (dtype, &[rows, cols]) = (self.packed_dtype()?, self.shape) else { return self.to_rows() };
        if self.heads.is_some() {
            return Ok(self.to_rows()?.slice_rows(range)?.into_owned());
        }
        let row = dtype.stored_bytes(cols).unwrap_or(0);
        if range.is_empty() || range.end > rows || row as u64 * rows as u64 != self.size() {
            // `to_rows` returns the error that describes the problem.
            return Ok(self.to_rows()?.slice_rows(range)?.into_owned());
        }
        let bytes = self.piece((row as u64) * range.start as u64, row * range.len())?;
        PackedRows::from_le_cow(dtype, range.len(), cols, bytes).map_err(|error| error.at(self.place()))
    }

    /// All elements as f32. The conversion is exact.
    ///
    /// # Errors
    /// If the tensor has an element type that is not supported.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let dtype = self.packed_dtype()?;
        let at_tensor = |error: Error| error.at(self.place());
        let bytes = self.all()?;
        let values = match (dtype.is_quantized(), self.shape) {
            (false, _) => pack::to_f32(dtype, &bytes),
            (true, [outer @ .., cols]) => {
                PackedRows::from_le_bytes(dtype, outer.iter().product(), *cols, &bytes).map_err(at_tensor)?.to_f32()
            }
            (true, []) => Vec::new(),
        };
        let Some(heads) = self.heads else { return Ok(values) };
        let rows = self.shape[0];
        let width = values.len() / rows.max(1);
        let order = pack::unpaired(rows, heads).map_err(at_tensor)?;
        Ok(order.flat_map(|row| values[row * width..][..width].iter().copied()).collect())
    }
}
