//! Decode steps whose launches are recorded and replayed have the same bits as steps that are launched one by one.
use secateur::Dtype;
use secateur::Slot;
use secateur::device::ComputeDevice;
use secateur::engine::Settings;
use secateur::expert::cache::{CacheShape, RegionUpdate, Tracking};
use secateur::expert::kernels;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::runner::{Admission, MeasureRequest, ProbeInput, Runner};
use secateur::policy::Positions;
use secateur::sampling::Sampling;

use crate::common::*;

/// The results of a run: the sampled ids of each sequence, their cached rows, and the words of the state.
#[derive(Debug, PartialEq)]
struct Left {
    ids: Vec<Vec<u32>>,
    rows: Vec<Vec<u32>>,
    state: Vec<u32>,
}

/// Settings of three sequences side by side: the first two draw, one of them with penalties on what it has generated.
fn settings(positions: Positions) -> [Settings; 3] {
    let of = |sampling, seed| Settings { sampling, seed, positions, ..Settings::default() };
    let drawn = Sampling { temperature: 0.9, top_p: 0.95, ..Sampling::GREEDY };
    [
        of(drawn, 7),
        of(Sampling { repetition_penalty: 1.2, frequency_penalty: 0.3, ..drawn }, 11),
        of(Sampling::GREEDY, 0),
    ]
}

/// Runs `seqs` sequences with prompts of different lengths for 21 bursts of 8 steps. The cache grows on the way.
/// After some bursts a probe is read and a part of the cache is evicted, and after others a sequence begins anew.
fn run(model: &std::sync::Arc<Decoder>, dtype: Dtype, positions: Positions, seqs: usize, replay: bool) -> Left {
    let shape = CacheShape::new(model.config(), dtype, seqs, 64).expect("f32 or f16");
    let mut runner = Runner::new(model.clone(), shape);
    runner.set_replay(replay);
    let vocabulary = model.config().vocab_size as u32;
    let prompt = |seq: usize, turn: u32| -> Vec<u32> {
        (0..30 + 25 * seq as u32).map(|i| (i * 13 + turn * 5 + seq as u32) % vocabulary).collect()
    };
    let settings = settings(positions);
    let begin = |runner: &mut Runner, seq: usize, first: bool, turn: u32| {
        let prompt = prompt(seq, turn);
        let admission =
            Admission { settings: &settings[seq], tracking: Tracking::default(), prompt: &prompt, group: None };
        runner.admit(seq, first, &admission).expect("it fits");
        runner.prefill(seq, &prompt).expect("it fits");
    };
    (0..seqs).for_each(|seq| begin(&mut runner, seq, seq == 0, 0));
    let all: Vec<usize> = (0..seqs).collect();
    let mut ids = vec![Vec::new(); seqs];
    for burst in 0..21 {
        // In some bursts, only a part of the sequences continues, in another order.
        let some: Vec<usize> = match burst {
            5..8 => all[..seqs.div_ceil(2)].to_vec(),
            15..18 => all.iter().rev().copied().collect(),
            _ => all.clone(),
        };
        let before: Vec<u32> = all.iter().map(|seq| runner.cache().sequence(*seq).step).collect();
        runner.decode(&some, 8).expect("it fits");
        let state = pollster::block_on(runner.read().finish()).expect("readable");
        for &seq in &all {
            let step = runner.cache().sequence(seq).step;
            ids[seq].extend(runner.cache().ids(&state, seq, before[seq], step).expect("finite logits"));
        }
        if burst % 6 == 3 {
            let pending: Vec<(usize, u32)> = all.iter().map(|seq| (*seq, *ids[*seq].last().expect("some"))).collect();
            let held = runner.hold(&pending, None).expect("it fits");
            let probe = ProbeInput { ids: &[3, 5, 8], layers: model.config().num_layers };
            let request = MeasureRequest {
                measurement: secateur::policy::Measurement::ProbeRow,
                granularity: kernels::Reduce::Layer,
                probe,
            };
            let measured = runner.measure(&held, 0, &request).expect("it fits");
            pollster::block_on(measured.finish()).expect("readable");
            let len = runner.cache().longest(0);
            let keep: Vec<Slot> = (0..len as u32).filter(|slot| slot % 3 != 1).map(Slot).collect();
            let kept = runner.keep(&[RegionUpdate::new(0, &keep, 40)]);
            kept.into_iter().for_each(|kept| kept.expect("it fits"));
            runner.resume(&held);
        }
        if burst == 12 {
            begin(&mut runner, seqs - 1, seqs == 1, 1);
        }
    }
    assert_mirrored(runner.cache());
    let layers = 0..shape.layers;
    let rows = all.iter().flat_map(|seq| layers.clone().map(move |layer| (layer, *seq)));
    let rows = rows.map(|(layer, seq)| rows_of(&runner, layer, seq)).collect();
    Left { ids, rows, state: state_words(runner.cache()) }
}

