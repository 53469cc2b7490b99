//! The engine's features for a server: answers that end at stop texts, thinking that ends in time, and streams that
//! have the whole text exactly once.
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use secateur::device::ComputeDevice;
use secateur::engine::Bound;
use secateur::engine::{Batch, Engine, Event, LoadOptions, Prompt, RunResult, Settings};
use secateur::policy::Role;
use secateur::policy::{CacheView, EvictionPolicy, KeepPlan, Measurement, POLICIES, Positions, Scope};
use secateur::trace::StopReason;
use secateur::{Dtype, ErrorKind, ModelSource, PolicyRef, builtin};

use crate::common::{alone, gpu};

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
    // A stop text that is never complete is held back and released at the end.
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

/// After the last thinking token comes the tag, and then the text that the model writes after ids that it did not
/// choose.
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
            // With the same ids as a prompt, the model continues in the same way, at the same positions.
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

/// The budget also holds for a model that opens its thinking itself, and a neighbour changes nothing.
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
        // At most two bursts were under way.
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
    for most in (1..answer(&whole)).step_by(7) {
        let settings = Settings { max_answer_tokens: Some(most), ..full(400) };
        let (result, _) = streamed(&mut engine, &prompt, &settings);
        assert_eq!((answer(&result), &result.trace.stop_reason), (most, &StopReason::MaxAnswerTokens));
        assert!(ids(&whole).starts_with(&ids(&result)));
    }
}

/// Random requests of every policy, three side by side: neither the slots nor the bytes in use ever exceed the bound
/// by which a request is admitted.
#[test]
fn nothing_exceeds_the_bound_by_which_it_was_admitted() {
    let mut engine = reasoner(3);
    let prepared = engine.prepared();
    let mut generator = ChaCha8Rng::seed_from_u64(4);
    let mut random = move |n: usize| (generator.next_u64() % n as u64) as usize;
    let (mut tightest, mut runs) = (f64::MAX, 0);
    for round in 0..16 {
        let positions = [Positions::Original, Positions::Compact][round % 2];
        let mut requests = Vec::new();
        for i in 0..4 {
            let policy = POLICIES[(4 * round + i) % POLICIES.len()];
            let ratio = ["ratio:0.3", "ratio:0.8"][random(2)];
            let budget = if random(3) == 0 { ratio.to_string() } else { format!("tokens:{}", random(40)) };
            let thinks = random(3) > 0;
            let settings = Settings {
                policy: policy.name().parse().expect("a listed policy"),
                budget: budget.parse().expect("a budget"),
                window: random(12),
                probe_every: 1 + random(30),
                positions,
                scope: [Scope::Shared, Scope::Layer, Scope::Head][random(3)],
                max_new_tokens: 1 + random(110),
                max_answer_tokens: (random(2) == 0).then(|| 1 + random(30)),
                max_thinking_tokens: (random(2) == 0).then(|| random(70)),
                ignore_eos: random(3) > 0,
                seed: random(1000) as u64,
                ..Settings::default()
            };
            let text = if thinks { "a<think>" } else { "a" }.to_string() + &"b".repeat(random(150));
            requests.push((prepared.encoded(&Prompt::Raw(text)).expect("text"), settings));
        }
        let bounds: Vec<Bound> = requests.iter().map(|(p, settings)| prepared.bound(p.ids.len(), settings)).collect();
        let mut batch = engine.batch();
        // There is room for the largest request, and for some of the others beside it.
        let largest = bounds.iter().map(|bound| bound.bytes).max().expect("some");
        let memory = largest + random(largest as usize) as u64;
        batch.set_memory(memory);
        for (prompt, settings) in &requests {
            batch.add(&Prompt::Encoded(prompt.clone()), settings).expect("it fits alone");
        }
        while !batch.is_idle() {
            let ended = pollster::block_on(batch.step(&mut |_, _| ()));
            let status = batch.status();
            assert!(status.used_bytes <= status.reserved_bytes && status.reserved_bytes <= memory, "{status:?}");
            for (request, result) in ended {
                let (bound, result) = (bounds[request], result.expect("it runs"));
                let (totals, settings) = (&result.trace.totals, &result.trace.settings);
                assert!(result.error.is_none(), "{:?}", result.error);
                let what = format!("{bound:?}, {totals:?}, {settings:?}");
                assert!(totals.peak_cached <= bound.slots && totals.peak_kv_bytes <= bound.bytes, "{what}");
                tightest = tightest.min(bound.bytes as f64 / totals.peak_kv_bytes as f64);
                runs += 1;
            }
        }
    }
    println!("{runs} runs; the tightest bound is {tightest:.2} of what was used");
    assert!(runs == 64 && tightest < 2.0, "{runs} runs, {tightest}: the bound says nothing");
}

