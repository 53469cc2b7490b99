//! The report: one self-contained page made from traces.
//!
//! The page needs no network and no fonts: style and script are in it, and a policy in its head forbids it to load
//! anything. The text of a model is embedded as JSON in which `<` is escaped, and reaches the document only through
//! `textContent`. Control characters and characters that steer the direction of text are spelled out
//! ([`spelled_out`]), so that a hostile trace can neither run nor disguise itself.
//!
//! Attention maps are stored as bytes: the logarithm of each weight over [`DECADES`] powers of ten below the largest
//! weight of the map, which is what the colours show. The trace has the numbers.
//!
//! The page's data is a list of `TraceView`. `js/helpers.js` declares the same types, field by field.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use super::sparsity::Lorenz;
use crate::policy::{Budget, Role};
use crate::settings::Settings;
use crate::trace::{AttentionMap, DeviceBytes, Infeasible, Probe, StopReason, Timings, Totals, Trace};
use crate::{Error, ErrorKind, Result};

/// Powers of ten that the colours of a map span.
pub const DECADES: f64 = 4.0;

/// Most bytes of per-head maps that one trace may put into a page. Beyond it, the maps of some probes are left out.
const HEADS_BYTES: usize = 24 << 20;

/// The modules of the page's script, each after those that it imports from. The page of the browser draws with the
/// first three too.
const MODULES: [&str; 7] = [
    include_str!("../../web/draw/draw.js"),
    include_str!("../../web/draw/chart.js"),
    include_str!("../../web/draw/grid.js"),
    include_str!("js/helpers.js"),
    include_str!("js/figures.js"),
    include_str!("js/reasoning.js"),
    include_str!("js/page.js"),
];

const STYLE: &str = concat!(include_str!("../../web/draw/figures.css"), include_str!("report.css"));

/// A page with the traces side by side, each under its name.
///
/// # Errors
/// [`ErrorKind::Input`] for no trace, for more than two, and for one that [contradicts itself](Trace::check).
pub fn page(traces: &[(String, Trace)]) -> Result<String> {
    page_within(traces, HEADS_BYTES)
}

fn page_within(traces: &[(String, Trace)], heads_bytes: usize) -> Result<String> {
    if !(1..=2).contains(&traces.len()) {
        return Err(Error::new(ErrorKind::Input, "a report shows one trace or two")
            .expected("1 or 2 traces")
            .found(traces.len()));
    }
    traces.iter().try_for_each(|(_, trace)| trace.check())?;
    let views: Vec<TraceView<'_>> =
        traces.iter().map(|(name, trace)| TraceView::new(name, trace, heads_bytes)).collect();
    let no_json = |e| Error::new(ErrorKind::Internal, "the report's data has no JSON form").found(e);
    let data = serde_json::to_string(&views).map_err(no_json)?.replace('<', "\\u003c");
    let title = traces.iter().map(|(name, _)| escaped(&spelled_out(name))).collect::<Vec<_>>().join(" and ");
    let script = script();
    let parts = [("TITLE", title.as_str()), ("STYLE", STYLE), ("DATA", &data), ("SCRIPT", &script)];
    // One pass over the template, so that inserted text is not searched for marks.
    let mut page = String::with_capacity(data.len() + 65_536);
    for piece in include_str!("report.html").split_inclusive("@@") {
        match parts.iter().find(|(mark, _)| piece.strip_suffix("@@") == Some(mark)) {
            Some((_, text)) => page += text,
            None => page += piece.strip_suffix("@@").unwrap_or(piece),
        }
    }
    Ok(page)
}

/// The modules as one classic script in strict mode.
///
/// The files are ES modules, so that editors and type checkers follow their imports. The page cannot import them: its
/// policy forbids it to load anything, and to allow module URLs would weaken that policy. So the modules share one
/// scope here, without their `import` lines and without the word `export`. A test holds them to that form.
fn script() -> String {
    let mut script = String::from("'use strict';\n");
    for line in MODULES.into_iter().flat_map(str::lines).filter(|line| !line.starts_with("import ")) {
        script += line.strip_prefix("export ").unwrap_or(line);
        script.push('\n');
    }
    script
}

