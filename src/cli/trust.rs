//! Opens the device of a command, after a short test of its kernels. A driver that miscompiles a shader gives fluent
//! nonsense without any error, so an adapter is not relied on before it was tested.
use std::collections::BTreeSet;
use std::path::Path;
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
pub fn wait_until_done() {
    for device in OPENED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        if let Err(e) = device.wait_until_done() {
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
    test(&device, state::file("tested-adapters").as_deref(), quiet)?;
    Ok(device)
}

/// Tests an adapter, unless the file `memory` has it.
fn test(device: &ComputeDevice, memory: Option<&Path>, quiet: bool) -> Result<()> {
    let shaders = kernels::shader_fingerprint();
    let key = format!("{shaders} {}", device.info.line());
    let known = memory.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let mut known: BTreeSet<&str> = known.lines().collect();
    if known.contains(key.as_str()) {
        return Ok(());
    }
    let mut bar = Progress::new(&format!("testing {} for the first time", device.info.name), quiet);
    let mut progress = |done, total| bar.at(done, total);
    pollster::block_on(conformance::self_test(device, SelfTest::ElementTypes, &mut progress))?;
    if let Some(file) = memory {
        // Entries for other shaders are removed. If those shaders return, the adapter is tested again.
        known.retain(|line| line.starts_with(&shaders));
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(&key);
        let lines: String = known.iter().map(|line| format!("{line}\n")).collect();
        // If the file cannot be written, the adapter is tested again next time. That is no reason to stop.
        if let Err(e) = file::write_whole(file, &lines) {
            log::debug!("{e}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secateur::ErrorKind;
    use secateur::device;
    use secateur::expert::kernels::variant::hooks;

    /// An adapter of this machine. There must be one where `SECATEUR_REQUIRE` names others than the CPU.
    fn adapter() -> Option<ComputeDevice> {
        let fit = pollster::block_on(device::list()).into_iter().filter(|info| info.unfit().is_none());
        let best = fit.filter(|info| info.backend != "cpu").min_by_key(|info| info.name.contains("SwiftShader"));
        let opened = best.and_then(|info| pollster::block_on(ComputeDevice::open_info(&info)).ok());
        let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default();
        let others = required.split(',').any(|name| !matches!(name.trim(), "" | "cpu"));
        assert!(opened.is_some() || !others, "no adapter, but SECATEUR_REQUIRE is {required}");
        opened
    }

    #[test]
    fn an_adapter_that_computes_wrong_results_is_refused_each_time() {
        let Some(device) = adapter() else { return println!("SKIPPED: no adapter") };
        let folder = tempfile::tempdir().expect("a temporary directory");
        let memory = folder.path().join("tested-adapters");
        let text = kernels::variants().into_iter().find(|variant| variant.kernel == "rms_norm").expect("listed").text;
        // The mean of the squares becomes their sum.
        let wrong = text.replace("/ f32(info.cols)", "");
        assert_ne!(wrong, text, "rms_norm.wgsl has changed");
        let (refused, _) = hooks::with(Some(("rms_norm", wrong)), || test(&device, Some(&memory), true));
        let refused = refused.expect_err("a wrong kernel passes");
        assert_eq!(refused.kind(), ErrorKind::Device);
        for part in ["computes wrong results in rms_norm", &device.info.line(), "rms_norm"] {
            assert!(refused.to_string().contains(part), "{part:?} is missing from:\n{refused}");
        }
        assert!(!memory.exists(), "an adapter that failed is remembered");

        let began = std::time::Instant::now();
        test(&device, Some(&memory), true).expect("the kernels are right");
        println!("tested in {:.1} s", began.elapsed().as_secs_f64());
        assert!(std::fs::read_to_string(&memory).expect("written").contains(&device.info.line()));
        let (tested, launches) = hooks::with(None, || test(&device, Some(&memory), true));
        tested.expect("it is remembered");
        assert!(launches.is_empty(), "a tested adapter is tested again");
    }
}
