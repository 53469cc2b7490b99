//! Reads safetensors files, a single one or shards. Tensors are views: no byte is copied before it is packed for the
//! GPU.
//!
//! The format (<https://huggingface.co/docs/safetensors>) is an 8-byte header length, a JSON header, and the bytes of
//! the tensors without holes or overlaps. The `safetensors` crate provides the element types. The header is checked
//! here, because the crate's own checks do not say which tensor is wrong, and because a hostile range must not
//! overflow an addition.
use super::gguf::SplitName;
use super::tensors::{Entry, FileDtype, Weights};
use super::{ADAPTER, Bytes, DOWNLOAD_AGAIN, ModelSource};
use crate::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde::de::{IgnoredAny, IntoDeserializer};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The largest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Weights {
    /// Opens the weights of a model: `model.safetensors`, or the shards that `model.safetensors.index.json` names, or
    /// a GGUF file. Without an index, shards whose names say that they are complete are all read. Tensors of a bare
    /// decoder get the prefix `model.` that those of a whole model have.
    ///
    /// # Errors
    /// If the model has no weights, a shard is missing, a tensor is in another shard than the index says, or a file
    /// does not follow its format.
    pub fn open(source: &ModelSource) -> Result<Self> {
        match source.gguf() {
            Some(gguf) => Self::from_gguf(gguf),
            None => Self::open_safetensors(source).map(Self::with_prefix),
        }
    }

    fn open_safetensors(source: &ModelSource) -> Result<Self> {
        if let Some(bytes) = source.find(SINGLE)? {
            if source.find(INDEX)?.is_some() {
                log::warn!("{source}: {INDEX} is ignored, because the model has a {SINGLE} as well");
            }
            return Self::from_files(vec![(source.place_of(SINGLE), bytes)]);
        }
        let Some(index) = source.find_json(INDEX)? else {
            if let Some(shards) = complete_shards(&source.names()) {
                log::warn!("{source}: {INDEX} is missing, so all {} shards are read", shards.len());
                return Self::from_shards(source, &shards);
            }
            if let Some(adapter) = source.find_json(ADAPTER)? {
                return Err(super::adapter(&adapter).at(source));
            }
            let error = Error::new(ErrorKind::Model, "the model has no weights")
                .at(source)
                .expected(format!("{SINGLE}, or {INDEX} and the shards that it names"))
                .found(source.listing());
            let names = source.names();
            let has_file = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
            return Err(match () {
                () if has_file(".gguf") => error.help("pass the GGUF file itself as the model, not its directory"),
                () if has_file(".safetensors") => error.help(format!("{INDEX} is missing: download it as well")),
                () if has_file(".bin") || has_file(".pt") || has_file(".pth") => error.help(
                    "pickled weights are not supported: convert them to safetensors with transformers' save_pretrained",
                ),
                () => error,
            });
        };
        Self::from_index(source, &index)
    }

    fn from_shards(source: &ModelSource, names: &[String]) -> Result<Self> {
        let files = names.iter().map(|name| Ok((source.place_of(name), source.read(name)?)));
        Self::from_files(files.collect::<Result<_>>()?)
    }

    fn from_index(source: &ModelSource, index: &serde_json::Value) -> Result<Self> {
        let place = source.place_of(INDEX);
        let malformed = |found: String| {
            Error::new(ErrorKind::Model, "the index of the weights is malformed")
                .at(&place)
                .expected("weight_map: an object from tensor names to file names")
                .found(found)
        };
        let map = index
            .get("weight_map")
            .and_then(|map| map.as_object())
            .ok_or_else(|| malformed("no such object".into()))?;
        let mut shard_of: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().ok_or_else(|| malformed(format!("{tensor}: {file}")))?;
            shard_of.insert(tensor, file);
        }
        if shard_of.is_empty() {
            return Err(malformed("an empty weight_map".into()));
        }
        let here = source.names();
        if let Some(missing) = shard_of.values().find(|name| !here.iter().any(|file| file == *name))
            && let Some(shards) = complete_shards(&here)
        {
            log::warn!(
                "{place} is from another version of the model, because it names {missing}: instead, all {} shards \
                 that are here are read",
                shards.len()
            );
            return Self::from_shards(source, &shards);
        }
        let mut files: BTreeMap<&str, usize> = BTreeMap::new();
        let mut weights = Self::default();
        // The tensors that are in another shard than the index says.
        let mut misplaced = BTreeSet::new();
        for &name in shard_of.values() {
            if files.contains_key(name) {
                continue;
            }
            let bytes = source.find(name)?.ok_or_else(|| {
                let is_stray = |file: &String| file.ends_with(".safetensors") && !shard_of.values().any(|s| s == file);
                let error = Error::new(ErrorKind::Model, format!("the shard {name} is missing"))
                    .at(&place)
                    .found(source.listing());
                let mut strays: Vec<String> = source.names().into_iter().filter(is_stray).collect();
                // A file that is named like a shard is the most informative one, so it comes first.
                strays.sort_by_key(|name| SplitName::parse(name).is_none());
                match strays.first() {
                    Some(stray) => error.help(format!(
                        "the index is probably from another version of the model, because it does not name {stray}: \
                         download the index and the shards of the same version"
                    )),
                    None => error.help("the download is incomplete: download the missing shard"),
                }
            })?;
            files.insert(name, weights.files.len());
            weights.add_safetensors(source.place_of(name), bytes, |tensor| {
                let wanted = shard_of.get(tensor).is_none_or(|&shard| shard == name);
                if !wanted {
                    misplaced.insert(tensor.to_string());
                }
                wanted
            })?;
        }
        for (tensor, file) in shard_of {
            if weights.tensors.contains_key(tensor) {
                continue;
            }
            if misplaced.contains(tensor) {
                return Err(Error::new(ErrorKind::Model, "a tensor is not in the shard that the index names")
                    .at(format!("{place}: {tensor}"))
                    .expected(format!("in {file}"))
                    .help("the index does not belong to these shards: download both again"));
            }
            // The tensor is usually a tied head, or a block that was dropped. If the model needs it, the error comes
            // later.
            weights.lost.insert(tensor.to_string());
        }
        if let Some(first) = weights.lost.first() {
            let others = match weights.lost.len() {
                1 => String::new(),
                n => format!(" and {} other tensors", n - 1),
            };
            log::warn!("{place} names {first}{others}, which no shard has; this matters only if the model needs them");
        }
        Ok(weights)
    }

    /// Reads safetensors files from pairs of a name, which is used in messages, and the bytes of the file.
    ///
    /// # Errors
    /// If a file does not follow the format.
    pub fn from_files(files: Vec<(String, Bytes)>) -> Result<Self> {
        let mut weights = Self::default();
        for (name, bytes) in files {
            weights.add_safetensors(name, bytes, |_| true)?;
        }
        Ok(weights)
    }

    /// Adds the prefix `model.` to all names but that of the head, if the weights are those of a bare decoder.
    fn with_prefix(mut self) -> Self {
        const PREFIX: &str = "model.";
        let is_bare = self.tensors.contains_key("embed_tokens.weight")
            && self.tensors.keys().any(|name| name.starts_with("layers."))
            && !self.tensors.keys().any(|name| name.starts_with(PREFIX));
        if is_bare {
            let named = std::mem::take(&mut self.tensors).into_iter().map(|(name, entry)| {
                if name.starts_with("lm_head.") {
                    return (name, entry);
                }
                let longer = format!("{PREFIX}{name}");
                (longer, Entry { own_name: Some(name), ..entry })
            });
            self.tensors = named.collect();
        }
        self
    }

    fn add_safetensors(&mut self, name: String, bytes: Bytes, mut wanted: impl FnMut(&str) -> bool) -> Result<()> {
        let file = self.files.len();
        for (tensor, info) in read_header(&name, &bytes)? {
            if wanted(&tensor) {
                self.tensors.insert(tensor, Entry { file, ..info });
            }
        }
        self.files.push((name, bytes));
        Ok(())
    }
}

