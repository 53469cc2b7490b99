//! The model inside the binary, so that a first run needs no download.
use crate::weights::ModelSource;

/// Its name, in traces and messages.
pub const NAME: &str = "built-in";

/// A prompt that shows what it does.
pub const EXAMPLE: &str = "What is 12 + 30?";

/// The directory whose files are embedded, relative to the crate.
macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen2-f16/", $name)).to_vec())
    };
}

/// Its files.
pub fn source() -> ModelSource {
    ModelSource::memory([
        file!("config.json"),
        file!("generation_config.json"),
        file!("model.safetensors"),
        file!("tokenizer.json"),
        file!("tokenizer_config.json"),
    ])
}
