//! Where the time of a decode step and of a chunk of a prompt goes: the time of each kernel on the device.
//!
//! Each launch is timed by itself ([`timing`]), and the device finishes it before the next one begins. What overlaps
//! in an ordinary step does not overlap here, and decode steps are not replayed, so the parts need not add up to a
//! step.
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{Lengths, Spread, ids};
use crate::cache::CacheShape;
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::engine::runner::PREFILL_CHUNK;
use crate::engine::{GROWTH, Runner};
use crate::kernels::timing::{self, Clock, LaunchTime};
use crate::model::decoder::Decoder;
use crate::{Error, ErrorKind, Result};

/// The launches of one kernel in a part of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelTime {
    /// Stem of the shader's file.
    pub kernel: &'static str,
    /// Launches in this part, on average.
    pub launches: f64,
    /// Microseconds of all its launches in this part.
    pub microseconds: Spread,
    /// The median's share of the medians of all kernels, from 0 to 1.
    pub share: f64,
}

/// The kernels of a decode step, or of a chunk of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// Tokens that are forwarded together.
    pub tokens: usize,
    /// Tokens in the cache of each sequence before; of several decode steps, before the first.
    pub cached: usize,
    /// The clock that timed the launches: that of the host if it timed any of them.
    pub clock: Clock,
    /// Microseconds of all launches together.
    pub microseconds: Spread,
    /// The kernels, the one that takes longest first.
    pub kernels: Vec<KernelTime>,
}

/// The kernels of decoding and of prefill.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelTimes {
    /// A decode step of all sequences. Their samplers take the most likely token.
    pub decode: Part,
    /// The last whole chunk of the prompt of one sequence, or the only chunk of a short prompt.
    pub prefill: Part,
}

impl Part {
    /// Adds up the launches of each kernel. `rounds` has the launches of each repetition, at least one.
    fn new(tokens: usize, cached: usize, rounds: &[Vec<LaunchTime>]) -> Self {
        let mut sums: BTreeMap<&'static str, (usize, Vec<f64>)> = BTreeMap::new();
        for (round, launches) in rounds.iter().enumerate() {
            for launch in launches {
                let (count, times) = sums.entry(launch.kernel).or_insert_with(|| (0, vec![0.0; rounds.len()]));
                *count += 1;
                times[round] += launch.time.as_secs_f64() * 1e6;
            }
        }
        let times = sums.into_iter().map(|(kernel, (count, times))| KernelTime {
            kernel,
            launches: count as f64 / rounds.len() as f64,
            microseconds: Spread::from_values(times),
            share: 0.0,
        });
        let mut kernels: Vec<KernelTime> = times.collect();
        kernels.sort_by(|a, b| b.microseconds.median.total_cmp(&a.microseconds.median));
        let all: f64 = kernels.iter().map(|kernel| kernel.microseconds.median).sum();
        kernels.iter_mut().for_each(|kernel| kernel.share = kernel.microseconds.median / all.max(1e-9));
        let host = rounds.iter().flatten().any(|launch| launch.clock == Clock::Host);
        let sum = |launches: &Vec<LaunchTime>| launches.iter().map(|launch| launch.time.as_secs_f64() * 1e6).sum();
        Self {
            tokens,
            cached,
            clock: if host { Clock::Host } else { Clock::Device },
            microseconds: Spread::from_values(rounds.iter().map(sum)),
            kernels,
        }
    }

    /// Launches of all kernels, on average.
    pub fn launches(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.launches).sum()
    }
}

/// Checks that the kernels of a device can be timed.
///
/// # Errors
/// [`ErrorKind::Input`] for the CPU, whose twins are no launches.
pub fn check_timed(device: &ComputeDevice) -> Result<()> {
    if device.info.backend != "cpu" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "the CPU reference launches no kernels that could be timed")
        .at("`kernels`")
        .expected("a device of a graphics API")
        .found(device.info.line())
        .help("choose another `device`, or measure without `kernels`"))
}

