//! `secateur bench`: measures the speed of prefill and decoding.
use std::path::PathBuf;
use std::process::ExitCode;

use secateur::device::DeviceInfo;
use secateur::engine::GROWTH;
use secateur::expert::bench::page::Table;
use secateur::expert::bench::{self, Copied, KernelTimes, Lengths, Measured, Part, Spread};
use secateur::expert::cache::CacheShape;
use secateur::expert::file;
use secateur::expert::kernels::timing::Clock;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::model::decoder::{self, Decoder};
use secateur::expert::weights::Weights;
use secateur::expert::weights::precision::Precision;
use secateur::{Error, ErrorKind, Result};
use serde::Serialize;
use web_time::Instant;

use super::model::ModelArgs;
use super::options::{self, DeviceArgs, StorageArgs};
use super::screen::{self, Progress};
use super::trust;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[arg(long, value_name = "NAME", conflicts_with = "model", help = preset_help())]
    preset: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// The number of tokens in the prompt. Several numbers, separated by commas, are measured one after the other.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "128")]
    prompt: Vec<usize>,
    /// The number of tokens to decode after the prompt, in each sequence.
    #[arg(long, value_name = "N", default_value_t = 64)]
    decode: usize,
    /// The number of sequences that are decoded at the same time. Several numbers, separated by commas, are measured
    /// one after the other.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1")]
    sequences: Vec<usize>,
    /// The number of measurements of each case. One more run before them compiles the shaders and is not counted.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    #[command(flatten)]
    stored: StorageArgs,
    /// Launch each kernel of a decode step anew. By default the launches of a step are recorded and replayed for the
    /// next ones, which gives the same results.
    #[arg(long)]
    no_replay: bool,
    /// Also measure the time of each kernel on the device, in a decode step and in a chunk of the prompt. Each launch
    /// is timed by itself, so the parts need not add up to the step.
    #[arg(long)]
    kernels: bool,
    /// Print one JSON object to stdout.
    #[arg(long)]
    json: bool,
    /// Write the measurements to a file of comma-separated values.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with figures and a table. It is one file that loads nothing.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Do not show the progress.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Serialize)]
