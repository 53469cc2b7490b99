//! Output for people: the streamed text, notes, progress bars, the view of the kept thinking, and the summary.
use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::ops::Range;

use indicatif::{ProgressBar, ProgressStyle};
use secateur::engine::RunResult;
pub use secateur::expert::table::aligned as table;
use secateur::policy::{Role, Scope};
use secateur::settings::MAX_NEW_TOKENS_THINKING;
use secateur::trace::{self, StopReason};
use terminal_size::{Height, Width};
use unicode_width::UnicodeWidthStr;

use super::live::{Live, Look};
use super::text::visible;
use super::{colour, warnings};

const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// The columns and lines of the terminal on stdout, or `None` if it is not a terminal that moves the cursor on
/// request.
fn window() -> Option<(usize, usize)> {
    // Without TERM, nothing is known about the terminal, except on Windows, which does not set it.
    let known = cfg!(windows) || std::env::var_os("TERM").is_some();
    let (Width(cols), Height(lines)) = terminal_size::terminal_size_of(std::io::stdout()).filter(|_| known)?;
    (cols >= 16 && lines >= 4).then_some((cols.into(), lines.into()))
}

/// The numbers in the status line.
#[derive(Default)]
struct Tally {
    prompt: usize,
    generated: usize,
    cached: usize,
    slot_bytes: u64,
    last_probe: String,
}

impl Tally {
    fn line(&self) -> String {
        let total = self.prompt + self.generated;
        let kv = |tokens: usize| bytes(tokens as u64 * self.slot_bytes);
        format!("cached {} of {total} tokens · KV {} of {}{}", self.cached, kv(self.cached), kv(total), self.last_probe)
    }
}

/// Streams text to stdout and notes to stderr, which may be the same terminal.
///
/// On a terminal that can move its cursor, the text is [live](Live): the tokens that a probe evicts are struck
/// through in place, and a status line replaces the notes. Elsewhere (pipes, files, `TERM=dumb`, `NO_COLOR`,
/// `--plain`), text and notes are only appended.
pub struct Screen {
    text: bool,
    notes: bool,
    out_terminal: bool,
    shared: bool,
    dim_thinking: bool,
    colour: bool,
    dimmed: bool,
    mid_line: bool,
    live: Option<Live>,
    tally: Tally,
    /// Whether this run was reported to repeat itself.
    repetition_reported: bool,
}

impl Screen {
    /// `text`: stream the tokens. `notes`: write notes, such as those on probes. `plain`: never repaint the text.
    pub fn new(text: bool, notes: bool, plain: bool) -> Self {
        let (out_terminal, err_terminal) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self {
            text,
            notes,
            out_terminal,
            shared: out_terminal && err_terminal,
            dim_thinking: out_terminal && colour::is_wanted(),
            colour: colour::on_stderr(),
            dimmed: false,
            mid_line: false,
            live: window()
                .filter(|_| text && !plain && out_terminal && colour::is_wanted())
                .map(|(cols, lines)| Live::new(cols, lines)),
            tally: Tally::default(),
            repetition_reported: false,
        }
    }

    /// Prepares for a run whose prompt has `prompt_tokens` tokens, and whose cache needs `slot_bytes` bytes for each
    /// token.
    pub fn start(&mut self, prompt_tokens: usize, slot_bytes: u64) {
        self.tally = Tally { prompt: prompt_tokens, cached: prompt_tokens, slot_bytes, ..Tally::default() };
        self.repetition_reported = false;
    }

    /// The live text, if there is one, adapted to the current size and state of the terminal.
    fn live(&mut self) -> Option<&mut Live> {
        let live = self.live.as_mut()?;
        if super::signals::take_terminal_disturbed() {
            live.forget();
        }
        match window() {
            Some((cols, lines)) => live.resize(cols, lines),
            None => live.forget(),
        }
        self.live.as_mut()
    }

