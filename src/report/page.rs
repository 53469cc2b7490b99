//! A page of measurements: one file with figures and tables that loads nothing and has no script. Text that comes
//! from files is escaped.
use std::fmt::{Display, Write};

use super::html::{escaped, spelled_out};

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #ccc; --soft: #666;
  --c0: #444; --c1: #0b62a4; --c2: #b8410f; --c3: #2f7d32; --c4: #8a3ffc; --c5: #9f1853; --c6: #00696e; --c7: #7a5c00 }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #aaa;
  --c0: #ddd; --c1: #6cb8ff; --c2: #ff9a6b; --c3: #7fd483; --c4: #c6a5ff; --c5: #ff8fc0; --c6: #5fd3d8; --c7: #e0bf55 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin-bottom: 0.2rem }
h2 { font-size: 1.1rem; margin-bottom: 0.2rem }
p { max-width: 50rem; color: var(--soft) }
figure { margin: 0; display: inline-block; width: min(100%, 44rem) }
svg { width: 100%; height: auto }
svg text { fill: currentColor; font-size: 13px }
svg .grid { stroke: var(--line); stroke-width: 1 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { text-align: right; padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line) }
th { font-weight: 600; vertical-align: bottom }
th.text, td.text { text-align: left }
dt { float: left; clear: left; width: 9rem; color: var(--soft) } dd { margin-left: 9.5rem; overflow-wrap: anywhere }
";

/// Colours in [`STYLE`]. Lines take them in turn.
const COLOURS: usize = 8;

/// Marks of points. Lines take them in turn, so that they differ by more than colours.
const MARKS: [&str; 5] = ["●", "■", "▲", "◆", "▼"];

/// Sizes of a figure, in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 48.0;

/// A page that is written from the top to the bottom.
pub struct Page(String);

impl Page {
    /// A page with its title, which browsers show in the tab, and its heading.
    pub fn new(title: &str, heading: &str) -> Self {
        Self(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <title>{}</title>\n<style>\n{STYLE}</style></head>\n<body>\n<h1>{}</h1>\n",
            text(title),
            text(heading)
        ))
    }

    /// Adds a heading below that of the page.
    pub fn heading(&mut self, heading: &str) {
        self.line(format_args!("<h2>{}</h2>", text(heading)));
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, paragraph: &str) {
        self.line(format_args!("<p>{}</p>", text(paragraph)));
    }

    /// Adds a figure below its heading.
    pub fn figure(&mut self, figure: &Figure) {
        self.line(format_args!("<figure><h2>{}</h2>\n{}</figure>", text(&figure.title), figure.drawn()));
    }

    /// Adds a table. The first `texts` columns are aligned to the left, the others, which are numbers, to the right.
    pub fn table<C: AsRef<str>>(&mut self, head: &[C], rows: &[Vec<String>], texts: usize) {
        let head = row("th", head, texts);
        let rows: Vec<String> = rows.iter().map(|cells| row("td", cells, texts)).collect();
        self.line(format_args!(
            "<div class=\"wide\"><table><thead>{head}</thead><tbody>\n{}\n</tbody></table></div>",
            rows.join("\n")
        ));
    }

    /// Adds a list of names with their values.
    pub fn list(&mut self, entries: impl IntoIterator<Item = (String, String)>) {
        let entries: String = entries
            .into_iter()
            .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", text(&name), text(&value)))
            .collect();
        self.line(format_args!("<dl>\n{entries}</dl>"));
    }

    /// The page as HTML.
    pub fn html(self) -> String {
        self.0 + "</body></html>\n"
    }

    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.0, "{line}");
    }
}

/// A figure: lines through points that have a spread. Places are shares of the width, from the left, and of the
/// height, from the bottom.
pub struct Figure {
    /// The heading, which also is what a screen reader says.
    pub title: String,
    /// What the horizontal axis shows.
    pub below: String,
    /// Labels of the horizontal axis, with their places.
    pub columns: Vec<(f64, String)>,
    /// Labels of the vertical axis, with their places. Each has a line through the figure.
    pub rows: Vec<(f64, String)>,
    /// How far the lines are drawn apart horizontally, in units of the figure, so that the spreads of points at the
    /// same place do not cover each other.
    pub apart: f64,
    /// The lines, in the order of the key below the figure.
    pub lines: Vec<Line>,
}

/// A line of a figure.
pub struct Line {
    /// The name in the key below the figure.
    pub name: String,
    /// The points, which are joined from left to right.
    pub points: Vec<Point>,
}

/// A point of a line.
pub struct Point {
    /// The place from the left.
    pub x: f64,
    /// The place from the bottom.
    pub y: f64,
    /// The lowest and the highest place of its spread.
    pub spread: (f64, f64),
    /// What is shown when somebody points at it.
    pub title: String,
}

