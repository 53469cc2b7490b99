//! The state of all sequences on the device, and the host's mirror of it.
//!
//! One tensor of u32 words, which kernels read and `sample` advances ([`state`] has the offsets inside an entry):
//!
//! ```text
//! headers   SEQ words a sequence: pending token, position, step, settings of the sampler
//! tables    for each layer ROW words a sequence: length, base and capacity of its region
//! rings     the latest RING sampled ids of each sequence
//! row map   the sequence that each row of a step belongs to; with drafts, the sequence of each of its groups of rows
//! rows      with drafts, the sequence of each row
//! drafts    DRAFTED words a sequence: the tokens of its next step with drafts
//! ```
//!
//! The host knows lengths and positions without reading them back, because every step advances them by a known
//! number. Only the sampled ids have to be read, and the rings let the host read them several steps late. The row map
//! lets any of the sequences be forwarded together, in any order.
//!
//! How far a step with drafts advances is known only on the device. The mirror then has the numbers that were read
//! last, and [`SeqMirror::ahead`] says by how much the device's may exceed them.
use burn::tensor::{Int, Tensor};

use super::{CacheShape, RING, Region};
use crate::Position;
use crate::device::ComputeDevice;
use crate::kernels::readback::{self, Readback};
use crate::kernels::{self, InPlace, MOST_TOGETHER, memory, state};

/// The host's mirror of a sequence's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqMirror {
    /// Logical position of the next token to be forwarded.
    pub position: Position,
    /// Tokens sampled so far.
    pub step: u32,
    /// The position at the last gather. With compact positions, keys written since then are still where they were
    /// written.
    pub position_at_last_gather: Position,
    /// The most tokens by which the device may be further than this mirror: those of steps with drafts that have not
    /// been read.
    pub ahead: usize,
}

impl SeqMirror {
    /// A sequence that has forwarded nothing.
    pub(super) const EMPTY: Self =
        Self { position: Position(0), step: 0, position_at_last_gather: Position(0), ahead: 0 };
}

/// The state tensor, and the host's mirror of its contents.
pub(super) struct DeviceState {
    layers: usize,
    tensor: InPlace<Tensor<1, Int>>,
    /// One mirror for each sequence, by its number.
    pub mirrors: Vec<SeqMirror>,
    /// The row map that was written to the device last.
    selected: Vec<usize>,
    /// The list of the rows' sequences that was written last, for a step with drafts.
    selected_rows: Vec<usize>,
    /// The limits of steps with drafts that were written last.
    limits: Vec<u32>,
}

impl DeviceState {
    /// A state of zeros. The headers' sampler settings are written by the sampler.
    pub fn new(shape: &CacheShape, device: &ComputeDevice) -> Self {
        let words = shape.state_words().next_multiple_of(4);
        Self {
            layers: shape.layers,
            tensor: InPlace::new(kernels::u32_tensor(vec![0; words], &device.burn)),
            mirrors: vec![SeqMirror::EMPTY; shape.seqs],
            selected: vec![0; shape.seqs],
            selected_rows: vec![0; MOST_TOGETHER],
            limits: vec![0; shape.seqs],
        }
    }

    /// The state tensor, for kernels that read it.
    pub fn tensor(&self) -> &Tensor<1, Int> {
        &self.tensor
    }

    /// The state tensor, for the kernel that writes it.
    pub fn tensor_mut(&mut self) -> &mut InPlace<Tensor<1, Int>> {
        &mut self.tensor
    }

    fn seqs(&self) -> usize {
        self.mirrors.len()
    }

    /// Offset of `layer`'s table in the state, in words.
    pub fn table_offset(&self, layer: usize) -> usize {
        self.seqs() * state::SEQ + layer * self.seqs() * state::ROW
    }

    /// Offset of the ring of `seq` in the state, in words.
    pub fn ring_offset(&self, seq: usize) -> usize {
        self.table_offset(self.layers) + seq * RING
    }

    /// Offset of the row map in the state, in words.
    pub fn row_map_offset(&self) -> usize {
        self.ring_offset(self.seqs())
    }

    /// Offset of the list of the sequences of a step's rows with drafts, in words.
    fn rows_offset(&self) -> usize {
        self.row_map_offset() + self.seqs()
    }

    /// Offset of the tokens of steps with drafts in the state, in words.
    pub fn drafts_offset(&self) -> usize {
        self.rows_offset() + MOST_TOGETHER
    }

