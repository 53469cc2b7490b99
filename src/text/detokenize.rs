//! Ids back to text, one at a time, never half a character.
//!
//! **Offsets.** A token of a vocabulary of bytes may end inside a UTF-8 character. [`Detokenizer::token_ends`] gives, for each
//! token pushed, the byte offset in [`Detokenizer::text`] behind the token's last byte: inside a character where the
//! token ends there, and past the end of the text while that character is incomplete. Bytes that turn out to be no
//! UTF-8 become U+FFFD, exactly as a decoder of the whole would write it, and the ends of the tokens involved move to
//! the end of that replacement; so an end is final once it does not lie past the text. Ends never decrease.
use super::Tokenizer;
use crate::Result;

/// Turns a growing list of ids into a growing text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    text: String,
    ends: Vec<usize>,
    /// Bytes behind `text` that are not a whole character yet, at most 3.
    pending: Vec<u8>,
    /// The token before, for decoders that need a token's neighbour.
    previous: Option<u32>,
}

impl Detokenizer {
    /// Starts an empty text. `skip_special` leaves special tokens (end of turn, …) out of it: they then have no bytes.
    /// `<think>` and `</think>` are ordinary tokens in the tokenizers of reasoning models, and stay.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            skip_special,
            text: String::new(),
            ends: Vec::new(),
            pending: Vec::new(),
            previous: None,
        }
    }

    /// Appends a token and returns the text that is complete with it, often one token's, sometimes none.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails. Never for byte-level vocabularies.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        let before = self.text.len();
        if self.skip_special && self.tokenizer.is_special(id) {
            // No bytes: it ends where its predecessor does, which may move with it.
            self.ends.push(self.text.len() + self.pending.len());
        } else if let Some(bytes) = self.tokenizer.token_bytes(id) {
            self.pending.extend_from_slice(&bytes);
            self.ends.push(self.text.len() + self.pending.len());
            self.settle(false);
        } else {
            self.push_by_difference(id)?;
        }
        self.previous = Some(id);
        Ok(&self.text[before..])
    }

    /// Ends the text: what is left of an incomplete character becomes U+FFFD. Returns the text this added.
    pub fn finish(&mut self) -> &str {
        let before = self.text.len();
        self.settle(true);
        &self.text[before..]
    }

    /// All complete text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// For each token, the offset in the text behind its last byte; see the [module](self).
    pub fn token_ends(&self) -> &[usize] {
        &self.ends
    }

    /// Whether the latest token ends inside a character, so that the text lacks its last bytes.
    pub fn ends_inside_char(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Moves whole characters, and replacements for bytes that can never become one, from `pending` to the text.
    fn settle(&mut self, finish: bool) {
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    self.pending.clear();
                    return;
                }
                Err(error) => {
                    let (valid, rest) = self.pending.split_at(error.valid_up_to());
                    // Valid by `valid_up_to`; lossy never replaces anything here.
                    self.text.push_str(&String::from_utf8_lossy(valid));
                    let bad = match error.error_len() {
                        Some(bad) => bad,
                        None if finish => rest.len(),
                        None => {
                            self.pending = rest.to_vec();
                            return;
                        }
                    };
                    self.pending = rest[bad..].to_vec();
                    self.replace(bad);
                }
            }
        }
    }

    /// Writes U+FFFD for `bad` bytes at the end of the text and moves the ends that lie in or behind them.
    fn replace(&mut self, bad: usize) {
        let start = self.text.len();
        self.text.push(char::REPLACEMENT_CHARACTER);
        let end = self.text.len();
        for token_end in self.ends.iter_mut().rev().take_while(|token_end| **token_end > start) {
            *token_end = if *token_end <= start + bad { end } else { *token_end - bad + (end - start) };
        }
    }

    /// For decoders that need a token's neighbour (▁ for spaces, ## for joins): the text is what decoding the previous
    /// token gains by the new one. Such tokens are whole characters, so bytes still pending are no UTF-8.
    fn push_by_difference(&mut self, id: u32) -> Result<()> {
        self.settle(true);
        let alone = || self.tokenizer.decode(&[id], self.skip_special);
        let gained = match self.previous {
            None => alone()?,
            Some(previous) => {
                let known = self.tokenizer.decode(&[previous], self.skip_special)?;
                let whole = self.tokenizer.decode(&[previous, id], self.skip_special)?;
                whole.strip_prefix(known.as_str()).map_or_else(alone, |gained| Ok(gained.to_string()))?
            }
        };
        self.text.push_str(&gained);
        self.ends.push(self.text.len());
        Ok(())
    }
}