    /// Writes the text of one token: dimmed if it is thinking, plain if it is the answer. To a file or a pipe, the
    /// text is written unchanged.
    pub fn token(&mut self, text: &str, role: Role) -> std::io::Result<()> {
        // A sampled token is not cached yet, so the status line shows the numbers from before it.
        let status = if self.notes && self.shared { self.tally.line() } else { String::new() };
        let index = self.tally.generated;
        self.tally.generated += 1;
        self.tally.cached += 1;
        if !self.text || text.is_empty() {
            return Ok(());
        }
        if let Some(live) = self.live() {
            let look = if role == Role::Answer { Look::Plain } else { Look::Thinking };
            let painted = live.push(&visible(text), look, index) + &live.status(status);
            let mut out = std::io::stdout().lock();
            out.write_all(painted.as_bytes())?;
            return out.flush();
        }
        let mut out = std::io::stdout().lock();
        let dim = self.dim_thinking && role != Role::Answer;
        if dim != self.dimmed {
            self.dimmed = dim;
            write!(out, "{}", if dim { DIM } else { PLAIN })?;
        }
        match self.out_terminal {
            true => write!(out, "{}", visible(text))?,
            false => write!(out, "{text}")?,
        }
        self.mid_line = !text.ends_with('\n');
        out.flush()
    }

    /// Ends the text: switches colours off, and moves to a new line.
    pub fn end_text(&mut self) -> std::io::Result<()> {
        let ended = self.live().map(Live::end);
        let mut out = std::io::stdout().lock();
        out.write_all(ended.unwrap_or_default().as_bytes())?;
        if std::mem::take(&mut self.dimmed) {
            write!(out, "{PLAIN}")?;
        }
        if std::mem::take(&mut self.mid_line) {
            writeln!(out)?;
        }
        out.flush()
    }

    /// Writes a note of one or more lines to stderr.
    pub fn note(&mut self, note: &str) {
        if !self.notes {
            return;
        }
        let mut err = std::io::stderr().lock();
        // If text and notes share a terminal, the note starts on a new line. An error of stdout is reported when the
        // next token is written.
        if self.shared {
            let _ = self.end_text();
        }
        let _ = match self.colour {
            true => writeln!(err, "{PLAIN}\x1b[36m{note}{PLAIN}"),
            false => writeln!(err, "{note}"),
        };
    }

    /// Reports during the run that its text repeats itself: as a note, or with `--quiet` as a warning.
    pub fn repetition(&mut self) {
        self.repetition_reported = true;
        // Only where the output goes to a terminal, a person can press Ctrl-C.
        let stop = if self.shared { "press Ctrl-C to stop; " } else { "" };
        let text = format!(
            "the text has begun to repeat itself: {stop}a larger --budget, or --repetition-penalty 1.1, may help"
        );
        if self.notes {
            return self.note(&text);
        }
        if self.shared {
            let _ = self.end_text();
        }
        warnings::warn(&text);
    }

    /// Prints what stands for the summary with `--quiet`: warnings about what makes the result worse.
    pub fn warn_about(&self, result: &RunResult) {
        let repetition = repetition(&result.trace.totals).filter(|_| !self.repetition_reported);
        result.trace.totals.sampling_note().into_iter().chain(repetition).for_each(|text| warnings::warn(&text));
    }

    /// Shows what a probe evicted: a line with numbers, and a line for each of the first steps that lost tokens.
    /// `thoughts` holds the text of each thinking token so far.
    pub fn probe(&mut self, index: usize, probe: &trace::Probe, thoughts: &[String]) {
        let time = probe.timings.probe_us + probe.timings.plan_us + probe.timings.gather_us;
        self.tally.cached = probe.cached_after;
        if self.live.is_some() {
            let status = self.live_probe(index, probe, time);
            // If stderr goes elsewhere, the note is written there as well.
            if status && self.shared {
                return;
            }
        }
        let mut note = format!(
            "[probe {}] evicted {} of {} thinking tokens{}; cached {} -> {}; {}; {:.1} ms",
            index + 1,
            probe.evicted.len(),
            probe.thinking_tokens,
            everywhere(probe),
            probe.cached_before,
            probe.cached_after,
            device_bytes(probe.bytes_after.in_use, probe.bytes_after.reserved),
            time as f64 / 1e3,
        );
        if let Some(infeasible) = &probe.infeasible {
            note += &format!("; budget {} not reachable, {} are protected", infeasible.asked, infeasible.kept);
        }
        const SHOWN: usize = 3;
        let ranges = step_ranges(&probe.steps);
        let mut cut: Vec<_> = probe.steps.iter().zip(ranges).filter(|(step, _)| step.evicted > 0).collect();
        // The least important step comes first, because its tokens are evicted first.
        cut.sort_by(|a, b| a.0.importance.partial_cmp(&b.0.importance).unwrap_or(std::cmp::Ordering::Equal));
        for (step, range) in cut.iter().take(SHOWN) {
            let words = first_words(&thoughts.get(range.clone()).unwrap_or_default().concat(), 36);
            let importance = step.importance.map_or(String::new(), |i| format!(", importance {i:.2e}"));
            note += &format!("\n    - \"{words}\" ({} of {} tokens{importance})", step.evicted, step.cached);
        }
        if cut.len() > SHOWN {
            note += &format!("\n    - and from {} more steps", cut.len() - SHOWN);
        }
        self.note(&note);
    }

