//! Models: configuration, the one decoder graph, RoPE.
pub mod rope;
