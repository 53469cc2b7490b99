//! The free space of the disk that holds the cache.
use std::path::Path;

use crate::{Error, ErrorKind, Result};

/// Refuses a download of `needed` bytes into `folder` if the disk does not have as much free space. Where the free
/// space is not known, nothing is refused.
///
/// # Errors
/// If there is less space.
pub(super) fn check_space(folder: &Path, needed: u64) -> Result<()> {
    // The folder itself may not exist yet.
    let free = folder.ancestors().find(|folder| folder.is_dir()).and_then(free_bytes);
    match free.filter(|free| *free < needed) {
        None => Ok(()),
        Some(free) => Err(Error::new(ErrorKind::Io, "there is not enough space for the model")
            .at(folder.display())
            .expected(format!("{needed} bytes for the files that are missing"))
            .found(format!("{free} bytes free"))
            .help("free some space, or name a folder on another disk in HF_HOME")),
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let info = nix::sys::statvfs::statvfs(folder).ok()?;
    #[allow(trivial_numeric_casts, clippy::unnecessary_cast, reason = "the types differ between systems")]
    (info.blocks_available() as u64).checked_mul(info.fragment_size() as u64)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_is_free_is_refused_before_the_download() {
        let dir = tempfile::tempdir().expect("a folder");
        let inside = dir.path().join("not/there/yet");
        assert!(check_space(&inside, 1).is_ok());
        let refused = check_space(&inside, u64::MAX);
        assert_eq!(refused.is_err(), cfg!(unix));
        if let Err(error) = refused {
            assert!(error.to_string().contains("bytes free"), "{error}");
        }
    }
}
