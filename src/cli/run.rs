//! `secateur run`: generates from a prompt, or starts a chat.
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use secateur::engine::{LoadOptions, PreparedModel, Prompt, Request, Resolved};
use secateur::expert::file;
use secateur::expert::text::RenderOptions;
use secateur::settings::AttentionDetail;
use secateur::trace::StopReason;
use secateur::{ComputeDevice, Error, ErrorKind, Message, Result, builtin};
use serde::Serialize;
use web_time::Instant;

use super::chat;
use super::fields;
use super::generate::{generate, object};
use super::model::ModelArgs;
use super::options::{self, DeviceArgs, PromptArgs, PruningArgs, StorageArgs};
use super::screen::{self, Progress, Screen};
use super::signals::{self, Signal};
use super::stdin;
use super::text;
use super::trust;
use super::warnings;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The user's message; `-` reads it from stdin. Without a prompt, a chat starts on a terminal; without a model as
    /// well, the built-in model solves an example.
    #[arg(conflicts_with = "ids")]
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Read the request from a JSON file, or from stdin (`-`): {"prompt": "...", "budget": "tokens:512"}. Options on
    /// the command line override its fields.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    #[command(flatten)]
    options: RequestArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    stored: StorageArgs,
    /// The number of positions to make room for, for the prompt and the text together [default: the model's maximum,
    /// but at most 32768].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Write a trace of the run to a JSON file: the tokens, the probes and the evictions. It is also written after
    /// Ctrl-C.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Record the attention of every head in the trace, not only of every layer. This takes a second forward pass at
    /// each probe, and makes the trace large.
    #[arg(long, requires = "trace")]
    trace_heads: bool,
    /// Print the prompt and all settings that this run would use, as JSON, and stop. No weights are loaded.
    #[arg(long)]
    dry_run: bool,
    /// Print only the answer to stdout, without the thinking.
    #[arg(long, conflicts_with = "json")]
    answer_only: bool,
    /// Print one JSON object to stdout instead of the text.
    #[arg(long)]
    json: bool,
    /// Show the thinking again at the end, with the evicted parts struck through.
    #[arg(long)]
    show_kept: bool,
    /// Print the text without ever repainting it, for screen readers, recordings, and terminals that show it wrongly.
    #[arg(long)]
    plain: bool,
    /// Print only the text (or the JSON), errors, and warnings about the result and about a machine without a GPU.
    #[arg(long, short)]
    quiet: bool,
}

/// The options that make up the request.
#[derive(Debug, clap::Args, Serialize)]
struct RequestArgs {
    #[command(flatten)]
    #[serde(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pruning: PruningArgs,
}

pub fn main(args: Args) -> Result<ExitCode> {
    // The request is checked before any file of the model is read, or fetched.
    let request = args.request()?;
    request.check()?;
    let prompted = request.prompt()?.is_some();
    if !prompted {
        args.check_chat(request.raw == Some(true))?;
    }
    options::check_context(args.context)?;
    if let Some(file) = &args.trace {
        file::check_writable(file)?;
    }
    let (source, name) = args.model.open(args.quiet)?;
    // The rest is checked before gigabytes of weights are read.
    let began = Instant::now();
    let load = LoadOptions { kv: args.stored.kv, context: args.context, sequences: 1, weights: args.stored.weights };
    let prepared = PreparedModel::new(&source, &name, &load)?;
    let (resolved, mut notes) = match prompted {
        true => {
            let Resolved { prompt, settings, notes } = prepared.resolve(&request)?;
            (Some((prompt, settings)), notes)
        }
        false => (None, check_chat_model(&prepared, &request)?),
    };
    if let (true, Some((prompt, settings))) = (args.dry_run, &resolved) {
        let (prompt, settings) = (prompt.clone(), settings.clone());
        super::print_json(&Resolved { prompt, settings, notes })?;
        return Ok(ExitCode::SUCCESS);
    }
    signals::install()?;

    let shown_name = options::in_precision(&name, args.stored.weights);
    let open = || trust::open(&args.device.select, args.quiet);
    let load_onto = |device: &ComputeDevice, prepared: PreparedModel| {
        let mut bar = Progress::new(&format!("loading {shown_name}"), args.quiet);
        prepared.load(&source, device, &mut |done, total| bar.at(done, total))
    };
    let device = open()?;
    if let Some((prompt, settings)) = &resolved {
        notes.extend(prepared.check_on(prompt, settings, &device)?);
    }
    let mut engine = load_onto(&device, prepared)?;
    let load_us = began.elapsed().as_micros() as u64;

    let mut screen = Screen::new(!args.json, !args.quiet, args.plain);
    screen.note(&format!("{shown_name} on {}, loaded in {:.2} s", device.info.line(), load_us as f64 / 1e6));
    for note in &notes {
        screen.note(&fields::as_options(note));
    }
    if args.is_example(&request) {
        screen.note(&format!("the example: {}", builtin::EXAMPLE));
    }
    let stop = engine.stop_flag();
    signals::stop_on_signal(&stop);

    let Some((prompt, settings)) = resolved else {
        // After a loss of the device, the chat continues on a new one.
        let mut again = || load_onto(&open()?, PreparedModel::new(&source, &name, &load)?);
        return chat::main(engine, &request, &mut screen, &mut again, args.quiet);
    };
    let result = generate(&mut engine, &prompt, &settings, &mut screen, &stop, args.answer_only)?;
    // If the trace cannot be written, the result is printed all the same, before the error.
    let write = |file: &PathBuf| file::write_whole(file, &(result.trace.to_json()? + "\n"));
    let written = args.trace.as_ref().map_or(Ok(()), write);
    if args.json {
        super::print_json(&object(&result, &notes, &device, load_us))?;
    }
    if args.show_kept || args.is_example(&request) && !args.quiet {
        screen.kept_view(&result);
    }
    match args.quiet {
        false => screen.summary(&result, load_us),
        true => screen.warn_about(&result),
    }
    // A program that reads an empty stdout, or an incomplete thought with --quiet, must be able to tell why. After an
    // interruption the reason is known, so --quiet alone does not print the warning.
    let interrupted = result.trace.stop_reason == StopReason::Cancelled;
    let empty = args.answer_only && result.answer.is_empty();
    let broken_off = result.format_unfinished && !interrupted;
    if result.error.is_none() && !broken_off && (empty || args.quiet && result.thinking_unfinished && !interrupted) {
        warnings::warn(&format!("no answer came: {}", screen::ended(&result)));
    }
    written?;
    match result.error {
        Some(e) => Err(e),
        // The program asked for JSON. It must not take an incomplete text for the whole.
        None if broken_off => Err(Error::new(ErrorKind::Model, "the answer is not complete in its format")
            .at("`answer_format`")
            .found(screen::ended(&result))
            .help(match result.trace.stop_reason {
                StopReason::MaxAnswerTokens => "raise `max_answer_tokens`, or leave it out",
                StopReason::ContextFull => {
                    "use a larger `context`, or a format that comes to an end, such as a schema with \
                     \"additionalProperties\": false"
                }
                StopReason::StopString | StopReason::StopToken => "leave out `stop`: the format ends the answer",
                _ => "raise `max_new_tokens`, or leave it out",
            })),
        None => Ok(signals::received().map_or(ExitCode::SUCCESS, Signal::exit_code)),
    }
}

