//! GGUF files: the values that are read from them, and every way in which a header can be wrong. Most files are built
//! here byte by byte. Files that the gguf package wrote, with golden results, are in `tests/golden`; real tokenizers
//! are in `../shared/data` (see `common/files.rs`).
//!
//! A counting allocator checks the promise of the reader: it never allocates what a header claims before it has found
//! that the file is large enough.
use crate::common::files::{assert_says, message, real, report, vectors};
use crate::common::memory::largest_allocation;
use secateur::Dtype;
use secateur::expert::model::config::{Architecture, GenerationDefaults, ModelConfig, RopeScaling};
use secateur::expert::text::{ChatTemplate, Message, RenderOptions, Tokenizer};
use secateur::expert::weights::{ModelSource, Weights};
use secateur::sampling::Sampling;
use secateur::{Error, ErrorKind};
use serde_json::Value;
use std::path::{Path, PathBuf};

mod sentencepiece;
pub(crate) mod split;

type Failure = Box<dyn std::error::Error>;
type Outcome = Result<(), Failure>;

// ------------------------------------------------------------------------------------------------ files made by hand

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A metadata value, preceded by its type.
fn u32v(value: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), value.to_le_bytes()].concat()
}

fn f32v(value: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub fn textv(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(value)].concat()
}

fn listv(kind: u32, values: &[Vec<u8>]) -> Vec<u8> {
    let head = [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &(values.len() as u64).to_le_bytes()].concat();
    [head, values.concat()].concat()
}

fn textsv(values: &[&str]) -> Vec<u8> {
    listv(8, &values.iter().map(|value| text(value)).collect::<Vec<_>>())
}

/// A tensor: its name, its sizes innermost first, its type, its bytes.
type Tensor = (String, Vec<u64>, u32, Vec<u8>);

#[derive(Clone, Default)]
pub struct File {
    pairs: Vec<(String, Vec<u8>)>,
    tensors: Vec<Tensor>,
}

impl File {
    pub fn with(mut self, key: &str, value: Vec<u8>) -> Self {
        self.pairs.retain(|(known, _)| known != key);
        self.pairs.push((key.to_string(), value));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.pairs.retain(|(known, _)| known != key);
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.retain(|tensor| tensor.0 != name);
        self.tensors.push((name.to_string(), dims.to_vec(), kind, bytes));
        self
    }

    pub fn f32s(self, name: &str, dims: &[u64], values: impl Iterator<Item = f32>) -> Self {
        let bytes = values.take(dims.iter().product::<u64>() as usize).flat_map(f32::to_le_bytes).collect();
        self.tensor(name, dims, 0, bytes)
    }

    /// The length of the header without padding, and the bytes of the whole file.
    fn bytes(&self) -> (usize, Vec<u8>) {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            out.extend(text(key));
            out.extend(value);
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, dims, kind, bytes) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        let header = out.len();
        out.resize(header.next_multiple_of(32), 0);
        out.extend(data);
        (header, out)
    }

    pub fn source(&self) -> Result<ModelSource, Error> {
        ModelSource::gguf_file("model.gguf", self.bytes().1)
    }

    fn config(&self) -> Result<ModelConfig, Error> {
        ModelConfig::load(&self.source()?)
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::load(&self.source()?)
    }
}

/// A file of this architecture with this number of bytes of weights, which cannot be run.
pub(crate) fn of_architecture(name: &str, bytes: usize) -> Vec<u8> {
    let file = llama().with("general.architecture", textv(name));
    file.tensor("filler", &[bytes as u64], 24, vec![0; bytes]).bytes().1
}

/// A Llama whose tokenizer splits text by this rule, with this number of bytes that nothing needs.
pub(crate) fn with_rule(name: &str, bytes: usize) -> Vec<u8> {
    let file = llama().with("tokenizer.ggml.pre", textv(name));
    file.tensor("filler", &[bytes as u64], 24, vec![0; bytes]).bytes().1
}

