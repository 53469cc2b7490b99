//! Safetensors files and directories of them: the values that are read, and every way in which a file can be wrong.
use super::{Failure, Outcome};
use crate::common::files::{assert_says, message};
use secateur::Dtype;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::text::Tokenizer;
use secateur::expert::weights::{ModelSource, Weights};
use secateur::{Error, ErrorKind};
use serde_json::{Value, json};

/// A safetensors file with the given header and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A file with two small tensors, written by the `safetensors` crate.
fn good_file() -> Result<Vec<u8>, Failure> {
    use safetensors::tensor::TensorView;
    let norm: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let matrix: Vec<u8> = (0..6).flat_map(|v| half::f16::from_f32(v as f32).to_le_bytes()).collect();
    let tensors = [
        ("model.norm.weight", TensorView::new(safetensors::Dtype::F32, vec![3], &norm)?),
        ("model.embed_tokens.weight", TensorView::new(safetensors::Dtype::F16, vec![2, 3], &matrix)?),
    ];
    Ok(safetensors::serialize(tensors, None)?)
}

fn open(bytes: Vec<u8>) -> Result<Weights, Error> {
    Weights::open(&ModelSource::memory([("model.safetensors", bytes)]))
}

#[test]
fn tensors_are_found_with_shape_dtype_and_values() -> Outcome {
    let weights = open(good_file()?)?;
    assert_eq!(weights.names().collect::<Vec<_>>(), ["model.embed_tokens.weight", "model.norm.weight"]);
    assert_eq!(weights.total_bytes(), 12 + 12);
    assert_eq!(weights.vector("model.norm.weight", 3)?, [1.0, 2.0, 3.0]);
    let matrix = weights.matrix("model.embed_tokens.weight", 2, 3)?;
    assert_eq!((matrix.dtype(), matrix.rows(), matrix.cols()), (Dtype::F16, 2, 3));
    assert_eq!(matrix.to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    Ok(())
}

#[test]
fn hostile_and_truncated_files_are_refused_by_name() -> Outcome {
    let good = good_file()?;
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    let pair = |second: (u64, u64)| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":[{},{}]}}}}"#,
            second.0, second.1
        )
    };
    let with_length = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let again = "download it again";
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("empty", vec![], vec!["is empty", "0 bytes", "download the file again"]),
        ("seven bytes", vec![0; 7], vec!["too short to hold a header", "7 bytes"]),
        (
            "header length beyond the file",
            with_length(1000),
            vec!["header reaches past the end", "1000", "10 bytes", again],
        ),
        ("header length over the limit", with_length(100_000_001), vec!["header is too large", "100000001"]),
        ("header length of all ones", with_length(u64::MAX), vec!["header is too large", "18446744073709551615"]),
        ("header that is no UTF-8", [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat(), vec!["header is not UTF-8"]),
        ("header that is no JSON", file("{nonsense", &[]), vec!["not a valid description of tensors", "line 1"]),
        ("header that is a list", file("[1]", &[]), vec!["not a valid description of tensors"]),
        ("deeply nested header", file(&"[".repeat(100_000), &[]), vec!["not a valid description of tensors"]),
        (
            "negative offset",
            file(&tensor("U8", "[4]", 0, 4).replace("[0,4]", "[-1,3]"), &[0; 4]),
            vec!["not a valid description"],
        ),
        ("cut in the data", good[..good.len() - 1].to_vec(), vec!["a tensor reaches past the end", "model.", again]),
        ("cut in the header", good[..40].to_vec(), vec!["header reaches past the end", again]),
        ("bytes behind the last tensor", [&good[..], &[0]].concat(), vec!["do not cover it", "24 bytes", "25 bytes"]),
        (
            "overlap",
            file(&pair((2, 6)), &[0; 6]),
            vec!["overlap or leave holes", "model.safetensors: b", "bytes from 4", "bytes 2 to 6"],
        ),
        ("hole", file(&pair((5, 9)), &[0; 9]), vec!["overlap or leave holes", "model.safetensors: b"]),
        ("end before start", file(&pair((4, 3)), &[0; 8]), vec!["overlap or leave holes", "bytes 4 to 3"]),
        (
            "end beyond the file",
            file(&pair((4, 8)), &[0; 7]),
            vec!["reaches past the end", "model.safetensors: b", "8 bytes", "7 bytes"],
        ),
        (
            "end at the largest offset",
            file(&tensor("U8", "[18446744073709551615]", 0, u64::MAX), &[0; 4]),
            vec!["reaches past the end", ": a"],
        ),
        (
            "product of sizes overflows",
            file(&tensor("F32", "[4294967296,4294967296,2]", 0, 4), &[0; 4]),
            vec!["does not fit its bytes", "fits 64 bits", ": a"],
        ),
        (
            "bytes of sizes overflow",
            file(&tensor("F32", "[4611686018427387905]", 0, 4), &[0; 4]),
            vec!["does not fit its bytes", ": a"],
        ),
        (
            "shape larger than its bytes",
            file(&tensor("F32", "[2]", 0, 4), &[0; 4]),
            vec!["does not fit its bytes", "8 bytes for F32 [2]", "4 bytes"],
        ),
        (
            "unknown dtype",
            file(&tensor("F13", "[1]", 0, 4), &[0; 4]),
            vec!["element type that is not known", "model.safetensors: a", "F13"],
        ),
    ];
    for (name, bytes, parts) in cases {
        let message = message(open(bytes.clone()));
        assert_says(&message, &[&["model.safetensors"], &parts[..]].concat());
        assert!(safetensors::SafeTensors::deserialize(&bytes).is_err() || name.contains("overflow"), "{name}");
    }
    Ok(())
}

