//! Prompts with a common beginning: a request copies the part that another one has computed, bit for bit.
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use secateur::device::{ComputeDevice, Tuning};
use secateur::engine::{Batch, Engine, LoadOptions, Prompt, RunResult, Settings};
use secateur::expert::cache::{CacheShape, Tracking};
use secateur::expert::model::decoder::Decoder;
use secateur::expert::runner::{Admission, Runner};
use secateur::policy::{POLICIES, Positions};
use secateur::{Dtype, ModelSource};

use crate::common::{Fixture, beside_others, devices, directory, gpu, rows};

/// Ids that look random, and are the same for the same `kind`.
fn ids(kind: u64, count: usize) -> Vec<u32> {
    let mut generator = ChaCha8Rng::seed_from_u64(kind);
    (0..count).map(|_| 3 + (generator.next_u64() % 250) as u32).collect()
}

/// The first `at` ids of `kind`, then others.
fn parting(kind: u64, at: usize, count: usize) -> Vec<u32> {
    [&ids(kind, at)[..], &ids(kind + 1000 + at as u64, count - at)].concat()
}

fn engine(device: &ComputeDevice, sequences: usize) -> Engine {
    let source = ModelSource::directory(directory("qwen2-f16")).expect("committed");
    let options = LoadOptions { kv: Dtype::F16, context: Some(2048), sequences, weights: None };
    Engine::load(&source, "qwen2-f16", device, &options, &mut |_, _| ()).expect("a good model")
}

/// The prompt, with which the thinking begins.
fn thinking(engine: &Engine, mut prompt: Vec<u32>) -> Vec<u32> {
    prompt.extend(engine.tokenizer().expect("it has one").think_ids().open);
    prompt
}

fn settings(policy: &str, max_new_tokens: usize) -> Settings {
    Settings {
        policy: policy.parse().expect("a policy"),
        budget: "tokens:12".parse().expect("a budget"),
        window: 4,
        probe_every: 9,
        max_new_tokens,
        ignore_eos: true,
        ..Settings::default()
    }
}

fn tokens(result: &RunResult) -> Vec<u32> {
    assert!(result.error.is_none(), "{:?}", result.error);
    result.trace.tokens.iter().map(|t| t.id).collect()
}

fn run(engine: &mut Engine, prompt: &[u32], settings: &Settings) -> RunResult {
    pollster::block_on(engine.run(&Prompt::Ids(prompt.to_vec()), settings, &mut |_| ())).expect("it runs")
}

/// All devices, and an adapter with the tilings of a GPU, in which the order of sums depends on the length of a
/// chunk.
fn tunings() -> Vec<ComputeDevice> {
    devices().iter().cloned().chain(gpu().map(tiled)).collect()
}

/// The device with the tilings of a GPU.
fn tiled(device: &ComputeDevice) -> ComputeDevice {
    let mut device = device.clone();
    device.tuning = Tuning::GPU;
    device
}

/// Forwards the part of `prompt` that is not copied, then 6 steps. Returns the number of copied tokens, and the ids.
fn forward(runner: &mut Runner, seq: usize, first: bool, prompt: &[u32], group: Option<u64>) -> (usize, Vec<u32>) {
    let admission = Admission { settings: &Settings::default(), tracking: Tracking::default(), prompt, group };
    let copied = runner.admit(seq, first, &admission).expect("it fits");
    let mut forwarded = copied;
    while forwarded < prompt.len() {
        forwarded += runner.prefill(seq, &prompt[forwarded..]).expect("it fits");
    }
    runner.decode(&[seq], 6).expect("it fits");
    let state = pollster::block_on(runner.read().finish()).expect("readable");
    (copied, runner.cache().ids(&state, seq, 0, 7).expect("finite logits"))
}

