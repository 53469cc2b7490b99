//! The cache on disk: its layout, its locks, and what it holds.
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Hub, HubName, INDEX, OPTIONAL, Progress, Remote, SINGLE};
use crate::weights::gguf::SplitName;
use crate::{Error, ErrorKind, Result};

/// The part of a model that the cache holds.
pub(super) enum Cached {
    /// The snapshot, or the file if the name is that of a file.
    Complete(PathBuf),
    /// The snapshot, which has all that a model needs. Whether the hub has further files, such as a chat template, is
    /// not known: another tool that does not use these files has fetched it.
    Sufficient(PathBuf),
    /// The snapshot, and the first missing file.
    Partial(PathBuf, String),
    /// The folder of the model, whether or not it exists.
    Nothing(PathBuf),
}

impl Hub {
    pub(super) fn folder(&self, name: &HubName) -> PathBuf {
        self.cache.join(format!("models--{}", name.repo.replace('/', "--")))
    }

    /// The folder of the files of one commit.
    pub(super) fn snapshot_of(&self, name: &HubName, commit: &str) -> PathBuf {
        self.folder(name).join("snapshots").join(commit)
    }

    /// Looks `name` up in the cache.
    pub(super) fn cached(&self, name: &HubName) -> Cached {
        let folder = self.folder(name);
        let Some(snapshot) = self.snapshot(name) else { return Cached::Nothing(folder) };
        // This follows links, so a link to a missing blob does not count.
        let has = |file: &str| snapshot.join(file).is_file();
        if let Some(file) = &name.file {
            let has_all = parts_of(file).iter().all(|part| has(part));
            return if has_all { Cached::Complete(snapshot.join(file)) } else { Cached::Nothing(folder) };
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
        let commit = snapshot.file_name().unwrap_or_default();
        let known = |file: &str| has(file) || absent(&folder, commit.as_ref(), file).exists();
        match needed.into_iter().find(|file| !has(file)) {
            None if OPTIONAL.into_iter().all(known) => Cached::Complete(snapshot),
            None => Cached::Sufficient(snapshot),
            Some(missing) => Cached::Partial(snapshot, missing),
        }
    }

    /// The folder of the commit that was fetched last of the revision of `name`, whether or not it exists.
    fn snapshot(&self, name: &HubName) -> Option<PathBuf> {
        let folder = self.folder(name);
        let commit = match is_commit(&name.revision) {
            true => Some(name.revision.clone()),
            false => fs::read_to_string(folder.join("refs").join(&name.revision)).ok(),
        };
        commit.map(|commit| self.snapshot_of(name, commit.trim()))
    }

    /// The files of the snapshot of `name`, with their folders in the repository.
    pub(super) fn cached_files(&self, name: &HubName) -> Vec<String> {
        let Some(snapshot) = self.snapshot(name) else { return Vec::new() };
        let (mut files, mut folders) = (Vec::new(), vec![snapshot.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(path),
                    _ => files.extend(path.strip_prefix(&snapshot).ok().and_then(Path::to_str).map(String::from)),
                }
            }
        }
        files
    }

    /// Locks a blob, with the lock that `huggingface_hub` uses. The lock is released when the file is dropped.
    pub(super) fn lock(&self, folder: &Path, remote: &Remote, report: &mut dyn FnMut(Progress<'_>)) -> Result<File> {
        let locks = self.cache.join(".locks").join(folder.file_name().unwrap_or_default());
        let place = locks.join(format!("{}.lock", remote.etag));
        make_parent(&place)?;
        let lock_error = |e: std::io::Error| io("the cache cannot be locked", &place, &e);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&place).map_err(lock_error)?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            report(Progress::Waiting { file: &remote.name });
            file.lock().map_err(lock_error)?;
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

/// The marker for a file that the repository does not have at this commit, as `huggingface_hub` keeps it.
pub(super) fn absent(folder: &Path, commit: &Path, file: &str) -> PathBuf {
    folder.join(".no_exist").join(commit).join(file)
}

/// The files that belong together with `file`: all parts of a split GGUF file in its folder, or the file alone.
pub(super) fn parts_of(file: &str) -> Vec<String> {
    let (folder, name) = file.rsplit_once('/').map_or(("", file), |(folder, name)| (folder, name));
    match SplitName::parse(name) {
        Some(split) if folder.is_empty() => split.parts().collect(),
        Some(split) => split.parts().map(|part| format!("{folder}/{part}")).collect(),
        None => vec![file.to_string()],
    }
}

/// Whether a path that the hub sent stays inside the cache.
pub(super) fn is_plain_path(path: &str) -> bool {
    path.split('/').all(is_plain)
}

/// Whether a name that the hub sent may be used as a file name in the cache.
pub(super) fn is_plain(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ' | '+' | '=');
    !name.is_empty() && name.len() <= 255 && name.chars().all(is_allowed) && !name.starts_with('.')
}

/// The files that an index of weights names.
pub(super) fn shards(index: &[u8]) -> Result<BTreeSet<String>, ()> {
    let json: Value = serde_json::from_slice(index).map_err(|_| ())?;
    let map = json["weight_map"].as_object().filter(|map| !map.is_empty()).ok_or(())?;
    map.values().map(|file| file.as_str().map(String::from).ok_or(())).collect()
}

pub(super) fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| io("the cache cannot be written", parent, &e))
}

/// Puts a blob into a snapshot as the file `name`, as a relative link. If the system has no links, the blob itself is
/// moved there.
pub(super) fn link(blob: &Path, snapshot: &Path, name: &str, etag: &str) -> Result<()> {
    let path = &snapshot.join(name);
    make_parent(path)?;
    let write_error = |e: std::io::Error| io("the cache cannot be written", path, &e);
    let target = Path::new(&"../".repeat(2 + name.matches('/').count())).join("blobs").join(etag);
    #[cfg(unix)]
    let make_link = |at: &Path| std::os::unix::fs::symlink(&target, at);
    #[cfg(windows)]
    let make_link = |at: &Path| std::os::windows::fs::symlink_file(&target, at);
    #[cfg(not(any(unix, windows)))]
    let make_link = |_: &Path| Err(std::io::Error::from(std::io::ErrorKind::Unsupported));
    // A link to a missing blob must be removed first.
    if path.symlink_metadata().is_ok() && !path.is_file() {
        fs::remove_file(path).map_err(write_error)?;
    }
    match make_link(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        // On Windows without the privilege to make links, huggingface_hub also moves the file.
        Err(_) => fs::rename(blob, path).map_err(write_error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_hub_stay_inside_the_cache() {
        assert!(is_plain("model-00001-of-00002.safetensors") && is_plain("d41d8cd98f00b204e9800998ecf8427e"));
        assert!(is_plain_path("Q8_0/model.gguf"));
        assert!(!["a//b", "/a", "../a", "a/..", "a/"].into_iter().any(is_plain_path));
        for bad in ["", "..", ".hidden", "a/b", "a\\b", "a\0", "c:x", "ü"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }
}
