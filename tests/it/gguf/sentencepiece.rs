//! The tokenizers of SentencePiece in GGUF files, compared with transformers' conversion of the same tokenizer
//! (`tests/fixtures/make_sentencepiece.py`).
use super::{Failure, File, Outcome, f32v, listv, llama, textsv, textv, u32v};
use crate::common::files::{assert_says, message};
use secateur::expert::text::{Detokenizer, Tokenizer};
use serde_json::Value;

fn fixture() -> Result<Value, Failure> {
    Ok(serde_json::from_str(include_str!("../../fixtures/sentencepiece.json"))?)
}

fn boolv(value: bool) -> Vec<u8> {
    [&7u32.to_le_bytes()[..], &[u8::from(value)]].concat()
}

/// A GGUF file with the tokenizer of the fixture.
fn file(fixture: &Value) -> Result<File, Failure> {
    let list = |name: &str| fixture[name].as_array().ok_or(format!("no {name}"));
    let tokens: Vec<&str> = list("tokens")?.iter().filter_map(Value::as_str).collect();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let scores: Vec<Vec<u8>> = list("scores")?.iter().map(|v| (number(v) as f32).to_le_bytes().to_vec()).collect();
    let types: Vec<Vec<u8>> = list("types")?.iter().map(|v| (number(v) as i32).to_le_bytes().to_vec()).collect();
    Ok(File::default()
        .with("tokenizer.ggml.model", textv("llama"))
        .with("tokenizer.ggml.pre", textv("default"))
        .with("tokenizer.ggml.tokens", textsv(&tokens))
        .with("tokenizer.ggml.scores", listv(6, &scores))
        .with("tokenizer.ggml.token_type", listv(5, &types))
        .with("tokenizer.ggml.bos_token_id", u32v(1))
        .with("tokenizer.ggml.eos_token_id", u32v(2))
        .with("tokenizer.ggml.unknown_token_id", u32v(0)))
}

#[test]
fn texts_have_the_ids_of_transformers() -> Outcome {
    let fixture = fixture()?;
    let tokenizer = file(&fixture)?.tokenizer()?;
    let vectors = fixture["vectors"].as_array().ok_or("vectors")?;
    assert_eq!(vectors.len(), 45);
    for vector in vectors {
        let text = vector["text"].as_str().ok_or("a text")?;
        let ids: Vec<u32> = serde_json::from_value(vector["ids"].clone())?;
        assert_eq!(tokenizer.encode(text)?, ids, "{text:?}");
        let decoded = vector["decoded"].as_str().ok_or("a text")?;
        assert_eq!(tokenizer.decode(&ids, false)?, decoded, "{text:?}");
        // Decoding token by token gives the same text, and cuts no character.
        let mut stream = Detokenizer::new(&tokenizer, false);
        for id in &ids {
            stream.push(*id)?;
        }
        stream.finish();
        assert_eq!(stream.text(), decoded, "{text:?}");
    }
    assert_eq!(tokenizer.think_ids(), secateur::expert::text::ThinkIds { open: Some(3), close: Some(4) });
    assert!(tokenizer.is_special(1) && tokenizer.is_special(2) && !tokenizer.is_special(3));
    Ok(())
}

#[test]
fn settings_of_the_file_are_honoured() -> Outcome {
    let fixture = fixture()?;
    let plain = file(&fixture)?;
    let ids = plain.tokenizer()?.encode("Hello")?;
    // A text without a template begins with <s>, once, unless the file says otherwise.
    assert_eq!(plain.tokenizer()?.encode_whole("Hello")?, [&[1], &ids[..]].concat());
    assert_eq!(plain.tokenizer()?.encode_whole("<s>Hello")?, plain.tokenizer()?.encode("<s>Hello")?);
    let without = plain.clone().with("tokenizer.ggml.add_bos_token", boolv(false));
    assert_eq!(without.tokenizer()?.encode_whole("Hello")?, ids);
    // In this file, no space begins a text.
    let bare = plain.clone().with("tokenizer.ggml.add_space_prefix", boolv(false)).tokenizer()?;
    assert_ne!(bare.encode("Hello")?, ids);
    assert_eq!(bare.encode(" Hello")?, ids);
    assert_eq!(bare.decode(&ids, false)?, " Hello");
    for (broken, parts) in [
        (plain.clone().without("tokenizer.ggml.scores"), ["incomplete", "tokenizer.ggml.scores"]),
        (plain.clone().with("tokenizer.ggml.scores", listv(6, &[vec![0; 4]])), ["contradicts itself", "900 scores"]),
        (plain.clone().with("tokenizer.ggml.scores", f32v(1.0)), ["wrong type", "a list of numbers"]),
        (plain.clone().with("tokenizer.ggml.model", textv("t5")), ["type t5 is not supported", "SentencePiece"]),
    ] {
        assert_says(&message(broken.tokenizer()), &parts);
    }
    Ok(())
}

/// For byte-level BPE, the beginning depends on the file and on the splitting rule, as in llama.cpp.
#[test]
fn byte_level_texts_begin_as_the_file_says() -> Outcome {
    let whole = |file: File| Ok::<_, Failure>(file.tokenizer()?.encode_whole("ab")?);
    assert_eq!(whole(llama())?, [0, 3], "Llama 3");
    assert_eq!(whole(llama().with("tokenizer.ggml.add_bos_token", boolv(false)))?, [3]);
    let qwen = llama().with("tokenizer.ggml.pre", textv("qwen2"));
    assert_eq!(whole(qwen.clone())?, [3]);
    assert_eq!(whole(qwen.with("tokenizer.ggml.add_bos_token", boolv(true)))?, [0, 3]);
    assert_eq!(Tokenizer::load(&llama().source()?)?.encode("ab")?, [3], "templates write the beginning themselves");
    Ok(())
}
