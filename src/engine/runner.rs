//! The model and the cache of its sequences together: prefill, decode, hold, probe, keep, resume.
//!
//! The methods are the steps of the path, in its order. They launch work on the device and return without waiting for
//! it; only awaiting a readback waits. Sampled ids stay on the device and feed the next step.
use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use crate::Result;
use crate::cache::{CacheShape, KvCache, RegionUpdate, Tracking};
use crate::device::ComputeDevice;
use crate::engine::drafts::Drafts;
use crate::engine::logprobs::{Origin, PendingLogprobs};
use crate::engine::prompts::{CachedPrompts, Shared};
use crate::engine::repeated::{ROOM_TO_RECORD, Repeated, StepKey};
use crate::kernels::attention_recurrence::RECORD;
use crate::kernels::readback::{self, Readback};
use crate::kernels::recording::Recording;
use crate::kernels::{self, Reduce, TokenMaskSpec};
use crate::model::decoder::{Decoder, ForwardOutput, Input, Logits};
use crate::policy::{Measured, Measurement, expected_attention, lazy_eviction};
use crate::sampling::Sampler;
use crate::sampling::device::{MOST_OBSERVED, Observed, Tokens};
use crate::settings::Settings;

/// Ids of a prompt that are forwarded at once.
pub const PREFILL_CHUNK: usize = 256;

/// A model, the cache of the sequences that it runs side by side, and their samplers.
///
/// ```no_run
/// # async fn example(model: std::sync::Arc<secateur::expert::model::decoder::Decoder>) -> secateur::Result<()> {
/// use secateur::expert::cache::CacheShape;
/// use secateur::Dtype;
/// use secateur::expert::runner::Runner;
/// let mut runner = Runner::new(model.clone(), CacheShape::new(model.config(), Dtype::F16, 1, 64)?);
/// runner.prefill(0, &[1, 2, 3])?;
/// runner.decode(&[0], 15)?;
/// let state = runner.read().finish().await?;
/// println!("{:?}", runner.cache().ids(&state, 0, 0, 16)?);
/// # Ok(())
/// # }
/// ```
pub struct Runner {
    model: Arc<Decoder>,
    cache: KvCache,
    sampler: Sampler,
    /// For each sequence, whether the probabilities of its tokens are reported, and whether those of its prompt are.
    reported: Vec<(bool, bool)>,
    /// Probabilities that have not been read yet.
    observed: Vec<(Origin, Observed)>,
    prompts: CachedPrompts,
    repeated: Repeated,
    drafts: Drafts,
}

/// How a sequence is run.
#[derive(Debug, Clone, Copy)]
pub struct Admission<'a> {
    /// How its tokens are chosen (`sampling`, `seed`), and how the positions of kept keys are counted (`positions`):
    /// sequences side by side must agree in the latter.
    pub settings: &'a Settings,
    /// What the cache tracks for the policy.
    pub tracking: Tracking,
    /// The prompt, whose tokens a repetition penalty counts as seen.
    pub prompt: &'a [u32],
    /// The group of requests with which this one may share the beginning of its prompt. With `None` it shares
    /// nothing. A plan that [`keep`](Runner::keep) carries out must not evict tokens of the prompt of a sequence that
    /// has a group.
    pub group: Option<u64>,
}

impl Admission<'_> {
    /// The group from which the prompt may be copied. `None` if all tokens must be forwarded, because a policy tracks
    /// their attention or the probabilities of the prompt are reported.
    fn copies_from(&self) -> Option<u64> {
        self.group.filter(|_| self.tracking == Tracking::default() && self.settings.prompt_logprobs.is_none())
    }
}

/// The choice that the sampler has for the next token of a sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Next {
    /// Every token of the vocabulary.
    #[default]
    Any,
    /// This token only, which the engine writes in place of the model.
    Only(u32),
    /// The tokens whose bits are set, in words of 32; at least one.
    Among(Vec<u32>),
}

/// A forward of pending tokens whose logits wait until the caches are pruned: what is sampled next then does not
/// depend on the pruning, and a pruning that keeps everything changes no token.
pub struct PendingForward {
    seqs: Vec<usize>,
    /// The forwarded tokens. The state keeps them until the next ones are sampled.
    tokens: Vec<u32>,
    out: ForwardOutput,
    logits: Tensor<2>,
}

/// What is to be measured of a sequence for its policy.
#[derive(Debug, Clone, Copy)]
pub struct MeasureRequest<'a> {
    /// The measurement that the policy needs.
    pub measurement: Measurement,
    /// How far attention rows are averaged on the device.
    pub granularity: Reduce,
    /// The probe. It has no ids if `measurement` needs no probe.
    pub probe: ProbeInput<'a>,
}

