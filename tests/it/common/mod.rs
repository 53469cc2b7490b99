//! Helpers for several modules: the golden fixtures, the devices of this machine, and measures of error.
//!
//! `SECATEUR_REQUIRE=cpu,llvmpipe,swiftshader` lists parts of names of devices. A device that is listed and missing
//! fails the tests.
pub mod command;
pub mod files;
pub mod memory;
pub mod reference;
pub mod replay;

use secateur::Dtype;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use burn::tensor::Tensor;
use secateur::Slot;
use secateur::device::{self, ComputeDevice};
use secateur::expert::cache::{CacheShape, KeepSets, KvCache};
use secateur::expert::kernels::readback::{Readback, as_f32, as_u32, read_f32};
use secateur::expert::kernels::{Reduce, state};
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::{Decoder, ForwardOutput, Input, Logits};
use secateur::expert::weights::{ModelSource, Weights};
use secateur::policy::{Scope, Sets};

pub use pollster::block_on;

/// The names of the fixtures in Hugging Face layout.
pub const FIXTURES: [&str; 10] = [
    "qwen2-f32",
    "qwen2-f16",
    "qwen2-bf16",
    "qwen3-f32",
    "qwen3-yarn-f16",
    "llama3-bf16",
    "smollm3-bf16",
    "mistral-f16",
    "phi3-long-f16",
    "qwen3moe-bf16",
];

/// The names of the fixtures in GGUF files, with quantized and mixed weights.
pub const GGUF_FIXTURES: [&str; 7] = [
    "gguf-qwen2-q8",
    "gguf-llama-q4",
    "gguf-qwen3-f16",
    "gguf-phi3-q8",
    "gguf-smollm3-q8",
    "gguf-ministral3-q8",
    "gguf-qwen3moe-q8",
];

/// A model and the results that transformers computes for it; see `tests/golden/README.md`.
pub struct Fixture {
    pub name: &'static str,
    pub config: ModelConfig,
    pub weights: Weights,
    pub golden: Weights,
}

/// The directory of a fixture.
pub fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

impl Fixture {
    pub fn open(name: &'static str) -> Self {
        let path = directory(name);
        let path = if name.starts_with("gguf") { path.join("model.gguf") } else { path };
        let source = ModelSource::open(path).expect("a committed fixture");
        let golden = std::fs::read(directory(name).join("golden.safetensors")).expect("a committed fixture");
        Self {
            name,
            config: ModelConfig::load(&source).expect("a good config"),
            weights: Weights::open(&source).expect("good weights"),
            golden: Weights::from_files(vec![("golden".into(), golden.into())]).expect("good goldens"),
        }
    }

    pub fn load(&self, device: &ComputeDevice) -> Arc<Decoder> {
        let model = Decoder::load(&self.config, &self.weights, 4096, None, device, &mut |_, _| ());
        Arc::new(model.expect("the fixture loads"))
    }

    pub fn cache(&self, device: &ComputeDevice, dtype: Dtype, seqs: usize, growth: usize) -> KvCache {
        KvCache::new(CacheShape::new(&self.config, dtype, seqs, growth).expect("f32 or f16"), device)
    }

    /// A tensor of ids or positions.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        as_u32(self.golden.tensor(name).expect("in the golden file").bytes)
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        as_f32(self.golden.tensor(name).expect("in the golden file").bytes)
    }
}

/// The adapters are shared by the tests, which run side by side. See [`beside_others`] and [`alone`].
static ADAPTERS: RwLock<()> = RwLock::new(());

/// A test holds this if it launches on an adapter, measures only its own tensors, and changes nothing that other
/// tests could notice. Such tests run at the same time.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    ADAPTERS.read().unwrap_or_else(|failed| failed.into_inner())
}

/// A test holds this if it measures an adapter's memory, which belongs to the whole process. Meanwhile, no other test
/// that launches on an adapter runs. Replaced shaders, recordings and outputs filled with NaN affect only the test's
/// own thread, so they do not need it.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    ADAPTERS.write().unwrap_or_else(|failed| failed.into_inner())
}

/// Like [`beside_others`], or like [`alone`] if each allocation has a page of its own: allocations of such a test can
/// then leave no memory for a step that another test records.
pub fn beside_others_in_shared_pages() -> Box<dyn std::any::Any> {
    match std::env::var_os("SECATEUR_EXCLUSIVE_PAGES") {
        Some(_) => Box::new(alone()),
        None => Box::new(beside_others()),
    }
}

