//! What pruning costs and what it saves: `tokens:512` against `full` over thousands of tokens, and one pruning's
//! parts.
//!
//!     cargo bench --bench pruning -- MODEL_DIR [DEVICE] [TOKENS] [POLICY] [PLOT.svg]
//!     cargo bench --bench pruning -- MODEL_DIR [DEVICE] [TOKENS] all    what each policy's measuring costs, in turns with `full`
//!
//! Both runs go on in turns, a few steps each, so that whatever else the machine does slows both alike. Speeds are
//! medians over the turns of 500 tokens. The prompt opens the thinking; a model that has no tokenizer runs policies
//! that need no probe.
use secateur::Dtype;
use std::sync::Arc;
use std::time::Instant;

use pollster::block_on;
use secateur::ModelSource;
use secateur::device::ComputeDevice;
use secateur::engine::{Engine, Event, GROWTH, LoadOptions, Prompt, Settings};
use secateur::expert::bench;
use secateur::expert::cache::{CacheShape, RegionUpdate};
use secateur::expert::kernels::Reduce;
use secateur::expert::ledger::Ledger;
use secateur::expert::model::decoder::Decoder;
use secateur::expert::runner::{ProbeInput, Runner};
use secateur::policy::{self, Budget, CacheView, PolicyRef, Role, ViewParts};

const PROMPT: usize = 30;
const EVERY: usize = 200;
const WINDOW: usize = 64;
const BIN: usize = 500;

/// One run as it goes on.
#[derive(Default)]
struct Course {
    /// Tokens generated before, and milliseconds a token, of each turn without a pruning in it.
    turns: Vec<(usize, f64)>,
    /// Of each pruning: tokens so far, slots before and after, reserved bytes before and after, microseconds of
    /// probe, plan, gather.
    prunings: Vec<(usize, usize, usize, u64, u64, [u64; 3])>,
    tokens: usize,
    peak: usize,
}

impl Course {
    /// Median milliseconds a token in each bin of [`BIN`] tokens.
    fn speeds(&self) -> Vec<f64> {
        let bin = |b: usize| median(self.turns.iter().filter(|t| t.0 / BIN == b).map(|t| t.1).collect());
        (0..self.tokens.div_ceil(BIN)).map(bin).filter(|ms| ms.is_finite()).collect()
    }
}

fn main() -> secateur::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Some(dir) = args.first() else {
        println!(
            "skipped: no model directory given (cargo bench --bench pruning -- MODEL_DIR [DEVICE] [TOKENS] [POLICY] [SVG])"
        );
        return Ok(());
    };
    let device = block_on(ComputeDevice::open(args.get(1).map_or("auto", String::as_str)))?;
    let tokens: usize = args.get(2).and_then(|n| n.parse().ok()).unwrap_or(4000);
    let policy = args.get(3).cloned().unwrap_or_else(|| PolicyRef::default().name().into());
    let source = ModelSource::open(dir)?;
    let load = LoadOptions { kv: Dtype::F16, context: None, sequences: 1, weights: None };
    let engine = || Engine::load(&source, dir.as_str(), &device, &load, &mut |_, _| ());
    let (mut pruned, mut full) = (engine()?, engine()?);
    // A model that closes its thinking is no longer pruned: those of tests/golden/make_bench.py never do.
    let open = pruned.tokenizer().ok().and_then(|t| t.think_ids().open);
    let mut ids: Vec<u32> = (0..PROMPT as u32).map(|i| i * 7 % 256).collect();
    ids[PROMPT - 1] = open.unwrap_or(ids[PROMPT - 1]);
    let prompt = Prompt::Ids(ids);
    if policy == "all" {
        return costs(&mut pruned, &mut full, &prompt, tokens);
    }
    let policy = policy::by_name(&policy)?;
    let probes = policy.needs().probes();
    println!("{dir} on {}, {tokens} tokens, {policy}, tokens:512, p = {EVERY}", device.info.line());
    let options = options(tokens, policy, 512);
    let probe = if probes { 31 } else { 0 };
    split(pruned.model(), &options, probe)?;

    let courses = in_turns(&mut pruned, &mut full, &prompt, &options)?;
    let [pruned, full] = &courses;
    let (fast, slow) = (pruned.speeds(), full.speeds());
    println!("tokens, ms a token pruned, ms a token full (medians)");
    for (bin, (p, f)) in fast.iter().zip(&slow).enumerate() {
        println!("{}-{}, {p:.3}, {f:.3}", bin * BIN, ((bin + 1) * BIN).min(tokens));
    }
    let (second, last) = (fast.get(1).unwrap_or(&f64::NAN), fast.last().unwrap_or(&f64::NAN));
    println!(
        "pruned: late {:.1} % slower than early; full: {:.1} %",
        (last / second - 1.0) * 100.0,
        (slow.last().unwrap_or(&f64::NAN) / slow.get(1).unwrap_or(&f64::NAN) - 1.0) * 100.0
    );
    let bound = (PROMPT + 512.max(WINDOW + policy::CURRENT_STEP_KEPT) + EVERY + probe).next_multiple_of(GROWTH);
    println!("slots at most: pruned {} (bound {bound}), full {}", pruned.peak, full.peak);
    let falls = pruned.prunings.iter().filter(|p| p.4 < p.3).count();
    println!(
        "{} prunings, {} of them evicted, reserved bytes fell at {falls}",
        pruned.prunings.len(),
        pruned.prunings.iter().filter(|p| p.2 < p.1).count()
    );
    if let Some(file) = args.get(4) {
        std::fs::write(file, plot(pruned, &fast, &slow, tokens)).expect("a place to write the plot");
        println!("plotted in {file}");
    }
    Ok(())
}

