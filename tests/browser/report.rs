//! The report as a browser draws it: from a trace in tests/fixtures, from two, and from a hostile one.
use std::fs;
use std::path::Path;

use secateur::policy::{Role, Scope};
use secateur::report::html;
use secateur::trace::{Set, Trace};
use serde_json::{Value, json};

use super::{ROOT, Result, SOON, Site, clean, screenshot};
use crate::devtools::Browser;

/// A run of models/tiny-reasoner, made as tests/fixtures/README.md says.
fn fixture() -> Result<Trace> {
    let file = Path::new(ROOT).join("tests/fixtures/trace.json");
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    Trace::from_json(&text).map_err(|e| e.to_string())
}

/// A browser at the page of these traces; the folder holds the page.
fn open(site: &Site, traces: &[(String, Trace)]) -> Result<(Browser, tempfile::TempDir)> {
    let page = html::page(traces).map_err(|e| e.to_string())?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = folder.path().join("report.html");
    fs::write(&file, page).map_err(|e| e.to_string())?;
    let mut browser = Browser::launch(&site.chromium, false)?;
    browser.open(&format!("file://{}", file.display()))?;
    browser.wait("document.body.dataset.state === 'drawn'", "''", SOON)?;
    Ok((browser, folder))
}

fn number(browser: &mut Browser, script: &str) -> Result<u64> {
    let value = browser.eval(script)?;
    value.as_u64().ok_or_else(|| format!("`{script}` is {value}"))
}

pub fn a_report_shows_what_was_cut_and_why(site: &Site) -> Result {
    let trace = fixture()?;
    let probes = trace.probes.len();
    ensure!(probes >= 3 && trace.totals.evicted_tokens > 0, "the fixture shows nothing");
    let (mut browser, _folder) = open(site, &[("trace.json".into(), trace.clone())])?;
    browser.media("light", false)?;

    // What stands there, after every probe and before the first.
    let mut steps: Vec<_> = trace.tokens.iter().filter_map(|t| t.step).collect();
    steps.dedup();
    let found = number(&mut browser, "document.querySelectorAll('.step').length")?;
    ensure!(found == steps.len() as u64, "{found} steps of {}", steps.len());
    for k in (0..=probes).rev() {
        browser.eval(&format!("$('probe').value = {k}; $('probe').dispatchEvent(new Event('input'))"))?;
        let gone: Vec<usize> =
            trace.probes[..k].iter().flat_map(|p| &p.evicted).map(|p| *p as usize - trace.prompt_ids.len()).collect();
        let cut: String =
            (0..trace.tokens.len()).filter(|i| gone.contains(i)).map(|i| trace.tokens[i].text.as_str()).collect();
        let shown = browser.eval("[...document.querySelectorAll('.steps .cut')].map((s) => s.textContent).join('')")?;
        let bare = |text: &str| text.split_whitespace().collect::<String>();
        ensure!(bare(shown.as_str().unwrap_or("")) == bare(&cut), "after probe {k}: {shown}, not {cut:?}");
        let slots =
            if k == 0 { "everything is cached".into() } else { format!("{} of", trace.probes[k - 1].cached_after) };
        let status = browser.eval("document.querySelector('.reasoning [role=status]').textContent")?;
        ensure!(status.as_str().is_some_and(|s| s.contains(&slots)), "after probe {k}: {status}");
        ensure!(k > 0 || browser.eval("$('back').disabled")? == true, "one can go back before the beginning");
    }
    browser.eval("$('on').click()")?;
    let fresh = number(&mut browser, "document.querySelectorAll('.steps .cut.fresh').length")?;
    ensure!(
        fresh > 0 && fresh == number(&mut browser, "document.querySelectorAll('.steps .cut').length")?,
        "{fresh} fresh cuts"
    );
    browser.eval(&format!("show({probes})"))?;
    browser.eval("document.querySelector('.step:has(.cut) .say-it').click()")?;
    let why = browser.eval("document.querySelector('.why:not([hidden])').textContent")?;
    let why = why.as_str().unwrap_or("");
    ensure!(why.contains("cut") && why.contains("importance") && why.contains("budget was"), "the reason: {why}");
    let rows = number(&mut browser, "document.querySelectorAll('tbody tr').length")?;
    ensure!(rows == probes as u64, "{rows} rows for {probes} probes");

    // The map: as many rows and columns as were read, not all of one shade, heads on demand, reachable by keyboard.
    let map = trace.probes[probes - 1].attention.as_ref().ok_or("the fixture has no map")?;
    let size = browser.eval("(({width, height}) => [width, height])(document.querySelector('.cells canvas'))")?;
    ensure!(size == json!([map.steps.len(), map.layers.len()]), "the map is {size}");
    let shades = "(() => { const c = document.querySelector('.cells canvas');
        return new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size; })()";
    ensure!(number(&mut browser, shades)? > 5, "the map has hardly a shade");
    let press = |key: &str| {
        format!(
            "document.querySelector('.cells').dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))"
        )
    };
    for key in ["ArrowDown", "ArrowDown", "Enter"] {
        browser.eval(&press(key))?;
    }
    let said = browser.eval("document.querySelector('.say').textContent")?;
    ensure!(said.as_str().is_some_and(|s| s.starts_with("Layer 2, step ") && s.contains("Gini")), "{said}");
    let heads = map.heads.as_ref().ok_or("the fixture has no heads")?;
    let size = browser.eval("(({width, height}) => [width, height])(document.querySelector('.heads canvas'))")?;
    ensure!(size == json!([map.steps.len(), heads[1].len()]), "the heads' map is {size}");
    browser.eval("document.querySelector('.say .link').click()")?;
    ensure!(number(&mut browser, "document.querySelectorAll('.step.found').length")? == 1, "no step was found");

    ensure!(number(&mut browser, "performance.getEntriesByType('resource').length")? == 0, "the page loads something");
    for scheme in ["light", "dark"] {
        browser.media(scheme, false)?;
        for (k, what) in [(0, "before"), (1, "after the first probe"), (probes, "at the end")] {
            browser.eval(&format!("show({k})"))?;
            let worst = browser.eval(CONTRAST)?;
            let ratio = worst[0].as_f64().ok_or_else(|| format!("no contrast: {worst}"))?;
            ensure!(ratio >= 4.5, "{scheme}, {what}: {worst} is hard to read");
        }
        screenshot(&mut browser, "report", scheme, 1360)?;
    }
    screenshot(&mut browser, "report-narrow", "light", 390)?;
    let width = number(&mut browser, "document.documentElement.scrollWidth")?;
    ensure!(width <= 390, "a phone would scroll sideways: {width} px wide");
    browser.media("dark", true)?;
    let shown =
        browser.eval("[getComputedStyle($('bar')).display, getComputedStyle(document.body).backgroundColor]")?;
    ensure!(shown == json!(["none", "rgb(255, 255, 255)"]), "on paper: {shown}");
    clean(&mut browser)
}

