//! The KV cache and the device-resident state of the sequences.
//!
//! **Slot and position.** A [`Slot`] is where a token's key and value lie: a row index that changes at every gather. A
//! [`Position`] is when the token was written: what RoPE rotates by. Before the first eviction they are equal, after it
//! never again. Kept keys keep the rotation they were written with ([`Positions::Original`]).
//!
//! With [`Positions::Compact`] keys stand at their slot: they close ranks at every gather, and the next token follows the last of
//! them. Such keys are stored as the projection made them and rotated when they are read, from the table that was computed in
//! f64: they are rounded once, when they are written, however often they move, and the gather moves words as ever. (Re-rotating
//! stored f16 keys at each gather would round them each time: 80 times in 16,000 tokens.)
//!
//! **Layout.** One buffer of u32 words a layer. SeqMirror `b` owns a region of `2 · kv_heads · cap` rows from row `base` on:
//! the keys of each KV head, `cap` rows a head, then the values likewise. A row is one head's vector: `head_dim` f32 words,
//! or half as many packed f16. Layers own their lengths and capacities, so that they may keep different slots.
//!
//! **Memory.** Buffers are dedicated allocations of exactly the capacity: they grow in chunks and really shrink when slots
//! are evicted. Growing and pruning are the same kernel, `cache_gather`, which rebuilds a layer's buffer for all sequences:
//! so those that decode side by side grow together, and those pruned at the same time are gathered together.
//!
//! **State.** Dtype on the device (layout: [`kernels::state`]) that kernels read and `sample` advances, and a mirror of them
//! here. The host knows lengths and positions without asking, because steps advance them by known amounts; only the sampled
//! ids must be read back, from the ring, late. Behind the rings lies the **map**: which sequence each row of a step belongs to,
//! so that any of the sequences are forwarded together, in any order.
use crate::dtype::Dtype;
use burn::tensor::{Int, Tensor};

use crate::device::{ComputeDevice, DeviceInfo};
use crate::kernels::readback::{self, Readback};
use crate::kernels::{
    self, AttentionSumsSpec, GatherSpec, MOST_ROWS, QueryRingSpec, SampleSpec, TopKSpec, cache_gather::MOVE, memory,
    state, top_k,
};
use crate::model::config::ModelConfig;
use crate::policy::Positions;
use crate::sampling::Sampling;
use crate::{Error, ErrorKind, Position, Result, Slot};

/// Sampled ids a sequence keeps on the device: bounds how late the host may read them.
pub const RING: usize = 64;

/// Queries of a sequence that are tracked: no policy looks through more.
pub const OBSERVED: usize = 32;

/// Sizes of a cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Tokens of the vocabulary: what a sampler has seen is a bit a token.
    pub vocab: usize,
    /// Values of one head's vector.
    pub head_dim: usize,
    /// `F32` or `F16`.
    pub dtype: Dtype,
    /// Sequences side by side.
    pub seqs: usize,
    /// Slots that capacities are rounded up to.
    pub growth: usize,
}

impl CacheShape {
    /// The shape `config` needs, for `seqs` sequences.
    ///
    /// # Errors
    /// When `dtype` is neither f32 nor f16: no kernel writes other types. When there are more sequences than a step can have rows.
    pub fn new(config: &ModelConfig, dtype: Dtype, seqs: usize, growth: usize) -> Result<Self> {
        if !matches!(dtype, Dtype::F32 | Dtype::F16) {
            return Err(Error::new(ErrorKind::Input, format!("the KV cache cannot be {dtype}")).expected("f32 or f16"));
        }
        if !(1..=MOST_ROWS).contains(&seqs) {
            return Err(Error::new(ErrorKind::Input, "so many sequences cannot run side by side")
                .at("--sequences")
                .expected(format!("at least 1, at most {MOST_ROWS}"))
                .found(seqs));
        }
        Ok(Self {
            layers: config.num_layers,
            kv_heads: config.num_kv_heads,
            vocab: config.vocab_size,
            head_dim: config.head_dim,
            dtype,
            seqs,
            growth: growth.max(1),
        })
    }

    fn seen_words(&self) -> usize {
        self.vocab.div_ceil(32)
    }

    fn row_words(&self) -> usize {
        self.dtype.row_words(self.head_dim)
    }

    /// Words of the device's state.
    fn state_words(&self) -> usize {
        self.seqs * (state::SEQ + self.layers * state::ROW + RING + 1)
    }