/// A Llama with one layer, a hidden size of 16, two heads of width 8, one KV head and a vocabulary of 6 tokens.
fn llama() -> File {
    let ramp = |from: usize| (from..).map(|i| i as f32);
    let mut file = File::default()
        .with("general.architecture", textv("llama"))
        .with("llama.context_length", u32v(128))
        .with("llama.embedding_length", u32v(16))
        .with("llama.block_count", u32v(1))
        .with("llama.feed_forward_length", u32v(24))
        .with("llama.attention.head_count", u32v(2))
        .with("llama.attention.head_count_kv", u32v(1))
        .with("llama.attention.layer_norm_rms_epsilon", f32v(1e-5))
        .with("llama.rope.freq_base", f32v(500_000.0))
        .with("llama.rope.dimension_count", u32v(8))
        .with("tokenizer.ggml.model", textv("gpt2"))
        .with("tokenizer.ggml.pre", textv("llama-bpe"))
        .with("tokenizer.ggml.tokens", textsv(&["a", "b", "Ġ", "ab", "<|eot_id|>", "<think>"]))
        .with("tokenizer.ggml.token_type", listv(5, &[1i32, 1, 1, 1, 3, 4].map(|t| t.to_le_bytes().to_vec())))
        .with("tokenizer.ggml.merges", textsv(&["a b"]))
        .with("tokenizer.ggml.bos_token_id", u32v(0))
        .with("tokenizer.ggml.eos_token_id", u32v(1))
        .with("tokenizer.chat_template", textv("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"))
        .f32s("token_embd.weight", &[16, 6], ramp(0))
        .f32s("output_norm.weight", &[16], ramp(1))
        .f32s("rope_freqs.weight", &[4], ramp(1));
    for (name, dims) in [
        ("attn_norm", &[16][..]),
        ("ffn_norm", &[16]),
        ("attn_q", &[16, 16]),
        ("attn_k", &[16, 8]),
        ("attn_v", &[16, 8]),
        ("attn_output", &[16, 16]),
        ("ffn_gate", &[16, 24]),
        ("ffn_up", &[16, 24]),
        ("ffn_down", &[24, 16]),
    ] {
        file = file.f32s(&format!("blk.0.{name}.weight"), dims, ramp(0));
    }
    file
}

#[test]
fn tensors_and_configuration_are_those_of_a_checkpoint() -> Outcome {
    let source = llama().source()?;
    let config = ModelConfig::load(&source)?;
    assert_eq!((config.architecture, config.hidden_size, config.head_dim), (Architecture::Llama, 16, 8));
    assert_eq!((config.rope_theta, config.rms_norm_eps), (500_000.0, 1e-5), "as a person would write them");
    assert_eq!(config.rope_scaling, RopeScaling::Factors(vec![1.0, 2.0, 3.0, 4.0]));
    assert!(config.tie_word_embeddings, "the file has no output matrix");
    assert!(!config.attention_bias, "the file has no biases");
    assert!(!config.qk_norm, "a Llama has no norms of heads");
    assert_eq!(config.eos_token_ids, [1, 4], "the one that is named, and <|eot_id|>");
    assert_eq!((config.vocab_size, config.max_position_embeddings), (6, 128));

    let weights = Weights::open(&source)?;
    assert_eq!(weights.names().len(), 12);
    assert_eq!(weights.vector("model.norm.weight", 16)?[15], 16.0);
    assert_eq!(weights.matrix("model.embed_tokens.weight", 6, 16)?.to_f32()[17], 17.0);
    assert_eq!(weights.matrix("model.layers.0.mlp.down_proj.weight", 16, 24)?.to_f32()[24], 24.0, "row 1");
    // The file stores the rows of q and k in pairs: 0 4 1 5 2 6 3 7 of each head.
    let first = |name: &str, rows| Ok::<_, Error>(weights.matrix(name, rows, 16)?.to_f32());
    let q = first("model.layers.0.self_attn.q_proj.weight", 16)?;
    let rows: Vec<usize> = q.chunks(16).map(|row| row[0] as usize / 16).collect();
    assert_eq!(rows, [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]);
    assert_eq!(first("model.layers.0.self_attn.k_proj.weight", 8)?[16], 32.0);
    assert_eq!(first("model.layers.0.self_attn.v_proj.weight", 8)?[16], 16.0, "values are not rotated");
    let message = message(weights.matrix("model.layers.0.self_attn.q_proj.weight", 8, 32));
    assert_says(&message, &["wrong shape", "model.gguf: blk.0.attn_q.weight", "[8, 32]", "[16, 16]"]);

    let biased = llama().f32s("blk.0.attn_q.bias", &[16], (0..).map(|i| i as f32));
    let weights = Weights::open(&biased.source()?)?;
    assert_eq!(weights.vector("model.layers.0.self_attn.q_proj.bias", 16)?[..5], [0.0, 2.0, 4.0, 6.0, 1.0]);
    assert!(biased.config()?.attention_bias);
    let untied = llama().f32s("output.weight", &[16, 6], (0..).map(|i| i as f32));
    assert!(!untied.config()?.tie_word_embeddings);
    Ok(())
}

#[test]
fn tokenizer_and_template_are_rebuilt() -> Outcome {
    let source = llama().source()?;
    let tokenizer = Tokenizer::load(&source)?;
    assert_eq!(tokenizer.encode("ab a<think>b<|eot_id|>")?, [3, 2, 0, 5, 1, 4]);
    assert_eq!(tokenizer.decode(&[3, 2, 0, 5, 1, 4], true)?, "ab a<think>b");
    assert!(tokenizer.is_special(4) && !tokenizer.is_special(5));
    let prompt = ChatTemplate::load(&source)?.render(&[Message::user("Hi")], &RenderOptions::default())?;
    assert_eq!(prompt.text, "aHib");
    Ok(())
}

