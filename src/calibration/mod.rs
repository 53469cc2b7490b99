//! The choice of layers beside a model, as a file: what it holds and how it is read. `eval::calibrate` makes such a
//! choice; the engine applies it.
#[cfg(not(target_family = "wasm"))]
mod hashed;

use serde::{Deserialize, Serialize};

#[cfg(not(target_family = "wasm"))]
pub use hashed::{Hashed, choice_path};

use crate::policy::Layers;
use crate::settings::Settings;
use crate::{Error, ErrorKind, Result};

/// Name of the file that holds a choice, beside the model.
pub const FILE: &str = "secateur.json";
/// The version this code writes and reads.
pub const VERSION: u32 = 3;

/// Everything that must be equal for two answers to be comparable, and for an interrupted calibration to be resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Version of secateur.
    pub secateur: String,
    /// Name of the model.
    pub model: String,
    /// [`Weights::fingerprint`](crate::weights::Weights::fingerprint) of it.
    pub weights: String,
    /// The device as one line of text: name, backend, kind and driver.
    pub device: String,
    /// Element type of the KV cache.
    pub kv: String,
    /// The context, if it was limited.
    pub context: Option<usize>,
    /// Sequences side by side. Beyond eight, sums are added in another order: see [`Batch`](crate::engine::Batch).
    pub sequences: usize,
    /// How each question is generated and pruned; the layers are those of each [`Arm`](crate::eval::Arm).
    #[serde(flatten)]
    pub run: Settings,
    /// Questions.
    pub questions: usize,
    /// [`hash`](crate::eval::calibrate::hash) of the questions and answers, in hexadecimal digits.
    pub questions_hash: String,
}

impl Conditions {
    /// The fields that differ: name, value here, value there.
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let fields = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        };
        let (here, there) = (fields(self), fields(other));
        here.iter()
            .filter(|(name, value)| there.get(*name) != Some(value))
            .map(|(name, value)| (name.clone(), value.to_string(), there[name].to_string()))
            .collect()
    }
}

/// The result of a set of layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// As in [`Trial`](crate::eval::Trial).
    pub layers: String,
    /// Right answers.
    pub correct: usize,
    /// Questions that this set answers right and all layers answer wrong.
    pub gained: usize,
    /// Questions that this set answers wrong and all layers answer right.
    pub lost: usize,
    /// Questions that hit the limit on new tokens.
    pub truncated: usize,
    /// Mean over the questions of the most slots at any time.
    pub peak_cached: f64,
}

/// The choice of layers and the results that it rests on: the contents of the file beside the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The version of the file's format: [`VERSION`].
    pub version: u32,
    /// The layers to use, as on the command line (`all`, `0-3,7`).
    pub layers: String,
    /// Whether these layers answer more questions right than all layers do, and the difference is not explained by
    /// the number of sets that were tried: whether [`corrected_p`](Self::corrected_p) is below
    /// [`LEVEL`](crate::eval::calibrate::LEVEL).
    pub distinguishable: bool,
    /// The conditions of the calibration.
    pub settings: Conditions,
    /// Number of questions in which the run with all layers evicted something. The other questions say nothing about
    /// layers.
    pub pruned: usize,
    /// The result without eviction.
    pub full: Candidate,
    /// Every set that was tried, best first.
    pub rows: Vec<Candidate>,
}

impl Choice {
    /// Reads a choice.
    ///
    /// # Errors
    /// If the text is not a choice, or one of another version.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let wrong = |found: String| {
            let e = Error::new(ErrorKind::Input, "not a choice of layers").at(place).found(found);
            e.help("remove the file, or make a new one with `secateur calibrate`; `layers` overrides it")
        };
        // The version is checked first, because another version has other fields.
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                return Err(wrong(format!("version {version}")).expected(format!("version {VERSION}")));
            }
            None => return Err(wrong("no version".into())),
        }
        let choice: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        choice.layers().map_err(|_| wrong(format!("layers {:?}", choice.layers)))?;
        Ok(choice)
    }

    /// The layers to use.
    ///
    /// # Errors
    /// If the text is not a list of layers.
    pub fn layers(&self) -> Result<Layers> {
        self.layers.parse()
    }

    /// The row of these layers, or of all layers.
    pub fn row(&self, layers: &str) -> Option<&Candidate> {
        self.rows.iter().find(|row| row.layers == layers)
    }
}
