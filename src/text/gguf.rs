//! Tokenizer and chat template of a GGUF file, rebuilt from its metadata.
//!
//! GGUF keeps a tokenizer's tokens, their types, the merges and the *name* of how text is split before merging; the split
//! itself is in llama.cpp's source. Here the named ones that the supported models use are written out as their own
//! `tokenizer.json` has them, and the result goes the way of any `tokenizer.json`.
use crate::weights::gguf::Gguf;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

const TOKENS: &str = "tokenizer.ggml.tokens";
const PRE: &str = "tokenizer.ggml.pre";
/// Kinds of tokens, as GGUF numbers them.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Splits of text: contractions, words, digits (one, or up to three, at a time), punctuation, line ends, spaces.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.json` of the tokenizer in `gguf`.
///
/// # Errors
/// When there is none, it is malformed, or of a kind or split that is not known.
pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Value> {
    let key = "tokenizer.ggml.model";
    match gguf.text(key)? {
        Some("gpt2") => {}
        None => {
            return Err(gguf
                .wrong(key, "the GGUF file has no tokenizer, which text needs")
                .help("pass token ids with --ids"));
        }
        Some(other) => {
            return Err(gguf
                .wrong(key, format!("a tokenizer of the kind {other} is not read from GGUF"))
                .expected("gpt2: byte-level BPE")
                .help("pass token ids with --ids, or use the directory of the original model"));
        }
    }
    let missing = |key: &str| gguf.wrong(key, "the GGUF file's tokenizer is incomplete");
    let tokens = gguf.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    let merges = gguf.texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let key = "tokenizer.ggml.token_type";
    let types = gguf.ints(key)?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(gguf
            .wrong(key, "the GGUF file's tokenizer contradicts itself")
            .expected(format!("{} types, one a token", tokens.len()))
            .found(types.len()));
    }
    let (mut vocab, mut added) = (Map::new(), Vec::new());
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        if kind == UNUSED {
            continue;
        }
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(
                json!({"id": id, "content": token, "special": kind == CONTROL, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false}),
            );
        }
        if vocab.insert(token.to_string(), json!(id)).is_some() {
            return Err(gguf
                .wrong(TOKENS, "a token of the GGUF file's tokenizer comes twice")
                .found(format!("{token:?}")));
        }
    }
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]})
    };
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    // Whether a word that is a token is taken whole, without merging.
    let (pre, normalizer, whole_words) = match gguf.text(PRE)?.unwrap_or("default") {
        "qwen2" | "deepseek-r1-qwen" => (split(QWEN2), json!({"type": "NFC"}), false),
        "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3), Value::Null, true),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, gpt2]}), Value::Null, false)
        }
        "default" | "gpt-2" => (gpt2, Value::Null, false),
        other => {
            return Err(gguf
                .wrong(PRE, format!("text split as {other} is not known"))
                .expected("qwen2, deepseek-r1-qwen, llama-bpe, smollm or gpt-2")
                .help("pass token ids with --ids, or use the directory of the original model"));
        }
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
            "vocab": vocab, "merges": merges},
    }))
}

/// The chat template in `gguf`, and the texts of its special tokens by the names that templates use.
///
/// # Errors
/// When there is none, or the metadata is malformed.
pub(super) fn template(gguf: &Gguf) -> Result<(String, Map<String, Value>)> {
    let key = "tokenizer.chat_template";
    let Some(template) = gguf.text(key)? else {
        return Err(Error::new(ErrorKind::Model, "the model has no chat template")
            .at(gguf.place())
            .expected(key)
            .help("pass the prompt with --raw to use it as it is"));
    };
    let tokens = gguf.texts(TOKENS)?.unwrap_or_default();
    let mut texts = Map::new();
    for (name, of) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")] {
        let id = gguf.uint(&format!("tokenizer.ggml.{of}_token_id"))?;
        if let Some(text) = id.and_then(|id| tokens.get(usize::try_from(id).ok()?)) {
            texts.insert(format!("{name}_token"), json!(text));
        }
    }
    Ok((template.to_string(), texts))
}