impl Figure {
    /// The figure as SVG, and below it the key.
    fn drawn(&self) -> String {
        let x = |share: f64| LEFT + (WIDTH - LEFT - RIGHT) * share;
        let y = |share: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}; the table has the numbers\">\n",
            text(&self.title)
        );
        for (share, label) in &self.rows {
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y(*share) + 4.0,
                text(label),
                at = y(*share),
            );
        }
        let mut below = |x: f64, y: f64, label: &str| {
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", text(label));
        };
        for (share, label) in &self.columns {
            below(x(*share), HEIGHT - BOTTOM + 18.0, label);
        }
        below(x(0.5), HEIGHT - 8.0, &self.below);
        let mut key = String::new();
        for (index, Line { name, points }) in self.lines.iter().enumerate() {
            let (colour, mark) = (format!("var(--c{})", index % COLOURS), MARKS[index % MARKS.len()]);
            let aside = self.apart * (index as f64 - (self.lines.len() - 1) as f64 / 2.0);
            let mut points: Vec<&Point> = points.iter().collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            let joined: Vec<String> =
                points.iter().map(|point| format!("{:.1},{:.1}", x(point.x) + aside, y(point.y))).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" style=\"stroke:{colour}\" stroke-opacity=\"0.5\"/>",
                joined.join(" ")
            );
            for point in points {
                let _ = writeln!(
                    svg,
                    "<g><title>{}</title><line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" \
                     style=\"stroke:{colour}\"/>\
                     <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" style=\"fill:{colour}\">{mark}</text></g>",
                    text(&point.title),
                    y(point.spread.0),
                    y(point.spread.1),
                    y(point.y) + 4.5,
                    at = x(point.x) + aside,
                );
            }
            let _ = write!(key, "<span style=\"color:{colour}\">{mark}</span> {} &nbsp; ", text(name));
        }
        format!("{svg}</svg>\n<p>{key}</p>\n")
    }
}

/// A row of a table, whose first `texts` cells are aligned to the left.
fn row<C: AsRef<str>>(tag: &str, cells: &[C], texts: usize) -> String {
    let class = |column| if column < texts { " class=\"text\"" } else { "" };
    let cell = |(column, cell): (usize, &C)| format!("<{tag}{}>{}</{tag}>", class(column), text(cell.as_ref()));
    format!("<tr>{}</tr>", cells.iter().enumerate().map(cell).collect::<String>())
}

/// Text between tags and in attributes, in which no character is hidden.
fn text(text: &str) -> String {
    escaped(&spelled_out(text))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Fails if the page loads anything, has a script, or shows what is no number.
    #[track_caller]
    pub fn assert_harmless(page: &str) {
        for forbidden in ["<script", "http://", "https://", "src=", "@import", "url(", "NaN"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert!(page.contains("default-src 'none'") && page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn every_text_is_escaped() {
        let evil = "<script src=\"x\">\u{202e}&";
        let point = |x| Point { x, y: 0.5, spread: (0.4, 0.6), title: evil.into() };
        let mut page = Page::new(evil, evil);
        page.heading(evil);
        page.paragraph(evil);
        page.table(&[evil, "2"], &[vec![evil.into(), evil.into()]], 1);
        page.list([(evil.to_string(), evil.to_string())]);
        page.figure(&Figure {
            title: evil.into(),
            below: evil.into(),
            columns: vec![(0.0, evil.into())],
            rows: vec![(0.0, evil.into())],
            apart: 0.0,
            lines: vec![Line { name: evil.into(), points: vec![point(0.9), point(0.1)] }],
        });
        let html = page.html();
        assert_harmless(&html.replace("src=&quot;", ""));
        // Two in the head, the heading, the paragraph, three cells, an entry's two, and in the figure eight.
        assert_eq!((html.matches("&lt;script").count(), html.matches("[U+202E]&amp;").count()), (17, 17), "{html}");
        assert_eq!((html.matches("<td class=\"text\">").count(), html.matches("<td>").count()), (1, 1));
    }

    #[test]
    fn points_are_joined_from_left_to_right() {
        let point = |x| Point { x, y: 0.25, spread: (0.0, 1.0), title: String::new() };
        let line = |name: &str| Line { name: name.into(), points: vec![point(1.0), point(0.0)] };
        let figure = Figure {
            title: "t".into(),
            below: "b".into(),
            columns: vec![],
            rows: vec![],
            apart: 6.0,
            lines: vec![line("first"), line("second")],
        };
        let svg = figure.drawn();
        let height = HEIGHT - BOTTOM - 0.25 * (HEIGHT - TOP - BOTTOM);
        // Two lines that are 6 apart stand 3 to the left and 3 to the right of their place.
        for aside in [-3.0, 3.0] {
            let (left, right) = (LEFT + aside, WIDTH - RIGHT + aside);
            assert!(svg.contains(&format!("points=\"{left:.1},{height:.1} {right:.1},{height:.1}\"")), "{svg}");
        }
        let colours: Vec<bool> = ["var(--c0)", "var(--c1)", "var(--c2)"].map(|colour| svg.contains(colour)).to_vec();
        assert_eq!(colours, [true, true, false]);
    }
}
