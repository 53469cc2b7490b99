//! Tokens that are sampled on the device, compared with transformers' logits processors: each token that these allow
//! is drawn with its share, and no other token is drawn. `tests/golden/make_sampling.py` makes the fixture.
use secateur::Dtype;
use std::collections::HashMap;

use crate::common::*;
use pollster::block_on;
use secateur::device::ComputeDevice;
use secateur::expert::cache::{CacheShape, KvCache};
use secateur::expert::kernels::readback::{as_u32, read_u32};

use secateur::expert::kernels::{self, TopKSpec};
use secateur::expert::sampling::Sampler;
use secateur::sampling::Sampling;
use serde_json::Value;

/// Sequences that are sampled at once, each with its own seed.
const SEQS: usize = 64;
const ROUNDS: usize = 40;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sampling.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("part of the repository")).expect("JSON")
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn allowed(case: &Value) -> Vec<(u32, f64)> {
    case["allowed"].as_array().expect("a list").iter().map(numbers).map(|p| (p[0] as u32, p[1])).collect()
}

fn sampling(settings: &Value) -> Sampling {
    let of = |name: &str, default: f64| settings[name].as_f64().unwrap_or(default);
    Sampling {
        temperature: of("temperature", 1.0) as f32,
        top_k: of("top_k", 0.0) as u32,
        top_p: of("top_p", 1.0) as f32,
        min_p: of("min_p", 0.0) as f32,
        repetition_penalty: of("repetition_penalty", 1.0) as f32,
        ..Sampling::GREEDY
    }
}

/// How often each token is drawn in `SEQS · ROUNDS` first steps with different seeds.
fn draw(device: &ComputeDevice, logits: &[f32], prompt: &[u32], sampling: &Sampling) -> HashMap<u32, usize> {
    let vocab = logits.len();
    let shape = CacheShape { layers: 1, kv_heads: 1, head_dim: 8, dtype: Dtype::F32, seqs: SEQS, growth: 1 };
    let mut cache = KvCache::new(shape, device);
    let mut sampler = Sampler::new(vocab, &mut cache, device);
    let all: Vec<usize> = (0..SEQS).collect();
    let logits = kernels::f32_tensor(logits.repeat(SEQS), [SEQS, vocab], &device.burn);
    let mut drawn = HashMap::new();
    for round in 0..ROUNDS {
        for seq in 0..SEQS {
            sampler.set(&mut cache, seq, sampling, (round * SEQS + seq) as u64, prompt);
        }
        sampler.sample(&logits, &mut cache, &all, 0);
        let words = as_u32(&block_on(cache.read_state()).expect("readable")[0]);
        for seq in 0..SEQS {
            let step = cache.sequence(seq).step;
            let id = cache.ids(&words, seq, step - 1, step).expect("finite")[0];
            *drawn.entry(id).or_default() += 1;
        }
    }
    drawn
}

/// Pearson's chi-square over the allowed tokens, in standard deviations from its mean. Tokens with fewer than five
/// expected draws are taken together. Panics on a token that is not allowed.
fn deviation(drawn: &HashMap<u32, usize>, allowed: &[(u32, f64)]) -> Result<f64, String> {
    let total: usize = drawn.values().sum();
    if let Some(id) = drawn.keys().find(|id| allowed.iter().all(|(a, _)| a != *id)) {
        return Err(format!("token {id} was drawn and is not allowed"));
    }
    let mut bins = vec![];
    let mut rest = (0.0, 0.0);
    for (id, p) in allowed {
        let bin = (p * total as f64, *drawn.get(id).unwrap_or(&0) as f64);
        if bin.0 >= 5.0 { bins.push(bin) } else { rest = (rest.0 + bin.0, rest.1 + bin.1) }
    }
    if rest.0 > 0.0 {
        bins.push(rest);
    }
    let freedom = bins.len() as f64 - 1.0;
    let chi: f64 = bins.iter().map(|(e, o)| (o - e).powi(2) / e).sum();
    Ok(if freedom == 0.0 { 0.0 } else { (chi - freedom) / (2.0 * freedom).sqrt() })
}

