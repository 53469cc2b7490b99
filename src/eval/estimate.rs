//! How long an evaluation would take and how much memory it needs, from short answers on the device.
use std::time::Instant;

use super::answer;
use super::measure::{Job, Plan, Trial};
use super::problems::Problem;
use crate::Result;
use crate::engine::Engine;
use crate::policy::Full;
use crate::settings::Settings;

/// Tokens of the answers between which the time is measured.
const SHORT: usize = 4;
const LONG: usize = 36;

/// The size and the time of a round of questions that were answered side by side.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Tokens of the prompts.
    prompts: usize,
    /// Tokens of the answers.
    answers: usize,
    seconds: f64,
}

/// The speed of the device with this model, all places of the batch together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Tokens of prompts per second.
    pub prompts: f64,
    /// Tokens of answers per second.
    pub answers: f64,
}

impl Speed {
    /// Answers the first questions of `plan` with the full cache, as many as run side by side, for a few tokens. If
    /// there are fewer questions than places, they are asked several times, as an evaluation does with its ways of
    /// answering. The first round compiles shaders and is not counted. `settings` are those of the full cache. `None`
    /// once `stop` returns true.
    ///
    /// # Errors
    /// The errors of a run.
    pub async fn measure(
        engine: &mut Engine,
        plan: &Plan,
        problems: &[Problem],
        settings: &Settings,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Self>> {
        let mut rounds = [Round::default(); 3];
        for (round, tokens) in rounds.iter_mut().zip([LONG, SHORT, LONG]) {
            let run = Settings { policy: Full.into(), max_new_tokens: tokens, ignore_eos: true, ..settings.clone() };
            let asked = problems.iter().cycle().take(plan.batch);
            let mut jobs = asked.map(|problem| ((), plan.prompt(problem), run.clone()));
            let began = Instant::now();
            answer::side_by_side(engine, &mut jobs, stop, &mut |(), answered| {
                let trace = answered.whole()?.trace;
                round.prompts += trace.prompt_ids.len();
                round.answers += trace.tokens.len();
                Ok(())
            })
            .await?;
            round.seconds = began.elapsed().as_secs_f64();
            if stop() {
                return Ok(None);
            }
        }
        Ok(Some(Self::from_rounds(rounds[1], rounds[2])))
    }

    /// The speed, from a round of short answers and a round of long answers to the same prompts.
    fn from_rounds(short: Round, long: Round) -> Self {
        // On a busy machine the short round can take longer than the long one.
        let each =
            ((long.seconds - short.seconds) / long.answers.saturating_sub(short.answers).max(1) as f64).max(1e-9);
        let before = (short.seconds - each * short.answers as f64).max(1e-9);
        Self { prompts: short.prompts as f64 / before, answers: 1.0 / each }
    }

    /// The seconds that these trials take if each answer has `tokens` tokens. `prompts`: the tokens of each
    /// question's prompt.
    pub fn seconds(&self, jobs: &[Job], prompts: &[usize], tokens: impl Fn(&Job) -> f64) -> f64 {
        let of = |job: &Job| prompts[job.problem] as f64 / self.prompts + tokens(job) / self.answers;
        jobs.iter().map(of).sum()
    }
}

/// The mean length in tokens of the answers so far, without failures; `None` if there are none.
pub fn mean_length(trials: &[Trial]) -> Option<f64> {
    let whole = || trials.iter().filter(|trial| trial.error.is_none());
    let (tokens, count) = (whole().map(|trial| trial.generated_tokens as f64).sum::<f64>(), whole().count());
    (count > 0).then(|| tokens / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_follow_from_two_rounds() {
        // 8 prompts of 50 tokens at 200 a second, then 8 · 4 and 8 · 36 tokens at 64 a second.
        let (prefill, token) = (400.0 / 200.0, 1.0 / 64.0);
        let round = |answers: usize, seconds| Round { prompts: 400, answers, seconds };
        let timed = |answers: usize| round(answers, prefill + answers as f64 * token);
        let speed = Speed::from_rounds(timed(32), timed(288));
        assert!((speed.prompts - 200.0).abs() < 1e-6 && (speed.answers - 64.0).abs() < 1e-6, "{speed:?}");
        let jobs = [0, 1].map(|problem| Job { problem, arm: 0, seed: 0 });
        let seconds = speed.seconds(&jobs, &[100, 300], |job| if job.problem == 0 { 64.0 } else { 128.0 });
        assert!((seconds - (2.0 + 3.0)).abs() < 1e-6, "{seconds}");
        // A short round that took longer does not give a negative speed.
        let odd = Speed::from_rounds(round(32, 3.0), round(288, 2.0));
        assert!(odd.prompts > 0.0 && odd.answers > 0.0);
    }
}
