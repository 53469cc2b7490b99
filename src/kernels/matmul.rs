//! Matrix times many vectors: prefill and probe chunks. Contract, twin and bound are those of
//! [`matvec`](super::matvec); only the tiling differs. On a GPU, `matmul.wgsl` unpacks a tile of weights once, into
//! workgroup memory, for 32 or 64 vectors. Where invocations are lanes of a CPU's vector unit, `matmul_rows.wgsl` is
//! launched instead, for the reasons given there.
use super::cases::{Case, whole_blocks};
use super::cube::launch;
use super::matvec::{LinearSpec, Mode, case, usual};
use super::uniform::uniform;
use super::variant::Variant;
use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::wgpu::CubeTensor;

/// A tiling of `matmul.wgsl`.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    /// Rows of a workgroup.
    rows: usize,
    /// Vectors of a workgroup.
    pub n: usize,
    /// Columns that workgroup memory holds at once.
    depth: usize,
    /// Parts of the columns, each summed by invocations of its own.
    slices: usize,
}

/// The tiling for prompts.
const WIDE: Tiling = Tiling { rows: 64, n: 64, depth: 16, slices: 1 };
/// The tiling for probes and batches. A whole chunk fits one column of workgroups, so that weights are read once.
pub(super) const NARROW: Tiling = Tiling { rows: 32, n: 32, depth: 64, slices: 4 };

impl Tiling {
    fn new(n: usize) -> Self {
        if n <= NARROW.n { NARROW } else { WIDE }
    }

    const fn threads(&self) -> usize {
        self.rows / 4 * (self.n / 8) * self.slices
    }
}

/// Invocations of a workgroup of `matmul_rows.wgsl`: the lanes of one vector.
const ROWS_THREADS: usize = 8;
/// Rows of an invocation there: the fastest of 2 to 16 on lavapipe.
const ROWS_EACH: usize = 8;
/// Vectors of a workgroup there.
const ROWS_N: usize = 8;

uniform! {
    struct Info {
        rows: u32, cols: u32, shard_first_row: u32, out_stride: u32, n: u32, pad0: u32, pad1: u32, pad2: u32,
    }
}

impl LinearSpec {
    fn matmul_variant(&self) -> Variant {
        let [dtype, mode, has_bias] = [self.dtype.code(), self.mode as u32, self.has_bias as u32];
        let product = [("DTYPE", dtype), ("MODE", mode), ("HAS_BIAS", has_bias)];
        if self.tuning.is_cpu() {
            let tiles = [("THREADS", ROWS_THREADS as u32), ("EACH", ROWS_EACH as u32), ("TILE_N", ROWS_N as u32)];
            let text = include_str!("../../shaders/matmul_rows.wgsl");
            return Variant::new::<Info>("matmul_rows", text, tiles.into_iter().chain(product));
        }
        let t = Tiling::new(self.n);
        let tiles = [
            ("THREADS", t.threads()),
            ("TILE_ROWS", t.rows),
            ("TILE_N", t.n),
            ("DEPTH", t.depth),
            ("SLICES", t.slices),
        ];
        let constants = tiles.map(|(name, value)| (name, value as u32)).into_iter().chain(product);
        Variant::new::<Info>("matmul", include_str!("../../shaders/matmul.wgsl"), constants)
    }

    pub(super) fn launch_matmul(&self, buffers: &[&CubeTensor]) {
        assert!(self.norm.is_none(), "many rows are normalised by a kernel of their own");
        let tiling = Tiling::new(self.n);
        let (rows, n) = match self.tuning.is_cpu() {
            true => (ROWS_EACH * ROWS_THREADS, ROWS_N),
            false => (tiling.rows, tiling.n),
        };
        let info = Info {
            rows: self.rows as u32,
            cols: self.cols as u32,
            shard_first_row: self.shard_first_row as u32,
            out_stride: self.out_stride as u32,
            n: self.n as u32,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        launch(&self.matmul_variant(), [self.rows.div_ceil(rows), self.n.div_ceil(n), 1], buffers, info);
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let tilings = [(9, Tuning::CPU), (9, Tuning::GPU), (99, Tuning::GPU)];
    tilings.into_iter().flat_map(|(n, tuning)| usual(n, tuning)).map(|spec| spec.matmul_variant()).collect()
}

/// Every element type and mode, in all three tilings; tiles filled, exceeded by one and far from full.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in Dtype::ALL {
        let shapes = [
            (Mode::Store, true, 64, 64, 0, 32),
            (Mode::Store, false, 65, 40, 3, 33),
            (Mode::Add, false, 31, 160, 0, 9),
            (Mode::Add, true, 130, 8, 1, 70),
            (Mode::SwiGlu, false, 70, 96, 2, 31),
            (Mode::SwiGlu, false, 70, 96, 2, 33),
            (Mode::Add, true, 131, 160, 3, 97),
            (Mode::Gated, false, 34, 288, 1, 12),
        ];
        // The results of a shape do not depend on the element type, so quantized types use few and small shapes.
        let quantized = [
            (Mode::Store, false, 65, 40, 3, 33),
            (Mode::Add, false, 31, 160, 0, 9),
            (Mode::SwiGlu, false, 34, 96, 2, 12),
            (Mode::Gated, false, 34, 288, 1, 12),
        ];
        let shapes = if dtype.is_quantized() { &quantized[..] } else { &shapes[..] };
        for &(mode, has_bias, rows, cols, shard_first_row, n) in shapes {
            let cols = whole_blocks(dtype, cols);
            let out_stride = shard_first_row + rows + 5;
            for tuning in [Tuning::CPU, Tuning::GPU] {
                let norm = None;
                let spec =
                    LinearSpec { dtype, mode, has_bias, rows, cols, shard_first_row, out_stride, n, norm, tuning };
                cases.push(case("matmul", spec).tiled_for(tuning.kind));
            }
        }
    }
    cases
}
