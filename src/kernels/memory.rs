//! Buffers on a device: allocating them, writing into them, and the poison that conformance runs fill outputs with.
use std::cell::{Cell, RefCell};

use burn::backend::flex::FlexTensor;
use burn::backend::wgpu::CubeTensor;
use burn::backend::{Cube, CubeDevice, DispatchDevice, Flex};
use burn::cubecl::client::Client;
use burn::cubecl::server::Handle;
use burn::tensor::kind::Basic;
use burn::tensor::{Bytes, DType, Device, Element, Int, Tensor, TensorData};

use super::cube::count_upload;
use super::kernel::{from_cube, from_flex};

thread_local! {
    static POISON: Cell<bool> = const { Cell::new(false) };
    static KEPT: RefCell<Option<Vec<Handle>>> = const { RefCell::new(None) };
}

/// While poisoning is on, every output buffer of this thread starts as NaN words ([`POISON_WORD`]), which shows an
/// element that a kernel fails to write. It is meant for conformance runs, since it costs an upload per output.
pub fn poison_outputs(on: bool) {
    POISON.set(on);
}

/// Whether outputs of this thread are poisoned.
pub(super) fn poisons() -> bool {
    POISON.get()
}

/// Runs `launch`, and returns the outputs that this thread allocated meanwhile. As long as they are held, no two of
/// them share memory.
pub(super) fn held_outputs(launch: impl FnOnce()) -> Vec<Handle> {
    KEPT.set(Some(Vec::new()));
    launch();
    KEPT.take().unwrap_or_default()
}

/// The word that [`poison_outputs`] fills buffers with: a NaN that no kernel computes.
pub const POISON_WORD: u32 = 0xffc5_a5a5;

/// The cubecl device behind `device`; `None` for the CPU backend.
fn cube(device: &Device) -> Option<&CubeDevice> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Some(device),
        _ => None,
    }
}

fn allocate(client: Client, device: CubeDevice, shape: Vec<usize>, dtype: DType) -> CubeTensor {
    let words = shape.iter().product::<usize>();
    let handle = match poisons() {
        true => client.create(Bytes::from_elems(vec![POISON_WORD; words])),
        false => client.empty(words * 4),
    };
    KEPT.with_borrow_mut(|kept| {
        if let Some(kept) = kept {
            kept.push(handle.clone());
        }
    });
    CubeTensor::new_contiguous(client, device, shape.into(), handle, dtype)
}

/// A tensor of `values`, which are of type `dtype`.
///
/// `Tensor::from_data` would do the same, but it brings a conversion between every two types of burn: a tenth of a
/// megabyte of the page's engine.
pub(super) fn filled<E, K, const D: usize>(
    values: Vec<E>,
    shape: [usize; D],
    device: &Device,
    dtype: DType,
) -> Tensor<D, K>
where
    E: Element + bytemuck::Pod,
    K: Basic,
{
    assert_eq!(values.len(), shape.iter().product::<usize>(), "as many values as the shape has");
    match cube(device) {
        Some(cube) => {
            let client = cube.client();
            count_upload();
            let handle = client.create(Bytes::from_elems(values));
            let tensor = CubeTensor::new_contiguous(client, cube.clone(), shape.to_vec().into(), handle, dtype);
            Tensor::from_dispatch(from_cube(tensor))
        }
        None => Tensor::from_dispatch(from_flex(FlexTensor::from_data(TensorData::new(values, shape)))),
    }
}

/// An uninitialised output, or a poisoned one, beside `like`.
pub(super) fn empty(like: &CubeTensor, shape: Vec<usize>, dtype: DType) -> CubeTensor {
    allocate(like.client.clone(), like.device.clone(), shape, dtype)
}

