//! The configs of SmolLM3, Mistral, Phi-3 and Qwen3-MoE. The sizes are those of published models, and the expected
//! numbers of parameters are those that the authors count.
use super::Outcome;
use crate::common::directory;
use crate::common::files::{assert_says, message};
use secateur::engine::{LoadOptions, PreparedModel, Request};
use secateur::expert::model::config::{Architecture, ModelConfig, RopeScaling};
use secateur::expert::model::rope::{frequencies, table};
use secateur::expert::text::{
    ChatTemplate, Detokenizer, Message, RenderOptions, ThinkTags, ThinkingState, Tokenizer, thinking_state,
};
use secateur::{Error, ModelSource};
use serde_json::{Map, Value, json};

fn parse(config: &Value) -> Result<ModelConfig, Error> {
    ModelConfig::parse(config, "config.json", None)
}

fn with(mut config: Value, changes: Value) -> Value {
    if let (Value::Object(config), Value::Object(changes)) = (&mut config, changes) {
        config.extend(changes);
    }
    config
}

fn without(mut config: Value, name: &str) -> Value {
    config.as_object_mut().map(|config| config.remove(name));
    config
}

/// SmolLM3-3B.
fn smollm3() -> Value {
    json!({
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
        "vocab_size": 128256, "max_position_embeddings": 65536, "rms_norm_eps": 1e-6, "rope_theta": 5e6,
        "rope_scaling": null, "sliding_window": null, "use_sliding_window": false, "attention_bias": false,
        "mlp_bias": false, "no_rope_layer_interval": 4, "eos_token_id": 128012,
        "no_rope_layers": (1..=36).map(|layer| u32::from(layer % 4 != 0)).collect::<Vec<_>>(),
    })
}

/// Magistral-Small-2506.
fn magistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": 5120,
        "intermediate_size": 32768, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 131072, "max_position_embeddings": 40960, "rms_norm_eps": 1e-5,
        "rope_theta": 1e9, "sliding_window": null, "tie_word_embeddings": false, "eos_token_id": 2,
    })
}

/// Phi-4-mini-reasoning, with other factors.
fn phi4_mini() -> Value {
    json!({
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
        "vocab_size": 200064, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-5, "rope_theta": 10000, "sliding_window": 262144,
        "tie_word_embeddings": true, "eos_token_id": [200020, 199999], "attention_bias": false,
        "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![4.0; 48]},
    })
}

#[test]
fn smollm3_rotates_three_layers_of_four() -> Outcome {
    let config = parse(&smollm3())?;
    assert_eq!((config.architecture, config.parameters()), (Architecture::SmolLM3, 3_075_098_624));
    assert!(config.tie_word_embeddings, "the default of this architecture");
    assert!(!config.attention_bias && !config.qk_norm);
    let rotated: Vec<bool> = (1..=36).map(|layer| layer % 4 != 0).collect();
    let layers = |config: &ModelConfig| (0..36).map(|i| config.rotated_layers.contains(i)).collect::<Vec<_>>();
    assert_eq!(layers(&config), rotated);
    assert_eq!((config.rotated_layers.unrotated(36), parse(&magistral())?.rotated_layers.unrotated(40)), (9, 0));
    let default = parse(&without(without(smollm3(), "no_rope_layers"), "no_rope_layer_interval"))?;
    assert_eq!(layers(&default), rotated, "every fourth");
    assert_eq!([3, 4, 36].map(|layers| default.rotated_layers.unrotated(layers)), [0, 1, 9]);
    let third = without(with(smollm3(), json!({"no_rope_layer_interval": 3})), "no_rope_layers");
    assert_eq!(layers(&parse(&third)?)[..6], [true, true, false, true, true, false]);
    assert_eq!(parse(&without(smollm3(), "rope_theta"))?.rope_theta, 2e6);
    for bad in [json!([1, 0]), json!(vec![2; 36]), json!(vec![true; 36]), json!(1)] {
        let error = message(parse(&with(smollm3(), json!({"no_rope_layers": bad}))));
        assert_says(&error, &["config.json: no_rope_layers", "a list of 36 numbers", "1 with RoPE, 0 without"]);
    }
    let slides = with(smollm3(), json!({"use_sliding_window": true, "sliding_window": 4096}));
    assert_says(&message(parse(&slides)), &["sliding attention windows are not supported"]);
    Ok(())
}

