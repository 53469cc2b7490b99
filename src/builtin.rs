//! The model inside the binary, so that a first run needs no download: the tiny reasoner of `models/README.md`.
use crate::weights::ModelSource;

/// Its name, in traces and messages.
pub const NAME: &str = "built-in";

/// A problem it solves; it knows no other kind.
pub const EXAMPLE: &str = "We count modulo 10. #1 k equals 5. #2 b equals k minus 9. #3 s equals 8. #4 t equals b plus s. \
     #5 n is t plus 7. What is n?";

/// Thinking tokens from probe to probe: its thoughts have a tenth of the length that the general default is made for.
pub const PROBE_EVERY: usize = 40;

/// Latest tokens that are never evicted, for the same reason.
pub const WINDOW: usize = 16;

/// The directory whose files are embedded, relative to the crate.
macro_rules! embedded {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-reasoner/", $name)).to_vec())
    };
}

/// Its files.
pub fn source() -> ModelSource {
    ModelSource::memory([
        embedded!("config.json"),
        embedded!("generation_config.json"),
        embedded!("model.safetensors"),
        embedded!("tokenizer.json"),
        embedded!("tokenizer_config.json"),
    ])
}