/// Every device of this machine, opened once, with the CPU twin first. Panics if `SECATEUR_REQUIRE` names a device
/// that is not among them.
pub fn devices() -> &'static [ComputeDevice] {
    static OPEN: OnceLock<Vec<ComputeDevice>> = OnceLock::new();
    OPEN.get_or_init(|| {
        let mut open = vec![ComputeDevice::cpu()];
        for info in block_on(device::list()) {
            if let Some(reason) = info.unfit() {
                println!("SKIPPED {}: {reason}", info.line());
            } else if open.iter().all(|d| d.info.name != info.name) {
                // Some drivers list an adapter that they refuse to open. If it is required, the check below fails.
                match block_on(ComputeDevice::open_info(&info)) {
                    Ok(device) => open.push(device),
                    Err(e) => println!("SKIPPED {}: {e}", info.line()),
                }
            }
        }
        let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default().to_lowercase();
        for part in required.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let part = if part == "lavapipe" { "llvmpipe" } else { part };
            let found = open.iter().any(|d| d.info.name.to_lowercase().contains(part));
            assert!(found, "required device `{part}` is missing");
        }
        open
    })
}

/// The best GPU adapter. Software adapters count; SwiftShader comes last, because it is slow. If there is no adapter,
/// prints this and returns `None`.
pub fn gpu() -> Option<&'static ComputeDevice> {
    let gpus = devices().iter().filter(|d| d.info.backend != "cpu");
    let found = gpus.min_by_key(|d| d.info.name.contains("SwiftShader"));
    if found.is_none() {
        println!("SKIPPED on a GPU: no adapter. SECATEUR_REQUIRE makes that a failure.");
    }
    found
}

/// The CPU twin and, if there is one, a GPU adapter.
pub fn two() -> Vec<&'static ComputeDevice> {
    std::iter::once(&devices()[0]).chain(gpu()).collect()
}

/// The devices of [`two`] with norms the other way: in the products that read the rows, or, on a GPU, by themselves.
pub fn two_with_other_norms() -> Vec<ComputeDevice> {
    let other = |device: &ComputeDevice| {
        let mut device = device.clone();
        device.tuning.norm_in_product = !device.tuning.norm_in_product;
        device
    };
    two().into_iter().map(other).collect()
}

/// Starts to read a float tensor. The values are those at the time of this call, even if the tensor is overwritten
/// later.
pub fn start<const D: usize>(tensor: &Tensor<D>) -> Readback {
    read_f32(&[tensor])
}

/// The values of a read begun with [`start`].
pub fn finish(read: Readback) -> Vec<f32> {
    as_f32(&block_on(read).expect("readable")[0])
}

pub fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    finish(start(tensor))
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The largest difference as a fraction of the largest expected magnitude. It is infinite if a value is not finite or
/// the lengths differ. Checks have the form `error(..) <= bound`.
pub fn error(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs() as f64));
    difference(found, expected) / largest
}

/// The largest absolute difference, infinite in the same cases as [`error`].
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() || found.is_empty() || found.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    found.iter().zip(expected).fold(0f64, |m, (a, b)| m.max((*a as f64 - *b as f64).abs()))
}

/// The u32 words of the device's state.
pub fn state_words(cache: &KvCache) -> Vec<u32> {
    as_u32(&block_on(cache.read_state()).expect("readable")[0])
}

/// Asserts that lengths, capacities and headers on the device equal the host's copies.
#[track_caller]
pub fn assert_mirrored(cache: &KvCache) {
    let words = state_words(cache);
    for seq in 0..cache.shape().seqs {
        let header = &words[seq * state::SEQ..][..state::SEQ];
        let mirror = cache.sequence(seq);
        assert_eq!(header[state::POSITION], mirror.position.0, "position of sequence {seq}");
        assert_eq!(header[state::STEP], mirror.step, "step of sequence {seq}");
        for layer in 0..cache.shape().layers {
            let row = &words[cache.table_offset(layer) + seq * state::ROW..][..state::ROW];
            assert_eq!(row[state::LEN] as usize, cache.len(layer, seq), "length, layer {layer}, sequence {seq}");
            assert_eq!(row[state::CAP] as usize, cache.capacity(layer, seq), "capacity, layer {layer}, sequence {seq}");
        }
    }
}

/// The cached rows of a sequence in a layer, without what lies beyond its length: keys, then values, head by head.
pub fn rows(cache: &KvCache, layer: usize, seq: usize) -> Vec<u32> {
    let words = state_words(cache);
    let entry = &words[cache.table_offset(layer) + seq * state::ROW..][..state::ROW];
    let [len, base, cap] = [state::LEN, state::BASE, state::CAP].map(|i| entry[i] as usize);
    let shape = cache.shape();
    let row_words = shape.slot_bytes() / (2 * shape.kv_heads * 4);
    let read = secateur::expert::kernels::readback::read_u32(&[cache.layer(layer)]);
    let all = as_u32(&block_on(read).expect("readable")[0]);
    (0..2 * shape.kv_heads)
        .flat_map(|plane| all[(base + plane * cap) * row_words..][..len * row_words].to_vec())
        .collect()
}

