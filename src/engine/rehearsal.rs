//! Compiles the shaders of a model before its weights have arrived.
use std::sync::Arc;

use super::prepared::PreparedModel;
use super::pruning::Pruner;
use super::request::Request;
use super::runner::{Admission, Runner};
use super::{GROWTH, Settings};
use crate::cache::CacheShape;
use crate::device::ComputeDevice;
use crate::dtype::Dtype;
use crate::model::decoder::Decoder;
use crate::model::stand_in::StandIn;
use crate::policy::{Layers, Sets};
use crate::weights::Weights;
use crate::weights::precision::Precision;
use crate::{Result, conformance};

/// Tokens of a prompt: enough for the product that takes many rows, and less than a tile of attention.
const PROMPT: usize = 20;
/// Tokens after which the slots fill more than one tile of attention.
const LONG: usize = 300;
/// Tokens of a probe.
const PROBE: usize = 12;
/// Positions that the stand-in is loaded for.
const CONTEXT: usize = 512;

/// A small model that runs in place of a large one, so that the shaders of the large one are compiled.
pub struct Rehearsal {
    model: StandIn,
    kv: Dtype,
    precision: Option<Precision>,
    settings: Settings,
}

impl Rehearsal {
    /// A rehearsal for `prepared`, whose headers `weights` are; `None` for a model with experts. It has the settings
    /// of a request that leaves everything open.
    ///
    /// # Errors
    /// A tensor that is missing, and the errors of [`PreparedModel::settings`].
    pub fn new(prepared: &PreparedModel, weights: &Weights) -> Result<Option<Self>> {
        let Some(model) = StandIn::find(prepared.config(), weights)? else { return Ok(None) };
        let (settings, _) = prepared.settings(&Request::default())?;
        // The stand-in lacks most layers.
        let settings = Settings { layers: Layers::All, ..settings };
        Ok(Some(Self { model, kv: prepared.kv(), precision: prepared.precision(), settings }))
    }

    /// Runs the small model: a prompt and a decode step, then a probe, then the same with a longer cache. It ends
    /// early once `stop` returns true. Kernels whose test was put off are tested before the probe.
    ///
    /// # Errors
    /// Those of a run, and a kernel that computes wrong results.
    pub async fn run(&self, device: &ComputeDevice, stop: impl Fn() -> bool) -> Result<()> {
        let StandIn { config, weights } = &self.model;
        let model = Arc::new(Decoder::load(config, weights, CONTEXT, self.precision, device, &mut |_, _| ())?);
        let mut runner = Runner::new(model, CacheShape::new(config, self.kv, 1, GROWTH)?);
        let sets = Sets { scope: self.settings.scope, layers: config.num_layers, kv_heads: config.num_kv_heads };
        let pruner = Pruner::new(self.settings.clone(), sets)?;
        let ids = [0; LONG];
        let admission =
            Admission { settings: &self.settings, tracking: pruner.tracking(), prompt: &ids[..PROMPT], group: None };
        runner.admit(0, true, &admission)?;
        let probe = &ids[..if self.settings.policy.needs().probes() { PROBE } else { 0 }];
        for prompt in [&ids[..PROMPT], &ids[..]] {
            let mut rest = prompt;
            while !rest.is_empty() {
                rest = &rest[runner.prefill(0, rest)?..];
            }
            runner.decode(&[0], 1)?;
            // A shader is compiled when its work is executed, not when it is launched, so the result is read here.
            runner.read().finish().await?;
            if stop() || !conformance::test_others(device, &stop).await? {
                return Ok(());
            }
            let held = runner.hold(&[(0, 0)], pruner.readout_of_pending())?;
            runner.measure(&held, 0, &pruner.request(probe))?.finish().await?;
            runner.resume(&held);
            runner.read().finish().await?;
            if stop() {
                return Ok(());
            }
        }
        Ok(())
    }
}
