//! The kernel that prunes: it copies the rows of the kept slots to the front of a new buffer of the exact size.
//!
//! Contract: for every sequence, KV head and plane (keys, then values), row `i < kept` of the new region is row
//! `keep[first + head · stride + i]` of the old one, bit for bit. Rows beyond `kept` are not written. A sequence's
//! region has `planes · cap` rows of `row_words` words from row `base` on. Plane `p` belongs to KV head `p %
//! kv_heads`: a cache has `2 · kv_heads` planes (keys and values of each head), running sums have `kv_heads`. `moves`
//! `[seqs, 8]`: old base, old cap, new base, new cap, kept, first index into `keep`, stride per KV head (0: all heads
//! keep the same slots), unused.
//!
//! Bound: exact. It moves u32 words, four at a time where a row is a multiple of four words, and does not interpret
//! them.
use super::cases::{Bound, Case, Check, device_words};
use super::cube::launch;
use super::kernel::{Kernel, read, run};
use super::memory::{POISON_WORD, empty};
use super::twin::{slice, words};
use super::uniform::uniform;
use super::variant::Variant;
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::tensor::{DType, Int, Tensor};

/// Words of one sequence's entry in `moves`.
pub const MOVE: usize = 8;

/// Parameters of [`cache_gather`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatherSpec {
    /// Words of a row.
    pub row_words: usize,
    /// Number of KV heads.
    pub kv_heads: usize,
    /// Planes of a region, a multiple of `kv_heads`.
    pub planes: usize,
    /// Number of sequences.
    pub seqs: usize,
    /// The largest kept count of any sequence.
    pub most_kept: usize,
    /// Words of the new buffer.
    pub out_words: usize,
}

/// The kept rows of `kv` in a new buffer of `spec.out_words` words. The old buffer is released as soon as the copy
/// has finished, if `kv` was the only handle to it.
pub fn cache_gather(
    kv: Tensor<1, Int>,
    keep: &Tensor<1, Int>,
    moves: &Tensor<1, Int>,
    spec: GatherSpec,
) -> Tensor<1, Int> {
    let [out] = run(&spec, [kv.into_dispatch(), read(keep), read(moves)]);
    Tensor::from_dispatch(out)
}

/// Invocations of a workgroup.
const THREADS: usize = 256;
/// Units that an invocation moves.
const EACH: usize = 4;

uniform! {
    struct Info { kv_heads: u32, planes: u32, most_kept: u32, pad0: u32 }
}

impl GatherSpec {
    fn variant(&self) -> Variant {
        let constants = [
            ("UNIT", self.unit() as u32),
            ("UNITS", self.units() as u32),
            ("THREADS", THREADS as u32),
            ("EACH", EACH as u32),
        ];
        Variant::new::<Info>("cache_gather", include_str!("../../shaders/cache_gather.wgsl"), constants)
    }

    /// Words that an invocation moves at once. Regions begin at whole rows, so this follows from the length of a row.
    fn unit(&self) -> usize {
        if self.row_words.is_multiple_of(4) { 4 } else { 1 }
    }

    /// Units of a row.
    fn units(&self) -> usize {
        self.row_words / self.unit()
    }
}

impl Kernel<3, 1> for GatherSpec {
    fn launch(&self, [kv, keep, moves]: [CubeTensor; 3]) -> [CubeTensor; 1] {
        let out = empty(&kv, vec![self.out_words], DType::U32);
        let groups = (self.most_kept * self.units()).div_ceil(THREADS * EACH);
        let groups = [groups.min(65_535), groups.div_ceil(65_535), self.planes * self.seqs];
        let [kv_heads, planes, most_kept] = [self.kv_heads, self.planes, self.most_kept].map(|v| v as u32);
        if self.most_kept > 0 {
            let info = Info { kv_heads, planes, most_kept, pad0: 0 };
            launch(&self.variant(), groups, &[&kv, &keep, &moves, &out], info);
        }
        [out]
    }

    fn twin(&self, [kv, keep, moves]: [FlexTensor; 3]) -> [FlexTensor; 1] {
        [words(twin(slice(&kv), slice(&keep), slice(&moves), self))]
    }
}

pub(super) fn variants() -> Vec<Variant> {
    let spec =
        |row_words| GatherSpec { row_words, kv_heads: 1, planes: 2, seqs: 1, most_kept: 1, out_words: row_words };
    [1, 6, 8, 16, 32, 64, 128].map(|row_words| spec(row_words).variant()).into()
}

