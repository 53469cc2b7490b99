//! Errors in OpenAI's form, with the HTTP status that makes clients do the right thing: they give up on a 4xx, and
//! try a 429 or a 5xx again.
use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::Request;
use crate::{Error, ErrorKind};

/// A request that is not answered, and why.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    /// The status of the response.
    pub status: StatusCode,
    /// What went wrong, for people.
    message: String,
    /// The field of the request that is at fault.
    param: Option<String>,
    /// A name for programs.
    code: Option<&'static str>,
    /// After how many seconds it is worth trying again.
    retry_after: Option<u64>,
    /// Whether clients should not try again by themselves.
    once: bool,
}

impl Refusal {
    /// A refusal with a status and a message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None, once: false }
    }

    /// A request that cannot be understood or carried out.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field that would change the answer and is not supported. Leaving it out silently would give an answer that the
    /// client takes for something else.
    pub fn unsupported(field: &str, what: &str) -> Self {
        Self::bad(format!("{field}: {what} is not supported by this server")).at(field).coded("unsupported_parameter")
    }

    /// A panic, or a state that cannot be.
    pub fn bug() -> Self {
        let message = "this is a bug of the server; the request was not answered";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Refuses the first of these fields that was asked for; each has its name and what it would need.
    pub fn unless_supported(fields: &[(&str, &str, bool)]) -> Result<(), Self> {
        match fields.iter().find(|(_, _, asked)| *asked) {
            Some((field, what, _)) => Err(Self::unsupported(field, what)),
            None => Ok(()),
        }
    }

    /// The server cannot take the request now.
    pub fn busy(message: impl Into<String>, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The client has asked for too much at one time.
    pub fn too_many(message: impl Into<String>, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// Names the field at fault.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.param = Some(field.into());
        self
    }

    /// The same refusal in the client's words: `theirs` is the field of its body that asks for what the field `ours`
    /// of a request says.
    pub fn about(mut self, ours: &str, theirs: &str) -> Self {
        self.message = self.message.replace(&format!("`{ours}`"), theirs);
        if self.param.as_deref() == Some(ours) {
            self.param = Some(theirs.into());
        }
        self
    }

    /// The same with the names that several fields have in a body.
    pub fn in_names_of(self, names: &[(&str, &str)]) -> Self {
        names.iter().fold(self, |refusal, (ours, theirs)| refusal.about(ours, theirs))
    }

    /// Adds a name for programs.
    pub fn coded(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The same in the words of an interface that has other names for these fields. The field at fault, or the one in
    /// which it is, is named at the beginning of a message if anywhere.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let renamed = |text: &str| {
            let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            let found =
                names.iter().find_map(|(from, to)| Some((text.strip_prefix(from).filter(|rest| ends(rest))?, to)));
            found.map(|(rest, to)| format!("{to}{rest}"))
        };
        if let Some(param) = self.param.as_deref().and_then(renamed) {
            self.param = Some(param);
            self.message = renamed(&self.message).unwrap_or(self.message);
            for (from, to) in names {
                self.message = self.message.replace(&format!("at: {from}"), &format!("at: {to}"));
            }
        }
        self
    }

    /// The body, as OpenAI's clients expect it.
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

/// The fields of a request that have other names in every body, besides [`Request::OWN_FIELDS`]. For the others see
/// [`Refusal::in_names_of`].
const FIELDS: [(&str, &str); 5] = [
    ("`system`", "messages"),
    ("`context`", "the server's context"),
    ("`stop_ids`", "stop_token_ids"),
    ("`include_stop`", "include_stop_str_in_output"),
    ("`prompt_logprobs`", "logprobs"),
];

/// A text of the library with the names that its fields have in a body.
fn in_names_of_a_body(text: &str) -> String {
    let text = FIELDS.iter().fold(text.to_string(), |text, (ours, theirs)| text.replace(ours, theirs));
    let below = |text: String, name: &str| text.replace(&format!("`{name}`"), &format!("secateur.{name}"));
    Request::OWN_FIELDS.into_iter().fold(text, below)
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let error = error.rewritten(in_names_of_a_body);
        let status = match error.kind() {
            _ if error.what() == super::worker::TOO_LATE => StatusCode::GATEWAY_TIMEOUT,
            _ if error.what() == super::worker::SHUT_DOWN => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Input | ErrorKind::Policy | ErrorKind::Model => StatusCode::BAD_REQUEST,
            ErrorKind::Device | ErrorKind::Io | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // On one line: the layout of a terminal is of no use in a log or an interface.
        let lines: Vec<String> = error.to_string().lines().map(|line| line.trim().to_string()).collect();
        let refusal = Self::new(status, lines.join("; "));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Self { retry_after: Some(5), ..refusal.coded("shutting_down") };
        }
        if status == StatusCode::GATEWAY_TIMEOUT {
            // The same request would take as long again, and clients repeat what failed with a 5xx.
            return Self { once: true, ..refusal.coded("timeout") };
        }
        match error.what() == crate::engine::TOO_LONG {
            // Agents that see this code shorten their conversation and try again.
            true => refusal.at("messages").coded("context_length_exceeded"),
            false => match error.place().filter(|place| is_field(place)) {
                Some(field) => refusal.at(field.trim_matches('`')),
                None => refusal,
            },
        }
    }
}

/// Whether the place of an error is the name of a field, and not a file or a tensor.
fn is_field(place: &str) -> bool {
    let name = place.trim_matches('`');
    let own = name.strip_prefix("secateur.").is_some_and(|name| Request::OWN_FIELDS.contains(&name));
    let known = own || FIELDS.iter().any(|(_, theirs)| *theirs == name);
    known || place.len() > name.len() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.once {
            response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}
