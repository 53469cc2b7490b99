//! Interprets the answers of a hub. The functions here send nothing and write nothing, so that tests can also try
//! answers that no test server sends.
use std::collections::BTreeSet;

use serde_json::Value;
use ureq::http::{HeaderMap, Response, Uri};

use super::cache::{is_commit, is_plain, is_plain_path, shards};
use super::check;
use super::{Hub, HubName, Token};
use crate::{Error, ErrorKind, Result};

/// The current commit of a revision, and the names of its files, from the JSON that `url` answered.
///
/// # Errors
/// If the answer does not describe a model.
pub(super) fn model(url: &str, text: &[u8]) -> Result<(String, BTreeSet<String>)> {
    let json: Value = serde_json::from_slice(text).unwrap_or_default();
    let commit = json["sha"].as_str().filter(|sha| is_commit(sha));
    let files = json["siblings"].as_array().map(|list| list.iter().filter_map(|f| f["rfilename"].as_str()));
    match (commit, files) {
        (Some(commit), Some(files)) => Ok((commit.to_string(), files.map(String::from).collect())),
        _ => Err(Error::new(ErrorKind::Model, "the answer of the hub does not describe a model")
            .at(url)
            .found(String::from_utf8_lossy(&text[..text.len().min(320)]).chars().take(80).collect::<String>())
            .help("is HF_ENDPOINT right?")),
    }
}

/// What a hub's answer says of a file, before the file is fetched.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum File {
    /// The name of the blob, its length in bytes, and whether the name is the SHA-256 of the file.
    Known { etag: String, bytes: u64, hashed: bool },
    /// The file is at another address, as the header `Location` writes it: the repository was renamed, or a mirror
    /// sends the client to another host.
    Moved(String),
    /// The answer has a name but no length.
    Unmeasured,
    /// The answer lacks a name that can be used as a file name.
    Unnamed,
    /// The hub has refused the request.
    Refused,
}

/// What the status and the headers of an answer say of a file. `measured` is the length in bytes, if it was found in
/// another way.
pub(super) fn file(status: u16, headers: &HeaderMap, measured: Option<u64>) -> File {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let linked = header("x-linked-etag");
    let etag = linked.or(header("etag")).map(|e| e.trim_start_matches("W/").trim_matches('"'));
    // Of a large file, the hub itself says what it is, and redirects to a host that does not. Any other redirect has
    // an ETag and a length of its own, if it has them.
    let is_told = linked.is_some() || header("x-linked-size").is_some();
    let told = header("x-linked-size").or(header("content-length")).and_then(|n| n.parse().ok());
    match (status, etag, told.or(measured), header("location")) {
        (200, Some(_), None, _) => File::Unmeasured,
        (300..=399, _, _, Some(target)) if !is_told || target.starts_with('/') && !target.starts_with("//") => {
            File::Moved(target.to_string())
        }
        (200..=399, Some(etag), Some(bytes), _) if is_plain(etag) => {
            // The hub names large files by their SHA-256. A mirror may use other names; then only the length is
            // checked.
            let hashed = linked.is_some() && etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
            File::Known { etag: etag.to_string(), bytes, hashed }
        }
        (200..=399, ..) => File::Unnamed,
        _ => File::Refused,
    }
}

/// The address that a `Location` in the answer of `url` stands for; `None` if it is not one of HTTP, or if it leaves
/// HTTPS, behind which others on the way could choose what is read.
pub(super) fn target(url: &str, location: &str) -> Option<String> {
    let base: Uri = url.parse().ok()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let begins = |start: &str| location.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start));
    let target = match location {
        _ if begins("http://") || begins("https://") => location.to_string(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ if location.split(['/', '?']).next().is_some_and(|start| start.contains(':')) => return None,
        _ => {
            let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        }
    };
    let leaves = scheme == "https" && !target.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("https:"));
    (!leaves).then_some(target)
}

/// Whether `url` is on the host of `endpoint`, so that it may get the token: the scheme, the host and the port are the
/// same, or the scheme has changed from HTTP to HTTPS at their own ports.
pub(super) fn is_same_host(endpoint: &str, url: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        let is_https = uri.scheme_str()? == "https";
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        Some((is_https, uri.host()?.to_ascii_lowercase(), port))
    };
    match (origin(endpoint), origin(url)) {
        (Some((false, host, 80)), Some((true, other, 443))) => host == other,
        (Some(own), Some(other)) => own == other,
        _ => false,
    }
}

