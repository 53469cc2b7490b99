//! The committed fixtures load whole.
use super::{Outcome, check_detokenizer};
use secateur::Dtype;
use secateur::Error;
use secateur::expert::model::config::ModelConfig;
use secateur::expert::text::{ChatTemplate, Message, RenderOptions, ThinkingState, Tokenizer};
use secateur::expert::weights::{ModelSource, Weights};
use std::path::Path;

/// The committed models that transformers wrote: every file of their directories is read, from the config to the chat
/// template.
#[test]
fn golden_models_load_whole() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, dtype, tied, eps, theta) in [
        ("qwen2-f32", Dtype::F32, true, 1e-6, 1e6),
        ("qwen2-f16", Dtype::F16, false, 1e-5, 1e4),
        ("qwen2-bf16", Dtype::BF16, true, 1e-3, 1e6),
        ("qwen3-f32", Dtype::F32, false, 1e-5, 1e6),
        ("qwen3-yarn-f16", Dtype::F16, true, 1e-6, 1e4),
        ("llama3-bf16", Dtype::BF16, true, 1e-5, 5e5),
        ("smollm3-bf16", Dtype::BF16, true, 1e-6, 5e6),
        ("mistral-f16", Dtype::F16, false, 1e-5, 1e9),
        ("phi3-long-f16", Dtype::F16, true, 1e-5, 1e4),
        ("qwen3moe-bf16", Dtype::BF16, true, 1e-6, 1e6),
    ] {
        let source = ModelSource::directory(folder.join(name))?;
        let config = ModelConfig::load(&source)?;
        assert_eq!((config.tie_word_embeddings, config.rms_norm_eps, config.rope_theta), (tied, eps, theta), "{name}");
        assert!(!config.eos_token_ids.is_empty());

        let weights = Weights::open(&source)?;
        let (hidden, q, kv) = (config.hidden_size, config.q_size(), config.kv_size());
        let bytes = std::cell::Cell::new(0);
        let count = |elements: usize| bytes.set(bytes.get() + dtype.stored_bytes(elements).expect("fits"));
        let matrix = |name: String, rows, cols| {
            let rows = weights.matrix(&name, rows, cols)?;
            assert_eq!(rows.dtype(), dtype);
            count(rows.rows() * rows.cols());
            let values = rows.to_f32();
            assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| v.abs() > 1e-4), "{name}");
            Ok::<_, Error>(())
        };
        matrix("model.embed_tokens.weight".into(), config.vocab_size, hidden)?;
        if !tied {
            matrix("lm_head.weight".into(), config.vocab_size, hidden)?;
        }
        for layer in 0..config.num_layers {
            let inter = config.intermediate_size;
            let named =
                |parts: &[(&str, usize)]| parts.iter().map(|(part, n)| (part.to_string(), *n)).collect::<Vec<_>>();
            let mut projections = match config.fused_projections {
                true => named(&[("self_attn.qkv_proj", q + 2 * kv)]),
                false => named(&[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]),
            };
            let mut outputs = named(&[("self_attn.o_proj", q)]);
            match config.experts.as_ref().filter(|mixture| mixture.has_experts(layer)) {
                Some(mixture) => {
                    projections.extend(named(&[("mlp.gate", mixture.experts)]));
                    for expert in 0..mixture.experts {
                        let name = |what: &str| (format!("mlp.experts.{expert}.{what}"), mixture.intermediate_size);
                        projections.extend([name("gate_proj"), name("up_proj")]);
                        outputs.push(name("down_proj"));
                    }
                }
                None => {
                    projections.extend(match config.fused_projections {
                        true => named(&[("mlp.gate_up_proj", 2 * inter)]),
                        false => named(&[("mlp.gate_proj", inter), ("mlp.up_proj", inter)]),
                    });
                    outputs.extend(named(&[("mlp.down_proj", inter)]));
                }
            }
            let outputs = outputs.into_iter().map(|(part, cols)| (part, hidden, cols));
            for (part, rows, cols) in projections.into_iter().map(|(part, rows)| (part, rows, hidden)).chain(outputs) {
                matrix(format!("model.layers.{layer}.{part}.weight"), rows, cols)?;
            }
            let biases = [("self_attn.q_proj.bias", q), ("self_attn.k_proj.bias", kv), ("self_attn.v_proj.bias", kv)];
            let norms = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"].map(|name| (name, config.head_dim));
            let both = [("input_layernorm.weight", hidden), ("post_attention_layernorm.weight", hidden)];
            let vectors = both
                .into_iter()
                .chain(biases.into_iter().filter(|_| config.attention_bias))
                .chain([("self_attn.o_proj.bias", hidden)].into_iter().filter(|_| config.output_bias))
                .chain(norms.into_iter().filter(|_| config.qk_norm));
            for (part, len) in vectors {
                count(weights.vector(&format!("model.layers.{layer}.{part}"), len)?.len());
            }
        }
        count(weights.vector("model.norm.weight", hidden)?.len());
        assert_eq!(weights.total_bytes(), bytes.get() as u64, "{name}: no tensor is left over");
        let parameters = config.parameters() as usize;
        assert_eq!(dtype.stored_bytes(parameters), Some(bytes.get()), "{name}: every parameter counts");

        let golden = source.find_json("golden.json")?.ok_or("golden.json")?;
        let tokenizer = Tokenizer::load(&source)?;
        let messages: Vec<Message> = serde_json::from_value(golden["chat"]["messages"].clone())?;
        let prompt = ChatTemplate::load(&source)?.render(&messages, &RenderOptions::default())?;
        assert_eq!(Some(prompt.text.as_str()), golden["chat"]["text"].as_str());
        assert_eq!(
            (prompt.thinking, &prompt.text[prompt.generation_start..]),
            (ThinkingState::Open, "<|im_start|>assistant\n<think>\n")
        );
        let encodings = golden["encodings"].as_array().ok_or("a list")?;
        assert!(encodings.len() >= 5);
        for (text, ids) in encodings.iter().chain([&golden["chat"]]).map(|case| (&case["text"], &case["ids"])) {
            let text = text.as_str().ok_or("a text")?;
            let ids: Vec<u32> = serde_json::from_value(ids.clone())?;
            assert_eq!(tokenizer.encode(text)?, ids, "{text}");
            check_detokenizer(&tokenizer, &ids)?;
        }
        assert_eq!((tokenizer.think_ids().open, tokenizer.think_ids().close), (Some(318), Some(319)));
    }
    Ok(())
}
