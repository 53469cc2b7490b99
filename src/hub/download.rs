//! Fetches the files of a model over HTTP into the cache.
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::answers;
use super::cache::{absent, io, is_commit, is_plain_path, link, make_parent, parts_of, shards};
use super::check::{self, Start};
use super::disk::check_space;
use super::{Failure, Hub, HubName, INDEX, OPTIONAL, Progress, Remote, SINGLE};
use crate::weights::gguf::SplitName;
use crate::weights::{self, ADAPTER, ModelSource};
use crate::{Error, ErrorKind, Result, file};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// The files of a model besides the weights. Only the first is required.
pub(super) const FILES: [&str; 6] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];
/// The number of connections in a row that may break without bringing a byte.
const ATTEMPTS: u32 = 5;
/// The number of requests for which a busy hub may ask to come back.
const BUSY_ATTEMPTS: u32 = 4;
/// The longest time for which a busy hub is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The number of addresses that are asked for one file, one after the other.
const REDIRECTS: usize = 6;
/// Files of which the hub does not tell the length are read twice. Larger ones are refused.
const UNKNOWN_LENGTH_LIMIT: u64 = 256 << 20;

impl Hub {
    pub(super) fn download(&self, name: &HubName, report: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf, Failure> {
        let (commit, files) = self.patiently(report, || self.look_up(name))?;
        let folder = self.folder(name);
        let snapshot = self.snapshot_of(name, &commit);
        let has = |file: &str| files.contains(file);

        let wanted = match &name.file {
            Some(file) => self.parts_on_hub(name, file, &files)?,
            None => {
                let weights = self.weight_files(name, &commit, &files)?;
                if !has(CONFIG) {
                    return Err(Error::new(ErrorKind::Model, format!("{} has no {CONFIG}", name.repo))
                        .at(format!("{}/{}", self.endpoint, name.repo))
                        .into());
                }
                // A model that cannot be run is refused before its weights are fetched.
                self.get_all(name, &commit, &[CONFIG.into()], &mut |_| ())?;
                check::config(&snapshot)?;
                FILES.into_iter().filter(|file| has(file)).map(String::from).chain(weights).collect()
            }
        };
        let remotes = self.describe_all(name, &commit, &wanted, report)?;
        if name.file.is_none() {
            self.check_weights(name, &commit, &wanted, &remotes)?;
        }
        let arrived = |file: &str| match name.file.is_none() && file == TOKENIZER {
            true => check::tokenizer(&ModelSource::directory(&snapshot)?),
            false => Ok(()),
        };
        self.get_described(name, &commit, &remotes, &arrived, report)?;
        if name.file.is_none() {
            for file in OPTIONAL.into_iter().filter(|file| !has(file)) {
                // The marker only saves requests, so it does not matter if it cannot be written.
                let marker = absent(&folder, Path::new(&commit), file);
                drop(make_parent(&marker).map(|()| fs::write(&marker, [])));
            }
        }
        // The ref is written last, because it promises a complete snapshot.
        if !is_commit(&name.revision) {
            let branch = folder.join("refs").join(&name.revision);
            make_parent(&branch)?;
            file::replace(&branch, &commit).map_err(|e| io("the cache cannot be written", &branch, &e))?;
        }
        Ok(match &name.file {
            Some(file) => snapshot.join(file),
            None => snapshot,
        })
    }

    /// The files of the GGUF file `file`: itself, or all parts of the split model to which it belongs.
    ///
    /// # Errors
    /// If `files`, those of the repository, lack one.
    pub(super) fn parts_on_hub(&self, name: &HubName, file: &str, files: &BTreeSet<String>) -> Result<Vec<String>> {
        if !files.contains(file) {
            let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|f| f.ends_with(".gguf")).collect();
            let error = Error::new(ErrorKind::Model, format!("{} has no {file}", name.repo)).at(&self.endpoint);
            let error = match SplitName::parse(file.rsplit('/').next().unwrap_or(file)) {
                Some(part) => error.expected(format!("part {} of {} of a split file", part.number, part.count)),
                None => error,
            };
            return Err(error.found(if ggufs.is_empty() { "no GGUF files".into() } else { ggufs.join(", ") }));
        }
        let parts = parts_of(file);
        match parts.iter().find(|part| !files.contains(*part)) {
            None => Ok(parts),
            Some(missing) => Err(Error::new(ErrorKind::Model, "a part of a split GGUF file is not on the hub")
                .at(format!("{}/{}", self.endpoint, name.repo))
                .expected(format!("all {} parts of {file}", parts.len()))
                .found(format!("no {missing}"))),
        }
    }

