//! The npm package, as a user gets it: packed, installed into an empty folder, and used there.
use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::devtools::Browser;
use crate::{LONG, ROOT, Result, Site, page, server};

/// What has to be in the package, and what must not be.
const FILES: [&str; 9] = [
    "README.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "secateur.js",
    "worker.js",
    "pkg/secateur_bg.wasm",
    "models/tiny-reasoner/model.safetensors",
    "types/secateur.d.ts",
    "types/messages.d.ts",
];
const OTHERS: [&str; 4] = ["app.js", "index.html", "vendor", "node_modules"];

/// A program in TypeScript that uses both entrances of the package.
const PROGRAM: &str = "
import { load, SecateurError, type Model } from 'secateur';
import { open } from 'secateur/remote.js';

export async function main(): Promise<string> {
  let text = '';
  const model: Model = await load({ context: 512, weights: 'q4', onProgress: ({ type }) => console.log(type) });
  for await (const event of model.generate({ prompt: 'What is 17 + 25?', budget: 'tokens:512' })) {
    if (event.type === 'token') text += event.text;
    if (event.type === 'probe') console.log(event.cached_after.toFixed());
  }
  const { choices } = await model.chat.completions.create({ messages: [{ role: 'user', content: text }] });
  const engine = await open({ server: 'http://127.0.0.1:8080/' });
  const other: Model = await engine.load();
  try {
    other.close();
  } catch (error) {
    if (error instanceof SecateurError) text += error.title;
  }
  // @ts-expect-error: a request has no such field
  model.generate({ promt: 'misspelt' });
  return text + choices[0].message.content;
}
";

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{command:?}: {}{}", said(&output.stdout), said(&output.stderr));
    Ok(said(&output.stdout))
}

/// An empty folder in which the package is installed.
fn installed() -> Result<TempDir> {
    let folder = TempDir::new().map_err(|e| e.to_string())?;
    let path = folder.path();
    let packed = run(Command::new("npm")
        .args(["pack", "--silent", "--pack-destination"])
        .arg(path)
        .current_dir(Path::new(ROOT).join("web")))?;
    let archive = packed.lines().last().ok_or("npm pack names no file")?;
    fs::write(path.join("package.json"), r#"{"private": true, "type": "module"}"#).map_err(|e| e.to_string())?;
    let offline = ["install", "--offline", "--no-audit", "--no-fund", "--loglevel=error"];
    run(Command::new("npm").args(offline).arg(format!("./{archive}")).current_dir(path))?;
    Ok(folder)
}

/// The example of the package runs on a page of one's own that any static host could serve. Where npm is missing, it
/// runs from the repository.
pub fn the_example_runs(site: &Site) -> Result {
    const COMPILER: &str = "node_modules/typescript/bin/tsc";
    if !page::has_npm(COMPILER)? {
        return example(site, &site.url("/example.html"));
    }
    let folder = installed()?;
    let package = folder.path().join("node_modules/secateur");
    for name in FILES {
        ensure!(package.join(name).exists(), "the package lacks {name}");
    }
    for name in OTHERS {
        ensure!(!package.join(name).exists(), "the package has {name}");
    }

    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).map_err(|e| e.to_string());
    write("program.ts", PROGRAM)?;
    let strict = ["--noEmit", "--strict", "--target", "es2024", "--module", "es2022", "--moduleResolution", "bundler"];
    let libraries = ["--lib", "es2024,dom,dom.iterable,dom.asynciterable", "--types", "", "program.ts"];
    let compiler = Path::new(ROOT).join("web").join(COMPILER);
    run(Command::new("node").arg(compiler).args(strict).args(libraries).current_dir(folder.path()))?;

    let read = |name: &str| fs::read_to_string(Path::new(ROOT).join("web").join(name)).map_err(|e| e.to_string());
    let (script, document) = (read("example.js")?, read("example.html")?);
    let own = script.replace("'./secateur.js'", "'secateur'");
    ensure!(own != script, "the example does not import secateur.js");
    write("example.js", &own)?;
    // Without a bundler, a browser has to be told where the package is.
    let map = r#"<script type="importmap">{"imports": {"secateur": "./node_modules/secateur/secateur.js"}}</script>"#;
    write("index.html", &document.replace("<script type", &format!("{map}\n<script type")))?;
    let root = folder.path().to_path_buf();
    let host =
        server::serve(0, move |path| vec![root.join(path.trim_start_matches('/'))]).map_err(|e| e.to_string())?;
    example(site, &format!("http://127.0.0.1:{host}/"))
}

/// The example at this address writes what the model thinks.
fn example(site: &Site, address: &str) -> Result {
    let mut browser = Browser::launch(&site.chromium, true)?;
    browser.open(address)?;
    browser.wait("document.body.dataset.done", "document.querySelector('pre')?.textContent", LONG)?;
    let text = browser.eval("document.querySelector('pre').textContent")?;
    ensure!(text.as_str().is_some_and(|t| t.contains("Okay, I need") && t.contains("tokens are cached")), "{text}");
    let problems = browser.take_problems()?;
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}
