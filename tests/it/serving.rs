//! What a server needs of the engine: answers that end at texts, thinking that ends when it must, streams that say all
//! of a text and nothing twice.
use secateur::device::ComputeDevice;
use secateur::engine::{Batch, Engine, Event, LoadOptions, Prompt, RunResult, Settings};
use secateur::policy::Role;
use secateur::trace::StopReason;
use secateur::{Dtype, ModelSource, builtin};

/// The built-in model, which thinks and answers, on the CPU.
fn reasoner(sequences: usize) -> Engine {
    let options = LoadOptions { kv: Dtype::F32, context: Some(512), sequences, weights: None };
    Engine::load(&builtin::source(), "built-in", &ComputeDevice::cpu(), &options, &mut |_, _| ()).expect("a good model")
}

/// A model with random weights, whose text is full of broken characters.
fn random(sequences: usize) -> Engine {
    let source = ModelSource::directory(format!("{}/tests/golden/qwen2-f16", env!("CARGO_MANIFEST_DIR")));
    let options = LoadOptions { kv: Dtype::F32, context: Some(1024), sequences, weights: None };
    let source = source.expect("committed");
    Engine::load(&source, "qwen2-f16", &ComputeDevice::cpu(), &options, &mut |_, _| ()).expect("a good model")
}

fn full(max_new_tokens: usize) -> Settings {
    Settings { max_new_tokens, policy: secateur::policy::Full.into(), ..Settings::default() }
}

/// The result, and the texts of the events by their role.
fn streamed(engine: &mut Engine, prompt: &Prompt, settings: &Settings) -> (RunResult, Vec<(String, Role)>) {
    let mut texts = Vec::new();
    let mut on = |event: Event<'_>| match event {
        Event::Token { text, role, .. } | Event::Rest { text, role } => texts.push((text.to_string(), role)),
        _ => (),
    };
    let result = pollster::block_on(engine.run(prompt, settings, &mut on)).expect("it runs");
    assert!(result.error.is_none(), "{:?}", result.error);
    let all: String = texts.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(all, result.text, "the stream is the text");
    (result, texts)
}

fn of_role(texts: &[(String, Role)], wanted: Role) -> String {
    texts.iter().filter(|(_, role)| *role == wanted).map(|(text, _)| text.as_str()).collect()
}

fn ids(result: &RunResult) -> Vec<u32> {
    result.trace.tokens.iter().map(|t| t.id).collect()
}

#[test]
fn a_stop_text_ends_the_answer_and_nothing_else() {
    let mut engine = reasoner(1);
    let prompt = Prompt::Chat(builtin::EXAMPLE.into());
    let (whole, texts) = streamed(&mut engine, &prompt, &full(400));
    let (thinking, answer) = (of_role(&texts, Role::Thinking), of_role(&texts, Role::Answer));
    assert!(answer.len() > 4 && !thinking.is_empty(), "{answer:?} after {thinking:?}");
    assert_eq!(whole.trace.stop_reason, StopReason::Eos);
    let bounds: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
    let mut in_thinking = 0;
    for (i, &from) in bounds.iter().enumerate().step_by(5) {
        for &to in bounds[i + 1..].iter().take(6).step_by(2) {
            let stop = &answer[from..to];
            in_thinking += usize::from(thinking.contains(stop));
            for include_stop in [false, true] {
                let settings = Settings { stop: vec!["no such text".into(), stop.into()], include_stop, ..full(400) };
                let (result, texts) = streamed(&mut engine, &prompt, &settings);
                let at = answer.find(stop).expect("it is in the answer") + if include_stop { stop.len() } else { 0 };
                assert_eq!(of_role(&texts, Role::Answer), answer[..at], "{stop:?}");
                assert_eq!(of_role(&texts, Role::Thinking), thinking, "{stop:?}");
                assert_eq!(result.answer, answer[..at].trim());
                assert_eq!(result.trace.stop_reason, StopReason::StopString);
                assert!(ids(&whole).starts_with(&ids(&result)), "nothing else changes");
                // The trace says the same after it was written and read.
                let read = secateur::Trace::from_json(&result.trace.to_json().expect("JSON")).expect("a trace");
                assert_eq!(read.answer(), answer[..at]);
            }
        }
    }
    assert!(in_thinking > 0, "no stop text occurs in the thinking");
    // A text that is never complete is held back and released at the end.
    let stop = format!("{}never", &answer[answer.len() - 1..]);
    let (result, texts) = streamed(&mut engine, &prompt, &Settings { stop: vec![stop], ..full(400) });
    assert_eq!((of_role(&texts, Role::Answer), result.trace.stop_reason), (answer, StopReason::Eos));
}

