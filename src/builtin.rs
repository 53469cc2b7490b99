//! The model inside the binary, so that a first run needs no download: the tiny reasoner of `models/README.md`.
use crate::weights::ModelSource;

/// Its name, in traces and messages.
pub const NAME: &str = "built-in";

/// A problem it solves; it knows no other kind.
pub const EXAMPLE: &str = "We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. \
     #4 r drops by d. #5 c is r minus e. #6 h is 4. #7 c rises by 2. What is c?";

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