/// The same, measured by an adapter's allocator. Beside the weights, the state and the samplers, the memory in use
/// never exceeds the bounds of the running requests, for every policy and including kept prompts.
#[test]
fn the_allocator_never_holds_more_than_was_promised() {
    let _alone = alone();
    let Some(device) = gpu() else { return };
    let load = LoadOptions { kv: Dtype::F32, context: Some(512), sequences: 3, weights: None };
    let source = builtin::source();
    let mut engine = Engine::load(&source, "built-in", device, &load, &mut |_, _| ()).expect("a good model");
    engine.keep_prompts(u64::MAX);
    let prepared = engine.prepared();
    let in_use = || {
        device.wait_until_done().expect("it works");
        device.bytes().in_use
    };
    let before = in_use();
    let mut generator = ChaCha8Rng::seed_from_u64(6);
    let mut random = move |n: usize| (generator.next_u64() % n as u64) as usize;
    let (mut steps, mut closest) = (0, 0.0f64);
    for round in 0..POLICIES.len() {
        let requests: Vec<_> = (0..4)
            .map(|i| {
                let settings = Settings {
                    policy: POLICIES[(round + 3 * i) % POLICIES.len()].name().parse().expect("a listed policy"),
                    budget: format!("tokens:{}", random(40)).parse().expect("a budget"),
                    window: random(12),
                    probe_every: 5 + random(30),
                    max_new_tokens: 20 + random(90),
                    max_answer_tokens: Some(10),
                    ignore_eos: true,
                    ..Settings::default()
                };
                let text = "a<think>".to_string() + &"b".repeat(random(150));
                (prepared.encoded(&Prompt::Raw(text)).expect("text"), settings)
            })
            .collect();
        let mut batch = engine.batch();
        let bounds = requests.iter().map(|(prompt, settings)| prepared.bound(prompt.ids.len(), settings).bytes);
        let memory = bounds.max().expect("some") * 2;
        batch.set_memory(memory);
        for (prompt, settings) in &requests {
            batch.add(&Prompt::Encoded(prompt.clone()), settings).expect("it fits alone");
        }
        while !batch.is_idle() {
            let ended = pollster::block_on(batch.step(&mut |_, _| ()));
            assert!(ended.iter().all(|(_, result)| result.as_ref().is_ok_and(|r| r.error.is_none())), "{ended:?}");
            let (status, held) = (batch.status(), in_use().saturating_sub(before));
            assert!(held <= memory, "{held} bytes, {status:?}, {memory} for all");
            closest = closest.max(held as f64 / memory as f64);
            steps += 1;
        }
    }
    println!("{steps} steps; at most {:.0} % of the memory was in use", 100.0 * closest);
    assert!(steps > 50 && closest > 0.2, "{steps} steps, {closest}: nothing was measured");
}

/// With a budget in tokens and a limited answer, the bound does not grow with the length of the thought.
#[test]
fn the_bound_of_a_pruned_request_does_not_grow() {
    let options = LoadOptions { context: Some(4096), ..LoadOptions::default() };
    let source = ModelSource::directory(format!("{}/tests/golden/qwen2-f16", env!("CARGO_MANIFEST_DIR")));
    let source = source.expect("committed");
    let prepared = secateur::PreparedModel::new(&source, "a model", &options).expect("a good model");
    let settings = |max_new_tokens| Settings {
        budget: "tokens:256".parse().expect("a budget"),
        max_answer_tokens: Some(200),
        ..full(max_new_tokens)
    };
    let pruned = |most| Settings { policy: secateur::policy::Random.into(), ..settings(most) };
    let bound = |settings: &Settings| prepared.bound(100, settings);
    assert_eq!(bound(&pruned(2000)), bound(&pruned(3900)));
    assert!(bound(&pruned(3900)).bytes * 3 < bound(&settings(3900)).bytes);
    let unlimited = Settings { max_answer_tokens: None, ..pruned(3900) };
    assert!(bound(&unlimited).slots >= 3900, "an answer is never pruned");
}

