//! Reads questions with answers, grades the answers of a model, compares policies by these grades, and chooses the
//! layers whose attention counts.
pub mod answer;
#[cfg(all(feature = "cli", not(target_family = "wasm")))]
pub mod builtin;
pub mod calibrate;
#[cfg(not(target_family = "wasm"))]
pub mod estimate;
pub mod grade;
pub mod measure;
pub mod page;
pub mod paired;
pub mod problems;
pub mod replay;
pub mod table;

pub use calibrate::{Arm, Calibration, Choice, Trial};
pub use paired::Paired;
pub use problems::Problem;
