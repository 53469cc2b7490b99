//! `secateur calibrate`: chooses the layers whose attention is used, by the accuracy on questions with known answers.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use secateur::engine::{LoadOptions, PreparedModel, Prompt, Request, Settings};
use secateur::eval::calibrate::{self, Arm, Calibration, Candidate, Choice, Conditions, Hashed};
use secateur::eval::{Problem, Trial, problems};
use secateur::expert::file;
use secateur::expert::weights::Weights;
use secateur::expert::weights::precision::identity;
use secateur::policy::{Layers, Scope};
use secateur::{Error, ErrorKind, Result, builtin};

use super::fields;
use super::journal::{self, Journal};
use super::model;
use super::options::{self, DeviceArgs, PruningArgs, StorageArgs};
use super::screen;
use super::signals::{self, Signal};
use super::text;
use super::trust;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in Hugging Face layout, a GGUF file, or the name of a model on the hub [default: the small
    /// model in the binary].
    #[arg(value_name = "DIR|FILE|NAME")]
    model: Option<std::ffi::OsString>,
    /// A file with questions and their answers, one JSON object on each line: {"question": "...", "answer": "..."}.
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// The file to write the choice to [default: secateur.json beside the model, where `run` finds it: in its
    /// directory, in its snapshot in the hub's cache, or next to its GGUF file].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Use only the first N questions.
    #[arg(long, value_name = "N")]
    problems: Option<usize>,
    #[command(flatten)]
    pruning: PruningArgs,
    /// The seed of sampling and of the policies that evict at random [default: 0, so that an interrupted calibration
    /// continues].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    seed: u64,
    /// The number of questions that are answered at the same time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    sequences: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    stored: StorageArgs,
    /// The number of positions to make room for, for a question and its answer together [default: the model's
    /// maximum, but at most 32768].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Print only errors and the choice.
    #[arg(long, short)]
    quiet: bool,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    let request = args.request()?;
    let problems = args.problems()?;
    args.out.as_deref().map_or(Ok(()), check_out)?;
    let (source, name) = match &args.model {
        Some(model) => model::open(model, false, args.quiet)?,
        None => (builtin::source(), builtin::NAME.to_string()),
    };
    let beside = calibrate::choice_path(&source);
    let out = args.out.clone().or_else(|| beside.clone()).ok_or_else(|| {
        Error::new(ErrorKind::Input, "no output file for the calibration")
            .at("--out")
            .expected("a file, because the model in the binary has no directory")
    })?;
    check_out(&out)?;
    // Everything that can be checked without the weights is checked before they are loaded.
    let load = LoadOptions {
        kv: args.stored.kv,
        context: args.context,
        sequences: args.sequences,
        weights: args.stored.weights,
    };
    let prepared = PreparedModel::new(&source, &name, &load)?;
    let layers = prepared.config().num_layers;
    let (settings, notes) = prepared.settings(&request)?;
    if !settings.policy.needs().scores() {
        return Err(Error::new(
            ErrorKind::Policy,
            "this policy has no scores, so the choice of layers has no effect on it",
        )
        .at("`policy`")
        .found(&settings.policy));
    }
    let place = |index: usize| move |e: Error| e.at(format!("{}, question {}", args.data.display(), index + 1));
    let mut longest = (0, 0);
    for (index, problem) in problems.iter().enumerate() {
        let tokens = check(&prepared, &Prompt::Chat(problem.question.clone())).map_err(place(index))?;
        longest = longest.max((tokens, index));
    }
    // The settings are checked with a prompt of one token; the token does not matter.
    prepared.check(&Prompt::Ids(vec![0]), &settings)?;
    let hashed = Hashed::from_files(&Weights::open(&source)?, &out)?;
    let device = trust::open(&args.device.select, args.quiet)?;
    prepared.check_prompt(longest.0, &device).map_err(place(longest.1))?;
    let conditions = Conditions {
        secateur: env!("CARGO_PKG_VERSION").into(),
        model: name.clone(),
        weights: identity(&hashed.fingerprint, args.stored.weights),
        device: device.info.line(),
        kv: args.stored.kv.to_string(),
        context: args.context,
        sequences: args.sequences,
        run: settings.clone(),
        questions: problems.len(),
        questions_hash: calibrate::hash(&problems),
    };
    let mut progress = CalibrationProgress::open(&out, &conditions, layers)?;
    file::check_writable(&out)?;

    let mut bar = screen::Progress::new(&format!("loading {name}"), args.quiet);
    let mut engine = prepared.load(&source, &device, &mut |done, total| bar.at(done, total))?;
    drop(bar);
    signals::install()?;
    signals::stop_on_signal(&engine.stop_flag());

    let say = |text: &str| {
        if !args.quiet {
            super::say(text);
        }
    };
    say(&format!(
        "{layers} layers, {} questions, {} at {} on {}",
        problems.len(),
        settings.policy,
        settings.budget,
        device.info.line()
    ));
    for note in &notes {
        say(&fields::as_options(note));
    }
    if !progress.done.is_empty() {
        say(&format!("continuing with {}: {} answers are there", progress.path.display(), progress.done.len()));
    }
    let mut calibration = Calibration::new(layers, problems.len(), progress.done.drain(..));
    let interrupted = || signals::received().is_some();
    for round in 1.. {
        let open = calibration.round();
        if open.is_empty() {
            break;
        }
        let mut bar = screen::Progress::new(&format!("round {round}"), args.quiet);
        bar.at(0, open.len());
        let mut done = 0;
        let mut take = |trial: Trial| {
            done += 1;
            progress.write(&trial)?;
            let arm: Arm = trial.layers.parse()?;
            calibration.add(trial);
            if let Some(row) = calibration.row(&arm).filter(|_| !args.quiet) {
                bar.say(&format!("{}: {} of {} right", row_name(&row), row.correct, problems.len()));
            }
            bar.at(done, open.len());
            Ok(())
        };
        let answered =
            pollster::block_on(calibrate::answer(&mut engine, &problems, &open, &settings, &interrupted, &mut take));
        drop(bar);
        if let Err(error) = answered {
            if progress.trials > 0 && error.kind() == ErrorKind::Device {
                say(&format!(
                    "what was answered is kept in {}: the same command continues there",
                    progress.path.display()
                ));
            }
            return Err(error);
        }
        if interrupted() {
            say(&format!("interrupted; run the same command again to continue from {}", progress.path.display()));
            return Ok(signals::received().map_or(ExitCode::SUCCESS, Signal::exit_code));
        }
    }
    let choice = calibration.choice(&conditions).ok_or_else(|| Error::new(ErrorKind::Internal, "nothing was tried"))?;
    let text = serde_json::to_string_pretty(&choice)
        .map_err(|e| Error::new(ErrorKind::Internal, "the value cannot be written as JSON").found(e))?;
    file::write_whole(&out, &(text + "\n"))?;
    hashed.keep(&out);
    std::fs::remove_file(&progress.path).ok();
    say(&format!("\n{}\n{}", table(&choice), verdict(&choice)));
    say(&match beside == Some(out.clone()) {
        true => format!("{}: `run` uses this choice with {} on this model", out.display(), settings.policy),
        false => format!("{}: to use this choice, give `run` the option --layers {}", out.display(), choice.layers),
    });
    super::print(&(choice.layers + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The request for every question. It uses all layers, which each tried set of layers then replaces.
    fn request(&self) -> Result<Request> {
        let mut request = options::request(&self.pruning)?;
        request.policy.get_or_insert_default();
        request.layers = Some(Layers::All);
        request.seed = Some(self.seed);
        request.check()?;
        options::check_context(self.context)?;
        for (name, number) in [
            ("--problems", self.problems.unwrap_or(1)),
            ("--sequences", self.sequences),
            ("--max-new-tokens", request.max_new_tokens.unwrap_or(1)),
        ] {
            if number == 0 {
                return Err(Error::new(ErrorKind::Input, "a number is 0").at(name).expected("at least 1").found(0));
            }
        }
        Ok(request)
    }

    fn problems(&self) -> Result<Vec<Problem>> {
        let text = text::read(&self.data, "the questions")?;
        let mut problems = problems::read(&text, &self.data.display().to_string())?;
        if let Some(wanted) = self.problems {
            if wanted > problems.len() {
                return Err(Error::new(ErrorKind::Input, "too few questions")
                    .at("--problems")
                    .expected(format!("at most {}", problems.len()))
                    .found(wanted));
            }
            problems.truncate(wanted);
        }
        Ok(problems)
    }
}

fn check_out(out: &Path) -> Result<()> {
    if !out.is_dir() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "the choice cannot be written to a directory")
        .at("--out")
        .expected("a file")
        .found(out.display()))
}

