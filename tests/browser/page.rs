//! The page and its module, with a scripted engine: fixed events, so that what is drawn can be tested exactly.
use std::{env, fs, path::Path};

use serde_json::{Value, json};

use super::{LOADED, READY, ROOT, Result, SOON, STATE, Site, clean, press_start, screenshot};
use crate::devtools::Browser;
use crate::server;

/// The answer of the page's latest reply has come.
const ANSWERED: &str = "document.body.dataset.state === 'loaded' && secateur.replies.at(-1)?.json";

/// The scripted page with its model loaded. The "model" only needs a config and weights that exist.
fn scripted(site: &Site) -> Result<Browser> {
    let mut browser = site.open("/scripted/?policy=random&raw=true")?;
    browser.wait(READY, STATE, SOON)?;
    load_files(&mut browser)?;
    Ok(browser)
}

/// Gives these files to the input of the page.
fn choose_files(browser: &mut Browser, files: &str) -> Result {
    browser.eval(&format!(
        "window.transfer = new DataTransfer();
         for (const [name, text] of Object.entries({files})) transfer.items.add(new File([text], name));
         $('files').files = transfer.files;
         $('files').dispatchEvent(new Event('change'))"
    ))?;
    Ok(())
}

fn load_files(browser: &mut Browser) -> Result {
    choose_files(browser, "{'config.json': '{}', 'model.safetensors': 'x', 'notes.txt': 'x'}")?;
    browser.wait(LOADED, STATE, SOON)
}

fn load_builtin(browser: &mut Browser) -> Result {
    browser.eval("$('builtin').click()")?;
    browser.wait(LOADED, STATE, SOON)
}

fn ask(browser: &mut Browser, prompt: &str) -> Result {
    press_start(browser, prompt)?;
    browser.wait(ANSWERED, STATE, SOON)
}

/// What the engine was asked, as its refusal repeats it.
fn refused(browser: &mut Browser) -> Result<Value> {
    press_start(browser, "refuse")?;
    browser.wait("!$('error').hidden", STATE, SOON)?;
    let text = browser.eval("$('error-text').textContent.split('options: ')[1]")?;
    serde_json::from_str(text.as_str().unwrap_or("")).map_err(|e| format!("{text}: {e}"))
}

pub fn the_package_has_the_version_of_the_crate(_: &Site) -> Result {
    for file in ["package.json", "package-lock.json"] {
        let path = Path::new(ROOT).join("web").join(file);
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let package: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        ensure!(package["version"] == env!("CARGO_PKG_VERSION"), "web/{file} has the version {}", package["version"]);
        // Addresses of a registry would tie the lock file to it.
        ensure!(!text.contains("\"resolved\""), "web/{file} names a registry");
    }
    Ok(())
}

pub fn events_become_text_and_strikes(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    ask(&mut browser, "go")?;
    let steps = browser.eval(
        "[...document.querySelectorAll('.thoughts .step')].map((step) => [...step.childNodes].map((n) => [n.nodeName, n.textContent]))",
    )?;
    let expected = json!([[["DEL", "Größe "], ["#text", "or "]], [["DEL", "水"], ["#text", "? "]]]);
    ensure!(steps == expected, "the thinking: {steps}");
    let shades = browser.eval(
        "[...document.querySelectorAll('.step')].map((step) => Number(step.style.getPropertyValue('--shade')))",
    )?;
    ensure!(shades == json!([0, 1]), "the shades: {shades}");
    let strike = browser.eval("getComputedStyle(document.querySelector('del.cut')).textDecorationLine")?;
    ensure!(strike == "line-through", "pruned text is not struck through: {strike}");
    let answer = browser.eval("document.querySelector('.answer').textContent")?;
    ensure!(answer == "<b>42</b>\u{fffd}", "the answer: {answer}");
    let texts = [
        (".thinking summary", "Thought: 5 tokens, 1 probe, 3 cut"),
        (".reply h3", "random, share:0.5"),
        (".state", "7 tokens · 12.5 tokens/s"),
        (".notes", "it beginsit goes on"),
        (".facts", "cached9of 12 tokensKV cache9.00 KiBfull: 12.0 KiBcut60.0 %3 in 1 probespeed12.5tokens/s"),
        ("#chart .legend", "cachedif nothing were cutcontext window: 12"),
        ("#chart > p:last-child", "Far above: limit of this device's buffers 1,000,000 tokens."),
    ];
    for (what, expected) in texts {
        let found = browser.eval(&format!("document.querySelector('{what}').textContent"))?;
        ensure!(found == expected, "{what}: {found}");
    }
    ensure!(browser.eval("$('policy').value")? == "random", "the address did not choose the policy");
    // Each step says why, on hover and on focus.
    browser.eval("document.querySelector('.thoughts').focus()")?;
    let press =
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))";
    for (why, times) in [
        (
            "Step 1. Probe 1 cut 1 of 2 tokens: its importance was 0.250, the lowest of 2 steps; the budget was share:0.5.",
            1,
        ),
        (
            "Step 2. Probe 1 cut 2 of 3 tokens: its importance was 0.500, the 2nd lowest of 2 steps; the budget was share:0.5.",
            1,
        ),
    ] {
        for _ in 0..times {
            browser.eval(press)?;
        }
        let found = browser
            .eval("$('tip').hidden ? '' : $(document.activeElement.getAttribute('aria-describedby')).textContent")?;
        ensure!(found == why, "the reason: {found}");
    }
    let map = browser.eval("(({width, height}) => [width, height])(document.querySelector('#map canvas'))")?;
    ensure!(map == json!([2, 2]), "the map is {map}");
    for scheme in ["light", "dark"] {
        screenshot(&mut browser, "scripted", scheme, 1360)?;
    }
    for width in [360, 390] {
        screenshot(&mut browser, "scripted-narrow", "light", width)?;
        let found = browser.eval("document.documentElement.scrollWidth")?;
        ensure!(
            found.as_u64().is_some_and(|w| w <= u64::from(width)),
            "a phone of {width} px would scroll: {found} px wide"
        );
    }
    clean(&mut browser)
}

