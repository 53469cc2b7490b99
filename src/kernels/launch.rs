//! Launching WGSL on burn's Cube backend. The only file that touches cubecl.
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, RwLock};
use std::task::{Context, Poll, Waker};

use burn::backend::wgpu::{CubeBackend, CubeTensor, KernelSource, SourceKernel, SourceTemplate, into_contiguous};
use burn::backend::{Cube, Flex};
use burn::cubecl::prelude::KernelId;
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::cubecl::{CubeCount, CubeDim, ExecutionMode};
use burn::tensor::{Bytes, DType, Int, Tensor};

use super::{
    AttentionRowSpec, AttentionSpec, AttentionSumsSpec, EmbedSpec, GatherSpec, Kernels, KeySimilaritySpec, LinearSpec,
    NormSpec, QueryRingSpec, RopeAppendSpec, SampleSpec, TopKSpec,
};
use crate::{Error, ErrorKind, Result, fnv};

const COMMON: &str = include_str!("../../shaders/common.wgsl");
const KEYS: &str = include_str!("../../shaders/keys.wgsl");

/// One specialisation of a shader: the file's text and the constants put in front of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Stem of the file in `shaders/`.
    pub kernel: &'static str,
    /// The file's text.
    pub text: &'static str,
    /// Constants of type u32, in the order they are written. `UNIT` (1 or 4) also makes the type `Unit`, of so many words.
    pub constants: Vec<(&'static str, u32)>,
}

impl Variant {
    /// The final text: constants, `common.wgsl`, `keys.wgsl` where the kernel says that it includes it, the kernel.
    pub fn source(&self) -> String {
        let constants = self.constants.iter().map(|(name, value)| match (*name, *value) {
            ("UNIT", 1) => "alias Unit = u32;\n".into(),
            ("UNIT", 4) => "alias Unit = vec4<u32>;\n".into(),
            (name, value) => format!("const {name} = {value}u;\n"),
        });
        let keys = if self.text.contains("// include keys.wgsl") { KEYS } else { "" };
        constants.chain([COMMON.to_string(), keys.to_string(), self.text.to_string()]).collect()
    }

    fn threads(&self) -> u32 {
        let threads = self.constants.iter().find(|(name, _)| *name == "THREADS");
        threads.expect("every kernel has THREADS").1
    }

    /// The text, made once, and the hash of it that keys the pipeline cache.
    fn wgsl(&self) -> Wgsl {
        let made = made();
        let mut key = fnv::more(fnv::START, self.kernel.as_bytes());
        for (name, value) in &self.constants {
            key = fnv::more(fnv::more(key, name.as_bytes()), &value.to_le_bytes());
        }
        if hooks::ON.load(Ordering::Relaxed)
            && let Some(text) = hooks::replacement(self)
        {
            return Wgsl { text, hash: fnv::more(fnv::START, text.as_bytes()) };
        }
        if let Some((_, found)) = made.read().expect("no panic while held").get(&key) {
            return *found;
        }
        let text: &'static str = Box::leak(self.source().into_boxed_str());
        let wgsl = Wgsl { text, hash: fnv::more(fnv::START, text.as_bytes()) };
        made.write().expect("no panic while held").entry(key).or_insert_with(|| (self.clone(), wgsl)).1
    }
}

type Made = RwLock<HashMap<u64, (Variant, Wgsl)>>;

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(Default::default)
}

/// Every variant launched on a GPU so far, by this process: what a conformance run translates for the other APIs.
pub fn launched_variants() -> Vec<Variant> {
    let made = made().read().expect("no panic while held");
    let mut variants: Vec<Variant> = made.values().map(|(variant, _)| variant.clone()).collect();
    variants.sort_by(|a, b| (a.kernel, &a.constants).cmp(&(b.kernel, &b.constants)));
    variants
}

#[derive(Clone, Copy)]
struct Wgsl {
    text: &'static str,
    hash: u64,
}