    /// Strikes through what a probe evicted, and returns whether the text is live. An error of stdout is reported
    /// when the next token is written.
    fn live_probe(&mut self, index: usize, probe: &trace::Probe, time: u64) -> bool {
        let (cut, ms) = (probe.evicted.len(), time as f64 / 1e3);
        let mut last = format!(" · probe {} cut {cut}{} in {ms:.1} ms", index + 1, everywhere(probe));
        if probe.bytes_after.in_use > 0 {
            last += &format!(" · device {}", bytes(probe.bytes_after.in_use));
        }
        if let Some(infeasible) = &probe.infeasible {
            last += &format!(" · budget {} not reachable, {} are protected", infeasible.asked, infeasible.kept);
        }
        self.tally.last_probe = last;
        let status = if self.notes && self.shared { self.tally.line() } else { String::new() };
        let cut: HashSet<usize> =
            probe.evicted.iter().filter_map(|&p| (p as usize).checked_sub(self.tally.prompt)).collect();
        let Some(live) = self.live() else { return false };
        let painted = live.strike(|token| cut.contains(&token)) + &live.status(status);
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(painted.as_bytes()).and_then(|()| out.flush());
        true
    }

    /// Prints the thinking with a paragraph for each step, and evicted text struck through (`[-like this-]` without
    /// colours).
    pub fn kept_view(&mut self, result: &RunResult) {
        let trace = &result.trace;
        let evicted: HashSet<usize> = trace.probes.iter().flat_map(|p| &p.evicted).map(|&p| p as usize).collect();
        let is_evicted = |i: usize| evicted.contains(&(trace.prompt_ids.len() + i));
        let (open, close) = if self.colour { (Look::Cut.pen(), PLAIN) } else { ("[-", "-]") };
        let thoughts: Vec<usize> =
            (0..trace.tokens.len()).filter(|&i| trace.tokens[i].role == Role::Thinking).collect();
        let mut view = self.heading("what was kept of the thinking");
        for step in thoughts.chunk_by(|&a, &b| trace.tokens[a].step == trace.tokens[b].step) {
            let kept = step.iter().filter(|&&i| !is_evicted(i)).count();
            view += &format!("\n{:>9} ", format!("{kept}/{}", step.len()));
            for run in step.chunk_by(|&a, &b| is_evicted(a) == is_evicted(b)) {
                let text: String = run.iter().map(|&i| trace.tokens[i].text.as_str()).collect();
                let text = visible(&text.split_inclusive('\n').map(|l| l.replace('\n', " ")).collect::<String>());
                view += &if is_evicted(run[0]) { format!("{open}{text}{close}") } else { text };
            }
        }
        super::say(&view);
    }

