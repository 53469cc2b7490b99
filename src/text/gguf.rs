//! Rebuilds the tokenizer and the chat template of a GGUF file from its metadata.
//!
//! A GGUF file stores the tokens, their types, the merges and the *name* of the rule that splits text before merging.
//! The rules themselves are in the source of llama.cpp. This file spells out the rules that the supported models use,
//! as the `tokenizer.json` of those models does. The result is a `tokenizer.json`, which is then read like any other.
use crate::weights::gguf::Gguf;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

const TOKENS: &str = "tokenizer.ggml.tokens";
const PRE: &str = "tokenizer.ggml.pre";
/// Token types in `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Regular expressions that split text into contractions, words, digits, punctuation, line ends and spaces. QWEN2 and
/// TEKKEN (Mistral) take one digit at a time, LLAMA3 and GPT4O (Phi-4) up to three. TEKKEN and GPT4O also split a word
/// before a capital letter that follows a small one.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Builds the `tokenizer.json` of the tokenizer in `gguf`.
///
/// # Errors
/// If the file has no tokenizer, the tokenizer is malformed, or its kind or its splitting rule is not supported.
pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Value> {
    let key = "tokenizer.ggml.model";
    match gguf.text(key)? {
        Some("gpt2") => {}
        None => {
            return Err(gguf
                .error_at(key, "the GGUF file has no tokenizer, which is needed to read text")
                .help("pass token `ids` instead of text"));
        }
        Some(other) => {
            return Err(gguf
                .error_at(key, format!("the tokenizer type {other} is not supported in GGUF files"))
                .expected("gpt2, which is byte-level BPE")
                .help("pass token `ids`, or use the directory of the original model"));
        }
    }
    let missing = |key: &str| gguf.error_at(key, "the GGUF file's tokenizer is incomplete");
    let tokens = gguf.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    let merges = gguf.texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let key = "tokenizer.ggml.token_type";
    let types = gguf.ints(key)?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        return Err(gguf
            .error_at(key, "the GGUF file's tokenizer contradicts itself")
            .expected(format!("{} token types, one for each token", tokens.len()))
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
                .error_at(TOKENS, "the GGUF file's tokenizer has the same token twice")
                .found(format!("{token:?}")));
        }
    }
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]})
    };
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    // `whole_words`: whether a word that is itself a token skips the merges.
    let rule = gguf.text(PRE)?.unwrap_or_else(|| {
        // Files of early 2024 lack the key.
        log::warn!(
            "{}: {PRE} is missing, so the file does not say how its tokenizer splits text. GPT-2's rule is used, \
             which may make answers worse. To avoid this, convert the model again with a current llama.cpp.",
            gguf.place()
        );
        "default"
    });
    let (pre, normalizer, whole_words) = match rule {
        "qwen2" | "deepseek-r1-qwen" => (split(QWEN2), json!({"type": "NFC"}), false),
        "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3), Value::Null, true),
        "tekken" => (split(TEKKEN), Value::Null, true),
        "gpt-4o" => (split(GPT4O), Value::Null, false),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, gpt2]}), Value::Null, false)
        }
        "default" | "gpt-2" => (gpt2, Value::Null, false),
        other => {
            return Err(gguf
                .error_at(PRE, format!("the splitting rule {other} is not known"))
                .expected("qwen2, deepseek-r1-qwen, llama-bpe, tekken, gpt-4o, smollm or gpt-2")
                .help("pass token `ids`, or use the directory of the original model"));
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

/// The chat template in `gguf`, and the texts of the special tokens under the names that templates use, such as
/// `bos_token`.
///
/// # Errors
/// If the file has no chat template, or its metadata is malformed.
pub(super) fn template(gguf: &Gguf) -> Result<(String, Map<String, Value>)> {
    let key = "tokenizer.chat_template";
    let Some(template) = gguf.text(key)? else {
        return Err(Error::new(ErrorKind::Model, "the model has no chat template")
            .at(gguf.place())
            .expected(key)
            .help("use `raw` to send the prompt without a template"));
    };
    let tokens = gguf.texts(TOKENS)?.unwrap_or_default();
    let mut texts = Map::new();
    for (name, gguf_name) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")] {
        let id = gguf.uint(&format!("tokenizer.ggml.{gguf_name}_token_id"))?;
        if let Some(text) = id.and_then(|id| tokens.get(usize::try_from(id).ok()?)) {
            texts.insert(format!("{name}_token"), json!(text));
        }
    }
    Ok((template.to_string(), texts))
}
