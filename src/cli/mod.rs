//! Commands, exit codes, and how errors reach a person.
mod conformance;
mod devices;
mod live;
mod report;
mod run;
mod screen;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use secateur::{Error, ErrorKind, Result};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the model, the device or a file failed; conformance: a case failed or a required device is missing
  2    the arguments or the prompt are wrong
  130  interrupted with Ctrl-C (once: the run ends with its summary; twice: at once)";

/// Runs reasoning language models on any GPU and prunes redundant thoughts from their KV cache while they think.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate from a prompt, pruning thoughts on the way. Text goes to stdout, everything else to stderr.
    #[command(after_help = EXIT_CODES, args_override_self = true)]
    Run(Box<run::Args>),
    /// Make a page from the trace of a run, or from two side by side.
    #[command(after_help = EXIT_CODES)]
    Report(report::Args),
    /// List the devices of this machine, best first.
    #[command(after_help = EXIT_CODES)]
    Devices(devices::Args),
    /// Check that the devices of this machine compute what the CPU reference computes: every kernel case on each.
    #[command(after_help = EXIT_CODES)]
    Conformance(conformance::Args),
}

/// Parses the arguments, runs the command, and turns its outcome into an exit code.
pub fn main() -> ExitCode {
    // clap answers bad usage itself, with exit code 2.
    let outcome = match Args::parse().command {
        Command::Run(args) => run::main(*args),
        Command::Report(args) => report::main(&args),
        Command::Devices(args) => devices::main(&args),
        Command::Conformance(args) => conformance::main(&args),
    };
    outcome.unwrap_or_else(|error| {
        let red = if screen::stderr_has_colour() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        say(&format!("{}error{}: {error}", red.0, red.1));
        ExitCode::from(match error.kind() {
            ErrorKind::Input | ErrorKind::Policy => 2,
            ErrorKind::Model | ErrorKind::Device | ErrorKind::Io | ErrorKind::Internal => 1,
        })
    })
}

/// A line for people. Nothing can be done about a stderr that is gone.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What a command was asked for, on stdout.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).or_else(|e| stdout_failed(&e))
}

/// A reader that has seen enough (`| head`) is no failure; a full disk is.
fn stdout_failed(e: &std::io::Error) -> Result<()> {
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, "stdout cannot be written").found(e))
}

/// A value as one line of JSON on stdout.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let failed = |e| Error::new(ErrorKind::Internal, "the result has no JSON form").found(e);
    print(&(serde_json::to_string(value).map_err(failed)? + "\n"))
}
