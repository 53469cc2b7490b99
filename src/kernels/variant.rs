//! Specialisations of shaders: their texts, and the keys of their pipelines.
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{OnceLock, RwLock};

use burn::backend::wgpu::{KernelSource, SourceTemplate};
use burn::cubecl::ExecutionMode;
use burn::cubecl::prelude::KernelId;

use super::uniform::{Member, Uniform};
use crate::dtype::Dtype;

pub(super) const COMMON: &str = include_str!("../../shaders/common.wgsl");
/// Texts that a kernel includes by a line `// include NAME`.
const INCLUDED: [(&str, &str); 4] = [
    ("// include rows.wgsl", include_str!("../../shaders/rows.wgsl")),
    ("// include keys.wgsl", include_str!("../../shaders/keys.wgsl")),
    ("// include weights.wgsl", include_str!("../../shaders/weights.wgsl")),
    ("// include dots.wgsl", include_str!("../../shaders/dots.wgsl")),
];

/// The texts that are put in front of the kernels' own texts.
pub(super) fn shared_texts() -> impl Iterator<Item = &'static str> {
    std::iter::once(COMMON).chain(INCLUDED.map(|(_, text)| text))
}

/// One specialisation of a shader: the text of its file, and the constants that are put in front of the text.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Stem of the file in `shaders/`.
    pub kernel: &'static str,
    /// The text of the file.
    pub text: &'static str,
    /// Constants of type u32, in the order they are written. `UNIT` (1 or 4) is written as the type `Unit`, which has
    /// this number of words; `DTYPE` is followed by the constants of its format.
    pub constants: Vec<(&'static str, u32)>,
    /// The members of the uniform that is passed with the buffers.
    pub uniform: &'static [Member],
}

impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        // Texts are compared last, and by address first: they are long, and almost always the same static string.
        self.kernel == other.kernel
            && self.constants == other.constants
            && self.uniform == other.uniform
            && (std::ptr::eq(self.text, other.text) || self.text == other.text)
    }
}

impl Eq for Variant {}

impl Hash for Variant {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The text is left out, because it would be hashed at every launch and hardly ever differs for equal names.
        (self.kernel, &self.constants).hash(state);
    }
}

impl Variant {
    /// A specialisation of `shaders/{kernel}.wgsl`, whose text is `text` and whose uniform is `U`.
    pub(super) fn new<U: Uniform>(
        kernel: &'static str,
        text: &'static str,
        constants: impl IntoIterator<Item = (&'static str, u32)>,
    ) -> Self {
        Self { kernel, text, constants: constants.into_iter().collect(), uniform: U::MEMBERS }
    }

    /// The final text: the constants, `common.wgsl`, the texts that the kernel includes, then the kernel; without
    /// what the text marks as only for quantized weights, or only for plain ones.
    pub fn source(&self) -> String {
        let constants = self.constants.iter().map(|(name, value)| match (*name, *value) {
            ("UNIT", 1) => "alias Unit = u32;\n".into(),
            ("UNIT", 4) => "alias Unit = vec4<u32>;\n".into(),
            ("DTYPE", code) => format!("const DTYPE = {code}u;\n{}", Dtype::ALL[code as usize].constants()),
            (name, value) => format!("const {name} = {value}u;\n"),
        });
        let plain = |(name, code): &(&str, u32)| *name == "DTYPE" && !Dtype::ALL[*code as usize].is_quantized();
        let absent = if self.constants.iter().any(plain) { "quantized" } else { "plain" };
        let included = INCLUDED.iter().filter(|(line, _)| self.text.contains(line)).map(|(_, text)| text.to_string());
        let text: String =
            constants.chain([COMMON.to_string()]).chain(included).chain([self.text.to_string()]).collect();
        without(&text, absent)
    }

    pub(super) fn threads(&self) -> u32 {
        let threads = self.constants.iter().find(|(name, _)| *name == "THREADS");
        threads.expect("every kernel has THREADS").1
    }

    /// The text and the key of the pipeline. Both are made at the first launch and kept.
    pub(super) fn program(&self) -> Program {
        if hooks::on()
            && let Some(text) = hooks::replacement(self)
        {
            return Program::from_variant(Self { text, ..self.clone() }, false);
        }
        if let Some((program, _)) = programs().read().expect("no panic while held").get(self) {
            return *program;
        }
        Program::from_variant(self.clone(), true)
    }
}

/// `text` without the lines from each `// only WHAT weights` to the next `// end`. A compiler would leave them out,
/// too, but only after it has unrolled and inlined them.
fn without(text: &str, what: &str) -> String {
    let begin = format!("// only {what} weights");
    let mut inside = false;
    let mut kept = String::with_capacity(text.len());
    for line in text.lines() {
        inside |= line.trim() == begin;
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
        inside &= line.trim() != "// end";
    }
    kept
}

/// The programs made so far. The flag says whether the program is the kernel's file and not a test's replacement.
type Programs = RwLock<HashMap<Variant, (Program, bool)>>;

fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(Default::default)
}

/// Every variant that this process has launched on a GPU. A conformance run translates these for the other graphics
/// APIs.
pub fn launched_variants() -> Vec<Variant> {
    let programs = programs().read().expect("no panic while held");
    let mut variants: Vec<Variant> =
        programs.iter().filter(|(_, (_, own))| *own).map(|(variant, _)| variant.clone()).collect();
    variants.sort_by(|a, b| (a.kernel, &a.constants).cmp(&(b.kernel, &b.constants)));
    variants
}

