//! The hot operations of the decoder: hand-written WGSL on a GPU, plain loops over slices on the CPU.
//!
//! Each kernel has a file here and one of the same stem in `shaders/`. The file holds everything about the kernel:
//! the contract (shapes, layout, what is written), the spec (its parameters), the function to call, the launch of the
//! shader, the **twin** (the same arithmetic over slices, accumulated in f64), and the conformance cases with their
//! stated bounds. A graph that is written against the functions of this module runs on either backend: the tensors
//! that it is given decide which.
//!
//! # Adding a kernel
//! 1. Write `shaders/NAME.wgsl`. Its uniform is `struct Info`.
//! 2. Write `src/kernels/NAME.rs`: declare the uniform with `uniform!`, implement `Kernel` for the spec, and add
//!    `cases()` and `variants()`. `rms_norm.rs` is a short example.
//! 3. Add two lines to this file: `pub mod NAME;`, and the line of the kernel in the registry below.
//! 4. Call it.
//!
//! The shader tests and the conformance runs find the kernel in the registry.
pub mod attention;
pub mod attention_recurrence;
pub mod attention_row;
pub mod attention_sums;
pub mod cache_gather;
pub mod cases;
mod cube;
pub mod draft;
mod dtype;
pub mod embed;
pub mod expected_attention;
pub mod expert_sum;
pub mod expert_tiles;
pub mod experts;
mod in_place;
mod kernel;
pub mod key_similarity;
pub mod matmul;
pub mod matvec;
pub mod memory;
pub mod penalty;
pub mod query_ring;
pub mod readback;
pub(crate) mod recording;
pub mod rms_norm;
pub mod rope_append;
pub mod router;
pub mod sample;
pub mod state;
pub mod timing;
pub mod token_logit;
pub mod token_mask;
pub mod top_k;
mod twin;
pub mod uniform;
pub mod value_sizes;
pub mod variant;

use std::collections::{BTreeMap, HashSet};

use burn::tensor::{DType, Device, Int, Tensor};

use crate::dtype::Dtype;
use cases::Case;
use variant::{Variant, shared_texts};

pub use cube::{Counts, counts};
pub use dtype::f16_bits;
pub use in_place::InPlace;

/// A kernel in the registry.
#[derive(Debug, Clone, Copy)]
pub struct Registered {
    /// The stem of its files.
    pub name: &'static str,
    /// Makes the kernel's conformance cases.
    pub cases: fn() -> Vec<Case>,
    /// The specialisations that a supported model can need. They may repeat.
    pub variants: fn() -> Vec<Variant>,
}

/// Registers kernels: a line `NAME: ITEMS;` lists the kernel of the module `NAME` in [`KERNELS`], and re-exports
/// `ITEMS` of it. For `rms_norm: NormSpec, rms_norm;` it writes `pub use rms_norm::NormSpec; pub use
/// rms_norm::rms_norm;` and the entry `Registered { name: "rms_norm", cases: rms_norm::cases, variants:
/// rms_norm::variants }`.
macro_rules! registry {
    ($($kernel:ident: $($item:ident),*;)*) => {
        $($(pub use $kernel::$item;)*)*

        /// Every kernel, in the order of the conformance table.
        pub const KERNELS: &[Registered] = &[$(Registered {
            name: stringify!($kernel),
            cases: $kernel::cases,
            variants: $kernel::variants,
        }),*];
    };
}

registry! {
    embed: EmbedSpec, embed;
    matvec: LinearSpec, Mode, linear;
    matmul: ;
    router: RouterSpec, router;
    expert_tiles: TilesSpec, expert_tiles;
    experts: Choices, ExpertsSpec, experts;
    expert_sum: ExpertSumSpec, expert_sum;
    rms_norm: NormSpec, rms_norm;
    rope_append: RopeAppendSpec, rope_append;
    attention: AttentionSpec, attention;
    attention_row: AttentionRowSpec, Reduce, attention_row;
    attention_sums: AttentionSumsSpec, attention_sums;
    attention_recurrence: RecurrenceSpec, attention_recurrence;
    key_similarity: KeySimilaritySpec, key_similarity;
    value_sizes: ValueSizesSpec, value_sizes;
    expected_attention: ExpectedSpec, expected_attention;
    query_ring: QueryRingSpec, latest_queries, store_queries;
    cache_gather: GatherSpec, cache_gather;
    draft: DraftSpec, draft;
    top_k: Candidates, TopKSpec, candidates, top_k, top_k_merge;
    sample: SampleSpec, sample;
    token_logit: TokenLogitSpec, token_logit;
    penalty: PenaltySpec, penalty;
    token_mask: TokenMaskSpec, token_mask;
}

