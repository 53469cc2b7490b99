//! The rotated queries of the latest tokens, kept on the device for readouts over an observation window.
//!
//! Contract: the ring is `[seqs, width, heads D]`; the query of the token at position `p` of sequence `b` lies in row
//! `p % width` of its part. Storing takes row `i` of `q` `[n, heads D]` (token `i % chunk` of the sequence that `state[map + i / chunk]` names, at the
//! sequence's position plus `i % chunk`), of a chunk longer than the ring the latest `width` rows. Loading gives the `n ≤ width`
//! latest queries of the sequence that `state[map]` names, oldest first, `[n, heads D]`; the position of the state is then that of the next token.
//!
//! Bound: exact.
use super::cases::{Bound, Case, Check, StateBuilder, device_floats, device_words, noise, poison_floats};
use super::variant::Variant;
use super::{latest_queries, state, store_queries};

/// Parameters of [`store_queries`](fn@super::store_queries) and [`latest_queries`](fn@super::latest_queries).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryRingSpec {
    /// Rows stored, all sequences together, or loaded.
    pub n: usize,
    /// Values of a row: all query heads'. A multiple of 8.
    pub cols: usize,
    /// Rows per sequence.
    pub chunk: usize,
    /// Word of the state from which on the rows' sequences are listed.
    pub row_seq_offset: usize,
    /// Rows of a sequence's part of the ring.
    pub width: usize,
}

impl QueryRingSpec {
    pub(super) fn variant(&self, load: bool) -> Variant {
        let constants = vec![("THREADS", 64), ("LOAD", load as u32)];
        Variant { kernel: "query_ring", text: include_str!("../../shaders/query_ring.wgsl"), constants }
    }

    pub(super) fn groups(&self) -> [usize; 3] {
        [(self.cols / 4).div_ceil(64), self.n, 1]
    }

    pub(super) fn info(&self) -> [u32; 8] {
        [self.n, self.cols / 4, self.chunk, self.row_seq_offset, self.width, 0, 0, 0].map(|v| v as u32)
    }
}

fn position(st: &[u32], seq: usize) -> usize {
    st[seq * state::SEQ + state::POSITION] as usize
}

pub(super) fn store_twin(q: &[f32], st: &[u32], ring: &mut [f32], spec: &QueryRingSpec) {
    for (i, row) in q.chunks_exact(spec.cols).take(spec.n).enumerate() {
        let (seq, offset) = (st[spec.row_seq_offset + i / spec.chunk] as usize, i % spec.chunk);
        if offset + spec.width >= spec.chunk {
            let at = seq * spec.width + (position(st, seq) + offset) % spec.width;
            ring[at * spec.cols..][..spec.cols].copy_from_slice(row);
        }
    }
}

pub(super) fn load_twin(ring: &[f32], st: &[u32], spec: &QueryRingSpec) -> Vec<f32> {
    let row = |i: usize| {
        let seq = st[spec.row_seq_offset] as usize;
        let at = seq * spec.width + (position(st, seq) - spec.n + i) % spec.width;
        &ring[at * spec.cols..][..spec.cols]
    };
    (0..spec.n).flat_map(row).copied().collect()
}

/// Chunks shorter and longer than the ring, a decode step of three sequences; loads that wrap around and loads of a few.
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
