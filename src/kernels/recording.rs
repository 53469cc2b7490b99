//! Launches that are recorded once and replayed: the same kernels with the same parameters on the same buffers.
//!
//! A launch costs the processor more than the GPU: its pipeline and buffers are looked up, its uniform is found or
//! uploaded, and its bindings are made. A replay does none of this. It gives the same results, because the device
//! does the same.
//!
//! A recording holds the memory that its kernels use, including memory of intermediate results. It must be dropped
//! before a buffer that it writes is replaced; otherwise that memory would not become free.
use burn::backend::{CubeDevice, DispatchDevice};
use burn::cubecl::client::{Client, Graph};
use burn::cubecl::server::ServerError;
use burn::tensor::Device;

use super::cube::{count_replay, counts, uncount};
use super::memory::{held_outputs, poisons};
use crate::{Error, ErrorKind, Result};

/// Recorded launches of one thread.
pub(crate) struct Recording {
    graph: Graph,
    launches: u64,
}

impl Recording {
    /// Records the launches of `launch`, which is called twice. The launches of the first call are executed, and
    /// leave behind the memory that the second call needs. Those of the second call are recorded and not executed.
    /// `launch` must not write to the device from the host or read from it. Returns `None` if nothing can be recorded
    /// now; the work was then executed all the same.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the device has failed, or if the launches of the second call can neither be executed
    /// nor recorded. cubecl then refuses to read any of the buffers that they use, the weights among them.
    pub fn record(device: &Device, mut launch: impl FnMut()) -> Result<Option<Self>> {
        let Some(client) = client(device).filter(|_| !poisons()) else {
            launch();
            return Ok(None);
        };
        if let Err(e) = client.graph_prepare() {
            log::debug!("nothing is recorded: {e:?}");
            launch();
            return Ok(None);
        }
        let window = Window(&client);
        // Nothing may be allocated during the recording. How many outputs share memory depends on how far the thread
        // of the device lags behind this one. So all outputs of the first call are held until that thread has caught
        // up: then there is separate memory for every output.
        let held = held_outputs(&mut launch);
        let caught_up = client.flush();
        drop(held);
        caught_up.and_then(|()| client.start_capture()).map_err(|e| failed("a step failed", &e))?;
        let before = counts();
        launch();
        let recorded = counts().since(before);
        uncount(recorded);
        debug_assert_eq!(recorded.uploads, 0, "what is written cannot be recorded");
        let graph = window.close().map_err(|e| failed("the launches of a step could not be recorded", &e))?;
        Ok(Some(Self { graph, launches: recorded.launches }))
    }

    /// Executes the recorded work again, after everything that was launched before, without waiting for it. The
    /// calling thread must be the one that recorded the work.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the device refuses.
    #[allow(unsafe_code, reason = "nobody checks that the recorded buffers still exist, see below")]
    pub fn replay(&self) -> Result<()> {
        // SAFETY: intermediate results lie on pages that the recording guards, and that serve no other allocation.
        // The buffers of the cache, the state and the sampler are held by the runner, which alone uses them, from one
        // thread, and which drops the recording before it replaces any of them. The weights are held by the runner's
        // model. Other runners and threads may read them at the same time, but nothing writes them.
        let replayed = unsafe { self.graph.replay() };
        replayed.map_err(|e| failed("the device refuses work that was recorded", &e))?;
        count_replay(self.launches);
        Ok(())
    }
}

/// A recording in progress. Dropping it ends the recording, even if the recorded function panics. Until then the
/// device refuses everything else.
struct Window<'c>(&'c Client);

impl Window<'_> {
    fn close(self) -> std::result::Result<Graph, ServerError> {
        let closed = self.0.stop_capture();
        std::mem::forget(self);
        closed
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        // This call fails if nothing was recorded yet, and ends the preparation all the same.
        self.0.stop_capture().err();
    }
}

fn failed(what: &str, e: &impl std::fmt::Debug) -> Error {
    Error::new(ErrorKind::Device, what).found(format!("{e:?}"))
}

fn client(device: &Device) -> Option<Client> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Some(CubeDevice::client(device)),
        _ => None,
    }
}
