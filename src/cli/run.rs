//! `secateur run`
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use secateur::device::ComputeDevice;
use secateur::engine::{Engine, Event, LoadOptions, PreparedModel, Prompt, RunResult, Settings};
use secateur::policy::{self, Budget, Full, PolicyRef, Role, Scope};
use secateur::sampling::Sampling;
use secateur::text::Message;
use secateur::trace::AttentionDetail;
use secateur::weights::{FINGERPRINT, ModelSource, Weights};
use secateur::{Error, ErrorKind, Result, builtin, file, probe};
use serde_json::json;
use web_time::Instant;

use super::chat;
use super::model::{self, Hashed, ModelArgs};
use super::screen::{self, Progress, Screen};
use super::signals::{self, Signal};
use super::stdin;
use super::text;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The user's message; `-` reads it from stdin. Without it, on a terminal, you chat; without model too, an example runs.
    #[arg(conflicts_with = "ids")]
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["ids", "raw"])]
    system: Option<String>,
    /// Answer at once, for models whose chat template can switch thinking off (Qwen3).
    #[arg(long, conflicts_with_all = ["ids", "raw"])]
    no_think: bool,
    /// auto, cpu, vulkan, metal, dx12, gl, or a part of an adapter's name (`secateur devices` lists them).
    #[arg(long, default_value = "auto")]
    device: String,
    /// The prompt as token ids, separated by commas or blanks; needs no tokenizer.
    #[arg(long, value_name = "IDS")]
    ids: Option<String>,
    /// Take the prompt as it is, without the chat template.
    #[arg(long, conflicts_with = "ids")]
    raw: bool,
    /// Generate at most so many tokens.
    #[arg(long, value_name = "N", default_value_t = Settings::default().max_new_tokens)]
    max_new_tokens: usize,
    #[arg(long, value_name = "NAME", help = policy_help())]
    policy: Option<String>,
    /// What to keep: tokens:N or ratio:R (of the thinking); score-sum:K or share:F (of its importance) to evict.
    #[arg(long, value_name = "BUDGET", default_value_t = Budget::default().to_string())]
    budget: String,
    #[arg(long, value_name = "N", help = window_help())]
    window: Option<usize>,
    #[arg(long, value_name = "P", help = probe_every_help())]
    probe_every: Option<usize>,
    /// What a probe appends; ends in </think>.
    #[arg(long, value_name = "TEXT", default_value = probe::DEFAULT_PROBE_TEXT, hide_default_value = true)]
    probe_text: String,
    /// Who shares a kept set: shared (all layers and heads), layer or head.
    #[arg(long, value_name = "SCOPE", default_value_t = policy::Scope::default().to_string())]
    scope: String,
    /// Layers whose attention counts in a shared set: all, or numbers and ranges such as 0-3,7. Default: what `calibrate` chose
    /// for this model, else all.
    #[arg(long, value_name = "LAYERS")]
    layers: Option<String>,
    /// Bring each head's scores to one scale before they are averaged: none or per-head.
    #[arg(long, value_name = "HOW", default_value_t = policy::Normalise::default().to_string())]
    normalise: String,
    /// Where kept keys stand after an eviction: original, or compact (they close ranks).
    #[arg(long, value_name = "WHERE", default_value_t = policy::Positions::default().to_string())]
    positions: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Seed of sampling and of the policies that draw lots.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value_t = super::Kv::F16)]
    kv: super::Kv,
    /// Positions to make room for. Default: the model's own maximum, at most 32768.
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Go on past the end-of-sequence token, for measurements.
    #[arg(long)]
    ignore_eos: bool,
    /// Write the trace (tokens, probes, what was cut) as JSON; also after Ctrl-C.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Record the attention of every head in the trace, not only of every layer: one more probe each time, and much to read back.
    #[arg(long, requires = "trace")]
    trace_heads: bool,
    /// One JSON object on stdout instead of the text.
    #[arg(long)]
    json: bool,
    /// At the end, show the thinking with the evicted parts struck through.
    #[arg(long)]
    show_kept: bool,
    /// Stream the text and never repaint it: for screen readers, recordings and terminals that garble it.
    #[arg(long)]
    plain: bool,
    /// Only the text (or the JSON) and errors.
    #[arg(long, short)]
    quiet: bool,
}

