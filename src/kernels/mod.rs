//! The hot operations of the decoder: one burn backend extension, hand-written WGSL on the GPU, plain loops on the CPU.
//!
//! [`Kernels`] is implemented for burn's `Cube` backend by the shaders in `shaders/` (`cube`) and for `Flex`, its CPU
//! backend, by the **twins**: the same arithmetic over slices, accumulated in f64. A graph written against the functions
//! of this module runs on either, chosen by the device its tensors live on.
//!
//! Every kernel has one file here and one of the same stem in `shaders/`. The file holds the contract (shapes, layout,
//! what is written), the parameters, the twin and the conformance cases with their stated bounds.
pub mod attention;
pub mod attention_row;
pub mod attention_sums;
pub mod cache_gather;
pub mod cases;
mod cube;
pub mod embed;
mod in_place;
pub mod key_similarity;
pub mod matmul;
pub mod matvec;
pub mod memory;
pub mod query_ring;
pub mod readback;
pub mod rms_norm;
pub mod rope_append;
pub mod sample;
pub mod top_k;
mod twin;
pub mod variant;

use crate::device::Tuning;
use crate::dtype::Dtype;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

pub use attention::AttentionSpec;
pub use attention_row::{AttentionRowSpec, Reduce};
pub use attention_sums::AttentionSumsSpec;
pub use cache_gather::GatherSpec;
pub use embed::EmbedSpec;
pub use in_place::InPlace;
pub use key_similarity::KeySimilaritySpec;
pub use matvec::{LinearSpec, Mode};
pub use query_ring::QueryRingSpec;
pub use rms_norm::NormSpec;
pub use rope_append::RopeAppendSpec;
pub use sample::SampleSpec;
pub use top_k::TopKSpec;

/// Rows that are forwarded at once at most: a grid dimension of WebGPU ends at 65,535.
pub const MOST_ROWS: usize = 16_384;

/// How values lie in the u32 words of a weight matrix or a cache row: see `weights::pack`. A cache is `F32` or `F16`. `cols` is a
/// multiple of 8 everywhere in the graph (the loader refuses others), so a row is a whole number of 4-word vectors for
/// every packing.

/// What every kernel that reads or writes a layer's keys is told about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Packing of the cache: `F32` or `F16`.
    pub dtype: Dtype,
    /// Head dimension: a multiple of 8, at most 128.
    pub d: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Word of the state where the layer's table begins.
    pub layer_table_offset: usize,
    /// Rows of the RoPE table.
    pub positions: usize,
    /// Tokens stand at their slot, and keys are stored unrotated.
    pub compact: bool,
}

impl LayerSpec {
    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// What products of queries and keys are multiplied by, in f32 as shaders take it.
    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }
}

impl Dtype {
    /// The number by which shaders know it (`common.wgsl`).
    pub(crate) const fn code(self) -> u32 {
        match self {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::BF16 => 2,
            Dtype::Q8_0 => 3,
            Dtype::Q4_0 => 4,
        }
    }

    /// Value `column` of the weight row `words` of `cols` values, exact in f64.
    pub(crate) fn weight(self, words: &[u32], cols: usize, column: usize) -> f64 {
        if self.is_quantized() { self.quantized(words, cols, column) } else { self.get(words, column) }
    }

    /// Value `column` of the row that starts at `words[0]`, exact in f64. Not for quantized rows: see [`weight`](Self::weight).
    pub(crate) fn get(self, words: &[u32], column: usize) -> f64 {
        let half = |word: u32| if column.is_multiple_of(2) { word as u16 } else { (word >> 16) as u16 };
        match self {
            Dtype::F32 => f32::from_bits(words[column]) as f64,
            Dtype::F16 => half::f16::from_bits(half(words[column / 2])).to_f64(),
            _ => half::bf16::from_bits(half(words[column / 2])).to_f64(),
        }
    }

