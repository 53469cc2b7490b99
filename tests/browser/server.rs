//! A static file server for localhost: enough HTTP for one page and its model.
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Component, Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

/// Maps a path of the site, beginning with `/`, to the files whose contents are sent, one after the other.
pub type Router = dyn Fn(&str) -> Vec<PathBuf> + Send + Sync;

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
    // The other headers do not matter here, yet a connection closed over unread ones is reset.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut stream = stream;
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    let path = target.split(['?', '#']).next().unwrap_or("/");
    // Nothing here has an escaped name, and no path may climb out of its folder.
    let safe = !path.contains('%') && Path::new(path).components().all(|c| !matches!(c, Component::ParentDir));
    if method != "GET" || !safe {
        return write!(stream, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    match open_all(router(path)) {
        Ok((kind, length, contents)) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
                 Cache-Control: no-store\r\nConnection: close\r\n\r\n"
            )?;
            contents.into_iter().try_for_each(|mut content| io::copy(&mut content, &mut stream).map(drop))
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
        _ => "application/octet-stream",
    }
}