/// A variant's final text, under the number that keys its pipeline. The number is given out once to each variant, by
/// a map that compares whole variants: two different texts never share one, even if their hashes are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    text: &'static str,
    number: usize,
}

impl Program {
    fn from_variant(variant: Variant, own: bool) -> Self {
        let mut programs = programs().write().expect("no panic while held");
        let number = programs.len();
        let make = || (Self { text: Box::leak(variant.source().into_boxed_str()), number }, own);
        // Another thread may have added it in the meantime.
        if let Some((program, _)) = programs.get(&variant) {
            return *program;
        }
        let made = make();
        programs.insert(variant, made);
        made.0
    }
}

impl KernelSource for Program {
    fn source(&self) -> SourceTemplate {
        SourceTemplate::new(self.text)
    }

    /// The mode is unchecked: naga then leaves out the counter that it otherwise adds to every loop, to end the loop
    /// after 2^64 turns. With the counter, compilers do not unroll loops, and an array that is indexed in a loop
    /// lives in memory, not in registers. The loops of the kernels are bounded by constants, by what the specs pass,
    /// and by a sequence's length and capacity in the state.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.number).mode(ExecutionMode::Unchecked)
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// For the tests of the shaders and of the conformance cases: these hooks see every launch, and may replace the text
/// of a kernel.
#[doc(hidden)]
pub mod hooks {
    use std::cell::{Cell, RefCell};

    use super::{Member, Variant};

    thread_local! {
        static ON: Cell<bool> = const { Cell::new(false) };
        static HOOKS: RefCell<Hooks> = const { RefCell::new(Hooks { replaced: None, launches: Vec::new() }) };
    }

    struct Hooks {
        replaced: Option<(&'static str, &'static str)>,
        launches: Vec<Launch>,
    }

    /// One kind of launch.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Launch {
        /// The specialisation that was launched.
        pub variant: Variant,
        /// Storage buffers that were passed, in the order of their bindings.
        pub buffers: usize,
        /// The members of the uniform that was passed after the buffers.
        pub uniform: &'static [Member],
    }

    /// Whether this thread runs within [`with`].
    pub(in crate::kernels) fn on() -> bool {
        ON.get()
    }

    /// Runs `f`. During this call, every launch by this thread of the shader `replace.0` uses `replace.1` as the text
    /// of its file. Also returns this thread's launches, each kind once.
    pub fn with<T>(replace: Option<(&'static str, String)>, f: impl FnOnce() -> T) -> (T, Vec<Launch>) {
        /// Removes the hooks even if `f` panics, so that the next test of the thread does not use them.
        struct Ends;
        impl Drop for Ends {
            fn drop(&mut self) {
                ON.set(false);
                HOOKS.with_borrow_mut(|hooks| hooks.replaced = None);
            }
        }
        let replaced = replace.map(|(kernel, text)| (kernel, &*Box::leak(text.into_boxed_str())));
        HOOKS.set(Hooks { replaced, launches: Vec::new() });
        ON.set(true);
        let ends = Ends;
        let result = f();
        drop(ends);
        (result, HOOKS.with_borrow_mut(|hooks| std::mem::take(&mut hooks.launches)))
    }

    pub(in crate::kernels) fn record(variant: &Variant, buffers: usize, uniform: &'static [Member]) {
        let launch = Launch { variant: variant.clone(), buffers, uniform };
        HOOKS.with_borrow_mut(|hooks| {
            if !hooks.launches.contains(&launch) {
                hooks.launches.push(launch);
            }
        });
    }

    pub(super) fn replacement(variant: &Variant) -> Option<&'static str> {
        let (kernel, text) = HOOKS.with_borrow(|hooks| hooks.replaced)?;
        (kernel == variant.kernel).then_some(text)
    }
}

/// A grid of at least `groups` workgroups in two dimensions, of which WebGPU allows 65,535 each. Kernels that use it
/// compute the flat index from both and ignore indices that are too large.
pub fn grid(groups: usize) -> [usize; 3] {
    const MOST: usize = 32_768;
    [groups.min(MOST), groups.div_ceil(MOST), 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variant(text: &'static str, value: u32) -> Variant {
        Variant { kernel: "test", text, constants: vec![("THREADS", value)], uniform: &[] }
    }

    #[test]
    fn what_is_for_other_weights_is_left_out() {
        let text = "a\n// only plain weights\nb\n// end\n  // only quantized weights\nc\n  // end\nd\n";
        assert_eq!(without(text, "quantized"), "a\n// only plain weights\nb\n// end\nd\n");
        assert_eq!(without(text, "plain"), "a\n  // only quantized weights\nc\n  // end\nd\n");
    }

    /// Each variant has its own pipeline key, even if its hash equals that of another: variants that differ only in
    /// their text.
    #[test]
    fn every_variant_has_a_pipeline_key_of_its_own() {
        let hash = |v: &Variant| {
            let mut hasher = std::collections::hash_map::DefaultHasher::new();
            v.hash(&mut hasher);
            hasher.finish()
        };
        let (a, b, c) = (variant("// a", 64), variant("// b", 64), variant("// a", 32));
        assert_eq!(hash(&a), hash(&b), "these two collide in the map");
        let ids = [&a, &b, &c].map(|v| Program::from_variant(v.clone(), false).id());
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
        assert_eq!(Program::from_variant(a.clone(), false).id(), ids[0]);
        assert_eq!(Program::from_variant(b, false).text.lines().next_back(), Some("// b"));
    }
}