/// The attention map of a probe alone, in the form that the report's script draws: a `MapView`. Its columns are
/// indices into the steps of the probe. `None` if the run did not record attention.
pub fn map(probe: &Probe) -> Option<serde_json::Value> {
    let ids: Vec<usize> = probe.steps.iter().map(|step| step.id).collect();
    serde_json::to_value(MapView::new(probe.attention.as_ref()?, probe, &ids, false)).ok()
}

/// A trace in the form that the page's script reads.
#[derive(Serialize)]
struct TraceView<'a> {
    name: String,
    model: String,
    device: String,
    /// Version of secateur that wrote the trace.
    secateur: String,
    settings: SettingsView,
    stop: String,
    totals: &'a Totals,
    prompt: Option<String>,
    slot_bytes: Option<u64>,
    steps: Vec<StepView>,
    step_note: Option<String>,
    sampling_note: Option<String>,
    answer: String,
    probes: Vec<ProbeView<'a>>,
}

/// The settings as text.
#[derive(Serialize)]
struct SettingsView {
    policy: String,
    budget: String,
    window: usize,
    probe_every: usize,
    probe_text: String,
    scope: String,
    layers: String,
    normalise: String,
    positions: String,
    steps: String,
    /// The names of the settings that differ from the default.
    changed: Vec<String>,
}

/// The tokens of a step, cut where their fate changes.
#[derive(Serialize)]
struct StepView {
    runs: Vec<RunView>,
}

#[derive(Serialize)]
struct RunView {
    text: String,
    tokens: usize,
    /// Index of the probe that evicted these tokens.
    evicted_by: Option<usize>,
}

#[derive(Serialize)]
struct ProbeView<'a> {
    at_token: usize,
    thinking_tokens: usize,
    cached_before: usize,
    cached_after: usize,
    /// How many tokens the probe evicted.
    evicted: usize,
    /// Thinking tokens that the budget allows, if the budget counts tokens.
    target: Option<usize>,
    infeasible: &'a Option<Infeasible>,
    timings: Timings,
    bytes_before: DeviceBytes,
    bytes_after: DeviceBytes,
    /// Number of steps of the text so far.
    known_steps: usize,
    /// The steps that had cached tokens.
    steps: Vec<ProbedStep>,
    map: Option<MapView>,
    /// In scopes with several kept sets: how much of each known step each layer still holds after this probe, over
    /// its KV heads. Rows of bytes in base64, 255 for all. Otherwise empty.
    kept: String,
}

#[derive(Serialize)]
struct ProbedStep {
    /// Index into [`TraceView::steps`].
    index: usize,
    importance: Option<f32>,
    cached: usize,
    evicted: usize,
}

#[derive(Serialize)]
struct MapView {
    /// Indices of the steps that are columns.
    columns: Vec<usize>,
    layers: Grid,
    /// A grid for each layer; empty where heads were not recorded, or left out of the page.
    heads: Vec<Grid>,
    heads_left_out: bool,
}

#[derive(Serialize)]
struct Grid {
    largest: f32,
    /// Rows of bytes, in base64.
    cells: String,
    /// One for each row; `None` where the row has no attention.
    spread: Vec<Option<Spread>>,
}

/// How unevenly a row's attention is spread over the tokens.
#[derive(Serialize)]
struct Spread {
    gini: f32,
    /// Share of the attention that the top tenth of tokens hold.
    top_tenth: f32,
}