/// Whether merges may cross from a small to a capital letter, and from digit to digit, by the rules of transformers;
/// whether a word that is a token skips the merges; and whether a text begins with a token of its own.
#[test]
fn rules_split_words_and_digits() -> Outcome {
    let tokens = ["a", "B", "1", "aB", "11", "111", "a1", "aa"];
    let (one_word, two_words) = (&[3][..], &[0, 1][..]);
    let (single, threes, all) = (&[2, 2, 2, 2][..], &[5, 2][..], &[4, 4][..]);
    let (whole, merged) = (&[7][..], &[0, 0][..]);
    for (names, camel, digits, token, begins) in [
        ("llama-bpe llama3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", one_word, threes, whole, true),
        ("smaug-bpe dbrx glm4 chatglm-bpe", one_word, threes, merged, false),
        ("minicpm5", one_word, threes, whole, false),
        ("qwen2 deepseek-r1-qwen qwen35 kormo megrez stablelm2 hunyuan grok-2", one_word, single, merged, false),
        ("seed-coder bailingmoe llada-moe deepseek-coder", one_word, single, merged, false),
        ("deepseek-v3 hunyuan-dense joyai-llm", one_word, threes, merged, false),
        ("deepseek-llm", one_word, all, merged, false),
        ("tekken", two_words, single, whole, true),
        ("gpt-4o llama4 kanana2 minimax-m2", two_words, threes, merged, false),
        ("smollm starcoder refact command-r exaone minerva-7b", one_word, single, merged, false),
        ("gpt-2 phi-2 gigachat a.x-4.0 mellum olmo trillion exaone4", one_word, all, merged, false),
    ] {
        for rule in names.split(' ') {
            let tokenizer = llama()
                .with("tokenizer.ggml.pre", textv(rule))
                .with("tokenizer.ggml.tokens", textsv(&tokens))
                .with("tokenizer.ggml.token_type", listv(5, &[1i32; 8].map(|t| t.to_le_bytes().to_vec())))
                .with("tokenizer.ggml.merges", textsv(&["a B", "1 1", "11 1", "a 1"]))
                .with("tokenizer.ggml.bos_token_id", u32v(1))
                .tokenizer()?;
            assert_eq!(tokenizer.encode("aB")?, camel, "{rule}");
            assert_eq!(tokenizer.encode("1111")?, digits, "{rule}");
            let apart: &[u32] = &[0, 2];
            assert_eq!(tokenizer.encode("a1")?, apart, "{rule}");
            assert_eq!(tokenizer.encode("aa")?, token, "{rule}");
            assert_eq!(tokenizer.encode_whole("a")?.len(), if begins { 2 } else { 1 }, "{rule}");
        }
    }
    Ok(())
}

/// A Mistral model in a file of llama.cpp, where it has the name of Llama: heads narrower together than the stream.
#[test]
fn heads_may_be_narrower_than_the_stream() -> Outcome {
    let config = llama()
        .with("llama.attention.key_length", u32v(4))
        .with("llama.attention.value_length", u32v(4))
        .with("llama.rope.dimension_count", u32v(4))
        .f32s("rope_freqs.weight", &[2], [1.0, 1.0].into_iter())
        .config()?;
    assert_eq!((config.head_dim, config.q_size(), config.hidden_size), (4, 8, 16));
    Ok(())
}

