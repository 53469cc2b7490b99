//! tokenizer.json and the text of ids: small tokenizers made here, and real ones.
use super::{Failure, Outcome, check_detokenizer};
use crate::common::files::{assert_says, message, real, report, vectors};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use secateur::Error;
use secateur::ModelSource;
use secateur::expert::text::{Detokenizer, Tokenizer};
use serde_json::{Map, Value, json};

/// A byte-level BPE tokenizer with all single bytes, two merges and two tags.
fn byte_tokenizer() -> Result<Tokenizer, Failure> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut shifted = 0x100..;
    let letter = |byte: u8| if printable(byte) { u32::from(byte) } else { shifted.next().unwrap_or(0) };
    let letters: Vec<String> = (0..=255).map(letter).filter_map(char::from_u32).map(String::from).collect();
    let mut vocab: Map<String, Value> = letters.iter().enumerate().map(|(id, c)| (c.clone(), json!(id))).collect();
    // The first two bytes of an emoji are one token, which ends inside the character.
    let half = format!("{}{}", letters[0xF0], letters[0x9F]);
    vocab.insert(half, json!(256));
    let json = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [
            {"id": 257, "content": "<think>", "special": false, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            {"id": 258, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": [[letters[0xF0], letters[0x9F]]]},
    });
    Ok(Tokenizer::from_bytes(&serde_json::to_vec(&json)?, "small")?)
}

#[test]
fn an_emoji_split_over_tokens_appears_whole() -> Outcome {
    let tokenizer = byte_tokenizer()?;
    // 🦙 is F0 9F A6 99: one token of two bytes, then two of one.
    let ids = tokenizer.encode("a🦙b")?;
    assert_eq!(ids, [u32::from(b'a'), 256, 0xA6, 0x99, u32::from(b'b')], "nothing is cut to the file's max_length");
    let mut text = Detokenizer::new(&tokenizer, false);
    let pieces: Vec<String> = ids.iter().map(|&id| text.push(id).map(str::to_string)).collect::<Result<_, _>>()?;
    assert_eq!(pieces, ["a", "", "", "🦙", "b"]);
    assert_eq!(text.text(), "a🦙b");
    assert_eq!(text.token_ends(), [1, 3, 4, 5, 6]);
    assert!(!text.ends_inside_char());
    Ok(())
}

/// The splitting rules of real tokenizers fail silently on a million blanks, so the ids would be wrong.
#[test]
fn an_endless_run_of_blanks_is_refused() -> Outcome {
    let tokenizer = byte_tokenizer()?;
    let said = message(tokenizer.encode(&format!("a{}b", " ".repeat(900_001))));
    assert_says(&said, &["a run of white space", "at most 900000", "900001"]);
    assert_eq!(tokenizer.encode(&"a b ".repeat(300_000))?.len(), 1_200_000);
    Ok(())
}

#[test]
fn ends_before_the_character_is_whole_lie_past_the_text() -> Outcome {
    let mut text = Detokenizer::new(&byte_tokenizer()?, false);
    for id in [u32::from(b'a'), 256, 0xA6] {
        text.push(id)?;
    }
    assert_eq!((text.text(), text.token_ends()), ("a", &[1, 3, 4][..]));
    assert!(text.ends_inside_char());
    assert_eq!(text.finish(), "\u{FFFD}");
    assert_eq!((text.text(), text.token_ends()), ("a\u{FFFD}", &[1, 4, 4][..]));
    assert!(!text.ends_inside_char());
    assert_eq!(text.push(u32::from(b'z'))?, "z");
    Ok(())
}

#[test]
fn bytes_that_are_no_text_become_replacements_and_move_the_ends() -> Outcome {
    let tokenizer = byte_tokenizer()?;
    let mut text = Detokenizer::new(&tokenizer, false);
    // FF is never valid, an 'x' interrupts F0 9F, and 80 continues no character.
    let ids = [0xFF, 256, u32::from(b'x'), 0x80, u32::from(b'y')];
    for id in ids {
        text.push(id)?;
    }
    assert_eq!(text.text(), "\u{FFFD}\u{FFFD}x\u{FFFD}y");
    assert_eq!(text.token_ends(), [3, 6, 7, 10, 11]);
    assert_eq!(text.text(), tokenizer.decode(&ids, false)?);
    Ok(())
}

#[test]
fn special_tokens_are_kept_or_have_no_bytes() -> Outcome {
    let tokenizer = byte_tokenizer()?;
    let ids = tokenizer.encode("<think>a<|end|>b")?;
    assert_eq!(ids, [257, u32::from(b'a'), 258, u32::from(b'b')]);
    for (skip, expected, ends) in [(false, "<think>a<|end|>b", [7, 8, 15, 16]), (true, "<think>ab", [7, 8, 8, 9])] {
        let mut text = Detokenizer::new(&tokenizer, skip);
        for &id in &ids {
            text.push(id)?;
        }
        assert_eq!((text.text(), text.token_ends()), (expected, &ends[..]));
    }
    assert_eq!((tokenizer.think_ids().open, tokenizer.think_ids().close), (Some(257), None), "</think> is split");
    assert_eq!(tokenizer.vocab_size(), 259);
    // The vocabulary of a model may be padded beyond that of its tokenizer.
    let mut text = Detokenizer::new(&tokenizer, false);
    assert_eq!(text.push(5000)?, "");
    assert_eq!(text.token_ends(), [0]);
    Ok(())
}