impl<'a> TraceView<'a> {
    fn new(name: &str, trace: &'a Trace, heads_bytes: usize) -> Self {
        let (step_ids, steps) = steps(trace);
        let has_heads = |probe: &Probe| probe.attention.as_ref().is_some_and(|map| map.heads.is_some());
        let heads_of = |p: &Probe| p.attention.as_ref().and_then(|m| m.heads.as_ref()).map_or(0, |h| cells(h)) * 4 / 3;
        let bytes: usize = trace.probes.iter().map(heads_of).sum();
        // The heads of every n-th probe are shown. The probes are counted from the last one, which is always shown.
        let every = bytes.div_ceil(heads_bytes).max(1);
        let mut probes_with_heads_left = trace.probes.iter().filter(|p| has_heads(p)).count();
        let mut sets = KeptSets::new(trace, &step_ids);
        let budget = trace.settings.budget;
        let mut probes = Vec::with_capacity(trace.probes.len());
        for probe in &trace.probes {
            probes_with_heads_left -= usize::from(has_heads(probe));
            let with_heads = has_heads(probe) && probes_with_heads_left % every == 0;
            let kept = sets.after(probe);
            probes.push(ProbeView { kept, ..ProbeView::new(probe, &step_ids, budget, with_heads) });
        }
        Self {
            name: spelled_out(name),
            model: spelled_out(&trace.model),
            device: spelled_out(&trace.device),
            secateur: spelled_out(&trace.secateur),
            settings: SettingsView::new(trace),
            stop: stop(&trace.stop_reason),
            totals: &trace.totals,
            prompt: trace.prompt_text.as_deref().map(spelled_out),
            slot_bytes: trace.slot_bytes,
            steps,
            step_note: trace.step_note(),
            sampling_note: trace.totals.sampling_note(),
            answer: spelled_out(&trace.answer()),
            probes,
        }
    }
}

