//! `Kernels` on burn's CPU backend: borrows the slices and calls each kernel's twin.
use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::{DType, Element, Shape, TensorData};

use super::{
    AttentionRowSpec, AttentionSpec, AttentionSumsSpec, EmbedSpec, GatherSpec, Kernels, KeySimilaritySpec, LayerSpec,
    LinearSpec, NormSpec, QueryRingSpec, RopeAppendSpec, SampleSpec, TopKSpec, attention, attention_row,
    attention_sums, cache_gather, embed, key_similarity, matvec, query_ring, rms_norm, rope_append, sample, top_k,
};

/// Cached keys as kernels see them.
pub(super) struct Keys<'a> {
    pub(super) kv: &'a [u32],
    /// The RoPE table.
    pub(super) table: &'a [f32],
    pub(super) layer: LayerSpec,
}

impl Keys<'_> {
    /// The key in row `row` of the cache, which stands in `slot`.
    pub(super) fn get(&self, row: usize, slot: usize) -> Vec<f64> {
        let d = self.layer.d;
        let stored = self.stored(row);
        let key: Vec<f64> = (0..d).map(|c| self.layer.dtype.get(stored, c)).collect();
        if !self.layer.compact {
            return key;
        }
        let angles = &self.table[slot.min(self.table.len() / d - 1) * d..][..d];
        let turned = |c: usize| {
            let (cos, sin) = (angles[c % (d / 2)] as f64, angles[d / 2 + c % (d / 2)] as f64);
            if c < d / 2 { key[c] * cos - key[c + d / 2] * sin } else { key[c] * cos + key[c - d / 2] * sin }
        };
        (0..d).map(turned).collect()
    }

    /// Its product with `query`.
    pub(super) fn dot(&self, query: &[f32], row: usize, slot: usize) -> f64 {
        if self.layer.compact {
            return query.iter().zip(self.get(row, slot)).map(|(q, k)| *q as f64 * k).sum();
        }
        let key = self.stored(row);
        (0..self.layer.d).map(|c| query[c] as f64 * self.layer.dtype.get(key, c)).sum()
    }

    fn stored(&self, row: usize) -> &[u32] {
        let row_words = self.layer.dtype.row_words(self.layer.d);
        &self.kv[row * row_words..(row + 1) * row_words]
    }
}

fn slice<E: Element + bytemuck::Pod>(t: &FlexTensor) -> &[E] {
    t.as_slice().unwrap_or_else(|| panic!("want contiguous {:?}, found {:?}", E::dtype(), t.dtype()))
}

fn storage<'a, E: Element + bytemuck::Pod>(t: &'a mut FlexTensor, what: &str) -> &'a mut [E] {
    t.try_storage_mut().unwrap_or_else(|| panic!("{what} is shared: an in-place kernel needs the only handle"))
}

