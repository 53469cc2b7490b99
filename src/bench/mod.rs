//! How fast a model runs on a device, and how close that is to the device's memory bandwidth.
//!
//! Decoding is bound by memory: a step reads the weights and the cached keys and values once. [`Measured`] therefore
//! gives the bytes that decoding reads, for comparison with the [`copy_bandwidth`] of the same device. The speed does
//! not depend on which ids are forwarded: random ids are used, and no tokenizer is needed.
mod launches;
pub mod page;
mod preset;

pub use launches::{KernelTime, KernelTimes, Part, check_timed, time_kernels};
pub use preset::{preset, presets};

use crate::dtype::Dtype;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use serde::Serialize;
use web_time::{Duration, Instant};

use crate::cache::CacheShape;
use crate::device::ComputeDevice;
use crate::engine::{GROWTH, LAG, Runner};
use crate::kernels::{self, Counts, GatherSpec, memory, readback};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::{Error, ErrorKind, Result};

/// The lengths at which to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to decode after it, in each sequence.
    pub decode: usize,
    /// Sequences that run side by side, each with a prompt of its own.
    pub sequences: usize,
}

impl Lengths {
    /// Checks that `context` positions are enough for these lengths. (The last token of a run is sampled but not
    /// forwarded.)
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for lengths of 0 or beyond the context.
    pub fn check(&self, context: usize) -> Result<()> {
        let Self { prompt, decode, sequences } = *self;
        if prompt == 0 || decode == 0 || sequences == 0 {
            return Err(Error::new(ErrorKind::Input, "nothing to measure")
                .expected("at least 1 prompt token, 1 decoded token and 1 sequence")
                .found(format!("{prompt}, {decode} and {sequences}")));
        }
        if prompt.checked_add(decode).is_none_or(|all| all > context) {
            return Err(Error::new(ErrorKind::Input, "the lengths exceed the context")
                .at("`prompt`, `decode`")
                .expected(format!("prompt + decode of at most {context}"))
                .found(format!("{prompt} + {decode}")));
        }
        Ok(())
    }
}

/// The spread of several measurements of the same quantity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle value; for an even number of values, the mean of the middle two.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`: at least one, none of them NaN.
    pub fn from_values(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        assert!(n > 0, "nothing was measured");
        Self { median: (values[(n - 1) / 2] + values[n / 2]) / 2.0, min: values[0], max: values[n - 1] }
    }
}

/// The memory bandwidth of a device, measured with kernels that only copy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Copied {
    /// Bytes of the buffer that was copied. Each is read once and written once.
    pub buffer_bytes: u64,
    /// Bytes read plus bytes written, a second, by the faster kernel.
    pub bytes_per_second: Spread,
    /// The faster kernel: `gather` or `add`.
    pub kernel: &'static str,
    /// Bytes a second of `gather`: the kernel that prunes, here keeping every row.
    pub gather_bytes_per_second: Spread,
    /// Bytes a second of `add`: burn's kernel that adds a number to every value.
    pub add_bytes_per_second: Spread,
}

/// The speed at one prompt length and one decode length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded after it, in each sequence.
    pub decode: usize,
    /// Sequences side by side.
    pub sequences: usize,
    /// Seconds of the first prefill, in which the shaders are compiled. It is not part of the spread.
    pub first_prefill_seconds: f64,
    /// Prompt tokens a second, one sequence after the other.
    pub prefill_tokens_per_second: Spread,
    /// Decoded tokens a second, of all sequences together.
    pub decode_tokens_per_second: Spread,
    /// Kernels launched in a decode step, those of replays included.
    pub launches_per_step: f64,
    /// Buffers that a decode step fills or writes into from the host.
    pub uploads_per_step: f64,
    /// Submissions to the queue of the GPU in a decode step; those of reads are counted. `None` on the CPU, in a
    /// browser, and if wgpu does not tell.
    pub submits_per_step: Option<f64>,
    /// The share of the decode steps whose launches were replayed, from 0 to 1.
    pub replayed: f64,
    /// Bytes of weights that a decode step reads, shared by the tokens of all sequences.
    pub weight_bytes_per_token: u64,
    /// Bytes of keys and values that a token's attention reads, averaged over the steps.
    pub kv_bytes_per_token: u64,
    /// Floating-point operations of a token of a prompt, without those of its attention: two for each parameter that
    /// multiplies. The output head is not counted, because a prompt needs it only once.
    pub layer_flops_per_token: u64,
    /// The time of each kernel; `None` if [`time_kernels`] was not called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelTimes>,
}

impl Measured {
    /// Bytes a second that decoding reads, by the byte model: (weights + KV) × tokens a second.
    pub fn decode_bytes_per_second(&self) -> f64 {
        (self.weight_bytes_per_token + self.kv_bytes_per_token) as f64 * self.decode_tokens_per_second.median
    }

