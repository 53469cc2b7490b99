#!/usr/bin/env python3
"""Makes the golden fixtures of this folder: tiny models of every architecture and what transformers computes with them.

    python make.py               writes every fixture from the seeds in MODELS, and prints what the assertions measured
    python make.py --check       recomputes the goldens from the committed weights and compares, writes nothing
    python make.py --search N    looks for seeds (N candidates per model) under which every assertion holds
    python make.py --only NAME   one model

README.md describes the goldens, tensor by tensor. The arithmetic of a golden is float32 over the stored weights (f32, f16
or bf16), by transformers with eager attention, on one thread.

A golden that cannot tell right from wrong is worse than none, so `examine` asserts that these can: attention peaks, heads differ,
greedy ids vary and are far from ties, and a second implementation (`Reference`, NumPy in float64, with a real cache from which
slots are removed) agrees with transformers while each of its deliberately broken variants is far away.
"""

import argparse
import json
import pathlib
import platform
import tempfile

import gguf
import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

HERE = pathlib.Path(__file__).resolve().parent

# ---------------------------------------------------------------------------------------------------------------- what is made


def longrope(pairs, original):
    """A scaling of Phi-3's kind over an original context; short and long factors far apart."""
    factors = lambda low, high: [round(float(f), 4) for f in np.geomspace(low, high, pairs)]
    return dict(
        type="longrope",
        short_factor=factors(1.0, 1.6),
        long_factor=factors(1.2, 40.0),
        original_max_position_embeddings=original,
    )


MODELS = {
    # Tied, group 3, three layers. Config as transformers 4 writes it.
    "qwen2-f32": dict(
        seed=1,
        dtype=torch.float32,
        spelling=4,
        vocab=320,
        hidden=96,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=16,
        intermediate=152,
        theta=1e6,
        eps=1e-6,
        tied=True,
    ),
    # Untied, group 1 (plain multi-head), three heads of 32, four layers. Config as transformers 5 writes it.
    "qwen2-f16": dict(
        seed=3,
        dtype=torch.float16,
        spelling=5,
        vocab=320,
        hidden=96,
        layers=4,
        heads=3,
        kv_heads=3,
        head_dim=32,
        intermediate=136,
        theta=1e4,
        eps=1e-5,
        tied=False,
    ),
    # Tied, group 7 (as Qwen2.5 7B) over one KV head, and an odd vocabulary with 13 rows no token uses, as real checkpoints pad.
    # Its eps is large enough to show when it is not read from the config.
    "qwen2-bf16": dict(
        seed=1,
        dtype=torch.bfloat16,
        spelling=4,
        vocab=333,
        hidden=112,
        layers=3,
        heads=7,
        kv_heads=1,
        head_dim=16,
        intermediate=200,
        theta=1e6,
        eps=1e-3,
        tied=True,
    ),
    # Qwen3: q and k normalised per head, heads wider together (96) than the residual stream (64).
    "qwen3-f32": dict(
        arch="Qwen3",
        seed=3,
        dtype=torch.float32,
        spelling=5,
        vocab=320,
        hidden=64,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=24,
        intermediate=104,
        theta=1e6,
        eps=1e-5,
        tied=False,
    ),
    # R1-0528-Qwen3's YaRN, spelled as there, and run past its original context of 64. With attention_bias, which real Qwen3 lack.
    "qwen3-yarn-f16": dict(
        arch="Qwen3",
        seed=22,
        dtype=torch.float16,
        spelling=4,
        vocab=320,
        hidden=80,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=32,
        intermediate=136,
        theta=1e4,
        eps=1e-6,
        tied=True,
        bias=True,
        rope=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, attn_factor=0.8782488562869419),
    ),
    # Llama 3's scaling, run past its original context of 64; weights in two shards.
    "llama3-bf16": dict(
        arch="Llama",
        seed=8,
        dtype=torch.bfloat16,
        spelling=4,
        vocab=320,
        hidden=96,
        layers=3,
        heads=6,
        kv_heads=3,
        head_dim=16,
        intermediate=152,
        theta=5e5,
        eps=1e-5,
        tied=True,
        shards=2,
        rope=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    # GGUF files as llama.cpp's converter writes them, one of each architecture. `gguf` says which type each kind of matrix has;
    # the golden is what transformers computes with what the gguf package makes of those.
    "gguf-qwen2-q8": dict(
        seed=18,
        dtype=torch.float32,
        spelling=4,
        vocab=320,
        hidden=96,
        layers=2,
        heads=6,
        kv_heads=2,
        head_dim=16,
        intermediate=160,
        theta=1e6,
        eps=1e-6,
        tied=True,
        gguf=dict(embed="Q8_0", q="Q8_0", k="Q8_0", v="Q8_0", o="Q8_0", gate="Q8_0", up="Q8_0", down="Q8_0"),
    ),
    # Q4_0 with some matrices of other types, as mixtures have them: q, k and v of three types, gate and up of two.
    "gguf-llama-q4": dict(
        arch="Llama",
        seed=4,
        dtype=torch.float32,
        spelling=4,
        vocab=320,
        hidden=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        intermediate=192,
        theta=5e5,
        eps=1e-5,
        tied=False,
        gguf=dict(embed="Q4_0", head="Q8_0", q="Q4_0", k="Q8_0", v="F16", o="Q4_0", gate="Q4_0", up="Q8_0", down="Q4_0"),
        rope=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "gguf-qwen3-f16": dict(
        arch="Qwen3",
        seed=5,
        dtype=torch.float32,
        spelling=4,
        vocab=320,
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=24,
        intermediate=104,
        theta=1e6,
        eps=1e-6,
        tied=False,
        gguf=dict(embed="F16", head="BF16", q="F16", k="F16", v="F16", o="BF16", gate="BF16", up="BF16", down="F32"),
        rope=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    ),
    # SmolLM3: a layer without RoPE in the middle, group 4 over one KV head.
    "smollm3-bf16": dict(
        arch="SmolLM3",
        seed=1,
        dtype=torch.bfloat16,
        spelling=4,
        vocab=320,
        hidden=96,
        layers=3,
        heads=4,
        kv_heads=1,
        head_dim=24,
        intermediate=136,
        theta=5e6,
        eps=1e-6,
        tied=True,
        no_rope_layers=[1, 0, 1],
    ),
    # Mistral: heads narrower together (64) than the residual stream (88), as in Magistral, and its base of 1e9.
    "mistral-f16": dict(
        arch="Mistral",
        seed=7,
        dtype=torch.float16,
        spelling=5,
        vocab=320,
        hidden=88,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate=104,
        theta=1e9,
        eps=1e-5,
        tied=False,
    ),
    # Phi-3: fused q, k, v and gate, up; three quarters of a head rotated. The original context is so short that every prompt has
    # the long factors (a single token, at position 0, has no angles).
    "phi3-long-f16": dict(
        arch="Phi3",
        seed=28,
        dtype=torch.float16,
        spelling=4,
        vocab=320,
        hidden=96,
        layers=3,
        heads=3,
        kv_heads=1,
        head_dim=32,
        intermediate=136,
        theta=1e4,
        eps=1e-5,
        tied=True,
        context=512,
        partial=0.75,
        gain=1.0,  # the attention factor, 1.87, makes scores larger
        rope=longrope(12, 6),
    ),
    # The same with the short factors: the original context is longer than every prompt.
    "gguf-phi3-q8": dict(
        arch="Phi3",
        seed=8,
        dtype=torch.float32,
        spelling=4,
        vocab=320,
        hidden=96,
        layers=2,
        heads=3,
        kv_heads=1,
        head_dim=32,
        intermediate=160,
        theta=1e4,
        eps=1e-5,
        tied=True,
        context=8192,
        partial=0.75,
        gguf=dict(embed="Q8_0", v="Q8_0", o="Q4_0", up="Q8_0", down="Q8_0"),
        rope=longrope(12, 4096),
    ),
    # llama.cpp knows SmolLM3's layers without RoPE by their number: every fourth.
    "gguf-smollm3-q8": dict(
        arch="SmolLM3",
        seed=4,
        dtype=torch.float32,
        spelling=5,
        vocab=320,
        hidden=64,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate=96,
        theta=5e6,
        eps=1e-6,
        tied=True,
        no_rope_layers=[1, 1, 1, 0],
        gguf=dict(embed="Q8_0", q="Q8_0", k="Q8_0", v="Q8_0", o="Q8_0", gate="Q8_0", up="Q8_0", down="Q8_0"),
    ),
    # Qwen3-MoE: the layer in the middle is dense; the weights of the chosen experts do not add up to 1.
    "qwen3moe-bf16": dict(
        arch="Qwen3Moe",
        seed=11,
        dtype=torch.bfloat16,
        spelling=4,
        vocab=320,
        hidden=56,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate=88,
        theta=1e6,
        eps=1e-6,
        tied=True,
        experts=9,
        chosen=3,
        expert_intermediate=24,
        normalised=False,
        dense=[1],
    ),
    # All layers have experts, as llama.cpp expects, whose weights add up to 1. Gate and up are of two types.
    "gguf-qwen3moe-q8": dict(
        arch="Qwen3Moe",
        seed=11,
        dtype=torch.float32,
        spelling=5,
        vocab=320,
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=1,
        head_dim=24,
        intermediate=96,
        theta=1e6,
        eps=1e-6,
        tied=False,
        experts=12,
        chosen=4,
        expert_intermediate=32,
        normalised=True,
        dense=[],
        gguf=dict(embed="Q8_0", head="Q8_0", q="Q8_0", k="Q8_0", v="F16", o="F16", gate="Q8_0", up="Q4_0", down="Q5_0"),
    ),
    # Ministral 3: YaRN without an attention factor. From its original context on, queries are scaled; all positions are below it.
    "gguf-ministral3-q8": dict(
        arch="Ministral3",
        seed=13,
        dtype=torch.float32,
        spelling=5,
        vocab=320,
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        intermediate=96,
        theta=1e6,
        eps=1e-5,
        tied=False,
        context=1024,
        gguf=dict(embed="Q8_0", head="Q8_0", q="Q8_0", k="Q8_0", v="F16", o="Q8_0", gate="Q8_0", up="Q8_0", down="Q8_0"),
        rope=dict(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=256,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.1,
        ),
    ),
}

BOUND = 1e-4  # the error that an f32 implementation may have, as a fraction of the largest |logit|
MARGIN = 10 * BOUND  # a greedy id counts only where the runner-up is this far below, same unit
PEAK = 8.0  # in every layer some head's largest weight is at least PEAK / n
DISTINCT = 24  # distinct ids among the GREEDY ones
GREEDY = 64
ROUTED = BOUND  # the last expert that is chosen is so far above the next, as a fraction of the largest |router logit|
ECHO = 0.25  # at most this share of positions may predict its own input
PROMPTS = (1, 7, 64, 200)
TAIL = 16  # of the longest prompt only the last TAIL positions' logits are kept

# The pruning schedule: a question, STEPS teacher-forced ids, an eviction after each of EVENTS was forwarded.
QUESTION, STEPS, WINDOW, PROBE = 40, 120, 8, 9
EVENTS = (70, 100, 130)
SURVIVORS = (13, 15, 3)  # evictable positions that each event leaves; the last one leaves next to nothing

# ------------------------------------------------------------------------------------------------------------------- tokenizer

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# Words that become one token each ("Ġ" is a leading space in byte-level BPE). Merged left to right, in this order.
WORDS = (
    "Wait So Hmm But Now Then Okay Let Ġthe Ġis Ġand Ġto ĠI Ġof Ġme Ġit Ġthat Ġanswer Ġstep Ġstop Ġx Ġ= Ġ+ Ġthen ing Ġbe Ġso "
    "Ġdo Ġwe Ġas"
).split()
TOKENIZER_SIZE = 320

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Qwen2's own split: contractions, words, single digits, punctuation, line ends, spaces.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = (
    "Wait, so the answer is that x = 12 + 3.",
    "Hmm\n\nOkay. Let me stop; then I do it step by step",
    "naïve Ω 思考 🙂 it's",
    "<think>\nSo then</think>",
)
PROBE_TEXT = (
    "Time is up. Given the time I've spent and the approaches I've tried, I should stop thinking and now write summarization in "
    "one sentence.</think>"
)