/// A hash of the texts of all shaders: 16 hexadecimal digits.
pub fn shader_fingerprint() -> String {
    // All variants of a shader have the text of its file.
    let variants = KERNELS.iter().flat_map(|kernel| (kernel.variants)());
    let texts: BTreeMap<&str, &str> = variants.map(|variant| (variant.kernel, variant.text)).collect();
    let mut hasher = blake3::Hasher::new();
    for text in shared_texts().chain(texts.into_values()) {
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_string()
}

/// The specialisations that a model of a supported architecture can need, each once: every packing, mode, reduction
/// and head group, the usual head dimensions, and one, some and most vectors. The shader tests validate and translate
/// them.
pub fn variants() -> Vec<Variant> {
    let mut seen = HashSet::new();
    let all = KERNELS.iter().flat_map(|kernel| (kernel.variants)());
    all.filter(|variant| seen.insert(variant.clone())).collect()
}

/// The most rows that are forwarded at once: WebGPU limits a grid dimension to 65,535 workgroups.
pub const MOST_ROWS: usize = 16_384;

/// The most rows whose products do not depend, bit for bit, on how many they are: a decode step.
pub const MOST_TOGETHER: usize = matvec::MOST;

/// In chunks of at least this many rows of one sequence, the result of a row does not depend, bit for bit, on the
/// number of rows: each kernel adds in the same order for all such chunks.
pub const ALIKE_ROWS: usize = attention::SPLIT_ROWS + 1;
// The tilings of `matmul` must also be the same from this number of rows on.
const _: () = assert!(ALIKE_ROWS > matmul::NARROW.n && ALIKE_ROWS > MOST_TOGETHER);

/// The layer, for kernels that read or write its keys and values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Element type of the cache: `F32` or `F16`.
    pub dtype: Dtype,
    /// Head dimension: a multiple of 8, at most 256.
    pub d: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of KV heads.
    pub kv_heads: usize,
    /// Offset in the state, in words, of the layer's entries, one for each sequence.
    pub layer_table_offset: usize,
    /// Rows of the RoPE table.
    pub positions: usize,
    /// Whether a token's position is its slot and keys are stored unrotated.
    pub compact: bool,
}

impl LayerSpec {
    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The factor of products of queries and keys, 1/√d, in f32 as shaders take it.
    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// Layers for [`variants`]: both cache types, the usual head dimensions, keys stored rotated and unrotated; one
    /// KV head of `group` query heads, whose queries fit 16 KiB of workgroup memory.
    fn usual(group: usize) -> impl Iterator<Item = Self> {
        let dims = [8, 16, 32, 64, 80, 96, 128, 256].into_iter().filter(move |d| group * d * 4 <= 16_384);
        let stored =
            [Dtype::F32, Dtype::F16].into_iter().flat_map(|dtype| [false, true].map(|compact| (dtype, compact)));
        dims.flat_map(move |d| {
            stored.clone().map(move |(dtype, compact)| Self {
                dtype,
                d,
                heads: group,
                kv_heads: 1,
                layer_table_offset: 0,
                positions: 1,
                compact,
            })
        })
    }
}

/// A u32 tensor of `words` on `device`.
pub fn u32_tensor(words: Vec<u32>, device: &Device) -> Tensor<1, Int> {
    let shape = [words.len()];
    memory::filled(words, shape, device, DType::U32)
}

/// An f32 tensor of `values` on `device`.
pub fn f32_tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    memory::filled(values, shape, device, DType::F32)
}
