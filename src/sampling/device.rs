//! Sampling on the device: the most likely candidates, a draw among them, and the record of the tokens each sequence
//! has seen.
use std::sync::OnceLock;

use burn::tensor::{Int, Tensor};

use super::Sampling;
use crate::cache::{KvCache, RING};
use crate::device::{ComputeDevice, DeviceInfo};
use crate::kernels::sample::DraftRows;
use crate::kernels::state::{self, SamplerHeader};
use crate::kernels::{
    self, Candidates, InPlace, PenaltySpec, SampleSpec, TokenLogitSpec, TokenMaskSpec, TopKSpec, memory, top_k,
};
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
    vocab: usize,
    /// How often each sequence has generated each token, `[sequences, vocab]`. It is allocated for the first request
    /// that needs it. Only the rows of sequences with frequency or presence penalties are meaningful.
    counts: Option<InPlace<Tensor<1, Int>>>,
    /// A state and seen tokens for [`observe`](Self::observe): those of one sequence without temperature and penalty.
    neutral: OnceLock<(Tensor<1, Int>, Tensor<1, Int>)>,
}

/// The tokens whose probabilities are reported, one for each row of logits.
pub(crate) enum Tokens<'a> {
    /// The tokens that were just sampled for these sequences, which are the selected ones of the cache.
    Sampled(&'a mut KvCache, &'a [usize]),
    /// The listed tokens, in the order of the rows.
    Listed(&'a [u32]),
}

/// The values on the device from which the probabilities of one token per row are computed.
pub(crate) struct Observed {
    /// Number of rows of logits.
    pub rows: usize,
    /// The highest logits of each row and their ids, in order: u32 `[rows, 2 k]`.
    pub highest: Tensor<1, Int>,
    /// f32 `[rows · chunks, 4]`: four values for each part of a row. They are its maximum, the sum of
    /// `exp(value − maximum)`, 1 if a value is not finite, and 0.
    pub sums: Tensor<2>,
    /// f32 `[rows, 1]`: the logits of the tokens themselves.
    pub chosen: Tensor<2>,
}

/// The most rows of logits for which [`Sampler::observe`] is called at once.
pub(crate) const MOST_OBSERVED: usize = 32;

/// The number of u32 words that hold a bit for each token of the vocabulary.
fn seen_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

/// The settings of a sampler as the kernels read them.
fn header(sampling: &Sampling, seed: u64) -> SamplerHeader {
    let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty } =
        *sampling;
    let temperature = if sampling.is_greedy() { 0.0 } else { temperature };
    SamplerHeader { temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, seed }
}

impl Sampler {
    /// Greedy samplers for all sequences of `cache`, for a vocabulary of `vocab` tokens.
    pub fn new(vocab: usize, cache: &mut KvCache, device: &ComputeDevice) -> Self {
        let (seqs, seen_words) = (cache.shape().seqs, seen_words(vocab));
        for seq in 0..seqs {
            cache.write_sampler(seq, header(&Sampling::GREEDY, 0));
        }
        let seen = kernels::u32_tensor(vec![0; (seqs * seen_words).next_multiple_of(4)], &device.burn);
        Self {
            settings: vec![Sampling::GREEDY; seqs],
            seen: InPlace::new(seen),
            seen_words,
            vocab,
            counts: None,
            neutral: OnceLock::new(),
        }
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
        if sampling.counts() {
            let (device, words) = (self.seen.device(), (self.settings.len() * self.vocab).next_multiple_of(4));
            let counts = self.counts.get_or_insert_with(|| InPlace::new(kernels::u32_tensor(vec![0; words], &device)));
            let (offset, none) = (seq * self.vocab, vec![0; self.vocab]);
            counts.update(|counts| ((), memory::write_u32(counts, offset, none)));
        }
    }

    /// Checks that a sequence with these settings can be set up.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the counts of the tokens of all sequences exceed the largest buffer.
    pub(crate) fn check_counts(&self, sampling: &Sampling, info: &DeviceInfo) -> Result<()> {
        let bytes = 4 * (self.settings.len() * self.vocab) as u64;
        if !sampling.counts() || bytes <= info.max_binding_bytes {
            return Ok(());
        }
        let e = Error::new(ErrorKind::Device, "the counts of generated tokens exceed the adapter's largest buffer");
        Err(e
            .at(info.line())
            .expected(format!("at most {} bytes", info.max_binding_bytes))
            .found(format!("{bytes} bytes for {} sequences", self.settings.len()))
            .help("run fewer `sequences`, or leave out `frequency_penalty` and `presence_penalty`"))
    }

    /// Counts the tokens that `seqs` have generated last, and applies their frequency and presence penalties to
    /// `logits`. `None` if none of them has such penalties.
    fn penalise(&mut self, logits: &Tensor<2>, cache: &mut KvCache, seqs: &[usize]) -> Option<Tensor<2>> {
        let counts = self.counts.as_mut().filter(|_| seqs.iter().any(|seq| self.settings[*seq].counts()))?;
        let [n, count] = logits.dims();
        let spec = PenaltySpec { n, count, row_seq_offset: cache.select(seqs) };
        Some(counts.update(|counts| kernels::penalty(logits, cache.state(), counts, spec)))
    }

