//! `benches/rivals.py`, with programs that print what secateur and llama-bench print.
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::command::{Ran, done};

/// Runs the script, or returns `None` where there is no Python.
fn rivals(folder: &Path, more: &[&str]) -> Option<Ran> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/rivals.py");
    let mut command = Command::new("python3");
    command.arg(script).args(["model.gguf", "--prompt", "16", "--decode", "4", "--rounds", "2"]).args(more);
    match command.current_dir(folder).output() {
        Ok(output) => Some(done(output)),
        Err(e) => {
            assert!(std::env::var_os("SECATEUR_REQUIRE").is_none(), "python3 is required: {e}");
            println!("SKIPPED: python3 cannot be started: {e}");
            None
        }
    }
}

/// Writes a program that notes its name and its arguments in `calls`, and prints `output`. `COUNT` in it, once a
/// line, is the number of calls so far.
fn program(folder: &Path, name: &str, output: &str) -> String {
    let path = folder.join(name);
    let notes = format!("cd '{}'\necho {name} \"$@\" >> calls\ncount=$(grep -c '^{name} ' calls)", folder.display());
    let text = format!("#!/bin/sh\n{notes}\nsed \"s/COUNT/$count/\" <<'END'\n{output}\nEND\n");
    std::fs::write(&path, text).expect("writable");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it may run");
    path.to_str().expect("UTF-8").to_string()
}

#[test]
fn rivals_are_measured_in_turns() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    let secateur = program(
        folder,
        "secateur",
        r#"{"secateur": "9.9", "device": {"name": "Card 7"}, "runs": [{
            "prefill_tokens_per_second": {"median": COUNT00},
            "decode_tokens_per_second": {"median": COUNT0}}]}"#,
    );
    // The first call measures a prompt, the second decoding, and so on.
    let llama = program(
        folder,
        "llama-bench",
        r#"[{"build_commit": "abc", "backends": "Vulkan", "gpu_info": "Card 7 (driver)", "cpu_info": "CPU",
            "n_gpu_layers": -1, "avg_ts": COUNT0}]"#,
    );
    let programs = ["--secateur", &secateur, "--llama-bench", &llama];
    let Some(ran) = rivals(folder, &programs) else { return };
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let calls = std::fs::read_to_string(folder.join("calls")).expect("they were called");
    let order: Vec<&str> = calls.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(order, ["secateur", "llama-bench", "llama-bench"].repeat(2), "{calls}");
    let arguments = ["--model model.gguf --prompt 16 --decode 4", "-p 16 -n 0", "-p 0 -n 4 -d 16"];
    for (call, parts) in arguments.into_iter().enumerate() {
        assert!(calls.lines().nth(call).is_some_and(|line| line.contains(parts)), "{parts}: {calls}");
    }
    // secateur: 100 and 10, then 200 and 20. llama.cpp: 10 and 20, then 30 and 40.
    for line in [
        "secateur 9.9 on Card 7",
        "llama.cpp abc, backend Vulkan on Card 7 (driver)",
        "| secateur | 150 (100 - 200) | 15.00 (10.00 - 20.00) |",
        "| llama.cpp | 20.00 (10.00 - 30.00) | 30.00 (20.00 - 40.00) |",
        "| secateur / llama.cpp, within a round | 8.33 (6.67 - 10.00) | 0.500 (0.500 - 0.500) |",
    ] {
        assert!(ran.out.lines().any(|found| found == line), "{line:?} is missing from:\n{}", ran.out);
    }
}

#[test]
fn rivals_that_cannot_be_compared_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    let secateur = program(
        folder,
        "secateur",
        r#"{"secateur": "9.9", "device": {"name": "Card 7"}, "runs": [{"prefill_tokens_per_second": {"median": 1},
            "decode_tokens_per_second": {"median": 1}}]}"#,
    );
    let other = program(
        folder,
        "llama-bench",
        r#"[{"build_commit": "abc", "backends": "Vulkan", "gpu_info": "", "cpu_info": "CPU", "n_gpu_layers": -1,
            "avg_ts": 2}]"#,
    );
    let broken = program(folder, "broken", "no JSON");
    let missing = folder.join("no-such-program");
    let refused = |llama: &str, more: &[&str], parts: &[&str]| {
        let programs = ["--secateur", &secateur, "--llama-bench", llama];
        let Some(ran) = rivals(folder, &[&programs[..], more].concat()) else { return };
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
        for part in parts {
            assert!(ran.err.contains(part), "{part:?} is missing from:\n{}", ran.err);
        }
    };
    let missing = missing.to_str().expect("UTF-8");
    refused(missing, &[], &["llama-bench was not found", missing, "archive of llama.cpp's releases"]);
    refused(&other, &[], &["the adapters differ", "secateur: Card 7", "llama.cpp: CPU", "--other-adapter"]);
    refused(&broken, &[], &["printed no JSON", "-p 16 -n 0"]);
    refused(&other, &["--rounds", "0"], &["at least 1"]);
    let Some(all_the_same) = rivals(folder, &["--secateur", &secateur, "--llama-bench", &other, "--other-adapter"])
    else {
        return;
    };
    assert_eq!(all_the_same.code, Some(0), "{}", all_the_same.err);
    assert!(all_the_same.out.contains("llama.cpp abc, backend CPU on CPU"), "{}", all_the_same.out);
}
