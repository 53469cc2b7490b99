//! The page of an evaluation: accuracy against memory as a figure, and the table. The page is one file that loads
//! nothing and has no script. Text that comes from files is escaped.
use std::fmt::Write;

use super::measure::Plan;
use super::table::{ArmRow, points, signed};
use crate::report::html::{escaped, spelled_out};

/// Sizes of the figure, in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 48.0;
/// How far policies with equally many slots are drawn apart.
const APART: f64 = 6.0;

/// Marks, one for each policy in turn, so that policies differ by more than colours.
const MARKS: [&str; 5] = ["●", "■", "▲", "◆", "▼"];

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #ccc; --soft: #666;
  --c0: #444; --c1: #0b62a4; --c2: #b8410f; --c3: #2f7d32; --c4: #8a3ffc; --c5: #9f1853; --c6: #00696e; --c7: #7a5c00 }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #aaa;
  --c0: #ddd; --c1: #6cb8ff; --c2: #ff9a6b; --c3: #7fd483; --c4: #c6a5ff; --c5: #ff8fc0; --c6: #5fd3d8; --c7: #e0bf55 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin-bottom: 0.2rem }
p { max-width: 50rem; color: var(--soft) }
svg { width: 100%; max-width: 48rem; height: auto }
svg text { fill: currentColor; font-size: 13px }
svg .grid { stroke: var(--line); stroke-width: 1 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { text-align: right; padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line) }
th { font-weight: 600; vertical-align: bottom } th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
dt { float: left; clear: left; width: 9rem; color: var(--soft) } dd { margin-left: 9.5rem; overflow-wrap: anywhere }
";

/// The names of the table's columns.
pub const COLUMNS: [&str; 12] = [
    "policy",
    "budget",
    "right",
    "accuracy [95 %]",
    "against full [95 %]",
    "against random [95 %]",
    "cannot tell",
    "cut off",
    "thinking",
    "peak, mean slots",
    "KV bytes",
    "tok/s",
];

/// A row of the table, as people read it. `bytes` writes a number of bytes.
pub fn cells(row: &ArmRow, bytes: impl Fn(u64) -> String) -> [String; 12] {
    let replays = row.arm.replays.as_ref().map(|policy| format!(" (as {policy})")).unwrap_or_default();
    [
        row.arm.policy.to_string() + &replays,
        row.arm.budget.map_or("-".into(), |budget| budget.to_string()),
        format!("{} of {}", row.right, row.trials),
        format!("{} [{}, {}]", points(row.accuracy), points(row.interval.0), points(row.interval.1)),
        signed(row.against_full),
        signed(row.against_random),
        row.cannot_tell.to_string(),
        row.truncated.to_string(),
        format!("{:.0}", row.thinking_tokens),
        format!("{:.0}, {:.0}", row.peak_cached, row.mean_cached),
        bytes(row.peak_kv_bytes as u64),
        format!("{:.1}", row.tokens_per_second),
    ]
}

/// The explanation of the columns.
pub const EXPLANATION: &str = "Accuracy in points of 100 with Wilson's 95 % interval. Differences are of the same questions, \
    with a 95 % interval. Answers that cannot be graded count as not right. A control keeps as many tokens at each probe \
    as the policy in brackets. Slots and bytes are means over the answers; tokens per second are those of one answer, \
    with its neighbours computing meanwhile.";

/// How many runs failed, as a sentence; `None` if none did.
pub fn failures(rows: &[ArmRow]) -> Option<String> {
    match rows.iter().map(|row| row.failed).sum() {
        0 => None,
        1 => Some("1 run failed and counts as a wrong answer; trials.jsonl has the error.".into()),
        n => Some(format!("{n} runs failed and count as wrong answers; trials.jsonl has the errors.")),
    }
}

/// The page as HTML. `bytes` writes a number of bytes.
pub fn page(plan: &Plan, rows: &[ArmRow], bytes: impl Fn(u64) -> String) -> String {
    let text = |text: &str| escaped(&spelled_out(text));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Evaluation of {model}</title>\n<style>\n{STYLE}</style></head>\n<body>\n<h1>{model} on {data}</h1>\n",
        model = text(&plan.model),
        data = text(&plan.data),
    );
    let _ = writeln!(
        page,
        "<p>Questions: {}; answered at the same time: {}; on {}.</p>\n<h2>Accuracy against memory kept</h2>\n{}",
        plan.questions,
        plan.batch,
        text(&plan.device),
        figure(rows)
    );
    page += "<h2>All results</h2>\n<div class=\"wide\"><table><thead><tr>";
    page.extend(COLUMNS.map(|column| format!("<th>{}</th>", text(column))));
    page += "</tr></thead><tbody>\n";
    for row in rows {
        page += "<tr>";
        page.extend(cells(row, &bytes).map(|cell| format!("<td>{}</td>", text(&cell))));
        page += "</tr>\n";
    }
    page += "</tbody></table></div>\n";
    for said in failures(rows).as_deref().into_iter().chain([EXPLANATION]) {
        let _ = writeln!(page, "<p>{}</p>", text(said));
    }
    page += "<h2>Settings</h2>\n<dl>\n";
    for (name, value) in plan.listed() {
        let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", text(&name), text(&value));
    }
    page + "</dl>\n</body></html>\n"
}

