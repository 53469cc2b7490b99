//! The model that comes with secateur, so that a first run needs no download. It is the tiny reasoner that
//! `models/README.md` describes. It is embedded in the binary; in browsers its files lie beside the page, so that a
//! visitor with another model does not fetch it.
use crate::weights::{ModelSource, Suggestions};

/// The name of the built-in model in traces and messages.
pub const NAME: &str = "built-in";

/// A problem that the model can solve. It was trained on no other kind of problem.
pub const EXAMPLE: &str = "We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. \
     #4 r drops by d. #5 c is r minus e. #6 h is 4. #7 c rises by 2. What is c?";

/// The default interval between probes, in thinking tokens. It is shorter than for other models, because this model's
/// thinking has about a tenth of the length that the general default is made for.
pub const PROBE_EVERY: usize = 40;

/// The default number of latest tokens that are never evicted; shorter than for other models, for the same reason.
pub const WINDOW: usize = 16;

/// The name and the bytes of an embedded file.
#[cfg(not(target_family = "wasm"))]
macro_rules! embedded {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-reasoner/", $name)).to_vec())
    };
}

/// The files of the built-in model, in Hugging Face layout.
#[cfg(not(target_family = "wasm"))]
pub fn source() -> ModelSource {
    let files = ModelSource::memory([
        embedded!("config.json"),
        embedded!("generation_config.json"),
        embedded!("model.safetensors"),
        embedded!("tokenizer.json"),
        embedded!("tokenizer_config.json"),
    ]);
    with_suggestions(files)
}

/// The built-in model from its files, with the settings that suit it.
pub(crate) fn with_suggestions(files: ModelSource) -> ModelSource {
    files.suggesting(Suggestions { window: WINDOW, probe_every: PROBE_EVERY })
}
