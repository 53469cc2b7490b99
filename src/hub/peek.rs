//! Describes a model on the hub from the beginnings of its files, without fetching its weights.
use std::fs;
use std::io::Read;

use ureq::http::StatusCode;

use super::cache::{Cached, io};
use super::check::{self, FIRST, LAST};
use super::download::FILES;
use super::{Failure, Hub, HubName, Remote};
use crate::Result;
use crate::weights::{Bytes, ModelSource};

impl Hub {
    /// The model `name` without the values of its weights: configuration, tokenizer and template, and the names,
    /// shapes and types of the tensors. A complete copy in the cache is used; otherwise only the small files and the
    /// beginnings of the large ones are fetched.
    ///
    /// # Errors
    /// If the hub cannot be reached, or does not have the model.
    pub fn peek(&self, name: &HubName) -> Result<ModelSource> {
        let name = &self.with_file(name, false, &mut |_| ())?;
        match self.cached(name) {
            Cached::Complete(path) | Cached::Sufficient(path) => return ModelSource::open(path),
            _ if self.offline.is_some() => return ModelSource::open(self.fetch(name, false, &mut |_| ())?),
            _ => {}
        }
        self.look_at(name).map_err(Failure::into_error)
    }

    fn look_at(&self, name: &HubName) -> Result<ModelSource, Failure> {
        let (commit, files) = self.patiently(&mut |_| (), || self.look_up(name))?;
        let place = |file: &str| format!("{}/{file}", name.repo);
        if let Some(file) = &name.file {
            let mut parts = Vec::new();
            for part in self.parts_on_hub(name, file, &files)? {
                let whole_header =
                    |bytes: &[u8], total| ModelSource::gguf_file("", Bytes::start(bytes.to_vec(), total)).is_ok();
                let remote = self.patiently(&mut |_| (), || self.describe(name, &commit, &part))?;
                let start = self.beginning(name, &commit, &remote, whole_header)?;
                parts.push((place(&part), start));
            }
            return Ok(match parts.len() {
                1 => {
                    let (place, start) = parts.swap_remove(0);
                    ModelSource::gguf_file(place, start)?
                }
                _ => ModelSource::gguf_parts(parts)?,
            });
        }
        let mut small: Vec<String> = FILES.into_iter().filter(|file| files.contains(*file)).map(String::from).collect();
        let weights = self.weight_files(name, &commit, &files)?;
        small.extend((!files.contains(super::SINGLE)).then(|| super::INDEX.to_string()));
        self.get_all(name, &commit, &small, &mut |_| ())?;
        let snapshot = self.snapshot_of(name, &commit);
        let mut found = Vec::new();
        for file in small {
            let path = snapshot.join(&file);
            let bytes = fs::read(&path).map_err(|e| io("a file of the cache cannot be read", &path, &e))?;
            found.push((file, Bytes::from(bytes)));
        }
        for file in weights {
            let remote = self.patiently(&mut |_| (), || self.describe(name, &commit, &file))?;
            let start = self.beginning(name, &commit, &remote, check::has_header)?;
            found.push((file, start));
        }
        Ok(ModelSource::memory(found))
    }

    /// The beginning of a file, until `is_enough` holds for it and the size of the file.
    pub(super) fn beginning(
        &self,
        name: &HubName,
        commit: &str,
        remote: &Remote,
        is_enough: impl Fn(&[u8], u64) -> bool,
    ) -> Result<Bytes, Failure> {
        let url = self.address(name, commit, &remote.name);
        let mut response = self.patiently(&mut |_| (), || self.ask(&url, None))?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(name, &url, &response));
        }
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut bytes = Vec::new();
        let mut next = FIRST;
        loop {
            let missing = next - bytes.len() as u64;
            body.by_ref().take(missing).read_to_end(&mut bytes).map_err(|e| self.broken(&url, e))?;
            let is_whole = (bytes.len() as u64) < next;
            if is_whole || next >= LAST || is_enough(&bytes, remote.bytes) {
                return Ok(Bytes::start(bytes, remote.bytes));
            }
            next *= 2;
        }
    }
}