    /// The safetensors files of a model. An index of shards is fetched to read their names.
    pub(super) fn weight_files(
        &self,
        name: &HubName,
        commit: &str,
        files: &BTreeSet<String>,
    ) -> Result<Vec<String>, Failure> {
        match (files.contains(SINGLE), files.contains(INDEX)) {
            (true, _) => Ok(vec![SINGLE.into()]),
            (false, true) => {
                self.get_all(name, commit, &[INDEX.into()], &mut |_| ())?;
                let place = self.snapshot_of(name, commit).join(INDEX);
                let text = fs::read(&place).map_err(|e| io("a file of the cache cannot be read", &place, &e))?;
                let shards = shards(&text).map_err(|()| {
                    Error::new(ErrorKind::Model, "the index of the weights is malformed").at(place.display())
                })?;
                Ok(shards.into_iter().collect())
            }
            (false, false) => Err(self.no_weights(name, commit, files).into()),
        }
    }

    /// The error for a repository that has an adapter and no whole model.
    fn adapter(&self, name: &HubName, commit: &str, files: &BTreeSet<String>) -> Option<Error> {
        if !files.contains(ADAPTER) || files.iter().any(|file| file.ends_with(".gguf")) {
            return None;
        }
        // Without the file, the error does not name the base model.
        drop(self.get_all(name, commit, &[ADAPTER.into()], &mut |_| ()));
        let place = self.snapshot_of(name, commit).join(ADAPTER);
        let json = fs::read(place).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Some(weights::adapter(&json).at(format!("{}/{}", self.endpoint, name.repo)))
    }

    fn no_weights(&self, name: &HubName, commit: &str, files: &BTreeSet<String>) -> Error {
        let error = Error::new(ErrorKind::Model, format!("{} has no weights in safetensors", name.repo))
            .at(format!("{}/{}", self.endpoint, name.repo))
            .expected(format!("{SINGLE}, or {INDEX} and its shards"));
        if let Some(adapter) = self.adapter(name, commit, files) {
            return adapter;
        }
        let ending_in = |end: &str| files.iter().map(String::as_str).filter(|f| f.ends_with(end)).collect::<Vec<_>>();
        match (ending_in(".gguf"), ending_in(".bin")) {
            (ggufs, _) if !ggufs.is_empty() => error.found(ggufs.join(", ")).help(format!(
                "name one of its GGUF files: `model` {}/{}",
                name.repo,
                check::preferred(&ggufs)
            )),
            (_, bins) if !bins.is_empty() => error.found(bins.join(", ")).help(
                "pickled weights are not supported: convert them to safetensors with transformers' save_pretrained",
            ),
            _ => error.found(format!("{} files of other kinds", files.len())),
        }
    }

