//! The library's texts for people name a setting by its field. Only the command line, which has options, names options.
use std::path::{Path, PathBuf};

/// Texts outside `src/cli/` that may have what looks like an option, and why: where, the text, the reason.
const ALLOWED: [(&str, &str, &str); 3] = [
    ("src/model/gguf.rs", "llama-gguf-split --merge", "an option of another program"),
    ("src/report/js/reasoning.js", "--shade", "a property of CSS"),
    ("web/reply.js", "--shade", "a property of CSS"),
];

/// The files below `folder` with one of these extensions.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("part of the repository").map(|e| e.expect("readable").path());
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path, extensions),
        false => vec![path],
    };
    let has = |path: &PathBuf| path.extension().is_some_and(|e| extensions.iter().any(|extension| e == *extension));
    entries.flat_map(below).filter(has).collect()
}

/// The string literals of a source text in Rust, or in JavaScript, each with the number of its first line. Comments are
/// no literals.
fn literals(source: &str, is_rust: bool) -> Vec<(usize, String)> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let starts = |i: usize, what: &str| what.chars().enumerate().all(|(k, c)| at(i + k) == c);
    let line = |i: usize| 1 + text[..i].iter().filter(|c| **c == '\n').count();
    let (mut found, mut i) = (Vec::new(), 0);
    while i < text.len() {
        let begin = i;
        if starts(i, "//") {
            while i < text.len() && at(i) != '\n' {
                i += 1;
            }
        } else if starts(i, "/*") {
            while i < text.len() && !starts(i, "*/") {
                i += 1;
            }
            i += 2;
        } else if is_rust && at(i) == '\'' {
            // A character, or else a lifetime.
            i += match (at(i + 1), at(i + 2)) {
                ('\\', _) => 2 + (i + 3..text.len()).take_while(|&k| at(k) != '\'').count() + 2,
                (_, '\'') => 3,
                _ => 1,
            };
        } else if is_rust
            && at(i) == 'r'
            && matches!(at(i + 1), '"' | '#')
            && !(i > 0 && at(i - 1).is_alphanumeric() && at(i - 1) != 'b')
        {
            let hashes = (i + 1..text.len()).take_while(|&k| at(k) == '#').count();
            i += 1 + hashes;
            if at(i) == '"' {
                let end = format!("\"{}", "#".repeat(hashes));
                i += 1;
                let first = i;
                while i < text.len() && !starts(i, &end) {
                    i += 1;
                }
                found.push((line(begin), text[first..i].iter().collect()));
                i += end.len();
            }
        } else if at(i) == '"' || !is_rust && matches!(at(i), '\'' | '`') {
            let quote = at(i);
            i += 1;
            let first = i;
            while i < text.len() && at(i) != quote {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            found.push((line(begin), text[first..i.min(text.len())].iter().collect()));
            i += 1;
        } else {
            i += 1;
        }
    }
    found
}

/// Whether a text has `--` and a letter after it, as an option has. So do the properties of a style sheet, which stand
/// in `var(--name)` or at the beginning of a declaration.
fn names_an_option(text: &str) -> bool {
    text.match_indices("--").any(|(at, dashes)| {
        let (before, after) = (&text[..at], &text[at + dashes.len()..]);
        let in_style = before.ends_with("var(") || before.trim_end().ends_with(['{', ';']);
        after.starts_with(|c: char| c.is_ascii_lowercase()) && !before.ends_with('-') && !in_style
    })
}

/// The sources of the library, the command line and the page.
fn library(root: &Path) -> Vec<PathBuf> {
    let mut sources = files(&root.join("src"), &["rs", "js"]);
    sources.extend(files(&root.join("web/draw"), &["js"]));
    let pages =
        std::fs::read_dir(root.join("web")).expect("part of the repository").map(|e| e.expect("readable").path());
    sources.extend(pages.filter(|path| path.extension().is_some_and(|e| e == "js")));
    sources
}

#[test]
fn the_library_names_no_options() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = library(root);
    let name = |path: &Path| path.strip_prefix(root).expect("below it").to_string_lossy().replace('\\', "/");
    sources.retain(|path| !name(path).starts_with("src/cli/"));
    assert!(sources.len() > 150, "{}", sources.len());
    let (mut seen, mut wrong) = (0, Vec::new());
    for path in &sources {
        let (name, source) = (name(path), std::fs::read_to_string(path).expect("readable"));
        for (line, literal) in literals(&source, name.ends_with(".rs")) {
            seen += 1;
            let allowed = ALLOWED.iter().filter(|(place, ..)| *place == name);
            let rest = allowed.fold(literal.clone(), |rest, (_, text, _)| rest.replace(text, ""));
            if names_an_option(&rest) {
                wrong.push(format!("{name}:{line}: {literal:?}"));
            }
        }
    }
    assert!(seen > 5000, "{seen} literals");
    assert!(wrong.is_empty(), "an option is named outside the command line:\n{}", wrong.join("\n"));
}

/// Lines of comments wider than code may be, which `cargo fmt` leaves as they are. Tables may be wider, and so may what
/// has no place to break it.
fn wide_comments(source: &str) -> Vec<usize> {
    let wide = |line: &str| {
        let text = line.trim_start().trim_start_matches(['/', '!']).trim_start();
        let is_comment = line.trim_start().starts_with("//");
        is_comment
            && line.chars().count() > 120
            && !text.starts_with('|')
            && text.chars().filter(|c| *c == ' ').count() > 3
    };
    source.lines().enumerate().filter(|(_, line)| wide(line)).map(|(index, _)| index + 1).collect()
}

#[test]
fn comments_are_no_wider_than_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = library(root);
    sources.extend(
        ["shaders", "tests/it", "tests/browser"]
            .map(|place| files(&root.join(place), &["rs", "wgsl", "js"]))
            .into_iter()
            .flatten(),
    );
    assert!(sources.len() > 300, "{}", sources.len());
    let wide: Vec<String> = sources
        .iter()
        .flat_map(|path| {
            let source = std::fs::read_to_string(path).expect("readable");
            wide_comments(&source).into_iter().map(move |line| format!("{}:{line}", path.display()))
        })
        .collect();
    assert!(wide.is_empty(), "comments with more than 120 columns:\n{}", wide.join("\n"));
    let wide = |marker: &str| wide_comments(&format!("{marker}{}", "word ".repeat(30)));
    assert_eq!(
        [wide("/// "), wide("    // "), wide("let a = "), wide("//! | ")].map(|found| found.len()),
        [1, 1, 0, 0]
    );
}

#[test]
fn literals_are_told_from_comments() {
    let rust = "// \"a --b\"\n/* \"c\" */ let d = \"e --f \\\" g\"; let h: &'static str = r#\"i \"j\" --k\"#; ('\"', '\\'', \"l\")";
    let found = literals(rust, true);
    let texts: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["e --f \\\" g", "i \"j\" --k", "l"]);
    assert_eq!(found[0].0, 2, "the line");
    assert_eq!(texts.into_iter().map(names_an_option).collect::<Vec<_>>(), [true, true, false]);
    let script = literals("// 'a'\nf('b \"c', `d --e`, \"it's\")", false);
    assert_eq!(script.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>(), ["b \"c", "d --e", "it's"]);
    assert!(!names_an_option("a -- b") && !names_an_option("---a") && !names_an_option("x--"));
    assert!(!names_an_option("color: var(--line)") && !names_an_option(":root { --line: #ccc; --soft: #666 }"));
}
