//! The model inside the binary, so that a first run needs no download.
use crate::weights::ModelSource;

/// Its name, in traces and messages.
pub const NAME: &str = "built-in";

/// A prompt that shows what it does.
pub const EXAMPLE: &str = "What is 12 + 30?";

/// The directory whose files are embedded, relative to the crate.
macro_rules! embedded {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen2-f16/", $name)).to_vec())
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
