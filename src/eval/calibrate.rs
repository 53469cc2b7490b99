//! Which layers should vote: every layer alone, then sets grown greedily, by accuracy on questions of a development split, all at
//! the same budget (of equal memory with `tokens:N`; with `ratio:R` it follows how long each run thinks).
//!
//! The paper's authors are said to have picked layers this way; that its choice helps on other questions must be shown on another
//! split. With few questions a difference of one or two right answers means nothing: the file says how many there were.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::grade;
use super::problems::Problem;
use crate::engine::{Engine, Prompt, RunOptions};
use crate::policy::{Layers, Role};
use crate::report::trace::StopReason;
use crate::{Error, ErrorKind, Result};

/// Name of the file that holds a choice, beside the model.
pub const FILE: &str = "secateur.json";
/// The version this code writes and reads.
pub const VERSION: u32 = 1;

/// One question, answered with one set of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// As on the command line: `all`, `0-3,7`.
    pub layers: String,
    /// Index of the question.
    pub problem: usize,
    /// The answer was right.
    pub correct: bool,
    /// It hit the limit on new tokens.
    pub truncated: bool,
    /// Most slots at any time.
    pub peak_cached: usize,
}

/// What a set of layers came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// As on the command line.
    pub layers: String,
    /// Right answers.
    pub correct: usize,
    /// Questions that hit the limit on new tokens.
    pub truncated: usize,
    /// Mean over the questions of the most slots at any time.
    pub peak_cached: f64,
}

/// The choice, and what it rests on: the file beside the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// [`VERSION`].
    pub version: u32,
    /// Version of secateur that made it.
    pub secateur: String,
    /// The layers to use.
    pub layers: String,
    /// Policy and budget it was made with.
    pub policy: String,
    /// As on the command line.
    pub budget: String,
    /// Questions.
    pub problems: usize,
    /// Every set that was tried, best first.
    pub rows: Vec<Row>,
}

impl Choice {
    /// Reads a choice.
    ///
    /// # Errors
    /// For text that is none, or of another version.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let wrong = |found: String| {
            let e = Error::new(ErrorKind::Input, "not a choice of layers").at(place).found(found);
            e.help("remove the file, or write it anew with `secateur calibrate`")
        };
        let choice: Self = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if choice.version != VERSION {
            return Err(wrong(format!("version {}", choice.version)).expected(format!("version {VERSION}")));
        }
        choice.layers()?;
        Ok(choice)
    }

    /// The layers to use.
    ///
    /// # Errors
    /// When they are no list of layers.
    pub fn layers(&self) -> Result<Layers> {
        self.layers.parse()
    }
}

/// A calibration under way: trials done so far, and what to try next.
pub struct Calibration {
    layers: usize,
    problems: usize,
    trials: BTreeMap<(String, usize), Trial>,
}

impl Calibration {
    /// Of a model with `layers` layers, on so many questions. `done`: trials of an earlier, interrupted calibration.
    pub fn new(layers: usize, problems: usize, done: impl IntoIterator<Item = Trial>) -> Self {
        let trials = done.into_iter().map(|t| ((t.layers.clone(), t.problem), t)).collect();
        Self { layers, problems, trials }
    }

    /// Takes a trial in.
    pub fn add(&mut self, trial: Trial) {
        self.trials.insert((trial.layers.clone(), trial.problem), trial);
    }

    fn row(&self, layers: &Layers) -> Option<Row> {
        let name = layers.to_string();
        let trials: Vec<&Trial> = (0..self.problems).map_while(|p| self.trials.get(&(name.clone(), p))).collect();
        (trials.len() == self.problems).then(|| Row {
            correct: trials.iter().filter(|t| t.correct).count(),
            truncated: trials.iter().filter(|t| t.truncated).count(),
            peak_cached: trials.iter().map(|t| t.peak_cached as f64).sum::<f64>() / self.problems as f64,
            layers: name,
        })
    }

    /// Better: more right answers, then fewer truncated. Of equals the earlier tried: `all`, then lower layers, then smaller sets.
    fn better(a: &Row, b: &Row) -> bool {
        (a.correct, b.truncated) > (b.correct, a.truncated)
    }

    /// The next set with questions open and those questions; `None` once the search is over. First all layers, then each alone,
    /// then the best set with each further layer, as long as that adds a right answer.
    pub fn next(&self) -> Option<(Layers, Vec<usize>)> {
        let open = |layers: &Layers| {
            let name = layers.to_string();
            let open: Vec<usize> =
                (0..self.problems).filter(|p| !self.trials.contains_key(&(name.clone(), *p))).collect();
            (!open.is_empty()).then(|| (layers.clone(), open))
        };
        let singles = || (0..self.layers).map(|l| Layers::Listed(vec![l]));
        if let Some(next) = std::iter::once(Layers::All).chain(singles()).find_map(|l| open(&l)) {
            return Some(next);
        }
        let mut best = self.best_of(singles())?;
        loop {
            let Layers::Listed(chosen) = &best.0 else { return None };
            if chosen.len() + 1 >= self.layers {
                return None;
            }
            let grown: Vec<Layers> = (0..self.layers)
                .filter(|l| !chosen.contains(l))
                .filter_map(|l| Layers::listed([&chosen[..], &[l]].concat()).ok())
                .collect();
            if let Some(next) = grown.iter().find_map(open) {
                return Some(next);
            }
            let next = self.best_of(grown.into_iter())?;
            if next.1.correct <= best.1.correct {
                return None;
            }
            best = next;
        }
    }

