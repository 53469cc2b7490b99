//! Text on both sides of the model.