    /// Bytes of one slot in one layer: keys and values of every KV head.
    pub fn slot_bytes(&self) -> usize {
        2 * self.kv_heads * self.row_words() * 4
    }

    /// Bytes of the keys and values of one sequence with room for `tokens`, all layers together; `None` if they are more than can
    /// be counted.
    pub fn bytes_for(&self, tokens: usize) -> Option<u64> {
        let slots = tokens.checked_next_multiple_of(self.growth)?;
        u64::try_from(slots.checked_mul(self.layers)?.checked_mul(self.slot_bytes())?).ok()
    }

    /// Whether a cache of so many sequences can begin on a device. What they may grow to is found out when they do.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the state of so many exceeds the largest buffer.
    pub fn check(&self, info: &DeviceInfo) -> Result<()> {
        let bytes = 4 * self.state_words().max(self.seqs * self.seen_words()) as u64;
        if bytes <= info.max_binding_bytes {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Device, "the state of so many sequences exceeds the adapter's largest buffer")
            .at(info.line())
            .expected(format!("at most {} bytes", info.max_binding_bytes))
            .found(format!("{bytes} bytes for {} sequences", self.seqs))
            .help("run fewer sequences at once"))
    }
}

/// One sequence's part of a layer's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    len: usize,
    base: usize,
    cap: usize,
}

struct Layer {
    /// Taken out while a kernel writes it: in-place kernels need the only handle.
    kv: Option<Tensor<1, Int>>,
    regions: Vec<Region>,
    /// The attention each slot has had, f32 in words, while it is tracked: `kv_heads · cap` a sequence, from half its `base` on.
    sums: Option<Tensor<1, Int>>,
    /// The latest queries, `[seqs · width, heads D]`, while they are tracked.
    queries: Option<Tensor<2>>,
}

/// What is kept up to date beside keys and values, for policies that look back. Tokens of a probe leave no trace in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tracking {
    /// The attention each slot has had from all queries, per KV head.
    pub sums: bool,
    /// The latest [`OBSERVED`] queries.
    pub queries: bool,
}

/// The host's mirror of a sequence's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqMirror {
    /// Logical position of the next token to be forwarded.
    pub position: Position,
    /// Tokens sampled so far.
    pub step: u32,
    /// The position at the last gather: what was written since stands where it stood when it was written.
    pub position_at_last_gather: Position,
}

/// Lengths and position of a sequence before a probe, to go back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    seq: usize,
    lens: Vec<usize>,
    position: Position,
}

/// The slots a sequence keeps, ascending: `[layer][kv head]`, with one entry where all layers or heads agree.
pub type KeepSets<'a> = dyn Fn(usize, usize) -> &'a [Slot] + 'a;

/// What becomes of a sequence's region when the buffers are rebuilt.
#[derive(Clone, Copy)]
pub struct RegionUpdate<'k, 'a> {
    /// The sequence.
    pub seq: usize,
    /// The slots that stay.
    pub keep: &'k KeepSets<'a>,
    /// Slots to make room for behind them.
    pub room: usize,
}

