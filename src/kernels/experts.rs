//! Products of rows with the matrices of the experts that were chosen for them. No other expert's weights are read,
//! and the host does not need to know the choices.
//!
//! Contract: choice `c` is of row `c / share` of `x` `[choices / share, cols]`, and of one expert, with matrix `W`
//! `[rows, cols]`. With `y[c, r] = Σ_col W[r, col] x[c / share, col]`, the kernel writes `out[c, r]` of
//! `[choices, out_stride]`: `y` ([`Mode::Store`]), `silu(old) · y` ([`Mode::Gated`]), or, at `out[c, r / 2]` for even
//! `r`, `silu(y[r]) · y[r + 1]` ([`Mode::SwiGlu`]). A shard has the matrices of some experts, below each other; the
//! choices of other experts are left alone, and so is everything else of `out`. `cols` as in
//! [`matvec`](super::matvec), which has the same bound, because the sums are the same (`dots.wgsl`).
//!
//! For few rows `choices` is the list of the choices' experts, and a workgroup takes one choice: every choice is
//! summed in the same order, whatever its neighbours are. For many rows it is a list of
//! [tiles](mod@super::expert_tiles), and the rows of an expert are unpacked once for up to [`TILE`] choices.
use super::cases::{Case, Check, device_floats, device_words, noise, poison_floats, weights, whole_blocks};
use super::cube::launch;
use super::expert_tiles::{NONE, TILE, TilesSpec, expert_tiles};
use super::kernel::{Kernel, read, run};
use super::matvec::{Mode, bound};
use super::twin::{dot, slice, slice_mut, widened};
use super::u32_tensor;
use super::uniform::uniform;
use super::variant::{Variant, grid};
use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{Int, Tensor};
use multiversion::multiversion;

/// Invocations of a workgroup of `experts_rows.wgsl`: the lanes of one vector.
const ROWS_THREADS: usize = 8;
/// Rows of an invocation there, as in `matmul_rows.wgsl`.
const ROWS_EACH: usize = 8;

/// Parameters of [`experts`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsSpec {
    /// Element type of the weights.
    pub dtype: Dtype,
    /// How the output is written: not [`Mode::Add`].
    pub mode: Mode,
    /// Rows of an expert's matrix.
    pub rows: usize,
    /// Values of a row of the matrix and of a vector.
    pub cols: usize,
    /// The first expert of this shard.
    pub first_expert: usize,
    /// Experts of this shard.
    pub experts: usize,
    /// Choices that share a row of `x`.
    pub share: usize,
    /// Values of a row of `out`.
    pub out_stride: usize,
    /// The experts of this number of choices, or this number of tiles.
    pub choices: Choices,
    /// Tiling for the device.
    pub tuning: Tuning,
}

/// What the list of choices contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choices {
    /// The experts of this number of choices.
    Each(usize),
    /// This number of [tiles](mod@super::expert_tiles).
    Tiles(usize),
}

/// The products of `spec`: `w` u32 `[experts * rows * row_words]`, `x` f32, `choices` u32, `out` f32, written in
/// place.
pub fn experts(
    w: &Tensor<1, Int>,
    x: &Tensor<2>,
    choices: &Tensor<1, Int>,
    out: Tensor<2>,
    spec: ExpertsSpec,
) -> Tensor<2> {
    let [out] = run(&spec, [read(w), read(x), read(choices), out.into_dispatch()]);
    Tensor::from_dispatch(out)
}

uniform! {
    struct Info {
        rows: u32, cols: u32, first_expert: u32, experts: u32, share: u32, out_stride: u32, pad0: u32, pad1: u32,
    }
}

impl ExpertsSpec {
    /// The lanes of a row of weights. The partner of a gate row is the next row of the same workgroup, so a workgroup
    /// has at least two rows.
    fn lanes(&self) -> u32 {
        self.tuning.matvec_lanes.min(32)
    }

    /// Whether `experts_rows.wgsl` is launched.
    fn in_rows(&self) -> bool {
        self.tuning.is_cpu() && matches!(self.choices, Choices::Tiles(_))
    }

