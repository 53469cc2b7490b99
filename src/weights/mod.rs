//! The files of a model, and their tensors as bytes and as packed rows. Nothing in this module uses a GPU.
//!
//! ```text
//! ModelSource ─ config.json, tokenizer.json, …  → bytes
//!             └ *.safetensors → Weights → TensorView → PackedRows (matrices) or Vec<f32> (norms, biases) → upload
//! ```
//!
//! A GGUF file holds all of this in one file: its metadata contains the configuration, the tokenizer and the
//! template.
use crate::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
#[cfg(not(target_family = "wasm"))]
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod blocks;
mod ggml_type;
pub mod gguf;
#[cfg(not(target_family = "wasm"))]
mod open;
pub mod pack;
mod pieces;
pub mod precision;
mod quantize;
pub mod safetensors;
pub mod tensors;

pub use gguf::Gguf;
pub use pack::PackedRows;
pub use pieces::ReadAt;
pub use tensors::{FINGERPRINT, FileDtype, TensorView, Weights};

/// The help of errors about files that do not follow their format.
const DOWNLOAD_AGAIN: &str = "the file is damaged or incomplete: download it again";

/// JSON files larger than this are refused. The largest tokenizer.json in use has about 30 MB.
const MAX_JSON_BYTES: usize = 512 << 20;

/// The beginning of a Git LFS pointer: the text that a clone without Git LFS has in place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The file by which an adapter (LoRA) is known.
pub(crate) const ADAPTER: &str = "adapter_config.json";

/// The error for an adapter with this configuration, where a whole model is needed. It lacks the place.
pub(crate) fn adapter(config: &serde_json::Value) -> Error {
    let base = config.get("base_model_name_or_path").and_then(|base| base.as_str()).unwrap_or("its base model");
    Error::new(ErrorKind::Model, "this is an adapter (LoRA), not a whole model")
        .found(format!("{ADAPTER}, but no weights of a whole model"))
        .help(format!("merge it into {base} with merge_and_unload of peft, and save the merged model"))
}

/// The bytes of one file: memory-mapped, in shared memory, or read in pieces. Of a file that is read in pieces, the
/// slice has only the beginning. Cloning is cheap: clones share the bytes.
#[derive(Clone)]
pub struct Bytes(Storage);

#[derive(Clone)]
enum Storage {
    Owned(Arc<Vec<u8>>),
    /// The beginning of a file with this many bytes in total, and a reader for the rest if there is one.
    Start(Arc<Vec<u8>>, u64, Option<Arc<dyn ReadAt>>),
    #[cfg(all(feature = "cli", not(target_family = "wasm")))]
    Mapped(Arc<memmap2::Mmap>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Owned(bytes) | Storage::Start(bytes, ..) => bytes,
            #[cfg(all(feature = "cli", not(target_family = "wasm")))]
            Storage::Mapped(map) => map,
        }
    }
}