#[test]
fn what_the_metadata_cannot_mean_is_refused_by_name() {
    let factors = |values: &[f32]| llama().f32s("rope_freqs.weight", &[values.len() as u64], values.iter().copied());
    let long = "x".repeat(2000);
    let cases = [
        (llama().without("general.architecture"), vec!["does not name the architecture", "general.architecture"]),
        (
            llama().with("general.architecture", textv("gemma3")),
            vec!["architecture gemma3 is not supported", "qwen2, qwen3, qwen3moe, llama, mistral3, smollm3 or phi3"],
        ),
        (llama().with("general.architecture", u32v(1)), vec!["a metadata value has the wrong type", "a text", "1"]),
        (llama().with("split.count", u32v(3)), vec!["only a part", "3 files", "part 1 of 3", "--merge"]),
        (llama().with("llama.expert_count", u32v(8)), vec!["mixture-of-experts", "8"]),
        (llama().without("llama.block_count"), vec!["model.gguf: llama.block_count", "no such metadata"]),
        (llama().with("llama.block_count", textv("one")), vec!["llama.block_count", "whole number", "a text"]),
        (llama().with("llama.block_count", u32v(0)), vec!["num_hidden_layers", "0"]),
        (
            llama().with("llama.attention.head_count_kv", listv(4, &[vec![1, 0, 0, 0]])),
            vec!["head_count_kv", "a list of 1 U32"],
        ),
        (llama().with("llama.attention.value_length", u32v(4)), vec!["several widths", "value_length", "8", "4"]),
        (llama().with("llama.rope.dimension_count", u32v(4)), vec!["partly rotated", "dimension_count", "8", "4"]),
        (llama().with("llama.rope.scaling.type", textv("longrope")), vec!["short_factor", "4 positive numbers"]),
        (
            llama().f32s("rope_factors_long.weight", &[4], [1.0; 4].into_iter()),
            vec!["only one of the two lists", "rope_factors_short.weight and", "rope_factors_long.weight"],
        ),
        (llama().f32s("blk.0.ffn_up.bias", &[24], [1.0; 24].into_iter()), vec!["biases", "blk.0.ffn_up.bias"]),
        (
            llama().with("llama.rope.scaling.type", textv("yarn")).with("llama.rope.scaling.factor", f32v(0.5)),
            vec!["factor", "0.5"],
        ),
        (
            llama().with("llama.rope.scaling.type", textv("linear")).with("llama.rope.scaling.factor", f32v(2.0)),
            vec!["two RoPE scalings", "rope_freqs.weight"],
        ),
        (factors(&[1.0, 2.0]), vec!["RoPE factors", "4 positive numbers", "2 numbers"]),
        (factors(&[1.0, 2.0, 0.0, 1.0]), vec!["RoPE factors", "positive"]),
        (factors(&[1.0, 2.0, f32::NAN, 1.0]), vec!["RoPE factors"]),
        (llama().with("llama.rope.freq_base", f32v(f32::INFINITY)), vec!["rope.freq_base", "a number", "inf"]),
        (llama().with("general.architecture", textv(&long)), vec!["is not supported"]),
    ];
    for (file, parts) in cases {
        assert_says(&message(file.config()), &[&["model.gguf"], &parts[..]].concat());
    }
    let window = |width| llama().with("llama.attention.sliding_window", u32v(width)).config().expect("a good file");
    assert_eq!([0, 128, 64].map(|width| window(width).sliding_window), [None, None, Some(64)]);
    assert_says(&message(window(64).context(Some(65))), &["sliding attention windows", "at most 64", "65"]);
    let text = [
        (llama().without("tokenizer.ggml.model"), vec!["no tokenizer", "`ids`"]),
        (
            llama().with("tokenizer.ggml.model", textv("bert")),
            vec!["type bert is not supported", "byte-level BPE", "SentencePiece", "`ids`"],
        ),
        (llama().with("tokenizer.ggml.pre", textv("kimi-k2")), vec!["rule kimi-k2", "llama-bpe", "`ids`"]),
        (llama().without("tokenizer.ggml.merges"), vec!["incomplete", "tokenizer.ggml.merges"]),
        (
            llama().with("tokenizer.ggml.tokens", textsv(&["a", "a", "b", "ab", "c", "d"])),
            vec!["same token twice", "\"a\""],
        ),
        (llama().with("tokenizer.ggml.tokens", textsv(&["a"])), vec!["contradicts itself", "1 token types", "6"]),
        (
            llama().with("tokenizer.ggml.tokens", listv(8, &[[&1u64.to_le_bytes()[..], &[0xff]].concat()])),
            vec!["not UTF-8"],
        ),
        (llama().with("tokenizer.ggml.merges", textsv(&["a z"])), vec!["the tokenizer cannot be read"]),
    ];
    for (file, parts) in text {
        assert_says(&message(file.tokenizer()), &[&["model.gguf"], &parts[..]].concat());
    }
    let bare = llama().without("tokenizer.chat_template").source().expect("a good file");
    assert_says(&message(ChatTemplate::load(&bare)), &["no chat template", "tokenizer.chat_template", "`raw`"]);
    // An element type that ggml has and secateur does not support.
    let quantized = llama().tensor("token_embd.weight", &[256, 6], 17, vec![0; 6 * 74]).source().expect("a good file");
    let refused =
        message(Weights::open(&quantized).and_then(|w| w.matrix("model.embed_tokens.weight", 6, 256).map(drop)));
    assert_says(&refused, &["not supported", "token_embd.weight", "Q2_K to Q6_K", "IQ2_XS", "Q4_K_M"]);
}

