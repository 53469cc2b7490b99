//! config.json and generation_config.json: the values that are read, the configs that are refused, and real ones.
use super::Outcome;
use crate::common::files::{assert_says, message, real, report};
use secateur::Dtype;
use secateur::Error;
use secateur::ModelSource;
use secateur::expert::model::config::{Architecture, ModelConfig, RopeScaling};
use secateur::expert::text::{ChatTemplate, Message, RenderOptions};
use serde_json::{Value, json};

/// The config of R1-Distill-Qwen-1.5B in the spelling of transformers 4.
fn config4() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 1536,
        "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "vocab_size": 151936, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "rope_scaling": null, "sliding_window": 4096, "use_sliding_window": false, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "eos_token_id": 151643, "max_window_layers": 21,
    })
}

fn parse(config: &Value) -> Result<ModelConfig, Error> {
    ModelConfig::parse(config, "config.json", None)
}

fn with(changes: Value) -> Value {
    let mut config = config4();
    if let (Value::Object(config), Value::Object(changes)) = (&mut config, changes) {
        config.extend(changes);
    }
    config
}

fn without(name: &str) -> Value {
    let mut config = config4();
    config.as_object_mut().map(|config| config.remove(name));
    config
}

#[test]
fn both_spellings_of_a_config_mean_the_same() -> Outcome {
    let four = parse(&config4())?;
    assert_eq!(four.architecture, Architecture::Qwen2);
    assert_eq!((four.head_dim, four.group_size(), four.q_size(), four.kv_size()), (128, 6, 1536, 256));
    assert_eq!((four.rope_theta, &four.rope_scaling), (10_000.0, &RopeScaling::None));
    assert_eq!((four.rms_norm_eps, four.num_layers, four.vocab_size), (1e-6, 28, 151_936));
    assert!(four.attention_bias, "Qwen2 has biases");
    assert!(!four.qk_norm, "Qwen2 has no norms of heads");
    assert!(!four.tie_word_embeddings, "as the config says");
    assert_eq!(four.eos_token_ids, [151_643]);

    let mut five = without("rope_theta");
    let object = five.as_object_mut().ok_or("an object")?;
    object.remove("rope_scaling");
    object.remove("torch_dtype");
    object.insert("dtype".into(), json!("bfloat16"));
    object.insert("rope_parameters".into(), json!({"rope_theta": 10000.0, "rope_type": "default"}));
    object.insert("layer_types".into(), json!(vec!["full_attention"; 28]));
    object.insert("sliding_window".into(), Value::Null);
    assert_eq!(parse(&five)?, four);

    // The same scaling in both spellings is not a contradiction.
    let both = json!({"rope_type": "linear", "factor": 2.0});
    let twice = parse(&with(json!({"rope_scaling": both, "rope_parameters": both})))?;
    assert_eq!(twice.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    // The base must be read from the config; the default must not happen to agree with it.
    assert_eq!(parse(&with(json!({"rope_theta": 1e6})))?.rope_theta, 1e6);
    assert_eq!(parse(&with(json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})))?.rope_theta, 5e5);
    assert_eq!(parse(&without("rope_theta"))?.rope_theta, 10_000.0);
    assert!(parse(&with(json!({"tie_word_embeddings": true})))?.tie_word_embeddings);
    assert_eq!(parse(&without("num_key_value_heads"))?.num_kv_heads, 12);
    assert_eq!(parse(&without("architectures"))?.architecture, Architecture::Qwen2);
    Ok(())
}

#[test]
fn what_each_architecture_has() -> Outcome {
    let config_of = |class: &str, changes: Value| {
        let mut config = with(changes);
        config["architectures"] = json!([class]);
        parse(&config)
    };
    let qwen3 = config_of("Qwen3ForCausalLM", json!({"head_dim": 64, "num_key_value_heads": 4}))?;
    assert_eq!((qwen3.architecture, qwen3.head_dim, qwen3.q_size()), (Architecture::Qwen3, 64, 768));
    assert!(qwen3.qk_norm, "Qwen3 has norms of heads");
    assert!(!qwen3.attention_bias, "Qwen3 has no biases");
    assert!(!qwen3.output_bias, "Qwen3 has no biases");
    assert_eq!(
        config_of("Qwen3ForCausalLM", json!({}))?.head_dim,
        128,
        "transformers' default, whatever hidden_size is"
    );
    let biased = config_of("Qwen3ForCausalLM", json!({"attention_bias": true}))?;
    assert!(biased.attention_bias && biased.output_bias);
    let llama = config_of("LlamaForCausalLM", json!({"mlp_bias": false}))?;
    assert_eq!((llama.architecture, llama.head_dim), (Architecture::Llama, 128));
    assert!(!llama.qk_norm, "Llama has no norms of heads");
    assert!(!llama.attention_bias, "this Llama has no biases");
    assert!(!llama.output_bias, "this Llama has no biases");
    assert_eq!(config_of("LlamaForCausalLM", json!({"head_dim": 64}))?.q_size(), 768);
    // Qwen2 always has biases on q, k and v and never on its output, whatever the config says.
    for said in [json!(false), json!(true), Value::Null] {
        let qwen2 = config_of("Qwen2ForCausalLM", json!({"attention_bias": said}))?;
        assert!(qwen2.attention_bias && !qwen2.output_bias);
    }
    // The number of parameters of R1-Distill-Qwen-1.5B, as its authors count them, and the bytes of one cached token.
    assert_eq!(parse(&config4())?.parameters(), 1_777_088_000);
    assert_eq!(parse(&config4())?.kv_bytes_per_token(Dtype::F16), 28 * 2 * 256 * 2);
    Ok(())
}

