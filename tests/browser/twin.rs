//! The built-in model in the browser against the same model on the CPU, on the same texts: the logits, and what is
//! pruned.
use std::collections::BTreeMap;
use std::env;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, LoadOptions};
use secateur::expert::quality;
use secateur::policy::{CacheView, EvictionPolicy, KeepPlan, Measurement, PolicyRef, ThinkClearly};
use secateur::trace::{Probe, Trace};
use secateur::{Dtype, Request};
use serde_json::{Value, json};

use crate::devtools::Browser;
use crate::{LOADED, LONG, Result, Site, real};

/// How much logits may differ, as a fraction of the largest; scores may differ as much. It is the bound of
/// tests/it/golden.rs.
const BOUND: f64 = 1e-4;
/// Two steps, or two tokens of a step, may change places in the order of their eviction if their scores differ by
/// less than so many bounds.
const CLOSE: f64 = 10.0;
/// Problems whose logits are compared, unless `SECATEUR_PROBLEMS` says how many: a text takes the CPU longer than its
/// plans.
const LOGITS: usize = 3;

/// A token that was cached at a probe.
#[derive(Debug, Clone, Copy)]
struct Scored {
    step: u32,
    /// The mean score of the cached tokens of its step.
    importance: f64,
    score: f64,
}

/// Plans as `think-clearly`, and records by what: the trace has no scores of single tokens. An entry for each probe, by
/// position.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Vec<BTreeMap<u32, Scored>>>>);

impl EvictionPolicy for Recorder {
    fn name(&self) -> &'static str {
        "think-clearly, recorded"
    }

    fn needs(&self) -> Measurement {
        ThinkClearly.needs()
    }

    fn plan(&self, view: &CacheView<'_>) -> secateur::Result<KeepPlan> {
        let scores = view.scores()?;
        let tokens = view.tokens().iter().zip(scores).filter_map(|(token, score)| {
            let step = token.step?;
            let importance = view.step_importance(step as usize)?;
            Some((token.position.0, Scored { step, importance, score: f64::from(*score) }))
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(tokens.collect());
        ThinkClearly.plan(view)
    }
}

/// The page gives the tokens of known answers the same logits as the CPU does, and prunes the same tokens while it
/// reads them: the built-in model's problems with their answers. Logits have to agree within [`BOUND`] of the
/// largest, and so have the importances of steps within that of the most important. Plans have to be equal, except
/// where [`is_close`] says that the order of two evictions is open within the error of the scores. After such a
/// difference the caches hold other tokens, so the rest of that problem is not compared; the test prints how often
/// that happened.
///
/// The plans of all 20 problems are compared, and the logits of [`LOGITS`] of them.
pub fn logits_and_plans_are_those_of_the_cpu(site: &Site) -> Result {
    let some = env::var("SECATEUR_PROBLEMS")
        .map_or(Ok(LOGITS), |n| n.parse())
        .map_err(|e| format!("SECATEUR_PROBLEMS: {e}"))?;
    let golden: Value = serde_json::from_str(include_str!("../../models/tiny-reasoner/golden.json")).expect("JSON");
    let problems = golden["problems"].as_array().ok_or("no problems")?;
    ensure!(problems.len() == 20, "{} problems", problems.len());
    let (source, cpu) = (secateur::builtin::source(), ComputeDevice::cpu());
    let load = LoadOptions { kv: Dtype::F32, ..LoadOptions::default() };
    let mut twin = Engine::load(&source, "", &cpu, &load, &mut |_, _| ()).map_err(|e| e.to_string())?;
    let mut browser = real(site, "/?kv=f32")?;
    browser.eval("$('builtin').click()")?;
    browser.wait(LOADED, "$('model').textContent", LONG)?;
    let (mut worst, mut probes, mut open) = (0f64, 0, 0);
    for (i, problem) in problems.iter().enumerate() {
        let ids = |key: &str| -> Vec<u32> {
            let ids = problem[key].as_array().into_iter().flatten();
            ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
        };
        let (prompt, answer) = (ids("prompt_ids"), ids("greedy_ids"));
        let at = |e: String| format!("problem {i}: {e}");
        if i < some {
            worst = worst.max(logits(&mut browser, &twin, &[&prompt[..], &answer].concat()).map_err(at)?);
        }
        let compared = plans(&mut browser, &mut twin, &prompt, &answer).map_err(at)?;
        probes += compared.probes;
        open += usize::from(compared.open);
    }
    println!(
        "{some} problems: the logits differ by at most {worst:.1e} of the largest, of {BOUND:.0e} that are allowed"
    );
    println!("{} problems: {probes} plans compared, {open} times one was open", problems.len());
    ensure!(probes >= 4 * problems.len(), "only {probes} plans were compared");
    ensure!(open <= 2, "{open} plans were open: this compares too little");
    browser.gpu_report().map(drop)
}

/// The largest difference of the logits after each of the tokens, as a fraction of the largest logit.
fn logits(browser: &mut Browser, twin: &Engine, ids: &[u32]) -> Result<f64> {
    browser.eval(&format!(
        "window.logits = undefined;
         secateur.model.logits({ids:?}).then((values) => new Response(values).blob()).then((blob) => new Promise((resolve) => {{
           const reader = new FileReader();
           reader.onload = () => resolve(reader.result.split(',')[1]);
           reader.readAsDataURL(blob);
         }})).then((text) => {{ window.logits = text; }}, (error) => {{ window.logits = `failed: ${{error}}`; }}), 0"
    ))?;
    browser.wait("window.logits", "''", LONG)?;
    let text = browser.eval("window.logits")?;
    let bytes = BASE64_STANDARD.decode(text.as_str().unwrap_or("")).map_err(|e| format!("{e}: {text}"))?;
    let found: Vec<f64> = bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
    let expected = pollster::block_on(quality::logits(twin.model(), ids)).map_err(|e| e.to_string())?;
    ensure!(found.len() == expected.len() && found.len() > ids.len(), "{} logits", found.len());
    let largest = expected.iter().fold(0f64, |most, v| most.max(f64::from(v.abs())));
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - f64::from(*b)).abs());
    // NaN has to fail, and `max` would drop it.
    let error = differences.fold(0f64, |most, d| if d <= most { most } else { d }) / largest;
    ensure!(largest > 1.0, "flat logits");
    ensure!(error <= BOUND, "the logits differ by {error:.1e} of the largest");
    Ok(error)
}

