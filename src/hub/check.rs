//! Refuses a model that cannot be run as early as its files allow, before gigabytes are fetched.
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::INDEX;
use crate::Result;
use crate::device::ComputeDevice;
use crate::model::config::ModelConfig;
use crate::model::{decoder, required};
use crate::text::Tokenizer;
use crate::weights::gguf::{SplitName, is_projector};
use crate::weights::precision::Precision;
use crate::weights::{Bytes, ModelSource, Weights};

/// The kinds of GGUF files in the order in which they are recommended: the finest, then the usual ones.
const PREFERRED: [&str; 12] =
    ["Q8_0", "BF16", "F16", "Q4_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q5_K_S", "Q4_K_S", "Q4_1", "Q5_0", "F32"];

/// The number of bytes after which the beginning of a GGUF file is examined first, and then after each doubling.
pub(super) const FIRST: u64 = 256 << 10;
/// The number of bytes after which the examination ends. No header is longer; the largest vocabularies take some 20
/// MB.
pub(super) const LAST: u64 = 64 << 20;

/// Refuses a model whose configuration in `snapshot` is not supported.
///
/// # Errors
/// Those of [`ModelConfig::load`] and [`decoder::check_device`] on the CPU.
pub(super) fn config(snapshot: &Path) -> Result<()> {
    let source = ModelSource::directory(snapshot)?;
    let config = ModelConfig::load(&source)?;
    decoder::check_device(&config, 1, 1, &ComputeDevice::cpu())
}

/// Whether the beginning of a safetensors file has its whole header. The size of the file does not matter.
pub(super) fn has_header(bytes: &[u8], _: u64) -> bool {
    let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    length.is_some_and(|length| bytes.len() as u64 >= length.saturating_add(8))
}

/// The beginning of the safetensors file at `path`; `None` without the file or its whole header.
pub(super) fn start_of(path: &Path) -> Option<Bytes> {
    let mut file = File::open(path).ok()?;
    let total = file.metadata().ok()?.len();
    let mut bytes = vec![0; 8];
    file.read_exact(&mut bytes).ok()?;
    let length = u64::from_le_bytes(*bytes.first_chunk()?);
    file.take(length.min(LAST)).read_to_end(&mut bytes).ok()?;
    has_header(&bytes, total).then(|| Bytes::start(bytes, total))
}

/// The types of the experts may differ here, because it is not known whether they will be quantized to one type as
/// they are loaded.
const QUANTIZED: Option<Precision> = Some(Precision::Q8);

/// Refuses weights that the model with the configuration in `snapshot` cannot be run with. `starts` are the beginnings
/// of the safetensors files.
///
/// # Errors
/// Those of [`Weights::open`] and [`required::check`].
pub(super) fn weights(snapshot: &Path, mut starts: Vec<(String, Bytes)>) -> Result<()> {
    let config = ModelConfig::load(&ModelSource::directory(snapshot)?)?;
    if let Ok(index) = std::fs::read(snapshot.join(INDEX)) {
        starts.push((INDEX.to_string(), index.into()));
    }
    required::check(&config, &Weights::open(&ModelSource::memory(starts))?, QUANTIZED)
}

/// Refuses a model whose tokenizer is there and cannot be read.
///
/// # Errors
/// Those of [`Tokenizer::load`].
pub(super) fn tokenizer(source: &ModelSource) -> Result<()> {
    if !Tokenizer::exists(source) {
        return Ok(());
    }
    Tokenizer::load(source).map(drop).map_err(|error| {
        error.help(
            "the model takes no text, so its weights are not fetched: use the original model, or fetch its files by \
             other means, give their path and pass token `ids`",
        )
    })
}

/// Whether a GGUF file has the weights of a language model, or the first part of them.
fn is_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.ends_with(".gguf") && !is_projector(name) && SplitName::parse(name).is_none_or(|part| part.number == 1)
}

/// The GGUF file among `files` with this quantization in its name, in any case: between `-`, `.` and `/`, or behind a
/// `_`. Several are left where a kind is a part of another one, such as `Q4_K_XL` of `UD-Q4_K_XL`: then the shortest
/// name.
pub(super) fn of_kind<'a>(files: impl Iterator<Item = &'a str>, kind: &str) -> Option<&'a str> {
    let kind = kind.to_lowercase();
    let has = |file: &str, before: &[char]| {
        let file = file.to_lowercase();
        file.match_indices(&kind).any(|(at, _)| {
            let (left, right) = (&file[..at], &file[at + kind.len()..]);
            (left.is_empty() || left.ends_with(before)) && (right.is_empty() || right.starts_with(['-', '.', '/']))
        })
    };
    let models: Vec<&str> = files.filter(|file| is_model(file)).collect();
    let of = |before: &[char]| {
        let found = models.iter().copied().filter(|file| has(file, before));
        found.min_by_key(|file| (file.len(), *file))
    };
    of(&['-', '.', '/']).or_else(|| of(&['_']))
}

