//! The report: one self-contained page made from traces.
//!
//! The page needs no network and no fonts: style and script are in it, and a policy in its head forbids it to load anything.
//! What a model wrote stands in it as JSON in which `<` is escaped, and reaches the document through `textContent` only; control
//! characters and those that steer the direction of text are spelled out ([`spelled_out`]), so that a hostile trace can neither
//! run nor disguise itself.
//!
//! Attention maps stand in the page as bytes: the logarithm of each weight over [`DECADES`] powers of ten below the map's
//! largest, which is what its colours show. The trace has the numbers.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use super::sparsity::Lorenz;
use crate::policy::{Budget, Role};
use crate::trace::{AttentionMap, Probe, StopReason, Trace};
use crate::{Error, ErrorKind, Result};

/// Powers of ten that a map's colours span.
pub const DECADES: f64 = 4.0;

/// Bytes of per-head maps that one trace may put into a page; beyond it, maps are left out evenly.
const HEADS_BYTES: usize = 24 << 20;

/// A page with the traces side by side, each with a name to tell it by.
///
/// # Errors
/// [`ErrorKind::Input`] for no trace, for more than two, and for one that [contradicts itself](Trace::check).
pub fn page(traces: &[(String, Trace)]) -> Result<String> {
    page_within(traces, HEADS_BYTES)
}

fn page_within(traces: &[(String, Trace)], heads_bytes: usize) -> Result<String> {
    if !(1..=2).contains(&traces.len()) {
        return Err(Error::new(ErrorKind::Input, "a report shows one trace or two").found(traces.len()));
    }
    traces.iter().try_for_each(|(_, trace)| trace.check())?;
    let views: Vec<View> = traces.iter().map(|(name, trace)| View::of(name, trace, heads_bytes)).collect();
    let failed = |e| Error::new(ErrorKind::Internal, "the report's data has no JSON form").found(e);
    let data = serde_json::to_string(&views).map_err(failed)?.replace('<', "\\u003c");
    let title = traces.iter().map(|(name, _)| escaped(&spelled_out(name))).collect::<Vec<_>>().join(" and ");
    let parts = [
        ("TITLE", title.as_str()),
        ("STYLE", include_str!("report.css")),
        ("DATA", &data),
        ("SCRIPT", include_str!("report.js")),
    ];
    // One pass over the template: what is put in is not searched for marks.
    let mut page = String::with_capacity(data.len() + 65_536);
    for piece in include_str!("report.html").split_inclusive("@@") {
        match parts.iter().find(|(mark, _)| piece.strip_suffix("@@") == Some(mark)) {
            Some((_, text)) => page += text,
            None => page += piece.strip_suffix("@@").unwrap_or(piece),
        }
    }
    Ok(page)
}

/// A trace as the page's script wants it.
#[derive(Serialize)]
struct View<'a> {
    name: String,
    model: String,
    device: String,
    secateur: String,
    policy: String,
    budget: String,
    window: usize,
    probe_every: usize,
    probe_text: String,
    /// Scope, layers, normalisation, positions.
    settings: [String; 4],
    stop: String,
    totals: &'a crate::trace::Totals,
    prompt: Option<String>,
    slot_bytes: Option<u64>,
    /// Of each step, runs of tokens with one fate: text, tokens, and the probe that evicted them (-1: none).
    steps: Vec<Vec<(String, usize, i32)>>,
    answer: String,
    probes: Vec<ProbeView>,
}

#[derive(Serialize)]
struct ProbeView {
    at: usize,
    thinking: usize,
    before: usize,
    after: usize,
    evicted: usize,
    /// Thinking tokens that the budget allows, where it counts tokens.
    target: Option<usize>,
    infeasible: Option<(usize, usize)>,
    us: [u64; 3],
    /// In use and reserved, before and after.
    bytes: [u64; 4],
    /// Steps that were known.
    known: usize,
    /// Of each step with cached tokens: index, importance, cached tokens, evicted tokens.
    steps: Vec<(usize, Option<f32>, usize, usize)>,
    map: Option<MapView>,
    /// In scopes with several kept sets: of each layer, the share of each step known so far that it still holds after this probe,
    /// over its KV heads; rows of bytes in base64, 255 for all. Else empty.
    kept: String,
}