pub fn a_chat_continues_without_thoughts(site: &Site) -> Result {
    let mut browser = site.open("/scripted/")?;
    browser.wait(READY, STATE, SOON)?;
    browser.eval("$('form').elements.namedItem('system').value = 'Be brief.'")?;
    // Without a model, Send loads the built-in one.
    ask(&mut browser, "go")?;
    let asked = refused(&mut browser)?;
    let expected = json!([
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "<b>42</b>"},
        {"role": "user", "content": "refuse"},
    ]);
    ensure!(asked["messages"] == expected && asked["system"] == "Be brief.", "the second turn asked {asked}");
    let turns = browser.eval("[...document.querySelectorAll('.turn .thinking')].map((thinking) => thinking.open)")?;
    ensure!(turns == json!([false, true]) || turns == json!([false]), "the thinking of turns is open: {turns}");
    browser.eval("$('reset').click()")?;
    ensure!(browser.eval("secateur.history.length + $('turns').children.length")? == 0, "a new chat has a history");
    let asked = refused(&mut browser)?;
    ensure!(asked["messages"].as_array().is_some_and(|m| m.len() == 1), "a new chat asked {asked}");
    clean(&mut browser)
}

pub fn two_policies_stand_side_by_side(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    browser.eval("$('compare').value = 'full'")?;
    press_start(&mut browser, "go")?;
    browser.wait(&format!("secateur.replies.length === 2 && ({ANSWERED})"), STATE, SOON)?;
    let titles = browser.eval("[...document.querySelectorAll('.reply h3')].map((title) => title.textContent)")?;
    ensure!(titles == json!(["random, share:0.5", "full cache"]), "the replies: {titles}");
    let tops =
        browser.eval("[...document.querySelectorAll('.reply')].map((reply) => reply.getBoundingClientRect().top)")?;
    ensure!(tops[0] == tops[1], "not side by side: {tops}");
    let cuts = browser
        .eval("[...document.querySelectorAll('.reply')].map((reply) => reply.querySelectorAll('del').length)")?;
    ensure!(cuts == json!([2, 0]), "the cuts: {cuts}");
    let lines = browser
        .eval("['.held', '.other', '.full'].map((line) => document.querySelectorAll(`#chart path${line}`).length)")?;
    ensure!(lines == json!([1, 1, 1]), "the lines of the chart: {lines}");
    ensure!(browser.eval("secateur.history.length")? == 2, "one question has one answer in the conversation");
    // Both have the seed that was drawn for the turn.
    browser.eval("$('compare').value = 'full'")?;
    let asked = refused(&mut browser)?;
    ensure!(asked["seed"] == 5, "a comparison asked {asked}");
    screenshot(&mut browser, "compare", "light", 1360)?;
    clean(&mut browser)
}