#[test]
fn scalings_are_read() -> Outcome {
    let yarn = llama()
        .with("llama.rope.scaling.type", textv("yarn"))
        .with("llama.rope.scaling.factor", f32v(4.0))
        .with("llama.rope.scaling.original_context_length", u32v(32));
    let plain = |mut file: File| {
        file.tensors.retain(|tensor| tensor.0 != "rope_freqs.weight");
        file
    };
    let scaling = |attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        attention_factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings: 32,
        truncate: true,
    };
    let own = 0.1 * 4f64.ln() + 1.0;
    assert_eq!(plain(yarn.clone()).config()?.rope_scaling, scaling(own));
    let halved = yarn.with("llama.rope.scaling.attn_factor", f32v(0.5));
    assert_eq!(plain(halved).config()?.rope_scaling, scaling(own * 0.5), "llama.cpp multiplies");
    let linear = llama().with("llama.rope.scaling.type", textv("linear")).with("llama.rope.scaling.factor", f32v(2.0));
    assert_eq!(plain(linear).config()?.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    let none = llama().with("llama.rope.scaling.type", textv("none"));
    assert_eq!(plain(none).config()?.rope_scaling, RopeScaling::None);
    Ok(())
}

/// `GenerationDefaults` has the sampling that the authors wrote into the file, and a run would use it.
#[test]
fn the_sampling_of_the_file_is_read() -> Outcome {
    let sampling = |file: File| Ok::<_, Failure>(file.config()?.generation);
    let set = llama()
        .with("general.sampling.temp", f32v(0.6))
        .with("general.sampling.top_k", u32v(20))
        .with("general.sampling.top_p", f32v(0.95))
        .with("general.sampling.min_p", f32v(0.05))
        .with("general.sampling.penalty_repeat", f32v(1.1));
    let expected = GenerationDefaults {
        do_sample: Some(true),
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
    };
    assert_eq!(sampling(set.clone())?, expected);
    let used = Sampling::from_defaults(&expected);
    assert_eq!((used.temperature, used.top_k, used.top_p), (0.6, 20, 0.95));
    assert_eq!((used.min_p, used.repetition_penalty), (0.05, 1.1));

    // A temperature of 0 asks for the most likely token; without a temperature the file asks for nothing.
    let greedy = sampling(set.clone().with("general.sampling.temp", f32v(0.0)))?;
    assert_eq!(greedy.do_sample, Some(false));
    assert!(Sampling::from_defaults(&greedy).is_greedy());
    assert_eq!(sampling(set.clone().without("general.sampling.temp"))?.do_sample, None);
    assert_eq!(sampling(llama())?, GenerationDefaults::default());

    // A negative top_k means no limit; a value that is out of range is ignored.
    let negative = [5u32.to_le_bytes(), (-1i32).to_le_bytes()].concat();
    assert_eq!(sampling(set.clone().with("general.sampling.top_k", negative))?.top_k, Some(0));
    assert_eq!(sampling(set.with("general.sampling.top_p", f32v(1.5)))?.top_p, None);
    Ok(())
}

// ---------------------------------------------------------------------------------------------------- hostile files

