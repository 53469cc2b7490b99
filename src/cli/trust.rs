//! Opens the device of a command, after a short test of its kernels. A driver that miscompiles a shader gives fluent
//! nonsense without any error, so an adapter is not relied on before it was tested.
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use secateur::expert::conformance::{self, SelfTest};
use secateur::expert::{file, kernels};
use secateur::{ComputeDevice, Result};

use super::screen::Progress;
use super::{state, warnings};

/// The most adapters that are remembered. A driver's update adds one.
const MOST: usize = 64;

/// The devices that this process has opened.
static OPENED: Mutex<Vec<ComputeDevice>> = Mutex::new(Vec::new());

/// Waits until all devices of this process have finished their work. The drivers end with the process, and some of
/// them crash if they are at work at that time.
pub fn settle() {
    for device in OPENED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        if let Err(e) = device.settle() {
            log::debug!("{e}");
        }
    }
}

/// Opens the device that `select` names. An adapter is tested when it is opened for the first time with its driver
/// and these shaders. That `auto` has found no GPU is said even to those who asked for `quiet`, because it decides how
/// long everything takes. A passed test is remembered if there is a [folder](state::file) for it.
///
/// # Errors
/// Those of [`ComputeDevice::open`] and of [`conformance::self_test`].
pub fn open(select: &str, quiet: bool) -> Result<ComputeDevice> {
    let device = pollster::block_on(ComputeDevice::open(select))?;
    // Otherwise the library warns, and the warning is printed.
    if quiet
        && select == "auto"
        && let Some(warning) = device.info.software_warning()
    {
        warnings::warn(&warning);
    }
    if device.info.backend == "cpu" {
        return Ok(device);
    }
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).push(device.clone());
    let shaders = kernels::shader_fingerprint();
    let key = format!("{shaders} {}", device.info.line());
    let memory = state::file("tested-adapters");
    let known = memory.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let mut known: BTreeSet<&str> = known.lines().collect();
    if known.contains(key.as_str()) {
        return Ok(device);
    }
    let mut bar = Progress::new(&format!("testing {} for the first time", device.info.name), quiet);
    let mut progress = |done, total| bar.at(done, total);
    pollster::block_on(conformance::self_test(&device, SelfTest::ElementTypes, &mut progress))?;
    if let Some(file) = memory {
        // Entries for other shaders are removed. If those shaders return, the adapter is tested again.
        known.retain(|line| line.starts_with(&shaders));
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(&key);
        let lines: String = known.iter().map(|line| format!("{line}\n")).collect();
        // If the file cannot be written, the adapter is tested again next time. That is no reason to stop.
        if let Err(e) = file::write_whole(&file, &lines) {
            log::debug!("{e}");
        }
    }
    Ok(device)
}