    /// Packs `values`, rounding to nearest even; f16 saturates at ±65504 as the cache's writer does. Not for quantized rows.
    pub(crate) fn pack(self, values: &[f32]) -> Vec<u32> {
        let half = |v: f32| match self {
            Dtype::F16 => f16_bits(v),
            _ => half::bf16::from_f32(v).to_bits(),
        } as u32;
        match self {
            Dtype::F32 => values.iter().map(|v| v.to_bits()).collect(),
            _ => values.chunks(2).map(|p| half(p[0]) | half(*p.get(1).unwrap_or(&0.0)) << 16).collect(),
        }
    }
}

/// f32 to f16 bits, nearest even, finite overflow and infinities saturated: what `f16_bits` in `common.wgsl` does.
pub fn f16_bits(value: f32) -> u16 {
    let bits = half::f16::from_f32(value).to_bits();
    if value.is_nan() {
        0x7e00 | (bits & 0x8000)
    } else if bits & 0x7c00 == 0x7c00 {
        0x7bff | (bits & 0x8000)
    } else {
        bits
    }
}

/// Layout of the device-resident state: see `common.wgsl`, which this mirrors, and `cache.rs`, which fills it.
pub mod state {
    /// Words of a sequence's header.
    pub const SEQ: usize = 16;
    /// The pending token: sampled, not yet forwarded.
    pub const TOKEN: usize = 0;
    /// Logical position of the next token to be forwarded.
    pub const POSITION: usize = 1;
    /// Tokens sampled so far.
    pub const STEP: usize = 2;
    /// f32: the largest share of the probability a sampler asked for that lay outside its candidates.
    pub const MISSED: usize = 3;
    /// f32; 0: the most likely token.
    pub const TEMPERATURE: usize = 4;
    /// 0: all.
    pub const TOP_K: usize = 5;
    /// f32.
    pub const TOP_P: usize = 6;
    /// f32.
    pub const MIN_P: usize = 7;
    /// f32: what negative logits of seen tokens are multiplied by.
    pub const PENALTY: usize = 8;
    /// f32: what the others are; its inverse.
    pub const RELIEF: usize = 9;
    /// Low half of the seed.
    pub const SEED_LOW: usize = 10;
    /// High half of the seed.
    pub const SEED_HIGH: usize = 11;
    /// Words of a layer's entry for one sequence.
    pub const ROW: usize = 4;
    /// Cached slots.
    pub const LEN: usize = 0;
    /// First row of the sequence's region in the layer's buffer.
    pub const BASE: usize = 1;
    /// Slots the region has room for.
    pub const CAP: usize = 2;
    /// The id that `sample` writes where a logit is not finite.
    pub const BROKEN: u32 = u32::MAX;
}

/// The extension: every operation returns the tensors it wrote. A tensor named *in place* comes by value, must be the
/// only handle to its buffer, and goes back as the same buffer.
///
/// Integer tensors hold u32 words. Float tensors are f32 and contiguous (made so where they are not).
#[backend_extension(Cube, Flex)]
pub trait Kernels: Backend {
    /// See [`mod@embed`]. `out` in place.
    fn embed(
        table: IntTensor<Self>,
        ids: IntTensor<Self>,
        out: FloatTensor<Self>,
        spec: EmbedSpec,
    ) -> FloatTensor<Self>;

    /// See [`matvec`]. `out` in place.
    fn matvec(
        w: IntTensor<Self>,
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        out: FloatTensor<Self>,
        spec: LinearSpec,
    ) -> FloatTensor<Self>;

    /// See [`matmul`]. `out` in place.
    fn matmul(
        w: IntTensor<Self>,
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        out: FloatTensor<Self>,
        spec: LinearSpec,
    ) -> FloatTensor<Self>;