#[derive(Serialize)]
struct MapView {
    /// Indices of the steps that are columns.
    columns: Vec<usize>,
    layers: Grid,
    /// One for each layer; empty where heads were not recorded, or left out of the page.
    heads: Vec<Grid>,
    heads_left_out: bool,
}

#[derive(Serialize)]
struct Grid {
    largest: f32,
    /// Rows of bytes, in base64.
    cells: String,
    /// Of each row: Gini coefficient, share of the attention that the top tenth of tokens hold.
    spread: Vec<Option<(f32, f32)>>,
}

impl<'a> View<'a> {
    fn of(name: &str, trace: &'a Trace, heads_bytes: usize) -> Self {
        let mut evicted_by = vec![-1; trace.tokens.len()];
        for (index, probe) in trace.probes.iter().enumerate() {
            for &position in &probe.evicted {
                evicted_by[position as usize - trace.prompt_ids.len()] = index as i32;
            }
        }
        let thoughts: Vec<usize> =
            (0..trace.tokens.len()).filter(|&i| trace.tokens[i].role == Role::Thinking).collect();
        let (mut ids, mut steps) = (Vec::new(), Vec::new());
        for step in thoughts.chunk_by(|&a, &b| trace.tokens[a].step == trace.tokens[b].step) {
            ids.push(trace.tokens[step[0]].step.unwrap_or(0));
            let runs = step.chunk_by(|&a, &b| evicted_by[a] == evicted_by[b]);
            let run = |run: &[usize]| {
                let text: String = run.iter().map(|&i| trace.tokens[i].text.as_str()).collect();
                (spelled_out(&text), run.len(), evicted_by[run[0]])
            };
            steps.push(runs.map(run).collect());
        }
        let answer: String = trace.tokens.iter().filter(|t| t.role == Role::Answer).map(|t| t.text.as_str()).collect();
        let budget = Some(trace.settings.budget);
        let with_heads =
            trace.probes.iter().filter(|p| p.attention.as_ref().is_some_and(|m| m.heads.is_some())).count();
        let bytes_of = |p: &Probe| p.attention.as_ref().and_then(|m| m.heads.as_ref()).map_or(0, |h| cells(h)) * 4 / 3;
        let bytes: usize = trace.probes.iter().map(bytes_of).sum();
        // Every so-manieth, and always the last.
        let every = bytes.div_ceil(heads_bytes).max(1);
        let mut nth = with_heads;
        let mut sets = Held::new(trace, &ids);
        let mut probe = |probe: &Probe| {
            let has_heads = probe.attention.as_ref().is_some_and(|m| m.heads.is_some());
            nth -= usize::from(has_heads);
            let kept = sets.after(probe);
            ProbeView { kept, ..ProbeView::of(probe, &ids, budget, has_heads && nth % every == 0) }
        };
        Self {
            name: spelled_out(name),
            model: spelled_out(&trace.model),
            device: spelled_out(&trace.device),
            secateur: spelled_out(&trace.secateur),
            policy: spelled_out(trace.settings.policy.name()),
            budget: trace.settings.budget.to_string(),
            window: trace.settings.window,
            probe_every: trace.settings.probe_every,
            probe_text: spelled_out(&trace.settings.probe_text),
            settings: [
                trace.settings.scope.to_string(),
                trace.settings.layers.to_string(),
                trace.settings.normalise.to_string(),
                trace.settings.positions.to_string(),
            ],
            stop: stop(&trace.stop_reason),
            totals: &trace.totals,
            prompt: trace.prompt_text.as_deref().map(spelled_out),
            slot_bytes: trace.slot_bytes,
            answer: spelled_out(&answer),
            probes: trace.probes.iter().map(&mut probe).collect(),
            steps,
        }
    }
}