#[test]
fn a_request_waits_until_it_fits_and_is_overtaken_for_a_while() {
    let mut engine = random(4);
    let prepared = engine.prepared();
    let settings = |tokens| Settings { ignore_eos: true, ..full(tokens) };
    let bound = |tokens: usize| prepared.bound(3, &settings(tokens)).bytes;
    let (small, large) = (bound(10), bound(400));
    let mut batch = engine.batch();
    batch.set_memory(large + small);
    let refused = batch.add(&Prompt::Ids(vec![1, 2, 3]), &settings(900)).expect_err("it never fits");
    let parts = [format!("{} bytes", large + small), format!("{} bytes", bound(900)), "`max_new_tokens`".into()];
    let said = refused.to_string();
    assert!(refused.kind() == ErrorKind::Input && parts.iter().all(|part| said.contains(part)), "{said}");
    // One request runs, a second one of its size waits, and small ones overtake it for a while.
    let mut started = Vec::new();
    for tokens in [100, 400].into_iter().chain([10; 24]) {
        batch.add(&Prompt::Ids(vec![1, 2, 3]), &settings(tokens)).expect("it fits alone");
    }
    assert_eq!((batch.status().running, batch.status().waiting), (0, 26));
    let mut ended = 0;
    while !batch.is_idle() {
        let mut on = |request, event: Event<'_>| {
            if matches!(event, Event::Start { .. }) {
                started.push(request);
            }
        };
        ended += pollster::block_on(batch.step(&mut on)).len();
        let status = batch.status();
        assert!(status.reserved_bytes <= large + small && status.used_bytes <= status.reserved_bytes, "{status:?}");
    }
    assert_eq!((ended, started[0]), (26, 0));
    let at = started.iter().position(|request| *request == 1).expect("it ran");
    assert!((2..=17).contains(&at), "it came {at}th");
}

/// A short prompt does not wait for a long one, and a long one not for ever for short ones. Ids do not change.
#[test]
fn prompts_take_turns() {
    let mut engine = random(3);
    let settings = Settings { ignore_eos: true, ..full(40) };
    let long = Prompt::Ids((0..900).map(|i| i * 7 % 300).collect());
    let short = Prompt::Ids((0..30).map(|i| i * 5 % 300).collect());
    let alone: Vec<Vec<u32>> = [&long, &short].map(|prompt| ids(&streamed(&mut engine, prompt, &settings).0)).into();
    let mut batch = engine.batch();
    batch.add(&long, &settings).expect("a good request");
    let mut first = Vec::new();
    let (mut results, mut added) = (Vec::new(), 1);
    while !batch.is_idle() {
        let mut on = |request, event: Event<'_>| {
            if matches!(event, Event::Token { index: 0, .. }) {
                first.push(request);
            }
        };
        results.extend(pollster::block_on(batch.step(&mut on)));
        if added < 6 {
            batch.add(&short, &settings).expect("a good request");
            added += 1;
        }
    }
    assert_eq!(first[0], 1, "the short prompt is first");
    assert!(first.iter().position(|request| *request == 0) < Some(4), "{first:?}");
    for (request, result) in results {
        assert_eq!(ids(&result.expect("it runs")), alone[usize::from(request > 0)], "request {request}");
    }
}

#[derive(Debug)]
struct Panics;

impl EvictionPolicy for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn needs(&self) -> Measurement {
        Measurement::Nothing
    }

    fn plan(&self, _: &CacheView<'_>) -> secateur::Result<KeepPlan> {
        panic!("a bug in a policy")
    }
}

/// A policy that panics ends only its own request, and a request that is cancelled ends at once.
#[test]
fn a_batch_survives_what_happens_to_its_requests() {
    let mut engine = random(2);
    let settings = Settings { ignore_eos: true, ..full(30) };
    let prompt = Prompt::Raw("a<think>".into());
    let alone = ids(&streamed(&mut engine, &prompt, &settings).0);
    let mut batch = engine.batch();
    let broken = Settings { policy: PolicyRef::new(Panics), probe_every: 5, ..settings.clone() };
    let numbers: Vec<usize> =
        [&settings, &broken, &settings].map(|settings| batch.add(&prompt, settings).expect("a good request")).into();
    let cancelled = batch.add(&prompt, &settings).expect("a good request");
    let mut started = Vec::new();
    let mut on = |request, event: Event<'_>| {
        if matches!(event, Event::Start { .. }) {
            started.push(request);
        }
    };
    let early = pollster::block_on(batch.step(&mut on));
    assert!(early.is_empty() && batch.status().waiting == 2);
    batch.cancel(cancelled);
    let ended = pollster::block_on(batch.step(&mut on));
    assert_eq!(ended.iter().map(|(request, _)| *request).collect::<Vec<_>>(), [cancelled], "it ends in the queue");
    assert_eq!(ended[0].1.as_ref().expect("no error").trace.stop_reason, StopReason::Cancelled);
    let results = pollster::block_on(batch.run(&mut on));
    assert!(!started.contains(&cancelled));
    for (request, result) in results {
        let result = result.expect("it began");
        if request == numbers[1] {
            let error = result.error.as_ref().expect("its policy panics").to_string();
            assert!(error.contains("a bug in a policy"), "{error}");
            assert_eq!(ids(&result), alone[..5]);
        } else {
            assert_eq!(ids(&result), alone, "request {request}");
        }
    }
    // A long prompt is given up within one chunk, and its place becomes free.
    let long = batch.add(&Prompt::Ids((0..900).map(|i| i % 300).collect()), &settings).expect("a good request");
    pollster::block_on(batch.step(&mut |_, _| ()));
    batch.cancel(long);
    let ended = pollster::block_on(batch.step(&mut |_, _| ()));
    assert_eq!((ended.len(), batch.status().running, batch.status().used_bytes), (1, 0, 0));
}

