//! Reads questions with answers, grades the answers of a model, and chooses layers by these grades.
pub mod answer;
#[cfg(all(feature = "cli", not(target_family = "wasm")))]
pub mod builtin;
pub mod calibrate;
pub mod grade;
pub mod paired;
pub mod problems;
pub mod replay;

pub use calibrate::{Arm, Calibration, Choice, Trial};
pub use paired::Paired;
pub use problems::Problem;