fn cells(heads: &[Vec<Vec<Option<f32>>>]) -> usize {
    heads.iter().flatten().map(Vec::len).sum()
}

/// The step of the final text that a step of a probe is: the last that begins no later.
fn index_of(id: usize, ids: &[usize]) -> usize {
    ids.partition_point(|&start| start <= id).saturating_sub(1)
}

impl ProbeView {
    fn of(probe: &Probe, ids: &[usize], budget: Option<Budget>, with_heads: bool) -> Self {
        let cached = probe.steps.iter().filter(|s| s.cached > 0);
        Self {
            at: probe.at_token,
            thinking: probe.thinking_tokens,
            before: probe.cached_before,
            after: probe.cached_after,
            evicted: probe.evicted.len(),
            target: budget.and_then(|b| b.token_target(probe.thinking_tokens)),
            infeasible: probe.infeasible.as_ref().map(|i| (i.asked, i.kept)),
            us: [probe.timings.probe_us, probe.timings.plan_us, probe.timings.gather_us],
            bytes: [
                probe.bytes_before.in_use,
                probe.bytes_before.reserved,
                probe.bytes_after.in_use,
                probe.bytes_after.reserved,
            ],
            known: probe.steps.len(),
            steps: cached.map(|s| (index_of(s.id, ids), s.importance, s.cached, s.evicted)).collect(),
            map: probe.attention.as_ref().map(|map| MapView::of(map, probe, ids, with_heads)),
            kept: String::new(),
        }
    }
}

/// What the kept sets still hold, followed from probe to probe.
struct Held<'a> {
    trace: &'a Trace,
    ids: &'a [usize],
    /// By layer and KV head: of each step, the tokens that went.
    gone: std::collections::BTreeMap<(usize, usize), Vec<usize>>,
}

impl<'a> Held<'a> {
    fn new(trace: &'a Trace, ids: &'a [usize]) -> Self {
        let sets = trace.probes.iter().flat_map(|p| &p.sets);
        let gone = sets.map(|s| ((s.layer, s.kv_head.unwrap_or(0)), vec![0; ids.len()])).collect();
        Self { trace, ids, gone }
    }

    /// A row for each layer, a byte for each step that the probe knows.
    fn after(&mut self, probe: &Probe) -> String {
        for set in &probe.sets {
            let gone = self.gone.get_mut(&(set.layer, set.kv_head.unwrap_or(0))).expect("it is in the trace");
            for position in &set.evicted {
                let token = &self.trace.tokens[*position as usize - self.trace.prompt_ids.len()];
                if let Some(step) = token.step {
                    gone[index_of(step, self.ids)] += 1;
                }
            }
        }
        if self.ids.is_empty() {
            return String::new();
        }
        let mut cells = Vec::new();
        let sets: Vec<_> = self.gone.iter().collect();
        for layer in sets.chunk_by(|a, b| a.0.0 == b.0.0) {
            for step in &probe.steps {
                let at = index_of(step.id, self.ids);
                let held: usize = layer.iter().map(|(_, gone)| step.tokens.saturating_sub(gone[at])).sum();
                cells.push((255 * held / (step.tokens * layer.len()).max(1)) as u8);
            }
        }
        BASE64.encode(&cells)
    }
}

impl MapView {
    fn of(map: &AttentionMap, probe: &Probe, ids: &[usize], with_heads: bool) -> Self {
        let tokens = |id: &usize| probe.steps.binary_search_by_key(id, |s| s.id).map_or(0, |at| probe.steps[at].cached);
        let tokens: Vec<usize> = map.steps.iter().map(tokens).collect();
        Self {
            columns: map.steps.iter().map(|&id| index_of(id, ids)).collect(),
            layers: Grid::of(&map.layers, &tokens),
            heads: match &map.heads {
                Some(heads) if with_heads => heads.iter().map(|layer| Grid::of(layer, &tokens)).collect(),
                _ => Vec::new(),
            },
            heads_left_out: map.heads.is_some() && !with_heads,
        }
    }
}

