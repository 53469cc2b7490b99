//! Models that are split into several GGUF files, and GGUF files that are found without their usual name.
use super::{File, Outcome, llama, u32v};
use crate::common::files::{assert_says, message};
use secateur::expert::model::config::ModelConfig;
use secateur::expert::text::Tokenizer;
use secateur::expert::weights::{ModelSource, Weights};
use std::ops::Range;
use std::path::Path;

fn u16v(value: u16) -> Vec<u8> {
    [&2u32.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

fn i32v(value: i32) -> Vec<u8> {
    [5u32.to_le_bytes(), value.to_le_bytes()].concat()
}

/// The parts of `whole` with these tensors each, as llama-gguf-split writes them: only the first has the metadata.
fn parts(whole: &File, tensors: &[Range<usize>]) -> Vec<File> {
    let part = |(no, range): (usize, &Range<usize>)| {
        let pairs = if no == 0 { whole.pairs.clone() } else { Vec::new() };
        File { pairs, tensors: whole.tensors[range.clone()].to_vec() }
            .with("split.no", u16v(no as u16))
            .with("split.count", u16v(tensors.len() as u16))
            .with("split.tensors.count", i32v(whole.tensors.len() as i32))
    };
    tensors.iter().enumerate().map(part).collect()
}

/// A small model in two parts, with their names.
pub(crate) fn two_parts() -> Vec<(String, Vec<u8>)> {
    let parts = parts(&llama(), &[0..5, 5..12]);
    parts.iter().enumerate().map(|(i, part)| (name(i + 1, 2), part.bytes().1)).collect()
}

fn name(number: usize, count: usize) -> String {
    format!("small-{number:05}-of-{count:05}.gguf")
}

/// A folder with these parts under the names that they should have.
fn folder(parts: &[File]) -> Result<tempfile::TempDir, super::Failure> {
    let dir = tempfile::tempdir()?;
    for (i, part) in parts.iter().enumerate() {
        std::fs::write(dir.path().join(name(i + 1, parts.len())), part.bytes().1)?;
    }
    Ok(dir)
}

fn config(path: impl AsRef<Path>) -> Result<ModelConfig, secateur::Error> {
    ModelConfig::load(&ModelSource::open(path)?)
}

#[test]
fn a_model_is_whole_whichever_part_is_named() -> Outcome {
    let whole = llama();
    let reference = whole.source()?;
    let expected = Weights::open(&reference)?;
    // In the first case all parts have tensors, in the second the first part has only metadata.
    for ranges in [[0..5, 5..9, 9..12], [0..0, 0..7, 7..12]] {
        let dir = folder(&parts(&whole, &ranges))?;
        let paths = (1..=3).map(|number| dir.path().join(name(number, 3)));
        // The folder holds nothing else, so the folder can be opened as well.
        for path in paths.chain([dir.path().to_path_buf()]) {
            let source = ModelSource::open(&path)?;
            assert_eq!(source.gguf().map(|gguf| gguf.parts()), Some(3));
            assert_eq!(ModelConfig::load(&source)?, whole.config()?);
            assert_eq!(Tokenizer::load(&source)?.encode("ab a")?, [3, 2, 0]);
            let weights = Weights::open(&source)?;
            assert_eq!(weights.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
            for name in expected.names() {
                assert_eq!(weights.tensor(name)?.to_f32()?, expected.tensor(name)?.to_f32()?, "{name}");
            }
            assert_eq!(weights.places().len(), 3);
            assert_eq!(weights.fingerprint()?, expected.fingerprint()?, "the same weights in other files");
        }
    }
    let in_memory = parts(&whole, &[0..4, 4..12]);
    let in_memory = in_memory.iter().enumerate().map(|(i, part)| (name(i + 1, 2), part.bytes().1));
    assert_eq!(ModelConfig::load(&ModelSource::gguf_parts(in_memory)?)?, whole.config()?);
    Ok(())
}

#[test]
fn parts_that_do_not_belong_together_are_refused_by_name() -> Outcome {
    let whole = llama();
    let good = || parts(&whole, &[0..5, 5..9, 9..12]);
    let at = |dir: &tempfile::TempDir, number: usize| dir.path().join(name(number, 3));

    let dir = folder(&good())?;
    std::fs::remove_file(at(&dir, 2))?;
    for number in [1, 3] {
        let said = message(ModelSource::open(at(&dir, number)));
        assert_says(&said, &["a part of a split GGUF file is missing", "all 3 parts", &name(2, 3), "same folder"]);
    }
    assert_says(&message(ModelSource::open(dir.path())), &["is missing", &name(2, 3)]);
    // A Git LFS pointer takes the place of a part.
    std::fs::write(at(&dir, 2), "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")?;
    assert_says(&message(ModelSource::open(at(&dir, 1))), &["only a Git LFS pointer", &name(2, 3)]);

    let changed = |change: &dyn Fn(&mut Vec<File>)| {
        let mut parts = good();
        change(&mut parts);
        folder(&parts).map(|dir| message(ModelSource::open(at(&dir, 1)).and_then(|s| Weights::open(&s))))
    };
    let again = "download all parts again";
    let set = |part: usize, key: &'static str, value: Vec<u8>| {
        move |parts: &mut Vec<File>| parts[part] = parts[part].clone().with(key, value.clone())
    };
    for (change, expected) in [
        (
            &set(1, "split.no", u16v(2)) as &dyn Fn(&mut Vec<File>),
            vec!["not the part that its name says", "split.no", "found: 2"],
        ),
        (&set(2, "split.count", u16v(4)), vec!["split.count", "expected: 3", "found: 4", again]),
        (&set(0, "split.count", u16v(4)), vec!["contradicts its metadata", "3 parts", "4 parts", again]),
        (&set(1, "split.tensors.count", i32v(11)), vec!["contradict each other", "12 tensors", "found: 11", again]),
        (
            &set(1, "general.architecture", super::textv("qwen2")),
            vec!["contradict each other", "llama", "found: qwen2"],
        ),
        (&|parts| parts.swap(1, 2), vec!["not the part that its name says", &name(2, 3), "part 2 of 3", "found: 2"]),
        (&|parts| drop(parts[2].tensors.pop()), vec!["do not have all of its tensors", "12 tensors", "11 tensors"]),
        (
            &|parts| parts[1] = parts[1].clone().without("split.count"),
            vec!["split.count", &name(2, 3), "found: nothing"],
        ),
        (
            &|parts| {
                parts[2].tensors.pop();
                let copy = parts[1].tensors[0].clone();
                parts[2].tensors.push(copy);
            },
            vec!["the same tensor twice", &name(3, 3)],
        ),
        (&|parts| parts[2].tensors[0].2 = 99, vec!["unknown element type", &name(3, 3)]),
    ] {
        assert_says(&changed(change)?, &expected);
    }
    // A part under another name, whose siblings cannot be found.
    let lone = good()[1].clone();
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("renamed.gguf"), lone.bytes().1)?;
    let said = message(config(dir.path().join("renamed.gguf")));
    assert_says(&said, &["only a part of a model", "3 files named NAME-00001-of-00003.gguf", "part 2 of 3", "--merge"]);
    // A whole file whose name looks like that of a part.
    std::fs::write(dir.path().join(name(1, 3)), llama().bytes().1)?;
    assert_eq!(config(dir.path().join(name(1, 3)))?, llama().config()?);
    Ok(())
}

#[test]
fn gguf_files_are_known_by_their_first_bytes() -> Outcome {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes);
    let bytes = llama().bytes().1;
    for name in ["model", "sha256-abc", "model.gguf.bak", "model.bin"] {
        write(name, &bytes)?;
        assert_eq!(config(dir.path().join(name))?, llama().config()?, "{name}");
    }
    // Pieces that `split` has cut.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for (name, piece) in [("x.gguf.part1of2", first), ("x.gguf.part2of2", second), ("x.gguf-split-aa", first)] {
        write(name, piece)?;
        let said = message(ModelSource::open(dir.path().join(name)));
        assert_says(&said, &[name, "a piece of x.gguf", "cat x.gguf"]);
    }
    assert_says(&message(ModelSource::open(dir.path().join("none.gguf"))), &["the GGUF file does not exist"]);
    assert_says(&message(ModelSource::open(dir.path().join("x.gguf.part3of3"))), &["not a directory", "No such file"]);
    Ok(())
}

