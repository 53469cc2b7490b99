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
use burn::tensor::Device;

use super::cube::{count_replay, counts, uncount};
use crate::{Error, ErrorKind, Result};

/// Recorded launches of one thread.
pub(crate) struct Recording {
    graph: Graph,
    launches: u64,
}

impl Recording {
    /// Records what `launch` launches. `launch` is called twice. What it launches first is done, and leaves the memory
    /// behind that the second call needs. What it launches then is recorded and not done. Neither time may it write to
    /// the device from the host or read from it. `None` if this device cannot record; the work was done then as well.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if what was launched second can neither be done nor be recorded. cubecl then refuses to read
    /// any of the buffers that it was given.
    pub fn of(device: &Device, mut launch: impl FnMut()) -> Result<Option<Self>> {
        let Some(client) = client(device) else {
            launch();
            return Ok(None);
        };
        let unrecorded = |e| {
            log::debug!("this device records nothing: {e:?}");
            Ok(None)
        };
        let prepared = client.graph_prepare();
        launch();
        if let Err(e) = prepared {
            return unrecorded(e);
        }
        if let Err(e) = client.start_capture() {
            // This call ends the preparation, and fails because nothing was recorded.
            client.stop_capture().err();
            return unrecorded(e);
        }
        let before = counts();
        launch();
        let recorded = counts().since(before);
        uncount(recorded);
        debug_assert_eq!(recorded.uploads, 0, "what is written cannot be recorded");
        let graph = client.stop_capture();
        let graph = graph.map_err(|e| failed("the launches of a step could not be recorded", &e))?;
        Ok(Some(Self { graph, launches: recorded.launches }))
    }

    /// Does the recorded work again, after everything that was launched before, and does not wait for it. The thread has to
    /// be the one that recorded it.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the device refuses.
    #[allow(unsafe_code, reason = "nobody checks that the recorded buffers still exist, see below")]
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the buffers of intermediate results are held by the recording. Those of the cache, the state, the sampler
        // and the weights are held by the runner, which drops the recording before it replaces any of them, and which alone
        // uses them, from one thread.
        let replayed = unsafe { self.graph.replay() };
        replayed.map_err(|e| failed("the device refuses work that was recorded", &e))?;
        count_replay(self.launches);
        Ok(())
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
