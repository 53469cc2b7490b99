//! `secateur serve`: an HTTP server with OpenAI's interface.
use std::io::ErrorKind as IoKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use secateur::device::ComputeDevice;
use secateur::engine::{Engine, LoadOptions, PreparedModel, Settings};
use secateur::policy::Budget;
use secateur::serve::{self, Options, ThinkingField};
use secateur::settings::MAX_NEW_TOKENS_THINKING;
use secateur::{Error, ErrorKind, ModelSource, Result, builtin};

use super::model::ModelArgs;
use super::options::{self, DeviceArgs, PruningArgs, StorageArgs};
use super::screen::{self, Progress};
use super::signals;
use super::text;
use super::trust;

/// The budget of requests that name none: together with a limit on the answer, it bounds their memory.
pub const DEFAULT_BUDGET: Budget = Budget::Tokens(1024);

/// The most requests that run side by side.
const MOST_SEQUENCES: usize = 64;
/// The most places of `--sequences auto` without `--cache-memory`.
const MOST_UNTOLD: usize = 16;

/// How many requests run side by side.
#[derive(Debug, Clone, Copy)]
enum Sequences {
    Auto,
    Number(usize),
}

fn sequences(text: &str) -> Result<Sequences, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Sequences::Auto),
        Ok(number) if (1..=MOST_SEQUENCES).contains(&number) => Ok(Sequences::Number(number)),
        _ => Err(format!("auto or a number from 1 to {MOST_SEQUENCES} is expected")),
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The address to listen on. On another address than this machine's own, clients need a key (--api-key-file).
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// The port to listen on; 0 takes a free one, which is printed.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// The key that clients have to send. It can be seen in the list of processes: a file is safer.
    #[arg(long, value_name = "KEY", env = "SECATEUR_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// A file with the keys that clients may send, one on each line, beside that of --api-key.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// The origins of web pages that may use the server, separated by commas; `*` for all [default: none].
    #[arg(long, value_name = "ORIGIN,...", value_delimiter = ',')]
    cors: Vec<String>,
    /// Further names by which clients may call this server, separated by commas; `*` for all.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    allow_host: Vec<String>,
    /// The name of the model for clients [default: its own].
    #[arg(long, value_name = "NAME")]
    served_name: Option<String>,
    /// Answer requests that name another model too, for clients with fixed names.
    #[arg(long)]
    any_model: bool,
    /// The number of requests that run side by side, or auto: as many usual ones as fit into --cache-memory, at most
    /// 64, or at most 16 where that is not given.
    #[arg(long, value_name = "N|auto", default_value = "4", value_parser = sequences)]
    sequences: Sequences,
    /// The number of requests that may wait for a place. Further ones are refused with status 503.
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: u16,
    /// The number of requests of one key that may run and wait at one time. Further ones are refused with status 429
    /// [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_key: Option<u32>,
    /// The memory for the caches of all requests, in MiB. A request gets a place only if the most that it can need
    /// fits beside the others [default: what the device's largest buffers allow].
    #[arg(long, value_name = "MIB")]
    cache_memory: Option<u64>,
    /// The memory for prompts of requests that have ended, in MiB, as a part of that of the caches. Requests that
    /// begin alike copy them, such as the next message of a conversation; 0: none is kept [default: a quarter of the
    /// caches' memory, at most 256 where that is not given].
    #[arg(long, value_name = "MIB")]
    prompt_cache: Option<u64>,
    /// The most tokens after the thinking, which is never pruned, in requests that name no limit.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    max_answer_tokens: u32,
    /// The field of responses that has the thinking: reasoning_content, reasoning, or none to leave it in the
    /// content.
    #[arg(long, value_name = "FIELD", default_value = "reasoning_content", value_parser = thinking_field)]
    reasoning_field: ThinkingField,
    #[command(flatten)]
    defaults: PruningArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    stored: StorageArgs,
    /// The number of positions to make room for in each request, for the prompt and the text together [default: the
    /// model's maximum, but at most 32768].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// How long a client may leave text unread before its request is ended, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    client_timeout: u64,
    /// How long a request may take, the time in the queue included, in seconds [default: as long as it needs].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    request_timeout: Option<u64>,
    /// After how many seconds of silence a stream gets a comment, which keeps proxies from closing it; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    ping: u64,
    /// How long running requests may go on after the server was told to stop, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// Do not show the progress.
    #[arg(long, short)]
    quiet: bool,
}

