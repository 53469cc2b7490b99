//! `secateur eval`: measures policies at budgets on questions with known answers, and compares and merges what was
//! measured.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use secateur::engine::{LoadOptions, PreparedModel, Prompt, Request, Settings};
use secateur::eval::builtin::{self as task, Split};
use secateur::eval::calibrate::{self, Hashed};
use secateur::eval::estimate::{self, Speed};
use secateur::eval::measure::{self, Arm, Plan, Shard, Trial, VERSION};
use secateur::eval::table::{self, Difference};
use secateur::eval::{Problem, page, problems};
use secateur::expert::file;
use secateur::expert::weights::precision::identity;
use secateur::expert::weights::{ModelSource, Weights};
use secateur::hub::{BENCHMARKS, Benchmark};
use secateur::policy::{Budget, PolicyRef};
use secateur::{ComputeDevice, Error, ErrorKind, Result, builtin};

use super::journal::{self, Journal};
use super::options::{self, DeviceArgs, GenerationArgs, StorageArgs, parsed};
use super::signals::{self, Signal};
use super::{fields, model, screen, text, trust};

/// Problems of the built-in reasoner's task, if `--limit` is not given.
const BUILTIN_PROBLEMS: usize = 100;
/// The interval between two lines of progress where no bar can be shown.
const TOLD_EVERY: Duration = Duration::from_secs(60);

const SETTINGS: &str = "settings.json";
const TRIALS: &str = "trials.jsonl";
const TABLE: &str = "table.csv";
const PAGE: &str = "eval.html";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// A model directory in Hugging Face layout, a GGUF file, or the name of a model on the hub [default: the small
    /// model in the binary].
    #[arg(value_name = "DIR|FILE|NAME")]
    model: Option<std::ffi::OsString>,
    /// Questions with answers: a file with one JSON object on each line, {"question": "...", "answer": "..."}; or
    /// aime24, amc23, math500 or gsm8k, which are fetched once; or builtin or builtin-hard, the problems of the model
    /// in the binary.
    #[arg(long, value_name = "FILE.jsonl|NAME", required = true)]
    data: Option<PathBuf>,
    /// The folder for the results. An evaluation that was interrupted there is continued.
    #[arg(long, value_name = "DIR", required_unless_present = "plan")]
    out: Option<PathBuf>,
    /// Say how long the evaluation would take and how much memory it needs, from a few short answers on the device.
    /// Nothing is recorded. Answers that are in --out already are left out, and say how long others will be.
    #[arg(long)]
    plan: bool,
    /// The policies, separated by commas. The full cache and random eviction are always measured as well. Random
    /// eviction keeps as many tokens at each probe as the first policy.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = policy, default_value = "think-clearly")]
    policies: Vec<PolicyRef>,
    /// The budgets, separated by commas, such as ratio:0.5,tokens:512.
    #[arg(long, value_name = "BUDGETS", value_delimiter = ',', value_parser = budget, default_value = "ratio:0.75")]
    budgets: Vec<Budget>,
    /// The seeds of sampling and of random eviction, separated by commas. Where nothing is drawn, only the first
    /// counts.
    #[arg(long, value_name = "SEEDS", value_delimiter = ',', default_value = "0")]
    seeds: Vec<u64>,
    /// Use at most N questions [default: all of a file; 100 of builtin and builtin-hard].
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Leave out the first N questions.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    skip: usize,
    /// Answer the I-th of N parts of the questions, where I is from 1 to N. `secateur eval merge` puts the parts
    /// together.
    #[arg(long, value_name = "I/N", value_parser = parsed::<Shard>)]
    shard: Option<Shard>,
    /// A text to append to each question, such as "Put your final answer within \boxed{}.".
    #[arg(long, value_name = "TEXT", value_parser = options::argument)]
    instruction: Option<String>,
    #[command(flatten)]
    generation: GenerationArgs,
    /// The number of questions that are answered at the same time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    stored: StorageArgs,
    /// The number of positions to make room for, for a question and its answer together [default: the model's
    /// maximum, but at most 32768].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Print only errors and the table.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Compare two evaluations: what of their settings differs, and for each policy and budget that both have, how
    /// much more often the second is right on the same questions.
    Compare {
        /// The folder of an evaluation.
        #[arg(value_name = "A")]
        first: PathBuf,
        /// The folder of another.
        #[arg(value_name = "B")]
        second: PathBuf,
    },
    /// Put the parts of an evaluation together that were made with --shard.
    Merge {
        /// The folder for the whole.
        #[arg(value_name = "OUT")]
        out: PathBuf,
        /// The folders of the parts.
        #[arg(value_name = "PART", required = true)]
        parts: Vec<PathBuf>,
    },
}

