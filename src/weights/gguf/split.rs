//! Models that are split into several GGUF files, `NAME-00001-of-00003.gguf` and so on.
//!
//! The first part has the metadata of the model, and may have no tensors. Every part has its own tensors and says
//! which part of how many it is (`split.no` from 0, `split.count`), and how many tensors all parts have together
//! (`split.tensors.count`).
use super::Gguf;
use crate::{Error, ErrorKind, Result};

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";
const ARCHITECTURE: &str = "general.architecture";

/// Whether a GGUF file is by its name the image or audio part of a model, such as `mmproj-F16.gguf`, and not the
/// language model.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn is_projector(name: &str) -> bool {
    name.to_ascii_lowercase().contains("mmproj")
}

/// The name of a part, taken apart. The names of safetensors shards have the same form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SplitName<'a> {
    /// What all parts have in common, without the numbers and the extension.
    pub stem: &'a str,
    /// Which part it is, from 1.
    pub number: usize,
    /// The number of parts; at least `number`.
    pub count: usize,
    extension: &'a str,
}

impl<'a> SplitName<'a> {
    /// Parses `STEM-00001-of-00003.EXTENSION`; `None` for other names.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (rest, extension) = name.rsplit_once('.')?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let parsed = |digits: &str| {
            let is_number = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse::<usize>().ok()).flatten().filter(|number| *number > 0)
        };
        let (number, count) = (parsed(number)?, parsed(count)?);
        (number <= count).then_some(Self { stem, number, count, extension })
    }

    /// Whether both are parts of the same model.
    pub fn is_of(&self, other: &Self) -> bool {
        (self.stem, self.count, self.extension) == (other.stem, other.count, other.extension)
    }

    /// The name of part `number` of the same model.
    pub fn part(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.{}", self.stem, self.count, self.extension)
    }

    /// The names of all parts, in order.
    pub fn parts(self) -> impl Iterator<Item = String> {
        (1..=self.count).map(move |number| self.part(number))
    }
}

impl Gguf {
    /// The number of parts of the model to which this file belongs, as its metadata says; 1 for a whole model.
    ///
    /// # Errors
    /// If the metadata value is not a number.
    pub(crate) fn announced_parts(&self) -> Result<u64> {
        Ok(self.uint(COUNT)?.unwrap_or(1).max(1))
    }

    /// Joins the parts of a split model, which are given in order. The result has the metadata of the first part and
    /// the tensors of all.
    ///
    /// # Errors
    /// If a part is not the one that its place says, or the parts do not belong to one model.
    pub(in crate::weights) fn join(parts: Vec<Self>) -> Result<Self> {
        let count = parts.len() as u64;
        let mixed = |part: &Self, key: &str, what: &str| {
            part.error_at(key, what).help("the parts are of different models or downloads: download all parts again")
        };
        let mut total = None;
        for (no, part) in parts.iter().enumerate() {
            for (key, expected) in [(COUNT, count), (NUMBER, no as u64)] {
                let found = part.uint(key)?;
                if found != Some(expected) {
                    return Err(mixed(part, key, "a part of a split GGUF file is not the part that its name says")
                        .expected(format!("{expected}, because it is part {} of {count}", no + 1))
                        .found(found.map_or("nothing".to_string(), |found| found.to_string())));
                }
            }
            let announced = part.uint(TENSORS)?;
            let known = *total.get_or_insert((announced, part.place()));
            if announced != known.0 {
                let text = |count: Option<u64>| count.map_or("no number".to_string(), |count| count.to_string());
                return Err(mixed(part, TENSORS, "the parts of a split GGUF file contradict each other")
                    .expected(format!("{} tensors in all, as {} says", text(known.0), known.1))
                    .found(text(announced)));
            }
            // Later parts usually do not name the architecture.
            if let (Some(first), Some(own)) = (parts[0].text(ARCHITECTURE)?, part.text(ARCHITECTURE)?)
                && first != own
            {
                return Err(mixed(part, ARCHITECTURE, "the parts of a split GGUF file contradict each other")
                    .expected(format!("{first}, as {} says", parts[0].place()))
                    .found(own));
            }
        }
        let found: u64 = parts.iter().map(|part| part.tensors.len() as u64).sum();
        if let Some((Some(announced), place)) = total.filter(|(announced, _)| *announced != Some(found)) {
            return Err(Error::new(ErrorKind::Model, "the parts of a split GGUF file do not have all of its tensors")
                .at(format!("{place}: {TENSORS}"))
                .expected(format!("{announced} tensors in {count} parts"))
                .found(format!("{found} tensors"))
                .help("the parts are of different models or downloads: download all parts again"));
        }
        let mut parts = parts.into_iter();
        let Some(mut whole) = parts.next() else {
            return Err(Error::new(ErrorKind::Internal, "a split GGUF file without parts"));
        };
        for part in parts {
            let file = 1 + whole.others.len();
            whole.tensors.extend(part.tensors.into_iter().map(|info| super::TensorInfo { file, ..info }));
            whole.others.push((part.place, part.bytes));
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let name = SplitName::parse("a-of-b-00002-of-00003.gguf").expect("a part");
        assert_eq!((name.stem, name.number, name.count), ("a-of-b", 2, 3));
        let all = ["a-of-b-00001-of-00003.gguf", "a-of-b-00002-of-00003.gguf", "a-of-b-00003-of-00003.gguf"];
        assert_eq!(name.parts().collect::<Vec<_>>(), all);
        for other in
            ["a.gguf", "a-1-of-3.gguf", "a-00000-of-00003.gguf", "a-00004-of-00003.gguf", "00001-of-00003.gguf"]
        {
            assert_eq!(SplitName::parse(other), None, "{other}");
        }
    }
}
