//! The page and the kernels in a real browser: headless Chromium with WebGPU, driven over its DevTools protocol.
//!
//! `./x test` builds web/pkg and runs this; by hand: `cargo test --profile quick --features page --test browser
//! [-- PART-OF-A-NAME]`.
//! `CHROMIUM` names the browser, `SECATEUR_SCREENSHOTS` a folder for pictures of the page.
mod devtools;
#[macro_use]
mod ensure;
mod loading;
mod over_api;
mod package;
mod page;
mod report;
mod served;
mod server;
mod twin;

use secateur::Dtype;
use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use devtools::Browser;
use secateur::ModelSource;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, LoadOptions, Prompt, Settings};
use secateur::policy::Budget;
use secateur::trace::Trace;
use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// For anything the page does without a GPU. Generous: these machines are busy.
const SOON: Duration = Duration::from_secs(30);
/// For every kernel case, or a whole run, on a GPU in software.
const LONG: Duration = Duration::from_secs(600);

type Result<T = ()> = std::result::Result<T, String>;

type Test = (&'static str, fn(&Site) -> Result);

struct Site {
    port: u16,
    chromium: String,
}

impl Site {
    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn open(&self, path: &str) -> Result<Browser> {
        let mut browser = Browser::launch(&self.chromium, true)?;
        browser.open(&self.url(path))?;
        Ok(browser)
    }
}

/// The page, or a model of the tests.
fn route(path: &str) -> PathBuf {
    let below = path.trim_start_matches('/');
    Path::new(ROOT).join(if below.starts_with("tests/golden/") { "" } else { "web" }).join(below)
}

/// The same, with the watch in the worker; `/scripted/…` is the page with a scripted engine.
fn route_for_tests(path: &str) -> Vec<PathBuf> {
    let browser = Path::new(ROOT).join("tests/browser");
    let scripted = path.strip_prefix("/scripted");
    match scripted.unwrap_or(path) {
        "/pkg/secateur.js" if scripted.is_some() => vec![browser.join("scripted_engine.js")],
        "/worker.js" => vec![browser.join("watch.js"), route("/worker.js")],
        "/watch.js" => vec![browser.join("watch.js")],
        path => vec![route(path)],
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let tests: &[Test] = &[
        ("the_watch_rejects_broken_gpu_work", the_watch_rejects_broken_gpu_work),
        ("the_package_has_the_version_of_the_crate", page::the_package_has_the_version_of_the_crate),
        ("events_become_text_and_strikes", page::events_become_text_and_strikes),
        ("a_chat_continues_without_thoughts", page::a_chat_continues_without_thoughts),
        ("two_policies_stand_side_by_side", page::two_policies_stand_side_by_side),
        ("stop_ends_a_run", page::stop_ends_a_run),
        ("errors_are_shown_and_survived", page::errors_are_shown_and_survived),
        ("a_run_that_fails_keeps_its_trace", page::a_run_that_fails_keeps_its_trace),
        ("a_conversation_survives_a_reload", page::a_conversation_survives_a_reload),
        ("kept_models_are_listed", page::kept_models_are_listed),
        ("an_engine_that_fails_is_replaced", page::an_engine_that_fails_is_replaced),
        ("a_report_opens_in_a_sandbox", page::a_report_opens_in_a_sandbox),
        ("markdown_is_set_and_loads_nothing", page::markdown_is_set_and_loads_nothing),
        ("the_page_asks_nobody_else", page::the_page_asks_nobody_else),
        ("the_page_is_made_of_the_files_that_are_listed", page::the_page_is_made_of_the_files_that_are_listed),
        ("the_module_does_as_it_documents", page::the_module_does_as_it_documents),
        ("a_model_suggests_a_prompt", page::a_model_suggests_a_prompt),
        ("the_engine_decides_what_the_form_leaves_open", page::the_engine_decides_what_the_form_leaves_open),
        ("everybody_can_use_the_page", page::everybody_can_use_the_page),
        ("a_browser_without_webgpu_is_told_what_to_do", page::a_browser_without_webgpu_is_told_what_to_do),
        ("a_failed_case_shows", a_failed_case_shows),
        ("a_report_shows_what_was_cut_and_why", report::a_report_shows_what_was_cut_and_why),
        ("a_report_of_two_traces_has_them_side_by_side", report::a_report_of_two_traces_has_them_side_by_side),
        ("a_report_of_a_hostile_trace_stays_text", report::a_report_of_a_hostile_trace_stays_text),
        ("kernels_conform_on_webgpu", kernels_conform_on_webgpu),
        ("a_request_is_resolved_as_on_the_command_line", a_request_is_resolved_as_on_the_command_line),
        ("greedy_ids_are_the_goldens", greedy_ids_are_the_goldens),
        ("logits_and_plans_are_those_of_the_cpu", twin::logits_and_plans_are_those_of_the_cpu),
        ("a_fetched_model_is_kept", loading::a_fetched_model_is_kept),
        ("an_interrupted_download_goes_on", loading::an_interrupted_download_goes_on),
        ("shaders_are_compiled_while_a_model_is_fetched", loading::shaders_are_compiled_while_a_model_is_fetched),
        ("picked_files_are_read_in_pieces", loading::picked_files_are_read_in_pieces),
        (
            "what_cannot_run_is_refused_before_its_weights_are_read",
            loading::what_cannot_run_is_refused_before_its_weights_are_read,
        ),
        ("the_page_comes_from_the_executable", served::the_page_comes_from_the_executable),
        ("a_server_can_be_the_engine_of_the_page", over_api::a_server_can_be_the_engine_of_the_page),
        ("a_server_and_a_browser_write_the_same", over_api::a_server_and_a_browser_write_the_same),
        ("a_run_on_a_server_is_stopped", over_api::a_run_on_a_server_is_stopped),
        ("a_server_keeps_answers_to_a_format", over_api::a_server_keeps_answers_to_a_format),
        ("a_server_with_a_key_asks_for_it", over_api::a_server_with_a_key_asks_for_it),
        ("a_server_that_fails_is_tried_again", over_api::a_server_that_fails_is_tried_again),
        ("a_server_that_refuses_says_why", over_api::a_server_that_refuses_says_why),
        ("a_server_is_asked_as_a_browser_is", over_api::a_server_is_asked_as_a_browser_is),
        ("everybody_can_use_the_page_of_a_server", over_api::everybody_can_use_the_page_of_a_server),
        ("a_model_thinks_and_is_pruned", a_model_thinks_and_is_pruned),
        ("the_example_runs", package::the_example_runs),
    ];
    let site = match server::serve(0, route_for_tests) {
        Ok(port) => Site { port, chromium: env::var("CHROMIUM").unwrap_or_else(|_| "chromium".into()) },
        Err(error) => {
            eprintln!("no port for the page's server: {error}");
            return ExitCode::FAILURE;
        }
    };
    let chosen: Vec<_> = tests.iter().filter(|(name, _)| args.iter().all(|a| name.contains(a.as_str()))).collect();
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, test) in &chosen {
        let started = Instant::now();
        let result = test(&site);
        let seconds = started.elapsed().as_secs_f32();
        match result {
            Ok(()) => println!("test {name} ... ok ({seconds:.1} s)"),
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({seconds:.1} s)\n{error}");
            }
        }
    }
    let passed = chosen.len() - failed;
    let verdict = if failed == 0 && passed > 0 { "ok" } else { "FAILED" };
    // The form of cargo's own summary, which `.ci/run` adds up for all suites.
    let out = tests.len() - chosen.len();
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {out} filtered out\n");
    if verdict == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

// --- the tests of the tests -----------------------------------------------------------------------------------------

/// Each kind of broken GPU work must be reported, and good work must not.
fn the_watch_rejects_broken_gpu_work(site: &Site) -> Result {
    let good = "@group(0) @binding(0) var<storage, read_write> out: array<u32>; \
                @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3u) { out[id.x] = id.x; }";
    let dispatch = |code: &str, entry: &str| {
        format!(
            "const module = device.createShaderModule({{code: `{code}`}});
             const pipeline = device.createComputePipeline({{layout: 'auto', compute: {{module, entryPoint: '{entry}'}}}});
             const buffer = device.createBuffer({{size: 256, usage: GPUBufferUsage.STORAGE}});
             const group = device.createBindGroup({{layout: pipeline.getBindGroupLayout(0),
               entries: [{{binding: 0, resource: {{buffer}}}}]}});
             const encoder = device.createCommandEncoder();
             const pass = encoder.beginComputePass();
             pass.setPipeline(pipeline); pass.setBindGroup(0, group); pass.dispatchWorkgroups(1); pass.end();
             device.queue.submit([encoder.finish()]);"
        )
    };
    let cases = [
        ("nothing", dispatch(good, "main"), None),
        ("a shader that does not parse", dispatch(&good.replace("id.x;", "id.q;"), "main"), Some("error in shader")),
        ("a pipeline without its entry point", dispatch(good, "other"), Some("pipeline: ")),
        ("a buffer past the limit", "device.createBuffer({size: 2 ** 50, usage: 128});".into(), Some("uncaptured: ")),
        ("an error on the console", "console.error('kernel refused', 7);".into(), Some("console: kernel refused 7")),
        (
            "an exception",
            "setTimeout(() => { throw new Error('late'); });".into(),
            Some("exception: Uncaught Error: late"),
        ),
        ("a rejected promise", "Promise.reject(new Error('lost'));".into(), Some("unhandled rejection: Error: lost")),
    ];
    // A document without the page's policy, which forbids workers of this kind.
    let mut browser = site.open("/watch.js")?;
    for (what, work, expected) in cases {
        browser.open(&site.url("/watch.js"))?;
        let worker = format!(
            "importScripts('{}');
             (async () => {{
               const device = await (await navigator.gpu.requestAdapter()).requestDevice();
               {work}
               await device.queue.onSubmittedWorkDone();
               setTimeout(() => postMessage('finished'), 50);
             }})()",
            site.url("/watch.js")
        );
        browser.eval(&format!(
            "(async () => {{
               const url = URL.createObjectURL(new Blob([{}], {{type: 'text/javascript'}}));
               const worker = window.extra = new Worker(url);
               worker.onerror = (event) => event.preventDefault();
               await new Promise((resolve) => (worker.onmessage = resolve));
             }})().then(() => window.finished = true), 0",
            json!(worker)
        ))?;
        browser.wait("window.finished", "''", SOON)?;
        match (browser.gpu_report(), expected) {
            (Ok(counts), None) => ensure!(counts == [1; 4], "the watch miscounted good work: {counts:?}"),
            (Ok(_), Some(_)) => return Err(format!("{what} went unseen")),
            (Err(error), Some(part)) => ensure!(error.contains(part), "{what}: no `{part}` in: {error}"),
            (Err(error), None) => return Err(format!("good work was rejected: {error}")),
        }
    }
    browser.open(&site.url("/scripted/"))?;
    browser.eval("setTimeout(() => { throw new Error('in the page'); }), 0")?;
    browser.wait("document.body.dataset.state === 'ready'", "''", SOON)?;
    let problems = browser.take_problems()?;
    ensure!(
        problems.iter().any(|p| p.contains("exception: Error: in the page")),
        "an exception in the page went unseen"
    );
    Ok(())
}

