//! secateur runs reasoning language models on any GPU and prunes redundant thoughts from their KV cache while
//! they think.
//!
//! Every 200 thinking tokens the engine asks the model to stop and summarise, reads how much `</think>` attends to
//! every cached token, takes that probe back, and evicts the reasoning steps that the model would not use: the method
//! of *Think Clearly* (Choi et al., [arXiv 2507.08806](https://arxiv.org/abs/2507.08806)). Evicted rows are given
//! back to the device.
//!
//! # Quick start
//!
//! The crate contains a tiny model, so this example runs unchanged, on the CPU. [`ModelSource::open`] reads yours,
//! and [`ComputeDevice::open`] takes `auto`, `vulkan`, `metal`, `dx12`, `gl` or a part of an adapter's name.
//!
//! ```
//! use secateur::{ComputeDevice, Engine, Event, LoadOptions, Request, builtin};
//!
//! # fn main() -> secateur::Result<()> {
//! let device = ComputeDevice::cpu();
//! let mut engine = Engine::load(&builtin::source(), builtin::NAME, &device, &LoadOptions::default(), &mut |_, _| ())?;
//!
//! // What is left out is resolved from the model: sampling, interval, layers, seed.
//! let request = Request { budget: Some("ratio:0.5".parse()?), ..Request::prompting(builtin::EXAMPLE) };
//! let resolved = engine.resolve(&request)?;
//! let mut show = |event: Event<'_>| match event {
//!     Event::Token { text, .. } => print!("{text}"),
//!     Event::Probe(probe) => print!("[{} -> {} slots]", probe.cached_before, probe.cached_after),
//!     _ => (),
//! };
//! // The engine is async, since a browser cannot block.
//! let result = pollster::block_on(engine.run(&resolved.prompt, &resolved.settings, &mut show))?;
//!
//! let totals = result.trace.totals;
//! println!("\n{} tokens, at most {} slots in use", totals.generated_tokens, totals.peak_cached);
//! assert!(totals.evicted_tokens > 0);
//! # Ok(())
//! # }
//! ```
//!
//! The four programs in `examples/` continue from here: `generate` (a model and a device of your choice), `batch`
//! (several requests side by side), `custom_policy` (your own rule for what is evicted) and `trace_to_report` (a page
//! that shows a run).
//!
//! # Where things are
//!
//! | to do this | begin here |
//! |---|---|
//! | say what to run | [`Request`], resolved to [`Settings`] by [`PreparedModel::resolve`] |
//! | refuse it before gigabytes are read | [`PreparedModel`] |
//! | run one prompt, or several | [`Engine::run`], [`Batch`] |
//! | write a policy | [`EvictionPolicy`], with [`policy`] for what it sees and answers |
//! | read what happened | [`Trace`], and [`report::html`] for a page |
//! | cut a text into reasoning steps | [`steps`] |
//! | grade answers, compare arms, calibrate | [`eval`] |
//! | choose a device | [`device`] |
//! | test, measure or extend the engine itself | [`expert`] |
//!
//! # Errors
//!
//! Everything that comes from outside (arguments, prompts, files, devices) can fail with an [`Error`] that says what
//! happened, where, what was expected, what was found and what to do; its [`ErrorKind`] tells front-ends which input
//! is at fault. A panic is a bug. Messages name a setting by its field of [`Request`], in backticks; a front-end may
//! put its own name for it there.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `cli` (default) | the `secateur` command, and module `hub`: models by name from the Hugging Face hub |
//! | `grammar` (default) | answers in a given form ([`AnswerFormat`]), such as a JSON Schema |
//! | `serve` (default) | `secateur serve` and module `serve`: an HTTP server with OpenAI's interface |
//!
//! On `wasm32-unknown-unknown` the crate is the engine of the browser page (module `web`). Build it
//! without default features.
mod answer_format;
mod bench;
pub mod builtin;
mod cache;
mod calibration;
mod conformance;
pub mod device;
mod dtype;
pub mod engine;
pub mod error;
pub mod eval;
#[cfg(all(feature = "cli", not(target_family = "wasm")))]
mod file;
mod host;
#[cfg(all(feature = "cli", not(target_family = "wasm")))]
pub mod hub;
mod kernels;
mod model;
pub mod policy;
mod probe;
mod quality;
pub mod report;
pub mod sampling;
#[cfg(all(feature = "serve", not(target_family = "wasm")))]
pub mod serve;
pub mod settings;
pub mod steps;
mod table;
mod text;
mod text_form;
pub mod trace;
#[cfg(target_family = "wasm")]
pub mod web;
mod weights;

pub use answer_format::AnswerFormat;
pub use device::ComputeDevice;
pub use dtype::Dtype;
pub use engine::{
    Batch, Encoded, Engine, Event, LoadOptions, PreparedModel, Prompt, Request, Resolved, RunResult, Settings,
};
pub use error::{Error, ErrorKind, Result};
pub use policy::{Budget, EvictionPolicy, PolicyRef};
pub use settings::AttentionDetail;
pub use text::Message;
pub use trace::Trace;
pub use weights::ModelSource;

/// The engine's internals, for tests, benchmarks and code that extends the engine. They change without notice between
/// versions.
pub mod expert {
    /// Measures prefill, decoding and the copy bandwidth of a device.
    pub mod bench {
        pub use crate::bench::*;
    }
    /// The KV cache: regions, gathers, and what is tracked besides keys and values.
    pub mod cache {
        pub use crate::cache::*;
    }
    /// Runs every case of every kernel on a device and compares it with the CPU.
    pub mod conformance {
        pub use crate::conformance::*;
    }
    /// Element types of weights and of the KV cache.
    pub mod dtype {
        pub use crate::dtype::*;
    }
    /// Writes files atomically.
    #[cfg(all(feature = "cli", not(target_family = "wasm")))]
    pub mod file {
        pub use crate::file::*;
    }
    /// The operations in WGSL, with their CPU twins, conformance cases and bounds.
    pub mod kernels {
        pub use crate::kernels::*;
    }
    /// Interprets the answers of a hub.
    #[cfg(all(feature = "cli", not(target_family = "wasm")))]
    pub mod answers {
        pub use crate::hub::answers::*;
    }
    /// Reads the bodies of requests to the server.
    #[cfg(all(feature = "serve", not(target_family = "wasm")))]
    pub mod bodies {
        pub use crate::serve::body::read_all;
    }
    /// Configuration, RoPE and the decoder graph.
    pub mod model {
        pub use crate::model::*;
    }
    /// The text of a probe, and when one is due.
    pub mod probe {
        pub use crate::probe::*;
    }
    /// Compares the predictions of two models on a text.
    pub mod quality {
        pub use crate::quality::*;
    }
    /// Tables as text.
    pub mod table {
        pub use crate::table::*;
    }
    /// Tokenizer, chat template, and ids back to text.
    pub mod text {
        pub use crate::text::*;
    }
    /// Model, cache and samplers together: prefill, decode, hold, probe, keep, read.
    pub mod runner {
        pub use crate::engine::runner::*;
    }
    /// The sampler on the device.
    pub mod sampling {
        pub use crate::sampling::device::*;
    }
    /// The host's record of a sequence: which token is in which slot.
    pub mod ledger {
        pub use crate::policy::ledger::*;
    }
    /// Reads safetensors and GGUF files and packs their tensors.
    pub mod weights {
        pub use crate::weights::*;
    }
}

/// Where a token's key and value are in the cache: an index into the kept rows. It changes at every gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// When a token was written: its index in the logical sequence, in which evicted tokens count. RoPE rotates by it,
/// and it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u32);