/// The logarithms of the probabilities of every token after each of `ids`, from the logits of the model.
fn reference(engine: &Engine, ids: &[u32]) -> Vec<Vec<f64>> {
    use secateur::expert::cache::{CacheShape, KvCache};
    use secateur::expert::kernels::readback::{as_f32, read_f32};
    use secateur::expert::model::decoder::{Input, Logits};
    let model = engine.model();
    let shape = CacheShape::new(model.config(), Dtype::F32, 1, 64).expect("f32");
    let mut cache = KvCache::new(shape, model.device());
    let mut rows = Vec::new();
    for chunk in ids.chunks(50) {
        let plan = model.plan(Input::Chunk { seq: 0, ids: chunk }, &mut cache).expect("it fits");
        let out = model.forward(&plan, &mut cache, None);
        let logits = pollster::block_on(read_f32(&[&model.logits(&out, Logits::All)])).expect("readable");
        cache.advance(0, chunk.len(), 0);
        for row in as_f32(&logits[0]).chunks(model.config().vocab_size) {
            let highest = row.iter().copied().fold(f32::MIN, f32::max);
            let mass: f64 = row.iter().map(|v| f64::from(v - highest).exp()).sum();
            rows.push(row.iter().map(|v| f64::from(v - highest) - mass.ln()).collect());
        }
    }
    rows
}

#[test]
fn probabilities_are_those_of_the_model() {
    let mut engine = random(2);
    let prompt: Vec<u32> = (0..300).map(|i| i * 7 % 300).collect();
    let sampling = secateur::sampling::Sampling {
        temperature: 1.7,
        top_k: 40,
        repetition_penalty: 1.3,
        ..secateur::sampling::Sampling::GREEDY
    };
    let drawn = Settings { sampling, seed: 3, ignore_eos: true, ..full(40) };
    let pruned = Settings {
        policy: secateur::policy::Random.into(),
        budget: "ratio:1.0".parse().expect("a budget"),
        probe_every: 7,
        max_thinking_tokens: Some(20),
        ..Settings { sampling: secateur::sampling::Sampling::GREEDY, ..drawn.clone() }
    };
    for plain in [drawn, pruned] {
        let open = secateur::Encoded { ids: prompt.clone(), thinking: secateur::engine::PromptThinking::Open };
        let open = Prompt::Encoded(open);
        let settings = Settings { logprobs: Some(4), prompt_logprobs: Some(2), ..plain.clone() };
        let unreported = ids(&streamed(&mut engine, &open, &plain).0);
        let mut batch = engine.batch();
        batch.add(&open, &settings).expect("a good request");
        // A neighbour that reports nothing.
        batch.add(&Prompt::Ids(vec![5, 6]), &Settings { ignore_eos: true, ..full(9) }).expect("a good request");
        let mut reported = Vec::new();
        let mut on = |request, event: Event<'_>| {
            if let Event::Token { id, logprobs, .. } = event {
                assert_eq!(logprobs.is_some(), request == 0);
                reported.extend(logprobs.map(|logprobs| (id, logprobs.clone())));
            }
        };
        let results = pollster::block_on(batch.run(&mut on));
        let result = results.into_iter().next().expect("two").1.expect("it runs");
        assert_eq!(ids(&result), unreported, "what is reported changes nothing");
        assert_eq!((reported.len(), result.prompt_logprobs.len()), (40, 299));
        let all: Vec<u32> = prompt.iter().copied().chain(ids(&result)).collect();
        let expected = reference(&engine, &all);
        let prompt_tokens = prompt.iter().copied().skip(1).zip(result.prompt_logprobs.iter().cloned());
        let mut first = 0;
        for (at, (id, found)) in prompt_tokens.chain(reported).enumerate() {
            let expected = &expected[at];
            assert_eq!(all[at + 1], id);
            let close = |found: f32, id: u32| (f64::from(found) - expected[id as usize]).abs() < 2e-4;
            assert!(close(found.chosen, id), "{at}: {} against {}", found.chosen, expected[id as usize]);
            assert_eq!(found.top.len(), if at < 299 { 2 } else { 4 });
            assert!(found.top.iter().all(|(id, logprob)| close(*logprob, *id)), "{at}: {found:?}");
            assert!(found.top.is_sorted_by(|a, b| a.1 >= b.1));
            let above = expected.iter().filter(|v| **v > f64::from(found.top[0].1) + 2e-4).count();
            assert_eq!(above, 0, "{at}: the first is the most likely");
            let listed = found.top.iter().find(|(other, _)| *other == id);
            assert!(listed.is_none_or(|(_, logprob)| *logprob == found.chosen), "the same number twice");
            first += usize::from(found.top[0].0 == id);
        }
        // With greedy decoding, all tokens are the most likely ones, except those that the engine wrote.
        let least = if plain.sampling.is_greedy() { 35 } else { 1 };
        assert!(first >= least, "only {first} tokens are the most likely");
    }
}

