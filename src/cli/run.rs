//! `secateur run`
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use secateur::Dtype;
use secateur::device::ComputeDevice;
use secateur::engine::{LoadOptions, PreparedModel, Prompt, Request, Resolved};
use secateur::settings::AttentionDetail;
use secateur::{Error, ErrorKind, Result, builtin, file};
use serde::Serialize;
use web_time::Instant;

use super::chat;
use super::fields;
use super::generate::{generate, object};
use super::model::ModelArgs;
use super::options::{self, PromptArgs, PruningArgs};
use super::screen::{self, Progress, Screen};
use super::signals::{self, Signal};
use super::stdin;
use super::text;
use super::warnings;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The user's message; `-` reads it from stdin. Without it, on a terminal, you chat; without model too, an
    /// example runs.
    #[arg(conflicts_with = "ids")]
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Read the request from a JSON file, or from stdin (`-`): {"prompt": "...", "budget": "tokens:512"}. Options
    /// given here override it.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    #[command(flatten)]
    options: RequestArgs,
    /// auto, cpu, vulkan, metal, dx12, gl, or a part of an adapter's name (`secateur devices` lists them).
    #[arg(long, default_value = "auto")]
    device: String,
    /// Element type of the KV cache: f16 or f32.
    #[arg(long, value_name = "TYPE", value_parser = options::kv, default_value_t = Dtype::F16)]
    kv: Dtype,
    /// Positions to make room for. Default: the model's own maximum, at most 32768.
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Write the trace (tokens, probes, what was cut) as JSON; also after Ctrl-C.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Record the attention of every head in the trace, not only of every layer: one more probe each time, and much
    /// to read back.
    #[arg(long, requires = "trace")]
    trace_heads: bool,
    /// Print what the request comes to with this model, as JSON, and stop: no weights are loaded.
    #[arg(long)]
    dry_run: bool,
    /// Only the answer on stdout, without the thinking.
    #[arg(long, conflicts_with = "json")]
    answer_only: bool,
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
    // First, everything that can be refused before anything is loaded.
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
    // Next, everything that can be refused before gigabytes are read.
    let began = Instant::now();
    let load = LoadOptions { kv: args.kv, context: args.context, sequences: 1 };
    let prepared = PreparedModel::new(&source, &name, &load)?;
    let (resolved, notes) = match prompted {
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

    let device = pollster::block_on(ComputeDevice::open(&args.device))?;
    let mut bar = Progress::new(&format!("loading {name}"), args.quiet);
    let mut engine = prepared.load(&source, &device, &mut |done, of| bar.at(done, of))?;
    drop(bar);
    let load_us = began.elapsed().as_micros() as u64;

    let mut screen = Screen::new(!args.json, !args.quiet, args.plain);
    screen.note(&format!("{} on {}, loaded in {:.2} s", engine.name(), device.info.line(), load_us as f64 / 1e6));
    for note in &notes {
        screen.note(&fields::as_options(note));
    }
    let stop = engine.stop_flag();
    signals::stop_on_signal(&stop);

    let Some((prompt, settings)) = resolved else {
        return chat::main(&mut engine, &request, &mut screen, &stop, args.quiet);
    };
    let result = generate(&mut engine, &prompt, &settings, &mut screen, &stop, args.answer_only)?;
    // A trace that cannot be written after all is no reason to keep the rest back.
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
        // It changes what was sampled, so that it is said in any case.
        true => screen::missed(&result).iter().for_each(|missed| warnings::warn(missed)),
    }
    written?;
    match result.error {
        Some(e) => Err(e),
        None => Ok(signals::received().map_or(ExitCode::SUCCESS, Signal::exit_code)),
    }
}

/// Refuses a chat that this model cannot have, before its weights are read. Returns what there is to say about its
/// settings.
fn check_chat_model(prepared: &PreparedModel, request: &Request) -> Result<Vec<String>> {
    prepared.tokenizer()?;
    let template = prepared.template()?;
    if request.think.is_some() {
        template.check_thinking_switch()?;
    }
    let (settings, notes) = prepared.settings(request)?;
    // What will be said is not known yet: any token serves to check the settings.
    prepared.check(&Prompt::Ids(vec![0]), &settings)?;
    Ok(notes)
}

impl Args {
    /// The request: the file's, with what the options give in the place of its own.
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

    /// Whether the prompt comes on stdin although no `-` says so: a model is named, nothing else gives a prompt, and stdin is a pipe or
    /// a file. The example of the built-in model needs none, and waits for no pipe that a script has left open.
    fn is_piped(&self) -> bool {
        self.model.model.is_some() && self.request.is_none() && !std::io::stdin().is_terminal()
    }

    /// Whether nothing was asked of the built-in model, which then solves its example.
    fn is_example(&self, request: &Request) -> bool {
        let asked = |prompt: &Option<String>| prompt.as_deref().is_some_and(|text| text != builtin::EXAMPLE);
        self.model.model.is_none() && !asked(&request.prompt) && request.messages.is_none() && request.ids.is_none()
    }

    /// Refuses a chat that cannot be held: for want of a terminal, or with options that it has no use for.
    fn check_chat(&self, raw: bool) -> Result<()> {
        let no_prompt = |why: &str| {
            Error::new(ErrorKind::Input, format!("no prompt{why}"))
                .expected("a prompt, - for stdin, or --ids \"1,2,3\"; on a terminal, none of them to chat")
                .help("secateur run --model DIR \"What is 12 + 30?\"")
        };
        let alone = [
            ("--json", self.json),
            ("--trace", self.trace.is_some()),
            ("--raw", raw),
            ("--dry-run", self.dry_run),
            ("--answer-only", self.answer_only),
        ];
        if let Some((option, _)) = alone.iter().find(|(_, given)| *given) {
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