#[test]
fn a_directory_stands_for_its_only_gguf_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes);
    let bytes = llama().bytes().1;
    write("README.md", b"words")?;
    write("a-Q8_0.GGUF", &bytes)?;
    assert_eq!(config(dir.path())?, llama().config()?);
    // The image part of a model, as the publishers of GGUF files name it.
    write("mmproj-a-F16.gguf", &bytes)?;
    write("a.mmproj-Q8_0.gguf", &bytes)?;
    let opened = ModelSource::open(dir.path())?.gguf().map(|gguf| gguf.place().to_string());
    assert!(opened.is_some_and(|place| place.ends_with("/a-Q8_0.GGUF")));
    write("b-Q4_0.gguf", &bytes)?;
    assert_says(
        &message(ModelSource::open(dir.path())),
        &["several GGUF files", "a-Q8_0.GGUF, b-Q4_0.gguf", "pass the path of one"],
    );
    // A model in Hugging Face layout comes first.
    write("config.json", b"{}")?;
    assert!(ModelSource::open(dir.path())?.gguf().is_none());
    Ok(())
}

#[test]
fn gguf_files_of_other_things_are_named_for_what_they_are() {
    for (kind, part) in [
        ("adapter", "an adapter (LoRA)"),
        ("mmproj", "the image or audio part"),
        ("imatrix", "an importance matrix"),
        ("vocab", "without a model"),
    ] {
        let file = llama().with("general.type", super::textv(kind));
        assert_says(&message(file.config()), &[part, "general.type", "pass a GGUF file of the model"]);
    }
    let named = llama().with("general.type", super::textv("adapter"));
    let named = named.with("general.base_model.0.name", super::textv("Small Llama"));
    assert_says(&message(named.config()), &["the model, Small Llama"]);
    assert!(llama().with("general.type", super::textv("model")).config().is_ok());
    assert!(llama().with("split.count", u32v(1)).config().is_ok());
}
