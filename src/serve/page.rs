//! Serves the browser's page from the executable, and the files of a model for it, with ranges. The page can use two
//! engines: the one that runs in the browser, or a server. The served page says which of them it uses.
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path as InUrl, Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HOST, IF_NONE_MATCH, IF_RANGE,
    RANGE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::refusal::Refusal;
use super::{Names, io_failed};
use crate::{Error, ErrorKind, Result};

/// A file of the page: its name, and its bytes.
pub type PageFile = (&'static str, &'static [u8]);

/// The files of the page, if this build has them (the feature `page`).
pub fn files() -> Option<&'static [PageFile]> {
    #[cfg(feature = "page")]
    return Some(include!(concat!(env!("OUT_DIR"), "/page.rs")));
    #[cfg(not(feature = "page"))]
    None
}

/// The file with the headers of the other files, in the format of static hosts.
const HEADERS: &str = "_headers";
/// The file at the address of the page.
const INDEX: &str = "index.html";
/// Bytes that are read from a model's file at once.
const PIECE: u64 = 1 << 20;

/// The element of `index.html` that names the page's engine, for the engine in the browser and for the server.
const ENGINE: [&str; 2] =
    [r#"<meta name="secateur-engine" content="browser">"#, r#"<meta name="secateur-engine" content="server">"#];

/// The files of the page as they are served.
#[derive(Debug, Clone)]
pub(super) struct Page(Vec<(&'static str, Bytes)>);

impl Page {
    /// The page whose engine runs in the browser.
    fn with_browser(files: &'static [PageFile]) -> Self {
        Self(files.iter().map(|(name, bytes)| (*name, Bytes::from_static(bytes))).collect())
    }

    /// The page whose engine is the server that serves it.
    pub fn with_server(files: &'static [PageFile]) -> Self {
        let mut page = Self::with_browser(files);
        for (_, bytes) in page.0.iter_mut().filter(|(name, _)| *name == INDEX) {
            *bytes = String::from_utf8_lossy(bytes).replacen(ENGINE[0], ENGINE[1], 1).into();
        }
        page
    }

    fn find(&self, path: &str) -> Option<&(&'static str, Bytes)> {
        let name = match path.trim_start_matches('/') {
            "" => INDEX,
            name => name,
        };
        self.0.iter().find(|(known, _)| *known == name && *known != HEADERS)
    }

    /// Whether there is a file at this path.
    pub fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// The response with a file of the page; `None` if there is none at this path.
    pub fn response(&self, path: &str, asked: &HeaderMap) -> Option<Response> {
        let (name, bytes) = self.find(path)?;
        let tag = format!("\"{}\"", &blake3::hash(bytes).to_hex()[..16]);
        let known = asked.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
        let mut response = match known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => Body::from(bytes.clone()).into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
        // The browser asks each time and gets the bytes only when they have changed.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.extend(HeaderValue::from_str(&tag).map(|tag| (ETAG, tag)));
        headers.extend(self.headers(path));
        Some(response)
    }

    /// The headers that `_headers` gives to a path.
    fn headers(&self, path: &str) -> HeaderMap {
        let rules = self.0.iter().find(|(name, _)| *name == HEADERS).map_or(&[][..], |(_, bytes)| bytes);
        let rules = String::from_utf8_lossy(rules);
        let parsed = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?))
        };
        header_lines(&rules, path).into_iter().filter_map(parsed).collect()
    }
}

/// The model that the page is to run, as files.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    folder: PathBuf,
    /// The file name of the model, if it is a single file; `None` if the whole folder is the model.
    file: Option<String>,
}

impl ModelFiles {
    /// The files of a model at this path: a GGUF file (its other parts lie beside it) or a directory.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] for a path without a parent, or one that cannot be read.
    pub fn at(path: &Path) -> Result<Self> {
        let path = path
            .canonicalize()
            .map_err(|e| Error::new(ErrorKind::Io, "the model cannot be read").at(path.display()).found(e))?;
        if path.is_dir() {
            return Ok(Self { folder: path, file: None });
        }
        match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) => {
                Ok(Self { folder: folder.to_path_buf(), file: Some(name.to_string_lossy().into_owned()) })
            }
            _ => Err(Error::new(ErrorKind::Io, "this is no file of a model").at(path.display())),
        }
    }

    /// The address of the model, relative to the page.
    pub fn address(&self) -> String {
        let name = self.file.as_deref().unwrap_or("");
        let escaped: String = name.bytes().fold(String::new(), |mut escaped, byte| {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
                _ => escaped += &format!("%{byte:02X}"),
            }
            escaped
        });
        format!("model/{escaped}")
    }

    /// The path of a file that may be given to the page: one of the model's, directly in its folder.
    fn find(&self, name: &str) -> Option<PathBuf> {
        let is_name = Path::new(name).file_name().is_some_and(|last| last == name);
        let of_model = match &self.file {
            // The parts of a split file have the same beginning.
            Some(file) => name == file || name.ends_with(".gguf") && parts_of_one(name, file),
            None => [".json", ".safetensors", ".jinja", ".gguf"].iter().any(|ending| name.ends_with(ending)),
        };
        let path = self.folder.join(name);
        (is_name && of_model && path.is_file()).then_some(path)
    }
}