    /// Writes the sequence of each row of a step with `chunk` rows of each of `seqs`. Returns the offset of the list,
    /// in words.
    pub fn select_rows(&mut self, seqs: &[usize], chunk: usize) -> usize {
        if chunk == 1 {
            return self.select(seqs);
        }
        let offset = self.rows_offset();
        let rows: Vec<usize> = seqs.iter().flat_map(|seq| std::iter::repeat_n(*seq, chunk)).collect();
        if renewed(&mut self.selected_rows, &rows) {
            self.write_list(offset, &rows);
        }
        offset
    }

    /// Writes the number of sampled tokens at which steps with drafts of `seq` stop.
    pub fn write_limit(&mut self, seq: usize, limit: u32) {
        if self.limits[seq] != limit {
            self.limits[seq] = limit;
            self.write(seq * state::SEQ + state::LIMIT, vec![limit]);
        }
    }

    /// Makes `seqs` the sequences of the next step's rows, in this order. Returns the offset of the row map, in
    /// words.
    pub fn select(&mut self, seqs: &[usize]) -> usize {
        let offset = self.row_map_offset();
        if renewed(&mut self.selected, seqs) {
            self.write_list(offset, seqs);
        }
        offset
    }

    /// Writes lengths, bases and capacities of all regions: `regions` lists them layer by layer, sequence by
    /// sequence.
    pub fn write_tables<'r>(&mut self, regions: impl Iterator<Item = &'r Region>) {
        let tables = regions.flat_map(|r| [r.len as u32, r.base as u32, r.cap as u32, 0]).collect();
        self.write(self.table_offset(0), tables);
    }

    /// Writes the part of a header that changes from step to step. `token` is the pending token, or any value where
    /// there is none.
    pub fn write_header(&mut self, seq: usize, token: u32) {
        let SeqMirror { position, step, .. } = self.mirrors[seq];
        let mut header = vec![0; state::MISSED];
        header[state::TOKEN] = token;
        header[state::POSITION] = position.0;
        header[state::STEP] = step;
        self.write(seq * state::SEQ, header);
    }

    /// Writes the part of a header that configures the sampler.
    pub fn write_sampler(&mut self, seq: usize, settings: state::SamplerHeader) {
        self.limits[seq] = 0;
        self.write(seq * state::SEQ + state::MISSED, settings.words().to_vec());
    }

    fn write_list(&mut self, offset: usize, seqs: &[usize]) {
        self.write(offset, seqs.iter().map(|seq| *seq as u32).collect());
    }

    fn write(&mut self, offset: usize, words: Vec<u32>) {
        self.tensor.update(|tensor| ((), memory::write_u32(tensor, offset, words)));
    }

    /// Updates the mirror as the `sample` kernel updates the state: each of `seqs` has sampled one more token and
    /// moved by `advance` positions.
    pub fn mirror_sample(&mut self, seqs: &[usize], advance: usize) {
        for &seq in seqs {
            self.mirrors[seq].position.0 += advance as u32;
            self.mirrors[seq].step += 1;
        }
    }

    /// Sets the mirror of `seq` to the numbers in a copy of the state, except the lengths. The device may have sampled
    /// up to `ahead` tokens since. Returns the number of tokens that were sampled since the last copy.
    pub fn take_in_copy(&mut self, copy: &[u32], seq: usize, ahead: usize) -> usize {
        let mirror = &mut self.mirrors[seq];
        let sampled = copy[seq * state::SEQ + state::STEP] - mirror.step;
        mirror.step += sampled;
        mirror.position.0 += sampled;
        mirror.ahead = ahead;
        sampled as usize
    }

    /// Starts reading the state. The copy is taken now; it does not contain what is launched later.
    pub fn read(&self) -> Readback {
        readback::read_u32(&[&*self.tensor])
    }

    /// The ids that `seq` sampled at steps `from .. to`, from a copy of the state.
    ///
    /// # Panics
    /// When the ring no longer holds all of them: more than [`RING`] steps.
    pub fn ring_ids<'w>(&self, copy: &'w [u32], seq: usize, from: u32, to: u32) -> impl Iterator<Item = u32> + use<'w> {
        assert!(to - from <= RING as u32, "read too late: the ring of sampled ids has wrapped around");
        let ring = self.ring_offset(seq);
        (from..to).map(move |step| copy[ring + step as usize % RING])
    }
}

/// Makes `list` the beginning of `written`, which mirrors a list on the device. Returns whether that changed it.
fn renewed(written: &mut [usize], list: &[usize]) -> bool {
    let changed = !written.starts_with(list);
    if changed {
        written[..list.len()].copy_from_slice(list);
    }
    changed
}