    /// Floating-point operations a second of prefill, without those of its attention and of the output head.
    pub fn prefill_flops_per_second(&self) -> f64 {
        self.layer_flops_per_token as f64 * self.prefill_tokens_per_second.median
    }
}

/// Floating-point operations of a token in all layers, without those of its attention.
fn layer_flops(config: &ModelConfig) -> u64 {
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    2 * (config.active_parameters() - tables * (config.vocab_size * config.hidden_size) as u64)
}

/// Pseudo-random ids below `vocabulary`, the same at every call.
pub fn ids(n: usize, vocabulary: usize) -> Vec<u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % vocabulary as u64
    };
    (0..n).map(|_| next() as u32).collect()
}

/// Prefills `ids` as the prompt of each sequence of `runner`, one after the other, samples a token in each, and waits
/// for the last.
///
/// # Errors
/// The errors of [`Runner::prefill`], and a device that fails.
pub async fn prefill(runner: &mut Runner, ids: &[u32]) -> Result<Duration> {
    let begun = Instant::now();
    for seq in 0..runner.cache().shape().seqs {
        let mut rest = ids;
        while !rest.is_empty() {
            rest = &rest[runner.prefill(seq, rest)?..];
        }
    }
    runner.read().finish().await?;
    Ok(begun.elapsed())
}

/// Decodes `steps` tokens in every sequence of `runner` as the engine does: all sequences in one step, ids read one
/// burst late. Waits for the last.
///
/// # Errors
/// The errors of [`Runner::decode`], and a device that fails.
pub async fn decode(runner: &mut Runner, steps: usize) -> Result<Duration> {
    let seqs: Vec<usize> = (0..runner.cache().shape().seqs).collect();
    let begun = Instant::now();
    let mut read = runner.read();
    for _ in 0..steps / LAG {
        runner.decode(&seqs, LAG)?;
        std::mem::replace(&mut read, runner.read()).finish().await?;
    }
    runner.decode(&seqs, steps % LAG)?;
    runner.read().finish().await?;
    Ok(begun.elapsed())
}

/// Prefill and decode at `lengths`, `repeat` times after a first round that compiles the shaders. `replay` says
/// whether launches of decode steps are replayed ([`Runner::set_replay`]). `tick` is called after every round.
///
/// # Errors
/// Lengths of 0 or beyond the context; a device that fails.
pub async fn measure(
    model: &Arc<Decoder>,
    kv: Dtype,
    lengths: Lengths,
    repeat: usize,
    replay: bool,
    tick: &mut dyn FnMut(),
) -> Result<Measured> {
    let Lengths { prompt, decode: steps, sequences } = lengths;
    lengths.check(model.context())?;
    if repeat == 0 {
        return Err(Error::new(ErrorKind::Input, "nothing to measure").expected("at least 1 repetition").found(repeat));
    }
    let config = model.config();
    let shape = CacheShape::new(config, kv, sequences, GROWTH)?;
    Runner::check(config.vocab_size, &shape, model.device())?;
    let ids = ids(prompt, config.vocab_size);
    let (mut rounds, mut launched, mut submitted) = (Vec::new(), Counts::default(), None);
    for _ in 0..=repeat {
        let mut runner = Runner::new(model.clone(), shape);
        runner.set_replay(replay);
        let prefilled = prefill(&mut runner, &ids).await?;
        let (before, submissions) = (kernels::counts(), model.device().submissions());
        rounds.push((prefilled, decode(&mut runner, steps).await?));
        // The counts are the same in every round.
        launched = kernels::counts().since(before);
        // The two calls that ask for the number of submissions are one submission each.
        submitted = submissions.zip(model.device().submissions()).map(|(first, last)| last - first - 1);
        tick();
    }
    let first_prefill_seconds = rounds.remove(0).0.as_secs_f64();
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    // Step i, from 0 on, attends to the prompt, to what was decoded before, and to its own token.
    let slots = prompt as f64 + (steps as f64 + 1.0) / 2.0;
    Ok(Measured {
        prompt,
        decode: steps,
        sequences,
        first_prefill_seconds,
        prefill_tokens_per_second: Spread::from_values(rounds.iter().map(|r| rate(prompt * sequences, r.0))),
        decode_tokens_per_second: Spread::from_values(rounds.iter().map(|r| rate(steps * sequences, r.1))),
        launches_per_step: launched.launches as f64 / steps as f64,
        uploads_per_step: launched.uploads as f64 / steps as f64,
        submits_per_step: submitted.map(|submits| submits as f64 / steps as f64),
        replayed: launched.replays as f64 / steps as f64,
        weight_bytes_per_token: model.step_bytes(sequences) / sequences as u64,
        kv_bytes_per_token: (slots * shape.token_bytes() as f64) as u64,
        layer_flops_per_token: layer_flops(config),
        kernels: None,
    })
}