#[test]
fn lying_headers_are_refused_by_name() {
    let (header, good) = llama().bytes();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let tensor = |dims: &[u64], kind| llama().tensor("x", dims, kind, vec![0; 64]).bytes().1;
    let offset = |file: &mut Vec<u8>, at: usize, offset: u64| {
        file[at - 8..at].copy_from_slice(&offset.to_le_bytes());
        file.clone()
    };
    let huge = u64::MAX.to_le_bytes();
    let first_key = 24;
    let first_value = first_key + text("general.architecture").len();
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("empty", vec![], vec!["a file of the model is empty", "0 bytes"]),
        ("another format", b"PK\x03\x04 and more".to_vec(), vec!["not a GGUF file", "PK"]),
        ("magic alone", b"GGUF".to_vec(), vec!["reaches past the end", "4 bytes", "0 bytes", "download it again"]),
        (
            "version 1",
            patched(4, &1u32.to_le_bytes()),
            vec!["version of GGUF is not supported", "2 or 3", "1", "convert"],
        ),
        ("big-endian", patched(4, &3u32.to_be_bytes()), vec!["not supported", "big-endian"]),
        (
            "endless tensors",
            patched(8, &huge),
            vec!["announces more than the file can hold", "18446744073709551615 tensors"],
        ),
        ("endless pairs", patched(16, &huge), vec!["announces more", "18446744073709551615 key-value pairs"]),
        ("endless key", patched(first_key, &huge), vec!["reaches past the end", "18446744073709551615 bytes"]),
        ("long key", patched(first_key, &70_000u64.to_le_bytes()), vec!["reaches past the end", "70000"]),
        ("key that is no UTF-8", patched(first_key + 8, &[0xff]), vec!["invalid name", "UTF-8"]),
        (
            "unknown type",
            patched(first_value, &13u32.to_le_bytes()),
            vec!["unknown type", "0 to 12", "13", "general.architecture"],
        ),
        ("endless text", patched(first_value + 4, &huge), vec!["reaches past the end", "18446744073709551615"]),
        ("one pair too many", patched(16, &19u64.to_le_bytes()), vec!["GGUF"]),
        ("lists of lists", llama().with("x", listv(9, &[])).bytes().1, vec!["lists of lists", "x"]),
        (
            "endless list",
            llama().with("x", [&9u32.to_le_bytes()[..], &4u32.to_le_bytes(), &huge].concat()).bytes().1,
            vec!["announces more", "a list of 18446744073709551615 for x"],
        ),
        (
            "neither true nor false",
            llama().with("x", [&7u32.to_le_bytes()[..], &[2]].concat()).bytes().1,
            vec!["neither true nor false", "2"],
        ),
        (
            "a key twice",
            {
                let mut file = llama();
                file.pairs.push(file.pairs[0].clone());
                file.bytes().1
            },
            vec!["same key twice", "general.architecture"],
        ),
        ("no dimensions", tensor(&[], 0), vec!["dimensions", "1 to 4", "0 for x"]),
        ("five dimensions", tensor(&[1; 5], 0), vec!["dimensions", "5 for x"]),
        ("an empty dimension", tensor(&[4, 0], 0), vec!["sizes above 0", "0 for x"]),
        ("sizes that overflow", tensor(&[1 << 40, 1 << 40], 0), vec!["invalid shape", "model.gguf: x"]),
        ("bytes that overflow", tensor(&[1 << 62, 2], 0), vec!["invalid shape", "model.gguf: x"]),
        ("half a block", tensor(&[48], 8), vec!["whole blocks of 32 Q8_0", "[48]"]),
        ("an unknown element type", tensor(&[16], 4), vec!["unknown element type", "4 for x"]),
        ("more than there is", tensor(&[1 << 20], 0), vec!["reaches past the end", "model.gguf: x", "4194304 bytes"]),
        ("an offset of all ones", offset(&mut good.clone(), header, u64::MAX - 31), vec!["past the end", "ffn_down"]),
        ("an offset in between", offset(&mut good.clone(), header, 8), vec!["not aligned", "a multiple of 32", "8"]),
        ("two in one place", offset(&mut good.clone(), header, 0), vec!["overlap", "model.gguf"]),
        ("no alignment", llama().with("general.alignment", u32v(0)).bytes().1, vec!["alignment", "power of two", "0"]),
        (
            "endless alignment",
            llama().with("general.alignment", u32v(1 << 31)).bytes().1,
            vec!["alignment", "2147483648"],
        ),
        ("cut in the data", good[..good.len() - 1].to_vec(), vec!["past the end", "download it again"]),
        ("cut in the header", good[..header - 20].to_vec(), vec!["past the end", "download it again"]),
    ];
    for (name, bytes, parts) in cases {
        let size = bytes.len();
        let most = largest_allocation(|| {
            let said = message(ModelSource::gguf_file("model.gguf", bytes));
            assert_says(&said, &[&["model.gguf"], &parts[..]].concat());
        });
        assert!(most <= 4 * size + 4096, "{name}: {most} bytes at once for a file of {size}");
    }
}

/// For every damage to a header, the reader does not panic, does not allocate more than the size of the file
/// explains, and can read every file that it accepts.
#[test]
fn damaged_headers_never_panic() -> Outcome {
    let (header, good) = llama().bytes();
    let (mut accepted, mut refused) = (0, 0);
    let mut check = |bytes: Vec<u8>| {
        let size = bytes.len();
        let most = largest_allocation(|| match ModelSource::gguf_file("model.gguf", bytes) {
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::Model, "{error}");
            }
            Ok(source) => {
                accepted += 1;
                let weights = match Weights::open(&source) {
                    Ok(weights) => weights,
                    Err(error) => return assert_eq!(error.kind(), ErrorKind::Model, "{error}"),
                };
                for name in weights.names() {
                    let _ = weights.tensor(name).map(|tensor| (tensor.to_rows().map(|r| r.to_f32()), tensor.to_f32()));
                }
                for error in [ModelConfig::load(&source).err(), ChatTemplate::load(&source).err()] {
                    assert!(error.is_none_or(|e| e.kind() == ErrorKind::Model));
                }
            }
        });
        assert!(most <= 8 * size + (1 << 16), "{most} bytes at once for a file of {size}");
    };
    for at in 0..header {
        for byte in [0, 1, 2, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at].wrapping_add(1), b'a'] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            check(bytes);
        }
        check(good[..at].to_vec());
        // Eight bytes at once, to hit counts, lengths, sizes and offsets.
        for value in [0, 1, 1 << 31, 1 << 32, 1 << 61, u64::MAX / 4, u64::MAX] {
            let mut bytes = good.clone();
            let end = (at + 8).min(header);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
            check(bytes);
        }
    }
    println!("{accepted} damaged headers accepted, {refused} refused");
    assert!(accepted > 1000 && refused > 1000, "the damage must matter: {accepted} accepted, {refused} refused");
    Ok(())
}

