//! What a run leaves behind for people and tools to read: its trace as JSON, and a page made from traces.
pub mod html;
pub mod sparsity;
