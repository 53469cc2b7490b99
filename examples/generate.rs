//! Thinks aloud, prunes while it thinks, and says what stayed in the cache.
//!
//!     cargo run --release --example generate                              the built-in model, on the CPU
//!     cargo run --release --example generate -- MODEL "How many primes are below 50?" vulkan
use std::io::Write;

use secateur::{Budget, ComputeDevice, Engine, Event, LoadOptions, ModelSource, Prompt, Settings, builtin};

fn main() -> secateur::Result<()> {
    let mut args = std::env::args().skip(1);
    // A directory in Hugging Face layout or a GGUF file; without it, the model inside the crate.
    let (source, name) = match args.next() {
        Some(path) => (ModelSource::open(&path)?, path),
        None => (builtin::source(), builtin::NAME.into()),
    };
    let prompt = Prompt::Chat(args.next().unwrap_or_else(|| builtin::EXAMPLE.into()));
    let device = args.next().unwrap_or_else(|| "cpu".into());

    // The engine is async, because a browser cannot block; natively `block_on` waits for it.
    let device = pollster::block_on(ComputeDevice::open(&device))?;
    let mut engine = Engine::load(&source, name, &device, &LoadOptions::default(), &mut |_done, _of| ())?;

    // The thoughts of the built-in model are short, so it is probed more often than the default says.
    let options = Settings {
        budget: Budget::Ratio(0.5),
        probe_every: builtin::PROBE_EVERY,
        window: builtin::WINDOW,
        ..Settings::default()
    };
    let mut show = |event: Event<'_>| match event {
        Event::Start { prompt_ids } => println!("[{} tokens of prompt]", prompt_ids.len()),
        Event::Token { text, .. } => {
            print!("{text}");
            // Text on a screen is no reason to fail.
            let _ = std::io::stdout().flush();
        }
        Event::Probe(probe) => print!("[{} -> {} slots]", probe.cached_before, probe.cached_after),
        _ => {}
    };
    let result = pollster::block_on(engine.run(&prompt, &options, &mut show))?;

    let totals = result.trace.totals;
    println!("\n[{} tokens generated, {} evicted]", totals.generated_tokens, totals.evicted_tokens);
    Ok(())
}
