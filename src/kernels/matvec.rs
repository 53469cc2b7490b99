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
//! With a [`norm`](LinearSpec::norm), `x[i, :]` is what [`rms_norm`](super::rms_norm()) would make of a row of the
//! residual stream: `v · gains / √(mean(v²) + eps)` with `v = x[first_row + i, :]`, `x` `[first_row + n or more,
//! cols]`. This spares a decode step the launch of a kernel that computes hardly anything.
//!
//! Products and squares of a row are summed in the same order for every `n`, so the other rows change no bit.
//!
//! Bound: `2e-6 · √cols`, relative to the largest value of an output row: f32 sums of `cols` products in any order,
//! with exact weights. (f16 subnormals may be flushed; for weights of ordinary size that stays below the bound.) With
//! a norm, each weight is rounded once more, and the sums are multiplied by a factor that is off by a few units in
//! the last place.
use super::cases::{Bound, Case, Check, device_floats, device_words, noise, poison_floats, weights, whole_blocks};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::rms_norm::NormSpec;
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
    /// The norm that the product applies to the rows of `x`; only for up to [`MOST`] vectors. If there is none, the
    /// tensor of the gains is bound but not read.
    pub norm: Option<NormSpec>,
    /// Tiling for the device.
    pub tuning: Tuning,
}

/// `out = W x + bias` in one of the [`Mode`]s for `spec.n` vectors, by `matvec` for up to [`MOST`] of them, else by
/// `matmul`. `w` u32 `[rows * row_words]`, `x` f32 `[n, cols]`, `gains` f32 `[cols]`, the weights of the norm, `bias`
/// f32, `out` f32 `[n, out_stride]`, written in place.
pub fn linear(
    w: &Tensor<1, Int>,
    x: &Tensor<2>,
    gains: &Tensor<1>,
    bias: &Tensor<1>,
    out: Tensor<2>,
    spec: LinearSpec,
) -> Tensor<2> {
    let [out] = run(&spec, [read(w), read(x), read(gains), read(bias), out.into_dispatch()]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info {
        rows: u32, cols: u32, shard_first_row: u32, out_stride: u32, first_row: u32, eps: f32, pad0: u32, pad1: u32,
    }
}

impl LinearSpec {
    fn matvec_variant(&self) -> Variant {
        let constants = [
            ("THREADS", 64),
            ("DTYPE", self.dtype.code()),
            ("LANES", self.tuning.matvec_lanes),
            ("N", self.n as u32),
            ("NORM", self.norm.is_some() as u32),
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
            first_row: self.norm.map_or(0, |norm| norm.first_row as u32),
            eps: self.norm.map_or(0.0, |norm| norm.eps),
            pad0: 0,
            pad1: 0,
        };
        launch(&self.matvec_variant(), grid(self.rows.div_ceil((64 / lanes) as usize)), buffers, info);
    }
}

impl Kernel<5, 1> for LinearSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(4, "the output of a product")];

    fn launch(&self, [w, x, gains, bias, out]: [CubeTensor; 5]) -> [CubeTensor; 1] {
        assert!(self.norm.is_none_or(|norm| (norm.n, norm.cols) == (self.n, self.cols)), "the norm of other rows");
        match self.n <= MOST {
            true => self.launch_matvec(&[&w, &x, &gains, &bias, &out]),
            false => self.launch_matmul(&[&w, &x, &bias, &out]),
        }
        [out]
    }

    fn twin(&self, [w, x, gains, bias, mut out]: [FlexTensor; 5]) -> [FlexTensor; 1] {
        let x = vectors(slice(&x), slice(&gains), self);
        twin(slice(&w), &x, slice(&bias), slice_mut(&mut out), self);
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
                norm: None,
                tuning,
            },
        )
    })
}

pub(super) fn variants() -> Vec<Variant> {
    let lanes = [1, 8, 32, 64].map(|matvec_lanes| Tuning { matvec_lanes, ..Tuning::GPU });
    let all = [1, 3, MOST].into_iter().flat_map(|n| lanes.map(|tuning| usual(n, tuning)));
    let specs = all.flatten().filter(|spec| !few_modes(spec.dtype) || (spec.n == 3 && spec.tuning.matvec_lanes == 8));
    // Only the first products of a block are given rows that are not normalised yet, and those do not add.
    let normed = |spec: &LinearSpec| {
        let LinearSpec { n, cols, tuning, .. } = *spec;
        let norm = Some(NormSpec { n, first_row: 0, cols, eps: 1e-6 });
        let wanted = spec.mode != Mode::Add && (tuning.matvec_lanes == 32 || few_modes(spec.dtype));
        wanted.then_some(LinearSpec { norm, ..*spec })
    };
    specs.flat_map(|spec| [Some(spec), normed(&spec)]).flatten().map(|spec| spec.matvec_variant()).collect()
}

