//! The results of a benchmark as a page: speed against the length of the prompt as figures, and a table. The page is
//! one file that loads nothing and has no script. Text that comes from files is escaped.
use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Measured, Part, Spread};
use crate::report::html::{escaped, spelled_out};

/// Sizes of a figure, in its own units.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 48.0;

/// Marks, one for each number of sequences in turn, so that lines differ by more than colours.
const MARKS: [&str; 5] = ["●", "■", "▲", "◆", "▼"];

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #ccc; --soft: #666;
  --c0: #0b62a4; --c1: #b8410f; --c2: #2f7d32; --c3: #8a3ffc; --c4: #9f1853 }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #aaa;
  --c0: #6cb8ff; --c1: #ff9a6b; --c2: #7fd483; --c3: #c6a5ff; --c4: #ff8fc0 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin-bottom: 0.2rem }
h2 { font-size: 1.1rem; margin-bottom: 0.2rem }
p { max-width: 50rem; color: var(--soft) }
figure { margin: 0; display: inline-block; width: min(100%, 38rem) }
svg { width: 100%; height: auto }
svg text { fill: currentColor; font-size: 13px }
svg .grid { stroke: var(--line); stroke-width: 1 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { text-align: right; padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line) }
th { font-weight: 600; vertical-align: bottom }
";

/// The columns of [`csv`]. Where kernels were timed, theirs follow.
const NAMES: [&str; 21] = [
    "prompt",
    "decode",
    "sequences",
    "prefill_tokens_per_second",
    "prefill_min",
    "prefill_max",
    "decode_tokens_per_second",
    "decode_min",
    "decode_max",
    "first_prefill_seconds",
    "weight_bytes_per_token",
    "kv_bytes_per_token",
    "decode_bytes_per_second",
    "copy_bytes_per_second",
    "layer_flops_per_token",
    "launches_per_step",
    "uploads_per_step",
    "submits_per_step",
    "replayed",
    "model",
    "device",
];

/// The part of a run whose kernels were timed, if they were.
type TimedPart = fn(&Measured) -> Option<&Part>;

/// The parts whose kernels are timed, with the beginnings of the names of their columns.
const PARTS: [(&str, TimedPart); 2] = [
    ("decode", |run| run.kernels.as_ref().map(|times| &times.decode)),
    ("prefill", |run| run.kernels.as_ref().map(|times| &times.prefill)),
];

/// The measurements as comma-separated values, with a line of names. `copy` is the [bandwidth](super::copy_bandwidth)
/// of the device. Where kernels were timed, each has two more columns for decode steps, and two for chunks of a
/// prompt: `decode_us:NAME`, the median of the microseconds, and `decode_launches:NAME`. A value that was not
/// measured is empty.
pub fn csv(model: &str, device: &str, copy: f64, runs: &[Measured]) -> String {
    // Names may have commas and quotes.
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let timed = PARTS.map(|(name, part)| {
        let kernels = runs.iter().filter_map(part).flat_map(|part| &part.kernels).map(|kernel| kernel.kernel);
        (name, part, kernels.collect::<BTreeSet<_>>())
    });
    let mut names: Vec<String> = NAMES.map(String::from).to_vec();
    for (name, _, kernels) in &timed {
        names.extend(kernels.iter().flat_map(|kernel| ["us", "launches"].map(|of| format!("{name}_{of}:{kernel}"))));
    }
    let mut text = names.join(",") + "\n";
    for run in runs {
        let spread = |s: Spread| [s.median, s.min, s.max].map(|value| format!("{value:.3}"));
        let mut cells = vec![run.prompt.to_string(), run.decode.to_string(), run.sequences.to_string()];
        cells.extend(spread(run.prefill_tokens_per_second));
        cells.extend(spread(run.decode_tokens_per_second));
        cells.push(format!("{:.6}", run.first_prefill_seconds));
        cells.extend([run.weight_bytes_per_token, run.kv_bytes_per_token].map(|bytes| bytes.to_string()));
        cells.extend([run.decode_bytes_per_second(), copy].map(|bytes| format!("{bytes:.0}")));
        cells.push(run.layer_flops_per_token.to_string());
        let counts =
            [Some(run.launches_per_step), Some(run.uploads_per_step), run.submits_per_step, Some(run.replayed)];
        cells.extend(counts.map(|value| value.map_or(String::new(), |value| format!("{value:.3}"))));
        cells.extend([quoted(model), quoted(device)]);
        for (_, part, kernels) in &timed {
            for name in kernels {
                let of_run = part(run).and_then(|part| part.kernels.iter().find(|kernel| kernel.kernel == *name));
                cells.extend(of_run.map_or([const { String::new() }; 2], |kernel| {
                    [format!("{:.3}", kernel.microseconds.median), format!("{:.3}", kernel.launches)]
                }));
            }
        }
        text += &(cells.join(",") + "\n");
    }
    text
}

