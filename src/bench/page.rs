//! The results of a benchmark: as a page, with speed against the length of the prompt as figures and a table, and as
//! comma-separated values.
use std::collections::BTreeSet;

use super::{Measured, Part, Spread};
use crate::report::page::{Figure, Line, Page, Point};

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

/// The page as HTML. `facts` are sentences about the measurement.
pub fn page(model: &str, device: &str, facts: &[String], tables: &[Table], runs: &[Measured]) -> String {
    let mut page = Page::new(&format!("Speed of {model}"), model);
    page.paragraph(&format!("On {device}."));
    page.figure(&figure("Decoding, tokens per second of all sequences", runs, |run| run.decode_tokens_per_second));
    page.figure(&figure("Prefill, tokens per second", runs, |run| run.prefill_tokens_per_second));
    for Table { title, rows } in tables {
        page.heading(title);
        if let Some((head, rows)) = rows.split_first() {
            page.table(head, rows, 0);
        }
    }
    facts.iter().for_each(|fact| page.paragraph(fact));
    page.html()
}

/// The highest line of a figure whose largest value is `most`: 1, 2 or 5 times a power of ten, at least `most`.
fn round_up(most: f64) -> f64 {
    let unit = 10f64.powf(most.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * unit).find(|top| *top >= most).unwrap_or(10.0 * unit)
}

/// A figure with a line for each number of sequences: the median speed over the length of the prompt, with the
/// spread.
fn figure(title: &str, runs: &[Measured], of: fn(&Measured) -> Spread) -> Figure {
    let top = round_up(runs.iter().map(|run| of(run).max).fold(0.0, f64::max));
    let prompts: BTreeSet<usize> = runs.iter().map(|run| run.prompt).collect();
    let sequences: BTreeSet<usize> = runs.iter().map(|run| run.sequences).collect();
    // Lengths are usually powers of two, so they stand at equal distances.
    let x = |prompt: usize| (prompts.range(..prompt).count() as f64 + 0.5) / prompts.len().max(1) as f64;
    let point = |run: &Measured| {
        let speed = of(run);
        let [low, middle, high] = [speed.min, speed.median, speed.max].map(|speed| speed / top);
        let title = format!("{} at once, {} tokens: {:.1} per second", run.sequences, run.prompt, speed.median);
        Point { x: x(run.prompt), y: middle, spread: (low, high), title }
    };
    let line = |count: &usize| Line {
        name: format!("{count} {}", if *count == 1 { "sequence" } else { "sequences" }),
        points: runs.iter().filter(|run| run.sequences == *count).map(point).collect(),
    };
    // Rounding removes the remainders of binary fractions.
    let label = |share: f64| ((top * share * 1e6).round() / 1e6).to_string();
    Figure {
        title: title.into(),
        below: "tokens of the prompt".into(),
        columns: prompts.iter().map(|prompt| (x(*prompt), prompt.to_string())).collect(),
        rows: [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| (share, label(share))).to_vec(),
        apart: 0.0,
        lines: sequences.iter().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{KernelTime, KernelTimes};
    use crate::kernels::timing::Clock;
    use crate::report::page::tests::assert_harmless;

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
        assert!(page.contains("&lt;script&gt;") && page.contains("a[U+202E]&amp;b"));
        assert_harmless(&page);
        assert!(!page.contains("<b>"));
        // Each run has a mark in both figures and a row in the table, and each number of sequences has a line.
        assert_eq!((page.matches("<g>").count(), page.matches("<tr>").count()), (6, 4));
        assert_eq!((page.matches("<polyline").count(), page.matches("4 sequences").count()), (4, 2));
        // Places are shares of the figure, and labels have no remainders of binary fractions.
        let figure = figure("t", &[run(512, 1, 0.1), run(128, 1, 0.2)], |run| run.decode_tokens_per_second);
        let x: Vec<f64> = figure.lines[0].points.iter().map(|point| point.x).collect();
        assert_eq!((x, figure.rows[1].1.as_str()), (vec![0.75, 0.25], "0.125"));
    }

    #[test]
    fn the_top_of_a_figure_is_a_round_number() {
        for (most, top) in [(0.3, 0.5), (1.0, 1.0), (1.01, 2.0), (45.0, 50.0), (99.0, 100.0), (104.0, 200.0)] {
            assert!((round_up(most) - top).abs() < 1e-9 * top, "{most}: {}", round_up(most));
        }
    }
}
