//! How the hub is reached: the proxies, certificates and timeouts that environment variables set.
use std::time::Duration;

use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy, ProxyProtocol};

use crate::{Error, ErrorKind, Result};

/// The variables that name a file of root certificates: OpenSSL's, and the two of Python's requests.
const CERTIFICATES: [&str; 3] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// The variables that forbid fetching. As in `huggingface_hub`, the first of them that is set decides.
pub(super) const OFFLINE: [&str; 2] = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];

/// The variable that forbids fetching, if one does. `var` gives the values of variables that are not empty.
pub(super) fn forbidden(var: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
    let (name, value) = OFFLINE.into_iter().find_map(|name| Some((name, var(name)?)))?;
    matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE").then_some(name)
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// An HTTP client for `endpoint`. Nothing is sent to the network yet.
///
/// # Errors
/// If the file of root certificates cannot be used, or the only proxy is a SOCKS proxy.
pub(super) fn agent(endpoint: &str) -> Result<Agent> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(concat!("secateur/", env!("CARGO_PKG_VERSION")))
        // The hub's own requests follow redirects one by one, so that the token goes to no other host. This rule is
        // for requests for sets of questions.
        .redirect_auth_headers(ureq::config::RedirectAuthHeaders::Never)
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .proxy(proxy(endpoint, var)?);
    if let Some((name, path)) = CERTIFICATES.into_iter().find_map(|name| Some((name, var(name)?))) {
        config = config.tls_config(TlsConfig::builder().root_certs(certificates(name, &path)?).build());
    }
    Ok(config.build().into())
}

/// The root certificates in the PEM file `path`, which replace the built-in ones, as with OpenSSL.
fn certificates(variable: &str, path: &str) -> Result<RootCerts> {
    let unusable = |found: String| {
        Error::new(ErrorKind::Io, format!("the certificates that {variable} names cannot be used"))
            .at(path)
            .expected("a file of certificates in PEM form")
            .found(found)
    };
    let bytes = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let mut found = Vec::new();
    for item in parse_pem(&bytes) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| unusable(e.to_string()))? {
            found.push(certificate);
        }
    }
    match found.is_empty() {
        true => Err(unusable("no certificate".into())),
        false => Ok(found.into()),
    }
}

/// The proxy for `endpoint`: that of its scheme (`HTTPS_PROXY` or `HTTP_PROXY`), else `ALL_PROXY`. `NO_PROXY` lists
/// exceptions. SOCKS proxies are not supported. If there is no other proxy, the connection is refused, because a
/// direct one would bypass the user's settings.
fn proxy(endpoint: &str, var: impl Fn(&str) -> Option<String>) -> Result<Option<Proxy>> {
    let either = |name: &str| Some((name.to_string(), var(name).or_else(|| var(&name.to_lowercase()))?));
    let scheme = if endpoint.starts_with("https") { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let exceptions = either("NO_PROXY").map_or_else(String::new, |(_, list)| list);
    let uri = endpoint.parse::<Uri>().ok();
    let mut socks = None;
    for (name, value) in [scheme, "ALL_PROXY"].into_iter().filter_map(either) {
        let invalid = |found: &str| {
            Error::new(ErrorKind::Io, format!("the address of the proxy in {name} is not valid"))
                .expected("http://HOST:PORT")
                .found(found)
        };
        // The value may contain a password, so messages do not quote it.
        let proxy = Proxy::new(&value).map_err(|e| invalid(&e.to_string()))?;
        let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
        if let Some(user) = proxy.username() {
            builder = builder.username(user);
        }
        if let Some(password) = proxy.password() {
            builder = builder.password(password);
        }
        let listed = exceptions.split(',').map(str::trim).filter(|host| !host.is_empty());
        let proxy = listed.fold(builder, ureq::ProxyBuilder::no_proxy).build().map_err(|e| invalid(&e.to_string()))?;
        if uri.as_ref().is_some_and(|uri| proxy.is_no_proxy(uri)) {
            return Ok(None);
        }
        if matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
            return Ok(Some(proxy));
        }
        socks.get_or_insert((name, format!("{}:{}", proxy.host(), proxy.port())));
    }
    match socks {
        None => Ok(None),
        Some((name, place)) => {
            Err(Error::new(ErrorKind::Io, format!("the proxy in {name} is a SOCKS proxy, which is not supported"))
                .at(place)
                .expected("an HTTP proxy")
                .help(format!("name an HTTP proxy in {scheme}, or put the host of the hub into NO_PROXY")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(endpoint: &str, set: &[(&str, &str)]) -> Result<Option<String>> {
        let var = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        Ok(proxy(endpoint, var)?.map(|proxy| format!("{}:{}", proxy.host(), proxy.port())))
    }

    #[test]
    fn the_proxy_of_the_scheme_comes_first_and_socks_is_never_passed_by() {
        let hub = "https://huggingface.co";
        let is = |set: &[(&str, &str)], expected: Option<&str>| {
            assert_eq!(chosen(hub, set).expect("a choice").as_deref(), expected, "{set:?}");
        };
        is(&[], None);
        is(&[("HTTPS_PROXY", "http://a:1"), ("ALL_PROXY", "socks5://b:2")], Some("a:1"));
        is(&[("https_proxy", "http://u:p@a:1"), ("HTTP_PROXY", "http://c:3")], Some("a:1"));
        is(&[("HTTP_PROXY", "http://c:3")], None);
        is(&[("ALL_PROXY", "http://b:2")], Some("b:2"));
        is(&[("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", "x.org, huggingface.co")], None);
        is(&[("ALL_PROXY", "socks5://b:2"), ("NO_PROXY", "huggingface.co")], None);
        let refused = chosen(hub, &[("ALL_PROXY", "socks5://user:secret@b:2")]).expect_err("SOCKS").to_string();
        for part in ["ALL_PROXY", "SOCKS", "b:2", "HTTPS_PROXY", "NO_PROXY"] {
            assert!(refused.contains(part), "{part:?} is missing from:\n{refused}");
        }
        assert!(!refused.contains("secret"));
        let both = [("ALL_PROXY", "socks5://b:2"), ("HTTP_PROXY", "http://c:3")];
        assert_eq!(chosen("http://127.0.0.1:8131", &both).expect("a choice").as_deref(), Some("c:3"));
    }

    #[test]
    fn the_first_variable_that_is_set_decides_whether_anything_is_fetched() {
        let chosen = |set: &[(&str, &str)]| {
            forbidden(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
        };
        assert_eq!(chosen(&[]), None);
        for yes in ["1", "on", "Yes", "TRUE"] {
            assert_eq!(chosen(&[("HF_HUB_OFFLINE", yes)]), Some("HF_HUB_OFFLINE"), "{yes}");
            assert_eq!(chosen(&[("TRANSFORMERS_OFFLINE", yes)]), Some("TRANSFORMERS_OFFLINE"), "{yes}");
        }
        assert_eq!(chosen(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]), None);
    }

    #[test]
    fn files_without_certificates_are_refused_by_their_variable() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("UTF-8");
        for path in [path, "/no/such/file.pem"] {
            let refused = certificates("SSL_CERT_FILE", path).expect_err("no certificates").to_string();
            assert!(refused.contains("SSL_CERT_FILE") && refused.contains(path), "{refused}");
        }
    }
}