fn rows_of(runner: &Runner, layer: usize, seq: usize) -> Vec<u32> {
    rows(runner.cache(), layer, seq)
}

/// On every device, with dense layers and with experts, alone and side by side, drawn and greedy, with both ways of
/// counting positions: replayed steps leave exactly the bits that launched steps leave.
#[test]
fn replayed_steps_leave_the_bits_of_launched_ones() {
    let _guard = beside_others();
    let (mut compared, mut replayed) = (0, 0);
    for (name, dtype, positions, seqs) in [
        ("qwen2-f16", Dtype::F16, Positions::Original, 1),
        ("qwen2-f16", Dtype::F32, Positions::Original, 3),
        ("gguf-llama-q4", Dtype::F16, Positions::Compact, 2),
        ("qwen3moe-bf16", Dtype::F16, Positions::Original, 2),
    ] {
        let fixture = Fixture::open(name);
        for device in devices() {
            let model = fixture.load(device);
            let before = kernels::counts();
            let launched = run(&model, dtype, positions, seqs, false);
            let between = kernels::counts();
            let found = run(&model, dtype, positions, seqs, true);
            let after = kernels::counts();
            assert_eq!(between.replays, before.replays, "{name}: replayed although it was turned off");
            let replays = after.replays - between.replays;
            println!("{name}, {seqs} sequences, {}: {replays} of {} steps replayed", device.info.name, 21 * 8);
            match device.info.backend.as_str() {
                "cpu" => assert_eq!(replays, 0, "{name}: the CPU has nothing to replay"),
                _ => assert!(replays >= 60, "{name}, {}: only {replays} steps were replayed", device.info.name),
            }
            assert!(found.ids[0].len() > 100);
            assert_eq!(found, launched, "{name}, {}", device.info.name);
            (compared, replayed) = (compared + 1, replayed + replays);
        }
    }
    assert_eq!(compared, 4 * devices().len());
    println!("{replayed} steps replayed in all");
}

/// The work of a decode step on a GPU: six kernels in each layer, four for all of them together, and nothing from the
/// host. Where norms are kernels of their own, there are two more in each layer and one more in all. A change that
/// launches more fails here. If the slots are split, each layer also combines the parts.
#[test]
fn a_step_launches_six_kernels_in_a_layer() {
    let _guard = beside_others();
    let Some(device) = gpu() else { return };
    for norm_in_product in [true, false] {
        let mut device = device.clone();
        device.tuning.norm_in_product = norm_in_product;
        check_launches(&device, if norm_in_product { (6, 4) } else { (8, 5) });
    }
}

