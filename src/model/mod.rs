//! Models: configuration, the one decoder graph, RoPE.
pub mod config;
pub mod decoder;
pub mod rope;
