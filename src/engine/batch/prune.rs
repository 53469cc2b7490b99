//! The pruning of the sequences that are due: hold, measure, plan, keep, resume.
use std::sync::atomic::Ordering;

use web_time::Instant;

use super::super::record::OnEvent;
use super::super::runner::{Measurements, Next, PendingForward, ProbeInput, Runner};
use super::super::sequence::Sequence;
use super::Batch;
use super::places::{Running, next, with_room};
use crate::cache::RegionUpdate;
use crate::kernels::Reduce;
use crate::policy::KeepPlan;
use crate::{Error, ErrorKind, Result, conformance, trace};

/// A sequence that is to be pruned now.
struct Due<'s> {
    place: usize,
    sequence: &'s mut Sequence,
    /// Its pending token: the one after which the probe comes.
    pending: u32,
}

impl<'s> Due<'s> {
    /// `None` for a sequence that is not due.
    fn new(Running { place, sequence }: Running<'s>) -> Option<Self> {
        Some(Self { place, pending: sequence.due()?, sequence })
    }
}

impl Batch<'_> {
    /// Prunes all sequences that are due: hold, measure, plan, keep, resume. Their text is known by now. The steps of
    /// the other sequences wait only on the device, behind the probes.
    pub(super) async fn prune(&mut self, on: &mut OnEvent<'_>) -> Result<()> {
        let due = self.places.running().filter(|r| r.sequence.due().is_some()).collect();
        let mut due: Vec<Due<'_>> = with_room(self.runner, due, 1).into_iter().filter_map(Due::new).collect();
        if due.is_empty() {
            return Ok(());
        }
        let stop = self.stop;
        if !conformance::test_others(self.runner.model().device(), || stop.load(Ordering::Relaxed)).await? {
            return Ok(()); // the next turn ends the requests
        }
        let begun = Instant::now();
        let held = hold(self.runner, &mut due)?;
        let mut measured = measure(self.runner, &held, &mut due).await;
        let probed = Instant::now();
        measure_heads(self.runner, &held, &mut due, &mut measured).await;
        let traced = Instant::now();

        let mut plans = Vec::new();
        for (row, (due, measured)) in due.iter_mut().zip(measured).enumerate() {
            let plan = measured.map(|measured| guarded(|| due.sequence.plan(&measured)));
            if let Some((plan, record)) = plan.and_then(|plan| due.sequence.or_fail(plan)) {
                plans.push(Planned { row, plan, record });
            }
        }
        let planned = Instant::now();

        let bytes_before = self.runner.model().device().bytes();
        keep(self.runner, &mut due, &plans);
        let bytes_after = self.runner.model().device().bytes();
        let gathered = Instant::now();
        let timings = trace::Timings {
            probe_us: (probed - begun).as_micros() as u64,
            plan_us: (planned - traced).as_micros() as u64,
            gather_us: (gathered - planned).as_micros() as u64,
        };
        for Planned { row, record, .. } in plans {
            due[row].sequence.pruned(trace::Probe { timings, bytes_before, bytes_after, ..record }, on);
        }

        let chosen = |due: &mut Due<'_>| due.sequence.forced().map_or_else(|| next(due.sequence), Next::Only);
        let nexts: Vec<Next> = due.iter_mut().map(chosen).collect();
        self.runner.resume_then(&held, &nexts);
        for (Due { sequence, .. }, next) in due.into_iter().zip(nexts) {
            sequence.issued += 1;
            if let Next::Only(_) = next {
                sequence.wrote_forced();
            }
            // Reading the heads serves the trace alone and is no part of what a probe costs.
            sequence.totals.probe_us += (begun.elapsed() - (traced - probed)).as_micros() as u64;
        }
        self.start_read(0);
        Ok(())
    }
}

/// Runs a part of one request. If it panics, as a policy from outside the crate may, only this request fails.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| said.to_string()));
        let e = Error::new(ErrorKind::Internal, "the request has failed by a panic");
        Err(e.found(said.unwrap_or_else(|| "no message".into())))
    })
}

/// The plan for the sequence in row `row` of a pruning, and its record.
struct Planned {
    row: usize,
    plan: KeepPlan,
    record: trace::Probe,
}

