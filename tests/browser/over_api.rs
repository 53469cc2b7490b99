//! The page with a server as its engine: `secateur serve`, which serves the page at `/`.
use secateur::builtin;
use secateur::trace::Trace;
use serde_json::{Value, json};

use super::page::{check_for_everybody, rules_for_everybody};
use super::{LOADED, LONG, Result, SOON, STATE, Site, clean, first_difference, press_start, real, screenshot, trace};
use crate::devtools::Browser;
use crate::served::Server;

/// The answer of the page's latest reply has come.
const ANSWERED: &str = "document.body.dataset.state === 'loaded' && secateur.replies.at(-1)?.json";
/// Nothing on the page has failed.
const WELL: &str = "$('error').hidden";
/// Presses Stop as soon as the model thinks.
const STOP_SOON: &str = "window.stopping = setInterval(() => {
    if (!document.querySelector('.turn:last-child .thoughts')?.textContent) return;
    clearInterval(stopping);
    $('stop').click();
  }, 5)";

/// `on`: runs go on to the end of the context, which takes seconds. Otherwise they end as they usually do. The form of
/// the page has no such field.
fn endless(browser: &mut Browser, on: bool) -> Result {
    browser.eval(&format!(
        "window.endless ??= Object.assign(document.createElement('input'), {{ type: 'checkbox', name: 'ignore_eos', hidden: true }});
         $('form').append(endless);
         endless.checked = $('form').elements.namedItem('raw').checked = {on};
         $('form').elements.namedItem('policy').value = {on} ? 'full' : ''",
    ))?;
    Ok(())
}

/// A server with the built-in model on the CPU, and the address of its page.
fn serve(more: &[&str]) -> Result<(Server, String)> {
    let args: Vec<&str> = ["serve", "--device", "cpu", "--port", "0"].iter().chain(more).copied().collect();
    Server::start(&args, "listening on ")
}

/// The page of a server, in a browser without WebGPU.
fn open(site: &Site, address: &str, query: &str) -> Result<Browser> {
    let mut browser = Browser::launch(&site.chromium, false)?;
    browser.open(&format!("{address}/{query}"))?;
    browser.wait(&format!("{LOADED} || !{WELL} || $('key-dialog').open"), STATE, SOON)?;
    Ok(browser)
}

fn ask(browser: &mut Browser, prompt: &str) -> Result {
    press_start(browser, prompt)?;
    browser.wait("document.body.dataset.state === 'running' || secateur.replies.at(-1)?.json", STATE, SOON)?;
    browser.wait(&format!("!{WELL} || ({ANSWERED})"), STATE, LONG)?;
    let error = browser.eval("$('error').hidden ? '' : $('error').innerText")?;
    ensure!(error == "", "{error}");
    Ok(())
}

/// The text of the error on the page, once there is one; and whether it can be tried again.
fn failed(browser: &mut Browser) -> Result<(String, bool)> {
    browser.wait(&format!("!{WELL}"), STATE, SOON)?;
    let found = browser.eval("[$('error').innerText, !$('error-retry').hidden]")?;
    Ok((found[0].as_str().unwrap_or("").to_string(), found[1] == true))
}

