//! The built-in model compared with transformers, whose results `models/train/export.py` recorded in `golden.json`.
use crate::common;
use secateur::Dtype;
use secateur::builtin;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, LoadOptions, Prompt, RunResult, Settings};
use secateur::expert::cache::CacheShape;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::runner::Runner;
use secateur::expert::weights::Weights;
use secateur::trace::StopReason;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    problems: Vec<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    problem: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    text: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../models/tiny-reasoner/golden.json")).expect("as export.py writes it")
}

fn engine(device: &ComputeDevice) -> Engine {
    let options = LoadOptions { kv: Dtype::F32, ..LoadOptions::default() };
    Engine::load(&builtin::source(), builtin::NAME, device, &options, &mut |_, _| ()).expect("it is in the binary")
}

fn run(engine: &mut Engine, problem: &str, options: &Settings) -> RunResult {
    let result = pollster::block_on(engine.run(&Prompt::Chat(problem.into()), options, &mut |_| ())).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    result
}

/// The whole path from the text of the problem to the last token: template, tokenizer, decoder, end.
#[test]
fn greedy_text_is_that_of_transformers() {
    let golden = golden();
    assert_eq!(golden.problems.len(), 20);
    let options = Settings { policy: secateur::policy::Full.into(), ..Settings::default() };
    let mut engine = engine(&common::devices()[0]);
    for (i, golden) in golden.problems.iter().enumerate() {
        let result = run(&mut engine, &golden.problem, &options);
        let trace = &result.trace;
        assert_eq!(trace.prompt_ids, golden.prompt_ids, "problem {i}");
        assert_eq!(trace.tokens.iter().map(|t| t.id).collect::<Vec<_>>(), golden.greedy_ids, "problem {i}");
        assert_eq!(result.text, golden.text.trim_end_matches("<|end|>"), "problem {i}");
        assert_eq!(trace.stop_reason, StopReason::Eos);
    }
}

/// All problems side by side. Each step decodes all of them at once and samples on the device.
#[test]
fn greedy_ids_of_all_problems_at_once_are_those_of_transformers() {
    let _one = common::beside_others();
    let Some(device) = common::gpu() else { return };
    let problems = golden().problems;
    let source = builtin::source();
    let (config, weights) = (ModelConfig::load(&source).expect("good"), Weights::open(&source).expect("good"));
    let steps = problems.iter().map(|p| p.greedy_ids.len()).max().expect("20") as u32;
    let began = std::time::Instant::now();
    let model = Decoder::load(&config, &weights, 2048, None, device, &mut |_, _| ()).expect("it is in the binary");
    let seqs = problems.len();
    let mut runner = Runner::new(model.into(), CacheShape::new(&config, Dtype::F32, seqs, 64).expect("f32 or f16"));
    for (seq, problem) in problems.iter().enumerate() {
        runner.prefill(seq, &problem.prompt_ids).expect("fits");
    }
    let all: Vec<usize> = (0..seqs).collect();
    let mut found = vec![Vec::new(); seqs];
    for step in 1..=steps {
        if step % 16 == 0 || step == steps {
            let state = common::block_on(runner.read().finish()).expect("readable");
            for (seq, found) in found.iter_mut().enumerate() {
                found.extend(runner.cache().ids(&state, seq, found.len() as u32, step).expect("finite logits"));
            }
        }
        runner.decode(&all, 1).expect("fits");
    }
    for (i, (found, problem)) in found.iter().zip(&problems).enumerate() {
        let golden = &problem.greedy_ids;
        assert_eq!(&found[..golden.len()], golden, "problem {i} on {}", device.info.line());
    }
    println!("{}: {:.1} s", device.info.line(), began.elapsed().as_secs_f64());
}
