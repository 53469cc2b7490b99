//! Reads the header of a GGUF file. Every count and every length is checked before it is used.
use crate::weights::DOWNLOAD_AGAIN;
use crate::weights::ggml_type::GgmlType;
use crate::{Error, ErrorKind, Result};
use std::ops::Range;

const MAGIC: [u8; 4] = *b"GGUF";
/// The largest number of dimensions that ggml allows.
const MAX_DIMENSIONS: u32 = 4;
/// The largest length of a name in bytes. ggml allows 65,535 bytes for keys and 64 for tensors.
const MAX_NAME: usize = 65_535;

/// A metadata value. Texts and lists stay in the file and are represented by their byte ranges.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    List { kind: ValueType, len: usize, range: Range<usize> },
}

/// The type of a metadata value. The order of the variants is that of the numbers in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
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

impl ValueType {
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

    /// The smallest number of bytes that a value of this type takes.
    const fn min_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::List => 12,
        }
    }
}

/// The description of a tensor.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) kind: GgmlType,
    /// The size of each dimension, innermost first as in the file.
    pub(super) dims: Vec<usize>,
    /// The index of the file that holds the tensor; 0 unless the model is split.
    pub(super) file: usize,
    pub(super) range: Range<u64>,
}

/// Reads a header from the start. Every read checks that enough bytes are left.
pub(super) struct HeaderReader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) offset: usize,
    pub(super) place: &'a str,
}

impl<'a> HeaderReader<'a> {
    pub(super) fn error_here(&self, what: &str) -> Error {
        Error::new(ErrorKind::Model, what).at(format!("{}, byte {}", self.place, self.offset))
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    fn take(&mut self, n: u64) -> Result<Range<usize>> {
        if n > self.left() as u64 {
            return Err(self
                .error_here("the GGUF header reaches past the end of the file")
                .expected(format!("{n} bytes"))
                .found(format!("{} bytes", self.left()))
                .help(DOWNLOAD_AGAIN));
        }
        let from = self.offset;
        self.offset += n as usize;
        Ok(from..self.offset)
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

    /// Reads the magic, the version and the two counts, and returns the numbers of key-value pairs and of tensors.
    pub(super) fn start(&mut self) -> Result<(u64, u64)> {
        if self.bytes.first_chunk() != Some(&MAGIC) {
            let found = match self.bytes.first_chunk::<4>() {
                Some(four) => format!("{:?}", String::from_utf8_lossy(four)),
                None => format!("{} bytes", self.bytes.len()),
            };
            return Err(Error::new(ErrorKind::Model, "this is not a GGUF file")
                .at(self.place)
                .expected("\"GGUF\" at the beginning of the file")
                .found(found));
        }
        self.offset = 4;
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            let error = self.error_here("this version of GGUF is not supported").expected("2 or 3").found(version);
            return Err(match version.swap_bytes() {
                2 | 3 => error.help("the file is big-endian: convert the model again for little-endian machines"),
                _ => error.help("convert the model again with a current llama.cpp"),
            });
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        // The sizes in bytes of the shortest possible tensor description and key-value pair.
        for (what, count, least) in [("tensors", tensors, 24), ("key-value pairs", pairs, 13)] {
            if count > (self.left() / least) as u64 {
                return Err(self
                    .error_here("the GGUF header announces more than the file can hold")
                    .expected(format!("at most {} {what} in {} bytes", self.left() / least, self.bytes.len()))
                    .found(format!("{count} {what}"))
                    .help(DOWNLOAD_AGAIN));
            }
        }
        Ok((pairs, tensors))
    }

    pub(super) fn text_range(&mut self) -> Result<Range<usize>> {
        let len = self.u64()?;
        self.take(len)
    }

    pub(super) fn name(&mut self, what: &str) -> Result<String> {
        let range = self.text_range()?;
        let invalid_name = |found: String| {
            Error::new(ErrorKind::Model, format!("{what} of the GGUF file has an invalid name"))
                .at(format!("{}, byte {}", self.place, range.start))
                .expected(format!("UTF-8 of at most {MAX_NAME} bytes"))
                .found(found)
        };
        if range.len() > MAX_NAME {
            return Err(invalid_name(format!("{} bytes", range.len())));
        }
        std::str::from_utf8(&self.bytes[range.clone()]).map(str::to_string).map_err(|e| invalid_name(e.to_string()))
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType> {
        let number = self.u32()?;
        ValueType::ALL.get(number as usize).copied().ok_or_else(|| {
            self.error_here("a metadata value has an unknown type")
                .expected("a type from 0 to 12")
                .found(format!("{number} for {key}"))
        })
    }

    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        match self.value_type(key)? {
            ValueType::List => {
                let kind = self.value_type(key)?;
                if kind == ValueType::List {
                    return Err(self.error_here("lists of lists in the metadata are not supported").found(key));
                }
                let len = self.u64()?;
                if len > (self.left() / kind.min_bytes()) as u64 {
                    return Err(self
                        .error_here("the GGUF header announces more than the file can hold")
                        .expected(format!("at most {} values", self.left() / kind.min_bytes()))
                        .found(format!("a list of {len} for {key}"))
                        .help(DOWNLOAD_AGAIN));
                }
                let from = self.offset;
                match kind {
                    ValueType::Text => {
                        for _ in 0..len {
                            self.text_range()?;
                        }
                    }
                    // The product cannot overflow, because the list fits into the remaining bytes.
                    _ => {
                        self.take(len * kind.min_bytes() as u64)?;
                    }
                }
                Ok(Value::List { kind, len: len as usize, range: from..self.offset })
            }
            kind => self.scalar(kind),
        }
    }

    pub(super) fn scalar(&mut self, kind: ValueType) -> Result<Value> {
        Ok(match kind {
            ValueType::U8 => Value::Uint(u64::from(u8::from_le_bytes(self.array()?))),
            ValueType::U16 => Value::Uint(u64::from(u16::from_le_bytes(self.array()?))),
            ValueType::U32 => Value::Uint(u64::from(self.u32()?)),
            ValueType::U64 => Value::Uint(self.u64()?),
            ValueType::I8 => Value::Int(i64::from(i8::from_le_bytes(self.array()?))),
            ValueType::I16 => Value::Int(i64::from(i16::from_le_bytes(self.array()?))),
            ValueType::I32 => Value::Int(i64::from(i32::from_le_bytes(self.array()?))),
            ValueType::I64 => Value::Int(i64::from_le_bytes(self.array()?)),
            ValueType::F32 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            ValueType::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            ValueType::Bool => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(self.error_here("a boolean in the metadata is neither true nor false").found(other));
                }
            },
            ValueType::Text => Value::Text(self.text_range()?),
            ValueType::List => return Err(self.error_here("lists of lists in the metadata are not supported")),
        })
    }