    /// The current commit of the revision, and the names of its files.
    pub(super) fn look_up(&self, name: &HubName) -> Result<(String, BTreeSet<String>), Failure> {
        let revision = name.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, name.repo);
        let mut response = self.ask(&url, None)?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(name, &url, &response));
        }
        let broken = |e: ureq::Error| self.broken(&url, e);
        let text = response.body_mut().with_config().limit(64 << 20).read_to_vec().map_err(broken)?;
        Ok(answers::model(&url, &text)?)
    }

    /// Fetches those of `files` that the snapshot of `commit` does not have.
    pub(super) fn get_all(
        &self,
        name: &HubName,
        commit: &str,
        files: &[String],
        report: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let remotes = self.describe_all(name, commit, files, report)?;
        self.get_described(name, commit, &remotes, &|_| Ok(()), report)
    }

    /// Asks for those of `files` that the snapshot of `commit` does not have.
    fn describe_all(
        &self,
        name: &HubName,
        commit: &str,
        files: &[String],
        report: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Remote>, Failure> {
        let snapshot = self.snapshot_of(name, commit);
        let missing = files.iter().filter(|file| !snapshot.join(file).is_file());
        missing.map(|file| self.patiently(report, || self.describe(name, commit, file))).collect()
    }

    /// Refuses weights whose headers show that the model cannot be run, before they are fetched. `wanted` are the
    /// files of the model, of which the hub has described those that are `missing` here.
    ///
    /// # Errors
    /// Those of [`check::weights`]. If the headers cannot be fetched, nothing is refused: fetching the whole files is
    /// tried again where a connection breaks.
    fn check_weights(
        &self,
        name: &HubName,
        commit: &str,
        wanted: &[String],
        missing: &[Remote],
    ) -> Result<(), Failure> {
        let is_weights = |file: &str| file.ends_with(".safetensors");
        if !missing.iter().any(|remote| is_weights(&remote.name)) {
            return Ok(());
        }
        let (blobs, snapshot) = (self.folder(name).join("blobs"), self.snapshot_of(name, commit));
        // A tokenizer that was fetched before and refused is still there.
        check::tokenizer(&ModelSource::directory(&snapshot)?)?;
        let mut starts = Vec::new();
        for file in wanted.iter().filter(|file| is_weights(file)) {
            let remote = missing.iter().find(|remote| remote.name == *file);
            let here = remote.map_or_else(|| snapshot.join(file), |remote| blobs.join(&remote.etag));
            let start = match (check::start_of(&here), remote) {
                (Some(start), _) => start,
                (None, None) => return Ok(()),
                (None, Some(remote)) => match self.beginning(name, commit, remote, check::has_header) {
                    Ok(start) => start,
                    Err(Failure::Unreachable(_) | Failure::Busy(..)) => return Ok(()),
                    Err(failure) => return Err(failure),
                },
            };
            starts.push((file.clone(), start));
        }
        Ok(check::weights(&snapshot, starts)?)
    }

    /// Fetches files that the hub has described. `arrived` is called with the name of each once it is in the snapshot,
    /// and its error ends the download.
    fn get_described(
        &self,
        name: &HubName,
        commit: &str,
        remotes: &[Remote],
        arrived: &dyn Fn(&str) -> Result<()>,
        report: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let folder = self.folder(name);
        let snapshot = self.snapshot_of(name, commit);
        let total = remotes.iter().map(|r| r.bytes).sum();
        let blobs = folder.join("blobs");
        let here = |remote: &Remote| {
            let size = |name: &str| fs::metadata(blobs.join(name)).ok().map(|file| file.len());
            size(&remote.etag).or_else(|| size(&format!("{}.incomplete", remote.etag))).unwrap_or(0)
        };
        check_space(&blobs, remotes.iter().map(|remote| remote.bytes.saturating_sub(here(remote))).sum())?;
        let mut before = 0;
        for remote in remotes {
            let blob = blobs.join(&remote.etag);
            let _lock = self.lock(&folder, remote, report)?;
            if !blob.is_file() {
                let (url, file) = (self.address(name, commit, &remote.name), remote.name.as_str());
                let mut barren = 0;
                loop {
                    let mut tell = |here: Option<u64>| match here {
                        Some(here) => report(Progress::Bytes { file, done: before + here, total }),
                        None => report(Progress::Checking { file }),
                    };
                    let Err((gained, failure)) = self.get(name, &url, remote, &blob, &mut tell) else { break };
                    // Attempts continue as long as connections bring bytes.
                    barren = if gained { 1 } else { barren + 1 };
                    match failure {
                        Failure::Busy(error, wait) if barren < ATTEMPTS => {
                            self.pause_for(error, wait, barren, report)?;
                        }
                        Failure::Unreachable(error) if barren < ATTEMPTS => {
                            report(Progress::Resuming { file, cause: error.what() });
                            std::thread::sleep(self.pause * barren);
                        }
                        failure => return Err(failure),
                    }
                }
            }
            before += remote.bytes;
            link(&blob, &snapshot, &remote.name, &remote.etag)?;
            arrived(&remote.name)?;
        }
        Ok(())
    }

    /// Repeats a request while the hub says that it is busy.
    pub(super) fn patiently<T>(
        &self,
        report: &mut dyn FnMut(Progress<'_>),
        mut request: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        for attempt in 1..BUSY_ATTEMPTS {
            match request() {
                Err(Failure::Busy(error, wait)) => self.pause_for(error, wait, attempt, report)?,
                other => return other,
            }
        }
        request()
    }

    /// Waits for a busy hub, as long as the hub says, or longer before each attempt.
    ///
    /// # Errors
    /// If the hub asks for a longer wait than [`LONGEST_WAIT`].
    fn pause_for(
        &self,
        error: Error,
        wait: Option<Duration>,
        attempt: u32,
        report: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Failure> {
        let wait = wait.unwrap_or(self.pause * attempt);
        if wait > LONGEST_WAIT {
            return Err(error.help(format!("the hub asks to try again in {} seconds", wait.as_secs())).into());
        }
        report(Progress::Pausing { cause: error.what(), wait });
        std::thread::sleep(wait);
        Ok(())
    }

    pub(super) fn address(&self, name: &HubName, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, name.repo)
    }

    /// Asks for the size of a file and the name of its blob. For large files, the hub answers with a redirect whose
    /// headers have both. That redirect is not followed, because the other host does not send these headers. Others
    /// are: a repository may have a new name, and a mirror may send the client to another host.
    pub(super) fn describe(&self, name: &HubName, commit: &str, file: &str) -> Result<Remote, Failure> {
        if !is_plain_path(file) {
            return Err(Error::new(ErrorKind::Model, "the hub sends a file name that leads out of the model's folder")
                .at(&name.repo)
                .found(format!("{file:?}"))
                .into());
        }
        let mut url = self.address(name, commit, file);
        for _ in 0..REDIRECTS {
            let mut request = self.agent()?.head(&url).config().max_redirects(0).build();
            // The length of a compressed answer would not be that of the file.
            request = request.header("accept-encoding", "identity");
            if let Some(token) = self.token_for(&url) {
                request = request.header("authorization", token);
            }
            let response = request.call().map_err(|e| self.unreachable(&url, &e))?;
            let status = response.status().as_u16();
            let mut said = answers::file(status, response.headers(), None);
            if said == answers::File::Unmeasured {
                said = answers::file(status, response.headers(), self.measure(&url)?);
            }
            match said {
                answers::File::Known { etag, bytes, hashed } => {
                    return Ok(Remote { name: file.to_string(), etag, bytes, hashed });
                }
                answers::File::Moved(location) => url = redirected(&url, &location)?,
                answers::File::Refused => return Err(self.refused(name, &url, &response)),
                answers::File::Unmeasured | answers::File::Unnamed => {
                    return Err(Error::new(ErrorKind::Model, "the hub does not say what this file is")
                        .at(url)
                        .expected("an ETag and a length")
                        .help("is HF_ENDPOINT right?")
                        .into());
                }
            }
        }
        Err(too_many_redirects(&url))
    }

    /// Reads a small file to its end and returns its length, for mirrors that do not send it.
    fn measure(&self, url: &str) -> Result<Option<u64>, Failure> {
        let mut response = self.ask(url, None)?;
        if response.status() != StatusCode::OK {
            return Ok(None);
        }
        let mut body = response.body_mut().with_config().limit(u64::MAX).reader().take(UNKNOWN_LENGTH_LIMIT + 1);
        let bytes = std::io::copy(&mut body, &mut std::io::sink()).map_err(|e| self.broken(url, e))?;
        Ok(Some(bytes).filter(|bytes| *bytes <= UNKNOWN_LENGTH_LIMIT))
    }

    /// Fetches a file with one connection. The bytes are appended to the blob's `.incomplete` file, which gets its
    /// final name when it is complete and its checksum is right. `report` is called with the number of bytes that
    /// have arrived, and with `None` before the checksum is computed. An error comes with whether any byte has
    /// arrived.
    fn get(
        &self,
        name: &HubName,
        url: &str,
        remote: &Remote,
        blob: &Path,
        report: &mut dyn FnMut(Option<u64>),
    ) -> Result<(), (bool, Failure)> {
        let place = blob.with_file_name(format!("{}.incomplete", remote.etag));
        let write_error = |e: std::io::Error| (false, Failure::Final(io("the cache cannot be written", &place, &e)));
        make_parent(&place).map_err(|e| (false, e.into()))?;
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&place).map_err(write_error)?;
        let mut here = file.seek(SeekFrom::End(0)).map_err(write_error)?;
        if here > remote.bytes {
            // It is longer than the file, so it cannot be a part of it.
            file.set_len(0).and_then(|()| file.rewind()).map_err(write_error)?;
            here = 0;
        }
        let broken_at = |here: u64, why: &str| format!("{why} after {here} of {} bytes", remote.bytes);
        let mut gained = false;
        if here < remote.bytes {
            let mut response = self.ask(url, Some(here)).map_err(|e| (false, e))?;
            let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
            match response.status() {
                StatusCode::PARTIAL_CONTENT if range.is_some_and(|r| r.starts_with(&format!("bytes {here}-"))) => {}
                StatusCode::OK => {
                    file.set_len(0).and_then(|()| file.rewind()).map_err(write_error)?;
                    here = 0;
                }
                StatusCode::PARTIAL_CONTENT => {
                    let found = range.unwrap_or("no Content-Range").to_string();
                    let error = Error::new(ErrorKind::Model, "the hub sends a part of the file that was not asked for");
                    return Err((false, error.at(url).expected(format!("bytes {here}-")).found(found).into()));
                }
                _ => return Err((false, self.refused(name, url, &response))),
            }
            let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
            let mut buffer = vec![0; 256 << 10];
            report(Some(here));
            let mut start = Start::of(&remote.name, remote.bytes);
            loop {
                let n =
                    body.read(&mut buffer).map_err(|e| (gained, self.broken(url, broken_at(here, &e.to_string()))))?;
                if n == 0 {
                    break;
                }
                gained = true;
                here += n as u64;
                if here > remote.bytes {
                    drop(fs::remove_file(&place));
                    let error = Error::new(ErrorKind::Model, "the hub sends more bytes than the file has").at(url);
                    return Err((true, error.expected(format!("{} bytes", remote.bytes)).into()));
                }
                file.write_all(&buffer[..n]).map_err(write_error)?;
                report(Some(here));
                if let Err(error) = start.check(&place, here) {
                    drop(fs::remove_file(&place));
                    return Err((true, error.into()));
                }
            }
        }
        if here < remote.bytes {
            return Err((gained, self.broken(url, broken_at(here, "the connection ended"))));
        }
        if remote.hashed {
            report(None);
            if !file.rewind().and_then(|()| sha256(&mut file)).map_err(write_error)?.eq_ignore_ascii_case(&remote.etag)
            {
                // The bytes of an earlier attempt may be wrong, for example after a disk error, so all are removed.
                drop(fs::remove_file(&place));
                return Err((false, self.broken(url, "the bytes do not match the hub's checksum; they were removed")));
            }
        }
        // The bytes must be on the disk before the name says that they are complete.
        file.sync_all().and_then(|()| fs::rename(&place, blob)).map_err(write_error)
    }

    /// Sends a GET request, for the bytes from index `from` on, and follows redirects. Each host but that of the hub
    /// gets it without the token.
    pub(super) fn ask(&self, url: &str, from: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let mut request = self.agent()?.get(&url).config().max_redirects(0).build();
            request = request.header("accept-encoding", "identity");
            if let Some(token) = self.token_for(&url) {
                request = request.header("authorization", token);
            }
            if let Some(from) = from.filter(|from| *from > 0) {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| self.unreachable(&url, &e))?;
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            match location.filter(|_| response.status().is_redirection()) {
                Some(location) => url = redirected(&url, location)?,
                None => return Ok(response),
            }
        }
        Err(too_many_redirects(&url))
    }

    /// The value of the header `Authorization` for a request to `url`. Only the host of the hub gets the token.
    fn token_for(&self, url: &str) -> Option<String> {
        let token = self.token.as_ref().filter(|_| answers::is_same_host(&self.endpoint, url));
        token.map(|token| format!("Bearer {}", token.value))
    }

    fn agent(&self) -> Result<&Agent, Failure> {
        self.agent.as_ref().map_err(|error| Failure::Unreachable(error.clone()))
    }

    fn unreachable(&self, url: &str, cause: &ureq::Error) -> Failure {
        let error = Error::new(ErrorKind::Io, "the hub cannot be reached").at(without_query(url)).found(cause);
        let text = cause.to_string().to_lowercase();
        Failure::Unreachable(match ["certificate", "unknownissuer"].iter().any(|word| text.contains(word)) {
            true => error.help(
                "if a proxy of your network signs connections with a certificate of its own, name the file of that \
                 certificate (PEM) in SSL_CERT_FILE",
            ),
            false => error.help("check the network and HF_ENDPOINT, or pass the directory of a model"),
        })
    }

    pub(super) fn broken(&self, url: &str, cause: impl std::fmt::Display) -> Failure {
        let error = Error::new(ErrorKind::Io, "the connection to the hub broke").at(url).found(cause);
        Failure::Unreachable(error.help("the bytes that have arrived are kept: run the same command again to continue"))
    }
}

/// The address to which the answer of `url` redirects.
/// An address without its query, which may hold a signature that lets others fetch the file.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

fn redirected(url: &str, location: &str) -> Result<String> {
    answers::target(url, location).ok_or_else(|| {
        Error::new(ErrorKind::Model, "the hub redirects to an address that is not one of HTTP, or no longer HTTPS")
            .at(without_query(url))
            .found(without_query(location))
    })
}

fn too_many_redirects(url: &str) -> Failure {
    let error = Error::new(ErrorKind::Model, "the hub redirects too often").at(without_query(url));
    error.found(format!("{REDIRECTS} redirects, one after the other")).help("is HF_ENDPOINT right?").into()
}

/// The SHA-256 of the rest of `file`, from its current position, in hexadecimal digits.
fn sha256(file: &mut File) -> std::io::Result<String> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => context.update(&buffer[..n]),
        }
    }
}