impl KernelSource for Wgsl {
    fn source(&self) -> SourceTemplate {
        SourceTemplate::new(self.text)
    }
    /// Unchecked: without the counter that naga otherwise adds to every loop to end it after 2^64 turns. With it compilers do
    /// not unroll loops, and an array indexed in a loop that is not unrolled lives in memory, not in registers. The loops of
    /// the kernels are bounded by constants, by what the specs pass, and by a sequence's length and capacity in the state.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.hash).mode(ExecutionMode::Unchecked)
    }
    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// For the tests of the tests and of the shaders: sees every launch and may put another text in a kernel's place.
#[doc(hidden)]
pub mod hooks {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, MutexGuard};

    use super::Variant;

    pub(super) static ON: AtomicBool = AtomicBool::new(false);
    static HOOKS: Mutex<Hooks> = Mutex::new(Hooks { replaced: None, launches: Vec::new() });

    struct Hooks {
        replaced: Option<(&'static str, String)>,
        launches: Vec<Launch>,
    }

    /// What was launched.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Launch {
        /// The specialisation.
        pub variant: Variant,
        /// Storage buffers passed, in the order of their bindings.
        pub buffers: usize,
        /// u32 words of the uniform passed after them.
        pub info: usize,
    }

    fn hooks() -> MutexGuard<'static, Hooks> {
        HOOKS.lock().unwrap_or_else(|failed| failed.into_inner())
    }

    /// Runs `f`; every launch of `kernel` meanwhile takes `text` for the text of its file. Returns also the launches, each
    /// kind once. One caller at a time: it is a global switch.
    pub fn with<T>(replace: Option<(&'static str, String)>, f: impl FnOnce() -> T) -> (T, Vec<Launch>) {
        *hooks() = Hooks { replaced: replace, launches: Vec::new() };
        ON.store(true, Ordering::Relaxed);
        let result = f();
        ON.store(false, Ordering::Relaxed);
        let mut hooks = hooks();
        hooks.replaced = None;
        (result, std::mem::take(&mut hooks.launches))
    }

    pub(super) fn record(variant: &Variant, buffers: usize, info: usize) {
        let launch = Launch { variant: variant.clone(), buffers, info };
        let mut hooks = hooks();
        if !hooks.launches.contains(&launch) {
            hooks.launches.push(launch);
        }
    }

    pub(super) fn replacement(variant: &Variant) -> Option<&'static str> {
        let hooks = hooks();
        let (kernel, text) = hooks.replaced.as_ref()?;
        (*kernel == variant.kernel).then(|| {
            let text: &'static str = Box::leak(text.clone().into_boxed_str());
            &*Box::leak(Variant { text, ..variant.clone() }.source().into_boxed_str())
        })
    }
}

/// A grid of at least `groups` workgroups in two dimensions; kernels that use it flatten it again and guard the rest.
/// WebGPU allows 65,535 a dimension.
pub fn grid(groups: usize) -> [usize; 3] {
    const MOST: usize = 32_768;
    [groups.min(MOST), groups.div_ceil(MOST), 1]
}

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

static POISON: AtomicBool = AtomicBool::new(false);

/// While on, every output buffer starts as NaN words (0xffc5_a5a5), so that an element a kernel fails to write is seen.
/// For conformance runs: it costs an upload per output.
pub fn poison_outputs(on: bool) {
    POISON.store(on, Ordering::Relaxed);
}

/// What [`poison_outputs`] fills with.
pub const POISON_WORD: u32 = 0xffc5_a5a5;

fn empty(like: &CubeTensor, shape: Vec<usize>, dtype: DType) -> CubeTensor {
    let words = shape.iter().product::<usize>();
    let handle = match POISON.load(Ordering::Relaxed) {
        true => like.client.create(Bytes::from_elems(vec![POISON_WORD; words])),
        false => like.client.empty(words * 4),
    };
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape.into(), handle, dtype)
}

