//! An evaluation: policies at budgets on questions with answers, each a trial whose record is one line of JSON.
//! Trials can be made in any order and on several machines; a table ([`super::table`]) needs only their records.
//!
//! Two arms are always there: `full`, which shows what pruning costs, and `random`, the control. Controls keep as
//! many tokens at each probe as the measured policy kept on the same question ([`Replay`]): only which tokens stay
//! differs.
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answer::{self, Answered};
use super::calibrate;
use super::grade::{self, Verdict};
use super::problems::Problem;
use super::replay::{Replay, kept_counts};
use crate::engine::{Engine, Prompt};
use crate::policy::{Budget, Full, PolicyRef, Random};
use crate::sampling::Sampling;
use crate::settings::Settings;
use crate::trace::{StopReason, Trace};
use crate::{Error, ErrorKind, Result};

/// The version of the file's format that this code writes and reads.
pub const VERSION: u32 = 1;

/// Number of open trials among which the next one that can be made is searched.
const LOOKED_AT: usize = 256;
/// Number of failures in a row that end an evaluation: the cause is then not a single question.
const MOST_FAILURES: usize = 8;

/// A way of answering: a policy at a budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Arm {
    /// The policy that evicts.
    pub policy: PolicyRef,
    /// The budget; `None` for `full`.
    pub budget: Option<Budget>,
    /// The policy whose kept counts this control repeats.
    pub replays: Option<PolicyRef>,
}

impl Arm {
    /// The policy and the budget, as they name the arm in trials.
    pub fn key(&self) -> (String, Option<String>) {
        (self.policy.to_string(), self.budget.map(|budget| budget.to_string()))
    }
}

impl std::fmt::Display for Arm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.budget {
            Some(budget) => write!(f, "{} at {budget}", self.policy),
            None => self.policy.fmt(f),
        }
    }
}

/// What an evaluation measures, and everything that must be equal for its trials to belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The version of the file's format: [`VERSION`].
    pub version: u32,
    /// Version of secateur.
    pub secateur: String,
    /// Name of the model.
    pub model: String,
    /// [`identity`](crate::expert::weights::precision::identity) of its weights.
    pub weights: String,
    /// The device as one line of text: name, backend, kind and driver.
    pub device: String,
    /// Element type of the KV cache.
    pub kv: String,
    /// The context, if it was limited.
    pub context: Option<usize>,
    /// Questions that are answered side by side. Beyond eight, sums are added in another order: see
    /// [`Batch`](crate::engine::Batch).
    pub batch: usize,
    /// Where the questions come from.
    pub data: String,
    /// Number of the questions, those of all shards together.
    pub questions: usize,
    /// [`hash`](calibrate::hash) of the questions and answers.
    pub questions_hash: String,
    /// What is appended to each question.
    pub instruction: Option<String>,
    /// The part of the questions that is answered here, as `I/N`; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The measured policies and the controls, without `full`.
    pub policies: Vec<PolicyRef>,
    /// The budgets at which each policy is measured.
    pub budgets: Vec<Budget>,
    /// Seeds. Where a seed has no effect, only the first is used.
    pub seeds: Vec<u64>,
    /// The layers that vote, for the policies for which a calibration chose some.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calibrated_layers: BTreeMap<String, String>,
    /// How each question is generated and pruned. Policy, budget, seed and layers are those of each trial, and have
    /// their defaults here.
    #[serde(flatten)]
    pub run: Settings,
}

/// Fields of [`Settings`] that a plan's file does not have.
const OF_TRIALS: [&str; 4] = ["policy", "budget", "seed", "layers"];

impl Plan {
    /// The arms, `full` first, then by budget. Of each policy there is one arm for each budget.
    pub fn arms(&self) -> Vec<Arm> {
        let measured = self.policies.iter().find(|policy| policy.evicts() && !policy.is_control());
        let mut arms = vec![Arm { policy: Full.into(), budget: None, replays: None }];
        for budget in &self.budgets {
            for policy in &self.policies {
                let replays = measured.filter(|_| policy.is_control()).cloned();
                arms.push(Arm { policy: policy.clone(), budget: Some(*budget), replays });
            }
        }
        arms
    }