/// A tokenizer like those of SentencePiece models, with ▁ for spaces and byte fallback: the text of a token depends
/// on the token before it.
#[test]
fn sentencepiece_vocabularies_go_by_difference() -> Outcome {
    let mut vocab = vec![json!(["<unk>", 0.0]), json!(["▁Hello", -1.0]), json!(["▁world", -1.0]), json!(["!", -1.0])];
    vocab.extend((0..=255).map(|byte| json!([format!("<0x{byte:02X}>"), -5.0])));
    let byte = |byte: u8| 4 + u32::from(byte);
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": true},
    });
    let tokenizer = Tokenizer::from_bytes(&serde_json::to_vec(&json)?, "small")?;
    let mut text = Detokenizer::new(&tokenizer, false);
    let ids = [1, 2, byte(0xC3), byte(0xA9), 3, byte(0xFF), 2];
    let pieces: Vec<String> = ids.iter().map(|&id| text.push(id).map(str::to_string)).collect::<Result<_, _>>()?;
    assert_eq!(pieces, ["Hello", " world", "", "é", "!", "\u{FFFD}", " world"]);
    assert_eq!(text.token_ends(), [5, 11, 12, 13, 14, 17, 23]);
    assert_eq!(text.text(), tokenizer.decode(&ids, false)?);
    Ok(())
}

#[test]
fn a_malformed_tokenizer_is_refused() {
    for bytes in [&b""[..], b"{", b"[]", b"{\"model\":{}}", b"{\"version\":\"1.0\",\"model\":{\"type\":\"Nonsense\"}}"]
    {
        assert_says(&message(Tokenizer::from_bytes(bytes, "here")), &["the tokenizer cannot be read", "here"]);
    }
}

fn real_tokenizer(name: &str) -> Result<Option<Tokenizer>, Error> {
    real(name).map(|path| Tokenizer::load(&ModelSource::directory(path)?)).transpose()
}

const TOKENIZERS: [(&str, &str); 3] =
    [("tokenizer-qwen2.5", "qwen2"), ("tokenizer-qwen3", "qwen2"), ("tokenizer-r1-distill-qwen", "deepseek-r1-qwen")];

#[test]
fn real_tokenizers_reproduce_the_vectors_and_round_trip() -> Outcome {
    for (folder, name) in TOKENIZERS {
        let Some(tokenizer) = real_tokenizer(folder)? else { continue };
        let Some(vectors_at) = real("tokenizer-vectors") else { continue };
        let vectors = vectors(&vectors_at, name)?;
        for (text, expected) in &vectors {
            let ids = tokenizer.encode(text)?;
            assert_eq!(&ids, expected, "{folder}: {text:?}");
            check_detokenizer(&tokenizer, &ids)?;
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default()).collect();
            assert_eq!(String::from_utf8(bytes)?, tokenizer.decode(&ids, false)?, "{folder}");
        }
        assert_eq!(vectors.len(), 46);
        report!("ran: {folder}: {} of 46 texts", vectors.len());
    }
    Ok(())
}

#[test]
fn random_ids_detokenize_as_a_whole_decoding_does() -> Outcome {
    let small = byte_tokenizer()?;
    let mut tokenizers = vec![(small, 259)];
    for (folder, _) in TOKENIZERS {
        tokenizers.extend(real_tokenizer(folder)?.map(|tokenizer| (tokenizer, 152_000)));
    }
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    let mut random = |n: u64| generator.next_u64() % n;
    for (tokenizer, vocab) in tokenizers {
        for _ in 0..300 {
            // The low ids of these vocabularies are single bytes. They are drawn more often, so that characters are
            // split.
            let id = |random: &mut dyn FnMut(u64) -> u64| if random(3) > 0 { random(256) } else { random(vocab) };
            let ids: Vec<u32> = (0..random(40)).map(|_| id(&mut random) as u32).collect();
            check_detokenizer(&tokenizer, &ids)?;
        }
    }
    Ok(())
}

#[test]
fn real_tokenizers_know_their_thinking_tags() -> Outcome {
    for (folder, expected) in [
        ("tokenizer-qwen2.5", (None, None)),
        ("tokenizer-qwen3", (Some(151_667), Some(151_668))),
        ("tokenizer-r1-distill-qwen", (Some(151_648), Some(151_649))),
    ] {
        let Some(tokenizer) = real_tokenizer(folder)? else { continue };
        let ids = tokenizer.think_ids();
        assert_eq!((ids.open, ids.close), expected, "{folder}");
        assert_eq!(tokenizer.encode("hello")?.len(), 1, "{folder}: no BOS is added");
        report!("ran: {folder}: thinking tags");
    }
    Ok(())
}

#[test]
fn a_real_trace_round_trips() -> Outcome {
    let Some(tokenizer) = real_tokenizer("tokenizer-r1-distill-qwen")? else { return Ok(()) };
    let Some(folder) = real("traces-r1-math500") else { return Ok(()) };
    let traces = std::fs::read_to_string(folder.join("pilot_math500_qwen7b.jsonl"))?;
    let mut ran = 0;
    for line in traces.lines().take(5) {
        let trace: Value = serde_json::from_str(line)?;
        let longest = trace.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_str()).max_by_key(|s| s.len());
        let text = longest.ok_or("a text")?;
        let ids = tokenizer.encode(text)?;
        let mut detokenizer = Detokenizer::new(&tokenizer, false);
        for &id in &ids {
            detokenizer.push(id)?;
        }
        assert_eq!(detokenizer.text(), text);
        assert_eq!(detokenizer.token_ends().last(), Some(&text.len()));
        ran += 1;
    }
    assert_eq!(ran, 5);
    report!("ran: {ran} real traces");
    Ok(())
}
