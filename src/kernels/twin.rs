//! `Kernels` on burn's CPU backend: borrows the slices and calls each kernel's twin.
use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::{DType, Element, Shape, TensorData};

use super::{
    AttentionRowSpec, AttentionSpec, EmbedSpec, GatherSpec, Kernels, LinearSpec, NormSpec, RopeAppendSpec, SampleSpec,
    attention, attention_row, cache_gather, embed, matvec, rms_norm, rope_append, sample,
};

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
        (floats(q, [spec.n, spec.heads * spec.d]), kv)
    }

    fn attention(q: FlexTensor, kv: FlexTensor, state: FlexTensor, spec: AttentionSpec) -> (FlexTensor, FlexTensor) {
        let q = q.to_contiguous();
        let (out, lse) = attention::twin(slice(&q), slice(&kv), slice(&state), &spec);
        (floats(out, [spec.n, spec.heads * spec.d]), floats(lse, [spec.n, spec.heads]))
    }

    fn attention_row(
        q: FlexTensor,
        lse: FlexTensor,
        kv: FlexTensor,
        state: FlexTensor,
        spec: AttentionRowSpec,
    ) -> FlexTensor {
        let (q, lse) = (q.to_contiguous(), lse.to_contiguous());
        let out = attention_row::twin(slice(&q), slice(&lse), slice(&kv), slice(&state), &spec);
        floats(out, [spec.out_rows(), spec.slots])
    }

    fn cache_gather(kv: FlexTensor, keep: FlexTensor, moves: FlexTensor, spec: GatherSpec) -> FlexTensor {
        words(cache_gather::twin(slice(&kv), slice(&keep), slice(&moves), &spec))
    }

    fn sample(logits: FlexTensor, mut state: FlexTensor, spec: SampleSpec) -> FlexTensor {
        let logits = logits.to_contiguous();
        sample::twin(slice(&logits), storage(&mut state, "the state"), &spec);
        state
    }
}
