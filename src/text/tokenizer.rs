//! `tokenizer.json`, read by the `tokenizers` crate, and the bytes behind each id.
use crate::weights::ModelSource;
use crate::{Error, ErrorKind, Result};
use std::sync::{Arc, LazyLock};
use tokenizers::decoders::DecoderWrapper;

const FILE: &str = "tokenizer.json";

/// A tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    hf: tokenizers::Tokenizer,
    /// Tokens are spelled in the GPT-2 byte alphabet, so that each one's bytes are known without its neighbours.
    byte_level: bool,
    /// Tokens `<0x00>` to `<0xFF>` stand for bytes, all others for whole characters.
    byte_fallback: bool,
}

/// The ids of the tags around the thinking; `None` where the tokenizer splits a tag into several tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkIds {
    /// `<think>`
    pub open: Option<u32>,
    /// `</think>`
    pub close: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`; of a GGUF file, its metadata.
    ///
    /// # Errors
    /// When it is missing (text is then impossible, ids are not) or malformed.
    pub fn load(source: &ModelSource) -> Result<Self> {
        if let Some(gguf) = source.gguf() {
            let json = super::gguf::tokenizer_json(gguf)?.to_string();
            return Self::from_bytes(json.as_bytes(), gguf.place());
        }
        let Some(bytes) = source.find(FILE)? else {
            return Err(Error::new(ErrorKind::Model, format!("the model has no {FILE}, which text needs"))
                .at(source)
                .found(source.listing())
                .help("pass token ids with --ids, or add the tokenizer.json of the original model"));
        };
        source.check_json_size(FILE, bytes.len())?;
        Self::from_bytes(&bytes, &source.place_of(FILE))
    }

    /// Reads the bytes of a `tokenizer.json`; `place` names it in messages.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_bytes(bytes: &[u8], place: &str) -> Result<Self> {
        let mut hf = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::new(ErrorKind::Model, "the tokenizer cannot be read").at(place).found(error))?;
        // Settings of somebody's training run: a prompt is neither cut nor padded.
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|error| Error::new(ErrorKind::Internal, error).at(place))?;
        let decoders = match hf.get_decoder() {
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(decoder) => std::slice::from_ref(decoder),
            None => &[],
        };
        let byte_level = matches!(decoders, [DecoderWrapper::ByteLevel(_)]);
        let byte_fallback = decoders.iter().any(|decoder| matches!(decoder, DecoderWrapper::ByteFallback(_)));
        Ok(Self(Arc::new(Inner { hf, byte_level, byte_fallback })))
    }

    /// The ids of `text`. Tags such as `<|im_start|>` in the text become their ids; nothing is added around it, since a
    /// chat template writes what the model expects.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.0.hf.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(Error::new(ErrorKind::Input, "the text cannot be encoded").found(error)),
        }
    }

    /// The text of `ids`, special tokens included or left out, bytes that are no UTF-8 replaced by U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.0
            .hf
            .decode(ids, skip_special)
            .map_err(|error| Error::new(ErrorKind::Internal, "ids cannot be decoded").found(error))
    }

    /// The bytes that `id` stands for, without loss: they may begin or end inside a UTF-8 character. Empty for an id
    /// that no token has (models pad their vocabulary). `None` where the text of a token depends on its neighbour.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        if !self.0.byte_level {
            let token = self.0.hf.id_to_token(id).filter(|_| self.0.byte_fallback)?;
            let byte = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
            return u8::from_str_radix(byte, 16).ok().map(|byte| vec![byte]);
        }
        let Some(token) = self.0.hf.id_to_token(id) else { return Some(Vec::new()) };
        // Added tokens stand for their own text, even where it looks like the byte alphabet.
        if self.0.hf.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return Some(token.into_bytes());
        }
        let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
        Some(bytes.unwrap_or_else(|| token.into_bytes()))
    }

    /// The token as the vocabulary spells it, if `id` has one.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.0.hf.id_to_token(id)
    }

    /// The id of `text` if it is encoded as exactly one token.
    pub fn single_id(&self, text: &str) -> Option<u32> {
        match self.encode(text).as_deref() {
            Ok(&[id]) => Some(id),
            _ => None,
        }
    }

    /// The ids of `<think>` and `</think>`, where each is one token.
    pub fn think_ids(&self) -> ThinkIds {
        ThinkIds { open: self.single_id("<think>"), close: self.single_id("</think>") }
    }

    /// Whether `id` is a special token: one that [`Self::decode`] can leave out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.0.hf.get_added_vocabulary();
        added.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// One more than the largest id that has a token. A model's own `vocab_size` may be larger.
    pub fn vocab_size(&self) -> usize {
        self.0.hf.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("byte_level", &self.0.byte_level).finish_non_exhaustive()
    }
}

/// The byte that a character of the GPT-2 byte alphabet stands for. Printable Latin-1 stands for itself; the 68 other
/// bytes follow, in order, from U+0100.
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
