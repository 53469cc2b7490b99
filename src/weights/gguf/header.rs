//! The header of a GGUF file, read with every count and length checked.
use super::ggml_type::GgmlType;
use crate::weights::tensors::DOWNLOAD_AGAIN;
use crate::{Error, ErrorKind, Result};
use std::ops::Range;

const MAGIC: [u8; 4] = *b"GGUF";
/// What ggml allows.
const MAX_DIMENSIONS: u32 = 4;
/// Longer names are not names. ggml's limits are 65,535 for keys and 64 for tensors.
const MAX_NAME: usize = 65_535;

/// A value of the metadata. Texts and lists stay in the file: these are where they lie.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    List { kind: Kind, len: usize, range: Range<usize> },
}

/// Types of values, as numbered by the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) struct Info {
    pub(super) name: String,
    pub(super) kind: GgmlType,
    /// Innermost first, as the file has them.
    pub(super) dims: Vec<usize>,
    pub(super) range: Range<usize>,
}

/// Reads a header; every step checks that the bytes are there.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) place: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn wrong(&self, what: &str) -> Error {
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
    pub(super) fn start(&mut self) -> Result<(u64, u64)> {
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

    pub(super) fn text_range(&mut self) -> Result<Range<usize>> {
        let len = self.u64()?;
        self.take(len)
    }

    pub(super) fn name(&mut self, what: &str) -> Result<String> {
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

    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
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

    pub(super) fn scalar(&mut self, kind: Kind) -> Result<Value> {
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
    pub(super) fn infos(&mut self, count: u64) -> Result<Vec<(Info, u64)>> {
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
