//! Where fuzzing begins: inputs for each target, made from the fixtures of the repository, and the inputs that once
//! failed (`regressions/TARGET/`).
use std::fs;
use std::path::{Path, PathBuf};

/// The inputs to begin with for the target `name`, in a fixed order. `root` is the folder of the repository.
///
/// # Panics
/// If a fixture is missing.
pub fn seeds(root: &Path, name: &str) -> Vec<Vec<u8>> {
    let seeds = match name {
        "safetensors" => safetensors(),
        "gguf" => gguf(root),
        "tokenizer" => tokenizers(root),
        "config" => configs(root),
        "template" => templates(root),
        "trace" => traces(root),
        "hub" => HUB.iter().map(|answer| answer.as_bytes().to_vec()).collect(),
        "values" => VALUES.iter().map(|values| values.as_bytes().to_vec()).collect(),
        "request" => requests(root),
        "bodies" => BODIES.iter().map(|body| body.as_bytes().to_vec()).collect(),
        "calls" => calls(),
        other => panic!("there are no seeds for {other}"),
    };
    assert!(!seeds.is_empty(), "{name} begins with nothing");
    seeds.into_iter().chain(regressions(root, name)).collect()
}

/// The inputs that once failed.
fn regressions(root: &Path, name: &str) -> Vec<Vec<u8>> {
    let folder = root.join("fuzz/regressions").join(name);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folders of models below `tests/golden`, and the built-in model.
fn folders(root: &Path) -> Vec<PathBuf> {
    let names =
        ["llama3-bf16", "mistral-f16", "phi3-long-f16", "qwen2-f16", "qwen3-f32", "qwen3-yarn-f16", "smollm3-bf16"];
    let golden = names.iter().map(|name| root.join("tests/golden").join(name));
    golden.chain([root.join("models/tiny-reasoner")]).collect()
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&0)
}