const LOADED: &str = "document.body.dataset.state === 'loaded'";
const READY: &str = "document.body.dataset.state === 'ready'";
const STATE: &str = "document.body.dataset.state";

fn press_start(browser: &mut Browser, prompt: &str) -> Result {
    browser.eval(&format!("$('prompt').value = {}; $('start').click()", json!(prompt))).map(drop)
}

fn a_failed_case_shows(site: &Site) -> Result {
    let mut browser = site.open("/scripted/")?;
    let table = run_conformance(&mut browser)?;
    ensure!(table["failed"] == 1, "the scripted table: {table}");
    let rows = browser.eval("[...$('conformance-table').tBodies[0].rows].map((r) => r.innerText)")?;
    ensure!(rows == json!(["right\t3\t1.0e-7\t0.000001\tok", "broken\t1\tNaN\t0\twrong"]), "the table: {rows}");
    let verdict = check_table(&table, &["right".into(), "broken".into()]);
    ensure!(verdict.is_err_and(|e| e.contains("broken")), "a failed kernel must fail the check");
    let good = json!({"kernels": [table["kernels"][0]], "passed": 3, "failed": 0});
    check_table(&good, &["right".into()])?;
    ensure!(
        check_table(&good, &["right".into(), "lost".into()]).is_err(),
        "a kernel that did not run must fail the check"
    );
    let empty = json!({"kernels": [{"kernel": "right", "cases": 0, "passed": true}], "passed": 0, "failed": 0});
    ensure!(check_table(&empty, &["right".into()]).is_err(), "a kernel without cases must fail the check");
    clean(&mut browser)
}

