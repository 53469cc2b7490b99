//! How much a model's predictions change if its weights are stored less finely: perplexity, and the divergence of the
//! predicted distributions, on a text.
use serde::Serialize;

use crate::cache::{CacheShape, KvCache};
use crate::dtype::Dtype;
use crate::engine::GROWTH;
use crate::kernels::readback::{Readback, as_f32, read_f32};
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, ForwardOutput, Input, Logits};
use crate::{Error, ErrorKind, Result};

/// Tokens of the text that are read together. A longer text is cut into several such windows, each of which is read
/// without the one before.
pub const WINDOW: usize = 512;
/// Tokens that are forwarded at once. Their logits are read together.
const CHUNK: usize = 32;

/// The difference between a model and a reference with the same vocabulary, on the same text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quality {
    /// Predictions that were compared: one for each token of a window but its first.
    pub predictions: usize,
    /// The perplexity of the text for the model: the exponential of the mean negative log-likelihood of its tokens.
    pub perplexity: f64,
    /// The perplexity of the text for the reference.
    pub reference_perplexity: f64,
    /// The mean Kullback-Leibler divergence of the model's distribution from the reference's, in nats: the mean of
    /// `Σ p ln(p / q)`, where `p` is the reference's.
    pub mean_divergence: f64,
    /// The largest of these divergences.
    pub largest_divergence: f64,
    /// The fraction of predictions whose most likely token is the same.
    pub same_choice: f64,
}

/// Sums over the predictions.
#[derive(Default)]
struct Sums {
    predictions: usize,
    loss: f64,
    reference_loss: f64,
    divergence: f64,
    largest: f64,
    same: usize,
}

impl Sums {
    /// Adds a prediction: the logits of both, and the token that follows in the text.
    fn add(&mut self, reference: &[f32], logits: &[f32], next: usize) {
        let (p, q) = (log_softmax(reference), log_softmax(logits));
        let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        self.predictions += 1;
        self.loss -= q[next];
        self.reference_loss -= p[next];
        self.divergence += divergence;
        self.largest = self.largest.max(divergence);
        self.same += usize::from(most_likely(reference) == most_likely(logits));
    }

    fn finish(&self) -> Quality {
        let n = self.predictions as f64;
        Quality {
            predictions: self.predictions,
            perplexity: (self.loss / n).exp(),
            reference_perplexity: (self.reference_loss / n).exp(),
            mean_divergence: self.divergence / n,
            largest_divergence: self.largest,
            same_choice: self.same as f64 / n,
        }
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f64 = logits.iter().map(|v| f64::from(v - most).exp()).sum();
    logits.iter().map(|v| f64::from(v - most) - total.ln()).collect()
}

fn most_likely(logits: &[f32]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// The ranges of the windows of a text.
fn windows(tokens: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..tokens).step_by(WINDOW).map(move |first| first..(first + WINDOW).min(tokens)).filter(|w| w.len() > 1)
}

/// Checks what [`compare`] needs, before models are loaded.
///
/// # Errors
/// [`ErrorKind::Input`] for a text of fewer than two tokens, an id outside the vocabulary, and vocabularies of
/// different sizes.
pub fn check(reference: &ModelConfig, model: &ModelConfig, begin: &[u32], ids: &[u32]) -> Result<()> {
    let (vocab, other) = (reference.vocab_size, model.vocab_size);
    if vocab != other {
        return Err(Error::new(ErrorKind::Input, "the two models have different vocabularies")
            .expected(format!("{vocab} tokens, as the reference has"))
            .found(other)
            .help("a model is compared with the one that it was made of"));
    }
    if ids.len() < 2 {
        return Err(Error::new(ErrorKind::Input, "the text is too short to predict anything")
            .expected("at least 2 tokens")
            .found(ids.len()));
    }
    match ids.iter().chain(begin).find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::new(ErrorKind::Input, "a token id is outside the vocabulary")
            .expected(format!("ids below {vocab}"))
            .found(id)),
    }
}

/// A model that reads a text from its beginning.
struct PerplexityReader<'m> {
    model: &'m Decoder,
    cache: KvCache,
}

impl<'m> PerplexityReader<'m> {
    fn new(model: &'m Decoder) -> Result<Self> {
        let cache = KvCache::new(CacheShape::new(model.config(), Dtype::F32, 1, GROWTH)?, model.device());
        Ok(Self { model, cache })
    }

    /// Forwards the next tokens.
    fn forward(&mut self, ids: &[u32]) -> Result<ForwardOutput> {
        let plan = self.model.plan(Input::Chunk { seq: 0, ids }, &mut self.cache)?;
        let out = self.model.forward(&plan, &mut self.cache, None);
        // The pending token is passed with the next chunk and not taken from the state, so its value does not matter.
        self.cache.advance(0, ids.len(), ids[0]);
        Ok(out)
    }

