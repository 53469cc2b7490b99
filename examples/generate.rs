//! Thinks aloud, prunes while it thinks, and says what stayed in the cache.
//!
//!     cargo run --release --example generate                              the built-in model, on the CPU
//!     cargo run --release --example generate -- MODEL "How many primes are below 50?" vulkan
//!
//! On Linux without a desktop, Mesa may print "XDG_RUNTIME_DIR is invalid or not set" when adapters are listed. That
//! changes nothing. The variable `NODEVICE_SELECT=1` silences it, and the binary sets it by itself.
use std::io::Write;

use secateur::{ComputeDevice, Event, LoadOptions, ModelSource, PreparedModel, Request, builtin};

fn main() -> secateur::Result<()> {
    let mut args = std::env::args().skip(1);
    // A directory in Hugging Face layout or a GGUF file; without it, the model inside the crate.
    let (source, name) = match args.next() {
        Some(path) => (ModelSource::open(&path)?, path),
        None => (builtin::source(), builtin::NAME.into()),
    };
    let request = Request {
        budget: Some("ratio:0.5".parse()?),
        ..Request::prompting(args.next().unwrap_or_else(|| builtin::EXAMPLE.into()))
    };

    // A request that cannot run is refused here, before the weights are read.
    let prepared = PreparedModel::new(&source, name, &LoadOptions::default())?;
    let resolved = prepared.resolve(&request)?;
    for note in &resolved.notes {
        println!("[{note}]");
    }

    // The engine is async, because a browser cannot block; natively `block_on` waits for it.
    let device = pollster::block_on(ComputeDevice::open(&args.next().unwrap_or_else(|| "cpu".into())))?;
    let mut engine = prepared.load(&source, &device, &mut |_done, _of| ())?;
    let mut show = |event: Event<'_>| match event {
        Event::Start { prompt_ids } => println!("[{} tokens of prompt]", prompt_ids.len()),
        Event::Token { text, .. } => {
            print!("{text}");
            // A reader that has gone away is no reason to fail.
            let _ = std::io::stdout().flush();
        }
        Event::Probe(probe) => print!("[{} -> {} slots]", probe.cached_before, probe.cached_after),
        _ => (),
    };
    let result = pollster::block_on(engine.run(&resolved.prompt, &resolved.settings, &mut show))?;

    let totals = result.trace.totals;
    println!("\n[{} tokens generated, {} evicted]", totals.generated_tokens, totals.evicted_tokens);
    Ok(())
}