pub fn stop_ends_a_run(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    press_start(&mut browser, "endless")?;
    browser.wait("document.querySelector('.tail')?.textContent.includes('.....')", STATE, SOON)?;
    ensure!(
        browser.eval("$('start').disabled && !$('stop').disabled")? == true,
        "while it runs, only Stop can be pressed"
    );
    browser.eval("$('stop').click()")?;
    browser.wait(ANSWERED, STATE, SOON)?;
    let state = browser.eval("document.querySelector('.state').textContent")?;
    ensure!(state.as_str().unwrap_or("").ends_with("you stopped it"), "the state: {state}");
    ensure!(browser.eval("!$('start').disabled && $('stop').disabled")? == true, "after it, only Send can be pressed");
    // Before the engine has said what the request comes to, there is no run yet: there will be none, and the question
    // is back.
    browser.eval(
        "(({ model }) => {
           model.resolve = (request) => new Promise((settle) => (window.settle = () => {
             delete model.resolve;
             settle(model.resolve(request));
           }));
         })(secateur)",
    )?;
    press_start(&mut browser, "endless")?;
    browser.wait("window.settle && !$('stop').disabled", STATE, SOON)?;
    browser.eval("$('stop').click(); settle()")?;
    browser.wait(LOADED, STATE, SOON)?;
    let found = browser.eval("[document.querySelectorAll('.turn').length, $('prompt').value, $('error').hidden]")?;
    ensure!(found == json!([1, "endless", true]), "stopped before it ran: {found}");
    // A hidden page has no frames; what comes meanwhile is drawn by a timer.
    browser
        .eval("Object.defineProperty(document, 'hidden', {get: () => true}); window.requestAnimationFrame = () => 0")?;
    ask(&mut browser, "go")?;
    browser.wait("document.querySelector('.turn:last-child .answer').textContent.includes('42')", STATE, SOON)?;
    clean(&mut browser)
}

pub fn errors_are_shown_and_survived(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    let asked = refused(&mut browser)?;
    let expected = json!({"attention": "layers", "policy": "random", "raw": true, "prompt": "refuse"});
    ensure!(asked == expected, "the form sent {asked}");
    let title = browser.eval("$('error-title').textContent")?;
    ensure!(title == "Decoding stopped", "the title of the error: {title}");
    ask(&mut browser, "go")?;
    ensure!(browser.eval("$('error').hidden")? == true, "a good run leaves the old error standing");
    clean(&mut browser)?;

    choose_files(&mut browser, "{'notes.txt': 'x'}")?;
    browser.wait("$('error-text').textContent.includes('these files have no weights')", STATE, SOON)?;
    ensure!(browser.eval("secateur.model === undefined")? == true, "a model that failed to load is in use");
    ask(&mut browser, "go")?;
    ensure!(browser.eval("$('error').hidden")? == true, "Send without a model must use the built-in one");
    browser.open(&site.url("/scripted/?model=/nowhere/"))?;
    browser.wait("$('error-text').textContent.includes('the model has no config.json')", STATE, SOON)?;
    clean(&mut browser)
}

/// What a run had done before it failed can be looked at.
pub fn a_run_that_fails_keeps_its_trace(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    press_start(&mut browser, "fail")?;
    browser.wait("!$('error').hidden", STATE, SOON)?;
    let found = browser.eval("[secateur.replies[0].json, document.querySelector('.actions').hidden, $('error-text').textContent, secateur.history.length]")?;
    ensure!(found == json!(["{\"trace\": \"of what failed\"}", false, "the device is gone", 0]), "after it: {found}");
    let state = browser.eval("document.querySelector('.state').textContent")?;
    ensure!(state == "Decoding stopped", "the reply that failed says {state}");
    clean(&mut browser)
}