struct Compared {
    probes: usize,
    /// Whether the last of them differs, in what is open.
    open: bool,
}

/// Compares what both prune while they read an answer.
fn plans(browser: &mut Browser, twin: &mut Engine, prompt: &[u32], answer: &[u32]) -> Result<Compared> {
    let request = json!({
        "ids": prompt, "policy": "think-clearly", "budget": "ratio:0.5", "probe_every": 24, "window": 8,
        "max_new_tokens": 512, "greedy": true, "seed": 0,
    });
    browser.eval(&format!(
        "window.followed = undefined;
         secateur.model.follow({request}, {answer:?}).catch(String).then((text) => {{ window.followed = text; }}), 0"
    ))?;
    // Both compute at the same time.
    let recorder = Recorder::default();
    let mut native = || {
        let mut resolved = twin.resolve(&Request::from_json(&request.to_string())?)?;
        resolved.settings.policy = PolicyRef::new(recorder.clone());
        pollster::block_on(twin.follow(&resolved.prompt, &resolved.settings, answer))
    };
    let expected = native().map_err(|e| e.to_string())?;
    browser.wait("window.followed", "''", LONG)?;
    let text = browser.eval("window.followed")?;
    let found = Trace::from_json(text.as_str().unwrap_or("")).map_err(|e| format!("{e}: {text}"))?;
    ensure!(found.tokens == expected.tokens && found.tokens.len() == answer.len(), "{} tokens", found.tokens.len());
    ensure!(found.probes.len() == expected.probes.len(), "{} probes", found.probes.len());
    let scores = recorder.0.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(scores.len() == expected.probes.len(), "{} plans on the CPU", scores.len());
    for (n, ((found, expected), scores)) in found.probes.iter().zip(&expected.probes).zip(scores.iter()).enumerate() {
        let at = |e: String| format!("probe {n}: {e}");
        measured_alike(found, expected).map_err(at)?;
        if found.evicted != expected.evicted {
            is_close(found, expected, scores).map_err(at)?;
            return Ok(Compared { probes: n + 1, open: true });
        }
    }
    Ok(Compared { probes: expected.probes.len(), open: false })
}

/// Both have the same steps at the same place, and give them the same importance.
fn measured_alike(found: &Probe, expected: &Probe) -> Result {
    let shape = |probe: &Probe| {
        let steps: Vec<_> = probe.steps.iter().map(|step| (step.id, step.tokens, step.cached)).collect();
        (probe.at_token, probe.cached_before, probe.cached_after, steps)
    };
    ensure!(shape(found) == shape(expected), "{:?}, on the CPU {:?}", shape(found), shape(expected));
    let importances = |probe: &Probe| -> Vec<f64> {
        probe.steps.iter().map(|step| step.importance.map_or(f64::NAN, f64::from)).collect()
    };
    let (found, expected) = (importances(found), importances(expected));
    let largest = expected.iter().copied().fold(0f64, f64::max);
    ensure!(largest > 0.0, "no step has any importance");
    for (step, (a, b)) in found.iter().zip(&expected).enumerate() {
        // A step without cached tokens has none.
        let alike = (a - b).abs() <= BOUND * largest || a.is_nan() && b.is_nan();
        ensure!(alike, "step {step} has the importance {a}, on the CPU {b}, of {largest} at most");
    }
    Ok(())
}

/// Two plans may differ in tokens whose order of eviction is open within the error of the scores: of each two tokens of
/// which one plan evicts the one and the other the other, the importances of their steps, or within one step their own
/// scores, differ by less than [`CLOSE`] times [`BOUND`] of the largest.
fn is_close(found: &Probe, expected: &Probe, scores: &BTreeMap<u32, Scored>) -> Result {
    let without = |these: &[u32], those: &[u32]| -> Vec<u32> {
        these.iter().copied().filter(|position| !those.contains(position)).collect()
    };
    let here = without(&found.evicted, &expected.evicted);
    let there = without(&expected.evicted, &found.evicted);
    ensure!(here.len() == there.len(), "evicted {:?}, on the CPU {:?}", found.evicted, expected.evicted);
    let largest = |of: fn(&Scored) -> f64| scores.values().map(of).fold(0f64, f64::max);
    let (importance, score) = (largest(|token| token.importance), largest(|token| token.score));
    for a in &here {
        for b in &there {
            let (Some(x), Some(y)) = (scores.get(a), scores.get(b)) else {
                return Err(format!("evicted {a}, on the CPU {b}, and one of them was not cached"));
            };
            let gap = if x.step == y.step {
                (x.score - y.score).abs() / score
            } else {
                (x.importance - y.importance).abs() / importance
            };
            ensure!(
                gap < CLOSE * BOUND,
                "evicted position {a}, on the CPU {b}, although their scores differ by {gap:.1e} of the largest: {x:?}, {y:?}"
            );
        }
    }
    Ok(())
}
