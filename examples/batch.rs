//! Answers several questions side by side: each has its own budget, end and trace.
//!
//!     cargo run --release --example batch                                 the built-in model, on the CPU
//!     cargo run --release --example batch -- MODEL vulkan
use secateur::{Budget, ComputeDevice, Engine, LoadOptions, ModelSource, Prompt, Settings, builtin};

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

    let mut batch = engine.batch();
    for (question, keep) in QUESTIONS.into_iter().zip([0.9, 0.75, 0.5]) {
        let options = Settings {
            budget: Budget::Ratio(keep),
            probe_every: builtin::PROBE_EVERY,
            window: builtin::WINDOW,
            ..Settings::default()
        };
        batch.add(&Prompt::Chat(question.into()), &options)?;
    }
    while !batch.is_idle() {
        // One turn of the loop for all that run. Requests may also be added here.
        for (request, result) in pollster::block_on(batch.step(&mut |_request, _event| ())) {
            let result = result?;
            let totals = result.trace.totals;
            println!("{request}: {} tokens, at most {} slots", totals.generated_tokens, totals.peak_cached);
            println!("   {}", result.text.lines().last().unwrap_or_default());
        }
    }
    Ok(())
}