/// Whether two names differ only in the number of the part: `NAME-00001-of-00003.gguf`.
fn parts_of_one(a: &str, b: &str) -> bool {
    fn without_number(name: &str) -> Option<(&str, &str)> {
        let (before, total) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (before, number) = before.rsplit_once('-')?;
        number.bytes().all(|b| b.is_ascii_digit()).then_some((before, total))
    }
    without_number(a).is_some() && without_number(a) == without_number(b)
}

/// The data of a server that only serves the page.
struct Site {
    page: Page,
    model: Option<ModelFiles>,
    names: Names,
}

/// The routes of a server that only serves the page.
pub(super) fn router(files: &'static [PageFile], model: Option<ModelFiles>, names: Names) -> Router {
    let site = Arc::new(Site { page: Page::with_browser(files), model, names });
    Router::new()
        .route("/model/", get(|| async { StatusCode::NOT_FOUND }))
        .route("/model/{name}", get(model_file))
        .fallback(page_file)
        .layer(from_fn_with_state(site.clone(), admit))
        .with_state(site)
}

/// Refuses requests under a foreign name that may have been made to resolve to this machine, because they could read
/// the model.
async fn admit(State(site): State<Arc<Site>>, request: Request, next: Next) -> Result<Response, Refusal> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    match site.names.allow(host) {
        true => Ok(next.run(request).await),
        false => Err(Refusal::new(StatusCode::FORBIDDEN, "this server has another name")),
    }
}

async fn page_file(State(site): State<Arc<Site>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    site.page.response(uri.path(), &headers).unwrap_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path())).into_response()
    })
}

/// The headers that rules in the form of static hosts give to a path, each as a line: a rule is a path, or `/*` for
/// all of them, and below it the headers.
pub fn header_lines<'r>(rules: &'r str, path: &str) -> Vec<&'r str> {
    let (mut applies, mut headers) = (false, Vec::new());
    for line in rules.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            Some(header) if applies => headers.push(header),
            Some(_) => (),
            None => applies = line == path || line == "/*",
        }
    }
    headers
}

fn content_type(name: &str) -> &'static str {
    match Path::new(name).extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}

async fn model_file(
    State(site): State<Arc<Site>>,
    InUrl(name): InUrl<String>,
    method: Method,
    asked: HeaderMap,
) -> Result<Response, Refusal> {
    let missing = || Refusal::new(StatusCode::NOT_FOUND, format!("the model has no file {name:?}"));
    let path = site.model.as_ref().and_then(|model| model.find(&name)).ok_or_else(missing)?;
    let unreadable = |e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{name} cannot be read: {e}"));
    let file = File::open(&path).map_err(unreadable)?;
    let facts = file.metadata().map_err(unreadable)?;
    let changed = facts.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let tag = format!("\"{:x}-{:x}\"", facts.len(), changed.map_or(0, |since| since.as_nanos()));
    let whole = 0..facts.len();
    // A range of another version of the file would not fit what the browser has.
    let same = asked.get(IF_RANGE).is_none_or(|known| known.as_bytes() == tag.as_bytes());
    let range = asked.get(RANGE).and_then(|range| range.to_str().ok()).filter(|_| same);
    let (status, range) = match range.map(|range| range_of(range, facts.len())) {
        None | Some(Range::Unknown) => (StatusCode::OK, whole),
        Some(Range::Part(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(Range::Outside) => {
            let range = [(CONTENT_RANGE, format!("bytes */{}", facts.len()))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, range).into_response());
        }
    };
    let mut headers = vec![
        (CONTENT_TYPE, content_type(&name).to_string()),
        (CONTENT_LENGTH, (range.end - range.start).to_string()),
        (ACCEPT_RANGES, "bytes".into()),
        (CACHE_CONTROL, "no-cache".into()),
        (ETAG, tag),
    ];
    if status == StatusCode::PARTIAL_CONTENT {
        headers.push((CONTENT_RANGE, format!("bytes {}-{}/{}", range.start, range.end - 1, facts.len())));
    }
    let headers: HeaderMap =
        headers.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::from_str(&value).ok()?))).collect();
    let body = if method == Method::HEAD { Body::empty() } else { in_pieces(file, range) };
    Ok((status, headers, body).into_response())
}

/// A body that reads a part of a file, a piece at a time.
fn in_pieces(file: File, range: std::ops::Range<u64>) -> Body {
    let pieces = futures_util::stream::unfold((file, range), |(mut file, mut range)| async move {
        if range.is_empty() {
            return None;
        }
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; (range.end - range.start).min(PIECE) as usize];
            let read = file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut piece));
            range.start += piece.len() as u64;
            // After an error the connection is cut, so that the browser sees that the file is incomplete.
            if read.is_err() {
                range.start = range.end;
            }
            (read.map(|()| Bytes::from(piece)), (file, range))
        });
        read.await.ok()
    });
    Body::from_stream(pieces)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// The range of bytes to send.
    Part(std::ops::Range<u64>),
    /// The range begins after the end of the file.
    Outside,
    /// The header has a form that a server may ignore.
    Unknown,
}