/// The GGUF file among `files` to recommend. Of a split one, the first part.
pub(super) fn preferred<'a>(files: &[&'a str]) -> &'a str {
    let is_kind = |file: &str, kind: &str| {
        let words = file.split(['-', '.', '/']);
        words.clone().any(|word| word.eq_ignore_ascii_case(kind))
    };
    let models: Vec<&str> = files.iter().copied().filter(|file| is_model(file)).collect();
    let best = PREFERRED.iter().find_map(|kind| models.iter().copied().find(|file| is_kind(file, kind)));
    best.or(models.first().copied()).unwrap_or(files[0])
}

/// The examination of a file while it is being fetched.
pub(super) struct Start {
    /// The number of bytes at which the file is examined next; `None` once the header is known, and for files that
    /// are not GGUF.
    next: Option<u64>,
    total: u64,
    is_part: bool,
}

impl Start {
    /// The file `name` of `total` bytes.
    pub fn of(name: &str, total: u64) -> Self {
        let file = name.rsplit('/').next().unwrap_or(name);
        let next = name.ends_with(".gguf").then_some(FIRST);
        Self { next, total, is_part: SplitName::parse(file).is_some_and(|part| part.count > 1) }
    }

    /// Examines the file at `place`, of which `here` bytes have arrived.
    ///
    /// # Errors
    /// If the header has arrived and shows that the model cannot be run.
    pub fn check(&mut self, place: &Path, here: u64) -> Result<()> {
        let Some(next) = self.next.filter(|next| here >= *next && here < self.total) else { return Ok(()) };
        // When a download is resumed, gigabytes may have arrived already.
        self.next = (here < LAST).then_some((here * 2).max(next * 2));
        let mut bytes = Vec::new();
        let read = File::open(place).and_then(|file| file.take(here.min(LAST)).read_to_end(&mut bytes));
        let name = place.display().to_string();
        let source = read.ok().and_then(|_| ModelSource::gguf_file(name, Bytes::start(bytes, self.total)).ok());
        // An error may only mean that the header has not arrived as a whole.
        let Some(source) = source else { return Ok(()) };
        self.next = None;
        let weights = Weights::open(&source)?;
        tokenizer(&source)?;
        if self.is_part {
            // Only the first part is read here. The other parts have the rest of the metadata and of the tensors.
            let mut matrices =
                weights.names().filter_map(|name| weights.find(name)).filter(|tensor| tensor.shape.len() == 2);
            return matrices.try_for_each(|tensor| tensor.packed_dtype().map(drop));
        }
        let config = ModelConfig::load(&source)?;
        decoder::check_device(&config, 1, 1, &ComputeDevice::cpu())?;
        required::check(&config, &weights, QUANTIZED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finest_kind_that_can_be_run_is_recommended() {
        let all = [
            "BF16/x-BF16-00001-of-00002.gguf",
            "BF16/x-BF16-00002-of-00002.gguf",
            "mmproj-x-Q8_0.gguf",
            "x-Q4_K_M.gguf",
            "x-UD-Q4_K_XL.gguf",
            "x-q8_0.gguf",
            "y_Q5_0.gguf",
        ];
        let kind = |kind: &str| of_kind(all.iter().copied(), kind);
        assert_eq!(kind("bf16"), Some(all[0]));
        assert_eq!([kind("Q4_K_M"), kind("q4_k_m")], [Some(all[3]); 2]);
        assert_eq!([kind("Q4_K_XL"), kind("UD-Q4_K_XL")], [Some(all[4]); 2]);
        assert_eq!([kind("Q8_0"), kind("Q5_0")], [Some(all[5]), Some(all[6])]);
        assert_eq!([kind("Q4_K"), kind("F16"), kind("8_0"), kind("gguf_")], [None; 4]);
        let some = ["BF16/x-BF16.gguf", "x.mmproj-Q8_0.gguf", "x-IQ2_M.gguf", "x-Q8_0.gguf"];
        assert_eq!(preferred(&some), "x-Q8_0.gguf");
        assert_eq!(preferred(&some[..3]), "BF16/x-BF16.gguf");
        let split = ["x-q4_k_m-00002-of-00002.gguf", "x-iq2_m.gguf", "x-q4_k_m-00001-of-00002.gguf"];
        assert_eq!(preferred(&split), "x-q4_k_m-00001-of-00002.gguf");
        assert_eq!(preferred(&["x-BF16.gguf", "x-F16.gguf"]), "x-BF16.gguf");
        assert_eq!(preferred(&["mmproj.gguf"]), "mmproj.gguf");
        assert_eq!(of_kind(["x-f16.safetensors", "x-f16.imatrix"].into_iter(), "f16"), None);
    }
}