    /// Forwards the next tokens, and begins to read the logits after each of them.
    fn logits(&mut self, ids: &[u32]) -> Result<Readback> {
        let out = self.forward(ids)?;
        Ok(read_f32(&[&self.model.logits(&out, Logits::All)]))
    }
}

/// The logits that `model` gives after each of the tokens `ids`, `[tokens, vocabulary]`, with an f32 cache. They
/// serve to compare two devices.
///
/// # Errors
/// [`ErrorKind::Input`] for an id outside the vocabulary, or for more tokens than the context; [`ErrorKind::Device`]
/// if the device cannot be read.
pub async fn logits(model: &Decoder, ids: &[u32]) -> Result<Vec<f32>> {
    let mut reader = PerplexityReader::new(model)?;
    let mut all = Vec::new();
    for chunk in ids.chunks(CHUNK) {
        all.extend(as_f32(&reader.logits(chunk)?.await?[0]));
    }
    Ok(all)
}

/// Compares the predictions of `model` with those of `reference` for the tokens `ids` of a text. Each window is read
/// after the tokens `begin`, with which the model expects a text to begin. `progress` is called with the number of
/// tokens done and of all tokens: at the beginning, and after each chunk of at most 32 tokens.
///
/// # Errors
/// Those of [`check`]; [`ErrorKind::Input`] for a context that is shorter than a window with its beginning;
/// [`ErrorKind::Device`] where the device cannot be read; [`ErrorKind::Model`] where
/// logits are not finite.
pub async fn compare(
    reference: &Decoder,
    model: &Decoder,
    begin: &[u32],
    ids: &[u32],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quality> {
    check(reference.config(), model.config(), begin, ids)?;
    let vocab = reference.config().vocab_size;
    let mut sums = Sums::default();
    progress(0, ids.len());
    for window in windows(ids.len()) {
        let (mut reference, mut model) = (PerplexityReader::new(reference)?, PerplexityReader::new(model)?);
        if !begin.is_empty() {
            reference.forward(begin)?;
            model.forward(begin)?;
        }
        // The token after the last one is not known, so the last token is not forwarded.
        let read = window.start..window.end - 1;
        for first in read.clone().step_by(CHUNK) {
            let chunk = &ids[first..(first + CHUNK).min(read.end)];
            // Both reads are started before the first one is awaited.
            let (p, q) = (reference.logits(chunk)?, model.logits(chunk)?);
            let (p, q) = (as_f32(&p.await?[0]), as_f32(&q.await?[0]));
            for (i, (p, q)) in p.chunks(vocab).zip(q.chunks(vocab)).enumerate() {
                if p.iter().chain(q).any(|v| !v.is_finite()) {
                    return Err(Error::new(ErrorKind::Model, "the logits are not finite")
                        .at(format!("token {}", first + i))
                        .help("are the weights intact?"));
                }
                sums.add(p, q, ids[first + i + 1] as usize);
            }
            progress(first + chunk.len(), ids.len());
        }
    }
    progress(ids.len(), ids.len());
    Ok(sums.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_text() {
        let ranges = |n| windows(n).map(|w| (w.start, w.end)).collect::<Vec<_>>();
        assert_eq!(ranges(2), [(0, 2)]);
        assert_eq!(ranges(WINDOW), [(0, WINDOW)]);
        assert_eq!(ranges(WINDOW + 1), [(0, WINDOW)], "a window of one token predicts nothing");
        assert_eq!(ranges(WINDOW + 2), [(0, WINDOW), (WINDOW, WINDOW + 2)]);
    }

    /// Two distributions whose divergence is computed by hand.
    #[test]
    fn divergence_and_perplexity_are_those_of_the_definition() {
        let ln = |p: [f64; 2]| p.map(|p| p.ln() as f32);
        let mut sums = Sums::default();
        sums.add(&ln([0.5, 0.5]), &ln([0.25, 0.75]), 0);
        sums.add(&ln([0.1, 0.9]), &ln([0.1, 0.9]), 1);
        let q = sums.finish();
        let by_hand = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((q.largest_divergence - by_hand).abs() < 1e-6 && (q.mean_divergence - by_hand / 2.0).abs() < 1e-6);
        assert!((q.perplexity - (1.0 / (0.25 * 0.9f64)).sqrt()).abs() < 1e-6);
        assert!((q.reference_perplexity - (1.0 / (0.5 * 0.9f64)).sqrt()).abs() < 1e-6);
        assert_eq!((q.predictions, q.same_choice), (2, 0.5));
    }
}