impl Bytes {
    /// Releases the memory of a mapped file. The system reads the file again when it is used later.
    #[allow(unsafe_code, reason = "this advice could change what is read in maps of other kinds, see below")]
    pub(crate) fn release_memory(&self) {
        #[cfg(all(feature = "cli", unix))]
        if let Storage::Mapped(map) = &self.0 {
            // SAFETY: the map is read-only and is not private, so its pages are those of the file: what is read after
            // the advice is what was read before it.
            // It is advice, and without it only more memory is used.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// The beginning of a file of `total` bytes. Its header can be read. Tensors beyond the beginning have no values.
    #[cfg(all(feature = "cli", not(target_family = "wasm")))]
    pub(crate) fn start(beginning: Vec<u8>, total: u64) -> Self {
        Self(Storage::Start(Arc::new(beginning), total, None))
    }

    /// The size of the file in bytes.
    pub(crate) fn total(&self) -> u64 {
        match &self.0 {
            Storage::Start(bytes, total, _) => (*total).max(bytes.len() as u64),
            _ => self.len() as u64,
        }
    }

    /// The reader for the bytes that are not in memory; `None` if they cannot be read.
    fn reader(&self) -> Option<&dyn ReadAt> {
        match &self.0 {
            Storage::Start(.., reader) => reader.as_deref(),
            _ => None,
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Storage::Owned(Arc::new(bytes)))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// Where the files of a model are: in a directory with Hugging Face layout (natively), in memory (in the browser and
/// in tests), or in a GGUF file, which may be split.
#[derive(Debug, Clone)]
pub struct ModelSource(Place, Option<Suggestions>);

/// Settings that are known to suit a model and are in none of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suggestions {
    /// Latest tokens that are never evicted.
    pub window: usize,
    /// Thinking tokens from one probe to the next.
    pub probe_every: usize,
}

#[derive(Debug, Clone)]
enum Place {
    #[cfg(not(target_family = "wasm"))]
    Directory(PathBuf),
    Memory(BTreeMap<String, Bytes>),
    Gguf(Arc<Gguf>),
}

impl ModelSource {
    /// Opens a GGUF file from its bytes. Error messages call the file `place`.
    ///
    /// # Errors
    /// If the header is invalid; see [`Gguf::new`].
    pub fn gguf_file(place: impl Into<String>, bytes: impl Into<Bytes>) -> Result<Self> {
        let (place, bytes) = (place.into(), bytes.into());
        refuse_substitute(&place, &bytes)?;
        Ok(Self(Place::Gguf(Arc::new(Gguf::new(place, bytes)?)), None))
    }

    /// Opens a model that is split into several GGUF files, from pairs of a name and bytes in the order of the parts.
    ///
    /// # Errors
    /// If a header is invalid, or the files are not the parts of one model.
    pub fn gguf_parts<N: Into<String>, B: Into<Bytes>>(files: impl IntoIterator<Item = (N, B)>) -> Result<Self> {
        let parts = files.into_iter().map(|(place, bytes)| {
            let (place, bytes) = (place.into(), bytes.into());
            refuse_substitute(&place, &bytes)?;
            Gguf::new(place, bytes)
        });
        Ok(Self(Place::Gguf(Arc::new(Gguf::join(parts.collect::<Result<_>>()?)?)), None))
    }

    /// The GGUF file, if the model is a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.0 {
            Place::Gguf(gguf) => Some(gguf),
            _ => None,
        }
    }

    /// The directory, if the model is a directory on disk.
    #[cfg(not(target_family = "wasm"))]
    pub fn folder(&self) -> Option<&Path> {
        match &self.0 {
            Place::Directory(folder) => Some(folder),
            _ => None,
        }
    }

    /// Opens a directory on disk. With the feature `cli`, its files are memory-mapped; without, each file is read
    /// into memory when it is needed.
    ///
    /// # Errors
    /// If `path` does not exist or is not a directory.
    #[cfg(not(target_family = "wasm"))]
    pub fn directory(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let not_readable = |found: String| {
            Error::new(ErrorKind::Model, "the model is not a directory that can be read")
                .at(path.display())
                .expected("a directory with config.json and .safetensors files, or a .gguf file")
                .found(found)
        };
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Self(Place::Directory(path.to_path_buf()), None)),
            Ok(_) => Err(not_readable("a file".into()).help("pass the directory that contains this file")),
            Err(error) => Err(not_readable(error.to_string())),
        }
    }

    /// A model whose files are in memory, given as pairs of a name and bytes.
    pub fn memory<N: Into<String>, B: Into<Bytes>>(files: impl IntoIterator<Item = (N, B)>) -> Self {
        Self(Place::Memory(files.into_iter().map(|(name, bytes)| (name.into(), bytes.into())).collect()), None)
    }

    /// The same model, with settings that are known to suit it.
    #[must_use]
    pub fn suggesting(self, suggestions: Suggestions) -> Self {
        Self(self.0, Some(suggestions))
    }

    /// The settings that are known to suit the model.
    pub fn suggestions(&self) -> Option<Suggestions> {
        self.1
    }

    /// Whether its files are held in memory.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.0, Place::Memory(_))
    }

    /// The bytes of the file `name`, or `None` if the model has no such file.
    ///
    /// # Errors
    /// If the file exists but cannot be read, if it is a Git LFS pointer, or if `name` is not a plain file name.
    /// Names of shards are written in the model's own index, which must not be able to reach files outside the model.
    pub fn find(&self, name: &str) -> Result<Option<Bytes>> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0', ':']) {
            return Err(Error::new(ErrorKind::Model, "a file name reaches outside the model")
                .at(self)
                .expected("a plain file name")
                .found(format!("{name:?}")));
        }
        let bytes = match &self.0 {
            Place::Memory(files) => files.get(name).cloned(),
            Place::Gguf(_) => None,
            #[cfg(not(target_family = "wasm"))]
            Place::Directory(dir) => read_file(&dir.join(name))?,
        };
        if let Some(bytes) = &bytes {
            refuse_substitute(&self.place_of(name), bytes)?;
        }
        Ok(bytes)
    }

    /// The bytes of the file `name`.
    ///
    /// # Errors
    /// If the file is missing or cannot be read. The error lists the files that exist.
    pub fn read(&self, name: &str) -> Result<Bytes> {
        self.find(name)?.ok_or_else(|| {
            Error::new(ErrorKind::Model, format!("the model has no {name}")).at(self).found(self.listing())
        })
    }

    /// The file `name` parsed as JSON, or `None` if the model has no such file.
    ///
    /// # Errors
    /// If the file cannot be read, is larger than 512 MiB, or is not JSON.
    pub fn find_json(&self, name: &str) -> Result<Option<serde_json::Value>> {
        let Some(bytes) = self.find(name)? else { return Ok(None) };
        self.check_json_size(name, bytes.len())?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(ErrorKind::Model, format!("{name} is not valid JSON")).at(self.place_of(name)).found(error)
        })
    }

    /// The path of the file `name`, for messages.
    pub fn place_of(&self, name: &str) -> String {
        match &self.0 {
            #[cfg(not(target_family = "wasm"))]
            Place::Directory(dir) => dir.join(name).display().to_string(),
            Place::Memory(_) => name.to_string(),
            Place::Gguf(gguf) => gguf.place().to_string(),
        }
    }

    /// The sorted names of the files, for messages. Empty if the directory cannot be listed.
    pub fn names(&self) -> Vec<String> {
        match &self.0 {
            #[cfg(not(target_family = "wasm"))]
            Place::Directory(dir) => {
                let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
                let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
                names.sort();
                names
            }
            Place::Memory(files) => files.keys().cloned().collect(),
            Place::Gguf(gguf) => vec![gguf.place().to_string()],
        }
    }

    pub(crate) fn listing(&self) -> String {
        const SHOWN: usize = 12;
        let names = self.names();
        match names.len() {
            0 => "no files".to_string(),
            n if n > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
            _ => names.join(", "),
        }
    }

    pub(crate) fn check_json_size(&self, name: &str, len: usize) -> Result<()> {
        if len <= MAX_JSON_BYTES {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Model, format!("{name} is too large"))
            .at(self.place_of(name))
            .expected(format!("at most {MAX_JSON_BYTES} bytes"))
            .found(format!("{len} bytes")))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            #[cfg(not(target_family = "wasm"))]
            Place::Directory(dir) => write!(f, "{}", dir.display()),
            Place::Memory(_) => write!(f, "the files in memory"),
            Place::Gguf(gguf) => f.write_str(gguf.place()),
        }
    }
}