/// Everything that the page shows comes from the server: text, cuts, shades, the chart, the map, the report. The
/// browser needs neither WebGPU nor WebAssembly.
pub fn a_server_can_be_the_engine_of_the_page(site: &Site) -> Result {
    let (_server, address) = serve(&[])?;
    let mut browser = open(site, &address, "?budget=ratio:0.5&seed=3")?;
    let place = browser.eval("$('adapter').textContent")?;
    let host = address.trim_start_matches("http://");
    let expected = format!("The model runs on the server at {host}: built-in, on the CPU");
    ensure!(place == expected.as_str(), "{place}");
    let hidden = browser.eval(
        "['files', 'builtin', 'remote', 'conformance'].map((id) => $(id).closest('.of-browser') !== null
             && getComputedStyle($(id).closest('.of-browser')).display)",
    )?;
    ensure!(hidden == json!(vec!["none"; 4]), "of what a server has not, this is shown: {hidden}");
    ensure!(browser.eval("$('prompt').value")? == builtin::EXAMPLE, "the model's own prompt is not suggested");
    let default = browser.eval("$('form').elements.namedItem('window').placeholder")?;
    ensure!(default == builtin::WINDOW.to_string().as_str(), "the form shows the window {default}");
    for (width, name) in [(1360, "server-welcome"), (390, "server-welcome-narrow")] {
        for scheme in ["light", "dark"] {
            screenshot(&mut browser, name, scheme, width)?;
        }
    }
    browser.eval("$('model-button').click()")?;
    screenshot(&mut browser, "server-model", "light", 1360)?;
    browser.eval("$('model-close').click()")?;

    ask(&mut browser, builtin::EXAMPLE)?;
    let numbers = browser.eval(
        "(([r]) => [r.pieces.length, r.pieces.filter((p) => p.evictedBy !== undefined).length, r.probes, r.steps.length,
          document.querySelectorAll('.step').length])(secateur.replies)",
    )?;
    let [pieces, evicted, probes, steps, drawn] = [0, 1, 2, 3, 4].map(|i| numbers[i].as_u64().unwrap_or(0));
    ensure!(pieces > 32 && probes > 1 && evicted > 0 && evicted < pieces, "{probes} probes cut {evicted} of {pieces}");
    ensure!(steps > 1 && steps == drawn, "{steps} steps, of which {drawn} are drawn");
    let found = trace(&mut browser)?;
    ensure!(found.probes.len() as u64 == probes, "{probes} probes, in the trace {}", found.probes.len());
    let first = found.prompt_ids.len();
    let mut gone: Vec<usize> = found.probes.iter().flat_map(|p| &p.evicted).map(|p| *p as usize - first).collect();
    gone.sort_unstable();
    let evicted: String = gone.iter().map(|i| found.tokens[*i].text.as_str()).collect();
    let cuts = browser.eval("[...document.querySelectorAll('del.cut')].map((cut) => cut.textContent).join('')")?;
    ensure!(cuts == evicted.as_str(), "struck through is {cuts}, evicted was {evicted:?}");
    let shades = browser.eval(
        "new Set([...document.querySelectorAll('.step')].map((s) => s.style.getPropertyValue('--shade'))).size",
    )?;
    ensure!(shades.as_u64() > Some(2), "the steps have {shades} shades");
    let line = browser.eval("document.querySelector('#chart path.held').getAttribute('d').split('L').length")?;
    ensure!(line.as_u64() > Some(2 * probes), "the line of the cache has {line} points");
    let map = browser.eval("(({width, height}) => [width, height])(document.querySelector('#map canvas'))")?;
    ensure!(map[0].as_u64() > Some(1) && map[1].as_u64() > Some(1), "the map is {map}");
    let facts = browser.eval("document.querySelector('.facts').innerText")?;
    ensure!(facts.as_str().is_some_and(|f| f.contains("KV cache") && f.contains("tokens/s")), "{facts}");
    let answer = browser.eval("secateur.history.at(-1).content")?;
    ensure!(answer.as_str().is_some_and(|a| a.contains("answer is")), "the answer: {answer}");
    for (width, name) in [(1360, "server-run"), (390, "server-run-narrow")] {
        for scheme in ["light", "dark"] {
            screenshot(&mut browser, name, scheme, width)?;
            let found = browser.eval("document.documentElement.scrollWidth")?;
            ensure!(found.as_u64().is_some_and(|w| w <= u64::from(width)), "{width} px would scroll: {found} px wide");
        }
    }

    // The report, by the server.
    browser.eval("document.querySelector('.actions button').click()")?;
    browser.wait("$('report-dialog').open", STATE, SOON)?;
    let mut report = String::new();
    for _ in 0..100 {
        browser.wait("true", "''", SOON)?;
        let text = browser.eval_in_frame("document.body?.innerText ?? ''").unwrap_or_default();
        report = text.as_str().unwrap_or("").to_string();
        if report.contains("think-clearly") {
            break;
        }
    }
    ensure!(report.contains("think-clearly") && report.contains("built-in"), "the report: {report}");
    screenshot(&mut browser, "server-report", "light", 1360)?;
    browser.eval("$('report-close').click()")?;

    // A second turn, which is a comparison, has the first one before it.
    browser.eval("$('compare').value = 'full'")?;
    press_start(&mut browser, "And what is h?")?;
    browser.wait(&format!("!{WELL} || secateur.replies.length === 2 && ({ANSWERED})"), STATE, LONG)?;
    let found = browser
        .eval("[$('error').hidden, document.querySelectorAll('.turn').length, secateur.replies.map((r) => r.title)]")?;
    ensure!(found == json!([true, 2, ["think-clearly, ratio:0.5", "full cache"]]), "the comparison: {found}");
    let second: Trace =
        serde_json::from_value(browser.eval("JSON.parse(secateur.replies[1].json)")?).map_err(|e| e.to_string())?;
    let prompt = second.prompt_text.unwrap_or_default();
    ensure!(prompt.contains("What is c?") && prompt.contains("And what is h?"), "the second turn asked {prompt:?}");
    ensure!(second.settings.seed == 3, "the seed of the comparison is {}", second.settings.seed);
    for scheme in ["light", "dark"] {
        screenshot(&mut browser, "server-compare", scheme, 1360)?;
    }

    let loaded = browser.eval("performance.getEntriesByType('resource').map((r) => new URL(r.name)).filter((url) =>
        url.origin !== origin || /worker\\.js$|^\\/pkg\\/|^\\/models\\//.test(url.pathname)).map((url) => url.pathname)")?;
    ensure!(loaded == json!([]), "the page of a server loaded {loaded}");
    clean(&mut browser)
}

