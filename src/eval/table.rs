//! The table of an evaluation: each arm's accuracy with its interval, compared on the same questions with the full
//! cache and with the control, and what it cost.
use std::collections::BTreeMap;

use super::grade::Verdict;
use super::measure::{Arm, Plan, Trial};
use super::paired::{self, Paired, Z};
use crate::policy::Random;

/// An arm's results.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmRow {
    /// The arm.
    pub arm: Arm,
    /// Questions that were answered.
    pub questions: usize,
    /// Answers: questions times seeds.
    pub trials: usize,
    /// Right answers.
    pub right: usize,
    /// Answers of which the grader cannot tell whether they are right. They count as not right.
    pub cannot_tell: usize,
    /// Answers that hit a limit.
    pub truncated: usize,
    /// Runs that failed. They count as wrong answers.
    pub failed: usize,
    /// The mean of the questions' shares of right answers.
    pub accuracy: f64,
    /// The interval of the share of right answers; see [`accuracy_interval`].
    pub interval: (f64, f64),
    /// Against the full cache; `None` for the full cache itself.
    pub against_full: Option<Difference>,
    /// Against `random` at the same budget, if that keeps as many tokens: it repeats the kept counts of this policy, or
    /// both repeat those of one policy. `None` for the others, for `random` itself and for the full cache.
    pub against_random: Option<Difference>,
    /// Mean tokens of the thinking.
    pub thinking_tokens: f64,
    /// Mean of the most slots.
    pub peak_cached: f64,
    /// Mean of the mean number of slots.
    pub mean_cached: f64,
    /// Mean of the most bytes of keys and values on the device.
    pub peak_kv_bytes: f64,
    /// Generated tokens per second of one sequence, prefill and probes included.
    pub tokens_per_second: f64,
    /// The mean number of slots, as a share of that of the full cache on the same questions.
    pub memory: f64,
}

/// How much more often an arm is right than another, on the same questions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Questions that both answered.
    pub questions: usize,
    /// The mean difference of the shares of right answers.
    pub mean: f64,
    /// Its 95 % interval; see [`paired::interval`].
    pub interval: (f64, f64),
    /// The p-value of McNemar's test; `None` if questions were answered with several seeds.
    pub p_value: Option<f64>,
}

impl Difference {
    /// Compares two arms by the shares of right answers to each question, over its seeds. `None` without a question
    /// that both answered.
    pub fn of<K: Ord>(this: &BTreeMap<K, Vec<bool>>, other: &BTreeMap<K, Vec<bool>>) -> Option<Self> {
        let pairs: Vec<(&Vec<bool>, &Vec<bool>)> =
            this.iter().filter_map(|(question, right)| Some((right, other.get(question)?))).collect();
        if pairs.is_empty() {
            return None;
        }
        let differences: Vec<f64> = pairs.iter().map(|(a, b)| share(a) - share(b)).collect();
        let (sum, squares) = differences.iter().fold((0.0, 0.0), |(sum, squares), d| (sum + d, squares + d * d));
        let single = pairs.iter().all(|(a, b)| a.len() == 1 && b.len() == 1);
        let count = |gain: f64| differences.iter().filter(|d| **d == gain).count();
        let paired = Paired { of: pairs.len(), gained: count(1.0), lost: count(-1.0) };
        Some(Self {
            questions: pairs.len(),
            mean: sum / pairs.len() as f64,
            interval: paired::interval(pairs.len(), sum, squares),
            p_value: single.then(|| paired.p_value()),
        })
    }
}

/// The mean of the questions' shares of right answers. While an evaluation is under way, some questions have more
/// answers than others; each counts once.
pub fn accuracy<K: Ord>(right: &BTreeMap<K, Vec<bool>>) -> f64 {
    right.values().map(|right| share(right)).sum::<f64>() / right.len() as f64
}

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|right| **right).count() as f64 / right.len() as f64
}