fn policy(text: &str) -> Result<PolicyRef, String> {
    text.parse().map_err(|e: Error| fields::error(&e.at("--policies")))
}

fn budget(text: &str) -> Result<Budget, String> {
    text.parse().map_err(|e: Error| fields::error(&e.at("--budgets")))
}

pub fn main(args: &Args) -> Result<ExitCode> {
    match (&args.action, &args.data, &args.out) {
        (Some(Action::Compare { first, second }), ..) => compare(first, second),
        (Some(Action::Merge { out, parts }), ..) => merge(out, parts),
        (None, Some(data), out) if args.plan => args.estimate(data, out.as_deref()),
        (None, Some(data), Some(out)) => args.run(data, out),
        // clap refuses this combination before it gets here.
        (None, ..) => Err(Error::new(ErrorKind::Input, "--data and --out are required").at("secateur eval")),
    }
}

/// The parts of an evaluation that are prepared before the weights are loaded.
struct Prepared {
    source: ModelSource,
    model: PreparedModel,
    device: ComputeDevice,
    plan: Plan,
    problems: Vec<Problem>,
    /// Tokens of each question's prompt.
    prompts: Vec<usize>,
    /// The settings of each arm.
    settings: Vec<Settings>,
    notes: BTreeSet<String>,
}

impl Args {
    fn run(&self, data: &Path, out: &Path) -> Result<ExitCode> {
        let request = self.check()?;
        let policies = Plan::policies(&self.policies, &self.budgets).map_err(|e| e.at("--policies, --budgets"))?;
        let problems = self.problems(data)?;
        check_out(out)?;
        let Prepared { source, model, device, plan, problems, settings, notes, .. } =
            self.prepare(data, Some(out), &request, policies, problems)?;
        let mut folder = Folder::open(out, &plan)?;
        let all = plan.trials().len();
        let made = folder.trials.len();

        let say = |text: &str| {
            if !self.quiet {
                super::say(text);
            }
        };
        let arms: Vec<String> = plan.arms().iter().map(ToString::to_string).collect();
        say(&format!("{}: {}; on {}", asked(&plan), arms.join(", "), plan.device));
        notes.iter().for_each(|note| say(&fields::as_options(note)));
        if made > 0 {
            say(&format!("continuing in {}: {made} of {all} answers are there", out.display()));
        }
        if made < all {
            let mut bar = screen::Progress::new(&format!("loading {}", plan.model), self.quiet);
            let mut engine = model.load(&source, &device, &mut |done, total| bar.at(done, total))?;
            drop(bar);
            signals::install()?;
            signals::stop_on_signal(&engine.stop_flag());
            let interrupted = || signals::received().is_some();
            let mut progress = EvaluationProgress::new(made, all, self.quiet);
            let known = std::mem::take(&mut folder.trials);
            let journal = &mut folder.journal;
            let mut done = |trial: &Trial| {
                journal.append(&journal::line(trial)?)?;
                progress.one_more();
                Ok(())
            };
            let answered = pollster::block_on(measure::run(
                &mut engine,
                &plan,
                &problems,
                &settings,
                known,
                &interrupted,
                &mut done,
            ));
            drop(progress);
            folder.trials = answered.inspect_err(|_| {
                say(&format!("what was answered is kept in {}: the same command continues there", out.display()));
            })?;
            if interrupted() {
                say(&format!("interrupted; run the same command again to continue in {}", out.display()));
                return Ok(signals::received().map_or(ExitCode::SUCCESS, Signal::exit_code));
            }
        }
        finish(out, &plan, &folder.trials, self.quiet)
    }