/// One page, two engines: with the same prompt, seed and settings both write the same and cut the same.
pub fn a_server_and_a_browser_write_the_same(site: &Site) -> Result {
    let query = "?budget=ratio:0.5&seed=11&temperature=0.7&top_p=0.9&max_new_tokens=200";
    let (_server, address) = serve(&["--kv", "f32"])?;
    let mut there = open(site, &address, query)?;
    ask(&mut there, builtin::EXAMPLE)?;
    let of_server = trace(&mut there)?;
    clean(&mut there)?;
    let mut here = real(site, &format!("/{query}&kv=f32"))?;
    press_start(&mut here, builtin::EXAMPLE)?;
    here.wait(&format!("!{WELL} || ({ANSWERED})"), "document.querySelector('.thinking summary')?.textContent", LONG)?;
    ensure!(here.eval(WELL)? == true, "{}", here.eval("$('error').innerText")?);
    let of_browser = trace(&mut here)?;
    ensure!(of_server.tokens == of_browser.tokens, "other tokens: {}", first_difference(&of_server, &of_browser));
    let cuts = |trace: &Trace| trace.probes.iter().map(|probe| probe.evicted.clone()).collect::<Vec<_>>();
    ensure!(!cuts(&of_server).concat().is_empty(), "nothing was cut");
    ensure!(cuts(&of_server) == cuts(&of_browser), "{:?} and {:?}", cuts(&of_server), cuts(&of_browser));
    // The server leaves its own limit on the answer; all else is the same.
    let settings = |trace: &Trace| {
        let mut settings = json!(trace.settings);
        settings["max_answer_tokens"] = Value::Null;
        settings
    };
    ensure!(settings(&of_server) == settings(&of_browser), "{} and {}", settings(&of_server), settings(&of_browser));
    let shown = "[...document.querySelectorAll('.thoughts .step')].map((step) => [step.innerHTML, step.style.getPropertyValue('--shade')])";
    let (one, other) = (there.eval(shown)?, here.eval(shown)?);
    ensure!(one == other, "the page shows {one} and {other}");
    Ok(())
}