/// What a probe appends, and how deep it is forwarded.
#[derive(Debug, Clone, Copy)]
pub struct ProbeInput<'a> {
    /// The ids that are appended.
    pub ids: &'a [u32],
    /// The number of the first layers whose attention is needed, at least 1. Later layers are not computed.
    pub layers: usize,
}

/// Rows over the slots of one sequence, on their way from the device.
pub struct PendingRows {
    read: Readback,
    /// The number of slots in the rows of each layer.
    slots: Vec<usize>,
}

impl PendingRows {
    /// Waits for the rows.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub async fn finish(self) -> Result<Measured> {
        let rows: Vec<Vec<f32>> = self.read.await?.iter().map(|bytes| readback::as_f32(bytes)).collect();
        Measured::new(&rows, &self.slots)
    }
}

/// Reads of one sequence's measurements from the device that are under way.
#[derive(Default)]
pub struct PendingMeasurements {
    attention: Option<PendingRows>,
    similarity: Option<PendingRows>,
    received: Option<PendingRows>,
    /// The sizes of values, as [`Decoder::value_sizes`] gives them.
    value_sizes: Option<PendingRows>,
    scored: Scored,
}

/// How the scores of the slots are computed from the rows that were read.
#[derive(Debug, Clone, Copy, Default)]
enum Scored {
    /// The rows are the scores.
    #[default]
    AsRead,
    /// The rows are the records of [`Measurement::Recurrence`], as bits; the latest query is at position `now`.
    ByRecurrence { now: u32 },
    /// The rows are the logarithms of [`Measurement::Expected`], one row for each query head.
    ByExpectation,
}

/// The measurements for a policy, read from the device.
#[derive(Debug, Default)]
pub struct Measurements {
    /// The attention that the slots received.
    pub attention: Option<Measured>,
    /// How similar the keys are to each other.
    pub similarity: Option<Measured>,
    /// The ranges of the values.
    pub value_range: Option<Measured>,
    /// The attention that the slots received from all queries so far, where it is measured beside another attention.
    pub received: Option<Measured>,
    /// For the trace: the probe's attention, a row for each query head.
    pub heads: Option<Measured>,
}

impl PendingMeasurements {
    /// Waits for the measurements.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub async fn finish(self) -> Result<Measurements> {
        let (mut measured, mut lengths) = (Measurements::default(), None);
        for (pending, out) in [
            (self.attention, &mut measured.attention),
            (self.similarity, &mut measured.similarity),
            (self.received, &mut measured.received),
        ] {
            if let Some(rows) = pending {
                *out = Some(rows.finish().await?);
            }
        }
        if let Some(sizes) = self.value_sizes {
            // Each layer has the ranges of all KV heads, then the lengths.
            let mut ranges = sizes.finish().await?;
            let layers = ranges.layers.iter_mut().map(|rows| rows.split_off(rows.len() / 2)).collect();
            (measured.value_range, lengths) = (Some(ranges), Some(Measured { layers }));
        }
        measured.attention = match (self.scored, measured.attention, &lengths) {
            (Scored::ByRecurrence { now }, Some(records), _) => Some(by_recurrence(&records, now)),
            (Scored::ByExpectation, Some(logarithms), Some(lengths)) => {
                measured.value_range = None;
                Some(by_expectation(&logarithms, lengths))
            }
            (_, attention, _) => attention,
        };
        Ok(measured)
    }
}

/// The scores of slots from their records, which are the bits of two words for each slot.
fn by_recurrence(records: &Measured, now: u32) -> Measured {
    let score = |record: &[f32]| {
        let [last, longest] = [record[0], record[1]].map(f32::to_bits);
        lazy_eviction::importance(now.wrapping_sub(last), longest)
    };
    let row = |row: &Vec<f32>| row.chunks_exact(RECORD).map(score).collect();
    Measured { layers: records.layers.iter().map(|rows| rows.iter().map(row).collect()).collect() }
}

/// The scores of slots from the logarithms of the expected attention, a row for each query head, and the lengths of
/// the values, a row for each KV head.
fn by_expectation(logarithms: &Measured, lengths: &Measured) -> Measured {
    let layer = |(rows, lengths): (&Vec<Vec<f32>>, &Vec<Vec<f32>>)| {
        let group = rows.len() / lengths.len();
        let head = |(heads, lengths): (&[Vec<f32>], &Vec<f32>)| {
            let heads: Vec<&[f32]> = heads.iter().map(Vec::as_slice).collect();
            expected_attention::scores(&heads, lengths)
        };
        rows.chunks(group).zip(lengths).map(head).collect()
    };
    Measured { layers: logarithms.layers.iter().zip(&lengths.layers).map(layer).collect() }
}