impl SettingsView {
    fn new(trace: &Trace) -> Self {
        let settings = &trace.settings;
        let [own, default] = [settings, &Settings::default()].map(|s| serde_json::to_value(s).unwrap_or_default());
        let fields = own.as_object().into_iter().flatten();
        Self {
            policy: spelled_out(settings.policy.name()),
            budget: settings.budget.to_string(),
            window: settings.window,
            probe_every: settings.probe_every,
            probe_text: spelled_out(&settings.probe_text),
            scope: settings.scope.to_string(),
            layers: settings.layers.to_string(),
            normalise: settings.normalise.to_string(),
            positions: settings.positions.to_string(),
            steps: settings.steps.to_string(),
            changed: fields.filter(|(name, value)| default[*name] != **value).map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// The steps of the final text: their ids and their tokens.
fn steps(trace: &Trace) -> (Vec<usize>, Vec<StepView>) {
    let mut evicted_by = vec![None; trace.tokens.len()];
    for (index, probe) in trace.probes.iter().enumerate() {
        for &position in &probe.evicted {
            evicted_by[position as usize - trace.prompt_ids.len()] = Some(index);
        }
    }
    let is_thinking = |&token: &usize| trace.tokens[token].role == Role::Thinking;
    let thoughts: Vec<usize> = (0..trace.tokens.len()).filter(is_thinking).collect();
    let (mut ids, mut steps) = (Vec::new(), Vec::new());
    for step in thoughts.chunk_by(|&a, &b| trace.tokens[a].step == trace.tokens[b].step) {
        ids.push(trace.tokens[step[0]].step.unwrap_or(0));
        let run = |run: &[usize]| {
            let text: String = run.iter().map(|&token| trace.tokens[token].text.as_str()).collect();
            RunView { text: spelled_out(&text), tokens: run.len(), evicted_by: evicted_by[run[0]] }
        };
        let runs = step.chunk_by(|&a, &b| evicted_by[a] == evicted_by[b]).map(run).collect();
        steps.push(StepView { runs });
    }
    (ids, steps)
}

/// The number of cells in the maps of all heads of a probe.
fn cells(heads: &[Vec<Vec<Option<f32>>>]) -> usize {
    heads.iter().flatten().map(Vec::len).sum()
}

/// The index of the step of the final text in which a step of a probe lies: the last that begins no later.
fn index_of(id: usize, ids: &[usize]) -> usize {
    ids.partition_point(|&start| start <= id).saturating_sub(1)
}

impl<'a> ProbeView<'a> {
    fn new(probe: &'a Probe, step_ids: &[usize], budget: Budget, with_heads: bool) -> Self {
        let step = |s: &crate::trace::Step| ProbedStep {
            index: index_of(s.id, step_ids),
            importance: s.importance,
            cached: s.cached,
            evicted: s.evicted,
        };
        Self {
            at_token: probe.at_token,
            thinking_tokens: probe.thinking_tokens,
            cached_before: probe.cached_before,
            cached_after: probe.cached_after,
            evicted: probe.evicted.len(),
            target: budget.token_target(probe.thinking_tokens),
            infeasible: &probe.infeasible,
            timings: probe.timings,
            bytes_before: probe.bytes_before,
            bytes_after: probe.bytes_after,
            known_steps: probe.steps.len(),
            steps: probe.steps.iter().filter(|s| s.cached > 0).map(step).collect(),
            map: probe.attention.as_ref().map(|map| MapView::new(map, probe, step_ids, with_heads)),
            kept: String::new(),
        }
    }
}

/// The tokens that the kept sets still hold, followed from probe to probe.
struct KeptSets<'a> {
    trace: &'a Trace,
    step_ids: &'a [usize],
    /// For each layer and KV head, how many tokens of each step were evicted.
    evicted: std::collections::BTreeMap<(usize, usize), Vec<usize>>,
}

impl<'a> KeptSets<'a> {
    fn new(trace: &'a Trace, step_ids: &'a [usize]) -> Self {
        let sets = trace.probes.iter().flat_map(|p| &p.sets);
        let evicted = sets.map(|s| ((s.layer, s.kv_head.unwrap_or(0)), vec![0; step_ids.len()])).collect();
        Self { trace, step_ids, evicted }
    }

    /// The field [`ProbeView::kept`] of this probe. Must be called for each probe, in order.
    fn after(&mut self, probe: &Probe) -> String {
        for set in &probe.sets {
            let evicted = self.evicted.entry((set.layer, set.kv_head.unwrap_or(0))).or_default();
            evicted.resize(self.step_ids.len(), 0);
            for position in &set.evicted {
                let token = &self.trace.tokens[*position as usize - self.trace.prompt_ids.len()];
                if let Some(step) = token.step {
                    evicted[index_of(step, self.step_ids)] += 1;
                }
            }
        }
        if self.step_ids.is_empty() {
            return String::new();
        }
        let mut cells = Vec::new();
        let sets: Vec<_> = self.evicted.iter().collect();
        for layer in sets.chunk_by(|a, b| a.0.0 == b.0.0) {
            for step in &probe.steps {
                let index = index_of(step.id, self.step_ids);
                let held: usize = layer.iter().map(|(_, evicted)| step.tokens.saturating_sub(evicted[index])).sum();
                cells.push((255 * held / (step.tokens * layer.len()).max(1)) as u8);
            }
        }
        BASE64.encode(&cells)
    }
}

impl MapView {
    fn new(map: &AttentionMap, probe: &Probe, step_ids: &[usize], with_heads: bool) -> Self {
        let cached = |id: &usize| probe.steps.binary_search_by_key(id, |s| s.id).map_or(0, |at| probe.steps[at].cached);
        let cached: Vec<usize> = map.steps.iter().map(cached).collect();
        Self {
            columns: map.steps.iter().map(|&id| index_of(id, step_ids)).collect(),
            layers: Grid::new(&map.layers, &cached),
            heads: match &map.heads {
                Some(heads) if with_heads => heads.iter().map(|layer| Grid::new(layer, &cached)).collect(),
                _ => Vec::new(),
            },
            heads_left_out: map.heads.is_some() && !with_heads,
        }
    }
}

impl Grid {
    /// Makes a grid of rows. `cached` has the cached tokens of each column.
    fn new(rows: &[Vec<Option<f32>>], cached: &[usize]) -> Self {
        let known = rows.iter().flatten().copied().flatten();
        let largest = known.filter(|v| v.is_finite()).fold(0f32, f32::max);
        let cells: Vec<u8> = rows.iter().flatten().map(|&value| shade(value.unwrap_or(0.0), largest)).collect();
        let spread = |row: &Vec<Option<f32>>| {
            let held = row.iter().zip(cached).filter_map(|(value, tokens)| Some(((*value)?, *tokens)));
            let lorenz = Lorenz::new(held)?;
            let rounded = |v: f64| (v * 1000.0).round() as f32 / 1000.0;
            Some(Spread { gini: rounded(lorenz.gini()), top_tenth: rounded(lorenz.top(0.1)) })
        };
        Self { largest, cells: BASE64.encode(&cells), spread: rows.iter().map(spread).collect() }
    }
}

/// 255 for the largest weight, 1 for a weight [`DECADES`] powers of ten below it, 0 for less.
fn shade(value: f32, largest: f32) -> u8 {
    let down = -(f64::from(value) / f64::from(largest)).log10();
    if down.is_nan() || down > DECADES { 0 } else { (255.0 - 254.0 * (down / DECADES).max(0.0)).round() as u8 }
}

fn stop(reason: &StopReason) -> String {
    match reason {
        // This may have been within the thinking.
        StopReason::Eos => "the model ended its text".into(),
        StopReason::StopString => "a stop text ended the answer".into(),
        StopReason::StopToken => "a stop token ended the answer".into(),
        StopReason::FormatComplete => "the answer was complete in its format".into(),
        StopReason::MaxAnswerTokens => "the limit on tokens of the answer was reached".into(),
        StopReason::MaxNewTokens => "the limit on new tokens was reached".into(),
        StopReason::ContextFull => "the context is full".into(),
        StopReason::Cancelled => "the user interrupted it".into(),
        StopReason::Failed(what) => spelled_out(&format!("failed: {what}")),
    }
}

/// Text in which no character is hidden: control characters except newline and tab, characters that steer the
/// direction of text, and invisible characters are written as `[U+202E]`.
pub fn spelled_out(text: &str) -> String {
    let hides = |c: char| match c {
        '\n' | '\t' => false,
        // Soft hyphen, Arabic letter mark, zero width and directional marks, embeddings, word joiner and isolates,
        // BOM, interlinear annotations, tags. U+200C and U+200D shape scripts and emoji.
        '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' => true,
        '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => true,
        c => c.is_control(),
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hides(c) { shown += &format!("[U+{:04X}]", c as u32) } else { shown.push(c) }
    }
    shown
}

/// Text escaped for HTML, between tags and in attributes with double quotes.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documented() -> Trace {
        let page = include_str!("../../docs/trace.md");
        let json = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        Trace::from_json(json.expect("docs/trace.md has an example")).expect("and it is a trace")
    }

