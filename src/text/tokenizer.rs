//! The tokenizer: reads `tokenizer.json` with the `tokenizers` crate and provides the bytes of each token.
use super::control::{Cut, Spellings};
use super::{Controls, Marks, ThinkTags};
use crate::weights::ModelSource;
use crate::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};
use tokenizers::decoders::DecoderWrapper;

const FILE: &str = "tokenizer.json";
/// The longest run of white space in a text. The engine of the regular expressions that split text keeps a stack of a
/// million entries; where a longer run overflows it, the rest of the text is silently left unsplit.
const LONGEST_BLANK: usize = 900_000;

/// Converts text to token ids and back. Cloning is cheap: clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    hf: tokenizers::Tokenizer,
    /// The vocabulary is spelled in the GPT-2 byte alphabet, so the bytes of a token do not depend on its neighbours.
    byte_level: bool,
    /// The special tokens that begin every text not written by a chat template, such as `<s>`.
    begin: Vec<u32>,
    /// The tokens `<0x00>` to `<0xFF>` stand for single bytes; all other tokens stand for whole characters.
    byte_fallback: bool,
    controls: Controls,
    /// Made when the first text needs it.
    spelling: OnceLock<Result<Spelling>>,
}

/// The same tokenizer with other, secret spellings for the control tokens, so that no text that people write becomes
/// one.
struct Spelling {
    hf: tokenizers::Tokenizer,
    /// The secret spelling of each control token.
    names: HashMap<u32, String>,
    /// The ids of added tokens in this tokenizer, mapped to their ids in the original one.
    ids: HashMap<u32, u32>,
}

