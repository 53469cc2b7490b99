//! Whether output is coloured.
use std::io::IsTerminal;

/// Whether stderr is a terminal that may be coloured.
pub fn on_stderr() -> bool {
    std::io::stderr().is_terminal() && is_wanted()
}

/// Whether the environment variables allow colours.
pub fn is_wanted() -> bool {
    // https://no-color.org: any value except the empty one switches colours off.
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}