#[test]
fn mistral_takes_contexts_within_its_window() -> Outcome {
    let config = parse(&magistral())?;
    assert_eq!((config.architecture, config.parameters()), (Architecture::Mistral, 23_572_403_200));
    assert_eq!((config.head_dim, config.q_size(), config.sliding_window), (128, 4096, None));
    assert_eq!((config.longest_context(), config.context(None)?), (40_960, 32_768));
    assert!(!config.attention_bias && !config.output_bias && !config.tie_word_embeddings);
    // Mistral 7B v0.1 has a window of 4096 and a context of 32768; so has a config that leaves the field out.
    let windowed = with(magistral(), json!({"sliding_window": 4096}));
    for config in [windowed, without(magistral(), "sliding_window")] {
        let config = parse(&config)?;
        assert_eq!((config.sliding_window, config.longest_context(), config.context(None)?), (Some(4096), 4096, 4096));
        assert_eq!(config.context(Some(4096))?, 4096);
        let error = message(config.context(Some(4097)));
        assert_says(&error, &["sliding attention windows", "`context`", "at most 4096", "4097", "smaller `context`"]);
        assert_says(&message(config.context(Some(0))), &["does not support this context length", "at most 4096"]);
    }
    assert_eq!(parse(&with(magistral(), json!({"sliding_window": 40960})))?.sliding_window, None, "it covers all");
    let bad = message(parse(&with(magistral(), json!({"sliding_window": 0}))));
    assert_says(&bad, &["config.json: sliding_window", "0"]);
    Ok(())
}