fn options(tokens: usize, policy: PolicyRef, budget: usize) -> Settings {
    Settings {
        max_new_tokens: tokens,
        policy,
        budget: Budget::Tokens(budget),
        window: WINDOW,
        probe_every: EVERY,
        ignore_eos: true,
        ..Settings::default()
    }
}

/// The run that `options` describe and the same with `full`, a few steps each in turn.
fn in_turns(
    pruned: &mut Engine,
    full: &mut Engine,
    prompt: &Prompt,
    options: &Settings,
) -> secateur::Result<[Course; 2]> {
    let mut courses = [Course::default(), Course::default()];
    let mut batches = [pruned.batch(), full.batch()];
    batches[0].add(prompt, options)?;
    batches[1].add(prompt, &Settings { policy: policy::Full.into(), ..options.clone() })?;
    while batches.iter().any(|b| !b.is_idle()) {
        for (batch, course) in batches.iter_mut().zip(&mut courses).filter(|(b, _)| !b.is_idle()) {
            let (mut read, mut prunings) = (0, Vec::new());
            let begun = Instant::now();
            let ended = block_on(batch.step(&mut |_, event| match event {
                Event::Token { .. } => read += 1,
                Event::Probe(p) => {
                    let (before, after) = (p.bytes_before.reserved, p.bytes_after.reserved);
                    let times = [p.timings.probe_us, p.timings.plan_us, p.timings.gather_us];
                    prunings.push((p.at_token, p.cached_before, p.cached_after, before, after, times));
                }
                _ => {}
            }));
            let ms = begun.elapsed().as_secs_f64() * 1e3;
            if prunings.is_empty() && read > 0 {
                course.turns.push((course.tokens, ms / read as f64));
            }
            course.tokens += read;
            course.prunings.extend(prunings);
            for (_, result) in ended {
                course.peak = result?.trace.totals.peak_cached;
            }
        }
    }
    Ok(courses)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What each policy's measuring costs where nothing is evicted, so that both runs cache the same: at every token, and
/// at a pruning, whose measuring includes one step's forward pass that would have been due anyway.
fn costs(pruned: &mut Engine, full: &mut Engine, prompt: &Prompt, tokens: usize) -> secateur::Result<()> {
    println!(
        "{} on {}, {tokens} tokens, nothing evicted, p = {EVERY}",
        pruned.name(),
        pruned.model().device().info.line()
    );
    println!("policy, a token of its own in tokens of full (medians), ms to measure, ms to plan, prunings");
    for entry in policy::POLICIES.iter().filter(|p| p.evicts()) {
        let [own, of_full] = in_turns(pruned, full, prompt, &options(tokens, policy::by_name(entry.name())?, tokens))?;
        // Turn by turn: both cached the same, and whatever else ran slowed both.
        let ratio = |(at, own): &(usize, f64)| {
            let near = of_full.turns.iter().min_by_key(|(other, _)| other.abs_diff(*at)).expect("as many turns");
            own / near.1
        };
        let ratios = own.turns.iter().skip(4).map(ratio).collect();
        let part = |i: usize| median(own.prunings.iter().map(|p| p.5[i] as f64 / 1e3).collect());
        println!("{}, {:.3}, {:.2}, {:.2}, {}", entry.name(), median(ratios), part(0), part(1), own.prunings.len());
    }
    Ok(())
}

/// The parts of one pruning at 742 cached slots, each waited for, medians of 7, against 200 decode steps.
fn split(model: &Arc<Decoder>, options: &Settings, probe: usize) -> secateur::Result<()> {
    let (cached, vocab) = (PROMPT + 512 + EVERY, model.config().vocab_size as u32);
    let shape = CacheShape::new(model.config(), Dtype::F16, 1, GROWTH)?;
    let mut rounds: Vec<[f64; 6]> = Vec::new();
    let mut ledger = Ledger::new(PROMPT);
    (0..cached - PROMPT).for_each(|i| ledger.push(Role::Thinking, if i % 25 == 0 { " Wait, it" } else { " is x" }));
    let probe: Vec<u32> = (0..probe.max(1) as u32).collect();
    let probe = ProbeInput { ids: &probe, layers: model.config().num_layers };
    for _ in 0..8 {
        let mut runner = Runner::new(model.clone(), shape);
        let wait = |runner: &Runner| block_on(runner.read().finish()).map(|_| ());
        // The last 9 slots are those of 8 decode steps and of the token whose logits are held.
        let ids: Vec<u32> = (0..cached as u32 - 9).map(|i| i * 31 % vocab).collect();
        block_on(bench::prefill(&mut runner, &ids))?;
        let mut times = [0.0; 6];
        let begun = Instant::now();
        runner.decode(&[0], 8)?;
        wait(&runner)?;
        times[5] = begun.elapsed().as_secs_f64() / 8.0;
        let held = runner.hold(&[(0, 1)], None)?;
        wait(&runner)?;
        let begun = Instant::now();
        runner.probe(&held, 0, probe, None)?;
        wait(&runner)?;
        times[0] = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let rows = runner.probe(&held, 0, probe, Some(Reduce::Layer))?;
        wait(&runner)?;
        times[1] = (begun.elapsed().as_secs_f64() - times[0]).max(0.0);
        let begun = Instant::now();
        let measured = block_on(rows.finish())?;
        times[2] = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let snapshot = ledger.snapshot();
        let scores = &measured.layers[0][0][..cached];
        let view = CacheView::new(ViewParts {
            scores: Some(scores),
            similarity: Some(scores),
            window: WINDOW,
            ..snapshot.parts(0, options.budget)
        })?;
        let plan = PolicyRef::default().plan(&view)?;
        times[3] = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        runner.keep(&[RegionUpdate::new(0, &plan, EVERY)]).into_iter().collect::<secateur::Result<()>>()?;
        wait(&runner)?;
        times[4] = begun.elapsed().as_secs_f64();
        rounds.push(times);
    }
    // The first compiles.
    rounds.remove(0);
    let part = |part: usize| median(rounds.iter().map(|r| r[part]).collect()) * 1e3;
    let names = ["probe forward", "readout", "readback", "plan", "gather and freeing"];
    let parts: Vec<f64> = (0..5).map(part).collect();
    let decode = part(5) * EVERY as f64;
    println!("one pruning at {cached} slots to {}, ms (medians of 7):", PROMPT + 512);
    names.iter().zip(&parts).for_each(|(name, ms)| println!("  {name}: {ms:.2}"));
    let sum: f64 = parts.iter().sum();
    println!(
        "  together {sum:.2}, {:.1} % of {EVERY} decode steps of {:.2}",
        100.0 * sum / decode,
        decode / EVERY as f64
    );
    Ok(())
}

/// Cache size and time a token over the run, as one SVG.
fn plot(pruned: &Course, fast: &[f64], slow: &[f64], tokens: usize) -> String {
    let (width, height, left, gap) = (720.0, 180.0, 60.0, 60.0);
    let x = |t: f64| left + t / tokens as f64 * (width - left - 20.0);
    let line = |points: &[(f64, f64)], most: f64, top: f64, style: &str| {
        let at = |(t, v): &(f64, f64)| format!("{:.1},{:.1}", x(*t), top + height - v / most * height);
        format!("<polyline fill=\"none\" {style} points=\"{}\"/>", points.iter().map(at).collect::<Vec<_>>().join(" "))
    };
    let (red, grey) =
        ("stroke=\"#c0392b\" stroke-width=\"2\"", "stroke=\"#777\" stroke-width=\"2\" stroke-dasharray=\"6 4\"");
    let mut slots = vec![(0.0, PROMPT as f64)];
    for p in &pruned.prunings {
        slots.extend([(p.0 as f64, p.1 as f64), (p.0 as f64, p.2 as f64)]);
    }
    let last = slots.last().map_or(0.0, |s| s.1 + tokens as f64 - s.0);
    slots.push((tokens as f64, last));
    let all = (PROMPT + tokens) as f64;
    let bins = |ms: &[f64]| ms.iter().enumerate().map(|(b, v)| ((b as f64 + 0.5) * BIN as f64, *v)).collect::<Vec<_>>();
    let most = fast.iter().chain(slow).copied().fold(0.0, f64::max) * 1.1;
    let text = |x: f64, y: f64, s: &str| {
        format!("<text x=\"{x:.0}\" y=\"{y:.0}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">{s}</text>")
    };
    let axis = |top: f64| {
        format!("<path d=\"M{left} {top} V{} H{}\" fill=\"none\" stroke=\"#999\"/>", top + height, width - 20.0)
    };
    let below = 30.0 + height + gap;
    [
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {:.0}\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>", below + height + 40.0),
        axis(30.0),
        text(left, 20.0, &format!("cached slots, 0 to {all:.0} (pruned: red; full: dashed)")),
        line(&[(0.0, PROMPT as f64), (tokens as f64, all)], all, 30.0, grey),
        line(&slots, all, 30.0, red),
        axis(below),
        text(left, below - 10.0, &format!("milliseconds a token, 0 to {most:.2}, medians of {BIN} tokens")),
        line(&bins(slow), most, below, grey),
        line(&bins(fast), most, below, red),
        text(left, below + height + 25.0, &format!("generated tokens, 0 to {tokens}")),
        "</svg>\n".into(),
    ]
    .join("\n")
}