    /// Checks the numbers, and returns the request that all arms share.
    fn check(&self) -> Result<Request> {
        let request = options::request(&self.generation)?;
        request.check()?;
        options::check_context(self.context)?;
        for (name, number) in [
            ("--limit", self.limit.unwrap_or(1)),
            ("--batch", self.batch),
            ("--max-new-tokens", request.max_new_tokens.unwrap_or(1)),
        ] {
            if number == 0 {
                return Err(Error::new(ErrorKind::Input, "a number is 0").at(name).expected("at least 1").found(0));
            }
        }
        for (name, values) in [
            ("--seeds", self.seeds.iter().map(ToString::to_string).collect::<Vec<_>>()),
            ("--budgets", self.budgets.iter().map(ToString::to_string).collect()),
            ("--policies", self.policies.iter().map(ToString::to_string).collect()),
        ] {
            let mut seen = BTreeSet::new();
            if let Some(twice) = values.iter().find(|value| !seen.insert(*value)) {
                return Err(Error::new(ErrorKind::Input, "a value is given twice").at(name).found(twice));
            }
        }
        Ok(request)
    }

    fn problems(&self, data: &Path) -> Result<Vec<Problem>> {
        let split = match data.to_str() {
            Some("builtin") => Some(Split::Normal),
            Some("builtin-hard") => Some(Split::Hard),
            _ => None,
        };
        if let Some(split) = split {
            return Ok(task::problems(split, self.skip, self.limit.unwrap_or(BUILTIN_PROBLEMS)));
        }
        let text = match data.to_str().and_then(Benchmark::by_name) {
            Some(benchmark) => benchmark.text()?,
            None => text::read(data, "the questions").map_err(|e| match data.exists() {
                true => e,
                false => e.help(format!(
                    "{} are known by name, and builtin and builtin-hard are the problems of the model in the binary",
                    BENCHMARKS.map(|benchmark| benchmark.name).join(", ")
                )),
            })?,
        };
        let mut problems = problems::read(&text, &data.display().to_string())?;
        if self.skip >= problems.len() {
            return Err(Error::new(ErrorKind::Input, "no questions are left")
                .at("--skip")
                .expected(format!("less than {}", problems.len()))
                .found(self.skip));
        }
        problems.drain(..self.skip);
        problems.truncate(self.limit.unwrap_or(usize::MAX));
        Ok(problems)
    }

    /// Measures the speed of the device, and says how long the evaluation would take and how much memory it needs.
    fn estimate(&self, data: &Path, out: Option<&Path>) -> Result<ExitCode> {
        let request = self.check()?;
        let policies = Plan::policies(&self.policies, &self.budgets).map_err(|e| e.at("--policies, --budgets"))?;
        let problems = self.problems(data)?;
        out.map_or(Ok(()), check_out)?;
        let Prepared { source, model, device, plan, problems, prompts, settings, .. } =
            self.prepare(data, None, &request, policies, problems)?;
        let made = match out {
            Some(out) if out.join(SETTINGS).exists() => made_in(out, &plan)?,
            _ => Vec::new(),
        };
        let (arms, all) = (plan.arms(), plan.trials());
        let has = |job: &measure::Job| {
            let arm = arms[job.arm].key();
            made.iter().any(|trial| (trial.problem, trial.seed) == (job.problem, job.seed) && trial.arm() == arm)
        };
        let open: Vec<measure::Job> = all.iter().copied().filter(|job| !has(job)).collect();
        super::print(&format!(
            "{}, {} ways to answer, {} to make, {} at the same time; on {}\n",
            asked(&plan),
            arms.len(),
            if open.len() == 1 { "1 answer".into() } else { format!("{} answers", open.len()) },
            plan.batch,
            device.info.line()
        ))?;
        if open.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }

        let mut bar = screen::Progress::new(&format!("loading {}", plan.model), self.quiet);
        let mut engine = model.load(&source, &device, &mut |done, total| bar.at(done, total))?;
        drop(bar);
        let model = engine.prepared();
        let weights = engine.model().weight_bytes();
        signals::install()?;
        signals::stop_on_signal(&engine.stop_flag());
        let interrupted = || signals::received().is_some();
        let speed = Speed::measure(&mut engine, &plan, &problems, &settings[0], &interrupted);
        let Some(speed) = pollster::block_on(speed)? else {
            return Ok(signals::received().map_or(ExitCode::SUCCESS, Signal::exit_code));
        };

        let longest = prompts.iter().copied().max().unwrap_or(0);
        let mut lines = vec![["way", "KV cache, at most", "tokens, at most"].map(String::from).to_vec()];
        let most =
            |arm: usize, prompt: usize| settings[arm].max_new_tokens.min(model.context().saturating_sub(prompt)).max(1);
        for (index, arm) in arms.iter().enumerate() {
            // A control keeps as many tokens as the policy that it repeats.
            let bound = model.bytes_together(plan.batch, longest, &settings[index]);
            lines.push(vec![arm.to_string(), screen::bytes(bound), most(index, longest).to_string()]);
        }
        let longest_answers = speed.seconds(&open, &prompts, |job| most(job.arm, prompts[job.problem]) as f64);
        let thousand = speed.seconds(&open, &prompts, |_| 1000.0) - speed.seconds(&open, &prompts, |_| 0.0);
        let mut said = format!(
            "weights: {}; caches of {} answers at the same time:\n{}",
            screen::bytes(weights),
            plan.batch,
            screen::table(&lines)
        );
        said += &format!(
            "speed: {:.0} tokens of prompts and {:.1} of answers per second, together, with short answers and the full \
             cache; attention makes long answers slower, and probes are not counted\n\
             time: {} for each 1000 tokens of an answer; {} if every answer is as long as it may be\n",
            speed.prompts,
            speed.answers,
            duration(thousand),
            duration(longest_answers),
        );
        if let Some(mean) = estimate::mean_length(&made) {
            let seconds = speed.seconds(&open, &prompts, |_| mean);
            said += &format!(
                "the {} answers that are there have {mean:.0} tokens on average: the others take {}\n",
                made.len(),
                duration(seconds)
            );
        }
        super::print(&said)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Checks everything that can be checked without the weights on the device, and makes the folder, if one is
    /// named.
    fn prepare(
        &self,
        data: &Path,
        out: Option<&Path>,
        request: &Request,
        policies: Vec<PolicyRef>,
        problems: Vec<Problem>,
    ) -> Result<Prepared> {
        let (source, name) = match &self.model {
            Some(model) => model::open(model, false, self.quiet)?,
            None => (builtin::source(), builtin::NAME.to_string()),
        };
        let load = LoadOptions {
            kv: self.stored.kv,
            context: self.context,
            sequences: self.batch,
            weights: self.stored.weights,
        };
        // The library names the places of the batch `sequences`.
        let as_batch = |e: Error| e.rewritten(|text| text.replace("`sequences`", "--batch"));
        let model = PreparedModel::new(&source, &name, &load).map_err(as_batch)?;
        let mut plan = Plan {
            version: VERSION,
            secateur: env!("CARGO_PKG_VERSION").into(),
            model: name,
            weights: String::new(),
            device: String::new(),
            kv: self.stored.kv.to_string(),
            context: self.context,
            batch: self.batch,
            data: data.display().to_string(),
            questions: problems.len(),
            questions_hash: calibrate::hash(&problems),
            instruction: self.instruction.clone(),
            shard: self.shard,
            policies,
            budgets: self.budgets.clone(),
            seeds: self.seeds.clone(),
            calibrated_layers: BTreeMap::new(),
            run: Settings::default(),
        };
        let mut prompts = Vec::new();
        for (index, problem) in problems.iter().enumerate() {
            let place = |e: Error| e.at(format!("{}, question {}", data.display(), self.skip + index + 1));
            prompts.push(super::calibrate::check(&model, &plan.prompt(problem)).map_err(place)?);
        }
        let (mut settings, mut notes) = (Vec::new(), BTreeSet::new());
        for arm in plan.arms() {
            let (of, said) = self.settings_of(&arm, request, &model)?;
            if of.layers != Settings::default().layers {
                plan.calibrated_layers.insert(arm.policy.to_string(), of.layers.to_string());
            }
            notes.extend(said);
            settings.push(of);
        }
        let Settings { policy, budget, seed, layers, .. } = Settings::default();
        plan.run = Settings { policy, budget, seed, layers, ..settings[0].clone() };
        // The longest prompt is refused on a device that cannot hold it before any weight is read.
        let longest = (0..prompts.len()).max_by_key(|index| prompts[*index]);
        let open = || {
            let device = trust::open(&self.device.select, self.quiet)?;
            if let Some(index) = longest {
                let place = |e: Error| e.at(format!("{}, question {}", data.display(), self.skip + index + 1));
                model.check_prompt(prompts[index], &device).map_err(place)?;
            }
            Ok::<_, Error>(device)
        };
        let Some(out) = out else {
            let device = open()?;
            return Ok(Prepared { source, model, device, plan, problems, prompts, settings, notes });
        };
        let weights = Weights::open(&source)?;
        make_folder(out)?;
        let beside = out.join(SETTINGS);
        let hashed = Hashed::from_files(&weights, &beside)?;
        let device = open()?;
        hashed.keep(&beside);
        plan.weights = identity(&hashed.fingerprint, self.stored.weights);
        plan.device = device.info.line();
        Ok(Prepared { source, model, device, plan, problems, prompts, settings, notes })
    }