/// The most bytes of a server's answer that are quoted.
const LONGEST_ANSWER: usize = 1024;

/// Refuses the contents that a failed download leaves instead of a file: a Git LFS pointer, a web page, an error
/// message, or nothing.
fn refuse_substitute(place: &str, bytes: &Bytes) -> Result<()> {
    let substitute = |what: &str, found: String| Error::new(ErrorKind::Model, what).at(place).found(found);
    if bytes.starts_with(LFS_POINTER) {
        return Err(substitute(
            "a file of the model is only a Git LFS pointer",
            format!("a pointer of {} bytes", bytes.len()),
        )
        .expected("the file itself")
        .help("the model was cloned without Git LFS: install it and run \"git lfs pull\" in the clone"));
    }
    let is_kind = |kinds: &[&str]| kinds.iter().any(|kind| place.to_ascii_lowercase().ends_with(kind));
    let (has_tensors, is_json) = (is_kind(&[".safetensors", ".gguf"]), is_kind(&[".json"]));
    if !has_tensors && !is_json {
        return Ok(());
    }
    const AGAIN: &str = "the download failed: download the file again; a gated or private model needs an account and its \
        token";
    if bytes.is_empty() {
        return Err(substitute("a file of the model is empty", "0 bytes".into()).help(AGAIN));
    }
    let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_ANSWER)]);
    let begins = beginning.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if ["<!doctype", "<html", "<head", "<?xml"].iter().any(|tag| begins.starts_with(tag)) {
        let title = title(&beginning).map_or(String::new(), |title| format!(" with the title {title:?}"));
        return Err(substitute("a file of the model is a web page", format!("a page{title}"))
            .expected("the file itself")
            .help(AGAIN));
    }
    // The header of a safetensors file begins with a length, whose bytes are not all printable. The header of a GGUF
    // file has zero bytes.
    let is_text =
        bytes.len() <= LONGEST_ANSWER && bytes.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
    if has_tensors && is_text && bytes.len() >= 8 {
        let said: String = beginning.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(80).collect();
        return Err(substitute("a file of the model is only a short text", format!("{said:?}"))
            .expected("the file itself")
            .help(AGAIN));
    }
    Ok(())
}

