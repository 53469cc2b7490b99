//! Evaluations whose runs fail: what is recorded, and what is not.
use std::cell::RefCell;
use std::collections::BTreeMap;

use secateur::engine::{Engine, LoadOptions, Settings};
use secateur::eval::builtin::{Split, problems};
use secateur::eval::calibrate::hash;
use secateur::eval::measure::{self, Plan, Trial, VERSION};
use secateur::eval::table;
use secateur::policy::{Budget, CacheView, EvictionPolicy, KeepPlan, Measurement, PolicyRef, StreamingLlm};
use secateur::{Error, ErrorKind, Result, builtin};

use crate::common::{block_on, devices};

/// A policy that fails with some seeds, or with all, as if it could not handle a text.
#[derive(Debug)]
struct Brittle {
    always: bool,
    kind: ErrorKind,
}

impl EvictionPolicy for Brittle {
    fn name(&self) -> &str {
        "brittle"
    }

    fn draws_lots(&self) -> bool {
        true
    }

    fn needs(&self) -> Measurement {
        Measurement::Nothing
    }

    fn plan(&self, view: &CacheView<'_>) -> Result<KeepPlan> {
        if self.always || view.probe() == 0 && view.rng()().is_multiple_of(2) {
            return Err(Error::new(self.kind, "this text is too much for me"));
        }
        StreamingLlm.plan(view)
    }
}

/// Evaluates the policy on two questions with this number of seeds, after `made`. Returns the recorded trials.
fn evaluate(policy: Brittle, seeds: u64, made: Vec<Trial>) -> (Plan, Result<Vec<Trial>>, Vec<Trial>) {
    let load = LoadOptions { sequences: 4, ..LoadOptions::default() };
    let loaded = Engine::load(&builtin::source(), "built-in", &devices()[0], &load, &mut |_, _| ());
    let mut engine = loaded.expect("it is built in");
    let questions = problems(Split::Normal, 0, 2);
    let budgets = vec![Budget::Ratio(0.5)];
    let run = Settings { window: 16, probe_every: 40, max_new_tokens: 300, ..Settings::default() };
    let plan = Plan {
        version: VERSION,
        secateur: "0".into(),
        model: "built-in".into(),
        weights: "w".into(),
        device: "cpu".into(),
        kv: "f16".into(),
        context: None,
        batch: 4,
        data: "builtin".into(),
        questions: questions.len(),
        questions_hash: hash(&questions),
        instruction: None,
        shard: None,
        policies: Plan::policies(&[PolicyRef::new(policy)], &budgets).expect("it accepts the budget"),
        budgets,
        seeds: (0..seeds).collect(),
        calibrated_layers: BTreeMap::new(),
        run: run.clone(),
    };
    let mut settings = vec![run.clone(); plan.arms().len()];
    // The runs with the full cache are so long that eight others can fail meanwhile.
    settings[0] = Settings { ignore_eos: true, max_new_tokens: 600, ..run };
    let recorded = RefCell::new(Vec::new());
    let mut done = |trial: &Trial| {
        recorded.borrow_mut().push(trial.clone());
        Ok(())
    };
    let all = block_on(measure::run(&mut engine, &plan, &questions, &settings, made, &|| false, &mut done));
    (plan, all, recorded.into_inner())
}

#[test]
fn a_run_that_fails_is_a_wrong_answer_and_the_others_go_on() {
    let (plan, all, recorded) = evaluate(Brittle { always: false, kind: ErrorKind::Policy }, 6, Vec::new());
    let all = all.expect("some succeed");
    assert_eq!(all.len(), recorded.len());
    let of = |policy: &str| all.iter().filter(|trial| trial.policy == policy).collect::<Vec<_>>();
    let (brittle, failed): (Vec<&Trial>, Vec<&Trial>) =
        (of("brittle"), all.iter().filter(|t| t.error.is_some()).collect());
    assert_eq!(brittle.len(), 12, "two questions, six seeds");
    assert!(!failed.is_empty() && failed.len() < 12, "{} of 12 failed", failed.len());
    for trial in &failed {
        assert_eq!((trial.policy.as_str(), trial.answer.as_ref()), ("brittle", None));
        assert!(!trial.verdict.is_right() && !trial.truncated);
        assert!(trial.error.as_ref().is_some_and(|error| error.contains("too much for me")), "{:?}", trial.error);
    }
    // A control repeats the kept counts of a run. It is not made if that run failed.
    let random = of("random");
    assert_eq!(random.len(), 12 - failed.len());
    let failed_with = |trial: &Trial| failed.iter().any(|f| (f.problem, f.seed) == (trial.problem, trial.seed));
    assert!(!random.iter().any(|trial| failed_with(trial)));
    let rows = table::rows(&plan, &all);
    assert_eq!(rows.iter().map(|row| row.failed).collect::<Vec<_>>(), [0, failed.len(), 0]);
    // A second evaluation makes nothing again.
    let (_, again, recorded) = evaluate(Brittle { always: false, kind: ErrorKind::Policy }, 6, all.clone());
    assert_eq!((again.expect("nothing is left to do").len(), recorded.len()), (all.len(), 0));
}

/// Many failures in a row, or a failure of the device, do not count as answers to questions.
#[test]
fn what_concerns_all_runs_ends_an_evaluation_and_is_not_recorded() {
    for (always, kind) in [(true, ErrorKind::Policy), (false, ErrorKind::Device)] {
        let (_, all, recorded) = evaluate(Brittle { always, kind }, 12, Vec::new());
        let error = all.expect_err("it ends").to_string();
        assert!(error.contains("too much for me"), "{error}");
        assert!(recorded.iter().all(|trial| trial.error.is_none()), "{kind:?}: a failure was recorded");
    }
}