fn safetensors() -> Vec<Vec<u8>> {
    let headers: [(u8, &str); 5] = [
        (1, r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#),
        (
            4,
            r#"{"__metadata__":{"format":"pt"},"model.embed_tokens.weight":{"dtype":"BF16","shape":[4,4],"data_offsets":[0,32]},"model.layers.0.input_layernorm.weight":{"dtype":"F16","shape":[16],"data_offsets":[32,64]}}"#,
        ),
        (
            1,
            r#"{"e":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"x":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#,
        ),
        (
            2,
            r#"{"embed_tokens.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"layers.0.mlp.down_proj.weight":{"dtype":"F8_E4M3","shape":[16],"data_offsets":[16,32]}}"#,
        ),
        (1, r#"{"metadata":{"total_size":16},"weight_map":{"a":"a.safetensors","b":"b-00001-of-00002.safetensors"}}"#),
    ];
    let whole = |(mode, header): &(u8, &str)| {
        let length = (header.len() as u64).to_le_bytes();
        [&[0][..], &length, header.as_bytes(), &vec![0; usize::from(*mode) * 16]].concat()
    };
    let made = |(mode, header): &(u8, &str)| [&[*mode][..], header.as_bytes()].concat();
    headers.iter().flat_map(|header| [whole(header), made(header)]).collect()
}

/// Small GGUF files of every architecture, and the headers of the fixtures.
fn gguf(root: &Path) -> Vec<Vec<u8>> {
    let fixtures = ["gguf-llama-q4", "gguf-ministral3-q8", "gguf-phi3-q8", "gguf-qwen2-q8", "gguf-qwen3-f16"];
    let header = |fixture: &&str| {
        let file = read(&root.join("tests/golden").join(fixture).join("model.gguf"));
        let header = header_bytes(&file);
        // A byte can say how many zeros stand for the tensors of a fixture.
        [&[(file.len() - header).div_ceil(ZEROS) as u8][..], &file[..header]].concat()
    };
    ARCHITECTURES.iter().map(|name| small_model(name).seed()).chain(fixtures.iter().map(header)).collect()
}

/// The files of tokenizers: of fixtures, and small ones in GGUF files.
fn tokenizers(root: &Path) -> Vec<Vec<u8>> {
    let files = |folder: PathBuf| {
        let file = |name: &str| fs::read(folder.join(name)).unwrap_or_default();
        joined(&[&file("tokenizer.json"), &file("tokenizer_config.json"), b"{\"bos_token\": \"<s>\"}"])
    };
    let few = folders(root).into_iter().filter(|f| f.ends_with("tiny-reasoner") || f.ends_with("qwen2-f16"));
    let small = ["qwen2", "llama-bpe", "tekken", "gpt-4o", "smollm", "default"].map(|rule| byte_level(rule).seed());
    let small = small.into_iter().chain([sentencepiece().seed(), SMALL_TOKENIZER.as_bytes().to_vec()]);
    small.chain(few.map(files)).collect()
}

/// The zeros behind a header that the targets add for each count of the first byte.
const ZEROS: usize = 2048;

/// The architectures as GGUF files name them.
const ARCHITECTURES: [&str; 7] = ["qwen2", "qwen3", "qwen3moe", "llama", "mistral3", "smollm3", "phi3"];

/// A GGUF file that is being written: its metadata, its tensors, and the bytes of the first ones. Zeros stand for the
/// others.
#[derive(Default)]
struct Gguf {
    pairs: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, u32, Vec<u64>)>,
    data: Vec<u8>,
}

/// Types of tensors, with the values and the bytes of a block.
const BLOCKS: [(u32, u64, u64); 15] = [
    (0, 1, 4),
    (1, 1, 2),
    (30, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (20, 32, 18),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (23, 256, 136),
];
const F32: u32 = 0;

impl Gguf {
    fn pair(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.pairs.push((key.into(), value));
        self
    }

    /// A tensor, whose innermost dimension comes first.
    fn tensor(&mut self, name: &str, kind: u32, dimensions: &[u64]) {
        self.tensors.push((name.into(), kind, dimensions.to_vec()));
    }

    /// A tensor of ones in f32. Such tensors come first.
    fn ones(&mut self, name: &str, values: u64) {
        self.tensor(name, F32, &[values]);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.data.extend(std::iter::repeat_n(1f32.to_le_bytes(), values as usize).flatten());
    }

    /// The file, after the count of the zeros that stand for its tensors.
    fn seed(&self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &3u32.to_le_bytes()].concat();
        file.extend([self.tensors.len() as u64, self.pairs.len() as u64].map(u64::to_le_bytes).concat());
        for (key, value) in &self.pairs {
            file.extend([&words(key)[..], value].concat());
        }
        let mut offset = 0u64;
        for (name, kind, dimensions) in &self.tensors {
            file.extend(words(name));
            file.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|size| file.extend(size.to_le_bytes()));
            file.extend(kind.to_le_bytes());
            file.extend(offset.to_le_bytes());
            let (_, values, bytes) = BLOCKS.into_iter().find(|(known, ..)| known == kind).expect("a type");
            offset = (offset + dimensions.iter().product::<u64>() / values * bytes).next_multiple_of(32);
        }
        if !self.tensors.is_empty() {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(&self.data);
        }
        [&[(offset as usize).div_ceil(ZEROS) as u8][..], &file].concat()
    }
}

/// A text of GGUF without its type.
fn words(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Values of GGUF, each with its type in front.
fn count(value: u64) -> Vec<u8> {
    [&10u32.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

fn real(value: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), value.to_le_bytes()].concat()
}

fn flag(value: bool) -> Vec<u8> {
    [&7u32.to_le_bytes()[..], &[value.into()]].concat()
}

fn text(value: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &words(value)].concat()
}

fn list(kind: u32, values: &[Vec<u8>]) -> Vec<u8> {
    let head = [9, kind].map(u32::to_le_bytes).concat();
    [&head[..], &(values.len() as u64).to_le_bytes(), &values.concat()].concat()
}

