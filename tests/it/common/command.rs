//! The binary as a child process: what it printed, and how it ended.
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The directory of the f16 fixture.
pub const F16: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen2-f16");

/// How a process ended, its stdout and its stderr.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn secateur(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    // A folder for the state of all tests, so that each adapter is tested once.
    let state = env!("CARGO_TARGET_TMPDIR");
    command.args(args).stdin(Stdio::null()).env_remove("NO_COLOR").env("XDG_STATE_HOME", state);
    command.env("SECATEUR_HISTORY", "");
    command
}

/// The result of a process that ended, which must not have panicked.
#[track_caller]
pub fn done(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    let ran = Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran
}

#[track_caller]
pub fn run(args: &[&str]) -> Ran {
    done(secateur(args).output().expect("the binary starts"))
}

/// The line of JSON on stdout of a run that succeeded.
#[track_caller]
pub fn json(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.out.matches('\n').count(), 1, "one line: {}", ran.out);
    serde_json::from_str(&ran.out).expect("one JSON object")
}

/// Asserts the exit code, an empty stdout, and that stderr contains all of `parts`.
#[track_caller]
pub fn fails(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!(ran.code, Some(code), "{}{}", ran.out, ran.err);
    assert_eq!(ran.out, "", "nothing on stdout");
    for part in parts {
        assert!(ran.err.contains(part), "{part:?} is missing from:\n{}", ran.err);
    }
}
