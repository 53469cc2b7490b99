//! Runs one prompt pruned and unpruned, and makes a page that shows both records side by side.
//!
//!     cargo run --release --example trace_to_report                       writes report.html
//!     cargo run --release --example trace_to_report -- OUT.html MODEL vulkan
use secateur::report::html;
use secateur::{
    AttentionDetail, Budget, ComputeDevice, Engine, LoadOptions, ModelSource, Prompt, Settings, Trace, builtin,
};

fn main() -> secateur::Result<()> {
    let mut args = std::env::args().skip(1);
    let page = args.next().unwrap_or_else(|| "report.html".into());
    let (source, name) = match args.next() {
        Some(path) => (ModelSource::open(&path)?, path),
        None => (builtin::source(), builtin::NAME.into()),
    };
    let device = pollster::block_on(ComputeDevice::open(&args.next().unwrap_or_else(|| "cpu".into())))?;
    let mut engine = Engine::load(&source, name, &device, &LoadOptions::default(), &mut |_done, _of| ())?;

    let prompt = Prompt::Chat(builtin::EXAMPLE.into());
    let mut traces = Vec::new();
    for keep in [0.5, 1.0] {
        let options = Settings {
            budget: Budget::Ratio(keep),
            probe_every: builtin::PROBE_EVERY,
            window: builtin::WINDOW,
            // Where each layer's `</think>` looked: the page draws it as a map.
            attention: AttentionDetail::Layers,
            ..Settings::default()
        };
        let result = pollster::block_on(engine.run(&prompt, &options, &mut |_event| ()))?;
        let trace = result.trace;

        // A trace is plain JSON, for tools in any language; what was written reads back as the same trace.
        let json = trace.to_json()?;
        println!("keep {keep}: {} probes, {} bytes of JSON", trace.probes.len(), json.len());
        traces.push((format!("keep {keep}"), Trace::from_json(&json)?));
    }
    let html = html::page(&traces)?;
    std::fs::write(&page, &html).expect("the page can be written");
    println!("{page}: {} bytes", html.len());
    Ok(())
}
