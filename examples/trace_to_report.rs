//! Runs one prompt pruned and unpruned, and makes a page that shows both records side by side.
//!
//!     cargo run --release --example trace_to_report                       writes report.html
//!     cargo run --release --example trace_to_report -- OUT.html MODEL vulkan
use secateur::policy::Full;
use secateur::report::html;
use secateur::{
    AttentionDetail, ComputeDevice, Engine, Event, LoadOptions, ModelSource, PolicyRef, Request, Result, Trace, builtin,
};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let page = args.next().unwrap_or_else(|| "report.html".into());
    let (source, name) = match args.next() {
        Some(path) => (ModelSource::open(&path)?, path),
        None => (builtin::source(), builtin::NAME.into()),
    };
    let device = pollster::block_on(ComputeDevice::open(&args.next().unwrap_or_else(|| "cpu".into())))?;
    let mut engine = Engine::load(&source, name, &device, &LoadOptions::default(), &mut |_done, _of| ())?;

    let mut traces = Vec::new();
    for policy in [PolicyRef::default(), Full.into()] {
        let request = Request {
            policy: Some(policy.clone()),
            budget: Some("ratio:0.5".parse()?),
            // Where each layer's `</think>` looked: the page draws it as a map.
            attention: Some(AttentionDetail::Layers),
            ..Request::prompting(builtin::EXAMPLE)
        };
        let resolved = engine.resolve(&request)?;
        let mut quiet = |_event: Event<'_>| ();
        let trace = pollster::block_on(engine.run(&resolved.prompt, &resolved.settings, &mut quiet))?.trace;

        // A trace is plain JSON, for tools in any language; what was written reads back as the same trace.
        let json = trace.to_json()?;
        println!("{policy}: {} probes, {} bytes of JSON", trace.probes.len(), json.len());
        traces.push((policy.to_string(), Trace::from_json(&json)?));
    }
    let html = html::page(&traces)?;
    std::fs::write(&page, &html).expect("the page can be written");
    println!("{page}: {} bytes", html.len());
    Ok(())
}