/// A model with one layer whose matrices have all types.
fn small_model(architecture: &str) -> Gguf {
    let [h, heads, kv_heads, d, inner, experts, tokens] = [32u64, 2, 1, 16, 32, 2, 8];
    let (q, kv) = (heads * d, kv_heads * d);
    let key = |name: &str| format!("{architecture}.{name}");
    let mut file = Gguf::default()
        .pair("general.architecture", text(architecture))
        .pair("general.sampling.temp", real(0.6))
        .pair(key("embedding_length"), count(h))
        .pair(key("feed_forward_length"), count(inner))
        .pair(key("block_count"), count(1))
        .pair(key("context_length"), count(64))
        .pair(key("attention.head_count"), count(heads))
        .pair(key("attention.head_count_kv"), count(kv_heads))
        .pair(key("attention.key_length"), count(d))
        .pair(key("attention.layer_norm_rms_epsilon"), real(1e-5))
        .pair(key("rope.freq_base"), real(1e4))
        .pair("tokenizer.ggml.eos_token_id", count(2));
    match architecture {
        "llama" => file.ones("rope_freqs.weight", d / 2),
        "phi3" => {
            file = file.pair(key("rope.scaling.original_context_length"), count(32));
            file.ones("rope_factors_short.weight", d / 2);
            file.ones("rope_factors_long.weight", d / 2);
        }
        "mistral3" => {
            file = file
                .pair(key("rope.scaling.type"), text("yarn"))
                .pair(key("rope.scaling.factor"), real(2.0))
                .pair(key("rope.scaling.original_context_length"), count(32))
                .pair(key("rope.scaling.yarn_log_multiplier"), real(1.0))
                .pair(key("attention.temperature_scale"), real(0.1));
        }
        "qwen3moe" => {
            file = file
                .pair(key("expert_count"), count(experts))
                .pair(key("expert_used_count"), count(1))
                .pair(key("expert_feed_forward_length"), count(inner));
        }
        _ => {}
    }
    for norm in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
        file.tensor(norm, F32, &[h]);
    }
    match architecture {
        "qwen2" => [("q", q), ("k", kv), ("v", kv)]
            .iter()
            .for_each(|(part, rows)| file.tensor(&format!("blk.0.attn_{part}.bias"), F32, &[*rows])),
        "qwen3" | "qwen3moe" => {
            ["q", "k"].iter().for_each(|part| file.tensor(&format!("blk.0.attn_{part}_norm.weight"), F32, &[d]));
        }
        _ => {}
    }
    let mut matrices = vec![("token_embd.weight", vec![h, tokens]), ("blk.0.attn_output.weight", vec![q, h])];
    matrices.extend(match architecture {
        "phi3" => vec![("blk.0.attn_qkv.weight", vec![h, q + 2 * kv])],
        _ => vec![
            ("blk.0.attn_q.weight", vec![h, q]),
            ("blk.0.attn_k.weight", vec![h, kv]),
            ("blk.0.attn_v.weight", vec![h, kv]),
        ],
    });
    matrices.extend(match architecture {
        "phi3" => vec![("blk.0.ffn_up.weight", vec![h, 2 * inner]), ("blk.0.ffn_down.weight", vec![inner, h])],
        "qwen3moe" => vec![
            ("blk.0.ffn_gate_inp.weight", vec![h, experts]),
            ("blk.0.ffn_gate_exps.weight", vec![h, inner, experts]),
            ("blk.0.ffn_up_exps.weight", vec![h, inner, experts]),
            ("blk.0.ffn_down_exps.weight", vec![inner, h, experts]),
        ],
        _ => vec![
            ("blk.0.ffn_gate.weight", vec![h, inner]),
            ("blk.0.ffn_up.weight", vec![h, inner]),
            ("blk.0.ffn_down.weight", vec![inner, h]),
        ],
    });
    let small_blocks = BLOCKS.iter().filter(|(_, values, _)| *values <= 32).cycle();
    for ((name, dimensions), (kind, ..)) in matrices.iter().zip(small_blocks) {
        file.tensor(name, *kind, dimensions);
    }
    // Of the large blocks, one each.
    for (kind, values, _) in BLOCKS.iter().filter(|(_, values, _)| *values > 32) {
        file.tensor(&format!("block.{kind}"), *kind, &[*values]);
    }
    file
}

/// A byte-level tokenizer that splits texts by this rule, and a chat template.
fn byte_level(rule: &str) -> Gguf {
    let tokens = ["a", "b", "1", "\u{120}", "ab", "\u{120}ab", "</think>", "<s>"].map(words);
    let types = [1u32, 1, 1, 1, 1, 1, 4, 3].map(|kind| kind.to_le_bytes().to_vec());
    Gguf::default()
        .pair("tokenizer.ggml.model", text("gpt2"))
        .pair("tokenizer.ggml.pre", text(rule))
        .pair("tokenizer.ggml.tokens", list(8, &tokens))
        .pair("tokenizer.ggml.token_type", list(5, &types))
        .pair("tokenizer.ggml.merges", list(8, &["a b", "\u{120} ab"].map(words)))
        .pair("tokenizer.ggml.bos_token_id", count(7))
        .pair("tokenizer.ggml.add_bos_token", flag(true))
        .pair("tokenizer.chat_template", text("{% for m in messages %}{{ m.content }}</think>{% endfor %}"))
}

