//! Arguments that begin with a dash although they are no options: values of options, and the prompt of `run`.
//!
//! Which options take a value is read from clap's description of the program.
use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, Command};

/// `command`, in which the argument after an option that takes a value is that value, whatever it begins with. The same
/// holds for all its subcommands.
pub fn allow_in_values(command: Command) -> Command {
    let allow = |arg: Arg| if takes_value(&arg) { arg.allow_hyphen_values(true) } else { arg };
    command.mut_args(allow).mut_subcommands(allow_in_values)
}

/// Refuses arguments in which an option is in the place of the value of another, as in `--trace --json`. `program` has
/// to be built.
///
/// # Errors
/// What clap prints for a value that is missing.
pub fn check(program: &Command, given: &[OsString]) -> Result<(), clap::Error> {
    for Value { index, option, command } in values(program, given) {
        let found = given[index].to_string_lossy();
        if !is_option(command, &found) {
            continue;
        }
        let name = option.get_long().map_or_else(|| option.to_string(), |long| format!("--{long}"));
        let what = if found == "--" { "ends the options" } else { "is an option" };
        return Err(command.clone().error(
            ErrorKind::InvalidValue,
            format!(
                "a value is required for '{option}', but '{found}' {what}\n\n  tip: to give it as the value, write \
                 '{name}={found}'"
            ),
        ));
    }
    Ok(())
}

/// The index of the prompt in `secateur run "-5 + 3?"`: of the first argument that begins with a dash but cannot be
/// an option, because a blank comes before any `=`, and is no value of an option. `program` has to be built.
pub fn prompt(program: &Command, given: &[OsString]) -> Option<usize> {
    let is_run = given.get(1).is_some_and(|command| command == "run");
    if !is_run || given.iter().any(|arg| arg == "--") {
        return None;
    }
    let values = values(program, given);
    let is_text = |index: &usize| {
        let text = given[*index].to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        text.starts_with('-') && name.contains(char::is_whitespace)
    };
    (2..given.len()).filter(|index| values.iter().all(|value| value.index != *index)).find(is_text)
}

/// An argument that is the value of the option before it.
struct Value<'a> {
    index: usize,
    option: &'a Arg,
    /// The command that has the option.
    command: &'a Command,
}

/// The arguments that are values of the options before them. A value that its option holds (`--trace=FILE`, `-oFILE`)
/// is not among them.
fn values<'a>(program: &'a Command, given: &[OsString]) -> Vec<Value<'a>> {
    let (mut command, mut values, mut index) = (program, Vec::new(), 1);
    while let Some(arg) = given.get(index).filter(|arg| *arg != "--") {
        let text = arg.to_string_lossy();
        if let Some(option) = before_value(command, &text) {
            index += 1;
            if index < given.len() {
                values.push(Value { index, option, command });
            }
        } else if let Some(subcommand) = command.find_subcommand(&*text) {
            command = subcommand;
        }
        index += 1;
    }
    values
}

/// The option of `command` whose value is the argument after `text`.
fn before_value<'a>(command: &'a Command, text: &str) -> Option<&'a Arg> {
    if let Some(name) = text.strip_prefix("--") {
        return command.get_arguments().find(|arg| arg.get_long() == Some(name) && takes_value(arg));
    }
    // Several short options may share a dash, as in `-qo FILE`. What follows one that takes a value is the value.
    let mut letters = text.strip_prefix('-')?.chars();
    loop {
        let letter = letters.next()?;
        let option = command.get_arguments().find(|arg| arg.get_short() == Some(letter))?;
        if takes_value(option) {
            return letters.as_str().is_empty().then_some(option);
        }
    }
}

/// Whether `text` is `--`, or an option of `command`.
fn is_option(command: &Command, text: &str) -> bool {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let is_named = |arg: &Arg| {
        let long = name.strip_prefix("--").is_some_and(|name| arg.get_long() == Some(name));
        let short = name.strip_prefix('-').is_some_and(|name| arg.get_short().is_some_and(|c| name == c.to_string()));
        (long || short) && (value.is_none() || takes_value(arg))
    };
    text == "--" || command.get_arguments().any(is_named)
}