    fn variant(&self) -> Variant {
        let product = [("DTYPE", self.dtype.code()), ("MODE", self.mode as u32)];
        if self.in_rows() {
            let tile = [("THREADS", ROWS_THREADS as u32), ("EACH", ROWS_EACH as u32), ("N", TILE as u32)];
            let text = include_str!("../../shaders/experts_rows.wgsl");
            return Variant::new::<Info>("experts_rows", text, tile.into_iter().chain(product));
        }
        let (n, tiled) = match self.choices {
            Choices::Each(_) => (1, 0),
            Choices::Tiles(_) => (TILE as u32, 1),
        };
        let lanes = [("THREADS", 64), ("LANES", self.lanes()), ("N", n), ("TILED", tiled)];
        let text = include_str!("../../shaders/experts.wgsl");
        Variant::new::<Info>("experts", text, lanes.into_iter().chain(product))
    }
}

impl Kernel<4, 1> for ExpertsSpec {
    const IN_PLACE: &'static [(usize, &'static str)] = &[(3, "the output of the experts")];

    fn launch(&self, [w, x, choices, out]: [CubeTensor; 4]) -> [CubeTensor; 1] {
        assert!(self.mode != Mode::Add, "several choices would add to one row at once");
        let (Choices::Each(count) | Choices::Tiles(count)) = self.choices;
        let rows = if self.in_rows() { ROWS_THREADS * ROWS_EACH } else { (64 / self.lanes()) as usize };
        let [groups, more, _] = grid(self.rows.div_ceil(rows));
        let info = Info {
            rows: self.rows as u32,
            cols: self.cols as u32,
            first_expert: self.first_expert as u32,
            experts: self.experts as u32,
            share: self.share as u32,
            out_stride: self.out_stride as u32,
            pad0: 0,
            pad1: 0,
        };
        launch(&self.variant(), [groups, more, count], &[&w, &x, &choices, &out], info);
        [out]
    }

    fn twin(&self, [w, x, choices, mut out]: [FlexTensor; 4]) -> [FlexTensor; 1] {
        twin(slice(&w), slice(&x), slice(&choices), slice_mut(&mut out), self);
        [out]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for dtype in Dtype::ALL {
        for (mode, choices, tuning) in [
            (Mode::Store, Choices::Each(1), Tuning::GPU),
            (Mode::Store, Choices::Tiles(1), Tuning { matvec_lanes: 8, ..Tuning::GPU }),
            (Mode::Store, Choices::Tiles(1), Tuning::CPU),
            (Mode::SwiGlu, Choices::Each(1), Tuning::CPU),
            (Mode::SwiGlu, Choices::Tiles(1), Tuning::GPU),
            (Mode::SwiGlu, Choices::Tiles(1), Tuning::CPU),
            (Mode::Gated, Choices::Each(1), Tuning { matvec_lanes: 1, ..Tuning::GPU }),
            (Mode::Gated, Choices::Tiles(1), Tuning::GPU),
            (Mode::Gated, Choices::Tiles(1), Tuning::CPU),
        ] {
            let (rows, cols, share, out_stride) = (8, 256, 1, 8);
            let shape = ExpertsSpec {
                dtype,
                mode,
                rows,
                cols,
                first_expert: 0,
                experts: 1,
                share,
                out_stride,
                choices,
                tuning,
            };
            all.push(shape.variant());
        }
    }
    all
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn twin(w: &[u32], x: &[f32], choices: &[u32], out: &mut [f32], spec: &ExpertsSpec) {
    let row_words = spec.dtype.row_words(spec.cols);
    let pairs: Vec<(u32, u32)> = match spec.choices {
        Choices::Each(count) => choices[..count].iter().copied().zip(0..).collect(),
        Choices::Tiles(count) => {
            let tiles = choices.chunks(1 + TILE).take(count);
            tiles.flat_map(|tile| tile[1..].iter().map(|c| (tile[0], *c))).filter(|(_, c)| *c != NONE).collect()
        }
    };
    let ours = spec.first_expert..spec.first_expert + spec.experts;
    let x = widened(x);
    let mut row = vec![0f64; spec.cols];
    for (expert, choice) in pairs.into_iter().filter(|(expert, _)| ours.contains(&(*expert as usize))) {
        let first = (expert as usize - spec.first_expert) * spec.rows;
        let x = &x[choice as usize / spec.share * spec.cols..][..spec.cols];
        let line = choice as usize * spec.out_stride;
        let mut gate = 0.0;
        for r in 0..spec.rows {
            spec.dtype.read_row(&w[(first + r) * row_words..][..row_words], &mut row);
            let y = dot(&row, x);
            let silu = |v: f64| v / (1.0 + (-v).exp());
            match spec.mode {
                Mode::SwiGlu if r % 2 == 0 => gate = y,
                Mode::SwiGlu => out[line + r / 2] = (silu(gate) * y) as f32,
                Mode::Gated => out[line + r] = (silu(f64::from(out[line + r])) * y) as f32,
                _ => out[line + r] = y as f32,
            }
        }
    }
}

/// Every element type and mode, of single choices and of tiles; a shard in the middle, whose neighbours' choices are
/// left alone; rows that fill no workgroup; several lane counts; choices that share rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        // Mode, rows, columns, vectors, share, experts, the shard, lanes, tiled.
        let shapes = [
            (Mode::Store, 37, 64, 3, 2, 6, 1..5, 8, false),
            (Mode::SwiGlu, 34, 96, 5, 2, 4, 0..4, 32, false),
            (Mode::Gated, 5, 288, 7, 1, 5, 2..5, 64, false),
            (Mode::Store, 9, 40, 31, 1, 3, 0..3, 1, true),
            (Mode::SwiGlu, 66, 72, 13, 3, 7, 1..6, 8, true),
            (Mode::Gated, 33, 32, 20, 2, 9, 0..9, 32, true),
        ];
        // The results of a shape do not depend on the element type, so quantized types use few shapes.
        let few = if dtype.is_quantized() { 1..5 } else { 0..6 };
        for (mode, rows, cols, vectors, share, experts_in_all, shard, lanes, tiled) in shapes[few].iter().cloned() {
            let cols = whole_blocks(dtype, cols);
            let count = vectors * share;
            let tiles = TilesSpec { choices: count, experts: experts_in_all };
            let choices = if tiled { Choices::Tiles(tiles.tiles()) } else { Choices::Each(count) };
            let (first_expert, own) = (shard.start, shard.len());
            let out_stride = rows + 3;
            // Software adapters have a tiling of their own for tiles.
            let tunings = [Tuning { matvec_lanes: lanes, ..Tuning::GPU }, Tuning::CPU];
            for tuning in tunings.into_iter().take(if tiled { 2 } else { 1 }) {
                let spec = ExpertsSpec {
                    dtype,
                    mode,
                    rows,
                    cols,
                    first_expert,
                    experts: own,
                    share,
                    out_stride,
                    choices,
                    tuning,
                };
                cases.push(case(spec, experts_in_all, vectors, tiles));
            }
        }
    }
    cases
}

