//! Files that a command writes: whole or not at all, and found out early if they cannot be.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use secateur::{Error, ErrorKind, Result};

/// Refuses a file that cannot be written: now, not after an hour of decoding. What the file holds stays as it is.
pub fn check_writable(file: &Path) -> Result<()> {
    let Target::File(target) = Target::of(file)? else { return Ok(()) };
    // What somebody has protected is not to be replaced behind his back.
    let there = match OpenOptions::new().append(true).open(&target) {
        Ok(_) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(failed(file, e)),
    };
    match beside(&target) {
        Ok((half, _)) => fs::remove_file(half).map_err(|e| failed(file, e)),
        // A folder that takes no new files: it will be written where it stands.
        Err(_) if there => Ok(()),
        Err(e) => Err(failed(file, e)),
    }
}

/// Writes a file so that nobody ever finds half of it: until all is on the disk, the name stands for what it stood for.
pub fn write_whole(file: &Path, text: &str) -> Result<()> {
    let written = match Target::of(file)? {
        Target::Stream => fs::write(file, text),
        Target::File(target) => match beside(&target) {
            Err(_) if target.exists() => fs::write(&target, text),
            Err(e) => Err(e),
            Ok((half, made)) => {
                let done = fill(made, text, &target).and_then(|()| match fs::rename(&half, &target) {
                    // A file that is mounted by itself cannot be replaced.
                    Err(_) if target.exists() => fs::write(&target, text).and_then(|()| fs::remove_file(&half)),
                    renamed => renamed,
                });
                done.inspect_err(|_| {
                    fs::remove_file(&half).ok();
                })
            }
        },
    };
    written.map_err(|e| failed(file, e))
}

/// What a path leads to.
enum Target {
    /// A file, or the place for one, links followed.
    File(PathBuf),
    /// A pipe, a terminal, /dev/null: nothing that could be replaced.
    Stream,
}

impl Target {
    fn of(file: &Path) -> Result<Self> {
        let wrong = |found: &str| {
            Error::new(ErrorKind::Io, "a file cannot be written")
                .at(format!("{file:?}"))
                .expected("a file")
                .found(found)
        };
        match fs::metadata(file) {
            Ok(there) if there.is_dir() => Err(wrong("a directory")),
            Ok(there) if !there.is_file() => Ok(Self::Stream),
            Ok(_) => Ok(Self::File(fs::canonicalize(file).map_err(|e| failed(file, e))?)),
            Err(_) if file.file_name().is_none() => Err(wrong("no name of a file")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::File(file.to_path_buf())),
            Err(e) => Err(failed(file, e)),
        }
    }
}

/// A new file in the folder of `target`.
fn beside(target: &Path) -> io::Result<(PathBuf, File)> {
    let mut attempt = 0;
    loop {
        let half = target.with_file_name(format!(".secateur-{}-{attempt}.half", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&half) {
            // Left by a process that was killed, and whose number has come round.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            made => return made.map(|file| (half, file)),
        }
    }
}

/// Writes `text`, with the permissions that `target` has.
fn fill(mut file: File, text: &str, target: &Path) -> io::Result<()> {
    if let Ok(there) = fs::metadata(target) {
        file.set_permissions(there.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn failed(file: &Path, e: io::Error) -> Error {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let missing = folder.is_some_and(|folder| !folder.exists());
    let error = Error::new(ErrorKind::Io, "a file cannot be written").at(file.display()).found(e);
    if missing { error.help("make its folder first") } else { error }
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
        assert!(names(dir.path()).is_empty(), "looking leaves nothing");
        fs::write(&file, "old, and longer").unwrap();
        check_writable(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "old, and longer");
        // What a process of the same number left.
        fs::write(dir.path().join(format!(".secateur-{}-0.half", std::process::id())), "").unwrap();
        write_whole(&file, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(names(dir.path()).len(), 2, "{:?}", names(dir.path()));
    }

    #[test]
    fn places_that_are_no_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/file");
        for (file, part) in
            [(dir.path(), "a directory"), (&missing, "make its folder first"), (Path::new(""), "no name")]
        {
            for e in [check_writable(file).unwrap_err(), write_whole(file, "x").unwrap_err()] {
                assert!(e.to_string().contains("cannot be written") && e.to_string().contains(part), "{e}");
            }
        }
        assert!(names(dir.path()).is_empty());
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
        let null = Path::new("/dev/null");
        check_writable(null).unwrap();
        write_whole(null, "x").unwrap();
        assert!(fs::metadata(null).unwrap().file_type().is_char_device());
    }
}