def byte_alphabet():
    """The 256 characters by which byte-level BPE writes the bytes 0…255, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, spare = {}, 256
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte], spare = chr(spare), spare + 1
    return [table[byte] for byte in range(256)]


def word_merges(words):
    """Merge rules that build each word from its first character to its last; shared beginnings once."""
    merges = []
    for word in words:
        for end in range(1, len(word)):
            if (word[:end], word[end]) not in merges:
                merges.append((word[:end], word[end]))
    return merges


def build_tokenizer(size, extra_merges=()):
    """A byte-level BPE tokenizer of exactly `size` ids: bytes, merges, then the special tokens."""
    merges = word_merges(WORDS)
    room = size - 256 - len(SPECIALS)
    merges += [pair for pair in extra_merges if pair not in set(merges)][: room - len(merges)]
    assert len(merges) == room, f"{len(merges)} merges where {room} are needed"
    vocabulary = byte_alphabet() + [left + right for left, right in merges]
    assert len(set(vocabulary)) == len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # As in R1-Distill: the thinking tags are single ids but not "special", so that decoding shows them.
    tokenizer.add_tokens([AddedToken(t, special="think" not in t, normalized=False) for t in SPECIALS])
    assert tokenizer.get_vocab_size() == size
    for word in WORDS:
        text = word.replace("Ġ", " ")
        assert tokenizer.encode(text).tokens == [word], f"{word} became {tokenizer.encode(text).tokens}"
    for text in (*TEXTS, PROBE_TEXT):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    return tokenizer


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(folder, tokenizer, context=4096):
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "chat_template": CHAT_TEMPLATE,
        },
    )


# ---------------------------------------------------------------------------------------------------------------------- models


def config_json(m, ids):
    """`config.json` as a dictionary, in the spelling of transformers 4 or 5. `ids`: token → id."""
    arch = m.get("arch", "Qwen2")
    config = {
        "architectures": [f"{arch}ForCausalLM"],
        "model_type": {"Qwen3Moe": "qwen3_moe"}.get(arch, arch.lower()),
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": m["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": m["intermediate"],
        "max_position_embeddings": m.get("context", 4096),
        "max_window_layers": m["layers"],
        "num_attention_heads": m["heads"],
        "num_hidden_layers": m["layers"],
        "num_key_value_heads": m["kv_heads"],
        "rms_norm_eps": m["eps"],
        "tie_word_embeddings": m["tied"],
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": m["vocab"],
    }
    dtype = str(m["dtype"]).removeprefix("torch.")
    if m["spelling"] == 4:
        config |= {
            "rope_theta": m["theta"],
            "sliding_window": m.get("context", 4096),
            "torch_dtype": dtype,
            "transformers_version": "4.44.0",
        }
        if "rope" in m:
            config["rope_scaling"] = m["rope"]
    else:
        config |= {
            "dtype": dtype,
            "layer_types": ["full_attention"] * m["layers"],
            "rope_parameters": {"rope_theta": m["theta"], **m.get("rope", {"rope_type": "default"})},
            "sliding_window": None,
            "transformers_version": "5.0.0",
        }
    if arch in ("Qwen3", "Qwen3Moe", "Llama"):
        config |= {"attention_bias": m.get("bias", False), "head_dim": m["head_dim"]}
    if arch == "Llama":
        config |= {"mlp_bias": False, "pretraining_tp": 1}
    if arch in ("Mistral", "Ministral3"):
        config["head_dim"] = m["head_dim"]
    if arch == "Qwen3Moe":
        config |= {
            "num_experts" if m["spelling"] == 4 else "num_local_experts": m["experts"],
            "num_experts_per_tok": m["chosen"],
            "moe_intermediate_size": m["expert_intermediate"],
            "norm_topk_prob": m["normalised"],
            "mlp_only_layers": m["dense"],
            "decoder_sparse_step": 1,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }
    if arch in ("SmolLM3", "Phi3", "Ministral3"):
        config["pad_token_id"] = ids["<|endoftext|>"]
    if arch == "SmolLM3":
        config |= {"attention_bias": False, "mlp_bias": False, "no_rope_layers": m["no_rope_layers"], "no_rope_layer_interval": 4}
    if arch == "Phi3":
        # The original context stands beside the scaling, as in Phi-4-mini.
        scaling = config["rope_scaling"] = dict(m["rope"])
        config["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings")
        config["partial_rotary_factor"] = m["partial"]
    unknown = {
        "Llama": ("max_window_layers", "sliding_window", "use_sliding_window"),
        "SmolLM3": ("max_window_layers", "sliding_window"),
        "Mistral": ("max_window_layers", "use_sliding_window", "layer_types"),
        "Ministral3": ("max_window_layers", "use_sliding_window", "layer_types"),
        "Phi3": ("max_window_layers", "use_sliding_window", "layer_types"),
        "Qwen3Moe": ("layer_types",),
    }
    for name in unknown.get(arch, ()):
        config.pop(name, None)
    return config


# The projections that Phi-3 stores in one matrix, below each other.
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def routed(m, layer):
    """Whether a layer has experts."""
    return "experts" in m and layer not in m["dense"]


def feed_forwards(m, layer):
    """The feed-forward parts of a layer: their names, their widths and the gains of their down."""
    if not routed(m, layer):
        return [("mlp", m["intermediate"], 1.2)]
    return [(f"mlp.experts.{e}", m["expert_intermediate"], 2.4) for e in range(m["experts"])]


def random_weights(m, seed, quiet_ids=()):
    """State dict of a random model, in the stored dtype.

    The gains make random weights behave: scores spread enough for attention to peak, blocks outweigh the embedding in the residual
    stream so that a tied head does not echo its input, norms and biases are far from their trivial values. `quiet_ids` get
    embeddings near zero, so that a tied head never chooses them.
    """
    rng = np.random.default_rng(seed)
    h, q, kv = m["hidden"], m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"]

    def matrix(rows, columns, gain):
        return rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)

    def norm(size=h, mean=1.0):
        return mean * (1.0 + 0.3 * rng.standard_normal(size))

    arch = m.get("arch", "Qwen2")
    biases = {"q": q, "k": kv, "v": kv, "o": h} if m.get("bias") else {"q": q, "k": kv, "v": kv} if arch == "Qwen2" else {}
    # Without biases or norms of its own, a head needs larger scores for its attention to peak.
    gain = m.get("gain", 1.3 if arch == "Qwen2" else 1.7)

    embedding = rng.standard_normal((m["vocab"], h)) * 0.3
    embedding[list(quiet_ids)] *= 0.02
    w = {"model.embed_tokens.weight": embedding}
    for layer in range(m["layers"]):
        p = f"model.layers.{layer}."
        w[p + "input_layernorm.weight"] = norm()
        for name, rows, spread in (("q", q, gain), ("k", kv, gain), ("v", kv, 1.2)):
            w[p + f"self_attn.{name}_proj.weight"] = matrix(rows, h, spread)
            if name in biases:
                w[p + f"self_attn.{name}_proj.bias"] = 0.4 * rng.standard_normal(rows)
        w[p + "self_attn.o_proj.weight"] = matrix(h, q, 1.2)
        if "o" in biases:
            w[p + "self_attn.o_proj.bias"] = 0.4 * rng.standard_normal(h)
        if arch in ("Qwen3", "Qwen3Moe"):
            w[p + "self_attn.q_norm.weight"] = norm(m["head_dim"], 1.7)
            w[p + "self_attn.k_norm.weight"] = norm(m["head_dim"], 1.7)
        w[p + "post_attention_layernorm.weight"] = norm()
        if routed(m, layer):
            w[p + "mlp.gate.weight"] = matrix(m["experts"], h, 2.0)
        for mlp, inter, gain_down in feed_forwards(m, layer):
            w[p + f"{mlp}.gate_proj.weight"] = matrix(inter, h, 1.5)
            w[p + f"{mlp}.up_proj.weight"] = matrix(inter, h, 1.2)
            w[p + f"{mlp}.down_proj.weight"] = matrix(h, inter, gain_down)
    w["model.norm.weight"] = norm()
    if not m["tied"]:
        w["lm_head.weight"] = matrix(m["vocab"], h, 3.0)
    if arch == "Phi3":
        for layer in range(m["layers"]):
            for fused, parts in FUSED.items():
                names = [f"model.layers.{layer}.{part}.weight" for part in parts]
                w[f"model.layers.{layer}.{fused}.weight"] = np.concatenate([w.pop(name) for name in names])
    return {name: torch.from_numpy(value).to(m["dtype"]).contiguous() for name, value in w.items()}


def write_model(folder, m, seed, tokenizer, quiet_ids=()):
    """An HF directory: config, weights, generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    write_json(folder / "config.json", config_json(m, ids))
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        }
        # R1-Distill's sampling defaults, or none at all, which means greedy.
        | ({"do_sample": True, "temperature": 0.6, "top_p": 0.95} if m["spelling"] == 4 else {}),
    )
    save_weights(folder, random_weights(m, seed, quiet_ids), m.get("shards", 1))