/// Building a tokenizer from damaged metadata does not panic. This is slow, so only some positions are damaged.
#[test]
fn damaged_tokenizers_never_panic() -> Outcome {
    let (header, good) = llama().bytes();
    for at in (24..header).step_by(3) {
        for byte in [0, 0xff, good[at] ^ 1] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            if let Ok(source) = ModelSource::gguf_file("model.gguf", bytes)
                && let Ok(tokenizer) = Tokenizer::load(&source)
            {
                let ids = tokenizer.encode("ab a<think>").unwrap_or_default();
                let _ = tokenizer.decode(&ids, false);
            }
        }
    }
    Ok(())
}

// --------------------------------------------------------------------------------------- files of the gguf package

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn golden_files_load_whole() -> Outcome {
    for (name, types) in [
        ("gguf-qwen2-q8", vec![Dtype::Q8_0]),
        ("gguf-llama-q4", vec![Dtype::Q4_0, Dtype::Q8_0, Dtype::F16]),
        ("gguf-qwen3-f16", vec![Dtype::F16, Dtype::BF16, Dtype::F32]),
    ] {
        let source = ModelSource::open(golden(name).join("model.gguf"))?;
        let config = ModelConfig::load(&source)?;
        assert_eq!(config.eos_token_ids, [317, 315], "{name}");
        let weights = Weights::open(&source)?;
        let mut parameters = 0;
        for tensor in weights.names().map(|tensor| weights.tensor(tensor)) {
            let tensor = tensor?;
            let values = tensor.to_f32()?;
            assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| v.abs() > 1e-4), "{}", tensor.name);
            if tensor.shape.len() == 2 {
                assert!(types.contains(&tensor.packed_dtype()?), "{name}: {} is {}", tensor.name, tensor.stored);
                assert_eq!(tensor.to_rows()?.to_f32(), values, "{name}: {}", tensor.name);
            }
            if tensor.name != "rope_freqs.weight" {
                parameters += values.len() as u64;
            }
        }
        assert_eq!(config.parameters(), parameters, "{name}: no tensor is left over");
        for packing in types {
            let found = weights.names().filter_map(|n| weights.find(n)?.packed_dtype().ok()).any(|p| p == packing);
            assert!(found, "{name} has no {packing}");
        }

        let golden: Value = serde_json::from_slice(&std::fs::read(golden(name).join("golden.json"))?)?;
        let tokenizer = Tokenizer::load(&source)?;
        let messages: Vec<Message> = serde_json::from_value(golden["chat"]["messages"].clone())?;
        let prompt = ChatTemplate::load(&source)?.render(&messages, &RenderOptions::default())?;
        assert_eq!(Some(prompt.text.as_str()), golden["chat"]["text"].as_str());
        let encodings = golden["encodings"].as_array().ok_or("a list")?;
        for (text, ids) in encodings.iter().chain([&golden["chat"]]).map(|case| (&case["text"], &case["ids"])) {
            let text = text.as_str().ok_or("a text")?;
            assert_eq!(tokenizer.encode(text)?, serde_json::from_value::<Vec<u32>>(ids.clone())?, "{text}");
        }
        assert_eq!((tokenizer.think_ids().open, tokenizer.think_ids().close), (Some(318), Some(319)));
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------- real tokenizers

/// The metadata that llama.cpp's converter would make from a real `tokenizer.json`.
fn as_gguf(json: &Value, pre: &str) -> Result<File, Failure> {
    let vocab = json["model"]["vocab"].as_object().ok_or("a vocabulary")?;
    let added = json["added_tokens"].as_array().ok_or("added tokens")?;
    let mut tokens: Vec<(u64, &str, i32)> = vocab
        .iter()
        .map(|(token, id)| Ok((id.as_u64().ok_or("an id")?, token.as_str(), 1)))
        .collect::<Result<_, Failure>>()?;
    let added_tokens: Vec<(u64, &str, i32)> = added
        .iter()
        .map(|token| {
            let kind = if token["special"] == true { 3 } else { 4 };
            Ok((token["id"].as_u64().ok_or("an id")?, token["content"].as_str().ok_or("a text")?, kind))
        })
        .collect::<Result<_, Failure>>()?;
    tokens.retain(|(id, ..)| added_tokens.iter().all(|(added, ..)| added != id));
    tokens.extend(added_tokens);
    tokens.sort_unstable();
    assert!(tokens.iter().enumerate().all(|(i, (id, ..))| i as u64 == *id), "ids without holes");
    let merges = json["model"]["merges"].as_array().ok_or("merges")?;
    let merges: Vec<String> = merges
        .iter()
        .map(|merge| match merge {
            Value::String(merge) => Ok(merge.clone()),
            pair => Ok([&pair[0], &pair[1]].map(|part| part.as_str().unwrap_or_default()).join(" ")),
        })
        .collect::<Result<_, Failure>>()?;
    Ok(File::default()
        .with("tokenizer.ggml.model", textv("gpt2"))
        .with("tokenizer.ggml.pre", textv(pre))
        .with("tokenizer.ggml.tokens", textsv(&tokens.iter().map(|t| t.1).collect::<Vec<_>>()))
        .with(
            "tokenizer.ggml.token_type",
            listv(5, &tokens.iter().map(|t| t.2.to_le_bytes().to_vec()).collect::<Vec<_>>()),
        )
        .with("tokenizer.ggml.merges", textsv(&merges.iter().map(String::as_str).collect::<Vec<_>>())))
}

