//! `secateur run` on a terminal, and interrupted.
use super::trace_of;
use crate::common::command::{F16, secateur};
use secateur::trace::StopReason;
use std::process::{Command, Stdio};

#[cfg(unix)]
#[test]
fn the_first_signal_ends_with_the_summary_and_the_trace() {
    // The signals of Ctrl-C, of `kill` or `timeout`, and of a terminal that was closed.
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        ends_in_order(signal, code);
    }
}

#[cfg(unix)]
fn ends_in_order(signal: &str, code: i32) {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let args = ["run", "--device", "cpu", "--model", F16, "--ignore-eos", "--max-new-tokens", "4000"];
    let mut child = heeding_signals(secateur(&[&args[..], &["--trace", file.to_str().unwrap(), "x"]].concat()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The run has begun when its first text arrives.
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{err}");
    assert!(err.contains("-- summary --") && err.contains("interrupted") && !err.contains("panicked"), "{err}");
    let trace = trace_of(&file);
    assert_eq!(trace.stop_reason, StopReason::Cancelled);
    assert!(!trace.tokens.is_empty() && trace.tokens.len() < 4000);
}

/// The command with every signal at its default. Without this, tests that were started by `nohup` would pass on that
/// hanging up is ignored.
#[cfg(unix)]
fn heeding_signals(command: Command) -> Command {
    if !cfg!(target_os = "linux") {
        return command;
    }
    let mut heeding = Command::new("env");
    heeding.arg("--default-signal=HUP,INT,TERM").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => heeding.env(name, value),
            None => heeding.env_remove(name),
        };
    }
    heeding.stdin(Stdio::null());
    heeding
}

/// What the binary writes to a terminal of 60 columns and 20 lines.
#[cfg(target_os = "linux")]
fn on_a_terminal(args: &str, environment: &[(&str, &str)]) -> String {
    // `script` of util-linux runs a command on a terminal of its own.
    let line = format!("stty cols 60 rows 20 && exec {} run --device cpu {args}", env!("CARGO_BIN_EXE_secateur"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    // Its input stays open and silent, because the end of its input would end the terminal.
    command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("util-linux's script");
    let stdin = child.stdin.take();
    let output = child.wait_with_output().expect("it ends");
    drop(stdin);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_shows_what_was_cut_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let question =
        "'We count modulo 10. #1 f equals 4. #2 d is f plus 5. #3 k equals 8. #4 g is d minus k. What is g?'";
    let options = format!("--probe-every 24 --window 16 --budget ratio:0.6 --trace {} {question}", file.display());
    let written = on_a_terminal(&options, &[]);
    let trace = trace_of(&file);
    let mut terminal = avt::Terminal::with_scrollback(60, 20, None).unwrap();
    terminal.feed(written.as_str());
    let screen = terminal.primary_screen();
    let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let text = bare(&screen.text().concat());
    let expected = bare(&trace.tokens.iter().map(|t| t.text.as_str()).collect::<String>().replace("<|end|>", ""));
    assert_eq!(text.matches(&expected).count(), 1, "the text, once and whole:\n{}", screen.text().join("\n"));
    // Everything fits on the screen, so everything that was evicted is struck through.
    let evicted = |i: &usize| trace.probes.iter().any(|p| p.evicted.contains(&((trace.prompt_ids.len() + i) as u32)));
    let cut: String = (0..trace.tokens.len()).filter(evicted).map(|i| trace.tokens[i].text.as_str()).collect();
    let cells = screen.all_lines().flat_map(|line| line.cells());
    let struck: String = cells.filter(|c| c.pen().is_strikethrough()).map(avt::Cell::char).collect();
    assert!(!cut.is_empty() && bare(&struck) == bare(&cut), "struck {struck:?}, cut {cut:?}");
    // The last two tokens are the last one of the text, and the end token, which has no text.
    let last = trace.totals.prompt_tokens + trace.totals.generated_tokens - 2;
    assert!(written.contains(&format!("of {last} tokens · KV ")), "no status line");
    assert!(!screen.text().concat().contains("· KV "), "the status line is left standing");

    // On a terminal that must not be controlled, only text is written, with notes between its lines.
    for (more, environment) in [("--plain", &[][..]), ("", &[("NO_COLOR", "1")]), ("", &[("TERM", "dumb")])] {
        let written = on_a_terminal(&format!("{more} --max-new-tokens 30 {options}"), environment);
        let moves = written.match_indices("\x1b[").filter(|(at, _)| {
            !written[at + 2..].trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
        });
        // indicatif's bar while loading may clear its own line.
        let loaded = written.find("loaded in").expect("a note");
        let moves: Vec<_> = moves.filter(|(at, _)| *at > loaded).collect();
        assert!(moves.is_empty(), "{more} {environment:?}: {moves:?}");
        assert!(written.contains("[probe 1] evicted"), "{more} {environment:?}: {written}");
    }
}
