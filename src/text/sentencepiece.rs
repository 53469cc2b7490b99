//! The BPE tokenizers of SentencePiece (Llama 2, TinyLlama, Mistral) in GGUF files, rebuilt as transformers converts
//! them: `LlamaConverter` and `generate_merges` of its `convert_slow_tokenizer.py`.
//!
//! Spaces are written as `▁`, one more of them begins each text, and characters without a token become the tokens of
//! their bytes. A GGUF file has the score of each token instead of merges. A merge is a way to cut a token into two
//! others; the token with the highest score is merged first.
use super::gguf::{BYTE, NORMAL, Parts, UNKNOWN, Vocabulary, incomplete};
use crate::weights::gguf::Gguf;
use crate::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::collections::HashMap;

const SCORES: &str = "tokenizer.ggml.scores";
const SPACE: &str = "▁";
/// Longer tokens are never the result of merges, so that a hostile file cannot make this slow. SentencePiece's own
/// limit is 16 characters by default.
const LONGEST: usize = 256;
/// The most merges for each token, on average: twice to four times what a trained vocabulary has.
const MOST_MERGES: usize = 16;

/// The parts of the tokenizer in `gguf`.
///
/// # Errors
/// If the file has no scores, or not one for each token.
pub(super) fn parts(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let scores = gguf.floats(SCORES)?.ok_or_else(|| incomplete(gguf, SCORES))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(gguf
            .error_at(SCORES, "the GGUF file's tokenizer contradicts itself")
            .expected(format!("{} scores, one for each token", vocabulary.tokens.len()))
            .found(scores.len()));
    }
    let unknown = vocabulary.named(gguf, "tokenizer.ggml.unknown_token_id")?.or_else(|| {
        let at = vocabulary.types.iter().position(|kind| *kind == UNKNOWN)?;
        vocabulary.tokens.get(at).copied()
    });
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}),
        false => replace,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let model = json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": vocabulary.types.contains(&BYTE),
        "ignore_merges": false, "merges": merges(vocabulary, &scores)?});
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    Ok(Parts { normalizer, pre_tokenizer: Value::Null, decoder, model, begins: true })
}

/// The merges, the first to be applied first.
///
/// # Errors
/// If there are more than [`MOST_MERGES`] for each token on average: only a vocabulary that was made for it has so
/// many.
fn merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Result<Vec<[&'a str; 2]>> {
    // Tags and single bytes are never made of other tokens.
    let mut normal: Vec<(usize, &'a str)> = vocabulary.tokens.iter().copied().enumerate().collect();
    normal.retain(|(id, _)| vocabulary.types[*id] == NORMAL);
    let ids: HashMap<&'a str, usize> = normal.iter().map(|(id, token)| (*token, *id)).collect();
    let mut merges = Vec::new();
    for (id, token) in normal {
        let length = token.chars().take(LONGEST + 1).count();
        if length > LONGEST {
            continue;
        }
        let mut cuts: Vec<(usize, usize, usize, [&'a str; 2])> = Vec::new();
        for (left_length, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                cuts.push((*first, *second, left_length, [left, right]));
            }
        }
        cuts.sort_unstable_by_key(|(first, second, ..)| (*first, *second));
        if merges.len() + cuts.len() > MOST_MERGES * vocabulary.tokens.len() {
            return Err(Error::new(
                ErrorKind::Model,
                "the tokens of the tokenizer can be made of others in too many ways",
            )
            .at("tokenizer.ggml.tokens")
            .expected(format!("at most {MOST_MERGES} ways a token on average")));
        }
        merges.extend(cuts.into_iter().map(|(_, _, left_length, pair)| (scores[id], left_length, length, pair)));
    }
    // The highest score first, then the longest left part, then the longest token. As in transformers, others stay in
    // the order of the tokens.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    Ok(merges.into_iter().map(|(.., pair)| pair).collect())
}