#[test]
fn rope_scalings_are_read_in_both_spellings() -> Outcome {
    let read = |scaling: Value| Ok::<_, Error>(parse(&with(json!({"rope_scaling": scaling})))?.rope_scaling);
    let five = |mut scaling: Value| {
        scaling["rope_theta"] = json!(10000.0);
        let mut config = without("rope_scaling");
        config["rope_parameters"] = scaling;
        Ok::<_, Error>(parse(&config)?.rope_scaling)
    };
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(read(llama3.clone())?, expected);
    assert_eq!(five(llama3)?, expected);
    assert_eq!(read(json!({"type": "linear", "factor": 4.0}))?, RopeScaling::Linear { factor: 4.0 });

    // R1-0528-Qwen3-8B: transformers reads attention_factor, not attn_factor.
    let yarn = json!({"attn_factor": 0.8782488562869419, "factor": 4.0, "original_max_position_embeddings": 32768,
        "rope_type": "yarn"});
    let yarn_with = |attention_factor: f64, original: usize| RopeScaling::Yarn {
        factor: 4.0,
        attention_factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings: original,
        truncate: true,
    };
    let default = 0.1 * 4f64.ln() + 1.0;
    assert_eq!(read(yarn.clone())?, yarn_with(default, 32768));
    assert_eq!(five(yarn)?, yarn_with(default, 32768));
    assert_eq!(read(json!({"type": "yarn", "factor": 4.0}))?, yarn_with(default, 131_072), "the model's own context");
    let given = json!({"type": "yarn", "factor": 4.0, "attention_factor": 0.5, "mscale": 2.0, "mscale_all_dim": 1.0});
    assert_eq!(read(given)?, yarn_with(0.5, 131_072));
    let mscale = json!({"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0});
    assert_eq!(read(mscale)?, yarn_with((0.2 * 4f64.ln() + 1.0) / default, 131_072));
    let ratio = json!({"type": "yarn", "original_max_position_embeddings": 32768});
    assert_eq!(read(ratio)?, yarn_with(default, 32768), "4 = 131072 / 32768");
    let mut outside = with(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}));
    outside["original_max_position_embeddings"] = json!(4096);
    assert_eq!(parse(&outside)?.rope_scaling, yarn_with(default, 4096));
    Ok(())
}

