//! The binary as people run it: what it prints, its exit codes, and how it refuses bad input.
//!
//! Most tests run on the CPU, which every machine has. Tests that need an adapter run if there is one, and fail if
//! `SECATEUR_REQUIRE` names one that is missing.
use crate::common::command::{F16, Ran, run};
use secateur::trace::Trace;
use serde_json::Value;
use std::path::{Path, PathBuf};

mod bad_input;
mod commands;
mod devices;
mod eval;
mod files;
#[cfg(target_os = "linux")]
mod memory;
mod running;
mod terminal;

pub use running::adapters;

/// `secateur run` on the CPU with the f16 fixture.
#[track_caller]
fn cpu(args: &[&str]) -> Ran {
    run(&[&["run", "--device", "cpu", "--model", F16][..], args].concat())
}

/// A copy of the fixture that a test may break.
fn broken(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(Path::new(F16).join(name), dir.path().join(name)).expect("copied");
    }
    change(dir.path());
    dir
}

fn edit(file: PathBuf, change: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(&file).expect("read");
    let changed = change(text.clone());
    assert_ne!(text, changed, "the edit does something");
    std::fs::write(file, changed).expect("written");
}

#[track_caller]
fn on(dir: &Path, args: &[&str]) -> Ran {
    let dir = dir.to_str().expect("UTF-8");
    run(&[&["run", "--device", "cpu", "--max-new-tokens", "4", "--model", dir][..], args].concat())
}

fn golden(name: &str) -> Vec<u32> {
    let file = std::fs::read(Path::new(F16).join("golden.safetensors")).expect("the fixture");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("readable");
    let bytes = tensors.tensor(name).expect(name).data();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4"))).collect()
}

fn listed(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn ids(v: &Value) -> Vec<u32> {
    serde_json::from_value(v["ids"].clone()).expect("ids")
}

fn trace_of(file: &Path) -> Trace {
    Trace::from_json(&std::fs::read_to_string(file).expect("the trace was written")).expect("a trace")
}