/// A reload shows what was there, and the conversation goes on, until a new one is begun.
pub fn a_conversation_survives_a_reload(site: &Site) -> Result {
    // Of each reply: its title, thoughts, cuts, answer, notes and state, and whether it has a trace.
    const SHOWN: &str = "JSON.stringify([...document.querySelectorAll('.turn')].map((turn) => [turn.querySelector('.question').textContent,
        ...[...turn.querySelectorAll('.reply')].map((reply) => [...['h3', '.thinking summary', '.thoughts', '.answer', '.notes', '.state'].map(
            (part) => reply.querySelector(part).textContent), [...reply.querySelectorAll('del.cut')].map((cut) => cut.textContent).join(''),
            reply.querySelector('.actions').hidden])]))";
    let mut browser = scripted(site)?;
    browser.eval("$('compare').value = 'full'")?;
    press_start(&mut browser, "go")?;
    browser.wait(&format!("secateur.replies.length === 2 && ({ANSWERED})"), STATE, SOON)?;
    browser.eval("$('compare').value = ''")?;
    ask(&mut browser, "go on")?;
    let before = browser.eval(SHOWN)?;
    ensure!(before.as_str().is_some_and(|text| text.contains("Größe") && text.contains("full cache")), "{before}");
    let url = site.url("/scripted/?policy=random");
    browser.open(&url)?;
    browser.wait(READY, STATE, SOON)?;
    let after = browser.eval(SHOWN)?;
    ensure!(before == after, "before the reload {before}, after it {after}");
    ensure!(
        browser.eval("$('welcome').hidden && !$('reset').hidden")? == true,
        "the welcome is shown above a conversation"
    );
    browser.eval("document.querySelector('.actions button').click()")?;
    browser.wait("$('report-dialog').open", STATE, SOON)?;
    browser.eval("$('report-close').click()")?;
    browser.eval("$('builtin').click()")?;
    browser.wait(LOADED, STATE, SOON)?;
    let asked = refused(&mut browser)?;
    let expected: Vec<Value> = ["go", "<b>42</b>", "go on", "<b>42</b>", "refuse"].map(Value::from).to_vec();
    let contents: Vec<Value> =
        asked["messages"].as_array().into_iter().flatten().map(|m| m["content"].clone()).collect();
    ensure!(contents == expected, "the conversation went on with {asked}");
    // Traces that have no room are left out, the oldest first; the text stays.
    let kept = browser.eval(
        "import('/keep.js').then(({ keepConversation, keptConversation }) => {
           const turn = (question) => ({ question, replies: [{ json: 'x'.repeat(3e6) }] });
           keepConversation({ history: [], turns: [turn('old'), turn('new')] });
           return keptConversation().turns.map(({ question, replies }) => [question, replies[0].json?.length ?? 0]);
         })",
    )?;
    ensure!(kept == json!([["old", 0], ["new", 3_000_000]]), "with little room, this is kept: {kept}");
    browser.eval("$('reset').click()")?;
    browser.open(&url)?;
    browser.wait(READY, STATE, SOON)?;
    let found =
        browser.eval("[document.querySelectorAll('.turn').length, $('welcome').hidden, secateur.history.length]")?;
    ensure!(found == json!([0, false, 0]), "after a new chat: {found}");
    clean(&mut browser)
}

/// The dialog lists the models that were fetched; one button loads such a model, the other removes it.
pub fn kept_models_are_listed(site: &Site) -> Result {
    const MODEL: &str = "/tests/golden/qwen2-f16/";
    const LIST: &str = "[...$('kept-list').children].map((item) => item.textContent)";
    let mut browser = site.open(&format!("/scripted/?model={MODEL}"))?;
    browser.wait(LOADED, STATE, SOON)?;
    browser.open(&site.url("/scripted/"))?;
    browser.wait(READY, STATE, SOON)?;
    browser.eval("$('model-button').click()")?;
    browser.wait("!$('kept').hidden", LIST, SOON)?;
    let found = browser.eval(LIST)?;
    let address = site.url(MODEL);
    let shown = found[0].as_str().unwrap_or("");
    ensure!(
        shown.starts_with(address.trim_start_matches("http://")) && shown.ends_with(" MB Load Remove"),
        "the list: {found}"
    );
    ensure!(found[1].is_null(), "the list: {found}");
    server::requests();
    browser.eval("$('kept-list').querySelector('button').click()")?;
    browser.wait(LOADED, STATE, SOON)?;
    let bodies: Vec<_> = server::requests()
        .into_iter()
        .filter(|r| r.path.ends_with(".safetensors") && r.method == "GET" && r.start.is_none())
        .collect();
    ensure!(bodies.is_empty(), "a kept model was fetched again: {bodies:?}");
    browser.eval("$('model-button').click()")?;
    browser.wait("$('kept-list').children.length === 1", LIST, SOON)?;
    browser.eval("$('kept-list').querySelector('button:last-of-type').click()")?;
    browser.wait("$('kept').hidden", LIST, SOON)?;
    ensure!(browser.eval("$('kept-list').children.length")? == 0, "a removed model is still listed");
    clean(&mut browser)
}

/// After a crash and after the loss of the GPU there is a new engine with the same model, and the next question works.
pub fn an_engine_that_fails_is_replaced(site: &Site) -> Result {
    for (prompt, title) in [("crash", "The engine crashed"), ("lose", "The GPU was lost")] {
        let mut browser = scripted(site)?;
        browser.eval("window.first = secateur.engine")?;
        press_start(&mut browser, prompt)?;
        if prompt == "lose" {
            browser.wait("secateur.replies[0]?.notes.textContent === 'a device is open'", STATE, SOON)?;
            browser.crash_gpu()?;
        }
        browser.wait(&format!("secateur.engine && secateur.engine !== first && {LOADED}"), STATE, SOON)?;
        let shown = browser.eval("$('error').hidden ? '' : $('error').innerText")?;
        let told = shown.as_str().is_some_and(|t| t.contains(title) && t.contains("loaded again"));
        ensure!(told, "after `{prompt}`: {shown}");
        let state = browser.eval("document.querySelector('.state').textContent")?;
        ensure!(state == title, "the reply that failed says {state}");
        ask(&mut browser, "go")?;
        ensure!(browser.eval("$('error').hidden")? == true, "after `{prompt}` the next question fails");
        browser.take_problems()?; // the crash itself
    }
    Ok(())
}

