//! secateur: reasoning language models on any GPU, with redundant thoughts pruned from the KV cache while they think.
pub mod bench;
pub mod builtin;
pub mod cache;
pub mod conformance;
pub mod device;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod eval;
#[cfg(all(feature = "cli", not(target_family = "wasm")))]
pub mod file;
mod fnv;
#[cfg(all(feature = "cli", not(target_family = "wasm")))]
pub mod hub;
pub mod kernels;
pub mod model;
pub mod policy;
pub mod probe;
pub mod report;
pub mod sampling;
pub mod settings;
pub mod steps;
pub mod text;
mod text_form;
pub mod trace;
#[cfg(target_family = "wasm")]
pub mod web;
pub mod weights;

pub use device::ComputeDevice;
pub use engine::{Batch, Engine, Event, LoadOptions, PreparedModel, Prompt, Request, Resolved, RunResult, Settings};
pub use error::{Error, ErrorKind, Result};
pub use policy::{Budget, EvictionPolicy, PolicyRef};
pub use trace::{AttentionDetail, Trace};
pub use weights::ModelSource;

/// Where a token's key and value lie in the cache: an index into the kept rows. Changes at every gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// When a token was written: its index in the logical sequence, evicted tokens counted. RoPE uses it; it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u32);