/// Scaled frequencies, computed by hand. Without scaling, a head of width 8 at base 10⁴ turns by 1, 0.1, 0.01 and
/// 0.001 radians per position.
#[test]
fn scaled_frequencies_are_as_defined() {
    use secateur::expert::model::rope::{frequencies, table};
    let close = |scaling: &RopeScaling, expected: [f64; 4], magnitude: f64| {
        let (found, factor) = frequencies(8, 1e4, scaling, 4);
        let near = |(a, b): (&f64, f64)| (a / b - 1.0).abs() < 1e-12;
        assert!(found.iter().zip(expected).all(near), "{scaling:?}: {found:?}, expected {expected:?}");
        assert_eq!(factor, magnitude, "{scaling:?}");
        // Row 3 of the table: cosines, then sines.
        let row = &table(8, 8, 1e4, scaling, 4)[24..];
        for i in 0..4 {
            assert_eq!(row[i], (magnitude * (3.0 * found[i]).cos()) as f32);
            assert_eq!(row[4 + i], (magnitude * (3.0 * found[i]).sin()) as f32);
        }
    };
    close(&RopeScaling::None, [1.0, 0.1, 0.01, 0.001], 1.0);
    close(&RopeScaling::Linear { factor: 4.0 }, [0.25, 0.025, 0.0025, 0.00025], 1.0);
    close(&RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]), [1.0, 0.05, 0.0025, 0.000125], 1.0);
    // Over 400 positions the pairs turn 63.7, 6.37, 0.637 and 0.064 times.
    let turns = 4.0 / std::f64::consts::TAU * 10.0;
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 10.0,
        original_max_position_embeddings: 400,
    };
    let kept = (turns - 1.0) / 9.0;
    close(&llama3, [1.0, 0.1 * (kept + (1.0 - kept) / 8.0), 0.00125, 0.000125], 1.0);
    // The ramp runs from dimension ⌊ln(400 / 32τ) / ln 10⌋ = 0 to ⌈ln(400 / τ) / ln 10⌉ = 2.
    let yarn = |truncate| RopeScaling::Yarn {
        factor: 4.0,
        attention_factor: 1.25,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings: 400,
        truncate,
    };
    close(&yarn(true), [1.0, 0.1 * (0.5 + 0.5 / 4.0), 0.0025, 0.00025], 1.25);
    let [low, high] = [32.0, 1.0].map(|t| (10.0 * turns / t).log10());
    let divided = (1.0 - low) / (high - low);
    close(&yarn(false), [1.0, 0.1 * (1.0 - divided + divided / 4.0), 0.0025, 0.00025], 1.25);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        (
            json!({"architectures": ["GemmaForCausalLM"]}),
            vec![
                "GemmaForCausalLM is not supported",
                "Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, LlamaForCausalLM",
            ],
        ),
        (json!({"architectures": ["Qwen2MoeForCausalLM"]}), vec!["Qwen2MoeForCausalLM is not supported"]),
        (json!({"architectures": ["Qwen2VLForConditionalGeneration"]}), vec!["Qwen2VLForConditionalGeneration"]),
        (json!({"architectures": []}), vec!["architectures has a value that cannot be used"]),
        (json!({"architectures": null, "model_type": null}), vec!["does not name the architecture"]),
        (json!({"vision_config": {"depth": 3}}), vec!["image or audio input", "vision_config"]),
        (json!({"num_experts": 60}), vec!["mixture-of-experts", "num_experts", "60"]),
        (
            json!({"quantization_config": {"quant_method": "gptq"}}),
            vec!["GPTQ-quantized weights", "gptq", "original weights", "GGUF"],
        ),
        (
            json!({"use_sliding_window": true}),
            vec!["sliding attention windows are not supported", "use_sliding_window"],
        ),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), vec!["layers other than full_attention"]),
        (json!({"hidden_act": "gelu"}), vec!["hidden_act", "silu", "gelu"]),
        (json!({"mlp_bias": true}), vec!["feed-forward layers with biases", "mlp_bias"]),
        (json!({"partial_rotary_factor": 0.5}), vec!["partly rotated", "partial_rotary_factor", "0.5"]),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
            vec!["partly rotated", "rope_parameters: partial_rotary_factor"],
        ),
        (
            json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
            vec![
                "RoPE scaling dynamic is not supported",
                "default, linear, llama3, yarn or longrope",
                "original context",
            ],
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}),
            vec!["two RoPE scalings that differ", "rope_parameters: none", "rope_scaling: yarn, factor 4"],
        ),
        (json!({"quantization": {"group_size": 64, "bits": 4}}), vec!["MLX-quantized weights", "original weights"]),
        (json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}), vec!["short_factor", "64 positive"]),
        (json!({"rope_scaling": {"type": "yarn", "factor": 0.25}}), vec!["factor", "1 or more", "0.25"]),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2}}),
            vec!["beta_fast", "2"],
        ),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 0}}),
            vec!["attention_factor", "positive"],
        ),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": 1}}), vec!["truncate", "true or false"]),
        (json!({"rope_scaling": {"factor": 4.0}}), vec!["rope_type", "nothing"]),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}), vec!["factor", "1 or more"]),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192}}),
            vec!["high_freq_factor", "above low_freq_factor"],
        ),
    ];
    for (change, parts) in cases {
        assert_says(&message(parse(&with(change))), &parts);
    }
    // A sliding window that is used in no layer is accepted.
    for inactive in [json!({"max_window_layers": 28}), json!({"sliding_window": null})] {
        let mut config = with(inactive);
        config["use_sliding_window"] = json!(true);
        assert!(parse(&config).is_ok());
    }
}