pub fn a_report_opens_in_a_sandbox(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    browser.eval("$('compare').value = 'full'")?;
    press_start(&mut browser, "go")?;
    browser.wait(&format!("secateur.replies.length === 2 && ({ANSWERED})"), STATE, SOON)?;
    browser.eval("document.querySelector('.actions button').click()")?;
    browser.wait("$('report-dialog').open", STATE, SOON)?;
    let mut names = Value::Null;
    for _ in 0..50 {
        browser.wait("true", "''", SOON)?;
        names = browser.eval_in_frame("document.getElementById('names')?.textContent ?? ''").unwrap_or_default();
        if names.as_str().is_some_and(|n| !n.is_empty()) {
            break;
        }
    }
    ensure!(names == "random, share:0.5 and full cache", "the report shows {names}");
    let origin = browser.eval_in_frame("origin")?;
    ensure!(origin == "null", "the report has the origin {origin}");
    browser.eval("$('report-close').click()")?;
    ensure!(browser.eval("$('report-dialog').open")? == false, "the report stays open");
    clean(&mut browser)?;
    // In a frame without a sandbox, a report would have the rights of the page. Another site may make such a frame.
    browser.eval(
        "globalThis.taken = false;
         const frame = document.createElement('iframe');
         frame.src = '/report.html';
         frame.onload = () => {
           frame.contentWindow.postMessage('<script>parent.taken = true</script>', '*');
           setTimeout(() => { globalThis.tried = true; }, 500);
         };
         document.body.append(frame);",
    )?;
    browser.wait("globalThis.tried === true", "''", SOON)?;
    ensure!(browser.eval("taken")? == false, "a report ran with the rights of the page");
    let problems = browser.take_problems()?;
    ensure!(problems.iter().all(|p| p.contains("sandboxed frame only")), "{problems:?}");
    Ok(())
}

/// Whether the libraries of npm are there; a reason is printed where they are not. CI must have them.
pub fn has_npm(file: &str) -> Result<bool> {
    if Path::new(ROOT).join("web").join(file).exists() {
        return Ok(true);
    }
    ensure!(env::var_os("CI").is_none(), "web/{file} is missing: run ./x wasm with npm installed");
    println!("skipped: web/{file} is missing, because npm is not installed");
    Ok(false)
}

pub fn markdown_is_set_and_loads_nothing(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    ask(&mut browser, "markdown")?;
    if has_npm("vendor/marked.js")? {
        browser.wait("document.querySelector('.answer .katex')", STATE, SOON)?;
        let found = browser.eval(
            "['strong', 'a[rel~=noopener]', 'img', '[style*=color]'].map((s) => document.querySelectorAll(`.answer ${s}`).length)",
        )?;
        ensure!(found == json!([1, 1, 0, 0]), "the answer has {found}");
    }
    ensure!(browser.eval("typeof window.hacked")? == "undefined", "text of an answer was run");
    let hosts =
        browser.eval("performance.getEntriesByType('resource').filter((r) => !r.name.startsWith(origin)).length")?;
    ensure!(hosts == 0, "the page loads from other hosts");
    clean(&mut browser)
}

