//! Explains why the hub has refused a request.
use std::time::Duration;

use ureq::http::Response;

use super::{Failure, Hub, HubName};
use crate::{Error, ErrorKind};

impl Hub {
    /// The failure for an answer with which the hub refuses a request.
    pub(super) fn refused<B>(&self, name: &HubName, url: &str, response: &Response<B>) -> Failure {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        let status = response.status();
        let page = format!("{}/{}", self.endpoint, name.repo);
        let with_token = match &self.token {
            None => "set HF_TOKEN to a token of your account (or run `hf auth login`)".to_string(),
            Some(token) => format!("use a token with access to it, because that in {} has none", token.place),
        };
        let error = |what: String| Error::new(ErrorKind::Model, what).at(url).found(format!("{status} {code}").trim());
        let wait = header("retry-after").parse().ok().map(Duration::from_secs);
        let error = match (status.as_u16(), code) {
            (_, "GatedRepo") => {
                error(format!("{} is only available to users who have accepted its conditions", name.repo))
                    .help(format!("accept them at {page}; then {with_token}"))
            }
            (_, "RevisionNotFound") => error(format!("{} has no revision {}", name.repo, name.revision)),
            (401, _) if message.to_lowercase().contains("credentials") && self.token.is_some() => {
                let place = self.token.as_ref().map_or("", |token| &token.place);
                error(format!("the hub does not accept the token in {place}")).found(message).help(format!(
                    "it may have expired: replace it, or remove it from {place}, because public models need none"
                ))
            }
            (401 | 403, _) => {
                error(format!("the hub does not permit access to {}, or there is no such model", name.repo))
                    .help(format!("check the name; for a private or gated model {with_token}"))
            }
            (404, _) => error(format!("the hub has no model {}", name.repo))
                .help("check the name; a directory on this machine would have to exist"),
            (429, _) => {
                let busy = error("the hub refuses so many requests".into());
                return Failure::Busy(busy.help("try again later; a token in HF_TOKEN raises the limit"), wait);
            }
            (503, _) => {
                return Failure::Busy(error("the hub reports an internal error".into()).help("try again later"), wait);
            }
            (500..=599, _) => {
                return Failure::Unreachable(error("the hub reports an internal error".into()).help("try again later"));
            }
            _ => error("the hub sends an unexpected status".into()),
        };
        Failure::Final(error)
    }
}
