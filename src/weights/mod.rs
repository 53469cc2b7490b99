//! A model's files: where they come from, and their tensors as bytes and packed words. Nothing here touches a GPU.
//!
//! ```text
//! ModelSource ─ config.json, tokenizer.json, …  → bytes
//!             └ *.safetensors → Weights → TensorView → PackedRows (matrices) or Vec<f32> (norms, biases) → upload
//! ```
//!
//! A GGUF file is all of that at once: its metadata serve as config, tokenizer and template.
use crate::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
#[cfg(not(target_family = "wasm"))]
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod gguf;
pub mod pack;
pub mod safetensors;
pub mod tensors;

pub use gguf::Gguf;
pub use pack::PackedRows;
pub use tensors::{FINGERPRINT, Stored, TensorView, Weights};

/// A JSON file of a model larger than this is not one: the largest tokenizer.json in use has some 30 MB.
const MAX_JSON_BYTES: usize = 512 << 20;

/// Bytes of one file: memory-mapped, or owned and shared. Cheap to clone.
#[derive(Clone)]
pub struct Bytes(Storage);

#[derive(Clone)]
enum Storage {
    Owned(Arc<Vec<u8>>),
    #[cfg(all(feature = "cli", not(target_family = "wasm")))]
    Mapped(Arc<memmap2::Mmap>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Owned(bytes) => bytes,
            #[cfg(all(feature = "cli", not(target_family = "wasm")))]
            Storage::Mapped(map) => map,
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

/// A model: named files in Hugging Face layout, in a directory (natively) or in memory (in the browser, in tests), or one GGUF
/// file.
#[derive(Debug, Clone)]
pub struct ModelSource(Place);

#[derive(Debug, Clone)]
enum Place {
    #[cfg(not(target_family = "wasm"))]
    Directory(PathBuf),
    Memory(BTreeMap<String, Bytes>),
    Gguf(Arc<Gguf>),
}

impl ModelSource {
    /// What a person names as a model: a directory in Hugging Face layout, or a GGUF file.
    ///
    /// # Errors
    /// When `path` is neither, or a GGUF file whose header is broken.
    #[cfg(not(target_family = "wasm"))]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        match is_gguf && !path.is_dir() {
            false => Self::directory(path),
            true => {
                let missing = || Error::new(ErrorKind::Model, "the GGUF file does not exist").at(path.display());
                Self::gguf_file(path.display().to_string(), read_file(path)?.ok_or_else(missing)?)
            }
        }
    }

    /// A GGUF file's bytes; `place` names it in messages.
    ///
    /// # Errors
    /// When its header is broken: see [`Gguf::new`].
    pub fn gguf_file(place: impl Into<String>, bytes: impl Into<Bytes>) -> Result<Self> {
        Ok(Self(Place::Gguf(Arc::new(Gguf::new(place, bytes)?))))
    }

    /// The GGUF file, if the model is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.0 {
            Place::Gguf(gguf) => Some(gguf),
            _ => None,
        }
    }

    /// The directory, if the model is one on disk.
    #[cfg(not(target_family = "wasm"))]
    pub fn folder(&self) -> Option<&Path> {
        match &self.0 {
            Place::Directory(folder) => Some(folder),
            _ => None,
        }
    }

    /// A directory on disk. Its files are memory-mapped where the `cli` feature is on, else read when asked for.
    ///
    /// # Errors
    /// When `path` does not exist or is not a directory.
    #[cfg(not(target_family = "wasm"))]
    pub fn directory(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let wrong = |found: String| {
            Error::new(ErrorKind::Model, "the model is not a directory that can be read")
                .at(path.display())
                .expected("a directory with config.json and .safetensors files, or a .gguf file")
                .found(found)
        };
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(Self(Place::Directory(path.to_path_buf()))),
            Ok(_) => Err(wrong("a file".into()).help("pass the directory that holds it")),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// Files held in memory, by name.
    pub fn memory<N: Into<String>, B: Into<Bytes>>(files: impl IntoIterator<Item = (N, B)>) -> Self {
        Self(Place::Memory(files.into_iter().map(|(name, bytes)| (name.into(), bytes.into())).collect()))
    }

    /// The file `name`, or `None` where the model has no such file.
    ///
    /// # Errors
    /// When the file exists and cannot be read, or when `name` is not a plain file name: names of shards come from
    /// the model itself, and must not reach outside it.
    pub fn find(&self, name: &str) -> Result<Option<Bytes>> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0', ':']) {
            return Err(Error::new(ErrorKind::Model, "a file name reaches outside the model")
                .at(self)
                .expected("a plain file name")
                .found(format!("{name:?}")));
        }
        match &self.0 {
            Place::Memory(files) => Ok(files.get(name).cloned()),
            Place::Gguf(_) => Ok(None),
            #[cfg(not(target_family = "wasm"))]
            Place::Directory(dir) => read_file(&dir.join(name)),
        }
    }

    /// The file `name`.
    ///
    /// # Errors
    /// When it is missing or cannot be read; says which files there are.
    pub fn read(&self, name: &str) -> Result<Bytes> {
        self.find(name)?.ok_or_else(|| {
            Error::new(ErrorKind::Model, format!("the model has no {name}")).at(self).found(self.listing())
        })
    }

    /// The file `name` parsed as JSON, or `None` where there is no such file.
    ///
    /// # Errors
    /// When it cannot be read, is absurdly large or is not JSON.
    pub fn find_json(&self, name: &str) -> Result<Option<serde_json::Value>> {
        let Some(bytes) = self.find(name)? else { return Ok(None) };
        self.check_json_size(name, bytes.len())?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(ErrorKind::Model, format!("{name} is not valid JSON")).at(self.place_of(name)).found(error)
        })
    }

    /// Where the file `name` lies, for messages.
    pub fn place_of(&self, name: &str) -> String {
        match &self.0 {
            #[cfg(not(target_family = "wasm"))]
            Place::Directory(dir) => dir.join(name).display().to_string(),
            Place::Memory(_) => name.to_string(),
            Place::Gguf(gguf) => gguf.place().to_string(),
        }
    }

    /// The names of the files, sorted; empty when the directory cannot be listed. For messages.
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

#[cfg(not(target_family = "wasm"))]
fn read_file(path: &Path) -> Result<Option<Bytes>> {
    use std::io::ErrorKind as Io;
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "a file of the model cannot be read").at(path.display()).found(error)
    };
    // `metadata` first: opening a pipe would block.
    match std::fs::metadata(path) {
        Err(error) if error.kind() == Io::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.is_file() => {
            return Err(Error::new(ErrorKind::Io, "a file of the model is not a regular file").at(path.display()));
        }
        Ok(_) => {}
    }
    load_file(path).map(Some).map_err(failed)
}

#[cfg(all(feature = "cli", not(target_family = "wasm")))]
fn load_file(path: &Path) -> std::io::Result<Bytes> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the map is read-only. As everywhere where weights are mapped, another process that truncates the file
    // while it is in use makes the kernel end this process; reading gigabytes into memory is the worse choice.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes(Storage::Mapped(Arc::new(map))))
}

#[cfg(all(not(feature = "cli"), not(target_family = "wasm")))]
fn load_file(path: &Path) -> std::io::Result<Bytes> {
    std::fs::read(path).map(Bytes::from)
}