/// The bytes that a header `Range` asks of a file of this length. Several ranges at once are ignored, as servers may.
fn range_of(header: &str, length: u64) -> Range {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Unknown;
    };
    let (first, last) = (first.trim(), last.trim());
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(suffix)) if first.is_empty() => length.saturating_sub(suffix)..length,
        _ => return Range::Unknown,
    };
    if range.start < range.end { Range::Part(range) } else { Range::Outside }
}

/// Serves the page until `stop` is set.
///
/// # Errors
/// [`ErrorKind::Io`] where the system gives no threads or sockets.
pub fn run(
    listener: std::net::TcpListener,
    files: &'static [PageFile],
    model: Option<ModelFiles>,
    names: Names,
    stop: Arc<std::sync::atomic::AtomicBool>,
) -> Result<()> {
    let runtime = super::runtime(&listener)?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(io_failed)?;
        let (close, closed) = tokio::sync::oneshot::channel();
        let app = router(files, model, names);
        let accepting = tokio::spawn(super::http::accept(listener, app, closed, std::time::Duration::from_millis(200)));
        super::wait_until(|| stop.load(std::sync::atomic::Ordering::Acquire)).await;
        close.send(()).ok();
        accepting.await.ok();
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_standard() {
        for (header, expected) in [
            ("bytes=0-0", Range::Part(0..1)),
            ("bytes=2-5", Range::Part(2..6)),
            ("bytes=2-", Range::Part(2..10)),
            ("bytes=-3", Range::Part(7..10)),
            ("bytes=-99", Range::Part(0..10)),
            ("bytes=5-99", Range::Part(5..10)),
            ("bytes=5-18446744073709551615", Range::Part(5..10)),
            ("bytes=10-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=5-4", Range::Unknown),
            ("bytes=0-1,4-5", Range::Unknown),
            ("bytes=-", Range::Unknown),
            ("lines=0-1", Range::Unknown),
        ] {
            assert_eq!(range_of(header, 10), expected, "{header}");
        }
    }

    #[test]
    fn only_files_of_the_model_are_given() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "other.gguf", "config.json", "secret.txt"] {
            std::fs::write(folder.path().join(name), "x").expect("it is written");
        }
        let of = |name: &str| ModelFiles::at(&folder.path().join(name)).expect("a model");
        let split = of("m-00001-of-00002.gguf");
        assert_eq!(split.address(), "model/m-00001-of-00002.gguf");
        assert!(split.find("m-00001-of-00002.gguf").is_some() && split.find("m-00002-of-00002.gguf").is_some());
        for name in
            ["other.gguf", "config.json", "secret.txt", "m-00003-of-00002.gguf", "..", "", "/etc/passwd", "../x.gguf"]
        {
            assert!(split.find(name).is_none(), "{name}");
        }
        let directory = ModelFiles::at(folder.path()).expect("a model");
        assert_eq!(directory.address(), "model/");
        assert!(directory.find("config.json").is_some() && directory.find("secret.txt").is_none());
    }

    const FILES: &[PageFile] = &[
        ("index.html", b"page <meta name=\"secateur-engine\" content=\"browser\">"),
        ("_headers", b"# all\n/*\n  A: 1\n/worker.js\n  B: 2\n"),
        ("worker.js", b"code"),
    ];

    #[test]
    fn headers_are_given_to_their_paths() {
        let page = Page::with_browser(FILES);
        let response = |path: &str, headers: &HeaderMap| page.response(path, headers);
        let headers = |path: &str| response(path, &HeaderMap::new()).expect("a file").headers().clone();
        assert!(headers("/").contains_key("a") && !headers("/").contains_key("b"));
        assert!(headers("/worker.js").contains_key("a") && headers("/worker.js").contains_key("b"));
        assert_eq!(headers("/worker.js")[CONTENT_TYPE], "text/javascript; charset=utf-8");
        assert!(response("/_headers", &HeaderMap::new()).is_none() && !page.has("/_headers") && page.has("/"));
        let mut known = HeaderMap::new();
        known.insert(IF_NONE_MATCH, headers("/")[ETAG].clone());
        assert_eq!(response("/", &known).expect("a file").status(), StatusCode::NOT_MODIFIED);
        // The ETag differs between the two engines, so the file is sent again.
        let served = Page::with_server(FILES).response("/", &known).expect("a file");
        assert_eq!(served.status(), StatusCode::OK);
    }

    #[test]
    fn the_page_says_which_engine_it_has() {
        let index = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("web/index.html"));
        let index = index.expect("the page lies in the repository");
        assert_eq!(index.matches(ENGINE[0]).count(), 1, "index.html names its engine once, in this form");
        let of = |page: &Page| String::from_utf8_lossy(&page.find("/").expect("it is there").1).into_owned();
        assert!(of(&Page::with_browser(FILES)).ends_with(ENGINE[0]));
        assert!(of(&Page::with_server(FILES)).ends_with(ENGINE[1]));
    }
}
