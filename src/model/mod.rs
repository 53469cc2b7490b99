//! Models: configuration, the one decoder graph, RoPE.
pub mod config;
pub mod decoder;
mod fields;
mod gguf;
pub mod rope;
