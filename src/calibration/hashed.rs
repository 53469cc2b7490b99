//! Where a choice of layers lies on disk, and the fingerprint of weights beside it.
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FILE;
use crate::weights::{FINGERPRINT, ModelSource, Weights};

/// Where a choice of layers lies beside a model: in its directory, which of a model on the hub is its snapshot in the
/// cache, or next to its GGUF file. `None` for a model that is held in memory.
pub fn choice_path(source: &ModelSource) -> Option<PathBuf> {
    match source.gguf() {
        Some(gguf) => Some(PathBuf::from(format!("{}.{FILE}", gguf.place()))),
        None => source.folder().map(|folder| folder.join(FILE)),
    }
}

/// A fingerprint of weights, and their files as they were then. It lies beside the choice of layers, so that weights
/// are hashed again only if a file has another size or time of change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hashed {
    /// [`Weights::fingerprint`].
    pub fingerprint: String,
    /// Name, bytes, nanoseconds since 1970. Empty where that cannot be told: then the fingerprint serves once.
    files: Vec<(String, u64, u64)>,
}

impl Hashed {
    /// Of `weights`, from beside the choice at `choice` if that is still true.
    pub fn of(weights: &Weights, choice: &Path) -> Self {
        // The files are looked at before they are hashed, so that a change meanwhile shows.
        let files = weights.places().map(state_of_file).collect::<Option<Vec<_>>>().unwrap_or_default();
        let text = std::fs::read_to_string(Self::path(choice)).unwrap_or_default();
        match serde_json::from_str::<Self>(&text) {
            // Earlier versions computed another hash.
            Ok(known) if known.files == files && !files.is_empty() && known.fingerprint.starts_with(FINGERPRINT) => {
                known
            }
            _ => Self { fingerprint: weights.fingerprint(), files },
        }
    }

    /// Puts it beside the choice at `choice`, where that is possible. Without it the weights are hashed again the
    /// next time, and so they are where it was half written: it is not JSON then.
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