    /// The seeds of an arm: the first alone where neither sampling nor the policy draws.
    pub fn seeds_of(&self, arm: &Arm) -> &[u64] {
        let sampled = self.run.sampling.temperature != Sampling::GREEDY.temperature;
        if sampled || arm.policy.draws_lots() { &self.seeds } else { &self.seeds[..self.seeds.len().min(1)] }
    }

    /// Adds `random` where it is not named, and removes `full` and repetitions.
    ///
    /// # Errors
    /// [`ErrorKind::Policy`] if a policy does not accept a budget.
    pub fn policies(asked: &[PolicyRef], budgets: &[Budget]) -> Result<Vec<PolicyRef>> {
        let mut policies: Vec<PolicyRef> = Vec::new();
        for policy in asked.iter().cloned().chain([Random.into()]) {
            if policy.evicts() && !policies.contains(&policy) {
                policies.push(policy);
            }
        }
        let replayed = policies.iter().any(|policy| !policy.is_control());
        for policy in policies.iter().filter(|policy| !(replayed && policy.is_control())) {
            budgets.iter().try_for_each(|budget| policy.accepts(*budget))?;
        }
        Ok(policies)
    }

    /// The trials of this plan, in the order in which they are best made: question by question, so that an
    /// interrupted evaluation has compared its arms on the same questions.
    pub fn trials(&self) -> Vec<Job> {
        let arms = self.arms();
        let shard = self.shard.unwrap_or_default();
        let mut jobs = Vec::new();
        for problem in (0..self.questions).filter(|problem| shard.has(*problem)) {
            for seed in &self.seeds {
                let of = arms.iter().enumerate().filter(|(_, arm)| self.seeds_of(arm).contains(seed));
                jobs.extend(of.map(|(arm, _)| Job { problem, arm, seed: *seed }));
            }
        }
        jobs
    }

    /// The prompt for a question, with the instruction if there is one.
    pub fn prompt(&self, problem: &Problem) -> Prompt {
        let question = problem.question.clone();
        Prompt::Chat(match &self.instruction {
            Some(instruction) => format!("{question}\n\n{instruction}"),
            None => question,
        })
    }

    /// The settings as names and values, in the order of the file, for display.
    pub fn listed(&self) -> Vec<(String, String)> {
        self.fields().into_iter().map(|(name, value)| (name, shown(Some(&value)))).collect()
    }

    /// The fields that differ: name, value here, value there. The place of the questions is not compared if the
    /// questions are the same, because it may differ between machines.
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let (mut here, there) = (self.fields(), other.fields());
        if self.questions_hash == other.questions_hash {
            here.insert("data".into(), Value::String(other.data.clone()));
        }
        let names: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
        names
            .into_iter()
            .filter(|name| here.get(*name) != there.get(*name))
            .map(|name| (name.clone(), shown(here.get(name)), shown(there.get(name))))
            .collect()
    }

    fn fields(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut map)) = serde_json::to_value(self) else { return Map::new() };
        OF_TRIALS.iter().for_each(|name| drop(map.remove(*name)));
        map
    }

    /// The plan as a file.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for numbers that JSON cannot hold.
    pub fn to_json(&self) -> Result<String> {
        let failed = |e| Error::new(ErrorKind::Internal, "the settings cannot be written as JSON").found(e);
        Ok(serde_json::to_string_pretty(&self.fields()).map_err(failed)? + "\n")
    }

    /// Reads what [`to_json`](Self::to_json) wrote. `place` names the file in errors.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for text that is something else, or of another version.
    pub fn from_json(text: &str, place: &str) -> Result<Self> {
        let wrong = |found: String| {
            Error::new(ErrorKind::Input, "these are not the settings of an evaluation").at(place).found(found)
        };
        let mut value: Value = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        match value["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => return Err(wrong(format!("version {version}")).expected(format!("version {VERSION}"))),
            None => return Err(wrong("no version".into())),
        }
        let defaults = serde_json::to_value(Settings::default());
        if let (Some(map), Ok(Value::Object(defaults))) = (value.as_object_mut(), defaults) {
            for name in OF_TRIALS {
                map.insert(name.into(), defaults[name].clone());
            }
        }
        let plan: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        if plan.seeds.is_empty() || plan.questions == 0 {
            return Err(wrong("no seeds or no questions".into()));
        }
        Ok(plan)
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "none".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| shown(Some(item))).collect::<Vec<_>>().join(","),
        Some(value) => value.to_string(),
    }
}

