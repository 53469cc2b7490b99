//! `secateur conformance`: checks the kernels of every device against the CPU reference.
use std::process::ExitCode;

use secateur::device::{self, ComputeDevice, DeviceInfo};
use secateur::expert::conformance::{self, Report, shaders};
use secateur::expert::kernels::cases;
use secateur::{Error, ErrorKind, Result};
use serde::Serialize;

use super::{fields, screen};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The devices to check: all (every adapter and the CPU reference), or one device, named as for `run`.
    #[arg(long, default_value = "all")]
    device: String,
    /// Print one JSON object to stdout.
    #[arg(long)]
    json: bool,
    /// Fail unless these devices were checked: a comma-separated list of backends or parts of adapter names, such as
    /// cpu,llvmpipe.
    #[arg(long, value_delimiter = ',')]
    require: Vec<String>,
}

#[derive(Serialize)]
struct Skipped {
    device: DeviceInfo,
    reason: String,
}

#[derive(Serialize)]
struct Outcome {
    secateur: &'static str,
    reports: Vec<Report>,
    skipped: Vec<Skipped>,
    missing: Vec<String>,
    shaders: shaders::Translations,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    let devices = match args.device.as_str() {
        "all" => pollster::block_on(device::list()),
        select => vec![pollster::block_on(ComputeDevice::open(select))?.info],
    };
    let cases = cases::all();
    let (mut reports, mut skipped) = (Vec::new(), Vec::new());
    for info in devices {
        if let Some(reason) = info.unfit() {
            super::say(&format!("skipped {}: {reason}", info.line()));
            skipped.push(Skipped { device: info, reason });
            continue;
        }
        let mut bar = screen::Progress::new(&info.line(), false);
        let checked = pollster::block_on(async {
            let device = ComputeDevice::open_info(&info).await?;
            conformance::run(&device, &cases, |done, total| bar.at(done, total)).await
        });
        drop(bar);
        match checked {
            Ok(report) => {
                super::say(&format!("{}: {} passed, {} failed", info.line(), report.passed, report.failed));
                reports.push(report);
            }
            // An adapter that cannot be opened is not a failure of a kernel. `--require` counts it as missing.
            Err(e) if e.kind() == ErrorKind::Device && args.device == "all" => {
                super::say(&format!("skipped {}: {}", info.line(), fields::error(&e)));
                skipped.push(Skipped { device: info, reason: e.to_string() });
            }
            Err(e) => return Err(e),
        }
    }
    if reports.is_empty() {
        return Err(Error::new(ErrorKind::Device, "no device could be checked"));
    }
    let missing = conformance::missing(&reports, args.require.iter().map(String::as_str));
    let shaders = shaders::translate_launched();
    let failed = reports.iter().any(|r| r.failed > 0) || !missing.is_empty() || !shaders.failures.is_empty();
    if args.json {
        let secateur = env!("CARGO_PKG_VERSION");
        super::print_json(&Outcome { secateur, reports, skipped, missing, shaders })?;
    } else {
        let mut text = conformance::table(&reports);
        text += "worst: the largest error, as a fraction of the stated bound\n";
        text += &match shaders.translated + shaders.failures.len() {
            0 => "shaders: none launched, none translated (no GPU adapter ran)\n".to_string(),
            n => format!("shaders: {} of {n} variants translated to SPIR-V, MSL, HLSL and GLSL\n", shaders.translated),
        };
        shaders.failures.iter().take(5).for_each(|f| text += &format!("FAIL {f}\n"));
        skipped
            .iter()
            .for_each(|s| text += &format!("SKIPPED {}: {}\n", s.device.line(), fields::as_options(&s.reason)));
        missing.iter().for_each(|m| text += &format!("MISSING {m}: required, but it was not checked\n"));
        super::print(&text)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