    /// Samples the next token of each of `seqs` from its row of `logits`, f32 `[seqs, vocab]`, on the device, and
    /// advances their lengths and positions in `cache` by `advance`: the number of tokens just forwarded, or 0 where
    /// the host has advanced them.
    pub fn sample(&mut self, logits: &Tensor<2>, cache: &mut KvCache, seqs: &[usize], advance: usize) {
        self.launch(logits, cache, seqs, advance);
        cache.sampled(seqs, advance);
    }

    /// Launches the kernels of [`sample`](Self::sample). The mirror on the host is not updated.
    pub(crate) fn launch(&mut self, logits: &Tensor<2>, cache: &mut KvCache, seqs: &[usize], advance: usize) {
        let penalised = self.penalise(logits, cache, seqs);
        self.choose(penalised.as_ref().unwrap_or(logits), cache, seqs, advance, None);
    }

    /// Launches the kernels that sample a step with drafts: `logits` has `chunk` rows for each of `seqs`, whose
    /// settings must have no penalties. How many tokens a sequence gets is known only on the device.
    pub(crate) fn launch_drafted(&mut self, logits: &Tensor<2>, cache: &mut KvCache, seqs: &[usize], chunk: usize) {
        let drafts = DraftRows { chunk, drafts_offset: cache.drafts_offset() };
        self.choose(logits, cache, seqs, 1, Some(drafts));
    }

    /// Like [`sample`](Self::sample), but only among the tokens of each row whose bit is set in `allowed`, u32
    /// `[seqs, ⌈vocab / 32⌉]`. At least one bit must be set in each row.
    pub(crate) fn sample_among(
        &mut self,
        logits: &Tensor<2>,
        allowed: &Tensor<1, Int>,
        spec: TokenMaskSpec,
        cache: &mut KvCache,
        seqs: &[usize],
        advance: usize,
    ) {
        let penalised = self.penalise(logits, cache, seqs);
        let masked = kernels::token_mask(penalised.as_ref().unwrap_or(logits), allowed, spec);
        self.choose(&masked, cache, seqs, advance, None);
        cache.sampled(seqs, advance);
    }

    /// Chooses the next tokens from logits to which the penalties of [`penalise`](Self::penalise) have been applied.
    fn choose(
        &mut self,
        logits: &Tensor<2>,
        cache: &mut KvCache,
        seqs: &[usize],
        advance: usize,
        drafts: Option<DraftRows>,
    ) {
        let ([n, count], seen_words) = (logits.dims(), self.seen_words);
        let row_seq_offset = cache.select_rows(seqs, drafts.map_or(1, |drafts| drafts.chunk));
        // Greedy sampling needs only the first candidate.
        let k = if seqs.iter().all(|seq| self.settings[*seq].is_greedy()) { 1 } else { MOST_CANDIDATES };
        let spec = TopKSpec { count, n, k, merge: false, row_seq_offset, seen_words };
        let chunks = spec.lists();
        let Candidates { lists: candidates, per_row, sums } =
            kernels::candidates(logits, cache.state(), &self.seen, spec);
        let (layers, all_seqs, ring) = (cache.shape().layers, cache.shape().seqs, RING);
        let row_seq_offset = cache.select(seqs);
        let spec = SampleSpec {
            n,
            drafts,
            k,
            lists: per_row,
            chunks,
            row_seq_offset,
            layers,
            all_seqs,
            ring,
            advance,
            seen_words,
        };
        let seen = &mut self.seen;
        cache.write_sampled(|state| seen.update(|seen| kernels::sample(&candidates, &sums, state, seen, spec)));
    }

    /// Launches the kernels that extract the values for reports of probabilities from `logits`, f32 `[rows, vocab]`.
    /// Neither temperature nor penalties are applied. Does not wait for the results.
    pub(crate) fn observe(&self, logits: &Tensor<2>, tokens: Tokens<'_>, device: &ComputeDevice) -> Observed {
        let [n, count] = logits.dims();
        let (sampled, ids) = match tokens {
            Tokens::Sampled(cache, seqs) => (Some(cache.select(seqs)), cache.state().clone()),
            Tokens::Listed(ids) => {
                let mut words = ids.to_vec();
                words.resize(words.len().next_multiple_of(4), 0);
                (None, kernels::u32_tensor(words, &device.burn))
            }
        };
        let spec = TokenLogitSpec { n, count, sampled };
        let chosen = kernels::token_logit(logits, &ids, spec);
        let (state, seen) = self.neutral.get_or_init(|| {
            let mut words = vec![0; state::MISSED];
            words.extend(header(&Sampling::GREEDY, 0).words());
            // The list of the rows' sequences has only zeros, so every row belongs to this sequence.
            words.resize(state::SEQ + MOST_OBSERVED.max(self.settings.len()).next_multiple_of(4), 0);
            let seen = vec![0; self.seen_words.next_multiple_of(4)];
            (kernels::u32_tensor(words, &device.burn), kernels::u32_tensor(seen, &device.burn))
        });
        let (row_seq_offset, seen_words) = (state::SEQ, self.seen_words);
        let spec = TopKSpec { count, n, k: MOST_CANDIDATES, merge: false, row_seq_offset, seen_words };
        let Candidates { lists: highest, sums, .. } = kernels::candidates(logits, state, seen, spec);
        Observed { rows: n, highest, sums, chosen }
    }

    /// The largest share of the requested probability that lay outside the candidates of `seq`, from a copy of the
    /// state ([`KvCache::read_state`]).
    pub fn missed(copy: &[u32], seq: usize) -> f32 {
        f32::from_bits(copy[seq * state::SEQ + state::MISSED])
    }
}