/// Even if text of an answer became elements, nothing of it would run, and nothing would be sent to another host. The
/// worker may fetch models, from hosts that are named by `https:`, and can do nothing else.
pub fn the_page_asks_nobody_else(site: &Site) -> Result {
    let mut browser = scripted(site)?;
    ask(&mut browser, "go")?;
    let other = server::serve(0, |_| vec![Path::new(ROOT).join("web/style.css")]).map_err(|e| e.to_string())?;
    let other = format!("http://127.0.0.1:{other}/leak");
    server::requests();
    browser.eval(&format!(
        "globalThis.seen = [];
         document.addEventListener('securitypolicyviolation', ({{ effectiveDirective }}) => seen.push(effectiveDirective));
         const answer = document.querySelector('.answer');
         const add = (html) => answer.insertAdjacentHTML('beforeend', html);
         add('<img src=\"/missing\" onerror=\"window.hacked = 1\">');
         add('<img src=\"{other}\">');
         add('<link rel=\"stylesheet\" href=\"{other}\">');
         add('<p style=\"background: url({other})\">styled</p>');
         add('<iframe src=\"{other}\"></iframe>');
         add('<base href=\"{other}\">');
         for (const [key, value] of [['textContent', 'window.hacked = 2'], ['src', '{other}']]) {{
           answer.append(Object.assign(document.createElement('script'), {{ [key]: value }}));
         }}
         setTimeout('window.hacked = 3');
         fetch('{other}').catch(() => seen.push('fetch failed'));
         navigator.sendBeacon('{other}');
         0",
    ))?;
    // DevTools may call eval, so a timer has the text of a script.
    let expected = json!([
        "base-uri",
        "connect-src",
        "fetch failed",
        "frame-src",
        "img-src",
        "script-src",
        "script-src-attr",
        "script-src-elem",
        "style-src-attr",
        "style-src-elem",
    ]);
    let found = "[...new Set(seen)].sort()";
    browser.wait(&format!("{found}.length >= 10"), found, SOON)?;
    let found = browser.eval(found)?;
    ensure!(found == expected, "the page refused {found}");
    let worker = browser.eval_in_worker(&format!(
        "(async () => {{
           const refused = [];
           addEventListener('securitypolicyviolation', ({{ effectiveDirective }}) => refused.push(effectiveDirective));
           await fetch('http://example.org/').catch(() => refused.push('fetch failed'));
           await import('{other}').catch(() => refused.push('import failed'));
           setTimeout('globalThis.hacked = 1');
           await new Promise((resolve) => setTimeout(resolve, 100));
           return [typeof globalThis.hacked, [...new Set(refused)].sort()];
         }})()"
    ))?;
    let expected =
        json!(["undefined", ["connect-src", "fetch failed", "import failed", "script-src", "script-src-elem"]]);
    ensure!(worker == expected, "the worker refused {worker}");
    ensure!(browser.eval("typeof window.hacked")? == "undefined", "text of an answer was run");
    let leaks: Vec<_> = server::requests().into_iter().filter(|r| r.path.starts_with("/leak")).collect();
    ensure!(leaks.is_empty(), "another host was asked: {leaks:?}");
    Ok(())
}

/// web/FILES names every file that the page loads, and each of them exists.
pub fn the_page_is_made_of_the_files_that_are_listed(site: &Site) -> Result {
    let web = Path::new(ROOT).join("web");
    let list = fs::read_to_string(web.join("FILES")).map_err(|e| e.to_string())?;
    let listed: Vec<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
    for name in &listed {
        let optional = *name == "vendor/" && env::var_os("CI").is_none();
        ensure!(optional || web.join(name).exists(), "web/{name} is listed and does not exist");
    }
    server::requests();
    let mut browser = scripted(site)?;
    ask(&mut browser, "markdown")?;
    browser.eval("document.querySelector('.actions button').click()")?;
    browser.wait("$('report-dialog').open", STATE, SOON)?;
    load_builtin(&mut browser)?;
    let asked = server::requests();
    ensure!(asked.len() > 10, "the page asked for {asked:?}");
    let asked = asked.iter().filter_map(|r| r.path.strip_prefix("/scripted/"));
    let is_listed = |path: &str| {
        path.is_empty() || listed.iter().any(|name| path == *name || (name.ends_with('/') && path.starts_with(name)))
    };
    // The browser asks for maps of the source, and so may the page for files that npm has not installed.
    let others: Vec<&str> = asked.filter(|path| !is_listed(path)).collect();
    ensure!(others.is_empty(), "web/FILES does not list {others:?}");
    clean(&mut browser)
}

