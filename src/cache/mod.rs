//! The KV cache: keys and values of the sequences that run side by side.
//!
//! **Slot and position.** A [`Slot`] says where a token's key and value lie: a row index that changes at every
//! gather. A [`Position`] says when the token was written, and RoPE rotates by it. The two are equal before the first
//! eviction and differ afterwards. With [`Positions::Original`] kept keys keep the rotation that they were written
//! with.
//!
//! With [`Positions::Compact`] a key's position is its slot: a gather closes the gaps, and the next token follows the
//! last kept one. Such keys are stored as the projection made them and rotated when they are read, from the table
//! that was computed in f64. They are therefore rounded once, when they are written, however often they move, and the
//! gather only moves words. (Rotating stored f16 keys again at each gather would round them each time: 80 times in
//! 16,000 tokens.)
//!
//! **Layout.** One buffer of u32 words for each layer. Sequence `b` owns a region of `2 · kv_heads · capacity` rows,
//! from row `base` on: first the keys of each KV head, `capacity` rows a head, then the values in the same order. A
//! row is one head's vector: `head_dim` f32 words, or half as many words of two packed f16. Layers have lengths and
//! capacities of their own, so that they may keep different slots.
//!
//! **Memory.** The buffers are dedicated allocations of exactly the capacity. They grow in chunks, and they really
//! shrink when slots are evicted. Growing and pruning are the same kernel, `cache_gather`, which rebuilds a layer's
//! buffer for all sequences. Sequences that decode side by side therefore grow together, and those that are pruned at
//! the same time are gathered together.
//!
//! `state.rs` holds the lengths, positions and sampled ids on the device; `tracking.rs` holds what some policies need
//! besides keys and values.
mod shape;
mod state;
mod tracking;

use burn::tensor::{Int, Tensor};

use crate::device::ComputeDevice;
use crate::kernels::readback::Readback;
use crate::kernels::state::SamplerHeader;
use crate::kernels::{self, GatherSpec, InPlace, cache_gather::MOVE, memory};
use crate::policy::{KeepPlan, Positions};
use crate::{Error, ErrorKind, Position, Result, Slot};

pub use shape::CacheShape;
use state::DeviceState;
pub use state::SeqMirror;
use tracking::Tracked;
pub use tracking::{OBSERVED, Tracking};

/// Sampled ids that the device keeps for each sequence: the host must read an id before this many later ones are
/// sampled.
pub const RING: usize = 64;

/// One sequence's part of a layer's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    len: usize,
    base: usize,
    cap: usize,
}

struct Layer {
    kv: InPlace<Tensor<1, Int>>,
    regions: Vec<Region>,
    tracked: Tracked,
}

/// The lengths and the position of a sequence, which a rollback restores after a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    seq: usize,
    lens: Vec<usize>,
    position: Position,
}

/// The slots that a sequence keeps.
pub trait KeepSets {
    /// The kept slots of a KV head in a layer, ascending. The heads of a layer keep equally many; heads that share
    /// their slots return the same slice.
    fn slots(&self, layer: usize, head: usize) -> &[Slot];
}

impl KeepSets for KeepPlan {
    fn slots(&self, layer: usize, head: usize) -> &[Slot] {
        self.slots(layer, head)
    }
}

/// The same slots in all layers and heads.
impl KeepSets for Vec<Slot> {
    fn slots(&self, _: usize, _: usize) -> &[Slot] {
        self
    }
}

/// Keeps the first slots of each layer, as many as `lens` says. With the lengths of a sequence, these are all its
/// slots.
struct KeepFirst<'a> {
    /// Slots from 0 on, at least as many as the longest layer has.
    ascending: &'a [Slot],
    /// Slots to keep in each layer.
    lens: Vec<usize>,
}

impl KeepSets for KeepFirst<'_> {
    fn slots(&self, layer: usize, _: usize) -> &[Slot] {
        &self.ascending[..self.lens[layer]]
    }
}