pub fn main(args: Args) -> Result<ExitCode> {
    options::check_context(args.context)?;
    let mut defaults = options::request(&args.defaults)?;
    defaults.budget.get_or_insert(DEFAULT_BUDGET);
    defaults.max_answer_tokens = Some(args.max_answer_tokens as usize);
    defaults.check()?;
    let most_new_tokens = defaults.max_new_tokens.unwrap_or(MAX_NEW_TOKENS_THINKING);
    let mut options = Options {
        name: String::new(),
        example: args.model.model.is_none().then(|| builtin::EXAMPLE.to_string()),
        defaults,
        places: 1,
        queue: args.queue.into(),
        memory: args.cache_memory.map(|mib| mib.saturating_mul(1 << 20)),
        kept_prompts: args.prompt_cache.map(|mib| mib.saturating_mul(1 << 20)),
        most_new_tokens,
        requests_per_key: args.requests_per_key.map(|most| most as usize),
        keys: args.keys()?,
        origins: args.cors.clone(),
        hosts: args.allow_host.clone(),
        address: args.host,
        any_model: args.any_model,
        thinking_field: args.reasoning_field,
        most_body_bytes: 16 << 20,
        ping: (args.ping > 0).then(|| Duration::from_secs(args.ping)),
        patience: Duration::from_secs(args.client_timeout),
        deadline: args.request_timeout.map(Duration::from_secs),
        drain: Duration::from_secs(args.drain),
        on_drain: if args.quiet { |_, _| () } else { say_drain },
        trace_bytes: 64 << 20,
    };
    options.check()?;
    // The port is taken before gigabytes are read.
    let listener = listen(SocketAddr::new(args.host, args.port))?;
    let (source, name) = args.model.open(args.quiet)?;
    options.name = args.served_name.clone().unwrap_or_else(|| short_name(&name));
    let load = LoadOptions { kv: args.stored.kv, context: args.context, sequences: 1, weights: args.stored.weights };
    // A model or settings that cannot run are refused before the weights are read.
    let prepared = PreparedModel::new(&source, &name, &load)?;
    prepared.settings(&options.defaults)?;
    options.places = match args.sequences {
        Sequences::Number(places) => places,
        Sequences::Auto if options.memory.is_some() => MOST_SEQUENCES,
        // If the amount of memory is not given, it cannot be derived from the largest buffers either.
        Sequences::Auto => MOST_UNTOLD,
    };
    drop(prepared);
    raise_limit_of_files();
    signals::install()?;
    let stop = Arc::new(AtomicBool::new(false));
    signals::stop_on_signal(&stop);
    let address = address_of(&listener)?;
    let opening = Opening {
        source,
        name,
        load,
        device: args.device.select,
        auto: matches!(args.sequences, Sequences::Auto),
        address,
        quiet: args.quiet,
        options: options.clone(),
    };
    let open = opening.opener();
    let cut_off = serve::run(listener, options, open, stop)?;
    if cut_off > 0 && !args.quiet {
        super::say(&format!("{} ended before their answer was complete", counted(cut_off)));
    }
    // The server stopped because it was told to, so it has succeeded.
    Ok(ExitCode::SUCCESS)
}

/// Prints that the server ends as soon as these requests do.
fn say_drain(requests: usize, time: Duration) {
    let until = match (requests, time.as_secs()) {
        (0, _) => "as soon as the model is loaded".to_string(),
        (_, 0) => "now".to_string(),
        (requests, seconds) => format!("{} may go on for {seconds} s", counted(requests)),
    };
    super::say(&format!("stopping: {until}; Ctrl-C or SIGTERM again ends at once"));
}

fn counted(requests: usize) -> String {
    format!("{requests} request{}", if requests == 1 { "" } else { "s" })
}

/// The options for loading the model, at the start and again after its device was lost.
struct Opening {
    source: ModelSource,
    name: String,
    load: LoadOptions,
    device: String,
    /// Whether the device decides how many requests run side by side.
    auto: bool,
    address: SocketAddr,
    quiet: bool,
    options: Options,
}

/// Tokens of the prompt for which the server prints at its start how much memory a request needs.
const USUAL_PROMPT: usize = 1000;

impl Opening {
    /// Returns a function that loads the model and prints the address at which it is served.
    fn opener(self) -> serve::Open {
        Box::new(move || -> Result<Engine> {
            let Self { source, name, load, device, auto, address, quiet, options } = &self;
            let shown = options::in_precision(name, load.weights);
            let with = |places| PreparedModel::new(source, name, &LoadOptions { sequences: places, ..*load });
            let device = trust::open(device, *quiet)?;
            let places = if *auto { places_on(&device, &with(1)?, options)? } else { options.places };
            let prepared = with(places)?;
            let mut bar = Progress::new(&format!("loading {shown}"), *quiet);
            let engine = prepared.load(source, &device, &mut |done, total| bar.at(done, total))?;
            drop(bar);
            if !quiet {
                super::say(&format!("{shown} on {}", device.info.line()));
                super::say(&room(&engine, options)?);
                if serve::page::files().is_some() {
                    super::say(&format!("the page is at http://{address}/"));
                }
            }
            super::say(&format!("listening on http://{address}"));
            Ok(engine)
        })
    }
}