/// The ids of the tags around the model's thinking. An id is `None` where the tokenizer splits the tag into several
/// tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkIds {
    /// The id of `<think>`, or of the model's own opening tag.
    pub open: Option<u32>,
    /// The id of `</think>`, or of the model's own closing tag.
    pub close: Option<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model: from `tokenizer.json`, or from the metadata of a GGUF file.
    ///
    /// # Errors
    /// If the tokenizer is missing or malformed. Without a tokenizer, prompts can still be given as token ids.
    pub fn load(source: &ModelSource) -> Result<Self> {
        if let Some(gguf) = source.gguf() {
            let json = super::gguf::tokenizer_json(gguf)?.to_string();
            return Self::from_bytes(json.as_bytes(), gguf.place());
        }
        let Some(bytes) = source.find(FILE)? else {
            return Err(Error::new(ErrorKind::Model, format!("the model has no {FILE}, which is needed to read text"))
                .at(source)
                .found(source.listing())
                .help("pass token `ids`, or add the tokenizer.json of the original model"));
        };
        source.check_json_size(FILE, bytes.len())?;
        Self::from_bytes(&bytes, &source.place_of(FILE))
    }

    /// Whether the model has a tokenizer, be it one that can be read or not.
    pub fn exists(source: &ModelSource) -> bool {
        match source.gguf() {
            Some(gguf) => super::gguf::has_tokenizer(gguf),
            None => !matches!(source.find(FILE), Ok(None)),
        }
    }

    /// Reads the bytes of a `tokenizer.json`. Error messages call the file `place`.
    ///
    /// # Errors
    /// If the bytes are not a valid tokenizer.
    pub fn from_bytes(bytes: &[u8], place: &str) -> Result<Self> {
        let unreadable =
            |error: String| Error::new(ErrorKind::Model, "the tokenizer cannot be read").at(place).found(error);
        let unchecked: Unchecked = serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
        if let Some(kind) = unchecked.unsupported() {
            return Err(Error::new(ErrorKind::Model, "the normalizer of the tokenizer is not supported")
                .at(place)
                .found(kind)
                .help("no model of a supported architecture has one: is this the tokenizer of the model?"));
        }
        let mut hf = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| unreadable(error.to_string()))?;
        // Files often keep the padding and truncation of the training run; a prompt must be neither padded nor cut.
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|error| Error::new(ErrorKind::Internal, error).at(place))?;
        let decoders = match hf.get_decoder() {
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(decoder) => std::slice::from_ref(decoder),
            None => &[],
        };
        let byte_level = matches!(decoders, [DecoderWrapper::ByteLevel(_)]);
        let byte_fallback = decoders.iter().any(|decoder| matches!(decoder, DecoderWrapper::ByteFallback(_)));
        let processor = serde_json::to_value(hf.get_post_processor()).unwrap_or_default();
        if let Some(damage) = damage(&processor) {
            return Err(Error::new(ErrorKind::Model, "the post-processor of the tokenizer is damaged")
                .at(place)
                .found(damage));
        }
        let begin = beginning(&hf).unwrap_or_default();
        let controls = controls(&hf);
        Ok(Self(Arc::new(Inner { hf, byte_level, begin, byte_fallback, controls, spelling: OnceLock::new() })))
    }

    /// Encodes `text`. Tags such as `<|im_start|>` in the text become their special tokens. No token is added before
    /// or after the text, because the chat template already writes what the model expects.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text, or the text has a run of more than 900,000 white space characters.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        encode_with(&self.0.hf, text)
    }

    /// The tokens that control a conversation: the special ones, the tags around the thinking, and other added tokens
    /// that are spelled like tags, such as `<tool_call>`.
    pub fn controls(&self) -> &Controls {
        &self.0.controls
    }

    /// Encodes a prompt that a template wrote from messages with [marks](super::Marked). A control token arises only
    /// where the template wrote its spelling. Other ids are those of the text as it was written, which for a text
    /// without marks are those of [`encode`](Self::encode).
    ///
    /// # Errors
    /// The errors of [`encode`](Self::encode), and a text that contains a control token which this tokenizer can
    /// encode in no other way.
    pub fn encode_rendered(&self, text: &str, marks: &Marks) -> Result<Vec<u32>> {
        let controls = &self.0.controls;
        let cuts = controls.all.cut(text);
        if marks.is_empty() {
            let ids = self.encode(text)?;
            let written = cuts.iter().filter(|cut| matches!(cut, Cut::Control(_))).count();
            // A normalizer may turn other characters into a spelling. Then the ids are not used, and the text is
            // spelled out.
            if ids.iter().filter(|id| controls.ids.contains(id)).count() == written {
                return Ok(ids);
            }
        }
        let spelling = self.0.spelling.get_or_init(|| Spelling::new(&self.0.hf, controls));
        let spelling = spelling.as_ref().map_err(Error::clone)?;
        let mut named = String::with_capacity(text.len());
        for cut in cuts {
            match cut {
                Cut::Plain(text) => named.push_str(&marks.removed(text)),
                Cut::Control(id) => named.push_str(spelling.names.get(&id).map_or("", String::as_str)),
            }
        }
        let ids = encode_with(&spelling.hf, &named)?;
        // A token for unknown characters may be a control token. Such a token is not one that the text spells.
        let leaked = |id: &&u32| {
            let own = controls.ids.contains(id) && !spelling.ids.contains_key(id);
            own && self.spelling(**id).is_some_and(|spelled| named.contains(&spelled))
        };
        if let Some(id) = ids.iter().find(leaked) {
            let e = Error::new(ErrorKind::Input, "a message contains a control token that cannot be spelled out");
            return Err(e.found(self.spelling(*id).unwrap_or_default()).help("write it in another way"));
        }
        Ok(ids.into_iter().map(|id| spelling.ids.get(&id).copied().unwrap_or(id)).collect())
    }

    /// Encodes a whole text that no chat template wrote. The special tokens with which the tokenizer begins every
    /// text come first, unless the text begins with them already. Tokens that the tokenizer puts behind a text are
    /// left out, because the model continues the text.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode(text)?;
        let begin = &self.0.begin;
        Ok(if ids.is_empty() || ids.starts_with(begin) { ids } else { [&begin[..], &ids].concat() })
    }

    /// The tokens with which the tokenizer begins every text; often none.
    pub fn beginning(&self) -> &[u32] {
        &self.0.begin
    }

    /// Decodes `ids` to text, with or without the special tokens. Invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let kept: Vec<u32> = ids.iter().copied().filter(|id| !(skip_special && self.is_special(*id))).collect();
        self.0
            .hf
            .decode(&kept, false)
            .map_err(|error| Error::new(ErrorKind::Internal, "the token ids cannot be decoded").found(error))
    }

    /// The exact bytes of the token `id`; they may begin or end inside a UTF-8 character. Empty if no token has this
    /// id (models pad their vocabulary). `None` if the text of the token depends on its neighbour.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if !self.0.byte_level {
            let token = self.0.hf.id_to_token(id).filter(|_| self.0.byte_fallback)?;
            let byte = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
            return u8::from_str_radix(byte, 16).ok().map(|byte| vec![byte]);
        }
        let Some(token) = self.0.hf.id_to_token(id) else { return Some(Vec::new()) };
        // An added token is plain text, even if its characters also occur in the byte alphabet.
        if self.0.hf.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return Some(token.into_bytes());
        }
        let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
        Some(bytes.unwrap_or_else(|| token.into_bytes()))
    }

    /// The bytes that the token `id` adds to a text whatever its neighbours are; empty if no token has this id. A
    /// vocabulary of whole characters writes `▁` for a blank.
    #[cfg(feature = "grammar")]
    pub(crate) fn written(&self, id: u32) -> Vec<u8> {
        let spelled = || self.spelling(id).unwrap_or_default().replace('\u{2581}', " ").into_bytes();
        self.token_bytes(id).unwrap_or_else(spelled)
    }

    /// Whether `id` is one of the [control tokens](Self::controls).
    #[cfg(feature = "grammar")]
    pub(crate) fn is_control(&self, id: u32) -> bool {
        self.0.controls.ids.contains(&id)
    }

    /// The token `id` as the vocabulary spells it, or `None` if no token has this id.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.0.hf.id_to_token(id)
    }

    /// The id of `text`, if the tokenizer encodes it as exactly one token.
    pub fn single_id(&self, text: &str) -> Option<u32> {
        match self.encode(text).as_deref() {
            Ok(&[id]) => Some(id),
            _ => None,
        }
    }

    /// The tags around the model's thinking: the first pair whose closing tag is one token, or `<think>` and
    /// `</think>` if there is none.
    pub fn think_tags(&self) -> ThinkTags {
        let known = ThinkTags::ALL.into_iter().find(|tags| self.single_id(tags.close).is_some());
        known.unwrap_or(ThinkTags::COMMON)
    }

    /// The ids of the [tags](Self::think_tags).
    pub fn think_ids(&self) -> ThinkIds {
        let tags = self.think_tags();
        ThinkIds { open: self.single_id(tags.open), close: self.single_id(tags.close) }
    }

    /// Whether `id` is a special token, such as `<|im_end|>` or `<|endoftext|>`. Special tokens control the
    /// conversation; they are no part of an answer, and [`Self::decode`] can leave them out.
    ///
    /// The tags around the thinking are never special: they stay in the text. In the tokenizers of most reasoning
    /// models, they are ordinary added tokens; `[THINK]` and `[/THINK]` of Magistral are special there. Nor are the
    /// marks of [calls of tools](super::calls), such as `[TOOL_CALLS]`.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.0.hf.get_added_vocabulary();
        let token = added.get_added_tokens_decoder().get(&id);
        let said = |text: &str| ThinkTags::contain(text) || super::calls::MARKS.contains(&text);
        token.is_some_and(|token| token.special && !said(&token.content))
    }

    /// The first token of ordinary text, so none of those that were added, whose id is `size` or more.
    pub fn beyond(&self, size: usize) -> Option<(u32, String)> {
        let ids = self.0.hf.get_vocab(false).into_iter().map(|(text, id)| (id, text));
        ids.filter(|(id, _)| *id as usize >= size).min()
    }

    /// The largest token id plus one. The `vocab_size` of a model may be larger, because models pad their vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.0.hf.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }
}

