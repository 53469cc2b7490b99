//! Launches that are recorded once and replayed: the same kernels with the same parameters on the same buffers.
//!
//! A launch costs the processor more than the GPU: its pipeline and buffers are looked up, its uniform is found or
//! uploaded, and its bindings are made. A replay does none of this. It gives the same results, because the device does
//! the same.
//!
//! What is recorded holds on to the memory that it touches, also to memory of intermediate results. It must be dropped
//! before a buffer that it writes is replaced, or that memory would not become free.
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
    /// Records what `launch` launches. `launch` is called twice. What it launches first is done, and leaves the memory
    /// behind that the second call needs. What it launches then is recorded and not done. Neither time may it write to
    /// the device from the host or read from it. `None` if nothing can be recorded now; the work was done then as well.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the device has failed, or if what was launched second can neither be done nor be recorded.
    /// cubecl then refuses to read any of the buffers that it was given, the weights among them.
    pub fn of(device: &Device, mut launch: impl FnMut()) -> Result<Option<Self>> {
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
        // Nothing may be allocated while launches are recorded, and how many outputs share their memory depends on how far
        // the thread of the device lags behind this one. So all outputs of the first call are held until it has caught up:
        // then there is memory for every output by itself.
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

    /// Does the recorded work again, after everything that was launched before, and does not wait for it. The thread has to
    /// be the one that recorded it.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the device refuses.
    #[allow(unsafe_code, reason = "nobody checks that the recorded buffers still exist, see below")]
    pub fn replay(&self) -> Result<()> {
        // SAFETY: intermediate results lie on pages that the recording guards, and that serve no other allocation. The
        // buffers of the cache, the state and the sampler are held by the runner, which alone uses them, from one thread, and
        // which drops the recording before it replaces any of them. The weights are held by the runner's model. Other runners
        // and threads may use them at the same time, but nobody writes them.
        let replayed = unsafe { self.graph.replay() };
        replayed.map_err(|e| failed("the device refuses work that was recorded", &e))?;
        count_replay(self.launches);
        Ok(())
    }
}

/// A recording under way, which ends even if what is recorded panics: until then the device refuses everything else.
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
        // It fails where nothing was recorded yet, and ends the preparation all the same.
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
