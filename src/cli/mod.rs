//! The commands, their exit codes, and how errors are printed.
mod bench;
mod calibrate;
mod chat;
mod colour;
mod conformance;
mod dashes;
mod devices;
mod eval;
mod fields;
mod generate;
mod inspect;
mod journal;
mod line;
mod live;
mod model;
mod options;
mod quality;
mod report;
mod run;
mod screen;
#[cfg(feature = "serve")]
mod serve;
mod signals;
mod state;
mod stdin;
mod text;
mod trust;
mod warnings;
#[cfg(feature = "serve")]
mod web;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use secateur::{Error, ErrorKind, Result};

macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0    done; serve: also after one Ctrl-C or SIGTERM, once the requests that were running have ended
  1    a model, device or file failed; run: the answer broke off before its --answer-format was complete;
       conformance: a case failed or a required device is missing
  2    the arguments or the prompt are wrong
  130  interrupted by Ctrl-C (once: the run stops and writes its summary and trace; twice: it quits immediately)
  143  ended by SIGTERM, in the same way (129: by SIGHUP)"
    };
}

/// The end of a command's help: examples, then the exit codes.
macro_rules! after_help {
    ($($line:literal)*) => {
        concat!("Examples:\n", $("  ", $line, "\n",)* "\n", exit_codes!())
    };
}

/// Runs reasoning language models on any GPU and prunes redundant thoughts from their KV cache while they think.
#[derive(Debug, Parser)]
#[command(version, after_help = after_help!(
    "secateur run                              an example, with the model in the binary"
    "secateur run --model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    "secateur run --model DIR \"How many primes are below 50?\""
    "secateur inspect DIR                      can it run, and does it fit into memory?"
    "secateur bench --model DIR                how fast is it here?"
    "secateur conformance                      does this machine compute correctly?"
))]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate text from a prompt, or chat, and prune thoughts meanwhile. The text goes to stdout, everything else
    /// to stderr.
    #[command(args_override_self = true, allow_negative_numbers = true, after_help = after_help!(
        "secateur run --model DIR                            a chat (type /help in it)"
        "secateur run --model Qwen/Qwen3-0.6B \"Why is the sky blue?\""
        "git diff | secateur run --model DIR --system \"You review code.\" -"
        "secateur run --model DIR --no-think \"17 * 23?\"     without thinking (Qwen3)"
        "secateur run --model DIR --policy random --budget tokens:1024 --show-kept \"...\""
        "secateur run --model DIR --trace trace.json \"...\"   every token, step, importance and eviction"
        "secateur run --model DIR --ids 1,2,3 --json         no tokenizer needed"
    ))]
    Run(Box<run::Args>),
    /// Make an HTML page from the trace of a run, or from the traces of two runs to compare.
    #[command(after_help = after_help!(
        "secateur report trace.json -o report.html"
        "secateur report pruned.json full.json -o both.html  two runs side by side"
    ))]
    Report(report::Args),
    /// Measure the speed of prefill and decoding, and the share of the device's memory bandwidth that decoding
    /// reaches. No tokenizer is needed.
    #[command(allow_negative_numbers = true, after_help = after_help!(
        "secateur bench --model DIR"
        "secateur bench --preset r1-1.5b --weights q4       without a download: random weights"
        "secateur bench --model DIR --prompt 128,1024,4096 --decode 64 --repeat 5"
        "secateur bench --model DIR --sequences 1,4,16       decoded at the same time"
        "secateur bench --model DIR --device vulkan --json > bench.json"
    ))]
    Bench(bench::Args),
    /// Describe a model: whether it can be run, whether its thoughts can be pruned, and how much memory it needs.
    #[command(allow_negative_numbers = true, after_help = after_help!(
        "secateur inspect DIR"
        "secateur inspect Qwen/Qwen3-0.6B --context 4096,32768"
        "secateur inspect DIR --json"
    ))]
    Inspect(inspect::Args),
    /// Choose the layers whose attention decides what is pruned, by the accuracy on questions with known answers.
    /// `run` uses the choice.
    #[command(allow_negative_numbers = true, after_help = after_help!(
        "secateur calibrate DIR --data dev.jsonl             writes the choice to DIR/secateur.json"
        "secateur calibrate Qwen/Qwen3-0.6B --data dev.jsonl   writes it beside the model in the hub's cache"
        "secateur calibrate DIR --data dev.jsonl --budget tokens:512 --problems 50 --out choice.json"
    ))]
    Calibrate(calibrate::Args),
    /// Measure what pruning costs: policies at several budgets on questions with known answers, compared with the full
    /// cache and with random eviction of as many tokens. The same command continues an interrupted evaluation.
    #[command(allow_negative_numbers = true, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true,
        after_help = after_help!(
        "secateur eval --data builtin-hard --budgets ratio:0.5,ratio:0.25 --out hard     the built-in model"
        "secateur eval DIR --data math500.jsonl --limit 100 --policies think-clearly,h2o --budgets tokens:1024 --out m500"
        "secateur eval DIR --data gsm8k.jsonl --shard 1/4 --out part1     a quarter of the questions, on one of four machines"
        "secateur eval merge whole part1 part2 part3 part4"
        "secateur eval compare m500 other/m500                            two evaluations, on the same questions"
    ))]
    Eval(Box<eval::Args>),
    /// Answer HTTP requests with OpenAI's interface. Every request's memory is bounded before it starts: the budget is
    /// tokens:1024 unless --budget or the request names another.
    #[cfg(feature = "serve")]
    #[command(allow_negative_numbers = true, after_help = after_help!(
        "secateur serve                                      the built-in model, on http://127.0.0.1:8080"
        "secateur serve --model Qwen/Qwen3-0.6B --sequences 8 --budget tokens:1024"
        "secateur serve --model DIR --host 0.0.0.0 --api-key-file keys.txt"
        "curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' -d '{\"messages\": [{\"role\": \"user\", \"content\": \"...\"}]}'"
    ))]
    Serve(Box<serve::Args>),
    /// Serve the browser's page, and open it: the model then runs in the browser, on the GPU of whoever opens the page.
    #[cfg(feature = "serve")]
    #[command(after_help = after_help!(
        "secateur web                                        the page with the built-in model"
        "secateur web --model model.gguf                     the page loads this file from here"
        "secateur web --port 8001 --no-open"
    ))]
    Web(web::Args),
    /// List the devices of this machine, the best one first.
    #[command(after_help = after_help!(
        "secateur devices"
        "secateur devices --json"
    ))]
    Devices(devices::Args),
    /// Check that every device of this machine computes the same as the CPU reference, with a test case for each
    /// kernel and dtype.
    #[command(after_help = after_help!(
        "secateur conformance                                checks every device"
        "secateur conformance --device metal --json > report.json"
        "secateur conformance --require cpu,llvmpipe         fails unless these were checked"
    ))]
    Conformance(conformance::Args),
}

