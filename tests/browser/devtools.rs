//! Drives a Chromium over its DevTools protocol. The protocol runs over pipes (`--remote-debugging-pipe`: JSON, each
//! message ended by a NUL byte, in on descriptor 3 and out on 4), so it needs no WebSocket, no port and no Node.
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use base64::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest wait for the answer to one command.
const ANSWER: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, String>;

/// A headless browser with one tab.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    events: VecDeque<Value>,
    last_id: u64,
    /// The tab's session.
    tab: String,
    /// Sessions of the tab's workers, alive or not.
    workers: Vec<String>,
    /// Sessions of frames that run in a process of their own.
    frames: Vec<String>,
    problems: Vec<String>,
    /// The browser's profile: fresh, and gone with it.
    _profile: TempDir,
}

impl Browser {
    /// Starts `program` with WebGPU switched on or off.
    pub fn launch(program: &str, webgpu: bool) -> Result<Self> {
        let profile = TempDir::new().map_err(|e| format!("no folder for the browser's profile: {e}"))?;
        // The shell moves the pipes to where Chromium expects them; Rust's Command can only set descriptors 0 to 2.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#, "sh", program])
            .args(["--headless", "--remote-debugging-pipe", "--no-first-run", "--no-sandbox", "--disable-quic"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(if webgpu { "--enable-unsafe-webgpu" } else { "--disable-features=WebGPU,WebGPUService" })
            .arg("--window-size=1000,1100")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{program} did not start: {e}"))?;
        let commands = process.stdin.take().expect("piped above");
        let mut output = BufReader::new(process.stdout.take().expect("piped above"));
        let (sender, messages) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { break };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            process,
            commands,
            messages,
            events: VecDeque::new(),
            last_id: 0,
            tab: String::new(),
            workers: Vec::new(),
            frames: Vec::new(),
            problems: Vec::new(),
            _profile: profile,
        };
        let target = browser.call(None, "Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call(None, "Target.attachToTarget", attach)?;
        browser.tab = session["sessionId"].as_str().ok_or("the tab has no session")?.to_string();
        let tab = browser.tab.clone();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(Some(&tab), domain, json!({}))?;
        }
        // The tests' shorthand; the page itself has no such name.
        let shorthand = json!({"source": "globalThis.$ = (id) => document.getElementById(id);"});
        browser.call(Some(&tab), "Page.addScriptToEvaluateOnNewDocument", shorthand)?;
        // Workers wait for us before their first line, so that nothing they do goes unseen.
        let auto = json!({"autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true});
        browser.call(Some(&tab), "Target.setAutoAttach", auto)?;
        Ok(browser)
    }

    /// The browser's name and version.
    pub fn version(&mut self) -> Result<String> {
        let version = self.call(None, "Browser.getVersion", json!({}))?;
        Ok(version["product"].as_str().unwrap_or("unknown").to_string())
    }

    /// Opens a page and forgets what went wrong on the one before.
    pub fn open(&mut self, url: &str) -> Result<()> {
        self.pump(Duration::ZERO)?;
        self.workers.clear();
        self.frames.clear();
        self.problems.clear();
        let tab = self.tab.clone();
        self.call(Some(&tab), "Page.navigate", json!({"url": url})).map(drop)
    }

    /// Evaluates JavaScript in the page; promises are awaited.
    pub fn eval(&mut self, script: &str) -> Result<Value> {
        let tab = self.tab.clone();
        self.eval_in(&tab, script)
    }

    /// Ends the browser's GPU process, as a driver's crash would: every device is lost. The browser starts another one.
    pub fn crash_gpu(&mut self) -> Result<()> {
        self.send(None, "Browser.crashGpuProcess", json!({})).map(drop)
    }

    /// Evaluates JavaScript in the latest frame that has a process of its own: a sandboxed one.
    pub fn eval_in_frame(&mut self, script: &str) -> Result<Value> {
        let frame = self.frames.last().cloned().ok_or("the page has no frame")?;
        self.eval_in(&frame, script)
    }

    /// Evaluates JavaScript in the page's latest worker.
    pub fn eval_in_worker(&mut self, script: &str) -> Result<Value> {
        let worker = self.workers.last().cloned().ok_or("the page has no worker")?;
        self.eval_in(&worker, script)
    }

    /// Polls a condition in the page until it holds, and prints `progress`, another expression, when its value changes.
    pub fn wait(&mut self, condition: &str, progress: &str, limit: Duration) -> Result<()> {
        let started = Instant::now();
        let mut shown = Value::Null;
        loop {
            self.pump(Duration::from_millis(100))?;
            // A page that has just been opened has no body yet, and the names its scripts define come later still.
            if self.eval(&format!("!!(document.readyState === 'complete' && ({condition}))"))? == Value::Bool(true) {
                return Ok(());
            }
            let now = self.eval(&format!("document.readyState === 'complete' && String({progress})"))?;
            if now != shown {
                eprintln!("    {:5.1} s  {}", started.elapsed().as_secs_f32(), now.as_str().unwrap_or(""));
                shown = now;
            }
            if started.elapsed() > limit {
                let state = self.eval("document.body.dataset.state + ' ' + document.body.innerText")?;
                return Err(format!(
                    "`{condition}` did not come true within {limit:?}; the page: {state}{}",
                    self.listed()
                ));
            }
        }
    }

    /// What WebGPU did in the workers, by their own count (watch.js): devices, shader modules, pipelines, submits.
    /// Fails on anything that the shader compiler, WebGPU, the console or an exception complained about.
    pub fn gpu_report(&mut self) -> Result<[u64; 4]> {
        let mut sums = [0; 4];
        for worker in self.workers.clone() {
            let script = "(async () => { while (gpuWatch.pending) await new Promise((r) => setTimeout(r, 10)); return gpuWatch; })()";
            let watch = self.eval_in(&worker, script)?;
            for (sum, key) in sums.iter_mut().zip(["devices", "modules", "pipelines", "submits"]) {
                *sum +=
                    watch[key].as_u64().ok_or_else(|| format!("the watch in the worker has no `{key}`: {watch}"))?;
            }
            let problems = watch["problems"].as_array().ok_or("the watch in the worker lists no problems")?;
            self.problems.extend(problems.iter().map(|p| p.as_str().unwrap_or("?").to_string()));
        }
        self.pump(Duration::from_millis(50))?;
        if self.problems.is_empty() { Ok(sums) } else { Err(format!("the browser complained:{}", self.listed())) }
    }

    /// Console errors, exceptions and crashes since the page was opened.
    pub fn take_problems(&mut self) -> Result<Vec<String>> {
        self.pump(Duration::from_millis(50))?;
        Ok(std::mem::take(&mut self.problems))
    }

    /// Shows the page in the light or the dark scheme, on a screen or as for a printer.
    pub fn media(&mut self, scheme: &str, print: bool) -> Result<()> {
        let tab = self.tab.clone();
        let media = json!({
            "media": if print { "print" } else { "screen" },
            "features": [{"name": "prefers-color-scheme", "value": scheme}],
        });
        self.call(Some(&tab), "Emulation.setEmulatedMedia", media).map(drop)
    }

    /// The page as a PNG, in the light or the dark scheme.
    pub fn screenshot(&mut self, scheme: &str, width: u32) -> Result<Vec<u8>> {
        self.media(scheme, false)?;
        let tab = self.tab.clone();
        let metrics = json!({"width": width, "height": 1100, "deviceScaleFactor": 1, "mobile": false});
        self.call(Some(&tab), "Emulation.setDeviceMetricsOverride", metrics)?;
        let options = json!({"format": "png", "captureBeyondViewport": true});
        let shot = self.call(Some(&tab), "Page.captureScreenshot", options)?;
        let data = shot["data"].as_str().ok_or("a screenshot without data")?;
        BASE64_STANDARD.decode(data).map_err(|e| format!("a screenshot that is not base64: {e}"))
    }

    fn listed(&self) -> String {
        self.problems.iter().map(|p| format!("\n  - {p}")).collect()
    }

    fn eval_in(&mut self, session: &str, script: &str) -> Result<Value> {
        let options = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call(Some(session), "Runtime.evaluate", options)?;
        if let Some(exception) = answer.get("exceptionDetails") {
            return Err(format!("`{script}` threw: {}", describe(exception)));
        }
        Ok(answer["result"]["value"].take())
    }

    fn send(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<u64> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut text = message.to_string().into_bytes();
        text.push(0);
        self.commands.write_all(&text).map_err(|e| format!("{method}: the browser is gone: {e}"))?;
        Ok(self.last_id)
    }

    fn call(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        let id = self.send(session, method, params)?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message = self.messages.recv_timeout(left).map_err(|e| format!("{method}: no answer ({e})"))?;
            if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(format!("{method}: {error}")),
                    None => Ok(message["result"].take()),
                };
            }
            self.events.push_back(message);
        }
    }