/// A part of the questions: every `of`-th, from the `index`-th on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Number of this part, counted from 1.
    pub index: usize,
    /// Number of the parts.
    pub of: usize,
}

crate::text_form::serde_as_text!(Shard);

impl Default for Shard {
    fn default() -> Self {
        Self { index: 1, of: 1 }
    }
}

impl Shard {
    /// Whether a question, counted from 0, belongs to this part.
    pub fn has(self, problem: usize) -> bool {
        problem % self.of == self.index - 1
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err(Error::new(ErrorKind::Input, "this is not a part of the questions")
                .at("`shard`")
                .expected("I/N with I from 1 to N, such as 1/4")
                .found(format!("{text:?}"))),
        }
    }
}

/// A trial to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    /// Index of the question.
    pub problem: usize,
    /// Index of the arm in [`Plan::arms`].
    pub arm: usize,
    /// The seed of sampling and policy.
    pub seed: u64,
}

/// One question, answered in one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Index of the question.
    pub problem: usize,
    /// Name of the question in its file.
    pub id: String,
    /// The first digits of the [hash](calibrate::hash) of question and answer, by which evaluations are paired.
    pub question: String,
    /// Name of the policy.
    pub policy: String,
    /// The budget; absent with `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// The policy whose kept counts were repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replays: Option<String>,
    /// The seed of sampling and of policies that evict at random.
    pub seed: u64,
    /// How the answer compares with the key.
    pub verdict: Verdict,
    /// The answer that was found in the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The right answer to the question.
    pub key: String,
    /// Whether the run hit the limit on new tokens or the end of the context.
    pub truncated: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Generated tokens that belong to the thinking.
    pub thinking_tokens: usize,
    /// Tokens that were evicted.
    pub evicted_tokens: usize,
    /// Thinking tokens that each probe left in the cache.
    pub kept: Vec<usize>,
    /// Most slots at any time, those of a probe included.
    pub peak_cached: usize,
    /// Mean number of slots while tokens were generated.
    pub mean_cached: f64,
    /// Most bytes of keys and values on the device at any time. Buffers grow in steps, together with those of
    /// neighbours.
    pub peak_kv_bytes: u64,
    /// Time of prefill, decoding, probes and gathers, in microseconds, with neighbours computing meanwhile.
    pub us: u64,
    /// Why the run failed, if it did. It counts as a wrong answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The ids that the model generated; empty in a [brief](Self::brief) trial.
    pub ids: Vec<u32>,
    /// The text that the model generated; empty in a [brief](Self::brief) trial.
    pub text: String,
}

impl Trial {
    /// The key of the arm to which this trial belongs; see [`Arm::key`].
    pub fn arm(&self) -> (String, Option<String>) {
        (self.policy.clone(), self.budget.clone())
    }

    /// What must be equal for trials of two evaluations to be compared: the policy, the budget, and the policy whose
    /// kept counts were repeated.
    pub fn way(&self) -> (String, Option<String>, Option<String>) {
        (self.policy.clone(), self.budget.clone(), self.replays.clone())
    }

    /// The trial without ids and text, which tables do not need and which may be megabytes.
    #[must_use]
    pub fn brief(self) -> Self {
        Self { ids: Vec::new(), text: String::new(), ..self }
    }

    /// A trial without an answer.
    fn unanswered(arm: &Arm, job: Job, problem: &Problem) -> Self {
        let (policy, budget) = arm.key();
        Self {
            problem: job.problem,
            id: problem.id.clone(),
            question: question_hash(problem),
            policy,
            budget,
            replays: arm.replays.as_ref().map(ToString::to_string),
            seed: job.seed,
            verdict: Verdict::Wrong,
            answer: None,
            key: problem.answer.clone(),
            truncated: false,
            prompt_tokens: 0,
            generated_tokens: 0,
            thinking_tokens: 0,
            evicted_tokens: 0,
            kept: Vec::new(),
            peak_cached: 0,
            mean_cached: 0.0,
            peak_kv_bytes: 0,
            us: 0,
            error: None,
            ids: Vec::new(),
            text: String::new(),
        }
    }