// --- the real engine ------------------------------------------------------------------------------------------------

fn kernels_conform_on_webgpu(site: &Site) -> Result {
    let mut browser = real(site, "/")?;
    let table = run_conformance(&mut browser)?;
    println!("\n{} on {}: {}", browser.version()?, table["backend"], table["adapter"]);
    println!("{:<20} {:>6} {:>14} {:>14}", "kernel", "cases", "worst error", "bound");
    for row in table["kernels"].as_array().into_iter().flatten() {
        let [kernel, cases, error, bound] = ["kernel", "cases", "worst_error", "bound"].map(|key| match &row[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        println!(
            "{kernel:<20} {cases:>6} {error:>14} {bound:>14}  {}",
            if row["passed"] == true { "ok" } else { "WRONG" }
        );
    }
    check_table(&table, &kernel_names()?)?;
    let [devices, modules, pipelines, submits] = browser.gpu_report()?;
    println!(
        "{devices} devices, {modules} shader modules without a message from the compiler, {pipelines} pipelines, {submits} submits"
    );
    let kernels = table["kernels"].as_array().map_or(0, Vec::len) as u64;
    ensure!(modules >= kernels && pipelines >= kernels && submits > 0, "too little GPU work for {kernels} kernels");
    screenshot(&mut browser, "conformance", "light", 1000)
}

/// The page computes what transformers computed: the greedy continuation of a prompt, id by id, for every packing of
/// weights.
fn greedy_ids_are_the_goldens(site: &Site) -> Result {
    for packing in ["f32", "f16", "bf16"] {
        let model = format!("tests/golden/qwen2-{packing}");
        let file = Path::new(ROOT).join(&model).join("golden.json");
        let golden: Value = fs::read_to_string(&file)
            .map_err(|e| e.to_string())
            .and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string()))
            .map_err(|e| format!("{}: {e}", file.display()))?;
        let (prompt, expected) = (&golden["ids"]["prompt.64.ids"], &golden["ids"]["greedy.ids"]);
        ensure!(expected.as_array().is_some_and(|ids| ids.len() == 64), "{model} has no greedy ids");
        let mut browser = real(site, &format!("/?model=/{model}/&kv=f32"))?;
        browser.wait(LOADED, "$('model').textContent", LONG)?;
        let options =
            json!({"ids": prompt, "policy": "full", "max_new_tokens": 64, "ignore_eos": true, "greedy": true});
        let trace = generate(&mut browser, &options)?;
        let ids: Vec<u32> = trace.tokens.iter().map(|token| token.id).collect();
        ensure!(json!(ids) == *expected, "{model}: {ids:?}, expected {expected}");
        browser.gpu_report()?;
    }
    Ok(())
}