    /// See [`mod@rms_norm`].
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, spec: NormSpec) -> FloatTensor<Self>;

    /// See [`mod@rope_append`]. Returns the rotated queries and the cache, `kv` in place.
    fn rope_append(
        qkv: FloatTensor<Self>,
        rope: FloatTensor<Self>,
        state: IntTensor<Self>,
        kv: IntTensor<Self>,
        norm: FloatTensor<Self>,
        spec: RopeAppendSpec,
    ) -> (FloatTensor<Self>, IntTensor<Self>);

    /// See [`mod@attention`]. Returns the values and the log-sum-exp.
    fn attention(
        q: FloatTensor<Self>,
        kv: IntTensor<Self>,
        state: IntTensor<Self>,
        rope: FloatTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`mod@attention_row`].
    fn attention_row(
        q: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        kv: IntTensor<Self>,
        state: IntTensor<Self>,
        rope: FloatTensor<Self>,
        spec: AttentionRowSpec,
    ) -> FloatTensor<Self>;

    /// See [`mod@attention_sums`]. `sums` in place.
    fn attention_sums(
        q: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        kv: IntTensor<Self>,
        state: IntTensor<Self>,
        rope: FloatTensor<Self>,
        sums: IntTensor<Self>,
        spec: AttentionSumsSpec,
    ) -> IntTensor<Self>;

    /// See [`mod@key_similarity`].
    fn key_similarity(
        kv: IntTensor<Self>,
        state: IntTensor<Self>,
        rope: FloatTensor<Self>,
        spec: KeySimilaritySpec,
    ) -> FloatTensor<Self>;

    /// See [`query_ring`]. `ring` in place.
    fn store_queries(
        q: FloatTensor<Self>,
        state: IntTensor<Self>,
        ring: FloatTensor<Self>,
        spec: QueryRingSpec,
    ) -> FloatTensor<Self>;

    /// See [`query_ring`].
    fn latest_queries(ring: FloatTensor<Self>, state: IntTensor<Self>, spec: QueryRingSpec) -> FloatTensor<Self>;

    /// See [`mod@cache_gather`].
    fn cache_gather(
        kv: IntTensor<Self>,
        keep: IntTensor<Self>,
        moves: IntTensor<Self>,
        spec: GatherSpec,
    ) -> IntTensor<Self>;

    /// See [`mod@top_k`], of logits. Returns the lists and the sums.
    fn top_k(
        logits: FloatTensor<Self>,
        state: IntTensor<Self>,
        seen: IntTensor<Self>,
        spec: TopKSpec,
    ) -> (IntTensor<Self>, FloatTensor<Self>);

    /// See [`mod@top_k`], of lists.
    fn top_k_merge(
        lists: IntTensor<Self>,
        state: IntTensor<Self>,
        seen: IntTensor<Self>,
        spec: TopKSpec,
    ) -> IntTensor<Self>;

    /// See [`mod@sample`]. `state` and `seen` in place.
    fn sample(
        lists: IntTensor<Self>,
        sums: FloatTensor<Self>,
        state: IntTensor<Self>,
        seen: IntTensor<Self>,
        spec: SampleSpec,
    ) -> (IntTensor<Self>, IntTensor<Self>);
}

