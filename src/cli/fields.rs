//! Rewrites the names of settings in the library's messages to command-line options.
//!
//! The library names a setting by its request field in backticks (`` `max_new_tokens` ``), because the browser page
//! and other programs have no options. The command line rewrites every message before it prints it.

use std::collections::HashSet;
use std::sync::OnceLock;

use secateur::Request;

/// Settings that messages name although they are no field of a request.
const OF_LOADING: [&str; 14] = [
    "api_key_file",
    "context",
    "cors",
    "device",
    "host",
    "kernels",
    "kv",
    "model",
    "preset",
    "requests_per_key",
    "sequences",
    "shard",
    "trace",
    "weights",
];

/// The names of all settings: the fields of a request, and those for loading a model.
pub fn names() -> Vec<String> {
    let request = serde_json::to_value(Request::default()).unwrap_or_default();
    let fields = request.as_object().into_iter().flatten().map(|(name, _)| name.clone());
    fields.chain(OF_LOADING.map(String::from)).collect()
}

/// The settings that have an option of the same name.
fn with_option() -> &'static HashSet<String> {
    static NAMES: OnceLock<HashSet<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let command = super::program();
        let arguments = command.get_subcommands().flat_map(|c| c.get_arguments());
        let options: HashSet<&str> = arguments.filter_map(|a| a.get_long()).collect();
        names().into_iter().filter(|name| options.contains(&*name.replace('_', "-"))).collect()
    })
}

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

/// An error as the command line prints it. What was found stays as it is, because it may quote a file whose own
/// fields have these names.
pub fn error(error: &secateur::Error) -> String {
    // It may quote a file or an answer of the hub.
    super::text::visible(&error.rewritten(as_options).to_string())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn option(field: &str) -> Option<String> {
    match field {
        // The option can only switch thinking off. A request from a file can also switch it on.
        "think" => Some("--no-think (or \"think\" in a request)".into()),
        // The prompt is an argument without a name.
        "prompt" => Some("the prompt".into()),
        field if with_option().contains(field) => Some(format!("--{}", field.replace('_', "-"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_are_rewritten() {
        for (library, here) in [
            ("lower `context`, or run fewer `sequences`", "lower --context, or run fewer --sequences"),
            ("at: `max_new_tokens`", "at: --max-new-tokens"),
            ("use `device` cpu", "use --device cpu"),
            ("leave out `think`", "leave out --no-think (or \"think\" in a request)"),
            ("`prompt` is empty", "the prompt is empty"),
            (
                "run `secateur calibrate` again; `layers` overrides",
                "run `secateur calibrate` again; --layers overrides",
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
    fn an_error_cannot_control_the_terminal() {
        let e = secateur::Error::new(secateur::ErrorKind::Model, "a\x1b[2Jb").found("\x07c\u{9b}2J\nd");
        assert_eq!(error(&e), "a\u{241b}[2Jb\n     found: \u{2407}c\u{fffd}2J\nd");
    }

    #[test]
    fn what_was_found_is_not_rewritten() {
        let e =
            secateur::Error::new(secateur::ErrorKind::Input, "bad `seed`").at("`layers`").found("no `layers` there");
        assert_eq!(error(&e), "bad --seed\n        at: --layers\n     found: no `layers` there");
    }

    #[test]
    fn every_setting_of_loading_and_most_fields_of_a_request_have_an_option() {
        for name in OF_LOADING {
            assert!(with_option().contains(name), "{name}");
        }
        let request = serde_json::to_value(Request::default()).unwrap();
        let without = request.as_object().unwrap().keys().filter(|name| !with_option().contains(*name));
        // These fields have no option of the same name: the conversation and the arguments of its template, a switch
        // that has another name, a setting that `--trace` implies, and settings for programs.
        let programs = ["stop_ids", "include_stop", "logprobs", "prompt_logprobs"];
        let others = ["messages", "think", "tools", "chat_template_kwargs", "attention"];
        assert_eq!(without.collect::<Vec<_>>(), [&others[..], &programs].concat());
    }
}
