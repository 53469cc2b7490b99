//! The path of a choice of layers, and the fingerprint of weights that is stored beside it.
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FILE;
use crate::Result;
use crate::weights::{FINGERPRINT, ModelSource, Weights};

/// The path of the choice of layers beside a model: in its directory (for a model from the hub, its snapshot in the
/// cache), or next to its GGUF file. `None` for a model that is held in memory.
pub fn choice_path(source: &ModelSource) -> Option<PathBuf> {
    match source.gguf() {
        Some(gguf) => Some(PathBuf::from(format!("{}.{FILE}", gguf.place()))),
        None => source.folder().map(|folder| folder.join(FILE)),
    }
}

/// The fingerprint of weights, and the state of their files when it was computed. It is stored beside the choice of
/// layers, so that weights are hashed again only if the size or the modification time of a file has changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hashed {
    /// [`Weights::fingerprint`].
    pub fingerprint: String,
    /// Name, size in bytes, and modification time in nanoseconds since 1970. Empty if a file's state cannot be read;
    /// the fingerprint is then not stored.
    files: Vec<(String, u64, u64)>,
}

impl Hashed {
    /// The fingerprint of `weights`: the stored one beside `choice` if the files have not changed, else a new one.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn from_files(weights: &Weights, choice: &Path) -> Result<Self> {
        // The state is read before the files are hashed, so that a change in between is noticed.
        let files = weights.places().map(state_of_file).collect::<Option<Vec<_>>>().unwrap_or_default();
        let text = std::fs::read_to_string(Self::path(choice)).unwrap_or_default();
        Ok(match serde_json::from_str::<Self>(&text) {
            // Earlier versions computed another hash.
            Ok(known) if known.files == files && !files.is_empty() && known.fingerprint.starts_with(FINGERPRINT) => {
                known
            }
            _ => Self { fingerprint: weights.fingerprint()?, files },
        })
    }

    /// Stores the fingerprint beside the choice at `choice`, if possible. If it is missing, or was written only in
    /// part and is not valid JSON, the weights are hashed again the next time.
    pub fn keep(&self, choice: &Path) {
        let path = Self::path(choice);
        let Ok(text) = serde_json::to_string(self) else { return };
        if !self.files.is_empty() && std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            std::fs::write(&path, &text).ok();
        }
    }

    fn path(choice: &Path) -> PathBuf {
        PathBuf::from(format!("{}.hashed", choice.display()))
    }
}

fn state_of_file(place: &str) -> Option<(String, u64, u64)> {
    let there = std::fs::metadata(place).ok()?;
    let changed = there.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos();
    let name = Path::new(place).file_name()?.to_string_lossy().into_owned();
    Some((name, there.len(), u64::try_from(changed).ok()?))
}
