//! The rotated queries of the latest tokens, kept on the device for readouts over an observation window.
//!
//! Contract: the ring is `[seqs, width, heads D]`; the query of the token at position `p` of sequence `b` is in row
//! `p % width` of the sequence's part. Storing takes row `i` of `q` `[n, heads D]`: token `i % chunk` of the sequence
//! that `state[row_seq_offset + i / chunk]` names, at the sequence's position plus `i % chunk`. Of a chunk longer
//! than the ring, the latest `width` rows are stored. Loading gives the `n ≤ width` latest queries of the sequence
//! that `state[row_seq_offset]` names, oldest first, `[n, heads D]`; the position in the state is then that of the
//! next token.
//!
//! Bound: exact.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_words, noise, poison_floats};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::empty;
use super::state;
use super::twin::{floats, slice, slice_mut};
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Parameters of [`store_queries`] and [`latest_queries`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryRingSpec {
    /// Rows that are stored, all sequences together, or loaded.
    pub n: usize,
    /// Values of a row, those of all query heads: a multiple of 8.
    pub cols: usize,
    /// Rows of each sequence.
    pub chunk: usize,
    /// Offset in the state, in words, of the list of the rows' sequences.
    pub row_seq_offset: usize,
    /// Rows of a sequence's part of the ring.
    pub width: usize,
}

/// Stores the queries of a chunk `[n, cols]` in the ring `[seqs width, cols]`, in place.
pub fn store_queries(q: &Tensor<2>, state: &Tensor<1, Int>, ring: Tensor<2>, spec: QueryRingSpec) -> Tensor<2> {
    let [ring] = run(&spec, [read(q), read(state), ring.into_dispatch()]);
    Tensor::from_dispatch(ring)
}

/// The latest queries of a sequence, from the ring, oldest first: `[n, cols]`.
pub fn latest_queries(ring: &Tensor<2>, state: &Tensor<1, Int>, spec: QueryRingSpec) -> Tensor<2> {
    let [queries] = run(&spec, [read(ring), read(state)]);
    Tensor::from_dispatch(queries)
}

uniform! {
    struct Info {
        n: u32, quads: u32, chunk: u32, row_seq_offset: u32, width: u32, pad0: u32, pad1: u32, pad2: u32,
    }
}

impl QueryRingSpec {
    fn variant(&self, load: bool) -> Variant {
        let constants = [("THREADS", 64), ("LOAD", load as u32)];
        Variant::new::<Info>("query_ring", include_str!("../../shaders/query_ring.wgsl"), constants)
    }

    fn launch_either(&self, load: bool, buffers: [&CubeTensor; 3]) {
        let info = Info {
            n: self.n as u32,
            quads: (self.cols / 4) as u32,
            chunk: self.chunk as u32,
            row_seq_offset: self.row_seq_offset as u32,
            width: self.width as u32,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        launch(&self.variant(load), [(self.cols / 4).div_ceil(64), self.n, 1], &buffers, info);
    }
}

/// Storing queries in the ring.
impl Kernel<3, 1> for QueryRingSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(2, "the ring of queries")];

    fn launch(&self, [q, state, ring]: [CubeTensor; 3]) -> [CubeTensor; 1] {
        self.launch_either(false, [&q, &state, &ring]);
        [ring]
    }

    fn twin(&self, [q, state, mut ring]: [FlexTensor; 3]) -> [FlexTensor; 1] {
        store_twin(slice(&q), slice(&state), slice_mut(&mut ring), self);
        [ring]
    }
}

/// Loading queries from the ring.
impl Kernel<2, 1> for QueryRingSpec {
    fn launch(&self, [ring, state]: [CubeTensor; 2]) -> [CubeTensor; 1] {
        let out = empty(&ring, vec![self.n, self.cols], DType::F32);
        self.launch_either(true, [&ring, &state, &out]);
        [out]
    }

    fn twin(&self, [ring, state]: [FlexTensor; 2]) -> [FlexTensor; 1] {
        [floats(load_twin(slice(&ring), slice(&state), self), [self.n, self.cols])]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let spec = QueryRingSpec { n: 1, cols: 8, chunk: 1, row_seq_offset: 0, width: 1 };
    vec![spec.variant(false), spec.variant(true)]
}

fn position(st: &[u32], seq: usize) -> usize {
    st[seq * state::SEQ + state::POSITION] as usize
}

fn store_twin(q: &[f32], st: &[u32], ring: &mut [f32], spec: &QueryRingSpec) {
    for (i, row) in q.chunks_exact(spec.cols).take(spec.n).enumerate() {
        let (seq, offset) = (st[spec.row_seq_offset + i / spec.chunk] as usize, i % spec.chunk);
        if offset + spec.width >= spec.chunk {
            let at = seq * spec.width + (position(st, seq) + offset) % spec.width;
            ring[at * spec.cols..][..spec.cols].copy_from_slice(row);
        }
    }
}

fn load_twin(ring: &[f32], st: &[u32], spec: &QueryRingSpec) -> Vec<f32> {
    let row = |i: usize| {
        let seq = st[spec.row_seq_offset] as usize;
        let at = seq * spec.width + (position(st, seq) - spec.n + i) % spec.width;
        &ring[at * spec.cols..][..spec.cols]
    };
    (0..spec.n).flat_map(row).copied().collect()
}

/// Chunks shorter and longer than the ring, a decode step of three sequences; loads that wrap around and loads of a
/// few.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, cols, chunk, seqs, width) in [
        (3, 24, 1, vec![1, 0, 2], 4),
        (5, 16, 5, vec![1], 8),
        (21, 896, 21, vec![2], 8),
        (7, 8, 7, vec![0], 7),
        (1, 264, 1, vec![1], 1),
    ] {
        let name = format!("store {n} x {cols} chunk {chunk} of {seqs:?} width {width}");
        cases.push(Case::new("query_ring", name, move |device| {
            let builder = StateBuilder::new(3, 1, 1).positions(&[30, 6, 17]).map(&seqs);
            let (row_seq_offset, state) = (builder.row_seq_offset(), device_words(builder.build(), device));
            let q = device_floats(noise(n * cols, 18, 2.0), n, cols, device);
            let spec = QueryRingSpec { n, cols, chunk, row_seq_offset, width };
            let ring = store_queries(&q, &state, poison_floats(3 * width, cols, device), spec);
            vec![Check::floats("ring", ring, Bound::Exact)]
        }));
    }
    for (n, cols, seq, width) in [(4, 24, 0, 4), (3, 896, 1, 8), (8, 8, 2, 8)] {
        let name = format!("load {n} x {cols} of {seq} width {width}");
        cases.push(Case::new("query_ring", name, move |device| {
            let builder = StateBuilder::new(3, 1, 1).positions(&[30, 3, 17]).map(&[seq]);
            let (row_seq_offset, state) = (builder.row_seq_offset(), device_words(builder.build(), device));
            let ring = device_floats(noise(3 * width * cols, 19, 2.0), 3 * width, cols, device);
            let spec = QueryRingSpec { n, cols, chunk: n, row_seq_offset, width };
            vec![Check::floats("queries", latest_queries(&ring, &state, spec), Bound::Exact)]
        }));
    }
    cases
}
