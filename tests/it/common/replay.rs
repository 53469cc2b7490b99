//! Replays of whole runs, which check the evictions that policies chose.
use super::reference::{Given, Reading, Reference};
use secateur::Dtype;
use secateur::policy::{Measurement, Positions, Role, Scope, Sets};
use secateur::settings::Settings;
use secateur::trace::{Probe, Step, Trace};

use super::{Fixture, difference};

/// The fixture's weights in the reference decoder.
pub fn reference(fx: &Fixture) -> Reference {
    Reference::new(&fx.config, &fx.weights, 512)
}

pub fn narrowed(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}

/// How a replay carries out a run's evictions: as they were, or wrongly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Evict {
    AsRecorded,
    Never,
    /// Every token that is evicted at any time is hidden as soon as it is written.
    TooEarly,
    /// As recorded, but keys have the positions of the other mode.
    OtherPositions,
    /// Each layer or head loses the tokens that its neighbour lost.
    OtherSets,
    /// Evictions take effect one token late.
    Late,
}

/// The result of a replay: how much worse than the reference's best logit the chosen ones were at most, as a fraction
/// of the largest magnitude; how far the importances of steps are off, as a fraction of the largest; and how many of
/// each were compared.
#[derive(Debug, Default)]
pub struct Replay {
    pub regret: f64,
    pub importance: f64,
    pub ids: usize,
    pub steps: usize,
    /// By how much the reference's best logit leads the second, at each token, as a fraction of the largest
    /// magnitude.
    pub margins: Vec<f64>,
}

impl Replay {
    pub fn add(&mut self, other: &Self) {
        (self.regret, self.importance) = (self.regret.max(other.regret), self.importance.max(other.importance));
        (self.ids, self.steps) = (self.ids + other.ids, self.steps + other.steps);
    }
}

/// Reads a run's text with the reference, and evicts the same tokens as the run at the same times. Each token must be
/// the reference's own choice, and the importance of each step must be the one that the reference measures.
pub fn replay(reference: &Reference, kv: Dtype, trace: &Trace, probe_ids: &[u32], evict: Evict) -> Replay {
    let settings = &trace.settings;
    let scope = settings.scope;
    let (layers, kv_heads) = (reference.config.num_layers, reference.config.num_kv_heads);
    let sets = Sets { scope, layers, kv_heads };
    let gone = |probe: &Probe, set: usize| match scope {
        Scope::Shared => probe.evicted.clone(),
        _ => probe.sets[set].evicted.clone(),
    };
    let positions = match (settings.positions, evict == Evict::OtherPositions) {
        (Positions::Original, false) | (Positions::Compact, true) => Positions::Original,
        _ => Positions::Compact,
    };
    let mut text = reference.read(positions, kv);
    let mut found = Replay::default();
    let prompt = trace.prompt_ids.len();
    let all: Vec<u32> = trace.prompt_ids.iter().copied().chain(trace.tokens.iter().map(|t| t.id)).collect();
    for (position, id) in all[..all.len() - 1].iter().enumerate() {
        let given = text.forward(*id);
        let known = position + 1;
        if known >= prompt {
            let largest = given.logits.iter().fold(0f64, |m, v| m.max(v.abs()));
            let best = given.logits.iter().fold(f64::MIN, |m, v| m.max(*v));
            found.regret = found.regret.max((best - given.logits[all[known] as usize]) / largest);
            let second = given.logits.iter().filter(|v| **v < best).fold(f64::MIN, |m, v| m.max(*v));
            found.margins.push((best - second) / largest);
            found.ids += 1;
        }
        let late = (evict == Evict::Late) as usize;
        let probe = trace.probes.iter().find(|p| prompt + p.at_token + late == known);
        match (evict, probe) {
            (Evict::TooEarly, _) => {
                let ever = |set| trace.probes.iter().any(|probe| gone(probe, set).contains(&(position as u32)));
                text.evict(|l, g| if ever(sets.of(l, g)) { vec![position as u32] } else { Vec::new() });
            }
            (Evict::Never, _) | (_, None) => {}
            (Evict::OtherSets, Some(probe)) => {
                let seen: Vec<Vec<usize>> =
                    (0..layers * kv_heads).map(|set| text.seen(set / kv_heads, set % kv_heads).to_vec()).collect();
                text.evict(|l, g| {
                    let neighbours = gone(probe, (sets.of(l, g) + 1) % sets.count());
                    neighbours.into_iter().filter(|p| seen[l * kv_heads + g].contains(&(*p as usize))).collect()
                });
            }
            (Evict::AsRecorded | Evict::OtherPositions | Evict::Late, Some(probe)) => {
                let measured =
                    if evict == Evict::AsRecorded { scores(&text, &given, settings, probe_ids, &sets) } else { None };
                if let Some(scores) = measured {
                    // A step without cached tokens has no importance in either.
                    let expected = importances(&text, trace, probe, &sets, &scores);
                    let expected: Vec<f32> = expected.into_iter().map(|i| i.map_or(-1.0, |i| i as f32)).collect();
                    let recorded: Vec<f32> = probe.steps.iter().map(|s| s.importance.unwrap_or(-1.0)).collect();
                    let largest = expected.iter().fold(0f32, |m, v| m.max(*v)) as f64;
                    found.importance = found.importance.max(difference(&recorded, &expected) / largest);
                    found.steps += expected.iter().filter(|i| **i >= 0.0).count();
                }
                text.evict(|l, g| gone(probe, sets.of(l, g)));
                if evict == Evict::AsRecorded {
                    let longest = (0..layers).map(|l| text.seen(l, 0).len()).max();
                    assert_eq!(longest, Some(probe.cached_after));
                }
            }
        }
    }
    found
}

