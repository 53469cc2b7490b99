//! Probabilities of tokens, computed from the values that kernels extract from the logits.
use crate::kernels::readback::{Readback, as_f32, as_u32, read_f32, read_u32};
use crate::sampling::MOST_CANDIDATES;
use crate::sampling::device::Observed;
use crate::{Error, ErrorKind, Result};

/// The most tokens whose probabilities are reported at each place.
pub const MOST_LOGPROBS: usize = 20;

/// Natural logarithms of the probabilities that the model gave to tokens at one place. They come from the logits of
/// the model, before temperature and penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The logarithm of the probability of the token at this place.
    pub chosen: f32,
    /// The most likely tokens with the logarithms of their probabilities, the most likely first. If the token at this
    /// place is among them, its number is the same as `chosen`.
    pub top: Vec<(u32, f32)>,
}

/// The tokens that a group of rows belongs to.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// The tokens that one decode step sampled for these sequences.
    Step(Vec<usize>),
    /// The next tokens in the prompt of this sequence.
    Prompt(usize),
}

/// Reads of probabilities from the device that are under way.
pub(crate) struct PendingLogprobs {
    of: Vec<(Origin, usize)>,
    highest: Readback,
    floats: Readback,
}

impl PendingLogprobs {
    /// Starts reading. Returns `None` if `observed` is empty.
    pub fn new(observed: Vec<(Origin, Observed)>) -> Option<Self> {
        if observed.is_empty() {
            return None;
        }
        let highest = read_u32(&observed.iter().map(|(_, o)| &o.highest).collect::<Vec<_>>());
        let floats = read_f32(&observed.iter().flat_map(|(_, o)| [&o.sums, &o.chosen]).collect::<Vec<_>>());
        Some(Self { of: observed.into_iter().map(|(of, o)| (of, o.rows)).collect(), highest, floats })
    }

    /// Waits for the reads. Returns the rows of each group of tokens, in order.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub async fn finish(self) -> Result<Vec<(Origin, Vec<TokenRow>)>> {
        let (highest, floats) = (self.highest.await?, self.floats.await?);
        let mut groups = Vec::new();
        for (((of, rows), highest), floats) in self.of.into_iter().zip(highest).zip(floats.chunks_exact(2)) {
            let (highest, sums, chosen) = (as_u32(&highest), as_f32(&floats[0]), as_f32(&floats[1]));
            let chunks = sums.len() / rows;
            let row = |i: usize| TokenRow {
                highest: highest[i * 2 * MOST_CANDIDATES..][..2 * MOST_CANDIDATES].to_vec(),
                sums: sums[i * chunks..][..chunks].to_vec(),
                chosen: chosen[i],
            };
            groups.push((of, (0..rows).map(row).collect()));
        }
        Ok(groups)
    }
}

/// The values that the kernels extracted from one row of logits.
pub(crate) struct TokenRow {
    /// Bits of the highest logits, then their ids.
    highest: Vec<u32>,
    /// Four values for each part of the row: its maximum, the sum of `exp(value − maximum)`, 1 if a value is not
    /// finite, and 0.
    sums: Vec<f32>,
    chosen: f32,
}

impl TokenRow {
    /// The probabilities, with the `most` most likely tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] for logits that are not finite.
    pub fn logprobs(&self, most: usize) -> Result<Logprobs> {
        let chunks = || self.sums.chunks_exact(4);
        if chunks().any(|sums| sums[2] != 0.0) {
            return Err(Error::new(ErrorKind::Device, "the logits are not finite").help("are the weights intact?"));
        }
        let highest = chunks().fold(f32::MIN, |highest, sums| highest.max(sums[0]));
        let mass: f64 = chunks().map(|sums| f64::from(sums[1]) * f64::from(sums[0] - highest).exp()).sum();
        // The token itself and the most likely tokens use the same formula, so that equal logits give equal numbers.
        let logarithm = |logit: f32| (f64::from(logit - highest) - mass.ln()) as f32;
        let (values, ids) = self.highest.split_at(MOST_CANDIDATES);
        let top = values.iter().zip(ids).take(most).filter(|(_, id)| **id != u32::MAX);
        let top = top.map(|(value, id)| (*id, logarithm(f32::from_bits(*value)))).collect();
        Ok(Logprobs { chosen: logarithm(self.chosen), top })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two parts of one row, computed by hand.
    #[test]
    fn logarithms_are_those_of_the_softmax() {
        let logits = [1.0f32, -2.0, 3.5, 0.25];
        let mut highest = vec![u32::MAX; 2 * MOST_CANDIDATES];
        for (at, id) in [2usize, 0, 3, 1].into_iter().enumerate() {
            highest[at] = logits[id].to_bits();
            highest[MOST_CANDIDATES + at] = id as u32;
        }
        let part = |part: &[f32]| {
            let most = part.iter().copied().fold(f32::MIN, f32::max);
            [most, part.iter().map(|v| (v - most).exp()).sum(), 0.0, 0.0]
        };
        let sums = [part(&logits[..2]), part(&logits[2..])].concat();
        let row = TokenRow { highest, sums, chosen: logits[3] };
        let total: f64 = logits.iter().map(|v| f64::from(*v).exp()).sum();
        let expected = |id: usize| f64::from(logits[id]) - total.ln();
        let found = row.logprobs(6).unwrap();
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 0, 3, 1]);
        assert!(found.top.iter().all(|(id, v)| (f64::from(*v) - expected(*id as usize)).abs() < 1e-6));
        assert_eq!(found.chosen, found.top[2].1);
        assert!(TokenRow { sums: vec![0.0, 1.0, 1.0, 0.0], ..row }.logprobs(1).is_err());
    }
}