/// The same JSON through the engine in the browser and through the command line comes to the same prompt and settings.
fn a_request_is_resolved_as_on_the_command_line(site: &Site) -> Result {
    let file = Path::new(ROOT).join("tests/fixtures/requests.json");
    let cases = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let cases: Vec<Value> = serde_json::from_str(&cases).map_err(|e| e.to_string())?;
    let mut compared = 0;
    for model in ["", "tests/golden/qwen2-f16", "tests/golden/qwen3-f32"] {
        let mut browser = real(site, &if model.is_empty() { "/".into() } else { format!("/?model=/{model}/") })?;
        if model.is_empty() {
            browser.wait(READY, STATE, SOON)?;
            browser.eval("$('builtin').click()")?;
        }
        browser.wait(LOADED, "$('model').textContent", LONG)?;
        let defaults = resolve(&mut browser, &json!({"prompt": "x"}))?;
        let shown = browser.eval("$('form').elements.namedItem('window').placeholder")?;
        let window = &defaults["settings"]["window"];
        ensure!(
            shown.as_str() == Some(&window.to_string()),
            "{model}: the page shows the window {shown}, not {window}"
        );
        for case in cases.iter().filter(|case| case["model"] == model) {
            let request = &case["request"];
            let found = resolve(&mut browser, request)?;
            let expected = on_the_command_line(model, request)?;
            // JavaScript writes 1.0 as 1.
            let (found, expected) = (as_doubles(found), as_doubles(expected));
            ensure!(found == expected, "{request} is\n{found} in the browser and\n{expected} on the command line");
            compared += 1;
        }
    }
    ensure!(compared == cases.len(), "{compared} of {} requests were compared", cases.len());
    Ok(())
}