    /// The settings of an arm and notes on them. A control that repeats kept counts works with every budget.
    fn settings_of(&self, arm: &Arm, request: &Request, model: &PreparedModel) -> Result<(Settings, Vec<String>)> {
        let policy = arm.replays.as_ref().unwrap_or(&arm.policy).clone();
        let request =
            Request { policy: Some(policy), budget: arm.budget, seed: Some(self.seeds[0]), ..request.clone() };
        let (settings, notes) = model.settings(&request)?;
        // The settings are checked with a prompt of one token; the token does not matter.
        model.check(&Prompt::Ids(vec![0]), &settings)?;
        if arm.replays.is_some() {
            let layers = Settings::default().layers;
            return Ok((Settings { policy: arm.policy.clone(), layers, ..settings }, Vec::new()));
        }
        Ok((settings, notes))
    }
}

/// Refuses a folder whose settings differ from those of `plan`.
fn check_same(out: &Path, plan: &Plan, there: &Plan) -> Result<()> {
    let differences = plan.differences(there);
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "this folder has an evaluation with other settings")
        .at(out.display())
        .expected(listed(&differences, |(_, here, _)| here))
        .found(listed(&differences, |(_, _, there)| there))
        .help("choose another --out, or give the settings that were found"))
}

/// The answers in a folder to the questions of `plan`. `plan` lacks the hash of the weights, and may be for another
/// device, so these two fields are not compared.
fn made_in(out: &Path, plan: &Plan) -> Result<Vec<Trial>> {
    let there = read_plan(out)?;
    let plan = Plan { weights: there.weights.clone(), device: there.device.clone(), ..plan.clone() };
    check_same(out, &plan, &there)?;
    let path = out.join(TRIALS);
    let text = if path.exists() { text::read(&path, "the answers of an evaluation")? } else { String::new() };
    // If the evaluation is still running, the last line may be incomplete.
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    read_trials(&text[..whole], &path, &plan)
}

/// The number and the source of a plan's questions, as text.
fn asked(plan: &Plan) -> String {
    let shard = plan.shard.map(|shard| format!(", part {shard}")).unwrap_or_default();
    format!("{} {}{shard}", plan.questions, if plan.questions == 1 { "question" } else { "questions" })
}

/// The folder of an evaluation that is under way.
struct Folder {
    journal: Journal,
    trials: Vec<Trial>,
}

