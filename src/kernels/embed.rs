//! Token embedding: rows of the (packed) table for a list of ids.
//!
//! The ids are those of `ids` `[n]`, or, with `pending`, `ids` is the device's state and the i-th id is the pending token of
//! the sequence that its word `pending + i` names.
//!
//! Contract: `out[i, :] = table[ids[i] − shard_first_row, :]` for every `i < n` whose id lies in `shard_first_row .. shard_first_row + rows` (the table may be
//! split by rows over several buffers: one launch a shard). An id ≥ `vocab` gives a row of zeros, written by the shard
//! with `shard_first_row = 0`. Nothing else of `out` `[n, cols]` is written.
//!
//! Bound: exact for bf16, f32 and the quantized packings (a product of 19 bits at most); for f16 a driver may flush half
//! subnormals to zero, so 6.2e-5 absolute.
use super::cases::{Bound, Case, Check, StateBuilder, device_words, noise, poison_floats, whole_blocks};
use super::variant::Variant;
use super::{embed as run, state};
use crate::dtype::Dtype;
use crate::weights::PackedRows;

/// Parameters of [`embed`](fn@super::embed).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbedSpec {
    /// Packing of the table.
    pub dtype: Dtype,
    /// Ids to look up.
    pub n: usize,
    /// Values in a row.
    pub cols: usize,
    /// Vocabulary row of the shard's first row.
    pub shard_first_row: usize,
    /// Rows of the shard.
    pub rows: usize,
    /// Rows of the whole table.
    pub vocab: usize,
    /// Word of the state from which on the sequences are listed whose pending tokens are looked up.
    pub pending: Option<usize>,
}

impl EmbedSpec {
    pub(super) fn variant(&self) -> Variant {
        let pending = self.pending.is_some() as u32;
        let constants = vec![("THREADS", 64), ("DTYPE", self.dtype.code()), ("PENDING", pending)];
        Variant { kernel: "embed", text: include_str!("../../shaders/embed.wgsl"), constants }
    }

    pub(super) fn groups(&self) -> [usize; 3] {
        [(self.cols / self.dtype.per_word()).div_ceil(64), self.n, 1]
    }

    pub(super) fn info(&self) -> [u32; 8] {
        let row_words = self.dtype.row_words(self.cols);
        let row_seq_offset = self.pending.unwrap_or(0);
        [self.n, self.cols, row_words, self.shard_first_row, self.rows, self.vocab, row_seq_offset, 0].map(|v| v as u32)
    }
}

pub(super) fn twin(table: &[u32], ids: &[u32], out: &mut [f32], spec: &EmbedSpec) {
    let row_words = spec.dtype.row_words(spec.cols);
    for (i, row) in out.chunks_exact_mut(spec.cols).take(spec.n).enumerate() {
        let at = spec.pending.map_or(i, |offset| ids[offset + i] as usize * state::SEQ + state::TOKEN);
        let id = ids[at] as usize;
        if id >= spec.vocab && spec.shard_first_row == 0 {
            row.fill(0.0);
        } else if let Some(r) = id.checked_sub(spec.shard_first_row).filter(|r| *r < spec.rows) {
            let from = &table[r * row_words..(r + 1) * row_words];
            for (c, v) in row.iter_mut().enumerate() {
                *v = spec.dtype.weight(from, spec.cols, c) as f32;
            }
        }
    }
}

/// Every packing; one shard and the second of two; ids outside; pending tokens in another order.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for (shard_first_row, rows, n, cols, pending) in
            [(0, 37, 5, 24, false), (20, 17, 9, 136, true), (0, 37, 1, 8, false)]
        {
            let cols = whole_blocks(dtype, cols);
            cases.push(Case::new(
                "embed",
                format!("{dtype:?} rows {shard_first_row}+{rows} n {n} cols {cols} pending {pending}"),
                move |device| {
                    let table = PackedRows::from_f32(dtype, rows, cols, &noise(rows * cols, 1, 1.0));
                    let table = device_words(table.expect("finite, whole blocks").into_words(), device);
                    let ids = [36, 0, 19, 20, 40, u32::MAX, 7, 21, 35][..n].to_vec();
                    let order: Vec<usize> = (0..n).map(|i| (i * 4 + 2) % n).collect();
                    let state = StateBuilder::new(n, 1, 1).tokens(&ids).map(&order);
                    let (ids, pending) = match pending {
                        true => (state.build(), Some(state.row_seq_offset())),
                        false => (ids, None),
                    };
                    let spec = EmbedSpec { dtype, n, cols, shard_first_row, rows, vocab: 37, pending };
                    let out = poison_floats(n + 1, cols, device);
                    let out = run(&table, &device_words(ids, device), out, spec);
                    let bound = if dtype == Dtype::F16 { Bound::Absolute(6.2e-5) } else { Bound::Exact };
                    vec![Check::floats("out", out, bound)]
                },
            ));
        }
    }
    cases
}