/// The penalties are OpenAI's: the logit of a token loses `frequency` for each time that it was generated, and
/// `presence` if it was. Tokens of the prompt do not count, and tokens that the engine writes do.
#[test]
fn penalties_are_those_of_openais_interface() {
    let mut engine = random(3);
    let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
    let given = secateur::Encoded { ids: prompt.clone(), thinking: secateur::engine::PromptThinking::Open };
    let given = Prompt::Encoded(given);
    let greedy = secateur::sampling::Sampling::GREEDY;
    let mut differ = 0;
    let mut requests = Vec::new();
    for (frequency_penalty, presence_penalty) in [(0.0, 0.0), (0.7, 0.0), (0.0, 1.5), (1.1, 0.4), (-0.6, 0.2)] {
        requests.push(Settings {
            sampling: secateur::sampling::Sampling { frequency_penalty, presence_penalty, ..greedy },
            policy: secateur::policy::ThinkClearly.into(),
            // Probes are made, but evict nothing.
            budget: "ratio:1.0".parse().expect("a budget"),
            probe_every: 7,
            max_thinking_tokens: Some(25),
            ignore_eos: true,
            ..full(60)
        });
    }
    let mut alone = Vec::new();
    for settings in &requests {
        let result = streamed(&mut engine, &given, settings).0;
        assert!(!result.trace.probes.is_empty());
        let generated = ids(&result);
        let all: Vec<u32> = prompt.iter().copied().chain(generated.iter().copied()).collect();
        let logits = reference(&engine, &all);
        let mut counts = std::collections::HashMap::<u32, usize>::new();
        for (at, token) in result.trace.tokens.iter().enumerate() {
            let penalised = |id: usize| {
                let times = counts.get(&(id as u32)).copied().unwrap_or(0);
                let off = times as f64 * f64::from(settings.sampling.frequency_penalty);
                let once = if times > 0 { f64::from(settings.sampling.presence_penalty) } else { 0.0 };
                logits[prompt.len() - 1 + at][id] - off - once
            };
            let best = (0..logits[0].len()).map(penalised).fold(f64::MIN, f64::max);
            if !token.forced {
                assert!(penalised(token.id as usize) > best - 1e-4, "token {at} of {:?}", settings.sampling);
            }
            *counts.entry(token.id).or_default() += 1;
        }
        differ += usize::from(!alone.contains(&generated));
        alone.push(generated);
    }
    assert!(differ > 3, "only {differ} of the penalties change anything");
    // The requests run side by side, and in places where other requests have counted tokens before.
    for _ in 0..2 {
        let mut batch = engine.batch();
        for settings in &requests {
            batch.add(&given, settings).expect("a good request");
        }
        let results = pollster::block_on(batch.run(&mut |_, _| ()));
        let together: Vec<Vec<u32>> = results.into_iter().map(|(_, result)| ids(&result.expect("it runs"))).collect();
        assert_eq!(together, alone);
    }
}