/// The scores of each kept set's slots, by the policy's measurement; `None` if the policy measures nothing.
fn scores(
    text: &Reading<'_>,
    given: &Given,
    settings: &Settings,
    probe_ids: &[u32],
    sets: &Sets,
) -> Option<Vec<Vec<f64>>> {
    let rows = match settings.policy.needs() {
        Measurement::ProbeRow | Measurement::ProbeRowAndSums => text.aside(probe_ids).attention,
        Measurement::LastRow => given.attention.clone(),
        Measurement::Sums => text.sums(),
        Measurement::Window { queries }
        | Measurement::WindowAndKeys { queries }
        | Measurement::WindowAndValues { queries } => text.window(queries),
        Measurement::Recurrence => text.recurrence(),
        Measurement::Expected { queries } => text.expected(queries, 512),
        _ => return None,
    };
    let mean = |set: usize| {
        let (layer, head) = sets.place(set);
        let of_layer = |l: usize| {
            let group = rows[l].len() / sets.kv_heads;
            (0..rows[l].len()).filter(move |row| head.is_none_or(|head| row / group == head)).map(move |row| (l, row))
        };
        let counted: Vec<&Vec<f64>> = (0..sets.layers)
            .filter(|l| layer.is_none_or(|layer| layer == *l))
            .flat_map(of_layer)
            .map(|(l, row)| &rows[l][row])
            .collect();
        let slots = text.seen(layer.unwrap_or(0), head.unwrap_or(0)).len();
        (0..slots).map(|slot| counted.iter().map(|row| row[slot]).sum::<f64>() / counted.len() as f64).collect()
    };
    Some((0..sets.count()).map(mean).collect())
}

/// The importance of each step: its mean score in every set that holds tokens of it, averaged over these sets.
fn importances(text: &Reading<'_>, trace: &Trace, probe: &Probe, sets: &Sets, scores: &[Vec<f64>]) -> Vec<Option<f64>> {
    let thoughts: Vec<usize> = (0..probe.at_token).filter(|t| trace.tokens[*t].role == Role::Thinking).collect();
    let mut first = 0;
    let of = |step: &Step| {
        let tokens: Vec<usize> =
            thoughts[first..first + step.tokens].iter().map(|t| trace.prompt_ids.len() + t).collect();
        first += step.tokens;
        let of_set = |set: usize| {
            let (layer, head) = sets.place(set);
            let seen = text.seen(layer.unwrap_or(0), head.unwrap_or(0)).iter();
            let its: Vec<f64> = seen.zip(&scores[set]).filter(|(p, _)| tokens.contains(p)).map(|(_, s)| *s).collect();
            (!its.is_empty()).then(|| its.iter().sum::<f64>() / its.len() as f64)
        };
        let means: Vec<f64> = (0..sets.count()).filter_map(of_set).collect();
        (!means.is_empty()).then(|| means.iter().sum::<f64>() / means.len() as f64)
    };
    let found: Vec<Option<f64>> = probe.steps.iter().map(of).collect();
    assert_eq!(first, thoughts.len(), "steps partition the thinking");
    found
}
