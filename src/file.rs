//! Writes files atomically, and checks early whether a file can be written.
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, ErrorKind, Result};

/// Checks whether a file can be written, so that hours of work are not lost at the end. The file is not changed.
///
/// # Errors
/// If `file` is a directory or write-protected, or if its folder is missing or does not allow new files.
pub fn check_writable(file: &Path) -> Result<()> {
    let Destination::File(target) = Destination::find(file)? else { return Ok(()) };
    let exists = exists(&target).map_err(|e| write_error(file, e))?;
    match beside(&target) {
        Ok(part) => part.close().map_err(|e| write_error(file, e)),
        // The file will be overwritten in place.
        Err(e) if exists && only_in_place(&e) => Ok(()),
        Err(e) => Err(write_error(file, e)),
    }
}

/// Writes a file atomically: readers see the old file or the new one, never a part. Links are followed, and
/// permissions are kept. A pipe or a device is written to directly. A file that may be written but not replaced is
/// overwritten in place, which is not atomic.
///
/// # Errors
/// Those of [`check_writable`], and errors of the disk, for example if it is full. The old file is then unchanged.
pub fn write_whole(file: &Path, text: &str) -> Result<()> {
    let written = match Destination::find(file)? {
        Destination::Stream => fs::write(file, text),
        Destination::File(target) => replace(&target, text),
    };
    written.map_err(|e| write_error(file, e))
}

/// Writes the file `target`, which must not be a link, as [`write_whole`] does.
///
/// # Errors
/// Those of the system.
pub(crate) fn replace(target: &Path, text: &str) -> io::Result<()> {
    replace_by(target, text, beside)
}

fn replace_by(target: &Path, text: &str, beside: impl FnOnce(&Path) -> io::Result<NamedTempFile>) -> io::Result<()> {
    let exists = exists(target)?;
    let mut part = match beside(target) {
        Err(e) if exists && only_in_place(&e) => return fs::write(target, text),
        made => made?,
    };
    if exists {
        part.as_file().set_permissions(fs::metadata(target)?.permissions())?;
    }
    part.write_all(text.as_bytes())?;
    part.as_file().sync_all()?;
    match part.persist(target) {
        Err(e) if exists && only_in_place(&e.error) => fs::write(target, text),
        persisted => persisted.map(drop).map_err(|e| e.error),
    }
}

/// Whether the file exists. A write-protected file is an error, because replacing it would circumvent the protection.
fn exists(target: &Path) -> io::Result<bool> {
    match OpenOptions::new().append(true).open(target) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether `e` means that a file can be written but not replaced: its folder does not allow new files, or the file is
/// a mount point. After any other error, such as a full disk, writing in place could destroy the contents of the
/// file.
fn only_in_place(e: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(e.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy | CrossesDevices)
}

/// The kind of thing that is at a path.
enum Destination {
    /// A file, or the path of a file that can be created. Links have been followed.
    File(PathBuf),
    /// A pipe, a terminal or a device such as /dev/null, which cannot be replaced.
    Stream,
}

impl Destination {
    fn find(file: &Path) -> Result<Self> {
        let invalid = |found: &str| {
            Error::new(ErrorKind::Io, "a file cannot be written")
                .at(format!("{file:?}"))
                .expected("a file")
                .found(found)
        };
        match fs::metadata(file) {
            Ok(there) if there.is_dir() => Err(invalid("a directory")),
            Ok(there) if !there.is_file() => Ok(Self::Stream),
            Ok(_) => Ok(Self::File(fs::canonicalize(file).map_err(|e| write_error(file, e))?)),
            Err(_) if file.file_name().is_none() => Err(invalid("no file name")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::File(behind_links(file))),
            Err(e) => Err(write_error(file, e)),
        }
    }
}

/// The path at the end of a chain of links whose last target does not exist. (A circle of links has failed before.)
fn behind_links(file: &Path) -> PathBuf {
    let mut end = file.to_path_buf();
    for _ in 0..40 {
        let Ok(next) = fs::read_link(&end) else { break };
        end = end.parent().unwrap_or(Path::new("")).join(next);
    }
    end
}

/// A temporary file in the folder of `target`, with the permissions of an ordinary new file. It is removed when
/// dropped.
fn beside(target: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".secateur-").suffix(".part");
    // Without this, only the owner could read the file. The umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    builder.tempfile_in(folder.unwrap_or(Path::new(".")))
}

