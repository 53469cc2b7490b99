//! `secateur devices`
use std::process::ExitCode;

use secateur::Result;
use secateur::device::{self, DeviceInfo};
use serde::Serialize;

use super::screen;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object to stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    info: DeviceInfo,
    /// Why the device cannot run the kernels; null if it can.
    unfit: Option<String>,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    let devices = pollster::block_on(device::list());
    if args.json {
        let devices: Vec<Listed> = devices.into_iter().map(|info| Listed { unfit: info.unfit(), info }).collect();
        super::print_json(&serde_json::json!({ "devices": devices }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["index", "device", "backend", "kind", "driver", "max binding", "runs"].map(String::from).to_vec();
    let row = |(i, d): (usize, &DeviceInfo)| {
        vec![
            format!("{i}{}", if i == 0 { " *" } else { "" }),
            d.name.clone(),
            d.backend.clone(),
            d.kind.clone(),
            d.driver.clone(),
            if d.max_binding_bytes == u64::MAX { "any".into() } else { screen::bytes(d.max_binding_bytes) },
            d.unfit().map_or("yes".into(), |why| format!("no: {why}")),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(devices.iter().enumerate().map(row)).collect();
    super::print(&screen::table(&rows))?;
    // One device is the CPU reference, which is always listed.
    if devices.len() == 1 {
        super::say(&format!("no GPU adapter was found: {}", super::fields::as_options(device::driver_help())));
    }
    Ok(ExitCode::SUCCESS)
}