impl Folder {
    /// Opens the folder of `plan`, which exists, and reads its trials. An incomplete last line is removed.
    fn open(out: &Path, plan: &Plan) -> Result<Self> {
        let in_use = "another evaluation is writing to this folder";
        let mut journal = Journal::open(&out.join(TRIALS), "the answers", in_use)?;
        let settings = out.join(SETTINGS);
        if settings.exists() {
            check_same(out, plan, &read_plan(out)?)?;
        } else if !journal.text().is_empty() || !journal.torn().is_empty() {
            return Err(Error::new(ErrorKind::Input, format!("this folder has answers but no {SETTINGS}"))
                .at(out.display())
                .help("choose another --out"));
        } else {
            file::write_whole(&settings, &plan.to_json()?)?;
        }
        let trials = read_trials(&journal.text(), journal.path(), plan)?;
        let trials = trials.into_iter().map(Trial::brief).collect();
        journal.repair()?;
        [TABLE, PAGE].iter().try_for_each(|name| file::check_writable(&out.join(name)))?;
        Ok(Self { journal, trials })
    }
}

/// A setting that differs: its name, its value here, its value there.
type Differs = (String, String, String);

/// Settings that differ, by their options, each with one of its values.
fn listed(differences: &[Differs], value: fn(&Differs) -> &String) -> String {
    differences.iter().map(|d| format!("{} {}", option_of(&d.0), value(d))).collect::<Vec<_>>().join(", ")
}

fn make_folder(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)
        .map_err(|e| Error::new(ErrorKind::Io, "the folder of the results cannot be made").at(out.display()).found(e))
}

fn check_out(out: &Path) -> Result<()> {
    if !out.exists() || out.is_dir() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "the results cannot be written to a file")
        .at("--out")
        .expected("a folder, or a path where there is nothing yet")
        .found(out.display()))
}

fn read_plan(folder: &Path) -> Result<Plan> {
    let path = folder.join(SETTINGS);
    if !path.exists() {
        return Err(Error::new(ErrorKind::Input, "this is not the folder of an evaluation")
            .at(folder.display())
            .expected(format!("a folder with {SETTINGS} and {TRIALS}, as --out of `secateur eval` names it")));
    }
    Plan::from_json(&text::read(&path, "the settings of an evaluation")?, &path.display().to_string())
}

/// The trials in the lines of a file. Of a trial that was recorded twice, the first counts.
fn read_trials(lines: &str, path: &Path, plan: &Plan) -> Result<Vec<Trial>> {
    let arms: Vec<_> = plan.arms().iter().map(Arm::key).collect();
    let (mut trials, mut seen) = (Vec::new(), BTreeSet::new());
    for (index, line) in lines.lines().enumerate() {
        let wrong = |found: String| {
            Error::new(ErrorKind::Input, "this is not an answer of this evaluation")
                .at(format!("{}, line {}", path.display(), index + 1))
                .found(found)
                .help("remove the line; its question is then answered again")
        };
        let trial: Trial = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
        let arm = arms.iter().position(|arm| *arm == trial.arm());
        let Some(arm) = arm.filter(|_| trial.problem < plan.questions) else {
            return Err(wrong(format!("question {} with {:?}", trial.problem, trial.arm())));
        };
        if seen.insert((trial.problem, arm, trial.seed)) {
            trials.push(trial);
        }
    }
    Ok(trials)
}

/// The plan and the trials of a folder, which is not changed.
fn read_folder(folder: &Path) -> Result<(Plan, Vec<Trial>)> {
    let plan = read_plan(folder)?;
    let trials = made_in(folder, &plan)?;
    if trials.is_empty() {
        return Err(Error::new(ErrorKind::Input, "this evaluation has no answers yet").at(folder.display()));
    }
    Ok((plan, trials))
}