/// The parts of a tokenizer for which the crate `tokenizers` panics if they are not valid JSON. They are read first,
/// which costs little, because the vocabulary is skipped.
#[derive(Deserialize)]
struct Unchecked {
    #[serde(default)]
    normalizer: serde_json::Value,
    #[serde(default, rename = "decoder")]
    _decoder: serde_json::Value,
}

impl Unchecked {
    /// A kind of normalizer that is refused. The table of a precompiled one is not checked by the crate that reads
    /// it, which panics when it applies a damaged one.
    fn unsupported(&self) -> Option<&'static str> {
        const KIND: &str = "Precompiled";
        fn is_precompiled(value: &serde_json::Value) -> bool {
            match value {
                serde_json::Value::Object(map) => {
                    map.get("type").is_some_and(|kind| kind == KIND)
                        || map.contains_key("precompiled_charsmap")
                        || map.values().any(is_precompiled)
                }
                serde_json::Value::Array(list) => list.iter().any(is_precompiled),
                _ => false,
            }
        }
        is_precompiled(&self.normalizer).then_some(KIND)
    }
}

fn encode_with(hf: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    if text.len() > LONGEST_BLANK {
        let runs = text.split(|c: char| !c.is_whitespace()).filter(|run| run.len() > LONGEST_BLANK);
        if let Some(longest) = runs.map(|run| run.chars().count()).max().filter(|run| *run > LONGEST_BLANK) {
            return Err(Error::new(ErrorKind::Input, "the text has a run of white space that cannot be encoded")
                .expected(format!("at most {LONGEST_BLANK} characters"))
                .found(longest)
                .help("shorten the run"));
        }
    }
    match hf.encode_fast(text, false) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(error) => Err(Error::new(ErrorKind::Input, "the text cannot be encoded").found(error)),
    }
}