/// Checks that a step launches this number of kernels in each layer (first value) and for all of them together.
fn check_launches(device: &ComputeDevice, (in_layer, together): (u64, u64)) {
    let fixture = Fixture::open("qwen2-f16");
    let layers = fixture.config.num_layers as u64;
    let shape = CacheShape::new(&fixture.config, Dtype::F16, 1, 64).expect("f32 or f16");
    let mut runner = Runner::new(fixture.load(device), shape);
    let mut step_at = |slots: usize| {
        runner.clear(0).expect("smaller");
        let prompt: Vec<u32> = (0..slots as u32).map(|i| i % 200).collect();
        let mut forwarded = 0;
        while forwarded < slots {
            forwarded += runner.prefill(0, &prompt[forwarded..]).expect("it fits");
        }
        // The first step may make room. The second is recorded while it is executed, and the others are replayed.
        runner.decode(&[0], 1).expect("it fits");
        [(); 3].map(|()| {
            let before = kernels::counts();
            runner.decode(&[0], 1).expect("it fits");
            kernels::counts().since(before)
        })
    };
    let of = |launches, replays| kernels::Counts { launches, uploads: 0, replays };
    let (short, split) = (in_layer * layers + together, (in_layer + 1) * layers + together);
    assert_eq!(step_at(30), [of(short, 0), of(short, 1), of(short, 1)]);
    assert_eq!(step_at(600), [of(split, 0), of(split, 1), of(split, 1)]);
}

/// A recording holds the memory that its kernels use. Pruning still gives memory back, because the recording is
/// dropped first. Two runners that share weights and take turns do not disturb each other.
#[test]
fn a_recording_keeps_neither_memory_nor_the_neighbours() {
    let _guard = alone();
    let Some(device) = gpu() else { return };
    let fixture = Fixture::open("qwen2-f16");
    let model = fixture.load(device);
    let shape = CacheShape::new(&fixture.config, Dtype::F32, 1, 64).expect("f32 or f16");
    let prompt: Vec<u32> = (0..2000).map(|i| i * 7 % 300).collect();
    let mut runners = [true, true, false].map(|replay| {
        let mut runner = Runner::new(model.clone(), shape);
        runner.set_replay(replay);
        let mut forwarded = 0;
        while forwarded < prompt.len() {
            forwarded += runner.prefill(0, &prompt[forwarded..]).expect("it fits");
        }
        runner
    });
    let before = kernels::counts();
    for _ in 0..4 {
        runners.iter_mut().for_each(|runner| runner.decode(&[0], 5).expect("it fits"));
    }
    assert!(kernels::counts().since(before).replays >= 20, "the two have to replay: {:?}", kernels::counts());
    let [first, second, launched] = runners.each_ref().map(|runner| state_words(runner.cache()));
    assert_eq!(first, launched);
    assert_eq!(second, launched);

    device.burn.memory_cleanup();
    state_words(runners[0].cache());
    let (before, wanted) = (device.bytes(), runners[0].cache().bytes());
    let keep: Vec<Slot> = (0..2000).step_by(20).map(Slot).collect();
    let kept = runners[0].keep(&[RegionUpdate::new(0, &keep, 1)]);
    kept.into_iter().for_each(|kept| kept.expect("it fits"));
    state_words(runners[0].cache());
    let (after, freed) = (device.bytes(), wanted - runners[0].cache().bytes());
    println!("{}: {before:?} to {after:?}, the cache gave back {freed}", device.info.name);
    assert!(freed > wanted * 8 / 10);
    assert!(before.reserved - after.reserved >= freed * 9 / 10, "the driver got back less than was freed");
}

/// While outputs are poisoned, which writes to the device, nothing is recorded, and the same thread records
/// afterwards.
#[test]
fn nothing_is_recorded_while_outputs_are_poisoned() {
    let _guard = beside_others();
    let Some(device) = gpu() else { return };
    let fixture = Fixture::open("qwen2-f16");
    let shape = CacheShape::new(&fixture.config, Dtype::F16, 1, 64).expect("f32 or f16");
    let mut runner = Runner::new(fixture.load(device), shape);
    runner.prefill(0, &[5; 10]).expect("it fits");
    let mut replays = || {
        let before = kernels::counts();
        (0..4).for_each(|_| runner.decode(&[0], 2).expect("it fits"));
        pollster::block_on(runner.read().finish()).expect("readable");
        kernels::counts().since(before).replays
    };
    kernels::memory::poison_outputs(true);
    let poisoned = replays();
    kernels::memory::poison_outputs(false);
    assert_eq!(poisoned, 0);
    assert!(replays() > 0);
}