    /// Prints the summary of a run.
    pub fn summary(&mut self, result: &RunResult, load_us: u64) {
        let trace = &result.trace;
        let t = &trace.totals;
        let mut text = self.heading("summary");
        let columns = terminal_size::terminal_size_of(std::io::stderr()).map(|(Width(columns), _)| columns.into());
        let mut line = |name: &str, value: String| text += &format!("\n{name:>10}  {}", hanging(&value, 12, columns));
        line(
            "tokens",
            format!(
                "{} generated, {} of them thinking; {} in the prompt",
                t.generated_tokens, t.thinking_tokens, t.prompt_tokens
            ),
        );
        line(
            "cache",
            format!(
                "{}, {} evicted{} by {} {}; at most {} slots at a time{}",
                cached(trace),
                t.evicted_tokens,
                trace.probes.last().map_or("", everywhere),
                trace.probes.len(),
                if trace.probes.len() == 1 { "probe" } else { "probes" },
                t.peak_cached,
                match slots_of_a_probe(trace) {
                    0 => String::new(),
                    slots => format!(", {slots} of them for the text of a probe"),
                }
            ),
        );
        if let Some(why) = why_unpruned(trace) {
            line("pruning", why);
        }
        if let Some(repetition) = repetition(t) {
            line("repetition", repetition);
        }
        line("KV", format!("{} now, {} at its peak", bytes(result.kv_bytes), bytes(t.peak_kv_bytes)));
        line("memory", device_bytes(result.bytes.in_use, result.bytes.reserved));
        line("device", trace.device.clone());
        line(
            "time",
            format!(
                "{:.1} tok/s; probes {:.1} % of decoding; prompt {:.2} s, loading {:.2} s",
                t.tokens_per_second(),
                percent(t.probe_us, t.decode_us),
                t.prefill_us as f64 / 1e6,
                load_us as f64 / 1e6
            ),
        );
        if let Some(drafts) = drafts(trace) {
            line("drafts", drafts);
        }
        line("policy", format!("{}, {}", trace.settings.policy, trace.settings.budget));
        if let Some(note) = trace.step_note() {
            line("steps", note);
        }
        if let Some(note) = t.sampling_note() {
            line("sampling", note);
        }
        if let Some(seed) = seed(result) {
            line("seed", seed.to_string());
        }
        line("stopped", ended(result));
        super::say(&text);
    }

    fn heading(&self, title: &str) -> String {
        match self.colour {
            true => format!("{BOLD}{title}{PLAIN}"),
            false => format!("-- {title} --"),
        }
    }
}

/// What to add to a number of evicted tokens. With one kept set for each layer or head, only tokens that all sets
/// have lost count as evicted.
fn everywhere(probe: &trace::Probe) -> &'static str {
    match probe.sets.first().map(|set| set.kv_head) {
        None => "",
        Some(None) => " from every layer",
        Some(Some(_)) => " from every head",
    }
}

/// How many tokens are cached at the end, and how many were forwarded.
pub fn cached(trace: &trace::Trace) -> String {
    let t = &trace.totals;
    let (kept, of) = (t.final_cached, t.forwarded());
    match trace.settings.scope {
        Scope::Shared => format!("{kept} of {of} tokens cached"),
        // The sets hold different numbers of tokens.
        scope => format!("{kept} of {of} tokens cached by the {scope} that has the most"),
    }
}

/// The number of slots at the peak that held the text of a probe, which is evicted right after the probe. Without
/// that text, the sequence is longest just before a probe, or at the end.
fn slots_of_a_probe(trace: &trace::Trace) -> usize {
    let own = trace.probes.iter().map(|probe| probe.cached_before).chain([trace.totals.final_cached]).max();
    if trace.probes.is_empty() { 0 } else { trace.totals.peak_cached.saturating_sub(own.unwrap_or(0)) }
}

/// Why nothing was evicted, if the policy evicts but no probe was made.
fn why_unpruned(trace: &trace::Trace) -> Option<String> {
    let (thinking, every) = (trace.totals.thinking_tokens, trace.settings.probe_every);
    if !trace.probes.is_empty() || !trace.settings.policy.evicts() {
        return None;
    }
    match thinking {
        0 => Some("nothing was pruned: the model did not think".into()),
        _ if thinking <= every => Some(format!(
            "nothing was pruned: the thinking ({thinking} tokens) was shorter than one probe interval ({every})"
        )),
        _ => None,
    }
}

/// How many decode steps were needed with drafts, if there were any.
fn drafts(trace: &trace::Trace) -> Option<String> {
    let steps = trace.totals.draft_steps;
    // Each probe samples a token of its own, and the prompt samples the first one.
    let tokens = trace.totals.generated_tokens.saturating_sub(1 + trace.probes.len());
    let each = || format!("{tokens} tokens in {steps} steps, {:.2} a step", tokens as f64 / steps as f64);
    (steps > 0).then(each)
}

/// A note if more than a tenth of the generated tokens are repetition.
fn repetition(t: &trace::Totals) -> Option<String> {
    (t.repeated_tokens * 10 > t.generated_tokens).then(|| {
        let sign = if t.evicted_tokens > 0 { " (a common sign that too much was evicted)" } else { "" };
        format!("{} tokens complete a run of 12 tokens that occurred before{sign}", t.repeated_tokens)
    })
}

fn percent(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { 100.0 * part as f64 / of as f64 }
}

