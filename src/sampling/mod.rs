//! How the next token is chosen from the logits: the most likely one, or a random draw, with the settings of
//! transformers and in its order.
pub(crate) mod device;

use serde::{Deserialize, Serialize};

pub use device::MOST_CANDIDATES;
pub(crate) use device::Sampler;

use crate::model::config::GenerationDefaults;
use crate::{Error, ErrorKind, Result};

/// A temperature below this one counts as 0: the most likely token is taken.
const COLDEST: f32 = 1e-3;

/// Settings of a sampler, applied in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p.
/// The two penalties of OpenAI's interface come before them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits. With 0 (or below 0.001) the most likely token is taken; of the settings below only the
    /// penalty applies then.
    pub temperature: f32,
    /// Draws from this many of the most likely tokens; 0: from all.
    pub top_k: u32,
    /// Draws from the fewest of them that together reach this share of their probability; 1: from all.
    pub top_p: f32,
    /// Excludes tokens that are less likely than this share of the most likely one.
    pub min_p: f32,
    /// Divides the positive logits and multiplies the negative logits of tokens that are in the prompt or were
    /// generated, evicted ones included; 1: no penalty.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of a token for each time that it was generated, from −2 to 2; 0: no penalty. The
    /// prompt does not count. Applied before the other settings.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of a token that was generated, from −2 to 2; 0: no penalty.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub presence_penalty: f32,
}

fn is_zero(penalty: &f32) -> bool {
    *penalty == 0.0
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

impl Sampling {
    /// Takes the most likely token, without a penalty.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
    };

    /// The settings that the model's authors recommend. Without `do_sample` they are greedy; settings that are left
    /// out have the defaults of transformers (temperature 1, top-k 50).
    pub fn from_defaults(defaults: &GenerationDefaults) -> Self {
        let repetition_penalty = defaults.repetition_penalty.unwrap_or(1.0);
        if defaults.do_sample != Some(true) {
            return Self { repetition_penalty, ..Self::GREEDY };
        }
        Self {
            temperature: defaults.temperature.unwrap_or(1.0),
            top_k: defaults.top_k.unwrap_or(50),
            top_p: defaults.top_p.unwrap_or(1.0),
            min_p: defaults.min_p.unwrap_or(0.0),
            repetition_penalty,
            ..Self::GREEDY
        }
    }

    /// Whether the tokens that were generated have to be counted, for frequency or presence penalties.
    pub(crate) fn counts(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// Whether the most likely token is taken, without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature < COLDEST
    }

    /// Checks that all settings are in their ranges.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a setting out of range.
    pub fn check(&self) -> Result<()> {
        let Self { temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, .. } = *self;
        let (penalties, subtracted) = (0.01..=100.0, -2.0..=2.0);
        for (name, value, good, expected) in [
            ("`temperature`", temperature, (0.0..=1000.0).contains(&temperature), "from 0 to 1000"),
            ("`top_p`", top_p, top_p > 0.0 && top_p <= 1.0, "above 0, at most 1"),
            ("`min_p`", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1"),
            ("`repetition_penalty`", repetition_penalty, penalties.contains(&repetition_penalty), "from 0.01 to 100"),
            ("`frequency_penalty`", frequency_penalty, subtracted.contains(&frequency_penalty), "from -2 to 2"),
            ("`presence_penalty`", presence_penalty, subtracted.contains(&presence_penalty), "from -2 to 2"),
        ] {
            if !good {
                let e = Error::new(ErrorKind::Input, "a sampling setting is out of range").at(name);
                return Err(e.expected(expected).found(value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_recommends() {
        let of = |defaults: GenerationDefaults| Sampling::from_defaults(&defaults);
        assert_eq!(of(GenerationDefaults::default()), Sampling::GREEDY);
        let r1 = GenerationDefaults {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_p: Some(0.95),
            ..GenerationDefaults::default()
        };
        assert_eq!(of(r1.clone()), Sampling { temperature: 0.6, top_k: 50, top_p: 0.95, ..Sampling::GREEDY });
        let off = GenerationDefaults { do_sample: Some(false), repetition_penalty: Some(1.1), ..r1 };
        assert_eq!(of(off), Sampling { repetition_penalty: 1.1, ..Sampling::GREEDY });
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(Sampling::GREEDY.check().is_ok());
        for wrong in [
            Sampling { temperature: -1.0, ..Sampling::GREEDY },
            Sampling { temperature: f32::NAN, ..Sampling::GREEDY },
            Sampling { top_p: 0.0, ..Sampling::GREEDY },
            Sampling { min_p: 1.5, ..Sampling::GREEDY },
            Sampling { repetition_penalty: 0.0, ..Sampling::GREEDY },
            Sampling { frequency_penalty: 2.1, ..Sampling::GREEDY },
            Sampling { presence_penalty: f32::NAN, ..Sampling::GREEDY },
        ] {
            assert!(wrong.check().unwrap_err().to_string().contains("out of range"), "{wrong:?}");
        }
    }
}
