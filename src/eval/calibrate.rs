//! Chooses the layers that vote on a shared set. Each layer is tried alone, then sets that grow greedily, by accuracy
//! on the questions of a development split. All are tried at the same budget: `tokens:N` gives each the same memory,
//! and `ratio:R` gives memory in proportion to how long a run thinks.
//!
//! Whether a choice helps on other questions must be shown on another split. The best of many sets looks better than
//! it is, and with few questions a difference of one or two right answers means nothing. Every set is therefore
//! compared with all layers on the same questions ([`Paired`]), and a choice records the result.
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::paired::Paired;
use super::problems::Problem;
use super::{answer, grade};
use crate::engine::{Engine, Prompt};
use crate::policy::{Full, Layers};
use crate::settings::Settings;
use crate::trace::StopReason;
use crate::{Error, Result};

pub use crate::calibration::{Candidate, Choice, Conditions, FILE, VERSION};
#[cfg(not(target_family = "wasm"))]
pub use crate::calibration::{Hashed, choice_path};

/// A choice counts as better than all layers if its [corrected](Choice::corrected_p) probability is below this level.
pub const LEVEL: f64 = 0.05;

const FULL: &str = "full cache";

/// How questions are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arm {
    /// Nothing is evicted. It shows what the budget costs and is never chosen.
    Full,
    /// These layers vote on what is evicted.
    Layers(Layers),
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str(FULL),
            Self::Layers(layers) => layers.fmt(f),
        }
    }
}

impl FromStr for Arm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == FULL { Ok(Self::Full) } else { text.parse().map(Self::Layers) }
    }
}

/// The BLAKE3 hash of the questions and answers, in hexadecimal digits.
pub fn hash(problems: &[Problem]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in problems.iter().flat_map(|p| [&p.question, &p.answer]) {
        hasher.update(part.as_bytes()).update(b"\0");
    }
    hasher.finalize().to_hex().to_string()
}

/// One question, answered in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The [`Arm`]: as on the command line (`all`, `0-3,7`), or `full cache`.
    pub layers: String,
    /// Index of the question.
    pub problem: usize,
    /// Whether the answer was right.
    pub correct: bool,
    /// Whether the run hit the limit on new tokens or the end of the context.
    pub truncated: bool,
    /// Most slots at any time.
    pub peak_cached: usize,
    /// Tokens that were evicted.
    pub evicted: usize,
}

/// The statistics of a choice against all layers.
impl Choice {
    /// A row compared with all layers, on the same questions.
    pub fn paired(&self, row: &Candidate) -> Paired {
        Paired { of: self.settings.questions, gained: row.gained, lost: row.lost }
    }

    /// The number of sets that were compared with all layers.
    pub fn rivals(&self) -> usize {
        self.rows.len().saturating_sub(1)
    }

    /// An upper bound of the probability that the best of so many sets differs this much from all layers by chance
    /// (Bonferroni).
    pub fn corrected_p(&self) -> f64 {
        let row = self.row(&self.layers);
        row.map_or(1.0, |row| (self.paired(row).p_value() * self.rivals() as f64).min(1.0))
    }
}

/// A calibration under way: the trials so far, and what to try next.
pub struct Calibration {
    layers: usize,
    problems: usize,
    trials: BTreeMap<(String, usize), Trial>,
}

impl Calibration {
    /// A calibration of a model with `layers` layers on `problems` questions. `done`: the trials of an earlier
    /// calibration that was interrupted.
    pub fn new(layers: usize, problems: usize, done: impl IntoIterator<Item = Trial>) -> Self {
        let trials = done.into_iter().map(|t| ((t.layers.clone(), t.problem), t)).collect();
        Self { layers, problems, trials }
    }

    /// Adds a trial.
    pub fn add(&mut self, trial: Trial) {
        self.trials.insert((trial.layers.clone(), trial.problem), trial);
    }

    fn trial(&self, arm: &str, problem: usize) -> Option<&Trial> {
        self.trials.get(&(arm.to_string(), problem))
    }

    /// The result of an arm, once all questions were answered with it and with all layers.
    pub fn row(&self, arm: &Arm) -> Option<Candidate> {
        let layers = arm.to_string();
        let through = |arm: &str| (0..self.problems).map(|p| self.trial(arm, p)).collect::<Option<Vec<&Trial>>>();
        let (trials, all) = (through(&layers)?, through(&Layers::All.to_string())?);
        let only = |a: &[&Trial], b: &[&Trial]| a.iter().zip(b).filter(|(a, b)| a.correct && !b.correct).count();
        Some(Candidate {
            correct: trials.iter().filter(|t| t.correct).count(),
            gained: only(&trials, &all),
            lost: only(&all, &trials),
            truncated: trials.iter().filter(|t| t.truncated).count(),
            peak_cached: trials.iter().map(|t| t.peak_cached as f64).sum::<f64>() / self.problems as f64,
            layers,
        })
    }