fn write_error(file: &Path, e: io::Error) -> Error {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let missing = folder.is_some_and(|folder| !folder.exists());
    let error = Error::new(ErrorKind::Io, "a file cannot be written").at(file.display()).found(e);
    if missing { error.help("create its folder first") } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        check_writable(&file).unwrap();
        assert!(names(dir.path()).is_empty(), "checking leaves no file");
        fs::write(&file, "old, and longer").unwrap();
        check_writable(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old, and longer");
        write_whole(&file, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn paths_that_cannot_be_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/file");
        for (file, part) in
            [(dir.path(), "a directory"), (&missing, "create its folder first"), (Path::new(""), "no file name")]
        {
            for e in [check_writable(file).unwrap_err(), write_whole(file, "x").unwrap_err()] {
                assert!(e.to_string().contains("cannot be written") && e.to_string().contains(part), "{e}");
            }
        }
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        fs::write(&file, "old").unwrap();
        let fails = |kind: io::ErrorKind| move |_: &Path| Err::<NamedTempFile, _>(io::Error::from(kind));
        replace_by(&file, "new", fails(io::ErrorKind::StorageFull)).unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        replace_by(&file, "new", fails(io::ErrorKind::PermissionDenied)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new", "its folder does not allow new files");
        replace_by(&dir.path().join("b.json"), "new", fails(io::ErrorKind::PermissionDenied)).unwrap_err();
        assert_eq!(names(dir.path()), ["a.json"]);
        use io::ErrorKind::{Other, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, ResourceBusy, StorageFull};
        assert!([StorageFull, QuotaExceeded, Other].iter().all(|kind| !only_in_place(&(*kind).into())));
        assert!([PermissionDenied, ReadOnlyFilesystem, ResourceBusy].iter().all(|kind| only_in_place(&(*kind).into())));
    }

    #[cfg(unix)]
    #[test]
    fn protected_files_are_kept_and_files_in_protected_folders_are_written() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let file = dir.path().join("a.json");
        fs::write(&file, "old").unwrap();
        allow(&file, 0o444);
        if OpenOptions::new().append(true).open(&file).is_ok() {
            return eprintln!("skipped: permissions do not apply to this user (root)");
        }
        for e in [check_writable(&file).unwrap_err(), write_whole(&file, "new").unwrap_err()] {
            assert!(e.to_string().contains("cannot be written"), "{e}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        allow(&file, 0o644);
        allow(dir.path(), 0o555);
        check_writable(&file).unwrap();
        write_whole(&file, "new").unwrap();
        assert!(write_whole(&dir.path().join("b.json"), "new").is_err());
        allow(dir.path(), 0o755);
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), names(dir.path()).len()), ("new", 1));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_permissions_kept_and_streams_not_replaced() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("file", &link).unwrap();
        check_writable(&link).unwrap();
        write_whole(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // The umask decides who can read a new file, although temporary files are private.
        let (new, ordinary) = (dir.path().join("new"), dir.path().join("ordinary"));
        write_whole(&new, "x").unwrap();
        fs::write(&ordinary, "x").unwrap();
        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode(&new), mode(&ordinary));
        // Links to a file that does not exist yet.
        fs::create_dir(dir.path().join("sub")).unwrap();
        symlink("sub/second", dir.path().join("first")).unwrap();
        symlink("../third", dir.path().join("sub/second")).unwrap();
        check_writable(&dir.path().join("first")).unwrap();
        write_whole(&dir.path().join("first"), "new").unwrap();
        assert!(dir.path().join("first").symlink_metadata().unwrap().is_symlink());
        assert!(dir.path().join("sub/second").symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read_to_string(dir.path().join("third")).unwrap(), "new");
        symlink("circle", dir.path().join("circle")).unwrap();
        write_whole(&dir.path().join("circle"), "x").unwrap_err();
        let null = Path::new("/dev/null");
        check_writable(null).unwrap();
        write_whole(null, "x").unwrap();
        assert!(fs::metadata(null).unwrap().file_type().is_char_device());
    }
}