/// Writes the table and the page, and prints the table.
fn finish(out: &Path, plan: &Plan, trials: &[Trial], quiet: bool) -> Result<ExitCode> {
    let rows = table::rows(plan, trials);
    file::write_whole(&out.join(TABLE), &table::csv(&rows))?;
    file::write_whole(&out.join(PAGE), &page::page(plan, &rows, screen::bytes))?;
    let mut lines = vec![page::COLUMNS.map(String::from).to_vec()];
    lines.extend(rows.iter().map(|row| page::cells(row, screen::bytes).to_vec()));
    super::print(&screen::table(&lines))?;
    if let Some(failures) = page::failures(&rows) {
        super::say(&failures);
    }
    if !quiet {
        super::say(page::EXPLANATION);
        super::say(&format!("the table and the page are in {}", out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn merge(out: &Path, parts: &[PathBuf]) -> Result<ExitCode> {
    check_out(out)?;
    if out.join(SETTINGS).exists() {
        return Err(Error::new(ErrorKind::Input, "this folder has an evaluation already")
            .at(out.display())
            .help("name a new folder for the whole"));
    }
    let mut whole: Option<Plan> = None;
    let mut devices: Vec<String> = Vec::new();
    // The keys are question, arm and seed.
    let mut trials: BTreeMap<_, (Trial, &Path)> = BTreeMap::new();
    for part in parts {
        let (plan, answered) = read_folder(part)?;
        if !devices.contains(&plan.device) {
            devices.push(plan.device.clone());
        }
        let whole = whole.get_or_insert_with(|| Plan { shard: None, ..plan.clone() });
        let alike = Plan { shard: None, device: whole.device.clone(), ..plan };
        let differences = alike.differences(whole);
        if !differences.is_empty() {
            return Err(Error::new(ErrorKind::Input, "these are parts of different evaluations")
                .at(format!("{} and {}", parts[0].display(), part.display()))
                .expected(listed(&differences, |(_, _, first)| first))
                .found(listed(&differences, |(_, here, _)| here)));
        }
        for trial in answered {
            let key = (trial.problem, trial.arm(), trial.seed);
            if let Some((_, first)) = trials.insert(key, (trial, part)) {
                return Err(Error::new(ErrorKind::Input, "two parts have answers to the same question")
                    .at(format!("{} and {}", first.display(), part.display()))
                    .help("merge each part once, and parts with different --shard only"));
            }
        }
    }
    let Some(mut plan) = whole else {
        return Err(Error::new(ErrorKind::Input, "no part to merge").at("secateur eval merge"));
    };
    plan.device = devices.join(" + ");
    let trials: Vec<Trial> = trials.into_values().map(|(trial, _)| trial).collect();
    make_folder(out)?;
    let lines = trials.iter().map(journal::line).collect::<Result<String>>()?;
    file::write_whole(&out.join(TRIALS), &lines)?;
    file::write_whole(&out.join(SETTINGS), &plan.to_json()?)?;
    let all = plan.trials().len();
    if trials.len() < all {
        let missing = all - trials.len();
        super::say(&format!("{missing} of {all} answers are missing: a part is not done, or was not named"));
    }
    finish(out, &plan, &trials, false)
}

fn compare(first: &Path, second: &Path) -> Result<ExitCode> {
    let ((plan_a, a), (plan_b, b)) = (read_folder(first)?, read_folder(second)?);
    let mut said = format!("A: {}\nB: {}\n\n", first.display(), second.display());
    let mut differences = vec![["differs", "A", "B"].map(String::from).to_vec()];
    for (name, a, b) in plan_a.differences(&plan_b) {
        differences.push(vec![option_of(&name), short(&a), short(&b)]);
    }
    match differences.len() {
        1 => said += "the settings are the same\n",
        _ => said += &screen::table(&differences),
    }
    let arms = |trials: &[Trial]| trials.iter().map(Trial::way).collect::<BTreeSet<_>>();
    let (arms_a, arms_b) = (arms(&a), arms(&b));
    let answers = |trials: &[Trial], arm: &(String, Option<String>, Option<String>)| {
        let of: Vec<&Trial> = trials.iter().filter(|trial| trial.way() == *arm).collect();
        table::answers(&of, |trial| trial.question.clone())
    };
    let as_named = |policy: &str, replays: &Option<String>| match replays {
        Some(replays) => format!("{policy} (as {replays})"),
        None => policy.to_string(),
    };
    let mut rows = vec![["policy", "budget", "questions", "A", "B", "B - A [95 %]", "p"].map(String::from).to_vec()];
    for arm in arms_a.intersection(&arms_b) {
        let (mut in_a, mut in_b) = (answers(&a, arm), answers(&b, arm));
        in_a.retain(|question, _| in_b.contains_key(question));
        in_b.retain(|question, _| in_a.contains_key(question));
        let Some(difference) = Difference::of(&in_b, &in_a) else { continue };
        let share = |answers: &BTreeMap<String, Vec<bool>>| table::points(table::accuracy(answers));
        rows.push(vec![
            as_named(&arm.0, &arm.2),
            arm.1.clone().unwrap_or("-".into()),
            difference.questions.to_string(),
            share(&in_a),
            share(&in_b),
            table::signed(Some(difference)),
            difference.p_value.map_or("-".into(), |p| format!("{p:.3}")),
        ]);
    }
    if rows.len() == 1 {
        return Err(Error::new(ErrorKind::Input, "these evaluations have no question in common")
            .at(format!("{} and {}", first.display(), second.display()))
            .expected(format!("the questions of {}", plan_a.data))
            .found(format!("the questions of {}", plan_b.data)));
    }
    said += &format!("\n{}", screen::table(&rows));
    for (name, here, there) in [("A", &arms_a, &arms_b), ("B", &arms_b, &arms_a)] {
        let only = here.difference(there).map(|(policy, budget, replays)| match budget {
            Some(budget) => format!("{} at {budget}", as_named(policy, replays)),
            None => policy.clone(),
        });
        let only: Vec<String> = only.collect();
        if !only.is_empty() {
            said += &format!("only in {name}: {}\n", only.join(", "));
        }
    }
    super::print(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// The beginning of a value that may be long, such as a hash.
fn short(value: &str) -> String {
    const MOST: usize = 40;
    match value.chars().count() <= MOST {
        true => value.to_string(),
        false => value.chars().take(MOST).chain("...".chars()).collect(),
    }
}

/// The name of the option that changes this setting of a plan, for messages.
fn option_of(name: &str) -> String {
    match name {
        "questions" | "questions_hash" => format!("--data, --limit or --skip ({name})"),
        "batch" | "budgets" | "data" | "instruction" | "policies" | "seeds" => format!("--{name}"),
        "model" => "the model".into(),
        "secateur" => "the version of secateur".into(),
        "calibrated_layers" => "the layers that `secateur calibrate` chose".into(),
        "sampling" => "the options of sampling".into(),
        name => fields::as_options(&format!("`{name}`")),
    }
}

/// The progress of an evaluation: a bar on a terminal, elsewhere a line a minute.
struct EvaluationProgress {
    bar: screen::Progress,
    begun: Instant,
    told: Instant,
    /// Number of answers that existed when the evaluation began.
    before: usize,
    done: usize,
    all: usize,
    quiet: bool,
}

impl EvaluationProgress {
    fn new(done: usize, all: usize, quiet: bool) -> Self {
        let mut bar = screen::Progress::new("answering", quiet);
        bar.at(done, all);
        let now = Instant::now();
        Self { bar, begun: now, told: now, before: done, done, all, quiet }
    }

    fn one_more(&mut self) {
        self.done += 1;
        self.bar.at(self.done, self.all);
        let each = self.begun.elapsed().as_secs_f64() / (self.done - self.before) as f64;
        let left = format!("about {} left", duration(each * (self.all - self.done) as f64));
        self.bar.note(&left);
        if self.bar.is_hidden() && !self.quiet && self.told.elapsed() >= TOLD_EVERY {
            self.told = Instant::now();
            super::say(&format!("{} of {} answers, {left}", self.done, self.all));
        }
    }
}

/// A duration as text.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let said = [0.4, 89.0, 90.0, 3600.0, 5400.0, 1e5].map(duration);
        assert_eq!(said, ["0 s", "89 s", "2 min", "60 min", "1.5 h", "27.8 h"]);
    }

    #[test]
    fn settings_are_named_by_their_options() {
        let names = ["batch", "window", "max_new_tokens", "kv", "shard", "questions_hash"].map(option_of);
        let data = "--data, --limit or --skip (questions_hash)";
        assert_eq!(names, ["--batch", "--window", "--max-new-tokens", "--kv", "--shard", data]);
    }
}