impl Runner {
    /// A runner with an empty cache and greedy samplers. The weights may be shared with other runners.
    pub fn new(model: Arc<Decoder>, shape: CacheShape) -> Self {
        let device = model.device();
        let mut cache = KvCache::new(shape, device);
        let sampler = Sampler::new(model.config().vocab_size, &mut cache, device);
        let prompts = CachedPrompts::new(shape.seqs);
        let (reported, observed, repeated) = (vec![(false, false); shape.seqs], Vec::new(), Repeated::new(true));
        let drafts = Drafts::new(shape.seqs);
        Self { model, cache, sampler, reported, observed, prompts, repeated, drafts }
    }

    /// Sets whether the launches of equal decode steps are recorded once and replayed, which is the default. The
    /// results are the same.
    pub fn set_replay(&mut self, on: bool) {
        self.repeated = Repeated::new(on);
    }

    /// Checks that a runner of this model and shape can be created on `device`.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) when the state or the samplers of all sequences exceed the
    /// largest buffer.
    pub fn check(vocab: usize, shape: &CacheShape, device: &ComputeDevice) -> Result<()> {
        shape.check(&device.info)?;
        Sampler::check(vocab, shape.seqs, &device.info)
    }

    /// Calls [`CacheShape::check_prompt`].
    ///
    /// # Errors
    /// The errors of that method.
    pub fn check_prompt(&self, tokens: usize) -> Result<()> {
        self.cache.shape().check_prompt(tokens, &self.model.device().info)
    }

    /// The model that this runner computes; its weights may be shared with other runners.
    pub fn model(&self) -> &Arc<Decoder> {
        &self.model
    }

    /// The cache of all sequences, for reading lengths, ids and bytes.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Empties `seq` and prepares it for a new prompt. `first`: no other sequence is running, so the way positions
    /// are counted may change. Returns the number of tokens that were copied from another prompt with the same
    /// beginning. Only the tokens behind them have to be forwarded.
    ///
    /// # Errors
    /// If the cache would exceed the device's limits, or the running sequences count positions in another way.
    pub fn admit(&mut self, seq: usize, first: bool, with: &Admission<'_>) -> Result<usize> {
        self.repeated.forget();
        if first {
            if self.cache.positions() != with.settings.positions {
                for seq in 0..self.cache.shape().seqs {
                    self.clear(seq)?;
                }
                self.cache.begin(with.settings.positions)?;
            }
            self.cache.stop_tracking();
        }
        let found = with.copies_from().and_then(|group| self.prompts.find(with.prompt, group, None));
        let room = |tokens: usize| with.prompt.len() - tokens;
        let copied = found.filter(|f| self.cache.copy_beginning(seq, f.seq, f.tokens, room(f.tokens)).is_ok());
        let shared = copied.map_or(0, |copied| copied.tokens);
        if shared == 0 {
            self.cache.clear(seq)?;
        }
        self.prompts.forget(seq);
        if let Some(group) = with.group {
            self.prompts.begin(seq, with.prompt, group);
            self.prompts.advance(seq, shared);
        }
        self.reported[seq] = (with.settings.logprobs.is_some(), with.settings.prompt_logprobs.is_some());
        self.sampler.check_counts(&with.settings.sampling, &self.model.device().info)?;
        self.cache.track(with.tracking, self.model.config().q_size());
        self.sampler.set(&mut self.cache, seq, &with.settings.sampling, with.settings.seed, with.prompt);
        let Settings { draft, max_new_tokens, .. } = *with.settings;
        self.drafts.set(seq, draft, with.prompt, max_new_tokens, &self.model.device().burn);
        Ok(shared)
    }

    /// Sets how many bytes the prompts of ended sequences may keep in the cache; see
    /// [`Engine::keep_prompts`](crate::Engine::keep_prompts).
    pub fn keep_prompts(&mut self, bytes: u64) {
        self.prompts.most_bytes = bytes;
        self.limit_idle();
    }

    /// Chooses a place for a request with this prompt among the free ones. The first choice is the place of an ended
    /// request whose prompt this one continues, because no other request is likely to need that prompt. The next
    /// choice is an empty place, then the place whose prompt was used least recently.
    pub(crate) fn place_for(&mut self, free: &[usize], prompt: &[u32], group: Option<u64>) -> Option<usize> {
        let shared = group.and_then(|group| self.prompts.find(prompt, group, None));
        if let Some(Shared { seq, tokens }) = shared
            && free.contains(&seq)
            && tokens + PREFILL_CHUNK >= self.prompts.tokens(seq)
        {
            return Some(seq);
        }
        let idle = self.prompts.idle();
        let empty = free.iter().find(|seq| !idle.contains(seq));
        empty.or_else(|| idle.iter().find(|seq| free.contains(seq))).copied()
    }

