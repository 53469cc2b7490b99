//! What is tracked besides keys and values, for policies that need past attention: running sums of attention, records
//! of when a slot mattered, and the latest queries.
use burn::tensor::{Device, Int, Tensor};

use super::{CacheShape, KvCache, Region};
use crate::kernels::attention_recurrence::RECORD;
use crate::kernels::{
    self, AttentionSumsSpec, GatherSpec, InPlace, QueryRingSpec, RecurrenceSpec, cache_gather::MOVE, memory,
};
use crate::policy::Positions;
use crate::{Error, ErrorKind, Result};

/// Queries that are tracked for each sequence. No policy needs more.
pub const OBSERVED: usize = 32;

/// What is tracked. The tokens of a probe are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tracking {
    /// The attention that each slot has received from all queries, for each KV head.
    pub sums: bool,
    /// The latest [`OBSERVED`] queries.
    pub queries: bool,
    /// For each slot and KV head, when it last mattered to a query and the longest time that it did not; see
    /// [`attention_recurrence`](mod@kernels::attention_recurrence).
    pub recurrence: bool,
}

impl CacheShape {
    /// The most bytes that are tracked for a slot of a layer: a sum and a record for each KV head. While any sequence
    /// needs them, they are kept for all sequences.
    pub(crate) fn tracked_bytes(&self) -> usize {
        4 * (1 + RECORD) * self.kv_heads
    }
}

/// The tracked data of one layer.
#[derive(Default)]
pub(super) struct Tracked {
    /// f32 bits in u32 words: for each sequence `kv_heads · capacity` of them, from half its region's `base` on.
    sums: Option<InPlace<Tensor<1, Int>>>,
    /// Records of [`RECORD`] words each, laid out as the sums are.
    records: Option<InPlace<Tensor<1, Int>>>,
    /// f32 `[sequences · OBSERVED, heads · head_dim]`: a ring of [`OBSERVED`] rows for each sequence.
    queries: Option<InPlace<Tensor<2>>>,
}

impl Tracked {
    /// Moves the sums and the records along with the slots. `moves` and `spec` are those of the layer's keys and
    /// values. `out_slots` is the number of slots in the new buffer, for all KV heads together.
    pub(super) fn gather(
        &mut self,
        device: &Device,
        keep: &Tensor<1, Int>,
        moves: &[u32],
        spec: GatherSpec,
        kv_heads: usize,
        out_slots: usize,
    ) {
        let tracked = [(&mut self.sums, 1), (&mut self.records, RECORD)];
        let mut tracked = tracked.into_iter().filter_map(|(buffer, words)| Some((buffer.as_mut()?, words))).peekable();
        if tracked.peek().is_none() {
            return;
        }
        // A slot has one row here for each KV head, where the cache has two: the bases (entries 0 and 2 of a move)
        // are therefore halved.
        let halved = |(i, v): (usize, &u32)| if matches!(i % MOVE, 0 | 2) { v / 2 } else { *v };
        let moves = kernels::u32_tensor(moves.iter().enumerate().map(halved).collect(), device);
        for (buffer, row_words) in tracked {
            let out_words = (out_slots * row_words).max(4);
            let spec = GatherSpec { row_words, planes: kv_heads, out_words, ..spec };
            buffer.update(|old| ((), memory::dedicated(device, || kernels::cache_gather(old, keep, &moves, spec))));
        }
    }
}

impl KvCache {
    /// Adds to what is tracked. The setting applies to all sequences until the next [`begin`](Self::begin); it must
    /// be made before the first token of a sequence that needs it. `query_cols`: values of a token's queries, all
    /// heads together.
    pub fn track(&mut self, tracking: Tracking, query_cols: usize) {
        let rows = self.shape.seqs * OBSERVED;
        for layer in &mut self.layers {
            let slots = layer.regions.iter().map(|r| r.cap).sum::<usize>() * self.shape.kv_heads;
            let empty =
                |row_words: usize| InPlace::new(memory::empty_u32(&self.device.burn, (slots * row_words).max(4)));
            if tracking.sums && layer.tracked.sums.is_none() {
                layer.tracked.sums = Some(empty(1));
            }
            if tracking.recurrence && layer.tracked.records.is_none() {
                layer.tracked.records = Some(empty(RECORD));
            }
            if tracking.queries && layer.tracked.queries.is_none() {
                layer.tracked.queries = Some(InPlace::new(memory::empty_f32(&self.device.burn, [rows, query_cols])));
            }
        }
        self.tracking.sums |= tracking.sums;
        self.tracking.queries |= tracking.queries;
        self.tracking.recurrence |= tracking.recurrence;
    }

