//! Translates the metadata of a GGUF file into a `config.json`, which is then checked like any other one.
use crate::model::config::{Architecture, GenerationDefaults, ModelConfig, RopeScaling};
use crate::weights::gguf::Gguf;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Tokens that always end an answer. Files often name only one end token, while chats of the same model end in
/// another.
const END_TOKENS: [&str; 7] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<|end▁of▁sentence|>",
];

/// The metadata, without the architecture in front, that every model has.
const REQUIRED: [&str; 5] =
    ["embedding_length", "feed_forward_length", "block_count", "attention.head_count", "context_length"];

/// The metadata that every model with experts has.
const EXPERTS: [&str; 3] = ["expert_count", "expert_used_count", "expert_feed_forward_length"];

/// The configuration of the model in `gguf`.
///
/// # Errors
/// If metadata is missing or malformed, or secateur does not support the model.
pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig> {
    refuse_parts(gguf)?;
    refuse_other_kinds(gguf)?;
    let architecture = gguf.text("general.architecture")?.ok_or_else(|| {
        gguf.error_at("general.architecture", "the GGUF file does not name the architecture of the model")
    })?;
    let known = match architecture {
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        "qwen3moe" => Architecture::Qwen3Moe,
        // Mistral's models are written as Llama's, whose graph is the same.
        "llama" => Architecture::Llama,
        "mistral3" => Architecture::Ministral3,
        "smollm3" => Architecture::SmolLM3,
        "phi3" => Architecture::Phi3,
        other => {
            return Err(gguf
                .error_at("general.architecture", format!("the architecture {other} is not supported"))
                .expected("qwen2, qwen3, qwen3moe, llama, mistral3, smollm3 or phi3"));
        }
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let mut config = Map::from_iter([("architectures".to_string(), json!([known.class_name()]))]);
    for (name, gguf_name) in [
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("max_position_embeddings", "context_length"),
        ("num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("n_shared_experts", "expert_shared_count"),
        ("n_group", "expert_group_count"),
        ("head_dim", "attention.key_length"),
        ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ] {
        match gguf.uint(&key(gguf_name))? {
            Some(value) => drop(config.insert(name.to_string(), json!(value))),
            None if REQUIRED.contains(&gguf_name)
                || (known == Architecture::Qwen3Moe && EXPERTS.contains(&gguf_name)) =>
            {
                let error = gguf.error_at(&key(gguf_name), "the GGUF file lacks a part of the model's configuration");
                return Err(error.found("no such metadata").help("convert the model again with a current llama.cpp"));
            }
            None => {}
        }
    }
    for (name, gguf_name) in [("rms_norm_eps", "attention.layer_norm_rms_epsilon"), ("rope_theta", "rope.freq_base")] {
        if let Some(value) = gguf.number(&key(gguf_name))? {
            // The file stores an f32. Its shortest spelling is the number that the authors wrote.
            config.insert(name.to_string(), json!(shortest(value)));
        }
    }
    let embedding = gguf.shape_of("token_embd.weight").ok_or_else(|| {
        Error::new(ErrorKind::Model, "the GGUF file has no tensor token_embd.weight").at(gguf.place())
    })?;
    config.insert("vocab_size".into(), json!(embedding[0]));
    config.insert("tie_word_embeddings".into(), json!(gguf.shape_of("output.weight").is_none()));
    // The defaults of llama.cpp, which differ from those of transformers.
    config.entry("rope_theta").or_insert(json!(10_000.0));
    let sizes = [gguf.uint(&key("embedding_length"))?, gguf.uint(&key("attention.head_count"))?];
    if let [Some(hidden), Some(heads)] = sizes {
        config.entry("head_dim").or_insert(json!(hidden / heads.max(1)));
        config.entry("num_key_value_heads").or_insert(json!(heads));
    }
    if let (Architecture::Phi3, Some(rotated), Some(d)) =
        (known, gguf.uint(&key("rope.dimension_count"))?, config.get("head_dim").and_then(Value::as_u64))
    {
        // The share is rounded down to whole components.
        config.insert("partial_rotary_factor".into(), json!((rotated as f64 + 0.5).min(d as f64) / d as f64));
    }
    let mut scaling = rope_scaling(gguf, &key)?;
    if known == Architecture::Ministral3 {
        let scaling = scaling.get_or_insert_with(|| json!({"rope_type": "default"}));
        if let Some(beta) = gguf.number(&key("attention.temperature_scale"))? {
            scaling["llama_4_scaling_beta"] = json!(shortest(beta));
        }
    }
    if let Some(scaling) = scaling {
        config.insert("rope_scaling".into(), scaling);
    }
    if known == Architecture::Qwen3Moe {
        experts(gguf, &key, &mut config)?;
    }
    config.insert("eos_token_id".into(), json!(eos_ids(gguf)?));

    let mut config = ModelConfig::parse(&Value::Object(config), gguf.place(), None)?;
    refuse_unsupported(gguf, &key, &config)?;
    // A GGUF file has no metadata about biases: they exist if their tensors do.
    let has_tensor = |name: &str| gguf.shape_of(&format!("blk.0.{name}")).is_some();
    config.attention_bias = has_tensor("attn_q.bias");
    config.output_bias = has_tensor("attn_output.bias");
    // In most files, a width of 0 means that there is no window.
    let window = gguf.uint(&key("attention.sliding_window"))?.and_then(|window| usize::try_from(window).ok());
    config.sliding_window = window.filter(|window| (1..config.max_position_embeddings).contains(window));
    if let Some(factors) = gguf.values_of("rope_freqs.weight")? {
        if factors.len() != config.head_dim / 2 || !factors.iter().all(|f| f.is_finite() && *f > 0.0) {
            return Err(Error::new(ErrorKind::Model, "the RoPE factors are not valid")
                .at(format!("{}: rope_freqs.weight", gguf.place()))
                .expected(format!("{} positive numbers", config.head_dim / 2))
                .found(format!("{} numbers: {:?} …", factors.len(), &factors[..factors.len().min(4)])));
        }
        if config.rope_scaling != RopeScaling::None {
            return Err(Error::new(ErrorKind::Model, "the GGUF file has two RoPE scalings")
                .at(format!("{}: rope_freqs.weight", gguf.place()))
                .expected("either rope_freqs.weight or rope.scaling.type")
                .found(format!("both; the second is {}", config.rope_scaling)));
        }
        config.rope_scaling = RopeScaling::Factors(factors);
    }
    config.generation = sampling(gguf)?;
    Ok(config)
}

/// Reads the metadata about experts other than their sizes. llama.cpp normalises the weights of the experts of this
/// architecture, unless the file says something else.
fn experts(gguf: &Gguf, key: &dyn Fn(&str) -> String, config: &mut Map<String, Value>) -> Result<()> {
    let normalised = gguf.flag(&key("expert_weights_norm"))?.unwrap_or(true);
    config.insert("norm_topk_prob".into(), json!(normalised));
    if let Some(scale) = gguf.number(&key("expert_weights_scale"))?.filter(|scale| *scale != 0.0) {
        config.insert("routed_scaling_factor".into(), json!(scale));
    }
    match gguf.uint(&key("expert_gating_func"))? {
        None | Some(0 | 1) => {}
        Some(_) => drop(config.insert("scoring_func".into(), json!("another function"))),
    }
    // The format has no metadata about layers without experts: they have no router.
    let layers_with = |part: &str| -> BTreeSet<u64> {
        let layer = |name: &str| name.strip_prefix("blk.")?.strip_suffix(part)?.parse().ok();
        gguf.names().filter_map(layer).collect()
    };
    let dense = &layers_with(".ffn_gate.weight") - &layers_with(".ffn_gate_inp.weight");
    config.insert("mlp_only_layers".into(), json!(dense));
    Ok(())
}

/// Refuses a part of a split model that was opened without the others.
fn refuse_parts(gguf: &Gguf) -> Result<()> {
    let announced = gguf.announced_parts()?;
    if announced == gguf.parts() as u64 {
        return Ok(());
    }
    Err(gguf
        .error_at("split.count", "the file is only a part of a model that is split into several GGUF files")
        .expected(format!("{announced} files named NAME-00001-of-{announced:05}.gguf and so on, in one folder"))
        .found(format!("part {} of {announced}, alone", gguf.uint("split.no")?.unwrap_or(0) + 1))
        .help("give all parts their original names, or merge them: llama-gguf-split --merge FIRST-FILE MERGED-FILE"))
}

/// Refuses GGUF files that hold something other than a model.
fn refuse_other_kinds(gguf: &Gguf) -> Result<()> {
    let key = "general.type";
    let what = match gguf.text(key)? {
        Some("adapter") => "the GGUF file is an adapter (LoRA), not a whole model",
        Some("mmproj") => "the GGUF file is the image or audio part of a model, not the language model",
        Some("imatrix") => "the GGUF file is an importance matrix, not a model",
        Some("vocab") => "the GGUF file is a vocabulary without a model",
        _ => return Ok(()),
    };
    let error = gguf.error_at(key, what);
    Err(match gguf.text("general.base_model.0.name")? {
        Some(base) => error.help(format!("pass a GGUF file of the model, {base}")),
        None => error.help("pass a GGUF file of the model"),
    })
}

/// The metadata `general.sampling.*`: how the authors of the model want it to be sampled. A temperature above 0 means
/// that the model samples. A setting that is out of range is ignored with a warning.
///
/// By default, `penalty_repeat` of llama.cpp looks at the last 64 tokens. The repetition penalty here looks at all
/// tokens, as in transformers.
fn sampling(gguf: &Gguf) -> Result<GenerationDefaults> {
    let setting = |name: &str, is_valid: fn(f64) -> bool| {
        let key = format!("general.sampling.{name}");
        let value = gguf.number(&key)?;
        if let Some(invalid) = value.filter(|value| !is_valid(*value)) {
            log::warn!("{}: {key} is ignored, because its value {invalid} is out of range", gguf.place());
        }
        Ok::<_, Error>(value.filter(|value| is_valid(*value)).map(|value| value as f32))
    };
    let temperature = setting("temp", |value| value >= 0.0)?;
    Ok(GenerationDefaults {
        do_sample: temperature.map(|temperature| temperature > 0.0),
        temperature,
        top_p: setting("top_p", |value| value > 0.0 && value <= 1.0)?,
        // In llama.cpp, 0 and negative numbers mean that there is no limit.
        top_k: setting("top_k", |value| value < f64::from(u32::MAX))?.map(|value| value.max(0.0) as u32),
        min_p: setting("min_p", |value| (0.0..=1.0).contains(&value))?,
        repetition_penalty: setting("penalty_repeat", |value| value > 0.0)?,
    })
}

/// The f64 with the same shortest decimal spelling as the f32 that `value` was.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// The metadata `rope.scaling.*`, translated to the spelling of transformers.
fn rope_scaling(gguf: &Gguf, key: &dyn Fn(&str) -> String) -> Result<Option<Value>> {
    if let Some(scaling) = longrope(gguf, key)? {
        return Ok(Some(scaling));
    }
    let mut scaling = Map::new();
    let kind = match gguf.text(&key("rope.scaling.type"))? {
        Some("none") => return Ok(None),
        Some(kind) => kind,
        None => match gguf.number(&key("rope.scale_linear"))? {
            Some(factor) if factor != 1.0 => return Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
            _ => return Ok(None),
        },
    };
    scaling.insert("rope_type".into(), json!(kind));
    let factor = gguf.number(&key("rope.scaling.factor"))?.map(shortest);
    if let Some(factor) = factor {
        scaling.insert("factor".into(), json!(factor));
    }
    if let Some(original) = gguf.uint(&key("rope.scaling.original_context_length"))? {
        scaling.insert("original_max_position_embeddings".into(), json!(original));
    }
    for (name, gguf_name) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        if let Some(value) = gguf.number(&key(&format!("rope.scaling.{gguf_name}")))? {
            scaling.insert(name.into(), json!(shortest(value)));
        }
    }
    // llama.cpp assumes an mscale of 1.
    if let Some(all) = gguf.number(&key("rope.scaling.yarn_log_multiplier"))? {
        scaling.insert("mscale".into(), json!(1.0));
        scaling.insert("mscale_all_dim".into(), json!(shortest(all)));
    }
    // In llama.cpp, attn_factor multiplies the magnitude of YaRN; attention_factor of transformers is the product.
    if let (Some(own), Some(factor)) = (gguf.number(&key("rope.scaling.attn_factor"))?, factor) {
        let magnitude = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
        scaling.insert("attention_factor".into(), json!(shortest(own) * magnitude));
    }
    Ok(Some(Value::Object(scaling)))
}

/// The scaling of Phi-3: the factors are tensors, and llama.cpp's converter writes the attention factor as
/// `attn_factor`.
fn longrope(gguf: &Gguf, key: &dyn Fn(&str) -> String) -> Result<Option<Value>> {
    const NAMES: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];
    let [short, long] = [gguf.values_of(NAMES[0])?, gguf.values_of(NAMES[1])?];
    let (short, long) = match (short, long) {
        (None, None) => return Ok(None),
        (Some(short), Some(long)) => (short, long),
        (short, _) => {
            return Err(Error::new(ErrorKind::Model, "the GGUF file has only one of the two lists of RoPE factors")
                .at(gguf.place())
                .expected(NAMES.join(" and "))
                .found(NAMES[usize::from(short.is_none())]));
        }
    };
    let mut scaling = json!({"rope_type": "longrope", "short_factor": short, "long_factor": long});
    if let Some(original) = gguf.uint(&key("rope.scaling.original_context_length"))? {
        scaling["original_max_position_embeddings"] = json!(original);
    }
    if let Some(factor) = gguf.number(&key("rope.scaling.attn_factor"))? {
        scaling["attention_factor"] = json!(shortest(factor));
    }
    Ok(Some(scaling))
}

fn eos_ids(gguf: &Gguf) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(gguf.uint(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    let tokens = gguf.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    ids.extend((0..).zip(tokens).filter(|(_, token)| END_TOKENS.contains(token)).map(|(id, _)| id));
    Ok(ids)
}

/// Refuses unsupported features that only GGUF metadata can describe.
fn refuse_unsupported(gguf: &Gguf, key: &dyn Fn(&str) -> String, config: &ModelConfig) -> Result<()> {
    for (name, supported) in [("attention.value_length", config.head_dim), ("rope.dimension_count", config.rotary_dim)]
    {
        if let Some(found) = gguf.uint(&key(name))?.filter(|found| *found != supported as u64) {
            return Err(gguf
                .error_at(&key(name), "heads of several widths, or only partly rotated heads, are not supported")
                .expected(format!("the head dimension, {}", config.head_dim))
                .found(found));
        }
    }
    for name in ["blk.0.attn_qkv.bias", "blk.0.ffn_up.bias", "blk.0.ffn_gate.bias", "blk.0.ffn_down.bias"] {
        if gguf.shape_of(name).is_some() {
            return Err(gguf.error_at(name, "biases of fused projections and of feed-forward layers are not supported"));
        }
    }
    Ok(())
}