/// Ministral 3 8B, text only.
#[test]
fn ministral3_takes_contexts_within_which_queries_are_not_scaled() -> Outcome {
    let scaling = json!({"type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1});
    let mut json = without(without(magistral(), "rope_theta"), "sliding_window");
    json["architectures"] = json!(["Ministral3ForCausalLM"]);
    json["max_position_embeddings"] = json!(262_144);
    assert_says(&message(parse(&json)), &["rope_parameters", "the RoPE scaling"]);
    json["rope_parameters"] = scaling;
    let config = parse(&json)?;
    assert_eq!((config.architecture, config.rope_theta, config.sliding_window), (Architecture::Ministral3, 1e6, None));
    let RopeScaling::Yarn { attention_factor, factor, .. } = config.rope_scaling else { panic!("yarn") };
    assert_eq!((attention_factor, factor), (1.0, 16.0), "the two magnitudes cancel out");
    assert_eq!((config.queries_scaled_from, config.context(None)?), (Some(16_384), 16_384));
    let error = message(config.context(Some(16_385)));
    assert_says(&error, &["queries that are scaled by their position", "`context`", "at most 16384", "16385"]);
    assert_says(&message(config.context(Some(262_145))), &["does not support this context length", "262145"]);
    json["rope_parameters"]["llama_4_scaling_beta"] = json!(0);
    assert_eq!(parse(&json)?.longest_context(), 262_144, "no query is scaled");
    Ok(())
}

#[test]
fn phi3_rotates_a_part_of_each_head_by_two_lists() -> Outcome {
    let config = parse(&phi4_mini())?;
    assert_eq!((config.architecture, config.parameters()), (Architecture::Phi3, 3_836_021_760));
    assert_eq!((config.head_dim, config.rotary_dim, config.sliding_window), (128, 96, None));
    assert!(config.fused_projections && config.tie_word_embeddings && !config.attention_bias);
    let RopeScaling::LongRope { attention_factor, original_max_position_embeddings, .. } = &config.rope_scaling else {
        panic!("{}", config.rope_scaling);
    };
    assert_eq!(*original_max_position_embeddings, 4096);
    assert!((attention_factor - 1.190_238).abs() < 1e-6, "√(1 + ln 32 / ln 4096), not {attention_factor}");

    // transformers 5 writes the share into the scaling; phi-3-mini had other names for the scaling.
    let mut five = without(without(phi4_mini(), "rope_scaling"), "partial_rotary_factor");
    five["rope_parameters"] = phi4_mini()["rope_scaling"].clone();
    five["rope_parameters"]["partial_rotary_factor"] = json!(0.75);
    five["rope_parameters"]["rope_theta"] = json!(10000);
    assert_eq!(parse(&five)?, config);
    let mut named = phi4_mini();
    for name in ["su", "yarn"] {
        named["rope_scaling"]["type"] = json!(name);
        assert_eq!(parse(&named)?, config, "{name}");
    }
    let mut given = phi4_mini();
    given["rope_scaling"]["attention_factor"] = json!(1.5);
    let RopeScaling::LongRope { attention_factor, .. } = parse(&given)?.rope_scaling else { panic!("longrope") };
    assert_eq!(attention_factor, 1.5);

    let short = phi4_mini()["rope_scaling"]["short_factor"].clone();
    for (change, parts) in [
        (json!({"partial_rotary_factor": 0.5}), vec!["rope_scaling: short_factor", "a list of 32 positive numbers"]),
        (json!({"partial_rotary_factor": 0.0}), vec!["partial_rotary_factor", "128 components"]),
        (json!({"partial_rotary_factor": 1.5}), vec!["partial_rotary_factor", "128 components"]),
        (json!({"rope_scaling": {"type": "longrope", "short_factor": short}}), vec!["long_factor", "48 positive"]),
        (json!({"sliding_window": "wide"}), vec!["sliding_window", "wide"]),
    ] {
        assert_says(&message(parse(&with(phi4_mini(), change))), &parts);
    }
    let windowed = parse(&with(phi4_mini(), json!({"sliding_window": 2047})))?;
    assert_says(&message(windowed.context(Some(4096))), &["sliding attention windows", "2047"]);
    Ok(())
}

/// The factors of the loaded context, and a table in which the components that are not rotated stay as they are.
#[test]
fn long_contexts_have_the_long_factors() {
    let scaling = RopeScaling::LongRope {
        short_factor: vec![1.0, 2.0],
        long_factor: vec![4.0, 8.0],
        original_max_position_embeddings: 64,
        attention_factor: 1.25,
    };
    assert_eq!(frequencies(4, 1e4, &scaling, 64), (vec![1.0, 0.005], 1.25));
    assert_eq!(frequencies(4, 1e4, &scaling, 65), (vec![0.25, 0.00125], 1.25));
    // Row 3 of the table for a head of 8 components, of which 4 are rotated: cosines, then sines.
    let row = &table(8, 4, 1e4, &scaling, 4)[24..];
    let [a, b] = [3.0f64, 0.015];
    let [cos, sin] = [f64::cos, f64::sin].map(|f| [a, b].map(|angle| (1.25 * f(angle)) as f32));
    assert_eq!(row, [cos[0], cos[1], 1.0, 1.0, sin[0], sin[1], 0.0, 0.0]);
    // A layer without RoPE.
    assert_eq!(table(4, 0, 1e4, &scaling, 2), [1.0, 1.0, 0.0, 0.0].repeat(2));
}

/// Magistral's tags are special tokens. They are recognised as `<think>` and `</think>` are, stay in the text, and
/// end the probe.
#[test]
fn magistral_has_tags_of_its_own() -> Outcome {
    let folder = directory("mistral-f16");
    let json = std::fs::read_to_string(folder.join("tokenizer.json"))?;
    let mut json: Value = serde_json::from_str(&json.replace("<think>", "[THINK]").replace("</think>", "[/THINK]"))?;
    for token in json["added_tokens"].as_array_mut().ok_or("a list")? {
        token["special"] = json!(true);
    }
    let json = serde_json::to_vec(&json)?;
    let tokenizer = Tokenizer::from_bytes(&json, "magistral")?;
    assert_eq!(tokenizer.think_tags(), ThinkTags { open: "[THINK]", close: "[/THINK]" });
    let ids = tokenizer.encode("[THINK]So[/THINK]x<|im_end|>")?;
    assert_eq!((tokenizer.think_ids().open, tokenizer.think_ids().close), (Some(318), Some(319)));
    assert_eq!((ids[0], ids[2], ids[4]), (318, 319, 317));
    assert!(tokenizer.is_special(317) && !tokenizer.is_special(318) && !tokenizer.is_special(319));
    assert_eq!(tokenizer.decode(&ids, true)?, "[THINK]So[/THINK]x");
    let mut text = Detokenizer::new(&tokenizer, true);
    ids.iter().try_for_each(|&id| text.push(id).map(drop))?;
    assert_eq!(text.text(), "[THINK]So[/THINK]x");
    assert_eq!(thinking_state("[THINK]\n"), ThinkingState::Open);
    assert_eq!(thinking_state("[THINK]\n[/THINK]"), ThinkingState::Closed);

    let file = |name: &str| Ok::<_, std::io::Error>((name.to_string(), std::fs::read(folder.join(name))?));
    let mut files = vec![("tokenizer.json".to_string(), json)];
    files.extend([file("config.json")?, file("tokenizer_config.json")?]);
    let prepared = PreparedModel::new(&ModelSource::memory(files), "magistral", &LoadOptions::default())?;
    let (settings, _) = prepared.settings(&Request::default())?;
    assert!(settings.probe_text.ends_with("in one sentence.[/THINK]"), "{}", settings.probe_text);
    assert_eq!(settings.policy.name(), "think-clearly", "it can be probed");
    let plain = PreparedModel::new(&ModelSource::directory(&folder)?, "plain", &LoadOptions::default())?;
    assert!(plain.settings(&Request::default())?.0.probe_text.ends_with("in one sentence.</think>"));
    Ok(())
}

/// Short templates with what those of SmolLM3, Magistral and Phi-4-mini use, and what transformers 5.23 rendered from
/// them on 28 November 2026.
#[test]
fn their_kinds_of_templates_render_as_in_transformers() -> Outcome {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/templates");
    let expected: Map<String, Value> = serde_json::from_slice(&std::fs::read(format!("{folder}/expected.json"))?)?;
    let (user, assistant) = (|text: &str| Message::user(text), Message::new("assistant", "\n\nHello"));
    let chats = [
        ("user", vec![user("Hi")]),
        ("system", vec![Message::new("system", "Be brief. /no_think "), user("Hi")]),
        ("turns", vec![user("Hi"), assistant, user("Bye")]),
    ];
    let tokens = Map::from_iter([("bos_token".into(), json!("<s>")), ("eos_token".into(), json!("</s>"))]);
    let mut rendered = Map::new();
    for (name, has_switch) in [("smollm3", true), ("magistral", false), ("phi4", false)] {
        let text = std::fs::read_to_string(format!("{folder}/{name}.jinja"))?;
        let template = ChatTemplate::new(&text, name, tokens.clone())?;
        assert_eq!(template.has_thinking_switch(), has_switch, "{name}");
        for (chat, messages) in &chats {
            for (think, enable_thinking) in [("None", None), ("False", Some(false))] {
                let options = RenderOptions { enable_thinking, now: Some(1_795_867_200), ..RenderOptions::default() };
                let prompt = template.render(messages, &options)?;
                let closed = prompt.text.ends_with("</think>\n");
                assert_eq!(prompt.thinking == ThinkingState::Closed, closed, "{name}, {chat}, {think}");
                assert!(prompt.thinking != ThinkingState::Open, "the model opens its thinking itself");
                rendered.insert(format!("{name}/{chat}/{think}"), json!(prompt.text));
            }
        }
    }
    assert_eq!(rendered, expected);
    Ok(())
}

/// Qwen3-30B-A3B.
fn qwen3_moe() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "max_window_layers": 48,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": null, "sliding_window": null,
        "use_sliding_window": false, "attention_bias": false, "tie_word_embeddings": false, "eos_token_id": 151645,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": true,
        "num_experts": 128, "num_experts_per_tok": 8, "output_router_logits": false, "router_aux_loss_coef": 0.001,
    })
}