/// The title of a web page.
fn title(page: &str) -> Option<String> {
    let start = page.to_ascii_lowercase().find("<title>")? + "<title>".len();
    let title = page[start..].split('<').next()?.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(title.chars().take(80).collect())
}

#[cfg(not(target_family = "wasm"))]
fn read_file(path: &Path) -> Result<Option<Bytes>> {
    use std::io::ErrorKind as Io;
    let unreadable = |error: std::io::Error| match (error.kind(), std::fs::metadata(path)) {
        (Io::OutOfMemory, Ok(meta)) => Error::new(ErrorKind::Device, "there is no memory for a file of the model")
            .at(path.display())
            .expected(format!("room for {} bytes", meta.len()))
            .found(error)
            .help("use a smaller model, or raise the limit of the process (`ulimit -v`)"),
        _ => Error::new(ErrorKind::Io, "a file of the model cannot be read").at(path.display()).found(error),
    };
    // Calling `metadata` first avoids opening a pipe, which would block.
    match std::fs::metadata(path) {
        Err(error) if error.kind() == Io::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
        Ok(meta) if !meta.is_file() => {
            return Err(Error::new(ErrorKind::Io, "a file of the model is not a regular file").at(path.display()));
        }
        Ok(_) => {}
    }
    load_file(path).map(Some).map_err(unreadable)
}

#[cfg(all(feature = "cli", not(target_family = "wasm")))]
#[allow(unsafe_code, reason = "mapping a file is unsafe, see below")]
fn load_file(path: &Path) -> std::io::Result<Bytes> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the map is read-only. If another process truncates the file while it is mapped, the operating system
    // ends this process. Every program that maps weights accepts this, because reading gigabytes into memory would be
    // worse.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes(Storage::Mapped(Arc::new(map))))
}

#[cfg(all(not(feature = "cli"), not(target_family = "wasm")))]
fn load_file(path: &Path) -> std::io::Result<Bytes> {
    std::fs::read(path).map(Bytes::from)
}