/// How a sequence's region changes when the buffers are rebuilt.
#[derive(Clone, Copy)]
pub struct RegionUpdate<'a> {
    /// Number of the sequence whose region changes.
    pub seq: usize,
    /// The slots that stay, for each layer and KV head.
    pub keep: &'a dyn KeepSets,
    /// Number of free slots behind the kept ones.
    pub room: usize,
    /// The sequence whose slots are kept: `seq` itself, except where the beginning of another sequence is copied.
    from: usize,
}

impl<'a> RegionUpdate<'a> {
    /// The sequence `seq` keeps its own slots that `keep` names, and gets `room` free slots behind them.
    pub fn new(seq: usize, keep: &'a dyn KeepSets, room: usize) -> Self {
        Self { seq, keep, room, from: seq }
    }
}

/// The cache of several sequences and their state on the device.
pub struct KvCache {
    shape: CacheShape,
    device: ComputeDevice,
    layers: Vec<Layer>,
    positions: Positions,
    tracking: Tracking,
    state: DeviceState,
    /// How often a buffer was replaced.
    generation: u64,
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: CacheShape, device: &ComputeDevice) -> Self {
        let layer = || Layer {
            kv: InPlace::new(memory::empty_u32(&device.burn, 4)),
            regions: vec![Region { len: 0, base: 0, cap: 0 }; shape.seqs],
            tracked: Tracked::default(),
        };
        Self {
            shape,
            device: device.clone(),
            layers: (0..shape.layers).map(|_| layer()).collect(),
            positions: Positions::Original,
            tracking: Tracking::default(),
            state: DeviceState::new(&shape, device),
            generation: 0,
        }
    }

    /// The sizes that the cache was made with.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Cached slots of a sequence in a layer.
    pub fn len(&self, layer: usize, seq: usize) -> usize {
        self.layers[layer].regions[seq].len
    }

    /// Cached slots of a sequence in each layer.
    pub fn lens(&self, seq: usize) -> Vec<usize> {
        self.layers.iter().map(|l| l.regions[seq].len).collect()
    }

    /// Cached slots of a sequence in the layer that has the most.
    pub fn longest(&self, seq: usize) -> usize {
        self.layers.iter().map(|l| l.regions[seq].len).max().unwrap_or(0)
    }

    /// The most tokens by which the device may be further than what the host knows of `seq`: see
    /// [`SeqMirror::ahead`].
    pub fn ahead(&self, seq: usize) -> usize {
        self.state.mirrors[seq].ahead
    }

    /// Whether the host does not know how many slots some sequence has. Only steps that need no more room, and reads,
    /// may then be launched: whatever writes lengths would write old ones.
    pub(crate) fn is_ahead(&self) -> bool {
        self.state.mirrors.iter().any(|mirror| mirror.ahead > 0)
    }

    /// Whether no sequence has a cached slot.
    pub fn is_empty(&self) -> bool {
        self.layers.iter().all(|l| l.regions.iter().all(|r| r.len == 0))
    }

    /// Slots that a sequence's region in a layer has room for.
    pub fn capacity(&self, layer: usize, seq: usize) -> usize {
        self.layers[layer].regions[seq].cap
    }

    /// The size of the cache's buffers in bytes, all layers together. [`ComputeDevice::bytes`] gives what the device
    /// really holds.
    pub fn bytes(&self) -> u64 {
        (0..self.shape.seqs).map(|seq| self.bytes_of(seq)).sum()
    }

    /// The share of [`bytes`](Self::bytes) that belongs to one sequence.
    pub fn bytes_of(&self, seq: usize) -> u64 {
        self.layers.iter().map(|l| (l.regions[seq].cap * self.shape.slot_bytes()) as u64).sum()
    }

    /// How the positions of kept keys are counted.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// Sets how positions are counted for all sequences, and stops tracking. Only possible while nothing is cached.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when something is cached: it was written with the old positions.
    pub fn begin(&mut self, positions: Positions) -> Result<()> {
        if !self.is_empty() {
            return Err(Error::new(
                ErrorKind::Internal,
                "all sequences of a cache must count positions in the same way",
            )
            .expected(format!("an empty cache, or {} positions", self.positions))
            .found(format!("{positions} positions")));
        }
        (self.positions, self.tracking) = (positions, Tracking::default());
        for layer in &mut self.layers {
            layer.tracked = Tracked::default();
        }
        Ok(())
    }

    /// Stops tracking. Cached keys and values stay, but what was tracked of them is dropped.
    pub(crate) fn stop_tracking(&mut self) {
        if self.tracking != Tracking::default() {
            self.tracking = Tracking::default();
            self.layers.iter_mut().for_each(|layer| layer.tracked = Tracked::default());
        }
    }

    /// A layer's buffer, for kernels that read it.
    pub fn layer(&self, layer: usize) -> &Tensor<1, Int> {
        &self.layers[layer].kv
    }

    /// Runs `write` with the only handle to a layer's buffer and with the state. `write` returns the buffer beside
    /// its result.
    pub(crate) fn write_layer<R>(
        &mut self,
        layer: usize,
        write: impl FnOnce(Tensor<1, Int>, &Tensor<1, Int>) -> (R, Tensor<1, Int>),
    ) -> R {
        let state = self.state.tensor();
        self.layers[layer].kv.update(|kv| write(kv, state))
    }

    /// Whether every layer of `seqs` has room for `extra` more slots, so that [`reserve`](Self::reserve) changes
    /// nothing.
    pub(crate) fn has_room(&self, seqs: &[usize], extra: usize) -> bool {
        let fits =
            |l: &Layer| seqs.iter().all(|seq| l.regions[*seq].len + self.ahead(*seq) + extra <= l.regions[*seq].cap);
        self.layers.iter().all(fits)
    }

    /// A number that changes whenever a buffer of the cache is replaced by another one.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes room for `extra` more slots in every layer of `seqs`. A layer's buffer is rebuilt as a whole. So if one
    /// of several sequences is short of room, all of them grow, by `extra` and half a growth step of free slots.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when a layer's buffer would exceed what the device can bind. Then nothing is changed.
    pub fn reserve(&mut self, seqs: &[usize], extra: usize) -> Result<()> {
        if self.has_room(seqs, extra) {
            return Ok(());
        }
        let room = if seqs.len() == 1 { extra } else { extra + self.shape.growth / 2 };
        let longest = seqs.iter().map(|seq| self.longest(*seq)).max().unwrap_or(0);
        let ascending: Vec<Slot> = (0..longest as u32).map(Slot).collect();
        let all: Vec<KeepFirst<'_>> =
            seqs.iter().map(|seq| KeepFirst { ascending: &ascending, lens: self.lens(*seq) }).collect();
        let updates: Vec<RegionUpdate<'_>> =
            seqs.iter().zip(&all).map(|(seq, keep)| RegionUpdate::new(*seq, keep, room)).collect();
        self.rebuild(&updates)
    }

    /// Evicts every slot of `seq` that `keep` does not name. Capacities become the kept slots plus `room`, rounded
    /// up, and freed memory goes back to the driver.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when a layer's buffer would exceed what the device can bind. Then nothing is changed.
    pub fn keep(&mut self, seq: usize, keep: &dyn KeepSets, room: usize) -> Result<()> {
        self.keep_each(&[RegionUpdate::new(seq, keep, room)])
    }

    /// [`keep`](Self::keep) for several sequences, at the cost of one.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when a layer's buffer would exceed what the device can bind. Then nothing is changed.
    pub fn keep_each(&mut self, updates: &[RegionUpdate<'_>]) -> Result<()> {
        self.rebuild(updates)?;
        for update in updates {
            let mirror = &mut self.state.mirrors[update.seq];
            mirror.position_at_last_gather = mirror.position;
        }
        self.device.burn.memory_cleanup();
        Ok(())
    }

    /// Replaces what `seq` has by the first `tokens` slots of `from`, which may be `seq` itself, with room for `room`
    /// more. Both sequences begin with the same tokens, none of which was evicted. So these slots hold those tokens,
    /// and the position of each token is its slot.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when a layer's buffer would exceed what the device can bind. Then nothing is changed.
    pub(crate) fn copy_beginning(&mut self, seq: usize, from: usize, tokens: usize, room: usize) -> Result<()> {
        debug_assert!(self.lens(from).iter().all(|len| *len >= tokens), "the other sequence is shorter");
        let keep: Vec<Slot> = (0..tokens as u32).map(Slot).collect();
        self.state.mirrors[seq].ahead = 0;
        self.rebuild(&[RegionUpdate { seq, keep: &keep, room, from }])?;
        self.state.mirrors[seq] = SeqMirror { position: Position(tokens as u32), ..SeqMirror::EMPTY };
        self.state.write_header(seq, 0);
        Ok(())
    }

    fn rebuild(&mut self, updates: &[RegionUpdate<'_>]) -> Result<()> {
        for layer in 0..self.shape.layers {
            self.check_rebuild(layer, updates)?;
        }
        for layer in 0..self.shape.layers {
            self.rebuild_layer(layer, updates);
        }
        self.write_tables();
        Ok(())
    }

    /// Whether the device can bind a layer's buffer as large as these updates make it.
    fn check_rebuild(&self, layer: usize, updates: &[RegionUpdate<'_>]) -> Result<()> {
        let capacity = |(seq, region): (usize, &Region)| match updates.iter().find(|u| u.seq == seq) {
            Some(update) => self.capacity_for(update.keep.slots(layer, 0).len() + update.room),
            None => region.cap,
        };
        let slots: usize = self.layers[layer].regions.iter().enumerate().map(capacity).sum();
        let (bytes, most) = ((slots * self.shape.slot_bytes()) as u64, self.device.info.max_binding_bytes);
        if bytes <= most {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Device, "the KV cache of a layer exceeds the adapter's largest buffer")
            .at(self.device.info.line())
            .expected(format!("at most {most} bytes"))
            .found(format!("{bytes} bytes for {slots} slots"))
            .help(
                "shorten the prompt, lower `max_new_tokens`, prune more (`budget` tokens:N), use `kv` f16, or run fewer \
                 `sequences`",
            ))
    }

    fn capacity_for(&self, slots: usize) -> usize {
        slots.next_multiple_of(self.shape.growth)
    }

    fn rebuild_layer(&mut self, layer: usize, updates: &[RegionUpdate<'_>]) {
        self.generation += 1;
        let shape = self.shape;
        let planes = 2 * shape.kv_heads;
        let (mut moves, mut kept_slots, mut regions, mut base) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (seq, region) in self.layers[layer].regions.iter().enumerate() {
            let first = kept_slots.len();
            // `stride` is the distance between the kept slots of two heads in the list. It is 0 if the heads share
            // their slots.
            let (source, len, cap, stride) = match updates.iter().find(|u| u.seq == seq) {
                Some(RegionUpdate { keep, room, from, .. }) => {
                    let sets: Vec<&[Slot]> = (0..shape.kv_heads).map(|head| keep.slots(layer, head)).collect();
                    let shared = sets.iter().all(|s| s.as_ptr() == sets[0].as_ptr() && s.len() == sets[0].len());
                    for set in &sets[..if shared { 1 } else { sets.len() }] {
                        debug_assert_eq!(set.len(), sets[0].len(), "the heads of a layer keep equally many");
                        kept_slots.extend(set.iter().map(|s| s.0));
                    }
                    let kept = sets[0].len();
                    let stride = if shared { 0 } else { kept };
                    (&self.layers[layer].regions[*from], kept, self.capacity_for(kept + room), stride)
                }
                // Sequences without an update are moved unchanged.
                None => {
                    kept_slots.extend(0..region.len as u32);
                    (region, region.len, region.cap, 0)
                }
            };
            let entry: [usize; MOVE] = [source.base, source.cap, base, cap, len, first, stride, 0];
            moves.extend(entry.map(|v| v as u32));
            regions.push(Region { len, base, cap });
            base += planes * cap;
        }
        kept_slots.resize(kept_slots.len().next_multiple_of(4).max(4), 0);
        let spec = GatherSpec {
            row_words: shape.row_words(),
            kv_heads: shape.kv_heads,
            planes,
            seqs: shape.seqs,
            most_kept: regions.iter().map(|r| r.len).max().unwrap_or(0),
            out_words: (base * shape.row_words()).max(4),
        };
        let keep = kernels::u32_tensor(kept_slots, &self.device.burn);
        let layer = &mut self.layers[layer];
        layer.tracked.gather(&self.device.burn, &keep, &moves, spec, shape.kv_heads, base / 2);
        let moves = kernels::u32_tensor(moves, &self.device.burn);
        let device = &self.device.burn;
        layer.kv.update(|kv| ((), memory::dedicated(device, || kernels::cache_gather(kv, &keep, &moves, spec))));
        layer.regions = regions;
    }

    /// Advances the lengths and the position of `seq`, here and on the device, after `n` of its tokens were
    /// forwarded. Also writes `token`, which is the pending token from now on.
    pub fn advance(&mut self, seq: usize, n: usize, token: u32) {
        self.state.mirrors[seq].position.0 += n as u32;
        for layer in &mut self.layers {
            layer.regions[seq].len += n;
        }
        self.state.write_header(seq, token);
        self.write_tables();
    }

    /// The lengths and the position that [`rollback`](Self::rollback) restores.
    pub fn checkpoint(&self, seq: usize) -> Checkpoint {
        Checkpoint { seq, lens: self.lens(seq), position: self.state.mirrors[seq].position }
    }

    /// Removes what was appended since `checkpoint`, by restoring the lengths and the position. Slots beyond a length
    /// are never read. `token` is the pending token, or any value where there is none.
    pub fn rollback(&mut self, checkpoint: &Checkpoint, token: u32) {
        let seq = checkpoint.seq;
        for (layer, len) in self.layers.iter_mut().zip(&checkpoint.lens) {
            debug_assert!(layer.regions[seq].len >= *len, "rolled back to a longer cache");
            layer.regions[seq].len = *len;
        }
        self.state.mirrors[seq].position = checkpoint.position;
        self.state.write_header(seq, token);
        self.write_tables();
    }

    /// Empties `seq` for a new prompt and gives its memory back.
    ///
    /// # Errors
    /// Those of [`keep`](Self::keep). They are not expected, since the buffers become smaller.
    pub fn clear(&mut self, seq: usize) -> Result<()> {
        self.state.mirrors[seq] = SeqMirror::EMPTY;
        if self.layers.iter().any(|l| l.regions[seq].cap > 0) {
            self.keep(seq, &Vec::new(), 0)?;
        }
        self.state.write_header(seq, 0);
        Ok(())
    }

    fn write_tables(&mut self) {
        assert!(!self.is_ahead(), "lengths were written that the host does not know");
        self.state.write_tables(self.layers.iter().flat_map(|l| &l.regions));
    }
}

/// The state on the device.
impl KvCache {
    /// The state tensor, for kernels that read it.
    pub fn state(&self) -> &Tensor<1, Int> {
        self.state.tensor()
    }

    /// Offset of `layer`'s table in the state, in words.
    pub fn table_offset(&self, layer: usize) -> usize {
        self.state.table_offset(layer)
    }

    /// Makes `seqs` the sequences of the next step's rows, in this order. Returns the offset of the row map in the
    /// state, in words.
    pub fn select(&mut self, seqs: &[usize]) -> usize {
        self.state.select(seqs)
    }

    /// Writes the list of the sequences of the rows of a step with `chunk` rows of each of `seqs`. Returns the offset
    /// of the list in the state, in words.
    pub(crate) fn select_rows(&mut self, seqs: &[usize], chunk: usize) -> usize {
        self.state.select_rows(seqs, chunk)
    }

    /// Offset of the tokens of steps with drafts in the state, in words: [`DRAFTED`](kernels::state::DRAFTED) for each
    /// sequence.
    pub fn drafts_offset(&self) -> usize {
        self.state.drafts_offset()
    }

    /// Offset of the ring of `seq` in the state, in words.
    pub(crate) fn ring_offset(&self, seq: usize) -> usize {
        self.state.ring_offset(seq)
    }

    /// Sets the number of sampled tokens at which steps with drafts of `seq` stop.
    pub(crate) fn limit(&mut self, seq: usize, limit: usize) {
        self.state.write_limit(seq, u32::try_from(limit).unwrap_or(u32::MAX));
    }

    /// Notes a step with drafts: each of `seqs` may have up to `chunk` more tokens.
    pub(crate) fn drafted(&mut self, seqs: &[usize], chunk: usize) {
        seqs.iter().for_each(|seq| self.state.mirrors[*seq].ahead += chunk);
    }

    /// Drops what is not known of the lengths of all sequences.
    pub(crate) fn forget_ahead(&mut self) {
        self.state.mirrors.iter_mut().for_each(|mirror| mirror.ahead = 0);
    }

    /// Takes the lengths and the position of `seq` from a copy of the state. The device may have sampled up to `ahead`
    /// tokens since it was taken.
    pub(crate) fn take_in_copy(&mut self, copy: &[u32], seq: usize, ahead: usize) {
        let sampled = self.state.take_in_copy(copy, seq, ahead);
        self.layers.iter_mut().for_each(|layer| layer.regions[seq].len += sampled);
    }

    /// The mirror of a sequence's header.
    pub fn sequence(&self, seq: usize) -> SeqMirror {
        self.state.mirrors[seq]
    }

    /// Writes the words of a sequence's header that configure the sampler.
    pub(crate) fn write_sampler(&mut self, seq: usize, settings: SamplerHeader) {
        self.state.write_sampler(seq, settings);
    }

    /// Runs the `sample` kernel with the only handle to the state. The mirror is updated only by
    /// [`sampled`](Self::sampled).
    pub(crate) fn write_sampled(&mut self, sample: impl FnOnce(Tensor<1, Int>) -> Tensor<1, Int>) {
        self.state.tensor_mut().update(|state| ((), sample(state)));
    }

    /// Updates the mirror as the `sample` kernel updates the state: each of `seqs` has one more token, and its
    /// lengths and its position have grown by `advance`.
    pub(crate) fn sampled(&mut self, seqs: &[usize], advance: usize) {
        self.state.mirror_sample(seqs, advance);
        for layer in &mut self.layers {
            seqs.iter().for_each(|seq| layer.regions[*seq].len += advance);
        }
    }

    /// Starts reading the state. The copy is taken now: it does not contain what is launched later.
    /// [`ids`](Self::ids) finds the sampled ids in the copy.
    pub fn read_state(&self) -> Readback {
        self.state.read()
    }

    /// The ids that `seq` sampled at steps `from .. to`, from a copy of the state ([`read_state`](Self::read_state)).
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the logits of one of these steps were not finite.
    ///
    /// # Panics
    /// When more than [`RING`] steps are asked for.
    pub fn ids(&self, copy: &[u32], seq: usize, from: u32, to: u32) -> Result<Vec<u32>> {
        self.raw_ids(copy, seq, from, to).map(|id| self.checked_id(id)).collect()
    }

    /// The number of tokens that `seq` had sampled when a copy of the state was taken.
    pub(crate) fn steps_in(copy: &[u32], seq: usize) -> usize {
        copy[seq * kernels::state::SEQ + kernels::state::STEP] as usize
    }

    /// The same ids as [`ids`](Self::ids), with [`BROKEN`](kernels::state::BROKEN) for a step whose logits were not
    /// finite, for callers that use only some of the steps.
    pub fn raw_ids<'w>(&self, copy: &'w [u32], seq: usize, from: u32, to: u32) -> impl Iterator<Item = u32> + use<'w> {
        self.state.ring_ids(copy, seq, from, to)
    }

    /// Returns `id`, unless it is [`BROKEN`](kernels::state::BROKEN), the mark of logits that were not finite.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] for that mark.
    pub fn checked_id(&self, id: u32) -> Result<u32> {
        match id {
            kernels::state::BROKEN => Err(Error::new(ErrorKind::Device, "the logits are not finite")
                .at(self.device.info.line())
                .help("are the weights intact? `secateur conformance` checks the adapter's arithmetic")),
            id => Ok(id),
        }
    }
}