/// A program asks a server for answers in every kind of format. What the server's form lacks is refused here.
pub fn a_server_keeps_answers_to_a_format(site: &Site) -> Result {
    let (_server, address) = serve(&[])?;
    let mut browser = open(site, &address, "")?;
    let found = browser.eval(
        "(async () => {
           const said = async (answer_format) => {
             let text = '';
             const request = { prompt: 'x', temperature: 0, max_thinking_tokens: 3, answer_format };
             for await (const event of secateur.model.generate(request)) if (event.role === 'answer') text += event.text;
             return text.trim();
           };
           const schema = { type: 'object', properties: { a: { type: 'integer', minimum: 1, maximum: 1 } }, required: ['a'], additionalProperties: false };
           const refused = await said({ type: 'tool_calls', tools: [], several: false }).catch((error) => error.message);
           return [
             await said({ type: 'choice', choices: ['yes', 'no'] }),
             await said({ type: 'regex', pattern: '[0-9]{4}' }),
             JSON.parse(await said({ type: 'json_schema', schema })),
             (await secateur.model.resolve({ prompt: 'x', answer_format: { type: 'json_object' } })).settings.answer_format,
             refused,
           ];
         })()",
    )?;
    ensure!(found[0] == "yes" || found[0] == "no", "{found}");
    let digits = found[1].as_str().unwrap_or_default();
    ensure!(digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()), "{found}");
    ensure!(found[2] == json!({"a": 1}) && found[3] == json!({"type": "json_object"}), "{found}");
    ensure!(found[4].as_str().is_some_and(|said| said.contains("tool_calls")), "{found}");
    clean(&mut browser)
}

/// A run that is stopped still tells its end, and the next one begins.
pub fn a_run_on_a_server_is_stopped(site: &Site) -> Result {
    let (_server, address) = serve(&[])?;
    let mut browser = open(site, &address, "")?;
    endless(&mut browser, true)?;
    browser.eval(STOP_SOON)?;
    ask(&mut browser, "<think>\n")?;
    let found =
        browser.eval("[document.querySelector('.state').textContent, secateur.replies[0].result.stop_reason]")?;
    ensure!(found[0].as_str().is_some_and(|s| s.contains("you stopped it")), "the reply says {found}");
    ensure!(found[1] == "cancelled", "the run ended as {found}");
    // A program leaves the loop, or aborts.
    let ended = browser.eval(
        "(async () => {
           let text = '';
           for await (const event of secateur.model.generate({ prompt: 'x', raw: true, ignore_eos: true })) if ((text += event.text ?? '').length > 4) break;
           const abort = new AbortController();
           try {
             for await (const event of secateur.model.generate({ prompt: 'x', raw: true, ignore_eos: true }, { signal: abort.signal })) if (event.type === 'token') abort.abort();
           } catch (error) {
             text = error.name;
           }
           for (let i = 0; i < 100; i++) {
             const { running, waiting } = await (await fetch('/slots')).json();
             if (running + waiting === 0) return text;
             await new Promise((resolve) => setTimeout(resolve, 50));
           }
           return 'something still runs';
         })()",
    )?;
    ensure!(ended == "AbortError", "after leaving: {ended}");
    endless(&mut browser, false)?;
    ask(&mut browser, builtin::EXAMPLE)?;
    clean(&mut browser)
}

pub fn a_server_with_a_key_asks_for_it(site: &Site) -> Result {
    const ASKED: &str = "$('key-dialog').open";
    let enter = |browser: &mut Browser, key: &str| {
        browser.eval(&format!("$('key').value = {}; $('key-form').querySelector('[type=submit]').click()", json!(key)))
    };
    let (_server, address) = serve(&["--api-key", "secret"])?;
    let mut browser = open(site, &address, "")?;
    ensure!(
        browser.eval(&format!("{ASKED} && $('key-wrong').hidden && $('key').type"))? == "password",
        "no key is asked for"
    );
    for scheme in ["light", "dark"] {
        screenshot(&mut browser, "server-key", scheme, 390)?;
    }
    enter(&mut browser, "wrong")?;
    browser.wait(&format!("{ASKED} && !$('key-wrong').hidden"), STATE, SOON)?;
    // A user without a key sees the reason, and can try again.
    browser.eval("$('key-cancel').click()")?;
    let (text, again) = failed(&mut browser)?;
    ensure!(text.contains("The server needs a key") && again, "without a key: {text}");
    browser.eval("$('error-retry').click()")?;
    browser.wait(&format!("{ASKED} && $('key-wrong').hidden"), STATE, SOON)?;
    // A key with a character that no header can hold, such as one that was pasted.
    enter(&mut browser, "secret\u{200b}")?;
    browser.wait(&format!("{ASKED} && !$('key-wrong').hidden"), STATE, SOON)?;
    enter(&mut browser, "secret")?;
    browser.wait(LOADED, STATE, SOON)?;
    ask(&mut browser, builtin::EXAMPLE)?;
    ensure!(browser.eval("JSON.stringify({...localStorage}).includes('secret')")? == false, "the key outlives the tab");
    // The tab keeps it for a reload.
    browser.open(&address)?;
    browser.wait(&format!("{LOADED} && !{ASKED}"), STATE, SOON)?;
    clean(&mut browser)
}