    fn data(page: &str) -> serde_json::Value {
        let start = page.find("type=\"application/json\">").expect("data") + "type=\"application/json\">".len();
        let end = page[start..].find("</script>").expect("an end");
        serde_json::from_str(&page[start..start + end]).expect("JSON")
    }

    #[test]
    fn the_documented_example_becomes_a_page() {
        let page = page(&[("example.json".into(), documented())]).unwrap();
        assert!(!page.contains("@@"), "every mark is replaced");
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            let found = page.matches(outside).count()
                - page.matches("http://www.w3.org/2000/svg").count() * usize::from(outside == "http://");
            assert_eq!(found, 0, "{outside}");
        }
        let v = data(&page);
        assert_eq!(
            v[0]["steps"],
            serde_json::json!([
                {"runs": [{"text": "So 1. ", "tokens": 3, "evicted_by": 0}]},
                {"runs": [{"text": "Wait, 2.", "tokens": 2, "evicted_by": null}]},
            ])
        );
        let probe = &v[0]["probes"][0];
        assert_eq!((probe["target"].as_u64(), probe["evicted"].as_u64()), (Some(2), Some(3)));
        assert_eq!(probe["map"]["columns"], serde_json::json!([0, 1]));
        // 0.13 is the largest: 255; 0.03 is 0.637 of four decades below it.
        let cells = [0.032f64, 0.13, 0.03, 0.12].map(|v| (255.0 - 254.0 * ((0.13f64 / v).log10() / 4.0)).round() as u8);
        assert_eq!(probe["map"]["layers"]["cells"], BASE64.encode(cells));
        assert_eq!(v[0]["answer"], "2");
    }

    #[test]
    fn the_map_of_a_probe_alone_is_that_of_the_page() {
        let trace = documented();
        let shown = data(&page(&[("x".into(), trace.clone())]).unwrap());
        let (alone, whole) = (map(&trace.probes[0]).unwrap(), &shown[0]["probes"][0]["map"]);
        assert_eq!((&alone["columns"], &alone["layers"]["cells"]), (&whole["columns"], &whole["layers"]["cells"]));
        let unrecorded = Probe { attention: None, ..trace.probes[0].clone() };
        assert_eq!(map(&unrecorded), None);
    }

    #[test]
    fn settings_that_differ_from_the_default_are_named() {
        let mut trace = documented();
        trace.settings = Settings::default();
        assert!(SettingsView::new(&trace).changed.is_empty());
        trace.settings.window += 1;
        trace.settings.scope = crate::policy::Scope::Layer;
        assert_eq!(SettingsView::new(&trace).changed, ["window", "scope"]);
    }

    #[test]
    fn the_answer_has_no_special_tokens() {
        let mut trace = documented();
        let token = |text: &str, special| crate::trace::Token {
            id: 0,
            text: text.into(),
            role: Role::Answer,
            special,
            step: None,
            forced: false,
        };
        let stop = trace.tokens.pop().unwrap();
        assert_eq!((stop.text.as_str(), stop.special), ("<|end|>", true));
        trace.tokens.extend([token("<|tool|>", true), token("!", false), stop]);
        assert_eq!(data(&page(&[("x".into(), trace.clone())]).unwrap())[0]["answer"], "2!");
        // Older traces do not say which tokens are special; the last token of a run that the model ended is.
        trace.tokens.iter_mut().for_each(|t| t.special = false);
        assert_eq!(data(&page(&[("x".into(), trace)]).unwrap())[0]["answer"], "2<|tool|>!");
        assert_eq!(data(&page(&[("x".into(), fixture())]).unwrap())[0]["answer"], " 2 is c. The answer is \\boxed{2}.");
    }

    fn fixture() -> Trace {
        Trace::from_json(include_str!("../../tests/fixtures/trace.json")).unwrap()
    }

    /// What [`script`] relies on: imports take one line each and come from an earlier module that exports the name;
    /// nothing is exported by default or in a list; no top-level name is declared in two modules.
    #[test]
    fn the_modules_can_share_one_scope() {
        let names = ["draw", "chart", "grid", "helpers", "figures", "reasoning", "page"];
        let mut declared = std::collections::BTreeMap::new();
        let mut exported = std::collections::BTreeSet::new();
        for (module, name) in MODULES.into_iter().zip(names) {
            let mut own_exports = Vec::new();
            for line in module.lines() {
                if let Some(import) = line.strip_prefix("import ") {
                    let (list, from) = import.split_once(" from ").expect("a named import on one line");
                    let from = from.trim_matches(['\'', ';']).rsplit('/').next().expect("a path");
                    let from = from.trim_end_matches(".js");
                    for item in list.trim_matches(['{', '}']).split(", ") {
                        assert!(exported.contains(&(from, item)), "{name}: {item} is not exported by {from} before it");
                        let uses = module.match_indices(item).count();
                        assert!(uses > 1, "{name} imports {item} without need");
                    }
                    continue;
                }
                let bare = line.strip_prefix("export ").unwrap_or(line);
                let words: Vec<&str> = bare.splitn(3, [' ', '(']).collect();
                if let ["const" | "let" | "function" | "class", item, ..] = words[..] {
                    let item = item.trim_end_matches(';');
                    if let Some(other) = declared.insert(item, name) {
                        panic!("{item} is declared in {other} and in {name}");
                    }
                    if bare != line {
                        own_exports.push((name, item));
                    }
                } else {
                    assert_eq!(bare, line, "{name}: an export of another form");
                }
                assert!(!line.contains("</script") && !line.contains("<!--"), "{name}: {line}");
            }
            exported.extend(own_exports);
        }
        let script = script();
        assert!(!script.lines().any(|line| line.starts_with("import ") || line.starts_with("export ")));
        assert!(script.contains("\nfunction cacheFigure(trace) {"));
    }

    #[test]
    fn probability_that_the_sampler_missed_is_on_the_page() {
        let mut trace = documented();
        let note = |trace: Trace| data(&page(&[("x".into(), trace)]).unwrap())[0]["sampling_note"].clone();
        assert_eq!(note(trace.clone()), serde_json::Value::Null);
        trace.totals.probability_missed = Some(0.678);
        assert!(note(trace).as_str().is_some_and(|said| said.starts_with("up to 67.8 % of the probability")));
        assert!(MODULES[6].contains("sentence(trace.sampling_note)"), "the script shows it");
    }

    /// The page's script reads the fields that the structs have: each property that a typedef of helpers.js names is
    /// a key of the data, and vice versa.
    #[test]
    fn the_types_of_the_script_are_those_of_the_data() {
        let mut trace = fixture();
        trace.probes[0].infeasible = Some(Infeasible { asked: 1, kept: 2 });
        let v = data(&page(&[("x".into(), trace)]).unwrap());
        let probe = &v[0]["probes"][0];
        for (name, value) in [
            ("TraceView", &v[0]),
            ("SettingsView", &v[0]["settings"]),
            ("StepView", &v[0]["steps"][0]),
            ("RunView", &v[0]["steps"][0]["runs"][0]),
            ("ProbeView", probe),
            ("DeviceBytes", &probe["bytes_after"]),
            ("ProbedStep", &probe["steps"][0]),
            ("MapView", &probe["map"]),
            ("Grid", &probe["map"]["layers"]),
            ("Spread", &probe["map"]["layers"]["spread"][0]),
        ] {
            let typedef = MODULES[3].split_once(&format!("@typedef {{object}} {name}\n")).expect(name).1;
            let properties = typedef.lines().map_while(|line| {
                let line = line.trim_start_matches(" *").trim();
                if line.starts_with("@typedef") || line == "/" { None } else { Some(line) }
            });
            let named = properties.filter_map(|line| line.strip_prefix("@property ")).map(|line| {
                let after_type = line.rsplit_once("} ").expect("a type in braces").1;
                after_type.split(' ').next().expect("a name").to_string()
            });
            let named: Vec<String> = named.collect();
            let keys: Vec<String> = value.as_object().expect(name).keys().cloned().collect();
            assert_eq!(named, keys, "{name}");
        }
    }

    #[test]
    fn hostile_text_stays_text() {
        let mut trace = documented();
        let hostile = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>\u{202e}evil\u{2066}\u{0}\u{1b}[2J@@DATA@@\u{e0041}";
        trace.tokens[0].text = hostile.into();
        trace.tokens[6].text = hostile.into();
        trace.prompt_text = Some(hostile.into());
        trace.model = hostile.into();
        trace.device = hostile.into();
        trace.settings.policy = serde_json::from_value(hostile.into()).unwrap();
        trace.settings.probe_text = hostile.into();
        trace.stop_reason = StopReason::Failed(hostile.into());
        let plain = page(&[("a".into(), documented())]).unwrap();
        let page = page(&[(hostile.into(), trace)]).unwrap();
        for tag in ["<script", "</script", "<!--", "<img"] {
            assert_eq!(page.matches(tag).count(), plain.matches(tag).count(), "{tag}");
        }
        assert!(!page.contains(['\u{202e}', '\u{2066}', '\0', '\u{1b}', '\u{e0041}']));
        let v = data(&page);
        let shown = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>[U+202E]evil[U+2066][U+0000][U+001B][2J@@DATA@@[U+E0041]";
        assert_eq!(v[0]["answer"], shown);
        assert_eq!(v[0]["steps"][0]["runs"][0]["text"], format!("{shown} 1. "));
        assert_eq!(v[0]["name"], shown);
    }

    #[test]
    fn one_or_two_traces_that_hold_together() {
        let page_of = |n: usize| page(&vec![("x".to_string(), documented()); n]);
        assert!(page_of(0).is_err() && page_of(1).is_ok() && page_of(2).is_ok() && page_of(3).is_err());
        let mut broken = documented();
        broken.probes[0].evicted = vec![99];
        assert!(page(&[("x".into(), broken)]).unwrap_err().to_string().contains("contradicts itself"));
    }

    #[test]
    fn shades_span_four_decades() {
        assert_eq!(
            [shade(0.5, 0.5), shade(0.0, 0.5), shade(5.01e-5, 0.5), shade(4.9e-5, 0.5), shade(0.0, 0.0)],
            [255, 0, 1, 0, 0]
        );
        assert_eq!(shade(f32::NAN, 0.5), 0);
        assert_eq!(shade(0.005, 0.5), 128);
    }

    #[test]
    fn what_each_layer_holds_is_followed_from_probe_to_probe() {
        use crate::trace::Set;
        let mut trace = documented();
        let set = |layer, kv_head, evicted: &[u32]| Set {
            layer,
            kv_head: Some(kv_head),
            cached_before: 7,
            evicted: evicted.into(),
        };
        let mut probe = trace.probes[0].clone();
        probe.evicted.clear();
        probe.sets = vec![set(0, 0, &[2, 3, 4]), set(0, 1, &[2]), set(1, 0, &[]), set(1, 1, &[])];
        let mut later = probe.clone();
        later.sets = vec![set(0, 1, &[3, 4]), set(1, 0, &[5])];
        trace.probes = vec![probe, later];
        let v = data(&page(&[("x".into(), trace)]).unwrap());
        // Steps of 3 and 2 tokens in two heads a layer: 2 of 6, all; later none, all; 3 of 4 in the other layer.
        assert_eq!(v[0]["probes"][0]["kept"], BASE64.encode([85, 255, 255, 255]));
        assert_eq!(v[0]["probes"][1]["kept"], BASE64.encode([0, 255, 255, 191]));
        assert_eq!(data(&page(&[("x".into(), documented())]).unwrap())[0]["probes"][0]["kept"], "");
    }

    #[test]
    fn heads_beyond_what_a_page_can_hold_are_left_out_evenly_and_said_so() {
        let mut trace = documented();
        let mut probe = trace.probes[0].clone();
        probe.evicted.clear();
        let map = probe.attention.as_mut().unwrap();
        // 8 cells a probe, some 10 characters: 12 probes are one and a half times what fits.
        map.heads = Some(vec![vec![vec![Some(0.1f32); 2]; 2]; 2]);
        trace.probes = vec![probe; 12];
        let v = data(&page_within(&[("x".into(), trace)], 80).unwrap());
        let left_out: Vec<bool> =
            v[0]["probes"].as_array().unwrap().iter().map(|p| p["map"]["heads_left_out"].as_bool().unwrap()).collect();
        assert_eq!(left_out, [true, false].repeat(6));
    }
}