#[test]
fn qwen3_moe_has_experts_in_all_layers_or_some() -> Outcome {
    let config = parse(&qwen3_moe())?;
    assert_eq!(config.architecture, Architecture::Qwen3Moe);
    assert_eq!((config.parameters(), config.active_parameters()), (30_532_122_624, 3_353_032_704));
    assert!(config.qk_norm && !config.attention_bias);
    let mixture = config.experts.ok_or("experts")?;
    assert_eq!((mixture.experts, mixture.experts_per_token, mixture.intermediate_size), (128, 8, 768));
    assert!(mixture.normalised && (0..48).all(|layer| mixture.has_experts(layer)) && mixture.dense(48) == 0);

    let changed = |changes: Value| Ok::<_, Error>(parse(&with(qwen3_moe(), changes))?.experts);
    let some = changed(json!({"decoder_sparse_step": 3, "mlp_only_layers": [0, 5, 47]}))?.ok_or("experts")?;
    let with_experts: Vec<usize> = (0..48).filter(|layer| some.has_experts(*layer)).collect();
    assert_eq!(with_experts, [2, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 44]);
    assert_eq!(some.dense(48), 34);
    // transformers 5 has another name for the number of experts, and defaults for all the fields.
    let renamed = with(without(qwen3_moe(), "num_experts"), json!({"num_local_experts": 16}));
    assert_eq!(parse(&renamed)?.experts.map(|mixture| mixture.experts), Some(16));
    let mut absent = qwen3_moe();
    for name in ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "mlp_only_layers"] {
        absent = without(absent, name);
    }
    let defaults = parse(&without(absent, "decoder_sparse_step"))?.experts.ok_or("experts")?;
    assert!(!defaults.normalised);
    assert_eq!(defaults, secateur::expert::model::config::MixtureOfExperts { normalised: false, ..mixture });
    // No layer with experts is left.
    assert_eq!(changed(json!({"num_experts": 0}))?, None);
    assert_eq!(changed(json!({"decoder_sparse_step": 49}))?, None);
    assert_eq!(changed(json!({"mlp_only_layers": (0..48).collect::<Vec<_>>()}))?, None);
    Ok(())
}