    /// Reads `count` tensor descriptions. Each comes with the offset of the tensor in the data.
    pub(super) fn infos(&mut self, count: u64) -> Result<Vec<(TensorInfo, u64)>> {
        // The vector grows with the descriptions found. Reserving `count` entries could be a huge allocation if the
        // count of a large file is wrong.
        let mut infos = Vec::new();
        for _ in 0..count {
            let name = self.name("a tensor")?;
            let dimensions = self.u32()?;
            if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
                return Err(self
                    .error_here("a tensor has an invalid number of dimensions")
                    .expected(format!("1 to {MAX_DIMENSIONS}"))
                    .found(format!("{dimensions} for {name}")));
            }
            let mut dims = Vec::with_capacity(dimensions as usize);
            for _ in 0..dimensions {
                let size = self.u64()?;
                dims.push(usize::try_from(size).ok().filter(|size| *size > 0).ok_or_else(|| {
                    self.error_here("a tensor has an invalid shape")
                        .expected("sizes above 0")
                        .found(format!("{size} for {name}"))
                })?);
            }
            let number = self.u32()?;
            let kind = GgmlType::new(number).ok_or_else(|| {
                self.error_here("a tensor has an unknown element type").found(format!("{number} for {name}"))
            })?;
            let offset = self.u64()?;
            infos.push((TensorInfo { name, kind, dims, file: 0, range: 0..0 }, offset));
        }
        Ok(infos)
    }
}
