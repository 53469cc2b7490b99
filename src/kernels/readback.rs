//! Reading tensors from a device.
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use burn::backend::wgpu::CubeTensor;
use burn::backend::{Cube, Flex};
use burn::tensor::{Device, Int, Tensor};

use super::kernel::contiguous;
use crate::Result;

#[cfg(not(target_family = "wasm"))]
type Reading = Pin<Box<dyn Future<Output = Result<Vec<Vec<u8>>>> + Send>>;
#[cfg(target_family = "wasm")]
type Reading = Pin<Box<dyn Future<Output = Result<Vec<Vec<u8>>>>>>;

/// A read that is under way. It resolves to the bytes of each tensor, and may be dropped at any time.
pub struct Readback(Option<Reading>);

thread_local! {
    /// Reads that were dropped before they were complete. Their staging buffers are still mapped. If such a buffer
    /// went back to cubecl's pool, the next read that uses it would fail validation and make the device unusable.
    /// These reads are therefore completed here.
    static ORPHANS: std::cell::RefCell<Vec<Reading>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Drops the orphans that are complete by now.
fn drop_complete_orphans() {
    let nudge = |read: &mut Reading| poll_guarded(read, &mut Context::from_waker(Waker::noop())).is_pending();
    ORPHANS.with_borrow_mut(|orphans| orphans.retain_mut(nudge));
}

thread_local! {
    static GUARDED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether this thread is polling a read. A panic is then caught and becomes an error, so a panic hook should not
/// print it.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Polls a read. If the device is lost between the mapping of a staging buffer and the copy from it, cubecl panics.
/// The panic is returned as an error.
fn poll_guarded(read: &mut Reading, cx: &mut Context<'_>) -> Poll<Result<Vec<Vec<u8>>>> {
    GUARDED.set(true);
    let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read.as_mut().poll(cx)));
    GUARDED.set(false);
    polled.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let said = said.unwrap_or("a panic without a message");
        Poll::Ready(Err(crate::device::failure(&format!("what was read from the device no longer exists: {said}"))))
    })
}

impl Readback {
    fn ready(bytes: Vec<Vec<u8>>) -> Self {
        Self(Some(Box::pin(std::future::ready(Ok(bytes)))))
    }
}

impl Future for Readback {
    type Output = Result<Vec<Vec<u8>>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = poll_guarded(self.0.as_mut().expect("not polled after it was ready"), cx);
        if done.is_ready() {
            self.0 = None;
        }
        done
    }
}

impl Drop for Readback {
    fn drop(&mut self) {
        if let Some(read) = self.0.take() {
            // At the end of a thread the list no longer exists, and no further read follows.
            let _ = ORPHANS.try_with(|orphans| orphans.borrow_mut().push(read));
        }
    }
}

fn gpu_handle<const D: usize>(t: &Tensor<D>) -> Option<CubeTensor> {
    t.clone().try_into_primitive::<Cube>().ok().map(contiguous)
}

/// Reads u32 tensors. The copies are enqueued by this call, before it returns: they do not contain what is launched
/// later, even if it writes in place (`Tensor::into_data_async` copies when the bytes are first looked at).
pub fn read_u32(tensors: &[&Tensor<1, Int>]) -> Readback {
    let gpu: Vec<_> = tensors.iter().filter_map(|t| (*t).clone().try_into_primitive::<Cube>().ok()).collect();
    if gpu.len() == tensors.len() && !gpu.is_empty() {
        return read_gpu(gpu, tensors[0].device());
    }
    let cpu = tensors.iter().map(|t| (*t).clone().try_into_primitive::<Flex>().expect("Cube or Flex"));
    let bytes = cpu.map(|t| t.to_contiguous().bytes().to_vec()).collect();
    Readback::ready(bytes)
}

/// Reads f32 tensors, as [`read_u32`] reads u32 tensors.
pub fn read_f32<const D: usize>(tensors: &[&Tensor<D>]) -> Readback {
    let gpu: Vec<_> = tensors.iter().filter_map(|t| gpu_handle(t)).collect();
    if gpu.len() == tensors.len() && !gpu.is_empty() {
        return read_gpu(gpu, tensors[0].device());
    }
    let cpu = tensors.iter().map(|t| (*t).clone().try_into_primitive::<Flex>().expect("Cube or Flex"));
    let bytes = cpu.map(|t| t.to_contiguous().bytes().to_vec()).collect();
    Readback::ready(bytes)
}

fn read_gpu(tensors: Vec<CubeTensor>, device: Device) -> Readback {
    let client = tensors[0].client.clone();
    let lengths: Vec<usize> = tensors.iter().map(|t| t.meta.shape().num_elements() * 4).collect();
    let handles = tensors.into_iter().map(|t| t.handle).collect();
    drop_complete_orphans();
    let mut read: Reading = Box::pin(async move {
        let bytes = client.read_async(handles).await.map_err(|e| crate::device::failure(&format!("{e:?}")))?;
        // A device that has failed, for example at an allocation, can still be read, so the failure is checked here.
        crate::device::check(&device)?;
        Ok(bytes.iter().zip(lengths).map(|(b, n)| b[..n].to_vec()).collect())
    });
    // The first poll makes cubecl enqueue the copies; a later one, with the caller's waker, waits for them.
    match poll_guarded(&mut read, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Readback(Some(Box::pin(std::future::ready(done)))),
        Poll::Pending => Readback(Some(read)),
    }
}

/// The u32 words in `bytes`.
pub fn as_u32(bytes: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// The f32 values in `bytes`.
pub fn as_f32(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}