/// The control tokens among the added tokens.
fn controls(hf: &tokenizers::Tokenizer) -> Controls {
    let added = hf.get_added_vocabulary().get_added_tokens_decoder();
    let is_tag = |text: &str| {
        let pairs = [('<', '>'), ('[', ']')];
        pairs.iter().any(|(open, close)| text.len() > 2 && text.starts_with(*open) && text.ends_with(*close))
    };
    let mut tokens: Vec<(u32, &str, bool)> = added
        .iter()
        .filter(|(_, token)| token.special || is_tag(&token.content))
        .filter(|(_, token)| !token.content.trim().is_empty())
        .map(|(id, token)| (*id, token.content.as_str(), token.special && !ThinkTags::contain(&token.content)))
        .collect();
    tokens.sort_unstable();
    Controls {
        all: Spellings::new(tokens.iter().map(|(id, text, _)| (*id, *text))),
        special: Spellings::new(tokens.iter().filter(|(.., special)| *special).map(|(id, text, _)| (*id, *text))),
        ids: tokens.iter().map(|(id, ..)| *id).collect(),
    }
}

impl Spelling {
    fn new(tokenizer: &tokenizers::Tokenizer, controls: &Controls) -> Result<Self> {
        let failed =
            |e: &dyn std::fmt::Display| Error::new(ErrorKind::Internal, "the tokenizer cannot be copied").found(e);
        // The spellings cannot be guessed, because they contain random numbers.
        let secret = || getrandom::u64().map_err(|e| failed(&e));
        let secret = format!("{:016x}{:016x}", secret()?, secret()?);
        let mut hf = tokenizers::Tokenizer::new(tokenizer.get_model().clone());
        hf.with_normalizer(tokenizer.get_normalizer().cloned()).map_err(|e| failed(&e))?;
        hf.with_pre_tokenizer(tokenizer.get_pre_tokenizer().cloned());
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut tokens: Vec<(u32, tokenizers::AddedToken)> = added.iter().map(|(id, t)| (*id, t.clone())).collect();
        tokens.sort_unstable_by_key(|(id, _)| *id);
        let mut names = HashMap::new();
        for (id, token) in &mut tokens {
            if controls.ids.contains(id) {
                token.content = format!("\u{10FFFD}{secret}:{id}\u{10FFFD}");
                // The name must be found beside a letter as well.
                token.single_word = false;
                names.insert(*id, token.content.clone());
            }
        }
        hf.add_tokens(tokens.iter().map(|(_, token)| token.clone())).map_err(|e| failed(&e))?;
        let here = hf.get_added_vocabulary().get_vocab();
        let ids = tokens.iter().filter_map(|(id, token)| Some((*here.get(&token.content)?, *id))).collect();
        Ok(Self { hf, names, ids })
    }
}