impl Grid {
    fn of(rows: &[Vec<Option<f32>>], tokens: &[usize]) -> Self {
        let known = rows.iter().flatten().copied().flatten();
        let largest = known.filter(|v| v.is_finite()).fold(0f32, f32::max);
        let cells: Vec<u8> = rows.iter().flatten().map(|&value| shade(value.unwrap_or(0.0), largest)).collect();
        let spread = |row: &Vec<Option<f32>>| {
            let held = row.iter().zip(tokens).filter_map(|(value, tokens)| Some(((*value)?, *tokens)));
            let lorenz = Lorenz::new(held)?;
            let rounded = |v: f64| (v * 1000.0).round() as f32 / 1000.0;
            Some((rounded(lorenz.gini()), rounded(lorenz.top(0.1))))
        };
        Self { largest, cells: BASE64.encode(&cells), spread: rows.iter().map(spread).collect() }
    }
}

/// 255 for the largest, 1 for what is [`DECADES`] powers of ten below it, 0 for less.
fn shade(value: f32, largest: f32) -> u8 {
    let down = -(f64::from(value) / f64::from(largest)).log10();
    if down.is_nan() || down > DECADES { 0 } else { (255.0 - 254.0 * (down / DECADES).max(0.0)).round() as u8 }
}

fn stop(reason: &StopReason) -> String {
    match reason {
        StopReason::Eos => "the model ended its answer".into(),
        StopReason::MaxNewTokens => "the limit on new tokens".into(),
        StopReason::ContextFull => "the context is full".into(),
        StopReason::Cancelled => "interrupted".into(),
        StopReason::Failed(what) => spelled_out(&format!("failed: {what}")),
    }
}

/// Text in which nothing hides: control characters but newline and tab, those that steer the direction of text, and those that
/// cannot be seen, as `[U+202E]`.
pub fn spelled_out(text: &str) -> String {
    let hides = |c: char| match c {
        '\n' | '\t' => false,
        // Soft hyphen, Arabic letter mark, zero width and directional marks, embeddings, word joiner and isolates, BOM,
        // interlinear annotations, tags. U+200C and U+200D shape scripts and emoji.
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

fn escaped(text: &str) -> String {
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
        assert_eq!(v[0]["steps"], serde_json::json!([[["So 1. ", 3, 0]], [["Wait, 2.", 2, -1]]]));
        let probe = &v[0]["probes"][0];
        assert_eq!((probe["target"].as_u64(), probe["evicted"].as_u64()), (Some(2), Some(3)));
        assert_eq!(probe["map"]["columns"], serde_json::json!([0, 1]));
        // 0.13 is the largest: 255; 0.03 is 0.637 of four decades below it.
        let cells = [0.032f64, 0.13, 0.03, 0.12].map(|v| (255.0 - 254.0 * ((0.13f64 / v).log10() / 4.0)).round() as u8);
        assert_eq!(probe["map"]["layers"]["cells"], BASE64.encode(&cells));
        assert_eq!(v[0]["answer"], "2");
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
        trace.settings.policy = hostile.into();
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
        assert_eq!(v[0]["steps"][0][0][0], format!("{shown} 1. "));
        assert_eq!(v[0]["name"], shown);
    }

    #[test]
    fn one_or_two_traces_that_hold_together() {
        let of = |n: usize| page(&vec![("x".to_string(), documented()); n]);
        assert!(of(0).is_err() && of(1).is_ok() && of(2).is_ok() && of(3).is_err());
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
        assert_eq!(v[0]["probes"][0]["kept"], BASE64.encode(&[85, 255, 255, 255]));
        assert_eq!(v[0]["probes"][1]["kept"], BASE64.encode(&[0, 255, 255, 191]));
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
