//! One pruning of one sequence, between the held logits and the gather: measure what the policy needs, score every kept set, ask
//! for a plan, record it.
use crate::cache::{KvCache, Tracking};
use crate::kernels::Reduce;
use crate::kernels::readback::{self, Readback};
use crate::model::decoder::{Decoder, Input, Logits, Output};
use crate::policy::scores::{Granularity, readout_granularity};
use crate::policy::{CacheView, KeepPlan, Measured, Measurement, Normalise, Sets, Snapshot, ViewParts};
use crate::settings::Settings;
use crate::trace::{self, AttentionDetail, AttentionMap, Row};
use crate::{Error, ErrorKind, Result};

/// Everything that decides which tokens go, but for what is measured.
#[derive(Debug)]
pub struct Pruner {
    /// How to prune. A policy with an observation window protects that as well as the window of the settings.
    pub settings: Settings,
    /// The kept sets.
    pub sets: Sets,
}

/// What a policy needs measured, as read from the device.
#[derive(Debug, Default)]
pub struct Measurements {
    attention: Option<Measured>,
    similarity: Option<Measured>,
    /// For the trace: a row for each query head.
    heads: Option<Measured>,
}

impl Measurements {
    /// Takes in the heads of another reading.
    pub fn add(&mut self, other: Self) {
        self.heads = other.heads;
    }

    #[cfg(test)]
    pub(crate) fn has_heads(&self) -> bool {
        self.heads.is_some()
    }
}

/// The forward of the pending tokens, and which of its sequences is meant.
#[derive(Clone, Copy)]
pub struct PendingForward<'a> {
    /// What it gave.
    pub out: &'a Output,
    /// The row of the sequence.
    pub row: usize,
    /// Of so many.
    pub of: usize,
}

/// Measurements on their way from the device.
pub struct PendingMeasurements {
    attention: Option<(Readback, Vec<usize>)>,
    similarity: Option<(Readback, Vec<usize>)>,
    heads: Option<(Readback, Vec<usize>)>,
}

impl PendingMeasurements {
    /// Waits for them.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub async fn finish(self) -> Result<Measurements> {
        let mut readouts = Measurements::default();
        for (reading, out) in [
            (self.attention, &mut readouts.attention),
            (self.similarity, &mut readouts.similarity),
            (self.heads, &mut readouts.heads),
        ] {
            if let Some((read, slots)) = reading {
                let rows: Vec<Vec<f32>> = read.await?.iter().map(|bytes| readback::as_f32(bytes)).collect();
                *out = Some(Measured::new(&rows, &slots)?);
            }
        }
        Ok(readouts)
    }
}

impl Pruner {
    /// Checks that the policy and its settings fit together and the model: found out before anything is computed.
    ///
    /// # Errors
    /// Says which of them does not fit.
    pub fn new(settings: Settings, sets: Sets) -> Result<Self> {
        settings.policy.accepts(settings.budget)?;
        settings.layers.check(sets.layers, sets.scope)?;
        if sets.layers == 0 || sets.kv_heads == 0 {
            return Err(Error::new(ErrorKind::Internal, "a model without layers or heads"));
        }
        Ok(Self { settings, sets })
    }

    /// What must be kept up to date on the device for the policy.
    pub fn tracking(&self) -> Tracking {
        let needs = self.settings.policy.needs();
        Tracking { sums: needs == Measurement::Sums, queries: needs.queries() > 0 }
    }

    /// What the forward of the pending token must read out.
    pub fn readout_of_pending(&self) -> Option<Reduce> {
        (self.settings.policy.needs() == Measurement::LastRow).then(|| self.reduce())
    }

    /// What the attention kernel averages on the device, for the rows that the scope and the normalisation need.
    fn reduce(&self) -> Reduce {
        match readout_granularity(self.sets.scope, self.settings.normalise) {
            Granularity::QueryHead => Reduce::None,
            Granularity::KvHead => Reduce::KvHead,
            Granularity::Layer => Reduce::Layer,
        }
    }

    /// Starts measuring for `seq`, whose pending token `pending` has been forwarded (`held`: what that forward gave) and counted:
    /// forwards the probe, reads and rolls back where the policy asks for one. Nothing of the cache changes that is not put back.
    ///
    /// # Errors
    /// What [`Decoder::forward`] refuses.
    pub fn measure(
        &self,
        model: &Decoder,
        cache: &mut KvCache,
        seq: usize,
        pending: u32,
        probe_ids: &[u32],
        held: PendingForward<'_>,
    ) -> Result<PendingMeasurements> {
        let layers = cache.shape().layers;
        let cached = |cache: &KvCache| (0..layers).map(|layer| cache.len(layer, seq)).collect::<Vec<_>>();
        let mut reading = PendingMeasurements { attention: None, similarity: None, heads: None };
        match self.settings.policy.needs() {
            Measurement::Nothing => {}
            Measurement::LastRow => {
                let rows: Vec<_> = held.out.readout.iter().skip(held.row).step_by(held.of).collect();
                let slots = rows.iter().map(|row| row.dims()[1]).collect();
                reading.attention = Some((readback::read_f32(&rows), slots));
            }
            Measurement::ProbeRow => {
                let before = cache.checkpoint(seq);
                let out =
                    model.forward(Input::Probe { seq, ids: probe_ids }, cache, Logits::None, Some(self.reduce()))?;
                let slots = out.readout.iter().map(|row| row.dims()[1]).collect();
                reading.attention = Some((readback::read_f32(&out.readout.iter().collect::<Vec<_>>()), slots));
                cache.rollback(&before, pending);
            }
            Measurement::Sums => {
                let sums = (0..layers).map(|layer| cache.sums(layer, seq)).collect::<Result<Vec<_>>>()?;
                let slots = (0..layers).map(|layer| cache.capacity(layer, seq)).collect();
                reading.attention = Some((readback::read_u32(&sums.iter().collect::<Vec<_>>()), slots));
            }
            Measurement::Window { queries } | Measurement::WindowAndKeys { queries } => {
                let means = model.observe(cache, seq, queries)?;
                reading.attention = Some((readback::read_u32(&means.iter().collect::<Vec<_>>()), cached(cache)));
                if let Measurement::WindowAndKeys { .. } = self.settings.policy.needs() {
                    let alike = model.compare_keys(cache, seq);
                    reading.similarity = Some((readback::read_f32(&alike.iter().collect::<Vec<_>>()), cached(cache)));
                }
            }
        }
        Ok(reading)
    }