/// For every damage to the header of a valid file, the reader does not panic, and it can read every file that it
/// accepts.
#[test]
fn damaged_headers_never_panic() -> Outcome {
    let good = good_file()?;
    let header_end = 8 + u64::from_le_bytes(good[..8].try_into()?) as usize;
    let (mut accepted, mut refused) = (0, 0);
    let mut check = |bytes: Vec<u8>| match open(bytes) {
        Ok(weights) => {
            accepted += 1;
            for name in weights.names() {
                let view = weights.tensor(name).map(|t| t.bytes.len());
                assert!(view.is_ok_and(|len| len <= good.len()));
                let _ = weights.tensor(name).and_then(|t| t.to_rows()).map(|rows| rows.to_f32());
            }
        }
        Err(error) => {
            refused += 1;
            assert_eq!(error.kind(), ErrorKind::Model);
        }
    };
    for at in 0..header_end {
        for byte in [0, b'0', b'9', b'"', b'}', b']', b',', 0xFF, good[at] ^ 1] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            check(bytes);
        }
        check(good[..at].to_vec());
    }
    assert!(accepted > 10 && refused > 1000, "the damage must matter: {accepted} accepted, {refused} refused");
    Ok(())
}

#[test]
fn wrong_tensors_are_named_with_a_hint() -> Outcome {
    let weights = open(good_file()?)?;
    let wrong_shape = message(weights.expect("model.norm.weight", &[4]));
    assert_says(&wrong_shape, &["wrong shape", "model.safetensors: model.norm.weight", "[4]", "[3]", "config.json"]);
    assert_says(&message(weights.matrix("model.norm.weight", 1, 3)), &["wrong shape", "[1, 3]", "[3]"]);

    let missing = message(weights.tensor("model.layers.0.mlp.up_proj.weight"));
    assert_says(&missing, &["have no tensor model.layers.0.mlp.up_proj.weight", "model.safetensors", "2 tensors"]);
    assert_says(&message(weights.tensor("norm.weight")), &["did you mean model.norm.weight?"]);
    assert_says(&message(weights.tensor("language_model.model.norm.weight")), &["did you mean model.norm.weight?"]);
    assert_says(&message(weights.tensor("lm_head.weight")), &["tie_word_embeddings"]);
    assert!(!message(weights.tensor("orm.weight")).contains("did you mean"), "only whole parts of a name count");

    for (dtype, size) in [("I64", 8), ("F8_E4M3", 1), ("U8", 1), ("F64", 8), ("BOOL", 1)] {
        let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[2,2],"data_offsets":[0,{}]}}}}"#, 4 * size);
        let weights = open(file(&header, &vec![0; 4 * size]))?;
        let message = message(weights.matrix("a", 2, 2));
        assert_says(
            &message,
            &["not supported", "model.safetensors: a", "F32, F16 or BF16", dtype, "original weights"],
        );
    }
    let weights = open(file(r#"{"a":{"dtype":"F32","shape":[1048576,0],"data_offsets":[0,0]}}"#, &[]))?;
    assert_says(&message(weights.tensor("a")?.to_rows()), &["a matrix is empty"]);
    Ok(())
}

/// Checkpoints of the bare decoder have no prefix. Quantized checkpoints have other types and names.
#[test]
fn names_and_types_of_other_tools_are_understood_or_explained() -> Outcome {
    let tensors = |entries: &[(&str, &str, &str)]| {
        let mut at = 0;
        let entries: Vec<String> = entries
            .iter()
            .map(|(name, dtype, shape)| {
                at += 16;
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{at}]}}"#, at - 16)
            })
            .collect();
        open(file(&format!("{{{}}}", entries.join(",")), &vec![0; at]))
    };
    let bare = tensors(&[
        ("embed_tokens.weight", "F32", "[2,2]"),
        ("layers.0.mlp.up_proj.weight", "F32", "[2,2]"),
        ("lm_head.weight", "F32", "[2,2]"),
        ("norm.weight", "F32", "[4]"),
    ])?;
    let names: Vec<_> = bare.names().collect();
    let whole =
        ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
    assert_eq!(names, whole);
    let wrong = message(bare.expect("model.norm.weight", &[3]));
    assert_says(&wrong, &["model.safetensors: norm.weight", "[3]", "[4]"]);

    let name = "model.layers.0.mlp.up_proj";
    let mlx = tensors(&[(&format!("{name}.weight"), "U32", "[2,2]"), (&format!("{name}.scales"), "F16", "[8,1]")])?;
    let said = message(mlx.matrix(&format!("{name}.weight"), 2, 16));
    assert_says(&said, &["not supported", "U32", "MLX", "original weights"]);
    let gptq = tensors(&[(&format!("{name}.qweight"), "I32", "[2,2]")])?;
    assert_says(&message(gptq.tensor(&format!("{name}.weight"))), &["GPTQ or AWQ", "qweight", "original weights"]);
    Ok(())
}