/// The seed, if the result depends on it.
pub fn seed(result: &RunResult) -> Option<u64> {
    let settings = &result.trace.settings;
    (!settings.sampling.is_greedy() || settings.policy.draws_lots()).then_some(settings.seed)
}

/// Why a run ended, in words. If it ended before the answer, also how to get one.
pub fn ended(result: &RunResult) -> String {
    ended_in_words(&result.trace.stop_reason, result.thinking_unfinished, result.trace.settings.max_new_tokens)
}

/// The same of a run that ended for `reason` with at most `limit` new tokens, within the thinking if it is
/// `unfinished`.
fn ended_in_words(reason: &StopReason, unfinished: bool, limit: usize) -> String {
    match reason {
        // Its text has no answer that could have ended.
        StopReason::Eos if unfinished => {
            "the model ended its text while it was still thinking, and gave no answer".into()
        }
        _ if unfinished => {
            let help = help_to_answer(reason, limit);
            format!("{}; the model was still thinking and gave no answer{help}", stop_reason(reason))
        }
        _ => stop_reason(reason),
    }
}

/// What helps a run to its answer if it ended within the thinking for `reason`, with at most `limit` new tokens.
fn help_to_answer(reason: &StopReason, limit: usize) -> String {
    match reason {
        // The model thinks, so without the option the limit is that of models that think.
        StopReason::MaxNewTokens if limit < MAX_NEW_TOKENS_THINKING => {
            "; raise --max-new-tokens, or leave it out".into()
        }
        StopReason::MaxNewTokens => format!("; try --max-new-tokens {}", limit.saturating_mul(2)),
        StopReason::ContextFull => "; try a larger --context, if the model allows it".into(),
        _ => String::new(),
    }
}

/// Why a run ended, in words.
fn stop_reason(reason: &StopReason) -> String {
    match reason {
        StopReason::Eos => "the model ended its answer".into(),
        StopReason::StopString => "a text of --stop ended the answer".into(),
        StopReason::StopToken => "a stop token ended the answer".into(),
        StopReason::FormatComplete => "the answer is complete in its format".into(),
        StopReason::MaxAnswerTokens => "--max-answer-tokens reached".into(),
        StopReason::MaxNewTokens => "--max-new-tokens reached".into(),
        StopReason::ContextFull => "the context is full".into(),
        StopReason::Cancelled => "interrupted".into(),
        StopReason::Failed(what) => format!("failed: {}", super::fields::as_options(what)),
    }
}

/// The range of thinking tokens of each step. The steps follow each other without gaps.
fn step_ranges(steps: &[trace::Step]) -> impl Iterator<Item = Range<usize>> {
    steps.iter().scan(0, |from, step| {
        let range = *from..*from + step.tokens;
        *from = range.end;
        Some(range)
    })
}

/// The beginning of a text on one line, with at most `most` characters.
fn first_words(text: &str, most: usize) -> String {
    let text = visible(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", text[..end].trim_end()),
        None => text,
    }
}

/// The memory that the device's allocator holds, in words.
pub fn device_bytes(in_use: u64, reserved: u64) -> String {
    if reserved == 0 {
        return "device memory not measured on the CPU".into();
    }
    format!("device {} in use, {} reserved", bytes(in_use), bytes(reserved))
}

/// A number of bytes with a binary unit.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `text` with line breaks between words, so that it fits into a terminal of `columns` columns. The first line begins
/// at column `indent`, to which the other lines are indented. A word that is longer than a line is not broken. Outside
/// a terminal, or in a very narrow one, the text stays on one line.
fn hanging(text: &str, indent: usize, columns: Option<usize>) -> String {
    let Some(room) = columns.and_then(|columns| columns.checked_sub(indent)).filter(|room| *room >= 20) else {
        return text.to_string();
    };
    let (mut broken, mut used) = (String::new(), 0);
    for word in text.split(' ') {
        let width = word.width();
        if used > 0 && used + 1 + width > room {
            broken += &format!("\n{:indent$}", "");
            used = 0;
        } else if used > 0 {
            broken.push(' ');
            used += 1;
        }
        broken += word;
        used += width;
    }
    broken
}

