//! Matrix times vector, for decoding: a few vectors at once.
//!
//! Contract: with `y[i, r] = Σ_c W[r, c] x[i, c] + bias[shard_first_row + r]` for the `rows` of this shard of `W` and
//! the `n` rows of `x` `[n, cols]`, the kernel writes `out[i, shard_first_row + r]` of `[n, out_stride]`: `y`
//! ([`Mode::Store`]), or the old value plus `y` ([`Mode::Add`]: the residual stream). With [`Mode::SwiGlu`] it writes
//! `silu(y[r]) · y[r + 1]` at `out[i, (shard_first_row + r) / 2]` for even `r`: gate and up rows were interleaved
//! when the weights were loaded. With [`Mode::Gated`] it writes `silu(old) · y`, where the old value is the gate.
//! Nothing else of `out` is written.
//! `cols` is a multiple of 8, and of 32 for quantized weights; `rows` is arbitrary (even for SwiGlu), `n` ≤ [`MOST`].
//! The bias covers the rows of all shards.
//!
//! Bound: `2e-6 · √cols`, relative to the largest value of an output row: f32 sums of `cols` products in any order,
//! with exact weights. (f16 subnormals may be flushed; for weights of ordinary size that stays below the bound.)
use super::cases::{Bound, Case, Check, device_floats, device_words, noise, poison_floats, weights, whole_blocks};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::twin::{dot, slice, slice_mut, widened};
use super::uniform::uniform;
use super::variant::{Variant, grid};
use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{Int, Tensor};
use multiversion::multiversion;

/// The most vectors that `matvec` multiplies at once; more are passed to `matmul`.
pub const MOST: usize = 8;

/// How a product writes its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Mode {
    /// `out = y`.
    Store = 0,
    /// `out += y`.
    Add = 1,
    /// `out = silu(gate) · up`, for interleaved rows.
    SwiGlu = 2,
    /// `out = silu(out) · y`, where the gate has been stored in `out` before: for gate and up of different types.
    Gated = 3,
}

/// Parameters of [`linear`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearSpec {
    /// Element type of the weights.
    pub dtype: Dtype,
    /// How the output is written.
    pub mode: Mode,
    /// Whether the bias is added. If not, the bias tensor is bound but not read.
    pub has_bias: bool,
    /// Rows of this shard.
    pub rows: usize,
    /// Values of a row of W and of a vector.
    pub cols: usize,
    /// Row of the whole matrix where this shard begins.
    pub shard_first_row: usize,
    /// Values of a row of `out`.
    pub out_stride: usize,
    /// Number of vectors.
    pub n: usize,
    /// Tiling for the device.
    pub tuning: Tuning,
}

/// `out = W x + bias` in one of the [`Mode`]s for `spec.n` vectors, by `matvec` for up to [`MOST`] of them, else by
/// `matmul`. `w` u32 `[rows * row_words]`, `x` f32 `[n, cols]`, `bias` f32, `out` f32 `[n, out_stride]`, written in
/// place.
pub fn linear(w: &Tensor<1, Int>, x: &Tensor<2>, bias: &Tensor<1>, out: Tensor<2>, spec: LinearSpec) -> Tensor<2> {
    let [out] = run(&spec, [read(w), read(x), read(bias), out.into_dispatch()]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info { rows: u32, cols: u32, shard_first_row: u32, out_stride: u32 }
}

impl LinearSpec {
    fn matvec_variant(&self) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("DTYPE", self.dtype.code()),
            ("LANES", self.tuning.matvec_lanes),
            ("N", self.n as u32),
            ("MODE", self.mode as u32),
            ("HAS_BIAS", self.has_bias as u32),
        ];
        Variant::new::<Info>("matvec", include_str!("../../shaders/matvec.wgsl"), constants)
    }

    fn launch_matvec(&self, buffers: &[&CubeTensor]) {
        let lanes = self.tuning.matvec_lanes;
        // The partner of a gate row is the next row of the same workgroup. With 64 lanes there is no next row.
        assert!(self.mode != Mode::SwiGlu || lanes < 64, "SwiGLU needs two rows a workgroup");
        let info = Info {
            rows: self.rows as u32,
            cols: self.cols as u32,
            shard_first_row: self.shard_first_row as u32,
            out_stride: self.out_stride as u32,
        };
        launch(&self.matvec_variant(), grid(self.rows.div_ceil((64 / lanes) as usize)), buffers, info);
    }
}

impl Kernel<4, 1> for LinearSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(3, "the output of a product")];

    fn launch(&self, [w, x, bias, out]: [CubeTensor; 4]) -> [CubeTensor; 1] {
        match self.n <= MOST {
            true => self.launch_matvec(&[&w, &x, &bias, &out]),
            false => self.launch_matmul(&[&w, &x, &bias, &out]),
        }
        [out]
    }

    fn twin(&self, [w, x, bias, mut out]: [FlexTensor; 4]) -> [FlexTensor; 1] {
        twin(slice(&w), slice(&x), slice(&bias), slice_mut(&mut out), self);
        [out]
    }
}

/// Whether the lists of variants have this type in few modes and tilings only. How a sum is computed does not depend
/// on how the weights were unpacked.
fn few_modes(dtype: Dtype) -> bool {
    dtype.code() > Dtype::Q8_0.code()
}