/// The specialisations a model of a supported architecture can ask for: every packing, mode, reduction and head group, the
/// usual head dimensions, one, some and most vectors. What the shader tests validate and translate.
pub fn variants() -> Vec<variant::Variant> {
    const HEAD_DIMS: [usize; 7] = [8, 16, 32, 64, 80, 96, 128];
    let (all, caches) = (Dtype::ALL, [Dtype::F32, Dtype::F16]);
    let mut list = vec![NormSpec { n: 1, first_row: 0, cols: 8, eps: 1e-6 }.variant()];
    for row_words in [1, 6, 8, 16, 32, 64, 128] {
        let spec = GatherSpec { row_words, kv_heads: 1, planes: 2, seqs: 1, most_kept: 1, out_words: row_words };
        list.push(spec.variant());
    }
    let ring = QueryRingSpec { n: 1, cols: 8, chunk: 1, row_seq_offset: 0, width: 1 };
    list.extend([ring.variant(false), ring.variant(true)]);
    for k in [1, top_k::MOST] {
        let spec = |merge| TopKSpec { count: 8, n: 1, k, merge, row_seq_offset: 0, seen_words: 1 }.variant();
        list.extend([false, true].map(spec));
        let (n, lists, chunks, row_seq_offset, layers, all_seqs, ring, advance, seen_words) =
            (1, 1, 1, 0, 1, 1, 1, 1, 1);
        let spec = SampleSpec { n, k, lists, chunks, row_seq_offset, layers, all_seqs, ring, advance, seen_words };
        list.push(spec.variant());
    }
    for dtype in all {
        let (shard_first_row, rows, vocab) = (0, 8, 8);
        let embed = |pending| EmbedSpec { dtype, n: 1, cols: 8, shard_first_row, rows, vocab, pending }.variant();
        list.extend([None, Some(0)].map(embed));
        for (mode, has_bias) in [Mode::Store, Mode::Add, Mode::SwiGlu].into_iter().flat_map(|m| [(m, false), (m, true)])
        {
            let spec = |n, tuning| LinearSpec {
                dtype,
                mode,
                has_bias,
                rows: 8,
                cols: 8,
                shard_first_row: 0,
                out_stride: 8,
                n,
                tuning,
            };
            list.extend(
                [(9, Tuning::CPU), (9, Tuning::GPU), (99, Tuning::GPU)].map(|(n, t)| spec(n, t).matmul_variant()),
            );
            for n in [1, 2, 3, 5, matvec::MOST] {
                list.extend(
                    [1, 8, 16, 32, 64]
                        .map(|lanes| spec(n, Tuning { matvec_lanes: lanes, ..Tuning::GPU }).matvec_variant()),
                );
            }
        }
    }
    for (dtype, d) in caches.into_iter().flat_map(|dtype| HEAD_DIMS.map(|d| (dtype, d))) {
        let (heads, kv_heads, layer_table_offset, row_seq_offset, positions, already_cached) = (1, 1, 0, 0, 1, 0);
        for (norm, compact) in [(None, false), (Some(1e-6), false), (None, true), (Some(1e-6), true)] {
            let (n, chunk) = (1, 1);
            let layer = LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions, compact };
            let spec = RopeAppendSpec { layer, n, chunk, row_seq_offset, norm };
            list.push(spec.variant());
        }
        for compact in [false, true] {
            let (slots, seq) = (1, 0);
            let layer = |heads| LayerSpec { dtype, d, heads, kv_heads, layer_table_offset, positions, compact };
            let similarity = KeySimilaritySpec { layer: layer(1), slots, seq };
            list.extend([similarity.variant(0), similarity.variant(1)]);
            for heads in (1..=16).filter(|g| g * d * 4 <= 16_384) {
                let tunings = [Tuning::CPU, Tuning::GPU];
                let lengths = [(1, 1), (1, 1000), (64, 64), (64, 1000), (200, 200)];
                for (tuning, (n, most_seen)) in tunings.into_iter().flat_map(|tuning| lengths.map(|of| (tuning, of))) {
                    let chunk = n;
                    let spec = AttentionSpec {
                        layer: layer(heads),
                        n,
                        chunk,
                        row_seq_offset,
                        most_seen,
                        already_cached,
                        tuning,
                    };
                    list.extend([spec.variant(), spec.combine_variant()]);
                }
                for reduce in [Reduce::None, Reduce::KvHead, Reduce::Layer] {
                    let row = 0;
                    let spec = AttentionRowSpec { layer: layer(heads), row, slots, seq, reduce };
                    list.push(spec.variant());
                }
                for mean in [false, true] {
                    let (chunk, seqs) = (1, 1);
                    let spec = AttentionSumsSpec {
                        layer: layer(heads),
                        chunk,
                        row_seq_offset,
                        seqs,
                        already_cached,
                        slots,
                        mean,
                    };
                    list.push(spec.variant());
                }
            }
        }
    }
    let mut unique: Vec<variant::Variant> = Vec::new();
    for variant in list {
        if !unique.contains(&variant) {
            unique.push(variant);
        }
    }
    unique
}

