//! How long an evaluation would take and how much memory it needs, from short answers on the device.
use std::time::{Duration, Instant};

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

/// The speed of the device with this model, all places of the batch together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Tokens of prompts per second.
    pub prompts: f64,
    /// Tokens of answers per second.
    pub answers: f64,
}

impl Speed {
    /// Answers the first questions of `plan` with the full cache, as many as run side by side, for a few tokens. The first
    /// round compiles shaders and is not counted. `settings` are those of the full cache. `None` once `stop` returns true.
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
        let asked = &problems[..plan.batch.min(problems.len())];
        let (mut prompts, mut rounds) = (0, [Duration::ZERO; 3]);
        for (round, tokens) in rounds.iter_mut().zip([LONG, SHORT, LONG]) {
            let run = Settings { policy: Full.into(), max_new_tokens: tokens, ignore_eos: true, ..settings.clone() };
            let mut jobs = asked.iter().map(|problem| ((), plan.prompt(problem), run.clone()));
            prompts = 0;
            let began = Instant::now();
            answer::side_by_side(engine, &mut jobs, stop, &mut |(), answered| {
                prompts += answered.whole()?.trace.prompt_ids.len();
                Ok(())
            })
            .await?;
            *round = began.elapsed();
            if stop() {
                return Ok(None);
            }
        }
        Ok(Some(Self::of(asked.len(), prompts, rounds[1].as_secs_f64(), rounds[2].as_secs_f64())))
    }

    /// From the seconds of `answers` short and long answers to prompts of so many tokens together.
    fn of(answers: usize, prompts: usize, short: f64, long: f64) -> Self {
        // On a busy machine the short round can take the longer time.
        let each = ((long - short) / (answers * (LONG - SHORT)) as f64).max(1e-9);
        let before = (short - each * (answers * SHORT) as f64).max(1e-9);
        Self { prompts: prompts as f64 / before, answers: 1.0 / each }
    }

    /// The seconds that these trials take if each answer has `tokens` tokens. `prompts`: the tokens of each question's
    /// prompt.
    pub fn seconds(&self, jobs: &[Job], prompts: &[usize], tokens: impl Fn(&Job) -> f64) -> f64 {
        let of = |job: &Job| prompts[job.problem] as f64 / self.prompts + tokens(job) / self.answers;
        jobs.iter().map(of).sum()
    }
}

/// The mean length of the answers that were made, in tokens; `None` without any.
pub fn mean_length(trials: &[Trial]) -> Option<f64> {
    let tokens: f64 = trials.iter().map(|trial| trial.generated_tokens as f64).sum();
    (!trials.is_empty()).then(|| tokens / trials.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_follow_from_two_rounds() {
        // 8 prompts of 50 tokens at 200 a second, then 8 · 4 and 8 · 36 tokens at 64 a second.
        let (prefill, token) = (400.0 / 200.0, 1.0 / 64.0);
        let speed = Speed::of(8, 400, prefill + 32.0 * token, prefill + 288.0 * token);
        assert!((speed.prompts - 200.0).abs() < 1e-6 && (speed.answers - 64.0).abs() < 1e-6, "{speed:?}");
        let jobs = [0, 1].map(|problem| Job { problem, arm: 0, seed: 0 });
        let seconds = speed.seconds(&jobs, &[100, 300], |job| if job.problem == 0 { 64.0 } else { 128.0 });
        assert!((seconds - (2.0 + 3.0)).abs() < 1e-6, "{seconds}");
        // A short round that took longer gives no negative speed.
        let odd = Speed::of(8, 400, 3.0, 2.0);
        assert!(odd.prompts > 0.0 && odd.answers > 0.0);
    }
}
