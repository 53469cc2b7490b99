//! Token embedding: the rows of a packed table for a list of ids.
//!
//! The ids are `ids` `[n]`, or `ids` is the device's state and has them where [`Ids`] says.
//!
//! Contract: `out[i, :] = table[ids[i] − shard_first_row, :]` for every `i < n` whose id is in `shard_first_row ..
//! shard_first_row + rows`. The table may be split by rows over several buffers, with one launch for each shard. An
//! id ≥ `vocab` gives a row of zeros, which the shard with `shard_first_row = 0` writes. Nothing else of `out` `[n,
//! cols]` is written.
//!
//! Bound: exact for bf16, f32 and the quantized types, because a scaled quant has 24 bits at most, and a minimum is
//! added with one rounding. A driver may flush f16 subnormals to zero, so the bound for f16 is 6.2e-5 absolute.
use super::cases::{Bound, Case, Check, StateBuilder, device_words, poison_floats, weights, whole_blocks};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::state;
use super::twin::{slice, slice_mut};
use super::uniform::uniform;
use super::variant::Variant;
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{Int, Tensor};

/// Parameters of [`embed`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbedSpec {
    /// Element type of the table.
    pub dtype: Dtype,
    /// Ids to look up.
    pub n: usize,
    /// Values of a row.
    pub cols: usize,
    /// Row of the whole table where this shard begins.
    pub shard_first_row: usize,
    /// Rows of the shard.
    pub rows: usize,
    /// Rows of the whole table.
    pub vocab: usize,
    /// Where the ids are.
    pub ids: Ids,
}

/// Where the ids of [`embed`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// The i-th id is `ids[i]`.
    Listed,
    /// `ids` is the state, and the i-th id is the pending token of a sequence.
    Pending {
        /// Offset in the state, in words, of the list of the rows' sequences.
        row_seq_offset: usize,
    },
    /// `ids` is the state. Row `i` is token `i % chunk` of the tokens that a step with drafts forwards for sequence `i
    /// / chunk` of the list.
    Drafted {
        /// Offset in the state, in words, of the list of the sequences.
        row_seq_offset: usize,
        /// Offset in the state, in words, of the tokens, [`DRAFTED`](state::DRAFTED) for each sequence.
        drafts_offset: usize,
        /// Rows of each sequence.
        chunk: usize,
    },
}

impl Ids {
    /// The constant of the shader, and the words of its uniform: the list of sequences, the chunk, the tokens.
    fn words(self) -> [u32; 4] {
        match self {
            Ids::Listed => [0, 0, 1, 0],
            Ids::Pending { row_seq_offset } => [1, row_seq_offset as u32, 1, 0],
            Ids::Drafted { row_seq_offset, drafts_offset, chunk } => {
                [2, row_seq_offset as u32, chunk as u32, drafts_offset as u32]
            }
        }
    }

    /// Offset in `ids` of the id of row `i`.
    fn place(self, ids: &[u32], i: usize) -> usize {
        match self {
            Ids::Listed => i,
            Ids::Pending { row_seq_offset } => ids[row_seq_offset + i] as usize * state::SEQ + state::TOKEN,
            Ids::Drafted { row_seq_offset, drafts_offset, chunk } => {
                drafts_offset + ids[row_seq_offset + i / chunk] as usize * state::DRAFTED + i % chunk
            }
        }
    }
}