fn twin(kv: &[u32], keep: &[u32], moves: &[u32], spec: &GatherSpec) -> Vec<u32> {
    let mut out = vec![POISON_WORD; spec.out_words];
    for m in moves.chunks_exact(MOVE).take(spec.seqs) {
        let [base, cap, new_base, new_cap, kept, first, stride] = std::array::from_fn(|i| m[i] as usize);
        for plane in 0..spec.planes {
            let keep = &keep[first + plane % spec.kv_heads * stride..][..kept];
            for (i, &slot) in keep.iter().enumerate().filter(|(_, slot)| (**slot as usize) < cap) {
                let source = (base + plane * cap + slot as usize) * spec.row_words;
                let target = (new_base + plane * new_cap + i) * spec.row_words;
                out[target..target + spec.row_words].copy_from_slice(&kv[source..source + spec.row_words]);
            }
        }
    }
    out
}

/// One and three sequences; shared sets and a set for each head; nothing, one, some and all slots kept. Words
/// that are NaN, infinite and subnormal as floats must be copied unchanged.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (row_words, kv_heads, planes, per_head, caps, keeps) in [
        // The rows of the built-in model, as in `attention`.
        (16, 1, 2, false, vec![70], vec![(0..70).collect::<Vec<u32>>()]),
        (8, 2, 4, false, vec![10], vec![vec![0, 3, 4, 9]]),
        (4, 3, 6, false, vec![5, 300, 9], vec![vec![4], (0..300).filter(|s| s % 3 != 1).collect(), vec![]]),
        (64, 2, 4, true, vec![33, 12], vec![vec![0, 1, 5, 30, 31, 32], vec![7, 11]]),
        (6, 2, 4, false, vec![9, 40], vec![vec![0, 2, 8], (0..40).filter(|s| s % 5 != 1).collect()]),
        (20, 2, 4, true, vec![33], vec![vec![0, 1, 5, 30, 31, 32]]),
        (1, 3, 3, true, vec![33, 12], vec![vec![0, 1, 5, 30, 31, 32], vec![7, 11]]),
        (8, 1, 2, false, vec![6], vec![vec![]]),
        // Several workgroups, the last one partly idle.
        (16, 2, 4, false, vec![1400], vec![(0..1400).filter(|s| s % 11 != 3).collect()]),
    ] {
        let kept: Vec<usize> = keeps.iter().map(Vec::len).collect();
        let name = format!(
            "row {row_words} words, {planes} planes of {kv_heads} KV heads, caps {caps:?}, kept {kept:?}, per head {per_head}"
        );
        cases.push(Case::new("cache_gather", name, move |device| {
            let (mut moves, mut flat, mut base, mut new_base) = (Vec::new(), Vec::new(), 0, 0);
            for (cap, keep) in caps.iter().zip(&keeps) {
                let new_cap = keep.len() + 3;
                let stride = if per_head { keep.len() } else { 0 };
                let entry = [base, *cap, new_base, new_cap, keep.len(), flat.len(), stride, 0];
                moves.extend(entry.map(|v| v as u32));
                for head in 0..if per_head { kv_heads } else { 1 } {
                    // The other heads keep other slots: the mirrored ones, in ascending order.
                    let mirrored = keep.iter().rev().map(|s| *cap as u32 - 1 - s);
                    flat.extend(if head % 2 == 0 { keep.clone() } else { mirrored.collect() });
                }
                (base, new_base) = (base + planes * cap, new_base + planes * new_cap);
            }
            if flat.is_empty() {
                flat.push(0);
            }
            let hostile = |i: usize| match i % 5 {
                0 => 0x7fc0_0000 + i as u32,
                1 => 0xff80_0000,
                2 => 1 + i as u32,
                _ => (i as u32).wrapping_mul(2_654_435_761),
            };
            let kv = device_words((0..base * row_words).map(hostile).collect(), device);
            let (seqs, most_kept) = (caps.len(), keeps.iter().map(Vec::len).max().unwrap_or(0));
            let spec = GatherSpec { row_words, kv_heads, planes, seqs, most_kept, out_words: new_base * row_words };
            let out = cache_gather(kv, &device_words(flat, device), &device_words(moves, device), spec);
            vec![Check::u32("out", out, row_words, Bound::Exact)]
        }));
    }
    cases
}