    /// Copies the beginning of the prompt of `seq` from another sequence, if that one has more of it than the
    /// `forwarded` tokens of `seq` itself. Returns the number of tokens that `seq` has afterwards.
    pub(crate) fn catch_up(&mut self, seq: usize, forwarded: usize, with: &Admission<'_>) -> usize {
        let shared = with.copies_from().and_then(|group| self.prompts.find(with.prompt, group, Some(seq)));
        let Some(Shared { seq: from, tokens }) = shared.filter(|shared| shared.tokens > forwarded) else {
            return forwarded;
        };
        self.repeated.forget();
        match self.cache.copy_beginning(seq, from, tokens, with.prompt.len() - tokens) {
            Ok(()) => {
                self.prompts.advance(seq, tokens - forwarded);
                tokens
            }
            // A prompt that does not fit is reported when it is forwarded.
            Err(_) => forwarded,
        }
    }

    /// Whether `seq`, which has `forwarded` tokens of its prompt, saves work by waiting for one of `others`, which
    /// are forwarding theirs.
    pub(crate) fn gains_by(&mut self, others: &[usize], seq: usize, forwarded: usize, with: &Admission<'_>) -> bool {
        let Some(group) = with.copies_from() else { return false };
        let now = self.prompts.find(with.prompt, group, Some(seq)).map_or(0, |shared| shared.tokens).max(forwarded);
        self.prompts.gains_by(with.prompt, group, now, others)
    }

    /// Frees the memory of a sequence that has ended, except that of its prompt if the prompt is to be kept.
    ///
    /// # Errors
    /// If the cache would exceed the device's limits.
    pub(crate) fn release(&mut self, seq: usize) -> Result<()> {
        let kept = if self.prompts.most_bytes > 0 { self.prompts.end(seq) } else { None };
        let Some(tokens) = kept else { return self.clear(seq) };
        self.repeated.forget();
        self.cache.copy_beginning(seq, seq, tokens, 0)?;
        self.model.device().burn.memory_cleanup();
        self.limit_idle();
        Ok(())
    }

    /// Sequences that have ended and whose prompts are kept, the one that was used last at the end.
    pub(crate) fn idle(&self) -> Vec<usize> {
        self.prompts.idle()
    }

    /// Empties the sequences whose prompts were used least recently, until the others need no more than their limit.
    fn limit_idle(&mut self) {
        let idle = self.prompts.idle();
        let mut bytes: u64 = idle.iter().map(|seq| self.cache.bytes_of(*seq)).sum();
        for seq in idle {
            if bytes <= self.prompts.most_bytes {
                return;
            }
            bytes -= self.cache.bytes_of(seq);
            // The error is ignored, because a cache that becomes smaller cannot exceed a limit.
            self.clear(seq).ok();
        }
    }

    /// Empties all sequences except the ended ones whose prompts are kept. These are the sequences of a batch that
    /// was dropped before its requests had ended.
    pub(crate) fn abandon(&mut self) {
        self.forget_ahead();
        let idle = self.prompts.idle();
        let left = (0..self.cache.shape().seqs).filter(|seq| !idle.contains(seq) && self.cache.bytes_of(*seq) > 0);
        // The error is ignored, because a cache that becomes smaller cannot exceed a limit.
        left.collect::<Vec<_>>().into_iter().for_each(|seq| drop(self.clear(seq)));
    }

    /// Empties all sequences that have ended. Returns whether there were any.
    pub(crate) fn forget_idle(&mut self) -> bool {
        let idle = self.prompts.idle();
        idle.iter().for_each(|seq| drop(self.clear(*seq)));
        !idle.is_empty()
    }

    /// Makes room for `extra` more tokens of each of `seqs`.
    ///
    /// # Errors
    /// If the cache would exceed the device's limits.
    pub fn reserve(&mut self, seqs: &[usize], extra: usize) -> Result<()> {
        if !self.cache.has_room(seqs, extra) {
            self.repeated.drop_recording();
        }
        self.cache.reserve(seqs, extra)
    }