/// Looks up the embeddings of `spec.n` ids. `table` u32 `[rows * row_words]`; `ids` u32 `[n]`, or the state; `out`
/// f32 `[n, cols]`, written in place.
pub fn embed(table: &Tensor<1, Int>, ids: &Tensor<1, Int>, out: Tensor<2>, spec: EmbedSpec) -> Tensor<2> {
    let [out] = run(&spec, [read(table), read(ids), out.into_dispatch()]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info {
        n: u32, cols: u32, shard_first_row: u32, rows: u32, vocab: u32, row_seq_offset: u32, chunk: u32, drafts_offset: u32,
    }
}

impl EmbedSpec {
    fn variant(&self) -> Variant {
        let [pending, ..] = self.ids.words();
        let constants = [("THREADS", 64), ("DTYPE", self.dtype.code()), ("PENDING", pending)];
        Variant::new::<Info>("embed", include_str!("../../shaders/embed.wgsl"), constants)
    }
}

impl Kernel<3, 1> for EmbedSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(2, "the output of embed")];

    fn launch(&self, [table, ids, out]: [CubeTensor; 3]) -> [CubeTensor; 1] {
        let [_, row_seq_offset, chunk, drafts_offset] = self.ids.words();
        let info = Info {
            n: self.n as u32,
            cols: self.cols as u32,
            shard_first_row: self.shard_first_row as u32,
            rows: self.rows as u32,
            vocab: self.vocab as u32,
            row_seq_offset,
            chunk,
            drafts_offset,
        };
        let groups = [self.cols.div_ceil(8 * 64), self.n, 1];
        launch(&self.variant(), groups, &[&table, &ids, &out], info);
        [out]
    }

    fn twin(&self, [table, ids, mut out]: [FlexTensor; 3]) -> [FlexTensor; 1] {
        twin(slice(&table), slice(&ids), slice_mut(&mut out), self);
        [out]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let spec = |dtype, ids| EmbedSpec { dtype, n: 1, cols: 8, shard_first_row: 0, rows: 8, vocab: 8, ids };
    let ids = [
        Ids::Listed,
        Ids::Pending { row_seq_offset: 0 },
        Ids::Drafted { row_seq_offset: 0, drafts_offset: 0, chunk: 1 },
    ];
    Dtype::ALL.into_iter().flat_map(|dtype| ids.map(|ids| spec(dtype, ids).variant())).collect()
}

fn twin(table: &[u32], ids: &[u32], out: &mut [f32], spec: &EmbedSpec) {
    let row_words = spec.dtype.row_words(spec.cols);
    let mut values = vec![0f64; spec.cols];
    for (i, row) in out.chunks_exact_mut(spec.cols).take(spec.n).enumerate() {
        let id = ids[spec.ids.place(ids, i)] as usize;
        if id >= spec.vocab && spec.shard_first_row == 0 {
            row.fill(0.0);
        } else if let Some(r) = id.checked_sub(spec.shard_first_row).filter(|r| *r < spec.rows) {
            let from = &table[r * row_words..(r + 1) * row_words];
            spec.dtype.read_row(from, &mut values);
            row.iter_mut().zip(&values).for_each(|(out, v)| *out = *v as f32);
        }
    }
}

/// Every element type; one shard and the second of two; ids outside the vocabulary; pending tokens in another order,
/// and drafts of two sequences.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        for (shard_first_row, rows, n, cols, place) in
            [(0, 37, 5, 24, "listed"), (20, 17, 9, 136, "pending"), (0, 37, 1, 8, "listed"), (0, 37, 6, 24, "drafted")]
        {
            let cols = whole_blocks(dtype, cols);
            cases.push(Case::new(
                "embed",
                format!("{dtype:?} rows {shard_first_row}+{rows} n {n} cols {cols} {place}"),
                move |device| {
                    let table = device_words(weights(dtype, rows, cols, 1, 1.0), device);
                    let ids = [36, 0, 19, 20, 40, u32::MAX, 7, 21, 35][..n].to_vec();
                    let order: Vec<usize> = (0..n).map(|i| (i * 4 + 2) % n).collect();
                    let state = StateBuilder::new(n, 1, 1).tokens(&ids).map(&order);
                    let row_seq_offset = state.row_seq_offset();
                    let (ids, place) = match place {
                        "pending" => (state.build(), Ids::Pending { row_seq_offset }),
                        "drafted" => {
                            let of_two: Vec<u32> = (0..2 * state::DRAFTED as u32).map(|i| i * 7 % 41).collect();
                            let state = StateBuilder::new(2, 1, 1).map(&[1, 0]).drafts(&of_two);
                            let (row_seq_offset, drafts_offset) = (state.row_seq_offset(), state.drafts_offset());
                            (state.build(), Ids::Drafted { row_seq_offset, drafts_offset, chunk: 3 })
                        }
                        _ => (ids, Ids::Listed),
                    };
                    let spec = EmbedSpec { dtype, n, cols, shard_first_row, rows, vocab: 37, ids: place };
                    let out = poison_floats(n + 1, cols, device);
                    let out = embed(&table, &device_words(ids, device), out, spec);
                    let bound = if dtype == Dtype::F16 { Bound::Absolute(6.2e-5) } else { Bound::Exact };
                    vec![Check::floats("out", out, bound)]
                },
            ));
        }
    }
    cases
}
