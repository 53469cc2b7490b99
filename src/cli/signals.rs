//! Requests to stop: Ctrl-C (SIGINT), `kill` and `timeout` (SIGTERM), a terminal that is closed (SIGHUP).
//!
//! The first request stops a run in order: its summary and trace are still written. The second ends the process immediately,
//! and so does the first while nothing is running that would be worth ending in order.
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use secateur::Result;

/// A signal that asks the process to end, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// Ctrl-C.
    pub const INTERRUPT: Self = Self(signal_hook::consts::SIGINT);

    /// What shells report for a process that this signal has ended: 128 plus its number.
    fn code(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(u8::MAX)
    }

    /// The exit code of a run that this signal has ended.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// The first signal of this run, or of this turn of a chat; 0 before it comes.
static RECEIVED: AtomicI32 = AtomicI32::new(0);
/// The running engine's stop flag; unset while there is nothing worth ending in order.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// The process was stopped (Ctrl-Z) and goes on.
static CONTINUED: AtomicBool = AtomicBool::new(false);
/// While a line is being read: what to do before the process ends.
static AT_PROMPT: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// Handles the signals from here on. Until [`stop_on_signal`] the first one ends the process.
///
/// # Errors
/// When the system refuses a handler.
pub fn install() -> Result<()> {
    static INSTALLED: OnceLock<Result<()>> = OnceLock::new();
    INSTALLED.get_or_init(platform::install).clone()
}

/// From here on the first signal sets `stop` instead of ending the process. Only the first call has an effect.
pub fn stop_on_signal(stop: &Arc<AtomicBool>) {
    let _ = STOP.set(stop.clone());
}

/// The first signal since the start, or since [`begin_turn`].
pub fn received() -> Option<Signal> {
    match RECEIVED.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(Signal(signal)),
    }
}

/// A turn of a chat begins: a signal that ended the last answer does not end this one.
pub fn begin_turn() {
    RECEIVED.store(0, Ordering::SeqCst);
}

/// A line is being read until this is dropped.
pub struct Prompting(());

/// From here on a signal ends the process at once, after `restore`. Ctrl-C is an ordinary way out of a chat: exit code 0.
pub fn prompting(restore: impl FnOnce() + Send + 'static) -> Prompting {
    set_prompt(Some(Box::new(restore)));
    Prompting(())
}

impl Drop for Prompting {
    fn drop(&mut self) {
        set_prompt(None);
    }
}

fn set_prompt(restore: Option<Box<dyn FnOnce() + Send>>) {
    *AT_PROMPT.lock().unwrap_or_else(PoisonError::into_inner) = restore;
}

/// Whether the terminal shows what this process did not write: the echo of a Ctrl-C, or whatever another program wrote while
/// this one was stopped. A stop is reported once.
pub fn take_terminal_disturbed() -> bool {
    CONTINUED.swap(false, Ordering::Relaxed) || RECEIVED.load(Ordering::Relaxed) != 0
}

/// A signal has come. Runs in the thread that listens for them.
fn handle(signal: i32) {
    let restore = AT_PROMPT.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(restore) = restore {
        restore();
        let code = if signal == Signal::INTERRUPT.0 { 0 } else { Signal(signal).code() };
        std::process::exit(code.into());
    }
    let first = RECEIVED.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    match STOP.get() {
        Some(stop) if first => stop.store(true, Ordering::Relaxed),
        _ => std::process::exit(Signal(signal).code().into()),
    }
}

#[cfg(unix)]
mod platform {
    use std::sync::atomic::Ordering;

    use secateur::{Error, ErrorKind, Result};
    use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    pub fn install() -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Internal, "the signals that end a run cannot be handled").found(e)
        };
        let mut wanted = vec![SIGINT, SIGTERM, SIGCONT];
        if !hangup_is_ignored() {
            wanted.push(SIGHUP);
        }
        let mut signals = Signals::new(wanted).map_err(failed)?;
        let listen = move || {
            for signal in signals.forever() {
                match signal {
                    SIGCONT => super::CONTINUED.store(true, Ordering::Relaxed),
                    signal => super::handle(signal),
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(())
    }

    /// Whether the process was started to outlive its terminal, as `nohup` does.
    fn hangup_is_ignored() -> bool {
        match std::fs::read_to_string("/proc/self/status") {
            Ok(status) => is_ignored(&status, SIGHUP),
            // Without /proc: nohup redirects every stream that is a terminal.
            Err(_) => {
                use std::io::{IsTerminal, stderr, stdin, stdout};
                !(stdin().is_terminal() || stdout().is_terminal() || stderr().is_terminal())
            }
        }
    }

    /// What Linux says in /proc/PID/status: a bit for each ignored signal, as a hexadecimal number.
    fn is_ignored(status: &str, signal: i32) -> bool {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
    }

    #[cfg(test)]
    #[test]
    fn ignored_signals_are_read_from_proc() {
        let status = "Name:\tsecateur\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert!(is_ignored(status, SIGHUP) && is_ignored(status, 13));
        assert!(!is_ignored(status, SIGINT) && !is_ignored(status, SIGTERM) && !is_ignored("", SIGHUP));
    }
}

#[cfg(not(unix))]
mod platform {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use secateur::{Error, ErrorKind, Result};
    use signal_hook::consts::SIGINT;

    /// Ctrl-C sets a flag, which a thread watches: what a handler itself may do is limited.
    pub fn install() -> Result<()> {
        let failed = |e: std::io::Error| Error::new(ErrorKind::Internal, "Ctrl-C cannot be handled").found(e);
        let pressed = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGINT, pressed.clone()).map_err(failed)?;
        let watch = move || {
            loop {
                if pressed.swap(false, Ordering::SeqCst) {
                    super::handle(SIGINT);
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(failed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(Signal::INTERRUPT.code(), 130);
        assert_eq!(Signal(signal_hook::consts::SIGTERM).code(), 143);
    }
}
