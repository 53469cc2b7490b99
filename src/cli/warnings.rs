//! Prints the library's warnings, for example about an ignored key of a config, to stderr. Each text is printed once.
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::text::visible;
use super::{colour, fields};

struct Warnings;

static PRINTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Starts to print the library's warnings. With `--quiet` this is not called, and they are dropped; [`warn`] still
/// prints, which is for warnings about the result and about a device without a GPU.
pub fn install() {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Prints one warning.
pub fn warn(text: &str) {
    let yellow = if colour::on_stderr() { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
    super::say(&format!("{}warning{}: {}", yellow.0, yellow.1, visible(&fields::as_options(text))));
}

impl Log for Warnings {
    /// Only warnings of secateur and of ureq, which reports proxies that it cannot use. Drivers and graphics
    /// libraries log many warnings that a user can do nothing about.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let source = metadata.target().split("::").next().unwrap_or_default();
        metadata.level() <= Level::Warn && matches!(source, "secateur" | "ureq")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        if PRINTED.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone()) {
            warn(&text);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_that_a_user_can_act_on_are_printed() {
        let enabled = |target: &str, level| Warnings.enabled(&Metadata::builder().target(target).level(level).build());
        assert!(enabled("secateur::expert::model::config", Level::Warn) && enabled("secateur", Level::Error));
        assert!(enabled("ureq::transport", Level::Warn));
        assert!(!enabled("secateur::expert::model::config", Level::Info));
        assert!(!enabled("wgpu_hal::vulkan", Level::Warn) && !enabled("secateurs", Level::Warn));
    }
}
