//! The report of a run: a self-contained page made from one trace or two.
pub mod html;
pub mod sparsity;