/// A spec of every element type and mode, with and without bias, for the lists of variants.
pub(super) fn usual(n: usize, tuning: Tuning) -> impl Iterator<Item = LinearSpec> {
    let modes = [Mode::Store, Mode::Add, Mode::SwiGlu, Mode::Gated];
    let all = modes.into_iter().flat_map(|mode| [(mode, false), (mode, true)]);
    Dtype::ALL.into_iter().flat_map(move |dtype| {
        let few = few_modes(dtype);
        all.clone().filter(move |(_, has_bias)| !few || *has_bias).step_by(if few { 3 } else { 1 }).map(
            move |(mode, has_bias)| LinearSpec {
                dtype,
                mode,
                has_bias,
                rows: 8,
                cols: 256,
                shard_first_row: 0,
                out_stride: 8,
                n,
                tuning,
            },
        )
    })
}

pub(super) fn variants() -> Vec<Variant> {
    let lanes = [1, 8, 32, 64].map(|matvec_lanes| Tuning { matvec_lanes, ..Tuning::GPU });
    let all = [1, 3, MOST].into_iter().flat_map(|n| lanes.map(|tuning| usual(n, tuning)));
    let specs = all.flatten().filter(|spec| !few_modes(spec.dtype) || (spec.n == 3 && spec.tuning.matvec_lanes == 8));
    specs.map(|spec| spec.matvec_variant()).collect()
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn twin(w: &[u32], x: &[f32], bias: &[f32], out: &mut [f32], spec: &LinearSpec) {
    let row_words = spec.dtype.row_words(spec.cols);
    let x = widened(&x[..spec.n * spec.cols]);
    let mut row = vec![0f64; spec.cols];
    let mut gate = vec![0f64; spec.n];
    for r in 0..spec.rows {
        let from = &w[r * row_words..(r + 1) * row_words];
        spec.dtype.read_row(from, &mut row);
        let at = spec.shard_first_row + r;
        for i in 0..spec.n {
            let mut y = dot(&row, &x[i * spec.cols..(i + 1) * spec.cols]);
            if spec.has_bias {
                y += bias[at] as f64;
            }
            let line = i * spec.out_stride;
            match spec.mode {
                Mode::Store => out[line + at] = y as f32,
                Mode::Add => out[line + at] = (out[line + at] as f64 + y) as f32,
                Mode::Gated => {
                    let gate = f64::from(out[line + at]);
                    out[line + at] = (gate / (1.0 + (-gate).exp()) * y) as f32;
                }
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
        let w = device_words(weights(dtype, rows, cols, 3, 1.0 / (cols as f32).sqrt()), device);
        let x = device_floats(noise(n * cols, 4, 1.0), n, cols, device);
        let bias = super::f32_tensor(noise(shard_first_row + rows, 5, 0.5), [shard_first_row + rows], device);
        // The output has a spare row and spare columns of sentinels. Add and Gated read the old values, so there the
        // output has numbers.
        let out = match mode {
            Mode::Add | Mode::Gated => device_floats(noise((n + 1) * out_stride, 6, 1.0), n + 1, out_stride, device),
            _ => poison_floats(n + 1, out_stride, device),
        };
        vec![Check::floats("out", linear(&w, &x, &bias, out, spec), bound(cols))]
    })
    .in_mode(mode)
}

/// Every element type, mode and vector count; rows that fill no workgroup; shards; several lane counts.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        let shapes = [
            (Mode::Store, true, 37, 64, 0, 1, 8),
            (Mode::Store, false, 1, 8, 5, 1, 16),
            (Mode::Store, true, 131, 904, 12, 3, 32),
            (Mode::Add, false, 96, 160, 0, 1, 8),
            (Mode::Add, false, 96, 160, 0, 2, 8),
            (Mode::Add, true, 65, 24, 7, 8, 64),
            (Mode::SwiGlu, false, 66, 96, 10, 1, 8),
            (Mode::SwiGlu, false, 20, 72, 0, 5, 1),
            (Mode::Gated, false, 33, 288, 2, 3, 8),
        ];
        // The results of a shape do not depend on the element type, so quantized weights use few shapes. The last one
        // has several blocks of 256 columns in a row, and no whole number of vectors of scales.
        let quantized = [
            (Mode::Store, true, 37, 64, 12, 1, 8),
            (Mode::Add, true, 65, 24, 7, 8, 64),
            (Mode::SwiGlu, false, 20, 72, 0, 5, 1),
            (Mode::Gated, false, 33, 288, 2, 3, 8),
        ];
        let shapes = if dtype.is_quantized() { &quantized[..] } else { &shapes[..] };
        for &(mode, has_bias, rows, cols, shard_first_row, n, lanes) in shapes {
            let cols = whole_blocks(dtype, cols);
            let out_stride = shard_first_row + rows + 3;
            let tuning = Tuning { matvec_lanes: lanes, ..Tuning::GPU };
            let spec = LinearSpec { dtype, mode, has_bias, rows, cols, shard_first_row, out_stride, n, tuning };
            let tiled = [Tuning::CPU, Tuning::GPU].into_iter().find(|usual| usual.matvec_lanes == lanes);
            cases.push(match tiled {
                Some(usual) => case("matvec", spec).tiled_for(usual.kind),
                None => case("matvec", spec),
            });
        }
    }
    cases
}
