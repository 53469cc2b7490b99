//! The tensors of a GGUF file, under the names that Hugging Face checkpoints use.
use super::Gguf;
use super::header::TensorInfo;
use crate::weights::tensors::{Entry, FileDtype, Weights};
use crate::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

impl TensorInfo {
    pub(super) fn entry(&self, heads: Option<usize>) -> Entry {
        let shape = self.dims.iter().rev().copied().collect();
        let own_name = Some(self.name.clone());
        Entry { file: self.file, stored: FileDtype::Ggml(self.kind), shape, heads, range: self.range.clone(), own_name }
    }
}

impl Weights {
    /// The tensors of a GGUF file, under their names in Hugging Face checkpoints.
    ///
    /// # Errors
    /// If two tensors have the same name.
    pub(in crate::weights) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let architecture = gguf.text("general.architecture")?.unwrap_or_default();
        let heads = |key: &str| gguf.uint(&format!("{architecture}.attention.{key}"));
        let q = heads("head_count")?;
        let k = match gguf.is_list(&format!("{architecture}.attention.head_count_kv")) {
            true => None, // reading the configuration refuses such a model
            false => heads("head_count_kv")?.or(q),
        };
        let mut tensors = BTreeMap::new();
        for info in &gguf.tensors {
            // llama.cpp's converter reorders these rows for its own rotation, which rotates neighbouring rows
            // together.
            let paired = match info.name.rsplit('.').nth(1) {
                Some("attn_q") if PAIRED.contains(&architecture) => q,
                Some("attn_k") if PAIRED.contains(&architecture) => k,
                _ => None,
            };
            let paired = paired.map(|heads| usize::try_from(heads).unwrap_or(usize::MAX));
            if tensors.insert(hf_name(architecture, &info.name), info.entry(paired)).is_some() {
                let places = gguf.files();
                return Err(Error::new(ErrorKind::Model, "the GGUF file has the same tensor twice")
                    .at(format!("{}: {}", places[info.file].0, info.name)));
            }
        }
        Ok(Self { files: gguf.files(), tensors, ..Self::default() })
    }
}

/// The architectures in whose files the rows of q and k are in the order of llama.cpp's own rotation.
const PAIRED: [&str; 3] = ["llama", "mistral3", "smollm3"];

/// The name of a tensor in the Hugging Face checkpoints of an architecture. Unknown names are returned unchanged.
fn hf_name(architecture: &str, name: &str) -> String {
    let whole = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => "",
    };
    if !whole.is_empty() {
        return whole.to_string();
    }
    let mut parts = name.split('.');
    let (Some("blk"), Some(layer), Some(part), Some(what), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return name.to_string();
    };
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        // This tensor has the rows of gate, then those of up.
        "ffn_up" if architecture == "phi3" => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "mlp.gate",
        // The matrices of all experts in one tensor. Hugging Face checkpoints have one tensor for each expert.
        "ffn_gate_exps" => "mlp.experts.gate_proj",
        "ffn_up_exps" => "mlp.experts.up_proj",
        "ffn_down_exps" => "mlp.experts.down_proj",
        _ => return name.to_string(),
    };
    format!("model.layers.{layer}.{part}.{what}")
}