def save_weights(folder, weights, shards):
    """One file, or several and their index, as `save_pretrained` names them."""
    if shards == 1:
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(weights), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[len(names) * shard // shards : len(names) * (shard + 1) // shards]}
        safetensors.torch.save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(sorted(part), file)
    size = sum(w.numel() * w.element_size() for w in weights.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def load_weights(folder):
    """All tensors of the model in `folder`, as stored."""
    return {k: v for file in sorted(folder.glob("model*.safetensors")) for k, v in safetensors.torch.load_file(file).items()}


# ------------------------------------------------------------------------------------------------------------------------ GGUF

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps", "mlp.experts.down_proj": "ffn_down_exps",
}  # fmt: skip


def gguf_name(name):
    stem, what = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{what}"
    return f"{GGUF_NAMES[stem]}.{what}"


def gguf_type(m, name):
    """The type of a matrix; vectors are F32. Fused matrices have the type of their last part, v or up."""
    projections = ((f"{c}_proj.weight", c) for c in ("q", "k", "v", "o", "gate", "up", "down"))
    for part, key in (("embed_tokens", "embed"), ("lm_head", "head"), *projections):
        if part in name:
            return gguf.GGMLQuantizationType[m["gguf"][key]]
    return gguf.GGMLQuantizationType.F32


def stacked(weights):
    """The matrices of the experts of a layer in one tensor, as llama.cpp's converter stacks them."""
    stacks = {}
    for name, value in weights.items():
        stem, dot, rest = name.partition(".experts.")
        stacks.setdefault(stem + dot + rest.split(".", 1)[1] if dot else name, []).append(value)
    return {name: torch.stack(values) if ".experts." in name else values[0] for name, values in stacks.items()}


def pair_rows(x, heads):
    """Rows of q or k in the order of llama.cpp's rotation, as its converter's `permute` does."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def unpair_rows(x, heads):
    return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def paired_heads(m, name):
    if m.get("arch") not in ("Llama", "SmolLM3", "Ministral3"):
        return None
    return m["heads"] if ".q_proj." in name else m["kv_heads"] if ".k_proj." in name else None


def write_gguf(path, m, weights, tokenizer):
    """The model as llama.cpp's converter and quantizer would write it."""
    weights = stacked(weights)
    arch = {"Ministral3": "mistral3"}.get(m.get("arch"), m.get("arch", "Qwen2").lower())
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(path.parent.name)
    writer.add_context_length(m.get("context", 4096))
    writer.add_embedding_length(m["hidden"])
    writer.add_block_count(m["layers"])
    writer.add_feed_forward_length(m["intermediate"])
    writer.add_head_count(m["heads"])
    writer.add_head_count_kv(m["kv_heads"])
    writer.add_layer_norm_rms_eps(m["eps"])
    writer.add_rope_freq_base(m["theta"])
    if arch in ("qwen3", "qwen3moe", "mistral3"):
        writer.add_key_length(m["head_dim"])
        writer.add_value_length(m["head_dim"])
    if arch in ("llama", "smollm3", "mistral3"):
        writer.add_rope_dimension_count(m["head_dim"])
        writer.add_vocab_size(m["vocab"])
    if arch == "qwen3moe":
        writer.add_expert_count(m["experts"])
        writer.add_expert_used_count(m["chosen"])
        writer.add_expert_feed_forward_length(m["expert_intermediate"])
    rope = m.get("rope")
    if arch == "phi3":
        writer.add_rope_dimension_count(rotary(m))
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(longrope_magnitude(m))
        writer.add_sliding_window(0)
        for which in ("long", "short"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], np.float32))
        rope = None
    if rope and rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if arch == "mistral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope and rope["rope_type"] == "llama3":
        plain = m["theta"] ** (-np.arange(0, m["head_dim"], 2) / m["head_dim"])
        writer.add_tensor("rope_freqs.weight", (plain / llama3_frequencies(plain, rope)).astype(np.float32))
    tokens = [tokenizer.id_to_token(i) for i in range(m["vocab"])]
    kinds = [gguf.TokenType.NORMAL] * m["vocab"]
    for token in SPECIALS:
        kind = gguf.TokenType.USER_DEFINED if "think" in token else gguf.TokenType.CONTROL
        kinds[tokenizer.token_to_id(token)] = kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_pad_token_id(tokenizer.token_to_id("<|endoftext|>"))
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, value in weights.items():
        value, heads = value.float().numpy(), paired_heads(m, name)
        kind = gguf_type(m, name)
        value = pair_rows(value, heads) if heads else value
        data = gguf.quants.quantize(np.ascontiguousarray(value), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rotary(m):
    """Components of a head that RoPE rotates, the first ones."""
    return int(m["head_dim"] * m.get("partial", 1.0))


def longrope_magnitude(m):
    """The factor of cosines and sines of Phi-3's scaling."""
    original = m["rope"]["original_max_position_embeddings"]
    return float(np.sqrt(1 + np.log(m["context"] / original) / np.log(original)))


def llama3_frequencies(plain, rope):
    turns = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (keep + (1 - keep) / rope["factor"])


def read_gguf(path, m, names):
    """The weights of a GGUF file under the given names, dequantized by the gguf package, in Hugging Face order."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    weights = {}
    for name in stacked(names):
        tensor = tensors.pop(gguf_name(name))
        assert tensor.tensor_type == gguf_type(m, name), name
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        value = value.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        heads = paired_heads(m, name)
        value = torch.from_numpy(np.array(unpair_rows(value, heads) if heads else value, order="C"))
        if ".experts." in name:
            stem, what = name.split(".experts.")
            weights |= {f"{stem}.experts.{e}.{what}": matrix.contiguous() for e, matrix in enumerate(value)}
        else:
            weights[name] = value
    assert not set(tensors) - {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}, list(tensors)
    return weights


# ------------------------------------------------------------------------------------------------- transformers, the golden side


class Golden:
    """transformers over one model directory: float32 arithmetic, eager attention."""

    def __init__(self, folder):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
        assert next(self.model.parameters()).dtype == torch.float32

    @torch.no_grad()
    def __call__(self, ids, positions=None, hidden=None, attention=False):
        """Logits [n, vocab] and, when asked, attention [layers, heads, n, n].

        positions: logical position of each id, default 0…n−1.
        hidden: bool [n, n], True where query row q must not see key k; causality is added to it.
        """
        n = len(ids)
        mask = None
        if hidden is not None:
            future = np.triu(np.ones((n, n), bool), 1)
            mask = torch.zeros(1, 1, n, n).masked_fill(torch.from_numpy(hidden | future), torch.finfo(torch.float32).min)
        out = self.model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([list(range(n) if positions is None else positions)]),
            attention_mask=mask,
            use_cache=False,
            output_attentions=attention,
        )
        logits = out.logits[0].numpy()
        if not attention:
            return logits, None
        return logits, np.stack([a[0].numpy() for a in out.attentions])

    def greedy(self, prompt, count):
        """`count` greedy ids after the prompt, and the logits [count, vocab] that chose them."""
        ids, rows = list(prompt), []
        for _ in range(count):
            rows.append(self(ids)[0][-1])
            ids.append(int(rows[-1].argmax()))
        return ids[len(prompt) :], np.stack(rows)


# ------------------------------------------------------------------------------ a second implementation, to check the first with

MUTANTS = (
    "no rope", "interleaved rope", "rope theta / 2", "no q bias", "no k bias", "no v bias", "kv head = h mod kv", "heads swapped",
    "no 1/sqrt(d)", "uniform attention", "not causal in a chunk", "norm weights = 1", "eps = 1e-6", "no silu", "last layer skipped",
    "no o bias", "no q norm", "no k norm", "head norms after rope", "no rope scaling", "all frequencies scaled",
    "no attention factor", "rope in every layer", "rope in the other layers", "whole heads rotated", "rotated from the end",
    "factors of the other context", "gate and up swapped", "attention factor of plain yarn", "an expert fewer",
    "experts weighted alike", "the other normalisation of experts", "each expert's neighbour", "the least experts",
)  # fmt: skip


def applies(mutant, m):
    """Whether the mutant can differ from the truth in this model at all."""
    arch, rope = m.get("arch", "Qwen2"), m.get("rope")
    match mutant:
        case "kv head = h mod kv":
            return m["kv_heads"] not in (1, m["heads"])
        case "eps = 1e-6":
            return m["eps"] >= 1e-3  # smaller ones do not show beside activations near 1
        case "no q bias" | "no k bias" | "no v bias":
            return arch == "Qwen2" or m.get("bias", False)
        case "no o bias":
            return m.get("bias", False)
        case "no q norm" | "no k norm" | "head norms after rope":
            return arch in ("Qwen3", "Qwen3Moe")
        case _ if "expert" in mutant:
            return "experts" in m
        case "no rope scaling":
            return rope is not None
        case "all frequencies scaled":
            return rope is not None and arch != "Phi3"
        case "no attention factor":
            return rope is not None and (arch == "Phi3" or rope["rope_type"] == "yarn") and arch != "Ministral3"
        case "attention factor of plain yarn":
            return arch == "Ministral3"
        case "rope in every layer" | "rope in the other layers":
            return "no_rope_layers" in m
        case "whole heads rotated" | "rotated from the end":
            return "partial" in m
        case "factors of the other context" | "gate and up swapped":
            return arch == "Phi3"
    return True


class Reference:
    """The models in NumPy float64 with a cache from which slots are really removed. Shares no code with transformers.

    mutant: one of MUTANTS, a deliberate error; the goldens must tell it from the truth.
    """

    def __init__(self, folder, m, mutant=None, round_kv=None):
        self.w = {k: v.double().numpy() for k, v in load_weights(folder).items()}
        self.m, self.mutant, self.round_kv = m, mutant, round_kv
        self.split(m["heads"] * m["head_dim"], m["kv_heads"] * m["head_dim"], m["intermediate"])
        self.routed_margin = np.inf  # see ROUTED
        assert mutant is None or mutant in MUTANTS
        empty = np.zeros((m["kv_heads"], 0, m["head_dim"]))
        self.keys, self.values = [empty] * m["layers"], [empty] * m["layers"]

    def split(self, q, kv, inter):
        """Fused matrices become their parts."""
        for name in [name for name in self.w if "qkv_proj" in name or "gate_up_proj" in name]:
            whole = self.w.pop(name)
            rows = np.split(whole, [q, q + kv] if "qkv" in name else [inter])
            for part, value in zip(FUSED[name.split(".", 3)[3].removesuffix(".weight")], rows):
                self.w[".".join(name.split(".", 3)[:3]) + f".{part}.weight"] = value

    def norm(self, x, name):
        weight = 1.0 if self.mutant == "norm weights = 1" else self.w[name]
        eps = 1e-6 if self.mutant == "eps = 1e-6" else self.m["eps"]
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        if name + ".bias" in self.w and self.mutant != f"no {name[-6]} bias":
            y = y + self.w[name + ".bias"]
        return y

    def head_norm(self, x, name):
        """q or k [heads, n, head_dim], normalised where the model does that."""
        if name not in self.w or self.mutant == f"no {name[-13]} norm":
            return x
        return self.norm(x, name)

    def frequencies(self):
        """Angle per position of each pair, and the factor of cosines and sines."""
        d, rope = rotary(self.m), self.m.get("rope")
        if self.mutant == "whole heads rotated":
            d = self.m["head_dim"]
        theta = self.m["theta"] / (2 if self.mutant == "rope theta / 2" else 1)
        plain = theta ** (-np.arange(0, d, 2) / d)
        if rope is None or self.mutant == "no rope scaling":
            return plain, 1.0
        if rope.get("type") == "longrope":
            # The longest forward of the goldens is the prompt of 200.
            long = (max(PROMPTS) > rope["original_max_position_embeddings"]) != (self.mutant == "factors of the other context")
            factors = np.array(rope["long_factor" if long else "short_factor"], np.float32).astype(float)
            factors = np.concatenate([factors, np.ones(d // 2 - len(factors))])
            return plain / factors, 1.0 if self.mutant == "no attention factor" else longrope_magnitude(self.m)
        factor, turns = rope["factor"], rope["original_max_position_embeddings"] * plain / (2 * np.pi)
        if self.mutant == "all frequencies scaled":
            keep = np.zeros(d // 2)
        elif rope["rope_type"] == "llama3":
            return llama3_frequencies(plain, rope), 1.0
        else:  # yarn: the ramp is linear in the dimension, between those with 32 turns and with 1
            at = np.interp(-np.log([32.0, 1.0]), -np.log(turns), np.arange(d // 2), left=-1, right=d)
            # Outside the table the dimension is what the logarithm says.
            step = np.log(theta) * 2 / d
            at = [(np.log(turns[0]) - np.log(t)) / step if a in (-1, d) else a for a, t in zip(at, (32.0, 1.0))]
            low, high = max(np.floor(at[0]), 0), min(np.ceil(at[1]), d - 1)
            keep = 1 - np.clip((np.arange(d // 2) - low) / (high - low), 0, 1)
        magnitude = 1.0
        plain_yarn = "mscale" not in rope or self.mutant == "attention factor of plain yarn"
        if rope["rope_type"] == "yarn" and plain_yarn and self.mutant != "no attention factor":
            magnitude = 0.1 * np.log(factor) + 1
        return plain * (keep + (1 - keep) / factor), magnitude

    def rope(self, x, positions):
        """x [heads, n, head_dim], rotated in halves: component i pairs with i + head_dim/2."""
        frequencies, magnitude = self.frequencies()
        d = 2 * len(frequencies)
        if self.mutant == "rotated from the end":
            x, rest = x[..., -d:], x[..., :-d]
        else:
            x, rest = x[..., :d], x[..., d:]
        angle = np.asarray(positions, float)[:, None] * frequencies[None]
        cos, sin = magnitude * np.cos(angle), magnitude * np.sin(angle)
        if self.mutant == "interleaved rope":
            a, b = x[..., 0::2], x[..., 1::2]
            return np.concatenate([np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape), rest], -1)
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def rotates(self, layer):
        """Whether RoPE rotates the queries and keys of a layer."""
        layers = self.m.get("no_rope_layers", [1] * self.m["layers"])
        match self.mutant:
            case "no rope":
                return False
            case "rope in every layer":
                return True
            case "rope in the other layers":
                return not layers[layer]
        return bool(layers[layer])

    def swiglu(self, y, name):
        gate, up = self.linear(y, name + ".gate_proj"), self.linear(y, name + ".up_proj")
        gate, up = (up, gate) if self.mutant == "gate and up swapped" else (gate, up)
        gate = gate if self.mutant == "no silu" else gate / (1 + np.exp(-gate))
        return self.linear(gate * up, name + ".down_proj")

    def experts(self, y, name):
        """The weighted sum over the experts that are chosen for each row; every expert is computed for all rows."""
        m, logits = self.m, self.linear(y, name + ".gate")
        order = np.argsort(logits if self.mutant == "the least experts" else -logits, -1, kind="stable")
        ordered = np.take_along_axis(logits, order, -1)
        margin = np.abs(ordered[:, m["chosen"] - 1] - ordered[:, m["chosen"]]) / np.abs(logits).max()
        self.routed_margin = min(self.routed_margin, float(margin.min()))
        chosen = m["chosen"] - (self.mutant == "an expert fewer")
        gains = np.exp(logits - logits.max(-1, keepdims=True))
        gains /= gains.sum(-1, keepdims=True)
        used = np.zeros_like(gains)
        np.put_along_axis(used, order[:, :chosen], 1.0, -1)
        used = used if self.mutant == "experts weighted alike" else used * gains
        if m["normalised"] != (self.mutant == "the other normalisation of experts"):
            used /= used.sum(-1, keepdims=True)
        shift = self.mutant == "each expert's neighbour"
        outs = [self.swiglu(y, f"{name}.experts.{(e + shift) % m['experts']}") for e in range(m["experts"])]
        return sum(used[:, e, None] * out for e, out in enumerate(outs))

    def __call__(self, ids, positions):
        """Appends ids at the logical positions. Logits [n, vocab], attention row of the last one [layers, heads, slots]."""
        m, n, d = self.m, len(ids), self.m["head_dim"]
        x, rows = self.w["model.embed_tokens.weight"][list(ids)], []
        for layer in range(m["layers"] - (self.mutant == "last layer skipped")):
            p = f"model.layers.{layer}."
            y = self.norm(x, p + "input_layernorm.weight")
            q, k, v = (self.linear(y, p + f"self_attn.{c}_proj").reshape(n, -1, d).transpose(1, 0, 2) for c in "qkv")
            names = [p + f"self_attn.{c}_norm.weight" for c in "qk"]
            if not self.rotates(layer):
                q, k = (self.head_norm(x, name) for x, name in zip((q, k), names))
            elif self.mutant == "head norms after rope":
                q, k = (self.head_norm(self.rope(x, positions), name) for x, name in zip((q, k), names))
            else:
                q, k = (self.rope(self.head_norm(x, name), positions) for x, name in zip((q, k), names))
            if self.round_kv:
                k, v = k.astype(self.round_kv).astype(float), v.astype(self.round_kv).astype(float)
            self.keys[layer] = np.concatenate([self.keys[layer], k], 1)
            self.values[layer] = np.concatenate([self.values[layer], v], 1)
            of = np.arange(m["heads"]) // (m["heads"] // m["kv_heads"])
            if self.mutant == "kv head = h mod kv":
                of = np.arange(m["heads"]) % m["kv_heads"]
            score = q @ self.keys[layer][of].transpose(0, 2, 1)
            score = score if self.mutant == "no 1/sqrt(d)" else score / np.sqrt(d)
            if self.mutant == "uniform attention":
                score = score * 0
            slots = score.shape[-1]
            if self.mutant != "not causal in a chunk":
                score = np.where(np.arange(slots)[None, :] > np.arange(slots - n, slots)[:, None], -np.inf, score)
            weight = np.exp(score - score.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            rows.append(weight[:, -1])
            out = (weight @ self.values[layer][of]).transpose(1, 0, 2)
            out = out[:, ::-1] if self.mutant == "heads swapped" else out
            x = x + self.linear(out.reshape(n, -1), p + "self_attn.o_proj")
            y = self.norm(x, p + "post_attention_layernorm.weight")
            x = x + (self.experts(y, p + "mlp") if routed(m, layer) else self.swiglu(y, p + "mlp"))
        x = self.norm(x, "model.norm.weight")
        return self.linear(x, "model.embed_tokens" if m["tied"] else "lm_head"), np.stack(rows)

    def keep(self, slots):
        """Leaves the given slots, in the given order; also the rollback (`range(length)`)."""
        slots = list(slots)
        self.keys = [k[:, slots] for k in self.keys]
        self.values = [v[:, slots] for v in self.values]


# ----------------------------------------------------------------------------------------------------------- what goes in a golden


def random_ids(rng, m, count):
    return [int(i) for i in rng.integers(0, min(m["vocab"], TOKENIZER_SIZE), count)]


def prompt_goldens(golden, m, rng):
    tensors = {}
    for n in PROMPTS:
        ids = random_ids(rng, m, n)
        logits, attention = golden(ids, attention=True)
        tensors[f"prompt.{n}.ids"] = np.array(ids, np.int32)
        tensors[f"prompt.{n}.logits"] = logits[-TAIL:] if n == max(PROMPTS) else logits
        tensors[f"prompt.{n}.attention"] = attention[:, :, -1]
    return tensors


def greedy_goldens(golden, prompt):
    ids, logits = golden.greedy(prompt, GREEDY)
    best = np.sort(logits, -1)
    return {
        "greedy.ids": np.array(ids, np.int32),
        "greedy.margins": best[:, -1] - best[:, -2],
        "greedy.max_abs_logit": np.abs(logits).max(-1),
    }


def schedule(rng):
    """Which positions each event evicts: sorted, never the question, never the last WINDOW, never twice."""
    gone, events = set(), []
    for after, survivors in zip(EVENTS, SURVIVORS):
        evictable = [p for p in range(QUESTION, after + 1 - WINDOW) if p not in gone]
        kept = {int(p) for p in rng.choice(evictable, survivors, replace=False)}
        evicted = [p for p in evictable if p not in kept]
        gone |= set(evicted)
        events.append((after, evicted))
    return events


def hidden_rows(n, events, too_early=False):
    """bool [n, n]: key k is hidden from query row q when an event before q evicted it (too_early: from every row)."""
    hidden = np.zeros((n, n), bool)
    for after, evicted in events:
        hidden[0 if too_early else after + 1 :, [k for k in evicted if k < n]] = True
    return hidden


def oracle_goldens(golden, m, rng):
    ids = random_ids(rng, m, QUESTION + STEPS)
    events = schedule(rng)
    n = len(ids)
    tensors = {"oracle.prompt.ids": np.array(ids[:QUESTION], np.int32), "oracle.ids": np.array(ids[QUESTION:], np.int32)}
    logits, _ = golden(ids, hidden=hidden_rows(n, events))
    tensors["oracle.prompt.logits"] = logits[QUESTION - 1]
    tensors["oracle.logits"] = logits[QUESTION:]
    tensors["wrong.masked_too_early.logits"] = golden(ids, hidden=hidden_rows(n, events, too_early=True))[0][QUESTION:]
    for e, (after, evicted) in enumerate(events):
        # The probe is forwarded where the cache holds everything up to `after` that earlier events left, and is then rolled back.
        probe, length = random_ids(rng, m, PROBE), after + 1 + PROBE
        gone = {k for _, earlier in events[:e] for k in earlier}
        positions = [k for k in range(length) if k not in gone]
        _, attention = golden(ids[: after + 1] + probe, hidden=hidden_rows(length, events[:e]), attention=True)
        row = attention[:, :, -1]
        assert (row[:, :, sorted(gone)] == 0).all(), "an evicted key still has weight"
        tensors[f"oracle.{e}.probe.ids"] = np.array(probe, np.int32)
        tensors[f"oracle.{e}.probe.attention"] = row[:, :, positions]
        tensors[f"oracle.{e}.probe.positions"] = np.array(positions, np.int32)
        tensors[f"oracle.{e}.evicted"] = np.array(evicted, np.int32)
    return tensors


def reference_oracle(reference, tensors):
    """The same schedule by removing slots from a cache: logits [STEPS, vocab], probe rows."""
    prompt, ids = tensors["oracle.prompt.ids"], tensors["oracle.ids"]
    reference(prompt, range(QUESTION))
    cached, rows, probes = list(range(QUESTION)), [], []
    for step, token in enumerate(ids):
        position = QUESTION + step
        rows.append(reference([token], [position])[0][-1])
        cached.append(position)
        if position in EVENTS:
            e = EVENTS.index(position)
            _, row = reference(tensors[f"oracle.{e}.probe.ids"], range(position + 1, position + 1 + PROBE))
            probes.append(row)
            reference.keep(range(len(cached)))  # roll the probe back
            evicted = set(tensors[f"oracle.{e}.evicted"].tolist())
            keep = [slot for slot, p in enumerate(cached) if p not in evicted]
            reference.keep(keep)
            cached = [cached[slot] for slot in keep]
    return np.stack(rows), probes


# ------------------------------------------------------------------------------------------------------- checks of the goldens


class Unmet(Exception):
    """A seed whose goldens do not meet a requirement."""


def require(condition, what):
    if not condition:
        raise Unmet(what)


def examine_greedy(tensors):
    ids = tensors["greedy.ids"]
    ratio = float((tensors["greedy.margins"] / tensors["greedy.max_abs_logit"].max()).min())
    report = {"distinct greedy ids": len(set(ids.tolist())), "least greedy margin / max |logit|": ratio}
    require(report["distinct greedy ids"] >= DISTINCT, f"only {report['distinct greedy ids']} distinct greedy ids")
    require(ratio >= MARGIN, f"greedy margin {ratio:.1e} below {MARGIN:.1e}")
    first_special = TOKENIZER_SIZE - len(SPECIALS)
    require(ids.max() < first_special, "a special or padding token among the greedy ids would end or redirect the text")
    return report


def examine_attention(tensors):
    report = {}
    for n in (64, 200):
        row = tensors[f"prompt.{n}.attention"]
        peaks = row.max(-1).max(-1) * n
        report[f"attention peak × n per layer, n = {n}"] = [round(float(p), 1) for p in peaks]
        require((peaks >= PEAK).all(), f"flat attention, n = {n}: {peaks}")
        # Total variation between the two most alike heads: swapping any two heads of a layer must show.
        heads = row.shape[1]
        alike = min(
            float(np.abs(layer[a] - layer[b]).sum() / 2) for layer in row for a in range(heads) for b in range(a)
        )  # fmt: skip
        report[f"least distance of two heads, n = {n}"] = round(alike, 3)
        require(alike >= 0.1, f"two heads nearly alike, n = {n}: {alike}")
    return report


def examine_echo(tensors):
    """A tied head over a residual stream full of the embedding would predict its own input."""
    echoed = float((tensors["prompt.64.logits"].argmax(-1) == tensors["prompt.64.ids"]).mean())
    require(echoed <= ECHO, f"{echoed:.0%} of the positions predict their own input")
    return {"positions that predict their own input, n = 64": round(echoed, 3)}


def relative(found, expected):
    """Largest difference as a fraction of the largest expected magnitude."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def examine(folder, m, tensors):
    """Asserts that the goldens can tell right from wrong; returns the measurements."""
    report = examine_greedy(tensors) | examine_attention(tensors) | examine_echo(tensors)
    longest = max(PROMPTS)

    def by_reference(mutant=None, n=longest, round_kv=None):
        ids = tensors[f"prompt.{n}.ids"].tolist()
        # Float64's own rounding aside, chunked prefill must equal one shot: the reference does it in two chunks.
        reference, half = Reference(folder, m, mutant, round_kv), n // 2
        first = reference(ids[:half], range(half))[0] if half else np.zeros((0, m["vocab"]))
        last, row = reference(ids[half:], range(half, n))
        return np.concatenate([first, last])[-len(tensors[f"prompt.{n}.logits"]) :], row

    # The second implementation agrees, so much below the bound that the goldens are well-conditioned too.
    worst, worst_row = 0.0, 0.0
    for n in PROMPTS:
        logits, row = by_reference(n=n)
        worst = max(worst, relative(logits, tensors[f"prompt.{n}.logits"]))
        worst_row = max(worst_row, float(np.abs(row - tensors[f"prompt.{n}.attention"]).max()))
    pruned = Reference(folder, m)
    logits, probes = reference_oracle(pruned, tensors)
    if "experts" in m:
        # An expert that is chosen by a hair is another one after the least rounding, and logits jump.
        whole = Reference(folder, m)
        text = [*tensors["prompt.64.ids"].tolist(), *tensors["greedy.ids"].tolist()]
        for ids in (text, *(tensors[f"prompt.{n}.ids"].tolist() for n in PROMPTS)):
            whole.keep([])
            whole(ids, range(len(ids)))
        margin = min(pruned.routed_margin, whole.routed_margin)
        report["least margin of a chosen expert / max |router logit|"] = margin
        require(margin >= ROUTED, f"an expert is chosen by {margin:.1e} only")
    oracle = relative(logits, tensors["oracle.logits"])
    for e, row in enumerate(probes):
        worst_row = max(worst_row, float(np.abs(row - tensors[f"oracle.{e}.probe.attention"]).max()))
    report["float64 reference: prompts' logits"] = worst
    report["float64 reference: evicting decode"] = oracle
    report["float64 reference: attention rows, absolute"] = worst_row
    require(max(worst, oracle, worst_row) <= BOUND / 5, f"ill-conditioned: {worst:.1e} {oracle:.1e} {worst_row:.1e}")

    # The wrong oracle is wrong from the first step after the prompt that it touches, and so is forgetting to evict.
    wrong = relative(tensors["wrong.masked_too_early.logits"], tensors["oracle.logits"])
    ids = tensors["oracle.prompt.ids"].tolist() + tensors["oracle.ids"].tolist()
    never = relative(Reference(folder, m)(ids, range(len(ids)))[0][QUESTION:], tensors["oracle.logits"])
    compact = reference_compact(Reference(folder, m), tensors)
    report["wrong oracle: masked too early"] = wrong
    report["wrong oracle: never evicted"] = never
    report["wrong oracle: positions compacted"] = compact
    first_event = EVENTS[0] + 1 - QUESTION
    early = relative(tensors["wrong.masked_too_early.logits"][first_event:], tensors["oracle.logits"][first_event:])
    report["wrong oracle: masked too early, rows after the first event"] = early
    require(min(wrong, never, compact, early) >= 100 * BOUND, f"the oracle is blind: {wrong} {never} {compact} {early}")

    for mutant in MUTANTS:
        if not applies(mutant, m):
            continue
        error = relative(by_reference(mutant)[0], tensors[f"prompt.{longest}.logits"])
        report[f"mutant: {mutant}"] = error
        require(error >= 100 * BOUND, f"mutant '{mutant}' is off by {error:.1e} only")

    report["for information: K and V rounded to f16"] = relative(
        by_reference(round_kv=np.float16)[0], tensors[f"prompt.{longest}.logits"]
    )
    return report


def reference_compact(reference, tensors):
    """How far the logits are off if slots are used as positions after an eviction."""
    prompt, ids = tensors["oracle.prompt.ids"], tensors["oracle.ids"]
    reference(prompt, range(QUESTION))
    cached, rows = list(range(QUESTION)), []
    for step, token in enumerate(ids):
        rows.append(reference([token], [len(cached)])[0][-1])
        cached.append(QUESTION + step)
        if cached[-1] in EVENTS:
            evicted = set(tensors[f"oracle.{EVENTS.index(cached[-1])}.evicted"].tolist())
            keep = [slot for slot, p in enumerate(cached) if p not in evicted]
            reference.keep(keep)
            cached = [cached[slot] for slot in keep]
    return relative(np.stack(rows), tensors["oracle.logits"])


# ------------------------------------------------------------------------------------------------------------------------- driver


def compute(folder, m, seed):
    """All goldens of the model in `folder`. Cheap requirements are checked early so that a search is quick."""
    golden, rng = Golden(folder), np.random.default_rng([seed, 1])
    tensors = prompt_goldens(golden, m, rng)
    examine_attention(tensors)
    tensors |= greedy_goldens(golden, tensors["prompt.64.ids"].tolist())
    examine_greedy(tensors)
    tensors |= oracle_goldens(golden, m, rng)
    return tensors, examine(folder, m, tensors)


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
        "numpy": np.__version__,
    }


