//! GGUF files, versions 2 and 3: one file with metadata, tokenizer and tensors, read as views.
//!
//! The format (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): magic, version, counts, key-value pairs, tensor
//! descriptions, padding, data; all little-endian. Nothing in the header is believed: every count and length is held against the
//! bytes that are left before anything is allocated, and allocations are bounded by the header's own size.
use super::Bytes;
use super::tensors::{DOWNLOAD_AGAIN, Entry, Stored, Weights};
use crate::dtype::Dtype;
use crate::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

const MAGIC: [u8; 4] = *b"GGUF";
/// What ggml allows.
const MAX_DIMENSIONS: u32 = 4;
/// Longer names are not names. ggml's limits are 65,535 for keys and 64 for tensors.
const MAX_NAME: usize = 65_535;

/// An element type of ggml, by its number. All that ggml has had are known by name; [`packed`](Self::packed) says which are
/// computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlType(u32);

/// Number, name, elements of a block, bytes of a block.
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
    fn new(number: u32) -> Option<Self> {
        TYPES.iter().any(|t| t.0 == number).then_some(Self(number))
    }

    fn row(self) -> &'static (u32, &'static str, usize, usize) {
        TYPES.iter().find(|t| t.0 == self.0).expect("only known numbers are constructed")
    }

    /// The element type, if it is one that secateur computes with.
    pub fn packed(self) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(self.row().1))
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

/// A value of the metadata. Texts and lists stay in the file: these are where they lie.
#[derive(Debug, Clone)]
enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    List { kind: Kind, len: usize, range: Range<usize> },
}

/// Types of values, as numbered by the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::List,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The fewest bytes that a value takes.
    const fn least(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::List => 12,
        }
    }
}

/// A tensor's description.
#[derive(Debug)]
struct Info {
    name: String,
    kind: GgmlType,
    /// Innermost first, as the file has them.
    dims: Vec<usize>,
    range: Range<usize>,
}

/// An opened GGUF file: its header checked against its size, its tensors where they lie.
#[derive(Debug)]
pub struct Gguf {
    place: String,
    bytes: Bytes,
    metadata: HashMap<String, Value>,
    tensors: Vec<Info>,
}

impl Gguf {
    /// Checks the header of `bytes`; `place` names the file in messages.
    ///
    /// # Errors
    /// When it is no GGUF file of version 2 or 3, or its header does not fit its bytes.
    pub fn new(place: impl Into<String>, bytes: impl Into<Bytes>) -> Result<Self> {
        let mut gguf = Self { place: place.into(), bytes: bytes.into(), metadata: HashMap::new(), tensors: Vec::new() };
        let bytes = gguf.bytes.clone();
        let mut reader = Reader { bytes: &bytes, at: 0, place: &gguf.place };
        let (pairs, tensors) = reader.start()?;
        for _ in 0..pairs {
            let key = reader.name("a key")?;
            let value = reader.value(&key)?;
            if gguf.metadata.insert(key.clone(), value).is_some() {
                return Err(reader.wrong("a key of the GGUF file comes twice").found(key));
            }
        }
        let infos = reader.infos(tensors)?;
        let header = reader.at;
        gguf.tensors = gguf.lay_out(infos, header)?;
        Ok(gguf)
    }