/// The least contrast of text against what lies behind it: [ratio, the text].
const CONTRAST: &str = "(() => {
    const canvas = new OffscreenCanvas(1, 1);
    const context = canvas.getContext('2d', {willReadFrequently: true});
    const flat = (colours) => {
        context.clearRect(0, 0, 1, 1);
        for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let worst = [21, ''];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
        const element = node.parentElement;
        if (!node.textContent.trim() || !element.checkVisibility() || element.closest('script, style, button:disabled')) continue;
        const behind = [];
        for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
        const style = getComputedStyle(element);
        const ink = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
        const [a, b] = [light(flat(['white', ...behind])), light(flat(['white', ...behind, ink]))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) worst = [ratio, element.className?.baseVal ?? element.className, node.textContent.slice(0, 40)];
    }
    return worst;
})()";

pub fn a_report_of_two_traces_has_them_side_by_side(site: &Site) -> Result {
    let trace = fixture()?;
    let mut other = trace.clone();
    other.probes.pop();
    // The other one's layers keep what they like: the first all, the others what the trace says.
    other.settings.scope = Scope::Layer;
    for probe in &mut other.probes {
        let set = |layer| Set {
            layer,
            kv_head: None,
            cached_before: probe.cached_before,
            evicted: if layer == 0 { Vec::new() } else { probe.evicted.clone() },
        };
        probe.sets = (0..4).map(set).collect();
    }
    let traces = [("one.json".to_string(), trace.clone()), ("other.json".into(), other)];
    let (mut browser, _folder) = open(site, &traces)?;
    screenshot(&mut browser, "report-two", "light", 1360)?;
    let lefts = browser.eval("[...document.querySelectorAll('.trace')].map((s) => s.getBoundingClientRect().left)")?;
    ensure!(lefts[0].as_f64() < lefts[1].as_f64(), "not side by side: {lefts}");
    let tops =
        browser.eval("[...document.querySelectorAll('.reasoning')].map((s) => s.getBoundingClientRect().top)")?;
    ensure!(tops[0] == tops[1], "the texts do not begin side by side: {tops}");
    let kept = "(() => { const c = [...document.querySelectorAll('.bare canvas')];
        return c.map((c) => [c.height, new Set(c.getContext('2d').getImageData(0, 0, c.width, 2).data).size > 4]); })()";
    ensure!(browser.eval(kept)? == json!([[4, true]]), "what each layer kept: {}", browser.eval(kept)?);
    // One slider moves both, each as far as it goes.
    browser.eval("$('probe').value = 1; $('probe').dispatchEvent(new Event('input'))")?;
    let states = "[...document.querySelectorAll('.reasoning [role=status]')].map((s) => s.textContent.split(',')[0])";
    let n = trace.probes.len();
    ensure!(
        browser.eval(states)? == json!([format!("After probe 1 of {n}"), format!("After probe 1 of {}", n - 1)]),
        "{}",
        browser.eval(states)?
    );
    browser.eval(&format!("show({n})"))?;
    ensure!(
        browser.eval(states)?
            == json!([format!("After probe {n} of {n}"), format!("After probe {} of {}", n - 1, n - 1)]),
        "{}",
        browser.eval(states)?
    );
    clean(&mut browser)
}

pub fn a_report_of_a_hostile_trace_stays_text(site: &Site) -> Result {
    let mut trace = fixture()?;
    let hostile = "</script><script>window.hacked = 1</script><img src=x onerror='hacked=1'><!--\u{202e}\u{0}";
    for token in &mut trace.tokens {
        if token.role != Role::Thinking || token.id.is_multiple_of(5) {
            token.text = hostile.into();
        }
    }
    for field in [&mut trace.model, &mut trace.device, &mut trace.settings.probe_text] {
        *field = hostile.into();
    }
    // Only a file can name a policy that does not exist.
    trace.settings.policy = serde_json::from_value(hostile.into()).expect("any name is read");
    trace.prompt_text = Some(hostile.into());
    let (mut browser, _folder) = open(site, &[(hostile.into(), trace)])?;
    ensure!(browser.eval("typeof window.hacked")? == "undefined", "text of a trace was run");
    ensure!(browser.eval("document.querySelectorAll('#main img, #main script').length")? == 0, "text became elements");
    let shown = browser.eval("document.querySelector('h2').textContent")?;
    let visible = hostile.replace('\u{202e}', "[U+202E]").replace('\0', "[U+0000]");
    ensure!(shown == Value::String(visible), "the name is shown as {shown}");
    clean(&mut browser)
}