/// On every device, with dense layers and with experts, keys and values of either type: the rows of a prompt that was
/// partly copied have exactly the bits of one that was forwarded as a whole.
#[test]
fn copied_and_computed_rows_are_the_same_bits() {
    let _guard = beside_others();
    let mut compared = 0;
    for fixture in ["qwen2-f16", "qwen3moe-bf16", "phi3-long-f16"].map(Fixture::open) {
        for device in &tunings() {
            let model: Arc<Decoder> = fixture.load(device);
            let dtype = if fixture.name == "qwen2-f16" { Dtype::F32 } else { Dtype::F16 };
            let runner =
                |seqs| Runner::new(model.clone(), CacheShape::new(&fixture.config, dtype, seqs, 64).expect("a shape"));
            // The length of the other prompt, the place at which they differ, the length of this prompt, and the
            // tokens to copy.
            for (other, at, count, expected) in [
                (300, 200, 310, 191),
                (321, 321, 345, 280),
                (330, 330, 500, 330),
                (70, 66, 140, 66),
                (500, 256, 300, 256),
            ] {
                let vocabulary = fixture.config.vocab_size as u32;
                let within = |ids: Vec<u32>| ids.into_iter().map(|id| id % vocabulary).collect::<Vec<u32>>();
                let prompt = within(parting(5, at, count));
                let mut alone = runner(1);
                let (none, by_itself) = forward(&mut alone, 0, true, &prompt, None);
                let mut shared = runner(3);
                forward(&mut shared, 1, true, &within(ids(5, other)), Some(0));
                let (copied, beside) = forward(&mut shared, 0, false, &prompt, Some(0));
                assert_eq!((none, copied), (0, expected), "{} on {}", fixture.name, device.info.name);
                assert_eq!(by_itself, beside, "{} on {}, {count} ids", fixture.name, device.info.name);
                for layer in 0..fixture.config.num_layers {
                    let (expected, found) = (rows(alone.cache(), layer, 0), rows(shared.cache(), layer, 0));
                    assert!(expected == found, "{} on {}, {count} ids, layer {layer}", fixture.name, device.info.name);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared >= 45, "{compared} layers were compared");
}

/// The check above notices a single bit, and rows of another prompt.
#[test]
fn rows_of_another_prompt_are_noticed() {
    let fixture = Fixture::open("qwen2-f16");
    let model = fixture.load(&devices()[0]);
    let shape = CacheShape::new(&fixture.config, Dtype::F32, 2, 64).expect("a shape");
    let mut runner = Runner::new(model, shape);
    let (prompt, mut other) = (ids(5, 150), ids(5, 150));
    other[80] = 3 + (other[80] + 1) % 250;
    forward(&mut runner, 0, true, &prompt, None);
    forward(&mut runner, 1, false, &other, None);
    for layer in 0..fixture.config.num_layers {
        assert!(rows(runner.cache(), layer, 0) != rows(runner.cache(), layer, 1), "layer {layer}");
    }
}

/// On a GPU, rows of a short chunk differ from those of a long one. Without the rule for short chunks, copies would
/// not be exact.
#[test]
fn rows_of_short_chunks_are_others() {
    let _guard = beside_others();
    let Some(device) = gpu() else { return };
    let device = tiled(device);
    let fixture = Fixture::open("qwen2-f16");
    let shape = CacheShape::new(&fixture.config, Dtype::F32, 2, 64).expect("a shape");
    let mut runner = Runner::new(fixture.load(&device), shape);
    let prompt = ids(5, 440);
    // The chunk from 256 on has 44 rows in one of them, and 184 in the other.
    forward(&mut runner, 0, true, &prompt[..300], None);
    forward(&mut runner, 1, false, &prompt, None);
    let layer = fixture.config.num_layers - 1;
    let beginning = |seq: usize| {
        let (len, planes) = (runner.cache().len(layer, seq), 2 * shape.kv_heads);
        let all = rows(runner.cache(), layer, seq);
        let row = all.len() / planes / len;
        let plane = |plane: usize| all[plane * len * row..][..300 * row].to_vec();
        (0..planes).map(plane).collect::<Vec<_>>()
    };
    let (short, long) = (beginning(0), beginning(1));
    let row = short[0].len() / 300;
    let same_until = |rows: usize| short.iter().zip(&long).all(|(a, b)| a[..rows * row] == b[..rows * row]);
    assert!(same_until(256) && !same_until(300), "the rule would not be needed");
}

/// A batch that is dropped in the middle leaves nothing behind, and the next one runs normally.
#[test]
fn a_dropped_batch_leaves_nothing() {
    let mut engine = engine(&devices()[0], 3);
    engine.keep_prompts(u64::MAX);
    let (prompt, settings) = (ids(3, 200), settings("full", 40));
    let expected = tokens(&run(&mut engine, &prompt, &settings));
    let mut batch = engine.batch();
    for kind in 4..7 {
        batch.add(&Prompt::Ids(ids(kind, 150)), &settings).expect("it fits");
    }
    for _ in 0..4 {
        pollster::block_on(batch.step(&mut |_, _| ()));
    }
    assert!(batch.status().used_bytes > 0);
    drop(batch);
    assert_eq!(engine.batch().status().used_bytes, 0);
    assert_eq!(tokens(&run(&mut engine, &prompt, &settings)), expected);
}

/// Chats with the same beginning have separate places as long as there are free ones.
#[test]
fn conversations_do_not_take_each_others_places() {
    let mut engine = engine(&devices()[0], 3);
    engine.keep_prompts(u64::MAX);
    let mut shared = Vec::new();
    for turn in 0..2 {
        for chat in 0..2 {
            // A common beginning of 300 ids, then 500 of its own and 100 more in each turn.
            let own = ids(50 + chat, 500 + 100 * turn);
            let prompt = [ids(1, 300), own].concat();
            shared.push(run(&mut engine, &prompt, &settings("full", 2)).shared_tokens);
        }
    }
    // The last of the 800 ids that a chat repeats are in a chunk of 32 rows.
    assert_eq!(shared, [0, 300, 768, 768]);
}

/// The number of places follows from the memory.
#[test]
fn places_follow_from_the_memory() {
    let device = &devices()[0];
    let prepared = engine(device, 1).prepared();
    let settings = Settings { max_answer_tokens: Some(100), ..settings("random", 200) };
    let one = prepared.bound(300, &settings).bytes;
    let places = |memory: u64, most: usize| prepared.side_by_side(300, &settings, memory, most, device);
    assert_eq!([places(0, 9), places(one, 9), places(2 * one - 1, 9), places(2 * one, 9)], [1, 1, 1, 2]);
    assert_eq!([places(5 * one, 9), places(5 * one, 3), places(u64::MAX, 64)], [5, 3, 64]);
    let mut small = device.clone();
    small.info.max_binding_bytes = prepared.cache_limit(device).min(one * 3 / 2);
    assert!(prepared.side_by_side(300, &settings, u64::MAX, 64, &small) < 64, "the largest buffer counts too");
}

/// The messages of a conversation, of which each prompt begins with the one before. The generated text does not
/// change, for every earlier pruning and with both ways of counting positions.
#[test]
fn a_conversation_copies_what_it_has_said() {
    let _guard = beside_others();
    for device in [Some(&devices()[0]), gpu()].into_iter().flatten() {
        let (mut keeping, mut fresh) = (engine(device, 2), engine(device, 2));
        keeping.keep_prompts(u64::MAX);
        let conversation = [120, 340, 420].map(|count| thinking(&fresh, ids(9, count)));
        for positions in [Positions::Original, Positions::Compact, Positions::Original] {
            for (turn, prompt) in conversation.iter().enumerate() {
                let settings = Settings { positions, ..settings("random", 40) };
                let (found, expected) = (run(&mut keeping, prompt, &settings), run(&mut fresh, prompt, &settings));
                assert_eq!(tokens(&found), tokens(&expected), "turn {turn}, {positions} positions");
                assert!(!expected.trace.probes.is_empty(), "something has to be pruned");
                // The second prompt has 84 ids in its last chunk, and the third has 164. The first one shares with
                // the others only if positions are counted in the same way.
                assert_eq!(found.shared_tokens, [0, 120, 340][turn], "turn {turn}, {positions} positions");
                assert_eq!(expected.shared_tokens, 0);
            }
        }
        // Tracking by a policy needs all tokens of the prompt.
        let tracked = run(&mut keeping, &conversation[2], &settings("h2o", 30));
        assert_eq!(tracked.shared_tokens, 0);
        assert_eq!(tokens(&tracked), tokens(&run(&mut fresh, &conversation[2], &settings("h2o", 30))));
        let after = run(&mut keeping, &conversation[2], &settings("random", 30));
        assert_eq!(tokens(&after), tokens(&run(&mut fresh, &conversation[2], &settings("random", 30))));
        // No prompt is kept if the limit is 0.
        assert!(keeping.batch().status().kept_bytes > 0);
        keeping.keep_prompts(0);
        assert_eq!((keeping.batch().status().kept_bytes, keeping.batch().status().used_bytes), (0, 0));
    }
}

/// Several answers to one prompt, requested at once: the prompt is forwarded once, and each answer is the one that
/// the request gives alone.
#[test]
fn several_answers_forward_their_prompt_once() {
    let mut engine = engine(&devices()[0], 4);
    let prompt = ids(2, 600);
    let settings: Vec<Settings> = (0..6)
        .map(|seed| {
            let mut settings = settings("random", 20 + seed as usize);
            (settings.seed, settings.sampling.temperature) = (seed, 1.0);
            settings
        })
        .collect();
    let alone: Vec<Vec<u32>> = settings.iter().map(|settings| tokens(&run(&mut engine, &prompt, settings))).collect();
    assert!(alone.windows(2).all(|two| two[0][..20] != two[1][..20]), "seeds matter");
    let mut batch = engine.batch();
    for settings in &settings {
        batch.add(&Prompt::Ids(prompt.clone()), settings).expect("it fits");
    }
    let results = pollster::block_on(batch.run(&mut |_, _| ()));
    let mut shared: Vec<usize> = Vec::new();
    for (request, result) in results {
        let result = result.expect("it runs");
        assert_eq!(tokens(&result), alone[request], "answer {request}");
        shared.push(result.shared_tokens);
    }
    assert_eq!(shared, [0, 535, 535, 535, 535, 535], "65 of 600 tokens are left to each");
}

#[test]
fn groups_do_not_share() {
    let mut engine = engine(&devices()[0], 3);
    engine.keep_prompts(u64::MAX);
    let prompt = Prompt::Ids(ids(2, 300));
    let mut batch = engine.batch();
    let mut shared = Vec::new();
    for group in [7, 8, 7, 8, 0] {
        batch.add_of(group, &prompt, &settings("full", 3)).expect("it fits");
        let results = pollster::block_on(batch.run(&mut |_, _| ()));
        shared.push(results.into_iter().next().expect("one").1.expect("it runs").shared_tokens);
    }
    assert_eq!(shared, [0, 0, 256, 256, 0]);
}

/// Random requests of every policy that share beginnings, some of them cancelled, with little memory. Each result is
/// that of the request alone, and kept prompts never take memory from running requests.
#[test]
fn nothing_depends_on_what_is_shared() {
    let device = &devices()[0];
    let (mut engine, mut alone) = (engine(device, 3), engine(device, 1));
    let prepared = engine.prepared();
    let mut generator = ChaCha8Rng::seed_from_u64(11);
    let mut random = move |n: usize| (generator.next_u64() % n as u64) as usize;
    let (mut shared, mut compared, mut most_kept) = (0, 0, 0);
    for round in 0..6 {
        engine.keep_prompts([u64::MAX, 500_000, 0][round % 3]);
        let requests: Vec<(Vec<u32>, Settings)> = (0..8)
            .map(|i| {
                let policy = if random(4) > 0 { "full" } else { POLICIES[(8 * round + i) % POLICIES.len()].name() };
                let mut settings = settings(policy, 1 + random(30));
                settings.positions = if random(12) == 0 { Positions::Compact } else { Positions::Original };
                settings.prompt_logprobs = (random(9) == 0).then_some(0);
                let count = 70 + random(500);
                (thinking(&alone, parting(0, count / 2 + random(count / 2), count)), settings)
            })
            .collect();
        let bounds = requests.iter().map(|(prompt, settings)| prepared.bound(prompt.len(), settings).bytes);
        let memory = bounds.max().expect("some") * (1 + random(3) as u64);
        let mut batch: Batch<'_> = engine.batch();
        batch.set_memory(memory);
        let cancelled = random(20);
        for (prompt, settings) in &requests {
            batch.add(&Prompt::Ids(prompt.clone()), settings).expect("it fits alone");
        }
        while !batch.is_idle() {
            if random(30) == 0 {
                batch.cancel(cancelled);
            }
            let ended = pollster::block_on(batch.step(&mut |_, _| ()));
            let status = batch.status();
            assert!(status.used_bytes <= status.reserved_bytes, "{status:?}");
            assert!(status.reserved_bytes + status.kept_bytes <= memory || status.running == 0, "{status:?}, {memory}");
            most_kept = most_kept.max(status.kept_bytes);
            for (request, result) in ended {
                let (prompt, settings) = &requests[request];
                let Ok(found) = result else {
                    assert_eq!(request, cancelled, "only one is cancelled");
                    continue;
                };
                shared += usize::from(found.shared_tokens > 0);
                let expected = run(&mut alone, prompt, settings);
                let (found, expected) = (tokens(&found), tokens(&expected));
                let whole = request != cancelled;
                assert!(expected.starts_with(&found) && (!whole || found == expected), "round {round}, {settings:?}");
                compared += 1;
            }
        }
    }
    println!("{compared} results were compared; {shared} had copied a part of their prompt");
    assert!(compared >= 40 && shared >= 10 && most_kept > 0, "{compared} results, {shared} shared, {most_kept} kept");
}