    /// The current setting of what is tracked.
    pub fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// Adds a chunk's attention to the running sums of its slots, if they are tracked.
    pub(crate) fn add_sums(
        &mut self,
        layer: usize,
        q: &Tensor<2>,
        lse: &Tensor<2>,
        rope: &Tensor<1>,
        spec: AttentionSumsSpec,
    ) {
        let (state, layer) = (self.state.tensor(), &mut self.layers[layer]);
        let Some(sums) = &mut layer.tracked.sums else { return };
        sums.update(|sums| ((), kernels::attention_sums(q, lse, &layer.kv, state, rope, sums, spec)));
    }

    /// Updates the records of the slots with a chunk's queries, if the records are tracked.
    pub(crate) fn add_recurrence(
        &mut self,
        layer: usize,
        q: &Tensor<2>,
        lse: &Tensor<2>,
        rope: &Tensor<1>,
        spec: RecurrenceSpec,
    ) {
        let (state, layer) = (self.state.tensor(), &mut self.layers[layer]);
        let Some(records) = &mut layer.tracked.records else { return };
        records.update(|old| ((), kernels::attention_recurrence(q, lse, &layer.kv, state, rope, old, spec)));
    }

    /// Stores the queries of a chunk or of a decode step, if they are tracked. The row map names their sequences.
    pub(crate) fn store_queries(&mut self, layer: usize, q: &Tensor<2>, chunk: usize) {
        let [n, cols] = q.dims();
        let spec = QueryRingSpec { n, cols, chunk, row_seq_offset: self.state.row_map_offset(), width: OBSERVED };
        let Some(ring) = &mut self.layers[layer].tracked.queries else { return };
        ring.update(|ring| ((), kernels::store_queries(q, self.state.tensor(), ring, spec)));
    }

    /// How many of the `most` latest queries of `seq` can be used. With compact positions these are only the queries
    /// since the last gather: earlier ones were rotated for slots that have moved.
    pub fn observable(&self, seq: usize, most: usize) -> usize {
        let mirror = self.sequence(seq);
        let since = if self.positions == Positions::Compact { mirror.position_at_last_gather.0 } else { 0 };
        most.min(OBSERVED).min((mirror.position.0 - since) as usize)
    }

    /// The `n` latest queries of the one sequence that is selected, oldest first: f32 `[n, heads · head_dim]`.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when queries are not tracked, and for `n` of 0.
    pub(crate) fn latest_queries(&self, layer: usize, n: usize) -> Result<Tensor<2>> {
        let ring = self.layers[layer].tracked.queries.as_ref().filter(|_| n > 0);
        let ring = ring.ok_or_else(|| Error::new(ErrorKind::Internal, "the cache does not track queries"))?;
        let spec = QueryRingSpec {
            n,
            cols: ring.dims()[1],
            chunk: n,
            row_seq_offset: self.state.row_map_offset(),
            width: OBSERVED,
        };
        Ok(kernels::latest_queries(ring, self.state.tensor(), spec))
    }

    /// The running sums of `seq` in `layer`, f32 bits in u32 words: `[kv_heads, capacity]`. Only the first `len` of
    /// each row are meaningful.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when sums are not tracked.
    pub fn sums(&self, layer: usize, seq: usize) -> Result<Tensor<1, Int>> {
        self.tracked(layer, seq, self.layers[layer].tracked.sums.as_ref(), 1)
    }

    /// The records of `seq` in `layer`: `[kv_heads, capacity, 2]`, the position of the latest query to which a slot
    /// mattered and its longest interval. Only the first `len` of each row are meaningful.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when they are not tracked.
    pub fn recurrence(&self, layer: usize, seq: usize) -> Result<Tensor<1, Int>> {
        self.tracked(layer, seq, self.layers[layer].tracked.records.as_ref(), RECORD)
    }

    /// The part of `buffer` that belongs to `seq` in `layer`. It has `row_words` words for each KV head and slot.
    fn tracked(
        &self,
        layer: usize,
        seq: usize,
        buffer: Option<&InPlace<Tensor<1, Int>>>,
        row_words: usize,
    ) -> Result<Tensor<1, Int>> {
        let missing = || Error::new(ErrorKind::Internal, "the cache does not track what a policy measures");
        let Region { base, cap, .. } = self.layers[layer].regions[seq];
        let rows = self.shape.kv_heads * cap;
        Ok(memory::slice(buffer.ok_or_else(missing)?, base / 2 * row_words, rows * row_words))
    }
}
