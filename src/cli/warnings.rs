//! Warnings of the library, such as a key of a config that is ignored, as lines on stderr. Each is told once.
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::{fields, screen};

struct Warnings;

static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From here on warnings are told. Without this call (`--quiet`) they are dropped.
pub fn install() {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// A line that begins as all warnings do.
pub fn warn(text: &str) {
    let yellow = if screen::stderr_has_colour() { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
    super::say(&format!("{}warning{}: {}", yellow.0, yellow.1, fields::as_options(text)));
}

impl Log for Warnings {
    /// Drivers and graphics libraries warn of much that no user can change. ureq tells of proxies that it does not use.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let source = metadata.target().split("::").next().unwrap_or_default();
        metadata.level() <= Level::Warn && matches!(source, "secateur" | "ureq")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone()) {
            warn(&text);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_user_can_act_on_is_told() {
        let enabled = |target: &str, level| Warnings.enabled(&Metadata::builder().target(target).level(level).build());
        assert!(enabled("secateur::expert::model::config", Level::Warn) && enabled("secateur", Level::Error));
        assert!(enabled("ureq::transport", Level::Warn));
        assert!(!enabled("secateur::expert::model::config", Level::Info));
        assert!(!enabled("wgpu_hal::vulkan", Level::Warn) && !enabled("secateurs", Level::Warn));
    }
}
