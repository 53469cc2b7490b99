//! The command line: arguments → [`secateur::engine::Engine`] → screen. No tensors here.
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    silence_device_select();
    cli::main()
}

/// Switches off Mesa's device-select layer on machines without a desktop. The layer connects to the Wayland
/// compositor whenever Vulkan lists adapters, and without XDG_RUNTIME_DIR libwayland prints an error for each
/// attempt. The layer only changes the order of the adapters, which secateur ranks by itself.
#[allow(unsafe_code, reason = "a variable of the environment is set before the first thread starts")]
fn silence_device_select() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: this is the first statement of `main`, so that no other thread reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
