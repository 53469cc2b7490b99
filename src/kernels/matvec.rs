//! Matrix times vector, for decoding: a few vectors at once.
//!
//! Contract: with `y[i, r] = Σ_c W[r, c] x[i, c] + bias[shard_first_row + r]` for the `rows` of this shard of `W` and the `n` rows of
//! `x` `[n, cols]`, write at `out[i, shard_first_row + r]` of `[n, out_stride]`: `y` ([`Mode::Store`]), the old value plus `y`
//! ([`Mode::Add`]: the residual stream), or, at `out[i, (shard_first_row + r) / 2]` for even `r`, `silu(y[r]) · y[r + 1]`
//! ([`Mode::SwiGlu`]: gate and up rows interleaved when the weights were loaded). Nothing else of `out` is written.
//! `cols` is a multiple of 8, of 32 for quantized weights; any `rows` (even for SwiGlu), `n` ≤ [`MOST`]. The bias covers the rows of all shards.
//!
//! Bound: relative to the largest value of an output row, `2e-6 · √cols`: f32 sums of `cols` products in any order, with
//! the weights exact (f16 subnormals may be flushed: below the bound for weights of ordinary size).
use super::cases::{Bound, Case, Check, device_floats, device_words, noise, poison_floats, whole_blocks};
use super::linear;
use super::variant::{Variant, grid};
use crate::device::Tuning;
use crate::dtype::Dtype;
use crate::weights::PackedRows;

/// Most vectors that `matvec` takes at once; more go to `matmul`.
pub const MOST: usize = 8;

/// What a product does with its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// `out = y`.
    Store = 0,
    /// `out += y`.
    Add = 1,
    /// `out = silu(gate) · up`, for interleaved rows.
    SwiGlu = 2,
}

/// Parameters of [`linear`]: of `matvec` and of `matmul`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearSpec {
    /// Packing of the weights.
    pub dtype: Dtype,
    /// What to do with the output.
    pub mode: Mode,
    /// Whether the bias is added; without it the bias tensor is bound but not read.
    pub has_bias: bool,
    /// Rows of this shard.
    pub rows: usize,
    /// Values in a row of W and in a vector.
    pub cols: usize,
    /// Row of the whole matrix where this shard begins.
    pub shard_first_row: usize,
    /// Values in a row of `out`.
    pub out_stride: usize,
    /// Vectors.
    pub n: usize,
    /// The device's tiling.
    pub tuning: Tuning,
}

impl LinearSpec {
    pub(super) fn matvec_variant(&self) -> Variant {
        let constants = vec![
            ("THREADS", 64),
            ("DTYPE", self.dtype.code()),
            ("LANES", self.tuning.matvec_lanes),
            ("N", self.n as u32),
            ("MODE", self.mode as u32),
            ("HAS_BIAS", self.has_bias as u32),
        ];
        Variant { kernel: "matvec", text: include_str!("../../shaders/matvec.wgsl"), constants }
    }

    pub(super) fn matvec_groups(&self) -> [usize; 3] {
        // The pair of a gate is the next row of the same workgroup: with 64 lanes there is none.
        assert!(self.mode != Mode::SwiGlu || self.tuning.matvec_lanes < 64, "SwiGLU needs two rows a workgroup");
        grid(self.rows.div_ceil((64 / self.tuning.matvec_lanes) as usize))
    }

    pub(super) fn matvec_info(&self) -> [u32; 4] {
        [self.rows, self.cols, self.shard_first_row, self.out_stride].map(|v| v as u32)
    }
}

pub(super) fn twin(w: &[u32], x: &[f32], bias: &[f32], out: &mut [f32], spec: &LinearSpec) {
    let row_words = spec.dtype.row_words(spec.cols);
    let mut row = vec![0f64; spec.cols];
    let mut gate = vec![0f64; spec.n];
    for r in 0..spec.rows {
        let from = &w[r * row_words..(r + 1) * row_words];
        for (c, v) in row.iter_mut().enumerate() {
            *v = spec.dtype.weight(from, spec.cols, c);
        }
        let at = spec.shard_first_row + r;
        for i in 0..spec.n {
            let x = &x[i * spec.cols..(i + 1) * spec.cols];
            let mut y: f64 = row.iter().zip(x).map(|(w, x)| w * *x as f64).sum();
            if spec.has_bias {
                y += bias[at] as f64;
            }
            let line = i * spec.out_stride;
            match spec.mode {
                Mode::Store => out[line + at] = y as f32,
                Mode::Add => out[line + at] = (out[line + at] as f64 + y) as f32,
                Mode::SwiGlu if r % 2 == 0 => gate[i] = y,
                Mode::SwiGlu => out[line + at / 2] = (gate[i] / (1.0 + (-gate[i]).exp()) * y) as f32,
            }
        }
    }
}

/// The bound of `matvec` and `matmul`, relative to the largest value of an output row.
pub(super) fn bound(cols: usize) -> Bound {
    Bound::RelativeSum { factor: 2e-6, terms: cols }
}

/// A case of either product: the same inputs, so that one list serves both.
pub(super) fn case(kernel: &'static str, spec: LinearSpec) -> Case {
    let LinearSpec { dtype, mode, rows, cols, n, shard_first_row, out_stride, tuning, .. } = spec;
    let name = format!(
        "{dtype:?} {mode:?} bias {} {rows}x{cols} n {n} shard_first_row {shard_first_row} lanes {}",
        spec.has_bias, tuning.matvec_lanes
    );
    Case::new(kernel, name, move |device| {
        let w = PackedRows::from_f32(dtype, rows, cols, &noise(rows * cols, 3, 1.0 / (cols as f32).sqrt()));
        let w = device_words(w.expect("finite, whole blocks").into_words(), device);
        let x = device_floats(noise(n * cols, 4, 1.0), n, cols, device);
        let bias = super::f32_tensor(noise(shard_first_row + rows, 5, 0.5), [shard_first_row + rows], device);
        // A spare row and spare columns of sentinels. Add reads what it adds to, so there they are numbers.
        let out = match mode {
            Mode::Add => device_floats(noise((n + 1) * out_stride, 6, 1.0), n + 1, out_stride, device),
            _ => poison_floats(n + 1, out_stride, device),
        };
        vec![Check::floats("out", linear(&w, &x, &bias, out, spec), bound(cols))]
    })
}

/// Every packing, mode and vector count; rows that fill no workgroup; shards; several lane counts.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        let shapes = [
            (Mode::Store, true, 37, 64, 0, 1, 8),
            (Mode::Store, false, 1, 8, 5, 1, 32),
            (Mode::Store, true, 131, 904, 12, 3, 16),
            (Mode::Add, false, 96, 160, 0, 2, 8),
            (Mode::Add, true, 65, 24, 7, 8, 64),
            (Mode::SwiGlu, false, 66, 96, 10, 1, 8),
            (Mode::SwiGlu, false, 20, 72, 0, 5, 1),
        ];
        // Every other shape for the quantized: what a shape tries is not in the packing.
        let step = if dtype.is_quantized() { 2 } else { 1 };
        for (mode, has_bias, rows, cols, shard_first_row, n, lanes) in shapes.into_iter().step_by(step) {
            let cols = whole_blocks(dtype, cols);
            let out_stride = shard_first_row + rows + 3;
            let tuning = Tuning { matvec_lanes: lanes, ..Tuning::GPU };
            let spec = LinearSpec { dtype, mode, has_bias, rows, cols, shard_first_row, out_stride, n, tuning };
            cases.push(case("matvec", spec));
        }
    }
    cases
}