/// Forwards the pending tokens as a decode step would. Their logits wait until the caches are pruned. If a policy
/// decides by the attention of the pending tokens, reads it as finely as the most demanding policy needs.
fn hold(runner: &mut Runner, due: &mut [Due<'_>]) -> Result<PendingForward> {
    let readouts = due.iter().filter_map(|due| due.sequence.pruner.readout_of_pending());
    let readout = readouts.min_by_key(|reduce: &Reduce| *reduce as u32);
    let pending: Vec<(usize, u32)> = due.iter().map(|due| (due.place, due.pending)).collect();
    let held = runner.hold(&pending, readout)?;
    for Due { place, sequence, .. } in due {
        sequence.note_peak(runner.cache().longest(*place), runner.cache().bytes_of(*place));
    }
    Ok(held)
}

/// Measures what the policies need, in the order of `due`: `None` for a sequence that failed. All measurements are
/// launched before the first is awaited.
async fn measure(runner: &mut Runner, held: &PendingForward, due: &mut [Due<'_>]) -> Vec<Option<Measurements>> {
    let mut pending = Vec::new();
    for (row, Due { place, sequence, .. }) in due.iter_mut().enumerate() {
        let request = sequence.pruner.request(&sequence.probe_ids);
        let started = match runner.measure(held, row, &request) {
            Err(_) if runner.forget_idle() => runner.measure(held, row, &request),
            started => started,
        };
        let started = sequence.or_fail(started);
        if started.is_some() {
            let slots = runner.cache().longest(*place) + sequence.probe_ids.len();
            sequence.note_peak(slots, runner.cache().bytes_of(*place));
        }
        pending.push(started);
    }
    let mut measured = Vec::new();
    for (due, pending) in due.iter_mut().zip(pending) {
        measured.push(match pending {
            Some(pending) => due.sequence.or_fail(pending.finish().await),
            None => None,
        });
    }
    measured
}

/// Reads the attention of every query head, for traces that show it. This is a separate forward, so that the policy's
/// measurement is the same whether or not the trace shows heads. A sequence whose heads cannot be read fails.
async fn measure_heads(
    runner: &mut Runner,
    held: &PendingForward,
    due: &mut [Due<'_>],
    measured: &mut [Option<Measurements>],
) {
    for (row, (Due { sequence, .. }, slot)) in due.iter_mut().zip(measured).enumerate() {
        let Some(measured) = slot else { continue };
        if !sequence.pruner.shows_heads() {
            continue;
        }
        let layers = sequence.pruner.sets.layers;
        let probe = ProbeInput { ids: &sequence.probe_ids, layers };
        let heads = match runner.probe(held, row, probe, Some(Reduce::None)) {
            Ok(rows) => rows.finish().await,
            Err(e) => Err(e),
        };
        match sequence.or_fail(heads) {
            Some(heads) => measured.heads = Some(heads),
            None => *slot = None,
        }
    }
}

/// Carries out the plans, on the device and in the ledgers.
fn keep(runner: &mut Runner, due: &mut [Due<'_>], plans: &[Planned]) {
    let evicting: Vec<&Planned> = plans.iter().filter(|planned| !planned.plan.keeps_all()).collect();
    let mut updates = Vec::new();
    for planned in &evicting {
        let Due { place, sequence, .. } = &due[planned.row];
        updates.push(RegionUpdate::new(*place, &planned.plan, sequence.room_after_gather()));
    }
    for (planned, kept) in evicting.into_iter().zip(runner.keep(&updates)) {
        let sequence = &mut due[planned.row].sequence;
        let gathered = kept.and_then(|()| sequence.ledger.gather(&planned.plan));
        sequence.or_fail(gathered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::ComputeDevice;
    use crate::dtype::Dtype;
    use crate::engine::{Engine, LoadOptions, Prompt, Settings};
    use crate::settings::AttentionDetail;
    use crate::trace::StopReason;

    /// A sequence whose query heads cannot be read for the trace fails alone. (`tests/it/engine.rs` tests the same
    /// for what the policy decides by.)
    #[test]
    fn heads_that_cannot_be_read_are_their_own_sequences_affair() {
        let load = LoadOptions { kv: Dtype::F32, context: Some(256), sequences: 3, weights: None };
        let device = ComputeDevice::cpu();
        let source = crate::builtin::source();
        let mut engine =
            Engine::load(&source, "built-in", &device, &load, &mut |_, _| ()).expect("it is in the binary");
        let options = Settings { probe_every: 100, attention: AttentionDetail::Heads, ..Settings::default() };
        let mut batch = engine.batch();
        for _ in 0..3 {
            batch.add(&Prompt::Chat(crate::builtin::EXAMPLE.into()), &options).expect("a good request");
        }
        let ready = |s: &Option<Sequence>| s.as_ref().is_some_and(|s| !s.tokens.is_empty());
        while !batch.places.0.iter().all(ready) {
            pollster::block_on(batch.step(&mut |_, _| ()));
        }
        let mut due: Vec<Due<'_>> = batch
            .places
            .running()
            .map(|Running { place, sequence }| Due { place, pending: sequence.tokens[0].id, sequence })
            .collect();
        due[1].sequence.probe_ids = vec![u32::MAX];
        let held = hold(batch.runner, &mut due).expect("it fits");
        let mut measured: Vec<Option<Measurements>> = (0..3).map(|_| Some(Measurements::default())).collect();
        pollster::block_on(measure_heads(batch.runner, &held, &mut due, &mut measured));
        let [Some(first), None, Some(last)] = &measured[..] else { panic!("the second fails, and it alone") };
        assert!(first.heads.is_some() && last.heads.is_some());
        let ended: Vec<_> = due.iter().map(|due| due.sequence.ended.clone()).collect();
        let [None, Some(StopReason::Failed(what)), None] = &ended[..] else { panic!("{ended:?}") };
        assert!(what.contains("outside the vocabulary"), "{what}");
    }
}