/// A file with an output head.
fn head() -> Result<Vec<u8>, Failure> {
    Ok(file(r#"{"lm_head.weight":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}"#, &[0; 8]))
}

fn shards(index: Value) -> Result<ModelSource, Failure> {
    let other = head()?;
    Ok(ModelSource::memory([
        ("model.safetensors.index.json", serde_json::to_vec(&index)?),
        ("one.safetensors", good_file()?),
        ("two.safetensors", other),
    ]))
}

#[test]
fn shards_are_read_through_their_index() -> Outcome {
    let map = json!({"model.norm.weight": "one.safetensors", "model.embed_tokens.weight": "one.safetensors",
        "lm_head.weight": "two.safetensors"});
    let weights = Weights::open(&shards(json!({"metadata": {"total_size": 32}, "weight_map": map.clone()}))?)?;
    assert_eq!(weights.names().len(), 3);
    assert_eq!(weights.tensor("lm_head.weight")?.file, "two.safetensors");
    assert_eq!(weights.total_bytes(), 32);

    for (index, parts) in [
        (
            json!({"weight_map": {"a": "three.safetensors"}}),
            vec!["the shard three.safetensors is missing", "another version of the model", "name one.safetensors"],
        ),
        (
            json!({"weight_map": {"lm_head.weight": "one.safetensors", "model.norm.weight": "two.safetensors"}}),
            vec!["not in the shard"],
        ),
        (json!({"weight_map": {"a": 3}}), vec!["index of the weights is malformed", "a: 3"]),
        (json!({"weight_map": {}}), vec!["malformed", "an empty weight_map"]),
        (json!({"weights": {}}), vec!["malformed", "no such object"]),
        (json!([]), vec!["malformed"]),
        (json!({"weight_map": {"a": "../../secret"}}), vec!["reaches outside the model", "../../secret"]),
        (json!({"weight_map": {"a": ".."}}), vec!["reaches outside the model"]),
        (json!({"weight_map": {"a": ""}}), vec!["reaches outside the model"]),
        (json!({"weight_map": {"a": "C:\\x"}}), vec!["reaches outside the model"]),
    ] {
        assert_says(&message(Weights::open(&shards(index)?)), &parts);
    }
    // A tensor that the index names and no shard has is an error only if the model needs it.
    let mut with_lost = map.clone();
    with_lost["model.layers.7.mlp.up_proj.weight"] = json!("two.safetensors");
    let weights = Weights::open(&shards(json!({"weight_map": with_lost}))?)?;
    assert_eq!(weights.names().len(), 3);
    let missed = message(weights.tensor("model.layers.7.mlp.up_proj.weight"));
    assert_says(&missed, &["the index names it, but the shards do not have it", "download both again"]);
    let garbled = ModelSource::memory([("model.safetensors.index.json", b"{".to_vec())]);
    assert_says(&message(Weights::open(&garbled)), &["model.safetensors.index.json is not valid JSON"]);
    Ok(())
}

#[test]
fn directories_are_read_and_wrong_ones_explained() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let source = ModelSource::directory(dir.path())?;
    assert_says(&message(Weights::open(&source)), &["the model has no weights", "model.safetensors", "no files"]);
    std::fs::write(path("pytorch_model.bin"), b"x")?;
    assert_says(&message(Weights::open(&source)), &["pytorch_model.bin", "save_pretrained"]);
    std::fs::write(path("model.gguf"), b"x")?;
    assert_says(&message(Weights::open(&source)), &["model.gguf", "pass the GGUF file itself"]);
    assert_says(&message(ModelSource::directory(path("model.gguf"))), &["not a directory", "a file"]);
    assert_says(&message(ModelSource::open(path("model.gguf"))), &["not a GGUF file", "model.gguf"]);
    assert_says(&message(ModelSource::open(path("pytorch_model.bin"))), &["not a directory", "a .gguf file"]);
    assert_says(&message(ModelSource::directory(path("pytorch_model.bin"))), &["not a directory", "a file"]);
    assert_says(&message(ModelSource::directory(path("nowhere"))), &["not a directory", "nowhere"]);
    assert_says(&message(ModelConfig::load(&source)), &["the model has no config.json", "model.gguf"]);
    assert_says(&message(Tokenizer::load(&source)), &["no tokenizer.json", "`ids`"]);

    // These are contents that a failed download may leave.
    let page = "<!DOCTYPE html><html><head><title>Log in to\n the hub</title>";
    let substitutes: [(&[u8], &[&str]); 5] = [
        (b"", &["is empty", "0 bytes", "download the file again"]),
        (b"1234567", &["too short to hold a header"]),
        (page.as_bytes(), &["is a web page", "\"Log in to the hub\"", "its token"]),
        (b"\n<html>", &["is a web page", "found: a page\n"]),
        (b"Entry not found\n", &["only a short text", "\"Entry not found\"", "download the file again"]),
    ];
    for (substitute, parts) in substitutes {
        std::fs::write(path("model.safetensors"), substitute)?;
        assert_says(&message(Weights::open(&source)), parts);
        if substitute.len() != 7 {
            std::fs::write(path("other.gguf"), substitute)?;
            assert_says(&message(ModelSource::open(path("other.gguf"))), parts);
            assert_says(&message(ModelSource::gguf_file("other.gguf", substitute.to_vec())), parts);
        }
    }
    std::fs::remove_file(path("other.gguf"))?;
    std::fs::write(path("tokenizer.json"), page)?;
    assert_says(&message(Tokenizer::load(&source)), &["is a web page", "tokenizer.json"]);
    std::fs::remove_file(path("tokenizer.json"))?;
    std::fs::write(path("model.safetensors"), good_file()?)?;
    assert_eq!(Weights::open(&source)?.vector("model.norm.weight", 3)?, [1.0, 2.0, 3.0]);
    std::fs::create_dir(path("config.json"))?;
    assert_says(&message(ModelConfig::load(&source)), &["not a regular file", "config.json"]);
    Ok(())
}

/// For folders that a clone without Git LFS, a LoRA training or a mixed download leaves, errors explain the cause and
/// what to do.
#[test]
fn folders_that_are_no_whole_model_are_explained() -> Outcome {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n".to_vec();
    let cloned = ModelSource::memory([("model.safetensors", pointer.clone()), ("tokenizer.json", pointer.clone())]);
    for said in [message(Weights::open(&cloned)), message(Tokenizer::load(&cloned))] {
        assert_says(&said, &["only a Git LFS pointer", "git lfs pull"]);
    }
    assert_says(&message(Weights::open(&cloned)), &["model.safetensors"]);
    assert_says(&message(ModelSource::gguf_file("model.gguf", pointer)), &["only a Git LFS pointer", "model.gguf"]);

    let adapter = json!({"base_model_name_or_path": "Qwen/Qwen3-0.6B", "peft_type": "LORA"});
    let adapter = ModelSource::memory([("adapter_config.json", serde_json::to_vec(&adapter)?)]);
    assert_says(&message(ModelConfig::load(&adapter)), &["adapter (LoRA)", "merge it into Qwen/Qwen3-0.6B"]);

    let both = ModelSource::memory([
        ("adapter_config.json", br#"{"base_model_name_or_path": "Qwen/Qwen3-0.6B"}"#.to_vec()),
        ("adapter_model.safetensors", good_file()?),
        ("config.json", b"{}".to_vec()),
    ]);
    assert_says(&message(Weights::open(&both)), &["adapter (LoRA)", "merge it into Qwen/Qwen3-0.6B"]);

    let without_index = ModelSource::memory([("model-00001-of-00002.safetensors", good_file()?)]);
    assert_says(&message(Weights::open(&without_index)), &["no weights", "model.safetensors.index.json is missing"]);
    let both = [("model-00001-of-00002.safetensors", good_file()?), ("model-00002-of-00002.safetensors", head()?)];
    assert_eq!(
        Weights::open(&ModelSource::memory(both.clone()))?.names().len(),
        3,
        "the names say that none is missing"
    );
    // The index of another version, and files that are no shards.
    let index = json!({"weight_map": {"lm_head.weight": "model-00001-of-00003.safetensors"}});
    let other = [("model.safetensors.index.json", serde_json::to_vec(&index)?), ("golden.safetensors", b"x".to_vec())];
    let mixed = ModelSource::memory(both.into_iter().chain(other));
    assert_eq!(Weights::open(&mixed)?.names().len(), 3);
    let incomplete = ModelSource::memory([(
        "model.safetensors.index.json",
        serde_json::to_vec(&json!({"weight_map": {"a": "one.safetensors"}}))?,
    )]);
    assert_says(&message(Weights::open(&incomplete)), &["one.safetensors is missing", "download is incomplete"]);
    Ok(())
}
