//! Files that are neither in memory nor mapped: tensors are read from them piece by piece, so that a model may be
//! larger than the memory of the process. In a browser, that memory has at most 4 GiB.
use super::{Bytes, DOWNLOAD_AGAIN, Gguf, Storage};
use crate::{Error, ErrorKind, Result};
use std::fmt;
use std::sync::Arc;

/// Bytes read first from a file that may have a large header. A GGUF header contains the tokenizer and often has 5 to
/// 10 MB.
const FIRST: u64 = 1 << 20;
/// The most bytes of a GGUF header.
const MAX_HEADER: u64 = 256 << 20;

/// A file of which any range can be read at any time, without waiting for a callback.
pub trait ReadAt: fmt::Debug + Send + Sync {
    /// Fills `into` with the bytes from `offset` on, all of which lie within the file.
    ///
    /// # Errors
    /// A description of the error for people.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), String>;
}

impl Bytes {
    /// A file of `total` bytes that is read in pieces. The header of a safetensors or GGUF file is read now, and any
    /// other file as a whole. Error messages call the file `place`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it cannot be read. A header that is not valid is noticed later, where it is parsed.
    pub fn in_pieces(place: &str, total: u64, file: Arc<dyn ReadAt>) -> Result<Self> {
        let read = |len: u64| {
            let mut bytes = vec![0; usize::try_from(len).map_err(|_| too_large(place, len))?];
            file.read_at(0, &mut bytes).map_err(|e| unreadable(place, e))?;
            Ok(bytes)
        };
        let magic = read(total.min(8))?;
        let beginning = if magic.starts_with(b"GGUF") {
            let mut next = FIRST;
            loop {
                let start = read(next.min(total))?;
                let is_whole = next >= total.min(MAX_HEADER);
                let parsed = Gguf::new(place, Self(Storage::Start(Arc::new(start.clone()), total, None)));
                // Other errors do not go away with more bytes.
                let is_short = parsed.is_err_and(|e| e.to_string().contains("the GGUF header"));
                if is_whole || !is_short {
                    break start;
                }
                next *= 2;
            }
        } else if place.ends_with(".safetensors") {
            let header = magic.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
            // The parser refuses a header that is longer than the limit, because it then sees a short file.
            read(header.saturating_add(8).min(total).min(MAX_HEADER))?
        } else if place.ends_with(".gguf") {
            return Err(Error::new(ErrorKind::Model, "this is not a GGUF file")
                .at(place)
                .expected("\"GGUF\" at the beginning of the file")
                .found(format!("{:?}", String::from_utf8_lossy(&magic)))
                .help(DOWNLOAD_AGAIN));
        } else {
            return Ok(Self::from(read(total)?));
        };
        Ok(Self(Storage::Start(Arc::new(beginning), total, Some(file))))
    }
}

fn too_large(place: &str, len: u64) -> Error {
    Error::new(ErrorKind::Io, "a file is too large to be read as a whole").at(place).found(format!("{len} bytes"))
}

/// The error of a file of which a piece could not be read.
pub(super) fn unreadable(place: &str, why: String) -> Error {
    Error::new(ErrorKind::Io, "a file of the model cannot be read").at(place).found(why).help(DOWNLOAD_AGAIN)
}

#[cfg(test)]
mod tests {
    use super::super::{ModelSource, Weights};
    use super::*;
    use crate::dtype::Dtype;
    use std::sync::Mutex;

    /// A file that records which ranges are read.
    #[derive(Debug)]
    struct Noted(Vec<u8>, Mutex<Vec<(u64, usize)>>);

    impl ReadAt for Noted {
        fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), String> {
            self.1.lock().map_err(|e| e.to_string())?.push((offset, into.len()));
            let all = self.0.get(offset as usize..offset as usize + into.len()).ok_or("past the end")?;
            into.copy_from_slice(all);
            Ok(())
        }
    }

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).expect("committed")
    }

    #[test]
    fn a_file_in_pieces_has_the_same_tensors() -> Result<()> {
        for (name, bytes) in [
            ("model.safetensors", golden("qwen2-f16/model.safetensors")),
            ("model.gguf", golden("gguf-llama-q4/model.gguf")),
        ] {
            let open = |bytes: Bytes| match name.ends_with(".gguf") {
                true => Weights::open(&ModelSource::gguf_file(name, bytes)?),
                false => Weights::open(&ModelSource::memory([(name, bytes)])),
            };
            let whole = open(Bytes::from(bytes.clone()))?;
            let file = Arc::new(Noted(bytes.clone(), Mutex::default()));
            let pieces = open(Bytes::in_pieces(name, bytes.len() as u64, file.clone())?)?;
            let header: usize = file.1.lock().expect("one thread").iter().map(|(_, len)| len).sum();
            assert!(header < bytes.len() || name.ends_with(".gguf"), "{name}: {header} bytes were read");
            assert_eq!(pieces.fingerprint()?, whole.fingerprint()?);
            for tensor in whole.names().filter_map(|name| whole.find(name)) {
                let found = pieces.tensor(tensor.name)?;
                assert_eq!(found.to_f32()?, tensor.to_f32()?, "{}", tensor.name);
                if tensor.shape.len() == 2 {
                    let rows = tensor.to_rows()?;
                    assert_eq!(found.to_rows()?, rows);
                    for range in [0..1, 1..tensor.shape[0], 3..7] {
                        assert_eq!(found.some_rows(range.clone())?, rows.slice_rows(range)?, "{}", tensor.name);
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn rows_are_read_from_the_file_alone() -> Result<()> {
        let bytes = golden("qwen2-f16/model.safetensors");
        let file = Arc::new(Noted(bytes.clone(), Mutex::default()));
        let files = vec![(
            "model.safetensors".to_string(),
            Bytes::in_pieces("model.safetensors", bytes.len() as u64, file.clone())?,
        )];
        let weights = Weights::from_files(files)?;
        file.1.lock().expect("one thread").clear();
        let embedding = weights.tensor("model.embed_tokens.weight")?;
        let rows = embedding.some_rows(2..5)?;
        assert_eq!((rows.rows(), rows.dtype()), (3, Dtype::F16));
        let read = file.1.lock().expect("one thread").clone();
        assert!(matches!(read[..], [(_, len)] if len == 3 * 2 * embedding.shape[1]), "{read:?}");
        Ok(())
    }

    #[test]
    fn a_file_that_fails_is_named() {
        #[derive(Debug)]
        struct Broken;
        impl ReadAt for Broken {
            fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), String> {
                if offset > 0 {
                    return Err("the file has changed".into());
                }
                let header = br#"{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
                let mut start = (header.len() as u64).to_le_bytes().to_vec();
                start.extend(header);
                into.copy_from_slice(&start[..into.len()]);
                Ok(())
            }
        }
        let bytes = Bytes::in_pieces("a.safetensors", 8 + 57 + 16, Arc::new(Broken)).expect("a header");
        let weights = Weights::from_files(vec![("a.safetensors".into(), bytes)]).expect("a good header");
        let error = weights.matrix("x", 2, 2).expect_err("nothing can be read").to_string();
        assert!(error.contains("a.safetensors") && error.contains("the file has changed"), "{error}");
    }
}
