//! The page of an evaluation: accuracy against memory as a figure, and the table.
use super::measure::Plan;
use super::table::{ArmRow, points, signed};
use crate::report::page::{Figure, Line, Page, Point};

/// How far policies with equally many slots are drawn apart.
const APART: f64 = 6.0;

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
    let Plan { model, data, questions, batch, device, .. } = plan;
    let mut page = Page::new(&format!("Evaluation of {model}"), &format!("{model} on {data}"));
    page.paragraph(&format!("Questions: {questions}; answered at the same time: {batch}; on {device}."));
    page.figure(&figure(rows));
    page.heading("All results");
    let table: Vec<Vec<String>> = rows.iter().map(|row| cells(row, &bytes).to_vec()).collect();
    page.table(&COLUMNS, &table, 2);
    failures(rows).as_deref().into_iter().chain([EXPLANATION]).for_each(|said| page.paragraph(said));
    page.heading("Settings");
    page.list(plan.listed());
    page.html()
}

/// For each policy a line through its budgets: the accuracy with its interval, at the share of the full cache's slots
/// that is used.
fn figure(rows: &[ArmRow]) -> Figure {
    let most = rows.iter().map(|row| row.memory).fold(1.0, f64::max);
    let mut lines: Vec<Line> = Vec::new();
    for row in rows {
        let point = Point {
            x: row.memory / most,
            y: row.accuracy,
            spread: row.interval,
            title: format!("{}: {} at {} of the slots", row.arm, points(row.accuracy), points(row.memory)),
        };
        let name = row.arm.policy.name();
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: name.into(), points: vec![point] }),
        }
    }
    let fifths = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    Figure {
        title: "Accuracy against memory kept".into(),
        below: "mean slots, of those of the full cache (policies are drawn a little apart)".into(),
        columns: fifths.map(|share| (share / most, percent(share))).to_vec(),
        rows: fifths.map(|share| (share, percent(share))).to_vec(),
        apart: APART,
        lines,
    }
}

#[cfg(test)]
mod tests {
    use super::super::grade::Verdict;
    use super::super::measure::tests::plan;
    use super::super::table::{rows, tests::trial};
    use super::*;
    use crate::report::page::tests::assert_harmless;

    #[test]
    fn the_page_loads_nothing_and_trusts_nothing() {
        let mut plan = plan(&["h2o"], &["ratio:0.5", "ratio:0.25"], &[0], 2);
        (plan.model, plan.data) = ("<script>alert(1)</script>".into(), "a\u{202e}&b".into());
        let trials: Vec<_> = (0..5).flat_map(|arm| [0, 1].map(|p| trial(&plan, arm, p, 0, Verdict::Right))).collect();
        let rows = rows(&plan, &trials);
        let page = page(&plan, &rows, |n| n.to_string());
        assert!(page.contains("&lt;script&gt;") && page.contains("a[U+202E]&amp;b"));
        assert_harmless(&page);
        // Every arm has its mark in the figure and its row in the table.
        assert_eq!((page.matches("<title>").count(), page.matches("<tr>").count()), (1 + 5, 1 + 5));
        assert!(page.contains("random (as h2o)"));
    }
}
