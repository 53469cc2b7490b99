//! Specialisations of shaders, their texts and the keys of their pipelines.
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{OnceLock, RwLock};

use burn::backend::wgpu::{KernelSource, SourceTemplate};
use burn::cubecl::ExecutionMode;
use burn::cubecl::prelude::KernelId;

use crate::fnv;

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

    pub(super) fn threads(&self) -> u32 {
        let threads = self.constants.iter().find(|(name, _)| *name == "THREADS");
        threads.expect("every kernel has THREADS").1
    }

    /// The text, made once, and the hash of it that keys the pipeline cache.
    pub(super) fn wgsl(&self) -> Wgsl {
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
pub(super) struct Wgsl {
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

    pub(in crate::kernels) static ON: AtomicBool = AtomicBool::new(false);
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

    pub(in crate::kernels) fn record(variant: &Variant, buffers: usize, info: usize) {
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