/// The ids that the tokenizer puts before a text.
fn beginning(hf: &tokenizers::Tokenizer) -> Option<Vec<u32>> {
    let text = hf.encode("a", true).ok()?;
    let added = text.get_special_tokens_mask().iter().take_while(|added| **added == 1).count();
    // If none of the tokens comes from the text itself, the beginning cannot be determined.
    (added < text.len()).then(|| text.get_ids()[..added].to_vec())
}

/// Describes the damage in the templates of a post-processor, given as JSON. The crate `tokenizers` checks templates
/// that it builds, but not those that it reads, and panics when it applies a damaged one.
fn damage(processor: &serde_json::Value) -> Option<String> {
    if let Some(several) = processor["processors"].as_array() {
        return several.iter().find_map(damage);
    }
    let pieces = processor["single"].as_array()?;
    pieces.iter().find_map(|piece| {
        if let Some(id) = piece["SpecialToken"]["id"].as_str() {
            return processor["special_tokens"].get(id).is_none().then(|| format!("the undefined token {id:?}"));
        }
        (piece["Sequence"]["id"] != "A").then(|| format!("the piece {piece}"))
    })
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("byte_level", &self.0.byte_level).finish_non_exhaustive()
    }
}

/// The byte that a character of the GPT-2 byte alphabet stands for. A printable Latin-1 character stands for its own
/// byte; the 68 other bytes are represented, in order, by the characters from U+0100 on.
fn byte_of_char(c: char) -> Option<u8> {
    static SHIFTED: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=255).filter(|&byte| !is_printable(byte)).collect());
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| is_printable(byte)),
        code => SHIFTED.get((code - 0x100) as usize).copied(),
    }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_templates_of_a_post_processor_are_found() {
        let good = serde_json::json!({"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
        assert_eq!(damage(&good), None);
        let mut undefined = good.clone();
        undefined["special_tokens"] = serde_json::json!({});
        let mut second = good.clone();
        second["single"][1]["Sequence"]["id"] = "B".into();
        for damaged in [undefined, second] {
            assert!(damage(&damaged).is_some());
            assert!(damage(&serde_json::json!({"type": "Sequence", "processors": [good, damaged]})).is_some());
        }
        assert_eq!(damage(&serde_json::Value::Null), None, "no post-processor");
    }

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let bytes: std::collections::BTreeMap<u8, char> =
            (0..0x200).filter_map(char::from_u32).filter_map(|c| byte_of_char(c).map(|b| (b, c))).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!((0..0x11_0000).filter_map(char::from_u32).filter_map(byte_of_char).count(), 256);
        for (byte, c) in [(b' ', 'Ġ'), (b'\n', 'Ċ'), (b'A', 'A'), (0xAD, 'Ń'), (0xF0, 'ð')] {
            assert_eq!(byte_of_char(c), Some(byte));
        }
    }
}
