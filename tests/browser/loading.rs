//! Loading models in a browser: from files, from a server, and from what the browser has kept.
//!
//! The tests speak to the worker, so they do not depend on the page.
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::devtools::Browser;
use crate::{LONG, Result, SOON, Site, clean, server};

const GGUF: &str = "/tests/golden/gguf-llama-q4/model.gguf";
const FOLDER: &str = "/tests/golden/qwen2-f16/";
/// The latest message of the worker.
const SAID: &str = "JSON.stringify(globalThis.said?.at(-1))";

/// Starts a worker of its own and waits until it has a GPU. `said` has its messages.
fn worker(browser: &mut Browser) -> Result {
    browser.eval(
        "globalThis.engine?.terminate();
         globalThis.said = [];
         globalThis.engine = new Worker('/worker.js', { type: 'module' });
         engine.onmessage = ({ data }) => said.push(data);
         globalThis.last = (type) => said.findLast((message) => message.type === type);
         globalThis.over = () => said.some(({ type }) => ['loaded', 'error'].includes(type));",
    )?;
    browser.wait("!!last('ready')", SAID, SOON)
}

/// Loads a model in a new worker and returns the last message: `loaded`, or `error`.
fn load(browser: &mut Browser, message: &str) -> Result<Value> {
    worker(browser)?;
    browser.eval(&format!("engine.postMessage({{ do: 'load', options: {{}}, ...{message} }})"))?;
    browser.wait("over()", SAID, LONG)?;
    browser.eval("last('error') ?? last('loaded')")
}

fn loaded(message: &Value) -> Result {
    ensure!(message["type"] == "loaded", "not loaded: {message}");
    // A small model needs little memory, and a large one is read in pieces.
    let memory = message["memory"].as_u64().unwrap_or(u64::MAX);
    ensure!(memory < 300 << 20, "the engine takes {memory} bytes");
    Ok(())
}

/// The greedy ids that follow three ids.
fn ids(browser: &mut Browser) -> Result<Value> {
    browser.eval("engine.postMessage({ do: 'run', options: { ids: [1, 2, 3], max_new_tokens: 8, ignore_eos: true, greedy: true } })")?;
    browser.wait("!!last('trace') || !!last('error')", SAID, LONG)?;
    browser.eval("last('trace') ? JSON.parse(last('trace').json).tokens.map((token) => token.id) : last('error').text")
}

fn bodies(path: &str) -> Vec<server::Request> {
    server::requests().into_iter().filter(|r| r.method == "GET" && r.path.ends_with(path)).collect()
}

pub fn a_fetched_model_is_kept(site: &Site) -> Result {
    let mut browser = site.open("/")?;
    let url = |path: &str| json!({ "url": site.url(path) }).to_string();
    for (path, weights) in [(GGUF, "model.gguf"), (FOLDER, "model.safetensors")] {
        bodies("");
        loaded(&load(&mut browser, &url(path))?)?;
        let asked = bodies(weights);
        ensure!(asked.iter().filter(|r| r.start.is_none()).count() == 1, "the first visit: {asked:?}");
        let first = ids(&mut browser)?;
        ensure!(first.as_array().is_some_and(|ids| ids.len() == 8), "a run: {first}");
        // Another visit fetches no weights, and has the same model.
        loaded(&load(&mut browser, &url(path))?)?;
        let asked = bodies(weights);
        ensure!(asked.iter().all(|r| r.start.is_some()), "the second visit: {asked:?}");
        let second = ids(&mut browser)?;
        ensure!(first == second, "{first}, and from the browser's store {second}");
    }
    // Files of another version are fetched anew, even if they have the same size.
    server::new_version();
    bodies("");
    loaded(&load(&mut browser, &url(FOLDER))?)?;
    let asked = bodies("model.safetensors");
    ensure!(asked.iter().filter(|r| r.start.is_none()).count() == 1, "after a new version: {asked:?}");
    let kept = "import('/files.js').then((files) => files.kept())";
    let models = browser.eval(kept)?;
    let whole = |model: &Value| model["complete"] == true && model["bytes"] == model["size"];
    let models = models.as_array().cloned().unwrap_or_default();
    ensure!(models.len() == 2 && models.iter().all(whole), "what is kept: {models:?}");
    browser.eval(&format!("import('/files.js').then((files) => files.forget({}))", json!(site.url(GGUF))))?;
    let left = browser.eval(kept)?;
    ensure!(left.as_array().is_some_and(|left| left.len() == 1 && left[0]["url"] == site.url(FOLDER)), "{left}");
    clean(&mut browser)
}

