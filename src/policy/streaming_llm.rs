//! `streaming-llm`: attention sinks and a recent window (Xiao et al. 2023, arXiv 2309.17453).
use super::budget::{Group, evict};
use super::{CacheView, EvictionPolicy, KeepPlan, Measurement};
use crate::Result;

/// How many of the first tokens of the sequence are kept: they receive attention whatever their text is.
const SINKS: u32 = 4;

/// Evicts the oldest thinking tokens; the first 4 tokens of the sequence and the recent ones stay.
///
/// *Paper*: Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453. *Deviation*: the whole prompt
/// stays, as with every policy here. The recent window is as long as the budget allows. The paper rotates kept keys
/// to consecutive positions; here this is the setting `positions` compact, for every policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamingLlm;

impl EvictionPolicy for StreamingLlm {
    fn name(&self) -> &str {
        "streaming-llm"
    }

    fn summary(&self) -> &str {
        "evicts the oldest thinking tokens, keeps 4 sinks and the recent ones"
    }

    fn needs(&self) -> Measurement {
        Measurement::Nothing
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        let sink = |slot: u32| view.tokens()[slot as usize].position.0 < SINKS;
        let slots = view.evictable().filter(|s| !sink(s.0)).collect();
        evict(view, &[Group { importance: None, slots }])
    }
}
