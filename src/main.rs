//! The command line: arguments → [`secateur::engine::Engine`] → screen. No tensors here.
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
