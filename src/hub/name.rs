//! The name of a model on the hub.
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// `ORG/NAME`, `ORG/NAME@REVISION` or, for a GGUF file, `ORG/NAME/FILE.gguf`, where FILE may lie in folders, or
/// `ORG/NAME:KIND` with its quantization, such as `Q4_K_M`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// The repository, as `ORG/NAME`.
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The file, if the name is that of a single file; with its folders in the repository. It may be any part of a
    /// split GGUF file.
    pub file: Option<String>,
    /// The quantization of a GGUF file, if the name has that in place of a file.
    pub kind: Option<String>,
}

/// The addresses of the hub.
const HOSTS: [&str; 3] = ["huggingface.co/", "www.huggingface.co/", "hf.co/"];

impl FromStr for HubName {
    type Err = Error;

    /// Parses a name, or the address of a model's page or of one of its files, as copied from a browser.
    fn from_str(text: &str) -> Result<Self> {
        let malformed = |help: &str| {
            let error = Error::new(ErrorKind::Input, "not the name of a model on the hub")
                .expected("ORG/NAME, ORG/NAME@REVISION, ORG/NAME/FILE.gguf, or ORG/NAME:KIND such as Q4_K_M")
                .found(format!("{text:?}"));
            if help.is_empty() { error } else { error.help(help) }
        };
        let name = plain_name(text);
        // `@REVISION` and `:KIND` may come in either order.
        let (path, kind) = match name.split_once(':') {
            Some((path, kind)) => (path, Some(kind)),
            None => (&name[..], None),
        };
        let (kind, behind) = match kind.and_then(|kind| kind.split_once('@')) {
            Some((kind, revision)) => (Some(kind), Some(revision)),
            None => (kind, None),
        };
        let (path, revision) = match (path.split_once('@'), behind) {
            (Some(_), Some(_)) => return Err(malformed("")),
            (Some((path, revision)), None) => (path, revision),
            (None, revision) => (path, revision.unwrap_or("main")),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (repo, file) = match parts[..] {
            // This looks like a file, not like a repository.
            [_, name] if name.ends_with(".gguf") => return Err(malformed("")),
            [_, _] => (path.to_string(), None),
            [org, name, .., file] if file.ends_with(".gguf") => (format!("{org}/{name}"), Some(parts[2..].join("/"))),
            _ => return Err(malformed("")),
        };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_good = |part: &str| !part.is_empty() && part.chars().all(is_allowed) && !part.starts_with('.');
        let is_good_revision = !revision.is_empty() && revision.split('/').all(is_good);
        let is_good_kind = kind.is_none_or(|kind| is_good(kind) && is_quantization(kind) && file.is_none());
        // The address names the hub twice. Without this check, its rest would be read as another name.
        let is_address = HOSTS.iter().any(|host| host.strip_suffix('/') == Some(parts[0]));
        match parts.iter().all(|part| is_good(part)) && is_good_revision && is_good_kind && !is_address {
            true => Ok(Self { repo, revision: revision.to_string(), file, kind: kind.map(String::from) }),
            false => Err(malformed("")),
        }
    }
}

/// Whether this is how the quantization of a GGUF file is called: `Q4_K_M`, `IQ4_XS`, `BF16`, `UD-Q4_K_XL` and the
/// like.
fn is_quantization(kind: &str) -> bool {
    let kind = kind.to_lowercase();
    let kind = kind.strip_prefix("ud-").unwrap_or(&kind);
    let begins = ["iq", "q", "tq", "bf", "f", "mxfp", "fp"].iter().find_map(|begin| kind.strip_prefix(begin));
    begins.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Converts an address on the hub to the form of a name: scheme, host and query are removed, and the revision of a
/// page (`/tree/REVISION`) or of a file (`/blob/REVISION/FILE`) follows an `@`. Other text is returned as it is.
fn plain_name(text: &str) -> String {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let Some(path) = HOSTS.iter().find_map(|host| bare.strip_prefix(host)) else {
        // The completion of a shell may have added a slash to a name.
        let name = text.strip_suffix('/').unwrap_or(text);
        return if name.split('/').count() == 2 { name } else { text }.to_string();
    };
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let suffix = |revision: &str| if revision == "main" { String::new() } else { format!("@{revision}") };
    match path.split('/').collect::<Vec<_>>()[..] {
        [org, name, "tree", revision] => format!("{org}/{name}{}", suffix(revision)),
        [org, name, "blob" | "resolve", revision, ref file @ ..] if !file.is_empty() => {
            format!("{org}/{name}/{}{}", file.join("/"), suffix(revision))
        }
        _ => path.to_string(),
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(kind) = &self.kind {
            write!(f, ":{kind}")?;
        }
        if self.revision != "main" { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models() {
        let name = |text: &str| text.parse::<HubName>().map(|n| (n.repo, n.revision, n.file)).ok();
        let parts = |repo: &str, revision: &str, file: Option<&str>| {
            Some((repo.to_string(), revision.to_string(), file.map(String::from)))
        };
        assert_eq!(name("Qwen/Qwen3-0.6B"), parts("Qwen/Qwen3-0.6B", "main", None));
        assert_eq!(name("a/b@refs/pr/1"), parts("a/b", "refs/pr/1", None));
        assert_eq!(name("a/b-GGUF/b-Q8_0.gguf"), parts("a/b-GGUF", "main", Some("b-Q8_0.gguf")));
        for pasted in [
            "https://huggingface.co/Qwen/Qwen3-0.6B",
            "huggingface.co/Qwen/Qwen3-0.6B/",
            "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main",
            "https://hf.co/Qwen/Qwen3-0.6B?library=transformers#usage",
            "Qwen/Qwen3-0.6B/",
        ] {
            assert_eq!(name(pasted), parts("Qwen/Qwen3-0.6B", "main", None), "{pasted}");
        }
        assert_eq!(name("a/b-GGUF/BF16/deep/b.gguf"), parts("a/b-GGUF", "main", Some("BF16/deep/b.gguf")));
        let pasted = "https://huggingface.co/a/b-GGUF/blob/main/BF16/b-00001-of-00002.gguf";
        assert_eq!(name(pasted), parts("a/b-GGUF", "main", Some("BF16/b-00001-of-00002.gguf")));
        assert_eq!(name("hf.co/a/b/tree/v1"), parts("a/b", "v1", None));
        for kind in ["blob", "resolve"] {
            let pasted = format!("https://huggingface.co/a/b-GGUF/{kind}/main/b-Q8_0.gguf?download=true");
            assert_eq!(name(&pasted), parts("a/b-GGUF", "main", Some("b-Q8_0.gguf")));
        }
        for (quantized, shown) in [
            ("a/b-GGUF:Q8_0", "a/b-GGUF:Q8_0"),
            ("hf.co/a/b-GGUF:Q8_0", "a/b-GGUF:Q8_0"),
            ("a/b:q4_k_m@v1", "a/b:q4_k_m@v1"),
            ("a/b@v1:BF16", "a/b:BF16@v1"),
            ("a/b:UD-IQ2_M", "a/b:UD-IQ2_M"),
        ] {
            let name: HubName = quantized.parse().expect("a name");
            assert_eq!((name.file.as_ref(), name.to_string().as_str()), (None, shown));
        }
        for bad in [
            "https://example.org/a/b",
            "https://huggingface.co/a",
            "hf.co/spaces/a/b/c",
            "",
            "a",
            "a/",
            "/a",
            "../a",
            "a/..",
            "a/b/c",
            "a/b@",
            "a b/c",
            "a/b@../x",
            "./a/b",
            "~/x",
            "a/b.gguf",
            "a/b/../c.gguf",
            "a/b//c.gguf",
            "a/b/c/d",
            "C:\\x/y",
            "a/b:",
            "a/b:7B",
            "a/b:instruct",
            "a/b@v1:Q8_0@v2",
            "a/b:Q8/0",
            "a/b:Q8_0:x",
            "a/b/c.gguf:Q8_0",
            "a:Q8_0",
            "a/b?c",
            "hf.co/hf.co/a",
            "https://huggingface.co/huggingface.co/a/tree/v1",
        ] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
        assert_eq!("a/b@v1".parse::<HubName>().expect("a name").to_string(), "a/b@v1");
    }
}
