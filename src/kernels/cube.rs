//! The launches on burn's Cube backend: which buffers, constants, uniform and grid each kernel gets.
use std::sync::atomic::Ordering;

use burn::backend::wgpu::{CubeBackend, CubeTensor, SourceKernel, into_contiguous};
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::cubecl::{CubeCount, CubeDim};
use burn::tensor::DType;

use super::memory::{empty, owned};
use super::variant::{Variant, grid, hooks};
use super::{
    AttentionRowSpec, AttentionSpec, AttentionSumsSpec, EmbedSpec, GatherSpec, Kernels, KeySimilaritySpec, LinearSpec,
    NormSpec, QueryRingSpec, RopeAppendSpec, SampleSpec, TopKSpec,
};

fn launch(variant: &Variant, groups: [usize; 3], buffers: &[&CubeTensor], info: &[u32]) {
    debug_assert!(info.len().is_multiple_of(4), "a uniform struct is a whole number of 16-byte rows");
    if hooks::ON.load(Ordering::Relaxed) {
        hooks::record(variant, buffers.len(), info.len());
    }
    let bindings = buffers.iter().map(|t| t.handle.clone().binding()).collect();
    let [x, y, z] = groups.map(|n| u32::try_from(n).expect("the spec bounds its grid"));
    buffers[0].client.launch(
        Box::new(SourceKernel::new(variant.wgsl(), CubeDim::new_1d(variant.threads()))),
        CubeCount::Static(x, y, z),
        KernelArguments::new()
            .with_buffers(bindings)
            .with_info(MetadataBindingInfo::custom(bytemuck::pod_collect_to_vec(info))),
    );
}

impl Kernels for CubeBackend {
    fn embed(table: CubeTensor, ids: CubeTensor, out: CubeTensor, spec: EmbedSpec) -> CubeTensor {
        let out = owned(out, "embed's output");
        launch(&spec.variant(), spec.groups(), &[&table, &ids, &out], &spec.info());
        out
    }

    fn matvec(w: CubeTensor, x: CubeTensor, bias: CubeTensor, out: CubeTensor, spec: LinearSpec) -> CubeTensor {
        let (x, out) = (into_contiguous(x), owned(out, "matvec's output"));
        launch(&spec.matvec_variant(), spec.matvec_groups(), &[&w, &x, &bias, &out], &spec.matvec_info());
        out
    }

    fn matmul(w: CubeTensor, x: CubeTensor, bias: CubeTensor, out: CubeTensor, spec: LinearSpec) -> CubeTensor {
        let (x, out) = (into_contiguous(x), owned(out, "matmul's output"));
        launch(&spec.matmul_variant(), spec.matmul_groups(), &[&w, &x, &bias, &out], &spec.matmul_info());
        out
    }

    fn rms_norm(x: CubeTensor, weight: CubeTensor, spec: NormSpec) -> CubeTensor {
        let x = into_contiguous(x);
        let out = empty(&x, vec![spec.n, spec.cols], DType::F32);
        launch(&spec.variant(), grid(spec.n), &[&x, &weight, &out], &spec.info());
        out
    }

    fn rope_append(
        qkv: CubeTensor,
        rope: CubeTensor,
        state: CubeTensor,
        kv: CubeTensor,
        norm: CubeTensor,
        spec: RopeAppendSpec,
    ) -> (CubeTensor, CubeTensor) {
        let (qkv, kv) = (into_contiguous(qkv), owned(kv, "the KV cache"));
        let q = empty(&qkv, vec![spec.n, spec.layer.heads * spec.layer.d], DType::F32);
        launch(&spec.variant(), spec.groups(), &[&qkv, &rope, &state, &kv, &q, &norm], &spec.info());
        (q, kv)
    }

    fn attention(
        q: CubeTensor,
        kv: CubeTensor,
        state: CubeTensor,
        rope: CubeTensor,
        spec: AttentionSpec,
    ) -> (CubeTensor, CubeTensor) {
        let q = into_contiguous(q);
        let out = empty(&q, vec![spec.n, spec.layer.heads * spec.layer.d], DType::F32);
        let lse = empty(&q, vec![spec.n, spec.layer.heads], DType::F32);
        let splits = spec.splits();
        if splits == 1 {
            launch(&spec.variant(), spec.groups(), &[&q, &kv, &state, &out, &lse, &rope], &spec.info());
        } else {
            let partials = empty(&q, vec![spec.n * spec.layer.heads * splits, spec.layer.d + 2], DType::F32);
            launch(&spec.variant(), spec.groups(), &[&q, &kv, &state, &partials, &lse, &rope], &spec.info());
            let (variant, info) = (spec.combine_variant(), spec.combine_info());
            launch(&variant, [spec.layer.heads, spec.n, 1], &[&partials, &state, &out, &lse], &info);
        }
        (out, lse)
    }

