//! The model: its configuration, the decoder graph that all architectures share, and RoPE.
mod architecture;
pub mod config;
pub mod decoder;
pub mod experts;
mod feed_forward;
mod fields;
mod gguf;
mod limits;
mod matrix;
pub mod required;
pub mod rope;
pub(crate) mod stand_in;
mod tensors;