/// A sentence on how many requests run at once, from the bound of a usual request.
fn room(engine: &Engine, options: &Options) -> Result<String> {
    let (prepared, device) = (engine.prepared(), engine.model().device());
    let (prompt, settings) = usual(&prepared, options)?;
    let most = prepared.cache_limit(device);
    let memory = options.memory.unwrap_or(most).min(most);
    let fit = prepared.side_by_side(prompt, &settings, memory, engine.places(), device);
    let needed = prepared.bound(prompt, &settings).bytes;
    let usual = format!("a request with a prompt of {prompt} tokens needs at most {} of cache", screen::bytes(needed));
    if needed > memory {
        return Ok(format!("{usual}, more than the {} that there are: it would be refused", screen::bytes(memory)));
    }
    let within = options.memory.map(|_| format!(" in {}", screen::bytes(memory))).unwrap_or_default();
    Ok(format!("{usual}; {fit} of them run side by side{within}"))
}

/// The prompt's length and the settings of a usual request.
fn usual(prepared: &PreparedModel, options: &Options) -> Result<(usize, Settings)> {
    let (mut settings, _) = prepared.settings(&options.defaults)?;
    settings.max_new_tokens = settings.max_new_tokens.min(options.most_new_tokens);
    Ok((USUAL_PROMPT.min(prepared.context() / 2), settings))
}

/// The number of places for usual requests on a device.
fn places_on(device: &ComputeDevice, prepared: &PreparedModel, options: &Options) -> Result<usize> {
    let (prompt, settings) = usual(prepared, options)?;
    let most = prepared.cache_limit(device);
    Ok(prepared.side_by_side(prompt, &settings, options.memory.unwrap_or(most).min(most), options.places, device))
}

/// Lets this process open up to 10,240 files, if the system allows so many: each connection is one, and the usual
/// limit is 256 or 1,024.
#[cfg(unix)]
fn raise_limit_of_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // macOS refuses more than this, although it names no limit.
    const MOST: u64 = 10_240;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard.min(MOST).max(soft), hard)
    {
        log::debug!("the limit of open files stays {soft}: {error}");
    }
}

#[cfg(not(unix))]
fn raise_limit_of_files() {}

/// The last part of a path, or the whole name of a model on the hub, without what follows a file's dot.
fn short_name(name: &str) -> String {
    let path = Path::new(name);
    match path.exists() {
        true => path.file_stem().map_or_else(|| name.to_string(), |stem| stem.to_string_lossy().into_owned()),
        false => name.to_string(),
    }
}

/// Binds a listener to an address.
///
/// # Errors
/// If it is taken, or not allowed.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|e| {
        let error = Error::new(ErrorKind::Io, "this address cannot be listened on").at(address);
        match e.kind() {
            IoKind::AddrInUse => error.found("another program listens there").help("choose another --port"),
            IoKind::PermissionDenied => {
                error.found(e).help("ports below 1024 belong to the system: choose another --port")
            }
            _ => error.found(e),
        }
    })
}

/// The address at which a listener listens, with the port that it was given.
///
/// # Errors
/// If the system does not know it.
pub fn address_of(listener: &TcpListener) -> Result<SocketAddr> {
    listener.local_addr().map_err(|e| Error::new(ErrorKind::Io, "the port is not known").found(e))
}

fn thinking_field(name: &str) -> Result<ThinkingField, String> {
    match name {
        "reasoning_content" => Ok(ThinkingField::ReasoningContent),
        "reasoning" => Ok(ThinkingField::Reasoning),
        "none" => Ok(ThinkingField::None),
        _ => Err("reasoning_content, reasoning or none is expected".into()),
    }
}

impl Args {
    /// The keys that clients may send.
    fn keys(&self) -> Result<Vec<String>> {
        let mut keys: Vec<String> = self.api_key.iter().cloned().collect();
        if let Some(file) = &self.api_key_file {
            let text = text::read(file, "the keys")?;
            let before = keys.len();
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_string));
            if keys.len() == before {
                let error = Error::new(ErrorKind::Input, "the file has no key").at(file.display());
                return Err(error.expected("a key on each line"));
            }
        }
        match keys.iter().any(|key| key.is_empty()) {
            true => Err(Error::new(ErrorKind::Input, "the key is empty").at("--api-key").expected("some text")),
            false => Ok(keys),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_number_or_auto() {
        assert!(matches!(sequences("auto"), Ok(Sequences::Auto)));
        assert!(
            matches!(sequences("1"), Ok(Sequences::Number(1))) && matches!(sequences("64"), Ok(Sequences::Number(64)))
        );
        for bad in ["0", "65", "", "-1", "Auto", "1.5"] {
            assert!(sequences(bad).is_err_and(|said| said.contains("1 to 64")), "{bad:?}");
        }
    }
}
