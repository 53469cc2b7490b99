//! The command line: arguments → [`secateur::engine::Engine`] → screen. No tensors here.
mod cli;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    silence_device_select();
    cli::main()
}

/// Switches off Mesa's device-select layer on machines without a desktop. The layer connects to the Wayland
/// compositor whenever Vulkan lists adapters, and without XDG_RUNTIME_DIR, or if it is empty, libwayland prints an
/// error for each attempt. The layer only changes the order of the adapters, which secateur ranks by itself.
#[allow(unsafe_code, reason = "a variable of the environment is set before the first thread starts")]
fn silence_device_select() {
    if cfg!(target_os = "linux") && is_unset(std::env::var_os("XDG_RUNTIME_DIR")) {
        // SAFETY: this is the first statement of `main`, so that no other thread reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Whether a variable with this value counts as not set: an empty one names nothing.
fn is_unset(value: Option<OsString>) -> bool {
    value.is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_like_none() {
        assert!(is_unset(None) && is_unset(Some(OsString::new())));
        assert!(!is_unset(Some("/run/user/1000".into())));
    }
}
