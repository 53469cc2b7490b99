//! The model that comes with secateur.
use crate::weights::ModelSource;

/// Its files.
pub fn source() -> ModelSource {
    const FILES: [(&str, &[u8]); 4] = [
        ("config.json", include_bytes!("../tests/golden/qwen2-f16/config.json")),
        ("tokenizer.json", include_bytes!("../tests/golden/qwen2-f16/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../tests/golden/qwen2-f16/tokenizer_config.json")),
        ("model.safetensors", include_bytes!("../tests/golden/qwen2-f16/model.safetensors")),
    ];
    ModelSource::memory(FILES.map(|(name, bytes)| (name, bytes.to_vec())))
}
