//! Sets of questions that are known by name, fetched once from the places where their authors publish them.
//!
//! A set is a file at one commit of a public repository, and its SHA-256 is known, so that two evaluations of
//! `aime24` ask the same questions wherever they are made.
use std::io::Read;
use std::path::{Path, PathBuf};

use super::connection;
use crate::{Error, ErrorKind, Result, file};

/// A set of questions with answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Benchmark {
    /// The name of the set, as on the command line.
    pub name: &'static str,
    /// What it is, with its number of questions.
    pub title: &'static str,
    /// Repository, commit and path of the file.
    place: &'static str,
    bytes: u64,
    sha256: &'static str,
}

/// The known sets. Each has one JSON object on a line.
pub const BENCHMARKS: [Benchmark; 4] = [
    Benchmark {
        name: "aime24",
        title: "AIME 2024, 30 questions",
        place: "NVIDIA/NeMo-Skills/0b012df8a09cd4730d31b16e90a0d8f13d145fb8/nemo_skills/dataset/aime24/test.txt",
        bytes: 61_514,
        sha256: "e428f83ec735201c9db2a232727f4c20dbce87079ed386b6e3fb7f756d078756",
    },
    Benchmark {
        name: "amc23",
        title: "AMC 2023, 40 questions",
        place: "hkust-nlp/simpleRL-reason/cf1c7858bfc145a27aa733e75d930d34f0d318a6/examples/simplelr_math_eval/data/amc23/test.jsonl",
        bytes: 27_631,
        sha256: "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4",
    },
    Benchmark {
        name: "math500",
        title: "MATH-500, 500 questions",
        place: "Zefan-Cai/R-KV/d15c9767e67c2bd9807128fecc35223fa2484a69/data/math.jsonl",
        bytes: 446_564,
        sha256: "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
    },
    Benchmark {
        name: "gsm8k",
        title: "GSM8K, the 1,319 questions of its test split",
        place: "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/test.jsonl",
        bytes: 749_738,
        sha256: "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    },
];

impl Benchmark {
    /// The set of that name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        BENCHMARKS.iter().find(|benchmark| benchmark.name == name)
    }

    /// The text of the set: from the cache, or fetched into it. `$SECATEUR_BENCHMARKS` may name another address or a
    /// mirror under which the repositories lie, and `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` forbids
    /// fetching, as with models.
    ///
    /// # Errors
    /// If the set is not cached and cannot be fetched, or what was fetched is another file.
    pub fn text(&self) -> Result<String> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = match var("XDG_CACHE_HOME") {
            Some(cache) => Some(PathBuf::from(cache)),
            None => std::env::home_dir().map(|home| home.join(".cache")),
        };
        let endpoint = var("SECATEUR_BENCHMARKS").unwrap_or_else(|| "https://raw.githubusercontent.com".into());
        self.get(cache.map(|cache| cache.join("secateur/benchmarks")), &endpoint, connection::forbidden(var))
    }

    fn get(&self, cache: Option<PathBuf>, endpoint: &str, offline: Option<&str>) -> Result<String> {
        let cached = cache.map(|cache| cache.join(format!("{}.jsonl", self.name)));
        if let Some(text) =
            cached.as_ref().and_then(|path| std::fs::read(path).ok()).and_then(|bytes| self.checked(bytes))
        {
            return Ok(text);
        }
        let url = format!("{}/{}", endpoint.trim_end_matches('/'), self.place);
        let failed = |what: &str, found: String| {
            Error::new(ErrorKind::Io, format!("{} {what}", self.title)).at(&url).found(found).help(
                "fetch the file by other means and give its path, or set SECATEUR_BENCHMARKS to a mirror of the address",
            )
        };
        if let Some(variable) = offline {
            return Err(failed("is not in the cache", format!("{variable} forbids fetching it")));
        }
        let unreachable = |found: String| failed("cannot be fetched", found);
        let mut response = connection::agent(endpoint)?.get(&url).call().map_err(|e| unreachable(e.to_string()))?;
        if !response.status().is_success() {
            return Err(unreachable(format!("the answer {}", response.status())));
        }
        let mut bytes = Vec::new();
        let mut body = response.body_mut().as_reader().take(self.bytes + 1);
        body.read_to_end(&mut bytes).map_err(|e| unreachable(e.to_string()))?;
        let found = format!("{} bytes with SHA-256 {}", bytes.len(), sha256(&bytes));
        let Some(text) = self.checked(bytes) else {
            let expected = format!("{} bytes with SHA-256 {}", self.bytes, self.sha256);
            return Err(failed("is another file there", found).expected(expected));
        };
        // If the set cannot be written to the cache, it is fetched again next time. That is no reason to stop.
        if let Some(path) = cached
            && let Err(e) = keep(&path, &text)
        {
            log::debug!("{e}");
        }
        Ok(text)
    }

    /// The bytes as text, if they are those of the set.
    fn checked(&self, bytes: Vec<u8>) -> Option<String> {
        let is_it = bytes.len() as u64 == self.bytes && sha256(&bytes) == self.sha256;
        is_it.then(|| String::from_utf8(bytes).ok()).flatten()
    }
}

