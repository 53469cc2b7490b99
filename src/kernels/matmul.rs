//! Matrix times many vectors: prefill and probe chunks. Contract, twin and bound are those of [`matvec`](super::matvec);
//! only the tiling differs (a tile of weights is unpacked once for 32 vectors).
use super::Words;
use super::cases::Case;
use super::launch::Variant;
use super::matvec::{LinearSpec, Mode, case};

const TILE_ROWS: usize = 64;
const TILE_N: usize = 32;

impl LinearSpec {
    pub(super) fn matmul_variant(&self) -> Variant {
        let constants = vec![
            ("THREADS", (TILE_ROWS * TILE_N / 16) as u32),
            ("TILE_ROWS", TILE_ROWS as u32),
            ("TILE_N", TILE_N as u32),
            ("DTYPE", self.words.code()),
            ("MODE", self.mode as u32),
            ("HAS_BIAS", self.has_bias as u32),
        ];
        Variant { kernel: "matmul", text: include_str!("../../shaders/matmul.wgsl"), constants }
    }

    pub(super) fn matmul_groups(&self) -> [usize; 3] {
        [self.rows.div_ceil(TILE_ROWS), self.n.div_ceil(TILE_N), 1]
    }

    pub(super) fn matmul_info(&self) -> [u32; 8] {
        [self.rows, self.cols, self.row0, self.out_stride, self.n, 0, 0, 0].map(|v| v as u32)
    }
}

/// Every packing and mode; tiles filled, exceeded by one and far from full.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for words in [Words::F32, Words::F16, Words::BF16] {
        for (mode, has_bias, rows, cols, row0, n) in [
            (Mode::Store, true, 64, 64, 0, 32),
            (Mode::Store, false, 65, 40, 3, 33),
            (Mode::Add, false, 31, 160, 0, 9),
            (Mode::Add, true, 130, 8, 1, 70),
            (Mode::SwiGlu, false, 70, 96, 2, 31),
        ] {
            let out_stride = row0 + rows + 5;
            let spec = LinearSpec { words, mode, has_bias, rows, cols, row0, out_stride, n, lanes: 8 };
            cases.push(case("matmul", spec));
        }
    }
    cases
}
