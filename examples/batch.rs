//! Answers several questions side by side: each has its own budget, end and record.
//!
//!     cargo run --release --example batch                                 the built-in model, on the CPU
//!     cargo run --release --example batch -- MODEL vulkan
use secateur::{Budget, ComputeDevice, Engine, LoadOptions, ModelSource, Request, builtin};

const QUESTIONS: [&str; 3] = [
    "We count modulo 10. #1 a equals 3. #2 b is a plus 9. What is b?",
    "We count modulo 10. #1 e starts at 5. #2 s is e minus 7. What is s?",
    builtin::EXAMPLE,
];

fn main() -> secateur::Result<()> {
    let mut args = std::env::args().skip(1);
    let (source, name) = match args.next() {
        Some(path) => (ModelSource::open(&path)?, path),
        None => (builtin::source(), builtin::NAME.into()),
    };
    let device = pollster::block_on(ComputeDevice::open(&args.next().unwrap_or_else(|| "cpu".into())))?;

    // Two places for three requests: the third takes the place of the first that ends.
    let load = LoadOptions { sequences: 2, ..LoadOptions::default() };
    let mut engine = Engine::load(&source, name, &device, &load, &mut |_done, _of| ())?;

    let mut resolved = Vec::new();
    for (question, keep) in QUESTIONS.into_iter().zip([0.9, 0.75, 0.5]) {
        let request = Request { budget: Some(Budget::Ratio(keep)), ..Request::prompting(question) };
        resolved.push(engine.resolve(&request)?);
    }
    let mut batch = engine.batch();
    for one in &resolved {
        batch.add(&one.prompt, &one.settings)?;
    }
    while !batch.is_idle() {
        // One turn of the loop for all that run. Requests may be added and cancelled between turns.
        for (number, result) in pollster::block_on(batch.step(&mut |_request, _event| ())) {
            let result = result?;
            let totals = result.trace.totals;
            println!("question {number}: {} tokens, at most {} slots", totals.generated_tokens, totals.peak_cached);
            println!("    {}", result.answer.trim());
        }
    }
    Ok(())
}
