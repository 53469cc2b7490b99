//! Questions with answers: reading them, grading what a model wrote, and choosing layers by it.
pub mod calibrate;
pub mod grade;
#[cfg(not(target_family = "wasm"))]
mod hashed;
pub mod paired;
pub mod problems;

pub use calibrate::{Arm, Calibration, Choice, Trial};
pub use paired::Paired;
pub use problems::Problem;