/// How tokens are chosen. What is not given comes from the model's generation_config.json, and is greedy if that does not say
/// do_sample.
#[derive(Debug, clap::Args)]
#[command(
    next_help_heading = "Sampling (default: as the model's generation_config.json says; greedy without do_sample)"
)]
pub struct SamplingArgs {
    /// Always the most likely token.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Divides the logits; 0 is --greedy.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Only the K most likely tokens; 0: all (128 are candidates at most).
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Only the fewest tokens that reach this probability together.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Only tokens at least this share as likely as the most likely one.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Above 1, tokens of the prompt and of the text so far become less likely.
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
}

impl SamplingArgs {
    /// These in place of the model's. A setting of a draw asks for one: without a temperature for 1.
    pub fn over(&self, model: Sampling) -> Result<Sampling> {
        let mut sampling = model;
        let asks = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        if self.greedy {
            sampling = Sampling { repetition_penalty: model.repetition_penalty, ..Sampling::GREEDY };
        } else if asks && model.is_greedy() {
            sampling.temperature = 1.0;
        }
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_k = self.top_k.unwrap_or(sampling.top_k);
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        sampling.check()?;
        Ok(sampling)
    }
}

fn policy_help() -> String {
    let policies = policy::POLICIES.iter().map(|p| format!("{}: {}", p.name(), p.summary()));
    let list = policies.collect::<Vec<_>>().join("; ");
    format!("Which thoughts go [default: {}]. {list}", PolicyRef::default())
}

fn window_help() -> String {
    let (general, own) = (policy::DEFAULT_WINDOW, builtin::WINDOW);
    format!("Latest tokens that are never evicted [default: {general}; {own} with the built-in model]")
}

fn probe_every_help() -> String {
    let (general, own) = (probe::DEFAULT_PROBE_EVERY, builtin::PROBE_EVERY);
    format!("Thinking tokens from one probe to the next [default: {general}; {own} with the built-in model]")
}

pub fn main(args: Args) -> Result<ExitCode> {
    // Whatever can be refused before anything is loaded.
    let mut options = args.run_options()?;
    let task = args.task()?;
    check_context(args.context)?;
    if let Some(file) = &args.trace {
        file::check_writable(file)?;
    }
    let (source, name) = args.model.open(args.quiet)?;
    // And whatever can be before gigabytes are read.
    let began = Instant::now();
    let load = LoadOptions { kv: args.kv.words(), context: args.context, sequences: 1 };
    let opened = PreparedModel::new(&source, &name, &load)?;
    options.sampling = args.sampling.over(Sampling::from_defaults(&opened.config().generation))?;
    let unprunable = unprunable(&opened, &args);
    if unprunable.is_some() {
        options.policy = Full.into();
    }
    task.check(&opened, &options, args.no_think)?;
    let calibrated = args.calibrated(&source, &opened, &mut options)?;
    signals::install()?;

    let device = pollster::block_on(ComputeDevice::open(&args.device))?;
    let mut bar = Progress::new(&format!("loading {name}"), args.quiet);
    let mut engine = opened.load(&source, &device, &mut |done, of| bar.at(done, of))?;
    drop(bar);
    let load_us = began.elapsed().as_micros() as u64;

    let mut screen = Screen::new(!args.json, !args.quiet, args.plain);
    screen.note(&format!("{} on {}, loaded in {:.2} s", engine.name(), device.info.line(), load_us as f64 / 1e6));
    if let Some(note) = calibrated {
        screen.note(&note);
    }
    if let Some(why) = unprunable {
        screen.note(&format!("{why}: nothing is pruned (--policy full)"));
    }
    let stop = engine.stop_flag();
    signals::stop_on_signal(&stop);

    let think = args.no_think.then_some(false);
    let prompt = match task {
        Task::Once(prompt) => prompt,
        Task::Chat => {
            let system = args.system.as_deref().map(text::argument);
            return chat::main(&mut engine, &options, system.as_deref(), think, &mut screen, &stop, args.quiet);
        }
    };
    let result = generate(&mut engine, &prompt, &options, &mut screen, &stop, &mut |_, _| ())?;
    // That it cannot be written after all is no reason to keep the rest back.
    let write = |file: &PathBuf| file::write_whole(file, &(result.trace.to_json()? + "\n"));
    let written = args.trace.as_ref().map_or(Ok(()), write);
    if args.json {
        super::print_json(&object(&result, &device, load_us))?;
    }
    if args.show_kept || args.is_example() && !args.quiet {
        screen.kept_view(&result);
    }
    if !args.quiet {
        screen.summary(&result, load_us);
    }
    written?;
    match result.error {
        Some(e) => Err(e),
        None => Ok(signals::received().map_or(ExitCode::SUCCESS, Signal::exit_code)),
    }
}