/// A table of the page, as people read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The heading.
    pub title: String,
    /// The names of the columns, then the rows.
    pub rows: Vec<Vec<String>>,
}

/// The page. `facts` are sentences about the measurement.
pub fn page(model: &str, device: &str, facts: &[String], tables: &[Table], runs: &[Measured]) -> String {
    let text = |text: &str| escaped(&spelled_out(text));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Speed of {model}</title>\n<style>\n{STYLE}</style></head>\n<body>\n<h1>{model}</h1>\n<p>On {device}.</p>\n",
        model = text(model),
        device = text(device),
    );
    for (title, of) in [
        (
            "Decoding, tokens per second of all sequences",
            (|run| run.decode_tokens_per_second) as fn(&Measured) -> Spread,
        ),
        ("Prefill, tokens per second", |run| run.prefill_tokens_per_second),
    ] {
        let _ = writeln!(page, "<figure><h2>{title}</h2>\n{}</figure>", figure(title, runs, of));
    }
    for Table { title, rows } in tables {
        let (head, rows) = rows.split_first().map_or((&[][..], &[][..]), |(head, rows)| (&head[..], rows));
        let _ = write!(page, "<h2>{}</h2>\n<div class=\"wide\"><table><thead><tr>", text(title));
        page.extend(head.iter().map(|column| format!("<th>{}</th>", text(column))));
        page += "</tr></thead><tbody>\n";
        for row in rows {
            page += "<tr>";
            page.extend(row.iter().map(|cell| format!("<td>{}</td>", text(cell))));
            page += "</tr>\n";
        }
        page += "</tbody></table></div>\n";
    }
    facts.iter().for_each(|fact| {
        let _ = writeln!(page, "<p>{}</p>", text(fact));
    });
    page + "</body></html>\n"
}

/// The highest line of a figure whose largest value is `most`: 1, 2 or 5 times a power of ten, at least `most`.
fn round_up(most: f64) -> f64 {
    let unit = 10f64.powf(most.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * unit).find(|top| *top >= most).unwrap_or(10.0 * unit)
}

