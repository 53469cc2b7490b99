//! The launch of a shader through cubecl.
use std::cell::Cell;

use burn::backend::wgpu::{CubeTensor, SourceKernel};
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::cubecl::{CubeCount, CubeDim};

use super::timing;
use super::uniform::Uniform;
use super::variant::{Variant, hooks};

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { launches: 0, uploads: 0, replays: 0 }) };
}

/// Counts of the work that this thread has given to GPUs since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Kernels that were launched, those of replays included.
    pub launches: u64,
    /// Buffers that were filled or written into from the host, the parameters of launches not counted.
    pub uploads: u64,
    /// Replays of recorded launches.
    pub replays: u64,
}

impl Counts {
    /// The work after `before`: the differences of all counts.
    pub fn since(self, before: Self) -> Self {
        Self {
            launches: self.launches - before.launches,
            uploads: self.uploads - before.uploads,
            replays: self.replays - before.replays,
        }
    }
}

/// The counts of the work that this thread has given to GPUs since it began.
pub fn counts() -> Counts {
    COUNTS.get()
}

pub(super) fn count_launch() {
    let counts = COUNTS.get();
    COUNTS.set(Counts { launches: counts.launches + 1, ..counts });
}

pub(super) fn count_replay(launches: u64) {
    let counts = COUNTS.get();
    COUNTS.set(Counts { launches: counts.launches + launches, replays: counts.replays + 1, ..counts });
}

/// Subtracts work that was counted but is not carried out.
pub(super) fn uncount(counts: Counts) {
    COUNTS.set(COUNTS.get().since(counts));
}

pub(super) fn count_upload() {
    let counts = COUNTS.get();
    COUNTS.set(Counts { uploads: counts.uploads + 1, ..counts });
}

/// Launches `variant` on a grid of `groups` workgroups with `buffers`, in the order of their bindings, and `uniform`
/// after them.
///
/// # Panics
/// If two bindings have the same memory. WebGPU refuses that, because every binding is declared as writable; wgpu on
/// Vulkan, Metal and DX12 does not.
pub(super) fn launch<U: Uniform>(variant: &Variant, groups: [usize; 3], buffers: &[&CubeTensor], uniform: U) {
    debug_assert_eq!(variant.uniform, U::MEMBERS, "{}: another shader's uniform", variant.kernel);
    if hooks::on() {
        hooks::record(variant, buffers.len(), U::MEMBERS);
    }
    count_launch();
    let bindings: Vec<_> = buffers.iter().map(|t| t.handle.clone().binding()).collect();
    for (i, binding) in bindings.iter().enumerate() {
        let earlier = bindings[..i].iter().position(|earlier| earlier.memory.id() == binding.memory.id());
        assert!(
            earlier.is_none(),
            "{}: bindings {} and {i} have the same memory",
            variant.kernel,
            earlier.unwrap_or(i)
        );
    }
    let [x, y, z] = groups.map(|n| u32::try_from(n).expect("the spec bounds its grid"));
    let client = &buffers[0].client;
    timing::launch(client, variant.kernel, || {
        client.launch(
            Box::new(SourceKernel::new(variant.program(), CubeDim::new_1d(variant.threads()))),
            CubeCount::Static(x, y, z),
            KernelArguments::new()
                .with_buffers(bindings)
                .with_info(MetadataBindingInfo::custom(bytemuck::pod_collect_to_vec(&[uniform]))),
        );
    });
}
