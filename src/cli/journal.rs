//! A file to which records are appended as lines of JSON, so that no record is lost if the program is ended at any
//! moment. After a power cut, the last ones may be missing: lines are not forced to the disk.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use secateur::{Error, ErrorKind, Result};

/// The file, locked as long as it is open.
pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: Vec<u8>,
    /// The bytes that are whole lines.
    whole: usize,
    /// What is recorded, for errors: `the progress of the calibration`.
    what: &'static str,
}

impl Journal {
    /// Opens the file, which is created if it is missing, and reads it. It is not changed.
    pub fn open(path: &Path, what: &'static str, in_use: &str) -> Result<Self> {
        let failed = |e: io::Error| cannot_be_kept(path, what, e);
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::Io, in_use)
                    .at(path.display())
                    .help("wait for it, or choose another --out"));
            }
            // Some file systems do not support locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let bytes = std::fs::read(path).map_err(failed)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        Ok(Self { path: path.to_path_buf(), file, bytes, whole, what })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lines that are complete.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes[..self.whole])
    }

    /// What follows the last complete line: a record whose writing was interrupted, or another kind of file.
    pub fn torn(&self) -> &[u8] {
        &self.bytes[self.whole..]
    }

    /// Removes what follows the last complete line.
    pub fn repair(&mut self) -> Result<()> {
        if self.torn().is_empty() {
            return Ok(());
        }
        self.file.set_len(self.whole as u64).map_err(|e| cannot_be_kept(&self.path, self.what, e))
    }

    /// Appends a record. Each line is one write, so that an interruption leaves it complete or at the end of the
    /// file.
    pub fn append(&mut self, line: &str) -> Result<()> {
        self.file.write_all(line.as_bytes()).map_err(|e| cannot_be_kept(&self.path, self.what, e))
    }
}

fn cannot_be_kept(path: &Path, what: &str, e: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{what} cannot be kept"))
        .at(path.display())
        .found(e)
        .help("name a place in another directory with --out")
}

/// A value as one line of JSON.
pub fn line(value: &impl serde::Serialize) -> Result<String> {
    let json = serde_json::to_string(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "the value cannot be written as JSON").found(e))?;
    Ok(json + "\n")
}
