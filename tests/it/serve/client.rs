//! A client over plain sockets, so that the tests see every byte and can disconnect at any time.
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::Server;

/// A response that has arrived completely.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The message of an error in OpenAI's form, which every refusal has.
    #[track_caller]
    pub fn refusal(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let error = &self.json()["error"];
        assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(), "{self:?}");
        error["message"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_string()
    }
}

/// A response whose body is still arriving.
pub struct Stream {
    reader: BufReader<TcpStream>,
    pub head: String,
}

impl Stream {
    /// The next piece of a chunked body; `None` at its end.
    pub fn chunk(&mut self) -> Option<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("the size of a chunk");
        let size = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        let mut bytes = vec![0; size + 2];
        self.reader.read_exact(&mut bytes).expect("a chunk");
        bytes.truncate(size);
        (size > 0).then(|| String::from_utf8(bytes).expect("chunks end between characters"))
    }

    /// The rest of the body.
    pub fn rest(mut self) -> String {
        std::iter::from_fn(|| self.chunk()).collect()
    }

    pub fn status(&self) -> u16 {
        status(&self.head)
    }
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{head:?}"))
}

/// The data of a stream's events, `[DONE]` left out, and the comments.
pub fn events(body: &str) -> (Vec<Value>, Vec<&str>) {
    let mut data = Vec::new();
    let mut comments = Vec::new();
    for line in body.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("data: ") {
            Some("[DONE]") => (),
            Some(json) => data.push(serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"))),
            None => {
                comments.push(line.strip_prefix(": ").unwrap_or_else(|| panic!("neither data nor comment: {line:?}")));
            }
        }
    }
    (data, comments)
}

/// The joined texts of a stream: thinking, content, and the reason of the end.
pub fn texts(chunks: &[Value], choice: usize) -> (String, String, Option<String>) {
    let (mut thinking, mut content, mut finish) = (String::new(), String::new(), None);
    for entry in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().into_iter().flatten()) {
        if entry["index"] != choice {
            continue;
        }
        thinking += entry["delta"]["reasoning_content"].as_str().unwrap_or("");
        content += entry["delta"]["content"].as_str().unwrap_or("");
        finish = entry["finish_reason"].as_str().map(str::to_string).or(finish);
    }
    (thinking, content, finish)
}

/// A chat with one message and further fields.
pub fn chat(message: &str, fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": message}], "temperature": 0});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

impl Server {
    /// A connection on which nothing was sent.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        stream
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let host = self.address;
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{kind}{headers}");
        let length = body.len();
        // The server may refuse a request, and close its side, before it has read all of it.
        match write!(stream, "{head}content-length: {length}\r\n\r\n{body}").map_err(|e| e.kind()) {
            Ok(()) | Err(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(kind) => panic!("the request is not sent: {kind}"),
        }
        stream
    }

    /// Sends a request and reads the head of the response.
    pub fn open(&self, method: &str, path: &str, headers: &str, body: &str) -> Stream {
        let mut reader = BufReader::new(self.send(method, path, headers, body));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("a head") > 0, "the connection was closed: {head:?}");
        }
        Stream { reader, head }
    }

    /// Sends a request and reads the whole response.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let mut stream = self.open(method, path, headers, body);
        let head = std::mem::take(&mut stream.head);
        let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
            stream.rest()
        } else {
            let mut body = String::new();
            stream.reader.read_to_string(&mut body).expect("a body of text");
            body
        };
        Reply { status: status(&head), head, body }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.get_with(path, None)
    }

    pub fn get_with(&self, path: &str, authorization: Option<&str>) -> Reply {
        let header = authorization.map_or(String::new(), |value| format!("authorization: {value}\r\n"));
        self.request("GET", path, &header, "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, "", &body.to_string())
    }

    /// A chat that is answered with one object.
    #[track_caller]
    pub fn chat(&self, body: &Value) -> Value {
        let reply = self.post("/v1/chat/completions", body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// The chat of [`chat`](Self::chat) as a stream.
    pub fn streamed(&self, body: &Value) -> Stream {
        let mut body = body.clone();
        body["stream"] = true.into();
        self.open("POST", "/v1/chat/completions", "", &body.to_string())
    }

    /// The value of a metric without labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("secateur_{name} ")));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is missing in {text}"))
    }
}
