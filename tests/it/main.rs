//! The integration tests, in one binary: each binary links burn and wgpu anew, and opens every adapter and compiles every
//! pipeline anew. A module is a suite; `cargo test --test it laws::` runs one of them, and `.ci/run` asks each for results.
//!
//! What would be process-wide is not: allocations are counted per thread (`common/memory.rs`), environment variables
//! are set only for child processes, and a test that uses an adapter holds `common::serial` while it does. Only the test
//! in a browser has a binary of its own, because it needs `web/pkg` and Chromium.
mod common;

mod bad_input_model;
mod calibrate;
mod chat;
mod cli;
mod conformance;
mod engine;
mod gguf;
mod golden;
mod hub;
mod known_bugs;
mod laws;
mod laws_host;
mod loading;
mod oracles;
mod policies;
mod reasoner;
mod sampling;
mod shaders;