/// Why the default policy has nothing to go by in this model, if so. Asked for by name, a policy says so itself.
fn unprunable(opened: &PreparedModel, args: &Args) -> Option<&'static str> {
    match opened.tokenizer() {
        _ if args.policy.is_some() => None,
        Ok(tokenizer) if tokenizer.think_ids().close.is_none() => Some("this tokenizer has no single </think>"),
        Err(_) if args.ids.is_some() => Some("no tokenizer, so no steps"),
        _ => None,
    }
}

/// Runs the prompt and shows what comes; `heard` gets every token's text and role too.
pub fn generate(
    engine: &mut Engine,
    prompt: &Prompt,
    options: &Settings,
    screen: &mut Screen,
    stop: &AtomicBool,
    heard: &mut dyn FnMut(&str, Role),
) -> Result<RunResult> {
    let (mut thoughts, mut probes, mut broken) = (Vec::new(), 0, None);
    let slot_bytes = engine.slot_bytes();
    let mut on = |event: Event<'_>| match event {
        Event::Start { prompt_ids } => {
            screen.start(prompt_ids.len(), slot_bytes);
            // A run clears the flag. A signal that came just before it must still count.
            if signals::received().is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        Event::Token { text, role, .. } => {
            if role == Role::Thinking {
                thoughts.push(text.to_string());
            }
            heard(text, role);
            if let Err(e) = screen.token(text, role) {
                // Nobody reads on: no use in decoding on.
                broken.get_or_insert(e);
                stop.store(true, Ordering::Relaxed);
            }
        }
        Event::Probe(probe) => {
            screen.probe(probes, probe, &thoughts);
            probes += 1;
        }
    };
    let result = pollster::block_on(engine.run(prompt, options, &mut on));
    let ended = screen.end_text();
    // What was generated is not lost with it.
    result.map(|mut result| {
        let failed = broken.or(ended.err()).and_then(|e| super::stdout_failed(&e).err());
        result.error = result.error.or(failed);
        result
    })
}

/// What to do.
enum Task {
    /// One prompt.
    Once(Prompt),
    /// A conversation.
    Chat,
}

impl Task {
    /// Refuses what cannot be run with this model: now, not after gigabytes were loaded.
    fn check(&self, opened: &PreparedModel, options: &Settings, no_think: bool) -> Result<()> {
        match self {
            Self::Once(prompt) => opened.check(prompt, options),
            Self::Chat => {
                opened.tokenizer()?;
                let template = opened.template()?;
                if no_think {
                    template.check_thinking_switch()?;
                }
                // What will be said nobody knows: any token serves to check the options.
                opened.check(&Prompt::Ids(vec![0]), options)
            }
        }
    }
}