/// A server that was killed, before a question or in the middle of an answer: the conversation stays, and goes on
/// once the server is back.
pub fn a_server_that_fails_is_tried_again(site: &Site) -> Result {
    let (server, address) = serve(&[])?;
    let port = address.rsplit(':').next().unwrap_or("").to_string();
    let back = || Server::start(&["serve", "--device", "cpu", "--port", &port], "listening on ");
    let mut browser = open(site, &address, "?budget=ratio:0.5")?;
    ask(&mut browser, builtin::EXAMPLE)?;
    drop(server);
    press_start(&mut browser, builtin::EXAMPLE)?;
    let (text, again) = failed(&mut browser)?;
    ensure!(text.contains("The server cannot be reached") && text.contains("secateur serve") && again, "{text}");
    for scheme in ["light", "dark"] {
        screenshot(&mut browser, "server-gone", scheme, 1000)?;
    }
    let found = browser.eval("[document.querySelectorAll('.turn').length, secateur.history.length]")?;
    ensure!(found == json!([1, 2]), "after the loss of the server: {found}");
    // It is still away.
    browser.eval("$('error-retry').click()")?;
    failed(&mut browser)?;
    let (server, _) = back()?;
    browser.eval("$('error-retry').click()")?;
    browser.wait(&format!("secateur.history.length === 4 && ({ANSWERED})"), STATE, LONG)?;
    let prompt = trace(&mut browser)?.prompt_text.unwrap_or_default();
    ensure!(prompt.matches("What is c?").count() == 2, "the conversation went on with {prompt:?}");

    // In the middle of an answer.
    endless(&mut browser, true)?;
    press_start(&mut browser, "<think>\n")?;
    browser.wait("document.querySelector('.turn:last-child .thoughts')?.textContent", STATE, SOON)?;
    drop(server);
    let (text, again) = failed(&mut browser)?;
    ensure!(text.contains("Decoding stopped") && text.contains("broke off") && again, "in the middle: {text}");
    let found = browser.eval(
        "[document.querySelectorAll('.turn').length, document.querySelector('.turn:last-child .thoughts').textContent.length > 0, secateur.history.length]",
    )?;
    ensure!(found == json!([3, true, 4]), "after the loss in the middle: {found}");
    let (server, _) = back()?;
    // With the settings that it had.
    browser.eval("$('error-retry').click()")?;
    browser.wait(&format!("{WELL} && document.body.dataset.state === 'running'"), STATE, SOON)?;
    browser.eval(STOP_SOON)?;
    browser.wait(&format!("{WELL} && ({ANSWERED})"), STATE, LONG)?;
    ensure!(
        browser.eval("document.querySelectorAll('.turn').length")? == 3,
        "what failed stands beside its second try"
    );

    // With another model in its place.
    drop(server);
    let args = ["serve", "--device", "cpu", "--port", &port, "--served-name", "another", "--drain", "0"];
    let (server, _) = Server::start(&args, "listening on ")?;
    endless(&mut browser, false)?;
    press_start(&mut browser, builtin::EXAMPLE)?;
    let (text, again) = failed(&mut browser)?;
    ensure!(text.contains("another model") && text.contains(r#"but "another""#) && again, "with another: {text}");
    browser.eval("$('error-retry').click()")?;
    browser.wait(&format!("{WELL} && document.querySelectorAll('.turn').length === 4 && ({ANSWERED})"), STATE, LONG)?;
    let name = browser.eval("$('model').textContent + $('adapter').textContent")?;
    ensure!(name.as_str().is_some_and(|n| n.matches("another").count() == 2), "the page names the model {name}");

    // Told to stop, a server ends what runs. That is not what the user's own Stop does.
    endless(&mut browser, true)?;
    press_start(&mut browser, "<think>\n")?;
    browser.wait("document.querySelector('.turn:last-child .thoughts')?.textContent", STATE, SOON)?;
    server.terminate()?;
    let (text, again) = failed(&mut browser)?;
    ensure!(text.contains("shut down before the answer was complete") && again, "after the end of the server: {text}");
    let state = browser.eval("document.querySelector('.turn:last-child .state').textContent")?;
    ensure!(state == "Decoding stopped", "the reply says {state}");
    clean(&mut browser)
}

/// What a server refuses is shown with its reason: a setting that it cannot have, a full queue, a model that is still
/// loading.
pub fn a_server_that_refuses_says_why(site: &Site) -> Result {
    let (_server, address) = serve(&["--sequences", "1", "--queue", "0"])?;
    let mut browser = open(site, &address, "")?;
    browser.eval("$('form').elements.namedItem('positions').value = 'compact'")?;
    press_start(&mut browser, builtin::EXAMPLE)?;
    let (text, again) = failed(&mut browser)?;
    ensure!(text.contains("this server runs all requests with original") && !again, "a setting: {text}");
    ensure!(browser.eval("$('prompt').value")? == builtin::EXAMPLE, "the question is lost");
    browser.eval("$('form').elements.namedItem('positions').value = ''")?;

    // Somebody else has the only place.
    browser.eval(
        "window.other = new AbortController();
         fetch('/v1/completions', { method: 'POST', signal: other.signal, headers: { 'content-type': 'application/json' },
           body: JSON.stringify({ prompt: 'x', max_tokens: 8000, ignore_eos: true, stream: true, secateur: { policy: 'full' } }) })
           .then((reply) => reply.text()).catch(() => undefined);
         (async () => { while ((await (await fetch('/slots')).json()).running === 0); window.occupied = true; })(), 0",
    )?;
    browser.wait("window.occupied", STATE, SOON)?;
    press_start(&mut browser, builtin::EXAMPLE)?;
    let (text, again) = failed(&mut browser)?;
    ensure!(
        text.contains("The server is busy") && text.contains("try again in 1 second") && again,
        "a full queue: {text}"
    );
    browser.eval("other.abort()")?;
    browser.eval("(async () => { while ((await (await fetch('/slots')).json()).running) ; })()")?;
    browser.eval("$('error-retry').click()")?;
    browser.wait(ANSWERED, STATE, LONG)?;
    ensure!(browser.eval("document.querySelectorAll('.turn').length")? == 1, "the refused turn is still there");

    // A model that is still loading is waited for.
    let waited = browser.eval(
        "(async () => {
           const { fetch } = window;
           let refusals = 2;
           const loading = { error: { message: 'the model is still loading', code: 'loading' } };
           window.fetch = (...asked) => (refusals-- > 0 ? Promise.resolve(new Response(JSON.stringify(loading), { status: 503, headers: { 'retry-after': '0.01' } })) : fetch(...asked));
           const said = [];
           const engine = await (await import('/remote.js')).open();
           const { info } = await engine.load({ onProgress: ({ what }) => said.push(what) });
           window.fetch = fetch;
           return [info.model, said];
         })()",
    )?;
    let said = "The server loads its model";
    ensure!(waited == json!(["built-in", [said, said]]), "while it loads: {waited}");
    // But not by an engine that is closed, or whose load is aborted.
    let ended = browser.eval(
        "(async () => {
           const { fetch } = window;
           const loading = { error: { message: 'the model is still loading', code: 'loading' } };
           window.fetch = (_, { signal }) => (signal.aborted ? Promise.reject(signal.reason)
             : Promise.resolve(new Response(JSON.stringify(loading), { status: 503, headers: { 'retry-after': '1000' } })));
           const { open } = await import('/remote.js');
           const [one, other] = [await open(), await open()];
           const abort = new AbortController();
           const later = (end) => () => setTimeout(end, 10);
           const ended = [
             await one.load({ onProgress: later(() => one.close()) }).catch(({ kind }) => kind),
             await other.load({ onProgress: later(() => abort.abort()), signal: abort.signal }).catch(({ name }) => name),
           ];
           window.fetch = fetch;
           return ended;
         })()",
    )?;
    ensure!(ended == json!(["closed", "AbortError"]), "loads that were ended: {ended}");
    // A proxy may refuse a request without saying why.
    let refused = browser.eval(
        "(async () => {
           const { fetch } = window;
           const engine = await (await import('/remote.js')).open();
           const kinds = [];
           for (const [status, text] of [[429, 'null'], [502, '<html>'], [504, '{}'], [500, 'null']]) {
             window.fetch = () => Promise.resolve(new Response(text, { status }));
             kinds.push(await engine.load().catch(({ kind }) => kind));
           }
           window.fetch = fetch;
           return kinds;
         })()",
    )?;
    ensure!(refused == json!(["busy", "busy", "busy", "engine"]), "by a proxy: {refused}");
    clean(&mut browser)
}