    /// Whether `a` is better than `b`: more right answers, then fewer truncated ones. Among equals the one tried
    /// first stands: `all`, then lower layers, then smaller sets.
    fn better(a: &Candidate, b: &Candidate) -> bool {
        (a.correct, b.truncated) > (b.correct, a.truncated)
    }

    /// The next round of the search: the questions to answer, each with its arm. They may be answered in any order
    /// and side by side. The first round has all layers, the full cache and each layer alone. Each later round adds
    /// every further layer to the best set, as long as that gives one more right answer. The round is empty once the
    /// search is over.
    pub fn round(&self) -> Vec<(Arm, usize)> {
        let open = |arms: &[Arm]| {
            let mut open = Vec::new();
            for arm in arms {
                let name = arm.to_string();
                let missing = (0..self.problems).filter(|p| self.trial(&name, *p).is_none());
                open.extend(missing.map(|p| (arm.clone(), p)));
            }
            open
        };
        let singles: Vec<Arm> = (0..self.layers).map(|l| Arm::Layers(Layers::Listed(vec![l]))).collect();
        let first = open(&[&[Arm::Layers(Layers::All), Arm::Full], &singles[..]].concat());
        if !first.is_empty() {
            return first;
        }
        let mut best = self.best_of(&singles);
        while let Some((Arm::Layers(Layers::Listed(chosen)), row)) = best {
            if chosen.len() + 1 >= self.layers {
                break;
            }
            let grown: Vec<Arm> = (0..self.layers)
                .filter(|l| !chosen.contains(l))
                .filter_map(|l| Layers::listed([&chosen[..], &[l]].concat()).ok())
                .map(Arm::Layers)
                .collect();
            let next = open(&grown);
            if !next.is_empty() {
                return next;
            }
            best = self.best_of(&grown).filter(|(_, next)| next.correct > row.correct);
        }
        Vec::new()
    }

    fn best_of(&self, arms: &[Arm]) -> Option<(Arm, Candidate)> {
        let rows = arms.iter().filter_map(|arm| Some((arm.clone(), self.row(arm)?)));
        rows.reduce(|best, next| if Self::better(&next.1, &best.1) { next } else { best })
    }

    /// Every set of layers with which all questions were answered, best first.
    pub fn rows(&self) -> Vec<Candidate> {
        let mut names: Vec<&String> = self.trials.keys().map(|(name, _)| name).collect();
        names.dedup();
        let mut sets: Vec<Layers> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let size = |layers: &Layers| match layers {
            Layers::All => (0, Vec::new()),
            Layers::Listed(listed) => (listed.len(), listed.clone()),
        };
        sets.sort_by_key(size);
        let mut rows: Vec<Candidate> = sets.into_iter().filter_map(|layers| self.row(&Arm::Layers(layers))).collect();
        // The sort is stable: equals stay in the order in which they were tried.
        rows.sort_by(|a, b| (b.correct, a.truncated).cmp(&(a.correct, b.truncated)));
        rows
    }

    /// The choice so far; `None` before all questions were answered with the full cache and with all layers.
    pub fn choice(&self, settings: &Conditions) -> Option<Choice> {
        let rows = self.rows();
        let all = Layers::All.to_string();
        let mut choice = Choice {
            version: VERSION,
            layers: rows.first()?.layers.clone(),
            distinguishable: false,
            settings: settings.clone(),
            pruned: (0..self.problems).filter(|p| self.trial(&all, *p).is_some_and(|t| t.evicted > 0)).count(),
            full: self.row(&Arm::Full)?,
            rows,
        };
        choice.distinguishable = choice.corrected_p() < LEVEL;
        Some(choice)
    }
}

