//! What a model is, before and besides its weights.
pub mod config;