#[test]
fn experts_of_other_kinds_are_refused_by_name() {
    for (changes, parts) in [
        (json!({"n_shared_experts": 1}), vec!["experts that every token shares", "n_shared_experts", "1"]),
        (json!({"shared_expert_intermediate_size": 512}), vec!["every token shares", "512"]),
        (json!({"n_group": 8}), vec!["groups of experts", "n_group", "8"]),
        (json!({"routed_scaling_factor": 2.5}), vec!["scaled results", "2.5"]),
        (json!({"scoring_func": "sigmoid"}), vec!["scoring_func", "softmax", "sigmoid"]),
        (json!({"num_experts": 1024}), vec!["num_experts", "at most 512", "1024"]),
        (json!({"num_local_experts": 64}), vec!["num_local_experts", "128, as num_experts says", "64"]),
        (json!({"num_experts_per_tok": 129}), vec!["num_experts_per_tok", "at most num_experts, 128", "129"]),
        (json!({"num_experts_per_tok": 0}), vec!["num_experts_per_tok", "0"]),
        (json!({"decoder_sparse_step": 0}), vec!["decoder_sparse_step", "0"]),
        (json!({"mlp_only_layers": [48]}), vec!["mlp_only_layers", "layers from 0 to 47", "48"]),
        (json!({"mlp_only_layers": 3}), vec!["mlp_only_layers", "a list", "3"]),
        (json!({"moe_intermediate_size": -1}), vec!["moe_intermediate_size", "-1"]),
        // This architecture has no layers that are exempt from the window.
        (json!({"use_sliding_window": true, "sliding_window": 4096}), vec!["sliding attention windows"]),
        (json!({"architectures": ["Qwen3ForCausalLM"]}), vec!["mixture-of-experts models of this architecture"]),
    ] {
        assert_says(&message(parse(&with(qwen3_moe(), changes))), &parts);
    }
}
