//! Turns token ids into text, one token at a time. The text never contains part of a character.
//!
//! **Special tokens** such as `<|im_end|>` are no part of an answer. A [`Detokenizer`] made with `skip_special`
//! leaves them out of the text; made without it, the text contains their spelling, and a caller that shows an answer
//! must remove them (see [`Tokenizer::is_special`]).
//!
//! **Offsets.** In a byte-level vocabulary, a token may end inside a UTF-8 character. [`Detokenizer::token_ends`]
//! gives, for each token pushed, the byte offset in [`Detokenizer::text`] after the token's last byte. This offset
//! lies inside a character if the token ends inside one, and past the end of the text while that character is still
//! incomplete. Bytes that turn out not to be UTF-8 become U+FFFD, exactly as in a decoder that sees all bytes at
//! once; the ends of the tokens involved then move to the end of the replacement character. An end is therefore final
//! as soon as it does not lie past the text. Ends never decrease.
use super::Tokenizer;
use crate::Result;

/// Turns a growing list of token ids into a growing text; see the [module](self).
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    text: String,
    ends: Vec<usize>,
    /// Bytes that follow `text` and are not a whole character yet; at most 3.
    pending: Vec<u8>,
    /// The token pushed last, for decoders in which the text of a token depends on its neighbour.
    previous: Option<u32>,
}

impl Detokenizer {
    /// Starts an empty text. With `skip_special`, special tokens (end of turn and the like) add no bytes to the text,
    /// which is what an answer needs. `<think>` and `</think>` always stay: they are not
    /// [special](Tokenizer::is_special).
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

    /// Appends a token and returns the text that it completes: usually the token's own text, nothing if the token
    /// ends inside a character.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails, which cannot happen with a byte-level vocabulary.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        let before = self.text.len();
        if self.skip_special && self.tokenizer.is_special(id) {
            // The token has no bytes. It ends where the token before it ends, and moves together with that end.
            self.ends.push(self.text.len() + self.pending.len());
        } else if let Some(bytes) = self.tokenizer.token_bytes(id) {
            self.pending.extend_from_slice(&bytes);
            self.ends.push(self.text.len() + self.pending.len());
            self.take_complete(false);
        } else {
            self.push_by_difference(id)?;
        }
        self.previous = Some(id);
        Ok(&self.text[before..])
    }

    /// Ends the text: the bytes of an incomplete character become U+FFFD. Returns the text that was added.
    pub fn finish(&mut self) -> &str {
        let before = self.text.len();
        self.take_complete(true);
        &self.text[before..]
    }

    /// The text so far, without the bytes of an incomplete character.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// For each token, the byte offset in the text after its last byte; see the [module](self).
    pub fn token_ends(&self) -> &[usize] {
        &self.ends
    }

    /// Whether the last token ends inside a character, so that its last bytes are not in the text yet.
    pub fn ends_inside_char(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Moves whole characters from `pending` to the text, and replaces bytes that can never become a character.
    fn take_complete(&mut self, finish: bool) {
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    self.pending.clear();
                    return;
                }
                Err(error) => {
                    let (valid, rest) = self.pending.split_at(error.valid_up_to());
                    // `valid` is UTF-8 according to `valid_up_to`, so the lossy conversion replaces nothing.
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

    /// Appends U+FFFD in place of `bad` bytes, and moves the token ends that lie inside or after those bytes.
    fn replace(&mut self, bad: usize) {
        let start = self.text.len();
        self.text.push(char::REPLACEMENT_CHARACTER);
        let end = self.text.len();
        for token_end in self.ends.iter_mut().rev().take_while(|token_end| **token_end > start) {
            *token_end = if *token_end <= start + bad { end } else { *token_end - bad + (end - start) };
        }
    }

    /// Appends a token whose text depends on its neighbour (vocabularies that write ▁ for a space or ## for a joined
    /// word). The new text is the difference between decoding the previous token alone and decoding both. Such tokens
    /// are whole characters, so bytes that are still pending can never become UTF-8.
    fn push_by_difference(&mut self, id: u32) -> Result<()> {
        self.take_complete(true);
        let decoded_alone = || self.tokenizer.decode(&[id], self.skip_special);
        let gained = match self.previous {
            None => decoded_alone()?,
            Some(previous) => {
                let before = self.tokenizer.decode(&[previous], self.skip_special)?;
                let whole = self.tokenizer.decode(&[previous, id], self.skip_special)?;
                whole.strip_prefix(before.as_str()).map_or_else(decoded_alone, |gained| Ok(gained.to_string()))?
            }
        };
        self.text.push_str(&gained);
        self.ends.push(self.text.len());
        Ok(())
    }
}