/// Reads one answer in every way in which the client reads answers, for fuzzing. Returns the result of each way.
pub fn read_all(status: u16, headers: &[(String, String)], body: &[u8]) -> Vec<Result<String>> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let Ok(response) = response.body(()) else { return Vec::new() };
    let name = HubName { repo: "org/name".into(), revision: "main".into(), file: None, kind: None };
    let token = Some(Token { value: "hf_token".into(), place: "HF_TOKEN".into() });
    let refused = [None, token].map(|token| {
        let hub = Hub::without_network(token);
        Err(hub.refused(&name, "URL", &response).into_error())
    });
    let listed = model("URL", body).map(|(commit, files)| {
        let plain = files.iter().filter(|file| is_plain_path(file)).count();
        let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|file| file.ends_with(".gguf")).collect();
        let preferred = if ggufs.is_empty() { "" } else { check::preferred(&ggufs) };
        format!("{commit}: {plain} of {} files, {preferred}", files.len())
    });
    let hub = Hub::without_network(None);
    let parts = model("URL", body).and_then(|(_, files)| {
        let parts: Result<Vec<usize>> =
            files.iter().map(|file| Ok(hub.parts_on_hub(&name, file, &files)?.len())).collect();
        parts.map(|parts| format!("{} parts", parts.iter().sum::<usize>()))
    });
    let index = shards(body)
        .map(|shards| format!("{} shards", shards.len()))
        .map_err(|()| Error::new(ErrorKind::Model, "the index of the weights is malformed"));
    let described = [None, Some(1)].map(|measured| Ok(format!("{:?}", file(status, response.headers(), measured))));
    refused.into_iter().chain([listed, parts, index]).chain(described).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, headers: &[(&'static str, &str)], measured: Option<u64>) -> File {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a value"));
        }
        file(status, &map, measured)
    }

    #[test]
    fn what_the_hub_says_of_a_file() {
        let known = |etag: &str, bytes, hashed| File::Known { etag: etag.into(), bytes, hashed };
        let sha = "0123456789abcdef".repeat(4);
        let large = [("x-linked-etag", &*format!("\"{sha}\"")), ("x-linked-size", "7"), ("content-length", "1")];
        assert_eq!(said(302, &large, None), known(&sha, 7, true));
        assert_eq!(said(200, &[("etag", "W/\"abc\""), ("content-length", "3")], None), known("abc", 3, false));
        assert_eq!(said(200, &[("etag", "abc")], None), File::Unmeasured);
        assert_eq!(said(200, &[("etag", "abc")], Some(5)), known("abc", 5, false));
        assert_eq!(said(307, &[("location", "/other/name")], None), File::Moved("/other/name".into()));
        for unnamed in ["", "..", "a/b", ".hidden"] {
            assert_eq!(said(200, &[("etag", unnamed), ("content-length", "3")], None), File::Unnamed, "{unnamed:?}");
        }
        for elsewhere in ["//other.host/x", "https://other.host/x"] {
            let redirect = [("location", elsewhere), ("etag", "abc"), ("content-length", "0")];
            assert_eq!(said(308, &redirect, None), File::Moved(elsewhere.into()));
            let told = [&redirect[..], &large[..2]].concat();
            assert_eq!(said(302, &told, None), known(&sha, 7, true));
        }
        assert_eq!(said(302, &[], None), File::Unnamed);
        assert_eq!(said(404, &[("etag", "abc"), ("content-length", "3")], None), File::Refused);
    }

    #[test]
    fn redirects_lead_to_addresses_and_the_token_stays_on_the_host() {
        let from = "https://hub.org:8443/api/a?b=c";
        for (location, expected) in [
            ("/x/y", Some("https://hub.org:8443/x/y")),
            ("//other.org/x", Some("https://other.org/x")),
            ("HTTPS://other.org/x?y", Some("HTTPS://other.org/x?y")),
            // What comes without encryption can be another file.
            ("HTTP://other.org/x?y", None),
            ("z?next=http://c", Some("https://hub.org:8443/api/z?next=http://c")),
            ("file:///etc/passwd", None),
            ("ftp://other.org/x", None),
        ] {
            assert_eq!(target(from, location).as_deref(), expected, "{location}");
        }
        assert_eq!(target("http://hub.org/a", "http://other.org/x").as_deref(), Some("http://other.org/x"));
        let hub = "https://hub.org";
        assert!(["https://hub.org/x", "https://HUB.org:443/x"].into_iter().all(|url| is_same_host(hub, url)));
        for other in ["https://hub.org:8443/x", "http://hub.org/x", "https://hub.org.evil/x", "https://a.hub.org", "x"]
        {
            assert!(!is_same_host(hub, other), "{other}");
        }
        assert!(is_same_host("http://hub.org", "https://hub.org/x"));
        assert!(!is_same_host("http://hub.org:8080", "https://hub.org/x"));
        assert!(!is_same_host(hub, "https://hub.org@evil.org/x"));
    }
}