/// A u32 tensor of `words` on `device`. Without the dtype, burn would convert to the device's default, i32.
pub fn u32_tensor(words: Vec<u32>, device: &Device) -> Tensor<1, Int> {
    let n = words.len();
    Tensor::from_data(TensorData::new(words, [n]), (device, DType::U32))
}

/// An f32 tensor of `values` on `device`.
pub fn f32_tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Rows of an embedding table for a list of ids. `table` u32 `[rows * row_words]`, `ids` u32, `out` f32 `[n, cols]`.
pub fn embed(table: &Tensor<1, Int>, ids: &Tensor<1, Int>, out: Tensor<2>, spec: EmbedSpec) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::embed(
        table.clone().into_dispatch(),
        ids.clone().into_dispatch(),
        out.into_dispatch(),
        spec,
    ))
}

/// `out = W x + bias` in one of the [`Mode`]s, for `spec.n` vectors: `matvec` up to [`matvec::MOST`] of them, else
/// `matmul`. `w` u32 `[rows * row_words]`, `x` f32 `[n, cols]`, `bias` f32, `out` f32 `[n, out_stride]` in place.
pub fn linear(w: &Tensor<1, Int>, x: &Tensor<2>, bias: &Tensor<1>, out: Tensor<2>, spec: LinearSpec) -> Tensor<2> {
    let (w, x) = (w.clone().into_dispatch(), x.clone().into_dispatch());
    let (bias, out) = (bias.clone().into_dispatch(), out.into_dispatch());
    Tensor::from_dispatch(match spec.n <= matvec::MOST {
        true => Dispatch::matvec(w, x, bias, out, spec),
        false => Dispatch::matmul(w, x, bias, out, spec),
    })
}

/// RMS normalisation of the rows of `x` `[n, cols]` with `weight` `[cols]`.
pub fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, spec: NormSpec) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::rms_norm(x.clone().into_dispatch(), weight.clone().into_dispatch(), spec))
}

/// Normalises (with `norm` `[2 D]`, if the spec says so) and rotates q and k, appends k and v to `kv` in place. Returns
/// `(q [n, heads D], kv)`.
pub fn rope_append(
    qkv: Tensor<2>,
    rope: &Tensor<1>,
    state: &Tensor<1, Int>,
    kv: Tensor<1, Int>,
    norm: &Tensor<1>,
    spec: RopeAppendSpec,
) -> (Tensor<2>, Tensor<1, Int>) {
    let (q, kv) = Dispatch::rope_append(
        qkv.into_dispatch(),
        rope.clone().into_dispatch(),
        state.clone().into_dispatch(),
        kv.into_dispatch(),
        norm.clone().into_dispatch(),
        spec,
    );
    (Tensor::from_dispatch(q), Tensor::from_dispatch(kv))
}

/// Attention of a chunk over the cache. Returns `(values [n, heads D], log-sum-exp [n, heads])`.
pub fn attention(
    q: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    spec: AttentionSpec,
) -> (Tensor<2>, Tensor<2>) {
    let (out, lse) = Dispatch::attention(
        q.clone().into_dispatch(),
        kv.clone().into_dispatch(),
        state.clone().into_dispatch(),
        rope.clone().into_dispatch(),
        spec,
    );
    (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
}

/// Attention weights of row `spec.row` over the slots: `[heads | kv_heads | 1, slots]`.
pub fn attention_row(
    q: &Tensor<2>,
    lse: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    spec: AttentionRowSpec,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::attention_row(
        q.clone().into_dispatch(),
        lse.clone().into_dispatch(),
        kv.clone().into_dispatch(),
        state.clone().into_dispatch(),
        rope.clone().into_dispatch(),
        spec,
    ))
}