/// The cache of B sequences and their state.
pub struct KvCache {
    shape: CacheShape,
    device: ComputeDevice,
    layers: Vec<Layer>,
    sequences: Vec<SeqMirror>,
    positions: Positions,
    tracking: Tracking,
    state: Option<Tensor<1, Int>>,
    /// A bit for each token that a sequence's prompt has or that it generated.
    seen: Option<Tensor<1, Int>>,
    samplers: Vec<Sampling>,
    /// The map as it is on the device: the sequences of the rows that are forwarded or sampled next.
    selected: Vec<usize>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: CacheShape, device: &ComputeDevice) -> Self {
        let words = shape.state_words();
        let regions = vec![Region { len: 0, base: 0, cap: 0 }; shape.seqs];
        let layer = || Layer {
            kv: Some(memory::empty_u32(&device.burn, 4)),
            regions: regions.clone(),
            sums: None,
            queries: None,
        };
        let mut cache = Self {
            shape,
            device: device.clone(),
            layers: (0..shape.layers).map(|_| layer()).collect(),
            sequences: vec![
                SeqMirror { position: Position(0), step: 0, position_at_last_gather: Position(0) };
                shape.seqs
            ],
            positions: Positions::Original,
            tracking: Tracking::default(),
            state: Some(kernels::u32_tensor(vec![0; words.next_multiple_of(4)], &device.burn)),
            seen: Some(kernels::u32_tensor(
                vec![0; (shape.seqs * shape.seen_words()).next_multiple_of(4)],
                &device.burn,
            )),
            samplers: vec![Sampling::GREEDY; shape.seqs],
            selected: vec![0; shape.seqs],
        };
        for seq in 0..shape.seqs {
            cache.write_header(seq, 0);
            cache.write(seq * state::SEQ + state::MISSED, Sampling::GREEDY.words(0).to_vec());
        }
        cache
    }

    /// Its sizes.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Cached slots of a sequence in a layer.
    pub fn len(&self, layer: usize, seq: usize) -> usize {
        self.layers[layer].regions[seq].len
    }

    /// Cached slots of a sequence in the layer that has most.
    pub fn longest(&self, seq: usize) -> usize {
        self.layers.iter().map(|l| l.regions[seq].len).max().unwrap_or(0)
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|l| l.regions.iter().all(|r| r.len == 0))
    }

    /// Slots a sequence's region in a layer has room for.
    pub fn capacity(&self, layer: usize, seq: usize) -> usize {
        self.layers[layer].regions[seq].cap
    }

    /// The mirror of a sequence's header.
    pub fn sequence(&self, seq: usize) -> SeqMirror {
        self.sequences[seq]
    }

    /// Bytes the cache's buffers ask for, all layers. What the device really holds is [`ComputeDevice::bytes`].
    pub fn bytes(&self) -> u64 {
        let slots = |l: &Layer| l.regions.iter().map(|r| r.cap).sum::<usize>();
        self.layers.iter().map(|l| (slots(l) * self.shape.slot_bytes()) as u64).sum()
    }

    /// Of them, those of a sequence.
    pub fn bytes_of(&self, seq: usize) -> u64 {
        self.layers.iter().map(|l| (l.regions[seq].cap * self.shape.slot_bytes()) as u64).sum()
    }

    /// Where kept keys stand.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// Sets the rules for all sequences while there is none: where kept keys stand. Nothing is tracked then.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when something is cached: it was written under the old rules.
    pub fn begin(&mut self, positions: Positions) -> Result<()> {
        if !self.is_empty() {
            return Err(Error::new(ErrorKind::Internal, "sequences side by side share where their keys stand")
                .expected(format!("an empty cache, or {} positions", self.positions))
                .found(format!("{positions} positions")));
        }
        (self.positions, self.tracking) = (positions, Tracking::default());
        for layer in &mut self.layers {
            (layer.sums, layer.queries) = (None, None);
        }
        Ok(())
    }

    /// Tracks this as well from now on, for a sequence before its first token (`query_cols`: the values of all query heads). It
    /// is tracked for all sequences, until [`begin`](Self::begin).
    pub fn track(&mut self, tracking: Tracking, query_cols: usize) {
        let rows = self.shape.seqs * OBSERVED;
        for layer in &mut self.layers {
            if tracking.sums && layer.sums.is_none() {
                let slots: usize = layer.regions.iter().map(|r| r.cap).sum();
                layer.sums = Some(memory::empty_u32(&self.device.burn, (slots * self.shape.kv_heads).max(4)));
            }
            if tracking.queries && layer.queries.is_none() {
                layer.queries = Some(memory::empty_f32(&self.device.burn, [rows, query_cols]));
            }
        }
        self.tracking.sums |= tracking.sums;
        self.tracking.queries |= tracking.queries;
    }

    /// What is tracked beside keys and values.
    pub fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// Adds a chunk's attention to the running sums of its slots.
    pub(crate) fn add_sums(
        &mut self,
        layer: usize,
        q: &Tensor<2>,
        lse: &Tensor<2>,
        rope: &Tensor<1>,
        spec: AttentionSumsSpec,
    ) {
        let sums = self.layers[layer].sums.take().expect("put back below");
        let sums = kernels::attention_sums(q, lse, self.layer(layer), self.state(), rope, sums, spec);
        self.layers[layer].sums = Some(sums);
    }

    /// Takes the queries of a chunk, or of a decode step, into the ring. The map names their sequences.
    pub(crate) fn store_queries(&mut self, layer: usize, q: &Tensor<2>, chunk: usize) {
        let [n, cols] = q.dims();
        let spec = QueryRingSpec { n, cols, chunk, row_seq_offset: self.map(), width: OBSERVED };
        let ring = self.layers[layer].queries.take().expect("put back below");
        self.layers[layer].queries = Some(kernels::store_queries(q, self.state(), ring, spec));
    }

    /// How many of the `most` latest queries of `seq` are there to look through. With compact positions those since the last
    /// gather, whose rotation is still theirs.
    pub fn observable(&self, seq: usize, most: usize) -> usize {
        let SeqMirror { position, position_at_last_gather, .. } = self.sequences[seq];
        let since = if self.positions == Positions::Compact { position_at_last_gather.0 } else { 0 };
        most.min(OBSERVED).min((position.0 - since) as usize)
    }

    /// The `n` latest queries of the one sequence that is selected, oldest first: `[n, heads D]`.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when no queries are tracked, or none was forwarded.
    pub(crate) fn latest_queries(&self, layer: usize, n: usize) -> Result<Tensor<2>> {
        let ring = self.layers[layer].queries.as_ref().filter(|_| n > 0);
        let ring = ring.ok_or_else(|| Error::new(ErrorKind::Internal, "no queries are tracked to look through"))?;
        let spec = QueryRingSpec { n, cols: ring.dims()[1], chunk: n, row_seq_offset: self.map(), width: OBSERVED };
        Ok(kernels::latest_queries(ring, self.state(), spec))
    }

    /// The running sums of `seq` in `layer`, f32 in words: `[kv_heads, capacity]`, of which the first `len` of each row count.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when they are not tracked.
    pub fn sums(&self, layer: usize, seq: usize) -> Result<Tensor<1, Int>> {
        let Layer { sums, regions, .. } = &self.layers[layer];
        let sums = sums.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "no sums of attention are tracked"))?;
        let (first, n) = (regions[seq].base / 2, self.shape.kv_heads * regions[seq].cap);
        Ok(memory::slice(sums, first, n))
    }

    /// Word of the state where `layer`'s table begins.
    pub fn table(&self, layer: usize) -> usize {
        self.shape.seqs * state::SEQ + layer * self.shape.seqs * state::ROW
    }

    /// Word of the state where the rings of sampled ids begin.
    fn rings(&self) -> usize {
        self.table(self.shape.layers)
    }

    /// Word of the state where the map begins.
    fn map(&self) -> usize {
        self.rings() + self.shape.seqs * RING
    }

    /// Makes `seqs` the sequences of the rows that are forwarded or sampled next, in this order. Returns the word of the state
    /// where they are listed.
    pub fn select(&mut self, seqs: &[usize]) -> usize {
        let map = self.map();
        if !self.selected.starts_with(seqs) {
            self.selected[..seqs.len()].copy_from_slice(seqs);
            self.write(map, seqs.iter().map(|s| *s as u32).collect());
        }
        map
    }

    /// The device's state, for kernels that read it.
    pub fn state(&self) -> &Tensor<1, Int> {
        self.state.as_ref().expect("put back by whoever took it")
    }

    /// Runs `write` with the only handle to a layer's buffer.
    pub(crate) fn with_layer<T>(
        &mut self,
        layer: usize,
        write: impl FnOnce(Tensor<1, Int>, &Tensor<1, Int>) -> (T, Tensor<1, Int>),
    ) -> T {
        let kv = self.layers[layer].kv.take().expect("put back below");
        let (result, kv) = write(kv, self.state.as_ref().expect("put back by whoever took it"));
        self.layers[layer].kv = Some(kv);
        result
    }

    /// A layer's buffer, for kernels that read it.
    pub fn layer(&self, layer: usize) -> &Tensor<1, Int> {
        self.layers[layer].kv.as_ref().expect("put back by whoever took it")
    }

    /// Makes room for `extra` more slots in every layer of `seqs`. A layer's buffer is rebuilt as a whole, so whoever is short
    /// makes all of several grow, to half a growth of free slots at least.
    ///
    /// # Errors
    /// When a layer's buffer would exceed what the device can bind.
    pub fn reserve(&mut self, seqs: &[usize], extra: usize) -> Result<()> {
        let fits = |l: &Layer| seqs.iter().all(|seq| l.regions[*seq].len + extra <= l.regions[*seq].cap);
        if self.layers.iter().all(fits) {
            return Ok(());
        }
        let room = if seqs.len() == 1 { extra } else { extra + self.shape.growth / 2 };
        let lens: Vec<Vec<usize>> = self.layers.iter().map(|l| l.regions.iter().map(|r| r.len).collect()).collect();
        let all: Vec<Slot> = (0..lens.iter().flatten().copied().max().unwrap_or(0) as u32).map(Slot).collect();
        let sets: Vec<Box<KeepSets<'_>>> = seqs.iter().map(|&seq| whole(&all, &lens, seq)).collect();
        let changes: Vec<RegionUpdate<'_, '_>> =
            seqs.iter().zip(&sets).map(|(seq, keep)| RegionUpdate { seq: *seq, keep: &**keep, room }).collect();
        self.rebuild(&changes)
    }

    /// Evicts every slot of `seq` that `keep` does not name: the pruning. Capacities follow the kept set plus `room`, and
    /// memory that is free then goes back to the driver.
    ///
    /// # Errors
    /// When a layer's buffer would exceed what the device can bind.
    pub fn keep(&mut self, seq: usize, keep: &KeepSets<'_>, room: usize) -> Result<()> {
        self.keep_each(&[RegionUpdate { seq, keep, room }])
    }

    /// As [`keep`](Self::keep), for several sequences at the cost of one.
    ///
    /// # Errors
    /// When a layer's buffer would exceed what the device can bind.
    pub fn keep_each(&mut self, changes: &[RegionUpdate<'_, '_>]) -> Result<()> {
        self.rebuild(changes)?;
        for change in changes {
            self.sequences[change.seq].position_at_last_gather = self.sequences[change.seq].position;
        }
        self.device.burn.memory_cleanup();
        Ok(())
    }

    fn rebuild(&mut self, changes: &[RegionUpdate<'_, '_>]) -> Result<()> {
        let shape = self.shape;
        // Fail before anything is changed.
        for layer in 0..shape.layers {
            let cap = |(seq, region): (usize, &Region)| match changes.iter().find(|c| c.seq == seq) {
                Some(c) => ((c.keep)(layer, 0).len() + c.room).next_multiple_of(shape.growth),
                None => region.cap,
            };
            let slots: usize = self.layers[layer].regions.iter().enumerate().map(cap).sum();
            let bytes = (slots * shape.slot_bytes()) as u64;
            if bytes > self.device.info.max_binding_bytes {
                return Err(Error::new(
                    ErrorKind::Device,
                    "the KV cache of a layer exceeds the adapter's largest buffer",
                )
                .at(self.device.info.line())
                .expected(format!("at most {} bytes", self.device.info.max_binding_bytes))
                .found(format!("{bytes} bytes for {slots} slots"))
                .help(
                    "shorten the prompt or --max-new-tokens, prune more (--budget tokens:N), use --kv f16, or run fewer \
                     sequences at once",
                ));
            }
        }
        for layer in 0..shape.layers {
            self.rebuild_layer(layer, changes);
        }
        self.write_tables();
        Ok(())
    }

    fn rebuild_layer(&mut self, layer: usize, changes: &[RegionUpdate<'_, '_>]) {
        let shape = self.shape;
        let planes = 2 * shape.kv_heads;
        let old = self.layers[layer].regions.clone();
        let (mut moves, mut flat, mut new, mut base) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (b, region) in old.iter().enumerate() {
            let (len, cap, first, stride) =
                if let Some(RegionUpdate { keep, room, .. }) = changes.iter().find(|c| c.seq == b) {
                    let first = flat.len();
                    let sets: Vec<&[Slot]> = (0..shape.kv_heads).map(|h| keep(layer, h)).collect();
                    let shared = sets.iter().all(|s| s.as_ptr() == sets[0].as_ptr() && s.len() == sets[0].len());
                    for set in &sets[..if shared { 1 } else { sets.len() }] {
                        debug_assert_eq!(set.len(), sets[0].len(), "the heads of a layer keep equally many");
                        flat.extend(set.iter().map(|s| s.0));
                    }
                    let kept = sets[0].len();
                    (kept, (kept + room).next_multiple_of(shape.growth), first, if shared { 0 } else { kept })
                } else {
                    // The other sequences move as they are.
                    let first = flat.len();
                    flat.extend(0..region.len as u32);
                    (region.len, region.cap, first, 0)
                };
            let entry: [usize; MOVE] = [region.base, region.cap, base, cap, len, first, stride, 0];
            moves.extend(entry.map(|v| v as u32));
            new.push(Region { len, base, cap });
            base += planes * cap;
        }
        flat.resize(flat.len().next_multiple_of(4).max(4), 0);
        let spec = GatherSpec {
            row_words: shape.row_words(),
            kv_heads: shape.kv_heads,
            planes,
            seqs: shape.seqs,
            most_kept: new.iter().map(|r| r.len).max().unwrap_or(0),
            out_words: (base * shape.row_words()).max(4),
        };
        let keep = kernels::u32_tensor(flat, &self.device.burn);
        if let Some(sums) = self.layers[layer].sums.take() {
            // One word a slot and KV head, in regions half as many rows long.
            let halved = |(i, v): (usize, &u32)| if matches!(i % MOVE, 0 | 2) { v / 2 } else { *v };
            let moves = kernels::u32_tensor(moves.iter().enumerate().map(halved).collect(), &self.device.burn);
            let spec = GatherSpec { row_words: 1, planes: shape.kv_heads, out_words: (base / 2).max(4), ..spec };
            let gathered = memory::dedicated(&self.device.burn, || kernels::cache_gather(sums, &keep, &moves, spec));
            self.layers[layer].sums = Some(gathered);
        }
        let kv = self.layers[layer].kv.take().expect("put back by whoever took it");
        let moves = kernels::u32_tensor(moves, &self.device.burn);
        let kv = memory::dedicated(&self.device.burn, || kernels::cache_gather(kv, &keep, &moves, spec));
        (self.layers[layer].kv, self.layers[layer].regions) = (Some(kv), new);
    }

    /// Writes every layer's lengths, bases and capacities to the device.
    fn write_tables(&mut self) {
        let entry = |r: &Region| [r.len as u32, r.base as u32, r.cap as u32, 0];
        let tables = self.layers.iter().flat_map(|l| l.regions.iter().flat_map(entry)).collect();
        self.write(self.table(0), tables);
    }

    /// Writes what changes of a sequence's header. `token` must be its pending token (any value where there is none).
    fn write_header(&mut self, seq: usize, token: u32) {
        let SeqMirror { position, step, .. } = self.sequences[seq];
        let mut header = vec![0; state::MISSED];
        header[state::TOKEN] = token;
        header[state::POSITION] = position.0;
        header[state::STEP] = step;
        self.write(seq * state::SEQ, header);
    }

    fn write(&mut self, at: usize, words: Vec<u32>) {
        let state = self.state.take().expect("put back below");
        self.state = Some(memory::write_u32(state, at, words));
    }

    /// After the host forwarded `n` tokens of `seq`: advances lengths and position, here and on the device. The pending token
    /// must be known (`token`), because it is written, too.
    pub fn advance(&mut self, seq: usize, n: usize, token: u32) {
        self.sequences[seq].position.0 += n as u32;
        for layer in &mut self.layers {
            layer.regions[seq].len += n;
        }
        self.write_header(seq, token);
        self.write_tables();
    }

    /// From now on `seq` is sampled as `sampling` says, with lots from `seed`, and has seen `prompt`.
    pub fn set_sampler(&mut self, seq: usize, sampling: &Sampling, seed: u64, prompt: &[u32]) {
        self.samplers[seq] = *sampling;
        self.write(seq * state::SEQ + state::MISSED, sampling.words(seed).to_vec());
        let mut seen = vec![0u32; self.shape.seen_words()];
        for id in prompt {
            seen[*id as usize / 32] |= 1 << (id % 32);
        }
        let at = seq * seen.len();
        let tensor = self.seen.take().expect("put back below");
        self.seen = Some(memory::write_u32(tensor, at, seen));
    }

    /// The largest share of the probability that `seq` asked for and that lay outside its candidates, from the words that
    /// [`read_state`](Self::read_state) gave.
    pub fn missed(&self, words: &[u32], seq: usize) -> f32 {
        f32::from_bits(words[seq * state::SEQ + state::MISSED])
    }

    /// Samples the next token of each of `seqs` from its row of `logits` `[seqs, vocab]`, on the device, which
    /// advances their lengths and positions by `advance`; so does the mirror.
    pub fn sample(&mut self, logits: &Tensor<2>, seqs: &[usize], advance: usize) {
        let shape = self.shape;
        let row_seq_offset = self.select(seqs);
        let (n, seen_words) = (seqs.len(), shape.seen_words());
        // The most likely token of each needs no longer lists.
        let k = if seqs.iter().all(|seq| self.samplers[*seq].is_greedy()) { 1 } else { top_k::MOST };
        let (state, seen) = (self.state.take().expect("put back below"), self.seen.take().expect("put back below"));
        let spec = TopKSpec { count: logits.dims()[1], n, k, merge: false, row_seq_offset, seen_words };
        let (mut candidates, sums) = kernels::top_k(logits, &state, &seen, spec);
        let (mut lists, chunks) = (spec.lists(), spec.lists());
        if let Some(merging) = spec.merging() {
            candidates = kernels::top_k_merge(&candidates, &state, &seen, merging);
            lists = 1;
        }
        let (layers, all_seqs, ring) = (shape.layers, shape.seqs, RING);
        let spec = SampleSpec { n, k, lists, chunks, row_seq_offset, layers, all_seqs, ring, advance, seen_words };
        let (state, seen) = kernels::sample(&candidates, &sums, state, seen, spec);
        (self.state, self.seen) = (Some(state), Some(seen));
        for &seq in seqs {
            self.sequences[seq].position.0 += advance as u32;
            self.sequences[seq].step += 1;
            for layer in &mut self.layers {
                layer.regions[seq].len += advance;
            }
        }
    }

    /// Starts reading the state: the copy is taken now, whatever is launched later. [`ids`](Self::ids) finds the ring in it.
    pub fn read_state(&self) -> Readback {
        readback::read_u32(&[self.state()])
    }

    /// The ids sampled at steps `from .. to` of `seq`, from the words that [`read_state`](Self::read_state) gave.
    ///
    /// # Errors
    /// When a step's logits were not finite.
    pub fn ids(&self, words: &[u32], seq: usize, from: u32, to: u32) -> Result<Vec<u32>> {
        self.raw_ids(words, seq, from, to).map(|id| self.checked_id(id)).collect()
    }

    /// As [`ids`](Self::ids), but a step whose logits were not finite gives [`state::BROKEN`]: for readers that look at
    /// some of the steps only.
    pub fn raw_ids<'w>(&self, words: &'w [u32], seq: usize, from: u32, to: u32) -> impl Iterator<Item = u32> + use<'w> {
        assert!(to - from <= RING as u32, "read too late: the ring has gone around");
        let ring = self.rings() + seq * RING;
        (from..to).map(move |step| words[ring + step as usize % RING])
    }

    /// `id`, unless it says that the logits were not finite.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] then.
    pub fn checked_id(&self, id: u32) -> Result<u32> {
        match id {
            state::BROKEN => Err(Error::new(ErrorKind::Device, "the logits are not finite")
                .at(self.device.info.line())
                .help("are the weights intact? `secateur conformance` checks the adapter's arithmetic")),
            id => Ok(id),
        }
    }

    /// What [`rollback`](Self::rollback) needs.
    pub fn checkpoint(&self, seq: usize) -> Checkpoint {
        let lens = self.layers.iter().map(|l| l.regions[seq].len).collect();
        Checkpoint { seq, lens, position: self.sequences[seq].position }
    }

    /// Forgets what was appended since `checkpoint`: lengths and position are as they were. Slots beyond a length are never
    /// read. `token` is the pending token, if there is one.
    pub fn rollback(&mut self, checkpoint: &Checkpoint, token: u32) {
        let seq = checkpoint.seq;
        for (layer, len) in self.layers.iter_mut().zip(&checkpoint.lens) {
            debug_assert!(layer.regions[seq].len >= *len, "rolled back to a longer cache");
            layer.regions[seq].len = *len;
        }
        self.sequences[seq].position = checkpoint.position;
        self.write_header(seq, token);
        self.write_tables();
    }

    /// Empties `seq` for a new prompt and gives its memory back.
    pub fn clear(&mut self, seq: usize) -> Result<()> {
        self.sequences[seq] = SeqMirror { position: Position(0), step: 0, position_at_last_gather: Position(0) };
        if self.layers.iter().any(|l| l.regions[seq].cap > 0) {
            self.keep(seq, &|_, _| &[], 0)?;
        }
        self.write_header(seq, 0);
        Ok(())
    }
}

/// All slots of `seq`, which has `lens[layer][seq]` of them.
fn whole<'a>(all: &'a [Slot], lens: &'a [Vec<usize>], seq: usize) -> Box<KeepSets<'a>> {
    Box::new(move |layer, _| &all[..lens[layer][seq]])
}