/// A tokenizer of SentencePiece.
fn sentencepiece() -> Gguf {
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u{2581}", "a", "b", "ab", "\u{2581}ab", "</think>"].map(words);
    let types = [2u32, 3, 3, 6, 1, 1, 1, 1, 1, 4].map(|kind| kind.to_le_bytes().to_vec());
    let scores = [0f32, 0.0, 0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0, 0.0].map(|score| score.to_le_bytes().to_vec());
    Gguf::default()
        .pair("tokenizer.ggml.model", text("llama"))
        .pair("tokenizer.ggml.tokens", list(8, &tokens))
        .pair("tokenizer.ggml.token_type", list(5, &types))
        .pair("tokenizer.ggml.scores", list(6, &scores))
        .pair("tokenizer.ggml.bos_token_id", count(1))
        .pair("tokenizer.ggml.unknown_token_id", count(0))
        .pair("tokenizer.ggml.add_space_prefix", flag(true))
}

/// The length of the header of a GGUF file: up to the end of the description of its last tensor.
fn header_bytes(file: &[u8]) -> usize {
    // The data begin at the first multiple of 32 after the header, and every fixture has a tensor with this name last
    // or near the end. Behind the name are the number of dimensions, the dimensions, the type and the offset.
    let mut last = 0;
    for name in
        [&b"output.weight"[..], b"output_norm.weight", b"ffn_norm.weight", b"ffn_down.weight", b"token_embd.weight"]
    {
        let Some(at) = file.windows(name.len()).rposition(|window| window == name) else { continue };
        let dimensions = file[at + name.len()..][0];
        last = last.max(at + name.len() + 4 + usize::from(dimensions) * 8 + 4 + 8);
    }
    last
}

fn configs(root: &Path) -> Vec<Vec<u8>> {
    let choice = choice(root).to_string().into_bytes();
    let files = |folder: PathBuf| {
        let file = |name: &str| fs::read(folder.join(name)).unwrap_or_default();
        joined(&[&file("config.json"), &file("generation_config.json"), &choice])
    };
    folders(root).into_iter().map(files).collect()
}

/// A choice of layers with the settings of the trace among the fixtures.
fn choice(root: &Path) -> serde_json::Value {
    let trace = read(&root.join("tests/fixtures/trace.json"));
    let serde_json::Value::Object(mut conditions) = serde_json::from_slice(&trace).expect("JSON") else {
        panic!("a trace")
    };
    conditions.retain(|_, value| !value.is_array() && !value.is_object() || value.get("temperature").is_some());
    let more = serde_json::json!({
        "weights": "blake3 00", "kv": "f16", "context": null, "sequences": 1, "questions": 2, "questions_hash": "00",
    });
    conditions.extend(more.as_object().expect("an object").clone());
    let row = serde_json::json!({
        "layers": "0-1", "correct": 2, "gained": 1, "lost": 0, "truncated": 0, "peak_cached": 63.5,
    });
    serde_json::json!({
        "version": 3, "layers": "0-1", "distinguishable": true, "settings": conditions, "pruned": 1, "full": row, "rows": [row],
    })
}

fn templates(root: &Path) -> Vec<Vec<u8>> {
    let named =
        ["magistral.jinja", "phi4.jinja", "smollm3.jinja"].map(|name| root.join("tests/fixtures/templates").join(name));
    let files = named.iter().map(|path| joined(&[&read(path), "What is 12 + 30?".as_bytes()]));
    files.chain(TEMPLATES.iter().map(|text| text.as_bytes().to_vec())).collect()
}

fn traces(root: &Path) -> Vec<Vec<u8>> {
    let page = String::from_utf8(read(&root.join("docs/trace.md"))).expect("a document");
    let example = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let fixture = read(&root.join("tests/fixtures/trace.json"));
    // The fixture has everything that a trace can have, but a hundred times of each.
    let mut small: serde_json::Value = serde_json::from_slice(&fixture).expect("JSON");
    small["tokens"].as_array_mut().expect("tokens").truncate(48);
    small["probes"].as_array_mut().expect("probes").truncate(1);
    vec![example.as_bytes().to_vec(), small.to_string().into_bytes(), fixture]
}