/// A figure with a line for each number of sequences: the median speed over the length of the prompt, with the
/// spread.
fn figure(title: &str, runs: &[Measured], of: fn(&Measured) -> Spread) -> String {
    let top = round_up(runs.iter().map(|run| of(run).max).fold(0.0, f64::max));
    let mut prompts: Vec<usize> = runs.iter().map(|run| run.prompt).collect();
    prompts.sort_unstable();
    prompts.dedup();
    // Lengths are usually powers of two, so they stand at equal distances.
    let x = |prompt: usize| {
        let place = prompts.iter().position(|known| *known == prompt).unwrap_or(0);
        LEFT + (WIDTH - LEFT - RIGHT) * (place as f64 + 0.5) / prompts.len().max(1) as f64
    };
    let y = |speed: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * speed / top;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}; the table has the numbers\">\n",
        escaped(title)
    );
    for step in 0..=4 {
        let speed = top * f64::from(step) / 4.0;
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y(speed) + 4.0,
            // Rounding removes the remainders of binary fractions.
            (speed * 1e6).round() / 1e6,
            at = y(speed),
        );
    }
    for prompt in &prompts {
        let (at, below) = (x(*prompt), HEIGHT - BOTTOM + 18.0);
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{prompt}</text>");
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">tokens of the prompt</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    );
    let mut sequences: Vec<usize> = runs.iter().map(|run| run.sequences).collect();
    sequences.sort_unstable();
    sequences.dedup();
    let look = |index: usize| (format!("var(--c{})", index % MARKS.len()), MARKS[index % MARKS.len()]);
    for (index, count) in sequences.iter().enumerate() {
        let (colour, mark) = look(index);
        let mut of_count: Vec<&Measured> = runs.iter().filter(|run| run.sequences == *count).collect();
        of_count.sort_by_key(|run| run.prompt);
        let point = |run: &&Measured| format!("{:.1},{:.1}", x(run.prompt), y(of(run).median));
        let line: Vec<String> = of_count.iter().map(point).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" style=\"stroke:{colour}\" stroke-opacity=\"0.5\"/>",
            line.join(" ")
        );
        for run in of_count {
            let speed = of(run);
            let at = x(run.prompt);
            let _ = writeln!(
                svg,
                "<g><title>{count} at once, {} tokens: {:.1} per second</title>\
                 <line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" style=\"stroke:{colour}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" style=\"fill:{colour}\">{mark}</text></g>",
                run.prompt,
                speed.median,
                y(speed.min),
                y(speed.max),
                y(speed.median) + 4.5
            );
        }
    }
    svg += "</svg>\n<p>";
    for (index, count) in sequences.iter().enumerate() {
        let (colour, mark) = look(index);
        let plural = if *count == 1 { "sequence" } else { "sequences" };
        let _ = write!(svg, "<span style=\"color:{colour}\">{mark}</span> {count} {plural} &nbsp; ");
    }
    svg + "</p>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{KernelTime, KernelTimes};
    use crate::kernels::timing::Clock;

    fn run(prompt: usize, sequences: usize, speed: f64) -> Measured {
        let spread = |median: f64| Spread { median, min: 0.9 * median, max: 1.1 * median };
        Measured {
            prompt,
            decode: 64,
            sequences,
            first_prefill_seconds: 0.5,
            prefill_tokens_per_second: spread(10.0 * speed),
            decode_tokens_per_second: spread(speed),
            launches_per_step: 205.0,
            uploads_per_step: 0.0,
            submits_per_step: None,
            replayed: 0.9,
            weight_bytes_per_token: 1000,
            kv_bytes_per_token: 24,
            layer_flops_per_token: 4096,
            kernels: None,
        }
    }

    fn timed(kernels: &[(&'static str, f64)]) -> Part {
        let spread = |us: f64| Spread { median: us, min: us, max: us };
        let time = |&(kernel, us): &(&'static str, f64)| KernelTime {
            kernel,
            launches: 2.0,
            microseconds: spread(us),
            share: 0.5,
        };
        let kernels = kernels.iter().map(time).collect();
        Part { tokens: 1, cached: 129, clock: Clock::Device, microseconds: spread(1.0), kernels }
    }

    #[test]
    fn a_kernel_has_columns_of_its_own() {
        let mut runs = [run(128, 1, 40.0), run(512, 1, 90.0)];
        runs[0].submits_per_step = Some(1.25);
        runs[0].kernels =
            Some(KernelTimes { decode: timed(&[("matvec", 7.5)]), prefill: timed(&[("matmul", 9.), ("embed", 1.)]) });
        runs[1].kernels = Some(KernelTimes { decode: timed(&[("matvec", 8.0)]), prefill: timed(&[("matmul", 3.0)]) });
        let text = csv("model", "gpu", 2e9, &runs);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert!(lines.iter().all(|line| line.len() == NAMES.len() + 6), "{text}");
        let value = |line: usize, name: &str| lines[line][lines[0].iter().position(|known| *known == name).unwrap()];
        assert_eq!((value(1, "decode_us:matvec"), value(2, "decode_us:matvec")), ("7.500", "8.000"));
        assert_eq!((value(1, "prefill_launches:embed"), value(2, "prefill_launches:embed")), ("2.000", ""));
        assert_eq!((value(1, "submits_per_step"), value(2, "submits_per_step")), ("1.250", ""));
    }

    #[test]
    fn a_table_has_a_value_for_each_name() {
        let text = csv("a, \"b\"", "gpu", 2e9, &[run(128, 1, 40.0), run(512, 4, 90.0)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with(",\"a, \"\"b\"\"\",\"gpu\""), "{text}");
        let value = |line: &str, name: &str| -> String {
            line.split(',').nth(NAMES.iter().position(|known| *known == name).unwrap()).unwrap().into()
        };
        assert_eq!((value(lines[1], "prompt"), value(lines[2], "sequences")), ("128".into(), "4".into()));
        assert_eq!(value(lines[1], "decode_bytes_per_second"), "40960");
        assert_eq!(value(lines[2], "prefill_max"), "990.000");
    }

    #[test]
    fn the_page_loads_nothing_and_trusts_nothing() {
        let runs = [run(128, 1, 40.0), run(512, 1, 30.0), run(128, 4, 90.0)];
        let rows = ["head", "<b>", "<b>", "1"].map(|cell| vec![cell.to_string()]);
        let tables = [Table { title: "All <b>".into(), rows: rows.to_vec() }];
        let page = page("<script>alert(1)</script>", "a\u{202e}&b", &["as fast as that".into()], &tables, &runs);
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;") && page.contains("a[U+202E]&amp;b"));
        for forbidden in ["http://", "https://", "src=", "@import", "url(", "NaN", "<b>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        // Each run has a mark in both figures and a row in the table, and each number of sequences has a line.
        assert_eq!((page.matches("<g>").count(), page.matches("<tr>").count()), (6, 4));
        assert_eq!((page.matches("<polyline").count(), page.matches("4 sequences").count()), (4, 2));
        // A line goes from short prompts to long ones, in whatever order they were measured.
        let turned = figure("t", &[run(512, 1, 0.1), run(128, 1, 0.2)], |run| run.decode_tokens_per_second);
        let points = turned.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let x: Vec<f64> = points.split(' ').map(|point| point.split(',').next().unwrap().parse().unwrap()).collect();
        assert!(x[0] < x[1] && !turned.contains("00000"), "{turned}");
    }

    #[test]
    fn the_top_of_a_figure_is_a_round_number() {
        for (most, top) in [(0.3, 0.5), (1.0, 1.0), (1.01, 2.0), (45.0, 50.0), (99.0, 100.0), (104.0, 200.0)] {
            assert!((round_up(most) - top).abs() < 1e-9 * top, "{most}: {}", round_up(most));
        }
    }
}
