//! Rebuilds the tokenizer and the chat template of a GGUF file from its metadata.
//!
//! A GGUF file stores the tokens, their types and, for byte-level BPE, the merges and the *name* of the rule that
//! splits text before merging. The rules themselves are in the source of llama.cpp. This file spells out those that
//! regular expressions can express, as the `tokenizer.json` of the models does; `sentencepiece.rs` has the other kind
//! of tokenizer. The result is a `tokenizer.json`, which is then read like any other.
use crate::weights::gguf::Gguf;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

const KIND: &str = "tokenizer.ggml.model";
const TEMPLATE: &str = "tokenizer.chat_template";
const TOKENS: &str = "tokenizer.ggml.tokens";
const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";
/// Token types in `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// Regular expressions that split text into contractions, words, digits, punctuation, line ends and spaces. QWEN2,
/// QWEN35, SEED_CODER, BAILING and TEKKEN (Mistral) take one digit at a time, LLAMA3 and GPT4O (Phi-4) up to three.
/// QWEN35 counts combining marks as letters. TEKKEN and GPT4O also split a word before a capital letter that follows a
/// small one.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek's words are letters with a case, of which the original spells out the ranges; Chinese, Japanese and Korean
/// characters are words of their own.
const DEEPSEEK_LLM: &[&str] = &[
    "[\r\n]",
    r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
    r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
    r"\s+$",
    HAN_AND_HANGUL,
    r"\p{N}+",
];
const DEEPSEEK_CODER: &[&str] = &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, r"\p{N}"];
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const HAN_AND_HANGUL: &str = r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+";
const MINICPM5: &[&str] = &[
    r"\p{N}{1,3}",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// How a byte-level tokenizer splits text into the words that merges do not leave.
struct Rule {
    /// Regular expressions, each of which splits what those before it have left.
    patterns: &'static [&'static str],
    /// Whether text is brought into the form NFC first.
    nfc: bool,
    /// Whether a word that is itself a token skips the merges.
    whole_words: bool,
    /// Whether a text begins with the beginning-of-text token if the file does not say.
    begins: bool,
}

impl Rule {
    /// The rule that llama.cpp calls `name` (`llama_vocab::impl::load` and `llm_tokenizer_bpe`), as far as it is
    /// known here. The rules of models whose text is not byte-level are missing, and those that llama.cpp computes
    /// without a regular expression.
    fn named(name: &str) -> Option<Self> {
        let patterns: &[&str] = match name {
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan" | "solar-open"
            | "grok-2" => &[QWEN2],
            "qwen35" => &[QWEN35],
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "smaug-bpe" | "dbrx" | "glm4" | "chatglm-bpe" => &[LLAMA3],
            "tekken" => &[TEKKEN],
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => &[GPT4O],
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                &[r"\p{N}", GPT2]
            }
            "default" | "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "mpt" | "olmo" | "jais"
            | "trillion" | "granite-docling" | "exaone4" => &[GPT2],
            "deepseek-llm" => DEEPSEEK_LLM,
            "deepseek-coder" => DEEPSEEK_CODER,
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => DEEPSEEK_V3,
            "minicpm5" => MINICPM5,
            "seed-coder" => &[SEED_CODER],
            "bailingmoe" | "bailingmoe2" | "llada-moe" => &[BAILING],
            _ => return None,
        };
        let of_llama3 = matches!(
            name,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" | "tekken"
        );
        Some(Self {
            patterns,
            // As in the `tokenizer.json` of Qwen's models.
            nfc: matches!(name, "qwen2" | "deepseek-r1-qwen" | "qwen35"),
            whole_words: of_llama3 || name == "minicpm5",
            begins: of_llama3,
        })
    }
}

/// The tokens of a GGUF file.
pub(super) struct Vocabulary<'a> {
    pub tokens: Vec<&'a str>,
    /// The type of each token.
    pub types: Vec<i64>,
    /// The ids of all tokens that are in use.
    ids: Map<String, Value>,
    /// The tokens that are found in text before it is split, as `tokenizer.json` describes them.
    added: Vec<Value>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let tokens = gguf.texts(TOKENS)?.ok_or_else(|| incomplete(gguf, TOKENS))?;
        let key = "tokenizer.ggml.token_type";
        let types = gguf.ints(key)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(gguf
                .error_at(key, "the GGUF file's tokenizer contradicts itself")
                .expected(format!("{} token types, one for each token", tokens.len()))
                .found(types.len()));
        }
        let (mut ids, mut added) = (Map::new(), Vec::new());
        for (id, (token, &kind)) in tokens.iter().zip(&types).enumerate() {
            if kind == UNUSED {
                continue;
            }
            if matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) {
                let special = kind != USER_DEFINED;
                added.push(json!({"id": id, "content": token, "special": special, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false}));
            }
            if ids.insert(token.to_string(), json!(id)).is_some() {
                return Err(gguf
                    .error_at(TOKENS, "the GGUF file's tokenizer has the same token twice")
                    .found(format!("{token:?}")));
            }
        }
        Ok(Self { tokens, types, ids, added })
    }

    /// The token whose id is the value of `key`.
    pub fn named(&self, gguf: &Gguf, key: &str) -> Result<Option<&'a str>> {
        let id = gguf.uint(key)?;
        Ok(id.and_then(|id| self.tokens.get(usize::try_from(id).ok()?)).copied())
    }
}