    fn attention_row(
        q: CubeTensor,
        lse: CubeTensor,
        kv: CubeTensor,
        state: CubeTensor,
        rope: CubeTensor,
        spec: AttentionRowSpec,
    ) -> CubeTensor {
        let (q, lse) = (into_contiguous(q), into_contiguous(lse));
        let out = empty(&q, vec![spec.out_rows(), spec.slots], DType::F32);
        launch(&spec.variant(), spec.groups(), &[&q, &lse, &kv, &state, &out, &rope], &spec.info());
        out
    }

    fn attention_sums(
        q: CubeTensor,
        lse: CubeTensor,
        kv: CubeTensor,
        state: CubeTensor,
        rope: CubeTensor,
        sums: CubeTensor,
        spec: AttentionSumsSpec,
    ) -> CubeTensor {
        let (q, lse, sums) = (into_contiguous(q), into_contiguous(lse), owned(sums, "the running sums"));
        launch(&spec.variant(), spec.groups(), &[&q, &lse, &kv, &state, &rope, &sums], &spec.info());
        sums
    }

    fn key_similarity(kv: CubeTensor, state: CubeTensor, rope: CubeTensor, spec: KeySimilaritySpec) -> CubeTensor {
        let latest = empty(&kv, vec![spec.layer.kv_heads * spec.slots], DType::U32);
        let out = empty(&kv, vec![spec.layer.kv_heads, spec.slots], DType::F32);
        for pass in [0, 1] {
            launch(&spec.variant(pass), spec.groups(), &[&kv, &state, &rope, &latest, &out], &spec.info());
        }
        out
    }

    fn store_queries(q: CubeTensor, state: CubeTensor, ring: CubeTensor, spec: QueryRingSpec) -> CubeTensor {
        let (q, ring) = (into_contiguous(q), owned(ring, "the ring of queries"));
        launch(&spec.variant(false), spec.groups(), &[&q, &state, &ring], &spec.info());
        ring
    }

    fn latest_queries(ring: CubeTensor, state: CubeTensor, spec: QueryRingSpec) -> CubeTensor {
        let out = empty(&ring, vec![spec.n, spec.cols], DType::F32);
        launch(&spec.variant(true), spec.groups(), &[&ring, &state, &out], &spec.info());
        out
    }

    fn cache_gather(kv: CubeTensor, keep: CubeTensor, moves: CubeTensor, spec: GatherSpec) -> CubeTensor {
        let out = empty(&kv, vec![spec.out_words], DType::U32);
        if spec.most_kept > 0 {
            launch(&spec.variant(), spec.groups(), &[&kv, &keep, &moves, &out], &spec.info());
        }
        out
    }

    fn top_k(logits: CubeTensor, state: CubeTensor, seen: CubeTensor, spec: TopKSpec) -> (CubeTensor, CubeTensor) {
        let logits = into_contiguous(logits);
        let lists = empty(&logits, vec![spec.n * spec.lists() * 2 * spec.k], DType::U32);
        let sums = empty(&logits, vec![spec.n * spec.lists(), 4], DType::F32);
        launch(&spec.variant(), spec.groups(), &[&logits, &state, &seen, &lists, &sums], &spec.info());
        (lists, sums)
    }

    fn top_k_merge(lists: CubeTensor, state: CubeTensor, seen: CubeTensor, spec: TopKSpec) -> CubeTensor {
        let merged = empty(&lists, vec![spec.n * 2 * spec.k], DType::U32);
        let unread = empty(&lists, vec![spec.n, 4], DType::F32);
        launch(&spec.variant(), spec.groups(), &[&lists, &state, &seen, &merged, &unread], &spec.info());
        merged
    }

    fn sample(
        lists: CubeTensor,
        sums: CubeTensor,
        state: CubeTensor,
        seen: CubeTensor,
        spec: SampleSpec,
    ) -> (CubeTensor, CubeTensor) {
        let (state, seen) = (owned(state, "the state"), owned(seen, "the seen tokens"));
        launch(&spec.variant(), [spec.n, 1, 1], &[&lists, &sums, &state, &seen], &spec.info());
        (state, seen)
    }
}