    /// Handles events, and waits for more of them for the given time.
    fn pump(&mut self, wait: Duration) -> Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            while let Some(event) = self.events.pop_front() {
                self.handle(&event)?;
            }
            match self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(message) => self.events.push_back(message),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err("the browser ended".into()),
            }
        }
    }

    fn handle(&mut self, event: &Value) -> Result<()> {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or("") {
            "Target.attachedToTarget" if params["waitingForDebugger"] == true => {
                let session = params["sessionId"].as_str().unwrap_or("").to_string();
                // Not awaited: the answers come once the worker runs.
                self.send(Some(&session), "Runtime.enable", json!({}))?;
                self.send(Some(&session), "Runtime.runIfWaitingForDebugger", json!({}))?;
                match params["targetInfo"]["type"].as_str() {
                    Some("iframe") => self.frames.push(session),
                    _ => self.workers.push(session),
                }
            }
            "Runtime.consoleAPICalled" if matches!(params["type"].as_str(), Some("error" | "assert")) => {
                let words: Vec<_> = params["args"].as_array().into_iter().flatten().map(plain).collect();
                self.problems.push(format!("console: {}", words.join(" ")));
            }
            "Runtime.exceptionThrown" => {
                self.problems.push(format!("exception: {}", describe(&params["exceptionDetails"])));
            }
            // A model directory need not have every file: 404 is an answer there.
            "Log.entryAdded" if params["entry"]["level"] == "error" && params["entry"]["source"] != "network" => {
                self.problems.push(format!("log: {}", plain(&params["entry"]["text"])));
            }
            "Inspector.targetCrashed" => self.problems.push("the tab crashed".into()),
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked, it ends its own child processes; killed, it may leave them.
        if self.call(None, "Browser.close", json!({})).is_err() {
            self.process.kill().ok();
        }
        self.process.wait().ok();
    }
}

fn describe(exception: &Value) -> String {
    plain(exception["exception"].get("description").unwrap_or(&exception["text"]))
}

/// A remote value, or a plain one, as text.
fn plain(value: &Value) -> String {
    match value.get("value").or(value.get("description")).unwrap_or(value) {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
