//! Helpers for the tests of files: they check refusals and find real files.
//!
//! Real files are in `../shared/data`, or where `SECATEUR_SHARED` points. Without them, a test prints that it skips
//! them. If the variable is set, they must be there.
use std::path::{Path, PathBuf};

use secateur::{Error, ErrorKind};

/// Prints a line past the test runner, which hides the output of tests that pass. CI lists these lines, which say
/// what ran with real files and what was skipped.
macro_rules! report {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = std::io::stderr().write_all((format!($($part)*) + "\n").as_bytes());
    }};
}
pub(crate) use report;

/// The message of the error in `result`. Panics if there is none.
#[track_caller]
pub fn message<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("this must be refused"),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Internal, "bad input is not a bug of ours: {error}");
            error.to_string()
        }
    }
}

#[track_caller]
pub fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing from:\n{message}");
    }
}

/// The path of `../shared/data/NAME`. If there is no such file, prints this and returns `None`.
pub fn real(name: &str) -> Option<PathBuf> {
    let set = std::env::var_os("SECATEUR_SHARED");
    let root = set.clone().map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let path = root.join("data").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(set.is_none(), "SECATEUR_SHARED is set, but {} does not exist", path.display());
    report!("skipped: ../shared/data/{name} is absent");
    None
}

type Failure = Box<dyn std::error::Error>;

/// The texts of a set of tokenizer vectors, each with its ids.
pub fn vectors(folder: &Path, name: &str) -> Result<Vec<(String, Vec<u32>)>, Failure> {
    let texts = std::fs::read_to_string(folder.join(format!("{name}.inp")))?;
    let ids = std::fs::read_to_string(folder.join(format!("{name}.out")))?;
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_string);
    let ids = ids.lines().map(|line| line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>());
    Ok(texts.zip(ids.collect::<Result<Vec<_>, _>>()?).collect())
}