/// The figure: for each arm its accuracy with its interval, at the share of the full cache's slots that it uses.
fn figure(rows: &[ArmRow]) -> String {
    let most = rows.iter().map(|row| row.memory).fold(1.0, f64::max);
    let x = |memory: f64| LEFT + (WIDTH - LEFT - RIGHT) * memory / most;
    let y = |share: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Accuracy against memory kept; the table has the \
         numbers\">\n"
    );
    for step in 0..=5 {
        let share = f64::from(step) / 5.0;
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0} %</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y(share) + 4.0,
            100.0 * share,
            x(share),
            HEIGHT - BOTTOM + 18.0,
            100.0 * share,
            at = y(share),
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">mean slots, of those of the full cache (policies are drawn a \
         little apart)</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    );
    let mut policies: Vec<&str> = Vec::new();
    for row in rows {
        if !policies.contains(&row.arm.policy.name()) {
            policies.push(row.arm.policy.name());
        }
    }
    let look = |index: usize| (format!("var(--c{})", index % 8), MARKS[index % MARKS.len()]);
    for (index, policy) in policies.iter().enumerate() {
        let (colour, mark) = look(index);
        // A control has as many slots as the policy that it repeats, so that their bars would cover each other.
        let aside = APART * (index as f64 - (policies.len() - 1) as f64 / 2.0);
        let x = |memory: f64| x(memory) + aside;
        let mut of: Vec<&ArmRow> = rows.iter().filter(|row| row.arm.policy.name() == *policy).collect();
        of.sort_by(|a, b| a.memory.total_cmp(&b.memory));
        let line: Vec<String> = of.iter().map(|row| format!("{:.1},{:.1}", x(row.memory), y(row.accuracy))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" style=\"stroke:{colour}\" stroke-opacity=\"0.5\"/>",
            line.join(" ")
        );
        for row in of {
            let (at, low, high) = (x(row.memory), y(row.interval.0), y(row.interval.1));
            let title = format!("{}: {} at {} of the slots", row.arm, points(row.accuracy), points(row.memory));
            let _ = writeln!(
                svg,
                "<g><title>{}</title><line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\" \
                 style=\"stroke:{colour}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" style=\"fill:{colour}\">{mark}</text></g>",
                escaped(&title),
                y(row.accuracy) + 4.5
            );
        }
    }
    svg += "</svg>\n<p>";
    for (index, policy) in policies.iter().enumerate() {
        let (colour, mark) = look(index);
        let _ = write!(svg, "<span style=\"color:{colour}\">{mark}</span> {} &nbsp; ", escaped(policy));
    }
    svg + "</p>\n"
}

#[cfg(test)]
mod tests {
    use super::super::grade::Verdict;
    use super::super::measure::tests::plan;
    use super::super::table::{rows, tests::trial};
    use super::*;

    #[test]
    fn the_page_loads_nothing_and_trusts_nothing() {
        let mut plan = plan(&["h2o"], &["ratio:0.5", "ratio:0.25"], &[0], 2);
        (plan.model, plan.data) = ("<script>alert(1)</script>".into(), "a\u{202e}&b".into());
        let trials: Vec<_> = (0..5).flat_map(|arm| [0, 1].map(|p| trial(&plan, arm, p, 0, Verdict::Right))).collect();
        let rows = rows(&plan, &trials);
        let page = page(&plan, &rows, |n| n.to_string());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;") && page.contains("a[U+202E]&amp;b"));
        for forbidden in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(page.contains("default-src 'none'") && page.contains("prefers-color-scheme: dark"));
        // Every arm has its mark in the figure and its row in the table.
        assert_eq!((page.matches("<title>").count(), page.matches("<tr>").count()), (1 + 5, 1 + 5));
        assert!(page.contains("random (as h2o)") && !page.contains("NaN"));
    }
}