fn takes_value(arg: &Arg) -> bool {
    !arg.is_positional() && arg.get_action().takes_values()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::built_program;

    fn given(args: &[&str]) -> Vec<OsString> {
        ["secateur"].iter().chain(args).map(OsString::from).collect()
    }

    #[test]
    fn a_prompt_may_begin_with_a_dash() {
        let index = |args: &[&str]| prompt(&built_program(), &given(args));
        assert_eq!(index(&["run", "--model", "m", "-5 + 3?"]), Some(4));
        assert_eq!(index(&["run", "- milk\n- eggs: what is missing?", "--quiet"]), Some(2));
        assert_eq!(index(&["run", "--modle", "m"]), None, "a mistyped option is not a prompt");
        assert_eq!(index(&["run", "--system=You are terse.", "--modle", "m"]), None);
        assert_eq!(index(&["run", "--", "-5 + 3?"]), None);
        assert_eq!(index(&["bench", "-5 + 3?"]), None);
        // A value of an option is not the prompt.
        assert_eq!(index(&["run", "--probe-text", "- Sum up.</think>", "Enough.</think>"]), None);
        assert_eq!(index(&["run", "--probe-text", "- Sum up.</think>", "- milk and eggs"]), Some(4));
        assert_eq!(index(&["run", "--trace=- a.json", "--trace", "- my trace.json", "hello there"]), None);
        assert_eq!(index(&["run", "-q", "- milk and eggs"]), Some(3), "-q takes no value");
    }

    /// Every option that takes a value, as it is typed, with the names of the command and its subcommand before it.
    fn options_with_values(command: &Command, path: &[String]) -> Vec<(Vec<String>, Arg)> {
        let own = command.get_arguments().filter(|arg| takes_value(arg)).map(|arg| (path.to_vec(), arg.clone()));
        let below = command.get_subcommands().filter(|below| below.get_name() != "help");
        own.chain(below.flat_map(|below| options_with_values(below, &[path, &[below.get_name().into()]].concat())))
            .collect()
    }

    #[test]
    fn every_option_takes_a_value_that_begins_with_a_dash() {
        let program = built_program();
        let options = options_with_values(&program, &[]);
        assert!(options.len() > 60, "{}", options.len());
        for (path, option) in options {
            assert_eq!(option.get_num_args().map(|n| (n.min_values(), n.max_values())), Some((1, 1)), "{option}");
            let long = format!("--{}", option.get_long().expect("a long name"));
            let value = "- my value";
            let path = path.iter().map(String::as_str).collect::<Vec<_>>();
            let arguments = given(&[&path[..], &[&long, value]].concat());
            check(&program, &arguments).expect("a value is no option");
            // Without what is required, or with a value that the option refuses, there is an error, but not one that
            // takes the value for an option.
            let said =
                program.clone().try_get_matches_from(&arguments).map_or_else(|e| e.to_string(), |_| String::new());
            assert!(!said.contains("unexpected argument") && !said.contains("none was supplied"), "{path:?}: {said}");
        }
    }

    #[test]
    fn values_that_begin_with_a_dash_reach_their_options() {
        let value = |command: &[&str], option: &str| {
            let matches = built_program().try_get_matches_from(given(command)).unwrap_or_else(|e| panic!("{e}"));
            let (_, matches) = matches.subcommand().expect("a command");
            let raw = matches.get_raw(option).expect(option).map(|value| value.to_string_lossy().into_owned());
            raw.collect::<Vec<_>>().join("|")
        };
        let run = ["run", "--probe-text", "- Sum up.</think>", "Enough.</think>"];
        assert_eq!((value(&run, "probe_text"), value(&run, "prompt")), ("- Sum up.</think>".into(), run[3].into()));
        let run = ["run", "--trace", "- my trace.json", "hello there"];
        assert_eq!((value(&run, "trace"), value(&run, "prompt")), ("- my trace.json".into(), "hello there".into()));
        assert_eq!(value(&["run", "--request", "-r.json"], "request"), "-r.json");
        assert_eq!(value(&["run", "--stop", "- a", "--stop", "-b", "Why?"], "stop"), "- a|-b");
        assert_eq!(value(&["report", "a.json", "-o", "-a b.html"], "output"), "-a b.html");
        assert_eq!(value(&["report", "a.json", "-o-a.html"], "output"), "-a.html");
        assert_eq!(value(&["bench", "--csv", "-a b.csv"], "csv"), "-a b.csv");
        assert_eq!(value(&["eval", "--data", "-d.jsonl", "--out", "- o"], "out"), "- o");
    }

    #[test]
    fn an_option_is_not_the_value_of_another() {
        let refused = |args: &[&str]| check(&built_program(), &given(args)).map_err(|e| e.to_string());
        let said = refused(&["run", "--trace", "--json", "Why?"]).expect_err("--json is an option");
        for part in ["a value is required for '--trace <FILE>', but '--json' is an option", "'--trace=--json'", "run"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(refused(&["report", "a.json", "-o", "--help"]).is_err());
        assert!(refused(&["run", "--system", "-q", "Why?"]).is_err());
        assert!(refused(&["run", "--system", "--trace=a.json", "Why?"]).is_err());
        let said = refused(&["run", "--trace", "--", "-5 + 3?"]).expect_err("the value is missing");
        assert!(said.contains("but '--' ends the options"), "{said}");
        for taken in ["--unknown", "-x", "- --json", "--json of mine", "--json=1", "-qq is short"] {
            assert_eq!(refused(&["run", "--system", taken, "Why?"]), Ok(()), "{taken}");
        }
        assert_eq!(refused(&["run", "--trace", "a.json", "--", "--trace", "--json"]), Ok(()));
        assert_eq!(refused(&["run", "--trace"]), Ok(()), "clap refuses this");
    }
}
