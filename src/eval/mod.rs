//! Questions with answers: reading them, grading what a model wrote, and choosing layers by it.
pub mod calibrate;
pub mod grade;
pub mod problems;

pub use calibrate::{Calibration, Choice, Trial};
pub use problems::Problem;