fn keep(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::new(ErrorKind::Io, "the cache cannot be written").at(folder.display()).found(e))?;
    }
    file::write_whole(path, text)
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_published_bytes_are_the_set() {
        let text = "{\"question\": \"1+1?\", \"answer\": 2}\n";
        let sha: &'static str = sha256(text.as_bytes()).leak();
        let set = Benchmark { bytes: text.len() as u64, sha256: sha, ..BENCHMARKS[0] };
        assert_eq!(set.checked(text.into()).as_deref(), Some(text));
        assert_eq!(set.checked(text.replace('2', "3").into()), None);
        assert_eq!(set.checked(text.trim().into()), None);
        // The first vector of FIPS 180-2.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    /// Answers `count` requests with `body`, and returns the paths that were asked for.
    fn serve(body: &'static str, status: &'static str, count: usize) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = std::thread::spawn(move || {
            let one = || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stream.try_clone().unwrap()));
                let first = lines.next().unwrap().unwrap();
                while !lines.next().unwrap().unwrap().is_empty() {}
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                std::io::Write::write_all(&mut stream, (head + body).as_bytes()).unwrap();
                first.split(' ').nth(1).unwrap().to_string()
            };
            (0..count).map(|_| one()).collect()
        });
        (endpoint, asked)
    }

    #[test]
    fn a_set_is_fetched_once_and_checked() {
        const TEXT: &str = "{\"question\": \"1+1?\", \"answer\": 2}\n";
        let set = Benchmark {
            place: "a/b/c.jsonl",
            bytes: TEXT.len() as u64,
            sha256: sha256(TEXT.as_bytes()).leak(),
            ..BENCHMARKS[0]
        };
        let folder = tempfile::tempdir().unwrap();
        let cache = || Some(folder.path().join("new"));
        let refused =
            |endpoint: &str, offline: Option<&str>| set.get(cache(), endpoint, offline).unwrap_err().to_string();
        assert!(refused("http://127.0.0.1:1", Some("TRANSFORMERS_OFFLINE")).contains("TRANSFORMERS_OFFLINE forbids"));
        assert!(refused("http://127.0.0.1:1", None).contains("cannot be fetched"));
        for (body, status, said) in [
            ("no", "404 Not Found", "404"),
            ("{}", "200 OK", "another file"),
            // At most one byte more than the file has is read.
            (concat!("{\"question\": \"1+1?\", \"answer\": 2}\n", "and on"), "200 OK", "another file"),
        ] {
            let (endpoint, asked) = serve(body, status, 1);
            let error = refused(&endpoint, None);
            assert!(error.contains(said) && error.contains("SECATEUR_BENCHMARKS"), "{error}");
            asked.join().unwrap();
        }
        let (endpoint, asked) = serve(TEXT, "200 OK", 1);
        assert_eq!(set.get(cache(), &format!("{endpoint}/"), None).unwrap(), TEXT);
        assert_eq!(asked.join().unwrap(), ["/a/b/c.jsonl"]);
        // The server has ended, so the set can only come from the cache.
        assert_eq!(set.get(cache(), &endpoint, Some("HF_HUB_OFFLINE")).unwrap(), TEXT);
        // A file that was changed is fetched again.
        std::fs::write(folder.path().join("new/aime24.jsonl"), "{}").unwrap();
        let (endpoint, asked) = serve(TEXT, "200 OK", 1);
        assert_eq!(set.get(cache(), &endpoint, None).unwrap(), TEXT);
        asked.join().unwrap();
        // Fetching also works without a cache.
        let (endpoint, asked) = serve(TEXT, "200 OK", 1);
        assert_eq!(set.get(None, &endpoint, None).unwrap(), TEXT);
        asked.join().unwrap();
    }
}