    fn new(arm: &Arm, job: Job, problem: &Problem, answered: Answered) -> Self {
        let Answered { result, error } = answered;
        let failed = error.is_some();
        let trial = Self { error: error.map(|e| e.to_string()), ..Self::unanswered(arm, job, problem) };
        let Some(result) = result else { return trial };
        let (trace, totals) = (&result.trace, result.trace.totals);
        // What the model wrote before it was cut off while thinking, or before a failure, is no answer.
        let found = grade::answer(&result.answer, &problem.answer).filter(|_| !failed && !result.thinking_unfinished);
        Self {
            verdict: found.map_or(Verdict::Wrong, |found| grade::verdict(found, &problem.answer)),
            answer: found.map(str::to_string),
            truncated: !failed && trace.stop_reason != StopReason::Eos,
            prompt_tokens: totals.prompt_tokens,
            generated_tokens: totals.generated_tokens,
            thinking_tokens: totals.thinking_tokens,
            evicted_tokens: totals.evicted_tokens,
            kept: kept_counts(trace),
            peak_cached: totals.peak_cached,
            mean_cached: mean_cached(trace),
            peak_kv_bytes: totals.peak_kv_bytes,
            us: totals.prefill_us + totals.decode_us + totals.probe_us,
            ids: trace.tokens.iter().map(|token| token.id).collect(),
            text: result.text,
            ..trial
        }
    }
}

fn question_hash(problem: &Problem) -> String {
    calibrate::hash(std::slice::from_ref(problem))[..16].to_string()
}

/// The mean number of slots over the generated tokens. Before each token, all earlier tokens that are not evicted are
/// counted.
fn mean_cached(trace: &Trace) -> f64 {
    let mut evicted = 0;
    let mut probes = trace.probes.iter().peekable();
    let mut sum = 0.0;
    for at in 0..trace.tokens.len() {
        while let Some(probe) = probes.next_if(|probe| probe.at_token <= at) {
            evicted += probe.evicted.len();
        }
        sum += (trace.prompt_ids.len() + at - evicted.min(at)) as f64;
    }
    sum / trace.tokens.len().max(1) as f64
}

/// Makes the trials of `plan` that are not in `made`, and adds them there. `settings` are those of each arm, with any
/// seed. `done` receives each trial as it ends. The returned trials are [brief](Trial::brief). Once `stop` returns
/// true, running trials end without a record.
///
/// A run that fails is recorded as a trial with its error. That trial is not made again, and controls that would
/// repeat the run are not made. Eight failures in a row, or nothing but failures, are an error of the evaluation, and
/// none of these failures is recorded.
///
/// # Errors
/// The errors of a run after which no other can be made, and those of `done`.
pub async fn run(
    engine: &mut Engine,
    plan: &Plan,
    problems: &[Problem],
    settings: &[Settings],
    made: Vec<Trial>,
    stop: &dyn Fn() -> bool,
    done: &mut dyn FnMut(&Trial) -> Result<()>,
) -> Result<Vec<Trial>> {
    let arms = plan.arms();
    let made = RefCell::new(Made::new(&arms, made));
    let mut open: VecDeque<Job> = plan.trials().into_iter().filter(|job| !made.borrow().has(job)).collect();
    let mut jobs = std::iter::from_fn(|| {
        // A control can only be made after the run that it repeats.
        let made = made.borrow();
        let ready = open.iter().take(LOOKED_AT).position(|job| made.ready(&arms, plan, job))?;
        let job = open.remove(ready)?;
        let kept = made.replayed(&arms, plan, &job);
        let arm = &arms[job.arm];
        let policy = kept.map_or(arm.policy.clone(), |kept| Replay::new(arm.policy.clone(), kept.to_vec()).into());
        let budget = arm.budget.unwrap_or_default();
        let settings = Settings { policy, budget, seed: job.seed, ..settings[job.arm].clone() };
        Some((job, plan.prompt(&problems[job.problem]), settings))
    });
    // A failure is recorded once another run has succeeded. Until then, the cause may affect all runs.
    let (mut failed, mut succeeded) = (Vec::new(), false);
    let mut record = |job: Job, trial: Trial| {
        done(&trial)?;
        made.borrow_mut().add(job, trial.brief());
        Ok(())
    };
    answer::side_by_side(engine, &mut jobs, stop, &mut |job, answered| {
        let error = answered.error.clone();
        let trial = Trial::new(&arms[job.arm], job, &problems[job.problem], answered);
        match error {
            Some(error) if failed.len() + 1 == MOST_FAILURES => return Err(error),
            Some(error) => failed.push((job, trial, error)),
            None => {
                succeeded = true;
                failed.drain(..).try_for_each(|(job, trial, _)| record(job, trial))?;
                record(job, trial)?;
            }
        }
        Ok(())
    })
    .await?;
    if let Some((_, _, error)) = failed.first().filter(|_| !succeeded) {
        return Err(error.clone());
    }
    failed.drain(..).try_for_each(|(job, trial, _)| record(job, trial))?;
    Ok(made.into_inner().trials.into_values().collect())
}

