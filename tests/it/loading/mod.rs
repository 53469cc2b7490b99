//! Loading a model: every way in which its files can be wrong, with the error that names the problem; and real
//! tokenizers and templates.
use secateur::expert::text::{Detokenizer, Tokenizer};

mod architectures;
mod config;
mod golden;
mod safetensors;
mod template;
mod tokenizer;

type Failure = Box<dyn std::error::Error>;

type Outcome = Result<(), Failure>;

/// Pushing ids one by one gives the same text as decoding them all at once, in whole characters and with consistent
/// ends.
fn check_detokenizer(tokenizer: &Tokenizer, ids: &[u32]) -> Outcome {
    let mut text = Detokenizer::new(tokenizer, false);
    let mut emitted = String::new();
    let mut settled: Vec<usize> = Vec::new();
    for &id in ids {
        emitted.push_str(text.push(id)?);
        let (ends, len) = (text.token_ends(), text.text().len());
        assert!(ends.is_sorted() && ends.last().is_some_and(|&end| end <= len + 3));
        assert_eq!(ends.last().is_some_and(|&end| end > len), text.ends_inside_char());
        assert!(ends.starts_with(&settled), "an end that lies in the text is final");
        settled = ends.iter().copied().take_while(|&end| end <= len).collect();
    }
    emitted.push_str(text.finish());
    assert_eq!(emitted, text.text());
    assert_eq!(emitted, tokenizer.decode(ids, false)?);
    assert_eq!(text.token_ends().len(), ids.len());
    assert_eq!(text.token_ends().last().copied().unwrap_or(0), emitted.len());
    Ok(())
}
