//! The model inside the binary against transformers: what `models/train/export.py` recorded in `golden.json`.
mod common;

use secateur::engine::{Engine, LoadOptions, Prompt, RunOptions, RunResult};
use secateur::report::trace::StopReason;
use secateur::{builtin, device::ComputeDevice, kernels::Words};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    problems: Vec<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    problem: String,
    answer: u32,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    text: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../models/tiny-reasoner/golden.json")).expect("as export.py writes it")
}

fn engine(device: &ComputeDevice, kv: Words) -> Engine {
    let options = LoadOptions { kv, context: None };
    Engine::load(&builtin::source(), builtin::NAME, device, &options, &mut |_, _| ()).expect("it is in the binary")
}

fn run(engine: &mut Engine, problem: &str, options: &RunOptions) -> RunResult {
    let result = pollster::block_on(engine.run(&Prompt::Chat(problem.into()), options, &mut |_| ())).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    result
}

/// From the text of the problem to the last token: template, tokenizer, decoder, end.
#[test]
fn greedy_ids_are_those_of_transformers() {
    let golden = golden();
    assert_eq!(golden.problems.len(), 20);
    let options = RunOptions { policy: "full".into(), ..RunOptions::default() };
    for device in common::two() {
        let began = std::time::Instant::now();
        let mut engine = engine(device, Words::F32);
        for (i, golden) in golden.problems.iter().enumerate() {
            let result = run(&mut engine, &golden.problem, &options);
            let trace = &result.trace;
            assert_eq!(trace.prompt_ids, golden.prompt_ids, "problem {i}");
            let ids: Vec<u32> = trace.tokens.iter().map(|t| t.id).collect();
            let same = ids.iter().zip(&golden.greedy_ids).take_while(|(a, b)| a == b).count();
            assert_eq!(ids, golden.greedy_ids, "problem {i} on {}: token {same}", device.info.line());
            assert_eq!(trace.stop_reason, StopReason::Eos);
        }
        println!("{}: {:.1} s", device.info.line(), began.elapsed().as_secs_f64());
    }
}