/// What each slot was given by the rows of a chunk: added to running sums, or their mean `[kv_heads, slots]`, as f32 in words.
pub fn attention_sums(
    q: &Tensor<2>,
    lse: &Tensor<2>,
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    sums: Tensor<1, Int>,
    spec: AttentionSumsSpec,
) -> Tensor<1, Int> {
    Tensor::from_dispatch(Dispatch::attention_sums(
        q.clone().into_dispatch(),
        lse.clone().into_dispatch(),
        kv.clone().into_dispatch(),
        state.clone().into_dispatch(),
        rope.clone().into_dispatch(),
        sums.into_dispatch(),
        spec,
    ))
}

/// How alike each cached key is to the others: `[kv_heads, slots]`.
pub fn key_similarity(
    kv: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    rope: &Tensor<1>,
    spec: KeySimilaritySpec,
) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::key_similarity(
        kv.clone().into_dispatch(),
        state.clone().into_dispatch(),
        rope.clone().into_dispatch(),
        spec,
    ))
}

/// The queries of a chunk `[n, cols]` into the ring `[seqs width, cols]`, in place.
pub fn store_queries(q: &Tensor<2>, state: &Tensor<1, Int>, ring: Tensor<2>, spec: QueryRingSpec) -> Tensor<2> {
    let (q, state) = (q.clone().into_dispatch(), state.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::store_queries(q, state, ring.into_dispatch(), spec))
}

/// The latest queries of a sequence out of the ring, oldest first: `[n, cols]`.
pub fn latest_queries(ring: &Tensor<2>, state: &Tensor<1, Int>, spec: QueryRingSpec) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::latest_queries(ring.clone().into_dispatch(), state.clone().into_dispatch(), spec))
}

/// The kept rows of `kv` in a new buffer of `spec.out_words` words.
pub fn cache_gather(
    kv: Tensor<1, Int>,
    keep: &Tensor<1, Int>,
    moves: &Tensor<1, Int>,
    spec: GatherSpec,
) -> Tensor<1, Int> {
    Tensor::from_dispatch(Dispatch::cache_gather(
        kv.into_dispatch(),
        keep.clone().into_dispatch(),
        moves.clone().into_dispatch(),
        spec,
    ))
}

/// The highest of each row of `logits` `[n, count]`: lists `[n lists 2 k]` and sums `[n lists, 4]`.
pub fn top_k(
    logits: &Tensor<2>,
    state: &Tensor<1, Int>,
    seen: &Tensor<1, Int>,
    spec: TopKSpec,
) -> (Tensor<1, Int>, Tensor<2>) {
    let (state, seen) = (state.clone().into_dispatch(), seen.clone().into_dispatch());
    let (lists, sums) = Dispatch::top_k(logits.clone().into_dispatch(), state, seen, spec);
    (Tensor::from_dispatch(lists), Tensor::from_dispatch(sums))
}

/// One list of each row's several.
pub fn top_k_merge(
    lists: &Tensor<1, Int>,
    state: &Tensor<1, Int>,
    seen: &Tensor<1, Int>,
    spec: TopKSpec,
) -> Tensor<1, Int> {
    let (state, seen) = (state.clone().into_dispatch(), seen.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::top_k_merge(lists.clone().into_dispatch(), state, seen, spec))
}

/// Draws the next tokens into `state` and `seen`, in place.
pub fn sample(
    lists: &Tensor<1, Int>,
    sums: &Tensor<2>,
    state: Tensor<1, Int>,
    seen: Tensor<1, Int>,
    spec: SampleSpec,
) -> (Tensor<1, Int>, Tensor<1, Int>) {
    let (lists, sums) = (lists.clone().into_dispatch(), sums.clone().into_dispatch());
    let (state, seen) = Dispatch::sample(lists, sums, state.into_dispatch(), seen.into_dispatch(), spec);
    (Tensor::from_dispatch(state), Tensor::from_dispatch(seen))
}