    /// Forwards the next chunk of `rest`, the part of a prompt that has not been forwarded yet. Samples the first
    /// token after the last chunk. Returns the number of ids that were forwarded.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub fn prefill(&mut self, seq: usize, rest: &[u32]) -> Result<usize> {
        self.prefill_then(seq, rest, || Next::Any)
    }

    /// Like [`prefill`](Self::prefill), but `next` says what the first token may be. `next` is called after the last
    /// chunk has been launched.
    pub(crate) fn prefill_then(&mut self, seq: usize, rest: &[u32], next: impl FnOnce() -> Next) -> Result<usize> {
        self.repeated.forget();
        self.cache.reserve(&[seq], rest.len())?;
        // Chunks end at the same positions as if nothing had been copied.
        let begun = self.cache.sequence(seq).position.0 as usize % PREFILL_CHUNK;
        let ids = &rest[..rest.len().min(PREFILL_CHUNK - begun)];
        let plan = self.model.plan(Input::Chunk { seq, ids }, &mut self.cache)?;
        let out = self.model.forward(&plan, &mut self.cache, None);
        if self.reported[seq].1 {
            // The last token of the prompt predicts a token that is not known yet, so it is left out.
            let following = &rest[1..rest.len().min(ids.len() + 1)];
            for (i, following) in following.chunks(MOST_OBSERVED).enumerate() {
                let logits = self.model.logits(&out, Logits::Rows(i * MOST_OBSERVED, following.len()));
                let observed = self.sampler.observe(&logits, Tokens::Listed(following), self.model.device());
                self.observed.push((Origin::Prompt(seq), observed));
            }
        }
        if ids.len() == rest.len() {
            let logits = self.model.logits(&out, Logits::Last);
            self.sample_next(&logits, &[seq], &[next()], ids.len());
            self.observe(&logits, &[seq]);
        } else {
            self.cache.advance(seq, ids.len(), 0);
        }
        self.prompts.advance(seq, ids.len());
        Ok(ids.len())
    }

    /// Forwards ids that come next in a known text, and samples nothing. `pending` is the token after them. The next
    /// forward of pending tokens reads it.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub(crate) fn follow(&mut self, seq: usize, ids: &[u32], pending: u32) -> Result<()> {
        self.repeated.forget();
        for chunk in ids.chunks(PREFILL_CHUNK) {
            let plan = self.model.plan(Input::Chunk { seq, ids: chunk }, &mut self.cache)?;
            self.model.forward(&plan, &mut self.cache, None);
            self.cache.advance(seq, chunk.len(), pending);
        }
        // If there are no ids, the pending token in the state is still an earlier one.
        self.cache.advance(seq, 0, pending);
        Ok(())
    }

    /// Makes `steps` decode steps of all of `seqs`: forwards their pending tokens and samples the next ones.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub fn decode(&mut self, seqs: &[usize], steps: usize) -> Result<()> {
        if self.tells_more(seqs) {
            return (0..steps).try_for_each(|_| self.decode_then(seqs, Vec::new));
        }
        self.repeated.note(seqs);
        (0..steps).try_for_each(|_| {
            self.step_alike(Input::Pending(seqs))?;
            self.cache.sampled(seqs, 1);
            Ok(())
        })
    }

    /// Makes `steps` decode steps of all of `seqs` with drafts, `chunk` rows of each sequence. `limits` are the
    /// numbers of sampled tokens at which the sequences stop. Their cache must have room for `steps · chunk` more
    /// tokens ([`has_room`](Self::has_room)). What is generated is the same as by [`decode`](Self::decode), but only
    /// the device knows how much it is until [`take_in_copy`](Self::take_in_copy) has read it.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub(crate) fn decode_drafted(
        &mut self,
        seqs: &[usize],
        limits: &[usize],
        chunk: usize,
        steps: usize,
    ) -> Result<()> {
        // Rows beside each other need more memory for partial results of attention than single ones.
        let chunk = match self.model.plan(Input::Drafted { seqs, chunk }, &mut self.cache) {
            Err(_) if chunk > 1 => 1,
            _ => chunk,
        };
        self.repeated.note(seqs);
        // The list is written before a step is recorded, because a recording cannot write it.
        self.cache.select_rows(seqs, chunk);
        seqs.iter().zip(limits).for_each(|(seq, limit)| self.cache.limit(*seq, *limit));
        (0..steps).try_for_each(|_| {
            self.step_alike(Input::Drafted { seqs, chunk })?;
            self.cache.drafted(seqs, chunk);
            self.drafts.note(seqs, chunk);
            Ok(())
        })
    }

    /// Whether every layer of `seqs` has room for `extra` more tokens of each.
    pub(crate) fn has_room(&self, seqs: &[usize], extra: usize) -> bool {
        self.cache.has_room(seqs, extra)
    }

    /// Whether steps with drafts were launched whose lengths have not been read. Until they are, only steps that need
    /// no more room may be launched.
    pub(crate) fn is_ahead(&self) -> bool {
        self.cache.is_ahead()
    }

    /// Drops the lengths that have not been read. The sequences concerned must be cleared.
    pub(crate) fn forget_ahead(&mut self) {
        self.cache.forget_ahead();
    }

    /// The most tokens that steps with drafts can have added to `seq` so far.
    pub(crate) fn most_added(&self, seq: usize) -> u64 {
        self.drafts.most_added(seq)
    }

    /// Takes in how far `seq` has come, from a copy of the state that was taken when its steps with drafts could have
    /// added `most_added` tokens.
    pub(crate) fn take_in_copy(&mut self, seq: usize, copy: &[u32], most_added: u64) {
        if let Some(ahead) = self.drafts.take_in_copy(seq, most_added) {
            self.cache.take_in_copy(copy, seq, ahead);
        }
    }

    /// Whether a decode step of `seqs` launches kernels whose parameters change from step to step: those that track
    /// attention or queries for a policy, and those that report probabilities. Such a step is not recorded.
    fn tells_more(&self, seqs: &[usize]) -> bool {
        self.cache.tracking() != Tracking::default() || seqs.iter().any(|seq| self.reported[*seq].0)
    }

    /// A decode step without tracking and reports, of pending tokens with or without drafts. If its launches were
    /// recorded, they are replayed. Otherwise the step is launched, and recorded if more steps of the same sequences
    /// are likely. The host does not note yet that the sequences have advanced.
    fn step_alike(&mut self, input: Input<'_>) -> Result<()> {
        let Self { model, cache, sampler, repeated, drafts, .. } = self;
        let (seqs, chunk) = (input.seqs(), input.chunk());
        model.device().note_step();
        if !cache.has_room(seqs, chunk) {
            repeated.drop_recording();
        }
        let plan = model.plan(input, cache)?;
        let drafted = matches!(input, Input::Drafted { .. }).then_some(chunk);
        let step = StepKey::new(seqs, drafted, cache.generation());
        if let Some(recording) = repeated.recording(&step) {
            return recording.replay();
        }
        let record = repeated.is_steady() && plan.repeats() && cache.has_room(seqs, ROOM_TO_RECORD);
        let mut launch = || {
            if drafted.is_some() {
                seqs.iter().for_each(|seq| drafts.look_up(*seq, chunk, cache));
            }
            let logits = model.logits(&model.forward(&plan, cache, None), Logits::All);
            match drafted {
                Some(chunk) => sampler.launch_drafted(&logits, cache, seqs, chunk),
                None => sampler.launch(&logits, cache, seqs, 1),
            }
        };
        match record {
            true => {
                let recorded = Recording::record(&model.device().burn, launch);
                repeated.keep(step, recorded.inspect_err(|e| model.device().give_up(e))?);
            }
            false => launch(),
        }
        Ok(())
    }

    /// A decode step of all of `seqs`. `next` says what their next tokens may be; if it returns nothing, any token.
    /// It is called after the forward has been launched, so that the device need not wait for it.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub(crate) fn decode_then(&mut self, seqs: &[usize], next: impl FnOnce() -> Vec<Next>) -> Result<()> {
        self.repeated.forget();
        self.model.device().note_step();
        let plan = self.model.plan(Input::Pending(seqs), &mut self.cache)?;
        let out = self.model.forward(&plan, &mut self.cache, None);
        let logits = self.model.logits(&out, Logits::Last);
        self.sample_next(&logits, seqs, &next(), 1);
        self.observe(&logits, seqs);
        Ok(())
    }

    /// Samples the next tokens of `seqs` from their rows of `logits`. `next` says what each may be; if it is empty,
    /// any token.
    fn sample_next(&mut self, logits: &Tensor<2>, seqs: &[usize], next: &[Next], advance: usize) {
        if next.iter().all(|next| *next == Next::Any) {
            return self.sampler.sample(logits, &mut self.cache, seqs, advance);
        }
        let spec = TokenMaskSpec { n: seqs.len(), count: logits.dims()[1] };
        let words = spec.words();
        let mut bits = vec![u32::MAX; (seqs.len() * words).next_multiple_of(4)];
        for (row, next) in bits.chunks_exact_mut(words).zip(next) {
            match next {
                Next::Any => (),
                Next::Only(token) => {
                    row.fill(0);
                    row[*token as usize / 32] = 1 << (token % 32);
                }
                Next::Among(allowed) => row.copy_from_slice(allowed),
            }
        }
        let allowed = kernels::u32_tensor(bits, &self.model.device().burn);
        self.sampler.sample_among(logits, &allowed, spec, &mut self.cache, seqs, advance);
    }

    /// Computes the probabilities of the tokens that were just sampled, if any of `seqs` reports them. `logits` are
    /// those of the model.
    fn observe(&mut self, logits: &Tensor<2>, seqs: &[usize]) {
        if seqs.iter().any(|seq| self.reported[*seq].0) {
            let sampled = Tokens::Sampled(&mut self.cache, seqs);
            let observed = self.sampler.observe(logits, sampled, self.model.device());
            self.observed.push((Origin::Step(seqs.to_vec()), observed));
        }
    }

    /// Forwards the pending tokens of `pending` (sequence, token) as a decode step does, but samples nothing: the
    /// logits wait for [`resume`](Self::resume). Reads the attention of these tokens if `readout` is given.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub fn hold(&mut self, pending: &[(usize, u32)], readout: Option<Reduce>) -> Result<PendingForward> {
        self.repeated.forget();
        let (seqs, tokens): (Vec<usize>, Vec<u32>) = pending.iter().copied().unzip();
        let plan = self.model.plan(Input::Pending(&seqs), &mut self.cache)?;
        let out = self.model.forward(&plan, &mut self.cache, readout);
        let logits = self.model.logits(&out, Logits::Last);
        for &(seq, token) in pending {
            self.cache.advance(seq, 1, token);
        }
        Ok(PendingForward { seqs, tokens, out, logits })
    }

    /// Starts the measurements that `request` names, for the sequence in row `row` of `held`. A probe is forwarded,
    /// read and rolled back, so that the cache is afterwards as it was before.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`], and a measurement that the cache does not track.
    pub fn measure(
        &mut self,
        held: &PendingForward,
        row: usize,
        request: &MeasureRequest<'_>,
    ) -> Result<PendingMeasurements> {
        self.repeated.forget();
        let (model, cache, seq) = (&self.model, &mut self.cache, held.seqs[row]);
        let mut pending = PendingMeasurements::default();
        match request.measurement {
            Measurement::Nothing => {}
            Measurement::LastRow => pending.attention = Some(read_rows(&held.out.readout_of(row))),
            Measurement::ProbeRow => {
                pending.attention = Some(self.probe(held, row, request.probe, Some(request.granularity))?);
            }
            Measurement::ProbeRowAndSums => {
                // The sums are read first, because the rows of the probe are no part of them.
                pending.received = Some(read_tracked(cache, seq, 1, KvCache::sums)?);
                pending.attention = Some(self.probe(held, row, request.probe, Some(request.granularity))?);
            }
            Measurement::Sums => {
                pending.attention = Some(read_tracked(cache, seq, 1, KvCache::sums)?);
            }
            Measurement::Recurrence => {
                pending.attention = Some(read_tracked(cache, seq, RECORD, KvCache::recurrence)?);
                let now = cache.sequence(seq).position.0.wrapping_sub(1);
                pending.scored = Scored::ByRecurrence { now };
            }
            Measurement::Expected { queries } => {
                let logarithms = model.expect(cache, seq, queries)?;
                pending.attention = Some(read_rows(&logarithms.iter().collect::<Vec<_>>()));
                pending.value_sizes = Some(read_rows(&model.value_sizes(cache, seq).iter().collect::<Vec<_>>()));
                pending.scored = Scored::ByExpectation;
            }
            Measurement::Window { queries }
            | Measurement::WindowAndKeys { queries }
            | Measurement::WindowAndValues { queries } => {
                let means = model.observe(cache, seq, queries)?;
                let read = readback::read_u32(&means.iter().collect::<Vec<_>>());
                pending.attention = Some(PendingRows { read, slots: cache.lens(seq) });
                if let Measurement::WindowAndKeys { .. } = request.measurement {
                    let alike = model.compare_keys(cache, seq);
                    pending.similarity = Some(read_rows(&alike.iter().collect::<Vec<_>>()));
                }
                if let Measurement::WindowAndValues { .. } = request.measurement {
                    pending.value_sizes = Some(read_rows(&model.value_sizes(cache, seq).iter().collect::<Vec<_>>()));
                }
            }
        }
        Ok(pending)
    }

    /// Appends a probe to the sequence in row `row` of `held`, forwards it once, reads the attention of its last
    /// token if `readout` is given, and rolls back.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub fn probe(
        &mut self,
        held: &PendingForward,
        row: usize,
        probe: ProbeInput<'_>,
        readout: Option<Reduce>,
    ) -> Result<PendingRows> {
        self.repeated.forget();
        let ProbeInput { ids, layers } = probe;
        let (seq, pending) = (held.seqs[row], held.tokens[row]);
        let before = self.cache.checkpoint(seq);
        let plan = self.model.plan(Input::Probe { seq, ids, layers }, &mut self.cache)?;
        let out = self.model.forward(&plan, &mut self.cache, readout);
        let rows = read_rows(&out.readout_of(0));
        self.cache.rollback(&before, pending);
        Ok(rows)
    }

    /// Evicts the slots that the updates do not name: all at once if the device has room for all new buffers, else
    /// one sequence after the other. Returns the result of each update.
    pub fn keep(&mut self, updates: &[RegionUpdate<'_>]) -> Vec<Result<()>> {
        self.repeated.forget();
        if updates.is_empty()
            || self.cache.keep_each(updates).is_ok()
            || self.forget_idle() && self.cache.keep_each(updates).is_ok()
        {
            return updates.iter().map(|_| Ok(())).collect();
        }
        updates.iter().map(|update| self.cache.keep_each(std::slice::from_ref(update))).collect()
    }

    /// Samples the next tokens from the held logits.
    pub fn resume(&mut self, held: &PendingForward) {
        self.resume_then(held, &[]);
    }

    /// Like [`resume`](Self::resume), but `next` says what the next token of each row may be.
    pub(crate) fn resume_then(&mut self, held: &PendingForward, next: &[Next]) {
        self.sample_next(&held.logits, &held.seqs, next, 0);
        self.observe(&held.logits, &held.seqs);
    }

    /// A decode step of each sequence of `tokens` (sequence, token) in which the given token is written instead of
    /// one that the model chooses. Everything else is as if the model had chosen it.
    ///
    /// # Errors
    /// The errors of [`Decoder::plan`].
    pub(crate) fn force(&mut self, tokens: &[(usize, u32)]) -> Result<()> {
        let (seqs, next): (Vec<usize>, Vec<Next>) =
            tokens.iter().map(|(seq, token)| (*seq, Next::Only(*token))).unzip();
        self.decode_then(&seqs, || next)
    }

    /// Empties `seq` and gives its memory back.
    ///
    /// # Errors
    /// If the cache would exceed the device's limits.
    pub fn clear(&mut self, seq: usize) -> Result<()> {
        self.repeated.forget();
        self.prompts.forget(seq);
        self.cache.clear(seq)
    }

    /// Starts reading the state of all sequences. The copy is taken now: it does not contain what is launched later.
    pub fn read(&self) -> PendingState {
        PendingState(self.cache.read_state())
    }

    /// Drops probabilities that are not needed any more.
    pub(crate) fn forget_logprobs(&mut self) {
        self.observed.clear();
    }

    /// Starts reading the probabilities of the tokens that were sampled since the last call, and of the prompts that
    /// were forwarded. `None` if no sequence reports them.
    pub(crate) fn read_logprobs(&mut self) -> Option<PendingLogprobs> {
        PendingLogprobs::new(std::mem::take(&mut self.observed))
    }
}