/// The same JSON with every number as a double, which is what JavaScript keeps. All numbers of a request are exact so.
fn as_doubles(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        Value::Array(items) => items.into_iter().map(as_doubles).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, as_doubles(value))).collect(),
        other => other,
    }
}

/// What the engine makes of a request.
fn resolve(browser: &mut Browser, request: &Value) -> Result<Value> {
    let found = browser.eval(&format!("secateur.model.resolve({request}).then(JSON.stringify, String)"))?;
    serde_json::from_str(found.as_str().unwrap_or("")).map_err(|e| format!("{found}: {e}"))
}

fn on_the_command_line(model: &str, request: &Value) -> Result<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    command.args(["run", "--request", "-", "--dry-run", "--quiet"]).current_dir(ROOT);
    if !model.is_empty() {
        command.args(["--model", model]);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    // The module has it recorded unless a request says otherwise.
    let mut request = request.clone();
    if request["attention"].is_null() {
        request["attention"] = "layers".into();
    }
    stdin.write_all(request.to_string().as_bytes()).map_err(|e| e.to_string())?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    serde_json::from_slice(&output.stdout).map_err(|e| format!("{request}: {e}"))
}

/// Runs with options that the form does not have, and returns the trace.
fn generate(browser: &mut Browser, options: &Value) -> Result<Trace> {
    browser.eval(&format!(
        "(async () => {{
            for await (const event of secateur.model.generate({options})) window.last = event;
            window.ended = last.json;
        }})().catch((error) => {{ window.ended = String(error); }}), 0"
    ))?;
    browser.wait("window.ended", "''", LONG)?;
    let text = browser.eval("window.ended")?;
    Trace::from_json(text.as_str().unwrap_or("")).map_err(|e| format!("{e}: {text}"))
}

/// The trace that the page offers to save.
fn trace(browser: &mut Browser) -> Result<Trace> {
    let text = browser.eval("secateur.replies[0].json")?;
    Trace::from_json(text.as_str().unwrap_or("")).map_err(|e| e.to_string())
}

/// Where the model of the end-to-end test lies, below the repository.
const MODEL: &str = "tests/golden/qwen2-bf16";
/// A model with random weights rarely writes words that begin a step. With this prompt it does, and early.
const PROMPT: &str = "What is 12 + 30?";

/// The same run natively, on the CPU twin.
fn native(options: &Settings) -> secateur::Result<Trace> {
    let source = ModelSource::directory(Path::new(ROOT).join(MODEL))?;
    let load = LoadOptions { kv: Dtype::F32, ..LoadOptions::default() };
    let mut engine = Engine::load(&source, MODEL, &ComputeDevice::cpu(), &load, &mut |_, _| ())?;
    let run = pollster::block_on(engine.run(&Prompt::Chat(PROMPT.into()), options, &mut |_| ()))?;
    Ok(run.trace)
}