/// Times the kernels of `repeat` decode steps, and `repeat` times those of a chunk of the prompt, after a first round
/// that compiles the shaders. `lengths.decode` counts these steps and the one before them: it is at least `repeat +
/// 1`.
///
/// # Errors
/// Lengths of 0 or beyond the context, fewer decode steps than are timed, the CPU twins, and a device that fails.
pub async fn time_kernels(model: &Arc<Decoder>, kv: Dtype, lengths: Lengths, repeat: usize) -> Result<KernelTimes> {
    let Lengths { prompt, decode, sequences } = lengths;
    lengths.check(model.context())?;
    check_timed(model.device())?;
    if repeat == 0 || decode <= repeat {
        return Err(Error::new(ErrorKind::Input, "not enough decode steps to time")
            .at("`decode`")
            .expected("at least 1 repetition, and at least 1 decode step more than repetitions")
            .found(format!("{repeat} repetitions, {decode} steps")));
    }
    let shape = CacheShape::new(model.config(), kv, sequences, GROWTH)?;
    Runner::check(model.config().vocab_size, &shape, model.device())?;
    let ids = ids(prompt, model.config().vocab_size);
    let mut runner = Runner::new(model.clone(), shape);
    runner.set_replay(false);
    super::prefill(&mut runner, &ids).await?;
    let seqs: Vec<usize> = (0..sequences).collect();
    runner.decode(&seqs, 1)?;
    runner.read().finish().await?;
    let mut steps = Vec::new();
    for _ in 0..repeat {
        steps.push(timing::timed(|| runner.decode(&seqs, 1)).await?);
    }
    let (begins, tokens) = timed_chunk(prompt);
    let mut chunks = Vec::new();
    for _ in 0..repeat {
        runner.clear(0)?;
        let mut done = 0;
        while done < begins {
            done += runner.prefill(0, &ids[done..])?;
        }
        runner.read().finish().await?;
        chunks.push(timing::timed(|| runner.prefill(0, &ids[done..]).map(|_| ())).await?);
    }
    Ok(KernelTimes { decode: Part::new(sequences, prompt + 1, &steps), prefill: Part::new(tokens, begins, &chunks) })
}

/// The first token and the number of tokens of the last whole chunk of a prompt, or of its only chunk.
fn timed_chunk(prompt: usize) -> (usize, usize) {
    match prompt / PREFILL_CHUNK {
        0 => (0, prompt),
        whole => ((whole - 1) * PREFILL_CHUNK, PREFILL_CHUNK),
    }
}

#[cfg(test)]
mod tests {
    use web_time::Duration;

    use super::*;

    #[test]
    fn launches_of_a_kernel_are_added_up() {
        let launch = |kernel, us| LaunchTime { kernel, time: Duration::from_micros(us), clock: Clock::Device };
        let rounds = [
            vec![launch("norm", 10), launch("matvec", 60), launch("matvec", 40)],
            vec![launch("matvec", 70), launch("matvec", 50), launch("norm", 20), launch("gather", 4)],
            vec![launch("matvec", 200), launch("matvec", 100), launch("norm", 30)],
        ];
        let part = Part::new(1, 129, &rounds);
        let row = |kernel: &KernelTime| (kernel.kernel, kernel.microseconds.median.round() as u64);
        assert_eq!(part.kernels.iter().map(row).collect::<Vec<_>>(), [("matvec", 120), ("norm", 20), ("gather", 0)]);
        assert_eq!((part.kernels[0].launches, part.kernels[1].launches), (2.0, 1.0));
        assert!((part.launches() - 10.0 / 3.0).abs() < 1e-9);
        let share: f64 = part.kernels.iter().map(|kernel| kernel.share).sum();
        assert!((share - 1.0).abs() < 1e-9 && (part.kernels[0].share - 120.0 / 140.0).abs() < 1e-9);
        let Spread { median, min, max } = part.microseconds;
        assert_eq!([median, min, max].map(f64::round), [144.0, 110.0, 330.0]);
        assert_eq!(part.clock, Clock::Device);
        let mixed = [vec![launch("norm", 10), LaunchTime { clock: Clock::Host, ..launch("norm", 10) }]];
        assert_eq!(Part::new(1, 1, &mixed).clock, Clock::Host);
    }

    #[test]
    fn the_last_whole_chunk_is_timed() {
        for (prompt, chunk) in [(1, (0, 1)), (255, (0, 255)), (256, (0, 256)), (300, (0, 256)), (1024, (768, 256))] {
            assert_eq!(timed_chunk(prompt), chunk, "{prompt}");
        }
    }

    #[test]
    fn the_twins_are_no_launches() {
        let error = check_timed(&ComputeDevice::cpu()).expect_err("refused");
        assert_eq!(
            (error.kind(), error.what()),
            (ErrorKind::Input, "the CPU reference launches no kernels that could be timed")
        );
    }
}