    /// Where the file lies, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The metadata of `key` as text, if it has any.
    ///
    /// # Errors
    /// When the value is no text or not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => self.utf8(key, range.clone()).map(Some),
            Some(_) => Err(self.mistyped(key, "a text")),
        }
    }

    /// The metadata of `key` as a whole number that is not negative, if it has any.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Uint(value)) => Ok(Some(*value)),
            Some(Value::Int(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(_) => Err(self.mistyped(key, "a whole number that is not negative")),
        }
    }

    /// The metadata of `key` as a finite number, if it has any.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::Uint(value)) => Ok(Some(*value as f64)),
            Some(Value::Int(value)) => Ok(Some(*value as f64)),
            Some(_) => Err(self.mistyped(key, "a number")),
        }
    }

    /// The metadata of `key` as true or false, if it has any.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.mistyped(key, "true or false")),
        }
    }

    /// The metadata of `key` as a list of texts, if it has any.
    ///
    /// # Errors
    /// When the value is something else, or a text is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::List { kind: Kind::Text, len, range }) => {
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

    /// The metadata of `key` as a list of whole numbers, if it has any.
    ///
    /// # Errors
    /// When the value is something else.
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

    /// Whether `key` is a list.
    pub fn is_list(&self, key: &str) -> bool {
        matches!(self.metadata.get(key), Some(Value::List { .. }))
    }

    /// The sizes of the tensor `name`, outermost first, if there is one.
    pub fn shape_of(&self, name: &str) -> Option<Vec<usize>> {
        let info = self.tensors.iter().find(|info| info.name == name)?;
        Some(info.dims.iter().rev().copied().collect())
    }

    /// The values of the tensor `name` as f32, if there is one.
    ///
    /// # Errors
    /// When its element type is not supported.
    pub fn values_of(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.tensors.iter().find(|info| info.name == name) else { return Ok(None) };
        let weights = Weights {
            files: vec![(self.place.clone(), self.bytes.clone())],
            tensors: BTreeMap::from([(name.to_string(), info.entry(None))]),
        };
        weights.tensor(name)?.to_f32().map(Some)
    }

    /// An error about the metadata of `key`.
    pub(crate) fn wrong(&self, key: &str, what: impl fmt::Display) -> Error {
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
        self.wrong(key, "metadata of the wrong type").expected(expected).found(found)
    }

    fn utf8(&self, key: &str, range: Range<usize>) -> Result<&str> {
        std::str::from_utf8(&self.bytes[range]).map_err(|e| self.wrong(key, "metadata that is not UTF-8").found(e))
    }

    fn reader(&self, range: &Range<usize>) -> Reader<'_> {
        Reader { bytes: &self.bytes[..range.end], at: range.start, place: &self.place }
    }

    /// Puts the tensors where their offsets say, in file order. They must not overlap; holes are alignment.
    fn lay_out(&self, infos: Vec<(Info, u64)>, header: usize) -> Result<Vec<Info>> {
        let alignment = self.uint("general.alignment")?.unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(self
                .wrong("general.alignment", "an alignment that cannot be used")
                .expected("a power of two up to 1048576")
                .found(alignment));
        }
        let mut placed = Vec::with_capacity(infos.len());
        let start = (header as u64).next_multiple_of(alignment);
        for (info, offset) in infos {
            let at = |what: &str| Error::new(ErrorKind::Model, what).at(format!("{}: {}", self.place, info.name));
            if offset % alignment != 0 {
                return Err(at("a tensor is not aligned").expected(format!("a multiple of {alignment}")).found(offset));
            }
            let &(_, _, block, bytes) = info.kind.row();
            let inner = info.dims.first().copied().unwrap_or(1);
            let elements = info.dims.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
            let size = elements.filter(|_| inner.is_multiple_of(block)).and_then(|n| (n / block).checked_mul(bytes));
            let Some(size) = size else {
                return Err(at("a tensor's sizes make no sense")
                    .expected(format!("rows of whole blocks of {block} {}", info.kind))
                    .found(format!("{:?}", info.dims)));
            };
            let end = start.checked_add(offset).and_then(|from| from.checked_add(size as u64));
            match end {
                Some(end) if end <= self.bytes.len() as u64 => {
                    // Both fit: `end` is at most the file's length.
                    let from = (end - size as u64) as usize;
                    placed.push(Info { range: from..from + size, ..info });
                }
                _ => {
                    return Err(at("a tensor reaches past the end of the file")
                        .expected(format!("{size} bytes from {offset} of the data"))
                        .found(format!("a file of {} bytes, {} of them header", self.bytes.len(), header))
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

impl Info {
    fn entry(&self, heads: Option<usize>) -> Entry {
        let shape = self.dims.iter().rev().copied().collect();
        Entry { file: 0, stored: Stored::Ggml(self.kind), shape, heads, range: self.range.clone() }
    }
}

impl Weights {
    /// The tensors of a GGUF file, by their names in Hugging Face checkpoints.
    ///
    /// # Errors
    /// When two tensors would have the same name.
    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let architecture = gguf.text("general.architecture")?.unwrap_or_default();
        let heads = |key: &str| gguf.uint(&format!("{architecture}.attention.{key}"));
        let q = heads("head_count")?;
        let k = match gguf.is_list(&format!("{architecture}.attention.head_count_kv")) {
            true => None, // refused with the config
            false => heads("head_count_kv")?.or(q),
        };
        let mut tensors = BTreeMap::new();
        for info in &gguf.tensors {
            // llama.cpp's converter reorders these for its own rotation, which turns neighbours together.
            let paired = match info.name.rsplit('.').nth(1) {
                Some("attn_q") if architecture == "llama" => q,
                Some("attn_k") if architecture == "llama" => k,
                _ => None,
            };
            let paired = paired.map(|heads| usize::try_from(heads).unwrap_or(usize::MAX));
            if tensors.insert(hf_name(&info.name), info.entry(paired)).is_some() {
                return Err(
                    Error::new(ErrorKind::Model, "a tensor comes twice").at(format!("{}: {}", gguf.place, info.name))
                );
            }
        }
        Ok(Self { files: vec![(gguf.place.clone(), gguf.bytes.clone())], tensors })
    }
}

/// The name that Hugging Face checkpoints of Qwen2, Qwen3 and Llama give the tensor; others stay as they are.
fn hf_name(name: &str) -> String {
    let whole = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => "",
    };
    if !whole.is_empty() {
        return whole.to_string();
    }
    let mut parts = name.split('.');
    let (Some("blk"), Some(layer), Some(part), Some(what), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return name.to_string();
    };
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return name.to_string(),
    };
    format!("model.layers.{layer}.{part}.{what}")
}

/// Reads a header; every step checks that the bytes are there.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    place: &'a str,
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: &str) -> Error {
        Error::new(ErrorKind::Model, what).at(format!("{}, byte {}", self.place, self.at))
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: u64) -> Result<Range<usize>> {
        if n > self.left() as u64 {
            return Err(self
                .wrong("the GGUF header reaches past the end of the file")
                .expected(format!("{n} bytes"))
                .found(format!("{} bytes", self.left()))
                .help(DOWNLOAD_AGAIN));
        }
        let from = self.at;
        self.at += n as usize;
        Ok(from..self.at)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N as u64)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[range]);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Magic, version and the two counts: key-value pairs, tensors.
    fn start(&mut self) -> Result<(u64, u64)> {
        if self.bytes.first_chunk() != Some(&MAGIC) {
            let found = match self.bytes.first_chunk::<4>() {
                Some(four) => format!("{:?}", String::from_utf8_lossy(four)),
                None => format!("{} bytes", self.bytes.len()),
            };
            return Err(Error::new(ErrorKind::Model, "this is not a GGUF file")
                .at(self.place)
                .expected("\"GGUF\" at its beginning")
                .found(found));
        }
        self.at = 4;
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            let error = self.wrong("this version of GGUF is not read").expected("2 or 3").found(version);
            return Err(match version.swap_bytes() {
                2 | 3 => error.help("the file is big-endian: convert it for little-endian machines"),
                _ => error.help("convert the model again with a current llama.cpp"),
            });
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        // The shortest pair and description: a byte of text each would be more.
        for (what, count, least) in [("tensors", tensors, 24), ("key-value pairs", pairs, 13)] {
            if count > (self.left() / least) as u64 {
                return Err(self
                    .wrong("the GGUF header announces more than the file can hold")
                    .expected(format!("at most {} {what} in {} bytes", self.left() / least, self.bytes.len()))
                    .found(format!("{count} {what}"))
                    .help(DOWNLOAD_AGAIN));
            }
        }
        Ok((pairs, tensors))
    }

    fn text_range(&mut self) -> Result<Range<usize>> {
        let len = self.u64()?;
        self.take(len)
    }

    fn name(&mut self, what: &str) -> Result<String> {
        let range = self.text_range()?;
        let wrong = |found: String| {
            Error::new(ErrorKind::Model, format!("{what} of the GGUF file is no name"))
                .at(format!("{}, byte {}", self.place, range.start))
                .expected(format!("UTF-8 of at most {MAX_NAME} bytes"))
                .found(found)
        };
        if range.len() > MAX_NAME {
            return Err(wrong(format!("{} bytes", range.len())));
        }
        std::str::from_utf8(&self.bytes[range.clone()]).map(str::to_string).map_err(|e| wrong(e.to_string()))
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let number = self.u32()?;
        Kind::ALL.get(number as usize).copied().ok_or_else(|| {
            self.wrong("metadata of a type that is not known")
                .expected("a type from 0 to 12")
                .found(format!("{number} for {key}"))
        })
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        match self.kind(key)? {
            Kind::List => {
                let kind = self.kind(key)?;
                if kind == Kind::List {
                    return Err(self.wrong("metadata with lists of lists").found(key));
                }
                let len = self.u64()?;
                if len > (self.left() / kind.least()) as u64 {
                    return Err(self
                        .wrong("the GGUF header announces more than the file can hold")
                        .expected(format!("at most {} values", self.left() / kind.least()))
                        .found(format!("a list of {len} for {key}"))
                        .help(DOWNLOAD_AGAIN));
                }
                let from = self.at;
                match kind {
                    Kind::Text => {
                        for _ in 0..len {
                            self.text_range()?;
                        }
                    }
                    // No overflow: it fits the bytes that are left.
                    _ => {
                        self.take(len * kind.least() as u64)?;
                    }
                }
                Ok(Value::List { kind, len: len as usize, range: from..self.at })
            }
            kind => self.scalar(kind),
        }
    }

    fn scalar(&mut self, kind: Kind) -> Result<Value> {
        Ok(match kind {
            Kind::U8 => Value::Uint(u64::from(u8::from_le_bytes(self.array()?))),
            Kind::U16 => Value::Uint(u64::from(u16::from_le_bytes(self.array()?))),
            Kind::U32 => Value::Uint(u64::from(self.u32()?)),
            Kind::U64 => Value::Uint(self.u64()?),
            Kind::I8 => Value::Int(i64::from(i8::from_le_bytes(self.array()?))),
            Kind::I16 => Value::Int(i64::from(i16::from_le_bytes(self.array()?))),
            Kind::I32 => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            Kind::I64 => Value::Int(i64::from_le_bytes(self.array()?)),
            Kind::F32 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            Kind::Bool => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.wrong("metadata that is neither true nor false").found(other)),
            },
            Kind::Text => Value::Text(self.text_range()?),
            Kind::List => return Err(self.wrong("metadata with lists of lists")),
        })
    }

    /// The descriptions of the tensors, each with its offset in the data.
    fn infos(&mut self, count: u64) -> Result<Vec<(Info, u64)>> {
        // Grows as descriptions are found: a lying count in a large file would still be a large allocation.
        let mut infos = Vec::new();
        for _ in 0..count {
            let name = self.name("a tensor")?;
            let dimensions = self.u32()?;
            if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
                return Err(self
                    .wrong("a tensor has a number of dimensions that makes no sense")
                    .expected(format!("1 to {MAX_DIMENSIONS}"))
                    .found(format!("{dimensions} for {name}")));
            }
            let mut dims = Vec::with_capacity(dimensions as usize);
            for _ in 0..dimensions {
                let size = self.u64()?;
                dims.push(usize::try_from(size).ok().filter(|size| *size > 0).ok_or_else(|| {
                    self.wrong("a tensor's sizes make no sense")
                        .expected("sizes above 0")
                        .found(format!("{size} for {name}"))
                })?);
            }
            let number = self.u32()?;
            let kind = GgmlType::new(number).ok_or_else(|| {
                self.wrong("a tensor has an element type that is not known").found(format!("{number} for {name}"))
            })?;
            let offset = self.u64()?;
            infos.push((Info { name, kind, dims, range: 0..0 }, offset));
        }
        Ok(infos)
    }
}