/// Refuses a chat that is impossible with this model, before its weights are read. Returns the notes on its settings.
fn check_chat_model(prepared: &PreparedModel, request: &Request) -> Result<Vec<String>> {
    prepared.tokenizer()?;
    let template = prepared.template()?;
    if request.think.is_some() {
        template.check_thinking_switch()?;
    }
    if let Some(system) = &request.system {
        template.check_system(&[Message::new("system", system.as_str())], &RenderOptions::default())?;
    }
    // Each turn draws its own seed, so the seed that is drawn here is not reported.
    let (settings, notes) = prepared.settings(&Request { seed: request.seed.or(Some(0)), ..request.clone() })?;
    // There is no message yet, but any prompt serves to check the settings.
    prepared.check(&Prompt::Ids(vec![0]), &settings)?;
    Ok(notes)
}

impl Args {
    /// The request of `--request`, overridden by the options.
    fn request(&self) -> Result<Request> {
        let mut given = options::request(&self.options)?;
        given.prompt = match self.prompt.as_deref() {
            Some("-") => Some(stdin::read_prompt()?),
            None if given.ids.is_none() && self.is_piped() => {
                Some(stdin::read_prompt()?).filter(|text| !text.trim().is_empty())
            }
            given => given.map(text::argument),
        };
        given.attention = self.trace_heads.then_some(AttentionDetail::Heads);
        let mut request = match &self.request {
            None => given,
            Some(path) => options::read_request(path)?.overridden_by(&given)?,
        };
        if self.trace.is_some() {
            request.attention.get_or_insert(AttentionDetail::Layers);
        }
        if self.is_example(&request) {
            request.prompt = Some(builtin::EXAMPLE.into());
        }
        Ok(request)
    }

    /// Whether to read the prompt from stdin although there is no `-`: no other option gives a prompt, and stdin is
    /// a pipe or a file.
    fn is_piped(&self) -> bool {
        self.request.is_none() && stdin::is_pipe_or_file()
    }

    /// Whether there is neither a model nor a prompt, so that the built-in model solves its example.
    fn is_example(&self, request: &Request) -> bool {
        let asked = |prompt: &Option<String>| prompt.as_deref().is_some_and(|text| text != builtin::EXAMPLE);
        self.model.model.is_none() && !asked(&request.prompt) && request.messages.is_none() && request.ids.is_none()
    }

    /// Refuses a chat without a terminal, or with options that have no effect in a chat.
    fn check_chat(&self, raw: bool) -> Result<()> {
        let no_prompt = |why: &str| {
            Error::new(ErrorKind::Input, format!("no prompt{why}"))
                .expected("a prompt, - for stdin, or --ids \"1,2,3\"; on a terminal, none of them to chat")
                .help("secateur run --model DIR \"What is 12 + 30?\"")
        };
        let without_chat = [
            ("--json", self.json),
            ("--trace", self.trace.is_some()),
            ("--raw", raw),
            ("--dry-run", self.dry_run),
            ("--answer-only", self.answer_only),
        ];
        if let Some((option, _)) = without_chat.iter().find(|(_, given)| *given) {
            return Err(no_prompt(&format!(", and a chat has no {option}")));
        }
        if !std::io::stdin().is_terminal() {
            return Err(no_prompt(", and stdin is not a terminal to chat on"));
        }
        if !std::io::stdout().is_terminal() {
            return Err(no_prompt(", and stdout is not a terminal to chat on"));
        }
        Ok(())
    }
}