/// The shards among `names`, if they are those of one model and none is missing: `model-00001-of-00002.safetensors`
/// and so on.
fn complete_shards(names: &[String]) -> Option<Vec<String>> {
    let files = names.iter().filter(|name| name.ends_with(".safetensors"));
    let mut shards: Vec<SplitName<'_>> = files.filter_map(|name| SplitName::parse(name)).collect();
    shards.sort_unstable_by_key(|shard| shard.number);
    let first = *shards.first()?;
    let is_whole = shards.len() == first.count && (1..).zip(&shards).all(|(i, shard)| shard.number == i);
    (is_whole && shards.iter().all(|shard| shard.is_of(&first))).then(|| first.parts().collect())
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<IgnoredAny>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

#[derive(Deserialize)]
struct TensorInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Checks a whole file and returns its tensors. Their byte ranges are counted from the start of the file.
fn read_header(file: &str, bytes: &Bytes) -> Result<Vec<(String, Entry)>> {
    let file_error = |what: &str| Error::new(ErrorKind::Model, what).at(file);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(file_error("the safetensors file is too short to hold a header")
            .expected("at least 8 bytes")
            .found(format!("{} bytes", bytes.len()))
            .help(DOWNLOAD_AGAIN));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(file_error("the safetensors header is too large")
            .expected(format!("at most {MAX_HEADER_BYTES} bytes"))
            .found(format!("{length} bytes"))
            .help("this is not a safetensors file, or it is damaged"));
    }
    if length > rest.len() as u64 {
        return Err(file_error("the safetensors header reaches past the end of the file")
            .expected(format!("a header of {length} bytes"))
            .found(format!("a file of {} bytes", bytes.len()))
            .help(DOWNLOAD_AGAIN));
    }
    // The cast is exact, because `length` is at most `rest.len()`.
    let header = &rest[..length as usize];
    let start = 8 + header.len();
    let data = bytes.total() - start as u64;
    let header = std::str::from_utf8(header).map_err(|e| file_error("the safetensors header is not UTF-8").found(e))?;
    let header: Header = serde_json::from_str(header)
        .map_err(|e| file_error("the safetensors header is not a valid description of tensors").found(e))?;

    let mut tensors: Vec<_> = header.tensors.into_iter().collect();
    // Empty tensors have the same offsets. Sorting them by name makes the error for an invalid file deterministic.
    tensors.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
    let mut entries = Vec::with_capacity(tensors.len());
    let mut end = 0u64;
    for (name, info) in tensors {
        let tensor_error = |what: &str| Error::new(ErrorKind::Model, what).at(format!("{file}: {name}"));
        let dtype: safetensors::Dtype = safetensors::Dtype::deserialize(info.dtype.as_str().into_deserializer())
            .map_err(|e: serde::de::value::Error| {
                tensor_error("a tensor has an element type that is not known").found(e)
            })?;
        let (from, to) = info.data_offsets;
        if from != end || to < from {
            return Err(tensor_error("the tensors of a safetensors file overlap or leave holes")
                .expected(format!("bytes from {end}"))
                .found(format!("bytes {from} to {to}")));
        }
        if to > data {
            return Err(tensor_error("a tensor reaches past the end of the file")
                .expected(format!("{to} bytes of data"))
                .found(format!("{data} bytes"))
                .help(DOWNLOAD_AGAIN));
        }
        let elements = info.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size));
        let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize() as u64));
        if bits != Some((to - from) * 8) {
            let expected = match bits {
                Some(bits) if bits % 8 == 0 => format!("{} bytes", bits / 8),
                Some(bits) => format!("{bits} bits"),
                None => "a size that fits 64 bits".to_string(),
            };
            return Err(tensor_error("a tensor's shape does not fit its bytes")
                .expected(format!("{expected} for {dtype} {:?}", info.shape))
                .found(format!("{} bytes", to - from)));
        }
        end = to;
        // On 32-bit targets, an empty tensor may have a size that does not fit usize. All other sizes are limited by
        // the size of the file.
        let Some(shape) = info.shape.iter().map(|&size| usize::try_from(size).ok()).collect() else {
            return Err(
                tensor_error("a tensor's shape is too large for this machine").found(format!("{:?}", info.shape))
            );
        };
        entries.push((
            name,
            Entry {
                file: 0,
                stored: FileDtype::Safetensors(dtype),
                shape,
                heads: None,
                own_name: None,
                range: start as u64 + from..start as u64 + to,
            },
        ));
    }
    if end != data {
        return Err(file_error("the tensors of a safetensors file do not cover it")
            .expected(format!("{end} bytes of data"))
            .found(format!("{data} bytes")));
    }
    Ok(entries)
}
