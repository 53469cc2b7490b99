//! A process whose memory is limited: the model does not fit, and the run ends with one error.
use super::F16;
use crate::common::command::{done, secateur};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Bytes of the weights of [`large_model`].
const WEIGHTS: u64 = 3_000_299_520;

/// A model of three gigabytes of zeros, of which the disk holds only the header.
fn large_model() -> tempfile::TempDir {
    let (hidden, inter, layers, vocab, heads, kv_heads) = (2048usize, 8192usize, 24usize, 32_000usize, 16, 2);
    let config = std::fs::read_to_string(Path::new(F16).join("config.json")).expect("committed");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    for (name, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", inter),
        ("num_hidden_layers", layers),
        ("vocab_size", vocab),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
    ] {
        config[name] = json!(value);
    }
    config["tie_word_embeddings"] = json!(true);
    config
        .as_object_mut()
        .expect("an object")
        .retain(|name, _| !["layer_types", "max_window_layers"].contains(&&**name));
    let (mut header, mut end) = (serde_json::Map::new(), 0u64);
    let mut add = |name: String, shape: &[usize]| {
        let begin = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}));
    };
    let kv = hidden / heads * kv_heads;
    add("model.embed_tokens.weight".into(), &[vocab, hidden]);
    add("model.norm.weight".into(), &[hidden]);
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}"), shape);
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, rows) in [("q", hidden), ("k", kv), ("v", kv)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, hidden]);
            add(&format!("self_attn.{name}_proj.bias"), &[rows]);
        }
        add("self_attn.o_proj.weight", &[hidden, hidden]);
        add("mlp.gate_proj.weight", &[inter, hidden]);
        add("mlp.up_proj.weight", &[inter, hidden]);
        add("mlp.down_proj.weight", &[hidden, inter]);
    }
    assert_eq!(end, WEIGHTS);
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
    let header = Value::Object(header).to_string();
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut file = std::fs::File::create(dir.path().join("model.safetensors")).expect("created");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(header.as_bytes()).expect("written");
    file.set_len(8 + header.len() as u64 + WEIGHTS).expect("a sparse file");
    dir
}

/// `secateur` with these arguments, in a process of at most this many KiB.
fn limited(kib: u64, args: &[&str]) -> Command {
    let program = secateur(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v \"$0\" && exec \"$@\"", &kib.to_string()]).arg(program.get_program());
    shell.args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(std::process::Stdio::null());
    shell
}

#[test]
fn a_model_that_exceeds_the_memory_of_the_process_is_one_error() {
    let dir = large_model();
    let model = dir.path().to_str().expect("UTF-8");
    let whole = std::fs::metadata(dir.path().join("model.safetensors")).expect("there").len();
    // The file cannot be mapped; it can, and its weights do not fit beside it; they almost do.
    for (kib, needed) in [(2_000_000, whole), (4_000_000, WEIGHTS), (5_800_000, WEIGHTS)] {
        for command in [&["run", "--ids", "1,2,3", "--max-new-tokens", "1"][..], &["bench", "--prompt", "8"]] {
            let args = [command, &["--device", "cpu", "--model", model]].concat();
            let began = std::time::Instant::now();
            let ran = done(limited(kib, &args).output().expect("it starts"));
            assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{args:?} in {kib} KiB: {}", ran.err);
            assert_eq!(ran.err.matches("error: ").count(), 1, "{}", ran.err);
            for part in [&needed.to_string(), "memory", "ulimit -v"] {
                assert!(ran.err.contains(part), "{part:?} is missing from:\n{}", ran.err);
            }
            println!("{kib} KiB: {:.1} s", began.elapsed().as_secs_f64());
        }
    }
}
