//! The choice of layers that lies beside a model, and whether it is for this model's weights.
use std::sync::OnceLock;

use crate::calibration::{Choice, FILE};
#[cfg(not(target_family = "wasm"))]
use crate::calibration::{Hashed, choice_path};
use crate::policy::{Layers, Scope};
use crate::settings::Settings;
use crate::weights::precision::{Precision, identity};
use crate::weights::{FINGERPRINT, ModelSource, Weights};
use crate::{Error, ErrorKind, Result};

/// A choice of layers beside a model. It is read when the model is prepared; the weights are hashed only once the
/// choice could be used.
pub(super) struct Calibrated {
    source: ModelSource,
    choice: Result<Choice>,
    place: String,
    fingerprint: OnceLock<Result<String>>,
}

impl Calibrated {
    /// The choice beside `source`, if there is one.
    pub fn beside(source: &ModelSource) -> Option<Self> {
        let (text, place) = match read(source) {
            Ok(None) => return None,
            Ok(Some(found)) => found,
            Err(e) => return Some(Self::new(source, Err(e), String::new())),
        };
        Some(Self::new(source, Choice::from_json(&text, &place), place))
    }

    fn new(source: &ModelSource, choice: Result<Choice>, place: String) -> Self {
        Self { source: source.clone(), choice, place, fingerprint: OnceLock::new() }
    }

    /// If the weights are held in memory, hashes them now and releases them: a browser has no room for a second copy.
    pub fn release_memory(&mut self) {
        if self.source.is_in_memory() {
            self.fingerprint.get_or_init(|| fingerprint(&self.source));
            self.source = ModelSource::memory::<String, Vec<u8>>([]);
        }
    }

    /// Puts the chosen layers into `settings` if the choice was made for this policy and these weights, in this
    /// precision. Returns a note for people.
    ///
    /// # Errors
    /// If the file is not a choice, the weights cannot be read, or the model does not have the layers.
    pub fn apply(&self, settings: &mut Settings, layers: usize, precision: Option<Precision>) -> Result<String> {
        let choice = self.choice.as_ref().map_err(Error::clone)?;
        let (place, made) = (&self.place, &choice.settings);
        // A choice for one policy says nothing about another, and a choice for other weights nothing about these. A
        // file knows a policy by its name only, also one that is not listed.
        if made.run.policy.name() != settings.policy.name() {
            return Ok(format!(
                "{place} was made for {}, not for {}: all layers vote",
                made.run.policy, settings.policy
            ));
        }
        if !made.weights.starts_with(FINGERPRINT) {
            return Ok(format!(
                "{place} was made by an older version, or it was made for other weights: all layers vote (run \
                 `secateur calibrate` again)"
            ));
        }
        let fingerprint = self.fingerprint.get_or_init(|| fingerprint(&self.source)).as_ref().map_err(Error::clone)?;
        if made.weights != identity(fingerprint, precision) {
            // Quantized as they are loaded, weights are others.
            return Ok(format!("{place} was made for other weights: all layers vote (run `secateur calibrate` again)"));
        }
        let chosen = choice.layers()?;
        chosen.check(layers, Scope::Shared).map_err(|e| e.at(place))?;
        let right = |layers: &str| choice.row(layers).map_or(0, |row| row.correct);
        let of = made.questions;
        let mut note = match &chosen {
            Layers::All => format!("all layers vote, as calibrated ({place}: {} of {of} right", right("all")),
            Layers::Listed(_) => format!(
                "layers {chosen} vote, as calibrated ({place}: {} of {of} right, with all layers {}{}",
                right(&choice.layers),
                right("all"),
                if choice.distinguishable { "" } else { ", which may be chance" },
            ),
        };
        if made.run.budget != settings.budget {
            note += &format!("; with {}, not {}", made.run.budget, settings.budget);
        }
        settings.layers = chosen;
        Ok(note + "); `layers` overrides")
    }
}

/// The text of the choice beside a model, and its place.
fn read(source: &ModelSource) -> Result<Option<(String, String)>> {
    #[cfg(not(target_family = "wasm"))]
    if let Some(path) = choice_path(source) {
        let place = path.display().to_string();
        return match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some((text, place))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::new(ErrorKind::Io, "the choice of layers cannot be read").at(place).found(e)),
        };
    }
    let Some(bytes) = source.find(FILE)? else { return Ok(None) };
    let place = source.place_of(FILE);
    let not_text = |e| Error::new(ErrorKind::Input, "the choice of layers is not UTF-8").at(&place).found(e);
    let text = String::from_utf8(bytes.to_vec()).map_err(not_text)?;
    Ok(Some((text, place)))
}

fn fingerprint(source: &ModelSource) -> Result<String> {
    let weights = Weights::open(source)?;
    #[cfg(not(target_family = "wasm"))]
    if let Some(choice) = choice_path(source) {
        let hashed = Hashed::from_files(&weights, &choice)?;
        hashed.keep(&choice);
        return Ok(hashed.fingerprint);
    }
    weights.fingerprint()
}
