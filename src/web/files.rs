//! The files of a model that JavaScript passes.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use js_sys::{Array, Function, Object, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::weights::{Bytes, ModelSource, ReadAt};
use crate::{Error, ErrorKind, Result};

/// A model from its files: `{name: Uint8Array | {size, read}}`. An array is removed from the object once it is
/// copied. For an object, `read(offset, length)` returns a `Uint8Array` of `length` bytes, without a promise, so that
/// a file may be larger than the memory of this module. The files are those of a directory in Hugging Face layout, or
/// GGUF files: one, or all parts of a split one.
///
/// # Errors
/// If a file is something else, or the header of a GGUF file is invalid.
pub fn source(files: &Object) -> Result<ModelSource> {
    let wrong = |what: &str| Error::new(ErrorKind::Input, what).expected("{name: Uint8Array | {size, read}}");
    let mut taken = Vec::new();
    for entry in Object::entries(files) {
        let entry: Array = entry.into();
        let name = entry.get(0).as_string().ok_or_else(|| wrong("a file without a name"))?;
        let bytes = match entry.get(1).dyn_into::<Uint8Array>() {
            Ok(bytes) => {
                // A browser has no memory for two copies of a large model, so each array is removed once it is
                // copied.
                Reflect::delete_property(files, &entry.get(0)).ok();
                Bytes::from(bytes.to_vec())
            }
            Err(file) => {
                let size = Reflect::get(&file, &"size".into()).ok().and_then(|size| size.as_f64());
                let size = size.filter(|size| size.fract() == 0.0 && *size >= 0.0);
                let size = size.ok_or_else(|| wrong("a file without a size"))?;
                Bytes::in_pieces(&name, size as u64, Arc::new(JsFile::new(file)))?
            }
        };
        taken.push((name, bytes));
    }
    // Parts of a split model are numbered, so their names are in order.
    taken.sort_by(|a, b| a.0.cmp(&b.0));
    let is_gguf = |bytes: &Bytes| bytes.starts_with(b"GGUF");
    let has_config = taken.iter().any(|(name, _)| name == "config.json");
    let mut ggufs: Vec<(String, Bytes)> = taken.iter().filter(|(_, bytes)| is_gguf(bytes)).cloned().collect();
    match ggufs.len() {
        0 => Ok(ModelSource::memory(taken)),
        _ if has_config => Ok(ModelSource::memory(taken)),
        1 => {
            let (name, bytes) = ggufs.swap_remove(0);
            ModelSource::gguf_file(name, bytes)
        }
        _ => ModelSource::gguf_parts(ggufs),
    }
}

thread_local! {
    /// The JavaScript objects behind each [`JsFile`]. They must stay on this thread, but a [`ReadAt`] may move to
    /// another one.
    static FILES: RefCell<BTreeMap<u32, JsValue>> = const { RefCell::new(BTreeMap::new()) };
}

/// A file that JavaScript reads.
#[derive(Debug)]
struct JsFile(u32);

impl JsFile {
    fn new(file: JsValue) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        FILES.with_borrow_mut(|files| files.insert(id, file));
        Self(id)
    }
}

impl Drop for JsFile {
    fn drop(&mut self) {
        // At the end of the thread the map may no longer exist.
        FILES.try_with(|files| files.borrow_mut().remove(&self.0)).ok();
    }
}

impl ReadAt for JsFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), String> {
        let file =
            FILES.with_borrow(|files| files.get(&self.0).cloned()).ok_or("the file belongs to another thread")?;
        let said = |error: JsValue| {
            let message = Reflect::get(&error, &"message".into()).ok().and_then(|message| message.as_string());
            message.unwrap_or_else(|| format!("{error:?}"))
        };
        let read: Function = Reflect::get(&file, &"read".into())
            .and_then(|read| read.dyn_into())
            .map_err(|_| "it has no method read")?;
        let bytes = read.call2(&file, &(offset as f64).into(), &(into.len() as f64).into()).map_err(said)?;
        let bytes: Uint8Array = bytes.dyn_into().map_err(|_| "read returned something else than a Uint8Array")?;
        if bytes.length() as usize != into.len() {
            return Err(format!("{} of {} bytes were read: has the file changed?", bytes.length(), into.len()));
        }
        bytes.copy_to(into);
        Ok(())
    }
}
