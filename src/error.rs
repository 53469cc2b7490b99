//! One error type for people: what went wrong, where, what was expected, what was found, what to do.
//!
//! A library cannot know how its caller spells a setting. Messages name it by its field in backticks, such as ``
//! `context` `` or `` `max_new_tokens` ``; the command line writes the option in its place.
use std::fmt;

/// Result with secateur's [`struct@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error is about. Front-ends map it to exit codes and HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request: a setting, a prompt, a list of ids.
    Input,
    /// The model directory: config, weights, tokenizer, chat template.
    Model,
    /// The adapter: none found, a limit exceeded, lost.
    Device,
    /// The pruning method: a policy that cannot run with this model or these settings, or a plan that breaks the
    /// rules.
    Policy,
    /// A file that cannot be read or written.
    Io,
    /// A broken invariant of secateur itself. Please report it as a bug.
    Internal,
}

/// An error as a person reads it. Only the statement of what went wrong is required; each further part is printed on
/// a line of its own.
///
/// ```
/// use secateur::{Error, ErrorKind};
/// let e = Error::new(ErrorKind::Model, "tensor has the wrong shape")
///     .at("model.safetensors: model.norm.weight")
///     .expected("[896]")
///     .found("[895]")
///     .help("is config.json the one that came with these weights?");
/// assert_eq!(e.kind(), ErrorKind::Model);
/// ```
#[derive(Clone)]
pub struct Error(Box<ErrorFields>);

#[derive(Clone)]
struct ErrorFields {
    kind: ErrorKind,
    what: String,
    at: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    help: Option<String>,
}

impl Error {
    /// An error of `kind` that says `what` went wrong.
    pub fn new(kind: ErrorKind, what: impl fmt::Display) -> Self {
        let what = what.to_string();
        Self(Box::new(ErrorFields { kind, what, at: None, expected: None, found: None, help: None }))
    }

    /// Where it went wrong: a file, a tensor, or a setting by its field in backticks.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.at = Some(place.to_string());
        self
    }

    /// What should have been there.
    #[must_use]
    pub fn expected(mut self, expected: impl fmt::Display) -> Self {
        self.0.expected = Some(expected.to_string());
        self
    }

    /// What was there instead.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.0.found = Some(found.to_string());
        self
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn help(mut self, help: impl fmt::Display) -> Self {
        self.0.help = Some(help.to_string());
        self
    }

    /// This error with the parts that secateur wrote changed by `rewrite`: all but what was found, which may quote a
    /// file. A front-end translates the names of settings with it.
    #[must_use]
    pub fn rewritten(&self, rewrite: impl Fn(&str) -> String) -> Self {
        let ErrorFields { kind, what, at, expected, found, help } = &*self.0;
        let all = |text: &Option<String>| text.as_deref().map(&rewrite);
        let (at, expected, help) = (all(at), all(expected), all(help));
        Self(Box::new(ErrorFields { kind: *kind, what: rewrite(what), at, expected, found: found.clone(), help }))
    }

    /// The same error; where it has no place, `place` becomes its place.
    pub(crate) fn or_at(mut self, place: impl fmt::Display) -> Self {
        self.0.at.get_or_insert_with(|| place.to_string());
        self
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Where it went wrong, if that is known.
    pub fn place(&self) -> Option<&str> {
        self.0.at.as_deref()
    }

    /// The first line: what went wrong.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// What went wrong, what was expected and what was found, on one line, for use within the message of another
    /// error that says where.
    pub(crate) fn on_one_line(&self) -> String {
        let ErrorFields { what, expected, found, .. } = &*self.0;
        let parts: Vec<String> = [("expected", expected), ("found", found)]
            .into_iter()
            .filter_map(|(label, value)| value.as_ref().map(|value| format!("{label} {value}")))
            .collect();
        if parts.is_empty() { what.clone() } else { format!("{what}: {}", parts.join(", ")) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorFields { what, at, expected, found, help, .. } = &*self.0;
        write!(f, "{what}")?;
        for (label, value) in [("at", at), ("expected", expected), ("found", found), ("help", help)] {
            if let Some(value) = value {
                write!(f, "\n  {label:>8}: {value}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {}
