//! `secateur report`: makes an HTML page from traces.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use secateur::report::html;
use secateur::trace::Trace;
use secateur::{Error, ErrorKind, Result};

use super::text;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Traces written by `secateur run --trace FILE` or by the browser page. Two traces are shown side by side.
    #[arg(required = true, num_args = 1..=2, value_name = "FILE.json")]
    traces: Vec<PathBuf>,
    /// The file to write: one HTML page that loads no other files.
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    let same = |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    if let Some(trace) = args.traces.iter().find(|trace| same(trace, &args.output)) {
        return Err(Error::new(ErrorKind::Input, "the report would overwrite a trace")
            .at("--output")
            .expected("a file that is not one of the traces")
            .found(trace.display()));
    }
    let traces = args.traces.iter().map(|file| Ok((name(file), read(file)?))).collect::<Result<Vec<_>>>()?;
    let page = html::page(&traces)?;
    secateur::expert::file::write_whole(&args.output, &page)?;
    super::say(&format!("{}: {}", args.output.display(), super::screen::bytes(page.len() as u64)));
    Ok(ExitCode::SUCCESS)
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}

fn read(file: &Path) -> Result<Trace> {
    Trace::from_json(&text::read(file, "a trace")?).map_err(|e| e.at(file.display()))
}
