//! Decides, for one sequence, what is measured for a pruning and which slots stay. The [`Runner`](super::Runner)
//! makes the measurements and carries out the plan.
use super::runner::{MeasureRequest, Measurements, ProbeInput};
use crate::cache::Tracking;
use crate::kernels::Reduce;
use crate::policy::scores::{Granularity, readout_granularity};
use crate::policy::{CacheView, KeepPlan, Measured, Measurement, Normalise, Sets, Snapshot, ViewParts};
use crate::settings::{AttentionDetail, Settings};
use crate::trace::{self, AttentionMap, AttentionRow};
use crate::{Error, ErrorKind, Result};

/// The pruning configuration of one sequence.
#[derive(Debug)]
pub struct Pruner {
    /// How to prune. The longer of its window and the policy's observation window is protected.
    pub settings: Settings,
    /// Which layers and heads share a kept set.
    pub sets: Sets,
}

impl Pruner {
    /// Checks, before anything is computed, that the settings fit each other and the model.
    ///
    /// # Errors
    /// If the policy does not accept the budget, or the model or the scope does not have the layers.
    pub fn new(settings: Settings, sets: Sets) -> Result<Self> {
        settings.policy.accepts(settings.budget)?;
        settings.layers.check(sets.layers, sets.scope)?;
        if sets.layers == 0 || sets.kv_heads == 0 {
            return Err(Error::new(ErrorKind::Internal, "a model without layers or heads"));
        }
        Ok(Self { settings, sets })
    }

    /// What the cache must track for the policy.
    pub fn tracking(&self) -> Tracking {
        let needs = self.settings.policy.needs();
        Tracking { sums: needs.adds_up(), queries: needs.queries() > 0, recurrence: needs == Measurement::Recurrence }
    }

    /// The attention rows that the forward of the pending token must read out; `None` if the policy does not use
    /// them.
    pub fn readout_of_pending(&self) -> Option<Reduce> {
        (self.settings.policy.needs() == Measurement::LastRow).then(|| self.reduce())
    }

    /// How far the attention kernel averages rows on the device, given the scope and the normalisation.
    fn reduce(&self) -> Reduce {
        match readout_granularity(self.sets.scope, self.settings.normalise) {
            Granularity::QueryHead => Reduce::None,
            Granularity::KvHead => Reduce::KvHead,
            Granularity::Layer => Reduce::Layer,
        }
    }

    /// What the runner is to measure. `probe_ids`: the ids of the sequence's probe.
    pub fn request<'a>(&self, probe_ids: &'a [u32]) -> MeasureRequest<'a> {
        // A record of the attention has all layers.
        let layers = match self.settings.attention {
            AttentionDetail::Off => self.settings.layers.deepest(self.sets.layers),
            _ => self.sets.layers,
        };
        let measurement = self.settings.policy.needs();
        MeasureRequest { measurement, granularity: self.reduce(), probe: ProbeInput { ids: probe_ids, layers } }
    }

    /// Whether the trace records the probe's attention for every query head.
    pub fn shows_heads(&self) -> bool {
        self.settings.attention == AttentionDetail::Heads && self.settings.policy.needs().probes()
    }

    /// Scores every kept set and asks the policy for a plan. Returns the plan and its record, in which timings and
    /// bytes are still 0. `at_token`: tokens generated so far; `probe`: the index of this pruning in its sequence.
    ///
    /// # Errors
    /// If a score is not finite, or the policy returns an error.
    pub fn plan(
        &self,
        snapshot: &Snapshot,
        measured: &Measurements,
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
            let free: Vec<bool> =
                match (&measured.attention, &measured.similarity, &measured.value_range, &measured.received) {
                    (None, None, None, None) => Vec::new(),
                    _ => CacheView::new(parts(set))?.protected().iter().map(|kept| !kept).collect(),
                };
            let scores =
                |rows: &Measured, normalise| rows.scores(&self.sets, &self.settings.layers, normalise, set, &free);
            scored.push((
                measured.attention.as_ref().map(|m| scores(m, self.settings.normalise)).transpose()?,
                measured.similarity.as_ref().map(|m| scores(m, Normalise::None)).transpose()?,
                measured.value_range.as_ref().map(|m| scores(m, Normalise::None)).transpose()?,
                measured.received.as_ref().map(|m| scores(m, Normalise::None)).transpose()?,
            ));
        }
        let mut views = Vec::new();
        for (set, (scores, similarity, value_range, received)) in scored.iter().enumerate() {
            views.push(CacheView::new(ViewParts {
                scores: scores.as_deref(),
                similarity: similarity.as_deref(),
                value_range: value_range.as_deref(),
                received: received.as_deref(),
                ..parts(set)
            })?);
        }
        let plans = views.iter().map(|view| self.settings.policy.plan(view)).collect::<Result<Vec<_>>>()?;
        let plan = KeepPlan::join(&self.sets, plans)?;
        let mut record = trace::Probe::record(at_token, &self.sets, &views, &plan)?;
        if let (true, Some(attention)) = (self.settings.attention != AttentionDetail::Off, &measured.attention)
            && self.settings.policy.needs().probes()
        {
            let heads = measured.heads.as_ref().map(|heads| self.rows(&views, heads));
            record.attention = Some(AttentionMap::from_rows(&self.rows(&views, attention), heads.as_deref())?);
        }
        Ok((plan, record))
    }

    /// Pairs each row with the view of the kept set whose slots it covers. The query heads of a KV head are adjacent.
    fn rows<'a>(&self, views: &'a [CacheView<'a>], measured: &'a Measured) -> Vec<Vec<AttentionRow<'a>>> {
        let of_layer = |(layer, rows): (usize, &'a Vec<Vec<f32>>)| {
            let view = |row: usize| &views[self.sets.of(layer, row * self.sets.kv_heads / rows.len())];
            rows.iter().enumerate().map(|(row, weights)| (view(row), &weights[..])).collect()
        };
        measured.layers.iter().enumerate().map(of_layer).collect()
    }
}