#[test]
fn a_stop_token_ends_the_answer() {
    let mut engine = reasoner(1);
    let prompt = Prompt::Chat(builtin::EXAMPLE.into());
    let (whole, _) = streamed(&mut engine, &prompt, &full(400));
    let answer: Vec<_> = whole.trace.tokens.iter().filter(|t| t.role == Role::Answer && !t.special).collect();
    let [.., before, last] = &answer[..] else { panic!("an answer of two tokens") };
    let first = answer.iter().position(|t| t.id == last.id).expect("it is there");
    for include_stop in [false, true] {
        let settings = Settings { stop_ids: vec![last.id], include_stop, ..full(400) };
        let (result, texts) = streamed(&mut engine, &prompt, &settings);
        let expected: String = answer[..first + usize::from(include_stop)].iter().map(|t| t.text.as_str()).collect();
        assert_eq!(of_role(&texts, Role::Answer), expected, "{:?} then {:?}", before.text, last.text);
        assert_eq!((result.answer.as_str(), &result.trace.stop_reason), (expected.trim(), &StopReason::StopToken));
        assert_eq!(result.trace.answer(), expected);
    }
}

/// Wherever a text is cut, the stream has all of it, in whole characters.
#[test]
fn streams_are_the_whole_text_at_every_length() {
    let mut engine = random(1);
    let mut unfinished = 0;
    for length in 1..60 {
        let settings = Settings { ignore_eos: true, ..full(length) };
        let (result, texts) = streamed(&mut engine, &Prompt::Chat("Now.".into()), &settings);
        assert_eq!(result.trace.tokens.len(), length);
        unfinished += usize::from(texts.len() > length);
    }
    assert!(unfinished > 0, "no text ended inside a character");
}

/// After the last thinking token comes the tag, and then what the model writes after ids that it did not choose.
#[test]
fn thinking_ends_after_its_budget() {
    let mut engine = random(1);
    let prompt = Prompt::Raw("a<think>".into());
    let close = engine.tokenizer().expect("it has one").think_ids().close.expect("one token");
    let base = Settings { ignore_eos: true, ..full(70) };
    let free = streamed(&mut engine, &prompt, &base).0;
    let natural = free.trace.tokens.iter().position(|t| t.role != Role::Thinking).unwrap_or(usize::MAX);
    let pruned = |policy: &str| Settings {
        policy: policy.parse().expect("a listed policy"),
        budget: "tokens:8".parse().expect("a budget"),
        window: 2,
        probe_every: 6,
        ..base.clone()
    };
    for most in [0, 1, 5, 12, 17, 30] {
        assert!(most < natural, "the model ends its thinking by itself after {natural}");
        for settings in [base.clone(), pruned("think-clearly"), pruned("random")] {
            let settings = Settings { max_thinking_tokens: Some(most), ..settings };
            let (result, texts) = streamed(&mut engine, &prompt, &settings);
            let tokens = &result.trace.tokens;
            assert_eq!(tokens.len(), 70);
            assert!(tokens[..most].iter().all(|t| t.role == Role::Thinking && !t.forced));
            assert_eq!((tokens[most].id, tokens[most].role, tokens[most].forced), (close, Role::ThinkClose, true));
            assert!(tokens[most + 1..].iter().all(|t| !t.forced || t.role == Role::ThinkClose));
            assert_eq!(result.trace.probes.len(), if settings.policy.evicts() { most / 6 } else { 0 }, "{most}");
            // The thinking may have ended inside a character.
            assert!(of_role(&texts, Role::ThinkClose).contains("</think>"));
            let read = secateur::Trace::from_json(&result.trace.to_json().expect("JSON")).expect("a trace");
            assert_eq!(read, result.trace);
            if settings.policy.evicts() {
                continue;
            }
            // The same ids as a prompt: the model goes on in the same way, at the same positions.
            let fed = [&result.trace.prompt_ids[..], &ids(&result)[..=most]].concat();
            let rest = Settings { max_new_tokens: 69 - most, ..base.clone() };
            let fed = streamed(&mut engine, &Prompt::Ids(fed), &rest).0;
            let (continued, expected) = (&ids(&result)[most + 1..], ids(&fed));
            let later = tokens.iter().skip(most + 1).position(|t| t.forced).unwrap_or(continued.len());
            assert_eq!(continued[..later], expected[..later], "{most}");
            assert_eq!(result.trace.totals.final_cached, fed.trace.totals.final_cached);
        }
    }
}

