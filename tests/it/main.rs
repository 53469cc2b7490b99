//! The integration tests, in one binary, because each further binary would link burn and wgpu again, open every
//! adapter again and compile every pipeline again. A module is a suite; `cargo test --test it laws::` runs one of
//! them, and `.ci/run` asks each for results.
//!
//! Tests that could disturb each other in one process do not: allocations are counted per thread
//! (`common/memory.rs`), environment variables are set for child processes only, and a test that launches on an
//! adapter holds `common::beside_others` or `common::alone` meanwhile. Only the test in a browser is a binary of its
//! own: it has its own `main`, and it needs `web/pkg` and Chromium, which plain `cargo test` does not.
mod common;

mod bad_input_model;
mod calibrate;
mod chat;
mod cli;
mod conformance;
mod drafts;
mod engine;
mod evaluation;
mod experts;
mod formats;
mod fuzz;
mod gguf;
mod golden;
mod grading;
mod hub;
mod known_bugs;
mod laws;
mod laws_host;
mod loading;
mod oracles;
mod policies;
mod prompts;
mod reasoner;
mod repeated;
mod request;
#[cfg(unix)]
mod rivals;
mod sampling;
mod serve;
mod serving;
mod shaders;
mod texts;
mod weights;