/// The vectors of the product in f64, normalised if it has a norm.
fn vectors(x: &[f32], gains: &[f32], spec: &LinearSpec) -> Vec<f64> {
    let Some(NormSpec { first_row, cols, eps, .. }) = spec.norm else { return widened(&x[..spec.n * spec.cols]) };
    let mut x = widened(&x[first_row * cols..(first_row + spec.n) * cols]);
    for row in x.chunks_exact_mut(cols) {
        let scale = 1.0 / (dot(row, row) / cols as f64 + f64::from(eps)).sqrt();
        row.iter_mut().zip(gains).for_each(|(v, gain)| *v *= scale * f64::from(*gain));
    }
    x
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn twin(w: &[u32], x: &[f64], bias: &[f32], out: &mut [f32], spec: &LinearSpec) {
    let row_words = spec.dtype.row_words(spec.cols);
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
    let LinearSpec { dtype, mode, rows, cols, n, shard_first_row, out_stride, norm, tuning, .. } = spec;
    let normed = norm.map_or(String::new(), |norm| format!("normed from row {} ", norm.first_row));
    let name = format!(
        "{dtype:?} {mode:?} {normed}bias {} {rows}x{cols} n {n} shard_first_row {shard_first_row} lanes {}",
        spec.has_bias, tuning.matvec_lanes
    );
    // Rows that are normalised differ in size, so that the norm of another one is noticed.
    let first_row = norm.map_or(0, |norm| norm.first_row);
    let size = move |row: usize| if norm.is_some() { 0.2 * (1 + row % 5) as f32 } else { 1.0 };
    Case::new(kernel, name, move |device| {
        let w = device_words(weights(dtype, rows, cols, 3, 1.0 / (cols as f32).sqrt()), device);
        let x = noise((first_row + n) * cols, 4, 1.0);
        let x = x.chunks(cols).enumerate().flat_map(|(row, x)| x.iter().map(move |v| v * size(row))).collect();
        let x = device_floats(x, first_row + n, cols, device);
        let gains = super::f32_tensor(noise(cols, 8, 2.0), [cols], device);
        let bias = super::f32_tensor(noise(shard_first_row + rows, 5, 0.5), [shard_first_row + rows], device);
        // The output has a spare row and spare columns of sentinels. Add and Gated read the old values, so there the
        // output has numbers.
        let out = match mode {
            Mode::Add | Mode::Gated => device_floats(noise((n + 1) * out_stride, 6, 1.0), n + 1, out_stride, device),
            _ => poison_floats(n + 1, out_stride, device),
        };
        vec![Check::floats("out", linear(&w, &x, &gains, &bias, out, spec), bound(cols))]
    })
    .in_mode(mode, norm.is_some())
}

/// Every element type, mode and vector count; rows that fill no workgroup; shards; several lane counts; with and
/// without a norm.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        // Mode, bias, rows, columns, the shard's first row, vectors, lanes, and with a norm the first row of x.
        let shapes = [
            (Mode::Store, true, 37, 64, 0, 1, 8, None),
            (Mode::Store, false, 1, 8, 5, 1, 16, None),
            (Mode::Store, true, 131, 904, 12, 3, 32, None),
            (Mode::Add, false, 96, 160, 0, 1, 8, None),
            (Mode::Add, false, 96, 160, 0, 2, 8, None),
            (Mode::Add, true, 65, 24, 7, 8, 64, None),
            (Mode::SwiGlu, false, 66, 96, 10, 1, 8, None),
            (Mode::SwiGlu, false, 20, 72, 0, 5, 1, None),
            (Mode::Gated, false, 33, 288, 2, 3, 8, None),
            (Mode::Store, true, 37, 904, 12, 1, 32, Some(0)),
            (Mode::Store, false, 1, 8, 5, 2, 16, Some(3)),
            (Mode::SwiGlu, false, 66, 264, 10, 1, 32, Some(0)),
            (Mode::SwiGlu, false, 20, 72, 0, 5, 1, Some(1)),
            (Mode::Gated, false, 33, 288, 2, 3, 32, Some(0)),
            (Mode::Add, true, 65, 24, 7, 8, 64, Some(2)),
        ];
        // The results of a shape do not depend on the element type, so quantized weights use few shapes. The last one
        // has several blocks of 256 columns in a row, and no whole number of vectors of scales.
        let quantized = [
            (Mode::Store, true, 37, 64, 12, 1, 8, None),
            (Mode::Add, true, 65, 24, 7, 8, 64, None),
            (Mode::SwiGlu, false, 20, 72, 0, 5, 1, None),
            (Mode::Gated, false, 33, 288, 2, 3, 8, None),
            (Mode::Store, true, 37, 288, 12, 1, 32, Some(0)),
            (Mode::SwiGlu, false, 20, 72, 0, 8, 32, Some(1)),
        ];
        let shapes = if dtype.is_quantized() { &quantized[..] } else { &shapes[..] };
        for &(mode, has_bias, rows, cols, shard_first_row, n, lanes, first_row) in shapes {
            let cols = whole_blocks(dtype, cols);
            let out_stride = shard_first_row + rows + 3;
            let tuning = Tuning { matvec_lanes: lanes, ..Tuning::GPU };
            let norm = first_row.map(|first_row| NormSpec { n, first_row, cols, eps: 0.03 });
            let spec = LinearSpec { dtype, mode, has_bias, rows, cols, shard_first_row, out_stride, n, norm, tuning };
            let tiled = [Tuning::CPU, Tuning::GPU].into_iter().find(|usual| usual.matvec_lanes == lanes);
            cases.push(match tiled {
                Some(usual) => case("matvec", spec).tiled_for(usual.kind),
                None => case("matvec", spec),
            });
        }
    }
    cases
}
