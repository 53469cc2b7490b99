//! The interface of a kernel: tensors in, tensors out. It runs as WGSL on burn's Cube backend, and as a twin on the
//! CPU backend.
use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::backend::{
    BackendTensor, BackendTypes, Cube, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Flex,
};
use burn::tensor::kind::Basic;
use burn::tensor::{DType, Tensor};

use super::memory::owned;

/// An operation with `IN` input tensors and `OUT` output tensors, implemented by its spec.
///
/// Float tensors are f32, integer tensors hold u32 words. Inputs are contiguous. An input that is named in
/// [`IN_PLACE`](Self::IN_PLACE) is the only handle to its buffer, and is among the outputs as the same buffer.
pub(super) trait Kernel<const IN: usize, const OUT: usize> {
    /// The inputs that are written in place: their index, and their name in messages.
    const IN_PLACE: &'static [(usize, &'static str)] = &[];

    /// Allocates the other outputs and launches the shader, once or in several passes.
    fn launch(&self, inputs: [CubeTensor; IN]) -> [CubeTensor; OUT];

    /// The same arithmetic over slices, accumulated in f64.
    fn twin(&self, inputs: [FlexTensor; IN]) -> [FlexTensor; OUT];
}

/// Prepares an argument that a kernel reads.
pub(super) fn read<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> DispatchTensor {
    tensor.clone().into_dispatch()
}

/// Runs `kernel` on the backend that the inputs live on.
pub(super) fn run<K: Kernel<IN, OUT>, const IN: usize, const OUT: usize>(
    kernel: &K,
    inputs: [DispatchTensor; IN],
) -> [DispatchTensor; OUT] {
    let in_place = |i: usize| K::IN_PLACE.iter().find(|(place, _)| *place == i).map(|(_, name)| *name);
    let mut place = 0..IN;
    let mut next = || in_place(place.next().expect("as many places as inputs"));
    match inputs[0].kind {
        DispatchTensorKind::Cube(_) => {
            let prepared = |input: DispatchTensor| match next() {
                Some(name) => owned(cube(input), name),
                None => contiguous(cube(input)),
            };
            kernel.launch(inputs.map(prepared)).map(from_cube)
        }
        DispatchTensorKind::Flex(_) => {
            let prepared = |input: DispatchTensor| match next() {
                Some(_) => flex(input),
                None => flex(input).to_contiguous(),
            };
            kernel.twin(inputs.map(prepared)).map(from_flex)
        }
    }
}

/// A tensor on a GPU.
pub(super) fn from_cube(t: CubeTensor) -> DispatchTensor {
    dispatched(DispatchTensorKind::Cube(typed::<Cube, _>(t.dtype, t)))
}

/// A tensor on the CPU.
pub(super) fn from_flex(t: FlexTensor) -> DispatchTensor {
    dispatched(DispatchTensorKind::Flex(typed::<Flex, _>(t.dtype(), t)))
}

fn dispatched(kind: DispatchTensorKind) -> DispatchTensor {
    DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled }
}

/// Checks that a tensor is contiguous and returns it. No tensor of secateur is a view, because only its own kernels
/// compute. burn's kernel that copies views would be a large part of the program.
pub(super) fn contiguous(t: CubeTensor) -> CubeTensor {
    assert!(t.is_contiguous(), "a view is read");
    t
}

fn cube(tensor: DispatchTensor) -> CubeTensor {
    match tensor.kind {
        DispatchTensorKind::Cube(BackendTensor::Float(t) | BackendTensor::Int(t)) => t,
        other => panic!("the first input is on the GPU, another one is {other:?}"),
    }
}

fn flex(tensor: DispatchTensor) -> FlexTensor {
    match tensor.kind {
        DispatchTensorKind::Flex(BackendTensor::Float(t) | BackendTensor::Int(t)) => t,
        other => panic!("the first input is on the CPU, another one is {other:?}"),
    }
}

fn typed<B, T>(dtype: DType, tensor: T) -> BackendTensor<B>
where
    B: BackendTypes<FloatTensorPrimitive = T, IntTensorPrimitive = T>,
{
    if dtype.is_float() { BackendTensor::Float(tensor) } else { BackendTensor::Int(tensor) }
}
