//! The time that each launch takes on its device.
//!
//! While launches are timed, each is put between two timestamps of its own. The device finishes it before the next
//! one begins, and the work is submitted after each launch. Launches that would overlap do not, so the times of a
//! step's launches need not add up to the time of the step.
use std::cell::{Cell, RefCell};

use burn::cubecl::client::Client;
use burn::cubecl::logging::{ProfileDuration, TimingMethod};
use serde::Serialize;
use web_time::Duration;

use crate::{Error, ErrorKind, Result};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static WINDOWS: RefCell<Vec<Window>> = const { RefCell::new(Vec::new()) };
}

/// A launch and its measurement, which is not read yet.
struct Window {
    kernel: &'static str,
    measured: std::result::Result<ProfileDuration, String>,
}

/// The clock that timed a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Two timestamps of the device, one before and one after the launch.
    Device,
    /// The clock of the host, where the device has no timestamps: from the launch until the device has finished it,
    /// the submission and the wait included.
    Host,
}

/// The time of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchTime {
    /// Stem of the shader's file.
    pub kernel: &'static str,
    /// From the beginning of the launch to its end.
    pub time: Duration,
    /// The clock that timed it.
    pub clock: Clock,
}

/// Runs `work`, and returns the time of each launch that this thread gives to a GPU meanwhile, in their order.
/// Launches that are replayed are not among them, and neither is the work of the CPU twins.
///
/// # Errors
/// Those of `work`, and [`ErrorKind::Device`] if the device measures a launch but gives no time for it.
pub async fn timed(work: impl FnOnce() -> Result<()>) -> Result<Vec<LaunchTime>> {
    /// Ends the timing even if `work` panics.
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            ON.set(false);
        }
    }
    WINDOWS.take();
    ON.set(true);
    let ends = Ends;
    let worked = work();
    drop(ends);
    let windows = WINDOWS.take();
    worked?;
    let mut times = Vec::with_capacity(windows.len());
    for Window { kernel, measured } in windows {
        let failed = |found: &str| {
            Error::new(ErrorKind::Device, "the device did not time a kernel")
                .at(kernel)
                .expected("a timestamp before its launch and a later one after it")
                .found(found)
                .help("measure again, or without `kernels`")
        };
        let measured = measured.map_err(|e| failed(&e))?;
        let clock = match measured.timing_method() {
            TimingMethod::Device => Clock::Device,
            TimingMethod::System => Clock::Host,
        };
        let ticks = measured.resolve().await.ok_or_else(|| failed("none, or two that are equal"))?;
        times.push(LaunchTime { kernel, time: ticks.duration(), clock });
    }
    Ok(times)
}

/// Calls `launch`, which launches `kernel` once, and times it if this thread runs within [`timed`].
pub(super) fn launch(client: &Client, kernel: &'static str, launch: impl FnOnce()) {
    if !ON.get() {
        return launch();
    }
    let begun = client.profile_start();
    launch();
    let measured = begun.and_then(|window| client.profile_end(window)).map_err(|e| format!("{e:?}"));
    WINDOWS.with_borrow_mut(|windows| windows.push(Window { kernel, measured }));
}