/// Plans `input` and forwards it. Lengths do not advance.
pub fn forward(
    model: &Decoder,
    cache: &mut KvCache,
    input: Input<'_>,
    readout: Option<Reduce>,
) -> secateur::Result<ForwardOutput> {
    let plan = model.plan(input, cache)?;
    Ok(model.forward(&plan, cache, readout))
}

/// The last row's logits of `ids` as one chunk, or those of the pending tokens. Lengths do not advance.
pub fn last_logits(model: &Decoder, cache: &mut KvCache, input: Input<'_>) -> Tensor<2> {
    let out = forward(model, cache, input, None).expect("fits");
    model.logits(&out, Logits::Last)
}

/// Forwards `ids` as one chunk and advances; `next` becomes the pending token. Returns the last row's logits.
pub fn prefill(model: &Decoder, cache: &mut KvCache, seq: usize, ids: &[u32], next: u32) -> Tensor<2> {
    let logits = last_logits(model, cache, Input::Chunk { seq, ids });
    cache.advance(seq, ids.len(), next);
    logits
}

/// Forwards the pending token of the one sequence and advances; `next` becomes the pending token.
pub fn decode(model: &Decoder, cache: &mut KvCache, next: u32) -> Tensor<2> {
    let logits = last_logits(model, cache, Input::Pending(&[0]));
    cache.advance(0, 1, next);
    logits
}

/// A list of kept slots for each of several sets, and a choice of the set for each layer and head.
pub struct Kept<'a, F> {
    pub lists: &'a [Vec<Slot>],
    /// Returns the index in `lists` for a layer and head.
    pub pick: F,
}

impl<F: Fn(usize, usize) -> usize> KeepSets for Kept<'_, F> {
    fn slots(&self, layer: usize, head: usize) -> &[Slot] {
        &self.lists[(self.pick)(layer, head)]
    }
}

/// The fixtures' schedule evicts after the forward pass of these positions.
pub const EVENTS: [u32; 3] = [70, 100, 130];

/// The fixtures' schedule with the given evictions of each layer and KV head; probes are forwarded and rolled back at
/// each event. Returns the logits of each step.
pub fn schedule(
    fx: &Fixture,
    model: &Decoder,
    cache: &mut KvCache,
    scope: Scope,
    evicted: &dyn Fn(usize, usize, usize) -> Vec<u32>,
) -> Vec<f32> {
    let shape = *cache.shape();
    let sets = Sets { scope, layers: shape.layers, kv_heads: shape.kv_heads };
    let (question, ids) = (fx.ids("oracle.prompt.ids"), fx.ids("oracle.ids"));
    prefill(model, cache, 0, &question, ids[0]);
    let mut cached: Vec<Vec<u32>> = vec![(0..question.len() as u32).collect(); sets.count()];
    let mut reads = Vec::new();
    for i in 0..ids.len() {
        let next = ids.get(i + 1).copied().unwrap_or(0);
        reads.push(start(&decode(model, cache, next)));
        let position = (question.len() + i) as u32;
        cached.iter_mut().for_each(|set| set.push(position));
        let Some(event) = EVENTS.iter().position(|p| *p == position) else { continue };
        let before = cache.checkpoint(0);
        let probe = fx.ids(&format!("oracle.{event}.probe.ids"));
        forward(model, cache, Input::Probe { seq: 0, ids: &probe, layers: fx.config.num_layers }, Some(Reduce::Layer))
            .expect("fits");
        cache.rollback(&before, next);
        let keep = |(set, positions): (usize, &Vec<u32>)| {
            let (layer, head) = sets.place(set);
            let gone = evicted(event, layer.unwrap_or(0), head.unwrap_or(0));
            let stays = |slot: &usize| !gone.contains(&positions[*slot]);
            (0..positions.len()).filter(stays).map(|slot| Slot(slot as u32)).collect()
        };
        let kept: Vec<Vec<Slot>> = cached.iter().enumerate().map(keep).collect();
        let keep = Kept { lists: &kept, pick: |layer, head| sets.of(layer, head) };
        cache.keep(0, &keep, 1).expect("fits");
        for (set, kept) in cached.iter_mut().zip(&kept) {
            *set = kept.iter().map(|slot| set[slot.0 as usize]).collect();
        }
    }
    assert_mirrored(cache);
    reads.into_iter().flat_map(finish).collect()
}