/// The program and its commands.
fn program() -> clap::Command {
    let program = dashes::allow_in_values(Args::command());
    // A server bounds what requests need, so that this option has another default there.
    #[cfg(feature = "serve")]
    let program = program.mut_subcommand("serve", |command| {
        command.mut_arg("budget", |budget| budget.help(options::budget_help(serve::DEFAULT_BUDGET)))
    });
    program
}

/// The program with what clap adds to each command, such as `--help`.
fn built_program() -> clap::Command {
    let mut program = program();
    program.build();
    program
}

/// Parses the arguments, runs the command, prints its error, and returns the exit code.
pub fn main() -> ExitCode {
    let print_panic = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // A loss of the device inside a read becomes an error.
        if !secateur::expert::kernels::readback::is_guarded() {
            print_panic(panic);
        }
    }));
    let (args, quiet) = parse(std::env::args_os().collect());
    if !quiet {
        warnings::install();
    }
    let outcome = match args.command {
        Command::Run(args) => run::main(*args),
        Command::Report(args) => report::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Inspect(args) => inspect::main(&args),
        Command::Calibrate(args) => calibrate::main(&args),
        Command::Eval(args) => eval::main(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::main(*args),
        #[cfg(feature = "serve")]
        Command::Web(args) => web::main(&args),
        Command::Devices(args) => devices::main(&args),
        Command::Conformance(args) => conformance::main(&args),
    };
    let code = outcome.unwrap_or_else(|error| {
        let red = if colour::on_stderr() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        say(&format!("{}error{}: {}", red.0, red.1, fields::error(&error)));
        ExitCode::from(match error.kind() {
            ErrorKind::Input | ErrorKind::Policy => 2,
            ErrorKind::Model | ErrorKind::Device | ErrorKind::Io | ErrorKind::Internal => 1,
        })
    });
    trust::wait_until_done();
    code
}