/// secateur.js as a program uses it.
pub fn the_module_does_as_it_documents(site: &Site) -> Result {
    let mut browser = site.open("/scripted/")?;
    browser.wait(READY, STATE, SOON)?;
    browser.eval(
        "import('./secateur.js').then(async ({ load, open, SecateurError }) => {
           const found = {};
           const model = await load({ context: 7, weights: 'q4' });
           found.options = JSON.parse(model.info.options);
           found.types = [];
           for await (const { type } of model.generate({ prompt: 'go' })) found.types.push(type);
           // Leaving the loop ends the run, and the next one begins after it.
           for await (const { type } of model.generate({ prompt: 'endless' })) if (type === 'note') break;
           const both = await Promise.all(['go', 'go'].map(async (prompt) => {
             let text = '';
             for await (const event of model.generate({ prompt })) text += event.type === 'token' && !event.thinking ? event.text : '';
             return text;
           }));
           found.both = both;
           const abort = new AbortController();
           try {
             for await (const { type } of model.generate({ prompt: 'endless' }, { signal: abort.signal })) if (type === 'note') abort.abort();
           } catch (error) { found.aborted = error.name; }
           const messages = [{ role: 'user', content: 'go' }];
           const { choices, usage } = await model.chat.completions.create({ model: 'any', messages, max_tokens: 3 });
           found.completion = [choices[0].message.content, choices[0].message.reasoning_content, choices[0].finish_reason, usage.total_tokens];
           found.chunks = [];
           for await (const chunk of await model.chat.completions.create({ messages, stream: true, stream_options: { include_usage: true } })) {
             found.chunks.push(chunk.choices[0] ? [Object.keys(chunk.choices[0].delta).join(), chunk.choices[0].finish_reason] : chunk.usage.prompt_tokens);
           }
           try { await model.chat.completions.create({ messages: [{ role: 'user', content: 'refuse' }] }); }
           catch (error) { found.refused = [error instanceof SecateurError, error.kind, error.title]; }
           found.settings = (await model.resolve({ prompt: 'x' })).settings.window;
           model.close();
           try { await model.resolve({ prompt: 'x' }); } catch (error) { found.closed = error.kind; }
           const engine = await open();
           found.failed = (await engine.conformance()).failed;
           try { await engine.resolve({ prompt: 'x' }); } catch (error) { found.empty = error.message.split('\\n')[0]; }
           engine.close();
           window.found = found;
         }).catch((error) => { window.found = String(error.stack); }), 0",
    )?;
    browser.wait("window.found", "''", SOON)?;
    let found = browser.eval("window.found")?;
    let tokens = ["token"; 5];
    let mut types = vec!["start"];
    types.extend(tokens);
    types.extend(["probe", "note", "token", "token", "done", "trace"]);
    let (thought, answer) = (json!(["reasoning_content", null]), json!(["content", null]));
    let mut chunks = vec![json!(["role,content", null])];
    chunks.extend(vec![thought; 4]);
    chunks.extend([answer.clone(), answer, json!(["", "stop"]), json!(5)]);
    let expected = json!({
        "options": {"context": 7, "weights": "q4"},
        "types": types,
        "both": ["<b>42</b>", "<b>42</b>"],
        "aborted": "AbortError",
        "completion": ["<b>42</b>", "Größe or 水? ", "stop", 12],
        "chunks": chunks,
        "refused": [true, "engine", "Decoding stopped"],
        "settings": 16,
        "closed": "closed",
        "failed": 1,
        "empty": "no model is loaded",
    });
    for (name, value) in expected.as_object().into_iter().flatten() {
        ensure!(found[name] == *value, "{name}: {}, expected {value}; all: {found}", found[name]);
    }
    clean(&mut browser)
}

pub fn a_model_suggests_a_prompt(site: &Site) -> Result {
    let mut browser = site.open("/scripted/")?;
    browser.wait(READY, STATE, SOON)?;
    load_builtin(&mut browser)?;
    let found = browser.eval("$('prompt').value")?;
    ensure!(found == "suggested", "with the built-in model: {found}");
    load_files(&mut browser)?;
    let found = browser.eval("$('prompt').value")?;
    ensure!(found == "", "with a model that suggests nothing: {found}");
    browser.eval("$('prompt').value = 'my own'")?;
    load_builtin(&mut browser)?;
    let found = browser.eval("$('prompt').value")?;
    ensure!(found == "my own", "the prompt of the user became {found}");
    clean(&mut browser)
}

