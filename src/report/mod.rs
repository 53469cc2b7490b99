//! The report of a run: a self-contained page made from one trace or two.
#[cfg(any(target_family = "wasm", feature = "serve"))]
pub(crate) mod events;
pub mod html;
pub mod page;
pub mod sparsity;