GGUF_FILE = "model.gguf"


def text_goldens(folder):
    """Chat template and tokenizer vectors, as transformers renders and encodes them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 12 + 3?"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "chat": {"messages": messages, "text": chat, "ids": encode(chat)},
        "encodings": [{"text": text, "ids": encode(text)} for text in (*TEXTS, PROBE_TEXT)],
    }


def generate(name, m, seed, folder):
    """One model directory with its goldens; raises Unmet if the seed is not suitable."""
    tokenizer = build_tokenizer(TOKENIZER_SIZE)
    with tempfile.TemporaryDirectory() as scratch:
        hf = pathlib.Path(scratch) if "gguf" in m else folder
        write_model(hf, m, seed, tokenizer, quiet_ids=range(TOKENIZER_SIZE, m["vocab"]))
        write_tokenizer(hf, tokenizer)
        if "gguf" in m:
            folder.mkdir(parents=True, exist_ok=True)
            weights = load_weights(hf)
            write_gguf(folder / GGUF_FILE, m, weights, tokenizer)
            save_weights(hf, read_gguf(folder / GGUF_FILE, m, weights), 1)
        tensors, report = compute(hf, m, seed)
        text = text_goldens(hf)
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "golden.safetensors")
    integers = {k: v.tolist() for k, v in tensors.items() if v.dtype == np.int32}
    write_json_compact(
        folder / "golden.json",
        {
            "model": name,
            "seed": seed,
            "versions": versions(),
            "bound": BOUND,
            "prompts": list(PROMPTS),
            "tail": TAIL,
            "oracle": {"question": QUESTION, "steps": STEPS, "window": WINDOW, "probe": PROBE, "evict_after": list(EVENTS)},
            "measured": report,
            "ids": integers,
            **text,
        },
    )
    return report


def write_json_compact(path, value):
    """JSON with one line per entry of the two outer levels: readable, and without a line per id."""
    line = lambda v: json.dumps(v, ensure_ascii=False)
    parts = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            inner = ",\n".join(f"  {line(k)}: {line(v)}" for k, v in entry.items())
            parts.append(f" {line(key)}: {{\n{inner}\n }}")
        else:
            parts.append(f" {line(key)}: {line(entry)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def check(name, m, folder):
    """The committed goldens against a fresh computation over the committed weights."""
    stored = safetensors.numpy.load_file(folder / "golden.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        hf = folder
        if "gguf" in m:
            hf = pathlib.Path(scratch)
            write_model(hf, m, m["seed"], build_tokenizer(TOKENIZER_SIZE), quiet_ids=range(TOKENIZER_SIZE, m["vocab"]))
            save_weights(hf, read_gguf(folder / GGUF_FILE, m, load_weights(hf)), 1)
        fresh, report = compute(hf, m, m["seed"])
    assert stored.keys() == fresh.keys(), stored.keys() ^ fresh.keys()
    for key, value in fresh.items():
        assert stored[key].shape == value.shape and stored[key].dtype == value.dtype, key
        if value.dtype == np.int32:
            assert (stored[key] == value).all(), key
        else:  # another CPU may sum in another order
            assert np.abs(stored[key] - value).max() <= BOUND / 5 * max(1.0, np.abs(value).max()), key
    return report


def print_report(name, report):
    print(f"\n{name}")
    for what, value in report.items():
        print(f"  {what:58} {value:.2e}" if isinstance(value, float) else f"  {what:58} {value}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the committed goldens with a fresh computation")
    parser.add_argument("--search", type=int, metavar="N", help="try N seeds per model, print which would do, write nothing")
    parser.add_argument("--only", choices=MODELS, help="one model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(" · ".join(f"{k} {v}" for k, v in versions().items()))
    for name, m in MODELS.items():
        if arguments.only not in (None, name):
            continue
        folder = HERE / name
        if arguments.search:
            search(name, m, arguments.search)
        elif arguments.check:
            print_report(f"{name}: the committed goldens agree", check(name, m, folder))
        else:
            print_report(name, generate(name, m, m["seed"], folder))
            size = sum(f.stat().st_size for f in folder.iterdir())
            print(f"  {'bytes, all files':58} {size:,}")


def search(name, m, count):
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(count):
            try:
                generate(name, m, seed, pathlib.Path(scratch))
                print(f"{name}: seed {seed} does", flush=True)
                return
            except Unmet as reason:
                print(f"{name}: seed {seed}: {reason}", flush=True)
    print(f"{name}: no seed below {count} does")


if __name__ == "__main__":
    main()