/// u32 words of a row that [`copy_bandwidth`] gathers: 512 bytes, a head of 128 f32 or 256 f16 values.
const ROW_WORDS: usize = 128;

/// Bytes of the smallest buffer that [`copy_bandwidth`] copies: larger than the caches of ordinary processors.
pub const SMALLEST_COPY: u64 = 64 << 20;

/// Copies a buffer with two kernels, `repeat` times each after a first run that compiles them, and takes the faster
/// one. The buffer has 64 MiB on software adapters and 256 MiB on GPUs, whose caches are larger, but not more than
/// one binding allows.
///
/// # Errors
/// A device whose bindings are below [`SMALLEST_COPY`], or that fails.
pub async fn copy_bandwidth(device: &ComputeDevice, repeat: usize) -> Result<Copied> {
    let software = device.info.kind == "software";
    let most = if software { SMALLEST_COPY } else { 256 << 20 };
    let bytes = most.min(device.info.max_binding_bytes);
    if bytes < SMALLEST_COPY {
        return Err(Error::new(ErrorKind::Device, "the adapter's bindings are too small to measure its bandwidth")
            .at(device.info.line())
            .expected(format!("{SMALLEST_COPY} bytes"))
            .found(format!("{bytes} bytes")));
    }
    // GPUs make 32 copies between two waits: a wait costs about 100 µs, as much as one copy on a fast GPU.
    copy(device, bytes, repeat, if software { 1 } else { 32 }).await
}

async fn copy(device: &ComputeDevice, bytes: u64, repeat: usize, batch: usize) -> Result<Copied> {
    // Two planes of rows, as a layer's keys and values.
    let rows = bytes as usize / (2 * ROW_WORDS * 4);
    let words = 2 * rows * ROW_WORDS;
    let fence = kernels::u32_tensor(vec![0; 4], &device.burn);
    let gathered = {
        let keep = kernels::u32_tensor((0..rows as u32).collect(), &device.burn);
        let moves = kernels::u32_tensor([0, rows, 0, rows, rows, 0, 0, 0].map(|v| v as u32).to_vec(), &device.burn);
        let spec =
            GatherSpec { row_words: ROW_WORDS, kv_heads: 1, planes: 2, seqs: 1, most_kept: rows, out_words: words };
        // The buffer is written before it is read, because an operating system maps all pages that were never
        // written to one page.
        let source = kernels::cache_gather(memory::empty_u32(&device.burn, words), &keep, &moves, spec);
        let gather = || drop(kernels::cache_gather(source.clone(), &keep, &moves, spec));
        rates(&fence, words, repeat, batch, &gather).await?
    };
    let added = {
        let source = Tensor::<1>::ones([words], &device.burn);
        rates(&fence, words, repeat, batch, &|| drop(source.clone().add_scalar(1.0))).await?
    };
    let (kernel, fastest) = if gathered.median >= added.median { ("gather", gathered) } else { ("add", added) };
    Ok(Copied {
        buffer_bytes: (words * 4) as u64,
        bytes_per_second: fastest,
        kernel,
        gather_bytes_per_second: gathered,
        add_bytes_per_second: added,
    })
}

/// The bytes per second of a kernel that reads and writes `words` words and runs `batch` times between two waits.
async fn rates(fence: &Tensor<1, Int>, words: usize, repeat: usize, batch: usize, copy: &dyn Fn()) -> Result<Spread> {
    let mut times = Vec::new();
    for _ in 0..=repeat {
        let begun = Instant::now();
        (0..batch).for_each(|_| copy());
        readback::read_u32(&[fence]).await?;
        times.push(begun.elapsed().as_secs_f64().max(1e-9));
    }
    let moved = (2 * words * 4 * batch) as f64;
    Ok(Spread::from_values(times.into_iter().skip(1).map(|time| moved / time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::from_values([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::from_values([4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::from_values([7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
    }

    #[test]
    fn ids_cover_the_vocabulary_and_repeat() {
        let few = ids(1000, 7);
        assert_eq!(few, ids(1000, 7));
        assert!((0..7).all(|id| few.contains(&id)) && few.iter().all(|id| *id < 7));
        assert!(ids(5, 1).iter().all(|id| *id == 0));
    }

    #[test]
    fn a_copy_is_counted_twice() {
        // One megabyte on the twin is enough to check that the bytes add up.
        let device = ComputeDevice::cpu();
        let copied = pollster::block_on(copy(&device, 1 << 20, 3, 2)).expect("it runs");
        assert_eq!(copied.buffer_bytes, 1 << 20);
        let Spread { median, min, max } = copied.bytes_per_second;
        assert!(min > 0.0 && min <= median && median <= max && max.is_finite());
        assert_eq!(median, copied.gather_bytes_per_second.median.max(copied.add_bytes_per_second.median));
    }
}