/// Wilson's 95 % interval for `right` of `trials`, both of which may be fractions.
pub fn wilson(right: f64, trials: f64) -> (f64, f64) {
    let share = right / trials;
    let centre = (share + Z * Z / (2.0 * trials)) / (1.0 + Z * Z / trials);
    let half = Z / (1.0 + Z * Z / trials) * (share * (1.0 - share) / trials + Z * Z / (4.0 * trials * trials)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// Wilson's interval of the share of right answers. Several answers to one question, with several seeds, are not
/// independent. They count as the number of independent answers whose mean would have the variance that is seen
/// between the questions: at least one for each question, and at most as many as there are.
pub fn accuracy_interval<K: Ord>(right: &BTreeMap<K, Vec<bool>>) -> (f64, f64) {
    let (questions, trials) = (right.len() as f64, right.values().map(Vec::len).sum::<usize>() as f64);
    let shares: Vec<f64> = right.values().map(|right| share(right)).collect();
    let mean = accuracy(right);
    let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / (questions - 1.0).max(1.0);
    let of_one = mean * (1.0 - mean);
    // If all answers are right, or all wrong, no variance is seen, and each question counts once.
    let independent = if of_one > 0.0 { of_one / (variance / questions) } else { questions };
    let independent = independent.clamp(questions, trials);
    wilson(mean * independent, independent)
}

/// The right and other answers to each question of an arm, by the key of the question.
pub fn answers<K: Ord>(trials: &[&Trial], key: impl Fn(&Trial) -> K) -> BTreeMap<K, Vec<bool>> {
    let mut answers: BTreeMap<K, Vec<bool>> = BTreeMap::new();
    for trial in trials {
        answers.entry(key(trial)).or_default().push(trial.verdict.is_right());
    }
    answers
}

/// The rows of a plan in the order of its arms, those without trials left out.
pub fn rows(plan: &Plan, trials: &[Trial]) -> Vec<ArmRow> {
    let mut by_arm: BTreeMap<(String, Option<String>), Vec<&Trial>> = BTreeMap::new();
    for trial in trials {
        by_arm.entry(trial.arm()).or_default().push(trial);
    }
    let of = |arm: &Arm| by_arm.get(&arm.key());
    let arms = plan.arms();
    let full = of(&arms[0]).map(|trials| answers(trials, |trial| trial.problem)).unwrap_or_default();
    let slots_of_full: BTreeMap<(usize, u64), f64> = of(&arms[0])
        .into_iter()
        .flatten()
        .filter(|trial| trial.error.is_none())
        .map(|trial| ((trial.problem, trial.seed), trial.mean_cached))
        .collect();
    // Where nothing is drawn, the full cache answers with the first seed only.
    let full_of = |trial: &Trial| {
        let with = |seed: &u64| slots_of_full.get(&(trial.problem, *seed)).copied();
        with(&trial.seed).or_else(|| with(plan.seeds.first()?))
    };
    let random = |arm: &Arm| {
        let control = arms.iter().find(|other| other.policy == Random.into() && other.budget == arm.budget)?;
        let as_many = control.replays.as_ref() == Some(&arm.policy) || control.replays == arm.replays;
        if !as_many {
            return None;
        }
        Some(answers(of(control)?, |trial| trial.problem))
    };
    let row = |arm: &Arm| {
        let trials = of(arm)?;
        let right = answers(trials, |trial| trial.problem);
        // Runs that failed are left out of the mean costs.
        let whole: Vec<&&Trial> = trials.iter().filter(|trial| trial.error.is_none()).collect();
        let mean =
            |value: &dyn Fn(&Trial) -> f64| whole.iter().map(|t| value(t)).sum::<f64>() / whole.len().max(1) as f64;
        let count = |is: &dyn Fn(&Trial) -> bool| trials.iter().filter(|t| is(t)).count();
        let is_random = arm.policy == Random.into();
        let seconds = whole.iter().map(|trial| trial.us as f64 / 1e6).sum::<f64>();
        let generated = whole.iter().map(|trial| trial.generated_tokens as f64).sum::<f64>();
        let with_full = whole.iter().filter_map(|t| Some((t.mean_cached, full_of(t)?)));
        let (slots, slots_full) = with_full.fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        Some(ArmRow {
            arm: arm.clone(),
            questions: right.len(),
            trials: trials.len(),
            right: count(&|trial| trial.verdict.is_right()),
            cannot_tell: count(&|trial| trial.verdict == Verdict::CannotTell),
            truncated: count(&|trial| trial.truncated),
            failed: count(&|trial| trial.error.is_some()),
            accuracy: accuracy(&right),
            interval: accuracy_interval(&right),
            against_full: arm.budget.and_then(|_| Difference::of(&right, &full)),
            against_random: arm.budget.filter(|_| !is_random).and_then(|_| Difference::of(&right, &random(arm)?)),
            thinking_tokens: mean(&|trial| trial.thinking_tokens as f64),
            peak_cached: mean(&|trial| trial.peak_cached as f64),
            mean_cached: mean(&|trial| trial.mean_cached),
            peak_kv_bytes: mean(&|trial| trial.peak_kv_bytes as f64),
            tokens_per_second: if seconds > 0.0 { generated / seconds } else { 0.0 },
            memory: if slots_full > 0.0 { slots / slots_full } else { 1.0 },
        })
    };
    arms.iter().filter_map(row).collect()
}

/// The rows as comma-separated values, with a line of names. Shares are from 0 to 1; a value that does not exist is
/// empty.
pub fn csv(rows: &[ArmRow]) -> String {
    let mut text = "policy,budget,replays,questions,answers,right,accuracy,low,high,cannot_tell,truncated,failed,\
                    against_full,against_full_low,against_full_high,against_full_p,\
                    against_random,against_random_low,against_random_high,against_random_p,\
                    thinking_tokens,peak_cached,mean_cached,memory,peak_kv_bytes,tokens_per_second\n"
        .to_string();
    for row in rows {
        // Names of policies and budgets have no commas.
        let mut cells = vec![
            row.arm.policy.to_string(),
            row.arm.budget.map(|budget| budget.to_string()).unwrap_or_default(),
            row.arm.replays.as_ref().map(ToString::to_string).unwrap_or_default(),
            row.questions.to_string(),
            row.trials.to_string(),
            row.right.to_string(),
            format!("{:.6}", row.accuracy),
            format!("{:.6}", row.interval.0),
            format!("{:.6}", row.interval.1),
            row.cannot_tell.to_string(),
            row.truncated.to_string(),
            row.failed.to_string(),
        ];
        for difference in [row.against_full, row.against_random] {
            let cell = |value: Option<f64>| value.map(|value| format!("{value:.6}")).unwrap_or_default();
            cells.extend([
                cell(difference.map(|d| d.mean)),
                cell(difference.map(|d| d.interval.0)),
                cell(difference.map(|d| d.interval.1)),
                cell(difference.and_then(|d| d.p_value)),
            ]);
        }
        cells.extend([row.thinking_tokens, row.peak_cached, row.mean_cached].map(|value| format!("{value:.2}")));
        cells.push(format!("{:.6}", row.memory));
        cells.extend([format!("{:.0}", row.peak_kv_bytes), format!("{:.2}", row.tokens_per_second)]);
        text += &(cells.join(",") + "\n");
    }
    text
}

/// A share as points of 100: `62.5`.
pub fn points(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// A difference as points of 100 with a sign and its interval: `-3.1 [-9.0, +2.9]`.
pub fn signed(difference: Option<Difference>) -> String {
    let points = |share: f64| format!("{:+.1}", 100.0 * share);
    difference
        .map_or("-".into(), |d| format!("{} [{}, {}]", points(d.mean), points(d.interval.0), points(d.interval.1)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::measure::tests::plan;
    use super::*;

    /// A trial of the arm with that index, whose numbers follow from its arguments.
    pub fn trial(plan: &Plan, arm: usize, problem: usize, seed: u64, verdict: Verdict) -> Trial {
        let (policy, budget) = plan.arms()[arm].key();
        Trial {
            problem,
            id: problem.to_string(),
            question: format!("{problem:016}"),
            policy,
            budget,
            replays: None,
            seed,
            verdict,
            answer: None,
            key: "5".into(),
            truncated: problem == 0,
            prompt_tokens: 10,
            generated_tokens: 100,
            thinking_tokens: 90,
            evicted_tokens: 0,
            kept: Vec::new(),
            peak_cached: 110,
            mean_cached: if arm == 0 { 60.0 } else { 30.0 },
            peak_kv_bytes: 1 << 20,
            us: 500_000,
            error: None,
            ids: Vec::new(),
            text: String::new(),
        }
    }

    #[test]
    fn wilson_is_what_the_textbook_says() {
        // By hand, for 8, 0 and 10 of 10: the roots of (p - share)^2 = Z^2 p (1 - p) / 10.
        for (right, low, high) in [(8.0, 0.490, 0.943), (0.0, 0.0, 0.278), (10.0, 0.722, 1.0)] {
            let (a, b) = wilson(right, 10.0);
            assert!((a - low).abs() < 1e-3 && (b - high).abs() < 1e-3, "{right}: {a} to {b}");
        }
    }

    #[test]
    fn seeds_that_agree_count_once() {
        let of = |answers: &[&[bool]]| -> BTreeMap<usize, Vec<bool>> {
            answers.iter().enumerate().map(|(question, answers)| (question, answers.to_vec())).collect()
        };
        let once = of(&[&[true], &[false], &[true], &[true], &[false], &[true]]);
        let thrice: BTreeMap<usize, Vec<bool>> = once.iter().map(|(q, a)| (*q, vec![a[0]; 3])).collect();
        let (a, b) = (accuracy_interval(&once), accuracy_interval(&thrice));
        assert!((a.0 - b.0).abs() < 1e-9 && (a.1 - b.1).abs() < 1e-9, "{a:?} {b:?}");
        // Answers that differ as independent ones do narrow it.
        let mixed = of(&[&[true, false, true], &[false, true, true], &[true, true, false], &[true, true, false]]);
        let (low, high) = accuracy_interval(&mixed);
        let alone = wilson(4.0 * 2.0 / 3.0, 4.0);
        assert!(high - low < alone.1 - alone.0, "{low} to {high}");
        // The same for differences; with one seed they are McNemar's.
        let one = Difference::of(&once, &of(&[&[true], &[true], &[false], &[true], &[false], &[true]])).unwrap();
        assert_eq!(one.interval, Paired { of: 6, gained: 1, lost: 1 }.interval());
        assert_eq!((one.mean, one.questions, one.p_value), (0.0, 6, Some(1.0)));
        let three = Difference::of(&thrice, &once).unwrap();
        assert_eq!((three.mean, three.p_value), (0.0, None));
        assert_eq!(Difference::of(&once, &BTreeMap::new()), None);
    }

    #[test]
    fn memory_is_compared_with_the_full_cache_at_the_same_seed() {
        let plan = plan(&["h2o"], &["ratio:0.5"], &[3, 4], 1);
        let with = |arm, seed, slots| Trial { mean_cached: slots, ..trial(&plan, arm, 0, seed, Verdict::Right) };
        let sampled = [with(0, 3, 100.0), with(0, 4, 300.0), with(1, 3, 50.0), with(1, 4, 150.0), with(2, 3, 50.0)];
        let memory = |trials: &[Trial]| rows(&plan, trials).iter().map(|row| row.memory).collect::<Vec<_>>();
        assert_eq!(memory(&sampled), [1.0, 0.5, 0.5]);
        // Greedy: the full cache has one seed.
        assert_eq!(memory(&[with(0, 3, 100.0), with(2, 3, 50.0), with(2, 4, 30.0)]), [1.0, 0.4]);
    }

    #[test]
    fn only_the_policy_that_the_control_repeats_is_compared_with_it() {
        let plan = plan(&["h2o", "snapkv", "random-step"], &["ratio:0.5"], &[0], 2);
        let trials: Vec<Trial> =
            (0..5).flat_map(|arm| [0, 1].map(|p| trial(&plan, arm, p, 0, Verdict::Right))).collect();
        let table = rows(&plan, &trials);
        let compared: Vec<_> = table.iter().map(|row| (row.arm.policy.name(), row.against_random.is_some())).collect();
        let expected = [("full", false), ("h2o", true), ("snapkv", false), ("random-step", true), ("random", false)];
        assert_eq!(compared, expected);
        assert_eq!(signed(table[2].against_random), "-");
        // Nor are controls of two evaluations compared that repeat different policies.
        let control = |policy: &str| Trial { replays: Some(policy.into()), ..trials[8].clone() };
        assert_eq!(control("h2o").arm(), control("snapkv").arm());
        assert_ne!(control("h2o").way(), control("snapkv").way());
    }

    #[test]
    fn arms_are_compared_on_the_same_questions() {
        let plan = plan(&["h2o"], &["ratio:0.5"], &[0], 4);
        use Verdict::{CannotTell, Right, Wrong};
        let arms = [[Right, Right, Right, Wrong], [Right, CannotTell, Wrong, Wrong], [Wrong, Wrong, Right, Wrong]];
        let mut trials = Vec::new();
        for (arm, verdicts) in arms.into_iter().enumerate() {
            trials.extend(verdicts.into_iter().enumerate().map(|(p, verdict)| trial(&plan, arm, p, 0, verdict)));
        }
        let table = rows(&plan, &trials);
        let counts: Vec<_> = table.iter().map(|r| (r.questions, r.right, r.cannot_tell, r.truncated)).collect();
        assert_eq!(counts, [(4, 3, 0, 1), (4, 1, 1, 1), (4, 1, 0, 1)]);
        assert_eq!(table[0].against_full, None);
        assert_eq!(table[1].against_full.unwrap().mean, -0.5);
        assert_eq!((table[1].against_random.unwrap().mean, table[2].against_random), (0.0, None));
        assert_eq!((table[1].memory, table[1].tokens_per_second), (0.5, 200.0));
        let csv = csv(&table);
        let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{csv}");
        let column = |name: &str| lines[0].iter().position(|cell| *cell == name).unwrap();
        assert_eq!((lines[2][column("against_full")], lines[2][column("memory")]), ("-0.500000", "0.500000"));
        assert_eq!((lines[1][column("against_full")], lines[3][column("replays")]), ("", "h2o"));
        // Of two answers to a question and one to another, each question counts once.
        let uneven = [trial(&plan, 2, 0, 0, Right), trial(&plan, 2, 0, 1, Right), trial(&plan, 2, 1, 0, Wrong)];
        let row = &rows(&plan, &uneven)[0];
        assert_eq!((row.right, row.trials, row.accuracy), (2, 3, 0.5));
        assert!((row.interval.0 + row.interval.1 - 1.0).abs() < 1e-9, "{:?}", row.interval);
        // A run that failed counts as wrong, and its costs as nothing.
        let failed =
            Trial { error: Some("x".into()), mean_cached: 0.0, thinking_tokens: 0, ..trial(&plan, 1, 1, 0, Wrong) };
        let row = &rows(&plan, &[trial(&plan, 0, 1, 0, Right), trial(&plan, 1, 0, 0, Right), failed])[1];
        assert_eq!((row.right, row.trials, row.failed, row.thinking_tokens, row.mean_cached), (1, 2, 1, 90.0, 30.0));
        // An evaluation under way compares what is there.
        let some: Vec<Trial> = trials.into_iter().filter(|t| t.policy != "h2o" || t.problem < 2).collect();
        let row = &rows(&plan, &some)[1];
        assert_eq!((row.questions, row.against_full.unwrap().questions), (2, 2));
    }
}