pub fn an_interrupted_download_goes_on(site: &Site) -> Result {
    let mut browser = site.open("/")?;
    let path = format!("/broken{GGUF}");
    bodies("");
    loaded(&load(&mut browser, &json!({ "url": site.url(&path) }).to_string())?)?;
    let asked = bodies("model.gguf");
    let size = std::fs::metadata(format!("{}{GGUF}", crate::ROOT)).map_err(|e| e.to_string())?.len();
    // The header is asked for in parts first. The browser may drop the latest bytes before the break, and on a busy
    // machine all of them: then the file is asked for once more from its beginning.
    let mut after = asked.iter().skip_while(|r| r.start.is_some());
    let resumed = after.any(|r| r.start.is_some_and(|start| start > 0 && start <= size / 2));
    ensure!(
        resumed && (1..=2).contains(&asked.iter().filter(|r| r.start.is_none()).count()),
        "{size} bytes: {asked:?}"
    );
    let found = ids(&mut browser)?;
    loaded(&load(&mut browser, &json!({ "url": site.url(GGUF) }).to_string())?)?;
    let expected = ids(&mut browser)?;
    ensure!(found == expected, "{found} after the interruption, {expected} without");
    // Chromium logs the broken connection as an error.
    let problems = browser.take_problems()?;
    let others: Vec<_> = problems.iter().filter(|problem| !problem.contains("ERR_CONTENT_LENGTH_MISMATCH")).collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}

/// While a model is fetched, a small one compiles its shaders: afterwards, a run with probes needs no further shader.
pub fn shaders_are_compiled_while_a_model_is_fetched(site: &Site) -> Result {
    // A document without the page, whose own worker would compile shaders as well.
    let mut browser = site.open("/watch.js")?;
    worker(&mut browser)?;
    let script = "import('MODULE').then(({ Checked }) => {
           const { rehearse } = Checked.prototype;
           Checked.prototype.rehearse = function () {
             const over = rehearse.call(this);
             over.then(() => (globalThis.rehearsed = gpuWatch.pipelines), (error) => (globalThis.rehearsed = String(error)));
             return over;
           };
         })";
    browser.eval_in_worker(&script.replace("MODULE", &site.url("/pkg/secateur.js")))?;
    // The run is posted as soon as the model is loaded, before the worker rehearses the model itself.
    browser.eval(&format!(
        "engine.onmessage = ({{ data }}) => {{
           said.push(data);
           if (data.type !== 'loaded') return;
           engine.postMessage({{ do: 'run', call: 2, options: {{
             prompt: 'What is 12 + 30?', max_new_tokens: 40, ignore_eos: true, greedy: true, probe_every: 16, window: 4,
           }} }});
         }};
         engine.postMessage({{ do: 'load', call: 1, options: {{}}, url: {} }})",
        json!(site.url("/held/tests/golden/qwen2-bf16/"))
    ))?;
    let begun = Instant::now();
    let rehearsed = loop {
        let rehearsed = browser.eval_in_worker("globalThis.rehearsed ?? null")?;
        if !rehearsed.is_null() {
            break rehearsed;
        }
        ensure!(browser.eval("over()")? == false, "it was loaded before: {}", browser.eval(SAID)?);
        ensure!(begun.elapsed() < LONG, "no rehearsal has ended");
        std::thread::sleep(Duration::from_millis(100));
    };
    server::let_go();
    browser.wait("!!last('trace') || !!last('error')", SAID, LONG)?;
    ensure!(browser.eval("!last('error')")? == true, "{}", browser.eval("last('error')?.text")?);
    let probes = browser.eval("JSON.parse(last('trace').json).probes.length")?;
    ensure!(probes.as_u64() > Some(0), "{probes} probes");
    let [_, _, pipelines, _] = browser.gpu_report()?;
    println!("{rehearsed} pipelines were compiled while the model was fetched, {pipelines} in all");
    ensure!(rehearsed.as_u64() == Some(pipelines), "{rehearsed} pipelines while it was fetched, {pipelines} in all");
    ensure!(pipelines > 20, "only {pipelines} pipelines");
    clean(&mut browser)
}