/// A progress bar on stderr, shown only if stderr is a terminal. It is removed when dropped.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar after `title`.
    pub fn new(title: &str, hidden: bool) -> Self {
        if hidden {
            return Self(ProgressBar::hidden());
        }
        // indicatif hides the bar if stderr is not a terminal.
        let bar = ProgressBar::new(0).with_message(title.to_string());
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {prefix}");
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    /// Shows `note` after the bar, such as the time that is left.
    pub fn note(&self, note: &str) {
        self.0.set_prefix(note.to_string());
    }

    /// Whether nothing is shown.
    pub fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        self.0.suspend(|| super::say(line));
    }

    /// Shows that `done` of `total` parts are done.
    pub fn at(&mut self, done: usize, total: usize) {
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_control_a_terminal() {
        assert_eq!(visible("a\x1b[2Jb\x07\n\tc\u{9b}\x7f"), "a␛[2Jb␇\n\tc\u{fffd}\u{fffd}");
        assert_eq!(first_words("Wait,\n  maybe  θ = 3\x08", 12), "Wait, maybe...");
        assert_eq!(first_words("ééé", 3), "ééé");
    }

    #[test]
    fn lines_break_between_words() {
        let text = "60 of 130 tokens cached, 70 evicted by 3 probes; at most 95 slots at a time";
        assert_eq!(hanging(text, 12, None), text);
        assert_eq!(hanging(text, 12, Some(16)), text, "there is no room");
        assert_eq!(hanging(text, 12, Some(12 + text.len())), text);
        let broken = hanging(text, 12, Some(80));
        assert_eq!(broken, text.replace(" a time", "\n            a time"));
        let device = format!("{} (vulkan)", "x".repeat(100));
        assert_eq!(hanging(&device, 12, Some(80)), device.replace(' ', "\n            "));
        assert_eq!(hanging(&"思考 ".repeat(10), 0, Some(25)).lines().next(), Some("思考 思考 思考 思考 思考"));
    }

    #[test]
    fn the_help_to_an_answer_never_suggests_less() {
        let help = |limit| help_to_answer(&StopReason::MaxNewTokens, limit);
        assert_eq!(help(5), "; raise --max-new-tokens, or leave it out");
        assert_eq!(help(MAX_NEW_TOKENS_THINKING), "; try --max-new-tokens 16384");
        assert_eq!(help(usize::MAX), format!("; try --max-new-tokens {}", usize::MAX));
        assert_eq!(help_to_answer(&StopReason::Cancelled, 5), "");
    }

    #[test]
    fn a_run_that_ended_within_the_thinking_ended_no_answer() {
        let ended = |reason, unfinished| ended_in_words(&reason, unfinished, 5);
        assert_eq!(ended(StopReason::Eos, false), "the model ended its answer");
        assert_eq!(
            ended(StopReason::Eos, true),
            "the model ended its text while it was still thinking, and gave no answer"
        );
        assert_eq!(
            ended(StopReason::MaxNewTokens, true),
            "--max-new-tokens reached; the model was still thinking and gave no answer; raise --max-new-tokens, or leave it out"
        );
        // What a request names ends only an answer; for every other end, no words may tell of an answer.
        for reason in [StopReason::Eos, StopReason::MaxNewTokens, StopReason::ContextFull, StopReason::Cancelled] {
            let said = ended(reason, true);
            assert!(said.matches("answer").count() == 1 && said.contains("gave no answer"), "{said}");
        }
    }

    #[test]
    fn repetition_is_reported_from_a_tenth_of_the_text() {
        let of = |repeated_tokens, generated_tokens| {
            repetition(&trace::Totals { repeated_tokens, generated_tokens, ..trace::Totals::default() })
        };
        assert_eq!((of(0, 0), of(10, 100)), (None, None));
        assert!(of(11, 100).is_some_and(|text| text.starts_with("11 tokens")));
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(u64::MAX)],
            ["0 B", "1023 B", "1.5 KiB", "16777216.0 TiB"]
        );
    }

    #[test]
    fn steps_cover_the_thoughts_in_order() {
        let step = |tokens| trace::Step { id: 0, tokens, cached: 0, importance: None, evicted: 0 };
        assert_eq!(step_ranges(&[step(2), step(0), step(3)]).collect::<Vec<_>>(), [0..2, 2..2, 2..5]);
    }

    #[test]
    fn speeds_and_shares_of_nothing_are_0() {
        assert_eq!((trace::Totals::default().tokens_per_second(), percent(1, 0)), (0.0, 0.0));
    }
}
