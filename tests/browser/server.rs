//! A static file server for localhost: enough HTTP for one page and its model.
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use secateur::serve::page::header_lines;

/// Maps a path of the site, beginning with `/`, to the files whose contents are sent, one after the other.
pub type Router = dyn Fn(&str) -> Vec<PathBuf> + Send + Sync;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The first byte that was asked for, if a part of a file was.
    pub start: Option<u64>,
}

/// The headers that a static host is told to send for a path, from `web/_headers`.
fn headers_of(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/_headers");
    let rules = std::fs::read_to_string(file).unwrap_or_default();
    header_lines(&rules, path).iter().map(|line| format!("{line}\r\n")).collect()
}

static VERSION: AtomicU32 = AtomicU32::new(0);

/// From now on, all files are of another version.
pub fn new_version() {
    VERSION.fetch_add(1, Ordering::Relaxed);
}

static LET_GO: AtomicBool = AtomicBool::new(false);

/// From now on, the weights below `/held/` are sent to their end.
pub fn let_go() {
    LET_GO.store(true, Ordering::Relaxed);
}

static REQUESTS: Mutex<Vec<Request>> = Mutex::new(Vec::new());

/// The requests since the last call.
pub fn requests() -> Vec<Request> {
    std::mem::take(&mut *REQUESTS.lock().expect("no test panics"))
}

/// Serves until the process ends. `port` 0 takes a free one; the one taken is returned.
pub fn serve(port: u16, router: impl Fn(&str) -> Vec<PathBuf> + Send + Sync + 'static) -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let port = listener.local_addr()?.port();
    let router: Arc<Router> = Arc::new(router);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let router = Arc::clone(&router);
            // A browser that goes away mid-answer is its own business.
            thread::spawn(move || answer(stream, &*router).ok());
        }
    });
    Ok(port)
}

fn answer(stream: TcpStream, router: &Router) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    // A connection closed over headers that were not read is reset.
    let mut start = None;
    let mut end = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("range")
            && let Some((first, last)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
        {
            (start, end) = (first.parse().ok(), last.parse::<u64>().ok());
        }
    }
    let mut stream = stream;
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    let path = target.split(['?', '#']).next().unwrap_or("/");
    // Nothing here has an escaped name, and no path may climb out of its folder.
    let safe = !path.contains('%') && Path::new(path).components().all(|c| !matches!(c, Component::ParentDir));
    REQUESTS.lock().expect("no test panics").push(Request { method: method.into(), path: path.into(), start });
    if !["GET", "HEAD"].contains(&method) || !safe {
        return write!(stream, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    // Below this folder, connections break in the middle of a file; a part of a file is sent as a whole.
    let breaks = path.starts_with("/broken/");
    let path = path.strip_prefix("/broken").unwrap_or(path);
    // Below this folder, the second half of the weights comes when a test lets it go.
    let held = path.starts_with("/held/") && [".gguf", ".safetensors"].iter().any(|end| path.ends_with(end));
    let path = path.strip_prefix("/held").unwrap_or(path);
    match open_all(router(path)) {
        Ok((kind, length, mut contents)) => {
            let (first, last) = (start.unwrap_or(0), end.unwrap_or(length - 1).min(length - 1));
            let status = match start {
                Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {first}-{last}/{length}"),
                None => "200 OK".into(),
            };
            let sent = last + 1 - first;
            let version = VERSION.load(Ordering::Relaxed);
            let headers = headers_of(path.strip_prefix("/scripted").unwrap_or(path));
            write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {sent}\r\nAccept-Ranges: bytes\r\n\
                 ETag: \"{length}-{version}\"\r\nCache-Control: no-store\r\n{headers}Connection: close\r\n\r\n"
            )?;
            if method == "HEAD" {
                return Ok(());
            }
            let mut left = if breaks && start.is_none() { sent / 2 } else { sent };
            let mut skip = first;
            for content in &mut contents {
                let here = content.metadata()?.len();
                let from = skip.min(here);
                skip -= from;
                content.seek(SeekFrom::Start(from))?;
                if held && start.is_none() {
                    left -= io::copy(&mut content.take(left / 2), &mut stream)?;
                    while !LET_GO.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(20));
                    }
                }
                left -= io::copy(&mut content.take(left), &mut stream)?;
            }
            if breaks && start.is_none() {
                // A browser drops what it has not passed on when a connection breaks, so that on a busy machine nothing
                // would have arrived.
                stream.flush()?;
                thread::sleep(Duration::from_millis(500));
            }
            Ok(())
        }
        Err(_) => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    }
}

fn open_all(files: Vec<PathBuf>) -> io::Result<(&'static str, u64, Vec<File>)> {
    let (mut kind, mut length, mut contents) = ("", 0, Vec::new());
    for file in files {
        let file = if file.is_dir() { file.join("index.html") } else { file };
        kind = content_type(&file);
        contents.push(File::open(&file)?);
        length += contents.last().expect("just pushed").metadata()?.len();
    }
    Ok((kind, length, contents))
}

fn content_type(file: &Path) -> &'static str {
    match file.extension().and_then(|e| e.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}