pub fn picked_files_are_read_in_pieces(site: &Site) -> Result {
    let mut browser = site.open("/")?;
    let file = |path: &str, name: &str| format!("new File([await (await fetch('{path}')).blob()], '{name}')");
    let folder: Vec<String> = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
        .map(|name| file(&format!("{FOLDER}{name}"), name))
        .to_vec();
    for (files, path) in [(vec![file(GGUF, "any name.gguf"), file(FOLDER, "notes.txt")], GGUF), (folder, FOLDER)] {
        browser.eval(&format!("(async () => {{ globalThis.picked = [{}] }})()", files.join(", ")))?;
        loaded(&load(&mut browser, "{ files: picked }")?)?;
        let found = ids(&mut browser)?;
        loaded(&load(&mut browser, &json!({ "url": site.url(path) }).to_string())?)?;
        let expected = ids(&mut browser)?;
        ensure!(found == expected && found.is_array(), "{found} from a file, {expected} from a server");
    }
    clean(&mut browser)
}

pub fn what_cannot_run_is_refused_before_its_weights_are_read(site: &Site) -> Result {
    let mut browser = site.open("/")?;
    let file = |name: &str, path: &str| format!("new File([await (await fetch('{path}')).blob()], '{name}')");
    let refused = |browser: &mut Browser, files: &[String], expected: &str| {
        browser.eval(&format!("(async () => {{ globalThis.picked = [{}] }})()", files.join(", ")))?;
        let message = load(browser, "{ files: picked }")?;
        let text = message["text"].as_str().unwrap_or("");
        ensure!(message["type"] == "error" && text.contains(expected), "not {expected:?}: {message}");
        Ok(())
    };
    let config = file("config.json", &format!("{FOLDER}config.json"));
    refused(&mut browser, &[file("a.gguf", GGUF), file("b.gguf", GGUF)], "several models")?;
    refused(&mut browser, std::slice::from_ref(&config), "no weights")?;
    refused(&mut browser, &["new File(['GGUF'], 'model.gguf')".into()], "past the end of the file")?;
    refused(&mut browser, &["new File(['<html>'], 'model.gguf')".into()], "not a GGUF file")?;
    // The weights of another model.
    let other = file("model.safetensors", "/tests/golden/qwen3-f32/model.safetensors");
    refused(&mut browser, &[config, other], "model.embed_tokens.weight")?;
    let nowhere = load(&mut browser, &json!({ "url": site.url("/nowhere/") }).to_string())?;
    ensure!(nowhere["text"].as_str().is_some_and(|text| text.contains("no config.json")), "{nowhere}");
    let room = browser.eval(
        "import('/files.js').then(async (files) => [await files.hasRoom(2 ** 20), await files.hasRoom(2 ** 44)])",
    )?;
    ensure!(room == json!([true, false]), "room for 1 MiB, and for 16 TiB: {room}");
    let problems = browser.take_problems()?;
    // Chromium logs every 404 as an error.
    let others: Vec<_> = problems.iter().filter(|problem| !problem.contains("404")).collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}
