//! `secateur calibrate`: which layers should vote, by accuracy on questions with answers.
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use secateur::device::ComputeDevice;
use secateur::engine::{Engine, LoadOptions, RunOptions};
use secateur::eval::calibrate::{self, Calibration, FILE};
use secateur::eval::{Problem, Trial, problems};
use secateur::policy::{self, Budget};
use secateur::{Error, ErrorKind, Result, builtin, probe};
use serde_json::{Value, json};

use super::model;
use super::run::{self, INTERRUPTS};
use super::screen;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in Hugging Face layout, or a model on the hub. Default: the small model inside the binary.
    #[arg(value_name = "DIR|NAME")]
    model: Option<String>,
    /// Questions with answers, a JSON object a line: {"question": "...", "answer": "..."}.
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// Where the choice goes. Default: secateur.json beside the model, where `run` finds it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Use the first N questions only.
    #[arg(long, value_name = "N")]
    problems: Option<usize>,
    /// The policy whose scores the layers give.
    #[arg(long, value_name = "NAME", default_value = policy::DEFAULT_POLICY)]
    policy: String,
    /// The budget, the same for every set of layers.
    #[arg(long, value_name = "BUDGET", default_value_t = Budget::default().to_string())]
    budget: String,
    /// Latest tokens that are never evicted.
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Thinking tokens from one probe to the next.
    #[arg(long, value_name = "P")]
    probe_every: Option<usize>,
    /// Generate at most so many tokens for a question.
    #[arg(long, value_name = "N", default_value_t = RunOptions::default().max_new_tokens)]
    max_new_tokens: usize,
    /// Questions answered side by side.
    #[arg(long, value_name = "N", default_value_t = 8)]
    sequences: usize,
    /// auto, cpu, vulkan, metal, dx12, gl, or a part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value_t = super::Kv::F16)]
    kv: super::Kv,
    /// Positions to make room for. Default: the model's own maximum, at most 32768.
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Only errors.
    #[arg(long, short)]
    quiet: bool,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    let own = args.model.is_none();
    let options = RunOptions {
        max_new_tokens: args.max_new_tokens,
        policy: args.policy.clone(),
        budget: args.budget.parse()?,
        window: args.window.unwrap_or(if own { builtin::WINDOW } else { policy::DEFAULT_WINDOW }),
        probe_every: args.probe_every.unwrap_or(if own { builtin::PROBE_EVERY } else { probe::DEFAULT_PROBE_EVERY }),
        ..RunOptions::default()
    };
    let policy = policy::by_name(&options.policy)?;
    policy.accepts(options.budget)?;
    if !policy.needs().scores() {
        return Err(Error::new(ErrorKind::Policy, "this policy has no scores that layers could give")
            .at("--policy")
            .found(&options.policy));
    }
    let failed = |what: &str, path: &Path, e| Error::new(ErrorKind::Io, what).at(path.display()).found(e);
    let text =
        std::fs::read_to_string(&args.data).map_err(|e| failed("the questions cannot be read", &args.data, e))?;
    let mut problems = problems::read(&text, &args.data.display().to_string())?;
    problems.truncate(args.problems.unwrap_or(usize::MAX).max(1));
    let out = match (&args.out, &args.model) {
        (Some(out), _) => out.clone(),
        (None, Some(model)) if Path::new(model).is_dir() => Path::new(model).join(FILE),
        (None, _) => {
            return Err(Error::new(ErrorKind::Input, "where should the choice go?")
                .at("--out")
                .expected("a file, where the model is no directory of yours"));
        }
    };
    let (source, name) = match &args.model {
        Some(model) => model::open(model, false, args.quiet)?,
        None => (builtin::source(), builtin::NAME.to_string()),
    };
    let device = pollster::block_on(ComputeDevice::open(&args.device))?;
    let load = LoadOptions { kv: args.kv.words(), context: args.context, sequences: args.sequences.max(1) };
    let mut bar = screen::Progress::new(&format!("loading {name}"), args.quiet);
    let mut engine = Engine::load(&source, name, &device, &load, &mut |done, of| bar.at(done, of))?;
    drop(bar);
    run::ends_with(engine.stop_flag())?;

    let header = header(args, &options, &problems, &engine);
    let mut progress = Progress::open(&out, &header)?;
    let layers = engine.model().config().num_layers;
    let mut calibration = Calibration::new(layers, problems.len(), progress.done.drain(..));
    let say = |text: &str| {
        if !args.quiet {
            super::say(text)
        }
    };
    say(&format!("{layers} layers, {} questions, {} on {}", problems.len(), options.budget, device.info.line()));
    while let Some((set, open)) = calibration.next() {
        let mut bar = screen::Progress::new(&format!("layers {set}"), args.quiet);
        let mut done = 0;
        let mut take = |trial: Trial| {
            done += 1;
            bar.at(done, open.len());
            progress.write(&trial)?;
            calibration.add(trial);
            Ok(())
        };
        pollster::block_on(calibrate::answer(&mut engine, &problems, &set, &open, &options, &mut take))?;
        drop(bar);
        if INTERRUPTS.load(Ordering::SeqCst) > 0 {
            say(&format!("interrupted; the same command goes on from {}", progress.path.display()));
            return Ok(ExitCode::from(130));
        }
        if let Some(row) = calibration.rows().iter().find(|row| row.layers == set.to_string()) {
            let (right, of) = (row.correct, problems.len());
            say(&format!(
                "layers {set}: {right} of {of} right, {} cut off, {:.0} slots at most",
                row.truncated, row.peak_cached
            ));
        }
    }
    let choice = calibration.choice(&options).ok_or_else(|| Error::new(ErrorKind::Internal, "nothing was tried"))?;
    let written =
        serde_json::to_string_pretty(&choice).map_err(|e| Error::new(ErrorKind::Internal, "no JSON").found(e))?;
    std::fs::write(&out, written + "\n").map_err(|e| failed("the choice cannot be written", &out, e))?;
    std::fs::remove_file(&progress.path).ok();
    say(&format!("layers {} chosen, in {}", choice.layers, out.display()));
    super::print(&(choice.layers + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// What must be the same for trials to count: a calibration goes on only where it was begun.
fn header(args: &Args, options: &RunOptions, problems: &[Problem], engine: &Engine) -> Value {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in problems.iter().flat_map(|p| [p.question.as_bytes(), b"\0", p.answer.as_bytes(), b"\0"]).flatten() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    json!({
        "secateur": env!("CARGO_PKG_VERSION"), "model": engine.name(), "device": engine.model().device().info.line(),
        "kv": format!("{:?}", args.kv), "context": engine.model().context(),
        "policy": options.policy, "budget": options.budget.to_string(), "window": options.window,
        "probe_every": options.probe_every, "max_new_tokens": options.max_new_tokens, "problems": problems.len(),
        "hash": format!("{hash:016x}"),
    })
}

/// Trials as they end, a line each, so that nothing is lost by an interruption.
struct Progress {
    path: PathBuf,
    file: std::fs::File,
    done: Vec<Trial>,
}

impl Progress {
    fn open(out: &Path, header: &Value) -> Result<Self> {
        let path = PathBuf::from(format!("{}.progress.jsonl", out.display()));
        let failed = |e: std::io::Error| {
            Error::new(ErrorKind::Io, "the progress of the calibration cannot be kept").at(path.display()).found(e)
        };
        let mut done = Vec::new();
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = known.lines();
        let first = lines.next().map(serde_json::from_str::<Value>);
        if let Some(first) = &first
            && !matches!(first, Ok(found) if found == header)
        {
            return Err(Error::new(ErrorKind::Input, "this is the progress of another calibration")
                .at(path.display())
                .expected(header)
                .found(known.lines().next().unwrap_or_default())
                .help("remove the file to begin anew, or choose another --out"));
        }
        // The last line may be half written.
        done.extend(lines.map_while(|line| serde_json::from_str(line).ok()));
        let mut text = header.to_string() + "\n";
        for trial in &done {
            text += &(serde_json::to_string(trial).map_err(|e| Error::new(ErrorKind::Internal, "no JSON").found(e))?
                + "\n");
        }
        std::fs::write(&path, text).map_err(failed)?;
        let file = std::fs::OpenOptions::new().append(true).open(&path).map_err(failed)?;
        Ok(Self { path, file, done })
    }

    fn write(&mut self, trial: &Trial) -> Result<()> {
        let line = serde_json::to_string(trial).map_err(|e| Error::new(ErrorKind::Internal, "no JSON").found(e))?;
        let failed = |e| Error::new(ErrorKind::Io, "the progress of the calibration cannot be kept").found(e);
        writeln!(self.file, "{line}").map_err(failed)
    }
}
