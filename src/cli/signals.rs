//! Handles the signals that ask the process to end: SIGINT (Ctrl-C), SIGTERM (`kill`, `timeout`), and SIGHUP (the
//! terminal was closed).
//!
//! The first signal stops a run in an orderly way: its summary and trace are still written. The second signal ends
//! the process immediately, as the first one does while no run is in progress.
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

    /// The exit code that shells report for a process that was ended by this signal: 128 plus its number.
    fn code(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(u8::MAX)
    }

    /// The exit code of a run that this signal has ended.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// The number of the first signal since the start, or since this turn of a chat began; 0 before there is one.
static RECEIVED: AtomicI32 = AtomicI32::new(0);
/// The stop flag of the engine; `None` until an engine is loaded.
static STOP: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);
/// Whether the process was stopped (Ctrl-Z) and continued.
static CONTINUED: AtomicBool = AtomicBool::new(false);
/// While a line is read from the terminal: what must be done before the process ends.
static AT_PROMPT: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// Installs the handlers. Until [`stop_on_signal`] is called, the first signal ends the process.
///
/// # Errors
/// If the system refuses to install a handler.
pub fn install() -> Result<()> {
    static INSTALLED: OnceLock<Result<()>> = OnceLock::new();
    INSTALLED.get_or_init(platform::install).clone()
}

/// After this call, the first signal sets `stop` instead of ending the process. A later call replaces the flag.
pub fn stop_on_signal(stop: &Arc<AtomicBool>) {
    *STOP.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop.clone());
}

/// The first signal since the start, or since [`begin_turn`].
pub fn received() -> Option<Signal> {
    match RECEIVED.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(Signal(signal)),
    }
}

/// Starts a turn of a chat: forgets the signal that stopped the answer before.
pub fn begin_turn() {
    RECEIVED.store(0, Ordering::SeqCst);
}

/// Shows that a line is being read, until this value is dropped.
pub struct Prompting(());

/// Until the returned value is dropped, a signal calls `restore` and ends the process. For Ctrl-C, the exit code is
/// then 0, because it is an ordinary way to leave a chat.
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

/// Whether the terminal may show text that this process did not write: the echo of Ctrl-C, or output of other
/// programs while this process was stopped. A stop is reported only once.
pub fn take_terminal_disturbed() -> bool {
    CONTINUED.swap(false, Ordering::Relaxed) || RECEIVED.load(Ordering::Relaxed) != 0
}

/// Acts on a signal. This runs in the thread that waits for signals.
fn handle(signal: i32) {
    let restore = AT_PROMPT.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(restore) = restore {
        restore();
        let code = if signal == Signal::INTERRUPT.0 { 0 } else { Signal(signal).code() };
        std::process::exit(code.into());
    }
    let first = RECEIVED.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    match &*STOP.lock().unwrap_or_else(PoisonError::into_inner) {
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
        let handler_error = |e: std::io::Error| {
            Error::new(ErrorKind::Internal, "the signals that end a run cannot be handled").found(e)
        };
        let mut wanted = vec![SIGINT, SIGTERM, SIGCONT];
        if !hangup_is_ignored() {
            wanted.push(SIGHUP);
        }
        let mut signals = Signals::new(wanted).map_err(handler_error)?;
        let listen = move || {
            for signal in signals.forever() {
                match signal {
                    SIGCONT => super::CONTINUED.store(true, Ordering::Relaxed),
                    signal => super::handle(signal),
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(handler_error)?;
        Ok(())
    }

    /// Whether the process was started with SIGHUP ignored, as by `nohup`, so that it survives its terminal.
    fn hangup_is_ignored() -> bool {
        match std::fs::read_to_string("/proc/self/status") {
            Ok(status) => is_ignored(&status, SIGHUP),
            // Without /proc, this is guessed: `nohup` redirects all streams that are terminals.
            Err(_) => {
                use std::io::{IsTerminal, stderr, stdin, stdout};
                !(stdin().is_terminal() || stdout().is_terminal() || stderr().is_terminal())
            }
        }
    }

    /// Whether `status`, the text of /proc/PID/status on Linux, lists the signal as ignored. `SigIgn` is a
    /// hexadecimal number with one bit for each signal.
    pub fn is_ignored(status: &str, signal: i32) -> bool {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
    }
}

#[cfg(not(unix))]
mod platform {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use secateur::{Error, ErrorKind, Result};
    use signal_hook::consts::SIGINT;

    /// Installs a handler for Ctrl-C that only sets a flag, because little else is safe in a handler. A thread
    /// watches the flag.
    pub fn install() -> Result<()> {
        let handler_error = |e: std::io::Error| Error::new(ErrorKind::Internal, "Ctrl-C cannot be handled").found(e);
        let pressed = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGINT, pressed.clone()).map_err(handler_error)?;
        let watch = move || {
            loop {
                if pressed.swap(false, Ordering::SeqCst) {
                    super::handle(SIGINT);
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(handler_error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn ignored_signals_are_read_from_proc() {
        use super::platform::is_ignored;
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let status = "Name:\tsecateur\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert!(is_ignored(status, SIGHUP) && is_ignored(status, 13));
        assert!(!is_ignored(status, SIGINT) && !is_ignored(status, SIGTERM) && !is_ignored("", SIGHUP));
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(Signal::INTERRUPT.code(), 130);
        assert_eq!(Signal(signal_hook::consts::SIGTERM).code(), 143);
    }
}