/// Checks an in-place argument: the only handle, contiguous. A failure is a bug in the caller, not in any input.
///
/// Only in conformance runs and debug builds: cubecl's thread may still hold a new buffer, and waiting for its queue at
/// every launch would undo what the queue is for. The engine keeps what kernels write in place behind `Option::take`.
fn owned(t: CubeTensor, what: &str) -> CubeTensor {
    if cfg!(debug_assertions) || POISON.load(Ordering::Relaxed) {
        for _ in 0..100 {
            if t.can_mut() || t.client.exclusive(|| ()).is_err() {
                break;
            }
        }
        assert!(t.can_mut(), "{what} is shared: an in-place kernel needs the only handle");
    }
    assert!(t.is_contiguous(), "{what} is a view");
    t
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

/// Runs `make` with every allocation on `near`'s device given a buffer of its own, outside the pools: exact size, and
/// returned to the driver once dropped. That is what lets a pruned cache really shrink. On the CPU it just runs `make`.
pub fn dedicated<T: Send>(near: &Tensor<1, Int>, make: impl FnOnce() -> T + Send) -> T {
    match near.clone().try_into_primitive::<Cube>() {
        Ok(t) => t.client.memory_dedicated_allocation((), |()| make()),
        Err(_) => make(),
    }
}

/// An uninitialised u32 tensor on `near`'s device: poison on the GPU when asked for, zeros on the CPU.
pub fn empty_words(near: &Tensor<1, Int>, words: usize) -> Tensor<1, Int> {
    match near.clone().try_into_primitive::<Cube>() {
        Ok(t) => Tensor::from_primitive::<Cube>(empty(&t, vec![words], DType::U32)),
        Err(_) => super::u32_tensor(vec![0; words], &near.device()),
    }
}

/// An uninitialised f32 tensor `[rows, cols]` on `near`'s device, for kernels that write their output in place.
pub fn empty_floats(near: &Tensor<1, Int>, shape: [usize; 2]) -> Tensor<2> {
    match near.clone().try_into_primitive::<Cube>() {
        Ok(t) => Tensor::from_primitive::<Cube>(empty(&t, shape.to_vec(), DType::F32)),
        Err(_) => super::f32_tensor(vec![0.0; shape[0] * shape[1]], shape, &near.device()),
    }
}

/// Overwrites the words of `tensor` from word `at` on, in place and without waiting: everything launched before sees the
/// old words, everything after the new ones.
pub fn write_words(tensor: Tensor<1, Int>, at: usize, words: Vec<u32>) -> Tensor<1, Int> {
    assert!(at + words.len() <= tensor.dims()[0], "the write stays inside");
    match tensor.clone().try_into_primitive::<Cube>() {
        Ok(t) => {
            let end = (tensor.dims()[0] - at - words.len()) as u64 * 4;
            let part = t.handle.clone().offset_start(at as u64 * 4).offset_end(end);
            t.client.write(&part, Bytes::from_elems(words));
            tensor
        }
        Err(_) => {
            let mut t = tensor.try_into_primitive::<Flex>().expect("Cube or Flex");
            let storage = t.try_storage_mut::<u32>().expect("an in-place write needs the only handle");
            storage[at..at + words.len()].copy_from_slice(&words);
            Tensor::from_primitive::<Flex>(t)
        }
    }
}

/// Dtype `at .. at + n` of `tensor`, to be read: on the GPU the same buffer, on the CPU a copy.
pub fn part(tensor: &Tensor<1, Int>, at: usize, n: usize) -> Tensor<1, Int> {
    assert!(at + n <= tensor.dims()[0], "the part lies inside");
    match tensor.clone().try_into_primitive::<Cube>() {
        Ok(t) => {
            let end = (tensor.dims()[0] - at - n) as u64 * 4;
            let handle = t.handle.clone().offset_start(at as u64 * 4).offset_end(end);
            let part = CubeTensor::new_contiguous(t.client.clone(), t.device.clone(), vec![n].into(), handle, t.dtype);
            Tensor::from_primitive::<Cube>(part)
        }
        Err(_) => {
            let t = tensor.clone().try_into_primitive::<Flex>().expect("Cube or Flex");
            let words = t.as_slice::<u32>().expect("contiguous words");
            super::u32_tensor(words[at..at + n].to_vec(), &tensor.device())
        }
    }
}

#[cfg(not(target_family = "wasm"))]
type Reading = Pin<Box<dyn Future<Output = Result<Vec<Vec<u8>>>> + Send>>;
#[cfg(target_family = "wasm")]
type Reading = Pin<Box<dyn Future<Output = Result<Vec<Vec<u8>>>>>>;

/// Bytes on their way from the device, one list for each tensor read. May be dropped at any time.
pub struct Readback(Option<Reading>);

thread_local! {
    /// Reads that were dropped unfinished. Their staging buffers are still mapped: handed back to cubecl's pool like that,
    /// the next read to get one would fail validation and poison the device. They are finished here instead.
    static ORPHANS: std::cell::RefCell<Vec<Reading>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Lets go of those orphans that have finished by now.
fn bury_orphans() {
    let nudge = |read: &mut Reading| read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
    ORPHANS.with_borrow_mut(|orphans| orphans.retain_mut(nudge));
}

impl Readback {
    fn ready(bytes: Vec<Vec<u8>>) -> Self {
        Self(Some(Box::pin(std::future::ready(Ok(bytes)))))
    }
}

impl Future for Readback {
    type Output = Result<Vec<Vec<u8>>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = self.0.as_mut().expect("not polled after it was ready").as_mut().poll(cx);
        if done.is_ready() {
            self.0 = None;
        }
        done
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        if let Some(read) = self.0.take() {
            // At the end of a thread there is no list left, and no next read either.
            let _ = ORPHANS.try_with(|orphans| orphans.borrow_mut().push(read));
        }
    }
}

fn gpu_handle<const D: usize>(t: &Tensor<D>) -> Option<CubeTensor> {
    t.clone().try_into_primitive::<Cube>().ok().map(into_contiguous)
}

/// Reads u32 tensors. The copies are enqueued by this call, before it returns: what is launched later does not show,
/// even where it writes in place (`Tensor::into_data_async` copies when the bytes are first looked at).
pub fn read_words(tensors: &[&Tensor<1, Int>]) -> Readback {
    let gpu: Vec<_> = tensors.iter().filter_map(|t| (*t).clone().try_into_primitive::<Cube>().ok()).collect();
    if gpu.len() == tensors.len() && !gpu.is_empty() {
        return read_gpu(gpu);
    }
    let cpu = tensors.iter().map(|t| (*t).clone().try_into_primitive::<Flex>().expect("Cube or Flex"));
    let bytes = cpu.map(|t| t.to_contiguous().bytes().to_vec()).collect();
    Readback::ready(bytes)
}

/// Reads f32 tensors, as [`read_words`] does.
pub fn read_floats<const D: usize>(tensors: &[&Tensor<D>]) -> Readback {
    let gpu: Vec<_> = tensors.iter().filter_map(|t| gpu_handle(t)).collect();
    if gpu.len() == tensors.len() && !gpu.is_empty() {
        return read_gpu(gpu);
    }
    let cpu = tensors.iter().map(|t| (*t).clone().try_into_primitive::<Flex>().expect("Cube or Flex"));
    let bytes = cpu.map(|t| t.to_contiguous().bytes().to_vec()).collect();
    Readback::ready(bytes)
}

fn read_gpu(tensors: Vec<CubeTensor>) -> Readback {
    let client = tensors[0].client.clone();
    let lengths: Vec<usize> = tensors.iter().map(|t| t.meta.shape().num_elements() * 4).collect();
    let handles = tensors.into_iter().map(|t| t.handle).collect();
    bury_orphans();
    let mut read: Reading = Box::pin(async move {
        let bytes = client.read_async(handles).await.map_err(|e| {
            Error::new(ErrorKind::Device, "reading from the GPU failed")
                .found(format!("{e:?}"))
                .help("the adapter may have been lost or run out of memory; try a smaller context or --device cpu")
        })?;
        Ok(bytes.iter().zip(lengths).map(|(b, n)| b[..n].to_vec()).collect())
    });
    // The first poll makes cubecl enqueue the copies; a later one, with the caller's waker, waits for them.
    match read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Readback(Some(Box::pin(std::future::ready(done)))),
        Poll::Pending => Readback(Some(read)),
    }
}

/// The u32 words in `bytes`.
pub fn as_words(bytes: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// The f32 values in `bytes`.
pub fn as_floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}