/// The trials that were made.
struct Made {
    trials: BTreeMap<Job, Trial>,
}

impl Made {
    fn new(arms: &[Arm], trials: Vec<Trial>) -> Self {
        let mut made = Self { trials: BTreeMap::new() };
        for trial in trials {
            if let Some(arm) = arms.iter().position(|arm| arm.key() == trial.arm()) {
                made.add(Job { problem: trial.problem, arm, seed: trial.seed }, trial);
            }
        }
        made
    }

    fn add(&mut self, job: Job, trial: Trial) {
        self.trials.insert(job, trial);
    }

    fn has(&self, job: &Job) -> bool {
        self.trials.contains_key(job)
    }

    /// The trial whose kept counts a control repeats. `None` for other arms; `Some(None)` before that trial is made.
    fn repeated(&self, arms: &[Arm], plan: &Plan, job: &Job) -> Option<Option<&Trial>> {
        let arm = &arms[job.arm];
        let replays = arm.replays.as_ref()?;
        let of = arms.iter().position(|other| other.policy == *replays && other.budget == arm.budget)?;
        let seeds = plan.seeds_of(&arms[of]);
        let seed = if seeds.contains(&job.seed) { job.seed } else { seeds[0] };
        Some(self.trials.get(&Job { problem: job.problem, arm: of, seed }))
    }

    /// Whether a trial can be made. A control can be made only after the run that it repeats, and only if that run
    /// succeeded.
    fn ready(&self, arms: &[Arm], plan: &Plan, job: &Job) -> bool {
        self.repeated(arms, plan, job).is_none_or(|trial| trial.is_some_and(|trial| trial.error.is_none()))
    }

