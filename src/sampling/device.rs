//! Sampling on the device: the most likely candidates, a draw among them, and the record of the tokens each sequence
//! has seen.
use burn::tensor::{Int, Tensor};

use super::Sampling;
use crate::cache::{KvCache, RING};
use crate::device::{ComputeDevice, DeviceInfo};
use crate::kernels::state::{self, SamplerHeader};
use crate::kernels::{self, InPlace, SampleSpec, TopKSpec, memory, top_k};
use crate::{Error, ErrorKind, Result};

/// The most candidates of a draw. With a larger top-k, or with none, a draw is among this many of the most likely
/// tokens. The share of the requested probability that lies outside them is reported
/// ([`RunResult::missed`](crate::engine::RunResult::missed)).
pub const MOST_CANDIDATES: usize = top_k::MOST;

/// The samplers of the sequences of one [`KvCache`]. The sampled ids stay in the cache's state, where the next step
/// finds them.
pub struct Sampler {
    settings: Vec<Sampling>,
    /// A bit for each token of the vocabulary that is in the sequence's prompt or was generated: [`seen_words`] words
    /// a sequence.
    seen: InPlace<Tensor<1, Int>>,
    seen_words: usize,
}

/// u32 words that hold a bit for each token of the vocabulary.
fn seen_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

/// The settings of a sampler as the kernels read them.
fn header(sampling: &Sampling, seed: u64) -> SamplerHeader {
    let Sampling { temperature, top_k, top_p, min_p, repetition_penalty } = *sampling;
    let temperature = if sampling.is_greedy() { 0.0 } else { temperature };
    SamplerHeader { temperature, top_k, top_p, min_p, repetition_penalty, seed }
}

impl Sampler {
    /// Greedy samplers for all sequences of `cache`, for a vocabulary of `vocab` tokens.
    pub fn new(vocab: usize, cache: &mut KvCache, device: &ComputeDevice) -> Self {
        let (seqs, seen_words) = (cache.shape().seqs, seen_words(vocab));
        for seq in 0..seqs {
            cache.write_sampler(seq, header(&Sampling::GREEDY, 0));
        }
        let seen = kernels::u32_tensor(vec![0; (seqs * seen_words).next_multiple_of(4)], &device.burn);
        Self { settings: vec![Sampling::GREEDY; seqs], seen: InPlace::new(seen), seen_words }
    }

    /// Checks that the samplers of `seqs` sequences fit on a device.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the bits of the seen tokens exceed the largest buffer.
    pub fn check(vocab: usize, seqs: usize, info: &DeviceInfo) -> Result<()> {
        let bytes = 4 * (seqs * seen_words(vocab)) as u64;
        if bytes <= info.max_binding_bytes {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Device, "the samplers of all sequences exceed the adapter's largest buffer")
            .at(info.line())
            .expected(format!("at most {} bytes", info.max_binding_bytes))
            .found(format!("{bytes} bytes for {seqs} sequences"))
            .help("run fewer `sequences`"))
    }

    /// Sets up `seq`: the settings of its sampler, the seed of its draws, and the tokens of `prompt` as seen.
    pub fn set(&mut self, cache: &mut KvCache, seq: usize, sampling: &Sampling, seed: u64, prompt: &[u32]) {
        self.settings[seq] = *sampling;
        cache.write_sampler(seq, header(sampling, seed));
        let mut bits = vec![0u32; self.seen_words];
        for id in prompt {
            bits[*id as usize / 32] |= 1 << (id % 32);
        }
        let offset = seq * self.seen_words;
        self.seen.update(|seen| ((), memory::write_u32(seen, offset, bits)));
    }

    /// Samples the next token of each of `seqs` from its row of `logits`, f32 `[seqs, vocab]`, on the device, and
    /// advances their lengths and positions in `cache` by `advance`: the number of tokens just forwarded, or 0 where
    /// the host has advanced them.
    pub fn sample(&mut self, logits: &Tensor<2>, cache: &mut KvCache, seqs: &[usize], advance: usize) {
        let (n, seen_words) = (seqs.len(), self.seen_words);
        let row_seq_offset = cache.select(seqs);
        // Greedy sampling needs only the first candidate.
        let k = if seqs.iter().all(|seq| self.settings[*seq].is_greedy()) { 1 } else { MOST_CANDIDATES };
        let spec = TopKSpec { count: logits.dims()[1], n, k, merge: false, row_seq_offset, seen_words };
        let (mut candidates, sums) = kernels::top_k(logits, cache.state(), &self.seen, spec);
        let (mut lists, chunks) = (spec.lists(), spec.lists());
        if let Some(merging) = spec.merging() {
            candidates = kernels::top_k_merge(&candidates, cache.state(), &self.seen, merging);
            lists = 1;
        }
        let (layers, all_seqs, ring) = (cache.shape().layers, cache.shape().seqs, RING);
        let spec = SampleSpec { n, k, lists, chunks, row_seq_offset, layers, all_seqs, ring, advance, seen_words };
        let seen = &mut self.seen;
        cache.write_sampled(seqs, advance, |state| {
            seen.update(|seen| kernels::sample(&candidates, &sums, state, seen, spec))
        });
    }

    /// The largest share of the requested probability that lay outside the candidates of `seq`, from a copy of the
    /// state ([`KvCache::read_state`]).
    pub fn missed(copy: &[u32], seq: usize) -> f32 {
        f32::from_bits(copy[seq * state::SEQ + state::MISSED])
    }
}