#[test]
fn sizes_that_do_not_divide_or_make_no_sense_are_refused() {
    for name in [
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ] {
        assert_says(&message(parse(&without(name))), &[name, "positive whole number", "nothing"]);
        for bad in [json!(0), json!(-1), json!(1.5), json!("12"), json!(1u64 << 40), json!(u64::MAX), json!([1])] {
            assert_says(&message(parse(&with(json!({name: bad})))), &["config.json", name, &bad.to_string()]);
        }
    }
    let cases = [
        (json!({"hidden_size": 1537}), vec!["hidden_size", "a multiple of num_attention_heads, 12", "1537"]),
        (json!({"num_key_value_heads": 5}), vec!["num_key_value_heads", "a divisor of num_attention_heads, 12", "5"]),
        (json!({"num_key_value_heads": 24}), vec!["num_key_value_heads", "24"]),
        (json!({"hidden_size": 36}), vec!["odd width", "head_dim", "3"]),
        (json!({"head_dim": 64}), vec!["head_dim", "1536 / 12", "64"]),
        (json!({"rms_norm_eps": 0}), vec!["rms_norm_eps", "between 0 and 1"]),
        (json!({"rms_norm_eps": "1e-6"}), vec!["rms_norm_eps", "a number"]),
        (json!({"rope_theta": -1.0}), vec!["rope_theta", "above 1"]),
        (json!({"rope_parameters": 3}), vec!["rope_parameters", "a JSON object", "a number"]),
        (json!({"tie_word_embeddings": "yes"}), vec!["tie_word_embeddings", "true or false", "yes"]),
        (json!({"eos_token_id": "x"}), vec!["eos_token_id", "a token id or a list"]),
        (json!({"eos_token_id": [1, -2]}), vec!["eos_token_id", "[1,-2]"]),
    ];
    for (change, parts) in cases {
        assert_says(&message(parse(&with(change))), &parts);
    }
    assert_says(&message(parse(&json!([1]))), &["configuration is malformed", "a JSON object", "a list"]);
    let long = message(parse(&with(json!({"hidden_act": "é".repeat(1000)}))));
    assert!(long.len() < 400, "a long value is cut: {long}");
}

#[test]
fn generation_config_adds_eos_ids_and_sampling() -> Outcome {
    let parse = |generation: Value| {
        let config = config4();
        ModelConfig::parse(&config, "config.json", Some((&generation, "generation_config.json")))
    };
    let config = parse(json!({"eos_token_id": [151645, 151643], "do_sample": true, "temperature": 0.7, "top_p": 0.8,
        "top_k": 20, "repetition_penalty": 1.05, "transformers_version": "4.37.0"}))?;
    assert_eq!(config.eos_token_ids, [151_645, 151_643]);
    let defaults = &config.generation;
    assert_eq!((defaults.do_sample, defaults.temperature, defaults.top_p), (Some(true), Some(0.7), Some(0.8)));
    assert_eq!((defaults.top_k, defaults.min_p, defaults.repetition_penalty), (Some(20), None, Some(1.05)));
    assert_eq!(parse(json!({"eos_token_id": 7, "top_k": -1}))?.eos_token_ids, [7, 151_643]);
    assert_eq!(parse(json!({"eos_token_id": [999_999, 3]}))?.eos_token_ids, [3, 151_643]);
    assert_eq!(parse(json!({}))?.eos_token_ids, [151_643]);
    for (bad, part) in [
        (json!({"temperature": -0.1}), "zero or positive"),
        (json!({"top_p": 0}), "in (0, 1]"),
        (json!({"top_p": 1.1}), "in (0, 1]"),
        (json!({"top_k": 1.5}), "a whole number, or -1"),
        (json!({"min_p": 2}), "in [0, 1]"),
        (json!({"repetition_penalty": 0}), "positive"),
        (json!({"do_sample": 1}), "true or false"),
    ] {
        assert_says(&message(parse(bad)), &["generation_config.json", part]);
    }
    let source = ModelSource::memory([
        ("config.json", serde_json::to_vec(&config4())?),
        ("generation_config.json", b"nonsense".to_vec()),
    ]);
    assert_says(&message(ModelConfig::load(&source)), &["generation_config.json is not valid JSON"]);
    Ok(())
}

#[test]
fn real_configs_are_read() -> Outcome {
    if let Some(path) = real("tokenizer-qwen2.5") {
        let source = ModelSource::directory(path)?;
        let config = ModelConfig::load(&source)?;
        assert_eq!((config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads), (3584, 28, 28, 4));
        assert_eq!((config.rope_theta, config.head_dim, config.vocab_size), (1e6, 128, 152_064));
        assert_eq!(config.eos_token_ids, [151_645, 151_643]);
        assert_eq!((config.generation.temperature, config.generation.top_k), (Some(0.7), Some(20)));
        let prompt = ChatTemplate::load(&source)?.render(&[Message::user("Hi")], &RenderOptions::default())?;
        assert!(prompt.text.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
        report!("ran: tokenizer-qwen2.5: config and template");
    }
    if let Some(path) = real("tokenizer-qwen3") {
        let source = ModelSource::directory(path)?;
        let config = ModelConfig::load(&source)?;
        assert_eq!((config.architecture, config.qk_norm, config.attention_bias), (Architecture::Qwen3, true, false));
        assert_eq!((config.hidden_size, config.num_layers, config.q_size(), config.kv_size()), (2560, 36, 4096, 1024));
        let prompt = ChatTemplate::load(&source)?.render(&[Message::user("Hi")], &RenderOptions::default())?;
        assert_eq!(prompt.text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
        report!("ran: tokenizer-qwen3: config and template");
    }
    Ok(())
}
