//! Matrix times many vectors: prefill and probe chunks. Contract, twin and bound are those of [`matvec`](super::matvec);
//! only the tiling differs. Where invocations are the threads of a GPU, `matmul.wgsl`: a tile of weights is unpacked once,
//! into workgroup memory, for 32 or 64 vectors. Where they are the lanes of a CPU's vectors, `matmul_rows.wgsl`, for the reasons
//! given there.
use super::cases::{Case, whole_blocks};
use super::matvec::{LinearSpec, Mode, case};
use super::variant::Variant;
use crate::device::Tuning;
use crate::dtype::Dtype;

/// A tiling of `matmul.wgsl`: rows and vectors of a workgroup, columns it holds, and slices of the columns.
#[derive(Clone, Copy)]
struct Tiling {
    rows: usize,
    n: usize,
    depth: usize,
    slices: usize,
}

/// For prompts.
const WIDE: Tiling = Tiling { rows: 64, n: 64, depth: 16, slices: 1 };
/// For probes and batches: a whole chunk in one column of workgroups, so that weights are read once.
const NARROW: Tiling = Tiling { rows: 32, n: 32, depth: 64, slices: 4 };

impl Tiling {
    fn of(n: usize) -> Self {
        if n <= NARROW.n { NARROW } else { WIDE }
    }

    const fn threads(&self) -> usize {
        self.rows / 4 * (self.n / 8) * self.slices
    }
}

/// Invocations of a workgroup in `matmul_rows.wgsl`: the lanes of one vector.
const ROWS_THREADS: usize = 8;
/// Rows of an invocation there, and vectors of a workgroup: the fastest of 2 to 16 on lavapipe.
const ROWS_EACH: usize = 8;
const ROWS_N: usize = 8;

impl LinearSpec {
    pub(super) fn matmul_variant(&self) -> Variant {
        let [dtype, mode, has_bias] = [self.dtype.code(), self.mode as u32, self.has_bias as u32];
        let of_both = [("DTYPE", dtype), ("MODE", mode), ("HAS_BIAS", has_bias)];
        let (kernel, text, tiles) = if self.tuning.is_cpu() {
            let (each, n) = (ROWS_EACH as u32, ROWS_N as u32);
            let tiles = vec![("THREADS", ROWS_THREADS as u32), ("EACH", each), ("TILE_N", n)];
            ("matmul_rows", include_str!("../../shaders/matmul_rows.wgsl"), tiles)
        } else {
            let t = Tiling::of(self.n);
            let tiles = [("TILE_ROWS", t.rows), ("TILE_N", t.n), ("DEPTH", t.depth), ("SLICES", t.slices)];
            let tiles = [("THREADS", t.threads())].into_iter().chain(tiles).map(|(name, v)| (name, v as u32)).collect();
            ("matmul", include_str!("../../shaders/matmul.wgsl"), tiles)
        };
        Variant { kernel, text, constants: tiles.into_iter().chain(of_both).collect() }
    }

    pub(super) fn matmul_groups(&self) -> [usize; 3] {
        match self.tuning.is_cpu() {
            true => [self.rows.div_ceil(ROWS_EACH * ROWS_THREADS), self.n.div_ceil(ROWS_N), 1],
            false => {
                let tiling = Tiling::of(self.n);
                [self.rows.div_ceil(tiling.rows), self.n.div_ceil(tiling.n), 1]
            }
        }
    }

    pub(super) fn matmul_info(&self) -> [u32; 8] {
        [self.rows, self.cols, self.shard_first_row, self.out_stride, self.n, 0, 0, 0].map(|v| v as u32)
    }
}

/// Every packing and mode, in all three tilings; tiles filled, exceeded by one and far from full.
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
        ];
        for (mode, has_bias, rows, cols, shard_first_row, n) in shapes {
            let cols = whole_blocks(dtype, cols);
            let out_stride = shard_first_row + rows + 5;
            for tuning in [Tuning::CPU, Tuning::GPU] {
                let spec = LinearSpec { dtype, mode, has_bias, rows, cols, shard_first_row, out_stride, n, tuning };
                cases.push(case("matmul", spec));
            }
        }
    }
    cases
}