/// The products of `vectors` vectors with choices among `experts_in_all` experts.
fn case(spec: ExpertsSpec, experts_in_all: usize, vectors: usize, tiles: TilesSpec) -> Case {
    let ExpertsSpec { dtype, mode, rows, cols, experts: own, share, out_stride, choices, tuning, .. } = spec;
    let kind = if tuning.is_cpu() { "in rows".to_string() } else { format!("lanes {}", tuning.matvec_lanes) };
    let name =
        format!("{dtype:?} {mode:?} {own} of {experts_in_all} experts {rows}x{cols} {choices:?} share {share} {kind}");
    let count = tiles.choices;
    Case::new("experts", name, move |device| {
        let w = device_words(weights(dtype, own * rows, cols, 3, 1.0 / (cols as f32).sqrt()), device);
        let x = device_floats(noise(vectors * cols, 4, 1.0), vectors, cols, device);
        let chosen = (0..count).map(|c| ((c * 5 + c / 3) % experts_in_all) as u32).collect();
        let chosen = u32_tensor(chosen, device);
        let list = match choices {
            Choices::Each(_) => chosen,
            Choices::Tiles(_) => expert_tiles(&chosen, tiles),
        };
        // The output has a spare row and spare columns of sentinels, and rows of other shards.
        let out = match mode {
            Mode::Gated => device_floats(noise((count + 1) * out_stride, 6, 1.0), count + 1, out_stride, device),
            _ => poison_floats(count + 1, out_stride, device),
        };
        vec![Check::floats("out", experts(&w, &x, &list, out, spec), bound(cols))]
    })
    .in_mode(mode, false)
}