#[test]
fn draws_follow_transformers() {
    let _one = beside_others();
    let fixture = fixture();
    let logits: Vec<f32> = numbers(&fixture["logits"]).iter().map(|v| *v as f32).collect();
    let prompt: Vec<u32> = numbers(&fixture["prompt"]).iter().map(|v| *v as u32).collect();
    let cases = fixture["cases"].as_array().expect("a list");
    let mut ran = 0;
    for device in two() {
        for case in cases {
            let allowed = allowed(case);
            let settings = sampling(&case["settings"]);
            let drawn = draw(device, &logits, &prompt, &settings);
            let off = deviation(&drawn, &allowed).unwrap_or_else(|e| panic!("{}: {settings:?}: {e}", device.info.name));
            println!("{}: {settings:?}: {} tokens allowed, {off:+.2} deviations", device.info.name, allowed.len());
            // The seeds are fixed, so the result is fixed too. A wrong temperature or order would be off by dozens.
            assert!(off < 4.0, "{}: {settings:?} is off by {off} deviations", device.info.name);
            ran += 1;
        }
        // This tests the check: it refuses the draws of one setting for any other setting.
        let drawn = draw(device, &logits, &prompt, &sampling(&cases[0]["settings"]));
        for other in &cases[1..] {
            assert!(deviation(&drawn, &allowed(other)).map_or(true, |off| off > 10.0), "{} passes", other["settings"]);
        }
    }
    assert_eq!(ran, two().len() * cases.len());
}

/// Candidates of whole vocabularies, compared with a plain sort: the highest logit first, and the lowest id first
/// among equal logits, of which there are many.
#[test]
fn candidates_are_the_first_of_a_plain_sort() {
    let _one = beside_others();
    for device in two() {
        for (vocab, merges) in [(8192, false), (20_011, true), (151_936, true)] {
            let shape = CacheShape { layers: 1, kv_heads: 1, head_dim: 8, dtype: Dtype::F32, seqs: 2, growth: 1 };
            let mut cache = KvCache::new(shape, device);
            let map = cache.select(&[1, 0]);
            // Steps of 1/64 between -16 and 16: thousands of values for hundreds of thousands of tokens.
            let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 21) as f32 / 64.0 - 16.0;
            let logits: Vec<f32> = (0..2 * vocab).map(value).collect();
            let seen_words = vocab.div_ceil(32);
            let seen = kernels::u32_tensor(vec![0; 2 * seen_words], &device.burn);
            let k = secateur::sampling::MOST_CANDIDATES;
            let spec = TopKSpec { count: vocab, n: 2, k, merge: false, row_seq_offset: map, seen_words };
            let on_device = kernels::f32_tensor(logits.clone(), [2, vocab], &device.burn);
            let (mut lists, _) = kernels::top_k(&on_device, cache.state(), &seen, spec);
            assert_eq!(spec.merging().is_some(), merges);
            if let Some(merging) = spec.merging() {
                lists = kernels::top_k_merge(&lists, cache.state(), &seen, merging);
            }
            let found = as_u32(&block_on(read_u32(&[&lists])).expect("readable")[0]);
            assert_eq!(found.len(), 2 * 2 * k);
            for (row, found) in logits.chunks(vocab).zip(found.chunks(2 * k)) {
                let mut sorted: Vec<usize> = (0..vocab).collect();
                sorted.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
                let values: Vec<f32> = found[..k].iter().map(|bits| f32::from_bits(*bits)).collect();
                let ids: Vec<usize> = found[k..].iter().map(|id| *id as usize).collect();
                assert_eq!(ids, sorted[..k], "{vocab} tokens on {}", device.info.name);
                assert!(ids.iter().zip(values).all(|(id, value)| row[*id] == value), "{vocab} tokens");
                assert!(sorted.windows(2).take(k).any(|w| row[w[0]] == row[w[1]]), "no ties among them");
            }
        }
    }
}