/// Answers with calls of tools, each with the lengths of its pieces and the schema of a tool.
fn calls() -> Vec<Vec<u8>> {
    let seed = |answer: &&str| joined(&[&[3, 1, 9], SCHEMA.as_bytes(), answer.as_bytes()]);
    ANSWERS.iter().map(seed).collect()
}

fn requests(root: &Path) -> Vec<Vec<u8>> {
    let text = read(&root.join("tests/fixtures/requests.json"));
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let requests: Vec<String> =
        json.as_array().expect("a list").iter().map(|case| case["request"].to_string()).collect();
    let pairs = requests.windows(2).map(|pair| joined(&[pair[0].as_bytes(), pair[1].as_bytes()]));
    requests.iter().map(|request| request.as_bytes().to_vec()).chain(pairs).collect()
}

const TEMPLATES: [&str; 5] = [
    "{% for a in range(9000) %}{% for b in range(9000) %}{% for c in range(9000) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.n = ns.n + 1 %}[{{ ns.n }}] {{ m['content'] | trim }}{% endif %}{% endfor %}{{ strftime_now('%d %b %Y') }}",
    "{{ messages[-1].content.split('</think>')[-1].lstrip('\\n').rsplit(' ', 1)[0].removeprefix('a').replace('b', 'c', 1).title() }}{% generation %}{{ 'x' * 3 }}{% endgeneration %}",
    "{% macro f(x) %}{% if x %}{{ x | tojson(indent=2) }}{% else %}{{ raise_exception('no') }}{% endif %}{% endmacro %}{{ f({'a': [1, 2.5, none, true]}) }}{{ range(10) | list | length }}",
];

const SMALL_TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":3,"content":"</think>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"</think>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"</think>":{"id":"</think>","ids":[3],"tokens":["</think>"]}}},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}"#;

const HUB: [&str; 7] = [
    "200\n\n{\"sha\": \"0123456789012345678901234567890123456789\", \"siblings\": [{\"rfilename\": \"config.json\"}, {\"rfilename\": \"x-Q8_0-00001-of-00002.gguf\"}, {\"rfilename\": \"a/x-Q4_K_M.gguf\"}]}",
    "302\nx-linked-etag: \"0123456789012345678901234567890123456789012345678901234567890123\"\nx-linked-size: 123\nlocation: https://cdn.example/x\n\n",
    "200\netag: W/\"abc\"\ncontent-length: 12\n\n{\"weight_map\": {\"a\": \"model-00001-of-00002.safetensors\"}}",
    "307\nlocation: /api/models/new/name\n\n",
    "401\nx-error-code: GatedRepo\nx-error-message: Invalid credentials in Authorization header\n\n",
    "429\nretry-after: 5\n\n",
    "503\nretry-after: Wed, 21 Oct 2015 07:28:00 GMT\ncontent-range: bytes 5-\n\n<html>",
];

const VALUES: [&str; 3] = [
    "tokens:512\nratio:0.5\nscore-sum:0.02\nshare:0.25\nthink-clearly\nshared\n0-3,7\nall\nper-head\ncompact\nkeywords\nheads\nq4\nf16\njson\nschema:{\"type\":\"object\",\"properties\":{\"a\":{\"multipleOf\":0.5}}}\nregex:[0-9]+\nchoice:yes|no",
    "Qwen/Qwen3-0.6B\nhttps://huggingface.co/a/b-GGUF/blob/main/BF16/b-00001-of-00002.gguf\na/b@refs/pr/1\nhf.co/a/b:Q8_0\nratio:1e-9\ntokens:18446744073709551616\n0-18446744073709551615",
    "{\"question\": \"What is 12 + 30?\", \"answer\": \"42\"}\n{\"problem\": \"x\", \"answer\": 1}\nWait, so x = 2.\n\nAlternatively: 设 x = 3.5。那么 x 大于 3！",
];