/// Answers the questions in `open`, side by side in the engine's places, and passes each trial to `done` as it ends.
/// Once `stop` returns true, the questions under way end without a trial.
///
/// # Errors
/// The errors of a run, and those of `done`.
pub async fn answer(
    engine: &mut Engine,
    problems: &[Problem],
    open: &[(Arm, usize)],
    options: &Settings,
    stop: &dyn Fn() -> bool,
    done: &mut dyn FnMut(Trial) -> Result<()>,
) -> Result<()> {
    let mut jobs = open.iter().map(|(arm, problem)| {
        let options = match arm {
            Arm::Full => Settings { policy: Full.into(), ..options.clone() },
            Arm::Layers(layers) => Settings { layers: layers.clone(), ..options.clone() },
        };
        ((arm, *problem), Prompt::Chat(problems[*problem].question.clone()), options)
    });
    answer::side_by_side(engine, &mut jobs, stop, &mut |(arm, problem), answered| {
        let result = answered.whole()?;
        // If the model was cut off while thinking, no number in the text counts as an answer.
        let verdict = grade::grade(&result.answer, &problems[problem].answer);
        done(Trial {
            layers: arm.to_string(),
            problem,
            correct: !result.thinking_unfinished && verdict.is_right(),
            truncated: result.trace.stop_reason != StopReason::Eos,
            peak_cached: result.trace.totals.peak_cached,
            evicted: result.trace.totals.evicted_tokens,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Budget;

    fn settings(questions: usize) -> Conditions {
        Conditions {
            secateur: "0".into(),
            model: "m".into(),
            weights: "0".into(),
            device: "d".into(),
            kv: "f16".into(),
            context: None,
            sequences: 8,
            run: Settings { budget: Budget::Tokens(9), max_new_tokens: 100, ..Settings::default() },
            questions,
            questions_hash: hash(&[]),
        }
    }

    fn trial(arm: &Arm, problem: usize, correct: bool) -> Trial {
        Trial { layers: arm.to_string(), problem, correct, truncated: false, peak_cached: 9, evicted: 1 }
    }

    /// Answers as a model would that has `right(set)` right answers for a set of layers.
    fn search(layers: usize, problems: usize, right: impl Fn(&str) -> usize) -> (Vec<String>, Choice) {
        let mut calibration = Calibration::new(layers, problems, []);
        let mut tried: Vec<String> = Vec::new();
        loop {
            let round = calibration.round();
            if round.is_empty() {
                break;
            }
            for (arm, problem) in round {
                if tried.last() != Some(&arm.to_string()) {
                    tried.push(arm.to_string());
                }
                calibration.add(trial(&arm, problem, problem < right(&arm.to_string())));
            }
        }
        (tried, calibration.choice(&settings(problems)).unwrap())
    }

    #[test]
    fn sets_grow_as_long_as_that_adds_a_right_answer() {
        let (tried, choice) = search(4, 10, |set| match set {
            "2" => 5,
            "1-2" | "1-3" => 7,
            "all" => 4,
            "full cache" => 10,
            _ => 1,
        });
        assert_eq!(tried, ["all", "full cache", "0", "1", "2", "3", "0,2", "1-2", "2-3", "0-2", "1-3"]);
        assert_eq!(choice.layers, "1-2", "of equals the smaller set; the full cache is no set");
        assert_eq!((choice.rows[0].correct, choice.full.correct, choice.rivals()), (7, 10, 9));
        assert_eq!((choice.rows[0].gained, choice.rows[0].lost), (3, 0));
        assert!(!choice.distinguishable, "three questions tell nothing");
        assert_eq!(Choice::from_json(&serde_json::to_string(&choice).unwrap(), "x").unwrap(), choice);
    }

    #[test]
    fn all_layers_stay_where_nothing_is_better() {
        let (tried, choice) = search(3, 4, |_| 2);
        assert_eq!((choice.layers.as_str(), tried.len()), ("all", 2 + 3 + 2));
        assert!(!choice.distinguishable && choice.corrected_p() == 1.0);
    }

    #[test]
    fn the_best_of_many_sets_needs_more_than_the_best_of_one() {
        // Seven questions gained, none lost: p = 1/64 by itself, of three sets about 0.047, of four more than 0.05.
        let of = |layers| search(layers, 20, |set| if set == "0" { 12 } else { 5 }).1;
        let few = of(2);
        assert_eq!((few.layers.as_str(), few.rivals(), few.distinguishable), ("0", 2, true));
        let many = of(4);
        assert_eq!((many.layers.as_str(), many.rivals(), many.distinguishable), ("0", 7, false));
        assert!((many.corrected_p() - 7.0 / 64.0).abs() < 1e-12);
    }

    #[test]
    fn an_interrupted_search_goes_on_where_it_was() {
        let all = Arm::Layers(Layers::All);
        let calibration = Calibration::new(3, 4, [0, 2].map(|p| trial(&all, p, true)));
        assert_eq!(calibration.round()[..3], [(all.clone(), 1), (all, 3), (Arm::Full, 0)]);
        assert!(calibration.choice(&settings(4)).is_none(), "no arm is complete");
    }

    #[test]
    fn what_differs_is_named() {
        let here = settings(3);
        let mut there = settings(3);
        there.run = Settings { budget: Budget::Tokens(8), seed: 1, ..there.run };
        let names: Vec<String> = here.differences(&there).into_iter().map(|d| d.0).collect();
        assert_eq!(names, ["budget", "seed"]);
        assert!(here.differences(&here).is_empty());
        let problem = |question: &str, answer: &str| Problem {
            id: String::new(),
            question: question.into(),
            answer: answer.into(),
        };
        assert_ne!(hash(&[problem("a", "bc")]), hash(&[problem("ab", "c")]));
    }

    #[test]
    fn a_file_that_is_no_choice_is_refused() {
        let (_, choice) = search(2, 1, |_| 1);
        let json = serde_json::to_string(&choice).unwrap();
        for (bad, why) in [
            ("{}", "no version"),
            ("[", "EOF"),
            (&json.replace("\"version\":3", "\"version\":2"), "version 2"),
            (&json.replace("\"layers\":\"all\",\"dist", "\"layers\":\"x\",\"dist"), "layers \"x\""),
            (&json.replace("\"pruned\"", "\"prined\""), "pruned"),
        ] {
            let error = Choice::from_json(bad, "secateur.json").unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("secateur calibrate"), "{bad}: {error}");
        }
    }
}