/// Fields that the user has not filled in are not sent. The page shows what the engine takes for them.
pub fn the_engine_decides_what_the_form_leaves_open(site: &Site) -> Result {
    const PLACEHOLDERS: &str = "['budget', 'window', 'probe_every', 'max_new_tokens', 'temperature']
        .map((name) => $('form').elements.namedItem(name).placeholder)";
    const POLICIES: &str = "[$('policy').value, ...[...$('policy').options].map((option) => option.value)]";
    let mut browser = site.open("/scripted/")?;
    browser.wait(READY, STATE, SOON)?;
    let found = browser.eval(PLACEHOLDERS)?;
    ensure!(found == json!(["", "", "", "", ""]), "without a model the fields show {found}");
    for (window, load) in [("16", load_builtin as fn(&mut Browser) -> Result), ("64", load_files)] {
        load(&mut browser)?;
        let found = browser.eval(PLACEHOLDERS)?;
        ensure!(found == json!(["share:0.5", window, "7", "9", "0.6"]), "the fields show {found}");
    }
    let found = browser.eval("$('policy').options[0].textContent")?;
    ensure!(found == "full (default)", "the policy that the engine takes: {found}");
    let found = browser.eval(POLICIES)?;
    ensure!(found == json!(["", "", "think-clearly", "random", "full"]), "the policies: {found}");
    let sent = refused(&mut browser)?;
    let expected = json!({"attention": "layers", "messages": [{"role": "user", "content": "refuse"}]});
    ensure!(sent == expected, "the untouched form sent {sent}");
    // Whether a value is good is for the engine to say.
    browser.open(&site.url("/scripted/?policy=my-own&budget=score-sum:x&weights=q4&kv=f32&context=9"))?;
    browser.wait(READY, STATE, SOON)?;
    load_builtin(&mut browser)?;
    let found = browser.eval("secateur.model.info.options")?;
    ensure!(found == r#"{"kv":"f32","weights":"q4","context":9}"#, "the model was loaded with {found}");
    let found = browser.eval(POLICIES)?;
    ensure!(found == json!(["my-own", "", "think-clearly", "random", "full", "my-own"]), "the policies: {found}");
    let sent = refused(&mut browser)?;
    ensure!(sent["policy"] == "my-own" && sent["budget"] == "score-sum:x", "the form sent {sent}");
    clean(&mut browser)
}

/// No finding of axe-core in any state of the page, in light and in dark.
/// The rules of axe-core for a page that everybody can use; `None` where npm is not installed, with the reason printed.
pub fn rules_for_everybody() -> Result<Option<String>> {
    const AXE: &str = "node_modules/axe-core/axe.min.js";
    if !has_npm(AXE)? {
        return Ok(None);
    }
    fs::read_to_string(Path::new(ROOT).join("web").join(AXE)).map(Some).map_err(|e| e.to_string())
}

/// Checks the page, as it is now, by these rules.
pub fn check_for_everybody(browser: &mut Browser, rules: &str, what: &str) -> Result {
    browser.eval(&format!("if (!window.axe) {{ {rules} }} 0"))?;
    for scheme in ["light", "dark"] {
        browser.media(scheme, false)?;
        let found = browser.eval(
            "axe.run(document, {resultTypes: ['violations']}).then(({violations}) =>
               violations.map(({id, help, nodes}) => `${id}: ${help}: ${nodes.map((n) => n.html.slice(0, 120)).join(' | ')}`).join('\\n'))",
        )?;
        ensure!(found == "", "{what}, {scheme}:\n{}", found.as_str().unwrap_or(""));
    }
    Ok(())
}

pub fn everybody_can_use_the_page(site: &Site) -> Result {
    let Some(rules) = rules_for_everybody()? else { return Ok(()) };
    let mut browser = site.open("/scripted/?policy=random")?;
    browser.wait(READY, STATE, SOON)?;
    let check = |browser: &mut Browser, what: &str| check_for_everybody(browser, &rules, what);
    check(&mut browser, "before a model is loaded")?;
    browser.eval("$('model-button').click()")?;
    check(&mut browser, "the choice of a model")?;
    browser.eval("$('model-close').click(); $('settings').open = true; $('compare').value = 'full'")?;
    load_builtin(&mut browser)?;
    browser.eval("$('compare').value = 'full'")?;
    press_start(&mut browser, "go")?;
    browser.wait(&format!("secateur.replies.length === 2 && ({ANSWERED})"), STATE, SOON)?;
    browser.eval("document.querySelector('.step').focus()")?;
    check(&mut browser, "a comparison")?;
    press_start(&mut browser, "refuse")?;
    browser.wait("!$('error').hidden", STATE, SOON)?;
    check(&mut browser, "an error")?;
    // The test of the test: a picture without a text must be found.
    browser.eval("document.body.append(document.createElement('button'))")?;
    ensure!(check(&mut browser, "a button without a name").is_err(), "axe-core overlooks a button without a name");
    clean(&mut browser)
}

pub fn a_browser_without_webgpu_is_told_what_to_do(site: &Site) -> Result {
    let mut browser = Browser::launch(&site.chromium, false)?;
    browser.open(&site.url("/scripted/"))?;
    browser.wait("document.body.dataset.state === 'no-engine'", STATE, SOON)?;
    let text = browser.eval("$('error').innerText")?;
    ensure!(text.as_str().is_some_and(|t| t.contains("No WebGPU") && t.contains("Use a current Chrome")), "{text}");
    ensure!(browser.eval("$('start').disabled && $('conformance').disabled")? == true, "nothing can run here");
    screenshot(&mut browser, "no-webgpu", "light", 1000)
}
