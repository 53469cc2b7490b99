//! The name of a model on the hub.
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// `ORG/NAME`, `ORG/NAME@REVISION` or, for a GGUF file, `ORG/NAME/FILE.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/NAME`
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The one file that is wanted, if it is not the whole model.
    pub file: Option<String>,
}

impl FromStr for HubName {
    type Err = Error;

    /// Reads a name, or the address of a model's page or of a file on it, as people copy them from a browser.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |help: &str| {
            let error = Error::new(ErrorKind::Input, "not the name of a model on the hub")
                .expected("ORG/NAME, ORG/NAME@REVISION, or ORG/NAME/FILE.gguf")
                .found(format!("{text:?}"));
            if help.is_empty() { error } else { error.help(help) }
        };
        let name = plain_name(text);
        let (path, revision) = name.split_once('@').unwrap_or((&name, "main"));
        if let Some((repo, tag)) = path.split_once(':').filter(|(repo, _)| repo.contains('/')) {
            return Err(wrong(&format!(
                "name the file itself instead of its quantization {tag:?}: {repo}/FILE.gguf, from the page of {repo}"
            )));
        }
        let parts: Vec<&str> = path.split('/').collect();
        let (repo, file) = match parts[..] {
            // A file, not a repository.
            [_, name] if name.ends_with(".gguf") => return Err(wrong("")),
            [_, _] => (path.to_string(), None),
            [org, name, file] if file.ends_with(".gguf") => (format!("{org}/{name}"), Some(file.to_string())),
            _ => return Err(wrong("")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let good = |part: &str| !part.is_empty() && part.chars().all(plain) && !part.starts_with('.');
        let good_revision = !revision.is_empty() && revision.split('/').all(good);
        match parts.iter().all(|part| good(part)) && good_revision {
            true => Ok(Self { repo, revision: revision.to_string(), file }),
            false => Err(wrong("")),
        }
    }
}

/// `text` in the form of a name, if it is an address on the hub: without scheme, host and query, with the revision of a page
/// (`/tree/REVISION`) or of a file (`/blob/REVISION/FILE`) behind an `@`.
fn plain_name(text: &str) -> String {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let hosts = ["huggingface.co/", "www.huggingface.co/", "hf.co/"];
    let Some(path) = hosts.iter().find_map(|host| bare.strip_prefix(host)) else {
        // A name with one slash too many, as completion in a shell leaves it.
        let name = text.strip_suffix('/').unwrap_or(text);
        return if name.split('/').count() == 2 { name } else { text }.to_string();
    };
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let at = |revision: &str| if revision == "main" { String::new() } else { format!("@{revision}") };
    match path.split('/').collect::<Vec<_>>()[..] {
        [org, name, "tree", revision] => format!("{org}/{name}{}", at(revision)),
        [org, name, "blob" | "resolve", revision, file] => format!("{org}/{name}/{file}{}", at(revision)),
        _ => path.to_string(),
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
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
        let of = |repo: &str, revision: &str, file: Option<&str>| {
            Some((repo.to_string(), revision.to_string(), file.map(String::from)))
        };
        assert_eq!(name("Qwen/Qwen3-0.6B"), of("Qwen/Qwen3-0.6B", "main", None));
        assert_eq!(name("a/b@refs/pr/1"), of("a/b", "refs/pr/1", None));
        assert_eq!(name("a/b-GGUF/b-Q8_0.gguf"), of("a/b-GGUF", "main", Some("b-Q8_0.gguf")));
        for pasted in [
            "https://huggingface.co/Qwen/Qwen3-0.6B",
            "huggingface.co/Qwen/Qwen3-0.6B/",
            "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main",
            "https://hf.co/Qwen/Qwen3-0.6B?library=transformers#usage",
            "Qwen/Qwen3-0.6B/",
        ] {
            assert_eq!(name(pasted), of("Qwen/Qwen3-0.6B", "main", None), "{pasted}");
        }
        assert_eq!(name("hf.co/a/b/tree/v1"), of("a/b", "v1", None));
        for kind in ["blob", "resolve"] {
            let pasted = format!("https://huggingface.co/a/b-GGUF/{kind}/main/b-Q8_0.gguf?download=true");
            assert_eq!(name(&pasted), of("a/b-GGUF", "main", Some("b-Q8_0.gguf")));
        }
        for quantized in ["a/b-GGUF:Q8_0", "hf.co/a/b-GGUF:Q8_0"] {
            let error = quantized.parse::<HubName>().expect_err("no file").to_string();
            assert!(error.contains("\"Q8_0\": a/b-GGUF/FILE.gguf"), "{error}");
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
            "C:\\x/y",
            "a/b?c",
        ] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
        assert_eq!("a/b@v1".parse::<HubName>().expect("a name").to_string(), "a/b@v1");
    }
}