#[test]
fn real_tokenizers_survive_the_way_through_gguf() -> Outcome {
    for (folder, pre, name) in
        [("tokenizer-qwen3", "qwen2", "qwen2"), ("tokenizer-r1-distill-qwen", "deepseek-r1-qwen", "deepseek-r1-qwen")]
    {
        let (Some(at), Some(vectors_at)) = (real(folder), real("tokenizer-vectors")) else { continue };
        let bytes = std::fs::read(at.join("tokenizer.json"))?;
        let original = Tokenizer::from_bytes(&bytes, folder)?;
        let rebuilt = as_gguf(&serde_json::from_slice(&bytes)?, pre)?.tokenizer()?;
        let mut ran = 0;
        for (text, ids) in vectors(&vectors_at, name)? {
            assert_eq!(rebuilt.encode(&text)?, ids, "{folder}: {text:?}");
            assert_eq!(original.encode(&text)?, rebuilt.encode(&text)?);
            ran += 1;
        }
        assert_eq!(ran, 46, "{folder}");
        assert_eq!((original.think_ids(), original.vocab_size()), (rebuilt.think_ids(), rebuilt.vocab_size()));
        for id in 0..original.vocab_size() as u32 {
            assert_eq!(original.token_bytes(id), rebuilt.token_bytes(id), "{folder}: token {id}");
            assert_eq!(original.is_special(id), rebuilt.is_special(id), "{folder}: token {id}");
        }
        report!("ran: {folder} through GGUF, {ran} texts");
    }
    Ok(())
}

/// The metadata of Qwen3-MoE, and its layers without a router, of which the format says nothing else.
#[test]
fn experts_are_read_from_the_metadata() -> Outcome {
    let file = |pairs: &[(&str, Vec<u8>)]| {
        let mut file = llama().with("general.architecture", textv("qwen3moe"));
        for (key, value) in llama().pairs.iter().filter_map(|(key, value)| Some((key.strip_prefix("llama.")?, value))) {
            file = file.with(&format!("qwen3moe.{key}"), value.clone());
        }
        for (key, value) in [("expert_count", 4), ("expert_used_count", 2), ("expert_feed_forward_length", 8)] {
            file = file.with(&format!("qwen3moe.{key}"), u32v(value));
        }
        file = file.with("qwen3moe.block_count", u32v(2)).f32s(
            "blk.1.ffn_gate_inp.weight",
            &[16, 4],
            (0..).map(|i| i as f32),
        );
        pairs.iter().fold(file, |file, (key, value)| file.with(&format!("qwen3moe.{key}"), value.clone()))
    };
    let mixture = file(&[]).config()?.experts.ok_or("experts")?;
    assert_eq!((mixture.experts, mixture.experts_per_token, mixture.intermediate_size), (4, 2, 8));
    assert!(mixture.normalised, "as llama.cpp does");
    assert_eq!([mixture.has_experts(0), mixture.has_experts(1)], [false, true], "the first layer has no router");
    let shares = file(&[("expert_weights_norm", [7u32.to_le_bytes().to_vec(), vec![0]].concat())]);
    assert!(!shares.config()?.experts.ok_or("experts")?.normalised);
    for (key, value, parts) in [
        ("expert_shared_count", u32v(1), vec!["experts that every token shares", "1"]),
        ("expert_group_count", u32v(4), vec!["groups of experts", "4"]),
        ("expert_weights_scale", f32v(2.5), vec!["scaled results", "2.5"]),
        ("expert_gating_func", u32v(2), vec!["scoring_func", "softmax"]),
        ("expert_used_count", u32v(5), vec!["num_experts_per_tok", "at most num_experts, 4", "5"]),
    ] {
        assert_says(&message(file(&[(key, value)]).config()), &parts);
    }
    let without = file(&[]).without("qwen3moe.expert_used_count");
    assert_says(&message(without.config()), &["qwen3moe.expert_used_count", "no such metadata"]);
    Ok(())
}