    fn best_of(&self, sets: impl Iterator<Item = Layers>) -> Option<(Layers, Row)> {
        sets.filter_map(|layers| Some((self.row(&layers)?, layers)))
            .map(|(row, layers)| (layers, row))
            .reduce(|best, next| if Self::better(&next.1, &best.1) { next } else { best })
    }

    /// Every set that is through, best first.
    pub fn rows(&self) -> Vec<Row> {
        let mut names: Vec<&String> = self.trials.keys().map(|(name, _)| name).collect();
        names.dedup();
        let mut sets: Vec<Layers> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let size = |layers: &Layers| match layers {
            Layers::All => (0, Vec::new()),
            Layers::Listed(listed) => (listed.len(), listed.clone()),
        };
        sets.sort_by_key(size);
        let mut rows: Vec<Row> = sets.iter().filter_map(|layers| self.row(layers)).collect();
        // Stable: equals stay in the order they were tried.
        rows.sort_by(|a, b| (b.correct, a.truncated).cmp(&(a.correct, b.truncated)));
        rows
    }

    /// The choice so far; `None` before any set is through.
    pub fn choice(&self, options: &RunOptions) -> Option<Choice> {
        let rows = self.rows();
        Some(Choice {
            version: VERSION,
            secateur: env!("CARGO_PKG_VERSION").into(),
            layers: rows.first()?.layers.clone(),
            policy: options.policy.clone(),
            budget: options.budget.to_string(),
            problems: self.problems,
            rows,
        })
    }
}

/// Answers `problems[open]` with `layers`, side by side in the engine's places; `done` takes each trial as it ends. Questions that
/// the engine's stop flag cuts off give no trial.
///
/// # Errors
/// What ends a run.
pub async fn answer(
    engine: &mut Engine,
    problems: &[Problem],
    layers: &Layers,
    open: &[usize],
    options: &RunOptions,
    done: &mut dyn FnMut(Trial) -> Result<()>,
) -> Result<()> {
    let options = RunOptions { layers: layers.clone(), ..options.clone() };
    let mut batch = engine.batch();
    for &problem in open {
        batch.add(&Prompt::Chat(problems[problem].question.clone()), &options)?;
    }
    while !batch.is_idle() {
        for (request, result) in batch.step(&mut |_, _| ()).await {
            let (problem, result) = (open[request], result?);
            if result.trace.stop_reason == StopReason::Cancelled {
                continue;
            }
            if let Some(error) = result.error {
                return Err(error);
            }
            let tokens = &result.trace.tokens;
            // Cut off while thinking: whatever number stands last there is no answer.
            let thinking = tokens.last().is_some_and(|t| t.role == Role::Thinking);
            let said: String = tokens.iter().filter(|t| t.role == Role::Answer).map(|t| t.text.as_str()).collect();
            let found = grade::answer(&said).filter(|_| !thinking);
            done(Trial {
                layers: layers.to_string(),
                problem,
                correct: found.is_some_and(|found| grade::same(found, &problems[problem].answer)),
                truncated: result.trace.stop_reason != StopReason::Eos,
                peak_cached: result.trace.totals.peak_cached,
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as a model would whose right answers for a set of layers are known.
    fn search(layers: usize, problems: usize, right: impl Fn(&Layers) -> usize) -> (Vec<String>, Choice) {
        let mut calibration = Calibration::new(layers, problems, []);
        let mut tried = Vec::new();
        while let Some((set, open)) = calibration.next() {
            assert!(!open.is_empty());
            tried.push(set.to_string());
            for problem in open {
                let correct = problem < right(&set);
                calibration.add(Trial { layers: set.to_string(), problem, correct, truncated: false, peak_cached: 9 });
            }
        }
        (tried, calibration.choice(&RunOptions::default()).unwrap())
    }

    #[test]
    fn sets_grow_as_long_as_that_adds_a_right_answer() {
        let (tried, choice) = search(4, 10, |set| match set.to_string().as_str() {
            "2" => 5,
            "1-2" => 7,
            "1-3" => 7,
            "all" => 4,
            _ => 1,
        });
        assert_eq!(tried, ["all", "0", "1", "2", "3", "0,2", "1-2", "2-3", "0-2", "1-3"]);
        assert_eq!(choice.layers, "1-2", "of equals the smaller set");
        assert_eq!((choice.rows[0].correct, choice.problems), (7, 10));
        assert_eq!(Choice::from_json(&serde_json::to_string(&choice).unwrap(), "x").unwrap(), choice);
    }

    #[test]
    fn all_layers_stay_where_nothing_is_better() {
        let (tried, choice) = search(3, 4, |_| 2);
        assert_eq!((choice.layers.as_str(), tried.len()), ("all", 1 + 3 + 2));
    }

    #[test]
    fn an_interrupted_search_goes_on_where_it_was() {
        let trial = |problem| Trial { layers: "all".into(), problem, correct: true, truncated: false, peak_cached: 1 };
        let calibration = Calibration::new(3, 4, [trial(0), trial(2)]);
        assert_eq!(calibration.next(), Some((Layers::All, vec![1, 3])));
        assert!(calibration.choice(&RunOptions::default()).is_none(), "nothing is through");
    }

    #[test]
    fn a_file_that_is_no_choice_is_refused() {
        let (_, choice) = search(2, 1, |_| 1);
        let json = serde_json::to_string(&choice).unwrap();
        for bad in [
            "{}",
            &json.replace("\"version\":1", "\"version\":2"),
            &json.replace("\"layers\":\"all\"", "\"layers\":\"x\""),
        ] {
            assert!(Choice::from_json(bad, "secateur.json").is_err(), "{bad}");
        }
    }
}