/// A model that opens its thinking itself is held to the budget as well, and a neighbour changes nothing.
#[test]
fn a_budget_counts_from_the_models_own_tag() {
    let mut engine = reasoner(3);
    let prompt = Prompt::Chat(builtin::EXAMPLE.into());
    let mut alone = Vec::new();
    let requests: Vec<Settings> =
        [3, 20, 31].map(|most| Settings { max_thinking_tokens: Some(most), ..full(300) }).into();
    for settings in &requests {
        let (result, _) = streamed(&mut engine, &prompt, settings);
        assert_eq!(Some(result.trace.totals.thinking_tokens), settings.max_thinking_tokens);
        assert_eq!(result.trace.tokens.iter().filter(|t| t.forced).count(), 1);
        assert!(!result.thinking_unfinished);
        alone.push(ids(&result));
    }
    let mut batch = engine.batch();
    for settings in &requests {
        batch.add(&prompt, settings).expect("a good request");
    }
    let together = pollster::block_on(batch.run(&mut |_, _| ()));
    let together: Vec<Vec<u32>> = together.into_iter().map(|(_, result)| ids(&result.expect("it runs"))).collect();
    assert_eq!(together, alone);
}

/// Steps until `until` says so, and returns the results so far.
fn step_until(batch: &mut Batch<'_>, mut until: impl FnMut(usize) -> bool) {
    let mut tokens = 0;
    while !until(tokens) {
        let ended =
            pollster::block_on(batch.step(&mut |_, event| tokens += usize::from(matches!(event, Event::Token { .. }))));
        assert!(ended.is_empty(), "it ended too early");
    }
}

#[test]
fn a_thought_can_be_ended_from_outside() {
    let mut engine = random(1);
    for (when, settings) in [(0, full(60)), (1, full(60)), (20, full(60))] {
        let settings = Settings { ignore_eos: true, ..settings };
        let mut batch = engine.batch();
        let request = batch.add(&Prompt::Raw("a<think>".into()), &settings).expect("a good request");
        step_until(&mut batch, |tokens| tokens >= when);
        batch.end_thinking(request);
        let (_, result) = pollster::block_on(batch.run(&mut |_, _| ())).pop().expect("one");
        let result = result.expect("it runs");
        let forced = result.trace.tokens.iter().position(|t| t.forced).expect("a forced token");
        // At most two bursts were on their way.
        assert!((when..=when + 24).contains(&forced), "asked after {when}, ended after {forced}");
        assert_eq!(result.trace.tokens[forced].role, Role::ThinkClose);
        assert_eq!(result.trace.tokens.iter().filter(|t| t.forced).count(), 1, "it is asked for once");
    }
}

#[test]
fn an_answer_is_limited_without_its_thinking() {
    let mut engine = reasoner(1);
    let prompt = Prompt::Chat(builtin::EXAMPLE.into());
    let (whole, _) = streamed(&mut engine, &prompt, &full(400));
    let answer = |result: &RunResult| result.trace.tokens.iter().filter(|t| t.role == Role::Answer).count();
    for most in 1..answer(&whole) {
        let settings = Settings { max_answer_tokens: Some(most), ..full(400) };
        let (result, _) = streamed(&mut engine, &prompt, &settings);
        assert_eq!((answer(&result), &result.trace.stop_reason), (most, &StopReason::MaxAnswerTokens));
        assert!(ids(&whole).starts_with(&ids(&result)));
    }
}