/// The number of tokens of a question. Refuses one that leaves no room for an answer. A calibration takes hours, so
/// this is checked before it starts.
pub fn check(prepared: &PreparedModel, question: &Prompt) -> Result<usize> {
    let (ids, _) = prepared.encode(question)?;
    let context = prepared.context();
    if ids.len() < context {
        return Ok(ids.len());
    }
    Err(Error::new(ErrorKind::Input, "a question leaves no room for an answer")
        .expected(format!("fewer tokens than the context, which is {context}"))
        .found(format!("{} tokens", ids.len())))
}

fn row_name(row: &Candidate) -> String {
    match row.layers.parse() {
        Ok(Arm::Layers(Layers::All)) => "all layers".into(),
        Ok(Arm::Full) | Err(_) => row.layers.clone(),
        Ok(Arm::Layers(layers)) => format!("layers {layers}"),
    }
}

/// A table with a row for each set of layers, the best one first, below a row for the full cache.
fn table(choice: &Choice) -> String {
    let head = ["", "right", "points against all layers", "p", "cut off", "most slots"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let questions = choice.settings.questions;
    for row in std::iter::once(&choice.full).chain(&choice.rows) {
        let paired = choice.paired(row);
        let (low, high) = paired.interval();
        let points = |share: f64| format!("{:+.1}", 100.0 * share);
        let mark = if row.layers == choice.layers { "* " } else { "  " };
        let against = match row.layers.as_str() {
            "all" => ["-", "-"].map(String::from),
            _ => [
                format!(
                    "{} [{}, {}]",
                    points(paired.difference() as f64 / questions as f64),
                    points(low),
                    points(high)
                ),
                p(paired.p_value()),
            ],
        };
        let [difference, p] = against;
        let cached = format!("{:.0}", row.peak_cached);
        let right = format!("{} of {questions}", row.correct);
        rows.push(vec![mark.to_string() + &row_name(row), right, difference, p, row.truncated.to_string(), cached]);
    }
    screen::table(&rows)
}

fn p(value: f64) -> String {
    if value < 0.001 { "<0.001".into() } else { format!("{value:.3}") }
}

/// An explanation of the table, and its result in sentences.
fn verdict(choice: &Choice) -> String {
    let mut lines = vec![
        "Points: how many more of 100 answers are right than with all layers, with a 95 % interval. p: McNemar's exact \
         test for one set, without a correction for the number of sets."
            .to_string(),
    ];
    let Conditions { questions, run: Settings { budget, .. }, .. } = &choice.settings;
    if let Some(row) = choice.row(&choice.layers) {
        let rivals = choice.rivals();
        let paired = choice.paired(row);
        let corrected = p(choice.corrected_p());
        let counts = format!(
            "questions gained {}, lost {}; p = {}, or {corrected} when corrected for the choice of the best of {rivals} sets",
            row.gained,
            row.lost,
            p(paired.p_value()),
        );
        let name = row_name(row);
        lines.push(match (choice.layers.as_str(), choice.distinguishable) {
            ("all", _) => format!("Chosen: all layers. None of {rivals} other sets had more right answers."),
            (_, true) => format!("Chosen: {name}, better than all layers: {counts}."),
            (_, false) => {
                format!("Chosen: {name}, NOT DISTINGUISHABLE from all layers: {counts}. With more questions, a difference may show.")
            }
        });
        if let Some(all) = choice.row("all").filter(|all| row.peak_cached > 1.05 * all.peak_cached) {
            lines.push(format!(
                "The memory differs: {:.0} slots instead of {:.0}. With --budget tokens:N, all sets use the same memory.",
                row.peak_cached, all.peak_cached
            ));
        }
    }
    let idle = questions - choice.pruned;
    if choice.pruned == 0 {
        lines.push(format!(
            "Nothing was evicted at {budget}, so all sets gave the same answers. Use a smaller budget, more frequent probes \
             or questions that need longer thinking."
        ));
    } else if idle > 0 {
        lines.push(format!(
            "In {idle} of {questions} questions nothing was evicted, so they do not tell the sets of layers apart."
        ));
    }
    if choice.layers != "all" {
        lines.push(
            "The best of many sets looks better on these questions than it is. Judge it by questions that were not used here."
                .into(),
        );
    }
    lines.join("\n")
}

/// The file to which every finished trial is appended as a line, after a line with the conditions.
struct CalibrationProgress {
    path: PathBuf,
    journal: Journal,
    done: Vec<Trial>,
    /// The number of trials in the file.
    trials: usize,
}

impl CalibrationProgress {
    /// Opens the file and reads the trials of an earlier, interrupted calibration with the same settings. An
    /// incomplete last line is removed.
    fn open(out: &Path, settings: &Conditions, layers: usize) -> Result<Self> {
        let path = PathBuf::from(format!("{}.progress.jsonl", out.display()));
        let help = "remove the file to start again, or choose another --out";
        let mut journal =
            Journal::open(&path, "the progress of the calibration", "another calibration is using this file")?;
        let text = journal.text().into_owned();
        let mut lines = text.lines().enumerate();
        if let Some((_, line)) = lines.next() {
            let other = Error::new(ErrorKind::Input, "this is the progress of another calibration");
            let other = other.at(path.display()).help(help);
            let Ok(there) = serde_json::from_str::<Conditions>(line) else { return Err(other.found(line)) };
            let differences = settings.differences(&there);
            if !differences.is_empty() {
                let listed = |text: fn(&(String, String, String)) -> String| {
                    differences.iter().map(text).collect::<Vec<_>>().join(", ")
                };
                return Err(other
                    .expected(listed(|(name, here, _)| format!("{name} {here}")))
                    .found(listed(|(name, _, there)| format!("{name} {there}"))));
            }
        }
        let mut done = Vec::new();
        for (index, line) in lines {
            let malformed = |found: String| {
                let e = Error::new(ErrorKind::Input, "not the progress of a calibration");
                e.at(format!("{}, line {}", path.display(), index + 1)).found(found).help(help)
            };
            let trial: Trial = serde_json::from_str(line).map_err(|e| malformed(e.to_string()))?;
            let fits = match trial.layers.parse()? {
                Arm::Full => true,
                Arm::Layers(listed) => listed.check(layers, Scope::Shared).is_ok(),
            };
            if !fits || trial.problem >= settings.questions {
                return Err(malformed(line.to_string()));
            }
            done.push(trial);
        }
        // Any other file is left unchanged.
        let header = journal::line(settings)?;
        if text.is_empty() && !header.as_bytes().starts_with(journal.torn()) {
            return Err(Error::new(ErrorKind::Input, "not the progress of a calibration")
                .at(path.display())
                .help(help));
        }
        journal.repair()?;
        if text.is_empty() {
            journal.append(&header)?;
        }
        Ok(Self { path, journal, trials: done.len(), done })
    }

    /// Appends a trial.
    fn write(&mut self, trial: &Trial) -> Result<()> {
        self.trials += 1;
        self.journal.append(&journal::line(trial)?)
    }
}

impl Drop for CalibrationProgress {
    /// Removes the file if it holds no trials.
    fn drop(&mut self) {
        if self.trials == 0 {
            std::fs::remove_file(&self.path).ok();
        }
    }
}
