//! Every kernel case on every adapter of this machine, compared with the CPU twins. `SECATEUR_REQUIRE=cpu,llvmpipe`
//! names backends or parts of names; an adapter that is named and missing is a failure, so nothing passes because it
//! did not run.
use secateur::device::{self, ComputeDevice};
use secateur::expert::conformance::{self, Report};
use secateur::expert::kernels::cases;

#[test]
fn every_case_on_every_adapter() {
    let _one = crate::common::alone();
    let cases = cases::all();
    assert!(cases.len() >= 90, "only {} cases", cases.len());
    let mut reports: Vec<Report> = Vec::new();
    for info in pollster::block_on(device::list()) {
        if info.unfit().is_some() {
            println!("SKIPPED {}: {}", info.line(), info.unfit().unwrap());
            continue;
        }
        // Some drivers list an adapter that they refuse to open, such as NVIDIA's OpenGL without a display. If it is
        // required, it counts as missing.
        let device = match pollster::block_on(ComputeDevice::open_info(&info)) {
            Ok(device) => device,
            Err(e) => {
                println!("SKIPPED {}: {e}", info.line());
                continue;
            }
        };
        let report = pollster::block_on(conformance::run(&device, &cases, |_, _| ())).expect("readable");
        reports.push(report);
    }
    println!("{}", conformance::table(&reports));
    let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default();
    assert_eq!(conformance::missing(&reports, required.split(',')), [""; 0], "required adapters are missing");
    for report in &reports {
        assert_eq!(report.passed + report.failed, cases.len(), "{}", report.device.line());
        assert_eq!(report.failed, 0, "{}: see the table", report.device.line());
        for kernel in &report.kernels {
            assert!(kernel.cases > 0 && kernel.outputs >= kernel.cases, "{} did not run", kernel.kernel);
        }
    }
}
