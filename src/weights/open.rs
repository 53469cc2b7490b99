//! Finds out what a path on disk is: a directory in Hugging Face layout, a GGUF file, a part of a split one, or a
//! directory that holds one.
use super::gguf::{Gguf, SplitName, is_projector};
use super::{ADAPTER, Bytes, LFS_POINTER, ModelSource, Place, read_file, refuse_substitute};
use crate::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files by which a directory counts as one in Hugging Face layout, or which explain why it is none.
const OWN_FILES: [&str; 2] = ["config.json", ADAPTER];

impl ModelSource {
    /// Opens a model by its path: a directory in Hugging Face layout, a GGUF file (whatever its name is), any part of
    /// a GGUF file that is split into several, or a directory that holds one such file and nothing else to run.
    ///
    /// # Errors
    /// If `path` is none of these, a part is missing, or the header of a GGUF file is invalid.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).ok();
        match &kind {
            Some(kind) if kind.is_dir() => match gguf_in(path)? {
                Some(file) => open_gguf(&file),
                None => Self::directory(path),
            },
            _ if is_named_gguf(path) || begins_like_gguf(path) => {
                open_gguf(path).map_err(|error| explain_piece(path, error))
            }
            Some(kind) if kind.is_file() => Self::directory(path).map_err(|error| explain_piece(path, error)),
            _ => Self::directory(path),
        }
    }
}

fn is_named_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether a regular file begins with the magic of GGUF, or is a Git LFS pointer, which then gets its own message.
fn begins_like_gguf(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LFS_POINTER.len() as u64).read_to_end(&mut start));
    read.is_ok() && (start.starts_with(b"GGUF") || start == LFS_POINTER)
}

/// Opens a GGUF file, and the other parts of the same model if the file is a part.
fn open_gguf(path: &Path) -> Result<ModelSource> {
    let open = |path: &Path| {
        let place = path.display().to_string();
        let bytes: Bytes = read_file(path)?.ok_or_else(|| absent(path))?;
        refuse_substitute(&place, &bytes)?;
        Gguf::new(place, bytes)
    };
    let named = open(path)?;
    let announced = named.announced_parts()?;
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(name) = SplitName::parse(&file_name).filter(|_| announced > 1) else {
        // If the file is a part under another name, reading the configuration refuses it.
        return Ok(ModelSource(Place::Gguf(Arc::new(named)), None));
    };
    if announced != name.count as u64 {
        return Err(named
            .error_at("split.count", "the name of a part of a split GGUF file contradicts its metadata")
            .expected(format!("{} parts, as the name says", name.count))
            .found(format!("{announced} parts"))
            .help("give the file its original name, or download all parts again"));
    }
    // Every part has to be there before the first is read.
    let missing: Vec<String> = name.parts().filter(|part| !path.with_file_name(part).is_file()).collect();
    if let Some(first) = missing.first() {
        let others = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
        return Err(Error::new(ErrorKind::Model, "a part of a split GGUF file is missing")
            .at(path.display())
            .expected(format!("all {} parts in one folder", name.count))
            .found(format!("no {first}{others}"))
            .help("download the missing parts into the same folder"));
    }
    let mut named = Some(named);
    let parts = (1..=name.count).map(|number| match named.take_if(|_| number == name.number) {
        Some(part) => Ok(part),
        None => open(&path.with_file_name(name.part(number))),
    });
    let whole = Gguf::join(parts.collect::<Result<_>>()?)?;
    Ok(ModelSource(Place::Gguf(Arc::new(whole)), None))
}

/// The error for a GGUF file that does not exist. For a part, it says which part is missing and which others exist.
fn absent(path: &Path) -> Error {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(name) = SplitName::parse(&file_name) else {
        return Error::new(ErrorKind::Model, "the GGUF file does not exist").at(path.display());
    };
    let here: Vec<String> = name.parts().filter(|part| path.with_file_name(part).is_file()).collect();
    let error = Error::new(ErrorKind::Model, "a part of a split GGUF file is missing")
        .at(path.display())
        .expected(format!("part {} of {}", name.number, name.count));
    match here.is_empty() {
        true => error.found("no part of this model in the folder"),
        false => error.found(here.join(", ")).help("download the missing parts into the same folder"),
    }
}

/// The GGUF file in a directory without a model in Hugging Face layout; of a split one, its first part. The image or
/// audio part of a model may lie beside it.
///
/// # Errors
/// If the directory holds several.
fn gguf_in(dir: &Path) -> Result<Option<PathBuf>> {
    if OWN_FILES.iter().any(|name| dir.join(name).exists()) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| is_named_gguf(path) && path.is_file());
    let mut names: Vec<String> =
        files.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    names.sort();
    if names.iter().any(|name| !is_projector(name)) {
        names.retain(|name| !is_projector(name));
    }
    let shown = names.join(", ");
    // Parts of one model count as one file. The first existing part leads to the others, or to an error that names
    // the missing ones.
    names.dedup_by(|later, earlier| match (SplitName::parse(later), SplitName::parse(earlier)) {
        (Some(later), Some(earlier)) => later.is_of(&earlier),
        _ => false,
    });
    match &names[..] {
        [] => Ok(None),
        [name] => Ok(Some(dir.join(name))),
        _ => Err(Error::new(ErrorKind::Model, "the directory holds several GGUF files")
            .at(dir.display())
            .expected("one GGUF file, or the parts of one")
            .found(shown)
            .help("pass the path of one of these files")),
    }
}

/// Adds how to join the pieces to an error about a file that `split` seems to have cut, such as `x.gguf.part1of2`.
fn explain_piece(path: &Path, error: Error) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(end) = name.to_ascii_lowercase().find(".gguf").map(|at| at + 5).filter(|end| *end < name.len()) else {
        return error;
    };
    let whole = &name[..end];
    error.help(format!(
        "by its name, this is a piece of {whole}: join all pieces in their order, for example with cat {whole}* > {whole}"
    ))
}