/// The error for a tokenizer without `key`.
pub(super) fn incomplete(gguf: &Gguf, key: &str) -> Error {
    gguf.error_at(key, "the GGUF file's tokenizer is incomplete")
}

/// The parts that differ between the kinds of tokenizers, as in `tokenizer.json`.
pub(super) struct Parts {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    /// The model without its vocabulary.
    pub model: Value,
    /// Whether a text begins with a special token if the file does not say.
    pub begins: bool,
}

/// Whether `gguf` has a tokenizer, be it one that can be read or not.
pub(super) fn has_tokenizer(gguf: &Gguf) -> bool {
    !matches!(gguf.text(KIND), Ok(None))
}

/// Whether `gguf` has a chat template, be it one that can be read or not.
pub(super) fn has_template(gguf: &Gguf) -> bool {
    !matches!(gguf.text(TEMPLATE), Ok(None))
}

/// Builds the `tokenizer.json` of the tokenizer in `gguf`.
///
/// # Errors
/// If the file has no tokenizer, the tokenizer is malformed, or its kind or its splitting rule is not supported.
pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Value> {
    let kind = gguf.text(KIND)?;
    let mut vocabulary = match kind {
        Some("gpt2" | "llama") => Vocabulary::read(gguf)?,
        None => {
            return Err(gguf
                .error_at(KIND, "the GGUF file has no tokenizer, which is needed to read text")
                .help("pass token `ids` instead of text"));
        }
        Some(other) => {
            return Err(gguf
                .error_at(KIND, format!("the tokenizer type {other} is not supported in GGUF files"))
                .expected("gpt2 (byte-level BPE) or llama (SentencePiece)")
                .help("pass token `ids`, or use the directory of the original model"));
        }
    };
    let mut parts = match kind {
        Some("llama") => super::sentencepiece::parts(gguf, &vocabulary)?,
        _ => byte_level(gguf)?,
    };
    let begin = match gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.begins) {
        true => vocabulary.named(gguf, "tokenizer.ggml.bos_token_id")?,
        false => None,
    };
    let begin = begin.and_then(|token| Some((token, vocabulary.ids.get(token)?.clone())));
    let post_processor = begin.map(|(token, id)| {
        json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
    });
    parts.model["vocab"] = Value::Object(std::mem::take(&mut vocabulary.ids));
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added,
        "normalizer": parts.normalizer, "pre_tokenizer": parts.pre_tokenizer, "post_processor": post_processor,
        "decoder": parts.decoder, "model": parts.model,
    }))
}

/// Byte-level BPE, whose splitting rule the file names.
fn byte_level(gguf: &Gguf) -> Result<Parts> {
    let merges = gguf.texts(MERGES)?.ok_or_else(|| incomplete(gguf, MERGES))?;
    let name = gguf.text(PRE)?.unwrap_or_else(|| {
        // Files of early 2024 lack the key.
        log::warn!(
            "{}: {PRE} is missing, so the file does not say how its tokenizer splits text. GPT-2's rule is used, \
             which may make answers worse. To avoid this, convert the model again with a current llama.cpp.",
            gguf.place()
        );
        "default"
    });
    let Some(rule) = Rule::named(name) else {
        return Err(gguf
            .error_at(PRE, format!("the splitting rule {name} is not known"))
            .expected("a rule of llama.cpp such as qwen2, llama-bpe, smaug-bpe, tekken, gpt-4o, smollm or gpt-2")
            .help("pass token `ids`, or use the directory of the original model"));
    };
    let split = |regex: &&str| {
        let pattern = json!({"Regex": regex});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let steps: Vec<Value> = rule.patterns.iter().map(split).chain([bytes]).collect();
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": steps});
    let normalizer = if rule.nfc { json!({"type": "NFC"}) } else { Value::Null };
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": rule.whole_words,
        "merges": merges});
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    Ok(Parts { normalizer, pre_tokenizer, decoder, model, begins: rule.begins })
}

/// The chat template in `gguf`, and the texts of the special tokens under the names that templates use, such as
/// `bos_token`.
///
/// # Errors
/// If the file has no chat template, or its metadata is malformed.
pub(super) fn template(gguf: &Gguf) -> Result<(String, Map<String, Value>)> {
    let Some(template) = gguf.text(TEMPLATE)? else {
        return Err(Error::new(ErrorKind::Model, "the model has no chat template")
            .at(gguf.place())
            .expected(TEMPLATE)
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