fn floats(values: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn words(values: Vec<u32>) -> FlexTensor {
    let shape = Shape::from([values.len()]);
    let t = FlexTensor::from_data(TensorData::new(values, shape));
    debug_assert_eq!(t.dtype(), DType::U32);
    t
}

impl Kernels for Flex {
    fn embed(table: FlexTensor, ids: FlexTensor, mut out: FlexTensor, spec: EmbedSpec) -> FlexTensor {
        embed::twin(slice(&table), slice(&ids), storage(&mut out, "embed's output"), &spec);
        out
    }

    fn matvec(w: FlexTensor, x: FlexTensor, bias: FlexTensor, mut out: FlexTensor, spec: LinearSpec) -> FlexTensor {
        let x = x.to_contiguous();
        matvec::twin(slice(&w), slice(&x), slice(&bias), storage(&mut out, "matvec's output"), &spec);
        out
    }

    fn matmul(w: FlexTensor, x: FlexTensor, bias: FlexTensor, out: FlexTensor, spec: LinearSpec) -> FlexTensor {
        // The same sums: what differs on the GPU is the tiling.
        Self::matvec(w, x, bias, out, spec)
    }

    fn rms_norm(x: FlexTensor, weight: FlexTensor, spec: NormSpec) -> FlexTensor {
        let x = x.to_contiguous();
        floats(rms_norm::twin(slice(&x), slice(&weight), &spec), [spec.n, spec.cols])
    }

    fn rope_append(
        qkv: FlexTensor,
        rope: FlexTensor,
        state: FlexTensor,
        mut kv: FlexTensor,
        norm: FlexTensor,
        spec: RopeAppendSpec,
    ) -> (FlexTensor, FlexTensor) {
        let qkv = qkv.to_contiguous();
        let cache = storage(&mut kv, "the KV cache");
        let q = rope_append::twin(slice(&qkv), slice(&rope), slice(&state), cache, slice(&norm), &spec);
        (floats(q, [spec.n, spec.layer.heads * spec.layer.d]), kv)
    }

    fn attention(
        q: FlexTensor,
        kv: FlexTensor,
        state: FlexTensor,
        rope: FlexTensor,
        spec: AttentionSpec,
    ) -> (FlexTensor, FlexTensor) {
        let q = q.to_contiguous();
        let (out, lse) = attention::twin(slice(&q), slice(&kv), slice(&state), slice(&rope), &spec);
        (floats(out, [spec.n, spec.layer.heads * spec.layer.d]), floats(lse, [spec.n, spec.layer.heads]))
    }

    fn attention_row(
        q: FlexTensor,
        lse: FlexTensor,
        kv: FlexTensor,
        state: FlexTensor,
        rope: FlexTensor,
        spec: AttentionRowSpec,
    ) -> FlexTensor {
        let (q, lse) = (q.to_contiguous(), lse.to_contiguous());
        let out = attention_row::twin(slice(&q), slice(&lse), slice(&kv), slice(&state), slice(&rope), &spec);
        floats(out, [spec.out_rows(), spec.slots])
    }

    fn attention_sums(
        q: FlexTensor,
        lse: FlexTensor,
        kv: FlexTensor,
        state: FlexTensor,
        rope: FlexTensor,
        mut sums: FlexTensor,
        spec: AttentionSumsSpec,
    ) -> FlexTensor {
        let (q, lse) = (q.to_contiguous(), lse.to_contiguous());
        let into = storage(&mut sums, "the running sums");
        attention_sums::twin(slice(&q), slice(&lse), slice(&kv), slice(&state), slice(&rope), into, &spec);
        sums
    }

    fn key_similarity(kv: FlexTensor, state: FlexTensor, rope: FlexTensor, spec: KeySimilaritySpec) -> FlexTensor {
        let out = key_similarity::twin(slice(&kv), slice(&state), slice(&rope), &spec);
        floats(out, [spec.layer.kv_heads, spec.slots])
    }

    fn store_queries(q: FlexTensor, state: FlexTensor, mut ring: FlexTensor, spec: QueryRingSpec) -> FlexTensor {
        let q = q.to_contiguous();
        query_ring::store_twin(slice(&q), slice(&state), storage(&mut ring, "the ring of queries"), &spec);
        ring
    }

    fn latest_queries(ring: FlexTensor, state: FlexTensor, spec: QueryRingSpec) -> FlexTensor {
        floats(query_ring::load_twin(slice(&ring), slice(&state), &spec), [spec.n, spec.cols])
    }

    fn cache_gather(kv: FlexTensor, keep: FlexTensor, moves: FlexTensor, spec: GatherSpec) -> FlexTensor {
        words(cache_gather::twin(slice(&kv), slice(&keep), slice(&moves), &spec))
    }

    fn top_k(logits: FlexTensor, state: FlexTensor, seen: FlexTensor, spec: TopKSpec) -> (FlexTensor, FlexTensor) {
        let logits = logits.to_contiguous();
        let bits: Vec<u32> = slice::<f32>(&logits).iter().map(|v| v.to_bits()).collect();
        let (lists, sums) = top_k::twin(&bits, slice(&state), slice(&seen), &spec);
        (words(lists), floats(sums, [spec.n * spec.lists(), 4]))
    }

    fn top_k_merge(lists: FlexTensor, state: FlexTensor, seen: FlexTensor, spec: TopKSpec) -> FlexTensor {
        words(top_k::twin(slice(&lists), slice(&state), slice(&seen), &spec).0)
    }

    fn sample(
        lists: FlexTensor,
        sums: FlexTensor,
        mut state: FlexTensor,
        mut seen: FlexTensor,
        spec: SampleSpec,
    ) -> (FlexTensor, FlexTensor) {
        let state_words = storage(&mut state, "the state");
        let seen_words = storage(&mut seen, "the seen tokens");
        sample::twin(slice(&lists), slice(&sums), state_words, seen_words, &spec);
        (state, seen)
    }
}
