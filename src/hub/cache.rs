//! The cache on disk: what it holds, and how a file gets into it.
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Hub, HubName, INDEX, Progress, Remote, SINGLE};
use crate::{Error, ErrorKind, Result};

pub(super) enum Cached {
    Complete(PathBuf),
    /// The snapshot, and the first file that is missing.
    Partial(PathBuf, String),
    /// Where it would be.
    Nothing(PathBuf),
}

impl Hub {
    pub(super) fn folder(&self, name: &HubName) -> PathBuf {
        self.cache.join(format!("models--{}", name.repo.replace('/', "--")))
    }

    /// What the cache holds of `name`.
    pub(super) fn cached(&self, name: &HubName) -> Cached {
        let folder = self.folder(name);
        let commit = match is_commit(&name.revision) {
            true => Some(name.revision.clone()),
            false => fs::read_to_string(folder.join("refs").join(&name.revision)).ok(),
        };
        let Some(snapshot) = commit.map(|commit| folder.join("snapshots").join(commit.trim())) else {
            return Cached::Nothing(folder);
        };
        // Follows links: one that dangles is no file.
        let has = |file: &str| snapshot.join(file).is_file();
        if let Some(file) = &name.file {
            return if has(file) { Cached::Complete(snapshot.join(file)) } else { Cached::Nothing(folder) };
        }
        if !snapshot.is_dir() {
            return Cached::Nothing(folder);
        }
        let weights = match (has(SINGLE), has(INDEX)) {
            (true, _) => Vec::new(),
            (false, true) => match fs::read(snapshot.join(INDEX)).map_err(|_| ()).and_then(|text| shards(&text)) {
                Ok(shards) => shards.into_iter().collect(),
                Err(()) => vec![INDEX.to_string()],
            },
            (false, false) => vec![SINGLE.to_string()],
        };
        let needed = ["config.json".to_string()].into_iter().chain(weights).chain(["tokenizer.json".to_string()]);
        match needed.into_iter().find(|file| !has(file)) {
            None => Cached::Complete(snapshot),
            Some(missing) => Cached::Partial(snapshot, missing),
        }
    }

    /// The lock that `huggingface_hub` takes too. Freed when dropped.
    pub(super) fn lock(&self, folder: &Path, remote: &Remote, on: &mut dyn FnMut(Progress<'_>)) -> Result<File> {
        let locks = self.cache.join(".locks").join(folder.file_name().unwrap_or_default());
        let place = locks.join(format!("{}.lock", remote.etag));
        make_parent(&place)?;
        let failed = |e: std::io::Error| io("the cache cannot be locked", &place, &e);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&place).map_err(failed)?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            on(Progress::Waiting { file: &remote.name });
            file.lock().map_err(failed)?;
        }
        Ok(file)
    }
}

pub(super) fn io(what: &str, place: &Path, e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Io, what).at(place.display()).found(e)
}

pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the hub's word may name a file in the cache.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ' | '+' | '=');
    !name.is_empty() && name.len() <= 255 && name.chars().all(plain) && !name.starts_with('.')
}

/// The files that an index names.
pub(super) fn shards(index: &[u8]) -> Result<BTreeSet<String>, ()> {
    let json: Value = serde_json::from_slice(index).map_err(|_| ())?;
    let map = json["weight_map"].as_object().filter(|map| !map.is_empty()).ok_or(())?;
    map.values().map(|file| file.as_str().map(String::from).ok_or(())).collect()
}

pub(super) fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| io("the cache cannot be written", parent, &e))
}

/// Puts the blob into the snapshot: a relative link or, where the system has none, the file itself.
pub(super) fn link(blob: &Path, path: &Path, etag: &str) -> Result<()> {
    make_parent(path)?;
    let failed = |e: std::io::Error| io("the cache cannot be written", path, &e);
    let target = Path::new("../../blobs").join(etag);
    #[cfg(unix)]
    let linked = |at: &Path| std::os::unix::fs::symlink(&target, at);
    #[cfg(windows)]
    let linked = |at: &Path| std::os::windows::fs::symlink_file(&target, at);
    #[cfg(not(any(unix, windows)))]
    let linked = |_: &Path| Err(std::io::Error::from(std::io::ErrorKind::Unsupported));
    // A link that dangles is in the way.
    if path.symlink_metadata().is_ok() && !path.is_file() {
        fs::remove_file(path).map_err(failed)?;
    }
    match linked(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        // Windows without the privilege for links: as huggingface_hub does there, the file goes where it is used.
        Err(_) => fs::rename(blob, path).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_hub_name_no_file_elsewhere() {
        assert!(is_plain("model-00001-of-00002.safetensors") && is_plain("d41d8cd98f00b204e9800998ecf8427e"));
        for bad in ["", "..", ".hidden", "a/b", "a\\b", "a\0", "c:x", "ü"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }
}