const BODIES: [&str; 8] = [
    r#"{"input":"Hi","instructions":"Be brief.","max_output_tokens":64,"reasoning":{"effort":"none"},"text":{"format":{"type":"json_schema","name":"x","schema":{"type":"object"}},"verbosity":"low"},"include":["message.output_text.logprobs"],"top_logprobs":2,"metadata":{"a":"b"},"user":"u","truncation":"disabled","stream":true}"#,
    r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]},{"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"So"}]},{"type":"function_call","call_id":"call_1","name":"f","arguments":"{\"a\": 1}"},{"type":"function_call_output","call_id":"call_1","output":"2"},{"type":"message","role":"assistant","content":[{"type":"output_text","text":"A"}]}],"tools":[{"type":"function","name":"f","description":"F","parameters":{"type":"object"}}],"tool_choice":{"type":"function","name":"f"}}"#,
    r#"{"model":"m","messages":[{"role":"developer","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"Hi"}]},{"role":"assistant","content":null,"reasoning_content":"So","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},{"role":"tool","tool_call_id":"call_1","content":"2"}],"tools":[{"type":"function","function":{"name":"f","description":"F","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],"tool_choice":"auto","parallel_tool_calls":false}"#,
    r#"{"messages":[{"role":"user","content":"Hi","name":"x"}],"stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":64,"n":2,"stop":["a","b"],"temperature":0.6,"top_p":0.95,"top_k":20,"min_p":0.1,"seed":-1,"logprobs":true,"top_logprobs":3,"chat_template_kwargs":{"enable_thinking":false,"effort":"low"}}"#,
    r##"{"messages":[{"role":"user","content":"Hi"}],"reasoning_effort":"none","reasoning":{"effort":"low","max_tokens":9,"enabled":true,"exclude":true},"thinking_token_budget":100,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"type":"integer","multipleOf":2},"b":{"$ref":"#/$defs/b"}},"required":["a"],"$defs":{"b":{"anyOf":[{"type":"string","pattern":"^a+$"},{"enum":[1,null]}]}}}}},"logit_bias":{},"secateur":{"policy":"think-clearly","budget":"tokens:512","window":16,"probe_every":40,"scope":"shared","layers":"0-3","normalise":"per-head","positions":"compact","steps":"auto","max_answer_tokens":9,"draft":3,"attention":"layers","events":"run","trace":true}}"##,
    r#"{"prompt":"So","max_tokens":5,"echo":true,"logprobs":2,"stop":"\n","stop_token_ids":[2],"include_stop_str_in_output":true,"ignore_eos":true,"repetition_penalty":1.1,"frequency_penalty":0.5,"presence_penalty":-0.5,"suffix":"","best_of":1}"#,
    r#"{"prompt":["a","b"],"n":2,"tools":[],"chat_template_kwargs":{},"guided_choice":["yes","no"]}"#,
    r#"{"prompt":[[1,2],[3]],"seed":7,"structured_outputs":{"regex":"[0-9]+"},"logit_bias":{"1":5}}"#,
];

const SCHEMA: &str = r#"{"type":"object","properties":{"code":{"type":"string"},"n":{"type":["integer","null"]},"o":{"anyOf":[{"type":"string"},{"type":"number"}]}}}"#;

const ANSWERS: [&str; 11] = [
    "One.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, -2.5e3, {\"b\": null}], \"c\": \"\\u00e9\n\"}}\n</tool_call>\n<tool_call>{\"arguments\": {}, \"name\": \"run\"}}</tool_call> Two.",
    "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": true}\"}</tool_call><tool_call>{\"name\": \"f\", \"arguments\": {a: 1}}</tool_call>",
    "<tool_call>\n<function=run>\n<parameter=code>\nprint(\"1 < 2\")\n</parameter>\n<parameter=n>\n12\n</parameter>\n<parameter=o>\nTrue\n</parameter>\n</function>\n</tool_call>",
    "<function=f><parameter=x>{\"a\": 1}</parameter></function><function=run><parameter=n>None</parameter>",
    "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"n\": \"10\"}}; {\"name\": \"run\", \"parameters\": {}}",
    "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"n\": 5}} and more",
    "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": false}, \"id\": \"VvvODy9mT\"}, {\"name\": \"run\", \"arguments\": {}}] Done.",
    "One. [TOOL_CALLS]f[ARGS]{\"a\": \"b\"}[TOOL_CALLS]run[CALL_ID]abc123XYZ[ARGS]{}",
    "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b",
    "<tool_call><function=run><parameter=code>x",
    "A set {1, 2}, <tool_call>no call</tool_call> [TOOL_CALLS]unknown[ARGS]{}",
];