struct BenchReport {
    secateur: &'static str,
    model: String,
    device: DeviceInfo,
    kv: String,
    /// The precision to which the weights were quantized; `None` if they have the types of the file.
    weights: Option<Precision>,
    weight_bytes: u64,
    /// Microseconds until the weights were on the device.
    load_us: u64,
    copy: Copied,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Run {
    #[serde(flatten)]
    measured: Measured,
    repetitions: usize,
    decode_bytes_per_second: f64,
    /// The bandwidth of decoding, as a fraction of the copy bandwidth.
    decode_bandwidth_fraction: f64,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    if args.repeat == 0 || args.decode == 0 || args.prompt.contains(&0) || args.sequences.contains(&0) {
        return Err(Error::new(ErrorKind::Input, "a number is 0, so there is nothing to measure")
            .at("--prompt, --decode, --sequences, --repeat")
            .expected("at least 1 of each"));
    }
    for file in args.csv.iter().chain(&args.html) {
        file::check_writable(file)?;
    }
    let (source, name) = match &args.preset {
        Some(name) => (bench::preset(name)?, format!("{name} with random weights")),
        None => args.model.open(args.quiet)?,
    };
    let config = ModelConfig::load(&source)?;
    // Everything that can be checked without the weights is checked before they are loaded.
    let pairs = args.prompt.iter().flat_map(|&prompt| args.sequences.iter().map(move |&sequences| (prompt, sequences)));
    let all: Vec<Lengths> =
        pairs.map(|(prompt, sequences)| Lengths { prompt, decode: args.decode, sequences }).collect();
    // Timing kernels takes one decode step more than repetitions.
    let steps = if args.kernels { args.decode.max(args.repeat.saturating_add(1)) } else { args.decode };
    let longest_of = |lengths: &Lengths| Lengths { decode: steps, ..*lengths };
    for lengths in all.iter().map(longest_of) {
        lengths.check(config.longest_context())?;
        CacheShape::new(&config, args.stored.kv, lengths.sequences, GROWTH)?;
    }
    let weights = Weights::open(&source)?;
    let device = trust::open(&args.device.select, args.quiet)?;
    if args.kernels {
        bench::check_timed(&device)?;
    }
    // The context is only as long as the longest case needs, because the RoPE table is as long as the context.
    let longest = all.iter().map(|lengths| lengths.prompt + steps).max().unwrap_or(1);
    let context = longest.next_multiple_of(GROWTH);
    for lengths in all.iter().map(longest_of) {
        decoder::check_device(&config, lengths.sequences, lengths.prompt + lengths.decode, &device)?;
        let shape = CacheShape::new(&config, args.stored.kv, lengths.sequences, GROWTH)?;
        shape.check_prompt(lengths.prompt.saturating_mul(lengths.sequences), &device.info)?;
    }
    let mut bar = Progress::new(&format!("loading {name}"), args.quiet);
    let began = Instant::now();
    let model = Decoder::load(&config, &weights, context, args.stored.weights, &device, &mut |done, total| {
        bar.at(done, total);
    })?;
    let model = std::sync::Arc::new(model);
    drop(bar);
    let load_us = began.elapsed().as_micros() as u64;

    let explained = |e| device.explained(e);
    let copy = pollster::block_on(bench::copy_bandwidth(&device, args.repeat)).map_err(explained)?;
    let mut bar = Progress::new("measuring", args.quiet);
    let (mut done, total) = (0, all.len().saturating_mul(args.repeat.saturating_add(1)));
    let mut tick = || {
        done += 1;
        bar.at(done, total);
    };
    let (mut runs, mut failed) = (Vec::new(), None);
    for lengths in all {
        let measuring = async {
            let replay = !args.no_replay;
            let mut measured = bench::measure(&model, args.stored.kv, lengths, args.repeat, replay, &mut tick).await?;
            if args.kernels {
                let timing = bench::time_kernels(&model, args.stored.kv, longest_of(&lengths), args.repeat);
                measured.kernels = Some(timing.await?);
            }
            Ok(measured)
        };
        let measured = match pollster::block_on(measuring).map_err(explained) {
            Ok(measured) => measured,
            // The measurements made so far are still printed.
            Err(e) if !runs.is_empty() => {
                failed = Some(e);
                break;
            }
            Err(e) => return Err(e),
        };
        let decode_bytes_per_second = measured.decode_bytes_per_second();
        let decode_bandwidth_fraction = decode_bytes_per_second / copy.bytes_per_second.median;
        runs.push(Run { measured, repetitions: args.repeat, decode_bytes_per_second, decode_bandwidth_fraction });
    }
    drop(bar);
    let outcome = BenchReport {
        secateur: env!("CARGO_PKG_VERSION"),
        model: name,
        device: device.info.clone(),
        kv: args.stored.kv.to_string(),
        weights: args.stored.weights,
        weight_bytes: model.weight_bytes(),
        load_us,
        copy,
        runs,
    };
    match args.json {
        true => super::print_json(&outcome)?,
        false => super::print(&report(&outcome))?,
    }
    let (line, runs) = (outcome.device.line(), outcome.runs.iter().map(|run| run.measured.clone()).collect::<Vec<_>>());
    if let Some(file) = &args.csv {
        let copied = outcome.copy.bytes_per_second.median;
        file::write_whole(file, &bench::page::csv(&outcome.model, &line, copied, &runs))?;
    }
    if let Some(file) = &args.html {
        let all = Table { title: "All results".into(), rows: rows(&outcome) };
        let tables = [vec![all], kernel_tables(&outcome)].concat();
        let facts = [about(&outcome), below(&outcome)].concat();
        file::write_whole(file, &bench::page::page(&outcome.model, &line, &facts, &tables, &runs))?;
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn preset_help() -> String {
    let names = bench::presets().collect::<Vec<_>>().join(", ");
    format!("Measure a model of this size with random weights, which needs no download: {names}")
}

/// The names of the table's columns.
const HEAD: [&str; 13] = [
    "prompt",
    "decode",
    "sequences",
    "prefill tok/s",
    "decode tok/s",
    "bytes/token",
    "(weights + KV)",
    "GB/s",
    "of copy",
    "prefill GFLOP/s",
    "launches/step",
    "submits/step",
    "replayed",
];

/// The table: the names of the columns and a row for each run.
fn rows(outcome: &BenchReport) -> Vec<Vec<String>> {
    std::iter::once(HEAD.map(String::from).to_vec()).chain(outcome.runs.iter().map(row)).collect()
}

fn row(run: &Run) -> Vec<String> {
    let m = &run.measured;
    vec![
        m.prompt.to_string(),
        m.decode.to_string(),
        m.sequences.to_string(),
        spread(m.prefill_tokens_per_second),
        spread(m.decode_tokens_per_second),
        screen::bytes(m.weight_bytes_per_token + m.kv_bytes_per_token),
        format!("({} + {})", screen::bytes(m.weight_bytes_per_token), screen::bytes(m.kv_bytes_per_token)),
        format!("{:.2}", run.decode_bytes_per_second / 1e9),
        format!("{:.0} %", 100.0 * run.decode_bandwidth_fraction),
        format!("{:.1}", m.prefill_flops_per_second() / 1e9),
        format!("{:.0}", m.launches_per_step),
        m.submits_per_step.map_or("-".into(), |submits| format!("{submits:.2}")),
        format!("{:.0} %", 100.0 * m.replayed),
    ]
}

/// The time of each kernel, a table for each run and each of its parts.
fn kernel_tables(outcome: &BenchReport) -> Vec<Table> {
    let mut tables = Vec::new();
    for Run { measured: m, .. } in &outcome.runs {
        let Some(KernelTimes { decode, prefill }) = &m.kernels else { continue };
        let sequences = if m.sequences == 1 { "1 sequence".into() } else { format!("{} sequences", m.sequences) };
        let step = m.sequences as f64 * 1e6 / m.decode_tokens_per_second.median;
        tables.push(Table {
            title: format!("kernels of a decode step of {sequences}, {} tokens cached in each", decode.cached),
            rows: kernel_rows(decode, "a step of the run, on average", step),
        });
        let chunk = prefill.tokens as f64 * 1e6 / m.prefill_tokens_per_second.median;
        tables.push(Table {
            title: format!("kernels of a chunk of a prompt, {} tokens after {}", prefill.tokens, prefill.cached),
            rows: kernel_rows(prefill, "as many tokens of the run, on average", chunk),
        });
    }
    tables
}

/// The rows of a table of kernels. `ordinary` is what the last row is about: `run` microseconds of the run in which
/// no launch was timed by itself.
fn kernel_rows(part: &Part, ordinary: &str, run: f64) -> Vec<Vec<String>> {
    let mut rows = vec![["kernel", "launches", "µs", "share"].map(String::from).to_vec()];
    // A kernel that does not run in every step has a fraction of a launch.
    let launches = |n: f64| if n.fract() == 0.0 { n.to_string() } else { format!("{n:.1}") };
    rows.extend(part.kernels.iter().map(|time| {
        let share = format!("{:.1} %", 100.0 * time.share);
        vec![time.kernel.into(), launches(time.launches), spread(time.microseconds), share]
    }));
    rows.push(vec![
        "all, one after the other".into(),
        launches(part.launches()),
        spread(part.microseconds),
        String::new(),
    ]);
    rows.push(vec![ordinary.into(), String::new(), format!("{run:.1}"), String::new()]);
    rows
}

/// The lines about the weights and the device.
fn about(outcome: &BenchReport) -> Vec<String> {
    let BenchReport { kv, weight_bytes, copy, .. } = outcome;
    let gb = |s: Spread| spread(Spread { median: s.median / 1e9, min: s.min / 1e9, max: s.max / 1e9 });
    let weights = options::in_precision(&screen::bytes(*weight_bytes), outcome.weights);
    let seconds = outcome.load_us as f64 / 1e6;
    vec![
        format!("weights {weights}, loaded in {seconds:.2} s; KV cache in {kv}"),
        format!(
            "copy bandwidth, bytes read plus bytes written, in buffers of {}: {} GB/s by gather, {} GB/s by add",
            screen::bytes(copy.buffer_bytes),
            gb(copy.gather_bytes_per_second),
            gb(copy.add_bytes_per_second)
        ),
    ]
}

/// The lines below the table.
fn below(outcome: &BenchReport) -> Vec<String> {
    let first = outcome.runs.first().map(|Run { measured, .. }| {
        let (seconds, tokens) = (measured.first_prefill_seconds, measured.prompt);
        format!("the first prompt of {tokens} tokens took {seconds:.2} s, in which shaders were compiled or read")
    });
    let times = outcome.runs.first().map_or(0, |run| run.repetitions);
    let counted = format!("median (smallest - largest) of {times} measurements; the first run is not counted");
    let mut parts = outcome.runs.iter().filter_map(|run| run.measured.kernels.as_ref());
    let clock = parts.next().map(|times| match [times.decode.clock, times.prefill.clock].contains(&Clock::Host) {
        false => "kernels are timed by timestamps of the device",
        true => {
            "the device has no timestamps, so kernels are timed by the clock of the host, from a launch until the \
             device has finished it"
        }
    });
    let one_by_one = clock.map(|clock| {
        format!("{clock}; each launch is timed by itself, so they do not overlap, and need not add up to a step")
    });
    first.into_iter().chain([counted]).chain(one_by_one).collect()
}

fn report(outcome: &BenchReport) -> String {
    let lines = |lines: Vec<String>| lines.into_iter().map(|line| line + "\n").collect::<String>();
    let text = |Table { title, rows }: Table| format!("\n{title}\n{}", screen::table(&rows));
    let kernels: String = kernel_tables(outcome).into_iter().map(text).collect();
    format!(
        "{} on {}\n{}\n{}{kernels}{}{}",
        outcome.model,
        outcome.device.line(),
        lines(about(outcome)),
        screen::table(&rows(outcome)),
        if kernels.is_empty() { "" } else { "\n" },
        lines(below(outcome))
    )
}

fn spread(s: Spread) -> String {
    let digits = if s.median < 10.0 { 2 } else { 1 };
    format!("{:.digits$} ({:.digits$} - {:.digits$})", s.median, s.min, s.max)
}