/// A read of the state of all sequences that is under way.
pub struct PendingState(Readback);

impl PendingState {
    /// Waits for the u32 words of the state; [`KvCache::ids`] and [`Sampler::missed`] read them.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub async fn finish(self) -> Result<Vec<u32>> {
        Ok(self.0.await?.first().map(|bytes| readback::as_u32(bytes)).unwrap_or_default())
    }
}

/// Starts reading what the cache tracks for each KV head and slot of `seq`. There are `words` words for each. `of`
/// returns the tensor of a layer.
fn read_tracked(
    cache: &KvCache,
    seq: usize,
    words: usize,
    of: impl Fn(&KvCache, usize, usize) -> Result<Tensor<1, Int>>,
) -> Result<PendingRows> {
    let layers = 0..cache.shape().layers;
    let tracked = layers.clone().map(|layer| of(cache, layer, seq)).collect::<Result<Vec<_>>>()?;
    let read = readback::read_u32(&tracked.iter().collect::<Vec<_>>());
    Ok(PendingRows { read, slots: layers.map(|layer| words * cache.capacity(layer, seq)).collect() })
}

/// Starts reading f32 rows over the slots of each layer: `[rows, slots]`.
fn read_rows(layers: &[&Tensor<2>]) -> PendingRows {
    PendingRows { read: readback::read_f32(layers), slots: layers.iter().map(|rows| rows.dims()[1]).collect() }
}