impl Args {
    /// Takes the layers that were chosen for this model, where the choice lies beside it and none is made here. Returns what there
    /// is to say about it.
    fn calibrated(
        &self,
        source: &ModelSource,
        opened: &PreparedModel,
        options: &mut Settings,
    ) -> Result<Option<String>> {
        let scored = options.policy.needs().scores();
        if self.layers.is_some() || options.scope != Scope::Shared || !scored {
            return Ok(None);
        }
        let Some((choice, path)) = model::choice(source)? else { return Ok(None) };
        let place = path.display();
        let made = &choice.settings;
        // What suits one policy says nothing about another, nor do layers about those of other weights.
        if made.run.policy != options.policy {
            let why = format!("{place} was made for {}, not for {}: all layers vote", made.run.policy, options.policy);
            return Ok(Some(why));
        }
        let hashed = Hashed::of(&Weights::open(source)?, &path);
        hashed.keep(&path);
        if !made.weights.starts_with(FINGERPRINT) {
            return Ok(Some(format!(
                "{place} was made by an older version, or it was made for other weights: all layers vote (`secateur calibrate` \
                 makes it anew)"
            )));
        }
        if made.weights != hashed.fingerprint {
            let why =
                format!("{place} was made for other weights: all layers vote (`secateur calibrate` makes it anew)");
            return Ok(Some(why));
        }
        options.layers = choice.layers()?;
        options.layers.check(opened.config().num_layers, Scope::Shared).map_err(|e| e.at(&place))?;
        let right = |layers: &str| choice.row(layers).map_or(0, |row| row.correct);
        let (layers, of) = (&choice.layers, made.questions);
        let mut note = match layers.as_str() {
            "all" => format!("all layers vote, as calibrated ({place}: {} of {of} right", right("all")),
            _ => format!(
                "layers {layers} vote, as calibrated ({place}: {} of {of} right, with all layers {}{}",
                right(layers),
                right("all"),
                if choice.distinguishable { "" } else { ", which may be chance" },
            ),
        };
        if made.run.budget != options.budget {
            note += &format!("; with {}, not {}", made.run.budget, options.budget);
        }
        Ok(Some(note + "); --layers overrides"))
    }

    fn is_example(&self) -> bool {
        self.prompt.is_none() && self.ids.is_none() && self.model.model.is_none()
    }

    fn task(&self) -> Result<Task> {
        let empty = || Error::new(ErrorKind::Input, "the prompt is empty");
        if let Some(ids) = &self.ids {
            let ids = parse_ids(ids)?;
            let needed = || empty().at("--ids").expected("token ids, such as --ids \"1,2,3\"");
            return if ids.is_empty() { Err(needed()) } else { Ok(Task::Once(Prompt::Ids(ids))) };
        }
        let text = match self.prompt.as_deref() {
            Some("-") => stdin::read_prompt()?,
            Some(text) => text::argument(text),
            None if self.is_example() => builtin::EXAMPLE.to_string(),
            None => return self.chat(),
        };
        if text.trim().is_empty() {
            return Err(empty().expected("some text"));
        }
        if self.raw {
            return Ok(Task::Once(Prompt::Raw(text)));
        }
        let system = self.system.as_ref().map(|text| Message::new("system", text::argument(text)));
        let messages = system.into_iter().chain([Message::user(text)]).collect();
        Ok(Task::Once(Prompt::Messages { messages, think: self.no_think.then_some(false) }))
    }

    /// A chat, where there is somebody to chat with.
    fn chat(&self) -> Result<Task> {
        let no_prompt = |why: &str| {
            Error::new(ErrorKind::Input, format!("no prompt{why}"))
                .expected("a prompt, - for stdin, or --ids \"1,2,3\"; on a terminal, none of them to chat")
                .help("secateur run --model DIR \"What is 12 + 30?\"")
        };
        let alone = [("--json", self.json), ("--trace", self.trace.is_some()), ("--raw", self.raw)];
        if let Some((option, _)) = alone.iter().find(|(_, given)| *given) {
            return Err(no_prompt(&format!(", and a chat has no {option}")));
        }
        if !std::io::stdin().is_terminal() {
            return Err(no_prompt(", and stdin is not a terminal to chat on"));
        }
        if !std::io::stdout().is_terminal() {
            return Err(no_prompt(", and stdout is not a terminal to chat on"));
        }
        Ok(Task::Chat)
    }

