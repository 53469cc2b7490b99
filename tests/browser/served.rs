//! `secateur web`: the page from the executable, with a model of this machine.
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::devtools::Browser;
use crate::{LOADED, LONG, ROOT, Result, Site, clean};

/// A program that is ended with the test.
pub struct Server(Child);

impl Server {
    /// Starts secateur and waits for the line on stderr that begins like this; returns what follows in it.
    pub fn start(args: &[&str], beginning: &str) -> Result<(Self, String)> {
        let mut program = Command::new(env!("CARGO_BIN_EXE_secateur"));
        let child = program.args(args).stderr(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
        let mut server = Self(child);
        let mut stderr = BufReader::new(server.0.stderr.take().ok_or("no stderr")?);
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).map_err(|e| e.to_string())? == 0 {
                return Err(format!("{args:?} ended without `{beginning}`: {said}"));
            }
            if let Some(rest) = line.trim().strip_prefix(beginning) {
                // What it says later is nobody's concern, but it must not block.
                std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
                return Ok((server, rest.to_string()));
            }
            said += &line;
        }
    }
}

impl Server {
    /// Tells it to stop, as a supervisor would.
    pub fn terminate(&self) -> Result {
        let told = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        told.map_err(|e| e.to_string()).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The page at the address that the executable prints loads the model from there, without breaking a rule of its
/// policies. Only the page and the files of the model are given away.
pub fn the_page_comes_from_the_executable(site: &Site) -> Result {
    let model = format!("{ROOT}/tests/golden/gguf-qwen2-q8/model.gguf");
    let args = ["web", "--port", "0", "--no-open", "--model", &model];
    let (_server, address) = Server::start(&args, "the page is at ")?;
    ensure!(address.ends_with("/?model=model/model.gguf"), "{address}");

    let mut browser = Browser::launch(&site.chromium, true)?;
    browser.open(&address)?;
    browser.wait(LOADED, "$('model').textContent", LONG)?;
    clean(&mut browser)?;

    let part = browser.eval(
        "fetch('/model/model.gguf', { headers: { range: 'bytes=0-3' } })
            .then(async (part) => `${part.status} ${part.headers.get('content-range')} ${await part.text()}`)",
    )?;
    ensure!(part.as_str().is_some_and(|part| part.starts_with("206 bytes 0-3/") && part.ends_with(" GGUF")), "{part}");
    let mut statuses = Vec::new();
    // What is missing is a message in the browser's console too, so this comes last.
    for path in ["/worker.js", "/model/model.gguf", "/model/golden.json", "/_headers", "/model/..%2f..%2fREADME.md"] {
        statuses.push(browser.eval(&format!("fetch('{path}', {{ method: 'HEAD' }}).then((reply) => reply.status)"))?);
    }
    ensure!(statuses == [200, 200, 404, 404, 404], "{statuses:?}");
    Ok(())
}