    /// The probe once more, for the trace, where it is to show the query heads. A forward of its own, so that what decides is
    /// measured in the same way with and without it.
    ///
    /// # Errors
    /// What [`Decoder::forward`] refuses.
    pub fn measure_heads(
        &self,
        model: &Decoder,
        cache: &mut KvCache,
        seq: usize,
        pending: u32,
        probe_ids: &[u32],
    ) -> Result<Option<PendingMeasurements>> {
        if self.settings.attention != AttentionDetail::Heads || !self.settings.policy.needs().probes() {
            return Ok(None);
        }
        let before = cache.checkpoint(seq);
        let out = model.forward(Input::Probe { seq, ids: probe_ids }, cache, Logits::None, Some(Reduce::None))?;
        let slots = out.readout.iter().map(|row| row.dims()[1]).collect();
        let heads = Some((readback::read_f32(&out.readout.iter().collect::<Vec<_>>()), slots));
        cache.rollback(&before, pending);
        Ok(Some(PendingMeasurements { attention: None, similarity: None, heads }))
    }

    /// The plan, and its record with timings and bytes left at 0. `at_token`: tokens generated so far; `probe`: the index of this
    /// pruning in its sequence.
    ///
    /// # Errors
    /// Scores that are not finite; what the policy refuses.
    pub fn plan(
        &self,
        snapshot: &Snapshot,
        readouts: &Measurements,
        at_token: usize,
        probe: u64,
    ) -> Result<(KeepPlan, trace::Probe)> {
        let window = self.settings.window.max(self.settings.policy.needs().queries());
        let parts = |set: usize| ViewParts {
            window,
            seed: self.settings.seed,
            probe,
            ..snapshot.parts(set, self.settings.budget)
        };
        let mut scored = Vec::new();
        for set in 0..self.sets.count() {
            let free: Vec<bool> = match (&readouts.attention, &readouts.similarity) {
                (None, None) => Vec::new(),
                _ => CacheView::new(parts(set))?.protected().iter().map(|kept| !kept).collect(),
            };
            let scores = |measured: &Measured, normalise| {
                measured.scores(&self.sets, &self.settings.layers, normalise, set, &free)
            };
            scored.push((
                readouts.attention.as_ref().map(|m| scores(m, self.settings.normalise)).transpose()?,
                readouts.similarity.as_ref().map(|m| scores(m, Normalise::None)).transpose()?,
            ));
        }
        let mut views = Vec::new();
        for (set, (scores, similarity)) in scored.iter().enumerate() {
            let (scores, similarity) = (scores.as_deref(), similarity.as_deref());
            views.push(CacheView::new(ViewParts { scores, similarity, ..parts(set) })?);
        }
        let plans = views.iter().map(|view| self.settings.policy.plan(view)).collect::<Result<Vec<_>>>()?;
        let plan = KeepPlan::join(&self.sets, plans)?;
        let mut record = trace::Probe::record(at_token, &self.sets, &views, &plan)?;
        if let (true, Some(measured)) = (self.settings.attention != AttentionDetail::Off, &readouts.attention)
            && self.settings.policy.needs().probes()
        {
            let heads = readouts.heads.as_ref().map(|heads| self.rows(&views, heads));
            record.attention = Some(AttentionMap::of(&self.rows(&views, measured), heads.as_deref())?);
        }
        Ok((plan, record))
    }
}

impl Pruner {
    /// Each row with the view of the kept set whose slots it runs over. A KV head's query heads lie side by side.
    fn rows<'a>(&self, views: &'a [CacheView<'a>], measured: &'a Measured) -> Vec<Vec<Row<'a>>> {
        let of_layer = |(layer, rows): (usize, &'a Vec<Vec<f32>>)| {
            let view = |row: usize| &views[self.sets.of(layer, row * self.sets.kv_heads / rows.len())];
            rows.iter().enumerate().map(|(row, weights)| (view(row), &weights[..])).collect()
        };
        measured.layers.iter().enumerate().map(of_layer).collect()
    }
}