fn a_model_thinks_and_is_pruned(site: &Site) -> Result {
    ensure!(Path::new(ROOT).join(MODEL).join("config.json").exists(), "{MODEL} is missing");
    let mut browser = real(
        site,
        &format!("/?model=/{MODEL}/&kv=f32&probe_every=32&window=8&max_new_tokens=128&budget=ratio:0.5&temperature=0"),
    )?;
    browser.wait(LOADED, "$('model').textContent", LONG)?;
    press_start(&mut browser, PROMPT)?;
    const THOUGHT: &str = "document.querySelector('.thinking summary')?.textContent";
    browser.wait(&format!("!$('error').hidden || ({LOADED} && secateur.replies[0]?.json)"), THOUGHT, LONG)?;
    ensure!(browser.eval("$('error').hidden")? == true, "{}", browser.eval("$('error').innerText")?);
    println!("{}", browser.eval(THOUGHT)?);
    let numbers = browser.eval(
        "(([r]) => [r.pieces.length, r.pieces.filter((p) => p.evictedBy !== undefined).length, r.probes, r.steps.length,
          document.querySelectorAll('.step').length])(secateur.replies)",
    )?;
    let [pieces, evicted, probes, steps, drawn] = [0, 1, 2, 3, 4].map(|i| numbers[i].as_u64().unwrap_or(0));
    ensure!(pieces > 32, "it wrote {pieces} pieces of text");
    ensure!(probes > 0 && evicted > 0, "{probes} probes struck out {evicted} pieces of text");
    ensure!(evicted < pieces, "everything was pruned");
    ensure!(steps > 1 && steps == drawn, "{steps} steps, of which {drawn} are drawn");
    let cuts = browser.eval("[...document.querySelectorAll('del.cut')].map((cut) => cut.textContent).join('')")?;
    let picture = browser.eval("(({width, height}) => [width, height])(document.querySelector('#map canvas'))")?;
    ensure!(picture[0].as_u64() > Some(1) && picture[1].as_u64() > Some(1), "the map is {picture}");
    let line = browser.eval("document.querySelector('#chart path.held').getAttribute('d').split('L').length")?;
    ensure!(line.as_u64() > Some(2 * probes), "the line of the cache has {line} points");
    let options =
        Settings { probe_every: 32, window: 8, max_new_tokens: 128, budget: Budget::Ratio(0.5), ..Default::default() };
    let expected = native(&options).map_err(|e| e.to_string())?;
    let found = trace(&mut browser)?;
    ensure!(found.prompt_ids == expected.prompt_ids, "the prompt became {:?}", found.prompt_ids);
    ensure!(found.tokens == expected.tokens, "other tokens than natively: {}", first_difference(&found, &expected));
    ensure!(found.probes.len() == expected.probes.len(), "{} probes", found.probes.len());
    for (found, expected) in found.probes.iter().zip(&expected.probes) {
        ensure!(found.evicted == expected.evicted, "evicted {:?}, natively {:?}", found.evicted, expected.evicted);
    }
    // What is struck through is what the trace says was evicted.
    let first = found.prompt_ids.len();
    let mut gone: Vec<usize> = found.probes.iter().flat_map(|p| &p.evicted).map(|p| *p as usize - first).collect();
    gone.sort_unstable();
    let evicted: String = gone.iter().map(|i| found.tokens[*i].text.as_str()).collect();
    ensure!(cuts == evicted.as_str(), "struck through is {cuts}, evicted was {evicted:?}");
    let report = browser.eval("secateur.model.report([{name: 'x', trace: secateur.replies[0].json}])")?;
    ensure!(
        report.as_str().is_some_and(|r| r.starts_with("<!doctype html>") && r.contains("think-clearly")),
        "{report}"
    );
    let [_, modules, pipelines, submits] = browser.gpu_report()?;
    println!("{modules} shader modules, {pipelines} pipelines, {submits} submits");
    ensure!(modules > 0 && submits > 32, "{modules} shader modules and {submits} submits cannot be a whole run");
    for scheme in ["light", "dark"] {
        screenshot(&mut browser, "run", scheme, 1000)?;
    }
    Ok(())
}