/// The engine of a server takes the requests that the engine of the browser takes, and refuses the same ones.
pub fn a_server_is_asked_as_a_browser_is(site: &Site) -> Result {
    let (_server, address) = serve(&[])?;
    let mut browser = open(site, &address, "")?;
    let found = browser.eval(
        "(async () => {
           const { fetch } = window;
           let sent;
           window.fetch = (_, { body }) => {
             sent = JSON.parse(body);
             return Promise.resolve(new Response('{}'));
           };
           const engine = await (await import('/remote.js')).open();
           const requests = [
             { prompt: 'x', system: 'y', think: false, tools: [{ type: 'function' }], chat_template_kwargs: { a: 1 }, greedy: true },
             { prompt: 'x', raw: true, max_thinking_tokens: 3 },
             { prompt: 'x', system: null, seed: undefined },
             { prompt: 'x', raw: true, system: 'y' },
             { ids: [1], think: true, tools: [] },
             { ids: [1], prompt: 'x' },
             { messages: [], raw: true },
             { prompt: 'x', greedy: true, top_k: 5 },
             { prompt: 'x', greedy: false, top_k: 5 },
             { prompt: 'x', answer_format: 'json' },
             { prompt: 'x', nonsense: 1 },
           ];
           const found = [];
           for (const request of requests) {
             sent = undefined;
             const refusal = await engine.resolve(request).then(() => undefined, ({ kind, message }) => `${kind}: ${message}`);
             found.push(sent ?? refusal);
           }
           window.fetch = fetch;
           return found;
         })()",
    )?;
    let user = json!({"role": "user", "content": "x"});
    let expected = json!([
        {"secateur": {"greedy": true}, "enable_thinking": false, "tools": [{"type": "function"}],
         "chat_template_kwargs": {"a": 1}, "messages": [{"role": "system", "content": "y"}, user]},
        {"secateur": {}, "thinking_token_budget": 3, "prompt": "x"},
        {"secateur": {}, "messages": [user]},
        "engine: without the chat template this setting has no effect\n  at: `system`",
        "engine: without the chat template this setting has no effect\n  at: `think`, `tools`",
        "engine: a request has one prompt\n  at: `prompt`, `ids`",
        "engine: only a prompt of text can be taken as it is\n  at: `raw`",
        // The server refuses the first one.
        {"secateur": {"greedy": true}, "top_k": 5, "messages": [user]},
        {"secateur": {"greedy": false}, "top_k": 5, "messages": [user]},
        "engine: a server has no format \"json\": an object with the type json_object, json_schema, regex, choice is expected\n  at: `answer_format`",
        "engine: a request to a server has no field `nonsense`",
    ]);
    ensure!(found == expected, "{found}");
    clean(&mut browser)
}

pub fn everybody_can_use_the_page_of_a_server(site: &Site) -> Result {
    let Some(rules) = rules_for_everybody()? else { return Ok(()) };
    let (server, address) = serve(&["--api-key", "secret"])?;
    let mut browser = open(site, &address, "?budget=ratio:0.5")?;
    check_for_everybody(&mut browser, &rules, "the question for a key")?;
    browser.eval("$('key').value = 'secret'; $('key-form').querySelector('[type=submit]').click()")?;
    browser.wait(LOADED, STATE, SOON)?;
    check_for_everybody(&mut browser, &rules, "the welcome")?;
    browser.eval("$('model-button').click()")?;
    check_for_everybody(&mut browser, &rules, "the model")?;
    browser.eval("$('model-close').click()")?;
    ask(&mut browser, builtin::EXAMPLE)?;
    drop(server);
    press_start(&mut browser, builtin::EXAMPLE)?;
    failed(&mut browser)?;
    check_for_everybody(&mut browser, &rules, "an error")
}