    fn run_options(&self) -> Result<Settings> {
        let (window, probe_every) = default_rhythm(self.model.model.is_none());
        let options = Settings {
            max_new_tokens: self.max_new_tokens,
            policy: self.policy.as_deref().map_or(Ok(PolicyRef::default()), str::parse)?,
            budget: self.budget.parse()?,
            window: self.window.unwrap_or(window),
            probe_every: self.probe_every.unwrap_or(probe_every),
            probe_text: self.probe_text.clone(),
            // What is not given here the model knows: once it is loaded.
            sampling: self.sampling.over(Sampling::GREEDY)?,
            seed: self.seed,
            scope: self.scope.parse()?,
            layers: self.layers.as_deref().unwrap_or("all").parse()?,
            normalise: self.normalise.parse()?,
            positions: self.positions.parse()?,
            ignore_eos: self.ignore_eos,
            steps: Settings::default().steps,
            attention: match (&self.trace, self.trace_heads) {
                (None, _) => AttentionDetail::Off,
                (Some(_), false) => AttentionDetail::Layers,
                (Some(_), true) => AttentionDetail::Heads,
            },
        };
        options.policy.accepts(options.budget)?;
        // How many layers there are is not known yet; whether a list makes sense is.
        options.layers.check(usize::MAX, options.scope)?;
        check_probe_every(options.probe_every)?;
        Ok(options)
    }
}

/// The window and the interval of probes where none are given; `own`: for the built-in model, whose thoughts are short.
pub fn default_rhythm(own: bool) -> (usize, usize) {
    match own {
        true => (builtin::WINDOW, builtin::PROBE_EVERY),
        false => (policy::DEFAULT_WINDOW, probe::DEFAULT_PROBE_EVERY),
    }
}

/// Refuses probes that never advance.
pub fn check_probe_every(every: usize) -> Result<()> {
    if every > 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "a probe cannot come every 0 tokens")
        .at("--probe-every")
        .expected("at least 1")
        .help("to switch probing off: --policy full"))
}

/// Refuses a context without positions.
pub fn check_context(context: Option<usize>) -> Result<()> {
    if context != Some(0) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Input, "a context of 0 positions")
        .at("--context")
        .expected("at least 1")
        .found(0)
        .help("leave --context out for the model's own maximum"))
}

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let wrong = |word: &str| {
        let e = Error::new(ErrorKind::Input, "not a token id").at("--ids");
        e.expected("whole numbers separated by commas, such as \"1,2,3\"").found(format!("{word:?}"))
    };
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(|_| wrong(word))).collect()
}

/// What `--json` prints. Durations are whole microseconds, sizes bytes, `bytes` at the end of the run.
fn object(result: &RunResult, device: &ComputeDevice, load_us: u64) -> serde_json::Value {
    let trace = &result.trace;
    let t = &trace.totals;
    json!({
        "secateur": trace.secateur,
        "model": trace.model,
        "device": device.info,
        "settings": trace.settings,
        "prompt_ids": trace.prompt_ids,
        "ids": trace.tokens.iter().map(|t| t.id).collect::<Vec<_>>(),
        "text": result.text,
        "stop_reason": trace.stop_reason,
        "timings": {
            "load_us": load_us,
            "prefill_us": t.prefill_us,
            "decode_us": t.decode_us,
            "probe_us": t.probe_us,
            "tokens_per_second": screen::tokens_per_second(t),
        },
        "bytes": {
            "in_use": result.bytes.in_use,
            "reserved": result.bytes.reserved,
            "kv": result.kv_bytes,
            "peak_kv": t.peak_kv_bytes,
        },
        "totals": t,
        "probes": trace.probes.len(),
        "probability_missed": result.missed,
    })
}