/// Checks an in-place argument: it must be the only handle to its buffer, and contiguous. Panics otherwise, because
/// that is a bug of the caller.
///
/// The first check runs in conformance runs and debug builds only. Otherwise cubecl's thread may still hold a new
/// buffer, and waiting for its queue at every launch would defeat the purpose of the queue.
pub(super) fn owned(t: CubeTensor, what: &str) -> CubeTensor {
    if cfg!(debug_assertions) && KEPT.with_borrow(Option::is_none) || poisons() {
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

/// Runs `make`. Meanwhile every allocation on `device` gets its own buffer outside the pools, which has the exact
/// size and is returned to the driver when it is dropped. This is how a pruned cache really shrinks. On the CPU, only
/// runs `make`.
pub fn dedicated<T: Send>(device: &Device, make: impl FnOnce() -> T + Send) -> T {
    match cube(device) {
        Some(device) => device.client().memory_dedicated_allocation((), |()| make()),
        None => make(),
    }
}

/// Submits all pending work to the device. Until then, written data waits in the memory of the host. An error is
/// returned by the next read.
#[cfg(target_family = "wasm")]
pub(crate) fn flush(device: &Device) {
    if let Some(device) = cube(device) {
        device.client().flush().ok();
    }
}

/// An uninitialised u32 tensor `[words]` on `device`: zeros on the CPU.
pub fn empty_u32(device: &Device, words: usize) -> Tensor<1, Int> {
    match cube(device) {
        Some(cube) => Tensor::from_primitive::<Cube>(allocate(cube.client(), cube.clone(), vec![words], DType::U32)),
        None => super::u32_tensor(vec![0; words], device),
    }
}

/// An uninitialised f32 tensor `[rows, cols]` on `device`, for kernels that write their output in place: zeros on the
/// CPU.
pub fn empty_f32(device: &Device, shape: [usize; 2]) -> Tensor<2> {
    match cube(device) {
        Some(cube) => Tensor::from_primitive::<Cube>(allocate(cube.client(), cube.clone(), shape.to_vec(), DType::F32)),
        None => super::f32_tensor(vec![0.0; shape[0] * shape[1]], shape, device),
    }
}

/// Overwrites `words.len()` words of `tensor` from word `start` on, in place and without waiting. Everything that was
/// launched before reads the old words, everything launched after reads the new ones.
pub fn write_u32(tensor: Tensor<1, Int>, start: usize, words: Vec<u32>) -> Tensor<1, Int> {
    assert!(start + words.len() <= tensor.dims()[0], "the write stays inside");
    match tensor.clone().try_into_primitive::<Cube>() {
        Ok(t) => {
            let end = (tensor.dims()[0] - start - words.len()) as u64 * 4;
            let part = t.handle.clone().offset_start(start as u64 * 4).offset_end(end);
            count_upload();
            t.client.write(&part, Bytes::from_elems(words));
            tensor
        }
        Err(_) => {
            let mut t = tensor.try_into_primitive::<Flex>().expect("Cube or Flex");
            let storage = t.try_storage_mut::<u32>().expect("an in-place write needs the only handle");
            storage[start..start + words.len()].copy_from_slice(&words);
            Tensor::from_primitive::<Flex>(t)
        }
    }
}

/// Words `start .. start + n` of `tensor`, for reading: the same buffer on a GPU, a copy on the CPU.
pub fn slice(tensor: &Tensor<1, Int>, start: usize, n: usize) -> Tensor<1, Int> {
    assert!(start + n <= tensor.dims()[0], "the slice lies inside");
    match tensor.clone().try_into_primitive::<Cube>() {
        Ok(t) => {
            let end = (tensor.dims()[0] - start - n) as u64 * 4;
            let handle = t.handle.clone().offset_start(start as u64 * 4).offset_end(end);
            let part = CubeTensor::new_contiguous(t.client.clone(), t.device.clone(), vec![n].into(), handle, t.dtype);
            Tensor::from_primitive::<Cube>(part)
        }
        Err(_) => {
            let t = tensor.clone().try_into_primitive::<Flex>().expect("Cube or Flex");
            let words = t.as_slice::<u32>().expect("contiguous words");
            super::u32_tensor(words[start..start + n].to_vec(), &tensor.device())
        }
    }
}
