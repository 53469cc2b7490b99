//! The launch of a shader through cubecl.
use std::sync::atomic::Ordering;

use burn::backend::wgpu::{CubeTensor, SourceKernel};
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::cubecl::{CubeCount, CubeDim};

use super::uniform::Uniform;
use super::variant::{Variant, hooks};

/// Launches `variant` on a grid of `groups` workgroups with `buffers`, in the order of their bindings, and `uniform`
/// after them.
pub(super) fn launch<U: Uniform>(variant: &Variant, groups: [usize; 3], buffers: &[&CubeTensor], uniform: U) {
    debug_assert_eq!(variant.uniform, U::MEMBERS, "{}: another shader's uniform", variant.kernel);
    if hooks::ON.load(Ordering::Relaxed) {
        hooks::record(variant, buffers.len(), U::MEMBERS);
    }
    let bindings = buffers.iter().map(|t| t.handle.clone().binding()).collect();
    let [x, y, z] = groups.map(|n| u32::try_from(n).expect("the spec bounds its grid"));
    buffers[0].client.launch(
        Box::new(SourceKernel::new(variant.program(), CubeDim::new_1d(variant.threads()))),
        CubeCount::Static(x, y, z),
        KernelArguments::new()
            .with_buffers(bindings)
            .with_info(MetadataBindingInfo::custom(bytemuck::pod_collect_to_vec(&[uniform]))),
    );
}
