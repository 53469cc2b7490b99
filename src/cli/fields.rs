//! Rewrites the names of settings in the library's messages to command-line options.
//!
//! The library names a setting by its request field in backticks (`` `max_new_tokens` ``), because the browser page
//! and other programs have no options. The command line rewrites every message before it prints it.

/// The fields of a request, and the settings for loading a model, that have an option of the same name.
const FIELDS: [&str; 27] = [
    "budget",
    "context",
    "device",
    "ids",
    "ignore_eos",
    "kv",
    "layers",
    "max_new_tokens",
    "min_p",
    "model",
    "normalise",
    "policy",
    "positions",
    "probe_every",
    "probe_text",
    "raw",
    "repetition_penalty",
    "scope",
    "seed",
    "sequences",
    "steps",
    "system",
    "temperature",
    "top_k",
    "top_p",
    "trace",
    "window",
];

/// `text` with each field name in backticks replaced by its option. Other words in backticks are not changed.
pub fn as_options(text: &str) -> String {
    let mut rewritten = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('`') {
        let Some((word, behind)) = after.split_once('`') else { break };
        match option(word) {
            Some(option) => {
                rewritten += before;
                rewritten += &option;
                rest = behind;
            }
            // This is not a field. Its closing backtick may really be the opening one of a field.
            None => {
                rewritten += &rest[..before.len() + 1 + word.len()];
                rest = &rest[before.len() + 1 + word.len()..];
                if !is_word(word) {
                    continue;
                }
                rewritten.push('`');
                rest = behind;
            }
        }
    }
    rewritten + rest
}

/// An error as the command line prints it. What was found stays as it is, because it may quote a file whose own fields
/// have these names.
pub fn error(error: &secateur::Error) -> String {
    error.rewritten(as_options).to_string()
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn option(field: &str) -> Option<String> {
    match field {
        "think" => Some("--no-think".into()),
        // The prompt is an argument without a name.
        "prompt" => Some("the prompt".into()),
        field if FIELDS.contains(&field) => Some(format!("--{}", field.replace('_', "-"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn only_settings_are_rewritten() {
        for (library, here) in [
            ("lower `context`, or run fewer `sequences`", "lower --context, or run fewer --sequences"),
            ("at: `max_new_tokens`", "at: --max-new-tokens"),
            ("use `device` cpu", "use --device cpu"),
            ("leave out `think`", "leave out --no-think"),
            ("`prompt` is empty", "the prompt is empty"),
            (
                "`secateur calibrate` makes it anew; `layers` overrides",
                "`secateur calibrate` makes it anew; --layers overrides",
            ),
            ("`hub.rs`, `context`", "`hub.rs`, --context"),
            ("found: \"`\" and `seed`", "found: \"`\" and --seed"),
            ("`unknown` and `Seed`", "`unknown` and `Seed`"),
            ("a lone ` stays; so does context", "a lone ` stays; so does context"),
            ("", ""),
        ] {
            assert_eq!(as_options(library), here);
        }
    }

    #[test]
    fn what_was_found_is_not_rewritten() {
        let e =
            secateur::Error::new(secateur::ErrorKind::Input, "bad `seed`").at("`layers`").found("no `layers` there");
        assert_eq!(error(&e), "bad --seed\n        at: --layers\n     found: no `layers` there");
    }

    #[test]
    fn every_field_has_an_option() {
        let command = crate::cli::Args::command();
        let longs: Vec<_> =
            command.get_subcommands().flat_map(|c| c.get_arguments()).filter_map(|a| a.get_long()).collect();
        for field in FIELDS.iter().filter(|field| **field != "steps") {
            assert!(longs.contains(&field.replace('_', "-").as_str()), "{field}");
        }
    }
}