/// The arguments, and whether `--quiet` is among them. For wrong usage, clap prints an error and exits with code 2.
fn parse(mut given: Vec<OsString>) -> (Args, bool) {
    let command = program();
    let built = built_program();
    dashes::check(&built, &given).unwrap_or_else(|e| refuse(&e));
    let matches = command.clone().try_get_matches_from(&given).or_else(|e| {
        let is_unknown = e.kind() == clap::error::ErrorKind::UnknownArgument;
        let Some(index) = dashes::prompt(&built, &given).filter(|_| is_unknown) else { return Err(e) };
        // After `--`, no argument is an option.
        let prompt = given.remove(index);
        given.extend(["--".into(), prompt]);
        command.try_get_matches_from(&given).map_err(|_| e)
    });
    let matches = matches.unwrap_or_else(|e| refuse(&e));
    let quiet = matches.subcommand().is_some_and(|(_, m)| matches!(m.try_get_one::<bool>("quiet"), Ok(Some(true))));
    (Args::from_arg_matches(&matches).unwrap_or_else(|e| refuse(&e)), quiet)
}

/// Prints an error of clap, or the help or version that was asked for, and exits. What Rust says of numbers that cannot
/// be parsed is put into words for people.
fn refuse(error: &clap::Error) -> ! {
    const WORDS: [(&str, &str); 3] = [
        ("invalid digit found in string", "not a whole number of at least 0"),
        ("number too large to fit in target type", "the number is too large"),
        ("cannot parse integer from empty string", "a number is missing"),
    ];
    let rendered = error.render();
    let said = if colour::on_stderr() { rendered.ansi().to_string() } else { rendered.to_string() };
    let Some((theirs, ours)) = WORDS.into_iter().find(|(theirs, _)| said.contains(theirs)) else { error.exit() };
    let _ = write!(std::io::stderr(), "{}", said.replace(theirs, ours));
    std::process::exit(2);
}

/// Prints a line to stderr. Errors are ignored, because there is no other place to report them.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Prints the result of a command to stdout.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).or_else(|e| stdout_failed(&e))
}

/// Returns an error unless the reader of stdout has closed it (`| head`), which is not a failure.
fn stdout_failed(e: &std::io::Error) -> Result<()> {
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, "stdout cannot be written").found(e))
}

/// Prints a value to stdout as one line of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let json_error = |e| Error::new(ErrorKind::Internal, "the result cannot be written as JSON").found(e);
    print(&(serde_json::to_string(value).map_err(json_error)? + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of each command with its `--help`; the empty name stands for that of the program.
    fn helps() -> Vec<(String, String)> {
        // Before the program is built, because that adds the command `help`. A width of 0 means that no line is broken.
        let program = program();
        let render = |c: &clap::Command| c.clone().term_width(0).render_long_help().to_string();
        let commands = program.get_subcommands().map(|c| (c.get_name().to_string(), render(c)));
        commands.chain([(String::new(), render(&program))]).collect()
    }

    #[test]
    fn help_is_for_people() {
        let helps = helps();
        assert_eq!(helps.len(), if cfg!(feature = "serve") { 11 } else { 9 });
        for (name, help) in helps {
            assert!(help.contains("conformance: a case failed"), "{name}: {help}");
            let budget = if name == "serve" { "[default: tokens:1024]" } else { "[default: ratio:0.75]" };
            assert!(!help.contains("--budget <") || help.contains(budget), "{name}: {help}");
            for internal in ["json_error", "_error"] {
                assert!(!help.contains(internal), "{name}: {internal} in {help}");
            }
            // An option is named as it is typed, and not as the field of a request.
            for field in fields::names() {
                assert!(!help.contains(&format!("`{field}`")), "{name}: `{field}` in {help}");
            }
        }
    }

    #[test]
    fn only_the_options_of_sampling_are_below_its_heading() {
        for (name, help) in helps() {
            let Some((above, below)) = help.split_once("\nSampling (") else {
                assert!(!["run", "calibrate", "eval"].contains(&&*name), "{name} samples: {help}");
                continue;
            };
            let (below, _) = below.split_once("\nExamples:").expect("examples");
            for option in ["--device", "--kv", "--context", "--quiet", "--seed"] {
                // A server draws a seed for every request that names none.
                let without = name == "serve" && option == "--seed";
                assert!((above.contains(option) || without) && !below.contains(option), "{name}: {option} in {help}");
            }
            assert!(below.contains("--greedy") && below.contains("--repetition-penalty"), "{name}: {help}");
        }
    }
}