fn first_difference(a: &Trace, b: &Trace) -> String {
    let differs = a.tokens.iter().zip(&b.tokens).enumerate().find(|(_, (a, b))| a != b);
    differs.map_or(format!("{} and {} of them", a.tokens.len(), b.tokens.len()), |(i, (a, b))| {
        format!("token {i} is {a:?}, natively {b:?}")
    })
}

/// The page with the engine in web/pkg.
fn real(site: &Site, path: &str) -> Result<Browser> {
    ensure!(Path::new(ROOT).join("web/pkg/secateur.js").exists(), "web/pkg is not built: run ./x wasm");
    let mut browser = site.open(path)?;
    browser.wait("document.body.dataset.state !== 'starting'", STATE, Duration::from_secs(120))?;
    ensure!(browser.eval("$('error').hidden")? == true, "{}", browser.eval("$('error').innerText")?);
    Ok(browser)
}

/// Presses the button, waits for the table, returns it.
fn run_conformance(browser: &mut Browser) -> Result<Value> {
    browser.wait("!$('conformance').disabled", STATE, SOON)?;
    browser.eval("$('check').open = true; $('conformance').click()")?;
    browser.wait(
        "$('conformance-json').textContent || !$('error').hidden",
        "$('conformance-status').textContent",
        LONG,
    )?;
    let json = browser.eval("$('conformance-json').textContent || JSON.stringify($('error').innerText)")?;
    let table: Value = serde_json::from_str(json.as_str().unwrap_or("")).map_err(|e| format!("{json}: {e}"))?;
    ensure!(table.is_object(), "conformance did not finish: {table}");
    Ok(table)
}

/// Every required kernel ran at least one case, and nothing failed.
fn check_table(table: &Value, required: &[String]) -> Result {
    let kernels = table["kernels"].as_array().ok_or("a table without kernels")?;
    for name in required {
        let row = kernels.iter().find(|row| row["kernel"] == name.as_str());
        let row = row.ok_or_else(|| format!("{name}: no case ran"))?;
        ensure!(row["cases"].as_u64() > Some(0), "{name}: no case ran");
    }
    let wrong: Vec<_> =
        kernels.iter().filter(|row| row["passed"] != true).map(|row| row["kernel"].to_string()).collect();
    ensure!(wrong.is_empty(), "wrong: {}", wrong.join(", "));
    ensure!(
        table["failed"] == 0 && table["passed"].as_u64() > Some(0),
        "{} passed, {} failed",
        table["passed"],
        table["failed"]
    );
    Ok(())
}

/// The kernels there are: those with a file in src/kernels of the same stem. A kernel may be more than one shader.
fn kernel_names() -> Result<Vec<String>> {
    let folder = Path::new(ROOT).join("shaders");
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".wgsl").map(String::from))
        .filter(|name| Path::new(ROOT).join(format!("src/kernels/{name}.rs")).exists())
        .collect();
    ensure!(!names.is_empty(), "no shader in {}", folder.display());
    Ok(names)
}

fn clean(browser: &mut Browser) -> Result {
    let problems = browser.take_problems()?;
    ensure!(problems.is_empty(), "the browser complained: {}", problems.join("\n"));
    Ok(())
}

/// Lays the page out at that width and draws it; kept in the folder that `SECATEUR_SCREENSHOTS` names, if it names one.
fn screenshot(browser: &mut Browser, name: &str, scheme: &str, width: u32) -> Result {
    let picture = browser.screenshot(scheme, width)?;
    ensure!(picture.len() > 5000, "an empty picture of the page: {} bytes", picture.len());
    let Some(folder) = env::var_os("SECATEUR_SCREENSHOTS") else { return Ok(()) };
    let file = PathBuf::from(folder).join(format!("{name}-{scheme}.png"));
    fs::write(&file, picture).map_err(|e| format!("{}: {e}", file.display()))
}