    fn replayed(&self, arms: &[Arm], plan: &Plan, job: &Job) -> Option<&[usize]> {
        self.repeated(arms, plan, job)?.map(|trial| &trial.kept[..])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn plan(policies: &[&str], budgets: &[&str], seeds: &[u64], questions: usize) -> Plan {
        let budgets: Vec<Budget> = budgets.iter().map(|budget| budget.parse().unwrap()).collect();
        let policies: Vec<PolicyRef> = policies.iter().map(|policy| policy.parse().unwrap()).collect();
        Plan {
            version: VERSION,
            secateur: "0".into(),
            model: "m".into(),
            weights: "w".into(),
            device: "d".into(),
            kv: "f16".into(),
            context: None,
            batch: 8,
            data: "x.jsonl".into(),
            questions,
            questions_hash: "0".into(),
            instruction: None,
            shard: None,
            policies: Plan::policies(&policies, &budgets).unwrap(),
            budgets,
            seeds: seeds.to_vec(),
            calibrated_layers: BTreeMap::new(),
            run: Settings::default(),
        }
    }

    fn names(plan: &Plan) -> Vec<String> {
        plan.arms().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_full_cache_and_the_control_are_always_measured() {
        let both = ["full", "think-clearly at ratio:0.5", "random at ratio:0.5"];
        for asked in [&["think-clearly"][..], &["full", "think-clearly", "full"], &["think-clearly", "random"]] {
            assert_eq!(names(&plan(asked, &["ratio:0.5"], &[0], 1)), both, "{asked:?}");
        }
        assert_eq!(names(&plan(&["full"], &["ratio:0.5"], &[0], 1)), ["full", "random at ratio:0.5"]);
        let many = plan(&["random-step", "h2o", "snapkv"], &["ratio:0.5", "tokens:9"], &[0], 1);
        let arms = many.arms();
        assert_eq!(arms.len(), 1 + 2 * 4);
        let replays: Vec<_> = arms.iter().map(|arm| arm.replays.as_ref().map(ToString::to_string)).collect();
        assert_eq!(replays[1..5], [Some("h2o".into()), None, None, Some("h2o".into())]);
        // A policy that draws lots on the basis of its measurements is not a control.
        let drawing = plan(&["vase", "h2o"], &["ratio:0.5"], &[0, 1], 1);
        let replays: Vec<_> = drawing.arms().iter().map(|arm| arm.replays.as_ref().map(ToString::to_string)).collect();
        assert_eq!(replays, [None, None, None, Some("vase".into())]);
        assert_eq!(drawing.trials().len(), 1 + 2 + 1 + 2);
        assert!(Plan::policies(&["vase".parse().unwrap()], &["share:0.5".parse().unwrap()]).is_err());
        // With replayed counts, a control also works for budgets that add up scores, which it could not do by itself.
        assert_eq!(names(&plan(&["think-clearly"], &["share:0.5"], &[0], 1)).len(), 3);
        let share = ["share:0.5".parse().unwrap()];
        assert!(Plan::policies(&["h2o".parse().unwrap()], &share).is_err());
        assert!(Plan::policies(&["random".parse().unwrap()], &share).is_err());
    }

    #[test]
    fn a_seed_is_used_where_it_has_an_effect() {
        let greedy = plan(&["think-clearly"], &["ratio:0.5"], &[0, 1, 2], 4);
        assert_eq!(greedy.trials().len(), 4 * (1 + 1 + 3));
        let mut sampled = greedy.clone();
        sampled.run.sampling.temperature = 0.6;
        assert_eq!(sampled.trials().len(), 4 * 9);
        // Each shard has its questions, and together they have all.
        let shard = |index| Plan { shard: Some(Shard { index, of: 3 }), ..greedy.clone() };
        let mut of_shards: Vec<Job> = (1..=3).flat_map(|index| shard(index).trials()).collect();
        of_shards.sort();
        let mut all = greedy.trials();
        all.sort();
        assert_eq!(of_shards, all);
    }

    #[test]
    fn a_plan_is_a_file_and_tells_what_differs() {
        let here = plan(&["h2o"], &["tokens:9"], &[0, 1], 4);
        let text = here.to_json().unwrap();
        assert!(!text.contains("\"budget\"") && !text.contains("\"seed\""), "{text}");
        assert_eq!(Plan::from_json(&text, "x").unwrap(), here);
        let mut there = here.clone();
        (there.seeds, there.batch, there.run.window) = (vec![0], 4, 9);
        there.data = "elsewhere/x.jsonl".into();
        let names: Vec<String> = here.differences(&there).into_iter().map(|d| d.0).collect();
        assert_eq!(names, ["batch", "seeds", "window"]);
        there.questions_hash = "1".into();
        assert_eq!(here.differences(&there).len(), 5, "the hash and the data");
        for (bad, why) in [
            ("{}", "no version"),
            ("[", "EOF"),
            (&text.replace("\"version\": 1", "\"version\": 2"), "version 2"),
            (&text.replace("\"questions\": 4", "\"questions\": 0"), "no questions"),
            (&text.replace("\"budgets\"", "\"budget_list\""), "budgets"),
        ] {
            let error = Plan::from_json(bad, "settings.json").unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("settings.json"), "{bad}: {error}");
        }
    }

    #[test]
    fn shards_are_written_as_parts() {
        let shard: Shard = "2/3".parse().unwrap();
        assert_eq!(shard.to_string(), "2/3");
        assert_eq!([0, 1, 2, 3, 4].map(|problem| shard.has(problem)), [false, true, false, false, true]);
        for bad in ["", "1", "0/3", "4/3", "a/b", "1/0", "-1/3"] {
            assert!(bad.parse::<Shard>().unwrap_err().to_string().contains("I from 1 to N"), "{bad}");
        }
    }
}
